"""Errors by their kind and fields, which stay where a sentence is reworded."""

import re

import pytest


class refused:
    """Within, an error of exactly this kind is raised.

    Args:
        kind: the class of the error.
        what: all that it is about; a list where several errors come at once.
        got: a value or name, or a list of them, that must stand in what it got.
        suggests: the same of what it says to type instead.
    """

    def __init__(self, kind, what=None, *, got=None, suggests=None):
        self.kind, self.what, self.got, self.suggests = kind, what, got, suggests

    def __enter__(self):
        self._raises = pytest.raises(self.kind)
        return self._raises.__enter__()

    def __exit__(self, *raised):
        if not self._raises.__exit__(*raised):
            return False
        error = raised[1]
        assert type(error) is self.kind, f"{type(error).__name__}: {error}"
        if self.what is not None:
            assert [part.what for part in error.errors] == _listed(self.what), str(error)
        for values, field in ((self.got, "got"), (self.suggests, "instead")):
            text = "\n".join(getattr(part, field) for part in error.errors)
            for value in _listed(values):
                # Whole, so that 3 is not found in 13 nor in -3.
                assert re.search(rf"(?<![\w.-]){re.escape(str(value))}(?!\w)", text), f"no {value}: {error}"
        return True


def _listed(values):
    return values if isinstance(values, list) else [] if values is None else [values]
