"""What the pages say is what the code does: keys, defaults, commands, recipes, formulas, links."""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import itertools
import re
import shlex
import typing
from urllib.parse import unquote

import numpy as np
import pytest
import torch
import typer
import yaml
from docs import key_tables
from tests._helpers import ROOT
from tests.pages import harness
from typer.testing import CliRunner

import tutelage
from tutelage import config, objectives, records, targets
from tutelage.cli.app import app
from tutelage.models import Card
from tutelage.models.card import JSON_NAMES
from tutelage.runs import manifest, resume
from tutelage.settings import weights as schedules
from tutelage.settings.fit import FitSettings

TOP = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "RELEASING.md", "SECURITY.md")
PAGES = [*(ROOT / name for name in TOP), *sorted((ROOT / "docs").rglob("*.md"))]
RECORDS = sorted((ROOT / "benchmarks").rglob("*.md"))


# Reading pages


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name, *languages):
    return [block.code for block in harness.blocks_of(name) if block.language in languages]


def named_recipes(name):
    """The YAML blocks whose first line is the comment that names their file."""
    return {file: block.code for block in harness.blocks_of(name) if (file := harness.named(block))}


def prose(page):
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def table(page, heading):
    """The rows of the first table below a heading, as lists of cells."""
    section = re.split(rf"^#+ {re.escape(heading)}$", read(page), flags=re.MULTILINE)
    assert len(section) == 2, f"{page}: expected the heading {heading!r} once"
    lines = re.split(r"^#+ ", section[1], flags=re.MULTILINE)[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("|")]
    assert rows, f"{page}: expected a table below {heading!r}"
    return rows[2:]


# The tables of recipes.md


@pytest.mark.parametrize("heading", list(key_tables.SECTIONS))
def test_recipe_keys_have_a_meaning(heading):
    assert all(len(row) == 4 and row[3].endswith(".") and row[3] != "..." for row in table("docs/recipes.md", heading))


def test_tables_of_keys_and_presets_are_those_of_the_code():
    page = read("docs/recipes.md")
    assert key_tables.written(page) == page, "type python docs/key_tables.py"
    spoiled = page.replace("| `epochs` | whole number in [1, 2147483647] | `240` |", "| `epoch` | text | `3` |")
    assert spoiled != page
    assert "| `epochs` | whole number in [1, 2147483647] | `240` | ... |" in key_tables.written(spoiled)


def test_every_setting_of_the_loop_is_a_key_of_a_run():
    run = {key: default for key, _, default in key_tables.SECTIONS["A run"]}
    for key, _, default in key_tables.keys_of(FitSettings):
        name = key.strip("`")
        expected = key_tables.shown(getattr(FitSettings(), name)) if default == "required" else default
        # A loop is told its precision; a run's is found.
        assert run[key] == ("`auto`" if name == "precision" else expected), key


def test_keys_that_may_change_on_resume_are_named():
    text = read("docs/resume.md")
    assert not [key for key in resume.FREE | resume.WHERE if f"`{key}`" not in text]


def test_the_schedules_of_weights_are_those_documented():
    text = read("docs/recipes.md")
    for name, kind in schedules.SCHEDULES.items():
        assert f"`{name}`" in text
        assert name in key_tables.SECTIONS or list(key_tables.keys_of(kind)) == key_tables.SECTIONS["linear"]


# Records

TYPED = (
    records.Epoch,
    records.Study,
    records.Compared,
    records.StudySearch,
    records.Candidate,
    records.Cell,
    records.Published,
    records.TrainMeans,
    records.EvaluationMeans,
    records.Evaluation,
    records.Judgement,
    records.Calibration,
    records.Disputed,
    records.DisputedSample,
    records.Answer,
    records.Bin,
    records.Histogram,
    records.Best,
    records.Costs,
    records.NetworkCost,
    records.Comparison,
    records.Entry,
    records.Tune,
    records.Dimension,
    records.Trial,
    records.Confirmation,
    records.Found,
    records.HeldOutGain,
)
LEAVES = ("files", "recipe", "software", "teacher.normalisation", "student.normalisation")
"""Mappings whose own keys are said elsewhere."""


@pytest.fixture(scope="module")
def real_run(tmp_path_factory):
    """A run whose records hold everything: a validation set, a teacher, a schedule."""
    folder = tmp_path_factory.mktemp("records")
    tiny = {"data": {"source": "digits", "validation": 0.1}, "epochs": 2, "batch_size": 256, "device": "cpu"}
    fast = {"optimizer": {"name": "sgd", "lr": 0.2}}
    teacher = tutelage.train(model="mlp:16", name="teacher", runs=folder, **tiny, **fast)
    return tutelage.distill(
        student="mlp:8",
        teacher=str(teacher.folder),
        objective={"wttm": {"gamma": 0.5, "beta": {"schedule": "linear", "start": 1.0, "end": 0.0}}},
        name="student",
        runs=folder,
        checkpoint_steps=3,
        **tiny,
        **fast,
    )


def dotted(value, above=""):
    for key, inner in value.items():
        name = f"{above}{key}"
        if isinstance(inner, dict) and name not in LEAVES:
            yield from dotted(inner, f"{name}.")
        else:
            yield name


def test_manifest_keys_are_documented(real_run):
    documented = [row[0].strip("`") for row in table("docs/records.md", "manifest.json")]
    assert documented == list(dict.fromkeys(documented))
    assert sorted(documented) == sorted(dotted(real_run.manifest))


def test_packages_of_the_manifest_are_documented():
    ((meaning,),) = [row[1:] for row in table("docs/records.md", "manifest.json") if row[0] == "`software`"]
    assert set(re.findall(r"`([^`]+)`", meaning)) == {"python", "system", *manifest.PACKAGES}


def test_keys_of_a_card_are_documented():
    hints = typing.get_type_hints(Card)
    rows = table("docs/records.md", "student.json")
    assert [(row[0], row[1]) for row in rows] == [
        (f"`{JSON_NAMES.get(field.name, field.name)}`", key_tables.words(hints[field.name]))
        for field in dataclasses.fields(Card)
    ]


@pytest.mark.parametrize("kind", TYPED, ids=lambda kind: kind.__name__)
def test_record_keys_are_documented(kind):
    rows = table("docs/records.md", kind.__name__)
    assert [(row[0], row[1]) for row in rows] == [
        (f"`{name}`", key_tables.words(hint)) for name, hint in typing.get_type_hints(kind).items()
    ]
    assert all(row[2].endswith(".") for row in rows)


def test_records_of_a_real_run_have_the_documented_keys(real_run):
    def keys(kind):
        return set(typing.get_type_hints(kind))

    of_text = keys(records.TaskMeasures)
    for epoch in real_run.epochs:
        assert set(epoch) == keys(records.Epoch) - {"overflowed_steps", "samples_by_rank"}
        assert set(epoch["train"]) == keys(records.TrainMeans) - {"unlabelled"}
        assert set(epoch["validation"]) == set(epoch["test"]) == keys(records.EvaluationMeans) - of_text
    evaluation = real_run.evaluation
    assert set(evaluation) == keys(records.Evaluation)
    of_text.add("average_precision")
    assert set(evaluation["student"]) == keys(records.Judgement) - of_text
    assert set(evaluation["teacher"]) == keys(records.Judgement) - of_text - {
        *("agreement", "kl_to_teacher", "kl_to_target"),
    }
    assert set(evaluation["best"]) == keys(records.Best) - of_text
    assert {key for b in evaluation["student"]["reliability"] for key in b} == keys(records.Bin)
    assert set(evaluation["student"]["entropy_histogram"]) == keys(records.Histogram)


def test_files_of_a_run_are_documented(real_run):
    documented = {row[0].strip("`") for row in table("docs/records.md", "A run's folder")}
    checkpoint = sorted((real_run.folder / "checkpoints").iterdir())[-1]
    there = {path.name for path in real_run.folder.iterdir() if path.name != ".lock"} - {"checkpoints"}
    there |= {f"checkpoints/*/{path.name}" for path in checkpoint.iterdir()}
    assert documented == there


# Commands and recipes that are typed

COMMANDS = typer.main.get_command(app)


def typed_commands(page):
    blocks_ = (block for block in harness.blocks_of(page) if block.language == "sh")
    lines = [line for block in blocks_ for line in harness.lines_of(block)]
    lines += re.findall(r"`((?:tutelage|make) [a-z][^`]*)`", prose(ROOT / page))
    for line in lines:
        if (words := shlex.split(line, comments=True))[:1] in (["tutelage"], ["make"]):
            yield words


def loaded(content, folder, overrides=()):
    """A recipe's text, read as a file is: plain YAML takes 5e-4 for a string."""
    (folder / "shown.yaml").write_text(content)
    return config.read(folder / "shown.yaml", overrides)


def check_command(page, line, folder):
    program, *arguments = line
    if program == "make":
        known = re.findall(r"^([a-z-]+):", read("Makefile"), flags=re.MULTILINE)
        assert {argument for argument in arguments if "=" not in argument} <= set(known)
        return
    arguments = list(itertools.takewhile(lambda argument: argument not in (">", "|"), arguments))
    command = COMMANDS.commands[arguments[0]]
    if not arguments[1:] or any(argument.isupper() for argument in arguments):
        return  # The command's name alone, or its usage.
    context = command.make_context(arguments[0], arguments[1:])
    if arguments[0] not in ("train", "distill", "compare"):
        return
    given, overrides = context.params["recipe"], list(context.params["overrides"] or [])
    kind = config.Comparison if arguments[0] == "compare" else config.Recipe
    own = {**named_recipes("README.md"), **named_recipes(page)}.get(given)
    if own or (ROOT / given).is_file():
        config.parse(kind, loaded(own, folder, overrides) if own else config.read(ROOT / given, overrides))
    elif "=" in given:
        config.parse(kind, config.override({"name": "typed"}, [given, *overrides]))
    else:  # a run's folder, or a file that another command of the page writes
        config.override({"objective": [{"wttm": {}}]}, overrides)


# How-to pages also show commands that are refused: tests/pages/test_how_to.py types them all.
@pytest.mark.parametrize("page", [page.relative_to(ROOT).as_posix() for page in PAGES if page.parent.name != "how-to"])
def test_typed_commands_would_run(page, tmp_path):
    """Also those in sentences, and those of pages that are played slowly."""
    for line in typed_commands(page):
        try:
            check_command(page, line, tmp_path)
        except Exception as error:
            error.add_note(f"{page}: {shlex.join(line)}")
            raise


def test_commands_are_those_of_the_table():
    documented = [re.match(r"`tutelage ([a-z]+)", row[0])[1] for row in table("README.md", "Commands")]
    assert documented == list(COMMANDS.commands)


@pytest.mark.parametrize("name", list(COMMANDS.commands))
def test_help_ends_in_an_example(name):
    done = CliRunner().invoke(app, [name, "--help"])
    assert done.exit_code == 0
    assert re.search(rf"Example: tutelage {name}( \S+)*$", " ".join(done.output.split()))


def test_the_demo_is_as_the_readme_says():
    demo = config.parse(config.Comparison, config.read(ROOT / "recipes" / "digits.yaml"))
    assert "compare recipes/digits.yaml" in read("Makefile")
    assert demo.name == "digits"
    assert demo.data.labelled == 5
    assert demo.training("teacher").data.labelled is None
    assert list(demo.objectives) == ["cross_entropy", "kd", "ttm", "weighted_kd", "wttm"]
    built = {name: objectives.from_spec(spec) for name, spec in demo.objectives.items()}
    for kd, of in (("kd", "ttm"), ("weighted_kd", "wttm")):
        assert built[kd] == objectives.kd_matched_to(built[of])
    assert demo.seeds == 3
    said = " ".join(read("README.md").split())
    assert "cross-entropy, KD, TTM and WTTM on scikit-learn's digits with three seeds each" in said
    assert "5 labels per class" in said


def test_what_gamma_leaves_of_a_sure_teacher_is_as_tabulated():
    rows = table("docs/tokens.md", "Gamma near 1")
    assert len(rows) == 4
    for classes, *shares in rows:
        others = (0.1 / (int(classes) - 1)) * np.ones(int(classes) - 1)
        for gamma, cell in zip((1, 0.9, 0.75, 0.5, 0.25), shares, strict=True):
            assert f"{100 * 0.9**gamma / (0.9**gamma + (others**gamma).sum()):.1f}" == cell


def test_the_pretrained_weights_of_the_readme_exist():
    timm = pytest.importorskip("timm", reason="the optional package timm is not installed")
    from torchvision.models import get_model_weights

    names = re.findall(r"\b(timm|torchvision):(\w+)\.(\w+)", read("README.md"))
    assert {door for door, _, _ in names} == {"timm", "torchvision"}
    for door, architecture, tag in names:
        if door == "timm":
            assert f"{architecture}.{tag}" in timm.list_pretrained(f"{architecture}.*")
        else:
            assert tag in get_model_weights(architecture).__members__


def test_recipes_that_pages_show_are_valid(tmp_path):
    names = [page.relative_to(ROOT).as_posix() for page in PAGES]
    shown_recipes = [(page, block) for page in names for block in blocks(page, "yaml")]
    assert len(shown_recipes) >= 4
    for page, block in shown_recipes:
        value = loaded(block, tmp_path)
        kind = config.Comparison if "objectives" in value else config.Recipe
        whole = {"name": "shown", "student": "mlp:8", **value}
        if "model" in value:
            del whole["student"]
        config.parse(kind, whole, where=page)


# Formulas


def test_the_scale_of_the_power_sum_is_as_tabulated():
    rows = table("docs/methods.md", "The scale of the power sum")
    assert len(rows) >= 4

    for gamma, *largest in rows:
        for classes, cell in zip((10, 100, 1000), largest, strict=True):
            uniform = torch.full((classes,), 1 / classes, dtype=torch.float64).log()
            assert f"{float(targets.power_sum(uniform, gamma=float(gamma))):.1f}" == cell


# The pages themselves


def links(page):
    """Of a page's relative links the files, and the anchors in them."""
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not re.match(r"[a-z]+:", link):
            place, _, anchor = unquote(link).partition("#")
            yield link, (page.parent / place).resolve() if place else page, anchor


@functools.cache
def anchors(page):
    """What a code host and MyST make of the headings; the second of one name has a number."""
    found = collections.Counter()
    for heading in re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE):
        shown = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        found[slug + (f"-{found[slug]}" if found[slug] else "")] += 1
    return set(found)


@pytest.mark.parametrize("pages", [PAGES, RECORDS], ids=["pages", "records"])
def test_relative_links_lead_somewhere(pages):
    for page in pages:
        for link, target, anchor in links(page):
            assert target.exists(), f"{page.relative_to(ROOT)}: {link}"
            if anchor and target.suffix == ".md":
                assert anchor in anchors(target), f"{page.relative_to(ROOT)}: {link}"


def test_every_page_is_reached_from_the_readme():
    """By links, and by the tables of contents of the site, which begins at docs/index.md."""
    reached, ahead = set(), [ROOT / "README.md", ROOT / "docs" / "index.md"]
    while ahead:
        page = ahead.pop()
        if page.suffix == ".md" and page not in reached and page.exists():
            reached.add(page)
            ahead += [target for _, target, _ in links(page)]
            for contents in re.findall(r"^```\{toctree\}\n(.*?)^```", page.read_text("utf-8"), flags=re.M | re.S):
                names = [line for line in contents.split() if line[0] != ":"]
                for name in names:  # what begins with a slash lies where it lies in the repository
                    pattern = re.sub(r"\*\*$", "**/*", name.lstrip("/")) + ".md"
                    ahead += (ROOT if name[0] == "/" else page.parent).glob(pattern)
    assert [str(page.relative_to(ROOT)) for page in PAGES if page not in reached] == []


def test_the_readme_is_short_and_shows_the_report():
    assert len(read("README.md").splitlines()) <= 190
    assert "](docs/report.png)" in read("README.md")


def test_the_figures_of_the_readme_are_on_the_pages_that_they_link():
    """Or in the table beside, which `tutelage compare` wrote."""
    rows = table("README.md", "What was measured")
    assert len(rows) == 5
    for what, result, _ in rows:
        (page,) = re.findall(r"\]\(([^)#]+)", what)
        figures = re.findall(r"\d+\.\d+", result)
        assert figures
        beside = (ROOT / page).parent.glob("table.md")
        recorded = "".join([read(page), *(each.read_text(encoding="utf-8") for each in beside)])
        assert [figure for figure in figures if figure not in recorded] == [], what


def test_every_package_is_on_the_page_of_the_architecture():
    page = read("docs/architecture.md")
    rooms = {path.name for path in (ROOT / "src" / "tutelage").iterdir() if (path / "__init__.py").exists()}
    rooms |= {path.name for path in (ROOT / "src" / "tutelage").glob("*.py") if path.name != "__init__.py"}
    assert [room for room in sorted(rooms) if not re.search(rf"`{re.escape(room)}/?`", page)] == []


def test_the_licence_is_apache_2_verbatim():
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == (
        "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
    )


def test_citation_and_changelog_speak_of_this_version():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["version"] == tutelage.__version__
    assert citation["license"] == "Apache-2.0"
    (paper,) = citation["references"]
    assert [author["family-names"] for author in paper["authors"]] == ["Zheng", "Yang"]
    assert {"type": "other", "value": "arXiv:2402.11148"} in paper["identifiers"]
    assert f"\n## [{tutelage.__version__}]" in read("CHANGELOG.md")
