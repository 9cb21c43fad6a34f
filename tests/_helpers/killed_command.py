"""A command of this package in a process of its own, which may be killed at a step."""

import os
import signal
import subprocess
import sys

from tests._helpers import ROOT

KILLED = """
import sys
from tests._helpers import killed_run
from tutelage.cli import app
killed_run.arm({"what": "step", "count": int(sys.argv.pop(1))})
app.main()
"""


def typed(folder, *arguments, kill=None):
    """Run a command in a folder, and return what it prints; with ``kill`` it is killed after so many steps."""
    command = ["-m", "tutelage"] if kill is None else ["-c", KILLED, str(kill)]
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, *command, *arguments],
        cwd=folder,
        env={**os.environ, **paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == (0 if kill is None else -signal.SIGKILL), done.stderr
    return done.stdout
