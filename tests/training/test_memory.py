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


def test_tensors_count_as_long_as_they_live_and_once():
    known = torch.ones(1000)
    with memory.LiveTensors([known]) as live:
        view = known.view(10, 100)
        assert live.peak == 0
        kept = view * 2  # 4000 bytes
        again = kept[0]
        gone = torch.zeros(500)
        del gone
        assert live.peak == 6000
        live.restart()
        assert live.peak == 4000
        del kept
        more = torch.zeros(100)
        assert live.peak == 4400  # A view keeps the whole.
    assert (len(again), len(more)) == (100, 100)


def test_a_backward_pass_counts_what_is_saved_and_the_gradients():
    weight = torch.ones(250, requires_grad=True)
    with memory.LiveTensors([weight]) as live:
        (weight.exp().exp().sum()).backward()
    assert weight.grad is not None
    assert 3000 <= live.peak <= 5000


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({"memory.max": "max", "memory.current": "5", "memory.stat": "inactive_file 2"}, 10_000),
        ({"memory.max": "900", "memory.current": "500", "memory.stat": "anon 4\ninactive_file 100"}, 500),
        ({"memory.max": "900", "memory.current": "990", "memory.stat": "inactive_file 10"}, 0),
        (
            {
                "memory/memory.limit_in_bytes": "700",
                "memory/memory.usage_in_bytes": "400",
                "memory/memory.stat": "total_inactive_file 50",
            },
            350,
        ),
        ({}, 10_000),
    ],
)
def test_a_container_may_have_less_than_the_machine(monkeypatch, tmp_path, files, left):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=10_000))
    assert memory.free(torch.device("cpu")) == left
