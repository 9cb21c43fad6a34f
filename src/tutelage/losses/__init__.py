"""Losses: pure functions of tensors; student first, teacher second, labels third, hyperparameters by keyword."""

from tutelage.losses.channels import affinity, inter_channel, nst
from tutelage.losses.contrastive import bank_scores, contrast, crd, log_normaliser, moved
from tutelage.losses.features import hide, vitkd_generation, vitkd_mimic
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
from tutelage.losses.pairwise import correlation, correlation_kernel, pkt, rkd_angle, rkd_distance, similarity
from tutelage.losses.relations import itrd_correlation, itrd_mutual

__all__ = [
    "affinity",
    "bank_scores",
    "confidence_penalty",
    "contrast",
    "correlation",
    "correlation_kernel",
    "crd",
    "cross_entropy",
    "hide",
    "inter_channel",
    "itrd_correlation",
    "itrd_mutual",
    "kd",
    "kl_divergence",
    "log_normaliser",
    "moved",
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
    "wttm",
]
