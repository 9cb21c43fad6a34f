"""What we ran ourselves with each preset, read from the committed records of comparisons and studies."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tutelage import records
from tutelage.report import reading
from tutelage.studies.objective_rows import Recorded

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"
"""Where the repository has its records; an installed package has none."""
TRIAL = "gpu-trial/trial.json"
"""Students of the published schedule that were trained outside of the package's loop."""
TABLE = "table.json"
"""A study's figures, which outlive the weights and the evaluations of its runs."""


class _Entry(NamedTuple):
    """One objective of a record: its first run's manifest, and its figure."""

    record: str
    manifest: dict[str, Any]
    measure: records.Measure
    mean: float
    std: float | None
    n: int


def by_preset(results: Path = RESULTS) -> dict[str, tuple[Recorded, ...]]:
    """Return the records of each preset, those with the most seeds first, then those with the most epochs.

    A record counts where the objective is the preset, with cross-entropy or without. Where a preset was only ever
    trained beside another, such as a penalty, those records count, and say beside what.
    """
    found: dict[str, dict[bool, dict[tuple[str, str], tuple[int, Recorded]]]] = {}
    for entry in (*_of_comparisons(results), *_of_studies(results), *_of_trial(results)):
        stages = reading.stages(entry.manifest.get("objective"))
        presets = list(dict.fromkeys(name for name, _, _ in reading.parts(stages[0])))
        matching = [name for name in presets if name != "cross_entropy"] or presets
        for preset in matching if len(stages) == 1 else ():
            recorded = _recorded(entry, [name for name in matching if name != preset])
            of = found.setdefault(preset, {}).setdefault(len(matching) == 1, {})
            # The first, where a study has several settings of it.
            of.setdefault((recorded.record, recorded.what), (_epochs(entry.manifest), recorded))
    return {
        preset: tuple(
            recorded
            for epochs, recorded in sorted((of.get(True) or of[False]).values(), key=lambda x: (-x[1].n, -x[0]))
        )
        for preset, of in found.items()
    }


def _of_comparisons(results: Path) -> Iterator[_Entry]:
    for path in sorted(results.rglob(records.COMPARISON)):
        runs: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {}
        for entry in _json(path)["entries"]:
            folder = path.parent / entry["folder"]
            if (folder / records.EVALUATION).exists():
                both = _json(folder / records.MANIFEST), _json(folder / records.EVALUATION)["student"]
                runs.setdefault(entry["objective"], []).append(both)
        for same in runs.values():
            by = records.measure(same[0][1])
            values = [by.scale * student[by.key] for _, student in same]
            mean, std = reading.mean(values), reading.deviation(values)
            assert mean is not None
            yield _Entry(path.parent.relative_to(results).as_posix(), same[0][0], by, mean, std, len(values))


def _of_studies(results: Path) -> Iterator[_Entry]:
    for path in sorted(results.rglob(records.STUDY)):
        cells = {(cell["pair"], cell["method"]): cell["folder"] for cell in reversed(_json(path)["cells"])}
        for row in _json(path.with_name(TABLE))["rows"]:
            cell = str(cells.get((row["pair"], row["method"])))
            # A record may hold a study's folder in its pool's place.
            there = (path.parent / at / records.MANIFEST for at in (cell, cell.removeprefix("../")))
            manifest = next((_json(file) for file in there if file.exists()), None)
            if row["n"] and row["accuracy"] is not None and manifest is not None:
                record = path.parent.relative_to(results).as_posix()
                yield _Entry(record, manifest, records.ACCURACY, row["accuracy"], row["std"], row["n"])


def _of_trial(results: Path) -> Iterator[_Entry]:
    if not (results / TRIAL).exists():
        return
    trial = _json(results / TRIAL)
    teacher, _, student = trial["pair"].partition("/")
    for method, values in trial["students"].items():
        manifest = {
            "objective": [[{method.removesuffix("_matched"): {}}]],
            "data": {"source": "CIFAR-100 in a loop outside of the package"},
            "teacher": {"name": f"cifar:{teacher}"},
            "student": {"name": f"cifar:{student}"},
            "recipe": {"epochs": trial["epochs"]},
            "selection": {},
        }
        mean, std = reading.mean(values), reading.deviation(values)
        assert mean is not None
        yield _Entry(TRIAL.partition("/")[0], manifest, records.ACCURACY, mean, std, len(values))


def _recorded(entry: _Entry, beside: list[str]) -> Recorded:
    by, spread = entry.measure, "" if entry.std is None else f" ± {entry.std:.2f}"
    return Recorded(
        record=entry.record,
        what=_what(entry.manifest),
        beside=", ".join(beside),
        figure=f"{entry.mean:.2f}{spread}",
        measure=by.heading(by.title),
        epoch="best" if entry.manifest["selection"].get("reported") == "best epoch" else "last",
        n=entry.n,
    )


def _what(manifest: dict[str, Any]) -> str:
    """Say what was trained: data, networks and epochs."""
    networks = [(manifest.get(who) or {}).get("name") for who in ("teacher", "student")]
    named = " to ".join(_short(str(name)) for name in networks if name)
    epochs = _epochs(manifest)
    data = str(manifest["data"]["source"]).partition(":")
    return f"{data[2] or data[0]}, {named}, {epochs} epoch{'s' * (epochs != 1)}"


def _short(name: str) -> str:
    """Return a network's name without its source, and without the folders of a file or a package's model."""
    source, _, rest = name.partition(":")
    if source == "file":
        return rest.rpartition("/")[2].replace(".py:", " ")
    return name if source == "mlp" else rest.removeprefix("package:").partition("/")[0]


def _epochs(manifest: dict[str, Any]) -> int:
    return int(manifest["recipe"]["epochs"])


def _json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value
