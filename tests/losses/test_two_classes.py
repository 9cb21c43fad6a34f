"""Several labels a sample: the losses of each label as two classes, no and yes, against formulas of one logit."""

from functools import partial

import pytest
import torch
import torch.nn.functional as functional

from tutelage import kernels, losses, objectives
from tutelage.objectives.term import BindContext
from tutelage.types import UNLABELLED, Batch, Outputs

SAMPLES, LABELS, GAMMA, BETA = 6, 5, 0.5, 1.6


def two_classes(logits):
    return torch.stack((torch.zeros_like(logits), logits), -1)


@pytest.fixture
def drawn():
    generator = torch.Generator().manual_seed(0)
    student = 3 * torch.randn(SAMPLES, LABELS, generator=generator)
    teacher = 6 * torch.randn(SAMPLES, LABELS, generator=generator)
    labels = torch.randint(0, 2, (SAMPLES, LABELS), generator=generator)
    student[0, 0], student[0, 1], teacher[0, 2] = 40.0, -40.0, 90.0  # where probabilities round to 0 and 1
    return student.requires_grad_(), teacher, labels


def bernoulli(logit):
    """Return the probabilities of no and of yes in float64."""
    return torch.stack((torch.sigmoid(-logit.double()), torch.sigmoid(logit.double())), -1)


def by_hand(student, teacher, gamma):
    """U * (p_gamma[0] log(p_gamma[0] / q[0]) + p_gamma[1] log(p_gamma[1] / q[1])) of two-point distributions."""
    p, log_q = bernoulli(teacher), functional.logsigmoid(torch.stack((-student.double(), student.double()), -1))
    target = bernoulli(gamma * teacher)
    power_sum = (p**gamma).sum(-1)
    return power_sum * torch.where(target > 0, target * (target.log() - log_q), 0.0).sum(-1)


def matches(value, expected, student, wanted):
    assert value.item() == pytest.approx(expected.item(), abs=1e-6, rel=1e-6)
    torch.testing.assert_close(*torch.autograd.grad(value, student), wanted, atol=1e-6, rtol=1e-6)


def test_cross_entropy_of_two_classes_is_binary_cross_entropy(drawn):
    student, _, labels = drawn
    expected = functional.binary_cross_entropy_with_logits(student, labels.float())
    (wanted,) = torch.autograd.grad(expected, student)
    matches(losses.cross_entropy(two_classes(student), labels).mean(), expected, student, wanted)


def test_with_a_soft_teacher_too(drawn):
    student, teacher, _ = drawn
    soft = torch.sigmoid(teacher)
    expected = functional.binary_cross_entropy_with_logits(student, soft)
    (wanted,) = torch.autograd.grad(expected, student)
    value = losses.cross_entropy(two_classes(student), torch.stack((1 - soft, soft), -1)).mean()
    matches(value, expected, student, wanted)


@pytest.mark.parametrize("fused", [False, True])
def test_wttm_is_that_of_each_label_and_unknown_labels_take_no_part(drawn, fused):
    student, teacher, labels = drawn
    labels[1, 2], labels[3] = UNLABELLED, UNLABELLED
    known = labels != UNLABELLED
    supervised = functional.binary_cross_entropy_with_logits(student.double()[known], labels[known].double())
    expected = supervised + BETA * by_hand(student, teacher, GAMMA).mean()
    (wanted,) = torch.autograd.grad(expected, student)
    context = BindContext(samples=SAMPLES, classes=2, labels=labels)
    bound = objectives.wttm(gamma=GAMMA, beta=BETA).bind(context)
    bound.fused = fused
    batch = Batch(torch.arange(SAMPLES), torch.empty(SAMPLES, 0), labels)
    matches(bound(Outputs(two_classes(student)), Outputs(two_classes(teacher)), batch).total, expected, student, wanted)


def test_the_kernel_of_many_logits_computes_the_same(drawn):
    student, teacher, labels = (each.repeat(2**17 // (2 * LABELS * SAMPLES) + 1, 1) for each in drawn)
    student = student.detach().requires_grad_()
    values = kernels.cross_entropy_and(
        partial(losses.wttm, gamma=GAMMA), two_classes(student), two_classes(teacher), labels
    )
    expected = (
        functional.binary_cross_entropy_with_logits(student, labels.float(), reduction="none"),
        by_hand(student, teacher, GAMMA),
    )
    for value, reference in zip(values, expected, strict=True):
        torch.testing.assert_close(value, reference.float(), atol=1e-6, rtol=1e-6)
    gradients = [torch.autograd.grad(sum(each).sum(), student)[0] for each in (values, expected)]
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-6)
