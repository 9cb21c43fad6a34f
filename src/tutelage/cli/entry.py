"""The start of the command line, which may be stopped while the rest is still being imported."""

from __future__ import annotations

import os

from tutelage import interruption, launcher
from tutelage.cli.exits import end, leave, leave_others, stop
from tutelage.errors import InvalidValueError


def main() -> None:
    """Run the command line. Exit codes: 0 done, 2 the user's input is wrong, 130 and 143 stopped, 1 anything else."""
    try:
        _main()
    except SystemExit as error:
        if error.code and launcher.world_size() > 1:
            leave_others(error.code)
        raise


def _main() -> None:
    try:
        launcher.check()
    except InvalidValueError as error:
        end(str(error), error.exit_code)
    if launcher.world_size() > 1:
        # DDP looks for parameters without gradient, and warns in every process where there are none.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        with interruption.stop_on_signals(leave):
            from tutelage.cli import app

            app.main()
    except KeyboardInterrupt as error:
        stop(error)
