"""Runs that end early, with an average of their weights: what they leave behind, killed and resumed too."""

import json

import pytest
import torch
from tests._helpers import KILLED_RUN
from tests._helpers.killed_command import typed
from tests._helpers.refusals import refused
from torch.utils.data import TensorDataset

import tutelage
from tutelage import config, records
from tutelage.config.schema import Recipe
from tutelage.errors import RecipeError
from tutelage.models.readme import model_card
from tutelage.report import html
from tutelage.report.reading import read
from tutelage.report.results import notes, rows
from tutelage.report.summary import result, selection
from tutelage.runs.execute import execute
from tutelage.runs.group import execute_group
from tutelage.runs.reporter import Reporter
from tutelage.runs.run import RunOptions
from tutelage.runs.terminal import TerminalReporter

TIMING = ("seconds", "images_per_second", "memory_mb")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(html, "write_report", lambda folder: None)
    yield
    torch.set_num_threads(threads)


class Steps(Reporter):
    """What is said, and the calls about steps in order."""

    def __init__(self):
        self.lines, self.calls = [], []

    def say(self, text):
        self.lines.append(text)

    def begin(self, title, steps, done):
        self.calls.append(("begin", steps, done))

    def end(self):
        self.calls.append("end")


def recipe_of(name, **changes):
    value = {
        "name": name,
        "student": "mlp:8",
        "data": {"source": "digits", "validation": 0.1},
        "batch_size": 256,
        "epochs": 20,
        "optimizer": {"name": "sgd", "lr": 0.4},
        "ema": 0.9,
        "early_stopping": 1,
        "device": "cpu",
        "precision": "fp32",
    }
    return config.parse(Recipe, {**value, **changes})


def untimed(run):
    return [{k: v for k, v in epoch.items() if k not in TIMING} for epoch in run.epochs]


def test_a_run_says_where_it_ended_and_whose_student_it_reports(tmp_path):
    reporter = Steps()
    run = execute(recipe_of("run"), tmp_path / "run", options=RunOptions(reporter=reporter))
    manifest, epochs, best = run.manifest, run.epochs, run.evaluation["best"]
    assert (manifest["status"], len(epochs) < 20) == ("finished", True)
    assert manifest["selection"]["reported"] == "best epoch"
    assert manifest["selection"]["weights"] == "average"
    (stopped,) = manifest["stopped"]
    assert stopped["epoch"] == len(epochs) == best["epoch"] + 1
    assert f"run: stopped after epoch {len(epochs)}: {stopped['why']}" in reporter.lines
    assert reporter.calls == [("begin", 20 * 6, 0), "end"]
    # What was judged is the best epoch's student, whose weights are in both files.
    assert run.accuracy == epochs[best["epoch"] - 1]["test"]["accuracy"] != epochs[-1]["test"]["accuracy"]
    weights = [(run.folder / name).read_bytes() for name in (records.STUDENT, records.BEST)]
    assert weights[0] == weights[1]
    with refused(RecipeError, "name", got=run.folder, suggests="name=..."):
        execute(recipe_of("run"), run.folder)
    # Reports and cards say so.
    subject = read(run.folder)
    table = rows(subject)
    assert notes(table)[0].startswith("Accuracy is the best epoch's on the test set")
    assert f"with the weights of epoch {best['epoch']}, its best" in result(subject, table)
    assert f"Stopped after epoch {len(epochs)}: after epoch" in selection(subject)
    card = model_card(run.folder)
    assert f"the weights of epoch {best['epoch']}, which did best on the validation set" in card
    assert "after the last epoch" not in card


@pytest.mark.slow
def test_runs_of_a_group_end_each_by_itself(tmp_path):
    """As alone, to the bit; and each stage by itself."""
    stages = [{"epochs": 8}, {"epochs": 8, "early_stopping": {"patience": 2, "keep": "last"}}]
    recipes = [recipe_of("one", stages=stages), recipe_of("two", stages=stages, seed=1, early_stopping=9)]
    alone = [execute(recipe, tmp_path / "alone" / recipe.name) for recipe in recipes]
    together = execute_group([(recipe, tmp_path / recipe.name) for recipe in recipes])
    for one, other in zip(alone, together, strict=True):
        assert untimed(one) == untimed(other)
        assert one.manifest["stopped"] == other.manifest["stopped"]
        assert (one.folder / records.STUDENT).read_bytes() == (other.folder / records.STUDENT).read_bytes()
    ended = [[end and end["epoch"] for end in run.manifest["stopped"]] for run in alone]
    assert ended[0][0] is not None
    assert ended[1][0] is None
    assert alone[0].manifest["selection"]["reported"] == "last epoch"


def test_the_test_set_chooses_no_end(tmp_path):
    """Nor does a validation split that has no labels, of a caller's own data."""
    with refused(RecipeError, "early_stopping", suggests="data.validation=0.1"):
        execute(recipe_of("run", data="digits"), tmp_path / "run")
    images, labels = torch.rand(40, 1, 8, 8), torch.arange(40) % 10
    known, unknown = (TensorDataset(images, each) for each in (labels, torch.full_like(labels, -100)))
    how = {"model": "mlp:8", "runs": tmp_path, "early_stopping": 1, "device": "cpu", "epochs": 1}
    with refused(RecipeError, "early_stopping", suggests="data.validation=0.1"):
        tutelage.train(data=tutelage.data.from_datasets(known, known, classes=10, validation=unknown), **how)
    run = tutelage.train(data=tutelage.data.from_datasets(known, known, classes=10, validation=known), **how)
    assert run.manifest["stopped"] == [None]


def test_bars_wait_for_no_step_that_never_comes():
    reporter = TerminalReporter()
    reporter.expect(100)
    for _ in range(2):
        reporter.begin("run", 40, 10)
        for _ in range(5):
            reporter.tick()
        reporter.end()
    reporter.begin("run", 20, 0)
    (job, run) = reporter.progress.tasks
    assert (job.total, job.completed) == (50, 30)
    assert (run.total, run.completed) == (20, 0)


# Killed and resumed


def tracked(folder):
    """What TensorBoard shows of a run, by name: each step with its value, without times."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(folder / "tensorboard")).Reload()
    timed = {"images_per_second", "seconds", "memory_mb"}
    return {
        tag: [(event.step, event.value) for event in shown.Scalars(tag)]
        for tag in shown.Tags()["scalars"]
        if tag not in timed
    }


@pytest.mark.slow
def test_a_run_killed_in_epochs_and_resumed_has_the_same_bits(tmp_path):
    """Of a student with dropout and batch norm, with an average, timm's muon, an early end and TensorBoard."""
    pytest.importorskip("timm", reason="the optional package timm is not installed")
    pytest.importorskip("tensorboard", reason="the optional package tensorboard is not installed")
    keys = {
        "student": f"file:{KILLED_RUN}:student",
        "data": {"source": "digits", "validation": 0.1},
        "epochs": 30,
        "batch_size": 128,
        "optimizer": {"name": "timm:muon", "lr": 0.01, "weight_decay": 0.01},
        "ema": 0.95,
        "early_stopping": {"patience": 3, "min_delta": 0.002},
        "checkpoint_steps": 4,
        "device": "cpu",
        "threads": 1,
    }
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(keys))
    options = ["--trust-code", "--track", "tensorboard"]
    typed(tmp_path, "train", str(recipe), "name=whole", *options)
    for moment in (16, 19):  # steps of this process: in the second epoch, and in a later one
        typed(tmp_path, "train", str(recipe), "name=killed", *options, kill=moment)
    assert "resuming after epoch" in typed(tmp_path, "train", str(recipe), "name=killed", *options)
    whole, killed = (tmp_path / "runs" / name for name in ("whole", "killed"))
    for name in (records.STUDENT, records.BEST, records.EVALUATION):
        assert (whole / name).read_bytes() == (killed / name).read_bytes()
    runs = [tutelage.Run(folder) for folder in (whole, killed)]
    assert untimed(runs[0]) == untimed(runs[1])
    assert tracked(whole) == tracked(killed)
    assert len(tracked(whole)["validation/accuracy"]) == len(runs[0].epochs)
    assert 5 < len(runs[0].epochs) < 30
    assert runs[0].manifest["stopped"] == runs[1].manifest["stopped"] != [None]
    assert runs[1].manifest["resumed"] == 2
