"""Limits of YAML, and its types."""

import os
import time

import pytest
from tests._helpers.refusals import refused

from tutelage.config import files
from tutelage.errors import RecipeError
from tutelage.studies import study_file

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]\n" for k in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (BOMB, "values"),
        ("a: &a {x: 1}\nb: &b {l: [" + ", ".join(["*a"] * 60_000) + "]}\n", "values"),
        ("a: &a [*a]\n", "alias"),
        ("a: &a {b: {c: *a}}\n", "alias"),
        ("a: " + "[" * 60 + "]" * 60, "levels"),
        ("a: " + "{b: " * 60 + "1" + "}" * 60, "levels"),
        ('"a\\e[2J": 1\n', "control"),
        ('a: "x\\u202ey"\n', "control"),
        ("a: !!binary aGk=\n", "2002:binary"),
        ("a: !!set {x}\n", "2002:set"),
        ("a: !!omap [x: 1]\n", "2002:omap"),
        ("a: !!timestamp 2024-01-01\n", "2002:timestamp"),
        ("a: 1\n---\nb: 2\n", "document"),
    ],
)
def test_yaml_beyond_its_limits_is_refused_at_once(tmp_path, text, reason):
    (path := tmp_path / "recipe.yaml").write_text(text)
    began = time.monotonic()
    with refused(RecipeError, "recipe", got=[path, reason]):
        files.read(path)
    assert time.monotonic() - began < 20


def test_a_large_file_is_refused_unread(tmp_path):
    (path := tmp_path / "recipe.yaml").write_bytes(b"#" * (files.LARGEST + 1))
    with refused(RecipeError, "recipe", got=[path, files.LARGEST + 1]):
        files.read(path)


def test_a_pipe_is_no_recipe(tmp_path):
    os.mkfifo(path := tmp_path / "recipe.yaml")
    for reader in (lambda: files.read(path), lambda: study_file.read(str(path))):
        with refused(RecipeError, "recipe", got=[path, "pipe"]):
            reader()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2024-01-01", "2024-01-01"),
        ("1:30", "1:30"),
        ("010", "010"),
        ("0x10", "0x10"),
        ("=", "="),
        ("1_000", 1000),
        ("5e-4", 5e-4),
        ("1.5", 1.5),
        (".5", 0.5),
        ("true", True),
        ("yes", True),
        ("~", None),
        ("", None),
        ("[1, {a: b}]", [1, {"a": "b"}]),
    ],
)
def test_types_are_those_of_recipes(text, value):
    assert files.load(f"a: {text}") == {"a": value}
    assert files.override({}, [f"a={text}"]) == {"a": value}


@pytest.mark.parametrize("text", ["2024-01-01", "1:30", "010", "5e-4", "1", "true", "~", ""])
def test_a_text_that_another_reader_takes_for_something_else_is_quoted(text):
    import yaml

    written = yaml.dump({"a": text}, Dumper=files._Dumper)
    assert files.load(written) == yaml.safe_load(written) == {"a": text}


def test_a_key_with_a_backslash_is_answered():
    from tutelage.config import Recipe, parse

    key = "a\\x1b"
    with refused(RecipeError, f"recipe: {key}"):
        parse(Recipe, {"name": "n", "student": "mlp:8", key: 1})
