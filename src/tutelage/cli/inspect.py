"""Commands that start no run: evaluate, report, list, doctor."""

from __future__ import annotations

import contextlib
import shutil
import textwrap
import webbrowser
from functools import partial
from pathlib import Path
from typing import Annotated, cast

import typer

from tutelage import launcher, records
from tutelage.cli import common
from tutelage.errors import InvalidValueError, NotFoundError, nearest
from tutelage.intervals import interval_of


def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run's folder, or a model's name.")],
    overrides: common.Overrides = None,
    best: Annotated[bool, typer.Option("--best", help="The run's best weights instead of its last.")] = False,
    cost: Annotated[
        bool,
        typer.Option("--cost/--no-cost", help="Measure size, operations, latency and throughput, for about 3 seconds."),
    ] = True,
    trust_code: common.TrustCode = False,
) -> None:
    """Evaluate a model on the test set: accuracy, loss, calibration, entropy, what else its task has, and cost."""
    from tutelage.report.table import fixed, percent
    from tutelage.runs import preflight, recipes

    typed = overrides or []
    trust = common.trusted(trust_code, typed, [model])
    recipe = recipes.to_evaluate(model, typed, best=best)
    preflight.check_names(recipe, trust_code=trust, evaluate=True)
    from tutelage import api
    from tutelage.runs import costs

    folder = None if typed or best else Path(model)
    measure = partial(costs.of_evaluated, recipe, folder=folder, trust_code=trust, say=common.echo) if cost else None
    evaluation, title, measured = api.judge(
        recipe, recipe.student.name, reporter=common.remarks(), trust_code=trust, costs_of=measure
    )
    common.echo(title)
    lines: dict[str, str] = {}
    for key in records.OF_TASKS:
        if (value := cast("float | None", evaluation.get(key))) is not None:
            digits = 2 if key == records.PERPLEXITY.key else 3
            name = key.replace("_", " ").replace("iou", "IoU").replace("f1", "F1")
            lines[name] = f"{percent(value)} %" if key in records.OF_SHARES else fixed(value, digits)
    for key, unit in (("accuracy", "%"), ("loss", "nats"), ("entropy", "nats"), ("ece", "%")):
        if (value := cast("float | None", evaluation[key])) is not None:  # type: ignore[literal-required]
            lines[key] = f"{percent(value) if unit == '%' else f'{value:.4f}'} {unit}"
    if records.measure(evaluation) is records.ACCURACY and (bounds := interval_of(evaluation)):
        lines["accuracy"] += "  (95 % interval {} to {} %)".format(*map(percent, bounds))
    if scaled := evaluation.get("calibration"):
        where = (
            "the validation set" if scaled["fitted_on"] == "validation" else "each half of the test set, for the other"
        )
        lines["temperature"] = f"{scaled['temperature']:.4f}  (fitted on {where})"
        lines["ece after it"] = f"{percent(scaled['ece'])} %"
    if measured is not None:
        lines |= _cost_lines(measured)
    width = max(map(len, lines))
    for name, written in lines.items():
        common.echo(f"  {name:<{width}}  {written}")


def _cost_lines(costs: records.Costs) -> dict[str, str]:
    """Return what a model costs by what each line says."""
    from tutelage.report.table import MISSING, plural, si

    cost, shape = costs["student"], costs["input"]
    kind = ""
    if shape is not None:
        kind = f" of length {shape[0]}" if len(shape) == 1 else f" of {' x '.join(map(str, shape))}"
    lines = {
        "parameters": si(cost["parameters"]),
        "weights": si(cost["file_bytes"], "B"),
        "operations": MISSING if cost["flops"] is None else f"{si(cost['flops'], 'FLOP')} for a sample{kind}",
    }
    if cost["latency_ms"] is not None and cost["throughput"] is not None:
        n, tenth = cost["latency_n"], cost["latency_p90_ms"]
        spread = f", 90th percentile {si(tenth / 1e3, 's')}" if tenth is not None else ""
        lines["latency"] = f"{si(cost['latency_ms'] / 1e3, 's')}, the median of {n}{spread}"
        lines["throughput"] = f"{si(cost['throughput'])} samples/s in batches of {cost['batch']}"
        threads = f", {plural(costs['threads'], 'thread')}" if costs["device"] == "cpu" and costs["threads"] else ""
        lines["timed on"] = f"{costs['hardware']}, {costs['device']}{threads}, {costs['precision']}"
    return lines


def report(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A run's, a comparison's, a study's or a search's folder.")
    ],
) -> None:
    """Write the report of a run, a comparison, a study or a search again, and print its table."""
    if not folder.is_dir():
        raise NotFoundError(
            "report", "a run's folder", f"{folder}, which is not there", "type tutelage report runs/NAME"
        )
    from tutelage import records
    from tutelage.report import libraries

    libraries.require("report")
    from tutelage.studies import report as studies
    from tutelage.tuning import report as searches

    if launcher.rank() == 0:
        (searches if (folder / records.TUNE).exists() else studies).write_report(folder)
    common.print_report(folder)


def watch(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A run's, a comparison's or a study's folder.")],
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Where; 0 for any that is free. By default the first free one from 8765."),
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
) -> None:
    """Serve the growing report of a run, a comparison or a study on this machine alone, until Ctrl-C."""
    if launcher.world_size() > 1:
        got, instead = f"{launcher.world_size()} processes", "type it without the launcher, or unset WORLD_SIZE"
        raise InvalidValueError("watch", "a single process", got, instead)
    if not folder.is_dir():
        raise NotFoundError("watch", "a run's folder", f"{folder}, which is not there", "type tutelage watch runs/NAME")
    from tutelage.report import libraries

    libraries.require("watch")
    from tutelage.studies.watch import Server, Watched

    with Server(Watched(folder), port) as server, contextlib.suppress(KeyboardInterrupt):
        common.echo(f"{folder}: {server.url} (Ctrl-C ends it)")
        if open_ and not webbrowser.open(server.url):
            common.echo("note: no browser was found", err=True)
        server.serve_forever()


LISTS = "models", "data", "objectives", "schema"
NARROWEST, WIDEST = 80, 120
"""Columns of a table of models or objectives."""


def list_(
    what: Annotated[str, typer.Argument(metavar="|".join(LISTS), help="What to list.", autocompletion=lambda: LISTS)],
    pattern: Annotated[
        str | None,
        typer.Argument(metavar="[PATTERN]", help="Only names like it: 'timm:mobilenet*', or a part of them: resnet18."),
    ] = None,
    evidence: Annotated[
        bool,
        typer.Option("--evidence", help="Of objectives: what of each we have run ourselves, and with what result."),
    ] = False,
) -> None:
    """List models, data sources, or objectives with their parameters and papers; print the schema of recipes."""
    if what not in LISTS:
        raise InvalidValueError("list", f"one of {', '.join(LISTS)}", repr(what), nearest(what, LISTS))
    if evidence and what != "objectives":
        raise InvalidValueError("--evidence", "objectives", what, "type tutelage list objectives --evidence")
    if what == "schema":
        from tutelage.config.files import JSON_SCHEMA

        if pattern is not None:
            raise InvalidValueError("list", "no pattern with schema", repr(pattern), "type tutelage list schema")
        for line in JSON_SCHEMA.read_text(encoding="utf-8").splitlines():
            common.echo(line)
        return
    from tutelage.models import catalogue

    matches = catalogue.matcher(pattern or "")
    lines: list[str] = []
    if what == "objectives":
        from tutelage.studies import objective_rows

        objectives = objective_rows.read()
        known = [row.name for row in objectives]
        for row in objectives:
            if matches(row.name) and evidence:
                lines += objective_rows.evidence(row, _width())
            elif matches(row.name):
                lines += objective_rows.lines(row, _width(), details=pattern is not None)
    else:
        from tutelage import data, models

        rows = models.available() if what == "models" else data.available()
        known = [name for name, _ in rows]
        if what == "models" and pattern:
            known += [entry.name for entries in catalogue.read().values() for entry in entries.values()]
            lines += _models(pattern)
            rows = [row for row in rows if row[0].partition(":")[0] not in catalogue.read()]
        chosen = [row for row in rows if matches(row[0])]
        width = max((len(name) for name, _ in chosen), default=0)
        lines += [f"{name:<{width}}  {summary}" for name, summary in chosen]
    if not lines:
        expected, instead = f"a pattern of names of {what}", f"type tutelage list {what}"
        hint = nearest(str(pattern).strip("*?"), [*known, *(name.partition(":")[2] for name in known)], otherwise="")
        raise InvalidValueError("list", expected, f"{pattern!r}, which none has", f"{hint} {instead}".strip())
    for line in lines:
        common.echo(line)


def _width(least: int = 0) -> int:
    """Return how wide a table is, on a terminal or not."""
    return max(min(shutil.get_terminal_size().columns, WIDEST), NARROWEST, least)


def _models(pattern: str) -> list[str]:
    """Return the table of the models that match; remarks on libraries go to standard error."""
    from tutelage.errors import missing_extra
    from tutelage.models import catalogue
    from tutelage.report.table import MISSING, si

    entries = list(catalogue.matching(pattern))
    for source in dict.fromkeys(entry.source for entry in entries if entry.source in catalogue.OF_LIBRARIES):
        recorded, installed = catalogue.versions(source)
        if installed is None:
            error = missing_extra("list", f"{source} for a {source}: name", source, ImportError("not installed"))
            if pattern.startswith(f"{source}:"):
                raise error
            common.echo(f"note: {error}", err=True)
            entries = [entry for entry in entries if entry.source != source]
        elif installed.partition("+")[0] != recorded:
            common.echo(f"note: the names of {source} are those of {recorded}; {installed} is installed", err=True)
    cells = [
        (
            entry.name,
            MISSING if entry.parameters is None else si(entry.parameters),
            MISSING if entry.size is None else str(entry.size),
            ", ".join(entry.tags) or "none: random weights",
        )
        for entry in entries
    ]
    if not cells:
        return []
    cells.insert(0, ("model", "parameters", "pixels", "tags of its weights"))
    first, second, third = (max(len(row[column]) for row in cells) for column in range(3))
    before = first + second + third + 6
    width = _width(before + 20)
    lines = []
    for name, count, size, tags in cells:
        head = f"{name:<{first}}  {count:>{second}}  {size:>{third}}  "
        lines += textwrap.wrap(tags, width, initial_indent=head, subsequent_indent=" " * before)
    return lines


def doctor(
    bench: Annotated[
        bool,
        typer.Option(
            "--bench", help="Time what is made faster here against its references: about 5 minutes on two cores."
        ),
    ] = False,
) -> None:
    """Show versions, devices and extras, and take one real training step."""
    if launcher.world_size() > 1:
        got, instead = f"{launcher.world_size()} processes", "type it without the launcher, or unset WORLD_SIZE"
        raise InvalidValueError("doctor", "a single process", got, instead)
    from tutelage.doctor import examine, measure

    good = True
    for finding in examine():
        common.echo(f"{'ok ' if finding.good else 'BAD'}  {finding.what:<22} {finding.value}")
        good &= finding.good
    for finding in measure() if bench and good else ():
        common.echo(finding.value)
        good &= finding.good
    if not good:
        raise typer.Exit(common.FAILED)
