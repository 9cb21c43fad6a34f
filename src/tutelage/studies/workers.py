"""Several processes that share one study, and end with the process that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from tutelage import data, interruption, records
from tutelage.places.time_limit import Budget
from tutelage.studies import budget as budgets
from tutelage.studies import plan, trials
from tutelage.studies.plan import StudyRequest

GRACE = 60.0
"""Seconds for a worker to stop in an orderly way once its parent has ended."""


def share_study(
    arguments: Sequence[str],
    request: StudyRequest,
    workers: int,
    *,
    budget: Budget | None,
    trust_code: bool | frozenset[str],
    say: Callable[[str], None],
) -> dict[str, str]:
    """Run a study with several processes; errors common to all of its runs are raised before any starts."""
    plan.jobs(request)
    data.open_data(request.study.recipe.data)
    if budget is not None:
        for line in budgets.prepare(trials.next_runs(request), budget, workers=workers, trust_code=trust_code).lines():
            say(line)
        arguments = [*arguments, "--until", str(time.time() + budget.left)]
    gpus = visible_gpus(request.study.recipe.device)
    if len(gpus) > 1:
        say(f"{workers} processes on {min(workers, len(gpus))} of {len(gpus)} GPUs")
    return share(arguments, workers, say=say, gpus=gpus)


def visible_gpus(device: str) -> list[str]:
    """Return the GPUs to deal workers over, as CUDA_VISIBLE_DEVICES names them; none where the device is fixed."""
    if device not in ("auto", "cuda") or not torch.cuda.is_available():
        return []
    count = torch.cuda.device_count()
    listed = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return listed[:count] or [str(k) for k in range(count)]


def share(
    arguments: Sequence[str], workers: int, *, say: Callable[[str], None], gpus: Sequence[str] = ()
) -> dict[str, str]:
    """Run one study with several workers, which get the same command-line arguments, and wait for them.

    Each gets its share of the threads, and sees one of the GPUs, if there are any, in turn. A worker's standard input
    is a pipe that nobody writes to: it closes with this process, however this one ends, and then the worker ends too.
    ``say`` shows a line of a worker's output.

    Returns:
        The failed runs, and why; a worker that broke off is named as well.
    """
    threads = str(max(1, torch.get_num_threads() // workers))
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONIOENCODING": "utf-8"}
    failed: dict[str, str] = {}
    noted = set[str]()
    with tempfile.TemporaryDirectory() as folder:
        started = []
        for k in range(1, workers + 1):
            path = Path(folder) / f"{k}.json"
            one = {"CUDA_VISIBLE_DEVICES": gpus[(k - 1) % len(gpus)]} if gpus else {}
            child = subprocess.Popen(  # noqa: S603  this program itself
                [sys.executable, "-m", "tutelage", *arguments, "--worker", str(path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                env=environment | one,
            )
            reader = threading.Thread(target=_forward, args=(child, k, say, noted), daemon=True)
            reader.start()
            started.append((child, path, reader))
        try:
            for child, _, _ in started:
                child.wait()
        finally:
            for child, _, _ in started:
                assert child.stdin is not None
                child.stdin.close()
            for child, _, reader in started:
                child.wait()
                reader.join()  # What it says last is what it saved.
        for k, (child, path, _) in enumerate(started, 1):
            if path.exists():
                failed |= records.read_json(path)
            else:
                failed[f"worker {k}"] = f"it ended with status {child.returncode}; run the same command again to resume"
    return failed


def _forward(child: subprocess.Popen[str], number: int, say: Callable[[str], None], noted: set[str]) -> None:
    """Show what a worker says; a note that another one of them has said already is left out."""
    assert child.stdout is not None
    with child.stdout as lines:
        for line in lines:
            if not line.startswith("note: "):
                say(f"[{number}] {line.rstrip()}")
            elif line not in noted:
                noted.add(line)
                say(line.rstrip())


def end_with_parent() -> None:
    """Interrupt this process, a worker, when its standard input closes."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a process that a shell started in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    # The descriptor, not the stream, whose lock the interpreter needs when it ends.
    while os.read(0, 1024):
        pass
    if interruption.stopping():  # Ctrl-C came to both; another signal would end this process at once.
        pass
    elif os.name == "nt":  # There os.kill would end this process at once.
        signal.raise_signal(signal.SIGINT)
    else:  # Of the process, so that it wakes the main thread.
        os.kill(os.getpid(), signal.SIGINT)
    time.sleep(GRACE)
    os._exit(1)
