"""`row_sweeps` in compiled form: one function per divergence, number of classes, dtype and number of threads.

A sweep is then one or two passes over a row that is in the processor's innermost cache, without temporary tensors. The
first call of a form takes seconds and needs a C++ compiler; the number of rows may change without another.
"""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from tutelage.kernels import row_sweeps
from tutelage.kernels.compiler import compile_apart
from tutelage.kernels.divergence import Divergence

LEAST_ROWS = 2
"""Number of rows below which nothing is compiled: to the compiler 0 and 1 are special, and need forms of their own."""


def forward(divergence: Divergence, z: Tensor, v: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return what `row_sweeps.forward` does; ``None`` if it is not compiled."""
    return cast(tuple[Tensor, Tensor, Tensor] | None, _attempt("forward", divergence, z, v, labels))


def backward(divergence: Divergence, z: Tensor, v: Tensor, *others: Tensor | None) -> Tensor | None:
    """Return what `row_sweeps.backward` does; ``None`` if it is not compiled."""
    return cast(Tensor | None, _attempt("backward", divergence, z, v, *others))


def _attempt(sweep: str, divergence: Divergence, z: Tensor, *others: Tensor | None) -> Any:
    if len(z) < LEAST_ROWS:
        return None
    tensors = [x.contiguous() if x is not None else None for x in (z, *others)]
    dtypes = tuple(x.dtype if x is not None else None for x in tensors)
    with torch.autocast(z.device.type, enabled=False):
        return _form(sweep, divergence, z.shape[-1], dtypes, torch.get_num_threads())(*tensors)


@functools.lru_cache(maxsize=64)
def _form(
    sweep: str, divergence: Divergence, classes: int, dtypes: tuple[torch.dtype | None, ...], threads: int
) -> _Form:
    """Return the form for these, of which each would otherwise be a recompilation of one form, which are limited."""
    return _Form(functools.partial(getattr(row_sweeps, sweep), divergence))


_FIRST = threading.Lock()
"""Held in first calls: what is warned of is the whole process's."""


class _Form:
    """A sweep that is compiled when it is first called, and returns ``None`` ever after if that fails."""

    def __init__(self, sweep: Callable[..., Any]) -> None:
        self._call: Callable[..., Any] | None = compile_apart(sweep, fullgraph=True)
        self._compiled = False

    def __call__(self, *tensors: Tensor | None) -> Any:
        try:
            if self._compiled:
                return self._call and self._call(*tensors)
            with _FIRST:
                return self._first(*tensors)
        except Exception as error:  # noqa: BLE001  whatever a compiler raises, the sweeps in blocks work or tell why not
            self._call, self._compiled = None, True
            warnings.warn(
                f"losses: expected to compile their sweeps, got {type(error).__name__}; they are computed in blocks "
                "(type compiled=False, in a recipe loss_form=fused, not to try it)",
                stacklevel=2,
            )
            return None

    def _first(self, *tensors: Tensor | None) -> Any:
        views = [x.detach() if x is not None else None for x in tensors]  # The marks are no caller's business.
        for view in views:
            if view is not None:
                torch._dynamo.maybe_mark_dynamic(view, 0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's own, such as deprecations
            results = self._call and self._call(*views)
        self._compiled = True
        return results
