"""Errors keep their four parts, alone and together, and cross processes."""

from __future__ import annotations

import pickle

import pytest

from tutelage import errors
from tutelage.errors import TutelageError

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, TutelageError)]


def make(kind=errors.InvalidValueError, what="gamma", **parts):
    return kind(what, **{"expected": "a number > 0", "got": -1, "instead": "type gamma=0.3", **parts})


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not TutelageError])
class TestKinds:
    def test_is_the_builtin_that_fits(self, kind):
        builtin = next(base for base in kind.__mro__ if base.__module__ == "builtins")
        assert issubclass(builtin, Exception)
        assert builtin is not Exception
        assert kind.exit_code in (1, 2)

    def test_is_written_as_four_parts(self, kind):
        error = make(kind)
        assert str(error) == "gamma: expected a number > 0, got -1; type gamma=0.3"
        assert (error.what, error.expected, error.got) == ("gamma", "a number > 0", "-1")
        assert error.errors == (error,)

    def test_crosses_processes(self, kind):
        several = kind.of([make(kind), make(kind, "beta")])
        for error in (make(kind), several):
            again = pickle.loads(pickle.dumps(error))
            assert type(again) is kind
            assert str(again) == str(error)
            assert [part.what for part in again.errors] == [part.what for part in error.errors]
            assert (again.expected, again.got, again.instead) == (error.expected, error.got, error.instead)


def test_several_are_lines_each_once_and_the_parts_are_the_first_ones():
    whole = errors.RecipeError.of([make(), errors.InvalidValueError.of([make(), make(what="beta")])])
    assert [part.what for part in whole.errors] == ["gamma", "beta"]
    assert str(whole).splitlines() == [str(make()), str(make(what="beta"))]
    assert whole.what == "gamma"


def test_renaming_reaches_every_error_and_leaves_the_original():
    whole = errors.RecipeError.of([make(), make(what="beta")])
    assert [part.what for part in whole.renamed("file: {}".format).errors] == ["file: gamma", "file: beta"]
    assert whole.what == "gamma"


def test_nothing_near_is_not_guessed():
    assert errors.nearest("zzz", ["kd", "ttm"]) == "type one of those"
    assert errors.nearest(3, ["kd"], otherwise="type kd") == "type kd"


def test_the_nearest_name_is_always_a_known_one():
    assert errors.nearest_name("ttn", ["kd", "ttm"]) == "ttm"
    assert errors.nearest_name(None, {"kd": 1, "ttm": 2}) == "kd"


def test_a_missing_library_is_told_with_its_reason_and_its_extra():
    error = errors.missing_extra("model", "timm", "timm", ImportError("no\nmodule"))
    assert (error.got, error.instead) == ("none (no module)", "type pip install 'tutelage[timm]'")


def test_what_is_handed_in_is_shown_in_part():
    part = "9" * 100_000
    assert len(errors.message(part, part, part, part)) < 2000
