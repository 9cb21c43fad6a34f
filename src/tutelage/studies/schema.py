"""The schema of a study: pairs, methods and seeds under one protocol, and the published values to compare with.

A study is data: those of the package lie in ``published/``, a user's own has the same keys. Each key is described in
``docs/studies.md``; a test holds that page and these classes together.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from tutelage import records
from tutelage.config import messages
from tutelage.config.schema import (
    FOLDER_NAME,
    FOLDER_NAME_IN_WORDS,
    LONGEST_NAME,
    FolderName,
    NetworkField,
    OneTeacherField,
    Recipe,
    SeedField,
    Seeds,
    TrainedTeacher,
    Training,
    known_presets,
)
from tutelage.errors import InvalidValueError, RecipeError, TutelageError, nearest, raise_all
from tutelage.settings import weights
from tutelage.settings.fit import SGD, Constant, Precision
from tutelage.settings.numbers import LARGEST_COUNT, Real, ShortFor, Whole
from tutelage.settings.objective import REQUIRED, ObjectiveSpec, is_own, read_objective

TEACHER = "teacher"
"""The name of a pair's first row, which no method may have."""
FOLDER = f"^{FOLDER_NAME}(/{FOLDER_NAME})*$"
NAME = r"[A-Za-z0-9][^.,/=\x00-\x1f\x7f]{0,99}"
"""Of a method; a pair's is two of them."""
ELSEWHERE = {
    "name": "each run is named by its pair, method and seed",
    "student": "type pairs.TEACHER/STUDENT.student=...",
    "model": "type pairs.TEACHER/STUDENT.student=...",
    "teacher": "type pairs.TEACHER/STUDENT.teacher=...",
    "objective": "type methods.NAME.objective=...",
    "start": "type it with tutelage distill or train, once for each run",
}
"""Keys of a recipe that a study has elsewhere."""
SEEDS = ("seed", "data_seed")
"""Keys that differ from run to run, so only the protocol has them: the first run's."""
TIMES = "times"
"""Key of a candidate's value that is a factor on the method's own."""
SHARED = ("teachers", "students")
"""Folders of a pool for runs that several pairs share."""
STAND_IN = {"name": "study", "student": "mlp:8"}
PRECISION = {"precision": "fp32"}
"""Of the published protocols. A single run takes the faster one; all of a table's have the same, on every machine."""
KINDS = {"optimizer": SGD.name, "schedule": Constant.name}
"""Sections that are of one of several kinds, and their kind without a name."""
SHORT = {"data": "source", "optimizer": "name", "schedule": "name"}
"""Sections that may stand as a name alone, and the key that it is the value of."""
DRAWN = ["mappings"]
"""Figures that need no runs."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Value(_Section):
    """One published value; none for what the source does not say."""

    mean: Real  # in percent
    std: Real | None = Field(None, ge=0)  # in percentage points
    n: Whole | None = Field(None, ge=1, le=LARGEST_COUNT)  # runs that the mean is over

    @field_validator("mean")
    @classmethod
    def _mean_is_in_percent(cls, value: float) -> float:
        if 0 < value < 1:
            raise InvalidValueError("", "percent", value, f"type 100 * {value}, {100 * value:g}")
        return value


ValueField = Annotated[Value, ShortFor("mean", number=True)]


class Pair(_Section):
    """A teacher and its student."""

    teacher: OneTeacherField = Field(
        description="a model's name, a run's folder or {train: ...}", examples=["cifar:resnet56"]
    )
    student: NetworkField = Field(description="a model's name", examples=["cifar:resnet20"])
    settings: dict[str, Any] = {}
    published: ValueField | None = None

    def training(self, seed: int) -> TrainedTeacher | None:
        """Return how the teacher is trained first, by default with ``seed``; none where it has weights."""
        if isinstance(self.teacher, TrainedTeacher):
            train = self.teacher.train
        elif self.teacher.weights is None and _without_weights(self.teacher.name):
            train = Training.model_validate({"model": self.teacher})
        else:
            return None
        seeds = {key: seed for key in SEEDS if getattr(train, key) is None}
        return TrainedTeacher(train=train.model_copy(update=seeds))


def _without_weights(name: str) -> bool:
    """Whether a model's name fixes no weights, so that it has to be trained before it can teach."""
    source, _, model = name.partition(":")
    return source in ("cifar", "mlp") or (source in ("timm", "torchvision") and "." not in model)


def _preset_mapping(entry: Any) -> Any:
    return {entry: {}} if isinstance(entry, str) else copy.deepcopy(entry)


class Method(_Section):
    """One way to train the students."""

    objective: Any
    pairs: dict[str, dict[str, dict[str, Any]]] = {}
    settings: dict[str, Any] = {}
    candidates: tuple[dict[str, dict[str, Any]], ...] = Field((), examples=["[{kd: {weight: 0.3}}, {}]"])
    seeds: Seeds | None = None
    published: dict[str, ValueField] = {}

    _objective_is_written_out = field_validator("objective")(_preset_mapping)

    @property
    def presets(self) -> list[str]:
        """The presets that its objective names."""
        return _presets(self.objective)

    @property
    def missing(self) -> list[str]:
        """The presets of its objective that are not built."""
        known = known_presets()
        return [name for name in self.presets if name not in known and not is_own(name)]

    def entry(self, pair: str) -> list[Any]:
        """Return the objective of one pair, as a recipe writes it."""
        entries = presets_written_out(self.objective)
        for preset, arguments in self.pairs.get(pair, {}).items():
            for entry in entries:
                if isinstance(entry, dict) and preset in entry:
                    entry[preset] = {**(entry[preset] or {}), **arguments}
        return entries

    def setting(self, candidate: int, pair: str) -> dict[str, dict[str, Any]]:
        """Return what a candidate sets for one pair: each argument that any candidate names, with its value here.

        Raises:
            ValueError: an argument that is to be multiplied is no number, or a factor is none.
        """
        written = {preset: entry[preset] or {} for entry in self.entry(pair) for preset in _presets(entry)}
        changed = self.candidates[candidate]
        searched = [(preset, name) for each in self.candidates for preset in each for name in each[preset]]
        result: dict[str, dict[str, Any]] = {}
        for preset, name in dict.fromkeys(searched):
            argument = known_presets().get(preset, {}).get(name)
            value = written.get(preset, {}).get(
                name, weights.weight_to_recipe(argument.default) if argument else REQUIRED
            )
            new = changed.get(preset, {}).get(name, value)
            if isinstance(new, Mapping) and set(new) == {TIMES} and (argument or is_own(preset)):
                new = _multiplied(value, new[TIMES], f"candidates: {preset}.{name}")
            if new is not REQUIRED:
                result.setdefault(preset, {})[name] = new
        return result

    def with_candidates(self, chosen: Mapping[str, int]) -> Method:
        """Return the method with one of its candidates for each pair, and nothing left to search."""
        pairs = dict(self.pairs)
        for pair, number in chosen.items():
            own = self.pairs.get(pair, {})
            settings = self.setting(number, pair).items()
            pairs[pair] = {**own, **{preset: {**own.get(preset, {}), **values} for preset, values in settings}}
        return self.model_copy(update={"pairs": pairs, "candidates": ()})

    def spec_for(self, pair: str) -> ObjectiveSpec:
        """Return the objective of one pair.

        Raises:
            ValueError: a preset or an argument is unknown, missing or of another type.
        """
        return read_objective(self.entry(pair), known_presets())


def _multiplied(value: Any, factor: Any, what: str) -> Any:
    """Return a weight, a number or a schedule as a recipe writes it, times a factor."""
    if not weights.is_number(factor) or factor <= 0:
        raise InvalidValueError(what, "a factor > 0", messages.shown(factor), f"for example {{{TIMES}: 3}}")
    if not weights.is_number(value) and not isinstance(value, Mapping):
        got = "no value to multiply" if value is REQUIRED else messages.shown(value)
        raise InvalidValueError(what, f"a number or a schedule to take {TIMES} {factor:g}", got, "write values instead")
    return weights.weight_to_recipe(weights.scaled(weights.value_of(value), factor))


def presets_written_out(objective: Any) -> list[Any]:
    """Return copies of an objective's presets, each as a mapping."""
    return [_preset_mapping(entry) for entry in (objective if isinstance(objective, list | tuple) else [objective])]


def _presets(objective: Any) -> list[str]:
    mappings = [entry for entry in presets_written_out(objective) if isinstance(entry, Mapping)]
    return [str(name) for mapping in mappings for name in mapping if name not in records.BESIDE]


def methods_by_name(value: Any) -> Any:
    """Read a list of presets as a mapping, each under its own name, and write out every method.

    Anything but a method's long form, which has an ``objective``, is an objective.
    """
    if isinstance(value, list | tuple):
        names = [next(iter(_presets(entry)), "") for entry in value]
        if len(set(names)) < len(names) or "" in names or any(isinstance(entry, list) for entry in value):
            expected = "a list of presets, each once, or a mapping of names to objectives"
            raise InvalidValueError("", expected, messages.shown(value), "type methods: {NAME: {PRESET: {...}}}")
        value = dict(zip(names, value, strict=True))
    if not isinstance(value, Mapping):
        return value
    return {
        name: method
        if isinstance(method, Method) or (isinstance(method, Mapping) and set(method) & set(Method.model_fields))
        else {"objective": _preset_mapping(str(name) if method is None else method)}
        for name, method in value.items()
    }


class Search(_Section):
    """A search before the runs, alike for every method: trials of its candidates, judged on a validation split."""

    epochs: int = Field(ge=1, le=LARGEST_COUNT, description="a whole number >= 1", examples=["60"])
    validation: Real = Field(0.1, gt=0, lt=1, description="a fraction in (0, 1)", examples=["0.1"])


class Study(_Section):
    """A grid of runs."""

    name: FolderName = Field(pattern=f"^{FOLDER_NAME}$", description=FOLDER_NAME_IN_WORDS, examples=["my-study"])
    title: str = ""
    source: str = ""
    pool: FolderName | None = Field(
        None, pattern=FOLDER, max_length=LONGEST_NAME, description=FOLDER_NAME_IN_WORDS, examples=["mine"]
    )
    protocol: dict[str, Any] = {}
    pairs: dict[str, Pair] = Field(
        min_length=1,
        description="a mapping of TEACHER/STUDENT to the two networks",
        examples=["{big/small: {teacher: mlp:64, student: mlp:8}}"],
    )
    methods: dict[str, Method] = Field(
        min_length=1, description="a list of presets, or a mapping of names to objectives", examples=["[kd]"]
    )
    search: Search | None = Field(None, validate_default=True, examples=["{epochs: 60, validation: 0.1}"])
    seeds: Seeds = Field(1, validate_default=True)
    teacher_seed: SeedField = 100
    figures: tuple[Literal["entropy", "divergence", "histogram", "mappings"], ...] = Field((), examples=["[entropy]"])
    costs: str | None = Field(None, description="a method of the study", examples=["kd"])
    differences: dict[str, tuple[str, str]] = Field(
        {},
        description="a mapping of what a difference tests to two methods, the second subtracted from the first",
        examples=["{weight: [kd_matched, kd]}"],
    )
    notes: tuple[str, ...] = ()

    @field_validator("name")
    @classmethod
    def _name_is_free(cls, value: str) -> str:
        if value in SHARED:
            other = f"a name other than {' and '.join(SHARED)}"
            raise InvalidValueError("", other, repr(value), "type name=my-study")
        return value

    @field_validator("protocol")
    @classmethod
    def _protocol_is_of_a_recipe(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        raise_all(error.renamed("protocol.{}".format) for error in _errors_in(value, info))
        return value

    @field_validator("pairs")
    @classmethod
    def _pairs_fit(cls, value: dict[str, Pair], info: ValidationInfo) -> dict[str, Pair]:
        form = "names of the form TEACHER/STUDENT without commas and full stops"
        errors = [
            InvalidValueError("pairs", form, repr(name), "for example resnet56/resnet20")
            for name in value
            if not re.fullmatch(f"{NAME}/{NAME}", name)
        ]
        raise_all([*errors, *_same_folder("pairs", value), *_wrong_settings("pairs", value, info)])
        return value

    _methods_are_named = field_validator("methods", mode="before")(methods_by_name)

    @field_validator("methods")
    @classmethod
    def _methods_fit(cls, value: dict[str, Method], info: ValidationInfo) -> dict[str, Method]:
        form = f"names without commas and full stops, other than {TEACHER!r}"
        errors: list[TutelageError] = [
            InvalidValueError("methods", form, repr(name), "for example kd")
            for name in value
            if not re.fullmatch(NAME, name) or name == TEACHER
        ]
        errors += _same_folder("methods", value)
        for name, method in value.items():
            errors += _wrong_settings("methods", {name: method}, info)
            errors += _wrong_objective(name, method, list(info.data.get("pairs") or ()), info)
        raise_all(errors)
        return value

    @field_validator("search")
    @classmethod
    def _every_method_has_as_many_candidates(cls, value: Search | None, info: ValidationInfo) -> Search | None:
        methods = info.data.get("methods")
        if methods is None:
            return value
        counts = {name: len(method.candidates) for name, method in methods.items() if not method.missing}
        most = max(counts.values(), default=0)
        if value is not None:
            raise_all(_as_trials(methods))
        if value is None:
            if most:
                name = next(name for name, count in counts.items() if count)
                got = f"{most} of {name}"
                raise InvalidValueError(
                    "", "how candidates are tried", got, "type search={epochs: 60, validation: 0.1}"
                )
        elif most < 2 or min(counts.values()) < most:
            uneven = {name: count for name, count in counts.items() if count < max(most, 2)}
            got = ", ".join(f"{count} of {name}" for name, count in uneven.items())
            expected = f"as many candidates of each method, {max(most, 2)}, so that all are searched alike"
            raise InvalidValueError(
                "", expected, got, "add to methods.NAME.candidates; {} is a method as it is written"
            )
        return value

    @field_validator("seeds")
    @classmethod
    def _every_seed_fits(cls, value: int, info: ValidationInfo) -> int:
        protocol = info.data.get("protocol", {})
        first = max([seed for seed in map(protocol.get, SEEDS) if isinstance(seed, int)], default=0)
        most = max([value, *(method.seeds or 1 for method in info.data.get("methods", {}).values())])
        if first + most > 2**63:
            instead = "type protocol.seed=0 protocol.data_seed=0"
            raise InvalidValueError("", "seeds up to 2**63 - 1", f"{most} from {first} on", instead)
        return value

    @field_validator("costs")
    @classmethod
    def _costs_are_of_a_method(cls, value: str | None, info: ValidationInfo) -> str | None:
        methods = info.data.get("methods", {})
        if value is not None and methods and value not in methods:
            raise unknown("", "a method of the study", value, list(methods))
        return value

    @field_validator("differences")
    @classmethod
    def _differences_are_between_methods(
        cls, value: dict[str, tuple[str, str]], info: ValidationInfo
    ) -> dict[str, tuple[str, str]]:
        methods = list(info.data.get("methods", {}))
        errors: list[TutelageError] = [
            unknown(f"differences.{tests}", "a method of the study", name, methods)
            for tests, both in value.items()
            for name in both
            if methods and name not in methods
        ]
        errors += [
            InvalidValueError(
                f"differences.{tests}", "two methods", f"{first!r} twice", f"type differences.{tests}=[ttm, kd]"
            )
            for tests, (first, second) in value.items()
            if first == second
        ]
        raise_all(errors)
        return value

    @property
    def recipe(self) -> Recipe:
        """What all runs have in common, resolved; its student stands for any."""
        return Recipe.model_validate({**STAND_IN, **PRECISION, **self.protocol})


class Drawing(Study):
    """A study of figures that are functions: it needs no runs."""

    pairs: dict[str, Pair] = {}
    methods: dict[str, Method] = {}


# Validation


def _same_folder(key: str, names: Iterable[str]) -> Iterator[TutelageError]:
    """Yield an error for names that would share a folder."""
    taken: dict[str, str] = {}
    for name in names:
        other = taken.setdefault(slug(name), name)
        if other != name:
            both = f"{other!r} and {name!r}"
            yield InvalidValueError(key, "names that differ in letters and digits", both, "rename one")


def _as_trials(names: Iterable[str]) -> Iterator[TutelageError]:
    """Yield an error for names whose folders trials of another method may have."""
    for name in names:
        if re.fullmatch(r".*-trial\d+", slug(name)):
            expected = "no method whose name ends as a trial's, in -trial and a number"
            yield InvalidValueError("", expected, repr(name), "rename it")


def _wrong_settings(key: str, entries: Mapping[str, Pair | Method], info: ValidationInfo) -> Iterator[TutelageError]:
    """Yield what is wrong with the settings of pairs or methods, laid over the protocol."""
    protocol = info.data.get("protocol")
    for name, entry in entries.items() if protocol is not None else ():
        for error in _errors_in(entry.settings, info, protocol) if entry.settings else ():
            yield error.renamed(f"{key}.{name}.settings.{{}}".format)


def _wrong_objective(name: str, method: Method, pairs: Sequence[str], info: ValidationInfo) -> Iterator[TutelageError]:
    """Yield what is wrong with a method's objective, and with the pairs that it names."""
    for key in ("pairs", "published") if pairs else ():
        for pair in getattr(method, key):
            if pair not in pairs:
                yield unknown(f"methods.{name}.{key}", "a pair of the study", pair, pairs)
    for pair, arguments in method.pairs.items():
        for preset in arguments:
            if preset not in method.presets:
                yield unknown(f"methods.{name}.pairs.{pair}", "a preset of its objective", preset, method.presets)
    for candidate in method.candidates:
        for preset in candidate:
            if preset not in method.presets:
                yield unknown(f"methods.{name}.candidates", "a preset of its objective", preset, method.presets)
                return
    if method.missing and method.published:
        return  # It is not built, and the table has its published values.
    errors: dict[str, TutelageError] = {}
    for pair in (pairs or method.pairs) if method.pairs else [""]:
        for number in range(max(1, len(method.candidates))):
            try:
                spec = (method.with_candidates({pair: number}) if method.candidates else method).spec_for(pair)
                if info.context is not None:
                    info.context["check"](spec)
            except InvalidValueError as error:
                for each in error.errors:
                    errors.setdefault(str(each), each.within(f"methods.{name}{f' ({pair})' if pair else ''}"))
    yield from errors.values()


def _errors_in(
    settings: Mapping[str, Any], info: ValidationInfo, protocol: Mapping[str, Any] | None = None
) -> list[TutelageError]:
    """Return what is wrong with keys of a recipe, laid over a protocol's."""
    instead = ELSEWHERE | ({} if protocol is None else {key: f"type protocol.{key}=..." for key in SEEDS})
    errors: list[TutelageError] = [
        InvalidValueError(key, "none here", messages.shown(settings[key]), text)
        for key, text in instead.items()
        if key in settings
    ]
    if settings.get("precision") == "auto":
        one = " or ".join(get_args(Precision))
        errors.append(InvalidValueError("precision", f"one for all runs, {one}", "'auto'", "type precision=bf16"))
    if settings.get("accumulate") == "auto":
        errors.append(InvalidValueError("accumulate", "one for all runs", "'auto'", "type accumulate=2"))
    kept = {key: value for key, value in settings.items() if key not in ELSEWHERE}
    try:
        Recipe.model_validate({**STAND_IN, **merged(protocol or {}, kept)}, context=info.context)
    except ValidationError as error:
        errors += messages.recipe_error(Recipe, error).errors
    return errors


def slug(name: str) -> str:
    """Turn a name into a folder's.

    Example:
        >>> slug("wttm+crd"), slug("kd++"), slug("resnet56/resnet20"), slug("wttm without ce")
        ('wttm-crd', 'kdplusplus', 'resnet56-resnet20', 'wttm-without-ce')
    """
    joined = re.sub(r"\+(?=\w)", "-", name).replace("+", "plus")
    return re.sub(r"[^A-Za-z0-9._]+", "-", joined).strip("-")


def unknown(what: str, expected: str, name: str, known: Sequence[str]) -> RecipeError:
    """Return the error for an unknown name, with the nearest known one."""
    return RecipeError(what, f"{expected} ({', '.join(known)})", repr(name), nearest(name, known))


# Layers of settings


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Lay keys of a recipe over each other: a section keeps what a later one leaves open, unless its kind differs.

    Example:
        >>> merged({"optimizer": {"lr": 0.05, "weight_decay": 1e-4}}, {"optimizer": {"lr": 0.01}})
        {'optimizer': {'lr': 0.01, 'weight_decay': 0.0001}}
    """
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            section = {SHORT[key]: value} if key in SHORT and isinstance(value, str) else value
            result[key] = _over(result.get(key), section, KINDS.get(key))
    return result


def _over(old: Any, new: Any, kind: str | None = None) -> Any:
    """Lay a value over an older one; ``kind`` is a section's where it does not name it."""
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return new
    if kind is not None and new.get("name") not in (None, old.get("name", kind)):
        return new
    return {**old, **{key: _over(old.get(key), value) for key, value in new.items()}}


def parse(
    value: Mapping[str, Any], *, where: str = "study", check: Callable[[ObjectiveSpec], object] | None = None
) -> Study:
    """Check a study as a whole; ``check`` is that of `config.parse`.

    Raises:
        RecipeError: with every fault at once, unknown keys with the nearest known one.
    """
    kind = Drawing if value.get("figures") == DRAWN and not {"pairs", "methods"} & value.keys() else Study
    try:
        return kind.model_validate(dict(value), context={"check": check} if check else None)
    except ValidationError as error:
        raise messages.recipe_error(kind, error).within(where) from None
