"""When a fit ends before its last epoch: a pure function of the epochs that are recorded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from tutelage import records
from tutelage.settings.fit import EarlyStopping

BY: Final = "validation"
"""The held-out set that decides. By the test set, the accuracy that is reported would be too good."""


def kept_epoch(epochs: Sequence[records.Epoch], stopping: EarlyStopping | None) -> records.Epoch:
    """Return the epoch whose weights a run ends with.

    Args:
        epochs: records of the run, at least one.
        stopping: how its last fit ends early; ``None`` if it does not.
    """
    best = records.best_epoch(epochs, BY) if stopping is not None and stopping.keep == "best" else None
    if best is None:
        return epochs[-1]
    return next(e for e in epochs if (e["stage"], e["epoch"]) == (best["stage"], best["epoch"]))


def reason_to_stop(epochs: Sequence[records.Epoch], stopping: EarlyStopping) -> str | None:
    """Return why a fit ends after its epochs so far; ``None`` if it does not.

    It ends once ``patience`` epochs in a row did not raise the best `records.merit` on the validation set by more than
    ``min_delta``. One that rises by less does not count as a rise, but those after it are compared with the best before
    it, so that a slow rise counts when it adds up.

    Args:
        epochs: records of a fit, the first one first.
        stopping: how long to wait, and for what.
    """
    best, best_epoch, waited = -math.inf, 0, 0
    for epoch in epochs:
        held = epoch[BY]
        merit = None if held is None else records.merit(held)
        if merit is None:
            return None  # Without labels no epoch is better than another.
        if merit > best + stopping.min_delta:
            best, best_epoch, waited = merit, epoch["epoch"], 0
        else:
            waited += 1
    if waited < stopping.patience:
        return None
    name = records.measure(epochs[-1][BY] or {}).name
    by = f" by more than {stopping.min_delta:g}" if stopping.min_delta else ""
    since = f"after epoch {best_epoch} " if best_epoch else ""
    return f"{since}the {name} on the {BY} set did not get better{by} for {waited} epoch{'s' * (waited > 1)}"
