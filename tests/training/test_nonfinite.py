"""A run that stops for numbers that are not finite says what was the cause, and what fits it."""

from __future__ import annotations

import pytest
import torch
from tests._helpers.fit_cases import Rows, Says, fitted, mlp, samples
from tests._helpers.refusals import refused
from torch import nn

from tutelage import checks, objectives
from tutelage.objectives import Objective, WeightedTerm
from tutelage.objectives.term import Apply
from tutelage.settings.fit import SGD, Constant
from tutelage.training.checkpoints import Checkpoints
from tutelage.training.evaluate import NonFiniteError

KD = objectives.kd(temperature=4.0, weight=0.9, supervised=0.1)


def rows(spoilt=None, batch_size=8):
    inputs, labels = samples(48)
    if spoilt is not None:
        inputs[spoilt] = torch.nan
    return Rows(inputs, labels, batch_size=batch_size)


def logits(value=1.0):
    return Says(torch.randn(48, 4, generator=torch.Generator().manual_seed(2)) * value)


def breaks(student_logits):
    return student_logits.sum(-1) * torch.inf


def steep(student_logits):
    return (student_logits - student_logits.detach()).square().sum(-1).sqrt()


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_sample_whose_input_is_not_finite_is_named_alone(accumulate):
    """All logits of its batch are NaN after batch norm; the other samples are not at fault."""
    student = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 4))
    with refused(NonFiniteError, "step 3 of stage 1", got=["inputs: 17", "epoch 1"], suggests="nonfinite=skip"):
        fitted(student, rows(17), teacher=logits(), objective=KD, accumulate=accumulate)


def test_a_term_is_named_with_its_mean_and_the_others():
    objective = objectives.cross_entropy() + Objective.of(WeightedTerm("breaks", 1.0, Apply(breaks)))
    with refused(NonFiniteError, "step 1 of stage 1", got="term breaks", suggests="breaks") as raised:
        fitted(mlp(), rows(), objective=objective, optimizer=SGD(lr=0.25))
    assert "at a learning rate of 0.25" in raised.value.got
    assert "term ce" not in raised.value.got


def test_a_sum_of_finite_terms_may_be_too_large():
    with refused(NonFiniteError, "step 1 of stage 1", got="weighted sum", suggests="weights"):
        fitted(
            mlp(),
            rows(),
            objective=Objective.of(
                WeightedTerm("far", 3e38, Apply(lambda student_logits: student_logits.square().sum(-1) + 9))
            ),
        )


@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_gradient_is_named_by_its_parameter(clip):
    with refused(NonFiniteError, "step 1 of stage 1", got=["gradient", "parameters"]) as raised:
        fitted(mlp(), rows(), objective=Objective.of(WeightedTerm("steep", 1.0, Apply(steep))), clip=clip)
    assert "student." in raised.value.got


def test_a_rate_that_is_too_high_is_told_with_the_epoch_and_the_student():
    with refused(NonFiniteError, got=["student", "1e+12"], suggests="optimizer.lr=1e+12"):
        fitted(mlp(), rows(), optimizer=SGD(lr=1e12), epochs=30)


def test_the_rate_is_that_of_the_step_and_not_the_last():
    """A warm-up over two epochs of six steps: the third step has a quarter of the rate."""
    with refused(NonFiniteError, "step 3 of stage 1", got="0.25"):
        fitted(mlp(), rows(17), optimizer=SGD(lr=1.0), schedule=Constant(warmup=2.0), log_steps=50)


def test_a_weight_is_named():
    student = mlp()
    last = [name for name, _ in student.named_parameters()][-1]
    with torch.no_grad():
        student.get_parameter(last)[1] = torch.inf
    with refused(NonFiniteError, "step 1 of stage 1", got=[f"student.{last}", "1 of whose"]):
        fitted(student, rows())


def test_a_mask_may_hold_infinity_and_a_running_statistic_may_not():
    network = nn.BatchNorm1d(2)
    network.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    assert checks.nonfinite_weight(network) is None
    network.running_var[1] = torch.inf
    assert checks.nonfinite_weight(network).startswith("running_var, 1 of whose 2")


def test_weights_without_values_are_named_or_passed_over():
    assert checks.nonfinite_weight(nn.LazyLinear(2)) is None
    assert "weight" in checks.nonfinite_weight(nn.Linear(2, 2, device="meta"))
    with torch.inference_mode():
        network = nn.Linear(2, 2)
    assert checks.nonfinite_weight(network) is None


def test_a_checkpoint_of_an_older_version_has_no_values_of_the_log(tmp_path):
    """Its log is read nevertheless: the step and its samples are named."""
    data = rows(17)
    stopped = Rows(data.inputs, data.labels, batch_size=8, stop_before=(0, 4))
    with pytest.raises(KeyboardInterrupt):
        fitted(mlp(), stopped, folder=tmp_path, nonfinite="skip", checkpoint_steps=4)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    tensors, state, *_ = checkpoints.load()
    assert tensors.pop("blame_values").any()
    checkpoints.save(f"00-{state['step']:09d}", tensors, state)
    with refused(NonFiniteError, "step 3 of stage 1"):
        fitted(mlp(), rows(17), folder=tmp_path, resume=True)
