"""The configuration schema, and the composition root that turns names into objects."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, PlainValidator, ValidationError

from tutelage import objectives
from tutelage.data.settings import DataSettings
from tutelage.engine import SGD, AdamW, Constant, Cosine, FitSettings, MultiStep, Step
from tutelage.objectives import Objective


class RecipeError(ValueError):
    """A recipe is wrong; the message lists every fault, one a line."""


def _objective(value: Any) -> Objective:
    return objectives.from_recipe(value)


ObjectiveField = Annotated[
    Objective, PlainValidator(_objective), PlainSerializer(lambda objective: objective.to_recipe())
]
OptimizerField = Annotated[SGD | AdamW, Field(discriminator="name")]
ScheduleField = Annotated[Constant | Step | MultiStep | Cosine, Field(discriminator="name")]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, frozen=True)


class Network(_Section):
    """A network by name, with weights from a file of one's own.

    Attributes:
        name: such as ``cifar:resnet20`` (``tutelage list models``), or a run's folder.
        weights: a local checkpoint; none for the weights that the name fixes.
    """

    name: str
    weights: str | None = None


def _network(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


NetworkField = Annotated[Network, BeforeValidator(_network)]


class Stage(_Section):
    """One of several fits of a run: what differs from the recipe it stands in."""

    objective: ObjectiveField | None = None
    epochs: int | None = None
    batch_size: int | None = None
    optimizer: OptimizerField | None = None
    schedule: ScheduleField | None = None
    clip: float | None = None


class Training(_Section):
    """How a teacher is to be trained before the run that needs it; what is not said is as in that run."""

    model: NetworkField
    objective: ObjectiveField | None = None
    epochs: int | None = None
    batch_size: int | None = None
    optimizer: OptimizerField | None = None
    schedule: ScheduleField | None = None
    clip: float | None = None
    precision: Literal["fp32", "bf16"] | None = None
    labelled: int | None = None
    seed: int | None = None
    data_seed: int | None = None


class TrainedTeacher(_Section):
    """A teacher that the run trains first, from labels."""

    train: Training


TeacherField = Annotated[Network | TrainedTeacher, BeforeValidator(_network)]


class Recipe(_Section):
    """One run.

    Attributes:
        name: the run's folder under ``runs/``.
        data: where the data come from, and their views.
        student: the network to train (``model`` in the recipe of a teacher).
        teacher: the network to learn from; none for labels alone.
        objective: a preset, or a list of them with scales.
        batch_size: samples an optimizer step, over all micro-batches and processes.
        seed: of the initialisation and of dropout.
        data_seed: of order and augmentation.
        device: ``auto``, ``cpu`` or ``cuda``.
        threads: of the CPU; none for torch's own choice. Exact resume needs the same number.
        deterministic: ask torch for deterministic algorithms; exact resume on CUDA needs it.
        weak_teacher: go on though the teacher is no better than chance.
        stages: several fits in turn; each says what differs.

    The other fields are those of `FitSettings`.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")
    data: DataSettings = DataSettings()
    student: NetworkField
    teacher: TeacherField | None = None
    objective: ObjectiveField = objectives.cross_entropy()
    epochs: int = Field(240, ge=1)
    batch_size: int = Field(64, ge=1)
    optimizer: OptimizerField = SGD()
    schedule: ScheduleField = Constant()
    accumulate: int = Field(1, ge=1)
    clip: float | None = Field(None, gt=0)
    precision: Literal["fp32", "bf16"] = "fp32"
    channels_last: bool = True
    nonfinite: Literal["stop", "skip"] = "stop"
    checkpoint_steps: int | None = Field(None, ge=1)
    checkpoint_seconds: float = Field(300.0, gt=0)
    log_steps: int = Field(50, ge=1)
    seed: int = Field(0, ge=0)
    data_seed: int = Field(0, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = Field(None, ge=1)
    deterministic: bool = False
    weak_teacher: bool = False
    stages: tuple[Stage, ...] = ()

    def fits(self) -> list[tuple[Objective, FitSettings, int]]:
        """Return each stage's objective, settings and batch size; one where no stages are named."""
        return [self._fit(stage) for stage in self.stages or (Stage(),)]

    def _fit(self, stage: Stage) -> tuple[Objective, FitSettings, int]:
        own = {name: value for name, value in stage if value is not None}
        settings = {field.name: own.get(field.name, getattr(self, field.name)) for field in fields(FitSettings)}
        return own.get("objective", self.objective), FitSettings(**settings), own.get("batch_size", self.batch_size)

    def training(self, name: str) -> Recipe | None:
        """Return the recipe of the teacher that is to be trained first; none where there is no such."""
        if not isinstance(self.teacher, TrainedTeacher):
            return None
        said = {key: value for key, value in self.teacher.train if value is not None}
        labelled = said.pop("labelled", None)
        said["student"] = said.pop("model")
        if labelled is None:
            data = typing.cast(DataSettings, _replace(self.data, labelled=None))
        else:
            data = typing.cast(DataSettings, _replace(self.data, labelled=labelled))
        said.setdefault("objective", objectives.cross_entropy())
        return self.model_copy(update={"name": name, "teacher": None, "stages": (), "data": data, **said})


class Comparison(Recipe):
    """Several objectives over several seeds on one task.

    Attributes:
        objectives: what is compared, by the names that the table shows.
        seeds: how many runs each; both seeds differ from run to run.
        baseline: the entry that gains are measured against; by default the first.
    """

    objectives: dict[str, ObjectiveField] = Field(min_length=1)
    seeds: int = Field(1, ge=1)
    baseline: str | None = None


def read(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a recipe file and apply ``key=value`` overrides.

    Raises:
        RecipeError: the file is not there, is not YAML, or is not a mapping; an override is not ``key=value``.
    """
    try:
        value = yaml.load(path.read_text(), Loader=_Loader)  # noqa: S506  a subclass of the safe loader
    except OSError as error:
        raise RecipeError(
            f"recipe: expected a YAML file, got {path} ({error.strerror}); for example recipes/digits.yaml"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" at line {where.line + 1}" if where else ""
        what = getattr(error, "problem", None) or "an unreadable character"
        raise RecipeError(f"recipe {path}: expected YAML, got {what}{line}; write `key: value`, indented by spaces") from None
    if not isinstance(value, dict):
        raise RecipeError(
            f"recipe {path}: expected a mapping of keys, got {type(value).__name__}; for example `student: cifar:resnet20`"
        )
    return override(value, overrides)


def override(value: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply ``dotted.key=value`` overrides; values are read as YAML."""
    for text in overrides:
        key, equals, raw = text.partition("=")
        if not equals or not key:
            raise RecipeError(f"override: expected key=value, got {text!r}; for example epochs=10")
        *path, last = key.split(".")
        place = value
        for name in path:
            inner = place.get(name)
            # A name alone, such as `student: cifar:resnet20`, is short for {name: ...}.
            place[name] = inner if isinstance(inner, dict) else {"name": inner} if isinstance(inner, str) else {}
            place = place[name]
        try:
            place[last] = yaml.load(raw, Loader=_Loader)  # noqa: S506
        except yaml.YAMLError:
            raise RecipeError(f"override {key}: expected a YAML value, got {raw!r}; for example {key}=1") from None
    return value


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
        faults = list(dict.fromkeys(_fault(kind, detail) for detail in error.errors(include_url=False)))
        raise RecipeError("\n".join(f"{where}: {fault}" for fault in faults)) from None


def dump(recipe: Recipe) -> str:
    """Return the resolved recipe as YAML: every value, defaults included."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _replace(settings: Any, **changes: Any) -> Any:
    from dataclasses import replace

    return replace(settings, **changes)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 takes 5e-4 for a string; everyone else takes it for a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def _fault(kind: type[BaseModel], detail: Any) -> str:
    """One line: what, expected, got, what to type."""
    place = [str(part) for part in detail["loc"]]
    key = ".".join(place) or "recipe"
    got = detail.get("input")
    match detail["type"]:
        case "extra_forbidden":
            known = sorted(_known(kind, place[:-1]))
            near = difflib.get_close_matches(place[-1], known, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
            return f"{key}: expected a known key, got {place[-1]!r}; {hint}"
        case "missing":
            return f"{key}: expected a value, got none; add `{place[-1]}: ...`"
        case "value_error":
            text = str(detail["ctx"]["error"]) if "ctx" in detail else detail["msg"]
            return text if text.startswith(place[-1] if place else "") else f"{key}: {text}"
        case "union_tag_invalid":
            tags = detail["ctx"]["expected_tags"].replace("'", "")
            tag = detail["ctx"]["tag"]
            near = difflib.get_close_matches(tag, tags.split(", "), n=1)
            return f"{key}: expected one of {tags}, got {tag!r}; type {key}.name={near[0] if near else tags.split(', ')[0]}"
        case "union_tag_not_found":
            return f"{key}: expected a mapping with a name, got {got!r}; for example {{name: {_first(kind, place)}}}"
    text = detail["msg"].removeprefix("Input should be ").removeprefix("a ").removeprefix("an ")
    return f"{key}: expected {text}, got {got!r}; type {key}=... with such a value"


def _first(kind: type[BaseModel], place: Sequence[str]) -> str:
    return {"optimizer": "sgd", "schedule": "multistep"}.get(place[-1] if place else "", "...")


def _known(kind: Any, place: Sequence[str]) -> set[str]:
    """The keys that a section of the schema has; a union's sections together, narrowed by its tag."""
    kinds = [kind]
    for name in place:
        inner = [t for k in kinds for t in _types(_annotations(k).get(name))]
        if inner:
            kinds = inner
        elif not name.isdigit():
            kinds = [k for k in kinds if name in (_tag(k), k.__name__)] or kinds
    return {name for k in kinds for name in _annotations(k)}


def _annotations(kind: Any) -> dict[str, Any]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {name: field.annotation for name, field in kind.model_fields.items()}
    return typing.get_type_hints(kind) if is_dataclass(kind) else {}


def _tag(kind: Any) -> str | None:
    default = getattr(kind, "name", None)
    return default if isinstance(default, str) else None


def _types(annotation: Any) -> Iterator[Any]:
    """Every section that an annotation holds."""
    origin = typing.get_origin(annotation)
    if origin is None:
        if isinstance(annotation, type):
            yield annotation
    elif origin is not Literal:
        for inner in typing.get_args(annotation)[:1] if origin is Annotated else typing.get_args(annotation):
            if not isinstance(inner, types.EllipsisType):
                yield from _types(inner)
