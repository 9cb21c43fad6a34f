"""Activation checkpointing: the same bits, buffers, draws and features as without it, and less kept for backward."""

import random

import numpy as np
import pytest
import torch
from tests._helpers.fit_cases import Rows, fitted, mlp, same_bits, samples, seeded, settings, state
from tests._helpers.refusals import refused
from torch import nn

from tutelage import losses, objectives
from tutelage.errors import InvalidValueError
from tutelage.modules import Distiller, FrozenTeacher
from tutelage.objectives import Apply, Objective, WeightedTerm
from tutelage.submodules import repeated_blocks
from tutelage.training.activations import recomputing
from tutelage.training.checkpoints import Checkpoints, CheckpointSink
from tutelage.training.compile import ComputePlan
from tutelage.training.distributed import accelerator_on
from tutelage.training.job import FitJob, FitState
from tutelage.training.loop import fit


class Block(nn.Module):
    """A block that draws from all generators in its forward pass, and reads a buffer that it writes."""

    def __init__(self, width):
        super().__init__()
        self.first = nn.Linear(width, 2 * width)
        self.norm = nn.BatchNorm1d(2 * width)
        self.drop = nn.Dropout(0.3)
        self.second = nn.Linear(2 * width, width)
        self.register_buffer("calls", torch.zeros(()))
        self.widths = []

    def forward(self, x, *, scale=1.0):
        self.calls += 1
        drawn = 1 + 0.1 * random.random() + 0.1 * np.random.rand()
        hidden = self.drop(self.norm(self.first(x * drawn / self.calls.item())).relu())
        self.widths.append(len(x))
        return x + scale * self.second(hidden)


class Deep(nn.Module):
    def __init__(self, width=6, classes=4):
        super().__init__()
        self.blocks = nn.ModuleList(Block(width) for _ in range(3))
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        for block in self.blocks:
            x = block(x, scale=0.5)
        return self.head(x)


class Twice(Deep):
    """Each block is called twice in a forward pass."""

    def forward(self, x):
        for block in (*self.blocks, *self.blocks):
            x = block(x)
        return self.head(x)


def trained(*, checkpoint, objective=None, make=Deep, **changes):
    student, teacher = seeded(make), None
    if objective is not None:
        teacher = FrozenTeacher(seeded(Deep, 5), objective.needs.teacher_taps)
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    rows = Rows(*samples(40), batch_size=16)
    records = fitted(student, rows, teacher=teacher, objective=objective, checkpoint_activations=checkpoint, **changes)
    return student, [record["train"]["loss"] for record in records]


TAPS = ("blocks.1.norm", "blocks.2:input")
OBJECTIVES = {
    "kd": objectives.kd(),
    "a feature inside a block, one between": objectives.kd()
    + Objective.of(
        *(WeightedTerm(f"hint{k}", 1.0, Apply(losses.hint, student_tap=t, teacher_tap=t)) for k, t in enumerate(TAPS))
    ),
    "a feature inside a block alone": Objective.of(
        WeightedTerm("hint", 1.0, Apply(losses.hint, student_tap=TAPS[0], teacher_tap=TAPS[0]))
    ),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_blocks_that_are_computed_again_train_to_the_same_bits(name):
    plain, means = trained(checkpoint=False, objective=OBJECTIVES[name], accumulate=2 if name == "kd" else 1)
    again, same = trained(checkpoint=True, objective=OBJECTIVES[name], accumulate=2 if name == "kd" else 1)
    assert same == means
    assert same_bits(state(again), state(plain))
    # Each block was computed twice as often in training; the last one's output is not used by the last objective.
    assert len(again.blocks[0].widths) > len(plain.blocks[0].widths)
    assert not any("forward" in block.__dict__ for block in again.blocks)


def test_blocks_that_are_called_twice_have_the_buffers_of_both_calls():
    plain, means = trained(checkpoint=False, make=Twice)
    again, same = trained(checkpoint=True, make=Twice)
    assert same == means
    assert same_bits(state(again), state(plain))


def test_a_skipped_step_restores_buffers_that_were_computed_again():
    inputs, labels = samples(40)
    inputs[20] = torch.nan
    outcomes = []
    for checkpoint in (False, True):
        student = seeded(Deep)
        random.seed(0), np.random.seed(0), torch.manual_seed(0)
        rows = Rows(inputs, labels, batch_size=16)
        outcomes.append((student, fitted(student, rows, checkpoint_activations=checkpoint, nonfinite="skip", epochs=1)))
    (plain, (first,)), (again, (second,)) = outcomes
    assert first["skipped_steps"] == second["skipped_steps"] == 1
    assert same_bits(state(again), state(plain))


def kept_for_backward(network, blocks):
    """The number of values that a forward pass keeps for the backward pass."""
    kept = 0

    def count(tensor):
        nonlocal kept
        kept += tensor.numel()
        return tensor

    inputs = torch.rand(64, 6)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor), recomputing(blocks):
        network(inputs)
    return kept


def test_blocks_keep_their_inputs_alone():
    network = seeded(Deep)
    plain = kept_for_backward(network, [])
    assert kept_for_backward(network, repeated_blocks(network)) < plain / 4


def test_nothing_is_computed_again_without_gradients():
    network = seeded(Deep).eval()
    with recomputing(network.blocks), torch.no_grad():
        network(torch.rand(2, 6))
    assert [len(block.widths) for block in network.blocks] == [1, 1, 1]


def test_a_network_without_blocks_is_refused():
    with refused(
        InvalidValueError, "checkpoint_activations", got="Sequential", suggests="checkpoint_activations=false"
    ):
        fitted(mlp(), Rows(*samples(8), batch_size=8), checkpoint_activations=True)


@pytest.mark.parametrize("form", ["compile_student", "gradient_products", "graphs"])
def test_forms_that_a_recomputation_would_not_have_are_refused(form):
    with refused(InvalidValueError, form, got="True", suggests=f"{form}=false"):
        settings(checkpoint_activations=True, **{form: True})


def test_forms_that_are_open_are_not_tried(monkeypatch, tmp_path):
    monkeypatch.setattr("tutelage.training.compile.FEW", 0)
    plans = []
    keep = CheckpointSink(Checkpoints(tmp_path), tmp_path / "best.safetensors", {}, plans.append)
    distiller, rows = Distiller(seeded(Deep), objectives.cross_entropy()), Rows(*samples(8), batch_size=8)
    how = settings(epochs=1, checkpoint_activations=True)
    list(fit(distiller, None, rows, how, accelerator=accelerator_on("cpu"), keep=keep))
    assert plans[0]["why"] == {"products": "switched off", "student": "switched off"}


def test_a_run_that_is_resumed_may_compute_its_blocks_again(tmp_path):
    """Its checkpoint's plan, such as a compiled student, is then not followed."""
    rows = Rows(*samples(40), batch_size=16)
    student = seeded(Deep)
    fitted(student, rows, folder=tmp_path, epochs=1)
    checkpoint = Checkpoints(tmp_path / "checkpoints").load()
    speed = ComputePlan(student_compiled=True, graph=True, samples=16, reasons={}).to_json()
    job = FitJob(
        distiller=Distiller(student, objectives.cross_entropy()),
        settings=settings(checkpoint_activations=True),
        resume=checkpoint._replace(state=checkpoint.state | {"speed": speed}),
    )
    plan = FitState(job, accelerator_on("cpu"), steps=3).plan
    assert (plan.student_compiled, plan.graph) == (False, False)
