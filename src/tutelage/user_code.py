"""Functions in files of the user's own: their names, consent to run them, and what the files hold.

A name is ``file:path.py:function``. Nothing here runs a file but `execute`, whose caller has asked `require_trust`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from tutelage import plain_files
from tutelage.errors import InvalidValueError, NotFoundError, UserCodeError, explaining

LIMIT = 1 << 24
"""Bytes of a file of code that are read."""
PREFIX = "file:"
"""How names of functions in files begin."""


def split(name: str, what: str, *, example: str) -> tuple[Path, str]:
    """Return the file and the function that a name says; nothing is looked up.

    Raises:
        InvalidValueError: if it says no such thing; ``example`` is what to type.
    """
    script, _, function = name.removeprefix(PREFIX).rpartition(":")
    if not script or not function.isidentifier():
        raise InvalidValueError(what, "file:path.py:function", repr(name), f"type {example}")
    return Path(script), function


def require_trust(name: str, what: str, trust_code: bool | frozenset[str], *, first: str = "read the file") -> None:
    """Refuse to run the code of a name that is not trusted: by itself, or with all others."""
    if not (trust_code is True or (trust_code and name in trust_code)):
        instead = f"{first}, then type --trust-code (trust_code=True in Python)"
        raise InvalidValueError(what, f"consent to run the code of {name!r}", "none", instead)


def require_file(name: str, what: str, file: Path) -> None:
    """Refuse the name of a function in a file that is not there."""
    if not file.is_file():
        got = f"{str(file)!r}, which {'is a folder' if file.is_dir() else 'does not exist'}"
        raise NotFoundError(what, "a Python file", got, f"check the path of {name!r}")


def require_unchanged(what: str, file: Path, sha256: str | None) -> str:
    """Return the `digest` of a file; refuse another one than a recipe knows, if it knows one."""
    now = digest(file)
    if sha256 not in (None, now):
        expected = f"{file.name} as the recipe knows it, sha256 {sha256}"
        instead = "restore it; for the file as it is now, leave sha256 out, and choose another name for the run"
        raise InvalidValueError(what, expected, f"a changed one, sha256 {now}", instead)
    return now


def digest(file: Path) -> str:
    """Return the first 16 digits of a file's SHA-256, in hexadecimal, by which records know what it held."""
    with explaining():
        return hashlib.sha256(plain_files.read(file, LIMIT)).hexdigest()[:16]


def execute(file: Path, what: str) -> ModuleType:
    """Run a file as a module; the code is trusted by now.

    Raises:
        UserCodeError: if it fails.
    """
    # Dataclasses and pickling look their module up by name, so it must be registered; the path keeps the name unique.
    name = f"tutelage_file_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise InvalidValueError(what, "a Python file", file, "give it the ending .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        reason, instead = f"{type(error).__name__}: {error}", "fix the file"
        if isinstance(error, ModuleNotFoundError) and _is_beside(file, str(error.name)):
            instead = f"type PYTHONPATH={file.parent} before the command, or write what it imports into the file itself"
        raise UserCodeError(f"{PREFIX}{file}", "Python that runs", reason, instead) from error
    return module


def _is_beside(file: Path, module: str) -> bool:
    """Whether a module lies beside a file, where Python does not look for it."""
    beside = file.with_name(module.partition(".")[0])
    return beside.is_dir() or beside.with_name(f"{beside.name}.py").is_file()


def function_of(module: ModuleType, function: str, file: Path, what: str) -> Any:
    """Return what a module calls by a name; refuse what cannot be called."""
    value = getattr(module, function, None)
    if not callable(value):
        names = [k for k, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module.__name__]
        instead = f"it has {', '.join(names) or 'no function'}"
        raise InvalidValueError(what, f"a function of {file}", repr(function), instead)
    return value
