"""Obstacles to capturing a step in a CUDA graph: waits of the host, and tensors that Python keeps."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PACKAGE = f"{Path(__file__).parents[1]}/"
TORCH = f"{Path(torch.__file__).parent}/"

WAITS = frozenset(
    f"aten::{name}"
    for name in (
        # The host reads a value.
        *("_local_scalar_dense", "equal", "is_nonzero", "histc", "multinomial"),
        *("normal.float_Tensor", "normal.Tensor_Tensor"),  # is every standard deviation at least 0?
        # It reads the number that they fill with; a Python number would be known.
        *("index_fill.int_Tensor", "index_fill_.int_Tensor", "masked_fill.Tensor", "masked_fill_.Tensor"),
        # It reads the size of the result.
        *("nonzero", "masked_select", "bincount", "isin.Tensor_Tensor", "repeat_interleave.Tensor"),
        *("_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive"),
        # It reads whether a decomposition succeeded. Those that call `_linalg_check_errors` as a separate operation
        # (inv, cholesky, solve, lu_factor) are found by that.
        *("_linalg_check_errors", "_linalg_svd", "_linalg_eigh", "linalg_eig", "linalg_eigvals", "_linalg_eigvals"),
        *("linalg_lstsq", "linalg_matrix_exp", "cholesky", "cholesky_inverse", "_cholesky_solve_helper"),
        # It reads lengths.
        *("_ctc_loss.Tensor", "_cudnn_ctc_loss.Tensor", "segment_reduce", "embedding_renorm_"),
    )
)
"""Operations that wait on CUDA whatever their arguments, by their names in torch."""
MOVES_SCALARS = frozenset({"aten::where.self", "aten::index_put", "aten::index_put_", "aten::_foreach_copy_"})
"""Operations that copy a CPU scalar to the device; others pass its value to their kernel."""


class HostWaits(TorchDispatchMode):
    """Records, while active, each operation that would make the host wait for a device.

    These are reads of values or of sizes that depend on them, copies between the device and pageable memory, and
    operations on tensors of both. The backward pass is covered too. On the CPU nothing is recorded.

    Args:
        device: device of the step.

    Attributes:
        found: counts by operation and place, such as ``aten::nonzero, losses/maps.py:12``: the innermost line outside
            torch that caused it, in the backward pass with the node of the graph.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(
        self, function: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.device.type != "cpu":
            self.look(name_of(function), args, kwargs)
        return function(*args, **kwargs)

    def look(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Record an operation that waits."""
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        inside = [tensor for tensor in tensors if self.holds(tensor)]
        outside = [tensor for tensor in tensors if not self.holds(tensor)]
        if name == "aten::_to_copy":
            target = torch.device(kwargs.get("device") or args[0].device)
            self._look_at_copy(name, args[0], target, non_blocking=kwargs.get("non_blocking", False))
        elif name == "aten::copy_":
            blocking = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
            self._look_at_copy(name, args[1], args[0].device, non_blocking=not blocking)
        elif not inside or _fills(name, args):
            return
        elif name in WAITS and kwargs.get("output_size") is None:
            self.note(name)
        elif name == "aten::lift_fresh":
            self.note("a tensor of Python numbers, copied from the CPU")  # `torch.tensor`, whose copy is invisible.
        elif _is_masked(name, args):
            self.note(f"{name} by a mask")
        elif outside and (name in MOVES_SCALARS or any(tensor.ndim > 0 for tensor in outside)):
            self.note(f"{name} of tensors on {self.device.type} and {outside[0].device.type}")

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor is on the device."""
        return tensor.device.type == self.device.type

    def note(self, what: str) -> None:
        """Count something at the line that caused it."""
        self.found[f"{what}, {_place()}"] += 1

    def _look_at_copy(self, name: str, source: Tensor, target: torch.device, *, non_blocking: bool) -> None:
        if self.holds(source) and target.type != self.device.type:
            self.note(f"{name} to the {target.type.upper()}")
        elif not self.holds(source) and target.type == self.device.type and not (non_blocking and source.is_pinned()):
            self.note(f"{name} from the {source.device.type.upper()}")


class KeptTensors(TorchDispatchMode):
    """Records, while active, each operation of a second run that reads memory that the first one made.

    An example is a moving average in an attribute that every run replaces: a replay would read the captured one
    forever. Memory made only by earlier runs, such as a table kept from the first on, is constant.

    Attributes:
        found: counts by operation and place.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self._made: dict[int, StorageWeakRef] = {}
        self._kept: dict[int, StorageWeakRef] | None = None  # storages of the first run, in the second

    def next_run(self) -> None:
        """Begin the second run."""
        self._kept = {key: storage for key, storage in self._made.items() if not storage.expired()}

    def __torch_dispatch__(
        self, function: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        read = _storages((args, kwargs))
        made = function(*args, **kwargs)
        if self._kept is None:  # A weak reference keeps the number from naming other memory later.
            self._made |= {key: StorageWeakRef(s) for key, s in _storages(made).items() if key not in read}
        elif read.keys() & self._kept.keys():
            self.found[f"{name_of(function)}, {_place()}"] += 1
        return made


def _storages(values: Any) -> dict[int, torch.UntypedStorage]:
    """Return the storages of all tensors in a tree, by number."""
    tensors = (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor) and leaf.layout is torch.strided)
    return {storage._cdata: storage for storage in (tensor.untyped_storage() for tensor in tensors)}


def name_of(function: Any) -> str:
    """Return an operation's name, such as ``aten::add.Tensor``."""
    overload = function._schema.overload_name
    return f"{function._schema.name}.{overload}" if overload else str(function._schema.name)


def _is_masked(name: str, args: tuple[Any, ...]) -> bool:
    """Whether an operation indexes by a mask."""
    return name in ("aten::index.Tensor", "aten::index_put", "aten::index_put_") and any(map(_is_mask, args[1]))


def _fills(name: str, args: tuple[Any, ...]) -> bool:
    """Whether an operation writes one number where a mask is true, which torch runs as `masked_fill`."""
    if not name.startswith("aten::index_put") or args[3:] == (True,):
        return False
    indices = [index for index in args[1] if index is not None]
    return len(indices) == 1 and _is_mask(indices[0]) and args[2].device.type == "cpu" and args[2].numel() == 1


def _is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype in (torch.bool, torch.uint8)


def _place() -> str:
    frame: FrameType | None = sys._getframe()
    while frame is not None and _looks_on(frame):
        frame = frame.f_back
    node = torch._C._current_autograd_node()
    # A device's backward pass has its own thread, without a line of ours.
    line = f"{frame.f_code.co_filename.removeprefix(PACKAGE)}:{frame.f_lineno}" if frame is not None else ""
    return " in ".join(filter(None, (line, node.name() if node is not None else "")))


def _looks_on(frame: FrameType) -> bool:
    """Whether a frame belongs to torch or to a mode, which causes nothing by itself."""
    mode = isinstance(frame.f_locals.get("self"), TorchDispatchMode | TorchFunctionMode)
    return mode or frame.f_code.co_filename.startswith((TORCH, __file__))
