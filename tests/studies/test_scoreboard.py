"""The scoreboard of a study with a search, from records alone."""

from __future__ import annotations

import json

import pytest
from scipy.stats import ttest_rel
from tests._helpers import synthetic

from tutelage import records
from tutelage.report.statistics import mean_interval
from tutelage.studies import study_table
from tutelage.studies.scoreboard import Standing, tables

ACCURACIES = {"kd": (73.9, 74.0, 74.4), "dkd": (75.1, 75.4, 75.3, 75.9), "ttm": (74.2, 74.1, 74.9), "new": ()}


@pytest.fixture
def folder(tmp_path):
    """A study whose runs nobody trained: kd has three seeds, dkd one more, new none."""
    cells, candidates = [], []
    for method, accuracies in ACCURACIES.items():
        for seed, accuracy in enumerate(accuracies):
            name = f"{method}-seed{seed}"
            synthetic.write_run(tmp_path / name, objective="kd", seed=seed, accuracy=accuracy / 100, validation=False)
            cells.append({"folder": f"../{name}", "pair": "a/b", "teacher": None, "method": method, "seed": seed})
        for number, value in enumerate((0.6, 0.65, None) if accuracies else (0.6, None, None)):
            candidates.append(
                {
                    "pair": "a/b",
                    "method": method,
                    "number": number,
                    "folder": f"../{method}-trial{number}-seed0",
                    "seed": 0,
                    "setting": {method: {"weight": 0.3 * 3**number}},
                    "state": "to do" if value is None else "finished",
                    "value": value,
                    "chosen": bool(accuracies) and number == 1,
                }
            )
    content = {
        "pairs": ["a/b"],
        "methods": [*ACCURACIES, "not asked for"],
        "cells": cells,
        "search": {"epochs": 2, "validation": 0.1, "presets": {"dkd": "dkd"}, "candidates": candidates},
    }
    (tmp_path / "grid").mkdir()
    synthetic.write(tmp_path / "grid" / records.STUDY, content)
    return tmp_path / "grid"


def test_methods_stand_by_their_mean_and_are_compared_with_kd_by_seed(folder):
    found = study_table.read_table(folder).scoreboard
    assert [(each.method, each.n) for each in found] == [("dkd", 4), ("ttm", 3), ("kd", 3), ("new", 0)]
    dkd, ttm, kd, new = found
    assert dkd.value == pytest.approx(75.425)
    assert dkd.interval == pytest.approx(mean_interval(ACCURACIES["dkd"]))
    differences = [one - other for one, other in zip(ACCURACIES["dkd"], ACCURACIES["kd"], strict=False)]
    assert (dkd.against, dkd.seeds, dkd.difference) == ("kd", 3, pytest.approx(sum(differences) / 3))
    assert dkd.difference_interval == pytest.approx(mean_interval(differences))
    assert (kd.against, kd.difference, kd.p) == (None, None, None)
    assert (new.value, new.difference, new.p) == (None, None, None)
    raw = [ttest_rel(ACCURACIES[name][:3], ACCURACIES["kd"]).pvalue for name in ("dkd", "ttm")]
    assert raw[0] < raw[1]
    assert (dkd.p, ttm.p) == pytest.approx((2 * raw[0], max(2 * raw[0], raw[1])))  # Holm's, of the two with a test


def test_what_was_chosen_stands_beside_what_was_tried(folder):
    dkd, *_, new = study_table.read_table(folder).scoreboard
    assert dkd.setting == {"dkd": {"weight": pytest.approx(0.9)}}
    assert (dkd.validation, dkd.tried) == (65.0, (60.0, 65.0, None))
    assert (new.setting, new.validation, new.tried) == (None, None, (60.0, None, None))
    written = study_table.markdown(study_table.read_table(folder))
    assert "| dkd.weight=0.9 | 65.00 of 60.00, 65.00, – |" in written
    assert "Each was tried once, with the first seed, for 2 epochs without 10 % of the training samples" in written


def test_a_study_that_searches_yet_shows_what_is_tried(folder):
    content = json.loads((folder / records.STUDY).read_text())
    synthetic.write(folder / records.STUDY, content | {"pairs": ["a/b", "c/d"], "cells": []})
    table = study_table.read_table(folder)
    assert [row.method for row in table.shown["a/b"]] == ["teacher", *ACCURACIES]
    assert table.left_out == ["c/d", "not asked for of a/b"]


def test_what_others_published_stands_once_for_each_preset():
    found = [Standing(pair="a/b", method=name, n=3, preset="kd") for name in ("kd", "kd matched to ttm")]
    *_, published = tables([*found, Standing(pair="a/b", method="ttm", n=3, preset="ttm")], records.ACCURACY)
    assert published.headings[0] == "Preset"
    assert [row.cells[0] for row in published.rows] == ["kd", "ttm"]
