"""Worker processes that last: over epochs and splits, until they are closed."""

import multiprocessing
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from tests._helpers import ROOT
from tests._helpers.refusals import refused

from tutelage.data.workers import WorkerPool, _results
from tutelage.errors import RunError
from tutelage.types import View

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]
REQUESTS = [np.arange(3), np.arange(5), np.arange(1), np.arange(2)]


@pytest.mark.parametrize("error", [EOFError(), ConnectionResetError(104, "Connection reset by peer")])
def test_a_process_that_ends_is_named_where_the_pipe_to_it_breaks(error):
    def broken():
        yield 1
        raise error

    results = _results(broken())
    assert next(results) == 1
    with refused(RunError, "data.workers", got=type(error).__name__, suggests="resume"):
        next(results)


def described(index, *, view):
    return os.getpid(), len(index), view


def doubled(index, *, view):
    return os.getpid(), 2 * len(index), view


def failing(index, *, view):
    if len(index) == 1:
        raise ZeroDivisionError
    return os.getpid(), len(index), view


def children():
    """Return the processes of this file's tests: other files leave theirs to the garbage collector."""
    return set(multiprocessing.active_children()) - EARLIER


EARLIER = set()


@pytest.fixture
def pool():
    EARLIER.update(multiprocessing.active_children())
    pool = WorkerPool()
    yield pool
    pool.close()
    assert not children()


def results(pool, function=described, workers=2, epoch=0):
    return list(pool.map(function, REQUESTS, view=View(0, epoch), workers=workers))


def test_processes_last_over_epochs_and_functions(pool):
    results(pool)
    results(pool, doubled)  # a function that they have not met starts them anew
    first = results(pool, doubled)
    second, third = results(pool, epoch=1), results(pool, doubled, epoch=2)
    assert {pid for pid, *_ in first} == {pid for pid, *_ in second} == {pid for pid, *_ in third}
    assert os.getpid() not in {pid for pid, *_ in first}
    assert [rest for _, *rest in second] == [[n, View(0, 1)] for n in (3, 5, 1, 2)]
    assert [rest for _, *rest in third] == [[n, View(0, 2)] for n in (6, 10, 2, 4)]
    assert len(children()) == 2


def test_a_pass_may_be_left_or_go_on_beside_another(pool):
    expected = [rest for _, *rest in results(pool, workers=0)]
    left = pool.map(described, REQUESTS, view=View(0, 5), workers=2)
    next(left)
    beside = [rest for _, *rest in results(pool)]
    assert beside == expected
    assert [rest for _, *rest in left] == [[n, View(0, 5)] for n in (5, 1, 2)]
    next(pool.map(described, REQUESTS, view=View(0, 6), workers=2))  # let go of at once
    assert [rest for _, *rest in results(pool)] == expected


def test_closing_ends_processes_that_a_traceback_holds_and_they_start_again(pool):
    with pytest.raises(ZeroDivisionError) as raised:
        results(pool, failing)
    pool.close()
    assert not children()
    assert raised.traceback
    assert len(results(pool)) == 4


def test_a_killed_process_is_forgotten_where_its_signal_cuts_the_end_short(monkeypatch):
    pool = WorkerPool()
    list(pool.map(described, [np.arange(3)], view=None, workers=2))
    iterator = pool._loader._iterator

    def cut_short():
        if not iterator._shutdown:
            iterator._shutdown = True
            raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")

    monkeypatch.setattr(iterator, "_shutdown_workers", cut_short)
    pool.close()
    assert not any(worker.is_alive() for worker in iterator._workers)
    with pytest.raises(ValueError, match="Cannot find worker information"):
        torch._C._remove_worker_pids(id(iterator))
    monkeypatch.undo()


def test_the_end_of_the_interpreter_is_silent():
    script = """
        import numpy as np
        from tests.data.test_workers import described
        from tutelage.data.workers import WorkerPool
        pool = WorkerPool()
        print(len(list(pool.map(described, [np.arange(3)], view=None, workers=1))))
    """
    typed = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(typed, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")
