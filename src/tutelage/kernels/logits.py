"""Cross-entropy and a loss of two networks' logits, in the fastest form for a device and a dtype."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import cast

import torch
from torch import Tensor

from tutelage import checks, losses, targets
from tutelage.kernels import cpu_sweeps
from tutelage.kernels.divergence import Divergence, LogitLoss, divergence_of
from tutelage.types import Sparse

TRITON_DEVICES = frozenset({"cuda"}) if find_spec("triton") is not None else frozenset[str]()
"""Types of devices whose form is in Triton."""
BLOCKS_FROM, BLOCKS_FROM_SCALED, BLOCKS_FROM_OTHERS = 1 << 17, 1 << 18, 1 << 23
"""Number of logits from which on the CPU's sweeps in blocks are faster than the plain functions: for `forward`
divergences, for those with an exponent of the student's, such as KD, and for the other kinds; benchmarks/LOG.md."""
READ_SPARSE: tuple[Callable[..., Tensor], ...] = (losses.kd, losses.weighted_kd, losses.ttm, losses.wttm)
"""Losses that take `types.Sparse` themselves."""
TRITON_DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float16})


def cross_entropy_and(
    loss: LogitLoss,
    student_logits: Tensor,
    teacher_logits: Tensor | Sparse,
    labels: Tensor,
    *,
    compiled: bool = False,
) -> tuple[Tensor, Tensor]:
    """Compute `losses.cross_entropy` and a loss of both networks' logits together.

    `losses.kd`, `losses.weighted_kd`, `losses.ttm`, `losses.wttm` and some kinds of `losses.divergence`
    (`divergence.KINDS`, at temperature 1) have a form that sweeps over the logits once forward (twice for the kinds
    that mix the two distributions) and once backward, computes in float32, and allocates nothing as large as the logits
    except one gradient:

    * on CUDA with Triton in float32, bfloat16 and float16, with dense logits or `types.Sparse` ones;
    * on the CPU in every floating dtype, with dense logits: with ``compiled`` always, else from 2**17 logits on (2**18
      for `losses.kd` and `losses.weighted_kd`, 2**23 for the kinds other than `forward`), as fewer are faster without.

    Anything else, including soft labels, is computed by the two losses themselves. The choice depends on device, dtype
    and size. The logits are kept for the backward pass, not copied: changing them in place before it is an error.
    Inside ``torch.compile`` a form is one operation of the graph in each direction. On CUDA the host waits for nothing.

    Args:
        loss: function of the student's and the teacher's logits with bound hyperparameters:
            ``functools.partial(losses.kd, temperature=4.0)``.
        student_logits: ``(..., classes)``, any floating dtype, ``z``.
        teacher_logits: the same shape, any floating dtype, ``v``, or their top classes; gets no gradient; ``-inf``
            means probability 0.
        labels: ``(...)`` int64 class indices, -100 for unlabelled: cross-entropy exactly 0 in value and gradient; or
            soft labels ``(..., classes)``, any floating dtype, each row non-negative with sum 1, or all 0. On CUDA
            an index that is not a class makes the value NaN.
        compiled: whether the sweeps on a CPU are compiled: 1.5 to 4 times as fast as in blocks (docs/kernels.md), after
            some seconds for the first call with a loss, a number of classes and a dtype. It needs a C++ compiler;
            without one a warning says so, and they are not. It changes nothing on CUDA, nor inside ``torch.compile``.

    Returns:
        Two tensors ``(...)``, at least float32: the cross-entropies in nats, and the loss's values. The gradient has
        the student's dtype.

    Raises:
        TypeError, ValueError: if a dtype, a shape or a number is not as above. RuntimeError: from a second derivative,
        which the forms lack; type `losses.cross_entropy` and the loss.

    Source: Zheng and Yang, arXiv 2402.11148, Section 4; one pass over a softmax: Milakov and Gimelshein, "Online
        normalizer calculation for softmax", arXiv 1805.02867.

    Example:
        >>> student, teacher = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
        >>> cross_entropy_and(partial(losses.kd, temperature=2.0), student, teacher, torch.tensor([0]))
        (tensor([0.1269]), tensor([1.8485]))
    """
    check_classwise(student_logits, "student_logits")
    teacher: Sequence[Tensor]
    if isinstance(teacher_logits, Sparse):
        checks.sparse_for(student_logits, teacher_logits)
        teacher = [x.detach() for x in (teacher_logits.values, teacher_logits.index, teacher_logits.level)]
    else:
        check_classwise(teacher_logits, "teacher_logits")
        checks.same_shape(student_logits, teacher_logits, "student_logits", "teacher_logits")
        teacher = [teacher_logits.detach()]
    is_index = checks.labels_for(student_logits, labels)
    divergence = divergence_of(loss)
    if divergence is not None and is_index and getattr(teacher_logits, "form", "level") == "level":
        z, *rows = [x.flatten(0, -2) if x.ndim > 1 else x[None] for x in (student_logits, *teacher[:2])]
        rows = [*rows, *(level.flatten() for level in teacher[2:])]
        values = None
        if in_triton(z, *(x for x in rows if x.is_floating_point())):
            from tutelage.kernels import triton_sweeps

            values = triton_sweeps.cross_entropy_and(divergence, z, rows, labels.flatten())
        elif len(rows) == 1 and z.device.type == "cpu" and (compiled or z.numel() >= blocks_from(divergence)):
            values = cpu_sweeps.cross_entropy_and(divergence, z, rows[0], labels.flatten(), compiled=compiled)
        if values is not None:
            return values[0].view(labels.shape), values[1].view(labels.shape)
    if isinstance(teacher_logits, Sparse) and getattr(loss, "func", None) not in READ_SPARSE:
        teacher_logits = targets.dense(teacher_logits)
    return losses.cross_entropy(student_logits, labels), loss(student_logits, cast(Tensor, teacher_logits))


def cross_entropy_and_wttm(
    student_logits: Tensor, teacher_logits: Tensor | Sparse, labels: Tensor, *, gamma: float, compiled: bool = False
) -> tuple[Tensor, Tensor]:
    """Compute `losses.cross_entropy` and `losses.wttm` together: `cross_entropy_and` with that loss.

    The gradient with respect to the logits of ``a * CE + b * WTTM`` is
    ``(a + b * U) * q - a * onehot(y) - b * U * p_gamma``, with ``q = softmax(z)``, ``p_gamma = softmax(gamma * v)`` and
    ``U = sum_j p[j]**gamma``.

    Args, returns, errors: as for `cross_entropy_and`; ``gamma`` is the exponent, finite and above 0.

    Source: Zheng and Yang, "Knowledge Distillation Based on Transformed Teacher Matching", arXiv 2402.11148, Section 4.

    Example:
        >>> student, teacher = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
        >>> cross_entropy_and_wttm(student, teacher, torch.tensor([0]), gamma=0.5)
        (tensor([0.1269]), tensor([1.2925]))
    """
    loss = partial(losses.wttm, gamma=gamma)
    return cross_entropy_and(loss, student_logits, teacher_logits, labels, compiled=compiled)


def blocks_from(divergence: Divergence) -> int:
    """Return the number of logits from which on the sweeps in blocks are used."""
    if divergence.kind != "forward":
        return BLOCKS_FROM_OTHERS
    return BLOCKS_FROM if divergence.student_gamma == 1 else BLOCKS_FROM_SCALED


def in_triton(*tensors: Tensor) -> bool:
    """Whether the Triton form is made for these tensors."""
    return all(x.device.type in TRITON_DEVICES and x.dtype in TRITON_DTYPES for x in tensors)


def check_classwise(tensor: Tensor, name: str) -> None:
    """Check as `checks.classwise` does, without its float32 copy of narrower logits."""
    checks.classwise(tensor[..., :1] if isinstance(tensor, Tensor) and tensor.ndim else tensor, name)
