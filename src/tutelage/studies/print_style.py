"""The look and encoding of all figures for print: the same bytes for the same records. All set-up of matplotlib."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from tutelage.errors import missing_extra

if TYPE_CHECKING:
    from types import ModuleType

    from matplotlib.figure import Figure

INK = "#1d1d1f"
GREY = "#777777"
GRID = "#e8e8e8"
DPI = 200
SIZES = {"title": 11.0, "heading": 9.5, "axis": 9.0, "tick": 8.0, "legend": 8.5, "caption": 7.5}
"""Font sizes, points."""
RULES: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tutelage",
    # A name may hold a dollar sign; it is a name, not a formula.
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "axes.labelsize": SIZES["axis"],
    "xtick.labelsize": SIZES["tick"],
    "ytick.labelsize": SIZES["tick"],
    "lines.linewidth": 1.7,
}
METADATA = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}
"""Metadata without anything that differs from one drawing to the next."""


@contextmanager
def style(**rules: Any) -> Iterator[ModuleType]:
    """Yield matplotlib with the style of all figures set inside the block.

    Args:
        rules: further settings of matplotlib, with underscores for dots: ``text__parse_math``.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    plt = _load()
    besides = {name.replace("__", "."): value for name, value in rules.items()}
    # From the defaults: the user's settings for other figures would change the bytes.
    with plt.style.context(["default", RULES, besides]), warnings.catch_warnings():
        # A name in a script that the font lacks becomes boxes in the PNG but stays itself in the SVG.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        yield plt


def encode(figure: Figure, kind: Literal["svg", "png"]) -> bytes:
    """Return a figure as a file's content; call it only inside `style`."""
    file = io.BytesIO()
    figure.savefig(file, format=kind, metadata=METADATA[kind], dpi=DPI)
    return file.getvalue()


def _load() -> ModuleType:
    try:
        import matplotlib
        import matplotlib.backends.backend_agg
        import matplotlib.backends.backend_svg
        import matplotlib.figure
        import matplotlib.lines
        import matplotlib.style
        import matplotlib.ticker
    except ImportError as error:
        raise missing_extra("figures", "matplotlib to draw them", "figures", error) from error
    return matplotlib
