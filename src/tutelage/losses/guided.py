"""Losses that use more of the teacher than its features: its head, its batch norm, its class means."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage import checks
from tutelage.errors import InvalidTypeError, InvalidValueError
from tutelage.types import UNLABELLED


def srrl_statistics(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Compute the statistics term of softmax regression representation learning: the error of pooled features.

    ``(1 / width) * sum_d (mean(s[d]) - mean(t[d]))**2``, with means over positions: a factor of 1/width.

    Args:
        student_features: ``(batch, channels, height, width)`` or pooled, ``(batch, width)``; with the teacher's
            channels.
        teacher_features: either of these; the positions need not agree.

    Returns:
        ``(batch,)``, the square of the features' unit.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: Yang et al., "Knowledge distillation via softmax regression representation learning", ICLR 2021.

    Example:
        >>> srrl_statistics(torch.ones(1, 2, 4, 4), torch.zeros(1, 2))
        tensor([1.])
    """
    student, teacher = _pooled_pair(student_features, teacher_features)
    return (student - teacher).square().mean(1)


def srrl_regression(
    student_features: Tensor, teacher_features: Tensor, *, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Compute the regression term of softmax regression representation learning: the error behind the teacher's head.

    ``(1 / classes) * sum_k (h(mean(s))[k] - h(mean(t))[k])**2`` with ``h(x) = weight @ x + bias``, the teacher's last
    layer, and means over positions: a factor of 1/classes.

    Args:
        student_features: as in `srrl_statistics`; the gradient goes through the head into them.
        teacher_features: as in `srrl_statistics`.
        weight: ``(classes, channels)`` of the teacher's head; gets no gradient.
        bias: ``(classes,)`` of the teacher's head, or ``None``; gets no gradient. It cancels.

    Returns:
        ``(batch,)``, the square of the logits' unit.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: Yang et al., "Knowledge distillation via softmax regression representation learning", ICLR 2021.
    Differs from: nothing; the paper also mentions a cross-entropy with the teacher's softmax in place of squared
        errors.

    Example:
        >>> srrl_regression(torch.ones(1, 2), torch.zeros(1, 2), weight=torch.ones(3, 2))
        tensor([4.])
    """
    student, teacher = _pooled_pair(student_features, teacher_features)
    weight = checks.features(weight, "weight", axes=("classes", "width")).detach()
    if weight.shape[1] != student.shape[1]:
        expected = f"(classes, {student.shape[1]}), a column per channel"
        instead = "map the student's features to the width that the teacher's head reads"
        raise InvalidValueError("weight", expected, tuple(weight.shape), instead)
    if bias is not None:
        bias = checks.features(bias, "bias", axes=("classes",)).detach()
        if len(bias) != len(weight):
            raise InvalidValueError(
                "bias", f"{len(weight)} values, one per class", len(bias), "use weight and bias of one layer"
            )
    dtype = torch.promote_types(student.dtype, weight.dtype)
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    student_logits, teacher_logits = (F.linear(features.to(dtype), weight, bias) for features in (student, teacher))
    return (student_logits - teacher_logits).square().mean(1)


def ofd(student_features: Tensor, teacher_features: Tensor, *, margins: Tensor) -> Tensor:
    """Compute the distance of "A Comprehensive Overhaul of Feature Distillation" on one map before its activation.

    ``sum_{c, h, w} d(s, max(t, m[c]))``, with ``d(s, u) = (s - u)**2`` where ``t > 0`` or ``s > u``, and 0 elsewhere: a
    sum over channels and positions, so it grows with both; the published weight is 1e-3. Where the teacher is below 0,
    the student only has to be below it too: the activation hides the rest.

    Args:
        student_features: ``(batch, channels, height, width)``, mapped to the teacher's channels.
        teacher_features: the same shape.
        margins: ``(channels,)``, ``m``, none above 0: from `ofd_margins`. They get no gradient.

    Returns:
        ``(batch,)``, the square of the features' unit.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: Heo et al., "A Comprehensive Overhaul of Feature Distillation", arXiv 1904.01866.

    Example:
        >>> s, t = torch.tensor([2.0, 0.0, -3.0]), torch.tensor([1.0, -4.0, -4.0])
        >>> ofd(s.view(1, 1, 1, 3), t.view(1, 1, 1, 3), margins=torch.tensor([-2.0]))
        tensor([5.])
    """
    student, teacher = checks.feature_pair(student_features, teacher_features, checks.MAPS)
    margins = checks.features(margins, "margins", axes=("channels",)).detach()
    if len(margins) != student.shape[1]:
        instead = (
            "type margins=tutelage.losses.ofd_margins(norm.weight, norm.bias) of the batch norm before the "
            "teacher's activation"
        )
        raise InvalidValueError("margins", f"{student.shape[1]} values, one per channel", len(margins), instead)
    target = torch.maximum(teacher, margins[:, None, None].to(teacher.dtype))
    counts = (teacher > 0) | (student > target)
    # Masked before the square, so that an infinite difference that does not count leaves no NaN in the gradient.
    return torch.where(counts, student - target, 0.0).square().sum((1, 2, 3))


def ofd_margins(weight: Tensor, bias: Tensor) -> Tensor:
    """Compute the margins of `ofd` from a batch norm: each channel's mean below 0, if its output is normal.

    ``E[x | x < 0] = bias - |weight| * phi(z) / Phi(z)`` for ``x ~ N(bias, weight**2)``, ``z = -bias / |weight|``, with
    ``phi`` and ``Phi`` the standard normal's density and distribution; ``-3 * |weight|`` where ``Phi(z) <= 0.001``.

    Args:
        weight: ``(channels,)``, weight of the batch norm. At 0 the output is the bias alone.
        bias: same shape.

    Returns:
        ``(channels,)``, none above 0; no gradient.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: Heo et al., "A Comprehensive Overhaul of Feature Distillation", arXiv 1904.01866.
    Differs from: public code if a weight is 0, by which it divides, and in its rounding to float32.

    Example:
        >>> ofd_margins(torch.tensor([1.0, -1.0]), torch.tensor([0.0, 5.0]))
        tensor([-0.7979, -3.0000])
    """
    weight = checks.features(weight, "weight", axes=("channels",)).detach()
    bias = checks.features(bias, "bias", axes=("channels",)).detach()
    checks.same_shape(weight, bias, "weight", "bias")
    spread, mean = weight.double().abs(), bias.double()
    z = -mean / spread
    share = torch.special.log_ndtr(z)
    below = mean - spread * (-z.square() / 2 - share - math.log(2 * math.pi) / 2).exp()
    margins = torch.where(share <= math.log(0.001), -3 * spread, below)
    margins = torch.where(spread == 0, mean, margins).clamp(max=0)
    return margins.to(torch.promote_types(weight.dtype, bias.dtype))


def norm_direction(
    student_features: Tensor, teacher_features: Tensor, labels: Tensor, *, class_means: Tensor
) -> Tensor:
    """Compute the KD++ term on an embedding's norm and direction.

    ``1 - <s, c / |c|> / max(|s|, |t|)`` with ``c`` the teacher's mean embedding of the sample's class. A student's
    embedding that is at least as long as the teacher's is only turned towards ``c``; a shorter one is also lengthened.

    Args:
        student_features: ``(batch, width)``, mapped to the teacher's width.
        teacher_features: the same shape.
        labels: ``(batch,)`` int64; where a label is -100, the value is 0.
        class_means: ``(classes, width)``, over the training samples; gets no gradient. A mean of 0 gives the value 1.

    Returns:
        ``(batch,)``, no unit, in [0, 2].

    Raises: TypeError or ValueError if a dtype, shape or number is not as above, or labels are soft.
    Source: Wang et al., "Improving Knowledge Distillation via Regularizing Feature Norm and Direction", arXiv
        2305.17007.
    Differs from: the authors' code if both embeddings are 0: NaN there, 1 here.

    Example:
        >>> s, t = torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0]])
        >>> norm_direction(s, t, torch.tensor([1]), class_means=torch.eye(2).flip(0))
        tensor([0.5000])
    """
    student, teacher = checks.feature_pair(student_features, teacher_features, checks.EMBEDDINGS)
    class_means = checks.features(class_means, "class_means", axes=("classes", "width")).detach()
    if class_means.shape[1] != student.shape[1]:
        raise InvalidValueError(
            "class_means", f"(classes, {student.shape[1]})", tuple(class_means.shape), "give means of teacher_features"
        )
    if isinstance(labels, Tensor) and labels.is_floating_point():
        instead = "type labels.argmax(-1), or use an objective that takes soft labels"
        raise InvalidTypeError("labels", "int64 class indices", f"soft labels, {labels.dtype}", instead)
    checks.labels_for(student[:, :1].expand(-1, len(class_means)), labels)
    directions = F.normalize(class_means, dim=1).to(student.dtype)[labels.clamp(min=0)]
    longest = torch.maximum(student.norm(dim=1), teacher.norm(dim=1).to(student.dtype))
    aligned = (student * directions).sum(1) / torch.where(longest > 0, longest, 1.0)
    return torch.where(labels == UNLABELLED, 0.0, 1 - aligned)


def _pooled_pair(student_features: Tensor, teacher_features: Tensor) -> tuple[Tensor, Tensor]:
    student = _pooled(student_features, "student_features")
    teacher = _pooled(teacher_features, "teacher_features").detach()
    checks.same_shape(student, teacher, "student_features", "teacher_features")
    return student, teacher


def _pooled(features: Tensor, name: str) -> Tensor:
    if isinstance(features, Tensor) and features.ndim == len(checks.MAPS):
        return checks.features(features, name, axes=checks.MAPS).mean((2, 3))
    return checks.features(features, name, axes=checks.EMBEDDINGS)
