"""More epochs for a finished run: a new run that begins where that one ended."""

import hashlib
import json
import re
import shutil

import pytest
import torch
from tests._helpers.refusals import refused
from torch import nn
from torch.utils.data import TensorDataset

import tutelage
from tutelage import config, objectives, records
from tutelage.config.schema import Comparison, Recipe
from tutelage.errors import RecipeError
from tutelage.report import html
from tutelage.runs import recipes
from tutelage.runs.execute import execute
from tutelage.runs.group import can_share_batches
from tutelage.runs.reporter import Reporter
from tutelage.runs.run import RunOptions

TIMING = ("seconds", "images_per_second", "memory_mb")
KD = {"kd": {"temperature": 2.0}}


@pytest.fixture(autouse=True)
def one_thread_and_no_report(monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(html, "write_report", lambda folder: None)
    yield
    torch.set_num_threads(threads)


class StopsAtOnce(Reporter):
    """A reporter that stops a run before its first step."""

    def begin(self, title, total, done):
        raise KeyboardInterrupt


def planned(folder, **changes):
    value = {"name": folder.name, "student": "mlp:8", "batch_size": 512, "epochs": 2, "device": "cpu", "log_steps": 1}
    return config.parse(Recipe, {**value, "data": {"source": "digits", "validation": 0.2}, **changes})


def do(folder, *, reporter=None, **changes):
    return execute(planned(folder, **changes), folder, options=RunOptions(reporter=reporter or Reporter()))


def files(folder):
    return {path: hashlib.sha256(path.read_bytes()).digest() for path in folder.rglob("*") if path.is_file()}


def result(run):
    """What two runs have alike that are one and the same: weights, the best ones, metrics and the evaluation."""
    kept = [(run.folder / name).read_bytes() for name in (records.STUDENT, records.BEST)]
    return [*kept, [{k: v for k, v in e.items() if k not in TIMING} for e in run.epochs], run.evaluation]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(html, "write_report", lambda folder: None)
        return do(tmp_path_factory.mktemp("runs") / "first")


def test_two_epochs_and_two_more_are_four_and_the_first_run_stays(first, tmp_path):
    before, start = files(first.folder), str(first.folder)
    with pytest.raises(KeyboardInterrupt):
        do(tmp_path / "more", start=start, epochs=4, reporter=StopsAtOnce())
    assert not (tmp_path / "more" / records.CHECKPOINTS).exists()
    more = do(tmp_path / "more", start=start, epochs=4)
    whole = do(tmp_path / "whole", epochs=4)
    assert result(more) == result(whole)
    assert files(first.folder) == before
    fingerprint = tutelage.models.fingerprint(first.student)
    assert more.manifest["started_from"] == {"name": "first", "fingerprint": fingerprint, "epoch": 2}
    assert "started_from" not in whole.manifest
    again = recipes.again(more.folder, [], tmp_path)[0]
    assert (again.start, again.epochs) == (start, 4)


def test_the_best_weights_are_still_there_where_no_later_epoch_is_better(first, tmp_path):
    worse = do(tmp_path / "worse", start=str(first.folder), epochs=3, optimizer={"lr": 1e3})
    assert (worse.folder / records.BEST).read_bytes() == (first.folder / records.BEST).read_bytes()
    assert worse.evaluation["best"]["epoch"] == first.evaluation["best"]["epoch"]


def test_after_its_first_checkpoint_the_first_run_is_not_needed(first, tmp_path):
    start = tmp_path / "start"
    shutil.copytree(first.folder, start)

    class Stops(Reporter):
        def note(self, text):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        do(tmp_path / "more", start=str(start), epochs=4, reporter=Stops())
    shutil.rmtree(start)
    more = do(tmp_path / "more", start=str(start), epochs=4)
    assert result(more) == result(do(tmp_path / "whole", epochs=4))
    assert more.manifest["started_from"]["epoch"] == 2


def test_another_run_in_its_place_is_refused(first, tmp_path):
    start = tmp_path / "start"
    shutil.copytree(first.folder, start)
    with pytest.raises(KeyboardInterrupt):
        do(tmp_path / "more", start=str(start), epochs=3, reporter=StopsAtOnce())
    shutil.rmtree(start)
    do(start, seed=1)
    with refused(RecipeError, "start", got="seed was 1, is 0"):
        do(tmp_path / "more", start=str(start), epochs=3)
    manifest = json.loads((tmp_path / "more" / records.MANIFEST).read_text())
    manifest["started_from"]["fingerprint"] = "0" * 16
    (tmp_path / "more" / records.MANIFEST).write_text(json.dumps(manifest))
    shutil.rmtree(start)
    shutil.copytree(first.folder, start)
    with refused(RecipeError, "start", got=str(start), suggests="name=..."):
        do(tmp_path / "more", start=str(start), epochs=3)


@pytest.mark.parametrize(
    ("changes", "what", "got", "suggests"),
    [
        ({"epochs": 2}, "epochs", 2, "epochs=4"),
        ({"batch_size": 256, "clip": 1.0}, "start", ["batch_size was 512, is 256", "clip was none, is 1.0"], "start"),
        ({"optimizer": "adamw"}, "start", "optimizer.name was sgd, is adamw", "start"),
        ({"stages": [{"epochs": 2}, {"epochs": 4}]}, "start", "stages was []", "start"),
        ({"start": "nowhere"}, "start", "nowhere", "start=runs/NAME"),
    ],
)
def test_what_cannot_be_gone_on_with_is_refused(first, tmp_path, changes, what, got, suggests):
    with refused(RecipeError, what, got=got, suggests=suggests):
        do(tmp_path / "more", **{"start": str(first.folder), "epochs": 4} | changes)
    assert not (tmp_path / "more" / records.MANIFEST).exists()


def test_a_run_without_its_last_checkpoint_or_its_end_is_refused(first, tmp_path):
    start = tmp_path / "start"
    shutil.copytree(first.folder, start)
    newest = start / records.CHECKPOINTS / records.checkpoint_names(start / records.CHECKPOINTS)[-1]
    (newest / "tensors.safetensors").write_bytes(b"cut off")
    with refused(RecipeError, "start", got="another content", suggests=str(start / records.STUDENT)):
        do(tmp_path / "damaged", start=str(start), epochs=4)
    (newest / records.STATE).write_text("{}")
    with refused(RecipeError, "start", got=str(newest)):
        do(tmp_path / "state", start=str(start), epochs=4)
    (start / records.BEST).unlink()
    with refused(RecipeError, "start", got=records.BEST, suggests=f"train {start}"):
        do(tmp_path / "lost", start=str(start), epochs=4)
    shutil.rmtree(start / records.CHECKPOINTS)
    shutil.copy(first.folder / records.BEST, start)
    with refused(RecipeError, "start", got=records.CHECKPOINTS, suggests="student.weights"):
        do(tmp_path / "gone", start=str(start), epochs=4)
    own = tmp_path / "own"
    with refused(RecipeError, "start", got=str(own), suggests="name=..."):
        do(own, start=str(own), epochs=4)


def test_a_finished_run_says_how_it_gets_more_epochs(first):
    with refused(RecipeError, "name", suggests=f"start={first.folder}"):
        do(first.folder, epochs=4)


def test_a_repeat_with_more_epochs_says_that_it_begins_anew(first, tmp_path, invoke):
    typed = ("train", str(first.folder), "epochs=4", "--dry-run", "--runs", str(tmp_path))
    code, _, err = invoke(*typed)
    assert code == 0, err
    assert f"type start={first.folder} too" in err
    code, out, err = invoke(*typed, f"start={first.folder}")
    assert (code, "begins anew" in err) == (0, False)
    assert re.search(rf"start +{first.folder}, after epoch 2", out)
    assert re.search(r"steps +6 of 512", out)  # two epochs of three steps are over


def test_the_last_of_several_stages_alone_may_be_longer(first, tmp_path):
    one, two = {"epochs": 1, "optimizer": {"lr": 0.2}}, {"epochs": 1, "schedule": {"warmup": 0.5}}
    start = do(tmp_path / "start", stages=[one, two])
    more = do(tmp_path / "more", start=str(start.folder), stages=[one, two | {"epochs": 2}])
    assert result(more) == result(do(tmp_path / "whole", stages=[one, two | {"epochs": 2}]))
    for stages, got in (
        ([one | {"epochs": 2}, two | {"epochs": 2}], "stages.0.epochs was 1, is 2"),
        ([one | {"schedule": "cosine"}, two | {"epochs": 2}], "stages.0.schedule was none"),
    ):
        with refused(RecipeError, "start", got=got):
            do(tmp_path / "other", start=str(start.folder), stages=stages)
    with refused(RecipeError, "start", got="schedule of the finished stage 0"):
        do(
            tmp_path / "other",
            start=str(start.folder),
            schedule={"name": "cosine"},
            stages=[one, two | {"epochs": 2}],
        )


def test_a_run_that_stopped_early_goes_on_with_more_patience(tmp_path):
    never = {"patience": 1, "min_delta": 1.0}  # A first epoch is better than none; no other one is better by that.
    stopped = do(tmp_path / "stopped", epochs=5, early_stopping=never)
    assert len(stopped.epochs) == 2
    start = str(stopped.folder)
    with refused(RecipeError, "early_stopping", got="for 1 epoch", suggests="early_stopping.patience=3"):
        do(tmp_path / "more", start=start, epochs=5, early_stopping=never)
    assert not (tmp_path / "more" / records.MANIFEST).exists()
    more = do(tmp_path / "more", start=start, epochs=5, early_stopping={**never, "patience": 2})
    assert len(more.epochs) == 3
    assert len(do(tmp_path / "all", start=start, epochs=5).epochs) == 5


def test_the_teacher_that_it_has_trained_teaches_on(tmp_path):
    taught = {"teacher": {"train": {"model": "mlp:12", "epochs": 1}}, "objective": KD, "weak_teacher": True}
    start = do(tmp_path / "start", **taught)
    more = do(tmp_path / "more", start=str(start.folder), epochs=3, **taught)
    assert more.manifest["teacher"]["fingerprint"] == start.manifest["teacher"]["fingerprint"]
    weights = [folder / "teacher" / records.STUDENT for folder in (start.folder, more.folder)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert not (more.folder / "teacher" / records.CHECKPOINTS).exists()
    other = do(tmp_path / "other", student="mlp:12")
    with refused(RecipeError, "start", got="teacher"):
        do(tmp_path / "more2", start=str(start.folder), epochs=3, **taught | {"teacher": str(other.folder)})


def test_another_teacher_or_other_data_behind_the_same_names_are_refused(tmp_path):
    teacher = do(tmp_path / "teacher", student="mlp:12", epochs=1)
    taught = {"teacher": str(teacher.folder), "objective": KD, "weak_teacher": True}
    start = do(tmp_path / "start", **taught)
    shutil.rmtree(teacher.folder)
    do(teacher.folder, student="mlp:12", epochs=1, seed=1)
    with refused(RecipeError, "teacher", got=tutelage.models.fingerprint(tutelage.load(teacher.folder))):
        do(tmp_path / "more", start=str(start.folder), epochs=3, **taught)


def test_a_run_of_ones_own_modules_goes_on_with_the_same_class(tmp_path):
    torch.manual_seed(0)
    images, labels = torch.rand(24, 1, 4, 4), torch.arange(24) % 2
    data = TensorDataset(images[:16], labels[:16]), TensorDataset(images[16:], labels[16:])

    def distill(name, epochs, width=5, **start):
        torch.manual_seed(1)
        student = nn.Sequential(nn.Flatten(), nn.Linear(16, width), nn.Dropout(0.3), nn.Linear(width, 2))
        keys = {"batch_size": 8, "device": "cpu", "runs": tmp_path}
        objective = objectives.cross_entropy()
        return tutelage.distill(
            student=student, teacher=None, data=data, objective=objective, name=name, epochs=epochs, **keys, **start
        )

    start = distill("start", 1)
    more, whole = distill("more", 3, start=start), distill("whole", 3)
    assert (more.folder / records.STUDENT).read_bytes() == (whole.folder / records.STUDENT).read_bytes()
    with refused(RecipeError, "start", got="lesson.student"):
        distill("wider", 3, width=6, start=start)


def test_it_is_executed_alone_and_is_no_key_of_a_comparison(first, tmp_path):
    both = [planned(tmp_path / name, start=str(first.folder), epochs=4) for name in "ab"]
    assert not can_share_batches(*both)
    assert can_share_batches(*(recipe.model_copy(update={"start": None}) for recipe in both))
    with refused(RecipeError, "recipe: start", got="runs/a"):
        config.parse(
            Comparison, {"name": "c", "student": "mlp:8", "objectives": {"ce": "cross_entropy"}, "start": "runs/a"}
        )
