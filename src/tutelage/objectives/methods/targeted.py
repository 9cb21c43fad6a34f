"""Methods on logits that treat the labelled class separately from the others."""

from __future__ import annotations

from tutelage import losses
from tutelage.objectives.methods.logits import on_logits
from tutelage.objectives.objective import Objective
from tutelage.objectives.registry import objective_of, preset, supervised_part
from tutelage.objectives.term import Apply, WeightedTerm
from tutelage.settings.weights import WarmUp, Weight

DKD_WEIGHT = WarmUp(1.0, 20)
"""Factor of the terms of DKD and RLD over their authors' runs."""


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
        alpha: weight of the label's divergence, >= 0.
        beta: weight of the others' divergence, >= 0.
        temperature: T > 0, on both sides.
        weight: weight of both divergences; the published weight grows to 1 over 20 epochs, ``min(epoch / 20, 1)``.
        supervised: weight of the cross-entropy.
        logits: form of the logits: ``raw``, or ``standardised`` (Sun et al. 2024, arXiv:2403.01427; theirs is alpha 9,
            beta 72, T=2).
    """
    match = Apply(losses.dkd, {"alpha": alpha, "beta": beta, "temperature": temperature})
    return objective_of(supervised_part(supervised), WeightedTerm("dkd", weight, on_logits(logits, match, weight)))


@preset("Yang et al. 2023, arXiv:2303.13005")
def nkd(*, gamma: float = 3.5, temperature: float = 3.0, weight: Weight = 1.0, supervised: Weight = 1.0) -> Objective:
    """``supervised * CE(y, q) + weight * (-p[y] * log q[y] - gamma * T**2 * sum_i b_T[i] * log a_T[i])``.

    Published settings: CIFAR-100 T=3, gamma 3.5; ImageNet T=1, gamma 1.5, and gamma 1 for vision transformers.

    Args:
        gamma: weight of the term on the classes that are not labelled, >= 0.
        temperature: T > 0 of that term; the labelled class has none.
        weight: weight of both terms.
        supervised: weight of the cross-entropy, which the method keeps whole.
    """
    match = Apply(losses.nkd, {"gamma": gamma, "temperature": temperature}, soft_labels=True)
    return objective_of(supervised_part(supervised), WeightedTerm("nkd", weight, match))


@preset("Sun et al. 2024, arXiv:2408.07703")
def rld(
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    alpha_temperature: float = 1.0,
    weight: Weight = DKD_WEIGHT,
    supervised: Weight = 1.0,
    logits: str = "raw",
) -> Objective:
    """``supervised * CE(y, q) + weight * (alpha * A**2 * KL_sure + beta * T**2 * KL_below)``: refined logits.

    Published settings: CIFAR-100 T=4, A=1 or the same T (type ``alpha_temperature=4``), alpha 1, beta 8; ImageNet T=1,
    alpha 1, beta 0.5, without a warm-up: ``weight=1``.

    Args:
        alpha: weight of the divergence of the student's label from the teacher's likeliest class, >= 0.
        beta: weight of the divergence over the classes that the teacher puts below the label, >= 0.
        temperature: T > 0 of these classes, on both sides.
        alpha_temperature: A > 0 of the other divergence.
        weight: weight of both divergences; the published weight grows to 1 over 20 epochs, ``min(epoch / 20, 1)``.
        supervised: weight of the cross-entropy.
        logits: form of the logits: ``raw``, or ``standardised`` (Sun et al. 2024, arXiv:2403.01427).
    """
    numbers = {"alpha": alpha, "beta": beta, "temperature": temperature, "alpha_temperature": alpha_temperature}
    match = Apply(losses.rld, numbers)
    return objective_of(supervised_part(supervised), WeightedTerm("rld", weight, on_logits(logits, match, weight)))


@preset("Zhou et al. 2021, arXiv:2102.00650")
def wsld(*, temperature: float = 4.0, weight: Weight = 2.25, supervised: Weight = 1.0) -> Objective:
    """``supervised * CE(y, q) + weight * T**2 * w * CE(p_T, q_T)`` with ``w = 1 - exp(-CE(y, q) / CE(y, p))``.

    Published settings: CIFAR-100 T=4, 2.25; ImageNet T=2, 2.5.

    Args:
        temperature: T > 0, on both sides.
        weight: weight of the term.
        supervised: weight of the cross-entropy.
    """
    match = Apply(losses.wsld, {"temperature": temperature}, soft_labels=True)
    return objective_of(supervised_part(supervised), WeightedTerm("wsld", weight, match))
