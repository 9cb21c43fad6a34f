"""Figures 1 and 2 of the paper: the student's entropy and its distance to the transformed teacher, by epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tutelage.report.reading import deviation, mean, points
from tutelage.studies.paper_records import Gathered, Method, Readings, argument
from tutelage.studies.paper_values import Line, Picture, Plot


def entropy(readings: Readings) -> Picture:
    """Figure 1: mean Shannon entropy H(q) of the student's output by epoch, for every method of the study."""
    met = Gathered()
    plots = _by_epoch(readings, list(readings.methods.values()), "entropy", met, _entropy_order)
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
        caption=" ".join(filter(None, (how, _bands(plots), met.words(), _matched(readings)))),
        pending=tuple(met.pending),
    )


def divergence(readings: Readings) -> Picture:
    """Figure 2: mean KL to the transformed teacher by epoch, TTM against WTTM.

    The paper's runs have no cross-entropy term. Where the study has none of that sort, those with it are drawn.
    """
    matching = [one for one in readings.methods.values() if one.kind in ("ttm", "wttm")]
    alone = [one for one in matching if one.supervised is False]
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
        caption=" ".join(filter(None, (how, _bands(plots), with_labels, met.words()))),
        pending=tuple(met.pending),
    )


class Last(NamedTuple):
    """A method with its curve on one pair."""

    method: Method
    line: Line


Judge = Callable[[Readings, str, Sequence[Last]], str]
"""Says what the curves of a pair show."""


def _by_epoch(readings: Readings, methods: Sequence[Method], key: str, met: Gathered, judge: Judge) -> tuple[Plot, ...]:
    plots = []
    for pair in readings.subjects:
        found = [Last(method, line) for method in methods if (line := _line(readings, pair, method, key, met))]
        if found:
            said = f"{pair}: {judge(readings, pair, found)}"
            plots.append(Plot(pair, lines=tuple(line for _, line in found), said=said))
    return tuple(plots)


def _line(readings: Readings, pair: str, method: Method, key: str, met: Gathered) -> Line | None:
    """Mean and deviation over the epochs that all finished runs have: a mean of changing members would jump."""
    finished = [(run, found) for run in readings.of(pair, method.name) if (found := points(run, "train", key))]
    curves = [found for _, found in finished]
    shared = sorted(set.intersection(*map(set, curves))) if curves else []
    if shared:
        met.meet(run for run, _ in finished)
    loose = []
    for run in readings.of(pair, method.name, finished=False):
        found = points(run, "train", key)
        # Epochs without the number mean that the method has none, not that the run is behind.
        if found or not run.epochs:
            met.wait_for(run, method, pair, drawn=bool(found))
        if found:
            loose.append(found)
    if not shared and not loose:
        return None
    columns = [[curve[x] for curve in curves] for x in shared]
    return Line(
        label=method.label,
        look=method.look,
        x=tuple(map(float, shared)),
        y=tuple(mean(column) or 0.0 for column in columns),
        spread=tuple(deviation(column) or 0.0 for column in columns) if len(curves) > 1 else None,
        n=len(curves) if shared else 0,
        loose=tuple(loose),
    )


def _bands(plots: Sequence[Plot]) -> str:
    """Say what lines and bands are, where they are more than a run's own."""
    if not any(line.spread for plot in plots for line in plot.lines):
        return ""
    return "Line: mean over seeds; band: ± one sample standard deviation."


def _ends(found: Sequence[Last], symbol: str) -> str:
    """Say where the means end."""
    ended = [one for one in found if one.line.n]
    if not ended:
        return "no run has finished."
    ends = {one.line.x[-1] for one in ended}
    each = []
    for method, line in ended:
        spread = "" if line.spread is None else f" ± {line.spread[-1]:.3f}"
        at = "" if len(ends) == 1 else f" at epoch {line.x[-1]:g}"
        each.append(f"{line.y[-1]:.3f}{spread} with {method.label}{at} (n = {line.n})")
    when = f"at epoch {ends.pop():g} " if len(ends) == 1 else ""
    return f"{when}{symbol} in nats is {'; '.join(each)}."


def _chosen(found: Sequence[Last], kind: str, *, supervised: bool, temperature: float | None = None) -> Last | str:
    """Return the method that plays a part in the paper's figure, or say why none can."""
    fit = [one for one in found if one.method.kind == kind and one.method.supervised in (supervised, None)]
    done = [one for one in fit if one.line.n]
    if len(done) > 1 and temperature is not None:
        done = [one for one in done if one.method.is_kd_at(temperature)] or done
    if len(done) > 1:
        done = [one for one in done if one.method.name == kind] or done
    if not done:
        return f"no finished run of {kind.upper()}"
    return done[0] if len(done) == 1 else f"several methods are {kind.upper()}"


def _entropy_order(readings: Readings, pair: str, found: Sequence[Last]) -> str:
    """Say whether KD < TTM <= WTTM at the last epoch; apart for each weight that TTM gives to the labels."""
    weights: dict[float, list[Last]] = {}
    others = []
    for one in found:
        weight = None
        if one.method.kind in ("ttm", "wttm"):
            weight = argument(readings.of(pair, one.method.name), one.method.kind, "supervised")
        if weight is None:
            others.append(one)
        else:
            weights.setdefault(weight, []).append(one)
    said = _ends(found, "H(q)")
    if len(weights) < 2:
        return f"{said} {_order_of(readings, pair, found)}"
    each = [
        f"With cross-entropy at {weight:g}: " + _order_of(readings, pair, [*others, *weights[weight]])
        for weight in sorted(weights, reverse=True)
        if weight
    ]
    return " ".join([said, *each])


def _order_of(readings: Readings, pair: str, found: Sequence[Last]) -> str:
    order = "KD < TTM <= WTTM"
    ttm = _chosen(found, "ttm", supervised=True)
    gamma = None if isinstance(ttm, str) else argument(readings.of(pair, ttm.method.name), "ttm", "gamma")
    kd = _chosen(found, "kd", supervised=True, temperature=1 / gamma if gamma else None)
    wttm = _chosen(found, "wttm", supervised=True)
    if isinstance(kd, str) or isinstance(ttm, str) or isinstance(wttm, str):
        why = ", ".join(one for one in (kd, ttm, wttm) if isinstance(one, str))
        return f"The paper's order {order} cannot be judged: {why}."
    if len({one.line.x[-1] for one in (kd, ttm, wttm)}) > 1:
        return f"The paper's order {order} cannot be judged: they were trained for different numbers of epochs."
    first, second = kd.line.y[-1] < ttm.line.y[-1], ttm.line.y[-1] <= wttm.line.y[-1]
    if first and second:
        return f"The paper's order {order} appears."
    holds = f"KD < TTM {'holds' if first else 'does not hold'}, TTM <= WTTM {'holds' if second else 'does not hold'}"
    return f"The paper's order {order} does not appear: {holds}."


def _divergence_order(readings: Readings, pair: str, found: Sequence[Last]) -> str:
    """Say whether WTTM ends below TTM."""
    supervised = not any(one.method.supervised is False for one in found)
    ttm, wttm = (_chosen(found, kind, supervised=supervised) for kind in ("ttm", "wttm"))
    said = _ends(found, "D(p_T‖q)")
    open_ = "Whether WTTM ends below TTM, as in the paper, cannot be judged:"
    if isinstance(ttm, str) or isinstance(wttm, str):
        return f"{said} {open_} {', '.join(one for one in (ttm, wttm) if isinstance(one, str))}."
    if ttm.line.x[-1] != wttm.line.x[-1]:
        return f"{said} {open_} they were trained for different numbers of epochs."
    gammas = [argument(readings.of(pair, one.method.name), one.method.kind or "", "gamma") for one in (ttm, wttm)]
    if gammas[0] != gammas[1]:
        return f"{said} {open_} their exponents differ, so their targets do."
    if wttm.line.y[-1] < ttm.line.y[-1]:
        return f"{said} WTTM ends below TTM, as in the paper."
    return f"{said} WTTM does not end below TTM, unlike in the paper."


def _matched(readings: Readings) -> str:
    """Say what is easily overlooked where TTM's beta is matched to KD's lambda."""
    for pair in readings.subjects:
        for kd in (one for one in readings.methods.values() if one.kind == "kd"):
            for ttm in (one for one in readings.methods.values() if one.kind == "ttm"):
                of_kd, of_ttm = readings.of(pair, kd.name), readings.of(pair, ttm.name)
                weight, labels, temperature = (
                    argument(of_kd, "kd", name) for name in ("weight", "supervised", "temperature")
                )
                beta, whole = (argument(of_ttm, "ttm", name) for name in ("beta", "supervised"))
                if not weight or not labels or not temperature or not beta or whole != 1:
                    continue
                if math.isclose(weight / labels * temperature, beta, rel_tol=1e-3):
                    return (
                        f"β of TTM is matched to λ of KD: TTM's loss is then {1 / labels:g} times KD's plus the "
                        "entropy term, so the two differ in scale too."
                    )
    return ""
