"""The schema of recipes: plain data, checked as a whole."""

from __future__ import annotations

import functools
import json
import re
import typing
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from annotated_types import Ge, Le
from pydantic import BaseModel, BeforeValidator, Field, ValidationInfo, field_validator

from tutelage.config import messages
from tutelage.errors import InvalidValueError, RecipeError, TutelageError, nearest_name, raise_all
from tutelage.records import check_schema
from tutelage.settings import data
from tutelage.settings.data import DataSettings, LearnedTokenizer
from tutelage.settings.fit import (
    EMA,
    SGD,
    TIMM,
    AdamW,
    Constant,
    Count,
    EarlyStopping,
    Fit,
    FitSettings,
    LibraryOptimizer,
    LossForm,
    OnPolicy,
    Positive,
    Precision,
    Schedule,
    Shard,
    Switch,
    Threads,
    timm_optimizers,
)
from tutelage.settings.numbers import LARGEST_COUNT, SMALLEST, InSchema, ShortFor, Truth, Whole
from tutelage.settings.objective import (
    REQUIRED,
    SIGNATURES,
    Argument,
    ClassWeights,
    ObjectiveSpec,
    Signature,
    check_class_weights,
    read_objective,
    untyped_exponents,
)
from tutelage.settings.outputs import OutputsForm
from tutelage.settings.run import TOGETHER


@functools.cache
def built_in_presets() -> Mapping[str, Signature]:
    """Return the signatures of this package's presets, from ``objectives.json``, which is generated."""
    table = json.loads((Path(__file__).parent / "objectives.json").read_text(encoding="utf-8"))
    return {
        name: {
            key: Argument(argument["kind"], argument.get("default", REQUIRED))
            for key, argument in preset["arguments"].items()
        }
        for name, preset in table.items()
    }


def known_presets() -> Mapping[str, Signature]:
    """Return the signatures of this package's presets and of those that this process has defined."""
    return {**built_in_presets(), **SIGNATURES}


def _objective(value: Any, info: ValidationInfo) -> ObjectiveSpec:
    spec = read_objective(value, known_presets())
    if info.context is not None and spec.presets:
        info.context["check"](spec)
    return spec


def _of_kind(default: str) -> BeforeValidator:
    """A section is of one of several kinds, by its ``name``; one without a name is of the default kind."""
    return BeforeValidator(lambda value: {"name": default, **value} if isinstance(value, Mapping) else value)


def _check_seed(seed: int, info: ValidationInfo) -> int:
    if seed >= 2**63:  # generators take 64 bits
        raise InvalidValueError(
            info.field_name, "a whole number >= 0 and < 2**63", seed, f"for example {info.field_name}=0"
        )
    return seed


FOLDER_NAME = "[A-Za-z0-9]([A-Za-z0-9._-]{0,98}[A-Za-z0-9_-])?"
"""Pattern of a folder's name on every system: none ends in a dot."""
LONGEST_NAME = 200
FOLDER_NAME_IN_WORDS = (
    f"a folder's name of letters, digits, `.`, `_` and `-`, up to 100 each and {LONGEST_NAME} in all, no dot at its end"
)
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{k}" for port in ("com", "lpt") for k in range(1, 10))}
"""Names of devices, which no file of Windows may have, with whatever ending."""


def _portable(name: str, info: ValidationInfo) -> str:
    for part in name.split("/"):
        if part.partition(".")[0].lower() in RESERVED:
            instead = f"type {info.field_name}={name.replace(part, f'my-{part}')}"
            raise InvalidValueError("", "a name that no system keeps for a device", repr(name), instead)
    return name


FolderName = Annotated[str, pydantic.AfterValidator(_portable)]
"""A name whose pattern is `FOLDER_NAME`, or several joined by slashes."""
ENTRY_NAME = r"[^\W_][^/\\:*?\"<>|\x00-\x1f\x7f]*"
"""Pattern of what an entry of a comparison is called: its runs' folders begin with it."""
DEVICE = r"^(auto|cpu|cuda(:(0|[1-9][0-9]{0,3}))?)$"
"""Pattern of a device."""
Seeds = Annotated[Whole, Ge(1), Le(10_000)]
"""Number of runs, of which each is planned before the first is begun."""
SeedField = Annotated[Whole, Ge(0), pydantic.AfterValidator(_check_seed), InSchema(maximum=2**63 - 1)]
_CROSS_ENTROPY = read_objective("cross_entropy", built_in_presets())
OBJECTIVE = "objective"
"""Keyword in whose place `docs/recipe_schema.py` puts what it makes of the presets' signatures."""
DataField = Annotated[DataSettings, pydantic.AfterValidator(data.check), ShortFor("source")]
ObjectiveField = Annotated[
    ObjectiveSpec,
    pydantic.PlainValidator(_objective),
    pydantic.PlainSerializer(ObjectiveSpec.to_recipe),
    InSchema(**{OBJECTIVE: True}),
]


def _kind_of_optimizer(value: Any) -> str | None:
    name = value.get("name") if isinstance(value, Mapping) else getattr(value, "name", None)
    return None if not isinstance(name, str) else LibraryOptimizer.tag if name.startswith(TIMM) else name


def _named_with_source(value: Any) -> Any:
    """Name the source of an optimizer that only timm has."""
    name = value.get("name") if isinstance(value, Mapping) else None
    if isinstance(name, str) and name not in (SGD.name, AdamW.name) and name in timm_optimizers():
        near = [each for each in (AdamW.name,) if name in each]
        instead = " or ".join(f"optimizer.name={each}" for each in (*near, f"{TIMM}{name}"))
        raise InvalidValueError(
            "optimizer.name", f"one of sgd, adamw, {LibraryOptimizer.tag}", repr(name), f"type {instead}"
        )
    return value


OptimizerField = Annotated[
    Annotated[SGD, pydantic.Tag(SGD.name)]
    | Annotated[AdamW, pydantic.Tag(AdamW.name)]
    | Annotated[LibraryOptimizer, pydantic.Tag(LibraryOptimizer.tag)],
    pydantic.Discriminator(_kind_of_optimizer),
    BeforeValidator(_named_with_source),
    _of_kind(SGD.name),
    ShortFor("name"),
    # Recipes that type none of these keys read as they did before there were such.
    pydantic.WrapSerializer(lambda value, write: {k: v for k, v in write(value).items() if v is not None}),
]
ScheduleField = Annotated[Schedule, Field(discriminator="name"), _of_kind(Constant.name), ShortFor("name")]
OutputsFormField = Annotated[OutputsForm, Field(discriminator="name"), ShortFor("name")]
OnPolicyField = Annotated[OnPolicy, ShortFor("share", number=True)]
ClassWeightsField = Annotated[
    ClassWeights | None, BeforeValidator(check_class_weights), InSchema(minItems=1, minProperties=1)
]
EMAField = Annotated[EMA, ShortFor("decay", number=True)]
EarlyStoppingField = Annotated[EarlyStopping, ShortFor("patience", number=True)]


class _Section(BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", arbitrary_types_allowed=True, frozen=True, allow_inf_nan=False)


ADDED = ("size", "config", "trained", "frozen", "init", "classes", "mean", "std", "output", "reads")
"""Keys of a network that recipes of older versions lack."""
MADE = "teacher"
"""Name of a student that is made of its teacher."""
OF_ANOTHER = ("weights", "config", "classes", "mean", "output")
"""Keys that describe a network which is not made of its teacher."""
Reads = Literal["image", "text"]
SERVED = "served"
"""What a recipe names as its teacher if ``data.top_logprobs`` has its answers."""
MAX_SIDE = 16_384
"""Longest side of the images that a network is fed, pixels."""


_NOT_EMPTY = InSchema(minItems=1)
_Text = Annotated[str, InSchema(minLength=1)]
_Number = Annotated[int, InSchema(minimum=0)]
_Mean = Annotated[float, InSchema(minimum=0, maximum=1)]
_Deviation = Annotated[float, InSchema(minimum=SMALLEST, maximum=1)]


def _check_outputs(value: Any) -> Any:
    entries = value if isinstance(value, list | tuple) else [None]
    if value is not None and not all(
        isinstance(entry, str) or (isinstance(entry, int) and not isinstance(entry, bool) and entry >= 0)
        for entry in entries or [None]
    ):
        expected = "a list of the network's outputs, one for each class of the data, or null"
        instead = "type whole numbers >= 0, or the network's class names in quotes"
        raise InvalidValueError("classes", expected, messages.shown(value), instead)
    return value


def _check_statistics(key: str, value: Any, *, least: float) -> Any:
    """Refuse what is no mean or deviation of values in [0, 1], such as one of values up to 255."""
    entries = value if isinstance(value, list | tuple) else [None]
    if value is not None and not all(
        isinstance(entry, int | float) and not isinstance(entry, bool) and least <= entry <= 1
        for entry in entries or [None]
    ):
        above = "above 0 and at most 1" if least else "in [0, 1]"
        expected = f"a list of numbers {above}, one for each channel, or null"
        instead = "divide them by 255 where white is 255, for example [0.485, 0.456, 0.406]"
        raise InvalidValueError(key, expected, messages.shown(value), instead)
    return value


_check_mean = partial(_check_statistics, "mean", least=0.0)
_check_std = partial(_check_statistics, "std", least=SMALLEST)


def _check_output(value: Any) -> Any:
    number = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if value is not None and not number and not (isinstance(value, str) and value):
        expected = "the name or the number of an output, or null"
        raise InvalidValueError("output", expected, messages.shown(value), "for example output=logits")
    return value


class LoRA(_Section):
    """Low-rank adapters beside a network's linear layers; what they stand on is frozen (arXiv 2106.09685).

    Attributes:
        lora: rank of each adapter.
        alpha: an adapter's output is multiplied by ``alpha / lora``; none for as much as the rank, so by 1.
        targets: layers that have one, by their names or the names' ends, such as ``q_proj``; none for all linear layers
            but the head.
    """

    lora: Annotated[Whole, Ge(1), Le(65_536)] = Field(description="a whole number in [1, 65536]", examples=["8"])
    alpha: Positive | None = None
    targets: tuple[str, ...] | None = Field(
        None, min_length=1, description="a list of layers' names, or null", examples=["[q_proj, v_proj]"]
    )


def _check_trained(value: Any) -> Any:
    if not isinstance(value, Mapping | LoRA) and value not in ("all", "head"):
        instead = "type {lora: 8} for adapters of rank 8, or head for the last linear layer"
        raise InvalidValueError("trained", "all, head or {lora: ...}", messages.shown(value), instead)
    return value


TrainedField = Annotated[
    Annotated[Literal["all", "head"], pydantic.Tag("all")] | Annotated[LoRA, pydantic.Tag("LoRA")],
    pydantic.Discriminator(lambda value: "all" if isinstance(value, str) else "LoRA"),
    BeforeValidator(_check_trained),
]


def _check_frozen(value: Any) -> Any:
    good = isinstance(value, list | tuple) and all(isinstance(each, str) and each for each in value or [None])
    if value is not None and not good:
        expected = "a list of patterns of names, or null"
        raise InvalidValueError("frozen", expected, messages.shown(value), 'for example ["conv1", "layer1.*"]')
    return value


def _check_layers(value: Any) -> Any:
    numbers = isinstance(value, list | tuple) and all(
        isinstance(entry, int) and not isinstance(entry, bool) and entry >= 0 for entry in value or [None]
    )
    if value not in (None, "every_second", "first", "last") and not numbers:
        expected = "every_second, first, last, a list of layers' numbers from 0, or null"
        raise InvalidValueError("layers", expected, messages.shown(value), "for example every_second")
    return value


_FROM: Any = {"from": (Literal["teacher"], Field(description="teacher", examples=["teacher"]))}
_From: Any = pydantic.create_model("_From", __base__=_Section, **_FROM)  # as `from` is a word of Python's


class Init(_From):  # type: ignore[misc]
    """What a student is made of: its teacher's configuration and weights, of fewer layers or channels.

    Attributes:
        from: ``teacher``.
        layers: ``every_second`` (0, 2, 4, ...), the ``first`` or the ``last`` half, or their numbers from 0, in
            that order, each as often as it is named; none for all.
        width: hidden size, of which the leading channels are copied; none for the teacher's.
    """

    layers: Annotated[
        Literal["every_second", "first", "last"] | tuple[_Number, ...] | None,
        BeforeValidator(_check_layers),
        _NOT_EMPTY,
    ] = None
    width: Count | None = None


class Network(_Section):
    """A network by name, with weights from a local file.

    Attributes:
        name: such as ``cifar:resnet20`` (``tutelage list models``), or a run's folder.
        weights: a local checkpoint; none for the weights that the name fixes.
        size: shorter side of the images that it is fed, pixels; none for that of the data, or for a teacher that which
            its published weights, or the run, were trained with.
        config: of an ``hf:type`` name, such as ``hf:bert``: the configuration of a network with random weights, as the
            transformers library names its entries; the tokenizer gives the size of its vocabulary.
        trained: ``head`` trains the last linear layer alone; the rest keeps its weights and is in evaluation mode, so
            that neither dropout nor batch norm changes what the layer reads. ``{lora: 8}`` trains low-rank adapters and
            the head of a network that classifies. What is trained is what is saved.
        frozen: shell patterns of what is not trained, by the names of parameters or modules that the network's author
            gave, such as ``layer1.*``; a module without others is in evaluation mode. All is saved.
        init: of a student alone, and in place of its name: what it is made of, its teacher; see `Init`.
        classes: of a teacher, or of what is evaluated: its output for each class of the data, by number or by its
            class's name; none for all of them in order, or by the names of both where they say it.
        mean: mean of each channel, where white is 1, of a network whose name has no statistics, such as of ``file:``,
            ``onnx:`` and ``export:``; none feeds it values in [0, 1].
        std: standard deviation of each channel, beside ``mean``.
        output: of an ``onnx:`` or ``export:`` name whose file has several outputs: the one with the logits, by its name
            or number.
        reads: ``image`` or ``text``, where each sample of the data is both.
    """

    name: str = Field(description="a model's name", examples=["cifar:resnet20"])
    weights: str | None = None
    size: Annotated[Whole, Ge(1), Le(MAX_SIDE)] | None = None
    config: dict[str, Any] | None = None
    trained: TrainedField = "all"
    frozen: Annotated[tuple[_Text, ...] | None, BeforeValidator(_check_frozen), _NOT_EMPTY] = None
    init: Init | None = None
    classes: Annotated[tuple[_Number | str, ...] | None, BeforeValidator(_check_outputs), _NOT_EMPTY] = None
    mean: Annotated[tuple[_Mean, ...] | None, BeforeValidator(_check_mean), _NOT_EMPTY] = None
    std: Annotated[tuple[_Deviation, ...] | None, BeforeValidator(_check_std), _NOT_EMPTY] = None
    output: Annotated[_Number | _Text | None, BeforeValidator(_check_output)] = None
    reads: Reads | None = None

    @pydantic.model_validator(mode="before")
    @classmethod
    def _of_teacher(cls, value: Any) -> Any:
        """Name a student that is made of its teacher so, and refuse what would describe another one."""
        if not isinstance(value, Mapping) or value.get("init") is None:
            return value
        taken = [key for key in OF_ANOTHER if value.get(key) is not None]
        taken += ["name"] * (value.get("name", MADE) != MADE)
        if taken:
            got = f"{taken[0]}={messages.shown(value[taken[0]])}"
            expected = "nothing beside init that describes the network, which is its teacher's"
            raise InvalidValueError("", expected, got, f"leave {taken[0]} out, or init")
        return {**value, "name": MADE}

    @pydantic.model_validator(mode="after")
    def _trained_in_one_way(self) -> Network:
        if self.frozen is not None and self.trained != "all":
            got = "trained and frozen"
            expected = "frozen, or trained=head or {lora: ...}, which freeze all else"
            raise InvalidValueError("", expected, got, "leave one of them out")
        return self

    @pydantic.model_validator(mode="after")
    def _statistics(self) -> Network:
        if (self.mean is None) != (self.std is None) or len(self.mean or ()) != len(self.std or ()):
            got = f"{messages.shown(self.mean)} and {messages.shown(self.std)}"
            raise InvalidValueError("", "a mean and a std for each channel, or neither", got, "give both")
        return self

    @pydantic.model_serializer(mode="wrap")
    def _written(self, write: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Recipes that type neither read as they did before there were these keys.
        return {key: value for key, value in write(self).items() if value not in (None, "all") or key not in ADDED}

    @property
    def served(self) -> bool:
        """Whether it is no network but a served teacher, whose answers are in the data."""
        return self.name == SERVED


class UntrainedTeacher(Network):
    """A network that is to be trained before it teaches, and stands in for that teacher until then."""


def _trained(network: Network) -> Network:
    """Refuse a map of classes for a network that is trained on the data's."""
    if network.classes is not None:
        instead = "leave classes out: they are a teacher's key"
        raise InvalidValueError(
            "", "no classes of a network that is trained on the data's", list(network.classes), instead
        )
    return network


def _not_trained(network: Network) -> Network:
    """Refuse the keys of a network that is not trained that only a student has."""
    if network.frozen is not None:
        instead = "leave frozen out: it is a student's key"
        raise InvalidValueError("frozen", "none of a network that is not trained", list(network.frozen), instead)
    return _not_made(network)


def _not_made(network: Network) -> Network:
    """Refuse a teacher that is to be made of a teacher."""
    if network.init is not None:
        raise InvalidValueError("", "no init of a teacher", "one", "name the network; init is a student's key")
    return network


def _without(*keys: str) -> InSchema:
    return InSchema(properties={key: {"type": "null"} for key in keys})


NetworkField = Annotated[Network, pydantic.AfterValidator(_trained), _without("classes"), ShortFor("name")]


class Stage(_Section):
    """One of several fits of a run: what differs from the recipe it stands in."""

    objective: ObjectiveField | None = None
    epochs: Count | None = None
    batch_size: Count | None = None
    optimizer: OptimizerField | None = None
    schedule: ScheduleField | None = None
    clip: Positive | None = None
    ema: EMAField | None = None
    early_stopping: EarlyStoppingField | None = None
    on_policy: OnPolicyField | None = None
    class_weights: ClassWeightsField = None


class Training(_Section):
    """How a teacher is to be trained before the run that needs it.

    What is not set is as in that run, but for ``objective``, by default cross-entropy, and ``labelled``, by default
    every label. The data are that run's, without its unlabelled ones and in one view; for embeddings it learns their
    classes.
    """

    model: Annotated[NetworkField, pydantic.AfterValidator(_not_made), _without("classes", "init")] = Field(
        description="a model's name", examples=["cifar:resnet56"]
    )
    objective: ObjectiveField | None = None
    epochs: Count | None = None
    batch_size: Count | None = None
    optimizer: OptimizerField | None = None
    schedule: ScheduleField | None = None
    clip: Positive | None = None
    ema: EMAField | None = None
    early_stopping: EarlyStoppingField | None = None
    precision: Precision | None = None
    class_weights: ClassWeightsField = None
    labelled: Whole | None = Field(None, ge=0, le=LARGEST_COUNT)
    seed: SeedField | None = None
    data_seed: SeedField | None = None


class TrainedTeacher(_Section):
    """A teacher that the run trains first, from labels."""

    train: Training

    @property
    def reads(self) -> Reads | None:
        """What the network reads that is trained."""
        return self.train.model.reads


MOST_MEMBERS = 100
"""Teachers of one run."""


def _several(value: Any) -> Any:
    if not isinstance(value, list | tuple) or not 2 <= len(value) <= MOST_MEMBERS:
        expected = f"a list of 2 to {MOST_MEMBERS} models"
        instead = "type [runs/a, runs/b], or teacher=... for one"
        raise InvalidValueError("", expected, messages.shown(value), instead)
    return value


def _ready(value: Any) -> Any:
    """Refuse a member that has to be trained first, or whose answers are in the data."""
    if not isinstance(value, str | Mapping | Network):
        expected = "a model's name, a run's folder, or a mapping with one"
        raise InvalidValueError("", expected, messages.shown(value), "for example runs/teacher")
    name = value.get("name") if isinstance(value, Mapping) else value
    if isinstance(value, Mapping) and "train" in value:
        instead = "train it with `tutelage train`, and name its folder"
        raise InvalidValueError("", "a network that is trained", "one to train first", instead)
    if name == SERVED:
        instead = f"name networks alone, or type teacher={SERVED}"
        raise InvalidValueError("", "a network, as its answers are averaged with others'", SERVED, instead)
    return value


_NOT_TRAINED = _without("frozen", "init")
MemberField = Annotated[
    Network,
    pydantic.AfterValidator(_not_trained),
    pydantic.BeforeValidator(_ready),
    _NOT_TRAINED,
    ShortFor("name"),
    InSchema(**{"not": {"const": SERVED}}),
]


class Teachers(_Section):
    """Several teachers, which teach as one or each by itself.

    Attributes:
        members: at least two networks, each with its own size and map of classes.
        weights: weight of each member, divided by their sum; none for equal ones.
        combine: what is averaged: ``probabilities``, ``logits``, or the objective's ``terms``, each computed for each.
    """

    members: Annotated[
        tuple[MemberField, ...], BeforeValidator(_several), InSchema(minItems=2, maxItems=MOST_MEMBERS)
    ] = Field(description=f"a list of 2 to {MOST_MEMBERS} models", examples=["[runs/a, runs/b]"])
    weights: tuple[Positive, ...] | None = Field(
        None, description="a list of numbers > 0, one for each member, or null", examples=["[0.5, 0.5]"]
    )
    combine: Literal["probabilities", "logits", "terms"] = "probabilities"

    @field_validator("members")
    @classmethod
    def _members_differ(cls, value: tuple[Network, ...]) -> tuple[Network, ...]:
        for k, member in enumerate(value):
            if member in value[:k]:
                instead = "name it once, and give it a larger weight"
                raise InvalidValueError("", "networks that differ", f"{member.name} twice", instead)
        return value

    @field_validator("weights")
    @classmethod
    def _one_for_each(cls, value: tuple[float, ...] | None, info: ValidationInfo) -> tuple[float, ...] | None:
        members = info.data.get("members")
        if value is not None and members is not None and len(value) != len(members):
            expected = f"{len(members)} numbers, one for each member"
            instead = f"for example teacher.weights={[1] * len(members)}"
            raise InvalidValueError("", expected, messages.shown(list(value)), instead)
        return value

    @property
    def reads(self) -> Reads | None:
        """What they read of samples that are an image and a text each: all the same."""
        return self.members[0].reads


def _kind_of_teacher(value: Any) -> str:
    for kind, key in ((TrainedTeacher, "train"), (Teachers, "members")):
        if key in value if isinstance(value, Mapping) else isinstance(value, kind):
            return kind.__name__
    return Network.__name__


def _written_out(value: Any) -> Any:
    """A list of networks is short for a mapping with them as its members."""
    return {"members": value} if isinstance(value, list | tuple) else value


def _alone(value: Any) -> Any:
    if isinstance(value, list | tuple) or (isinstance(value, Mapping) and "members" in value):
        instead = "name one here, and type tutelage compare or distill for several"
        raise InvalidValueError("", "one teacher", "several", instead)
    return value


_ONE_TEACHER = (
    Annotated[Network, pydantic.AfterValidator(_not_trained), _NOT_TRAINED, pydantic.Tag("Network")]
    | Annotated[TrainedTeacher, pydantic.Tag("TrainedTeacher")]
)
OneTeacherField = Annotated[
    _ONE_TEACHER, pydantic.Discriminator(_kind_of_teacher), BeforeValidator(_alone), ShortFor("name")
]
TeacherField = Annotated[
    _ONE_TEACHER | Annotated[Teachers, pydantic.Tag("Teachers")],
    pydantic.Discriminator(_kind_of_teacher),
    BeforeValidator(_written_out),
    ShortFor("name"),
]


class Recipe(_Section):
    """One run.

    Attributes:
        name: the run's folder under ``runs/``.
        data: where the data come from, and their views.
        student: the network to train (``model`` in the recipe of a teacher).
        teacher: the network to learn from, or several; none for labels alone; ``served`` if ``data.top_logprobs`` has
            its answers.
        outputs: the folder of the teacher's recorded outputs, which are read instead of running it; none runs it.
        outputs_limit_mb: recording refuses to write more, MB of 10**6 bytes.
        outputs_top: where all logits are above that, recording keeps so many per sample; none keeps all.
        outputs_form: what recording keeps of each answer, ``bucket`` or ``sampled`` with their numbers, whatever the
            limit is; none keeps all logits, or the top.
        outputs_max_error: it refuses the top where a chunk's mean total variation from ``p_gamma`` or mean relative
            error of ``U_gamma``, at an exponent of the recipe's, is larger; none is 0.01, and 0.25 for tokens.
        objective: a preset, or a list of them with scales.
        class_weights: of each class in the cross-entropy with the labels: ``balanced``, a list of numbers, or a mapping
            of class names to numbers, others 1; none for 1.
        start: the folder of a finished run, whose last checkpoint the run begins with; its ``epochs`` count too. None
            begins at the first step.
        batch_size: samples per optimizer step, over all micro-batches and processes.
        on_policy: samples whose completion the student writes itself, a share or a mapping; none for none.
        seed: of the initialisation and of dropout.
        data_seed: of order and augmentation, and of what the student writes.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``, a GPU by its number.
        threads: of the CPU; none for torch's own choice. Exact resume needs the same number.
        deterministic: ask torch for deterministic algorithms; exact resume on CUDA needs it.
        precision: one of `FitSettings`, or ``auto`` for one that is measured when the run begins
            (`runs.autotune.resolve_precision`); until then it counts as ``fp32``.
        accumulate: as in `FitSettings`, or ``auto`` for as few as a step fits in memory with, found when the run begins
            (`runs.micro_batches.resolve`); until then it counts as 1.
        weak_teacher: continue though the teacher is no better than chance.
        stages: several fits in turn; each says what differs.

    The other fields are those of `FitSettings`.
    """

    name: FolderName = Field(
        pattern=f"^{FOLDER_NAME}(/{FOLDER_NAME})*$",
        max_length=LONGEST_NAME,
        description=FOLDER_NAME_IN_WORDS,
        examples=["first-run"],
    )
    data: DataField = DataSettings()
    student: NetworkField = Field(description="a model's name", examples=["cifar:resnet20"])
    teacher: TeacherField | None = Field(
        None, description="a model's name, a run's folder, several of them or {train: ...}", examples=["runs/teacher"]
    )
    outputs: str | None = None
    outputs_limit_mb: Positive = 20_000.0
    outputs_top: Count | None = None
    outputs_form: OutputsFormField | None = None
    outputs_max_error: Positive | None = None
    objective: ObjectiveField = _CROSS_ENTROPY
    class_weights: ClassWeightsField = None
    start: str | None = Field(None, description="a finished run's folder or null", examples=["runs/first-run"])
    epochs: Count = FitSettings.epochs
    batch_size: Count = Fit.batch_size
    optimizer: OptimizerField = SGD()
    schedule: ScheduleField = Constant()
    accumulate: Literal["auto"] | Count = Field(
        FitSettings.accumulate, description=f"auto or a whole number in [1, {LARGEST_COUNT}]", examples=["4"]
    )
    clip: Positive | None = None
    ema: EMAField | None = None
    early_stopping: EarlyStoppingField | None = None
    precision: Literal["auto", Precision] = "auto"
    channels_last: Truth = FitSettings.channels_last
    nonfinite: Literal["stop", "skip"] = FitSettings.nonfinite
    checkpoint_steps: Count | None = FitSettings.checkpoint_steps
    checkpoint_seconds: Positive = FitSettings.checkpoint_seconds
    log_steps: Count = FitSettings.log_steps
    compile_teacher: Switch = FitSettings.compile_teacher
    compile_student: Switch = FitSettings.compile_student
    gradient_products: Switch = FitSettings.gradient_products
    graphs: Switch = FitSettings.graphs
    loss_form: Literal["auto"] | LossForm = FitSettings.loss_form
    checkpoint_activations: Truth = FitSettings.checkpoint_activations
    sync_bn: Switch = FitSettings.sync_bn
    shard: Shard = FitSettings.shard
    on_policy: OnPolicyField | None = None
    seed: SeedField = 0
    data_seed: SeedField = 0
    device: Literal["auto", "cpu", "cuda"] | Annotated[str, Field(pattern=DEVICE)] = Field(
        "auto", description="auto, cpu, cuda or cuda:N, a GPU by its number", examples=["cpu"]
    )
    threads: Threads | None = None
    deterministic: Truth = False
    weak_teacher: Truth = False
    stages: tuple[Stage, ...] = Field(
        (), max_length=100, description="a list of up to 100 stages", examples=["[{epochs: 1}]"]
    )

    def fits(self) -> list[Fit]:
        """Return each stage's objective, settings and batch size; one where no stages are named."""
        return [self._fit(stage) for stage in self.stages or (Stage(),)]

    def _fit(self, stage: Stage) -> Fit:
        keys = {name: getattr(self, name) for name in type(self).model_fields}
        keys |= {name: value for name, value in stage if value is not None}
        settings = {field.name: keys[field.name] for field in fields(FitSettings)}
        if settings["precision"] == "auto":  # not resolved yet
            settings["precision"] = "fp32"
        if settings["accumulate"] == "auto":
            settings["accumulate"] = 1
        on_policy: OnPolicy | None = keys["on_policy"]
        if on_policy is not None and not on_policy.share:
            on_policy = None
        if on_policy is not None:  # Texts of any length fit no graph, and a replay would run beside the sampling.
            settings["graphs"] = False
        return Fit(
            objective=keys["objective"],
            settings=FitSettings(**settings),
            batch_size=keys["batch_size"],
            on_policy=on_policy,
            class_weights=keys["class_weights"],
        )

    @property
    def reads(self) -> dict[str, str]:
        """What ``student`` and ``teacher`` read of samples that are an image and a text each; empty for others."""
        networks = {"student": self.student, "teacher": self.teacher} if self.data.is_pair else {}
        return {name: network.reads for name, network in networks.items() if network and network.reads}

    @property
    def teacher_reads_text(self) -> bool:
        """Whether the teacher reads text, which no view varies."""
        return self.data.is_text and self.reads.get("teacher") != "image"

    def training(self, name: str) -> Recipe | None:
        """Return the recipe of the teacher that is to be trained first; none where there is no such."""
        if not isinstance(self.teacher, TrainedTeacher):
            return None
        keys = {key: value for key, value in self.teacher.train if value is not None}
        tokenizer, unlabelled = self.data.teacher_tokenizer or self.data.tokenizer, None
        if self.data.unlabelled is not None and isinstance(tokenizer, LearnedTokenizer):
            unlabelled = replace(self.data.unlabelled, share=0.0)  # Both networks' tokenizer is learned from them too.
        changes = {
            "name": name,
            "data": replace(
                self.data,
                labelled=keys.pop("labelled", None),
                unlabelled=unlabelled,
                strong=None,
                tokenizer=tokenizer,
                teacher_tokenizer=None,
                embedding=None,
            ),
            "student": keys.pop("model"),
            "teacher": None,
            "outputs": None,
            "start": None,
            "objective": _CROSS_ENTROPY,
            "on_policy": None,
            "stages": (),
        }
        inherited = {name: getattr(self, name) for name in Recipe.model_fields}
        return Recipe.model_construct(**{**inherited, **changes, **keys})


class Judged(Recipe):
    """An evaluation, whose ``model``, which is not trained, may have a map of classes like a teacher's."""

    student: Annotated[Network, ShortFor("name")] = Field(description="a model's name", examples=["runs/first-run"])


class Comparison(Recipe):
    """Several objectives over several seeds on one task.

    Attributes:
        objectives: what is compared, by the names that the table shows.
        seeds: how many runs each; both seeds differ from run to run.
        baseline: the entry that gains are measured against; by default the first.
        share_data_seed: all seeds have the data seed of the first, so that order and views are the same for all runs.
        together: how many students at most are trained in lockstep, on one batch and one teacher pass per step.
    """

    # A run's key, which a comparison refuses; written out, its default could not be read back.
    objective: ObjectiveField = Field(_CROSS_ENTROPY, exclude=True)
    objectives: dict[str, ObjectiveField] = Field(
        min_length=1, description="a mapping of names to objectives", examples=["{kd: kd}"]
    )
    seeds: Seeds = 1
    baseline: str | None = Field(None, description="one of the objectives' names or null", examples=["null"])
    share_data_seed: Truth = False
    together: Seeds = TOGETHER

    @field_validator("objective", mode="before")
    @classmethod
    def _objective_has_a_name(cls, value: Any) -> Any:
        if value is None:  # What a run's recipe has is taken back.
            return _CROSS_ENTROPY
        instead = "type objectives.NAME=..., and objective=null"
        raise InvalidValueError("", "each objective of a comparison under its name", messages.shown(value), instead)

    @field_validator("accumulate")
    @classmethod
    def _one_number_for_all(cls, value: int | str) -> int | str:
        if value == "auto":
            instead = "type accumulate=..., such as what a run alone has found"
            raise InvalidValueError("", "a number in a comparison, whose runs share batches", value, instead)
        return value

    @field_validator("start")
    @classmethod
    def _runs_begin_anew(cls, value: str | None) -> str | None:
        if value is not None:
            instead = "type start=... with tutelage distill or train, once for each run"
            raise InvalidValueError("", "null in a comparison, whose runs begin at their first step", value, instead)
        return value

    @field_validator("stages")
    @classmethod
    def _stages_leave_the_objective(cls, value: tuple[Stage, ...]) -> tuple[Stage, ...]:
        errors = [
            InvalidValueError(
                f"stages.{i}.objective",
                "none in a comparison, where it would replace every entry's",
                stage.objective.name,
                "type objectives.NAME=... instead",
            )
            for i, stage in enumerate(value)
            if stage.objective is not None
        ]
        raise_all(errors)
        return value

    @field_validator("objectives")
    @classmethod
    def _objectives_name_folders(cls, value: dict[str, ObjectiveSpec]) -> dict[str, ObjectiveSpec]:
        expected = 'names of up to 200 bytes that begin with a letter or digit and have none of / \\ : * ? " < > |'
        errors: list[TutelageError] = []
        taken: dict[str, str] = {}
        for name in value:
            other = taken.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
            if not re.fullmatch(ENTRY_NAME, name) or len(name.encode(errors="replace")) > 200:
                errors.append(InvalidValueError("objectives", expected, messages.shown(name), "for example kd"))
            elif other != name:
                both = f"{other!r} and {name!r}"
                alone = "names that differ in more than case"
                errors.append(InvalidValueError("objectives", alone, both, "rename one"))
        raise_all(errors)
        return value

    @field_validator("seeds")
    @classmethod
    def _every_seed_fits(cls, value: int, info: ValidationInfo) -> int:
        first = max(info.data.get("seed", 0), info.data.get("data_seed", 0))
        if first + value > 2**63:
            raise InvalidValueError("", "seeds up to 2**63 - 1", f"{value} from {first} on", "type seed=0 data_seed=0")
        return value

    @field_validator("baseline")
    @classmethod
    def _baseline_is_compared(cls, value: str | None, info: ValidationInfo) -> str | None:
        known = list(info.data.get("objectives", {}))
        if value is not None and known and value not in known:
            instead = f"type baseline={nearest_name(value, known)}"
            raise InvalidValueError("", f"one of {', '.join(known)}", repr(value), instead)
        return value


R = typing.TypeVar("R", bound=Recipe)


def parse(
    kind: type[R],
    value: Mapping[str, Any],
    *,
    where: str = "recipe",
    overrides: Sequence[str] = (),
    check: Callable[[ObjectiveSpec], object] | None = None,
) -> R:
    """Check a recipe as a whole.

    Args:
        kind: of recipe.
        value: as YAML gives it.
        where: what the messages begin with, but those about keys of ``overrides``.
        overrides: those that were laid over ``value``, as they were typed.
        check: raises ValueError for an objective whose arguments have values that its losses refuse, such as
            `tutelage.objectives.from_spec`; none leaves that to whoever builds it.

    Raises:
        RecipeError: with every fault at once, unknown keys with the nearest known one.
        NewerError: a newer version wrote it.
    """
    if "schema" in value:  # of a recipe that a run wrote
        check_schema(where, value)
        value = {key: inner for key, inner in value.items() if key != "schema"}
    if "model" in value and "student" not in value:
        value = {("student" if key == "model" else key): inner for key, inner in value.items()}
    try:
        recipe = kind.model_validate(dict(value), context={"check": check} if check else None)
    except pydantic.ValidationError as error:
        raise messages.recipe_error(kind, error).renamed(partial(_place, where, overrides)) from None
    if recipe.data.per_token:
        require_typed_exponents(recipe, where=where, overrides=overrides)
    kinds = (_of_served, _of_on_policy, _of_pairs, _of_masks, _of_vocabularies)
    if errors := [error for kind in kinds for error in kind(recipe)]:
        raise RecipeError.of(errors).renamed(partial(_place, where, overrides))
    return recipe


def _of_on_policy(recipe: Recipe) -> Iterator[InvalidValueError]:
    """Yield what does not go together with completions that the student writes."""
    if not any(fit.on_policy for fit in recipe.fits()):
        return
    off, data = "or leave on_policy out", recipe.data
    if not (data.prompt or data.messages):
        expected = "data.prompt and data.completion, or data.messages: prompts that the student continues"
        got = "packed texts" if data.pack else "texts with a class" if data.is_text else "no texts"
        yield InvalidValueError("on_policy", expected, got, f"name such columns, {off}")
    if recipe.teacher is None:
        expected = "a teacher that judges what the student writes"
        yield InvalidValueError("on_policy", expected, "none", f"add teacher=..., {off}")
    if isinstance(recipe.teacher, Network) and recipe.teacher.served:
        expected = "a teacher that reads what the student writes"
        yield InvalidValueError("on_policy", expected, "a served one, of known answers", f"name a network, {off}")
    if recipe.outputs is not None:
        expected = "null with on_policy, as nobody knows beforehand what the student writes"
        yield InvalidValueError("outputs", expected, repr(recipe.outputs), f"type outputs=null, {off}")
    if recipe.shard in ("student", "both"):
        expected = "none or teacher with on_policy, as the student samples on each device alone"
        yield InvalidValueError("shard", expected, repr(recipe.shard), f"type shard=none, {off}")
    if recipe.graphs is True:
        expected = "auto or false with on_policy, whose batches differ in length"
        yield InvalidValueError("graphs", expected, "true", f"type graphs=false, {off}")


def _of_served(recipe: Recipe) -> Iterator[InvalidValueError]:
    """Yield what does not go together with a served teacher, or with another one."""
    if recipe.teacher is None:
        return
    if not (isinstance(recipe.teacher, Network) and recipe.teacher.served):
        if recipe.data.top_logprobs is not None:
            expected, got = f"null where the teacher is not {SERVED}", repr(recipe.data.top_logprobs)
            instead = f"type teacher={SERVED}, or data.top_logprobs=null"
            yield InvalidValueError("data.top_logprobs", expected, got, instead)
        return
    if recipe.teacher != Network(name=SERVED):
        yield InvalidValueError("teacher", "a served teacher's name alone", "more", f"type teacher={SERVED}")
    if recipe.data.top_logprobs is None:
        expected = "the column of a served teacher's answers"
        yield InvalidValueError("data.top_logprobs", expected, "none", "type data.top_logprobs=<column>")
    if recipe.outputs is not None:
        expected = "null with a served teacher, whose answers are in the data"
        yield InvalidValueError("outputs", expected, repr(recipe.outputs), "type outputs=null")


def _of_vocabularies(recipe: Recipe) -> Iterator[InvalidValueError]:
    """Yield what does not go together with a teacher whose tokens are others than the student's."""
    if not (recipe.data.per_token and recipe.data.teacher_tokenizer):
        return
    because = "with data.teacher_tokenizer, as the teacher's tokens are others than the student's"
    values = {"outputs": recipe.outputs, "student.init": recipe.student.init}
    for key, value in values.items():
        if value is not None:
            instead = f"type {key}=null, or data.teacher_tokenizer=null for a teacher of the student's tokens"
            yield InvalidValueError(key, f"null {because}", repr(value), instead)
    if any(fit.on_policy for fit in recipe.fits()):
        instead = "leave on_policy out, or type data.teacher_tokenizer=null for a teacher of the student's tokens"
        yield InvalidValueError("on_policy", f"0 {because}", "a share above 0", instead)


def _of_masks(recipe: Recipe) -> Iterator[InvalidValueError]:
    """Yield what does not go together with a class for each pixel."""
    if recipe.data.has_masks and recipe.outputs is not None:
        expected = "null with masks, as the logits of every pixel would be too many to keep"
        instead = "type outputs=null to ask the teacher itself"
        yield InvalidValueError("outputs", expected, repr(recipe.outputs), instead)


def _of_pairs(recipe: Recipe) -> Iterator[InvalidValueError]:
    """Yield what does not go together with samples that are an image and a text each, or with other samples."""
    read: dict[str, Reads | None] = {}
    read["model" if recipe.teacher is None else "student"] = recipe.student.reads
    if isinstance(recipe.teacher, Teachers):
        of_members: dict[str, Reads | None] = {
            f"teacher.members.{k}": member.reads for k, member in enumerate(recipe.teacher.members)
        }
        read |= of_members
        for key, kind in of_members.items():
            if kind not in (None, recipe.teacher.reads):
                expected = f"{recipe.teacher.reads}, as the first of several teachers reads"
                yield InvalidValueError(f"{key}.reads", expected, kind, f"type {key}.reads={recipe.teacher.reads}")
    elif recipe.teacher is not None:
        read["teacher.train.model" if isinstance(recipe.teacher, TrainedTeacher) else "teacher"] = recipe.teacher.reads
    for key, kind in read.items():
        if recipe.data.is_pair and kind is None:
            expected = "image or text, as data.image and data.text name a column each"
            yield InvalidValueError(f"{key}.reads", expected, "none", f"type {key}.reads=image, or {key}.reads=text")
        elif kind is not None and not recipe.data.is_pair:
            expected = "null where samples are not an image and a text each"
            instead = f"type {key}.reads=null, or data.image=... and data.text=..."
            yield InvalidValueError(f"{key}.reads", expected, kind, instead)
    if recipe.student.init is not None and len(set(read.values())) > 1:
        expected, instead = "what the teacher reads, of which the student is made", "type the same for both"
        yield InvalidValueError("student.reads", expected, recipe.student.reads, instead)


def require_typed_exponents(recipe: Recipe, *, where: str = "recipe", overrides: Sequence[str] = ()) -> None:
    """Refuse a gamma left at its default, which is meant for images; for data whose tokens each have a label.

    Raises:
        RecipeError: with every such objective; ``where`` and ``overrides`` are those of `parse`.
    """
    objectives = {"objective": recipe.objective}
    if isinstance(recipe, Comparison):
        objectives = {f"objectives.{name}": spec for name, spec in recipe.objectives.items()}
    objectives |= {f"stages.{k}.objective": each.objective for k, each in enumerate(recipe.stages) if each.objective}
    presets = known_presets()
    if errors := [error for key, spec in objectives.items() for error in untyped_exponents(spec, presets, key)]:
        raise RecipeError.of(errors).renamed(partial(_place, where, overrides))


def _place(where: str, overrides: Sequence[str], key: str) -> str:
    """Return a key with what it stands in, unless it was typed."""
    typed = any(key == name or key.startswith(f"{name}.") for name in (text.partition("=")[0] for text in overrides))
    return key if typed else f"{where}: {key}"
