"""Processes on this machine that train together, as a launcher starts them."""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import torch
from torch import multiprocessing

from tutelage.training.distributed import part
from tutelage.types import Batch

from .fit_cases import Rows
from .launching import free_port

LIMIT = 120
"""Seconds after which a test ends the processes that it started."""
# Processes are forked from one that has imported what all of them need: only this takes seconds. Outside of Linux
# that is not possible, or not safe once PyTorch is imported.
START = "forkserver" if sys.platform == "linux" else "spawn"
multiprocessing.set_forkserver_preload(["tutelage.runs.execute", "tutelage.objectives", "pytest"])


class Shares(Rows):
    """A global batch of which each process takes every second sample: 7 samples are 4 and 3."""

    def epoch(self, epoch, *, start=0, rank=0, world=1):
        for batch in super().epoch(epoch, start=start):
            yield Batch(*(tensor[rank::world] for tensor in (batch.index, batch.inputs, batch.labels)))


def processes(count, work, *args, limit=LIMIT):
    """Call ``work(rank, *args)`` in processes that meet; raise the first error of one."""
    codes, started = _processes(count, limit, work, *args)
    while not started.join():  # They have ended; this raises their error.
        pass
    assert codes == [0] * count


def two_processes(work, *args):
    """Call ``work(rank, *args)`` in two processes that meet; return their exit codes, or raise the first's error."""
    return _processes(2, LIMIT, work, *args)


def _processes(count, limit, work, *args):
    started = multiprocessing.start_processes(
        _start, (dict(os.environ), free_port(), count, work, *args), nprocs=count, join=False, start_method=START
    )
    try:
        for process in started.processes:
            process.join(limit)
    finally:
        for process in started.processes:
            process.kill()
    return [process.exitcode for process in started.processes], started


def _start(rank, environment, port, count, work, *args):
    os.environ.clear()  # A process that is forked has that of an earlier test.
    os.environ.update(environment)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1")
    os.environ.update(MASTER_PORT=str(port), ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # A shell's background job ignores it.
    work(rank, *args)
    part()
    for task in Path("/proc/self/task").glob("*/comm"):  # on Linux
        with suppress(OSError):  # A thread has ended meanwhile.
            assert "gloo" not in task.read_text(), "a thread of the group could outlive the interpreter"
