"""Plays the code blocks of a page from top to bottom, as a reader who types them all would."""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests._helpers import ROOT
from typer.testing import CliRunner

from tutelage.cli.app import app

PLAYED = ("python", "py", "pycon", "sh", "yaml", "yml")
"""The languages of blocks that do something; ``text`` shows what they say."""


@dataclass(frozen=True)
class Block:
    language: str
    code: str
    line: int


@dataclass
class Played:
    """What is left of a page: the names of its Python, and what each block and command said."""

    names: dict[str, Any] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)
    """By the command line as it stands on the page; Python's blocks by their first line."""
    seconds: dict[str, float] = field(default_factory=dict)
    """How long each of them took, by the same keys."""


def blocks_of(page: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.finditer(r"^```([a-z]+)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [Block(each[1], each[2], text[: each.start()].count("\n") + 1) for each in found]


def lines_of(block: Block) -> list[str]:
    """The command lines of a block, without comments, and what a backslash joins."""
    lines = block.code.replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in lines if shlex.split(line, comments=True)]


def play(
    page: str,
    folder: Path,
    *,
    overrides: dict[str, list[str]] | None = None,
    replace: dict[str, str] | None = None,
    skip: dict[str, str] | None = None,
    names: dict[str, Any] | None = None,
    type_line: Callable[[str], str] | None = None,
) -> Played:
    """Play every block of a page in a folder, in which the files that it speaks of lie already.

    A YAML block that begins with ``# NAME.yaml`` is written to that file; any other is read as a recipe's part
    elsewhere (``tests/test_docs.py``). Lines of ``sh`` that begin with ``tutelage`` are typed. Python shares one set of
    names.

    Args:
        page: below the repository's root, such as ``docs/python.md``.
        folder: where the reader stands.
        overrides: what is typed behind a command of that name, such as ``{"train": ["epochs=1"]}``.
        replace: texts in blocks, each of which must occur, and what stands in their place: smaller sizes.
        skip: texts by which a block or a command line is known that cannot be played here, each with the reason.
        names: what the page's Python has at hand.
        type_line: types a command in place of this process, and returns what it said.
    """
    played = Played(names={"__name__": "__main__", **(names or {})})
    used: set[str] = set()

    def skipped(code: str) -> bool:
        known = [text for text in (skip or {}) if text in code]
        used.update(known)
        return bool(known)

    def replaced(code: str) -> str:
        for text, other in (replace or {}).items():
            if text in code:
                used.add(text)
                code = code.replace(text, other)
        return code

    with contextlib.chdir(folder):
        for block in blocks_of(page):
            where = f"{page}, line {block.line}"
            if block.language not in PLAYED or (block.language != "sh" and skipped(block.code)):
                continue
            if block.language in ("yaml", "yml"):
                if named := re.match(r"# (\S+\.ya?ml)\n", block.code):
                    Path(named[1]).write_text(replaced(block.code), encoding="utf-8")
            elif block.language == "sh":
                for line in lines_of(block):
                    if not skipped(line):
                        begun, ready = time.perf_counter(), replaced(line)
                        played.said[line] = type_line(ready) if type_line else _typed(ready, overrides or {}, where)
                        played.seconds[line] = time.perf_counter() - begun
            elif block.language == "pycon":
                test = doctest.DocTestParser().get_doctest(replaced(block.code), played.names, where, page, block.line)
                report = io.StringIO()
                doctest.DocTestRunner().run(test, out=report.write, clear_globs=False)
                played.names.update(test.globs)
                assert not report.getvalue(), report.getvalue()
            else:
                said, begun = io.StringIO(), time.perf_counter()
                with contextlib.redirect_stdout(said):
                    exec(compile(replaced(block.code), where, "exec"), played.names)
                played.said[block.code.splitlines()[0]] = said.getvalue()
                played.seconds[block.code.splitlines()[0]] = time.perf_counter() - begun
    unused = {*(replace or {}), *(skip or {})} - used
    assert not unused, f"{page} has no {sorted(unused)}"
    return played


def _typed(line: str, overrides: dict[str, list[str]], where: str) -> str:
    program, *arguments = shlex.split(line, comments=True)
    assert program == "tutelage", f"{where}: {line!r} is no command of ours: play it yourself, or skip it with a reason"
    done = CliRunner().invoke(app, [*arguments, *overrides.get(arguments[0], ())], catch_exceptions=False)
    assert done.exit_code == 0, f"{where}: {line}\n{done.output}"
    return done.output
