"""The words and figures at the top of a page: what was run, what came out, what to know; and a folder in a line."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tutelage import records
from tutelage.errors import TutelageError, one_line, printable
from tutelage.report.costs import LATENCY, PARAMETERS, amount, in_words, interval
from tutelage.report.paired import Paired, compare, corrected, evaluated_on, p_in_words, with_teacher
from tutelage.report.reading import HELD_OUT, Run, Subject, formula, number, read, reported_epoch, section, text
from tutelage.report.results import Result, best_of
from tutelage.report.statistics import LEVEL
from tutelage.report.table import fixed, judged, percent, plural


class Tile(NamedTuple):
    """One figure at the top of the page."""

    name: str
    value: str
    unit: str
    aside: str


def line(folder: Path) -> str:
    """Say in a line what a run's or a comparison's folder holds."""
    try:
        subject = read(folder)
    except (TutelageError, OSError) as error:
        return printable(one_line(error))
    if subject.comparison:
        done = sum(run.finished for run in subject.runs)
        return f"{plural(len(subject.entries), 'objective')}, {done} of {plural(len(subject.runs), 'run')} finished"
    run, by = subject.runs[0], subject.measure
    parts = [run.status, plural(len(run.epochs), "epoch")]
    judgement = section(run.evaluation, "student")
    if records.merit(judgement) is not None:
        parts.append(f"{text(section(run.evaluation).get('set')) or 'unknown'} {by.describe(judgement)}")
    return printable(", ".join(parts))


def what(subject: Subject) -> str:
    """Say in one sentence what was run."""
    manifest = subject.manifest
    student = text(section(manifest, "student").get("name")) or "a student"
    names = (text(section(run.manifest, "teacher").get("name")) for run in subject.runs)
    teacher = next(filter(None, names), None)
    data = text(section(manifest, "data").get("source")) or "unknown data"
    if subject.comparison:
        seeds = len({run.seed for run in subject.runs})
        each = f", {seeds} seeds" if seeds > 1 else ""
        return (
            f"{plural(len(subject.entries), 'objective')} ({', '.join(subject.entries)}){each}: {student} on {data} "
            f"with {teacher or 'no teacher'} as the teacher; {plural(len(subject.runs), 'run')}."
        )
    objective = formula(manifest.get("objective"))
    how = f" with {objective}" if objective else ""
    epochs = len(subject.runs[0].epochs)
    after = f" for {plural(epochs, 'epoch')}" if epochs else ""
    if manifest.get("verb") == "distill" or teacher:
        return f"{student} was distilled from {teacher or 'a teacher'} on {data}{how}{after}."
    return f"{student} was trained on {data}{how}{after}."


def result(subject: Subject, results: Sequence[Result]) -> str:
    """Say in one or two sentences what came out."""
    top = best_of(results)
    if top is None:
        if subject.comparison:
            return "No result yet: no run has finished."
        run = subject.runs[0]
        done = plural(len(run.epochs), "epoch")
        if run.status in ("failed", "pruned"):
            return f"No result: the run {'failed' if run.status == 'failed' else 'was pruned'} after {done}."
        return f"No result yet: the run is {run.status}, {done} done."
    known = [row for row in results if row.role != "teacher" and row.value is not None]
    students = [row for row in known if row.role == "student"]
    by = top.measure
    named = "" if by is records.ACCURACY else f"a {by.name} of "
    reached = f"{named}{_amount(by, top.value, top.std)} on the {top.set} set"
    if not subject.comparison:
        bounds = f" (95\u00a0% interval {interval(top)})" if top.interval else ""
        sentence = f"The student reaches {reached} {_when(subject.runs[0])}{bounds}"
    else:
        sentence = f"{top.name} reaches {reached}"
        if len(students) > 1:
            others = " besides the baseline," if len(students) < len(known) else ""
            sentence = f"Of {len(students)} objectives{others} {top.name} has the {_extreme(by)} mean, {reached}"
        sentence += f" (n\u00a0=\u00a0{top.n})" if top.n > 1 else " (one run: its spread is not known)"
    if top.gain is not None:
        base = next(row for row in results if row.role == "baseline")
        away = fixed(abs(top.gain), 2)
        points = "" if not by.steps else " point" if away == "1.00" else f" {by.steps}"
        sentence += f", {away}{points} {'above' if top.gain >= 0 else 'below'} the baseline {base.name}"
        sentence += f" ({_amount(by, base.value, base.std)}): {verdict(top.test, better=bool(top.better))}"
    teacher = next((row for row in results if row.role == "teacher" and row.value is not None), None)
    if teacher:
        on = "" if teacher.set == top.set else f" on the {teacher.set} set"
        sentence += f"; the teacher has {_amount(by, teacher.value)}{on}"
        if not subject.comparison and (test := with_teacher(subject.runs[0])):
            sentence += f": {verdict(test, better=top.merit > teacher.merit, who='the student is ')}"
    return f"{sentence}."


def _when(run: Run) -> str:
    """Say which epoch's student a run reports."""
    if reported_epoch([run]) == "last":
        return "after its last epoch"
    epoch = section(run.evaluation, "best").get("epoch")
    return f"with the weights of epoch {epoch}, its best" if isinstance(epoch, int) else "with its best epoch's weights"


def further(subject: Subject, results: Sequence[Result]) -> Iterator[str]:
    """Yield what there is to say besides: how the first compares with the other objectives, and what it costs."""
    top = best_of(results)
    if top is not None:
        others = [row for row in results if row.role == "student" and row.value is not None and row is not top]
        teacher = next((row for row in results if row.role == "teacher"), None)
        yield from _against_others(subject, top, others)
        yield from _cost(top, teacher)


def verdict(test: Paired | None, *, better: bool, who: str = "") -> str:
    """Say what a test of a difference says: better, worse, or that it shows none."""
    if test is None:
        return "not tested"
    found = f"{who}{'better' if better else 'worse'}" if test.shown else "no difference shown"
    return f"{found} ({p_in_words(test.p)}{f', {test.how}' if who else ''})"


def _against_others(subject: Subject, top: Result, others: Sequence[Result]) -> Iterator[str]:
    """Say of which other objectives a test tells the first one apart."""
    tests = corrected([compare(subject, top.name, row.name) for row in others])
    open_ones = [(row, test) for row, test in zip(others, tests, strict=True) if test is None or not test.shown]
    if any(test for test in tests):
        named = (f"{row.name} ({p_in_words(test.p) if test else 'not tested'})" for row, test in open_ones)
        yield (
            f"No difference shown between {top.name} and {', '.join(named)}."
            if open_ones
            else f"{top.name} is better than the other objectives{' too' if top.better else ''} (p < {LEVEL})."
        )
    elif others:
        yield "The objectives are not tested against each other."


def _cost(student: Result, teacher: Result | None) -> Iterator[str]:
    """Say how much smaller and faster a student is than its teacher, if both were measured."""
    if teacher is None or student.cost is None or teacher.cost is None:
        return
    size, speed = (in_words(student.cost, teacher.cost, of) for of in (PARAMETERS, LATENCY))
    parts = [f"has {size} parameters" if size else "", f"is {speed} on one sample" if speed else ""]
    if any(parts):
        yield f"The student {' and '.join(filter(None, parts))} than the teacher."


def _amount(by: records.Measure, value: float | None, std: float | None = None) -> str:
    """Write a value of a measure with its unit."""
    return judged(by, value, std) + (f" {by.unit}" if by.unit else "")


def _extreme(by: records.Measure) -> str:
    """Name the end of a measure's scale that is the best."""
    return "lowest" if by.lower_is_better else "highest"


def warnings(subject: Subject) -> Iterator[str]:
    """Yield what a reader of the results must know first."""
    unfinished = [run for run in subject.runs if not run.finished]
    if unfinished:
        verb = "is" if len(unfinished) == 1 else "are"
        states = ", ".join(f"{run.label}: {run.status}" for run in unfinished)
        several = f"{len(unfinished)} of {len(subject.runs)} runs {verb} not finished and in no mean"
        yield f"{several if subject.comparison else 'This run is not finished'} ({states})."
    if subject.teacher is not None:
        yield from (f"Damaged: {line}." for line in subject.teacher.damage)
    for run in subject.runs:
        yield from (f"Damaged: {line}." for line in run.damage)
        path = run.folder / records.PREDICTIONS
        if run.finished and run.predictions is None:
            if path.exists():
                yield f"Damaged: {path}: not the predictions that the run wrote; without them samples are not compared."
            elif run.disputed or any(other.predictions for other in subject.runs):
                yield f"{run.label}: no {path.name}; without it samples are not compared."
        skipped = sum(int(number(epoch.get("skipped_steps")) or 0) for epoch in run.epochs)
        if skipped:
            yield f"{run.label}: {skipped} steps had a non-finite loss or gradient and were not applied."
    if len({evaluated_on(run) for run in subject.runs if run.finished}) > 1:
        yield "Runs were evaluated on different data, and those of different data are not tested against each other."
    if any(run.manifest.get("repeatable") is False for run in subject.runs):
        yield "Made of Python objects that the records cannot name: not repeatable from the folder alone."
    if any(section(run.manifest, "selection").get("set") == "test" for run in subject.runs):
        yield "The test set was used for selection."


def tiles(subject: Subject, results: Sequence[Result]) -> list[Tile]:
    """Return the figures at the top: of the teacher, the baseline, and the best mean of the other objectives."""
    tiles = []
    top = best_of(results)
    for row in results:
        by = row.measure
        value, on, several = judged(by, row.value, row.std), f"{row.set} {by.name}", f"{row.name}, n = {row.n}"
        more = by.describe_beside(row.of_task, "; ")
        more += f"; 95\u00a0% interval {interval(row)}" if row.interval and not subject.comparison else ""
        if row.role == "teacher":
            tiles.append(Tile(f"Teacher, {on}", judged(by, row.value), by.unit, row.name + more))
        elif row.role == "baseline":
            tiles.append(Tile(f"Baseline, {on}", value, by.unit, several + more))
        elif row is top:
            best = f"{_extreme(by).capitalize()} mean" + ("" if by.merit(row.gain or 0) >= 0 else " of the others")
            name, aside = (best, several) if subject.comparison else ("Student", row.name)
            tiles.append(Tile(f"{name}, {on}", value, by.unit, aside + more))
            if row.gain is not None:
                than = "from" if by.lower_is_better else "over"
                change = fixed(row.gain, 2, sign=True)
                said = "not tested" if row.test is None else p_in_words(row.test.p)
                said = f"no difference shown, {said}" if row.test and not row.test.shown else said
                tiles.append(Tile(f"{by.difference} {than} the baseline", change, by.steps, f"{row.name}; {said}"))
            elif row.agreement is not None:
                tiles.append(Tile("Agreement with the teacher", percent(row.agreement), "%", f"{row.set} set"))
    if top is None and not subject.comparison:
        tiles += _latest_tiles(subject)
    tiles += _cost_tiles(results, top)
    seconds = number(subject.manifest.get("duration_s"))
    if not subject.comparison and seconds is not None:
        hardware = section(subject.manifest, "hardware")
        devices = (text(hardware.get(key)) for key in ("gpu", "processor", "device"))
        tiles.append(Tile("Time", duration(seconds), "", next(filter(None, devices), "")))
    return tiles


def _latest_tiles(subject: Subject) -> Iterator[Tile]:
    """Yield what the last epoch of a run without a result reached on each held-out set."""
    for epoch in subject.runs[0].epochs[-1:]:
        for name in HELD_OUT:
            means = section(epoch, name)
            by = records.measure(means)
            if (value := number(means.get(by.key))) is not None:
                tile = f"{by.title} so far, {name}"
                yield Tile(
                    tile, by.write(value), by.unit, f"epoch {epoch.get('epoch')}{by.describe_beside(means, '; ')}"
                )


def _cost_tiles(results: Sequence[Result], top: Result | None) -> Iterator[Tile]:
    if top is None or top.cost is None:
        return
    teacher = next((row.cost for row in results if row.role == "teacher"), None)
    for of, name, unit in ((PARAMETERS, "Parameters", ""), (LATENCY, "Latency of one sample", "ms")):
        value, ratio = getattr(top.cost, of.key), in_words(top.cost, teacher, of)
        if value is not None:
            aside = f"{ratio} than the teacher" if ratio else "" if of is PARAMETERS else top.cost.place
            yield Tile(name, amount(value, of), unit, aside)


def duration(seconds: float) -> str:
    """Write a time in its two largest units.

    Example:
        >>> duration(4000), duration(75.4), duration(3.21)
        ('1 h 6 min', '1 min 15 s', '3.2 s')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, left = divmod(math.floor(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {left} s"


def selection(subject: Subject) -> str:
    """Say which set decided anything, whose figure is reported, and which runs ended early."""
    recorded = [section(run.manifest, "selection") for run in subject.runs]
    sentences = {
        "test": "The test set was used for selection{by}: the best epoch's figure is optimistic.",
        "none": "No set was used for selection.",
        None: "The records do not say which set was used for selection.",
    }
    held_out = "The {name} set was used for selection{by}; the test set took no part in it."
    chosen_by = [
        sentences.get(name, held_out).format(name=name, by=f" by {subject.measure.name}" if metric else "")
        for name, metric in dict.fromkeys((text(chosen.get("set")), text(chosen.get("metric"))) for chosen in recorded)
    ]
    epoch, name = reported_epoch(subject.runs), subject.measure.name
    ends = {
        "last": f"The {name} that is reported is the last epoch's, whichever epoch selection would take.",
        "best": f"The {name} that is reported is that of the epoch that was selected.",
    }
    averages = any(chosen.get("weights") == "average" for chosen in recorded)
    weights = ["What is judged and kept is an average of the weights that were trained."] if averages else []
    whose = ends.get(epoch, f"The {name} that is reported is the {epoch} epoch's, as the runs say.")
    return " ".join([*chosen_by, whose, *weights, *_stopped(subject)])


def _stopped(subject: Subject) -> Iterator[str]:
    """Yield which stages of which runs ended before their last epoch."""
    for run in subject.runs:
        recorded = run.manifest.get("stopped")
        ends = recorded if isinstance(recorded, list) else []
        for stage, end in enumerate(ends):
            why, epoch = (section({"end": end}, "end").get(key) for key in ("why", "epoch"))
            if isinstance(why, str) and isinstance(epoch, int):
                which = f"{run.label}: " if subject.comparison else ""
                which += f"stage {stage + 1}: " if len(ends) > 1 else ""
                yield f"{which}{'s' if which else 'S'}topped after epoch {epoch}: {why}."
