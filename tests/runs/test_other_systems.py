"""Runs on other systems than Linux, as far as Linux can act them."""

import os
import subprocess
import sys

import pytest
from tests._helpers import ROOT


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_runs_need_nothing_that_windows_and_macos_lack(tmp_path, workers):
    """A teacher, its outputs recorded, a student stopped and resumed, its report; see the helper."""
    command = [sys.executable, "-X", "warn_default_encoding", ROOT / "tests/_helpers/other_system.py", tmp_path]
    done = subprocess.run(
        [*command, str(workers)],
        env={**os.environ, "TUTELAGE_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "student" / "report.html").is_file()
