"""Plays the code blocks of a page from top to bottom, as a reader who types them all would."""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import yaml
from tests._helpers import ROOT

from tutelage import config
from tutelage.cli import app

PLAYED = ("python", "py", "pycon", "sh", "yaml", "yml")
"""The languages of blocks that do something; ``text`` shows what they say."""
AT_HAND = ("benchmarks", "examples", "recipes")
"""What a reader in a copy of the repository finds there, and may write to."""
LEFT = shutil.ignore_patterns("results", "__pycache__", "cifar100")
LIKE = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Block:
    language: str
    code: str
    line: int
    behind: bool = False
    """No prose stands between this block and the one before it."""


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
    found, end = [], -1
    for each in re.finditer(r"^```([a-z]+)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
        behind = end >= 0 and not text[end : each.start()].strip()
        found.append(Block(each[1], each[2], text[: each.start()].count("\n") + 1, behind))
        end = each.end()
    return found


def lines_of(block: Block) -> list[str]:
    """The command lines of a block, without lines of comments, and what a backslash joins."""
    lines = block.code.replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in lines if line.strip() and not line.lstrip().startswith("#")]


def named(block: Block) -> str | None:
    """The file that a YAML block is: its first line is a comment with its name."""
    found = re.match(r"# (\S+\.ya?ml)\n", block.code) if block.language in ("yaml", "yml") else None
    return found[1] if found else None


def play(
    page: str,
    folder: Path,
    *,
    overrides: dict[str, list[str]] | None = None,
    replace: dict[str, str] | None = None,
    skip: dict[str, str] | None = None,
    names: dict[str, Any] | None = None,
    base: dict[str, Any] | None = None,
    shown: bool = False,
    type_line: Callable[[str], str] | None = None,
) -> Played:
    """Play every block of a page in a folder, in which the files that it speaks of lie already.

    A YAML block that begins with ``# NAME.yaml``, or Python with ``# NAME.py``, is written to that file. Any other YAML
    is a recipe, or keys of one: with a ``base`` it is run, laid over that; without, ``tests/test_docs.py`` alone reads
    it. Lines of ``sh`` are typed, ours in this process, others in a shell beside this Python's programs; of ``make``
    the target has to exist, of ``pip`` the extra. A block that begins with ``#!`` is one script. Python shares one set
    of names.

    Args:
        page: below the repository's root, such as ``docs/python.md``.
        folder: where the reader stands.
        overrides: what is typed behind a command of that name and its arguments, such as ``{"train": ["epochs=1"]}``;
            behind recipes without a name those of ``yaml``.
        replace: texts in blocks, each of which must occur, and what stands in their place: smaller sizes.
        skip: texts by which a block or a command line is known that cannot be played here, each with the reason.
        names: what the page's Python has at hand.
        base: keys of a recipe that the page's YAML blocks without a name are laid over.
        shown: whether a ``text`` block right behind another shows the end of what that said, ``...`` being anything. A
            command may fail where it does.
        type_line: types a command in place of this process, and returns what it said.
    """
    played = Played(names={"__name__": "__main__", **(names or {})})
    used: set[str] = set()
    overrides = overrides or {}

    def skipped(code: str) -> bool:
        known = [text for text in (skip or {}) if text in f"{code}\n"]
        used.update(known)
        return bool(known)

    def replaced(code: str) -> str:
        for text, other in (replace or {}).items():
            if text in code:
                used.add(text)
                code = code.replace(text, other)
        return code

    for name in AT_HAND:
        shutil.copytree(ROOT / name, folder / name, ignore=LEFT, dirs_exist_ok=True)
    blocks = blocks_of(page)
    with contextlib.chdir(folder):
        for block, after in zip(blocks, [*blocks, None][1:], strict=True):
            where = f"{page}, line {block.line}"
            script = block.code.startswith("#!")
            if script:
                subprocess.run(["bash", "-n"], input=block.code, text=True, check=True)
            if block.language not in PLAYED or ((block.language != "sh" or script) and skipped(block.code)):
                continue
            expected = after.code if shown and after and after.behind and after.language == "text" else None
            said = ""
            if block.language in ("yaml", "yml"):
                if file := named(block):
                    Path(file).write_text(replaced(block.code), encoding="utf-8")
                elif base is not None:
                    said = _recipe(replaced(block.code), base, overrides, block.line, where)
            elif block.language == "sh":
                lines = [block.code] if script else lines_of(block)
                for line in lines:
                    if not skipped(line):
                        ready, begun = replaced(line), time.perf_counter()
                        code, said = (0, type_line(ready)) if type_line else _run(ready, overrides, where)
                        played.seconds[line] = time.perf_counter() - begun
                        assert code == 0 or (expected and line == lines[-1]), f"{where}: {line}\n{said}"
                        played.said[line] = said
            elif block.language == "pycon":
                test = doctest.DocTestParser().get_doctest(replaced(block.code), played.names, where, page, block.line)
                report = io.StringIO()
                doctest.DocTestRunner().run(test, out=report.write, clear_globs=False)
                played.names.update(test.globs)
                assert not report.getvalue(), report.getvalue()
            elif file := re.match(r"# (\S+\.py)\n", block.code):
                Path(file[1]).write_text(replaced(block.code), encoding="utf-8")
            else:
                begun = time.perf_counter()
                with contextlib.redirect_stdout(io.StringIO()) as out:
                    exec(compile(replaced(block.code), where, "exec"), played.names)
                played.said[block.code.splitlines()[0]] = said = out.getvalue()
                played.seconds[block.code.splitlines()[0]] = time.perf_counter() - begun
            if said and expected and not skipped(expected):
                same = doctest.OutputChecker().check_output
                assert same(expected, said, LIKE) or same(f"...\n{expected}", said, LIKE), (
                    f"{where}: the page shows\n{expected}\nbut the end of what is said is\n{said}"
                )
    unused = {*(replace or {}), *(skip or {})} - used
    assert not unused, f"{page} has no {sorted(unused)}"
    return played


def _recipe(shown: str, base: dict[str, Any], overrides: dict[str, list[str]], line: int, where: str) -> str:
    """Run a recipe without a name, or a part of one."""
    file = Path(f"line-{line}.yaml")
    file.write_text(shown, encoding="utf-8")
    whole = {"name": file.stem, **base, **config.read(file)}
    file.write_text(yaml.safe_dump(whole), encoding="utf-8")
    command = "compare" if "objectives" in whole else "train" if "model" in whole else "distill"
    code, said = _run(f"tutelage {command} {file}", {command: overrides.get("yaml", [])}, where)
    assert code == 0, f"{where}:\n{shown}\n{said}"
    return said


def _run(line: str, overrides: dict[str, list[str]], where: str) -> tuple[int, str]:
    """The exit code of a command line, and what it says on both channels."""
    command = line if line.startswith("#!") else re.sub(r"\s+#( .*)?$", "", line)
    program, *arguments = shlex.split(command)
    ours = re.search(r"\btutelage ([a-z]+) [^|;&<>]+$", command)
    more = overrides.get(ours[1], []) if ours else []
    if program == "cd":
        os.chdir(*arguments)
    elif program == "pip":
        _installable(arguments, where)
    elif program == "tutelage" and not re.search(r"(^|\s)[|;&<>(]|\$", command):
        return typed([*arguments, *more])
    else:
        if program == "make":  # in a test it would begin the tests again
            command = command.replace("make", f"make --dry-run -C {shlex.quote(str(ROOT))}", 1)
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        room = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", " ".join([command, *map(shlex.quote, more)])],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PATH": path, "PYTHONPATH": room},
            text=True,
            check=False,
        )
        return done.returncode, done.stdout
    return 0, ""


def typed(arguments: list[str]) -> tuple[int, str]:
    """Type a command of ours in this process: its exit code, and what it says on both channels."""
    with (
        contextlib.redirect_stdout(io.StringIO()) as said,
        contextlib.redirect_stderr(said),
        mock.patch.object(sys, "argv", ["tutelage", *arguments]),
        mock.patch.object(sys, "stdin", io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.resetwarnings()
        try:
            app.main()
        except SystemExit as left:
            return int(left.code or 0), said.getvalue()
    raise AssertionError("a command ends in an exit code")


def _installable(arguments: list[str], where: str) -> None:
    """Nothing is installed, but what is named exists: the extras of this package, and what they require."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    known = {re.match(r"[\w-]+", each)[0] for each in sum(extras.values(), project["dependencies"])}
    for each in arguments[1:]:
        name, _, asked = each.strip("]").partition("[")
        if not name.startswith("-"):
            unknown = {*filter(None, asked.split(","))} - set(extras) if name in (".", "tutelage") else {name} - known
            assert not unknown, f"{where}: `pip install {each}`: {sorted(unknown)} is of no extra: skip it"
