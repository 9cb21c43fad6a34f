"""Losses on features: one value a sample. In at least float32; no gradient reaches a teacher's features."""

from __future__ import annotations

import torch
from torch import Tensor

from tutelage import checks

TOKENS = ("batch", "tokens", "width")


def vitkd_mimic(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Compute the mimicking term of ViTKD: squared distances between tokens, summed over tokens and width.

    ``sum_{n, d} (s[n, d] - t[n, d])**2``: a sum, so it grows with both; the published weight is 3e-5.

    Args:
        student_features: ``(batch, tokens, width)``, any floating dtype, mapped to the teacher's width.
        teacher_features: the same shape; gets no gradient.

    Returns:
        ``(batch,)``, at least float32.

    Raises:
        TypeError: if features are not floating tensors.
        ValueError: if the shapes differ.

    Source: Yang et al., "ViTKD: Practical Guidelines for ViT feature knowledge distillation", arXiv 2209.02432.

    Example:
        >>> import torch
        >>> vitkd_mimic(torch.ones(1, 2, 3), torch.zeros(1, 2, 3))
        tensor([6.])
    """
    return _squares(*_pair(student_features, teacher_features)).sum((1, 2))


def vitkd_generation(student_features: Tensor, teacher_features: Tensor, hidden: Tensor, *, masked: float) -> Tensor:
    """Compute the generation term of ViTKD: squared distances between the tokens that were hidden, and made again.

    ``(1 / masked) * sum_{n hidden, d} (s[n, d] - t[n, d])**2``: a sum over hidden tokens and width, scaled up to all.

    Args:
        student_features: ``(batch, tokens, width)``, any floating dtype: tokens made from those that were not hidden.
        teacher_features: the same shape; gets no gradient.
        hidden: ``(batch, tokens)`` bool, of `hide`.
        masked: share of the tokens that were hidden, above 0 and below 1.

    Returns:
        ``(batch,)``, at least float32.

    Raises:
        TypeError: if features are not floating tensors, ``hidden`` is not bool or ``masked`` no Python number.
        ValueError: if the shapes do not fit, or ``masked`` is not above 0 and below 1.

    Source: Yang et al., "ViTKD: Practical Guidelines for ViT feature knowledge distillation", arXiv 2209.02432.

    Example:
        >>> import torch
        >>> vitkd_generation(torch.ones(1, 2, 3), torch.zeros(1, 2, 3), torch.tensor([[True, False]]), masked=0.5)
        tensor([6.])
    """
    squares = _squares(*_pair(student_features, teacher_features)).sum(2)
    _share(masked)
    if not isinstance(hidden, Tensor) or hidden.dtype != torch.bool:
        raise TypeError(
            f"hidden: expected a bool tensor, got {getattr(hidden, 'dtype', type(hidden).__name__)}; "
            "type losses.hide(torch.rand(batch, tokens), masked=0.5)"
        )
    if hidden.shape != squares.shape:
        raise ValueError(
            f"hidden: expected shape {tuple(squares.shape)}, a value a token, got {tuple(hidden.shape)}; "
            f"type losses.hide(torch.rand{tuple(squares.shape)}, masked={masked})"
        )
    return squares.masked_fill(~hidden, 0.0).sum(1) / masked


def hide(noise: Tensor, *, masked: float) -> Tensor:
    """Choose the tokens to hide: of each sample, all but the ``int(tokens * (1 - masked))`` of smallest noise.

    Args:
        noise: ``(batch, tokens)``, any floating dtype, such as ``torch.rand(batch, tokens)``.
        masked: share to hide, above 0 and below 1.

    Returns:
        ``(batch, tokens)`` bool, true where hidden.

    Raises:
        TypeError: if the noise is not a floating tensor or ``masked`` no Python number.
        ValueError: if its shape is another, or ``masked`` is not above 0 and below 1.

    Source: Yang et al., "ViTKD: Practical Guidelines for ViT feature knowledge distillation", arXiv 2209.02432.

    Example:
        >>> import torch
        >>> hide(torch.tensor([[0.3, 0.1, 0.9, 0.5]]), masked=0.5)
        tensor([[False, False,  True,  True]])
    """
    noise = checks.features(noise, "noise", axes=("batch", "tokens"))
    _share(masked)
    kept = int(noise.shape[1] * (1 - masked))
    hidden = torch.ones_like(noise, dtype=torch.bool)
    return hidden.scatter(1, noise.argsort(dim=1, stable=True)[:, :kept], False)


def _pair(student_features: Tensor, teacher_features: Tensor) -> tuple[Tensor, Tensor]:
    student_features = checks.features(student_features, "student_features", axes=TOKENS)
    teacher_features = checks.features(teacher_features, "teacher_features", axes=TOKENS).detach()
    checks.same_shape(student_features, teacher_features, "student_features", "teacher_features")
    return student_features, teacher_features


def _squares(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    return (student_features - teacher_features).square()


def _share(masked: float) -> None:
    checks.positive(masked, "masked", example=0.5)
    checks.fraction(masked, "masked", example=0.5)
