"""Divergences of two distributions, by definition and as public code has them for tokens."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from adapters.case import Adapter, Case, kept
from tutelage import losses, targets


def _by_definition(case: Case) -> Tensor:
    return losses.divergence(case["z_s"], case["z_t"], **case.hyper).mean()


def _token_divergence(case: Case, kind: str, **number: float) -> Tensor:
    return kept(case, losses.divergence(case["z_s"], case["z_t"], kind=kind, **number))


def _token_cross_entropy(case: Case) -> Tensor:
    return kept(case, losses.cross_entropy(case["z_s"], case["z_t"].softmax(dim=-1)))


def _gjsd(case: Case) -> Tensor:
    """The ends are the two KL divergences; the temperature comes without its square.

    Where nothing is kept the value is 0; without a mask the sum is divided by the sequences.
    """
    beta, temperature = case.hyper["beta"], case.hyper["temperature"]
    how = {0.0: {"kind": "forward"}, 1.0: {"kind": "reverse"}}.get(beta, {"kind": "jensen_shannon", "beta": beta})
    values = losses.divergence(case["z_s"] / temperature, case["z_t"] / temperature, **how)
    if "mask" not in case.inputs:
        return values.sum() / len(values)
    kept = case["mask"] != 0
    return (values * kept).sum() / kept.sum().clamp(min=1)


def _symmetric_kl(case: Case) -> Tensor:
    ratio = case.hyper["sym_kd_ratio"]
    return ratio * _token_cross_entropy(case) + (1 - ratio) * _token_divergence(case, "reverse")


def _skewed_cross_entropy(case: Case) -> Tensor:
    """The skewed divergence and the teacher's entropy."""
    entropy = kept(case, targets.shannon_entropy(case["z_t"].log_softmax(dim=-1)))
    return _token_divergence(case, "skew", alpha=case.hyper["lam"]) + entropy


def _skewed_reverse(case: Case) -> Tensor:
    """``KL(q || m)``: what is left of the Jensen-Shannon divergence without its other term."""
    lam = case.hyper["lam"]
    both = _token_divergence(case, "jensen_shannon", beta=1 - lam)
    return (both - (1 - lam) * _token_divergence(case, "skew", alpha=1 - lam)) / lam


METHODS: Mapping[str, Adapter] = {
    "divergence": _by_definition,
    "GJSD": _gjsd,
    "FKL.llm": _token_cross_entropy,
    "RKL.llm": lambda c: _token_divergence(c, "reverse"),
    "SymKL.llm": _symmetric_kl,
    "TVD.llm": lambda c: _token_divergence(c, "total_variation"),
    "JSD.llm": lambda c: _token_divergence(c, "jensen_shannon", beta=1 - c.hyper["lam"]),
    "SFKL.llm": _skewed_cross_entropy,
    "SRKL.llm": _skewed_reverse,
}
