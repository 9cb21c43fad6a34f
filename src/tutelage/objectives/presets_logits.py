"""The named methods on logits besides classic and transformed matching."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tutelage import losses
from tutelage.objectives.curriculum import Curriculum
from tutelage.objectives.objective import Objective, WeightedTerm
from tutelage.objectives.registry import objective_of, preset, supervised_part
from tutelage.objectives.standardised import on_logits
from tutelage.objectives.term import Apply
from tutelage.settings.weights import CosineWarmUp, SignedWeight, WarmUp, Weight

DKD_WEIGHT = WarmUp(1.0, 20)
"""The factor of the DKD term over its authors' run."""
CTKD_REVERSAL = CosineWarmUp(-1.0, 10)
"""The factor of the temperature's gradient over CTKD's authors' run."""
MLKD_TEMPERATURES = (2.0, 3.0, 4.0, 5.0, 6.0)
"""The temperatures that each of MLKD's terms is a mean over."""


@preset("Zhao et al. 2022, arXiv:2203.08679")
def dkd(
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    weight: Weight = DKD_WEIGHT,
    supervised: Weight = 1.0,
    logits: str = "raw",
) -> Objective:
    """``supervised * CE(y, q) + weight * T**2 * (alpha * KL_label + beta * KL_others)``: decoupled distillation.

    Published settings: CIFAR-100 T=4, alpha 1, beta 8 (2 for resnet56/resnet20 and resnet110/resnet32, 6 for WRN-40-2
    with a WRN and for vgg13's students); ImageNet T=1, alpha 1, beta 0.5 for ResNet34/ResNet18 and 2 for
    ResNet50/MobileNetV1, without a warm-up: ``weight=1``.

    Args:
        alpha: of the label's divergence, >= 0.
        beta: of the others' divergence, >= 0.
        temperature: T > 0, on both sides.
        weight: of both divergences; the published one grows to 1 over 20 epochs, ``min(epoch / 20, 1)``.
        supervised: of the cross-entropy.
        logits: ``raw``, or ``standardised`` (Sun et al. 2024, arXiv:2403.01427; theirs is alpha 9, beta 72, T=2).
    """
    match = Apply(losses.dkd, {"alpha": alpha, "beta": beta, "temperature": temperature})
    return objective_of(supervised_part(supervised), WeightedTerm("dkd", weight, on_logits(logits, match, weight)))


@preset("Yang et al. 2023, arXiv:2303.13005")
def nkd(*, gamma: float = 3.5, temperature: float = 3.0, weight: Weight = 1.0, supervised: Weight = 1.0) -> Objective:
    """``supervised * CE(y, q) + weight * (-p[y] * log q[y] - gamma * T**2 * sum_i b_T[i] * log a_T[i])``.

    Published settings: CIFAR-100 T=3, gamma 3.5; ImageNet T=1, gamma 1.5, and gamma 1 for vision transformers.

    Args:
        gamma: of the term on the classes that are not labelled, >= 0.
        temperature: T > 0 of that term; the labelled class has none.
        weight: of both terms.
        supervised: of the cross-entropy, which the method keeps whole.
    """
    match = Apply(losses.nkd, {"gamma": gamma, "temperature": temperature}, soft_labels=True)
    return objective_of(supervised_part(supervised), WeightedTerm("nkd", weight, match))


@preset("Zhou et al. 2021, arXiv:2102.00650")
def wsld(*, temperature: float = 4.0, weight: Weight = 2.25, supervised: Weight = 1.0) -> Objective:
    """``supervised * CE(y, q) + weight * T**2 * w * CE(p_T, q_T)`` with ``w = 1 - exp(-CE(y, q) / CE(y, p))``.

    Published settings: CIFAR-100 T=4, 2.25; ImageNet T=2, 2.5.

    Args:
        temperature: T > 0, on both sides.
        weight: of the term.
        supervised: of the cross-entropy.
    """
    match = Apply(losses.wsld, {"temperature": temperature}, soft_labels=True)
    return objective_of(supervised_part(supervised), WeightedTerm("wsld", weight, match))


@preset("Huang et al. 2022, arXiv:2205.10536")
def dist(
    *,
    beta: float = 2.0,
    gamma: float = 2.0,
    temperature: float = 4.0,
    weight: Weight = 1.0,
    supervised: Weight = 1.0,
) -> Objective:
    """``supervised * CE(y, q) + weight * T**2 * (beta * (1 - rho_classes) + gamma * (1 - rho_batch))``.

    It couples the samples of a batch. Published settings: CIFAR-100 T=4, ImageNet T=1, beta and gamma 2.

    Args:
        beta: of the correlation over the classes of a sample, >= 0.
        gamma: of the correlation over the batch of a class, >= 0.
        temperature: T > 0, on both sides.
        weight: of both.
        supervised: of the cross-entropy.
    """
    match = Apply(losses.dist, {"beta": beta, "gamma": gamma, "temperature": temperature}, coupled=True)
    return objective_of(supervised_part(supervised), WeightedTerm("dist", weight, match))


@preset("Jin et al. 2023, CVPR, Multi-Level Logit Distillation")
def mlkd(
    *,
    instance: Weight = 4.5,
    batch: Weight = 4.5,
    classes: Weight = 4.5,
    supervised: Weight = 0.1,
) -> Objective:
    """``supervised * CE(y, q) + mean_T(instance * T**2 * KL + batch * ||G_b||**2 / N + classes * ||G_c||**2 / K)``.

    The mean is over T = 2, 3, 4, 5 and 6; ``G_b`` and ``G_c`` are the differences of both networks' Gram matrices of
    samples and of classes. It couples the samples of a batch.

    Args:
        instance: of the KL; the authors' configuration has 0.9 for each of five temperatures.
        batch: of `losses.mlkd_batch`.
        classes: of `losses.mlkd_class`.
        supervised: of the cross-entropy.

    Differs from: the authors' trainer, which sums over the temperatures and sees each image twice, weakly and strongly
    augmented. Cross-entropy and KL are on both views, though two of the strong view's five KLs read the weak one; the
    other terms are on the weak view alone. On that, its masks of confident samples and classes multiply values that are
    reduced already, by about one half. Here there is one view, and no mask.
    """
    return objective_of(
        supervised_part(supervised),
        WeightedTerm("mlkd_instance", instance, Apply(_mean_over, {"loss": losses.kd})),
        WeightedTerm("mlkd_batch", batch, Apply(_mean_over, {"loss": losses.mlkd_batch}, coupled=True)),
        WeightedTerm("mlkd_class", classes, Apply(_mean_over, {"loss": losses.mlkd_class}, coupled=True)),
    )


def _mean_over(student_logits: Tensor, teacher_logits: Tensor, *, loss: Callable[..., Tensor]) -> Tensor:
    """Return the mean of a loss over temperatures."""
    each = [loss(student_logits, teacher_logits, temperature=t) for t in MLKD_TEMPERATURES]
    return torch.stack(each).mean(dim=0)


@preset("Li et al. 2023, arXiv:2211.16231")
def ctkd(
    *,
    reversal: SignedWeight = CTKD_REVERSAL,
    lowest: float = 1.0,
    span: float = 20.0,
    theta: float = 1.0,
    weight: Weight = 0.9,
    supervised: Weight = 0.1,
) -> Objective:
    """``supervised * CE(y, q) + weight * T**2 * KL(p_T || q_T)`` with a learned ``T = lowest + span * sigmoid(theta)``.

    The temperature, one for all samples, is trained with the student, its gradient multiplied by ``reversal``: below 0
    it makes the term harder. Published settings: the reversal falls to -1 within 10 epochs; on ImageNet within 5, and
    both weights are 1.

    Args:
        reversal: a number or schedule of either sign.
        lowest: > 0, below every temperature.
        span: > 0, of the temperatures.
        theta: where theta starts; at 1 with the other defaults, T is 15.6.
        weight: of the KL.
        supervised: of the cross-entropy.

    Differs from: the authors' code, whose theta has the shape ``(1,)``, in nothing; the other form of the paper, with a
    temperature for each sample, is not built.
    """
    match = Curriculum(reversal=reversal, lowest=lowest, span=span, theta=theta)
    return objective_of(supervised_part(supervised), WeightedTerm("ctkd", weight, match))


@preset("Yuan et al. 2020, arXiv:1909.11723")
def teacher_free_kd(
    *, correct: float = 0.99, temperature: float = 20.0, weight: Weight = 0.1, supervised: Weight = 0.9
) -> Objective:
    """``supervised * CE(y, q) + weight * KL(softmax(u / T) || q)`` with a virtual teacher ``u``: no teacher is needed.

    Published settings on CIFAR-100: ResNet-18 T=20, 0.9 and 0.1; GoogLeNet T=40, 0.9 and 0.05; MobileNetV2 T=40, 0.05
    and 0.0095. The code's alpha is 0.1, 0.1 and 0.95, its multiplier 100, 50 and 1, and it averages over the classes.

    Args:
        correct: u at the label, > 0 and < 1; the rest is spread evenly over the other classes.
        temperature: T > 0, of the virtual teacher alone.
        weight: of the KL: the code's ``alpha * multiplier / classes``.
        supervised: of the cross-entropy.
    """
    match = Apply(losses.teacher_free_kd, {"correct": correct, "temperature": temperature})
    return objective_of(supervised_part(supervised), WeightedTerm("teacher_free_kd", weight, match))
