"""Compiling of single functions."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch


def compile_apart(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Compile a function of tensors, as `torch.compile` does with these options, apart from all others.

    Compiled forms are cached, and limited in number, per code object; here each function has its own. Nothing is
    compiled before the first call.
    """

    def call(*inputs: Any) -> Any:
        return function(*inputs)

    apart = FunctionType(call.__code__.replace(), call.__globals__, closure=call.__closure__)
    return torch.compile(apart, **options)
