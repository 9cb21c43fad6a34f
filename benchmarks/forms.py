"""What the benchmarks of losses compare with each other, and how they read memory."""

import math

import torch
from torch.nn import functional as F

from tutelage import losses
from tutelage.engine import memory

CPU = torch.device("cpu")
GAMMA, BETA = 0.1, 3.0


def algorithm_1(z, v, labels):
    """The procedure of the paper, as it is printed: probabilities, their powers, the powers' sum."""
    with torch.no_grad():
        powers = torch.softmax(v, dim=-1) ** GAMMA
        power_sum = powers.sum(dim=-1, keepdim=True)
        transformed = powers / power_sum
    divergence = F.kl_div(torch.log_softmax(z, dim=-1), transformed, reduction="none").sum(dim=-1)
    return F.cross_entropy(z, labels, reduction="none"), power_sum[:, 0] * divergence


def plain(z, v, labels):
    """The two losses, one after the other."""
    return losses.cross_entropy(z, labels), losses.wttm(z, v, gamma=GAMMA)


def added_mb(run):
    """Return by how many MB the process's peak memory during ``run``, as the system counts it, is over what it had."""
    memory.restart(CPU)
    before = memory.peak(CPU)
    run()
    return memory.peak(CPU) - before


def geometric_mean(values):
    """Return the geometric mean."""
    return math.exp(sum(map(math.log, values)) / len(values))
