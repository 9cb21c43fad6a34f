"""The how-to pages, as a reader who types every block of them."""

from __future__ import annotations

import contextlib
import doctest
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
from tests._helpers import ROOT
from tests.pages.harness import LIKE, blocks_of, lines_of, play

PAGES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs/how-to").glob("*.md"))
CPU = ["device=cpu", "threads=1"]
BRIEF = [*CPU, "epochs=1"]
COMMANDS = dict.fromkeys(("train", "distill", "record"), BRIEF) | {"compare": [*BRIEF, "seeds=1"]}
PICTURES = ["data.size=32", "batch_size=8", "weak_teacher=true"]

HOW: dict[str, dict[str, Any]] = {}
"""What a page's test changes of it, by its name: `give` has the files that it speaks of, the others are arguments of `play`."""


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    """The two recipes of the list of pages, and their runs."""
    folder = tmp_path_factory.mktemp("how-to")
    play("docs/how-to/index.md", folder, overrides=dict.fromkeys(("train", "distill"), [*CPU, "precision=fp32"]))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if page != "docs/how-to/index.md"])
def test_every_block_of_a_page_does_what_it_says(page, tried, give, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tried, tmp_path, dirs_exist_ok=True)
    how = dict(HOW.get(Path(page).stem, {}))
    give(*how.pop("give", ()))
    play(page, tmp_path, **{"overrides": COMMANDS, "shown": True, **how})
