"""Every preset goes through every check of the battery."""

import battery
import pytest
import torch

from tutelage import objectives
from tutelage.objectives import PRESETS, Apply, Objective, Part, is_built_in


@pytest.fixture(autouse=True)
def _alone():
    """Graphs that were compiled for one method are none of the next one's business."""
    yield
    torch.compiler.reset()


def test_every_preset_has_a_row():
    names = [row.preset for row in battery.ROWS]
    assert len(set(names)) == len(names)
    missing = sorted(name for name in PRESETS if is_built_in(name) and name not in names)
    assert not missing, f"add a row for {', '.join(missing)} to ROWS in tests/conformance/battery.py"


def test_every_law_of_a_row_is_known():
    for row in battery.ROWS:
        assert set(row.laws.split()) <= battery.LAWS.keys()


def each(checks):
    return [
        pytest.param(
            row,
            check,
            id=f"{row.preset}-{check.replace(' ', '_')}",
            marks=pytest.mark.skipif(not row.known, reason=f"there is no preset {row.preset} yet"),
        )
        for row in battery.ROWS
        for check in checks
    ]


@pytest.mark.parametrize(("row", "check"), each(battery.CHECKS))
def test_it_passes(row, check):
    assert battery.run(row, check) in {"pass", "refused", "n/a"}


@pytest.mark.slow
@pytest.mark.parametrize(("row", "check"), each(battery.SLOW))
def test_it_passes_compiled_by_inductor(row, check):
    assert battery.run(row, check) in {"pass", "n/a"}


# The runner that says so can also say no.


def test_a_table_shows_what_fails(capsys, monkeypatch):
    monkeypatch.setattr(
        battery, "CHECKS", {"zero": battery.zero, "recipe": battery.recipe, "soft": battery.soft_labels}
    )
    monkeypatch.setattr(battery, "ROWS", [battery.Row("kd", {}, "zero"), battery.Row("ttm", {}, "zero")])
    battery.case_of.cache_clear()
    assert battery.main(["kd"]) == 0
    assert "| `kd` | pass | pass | pass |" in capsys.readouterr().out.splitlines()
    assert battery.main([]) == 1
    said = capsys.readouterr()
    assert "| `ttm` | FAIL | pass | pass |" in said.out.splitlines()
    assert said.err.startswith("ttm, zero: AssertionError: expected 0 of ttm, got ")
    battery.case_of.cache_clear()
    assert battery.main(["kdd"]) == 2
    assert "expected names among kd, ttm; got kdd" in capsys.readouterr().err


def wrong(student_logits, teacher_logits, labels):
    """Nothing that a loss must be: a gradient of the teacher, float16 inside, unlabelled samples that count."""
    return (student_logits - teacher_logits).half().square().float().sum(-1) + student_logits[:1, 0] * (1 + labels[:1])


@pytest.fixture
def _wrong(monkeypatch):
    known = dict(PRESETS)

    @objectives.preset("none")
    def bad(*, weight: float = 1.0):
        return Objective.of(Part("bad", weight, Apply(wrong)))

    monkeypatch.setattr(battery, "ROWS", [battery.Row("bad", {}, "zero shift samples classes")])
    yield
    for name in set(PRESETS) - set(known):
        del PRESETS[name]
    battery.case_of.cache_clear()


@pytest.mark.usefixtures("_wrong")
@pytest.mark.parametrize(
    "check", ["trains", "large", "unlabelled", "soft labels", "gradient", "zero", "shift", "samples", "classes"]
)
def test_a_wrong_loss_fails(check):
    with pytest.raises((AssertionError, RuntimeError)):
        battery.run(battery.ROWS[0], check)
