"""What a study is: pairs, methods and seeds under one protocol, and the published values that it is held against.

A study is data. Those of the package lie in ``published/``, one YAML file each; a user's own has the same keys.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from tutelage import config, objectives, records
from tutelage.config import messages
from tutelage.config.schema import NetworkField, Recipe, RecipeError, TeacherField, TrainedTeacher, Training
from tutelage.objectives import PRESETS, Objective
from tutelage.settings.fit import SGD, Constant

TEACHER = "teacher"
"""The name of a pair's first row, which no method may have."""
PUBLISHED = Path(__file__).parent / "published"
FOLDER = r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*$"
ELSEWHERE = {
    "name": "each run is named by its pair, method and seed",
    "student": "type pairs.TEACHER/STUDENT.student=...",
    "model": "type pairs.TEACHER/STUDENT.student=...",
    "teacher": "type pairs.TEACHER/STUDENT.teacher=...",
    "objective": "type methods.NAME.objective=...",
}
"""Keys of a recipe that a study says in another place."""
SEEDS = ("seed", "data_seed")
"""Keys that differ from run to run, so that the protocol alone says them: the first run's."""
SHARED = ("teachers", "students")
"""Folders of a pool that hold what several pairs have in common."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Value(_Section):
    """One published value.

    Attributes:
        mean: in percent.
        std: in percentage points; none where the source gives none.
        n: runs that the mean is over; none where the source does not say.
    """

    mean: float
    std: float | None = Field(None, ge=0)
    n: int | None = Field(None, ge=1)

    @field_validator("mean")
    @classmethod
    def _mean_is_in_percent(cls, value: float) -> float:
        if 0 < value < 1:
            raise ValueError(f"expected percent, got {value}; type 100 * {value}, {100 * value:g}")
        return value


def _value(given: Any) -> Any:
    return {"mean": given} if isinstance(given, int | float) and not isinstance(given, bool) else given


ValueField = Annotated[Value, BeforeValidator(_value)]


class Pair(_Section):
    """A teacher and its student.

    Attributes:
        teacher: a model's name or ``{train: ...}``. A name that fixes no weights is trained first, by the protocol.
        student: the network to train.
        settings: keys of a recipe that are otherwise for this pair's students.
        published: the teacher's accuracy.
    """

    teacher: TeacherField = Field(
        description="a model's name, a run's folder or {train: ...}", examples=["cifar:resnet56"]
    )
    student: NetworkField = Field(description="a model's name", examples=["cifar:resnet20"])
    settings: dict[str, Any] = {}
    published: ValueField | None = None

    def training(self, seed: int) -> TrainedTeacher | None:
        """Return how the teacher is trained first; none where it is there already.

        Args:
            seed: of both kinds, where the pair does not say others.
        """
        if isinstance(self.teacher, TrainedTeacher):
            train = self.teacher.train
        elif self.teacher.weights is None and _without_weights(self.teacher.name):
            train = Training.model_validate({"model": self.teacher})
        else:
            return None
        own = {key: seed for key in SEEDS if getattr(train, key) is None}
        return TrainedTeacher(train=train.model_copy(update=own))


def _without_weights(name: str) -> bool:
    """Whether a model's name fixes no weights, so that it has to be trained before it can teach."""
    door, _, rest = name.partition(":")
    return door in ("cifar", "mlp") or (door in ("timm", "torchvision") and "." not in rest)


class Method(_Section):
    """One way to train the students.

    Attributes:
        objective: as in a recipe: a preset, or a list of them with scales.
        pairs: arguments that are otherwise for one pair, by the pair's name and the preset's.
        settings: keys of a recipe that are otherwise for this method.
        seeds: runs of this method; none for as many as the study has.
        published: by the pair's name.
    """

    objective: Any
    pairs: dict[str, dict[str, dict[str, Any]]] = {}
    settings: dict[str, Any] = {}
    seeds: int | None = Field(None, ge=1)
    published: dict[str, ValueField] = {}

    @field_validator("objective")
    @classmethod
    def _objective_is_written_out(cls, value: Any) -> Any:
        return _written_out(value)

    @property
    def missing(self) -> list[str]:
        """The presets of its objective that are not built."""
        return [name for name in _names(self.objective) if name not in PRESETS]

    def entry(self, pair: str) -> list[Any]:
        """Return the objective of one pair, as a recipe writes it."""
        found = [_written_out(one) for one in _entries(self.objective)]
        for preset, arguments in self.pairs.get(pair, {}).items():
            for one in found:
                if isinstance(one, dict) and preset in one:
                    one[preset] = {**(one[preset] or {}), **arguments}
        return found

    def objective_for(self, pair: str) -> Objective:
        """Return the objective of one pair.

        Raises:
            ValueError: a preset or an argument is unknown, missing or wrong.
        """
        return objectives.from_recipe(self.entry(pair))


def _entries(objective: Any) -> list[Any]:
    return list(objective) if isinstance(objective, list | tuple) else [objective]


def _written_out(entry: Any) -> Any:
    return {entry: {}} if isinstance(entry, str) else copy.deepcopy(entry)


def presets_of(method: Method) -> list[str]:
    """Return every preset that a method names."""
    return list(_names(method.objective))


def _names(objective: Any) -> Iterator[str]:
    """Every preset that an objective names."""
    for entry in map(_written_out, _entries(objective)):
        if isinstance(entry, Mapping):
            yield from (str(name) for name in entry if name not in records.BESIDE)


def _method(given: Any) -> Any:
    """Everything but the long form, which has an ``objective``, is an objective."""
    long = isinstance(given, Method) or (isinstance(given, Mapping) and set(given) & set(Method.model_fields))
    return given if long else {"objective": given}


MethodField = Annotated[Method, BeforeValidator(_method)]


class Study(_Section):
    """A grid of runs.

    Attributes:
        name: of the study's own folder.
        title: what it is about.
        source: where the published values stand.
        pool: the folder under ``runs/`` that its runs lie in; studies of one protocol share it. None for the name.
        protocol: keys of a recipe that all runs have.
        pairs: teachers and students, by names of the form TEACHER/STUDENT.
        methods: in the order of the table.
        seeds: runs of each method; both seeds differ from run to run, and the first has the protocol's.
        teacher_seed: of the teachers that are trained.
        figures: what is drawn of it.
        costs: the method that the others' time a step and memory are held against in the table; none shows neither.
        notes: what stands below the table.
    """

    name: str = Field(
        pattern=FOLDER.replace("(/[A-Za-z0-9][A-Za-z0-9._-]*)*", ""),
        description="a folder's name of letters, digits, `.`, `_` and `-`",
        examples=["my-study"],
    )
    title: str = ""
    source: str = ""
    pool: str | None = Field(
        None, pattern=FOLDER, description="a folder's name of letters, digits, `.`, `_` and `-`", examples=["mine"]
    )
    protocol: dict[str, Any] = {}
    pairs: dict[str, Pair] = Field(
        min_length=1,
        description="a mapping of TEACHER/STUDENT to the two networks",
        examples=["{big/small: {teacher: mlp:64, student: mlp:8}}"],
    )
    methods: dict[str, MethodField] = Field(
        min_length=1, description="a list of presets, or a mapping of names to objectives", examples=["[kd]"]
    )
    seeds: int = Field(1, ge=1)
    teacher_seed: int = Field(100, ge=0, lt=2**63)
    figures: tuple[Literal["entropy", "divergence", "histogram", "mappings"], ...] = Field((), examples=["[entropy]"])
    costs: str | None = Field(None, description="a method of the study", examples=["kd"])
    notes: tuple[str, ...] = ()

    @field_validator("name")
    @classmethod
    def _name_is_free(cls, value: str) -> str:
        if value in SHARED:
            raise ValueError(f"expected a name other than {' and '.join(SHARED)}, got {value!r}; type name=my-study")
        return value

    @field_validator("protocol")
    @classmethod
    def _protocol_is_of_a_recipe(cls, value: dict[str, Any]) -> dict[str, Any]:
        _refuse(f"protocol.{line}" for line in faults_of(value))
        return value

    @field_validator("pairs")
    @classmethod
    def _pairs_fit(cls, value: dict[str, Pair], info: ValidationInfo) -> dict[str, Pair]:
        found = [
            f"pairs: expected names of the form TEACHER/STUDENT without commas and full stops, got {name!r}; "
            "for example resnet56/resnet20"
            for name in value
            if not re.fullmatch(r"[A-Za-z0-9][^.,/=]*/[A-Za-z0-9][^.,/=]*", name)
        ]
        found += _alike("pairs", value)
        protocol = info.data.get("protocol")
        for name, pair in value.items() if protocol is not None else ():
            lines = faults_of(pair.settings, protocol) if pair.settings else []
            found += [f"pairs.{name}.settings.{line}" for line in lines]
        _refuse(found)
        return value

    @field_validator("methods", mode="before")
    @classmethod
    def _methods_by_name(cls, value: Any) -> Any:
        return methods_by_name(value)

    @field_validator("methods")
    @classmethod
    def _methods_fit(cls, value: dict[str, Method], info: ValidationInfo) -> dict[str, Method]:
        found = [
            f"methods: expected names without commas and full stops, other than {TEACHER!r}, got {name!r}; "
            "for example kd"
            for name in value
            if not re.fullmatch(r"[A-Za-z0-9][^.,/=]*", name) or name == TEACHER
        ]
        found += _alike("methods", value)
        protocol, pairs = info.data.get("protocol"), info.data.get("pairs")
        for name, method in value.items():
            if method.settings and protocol is not None:
                lines = faults_of(method.settings, protocol)
                found += [f"methods.{name}.settings.{line}" for line in lines]
            found += _wrong_objective(name, method, list(pairs) if pairs else None)
        _refuse(found)
        return value

    @field_validator("costs")
    @classmethod
    def _costs_are_of_a_method(cls, value: str | None, info: ValidationInfo) -> str | None:
        methods = info.data.get("methods", {})
        if value is not None and methods and value not in methods:
            raise ValueError(unknown("a method of the study", value, list(methods)))
        return value

    @property
    def recipe(self) -> Recipe:
        """What all runs have in common, resolved; its student stands for any."""
        return Recipe.model_validate({**STAND_IN, **PRECISION, **written_out(self.protocol)})


class Drawing(Study):
    """A study of figures that are functions: it needs no runs."""

    pairs: dict[str, Pair] = {}
    methods: dict[str, MethodField] = {}


DRAWN = ["mappings"]
"""Figures that need no runs."""
STAND_IN = {"name": "study", "student": "mlp:8"}
PRECISION = {"precision": "fp32"}
"""The published protocols' own. A run alone takes the faster one; all of a table's have the same, on every machine."""


def _wrong_objective(name: str, method: Method, pairs: list[str] | None) -> Iterator[str]:
    """Yield what is wrong with a method's objective, and with the pairs that it names."""
    presets = list(_names(method.objective))
    for key in ("pairs", "published") if pairs else ():
        for pair in getattr(method, key):
            if pair not in (pairs or ()):
                yield f"methods.{name}.{key}: {unknown('a pair of the study', pair, pairs or ())}"
    for pair, given in method.pairs.items():
        for preset in given:
            if preset not in presets:
                where = f"methods.{name}.pairs.{pair}"
                yield f"{where}: {unknown('a preset of its objective', preset, presets)}"
    if method.missing and method.published:
        return  # It is not built, and stands in the table by its published values.
    told = set()
    for pair in (pairs or list(method.pairs) or [""]) if method.pairs else [""]:
        try:
            method.objective_for(pair)
        except ValueError as error:
            for line in str(error).splitlines():
                if line not in told:
                    told.add(line)
                    yield f"methods.{name}{f' ({pair})' if pair else ''}: {line}"


def _alike(key: str, names: Iterable[str]) -> Iterator[str]:
    """Names that would share a folder."""
    taken: dict[str, str] = {}
    for name in names:
        other = taken.setdefault(slug(name), name)
        if other != name:
            yield f"{key}: expected names that differ in letters and digits, got {other!r} and {name!r}; rename one"


def slug(name: str) -> str:
    """Make a folder's name.

    Example:
        >>> slug("wttm+crd"), slug("kd++"), slug("resnet56/resnet20"), slug("wttm without ce")
        ('wttm-crd', 'kdplusplus', 'resnet56-resnet20', 'wttm-without-ce')
    """
    joined = re.sub(r"\+(?=\w)", "-", name).replace("+", "plus")
    return re.sub(r"[^A-Za-z0-9._]+", "-", joined).strip("-")


def _refuse(found: Iterable[str]) -> None:
    lines = list(found)
    if lines:
        raise ValueError("\n".join(lines))


def unknown(what: str, name: str, known: Sequence[str]) -> str:
    """Say that a name is not known, and which was probably meant."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else "type one of those"
    return f"expected {what} ({', '.join(known)}), got {name!r}; {hint}"


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Lay keys of a recipe over each other: a section keeps what a later one does not say, but for one of another kind.

    Example:
        >>> merged({"optimizer": {"lr": 0.05, "weight_decay": 1e-4}}, {"optimizer": {"lr": 0.01}})
        {'optimizer': {'lr': 0.01, 'weight_decay': 0.0001}}
    """
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in written_out(layer).items():
            old = result.get(key)
            result[key] = value if key in KINDS and _another_kind(old, value, KINDS[key]) else _over(old, value)
    return result


def _another_kind(old: Any, new: Any, kind: str) -> bool:
    return (
        isinstance(old, Mapping) and isinstance(new, Mapping) and new.get("name") not in (None, old.get("name", kind))
    )


KINDS = {"optimizer": SGD.name, "schedule": Constant.name}
"""Sections that are of one of several kinds, and which they are without a name."""


def _over(old: Any, new: Any) -> Any:
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return new
    return {**old, **{key: _over(old.get(key), value) for key, value in new.items()}}


def written_out(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Write out the sections that stand as a name alone."""
    keys = {"data": "source", "optimizer": "name", "schedule": "name"}
    return {
        key: {keys[key]: value} if key in keys and isinstance(value, str) else copy.deepcopy(value)
        for key, value in settings.items()
    }


def methods_by_name(value: Any) -> Any:
    """Read a list of presets as a mapping, each under its own name; the objectives are written out as mappings."""
    if isinstance(value, list | tuple):
        entries = [next(_names(entry), "") for entry in value]
        double = {name for name in entries if entries.count(name) > 1}
        if double or "" in entries or any(isinstance(entry, list) for entry in value):
            raise ValueError(
                "expected a list of presets, each once, or a mapping of names to objectives, got "
                f"{messages.shown(value)}; type methods: {{NAME: {{PRESET: {{...}}}}}}"
            )
        value = dict(zip(entries, value, strict=True))
    if not isinstance(value, Mapping):
        return value
    return {name: _written_out(str(name) if one is None else one) for name, one in value.items()}


def faults_of(settings: Mapping[str, Any], protocol: Mapping[str, Any] | None = None) -> list[str]:
    """Say what is wrong with keys of a recipe, laid over those of a protocol; each line begins with the key."""
    lines = [
        f"{key}: expected none here, got {messages.shown(settings[key])}; {instead}"
        for key, instead in ELSEWHERE.items()
        if key in settings
    ]
    lines += [
        f"{key}: expected none here, got {messages.shown(settings[key])}; type {key}=... of the protocol"
        for key in SEEDS
        if protocol is not None and key in settings
    ]
    if settings.get("precision") == "auto":
        lines.append("precision: expected one for all runs, fp32 or bf16, got 'auto'; type precision=bf16")
    own = {key: value for key, value in settings.items() if key not in ELSEWHERE}
    try:
        Recipe.model_validate({**STAND_IN, **merged(protocol or {}, own)})
    except ValidationError as error:
        lines += [line for detail in error.errors(include_url=False) for line in messages.explain(Recipe, detail)]
    return lines


def parse(value: Mapping[str, Any], *, where: str = "study") -> Study:
    """Check a study as a whole.

    Raises:
        RecipeError: with every fault at once, unknown keys with the nearest known one.
    """
    kind = Drawing if value.get("figures") == DRAWN and not {"pairs", "methods"} & value.keys() else Study
    try:
        return kind.model_validate(dict(value))
    except ValidationError as error:
        lines = [line for detail in error.errors(include_url=False) for line in messages.explain(kind, detail)]
        raise RecipeError("\n".join(f"{where}: {line}" for line in dict.fromkeys(lines))) from None


def read(given: str, overrides: Sequence[str] = ()) -> tuple[Study, Study]:
    """Read a study by the name of one of the package's, or from a file.

    Args:
        given: the name or the path.
        overrides: ``key=value``. A key that is not a study's own is one of its protocol: ``data.source=...``; and
            ``methods.NAME.PRESET...`` is short for ``methods.NAME.objective.PRESET...``.

    Returns:
        The study as it is written, and with the overrides.

    Raises:
        RecipeError: there is no such study, something in it is wrong, or an override would change no run.
    """
    path = find(given)
    value = config.read(path)
    plain = parse(value, where=str(given))
    if not overrides:
        return plain, plain
    if isinstance(plain, Drawing):
        raise RecipeError(
            f"{given}: expected no override, got {overrides[0]}: it needs no runs, so there is nothing to override; "
            f"type tutelage study {given}"
        )
    methods = {name: _long(one) for name, one in methods_by_name(value["methods"]).items()}
    long = {**value, "protocol": written_out(value.get("protocol") or {}), "methods": methods}
    changed = parse(config.override(long, [_typed(text, methods) for text in overrides]), where=str(given))
    _refuse_idle(plain, changed, str(given))
    return plain, changed


def _long(method: Any) -> dict[str, Any]:
    """Write a method in its long form."""
    return dict(_method(method))


def _typed(text: str, methods: Iterable[str]) -> str:
    """Write an override with the whole path of its key."""
    key, equals, value = text.partition("=")
    first, *rest = key.split(".")
    if first not in Study.model_fields:
        return f"protocol.{text}"
    if first == "methods" and len(rest) > 1 and rest[0] in methods and rest[1] not in Method.model_fields:
        key = ".".join([first, rest[0], "objective", *rest[1:]])
    return key + equals + value


def _refuse_idle(plain: Study, changed: Study, where: str) -> None:
    """Refuse overrides of arguments of a method that a pair has its own values of: they would change no run of it.

    Raises:
        RecipeError: there are such.
    """
    found = []
    for name, method in changed.methods.items():
        before, now = _arguments(plain.methods.get(name, method).objective), _arguments(method.objective)
        told = set()
        for pair, presets in method.pairs.items():
            for preset, argument in ((preset, key) for preset, own in presets.items() for key in own):
                old, new = (one.get(preset, {}).get(argument) for one in (before, now))
                if old != new and (preset, argument) not in told:
                    told.add((preset, argument))
                    found.append(
                        f"{where}: methods.{name}.objective.{preset}.{argument}: expected none where a pair has its "
                        f"own, got {messages.shown(new)}, and {pair} has {messages.shown(presets[preset][argument])}; "
                        f"type methods.{name}.pairs.{pair}.{preset}.{argument}={messages.shown(new)}, "
                        "and the like for other pairs"
                    )
    if found:
        raise RecipeError("\n".join(found))


def _arguments(objective: Any) -> dict[str, dict[str, Any]]:
    """The arguments of each preset of an objective."""
    entries = [one for one in map(_written_out, _entries(objective)) if isinstance(one, Mapping)]
    return {str(key): dict(value) for one in entries for key, value in one.items() if isinstance(value, Mapping)}


def find(given: str) -> Path:
    """Return the path of a study's file.

    Raises:
        RecipeError: there is no such study.
    """
    path = Path(given)
    if path.is_file():
        return path
    if path.suffix in (".yaml", ".yml"):
        raise RecipeError(
            f"study: expected a YAML file, got {given}, which is not there; check the path, or type tutelage study for "
            "the package's own"
        )
    own = PUBLISHED / f"{given}.yaml"
    if given in names():
        return own
    raise RecipeError(f"study: {unknown('a YAML file, or one of the package', given, names())}")


def names() -> list[str]:
    """Return the names of the package's studies, numbers in their order."""
    found = [path.stem for path in PUBLISHED.glob("*.yaml")]
    return sorted(found, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])


def titles() -> list[tuple[str, str]]:
    """Return the package's studies: each name and its title."""
    return [(name, str(config.read(PUBLISHED / f"{name}.yaml").get("title", ""))) for name in names()]
