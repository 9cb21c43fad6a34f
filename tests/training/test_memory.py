"""Peak memory, as each system tells it."""

import gc
import mmap
import resource
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tutelage.training import memory

CPU = torch.device("cpu")


def test_linux_tells_the_peak_since_the_restart():
    gc.collect()  # what other tests left, freed below, would hide the block
    memory.restart(CPU)
    before = memory.peak(CPU)
    block = mmap.mmap(-1, 64_000_000)  # of the system: an allocator may reuse what it keeps
    np.frombuffer(block, np.uint8)[:] = 1
    assert memory.peak(CPU) - before == pytest.approx(64.0, rel=0.3)


def test_macos_tells_bytes(monkeypatch):
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=250_000_000))
    assert memory.peak(CPU) == 250.0


def test_windows_tells_the_peak_of_the_working_set(monkeypatch):
    monkeypatch.setattr(memory.sys, "platform", "win32")
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=250_000_000))
    monkeypatch.setattr(memory.psutil, "Process", lambda: process)
    assert memory.peak(CPU) == 250.0


def test_a_system_that_does_not_tell(monkeypatch, tmp_path):
    for name in ("_STATUS", "_CLEAR"):
        monkeypatch.setattr(memory, name, tmp_path / "none" / "such")
    memory.restart(CPU)
    assert memory.peak(CPU) is None
