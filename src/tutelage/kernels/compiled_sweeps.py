"""`row_sweeps` in compiled form: one function per divergence, number of classes, dtype and number of threads.

A sweep is then one or two passes over a row that is in the processor's innermost cache, without temporary tensors. The
first call of a form takes seconds and needs a C++ compiler; the number of rows may change without another.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from tutelage.kernels import row_sweeps
from tutelage.kernels.compiler import compile_apart
from tutelage.kernels.divergence import Divergence

FEWEST = 2
"""Number of rows below which nothing is compiled: to the compiler 0 and 1 are special, and need forms of their own."""


def forward(divergence: Divergence, z: Tensor, v: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return what `row_sweeps.forward` does; ``None`` if it is not compiled."""
    return cast(tuple[Tensor, Tensor, Tensor] | None, _attempt("forward", divergence, z, v, labels))


def backward(divergence: Divergence, z: Tensor, v: Tensor, *others: Tensor | None) -> Tensor | None:
    """Return what `row_sweeps.backward` does; ``None`` if it is not compiled."""
    return cast(Tensor | None, _attempt("backward", divergence, z, v, *others))


def _attempt(sweep: str, divergence: Divergence, z: Tensor, *others: Tensor | None) -> Any:
    if len(z) < FEWEST:
        return None
    tensors = [x.contiguous() if x is not None else None for x in (z, *others)]
    dtypes = tuple(x.dtype if x is not None else None for x in tensors)
    with torch.autocast(z.device.type, enabled=False):
        return _form(sweep, divergence, z.shape[-1], dtypes, torch.get_num_threads())(*tensors)


@functools.lru_cache(maxsize=64)
def _form(sweep: str, divergence: Divergence, *_: Any) -> _Form:
    return _Form(functools.partial(getattr(row_sweeps, sweep), divergence))


class _Form:
    """A sweep that is compiled when it is first called, and returns ``None`` ever after if that fails."""

    def __init__(self, sweep: Callable[..., Any]) -> None:
        self._call: Callable[..., Any] | None = compile_apart(sweep, fullgraph=True)
        self._compiled = False

    def __call__(self, *tensors: Tensor | None) -> Any:
        if self._compiled or self._call is None:
            return self._call and self._call(*tensors)
        for tensor in tensors:
            if tensor is not None:
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the compiler's own, such as deprecations
                results = self._call(*tensors)
        except Exception as error:  # noqa: BLE001  whatever a compiler raises, the sweeps in blocks work or tell why not
            self._call = None
            warnings.warn(
                f"losses: expected to compile their sweeps, got {type(error).__name__}; they are computed uncompiled, "
                "in blocks (compiled=False, in a recipe loss_form=fused, says so beforehand)",
                stacklevel=2,
            )
            return None
        self._compiled = True
        return results
