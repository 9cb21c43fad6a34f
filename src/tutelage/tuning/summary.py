"""What a search found, as a table and in words: from its record alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tutelage import records
from tutelage.errors import RunError
from tutelage.records import Dimension, Trial, Tune
from tutelage.report.table import MISSING, Row, Table, fixed, plural
from tutelage.tuning import space as spaces
from tutelage.tuning.request import RECIPE

if TYPE_CHECKING:
    from rich.console import Console

SHOWN = 10
"""Trials that a terminal shows, the best first."""
APART = 5
"""Keys at most that have a column each."""


def ranked(record: Tune) -> list[Trial]:
    """Return the trials, the best first; then those that were pruned, the longest first, and those that failed."""
    by = records.measure_named(record["measure"])
    order = ("finished", "pruned", "running", "failed")

    def rank(trial: Trial) -> tuple[int, float, float, int]:
        merit = float("-inf") if trial["value"] is None else by.merit(trial["value"])
        epochs = -trial["epochs"] if trial["state"] != "finished" else 0
        return order.index(trial["state"]), epochs, -merit, trial["number"]

    return sorted(record["trials"], key=rank)


def table(record: Tune, most: int | None = None) -> Table:
    """Return the trials as a table, the best ``most`` and the recipe's own, which is marked."""
    by = records.measure_named(record["measure"])
    keys = [dimension["key"] for dimension in record["space"]]
    trials = ranked(record)
    shown = trials if most is None else [t for k, t in enumerate(trials) if k < most or t["origin"] == RECIPE]
    names = [key.rpartition(".")[2] if _is_told_by_end(key, keys) else key for key in keys]
    apart = len(keys) <= APART
    rows = []
    for trial in shown:
        values = {
            name: spaces.flow(trial["values"][key])
            for name, key in zip(names, keys, strict=True)
            if key in trial["values"]
        }
        together = ", ".join(f"{name} {value}" for name, value in values.items()) or MISSING
        rows.append(
            Row(
                cells=[
                    f"{trial['number']}" + (f" {trial['origin']}" if trial["origin"] != "sampled" else ""),
                    MISSING if trial["value"] is None else by.write(trial["value"]),
                    str(trial["epochs"]) if trial["state"] == "finished" else f"{trial['epochs']} ({trial['state']})",
                    *([values.get(name, MISSING) for name in names] if apart else [together]),
                ],
                bold=[1] if record["found"] and record["found"]["trial"] == trial["number"] else [],
            )
        )
    headings = ["trial", by.heading("validation"), "epochs", *(names if apart else ["settings"])]
    return Table(headings=headings, rows=rows, words=[] if apart else [3])


def _is_told_by_end(key: str, keys: list[str]) -> bool:
    end = key.rpartition(".")[2]
    return sum(each.rpartition(".")[2] == end for each in keys) == 1


def lines(record: Tune) -> Iterator[str]:
    """Yield what is to be said of a search: what it found, what of its gain is noise, what to type."""
    by, found = records.measure_named(record["measure"]), record["found"]
    counts = {state: sum(t["state"] == state for t in record["trials"]) for state in ("pruned", "failed", "running")}
    counted = [f"{n} {state}" for state, n in counts.items() if n]
    yield plural(len(record["trials"]), "trial") + (f", {', '.join(counted)}" if counted else "")
    if found is None:
        if not counts["running"]:
            yield "no trial was better on the validation set than the recipe's own settings"
        return
    yield f"gain in the search, one run each on the validation set: {_gain(by, found['gain'])}"
    for name, gain in found.get("held_out", {}).items():
        low, high = gain["low"], gain["high"]
        interval = "" if low is None or high is None else f" (95 % interval {_gain(by, low)} to {_gain(by, high)})"
        yield f"gain over {plural(gain['n'], 'new seed')} on the {name} set: {_gain(by, gain['mean'])}{interval}"
    if (noise := found.get("selection_noise")) is not None:
        yield f"selection noise, the difference of the two on the validation set: {_gain(by, noise)}"
        bounds = [gain["low"] for gain in found.get("held_out", {}).values()]
        if any(bound is not None and bound <= 0 for bound in bounds):
            yield "an interval has 0 in it: these seeds do not show that what was found is better"
    yield f"type behind the recipe: {found['line']}"


def _gain(by: records.Measure, merit: float) -> str:
    """Write a gain, positive where better, in steps of the measure."""
    unit = f" {by.steps}" if by.steps else ""
    return f"{fixed(by.scale * merit, 2, sign=True)}{unit}"


def read(folder: Path) -> Tune:
    """Read a search's record; raises what `records.read_json` does."""
    instead = "restore the file, or remove the folder and search again"
    record: Tune = records.read_json(folder / records.TUNE, Tune, instead=instead)
    return record


def best_trial(record: Tune) -> Trial:
    """Return the finished trial with the best value, the earliest of equal ones."""
    by = records.measure_named(record["measure"])
    done = [trial for trial in record["trials"] if trial["state"] == "finished" and trial["value"] is not None]
    if not done:
        raise RunError("tune", "a finished trial", "none yet", "run the same command again to resume")
    return max(done, key=lambda trial: (by.merit(trial["value"] or 0.0), -trial["number"]))


def print_search(folder: Path, console: Console) -> None:
    """Print the best trials of a search, and what is to be said of it."""
    record = read(folder)
    table(record, SHOWN).print(console)
    for line in lines(record):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def space_lines(space: Sequence[Dimension]) -> Iterator[str]:
    """Yield what is searched, a line for each key."""
    for dimension in space:
        yield f"  {dimension['key']}: {spaces.in_words(dimension)}"
