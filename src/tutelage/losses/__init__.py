"""Losses: pure functions of tensors; student first, teacher second, labels third, hyperparameters by keyword."""

from tutelage.losses.batch_logits import dist, mlkd_batch, mlkd_class
from tutelage.losses.channels import affinity, inter_channel, nst
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
from tutelage.losses.pairwise import correlation, correlation_kernel, pkt, rkd_angle, rkd_distance, similarity
from tutelage.losses.relations import itrd_correlation, itrd_mutual
from tutelage.losses.targeted import dkd, nkd, wsld

__all__ = [
    "affinity",
    "bank_scores",
    "confidence_penalty",
    "contrast",
    "correlation",
    "correlation_kernel",
    "crd",
    "cross_entropy",
    "ctkd",
    "dist",
    "dkd",
    "hide",
    "inter_channel",
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
    "nst",
    "pkt",
    "renyi_penalty",
    "rkd_angle",
    "rkd_distance",
    "similarity",
    "transformed_matching",
    "ttm",
    "vitkd_generation",
    "vitkd_mimic",
    "wsld",
    "wttm",
]
