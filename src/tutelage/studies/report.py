"""The report of any folder: a study's has its table, the paper's figures and the curves of each pair."""

from __future__ import annotations

from pathlib import Path

from tutelage.report import html, reading, summary
from tutelage.report.curves import by_epoch, curves_note
from tutelage.report.html import Page, Section
from tutelage.report.reading import Subject
from tutelage.report.summary import Tile
from tutelage.report.table import Table, plural
from tutelage.studies import differences as paired
from tutelage.studies import paper
from tutelage.studies import study_table as study
from tutelage.studies.paper_figures import pictures
from tutelage.studies.paper_records import readings


def write_report(folder: Path | str) -> Path:
    """Write ``report.html`` into a run's, a comparison's or a study's folder, atomically.

    Returns the report's path.

    Raises:
        FileNotFoundError: if the folder holds no records.
        ValueError: if a record is not JSON.
    """
    subject, page = read(Path(folder))
    return html.write_report(folder, subject=subject, page=page)


def read(folder: Path) -> tuple[Subject, Page]:
    """Return the runs of a folder, and the page that shows them; raises what `write_report` does."""
    if study.is_study(folder):
        return study_page(folder)
    subject = reading.read(folder)
    return subject, html.run_page(subject)


def study_page(folder: Path) -> tuple[Subject, Page]:
    """Return a study's runs and its page: its table, its figures, and the curves of each pair."""
    record, subjects = study.read_study(folder)
    table = study.table_of(record, subjects)
    # A run shared by several pairs is listed once.
    runs = tuple({run.folder.resolve(): run for subject in subjects.values() for run in subject.runs}.values())
    whole = Subject(folder=folder, name=table.title, runs=runs, comparison=True)
    finished = f"{sum(run.finished for run in runs)} of {len(runs)}"
    scores = [abs(row.z) for row in table.rows if row.z is not None]
    tiles = [Tile("Runs finished", finished, "", table.name)]
    if scores:
        within = f"{sum(score <= 2 for score in scores)} of {len(scores)}"
        tiles.append(Tile("Within two standard errors", within, "", "means that can be tested"))
    drawn = pictures(readings(record, subjects))
    pairs = plural(len(subjects), "pair")
    page = Page(
        kind="Study",
        title=table.title,
        what=f"{pairs}; published values: {table.source}" if table.source else f"{pairs}.",
        result=f"{finished} runs are finished; {len(scores)} means can be tested against published ones.",
        warnings=[*([study.WARNING, *table.departures] if table.departures else []), *summary.warnings(whole)],
        tiles=tiles,
        table=study.whole_table(table),
        selection=summary.selection(whole) if runs else "No run yet.",
        sections=[
            Section("differences", "Differences between methods", paired.NOTE, tables=_differences(table)),
            Section(
                "scoreboard",
                "Scoreboard",
                " ".join(study.scoreboard_notes(table)),
                tables=study.scoreboard_tables(table),
            ),
            Section("paper", "Figures", " ".join(paper.statements(drawn)), paper.panels(drawn)),
            *(
                Section(str(at), pair, curves_note(subject), by_epoch(subject))
                for at, (pair, subject) in enumerate(subjects.items())
            ),
        ],
    )
    return whole, page


def _differences(table: study.StudyTable) -> list[Table]:
    """Return a table of differences for each pair that has any."""
    return [paired.table_of(found, caption=pair) for pair in table.begun if (found := table.of(pair))]
