"""Losses: pure functions of tensors; student first, teacher second, labels third, hyperparameters by keyword."""

from tutelage.losses.batch_logits import dist, mlkd_batch, mlkd_class
from tutelage.losses.contrastive import bank_scores, contrast, crd, log_normaliser, moved
from tutelage.losses.features import hide, vitkd_generation, vitkd_mimic
from tutelage.losses.logits import (
    confidence_penalty,
    cross_entropy,
    ctkd,
    kd,
    kl_divergence,
    renyi_penalty,
    scaled_gradient,
    standardise,
    teacher_free_kd,
    transformed_matching,
    ttm,
    wttm,
)
from tutelage.losses.relations import itrd_correlation, itrd_mutual
from tutelage.losses.targeted import dkd, nkd, wsld

__all__ = [
    "bank_scores",
    "confidence_penalty",
    "contrast",
    "crd",
    "cross_entropy",
    "ctkd",
    "dist",
    "dkd",
    "hide",
    "itrd_correlation",
    "itrd_mutual",
    "kd",
    "kl_divergence",
    "log_normaliser",
    "mlkd_batch",
    "mlkd_class",
    "moved",
    "nkd",
    "renyi_penalty",
    "scaled_gradient",
    "standardise",
    "teacher_free_kd",
    "transformed_matching",
    "ttm",
    "vitkd_generation",
    "vitkd_mimic",
    "wsld",
    "wttm",
]
