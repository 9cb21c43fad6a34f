import re

import pytest
from tests._helpers.fit_cases import Rows, fitted, mlp, samples, untimed
from tests._helpers.refusals import refused

from tutelage.training.checkpoints import Checkpoints
from tutelage.training.deadline import Deadline, DeadlineExceeded, TimedBatches


def test_work_is_begun_only_where_there_is_time_for_all_of_it():
    deadline = Deadline(10.0, clock=lambda: 7.0)
    assert deadline.left == 3.0
    deadline.check("a step", 2.9)
    for work in (3.0, 4.0):
        with refused(DeadlineExceeded, "a step"):
            deadline.check("a step", work)
    assert Deadline(7.0, clock=lambda: 7.0).over()


class Clock:
    """A clock that a test moves."""

    def __init__(self):
        self.time = 0.0

    def __call__(self):
        return self.time


class Ticking(Rows):
    """Batches of which each takes a second to come."""

    def __init__(self, *tensors, clock, **how):
        super().__init__(*tensors, **how)
        self.clock = clock

    def epoch(self, epoch, *, start=0, rank=0, world=1):
        for batch in super().epoch(epoch, start=start):
            self.clock.time += 1
            yield batch


@pytest.mark.parametrize("stop", [0.5, 2.5, 3.0, 4.5])
def test_a_fit_that_is_stopped_in_time_goes_on_to_the_same_bits(tmp_path, stop):
    """Of three steps an epoch; the third has an evaluation of a second after it."""
    whole, student, clock = mlp(), mlp(), Clock()
    expected = fitted(whole, Rows(*samples(), batch_size=16))
    rows = TimedBatches(Ticking(*samples(), batch_size=16, clock=clock), Deadline(stop, evaluation=1.0, clock=clock))
    with refused(DeadlineExceeded) as caught:
        fitted(student, rows, folder=tmp_path)
    assert re.fullmatch(r"step [123] of epoch [12]", caught.value.what)
    taken = {0.5: 0, 2.5: 2, 3.0: 2, 4.5: 4}[stop]
    saved = Checkpoints(tmp_path / "checkpoints").load()
    assert (saved.state["step"] if saved else 0) == taken
    records = fitted(student if saved else mlp(), Rows(*samples(), batch_size=16), folder=tmp_path, resume=True)
    assert untimed(records) == untimed(expected)[-len(records) :]


def test_how_long_evaluations_take_is_known_after_the_first():
    deadline = Deadline(1e12, evaluation=7.0)
    list(TimedBatches(Rows(*samples(), batch_size=16), deadline).epoch(0))
    assert deadline.evaluation == 7.0
    deadline.end_evaluation()
    assert 0 <= deadline.evaluation < 7.0
