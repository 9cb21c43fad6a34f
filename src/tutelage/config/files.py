"""Recipes as YAML: reading, ``key=value`` overrides, writing."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tutelage.config.messages import SYNONYMS
from tutelage.config.schema import Recipe
from tutelage.errors import RecipeError, nearest, raise_all
from tutelage.records import SCHEMA


def read(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a recipe file and apply ``key=value`` overrides.

    Raises:
        RecipeError: the file is not there, is not YAML, or is not a mapping; an override is not ``key=value``.
    """
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506  a subclass of the safe loader
    except OSError as error:
        beside = [each.name for each in path.parent.glob("*.y*ml")]
        example = "for example recipes/digits-teacher.yaml"
        instead = nearest(path.name, beside, otherwise=example)
        raise RecipeError("recipe", "a YAML file", f"{path} ({error.strerror})", instead) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        where = getattr(error, "problem_mark", None)
        line = f"line {where.line + 1}: " if where else ""
        what = "not UTF-8" if isinstance(error, UnicodeDecodeError) else getattr(error, "problem", None) or error
        raise RecipeError(
            "recipe", "YAML", f"{path} ({line}{what})", "write `key: value`, indented by spaces"
        ) from None
    if not isinstance(value, dict):
        got = "nothing" if value is None else "a list" if isinstance(value, list) else "a single value"
        raise RecipeError("recipe", "a mapping of keys", f"{path} with {got}", "for example `student: cifar:resnet20`")
    return override(value, overrides)


def override(value: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply ``dotted.key=value`` overrides to a copy; values are read as YAML.

    A number counts the entries of a list from 0, and a preset's name finds its entry in a list of them:
    ``stages.0.epochs=5``, ``objective.kd.temperature=2``.

    Raises:
        RecipeError: one or more are not ``key=value``, or lead nowhere.
    """
    changed = copy.deepcopy(dict(value))
    for key, synonym in SYNONYMS.items():
        if key in changed and any(re.match(rf"{synonym}[.=]", text) for text in overrides):
            changed[synonym] = changed.pop(key)
    errors: list[RecipeError] = []
    for text in overrides:
        try:
            _put(changed, text)
        except RecipeError as error:
            errors.append(error)
    raise_all(errors, RecipeError)
    return changed


def _put(value: dict[str, Any], text: str) -> None:
    key, equals, raw = text.partition("=")
    names = key.split(".")
    if not equals or not all(names):
        raise RecipeError("override", "key=value", repr(text), "for example epochs=10")
    try:
        new = yaml.load(raw, Loader=_Loader)  # noqa: S506
    except (yaml.YAMLError, ValueError, RecursionError):
        raise RecipeError(f"override {key}", "a YAML value", repr(raw), f"for example {key}=1") from None
    section: Any = value
    for depth, name in enumerate(names[:-1], 1):
        section, slot = _slot(section, name, key)
        inner = section.get(slot) if isinstance(section, dict) else section[slot]
        if isinstance(inner, str):
            inner = _long(inner, names[:depth])
        elif not isinstance(inner, dict | list):
            inner = {}
        section[slot] = inner
        section = inner
    section, slot = _slot(section, names[-1], key)
    section[slot] = new


def _slot(section: Any, name: str, key: str) -> tuple[Any, Any]:
    """Find what a name means inside a mapping or a list: a container and the key into it."""
    if isinstance(section, dict):
        return section, name
    if name.isdecimal() and int(name) < len(section):
        return section, int(name)
    for i, entry in enumerate(section):
        if entry == name:
            section[i] = {name: {}}
        if isinstance(section[i], dict) and name in section[i]:
            return section[i], name
    raise RecipeError(f"override {key}", f"an entry of a list of {len(section)}", repr(name), "type its number, from 0")


def _long(text: str, path: Sequence[str]) -> dict[str, Any]:
    """Write out a section that stands as a name alone."""
    if "objective" in path[-2:] or path[0] == "objectives":
        return {text: {}}
    return {"source" if list(path) == ["data"] else "name": text}


def dump(recipe: Recipe) -> str:
    """Return the resolved recipe as YAML: its schema and every key. `parse` reads it back to an equal one."""
    value = {"schema": SCHEMA, **recipe.model_dump(mode="json")}
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 takes 5e-4 for a string, everyone else for a number; and it takes the last of two equal keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes the texts that `_Loader` would take for numbers."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
        list("-+0123456789."),
    )
