"""The report of a search: its trials, what matters, and what it found, with the best run's curves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tutelage import records
from tutelage.report import html, reading
from tutelage.report import summary as words
from tutelage.report.curves import by_epoch, curves_note
from tutelage.report.html import Page, Section
from tutelage.report.summary import Tile
from tutelage.report.table import Row, Table, plural
from tutelage.tuning import sampler
from tutelage.tuning import space as spaces
from tutelage.tuning.summary import best_trial, lines, read, table


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into a search's folder, atomically; return its path."""
    record = read(folder)
    best = best_trial(record)
    of_best = reading.read(folder / best["folder"])
    subject = replace(of_best, folder=folder, name=record["name"])
    by = records.measure_named(record["measure"])
    first, *rest = lines(record)
    shares = sampler.importances(record["space"], record["trials"], by)
    ranges = Table(
        headings=["key", "range", "importance"],
        rows=[
            Row(cells=[d["key"], spaces.in_words(d), f"{shares[d['key']]:.2f}" if d["key"] in shares else ""])
            for d in record["space"]
        ],
        notes=["Importance: share of a key in what makes finished trials differ, by PED-ANOVA (arXiv:2304.10255)."],
    )
    page = Page(
        kind="Search",
        title=record["name"],
        what=f"{first}, chosen on the validation set by {record['sampler']}.",
        result=". ".join(line[:1].upper() + line[1:] for line in rest) + ".",
        warnings=list(words.warnings(of_best)),
        tiles=[Tile("Trials", str(len(record["trials"])), "", plural(len(record["space"]), "key"))],
        table=table(record),
        selection="The best trial was chosen on the validation set, by the student that each ended with.",
        sections=[
            Section("space", "What was searched", " ".join(ranges.notes), tables=[ranges]),
            Section("epoch", f"The best trial by epoch, {best['folder']}", curves_note(of_best), by_epoch(of_best)),
        ],
    )
    return html.write_report(folder, subject=subject, page=page)
