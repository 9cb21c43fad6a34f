import contextlib
import errno
import getpass
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from PIL import Image
from tests._helpers import KILLED_RUN
from tests._helpers.refusals import refused
from torch import nn

import tutelage
from tutelage import api, config, data, models, objectives, records
from tutelage.config.schema import Recipe
from tutelage.data import DataSettings
from tutelage.errors import InvalidValueError, RecipeError, StorageError
from tutelage.objectives import Apply, Objective, WeightedTerm
from tutelage.report import html
from tutelage.runs.execute import execute
from tutelage.runs.lock import BusyError
from tutelage.runs.reporter import Reporter
from tutelage.runs.run import Run, RunOptions, finished, load
from tutelage.runs.setup import RunInputs, check_compatible, check_last_batch
from tutelage.training.checkpoints import CheckpointError
from tutelage.training.evaluate import NonFiniteError
from tutelage.types import UNLABELLED

HERE = Path(__file__).parent
TIMING = ("seconds", "images_per_second", "memory_mb")


@pytest.fixture(autouse=True)
def one_thread_and_no_report(monkeypatch):
    """Reports are another package's, and take longer than these runs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(html, "write_report", lambda folder: None)
    yield
    torch.set_num_threads(threads)


class Stops(Reporter):
    """A reporter that raises after so many epochs, as a pressed key or a bug would."""

    def __init__(self, error, *, epochs=1, first=lambda: None):
        self.error, self.left, self.first, self.lines = error, epochs, first, []

    def note(self, text):
        self.left -= 1
        if self.left == 0:
            self.first()
            raise self.error

    def say(self, text):
        self.lines.append(text)


def recipe_of(name, **changes):
    value = {"name": name, "student": "mlp:8", "batch_size": 256, "epochs": 2, "device": "cpu"} | changes
    return config.parse(Recipe, value)


def do(folder, *, reporter=None, command="tutelage", trust_code=False, run_inputs=None, **changes):
    recipe = recipe_of(folder.name, **changes)
    return execute(
        recipe,
        folder,
        options=RunOptions(command=command, reporter=reporter or Reporter(), trust_code=trust_code),
        run_inputs=run_inputs,
    )


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(html, "write_report", lambda folder: None)
        return str(do(tmp_path_factory.mktemp("runs") / "teacher", student="mlp:16", epochs=6, seed=1).folder)


WTTM = {"wttm": {"gamma": 0.5, "beta": 1.0}}


@pytest.fixture(scope="module")
def distilled(teacher, tmp_path_factory):
    """A run with a validation set and two stages; some tests look at it, none changes it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(html, "write_report", lambda folder: None)
        return do(
            tmp_path_factory.mktemp("runs") / "distilled",
            teacher=teacher,
            objective=WTTM,
            data={"source": "digits", "validation": 0.2, "labelled": 20},
            optimizer={"name": "sgd", "lr": 0.2},
            stages=[
                {"epochs": 3},
                {"epochs": 2, "objective": "cross_entropy", "optimizer": {"name": "adamw", "lr": 0.3}},
            ],
            seed=4,
            threads=1,
            data_seed=5,
            command=f"tutelage distill {HERE}/recipe.yaml teacher={teacher}",
        )


def weights(run, name=records.STUDENT):
    return (run.folder / name).read_bytes()


def untimed(run):
    return [{k: v for k, v in epoch.items() if k not in TIMING} for epoch in run.epochs]


def digest(folder):
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


# What a run leaves behind


def test_a_run_leaves_its_records(distilled):
    names = {path.name for path in distilled.folder.iterdir()} - {".lock"}
    assert names == {
        records.RECIPE,
        records.MANIFEST,
        records.METRICS,
        records.EVALUATION,
        records.PREDICTIONS,
        records.DISPUTED,
        records.CHECKPOINTS,
        records.STUDENT,
        records.CARD,
        records.BEST,
        records.COSTS,
    }
    assert len(list((distilled.folder / records.CHECKPOINTS).iterdir())) == 2


def test_a_run_ends_with_its_report_and_that_of_its_teacher(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(html, "write_report", lambda folder: seen.append((folder, finished(folder))))
    recipe = recipe_of("run", teacher={"train": {"model": "mlp:16"}}, objective=WTTM, weak_teacher=True)
    with pytest.raises(KeyboardInterrupt):
        api.run(recipe, tmp_path, options=RunOptions(reporter=Stops(KeyboardInterrupt(), epochs=3)))
    assert seen == [(tmp_path / "teacher", True)]
    api.run(recipe, tmp_path, options=RunOptions())
    assert seen == [(tmp_path / "teacher", True), (tmp_path, True)]


def test_the_manifest_tells_where_a_result_comes_from(distilled, teacher):
    manifest = distilled.manifest
    assert manifest["status"] == "finished"
    assert manifest["schema"] == 1
    assert (manifest["name"], manifest["verb"]) == ("distilled", "distill")
    assert (manifest["repeatable"], manifest["resumed"]) == (True, 0)
    assert manifest["seeds"] == {"seed": 4, "data_seed": 5, "split_seed": 0}
    assert manifest["hardware"]["device"] == "cpu"
    assert manifest["hardware"]["threads"] == 1
    assert manifest["hardware"]["cores"] == os.cpu_count()
    assert manifest["hardware"]["memory_gb"] > 0
    assert (
        manifest["software"]["torch"] == torch.__version__.partition("+")[0]
        or manifest["software"]["torch"] == torch.__version__
    )
    assert manifest["software"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert manifest["version"] == tutelage.__version__
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", manifest["started"])
    assert 0 < manifest["duration_s"] < 600
    assert manifest["selection"] == {"set": "validation", "metric": "accuracy", "reported": "last epoch"}
    splits = data.open_data(DataSettings(validation=0.2, labelled=20))
    assert manifest["data"] == {
        "source": "digits",
        "fingerprint": splits.fingerprint,
        "classes": 10,
        "channels": 1,
        "image_size": [8, 8],
        "sizes": splits.sizes(),
        "place": "in memory, 0.1 MiB of 8-bit values",
    }
    assert manifest["data"]["sizes"] == {"train": 1150, "validation": 287, "test": 360, "labelled": 200, "corrupt": 0}
    assert manifest["objective_terms"] == [{"ce": 1.0, "wttm": 1.0}, {"ce": 1.0}]
    assert manifest["objective"][0] == [
        {"wttm": {"gamma": 0.5, "beta": 1.0, "supervised": 1.0, "normalise": "none", "logits": "raw"}}
    ]
    assert manifest["recipe"]["optimizer"]["lr"] == 0.2
    assert manifest["recipe"]["data"]["labelled"] == 20


def test_the_manifest_names_the_teacher_by_its_weights_and_its_accuracy(distilled, teacher):
    entry = distilled.manifest["teacher"]
    assert entry["fingerprint"] == models.fingerprint(models.create(teacher))
    assert entry["accuracy"] == Run(Path(teacher)).accuracy
    assert entry["accuracy"] > 0.8
    assert (entry["name"], entry["set"], entry["mode"], entry["parameters"]) == ("mlp:16", "test", "eval", 1210)
    assert entry["weights"] == "teacher/student.safetensors"
    assert entry["normalisation"] == {"mean": [0.5], "std": [0.5]}
    assert distilled.manifest["student"]["parameters"] == 610
    assert distilled.manifest["student"]["weights"] == "random"


def test_the_manifest_names_the_commit(distilled):
    git = subprocess.run(["git", "-C", HERE, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if git.returncode:
        pytest.skip("not a checkout")
    assert distilled.manifest["commit"].removesuffix("+changes") == git.stdout.strip()


def texts(value):
    if isinstance(value, dict):
        for inner in value.values():
            yield from texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)
    elif isinstance(value, str):
        yield value


def assert_names_no_folder(folder, *folders):
    for text in texts(records.read_json(folder / records.MANIFEST)):
        assert not re.search(r"(?:^|[\s:=,'\"(])(?:/|~)\w", text), text
        assert not re.search(rf"\b{re.escape(getpass.getuser())}\b", text), text
        assert socket.gethostname() not in text, text
        assert not [path for path in folders if str(path) in text], text


def test_the_manifest_names_no_folders_of_users(distilled, tmp_path, teacher):
    assert_names_no_folder(distilled.folder, HERE, Path(teacher).parent)
    assert distilled.manifest["command"] == "tutelage distill recipe.yaml teacher=teacher"
    code = tmp_path / "nets.py"
    code.write_text(
        "from torch import nn\ndef net(classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))\n"
    )
    run = do(tmp_path / "own", student=f"file:{code}:net", trust_code=True, epochs=1)
    assert_names_no_folder(run.folder, tmp_path)
    with pytest.raises(OSError, match="No such"):
        do(
            tmp_path / "fails",
            reporter=Stops(FileNotFoundError(2, "No such file or directory", f"{tmp_path}/a/b c.png")),
        )
    assert Run(tmp_path / "fails").manifest["status"] == "failed"
    assert Run(tmp_path / "fails").manifest["notes"]
    assert_names_no_folder(tmp_path / "fails", tmp_path)


def test_the_metrics_are_one_schema_per_line(distilled):
    epochs = distilled.epochs
    assert [(e["stage"], e["epoch"], e["step"]) for e in epochs] == [
        (0, 1, 5),
        (0, 2, 10),
        (0, 3, 15),
        (1, 1, 5),
        (1, 2, 10),
    ]
    for epoch in epochs:
        assert epoch.keys() == records.Epoch.__annotations__.keys() - {"overflowed_steps", "samples_by_rank"}
        assert epoch["validation"]["samples"] == 287
        assert epoch["test"]["samples"] == 360
    assert {e["learning_rate"] for e in epochs if e["stage"] == 0} == {0.2}
    assert {e["learning_rate"] for e in epochs if e["stage"] == 1} == {0.3}
    assert epochs[0]["train"]["terms"].keys() == {"ce", "wttm"}
    assert epochs[-1]["train"]["terms"].keys() == {"ce"}
    # The second stage reads no teacher in training; on held-out sets the student is compared with it all the same.
    assert epochs[-1]["train"]["agreement"] is None
    assert epochs[-1]["test"]["agreement"] > 0.1


def test_the_evaluation_is_the_saved_students(distilled, teacher):
    evaluation = distilled.evaluation
    splits = data.open_data(DataSettings(validation=0.2, labelled=20))
    inputs = splits.test.fetch(np.arange(360))
    with torch.no_grad():
        student_logits, teacher_logits = (
            network.eval()(inputs) for network in (distilled.student, models.create(teacher))
        )
    labels = splits.test.labels
    assert evaluation["set"] == "test"
    assert evaluation["samples"] == 360
    assert evaluation["class_names"] == [str(digit) for digit in range(10)]
    student, predicted = evaluation["student"], student_logits.argmax(-1)
    assert student["accuracy"] == distilled.accuracy == float((predicted == labels).double().mean())
    assert student["accuracy"] == distilled.epochs[-1]["test"]["accuracy"]
    assert student["loss"] == pytest.approx(float(nn.functional.cross_entropy(student_logits, labels)), rel=1e-5)
    assert student["agreement"] == float((predicted == teacher_logits.argmax(-1)).double().mean())
    assert evaluation["teacher"]["accuracy"] == Run(Path(teacher)).accuracy
    # The last stage matches no teacher.
    assert student["kl_to_target"] is None
    assert student["kl_to_teacher"] > 0


def test_what_is_answered_for_each_sample_is_what_was_evaluated(distilled):
    evaluation, predictions = distilled.evaluation, records.read_predictions(distilled.folder)
    assert predictions.set == "test"
    assert predictions.index.tolist() == list(range(360))
    for name in ("student", "teacher"):
        answers, sure = getattr(predictions, name), getattr(predictions, f"{name}_probability")
        assert (answers == predictions.label).mean() == evaluation[name]["accuracy"]
        of_bins = sum(each["confidence"] * each["count"] for each in evaluation[name]["reliability"])
        assert sure.sum(dtype=np.float64) == pytest.approx(of_bins)
        assert evaluation[name]["calibration"]["fitted_on"] == "validation"
        assert evaluation[name]["calibration"]["loss"] < evaluation[name]["loss"] + 0.01
    assert (predictions.student == predictions.teacher).mean() == evaluation["student"]["agreement"]
    disputed = json.loads((distilled.folder / records.DISPUTED).read_text())
    assert disputed["count"] == (predictions.student != predictions.teacher).sum()
    assert len(disputed["samples"]) == min(12, disputed["count"])


def test_a_run_that_loses_what_its_result_stands_without_is_whole(tmp_path):
    run = do(tmp_path / "run", epochs=1)
    for name in (records.PREDICTIONS, records.DISPUTED):
        (run.folder / name).unlink()
    assert finished(run.folder)
    with refused(RecipeError, "name", got="which is finished"):
        do(tmp_path / "run", epochs=1)


def test_best_and_last_are_both_kept(distilled):
    """With this seed the two differ, so that one cannot stand in for the other."""
    best = distilled.evaluation["best"]
    epochs = distilled.epochs
    scores = [epoch["validation"]["accuracy"] for epoch in epochs]
    first = epochs[scores.index(max(scores))]
    assert best == {"set": "validation", "accuracy": max(scores), "epoch": first["epoch"], "stage": first["stage"]}
    splits = data.open_data(DataSettings(validation=0.2, labelled=20))
    inputs = splits.validation.fetch(np.arange(287))
    for network, expected in (
        (load(distilled.folder, best=True), max(scores)),
        (load(distilled.folder), scores[-1]),
    ):
        with torch.no_grad():
            accuracy = float((network(inputs).argmax(-1) == splits.validation.labels).double().mean())
        assert accuracy == expected
    assert weights(distilled, records.BEST) != weights(distilled)


def test_selection_is_on_the_test_set_where_there_is_no_other_and_says_so(tmp_path):
    run = do(tmp_path / "run")
    assert run.manifest["selection"]["set"] == "test"
    assert run.evaluation["best"]["set"] == "test"
    assert run.epochs[0]["validation"] is None
    assert run.evaluation["teacher"] is None
    assert run.manifest["teacher"] is None


def test_a_teacher_is_in_no_file_of_the_students(distilled, teacher):
    before = models.fingerprint(models.create(teacher))
    network = safetensors.torch.load_file(distilled.folder / records.STUDENT)
    assert (
        network.keys() == models.create("mlp:8", classes=10, channels=1, image_size=(8, 8)).network.state_dict().keys()
    )
    newest = sorted((distilled.folder / records.CHECKPOINTS).iterdir())[-1]
    saved = safetensors.torch.load_file(newest / "tensors.safetensors")
    assert sum(t.numel() for n, t in saved.items() if n.startswith("lesson.")) == 610
    assert before == distilled.manifest["teacher"]["fingerprint"]


# Seeds


def test_the_same_recipe_gives_the_same_bits_and_each_seed_others(tmp_path, teacher):
    code = {
        "student": f"file:{KILLED_RUN}:student",
        "trust_code": True,
        "teacher": teacher,
        "objective": WTTM,
    }
    students = {
        name: weights(do(tmp_path / name, **code, **seeds))
        for name, seeds in {"a": {}, "b": {}, "c": {"seed": 1}, "d": {"data_seed": 1}}.items()
    }
    assert students["a"] == students["b"]
    assert len(set(students.values())) == 3


def test_a_run_is_repeated_from_its_folder(distilled, tmp_path):
    recipe = config.parse(Recipe, config.read(distilled.folder / records.RECIPE))
    again = execute(recipe, tmp_path / "again")
    assert weights(again) == weights(distilled)
    assert untimed(again) == untimed(distilled)
    assert again.evaluation == distilled.evaluation


# Stopping and resuming


STOPPED = {"epochs": 3, "checkpoint_steps": 2, "student": f"file:{KILLED_RUN}:student", "trust_code": True}


@pytest.fixture(scope="module")
def never_stopped(teacher, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(html, "write_report", lambda folder: None)
        torch.set_num_threads(1)
        return do(tmp_path_factory.mktemp("runs") / "stopped", teacher=teacher, objective=WTTM, **STOPPED)


@pytest.mark.parametrize(
    ("error", "status", "notes"),
    [(KeyboardInterrupt(), "interrupted", []), (ZeroDivisionError("a bug"), "failed", ["a bug"])],
)
def test_a_stopped_run_says_so_and_is_resumed(tmp_path, teacher, never_stopped, error, status, notes):
    how = {"teacher": teacher, "objective": WTTM, **STOPPED}
    with pytest.raises(type(error)):
        do(tmp_path / "stopped", reporter=Stops(error, epochs=2), **how)
    stopped = Run(tmp_path / "stopped")
    assert (stopped.manifest["status"], stopped.manifest["notes"]) == (status, notes)
    assert [e["epoch"] for e in stopped.epochs] == [1, 2]
    assert not (stopped.folder / records.STUDENT).exists()
    # As if a day had gone into it before it was stopped.
    records.write_json(stopped.folder / records.MANIFEST, {**stopped.manifest, "duration_s": 86400.0})
    shows = Stops(None, epochs=-1)
    run = do(tmp_path / "stopped", reporter=shows, **how)
    assert "resuming after epoch 2, step 12" in shows.lines
    assert weights(run) == weights(never_stopped)
    assert weights(run, records.BEST) == weights(never_stopped, records.BEST)
    assert untimed(run) == untimed(never_stopped)
    manifest = run.manifest
    assert (manifest["status"], manifest["resumed"], manifest["notes"]) == ("finished", 1, [])
    assert manifest["started"] == stopped.manifest["started"]
    assert 86400 < manifest["duration_s"] < 87000
    with refused(RecipeError, "name"):
        do(tmp_path / "stopped", **how)


@pytest.mark.parametrize("torn", ["tensors.safetensors", "state.json", "checksums"])
def test_a_damaged_newest_checkpoint_costs_steps_but_no_bits(tmp_path, teacher, never_stopped, torn):
    how = {"teacher": teacher, "objective": WTTM, **STOPPED}
    with pytest.raises(KeyboardInterrupt):
        do(tmp_path / "stopped", reporter=Stops(KeyboardInterrupt(), epochs=2), **how)
    newest = sorted((tmp_path / "stopped" / records.CHECKPOINTS).iterdir())[-1] / torn
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    shows = Stops(None, epochs=-1)
    with pytest.warns(
        UserWarning, match=r"^checkpoint 00-000000012: expected its checksums to match.*the one before it"
    ):
        run = do(tmp_path / "stopped", reporter=shows, **how)
    assert "resuming after epoch 1, step 10" in shows.lines
    assert weights(run) == weights(never_stopped)
    assert untimed(run) == untimed(never_stopped)


def test_without_a_good_checkpoint_a_run_is_not_quietly_restarted(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        do(tmp_path / "run", reporter=Stops(KeyboardInterrupt(), epochs=2), epochs=3)
    for checkpoint in (tmp_path / "run" / records.CHECKPOINTS).iterdir():
        (checkpoint / "checksums").unlink()
    for _ in range(2):
        with (
            pytest.warns(UserWarning, match="checksums"),
            refused(CheckpointError, "checkpoints"),
        ):
            do(tmp_path / "run", epochs=3)
    assert len(Run(tmp_path / "run").epochs) == 2


def test_a_run_that_was_stopped_before_its_first_checkpoint_restarts(tmp_path):
    class Early(Stops):
        def tick(self):
            self.note("")

    with pytest.raises(KeyboardInterrupt):
        do(tmp_path / "run", reporter=Early(KeyboardInterrupt(), epochs=3))
    assert weights(do(tmp_path / "run")) == weights(do(tmp_path / "other"))


def test_another_number_of_threads_is_warned_of(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        do(tmp_path / "run", reporter=Stops(KeyboardInterrupt()))
    torch.set_num_threads(2)
    with pytest.warns(
        UserWarning, match=r"^resume: expected the same set-up for the same bits, got threads was 1, is 2$"
    ):
        do(tmp_path / "run")


def test_the_same_set_up_is_not_warned_of(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        do(tmp_path / "run", reporter=Stops(KeyboardInterrupt()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        do(tmp_path / "run")


def test_half_precision_is_finite_and_resumes_exactly(tmp_path, teacher):
    how = {"teacher": teacher, "objective": WTTM, **STOPPED, "precision": "bf16"}
    whole = do(tmp_path / "whole", **how)
    with pytest.raises(KeyboardInterrupt):
        do(tmp_path / "stopped", reporter=Stops(KeyboardInterrupt(), epochs=1), **how)
    stopped = do(tmp_path / "stopped", **how)
    assert weights(stopped) == weights(whole)
    assert untimed(stopped) == untimed(whole)
    assert all(torch.isfinite(t).all() for t in safetensors.torch.load(weights(whole)).values())
    assert whole.epochs[-1]["train"]["loss"] < whole.epochs[0]["train"]["loss"]


def test_a_full_disk_stops_a_run_that_resumes_when_there_is_room(tmp_path, small_disk, teacher, never_stopped):
    how = {"teacher": teacher, "objective": WTTM, **STOPPED}
    ballast = small_disk / "ballast"

    def fill():
        with ballast.open("wb") as file, contextlib.suppress(OSError):
            while True:
                os.write(file.fileno(), bytes(4096))

    class Fills(Reporter):
        def note(self, text):
            fill()

    with refused(CheckpointError, got=os.strerror(errno.ENOSPC)) as caught:
        do(small_disk / "stopped", reporter=Fills(), **how)
    assert re.fullmatch(r"checkpoint 00-\d{9}", caught.value.what)
    assert re.search(r"\b00-\d{9}\b", caught.value.got)
    ballast.unlink()
    run = do(small_disk / "stopped", **how)
    assert weights(run) == weights(never_stopped)
    assert untimed(run) == untimed(never_stopped)


# What is refused


def test_a_finished_run_is_not_done_again(tmp_path):
    do(tmp_path / "run", epochs=1)
    before = digest(tmp_path)
    with refused(RecipeError, "name", got=tmp_path / "run", suggests="name=..."):
        do(tmp_path / "run", epochs=1)
    assert digest(tmp_path) == before


def test_an_unfinished_run_is_resumed_by_its_own_recipe_only(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        do(tmp_path / "run", reporter=Stops(KeyboardInterrupt()))
    before = digest(tmp_path)
    with refused(RecipeError, "name", got=["epochs", 2, 5], suggests="name=..."):
        do(tmp_path / "run", epochs=5)
    assert digest(tmp_path) == before


HOLD = "import fcntl,sys;f=open(sys.argv[1],'w');fcntl.flock(f,fcntl.LOCK_EX);print('held',flush=True);sys.stdin.read()"


def test_a_second_process_is_kept_out_until_the_first_is_gone(tmp_path):
    (tmp_path / "run").mkdir()
    with subprocess.Popen(
        [sys.executable, "-S", "-c", HOLD, tmp_path / "run" / ".lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline() == b"held\n"
        with refused(BusyError, "name", got=tmp_path / "run", suggests="name=..."):
            do(tmp_path / "run", epochs=1)
        assert not (tmp_path / "run" / records.MANIFEST).exists()
        holder.send_signal(signal.SIGKILL)
    assert do(tmp_path / "run", epochs=1).manifest["status"] == "finished"


def test_the_lock_is_held_for_the_whole_run(tmp_path):
    seen = []

    class Intrudes(Reporter):
        def note(self, text):
            with refused(BusyError, "name", got=tmp_path / "run") as caught:
                do(tmp_path / "run", epochs=1)
            seen.append(caught)

    do(tmp_path / "run", epochs=1, reporter=Intrudes())
    assert len(seen) == 1


def test_an_objective_that_matches_a_teacher_needs_one(tmp_path):
    with refused(RecipeError, "teacher", suggests="teacher=..."):
        do(tmp_path / "run", objective=WTTM)
    assert not (tmp_path / "run" / records.MANIFEST).exists()


def own_splits(count=96, *, labels=None, classes=3, test_labels=None, **others):
    """A user's own data: three grey values that even the smallest network can tell apart."""
    truth = torch.arange(count) % classes
    images = truth.float().reshape(-1, 1, 1, 1).expand(-1, 1, 8, 8) / classes + 0.05 * torch.rand(
        count, 1, 8, 8, generator=torch.Generator().manual_seed(0)
    )
    train, test = (Pairs(images, truth if chosen is None else chosen) for chosen in (labels, test_labels))
    return data.from_datasets(train, test, classes=classes, **others)


class Pairs:
    """A map-style data set."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], int(self.labels[index])


def net(classes=3, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, classes))


def test_supervision_without_labels_is_refused(tmp_path):
    splits = own_splits(labels=torch.full((96,), UNLABELLED))
    how = {"data": splits, "student": net(), "runs": tmp_path, "epochs": 1, "device": "cpu", "weak_teacher": True}
    with refused(RecipeError, "data", got=96):
        tutelage.distill(teacher=net(), objective="kd", name="kd", **how)
    run = tutelage.distill(teacher=net(), objective=objectives.kd(supervised=0), name="kd-alone", **how)
    assert run.manifest["data"]["sizes"]["labelled"] == 0


def own_inputs(splits, teacher):
    student = models.adopt(net(), classes=3)
    return RunInputs(splits=splits, student=student, teacher=teacher, objectives=(objectives.kd(),), repeatable=False)


def test_a_teacher_of_other_classes_is_refused(tmp_path, teacher):
    splits = own_splits()
    how = {"data": splits, "student": net(), "runs": tmp_path, "epochs": 1, "device": "cpu", "objective": "kd"}
    run_inputs = own_inputs(splits, models.create(teacher))
    with refused(RecipeError, "teacher mlp:16", got=10):
        do(tmp_path / "run", teacher=teacher, objective="kd", run_inputs=run_inputs)
    with refused(RecipeError, "teacher object:Sequential", got=5):
        tutelage.distill(teacher=net(5), name="own", **how)


def test_a_teacher_with_a_fresh_head_is_refused(tmp_path, teacher):
    splits = own_splits()
    fresh = models.create(teacher, classes=3)
    run_inputs = own_inputs(splits, fresh)
    with refused(RecipeError, "teacher mlp:16"):
        do(tmp_path / "run", teacher=teacher, objective="kd", run_inputs=run_inputs)


def test_a_teacher_no_better_than_chance_stops_the_run_unless_it_is_wanted(tmp_path):
    splits = own_splits()
    constant = net()
    with torch.no_grad():
        constant[3].weight.zero_()
    how = {"data": splits, "student": net(), "runs": tmp_path, "epochs": 1, "device": "cpu", "objective": "kd"}
    with refused(RecipeError, "teacher", got="33.33%", suggests="weak_teacher=true"):
        tutelage.distill(teacher=constant, name="run", **how)
    run = tutelage.distill(teacher=constant, name="run", weak_teacher=True, **how)
    assert run.manifest["teacher"]["accuracy"] == pytest.approx(1 / 3)


def test_a_teacher_whose_classes_are_in_another_order_is_detected(tmp_path, teacher):
    network = models.create(teacher)
    with torch.no_grad():
        network.network.head.weight.copy_(network.network.head.weight.roll(1, 0))
        network.network.head.bias.copy_(network.network.head.bias.roll(1, 0))
    with refused(RecipeError, "teacher", suggests=["classes", "weak_teacher=true"]):
        tutelage.distill(student="mlp:8", teacher=network, data="digits", objective="kd", runs=tmp_path, device="cpu")


def test_without_labels_to_test_on_a_teacher_is_believed(tmp_path):
    splits = own_splits(test_labels=torch.full((96,), UNLABELLED))
    run = tutelage.distill(
        student=net(), teacher=net(), data=splits, objective="kd", runs=tmp_path, epochs=2, device="cpu", name="run"
    )
    assert run.manifest["teacher"]["accuracy"] is None
    assert run.manifest["status"] == "finished"
    assert not (run.folder / records.EVALUATION).exists()
    assert not (run.folder / records.BEST).exists()
    assert run.epochs[-1]["test"]["accuracy"] is None
    assert run.epochs[-1]["test"]["agreement"] > 0
    answers = records.read_predictions(run.folder)
    assert answers.label.tolist() == [UNLABELLED] * 96
    disputed = json.loads((run.folder / records.DISPUTED).read_text())
    assert disputed["count"] == (answers.student != answers.teacher).sum()


def test_a_teacher_that_is_not_finite_on_the_test_set_stops_the_run_before_it_begins(tmp_path, teacher):
    network = models.create(teacher)
    network.network.head.register_forward_hook(lambda module, inputs, logits: logits.log() * torch.nan)
    with refused(NonFiniteError, "teacher", got="360 of 360"):
        tutelage.distill(
            student="mlp:8", teacher=network, data="digits", objective="kd", runs=tmp_path, device="cpu", name="run"
        )
    assert not (tmp_path / "run" / records.MANIFEST).exists()


def test_a_step_that_is_not_finite_fails_a_run_with_a_note(tmp_path):
    with pytest.raises(NonFiniteError):
        do(tmp_path / "run", optimizer={"name": "sgd", "lr": 1e30}, epochs=5)
    manifest = Run(tmp_path / "run").manifest
    assert manifest["status"] == "failed"
    assert "got NaN or infinity" in manifest["notes"][0]


# The caller's own objects


def test_a_callers_own_modules_and_data_sets(tmp_path):
    splits = own_splits()
    train, test = splits.train.dataset, splits.test.dataset
    learned, student, loaded = net(seed=1), net(seed=2), net(seed=3)
    tutelage.train(
        model=learned, data=(train, test), name="teacher", runs=tmp_path, epochs=8, batch_size=16, device="cpu"
    )
    before = models.fingerprint(learned)
    start = models.fingerprint(student)
    run = tutelage.distill(
        student=student,
        teacher=learned,
        data=(train, test),
        objective=objectives.wttm(gamma=0.5, beta=1.0),
        name="student",
        runs=tmp_path,
        epochs=8,
        batch_size=16,
        device="cpu",
    )
    assert run.accuracy > 0.9
    # The student is trained in place; the teacher is as it was.
    assert models.fingerprint(student) != start
    assert models.fingerprint(learned) == before == run.manifest["teacher"]["fingerprint"]
    assert all(p.requires_grad for p in learned.parameters())
    manifest = run.manifest
    assert manifest["repeatable"] is False
    assert manifest["recipe"] is None
    assert manifest["objective"] == [{"ce": 1.0, "wttm": 1.0}]
    assert manifest["data"]["fingerprint"] is None
    assert manifest["data"]["source"] == "own"
    assert manifest["student"]["name"] == "object:Sequential"
    assert manifest["student"]["normalisation"] == "none"
    assert "source: own" in (run.folder / records.RECIPE).read_text()
    assert (run.folder / records.STUDENT).exists()
    with refused(InvalidValueError, "model", got="'object:Sequential'", suggests="tutelage.load"):
        load(run.folder)
    models.load(loaded, models.read(run.folder / records.STUDENT))
    assert models.fingerprint(loaded) == models.fingerprint(student)


def test_stages_keep_the_callers_own_objectives_apart(tmp_path):
    def term(value):
        return Objective.of(WeightedTerm("m", 1.0, Apply(lambda student_logits: 0 * student_logits.sum(-1) + value)))

    splits = own_splits()
    stages = [{"epochs": 1}, {"epochs": 1, "objective": term(1000.0)}, {"epochs": 1, "objective": "cross_entropy"}]
    run = tutelage.distill(
        student=net(seed=2),
        teacher=net(seed=1),
        data=(splits.train.dataset, splits.test.dataset),
        objective=term(1.0),
        name="student",
        runs=tmp_path,
        batch_size=16,
        device="cpu",
        weak_teacher=True,
        stages=stages,
    )
    first, second, third = (epoch["train"]["terms"] for epoch in run.epochs)
    assert first == {"m": pytest.approx(1.0)}
    assert second == {"m": pytest.approx(1000.0)}
    assert list(third) == ["ce"]


def test_a_callers_own_run_is_resumed(tmp_path):
    def go(display=None, runs=tmp_path / "stopped"):
        return tutelage.distill(
            student=net(seed=2),
            teacher=net(seed=1),
            data=own_splits(),
            objective=WTTM,
            name="run",
            runs=runs,
            epochs=3,
            device="cpu",
            weak_teacher=True,
            display=display,
        )

    with pytest.raises(KeyboardInterrupt):
        go(Stops(KeyboardInterrupt(), epochs=2))
    assert weights(go()) == weights(go(runs=tmp_path / "whole"))


def noisy(image):
    values = np.asarray(image).astype(int) + np.random.randint(50) + torch.randint(50, (1,)).item()
    return Image.fromarray((values % 256).astype(np.uint8))


def test_a_callers_own_transform_is_recorded_as_such_and_resumed_to_the_bit(tmp_path):
    """Beside a student with dropout: what the views draw is none of the training loop's."""

    def go(display=None, runs=tmp_path / "whole", **how):
        return tutelage.train(
            model=f"file:{KILLED_RUN}:student",
            data={"source": "digits", "transform": how.pop("transform", noisy)},
            name="run",
            runs=runs,
            trust_code=True,
            display=display,
            **{"epochs": 2, "batch_size": 256, "checkpoint_steps": 2, "device": "cpu", **how},
        )

    whole = go()
    assert not whole.student.training  # loaded by the trust that was given
    with pytest.raises(KeyboardInterrupt):
        go(Stops(KeyboardInterrupt()), runs=tmp_path / "stopped")
    assert weights(go(runs=tmp_path / "stopped")) == weights(whole)
    unchanged, plain = (go(runs=tmp_path / str(f), transform=f, epochs=1) for f in (Image.Image.copy, None))
    assert weights(unchanged) == weights(plain)
    manifest = whole.manifest
    assert (manifest["repeatable"], manifest["recipe"], manifest["data"]["fingerprint"]) == (False, None, None)
    recorded = config.read(whole.folder / records.RECIPE)
    assert recorded["data"]["transform"] == "object:noisy"
    with pytest.raises(InvalidValueError) as caught:
        tutelage.train(model="mlp:8", data=recorded["data"], name="again", runs=tmp_path)
    assert caught.value.what == "data.transform"
    assert api.evaluate(whole, trust_code=True)["accuracy"] == whole.accuracy
    with pytest.raises(RecipeError, match=r"^data: expected a source whose content is known"):
        tutelage.distill(
            student="mlp:8",
            teacher=whole.folder,
            data={"transform": noisy},
            objective=WTTM,
            name="cached",
            runs=tmp_path,
            outputs=str(tmp_path / "outputs"),
            trust_code=True,
        )


def test_a_run_is_not_resumed_on_another_version_of_its_transforms_library(tmp_path):
    how = {"data": {"source": "digits", "transform": "torchvision:RandomInvert"}}
    with pytest.raises(KeyboardInterrupt):
        do(tmp_path / "run", reporter=Stops(KeyboardInterrupt()), **how)
    manifest = Run(tmp_path / "run").manifest
    now = manifest["software"]["torchvision"]
    manifest["software"]["torchvision"] = "0.1.0"
    records.write_json(tmp_path / "run" / records.MANIFEST, manifest)
    with pytest.raises(InvalidValueError) as caught:
        do(tmp_path / "run", **how)
    assert caught.value.what == "data.transform"
    assert "torchvision 0.1.0" in caught.value.expected
    assert caught.value.got == f"torchvision {now.partition('+')[0]}"
    # Another build of the same version is the same library.
    manifest["software"]["torchvision"] = f"{now.partition('+')[0]}+other"
    records.write_json(tmp_path / "run" / records.MANIFEST, manifest)
    assert do(tmp_path / "run", **how).manifest["status"] == "finished"


@pytest.mark.parametrize("names", [("a", "b", "c"), None])
def test_classes_of_a_callers_own_data(tmp_path, names):
    """They are the data set's, as torchvision's have them; else as many as a module of the caller's gives logits."""
    splits = own_splits()
    train, test = splits.train.dataset, splits.test.dataset
    how = {"data": (train, test), "runs": tmp_path, "epochs": 1, "device": "cpu"}
    if names:
        train.classes = list(names)
        run = tutelage.train(model="mlp:8", name="named", **how)
        assert run.evaluation["class_names"] == list(names)
    else:
        assert tutelage.train(model=net(3), name="counted", **how).evaluation["class_names"] == ["0", "1", "2"]
        with refused(RecipeError, "data"):
            tutelage.train(model="mlp:8", name="unknown", **how)


@pytest.mark.parametrize("source", [3, ("only one",), object()])
def test_data_of_another_kind_are_refused(tmp_path, source):
    with refused(RecipeError, "data"):
        tutelage.train(model=net(), data=source, runs=tmp_path)


def test_a_run_by_names_alone_is_repeatable(tmp_path):
    run = tutelage.train(model="mlp:8", data="digits", runs=tmp_path, epochs=1, device="cpu")
    assert run.folder == tmp_path / "mlp-8-cross_entropy"
    assert run.manifest["repeatable"] is True
    assert run.manifest["verb"] == "train"
    assert json.loads(json.dumps(run.manifest["recipe"]))["student"] == {"name": "mlp:8", "weights": None}


def test_a_wrong_setting_is_refused_before_anything_is_made(tmp_path):
    with refused(RecipeError, "train: epochz", got="'epochz'", suggests="epochs"):
        tutelage.train(model="mlp:8", data="digits", runs=tmp_path / "runs", epochz=1)
    assert not (tmp_path / "runs").exists()


def test_a_teacher_that_the_run_trains_first(tmp_path):
    how = {"teacher": {"train": {"model": "mlp:16", "epochs": 4}}, "objective": WTTM, "epochs": 1, "batch_size": 64}
    run = do(tmp_path / "run", **how)
    trained = Run(run.folder / "teacher")
    assert trained.manifest["name"] == "run/teacher"
    assert trained.manifest["status"] == "finished"
    assert len(trained.epochs) == 4
    assert run.manifest["teacher"]["accuracy"] == trained.accuracy
    assert run.manifest["teacher"]["fingerprint"] == models.fingerprint(trained.student)


def test_generators_of_python_and_numpy_are_seeded_too(tmp_path):
    """Some published networks drop layers by them."""
    code = tmp_path / "nets.py"
    code.write_text(
        "import random\nimport numpy as np\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, classes):\n"
        "        super().__init__()\n"
        "        self.head = nn.Linear(64, classes)\n"
        "    def forward(self, x):\n"
        "        return self.head(x.flatten(1) * (random.random() + np.random.rand()))\n"
        "def net(classes):\n    return Net(classes)\n"
    )
    runs = [do(tmp_path / name, student=f"file:{code}:net", trust_code=True, epochs=1) for name in ("a", "b")]
    assert weights(runs[0]) == weights(runs[1])


def test_a_name_is_made_of_a_path_too(tmp_path):
    assert tutelage.train(model="mlp:8", data="digits", runs=tmp_path, epochs=1, device="cpu", name="a").folder.is_dir()
    again = tutelage.train(model=str(tmp_path / "a"), data="digits", runs=tmp_path, epochs=1, device="cpu")
    assert again.folder == tmp_path / "a-cross_entropy"


def test_a_run_is_not_resumed_on_other_data_or_with_another_teacher(tmp_path):
    """Between two parts of a run its data may change on the disk; the record would speak of the first ones only."""
    run = tutelage.train(model="mlp:8", data="digits", runs=tmp_path, epochs=1, device="cpu", name="a")
    manifest = run.manifest
    manifest["status"] = "failed"
    fingerprint, manifest["data"]["fingerprint"] = manifest["data"]["fingerprint"], "0" * 16
    records.write_json(run.folder / records.MANIFEST, manifest)
    with refused(RecipeError, "data", got=fingerprint):
        tutelage.train(model="mlp:8", data="digits", runs=tmp_path, epochs=1, device="cpu", name="a")


def test_how_a_run_is_executed_may_change_on_resume_but_not_what_it_computes(tmp_path):
    run = tutelage.train(model="mlp:8", data="digits", runs=tmp_path, epochs=2, device="cpu", name="a")
    records.write_json(run.folder / records.MANIFEST, {**run.manifest, "status": "failed"})
    with refused(RecipeError, "name", got=["epochs", 2, 3]):
        tutelage.train(model="mlp:8", data="digits", runs=tmp_path, epochs=3, device="cpu", name="a")
    free = {"nonfinite": "skip", "log_steps": 7, "checkpoint_seconds": 9.0, "weak_teacher": True}
    again = tutelage.train(model="mlp:8", data="digits", runs=tmp_path, epochs=2, device="cpu", name="a", **free)
    assert again.manifest["status"] == "finished"
    assert again.manifest["recipe"]["nonfinite"] == "skip"


@pytest.mark.parametrize("classes", [9, 12])
def test_a_student_with_other_classes_is_refused_before_the_first_step(tmp_path, classes):
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
    with refused(RecipeError, "student object:Sequential", got=classes):
        tutelage.train(model=student, data={"source": "digits"}, runs=tmp_path, epochs=1, device="cpu", name="a")


@pytest.mark.parametrize("name", [records.METRICS, records.PREDICTIONS])
def test_a_disk_that_is_full_when_records_are_written_is_one_line(tmp_path, monkeypatch, name):
    plain = Path.open

    def full(path, mode="r", *arguments, **keywords):
        if name in path.name and mode in ("ab", "wb"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return plain(path, mode, *arguments, **keywords)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(StorageError) as caught:
        tutelage.train(model="mlp:8", data="digits", runs=tmp_path, epochs=1, device="cpu", name="a")
    error = caught.value
    assert name in error.what
    assert re.fullmatch(r"No space left on device, \d+\.\d MB free", error.got)
    assert error.instead == "free some space and run the same command again to resume"
    assert len(str(error).splitlines()) == 1
    assert Run(tmp_path / "a").manifest["status"] == "failed"
    monkeypatch.undo()
    run = tutelage.train(model="mlp:8", data="digits", runs=tmp_path, epochs=1, device="cpu", name="a")
    answers = records.read_predictions(run.folder)
    assert (answers.student == answers.label).mean() == run.accuracy


def test_the_mean_of_a_supervised_term_is_over_labelled_samples(tmp_path):
    """One epoch without learning (a tiny rate): the mean is the cross-entropy of the labelled samples."""
    settings = {"source": "digits", "labelled": 3}
    run = tutelage.train(
        model="mlp:8",
        data=settings,
        runs=tmp_path,
        epochs=1,
        device="cpu",
        name="a",
        optimizer={"name": "sgd", "lr": 1e-12},
    )
    splits = data.open_data(DataSettings(**settings))
    known = splits.train.labels != UNLABELLED
    inputs = splits.train.fetch(np.flatnonzero(known.numpy()))
    with torch.no_grad():
        expected = nn.functional.cross_entropy(run.student(inputs), splits.train.labels[known])
    assert run.epochs[0]["train"]["terms"]["ce"] == pytest.approx(float(expected), rel=1e-5)


def test_a_teacher_of_the_same_classes_in_another_order_is_refused():
    splits = data.open_data(DataSettings())
    student = models.create("mlp:8", classes=10, channels=1, image_size=(8, 8))

    def taught_by(*names):
        teacher = models.create("mlp:8", classes=10, channels=1, image_size=(8, 8))
        teacher.card = replace(teacher.card, class_names=names or None)
        check_compatible(RunInputs(splits=splits, student=student, teacher=teacher, objectives=(objectives.kd(),)))

    digits = [str(i) for i in range(10)]
    with refused(RecipeError, "teacher mlp:8", got=["'4'", "'3'"]):
        taught_by(*digits[:3], "4", "3", *digits[5:])
    taught_by(*digits)
    taught_by()
    # Words for the same classes: another way to write them, which nothing here can translate.
    taught_by("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def test_a_run_and_a_comparison_do_not_share_a_folder(tmp_path):
    from tutelage.config.schema import Comparison
    from tutelage.studies.compare import compare

    comparison = config.parse(
        Comparison,
        {"name": "c", "student": "mlp:8", "objectives": {"plain": "cross_entropy"}, "epochs": 1, "device": "cpu"},
    )
    compare(comparison, tmp_path / "c")
    before = (tmp_path / "c/recipe.yaml").read_bytes()
    with refused(RecipeError, "name"):
        tutelage.train(model="mlp:8", data="digits", runs=tmp_path, epochs=1, device="cpu", name="c")
    assert (tmp_path / "c/recipe.yaml").read_bytes() == before
    tutelage.train(model="mlp:8", data="digits", runs=tmp_path, epochs=1, device="cpu", name="r")
    with refused(RecipeError, "name"):
        compare(comparison, tmp_path / "r")


def test_a_later_stage_continues_the_order_of_samples(tmp_path, monkeypatch):
    seen = []
    whole = data.BatchLoader.at

    def watched(self, epoch, requests):
        if self.train:
            seen.append(epoch)
        return whole(self, epoch, requests)

    monkeypatch.setattr(data.BatchLoader, "at", watched)
    stages = [{"epochs": 2}, {"epochs": 1}]
    tutelage.train(model="mlp:8", data="digits", runs=tmp_path, device="cpu", name="s", stages=stages)
    assert seen == [0, 1, 2]


def test_runs_and_paths_are_teachers_and_the_process_is_left_as_it_was(tmp_path):
    threads = torch.get_num_threads()
    torch.use_deterministic_algorithms(True)
    try:
        shared = {"data": "digits", "runs": tmp_path, "epochs": 1, "device": "cpu", "weak_teacher": True}
        first = tutelage.train(model="mlp:8", name="t", **shared, threads=2)
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.get_num_threads() == threads
        for name, teacher in (("a", first), ("b", first.folder)):
            run = tutelage.distill(student="mlp:4", teacher=teacher, objective="kd", name=name, **shared)
            assert run.manifest["teacher"]["name"] == "mlp:8"
            assert run.manifest["repeatable"]
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_run_of_a_version_that_knew_fewer_keys_is_resumed(tmp_path):
    """A key that came later has its default in the recipe of a run from before it."""
    how = {"model": "mlp:8", "data": "digits", "runs": tmp_path, "epochs": 1, "device": "cpu", "name": "a"}
    run = tutelage.train(**how)
    manifest = {key: value for key, value in run.manifest.items() if key != "files"}
    records.write_json(run.folder / records.MANIFEST, {**manifest, "status": "failed"})
    path = run.folder / records.RECIPE
    older = yaml.safe_load(path.read_text())
    del older["outputs"], older["data"]["mixup"]
    path.write_text(yaml.safe_dump(older))
    with refused(RecipeError, "name", got=["clip", "none", 1.0]):
        tutelage.train(**how, clip=1.0)
    assert tutelage.train(**how).manifest["status"] == "finished"


def test_what_auto_resolved_to_is_recorded_and_is_the_same_after_a_resume(tmp_path):
    teacher = tutelage.train(model="mlp:32", data="digits", runs=tmp_path, epochs=2, device="cpu", name="teacher")
    how = {"student": "mlp:8", "teacher": str(teacher.folder), "data": "digits", "runs": tmp_path, "device": "cpu"}
    how |= {"objective": "wttm", "epochs": 2}
    straight = tutelage.distill(**how, name="straight")
    with pytest.raises(KeyboardInterrupt):
        tutelage.distill(**how, name="stopped", display=Stops(KeyboardInterrupt()))
    resumed = tutelage.distill(**how, name="stopped")
    (resolved,) = straight.manifest["objective_resolved"]
    assert resolved["wttm"]["beta"] > 0
    assert resumed.manifest["objective_resolved"] == [resolved]
    assert weights(resumed) == weights(straight)
    typed = objectives.wttm(gamma=0.25, beta=resolved["wttm"]["beta"])
    assert weights(tutelage.distill(**{**how, "objective": typed}, name="typed")) == weights(straight)
    assert straight.manifest["objective"][0][0]["wttm"]["beta"] == "auto"


# Batches that an objective cannot be computed of


@pytest.mark.parametrize(
    ("samples", "batch_size", "world", "suggests"),
    [
        (1437, 4, 1, "batch_size=3"),
        (1, 8, 1, "samples"),
        (65, 16, 1, "batch_size=15"),
        (67, 16, 2, "batch_size=15"),
        (64, 2, 2, "batch_size=4"),
        (65, 16, 2, None),  # the last sample is left out
        (66, 16, 1, None),
        (64, 16, 1, None),
    ],
)
def test_a_last_batch_that_is_too_small_for_an_objective_is_refused(samples, batch_size, world, suggests):
    fits = [replace(recipe_of("x").fits()[0], batch_size=batch_size)]
    objective = objectives.kd() + objectives.rkd()
    check_last_batch(samples, [objectives.kd()], fits, world=world)
    if suggests is None:
        check_last_batch(samples, [objective], fits, world=world)
        return
    with refused(RecipeError, "batch_size", got=[1, samples, batch_size], suggests=suggests):
        check_last_batch(samples, [objective], fits, world=world)


@pytest.mark.parametrize("objective", ["rkd", "correlation", "itrd", "srd"])
def test_it_is_refused_before_the_first_step(tmp_path, teacher, objective):
    wanted = [{"cross_entropy": {}}, {objective: {}}]
    with refused(RecipeError, "batch_size"):
        do(tmp_path / "run", teacher=teacher, objective=wanted, batch_size=4, epochs=1)
    assert not (tmp_path / "run" / records.MANIFEST).exists()


def test_few_frames_lie_between_distill_and_a_loss(tmp_path):
    """distill, execute, run_stage, fit, train_step, Distiller, BoundObjective, the term, the loss."""
    root, depths = str(Path(tutelage.__file__).parent), set()

    def loss(student_logits):
        names, frame = ["loss"], sys._getframe(1)
        while frame is not None:
            if frame.f_code.co_filename.startswith(root) and not frame.f_code.co_name.startswith("<"):
                names.append(frame.f_code.co_name)
            frame = frame.f_back
        depths.add(tuple(reversed(names)))
        return student_logits.square().sum(-1)

    tutelage.distill(
        student="mlp:8",
        teacher=None,
        data="digits",
        objective=Objective.of(WeightedTerm("small", 1.0, Apply(loss))),
        runs=tmp_path,
        epochs=1,
        batch_size=512,
        precision="fp32",
        device="cpu",
    )
    assert {names[:5] for names in depths} == {("distill", "execute", "run_stage", "fit", "train_step")}
    assert {len(names) for names in depths} == {9}
