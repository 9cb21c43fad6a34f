"""The presets as parameters of tests: a few of each kind in the quick suite, the others marked slow."""

import pytest

from tutelage.objectives import PRESETS

FEW = ("cross_entropy", "kd", "ttm", "wttm", "dist", "ctkd", "crd", "reviewkd", "rkd", "itrd", "attention_transfer")
"""Plain, transformed, batch-coupled, with a state, with banks, with projectors, with schedules."""

OF_TOKENS = ("vitkd", "hidden_states", "attention_relations")
"""Those that read transformers."""


def few_quickly(names=PRESETS):
    """Return parameters of all these presets, of which only `FEW` are not marked slow."""
    return [pytest.param(name, marks=[] if name in FEW else pytest.mark.slow) for name in names]
