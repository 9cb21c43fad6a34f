"""What went wrong, in four parts: what it is about, what was expected, what was got, what to type instead."""

from __future__ import annotations

import re
import sys
import traceback
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Self


def message(what: object, expected: object, got: object, instead: object) -> str:
    """Write the four parts as one line of what can be printed.

    Example:
        >>> message("gamma", "a finite number above 0", -1, "for example gamma=0.3")
        'gamma: expected a finite number above 0, got -1; for example gamma=0.3'
    """
    what, expected, got, instead = map(_shortened, (what, expected, got, instead), LONGEST_PARTS)
    return printable(f"{what}: expected {expected}, got {got}; {instead}")


LONGEST_PARTS = 250, 700, 400, 600
"""Characters of each part of a message: what a user hands in may be of any length, and is repeated in several."""


def _shortened(part: object, longest: int) -> str:
    text = str(part)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


_INVISIBLE = {"Cc", "Cf", "Co", "Cs", "Zl", "Zp"}
"""Categories of characters that steer a terminal, break or reverse a line, or show nothing."""


def printable(text: str) -> str:
    r"""Return text that is to be shown: control characters, line breaks and marks of direction are written out.

    What comes out of a file might otherwise erase a line of the terminal, or forge one.

    Example:
        >>> printable("runs/a\x1b[2J\nerror: none")
        'runs/a\\x1b[2J\\nerror: none'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(repr(c)[1:-1] if unicodedata.category(c) in _INVISIBLE else c for c in text)


def one_line(error: BaseException) -> str:
    """Return an error's first line, or its type if it has no message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def reason_of(error: BaseException) -> str:
    """Return an error's type and its first line."""
    return f"{type(error).__name__}: {one_line(error) if str(error).strip() else 'no reason given'}"


def nearest(name: object, known: Collection[str], *, otherwise: str = "type one of those") -> str:
    """Return what to type in place of a name that is not known.

    Example:
        >>> nearest("wtm", ["kd", "ttm", "wttm"])
        'did you mean wttm?'
    """
    near = get_close_matches(str(name), known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else otherwise


def nearest_name(name: object, known: Collection[str]) -> str:
    """Return the known name that resembles another most; the first where none does."""
    return (get_close_matches(str(name), known, n=1) or list(known))[0]


class TutelageError(Exception):
    """An error that is not a bug of this package. Every kind is also the builtin exception that fits.

    Attributes:
        exit_code: of the command line: 2 where the user's input is wrong, 1 where the run or the machine failed.
        what: the argument, key, file or object that it is about.
        expected: what it should have been.
        got: what it was.
        instead: what to type instead.
    """

    exit_code: ClassVar[int] = 2
    what: str
    expected: str
    got: str
    instead: str
    _parts: tuple[TutelageError, ...] = ()

    def __init__(self, what: object, expected: object, got: object, instead: object) -> None:
        self.what, self.expected, self.got, self.instead = str(what), str(expected), str(got), str(instead)
        super().__init__(message(what, expected, got, instead))

    @property
    def _fields(self) -> tuple[str, str, str, str]:
        return self.what, self.expected, self.got, self.instead

    @property
    def errors(self) -> tuple[TutelageError, ...]:
        """Each error, where several were found at once; else this one."""
        return self._parts or (self,)

    @classmethod
    def of(cls, errors: Iterable[TutelageError]) -> Self:
        """Make one error of several, each of which is a line of its message; the four parts are those of the first."""
        parts = tuple({str(part): part for error in errors for part in error.errors}.values())
        first = parts[0]
        whole = cls(*first._fields)
        whole._parts = parts if len(parts) > 1 else ()
        return whole

    def __str__(self) -> str:
        return "\n".join(message(*part._fields) for part in self.errors)

    def renamed(self, rename: Callable[[str], str]) -> Self:
        """Return a copy in which ``rename`` was applied to what each error is about, also where that is to be typed."""

        def copy(part: TutelageError) -> TutelageError:
            what, instead = rename(part.what), part.instead
            if part.what and ": " not in what:  # What it is in, such as a file, is not typed.
                instead = re.sub(rf"(?<![\w./-]){re.escape(part.what)}=", lambda _: f"{what}=", instead)
            return type(part)(what, part.expected, part.got, instead)

        return type(self).of(map(copy, self.errors))

    def within(self, where: str) -> Self:
        """Return a copy that names first what the error is in, such as a file; only that where it is all there is."""
        return self.renamed(lambda what: f"{where}: {what}" if what else where)

    def __reduce__(self) -> tuple[Any, ...]:
        # Worker processes send their errors; the default is to call the class with the message alone.
        return type(self), self._fields, {"_parts": self._parts}


class InvalidValueError(TutelageError, ValueError):
    """A value that is out of range, of another shape, or not one of the known ones."""


class InvalidTypeError(TutelageError, TypeError):
    """A value of another type or dtype, or a call with other arguments."""


def raise_all(errors: Iterable[TutelageError], kind: type[TutelageError] | None = None) -> None:
    """Raise errors, if there are any: a single one as it is, several as one. ``kind`` is that of what is raised."""
    if not (found := list(errors)):
        return
    if kind is None and len(found) == 1:
        raise found[0]
    mixed = InvalidTypeError if any(isinstance(error, TypeError) for error in found) else InvalidValueError
    raise (kind or mixed).of(found)


class RecipeError(InvalidValueError):
    """A recipe that is wrong, or does not fit its data and networks; ``errors`` has everything found."""


class NotFoundError(TutelageError, FileNotFoundError):
    """A file, folder, model or data set that is not there."""


class MissingExtraError(TutelageError, ImportError):
    """An optional library that is not installed."""


def missing_extra(
    what: object, library: str, extra: str, error: ImportError, *, otherwise: str = ""
) -> MissingExtraError:
    """Return the error where a library cannot be imported that an extra of this package installs.

    ``otherwise`` is what does without it, after a comma.
    """
    got, instead = f"none ({' '.join(str(error).split())})", f"type pip install 'tutelage[{extra}]'"
    return MissingExtraError(what, f"the library {library}", got, f"{instead}, {otherwise}" if otherwise else instead)


def require_extra(what: object, library: str, extra: str, module: str, *, otherwise: str = "") -> None:
    """Raise `missing_extra` if a library's module is not installed; it is not imported."""
    if find_spec(module) is None:
        raise missing_extra(what, library, extra, ImportError(f"No module named {module!r}"), otherwise=otherwise)


class UserCodeError(TutelageError, RuntimeError):
    """An error out of the user's own module, data set or loss, which is its ``__cause__``."""


class RunError(TutelageError, RuntimeError):
    """A run that cannot continue: numbers that are not finite, records that are torn."""

    exit_code = 1


class StorageError(TutelageError, OSError):
    """A file that cannot be read or written: a full disk, no permission."""

    exit_code = 1


class NetworkError(TutelageError, ConnectionError):
    """A server that does not answer."""

    exit_code = 1


def explained(error: Exception) -> Exception:
    """Return an error that names the user's object that ``error`` came out of, or what the machine failed in.

    A machine fails where memory runs out, a process that reads data ends, or the system refuses a file.

    The innermost object of this package in the traceback decides: what calls the user's modules and losses has an
    attribute ``user_code``, the name of what it calls where that is the user's.
    """
    if isinstance(error, TutelageError):
        return error
    reason = reason_of(error)
    out_of_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if out_of_memory or "DefaultCPUAllocator" in reason:  # torch's error for it on a CPU is a RuntimeError
        return RunError(
            "memory", "room for a batch", reason, "type a smaller batch_size=..., or accumulate=auto to keep the batch"
        )
    if reason.startswith("RuntimeError: DataLoader worker"):  # raised by a signal's handler, whatever runs just then
        return reader_ended(reason)
    if user := of_user_code(error):
        return user
    if isinstance(error, OSError) and error.errno is not None:
        instead = "free space or change the permissions, then run the same command again"
        got = error.strerror or type(error).__name__
        refused = StorageError(error.filename or "system", "a file that can be read and written", got, instead)
        refused.errno, refused.strerror, refused.filename = error.errno, error.strerror, error.filename
        return refused
    return error


def reader_ended(reason: str) -> RunError:
    """Return the error where a process that reads data has ended, as one that was killed."""
    instead = "run the same command again to resume; if memory ran out, type a smaller data.workers=..."
    return RunError("data.workers", "processes that last as long as the run", reason, instead)


def of_user_code(error: BaseException) -> UserCodeError | None:
    """Return an error that names the user's module or loss that ``error`` came out of; ``None`` if it came of none."""
    inner: list[str] = []  # functions below it that are neither a library's nor Python's own
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        module = str(frame.f_globals.get("__name__")).partition(".")[0]
        if module == __package__:
            caller: Any = frame.f_locals.get("self")
            if not hasattr(caller, "user_code"):
                return None
            name, instead = inner[0] if inner else caller.user_code, "fix it, or what is passed to it"
            return UserCodeError(name, "to run without an error", reason_of(error), instead) if name else None
        if module not in _LIBRARIES and module not in sys.stdlib_module_names:
            inner.append(f"{frame.f_code.co_qualname} ({Path(frame.f_code.co_filename).name}, line {line})")
    return None


_LIBRARIES = frozenset({"PIL", "accelerate", "numpy", "safetensors", "scipy", "timm", "torch", "torchvision", "triton"})
"""What a module or a loss calls: the error is that of its caller."""


@contextmanager
def explaining() -> Iterator[None]:
    """Raise what is `explained` in place of an error; as a decorator too."""
    try:
        yield
    except Exception as error:
        if (known := explained(error)) is error:
            raise
        raise known from error
