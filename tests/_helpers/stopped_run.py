"""A run that ends as at a pressed Ctrl-C."""

import pytest

from tutelage.runs.execute import execute
from tutelage.training import step


def stopped(planned, folder, monkeypatch):
    """Begin a run and stop it after its third step."""
    count = iter(range(3))
    with monkeypatch.context() as patch:
        apply = step.TrainState.apply

        def limited(state, finite):
            if next(count, None) is None:
                raise KeyboardInterrupt
            apply(state, finite)

        patch.setattr(step.TrainState, "apply", limited)
        with pytest.raises(KeyboardInterrupt):
            execute(planned, folder)
