"""Networks of unlike vocabularies, and networks that return embeddings or scores."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from adapters.case import Adapter, Case
from tutelage import losses

FLOOR = 1e-8
"""What the code of the hybrid takes smaller probabilities for."""


def _answers(case: Case, *, shifted: bool) -> list[Tensor]:
    """Return which positions of each network count: those that predict the answer, or ``shifted`` by one behind."""
    masks = []
    for who, z in (("student", case["z_s"]), ("teacher", case["z_t"])):
        prompt, answer = (torch.tensor(case.hyper[f"{who}_{part}"])[:, None] for part in ("prompt", "answer"))
        first, size = prompt - int(not shifted), answer - int(case.hyper.get(f"skip_{who}_eos", False))
        places = torch.arange(z.shape[1])
        masks.append((places >= first) & (places < first + size))
    return masks


def _uld(case: Case, *, shifted: bool) -> Tensor:
    values = losses.uld(
        case["z_s"],
        case["z_t"],
        *_answers(case, shifted=shifted),
        temperature=case.hyper["student_temperature"],
    )
    return case.hyper["distillation_weight"] * values.mean()


def _gold(case: Case) -> Tensor:
    """The code takes small probabilities of matched tokens for `FLOOR`: where there are some, that part is by hand."""
    z_s, z_t, masks = case["z_s"], case["z_t"], _answers(case, shifted=True)
    same, beta = torch.tensor(case.hyper["matched_ids"]).flip(1), case.hyper["beta"]
    w_m, w_u = case.hyper["hybrid_matched_weight"], case.hyper["hybrid_unmatched_weight"]
    q, p = (z.softmax(-1)[..., each] for z, each in zip((z_s, z_t), same.unbind(1), strict=True))
    more = {"same_tokens": same, "beta": beta, "unmatched_weight": w_u}
    if min(q.min(), p.min()) >= FLOOR:
        return losses.gold(z_s, z_t, *masks, **more, matched_weight=w_m).mean()
    total = losses.gold(z_s, z_t, *masks, **more, matched_weight=0.0)
    w_m = len(same) / z_t.shape[-1] if w_m is None else w_m
    for sample, counted in enumerate(zip(*masks, strict=True)):
        a, b = (x[sample][rows].clamp(min=FLOOR) for x, rows in zip((q, p), counted, strict=True))
        a, b = a[: len(b)], b[: len(a)]
        m = (1 - beta) * a + beta * b
        matched = beta * b * (b / m).log() + (1 - beta) * a * (a / m).log()
        total = total.index_add(0, torch.tensor([sample]), w_m * matched.sum(-1).mean()[None])
    return total.mean()


DISTANCES = {"cosine": losses.cosine_distance, "l2": losses.embedding_distance, "mse": losses.embedding_mse}


def _embed_distill(case: Case) -> Tensor:
    """The mean over the columns of a row, such as its two texts; one column of the teacher stands beside all."""
    ours, theirs = (_columns(case, f"e_{who}") for who in "st")
    if "projection.weight" in case.inputs:
        ours = [F.linear(each, case["projection.weight"], case["projection.bias"]) for each in ours]
    theirs = theirs * (len(ours) // len(theirs))
    distance = DISTANCES[case.hyper["distance_metric"]]
    return torch.stack([distance(s, t).mean() for s, t in zip(ours, theirs, strict=True)]).mean()


def _columns(case: Case, name: str) -> list[Tensor]:
    return [case[each] for each in case.inputs if each.startswith(name)]


def _scores(case: Case, documents: str) -> Tensor:
    """The dot products of a query with its documents."""
    return torch.stack([(case["e_q"] * each).sum(-1) for each in _columns(case, documents)], dim=-1)


def _margin_mse(case: Case) -> Tensor:
    positive, negatives = _scores(case, "e_pos"), _scores(case, "e_neg")
    return losses.margin_mse(torch.cat([positive, negatives], dim=-1), case["scores"]).mean()


def _score_kl(case: Case) -> Tensor:
    temperatures = {"temperature": "student_temperature", "teacher_temperature": "teacher_temperature"}
    at = {ours: case.hyper[theirs] for ours, theirs in temperatures.items()}
    return losses.score_kl(_scores(case, "e_doc"), case["scores"], **at).mean()


def _liger_cosine(case: Case) -> Tensor:
    """The code leaves ignored positions in the sum, and divides by the number of the others."""
    values = losses.hidden_states(case["z_s"], case["z_t"], distance="cosine")
    return case.hyper["beta"] * values.sum() / (case["mask"] != 0).sum()


METHODS: Mapping[str, Adapter] = {
    "ULD": lambda c: _uld(c, shifted=False),
    "ULD.trl": lambda c: _uld(c, shifted=c.hyper["token_merge_strategy"] == "observed"),
    "GOLD.hybrid": _gold,
    "EmbedDistill": _embed_distill,
    "MarginMSE": _margin_mse,
    "ST.DistillKL": _score_kl,
    "Liger.cosine": _liger_cosine,
}
