"""The tables of objectives say what the code, the records, the studies and the file of published figures say."""

from __future__ import annotations

import json
import statistics

import pytest
import yaml
from pydantic import ValidationError
from tests._helpers import ROOT

from tutelage import objectives
from tutelage.settings.objective import SIGNATURES
from tutelage.studies import objective_rows, overview, published_figures, recorded_figures, study_file

ROWS = {row.name: row for row in overview.rows()}
FIGURES = published_figures.read()
PUBLISHED = published_figures.by_preset()
RESULTS = ROOT / "benchmarks" / "results"


def test_there_is_a_row_for_every_preset():
    assert list(ROWS) == [name for name in objectives.PRESETS if objectives.is_built_in(name)]
    assert all(row.formula and row.paper for row in ROWS.values())


@pytest.mark.parametrize(
    ("name", "needs", "tables", "task"),
    [
        ("cross_entropy", "labels", "1, 2, 3, 4, 5, 7, 13", "any"),
        ("confidence_penalty", "", "", "any"),
        ("kd", "labels, teacher's logits", "1, 3, 5, 6, 7, 13", "any"),
        ("crd", "features, indices, the batch as a whole", "1, 2, 3, 4, 5", "classes"),
        ("vitkd", "features", "13", "images"),
        ("cosine", "embeddings", "", "embeddings"),
        ("srrl", "features, teacher's weights", "5", "images"),
        ("hidden_states", "features", "", "transformers"),
        ("crld", "labels, teacher's logits, the batch as a whole, two views", "", "images"),
        ("uld", "labels, teacher's logits", "", "tokens"),
        ("cwd", "teacher's logits", "", "pixels"),
    ],
)
def test_a_row_says_what_is_read_what_it_is_for_and_where_it_stands(name, needs, tables, task):
    assert (ROWS[name].needs, ROWS[name].tables, ROWS[name].task) == (needs, tables, task)


def test_a_preset_may_say_what_it_is_for(monkeypatch):
    for register in (objectives.PRESETS, SIGNATURES):
        monkeypatch.setitem(register, "for_sounds", None)
        del register["for_sounds"]  # and monkeypatch takes away what is put there

    @objectives.preset("nobody", task="sounds")
    def for_sounds(*, weight: float = 1.0) -> objectives.Objective:
        """``weight``."""
        return objectives.cross_entropy(weight=weight)

    assert objectives.PRESETS["for_sounds"].task == "sounds"
    assert objectives.PRESETS["kd"].task is None


@pytest.mark.parametrize("name", ROWS)
def test_every_preset_has_a_task_and_costs_and_figures_or_reasons(name):
    row = ROWS[name]
    assert row.task in {"any", "images", "classes", "transformers", "pixels", "tokens", "embeddings"}
    assert bool(row.time and row.memory) is not bool(row.uncosted)
    assert (row.published is None) is bool(row.unpublished), f"{name} has no line in published_figures.yaml, or two"


def test_costs_are_those_recorded():
    recorded = json.loads(overview.COSTS.read_text())
    assert not set(recorded["costs"]) & set(recorded["not_measured"])
    assert {name for name, row in ROWS.items() if row.time} == set(recorded["costs"]) & set(ROWS)
    assert all(ROWS[name].uncosted == why for name, why in recorded["not_measured"].items() if name in ROWS)
    assert (ROWS["kd"].time, ROWS["kd"].memory) == ("1.00", "1.00")
    assert all(cost["bed"] for cost in recorded["costs"].values())
    assert recorded["n"] >= 3
    assert recorded["commit"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_figure_has_a_source_a_setting_and_an_epoch(name):
    of = PUBLISHED[name]
    assert of.figure[0].isdigit()
    assert of.epoch in {"last", "best on test", "best on validation", "unknown"}
    assert any(part in of.source for part in ("arXiv:", "github.com/", "huggingface.co/"))
    assert min(map(len, (of.setting, of.measure, of.table, of.known_by))) > 3
    # An epoch that is known is known from something; one that is not is not claimed.
    assert of.epoch == "unknown" or "not stated" not in of.known_by


def test_the_file_of_published_figures_names_what_there_is():
    named = [name for table in FIGURES.tables for name in table.figures]
    assert len(named) == len(set(named))
    assert set(named) - set(ROWS) == set(FIGURES.beyond)
    assert set(FIGURES.none) <= set(ROWS)
    for study, of in FIGURES.studies.items():
        methods = study_file.read(study)[0].methods.values()
        assert {name for others in of.presets for name in others.names} <= {p for m in methods for p in m.presets}


@pytest.mark.parametrize(
    ("name", "figure", "kd", "epoch"),
    [
        ("wttm", "76.06 ± 0.27 (n = 5)", "73.33", "unknown"),  # table 1 of the paper, by its study
        ("crd", "75.51 ± 0.18 (n = 5)", "73.33", "last"),  # the same table, whose figure is RepDistiller's
        ("nst", "73.30", "73.33", "last"),
        ("two_view_mlkd", "78.28", "73.33", "best on test"),
        ("deit", "74.5", "without a teacher 72.2", "unknown"),
    ],
)
def test_figures_are_as_printed(name, figure, kd, epoch):
    assert (PUBLISHED[name].figure, PUBLISHED[name].kd, PUBLISHED[name].epoch) == (figure, kd, epoch)


@pytest.mark.parametrize(
    ("key", "value"), [("source", None), ("epoch", "the best"), ("epochs", 240), ("known_by", ""), ("kd", "about 73")]
)
def test_the_schema_refuses_a_table_without_a_source_an_epoch_or_a_number(key, value):
    file = yaml.safe_load(published_figures.FILE.read_text(encoding="utf-8"))
    published_figures.Figures.model_validate(file)
    file["tables"][0][key] = value
    if value is None:
        del file["tables"][0][key]
    with pytest.raises(ValidationError, match=key):
        published_figures.Figures.model_validate(file)


def test_what_we_ran_is_what_a_comparisons_evaluations_say():
    entries = json.loads((RESULTS / "digits" / "comparison.json").read_text())["entries"]
    folders = [RESULTS / "digits" / entry["folder"] for entry in entries if entry["objective"] == "wttm"]
    values = [100 * json.loads((f / "evaluation.json").read_text())["student"]["accuracy"] for f in folders]
    first = ROWS["wttm"].recorded[0]
    figure = f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"
    assert (first.record, first.figure, first.n, first.epoch) == ("digits", figure, len(values), "last")
    assert (first.measure, first.beside) == ("Accuracy (%)", "")


def test_what_we_ran_is_what_a_studys_table_says():
    rows = json.loads((RESULTS / "zoo-smoke" / "table.json").read_text())["rows"]
    printed = {row["method"]: f"{row['accuracy']:.2f}" for row in rows}
    ours = {name: of for name in ("mgd", "itrd", "dkd") for of in ROWS[name].recorded if of.record == "zoo-smoke"}
    assert {name: of.figure for name, of in ours.items()} == {name: printed[name] for name in ours}
    assert len(ours) == 3
    beside = next(of for of in ROWS["renyi_penalty"].recorded if of.record == "zoo-smoke")
    assert (beside.figure, beside.beside) == (printed["kd with a Renyi term"], "kd")


def test_every_record_that_is_shown_is_there_and_the_most_seeds_come_first():
    for row in ROWS.values():
        assert [of.n for of in row.recorded] == sorted((of.n for of in row.recorded), reverse=True)
        assert all((RESULTS / of.record).is_dir() for of in row.recorded)


def test_tables_show_a_few_records_and_say_how_many_more_there_are():
    lines = [line.strip() for line in objective_rows.lines(ROWS["wttm"], 1000, details=True)]
    assert sum(line.startswith("we ran: ") for line in lines) == objective_rows.SHOWN
    more = len(ROWS["wttm"].recorded) - objective_rows.SHOWN
    assert lines[-1] == f"and {more} more: tutelage list objectives wttm --evidence"
    ran = (ROOT / "docs" / "objectives.md").read_text(encoding="utf-8").split("\n## ")[3]
    assert ran.count("\n| `wttm` |") == objective_rows.SHOWN


def test_without_records_nothing_was_run(tmp_path):
    assert recorded_figures.by_preset(tmp_path) == {}


def test_the_committed_rows_are_those_of_the_presets():
    assert overview.ROWS.read_text(encoding="utf-8") == overview.rows_json(), "type make generated"
    assert objective_rows.read() == list(ROWS.values())


def test_the_page_is_the_tables():
    page = (ROOT / "docs" / "objectives.md").read_text(encoding="utf-8")
    assert page.rstrip() == overview.page().rstrip(), "type python -m tutelage.studies.overview > docs/objectives.md"
    costs, published, ran = page.split("\n## ")[1:]
    assert all(f"`{name}`" in part for part in (costs, published, ran) for name in ROWS)
