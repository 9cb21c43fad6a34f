"""Losses of several views of a sample, or of several heads."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from adapters.case import Adapter, Case
from tutelage import losses


def _both(case: Case, network: str) -> Tensor:
    return torch.stack((case[f"z_{network}_weak"], case[f"z_{network}_strong"]), dim=1).flatten(0, 1)


def _crld(case: Case) -> Tensor:
    names = {"temperature": "TEMPERATURE", "within": "WV_WEIGHT", "across": "CV_WEIGHT", "tau_w": "TAU_W"}
    numbers = {ours: case.hyper[theirs] for ours, theirs in {**names, "tau_s": "TAU_S"}.items()}
    return losses.crld(_both(case, "s"), _both(case, "t"), masked_by="pair", **numbers).mean()


def _mlkd(case: Case) -> Tensor:
    """The published composition: shares of a mask for the weak view, which the strong one's sum reads at T 2 and 6."""
    weak, strong = (case["z_s_weak"], case["z_t_weak"]), (case["z_s_strong"], case["z_t_strong"])
    p = weak[1].softmax(-1)
    samples, classes = ((c <= c.quantile(0.5)).to(c.dtype).mean() for c in (p.amax(-1), p.sum(0)))

    def kd(pair: tuple[Tensor, Tensor], temperature: float) -> Tensor:
        student, teacher = map(losses.standardise, pair) if case.hyper["logit_stand"] else pair
        return losses.kd(student, teacher, temperature=temperature).mean()

    total = torch.zeros(())
    for temperature, second in zip((case.hyper["T"], 3.0, 5.0, 2.0, 6.0), (strong,) * 3 + (weak,) * 2, strict=True):
        total = total + samples * kd(weak, temperature) + kd(second, temperature)
        total = total + samples * losses.mlkd_batch(*weak, temperature=temperature)
        total = total + classes * losses.mlkd_class(*weak, temperature=temperature)
    return case.hyper["kd_weight"] * total


def _deit(case: Case) -> Tensor:
    """The published soft form is divided by the classes as well."""
    alpha, token, teacher = case.hyper["alpha"], case["z_kd"], case["z_t"]
    if case.hyper["distillation_type"] == "hard":
        distilled = losses.hard_label(token, teacher)
    else:
        distilled = losses.kd(token, teacher, temperature=case.hyper["tau"]) / token.shape[-1]
    return (1 - alpha) * losses.cross_entropy(case["z_s"], case["y"]).mean() + alpha * distilled.mean()


METHODS: Mapping[str, Adapter] = {"CRLD": _crld, "LSKD.MLKD": _mlkd, "DeiT": _deit}
