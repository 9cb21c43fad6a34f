"""Presets of methods that make the teacher's maps of the student's by learned modules."""

from __future__ import annotations

from tutelage.objectives.fusion import Masked, Review
from tutelage.objectives.objective import Objective, WeightedTerm
from tutelage.objectives.registry import objective_of, preset
from tutelage.settings.objective import Names
from tutelage.settings.weights import Weight

LEVELS = ("card:before.-3", "card:before.-2", "card:before.-1", "card:embedding")


@preset("Chen et al. 2021, arXiv:2104.09044")
def reviewkd(*, weight: Weight = 1.0, student_taps: Names = LEVELS, teacher_taps: Names = LEVELS) -> Objective:
    """``weight * sum_l hcl(F_l(f_s[l], ..., f_s[L]), f_t[l])``: each level, fused with the deeper ones.

    The fusing modules are found from the features' shapes, and are trained. It carries no cross-entropy; published
    results add it with a weight of 1.

    Published weights on CIFAR-100: 0.6 for resnet56/resnet20; 1 for resnet110/resnet32; 5 for resnet32x4 with
    resnet8x4 and ShuffleNetV1, for WRN-40-2 with WRN-16-2, WRN-40-1 and ShuffleNetV1; 8 for resnet32x4 with
    ShuffleNetV2. On ImageNet: 1 for ResNet34/ResNet18, 8 for ResNet50/MobileNetV1. On CIFAR-100 they were warmed up
    over 20 epochs: ``weight=WarmUp(5.0, epochs=20)``.

    Args:
        weight: of the sum over levels.
        student_taps: levels, from the shallowest to the deepest: maps, or a pooled embedding as one pixel.
        teacher_taps: as many. Sizes and channels may differ.

    Maps are taken before their activation, as published results took them; those of a ShuffleNet student were taken
    after it: ``student_taps=("card:stage.-3", "card:stage.-2", "card:stage.-1", "card:embedding")``.

    Differs from: public code, where the shapes are written down by hand for each pair, and where the warm-up counts
    epochs from 0, so that the first has a weight of 0, and `WarmUp` from 1.
    """
    return objective_of(WeightedTerm("reviewkd", weight, Review(student_taps=student_taps, teacher_taps=teacher_taps)))


@preset("Yang et al. 2022, arXiv:2205.01529")
def mgd(
    *,
    weight: Weight = 7e-5,
    masked: float = 0.15,
    mask: str = "channel",
    student_tap: str = "card:stage.-1",
    teacher_tap: str = "card:stage.-1",
) -> Objective:
    """``weight * sum((G(M * A(f_s)) - f_t)**2)``: the teacher's last map, made again of a part of the student's.

    The defaults are the paper's and its code's for classification on ImageNet, for both ResNet34/ResNet18 and
    ResNet50/MobileNetV1; none were published for CIFAR-100. It carries no cross-entropy; published results add it with
    a weight of 1.

    Args:
        weight: the paper's alpha, of a sum over channels and pixels: a larger map wants a smaller one.
        masked: the paper's lambda: probability that a channel, or a position, of a sample is set to 0, in [0, 1).
        mask: ``channel``, as the published code for classification does; or ``position``, the pixels of which the
            paper speaks and that its code for detection and segmentation masks.
        student_tap: a map.
        teacher_tap: a map of the same height and width.
    """
    term = Masked(student_tap=student_tap, teacher_tap=teacher_tap, masked=masked, mask=mask)
    return objective_of(WeightedTerm("mgd", weight, term))
