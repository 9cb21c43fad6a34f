"""What has to be installed: few libraries, each import declared, and all that runs without the extras."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image
from tests._helpers import ROOT, core_alone
from tests._helpers.refusals import refused
from tests.test_architecture import SOURCE, files, module_of, name_of

from tutelage import doctor, errors
from tutelage.data import names
from tutelage.errors import MissingExtraError

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MOST = 13
"""Number of libraries that may be required."""
DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml"}
"""Distributions whose module has another name."""
BROUGHT = {
    "annotated_types": "pydantic",
    "markupsafe": "jinja2",
    "pandas": "datasets",
    "pyarrow": "datasets",
    "pydantic_core": "pydantic",
    "pytorch_lightning": "lightning",
    "triton": "torch",
}
"""Modules that come with a library that is declared, as it requires them."""
THEIRS = {"IPython"}
"""Modules of programs that this package is called from, and asks only if they have imported it."""
OF_EXTRAS = {
    "integrations/hf.py",
    "kernels/triton_kernels.py",
    "kernels/triton_sweeps.py",
    "models/published.py",
    "models/readme.py",
    "report/html.py",
    "report/notebook.py",
    "report/svg.py",
    "studies/report.py",
    "studies/watch.py",
    "tuning/report.py",
}
"""Files that cannot be imported without an extra, and that are imported inside functions for that reason."""
NOT_IN_ALL = {"all", "dev", "docs", "executorch", "ray"}


def required_by(requirements: list[str], *, certain: bool = False) -> set[str]:
    """The distributions of requirements; with ``certain`` only those that are required everywhere."""
    parsed = map(Requirement, requirements)
    return {canonicalize_name(each.name) for each in parsed if not (certain and each.marker)}


CORE = required_by(PROJECT["dependencies"])
EXTRAS = {extra: required_by(of) for extra, of in PROJECT["optional-dependencies"].items()}


def test_few_libraries_are_required():
    assert len(CORE) == len(PROJECT["dependencies"]) <= MOST
    assert not CORE & EXTRAS["report"] | CORE & EXTRAS["demo"] | CORE & EXTRAS["hf"]


def test_all_brings_every_extra_of_use_to_most():
    (whole,) = PROJECT["optional-dependencies"]["all"]
    assert Requirement(whole).extras == EXTRAS.keys() - NOT_IN_ALL


def test_an_extra_brings_what_its_library_does_not():
    """Chat templates need jinja2, names on the Hub its library, whatever transformers requires."""
    assert EXTRAS["text"] >= {"huggingface-hub", "jinja2", "tokenizers", "transformers"}
    assert EXTRAS["hf"] >= {"datasets", "huggingface-hub", "jinja2"}


def test_the_doctor_knows_every_extra():
    assert doctor.EXTRAS.keys() == EXTRAS.keys() - {"all", "dev", "docs", "tensorboard"}
    for extra, module in doctor.EXTRAS.items():
        assert distribution_of(module) in EXTRAS[extra]


def distribution_of(module: str) -> str:
    return canonicalize_name(BROUGHT.get(module, DISTRIBUTIONS.get(module, module)))


@pytest.mark.parametrize(("module", "library"), BROUGHT.items())
def test_what_a_library_brings_it_does_require(module, library):
    try:
        requirements = metadata.requires(library)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{library} is not installed")
    assert canonicalize_name(module) in required_by([text for text in requirements if "extra ==" not in text])


def at_import(path: Path) -> Iterator[str]:
    """Yield what importing a file imports: modules, dotted, and with them what may be a module or a name."""

    def walk(node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                yield from walk(ast.Module(child.orelse, []))
            else:
                yield from imported(child)
                yield from walk(child)

    return walk(tree_of(path))


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level <= 1, "only the package's own __init__.py has relative imports"
        module = ".".join(filter(None, ("tutelage" if node.level else "", node.module)))
        yield from (module, *(f"{module}.{alias.name}" for alias in node.names))


def third_party(modules: Iterator[str]) -> set[str]:
    tops = {module.partition(".")[0] for module in modules}
    return tops - sys.stdlib_module_names - {"tutelage"}


def test_every_library_that_is_imported_is_declared():
    declared = CORE.union(*EXTRAS.values())
    for path in files():
        for module in third_party(name for node in ast.walk(tree_of(path)) for name in imported(node)):
            assert module in THEIRS or distribution_of(module) in declared, f"{name_of(path)}: {module}"


def is_required(module: str) -> bool:
    """Whether a module is there wherever this package is."""
    if (library := BROUGHT.get(module)) is None:
        return distribution_of(module) in CORE
    return library in CORE and canonicalize_name(module) in required_by(metadata.requires(library), certain=True)


def test_libraries_of_extras_are_imported_where_they_are_needed_alone():
    paths = {module_of(path): path for path in files()}
    above = {module: set(at_import(path)) for module, path in paths.items()}
    tied = {module for module in paths if not all(map(is_required, third_party(above[module])))}
    while more := {module for module in paths.keys() - tied if above[module] & tied}:
        tied |= more
    assert {name_of(paths[module]) for module in tied} == OF_EXTRAS


def test_the_extras_that_errors_name_are_there():
    for path in files():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("missing_extra", "require_extra"):
                extra = node.args[2]
                assert not isinstance(extra, ast.Constant) or extra.value in EXTRAS, f"{name_of(path)}: {extra.value}"
    for path in (ROOT / "docs").rglob("*.md"):
        for extra in re.findall(r"tutelage\[([\w,]+)\]", path.read_text()):
            assert set(extra.split(",")) <= EXTRAS.keys(), f"{path.name}: {extra}"


def test_the_digits_name_their_extra_and_other_sources(monkeypatch):
    monkeypatch.setattr(errors, "find_spec", lambda module: None)
    with refused(MissingExtraError, "data.source", suggests=["'tutelage[demo]'", "data.source=imagefolder:PATH"]):
        names.check("digits")


# Where nothing but the core is installed

RECIPE = """
data: imagefolder:pictures
student: mlp:4
teacher: {train: {model: mlp:8, epochs: 1}}
epochs: 1
batch_size: 4
device: cpu
threads: 1
weak_teacher: true
"""
STUDY = """
protocol: {data: imagefolder:pictures, epochs: 1, batch_size: 4, device: cpu, threads: 1, weak_teacher: true}
pairs: {large/small: {teacher: mlp:8, student: mlp:4}}
methods: {kd: {objective: kd}}
figures: [mappings]
"""
PLOT = """python:
from pathlib import Path
import tutelage
run = tutelage.Run(Path("runs/student"))
print(run, run._repr_html_())
run.plot()
"""
SAVED = """python:
import tutelage
run = tutelage.train(model="mlp:4", data="imagefolder:pictures", name="own", epochs=1, device="cpu")
run.student.save_pretrained("published")
print(tutelage.models.from_pretrained("published").card.name)
"""
MISTAKES = {
    "train digits.yaml": "tutelage[demo]",
    "init --data digits": "tutelage[demo]",
    "init": "--data imagefolder:PATH",
    "report pictures": "tutelage[report]",
    "watch pictures": "tutelage[report]",
    "export runs/student --to onnx": "tutelage[onnx]",
}
"""Commands that are refused before PyTorch is imported, each with what is to be typed."""


def made(folder: Path) -> Path:
    """Write an image folder of two classes, and recipes."""
    noise = np.random.default_rng(0)
    for half in ("train", "test"):
        for name, low in (("dark", 0), ("bright", 160)):
            (folder / "pictures" / half / name).mkdir(parents=True)
            for k, pixels in enumerate(noise.integers(low, low + 96, (8, 8, 8), dtype=np.uint8)):
                Image.fromarray(pixels).save(folder / "pictures" / half / name / f"{k}.png")
    (folder / "digits.yaml").write_text("name: digits\nstudent: mlp:4\nepochs: 1\n")
    (folder / "student.yaml").write_text(f"name: student\nobjective: {{wttm: {{gamma: 0.3}}}}\n{RECIPE}")
    (folder / "compared.yaml").write_text(f"name: compared\nobjectives: {{kd: kd, ce: cross_entropy}}\n{RECIPE}")
    (folder / "study.yaml").write_text(f"name: study\n{STUDY}")
    return folder


def typed(folder: Path, *commands: str) -> dict[str, list]:
    """Type commands in one process that has the core alone; return of each its code, its output and its errors."""
    done = subprocess.run(
        [sys.executable, core_alone.__file__, *commands],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SOURCE.parent)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(commands, json.loads(done.stdout), strict=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return made(tmp_path_factory.mktemp("core"))


@pytest.fixture(scope="module")
def answers(folder):
    return typed(folder, *MISTAKES, "distill student.yaml", PLOT)


@pytest.mark.parametrize(("command", "suggested"), MISTAKES.items())
def test_what_needs_an_extra_is_refused_before_the_work(command, suggested, answers):
    code, out, err, torch_was_imported = answers[command]
    assert code == 2, err
    assert re.fullmatch(r"tutelage: .+: expected .+, got .+; .+\n", err)
    assert suggested in err
    assert not torch_was_imported
    assert not out


def test_a_student_is_distilled_without_a_report(answers, folder):
    code, out, err, _ = answers["distill student.yaml"]
    assert code == 0, err
    assert "Traceback" not in out + err
    (line,) = [line for line in out.splitlines() if line.startswith("report:")]
    assert line.startswith("report: not written, as plotly is not installed")
    assert line.endswith("pip install 'tutelage[report]', then tutelage report runs/student")
    assert "report.html" not in out + err
    for run in ("student", "student/teacher"):
        written = {path.name for path in (folder / "runs" / run).iterdir()}
        assert written >= {"manifest.json", "metrics.jsonl", "evaluation.json", "costs.json", "student.safetensors"}
        assert "report.html" not in written


def test_a_run_shows_itself_in_a_notebook_and_names_the_extra_of_its_figure(answers):
    code, out, err, _ = answers[PLOT]
    assert code == 1
    assert "finished, 1 epoch" in out
    assert "<svg" in out
    assert err.startswith("MissingExtraError: plot: ")
    assert "tutelage[report]" in err


@pytest.mark.slow
def test_all_else_works_with_the_core_alone(folder, answers):
    found = typed(
        folder,
        "--help",
        "list data",
        "list objectives",
        "predict runs/student pictures/test/dark/1.png",
        "evaluate runs/student",
        "export runs/student --to safetensors",
        "export runs/student --to torch-export",
        "compare compared.yaml",
        "study study.yaml",
        "doctor",
        SAVED,
    )
    for command, (code, out, err, _) in found.items():
        assert code == 0, f"{command}: {out} {err}"
        assert "Traceback" not in out + err
        assert "report.html" not in out + err
    assert not found["list objectives"][3]
    for command, name in (("compare compared.yaml", "runs/compared"), ("study study.yaml", "runs/study")):
        assert found[command][1].count("pip install 'tutelage[report]'") == 1
        assert f"then tutelage report {name}" in found[command][1]
    assert "extra report           not installed; pip install 'tutelage[report]'" in found["doctor"][1]
    assert "extra demo             not installed; pip install 'tutelage[demo]'" in found["doctor"][1]
    assert "mlp:4" in found[SAVED][1]
    assert "then tutelage report runs/own" in "".join(found[SAVED][1:3])
    assert {path.name for path in (folder / "published").iterdir()} >= {"README.md", "student.safetensors"}
    code, _, err, _ = typed(folder, "tune student.yaml data.validation=0.2")["tune student.yaml data.validation=0.2"]
    assert code == 2
    assert "tutelage[tune]" in err
