"""Losses that rank the classes, or read the logits of regions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from adapters.case import Adapter, Case
from tutelage import losses


def _rld(case: Case) -> Tensor:
    z, v, hyper = case["z_s"], case["z_t"], dict(case.hyper)
    if hyper.pop("logit_stand"):
        z, v = losses.standardise(z), losses.standardise(v)
    return losses.rld(z, v, case["y"], **hyper).mean()


def _ldrld(case: Case) -> Tensor:
    """Where all classes are ranked, the authors' rest is not empty but all of them."""
    z, v, hyper = case["z_s"], case["z_t"], case.hyper
    values = losses.ldrld(z, v, **hyper)
    if hyper["k"] == z.shape[-1]:
        values = values + hyper["beta"] * losses.kd(z, v, temperature=hyper["temperature"])
    return values.mean()


def _of_regions(case: Case, base: Any) -> Tensor:
    """The authors' regions are on the last axis."""
    z, v = case["z_s"].transpose(1, 2), case["z_t"].transpose(1, 2)
    return losses.sdd(z, v, case["y"], base=base).mean()


def _nkd_over_all(case: Case, z: Tensor, v: Tensor, y: Tensor) -> Tensor:
    """The authors' term of the other classes runs over the labelled one too."""
    temperature, gamma = case.hyper["temp"], case.hyper["gamma"]
    of_label = losses.nkd(z, v, y, gamma=0.0, temperature=1.0)
    of_all = losses.cross_entropy(z / temperature, (v / temperature).softmax(dim=-1))
    return of_label + gamma * temperature**2 * of_all


METHODS: Mapping[str, Adapter] = {
    "RLD": _rld,
    "LDRLD": _ldrld,
    "SDD.KD": lambda c: _of_regions(c, lambda z, v, y: losses.kd(z, v, temperature=c.hyper["T"])),
    "SDD.DKD": lambda c: _of_regions(c, lambda z, v, y: losses.dkd(z, v, y, **c.hyper)),
    "SDD.NKD": lambda c: _of_regions(c, lambda z, v, y: _nkd_over_all(c, z, v, y)),
}
