"""The configuration schema, and the composition root that turns names into objects."""

from __future__ import annotations

import copy
import difflib
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    PlainValidator,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from tutelage import objectives
from tutelage.config import messages
from tutelage.objectives import Objective
from tutelage.settings.data import DataSettings, check
from tutelage.settings.fit import SGD, AdamW, Constant, Cosine, FitSettings, MultiStep, Step
from tutelage.teacher_cache.top_k import BOUND


class RecipeError(ValueError):
    """A recipe is wrong; the message lists every fault, one a line."""


def _objective(value: Any) -> Objective:
    return objectives.from_recipe(value)


def _write_objective(objective: Objective) -> Any:
    if any(piece.preset is None for piece in objective.pieces):
        # Terms of the user's own say what they are; reading them back is refused, as they cannot be made from a name.
        return objective.weights()
    return objective.to_recipe()


def _short_for(key: str) -> BeforeValidator:
    """A name alone, such as ``student: cifar:resnet20``, is short for ``{name: ...}``."""
    return BeforeValidator(lambda value: {key: value} if isinstance(value, str) else value)


def _of_kind(default: str) -> BeforeValidator:
    """A section is of one of several kinds, by its ``name``; one without a name is of the default kind."""
    return BeforeValidator(lambda value: {"name": default, **value} if isinstance(value, Mapping) else value)


def _check_data(settings: DataSettings) -> DataSettings:
    """Check each setting alone, so that every fault is found, then all together."""
    if abs(settings.split_seed) >= _SEEDS:
        raise ValueError(
            "data.split_seed: expected a whole number between -2**63 and 2**63, "
            f"got {settings.split_seed}; type data.split_seed=0"
        )
    given = {field.name: getattr(settings, field.name) for field in fields(settings)}
    found = [fault for name, value in given.items() for fault in _wrong_with(DataSettings(**{name: value}))]
    found = found or _wrong_with(settings)
    if found:
        raise ValueError("\n".join(found))
    return settings


def _wrong_with(settings: DataSettings) -> list[str]:
    try:
        check(settings)
    except ValueError as error:
        return [str(error)]
    return []


def _check_seed(seed: int | None, info: ValidationInfo) -> int | None:
    if seed is not None and seed >= _SEEDS:
        raise ValueError(f"expected a whole number >= 0 and < 2**63, got {seed}; for example {info.field_name}=0")
    return seed


_SEEDS = 2**63
"""Seeds are below it, as generators take 64 bits."""


def _check_optimizer(optimizer: SGD | AdamW) -> SGD | AdamW:
    FitSettings(optimizer=optimizer)
    return optimizer


SeedField = Annotated[int, Field(ge=0), AfterValidator(_check_seed)]
OwnSeedField = Annotated[int | None, Field(ge=0), AfterValidator(_check_seed)]
DataField = Annotated[DataSettings, AfterValidator(_check_data), _short_for("source")]
ObjectiveField = Annotated[Objective, PlainValidator(_objective), PlainSerializer(_write_objective)]
OptimizerField = Annotated[
    SGD | AdamW,
    Field(discriminator="name"),
    AfterValidator(_check_optimizer),
    _of_kind(SGD.name),
    _short_for("name"),
]
ScheduleField = Annotated[
    Constant | Step | MultiStep | Cosine, Field(discriminator="name"), _of_kind(Constant.name), _short_for("name")
]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, frozen=True, allow_inf_nan=False)


class Network(_Section):
    """A network by name, with weights from a file of one's own.

    Attributes:
        name: such as ``cifar:resnet20`` (``tutelage list models``), or a run's folder.
        weights: a local checkpoint; none for the weights that the name fixes.
    """

    name: str = Field(description="a model's name", examples=["cifar:resnet20"])
    weights: str | None = None


NetworkField = Annotated[Network, _short_for("name")]


class Stage(_Section):
    """One of several fits of a run: what differs from the recipe it stands in."""

    objective: ObjectiveField | None = None
    epochs: int | None = Field(default=None, ge=1)
    batch_size: int | None = Field(default=None, ge=1)
    optimizer: OptimizerField | None = None
    schedule: ScheduleField | None = None
    clip: float | None = Field(default=None, gt=0)


class Training(_Section):
    """How a teacher is to be trained before the run that needs it.

    What is not said is as in that run, but for ``objective``, by default cross-entropy, and ``labelled``, by default
    every label. The data are that run's.
    """

    model: NetworkField = Field(description="a model's name", examples=["cifar:resnet56"])
    objective: ObjectiveField | None = None
    epochs: int | None = Field(default=None, ge=1)
    batch_size: int | None = Field(default=None, ge=1)
    optimizer: OptimizerField | None = None
    schedule: ScheduleField | None = None
    clip: float | None = Field(default=None, gt=0)
    precision: Literal["fp32", "bf16"] | None = None
    labelled: int | None = Field(None, ge=0)
    seed: OwnSeedField = None
    data_seed: OwnSeedField = None


class TrainedTeacher(_Section):
    """A teacher that the run trains first, from labels."""

    train: Training


def _kind_of_teacher(value: Any) -> str:
    trained = "train" in value if isinstance(value, Mapping) else isinstance(value, TrainedTeacher)
    return (TrainedTeacher if trained else Network).__name__


TeacherField = Annotated[
    Annotated[Network, Tag("Network")] | Annotated[TrainedTeacher, Tag("TrainedTeacher")],
    Discriminator(_kind_of_teacher),
    _short_for("name"),
]


class Recipe(_Section):
    """One run.

    Attributes:
        name: the run's folder under ``runs/``.
        data: where the data come from, and their views.
        student: the network to train (``model`` in the recipe of a teacher).
        teacher: the network to learn from; none for labels alone.
        outputs: the folder of the teacher's recorded outputs, which are read instead of asking it; none asks it.
        outputs_limit_mb: recording refuses to write more, MB of 10**6 bytes.
        outputs_top: where all logits are above that, it keeps so many of each sample (`store.TopK`); none keeps all.
        outputs_max_error: it refuses the top where a chunk's mean total variation from ``p_gamma`` or mean relative
            error of ``U_gamma``, at an exponent of the recipe's, is larger.
        objective: a preset, or a list of them with scales.
        batch_size: samples an optimizer step, over all micro-batches and processes.
        seed: of the initialisation and of dropout.
        data_seed: of order and augmentation.
        device: ``auto``, ``cpu`` or ``cuda``.
        threads: of the CPU; none for torch's own choice. Exact resume needs the same number.
        deterministic: ask torch for deterministic algorithms; exact resume on CUDA needs it.
        precision: ``fp32``, ``bf16``, or ``auto`` for the faster one, which is measured when the run begins
            (`precision.settle`); until then it counts as ``fp32``.
        weak_teacher: go on though the teacher is no better than chance.
        stages: several fits in turn; each says what differs.

    The other fields are those of `FitSettings`.
    """

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*$",
        description="a folder's name of letters, digits, `.`, `_` and `-`",
        examples=["first-run"],
    )
    data: DataField = DataSettings()
    student: NetworkField = Field(description="a model's name", examples=["cifar:resnet20"])
    teacher: TeacherField | None = Field(
        None, description="a model's name, a run's folder or {train: ...}", examples=["runs/teacher"]
    )
    outputs: str | None = None
    outputs_limit_mb: float = Field(20_000.0, gt=0)
    outputs_top: int | None = Field(None, ge=1)
    outputs_max_error: float = Field(BOUND, gt=0)
    objective: ObjectiveField = objectives.cross_entropy()
    epochs: int = Field(240, ge=1)
    batch_size: int = Field(64, ge=1)
    optimizer: OptimizerField = SGD()
    schedule: ScheduleField = Constant()
    accumulate: int = Field(1, ge=1)
    clip: float | None = Field(default=None, gt=0)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    channels_last: bool = True
    nonfinite: Literal["stop", "skip"] = "stop"
    checkpoint_steps: int | None = Field(None, ge=1)
    checkpoint_seconds: float = Field(300.0, gt=0)
    log_steps: int = Field(50, ge=1)
    compile_teacher: Literal["auto"] | bool = "auto"
    compile_student: Literal["auto"] | bool = "auto"
    gradient_products: Literal["auto"] | bool = "auto"
    seed: SeedField = 0
    data_seed: SeedField = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = Field(None, ge=1)
    deterministic: bool = False
    weak_teacher: bool = False
    stages: tuple[Stage, ...] = Field((), examples=["[{epochs: 1}]"])

    def fits(self) -> list[tuple[Objective, FitSettings, int]]:
        """Return each stage's objective, settings and batch size; one where no stages are named."""
        return [self._fit(stage) for stage in self.stages or (Stage(),)]

    def _fit(self, stage: Stage) -> tuple[Objective, FitSettings, int]:
        own = {name: value for name, value in stage if value is not None}
        settings = {field.name: own.get(field.name, getattr(self, field.name)) for field in fields(FitSettings)}
        if settings["precision"] == "auto":  # not settled yet
            settings["precision"] = "fp32"
        return own.get("objective", self.objective), FitSettings(**settings), own.get("batch_size", self.batch_size)

    def training(self, name: str) -> Recipe | None:
        """Return the recipe of the teacher that is to be trained first; none where there is no such."""
        if not isinstance(self.teacher, TrainedTeacher):
            return None
        said = {key: value for key, value in self.teacher.train if value is not None}
        own = {name: getattr(self, name) for name in Recipe.model_fields}
        changes = {
            "name": name,
            "data": replace(self.data, labelled=said.pop("labelled", None)),
            "student": said.pop("model"),
            "teacher": None,
            "outputs": None,
            "objective": objectives.cross_entropy(),
            "stages": (),
        }
        return Recipe.model_construct(**{**own, **changes, **said})


TOGETHER = 8
"""Students in one class unless something else is said. Each takes memory for its parameters, their gradients and the
optimizer's state; activations are there for one at a time."""


class Comparison(Recipe):
    """Several objectives over several seeds on one task.

    Attributes:
        objectives: what is compared, by the names that the table shows.
        seeds: how many runs each; both seeds differ from run to run.
        baseline: the entry that gains are measured against; by default the first.
        share_data_seed: all seeds have the data seed of the first, so that order and views are the same for all runs.
        together: how many students at most are trained in lockstep, on one batch and one teacher pass a step.
    """

    # A run's key, which a comparison refuses; written out, its default could not be read back.
    objective: ObjectiveField = Field(objectives.cross_entropy(), exclude=True)
    objectives: dict[str, ObjectiveField] = Field(
        min_length=1, description="a mapping of names to objectives", examples=["{kd: kd}"]
    )
    seeds: int = Field(1, ge=1)
    baseline: str | None = Field(None, description="one of the objectives' names or null", examples=["null"])
    share_data_seed: bool = False
    together: int = Field(TOGETHER, ge=1)

    @field_validator("objective", mode="before")
    @classmethod
    def _objective_has_a_name(cls, value: Any) -> Any:
        raise ValueError(
            f"expected each objective of a comparison under its name, got {messages.shown(value)}; "
            "type objectives.NAME=... instead"
        )

    @field_validator("stages")
    @classmethod
    def _stages_leave_the_objective(cls, value: tuple[Stage, ...]) -> tuple[Stage, ...]:
        found = [
            f"stages.{i}.objective: expected none in a comparison, where it would replace every entry's, "
            f"got {stage.objective.name}; type objectives.NAME=... instead"
            for i, stage in enumerate(value)
            if stage.objective is not None
        ]
        if found:
            raise ValueError("\n".join(found))
        return value

    @field_validator("baseline")
    @classmethod
    def _baseline_is_compared(cls, value: str | None, info: ValidationInfo) -> str | None:
        known = list(info.data.get("objectives", {}))
        if value is not None and known and value not in known:
            near = difflib.get_close_matches(value, known, n=1) or known
            raise ValueError(f"expected one of {', '.join(known)}, got {value!r}; type baseline={near[0]}")
        return value


def read(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a recipe file and apply ``key=value`` overrides.

    Raises:
        RecipeError: the file is not there, is not YAML, or is not a mapping; an override is not ``key=value``.
    """
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506  a subclass of the safe loader
    except OSError as error:
        raise RecipeError(
            f"recipe: expected a YAML file, got {path} ({error.strerror}); for example recipes/digits.yaml"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f"line {where.line + 1}: " if where else ""
        what = getattr(error, "problem", None) or "not UTF-8"
        raise RecipeError(
            f"recipe: expected YAML, got {path} ({line}{what}); write `key: value`, indented by spaces"
        ) from None
    if not isinstance(value, dict):
        got = "nothing" if value is None else "a list" if isinstance(value, list) else "a single value"
        raise RecipeError(
            f"recipe: expected a mapping of keys, got {path} with {got}; for example `student: cifar:resnet20`"
        )
    return override(value, overrides)


def override(value: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply ``dotted.key=value`` overrides to a copy; values are read as YAML.

    A number counts the entries of a list from 0, and a preset's name finds its entry in a list of them:
    ``stages.0.epochs=5``, ``objective.kd.temperature=2``.

    Raises:
        RecipeError: one or more are not ``key=value``, or lead nowhere.
    """
    changed = copy.deepcopy(dict(value))
    found = []
    for text in overrides:
        try:
            _put(changed, text)
        except RecipeError as error:
            found.append(str(error))
    if found:
        raise RecipeError("\n".join(found))
    return changed


def _put(value: dict[str, Any], text: str) -> None:
    key, equals, raw = text.partition("=")
    names = key.split(".")
    if not equals or not all(names):
        raise RecipeError(f"override: expected key=value, got {text!r}; for example epochs=10")
    try:
        given = yaml.load(raw, Loader=_Loader)  # noqa: S506
    except yaml.YAMLError:
        raise RecipeError(f"override {key}: expected a YAML value, got {raw!r}; for example {key}=1") from None
    place: Any = value
    for depth, name in enumerate(names):
        place, slot = _slot(place, name, key)
        if depth == len(names) - 1:
            place[slot] = given
            return
        inner = place.get(slot) if isinstance(place, dict) else place[slot]
        if isinstance(inner, str):
            inner = _long(inner, names[: depth + 1])
        elif not isinstance(inner, dict | list):
            inner = {}
        place[slot] = inner
        place = inner


def _slot(place: Any, name: str, key: str) -> tuple[Any, Any]:
    """Find what a name means inside a mapping or a list: a container and the key into it."""
    if isinstance(place, dict):
        return place, name
    if name.isdecimal() and int(name) < len(place):
        return place, int(name)
    for i, entry in enumerate(place):
        if entry == name:
            place[i] = {name: {}}
        if isinstance(place[i], dict) and name in place[i]:
            return place[i], name
    raise RecipeError(
        f"override {key}: expected an entry of a list of {len(place)}, got {name!r}; type its number, from 0"
    )


def _long(text: str, path: Sequence[str]) -> dict[str, Any]:
    """Write out a section that stands as a name alone."""
    if "objective" in path[-2:] or path[0] == "objectives":
        return {text: {}}
    return {"source" if list(path) == ["data"] else "name": text}


R = typing.TypeVar("R", bound=Recipe)


def parse(kind: type[R], value: Mapping[str, Any], *, where: str = "recipe") -> R:
    """Check a recipe as a whole.

    Raises:
        RecipeError: with every fault at once, unknown keys with the nearest known one.
    """
    if "model" in value and "student" not in value:
        value = {("student" if key == "model" else key): inner for key, inner in value.items()}
    try:
        return kind.model_validate(dict(value))
    except ValidationError as error:
        lines = [line for detail in error.errors(include_url=False) for line in messages.explain(kind, detail)]
        raise RecipeError("\n".join(f"{where}: {line}" for line in dict.fromkeys(lines))) from None


def dump(recipe: Recipe) -> str:
    """Return the resolved recipe as YAML: every key, defaults included. `parse` reads it back to an equal one."""
    return yaml.dump(recipe.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 takes 5e-4 for a string, everyone else for a number; and it takes the last of two equal keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes the texts that `_Loader` would take for numbers."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
        list("-+0123456789."),
    )
