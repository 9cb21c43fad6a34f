"""Targets that move between the student and the teacher, and distributions that are mixed with the student."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from adapters.case import Adapter, Case, kept
from tutelage import losses, targets
from tutelage.types import UNLABELLED


def _taid(case: Case) -> Tensor:
    """The code's cross-entropy: the divergence plus the target's entropy."""
    logits, t = (case["z_s"], case["z_t"]), case.hyper["t"]
    return kept(case, losses.taid(*logits, t=t) + targets.shannon_entropy(losses.taid_target(*logits, t=t)))


def _distillm2(case: Case, of: str) -> Tensor:
    """A position predicts the next label; means are over each sequence first, and the gradient goes through shares."""
    student, teacher = (case[name][:, :-1] for name in ("z_s", "z_t"))
    counts = case["mask"][:, 1:] != 0
    number, gap = {"teacher": (1, "logp_logq"), "student": (2, "logq_logp")}[of]
    share: float | Tensor = case.hyper[f"base_alpha_{number}"]
    if case.hyper["loss_type"] == "distillm_v2":
        labels = torch.where(counts, case["y"][:, 1:], UNLABELLED)
        share = losses.adaptive_share(student, teacher, labels, share=share, anchor=case.hyper[gap], of=of)
    values = losses.skewed_kl(student, teacher, share=share, of=of)
    return ((values * counts).sum(-1) / counts.sum(-1)).mean()


METHODS: Mapping[str, Adapter] = {
    "TAID": _taid,
    "SKL.distillm2": lambda c: _distillm2(c, "teacher"),
    "SRKL.distillm2": lambda c: _distillm2(c, "student"),
}
