"""Commands under torchrun, which ends with its workers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence

from tests._helpers import ROOT


def free_port():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


def start(typed: Sequence[str], *, processes=2, restarts=0, environment=()):
    """Start ``tutelage`` with these arguments in several processes of this machine, in a session of their own."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--master-addr", "127.0.0.1"]
    launcher += ["--master-port", str(free_port()), "--nproc-per-node", str(processes), "--max-restarts", str(restarts)]
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen(
        [*launcher, "-m", "tutelage", *typed],
        env={**os.environ, "OMP_NUM_THREADS": "1", **paths, **dict(environment)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def launch(typed, *, timeout=120, **settings):
    """Run it to its end; return the exit code, standard output and errors. Nothing of it outlives the call."""
    started = start(typed, **settings)
    try:
        out, err = started.communicate(timeout=timeout)
    finally:
        end(started)
    return started.returncode, out, err


def end(started):
    """End a launcher and its workers, whatever they do: workers have sessions of their own."""
    import psutil

    with_children = []
    if psutil.pid_exists(started.pid):
        parent = psutil.Process(started.pid)
        with_children = [parent, *parent.children(recursive=True)]
    for process in with_children:
        if process.is_running():
            process.send_signal(signal.SIGKILL)
    started.wait(timeout=10)
    for pipe in (started.stdout, started.stderr):
        pipe.close()
