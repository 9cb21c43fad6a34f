"""Lessons that are fitted together take the same steps, to the bit, as each alone."""

import random
import signal
import threading
import time
from functools import partial

import numpy as np
import pytest
import torch
from tests._helpers.fit_cases import Moving, Rows, Says, mlp, same_bits, samples, seeded, settings, state, untimed
from tests._helpers.refusals import refused
from torch import nn

from tutelage import objectives
from tutelage.errors import InvalidValueError, RunError
from tutelage.modules import Distiller, FrozenTeacher
from tutelage.objectives import BindContext
from tutelage.training.checkpoints import Checkpoints, CheckpointSink
from tutelage.training.distributed import accelerator_on
from tutelage.training.evaluate import EvalSet, NonFiniteError
from tutelage.training.generators import RngState
from tutelage.training.isolation import Isolation
from tutelage.training.job import FitJob
from tutelage.training.lockstep import Lockstep
from tutelage.training.loop import fit
from tutelage.types import Outputs

CPU = torch.device("cpu")
IMAGES = {"count": 40, "shape": (2, 8, 8)}


class Drawing(Moving):
    """A student that draws from all three generators while it trains."""

    def forward(self, x):
        scale = 1 + 0.1 * (random.random() + np.random.rand()) if self.training else 1.0
        return super().forward(x) * scale


class Writing(nn.Module):
    """A student that writes into its inputs."""

    def __init__(self):
        super().__init__()
        self.body = mlp(128)

    def forward(self, x):
        return self.body(x.mul_(0.5).flatten(1))


class Counting(nn.Module):
    """A teacher that counts how often it is asked."""

    def __init__(self, network):
        super().__init__()
        self.network, self.asked = network, 0

    def __call__(self, batch):
        self.asked += 1
        return FrozenTeacher(self.network, ("deeper", "norm"))(batch)


class Case:
    """What one student is made of, anew each time."""

    def __init__(self, make, objective, seed, **changes):
        self.make, self.objective, self.seed, self.changes = make, objective, seed, changes

    def distiller(self):
        random.seed(self.seed)
        np.random.seed(self.seed)
        torch.manual_seed(self.seed)
        context = BindContext(
            samples=40, classes=4, student_shapes={"deeper": (5, 3, 3)}, teacher_shapes={"deeper": (5, 3, 3)}
        )
        return Distiller(self.make(), self.objective, context)

    def keep(self, folder):
        return CheckpointSink(Checkpoints(folder / "checkpoints"), folder / "best.safetensors", {}) if folder else None

    def settings(self, **shared):
        return settings(**{**self.changes, **shared})

    @property
    def asks(self):
        return self.objective.needs.teacher


def hint():
    return objectives.fitnet(weight=1.0, student_tap="deeper", teacher_tap="deeper") + objectives.kd(temperature=2.0)


def quiet(width=8):
    """A student that draws no random numbers, as wide as that."""
    return nn.Sequential(nn.Flatten(), nn.Linear(128, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 4))


SIDE_BY_SIDE = 1


@pytest.fixture(autouse=True, params=[1, 3], ids=["in turn", "side by side"])
def _side_by_side(request, monkeypatch):
    """Run everything here in turn, and with up to three students at a time."""
    monkeypatch.setattr(f"{__name__}.SIDE_BY_SIDE", request.param)


@pytest.fixture
def _interruptible():
    """Let Ctrl-C interrupt, also where the tests run in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


abreast = pytest.mark.parametrize("_side_by_side", [3], indirect=True, ids=["side by side"])


CASES = [
    Case(Drawing, objectives.kd(temperature=2.0), 1),
    Case(Moving, objectives.wttm(gamma=0.5, beta=1.0), 2, clip=0.5),
    Case(Moving, hint(), 3),
    Case(Moving, objectives.cross_entropy(), 4),
]


def batches(**changes):
    return Rows(*samples(**IMAGES), batch_size=8, shuffle=True, **changes)


def held_out():
    inputs, labels = samples(**IMAGES | {"count": 20}, seed=7)
    return [EvalSet("test", Rows(inputs, labels, batch_size=10))]


def teacher():
    return Counting(seeded(Moving, 9))


def alone(case, *, folder=None, rows=None, resume=False, **shared):
    network = FrozenTeacher(teacher().network, case.objective.needs.teacher_taps) if case.asks else None
    distiller, keep = case.distiller(), case.keep(folder)  # last: the fit goes on with its generators
    history = fit(
        distiller,
        network,
        rows or batches(),
        case.settings(**shared),
        accelerator=accelerator_on("cpu"),
        held_out=held_out(),
        keep=keep,
        resume=keep.checkpoints.load() if resume else None,
    )
    return distiller, history


def lockstep_of(jobs, asked=None, *, chances=None, results=None):
    """Students in lockstep; what each comes to is appended to ``results`` with its number, an error as it happens."""
    results = [] if results is None else results
    isolation = Isolation(on_error=lambda k, error: results.append((k, error)))
    isolation.generators = dict(enumerate(chances or [RngState(CPU) for _ in jobs]))
    jobs = dict(enumerate(jobs))
    return Lockstep(
        jobs,
        asked or teacher(),
        batches(),
        accelerator=accelerator_on("cpu"),
        isolation=isolation,
        side_by_side=SIDE_BY_SIDE,
    )


def results_of(jobs, asked=None, *, chances=None):
    results = []
    for k, record in lockstep_of(jobs, asked, chances=chances, results=results).run():
        results.append((k, record))
    return results


def together(cases, *, folders=None, resume=False, asked=None, **shared):
    jobs, chances = [], []
    for case, folder in zip(cases, folders or [None] * len(cases), strict=True):
        chance, keep = RngState(CPU), case.keep(folder)
        with chance:
            distiller = case.distiller()
        saved = keep.checkpoints.load() if resume else None
        jobs.append(
            FitJob(
                distiller=distiller,
                settings=case.settings(**shared),
                uses_teacher=case.asks,
                held_out=held_out(),
                keep=keep,
                resume=saved,
            )
        )
        chances.append(chance)
    histories = [[] for _ in cases]
    for k, record in results_of(jobs, asked, chances=chances):
        histories[k].append(record)
    return [job.distiller for job in jobs], histories


def assert_alike(distillers, histories, cases, **shared):
    for case, distiller, records in zip(cases, distillers, histories, strict=True):
        single, expected = alone(case, **shared)
        assert untimed(records) == untimed(list(expected))
        assert same_bits(state(distiller), state(single))


@pytest.mark.parametrize("shared", [{}, {"accumulate": 2}, {"precision": "bf16"}], ids=str)
def test_each_ends_in_the_bits_of_one_alone(shared):
    distillers, histories = together(CASES, **shared)
    assert_alike(distillers, histories, CASES, **shared)


QUIET = [
    Case(partial(quiet, 8), objectives.kd(temperature=2.0), 1),
    CASES[0],
    Case(partial(quiet, 30), objectives.wttm(gamma=0.5, beta=1.0), 2, clip=0.5),
    Case(lambda: nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(180, 4)), objectives.kd(), 3),
    CASES[1],
    Case(Writing, objectives.cross_entropy(), 4),
]
"""Students of unlike architectures, of which four draw nothing."""


@pytest.mark.parametrize("shared", [{}, {"accumulate": 2}, {"precision": "bf16"}], ids=str)
def test_unlike_students_end_in_the_bits_of_one_alone(shared):
    cases = QUIET[:-1]  # What is left of its inputs is the last one's own.
    distillers, histories = together(QUIET, **shared)
    assert_alike(distillers[:-1], histories[:-1], cases, **shared)


class Meeting(nn.Module):
    """A student that waits for another one in each training step but the first two, and draws in some of them."""

    def __init__(self, barrier, *, draws_in=(), forks=False):
        super().__init__()
        self.body, self.barrier, self.step, self.draws_in, self.forks = quiet(), barrier, 0, draws_in, forks

    def forward(self, x):
        if self.training:
            self.step += 1
            if self.step > 2:
                self.barrier.wait(20)
            if self.forks:
                with torch.random.fork_rng():
                    torch.manual_seed(self.step)
                    x = x + 0.1 * torch.rand_like(x)
            if self.step in self.draws_in:
                torch.rand(1)
        return self.body(x)


@abreast
def test_steps_are_taken_at_the_same_time_and_saved_when_due(tmp_path):
    barrier = threading.Barrier(2)
    cases = [Case(lambda: Meeting(barrier), objectives.cross_entropy(), k) for k in range(2)]
    folders = [tmp_path / str(k) for k in range(2)]
    _, histories = together(cases, folders=folders, checkpoint_steps=2)
    assert [len(history) for history in histories] == [2, 2]
    # Each drew the same numbers as alone: none since its weights were made.
    states = [case.keep(folder).checkpoints.load() for case, folder in zip(cases, folders, strict=True)]
    for case, saved in zip(cases, states, strict=True):
        case.distiller()
        assert torch.equal(saved.tensors["rng.cpu"], torch.get_rng_state())


@abreast
@pytest.mark.usefixtures("_interruptible")
@pytest.mark.parametrize("stopped", [False, True])
def test_a_student_that_draws_only_later_is_noticed_and_not_saved(stopped, tmp_path):
    class Stopping(Meeting):
        def forward(self, x):
            if stopped and self.training and self.step == 3:
                signal.raise_signal(signal.SIGINT)
            return super().forward(x)

    barrier = threading.Barrier(2)
    cases = [
        Case(lambda: Stopping(barrier), objectives.cross_entropy(), 0),
        Case(lambda: Meeting(barrier, draws_in={4}), objectives.cross_entropy(), 1),
    ]
    folders = [tmp_path / str(k) for k in range(2)]
    error = KeyboardInterrupt if stopped else RunError
    with pytest.raises(error, match=None if stopped else "random numbers from the first step on.*type together=1"):
        together(cases, folders=folders)
    assert not any(case.keep(folder).checkpoints.load() for case, folder in zip(cases, folders, strict=True))


@abreast
def test_students_that_seed_the_generators_for_a_while_take_their_steps_alone():
    cases = [Case(lambda: Meeting(threading.Barrier(1), forks=True), objectives.cross_entropy(), k) for k in range(2)]
    distillers, histories = together(cases)
    assert_alike(distillers, histories, cases)
    lockstep = lockstep_of(
        [FitJob(distiller=case.distiller(), settings=settings(), uses_teacher=False) for case in cases]
    )
    list(lockstep.run())
    assert lockstep._draws == {0: [False, True], 1: [False, True]}


@abreast
def test_a_student_that_draws_in_the_first_step_may_leave_it_off_for_a_while():
    barrier = threading.Barrier(1)
    cases = [Case(lambda: Meeting(barrier, draws_in={1, 4}), objectives.cross_entropy(), k) for k in range(2)]
    distillers, histories = together(cases)
    assert_alike(distillers, histories, cases)


@abreast
@pytest.mark.usefixtures("_interruptible")
def test_an_interruption_waits_for_steps_side_by_side_and_leaves_none_unsaved(tmp_path):

    class Interrupting(Meeting):
        def forward(self, x):
            if self.training and self.step == 3:
                signal.raise_signal(signal.SIGINT)
                time.sleep(0.2)
            return super().forward(x)

    barrier = threading.Barrier(2)
    cases = [
        Case(lambda: Interrupting(barrier), objectives.cross_entropy(), 0),
        Case(lambda: Meeting(barrier), objectives.cross_entropy(), 1),
    ]
    folders = [tmp_path / str(k) for k in range(2)]
    with pytest.raises(KeyboardInterrupt):
        together(cases, folders=folders)
    for case, folder in zip(cases, folders, strict=True):
        assert case.keep(folder).checkpoints.load().state["step"] == 4
    quiet_cases = [Case(lambda: Meeting(barrier), objectives.cross_entropy(), k) for k in range(2)]
    resumed, _ = together(quiet_cases, folders=folders, resume=True)
    whole, _ = together(quiet_cases)
    assert all(same_bits(state(one), state(other)) for one, other in zip(resumed, whole, strict=True))


def test_without_generators_of_their_own_they_would_not(monkeypatch):
    monkeypatch.setattr(RngState, "__enter__", lambda self: self)
    distillers, _ = together(CASES)
    single, history = alone(CASES[0])
    list(history)
    assert not same_bits(state(distillers[0]), state(single))


def test_the_teacher_is_asked_once_about_a_batch():
    asked = teacher()
    together(CASES, asked=asked)
    assert asked.asked == 2 * 5


def test_where_no_one_asks_the_teacher_is_left_alone():
    asked = teacher()
    together(CASES[-1:] * 2, asked=asked)
    assert asked.asked == 0


def test_a_student_gets_its_own_features_alone():
    tap_names = []

    class Hears(Counting):
        def __call__(self, batch):
            outputs = super().__call__(batch)
            tap_names.append(set(outputs.taps))
            return outputs

    jobs = [FitJob(distiller=case.distiller(), settings=settings(), uses_teacher=case.asks) for case in CASES[:3]]
    seen = [set() for _ in jobs]
    for job, mine in zip(jobs, seen, strict=True):
        plain = job.distiller.forward
        job.distiller.forward = lambda b, t, p, n, plain=plain, mine=mine: (mine.update(t.taps), plain(b, t, p, n))[1]
    results_of(jobs, Hears(seeded(Moving, 9)))
    assert tap_names[0] == {"deeper", "norm"}
    assert seen == [set(), set(), {"deeper"}]


STOPS = [(0, 3), (1, 2), (1, 4)]


def test_those_that_stopped_at_different_steps_go_on_to_the_same_bits(tmp_path):
    folders = [tmp_path / str(k) for k in range(len(CASES))]
    for case, folder, stop in zip(CASES, folders, STOPS, strict=False):
        with pytest.raises(KeyboardInterrupt):
            list(alone(case, folder=folder, rows=batches(stop_before=stop), checkpoint_steps=1)[1])
    list(alone(CASES[3], folder=folders[3], checkpoint_steps=1)[1])  # this one is done
    distillers, histories = together(CASES, folders=folders, resume=True, checkpoint_steps=1)
    assert [len(history) for history in histories] == [2, 1, 1, 0]
    for case, distiller, records, folder in zip(CASES, distillers, histories, folders, strict=True):
        single, expected = alone(case, checkpoint_steps=1)
        whole = untimed(list(expected))
        assert untimed(records) == whole[len(whole) - len(records) :]
        assert same_bits(state(distiller), state(single))
        assert untimed(case.keep(folder).checkpoints.load().state["history"]) == whole


class Fails(nn.Module):
    """A student that gives up in its n-th training step."""

    def __init__(self, steps, error):
        super().__init__()
        self.body, self.left, self.error = mlp(128), steps, error

    def forward(self, x):
        if self.training:
            self.left -= 1
            if self.left < 0:
                raise self.error
        return self.body(x.flatten(1))


def test_what_fails_fails_alone():
    failing = [
        Case(lambda: Fails(7, RuntimeError("no more")), objectives.kd(temperature=2.0), 5),
        Case(lambda: Writing(), objectives.kd(temperature=2.0), 6, optimizer=settings().optimizer.__class__(lr=1e30)),
    ]
    cases = [failing[0], *CASES, failing[1]]
    distillers, histories = together(cases)
    assert [type(record) for record in histories[0]] == [dict, RuntimeError]
    assert [type(record) for record in histories[-1]] == [NonFiniteError]
    assert_alike(distillers[1:-1], histories[1:-1], CASES)


def test_where_all_fail_it_ends():
    cases = [Case(lambda: Fails(2, RuntimeError("no more")), objectives.cross_entropy(), k) for k in range(2)]
    _, histories = together(cases)
    assert [[type(record) for record in each] for each in histories] == [[RuntimeError]] * 2


def test_those_ahead_of_the_ones_that_failed_go_on_from_where_they_are(tmp_path):
    folder = tmp_path / "ahead"
    with pytest.raises(KeyboardInterrupt):
        list(alone(CASES[0], folder=folder, rows=batches(stop_before=(0, 4)), checkpoint_steps=1)[1])
    fails = Case(lambda: Fails(1, RuntimeError("no more")), objectives.cross_entropy(), 5)
    chance, keep = RngState(CPU), CASES[0].keep(folder)
    with chance:
        distiller = CASES[0].distiller()
    jobs = [
        FitJob(
            distiller=distiller,
            settings=settings(),
            held_out=held_out(),
            keep=keep,
            resume=keep.checkpoints.load(),
        ),
        FitJob(distiller=fails.distiller(), settings=settings(), uses_teacher=False),
    ]
    results = results_of(jobs, chances=[chance, RngState(CPU)])
    assert [(k, type(record)) for k, record in results] == [(1, RuntimeError), (0, dict), (0, dict)]
    assert_alike([distiller], [[record for k, record in results if k == 0]], CASES[:1])


def test_an_interrupt_ends_all():
    cases = [Case(lambda: Fails(2, KeyboardInterrupt()), objectives.cross_entropy(), 0), CASES[0]]
    with pytest.raises(KeyboardInterrupt):
        together(cases)


def test_one_whose_record_cannot_be_kept_takes_no_further_step():
    def full():
        raise OSError("no space")

    jobs = [
        FitJob(distiller=case.distiller(), settings=settings(epochs=3), uses_teacher=case.asks) for case in CASES[:2]
    ]
    lockstep = lockstep_of(jobs)
    results = []
    for k, record in lockstep.run():
        results.append((k, record["epoch"]))
        if k == 0:
            lockstep.isolation.attempt(0, full)
    assert results == [(0, 1), (1, 1), (1, 2), (1, 3)]
    assert [str(error) for error in lockstep.isolation.errors.values()] == ["no space"]


def test_a_student_that_writes_into_its_inputs_does_so_for_itself():
    cases = [Case(Writing, objectives.cross_entropy(), 1), CASES[1], Case(Writing, objectives.cross_entropy(), 2)]
    distillers, histories = together(cases)
    assert_alike(distillers[1:2], histories[1:2], CASES[1:2])


def test_what_a_teacher_fails_with_is_everyones():
    class Breaks(Says):
        def __call__(self, batch):
            raise OSError("torn")

    with pytest.raises(OSError, match="torn"):
        together(CASES, asked=Breaks(None))


@pytest.mark.parametrize(
    ("name", "value"), [("epochs", 3), ("accumulate", 2), ("precision", "bf16"), ("channels_last", False)]
)
def test_settings_that_do_not_agree_are_refused(name, value):
    jobs = [
        FitJob(distiller=CASES[0].distiller(), settings=settings()),
        FitJob(distiller=CASES[1].distiller(), settings=settings(**{name: value})),
    ]
    with refused(InvalidValueError, name, got=value):
        lockstep_of(jobs, lambda batch: Outputs(batch.inputs))


def test_one_that_cannot_begin_an_epoch_ends_alone():
    class Refuses(Writing):
        def train(self, mode=True):
            if mode and getattr(self, "trained", False):
                raise RuntimeError("no more")
            self.trained = mode
            return super().train(mode)

    cases = [Case(Refuses, objectives.kd(temperature=2.0), 5), *CASES[:2]]
    distillers, histories = together(cases)
    assert isinstance(histories[0][-1], RuntimeError)
    assert_alike(distillers[1:], histories[1:], CASES[:2])


def test_a_resumed_group_computes_its_teacher_as_one_that_uses_it_did(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    cases, folders = [CASES[3], CASES[1]], [tmp_path / "labels", tmp_path / "teacher"]
    fast = {"compile_teacher": True, "compile_student": False, "gradient_products": False, "checkpoint_steps": 1}
    for case, folder in zip(cases, folders, strict=True):
        with pytest.raises(KeyboardInterrupt):
            list(alone(case, folder=folder, rows=batches(stop_before=(1, 1)), **fast)[1])
    plans = [case.keep(folder).checkpoints.load().state["speed"] for case, folder in zip(cases, folders, strict=True)]
    assert [plan["teacher_compiled"] for plan in plans] == [False, True]
    jobs = []
    for case, folder in zip(cases, folders, strict=True):
        saved = case.keep(folder).checkpoints.load()
        jobs.append(
            FitJob(distiller=case.distiller(), settings=case.settings(**fast), uses_teacher=case.asks, resume=saved)
        )
    lockstep = lockstep_of(jobs, FrozenTeacher(teacher().network))
    list(lockstep.run())
    assert lockstep.teacher.plan.teacher_compiled
