"""Losses: pure functions of tensors; student first, teacher second, labels third, hyperparameters by keyword."""

from tutelage.losses.logits import (
    confidence_penalty,
    cross_entropy,
    kd,
    kl_divergence,
    renyi_penalty,
    ttm,
    wttm,
)

__all__ = [
    "confidence_penalty",
    "cross_entropy",
    "kd",
    "kl_divergence",
    "renyi_penalty",
    "ttm",
    "wttm",
]
