"""Losses of language models whose vocabularies differ, so that an answer has other tokens, and other numbers of them.

The k-th position of one network's answer stands beside the k-th of the other's, as far as the shorter answer goes.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage import checks
from tutelage.errors import InvalidTypeError, InvalidValueError
from tutelage.losses.divergences import KINDS
from tutelage.losses.layers import mean_of


def uld(
    student_logits: Tensor,
    teacher_logits: Tensor,
    student_counted: Tensor | None = None,
    teacher_counted: Tensor | None = None,
    *,
    temperature: float = 1.0,
) -> Tensor:
    """Compute the universal logit distillation loss, of networks whose classes and positions differ.

    ``(1 / n) * sum_k sum_i |sort(q_k)[i] - sort(p_k)[i]|``: the probabilities of both networks at the k-th position
    that counts, each sorted from the largest, the shorter row filled with 0; ``n`` is the smaller of both numbers of
    positions. It is the optimal transport between the two where moving any class to any other costs the same.
    Positions are those that predict a token, so the one before it.

    Args:
        student_logits: ``(batch, *positions, classes)``, ``z``; ``q = softmax(z / temperature)``.
        teacher_logits: ``(batch, *positions, classes)``, ``v``; positions and classes may be others.
        student_counted: which of the student's positions count, ``(batch, *positions)`` bool; ``None`` for all.
        teacher_counted: which of the teacher's do.
        temperature: finite and above 0; it divides both networks' logits.

    Returns:
        ``(batch,)``, in [0, 2]: the mean over a sample's positions; 0 where none counts. There is no ``T**2``.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: Boizard et al., "Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for LLMs",
        arXiv 2402.12030.
    Differs from: TRL's default, which reads the position of the token itself, where a network predicts the next one.

    Example:
        >>> student, teacher = torch.tensor([[[0.5, 0.5]]]).log(), torch.tensor([[[0.2, 0.2, 0.6]]]).log()
        >>> uld(student, teacher)
        tensor([0.6000])
    """
    log_q, log_p, shared = _beside(student_logits, teacher_logits, student_counted, teacher_counted, temperature)
    return mean_of(_sorted_distance(log_q.exp(), log_p.exp()), shared)


def gold(
    student_logits: Tensor,
    teacher_logits: Tensor,
    student_counted: Tensor | None = None,
    teacher_counted: Tensor | None = None,
    *,
    same_tokens: Tensor | None = None,
    beta: float = 0.5,
    temperature: float = 1.0,
    matched_weight: float | None = None,
    unmatched_weight: float | None = None,
) -> Tensor:
    """Compute a divergence on the tokens that both vocabularies have, and the sorted distance of `uld` on the others.

    ``(1 / n) * sum_k (w_m * D(p_k[m] || q_k[m]) + w_u * sum_i |sort(q_k[u])[i] - sort(p_k[u])[i]|)``, with the matched
    classes ``m`` and the others ``u``. ``D`` is the generalised Jensen-Shannon divergence of `divergence` with
    ``beta``, ``KL(p || q)`` at 0 and ``KL(q || p)`` at 1, on probabilities as they are: those of ``m`` alone do not add
    up to 1, so at 0 and 1 it may be negative.

    Args:
        student_logits: ``(batch, *positions, classes)``, ``z``.
        teacher_logits: ``(batch, *positions, classes)``, ``v``; positions and classes may be others.
        student_counted: which of the student's positions count, ``(batch, *positions)`` bool; ``None`` for all.
        teacher_counted: which of the teacher's do.
        same_tokens: classes that are the same, ``(pairs, 2)`` int64, the student's and the teacher's, each at most
            once (not checked); ``None`` where all classes are.
        beta: teacher's share of the mixture, in [0, 1].
        temperature: finite and above 0; it divides both networks' logits.
        matched_weight: ``w_m``; by default the share of the teacher's classes that are matched.
        unmatched_weight: ``w_u``; by default ``1 - w_m`` of that default.

    Returns:
        ``(batch,)``: the mean over a sample's positions; 0 where none counts. There is no ``T**2``.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: Patiño et al., "Unlocking On-Policy Distillation for Any Model Family", 2025, and its trainer in TRL.
    Differs from: TRL, which takes probabilities below 1e-8 for that number, so that they have no gradient, and reads
        the position of the token itself; here logarithms are taken before the exponential, of the position before.
        TRL also merges the positions of tokens that together are one of the other vocabulary.

    Example:
        >>> student, teacher = torch.tensor([[[0.5, 0.5]]]).log(), torch.tensor([[[0.2, 0.2, 0.6]]]).log()
        >>> gold(student, teacher, same_tokens=torch.tensor([[0, 1]]), beta=0.0)
        tensor([0.1389])
    """
    checks.share(beta, "beta", example=0.5)
    for name, weight in (("matched_weight", matched_weight), ("unmatched_weight", unmatched_weight)):
        if weight is not None:
            checks.weight(weight, name, example=0.5)
    log_q, log_p, shared = _beside(student_logits, teacher_logits, student_counted, teacher_counted, temperature)
    mine, its = _pairs(same_tokens, log_q, log_p)
    divergence = {0.0: KINDS["forward"], 1.0: KINDS["reverse"]}.get(beta, partial(KINDS["jensen_shannon"], beta=beta))
    pair = log_q.index_select(-1, mine), log_p.index_select(-1, its)
    matched = divergence(*pair) if len(its) else log_q.new_zeros(())
    # A class of probability 0 stands where the filling does, so matched ones need not be cut out.
    others = _sorted_distance(log_q.exp().index_fill(-1, mine, 0.0), log_p.exp().index_fill(-1, its, 0.0))
    share = len(its) / log_p.shape[-1]
    w_m = share if matched_weight is None else matched_weight
    w_u = 1 - share if unmatched_weight is None else unmatched_weight
    return mean_of(w_m * matched + w_u * others, shared)


def _beside(
    student_logits: Tensor,
    teacher_logits: Tensor,
    student_counted: Tensor | None,
    teacher_counted: Tensor | None,
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-probabilities ``(batch, positions, classes)``, the k-th of both side by side, and which are of both.

    Positions are as many as the network with fewer has; on an accelerator the host waits for no number of theirs.
    """
    checks.positive(temperature, "temperature", example=1.0)
    z, ours = _answer(student_logits, student_counted, "student")
    v, theirs = _answer(teacher_logits, teacher_counted, "teacher")
    if len(z) != len(v):
        expected = f"those of {len(z)} samples, as student_logits"
        raise InvalidValueError("teacher_logits", expected, len(v), "feed both networks the same batch")
    length = min(z.shape[1], v.shape[1])
    shared = torch.arange(length, device=z.device) < torch.minimum(ours.sum(1), theirs.sum(1))[:, None]
    log_q, log_p = (
        (_first(x, mask, length) / temperature).log_softmax(-1) for x, mask in ((z, ours), (v.detach(), theirs))
    )
    return log_q, log_p, shared


def _answer(logits: Tensor, counted: Tensor | None, who: str) -> tuple[Tensor, Tensor]:
    """Return logits ``(batch, positions, classes)``, and which of these positions count."""
    logits = checks.classwise(logits, f"{who}_logits")
    if logits.ndim < 2:
        instead = "put the samples on the first axis and the classes on the last"
        raise InvalidValueError(f"{who}_logits", "shape (batch, *positions, classes)", tuple(logits.shape), instead)
    if counted is None:
        counted = torch.ones(logits.shape[:-1], dtype=torch.bool, device=logits.device)
    counted = checks.mask(counted, logits.shape[:-1], f"{who}_counted")
    size = len(logits), logits.shape[1:-1].numel()
    return logits.reshape(*size, logits.shape[-1]), counted.reshape(size)


def _first(logits: Tensor, counted: Tensor, length: int) -> Tensor:
    """Return the logits of so many positions of each sample: those that count in order, then others."""
    order = counted.byte().argsort(dim=1, descending=True, stable=True)[:, :length]
    return logits[torch.arange(len(logits), device=logits.device)[:, None], order]


def _pairs(same_tokens: Tensor | None, log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    """Return the matched classes of both networks."""
    classes = log_q.shape[-1], log_p.shape[-1]
    if same_tokens is None:
        if classes[0] != classes[1]:
            instead = "type same_tokens=... with the pairs of classes that are the same"
            raise InvalidValueError("teacher_logits", f"the student's {classes[0]} classes", classes[1], instead)
        every = torch.arange(classes[0], device=log_q.device)
        return every, every
    instead = "type torch.tensor([[student's id, teacher's id], ...])"
    if not isinstance(same_tokens, Tensor):
        raise InvalidTypeError("same_tokens", "a torch.Tensor", type(same_tokens).__name__, instead)
    if same_tokens.dtype != torch.int64 or same_tokens.ndim != 2 or same_tokens.shape[1] != 2:
        got = f"{same_tokens.dtype} of {tuple(same_tokens.shape)}"
        raise InvalidValueError("same_tokens", "int64 (pairs, 2)", got, instead)
    if same_tokens.device.type == "cpu" and not torch.compiler.is_compiling():
        outside = same_tokens[((same_tokens < 0) | (same_tokens >= torch.tensor(classes))).any(1)]
        if len(outside):
            expected = f"classes in 0..{classes[0] - 1} and 0..{classes[1] - 1}"
            raise InvalidValueError("same_tokens", expected, outside[0].tolist(), "give those of the logits' last axis")
    mine, its = same_tokens.unbind(1)
    return mine, its


def _sorted_distance(q: Tensor, p: Tensor) -> Tensor:
    """Return the sum of the differences of probabilities, sorted from the largest, the shorter row filled with 0."""
    q, p = (x.sort(-1, descending=True).values for x in (q, p))
    more = p.shape[-1] - q.shape[-1]
    return (F.pad(q, (0, max(more, 0))) - F.pad(p, (0, max(-more, 0)))).abs().sum(-1)
