"""Rewrite the tables of results.md from the records in benchmarks/results.

    python -m docs.results_tables

It shares its reading with `docs.choosing_tables`. A new comparison or study in benchmarks/results appears by itself;
another kind of record needs a function among `FURTHER`.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml
from docs.choosing_tables import (
    EMBEDDINGS,
    EXPERIMENTS,
    LANGUAGE,
    RESULTS,
    STUDIES,
    differences,
    interval,
    link,
    record,
    summed,
    values,
    written,
)
from scipy.stats import t

from tutelage import records
from tutelage.report.matched import matched_notes
from tutelage.report.paired import p_value
from tutelage.report.statistics import paired_t
from tutelage.report.table import Table
from tutelage.studies.scoreboard import PUBLISHED, Standing, tables
from tutelage.studies.study_table import z_score

PAGE = Path(__file__).with_name("results.md")
COMPARISONS = (*EXPERIMENTS, *LANGUAGE, *EMBEDDINGS)
NO_ACCURACY = ("imagenet-sample",)
"""Studies judged on their training samples, as their READMEs say."""
TRIAL = record("gpu-trial/trial.json")
PAIRED = (
    *(("cross_entropy", "kd"), ("kd", "ttm"), ("kd", "wttm"), ("weighted_kd", "wttm"), ("ttm", "wttm")),
    *(("cross_entropy", "ttm_1"), ("ttm_1", "ttm_075"), ("ttm_1", "wttm_09")),
    *(("cosine", "embedding_mse"), ("cosine", "similarities"), ("cosine", "both")),
)
"""Objectives of comparisons whose differences are shown, the second less the first."""


# Reading


def studies() -> Iterator[tuple[Path, dict[str, Any], list[dict[str, Any]]]]:
    """Yield each recorded study of accuracies: its folder, its record and its rows that have runs."""
    for path in sorted(RESULTS.rglob(records.STUDY)):
        folder = path.parent.relative_to(RESULTS)
        if folder.parts[0] not in NO_ACCURACY:
            rows = record(f"{folder}/table.json")["rows"]
            yield folder, record(f"{folder}/{records.STUDY}"), [row for row in rows if row["n"]]


def manifest_of(folder: Path, study: dict[str, Any]) -> dict[str, Any]:
    """Return the manifest of a study's first student that has one."""
    # A record may hold a study's folder in its pool's place.
    cells = (cell["folder"] for cell in study["cells"])
    paths = (RESULTS / folder / at / records.MANIFEST for cell in cells for at in (cell, cell.removeprefix("../")))
    return next(json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists())


def is_smoke_test(manifest: dict[str, Any]) -> bool:
    """Whether runs have a single epoch, of which the study's own table is enough."""
    return manifest["recipe"]["epochs"] == 1


def tested(found: Sequence[float]) -> list[str]:
    """Return the number of paired differences, their mean and deviation, the interval, p and how many are above 0."""
    above = f"{sum(value > 0 for value in found)} of {len(found)}"
    return [
        str(len(found)),
        summed(found, sign="+"),
        interval(found),
        p_value(paired_t(found, [0.0] * len(found))),
        above,
    ]


TESTED = ["n", "Mean", "95 % interval", "p", "Above 0"]


# Tables, each as rows of cells, the first of which is its head


def trial() -> Iterator[list[str]]:
    """The published schedule, outside of the package's loop."""
    yield ["Method", "Seeds (%)", "Accuracy (%)", "n", "95 % interval", "Published (%)", "Difference", "z"]
    table = yaml.safe_load((STUDIES / "table1.yaml").read_text(encoding="utf-8"))["methods"]
    for method, found in TRIAL["students"].items():
        published = table.get(method, {}).get("published", {}).get(TRIAL["pair"])
        against = ["–", "–", "–"]
        if published:
            difference = mean(found) - published["mean"]
            z, _ = z_score(difference, stdev(found), len(found), published["std"], published["n"])
            shown = f"{published['mean']:.2f} ± {published['std']:.2f} (n = {published['n']})"
            against = [shown, f"{difference:+z.2f}", f"{z:+z.2f}"]
        each = " ".join(f"{value:.2f}" for value in found)
        yield [f"`{method}`", each, *_result(found), *against]


def trial_differences() -> Iterator[list[str]]:
    """What of TTM's gain is what, in the trial."""
    study = yaml.safe_load((STUDIES / f"{TRIAL['study']}.yaml").read_text(encoding="utf-8"))
    yield ["Tests", "Difference (points)", *TESTED]
    asked = {"weight, temperature and method": ["ttm", "kd"], **study["differences"]}
    for tests, (first, second) in asked.items():
        if {first, second} <= TRIAL["students"].keys():
            both = zip(TRIAL["students"][first], TRIAL["students"][second], strict=True)
            yield [tests, f"`{first}` - `{second}`", *tested([one - other for one, other in both])]


def comparisons() -> Iterator[list[str]]:
    """How good the students of every comparison are."""
    yield ["Task", "Judged by", "Method", "Result", "n", "95 % interval"]
    for each in COMPARISONS:
        by = each.subject.measure
        for entry in each.subject.entries:
            result = _result(values(each.subject, entry))
            yield [link(each.name, each.folder), by.heading(by.title), f"`{entry}`", *result]


def paired() -> Iterator[list[str]]:
    """Differences by seed in every comparison and study."""
    yield ["Task", "Difference", "Matched", *TESTED]
    for each in COMPARISONS:
        subject = each.subject
        notes = " ".join(matched_notes([{entry: subject.objective(entry) for entry in subject.entries}]))
        same = re.findall(r"(\w+) is matched to (\w+):", notes)
        for first, second in PAIRED:
            if {first, second} <= set(subject.entries):
                matched = "yes" if (first, second) in same else "–"
                unit = subject.measure.steps or subject.measure.name
                names = f"`{second}` - `{first}` ({unit})"
                yield [each.name, names, matched, *tested(differences(subject, first, second))]
    for folder, study, _ in studies():
        found = record(f"{folder}/table.json").get("differences", [])
        for each in (each for each in found if each["values"]):
            names = f"`{each['first']}` - `{each['second']}` (points)"
            matched = "yes" if each["second"] == "kd_matched" else "–"
            yield [f"{study['name']}, {each['pair']}", names, matched, *tested(each["values"])]


def of_studies() -> Iterator[list[str]]:
    """Students of every recorded study, with the published value where the study states one."""
    yield ["Study", "Pair", "Method", "Accuracy (%)", "n", "95 % interval", "Published, whole schedule (%)"]
    for folder, study, rows in studies():
        if record(f"{folder}/table.json").get("scoreboard"):
            rows = [row for row in rows if row["method"] == "teacher"]
        name = link(study["name"], str(folder))
        if is_smoke_test(manifest_of(folder, study)):
            trained = len({row["method"] for row in rows} - {"teacher"})
            yield [name, ", ".join(study["pairs"]), f"{trained} methods, one epoch", "–", "1", "–", "–"]
            continue
        for row in rows:
            spread = "" if row["published_std"] is None else f" ± {row['published_std']:.2f}"
            published = "–" if row["published"] is None else f"{row['published']:.2f}{spread}"
            yield [name, row["pair"], f"`{row['method']}`", *_result(row["values"]), published]


BOARD = ["Method", "Accuracy (%)", "n", "95 % interval", "Less kd (points)", "Its interval", "p"]
BOARD += ["Chosen", "Validation (%)"]
"""Columns of a scoreboard; one of a pair without KD lacks three."""
PRINTED = ["Preset", "Published", "KD there", "Epoch", "Setting", "Table", "Source"]
"""Columns of what others published."""


def scoreboards() -> Iterator[list[str]]:
    """Every study with a search: of each pair the best mean first."""
    yield ["Study", "Pair", *BOARD]
    for folder, name, table in _boards():
        if table.caption != PUBLISHED:
            for row in table.rows:
                cells = dict(zip(table.headings, row.cells, strict=True))
                yield [link(name, str(folder)), table.caption, *(cells.get(heading, "–") for heading in BOARD)]


def published_elsewhere() -> Iterator[list[str]]:
    """What others published for the presets of the scoreboards, and of which epoch."""
    yield PRINTED
    rows = (row.cells for _, _, table in _boards() if table.caption == PUBLISHED for row in table.rows)
    yield from map(list, dict.fromkeys(map(tuple, rows)))  # Several studies have the same method.


def _boards() -> Iterator[tuple[Path, str, Table]]:
    for folder, study, _ in studies():
        found = [Standing(**each) for each in record(f"{folder}/table.json").get("scoreboard", ())]
        for table in tables(found, records.measure_named("accuracy")):
            yield folder, study["name"], table


ARMS = {"grid": "The grid's best", "auto": "Both `auto`", "fixed": "gamma fixed, share 3", "kd": "Usual KD"}
"""Settings that `benchmarks/dial.py` compares."""
DIFFERENCES = {
    "`auto` - grid": ("auto", "grid"),
    "`auto` - fixed": ("auto", "fixed"),
    "`auto` - KD": ("auto", "kd"),
    "grid - fixed": ("grid", "fixed"),
}
"""Pairs of them whose differences are shown, the first less the second."""


def dial_grid() -> Iterator[list[str]]:
    """The grid of each task, on the validation set."""
    tasks = record("dial/dial.json")["tasks"]
    points = [re.fullmatch(r"g(.+)_s(.+)", name).groups() for name in tasks[0]["grid"]]  # type: ignore[union-attr]
    shares = list(dict.fromkeys(share for _, share in points))
    yield ["Task", "Judged by", "gamma", *(f"{share} times" for share in shares)]
    for task in tasks:
        by = _measure(task)
        for gamma in dict.fromkeys(gamma for gamma, _ in points):
            found = (f"{task['grid'][f'g{gamma}_s{share}']:.2f}" for share in shares)
            yield [task["task"], by.heading(by.title), gamma, *found]
        if at_rate := task.get("grid_at_rate"):
            found = (f"{at_rate[f'g{points[0][0]}_s{share}']:.2f}" for share in shares)
            yield [f"{task['task']}, learning rate times {task['rate']}", by.heading(by.title), points[0][0], *found]


def _judged() -> Iterator[dict[str, Any]]:
    return (task for task in record("dial/dial.json")["tasks"] if task["arms"])


def dial() -> Iterator[list[str]]:
    """Each task with every setting."""
    yield ["Task", "Judged by", *ARMS.values(), "Chosen", "Found", "Seeds"]
    for task in _judged():
        by, arms = _measure(task), task["arms"]
        shares = task["chosen"].replace("_s", ", share ").replace("g", "gamma ", 1)
        found = {number: [each["ttm"][number] for each in arms["auto"]["found"]] for number in ("gamma", "beta")}
        ranges = (f"{name} {_range(numbers)}" for name, numbers in found.items())
        seeds = str(len(arms["auto"]["values"]))
        results = (summed(arms[arm]["values"]) for arm in ARMS)
        yield [task["task"], by.heading(by.title), *results, shares, ", ".join(ranges), seeds]


def dial_differences() -> Iterator[list[str]]:
    """What `auto` loses against a search, and gains against settings without one; the mean is over accuracies."""
    yield ["Task", "Difference", "Unit", *TESTED]
    of_points: dict[str, list[list[float]]] = {name: [] for name in DIFFERENCES}
    for task in _judged():
        by = _measure(task)
        for name, arms in DIFFERENCES.items():
            pairs = zip(*(task["arms"][arm]["values"] for arm in arms), strict=True)
            # Of a perplexity less is better: what it is lower by, in percent.
            found = [100 * (1 - one / other) if by.lower_is_better else one - other for one, other in pairs]
            of_points[name] += [] if by.lower_is_better else [found]
            yield [task["task"], name, "%" if by.lower_is_better else "points", *tested(found)]
    for name, tasks in of_points.items():
        middle, low, high = mean_of_means(tasks)
        bounds = f"{low:+z.2f}\u00a0to\u00a0{high:+z.2f}"
        yield [
            f"mean of {len(tasks)}",
            name,
            "points",
            str(sum(map(len, tasks))),
            f"{middle:+z.2f}",
            bounds,
            "–",
            "–",
        ]


def mean_of_means(groups: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Return the mean of the groups' means and its 95 % interval, with Satterthwaite's degrees of freedom (1946)."""
    of_each = [stdev(group) ** 2 / len(group) / len(groups) ** 2 for group in groups]
    variance = sum(of_each)
    if not variance:
        return (mean(map(mean, groups)),) * 3
    freedom = variance**2 / sum(part**2 / (len(group) - 1) for part, group in zip(of_each, groups, strict=True))
    middle, half = mean(map(mean, groups)), t.ppf(0.975, freedom) * variance**0.5
    return middle, middle - half, middle + half


def _measure(task: dict[str, Any]) -> records.Measure:
    return records.measure_named(task["measure"])


def _range(numbers: Sequence[float]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def further() -> Iterator[list[str]]:
    """Records of another kind."""
    yield ["Record", "What", "Result", "n", "95 % interval"]
    for each in FURTHER:
        yield from each()


def on_policy() -> Iterator[list[str]]:
    for share in ("share 0.0", "share 0.5"):
        found = [each["perplexity"] for each in record("on_policy.json")[share]]
        yield [_json("on_policy"), f"perplexity, {share} of own continuations", *_result(found)]


def teachers() -> Iterator[list[str]]:
    names = {"a": "resnet8", "b": "mlp:64"}
    for how, students in record("teachers.json")["students_test"].items():
        for objective, found in students.items():
            taught = names.get(how, f"both, by {how}")
            yield [_json("teachers"), f"digits, accuracy (%), `{objective}` taught by {taught}", *_result(found)]


def teacher_forms() -> Iterator[list[str]]:
    for form, found in record("teacher_forms.json")["students"]["forms"].items():
        result = _result(found["perplexity"]["values"])
        yield [_json("teacher_forms"), f"perplexity, teacher recorded as: {form}", *result]


def searches() -> Iterator[list[str]]:
    for path in sorted((RESULTS / "tune").glob("*.json")):
        found = record(f"tune/{path.name}")["found"]["held_out"]["test"]
        middle, low, high = (100 * found[part] for part in ("mean", "low", "high"))
        what = f"search `{path.stem}`: gain over new seeds on the test set (points)"
        yield [
            link(f"tune/{path.name}", "tune"),
            what,
            f"{middle:+z.2f}",
            str(found["n"]),
            f"{low:+z.2f} to {high:+z.2f}",
        ]


FURTHER: tuple[Callable[[], Iterator[list[str]]], ...] = (on_policy, teachers, teacher_forms, searches)


def _json(name: str) -> str:
    return f"[{name}.json](../benchmarks/results/{name}.json)"


def _result(found: Sequence[float]) -> list[str]:
    """Return the mean and deviation of results, their number and the mean's interval."""
    return [summed(found), str(len(found)), interval(found).replace("+", "")]


def provenance() -> Iterator[list[str]]:
    """The command, machine and commit of every record."""
    yield ["Record", "Command", "Machine", "Commit"]
    for each in COMPARISONS:
        runs = itertools.chain.from_iterable(map(each.subject.of, each.subject.entries))
        yield _made(link(each.name, each.folder), [run.manifest for run in runs])
    for folder, study, _ in studies():
        yield _made(link(study["name"], str(folder)), [manifest_of(folder, study)])
    for name, script in {
        "on_policy": "bench_on_policy",
        "teachers": "bench_teachers",
        "teacher_forms": "teacher_forms",
    }.items():
        yield _made(_json(name), [{"command": f"python benchmarks/{script}.py", **record(f"{name}.json")}])
    for path in sorted((RESULTS / "tune").glob("*.json")):
        yield _made(link(f"tune/{path.name}", "tune"), [record(f"tune/{path.name}")])
    for task in _judged():
        command = f"python benchmarks/dial.py final {task['task']} --seeds {len(task['seeds'])}"
        yield _made(link(f"automatic settings, {task['task']}", "dial"), [{"command": command, **task}])
    hardware = f"{TRIAL['hardware']['gpu']}, {TRIAL['hardware']['precision']}, torch {TRIAL['software']['torch']}"
    yield [link("the trial", "gpu-trial"), TRIAL["loop"], hardware, f"`{TRIAL['commit']}`"]


def _made(name: str, manifests: Sequence[dict[str, Any]]) -> list[str]:
    # A copy of the data beside the checkout is called by its name.
    commands = dict.fromkeys(re.sub(r"hf:\.\./\S*/", "hf:", manifest["command"]) for manifest in manifests)
    machines = dict.fromkeys(map(_machine, manifests))
    commits = dict.fromkeys(f"`{manifest['commit'][:7]}`" if manifest.get("commit") else "–" for manifest in manifests)
    more = f", and {len(commands) - 1} more" if len(commands) > 1 else ""
    return [name, f"`{next(iter(commands))}`{more}", "; ".join(machines), ", ".join(commits)]


def _machine(manifest: dict[str, Any]) -> str:
    hardware = manifest["hardware"]
    processor = hardware["gpu"] or hardware["processor"].replace("Intel(R) Xeon(R) Processor", "Intel Xeon")
    return f"{processor}, threads: {hardware['threads']}, torch {manifest['software']['torch']}"


TABLES = {
    each.__name__.replace("_", "-"): each
    for each in (
        trial,
        trial_differences,
        dial_grid,
        dial,
        dial_differences,
        comparisons,
        paired,
        of_studies,
        scoreboards,
        published_elsewhere,
        further,
        provenance,
    )
}


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), TABLES), encoding="utf-8")
