"""The page of methods and settings: its tables are those of the records, and no number stands in its text alone."""

from __future__ import annotations

import re

import pytest
from docs import choosing_tables
from tests._helpers import ROOT
from tests.pages.generated import unknown_numbers
from tests.pages.harness import blocks_of, play

from tutelage import config
from tutelage.report.matched import matched_notes

PAGE = "docs/choosing.md"
KNOWN = {"240": "epochs of the paper's protocol for CIFAR-100", "2402.11148": "the paper's number"}
"""Numbers of the text that no table has, and what they are."""


@pytest.fixture(scope="module")
def page():
    return (ROOT / PAGE).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def rewritten(page):
    return choosing_tables.written(page)


def test_the_tables_are_those_of_the_records(page, rewritten):
    assert rewritten == page, "type python docs/choosing_tables.py"
    assert sorted(re.findall(r"^<!-- table: (\S+) -->$", page, flags=re.MULTILINE)) == sorted(choosing_tables.TABLES)
    spoiled = page.replace("84.22\u00a0", "94.22\u00a0")
    assert spoiled != page
    assert choosing_tables.written(spoiled) == page


def test_every_number_of_the_text_is_in_a_table_or_in_the_record_that_it_links(page):
    assert list(unknown_numbers(page, choosing_tables.TABLES, KNOWN)) == []


def test_what_the_page_calls_matched_is():
    for each in choosing_tables.EXPERIMENTS:
        subject = each.subject
        notes = " ".join(matched_notes([{entry: subject.objective(entry) for entry in subject.entries}]))
        matched = {(first, second) for first, second in re.findall(r"(\w+) is matched to (\w+):", notes)}
        assert matched == set(each.matched), each.name


def test_no_experiment_of_one_label_or_several_is_left_out():
    shown = {
        each.folder for each in (*choosing_tables.EXPERIMENTS, *choosing_tables.LANGUAGE, *choosing_tables.EMBEDDINGS)
    }
    assert shown == {path.parent.name for path in choosing_tables.RESULTS.glob("*/comparison.json")}


def test_the_pages_comparison_is_one(tmp_path):
    (recipe,) = (block.code for block in blocks_of(PAGE) if block.language == "yaml")
    (tmp_path / "first.yaml").write_text(recipe, encoding="utf-8")
    comparison = config.parse(config.Comparison, config.read(tmp_path / "first.yaml"))
    assert list(comparison.objectives) == list(choosing_tables.METHODS)


@pytest.mark.slow
def test_the_pages_comparison_runs(tmp_path):
    small = ["epochs=1", "seeds=1", "teacher.train.epochs=2", "device=cpu", "threads=1"]
    played = play(PAGE, tmp_path, overrides={"compare": small})
    assert "weighted_kd is matched to wttm" in " ".join(played.said["tutelage compare first.yaml"].split())
