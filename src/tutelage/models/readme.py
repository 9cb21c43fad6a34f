"""The model card of a student, ``README.md``: YAML for the Hugging Face Hub, and Markdown, from records alone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PureWindowsPath
from typing import Any, Literal, NamedTuple, TypedDict

import yaml

from tutelage import records
from tutelage.errors import missing_extra, printable
from tutelage.intervals import interval_of
from tutelage.models import io
from tutelage.models.card import Card
from tutelage.models.hf_calls import OWN
from tutelage.models.names import is_own_module
from tutelage.version import __version__

try:
    import jinja2
    from huggingface_hub import EvalResult, ModelCardData
except ImportError as error:
    raise missing_extra("model_card", "jinja2 and huggingface_hub for a model card", "hf", error) from error

LIBRARY = "tutelage"
UNKNOWN = "unknown: none is recorded with them"
PLACE = "path/of/this/folder"
"""Stands in a card for what is not known yet: where it will be."""
NAMES = 100
"""Number of class names that a card lists."""
_HUB = "https://huggingface.co/"
_MARKDOWN = re.compile(r"([\\`*_\[\]<>#|~&!$])")
"""What begins something in Markdown, HTML or a formula."""


@dataclass(frozen=True)
class FromRun:
    """The records of a run that a card is made of.

    Attributes:
        manifest: of the run.
        evaluation: of the student that it ended with; ``None`` where the test set has no labels.
        costs: of its networks; ``None`` where they were not measured.
        weights: whose card it is: of the student that it ended with, or of the epoch that selection would choose.
    """

    manifest: records.Manifest
    evaluation: records.Evaluation | None
    costs: records.Costs | None
    weights: Literal["last", "best"] = "last"

    @property
    def ends_with_best(self) -> bool:
        """Whether the run ended with the weights of its best epoch."""
        return _section(self.manifest, "selection").get("reported") == "best epoch"

    @property
    def is_judged(self) -> bool:
        """Whether these are the weights that the evaluation is of."""
        return self.weights == "last" or self.ends_with_best

    @classmethod
    def read(cls, folder: Path, weights: Literal["last", "best"] = "last") -> FromRun:
        """Read them from a run's folder.

        Raises:
            FileNotFoundError: if there is no manifest.
            ValueError: if a record is damaged, or of a newer version.
        """
        kinds = ((records.EVALUATION, records.Evaluation), (records.COSTS, records.Costs))
        evaluation, costs = (
            records.read_json(folder / name, kind, partial=True) if (folder / name).is_file() else None
            for name, kind in kinds
        )
        return cls(records.read_manifest(folder), evaluation, costs, weights)


class Row(NamedTuple):
    """A line of a table: what it is, and the cells of student and teacher, or of licence and source."""

    name: str
    first: str
    second: str


class _Raw(str):
    """Text that is Markdown already."""

    __slots__ = ()


class _Description(TypedDict, total=False):
    tutelage: dict[str, Any]


def model_card(
    folder: str | Path, *, library: str = LIBRARY, usage: str | None = None, name: str | None = None, **front: Any
) -> str:
    """Return the model card of a run's student, or of a saved classifier, as the text of a ``README.md``.

    It says what the run's records say: data, teacher, method, accuracy with a 95 % interval (Wilson 1927), calibration,
    cost, how to load it, how it was made, and the licences of the weights and the data that went in, or that they are
    unknown. The student's own licence is for its publisher to choose: ``license="apache-2.0"``.

    Args:
        folder: folder of the run, or of a saved classifier.
        library: library that reads the files beside the card, such as ``timm``: ``library_name`` of the front matter.
        usage: Python that loads them; by default that of this package's own files.
        name: name of the repository, ``user/name``; by default the run's.
        front: further keys of the front matter, or others for those that are there.

    Raises:
        FileNotFoundError: if the folder has no student.
        ImportError: if ``huggingface_hub`` or ``jinja2`` is missing.
        ValueError: if its records are damaged.
    """
    folder = Path(folder)
    card, config = io.read_card(folder), folder / records.NETWORK
    described: Mapping[str, Any] = records.read_json(config, _Description, partial=True) if config.is_file() else {}
    run = FromRun.read(folder) if (folder / records.MANIFEST).is_file() else None
    kind = described.get(OWN, {}).get("kind")
    return card_of(card, run, kind=kind, name=name, library=library, usage=usage, **front)


def card_of(
    card: Card,
    run: FromRun | None = None,
    *,
    kind: str | None = None,
    name: str | None = None,
    library: str = LIBRARY,
    usage: str | None = None,
    **front: Any,
) -> str:
    """Return the text of a model card; see `model_card`.

    Args:
        card: card of the classifier.
        run: records of the run that made its weights; ``None`` if there are none.
        kind: what a network of transformers classifies; see `names.HF_KINDS`.
        name: name of the repository.
        library: library that reads it.
        usage: Python that loads it.
        front: further keys of the front matter.
    """
    manifest = run.manifest if run else {}
    title = name or str(manifest.get("name") or publishable_name(card.name))
    task = _pipeline(card, kind)
    data = _section(manifest, "data")
    results = list(_eval_results(run, task))
    known = {
        "library_name": library,
        "pipeline_tag": task,
        "license": "unknown",
        "tags": _tags(manifest, library),
        "base_model": _base_model(_section(manifest, "student")) if run else None,
        "datasets": _hub_dataset(data),
        "model_name": printable(title) if results else None,
        "eval_results": results or None,
    } | front
    recipe = manifest.get("recipe")
    names = card.class_names or ()
    if names == tuple(map(str, range(len(names)))):
        names = ()  # They are numbers.
    text = (
        _environment()
        .get_template("readme.md.j2")
        .render(
            front=_Raw(ModelCardData(**known).to_yaml()),
            title=title,
            card=card,
            run=run,
            manifest=manifest,
            library=library,
            license=known["license"],
            usage=_fenced(usage or _usage(card, kind, name), "python"),
            results=list(_results(run)) if run else [],
            cost=list(_costs(run.costs)) if run and run.costs else [],
            data=list(_data(data, run)),
            names=names[:NAMES],
            unnamed=max(0, len(names) - NAMES),
            objectives=[_fenced(each, "yaml") for each in _objectives(manifest.get("objective"))],
            teacher=_teacher(_section(manifest, "teacher")),
            licences=list(_licences(card, manifest)),
            recipe=_fenced(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True), "yaml") if recipe else None,
            versions={LIBRARY: manifest.get("version", __version__), **_section(manifest, "software")},
        )
    )
    return re.sub(r"\n{3,}", "\n\n", text)


def publishable_name(name: str) -> str:
    """Return a network's name without the folders of a path on this machine.

    Example:
        >>> publishable_name("file:/home/me/networks.py:small"), publishable_name("hf:org/name")
        ('file:networks.py:small', 'hf:org/name')
    """
    prefix, colon, path = name.partition(":")
    local = prefix == "file" or PureWindowsPath(path).is_absolute() or path.startswith(("/", "~", "."))
    if not colon or not (local or (prefix == "hf" and Path(path).exists())):
        return name
    return f"{prefix}:{PureWindowsPath(path).name}"


@cache
def _environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    options: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "undefined": jinja2.StrictUndefined}
    # What it writes is Markdown, of which every value is escaped by `_escaped`.
    return jinja2.Environment(loader=loader, autoescape=False, finalize=_escaped, **options)  # noqa: S701


def _escaped(value: object) -> object:
    """Write a value as text that means nothing in Markdown, a table's cell or HTML; what cannot be printed, in full."""
    return _MARKDOWN.sub(r"\\\1", printable(value)) if isinstance(value, str) and not isinstance(value, _Raw) else value


def _fenced(code: str, language: str) -> _Raw:
    """Put code between fences that are longer than any in it."""
    fence = "`" * max(3, 1 + max((len(found) for found in re.findall("`+", code)), default=0))
    return _Raw(f"{fence}{language}\n{code.rstrip()}\n{fence}")


def _section(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    inner = value.get(key)
    return inner if isinstance(inner, Mapping) else {}


def _pipeline(card: Card, kind: str | None) -> str | None:
    """Return the Hub's name for what a network does; ``None`` where it has none for what it takes."""
    if kind == "causal":
        return "text-generation"
    if card.max_tokens is not None:
        return "token-classification" if card.per_token else _OF_TEXTS[card.task]
    return _OF_IMAGES[card.task] if card.image_size is not None or kind is not None else None


_OF_TEXTS = {"classes": "text-classification", "labels": "text-classification", "embedding": "feature-extraction"}
_OF_IMAGES = {
    "classes": "image-classification",
    "labels": "image-classification",
    "pixels": "image-segmentation",
    "embedding": "image-feature-extraction",
}


def _tags(manifest: Mapping[str, Any], library: str) -> list[str]:
    made = ["knowledge-distillation"] if manifest.get("verb") == "distill" else []
    return [*dict.fromkeys([*made, LIBRARY, library])]


def _base_model(network: Mapping[str, Any]) -> str | None:
    """Return the repository of the Hub that a network's first weights are of."""
    source = str(network.get("source") or "")
    if network.get("weights") in (None, "random") or not source.startswith(_HUB):
        return None
    return source.removeprefix(_HUB)


def _hub_dataset(data: Mapping[str, Any]) -> list[str] | None:
    """Return the data set's name on the Hub; a local folder's has no slash in it."""
    kind, _, name = str(data.get("source") or "").partition(":")
    return [name] if kind == "hf" and re.fullmatch(r"[\w.-]+/[\w.-]+", name) else None


def _eval_results(run: FromRun | None, task: str | None) -> Iterator[EvalResult]:
    if run is None or run.evaluation is None or not run.is_judged:
        return
    judged = run.evaluation["student"]
    data = _section(run.manifest, "data")
    source = (_hub_dataset(data) or [printable(str(data.get("source") or "unknown"))])[0]
    by = records.measure(judged)
    if (value := judged.get(by.key)) is not None:
        yield EvalResult(
            task_type=task or "other",
            dataset_type=source,
            dataset_name=source,
            dataset_split=printable(run.evaluation["set"]),
            metric_type=by.key,
            metric_value=value,
        )


def _usage(card: Card, kind: str | None, name: str | None) -> str:
    """Return Python that loads and calls what `save` writes."""
    where = json.dumps(name or PLACE)
    handed = ""
    if is_own_module(card.name) or card.name.startswith("file:"):
        made = card.name.rpartition(":")[2]
        handed = f", network={made if made.isidentifier() else 'Network'}()"
    if kind == "causal":
        return (
            f"from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f"tokenizer = AutoTokenizer.from_pretrained({where})\n"
            f"model = AutoModelForCausalLM.from_pretrained({where})\n"
            'ids = tokenizer("The", return_tensors="pt", return_token_type_ids=False)\n'
            "print(tokenizer.decode(model.generate(**ids, max_new_tokens=20)[0]))"
        )
    sample = '["a text"]' if card.max_tokens is not None else '"image.jpg"'
    call = {"pixels": f"predict_masks({sample})", "embedding": f"embed({sample})"}.get(card.task, f"predict({sample})")
    if card.max_tokens is None and card.image_size is None and kind is None:
        call = "eval()"  # It takes tensors, of which the card says nothing.
    beside = "  # a module like the one that was saved" if handed else ""
    return f"import tutelage\n\nmodel = tutelage.models.from_pretrained({where}{handed}){beside}\nprint(model.{call})"


def _results(run: FromRun) -> Iterator[Row]:
    """Yield what the networks reached on the test set, student and teacher."""
    if run.evaluation is None:
        return
    judged: Mapping[str, Any] = run.evaluation["student"]
    teacher: Mapping[str, Any] = run.evaluation.get("teacher") or {}
    by = records.measure(judged)

    def reached(network: Mapping[str, Any]) -> str:
        value = network.get(by.key)
        if value is None:
            return ""
        written = f"{by.write(value)}{' ' + by.unit if by.unit else ''}"
        bounds = interval_of(network) if by is records.ACCURACY else None
        shown = f" (95 % interval {by.write(bounds[0])} to {by.write(bounds[1])})" if bounds else ""
        return written + shown

    yield Row(by.title, reached(judged), reached(teacher))
    for key, title, scale, digits, unit in (
        ("agreement", "Agreement with the teacher", 100, 2, " %"),
        ("loss", "Cross-entropy, nats", 1, 4, ""),
        ("ece", "Expected calibration error", 100, 2, " %"),
    ):
        cells = [
            "" if (value := network.get(key)) is None else f"{scale * value:.{digits}f}{unit}"
            for network in (judged, teacher)
        ]
        if any(cells):
            yield Row(title, *cells)
    scaled = [network.get("calibration") for network in (judged, teacher)]
    if any(scaled):
        written = "{:.2f} % (T = {:.3f}, fitted on the {})"
        cells = [written.format(100 * f["ece"], f["temperature"], _FITTED[f["fitted_on"]]) if f else "" for f in scaled]
        yield Row("The same after temperature scaling", *cells)


_FITTED = {"validation": "validation set", "test": "other half of the test set"}


def _costs(costs: records.Costs) -> Iterator[Row]:
    """Yield what the networks cost, student and teacher."""
    networks: list[Mapping[str, Any]] = [costs["student"], costs.get("teacher") or {}]

    def row(name: str, key: str, written: str, scale: float = 1, beside: str = "") -> Iterator[Row]:
        cells = []
        for network in networks:
            value = network.get(key)
            shown = "" if value is None else written.format(value / scale)
            more = network.get(beside)
            cells.append(f"{shown} ({_BESIDE[beside].format(more)})" if shown and more is not None else shown)
        if any(cells):
            yield Row(name, *cells)

    yield from row("Parameters", "parameters", "{:,.0f}")
    yield from row("FLOPs of a forward pass of one sample", "flops", "{:,.0f}")
    yield from row("File, MB", "file_bytes", "{:.3g}", 1e6)
    yield from row("Latency of one sample, ms, median", "latency_ms", "{:.3g}", beside="latency_p90_ms")
    yield from row("Throughput, samples per second", "throughput", "{:,.0f}", beside="batch")


_BESIDE = {"": "", "latency_p90_ms": "90 % within {:.3g}", "batch": "batches of {}"}


def _data(data: Mapping[str, Any], run: FromRun | None) -> Iterator[tuple[str, str]]:
    if run is None:
        return
    yield "Source", str(data.get("source") or "not recorded")
    if isinstance(extra := data.get("unlabelled"), Mapping):
        yield "Unlabelled", str(extra.get("source"))
    sizes = _section(data, "sizes")
    parts = [f"{sizes[name]:,} {name}" for name in ("train", "validation", "test") if sizes.get(name)]
    labelled = sizes.get("labelled")
    if labelled is not None and labelled != sizes.get("train"):
        parts.append(f"{labelled:,} of the training samples with a label")
    yield "Samples", ", ".join(parts)
    if data.get("fingerprint"):
        yield "Fingerprint", str(data["fingerprint"])


def _objectives(objective: object) -> list[str]:
    """Write the objective of each stage as a recipe has it."""
    several = isinstance(objective, list) and all(isinstance(each, list) for each in objective)
    stages = objective if isinstance(objective, list) and several else [objective]
    return [yaml.safe_dump({"objective": each}, sort_keys=False, allow_unicode=True) for each in stages if each]


def _members(teacher: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return teacher.get("members") or ([teacher] if teacher else [])


def _teacher(teacher: Mapping[str, Any]) -> list[str]:
    """Say who taught, a line each."""
    lines = []
    for each in _members(teacher):
        parts = [str(each.get("name"))]
        if each.get("weights"):
            parts.append(f"weights {each['weights']}")
        if each.get("parameters") is not None:
            parts.append(f"{each['parameters']:,} parameters")
        if each.get("weight") is not None:
            parts.append(f"share {each['weight']:.3g}")
        lines.append(", ".join(parts))
    return lines


def _licences(card: Card, manifest: Mapping[str, Any]) -> Iterator[Row]:
    """Yield what went in: its licence, or that it is unknown, and where it is from."""

    def weights(what: str, network: Mapping[str, Any]) -> Row:
        if network.get("weights") == "random":
            return Row(f"{what}, {network.get('name')}", "none: random weights", "")
        name = ", ".join(str(part) for part in (what, network.get("name"), network.get("weights")) if part)
        return Row(name, str(network.get("licence") or UNKNOWN), str(network.get("source") or ""))

    if not manifest:
        yield Row(f"Weights, {publishable_name(card.name)}", card.licence or UNKNOWN, card.source or "")
        return
    if student := _section(manifest, "student"):
        yield weights("First weights of the student", student)
    for each in _members(_section(manifest, "teacher")):
        yield weights("Weights of the teacher", each)
    data = _section(manifest, "data")
    yield Row(f"Data, {data.get('source')}", str(data.get("licence") or UNKNOWN), "")
    if isinstance(extra := data.get("unlabelled"), Mapping):
        yield Row(f"Unlabelled data, {extra.get('source')}", UNKNOWN, "")
