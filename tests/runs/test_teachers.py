"""Runs of several teachers."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tests._helpers.refusals import refused
from torch import nn

import tutelage
from tutelage import config, data, models
from tutelage.config.schema import Recipe
from tutelage.errors import InvalidTypeError, InvalidValueError, RecipeError
from tutelage.models import Ensemble
from tutelage.runs import recipes
from tutelage.runs.networks import create_teacher
from tutelage.runs.preflight import check_names
from tutelage.runs.record_teacher import record
from tutelage.runs.reporter import Reporter
from tutelage.runs.resume import recipe_differences, run_differences
from tutelage.runs.setup import build_inputs, build_objectives, outputs_of
from tutelage.settings.data import DataSettings

QUICK = {
    "epochs": 1,
    "batch_size": 500,
    "optimizer": {"name": "sgd", "lr": 0.01},
    "precision": "fp32",
    "threads": 1,
    "weak_teacher": True,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def digits():
    return data.open_data(DataSettings(source="digits"))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The folders of two trained networks of unlike sizes."""
    runs = tmp_path_factory.mktemp("teachers")
    sized = {"name": "mlp:16", "size": 10}
    return [
        str(tutelage.train(model=model, data="digits", name=name, runs=runs, **QUICK).folder)
        for name, model in (("a", "mlp:12"), ("b", sized))
    ]


def parsed(teacher, **keys):
    return config.parse(
        Recipe, {"name": "x", "data": "digits", "student": "mlp:8", "teacher": teacher, **QUICK, **keys}
    )


def test_a_list_is_short_for_members_and_overrides_reach_each():
    recipe = parsed(["mlp:8", {"name": "mlp:16", "size": 10}])
    assert recipe.teacher == parsed({"members": ["mlp:8", {"name": "mlp:16", "size": 10}]}).teacher
    assert (recipe.teacher.weights, recipe.teacher.combine) == (None, "probabilities")
    assert config.parse(Recipe, recipe.model_dump(mode="json")) == recipe
    typed = {"name": "x", "student": "mlp:8", "teacher": ["mlp:8", "mlp:16"]}
    changes = ["teacher.0.size=12", "teacher.weights=[1, 3]", "teacher.members.1=mlp:32", "teacher.combine=terms"]
    teacher = config.parse(Recipe, config.override(typed, changes)).teacher
    assert [(each.name, each.size) for each in teacher.members] == [("mlp:8", 12), ("mlp:32", None)]
    assert (teacher.weights, teacher.combine) == ((1.0, 3.0), "terms")
    with pytest.raises(Exception, match=r"teacher\.members\.1: expected a run's folder"):
        check_names(parsed(["mlp:8", "runs/none"]))


@pytest.mark.parametrize(
    ("teacher", "what", "suggests"),
    [
        (["mlp:8"], "members", "teacher=..."),
        ({"members": "mlp:8"}, "members", "teacher=..."),
        (["mlp:8", "mlp:8"], "members", "weight"),
        (["mlp:8", 5], "members.1", "runs/teacher"),
        (["mlp:8", "served"], "members.1", "teacher=served"),
        (["mlp:8", {"train": {"model": "mlp:8"}}], "members.1", "tutelage train"),
        (["mlp:8", {"init": {"from": "teacher"}}], "members.1", "init"),
        ({"members": ["mlp:8", "mlp:4"], "weights": [1]}, "weights", "teacher.weights=[1, 1]"),
        ({"members": ["mlp:8", "mlp:4"], "weights": [1, 0]}, "weights.1", "1.0"),
        ({"members": ["mlp:8", "mlp:4"], "combine": "mean"}, "combine", "probabilities"),
        (["mlp:8", {"name": "mlp:4", "siz": 3}], "members.1.siz", "teacher.members.1.size"),
    ],
)
def test_what_is_no_ensemble_is_refused_by_its_key(teacher, what, suggests):
    with refused(RecipeError, f"recipe: teacher.{what}", suggests=suggests):
        parsed(teacher)


def test_each_member_is_made_for_the_data_and_its_map_of_classes_is_a_recipe_s(digits, pair):
    a, b = pair
    mapped = {"name": b, "classes": [1, 0, *range(2, 10)]}
    teacher = create_teacher(parsed({"members": [a, mapped], "weights": [1, 3]}).teacher, digits)
    assert isinstance(teacher, Ensemble)
    assert [member.resized_to for member in teacher.members] == [None, [1, 10, 10]]
    assert teacher.members[1].outputs.tolist()[:2] == [1, 0]
    for typed, what in (
        ({"name": b, "classes": [0]}, ".classes"),
        ({"name": "mlp:8", "classes": [11] * 10}, ".classes"),
    ):
        with refused(RecipeError, f"teacher.members.1{what}"):
            create_teacher(parsed([a, typed]).teacher, digits)
    six = nn.Sequential(nn.Flatten(), nn.Linear(64, 6))
    with refused(InvalidValueError):
        models.ensemble(models.create(a), six)


class Stopping(Reporter):
    """Stops a run after its first epoch."""

    def note(self, text):
        raise KeyboardInterrupt


@pytest.mark.parametrize("combine", ["probabilities", "terms"])
def test_a_run_says_who_taught_resumes_to_the_bit_and_repeats(tmp_path, pair, combine):
    teacher = {"members": pair, "weights": [1, 3], "combine": combine}
    settings = {"student": "mlp:8", "teacher": teacher, "data": "digits", "objective": "wttm", **QUICK, "epochs": 2}
    with pytest.raises(KeyboardInterrupt):
        tutelage.distill(name="x", runs=tmp_path / "stopped", display=Stopping(), **settings)
    runs = [tutelage.distill(name="x", runs=tmp_path / folder, **settings) for folder in ("stopped", "whole")]
    assert [run.manifest["resumed"] for run in runs] == [1, 0]
    ours, theirs = (load_file(run.folder / "student.safetensors") for run in runs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    manifest = runs[1].manifest
    known = manifest["teacher"]
    assert known["combine"] == combine
    assert [(each["weight"], each["fingerprint"]) for each in known["members"]] == [
        (weight, models.fingerprint(models.create(folder))) for weight, folder in zip((0.25, 0.75), pair, strict=True)
    ]
    assert known["members"][1]["input"] == [1, 10, 10]
    assert known["accuracy"] == runs[1].evaluation["teacher"]["accuracy"]
    assert manifest["repeatable"]
    recipe, expected = recipes.again(runs[1].folder, [], tmp_path)
    assert expected["teacher"] == known["fingerprint"]
    inputs = build_inputs(recipe)
    assert models.fingerprint(inputs.teacher.network) == known["fingerprint"]
    assert recipe_differences(runs[1].folder and json.loads(json.dumps(recipe.model_dump(mode="json"))), recipe) == []


def test_other_weights_of_a_member_are_told_and_another_folder_of_the_same_is_the_same(tmp_path, pair):
    settings = {"student": "mlp:8", "data": "digits", "objective": "kd", "name": "x", "runs": tmp_path, **QUICK}
    moved = [shutil.copytree(folder, tmp_path / "moved" / name) for folder, name in zip(pair, "ab", strict=True)]
    run = tutelage.distill(teacher=pair, **settings)
    again = parsed([str(folder) for folder in moved], objective="kd")
    assert run_differences(run.folder, again, data=None) == []
    shutil.copy(moved[0] / "student.safetensors", moved[1] / "student.safetensors")
    (line,) = run_differences(run.folder, again, data=None)
    assert line.startswith("the teacher b's fingerprint was")
    changed = parsed({"members": list(map(str, moved)), "weights": [1, 2]}, objective="kd")
    assert any("teacher.weights" in line for line in run_differences(run.folder, changed, data=None))


def test_recorded_outputs_are_of_one_combination_and_hold_each_member_s_for_terms(tmp_path, pair):
    keys = {"objective": "wttm", "outputs": str(tmp_path / "outputs"), **QUICK}
    recipe = parsed({"members": pair, "combine": "terms"}, **keys)
    inputs = build_inputs(recipe)
    record(recipe, run_inputs=inputs)
    settings = {"student": "mlp:8", "teacher": {"members": pair, "combine": "terms"}, "data": "digits"}
    runs = [
        tutelage.distill(name=f"x-{name}", runs=tmp_path, **settings, **{**keys, "outputs": outputs})
        for name, outputs in (("live", None), ("recorded", keys["outputs"]))
    ]
    live, recorded = (run.epochs[0]["train"]["terms"]["wttm"] for run in runs)
    assert recorded == pytest.approx(live, rel=1e-3)
    assert runs[1].manifest["teacher"]["answers"] == "recorded in float16"
    for change in (
        {"combine": "probabilities"},
        {"weights": [1, 2]},
        {"members": [pair[0], {"name": pair[1], "classes": [1, 0, *range(2, 10)]}]},
    ):
        other = parsed({"members": pair, "combine": "terms", **change}, **keys)
        with pytest.raises(Exception, match=r"teacher\.fingerprint"):
            outputs_of(other, build_inputs(other))


def test_modules_and_names_teach_together_and_an_ensemble_is_what_its_list_is(tmp_path, digits, pair):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    settings = {"student": "mlp:8", "data": "digits", "objective": "wttm", "runs": tmp_path, **QUICK}
    mixed = tutelage.distill(teacher=[pair[0], module], name="mixed", **settings)
    assert [each["name"] for each in mixed.manifest["teacher"]["members"]] == ["mlp:12", "object:Sequential"]
    assert not mixed.manifest["repeatable"]
    made = models.ensemble(models.create(pair[0]), module, combine="terms")
    whole = tutelage.distill(teacher=made, name="whole", **settings)
    assert whole.manifest["teacher"]["combine"] == "terms"
    assert whole.accuracy != mixed.accuracy or whole.epochs != mixed.epochs
    assert tutelage.evaluate(made, data="digits")["accuracy"] == whole.evaluation["teacher"]["accuracy"]
    with refused(InvalidTypeError, "teacher.members.1"):
        tutelage.compare(student="mlp:8", teacher=[pair[0], module], data="digits", objectives={"kd": "kd"})


def test_a_comparison_shares_one_pass_of_several_teachers(tmp_path, pair):
    settings = {"student": "mlp:8", "data": "digits", "seeds": 1, "runs": tmp_path, **QUICK}
    teacher = {"members": pair, "combine": "terms"}
    compared = tutelage.compare(teacher=teacher, objectives={"kd": "kd", "wttm": "wttm"}, name="c", **settings)
    manifest = json.loads((compared.folder / "wttm-seed0" / "manifest.json").read_text())
    assert manifest["class"] == ["c/kd-seed0"]
    alone = tutelage.distill(student="mlp:8", teacher=teacher, data="digits", objective="wttm", runs=tmp_path, **QUICK)
    ours, theirs = (
        load_file(folder / "student.safetensors") for folder in (compared.folder / "wttm-seed0", alone.folder)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_features_are_those_of_a_member_and_none_are_matched_for_each(pair):
    fitnet = {"fitnet": {"student_tap": "hidden.0", "teacher_tap": "members.0.network.hidden.0"}}
    with refused(InvalidValueError, "objective fitnet", got="features"):
        build_objectives(parsed({"members": pair, "combine": "terms"}, objective=fitnet))
    (objective,) = build_objectives(parsed(pair, objective=fitnet))
    assert objective.needs.teacher_taps == ("members.0.network.hidden.0",)
