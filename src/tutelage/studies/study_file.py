"""Reading a study from the package or from a file, with overrides."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tutelage import config
from tutelage.config import messages
from tutelage.errors import RecipeError, raise_all
from tutelage.settings.objective import ObjectiveSpec
from tutelage.studies.schema import Drawing, Method, Study, merged, methods_by_name, parse, presets_written_out, unknown

PUBLISHED = Path(__file__).parent / "published"


def read(
    name: str, overrides: Sequence[str] = (), *, check: Callable[[ObjectiveSpec], object] | None = None
) -> tuple[Study, Study]:
    """Read a study by the name of one of the package's, or from a file; return it as it is written and with overrides.

    Of ``key=value``, a key that is not a study's own is one of its protocol: ``data.source=...``; and
    ``methods.NAME.PRESET...`` is short for ``methods.NAME.objective.PRESET...``. ``check`` is that of `config.parse`.

    Raises:
        RecipeError: there is no such study, something in it is wrong, or an override would change no run.
    """
    value = config.read(find(name))
    plain = parse(value, where=name, check=check)
    if not overrides:
        return plain, plain
    if isinstance(plain, Drawing):
        got = f"{overrides[0]}: it needs no runs, so there is nothing to override"
        raise RecipeError(name, "no override", got, f"type tutelage study {name}")
    methods = methods_by_name(value["methods"])
    long = {**value, "protocol": merged(value.get("protocol") or {}), "methods": methods}
    changed = parse(config.override(long, [_full_key(text, methods) for text in overrides]), where=name, check=check)
    _refuse_ineffective(plain, changed, name)
    return plain, changed


def _full_key(text: str, methods: Iterable[str]) -> str:
    """Write an override with the whole path of its key."""
    key, equals, value = text.partition("=")
    first, *inner = config.keys_of(key)
    if first not in Study.model_fields:
        return f"protocol.{text}"
    if first == "methods" and len(inner) > 1 and inner[0] in methods and inner[1] not in Method.model_fields:
        key = ".".join([first, inner[0], "objective", *inner[1:]])
    return key + equals + value


def _refuse_ineffective(plain: Study, changed: Study, where: str) -> None:
    """Refuse overrides of a method's arguments for which a pair has its own values: they would change no run of it."""
    errors: dict[tuple[str, str, str], RecipeError] = {}
    for name, method in changed.methods.items():
        before, after = (_arguments(of.objective) for of in (plain.methods.get(name, method), method))
        for pair, presets in method.pairs.items():
            for preset, key in ((preset, key) for preset, arguments in presets.items() for key in arguments):
                old, new = (arguments.get(preset, {}).get(key) for arguments in (before, after))
                if old != new:
                    typed = messages.shown(new)
                    error = RecipeError(
                        f"{where}: methods.{name}.objective.{preset}.{key}",
                        "none where a pair has its own",
                        f"{typed}, and {pair} has {messages.shown(presets[preset][key])}",
                        f"type methods.{name}.pairs.{pair}.{preset}.{key}={typed}, and the like for other pairs",
                    )
                    errors.setdefault((name, preset, key), error)
    raise_all(errors.values(), RecipeError)


def _arguments(objective: Any) -> dict[str, dict[str, Any]]:
    """Return the arguments of each preset of an objective."""
    mappings = [entry for entry in presets_written_out(objective) if isinstance(entry, Mapping)]
    return {str(key): dict(value) for entry in mappings for key, value in entry.items() if isinstance(value, Mapping)}


def find(name: str) -> Path:
    """Return the path of a study's file.

    Raises:
        RecipeError: there is no such study.
    """
    path = Path(name)
    if path.is_file() or (path.suffix in (".yaml", ".yml") and path.exists()):  # a pipe is refused where it is read
        return path
    if path.suffix in (".yaml", ".yml"):
        instead = "check the path, or type tutelage study for the package's own"
        raise RecipeError("study", "a YAML file", f"{name}, which is not there", instead)
    if name in names():
        return PUBLISHED / f"{name}.yaml"
    raise unknown("study", "a YAML file, or one of the package", name, names())


def names() -> list[str]:
    """Return the names of the package's studies, numbers in their order."""
    stems = [path.stem for path in PUBLISHED.glob("*.yaml")]
    return sorted(stems, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])


def titles() -> list[tuple[str, str]]:
    """Return the package's studies: each name and its title."""
    return [(name, str(config.read(PUBLISHED / f"{name}.yaml").get("title", ""))) for name in names()]
