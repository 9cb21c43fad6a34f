"""Recipes: read, overridden, checked as a whole, resolved, written."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import yaml
from tests._helpers import ROOT
from tests._helpers.refusals import refused

from tutelage import config, objectives
from tutelage.config.files import dump, override, read
from tutelage.config.messages import MOST_FAULTS
from tutelage.config.schema import Comparison, Network, Recipe, Stage, TrainedTeacher
from tutelage.data import DataSettings
from tutelage.errors import InvalidValueError, RecipeError
from tutelage.losses import confidence_penalty
from tutelage.objectives import Apply, Objective, WeightedTerm
from tutelage.settings.fit import EMA, SGD, AdamW, Constant, Cosine, EarlyStopping, Fit, FitSettings, MultiStep, Step
from tutelage.studies import study_file

BASE = {"name": "x", "student": "cifar:resnet20"}
COMPARED = BASE | {"objectives": {"kd": "kd", "ttm": {"ttm": {"gamma": 0.25, "beta": 4}}}}


def parse(kind, value, **how):
    return config.parse(kind, value, check=objectives.from_spec, **how)


def parsed(**changes):
    return parse(Recipe, BASE | changes)


# ------------------------------------------------------------------------------------------------------- reading a file


def write(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_file_is_read_and_overridden(tmp_path):
    path = write(tmp_path, "name: x\nstudent: cifar:resnet20\nepochs: 5\n")
    assert read(path) == BASE | {"epochs": 5}
    assert read(path, ["epochs=7", "optimizer.name=sgd"]) == BASE | {"epochs": 7, "optimizer": {"name": "sgd"}}


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("a: [1\n", refused(RecipeError, "recipe", got=["recipe.yaml", "line 2"])),
        ("\ta: 1\n", refused(RecipeError, "recipe", got="line 1")),
        ("a: b: c\n", refused(RecipeError, "recipe", got="line 1")),
        (b"\xff\xfea", refused(RecipeError, "recipe", got="recipe.yaml")),
        (b"a: \xe9\n", refused(RecipeError, "recipe", got="UTF-8")),
        ("? [1]\n: 2\n", refused(RecipeError, "recipe", got="line 1")),
        ("a: 1\nb: 2\na: 3\n", refused(RecipeError, "recipe", got=["line 3", "'a'"])),
        ("o:\n  kd: 1\n  kd: 2\n", refused(RecipeError, "recipe", got=["line 3", "'kd'"])),
        ("a: !!timestamp 2026-01-01\n", refused(RecipeError, "recipe", got="recipe.yaml")),
        ("a: !!int b\n", refused(RecipeError, "recipe", got="recipe.yaml")),
        ("a: " + 2000 * "[" + 2000 * "]", refused(RecipeError, "recipe", got="recipe.yaml")),
        ("", refused(RecipeError, "recipe", suggests="student: cifar:resnet20")),
        ("- 1\n", refused(RecipeError, "recipe", got="list")),
        ("cifar:resnet20", refused(RecipeError, "recipe", got="value")),
    ],
)
def test_a_file_that_is_no_recipe_is_answered(tmp_path, text, refusal):
    with refusal as caught:
        read(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_answered(tmp_path):
    for path, why in ((tmp_path / "none.yaml", "No such file"), (tmp_path, "a folder")):
        with refused(RecipeError, "recipe", got=[path, why]):
            read(path)


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.getcwd []", "!!python/name:os.getcwd", "!import_call x"])
def test_a_recipe_runs_no_code(tmp_path, tag):
    with refused(RecipeError, "recipe", got=["line 1", tag.split()[0].removeprefix("!!")]):
        read(write(tmp_path, f"name: {tag}\n"))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-4", 5e-4),
        ("1E5", 1e5),
        (".5e-3", 5e-4),
        ("-2e3", -2000.0),
        ("5.e1", 50.0),
        ("1e+2", 100.0),
        ("0.1", 0.1),
        ("3", 3),
        ("'5e-4'", "5e-4"),
        ("e5", "e5"),
        ("5e", "5e"),
        ("1e5x", "1e5x"),
        ("true", True),
        ("null", None),
    ],
)
def test_scientific_notation_is_a_number(tmp_path, text, value):
    value_read = read(write(tmp_path, f"lr: {text}\n"))["lr"]
    assert value_read == value
    assert type(value_read) is type(value)
    assert override({}, [f"lr={text}"]) == {"lr": value}


def test_other_readers_of_yaml_are_left_alone():
    assert yaml.safe_load("5e-4") == "5e-4"
    assert yaml.safe_dump("5e-4") == "5e-4\n...\n"
    assert yaml.safe_load("{a: 1, a: 2}") == {"a": 2}


def test_merge_keys_are_not_keys_twice(tmp_path):
    text = "one: &one {name: sgd, lr: 1}\ntwo: {<<: *one, lr: 2}\n"
    assert read(write(tmp_path, text))["two"] == {"name": "sgd", "lr": 2}


# ------------------------------------------------------------------------------------------------------------ overrides


@pytest.mark.parametrize(
    ("value", "text", "expected"),
    [
        ({}, "epochs=3", {"epochs": 3}),
        ({"epochs": 5}, "epochs=3", {"epochs": 3}),
        ({}, "optimizer.lr=5e-4", {"optimizer": {"lr": 5e-4}}),
        ({"optimizer": {"name": "sgd"}}, "optimizer.lr=0.1", {"optimizer": {"name": "sgd", "lr": 0.1}}),
        ({}, "teacher.train.optimizer.lr=1", {"teacher": {"train": {"optimizer": {"lr": 1}}}}),
        ({"teacher": None}, "teacher.name=t", {"teacher": {"name": "t"}}),
        ({"student": "s"}, "student.weights=w.pt", {"student": {"name": "s", "weights": "w.pt"}}),
        ({"schedule": "cosine"}, "schedule.warmup=2", {"schedule": {"name": "cosine", "warmup": 2}}),
        ({"data": "digits"}, "data.flip=true", {"data": {"source": "digits", "flip": True}}),
        (
            {"teacher": {"train": {"model": "m"}}},
            "teacher.train.model.weights=w",
            {"teacher": {"train": {"model": {"name": "m", "weights": "w"}}}},
        ),
        ({}, "objective.wttm.gamma=0.3", {"objective": {"wttm": {"gamma": 0.3}}}),
        ({"objective": "kd"}, "objective.kd.temperature=2", {"objective": {"kd": {"temperature": 2}}}),
        ({"objective": {"kd": None}}, "objective.kd.temperature=2", {"objective": {"kd": {"temperature": 2}}}),
        ({"objective": ["kd"]}, "objective.kd.temperature=2", {"objective": [{"kd": {"temperature": 2}}]}),
        (
            {"objective": [{"kd": {"temperature": 4}}, {"ttm": {"gamma": 1}}]},
            "objective.ttm.gamma=0.5",
            {"objective": [{"kd": {"temperature": 4}}, {"ttm": {"gamma": 0.5}}]},
        ),
        ({"objective": [{"kd": {}}]}, "objective.0.scale=2", {"objective": [{"kd": {}, "scale": 2}]}),
        ({"objectives": {"a": "kd"}}, "objectives.a.kd.weight=1", {"objectives": {"a": {"kd": {"weight": 1}}}}),
        ({"stages": [{"epochs": 1}, {}]}, "stages.1.epochs=3", {"stages": [{"epochs": 1}, {"epochs": 3}]}),
        ({}, "stages=[{epochs: 1}]", {"stages": [{"epochs": 1}]}),
        ({"data": {"labelled": 2}}, "data.labelled=null", {"data": {"labelled": None}}),
        ({}, "name=a=b", {"name": "a=b"}),
        ({}, "student=cifar:resnet20", {"student": "cifar:resnet20"}),
        ({}, "data.source=hf:../shared/data", {"data": {"source": "hf:../shared/data"}}),
    ],
)
def test_an_override_finds_its_place(value, text, expected):
    before = repr(value)
    assert override(value, [text]) == expected
    assert repr(value) == before


def test_overrides_are_applied_in_order():
    assert override({}, ["optimizer=adamw", "optimizer.lr=1", "optimizer.lr=2"]) == {
        "optimizer": {"name": "adamw", "lr": 2}
    }


def test_overrides_reach_a_resolved_recipe():
    resolved = yaml.safe_load(dump(parsed(objective="kd", stages=[{"epochs": 1}])))
    changed = override(resolved, ["objective.kd.temperature=2", "student.weights=w.pt", "stages.0.epochs=5"])
    recipe = parse(Recipe, changed)
    assert recipe.objective == objectives.kd(temperature=2).spec
    assert recipe.student == Network(name="cifar:resnet20", weights="w.pt")
    assert recipe.stages[0].epochs == 5


def test_a_section_without_a_name_is_of_the_default_kind():
    recipe = parse(Recipe, override(BASE, ["optimizer.lr=0.1", "schedule.warmup=1"]))
    assert recipe.optimizer == SGD(lr=0.1)
    assert recipe.schedule == Constant(warmup=1)
    inner = {"optimizer": {"lr": 0.2}, "schedule": {"warmup": 2}}
    recipe = parsed(optimizer="adamw", stages=[inner], teacher={"train": {"model": "m", **inner}})
    for section in (recipe.stages[0], recipe.teacher.train):
        assert section.optimizer == SGD(lr=0.2)
        assert section.schedule == Constant(warmup=2)


def test_a_key_of_another_kind_names_that_kind():
    with refused(RecipeError, "recipe: optimizer.betas", got="'betas'", suggests="optimizer.name=adamw"):
        parsed(optimizer={"betas": [0.9, 0.9]})
    what = "recipe: stages.0.schedule.milestones"
    with refused(RecipeError, what, suggests="stages.0.schedule.name=multistep"):
        parsed(stages=[{"schedule": {"milestones": [3]}}])


def test_the_largest_seed_is_accepted():
    largest = 2**63 - 1
    recipe = parsed(seed=largest, data_seed=largest, data={"split_seed": largest})
    assert (recipe.seed, recipe.data_seed, recipe.data.split_seed) == (largest,) * 3


def test_a_comparison_writes_no_objective_of_its_own():
    assert "objective" not in yaml.safe_load(dump(parse(Comparison, COMPARED)))
    of_a_run = COMPARED | {"objective": None}  # As objective=null behind a run's recipe.
    assert dump(parse(Comparison, of_a_run)) == dump(parse(Comparison, COMPARED))


@pytest.mark.parametrize(
    ("make", "refusal"),
    [
        (lambda: SGD(lr=math.inf), refused(InvalidValueError, "optimizer.lr", got="inf", suggests="optimizer.lr=0.05")),
        (
            lambda: Constant(warmup=math.inf),
            refused(InvalidValueError, "schedule.warmup", got="inf", suggests="schedule.warmup=0"),
        ),
        (lambda: FitSettings(clip=math.inf), refused(InvalidValueError, "clip", got="inf", suggests="clip=null")),
        (
            lambda: FitSettings(checkpoint_seconds=math.inf),
            refused(InvalidValueError, "checkpoint_seconds", got="inf"),
        ),
    ],
)
def test_settings_made_in_python_are_finite_too(make, refusal):
    with refusal:
        make()


@pytest.mark.parametrize("text", ["epochs", "=3", "", "a..b=1", ".a=1", "a.=1"])
def test_what_is_no_override_is_answered(text):
    with refused(RecipeError, "override", got=f"'{text}'", suggests="epochs=10"):
        override({}, [text])


@pytest.mark.parametrize(
    ("value", "text", "refusal"),
    [
        ({}, "milestones=[1", refused(RecipeError, "override milestones", got="'[1'", suggests="milestones=1")),
        ({}, "epochs=!!timestamp 2026-01-01", refused(RecipeError, "override epochs", got="2002:timestamp")),
        (
            {"stages": [{}]},
            "stages.1.epochs=3",
            refused(RecipeError, "override stages.1.epochs", got="'1'"),
        ),
        (
            {"objective": ["kd"]},
            "objective.ttm.gamma=3",
            refused(RecipeError, "override objective.ttm.gamma", got="'ttm'"),
        ),
    ],
)
def test_an_override_that_leads_nowhere_is_answered(value, text, refusal):
    with refusal:
        override(value, [text])


def test_every_wrong_override_is_named_at_once():
    with refused(RecipeError, ["override", "override", "override b"], got=["'epochs'", "'=2'", "'[1'"]):
        override({}, ["epochs", "a=1", "=2", "b=[1"])


# ----------------------------------------------------------------------------------------------------- what is resolved


def test_the_defaults():
    recipe = parsed()
    assert recipe.data == DataSettings()
    assert recipe.student == Network(name="cifar:resnet20")
    assert recipe.teacher is None
    assert recipe.objective == objectives.cross_entropy().spec
    assert (recipe.optimizer, recipe.schedule) == (SGD(), Constant())
    assert (recipe.seed, recipe.data_seed, recipe.batch_size) == (0, 0, 64)


def test_the_loop_s_defaults_are_its_own():
    recipe = parsed()
    for name, value in vars(FitSettings()).items():
        # A loop is told its precision; a run's is found.
        assert getattr(recipe, name) == ("auto" if name == "precision" else value), name
    assert recipe.fits()[0].settings == FitSettings()


def test_model_is_another_word_for_student():
    assert parse(Recipe, {"name": "x", "model": "cifar:resnet20"}) == parsed()


@pytest.mark.parametrize(
    ("key", "short", "section"),
    [
        ("student", "mlp:8", Network(name="mlp:8")),
        ("student", {"name": "mlp:8", "weights": "w"}, Network(name="mlp:8", weights="w")),
        ("teacher", "runs/t", Network(name="runs/t")),
        ("data", "hf:x/y", DataSettings(source="hf:x/y")),
        ("data", {"flip": True}, DataSettings(flip=True)),
        ("optimizer", "adamw", AdamW()),
        ("optimizer", {"name": "sgd", "lr": 0.1, "nesterov": True}, SGD(lr=0.1, nesterov=True)),
        ("optimizer", {"name": "adamw", "betas": [0.5, 0.6]}, AdamW(betas=(0.5, 0.6))),
        ("schedule", "cosine", Cosine()),
        ("schedule", {"name": "step", "every": 3}, Step(every=3)),
        ("schedule", {"name": "multistep", "milestones": [1, 2]}, MultiStep(milestones=(1, 2))),
    ],
)
def test_sections_by_their_names(key, short, section):
    assert getattr(parsed(**{key: short}), key) == section
    assert getattr(parsed(**{key: section}), key) == section


def test_objects_are_taken_as_they_are():
    objective = 0.5 * objectives.kd()
    assert parsed(objective=objective).objective == objective.spec


FULL = BASE | {
    "name": "study/one",
    "data": {
        "source": "hf:x/y",
        "label": "fine_label",
        "validation": 0.1,
        "labelled": 4,
        "crop_padding": 4,
        "flip": True,
    },
    "student": {"name": "cifar:resnet8", "weights": "w.safetensors"},
    "teacher": {
        "train": {
            "model": "cifar:resnet56",
            "objective": {"cross_entropy": {"label_smoothing": 0.1}},
            "epochs": 3,
            "optimizer": {"name": "adamw", "lr": 1e-8},
            "schedule": "cosine",
            "labelled": 9,
            "seed": 7,
        }
    },
    "objective": [
        {"wttm": {"gamma": 0.1, "beta": {"schedule": "linear", "start": 0, "end": 3, "until": 0.5}}},
        {"confidence_penalty": {"weight": 0.1}, "scale": 0.5},
    ],
    "optimizer": {"name": "sgd", "lr": 5e-4, "weight_decay": 1e-12},
    "schedule": {"name": "multistep", "milestones": [5, 9], "warmup": 0.5},
    "clip": 1.5,
    "precision": "bf16",
    "threads": 2,
    "stages": [
        {"objective": "kd", "epochs": 2},
        {"optimizer": "adamw", "schedule": "step", "clip": 2, "batch_size": 8},
    ],
}


@pytest.mark.parametrize("value", [BASE, FULL, FULL | {"teacher": "runs/t"}, FULL | {"name": "1e5"}], ids=str)
def test_a_recipe_is_written_and_read_back_to_an_equal_one(tmp_path, value):
    recipe = parse(Recipe, value)
    text = dump(recipe)
    again = parse(Recipe, read(write(tmp_path, text)))
    assert again == recipe
    assert dump(again) == text


@pytest.mark.parametrize(
    "changes",
    [
        {"objectives": {"kd": "kd"}},
        {"objectives": {"4": "kd", "1e5": {"ttm": {"gamma": 0.1, "beta": 1}}}, "baseline": "1e5", "seeds": 3},
        {
            "objectives": {
                "a": [{"kd": {}}, {"renyi_penalty": {"order": 2, "weight": 1}, "scale": 3}],
                "b": "cross_entropy",
            }
        },
    ],
)
def test_a_comparison_is_written_and_read_back_to_an_equal_one(tmp_path, changes):
    keys = {key: value for key, value in FULL.items() if key != "objective"} | {"stages": [{"epochs": 2}]}
    comparison = parse(Comparison, keys | changes)
    again = parse(Comparison, read(write(tmp_path, dump(comparison))))
    assert again == comparison
    assert list(again.objectives) == list(comparison.objectives)


def test_what_is_written_says_every_value():
    written = yaml.safe_load(dump(parsed(teacher={"train": {"model": "cifar:resnet56"}}, schedule="multistep")))
    assert set(written) == {"schema", *Recipe.model_fields}
    assert set(written["data"]) == set(vars(DataSettings()))
    assert written["optimizer"] == {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": False}
    assert written["schedule"] == {"name": "multistep", "milestones": [150, 180, 210], "factor": 0.1, "warmup": 0.0}
    assert written["objective"] == [{"cross_entropy": {"label_smoothing": 0.0, "weight": 1.0}}]
    assert written["student"] == {"name": "cifar:resnet20", "weights": None}
    assert written["teacher"]["train"]["model"] == {"name": "cifar:resnet56", "weights": None}


def test_texts_that_look_like_numbers_stay_texts(tmp_path):
    recipe = parsed(name="1e5", data={"source": "digits", "label": "5e-4", "root": "2e3"})
    again = parse(Recipe, read(write(tmp_path, dump(recipe))))
    assert (again.name, again.data.label, again.data.root) == ("1e5", "5e-4", "2e3")


def test_terms_put_together_by_hand_are_written_but_not_read():
    recipe = parsed(objective=Objective.of(WeightedTerm("mine", 2.0, Apply(confidence_penalty))))
    written = yaml.safe_load(dump(recipe))
    assert written["objective"] == {"mine": 2.0}
    with refused(RecipeError, "recipe: objective", got="'mine'"):
        parse(Recipe, written)


def test_a_recipe_does_not_change():
    with pytest.raises(ValueError, match="frozen"):
        parsed().epochs = 3


# ----------------------------------------------------------------------------------------------- stages and the teacher


def test_without_stages_there_is_one_fit():
    recipe = parsed(objective="kd", epochs=3, clip=1.5, accumulate=2, optimizer="adamw")
    settings = FitSettings(epochs=3, clip=1.5, accumulate=2, optimizer=AdamW())
    assert recipe.fits() == [Fit(objective=objectives.kd().spec, settings=settings, batch_size=64)]


def test_a_stage_says_what_differs():
    recipe = parsed(
        objective="kd",
        epochs=9,
        clip=3,
        schedule="cosine",
        log_steps=5,
        stages=[{}, {"epochs": 2, "objective": "cross_entropy"}, {"optimizer": "adamw", "batch_size": 8, "clip": 1}],
    )
    one, two, three = recipe.fits()
    common = FitSettings(epochs=9, clip=3.0, schedule=Cosine(), log_steps=5)
    assert one == Fit(objective=objectives.kd().spec, settings=common, batch_size=64)
    assert (two.objective, two.settings) == (objectives.cross_entropy().spec, replace(common, epochs=2))
    assert three == Fit(
        objective=objectives.kd().spec, settings=replace(common, optimizer=AdamW(), clip=1.0), batch_size=8
    )


def test_every_field_of_a_stage_reaches_the_fit():
    assert set(Stage.model_fields) - {"objective", "batch_size", "on_policy", "class_weights"} <= set(
        vars(FitSettings())
    )


def test_without_a_teacher_to_train_there_is_no_recipe_for_one():
    assert parsed().training("t") is None
    assert parsed(teacher="runs/t").training("t") is None


def test_a_teacher_s_recipe_is_the_run_s():
    run = parse(Recipe, FULL | {"teacher": {"train": {"model": "cifar:resnet56"}}, "objective": "kd"})
    teacher = run.training("study/one/teacher")
    assert type(teacher) is Recipe
    expected = {
        "name": "study/one/teacher",
        "student": Network(name="cifar:resnet56"),
        "teacher": None,
        "objective": objectives.cross_entropy().spec,
        "stages": (),
        "data": DataSettings(**vars(run.data) | {"labelled": None}),
    }
    for name in Recipe.model_fields:
        assert getattr(teacher, name) == expected.get(name, getattr(run, name)), name


def test_a_teacher_s_recipe_overrides_the_run_s():
    train = {
        "model": {"name": "cifar:resnet56", "weights": "w"},
        "objective": {"cross_entropy": {"label_smoothing": 0.1}},
        "epochs": 3,
        "batch_size": 16,
        "optimizer": "adamw",
        "schedule": "cosine",
        "clip": 2,
        "ema": 0.99,
        "early_stopping": 3,
        "precision": "fp32",
        "class_weights": {"a": 2},
        "labelled": 9,
        "seed": 7,
        "data_seed": 8,
    }
    teacher = parse(Recipe, FULL | {"teacher": {"train": train}}).training("t")
    assert set(train) == set(config.schema.Training.model_fields)
    assert teacher.student == Network(name="cifar:resnet56", weights="w")
    assert teacher.objective == objectives.cross_entropy(label_smoothing=0.1).spec
    assert (teacher.epochs, teacher.batch_size, teacher.clip, teacher.precision) == (3, 16, 2.0, "fp32")
    assert (teacher.ema, teacher.early_stopping) == (EMA(decay=0.99), EarlyStopping(patience=3))
    assert (teacher.optimizer, teacher.schedule, teacher.seed, teacher.data_seed) == (AdamW(), Cosine(), 7, 8)
    assert teacher.data == DataSettings(**vars(parse(Recipe, FULL).data) | {"labelled": 9})
    assert teacher.class_weights == {"a": 2.0}


def test_a_comparison_s_teacher_has_a_recipe_that_can_be_repeated(tmp_path):
    comparison = parse(Comparison, COMPARED | {"teacher": {"train": {"model": "cifar:resnet56"}}})
    teacher = comparison.training("x/teacher")
    assert type(teacher) is Recipe
    assert parse(Recipe, read(write(tmp_path, dump(teacher)))) == teacher


def test_a_trained_teacher_is_told_by_its_key():
    assert isinstance(parsed(teacher={"train": {"model": "m"}}).teacher, TrainedTeacher)
    assert isinstance(parsed(teacher={"name": "m"}).teacher, Network)


# ----------------------------------------------------------------------------------------------------------- the faults


@pytest.mark.parametrize(
    ("changes", "what", "got", "suggests"),
    [
        ({"epohcs": 1}, "epohcs", "'epohcs'", "epochs"),
        ({"sched": "cosine"}, "sched", "'sched'", "schedule"),
        ({"model": "mlp:8"}, "model", "'model'", "student"),
        ({"objectives": {}}, "objectives", "'objectives'", "objective"),
        # A key of another section is found there.
        ({"lr": 1}, "lr", "'lr'", "optimizer.lr"),
        ({"flip": 1}, "flip", "'flip'", "data.flip"),
        ({"weights": 1}, "weights", "'weights'", "student.weights"),
        ({"data": {"sorce": "digits"}}, "data.sorce", "'sorce'", "data.source"),
        ({"data": {"lr": 1}}, "data.lr", "'lr'", "optimizer.lr"),
        ({"optimizer": {"name": "sgd", "lrr": 1}}, "optimizer.lrr", "'lrr'", "optimizer.lr"),
        # The key is another kind's: that kind is named.
        ({"optimizer": {"name": "sgd", "betas": 1}}, "optimizer.betas", "'betas'", "optimizer.name=adamw"),
        ({"schedule": {"name": "step", "evry": 1}}, "schedule.evry", "'evry'", "schedule.every"),
        ({"student": {"name": "m", "weight": 1}}, "student.weight", "'weight'", "student.weights"),
        ({"teacher": {"name": "m", "trian": {}}}, "teacher.trian", "'trian'", "teacher.train"),
        ({"teacher": {"name": "m", "train": {"model": "m"}}}, "teacher.name", "'name'", "teacher.name"),
        ({"teacher": {"train": {"model": "m", "epoch": 1}}}, "teacher.train.epoch", "'epoch'", "teacher.train.epochs"),
        (
            {"teacher": {"train": {"model": "m", "student": "m"}}},
            "teacher.train.student",
            "'student'",
            "teacher.train.model",
        ),
        ({"teacher": {"train": {"model": "m", "lr": 1}}}, "teacher.train.lr", "'lr'", "teacher.train.optimizer.lr"),
        (
            {"teacher": {"train": {"model": "m", "optimizer": {"name": "adamw", "beta": 1}}}},
            "teacher.train.optimizer.beta",
            "'beta'",
            "teacher.train.optimizer.betas",
        ),
        ({"stages": [{}, {"epoks": 1}]}, "stages.1.epoks", "'epoks'", "stages.1.epochs"),
        (
            {"stages": [{"schedule": {"name": "cosine", "finl": 1}}]},
            "stages.0.schedule.finl",
            "'finl'",
            "stages.0.schedule.final",
        ),
        ({"stages": [{"momentum": 1}]}, "stages.0.momentum", "'momentum'", "stages.0.optimizer.momentum"),
        ({"objective": {"kd": {"temprature": 1}}}, "objective.kd.temprature", "'temprature'", "temperature"),
        ({"stages": [{"objective": [{"kd": {"wieght": 1}}]}]}, "stages.0.objective.kd.wieght", "'wieght'", "weight"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_known_one(changes, what, got, suggests):
    with refused(RecipeError, f"recipe: {what}", got=got, suggests=suggests):
        parsed(**changes)


def test_a_key_that_is_near_to_nothing_is_answered_with_all():
    with refused(RecipeError, "recipe: zzz", got="'zzz'", suggests=list(Recipe.model_fields)):
        parsed(zzz=1)


@pytest.mark.parametrize(
    ("changes", "what", "got", "suggests"),
    [
        ({"epochs": 0}, "epochs", 0, "epochs=240"),
        ({"epochs": "many"}, "epochs", "'many'", "epochs=240"),
        ({"epochs": 1.5}, "epochs", 1.5, "epochs=240"),
        ({"epochs": None}, "epochs", "null", "epochs=240"),
        ({"epochs": {"x": 1}}, "epochs", "{'x': 1}", "epochs=240"),
        ({"seed": -1}, "seed", -1, "seed=0"),
        ({"clip": 0}, "clip", 0, "clip=1.0"),
        ({"threads": 0}, "threads", 0, "threads=1"),
        ({"deterministic": "perhaps"}, "deterministic", "'perhaps'", "deterministic=false"),
        ({"precision": "fp8"}, "precision", "'fp8'", "precision=auto"),
        ({"device": "gpu"}, "device", "'gpu'", "device=cpu"),
        ({"device": "cuda:-1"}, "device", "'cuda:-1'", "device=cpu"),
        ({"device": 0}, "device", 0, "device=cpu"),
        ({"nonfinite": 3}, "nonfinite", 3, "nonfinite=stop"),
        ({"student": 3}, "student", 3, "student=cifar:resnet20"),
        ({"teacher": 3}, "teacher", 3, "teacher=runs/teacher"),
        ({"teacher": {}}, "teacher.name", None, "teacher.name=cifar:resnet20"),
        (
            {"teacher": {"train": "cifar:resnet20"}},
            "teacher.train",
            "'cifar:resnet20'",
            "teacher.train={model: cifar:resnet56}",
        ),
        ({"teacher": {"train": {"epochs": 3}}}, "teacher.train.model", None, "teacher.train.model=cifar:resnet56"),
        (
            {"teacher": {"train": {"model": "m", "labelled": -1}}},
            "teacher.train.labelled",
            -1,
            "teacher.train.labelled=1",
        ),
        ({"data": 3}, "data", 3, "data={source: digits}"),
        ({"data": {"source": 3}}, "data.source", 3, "data.source=digits"),
        ({"data": {"flip": "often"}}, "data.flip", "'often'", "data.flip=false"),
        ({"data": {"on_corrupt": "x"}}, "data.on_corrupt", "'x'", "data.on_corrupt=stop"),
        ({"data": {"validation": 2}}, "data.validation", 2.0, "data.validation=0.1"),
        ({"data": {"crop_padding": 4, "random_resized_crop": True}}, "data.crop_padding", 4, "data.crop_padding=0"),
        ({"data": {1: 2}}, "data.1", 1, None),
        ({1: 2}, "1", 1, None),
        ({"optimizer": 3}, "optimizer", 3, "optimizer={name: sgd}"),
        ({"optimizer": "sgdd"}, "optimizer.name", "'sgdd'", "optimizer.name=sgd"),
        ({"optimizer": {"name": "adam"}}, "optimizer.name", "'adam'", "optimizer.name=adamw"),
        ({"optimizer": {"name": None}}, "optimizer.name", None, "optimizer.name=sgd"),
        ({"clip": math.inf}, "clip", "inf", "clip=1.0"),
        ({"checkpoint_seconds": math.inf}, "checkpoint_seconds", "inf", "checkpoint_seconds=300.0"),
        ({"stages": [{"clip": math.inf}]}, "stages.0.clip", "inf", "stages.0.clip=1.0"),
        ({"optimizer": {"lr": math.inf}}, "optimizer.lr", "inf", "optimizer.lr=0.05"),
        ({"seed": 2**63}, "seed", 2**63, "seed=0"),
        ({"data_seed": 10**23}, "data_seed", 10**23, "data_seed=0"),
        ({"teacher": {"train": {"model": "m", "seed": 2**63}}}, "teacher.train.seed", 2**63, "teacher.train.seed=0"),
        ({"data": {"split_seed": 2**63}}, "data.split_seed", 2**63, "data.split_seed=0"),
        ({"objective": {"wttm": {"gamma": 0.5, "beta": -1}}}, "objective.wttm.beta", -1.0, "objective.wttm.beta=0.9"),
        ({"optimizer": {"name": "sgd", "lr": -1}}, "optimizer.lr", -1.0, "optimizer.lr=0.05"),
        ({"optimizer": {"name": "sgd", "lr": "x"}}, "optimizer.lr", "'x'", "optimizer.lr=0.05"),
        ({"optimizer": {"name": "adamw", "betas": [0.9]}}, "optimizer.betas", "[0.9]", "optimizer.betas=[0.9, 0.999]"),
        (
            {"optimizer": {"name": "adamw", "betas": [0.9, 0.9, 0.9]}},
            "optimizer.betas",
            "[0.9, 0.9, 0.9]",
            "optimizer.betas=[0.9, 0.999]",
        ),
        ({"schedule": "cosin"}, "schedule.name", "'cosin'", "schedule.name=cosine"),
        (
            {"schedule": {"name": "multistep", "milestones": 3}},
            "schedule.milestones",
            3,
            "schedule.milestones=[150, 180, 210]",
        ),
        (
            {"schedule": {"name": "multistep", "milestones": [1, "x"]}},
            "schedule.milestones.1",
            "'x'",
            "schedule.milestones.1=1",
        ),
        ({"stages": {"epochs": 1}}, "stages", "{'epochs': 1}", "stages=[{epochs: 1}]"),
        ({"stages": [{}, 3]}, "stages.1", 3, "stages.1={epochs: 1}"),
        ({"graphs": "maybe"}, "graphs", "'maybe'", "graphs=auto"),
        ({"data": {"on_device": "cuda"}}, "data.on_device", "'cuda'", "data.on_device=auto"),
        ({"stages": [{"epochs": 0}]}, "stages.0.epochs", 0, "stages.0.epochs=1"),
        (
            {"stages": [{"optimizer": {"name": "sgd", "lr": 0}}]},
            "stages.0.optimizer.lr",
            0.0,
            "stages.0.optimizer.lr=0.05",
        ),
        ({"objective": {"ttm": {"gamma": 0, "beta": 1}}}, "objective.ttm.gamma", 0, "objective.ttm.gamma=0.1"),
    ],
)
def test_a_wrong_value_is_answered(changes, what, got, suggests):
    with refused(RecipeError, f"recipe: {what}", got=got, suggests=suggests):
        parse(Recipe, BASE | changes)


@pytest.mark.parametrize(
    "name", ["../x", "a/../b", "a/..", "/x", "a//b", "a/", ".x", "a/.x", "a b", "a:b", "", 3, "~/x"]
)
def test_a_name_that_is_no_folder_below_runs_is_refused(name):
    with refused(RecipeError, "recipe: name", suggests="name=first-run"):
        parsed(name=name)


@pytest.mark.parametrize("name", ["x", "digits/kd-seed0", "A1.b_c-d/e", "2024"])
def test_a_name_may_have_folders(name):
    assert parsed(name=name).name == name


def test_what_is_missing_is_named():
    suggests = ["name=first-run", "student=cifar:resnet20"]
    with refused(RecipeError, ["recipe: name", "recipe: student"], suggests=suggests):
        parse(Recipe, {})


@pytest.mark.parametrize(
    ("changes", "what", "got", "suggests"),
    [
        ({"objectives": {}}, "objectives", "{}", "objectives={kd: kd}"),
        ({"objectives": ["kd"]}, "objectives", "['kd']", "objectives={kd: kd}"),
        ({"objectives": {4: "kd"}}, "objectives.4", 4, None),
        ({"objective": "kd"}, "objective", "'kd'", "objectives.NAME=..."),
        ({"stages": [{"epochs": 1}, {"objective": "kd"}]}, "stages.1.objective", "kd", "objectives.NAME=..."),
        ({"seeds": 0}, "seeds", 0, "seeds=1"),
        ({"baseline": "kdd"}, "baseline", "'kdd'", "baseline=kd"),
        ({"baseline": 3}, "baseline", 3, "baseline=null"),
        ({"seds": 1}, "seds", "'seds'", "seeds"),
        (
            {"objectives": {"kd": {"kd": {"temperature": 0}}}},
            "objectives.kd.kd.temperature",
            0,
            "objectives.kd.kd.temperature=4.0",
        ),
    ],
)
def test_a_comparison_that_is_wrong_is_answered(changes, what, got, suggests):
    with refused(RecipeError, f"recipe: {what}", got=got, suggests=suggests):
        parse(Comparison, COMPARED | changes)


def test_a_comparison_needs_its_objectives():
    with refused(RecipeError, "recipe: objectives", suggests="objectives={kd: kd}"):
        parse(Comparison, BASE)


def test_every_fault_is_named_at_once():
    wrong = {
        "student": {"nam": "x"},
        "data": {"validation": 2, "labelled": -1, "crop_padding": -1},
        "teacher": {"train": {"model": 3, "epochs": 0, "optimizer": {"name": "sgd", "lrr": 1}}},
        "objective": "kd",
        "optimizer": {"name": None},
        "epohcs": 3,
        "batch_size": 0,
        "stages": [{"epochs": 0}, {"schedule": "cosin"}],
        "objectives": {"a": ["kdd", {"ttm": {"gama": 1, "beta": "x"}}], "b": {"wttm": {"gamma": 0, "beta": 1}}},
        "seeds": 0,
        "baseline": "c",
    }
    whats = [
        "name",
        "data.validation",
        "data.labelled",
        "data.crop_padding",
        "student.name",
        "student.nam",
        "teacher.train.model",
        "teacher.train.epochs",
        "teacher.train.optimizer.lrr",
        "objective",
        "batch_size",
        "optimizer.name",
        "stages.0.epochs",
        "stages.1.schedule.name",
        "objectives.a",
        "objectives.a.ttm.gama",
        "objectives.a.ttm.beta",
        "objectives.b.wttm.gamma",
        "seeds",
        "epohcs",
    ]
    with refused(RecipeError, [f"recipe: {what}" for what in whats]):
        parse(Comparison, wrong)


def test_a_fault_says_where_the_recipe_came_from():
    with refused(RecipeError, "my.yaml: epochs", got=0, suggests="epochs=240"):
        parse(Recipe, BASE | {"epochs": 0}, where="my.yaml")


def test_a_long_value_is_cut_short():
    with refused(RecipeError, "recipe: student") as caught:
        parsed(student=list(range(1000)))
    assert len(str(caught.value)) < 200
    with refused(RecipeError, "recipe: epochs") as caught:
        parsed(epochs="a\nb")
    assert "\n" not in str(caught.value)


# -------------------------------------------------------------------------------------------- what is in the repository


def committed():
    folder = ROOT / "recipes"
    return sorted(folder.rglob("*.yaml"))


@pytest.mark.parametrize("path", committed(), ids=lambda path: path.name)
def test_committed_recipes_are_right_and_name_public_sources(path):
    value = read(path)
    if "methods" in value:
        recipe = study_file.read(str(path))[0].recipe
    else:
        recipe = parse(Comparison if "objectives" in value else Recipe, value, where=path.name)
    assert parse(type(recipe), yaml.safe_load(dump(recipe))) == recipe
    assert not re.search(r"[~/]", recipe.data.source.removeprefix("hf:").replace("/", "", 1))
    first = path.read_text().splitlines()[0]
    assert first.startswith("# tutelage "), "the first lines say the command"
    assert path.name in first


@pytest.mark.parametrize(
    ("section", "what", "got"),
    [
        ({"optimizer": {"name": "sgd", "lr": 1e39}}, "optimizer.lr", 1e39),
        ({"optimizer": {"name": "sgd", "momentum": 1}}, "optimizer.momentum", 1.0),
        ({"optimizer": {"name": "sgd", "weight_decay": -1}}, "optimizer.weight_decay", -1.0),
        ({"optimizer": {"name": "adamw", "eps": 0}}, "optimizer.eps", 0.0),
        ({"optimizer": {"name": "adamw", "betas": [0.9, 1]}}, "optimizer.betas", "(0.9, 1.0)"),
        ({"schedule": {"name": "constant", "warmup": -1}}, "schedule.warmup", -1.0),
        ({"schedule": {"name": "step", "every": 0}}, "schedule.every", 0),
        ({"schedule": {"name": "multistep", "milestones": [9, 3]}}, "schedule.milestones", "(9, 3)"),
        ({"schedule": {"name": "multistep", "factor": 0}}, "schedule.factor", 0.0),
        ({"schedule": {"name": "cosine", "final": 2}}, "schedule.final", 2.0),
    ],
)
def test_optimizers_and_schedules_know_their_ranges(section, what, got):
    with refused(RecipeError, f"recipe: {what}", got=got):
        parsed(**section)


def test_very_many_faults_are_counted():
    with pytest.raises(RecipeError) as caught:
        config.parse(Recipe, BASE | {f"key{k}": 1 for k in range(70)})
    *told, last = caught.value.errors
    assert len(told) == MOST_FAULTS
    assert last.got == "20 more"


@pytest.mark.parametrize(("written", "typed"), [("model", "student=mlp:8"), ("student", "model=mlp:8")])
def test_what_is_typed_replaces_what_the_file_calls_by_the_other_name(written, typed):
    value = config.override({"name": "a", written: "mlp:4"}, [typed])
    assert config.parse(Recipe, value).student.name == "mlp:8"
