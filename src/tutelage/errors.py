"""What went wrong, in four parts: what it is about, what was expected, what was got, what to type instead."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from difflib import get_close_matches
from typing import Any, ClassVar, Self


def message(what: object, expected: object, got: object, instead: object) -> str:
    """Write the four parts as one line.

    Example:
        >>> message("gamma", "a finite number above 0", -1, "type for example gamma=0.3")
        'gamma: expected a finite number above 0, got -1; type for example gamma=0.3'
    """
    return f"{what}: expected {expected}, got {got}; {instead}"


def nearest(name: object, known: Collection[str], *, otherwise: str = "type one of those") -> str:
    """Return what to type in place of a name that is not known.

    Example:
        >>> nearest("wtm", ["kd", "ttm", "wttm"])
        'did you mean wttm?'
    """
    near = get_close_matches(str(name), known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else otherwise


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
        """Return a copy in which ``rename`` was applied to what each error is about."""
        return type(self).of(type(part)(rename(part.what), *part._fields[1:]) for part in self.errors)

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
    """Raise all errors as one, where there are any: of a kind, or a TypeError where one of them is."""
    if found := list(errors):
        mixed = InvalidTypeError if any(isinstance(error, TypeError) for error in found) else InvalidValueError
        raise (kind or mixed).of(found)


class RecipeError(InvalidValueError):
    """A recipe that is wrong, or does not fit its data and networks; ``errors`` has everything found."""


class NotFoundError(TutelageError, FileNotFoundError):
    """A file, folder, model or data set that is not there."""


class MissingExtraError(TutelageError, ImportError):
    """An optional library that is not installed."""


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
