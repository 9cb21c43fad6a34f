"""Losses: pure functions of tensors; student first, teacher second, labels third, hyperparameters by keyword."""

from tutelage.losses.batch_logits import dist, mlkd_batch, mlkd_class
from tutelage.losses.channels import affinity, inter_channel, nst
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
from tutelage.losses.fusion import mgd, review
from tutelage.losses.guided import norm_direction, ofd, ofd_margins, srrl_regression, srrl_statistics
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
from tutelage.losses.maps import activation_boundary, factor_difference, factor_transfer, fsp, kd_svd
from tutelage.losses.pairwise import correlation, correlation_kernel, pkt, rkd_angle, rkd_distance, similarity
from tutelage.losses.relations import itrd_correlation, itrd_mutual, log_power, log_sum
from tutelage.losses.targeted import dkd, nkd, wsld

__all__ = [
    "activation_boundary",
    "affinity",
    "attention_transfer",
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
    "factor_difference",
    "factor_transfer",
    "fsp",
    "hide",
    "hint",
    "inter_channel",
    "itrd_correlation",
    "itrd_mutual",
    "kd",
    "kd_svd",
    "kl_divergence",
    "log_normaliser",
    "log_power",
    "log_sum",
    "mgd",
    "mlkd_batch",
    "mlkd_class",
    "moved",
    "nkd",
    "norm_direction",
    "nst",
    "ofd",
    "ofd_margins",
    "pkt",
    "prime_aware",
    "renyi_penalty",
    "review",
    "rkd_angle",
    "rkd_distance",
    "same_size",
    "scaled_gradient",
    "similarity",
    "srrl_regression",
    "srrl_statistics",
    "standardise",
    "teacher_free_kd",
    "transformed_matching",
    "ttm",
    "vid",
    "vitkd_generation",
    "vitkd_mimic",
    "wsld",
    "wttm",
]
