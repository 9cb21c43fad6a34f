"""Argument checks for functions of tensors; an error says what was expected, what was got and what to type.

Shapes, dtypes and hyperparameters are always checked: that costs no device work. Values inside a tensor are read in
only one case, labels on the CPU; anywhere else reading them would make the host wait for the device.
Everything here can be traced by ``torch.compile``. Hyperparameters raise TypeError if they are not Python numbers and
ValueError if they are out of range, NaN included, or not whole numbers where these are required; ``example`` is what to
type instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tutelage.errors import InvalidTypeError, InvalidValueError, nearest
from tutelage.settings.numbers import FLOAT32, fits_float32
from tutelage.types import UNLABELLED, Sparse

EMBEDDINGS = ("batch", "width")
TOKENS = ("batch", "tokens", "width")
MAPS = ("batch", "channels", "height", "width")
ANY = ("batch", "size", "...")
"""Axes of features; ``...`` stands for any number of further axes like the one before it."""
_SHOWN = 8  # classes of a row in a message


def positive(value: float, name: str, *, example: float) -> None:
    """Refuse a hyperparameter that is not a number above 0 whose square and reciprocal float32 holds."""
    _number(value, name, example, lambda x: 1e-18 <= x <= 1e18, "a number above 0, in [1e-18, 1e18]")


def fraction(value: float, name: str, *, example: float) -> None:
    """Refuse a hyperparameter outside [0, 1)."""
    _number(value, name, example, lambda x: 0 <= x < 1, "a number in [0, 1)")


def share(value: float, name: str, *, example: float) -> None:
    """Refuse a hyperparameter outside [0, 1]."""
    _number(value, name, example, lambda x: 0 <= x <= 1, "a number in [0, 1]")


def mixture_weight(value: float, name: str, *, example: float, ends: str) -> None:
    """Refuse a hyperparameter outside (0, 1); ``ends`` is what to type for the limits at 0 and 1."""
    _number(
        value,
        name,
        example,
        lambda x: 0 < x < 1,
        f"a number above 0 and below 1 (at the ends: type {ends})",
        float32=False,
    )


def weight(value: float, name: str, *, example: float) -> None:
    """Refuse a hyperparameter that is not a finite number of at least 0."""
    _number(value, name, example, lambda x: 0 <= x < math.inf, "a finite number of at least 0")


def finite(value: float, name: str, *, example: float) -> None:
    """Refuse a hyperparameter that is not a finite number."""
    _number(value, name, example, lambda x: abs(x) < math.inf, "a finite number")


def order(value: float) -> None:
    """Refuse a negative order of a Rényi entropy; infinity is allowed."""
    _number(value, "order", 0.25, lambda x: x >= 0, "a number of at least 0 (1 is Shannon)", float32=False)


def whole_number(value: object, name: str, *, example: int, minimum: int = 1) -> None:
    """Refuse a hyperparameter that is not a whole number from ``minimum`` to 2**24, as it is an axis of some tensor."""
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= 2**24:
        expected = f"a whole number in [{minimum}, {2**24}]"
        raise InvalidValueError(name, expected, repr(value), f"for example {name}={example}")


def known(value: str, name: str, names: Collection[str], *, example: str) -> None:
    """Refuse a hyperparameter that is not one of the names; the nearest is suggested."""
    if not isinstance(value, str) or value not in names:
        instead = nearest(value, names, otherwise=f"for example {name}={example}")
        raise InvalidValueError(name, f"one of {', '.join(names)}", repr(value), instead)


def kind_of(value: object) -> object:
    """Return what an error says about a wrong value: a tensor's dtype, or the type of anything else."""
    return value.dtype if isinstance(value, Tensor) else type(value).__name__


def classwise(tensor: Tensor, name: str) -> Tensor:
    """Return logits or log-probabilities ``(..., classes)`` in at least float32: narrower ones are copied.

    Raises:
        TypeError: if it is not a floating tensor.
        ValueError: if it has no axis of classes, or an empty one.
    """
    tensor = _floating(tensor, name)
    if tensor.ndim == 0 or tensor.shape[-1] == 0:
        instead = "put the classes on the last axis"
        raise InvalidValueError(name, "shape (..., classes) with at least one class", tuple(tensor.shape), instead)
    return tensor


def per_class(logits: Tensor, class_weights: Tensor) -> Tensor:
    """Return a number for each class, as `classwise` does; refuse others than ``(classes,)``."""
    class_weights = _floating(class_weights, "class_weights")
    if class_weights.shape != logits.shape[-1:]:
        expected = f"one number for each class, shape {tuple(logits.shape[-1:])}"
        instead = "give one for each class, in the order of the logits"
        raise InvalidValueError("class_weights", expected, tuple(class_weights.shape), instead)
    return class_weights


def mask(mask: Tensor, shape: torch.Size, name: str) -> Tensor:
    """Return a mask of positions; refuse one that is not of bools, or of another shape."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise InvalidTypeError(name, "a bool tensor", kind_of(mask), f"type {name}.bool()")
    if mask.shape != shape:
        instead = "give one value for each position"
        raise InvalidValueError(name, f"shape {tuple(shape)}", tuple(mask.shape), instead)
    return mask


def cost_matrix(cost: Tensor | None, name: str = "cost", *, example: object = None) -> None:
    """Refuse what is no matrix ``(classes, classes)`` of floats."""
    if not isinstance(cost, Tensor):
        got = "none" if cost is None else type(cost).__name__
        instead = f"type {name}=losses.class_cost(last_layer.weight)"
        raise InvalidTypeError(name, "a torch.Tensor (classes, classes)", got, instead)
    if not cost.is_floating_point():
        raise InvalidTypeError(name, "a floating dtype", cost.dtype, f"type {name}.float()")
    if cost.ndim != 2 or cost.shape[0] != cost.shape[1]:
        instead = "give a row for each class of the student, a column for each of the teacher"
        raise InvalidValueError(name, "shape (classes, classes)", tuple(cost.shape), instead)


def features(tensor: Tensor, name: str, *, axes: tuple[str, ...]) -> Tensor:
    """Return features in at least float32: narrower ones are copied.

    Args:
        tensor: features with one axis for each of ``axes``, none of them empty; any floating dtype.
        name: name of the argument.
        axes: names of the axes, such as `MAPS`; may end in ``...``.

    Raises:
        TypeError: if it is not a floating tensor.
        ValueError: if it has another number of axes, or an empty axis.
    """
    tensor = _floating(tensor, name)
    if axes[-1] == "...":
        axes = (*axes[:-1], *[axes[-2]] * (tensor.ndim - len(axes) + 1))
    if tensor.ndim != len(axes) or 0 in tensor.shape:
        instead = "name another tap, or reshape what it gives"
        raise InvalidValueError(name, f"shape ({', '.join(axes)}), no axis empty", tuple(tensor.shape), instead)
    return tensor


def logit_pair(student: Tensor, teacher: Tensor, kind: str = "logits") -> tuple[Tensor, Tensor]:
    """Return both networks' logits of one shape, as `classwise` does; the teacher's without a gradient."""
    student, teacher = classwise(student, f"student_{kind}"), classwise(teacher, f"teacher_{kind}").detach()
    same_shape(student, teacher, f"student_{kind}", f"teacher_{kind}")
    return student, teacher


def sparse_for(student_logits: Tensor, teacher: Sparse) -> None:
    """Check a teacher's largest logits against the student's.

    Raises:
        TypeError: if the values are not floating.
        ValueError: if they are of other classes or rows, or their index or level does not belong to them.
    """
    values, index, level, classes, form = teacher
    classwise(values[..., :1] if isinstance(values, Tensor) and values.ndim else values, "teacher_logits.values")
    shape = student_logits.shape
    too_many = values.shape[-1] > classes and form != "sampled"
    if classes != shape[-1] or values.shape[:-1] != shape[:-1] or too_many:
        got = f"values {tuple(values.shape)} of {classes} classes"
        instead = "feed both networks the same batch and the same classes"
        raise InvalidValueError("teacher_logits", f"top classes of student_logits' shape, {tuple(shape)}", got, instead)
    if index.dtype != torch.int64 or index.shape != values.shape:
        expected = f"int64 of shape {tuple(values.shape)}"
        instead = "type the classes that the values belong to, index.long()"
        raise InvalidValueError("teacher_logits.index", expected, f"{index.dtype} of {tuple(index.shape)}", instead)
    if level.shape != shape[:-1] or not level.is_floating_point():
        expected = f"a floating logit of shape {tuple(shape[:-1])}"
        instead = "type the logit that each of the other classes has"
        raise InvalidValueError("teacher_logits.level", expected, f"{level.dtype} of {tuple(level.shape)}", instead)


def feature_pair(
    student: Tensor,
    teacher: Tensor,
    axes: tuple[str, ...],
    *,
    same: Literal["shape", "batch"] = "shape",
    min_batch: int = 1,
    stage: str = "",
    kind: str = "features",
) -> tuple[Tensor, Tensor]:
    """Return both networks' features, as `features` does; the teacher's without a gradient.

    ``stage`` is appended to the arguments' names in messages, which are of this ``kind``.

    Raises:
        TypeError: if they are not floating tensors.
        ValueError: if they have other axes, differ in what must be the same, or are fewer samples than ``min_batch``.
    """
    student_name, teacher_name = f"student_{kind}{stage}", f"teacher_{kind}{stage}"
    student = features(student, student_name, axes=axes)
    teacher = features(teacher, teacher_name, axes=axes).detach()
    if same == "shape":
        same_shape(student, teacher, student_name, teacher_name)
    elif len(student) != len(teacher):
        expected = f"those of {len(student)} samples, as {student_name}"
        raise InvalidValueError(teacher_name, expected, len(teacher), "feed both networks the same batch")
    if len(student) < min_batch:
        expected = f"at least {min_batch} samples to compare or to normalise over"
        raise InvalidValueError(f"student_{kind}", expected, len(student), "use larger batches")
    return student, teacher


def same_shape(student: Tensor, teacher: Tensor, student_name: str, teacher_name: str) -> None:
    """Refuse a student and a teacher that differ in shape; nothing is broadcast."""
    if student.shape != teacher.shape:
        expected, got = f"the shape of {student_name}, {tuple(student.shape)}", tuple(teacher.shape)
        pairs = zip(reversed(teacher.shape), reversed(student.shape), strict=False)
        expands = teacher.ndim <= student.ndim and all(size in (1, wanted) for size, wanted in pairs)
        instead = "feed both networks the same batch and the same classes"
        typed = f"type {teacher_name}.expand_as({student_name})"
        raise InvalidValueError(teacher_name, expected, got, typed if expands else instead)


def labels_for(logits: Tensor, labels: Tensor) -> bool:
    """Refuse labels that do not belong to the logits; class indices and soft labels differ by their dtype.

    Values are looked at only where nothing waits: eagerly on the CPU. On an accelerator and inside ``torch.compile``
    the kernel that reads class indices asserts instead (CUDA: "device-side assert"), and soft labels are taken as they
    are; a `BoundObjective` looks at those of its first batch.

    Args:
        logits: ``(..., classes)``.
        labels: ``(...)`` int64, or soft labels ``(..., classes)``, any floating dtype: distributions, or rows of 0.

    Returns:
        True for class indices, False for soft labels.

    Raises:
        TypeError: if the labels are neither int64 nor floating.
        ValueError: if their shape is not the one above, an index is neither a class nor -100, or a soft label is
            neither a distribution (`distributions`) nor all 0.
    """
    if not isinstance(labels, Tensor):
        raise InvalidTypeError("labels", "a torch.Tensor", type(labels).__name__, "type torch.as_tensor(labels)")
    if labels.is_floating_point():
        if labels.shape != logits.shape:
            expected = f"soft labels (floating dtype) of shape {tuple(logits.shape)}"
            instead = "type labels.long() if these are class indices"
            raise InvalidValueError("labels", expected, tuple(labels.shape), instead)
        if labels.device.type == "cpu" and not torch.compiler.is_compiling():
            distributions(labels, or_zero=True)
        return False
    if labels.dtype != torch.int64:
        instead = "type labels.long() for class indices, labels.float() for soft labels"
        raise InvalidTypeError("labels", "int64 class indices or floating soft labels", labels.dtype, instead)
    if labels.shape != logits.shape[:-1]:
        expected = f"class indices (int64) of shape {tuple(logits.shape[:-1])}"
        instead = "type labels.float() if these are one-hot rows"
        raise InvalidValueError("labels", expected, tuple(labels.shape), instead)
    if labels.device.type == "cpu" and labels.numel() and not torch.compiler.is_compiling():
        _in_range(labels, logits.shape[-1])
    return True


def distributions(labels: Tensor, *, counted: Tensor | None = None, or_zero: bool = False) -> None:
    """Refuse soft labels of which a row is no distribution: all at least 0, with sum 1 but for the dtype's rounding.

    On an accelerator the host waits for the device.

    Args:
        labels: soft labels ``(..., classes)``, any floating dtype.
        counted: positions to look at, ``(...)`` bool; ``None`` for all.
        or_zero: whether a row may also be 0 throughout: it says nothing, and its cross-entropy is 0.

    Raises:
        ValueError: with the first row that is none.
    """
    if labels.is_meta or not labels.numel():  # no values
        return
    values, info, classes = widened(labels.detach()), torch.finfo(labels.dtype), labels.shape[-1]
    # Two roundings of a value, and of each class what float16 rounds to 0; a hundredth for what was typed to 2 digits.
    least, slack = -2 * info.eps, 0.01 + 2 * info.eps + classes * info.tiny * info.eps
    total = values.sum(-1)
    if values.amin() >= least and all(abs(end - 1) <= slack for end in total.aminmax()):
        return  # This alone takes a third of the time of naming a row.
    low = values.amin(-1)
    wrong = ((total - 1).abs() <= slack).logical_not() | (low < least)
    if or_zero:
        wrong &= (total != 0) | (low != 0)
    if counted is not None:
        wrong &= counted
    if not bool(wrong.any()):
        return
    row = values[wrong][0]
    shown = ", ".join(f"{value:.4g}" for value in row[:_SHOWN].tolist()) + ", ..." * (classes > _SHOWN)
    instead = (
        "where several labels hold for a sample, give them as int64 1 and 0 and networks of that task (docs/python.md "
        "shows one); divide other rows by their sum"
    )
    expected = "soft labels, each row a distribution: at least 0, with sum 1"
    raise InvalidValueError("labels", expected, f"a row of sum {float(row.sum()):.4g}: {shown}", instead)


def _in_range(labels: Tensor, classes: int) -> None:
    low, high = (x.item() for x in torch.aminmax(labels))  # this alone takes a tenth of the time of naming the outliers
    if low >= 0 and high < classes:
        return
    outside = labels[((labels < 0) & (labels != UNLABELLED)) | (labels >= classes)]
    if outside.numel():
        expected = f"class indices in 0..{classes - 1}, or {UNLABELLED} for unlabelled"
        instead = f"number the classes from 0, use {UNLABELLED} for no label, or give the network more outputs"
        raise InvalidValueError("labels", expected, int(outside[0]), instead)


def _number(
    value: object, name: str, example: float, legal: Callable[[float], bool], expected: str, *, float32: bool = True
) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidTypeError(
            name, "a Python number", type(value).__name__, f"type float({name}), for example {name}={example}"
        )
    if float32 and not fits_float32(value) and abs(value) != math.inf:
        expected, legal = f"{expected} {FLOAT32}", lambda _: False
    if not legal(value):
        raise InvalidValueError(name, expected, value, f"for example {name}={example}")


def _floating(tensor: Tensor, name: str) -> Tensor:
    """Return a tensor in at least float32."""
    if not isinstance(tensor, Tensor):
        raise InvalidTypeError(
            name, "a torch.Tensor", type(tensor).__name__, f"type torch.as_tensor({name}, dtype=torch.float32)"
        )
    if not tensor.is_floating_point():
        raise InvalidTypeError(name, "a floating dtype", tensor.dtype, f"type {name}.float()")
    return widened(tensor)


def widened(tensor: Tensor) -> Tensor:
    """Return a floating tensor in at least float32: narrower ones are copied."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def nonfinite_weight(module: nn.Module) -> str | None:
    """Name the first parameter that holds NaN or infinity, with how many; ``None`` if there is none.

    Running statistics count as well, and any other buffer that holds NaN: a mask may hold infinity. Lazy layers, which
    have no weights yet, do not count; weights on the meta device, which have no values, do. On a GPU the host waits for
    the device.
    """
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if is_lazy(value) or not value.is_floating_point():
            continue
        if value.is_meta:
            return f"{name}, which is on the meta device and has no values"
        strict = isinstance(value, nn.Parameter) or "running_" in name
        values = value.detach()
        if hasattr(values, "to_local"):  # A sharded one: this process's share.
            values = values.to_local()
        bad = int((~torch.isfinite(values) if strict else torch.isnan(values)).sum())
        if bad:
            return f"{name}, {bad} of whose {value.numel()} values are NaN or infinite"
    return None
