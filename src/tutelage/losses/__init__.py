"""Losses: pure functions of tensors; student first, teacher second, labels third, hyperparameters by keyword."""

from tutelage.losses.contrastive import bank_scores, contrast, crd, log_normaliser, moved
from tutelage.losses.features import (
    attention_transfer,
    hide,
    hint,
    prime_aware,
    same_size,
    vid,
    vitkd_generation,
    vitkd_mimic,
)
from tutelage.losses.logits import (
    confidence_penalty,
    cross_entropy,
    kd,
    kl_divergence,
    renyi_penalty,
    transformed_matching,
    ttm,
    wttm,
)
from tutelage.losses.maps import activation_boundary, factor_difference, factor_transfer, fsp, kd_svd
from tutelage.losses.relations import itrd_correlation, itrd_mutual

__all__ = [
    "activation_boundary",
    "attention_transfer",
    "bank_scores",
    "confidence_penalty",
    "contrast",
    "crd",
    "cross_entropy",
    "factor_difference",
    "factor_transfer",
    "fsp",
    "hide",
    "hint",
    "itrd_correlation",
    "itrd_mutual",
    "kd",
    "kd_svd",
    "kl_divergence",
    "log_normaliser",
    "moved",
    "prime_aware",
    "renyi_penalty",
    "same_size",
    "transformed_matching",
    "ttm",
    "vid",
    "vitkd_generation",
    "vitkd_mimic",
    "wttm",
]
