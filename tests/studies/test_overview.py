"""The table of objectives says what the code, the records and the published studies say."""

from __future__ import annotations

import json

import pytest
from tests._helpers import ROOT

from tutelage import objectives
from tutelage.studies import objective_rows, overview

ROWS = {row.name: row for row in overview.rows()}


def test_there_is_a_row_for_every_preset():
    assert list(ROWS) == [name for name in objectives.PRESETS if objectives.is_built_in(name)]
    assert all(row.formula and row.paper for row in ROWS.values())


@pytest.mark.parametrize(
    ("name", "needs", "tables"),
    [
        ("cross_entropy", "labels", "1, 2, 3, 4, 5, 7, 13"),
        ("confidence_penalty", "", ""),
        ("kd", "labels, teacher's logits", "1, 3, 5, 6, 7, 13"),
        ("crd", "features, indices, the batch as a whole", "1, 2, 3, 4, 5"),
        ("vitkd", "features", "13"),
    ],
)
def test_a_row_says_what_is_read_and_where_it_stands(name, needs, tables):
    assert (ROWS[name].needs, ROWS[name].tables) == (needs, tables)


def test_costs_are_those_recorded():
    recorded = json.loads(overview.COSTS.read_text())
    assert set(recorded["costs"]) <= set(ROWS)
    assert {name for name, row in ROWS.items() if row.time} == set(recorded["costs"])
    assert (ROWS["kd"].time, ROWS["kd"].memory) == ("1.00", "1.00")
    assert recorded["n"] >= 3
    assert recorded["commit"]


def test_the_committed_rows_are_those_of_the_presets():
    assert overview.ROWS.read_text(encoding="utf-8") == overview.rows_json(), "type make generated"
    assert objective_rows.read() == list(ROWS.values())


def test_the_page_is_the_table():
    page = (ROOT / "docs" / "objectives.md").read_text()
    assert overview.markdown() in page, "type python -m tutelage.studies.overview > docs/objectives.md"
