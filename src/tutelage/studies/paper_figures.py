"""Figures 3 and 4 of the paper, histograms and mappings, and the list of all four; nothing is drawn here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from tutelage import records
from tutelage.report.figures import Style, style
from tutelage.report.reading import Run, number, section
from tutelage.studies.paper_curves import divergence, entropy
from tutelage.studies.paper_records import Gathered, Method, Readings
from tutelage.studies.paper_values import REFERENCE, Line, Picture, Pile, Plot

GAMMAS = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0)


def histogram(readings: Readings) -> Picture:
    """Figure 3: histograms of H(q) over the test samples: cross-entropy, label smoothing, KD at its temperatures."""
    methods = [one for one in readings.methods.values() if one.kind in ("ce", "ls", "kd")]
    methods.sort(key=lambda one: ("ce", "ls", "kd").index(one.kind or ""))
    met = Gathered()
    plots = []
    sets: dict[str, None] = {}
    uneven = False
    for pair in readings.subjects:
        piles: list[tuple[Method, Pile]] = []
        for method in methods:
            for run in readings.of(pair, method.name, finished=False):
                met.wait_for(run, method, pair, drawn=False)
            runs = [r for r in readings.of(pair, method.name) if _histogram_of(r)[1] and _mean_entropy(r) is not None]
            if not runs:
                continue
            common = piles[0][1].edges if piles else _histogram_of(runs[0])[0]
            alike = [run for run in runs if _histogram_of(run)[0] == common]
            uneven |= len(alike) < len(runs)
            if alike:
                piles.append((method, _pile(method, alike)))
                met.meet(alike)
                sets |= dict.fromkeys(str(section(run.evaluation).get("set")) for run in alike)
        if piles:
            bases = [pile.mean for method, pile in piles if method.kind == "ce"]
            level = bases[0] if len(bases) == 1 else None
            said = f"{pair}: {_above_or_below(piles)}"
            plots.append(Plot(pair, piles=tuple(pile for _, pile in piles), level=level, said=said))
    how = (
        f"Shannon entropy H(q) of the last student's output over the {' and '.join(sets) or 'test'} samples, pooled "
        "over seeds; common bins. Solid vertical line: the mean; dashed: that of cross-entropy."
    )
    left = "Runs with other bins are left out." if uneven else ""
    return Picture(
        kind="histogram",
        number=3,
        title="Entropy over the test samples",
        across="H(q) (nats)",
        up="Density (1/nat)",
        plots=tuple(plots),
        caption=" ".join(filter(None, (how, met.words(), left))),
        pending=tuple(met.pending),
    )


def _histogram_of(run: Run) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Edges and counts of a finished run's histogram; empty where there is no usable one."""
    found = section(run.evaluation, "student", "entropy_histogram")
    edges, counts = tuple(found.get("edges") or ()), tuple(found.get("counts") or ())
    return (edges, counts) if len(edges) == len(counts) + 1 and sum(counts) > 0 else ((), ())


def _mean_entropy(run: Run) -> float | None:
    return number(section(run.evaluation, "student").get("entropy"))


def _pile(method: Method, runs: Sequence[Run]) -> Pile:
    edges = _histogram_of(runs[0])[0]
    counts = np.sum([_histogram_of(run)[1] for run in runs], axis=0, dtype=np.float64)
    sizes = [sum(_histogram_of(run)[1]) for run in runs]
    middle = sum((_mean_entropy(run) or 0.0) * size for run, size in zip(runs, sizes, strict=True)) / sum(sizes)
    density = counts / counts.sum() / np.diff(edges)
    return Pile(method.label, method.look, edges, tuple(density.tolist()), middle, len(runs))


def _above_or_below(piles: Sequence[tuple[Method, Pile]]) -> str:
    """Say which means lie where the paper says they do."""
    means = "; ".join(f"{pile.mean:.3f} with {pile.label} (n = {pile.n})" for _, pile in piles)
    said = [f"mean H(q) in nats is {means}."]
    base = [pile for method, pile in piles if method.kind == "ce"]
    expected: list[tuple[str, str, list[Pile]]] = [
        ("label smoothing", "above", [pile for method, pile in piles if method.kind == "ls"]),
        ("KD, T = 1", "above", [pile for method, pile in piles if method.is_kd_at(1)]),
        ("KD, T = 4", "below", [pile for method, pile in piles if method.is_kd_at(4)]),
    ]
    if len(base) != 1:
        why = "no finished run of cross-entropy" if not base else "several methods are cross-entropy"
        return f"{said[0]} The paper's order around cross-entropy cannot be judged: {why}."
    for name, where, held in expected:
        for pile in held:
            as_told = pile.mean > base[0].mean if where == "above" else pile.mean < base[0].mean
            verdict = f"lies {where}" if as_told else f"does not lie {where}"
            said.append(
                f"{_capital(pile.label)} {verdict} cross-entropy, {'as' if as_told else 'unlike'} in the paper."
            )
        if not held:
            said.append(f"{_capital(name)}: no finished run.")
    return " ".join(said)


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def mappings(points_each: int = 401) -> Picture:
    """Figure 4: point-wise mappings of [0, 1] that could transform the teacher's probabilities; it needs no runs.

    Each has f(0) = 0 and f(1) = 1 and does not decrease: the power ``x**(1/4)``, the sine ``sin(pi x / 2)``, the
    logarithm ``log(1 + 20 x) / log(21)``, the complement ``1 - (1 - x)**4``; beside them ``x**gamma`` for `GAMMAS`.

    Args:
        points_each: of a curve.
    """
    # Powers are steep at 0: the points crowd there.
    x = np.linspace(0, 1, points_each) ** 3
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
    said = (
        "All keep 0 and 1 and do not decrease. Where f(x)/x falls, as for every candidate here and for x^γ with γ < 1, "
        "the distribution is smoother once it sums to 1 again; with γ > 1 it is sharper."
    )
    return Picture(
        kind="mappings",
        number=4,
        title="Point-wise mappings of a probability",
        across="Probability x",
        up="f(x), before normalisation",
        plots=(
            Plot("Candidates for f", lines=(*left, identity), said=said),
            Plot("Power transform x^γ", lines=tuple(right)),
        ),
        caption="Functions f on [0, 1]; no runs. The dashed grey line is the identity.",
    )


def _function(label: str, look: Style, x: np.ndarray, y: np.ndarray) -> Line:
    return Line(label, look, tuple(x.tolist()), tuple(y.tolist()))


PICTURES: dict[str, Callable[[Readings], Picture]] = {
    "entropy": entropy,
    "divergence": divergence,
    "histogram": histogram,
    "mappings": lambda readings: mappings(),
}
"""By the names that a study's ``figures`` may hold."""


def pictures(readings: Readings) -> list[Picture]:
    """Return the figures that a study asks for.

    Raises:
        ValueError: it asks for one that does not exist.
    """
    for kind in readings.kinds:
        if kind not in PICTURES:
            raise ValueError(
                f"figures: expected any of {', '.join(PICTURES)}, got {kind!r}; name one of those in {records.STUDY}"
            )
    return [PICTURES[kind](readings) for kind in dict.fromkeys(readings.kinds)]
