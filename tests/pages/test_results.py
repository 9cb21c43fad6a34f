"""The page of results: every record is in its tables, and no number stands in its text alone."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from docs import choosing_tables, results_tables
from scipy.stats import ttest_ind
from tests._helpers import ROOT
from tests.pages.generated import unknown_numbers

from tutelage.report.statistics import holm

PAGE = "docs/results.md"
KNOWN = {
    "240 epochs": "of the published schedule",
    "last 16 images": "the trial left out, as its record says",
    "T = 1": "the temperature 1 / gamma",
    "95 % interval": "the level",
}


@pytest.fixture(scope="module")
def page():
    return (ROOT / PAGE).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def made():
    """Each table's rows and head, by its name."""
    return {name: list(make()) for name, make in results_tables.TABLES.items()}


@pytest.fixture(scope="module")
def tables(made):
    return {name: rows for name, (_, *rows) in made.items()}


def test_the_tables_are_those_of_the_records(page, made):
    again = choosing_tables.written(page, {name: rows.__iter__ for name, rows in made.items()})
    assert again == page, "type python -m docs.results_tables"
    assert not re.search(r"\|\n[^|\n]", page), "a table ends with an empty line"
    named = re.findall(r"^<!-- table: (\S+) -->$", page, flags=re.MULTILINE)
    assert sorted(named) == sorted(results_tables.TABLES)


def test_every_number_of_the_text_is_in_a_table_or_in_the_record_that_it_links(page):
    assert list(unknown_numbers(page, results_tables.TABLES, KNOWN)) == []


def test_every_comparison_and_study_is_there(tables):
    shown = " ".join(row[0] for name in ("comparisons", "of-studies", "scoreboards") for row in tables[name])
    paths = [*choosing_tables.RESULTS.rglob("comparison.json"), *choosing_tables.RESULTS.rglob("study.json")]
    folders = [path.parent.relative_to(choosing_tables.RESULTS).as_posix() for path in paths]
    assert len(folders) > 15
    left_out = [name for name in folders if f"results/{name}/" not in shown]
    assert {name.split("/")[0] for name in left_out} == set(results_tables.NO_ACCURACY)


def test_the_trial_is_what_was_measured(tables):
    rows = {row[0]: row for row in tables["trial"]}
    assert rows["`ttm`"][1:6] == [
        "74.35 74.32 74.47",
        "74.38\u00a0±\u00a00.08",
        "3",
        "74.18\u00a0to\u00a074.58",
        "74.33 ± 0.07 (n = 5)",
    ]
    assert [rows[f"`{name}`"][-1] for name in ("kd", "kd_matched", "ttm", "wttm")] == ["+0.07", "–", "+0.90", "-0.68"]
    differences = {row[0]: row[3] for row in tables["trial-differences"]}
    parts = [differences[name] for name in ("weight and temperature", "Renyi term", "sample weight")]
    assert [part.split("\u00a0")[0] for part in parts] == ["+0.95", "+0.43", "-0.06"]
    corrected = holm([float(row[5]) for row in tables["trial-differences"]])
    assert len(corrected) == 4
    assert min(corrected) > 0.05  # as the text below them says


def test_only_a_kd_of_its_own_target_and_weight_is_matched(tables):
    comparisons = {each.name for each in results_tables.COMPARISONS}
    matched = {(row[0], row[1]) for row in tables["paired"] if row[2] == "yes" and row[0] in comparisons}
    expected = {
        (each.name, f"`{second}` - `{first}` (points)")
        for each in choosing_tables.EXPERIMENTS
        for first, second in each.matched
    }
    assert matched == expected


def test_automatic_settings_are_compared_by_seed(tmp_path, monkeypatch):
    arms = {"grid": [8.0, 9.0, 10.0], "auto": [9.0, 9.0, 12.0], "fixed": [9.0, 9.0, 12.0], "kd": [1.0, 2.0, 3.0]}
    found = {"found": [{"ttm": {"gamma": 0.3, "beta": beta}} for beta in (2.0, 2.0, 2.5)]}
    task = {"task": "a", "measure": "accuracy", "chosen": "g0.5_s10", "seeds": [5, 6, 7]}
    task["arms"] = {name: {"values": values, **found} for name, values in arms.items()}
    words = {**task, "task": "b", "measure": "perplexity"}
    (tmp_path / "dial").mkdir()
    (tmp_path / "dial/dial.json").write_text(json.dumps({"tasks": [task, words]}))
    for module in (choosing_tables, results_tables):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    _, row, _ = results_tables.dial()
    assert row[0] == "a"
    assert row[3].startswith("10.00")
    assert row[-3:] == ["gamma 0.5, share 10", "gamma 0.3, beta 2 to 2.5", "3"]
    _, *rows = results_tables.dial_differences()
    (points,) = (row for row in rows if row[:2] == ["a", "`auto` - grid"])
    assert points[2:5] == ["points", "3", "+1.00\u00a0±\u00a01.00"]
    (percent,) = (row for row in rows if row[:2] == ["b", "`auto` - grid"])
    assert percent[2] == "%"
    assert percent[4].startswith("-10.83")  # the perplexity is higher, which is worse
    (between,) = (row for row in rows if row[:2] == ["a", "grid - fixed"])
    assert between[4].startswith("-1.00")
    (whole,) = (row for row in rows if row[:2] == ["mean of 1", "`auto` - grid"])
    assert whole[4:6] == ["+1.00", points[5]]  # of one task the interval is its own


def test_an_interval_of_a_mean_of_means_is_that_of_all_where_they_are_alike():
    groups = [[1.0, 2.0, 3.0], [5.0, 6.0, 7.0]]
    middle, low, high = results_tables.mean_of_means(groups)
    assert middle == 4
    assert high - middle == pytest.approx(middle - low) == pytest.approx(2.776 * (1 / 3 / 2) ** 0.5, rel=1e-3)


def test_of_two_means_of_unlike_spread_it_is_welch_s():
    first, second = [1.0, 2.0, 3.5], [5.0, 9.0, 7.0, 1.0]
    welch = ttest_ind(first, [-value for value in second], equal_var=False).confidence_interval()
    assert results_tables.mean_of_means([first, second])[1:] == pytest.approx([bound / 2 for bound in welch])


def test_a_study_that_arrives_appears_by_itself(tmp_path, monkeypatch):
    shutil.copytree(choosing_tables.RESULTS / "cifar100-quarter", tmp_path / "scoreboard-short")
    for module in (choosing_tables, results_tables):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    _, teacher, *rest = results_tables.of_studies()
    assert teacher[0].endswith("(../benchmarks/results/scoreboard-short/method-alone/table.md)")
    judged = tmp_path / "scoreboard-short/teachers/resnet56-seed100/evaluation.json"
    accuracy = json.loads(judged.read_text(encoding="utf-8"))["student"]["accuracy"]
    assert teacher[2:5] == ["`teacher`", f"{100 * accuracy:.2f}", "1"]
    assert rest


def test_a_study_with_a_search_has_a_scoreboard_with_what_others_published(tmp_path, monkeypatch):
    folder = tmp_path / "scoreboard-short"
    shutil.copytree(choosing_tables.RESULTS / "cifar100-quarter", folder)
    table = folder / "method-alone" / "table.json"
    kd = {"pair": "a/b", "method": "kd", "n": 3, "value": 50.0, "std": 1.0, "interval": [47.5, 52.5], "preset": "kd"}
    dkd = kd | {"method": "dkd", "preset": "dkd", "against": "kd", "seeds": 3, "difference": 1.25, "p": 0.04}
    dkd |= {"difference_interval": [0.5, 2.0], "setting": {"dkd": {"weight": 3.0}}, "tried": [1, 2], "validation": 2}
    alone = {"pair": "c/d", "method": "ttm", "n": 1, "value": 40.0}
    found = json.loads(table.read_text(encoding="utf-8")) | {"scoreboard": [dkd, kd, alone]}
    table.write_text(json.dumps(found), encoding="utf-8")
    for module in (choosing_tables, results_tables):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    head, *rows = results_tables.scoreboards()
    first, second, third = (dict(zip(head, row, strict=True)) for row in rows)
    assert [first[each] for each in ("Pair", "Method", "Chosen")] == ["a/b", "dkd", "dkd.weight=3"]
    assert [each["Less kd (points)"] for each in (first, second, third)] == ["+1.25", "–", "–"]
    assert [third[each] for each in ("Pair", "Method", "Accuracy (%)", "n")] == ["c/d", "ttm", "40.00", "1"]
    head, *rows = results_tables.published_elsewhere()
    assert [dict(zip(head, row, strict=True))["Epoch"] for row in rows] == ["unknown", "last"]
    assert [row[2] for row in results_tables.of_studies()][1:] == ["`teacher`"]
