"""A process in which nothing seems to be installed but the required libraries, and what these require.

Run as a script: ``core_alone.py COMMAND...`` types each command, or runs each line of Python behind ``python:``, and
writes as JSON for each ``[exit code, output, errors]``, and whether PyTorch was imported by then.
"""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import sys
import tomllib
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


def required():
    """The distributions that `pip install tutelage` brings here, by the metadata of those that are installed."""
    found, left = set(), list(tomllib.loads(PROJECT.read_text())["project"]["dependencies"])
    while left:
        requirement = Requirement(left.pop())
        extras = {"", *requirement.extras}
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        name = canonicalize_name(requirement.name)
        if (name, *sorted(extras)) in found:
            continue
        found.add((name, *sorted(extras)))
        for text in metadata.requires(name) or ():
            inner = Requirement(text)
            if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in extras):
                inner.marker = None
                left.append(str(inner))
    return {name for name, *_ in found}


def modules_of(distribution):
    """The modules and packages at the top of a distribution."""
    declared = (distribution.read_text("top_level.txt") or "").split()
    return declared or {path.parts[0].partition(".")[0] for path in distribution.files or ()}


class Installed:
    """Finds modules and distributions as Python does, but of what is installed only distributions of ``names``."""

    def __init__(self, names):
        self.names = names
        self.modules = {module for name in names for module in modules_of(metadata.distribution(name))}

    def find_spec(self, name, path=None, target=None):
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or "." in name or name in self.modules:
            return spec
        places = [*(spec.submodule_search_locations or ()), spec.origin or ""]
        return None if any("site-packages" in place for place in places) else spec

    def find_distributions(self, *context):
        for each in PathFinder.find_distributions(*context):
            if (name := canonicalize_name(each.name)) in self.names or name == "tutelage":
                yield each

    def invalidate_caches(self):
        PathFinder.invalidate_caches()


def typed(command):
    """Type a command, or run Python."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            if command.startswith("python:"):
                exec(command.removeprefix("python:"), {})
            else:
                from tutelage.cli import main

                sys.argv = ["tutelage", *shlex.split(command)]
                main()
        except SystemExit as left:
            code = left.code
        except Exception as error:  # noqa: BLE001  whatever the line raises is its answer
            code, _ = 1, err.write(f"{type(error).__name__}: {error}")
    return code or 0, out.getvalue(), err.getvalue(), "torch" in sys.modules


if __name__ == "__main__":
    sys.meta_path[sys.meta_path.index(PathFinder)] = Installed(required())
    sys.stdout.write(json.dumps([typed(command) for command in sys.argv[1:]]))
