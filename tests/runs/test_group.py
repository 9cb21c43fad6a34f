"""Runs of a group leave the same bytes as each leaves alone."""

import errno
import itertools
import json

import pytest
import torch
from tests._helpers import KILLED_RUN
from tests._helpers.refusals import refused

from tutelage import config, models, records
from tutelage.config.schema import Recipe
from tutelage.errors import InvalidValueError
from tutelage.modules import FrozenTeacher
from tutelage.runs import group, record_teacher, resume, setup
from tutelage.runs.execute import execute
from tutelage.runs.group import can_share_batches, execute_group
from tutelage.runs.lock import BusyError, folder_lock
from tutelage.runs.reporter import Reporter
from tutelage.runs.run import Run, RunOptions
from tutelage.training.deadline import Deadline, DeadlineExceeded
from tutelage.training.evaluate import NonFiniteError

STUDENT = f"file:{KILLED_RUN}:student"
TIMING = ("seconds", "images_per_second", "memory_mb")
OWN = ("started", "duration_s", "class", "files")
FILES = (
    *(records.STUDENT, records.CARD, records.BEST, records.RECIPE),
    *(records.EVALUATION, records.PREDICTIONS, records.DISPUTED),
)

SHARED = {
    "data": {"source": "digits", "validation": 0.1, "crop_padding": 1, "flip": True},
    "batch_size": 256,
    "device": "cpu",
    "threads": 1,
    "data_seed": 5,
}
CRD = [{"wttm": {"gamma": 0.5, "beta": 1.0}}, {"crd": {"negatives": 32, "dimension": 8}, "scale": 0.5}]
SECOND = {
    "epochs": 2,
    "objective": {"kd": {"temperature": 2.0}},
    "optimizer": {"name": "adamw", "lr": 3e-3},
    "schedule": {"name": "cosine", "warmup": 0.5},
}
OBJECTIVES = {
    "dropout": {
        "student": STUDENT,
        "seed": 3,
        "objective": {"wttm": {"gamma": 0.5, "beta": "auto"}},
        "stages": [{"epochs": 1}, SECOND],
    },
    "crd": {"student": "mlp:8", "objective": CRD, "clip": 1.0, "stages": [{"epochs": 1}, {"epochs": 2}]},
    "labels": {"student": STUDENT, "seed": 4, "stages": [{"epochs": 1}, {"epochs": 2}]},
    "without-teacher": {"student": "mlp:8", "seed": 4, "teacher": None, "stages": [{"epochs": 1}, {"epochs": 2}]},
}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    value = {"name": "teacher", "student": "mlp:16", "epochs": 2, "optimizer": {"lr": 0.2}, "device": "cpu"}
    execute(config.parse(Recipe, value), folder)
    return folder


def recipe_of(name, teacher, /, **changes):
    return config.parse(Recipe, {"teacher": str(teacher), **SHARED, "name": name, **OBJECTIVES[name], **changes})


def planned(folder, teacher, names=tuple(OBJECTIVES), **changes):
    return [(recipe_of(name, teacher, **changes), folder / name) for name in names]


def together(todo, reporter=None):
    return execute_group(todo, options=RunOptions(reporter=reporter or Reporter(), trust_code=True))


def alone(recipe, folder):
    return execute(recipe, folder, options=RunOptions(trust_code=True))


@pytest.fixture(scope="module")
def each_alone(teacher, tmp_path_factory):
    runs = tmp_path_factory.mktemp("alone")
    for recipe, folder in planned(runs, teacher):
        alone(recipe, folder)
    return runs


def metrics(folder):
    return [{k: v for k, v in line.items() if k not in TIMING} for line in records.read_epochs(folder)]


def assert_same(folder, other):
    for name in FILES:
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name
    assert metrics(folder) == metrics(other)


def manifest(folder):
    return json.loads((folder / records.MANIFEST).read_text())


class Watches(Reporter):
    """A reporter that keeps its lines, and may raise after so many epochs."""

    def __init__(self, error=None, epochs=0):
        self.error, self.left, self.lines, self.notes, self.steps, self.ticks = error, epochs, [], [], [], 0

    def begin(self, title, steps, done):
        self.steps.append((title, steps, done))

    def tick(self):
        self.ticks += 1

    def note(self, text):
        self.notes.append(text)
        self.left -= 1
        if self.left == 0 and self.error:
            raise self.error

    def say(self, text):
        self.lines.append(text)


def test_a_group_leaves_what_each_run_leaves_alone(teacher, each_alone, tmp_path):
    reporter = Watches()
    done = together(planned(tmp_path, teacher), reporter)
    assert [run.folder.name for run in done] == list(OBJECTIVES)
    for name in OBJECTIVES:
        assert_same(tmp_path / name, each_alone / name)
        grouped, alone = manifest(tmp_path / name), manifest(each_alone / name)
        assert grouped["class"] == [member for member in OBJECTIVES if member != name]
        assert alone["class"] == []
        assert {k: v for k, v in grouped.items() if k not in OWN} == {k: v for k, v in alone.items() if k not in OWN}
    # 7 steps per epoch of 1258 samples, one epoch and then two, four runs.
    steps = -(-manifest(tmp_path / "crd")["data"]["sizes"]["train"] // 256)
    assert reporter.steps == [
        ("dropout and 3 more stage 1 of 2", 4 * steps, 0),
        ("dropout and 3 more stage 2 of 2", 4 * 2 * steps, 0),
    ]
    assert reporter.ticks == 4 * 3 * steps
    assert sum(text.startswith("teacher ") for text in reporter.lines) == 1
    assert [note.partition(":")[0] for note in reporter.notes[:4]] == list(OBJECTIVES)


@pytest.mark.parametrize(
    ("threads", "changes", "expected"),
    [(1, {}, 6), (2, {}, 3), (4, {}, 1), (7, {}, 1), (None, {}, 1), (1, {"shares_machine": True}, 1)],
)
def test_as_many_are_side_by_side_as_the_cores_have_room_for(
    threads, changes, expected, monkeypatch, teacher, tmp_path
):
    asked, plain = [], group.Lockstep
    monkeypatch.setattr(group.launcher, "cores", lambda: 8)
    monkeypatch.setattr(group.psutil, "cpu_count", lambda logical: 6)
    monkeypatch.setattr(
        group, "Lockstep", lambda *jobs, **how: asked.append(how["side_by_side"]) or plain(*jobs, **how)
    )
    todo = planned(tmp_path, teacher, ("crd", "without-teacher"), threads=threads, stages=[], epochs=1)
    results = execute_group(todo, options=RunOptions(**changes))
    assert all(isinstance(result, Run) for result in results)
    assert asked == [expected]


def test_the_teacher_is_asked_once_for_all(teacher, tmp_path, monkeypatch):
    calls = []
    plain = FrozenTeacher.forward
    monkeypatch.setattr(FrozenTeacher, "forward", lambda self, batch: calls.append(1) or plain(self, batch))
    alone(*planned(tmp_path / "one", teacher, ["crd"])[0])
    once, calls[:] = len(calls), []
    together(planned(tmp_path / "all", teacher, ["crd", "dropout", "labels"], weak_teacher=True))
    # `beta: auto` reads the teacher's logits on training samples besides.
    assert len(calls) < once + 10
    assert once >= 3 * 6


def test_what_automatic_numbers_are_found_from_is_read_once_for_all(teacher, tmp_path, monkeypatch):
    reads = []
    plain = setup._teacher_outputs
    monkeypatch.setattr(setup, "_teacher_outputs", lambda *given: reads.append(1) or plain(*given))
    todo = [(recipe_of("labels", teacher, name=name, objective=name), tmp_path / name) for name in ("ttm", "wttm")]
    together(todo)
    assert len(reads) == 1
    for recipe, folder in todo:
        alone(recipe, tmp_path / "alone" / folder.name)
        resolved = [manifest(at / folder.name)["objective_resolved"] for at in (tmp_path, tmp_path / "alone")]
        assert resolved[0] == resolved[1]
        assert resolved[0][0][folder.name]["beta"] > 0


def test_recorded_outputs_are_read_for_all(teacher, tmp_path):
    outputs = str(tmp_path / "outputs")
    names = ["dropout", "crd", "labels"]
    beside = [recipe_of("crd", teacher)]
    record_teacher.record(
        recipe_of("dropout", teacher, outputs=outputs), options=RunOptions(trust_code=True), beside=beside
    )
    for recipe, folder in planned(tmp_path / "alone", teacher, names, outputs=outputs):
        alone(recipe, folder)
    together(planned(tmp_path / "all", teacher, names, outputs=outputs))
    for name in names:
        assert_same(tmp_path / "all" / name, tmp_path / "alone" / name)
    assert manifest(tmp_path / "all" / "crd")["teacher"]["answers"] == "recorded in float16"


def test_one_that_fails_leaves_the_others_alone(teacher, each_alone, tmp_path):
    diverges = recipe_of("crd", teacher, name="diverges", optimizer={"lr": 1e30})
    reporter = Watches()
    others = reversed(planned(tmp_path, teacher))  # the one without a teacher comes first
    done = together([(diverges, tmp_path / "diverges"), *others], reporter)
    assert isinstance(done[0], NonFiniteError)
    failed = manifest(tmp_path / "diverges")
    assert failed["status"] == "failed"
    assert "expected a finite loss" in failed["notes"][-1]
    assert any(text.startswith("failed: diverges: ") for text in reporter.lines)
    for name in OBJECTIVES:
        assert_same(tmp_path / name, each_alone / name)


@pytest.mark.parametrize(
    "where",
    [
        "finish",
        pytest.param("record", marks=pytest.mark.slow),
        pytest.param("begin", marks=pytest.mark.slow),
        "prepare",
    ],
)
def test_what_fails_outside_of_steps_fails_alone_too(teacher, each_alone, tmp_path, monkeypatch, where):
    def full(plain, which):
        def act(folder, *arguments, **keywords):
            if folder.name == "crd":
                raise OSError(errno.ENOSPC, "no room") if which != "prepare" else ValueError("no room")
            return plain(folder, *arguments, **keywords)

        return act

    names = {"record": "append_epoch", "begin": "rewrite_epochs"}
    if where in names:
        monkeypatch.setattr(records, names[where], full(getattr(records, names[where]), where))
    elif where == "finish":
        save = full(lambda folder, student: plain(student, folder), where)
        plain = models.save
        monkeypatch.setattr(models, "save", lambda student, folder: save(folder, student))
    else:
        monkeypatch.setattr(resume, "earlier_run", full(resume.earlier_run, where))
    done = together(planned(tmp_path, teacher))
    assert [isinstance(result, Run) for result in done] == [True, False, True, True]
    assert "no room" in str(done[1])
    for name in ("dropout", "labels", "without-teacher"):
        assert_same(tmp_path / name, each_alone / name)


def test_an_interrupt_stops_all_and_they_are_resumed(teacher, each_alone, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        together(planned(tmp_path, teacher), Watches(KeyboardInterrupt(), epochs=6))
    assert {manifest(tmp_path / name)["status"] for name in OBJECTIVES} == {"interrupted"}
    assert [len(metrics(tmp_path / name)) for name in OBJECTIVES] == [2, 2, 1, 1]
    reporter = Watches()
    together(planned(tmp_path, teacher), reporter)
    assert sum("resuming after epoch" in text for text in reporter.lines) == 4
    for name in OBJECTIVES:
        assert_same(tmp_path / name, each_alone / name)
        assert manifest(tmp_path / name)["resumed"] == 1


def test_an_interrupt_while_records_are_finished_spares_those_that_are(teacher, tmp_path, monkeypatch):
    plain = models.save

    def stop(student, folder):
        if folder.name == "crd":
            raise KeyboardInterrupt
        plain(student, folder)

    monkeypatch.setattr(models, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        together(planned(tmp_path, teacher, ["labels", "crd", "dropout"]))
    status = [manifest(tmp_path / name)["status"] for name in ("labels", "crd", "dropout")]
    assert status == ["finished", "interrupted", "interrupted"]


def test_a_run_begun_alone_and_one_that_is_not_are_resumed_together(teacher, each_alone, tmp_path):
    (recipe, folder), *others = planned(tmp_path, teacher)
    with pytest.raises(KeyboardInterrupt):
        execute(recipe, folder, options=RunOptions(reporter=Watches(KeyboardInterrupt(), 2), trust_code=True))
    together([*others, (recipe, folder)])
    for name in OBJECTIVES:
        assert_same(tmp_path / name, each_alone / name)


def test_a_run_that_another_process_is_at_is_left_to_it(teacher, each_alone, tmp_path):
    with folder_lock(tmp_path / "crd"):
        done = together(planned(tmp_path, teacher, ["labels", "crd"]))
    assert isinstance(done[1], BusyError)
    assert not (tmp_path / "crd" / records.MANIFEST).exists()
    assert_same(tmp_path / "labels", each_alone / "labels")


def test_a_finished_run_is_not_done_again(teacher, each_alone, tmp_path):
    before = (each_alone / "labels" / records.MANIFEST).read_bytes()
    done = together([(recipe_of("labels", teacher), each_alone / "labels"), *planned(tmp_path, teacher, ["crd"])])
    assert "which is finished" in str(done[0])
    assert (each_alone / "labels" / records.MANIFEST).read_bytes() == before
    assert_same(tmp_path / "crd", each_alone / "crd")


def test_a_shared_failure_is_everyones(teacher, tmp_path, monkeypatch):
    def torn(self, batch):
        raise OSError("torn")

    monkeypatch.setattr(FrozenTeacher, "forward", torn)
    done = together(planned(tmp_path, teacher, ["crd", "labels"]))
    assert [str(error) for error in done] == ["torn", "torn"]
    assert {manifest(tmp_path / name)["status"] for name in ("crd", "labels")} == {"failed"}


def test_who_may_be_in_one_group(teacher):
    recipes = [recipe_of(name, teacher) for name in OBJECTIVES]
    assert all(can_share_batches(*pair) for pair in itertools.product(recipes, recipes))
    other = {
        "data_seed": 6,
        "data": {"source": "digits"},
        "batch_size": 128,
        "precision": "bf16",
        "channels_last": False,
        "threads": 2,
        "deterministic": True,
        "accumulate": 2,
        "teacher": "mlp:16",
        "outputs": "runs/outputs",
        "stages": [{"epochs": 1}, {"epochs": 3}],
    }
    objective = {"objective": "kd", "accumulate": 1}
    for key, value in other.items():
        assert not can_share_batches(recipes[0], recipe_of("labels", teacher, **objective | {key: value})), key
    stages = [{"epochs": 1}, {"epochs": 2, "batch_size": 64}]
    assert not can_share_batches(recipes[0], recipe_of("labels", teacher, stages=stages))
    assert not can_share_batches(recipes[0], recipe_of("labels", teacher, teacher={"train": {"model": "mlp:8"}}))
    # Without a teacher in training, any cache and no teacher will do.
    assert can_share_batches(recipes[0], recipe_of("labels", teacher, outputs="runs/outputs"))
    assert can_share_batches(recipes[0], recipe_of("labels", teacher, teacher=None))


def test_others_are_refused(teacher, tmp_path):
    mixed = [*planned(tmp_path, teacher, ["crd"]), *planned(tmp_path, teacher, ["labels"], data_seed=6)]
    with refused(InvalidValueError, "recipes"):
        together(mixed)
    assert not list(tmp_path.iterdir())


def test_where_the_last_evaluation_is_not_reached_nothing_has_failed(teacher, tmp_path):
    """Time is up when all steps are done: the runs are interrupted, and resumed."""

    class Late(Watches):
        def note(self, text):
            super().note(text)
            if self.left == 0:
                deadline.moment = 0.0

    names, deadline = ("labels", "dropout"), Deadline(1e12)
    reporter = Late(epochs=2 * 3)
    options = RunOptions(reporter=reporter, trust_code=True, deadline=deadline)
    results = execute_group(planned(tmp_path, teacher, names), options=options)
    assert [type(result) for result in results] == [DeadlineExceeded] * 2
    assert not [line for line in reporter.lines if "failed" in line]
    assert [manifest(tmp_path / name)["status"] for name in names] == ["interrupted"] * 2
    assert [type(run) for run in together(planned(tmp_path, teacher, names))] == [Run] * 2


def test_only_runs_that_have_finished_are_said_to_have(teacher, tmp_path):
    class Speechless(Watches):
        def say(self, text):
            if text.startswith("labels: test accuracy"):
                raise ValueError("no words")
            super().say(text)

    finished = []
    options = RunOptions(reporter=Speechless(), trust_code=True, when_finished=lambda f: finished.append(f.name))
    results = execute_group(planned(tmp_path, teacher, ("labels", "dropout")), options=options)
    assert [type(result) for result in results] == [ValueError, Run]
    assert finished == ["dropout"]
