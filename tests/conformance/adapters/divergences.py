"""Divergences of two distributions, by definition and as public code has them for tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from adapters.case import Adapter, Case, kept
from tutelage import losses, targets


def _by_definition(case: Case) -> Tensor:
    cost = {name: case[name] for name in case.inputs if name == "cost"}
    return losses.divergence(case["z_s"], case["z_t"], **case.hyper, **cost).mean()


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


def _alpha_beta(case: Case, *, teacher: float = 1.0, prefix: str = "ab_") -> Tensor:
    """At exponents of 0 the code's factor is the reciprocal of the one that is left, that of the limit its square."""
    alpha, beta = (case.hyper[prefix + name] for name in ("alpha", "beta"))
    temperature = case.hyper.get("kd_T", 1.0)
    values = losses.divergence(
        case["z_s"], teacher * case["z_t"], kind="alpha_beta", alpha=alpha, beta=beta, temperature=temperature
    )
    left = {(True, False): beta, (False, True): alpha}.get((alpha == 0, beta == 0), 1.0)
    return values * (alpha if alpha + beta == 0 and alpha else left)


def _alpha_beta_of_standardised(case: Case) -> Tensor:
    z_s, z_t = (losses.standardise(case[z]) for z in ("z_s", "z_t"))
    numbers = {"alpha": case.hyper["ab_alpha"], "beta": case.hyper["ab_beta"], "temperature": case.hyper["kd_T"]}
    return case.hyper["kd_T"] ** 2 * losses.divergence(z_s, z_t, kind="alpha_beta", **numbers).mean()


def _abdkd(case: Case) -> Tensor:
    hyper = case.hyper
    numbers = {"alpha": hyper["dkd_alpha"], "beta": hyper["dkd_beta"], "temperature": hyper["kd_T"]}
    exponents = {name: hyper[name] for name in ("ab_alpha", "ab_beta")}
    return losses.abdkd(case["z_s"], case["z_t"], case["y"], **numbers, **exponents).mean()


def _adaptive_with_the_class_that_crosses(case: Case) -> Tensor:
    """The rest is what adds up to at most alpha from the least likely class on; a sum over tokens."""
    temperature = case.hyper["kd_temp"]
    values = [
        losses.divergence(case["z_s"], case["z_t"], kind=kind, temperature=temperature)
        for kind in ("forward", "reverse")
    ]
    q, p = ((case[z].detach() / temperature).softmax(dim=-1) for z in ("z_s", "z_t"))
    ascending, order = p.sort(dim=-1)
    rest = ascending.cumsum(dim=-1) <= case.hyper["adaptive_kl_alpha"]
    gaps = (p - q).abs().gather(-1, order)
    share = (gaps * ~rest).sum(dim=-1) / gaps.sum(dim=-1).clamp(min=1e-300)
    return _summed(case, share * values[0] + (1 - share) * values[1])


def _summed(case: Case, values: Tensor) -> Tensor:
    return (values * (case["mask"] != 0)).sum()


def _transport(case: Case) -> Tensor:
    log_q, log_p = ((case[z] / case.hyper["temperature"]).log_softmax(dim=-1) for z in ("z_s", "z_t"))
    return losses.transport(log_q, log_p, cost=case["cost"].relu() + 1e-8, **_sinkhorn(case)).mean()


def _wkd_l(case: Case) -> Tensor:
    z_s, z_t, y = case["z_s"], case["z_t"], case["y"]
    cost = losses.class_cost(case["fc.weight"], sharpen=case.hyper["sharpen"]) + 1e-8
    others = losses.wkd_l(z_s, z_t, y, cost=cost, temperature=case.hyper["temperature"], **_sinkhorn(case))
    of_label = losses.nkd(z_s, z_t, y, gamma=0.0, temperature=1.0)
    return (of_label + case.hyper["gamma"] * others).mean()


def _sinkhorn(case: Case) -> dict[str, Any]:
    return {name: case.hyper[name] for name in ("sinkhorn_lambda", "sinkhorn_iter")} | {"guard": 1e-8}


METHODS: Mapping[str, Adapter] = {
    "divergence": _by_definition,
    "GJSD": _gjsd,
    "FKL.llm": _token_cross_entropy,
    "RKL.llm": lambda c: _token_divergence(c, "reverse"),
    "SymKL.llm": _symmetric_kl,
    "TVD.llm": lambda c: _token_divergence(c, "total_variation"),
    "JSD.llm": lambda c: _token_divergence(c, "jensen_shannon", beta=1 - c.hyper["lam"]),
    "SFKL.llm": _skewed_cross_entropy,
    "SRKL.llm": lambda c: _token_divergence(c, "skew_reverse", alpha=c.hyper["lam"]),
    "ABKD": lambda c: _alpha_beta(c).mean(),
    "ABKD.llm": lambda c: kept(c, _alpha_beta(c, prefix="")),
    "ABTTM": lambda c: _alpha_beta(c, teacher=c.hyper["ttm_l"]).mean(),
    "ABLS": _alpha_beta_of_standardised,
    "ABDKD": _abdkd,
    "AKL": lambda c: _token_divergence(c, "adaptive", mu=c.hyper["mu"]),
    "AKL.dskd": _adaptive_with_the_class_that_crosses,
    "ToDi": lambda c: _summed(
        c, losses.divergence(c["z_s"], c["z_t"], kind="class_wise", temperature=c.hyper["kd_temp"])
    ),
    "WKD-L.transport": _transport,
    "WKD-L": _wkd_l,
}
