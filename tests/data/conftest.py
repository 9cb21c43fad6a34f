"""Worker processes end with the test that started them."""

import pytest

from tutelage.data.workers import WorkerPool


@pytest.fixture(autouse=True)
def workers_that_end(monkeypatch):
    """Close the pools of a test: ended by the garbage collector, processes may wait five seconds for each other."""
    pools = []
    begin = WorkerPool.__init__

    def begun(pool):
        begin(pool)
        pools.append(pool)

    monkeypatch.setattr(WorkerPool, "__init__", begun)
    yield
    for pool in pools:
        pool.close()
