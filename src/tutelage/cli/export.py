"""The command that writes a student in a format of other programs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tutelage.cli import common, completion

if TYPE_CHECKING:
    from tutelage.exports.writing import Export


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run's folder, or a model's name.")],
    overrides: common.Overrides = None,
    to: Annotated[
        str, typer.Option("--to", metavar="FORMAT", help="Format to write.", autocompletion=completion.formats)
    ] = "onnx",
    output: Annotated[
        Path | None, typer.Option(help="Where to; by default exports/ in the run's folder, or the working folder.")
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Compute in 8-bit integers.")] = False,
    best: Annotated[bool, typer.Option("--best", help="The run's best weights instead of its last.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    samples: Annotated[int, typer.Option(help="Test samples that the file is verified on.")] = 256,
    format_: Annotated[Literal["table", "json"], typer.Option("--format", help="How the result is printed.")] = "table",
    trust_code: common.TrustCode = False,
) -> None:
    """Write a student for other programs, verified on test samples before the file gets its name."""
    from tutelage.exports import registry
    from tutelage.runs import preflight, recipes

    typed = overrides or []
    registry.format_of(to, int8=int8)
    registry.check_model(model, data=any(text.startswith("data.source=") for text in typed))
    trust = common.trusted(trust_code, typed, [model])
    recipe = recipes.to_evaluate(model, typed, best=best)
    preflight.check_names(recipe, trust_code=trust, evaluate=True)
    path = registry.destination(model, to, output, int8=int8, best=best, force=force)
    from tutelage import api

    made = api.export_recipe(
        recipe, recipe.student.name, to=to, path=path, int8=int8, force=force, samples=samples, trust_code=trust
    )
    for line in json.dumps(as_json(made), indent=2).splitlines() if format_ == "json" else table(made):
        common.echo(line)


def as_json(made: Export) -> dict[str, object]:
    """Return what an export was found to do as a JSON value."""
    return {**dataclasses.asdict(made), "path": str(made.path)}


def table(made: Export) -> list[str]:
    """Write what an export was found to do, in lines."""
    each = [made.student, made.file]
    rows: list[tuple[str, ...]] = [("", "student", made.to + " int8" * made.int8)]
    if made.student.accuracy is not None:
        rows.append(("accuracy", *(f"{100 * (side.accuracy or 0):.2f} %" for side in each)))
    rows += [
        ("latency", *(f"{side.latency_ms:.2f} ms" for side in each)),
        ("throughput", *(f"{side.throughput:.0f}/s" for side in each)),
        ("size", *(f"{side.bytes / 1e6:.3g} MB" for side in each)),
    ]
    agreement = "" if made.agreement is None else f", the same class for {100 * made.agreement:.2f} %"
    return [
        str(made.path),
        *(f"  {name:<11}{student:>12}{file:>14}" for name, student, file in rows),
        f"  on {made.samples} test samples: largest difference of logits {made.difference:.2g}, "
        f"{made.relative:.2g} of the largest{agreement}",
        f"  latency: median of {made.latency_n} calls with 1 sample; throughput: batches of {made.batch}; "
        f"{made.threads} thread{'s' * (made.threads > 1)} of the CPU",
    ]
