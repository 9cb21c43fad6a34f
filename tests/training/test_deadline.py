from types import SimpleNamespace

import pytest

from tutelage.training.deadline import Deadline, DeadlineExceeded
from tutelage.training.loop import fit


def test_work_is_begun_only_where_there_is_time_for_all_of_it():
    deadline = Deadline(10.0, clock=lambda: 7.0)
    assert deadline.left == 3.0
    deadline.check("a step", 2.9)
    for work in (3.0, 4.0):
        with pytest.raises(DeadlineExceeded, match=r"^a step: no time is left for it"):
            deadline.check("a step", work)
    assert Deadline(7.0, clock=lambda: 7.0).over()


def test_several_processes_would_each_stop_at_a_step_of_its_own():
    fitting = fit(None, None, None, None, accelerator=SimpleNamespace(num_processes=2), deadline=Deadline(1.0))
    with pytest.raises(
        ValueError, match=r"^deadline: expected none where several processes train together, got one for 2"
    ):
        next(fitting)
