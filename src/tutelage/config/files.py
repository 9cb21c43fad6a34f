"""Recipes as YAML: reading, ``key=value`` overrides, writing.

What is read has limits, so that no file can take more memory or time than its own size: `LARGEST` bytes, `DEEPEST`
levels, `MOST` values where every alias counts as what it stands for. Of YAML's types there are those of recipes alone:
mappings, lists, texts, numbers, true and false, null.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml

from tutelage import plain_files
from tutelage.config import messages
from tutelage.config.messages import SYNONYMS
from tutelage.config.schema import Recipe
from tutelage.errors import InvalidValueError, RecipeError, nearest, printable, raise_all
from tutelage.records import SCHEMA


def read(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a recipe file and apply ``key=value`` overrides.

    Raises:
        RecipeError: the file is not there, is not YAML, or is not a mapping; an override is not ``key=value``.
    """
    try:
        value = load(plain_files.read(path, LARGEST).decode("utf-8-sig"))
    except InvalidValueError as error:
        raise RecipeError("recipe", error.expected, f"{path}, {error.got}", error.instead) from None
    except OSError as error:
        beside = [each.name for each in path.parent.glob("*.y*ml")]
        instead = nearest(path.name, beside, otherwise="type tutelage init to write one")
        raise RecipeError("recipe", "a YAML file", f"{path} ({error.strerror})", instead) from None
    except (yaml.YAMLError, ValueError) as error:
        where = getattr(error, "problem_mark", None)
        line = f"line {where.line + 1}: " if where else ""
        raise RecipeError(
            "recipe", "YAML", f"{path} ({line}{_reason(error)})", "write `key: value`, indented by spaces"
        ) from None
    if not isinstance(value, dict):
        got = "nothing" if value is None else "a list" if isinstance(value, list) else "a single value"
        raise RecipeError("recipe", "a mapping of keys", f"{path} with {got}", "for example `student: cifar:resnet20`")
    return override(value, overrides)


def _reason(error: Exception) -> str:
    """Return in a few words why a text is no YAML."""
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8"
    if isinstance(error, yaml.reader.ReaderError):
        return f"U+{error.character:04X} at position {error.position + 1}, a character that YAML does not allow"
    return getattr(error, "problem", None) or str(error)


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


def keys_of(dotted: str) -> list[str]:
    """Return the keys of a dotted one; ``file:path.py:function``, a preset of the user's own, is one in spite of dots.

    Example:
        >>> keys_of("objective.file:my.py:loss.weight")
        ['objective', 'file:my.py:loss', 'weight']
    """
    escaped = re.sub(r"(?:^|(?<=\.))file:.*:\w+(?=\.|$)", lambda match: match[0].replace(".", "\0"), dotted)
    return [key.replace("\0", ".") for key in escaped.split(".")]


def _put(value: dict[str, Any], text: str) -> None:
    key, equals, raw = text.partition("=")
    names = keys_of(key)
    if not equals or not all(names) or len(names) > DEEPEST:
        raise RecipeError("override", "key=value", repr(text), "for example epochs=10")
    try:
        new = load(raw)
    except (yaml.YAMLError, ValueError) as error:
        got = f"{messages.shown(raw)} ({_reason(error)})"
        raise RecipeError(f"override {key}", "a YAML value", got, f"for example {key}=1") from None
    section: Any = value
    for depth, name in enumerate(names[:-1], 1):
        section, slot = _slot(section, name, key)
        inner = section.get(slot) if isinstance(section, dict) else section[slot]
        if isinstance(inner, str):
            inner = _long(inner, names[:depth])
        elif isinstance(inner, list) and depth == 1 and name == "teacher" and not names[1].isdecimal():
            inner = {"members": inner}
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
    return {"source" if list(path) in (["data"], ["data", "unlabelled"]) else "name": text}


def dump(recipe: Recipe) -> str:
    """Return the resolved recipe as YAML: its schema and every key. `parse` reads it back to an equal one."""
    value = {"schema": SCHEMA, **recipe.model_dump(mode="json")}
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


JSON_SCHEMA = Path(__file__).with_name("recipe.schema.json")
"""The JSON Schema of recipes, comparisons and studies, for editors; ``make generated`` writes it."""
LARGEST = 2**20
"""Bytes of a file."""
DEEPEST = 50
"""Levels of nesting."""
MOST = 50_000
"""Values, where each alias counts as what it stands for."""


def load(text: str) -> Any:
    """Read YAML within the limits.

    Raises:
        yaml.YAMLError: it is none, or is beyond a limit.
        ValueError: a number has too many digits.
    """
    return yaml.load(text, Loader=_Loader)  # noqa: S506  a subclass of the safe loader


def _is_plain(text: str) -> bool:
    return printable(text) == text


class _Loader(yaml.SafeLoader):
    """YAML 1.1 takes 5e-4 for a text, 1:30 for 90, 010 for 8, 2024-01-01 for a date, and of equal keys the last.

    Here the first is a number, the next are texts, and equal keys are refused.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0
        self._sizes: dict[yaml.Node, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a value, and count what it stands for."""
        event = self.peek_event()
        self._depth += 1
        node = super().compose_node(parent, index) if self._depth <= DEEPEST else None
        self._depth -= 1
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            inner = [each for pair in node.value for each in pair]
        elif isinstance(node, yaml.SequenceNode):
            inner = node.value
        reason = ""
        if node is None:
            reason = f"more than {DEEPEST} levels"
        elif isinstance(event, yaml.AliasEvent):
            reason = "" if node in self._sizes else "an alias of what it stands in"
        else:
            self._sizes[node] = 1 + sum(self._sizes[each] for each in inner)
            if self._sizes[node] > MOST:
                reason = f"more than {MOST} values"
            elif isinstance(node, yaml.ScalarNode) and not all(map(_is_plain, re.split("[\t\n]", node.value))):
                reason = "a control character"
        if reason:
            raise yaml.MarkedYAMLError(problem=reason, problem_mark=cast(Any, event.start_mark))
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes the texts that `_Loader`, or another reader of YAML, would take for something else."""


_CORE = "tag:yaml.org,2002:"
_NUMBERS = {
    # Without YAML 1.1's octal 010 and its numbers to the base of 60, for which 1:30 is 90.
    "int": r"^[-+]?(?:0|[1-9][0-9_]*)$",
    "float": r"^[-+]?(?:(?:[0-9][0-9_]*)?\.[0-9_]+(?:[eE][-+]?[0-9]+)?|[0-9]+\.|[0-9]+\.?[eE][-+]?[0-9]+"
    r"|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$",
}
_dropped = {f"{_CORE}{name}" for name in (*_NUMBERS, "timestamp", "value")}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _dropped]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind in (_Loader, _Dumper):
    for _name, _pattern in _NUMBERS.items():
        _kind.add_implicit_resolver(f"{_CORE}{_name}", re.compile(_pattern), list("-+0123456789."))
_TYPES = [*(f"{_CORE}{name}" for name in ("map", "seq", "str", "int", "float", "bool", "null")), None]
_Loader.yaml_constructors = {tag: yaml.SafeLoader.yaml_constructors[tag] for tag in _TYPES}
