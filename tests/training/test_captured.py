"""A captured step against the eager one: to the bit, by a recorder of operations in place of a CUDA graph."""

import itertools
import random
import re
import warnings
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests._helpers.captured_cases import PRESETS, batches, capture_on_the_cpu, preset_state, trained
from tests._helpers.fit_cases import Moving, Rows, fitted, mlp, same_bits, samples, seeded, settings, state, untimed
from tests._helpers.presets import OF_TOKENS, few_quickly
from tests._helpers.recorder import Late, Unchanged
from tests._helpers.refusals import refused
from torch import nn

from tutelage import objectives
from tutelage.modules import Distiller, FrozenTeacher
from tutelage.objectives import Apply, Objective, WeightedTerm
from tutelage.runs.resume import FREE
from tutelage.settings.fit import SGD, AdamW, Cosine
from tutelage.settings.weights import Linear
from tutelage.training import compile
from tutelage.training.captured import CapturedStep, reason_eager
from tutelage.training.checkpoints import Checkpoints, CheckpointSink
from tutelage.training.distributed import accelerator_on
from tutelage.training.generators import RngState
from tutelage.training.graphs import CAPTURES, CaptureError
from tutelage.training.isolation import Isolation
from tutelage.training.job import FitJob
from tutelage.training.lockstep import Lockstep
from tutelage.training.loop import fit
from tutelage.training.state import TrainState
from tutelage.types import Batch


@pytest.fixture(autouse=True)
def capturing(monkeypatch):
    capture_on_the_cpu(monkeypatch)


def assert_same_bits(name, **changes):
    with Unchanged():
        eager, _ = trained(name, captured=False, **changes)
    replayed, operations = trained(name, captured=True, **changes)
    differing = [key for key, value in eager.items() if not torch.equal(*map(torch.nan_to_num, (value, replayed[key])))]
    assert not differing
    assert operations > 100


@pytest.mark.parametrize("name", few_quickly(PRESETS))
def test_replayed_steps_are_the_eager_ones(name):
    """Of every preset; among the steps is one that is not applied."""
    assert_same_bits(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_TOKENS)
def test_replayed_steps_are_the_eager_ones_of_transformers(name):
    assert_same_bits(name)


@pytest.mark.parametrize("optimizer", [SGD(lr=0.1, momentum=0.0), SGD(lr=0.1, nesterov=True), AdamW(lr=0.01)])
@pytest.mark.parametrize("accumulate", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_replayed_steps_are_the_eager_ones_of_every_optimizer(optimizer, accumulate):
    assert_same_bits("kd", optimizer=optimizer, accumulate=accumulate)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_replayed_steps_are_the_eager_ones_in_mixed_precision(precision):
    assert_same_bits("kd", precision=precision)


CASES = {
    "sgd": {},
    "schedules": {"optimizer": AdamW(lr=0.01), "schedule": Cosine(warmup=0.5), "clip": 0.5},
    "skipped steps": {"nonfinite": "skip"},
    "accumulate": {"accumulate": 2},
    "losses at once": {"loss_form": "fused"},
    "compiled losses": {"loss_form": "compiled"},
}


class Mirrored(nn.Module):
    """A network that sees its inputs as in a mirror."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x.flip(-1))


class Views(Rows):
    """Each network's own view of a batch: the teacher's in a mirror."""

    def epoch(self, epoch, **others):
        for batch in super().epoch(epoch, **others):
            yield batch._replace(inputs={"student": batch.inputs, "teacher": batch.inputs.flip(-1)})


OBJECTIVE = objectives.wttm(gamma=0.5, beta=Linear(start=2.0, end=0.5))


def fit_of(case, *, graphs, folder=None, stop_before=None, resume=False, checkpoint_steps=2, views=False):
    """A student with batch norm and dropout, in batches of which the last is smaller; its records and its state."""
    inputs, labels = samples(44, shape=(2, 8, 8))
    if case == "skipped steps":
        inputs[5] = torch.nan
    rows = (Views if views else Rows)(inputs, labels, batch_size=8, shuffle=True, stop_before=stop_before)
    student, network = seeded(Moving), seeded(Moving, 1)
    teacher = FrozenTeacher(Mirrored(network) if views else network)
    torch.manual_seed(2), random.seed(2)
    records = fitted(
        student,
        rows,
        teacher=teacher,
        objective=OBJECTIVE,
        folder=folder,
        resume=resume,
        graphs=graphs,
        checkpoint_steps=checkpoint_steps,
        **CASES[case],
    )
    return untimed(records), state(student)


@pytest.mark.parametrize("case", CASES)
def test_a_fit_of_graphs_is_the_eager_fit(case, monkeypatch):
    """Records and weights; the choice leaves no trace, the last batch of an epoch has no graph."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    with Unchanged():
        eager = fit_of(case, graphs=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        captured = fit_of(case, graphs=True)
    assert captured[0] == eager[0]
    assert same_bits(captured[1], eager[1])


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("case", ["sgd", "accumulate", "skipped steps"])
def test_views_by_name_are_each_read_by_their_network(case, graphs):
    records, weights = fit_of(case, graphs=graphs, views=True)
    expected, others = fit_of(case, graphs=graphs)
    assert records == expected
    assert same_bits(weights, others)


def test_a_fit_of_graphs_resumes_with_the_same_bits(tmp_path):
    whole = fit_of("schedules", graphs=True)
    with pytest.raises(KeyboardInterrupt):
        fit_of("schedules", graphs=True, folder=tmp_path, stop_before=(1, 3))
    resumed = fit_of("schedules", graphs=True, folder=tmp_path, resume=True)
    assert resumed[0] == whole[0][1:]
    assert same_bits(resumed[1], whole[1])


def test_a_fit_that_resumes_before_a_small_batch_captures_whole_ones(tmp_path, monkeypatch):
    """A checkpoint before an epoch's last batch; the graphs of both are of this fit."""
    captured = []

    class Counted(CapturedStep):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            captured.append(self)

    monkeypatch.setattr("tutelage.training.job.CapturedStep", Counted)
    with pytest.raises(KeyboardInterrupt):
        fit_of("sgd", graphs=True, folder=tmp_path, stop_before=(0, 5), checkpoint_steps=5)
    captured.clear()
    resumed = fit_of("sgd", graphs=True, folder=tmp_path, resume=True)
    assert [step.samples for step in captured] == [4, 8]
    assert same_bits(resumed[1], fit_of("sgd", graphs=True)[1])


def test_a_fit_of_graphs_resumes_without_them(tmp_path):
    """As it is told to after a capture that was refused; another value on resume is no other run."""
    with pytest.raises(KeyboardInterrupt):
        fit_of("sgd", graphs=True, folder=tmp_path, stop_before=(1, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        records, _ = fit_of("sgd", graphs=False, folder=tmp_path, resume=True)
    assert len(records) == 1
    assert not Checkpoints(tmp_path / "checkpoints").load().state["speed"]["graph"]
    assert "graphs" in FREE


def test_a_graph_leaves_the_tensors_of_a_loader_alone():
    """Batches may be parts of a data set on the device, or always the same ones."""
    inputs, labels = samples()
    before, tensors = inputs.clone(), (torch.arange(48), inputs, labels)
    parts = [Batch(*each) for each in zip(*(tensor.split(16) for tensor in tensors), strict=True)]

    class Parts(Rows):
        def epoch(self, epoch, *, start=0, rank=0, world=1):
            yield from parts[start:]

    fitted(mlp(), Parts(inputs, labels, batch_size=16), graphs=True)
    assert torch.equal(inputs, before)
    assert torch.equal(torch.cat([part.index for part in parts]), torch.arange(48))


def lockstep(graphs, *, teacher=True, views=False):
    """Three students, of which the second fails in its ninth step."""

    class Failing(nn.Module):
        def __init__(self, student, calls):
            super().__init__()
            self.student, self.calls = student, calls

        def forward(self, x):
            self.calls -= 1
            if self.calls < 0:
                raise ValueError("no more")
            return self.student(x)

    isolation, jobs = Isolation(), {}
    for k in range(3):
        student = Failing(seeded(Moving, k), 1000 if k != 1 or graphs else 8)
        objective = objectives.kd() if teacher else objectives.cross_entropy()
        jobs[k] = FitJob(
            distiller=Distiller(student, objective),
            settings=settings(graphs=graphs, optimizer=SGD(lr=0.05 * (k + 1))),
            uses_teacher=teacher,
        )
        isolation.generators[k] = RngState(torch.device("cpu"))
        with isolation.generators[k]:
            torch.manual_seed(k)
    rows = (Views if views else Rows)(*samples(44, shape=(2, 8, 8)), batch_size=8)
    network = seeded(Moving, 9)
    frozen = FrozenTeacher(Mirrored(network) if views else network) if teacher else None
    group = Lockstep(jobs, frozen, rows, accelerator=accelerator_on("cpu"), isolation=isolation)
    records = {}
    for k, record in group.run():
        records.setdefault(k, []).append(*untimed([record]))
    return records, {k: state(job.distiller.student.student) for k, job in jobs.items()}, isolation.errors, group


@pytest.mark.parametrize("teacher", [True, False])
def test_students_in_lockstep_have_graphs_of_their_own(teacher, monkeypatch):
    """The recorder draws from the process's generators; a CUDA graph has those that it was captured with."""
    plain = Isolation.attempt_without_generators

    def drawing(self, k, work, *args):
        with self.generators[k]:
            return plain(self, k, work, *args)

    monkeypatch.setattr(Isolation, "attempt", drawing)
    monkeypatch.setattr(Isolation, "attempt_without_generators", drawing)
    with Unchanged():
        eager, weights, _, _ = lockstep(False, teacher=teacher)
    records, captured, errors, group = lockstep(True, teacher=teacher)
    assert not errors
    assert all(isinstance(each.step, CapturedStep) for each in group._states.values())
    for k in (0, 2):
        assert records[k] == eager[k]
        assert same_bits(captured[k], weights[k])
    if teacher:
        assert group._pass._graph.replays == 2 + 10  # held twice; two epochs of six steps, whose last is smaller


@pytest.mark.slow  # a student by itself does in every change
@pytest.mark.parametrize("graphs", [False, True])
def test_students_in_lockstep_read_their_view(graphs):
    records, weights, _, _ = lockstep(graphs, views=True)
    expected, others, _, _ = lockstep(graphs)
    assert records == expected
    for k in (0, 2):
        assert same_bits(weights[k], others[k])


def taught(teacher, graphs):
    """What students in lockstep weigh after three steps with a teacher."""
    isolation, jobs = Isolation(), {}
    for k in (0, 1):
        distiller = Distiller(mlp(seed=k), objectives.kd())
        jobs[k] = FitJob(distiller=distiller, settings=settings(graphs=graphs, epochs=1))
    rows = Rows(*samples(), batch_size=16)
    list(Lockstep(jobs, teacher, rows, accelerator=accelerator_on("cpu"), isolation=isolation).run())
    assert not isolation.errors
    return torch.cat([p.detach().flatten() for job in jobs.values() for p in job.distiller.parameters()])


def test_a_teachers_pass_that_python_changes_is_not_replayed():
    """As one of two teachers that take turns."""

    class InTurn:
        def __init__(self):
            self.calls, self.teachers = 0, [FrozenTeacher(mlp(seed=5)), FrozenTeacher(mlp(seed=6))]

        def __call__(self, batch):
            self.calls += 1
            return self.teachers[self.calls % 2](batch)

    with pytest.warns(UserWarning, match="got a teacher that is not captured: a replayed pass differs"):
        taught(InTurn(), True)


def test_a_teacher_may_write_into_its_inputs_while_its_pass_is_captured():
    class Writing(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = mlp(seed=5)

        def forward(self, x):
            return self.network(x.mul_(1.5))

    with Unchanged():
        eager = taught(FrozenTeacher(Writing()), False)
    assert torch.equal(taught(FrozenTeacher(Writing()), True), eager)


@pytest.mark.parametrize("stop_before", [None, (0, 5)])
def test_students_in_lockstep_keep_to_generators_of_their_own(stop_before, tmp_path):
    """Where a step is no replay, as an epoch's last and smaller one, and where a checkpoint is saved."""
    seeds = []

    class Seeds(nn.Sequential):
        def forward(self, x):
            if self.training and len(x) < 8:
                seeds.append(torch.initial_seed())
            return super().forward(x)

    isolation, jobs = Isolation(), {}
    for k in (0, 1):
        jobs[k] = FitJob(
            distiller=Distiller(Seeds(mlp()), objectives.cross_entropy()),
            settings=settings(graphs=True, checkpoint_steps=2, epochs=1),
            uses_teacher=False,
            keep=CheckpointSink(Checkpoints(tmp_path / str(k)), tmp_path / "best.safetensors", {}),
        )
        isolation.generators[k] = RngState(torch.device("cpu"))
        with isolation.generators[k]:
            torch.manual_seed(k)
    rows = Rows(*samples(44), batch_size=8, stop_before=stop_before)
    group = Lockstep(jobs, None, rows, accelerator=accelerator_on("cpu"), isolation=isolation)
    with pytest.raises(KeyboardInterrupt) if stop_before else nullcontext():
        list(group.run())
    assert seeds == ([] if stop_before else [0, 1])
    for k, job in jobs.items():
        saved = job.keep.checkpoints.load()
        assert saved.state["step"] == (stop_before[1] if stop_before else 6)
        assert torch.equal(saved.tensors["rng.cpu"], torch.Generator().manual_seed(k).get_state())


def host_read(student_logits):
    """A loss that is another one after its first calls, as Python sees it."""
    host_read.calls += 1
    return student_logits.square().mean(-1) * host_read.calls


def python_state():
    host_read.calls = 0
    return Objective.of(WeightedTerm("python", 1.0, Apply(host_read)))


def progress_read():
    class Reads(nn.Module):
        needs = Apply(host_read).needs

        def forward(self, student, teacher, batch, progress):
            return student.logits.square().mean(-1) * (1 + 10 * float(progress.fraction))

    class Described:
        needs, target_gamma = Reads.needs, None

        def bind(self, context):
            return Reads()

    return Objective.of(WeightedTerm("reads", 1.0, Described()))


@pytest.mark.parametrize("planted", [python_state, progress_read])
def test_a_step_that_python_changes_is_not_replayed(planted):
    """It is computed eagerly, with one line that says why, and with the values that it has without graphs."""
    records = []
    for graphs in (False, True):
        rows = Rows(*samples(), batch_size=16)
        caught = warnings.catch_warnings(record=True)
        with caught as seen:
            warnings.simplefilter("always")
            fitted(mlp(), rows, objective=planted(), graphs=graphs, epochs=1)
        records.append([str(warning.message) for warning in seen])
    assert records[0] == []
    assert len(records[1]) == 1
    assert records[1][0].startswith("graphs: expected to capture a step, got not captured: a replayed step differs")


class Keeping(nn.Module):
    """A loss that subtracts a moving average of logits, which is an attribute and moves little."""

    needs = Apply(host_read).needs

    def __init__(self):
        super().__init__()
        self.average = torch.zeros(4)

    def forward(self, student, teacher, batch, progress):
        self.average = 0.999 * self.average + 0.001 * student.logits.detach().mean(0)
        return (student.logits - self.average).square().mean(-1)


class Drawing(nn.Module):
    """A loss of a random number that the host draws."""

    needs = Apply(host_read).needs

    def __init__(self, draw):
        super().__init__()
        self.draw = draw

    def forward(self, student, teacher, batch, progress):
        return student.logits.square().mean(-1) * self.draw()


class Unread(nn.Module):
    """A loss that keeps a table from its first call on, and what it computed last."""

    needs = Apply(host_read).needs
    table = last = None

    def forward(self, student, teacher, batch, progress):
        self.table = torch.arange(4.0) if self.table is None else self.table
        self.last = student.logits.square() * self.table
        return self.last.mean(-1)


@pytest.mark.parametrize(
    ("term", "reason"),
    [
        (
            Keeping,
            r"not captured: tensors that one step makes and the next one reads.* aten::mul.Tensor, .*test_captured",
        ),
        (lambda: Drawing(random.random), "not captured: random numbers that are drawn on the host"),
        (lambda: Drawing(np.random.rand), "not captured: random numbers that are drawn on the host"),
        (Unread, None),
    ],
)
def test_what_python_keeps_or_draws_is_found_before_a_capture(term, reason):
    """Replays agree with eager steps from the same state: a number that is drawn once is then the same."""
    with pytest.warns(UserWarning, match=reason) if reason else nullcontext():
        fitted(mlp(), Rows(*samples(), batch_size=16), objective=Objective.of(bound(term())), graphs=True, epochs=1)


@pytest.mark.parametrize(
    ("precision", "value", "reason"),
    [
        ("fp32", torch.nan, "a first step that is not finite"),
        ("fp16", 0.5, "a replayed step differs"),  # though the first steps overflow
        ("fp16", torch.nan, "a first step that is not finite"),
    ],
)
def test_first_steps_that_are_not_applied_show_nothing(precision, value, reason):
    inputs, labels = samples()
    inputs[0] = value
    loud = 1e4 * python_state() if precision == "fp16" else python_state()
    rows = Rows(inputs, labels, batch_size=16)
    with pytest.warns(UserWarning, match=f"got not captured: {reason}"):
        fitted(mlp(), rows, objective=loud, graphs=True, epochs=1, precision=precision, nonfinite="skip")


class Making(nn.Module):
    """A network that makes and replaces buffers in its steps."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 4)
        self.register_buffer("mask", None, persistent=False)
        self.register_buffer("last", torch.zeros(0), persistent=False)

    def forward(self, x):
        self.mask = torch.ones(6) if self.mask is None else self.mask
        self.last = x.detach().mean(1)
        return self.layer(x * self.mask)


def test_a_step_is_captured_though_its_first_makes_buffers():
    training = TrainState(Distiller(Making(), objectives.cross_entropy()).train(), settings(), accelerator_on("cpu"))
    training.now.set(0.1, 0.0)
    inputs, labels = samples(8)
    step = CapturedStep(training, Batch(torch.arange(8), inputs, labels), None)
    step(training, Batch(torch.arange(8), 2 * inputs, labels), None)
    torch.testing.assert_close(training.distiller.student.last, 2 * inputs.mean(1))


def bound(term):
    """Return a weighted term that binds to this module."""
    return WeightedTerm("own", 1.0, SimpleNamespace(needs=term.needs, target_gamma=None, bind=lambda context: term))


def test_a_step_that_is_not_captured_is_told_of_where_nobody_asked_for_graphs(monkeypatch):
    monkeypatch.setattr(compile, "FEW", 1)
    monkeypatch.setitem(compile.COSTS, "graph", 0.0)
    with pytest.warns(
        UserWarning, match=r"graphs: expected to capture a step, got not captured: a replayed step differs"
    ):
        fitted(mlp(), Rows(*samples(), batch_size=16), objective=python_state(), epochs=1, compile_student=False)


@pytest.mark.parametrize(("products", "said"), [(True, "products|faster"), ("auto", "not tried where steps")])
def test_products_are_taken_beside_a_graph_where_they_are_asked_for(tmp_path, products, said):
    distiller, plans = Distiller(seeded(Moving), objectives.cross_entropy()), []
    sink = CheckpointSink(Checkpoints(tmp_path / "c"), tmp_path / "best", {}, plans.append)
    rows = Rows(*samples(16, shape=(2, 8, 8)), batch_size=8)
    chosen = settings(graphs=True, gradient_products=products, epochs=1)
    list(fit(distiller, None, rows, chosen, accelerator=accelerator_on("cpu"), keep=sink))
    assert plans[0]["graph"]
    assert re.search(said, plans[0]["why"]["products"])


def test_a_refused_capture_says_what_to_type(monkeypatch):
    def refuse(work, device, *, apart=False):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setitem(CAPTURES, "cpu", refuse)
    with refused(CaptureError, "graphs", suggests="graphs=false"):
        fitted(mlp(), Rows(*samples(), batch_size=16), graphs=True)


@pytest.mark.slow  # each step by itself leaves it so in every change
@pytest.mark.parametrize("apart", [False, True])
def test_measuring_and_capturing_leave_everything_as_it_was(apart, monkeypatch):
    """On a stream of its own too, where a replay that is not joined is compared too early and done too late."""
    monkeypatch.setitem(CAPTURES, "cpu", Late)
    training, teacher, side = preset_state("crd")
    batch = next(batches(side, spoilt=None))
    training.now.set(0.1, 0.25)
    tensors = [*itertools.chain(*training.lasting().values()), batch.inputs, *training.now.progress[:3]]
    before = [tensor.clone() for tensor in tensors]
    drawn = torch.get_rng_state()
    CapturedStep(training, batch, teacher, apart=apart).join()
    for one, other in zip(before, tensors, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(parameter.grad is None for parameter in training.parameters)


def test_why_steps_are_eager(monkeypatch):
    training, _, _ = preset_state("kd")
    assert reason_eager(training) is None
    monkeypatch.delitem(CAPTURES, "cpu")
    assert reason_eager(training) == "no CUDA device"
    with pytest.warns(UserWarning, match=r"graphs: expected to capture a step, got no CUDA device; it is computed"):
        fitted(mlp(), Rows(*samples(), batch_size=16), graphs=True, epochs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted(mlp(), Rows(*samples(), batch_size=16), epochs=1)
