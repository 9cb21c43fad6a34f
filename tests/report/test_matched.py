"""What a table says of rows that are matched and of rows that are not."""

import json

import pytest
from tests._helpers import synthetic

from tutelage import objectives, records
from tutelage.report import results
from tutelage.report.html import write_report
from tutelage.report.matched import TESTS, matched_notes
from tutelage.report.reading import with_found

TTM = objectives.ttm(gamma=0.3, beta=objectives.Linear(1.0, 7.0))
SCALED = [{"kd": {"temperature": 4, "weight": 0.9, "supervised": 0.1}, "scale": 10}]  # as older runs recorded it


def recipe(objective):
    return objective.to_recipe() if isinstance(objective, objectives.Objective) else objective


@pytest.mark.parametrize(
    ("kd", "ttm"),
    [
        (objectives.kd_matched_to(TTM), TTM),
        (2 * objectives.kd_matched_to(TTM), 2 * TTM),
        (objectives.kd_matched_to(TTM) + objectives.fitnet(), TTM + objectives.fitnet()),
        (SCALED, objectives.ttm(gamma=0.25, beta=36)),
        ([{"kd": {"temperature": 3.3333333, "weight": 2.1, "supervised": 1}}], objectives.ttm(gamma=0.3, beta=7)),
        (objectives.kd_matched_to(objectives.ttm()), objectives.ttm()),
        (objectives.weighted_kd(normalise="batch"), objectives.wttm(normalise="batch")),
    ],
)
def test_matched_rows_are_known_by_their_arguments(kd, ttm):
    written = {"a": recipe(kd), "b": recipe(ttm), "c": [{"cross_entropy": {}}], "d": None}
    assert matched_notes([written]) == [f"a is matched to b: {TESTS}."]


@pytest.mark.parametrize(
    ("kd", "ttm", "words"),
    [
        (objectives.kd(), objectives.ttm(beta=3.6), "cross-entropy"),
        (objectives.kd(supervised=1), objectives.ttm(gamma=0.25, beta=4), "weight"),
        (objectives.kd(temperature=2, weight=1, supervised=1), objectives.ttm(gamma=0.25, beta=4), "target"),
        (objectives.kd(weight="auto", supervised=1), objectives.ttm(beta=4), "weight"),
        (objectives.kd_matched_to(TTM), 2 * TTM, "weight and cross-entropy"),
        (objectives.kd_matched_to(TTM), TTM + objectives.fitnet(), "other terms"),
        (objectives.weighted_kd(), objectives.wttm(normalise="batch"), "sample weights"),
        (objectives.kd(weight=1, supervised=1), objectives.wttm(beta=4), "sample weights"),
        (
            objectives.kd(weight=1, supervised=1),
            objectives.ttm(beta=4, logits="standardised"),
            "form of the logits",
        ),
    ],
)
def test_what_else_differs_between_others_is_said(kd, ttm, words):
    said = matched_notes([{"a": recipe(kd), "b": recipe(ttm)}])
    assert said == [f"a is not matched to b: their difference also tests {words}."]


def test_one_sentence_says_it_of_all_rows_of_a_kd():
    many = {f"ttm {k}": recipe(objectives.ttm(beta=k)) for k in range(1, 7)}
    assert matched_notes([{"kd": SCALED, **many}]) == [
        "kd is not matched to ttm 1, ttm 2, ttm 3 or 3 others: their difference also tests weight."
    ]


def test_a_row_that_is_matched_elsewhere_needs_no_sentence():
    rows = {"ttm": objectives.ttm(), "wttm": objectives.wttm(), "plain": objectives.kd()}
    rows |= {f"kd {name}": objectives.kd_matched_to(rows[name]) for name in ("ttm", "wttm")}
    assert matched_notes([{name: recipe(objective) for name, objective in rows.items()}]) == [
        f"kd ttm is matched to ttm: {TESTS}.",
        f"kd wttm is matched to wttm: {TESTS}.",
        "plain is not matched to ttm or wttm: their difference also tests weight, cross-entropy or sample weights.",
    ]


def test_at_gamma_one_there_is_nothing_to_test():
    ttm = objectives.ttm(gamma=1, beta=2)
    (said,) = matched_notes([{"a": recipe(objectives.kd_matched_to(ttm)), "b": recipe(ttm)}])
    assert said == "a and b are one objective: at gamma = 1 they are the same."


def test_what_was_found_is_compared_as_a_number(tmp_path):
    arguments = {"supervised": 1.0, "logits": "raw"}
    kd = [[{"kd": {**arguments, "temperature": "auto", "weight": "auto"}}]]
    for gamma, said in ((0.5, f"a is matched to b: {TESTS}."), (1.0, "a and b are one objective")):
        manifests = [
            {"objective": kd, "objective_resolved": [{"kd": {"temperature": 1 / gamma, "weight": 2.0}}]},
            {"objective": [[{"ttm": {**arguments, "gamma": gamma, "beta": "auto"}}]], "objective_resolved": [{}]},
        ]
        (note,) = matched_notes([dict(zip("ab", map(with_found, manifests), strict=True))])
        assert note.startswith(said)


def test_what_differs_for_one_pair_of_networks_differs():
    ttm = objectives.ttm(gamma=0.5, beta=2)
    one = {"kd": recipe(objectives.kd_matched_to(ttm)), "ttm": recipe(ttm)}
    other = {**one, "ttm": recipe(objectives.ttm(gamma=0.5, beta=3))}
    assert matched_notes([one, one]) == [f"kd is matched to ttm: {TESTS}."]
    assert matched_notes([one, other, {}]) == ["kd is not matched to ttm: their difference also tests weight."]


@pytest.mark.parametrize(
    "objective",
    [
        None,
        [],
        "kd",
        [{"kd": None}],
        [{"kd": {"temperature": "4", "weight": {}, "supervised": 1}}],
        [[{"fitnet": {}}], [{"kd": {"temperature": 4, "weight": 0.9, "supervised": 0.1}}]],  # two stages
        [{"ttm": {"gamma": 0, "beta": 1, "supervised": 1}}],
        [*recipe(objectives.kd()), *recipe(objectives.ttm(supervised=0))],
    ],
)
def test_other_objectives_and_damaged_records_are_left_out(objective):
    known = {"kd": recipe(objectives.kd()), "ttm": recipe(objectives.ttm(beta=3.6))}
    assert matched_notes([{**known, "other": objective}]) == matched_notes([known]) != []


def test_the_table_of_a_comparison_says_it(tmp_path):
    synthetic.write_comparison(tmp_path)
    wttm = objectives.wttm(gamma=0.5, beta=2)
    for name, objective in (("kd", objectives.kd_matched_to(wttm)), ("wttm", wttm)):
        for path in tmp_path.glob(f"{name}-*/{records.MANIFEST}"):
            synthetic.write(path, {**json.loads(path.read_text()), "objective": [recipe(objective)]})
    sentence = f"kd is matched to wttm: {TESTS}."
    assert sentence in results.table(results.rows(tmp_path)).notes
    assert sentence in write_report(tmp_path).read_text(encoding="utf-8").replace("&#39;", "'")
