"""What a launcher says of a process, and what cannot be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from tests._helpers import ROOT
from tests._helpers.launching import free_port
from tests._helpers.refusals import refused

from tutelage import launcher
from tutelage.errors import InvalidValueError

WHOLE = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture
def environment(monkeypatch):
    for name in (*WHOLE, *launcher._OTHERS):
        monkeypatch.delenv(name, raising=False)

    def put(**values):
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return put


def test_one_of_several(environment):
    launcher.check()
    assert (launcher.rank(), launcher.local_rank(), launcher.world_size()) == (0, 0, 1)
    environment(**WHOLE)
    launcher.check()
    assert (launcher.rank(), launcher.local_rank(), launcher.world_size()) == (1, 1, 2)


def test_a_number_alone_makes_no_second_process(environment):
    environment(RANK="1", LOCAL_RANK="1")
    launcher.check()
    assert (launcher.rank(), launcher.local_rank()) == (0, 0)


@pytest.mark.parametrize(
    ("values", "what", "got"),
    [
        ({"RANK": "abc"}, "RANK", "'abc'"),
        ({**WHOLE, "WORLD_SIZE": "-2"}, "WORLD_SIZE", "'-2'"),
        ({"WORLD_SIZE": "2"}, "RANK", "none"),
        ({name: value for name, value in WHOLE.items() if name != "LOCAL_RANK"}, "LOCAL_RANK", "none"),
        ({name: value for name, value in WHOLE.items() if name != "MASTER_ADDR"}, "MASTER_ADDR", "none"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "WORLD_SIZE", "OMPI_COMM_WORLD_SIZE=2"),
    ],
)
def test_what_cannot_be(environment, values, what, got):
    environment(**values)
    with refused(InvalidValueError, what, got=[got], suggests="torchrun"):
        launcher.check()


@pytest.mark.slow
def test_a_second_signal_ends_a_process_that_waits_for_the_others(tmp_path):
    typed = ["distill", "student=mlp:8", "teacher=mlp:8", "objective=kd", "device=cpu", "precision=fp32", "name=a"]
    alone = {**os.environ, **WHOLE, "RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": str(free_port())}
    alone["PYTHONPATH"] = str(ROOT / "src")
    waiting = subprocess.Popen([sys.executable, "-m", "tutelage", *typed], env=alone, cwd=tmp_path)
    try:
        time.sleep(20)
        assert waiting.poll() is None
        waiting.send_signal(signal.SIGTERM)
        time.sleep(2)
        waiting.send_signal(signal.SIGTERM)
        assert waiting.wait(timeout=10) == 143
    finally:
        waiting.kill()
        waiting.wait()
