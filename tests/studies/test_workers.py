"""Workers are dealt over a machine's GPUs, of which there are none here: their number is made up."""

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tutelage import records
from tutelage.studies import workers


@pytest.fixture
def four_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(
    ("device", "visible", "gpus"),
    [
        ("cuda", None, ["0", "1", "2", "3"]),
        ("auto", None, ["0", "1", "2", "3"]),
        ("cuda", "4, 5,6,GPU-8e1d", ["4", "5", "6", "GPU-8e1d"]),
        ("cuda:2", None, []),
        ("cpu", None, []),
    ],
)
def test_gpus_that_workers_are_dealt_over(device, visible, gpus, four_gpus, monkeypatch):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert workers.visible_gpus(device) == gpus


def test_without_a_gpu_nothing_is_dealt():
    assert workers.visible_gpus("auto") == []


def test_each_worker_sees_one_gpu_in_turn(monkeypatch):
    seen = []

    def started(typed, *, env, **_):
        seen.append(env.get("CUDA_VISIBLE_DEVICES"))
        records.write_json(Path(typed[-1]), {})
        return SimpleNamespace(stdin=io.StringIO(), stdout=io.StringIO(), wait=lambda: 0, returncode=0)

    monkeypatch.setattr(workers.subprocess, "Popen", started)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "all")
    assert workers.share(["study"], 3, say=print, gpus=["5", "7"]) == {}
    assert workers.share(["study"], 1, say=print) == {}
    assert seen == ["5", "7", "5", "all"]
