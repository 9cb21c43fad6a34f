"""Inputs: sound ones with some bytes or values changed, and recipes put together from the keys of the schema."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any

import yaml
from hypothesis import strategies as st
from tests.fuzz.targets import TARGETS, Target

from tutelage.config import messages
from tutelage.config.schema import Comparison, built_in_presets

TOKENS = (
    *(
        b"\x00",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\x1b[2J",
        b"\r\n",
        b"\xe2\x80\xa8",
        b"{",
        b"}",
        b"[",
        b"]",
        b": ",
        b"- ",
    ),
    *(b"&a ", b"*a", b"!!python/object/apply:os.system [true]", b"!!binary |", b"<<: ", b"null", b"true", b"1e999"),
    *(
        b".nan",
        b"-.inf",
        b"0x7fffffffffffffff",
        b"18446744073709551616",
        b"2026-11-28",
        b"-0.0",
        b'"',
        b"'",
        b"#",
        b"%",
    ),
    *(b"%!PS-Adobe-3.0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"PK\x03\x04", b"cos\nsystem\n", b"../../", b"/etc/passwd"),
    *((2**31 - 1).to_bytes(4, "little"), (2**63 - 1).to_bytes(8, "little"), b"9" * 400, b"[" * 200),
)
KEYS = sorted({*messages.paths(Comparison), "model", "objectives", "objective", "seeds", "stages.0.epochs", "a.b.c"})
SCALARS = st.one_of(
    st.sampled_from([0, 1, -1, 2, 2**31, 2**63, -(2**63) - 1, 10**30, 0.0, -0.0, 1e-320, 1e308, 1e999, float("nan")]),
    st.sampled_from(
        [None, True, False, "", "auto", "mlp:8", "kd", "\x1b[31m", "a\nb", "\u202e", "x" * 300, "imagefolder:/"]
    ),
    st.sampled_from(sorted(built_in_presets())),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
EDITS = st.lists(
    st.tuples(
        st.sampled_from(("flip", "cut", "insert", "replace", "repeat", "remove")),
        st.floats(0, 1, exclude_max=True),
        st.sampled_from(TOKENS) | st.binary(min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=4,
)


def edited(content: bytes, edits: Sequence[tuple[str, float, bytes]]) -> bytes:
    """Return bytes after some edits, each at a fraction of the length."""
    for kind, share, token in edits:
        at = int(share * len(content))
        match kind:
            case "flip" if content:
                content = content[:at] + bytes([content[at] ^ token[0]]) + content[at + 1 :]
            case "cut":
                content = content[:at]
            case "insert":
                content = content[:at] + token + content[at:]
            case "replace":
                content = content[:at] + token + content[at + len(token) :]
            case "repeat":
                content = content[:at] + content[max(0, at - 16) : at] * 3 + content[at:]
            case "remove":
                content = content[:at] + content[at + 16 :]
    return content


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value in a JSON value."""
    found = [path]
    if isinstance(value, dict):
        for key, inner in value.items():
            found += places(inner, (*path, key))
    elif isinstance(value, list):
        for k, inner in enumerate(value[:4]):
            found += places(inner, (*path, k))
    return found


def with_values(seed: Any, changes: Sequence[tuple[float, Any, bool]]) -> Any:
    """Return a JSON value with some of its values replaced or removed."""
    value = copy.deepcopy(seed)
    for share, new, remove in changes:
        paths = places(value)
        path = paths[int(share * len(paths))]
        if not path:
            value = new
            continue
        inner = value
        for key in path[:-1]:
            inner = inner[key]
        if remove:
            del inner[path[-1]]
        else:
            inner[path[-1]] = new
    return value


CHANGES = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), VALUES, st.booleans()), min_size=1, max_size=3)


def nested(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return the mapping of dotted keys."""
    value: dict[str, Any] = {"name": "fuzzed", "student": "mlp:8"}
    for key, new in pairs:
        inner = value
        *above, last = key.split(".")
        for name in above:
            if not isinstance(inner.get(name), dict):
                inner[name] = {}
            inner = inner[name]
        inner[last] = new
    return value


def _yaml(pairs: Sequence[tuple[str, Any]]) -> bytes:
    return yaml.safe_dump(nested(pairs), allow_unicode=True, sort_keys=False).encode("utf-8", errors="surrogatepass")


def _typed(pairs: Sequence[tuple[str, Any]]) -> bytes:
    text = "\n".join(f"{key}={json.dumps(value)}" for key, value in pairs)
    return text.encode("utf-8", errors="surrogatepass")


PAIRS = st.lists(st.tuples(st.sampled_from(KEYS), VALUES), min_size=1, max_size=5)


def inputs(name: str) -> st.SearchStrategy[bytes]:
    """Return the inputs of a target."""
    target: Target = TARGETS[name]
    changed = st.builds(edited, st.sampled_from(target.seeds), EDITS)
    if name == "recipes":
        return changed | PAIRS.map(_yaml)
    if name == "overrides":
        lines = st.lists(st.text(max_size=30), min_size=1, max_size=3).map(
            lambda each: "\n".join(each).encode("utf-8", "replace")
        )
        return changed | PAIRS.map(_typed) | lines
    if target.json:
        seeds = st.sampled_from([json.loads(seed) for seed in target.seeds])
        return changed | st.builds(with_values, seeds, CHANGES).map(
            lambda value: json.dumps(value).encode("utf-8", "replace")
        )
    if name == "metrics":
        lines = [json.loads(line) for line in target.seeds[0].splitlines()]

        def line(changes: Sequence[tuple[float, Any, bool]]) -> bytes:
            return b"\n".join(
                json.dumps(each).encode("utf-8", "replace") for each in [with_values(lines[0], changes), *lines[1:]]
            )

        return changed | CHANGES.map(line)
    return changed
