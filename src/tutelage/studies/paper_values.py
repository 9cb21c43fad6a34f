"""A figure of the paper as a value: its panels, their curves and histograms, and the words beside them."""

from __future__ import annotations

from dataclasses import dataclass

from tutelage.report.figures import Style
from tutelage.report.reading import Points

REFERENCE = Style("#666666", "dash", "circle")


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        label: for the legend.
        look: its colour, dash and marker.
        x: ascending.
        y: means over the finished runs, or values of a function.
        spread: sample standard deviations (n - 1); none below two runs.
        n: finished runs; 0 for a function.
        loose: each unfinished run's values.
    """

    label: str
    look: Style
    x: tuple[float, ...]
    y: tuple[float, ...]
    spread: tuple[float, ...] | None = None
    n: int = 0
    loose: tuple[Points, ...] = ()


@dataclass(frozen=True)
class Pile:
    """One histogram, pooled over runs.

    Attributes:
        label: for its heading.
        look: its colour.
        edges: of the bins, nats.
        density: 1/nat; its integral over the bins is 1.
        mean: of the quantity, nats, over all samples of all runs.
        n: finished runs.
    """

    label: str
    look: Style
    edges: tuple[float, ...]
    density: tuple[float, ...]
    mean: float
    n: int


@dataclass(frozen=True)
class Plot:
    """One panel: of a pair of networks, or of functions.

    Attributes:
        name: its heading.
        lines: its curves.
        piles: its histograms.
        level: the mean that the histograms are held against, nats; none where there is not just one.
        said: what it shows, in words.
    """

    name: str
    lines: tuple[Line, ...] = ()
    piles: tuple[Pile, ...] = ()
    level: float | None = None
    said: str = ""


@dataclass(frozen=True)
class Picture:
    """One figure of the paper.

    Attributes:
        kind: as the study names it.
        number: of the figure in the paper.
        title: above it.
        across: the title of the horizontal axis, with its unit.
        up: the title of the vertical axis, with its unit.
        plots: its panels; none where nothing is recorded yet.
        caption: what was run and how to read it.
        pending: runs that no mean includes, a line each.
    """

    kind: str
    number: int
    title: str
    across: str
    up: str
    plots: tuple[Plot, ...]
    caption: str
    pending: tuple[str, ...] = ()

    @property
    def statements(self) -> list[str]:
        """What the panels show, a sentence or a few each."""
        said = [plot.said for plot in self.plots if plot.said]
        return said or [f"Figure {self.number} ({self.kind}): nothing to draw yet. {self.caption}".rstrip()]
