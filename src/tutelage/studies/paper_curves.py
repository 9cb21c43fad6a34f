"""Figures 1 and 2 of the paper: the student's entropy and its distance to the transformed teacher, by epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import NamedTuple

from tutelage.report.reading import Subject, deviation, mean, points
from tutelage.studies.paper_records import Gathered, Method, Readings, argument
from tutelage.studies.paper_values import Line, Picture, Plot, joined


class Curve(NamedTuple):
    """A method with its curve on one pair."""

    method: Method
    line: Line


def entropy(readings: Readings) -> Picture:
    """Return Figure 1: mean Shannon entropy H(q) of the student's output by epoch, for every method of the study."""
    met = Gathered()
    plots = _by_epoch(readings, readings.methods, "entropy", met, _entropy_order)
    how = (
        "Mean Shannon entropy H(q) of the student's output over the training samples of each epoch, taken while "
        "training."
    )
    return Picture(
        kind="entropy",
        number=1,
        title="Entropy of the student's output",
        across="Epoch",
        up="H(q) (nats)",
        plots=plots,
        caption=joined(how, _bands(plots), met.words(), _matched(readings)),
        pending=met.pending,
    )


def divergence(readings: Readings) -> Picture:
    """Return Figure 2: mean KL to the transformed teacher by epoch, TTM against WTTM.

    The paper's runs have no cross-entropy term. If the study has no such runs, those with it are drawn.
    """
    matching = [method for method in readings.methods if method.kind in ("ttm", "wttm")]
    alone = [method for method in matching if method.supervised is False]
    met = Gathered()
    plots = _by_epoch(readings, alone or matching, "kl_to_target", met, _divergence_order)
    how = (
        "Mean KL D(p_T‖q) between the transformed teacher and the student over the training samples of each epoch, "
        "taken while training."
    )
    with_labels = "" if alone or not plots else "These runs have a cross-entropy term, which the paper's leave out."
    return Picture(
        kind="divergence",
        number=2,
        title="Distance to the transformed teacher",
        across="Epoch",
        up="D(p_T‖q) (nats)",
        plots=plots,
        caption=joined(how, _bands(plots), with_labels, met.words()),
        pending=met.pending,
    )


def _by_epoch(
    readings: Readings,
    methods: Sequence[Method],
    key: str,
    met: Gathered,
    judge: Callable[[Subject, Sequence[Curve]], str],
) -> list[Plot]:
    """Return a panel for each pair that has curves; ``judge`` says what they show."""
    plots = []
    for pair in readings.pairs:
        curves = [Curve(method, line) for method in methods if (line := _line(pair, method, key, met))]
        if curves:
            lines = [curve.line for curve in curves]
            plots.append(Plot(name=pair.name, lines=lines, statement=f"{pair.name}: {judge(pair, curves)}"))
    return plots


def _line(pair: Subject, method: Method, key: str, met: Gathered) -> Line | None:
    """Return mean and deviation over the epochs that all finished runs have: a mean over changing runs would jump."""
    finished = [(run, curve) for run in pair.of(method.name) if (curve := points(run, "train", key))]
    curves = [curve for _, curve in finished]
    shared = sorted(set.intersection(*map(set, curves))) if curves else []
    if shared:
        met.meet(run for run, _ in finished)
    loose = []
    for run in pair.of(method.name, finished=False):
        curve = points(run, "train", key)
        # Epochs without the number mean that the method has none, not that the run is behind.
        if curve or not run.epochs:
            met.wait_for(run, method, pair.name, drawn=bool(curve))
        if curve:
            loose.append(curve)
    if not shared and not loose:
        return None
    columns = [[curve[x] for curve in curves] for x in shared]
    return Line(
        label=method.label,
        look=method.look,
        x=[*map(float, shared)],
        y=[mean(column) or 0.0 for column in columns],
        spread=[deviation(column) or 0.0 for column in columns] if len(curves) > 1 else None,
        n=len(curves) if shared else 0,
        loose=loose,
    )


def _bands(plots: Sequence[Plot]) -> str:
    """Explain lines and bands, if they cover more than one run."""
    if not any(line.spread for plot in plots for line in plot.lines):
        return ""
    return "Line: mean over seeds; band: ± one sample standard deviation."


def _ends(curves: Sequence[Curve], symbol: str) -> str:
    """Say where the means end."""
    ended = [curve for curve in curves if curve.line.n]
    if not ended:
        return "no run has finished."
    ends = {line.x[-1] for _, line in ended}
    each = []
    for method, line in ended:
        spread = "" if line.spread is None else f" ± {line.spread[-1]:.3f}"
        at = "" if len(ends) == 1 else f" at epoch {line.x[-1]:g}"
        each.append(f"{line.y[-1]:.3f}{spread} with {method.label}{at} (n = {line.n})")
    when = f"at epoch {ends.pop():g} " if len(ends) == 1 else ""
    return f"{when}{symbol} in nats is {'; '.join(each)}."


def _chosen(curves: Sequence[Curve], kind: str, *, supervised: bool, temperature: float | None = None) -> Curve | str:
    """Return the method for a role in the paper's figure, or say why there is none."""
    fit = [curve for curve in curves if curve.method.kind == kind and curve.method.supervised in (supervised, None)]
    done = [curve for curve in fit if curve.line.n]
    if len(done) > 1 and temperature is not None:
        done = [curve for curve in done if curve.method.is_kd_at(temperature)] or done
    if len(done) > 1:
        done = [curve for curve in done if curve.method.name == kind] or done
    if not done:
        return f"no finished run of {kind.upper()}"
    return done[0] if len(done) == 1 else f"several methods are {kind.upper()}"


def _entropy_order(pair: Subject, curves: Sequence[Curve]) -> str:
    """Say whether KD < TTM <= WTTM at the last epoch, separately for each weight that TTM gives to the labels."""
    weights = [
        argument(pair.of(method.name), method.kind, "supervised") if method.kind in ("ttm", "wttm") else None
        for method, _ in curves
    ]
    scales = {weight for weight in weights if weight is not None}
    if len(scales) < 2:
        return f"{_ends(curves, 'H(q)')} {_order_of(pair, curves)}"
    orders = []
    for scale in sorted(filter(None, scales), reverse=True):
        at_scale = [curve for curve, weight in zip(curves, weights, strict=True) if weight in (None, scale)]
        orders.append(f"With cross-entropy at {scale:g}: {_order_of(pair, at_scale)}")
    return " ".join([_ends(curves, "H(q)"), *orders])


def _order_of(pair: Subject, curves: Sequence[Curve]) -> str:
    order = "The paper's order KD < TTM <= WTTM"
    ttm = _chosen(curves, "ttm", supervised=True)
    gamma = None if isinstance(ttm, str) else argument(pair.of(ttm.method.name), "ttm", "gamma")
    kd = _chosen(curves, "kd", supervised=True, temperature=1 / gamma if gamma else None)
    wttm = _chosen(curves, "wttm", supervised=True)
    if isinstance(kd, str) or isinstance(ttm, str) or isinstance(wttm, str):
        return f"{order} cannot be judged: {', '.join(why for why in (kd, ttm, wttm) if isinstance(why, str))}."
    if len({curve.line.x[-1] for curve in (kd, ttm, wttm)}) > 1:
        return f"{order} cannot be judged: they were trained for different numbers of epochs."
    first, second = kd.line.y[-1] < ttm.line.y[-1], ttm.line.y[-1] <= wttm.line.y[-1]
    if first and second:
        return f"{order} appears."
    holds = f"KD < TTM {'holds' if first else 'does not hold'}, TTM <= WTTM {'holds' if second else 'does not hold'}"
    return f"{order} does not appear: {holds}."


def _divergence_order(pair: Subject, curves: Sequence[Curve]) -> str:
    """Say whether WTTM ends below TTM."""
    supervised = not any(method.supervised is False for method, _ in curves)
    ttm, wttm = (_chosen(curves, kind, supervised=supervised) for kind in ("ttm", "wttm"))
    ends = _ends(curves, "D(p_T‖q)")
    undecided = f"{ends} Whether WTTM ends below TTM, as in the paper, cannot be judged:"
    if isinstance(ttm, str) or isinstance(wttm, str):
        return f"{undecided} {', '.join(why for why in (ttm, wttm) if isinstance(why, str))}."
    if ttm.line.x[-1] != wttm.line.x[-1]:
        return f"{undecided} they were trained for different numbers of epochs."
    gammas = [argument(pair.of(method.name), method.kind, "gamma") for method, _ in (ttm, wttm)]
    if gammas[0] != gammas[1]:
        return f"{undecided} their exponents differ, so their targets do."
    if wttm.line.y[-1] < ttm.line.y[-1]:
        return f"{ends} WTTM ends below TTM, as in the paper."
    return f"{ends} WTTM does not end below TTM, unlike in the paper."


def _matched(readings: Readings) -> str:
    """Say what is easily overlooked if TTM's beta is matched to KD's lambda."""
    kds, ttms = ([method for method in readings.methods if method.kind == kind] for kind in ("kd", "ttm"))
    for pair, kd, ttm in product(readings.pairs, kds, ttms):
        names = ("weight", "supervised", "temperature")
        weight, labels, temperature = (argument(pair.of(kd.name), "kd", name) for name in names)
        beta, whole = (argument(pair.of(ttm.name), "ttm", name) for name in ("beta", "supervised"))
        if not weight or not labels or not temperature or not beta or whole != 1:
            continue
        gamma = argument(pair.of(ttm.name), "ttm", "gamma") or 0
        if math.isclose(gamma * temperature, 1, rel_tol=1e-3) and math.isclose(
            weight / labels * temperature, beta, rel_tol=1e-3
        ):
            scaled = "" if labels == 1 else f"{1 / labels:g} times "
            too = ", so the two differ in scale too" if scaled else ""
            return f"{ttm.label}, is matched to {kd.label}: TTM's loss is then {scaled}KD's plus the entropy term{too}."
    return ""
