"""Faster and smaller forms of losses, with the same values and gradients; docs/kernels.md has the measurements."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tutelage.lazy import forward

if TYPE_CHECKING:
    from tutelage.kernels.last_layer import linear as linear
    from tutelage.kernels.logits import cross_entropy_and as cross_entropy_and
    from tutelage.kernels.logits import cross_entropy_and_wttm as cross_entropy_and_wttm

# The last layer's module imports torch's compiler, which takes a second.
_MODULES = {"linear": ".last_layer", **dict.fromkeys(("cross_entropy_and", "cross_entropy_and_wttm"), ".logits")}
__all__ = list(_MODULES)

if not TYPE_CHECKING:  # where a type checker saw it, a misspelt name would be one of any type
    __getattr__, __dir__ = forward(__name__, _MODULES)
