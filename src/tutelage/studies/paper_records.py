"""Figures 1 to 4 of the paper as values and words, from a study's records: nothing is drawn here.

Which method a run is of is read from its recorded objective, not from the name that the study gives it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tutelage import records
from tutelage.report.figures import Style, style
from tutelage.report.reading import Points, Run, deviation, mapping, mean, number, points, read_run, section
from tutelage.report.reading import text as string

GAMMAS = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0)
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


@dataclass(frozen=True)
class Method:
    """What the runs under one name of a study have in common.

    Attributes:
        name: in the study.
        kind: ``ce``, ``ls`` (label smoothing), ``kd``, ``ttm``, ``wttm``; none for anything else.
        supervised: whether a cross-entropy term takes part; none where that is not recorded.
        level: the share of label smoothing, KD's temperature, or gamma; none where the runs differ in it.
        label: for people, different from every other method's.
        look: the same in all figures.
    """

    name: str
    kind: str | None
    supervised: bool | None
    level: float | None
    label: str
    look: Style

    def is_kd_at(self, temperature: float) -> bool:
        """Whether it is KD at a temperature."""
        return self.kind == "kd" and self.level is not None and math.isclose(self.level, temperature)


class StudyRun(NamedTuple):
    """A run with its place in the study."""

    pair: str
    method: str
    run: Run


@dataclass(frozen=True)
class Readings:
    """A study's records.

    Attributes:
        title: of the study.
        kinds: the figures that it asks for.
        pairs: in the study's order.
        methods: by name, those that have runs.
        runs: every run.
        departures: how it was run otherwise than published.
    """

    title: str
    kinds: tuple[str, ...]
    pairs: tuple[str, ...]
    methods: Mapping[str, Method]
    runs: tuple[StudyRun, ...]
    departures: tuple[str, ...] = ()

    def of(self, pair: str, method: str, *, finished: bool = True) -> tuple[Run, ...]:
        """Return a method's finished runs on a pair, or those that are not."""
        return tuple(r for p, m, r in self.runs if p == pair and m == method and r.finished == finished)


@dataclass
class Gathered:
    """What was met on the way, for the caption."""

    sources: dict[str, None] = field(default_factory=dict)
    lengths: set[int] = field(default_factory=set)
    counts: set[int] = field(default_factory=set)
    pending: list[str] = field(default_factory=list)
    thin: int = 0
    left_out: int = 0

    def meet(self, runs: Iterable[Run]) -> None:
        """Note finished runs that a figure shows."""
        runs = list(runs)
        self.counts.add(len(runs))
        for run in runs:
            self.lengths.add(len(run.epochs))
            if source := string(section(run.manifest, "data").get("source")):
                self.sources[printable(source)] = None

    def wait_for(self, run: Run, method: Method, pair: str, *, drawn: bool) -> None:
        """Note a run that is not finished."""
        self.thin += drawn
        self.left_out += not drawn
        planned = number(section(run.manifest, "recipe").get("epochs"))
        done = f"{len(run.epochs)} epochs done" if planned is None else f"{len(run.epochs)} of {planned:g} epochs done"
        seed = "" if run.seed is None else f", seed {run.seed}"
        fate = "thin line, in no mean" if drawn else "left out"
        self.pending.append(f"{pair}, {method.label}{seed}: {run.status}, {done}; {fate}")

    def words(self) -> str:
        """Say what was run, and what is missing."""
        parts = []
        if self.counts:
            said = ", ".join(self.sources) or "not recorded"
            least, most = min(self.counts), max(self.counts)
            seeds = f"n = {most} {_plural(most, 'seed')}" if least == most else f"n = {least} to {most} seeds"
            parts.append(f"Data: {said}; {_range(self.lengths)}; {seeds}.")
        if self.thin:
            verb = "is" if self.thin == 1 else "are"
            parts.append(
                f"{self.thin} {_plural(self.thin, 'run')} {verb} not finished and drawn as far as recorded, as a "
                "thin line that ends in a cross, in no mean."
            )
        if self.left_out:
            verb = "is" if self.left_out == 1 else "are"
            parts.append(f"{self.left_out} {_plural(self.left_out, 'run')} {verb} not finished and left out.")
        return " ".join(parts)


def _plural(count: int, word: str) -> str:
    return word if count == 1 else f"{word}s"


def _range(lengths: set[int]) -> str:
    least, most = min(lengths), max(lengths)
    return f"{most} {_plural(most, 'epoch')}" if least == most else f"{least} to {most} epochs"


# Reading


def read_study(folder: Path) -> Readings:
    """Read a study's folder with the runs that it names; what is missing of a run is left empty.

    Raises:
        FileNotFoundError: the folder holds no study.
        ValueError: a record is not JSON of the right kind.
    """
    study = mapping(folder / records.STUDY)
    if study is None:
        raise FileNotFoundError(
            f"folder: expected a study's folder, with {records.STUDY} in it, got {str(folder)!r}; "
            "type the folder that `tutelage study` printed"
        )
    runs = []
    for cell in study.get("cells") or ():
        seed = cell.get("seed")
        pair, name = printable(cell.get("pair", "")), printable(cell.get("method", ""))
        run = read_run(folder / str(cell.get("folder", "")), entry=name, seed=seed if isinstance(seed, int) else None)
        runs.append(StudyRun(pair, name, run))
    pairs = dict.fromkeys([*map(printable, study.get("pairs") or ()), *(pair for pair, _, _ in runs)])
    named = dict.fromkeys([*map(printable, study.get("methods") or ()), *(name for _, name, _ in runs)])
    present = {name for _, name, _ in runs}
    return Readings(
        title=printable(string(study.get("title")) or string(study.get("name")) or folder.resolve().name),
        kinds=tuple(map(str, study.get("figures") or ())),
        pairs=tuple(pairs),
        methods=_methods({n: [r for _, m, r in runs if m == n] for n in named if n in present}),
        runs=tuple(runs),
        departures=tuple(map(str, study.get("departures") or ())),
    )


def printable(name: object) -> str:
    """Return a name without what cannot be printed or written into XML."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in str(name)).split())


def _methods(runs: Mapping[str, Sequence[Run]]) -> dict[str, Method]:
    found = [_method(name, own, style(place)) for place, (name, own) in enumerate(runs.items())]
    labels = [method.label for method in found]
    return {
        one.name: one
        if labels.count(one.label) == 1
        else Method(one.name, one.kind, one.supervised, one.level, f"{one.label} ({one.name})", one.look)
        for one in found
    }


def _method(name: str, runs: Sequence[Run], look: Style) -> Method:
    """Tell by the recorded objectives which method it is."""
    told = [run for run in runs if run.manifest.get("objective")]
    kinds = {_kind(presets(run)) for run in told}
    kind = kinds.pop() if len(kinds) == 1 else None
    argument = {"ls": "label_smoothing", "kd": "temperature", "ttm": "gamma", "wttm": "gamma"}.get(kind or "", "")
    levels = {number(args.get(argument)) for run in told for args in presets(run).values() if argument in args}
    level = levels.pop() if len(levels) == 1 else None
    supervised = {bool(terms(run).get("ce")) for run in told if terms(run)}
    with_labels = supervised.pop() if len(supervised) == 1 else None
    return Method(name, kind, with_labels, level, _label(name, kind, level, with_labels), look)


def _label(name: str, kind: str | None, level: float | None, supervised: bool | None) -> str:
    if kind is None:
        return name
    if kind == "ce":
        return "cross-entropy"
    if kind == "ls":
        return "label smoothing" if level is None else f"label smoothing {level:g}"
    sign = "T" if kind == "kd" else "γ"
    label = kind.upper() if level is None else f"{kind.upper()}, {sign} = {level:g}"
    return f"{label}, no cross-entropy" if supervised is False else label


def _kind(named: Mapping[str, Mapping[str, Any]]) -> str | None:
    matching = [name for name in named if name not in ("cross_entropy", "ce")]
    if not matching:
        smoothed = any(number(args.get("label_smoothing")) for args in named.values())
        return ("ls" if smoothed else "ce") if named else None
    if any(args.get("logits", "raw") != "raw" for args in named.values()):
        return None  # KD of standardised logits is another method than KD.
    return matching[0] if matching in (["kd"], ["ttm"], ["wttm"]) else None


def _last_stage(value: object) -> object:
    """The manifest holds one entry a stage; the last one made the student."""
    return value[-1] if isinstance(value, list) and value and isinstance(value[0], list) else value


def presets(run: Run) -> dict[str, Mapping[str, Any]]:
    """Return the presets of a run's last stage with their arguments; without these where Python objects made it."""
    last = _last_stage(run.manifest.get("objective"))
    found: dict[str, Mapping[str, Any]] = {}
    for item in last if isinstance(last, list) else [last]:
        if isinstance(item, str):
            found[item] = {}
        elif isinstance(item, Mapping):
            found |= {
                str(k): args if isinstance(args, Mapping) else {} for k, args in item.items() if k not in records.BESIDE
            }
    return found


def terms(run: Run) -> Mapping[str, Any]:
    """Return the weights of a run's last stage by term."""
    recorded = run.manifest.get("objective_terms")
    last = recorded[-1] if isinstance(recorded, list) and recorded else recorded
    return last if isinstance(last, Mapping) else {}


# By epoch


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
    for pair in readings.pairs:
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
            weight = _argument(readings.of(pair, one.method.name), one.method.kind, "supervised")
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
    gamma = None if isinstance(ttm, str) else _argument(readings.of(pair, ttm.method.name), "ttm", "gamma")
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
    gammas = [_argument(readings.of(pair, one.method.name), one.method.kind or "", "gamma") for one in (ttm, wttm)]
    if gammas[0] != gammas[1]:
        return f"{said} {open_} their exponents differ, so their targets do."
    if wttm.line.y[-1] < ttm.line.y[-1]:
        return f"{said} WTTM ends below TTM, as in the paper."
    return f"{said} WTTM does not end below TTM, unlike in the paper."


def _argument(runs: Iterable[Run], preset: str, name: str) -> float | None:
    """Return an argument of a preset that all runs have in common."""
    values = {number(presets(run).get(preset, {}).get(name)) for run in runs}
    return values.pop() if len(values) == 1 else None


def _matched(readings: Readings) -> str:
    """Say what is easily overlooked where TTM's beta is matched to KD's lambda."""
    for pair in readings.pairs:
        for kd in (one for one in readings.methods.values() if one.kind == "kd"):
            for ttm in (one for one in readings.methods.values() if one.kind == "ttm"):
                of_kd, of_ttm = readings.of(pair, kd.name), readings.of(pair, ttm.name)
                weight, labels, temperature = (
                    _argument(of_kd, "kd", name) for name in ("weight", "supervised", "temperature")
                )
                beta, whole = (_argument(of_ttm, "ttm", name) for name in ("beta", "supervised"))
                if not weight or not labels or not temperature or not beta or whole != 1:
                    continue
                if math.isclose(weight / labels * temperature, beta, rel_tol=1e-3):
                    return (
                        f"β of TTM is matched to λ of KD: TTM's loss is then {1 / labels:g} times KD's plus the "
                        "entropy term, so the two differ in scale too."
                    )
    return ""


# Over the test samples


def histogram(readings: Readings) -> Picture:
    """Figure 3: histograms of H(q) over the test samples: cross-entropy, label smoothing, KD at its temperatures."""
    methods = [one for one in readings.methods.values() if one.kind in ("ce", "ls", "kd")]
    methods.sort(key=lambda one: ("ce", "ls", "kd").index(one.kind or ""))
    met = Gathered()
    plots = []
    sets: dict[str, None] = {}
    uneven = False
    for pair in readings.pairs:
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


# Functions


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


# All of them

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
