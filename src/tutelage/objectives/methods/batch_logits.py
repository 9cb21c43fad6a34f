"""Methods on logits that couple the samples of a batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tutelage import losses
from tutelage.objectives.objective import Objective
from tutelage.objectives.registry import objective_of, preset, supervised_part
from tutelage.objectives.term import Apply, WeightedTerm
from tutelage.settings.weights import Weight

MLKD_TEMPERATURES = (2.0, 3.0, 4.0, 5.0, 6.0)
"""Temperatures over which each of MLKD's terms is averaged."""


@preset("Huang et al. 2022, arXiv:2205.10536")
def dist(
    *, beta: float = 2.0, gamma: float = 2.0, temperature: float = 4.0, weight: Weight = 1.0, supervised: Weight = 1.0
) -> Objective:
    """``supervised * CE(y, q) + weight * T**2 * (beta * (1 - rho_classes) + gamma * (1 - rho_batch))``.

    It couples the samples of a batch. Published settings: CIFAR-100 T=4, ImageNet T=1; beta and gamma 2.

    Args:
        beta: weight of the correlation over the classes, per sample, >= 0.
        gamma: weight of the correlation over the batch, per class, >= 0.
        temperature: T > 0, on both sides.
        weight: weight of both correlations.
        supervised: weight of the cross-entropy.
    """
    match = Apply(losses.dist, {"beta": beta, "gamma": gamma, "temperature": temperature}, coupled=True)
    return objective_of(supervised_part(supervised), WeightedTerm("dist", weight, match))


@preset("Jin et al. 2023, CVPR, Multi-Level Logit Distillation")
def mlkd(*, instance: Weight = 4.5, batch: Weight = 4.5, classes: Weight = 4.5, supervised: Weight = 0.1) -> Objective:
    """``supervised * CE(y, q) + mean_T(instance * T**2 * KL + batch * ||G_b||**2 / N + classes * ||G_c||**2 / K)``.

    The mean is over T = 2, 3, 4, 5 and 6; ``G_b`` and ``G_c`` are the differences between the networks' Gram matrices
    of samples and of classes. It couples the samples of a batch.

    Args:
        instance: weight of the KL; the authors' configuration has 0.9 for each of five temperatures.
        batch: weight of `losses.mlkd_batch`.
        classes: weight of `losses.mlkd_class`.
        supervised: weight of the cross-entropy.

    Differs from: the authors' trainer, which sums over the temperatures and sees each image twice, weakly and strongly
    augmented. Cross-entropy and KL are on both views, though two of the strong view's five KLs read the weak one; the
    other terms are on the weak view alone. There, its masks of confident samples and classes multiply values that are
    already reduced, by about one half. Here there is one view, and no mask.
    """
    return objective_of(
        supervised_part(supervised),
        WeightedTerm("mlkd_instance", instance, Apply(mean_over_temperatures, {"loss": losses.kd})),
        WeightedTerm("mlkd_batch", batch, Apply(mean_over_temperatures, {"loss": losses.mlkd_batch}, coupled=True)),
        WeightedTerm("mlkd_class", classes, Apply(mean_over_temperatures, {"loss": losses.mlkd_class}, coupled=True)),
    )


def mean_over_temperatures(student_logits: Tensor, teacher_logits: Tensor, *, loss: Callable[..., Tensor]) -> Tensor:
    """Return the mean of a loss over temperatures."""
    each = [loss(student_logits, teacher_logits, temperature=t) for t in MLKD_TEMPERATURES]
    return torch.stack(each).mean(dim=0)
