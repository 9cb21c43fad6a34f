"""What the pages say is what the code does: keys, defaults, commands, recipes, formulas, links."""

from __future__ import annotations

import dataclasses
import doctest
import hashlib
import itertools
import json
import re
import shlex
import typing
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
import typer
import yaml
from docs import key_tables
from PIL import Image
from tests._helpers import ROOT
from tests._helpers.pairs import write_pairs
from typer.testing import CliRunner

import tutelage
from tutelage import config, losses, objectives, records, targets
from tutelage.cli.app import app
from tutelage.losses import logits as logits_module
from tutelage.models import Card
from tutelage.models.card import JSON_NAMES
from tutelage.objectives.methods import logits as logits_methods
from tutelage.runs import manifest, resume
from tutelage.settings import weights as schedules
from tutelage.settings.fit import FitSettings

RECORDED = ROOT / ".." / "shared" / "conformance" / "losses.jsonl"
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)


# Reading pages


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name, language):
    return re.findall(rf"^```{language}\n(.*?)^```", read(name), flags=re.MULTILINE | re.DOTALL)


def named_recipes(name):
    """The YAML blocks whose first line is the comment that names their file."""
    found = {}
    for block in blocks(name, "yaml"):
        first = re.fullmatch(r"# (\S+\.yaml)", block.splitlines()[0])
        if first:
            found[first[1]] = block
    return found


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


def typed_commands():
    for page in PAGES:
        name = str(page.relative_to(ROOT))
        lines = [line for block in blocks(name, "sh") for line in block.replace("\\\n", " ").splitlines()]
        lines += re.findall(
            r"`((?:tutelage|make) [a-z][^`]*)`", re.sub(r"^```.*?^```", "", read(name), flags=re.M | re.S)
        )
        for line in lines:
            if (words_ := shlex.split(line, comments=True)) and words_[0] in ("tutelage", "make"):
                yield pytest.param(name, words_, id=f"{name}: {' '.join(words_)}"[:100])


def loaded(content, folder, overrides=()):
    """A recipe's text, read as a file is: plain YAML takes 5e-4 for a string."""
    (folder / "shown.yaml").write_text(content)
    return config.read(folder / "shown.yaml", overrides)


@pytest.mark.parametrize(("page", "line"), list(typed_commands()))
def test_a_typed_command_would_run(page, line, tmp_path):
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
    if given.endswith(".yaml"):
        own = {**named_recipes("README.md"), **named_recipes(page)}.get(given)
        config.parse(kind, loaded(own, tmp_path, overrides) if own else config.read(ROOT / given, overrides))
    elif "=" in given:
        config.parse(kind, config.override({"name": "typed"}, [given, *overrides]))
    else:
        assert given.startswith("runs/")
        config.override({"objective": [{"wttm": {}}]}, overrides)


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


@pytest.fixture(scope="module")
def flowers(tmp_path_factory):
    """A tiny folder of images in three colours, of two shapes."""
    folder = tmp_path_factory.mktemp("flowers")
    generator = np.random.default_rng(0)
    for name, colour in {"daisy": (220, 200, 40), "iris": (60, 40, 200), "rose": (200, 30, 60)}.items():
        (folder / "flowers" / name).mkdir(parents=True)
        for i in range(12):
            pixels = generator.normal(colour, 20, (40 + i % 2, 44, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "flowers" / name / f"{i}.png")
    return folder


def test_the_recipes_of_the_readme_fit_an_image_folder(flowers, monkeypatch):
    pytest.importorskip("timm", reason="the optional package timm is not installed")
    monkeypatch.chdir(flowers)
    for name, content in named_recipes("README.md").items():
        Path(name).write_text(content)
    # Without their tags the networks have random weights, which need no network.
    small = ["data.size=32", "data.workers=0", "batch_size=8", "device=cpu"]
    teacher = ["train", "teacher.yaml", "model=timm:test_resnet", *small]

    def call(*arguments):
        done = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    assert "3 classes, weights random" in call(*teacher, "--dry-run")
    assert not Path("runs").exists()
    call(*teacher, "epochs=1", "schedule.warmup=0")
    said = call("distill", "student.yaml", "student=torchvision:mobilenet_v3_small", *small, "--dry-run")
    assert "weights flowers-teacher/student.safetensors" in said
    assert "wttm" in said
    short = ["epochs=1", "schedule.warmup=0", "weak_teacher=true"]
    call("distill", "student.yaml", "student=torchvision:mobilenet_v3_small", *small, *short)
    (prediction,) = tutelage.load("runs/flowers-student").predict("flowers/rose/0.png")
    assert prediction.name in ("daisy", "iris", "rose")


REVIEWS = {"good": ("great", "love", "clear", "works"), "bad": ("broke", "returned", "noisy", "stopped")}


@pytest.fixture
def reviews(tmp_path, monkeypatch):
    """The files that the pages of texts and tokens describe, of which half the words tell the class."""
    draw = np.random.default_rng(0)
    rows = []
    for stars in ("good", "bad") * 30:
        words = [*REVIEWS[stars], "the", "sound", "it", "price"]
        rows.append((" ".join(draw.choice(words, draw.integers(4, 10))), stars))
    (tmp_path / "reviews.csv").write_text("\n".join(map(",".join, [("review", "stars"), *rows])))
    (tmp_path / "notes.jsonl").write_text("\n".join(json.dumps({"text": review}) for review, _ in rows))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("page", ["docs/text.md", "docs/tokens.md"])
def test_the_recipe_of_a_page_of_texts_runs(page, reviews):
    pytest.importorskip("transformers", reason="the optional package transformers is not installed")
    name, content = next(iter(named_recipes(page).items()))
    Path(name).write_text(content)
    done = CliRunner().invoke(app, ["distill", name, "device=cpu", "threads=1"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    test = json.loads((Path("runs") / Path(name).stem / "evaluation.json").read_text())["student"]
    if page == "docs/text.md":
        assert test["accuracy"] > 0.8
        Path("report.txt").write_text("it broke, it stopped: returned")
        prediction, *_ = blocks(page, "python")
        assert [each.name for each in eval(prediction)] == ["good", "bad"]
    else:
        assert test["perplexity"] < 50
        evaluated = CliRunner().invoke(app, ["evaluate", "runs/notes"], catch_exceptions=False)
        shown = " ".join(evaluated.output.split())
        assert f"perplexity {test['perplexity']:.2f} bits per byte {test['bits_per_byte']:.3f} " in shown
        shown = (
            CliRunner()
            .invoke(app, ["distill", name, "name=again", "outputs=o", "--dry-run"], catch_exceptions=False)
            .output
        )
        assert "the teacher's training among it" in shown
        assert "labelled" not in shown
        assert "the teacher asked in each: outputs save that" in shown


def test_the_on_policy_recipe_of_the_page_of_tokens_runs(tmp_path, monkeypatch):
    pytest.importorskip("transformers", reason="the optional package transformers is not installed")
    monkeypatch.chdir(tmp_path)
    rows = [{"question": f"{a} and {b}? ", "answer": str(a + b)} for a in range(6) for b in range(6)]
    Path("questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (recipe,) = (block for block in blocks("docs/tokens.md", "yaml") if "on_policy" in block)
    Path("answers.yaml").write_text(recipe)
    typed = ["distill", "answers.yaml", "device=cpu", "threads=1", "epochs=2"]
    done = CliRunner().invoke(app, typed, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    (loop,) = blocks("docs/tokens.md", "python")
    (mixed,) = (block for block in blocks("docs/tokens.md", "yaml") if "jensen_shannon" in block)
    objective = tutelage.objectives.from_recipe(loaded(mixed, tmp_path)["objective"])
    run = tutelage.config.parse(tutelage.config.Recipe, config.read("answers.yaml"))
    student, teacher = (tutelage.load(f"runs/answers{name}") for name in ("", "/teacher"))
    train = tutelage.data.open_data(run.data).train
    names = {"tutelage": tutelage, "student": student, "epoch": 0, "prompts": torch.from_numpy(train.prompts)}
    names["distiller"] = tutelage.Distiller(student, objective)
    names |= {
        "teacher": tutelage.FrozenTeacher(teacher),
        "batches": tutelage.data.BatchLoader(train, batch_size=8, train=True).epoch(0),
    }
    exec(loop.replace("max_tokens=512", "max_tokens=64"), names)
    assert names["loss"].total.requires_grad


@pytest.mark.slow
def test_the_recipe_of_images_and_texts_runs(tmp_path, monkeypatch):
    pytest.importorskip("transformers", reason="the optional package transformers is not installed")
    monkeypatch.chdir(tmp_path)
    for row in (rows := write_pairs(tmp_path, 400)):
        row |= {"file": row.pop("picture"), "class": row.pop("label")}
    Path("captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    Path("captions.yaml").write_text(named_recipes("docs/text.md")["captions.yaml"])
    done = CliRunner().invoke(app, ["distill", "captions.yaml", "device=cpu", "threads=1"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    for folder in (Path("runs/captions"), Path("runs/captions/teacher")):
        assert json.loads((folder / "evaluation.json").read_text())["student"]["accuracy"] > 0.8


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
    shown_recipes = [(page, block) for page in PAGES for block in blocks(str(page.relative_to(ROOT)), "yaml")]
    assert len(shown_recipes) >= 4
    for page, block in shown_recipes:
        value = loaded(block, tmp_path)
        kind = config.Comparison if "objectives" in value else config.Recipe
        whole = {"name": "shown", "student": "mlp:8", **value}
        if "model" in value:
            del whole["student"]
        config.parse(kind, whole, where=str(page))


# Formulas


def test_the_page_of_formulas_computes_what_it_says():
    failed, tried = doctest.testfile(str(ROOT / "docs" / "methods.md"), module_relative=False)
    assert tried > 10
    assert failed == 0


def test_the_scale_of_the_power_sum_is_as_tabulated():
    rows = table("docs/methods.md", "The scale of the power sum")
    assert len(rows) >= 4
    import torch

    for gamma, *largest in rows:
        for classes, cell in zip((10, 100, 1000), largest, strict=True):
            uniform = torch.full((classes,), 1 / classes, dtype=torch.float64).log()
            assert f"{float(targets.power_sum(uniform, gamma=float(gamma))):.1f}" == cell


# The worked example of CONTRIBUTING.md


@pytest.fixture
def worked(monkeypatch):
    """The page's blocks, put where they say they go; what they add is taken away afterwards."""
    function, export, row, preset = blocks("CONTRIBUTING.md", "python")
    space = dict(vars(logits_module))
    exec(compile(function, "losses/logits.py", "exec"), space)
    assert "from tutelage.losses.logits import standardised_kd" in export
    monkeypatch.setattr(losses, "standardised_kd", space["standardised_kd"], raising=False)
    known = dict(objectives.PRESETS)
    objectives.PRESETS.pop("standardised_kd", None)
    exec(compile(preset, "objectives/methods/logits.py", "exec"), dict(vars(logits_methods)))
    yield row, preset
    objectives.PRESETS.clear()
    objectives.PRESETS.update(known)


def test_the_worked_example_is_a_preset_that_trains(worked, tmp_path):
    _, preset = worked
    objective = objectives.from_recipe({"standardised_kd": {"temperature": 3}})
    assert objectives.from_recipe(objective.to_recipe()) == objective
    body = re.sub(r'""".*?"""\n', "", preset, flags=re.DOTALL)
    assert len(body.strip().splitlines()) <= 10
    settings = {"data": "digits", "epochs": 1, "batch_size": 256, "device": "cpu", "runs": tmp_path}
    teacher = tutelage.train(model="mlp:16", name="teacher", optimizer={"name": "sgd", "lr": 0.2}, **settings)
    run = tutelage.distill(student="mlp:8", teacher=str(teacher.folder), objective=objective, name="s", **settings)
    assert set(run.epochs[0]["train"]["terms"]) == {"ce", "standardised_kd"}


@pytest.mark.skipif(not RECORDED.exists(), reason="the full file of recorded losses is not beside the repository")
def test_the_worked_example_reproduces_its_recorded_values(worked, monkeypatch):
    row, _ = worked
    monkeypatch.syspath_prepend(ROOT / "tests" / "conformance")
    import run

    methods = eval(f"{{{row}}}", {"losses": losses})
    monkeypatch.setattr(run, "METHODS", {**run.METHODS, **methods})
    results = [run.check(each) for each in run.read(RECORDED) if each["method"] in methods]
    assert len(results) >= 4
    assert [result for result in results if result.verdict != "passed"] == []


# The pages themselves


def test_relative_links_lead_somewhere():
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"[a-z]+:", link):
                continue
            place, _, anchor = unquote(link).partition("#")
            target = (page.parent / place) if place else page
            assert target.exists(), f"{page.name}: {link}"
            if anchor:
                headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
                slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
                assert anchor in slugs, f"{page.name}: {link}"


def test_every_page_is_linked_from_the_readme():
    links = set(re.findall(r"\]\(([^)\s#]+)", read("README.md")))
    assert {str(page.relative_to(ROOT)) for page in PAGES} - {"README.md"} <= links


def test_the_readme_is_short_and_shows_the_report():
    assert len(read("README.md").splitlines()) <= 190
    assert "](docs/report.png)" in read("README.md")


def test_every_package_is_on_the_page_of_the_architecture():
    page = read("docs/architecture.md")
    rooms = {path.name for path in (ROOT / "src" / "tutelage").iterdir() if (path / "__init__.py").exists()}
    rooms |= {path.name for path in (ROOT / "src" / "tutelage").glob("*.py") if path.name != "__init__.py"}
    assert [room for room in sorted(rooms) if not re.search(rf"`{re.escape(room)}/?`", page)] == []


def test_the_page_of_the_hub_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks("docs/hub.md", "python"):
        exec(block, names)
    assert "# digits-mlp" in Path("published/README.md").read_text()


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
