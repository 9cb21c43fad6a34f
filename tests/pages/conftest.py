"""What the pages' tests stand in."""

import contextlib
import shutil
from pathlib import Path

import pytest
from tests.pages import given


@pytest.fixture(scope="session")
def give(tmp_path_factory):
    """Copy files and runs of ``given.py`` into a folder, here or named; each is made once."""
    made = {}

    def copy(*names, folder=None):
        for name in names:
            if name not in made:
                made[name] = tmp_path_factory.mktemp(name)
                with contextlib.chdir(made[name]):
                    getattr(given, name)(copy)
            shutil.copytree(made[name], folder or Path(), dirs_exist_ok=True)

    return copy
