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
from tutelage.config.schema import Comparison, Network, Recipe, Stage, TrainedTeacher
from tutelage.data import DataSettings
from tutelage.errors import InvalidValueError, RecipeError
from tutelage.losses import confidence_penalty
from tutelage.objectives import Apply, Objective, WeightedTerm
from tutelage.settings.fit import SGD, AdamW, Constant, Cosine, Fit, FitSettings, MultiStep, Step
from tutelage.studies import study_file

BASE = {"name": "x", "student": "cifar:resnet20"}
COMPARED = BASE | {"objectives": {"kd": "kd", "ttm": {"ttm": {"gamma": 0.25, "beta": 4}}}}


def faults(value, kind=Recipe):
    with pytest.raises(RecipeError) as caught:
        parse(kind, value)
    return str(caught.value).splitlines()


def fault(changes, kind=Recipe):
    (line,) = faults((BASE if kind is Recipe else COMPARED) | changes, kind)
    return line


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
    for path, why in ((tmp_path / "none.yaml", "No such file"), (tmp_path, "Is a directory")):
        with refused(RecipeError, "recipe", got=[path, why], suggests="recipes/digits.yaml"):
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
    line = "recipe: optimizer.betas: expected a known key, got 'betas'; type optimizer.name=adamw with it"
    assert fault({"optimizer": {"betas": [0.9, 0.9]}}) == line
    assert fault({"stages": [{"schedule": {"milestones": [3]}}]}).endswith(
        "type stages.0.schedule.name=multistep with it"
    )


def test_the_largest_seed_is_accepted():
    largest = 2**63 - 1
    recipe = parsed(seed=largest, data_seed=largest, data={"split_seed": largest})
    assert (recipe.seed, recipe.data_seed, recipe.data.split_seed) == (largest,) * 3


def test_a_comparison_writes_no_objective_of_its_own():
    assert "objective" not in yaml.safe_load(dump(parse(Comparison, COMPARED)))


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
    assert set(written) == set(Recipe.model_fields)
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
    assert set(Stage.model_fields) - {"objective", "batch_size"} <= set(vars(FitSettings()))


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
        "precision": "fp32",
        "labelled": 9,
        "seed": 7,
        "data_seed": 8,
    }
    teacher = parse(Recipe, FULL | {"teacher": {"train": train}}).training("t")
    assert set(train) == set(config.schema.Training.model_fields)
    assert teacher.student == Network(name="cifar:resnet56", weights="w")
    assert teacher.objective == objectives.cross_entropy(label_smoothing=0.1).spec
    assert (teacher.epochs, teacher.batch_size, teacher.clip, teacher.precision) == (3, 16, 2.0, "fp32")
    assert (teacher.optimizer, teacher.schedule, teacher.seed, teacher.data_seed) == (AdamW(), Cosine(), 7, 8)
    assert teacher.data == DataSettings(**vars(parse(Recipe, FULL).data) | {"labelled": 9})


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
    ("changes", "line"),
    [
        ({"epohcs": 1}, "epohcs: expected a known key, got 'epohcs'; did you mean epochs?"),
        ({"sched": "cosine"}, "sched: expected a known key, got 'sched'; did you mean schedule?"),
        ({"model": "mlp:8"}, "model: expected a known key, got 'model'; did you mean student?"),
        ({"objectives": {}}, "objectives: expected a known key, got 'objectives'; did you mean objective?"),
        # A key of another section is found there.
        ({"lr": 1}, "lr: expected a known key, got 'lr'; did you mean optimizer.lr?"),
        ({"flip": 1}, "flip: expected a known key, got 'flip'; did you mean data.flip?"),
        ({"weights": 1}, "weights: expected a known key, got 'weights'; did you mean student.weights?"),
        ({"data": {"sorce": "digits"}}, "data.sorce: expected a known key, got 'sorce'; did you mean data.source?"),
        ({"data": {"lr": 1}}, "data.lr: expected a known key, got 'lr'; did you mean optimizer.lr?"),
        (
            {"optimizer": {"name": "sgd", "lrr": 1}},
            "optimizer.lrr: expected a known key, got 'lrr'; did you mean optimizer.lr?",
        ),
        # The key is another kind's: that kind is named.
        (
            {"optimizer": {"name": "sgd", "betas": 1}},
            "optimizer.betas: expected a known key, got 'betas'; type optimizer.name=adamw with it",
        ),
        (
            {"schedule": {"name": "step", "evry": 1}},
            "schedule.evry: expected a known key, got 'evry'; did you mean schedule.every?",
        ),
        (
            {"student": {"name": "m", "weight": 1}},
            "student.weight: expected a known key, got 'weight'; did you mean student.weights?",
        ),
        (
            {"teacher": {"name": "m", "trian": {}}},
            "teacher.trian: expected a known key, got 'trian'; did you mean teacher.train?",
        ),
        (
            {"teacher": {"name": "m", "train": {"model": "m"}}},
            "teacher.name: expected a known key, got 'name'; leave out teacher.name, or the keys "
            "beside it that exclude it",
        ),
        (
            {"teacher": {"train": {"model": "m", "epoch": 1}}},
            "teacher.train.epoch: expected a known key, got 'epoch'; did you mean teacher.train.epochs?",
        ),
        (
            {"teacher": {"train": {"model": "m", "student": "m"}}},
            "teacher.train.student: expected a known key, got 'student'; did you mean teacher.train.model?",
        ),
        (
            {"teacher": {"train": {"model": "m", "lr": 1}}},
            "teacher.train.lr: expected a known key, got 'lr'; did you mean teacher.train.optimizer.lr?",
        ),
        (
            {"teacher": {"train": {"model": "m", "optimizer": {"name": "adamw", "beta": 1}}}},
            "teacher.train.optimizer.beta: expected a known key, got 'beta'; did you mean "
            "teacher.train.optimizer.betas?",
        ),
        (
            {"stages": [{}, {"epoks": 1}]},
            "stages.1.epoks: expected a known key, got 'epoks'; did you mean stages.1.epochs?",
        ),
        (
            {"stages": [{"schedule": {"name": "cosine", "finl": 1}}]},
            "stages.0.schedule.finl: expected a known key, got 'finl'; did you mean stages.0.schedule.final?",
        ),
        (
            {"stages": [{"momentum": 1}]},
            "stages.0.momentum: expected a known key, got 'momentum'; did you mean stages.0.optimizer.momentum?",
        ),
        (
            {"objective": {"kd": {"temprature": 1}}},
            "objective.kd.temprature: expected an argument of kd (temperature, weight, supervised, logits), "
            "got 'temprature'; did you mean temperature?",
        ),
        (
            {"stages": [{"objective": [{"kd": {"wieght": 1}}]}]},
            "stages.0.objective.kd.wieght: expected an argument of kd (temperature, weight, supervised, logits), "
            "got 'wieght'; did you mean weight?",
        ),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_known_one(changes, line):
    assert fault(changes) == f"recipe: {line}"


def test_a_key_that_is_near_to_nothing_is_answered_with_all():
    line = fault({"zzz": 1})
    assert line.startswith("recipe: zzz: expected a known key, got 'zzz'; type one of accumulate, batch_size, ")
    assert set(line.partition("type one of ")[2].split(", ")) == set(Recipe.model_fields)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"epochs": 0}, "epochs: expected a whole number >= 1, got 0; for example epochs=240"),
        ({"epochs": "many"}, "epochs: expected a whole number >= 1, got 'many'; for example epochs=240"),
        ({"epochs": 1.5}, "epochs: expected a whole number >= 1, got 1.5; for example epochs=240"),
        ({"epochs": None}, "epochs: expected a whole number >= 1, got null; for example epochs=240"),
        ({"epochs": {"x": 1}}, "epochs: expected a whole number >= 1, got {'x': 1}; for example epochs=240"),
        ({"seed": -1}, "seed: expected a whole number >= 0, got -1; for example seed=0"),
        ({"clip": 0}, "clip: expected a number > 0 or null, got 0; for example clip=1.0"),
        ({"threads": 0}, "threads: expected a whole number >= 1 or null, got 0; for example threads=1"),
        (
            {"deterministic": "perhaps"},
            "deterministic: expected true or false, got 'perhaps'; for example deterministic=false",
        ),
        (
            {"precision": "fp8"},
            "precision: expected one of auto, fp32, tf32, bf16, fp16, got 'fp8'; for example precision=auto",
        ),
        ({"device": "gpu"}, "device: expected one of auto, cpu, cuda, got 'gpu'; for example device=cpu"),
        ({"nonfinite": 3}, "nonfinite: expected one of stop, skip, got 3; for example nonfinite=stop"),
        ({"student": 3}, "student: expected a model's name, got 3; for example student=cifar:resnet20"),
        (
            {"teacher": 3},
            "teacher: expected a model's name, a run's folder or {train: ...}, got 3; for example teacher=runs/teacher",
        ),
        ({"teacher": {}}, "teacher.name: expected a model's name, got none; for example teacher.name=cifar:resnet20"),
        (
            {"teacher": {"train": "cifar:resnet20"}},
            "teacher.train: expected a mapping, got 'cifar:resnet20'; for example "
            "teacher.train={model: cifar:resnet56}",
        ),
        (
            {"teacher": {"train": {"epochs": 3}}},
            "teacher.train.model: expected a model's name, got none; for example teacher.train.model=cifar:resnet56",
        ),
        (
            {"teacher": {"train": {"model": "m", "labelled": -1}}},
            "teacher.train.labelled: expected a whole number >= 0 or null, got -1; "
            "for example teacher.train.labelled=1",
        ),
        ({"data": 3}, "data: expected a mapping, got 3; for example data={source: digits}"),
        ({"data": {"source": 3}}, "data.source: expected text, got 3; for example data.source=digits"),
        ({"data": {"flip": "often"}}, "data.flip: expected true or false, got 'often'; for example data.flip=false"),
        (
            {"data": {"on_corrupt": "x"}},
            "data.on_corrupt: expected one of stop, skip, got 'x'; for example data.on_corrupt=stop",
        ),
        (
            {"data": {"validation": 2}},
            "data.validation: expected a fraction in [0, 1), got 2.0; type data.validation=0.1",
        ),
        (
            {"data": {"crop_padding": 4, "random_resized_crop": True}},
            "data.crop_padding: expected 0 together with data.random_resized_crop=true, got 4; "
            "type data.crop_padding=0",
        ),
        ({"data": {1: 2}}, "data.1: expected a key that is text, got 1; put it in quotes"),
        ({1: 2}, "1: expected a key that is text, got 1; put it in quotes"),
        ({"optimizer": 3}, "optimizer: expected a mapping, got 3; for example optimizer={name: sgd}"),
        ({"optimizer": "sgdd"}, "optimizer.name: expected one of sgd, adamw, got 'sgdd'; type optimizer.name=sgd"),
        (
            {"optimizer": {"name": "adam"}},
            "optimizer.name: expected one of sgd, adamw, got 'adam'; type optimizer.name=adamw",
        ),
        (
            {"optimizer": {"name": None}},
            "optimizer.name: expected one of sgd, adamw, got none; type optimizer.name=sgd",
        ),
        ({"clip": math.inf}, "clip: expected a finite number > 0 or null, got inf; for example clip=1.0"),
        (
            {"checkpoint_seconds": math.inf},
            "checkpoint_seconds: expected a finite number > 0, got inf; for example checkpoint_seconds=300.0",
        ),
        (
            {"stages": [{"clip": math.inf}]},
            "stages.0.clip: expected a finite number > 0 or null, got inf; for example stages.0.clip=1.0",
        ),
        (
            {"optimizer": {"lr": math.inf}},
            "optimizer.lr: expected a finite number, got inf; for example optimizer.lr=0.05",
        ),
        ({"seed": 2**63}, f"seed: expected a whole number >= 0 and < 2**63, got {2**63}; for example seed=0"),
        (
            {"data_seed": 10**23},
            f"data_seed: expected a whole number >= 0 and < 2**63, got {10**23}; for example data_seed=0",
        ),
        (
            {"teacher": {"train": {"model": "m", "seed": 2**63}}},
            f"teacher.train.seed: expected a whole number >= 0 and < 2**63, got {2**63}; for example seed=0",
        ),
        (
            {"data": {"split_seed": 2**63}},
            f"data.split_seed: expected a whole number between -2**63 and 2**63, got {2**63}; type data.split_seed=0",
        ),
        (
            {"objective": {"wttm": {"gamma": 0.5, "beta": -1}}},
            "objective.wttm.beta: expected a weight >= 0, got -1.0; for example beta=0.9",
        ),
        (
            {"optimizer": {"name": "sgd", "lr": -1}},
            "optimizer.lr: expected a number > 0, got -1.0; for example optimizer.lr=0.05",
        ),
        (
            {"optimizer": {"name": "sgd", "lr": "x"}},
            "optimizer.lr: expected a number, got 'x'; for example optimizer.lr=0.05",
        ),
        (
            {"optimizer": {"name": "adamw", "betas": [0.9]}},
            "optimizer.betas: expected a list of 2 numbers, got [0.9]; for example optimizer.betas=[0.9, 0.999]",
        ),
        (
            {"optimizer": {"name": "adamw", "betas": [0.9, 0.9, 0.9]}},
            "optimizer.betas: expected a list of 2 numbers, got [0.9, 0.9, 0.9]; for example "
            "optimizer.betas=[0.9, 0.999]",
        ),
        (
            {"schedule": "cosin"},
            "schedule.name: expected one of constant, step, multistep, cosine, got 'cosin'; type schedule.name=cosine",
        ),
        (
            {"schedule": {"name": "multistep", "milestones": 3}},
            "schedule.milestones: expected a list of whole numbers, got 3; for example "
            "schedule.milestones=[150, 180, 210]",
        ),
        (
            {"schedule": {"name": "multistep", "milestones": [1, "x"]}},
            "schedule.milestones.1: expected a whole number, got 'x'; for example schedule.milestones.1=1",
        ),
        (
            {"stages": {"epochs": 1}},
            "stages: expected a list of mappings, got {'epochs': 1}; for example stages=[{epochs: 1}]",
        ),
        ({"stages": [{}, 3]}, "stages.1: expected a mapping, got 3; for example stages.1={epochs: 1}"),
        ({"graphs": "maybe"}, "graphs: expected auto, true or false, got 'maybe'; for example graphs=auto"),
        (
            {"data": {"on_device": "cuda"}},
            "data.on_device: expected auto, true or false, got 'cuda'; for example data.on_device=auto",
        ),
        (
            {"stages": [{"epochs": 0}]},
            "stages.0.epochs: expected a whole number >= 1 or null, got 0; for example stages.0.epochs=1",
        ),
        (
            {"stages": [{"optimizer": {"name": "sgd", "lr": 0}}]},
            "stages.0.optimizer.lr: expected a number > 0, got 0.0; for example optimizer.lr=0.05",
        ),
        (
            {"objective": {"ttm": {"gamma": 0, "beta": 1}}},
            "objective.ttm.gamma: expected a finite number above 0, got 0; type for example gamma=0.1",
        ),
    ],
)
def test_a_wrong_value_is_answered(changes, line):
    assert fault(changes) == f"recipe: {line}"


@pytest.mark.parametrize(
    "name", ["../x", "a/../b", "a/..", "/x", "a//b", "a/", ".x", "a/.x", "a b", "a:b", "", 3, "~/x"]
)
def test_a_name_that_is_no_folder_below_runs_is_refused(name):
    line = fault({"name": name})
    assert re.match(r"recipe: name: expected a folder's name of letters, .*, got .*; for example name=first-run", line)


@pytest.mark.parametrize("name", ["x", "digits/kd-seed0", "A1.b_c-d/e", "2024"])
def test_a_name_may_have_folders(name):
    assert parsed(name=name).name == name


def test_what_is_missing_is_named():
    assert faults({}) == [
        "recipe: name: expected a folder's name of letters, digits, `.`, `_` and `-`, got none; for "
        "example name=first-run",
        "recipe: student: expected a model's name, got none; for example student=cifar:resnet20",
    ]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"objectives": {}},
            "objectives: expected a mapping of names to objectives, got {}; for example objectives={kd: kd}",
        ),
        (
            {"objectives": ["kd"]},
            "objectives: expected a mapping of names to objectives, got ['kd']; for example objectives={kd: kd}",
        ),
        ({"objectives": {4: "kd"}}, "objectives.4: expected a key that is text, got 4; put it in quotes"),
        (
            {"objective": "kd"},
            "objective: expected each objective of a comparison under its name, got 'kd'; "
            "type objectives.NAME=... instead",
        ),
        (
            {"stages": [{"epochs": 1}, {"objective": "kd"}]},
            "stages.1.objective: expected none in a comparison, where it would replace every entry's, got kd; "
            "type objectives.NAME=... instead",
        ),
        ({"seeds": 0}, "seeds: expected a whole number >= 1, got 0; for example seeds=1"),
        ({"baseline": "kdd"}, "baseline: expected one of kd, ttm, got 'kdd'; type baseline=kd"),
        ({"baseline": 3}, "baseline: expected one of the objectives' names or null, got 3; for example baseline=null"),
        ({"seds": 1}, "seds: expected a known key, got 'seds'; did you mean seeds?"),
        (
            {"objectives": {"kd": {"kd": {"temperature": 0}}}},
            "objectives.kd.kd.temperature: expected a finite number above 0, got 0; type for example temperature=4.0",
        ),
    ],
)
def test_a_comparison_that_is_wrong_is_answered(changes, line):
    assert fault(changes, Comparison) == f"recipe: {line}"


def test_a_comparison_needs_its_objectives():
    (line,) = faults(BASE, Comparison)
    assert line.startswith("recipe: objectives: expected a mapping of names to objectives, got none; for example")


FOUR = re.compile(r"^recipe: [\w.]+: expected .+, got .+; (for example|did you mean|type|zero|leave|put) .+")


def test_every_fault_is_named_at_once_in_a_line_of_four_parts():
    lines = faults(
        {
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
        },
        Comparison,
    )
    assert [line.split(": ")[1] for line in lines] == [
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
    for line in lines:
        assert FOUR.match(line), line


def test_a_fault_says_where_the_recipe_came_from():
    with refused(RecipeError, "my.yaml: epochs", got=0, suggests="epochs=240"):
        parse(Recipe, BASE | {"epochs": 0}, where="my.yaml")


def test_a_long_value_is_cut_short():
    line = fault({"student": list(range(1000))})
    assert len(line) < 200
    assert "\n" not in fault({"epochs": "a\nb"})


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
    ("section", "line"),
    [
        ({"optimizer": {"name": "sgd", "momentum": 1}}, "optimizer.momentum: expected a number in [0, 1), got 1.0"),
        ({"optimizer": {"name": "sgd", "weight_decay": -1}}, "optimizer.weight_decay: expected a number >= 0, got"),
        ({"optimizer": {"name": "adamw", "eps": 0}}, "optimizer.eps: expected a number > 0, got 0.0"),
        ({"optimizer": {"name": "adamw", "betas": [0.9, 1]}}, "optimizer.betas: expected two numbers in [0, 1)"),
        ({"schedule": {"name": "constant", "warmup": -1}}, "schedule.warmup: expected epochs >= 0, got -1.0"),
        ({"schedule": {"name": "step", "every": 0}}, "schedule.every: expected epochs >= 1, got 0"),
        ({"schedule": {"name": "multistep", "milestones": [9, 3]}}, "schedule.milestones: expected ascending epochs"),
        ({"schedule": {"name": "multistep", "factor": 0}}, "schedule.factor: expected a number > 0, got 0.0"),
        ({"schedule": {"name": "cosine", "final": 2}}, "schedule.final: expected a fraction of the peak in [0, 1]"),
    ],
)
def test_optimizers_and_schedules_know_their_ranges(section, line):
    assert fault(section).startswith(f"recipe: {line}")
