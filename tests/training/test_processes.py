"""A run of several processes is the run of one: where its objective gathers, and where it reads features alone."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from tests._helpers import ROOT
from tests._helpers.fit_cases import mlp, samples, settings, state
from tests._helpers.launching import free_port
from tests._helpers.processes import Shares, processes

from tutelage import losses, objectives
from tutelage.modules import Distiller, FrozenTeacher
from tutelage.objectives import Apply, Objective, WeightedTerm
from tutelage.training.distributed import ProcessError, accelerator_on
from tutelage.training.loop import fit


def spread(student_logits, teacher_logits):
    return (torch.cdist(student_logits, student_logits) - torch.cdist(teacher_logits, teacher_logits)).square().mean()


OBJECTIVES = {
    "gathered": (Objective.of(WeightedTerm("spread", 0.5, Apply(spread, coupled=True))) + objectives.kd()).gathered(),
    # The student's last layer gets no gradient.
    "of features alone": Objective.of(WeightedTerm("hint", 1.0, Apply(losses.hint, student_tap="0", teacher_tap="0"))),
}


def fit_student(name):
    """Fit four steps; the student, and the mean of each term."""
    torch.set_num_threads(1)
    inputs, labels = samples(28)
    objective = OBJECTIVES[name]
    distiller, teacher = Distiller(mlp(seed=0), objective), FrozenTeacher(mlp(seed=7), objective.needs.teacher_taps)
    rows = Shares(inputs, labels, batch_size=7)
    (record,) = fit(distiller, teacher, rows, settings(epochs=1), accelerator=accelerator_on("cpu"))
    return state(distiller), record["train"]["terms"], record["train"]["loss"]


def breaks_on_one(student_logits, labels):
    """Its value is infinite for samples of class 3, its gradient finite for all."""
    return student_logits.square().sum(-1) + torch.where(labels == 3, torch.inf, 0.0)


def fit_past_a_broken_loss():
    """Fit steps of 4 samples, of which the third has one of class 3, in the first process's share; skip it."""
    inputs, labels = samples(20)
    labels = torch.where(torch.arange(20) == 8, 3, labels % 3)
    objective = Objective.of(WeightedTerm("broken", 1.0, Apply(breaks_on_one)))
    distiller, rows = Distiller(mlp(seed=0), objective), Shares(inputs, labels, batch_size=4)
    how = settings(epochs=1, nonfinite="skip")
    (record,) = fit(distiller, None, rows, how, accelerator=accelerator_on("cpu"))
    return state(distiller), record["skipped_steps"]


def saved(rank, folder, name):
    torch.save((*fit_student(name), *fit_past_a_broken_loss()), folder / f"{rank}.pt")


@pytest.mark.slow  # In every change, `test_same_mathematics` has such a fit.
@pytest.mark.parametrize("name", ["gathered", "of features alone"])
def test_two_processes_train_and_record_what_one_does(name, tmp_path):
    processes(2, saved, tmp_path, name)
    wanted, means, loss = fit_student(name)
    kept, skipped = fit_past_a_broken_loss()
    assert skipped == 1
    for rank in range(2):
        weights, terms, total, after, count = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, value in wanted.items():
            torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(terms, means, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(total, loss, rtol=1e-5, atol=1e-7)
        # Whether a step counts is decided by all, and it is one step however many there are.
        assert count == skipped
        torch.testing.assert_close(after, kept, rtol=1e-4, atol=1e-6)


def destroyed(rank):
    accelerator_on("cpu")
    torch.distributed.destroy_process_group()
    with pytest.raises(ProcessError, match="it was destroyed; leave destroy_process_group"):
        accelerator_on("cpu")


@pytest.mark.slow
def test_processes_that_have_parted_are_not_taken_for_single_ones():
    processes(2, destroyed)


SCRIPT = """
import os, sys
import torch
from tutelage.training.distributed import accelerator_on

accelerator_on("cpu")
torch.distributed.barrier()
exchanged = torch.distributed.all_reduce(torch.ones(1 << 22), async_op=True)
if os.environ["RANK"] == "0":
    exchanged.wait()
del exchanged  # Now its thread has the last reference to the tensor.
{end}
"""


@pytest.mark.slow
@pytest.mark.parametrize(("end", "code"), [("", 0), ("raise ValueError", 1), ("sys.exit(3)", 3)])
def test_a_script_that_ends_while_tensors_are_given_up_is_not_aborted(end, code):
    """Without the group's end five of six are; a script that failed need not be spared it, but must not wait."""
    port = str(free_port())
    places = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT.format(end=end)],
            env=os.environ | places | {"RANK": rank, "LOCAL_RANK": rank, "PYTHONPATH": str(ROOT / "src")},
            stderr=subprocess.DEVNULL,
        )
        for rank in "01"
    ]
    try:
        codes = [process.wait(timeout=60) for process in started]
    finally:
        for process in started:
            process.kill()
    assert all(got in ({code} if code == 0 else {code, -signal.SIGABRT}) for got in codes)
