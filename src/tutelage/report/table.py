"""A table as a value, written as Markdown or HTML, or printed on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

from tutelage import records
from tutelage.errors import printable

if TYPE_CHECKING:
    from markupsafe import Markup
    from rich.console import Console

MISSING = "–"
ROOMY = 100
"""Columns of a terminal that has room for more than 80 hold."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a table."""

    cells: Sequence[str]  # cells under the table's headings
    short: Sequence[str] | None = None  # cells on a terminal, if shorter there
    kind: str = ""  # class in HTML; a ``"teacher"`` is dim on a terminal
    # unrounded numbers by the names of HTML's data attributes; None is written as an empty one
    exact: Mapping[str, object] = field(default_factory=dict)
    bold: Sequence[int] = ()  # columns in bold: differences that a test shows
    link: str = ""  # link of the first cell in HTML; empty for none


@dataclass(frozen=True, kw_only=True)
class Table:
    """Headings, rows, and notes below them; the first column names the row. Numbers are aligned right."""

    headings: Sequence[str]  # headings of the columns
    rows: Sequence[Row]  # rows, top to bottom
    notes: Sequence[str] = ()  # notes on the figures, a sentence or two each
    wrapped: Sequence[int] = ()  # columns whose cells may break on a terminal
    words: Sequence[int] = ()  # columns that are aligned left too, and whose cells may break anywhere
    extra: Sequence[int] = ()  # columns that a terminal shows if it is wider than 80
    caption: str = ""  # heading in HTML, below a section's

    def markdown(self) -> str:
        """Return the table as GitHub Markdown, followed by its notes."""
        rule = [":---" if self._is_left(at) else "---:" for at in range(len(self.headings))]
        cells = [[*map(plain, self.headings)], *map(_markdown_row, self.rows)]
        lines = markdown_lines(cells, rule)
        return "\n".join([*lines, *([""] if self.notes else []), *(f"- {plain(note)}" for note in self.notes)]) + "\n"

    def html(self, name: str) -> Markup:
        """Return the table as a ``table`` element with this id, in a region that scrolls by keyboard too."""
        from markupsafe import Markup

        kinds = [Markup(' class="words"') if at in self.words else "" for at in range(len(self.headings))]
        heads = Markup("").join(map(Markup('<th scope="col"{}>{}</th>').format, kinds, self.headings))
        body = Markup("\n").join(_html_row(row, kinds) for row in self.rows)
        title = Markup("<h3>{}</h3>\n").format(printable(self.caption)) if self.caption else Markup("")
        return Markup(
            '{}<div class="wide" tabindex="0" role="region" aria-label="{}">\n<table id="{}" class="numbers">\n'
            "<thead><tr>{}</tr></thead>\n<tbody>\n{}\n</tbody>\n</table>\n</div>"
        ).format(title, f"Table: {self.caption or name}", name, heads, body)

    def _is_left(self, column: int) -> bool:
        return column == 0 or column in self.words

    def print(self, console: Console) -> None:
        """Print the table on a terminal, without its notes, narrow enough for 80 columns."""
        from rich import box
        from rich import table as rich
        from rich.text import Text

        shown = rich.Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        left_out = self.extra if console.width < ROOMY else ()
        for at, heading in enumerate(map(printable, self.headings)):
            if at in left_out:
                continue
            # Text, not markup: a name may contain brackets.
            shown.add_column(
                Text(heading.replace(" ", "\n") if at else heading),
                justify="left" if self._is_left(at) else "right",
                no_wrap=not self._is_left(at) and at not in self.wrapped,
                overflow="fold",  # a long name takes several lines, so that no number is cut
            )
        for row in self.rows:
            shorts = [cell for at, cell in enumerate(row.short or row.cells) if at not in left_out]
            cells = ("\n".join(map(printable, cell.split("\n"))) for cell in shorts)
            bold = [at in row.bold for at in range(len(self.headings)) if at not in left_out]
            texts = (Text(cell, style="bold" if strong else "") for cell, strong in zip(cells, bold, strict=True))
            shown.add_row(*texts, style="dim" if row.kind == "teacher" else "")
        console.print(shown)


def print_notes(notes: Sequence[str], console: Console) -> None:
    """Print a table's notes; on a terminal, a star marks anything selected on the test set."""
    from rich.text import Text

    for note in notes:
        console.print(Text(note.replace("Selected on test:", "*"), style="dim"))


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Return lines of cells as text in columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]


def markdown_lines(lines: Sequence[Sequence[str]], rule: Sequence[str]) -> list[str]:
    """Return lines of cells, headings first, as lines of a Markdown table; the cells are already Markdown."""
    head, *body = (f"| {' | '.join(line)} |" for line in lines)
    return [head, f"|{'|'.join(rule)}|", *body]


def _html_row(row: Row, kinds: Sequence[str]) -> Markup:
    from markupsafe import Markup

    exact = {f"data-{key}": "" if value is None else value for key, value in row.exact.items()}
    opening = Markup(" ").join(Markup('{}="{}"').format(*item) for item in {"class": row.kind, **exact}.items())
    name, *numbers = map(printable, row.cells)
    head = Markup('<a href="{}">{}</a>').format(row.link, name) if row.link else name
    numbers = [Markup("<strong>{}</strong>").format(n) if at in row.bold else n for at, n in enumerate(numbers, 1)]
    others = map(Markup("<td{}>{}</td>").format, kinds[1:], numbers)
    cells = chain([Markup('<th scope="row">{}</th>').format(head)], others)
    return Markup("<tr {}>{}</tr>").format(opening, Markup("").join(cells))


def _markdown_row(row: Row) -> list[str]:
    return [f"**{plain(cell)}**" if at in row.bold else plain(cell) for at, cell in enumerate(row.cells)]


def plain(cell: str) -> str:
    """Escape what Markdown, and HTML within it, would interpret, and what cannot be printed."""
    cell = printable(cell)
    for mark in "\\|*_`[]":
        cell = cell.replace(mark, f"\\{mark}")
    return cell.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def percent(value: float | None, std: float | None = None) -> str:
    """Write a fraction in percent, with its standard deviation if there is one.

    Example:
        >>> percent(0.71234, 0.0021)
        '71.23 ± 0.21'
    """
    if value is None:
        return MISSING
    return f"{100 * value:.2f}" + ("" if std is None else f" ± {100 * std:.2f}")


def fixed(value: float | None, digits: int = 3, *, sign: bool = False) -> str:
    """Write a number with fixed digits, 0 without a minus, or a dash for ``None``."""
    if value is None:
        return MISSING
    form = f"z.{digits}{'f' if abs(value) < records.LARGE else 'g'}"
    return f"{value:{'+' if sign else ''}{form}}"


def interval(bounds: tuple[float | None, float | None] | None, *, sign: bool = False) -> str:
    """Write an interval's bounds with two decimals, or a dash for ``None``.

    Example:
        >>> interval((-0.004, 1.5), sign=True)
        '+0.00 to +1.50'
    """
    return MISSING if bounds is None else " to ".join(fixed(bound, 2, sign=sign) for bound in bounds)


def written(value: Any) -> str:
    """Write a number, a schedule or another value of a recipe.

    Example:
        >>> written(6.300000000000001), written({"schedule": "warm_up", "value": 3.0, "epochs": 20})
        ('6.3', '{schedule: warm_up, value: 3, epochs: 20}')
    """
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {written(inner)}' for key, inner in value.items())}}}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


PREFIXES = {15: "P", 12: "T", 9: "G", 6: "M", 3: "k", 0: "", -3: "m", -6: "µ"}


def si(value: float | None, unit: str = "") -> str:
    """Write a number >= 0 with three digits and a prefix, or a dash for ``None``; below 1 that needs a unit.

    Example:
        >>> si(1234567), si(3.2e6, "B"), si(0.0018, "s"), si(0.5), si(20), si(999.9)
        ('1.23 M', '3.20 MB', '1.80 ms', '0.500', '20', '1.00 k')
    """
    if value is None:
        return MISSING
    rounded = float(f"{value:.3g}")
    power = next((power for power in PREFIXES if rounded >= 10.0**power and (unit or power >= 0)), 0)
    scaled = rounded / 10.0**power
    whole = scaled >= 100 or (power == 0 and scaled.is_integer())
    return f"{scaled:{'.0f' if whole else '#.3g'}} {PREFIXES[power]}{unit}".rstrip()


def judged(by: records.Measure, value: float | None, std: float | None = None) -> str:
    """Write a value of a measure as it does, or a dash for ``None``."""
    return MISSING if value is None else by.write(value, std)


def plural(number: int, unit: str) -> str:
    """Write a number of things: ``1 epoch``, ``3 epochs``."""
    return f"{number} {unit}{'' if number == 1 else 's'}"


def count(done: int, left: int) -> str:
    """Write how many runs are in a mean, and out of how many if some are not."""
    return f"{done} of {done + left}" if left else str(done)
