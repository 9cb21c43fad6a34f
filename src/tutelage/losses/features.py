"""Losses on features: one value per sample. If sizes may differ, the larger map is averaged down (`same_size`)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage import checks
from tutelage.errors import InvalidTypeError, InvalidValueError
from tutelage.losses.pooling import averaged, common_size

Distance = Literal["mean_square", "norm"]


def hint(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Compute the mean squared error between two features: FitNet's hint.

    ``(1 / D) * sum_d (s[d] - t[d])**2`` over all ``D`` entries of a sample: channels and positions alike.

    Args:
        student_features: ``(batch, ...)``, mapped to the teacher's shape if they differ.
        teacher_features: the same shape.

    Returns:
        ``(batch,)``.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: Romero et al., "FitNets: Hints for Thin Deep Nets", arXiv 1412.6550.
    Differs from: the paper, which uses half the sum. Results on CIFAR-100 were published with the mean.

    Example:
        >>> hint(torch.full((1, 2, 3), 2.0), torch.zeros(1, 2, 3))
        tensor([4.])
    """
    student, teacher = checks.feature_pair(student_features, teacher_features, checks.ANY)
    return (student - teacher).square().flatten(1).mean(1)


def attention_transfer(
    student_features: Tensor, teacher_features: Tensor, *, p: float = 2, distance: Distance = "mean_square"
) -> Tensor:
    """Compute the distance between two attention maps.

    ``(1 / positions) * sum_x (Q_s[x] - Q_t[x])**2`` with ``Q = A / ||A||_2`` and ``A[x] = (1 / C) * sum_c f[c, x]**p``;
    the ``1 / C`` cancels. A larger map is averaged down first (`same_size`). With ``distance="norm"`` it is
    ``||Q_s - Q_t||_2``.

    Args:
        student_features: ``(batch, channels, height, width)``.
        teacher_features: same layout, with any number of channels and any size.
        p: power of the features, a whole number of at least 1. An odd one keeps their sign.
        distance: kind of distance: ``mean_square``; or ``norm``, neither squared nor divided by the number of
            positions.

    Returns:
        ``(batch,)``, no unit; at most ``4 / positions``, or 2 for the norm.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: Zagoruyko and Komodakis, "Paying More Attention to Attention", arXiv 1612.03928.
    Differs from: the paper's equation, half the norm of ``sum_c |f|**p``. Code and published results use the mean
        square.

    Example:
        >>> student, teacher = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 3.0]]]])
        >>> attention_transfer(student, teacher)
        tensor([1.])
    """
    student, teacher = (attention(maps, p=p) for maps in same_size(student_features, teacher_features))
    if distance == "mean_square":
        return (student - teacher).square().mean(1)
    if distance == "norm":
        return torch.linalg.vector_norm(student - teacher, dim=-1)
    raise InvalidValueError("distance", "mean_square or norm", repr(distance), 'type distance="mean_square"')


def vid(student_features: Tensor, teacher_features: Tensor, *, variance: Tensor) -> Tensor:
    """Compute how badly a Gaussian around the student's features explains the teacher's.

    ``(1 / D) * sum_{c, x} 0.5 * ((m[c, x] - t[c, x])**2 / variance[c] + log variance[c])`` over all ``D`` entries of a
    sample: the negative log-likelihood without its constant ``0.5 * log(2 * pi)``. A larger map is averaged down first
    (`same_size`).

    Args:
        student_features: ``(batch, channels, height, width)``, ``m``: a learned regressor's output; if the regressor is
            not linear, pool its input.
        teacher_features: same number of channels, ``t``; any size.
        variance: ``(channels,)``, above 0; gets a gradient.

    Returns:
        ``(batch,)`` nats per entry; of either sign.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: Ahn et al., "Variational Information Distillation for Knowledge Transfer", arXiv 1904.05835.
    Differs from: nothing in value. One public copy never trains the variance; a learned one comes from ``softplus``,
        where public code has ``log(1 + exp(x))``, which overflows.

    Example:
        >>> vid(torch.full((1, 1, 2, 2), 3.0), torch.zeros(1, 1, 2, 2), variance=torch.ones(1))
        tensor([4.5000])
    """
    student, teacher = same_size(student_features, teacher_features)
    checks.same_shape(student, teacher, "student_features", "teacher_features")
    variance = checks.features(variance, "variance", axes=("channels",))
    channels = teacher.shape[1]
    if len(variance) != channels:
        instead = f"type torch.full(({channels},), 5.0)"
        raise InvalidValueError("variance", f"one value for each of the {channels} channels", len(variance), instead)
    squares = (student - teacher).square().mean((2, 3))
    return (0.5 * (squares / variance + variance.log())).mean(1)


def prime_aware(
    student_features: Tensor, teacher_features: Tensor, *, log_variance: Tensor, epsilon: float = 1e-6
) -> Tensor:
    """Compute squared errors of features, each divided by a variance that the student predicts.

    ``(1 / D) * sum_d ((t[d] - s[d])**2 / (epsilon + exp(v[d])) + v[d])`` over all ``D`` entries of a sample.

    Args:
        student_features: ``(batch, ...)``, of the teacher's shape.
        teacher_features: the same shape.
        log_variance: the same shape, ``v``; gets a gradient.
        epsilon: constant added to the variance, above 0.

    Returns:
        ``(batch,)``; of either sign.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: Zhang et al., "Prime-Aware Adaptive Distillation", arXiv 2008.01458.

    Example:
        >>> prime_aware(torch.full((1, 2), 2.0), torch.zeros(1, 2), log_variance=torch.zeros(1, 2))
        tensor([4.0000])
    """
    student, teacher = checks.feature_pair(student_features, teacher_features, checks.ANY)
    log_variance = checks.features(log_variance, "log_variance", axes=checks.ANY)
    checks.same_shape(student, log_variance, "student_features", "log_variance")
    checks.positive(epsilon, "epsilon", example=1e-6)
    # exp(v) alone overflows, and so does its gradient.
    precision = (-torch.logaddexp(log_variance, log_variance.new_tensor(math.log(epsilon)))).exp()
    return ((teacher - student).square() * precision + log_variance).flatten(1).mean(1)


def same_size(student_features: Tensor, teacher_features: Tensor) -> tuple[Tensor, Tensor]:
    """Average the larger of two maps down to the smaller one's height and width.

    Args:
        student_features: ``(batch, channels, height, width)``.
        teacher_features: same layout, with any number of channels and any size.

    Returns:
        Both maps, with equal height and width. If one size does not divide the other, windows overlap, as in adaptive
        pooling.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: public code for attention transfer, VID, FT and NST, as compared by Tian et al., arXiv 1910.10699.

    Example:
        >>> student, teacher = same_size(torch.zeros(1, 2, 8, 8), torch.zeros(1, 3, 4, 4))
        >>> student.shape
        torch.Size([1, 2, 4, 4])
    """
    student, teacher = checks.feature_pair(student_features, teacher_features, checks.MAPS, same="batch")
    size = common_size(student, teacher)
    return averaged(student, size), averaged(teacher, size)


def attention(maps: Tensor, *, p: float) -> Tensor:
    """Return ``(batch, positions)``: means over channels of ``f**p``, scaled to length 1."""
    checks.positive(p, "p", example=2)
    if int(p) != p:
        raise InvalidValueError("p", "a whole number", f"{p}: features may be below 0", "for example p=2")
    return F.normalize(bounded(maps).pow(int(p)).mean(1).flatten(1), dim=1)


def bounded(features: Tensor) -> Tensor:
    """Divide each sample by its largest entry, if above 1, so that no norm overflows; directions stay the same."""
    return features / features.detach().abs().amax(tuple(range(1, features.ndim)), keepdim=True).clamp(min=1)


def vitkd_mimic(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Compute the mimicking term of ViTKD: squared distances between tokens, summed over tokens and width.

    ``sum_{n, d} (s[n, d] - t[n, d])**2``: a sum, so it grows with both; the published weight is 3e-5.

    Args:
        student_features: ``(batch, tokens, width)``, mapped to the teacher's width.
        teacher_features: the same shape.

    Returns:
        ``(batch,)``.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: Yang et al., "ViTKD: Practical Guidelines for ViT feature knowledge distillation", arXiv 2209.02432.

    Example:
        >>> vitkd_mimic(torch.ones(1, 2, 3), torch.zeros(1, 2, 3))
        tensor([6.])
    """
    student, teacher = checks.feature_pair(student_features, teacher_features, checks.TOKENS)
    return (student - teacher).square().sum((1, 2))


def vitkd_generation(student_features: Tensor, teacher_features: Tensor, hidden: Tensor, *, masked: float) -> Tensor:
    """Compute the generation term of ViTKD: squared distances of the regenerated hidden tokens.

    ``(1 / masked) * sum_{n hidden, d} (s[n, d] - t[n, d])**2``: a sum over hidden tokens and width, scaled up to all.

    Args:
        student_features: ``(batch, tokens, width)``: tokens generated from the visible ones.
        teacher_features: the same shape.
        hidden: ``(batch, tokens)`` bool, from `hide`.
        masked: share of the tokens that were hidden, above 0 and below 1.

    Returns:
        ``(batch,)``.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: Yang et al., "ViTKD: Practical Guidelines for ViT feature knowledge distillation", arXiv 2209.02432.

    Example:
        >>> vitkd_generation(torch.ones(1, 2, 3), torch.zeros(1, 2, 3), torch.tensor([[True, False]]), masked=0.5)
        tensor([6.])
    """
    student, teacher = checks.feature_pair(student_features, teacher_features, checks.TOKENS)
    squares = (student - teacher).square().sum(2)
    _share(masked)
    if not isinstance(hidden, Tensor) or hidden.dtype != torch.bool:
        instead = "type tutelage.losses.hide(torch.rand(batch, tokens), masked=0.5)"
        raise InvalidTypeError("hidden", "a bool tensor", checks.kind_of(hidden), instead)
    if hidden.shape != squares.shape:
        expected = f"shape {tuple(squares.shape)}, a value per token"
        instead = f"type tutelage.losses.hide(torch.rand{tuple(squares.shape)}, masked={masked})"
        raise InvalidValueError("hidden", expected, tuple(hidden.shape), instead)
    return squares.masked_fill(~hidden, 0.0).sum(1) / masked


def hide(noise: Tensor, *, masked: float) -> Tensor:
    """Choose the tokens to hide: in each sample, all but the ``int(tokens * (1 - masked))`` with the smallest noise.

    Args:
        noise: ``(batch, tokens)``, such as ``torch.rand(batch, tokens)``.
        masked: share of tokens to hide, above 0 and below 1.

    Returns:
        ``(batch, tokens)`` bool, true where hidden.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: Yang et al., "ViTKD: Practical Guidelines for ViT feature knowledge distillation", arXiv 2209.02432.

    Example:
        >>> hide(torch.tensor([[0.3, 0.1, 0.9, 0.5]]), masked=0.5)
        tensor([[False, False,  True,  True]])
    """
    noise = checks.features(noise, "noise", axes=("batch", "tokens"))
    _share(masked)
    kept = int(noise.shape[1] * (1 - masked))
    hidden = torch.ones_like(noise, dtype=torch.bool)
    return hidden.scatter(1, noise.argsort(dim=1, stable=True)[:, :kept], False)


def _share(masked: float) -> None:
    checks.positive(masked, "masked", example=0.5)
    checks.fraction(masked, "masked", example=0.5)
