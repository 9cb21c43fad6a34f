"""The comparison of automatic settings with a grid: its recipes, its weights, what it chooses."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests._helpers import ROOT

from tutelage import config, records
from tutelage.config.schema import Comparison
from tutelage.objectives import BindContext, from_recipe


@pytest.fixture
def dial(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("dial")


def test_every_task_is_a_comparison(dial, tmp_path):
    given = argparse.Namespace(runs=tmp_path, source=None, seeds=1)
    for task in dial.TASKS:
        written = dict(config.read(dial.recipe(task, "grid", given)))
        written.pop("teacher")  # a folder of the repository's, or trained first
        comparison = config.parse(Comparison, written | {"teacher": "runs/teacher"})
        assert list(comparison.objectives) == ["cross_entropy", *dial.GRID]
        assert comparison.data.validation == 0.1


def test_only_the_rate_differs_where_the_rate_is_tried(dial, tmp_path):
    given = argparse.Namespace(runs=tmp_path, source=None, seeds=1)
    for task in dial.TASKS:
        grid, rate = (dict(config.read(dial.recipe(task, stage, given))) for stage in ("grid", "rate"))
        assert rate["optimizer"] == grid["optimizer"] | {"lr": pytest.approx(3 * float(grid["optimizer"]["lr"]))}
        assert rate["objectives"] == {f"g0.25_s{share}": grid["objectives"][f"g0.25_s{share}"] for share in (1, 3, 10)}
        differing = dict.fromkeys(("optimizer", "objectives", "name"))
        assert rate | differing == grid | differing


@pytest.mark.parametrize("task", ["ag-news", "ag-news-25"])
def test_a_share_is_the_same_however_few_samples_are_labelled(dial, task):
    logits = 4 * torch.randn(5400, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.full((5400,), -100)
    labels[: round(5400 * dial.LABELLED.get(task, 1))] = 0
    bound = from_recipe(dial.at(task, 0.5, 10.0)).bind(BindContext(teacher_logits=logits, labels=labels))
    apart = ((0.5 * logits.double()).softmax(-1) - 0.25).norm(dim=-1).mean()
    assert bound._weights["ttm"] * apart / 0.75**0.5 == pytest.approx(10, rel=1e-3)


@pytest.mark.parametrize(("measure", "expected"), [(records.ACCURACY, "g1_s10"), (records.PERPLEXITY, "g0.25_s1")])
def test_the_best_is_that_of_the_task_s_measure(dial, monkeypatch, measure, expected):
    values = {name: float(at) for at, name in enumerate(dial.GRID)}

    def of(name):
        return [SimpleNamespace(epochs=[{"validation": {measure.key: values[name]}}])]

    monkeypatch.setattr(dial, "read", lambda folder: SimpleNamespace(measure=measure, of=of))
    assert dial.best("digits", Path("runs")) == expected
