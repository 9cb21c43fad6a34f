"""What the networks cost: pooled over runs, and as a table beside their accuracy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import median, median_low
from typing import Any, NamedTuple

from tutelage.report.reading import Run, number, section, text
from tutelage.report.table import MISSING, Row, Table, judged, si


class Cost(NamedTuple):
    """What a network costs, pooled over its runs: medians of times, and of what else differs between them."""

    parameters: float | None
    flops: float | None
    file_bytes: float | None
    latency_ms: float | None
    throughput: float | None
    batch: float | None
    latency_n: float | None  # forward passes that were timed, of all runs
    place: str  # where it was measured, in words


class Quantity(NamedTuple):
    """One of the quantities of a `Cost`."""

    key: str
    heading: str
    unit: str  # of what is written, with the prefix of a thousand where it has one
    less: str  # what less of it is called
    more: str


PARAMETERS = Quantity("parameters", "Parameters", "", "fewer", "more")
FLOPS = Quantity("flops", "FLOPs", "", "fewer", "more")
SIZE = Quantity("file_bytes", "File", "B", "smaller", "larger")
LATENCY = Quantity("latency_ms", "Latency (ms)", "", "faster", "slower")
THROUGHPUT = Quantity("throughput", "Throughput (/s)", "", "less", "more")
QUANTITIES = (PARAMETERS, FLOPS, SIZE, LATENCY, THROUGHPUT)


def place_of(run: Run) -> str | None:
    """Say where a run's networks were measured; ``None`` where they were not."""
    if not run.finished or not run.costs:
        return None
    device, threads = text(run.costs.get("device")) or "unknown device", number(run.costs.get("threads"))
    shape = run.costs.get("input")
    parts = [
        device,
        text(run.costs.get("hardware")),
        None if threads is None or device != "cpu" else f"{threads:.0f} thread{'' if threads == 1 else 's'}",
        text(run.costs.get("precision")),
        f"input {' x '.join(map(str, shape))}" if isinstance(shape, list) and shape else None,
    ]
    return ", ".join(filter(None, parts))


def usual_place(runs: Iterable[Run]) -> str | None:
    """Return the place in which the most runs were measured: times of different ones are not comparable."""
    places = Counter(filter(None, map(place_of, runs)))
    return places.most_common(1)[0][0] if places else None


def pooled(runs: Iterable[Run], who: str, place: str | None) -> Cost | None:
    """Return what ``student`` or ``teacher`` of runs costs that were measured in a place."""
    found = [cost for run in runs if place and place_of(run) == place and (cost := section(run.costs, who))]
    if not found or len({str(cost.get("network")) for cost in found}) > 1:
        return None
    numbers = {
        key: [v for cost in found if (v := number(cost.get(key))) is not None and v >= 0] for key in Cost._fields
    }
    middle: dict[str, Any] = {key: median(values) if values else None for key, values in numbers.items()}
    # Runs of one process share what it measured: that is counted once.
    timed = {repr(cost): number(cost.get("latency_n")) or 0 for cost in found}
    # A throughput between those of two batches would be of a batch that none had.
    middle["throughput"] = median_low(numbers["throughput"]) if numbers["throughput"] else None
    had = (number(cost.get("batch")) for cost in found if number(cost.get("throughput")) == middle["throughput"])
    return Cost(**middle | {"latency_n": sum(timed.values()) or None, "batch": next(had, None), "place": str(place)})


def times(cost: Cost | None, teacher: Cost | None, of: Quantity) -> float | None:
    """Return how many times better than its teacher a network is: less of a cost, or more throughput."""
    ours, theirs = (None if each is None else getattr(each, of.key) for each in (cost, teacher))
    if not ours or not theirs:
        return None
    return ours / theirs if of is THROUGHPUT else theirs / ours


def in_words(cost: Cost | None, teacher: Cost | None, of: Quantity) -> str:
    """Write a ratio to the teacher: ``7.3 times fewer``; nothing where it is not known."""
    ratio = times(cost, teacher, of)
    if ratio is None:
        return ""
    worse = ratio < 1
    return f"{_ratio(1 / ratio if worse else ratio)} times {of.more if worse != (of is THROUGHPUT) else of.less}"


def amount(value: float | None, of: Quantity) -> str:
    """Write a quantity to three digits, with a prefix for thousands; a latency without.

    Example:
        >>> amount(269722, PARAMETERS), amount(1.1e6, SIZE), amount(0.4123, LATENCY), amount(None, FLOPS)
        ('270 k', '1.10 MB', '0.412', '–')
    """
    if value is None or of is not LATENCY:
        return si(value, of.unit)
    return f"{value:{'.0f' if value >= 99.95 else '#.3g'}}"


def _ratio(value: float) -> str:
    return f"{value:,.0f}" if value >= 99.5 else f"{value:.2g}" if value >= 9.95 else f"{value:.1f}"


HEADINGS = tuple(of.heading for of in QUANTITIES)


def cost_table(results: Sequence[Any]) -> Table | None:
    """Return the table of accuracy and cost of `results.rows`; ``None`` where nothing was measured."""
    costly = [row for row in results if row.cost is not None]
    if not costly:
        return None
    teacher = next((row.cost for row in results if row.role == "teacher"), None)
    by = costly[0].measure
    bounded = any(row.interval for row in results)
    lines = []
    for row in results:
        cells = [_cell(row.cost, None if row.role == "teacher" else teacher, of) for of in QUANTITIES]
        bounds = [interval(row)] if bounded else []
        named = f"{row.name} ({row.role})" if row.role != "student" and row.role != row.name else row.name
        exact = {of.key.replace("_", "-"): row.cost and getattr(row.cost, of.key) for of in QUANTITIES}
        full = [named, judged(by, row.value), *bounds, *cells]
        # On a terminal roles, batches and ratios stand under what they belong to.
        short = [cell.replace(" to ", "–").replace(" at ", "\nat ").replace(" (", "\n(") for cell in full[1:]]
        short = [named.replace(" (", "\n("), *short]
        lines.append(Row(cells=full, short=short, kind=row.role, exact=exact))
    headings = ["Network", by.heading(by.title), *(["95\u00a0% interval"] if bounded else []), *HEADINGS]
    size = headings.index("File")
    return Table(headings=headings, rows=lines, notes=_notes(results, teacher), extra=[size] if bounded else [])


def _cell(cost: Cost | None, teacher: Cost | None, of: Quantity) -> str:
    if cost is None:
        return MISSING
    value = getattr(cost, of.key)
    written = amount(value, of)
    if of is THROUGHPUT and value is not None and cost.batch:
        written += f" at {cost.batch:.0f}"
    ratio = times(cost, teacher, of)
    return (
        written if ratio is None else f"{written} ({_ratio(ratio)}×)" if ratio >= 0.1 else f"{written} ({ratio:.2g}×)"
    )


def interval(row: Any) -> str:
    """Write the interval of a result's accuracy in percent."""
    return MISSING if row.interval is None else " to ".join(f"{100 * bound:.1f}" for bound in row.interval)


def _notes(results: Sequence[Any], teacher: Cost | None) -> list[str]:
    costly = [row.cost for row in results if row.cost is not None]
    passes = sorted({int(cost.latency_n) for cost in costly if cost.latency_n})
    median_of = f" of {' to '.join(map(str, dict.fromkeys((passes[0], passes[-1]))))} passes" if passes else ""
    said = [
        f"Measured on {costly[0].place}. Latency is of one sample, the median{median_of}; throughput is in samples a "
        "second, at the best batch that was tried. FLOPs are of one sample, a multiplication and an addition being two."
    ]
    if teacher is not None and any(row.role != "teacher" and row.cost for row in results):
        said.append("In brackets: how many times less than the teacher it is, or how many times its throughput.")
    return [*said, *interval_notes(results)]


def interval_notes(results: Sequence[Any]) -> list[str]:
    """Say what the intervals are."""
    samples = next((row.samples for row in results if row.interval), None)
    if samples is None:
        return []
    return [
        f"95 % interval: Wilson's, what an accuracy on {samples:,} samples leaves open of that on others; "
        "the spread over seeds is not in it. That two overlap is no test: the networks answered the same samples."
    ]
