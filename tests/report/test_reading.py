import pytest
from tests._helpers import synthetic

from tutelage.report.curves import term_by_epoch
from tutelage.report.reading import formula, presets, read


@pytest.mark.parametrize(
    ("recorded", "named", "written"),
    [
        ([[{"wttm": {"gamma": 0.1, "beta": 3.0}}]], "wttm", "wttm(gamma=0.1, beta=3.0)"),
        ([[{"kd": {}}, {"crd": {}, "scale": 0.8}]], "kd + crd", "kd() + 0.8 * crd()"),
        ([[{"kd": {}}, {"itrd": {}, "scale": 0.8, "gather": True}]], "kd + itrd", "kd() + 0.8 * itrd().gathered()"),
        ([[{"hint": {}}], [{"kd": {"temperature": 4}}]], "hint, then kd", "hint(), then kd(temperature=4)"),
        ([{"kd": {}}], "kd", "kd()"),
        ("kd", "kd", "kd()"),
        (None, None, None),
        ([], None, None),
    ],
)
def test_an_objective_is_named_and_written_as_it_would_be_typed(recorded, named, written):
    assert presets(recorded) == named
    assert formula(recorded) == written


def test_a_terms_weight_is_told(tmp_path):
    synthetic.write_comparison(tmp_path)
    assert term_by_epoch(read(tmp_path), "wttm").caption.endswith("Weight in the loss: 3.")
    assert "Weight in the loss: 1, 0.1." in term_by_epoch(read(tmp_path), "ce").caption
