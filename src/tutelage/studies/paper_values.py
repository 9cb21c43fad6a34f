"""A figure of the paper as a value: its panels, their curves and histograms, and the words beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tutelage.report.figures import Style
from tutelage.report.reading import Points

REFERENCE = Style("#666666", "dash", "circle")


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve."""

    label: str  # for the legend
    look: Style  # its colour, dash and marker
    x: Sequence[float]  # ascending
    y: Sequence[float]  # means over the finished runs, or values of a function
    spread: Sequence[float] | None = None  # sample standard deviations (n - 1); none below two runs
    n: int = 0  # finished runs; 0 for a function
    loose: Sequence[Points] = ()  # each unfinished run's values

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

    label: str  # for its heading
    look: Style  # its colour
    edges: Sequence[float]  # of the bins, nats
    density: Sequence[float]  # 1/nat; its integral over the bins is 1
    mean: float  # of the quantity, nats, over all samples of all runs
    n: int  # finished runs


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One panel: of a pair of networks, or of functions."""

    name: str  # its heading
    lines: Sequence[Line] = ()  # its curves
    piles: Sequence[Pile] = ()  # its histograms
    level: float | None = None  # the mean that the histograms are held against, nats; none where there is not just one
    statement: str = ""  # what it shows, in words


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One figure of the paper."""

    kind: str  # as the study names it
    number: int  # of the figure in the paper
    title: str  # above it
    across: str  # the title of the horizontal axis, with its unit
    up: str  # the title of the vertical axis, with its unit
    plots: Sequence[Plot]  # its panels; none where nothing is recorded yet
    caption: str  # what was run and how to read it
    pending: Sequence[str] = ()  # runs that no mean includes, a line each

    @property
    def statements(self) -> list[str]:
        """What the panels show, a sentence or a few each."""
        statements = [plot.statement for plot in self.plots if plot.statement]
        return statements or [f"Figure {self.number} ({self.kind}): nothing to draw yet. {self.caption}".rstrip()]


def joined(*sentences: str) -> str:
    """Join the sentences that are not empty."""
    return " ".join(filter(None, sentences))
