"""A figure of the paper as a value: its panels, their curves and histograms, and the accompanying text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tutelage.report.figures import Style
from tutelage.report.reading import Points

REFERENCE = Style("#666666", "dash", "circle")


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve."""

    label: str  # label for the legend
    look: Style  # colour, dash and marker
    x: Sequence[float]  # positions, ascending
    y: Sequence[float]  # means over the finished runs, or values of a function
    spread: Sequence[float] | None = None  # sample standard deviations (n - 1); None for fewer than two runs
    n: int = 0  # number of finished runs; 0 for a function
    loose: Sequence[Points] = ()  # values of each unfinished run

    @property
    def band(self) -> tuple[list[float], list[float]] | None:
        """A standard deviation below and above the mean."""
        if self.spread is None:
            return None
        pairs = [*zip(self.y, self.spread, strict=True)]
        return [y - spread for y, spread in pairs], [y + spread for y, spread in pairs]


@dataclass(frozen=True, kw_only=True)
class Pile:
    """One histogram, pooled over runs."""

    label: str  # label for its heading
    look: Style  # colour
    edges: Sequence[float]  # edges of the bins, nats
    density: Sequence[float]  # density, 1/nat; its integral over the bins is 1
    mean: float  # mean of the quantity, nats, over all samples of all runs
    n: int  # number of finished runs


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One panel, of a pair of networks or of functions."""

    name: str  # heading
    lines: Sequence[Line] = ()  # curves
    piles: Sequence[Pile] = ()  # histograms
    level: float | None = None  # mean that the histograms are compared with, nats; None unless there is just one
    statement: str = ""  # statement of what it shows


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One figure of the paper."""

    kind: str  # name in the study
    number: int  # number of the figure in the paper
    title: str  # title above it
    across: str  # title of the horizontal axis, with its unit
    up: str  # title of the vertical axis, with its unit
    plots: Sequence[Plot]  # panels; empty if nothing is recorded yet
    caption: str  # explanation of what was run and how to read it
    pending: Sequence[str] = ()  # lines about runs that no mean includes

    @property
    def statements(self) -> list[str]:
        """Statements of what the panels show, one or a few sentences each."""
        statements = [plot.statement for plot in self.plots if plot.statement]
        return statements or [f"Figure {self.number} ({self.kind}): nothing to draw yet. {self.caption}".rstrip()]


def joined(*sentences: str) -> str:
    """Join the sentences that are not empty."""
    return " ".join(filter(None, sentences))
