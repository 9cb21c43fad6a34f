import copy
import gc
import itertools
import math
import random
import subprocess
import sys
import warnings
import weakref

import numpy as np
import pytest
import safetensors.torch
import torch
from scipy.special import log_softmax
from scipy.stats import entropy
from tests._helpers import ROOT
from tests._helpers.fit_cases import (
    Moving,
    Rows,
    Says,
    fitted,
    mlp,
    same_bits,
    samples,
    seeded,
    settings,
    state,
    untimed,
)
from tests._helpers.refusals import refused
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from tutelage import models, objectives, records
from tutelage.errors import InvalidTypeError, InvalidValueError
from tutelage.modules import Distiller, FrozenTeacher
from tutelage.objectives import Apply, Objective, WeightedTerm
from tutelage.settings.fit import SGD, AdamW, Cosine, MultiStep
from tutelage.training.checkpoints import CheckpointError, Checkpoints, CheckpointSink
from tutelage.training.compile import FEW
from tutelage.training.distributed import accelerator_on, require_device
from tutelage.training.evaluate import EvalSet, NonFiniteError
from tutelage.training.loop import fit
from tutelage.types import Batch

STILL = SGD(lr=1e-30, momentum=0.0, weight_decay=0.0)
"""Steps that change no float32 weight, so that an epoch's means are those of one network."""


# Records


def test_an_epochs_means_by_hand():
    """Three steps of 20, 20 and 8 samples, some without a label; every number from NumPy in float64."""
    inputs, labels = samples(48)
    labels[[0, 1, 2, 3, 30, 31]] = -100
    student, teacher_logits = mlp(), torch.randn(48, 4, generator=torch.Generator().manual_seed(9))
    objective = objectives.ttm(gamma=0.5, beta=3.0, supervised=2.0)
    (record,) = fitted(
        student,
        Rows(inputs, labels, batch_size=20),
        teacher=Says(teacher_logits),
        objective=objective,
        epochs=1,
        optimizer=STILL,
    )
    logq = log_softmax(student(inputs).detach().double().numpy(), axis=-1)
    log_target = log_softmax(0.5 * teacher_logits.double().numpy(), axis=-1)
    named, y = logq.argmax(-1), labels.numpy()
    kl = (np.exp(log_target) * (log_target - logq)).sum(-1)
    steps = [slice(0, 20), slice(20, 40), slice(40, 48)]
    ce = [-np.mean([logq[i, y[i]] for i in range(s.start, s.stop) if y[i] != -100]) for s in steps]
    train = record["train"]
    over_labelled = -np.mean([logq[i, y[i]] for i in range(48) if y[i] != -100])
    assert train["terms"] == pytest.approx({"ce": over_labelled, "ttm": kl.mean()}, rel=1e-5)
    # The loss is what was differentiated: each step's own mean, weighted by its samples.
    over_steps = (20 * ce[0] + 20 * ce[1] + 8 * ce[2]) / 48
    assert train["loss"] == pytest.approx(2 * over_steps + 3 * kl.mean(), rel=1e-5)
    assert train["accuracy"] == pytest.approx((named == y)[y != -100].mean())
    assert train["entropy"] == pytest.approx(entropy(np.exp(logq), axis=-1).mean(), rel=1e-5)
    assert train["kl_to_target"] == pytest.approx(kl.mean(), rel=1e-5)
    assert train["agreement"] == pytest.approx((named == teacher_logits.numpy().argmax(-1)).mean())
    assert train["samples"] == 48


def test_a_record_has_the_schemas_keys_and_counts():
    inputs, labels = samples(48)
    rows = Rows(inputs, labels, batch_size=10)
    distiller = Distiller(mlp(), objectives.cross_entropy())
    held = [EvalSet("validation", rows), EvalSet("test", rows)]
    history = list(fit(distiller, None, rows, settings(), accelerator=accelerator_on("cpu"), held_out=held, stage=3))
    assert [(r["stage"], r["epoch"], r["step"], r["skipped_steps"]) for r in history] == [(3, 1, 5, 0), (3, 2, 10, 0)]
    for record in history:
        assert record.keys() == records.Epoch.__annotations__.keys() - {"overflowed_steps", "samples_by_rank"}
        assert record["train"].keys() == records.TrainMeans.__annotations__.keys() - {"unlabelled"}
        for name in ("validation", "test"):
            of_text = records.TaskMeasures.__annotations__.keys()
            assert record[name].keys() == records.EvaluationMeans.__annotations__.keys() - of_text
            assert record[name]["set"] == name
        assert record["seconds"] > 0
        assert record["images_per_second"] > 0
        assert record["memory_mb"] is None or record["memory_mb"] > 1
        assert record["train"]["kl_to_target"] is None
        assert record["train"]["agreement"] is None
    assert history[0]["test"]["samples"] == 48


def test_a_held_out_set_is_evaluated_after_the_epoch():
    inputs, labels = samples(48)
    student, rows = mlp(), Rows(inputs, labels, batch_size=16)
    distiller = Distiller(student, objectives.cross_entropy())
    held = EvalSet("test", Rows(*samples(30, seed=5), batch_size=30))
    for record in fit(distiller, None, rows, settings(), accelerator=accelerator_on("cpu"), held_out=[held]):
        with torch.no_grad():
            named = student(held.batches.inputs).argmax(-1)
        assert record["test"]["accuracy"] == pytest.approx(float((named == held.batches.labels).double().mean()))
        assert record["validation"] is None


def test_soft_labels_are_learned_from():
    inputs, labels = samples(48)
    soft = nn.functional.one_hot(labels, 4).float() * 0.9 + 0.025
    student = mlp()
    (record,) = fitted(student, Rows(inputs, soft, batch_size=48), epochs=1, optimizer=STILL)
    logq = log_softmax(student(inputs).detach().double().numpy(), axis=-1)
    assert record["train"]["loss"] == pytest.approx(-(soft.numpy() * logq).sum(-1).mean(), rel=1e-5)
    assert record["train"]["accuracy"] == pytest.approx((logq.argmax(-1) == labels.numpy()).mean())


def test_multi_hot_labels_are_refused():
    inputs, labels = samples(48)
    hot = nn.functional.one_hot(labels, 4).float()
    with refused(InvalidValueError, "labels", got="sum 2"):
        fitted(mlp(), Rows(inputs, (hot + hot.roll(1, -1)), batch_size=48))
    held = EvalSet("test", Rows(inputs, hot, batch_size=48))
    distiller = Distiller(mlp(), objectives.cross_entropy())
    rows = Rows(inputs, labels, batch_size=48)
    with refused(InvalidTypeError, "labels", suggests="labels.argmax(-1)"):
        list(fit(distiller, None, rows, settings(), accelerator=accelerator_on("cpu"), held_out=[held]))


def test_without_labels_only_the_teacher_teaches():
    inputs, labels = samples(48)
    (record,) = fitted(
        mlp(),
        Rows(inputs, torch.full_like(labels, -100), batch_size=16),
        teacher=Says(torch.randn(48, 4)),
        objective=objectives.ttm(gamma=1.0, beta=1.0, supervised=0),
        epochs=1,
    )
    assert record["train"]["accuracy"] is None
    assert record["train"]["loss"] == pytest.approx(record["train"]["kl_to_target"], rel=1e-5)


def test_steps_enough_to_be_measured_need_no_teacher():
    inputs, labels = samples(210)
    distiller, rows = Distiller(mlp(), objectives.cross_entropy()), Rows(inputs, labels, batch_size=1)
    (record,) = fit(distiller, None, rows, settings(epochs=1), accelerator=accelerator_on("cpu"))
    assert record["step"] == 210 >= FEW
    assert record["train"]["agreement"] is None


def test_it_learns():
    inputs, labels = samples(200)
    history = fitted(mlp(), Rows(inputs, labels, batch_size=20, shuffle=True), epochs=15)
    assert history[0]["train"]["loss"] > 1.5 * history[-1]["train"]["loss"]
    assert history[-1]["train"]["accuracy"] > 0.8


# Rates, clipping, accumulation


def test_the_first_epoch_after_a_milestone_is_the_first_at_the_lower_rate():
    schedule = MultiStep(milestones=(2, 3), factor=0.1)
    history = fitted(mlp(), Rows(*samples(), batch_size=16), epochs=4, schedule=schedule)
    assert [(r["epoch"], round(r["learning_rate"], 9)) for r in history] == [(1, 0.1), (2, 0.1), (3, 0.01), (4, 0.001)]


def test_every_group_gets_every_steps_rate():
    rates = []
    hook = register_optimizer_step_pre_hook(
        lambda optimizer, *_: rates.append({g["lr"] for g in optimizer.param_groups})
    )
    try:
        fitted(mlp(), Rows(*samples(), batch_size=16), optimizer=AdamW(lr=0.1), schedule=Cosine(warmup=1.0))
    finally:
        hook.remove()
    assert all(len(each) == 1 for each in rates)
    half = (1 + math.cos(math.pi / 3)) / 2
    assert [each.pop() for each in rates] == pytest.approx(
        [0.1 / 3, 0.2 / 3, 0.1, 0.1, 0.1 * half, 0.1 * (1 - half)], abs=1e-15
    )


def test_clipping_scales_the_gradient_to_the_norm():
    """One step of plain descent: ``w - lr * g * min(1, clip / |g|)``, the norm over all parameters together."""
    inputs, labels = samples(16)
    student = mlp()
    start = state(student)
    nn.functional.cross_entropy(student(inputs), labels).backward()
    gradients = {name: p.grad.clone() for name, p in student.named_parameters()}
    norm = torch.cat([g.flatten() for g in gradients.values()]).norm()
    student.zero_grad()
    plain = SGD(lr=0.5, momentum=0.0, weight_decay=0.0)
    for clip, factor in ((float(norm) / 4, 0.25), (float(norm) * 4, 1.0)):
        student.load_state_dict(start)
        fitted(student, Rows(inputs, labels, batch_size=16), epochs=1, optimizer=plain, clip=clip)
        moved = {name: start[name] - value for name, value in student.state_dict().items()}
        for name, gradient in gradients.items():
            torch.testing.assert_close(moved[name], 0.5 * factor * gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("accumulate", [2, 4, 5, 100])
@pytest.mark.parametrize("optimizer", [SGD(lr=0.1), AdamW(lr=0.01)])
def test_accumulation_changes_nothing(accumulate, optimizer):
    """Labels are spread so unevenly that some micro-batches have none, and means of means would be wrong."""
    inputs, labels = samples(44)
    labels[0:9], labels[25:31] = -100, -100
    rows, teacher = Rows(inputs, labels, batch_size=20), Says(torch.randn(44, 4))
    how = {"teacher": teacher, "objective": objectives.wttm(gamma=0.3, beta=2.0), "optimizer": optimizer, "clip": 0.5}
    whole, cut = mlp(), mlp()
    whole_batch, micro_batches = fitted(whole, rows, **how), fitted(cut, rows, accumulate=accumulate, **how)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(cut.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    for a, b in zip(whole_batch, micro_batches, strict=True):
        assert a["train"].pop("terms") == pytest.approx(b["train"].pop("terms"), rel=1e-5)
        assert a["train"] == pytest.approx(b["train"], rel=1e-5)
        assert a["step"] == b["step"]


def coupled_objective():
    def spread(student_logits):
        return -student_logits.var(0).mean()

    return Objective.of(WeightedTerm("spread", 1.0, Apply(spread, coupled=True)))


def test_a_coupled_objective_is_not_accumulated():
    rows = Rows(*samples(), batch_size=16)
    with refused(InvalidValueError, "accumulate", got=2, suggests="accumulate=1"):
        fitted(mlp(), rows, objective=coupled_objective(), accumulate=2)
    assert len(fitted(mlp(), rows, objective=coupled_objective())) == 2


# Steps that are not finite


def poisoned(where, count=48):
    logits = torch.randn(count, 4, generator=torch.Generator().manual_seed(2))
    logits[where, 1] = torch.nan
    return logits


MATCH = objectives.ttm(gamma=0.5, beta=1.0)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_that_is_not_finite_is_named_and_not_applied(accumulate):
    """Steps of 8 samples; samples 17 and 20 poison the third, which must leave everything as the second did."""
    inputs, labels = samples(48, shape=(2, 8, 8))
    how = {"objective": MATCH, "epochs": 1, "accumulate": accumulate, "optimizer": SGD(lr=0.05)}
    stopped, control = seeded(Moving), seeded(Moving)
    torch.manual_seed(1)
    fitted(control, Rows(inputs[:16], labels[:16], batch_size=8), teacher=Says(poisoned([])), **how)
    torch.manual_seed(1)
    with refused(
        NonFiniteError, "step 3 of stage 1", got=["17, 20", "teacher"], suggests=["teacher", "nonfinite=skip"]
    ):
        fitted(stopped, Rows(inputs, labels, batch_size=8), teacher=Says(poisoned([20, 17])), log_steps=1, **how)
    assert same_bits(state(stopped), state(control))


def test_the_first_of_several_is_named_at_the_next_look():
    rows = Rows(*samples(48), batch_size=8)
    with refused(NonFiniteError, "step 2 of stage 1", got=9):
        fitted(mlp(), rows, teacher=Says(poisoned([9, 33])), objective=MATCH, log_steps=50)


def test_many_samples_are_named_in_part():
    rows = Rows(*samples(48), batch_size=24)
    with refused(NonFiniteError, "step 1 of stage 1", got="8 more"):
        fitted(mlp(), rows, teacher=Says(poisoned(range(48))), objective=MATCH)


def test_a_loss_that_breaks_with_finite_logits_names_no_sample():
    def breaks(student_logits):
        return student_logits.sum(-1) * torch.inf

    objective = Objective.of(WeightedTerm("breaks", 1.0, Apply(breaks)))
    with refused(NonFiniteError, "step 1 of stage 1", got="none"):
        fitted(mlp(), Rows(*samples(48), batch_size=8), objective=objective)


def test_a_gradient_that_breaks_under_a_finite_loss_is_not_applied():
    """``sqrt`` at 0: the value is 0, the slope infinite."""

    def breaks(student_logits):
        return (student_logits - student_logits.detach()).square().sum(-1).sqrt()

    student = mlp()
    start = state(student)
    with refused(NonFiniteError, "step 1 of stage 1"):
        fitted(
            student,
            Rows(*samples(48), batch_size=8),
            objective=Objective.of(WeightedTerm("breaks", 1.0, Apply(breaks))),
        )
    assert same_bits(state(student), start)


@pytest.mark.parametrize("clip", [None, 0.5])
def test_skipping_is_as_if_the_batch_had_not_been_there(clip):
    """Momentum and batch norm included: the bits are those of a run without the third batch of each epoch."""
    inputs, labels = samples(48, shape=(2, 8, 8))
    without = torch.cat([torch.arange(16), torch.arange(24, 48)])
    how = {"objective": MATCH, "nonfinite": "skip", "clip": clip, "optimizer": SGD(lr=0.05)}
    quiet = [seeded(Moving), seeded(Moving)]
    for each in quiet:
        each.drop.p = 0.0
    history = fitted(quiet[0], Rows(inputs, labels, batch_size=8), teacher=Says(poisoned([17])), **how)
    control = fitted(
        quiet[1], Rows(inputs[without], labels[without], batch_size=8), teacher=Says(poisoned([])[without]), **how
    )
    assert same_bits(state(quiet[0]), state(quiet[1]))
    assert all(torch.isfinite(value).all() for value in quiet[0].state_dict().values())
    assert [r["skipped_steps"] for r in history] == [1, 1]
    assert [r["skipped_steps"] for r in control] == [0, 0]
    assert [r["train"] for r in history] == [r["train"] for r in control]
    assert [r["train"]["samples"] for r in history] == [40, 40]
    assert [r["step"] for r in history] == [6, 12]


def test_an_epoch_of_skipped_steps_only_still_has_a_record():
    student = mlp()
    start = state(student)
    history = fitted(
        student, Rows(*samples(48), batch_size=24), teacher=Says(poisoned(range(48))), objective=MATCH, nonfinite="skip"
    )
    assert [r["skipped_steps"] for r in history] == [2, 2]
    assert history[0]["train"]["samples"] == 0
    assert same_bits(state(student), start)


def test_nothing_is_checkpointed_after_a_step_that_is_not_finite(tmp_path):
    rows = Rows(*samples(48), batch_size=8)
    with pytest.raises(NonFiniteError):
        fitted(
            mlp(),
            rows,
            teacher=Says(poisoned([17])),
            objective=MATCH,
            folder=tmp_path,
            checkpoint_steps=2,
            log_steps=1000,
        )
    assert Checkpoints(tmp_path / "checkpoints").load().state["step"] == 2


# The teacher


def test_the_teacher_stays_as_it_is(tmp_path):
    inputs, labels = samples(48, shape=(2, 8, 8))
    network = seeded(Moving, seed=7).train()
    with torch.no_grad():
        network(inputs)
    teacher, before, flags = FrozenTeacher(network), state(network), []
    network.norm.register_forward_hook(lambda module, *_: flags.append((module.training, torch.is_grad_enabled())))
    student = seeded(Moving)
    fitted(student, Rows(inputs, labels, batch_size=16), teacher=teacher, objective=MATCH, folder=tmp_path)
    assert same_bits(state(network), before)
    assert set(flags) == {(False, False)}
    assert not any(module.training for module in network.modules())
    assert all(p.grad is None and not p.requires_grad for p in network.parameters())
    student_size = sum(t.numel() for t in student.state_dict().values())
    saved = Checkpoints(tmp_path / "checkpoints").load()
    distiller = {name: t for name, t in saved.tensors.items() if name.startswith("lesson.")}
    assert {name.removeprefix("lesson.student.") for name in distiller} == set(student.state_dict())
    assert sum(t.numel() for t in distiller.values()) == student_size
    flat = torch.cat([t.flatten().float() for t in saved.tensors.values()])
    assert not torch.isin(network.head.weight.flatten(), flat).any()


def test_training_mode_does_not_reach_a_frozen_teacher():
    teacher = FrozenTeacher(seeded(Moving).train())
    teacher.train()
    assert not any(module.training for module in teacher.modules())
    teacher.train(True)
    assert not any(module.training for module in teacher.modules())
    out = teacher(Batch(torch.arange(2), torch.rand(2, 2, 8, 8), torch.zeros(2)))
    assert not out.logits.requires_grad


def test_the_teacher_is_asked_only_where_it_is_needed():
    def never(batch):
        raise AssertionError

    fitted(mlp(), Rows(*samples(), batch_size=16), teacher=None, objective=objectives.cross_entropy())
    with pytest.raises(AssertionError):
        fitted(mlp(), Rows(*samples(), batch_size=16), teacher=never, objective=MATCH)


# Stopping, resuming, keeping


def test_a_caller_may_stop_after_an_epoch_and_go_on_later(tmp_path):
    inputs, labels = samples(48)
    rows = Rows(inputs, labels, batch_size=16, shuffle=True)
    whole, student = mlp(), mlp()
    expected = fitted(whole, rows, epochs=4, folder=tmp_path / "whole")
    keep = CheckpointSink(Checkpoints(tmp_path / "stopped"), tmp_path / "best.safetensors", {})
    distiller, first = Distiller(student, objectives.cross_entropy()), []
    for record in fit(distiller, None, rows, settings(epochs=4), accelerator=accelerator_on("cpu"), keep=keep):
        first.append(record)
        if record["epoch"] == 2:
            break
    saved = keep.checkpoints.load()
    assert (saved.state["epoch"], saved.state["step"], saved.state["step_in_epoch"]) == (2, 6, 0)
    assert same_bits(
        {n.removeprefix("lesson.student."): t for n, t in saved.tensors.items() if "lesson" in n}, state(student)
    )
    fresh = mlp(seed=99)
    resumed = fit(
        Distiller(fresh, objectives.cross_entropy()),
        None,
        rows,
        settings(epochs=4),
        accelerator=accelerator_on("cpu"),
        keep=keep,
        resume=saved,
    )
    assert untimed([*first, *resumed]) == untimed(expected)
    assert same_bits(state(fresh), state(whole))


CHANGES = {
    "sgd": {},
    "nesterov, clipped": {"optimizer": SGD(lr=0.1, nesterov=True), "clip": 0.5},
    "adamw": {"optimizer": AdamW(lr=0.01)},
    "accumulated": {"accumulate": 3},
    "half precision": {"precision": "bf16"},
    "half precision, adamw": {"precision": "bf16", "optimizer": AdamW(lr=0.01), "accumulate": 2},
    "plain layout": {"channels_last": False},
    "cosine": {"schedule": Cosine(warmup=0.7)},
    "skipping": {"nonfinite": "skip"},
}


@pytest.mark.parametrize("stop", [(0, 1), (0, 5), (1, 0), (1, 4)])
@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_interrupted_in_an_epoch_and_resumed_has_the_same_bits(tmp_path, changes, stop):
    """Batch norm, dropout, either layout of convolutions; a checkpoint every second step, so work is done again."""
    inputs, labels = samples(48, shape=(2, 8, 8))
    bad = [inputs.shape[0] - 3] if changes.get("nonfinite") == "skip" else []
    how = {"teacher": Says(poisoned(bad)), "objective": MATCH, "epochs": 2, "checkpoint_steps": 2} | changes
    whole, stopped, resumed = seeded(Moving), seeded(Moving), seeded(Moving)
    runs = {}
    for name, student, stop_before in (("whole", whole, None), ("stopped", stopped, stop)):
        torch.manual_seed(4)
        rows = Rows(inputs, labels, batch_size=8, shuffle=True, stop_before=stop_before)
        try:
            runs[name] = fitted(student, rows, folder=tmp_path / name, **how)
        except KeyboardInterrupt:
            runs[name] = None
    assert runs["stopped"] is None
    torch.manual_seed(4)
    later = fitted(
        resumed, Rows(inputs, labels, batch_size=8, shuffle=True), folder=tmp_path / "stopped", resume=True, **how
    )
    assert same_bits(state(resumed), state(whole))
    assert not same_bits(state(stopped), state(whole))
    assert untimed(later) == untimed(runs["whole"])[-len(later) :]
    a, b = (Checkpoints(tmp_path / name / "checkpoints").load() for name in ("whole", "stopped"))
    assert same_bits(a.tensors, b.tensors)


def test_interrupted_after_an_epochs_last_step_and_resumed_has_the_same_records(tmp_path):
    class Interrupted(Rows):
        def epoch(self, epoch, **how):
            yield from super().epoch(epoch, **how)
            raise KeyboardInterrupt

    inputs, labels = samples(48)
    how = {"epochs": 2, "schedule": Cosine()}
    whole = fitted(mlp(), Rows(inputs, labels, batch_size=8), **how)
    with pytest.raises(KeyboardInterrupt):
        fitted(mlp(), Interrupted(inputs, labels, batch_size=8), folder=tmp_path, **how)
    resumed = fitted(mlp(), Rows(inputs, labels, batch_size=8), folder=tmp_path, resume=True, **how)
    assert untimed(resumed) == untimed(whole)


@pytest.mark.parametrize("channels_last", [True, False])
def test_a_residual_network_resumes_in_its_memory_layout(tmp_path, channels_last):
    """Fused optimizers refuse moments whose strides are not their parameters'."""
    inputs, labels = samples(24, shape=(1, 8, 8))
    how = {"epochs": 1, "checkpoint_steps": 1, "channels_last": channels_last, "optimizer": SGD(lr=0.1)}
    whole, resumed = (models.create("cifar:resnet8", classes=4, channels=1) for _ in range(2))
    fitted(whole, Rows(inputs, labels, batch_size=8), **how)
    with pytest.raises(KeyboardInterrupt):
        fitted(resumed, Rows(inputs, labels, batch_size=8, stop_before=(0, 1)), folder=tmp_path, **how)
    resumed = models.create("cifar:resnet8", classes=4, channels=1, seed=1)
    strides = []

    def look(optimizer, *_):
        strides.extend((p.stride(), s["momentum_buffer"].stride()) for p, s in optimizer.state.items())

    hook = register_optimizer_step_pre_hook(look)
    try:
        fitted(resumed, Rows(inputs, labels, batch_size=8), folder=tmp_path, resume=True, **how)
    finally:
        hook.remove()
    assert strides
    assert all(parameter == moment for parameter, moment in strides)
    assert same_bits(state(resumed), state(whole))


class Drawing(nn.Module):
    """A student that draws from Python's and NumPy's generators, as some published layer-dropping networks do."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        if self.training:
            x = x * random.random() + np.random.rand()
        return self.head(x)


def test_the_other_generators_are_put_back_too(tmp_path):
    rows = samples(48)
    whole, resumed = seeded(Drawing), seeded(Drawing)
    for student, name, stop in ((whole, "whole", None), (seeded(Drawing), "stopped", (1, 1))):
        random.seed(1)
        np.random.seed(2)
        if stop is None:
            fitted(student, Rows(*rows, batch_size=8), folder=tmp_path / name)
        else:
            with pytest.raises(KeyboardInterrupt):
                fitted(student, Rows(*rows, batch_size=8, stop_before=stop), folder=tmp_path / name)
    random.seed(77)
    np.random.seed(78)
    fitted(resumed, Rows(*rows, batch_size=8), folder=tmp_path / "stopped", resume=True)
    assert same_bits(state(resumed), state(whole))


def test_checkpoints_come_when_they_are_due(tmp_path):
    names = []

    class Watched(Checkpoints):
        def save(self, name, tensors, state, *shards):
            names.append((name, state["epoch"], state["step_in_epoch"]))
            super().save(name, tensors, state, *shards)

    def run(**changes):
        names.clear()
        keep = CheckpointSink(Watched(tmp_path / str(changes)), tmp_path / "best", {})
        distiller, rows = Distiller(mlp(), objectives.cross_entropy()), Rows(*samples(), batch_size=8)
        list(fit(distiller, None, rows, settings(**changes), accelerator=accelerator_on("cpu"), keep=keep, stage=1))
        return list(names)

    assert run() == [("01-000000006", 1, 0), ("01-000000012", 2, 0)]
    assert [name for name, *_ in run(checkpoint_steps=4)] == [f"01-{n:09d}" for n in (4, 6, 10, 12)]
    assert [name for name, *_ in run(checkpoint_steps=3)] == [f"01-{n:09d}" for n in (3, 6, 9, 12)]
    assert len(run(checkpoint_seconds=0.0)) == 12


def test_the_best_weights_are_the_first_with_the_highest_accuracy(tmp_path):
    """Held-out labels are what the student said after epoch 2, so that it cannot do better than then."""
    inputs, labels = samples(200)
    rows, how = Rows(inputs, labels, batch_size=16), {"optimizer": SGD(lr=0.3), "epochs": 5}
    probe = mlp()
    distiller, seen = Distiller(probe, objectives.cross_entropy()), []
    for _ in fit(distiller, None, rows, settings(**how), accelerator=accelerator_on("cpu")):
        seen.append(state(probe))
    probe.load_state_dict(seen[1])
    predicted = probe(inputs).argmax(-1)
    keep = CheckpointSink(Checkpoints(tmp_path / "checkpoints"), tmp_path / "best.safetensors", {})
    student = mlp()
    history = list(
        fit(
            Distiller(student, objectives.cross_entropy()),
            None,
            rows,
            settings(**how),
            accelerator=accelerator_on("cpu"),
            keep=keep,
            held_out=[EvalSet("validation", Rows(inputs, predicted, batch_size=64)), EvalSet("test", rows)],
        )
    )
    scores = [r["validation"]["accuracy"] for r in history]
    assert scores[1] == 1.0
    assert records.best_epoch(history, "validation") == {"set": "validation", "accuracy": 1.0, "epoch": 2, "stage": 0}
    best = safetensors.torch.load_file(keep.best)
    assert same_bits(best, seen[1])
    assert not same_bits(best, state(student))


def test_of_equally_good_epochs_the_first_is_kept(tmp_path):
    """Steps so small that no answer changes, while the weights do."""
    rows, student, seen = Rows(*samples(), batch_size=16), mlp(), []
    keep = CheckpointSink(Checkpoints(tmp_path / "checkpoints"), tmp_path / "best.safetensors", {})
    fitting = fit(
        Distiller(student, objectives.cross_entropy()),
        None,
        rows,
        settings(epochs=3, optimizer=SGD(lr=1e-5)),
        accelerator=accelerator_on("cpu"),
        keep=keep,
        held_out=[EvalSet("test", rows)],
    )
    accuracies = [(record["test"]["accuracy"], seen.append(state(student)))[0] for record in fitting]
    assert len(set(accuracies)) == 1
    assert not same_bits(seen[0], seen[1])
    assert same_bits(safetensors.torch.load_file(keep.best), seen[0])


def test_a_disk_that_refuses_the_best_weights_is_told_of_like_one_that_refuses_a_checkpoint(tmp_path):
    rows = Rows(*samples(), batch_size=16)
    (tmp_path / "best.safetensors").mkdir()  # no file can take its place
    keep = CheckpointSink(Checkpoints(tmp_path / "checkpoints"), tmp_path / "best.safetensors", {})
    distiller, held = Distiller(mlp(), objectives.cross_entropy()), [EvalSet("test", rows)]
    with refused(CheckpointError, "best.safetensors"):
        list(fit(distiller, None, rows, settings(), accelerator=accelerator_on("cpu"), keep=keep, held_out=held))


def test_a_later_stage_must_beat_the_earlier_ones(tmp_path):
    rows = Rows(*samples(), batch_size=16)
    for to_beat, written in ((1.0, False), (None, True), (0.0, True)):
        keep = CheckpointSink(Checkpoints(tmp_path / str(to_beat)), tmp_path / f"{to_beat}.safetensors", {})
        distiller = Distiller(mlp(), objectives.cross_entropy())
        held = [EvalSet("test", rows)]
        list(
            fit(
                distiller,
                None,
                rows,
                settings(),
                accelerator=accelerator_on("cpu"),
                keep=keep,
                held_out=held,
                to_beat=to_beat,
            )
        )
        assert keep.best.exists() is written


# Precision and progress


def test_half_precision_runs_are_finite_and_keep_full_weights():
    inputs, labels = samples(48, shape=(2, 8, 8))
    rows, teacher = Rows(inputs, labels, batch_size=16), FrozenTeacher(seeded(Moving, seed=7))
    full, half = seeded(Moving), seeded(Moving)
    dtypes = set()
    half.conv.register_forward_hook(lambda module, inputs, output: dtypes.add(output.dtype))
    for student, precision in ((full, "fp32"), (half, "bf16")):
        torch.manual_seed(0)
        history = fitted(student, rows, teacher=teacher, objective=MATCH, precision=precision)
        assert all(math.isfinite(r["train"]["loss"]) and r["skipped_steps"] == 0 for r in history)
    assert dtypes == {torch.bfloat16}
    assert {p.dtype for p in half.parameters()} == {torch.float32}
    assert not same_bits(state(full), state(half))


def test_progress_counts_epochs_steps_and_the_whole():
    seen = []

    class Watching(nn.Module):
        def __init__(self, needs):
            super().__init__()
            self.needs = needs

        def forward(self, student, teacher, batch, progress):
            assert all(number.device == student.logits.device for number in progress[:3])
            seen.append(tuple(number.item() for number in progress[:3]))
            return student.logits.square().mean(-1)

    class Described:
        needs = Apply(lambda student_logits: student_logits).needs
        target_gamma = None

        def bind(self, context):
            return Watching(self.needs)

    fitted(
        mlp(),
        Rows(*samples(), batch_size=16),
        objective=Objective.of(WeightedTerm("watch", 1.0, Described())),
        accumulate=2,
    )
    steps = seen[::2]
    assert seen[1::2] == steps
    expected = [(epoch, 3 * epoch + k, (3 * epoch + k) / 6) for epoch, k in itertools.product(range(2), range(3))]
    assert steps == [pytest.approx(values, rel=1e-6) for values in expected]


def test_a_module_of_the_callers_own_loop_gives_the_same_bits():
    """The loop adds nothing to plain PyTorch: a hand-written one of ten lines ends in the same weights."""
    inputs, labels = samples(48)
    ours, theirs = mlp(), mlp()
    fitted(ours, Rows(inputs, labels, batch_size=16), optimizer=SGD(lr=0.1, weight_decay=5e-4), channels_last=False)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    for _ in range(2):
        for index in torch.arange(48).split(16):
            optimizer.zero_grad()
            nn.functional.cross_entropy(theirs(inputs[index]), labels[index]).backward()
            optimizer.step()
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-5, atol=1e-7)


def test_runs_in_one_process_do_not_touch_each_other():
    rows = Rows(*samples(), batch_size=16)
    alone, second = mlp(), mlp()
    fitted(alone, rows)
    fitted(copy.deepcopy(mlp(seed=3)), rows, precision="bf16", optimizer=AdamW())
    fitted(second, rows)
    assert same_bits(state(alone), state(second))


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    for device in ("cuda", "cuda:0"):
        with refused(InvalidValueError, "device", suggests="device=auto"):
            accelerator_on(device)
    assert accelerator_on("auto").device.type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for device in ("auto", "cpu", "cuda", "cuda:0", "cuda:1"):
        require_device(device)
    with refused(InvalidValueError, "device", got="cuda:2", suggests="device=cuda:1"):
        require_device("cuda:2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with refused(InvalidValueError, "device", got=["cuda:1", 2], suggests="device=cuda"):
        require_device("cuda:1")


def test_a_fit_warns_of_nothing_and_steps_once_a_batch():
    steps = []
    hook = register_optimizer_step_post_hook(lambda *_: steps.append(1))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fitted(mlp(), Rows(*samples(), batch_size=16))
    finally:
        hook.remove()
    assert len(steps) == 6


def test_a_fit_that_is_left_unfinished_ends_quietly():
    """When the interpreter ends, most of what a clean-up would call is gone."""
    script = """
from tests._helpers.fit_cases import *
from tutelage.training.job import FitJob, FitState
epochs = fit(Distiller(mlp(), objectives.cross_entropy()), None, Rows(*samples(), batch_size=16), settings(),
             accelerator=accelerator_on("cpu"))
print(next(epochs)["epoch"])
job = FitJob(distiller=Distiller(mlp(), objectives.cross_entropy()), settings=settings(), uses_teacher=False)
steps = FitState(job, accelerator_on("cpu"), steps=3).epoch(Rows(*samples(), batch_size=16))
next(steps)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


def test_what_a_fit_held_is_free_when_it_ends():
    """Without waiting for the garbage collector: the next fit of a study needs the memory."""
    held = []
    hook = register_optimizer_step_pre_hook(lambda optimizer, *_: held.append(weakref.ref(optimizer)))
    gc.disable()
    try:
        fitted(mlp(), Rows(*samples(), batch_size=16))
        assert held
        assert all(reference() is None for reference in held)
    finally:
        gc.enable()
        hook.remove()


def test_a_checkpoint_can_be_resumed_from_twice(tmp_path):
    rows = Rows(*samples(), batch_size=16, stop_before=(1, 2))
    with pytest.raises(KeyboardInterrupt):
        fitted(mlp(), rows, folder=tmp_path, checkpoint_steps=1)
    saved = Checkpoints(tmp_path / "checkpoints").load()
    histories = []
    for _ in range(2):
        distiller = Distiller(mlp(), objectives.cross_entropy())
        rows = Rows(*samples(), batch_size=16)
        histories.append(
            untimed(fit(distiller, None, rows, settings(), accelerator=accelerator_on("cpu"), resume=saved))
        )
    assert histories[0] == histories[1]


def test_the_best_weights_are_the_whole_students(tmp_path):
    class Named(nn.Module):
        """A module of the user's, of which a part is called like that of a model with a card."""

        def __init__(self):
            super().__init__()
            self.network, self.head = nn.Linear(6, 8), nn.Linear(8, 4)

        def forward(self, x):
            return self.head(self.network(x))

    keep = CheckpointSink(Checkpoints(tmp_path / "checkpoints"), tmp_path / "best.safetensors", {})
    rows, student = Rows(*samples(), batch_size=16), seeded(Named)
    how = {"accelerator": accelerator_on("cpu"), "held_out": [EvalSet("test", rows)], "keep": keep}
    list(fit(Distiller(student, objectives.cross_entropy()), None, rows, settings(), **how))
    assert safetensors.torch.load_file(tmp_path / "best.safetensors").keys() == student.state_dict().keys()


def test_a_running_mean_that_is_replaced_is_put_back_when_a_step_is_skipped():
    class Running(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = mlp()
            self.register_buffer("mean", torch.zeros(6))

        def forward(self, x):
            if self.training:
                self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
            return self.body(x - self.mean)

    inputs, labels = samples(48)
    inputs[17] = torch.nan
    without = torch.cat([torch.arange(16), torch.arange(24, 48)])
    students = Running(), Running()
    (record,) = fitted(students[0], Rows(inputs, labels, batch_size=8), nonfinite="skip", epochs=1)
    fitted(students[1], Rows(inputs[without], labels[without], batch_size=8), epochs=1)
    assert record["skipped_steps"] == 1
    assert same_bits(state(students[0]), state(students[1]))


def test_batches_of_a_kind_of_the_users_own_are_learned_from():
    class Own:
        def __init__(self, batch):
            self.index, self.inputs, self.labels = batch.index, batch.inputs, batch.labels

    class Rewrapped(Rows):
        def epoch(self, epoch, **how):
            return map(Own, super().epoch(epoch, **how))

    own, plain = mlp(), mlp()
    history = fitted(own, Rewrapped(*samples(), batch_size=16))
    assert untimed(history) == untimed(fitted(plain, Rows(*samples(), batch_size=16)))
    assert same_bits(state(own), state(plain))


def test_a_gradient_that_is_left_over_of_a_frozen_part_is_not_clipped_by():
    def student(left_over):
        network = mlp()
        network[0].requires_grad_(False)
        if left_over:
            network[0].weight.grad = torch.full_like(network[0].weight, 1e6)
        return network

    students = [student(False), student(True)]
    for each in students:
        fitted(each, Rows(*samples(), batch_size=16), clip=0.1)
    assert same_bits(*map(state, students))
