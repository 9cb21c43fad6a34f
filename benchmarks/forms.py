"""What the benchmarks of losses compare with each other, and how they read memory."""

from functools import partial

import torch

from tutelage import benchmark, losses
from tutelage.engine import memory

CPU = torch.device("cpu")
GAMMA, BETA = 0.1, 3.0


algorithm_1 = partial(benchmark.algorithm1, gamma=GAMMA)
"""The procedure of the paper, as it is printed."""


def plain(z, v, labels):
    """The two losses, one after the other."""
    return losses.cross_entropy(z, labels), losses.wttm(z, v, gamma=GAMMA)


def added_mb(run):
    """Return by how many MB the process's peak memory during ``run``, as the system counts it, is over what it had."""
    memory.restart(CPU)
    before = memory.peak(CPU)
    run()
    return memory.peak(CPU) - before
