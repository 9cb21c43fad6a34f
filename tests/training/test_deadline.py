from types import SimpleNamespace

import pytest

from tutelage.training.deadline import OutOfTimeError, Until
from tutelage.training.loop import fit


def test_work_is_begun_only_where_there_is_time_for_all_of_it():
    until = Until(10.0, clock=lambda: 7.0)
    assert until.left == 3.0
    until.check("a step", 2.9)
    for work in (3.0, 4.0):
        with pytest.raises(OutOfTimeError, match=r"^a step: no time is left for it"):
            until.check("a step", work)
    assert Until(7.0, clock=lambda: 7.0).over()


def test_several_processes_would_each_stop_at_a_step_of_its_own():
    fitting = fit(None, None, None, None, accelerator=SimpleNamespace(num_processes=2), until=Until(1.0))
    with pytest.raises(
        ValueError, match=r"^until: expected none where several processes train together, got one for 2"
    ):
        next(fitting)
