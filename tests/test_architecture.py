"""The rules of the architecture, read from the source: who imports whom, and who may name what."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from tests._helpers import ROOT

import tutelage
from tutelage import objectives

SOURCE = Path(tutelage.__file__).parent

LAYERS = (
    (("__main__",), ("cli",), ("api", "doctor"), ("integrations",), ("benchmark",)),
    (("studies", "tuning", "exports"), ("places",), ("runs",), ("report",)),
    (("models", "data", "training", "teacher_cache", "config"),),
    (("modules",), ("objectives",), ("kernels",), ("losses",), ("metrics", "taps", "targets")),
    (
        ("adapters",),
        ("images", "checks", "rng", "submodules", "tensor_files", "text", "views"),
        ("settings", "hub_files"),
        ("types", "records", "user_code"),
        ("connection", "plain_files"),
        ("interruption",),
        ("launcher",),
        ("errors", "intervals", "lazy", "version"),
    ),
)
"""From the top down: five layers, each of rows. A row's packages import lower layers and the rows below them in their
own layer, and never each other. ``__init__`` is above all."""

RANK_OF = {
    name: rank
    for rank, names in enumerate([("__init__",), *(row for layer in LAYERS for row in layer)])
    for name in names
}


LOWEST = {name for row in LAYERS[-1] for name in row}
ON_THE_LOWEST_ALONE = {"models", "data", "teacher_cache", "config", "report"}
"""What stands beside the losses and not on them: a source of data or a table needs none of the mathematics."""


class Import(NamedTuple):
    """A module that a file imports, dotted and absolute; ``top`` says whether importing the file does it."""

    module: str
    line: int
    top: bool


@cache
def imports(source: str, *, package: str) -> tuple[Import, ...]:
    """Return what a file imports, wherever in it, TYPE_CHECKING blocks included.

    Args:
        source: the file's text.
        package: the package that relative imports start from.
    """

    def walk(node: ast.AST, top: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(alias.name, child.lineno, top) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                above = package.split(".")[: len(package.split(".")) - child.level + 1] if child.level else []
                module = ".".join([*above, *([child.module] if child.module else [])])
                # `from tutelage import records` means the package, not the package alone.
                names = (f"{module}.{alias.name}" for alias in child.names) if module == "tutelage" else (module,)
                yield from (Import(name, child.lineno, top) for name in names)
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                yield from walk(ast.Module(child.body, []), False)
                yield from walk(ast.Module(child.orelse, []), top)
            else:
                function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from walk(child, top and not function)

    return tuple(walk(ast.parse(source), True))


def package_of(module: str) -> str | None:
    """The package that an imported module lies in; none where it is not ours."""
    first, _, rest = module.partition(".")
    if first != "tutelage":
        return None
    package = rest.partition(".")[0]
    # A name that is no package, such as `tutelage.distill`, comes from the front door.
    return package if package in RANK_OF else "__init__"


def offences(name: str, source: str, *, package: str = "tutelage") -> list[str]:
    """What a file of a package imports against the rules."""
    found = []
    for module, line, _ in imports(source, package=package):
        other = package_of(module)
        if other is None or other == name:
            continue
        if RANK_OF[other] <= RANK_OF[name]:
            found.append(f"line {line}: {name} imports {other}, which is not below it")
        elif name in ON_THE_LOWEST_ALONE and other not in LOWEST:
            found.append(f"line {line}: {name} imports {other}, which is not of the lowest layer")
    return found


def files(*packages: str) -> list[Path]:
    """Every file of some packages, or of all; a package is a file or a folder."""
    found = [path for path in sorted(SOURCE.rglob("*.py")) if not packages or package_name(path) in packages]
    assert found or packages
    return found


def package_name(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def package_at(path: Path) -> str:
    return ".".join(["tutelage", *path.relative_to(SOURCE).parent.parts])


def name_of(path: Path) -> str:
    return str(path.relative_to(SOURCE))


every_file = pytest.mark.parametrize("path", files(), ids=name_of)


# The first rule


def test_every_package_has_its_place():
    for path in files():
        assert package_name(path) in RANK_OF, f"{name_of(path)} is a package without a layer: give it one in LAYERS"


def test_the_packages_that_were_promised_are_there():
    assert {package_name(path) for path in files()} >= {
        *("api", "checks", "cli", "config", "data", "kernels", "losses", "models", "modules", "objectives", "records"),
        *("report", "runs", "settings", "studies", "taps", "targets", "teacher_cache", "training", "types", "version"),
    }


def printed() -> list[str]:
    """The layers in five lines, from the top: those packages and files that are there."""

    def shown(name: str) -> str:
        return f"{name}/" if (SOURCE / name).is_dir() else f"{name}.py"

    there = {package_name(path) for path in files()}
    rows = [[", ".join(shown(name) for name in row if name in there) for row in layer] for layer in LAYERS]
    return [f"{len(LAYERS) - k}  {' | '.join(filter(None, layer))}" for k, layer in enumerate(rows)]


def test_the_layers_are_those_of_the_page():
    lines = printed()
    print(*lines, sep="\n")  # noqa: T201  shown by pytest -s
    assert "\n".join(lines) in (ROOT / "docs" / "architecture.md").read_text()


def module_of(path: Path) -> str:
    return ".".join(["tutelage", *path.relative_to(SOURCE).with_suffix("").parts]).removesuffix(".__init__")


def imported_modules(source: str, *, package: str, modules: set[str]) -> set[str]:
    """The modules that a file imports, those that ``from package import module`` means included."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= names & modules or {base}
    return found & modules


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A circle of modules that import each other, wherever in a file; empty where there is none."""
    done: set[str] = set()

    def walk(module: str, path: list[str]) -> list[str]:
        if module in path:
            return path[path.index(module) :]
        if module in done:
            return []
        found = next((ring for other in sorted(graph[module]) if (ring := walk(other, [*path, module]))), [])
        done.add(module)
        return found

    return next((ring for module in sorted(graph) if (ring := walk(module, []))), [])


def test_there_is_no_circle():
    # A package's __init__ forwards names, and whoever imports one of them means the module that defines it.
    paths = {module_of(path): path for path in files() if path.name != "__init__.py"}
    graph = {
        module: imported_modules(path.read_text(), package=package_at(path), modules=set(paths)) - {module}
        for module, path in paths.items()
    }
    assert circle(graph) == []


def test_the_checker_sees_circles():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["b", "c"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    source = "def f():\n    from tutelage.data import mixup\nif TYPE_CHECKING:\n    from .loader import Batch"
    modules = {"tutelage.data.mixup", "tutelage.data.loader"}
    assert imported_modules(source, package="tutelage.data", modules=modules) == modules


@every_file
def test_packages_import_down_only(path):
    assert not offences(package_name(path), path.read_text(), package=package_at(path))


@pytest.mark.parametrize(
    ("package", "source", "found"),
    [
        ("losses", "from tutelage import objectives", ["line 1: losses imports objectives, which is not below it"]),
        ("losses", "import tutelage.objectives.term", ["line 1: losses imports objectives, which is not below it"]),
        ("losses", "import os, tutelage.training as e", ["line 1: losses imports training, which is not below it"]),
        ("losses", "from .. import modules", ["line 1: losses imports modules, which is not below it"]),
        ("losses", "from ..training.loop import fit", ["line 1: losses imports training, which is not below it"]),
        ("losses", "from tutelage import checks, runs", ["line 1: losses imports runs, which is not below it"]),
        ("losses", "from tutelage import distill", ["line 1: losses imports __init__, which is not below it"]),
        ("losses", "import tutelage", ["line 1: losses imports __init__, which is not below it"]),
        # Inside functions, classes, branches, and for type checkers alone.
        (
            "losses",
            "def f():\n    from tutelage.modules import Distiller",
            ["line 2: losses imports modules, which is not below it"],
        ),
        (
            "losses",
            "class A:\n    async def f(self):\n        import tutelage.runs",
            ["line 3: losses imports runs, which is not below it"],
        ),
        (
            "types",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from tutelage.losses import kd",
            ["line 3: types imports losses, which is not below it"],
        ),
        (
            "targets",
            "try:\n    import tutelage.losses\nexcept ImportError:\n    pass",
            ["line 2: targets imports losses, which is not below it"],
        ),
        # Siblings.
        ("training", "from tutelage import models", ["line 1: training imports models, which is not below it"]),
        ("data", "from tutelage.models import create", ["line 1: data imports models, which is not below it"]),
        ("taps", "import tutelage.targets", ["line 1: taps imports targets, which is not below it"]),
        ("records", "from tutelage import types", ["line 1: records imports types, which is not below it"]),
        # The lowest layer alone.
        ("data", "from tutelage import losses", ["line 1: data imports losses, which is not of the lowest layer"]),
        (
            "report",
            "from tutelage import targets, records",
            ["line 1: report imports targets, which is not of the lowest layer"],
        ),
        (
            "models",
            "def f():\n    from tutelage import taps",
            ["line 2: models imports taps, which is not of the lowest layer"],
        ),
        # What is allowed.
        ("losses", "import torch\nfrom tutelage import checks, targets\nfrom tutelage.types import Batch", []),
        ("losses", "from tutelage.losses.logits import kd\nfrom . import features\nfrom .relations import rkd", []),
        ("data", "from tutelage import records, version\nfrom tutelage.data import rng\nimport tutelage_other", []),
        ("cli", "def f():\n    from tutelage import data, models, config, studies", []),
        ("training", "from tutelage import losses, records, targets\nfrom tutelage.modules import Distiller", []),
    ],
)
def test_the_checker_sees_what_it_must(package, source, found):
    assert offences(package, source, package=f"tutelage.{package}") == found


def test_the_checker_knows_what_runs_at_import():
    source = (
        "import a\nif TYPE_CHECKING:\n    import b\nelse:\n    import c\ndef f():\n    import d\nclass "
        "E:\n    import e\ntry:\n    import g\nfinally:\n    pass"
    )
    assert [module for module, _, top in imports(source, package="tutelage") if top] == ["a", "c", "e", "g"]
    assert {module for module, _, _ in imports(source, package="tutelage")} == set("abcdeg")


# One importer per dependency


def importers(library: str) -> set[str]:
    found = set()
    for path in files():
        if any(
            module.partition(".")[0] == library for module, _, _ in imports(path.read_text(), package=package_at(path))
        ):
            found.add(package_name(path))
    return found


@pytest.mark.parametrize(
    ("library", "packages"),
    [
        ("accelerate", {"training"}),
        ("timm", {"data", "exports", "integrations", "models", "training"}),
        ("lightning", {"integrations"}),
        ("datasets", {"data"}),
        ("matplotlib", {"studies"}),
        ("plotly", {"report"}),
        ("typer", {"cli"}),
    ],
)
def test_a_library_has_one_importer(library, packages):
    assert importers(library) == packages


@pytest.mark.parametrize("library", ["timm", "datasets", "lightning", "matplotlib"])
def test_optional_libraries_are_imported_where_they_are_needed_alone(library):
    for path in files():
        for module, line, top in imports(path.read_text(), package=package_at(path)):
            assert not (top and module.partition(".")[0] == library), f"{name_of(path)} line {line}"


def test_torchvision_is_imported_with_randaugment_alone():
    """It takes a second."""
    for path in files():
        for module, line, top in imports(path.read_text(), package=package_at(path)):
            heavy = module.partition(".")[0] == "torchvision" and name_of(path) != "data/randaugment.py"
            heavy |= module.startswith("tutelage.data.randaugment")
            assert not (top and heavy), f"{name_of(path)} line {line}"


def test_losses_are_made_of_torch_alone():
    for path in files("losses", "targets"):
        for module, line, _ in imports(path.read_text(), package=package_at(path)):
            known = module.partition(".")[0] in {*sys.stdlib_module_names, "torch", "tutelage"}
            assert known, f"{name_of(path)} line {line}: {module}"


def names(source: str) -> Iterator[tuple[str, int]]:
    """Yield every identifier and every string of a file with its line, docstrings and comments left out."""
    tree = ast.parse(source)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    told = set()
    for node in ast.walk(tree):
        if isinstance(node, documented):
            # The string after an attribute is its documentation too.
            told |= {id(item.value) for item in node.body if isinstance(item, ast.Expr)}
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told:
            yield node.value, line
        for field in ("id", "attr", "name", "asname", "arg", "module"):
            if isinstance(value := getattr(node, field, None), str):
                yield value, line


HOOK = re.compile(r"^(register_\w*hook\w*|_\w+_hooks)$")


def hooks(source: str) -> list[str]:
    return [f"line {line}: {name}" for name, line in names(source) if HOOK.match(name)]


@every_file
def test_hooks_are_in_taps_alone(path):
    assert package_name(path) == "taps" or not hooks(path.read_text())


@pytest.mark.parametrize(
    "source",
    [
        "m.register_forward_hook(f)",
        "m.register_forward_pre_hook(f)",
        "m.register_full_backward_hook(f)",
        "getattr(m, 'register_forward_hook')(f)",
        "from torch.nn.modules.module import register_module_forward_hook",
        "m._forward_hooks[0] = f",
    ],
)
def test_the_checker_sees_hooks(source):
    assert hooks(source)
    assert not hooks("'''register_forward_hook'''\n# register_forward_hook\nregister_buffer('x')")


# The second rule

METHODS = set(objectives.PRESETS) - {"cross_entropy"}
"""Cross-entropy is also what evaluation measures."""
ABBREVIATIONS = {"kd", "ttm", "wttm", "dkd", "nkd", "dist", "crd", "rkd", "pkt", "nst", "vid", "hinton", "fitnet"}
FAMILIES = {"cifar", "resnet", "mobilenet", "digits", "imagenet", "vgg", "wrn", "shufflenet", "mnist", "timm"}
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def named(source: str) -> list[str]:
    """The methods, models and data sets that a file names."""
    found = []
    for text, line in names(source):
        words = {word.lower() for word in WORD.findall(text)}
        if words & ABBREVIATIONS or words & FAMILIES or METHODS & set(re.findall(r"\w+", text)):
            found.append(f"line {line}: {text}")
    return found


OPTIMIZERS = "training/library_optimizers.py"
"""It names a library of models, for its optimizers."""


@pytest.mark.parametrize("path", [path for path in files("training") if name_of(path) != OPTIMIZERS], ids=name_of)
def test_training_names_no_method_model_or_data_set(path):
    assert not named(path.read_text())


@pytest.mark.parametrize(
    "source",
    [
        "if objective.name == 'kd': pass",
        "losses.wttm(z, v, gamma=0.1)",
        "class KDLoss: pass",
        "def step_ttm(): pass",
        "def f(kd_weight): pass",
        "f(renyi_penalty=1)",
        "size = 32 if name.startswith('cifar100') else 224",
        "from torchvision.models import resnet50",
        "x = f'{a} digits'",
        "import timm",
    ],
)
def test_the_checker_sees_names(source):
    assert named(source)


def test_the_checker_lets_other_words_be():
    source = '''
"""The CIFAR-100 protocol, as kd has it."""
class A:
    """TTM."""
    x = 1
    """Of a resnet."""
kl_to_target = distance = weighted = kind = losses.cross_entropy(z, y)
'''
    assert not named(source)


# What is light


LIGHT = ("records", "report", "version", "cli", "types", "settings", "images")


@pytest.mark.parametrize("path", files(*LIGHT), ids=name_of)
def test_light_files_import_no_torch_at_the_top(path):
    for module, line, top in imports(path.read_text(), package=package_at(path)):
        assert not (top and module.partition(".")[0] in {"torch", "torchvision", "accelerate"}), f"line {line}"


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_importing_the_package_imports_no_torch():
    heavy = "{'torch', 'numpy', 'accelerate', 'pydantic', 'yaml', 'plotly', 'torchvision', 'timm'}"
    done = run(f"import sys, tutelage; print(tutelage.__version__, sorted({heavy} & set(sys.modules)))")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{tutelage.__version__} []"


def test_importing_what_is_light_imports_no_torch():
    modules = [f"tutelage.{name_of(path)[:-3].replace('/', '.').removesuffix('.__init__')}" for path in files(*LIGHT)]
    done = run(f"import sys, {', '.join(modules)}; print(sorted({{'torch', 'accelerate', 'timm'}} & set(sys.modules)))")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


# What is public


PUBLIC = [
    *("Adapter", "Batch", "Distiller", "FrozenTeacher", "Outputs", "Progress", "Reporter", "Run", "TutelageError"),
    *("__version__", "as_batch", "compare", "data", "distill", "errors", "evaluate", "export", "kernels", "load"),
    *("losses", "models", "network_context", "objectives", "predict", "taps", "targets", "train", "tune"),
]


def test_the_public_surface():
    assert sorted(tutelage.__all__) == PUBLIC
    assert len(set(tutelage.__all__)) == len(tutelage.__all__)
    assert dir(tutelage) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_there(name):
    value = getattr(tutelage, name)
    assert value is not None
    if name in ("data", "errors", "kernels", "losses", "models", "objectives", "taps", "targets"):
        assert value is importlib.import_module(f"tutelage.{name}")
    elif name != "__version__":
        assert value.__name__ == name
        assert value.__doc__


def test_type_checkers_see_the_same_surface():
    tree = ast.parse((SOURCE / "__init__.py").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    seen = {alias.asname for node in block.body for alias in node.names}
    assert seen | {"__version__"} >= set(PUBLIC)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'tutelage' has no attribute 'distil'"):
        tutelage.distil  # noqa: B018


def test_the_package_says_that_it_is_typed():
    assert (SOURCE / "py.typed").exists()
