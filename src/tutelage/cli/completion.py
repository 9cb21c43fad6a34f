"""What a shell completes: keys of overrides, and names. No torch."""

from __future__ import annotations


def overrides(incomplete: str) -> list[str]:
    """Return the overrides of a run that begin with what was typed: its keys, or a key's values where they are few."""
    from tutelage.config import messages
    from tutelage.config.schema import Recipe, built_in_presets

    key, equals, _ = incomplete.partition("=")
    if equals:
        values = built_in_presets() if key == "objective" else messages.choices(Recipe, key)
        candidates = [f"{key}={value}" for value in values]
    else:
        candidates = [f"{known}=" for known in messages.paths(Recipe)]
    return [text for text in dict.fromkeys(candidates) if text.startswith(incomplete)]


def studies(incomplete: str) -> list[str]:
    """Return the package's studies whose names begin with what was typed; without one a shell completes files."""
    from tutelage.studies import study_file

    return [name for name in study_file.names() if name.startswith(incomplete)]


def formats(incomplete: str) -> list[str]:
    """Return the formats of an export whose names begin with what was typed."""
    from tutelage.exports.registry import FORMATS

    return [name for name in FORMATS if name.startswith(incomplete)]


def trackers(incomplete: str) -> list[str]:
    """Return the trackers whose names begin with what was typed."""
    from tutelage.runs.trackers import NAMES

    return [name for name in NAMES if name.startswith(incomplete)]
