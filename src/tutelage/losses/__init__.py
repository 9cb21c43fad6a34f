"""Losses: pure functions of tensors; student first, teacher second, labels third, hyperparameters by keyword."""

from tutelage.losses.contrastive import bank_scores, contrast, crd, log_normaliser, moved
from tutelage.losses.features import hide, vitkd_generation, vitkd_mimic
from tutelage.losses.guided import norm_direction, ofd, ofd_margins, srrl_regression, srrl_statistics
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
from tutelage.losses.relations import itrd_correlation, itrd_mutual

__all__ = [
    "bank_scores",
    "confidence_penalty",
    "contrast",
    "crd",
    "cross_entropy",
    "hide",
    "itrd_correlation",
    "itrd_mutual",
    "kd",
    "kl_divergence",
    "log_normaliser",
    "moved",
    "norm_direction",
    "ofd",
    "ofd_margins",
    "renyi_penalty",
    "srrl_regression",
    "srrl_statistics",
    "transformed_matching",
    "ttm",
    "vitkd_generation",
    "vitkd_mimic",
    "wttm",
]
