"""Which rows of a table differ in the student's temperature alone, and what else differs between the others."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from tutelage.report.reading import parts, stages
from tutelage.settings.objective import MATCHED, matched_kd
from tutelage.settings.weights import AUTO, Automatic, scaled, weight_from_recipe, weight_to_recipe

TESTS = "their difference tests the student's temperature alone (its Rényi entropy), not target or weight"
NAMED = 4
"""Number of rows that a sentence names at most."""


WORDS = ("target", "weight", "cross-entropy", "sample weights", "form of the logits", "other terms")
"""Names of the differences, in the order of `_Terms`."""


class _Terms(NamedTuple):
    """A KD, or the KD that is matched to a TTM."""

    temperature: float | Automatic
    weight: object
    supervised: object
    normalise: object
    logits: object
    others: object


def matched_notes(tables: Iterable[Mapping[str, object]]) -> list[str]:
    """Say which rows are a KD matched to a TTM or a WTTM, and what else differs between those that are not.

    It goes by the arguments: a KD that was typed at the same numbers is matched too.

    Args:
        tables: recorded objectives by the rows' names, for each pair of networks; what differs for one pair, differs.
    """
    differences: dict[tuple[str, str], set[str]] = {}
    temperatures: dict[tuple[str, str], list[object]] = {}
    for objectives in tables:
        read = {name: terms for name, objective in objectives.items() if (terms := _read(objective))}
        for kd, (_, ours) in ((name, each) for name, each in read.items() if each[0] in MATCHED.values()):
            for ttm, (_, theirs) in ((name, each) for name, each in read.items() if each[0] in MATCHED):
                found = {word for word, a, b in zip(WORDS, ours, theirs, strict=True) if not _close(a, b)}
                differences.setdefault((kd, ttm), set()).update(found)
                temperatures.setdefault((kd, ttm), []).append(ours.temperature)
    matched = [pair for pair, found in differences.items() if not found]
    sentences = [
        f"{kd} and {ttm} are one objective: at gamma = 1 they are the same."
        if all(_close(each, 1.0) for each in temperatures[kd, ttm])
        else f"{kd} is matched to {ttm}: {TESTS}."
        for kd, ttm in matched
    ]
    known = {name for pair in matched for name in pair}
    unmatched: dict[str, dict[str, set[str]]] = {}
    for (kd, ttm), found in differences.items():
        if found and not (kd in known and ttm in known):
            unmatched.setdefault(kd, {})[ttm] = found
    for kd, ttms in unmatched.items():
        names, every = list(ttms), set().union(*ttms.values())
        shown = names if len(names) <= NAMED else [*names[: NAMED - 1], f"{len(names) - NAMED + 1} others"]
        words = _listed(
            [word for word in WORDS if word in every], "and" if all(found == every for found in ttms.values()) else "or"
        )
        sentences.append(f"{kd} is not matched to {_listed(shown, 'or')}: their difference also tests {words}.")
    return sentences


def _read(objective: object) -> tuple[str, _Terms] | None:
    """Return the preset of a KD or a TTM, and its terms; ``None`` for any other objective, and for several stages."""
    (stage, *more) = stages(objective) or [None]
    entries = parts(stage)
    of = [name for name, _, _ in entries if name in {*MATCHED, *MATCHED.values()}]
    if more or len(of) != 1:
        return None
    others = [entry for name, _, entry in entries if name != of[0]]
    ((_, arguments, entry),) = (each for each in entries if each[0] == of[0])
    scale: Any = entry.get("scale", 1)
    try:
        given: dict[str, Any] = {**(arguments if isinstance(arguments, Mapping) else {})}
        for name in ("beta", "weight", "supervised"):
            if name in given:
                given[name] = scaled(weight_from_recipe(given[name], argument=name, automatic=True), scale)
        for name in ("gamma", "temperature"):
            if given.get(name) == "auto":
                given[name] = AUTO
        kd = matched_kd(given) if of[0] in MATCHED else given
        sample_weights = kd.get("normalise", "none") if of[0] in ("wttm", MATCHED["wttm"]) else ""
        weight, supervised = (weight_to_recipe(kd[name]) for name in ("weight", "supervised"))
        logits = kd.get("logits", "raw")
        return of[0], _Terms(kd["temperature"], weight, supervised, sample_weights, logits, others)
    except (ValueError, TypeError, KeyError, AttributeError):  # a damaged record, or one of a newer version
        return None


def _close(ours: object, theirs: object) -> bool:
    """Whether two arguments are equal, but for the rounding of ``1 / gamma``."""
    if isinstance(ours, int | float) and isinstance(theirs, int | float):
        return math.isclose(ours, theirs, rel_tol=1e-6)
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        return ours.keys() == theirs.keys() and all(_close(ours[key], theirs[key]) for key in ours)
    return ours == theirs


def _listed(names: Sequence[str], last: str) -> str:
    return f" {last} ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
