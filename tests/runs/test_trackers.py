import importlib.machinery
import sys
import threading
import types

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from tests._helpers.refusals import refused

from tutelage import api, config, records
from tutelage.config.schema import Recipe
from tutelage.errors import InvalidTypeError, InvalidValueError, MissingExtraError
from tutelage.report import html
from tutelage.runs import trackers
from tutelage.runs.execute import execute
from tutelage.runs.group import execute_group
from tutelage.runs.reporter import Reporter
from tutelage.runs.run import RunOptions
from tutelage.training.trackers import RECORDS_ALONE

accumulator = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator", reason="the optional package tensorboard is not installed"
)
TIMING = ("seconds", "images_per_second", "memory_mb")


class Own(GeneralTracker):
    """A tracker of the caller's, that may fail or be interrupted."""

    name, requires_logging_directory, tracker = "own", False, None

    def __init__(self, error=None, at=("log", 1)):
        super().__init__()
        self.error, self.at, self.calls = error, at, []

    def _note(self, call, *values):
        self.calls.append((call, *values))
        if self.error and self.at == (call, sum(made == call for made, *_ in self.calls)):
            raise self.error

    def start(self):
        self._note("start")

    def store_init_configuration(self, values):
        self._note("config", values)

    def log(self, values, step=None):
        self._note("log", step, values)

    def finish(self):
        self._note("finish")

    def steps(self):
        return [call[1] for call in self.calls if call[0] == "log"]


class Stops(Reporter):
    """A reporter that raises after so many epochs."""

    def __init__(self, epochs=1, error=KeyboardInterrupt):
        self.left, self.error = epochs, error

    def note(self, text):
        self.left -= 1
        if self.left == 0:
            raise self.error


def recipe_of(name, **changes):
    value = {"name": name, "student": "mlp:4", "batch_size": 512, "epochs": 3, "device": "cpu", "threads": 1} | changes
    return config.parse(Recipe, value)


def options(*track, reporter=None):
    return RunOptions(track=track, reporter=reporter or Reporter(), shares_machine=True)


def do(folder, *track, reporter=None, **changes):
    return execute(recipe_of(folder.name, **changes), folder, options=options(*track, reporter=reporter))


EPOCHS = [{"stage": 0, "epoch": k, "step": 3 * k, "train": {"loss": 1 / k}, "test": None} for k in (1, 2, 3)]
EVALUATION = {"set": "test", "student": {"accuracy": 0.5, "per_class": [0.5]}, "teacher": None}


def hand_over(folder, track, epochs=EPOCHS, *, before=(), stopped=False):
    """Do with a tracker what a run does that records these epochs, some of them before it was resumed."""
    folder.mkdir(exist_ok=True)
    of_run = trackers.Trackers([track], folder, "run")
    of_run.begin({"epochs": 3}, [*before])
    for k in range(len(before), len(epochs)):
        of_run.log(epochs[: k + 1])
    if stopped:
        of_run.close()
    else:
        of_run.finish(epochs, EVALUATION)


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    monkeypatch.setattr(html, "write_report", lambda folder: None)


def curves(folder):
    read = accumulator.EventAccumulator(str(folder / "tensorboard"))
    read.Reload()
    return {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


# What is handed over


def test_a_tracker_is_handed_the_numbers_of_the_records(tmp_path):
    own = Own()
    stages = [{"epochs": 2}, {"epochs": 1, "objective": "cross_entropy"}]
    run = do(tmp_path / "run", own, stages=stages, data={"root": str(tmp_path / "somebody")})
    assert [call for call, *_ in own.calls] == ["start", "config", "log", "log", "log", "log", "finish"]
    settings = own.calls[1][1]
    assert settings["student.name"] == "mlp:4"
    assert settings["data.root"] == "somebody"
    assert settings["stages.0.epochs"] == 2
    assert None not in settings.values()
    epochs = run.epochs
    assert [epoch["step"] for epoch in epochs] == [3, 6, 3]
    logged = [call[1:] for call in own.calls if call[0] == "log"]
    assert [step for step, _ in logged] == [3, 6, 9, 9]  # of all stages
    for epoch, (_, values) in zip(epochs, logged, strict=False):
        assert values["train/loss"] == epoch["train"]["loss"]
        assert values["test/accuracy"] == epoch["test"]["accuracy"]
        assert "validation" not in " ".join(values)
    judged = logged[-1][1]
    assert judged["evaluation/student/accuracy"] == run.accuracy
    assert all(isinstance(value, int | float) for _, values in logged for value in values.values())


@pytest.mark.parametrize(
    ("typed", "sent"),
    [
        ("https://me:key@host/a?X-Key=1", "https://host/a"),
        ("webdataset:https://host/{0..2}.tar?token=1", "webdataset:https://host/{0..2}.tar"),
        ("imagefolder:/home/me/flowers", "imagefolder:flowers"),
        ("runs/teacher", "runs/teacher"),
    ],
)
def test_no_path_and_no_key_is_handed_over(typed, sent):
    assert trackers.settings({"data": {"source": typed, "more": [typed]}}) == {
        "data.source": sent,
        "data.more": f'["{sent}"]',
    }


def test_nothing_is_handed_over_unless_it_is_asked_for(tmp_path):
    run = do(tmp_path / "run")
    assert not [path for path in run.folder.iterdir() if path.name in ("tensorboard", trackers.NOTE)]
    assert "track" not in Recipe.model_fields  # so a recipe of others sends nothing


# Resume


def test_what_a_resumed_run_shows_is_what_one_shows_that_never_stopped(tmp_path):
    whole = do(tmp_path / "whole", "tensorboard")
    with pytest.raises(KeyboardInterrupt):
        do(tmp_path / "stopped", "tensorboard", reporter=Stops(2))
    assert [step for step, _ in curves(tmp_path / "stopped")["train/loss"]] == [3, 6]
    stopped = do(tmp_path / "stopped", "tensorboard")
    shown, other = curves(whole.folder), curves(stopped.folder)
    assert shown.keys() == other.keys()
    assert "evaluation/student/accuracy" in shown
    for tag, points in shown.items():
        assert [step for step, _ in points] == [step for step, _ in other[tag]]
        assert tag in TIMING or points == other[tag]
    assert len([*(stopped.folder / "tensorboard").iterdir()]) == 1


def test_others_go_on_with_the_epochs_that_they_do_not_have(tmp_path):
    first, second = Own(), Own()
    hand_over(tmp_path, first, EPOCHS[:2], stopped=True)
    assert first.calls[-1] == ("finish",)
    hand_over(tmp_path, second, before=EPOCHS[:1])  # The newest checkpoint was damaged.
    assert (first.steps(), second.steps()) == ([3, 6], [9, 9])


def test_one_that_is_asked_for_later_gets_what_was_before(tmp_path):
    own = Own()
    hand_over(tmp_path, own, before=EPOCHS[:2])
    assert own.steps() == [3, 6, 9, 9]


# What goes wrong


@pytest.mark.parametrize(
    ("error", "at", "steps"),
    [
        (OSError("no network"), ("start", 1), []),
        (SystemExit(1), ("config", 1), []),
        (OSError("no network"), ("log", 2), [3, 6, 6, 9, 9]),  # what was not taken is tried again
        (OSError("no network"), ("finish", 1), [3, 6, 9, 9]),
    ],
)
def test_a_run_does_not_end_of_its_tracker(tmp_path, error, at, steps):
    own = Own(error, at)
    with pytest.warns(UserWarning, match="tracker object:Own: expected to take what is recorded, got") as warned:
        hand_over(tmp_path, own)
    assert len(warned) == 1
    assert own.steps() == steps


def test_one_that_does_not_answer_is_given_up(tmp_path, monkeypatch):
    ended, asked = threading.Event(), []
    monkeypatch.setattr(trackers, "PATIENCE", 0.05)
    monkeypatch.setattr(trackers, "_SILENT", set())
    wandb = fake(monkeypatch, "wandb")
    wandb.init = lambda **_: (asked.append(1), ended.wait(10))
    try:
        with pytest.warns(UserWarning, match="tracker wandb: .* no answer within"):
            hand_over(tmp_path, "wandb")
    finally:
        ended.set()
    assert asked == [1]
    assert "wandb" in trackers._SILENT


# Several runs at a time


def fake(monkeypatch, name):
    """Put a library in place, or in the place, of one that is installed."""
    library = types.ModuleType(name)
    library.__spec__ = importlib.machinery.ModuleSpec(name, None)
    monkeypatch.setitem(sys.modules, name, library)
    return library


@pytest.fixture
def mlflow(monkeypatch):
    """MLflow as far as accelerate knows it: each thread has a run that it logs to, and no other beside it."""
    library, here = fake(monkeypatch, "mlflow"), threading.local()
    library.runs = {}

    def start_run(run_id=None, run_name=None, **_):
        assert getattr(here, "run", None) is None, "a run is active"
        here.run = run_id or f"id of {run_name}"
        library.runs.setdefault(here.run, {"params": {}, "steps": [], "open": 0})["open"] += 1
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=here.run))

    def end_run():
        library.runs[here.run]["open"] -= 1
        here.run = None

    library.search_experiments = lambda **_: []
    library.create_experiment = lambda **_: "0"
    library.start_run, library.end_run = start_run, end_run
    library.log_params = lambda values: library.runs[here.run]["params"].update(values)
    library.log_metrics = lambda values, step: library.runs[here.run]["steps"].append((step, values.get("train/loss")))
    limits = types.SimpleNamespace(MAX_PARAM_VAL_LENGTH=500, MAX_PARAMS_TAGS_PER_BATCH=100)
    library.utils = types.SimpleNamespace(validation=limits)
    return library


@pytest.mark.parametrize("end", [pytest.param(None, marks=pytest.mark.slow), KeyboardInterrupt])
def test_each_run_of_a_group_has_its_own_and_it_is_closed(tmp_path, mlflow, end):
    seeds = {"one": 1, "two": 2}
    todo = [(recipe_of(name, seed=seed), tmp_path / name) for name, seed in seeds.items()]
    if end is not None:
        with pytest.raises(end):
            execute_group(todo, options=options("mlflow", reporter=Stops(3, end)))
        assert not any(run["open"] for run in mlflow.runs.values())
    execute_group(todo, options=options("mlflow"))
    assert mlflow.runs.keys() == {"id of one", "id of two"}
    for name, seed in seeds.items():
        known = mlflow.runs[f"id of {name}"]
        assert (known["open"], known["params"]["seed"]) == (0, seed)
        losses = [epoch["train"]["loss"] for epoch in records.read_epochs(tmp_path / name)]
        assert known["steps"] == [*zip([3, 6, 9], losses, strict=True), (9, None)]


@pytest.mark.slow
def test_one_that_fails_closes_its_tracker_alone(tmp_path, mlflow):
    def fail(folder, epoch):
        if (folder.name, epoch["epoch"]) == ("one", 1):
            raise ZeroDivisionError("a bug")

    todo = [(recipe_of(name, seed=seed), tmp_path / name) for seed, name in enumerate(("one", "two"))]
    execute_group(todo, options=RunOptions(track=("mlflow",), when_epoch=fail, shares_machine=True))
    runs = mlflow.runs
    assert [len(runs[f"id of {name}"]["steps"]) for name in ("one", "two")] == [1, 4]
    assert not any(run["open"] for run in runs.values())


@pytest.mark.slow
def test_a_teacher_that_a_run_trains_has_its_own(tmp_path, mlflow):
    own, training = Own(), {"train": {"model": "mlp:4", "epochs": 1}}
    do(tmp_path / "run", "mlflow", own, teacher=training, objective="kd", weak_teacher=True)
    assert mlflow.runs.keys() == {"id of run", "id of run/teacher"}
    assert own.steps() == [3, 6, 9, 9]


def test_weights_and_biases_gets_records_alone_and_goes_on_from_its_last_step(tmp_path, monkeypatch):
    wandb, made = fake(monkeypatch, "wandb"), []

    class Run:
        def __init__(self, **options):
            self.options, self.steps, self.id = options, [], options["id"]
            self.step = 4 if options["resume"] == "allow" else 0  # A kill took the second epoch with it.
            self.log = lambda values, step: self.steps.append(step)
            self.finish = lambda: self.steps.append("finished")
            made.append(self)

    wandb.init = Run
    hand_over(tmp_path, "wandb", EPOCHS[:2], stopped=True)
    hand_over(tmp_path, "wandb", before=EPOCHS[:2])
    first, second = made
    assert first.options["settings"] == RECORDS_ALONE
    assert (first.options["project"], first.options["name"], first.options["resume"]) == ("tutelage", "run", "never")
    assert first.options["config"]["epochs"] == 3
    assert second.id == first.id
    assert (first.steps, second.steps) == ([3, 6, "finished"], [6, 9, 9, "finished"])


def test_trackio_stays_on_this_machine(tmp_path, monkeypatch):
    trackio, given = fake(monkeypatch, "trackio"), {}
    nothing = lambda *_, **__: None  # noqa: E731
    run = types.SimpleNamespace(name="run", log=nothing, finish=nothing)
    trackio.init = lambda **options: given.update(options) or run
    hand_over(tmp_path, "trackio")
    assert given["config"] == {"epochs": 3}
    assert {"embed": False, "auto_log_cpu": False, "auto_log_gpu": False}.items() <= given.items()
    assert not {"space_id", "server_url", "dataset_id", "bucket_id"} & given.keys()


# What is typed


def test_the_names_are_accelerates():
    assert set(trackers.NAMES) <= LOGGER_TYPE_TO_CLASS.keys()


@pytest.mark.parametrize("call", [api.train, api.distill, api.compare])
def test_mistakes_are_told_before_data_are_opened(call, tmp_path, monkeypatch):
    of = {"objectives": {"kd": "kd"}, "student": "mlp:4", "teacher": "runs/none"}
    if call is not api.compare:
        of = {"model": "mlp:4"} if call is api.train else {"student": "mlp:4", "teacher": None, "objective": "kd"}
    ask = {"data": "imagefolder:nowhere", "runs": tmp_path, **of}
    with refused(InvalidValueError, "track", suggests="tensorboard"):
        call(**ask, track="tensorbord")
    with refused(InvalidTypeError, "track"):
        call(**ask, track=["tensorboard", 3])
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with refused(MissingExtraError, "track tensorboard", suggests="tutelage[tensorboard]"):
        call(**ask, track="tensorboard")
    with refused(MissingExtraError, "track wandb", suggests="pip install wandb"):
        call(**ask, track=("wandb",))
    assert not [*tmp_path.iterdir()]


def test_runs_of_a_comparison_share_no_tracker(tmp_path):
    with refused(InvalidTypeError, "track", suggests="tensorboard"):
        api.compare(student="mlp:4", teacher=None, data="digits", objectives={"a": "kd"}, runs=tmp_path, track=Own())


def test_other_processes_get_names():
    sent = options("tensorboard", Own()).__reduce__()
    assert sent[0]().track == ("tensorboard",)


def test_each_is_opened_once():
    assert trackers.check(["tensorboard", "tensorboard"]) == ("tensorboard",)
    assert trackers.check(None) == ()
