"""Methods that compare two views of a sample, and those of a teacher's hard labels and a student of two heads."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from tutelage import checks, losses
from tutelage.losses.views import weak_views
from tutelage.objectives.methods.batch_logits import mean_over_temperatures
from tutelage.objectives.methods.logits import on_logits
from tutelage.objectives.objective import Objective
from tutelage.objectives.registry import objective_of, preset, supervised_part
from tutelage.objectives.term import Apply, WeightedTerm
from tutelage.settings.weights import Weight

FORMS = ("hard", "soft")
"""What a distillation token may learn: the teacher's class, or its distribution."""


@preset("Zhang et al. 2024, arXiv:2412.16493")
def crld(
    *,
    temperature: float = 4.0,
    within: Weight = 2.0,
    across: Weight = 0.5,
    tau_w: float = 0.9,
    tau_s: float = 0.2,
    masked_by: str = "target",
    supervised: Weight = 2.0,
) -> Objective:
    """``supervised * CE(y, q) + sum_a m_a * (within * KD(z_a, v_a) + across * KD(z_b, v_a))``, ``a`` weak and strong.

    ``KD = T**2 * KL(p_T || q_T)``, ``b`` is the view that is not ``a``, and ``m_a`` is 1 where the teacher is sure of
    ``a``, else 0. It needs two views of a sample: ``data: {crop_padding: 4, flip: true, strong: {randaugment:
    {magnitude: 10}, random_erasing: 0.5}}``; the published strong view erases a grey square of up to half a side in the
    end. Published settings: CIFAR-100 these, ImageNet T=1 and a supervised weight of 4.

    Args:
        temperature: T > 0, on both sides.
        within: weight where both networks read one view; the code's ``WV_WEIGHT``.
        across: weight where they read different ones; its ``CV_WEIGHT``.
        tau_w: least confidence of the teacher in the weak view, in [0, 1].
        tau_s: that in the strong view.
        masked_by: whose confidence decides: that of the ``target``, or as published of the ``pair``; `losses.crld`.
        supervised: weight of the cross-entropy, a mean over both views; the code adds the two, at a weight of 1.
    """
    numbers = {"temperature": temperature, "tau_w": tau_w, "tau_s": tau_s, "masked_by": masked_by}
    match = partial(Apply, _crld_mean, coupled=True, views=2)
    return objective_of(
        supervised_part(supervised),
        WeightedTerm("crld_within", within, match({**numbers, "within": 1, "across": 0})),
        WeightedTerm("crld_across", across, match({**numbers, "within": 0, "across": 1})),
    )


@preset("Jin et al. 2023, CVPR, Multi-Level Logit Distillation; Sun et al. 2024, arXiv:2403.01427")
def two_view_mlkd(
    *,
    instance: Weight = 9.0,
    batch: Weight = 4.5,
    classes: Weight = 4.5,
    supervised: Weight = 0.2,
    logits: str = "raw",
) -> Objective:
    """``supervised * CE(y, q) + mean_T(instance * T**2 * KL + batch * ||G_b||**2 / N + classes * ||G_c||**2 / K)``.

    `mlkd` of two views, which data with ``data.strong`` have: cross-entropy and KL are means over both, the Gram
    matrices of samples and of classes those of the weak view. It couples the samples of a batch.

    Args:
        instance: weight of the KL. The authors have 0.9 for each view and temperature, so 9 here; on standardised
            logits 9 each, so 90, with 45 for the other two.
        batch: weight of `losses.mlkd_batch`.
        classes: weight of `losses.mlkd_class`.
        supervised: weight of the cross-entropy; the authors have 0.1 for each view.
        logits: form of the logits in the KL: ``raw`` or ``standardised``.

    Differs from: the authors' trainers, whose sum over the strong view's temperatures reads the weak view at T = 2 and
    6; which multiply the weak view's terms by the shares of samples and classes below the median confidence, as a mask
    that comes after the mean; and which compute the strong view's Gram matrices and drop them.
    """
    of_each = on_logits(logits, Apply(mean_over_temperatures, {"loss": losses.kd}, views=2), instance)
    of_weak = partial(Apply, _mean_of_weak, coupled=True, views=2)
    return objective_of(
        supervised_part(supervised),
        WeightedTerm("mlkd_instance", instance, of_each),
        WeightedTerm("mlkd_batch", batch, of_weak({"loss": losses.mlkd_batch})),
        WeightedTerm("mlkd_class", classes, of_weak({"loss": losses.mlkd_class})),
    )


@preset("Touvron et al. 2021, arXiv:2012.12877, section 4")
def hard_labels(*, weight: Weight = 0.5, supervised: Weight = 0.5) -> Objective:
    """``supervised * CE(y, q) + weight * CE(argmax v, q)``: the teacher's class as a second label.

    For networks of one head; `deit` is for those with a distillation token. Where several teachers teach by terms, each
    one's class counts.

    Args:
        weight: weight of the cross-entropy with the teacher's class.
        supervised: weight of the cross-entropy with the label.
    """
    return objective_of(supervised_part(supervised), WeightedTerm("hard_labels", weight, Apply(losses.hard_label)))


@preset("Touvron et al. 2021, arXiv:2012.12877")
def deit(
    *,
    form: str = "hard",
    temperature: float = 3.0,
    weight: Weight = 0.5,
    supervised: Weight = 0.5,
    class_tap: str = "head",
    distillation_tap: str = "head_dist",
) -> Objective:
    """``supervised * CE(y, q_class) + weight * CE(argmax v, q_dist)``, or ``weight * T**2 * KL(p_T || q_dist,T)``.

    The student is a vision transformer with a distillation token, such as ``timm:deit_tiny_distilled_patch16_224``: the
    label is learned by its class token, the teacher by the other, and it answers with the mean of both. Published
    settings: hard, 0.5 and 0.5; soft, T=3, a weight of 0.1 and 0.9 of the cross-entropy.

    Args:
        form: what the distillation token learns: the teacher's class, ``hard``, or its distribution, ``soft``.
        temperature: T > 0, on both sides, of the soft form.
        weight: weight of the distillation token's loss.
        supervised: weight of the class token's cross-entropy.
        class_tap: tap of the logits of the class token.
        distillation_tap: tap of those of the distillation token.

    Differs from: the published code, whose soft form is divided by the number of classes too; the paper's is not.
    """
    checks.known(form, "form", FORMS, example="hard")
    checks.positive(temperature, "temperature", example=3.0)
    numbers = {"loss": losses.kd, "temperature": temperature} if form == "soft" else {"loss": losses.hard_label}
    match = Apply(_teacher_of_tap, numbers, student_tap=distillation_tap)
    return objective_of(
        WeightedTerm("ce", supervised, Apply(_label_of_tap, soft_labels=True, student_tap=class_tap)),
        WeightedTerm(f"deit_{form}", weight, match),
    )


def _crld_mean(student_logits: Tensor, teacher_logits: Tensor, **arguments: Any) -> Tensor:
    return losses.crld(student_logits, teacher_logits, **arguments).mean()


def _mean_of_weak(student_logits: Tensor, teacher_logits: Tensor, *, loss: Callable[..., Tensor]) -> Tensor:
    return mean_over_temperatures(weak_views(student_logits), weak_views(teacher_logits), loss=loss)


def _label_of_tap(student_features: Tensor, labels: Tensor) -> Tensor:
    return losses.cross_entropy(student_features, labels)


def _teacher_of_tap(
    student_features: Tensor, teacher_logits: Tensor, *, loss: Callable[..., Tensor], **arguments: float
) -> Tensor:
    return loss(student_features, teacher_logits, **arguments)
