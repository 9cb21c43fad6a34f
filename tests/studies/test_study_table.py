"""The table of a study, from records alone: means, published values, scores, what is missing."""

from __future__ import annotations

import json
import math
import shutil
from io import StringIO

import pytest
from rich.console import Console
from scipy.stats import ttest_1samp
from tests._helpers import synthetic
from tests._helpers.refusals import refused

from tutelage import records
from tutelage.errors import NotFoundError
from tutelage.studies import study_table as study
from tutelage.studies.report import write_report
from tutelage.studies.study_table import read_table, z_score

EVIL = '<script>alert("x")</script>'
ACCURACIES = {"kd": (0.7391, 0.7402), "wttm": (0.7613, 0.7589, 0.7602)}


def write(folder, *, published=(), cells=(), **changes):
    """A pool with a study of two pairs in it: one with runs, one without."""
    place = folder / "grid"
    place.mkdir(exist_ok=True)
    made = list(cells)
    for method, accuracies in ACCURACIES.items():
        for seed, accuracy in enumerate(accuracies):
            name = f"big-small/{method}-seed{seed}"
            synthetic.write_run(
                folder / name, objective=method, seed=seed, accuracy=accuracy, selected="test", validation=False
            )
            made.append(
                {"folder": f"../{name}", "pair": "big/small", "teacher": "../t", "method": method, "seed": seed}
            )
    synthetic.write_run(folder / "t", objective="ce", accuracy=0.7942, taught=False, selected="test", validation=False)
    value = {
        "name": "grid",
        "title": "A grid",
        "source": "a paper",
        "pairs": ["big/small", "big/tiny"],
        "methods": ["kd", "wttm", "new"],
        "cells": made,
        "published": [dict(zip(("pair", "method", "mean", "std", "n"), one, strict=True)) for one in published],
        "figures": [],
        "departures": [],
        "missing": {"new": "not built: new"},
        "notes": [],
        **changes,
    }
    synthetic.write(place / records.STUDY, value)
    return place


PUBLISHED = (
    ("big/small", "teacher", 79.0, None, None),
    ("big/small", "kd", 73.33, 0.25, 5),
    ("big/small", "wttm", 76.06, 0.27, 5),
    ("big/small", "new", 76.5, 0.2, 5),
    ("big/tiny", "kd", 70.0, None, 5),
)


def row(table, pair, method):
    (found,) = [row for row in table.rows if (row.pair, row.method) == (pair, method)]
    return found


def test_means_spreads_differences_and_scores_by_hand(tmp_path):
    table = read_table(write(tmp_path, published=PUBLISHED))
    wttm = row(table, "big/small", "wttm")
    mean = (76.13 + 75.89 + 76.02) / 3
    variance = ((76.13 - mean) ** 2 + (75.89 - mean) ** 2 + (76.02 - mean) ** 2) / 2
    assert wttm.n == 3
    assert wttm.values == pytest.approx((76.13, 75.89, 76.02))
    assert wttm.accuracy == pytest.approx(mean)
    assert wttm.std == pytest.approx(math.sqrt(variance))
    assert wttm.difference == pytest.approx(mean - 76.06)
    assert wttm.z == pytest.approx((mean - 76.06) / math.sqrt(variance / 3 + 0.27**2 / 5))
    assert wttm.best == pytest.approx(mean + 0.3)
    assert wttm.best_set == "test"
    assert wttm.untested is None


def test_rows_are_pair_by_pair_the_teacher_first(tmp_path):
    table = read_table(write(tmp_path, published=PUBLISHED))
    methods = ["teacher", "kd", "wttm", "new"]
    assert [(one.pair, one.method) for one in table.rows] == [
        (pair, method) for pair in ("big/small", "big/tiny") for method in methods
    ]
    assert list(table.begun) == ["big/small"]
    teacher = row(table, "big/small", "teacher")
    assert (teacher.role, teacher.n, teacher.accuracy) == ("teacher", 1, pytest.approx(79.42))
    assert teacher.untested == "the published value has no standard deviation"
    new, other = row(table, "big/small", "new"), row(table, "big/tiny", "kd")
    assert (new.status, new.accuracy, new.published, new.difference) == ("not built: new", None, 76.5, None)
    assert (other.status, other.published, other.untested) == ("not run", 70.0, None)


def test_a_teacher_without_a_run_is_known_from_its_students(tmp_path):
    cells = [{"folder": "../big-small/kd-seed0", "pair": "big/tiny", "teacher": None, "method": "kd", "seed": 0}]
    teacher = row(read_table(write(tmp_path, cells=cells)), "big/tiny", "teacher")
    assert (teacher.n, teacher.accuracy) == (1, pytest.approx(79.42))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((1.0, 0.3, 2, 0.4, 5), (1.0 / math.sqrt(0.09 / 2 + 0.16 / 5), None)),
        ((-1.0, 0.3, 2, 0.4, 5), (-1.0 / math.sqrt(0.09 / 2 + 0.16 / 5), None)),
        ((1.0, None, 1, 0.4, 5), (None, "fewer than two runs")),
        ((1.0, 0.3, 2, None, 5), (None, "the published value has no standard deviation")),
        ((1.0, 0.3, 2, 0.4, None), (None, "the published value's number of runs is not known")),
        ((1.0, 0.0, 2, 0.0, 5), (None, "neither side has any spread")),
    ],
)
def test_the_score_and_why_there_is_none(given, expected):
    score, why = z_score(*given)
    assert why == expected[1]
    assert score == (None if expected[0] is None else pytest.approx(expected[0]))


def test_unfinished_runs_are_in_no_mean(tmp_path):
    synthetic.write_run(tmp_path / "big-small/kd-seed2", objective="kd", seed=2, status="running", length=7)
    cells = [{"folder": "../big-small/kd-seed2", "pair": "big/small", "teacher": "../t", "method": "kd", "seed": 2}]
    folder = write(tmp_path, cells=cells)
    table = read_table(folder)
    kd = row(table, "big/small", "kd")
    assert (kd.n, len(kd.unfinished)) == (2, 1)
    assert study.cells(kd)["n"] == "2 of 3"
    assert "Not averaged: big/small, kd: kd-seed2 (seed 2, running, 7 epochs done)." in study.notes(table)


def test_the_files_hold_the_table(tmp_path):
    folder = write(tmp_path, published=PUBLISHED, departures=["epochs: 8 instead of 240"], notes=["Mind the gap."])
    study.write_tables(folder)
    value = json.loads((folder / "table.json").read_text())
    table = read_table(folder)
    assert [one["z"] for one in value["rows"]] == [one.z for one in table.rows]
    assert value["departures"] == ["epochs: 8 instead of 240"]
    text = (folder / "table.md").read_text()
    assert text.startswith("# A grid\n\nPublished values: a paper\n\nThis is not the protocol that the study states")
    assert text.index("- epochs: 8 instead of 240") < text.index("## big/small")
    assert "| wttm | 76.01 ± 0.12 | 3 | 76.31 \\[selected on test\\] | 76.06 ± 0.27 (n = 5) | -0.05 | -0.34 |" in text
    assert "| new | not built: new | – | – | 76.50 ± 0.20 (n = 5) | – | – |" in text
    assert "| kd | not run | – | – | 70.00 (n = 5) | – | – |" in text
    assert "not testable: the published value has no standard deviation" in text
    assert text.endswith("- Mind the gap.\n")


def test_it_says_which_methods_are_matched(tmp_path):
    folder = write(tmp_path)
    objectives = {
        "kd": {"temperature": 2, "weight": 1, "supervised": 1},
        "wttm": {"gamma": 0.5, "beta": 2, "supervised": 1},
    }
    for name, arguments in objectives.items():
        for path in tmp_path.glob(f"big-small/{name}-seed*/{records.MANIFEST}"):
            synthetic.write(path, {**json.loads(path.read_text()), "objective": [[{name: arguments}]]})
    sentence = "kd is not matched to wttm: their difference also tests sample weights."
    assert read_table(folder).matched == (sentence,)
    assert sentence in study.notes(read_table(folder))


def printed(folder, width=120):
    console = Console(file=StringIO(), width=width)
    study.print_study(folder, console)
    return console.file.getvalue()


def test_the_terminal_shows_what_was_run(tmp_path):
    text = printed(write(tmp_path, published=PUBLISHED, departures=["epochs: 8 instead of 240"]))
    assert text.index("epochs: 8 instead of 240") < text.index("big/small")
    assert "76.31*" in text
    assert "No runs yet: big/tiny." in text
    assert "  kd " not in text.split("No runs yet")[1]


def test_what_was_not_run_and_has_no_published_value_is_named_once(tmp_path):
    folder = write(tmp_path, published=[each for each in PUBLISHED if each[0] != "big/tiny"])
    study.write_tables(folder)
    text = (folder / "table.md").read_text()
    assert "- Not run and without a published value: big/tiny." in text
    assert "## big/tiny" not in text
    assert "Not run and without a published value: big/tiny." in printed(folder)
    assert 'data-pair="big/tiny"' not in write_report(folder).read_text()
    assert len(json.loads((folder / "table.json").read_text())["rows"]) == 8

    (tmp_path / "all").mkdir()
    folder = write(tmp_path / "all", published=PUBLISHED)
    study.write_tables(folder)
    text = (folder / "table.md").read_text()
    assert "- Not run and without a published value: wttm of big/tiny." in text
    assert "| new | not built: new |" in text.split("## big/tiny")[1]

    shutil.rmtree(tmp_path / "all" / "big-small")
    shutil.rmtree(tmp_path / "all" / "t")
    synthetic.write(folder / records.STUDY, json.loads((folder / records.STUDY).read_text()) | {"cells": []})
    study.write_tables(folder)
    text = (folder / "table.md").read_text()
    assert text.count("| wttm | not run |") == 2
    assert "- Not run" not in text


def test_without_published_values_there_are_no_columns_for_them(tmp_path):
    folder = write(tmp_path)
    study.write_tables(folder)
    assert "| Method | Accuracy (%) | n | Best epoch (%) |" in (folder / "table.md").read_text()
    assert "Published" not in printed(folder)


def test_the_report_has_the_table_and_every_run_s_curves(tmp_path):
    folder = write(tmp_path, published=PUBLISHED, departures=["epochs: 8 instead of 240"], title=EVIL)
    page = write_report(folder).read_text()
    assert EVIL not in page
    table = read_table(folder)
    z = row(table, "big/small", "wttm").z
    assert 'data-pair="big/small" data-method="wttm" data-n="3"' in page
    assert f'data-z="{z}"' in page
    assert page.count("<tr class=") == sum(map(len, table.shown.values())) + 5
    assert "epochs: 8 instead of 240" in page
    assert ">big/small</h2>" in page
    assert "<h2>big/tiny</h2>" not in page
    assert 'data-folder="../big-small/wttm-seed2"' in page
    spec = page.split('<script type="application/json" id="spec-entropy')[1].split(">", 1)[1].split("</script>")[0]
    names = {trace["name"] for trace in json.loads(spec)["data"] if trace.get("name")}
    assert {"kd", "wttm"} <= names


def test_a_study_without_runs_has_a_page(tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    synthetic.write(folder / records.STUDY, {"name": "empty", "pairs": ["a/b"], "methods": ["kd"]})
    assert "0 of 0 runs are finished" in write_report(folder).read_text()
    assert "not run" in printed(folder)


def test_a_folder_that_is_no_study_s_is_refused(tmp_path):
    with refused(NotFoundError, "folder", got=tmp_path, suggests="tutelage study"):
        read_table(tmp_path)


def test_costs_are_held_against_the_method_that_the_study_names(tmp_path):
    place = write(tmp_path, costs="kd")
    folder = tmp_path / "big-small/wttm-seed0"
    rows = [json.loads(line) for line in (folder / records.METRICS).read_text().splitlines()]
    manifest = json.loads((folder / records.MANIFEST).read_text())
    size = manifest["recipe"]["batch_size"]
    for path in (tmp_path / "big-small").glob("wttm-*"):
        slow = [row | {"images_per_second": 2500.0, "memory_mb": 600.0} for row in rows]
        slow[0] |= {"images_per_second": 1.0, "memory_mb": 500.0}  # A median and a peak: one odd epoch is no cost.
        (path / records.METRICS).write_text("".join(json.dumps(row) + "\n" for row in slow))
    found = {row.method: row for row in study.read_table(place).rows if row.pair == "big/small"}
    assert found["kd"].step_ms == pytest.approx(size / 5)
    assert (found["kd"].step_ratio, found["kd"].memory_ratio) == (1, 1)
    assert found["wttm"].step_ratio == pytest.approx(2)
    assert (found["wttm"].memory_mb, found["wttm"].memory_ratio) == (600, 1.5)
    shown = study.markdown(study.read_table(place))
    assert "| Step (ms) | Memory (MB) |" in shown
    assert "600 (1.50 x kd)" in shown
    assert "Published (%)" not in shown
    assert "Step (ms)" not in study.markdown(study.read_table(write(tmp_path)))


WEIGHTS = {"tests": "weights", "first": "wttm", "second": "kd"}
NEWS = {"tests": "news", "first": "new", "second": "kd"}


def test_differences_are_paired_by_seed_over_finished_runs_of_both(tmp_path):
    synthetic.write_run(tmp_path / "big-small/kd-seed2", objective="kd", seed=2, status="running", length=7)
    cells = [{"folder": "../big-small/kd-seed2", "pair": "big/small", "teacher": "../t", "method": "kd", "seed": 2}]
    folder = write(tmp_path, cells=cells, differences=[WEIGHTS, NEWS])
    weights, news = read_table(folder).of("big/small")
    values = (76.13 - 73.91, 75.89 - 74.02)
    mean, half = sum(values) / 2, 12.7062047 * abs(values[0] - values[1]) / 2  # t of one degree of freedom
    assert (weights.seeds, weights.above) == ((0, 1), 2)
    assert weights.values == pytest.approx(values)
    assert (weights.mean, weights.std) == pytest.approx((mean, abs(values[0] - values[1]) / math.sqrt(2)))
    assert (weights.low, weights.high) == pytest.approx((mean - half, mean + half))
    assert (weights.p, weights.untested) == (None, None)  # of two seeds there is no test
    assert (news.seeds, news.mean, news.low, news.untested) == ((), None, None, "no seed that both have finished")


def test_three_seeds_have_a_test_and_one_no_interval(tmp_path):
    folder = write(tmp_path, differences=[WEIGHTS])
    value = json.loads((folder / records.STUDY).read_text())
    synthetic.write_run(tmp_path / "big-small/kd-seed2", objective="kd", seed=2, accuracy=0.74)
    third = {"folder": "../big-small/kd-seed2", "pair": "big/small", "teacher": None, "method": "kd", "seed": 2}
    synthetic.write(folder / records.STUDY, value | {"cells": [*value["cells"], third]})
    (weights, _) = read_table(folder).differences
    assert weights.p == pytest.approx(ttest_1samp(weights.values, 0).pvalue)
    first = [cell for cell in value["cells"] if cell["seed"] == 1]
    synthetic.write(folder / records.STUDY, value | {"cells": first})
    (weights, _) = read_table(folder).differences
    assert (weights.values, weights.std, weights.low) == ((pytest.approx(1.87),), None, None)
    assert weights.untested == "one seed has no spread"


def test_differences_stand_below_each_pairs_table(tmp_path):
    folder = write(tmp_path, differences=[WEIGHTS, NEWS])
    study.write_tables(folder)
    text = (folder / study.MARKDOWN).read_text()
    row_of = "| weights | wttm - kd | 2 | +2.05 ± 0.25 | -0.18 to +4.27 | – | 2 of 2 |"
    assert text.index("## big/small") < text.index(row_of)
    assert "- Not run: big/tiny." in text
    assert "| news | new - kd | 0 | – | none: no seed that both have finished | – | – |" in text
    assert study.paired.NOTE in text
    (weights, *_) = json.loads((folder / study.JSON).read_text())["differences"]
    assert (weights["tests"], weights["n"], weights["above"], weights["seeds"]) == ("weights", 2, 2, [0, 1])
    assert weights["mean"] == pytest.approx(2.045)
    assert "measure" not in weights
    shown = printed(folder)
    assert "-0.18 to +4.27" in shown
    assert study.paired.NOTE.split(":")[0] in " ".join(shown.split())
    assert "-0.18 to +4.27" in printed(folder, 80)
    page = write_report(folder).read_text()
    assert "Differences between methods</h2>" in page
    assert 'data-tests="weights" data-first="wttm" data-second="kd"' in page
    assert page.count("wttm - kd") == 1  # of the pair that has runs
    study.write_tables(write(tmp_path))
    assert "Tests" not in (folder / study.MARKDOWN).read_text()


def test_a_study_of_language_models_is_of_perplexity(tmp_path):
    place = write(tmp_path, published=[("big/small", "kd", 21.0, 0.25, 5)])
    for method, values in {"kd": (20.0, 20.5), "wttm": (25.0, 25.5, 24.0)}.items():
        for seed, value in enumerate(values):
            synthetic.of_text(tmp_path / f"big-small/{method}-seed{seed}", value)
    synthetic.of_text(tmp_path / "t", 9.5)
    table = read_table(place)
    kd = row(table, "big/small", "kd")
    assert (kd.value, kd.of_task, kd.accuracy, kd.best, kd.difference) == (20.25, 20.25, None, 19.25, -0.75)
    shown = study.markdown(table)
    assert "| Method | Perplexity | n | Best epoch | Published | Difference | z |" in shown
    assert "| teacher | 9.50 | 1 |" in shown
    assert "| kd | 20.25 ± 0.35 | 2 | 19.25 \\[selected on test\\] | 21.00 ± 0.25 (n = 5) | -0.75 |" in shown
    assert "- Perplexity is the last epoch's on the test set" in shown
    study.write_tables(place)
    rows = json.loads((place / study.JSON).read_text())["rows"]
    assert [each.get("perplexity") for each in rows[:2]] == [9.5, 20.25]
    assert "perplexity" not in rows[-1]  # of a pair without runs nothing is known
    write_report(place)
