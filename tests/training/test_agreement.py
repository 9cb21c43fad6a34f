"""Two processes act at the same step: they save, stop, resume and fail together; one that is left alone ends too."""

import os
import signal
import time

import pytest
import torch
from tests._helpers.fit_cases import mlp, same_bits, samples, seeded, settings, state, untimed
from tests._helpers.processes import Shares, two_processes
from torch import nn

from tutelage import launcher, objectives
from tutelage.interruption import Terminated, stop_on_signals
from tutelage.modules import Distiller
from tutelage.training import distributed
from tutelage.training.checkpoints import Checkpoints, CheckpointSink
from tutelage.training.deadline import Deadline, DeadlineExceeded, TimedBatches
from tutelage.training.distributed import ProcessError, accelerator_on
from tutelage.training.evaluate import NonFiniteError
from tutelage.training.isolation import Isolation
from tutelage.training.job import FitJob
from tutelage.training.lockstep import Lockstep
from tutelage.training.loop import fit

INPUTS, LABELS = samples(28)  # four steps an epoch, of 4 and 3 samples


def forgetful():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 4))


class Watched(Shares):
    """Does something before a step, in one process, and notes the samples of each step."""

    def __init__(self, inputs=INPUTS, *, before=None, rank=None, do=None):
        super().__init__(inputs, LABELS, batch_size=7, shuffle=True)
        self.before, self.rank, self.do, self.seen = before, rank, do, []

    def epoch(self, epoch, *, start=0, rank=0, world=1):
        batches = super().epoch(epoch, start=start, rank=rank, world=world)
        for step, batch in enumerate(batches, start):
            if (epoch, step) == self.before and rank == self.rank:
                self.do()
            self.seen.append(batch.index.tolist())
            yield batch


def trained(folder, rows, *, make=forgetful, resume=False, **changes):
    """Fit two epochs; return the records and the student's state."""
    accelerator = accelerator_on("cpu")
    student = seeded(make)
    torch.manual_seed(11 + accelerator.process_index)
    keep = CheckpointSink(Checkpoints(folder / "checkpoints"), folder / "best.safetensors", {})
    checkpoint = keep.checkpoints.load() if resume else None
    distiller = Distiller(student, objectives.cross_entropy())
    history = fit(distiller, None, rows, settings(**changes), accelerator=accelerator, keep=keep, resume=checkpoint)
    return untimed(history), state(student)


def caught(kind, *args, **changes):
    """Return the error of a fit, and the seconds until then."""
    began = time.monotonic()
    with pytest.raises(kind) as error:
        trained(*args, **changes)
    return error.value, time.monotonic() - began


def newest(folder):
    saved = Checkpoints(folder / "checkpoints").load()
    return saved and (saved.state["step"], saved.tensors["sums"].tolist())


def together(rank, folder):
    """What both processes do; each writes what came of it."""
    results = {}
    rows = Watched()
    results["whole"] = trained(folder / "whole", rows)
    results["seen"] = rows.seen
    for name, number, kind in (("ctrl-c", signal.SIGINT, KeyboardInterrupt), ("sigterm", signal.SIGTERM, Terminated)):
        with stop_on_signals(os._exit):
            rows = Watched(before=(0, 2), rank=1, do=lambda number=number: os.kill(os.getpid(), number))
            error, _ = caught(kind, folder / name, rows)
            results[name, "stopped"] = type(error) is kind, len(rows.seen), newest(folder / name)
        if name == "ctrl-c":
            results[name, "resumed"] = trained(folder / name, Watched(), resume=True)
    deadline = Deadline(0.5 if rank else 1e9, clock=lambda: float(len(rows.seen) > 5))
    rows = Watched()
    error, _ = caught(DeadlineExceeded, folder / "deadline", TimedBatches(rows, deadline))
    results["deadline", "stopped"] = error.what, len(rows.seen), newest(folder / "deadline")
    results["deadline", "resumed"] = trained(folder / "deadline", Watched(), resume=True)
    # Only the main process's clock says that it is time to save.
    for name, main, other in (("clock of the first", 0.0, 1e9), ("clock of the second", 1e9, 0.0)):
        rows = Watched(before=(0, 3), rank=0, do=lambda name=name: results.update({name: newest(folder / name)}))
        trained(folder / name, rows, epochs=1, checkpoint_seconds=other if rank else main)
    # One sample of the second process.
    spoilt = INPUTS.clone()
    spoilt[rows.seen[1][0] if rank else 0] = torch.nan
    rows = Watched(spoilt if rank else INPUTS)
    error, _ = caught(NonFiniteError, folder / "nan", rows, log_steps=1)
    results["nan"] = error.what, error.got, newest(folder / "nan")
    results["from one"] = trained(folder / "one", rows := Watched(), make=mlp, resume=True)
    results["from one", "seen"] = rows.seen
    rows = Watched(before=(0, 3), rank=0, do=lambda: os.kill(os.getpid(), signal.SIGINT))
    caught(KeyboardInterrupt, folder / "two", rows, make=mlp)
    torch.save(results, folder / f"{rank}.pt")
    rows = Watched(before=(1, 1), rank=1, do=lambda: os._exit(7))
    error, seconds = caught(ProcessError, folder / "killed", rows)
    torch.save((error.what, seconds, newest(folder / "killed")), folder / "killed.pt")
    os._exit(5)  # without a goodbye to the other


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    rows = Watched(before=(0, 3), rank=0, do=lambda: os.kill(os.getpid(), signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # A shell's background job ignores it.
    caught(KeyboardInterrupt, folder / "one", rows, make=mlp)  # Resumed by two.
    signal.signal(signal.SIGINT, before)
    codes, _ = two_processes(together, folder)
    assert codes == [5, 7]
    return folder, *(torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1))


def test_a_signal_to_one_stops_both_after_the_same_step(results):
    _, first, second = results
    for name in ("ctrl-c", "sigterm"):
        for result in (first, second):
            kind, steps, (saved, _) = result[name, "stopped"]
            assert kind
            assert steps == saved == 3  # the step that the signal came before


def test_a_deadline_of_one_stops_both_after_the_same_step(results):
    _, first, second = results
    assert first["deadline", "stopped"] == second["deadline", "stopped"]
    what, steps, (saved, _) = first["deadline", "stopped"]
    assert what == "step 3 of epoch 2"
    assert steps == saved == 6


@pytest.mark.parametrize("name", ["ctrl-c", "deadline"])
def test_both_resume_with_the_bits_of_those_that_were_not_stopped(results, name):
    """Dropout of each, and the sums of the epoch that was cut."""
    for result in results[1:]:
        records, whole = result["whole"]
        resumed, weights = result[name, "resumed"]
        assert same_bits(weights, whole)
        assert [record["train"] for record in resumed] == [record["train"] for record in records][-len(resumed) :]
        assert [record["samples_by_rank"] for record in records] == [[16, 12]] * 2
    assert results[1]["whole"][0] == results[2]["whole"][0]


def test_the_clock_of_the_first_process_says_when_to_save(results):
    _, first, _ = results
    assert first["clock of the first"][0] == 3
    assert first["clock of the second"] is None


def test_a_sample_that_is_not_finite_is_named_by_both(results):
    _, first, second = results
    assert first["nan"] == second["nan"]
    what, got, saved = first["nan"]
    assert what == "step 2 of stage 1"
    assert f"inputs: {second['seen'][1][0]}" in got
    assert saved is None


def test_another_number_of_processes_goes_on_with_the_same_samples(results):
    folder, first, second = results
    whole = trained(folder / "alone", rows := Watched(), make=mlp)
    resumed = trained(folder / "two", Watched(), make=mlp, resume=True)
    for records, weights in (resumed, first["from one"], second["from one"]):
        for name, value in whole[1].items():
            torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-6)
        for record, expected in zip(records, whole[0], strict=True):
            assert record["train"]["loss"] == pytest.approx(expected["train"]["loss"], rel=1e-5)
            assert record["train"]["samples"] == 28
    for mine, others, alone in zip(
        first["from one", "seen"],
        second["from one", "seen"],
        rows.seen[-len(second["from one", "seen"]) :],
        strict=True,
    ):
        assert sorted(mine + others) == sorted(alone)


def test_a_process_whose_peer_is_gone_ends_and_saves_nothing_more(results):
    folder, *_ = results
    what, seconds, saved = torch.load(folder / "killed.pt", weights_only=False)
    assert what == "process 0"
    assert seconds < 20
    assert saved[0] == 4  # that of the first epoch's end


# Several students


class Fails(nn.Module):
    """A student that fails in its third step: where its number is, or in all processes."""

    def __init__(self, rank=None):
        super().__init__()
        self.body, self.rank, self.calls = mlp(), rank, 0

    def forward(self, x):
        self.calls += self.training
        if self.calls == 3 and self.rank in (None, launcher.rank()):
            raise RuntimeError("a fault of its own")
        return self.body(x)


def side_by_side(folder, rows, *students):
    """Fit students in lockstep; return the numbers of epochs of each, its errors and where it is saved."""
    jobs = {}
    for k, student in enumerate(students):
        keep = CheckpointSink(Checkpoints(folder / str(k)), folder / f"{k}.safetensors", {})
        distiller = Distiller(student, objectives.cross_entropy())
        jobs[k] = FitJob(distiller=distiller, settings=settings(log_steps=1), uses_teacher=False, keep=keep)
    isolation, error, epochs = Isolation(), None, []
    try:
        epochs.extend(
            k for k, _ in Lockstep(jobs, None, rows, accelerator=accelerator_on("cpu"), isolation=isolation).run()
        )
    except (Exception, KeyboardInterrupt) as raised:  # noqa: BLE001
        error = raised
    saved = [(s := Checkpoints(folder / str(k)).load()) and s.state["step"] for k in jobs]
    return epochs, {k: str(e) for k, e in isolation.errors.items()}, type(error).__name__, saved


def several_students(rank, folder):
    accelerator_on("cpu")
    distributed.ALIKE = 2.0
    rows = Watched(before=(0, 2), rank=1, do=lambda: os.kill(os.getpid(), signal.SIGINT))
    stopped = side_by_side(folder / "stopped", rows, seeded(mlp, 1), seeded(mlp, 2))
    alike = side_by_side(folder / "alike", Watched(), seeded(mlp, 1), Fails())
    torch.save((stopped, alike), folder / f"{rank}.pt")
    apart = side_by_side(folder / "apart", Watched(), seeded(mlp, 1), Fails(rank=1))
    torch.save((stopped, alike, apart), folder / f"{rank}.pt")
    os._exit(0)


@pytest.mark.slow
def test_an_error_of_a_student_ends_it_in_all_processes_or_ends_all(tmp_path):
    codes, _ = two_processes(several_students, tmp_path)
    assert codes == [0, 0]
    for rank in range(2):
        stopped, alike, apart = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert stopped == ([], {}, "KeyboardInterrupt", [3, 3])
        epochs, errors, error, saved = alike
        assert (epochs, error, saved) == ([0, 0], "NoneType", [8, None])
        assert "a fault of its own" in errors[1]
        assert apart[:2] == ([], {})
        assert apart[2] == ("RuntimeError" if rank else "ProcessError")
