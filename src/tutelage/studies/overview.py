"""The table of objectives, from the presets themselves, the recorded costs and the published studies."""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tutelage import objectives
from tutelage.objectives import PRESETS, Apply, Objective
from tutelage.studies import schema

COSTS = Path(__file__).parent / "costs.json"
"""What ``benchmarks/bench_objectives.py`` recorded."""
STAND_INS = {"order": 2.0}
"""For arguments without a default; any other has 1."""
HEADINGS = ("Objective", "What it adds", "Source", "Needs", "Time x KD", "Memory x KD", "Tables")


class Row(NamedTuple):
    """What is known of one preset.

    Attributes:
        name: the preset's.
        formula: the first line of its docstring.
        paper: where it comes from.
        needs: what its terms read.
        time: of a training step, over that with KD; empty where it was not measured.
        memory: kept for the backward pass, likewise.
        tables: of the paper of TTM and WTTM that it stands in.
    """

    name: str
    formula: str
    paper: str
    needs: str
    time: str
    memory: str
    tables: str


def default(name: str) -> Objective:
    """Return a preset's objective with its defaults, and stand-ins where it has none."""
    build = PRESETS[name].build
    missing = [p.name for p in inspect.signature(build).parameters.values() if p.default is p.empty]
    return build(**{argument: STAND_INS.get(argument, 1.0) for argument in missing})


def rows() -> Iterator[Row]:
    """Yield a row for each of the package's presets."""
    costs = json.loads(COSTS.read_text())["costs"] if COSTS.exists() else {}
    tables = _tables()
    for name, preset in PRESETS.items():
        if not objectives.is_built_in(name):
            continue
        cost = costs.get(name, {})
        yield Row(
            name,
            (preset.build.__doc__ or "").split("``")[1],
            preset.paper,
            ", ".join(_needs(default(name))),
            f"{cost['time']:.2f}" if cost else "",
            f"{cost['memory']:.2f}" if cost else "",
            ", ".join(tables.get(name, [])),
        )


def markdown() -> str:
    """Return the table as GitHub Markdown."""
    lines = [f"| {' | '.join(HEADINGS)} |", f"|{'---|' * len(HEADINGS)}"]
    for row in rows():
        cells = (f"`{row.name}`", f"`{row.formula}`".replace("|", r"\|"), *row[2:])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _needs(objective: Objective) -> list[str]:
    """Say what an objective reads, besides the student's logits."""
    needs = objective.needs
    found = []
    if needs.labels != "none":
        found.append("labels" if needs.labels == "any" else "hard labels")
    if any(_reads_teachers_logits(part.term) for part, _ in objective.parts):
        found.append("teacher's logits")
    if needs.student_taps or needs.teacher_taps:
        found.append("features")
    if needs.indices:
        found.append("indices")
    if needs.coupled:
        found.append("the batch as a whole")
    if needs.teacher_statistics:
        found.append("teacher's statistics")
    if needs.teacher_head or needs.teacher_norms:
        found.append("teacher's weights")
    if needs.class_means:
        found.append("teacher's class means")
    return found


def _reads_teachers_logits(term: object) -> bool:
    if isinstance(term, Apply):
        return "teacher_logits" in term.reads
    needs = getattr(term, "needs")  # noqa: B009  a description has them
    return needs.teacher and not needs.teacher_taps


def _tables() -> dict[str, list[str]]:
    """Return the numbers of the paper's tables by the presets that stand in them."""
    found: dict[str, list[str]] = {}
    for name in schema.names():
        if number := re.fullmatch(r"table(\d+)", name):
            study, _ = schema.read(name)
            for preset in dict.fromkeys(p for method in study.methods.values() for p in schema.presets_of(method)):
                found.setdefault(preset, []).append(number[1])
    return found


PAGE = """# Objectives

Every preset, as `tutelage list objectives` shows it with its arguments; this page is written by
`python -m tutelage.studies.overview > docs/objectives.md`. The arguments are in [recipes](recipes.md#objectives).

Time and memory are those of a training step, over those of a step with KD (resnet56 teaching resnet20, ViTKD on two
small transformers): {machine}.
Memory is what is kept for the backward pass. Tables are those of arXiv:2402.11148.

{table}"""


def page() -> str:
    """Return the documentation's page."""
    record = json.loads(COSTS.read_text())
    hardware, software = record["hardware"], record["software"]
    machine = (
        f"`python benchmarks/bench_objectives.py --write` on one thread of {hardware['processor']}, torch "
        f"{software['torch']}, float32, the median of {record['n']} steps"
    )
    return PAGE.format(machine=machine, table=markdown())


if __name__ == "__main__":
    sys.stdout.write(page())
