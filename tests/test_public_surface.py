"""What a user finds: names after a bare import, settings in signatures, and what the messages tell to type."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
import typing
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import pytest
from tests._helpers import ROOT

import tutelage
from tutelage import config, objectives
from tutelage.config.schema import Comparison, Recipe
from tutelage.settings.fit import (
    EMA,
    SGD,
    AdamW,
    Cosine,
    EarlyStopping,
    LibraryOptimizer,
    OnPolicy,
    Optimizer,
    Schedule,
)
from tutelage.settings.outputs import Bucket, OutputsForm, Sampled
from tutelage.settings.run import RunSettings

SOURCE = Path(tutelage.__file__).parent
NOT_SETTINGS = {"name", "data", "student", "teacher", "objective"}
CALLS = (tutelage.train, tutelage.distill, tutelage.compare, tutelage.tune)


def fresh(code: str) -> Any:
    """What a new process prints as JSON, which has done nothing but `import tutelage`."""
    code = f"import json, sys\nimport tutelage\n{code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# Names


def test_the_import_and_its_listing_need_no_torch():
    code = (
        "from tutelage import TutelageError\ndir(tutelage), tutelage.errors, dir(tutelage.data), dir(tutelage.models)\n"
    )
    heavy = fresh(code + "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))")
    assert not {"torch", "numpy", "pydantic", "accelerate"} & set(heavy)


@pytest.mark.parametrize("module", ["tutelage", "tutelage.data", "tutelage.models", "tutelage.kernels"])
def test_lazy_names_are_listed_and_there(module):
    it = importlib.import_module(module)
    assert dir(it) == sorted(it.__all__)
    for name in it.__all__:
        assert getattr(it, name) is not None
    with pytest.raises(AttributeError) as caught:
        it.nothing_of_that_name  # noqa: B018
    assert (caught.value.name, caught.value.obj) == ("nothing_of_that_name", it), "what Python suggests the nearest by"


def test_editors_see_the_lazy_names():
    for path in (SOURCE / "__init__.py", *(SOURCE / name / "__init__.py" for name in ("data", "models", "kernels"))):
        (block,) = (
            node
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        )
        seen = {alias.asname for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
        package = "tutelage" if path.parent == SOURCE else f"tutelage.{path.parent.name}"
        assert seen | {"__version__"} == set(importlib.import_module(package).__all__) | {"__version__"}


def test_the_verbs_and_the_packages_are_found_at_once():
    assert set(dir(tutelage)) >= {
        *("train", "distill", "compare", "evaluate", "predict", "load"),
        *("data", "models", "objectives", "losses", "targets", "kernels", "taps", "errors", "TutelageError"),
    }


# What messages tell to type

TYPED = re.compile(r"(?<!-m )\btutelage(?:\.[A-Za-z_]\w*)+")
WITHOUT_TUTELAGE = re.compile(
    r"(?<![\w./])(?:data|models)\.\w+\("
    r"|(?<![\w./])(?:kernels|losses|objectives|taps|targets)\.(?!json|md|py)[a-z_]+\b"
    r"|\b(?:adopt|read|load|open_data|from_datasets)\("
)
"""A call, or a function of a package, where only `import tutelage` was typed."""


def literals(path: Path) -> list[str]:
    """The texts of a file that are no docstrings, f-strings' parts among them."""
    tree = ast.parse(path.read_text())
    nodes = list(ast.walk(tree))
    docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    texts = [node for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [node.value for node in texts if id(node) not in docstrings]


def test_what_messages_tell_to_type_is_there_after_a_bare_import():
    texts = [text for path in SOURCE.rglob("*.py") for text in literals(path)]
    names = sorted({name for text in texts for name in TYPED.findall(text)})
    assert {"tutelage.data.from_datasets", "tutelage.load"} <= set(names)
    missing = fresh(
        "import operator\nmissing = []\n"
        f"for name in {names}:\n"
        "    try:\n        operator.attrgetter(name.partition('.')[2])(tutelage)\n"
        "    except AttributeError:\n        missing.append(name)\n"
        "print(json.dumps(missing))"
    )
    assert not missing
    sentences = [TYPED.sub("", text) for text in texts if " " in text]
    assert not [text for text in sentences if WITHOUT_TUTELAGE.search(text)], "write tutelage. before it"


def test_the_page_of_python_names_what_is_there_and_all_of_it():
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    names = {name.split(".")[1] for name in TYPED.findall(page)} | set(re.findall(r"`([A-Z]\w+)`", page))
    assert names == set(tutelage.__all__) - {"__version__", "Run"}


def test_the_search_of_messages_sees_a_name(tmp_path):
    file = tmp_path / "file.py"
    file.write_text('"""`losses.kd(`"""\nx = f"{1}: type losses.kd(z, v), or tutelage.losses.kd"\n')
    (text, *_) = [text for text in literals(file) if "type" in text]
    assert TYPED.findall(text) == ["tutelage.losses.kd"]
    assert WITHOUT_TUTELAGE.search(text)
    assert not [text for text in literals(file) if "`" in text]


# Settings

SHORTHAND: Mapping[str, Any] = {
    "optimizer": Optimizer | Mapping[str, Any] | Literal["sgd", "adamw"],
    "schedule": Schedule | Mapping[str, Any] | Literal["constant", "step", "multistep", "cosine"],
    "outputs_form": OutputsForm | Mapping[str, Any] | Literal["bucket", "sampled"] | None,
    "class_weights": Literal["balanced"] | Sequence[float] | Mapping[str, float] | None,
    "stages": Sequence[Mapping[str, Any]],
    "ema": EMA | Mapping[str, Any] | float | None,
    "early_stopping": EarlyStopping | Mapping[str, Any] | int | None,
    "start": str | PathLike[str] | None,
    "on_policy": OnPolicy | Mapping[str, Any] | float | None,
    "device": Literal["auto", "cpu", "cuda"] | str,
}
"""What a call takes beside a field's own type; each of it is read below."""


def test_the_settings_of_a_call_are_the_fields_of_a_recipe():
    fields = Recipe.model_fields
    settings = typing.get_type_hints(RunSettings)
    assert set(settings) == set(fields) - NOT_SETTINGS
    hints = typing.get_type_hints(Recipe)
    for name, kind in settings.items():
        assert kind == SHORTHAND.get(name, hints[name]), name
    assert not RunSettings.__required_keys__


@pytest.mark.parametrize(
    ("key", "value", "read"),
    [
        ("optimizer", "adamw", AdamW()),
        ("optimizer", AdamW(lr=0.1), AdamW(lr=0.1)),
        ("optimizer", {"lr": 0.1}, SGD(lr=0.1)),
        ("optimizer", "timm:muon", LibraryOptimizer("timm:muon")),
        ("optimizer", LibraryOptimizer("timm:muon", momentum=0.8), LibraryOptimizer("timm:muon", momentum=0.8)),
        ("schedule", "cosine", Cosine()),
        ("schedule", Cosine(warmup=1), Cosine(warmup=1)),
        ("schedule", {"name": "cosine", "warmup": 1}, Cosine(warmup=1)),
        ("outputs_form", "bucket", Bucket()),
        ("outputs_form", Sampled(draws=3), Sampled(draws=3)),
        ("outputs_form", {"name": "sampled", "draws": 3}, Sampled(draws=3)),
    ],
)
def test_shorthand_is_read(key, value, read):
    assert getattr(config.parse(Recipe, {"name": "a", "student": "mlp:8", key: value}), key) == read


@pytest.mark.parametrize("kind", ["optimizer", "schedule"])
def test_shorthand_has_every_name(kind):
    (names,) = (each for each in typing.get_args(SHORTHAND[kind]) if typing.get_origin(each) is Literal)
    classes = typing.get_args(Optimizer if kind == "optimizer" else Schedule)
    assert typing.get_args(names) == tuple(each.name for each in classes if hasattr(each, "name"))


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_signatures_show_every_setting_and_its_default(call):
    parameters = inspect.signature(call).parameters
    assert all(each.kind is each.KEYWORD_ONLY for each in parameters.values())
    for name in set(Recipe.model_fields) - NOT_SETTINGS:
        assert parameters[name].default == Recipe.model_fields[name].get_default(call_default_factory=True), name
    assert "settings" not in parameters
    assert "epochs: int = 240" in str(inspect.signature(call))


def test_a_comparison_takes_what_its_recipe_does():
    parameters = inspect.signature(tutelage.compare).parameters
    for name in set(Comparison.model_fields) - {"objective"}:
        assert name in parameters, name
    for name in ("seeds", "baseline", "share_data_seed", "together"):
        assert parameters[name].default == Comparison.model_fields[name].default


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_a_misspelt_setting_is_named_with_the_nearest(call, tmp_path):
    networks = {"model": "mlp:8"} if call is tutelage.train else {"student": "mlp:8", "teacher": None}
    goal = {"objectives": {"ce": "cross_entropy"}} if call is tutelage.compare else {"objective": "cross_entropy"}
    with pytest.raises(tutelage.errors.RecipeError, match=r"epcohs.*did you mean epochs"):
        call(**networks, **goal, data="digits", epcohs=1, runs=tmp_path)
    assert not list(tmp_path.iterdir())


# Presets


@pytest.mark.parametrize("name", list(objectives.PRESETS))
def test_a_preset_shows_its_arguments(name):
    if not objectives.is_built_in(name):
        return
    parameters = inspect.signature(getattr(objectives, name)).parameters.values()
    assert parameters
    assert all(each.kind is each.KEYWORD_ONLY and each.annotation is not each.empty for each in parameters)


def test_a_weight_may_be_written_as_in_a_recipe_wherever_a_term_is_weighted():
    written = {"schedule": "linear", "start": 1, "end": 0}
    term = objectives.Apply(tutelage.losses.kd, {"temperature": 4.0})
    part = objectives.WeightedTerm("kd", written, term)
    assert part.weight == objectives.Linear(1, 0)
    assert objectives.WeightedTerm("kd", "auto", term).weight == objectives.AUTO
    assert objectives.kd(weight=written).spec == objectives.kd(weight=objectives.Linear(1, 0)).spec
    with pytest.raises(ValueError, match="schedule"):
        objectives.WeightedTerm("kd", {"schedule": "liner"}, term)
