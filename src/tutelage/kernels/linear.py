"""Last linear layers, cross-entropy and weighted transformed teacher matching, a chunk of tokens at a time.

The logits of a large vocabulary take more memory than anything else in a step; here those of one chunk exist at a time.
The forward pass knows the weights of the terms, so it computes the gradients too, in the chunk's own memory; the
backward pass multiplies them by the incoming gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage import checks
from tutelage.kernels import joint
from tutelage.types import UNLABELLED, Loss

CHUNK = 1 << 25
"""Logits in a chunk where none is named: 134 MB in float32, twice, for the student and the teacher."""
SLICE = 1 << 12
"""Classes whose weights' gradient is made at a time where it must be widened before it is added."""


@torch.compiler.disable
def linear_cross_entropy_and_wttm(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    labels: Tensor,
    *,
    gamma: float,
    beta: float,
    supervised: float = 1.0,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    sample_weight: Tensor | None = None,
    ignore_index: int = UNLABELLED,
    chunk: int | None = None,
) -> Loss:
    """Compute cross-entropy plus WTTM of two last linear layers without their logits ever being whole in memory.

    ``supervised * sum_L w * CE / sum_L w + beta * sum w * WTTM / sum w`` with ``z = h W^T + b`` of each network, CE and
    WTTM as in `losses.cross_entropy` and `losses.wttm`, and ``w`` the tokens' weights, 1 where none are given. ``L``
    are the labelled tokens. *All* tokens take part in the matching term, labelled or not: a token that must not, such
    as padding, gets weight 0. A mean over no weight at all is 0, and so is its gradient.

    The logits of ``chunk`` tokens are made in the dtype of ``hidden``, the loss in at least float32, the weights'
    gradient is summed up in at least float32 and returned in the weights' dtype. Autocast has no effect in here. Beside
    what comes in and its gradients, memory holds two chunks of logits. Under ``torch.compile`` the graph breaks here.

    Args:
        student_hidden: ``(..., width)``, any floating dtype.
        student_weight: ``(classes, width)``, of the same dtype, as `torch.nn.Linear` keeps it.
        teacher_hidden: ``(..., width of the teacher)``, any floating dtype; gets no gradient.
        teacher_weight: ``(classes, width of the teacher)``, of the same dtype; gets no gradient.
        labels: ``(...)`` int64 class indices, or ``ignore_index``. Soft labels would be as large as the logits.
        gamma: the exponent, finite and above 0.
        beta: the weight of the matching term, finite and at least 0.
        supervised: the weight of the cross-entropy, finite and at least 0.
        student_bias: ``(classes,)``, of the student's dtype; none for 0.
        teacher_bias: ``(classes,)``, of the teacher's dtype; gets no gradient; none for 0.
        sample_weight: ``(...)``, floating, finite and at least 0 (not checked); gets no gradient; none for 1.
        ignore_index: the class index of a token without a label.
        chunk: tokens whose logits are made at a time, at least 1; none for about 2**25 logits.

    Returns:
        ``total``, ``()``, at least float32, and ``parts``: the two means, ``cross_entropy`` and ``wttm``, not weighted
        and detached.

    Raises:
        TypeError, ValueError: if a dtype, a shape or a number is not as above.
        RuntimeError: from a second derivative, and from a second backward pass through one call: the gradients are
            handed over, not copied. Call the function again.

    Source: Zheng and Yang, arXiv 2402.11148, Section 4; the gradient in the forward pass: Hsu et al., "Liger Kernel",
    arXiv 2410.10989.

    Example:
        >>> layer, labels = (torch.ones(2, 3), torch.eye(4, 3)), torch.tensor([0, -100])
        >>> loss = linear_cross_entropy_and_wttm(*layer, *layer, labels, gamma=1.0, beta=2.0)
        >>> loss.total, loss.parts["wttm"]
        (tensor(1.2143), tensor(0.))
    """
    _check_layer("student", student_hidden, student_weight, student_bias)
    _check_layer("teacher", teacher_hidden, teacher_weight, teacher_bias)
    if teacher_weight.shape[0] != student_weight.shape[0]:
        raise ValueError(
            f"teacher_weight: expected as many classes as student_weight, {student_weight.shape[0]}, got "
            f"{teacher_weight.shape[0]}; both networks need one vocabulary, in one order"
        )
    checks.positive(gamma, "gamma", example=0.1)
    checks.weight(beta, "beta", example=1.0)
    checks.weight(supervised, "supervised", example=1.0)
    tokens, classes = student_hidden.shape[:-1], student_weight.shape[0]
    if teacher_hidden.shape[:-1] != tokens:
        raise ValueError(
            f"teacher_hidden: expected the tokens of student_hidden, {tuple(tokens)}, got "
            f"{tuple(teacher_hidden.shape[:-1])}; feed both networks the same batch"
        )
    labels = _labels(labels, tokens, classes, ignore_index)
    weights = _weights(sample_weight, tokens, student_hidden)
    if chunk is None:
        chunk = max(1, CHUNK // classes)
    elif isinstance(chunk, bool) or not isinstance(chunk, int):
        raise TypeError(f"chunk: expected a number of tokens, got {type(chunk).__name__}; type for example chunk=256")
    elif chunk < 1:
        raise ValueError(f"chunk: expected at least 1 token, got {chunk}; type for example chunk=256")
    total, ce, wttm = _Linear.apply(
        student_hidden.reshape(-1, student_hidden.shape[-1]),
        student_weight,
        student_bias,
        teacher_hidden.detach().reshape(-1, teacher_hidden.shape[-1]),
        teacher_weight.detach(),
        teacher_bias.detach() if teacher_bias is not None else None,
        labels,
        weights,
        (float(gamma), float(beta), float(supervised), chunk),
    )
    return Loss(total, {"cross_entropy": ce, "wttm": wttm})


def _check_layer(name: str, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    joint.check_classwise(hidden, f"{name}_hidden")
    joint.check_classwise(weight, f"{name}_weight")
    if weight.ndim != 2 or weight.shape[1] != hidden.shape[-1] or weight.shape[0] == 0:
        raise ValueError(
            f"{name}_weight: expected shape (classes, {hidden.shape[-1]}), as {name}_hidden is wide, got "
            f"{tuple(weight.shape)}; type the layer's weight as torch.nn.Linear keeps it"
        )
    for what, tensor in ((f"{name}_weight", weight), (f"{name}_bias", bias)):
        if tensor is not None and tensor.dtype != hidden.dtype:
            raise TypeError(
                f"{what}: expected the dtype of {name}_hidden, {hidden.dtype}, got {tensor.dtype}; "
                f"type {what}.to({hidden.dtype})"
            )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"{name}_bias: expected shape {tuple(weight.shape[:1])}, got {tuple(bias.shape)}; "
            f"type the bias of the layer whose weight {name}_weight is"
        )


def _labels(labels: Tensor, tokens: torch.Size, classes: int, ignore_index: int) -> Tensor:
    if isinstance(labels, Tensor) and labels.is_floating_point():
        raise TypeError(
            f"labels: expected int64 class indices, got {labels.dtype}; soft labels are as large as the logits: "
            "type losses.cross_entropy and losses.wttm"
        )
    if isinstance(labels, Tensor) and labels.dtype == torch.int64:
        if ignore_index != UNLABELLED:
            labels = labels.masked_fill(labels == UNLABELLED, -1).masked_fill(labels == ignore_index, UNLABELLED)
        _check_shape("labels", labels, tokens, "class index")
    # Of the logits only the shape is asked for.
    checks.labels_for(torch.empty(1).expand(*tokens, classes), labels)
    return labels.reshape(-1)


def _weights(sample_weight: Tensor | None, tokens: torch.Size, hidden: Tensor) -> Tensor:
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    if sample_weight is None:
        return hidden.new_ones(tokens.numel(), dtype=dtype)
    if not isinstance(sample_weight, Tensor) or not sample_weight.is_floating_point():
        raise TypeError(
            "sample_weight: expected a floating tensor, got "
            f"{checks.kind_of(sample_weight)}; type sample_weight.float()"
        )
    _check_shape("sample_weight", sample_weight, tokens, "weight")
    return sample_weight.detach().to(dtype).reshape(-1)


def _check_shape(name: str, tensor: Tensor, tokens: torch.Size, what: str) -> None:
    if tensor.shape != tokens:
        raise ValueError(
            f"{name}: expected shape {tuple(tokens)}, as student_hidden without its width, got {tuple(tensor.shape)}; "
            f"type one {what} per token"
        )


def _share(weights: Tensor) -> Tensor:
    """Return the weights over their sum; 0 where that is 0."""
    total = weights.sum()
    return torch.where(total == 0, 0.0, weights / total)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        teacher_hidden: Tensor,
        teacher_weight: Tensor,
        teacher_bias: Tensor | None,
        labels: Tensor,
        weights: Tensor,
        settings: tuple[float, float, float, int],
    ) -> tuple[Tensor, Tensor, Tensor]:
        gamma, beta, supervised, chunk = settings
        of_ce, of_wttm = _share(weights.masked_fill(labels == UNLABELLED, 0.0)), _share(weights)
        ce, wttm = weights.new_zeros(2, dtype=joint.dtype_of(hidden, teacher_hidden))
        wide = ce.dtype
        needs = ctx.needs_input_grad[:3]
        d_hidden = torch.empty_like(hidden) if needs[0] else None
        d_weight = torch.zeros_like(weight, dtype=wide) if needs[1] else None
        d_bias = torch.zeros_like(bias, dtype=wide) if bias is not None and needs[2] else None
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(hidden), chunk):
                part = slice(start, start + chunk)
                z = F.linear(hidden[part], weight, bias)
                v = F.linear(teacher_hidden[part], teacher_weight, teacher_bias)
                ce_values, wttm_values, statistics = joint.forward(z, v, labels[part], gamma)
                # A token without weight counts nothing, also where its term is infinite.
                ce += (of_ce[part] * ce_values).masked_fill(of_ce[part] == 0, 0.0).sum()
                wttm += (of_wttm[part] * wttm_values).masked_fill(of_wttm[part] == 0, 0.0).sum()
                if not any(needs):
                    continue
                by_ce, by_wttm = supervised * of_ce[part], beta * of_wttm[part]
                dz = joint.backward(z, v, labels[part], statistics, by_ce, by_wttm, gamma, out=z)
                if d_hidden is not None:
                    torch.mm(dz, weight, out=d_hidden[part])
                if d_weight is not None:
                    _add_product(d_weight, dz, hidden[part])
                if d_bias is not None:
                    d_bias += dz.sum(0, dtype=wide)
                del z, v, dz  # Before the next chunk's are made.
        # The weights are leaves: what is narrower than its sum is made once, at the end.
        d_weight, d_bias = (d.to(weight.dtype) if d is not None else None for d in (d_weight, d_bias))
        ctx.gradients = [d_hidden, d_weight, d_bias]
        ctx.save_for_backward(hidden, weight, bias)  # For the error of a second derivative alone.
        ctx.mark_non_differentiable(ce, wttm)
        return supervised * ce + beta * wttm, ce, wttm

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError(
                "linear_cross_entropy_and_wttm: expected one backward pass per call, got a second; its gradients are "
                "handed over, not copied: call the function again"
            )
        returned: list[Tensor | None] = []
        for buffer, source in zip(gradients, ctx.saved_tensors, strict=True):
            if buffer is not None:
                with torch.no_grad():
                    buffer.mul_(gradient)
            returned.append(joint.once(buffer, source) if buffer is not None else None)
        return *returned, None, None, None, None, None, None


def _add_product(total: Tensor, dz: Tensor, hidden: Tensor) -> None:
    """Add ``dz^T hidden``; where the sum is wider than they are, a slice of it at a time."""
    if total.dtype == dz.dtype == hidden.dtype:
        total.addmm_(dz.T, hidden)
        return
    for part in range(0, dz.shape[1], SLICE):
        total[part : part + SLICE] += dz[:, part : part + SLICE].T @ hidden
