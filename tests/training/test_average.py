"""The average of a student's weights: what it is, what it is of, and that it is what is judged and kept."""

import math

import pytest
import safetensors.torch
import torch
from tests._helpers.captured_cases import capture_on_the_cpu, trained
from tests._helpers.fit_cases import Moving, Rows, fitted, mlp, same_bits, samples, seeded, settings, state, untimed
from tests._helpers.processes import Shares, processes
from tests._helpers.recorder import Unchanged
from tests._helpers.refusals import refused
from torch import nn

from tutelage import objectives
from tutelage.errors import InvalidValueError
from tutelage.modules import Distiller
from tutelage.settings.fit import EMA, SGD
from tutelage.training.average import Average, averaged
from tutelage.training.checkpoints import Checkpoints, CheckpointSink
from tutelage.training.distributed import accelerator_on
from tutelage.training.evaluate import EvalSet
from tutelage.training.graphs import CAPTURES
from tutelage.training.isolation import Isolation
from tutelage.training.job import FitJob
from tutelage.training.lockstep import Lockstep
from tutelage.training.loop import fit
from tutelage.training.state import check_restorable

IMAGES = {"count": 44, "shape": (2, 8, 8)}


class Broken(Rows):
    """Batches of which the third of the first epoch is not finite."""

    def epoch(self, epoch, **others):
        for step, batch in enumerate(super().epoch(epoch, **others), others.get("start", 0)):
            broken = batch.inputs * torch.nan if (epoch, step) == (0, 2) else batch.inputs
            yield batch._replace(inputs=broken)


def flat_mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(128, 4))


def rows(kind=Rows, **changes):
    return kind(*samples(**IMAGES), batch_size=8, shuffle=True, **changes)


def held_out():
    inputs, labels = samples(**IMAGES | {"count": 20}, seed=7)
    return [EvalSet("test", Rows(inputs, labels, batch_size=10))]


def fit_averaged(student, batches, *, folder=None, resume=False, objective=None, **changes):
    distiller = Distiller(student, objective or objectives.cross_entropy())
    keep = CheckpointSink(Checkpoints(folder / "checkpoints"), folder / "best.safetensors", {}) if folder else None
    how = settings(**{"ema": EMA(decay=0.9), **changes})
    checkpoint = keep.checkpoints.load(lambda saved: check_restorable(saved, distiller, how)) if resume else None
    accelerator = accelerator_on("cpu")
    return list(
        fit(distiller, None, batches, how, accelerator=accelerator, held_out=held_out(), keep=keep, resume=checkpoint)
    )


def by_hand(student, batches, how, *, fused):
    """Return the average over steps of plain SGD, which takes in each that is finite."""
    distiller, average = Distiller(student, objectives.cross_entropy()), state(student)
    optimizer, step = torch.optim.SGD(student.parameters(), lr=0.1, fused=fused), 0
    for epoch in range(2):
        for batch in batches.epoch(epoch):
            step += 1
            decay = min(how.decay, (1 + step) / (10 + step)) if how.warm_up else how.decay
            loss = distiller(batch).loss.total
            if loss.isfinite():
                loss.backward()
                optimizer.step()
                for name, value in student.state_dict().items():
                    average[name] += (1 - decay) * (value - average[name])
            optimizer.zero_grad()
    return average


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("how", [EMA(decay=0.5), EMA(decay=0.5, warm_up=False)])
def test_it_is_a_loop_by_hand_to_the_bit(how, fused, monkeypatch):
    """One of the steps is not finite: it is not applied, and leaves the average alone."""
    if fused:  # as on CUDA, where the host does not know it
        monkeypatch.setitem(CAPTURES, "cpu", None)
    batches, still = Broken(*samples(44), batch_size=8), SGD(lr=0.1, momentum=0.0, weight_decay=0.0)
    student = mlp()
    records = fitted(student, batches, ema=how, optimizer=still, nonfinite="skip", graphs=False)
    assert [record["skipped_steps"] for record in records] == [1, 0]
    assert same_bits(state(student), by_hand(mlp(), batches, how, fused=fused))


def test_the_decay_rises_to_its_value():
    ema = EMA(decay=0.999)
    assert ema.decay_at(1) == pytest.approx(2 / 11)
    assert ema.decay_at(8989) < 0.999 == ema.decay_at(8990) == ema.decay_at(10**6)
    assert EMA(decay=0.999, warm_up=False).decay_at(1) == 0.999


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1, math.nan, math.inf])
def test_a_decay_outside_0_and_1_is_refused(decay):
    with refused(InvalidValueError, "ema.decay", suggests="ema.decay=0.999"):
        EMA(decay=decay)


def test_what_is_judged_and_kept_is_the_average(tmp_path):
    """Of the records, of the best weights and of the student at the end; the checkpoint keeps both."""
    student = seeded(Moving)
    records = fit_averaged(student, rows(), folder=tmp_path)
    saved = Checkpoints(tmp_path / "checkpoints").load()
    average = {k.removeprefix("average."): v for k, v in saved.tensors.items() if k.startswith("average.")}
    trained_weights = {
        k.removeprefix("lesson.student."): v for k, v in saved.tensors.items() if k.startswith("lesson.student.")
    }
    own = state(student)
    counts = {"norm.num_batches_tracked"}
    assert average.keys() == own.keys() - counts
    assert same_bits(average, {name: own[name] for name in average})
    assert not any(torch.equal(average[name], trained_weights[name]) for name in average)
    assert own["norm.num_batches_tracked"] == trained_weights["norm.num_batches_tracked"] > 0
    # Without it the same steps are taken, and other weights are judged.
    plain = seeded(Moving)
    others = fit_averaged(plain, rows(), ema=None)
    assert [r["train"] for r in untimed(others)] == [r["train"] for r in untimed(records)]
    assert same_bits(state(plain), trained_weights)
    assert others[-1]["test"]["loss"] != records[-1]["test"]["loss"]
    student.eval()
    inputs, labels = samples(**IMAGES | {"count": 20}, seed=7)
    loss = nn.functional.cross_entropy(student(inputs), labels).item()
    assert records[-1]["test"]["loss"] == pytest.approx(loss, rel=1e-5)


def test_the_best_weights_are_the_averages(tmp_path):
    student = seeded(Moving)
    (record,) = fit_averaged(student, rows(), folder=tmp_path, epochs=1)
    assert record["test"]["accuracy"] is not None
    assert same_bits(safetensors.torch.load_file(tmp_path / "best.safetensors"), state(student))


@pytest.mark.parametrize("resumed", ["in an epoch", "after an evaluation"])
def test_it_is_resumed_to_the_bit(resumed, tmp_path):
    whole = seeded(Moving)
    expected = fit_averaged(whole, rows(), folder=tmp_path / "whole")
    stop = (1, 3) if resumed == "in an epoch" else (1, 0)
    with pytest.raises(KeyboardInterrupt):
        fit_averaged(seeded(Moving), rows(stop_before=stop), folder=tmp_path / "stopped")
    again = seeded(Moving, 5)
    records = fit_averaged(again, rows(), folder=tmp_path / "stopped", resume=True)
    assert same_bits(state(again), state(whole))
    assert untimed(records) == untimed(expected)[-len(records) :]
    best = [(tmp_path / each / "best.safetensors").read_bytes() for each in ("stopped", "whole")]
    assert best[0] == best[1]


def test_an_interrupted_evaluation_leaves_the_trained_weights(tmp_path):
    """They are saved, and resumed to the bit."""

    class Interrupting(Rows):
        def epoch(self, *args, **others):
            raise KeyboardInterrupt

    whole = seeded(Moving)
    fit_averaged(whole, rows(), folder=tmp_path / "whole")
    distiller = Distiller(seeded(Moving), objectives.cross_entropy())
    keep = CheckpointSink(Checkpoints(tmp_path / "checkpoints"), tmp_path / "best.safetensors", {})
    evaluation = [EvalSet("test", Interrupting(*samples(**IMAGES), batch_size=8))]
    how = settings(ema=EMA(decay=0.9))
    with pytest.raises(KeyboardInterrupt):
        list(fit(distiller, None, rows(), how, accelerator=accelerator_on("cpu"), held_out=evaluation, keep=keep))
    assert keep.checkpoints.load().state["step_in_epoch"] == 6
    again = seeded(Moving, 5)
    fit_averaged(again, rows(), folder=tmp_path, resume=True)
    assert same_bits(state(again), state(whole))


def test_a_checkpoint_without_it_is_refused(tmp_path):
    fitted(seeded(Moving), rows(), folder=tmp_path, epochs=1)
    saved = Checkpoints(tmp_path / "checkpoints").load()
    distiller = Distiller(seeded(Moving), objectives.cross_entropy())
    check_restorable(saved, distiller, settings())
    with pytest.raises(ValueError, match=r"no tensor average\."):
        check_restorable(saved, distiller, settings(ema=EMA()))


def test_students_in_lockstep_have_the_average_that_each_has_alone():
    """Beside one without."""
    changes = [{"ema": EMA(decay=0.9)}, {"ema": EMA(decay=0.5, warm_up=False)}, {"ema": None}]
    alone, students, jobs = [], [], {}
    for k, change in enumerate(changes):
        alone.append(seeded(flat_mlp, k))
        students.append(seeded(flat_mlp, k))
        fit_averaged(alone[-1], rows(), **change)
        distiller = Distiller(students[-1], objectives.cross_entropy())
        jobs[k] = FitJob(distiller=distiller, settings=settings(**change), uses_teacher=False, held_out=held_out())
    isolation = Isolation()
    list(Lockstep(jobs, None, rows(), accelerator=accelerator_on("cpu"), isolation=isolation).run())
    assert not isolation.errors
    for one, other in zip(alone, students, strict=True):
        assert same_bits(state(one), state(other))


class Parts(nn.Module):
    """What is averaged and what is not."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 3), nn.Linear(3, 3)
        self.tied = self.head.weight
        self.body.requires_grad_(False)
        self.register_buffer("statistic", torch.ones(2))
        self.register_buffer("mask", torch.full((2,), -math.inf))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("unsaved", torch.ones(1), persistent=False)
        self.register_buffer("absent", None)


def test_what_is_averaged():
    """What is trained, once, and statistics that are saved."""
    network = Parts()
    assert set(averaged(network)) == {"tied", "head.bias", "statistic"}
    average = Average(network.to(torch.bfloat16))
    assert {tensor.dtype for tensor in average.tensors.values()} == {torch.float32}
    assert Average(network.double()).tensors["tied"].dtype == torch.float64


def test_a_buffer_that_is_replaced_in_a_step_is_averaged():
    network = Parts()
    average = Average(network)
    network.statistic = torch.full((2,), 3.0)
    average.update(torch.tensor(0.5))
    assert average.tensors["statistic"].tolist() == [2.0, 2.0]
    own = average.lend()
    assert network.statistic.tolist() == [2.0, 2.0]
    average.take_back(own)
    assert network.statistic.tolist() == [3.0, 3.0]
    network.statistic = torch.ones(5)
    average.update(torch.tensor(0.5))
    assert average.tensors["statistic"].tolist() == [2.0, 2.0]


def test_replayed_steps_are_the_eager_ones(monkeypatch):
    """Among them one that is not applied; the decay changes from step to step."""
    capture_on_the_cpu(monkeypatch)
    with Unchanged():
        eager, _ = trained("cross_entropy", captured=False, ema=EMA(decay=0.9))
    replayed, operations = trained("cross_entropy", captured=True, ema=EMA(decay=0.9))
    assert sum(key.startswith("average") for key in eager) > 10
    assert not [key for key, value in eager.items() if not torch.equal(*map(torch.nan_to_num, (value, replayed[key])))]
    assert operations > 100


def test_it_is_not_kept_of_a_sharded_student():
    with refused(InvalidValueError, "shard", got="student", suggests="ema=null"):
        settings(ema=EMA(), shard="student")
    settings(ema=EMA(), shard="teacher")


def fit_share(rank, folder):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)).double()
    distiller = Distiller(student, objectives.cross_entropy())
    how = settings(ema=EMA(decay=0.9), precision="fp64")
    batches = (Shares if rank is not None else Rows)(*samples(28), batch_size=7)
    records = list(fit(distiller, None, batches, how, accelerator=accelerator_on("cpu"), held_out=of_rows()))
    torch.save((state(student), records[-1]["test"]["loss"]), folder / f"{rank}.pt")


def of_rows():
    return [EvalSet("test", Rows(*samples(20, seed=3), batch_size=10))]


@pytest.mark.slow
def test_two_processes_have_the_average_of_one(tmp_path):
    processes(2, fit_share, tmp_path)
    fit_share(None, tmp_path)
    wanted, loss = torch.load(tmp_path / "None.pt", weights_only=True)
    for rank in range(2):
        weights, own = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert own == pytest.approx(loss, rel=1e-6)
        for name, value in wanted.items():
            torch.testing.assert_close(weights[name], value, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("precision", ["fp16", "fp64"])
def test_it_is_resumed_in_every_precision(precision, tmp_path):
    how = {"precision": precision, "accumulate": 2, "channels_last": False}
    whole = seeded(Moving)
    fit_averaged(whole, rows(), folder=tmp_path / "whole", **how)
    with pytest.raises(KeyboardInterrupt):
        fit_averaged(seeded(Moving), rows(stop_before=(1, 3)), folder=tmp_path / "stopped", **how)
    again = seeded(Moving, 5)
    fit_averaged(again, rows(), folder=tmp_path / "stopped", resume=True, **how)
    assert same_bits(state(again), state(whole))
