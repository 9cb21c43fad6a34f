"""Fixtures of several rooms' tests."""

import os
import subprocess
import sys

import pytest


@pytest.fixture
def invoke(monkeypatch, capsys):
    """Type a command in this process, which is faster than in another: exit code, output, errors."""
    from tutelage.cli import app

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tutelage", *arguments])
        with pytest.raises(SystemExit) as left:
            app.main()
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return call


def _mounted(folder, options):
    """Mount a tmpfs on a new folder, and unmount it."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "none", folder]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small tmpfs takes root's rights, which these tests lack here")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own with room for 512 KiB."""
    yield from _mounted(tmp_path / "disk", "size=512k")


@pytest.fixture
def read_only(tmp_path):
    """A folder that nothing can be written to."""
    if os.geteuid() == 0:  # whom permissions do not stop
        yield from _mounted(tmp_path / "disk", "ro")
    else:
        folder = tmp_path / "disk"
        folder.mkdir(0o500)
        yield folder


@pytest.fixture(autouse=True)
def _same_folder():
    """A test that goes elsewhere comes back: child processes of the next find the tests' modules by the folder."""
    before = os.getcwd()
    yield
    after = os.getcwd()
    os.chdir(before)
    assert after == before, "type monkeypatch.chdir(folder), which comes back"


@pytest.fixture(autouse=True)
def _no_presets_of_files():
    """Objectives of files are presets of the process that read them, and not of the next test."""
    yield
    for module, table in (("tutelage.objectives.registry", "PRESETS"), ("tutelage.settings.objective", "SIGNATURES")):
        if loaded := sys.modules.get(module):
            presets = getattr(loaded, table)
            for name in [name for name in presets if name.startswith("file:")]:
                del presets[name]
