"""Teachers of which some classes are known."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from adapters.case import Adapter, Case, kept
from tutelage import losses
from tutelage.types import Sparse


def _with_least_rest(logits: Tensor, index: Tensor, least: float) -> Tensor:
    """The published codes keep the rest from falling below a number; where it would, its gradient ends."""
    log_probs = losses.with_rest(logits, index)
    return torch.cat([log_probs[..., :-1], log_probs[..., -1:].clamp(min=math.log(least))], -1)


def _trl_top_k(case: Case) -> Tensor:
    """With the tail, or both networks renormalised; 0 where nothing is kept."""
    z_s, z_t, top = case["z_s"], case["z_t"], case.hyper["loss_top_k"]
    if case.hyper["loss_add_tail"]:
        index, least = z_t.topk(top).indices, -math.expm1(-1e-7)
        values = losses.kl_divergence(*(_with_least_rest(z, index, least) for z in (z_s, z_t)))
    else:
        values = losses.top_k(z_s, z_t, top=top, rest="renormalised")
    return kept(case, values) if (case["mask"] != 0).any() else 0 * values.sum()


def _distillkit_kl(case: Case) -> Tensor:
    """``zero`` takes the top for all there is; the bucket's rest is raised to ``1 / T`` as one class."""
    z_s, z_t, temperature = case["z_s"], case["z_t"], case.hyper["temperature"]
    values, index = z_t.log_softmax(-1).topk(case.hyper["k"])
    if case.hyper["missing"] == "zero":
        absent = torch.full_like(values[..., 0], -torch.inf)
        teacher = Sparse(values, index, absent, z_t.shape[-1])
        return kept(case, losses.kd(z_s, teacher, temperature=temperature))
    log_p = _with_least_rest(z_t, index, 1e-8)
    if temperature != 1:
        log_p = (log_p / temperature).log_softmax(-1)
    divergence = losses.kl_divergence(_with_least_rest(z_s / temperature, index, 1e-8), log_p)
    return kept(case, temperature**2 * divergence)


def _rskd(case: Case) -> Tensor:
    """The weights divided by their sum or number, a floor under the proposal, and the drawn classes' own entropy."""
    z_t, ids, temperature = case["z_t"], case["ids"], case.hyper["T_kd"]
    log_p = (z_t / temperature).log_softmax(-1).gather(-1, ids)
    proposal = (case.hyper["proposal"] * z_t).softmax(-1).gather(-1, ids).clamp(min=1e-12)
    weights = (z_t.log_softmax(-1).gather(-1, ids) / temperature).exp() / proposal
    weights = weights / (weights.sum(-1, keepdim=True) if case.hyper["self_norm"] else weights.shape[-1])
    entropy = (weights * log_p.log_softmax(-1)).sum(-1)
    return (entropy + losses.sampled_cross_entropy(case["z_s"] / temperature, ids, weights)).mean()


METHODS: Mapping[str, Adapter] = {
    "TRL.topk": _trl_top_k,
    "DistillKit.KL": _distillkit_kl,
    "RSKD.sampled": _rskd,
}
