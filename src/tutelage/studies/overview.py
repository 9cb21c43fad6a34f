"""Makes the tables of objectives: from the presets, the recorded costs, published figures and our own records."""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from tutelage import objectives
from tutelage.objectives import PRESETS, Apply, Objective
from tutelage.objectives.term import EMBEDDING
from tutelage.report.table import markdown_lines
from tutelage.studies import published_figures, recorded_figures, study_file
from tutelage.studies.objective_rows import ROWS, SHOWN, Published, Row
from tutelage.studies.recorded_figures import RESULTS

COSTS = Path(__file__).parent / "costs.json"
"""Results recorded by ``benchmarks/bench_objectives.py``."""
STAND_INS = {"order": 2.0}
"""Values of arguments without a default; any other has 1."""
BED = "resnet56 teaching resnet20, 64 images of CIFAR-100"
"""Networks and data of the steps whose cost is measured, where a preset takes them."""
COSTS_HEAD = ("Objective", "What it adds, and whose it is", "Task", "Needs", "Time and memory")
PUBLISHED_HEAD = ("Objective", "Figure", "Setting", "Epoch", "Read in")
RECORDED_HEAD = ("Objective", "Record", "What", "Figure", "n")
ACCURACY = "accuracy (%)"
"""What a figure is, where it does not say."""
ADDRESSES = (
    (r"arXiv:(\d{4}\.\d{5})", r"[arXiv:\1](https://arxiv.org/abs/\1)"),
    (r"github\.com/([\w-]+/[\w-]+)", r"[\1](https://github.com/\1)"),
    (r"huggingface\.co/(?:spaces/)?([\w-]+/[\w-]+)", r"[\1](https://\g<0>)"),
)
"""Addresses in sources, and the links that stand for them."""
OF_IMAGES = {
    "cwd": {"student_tap": "card:stage.-1", "teacher_tap": "card:stage.-1"},
    "attention_relations": {"student": "*.attn.qkv", "teacher": "*.attn.qkv"},
}
"""Arguments with which presets are tried on classifiers of images, timm's, where their defaults are for others."""


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
    measured = json.loads(COSTS.read_text(encoding="utf-8")) if COSTS.exists() else {}
    costs, uncosted = measured.get("costs", {}), measured.get("not_measured", {})
    tables, published, recorded = _tables(), published_figures.by_preset(), recorded_figures.by_preset()
    unpublished = published_figures.read().none
    for name, preset in PRESETS.items():
        if objectives.is_built_in(name):
            cost, objective = costs.get(name), default(name)
            yield Row(
                name=name,
                signature=signature(name),
                formula=(preset.build.__doc__ or "").split("``")[1],
                paper=preset.paper,
                needs=", ".join(_needs(objective)),
                task=preset.task or _task(objective),
                time=f"{cost['time']:.2f}" if cost else "",
                memory=f"{cost['memory']:.2f}" if cost else "",
                uncosted="" if cost else uncosted.get(name, "not measured yet"),
                tables=", ".join(tables.get(name, [])),
                published=published.get(name),
                unpublished="" if name in published else unpublished.get(name, ""),
                recorded=recorded.get(name, ()),
            )


def rows_json() -> str:
    """Return the rows as ``studies/objective_rows.json`` holds them."""
    return json.dumps([asdict(row) for row in rows()], indent=1) + "\n"


def signature(name: str) -> str:
    """Return a preset's name with its arguments and their defaults."""
    parameters = inspect.signature(PRESETS[name].build).parameters.values()
    arguments = ", ".join(p.name if p.default is p.empty else f"{p.name}={p.default}" for p in parameters)
    return f"{name}({arguments})"


def markdown(every: Sequence[Row]) -> dict[str, str]:
    """Return the page's tables as GitHub Markdown, and lists of what has no row in them, by what they hold."""
    figures, beyond = published_figures.by_preset(), published_figures.read().beyond
    published = [(f"`{row.name}`", row.published) for row in every if row.published]
    published += [(f"{name}: {what}", figures[name]) for name, what in beyond.items()]
    ways = list(dict.fromkeys(of.known_by for _, of in published))
    why: dict[str, list[str]] = {}
    for row in every:
        if row.unpublished:
            why.setdefault(row.unpublished, []).append(f"`{row.name}`")
    unrecorded = ", ".join(f"`{row.name}`" for row in every if not row.recorded)
    return {
        "costs": _table(COSTS_HEAD, map(_costs_line, every)),
        "published": _table(PUBLISHED_HEAD, (_published_line(*each, ways) for each in published)),
        "ways": "".join(f"{at}. {_linked(way[0].upper() + way[1:])}.\n" for at, way in enumerate(ways, 1)),
        "unpublished": "".join(f"- {', '.join(names)}: {reason}.\n" for reason, names in why.items()),
        "recorded": _table(RECORDED_HEAD, (line for row in every for line in _recorded_lines(row))),
        "unrecorded": f"No record yet: {unrecorded}.\n" if unrecorded else "",
    }


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    return "\n".join(markdown_lines([head, *lines], ["---"] * len(head))) + "\n"


def _linked(text: str) -> str:
    for address, link in ADDRESSES:
        text = re.sub(address, link, text)
    return text


def _costs_line(row: Row) -> tuple[str, ...]:
    cost = f"{row.time}, {row.memory}" if row.time else f"n/a: {row.uncosted}"
    formula = row.formula.replace("|", r"\|")
    return f"`{row.name}`", f"`{formula}`<br>{_linked(row.source)}", row.task, row.needs or "–", cost


def _published_line(name: str, of: Published, ways: Sequence[str]) -> tuple[str, ...]:
    beside = f"{of.figure}<br>{'KD ' * of.kd[:1].isdigit()}{of.kd}" if of.kd else of.figure
    setting = of.setting if of.measure == ACCURACY else f"{of.setting}; {of.measure}"
    read = "; ".join([of.source, of.table, *(["summary"] if of.read == "summary" else ())])
    return name, beside, setting, f"{of.epoch} ({ways.index(of.known_by) + 1})", _linked(read)


def _recorded_lines(row: Row) -> Iterator[tuple[str, ...]]:
    for of in row.recorded[:SHOWN]:
        what = [of.what, *([f"beside {of.beside}"] if of.beside else ())]
        what += [of.measure] if of.measure.lower() != ACCURACY else []
        yield f"`{row.name}`", _link(of.record), "; ".join(what), of.figure, str(of.n)


def _link(record: str) -> str:
    there = next((name for name in ("README.md", "table.md") if (RESULTS / record / name).exists()), "")
    return f"[{record}](../benchmarks/results/{record}{'/' + there if there else ''})"


def _task(objective: Objective) -> str:
    """Name what an objective is for, by what it reads."""
    needs = objective.needs
    read = {*needs.student_taps, *needs.teacher_taps}
    tasks = {
        "embeddings": needs.embeddings,
        "tokens": needs.teacher and needs.other_vocabulary,
        "transformers": any("*" in tap for tap in read),
        "images": needs.views > 1 or (read and read != {EMBEDDING}),
        "classes": read or needs.teacher_head,
    }
    return next((task for task, holds in tasks.items() if holds), "any")


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
        "two views": needs.views > 1,
        "teacher's statistics": needs.teacher_statistics,
        "which tokens are the same": needs.same_tokens,
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

Every preset; `python -m tutelage.studies.overview > docs/objectives.md` writes this page. `tutelage list objectives`
prints the first table with the arguments, `tutelage list objectives wttm` all that is known of one, and with
`--evidence` every record that we have of it, or of each objective, or that it was not run. The arguments
are in [recipes](recipes.md#objectives), the formulas in [methods](methods.md), and when to try which in
[choosing](choosing.md).

## What each adds, needs and costs

**Task**: *any*, it reads logits: of a sample, of each pixel or token, or of several labels. *images*: maps, patches or
two views. *classes*: the pooled features of a sample, or the teacher's head. *transformers*: their layers. *pixels*: it
compares places. *tokens*: the vocabularies may differ. *embeddings*: outputs that are no logits of classes.

**Time and memory** are those of a training step over those of a step with KD on the same networks, where memory is what
is kept for the backward pass. Most are of {bed}. {others}Measured by {machine}.

**Tables** are those of arXiv:2402.11148.

{costs}
## What others published

One setting each, as printed, accuracy in percent unless said: none of it is ours, and no two rows were made alike.
*KD* is plain KD's in the same table, and *Epoch* the one that is reported. The best epoch on the test set is
optimistic: that of one run is some tenths of a point above its last. Where a source does not say, the epoch is
*unknown*, whatever its script can print. A *summary* of a paper is by others and may be wrong; read the paper before
you quote it.

{published}
How the epoch is known, or why it is not:

{ways}
Without a figure here:

{unpublished}
## What we ran

From the records in [benchmarks/results](../benchmarks/results), up to {shown} for each, those with the most seeds
first: the {epoch} epoch on the test set, accuracy in percent unless said, mean ± standard deviation over n seeds. Runs
are small, and many are there to show that a method trains. Only rows of one record and the same networks can be
compared, as they share data, teacher and epochs. [Choosing](choosing.md) reads them.

{recorded}
{unrecorded}"""


def page() -> str:
    """Return the documentation's page."""
    record, every = json.loads(COSTS.read_text(encoding="utf-8")), list(rows())
    machine = (
        f"`python benchmarks/bench_objectives.py --write` on one thread of {record['hardware']['processor']}, torch "
        f"{record['software']['torch']}, float32, the median of {record['n']} steps"
    )
    others: dict[str, list[str]] = {}
    for name, cost in record["costs"].items():
        others.setdefault(cost["bed"], []).append(f"`{name}`")
    named = "".join(f"{', '.join(names)}: {bed}. " for bed, names in others.items() if bed != BED)
    epochs = sorted({of.epoch for row in every for of in row.recorded})
    return PAGE.format(
        **markdown(every),
        machine=machine,
        bed=BED,
        others=named,
        shown=SHOWN,
        epoch=" or ".join(epochs),
    )


if __name__ == "__main__":
    ROWS.write_text(rows_json(), encoding="utf-8")
    sys.stdout.write(page())
