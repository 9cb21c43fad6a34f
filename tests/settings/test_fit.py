"""How many steps a fit has."""

import pytest
from tests._helpers.refusals import refused

from tutelage.errors import InvalidValueError
from tutelage.settings.fit import smallest_share, steps_per_epoch


@pytest.mark.parametrize(
    ("samples", "batch_size", "world", "steps", "smallest"),
    [
        (100, 32, 1, 4, 4),
        (96, 32, 1, 3, 32),
        (5, 64, 1, 1, 5),  # an epoch smaller than the batch
        (98, 32, 2, 4, 1),
        (98, 32, 3, 3, 10),  # two samples are left for three processes, and left out
        (99, 32, 3, 4, 1),
        (3, 64, 3, 1, 1),
    ],
)
def test_a_last_batch_of_fewer_samples_than_processes_is_no_step(samples, batch_size, world, steps, smallest):
    assert steps_per_epoch(samples, batch_size, world=world) == steps
    assert smallest_share(samples, batch_size, world=world) == smallest


@pytest.mark.parametrize(("samples", "batch_size", "most"), [(100, 2, 2), (2, 100, 2), (0, 8, 0)])
def test_each_process_needs_a_sample(samples, batch_size, most):
    with refused(InvalidValueError, "batch_size", got=samples, suggests=most):
        steps_per_epoch(samples, batch_size, world=3)
