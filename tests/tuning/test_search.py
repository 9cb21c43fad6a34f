"""A search of tiny runs: its record, its resume, its pruning, what it says."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from tests._helpers.studies import Lines

from tutelage import config, records
from tutelage.config.schema import Recipe
from tutelage.errors import RecipeError, StorageError
from tutelage.places import cluster
from tutelage.runs.execute import execute
from tutelage.runs.lock import BusyError, folder_lock
from tutelage.runs.run import RunOptions
from tutelage.training.deadline import Deadline
from tutelage.tuning import report, sampler, search, summary
from tutelage.tuning.request import request

VALUE = {
    "name": "tiny",
    "student": "mlp:8",
    "teacher": {"train": {"model": "mlp:16", "epochs": 2}},
    "data": {"source": "digits", "validation": 0.1},
    "objective": {"wttm": {"gamma": 0.25, "beta": 1}},
    "epochs": 2,
    "batch_size": 512,
    "optimizer": {"lr": 0.03},
    "device": "cpu",
    "threads": 1,
}


WRITE = report.write_report
ALONE = {"teacher": None, "objective": "cross_entropy"}


@pytest.fixture(autouse=True)
def one_thread_and_no_report(monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(report, "write_report", lambda folder: folder / "report.html")
    yield
    torch.set_num_threads(threads)


def recipe(**changes):
    return config.parse(Recipe, {**VALUE, **changes})


def do(folder, reporter=None, when_epoch=None, deadline=None, on=None, *, changes=(), **asked):
    options = RunOptions(reporter=reporter or Lines(), when_epoch=when_epoch, deadline=deadline)
    asked = {"trials": 3, "together": 3, "confirm": 0, **asked}
    return search.tune(request(recipe(**dict(changes)), **asked), folder, options=options, on=on)


def weights(folder):
    return {path.parent.name: path.read_bytes() for path in folder.glob(f"*/{records.STUDENT}")}


def test_a_search_finds_confirms_and_goes_on(tmp_path):
    lines = Lines()
    found = do(tmp_path / "s", lines, confirm=2)
    record = found.record
    assert [trial["origin"] for trial in record["trials"]] == ["recipe", "sampled", "sampled"]
    assert record["trials"][0]["values"]["optimizer.lr"] == 0.03
    for trial in record["trials"]:  # on the validation set, after the last epoch
        assert trial["value"] == [*records.read_epochs(found.folder / trial["folder"])][-1]["validation"]["accuracy"]
    assert "s: the teacher first" in lines.lines
    teacher = (found.folder / "teacher" / records.STUDENT).stat().st_mtime_ns
    best = summary.best_trial(record)
    assert found.best.folder.name == best["folder"]
    assert best["number"] > 0, "this seed was chosen so that something is found"
    assert record["found"]["gain"] == pytest.approx(best["value"] - record["trials"][0]["value"])
    confirmed = record["confirmations"]
    assert [(each["trial"], each["seed"], each["data_seed"]) for each in confirmed] == [
        (trial, seed, seed) for seed in (1, 2) for trial in (best["number"], 0)
    ]
    held_out = record["found"]["held_out"]
    for name in ("validation", "test"):
        gains = [confirmed[k][name] - confirmed[k + 1][name] for k in (0, 2)]
        assert held_out[name]["mean"] == pytest.approx(sum(gains) / 2)
        assert held_out[name]["low"] < held_out[name]["mean"] < held_out[name]["high"]
    noise = record["found"]["gain"] - held_out["validation"]["mean"]
    assert record["found"]["selection_noise"] == pytest.approx(noise)
    # What it says to type is what was trained.
    typed = config.override(VALUE, shlex.split(found.recipe_line))
    trained = config.read(found.best.folder / records.RECIPE)
    assert config.parse(Recipe, typed).objective == config.parse(Recipe, trained).objective
    assert typed["optimizer"]["lr"] == trained["optimizer"]["lr"]
    assert len(found.trials) == 3
    assert "reverse" not in found._repr_html_()

    before = weights(found.folder)
    lines = Lines()
    do(tmp_path / "s", lines, confirm=2)  # nothing is left to do
    assert not [line for line in lines.lines if "test accuracy" in line]
    again = do(tmp_path / "s", trials=4, confirm=0)
    assert len(again.record["trials"]) == 4
    assert {name: content for name, content in weights(again.folder).items() if name in before} == before
    assert (found.folder / "teacher" / records.STUDENT).stat().st_mtime_ns == teacher

    for changes, asked, said in (
        ({"epochs": 3}, {}, "epochs was 2, is 3"),
        ({}, {"search": ["optimizer.lr=0.1..1"]}, "objective.wttm.gamma was 0.05..1, is not searched"),
        ({}, {"prune": False}, "pruning was on, is off"),
        ({"data": {"source": "digits", "validation": 0.2}}, {}, "data.validation was 0.1, is 0.2"),
    ):
        with pytest.raises(RecipeError, match=re.escape(said)):
            do(tmp_path / "s", changes=changes, **asked)
    with folder_lock(tmp_path / "s"), pytest.raises(BusyError):
        do(tmp_path / "s")


def test_a_trial_is_worth_what_the_student_is_that_it_ends_with(tmp_path):
    # At this rate the second of the epochs is the best.
    changes = {**ALONE, "early_stopping": {"patience": 3}, "epochs": 3, "optimizer": {"lr": 1.0}}
    found = do(tmp_path / "s", changes=changes, trials=1)
    (trial,) = found.record["trials"]
    held = [epoch["validation"]["accuracy"] for epoch in records.read_epochs(found.folder / trial["folder"])]
    assert trial["value"] == max(held) > held[-1]


def interrupting(trial, epoch):
    """Stop as Ctrl-C does, after an epoch of a trial."""

    def stop(folder, record):
        if folder.name == trial and record["epoch"] == epoch:
            raise KeyboardInterrupt

    return stop


def compared(folder):
    """What must not depend on interruptions."""
    return search.Search(folder).record["trials"], weights(folder)


@pytest.mark.parametrize(("trial", "epoch"), [("trial-0003", 1), pytest.param("trial-0001", 2, marks=pytest.mark.slow)])
def test_a_stopped_search_ends_as_one_that_was_not(trial, epoch, tmp_path, whole):
    changes = {"checkpoint_steps": 1}
    with pytest.raises(KeyboardInterrupt):
        do(tmp_path / "s", when_epoch=interrupting(trial, epoch), changes=changes, **TWO_ROUNDS)
    lines = Lines()
    do(tmp_path / "s", lines, changes=changes, **TWO_ROUNDS)
    assert any("resuming after epoch" in line for line in lines.lines)
    assert compared(tmp_path / "s") == compared(whole)


TWO_ROUNDS = {"trials": 4, "together": 2, "prune": False}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write_report", lambda folder: folder / "report.html")
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        do(folder := tmp_path_factory.mktemp("whole"), changes={"checkpoint_steps": 1}, **TWO_ROUNDS)
        torch.set_num_threads(threads)
    return folder


def test_each_trial_is_what_it_is_alone(whole, tmp_path):
    own = config.parse(Recipe, config.read(whole / "trial-0003" / records.RECIPE))
    execute(own, tmp_path / "alone")
    assert (tmp_path / "alone" / records.STUDENT).read_bytes() == weights(whole)["trial-0003"]


def test_a_hopeless_trial_is_pruned_and_keeps_its_metrics_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(sampler, "UNPRUNED", 1)
    asked = {"trials": 3, "together": 1, "search": ["optimizer.lr=1e-7..1e-6"], "changes": {"epochs": 3}}
    lines = Lines()
    found = do(tmp_path, lines, **asked)
    own, *others = found.record["trials"]
    assert own["values"] == {}  # the recipe is no point of this space
    assert own["state"] == "finished"
    for trial in others:
        path = tmp_path / trial["folder"]
        assert trial["state"] == "pruned"
        assert trial["epochs"] < 3
        assert "less after epoch" in trial["reason"]
        assert records.read_manifest(path)["status"] == "pruned"
        assert len([*records.read_epochs(path)]) == trial["epochs"]
        assert not (path / records.CHECKPOINTS).exists()
        assert not (path / records.BEST).exists()
    assert found.record["found"] is None
    assert found.recipe_line == ""
    assert "3 trials, 2 pruned" in list(summary.lines(found.record))
    do(tmp_path, **asked)  # a pruned one is not trained again
    assert found.record == search.Search(tmp_path).record


@pytest.mark.slow
def test_a_trial_that_fails_costs_itself_and_the_recipes_own_everything(tmp_path):
    asked = {
        "search": ["optimizer.lr=0.03,1e30"],
        "trials": 5,  # of which two differ
        "changes": ALONE,
    }
    found = do(tmp_path / "s", **asked)
    states = {trial["values"]["optimizer.lr"]: trial["state"] for trial in found.record["trials"]}
    assert states == {0.03: "finished", 1e30: "failed"}
    with pytest.raises(Exception, match="finite"):
        do(tmp_path / "t", **{**asked, "changes": {**asked["changes"], "optimizer": {"lr": 1e30}}})


def test_a_full_disk_stops_the_search(tmp_path, monkeypatch):
    def full(*_):
        return [StorageError("disk", "room", "none", "free some")] * 3

    monkeypatch.setattr(search, "_train_trials", full)
    with pytest.raises(StorageError):
        do(tmp_path, changes=ALONE)


@pytest.mark.slow
def test_a_budget_stops_it_and_the_next_goes_on(tmp_path):
    ticks = iter(range(10**6))
    lines = Lines()
    do(tmp_path, lines, deadline=Deadline(9, clock=lambda: next(ticks)))
    assert any("the budget is used up" in line for line in lines.lines)
    found = do(tmp_path)
    assert [trial["state"] for trial in found.record["trials"]] == ["finished"] * 3


@pytest.mark.slow
def test_other_batch_sizes_go_by_themselves(tmp_path):
    asked = {"search": ["batch_size=512,700"], "trials": 4, "together": 4}
    found = do(tmp_path, changes={"epochs": 1, **ALONE}, **asked)
    sizes = {trial["folder"]: trial["values"]["batch_size"] for trial in found.record["trials"]}
    assert len(set(sizes.values())) == 2
    for folder, size in sizes.items():
        beside = records.read_manifest(tmp_path / folder)["class"]
        assert sorted(beside) == [f"tiny/{name}" for name in sizes if sizes[name] == size and name != folder] or (
            beside == []
        )


@pytest.fixture
def typed(invoke, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(VALUE))
    return lambda *arguments: invoke("tune", "tiny.yaml", *arguments)


def test_the_command_prints_what_was_found(typed, invoke):
    short = (
        "--trials",
        "2",
        "--together",
        "2",
        "--confirm",
        "1",
        "epochs=1",
        "teacher=null",
        "objective=cross_entropy",
    )
    code, out, err = typed(*short, "--search", "optimizer.lr=0.3..1")
    assert code == 0, err
    assert "0 recipe" in out
    assert "type behind the recipe: optimizer.lr=" in out or "no trial was better" in out
    code, out, err = typed(*short, "--search", "optimizer.lr=0.3..2")
    assert code == 2
    assert "optimizer.lr was 0.3..1, is 0.3..2" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("data.validation=0",), "type data.validation=0.1"),
        (("--search", "optimizer.lr"), "--search: expected KEY=LOW..HIGH"),
        (("--search", "objective.wttm.gamma=-1..1"), "gamma"),
        (("--on", "ray", "--budget", "5m"), "--budget"),
        (("--budget", "25"), "--budget"),
        (("--trials", "0"), "--trials"),
        (("--space", "objective", "teacher=null", "objective=cross_entropy"), "teacher"),
    ],
)
def test_mistakes_are_told(arguments, said, typed):
    code, _, err = typed(*arguments)
    assert code == 2
    assert said in err


def test_a_dry_run_writes_nothing(typed, tmp_path):
    code, out, _ = typed("--dry-run", "--trials", "5")
    assert code == 0
    assert "objective.wttm.gamma: 0.05..1" in out
    assert "estimated disk of 5 runs" in out
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_the_report_has_the_trials_and_what_was_searched(tmp_path):
    found = do(tmp_path, trials=2, changes={**ALONE, "epochs": 1})
    page = WRITE(found.folder).read_text()
    assert "What was searched" in page
    assert "optimizer.lr" in page


@pytest.mark.slow
def test_trials_are_dealt_over_a_cluster_and_are_what_they_are_here(ray, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stand_in = ray({"CPU": 1}, {"CPU": 1})
    monkeypatch.setattr(sampler, "UNPRUNED", 1)
    asked = {"trials": 6, "together": 2, "search": ["optimizer.lr=1e-7..1e-3,log"], "changes": {**ALONE, "epochs": 3}}
    here = do(tmp_path / "here", **asked)
    (tmp_path / "runs").mkdir()
    with cluster.connected("auto", tmp_path / "runs", recipe(**asked["changes"]), Lines()) as there:
        assert there.slots == 2
        dealt = do(tmp_path / "runs" / "tiny-tune", on=there, **asked)
    assert dealt.record == here.record
    assert {trial["state"] for trial in dealt.record["trials"]} == {"finished", "pruned"}  # the rule was sent with them
    assert weights(dealt.folder) == weights(here.folder)
    assert len([settings for settings in stand_in.asked if settings.get("max_retries")]) == 1 + 6


COMMAND = (sys.executable, "-m", "tutelage", "tune", "tiny.yaml", "--trials", "4", "--together", "2", "--confirm", "1")


def killed(folder, reached, *, tries=400):
    """Run the command, and end it by SIGKILL as soon as something is reached; whether it was."""
    child = subprocess.Popen(COMMAND, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while child.poll() is None and not reached():
            time.sleep(0.002)
        return child.poll() is None
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()


@pytest.mark.slow
def test_a_search_that_is_killed_at_any_time_ends_as_one_that_was_not(tmp_path):
    value = {**VALUE, "epochs": 6, "checkpoint_steps": 1, "batch_size": 256}
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tiny.yaml").write_text(yaml.safe_dump(value))
    subprocess.run(COMMAND, cwd=tmp_path / "whole", check=True, capture_output=True)
    runs = tmp_path / "killed" / "runs" / "tiny-tune"
    moments = [
        lambda: (runs / "teacher" / records.METRICS).exists(),
        lambda: (runs / records.TUNE).exists(),
        lambda: (runs / f".{records.TUNE}.tmp").exists() or (runs / "trial-0001" / records.STUDENT).exists(),
        lambda: (runs / "trial-0002" / records.METRICS).exists(),
        lambda: (runs / "trial-0003" / records.STUDENT).exists(),
    ]
    assert sum(killed(tmp_path / "killed", moment) for moment in moments) >= 3
    subprocess.run(COMMAND, cwd=tmp_path / "killed", check=True, capture_output=True)
    whole, other = (search.Search(tmp_path / name / "runs" / "tiny-tune") for name in ("whole", "killed"))
    assert other.record == whole.record
    assert weights(other.folder) == weights(whole.folder)
