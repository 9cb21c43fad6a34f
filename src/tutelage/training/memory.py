"""Peak memory of a stretch of training."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import psutil
import torch

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
