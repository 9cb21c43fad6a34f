"""Faster and smaller forms of losses: the same values and gradients, kept only where a benchmark shows the gain."""

from tutelage.kernels.linear import linear as linear
from tutelage.kernels.logits import cross_entropy_and as cross_entropy_and
from tutelage.kernels.logits import cross_entropy_and_wttm as cross_entropy_and_wttm
