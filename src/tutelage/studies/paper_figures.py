"""Figures 3 and 4 of the paper, histograms and mappings, and the list of all four; nothing is drawn here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from tutelage import records
from tutelage.errors import InvalidValueError
from tutelage.report.figures import Style, style
from tutelage.report.reading import Run, number, section
from tutelage.studies.paper_curves import divergence, entropy
from tutelage.studies.paper_records import Gathered, Method, Readings
from tutelage.studies.paper_values import REFERENCE, Line, Picture, Pile, Plot, joined

GAMMAS = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0)


def histogram(readings: Readings) -> Picture:
    """Return Figure 3: histograms of H(q) over the test samples for cross-entropy, label smoothing and KD."""
    kinds = ("ce", "ls", "kd")
    methods = [method for kind in kinds for method in readings.methods if method.kind == kind]
    met = Gathered()
    plots = []
    sets: dict[str, None] = {}
    uneven = False
    for pair in readings.pairs:
        piles: list[tuple[Method, Pile]] = []
        for method in methods:
            for run in pair.of(method.name, finished=False):
                met.wait_for(run, method, pair.name, drawn=False)
            usable = [(run, held) for run in pair.of(method.name) if (held := _histogram_of(run))]
            if not usable:
                continue
            edges = piles[0][1].edges if piles else usable[0][1].edges
            alike = [(run, held) for run, held in usable if held.edges == edges]
            uneven |= len(alike) < len(usable)
            if alike:
                piles.append((method, _pile(method, [held for _, held in alike])))
                met.meet(run for run, _ in alike)
                sets |= dict.fromkeys(str(section(run.evaluation).get("set")) for run, _ in alike)
        if piles:
            bases = [pile.mean for method, pile in piles if method.kind == "ce"]
            plots.append(
                Plot(
                    name=pair.name,
                    piles=[pile for _, pile in piles],
                    level=bases[0] if len(bases) == 1 else None,
                    statement=f"{pair.name}: {_above_or_below(piles)}",
                )
            )
    how = (
        f"Shannon entropy H(q) of the last student's output over the {' and '.join(sets) or 'test'} samples, pooled "
        "over seeds; common bins. Solid vertical line: the mean; dashed: that of cross-entropy."
    )
    return Picture(
        kind="histogram",
        number=3,
        title="Entropy over the test samples",
        across="H(q) (nats)",
        up="Density (1/nat)",
        plots=plots,
        caption=joined(how, met.words(), "Runs with other bins are left out." if uneven else ""),
        pending=met.pending,
    )


class Histogram(NamedTuple):
    """A histogram of one run's entropies over the samples, with their mean."""

    edges: Sequence[float]
    counts: Sequence[float]
    mean: float


def _histogram_of(run: Run) -> Histogram | None:
    """Return a finished run's histogram if it is usable."""
    student = section(run.evaluation, "student")
    recorded, mean = section(student, "entropy_histogram"), number(student.get("entropy"))
    edges, counts = recorded.get("edges") or [], recorded.get("counts") or []
    return (
        Histogram(edges, counts, mean)
        if len(edges) == len(counts) + 1 and sum(counts) > 0 and mean is not None
        else None
    )


def _pile(method: Method, histograms: Sequence[Histogram]) -> Pile:
    edges = histograms[0].edges
    counts = np.sum([held.counts for held in histograms], axis=0, dtype=np.float64)
    sizes = [sum(held.counts) for held in histograms]
    middle = sum(held.mean * size for held, size in zip(histograms, sizes, strict=True)) / sum(sizes)
    density = (counts / counts.sum() / np.diff(edges)).tolist()
    return Pile(label=method.label, look=method.look, edges=edges, density=density, mean=middle, n=len(histograms))


def _above_or_below(piles: Sequence[tuple[Method, Pile]]) -> str:
    """Say which means lie where the paper says."""
    means = "; ".join(f"{pile.mean:.3f} with {pile.label} (n = {pile.n})" for _, pile in piles)
    statements = [f"mean H(q) in nats is {means}."]
    base = [pile for method, pile in piles if method.kind == "ce"]
    if len(base) != 1:
        why = "no finished run of cross-entropy" if not base else "several methods are cross-entropy"
        return f"{statements[0]} The paper's order around cross-entropy cannot be judged: {why}."
    for name, where, members in (
        ("Label smoothing", "above", [pile for method, pile in piles if method.kind == "ls"]),
        ("KD, T = 1", "above", [pile for method, pile in piles if method.is_kd_at(1)]),
        ("KD, T = 4", "below", [pile for method, pile in piles if method.is_kd_at(4)]),
    ):
        for pile in members:
            as_published = pile.mean > base[0].mean if where == "above" else pile.mean < base[0].mean
            verdict = (
                f"lies {where} cross-entropy, as" if as_published else f"does not lie {where} cross-entropy, unlike"
            )
            statements.append(f"{pile.label[:1].upper()}{pile.label[1:]} {verdict} in the paper.")
        if not members:
            statements.append(f"{name}: no finished run.")
    return " ".join(statements)


def mappings() -> Picture:
    """Return Figure 4: point-wise mappings of [0, 1] that could transform the teacher's probabilities; no runs needed.

    Each has f(0) = 0 and f(1) = 1 and never decreases: the power ``x**(1/4)``, the sine ``sin(pi x / 2)``, the
    logarithm ``log(1 + 20 x) / log(21)``, the complement ``1 - (1 - x)**4``; and ``x**gamma`` for `GAMMAS`.
    """
    # Powers are steep at 0, so the points crowd there.
    x = np.linspace(0, 1, 401) ** 3
    candidates = {
        "x^(1/4), power": x**0.25,
        "log(1 + 20x) / log 21": np.log1p(20 * x) / math.log(21),
        "1 − (1 − x)^4": 1 - (1 - x) ** 4,
        "sin(πx/2)": np.sin(np.pi * x / 2),
    }
    left = [_function(label, style(at), x, y) for at, (label, y) in enumerate(candidates.items())]
    identity = _function("x, identity", REFERENCE, x, x)
    right = [
        _function(f"γ = {gamma:g}", REFERENCE if gamma == 1 else style(at), x, x**gamma)
        for at, gamma in enumerate(GAMMAS)
    ]
    statement = (
        "All keep 0 and 1 and do not decrease. Where f(x)/x falls, as for every candidate here and for x^γ with γ < 1, "
        "the distribution is smoother once it sums to 1 again; with γ > 1 it is sharper."
    )
    return Picture(
        kind="mappings",
        number=4,
        title="Point-wise mappings of a probability",
        across="Probability x",
        up="f(x), before normalisation",
        plots=[
            Plot(name="Candidates for f", lines=[*left, identity], statement=statement),
            Plot(name="Power transform x^γ", lines=right),
        ],
        caption="Functions f on [0, 1]; no runs. The dashed grey line is the identity.",
    )


def _function(label: str, look: Style, x: np.ndarray, y: np.ndarray) -> Line:
    return Line(label=label, look=look, x=x.tolist(), y=y.tolist())


PICTURES: dict[str, Callable[[Readings], Picture]] = {
    "entropy": entropy,
    "divergence": divergence,
    "histogram": histogram,
    "mappings": lambda readings: mappings(),
}
"""Figures by the names allowed in a study's ``figures``."""


def pictures(readings: Readings) -> list[Picture]:
    """Return the figures that a study requests.

    Raises:
        ValueError: if it requests one that does not exist.
    """
    for kind in readings.kinds:
        if kind not in PICTURES:
            raise InvalidValueError(
                "figures", f"any of {', '.join(PICTURES)}", repr(kind), f"name one of those in {records.STUDY}"
            )
    return [PICTURES[kind](readings) for kind in dict.fromkeys(readings.kinds)]
