"""Makes the table of objectives from the presets themselves, the recorded costs and the published studies."""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from tutelage import objectives
from tutelage.objectives import PRESETS, Apply, Objective
from tutelage.report.table import markdown_lines
from tutelage.studies import study_file
from tutelage.studies.objective_rows import ROWS, Row

COSTS = Path(__file__).parent / "costs.json"
"""Results recorded by ``benchmarks/bench_objectives.py``."""
STAND_INS = {"order": 2.0}
"""Values of arguments without a default; any other has 1."""
OF_IMAGES = {
    "cwd": {"student_tap": "card:stage.-1", "teacher_tap": "card:stage.-1"},
    "attention_relations": {"student": "*.attn.qkv", "teacher": "*.attn.qkv"},
}
"""Arguments with which presets are tried on classifiers of images, timm's, where their defaults are for others."""
HEADINGS = ("Objective", "What it adds", "Source", "Needs", "Time x KD", "Memory x KD", "Tables")


def default(name: str) -> Objective:
    """Return a preset's objective with its defaults, and stand-ins for missing ones."""
    build = PRESETS[name].build
    missing = [p.name for p in inspect.signature(build).parameters.values() if p.default is p.empty]
    return build(**{argument: STAND_INS.get(argument, 1.0) for argument in missing})


def tried(name: str) -> Objective:
    """Return a preset's objective for classifiers of images."""
    return PRESETS[name].build(**OF_IMAGES[name]) if name in OF_IMAGES else default(name)


def rows() -> Iterator[Row]:
    """Yield a row for each of the package's presets."""
    costs = json.loads(COSTS.read_text(encoding="utf-8"))["costs"] if COSTS.exists() else {}
    tables = _tables()
    for name, preset in PRESETS.items():
        if objectives.is_built_in(name):
            cost = costs.get(name)
            yield Row(
                name=name,
                signature=signature(name),
                formula=(preset.build.__doc__ or "").split("``")[1],
                paper=preset.paper,
                needs=", ".join(_needs(default(name))),
                time=f"{cost['time']:.2f}" if cost else "",
                memory=f"{cost['memory']:.2f}" if cost else "",
                tables=", ".join(tables.get(name, [])),
            )


def rows_json() -> str:
    """Return the rows as ``studies/objective_rows.json`` holds them."""
    return json.dumps([asdict(row) for row in rows()], indent=1) + "\n"


def signature(name: str) -> str:
    """Return a preset's name with its arguments and their defaults."""
    parameters = inspect.signature(PRESETS[name].build).parameters.values()
    arguments = ", ".join(p.name if p.default is p.empty else f"{p.name}={p.default}" for p in parameters)
    return f"{name}({arguments})"


def markdown() -> str:
    """Return the table as GitHub Markdown."""
    lines = []
    for row in rows():
        name, _, formula, *cells = asdict(row).values()
        lines.append((f"`{name}`", f"`{formula}`".replace("|", r"\|"), *cells))
    return "\n".join(markdown_lines([HEADINGS, *lines], ["---"] * len(HEADINGS))) + "\n"


def _needs(objective: Objective) -> list[str]:
    """Name what an objective reads, besides the student's logits."""
    needs = objective.needs
    readings = {
        "labels" if needs.labels == "any" else "hard labels": needs.labels != "none",
        "teacher's logits": any(_reads_teacher_logits(part.term) for part, _ in objective.parts),
        "features": needs.student_taps or needs.teacher_taps,
        "indices": needs.indices,
        "embeddings": needs.embeddings,
        "the batch as a whole": needs.coupled,
        "teacher's statistics": needs.teacher_statistics,
        "teacher's weights": needs.teacher_head or needs.teacher_norms,
        "teacher's class means": needs.class_means,
    }
    return [name for name, read in readings.items() if read]


def _reads_teacher_logits(term: object) -> bool:
    if isinstance(term, Apply):
        return "teacher_logits" in term.reads
    needs = getattr(term, "needs")  # noqa: B009  a description has them
    return needs.teacher and not needs.teacher_taps


def _tables() -> dict[str, list[str]]:
    """Return the numbers of the paper's tables by the presets in them."""
    tables: dict[str, list[str]] = {}
    for name in study_file.names():
        if number := re.fullmatch(r"table(\d+)", name):
            study, _ = study_file.read(name)
            for preset in dict.fromkeys(p for method in study.methods.values() for p in method.presets):
                tables.setdefault(preset, []).append(number[1])
    return tables


PAGE = """# Objectives

Every preset, as `tutelage list objectives` shows it with its arguments; this page is written by
`python -m tutelage.studies.overview > docs/objectives.md`. The arguments are in [recipes](recipes.md#objectives).

Time and memory are those of a training step, over those of a step with KD (resnet56 teaching resnet20, ViTKD on two
small transformers): {machine}.
Memory is what is kept for the backward pass. Tables are those of arXiv:2402.11148.

{table}"""


def page() -> str:
    """Return the documentation's page."""
    record = json.loads(COSTS.read_text(encoding="utf-8"))
    machine = (
        f"`python benchmarks/bench_objectives.py --write` on one thread of {record['hardware']['processor']}, torch "
        f"{record['software']['torch']}, float32, the median of {record['n']} steps"
    )
    return PAGE.format(machine=machine, table=markdown())


if __name__ == "__main__":
    ROWS.write_text(rows_json(), encoding="utf-8")
    sys.stdout.write(page())
