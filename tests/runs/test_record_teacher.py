import json
import signal
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tests._helpers import ROOT
from tests._helpers.refusals import refused
from typer.testing import CliRunner

from tutelage import config
from tutelage.cli.app import app
from tutelage.config.schema import Comparison, Recipe
from tutelage.errors import RecipeError
from tutelage.objectives import from_recipe
from tutelage.places.here import train_plainly
from tutelage.runs import record_teacher
from tutelage.runs.execute import execute
from tutelage.runs.reporter import Reporter
from tutelage.runs.run import RunOptions
from tutelage.runs.setup import build_inputs, single_exponent
from tutelage.studies.compare import compare
from tutelage.teacher_cache.cache import TeacherCache
from tutelage.teacher_cache.top_k import TeacherCacheError
from tutelage.training.compile import ROUNDS
from tutelage.training.deadline import Deadline, DeadlineExceeded
from tutelage.tuning import search
from tutelage.tuning.request import request

DATA = {"source": "digits", "labelled": 5, "crop_padding": 1}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "run"
    training = recipe(name="teacher", student="mlp:32", data={"source": "digits"}, epochs=3, objective="cross_entropy")
    execute(training, folder)
    return str(folder)


def recipe(**keys):
    settings = {"data": DATA, "student": "mlp:8", "epochs": 2, "optimizer": {"name": "sgd", "lr": 0.05}, "threads": 1}
    return config.parse(Recipe, {"name": "run", **settings, **keys})


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Settings of a run on noisy images of 40 colours, 40 classes, and of its teacher."""
    folder = tmp_path_factory.mktemp("many")
    noise = np.random.default_rng(0)
    for split, samples in (("train", 6), ("test", 2)):
        for k in range(40):
            (folder / "colours" / split / f"{k:02}").mkdir(parents=True)
            for i in range(samples):
                colour = np.array([k % 4 * 80, k // 4 % 4 * 80, k // 16 * 120])
                pixels = np.clip(colour + noise.normal(0, 20, (8, 8, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / "colours" / split / f"{k:02}" / f"{i}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUTELAGE_CACHE", str(folder / "cache"))
        data = {"source": f"imagefolder:{folder / 'colours'}", "size": 8}
        training = recipe(name="many", student="mlp:32", data=data, epochs=20, objective="cross_entropy", batch_size=32)
        execute(training, folder / "run")
        yield {"teacher": str(folder / "run"), "data": {**data, "flip": True}}


LIMIT = 0.035
"""MB: below the 40 logits of two epochs of 240 samples, above the top 5 with their tail."""


def record(recipe, *, limit_mb=20_000.0, top=None, max_error=0.01, **keywords):
    keys = {"outputs_limit_mb": limit_mb, "outputs_top": top, "outputs_max_error": max_error}
    return record_teacher.record(recipe.model_copy(update=keys), **keywords)


def wttm(teacher, **keys):
    return recipe(teacher=teacher, objective={"wttm": {"gamma": 0.25, "beta": 1}}, **keys)


def test_a_run_on_recorded_outputs_is_a_run_on_the_live_teacher_to_float16(teacher, tmp_path):
    outputs = str(tmp_path / "outputs")
    record_teacher.record(wttm(teacher, outputs=outputs))
    live = execute(wttm(teacher), tmp_path / "live")
    read = execute(wttm(teacher, outputs=outputs), tmp_path / "read")
    again = execute(wttm(teacher, outputs=outputs), tmp_path / "again")
    for expected, epoch in zip(live.epochs, read.epochs, strict=True):
        assert expected["train"]["loss"] == pytest.approx(epoch["train"]["loss"], rel=2e-3)
        assert expected["train"]["agreement"] == pytest.approx(epoch["train"]["agreement"], abs=5e-3)
    assert live.epochs[-1]["train"]["loss"] != read.epochs[-1]["train"]["loss"]
    assert [(live.manifest["teacher"]["answers"]), read.manifest["teacher"]["answers"]] == [
        "live",
        "recorded in float16",
    ]
    weights = [run.student.network.state_dict() for run in (read, again)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_stages_have_views_of_their_own(teacher, tmp_path):
    staged = wttm(teacher, outputs=str(tmp_path / "outputs"), stages=[{"epochs": 1}, {"epochs": 2}])
    folder = record_teacher.record(staged)
    assert sorted(path.name for path in folder.glob("epoch-*")) == ["epoch-0000", "epoch-0001", "epoch-0002"]
    run = execute(staged, tmp_path / "run")
    assert len(run.epochs) == 3


def test_a_recording_is_resumed_where_it_stopped(teacher, tmp_path):
    wanted = wttm(teacher, outputs=str(tmp_path / "outputs"))
    folder = record_teacher.record(wanted)
    files = {path: load_file(path) for path in folder.glob("epoch-*/*")}
    gone, kept = sorted(files)
    gone.unlink()
    changed = kept.stat().st_mtime_ns
    record_teacher.record(wanted)
    assert set(folder.glob("epoch-*/*")) == set(files)
    assert all(torch.equal(load_file(path)[name], tensor) for path in files for name, tensor in files[path].items())
    assert kept.stat().st_mtime_ns == changed


def test_another_seed_of_the_views_is_refused(teacher, tmp_path):
    outputs = str(tmp_path / "outputs")
    record_teacher.record(wttm(teacher, outputs=outputs))
    with refused(TeacherCacheError, "outputs", got=["data_seed", 1, 0]):
        execute(wttm(teacher, outputs=outputs, data_seed=1), tmp_path / "run")
    with refused(TeacherCacheError, "outputs", got=["views.crop_padding", 2, 1]):
        record_teacher.record(wttm(teacher, outputs=outputs, data={**DATA, "crop_padding": 2}))


def test_another_version_of_the_transforms_library_is_refused(teacher, tmp_path):
    outputs, views = tmp_path / "outputs", {**DATA, "transform": "torchvision:RandomInvert"}
    planned = wttm(teacher, outputs=str(outputs), data=views)
    record_teacher.record(planned)
    stored = json.loads((outputs / "outputs.json").read_text())
    assert stored["key"]["transform"] == f"torchvision {version('torchvision').partition('+')[0]}"
    stored["key"]["transform"] = "torchvision 0.1.0"
    (outputs / "outputs.json").write_text(json.dumps(stored))
    with pytest.raises(
        TeacherCacheError, match=r"transform \(expected torchvision .*, got torchvision 0\.1\.0\); type outp"
    ):
        execute(planned, tmp_path / "run")


def test_epochs_that_were_not_recorded_stop_the_run(teacher, tmp_path):
    outputs = str(tmp_path / "outputs")
    record_teacher.record(wttm(teacher, outputs=outputs, epochs=1))
    with refused(TeacherCacheError, "outputs", suggests="tutelage record"):
        execute(wttm(teacher, outputs=outputs), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists(), "it is known before the first step"


def test_faults(teacher, tmp_path):
    with refused(RecipeError, "outputs", suggests="outputs=runs/outputs"):
        record_teacher.record(wttm(teacher))
    with refused(RecipeError, "teacher", suggests="teacher=..."):
        record_teacher.record(recipe(outputs=str(tmp_path / "outputs")))
    with refused(RecipeError, "outputs", got=1437, suggests=["outputs_limit_mb=1", "outputs=null"]):
        record(wttm(teacher, outputs=str(tmp_path / "outputs")), limit_mb=0.01)
    assert not list((tmp_path / "outputs").glob("epoch-*"))


def test_a_teacher_that_is_sharded_is_not_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr("tutelage.training.sharding.world", lambda: 2)
    outputs = recipe(teacher="mlp:32", outputs=str(tmp_path / "outputs"), objective="kd", shard="both")
    with refused(RecipeError, "shard", got="both", suggests="shard=none"):
        record_teacher.record(outputs)


def test_the_command(teacher, tmp_path):
    outputs = tmp_path / "outputs"
    path = tmp_path / "recipe.yaml"
    path.write_text(config.dump(wttm(teacher)))
    result = CliRunner().invoke(app, ["record", str(path), f"outputs={outputs}"])
    assert result.exit_code == 0, result.output
    assert f"outputs: {outputs}" in result.output
    key = json.loads((outputs / "outputs.json").read_text())["key"]
    assert key["data_seed"] == 0
    run_inputs = build_inputs(wttm(teacher))
    assert list(TeacherCache(outputs, key, samples=len(run_inputs.splits.train)).missing(1)) == []


def test_a_comparison_asks_the_teacher_once_for_each_data_seed(teacher, tmp_path):
    value = {
        "name": "few",
        "data": DATA,
        "student": "mlp:8",
        "teacher": teacher,
        "epochs": 2,
        "seeds": 2,
        "threads": 1,
        "outputs": str(tmp_path / "outputs"),
        "objectives": {"ce": "cross_entropy", "kd": "kd", "wttm": {"wttm": {"gamma": 0.25, "beta": 1}}},
    }
    compare(config.parse(Comparison, value), tmp_path / "few")
    folders = sorted(path.name for path in (tmp_path / "outputs").iterdir())
    assert folders == ["data0", "data1"]
    answers = {}
    for folder in (tmp_path / "few").glob("*-seed*"):
        manifest = json.loads((folder / "manifest.json").read_text())
        answers[folder.name] = manifest["teacher"]["answers"], manifest["seeds"]["data_seed"]
    assert answers["kd-seed1"] == answers["wttm-seed1"] == ("recorded in float16", 1)
    assert answers["ce-seed0"] == ("not asked", 0)


def test_a_recording_stops_in_time_after_a_whole_chunk(teacher, tmp_path):
    wanted = wttm(teacher, outputs=str(tmp_path / "outputs"))
    times = iter([1.0, 3.0])
    with refused(DeadlineExceeded, "outputs: the next chunk"):
        record_teacher.record(wanted, options=RunOptions(deadline=Deadline(2.0, clock=lambda: next(times))))
    assert [path.parent.name for path in (tmp_path / "outputs").glob("epoch-*/*")] == ["epoch-0000"]
    record_teacher.record(wanted)
    assert len(list((tmp_path / "outputs").glob("epoch-*/*"))) == 2


def test_the_top_classes_where_all_are_too_many(many, tmp_path):
    outputs = str(tmp_path / "outputs")
    reporter = Lines()
    staged = wttm(
        **many,
        outputs=outputs,
        stages=[{"epochs": 1}, {"epochs": 1, "objective": {"kd": {"temperature": 1.5}}}],
    )
    folder = record(staged, options=RunOptions(reporter=reporter), limit_mb=LIMIT, top=5, max_error=0.5)
    recorded = json.loads((folder / "outputs.json").read_text())
    assert {0.25, 1 / 1.5} < set(recorded["form"]["gammas"])
    assert recorded["form"]["top"] == 5
    assert "of the top 5 of 40 classes" in reporter.lines[0]
    error = next(entry for entry in recorded["errors"] if entry["gamma"] == 0.25)
    assert 0 < error["mean_tv"] <= error["max_tv"] < 0.5
    assert any("gamma 0.25: p_gamma off by " in line for line in reporter.lines)
    live = execute(staged.model_copy(update={"outputs": None}), tmp_path / "live")
    read = execute(staged, tmp_path / "read")
    assert read.manifest["teacher"]["answers"] == "recorded in float16, the top 5 of 40"
    for expected, epoch in zip(live.epochs, read.epochs, strict=True):
        assert expected["train"]["loss"] == pytest.approx(epoch["train"]["loss"], rel=0.1)
        assert expected["train"]["agreement"] == pytest.approx(epoch["train"]["agreement"], abs=0.02)


def test_within_the_limit_all_classes_are_kept(many, tmp_path):
    folder = record(wttm(**many, outputs=str(tmp_path / "outputs")), top=5)
    assert json.loads((folder / "outputs.json").read_text())["form"] is None


def test_outputs_keep_the_form_that_they_were_begun_in(many, tmp_path):
    wanted = wttm(**many, outputs=str(tmp_path / "outputs"))
    folder = record(wanted, limit_mb=LIMIT, top=3, max_error=1)
    next(folder.glob("epoch-0001/*")).unlink()
    with refused(RecipeError, "outputs_top", got=4, suggests="outputs=..."):
        record(wanted, top=4)
    record_teacher.record(wanted)
    recorded = json.loads((folder / "outputs.json").read_text())
    assert recorded["form"]["top"] == 3
    assert len(recorded["errors"]) == len(recorded["form"]["gammas"])


def test_a_top_that_is_too_inaccurate_is_refused_before_anything_is_written(many, tmp_path):
    wanted = wttm(**many, outputs=str(tmp_path / "outputs"))
    with refused(TeacherCacheError, "outputs", got="gamma 0.25", suggests="outputs_top=..."):
        record(wanted, limit_mb=LIMIT, top=1)
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == [".lock"]
    record(wanted, limit_mb=LIMIT, top=3, max_error=1)


def test_another_exponent_than_was_recorded_for_is_refused_before_the_first_step(many, tmp_path):
    outputs = str(tmp_path / "outputs")
    record(wttm(**many, outputs=outputs), limit_mb=LIMIT, top=3, max_error=1)
    for name, objective, kind, got in (
        ("off", {"ttm": {"gamma": 0.7, "beta": 1}}, TeacherCacheError, "gamma 0.7"),
        (
            "two",
            [{"ttm": {"gamma": 0.25, "beta": 1}}, {"kd": {"temperature": 2, "supervised": 0}}],
            RecipeError,
            "(gamma 0.25, gamma 0.5)",
        ),
        ("auto", {"ttm": {"gamma": "auto", "beta": 1}}, RecipeError, "ttm (another reading, or auto)"),
        ("dist", "dist", RecipeError, "dist"),
        (
            "entropy",
            {"transformed_matching": {"gamma": 0.25, "beta": 1, "weight_by": "entropy"}},
            RecipeError,
            "transformed_matching",
        ),
        ("standardised", {"kd": {"logits": "standardised"}}, RecipeError, "kd"),
    ):
        with refused(kind, "outputs", got=got):
            execute(recipe(**many, objective=objective, outputs=outputs), tmp_path / name)
        assert not (tmp_path / name / "metrics.jsonl").exists()
    for objective, gamma in (("crd", None), ([{"wttm": {"gamma": 0.25, "beta": 1}}, "crd"], 0.25)):
        assert single_exponent(from_recipe(objective)) == gamma
    with refused(RecipeError, "outputs", got="dist"):
        record(recipe(**many, objective="dist", outputs=str(tmp_path / "new")), limit_mb=LIMIT, top=3)


def test_a_limit_names_the_top_that_is_within_it(teacher, many, tmp_path):
    wanted = wttm(**many, outputs=str(tmp_path / "outputs"))
    with refused(RecipeError, "outputs", suggests=["outputs_top=4", "outputs=null"]):
        record(wanted, limit_mb=0.026)
    with refused(RecipeError, "outputs", suggests=["outputs_limit_mb=1", "outputs=null"]):
        record(wanted, limit_mb=0.001)
    with refused(RecipeError, "outputs_top", got=14):
        record(wanted, limit_mb=LIMIT, top=14)
    assert not (tmp_path / "outputs" / "outputs.json").exists()


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        ({"teacher": "other"}, refused(TeacherCacheError, "outputs", got="teacher.fingerprint")),
        ({"data": {**DATA, "validation": 0.2, "split_seed": 1}}, refused(TeacherCacheError, "outputs", got="data")),
        ({"data": {**DATA, "validation": 0.2, "flip": True}}, refused(TeacherCacheError, "outputs", got="views.flip")),
        ({"data_seed": 3}, refused(TeacherCacheError, "outputs", got=["data_seed", 3, 0])),
        ({"precision": "bf16"}, refused(TeacherCacheError, "outputs", got=["precision", "bf16", "fp32"])),
    ],
    ids=["teacher", "data", "views", "data_seed", "precision"],
)
def test_each_fingerprint_is_compared_with_the_run_s(teacher, tmp_path, change, refusal):
    outputs = str(tmp_path / "outputs")
    base = {"data": {**DATA, "validation": 0.2}, "epochs": 1}
    record_teacher.record(wttm(teacher, outputs=outputs, **base))
    if change.get("teacher"):
        other = recipe(name="other", student="mlp:32", data={"source": "digits"}, epochs=1, seed=9)
        execute(other, tmp_path / "other")
        changed = wttm(str(tmp_path / "other"), outputs=outputs, **base)
    else:
        changed = wttm(teacher, outputs=outputs, **{**base, **change})
    with refusal:
        execute(changed, tmp_path / "run")
    with refusal:
        record_teacher.record(changed)


@pytest.mark.parametrize("top", [None, pytest.param(3, marks=pytest.mark.slow)])
def test_a_recording_that_was_killed_resumes_and_ends_in_the_same_bits(many, tmp_path, top):
    recipes = {name: wttm(**many, outputs=str(tmp_path / name), epochs=3) for name in ("killed", "whole")}
    keywords = {"limit_mb": 1.4 * LIMIT, "top": top, "max_error": 1.0} if top else {}
    path = tmp_path / "recipe.yaml"
    path.write_text(config.dump(recipes["killed"]))
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            KILLED,
            str(ROOT),
            str(path),
            json.dumps({f"outputs_{key}": value for key, value in keywords.items()}),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    chunks = sorted((tmp_path / "killed").glob("epoch-*/[0-9]*"))
    assert [chunk.parent.name for chunk in chunks] == ["epoch-0000"]
    kept = chunks[0].stat().st_mtime_ns
    assert list((tmp_path / "killed").glob("epoch-0001/.*.tmp")), "half of a chunk"
    for name in recipes:
        record(recipes[name], **keywords)
    assert chunks[0].stat().st_mtime_ns == kept
    killed, whole = ({str(p.relative_to(tmp_path / n)): p for p in (tmp_path / n).rglob("*.*")} for n in recipes)
    chunks = [name for name in whole if name.endswith(".safetensors")]
    assert len(chunks) == 3
    assert killed.keys() == whole.keys(), "nothing half-written is left"
    assert killed["outputs.json"].read_text() == whole["outputs.json"].read_text()
    for name in chunks:
        expected, resumed = load_file(whole[name]), load_file(killed[name])
        assert expected.keys() == resumed.keys()
        assert all(torch.equal(expected[key], resumed[key]) for key in expected)


KILLED = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests._helpers import killed_run
from tutelage.objectives import from_recipe
from tutelage.runs import record_teacher, recipes
recipe = recipes.from_file(Path(sys.argv[2]), [])
killed_run.arm({"what": "write", "where": "epoch-0001", "count": 1})
record_teacher.record(recipe.model_copy(update=json.loads(sys.argv[3])))
"""


class Lines(Reporter):
    """A reporter that keeps its lines."""

    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


# ------------------------------------------------------------------------------------------------ how it is computed


@pytest.fixture
def compiling(monkeypatch):
    """Replace the compiler by a mark: return the sizes of the batches that a compiled teacher was called on."""
    sizes = []

    def compiled(call, **_):
        def marked(batch):
            sizes.append(len(batch.index))
            return call(batch)

        return marked

    monkeypatch.setattr(torch, "compile", compiled)
    return sizes


def test_the_teacher_is_compiled_where_that_is_wanted_and_the_outputs_say_so(teacher, tmp_path, compiling):
    plain = record_teacher.record(wttm(teacher, outputs=str(tmp_path / "plain"), compile_teacher=False))
    assert not compiling
    fast = record_teacher.record(wttm(teacher, outputs=str(tmp_path / "fast"), compile_teacher=True))
    assert len(compiling) > 2  # measured, and then called in every epoch
    plans = [json.loads((folder / "outputs.json").read_text())["speed"] for folder in (plain, fast)]
    assert [plan["teacher_compiled"] for plan in plans] == [False, True]
    assert plans[0]["why"] == {"teacher": "a short fit"}
    assert plans[1]["samples"] == compiling[0]
    logits = [load_file(next((folder / "epoch-0000").glob("*logits*")))["values"] for folder in (plain, fast)]
    assert torch.equal(*logits)


def test_an_interrupted_recording_resumes_in_the_form_that_was_chosen(teacher, tmp_path, compiling):
    recipe_ = wttm(teacher, outputs=str(tmp_path / "outputs"), compile_teacher=True, epochs=1)
    folder = record_teacher.record(recipe_)
    before = len(compiling)
    recorded = (folder / "outputs.json").read_text()
    record_teacher.record(recipe_.model_copy(update={"epochs": 2, "compile_teacher": False}))
    epoch = before - (1 + ROUNDS)  # what was not measuring
    assert len(compiling) == before + epoch > before
    assert (folder / "outputs.json").read_text() == recorded


def test_a_comparison_keeps_the_top_where_outputs_top_is_given(many, tmp_path):
    keys = {"name": "few", "data": many["data"], "student": "mlp:8", "teacher": many["teacher"], "epochs": 2}
    asked = {"kd": {"kd": {"temperature": 1.5}}, "ttm": {"ttm": {"gamma": 0.3, "beta": 1}}}  # which share no batches
    value = {**keys, "objectives": asked, "outputs": str(tmp_path / "outputs")}
    with refused(RecipeError, "outputs", suggests=["outputs_limit_mb=1", "outputs_top=4"]):
        compare(config.parse(Comparison, {**value, "outputs_limit_mb": 0.026}), tmp_path / "few")
    kept = {"outputs_limit_mb": LIMIT, "outputs_top": 5, "outputs_max_error": 1.0}
    compare(config.parse(Comparison, {**value, **kept}), tmp_path / "few")
    for name in asked:
        run = json.loads((tmp_path / "few" / f"{name}-seed0" / "manifest.json").read_text())
        assert run["teacher"]["answers"] == "recorded in float16, the top 5 of 40"
    asked["late"] = {"ttm": {"gamma": 0.45, "beta": 1}}
    later = {**value, **kept, "objectives": asked, "name": "later"}
    with refused(TeacherCacheError, "outputs", got="gamma 0.45", suggests="outputs=..."):
        compare(config.parse(Comparison, later), tmp_path / "later")
    asked["late"] = "dkd"
    unfit = {**value, **kept, "objectives": asked, "outputs": str(tmp_path / "new"), "name": "unfit"}
    with refused(RecipeError, "outputs", got="dkd"):
        compare(config.parse(Comparison, unfit), tmp_path / "unfit")
    assert not [*tmp_path.glob("*/kd-seed0/metrics.jsonl")][1:]  # no student was trained for nothing


def test_exponents_of_other_runs_are_recorded_but_for_those_that_cannot_be(many, tmp_path):
    own = wttm(**many, outputs=str(tmp_path / "kept"), epochs=2)
    beside = [recipe(**many, objective=each) for each in ({"ttm": {"gamma": 0.45, "beta": 1}}, "dkd")]
    folder = record(own, limit_mb=LIMIT, top=5, max_error=1.0, beside=beside)
    assert 0.45 in json.loads((folder / "outputs.json").read_text())["form"]["gammas"]
    with refused(RecipeError, "outputs", got="dkd"):
        record(own, limit_mb=LIMIT, top=5, max_error=1.0, beside=beside, all_or_none=True)


def test_a_student_that_reads_no_outputs_is_trained_where_they_cannot_be_recorded(many, tmp_path):
    kept = {"outputs": str(tmp_path / "kept"), "outputs_limit_mb": LIMIT, "outputs_top": 5, "outputs_max_error": 1.0}
    alone = {"data": many["data"], "objective": "cross_entropy"}
    group = [(recipe(**many, **kept, objective="dkd"), tmp_path / "dkd"), (recipe(**alone), tmp_path / "ce")]
    failed, run = train_plainly(group, [], RunOptions())
    assert isinstance(failed, RecipeError)
    assert run.manifest["status"] == "finished"
    assert not (tmp_path / "dkd").exists()
    with refused(RecipeError, "outputs", got="dkd"):
        train_plainly(group[:1], [], RunOptions())


def test_a_search_over_exponents_that_are_not_recorded_ends(many, tmp_path):
    keys = {
        "name": "few",
        "student": "mlp:8",
        "teacher": many["teacher"],
        "epochs": 2,
        "outputs": str(tmp_path / "kept"),
    }
    keys |= {"data": {**many["data"], "validation": 0.1}, "objective": {"ttm": {"gamma": 0.25, "beta": 1}}}
    keys |= {"outputs_limit_mb": 0.03, "outputs_top": 5, "outputs_max_error": 1.0}
    asked = request(
        config.parse(Recipe, keys), trials=3, search=["objective.ttm.gamma=0.6..0.95"], confirm=0, together=1
    )
    with refused(TeacherCacheError, "outputs", suggests="outputs_limit_mb=..."):
        search.tune(asked, tmp_path / "s")


def test_what_another_process_has_begun_meanwhile_is_resumed(teacher, tmp_path, monkeypatch):
    wanted = wttm(teacher, outputs=str(tmp_path / "outputs"))
    alone = record_teacher.folder_lock

    def after_another(*arguments, **keywords):
        monkeypatch.setattr(record_teacher, "folder_lock", alone)
        record_teacher.record(wanted.model_copy(update={"precision": "bf16", "epochs": 1}))
        return alone(*arguments, **keywords)

    monkeypatch.setattr(record_teacher, "folder_lock", after_another)
    folder = record_teacher.record(wanted)
    assert json.loads((folder / "outputs.json").read_text())["key"]["precision"] == "bf16"
    run = execute(wanted, tmp_path / "run")
    assert run.manifest["precision"]["value"] == "bf16"
