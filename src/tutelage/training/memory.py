"""Memory: the peak of a stretch of training, what is free, and what tensors take."""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_MB = 1e6


def restart(device: torch.device) -> None:
    """Forget the peak so far."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):  # Not Linux, or not allowed: then the peak is since the process began.
        _CLEAR.write_bytes(b"5")


def peak(device: torch.device) -> float | None:
    """Return the peak since `restart` in MB (1e6 bytes); ``None`` if the system does not tell.

    On CUDA it is the memory of tensors; elsewhere that of the whole process, data and libraries included.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / _MB
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / _MB
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _MB  # bytes there, not kilobytes
    try:
        lines = _STATUS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    kilobytes = next((line.split()[1] for line in lines if line.startswith("VmHWM:")), None)
    return int(kilobytes) * 1024 / _MB if kilobytes else None


def allocated(device: torch.device) -> int:
    """Return the bytes of tensors on a device; 0 where that is not counted."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def most_allocated(device: torch.device) -> int:
    """Return the peak of `allocated` since `restart`."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


_CGROUP = Path("/sys/fs/cgroup")
"""Where Linux says what a container may use."""


def free(device: torch.device) -> int:
    """Return the bytes that a device has free, within the limit of a container on the CPU."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    left: int = psutil.virtual_memory().available
    for limit, used, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        with contextlib.suppress(OSError, ValueError):  # "max" for none
            most, now = (int((_CGROUP / name).read_text(encoding="utf-8")) for name in (limit, used))
            lines = (_CGROUP / used).with_name("memory.stat").read_text(encoding="utf-8").splitlines()
            files = dict(line.split(" ", 1) for line in lines).get(cached, "0")
            left = min(left, max(most - now + int(files), 0))
    return left


class LiveTensors(TorchDispatchMode):
    """Counts the memory of the tensors that operations return, as long as they live; those ``known`` do not count.

    What an operation takes for itself while it computes is not seen.

    Attributes:
        peak: most bytes that lived at once.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self._known = [tensor.untyped_storage() for tensor in known]  # kept, so that no other gets their address
        self._seen: dict[int, Any] = dict.fromkeys(storage._cdata for storage in self._known)
        self._live = self.peak = 0

    def restart(self) -> None:
        """Forget the peak so far."""
        self.peak = self._live

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Do an operation, and count what it returns."""
        result = func(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, Tensor):
                self._count(each.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        address, size = storage._cdata, storage.nbytes()
        if address not in self._seen:
            self._seen[address] = weakref.ref(storage, partial(self._gone, address, size))
            self._live += size
            self.peak = max(self.peak, self._live)

    def _gone(self, address: int, size: int, _: object) -> None:
        del self._seen[address]
        self._live -= size
