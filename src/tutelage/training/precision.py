"""The precision of networks on the device at hand."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tutelage.settings.fit import Precision

FIRST_SCALE = 2.0**16
LARGEST_SCALE = 2.0**24
GROWTH_STEPS = 2000
"""Steps until the scale doubles. Like the factor of 2, it is that of `torch.amp.GradScaler`, which has no maximum."""
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def has_tf32(device: torch.device) -> bool:
    """Whether a device computes products in TF32: NVIDIA's from Ampere on."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)


def computed_precision(device: torch.device, precision: Precision) -> Precision:
    """Return the precision that a device really uses: ``fp32`` for ``tf32`` if it has no TF32."""
    return "fp32" if precision == "tf32" and not has_tf32(device) else precision


def fallback(device: torch.device, precision: Precision) -> str | None:
    """Return a line that says that a device uses another precision than requested; ``None`` if it does not."""
    computed = computed_precision(device, precision)
    return None if computed == precision else f"precision {precision}: computed as {computed}, the device has no TF32"


def network_dtype(precision: Precision) -> torch.dtype | None:
    """Return the dtype of networks and their inputs under ``fp64``; under any other precision they keep theirs."""
    return torch.float64 if precision == "fp64" else None


def mixed_precision(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Return the context in which networks run: in bfloat16 or float16 if the precision is ``bf16`` or ``fp16``.

    Weights are cast at each use: a cast kept from one use to the next could not be captured in a CUDA graph.
    """
    dtype = _AUTOCAST.get(precision)
    return torch.autocast(device.type, dtype, enabled=dtype is not None, cache_enabled=False)


@dataclass
class LossScale:
    """The factor of the loss under ``fp16`` that keeps small gradients from rounding to 0 in float16.

    A step whose scaled gradient overflows is not applied and halves the factor; it does not count as non-finite, unless
    its loss is not finite either, or the factor has fallen below 1 and cannot be the cause. After `GROWTH_STEPS`
    consecutive applied steps the factor is doubled. Its tensors are ``()``, lie on the device and are written in place.
    """

    value: Tensor  # factor, float32
    applied: Tensor  # number of consecutive applied steps since it changed, int32
    overflows: Tensor  # number of steps in the epoch that lowered it, int64

    @classmethod
    def on(cls, device: torch.device) -> LossScale:
        """Return the factor before the first step, `FIRST_SCALE`."""
        return cls(
            torch.full((), FIRST_SCALE, device=device),
            torch.zeros((), dtype=torch.int32, device=device),
            torch.zeros((), dtype=torch.int64, device=device),
        )

    def unscale(self, gradients: list[Tensor]) -> None:
        """Divide gradients by the factor, a power of two: exactly, except below float32's smallest numbers."""
        torch._foreach_mul_(gradients, self.value.reciprocal())

    def update(self, finite: Tensor, finite_loss: Tensor) -> Tensor:
        """Change the factor after a step, and return whether it overflowed; all are ``()`` bool.

        Args:
            finite: whether the step was applied.
            finite_loss: whether its loss was finite.
        """
        overflow = ~finite & finite_loss & (self.value >= 1)
        self.applied.copy_(torch.where(finite, self.applied + 1, 0))
        grows = self.applied >= GROWTH_STEPS
        factor = torch.where(overflow, self.value / 2, torch.where(grows, self.value * 2, self.value))
        self.value.copy_(factor.clamp(max=LARGEST_SCALE))
        self.applied.masked_fill_(grows, 0)
        self.overflows += overflow
        return overflow


@contextmanager
def float32_products(device: torch.device, precision: Precision) -> Iterator[None]:
    """Set how float32 products are computed, around all work in a precision, backward passes included.

    This sets the precision of float32 matrix products, convolutions and recurrent layers for the whole process, and
    restores the previous one: TF32 under ``tf32`` on a device that has it, else float32, on the CPU too. Under ``bf16``
    and ``fp16`` it concerns what autocast leaves in float32: the objective's terms, which are float32 by promise.

    Of torch's two interfaces this sets the older one, which all versions have, and after which both can be read: after
    the newer one (2.9 and later) alone, reading the older raises an error, and `torch.backends.cudnn.flags` and parts
    of the compiler read it. Values set by a user through the newer one are put aside meanwhile.
    """
    tf32 = precision == "tf32" and has_tf32(device)
    with _no_deprecation():
        newer = [(flag, _put_aside(flag, value)) for flag, value in _newer_flags()]
        matmul = torch.get_float32_matmul_precision()
        try:
            cudnn = torch.backends.cudnn.allow_tf32
        except RuntimeError:  # It is on, and the value put aside is off.
            cudnn = True
        _set_older("highest", cudnn=tf32)
        if tf32:
            torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        with _no_deprecation():
            _set_older(matmul, cudnn=cudnn)
            for flag, value in reversed(newer):
                flag.fp32_precision = value


def _newer_flags() -> list[tuple[Any, str]]:
    """Return the holders of flags of torch's newer interface, with each flag's value unless someone lowered it.

    Flags of all libraries and of whole libraries, which others inherit, come first.
    """
    backends: Any = torch.backends
    if not hasattr(backends, "fp32_precision"):
        return []
    cudnn, onednn = backends.cudnn, backends.mkldnn
    kinds = (cudnn.conv, cudnn.rnn, backends.cuda.matmul, onednn.conv, onednn.rnn, onednn.matmul)
    return [(backends, "none"), (cudnn, "none"), *((kind, "ieee") for kind in kinds)]


def _put_aside(flag: Any, value: str) -> str:
    before: str = flag.fp32_precision
    flag.fp32_precision = value
    return before


def _set_older(matmul: str, *, cudnn: bool) -> None:
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = cudnn


@contextmanager
def _no_deprecation() -> Iterator[None]:
    """Silence the warning of some versions of torch about the older interface; later ones no longer give it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
