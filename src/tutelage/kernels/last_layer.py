"""Last linear layers, cross-entropy and a loss of the logits, without ever holding all logits in memory.

The logits of a large vocabulary take more memory than anything else in a step; here only those of one chunk exist at a
time. The forward pass knows the weights of the terms, so it computes the gradients too, in the chunk's own memory; the
backward pass multiplies them by the incoming gradient. A chunk is some tokens with all classes; in Triton it is all
tokens with some classes, whose logits are computed twice: then a class's weights get their whole gradient at once, and
no float32 sum of it, twice its size, has to be kept.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage import checks, losses
from tutelage.errors import InvalidTypeError, InvalidValueError, RunError
from tutelage.kernels import cpu_sweeps
from tutelage.kernels.divergence import Divergence, LogitLoss, divergence_of
from tutelage.kernels.logits import check_classwise, in_triton
from tutelage.kernels.row_sweeps import dtype_of
from tutelage.types import UNLABELLED, Loss

P = ParamSpec("P")
R = TypeVar("R")

CHUNK = 1 << 24
"""Default number of logits per network in a chunk of tokens: 67 MB in float32."""
SHARE, MOST = 1 << 13, 1 << 22
"""Bytes of the device's memory per logit of each network in a chunk of classes, and the most logits: on 80 GB, 4,096
tokens have 1,024 classes at a time, which keep the device's processors busy, in 17 MB of bfloat16."""
FEWEST = 128
"""Least number of classes in a chunk of classes."""
_ONE_DNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
"""Whether there is oneDNN's product of matrices in float32, which the compiler uses for linear layers."""
_REFUSES_WIDE_SUMS = torch.__version__.startswith("2.9.")
"""Whether `torch.addmm` requires the sum in the dtype of the factors (pytorch/pytorch#167931)."""
SLICE = 1 << 12
"""Number of rows of a product computed at a time if they must be widened before they are added."""


def _never_compiled(function: Callable[P, R]) -> Callable[P, R]:
    """`torch.compiler.disable` with the types that it lacks."""
    return torch.compiler.disable(function)


@_never_compiled
def linear(
    loss: LogitLoss,
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    labels: Tensor,
    *,
    weight: float = 1.0,
    supervised: float = 1.0,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    sample_weight: Tensor | None = None,
    divisors: tuple[Tensor, Tensor] | None = None,
    ignore_index: int = UNLABELLED,
    chunk: int | None = None,
) -> Loss:
    """Compute cross-entropy plus a loss of two last linear layers without ever holding all their logits in memory.

    ``supervised * sum_L w * CE / sum_L w + weight * sum w * D / sum w`` with ``z = h W^T + b`` of each network, CE as
    in `losses.cross_entropy`, ``D`` the loss, and ``w`` the tokens' weights, 1 by default. ``L`` are the
    labelled tokens. *All* tokens take part in the loss ``D``, labelled or not: give a token that must not, such as
    padding, weight 0. A mean over no weight at all is 0, and so is its gradient.

    Logits are computed in the dtype of ``hidden``, the losses in at least float32; the weights' gradient is summed in
    at least float32 and returned in the weights' dtype. Autocast has no effect here. Besides the inputs and their
    gradients, memory holds two chunks of logits and, for narrower dtypes, a float32 sum: of the weights' gradient, or
    in Triton, for bfloat16, of the hidden states' and of a chunk's weights'. Forms are chosen as in
    `cross_entropy_and`; losses without their own form take several chunks' memory. On CUDA the host waits for nothing.
    Under ``torch.compile`` the graph breaks here.

    Args:
        loss: function of the student's and the teacher's logits, ``(tokens, classes)``, with values ``(tokens,)`` and
            bound hyperparameters: ``functools.partial(losses.wttm, gamma=0.9)``. Those of `losses` that
            `cross_entropy_and` names are fast; any other is differentiated by autograd, a chunk at a time.
        student_hidden: ``(..., width)``, any floating dtype.
        student_weight: ``(classes, width)``, same dtype, as in `torch.nn.Linear`.
        teacher_hidden: ``(..., width of the teacher)``, any floating dtype; gets no gradient.
        teacher_weight: ``(classes, width of the teacher)``, same dtype; gets no gradient.
        labels: ``(...)`` int64 class indices, or ``ignore_index``. Soft labels would be as large as the logits.
        weight: weight of the loss, finite and at least 0.
        supervised: weight of the cross-entropy, finite and at least 0.
        student_bias: ``(classes,)``, of the student's dtype; ``None`` for 0.
        teacher_bias: ``(classes,)``, of the teacher's dtype; gets no gradient; ``None`` for 0.
        sample_weight: ``(...)``, floating, finite and at least 0 (not checked); gets no gradient; ``None`` for 1.
        divisors: what the two sums are divided by in place of ``sum_L w`` and ``sum w``, each ``()`` and at least 0
            (not checked), where the tokens are some of those that a mean is over; ``None`` if they are all.
        ignore_index: class index of a token without a label.
        chunk: number of logits of each network that exist at a time, at least 1; ``None`` for 2**24, and in Triton
            for as many as the device's memory allows.

    Returns:
        ``total``, ``()``, at least float32, and ``parts``: the two means, ``cross_entropy`` and ``matching``, not
        weighted and detached.

    Raises:
        TypeError, ValueError: if a dtype, a shape or a number is not as above.
        RuntimeError: from a second derivative, and from a second backward pass through one call: the gradients are
            handed over, not copied. Call the function again instead.

    Source: Zheng and Yang, arXiv 2402.11148, Section 4; the gradient in the forward pass: Hsu et al., "Liger Kernel",
    arXiv 2410.10989.

    Example:
        >>> layer, labels = (torch.ones(2, 3), torch.eye(4, 3)), torch.tensor([0, -100])
        >>> loss = linear(partial(losses.wttm, gamma=1.0), *layer, *layer, labels, weight=2.0)
        >>> loss.total, loss.parts["matching"]
        (tensor(1.2143), tensor(0.))
    """
    _check_layer("student", student_hidden, student_weight, student_bias)
    _check_layer("teacher", teacher_hidden, teacher_weight, teacher_bias)
    if teacher_weight.shape[0] != student_weight.shape[0]:
        expected = f"as many classes as student_weight, {student_weight.shape[0]}"
        instead = "both networks need one vocabulary, in one order"
        raise InvalidValueError("teacher_weight", expected, teacher_weight.shape[0], instead)
    divergence = divergence_of(loss)
    checks.weight(weight, "weight", example=1.0)
    checks.weight(supervised, "supervised", example=1.0)
    tokens, classes = student_hidden.shape[:-1], student_weight.shape[0]
    if teacher_hidden.shape[:-1] != tokens:
        expected = f"the tokens of student_hidden, {tuple(tokens)}"
        instead = "feed both networks the same batch"
        raise InvalidValueError("teacher_hidden", expected, tuple(teacher_hidden.shape[:-1]), instead)
    labels = _labels(labels, student_hidden, classes, ignore_index)
    weights = _weights(sample_weight, tokens, student_hidden)
    if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, int)):
        raise InvalidTypeError("chunk", "a number of logits", type(chunk).__name__, "for example chunk=2**22")
    if chunk is not None and chunk < 1:
        raise InvalidValueError("chunk", "at least 1 logit", chunk, "for example chunk=2**22")
    total, ce, matching = _Linear.apply(
        student_hidden.reshape(-1, student_hidden.shape[-1]),
        student_weight,
        student_bias,
        teacher_hidden.detach().reshape(-1, teacher_hidden.shape[-1]),
        teacher_weight.detach(),
        teacher_bias.detach() if teacher_bias is not None else None,
        labels,
        weights,
        _Settings(loss, divergence, float(weight), float(supervised), divisors, chunk, torch.is_grad_enabled()),
    )
    return Loss(total, {"cross_entropy": ce, "matching": matching})


def _check_layer(name: str, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    check_classwise(hidden, f"{name}_hidden")
    check_classwise(weight, f"{name}_weight")
    if weight.ndim != 2 or weight.shape[1] != hidden.shape[-1] or weight.shape[0] == 0:
        expected = f"shape (classes, {hidden.shape[-1]}), as {name}_hidden is wide"
        instead = "type the layer's weight as torch.nn.Linear keeps it"
        raise InvalidValueError(f"{name}_weight", expected, tuple(weight.shape), instead)
    for what, tensor in ((f"{name}_weight", weight), (f"{name}_bias", bias)):
        if tensor is not None and tensor.dtype != hidden.dtype:
            raise InvalidTypeError(
                what, f"the dtype of {name}_hidden, {hidden.dtype}", tensor.dtype, f"type {what}.to({hidden.dtype})"
            )
    if bias is not None and bias.shape != weight.shape[:1]:
        instead = f"type the bias of the layer whose weight {name}_weight is"
        raise InvalidValueError(f"{name}_bias", f"shape {tuple(weight.shape[:1])}", tuple(bias.shape), instead)


def _labels(labels: Tensor, hidden: Tensor, classes: int, ignore_index: int) -> Tensor:
    tokens = hidden.shape[:-1]
    if isinstance(labels, Tensor) and labels.is_floating_point():
        instead = "soft labels are as large as the logits: type tutelage.losses.cross_entropy and the loss"
        raise InvalidTypeError("labels", "int64 class indices", labels.dtype, instead)
    if isinstance(labels, Tensor) and labels.dtype == torch.int64:
        if ignore_index != UNLABELLED:
            labels = labels.masked_fill(labels == UNLABELLED, -1).masked_fill(labels == ignore_index, UNLABELLED)
        _check_shape("labels", labels, tokens, "class index")
    # Only the shape of the logits is read.
    checks.labels_for(hidden[..., :1].expand(*tokens, classes), labels)
    return labels.reshape(-1)


def _weights(sample_weight: Tensor | None, tokens: torch.Size, hidden: Tensor) -> Tensor:
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    if sample_weight is None:
        return hidden.new_ones(tokens.numel(), dtype=dtype)
    if not isinstance(sample_weight, Tensor) or not sample_weight.is_floating_point():
        raise InvalidTypeError(
            "sample_weight", "a floating tensor", checks.kind_of(sample_weight), "type sample_weight.float()"
        )
    _check_shape("sample_weight", sample_weight, tokens, "weight")
    return sample_weight.detach().to(dtype).reshape(-1)


def _check_shape(name: str, tensor: Tensor, tokens: torch.Size, what: str) -> None:
    if tensor.shape != tokens:
        expected = f"shape {tuple(tokens)}, as student_hidden without its width"
        raise InvalidValueError(name, expected, tuple(tensor.shape), f"type one {what} per token")


def _share(weights: Tensor, total: Tensor | None) -> Tensor:
    """Return the weights over a total, by default their sum; 0 if that is 0."""
    total = weights.sum() if total is None else total
    return (weights / total).masked_fill(total == 0, 0.0)


class _Layer(NamedTuple):
    """A last layer with its inputs."""

    hidden: Tensor  # (tokens, width)
    weight: Tensor  # (classes, width)
    bias: Tensor | None  # (classes,)

    def logits(self, tokens: slice = slice(None), classes: slice = slice(None)) -> Tensor:
        """Return the logits of some tokens and classes."""
        bias = None if self.bias is None else self.bias[classes]
        return _product_with_rows(self.hidden[tokens], self.weight[classes], bias)


class _Settings(NamedTuple):
    loss: LogitLoss
    divergence: Divergence | None  # the loss's point in the family
    weight: float
    supervised: float
    divisors: tuple[Tensor, Tensor] | None
    chunk: int | None  # number of logits
    differentiable: bool  # whether gradients are requested, which autograd does not say under `torch.no_grad`


class _Weights(NamedTuple):
    """The weights of each token's values in sums, ``(tokens,)``, and those of the terms."""

    of_ce: Tensor
    of_loss: Tensor
    supervised: float
    weight: float
    scale: Tensor  # scale of the logits' gradients, a power of 2: in float16 those of a mean over many tokens vanish

    def by_ce(self, tokens: slice = slice(None)) -> Tensor:
        """Return the scaled gradient with respect to the cross-entropies."""
        return self.scale * self.supervised * self.of_ce[tokens]

    def by_loss(self, tokens: slice = slice(None)) -> Tensor:
        """Return the scaled gradient with respect to the loss's values."""
        return self.scale * self.weight * self.of_loss[tokens]


class _Gradients:
    """The requested gradients of hidden states, weight and bias while they are summed up.

    Args:
        layer: student's layer.
        needs: which of the three are requested.
        added: those whose parts are added, and which are summed in at least float32.
    """

    def __init__(self, layer: _Layer, needs: tuple[bool, ...], added: tuple[bool, ...]) -> None:
        self._layer, self.any = layer, any(needs)
        self.hidden, self.weight, self.bias = (
            _buffer(x, added=sums) if needed and x is not None else None
            for x, needed, sums in zip(layer, needs, added, strict=True)
        )

    def of_tokens(self, dz: Tensor, part: slice) -> None:
        """Take the gradient of some tokens' logits."""
        if self.hidden is not None:
            self.hidden[part] = _product_with_rows(dz, self._layer.weight.T)
        if self.weight is not None:
            _add_product(self.weight, dz.T, self._layer.hidden[part])
        if self.bias is not None:
            self.bias += dz.sum(0, dtype=self.bias.dtype)

    def of_classes(self, dz: Tensor, part: slice) -> None:
        """Take the gradient of some classes' logits."""
        if self.hidden is not None:
            _add_product(self.hidden, dz, self._layer.weight[part])
        if self.weight is not None:
            self.weight[part] = _wide_product(dz.T, self._layer.hidden)
        if self.bias is not None:
            self.bias[part] = dz.sum(0, dtype=torch.float32)

    def kept(self) -> list[Tensor | None]:
        """Return them for the backward pass: no wider than their tensors, except for float16."""
        pairs = zip((self.hidden, self.weight, self.bias), self._layer, strict=True)
        return [d.to(_kept_dtype(x)) if d is not None and x is not None else None for d, x in pairs]


def _buffer(source: Tensor, *, added: bool) -> Tensor:
    if added:
        return torch.zeros_like(source, dtype=torch.promote_types(source.dtype, torch.float32))
    return torch.empty_like(source, dtype=_kept_dtype(source))


def _kept_dtype(source: Tensor) -> torch.dtype:
    """Return the dtype of a still scaled gradient: it may overflow in float16 alone, which has a narrower exponent."""
    return torch.float32 if source.dtype == torch.float16 else source.dtype


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        student, teacher = _Layer(*inputs[:3]), _Layer(*inputs[3:6])
        labels, weights, settings = inputs[6:]
        weight, supervised = settings.weight, settings.supervised
        labelled, all_tokens = settings.divisors or (None, None)
        of_ce = _share(weights.masked_fill(labels == UNLABELLED, 0.0), labelled)
        of_loss = _share(weights, all_tokens)
        of = _Weights(of_ce, of_loss, supervised, weight, _power_of_two(supervised * of_ce, weight * of_loss))
        run = _by_classes if settings.divergence and in_triton(student.hidden, teacher.hidden) else _by_tokens
        with torch.autocast(student.hidden.device.type, enabled=False):
            needs = tuple(needed and settings.differentiable for needed in ctx.needs_input_grad[:3])
            values, gradients = run(settings, student, teacher, labels, of, needs)
        # A token without weight counts nothing, even if its term is infinite.
        ce, matching = ((w * x).masked_fill(w == 0, 0.0).sum() for w, x in zip((of_ce, of_loss), values, strict=True))
        ctx.gradients, ctx.scale = gradients, of.scale
        ctx.save_for_backward(*student)  # Only for the error of a second derivative.
        ctx.mark_non_differentiable(ce, matching)
        # Nor does a term without weight.
        total = sum((w * mean for w, mean in ((supervised, ce), (weight, matching)) if w), torch.zeros_like(ce))
        return total, ce, matching

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            instead = "its gradients are handed over, not copied: call the function again"
            raise RunError("kernels.linear", "one backward pass per call", "a second", instead)
        returned: list[Tensor | None] = []
        for buffer, source in zip(gradients, ctx.saved_tensors, strict=True):
            if buffer is None:
                returned.append(None)
                continue
            with torch.no_grad():
                buffer = buffer.mul_(gradient / ctx.scale).to(source.dtype)
            returned.append(cpu_sweeps.once(buffer, source))
        return *returned, None, None, None, None, None, None


def _by_tokens(
    settings: _Settings, student: _Layer, teacher: _Layer, labels: Tensor, of: _Weights, needs: tuple[bool, ...]
) -> tuple[tuple[Tensor, Tensor], list[Tensor | None]]:
    """Process the tokens in chunks; return their cross-entropies and values, and the scaled gradients."""
    tokens, classes = len(labels), len(student.weight)
    gradients = _Gradients(student, needs, (False, True, True))
    divergence = settings.divergence
    if student.hidden.device.type == "cpu" and divergence is not None:
        values_and_gradient = partial(_swept, divergence)
    else:
        values_and_gradient = partial(_differentiated, settings.loss)
    dtype = dtype_of(student.hidden, teacher.hidden)
    ce, values = of.of_ce.new_empty(2, tokens, dtype=dtype)
    size = max(1, (settings.chunk or CHUNK) // classes)
    for start in range(0, tokens, size):
        part = slice(start, start + size)
        z, v = student.logits(part), teacher.logits(part)
        by = None
        if gradients.any:  # A term without weight may be infinite.
            by = of.by_ce(part) if of.supervised else None, of.by_loss(part) if of.weight else None
        ce[part], values[part], dz = values_and_gradient(z, v, labels[part], by)
        if dz is not None:
            gradients.of_tokens(dz, part)
        del z, v, dz  # Before the next chunk's are computed.
    return (ce, values), gradients.kept()


By = tuple[Tensor | None, Tensor | None] | None
"""Gradients of cross-entropies and values, ``(tokens,)``, each ``None`` for 0; ``None`` if no gradient is requested."""
Chunk = tuple[Tensor, Tensor, Tensor | None]
"""Cross-entropies and values of a chunk's tokens, and the gradient of its logits."""


def _swept(divergence: Divergence, z: Tensor, v: Tensor, labels: Tensor, by: By) -> Chunk:
    ce, values, statistics = cpu_sweeps.forward(divergence, z, v, labels)
    if by is None:
        return ce, values, None
    return ce, values, _where_weighted(cpu_sweeps.backward(divergence, z, v, labels, statistics, *by, out=z), by)


def _differentiated(loss: LogitLoss, z: Tensor, v: Tensor, labels: Tensor, by: By) -> Chunk:
    with torch.set_grad_enabled(by is not None):
        z.requires_grad_(by is not None)
        ce, values = losses.cross_entropy(z, labels), loss(z, v)
        if values.shape != labels.shape:
            expected = f"one value per token, shape {tuple(labels.shape)}"
            instead = "leave the mean over tokens to tutelage.kernels.linear"
            raise InvalidValueError("loss", expected, tuple(values.shape), instead)
        if by is None:
            return ce, values, None
        weighted = [(value, given) for value, given in zip((ce, values), by, strict=True) if given is not None]
        outputs, gradients = [value for value, _ in weighted], [given for _, given in weighted]
        dz = torch.autograd.grad(outputs, z, gradients)[0] if weighted else torch.zeros_like(z)
    return ce.detach(), values.detach(), _where_weighted(dz, by)


def _where_weighted(dz: Tensor, by: tuple[Tensor | None, Tensor | None]) -> Tensor:
    """Return a chunk's gradient with 0 for tokens of which no term counts, as it may be NaN there."""
    given = [gradient == 0 for gradient in by if gradient is not None]
    without = reduce(torch.logical_and, given, torch.ones(len(dz), dtype=torch.bool, device=dz.device))
    if dz.device.type == "cpu" and not without.any():  # elsewhere the host would wait
        return dz
    return dz.masked_fill_(without[:, None], 0.0)


def _by_classes(
    settings: _Settings, student: _Layer, teacher: _Layer, labels: Tensor, of: _Weights, needs: tuple[bool, ...]
) -> tuple[tuple[Tensor, Tensor], list[Tensor | None]]:
    """Process the classes in chunks, in Triton; return what `_by_tokens` does."""
    from tutelage.kernels import triton_sweeps

    assert settings.divergence is not None  # Others have no form in Triton.
    tokens, classes = len(labels), len(student.weight)
    gradients = _Gradients(student, needs, (True, False, False))
    sweeps = triton_sweeps.Sweeps(settings.divergence, labels, classes)
    size = _classes_at_a_time(settings.chunk, student.hidden.device, tokens)
    parts = [slice(start, min(start + size, classes)) for start in range(0, classes, size)]
    logits: list[Tensor] = []
    for sweep in sweeps.forward:
        for part in parts:
            logits.clear()  # Before the next chunk's are computed.
            logits += [layer.logits(classes=part) for layer in (student, teacher)]
            sweep(logits[0], logits[1:], part)
    if gradients.any:
        by = of.by_ce(), of.by_loss()
        for part in reversed(parts):  # The last chunk's logits are still there.
            logits = logits or [layer.logits(classes=part) for layer in (student, teacher)]
            gradients.of_classes(sweeps.backward(logits[0], logits[1:], part, *by, out=logits[0]), part)
            logits.clear()
    return (sweeps.ce, sweeps.values), gradients.kept()


def _classes_at_a_time(chunk: int | None, device: torch.device, tokens: int) -> int:
    if chunk is None:
        memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else MOST * SHARE
        # A power of 2, like blocks and the tiles of matrix products.
        return max(FEWEST, 1 << (min(MOST, memory // SHARE) // max(1, tokens)).bit_length() - 1)
    return max(1, chunk // max(1, tokens))


def _power_of_two(*shares: Tensor) -> Tensor:
    """Return the power of 2 that brings the largest gradient of a value near 1."""
    largest = torch.stack([share.amax() if share.numel() else share.new_zeros(()) for share in shares]).amax()
    return (-largest.log2()).floor().exp2().masked_fill(largest == 0, 1.0)


def _product_with_rows(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``a b^T + bias``, in float32 on a CPU by oneDNN: on an AMD EPYC at twice the rate of MKL (see the log)."""
    if a.dtype == torch.float32 and a.device.type == "cpu" and _ONE_DNN and torch.backends.mkldnn.enabled:
        bias = bias.contiguous() if bias is not None else None  # Its strides are not read.
        return torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return F.linear(a, b, bias)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add ``a b``, in the dtype of the sum."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    elif total.is_cuda and not _REFUSES_WIDE_SUMS:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        for part in range(0, len(total), SLICE):
            total[part : part + SLICE] += _wide_product(a[part : part + SLICE], b)


def _wide_product(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a b`` in at least float32, on CUDA also summed in it; elsewhere narrower dtypes are rounded before."""
    if a.dtype in (torch.float32, torch.float64) or not a.is_cuda:
        return (a @ b).to(torch.promote_types(a.dtype, torch.float32))
    return torch.mm(a, b, out_dtype=torch.float32)
