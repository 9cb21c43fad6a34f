"""What a study may say, and what is answered where it is wrong."""

from __future__ import annotations

import re

import pytest
import yaml
from tests._helpers import ROOT
from tests._helpers.refusals import refused

from tutelage.errors import RecipeError
from tutelage.objectives import from_spec
from tutelage.studies import schema, study_file
from tutelage.studies.schema import Method, Pair, Study, parse
from tutelage.studies.study_file import read

SMALL = {
    "name": "small",
    "protocol": {"data": "digits", "epochs": 1},
    "pairs": {"wide/narrow": {"teacher": "mlp:16", "student": "mlp:8"}},
    "methods": ["cross_entropy", "kd"],
}


def test_short_forms_are_written_out():
    study = parse({**SMALL, "methods": ["kd", {"wttm": {"gamma": 0.5, "beta": 1}}]})
    assert list(study.methods) == ["kd", "wttm"]
    assert study.methods["kd"] == parse({**SMALL, "methods": {"kd": None}}).methods["kd"]
    assert study.methods["wttm"].spec_for("wide/narrow").name == "wttm"
    assert study.pairs["wide/narrow"].student.name == "mlp:8"
    assert (study.seeds, study.teacher_seed, study.pool) == (1, 100, None)


def test_arguments_of_one_pair_are_laid_over_the_objective():
    pairs = {**SMALL["pairs"], "wide/slim": {"teacher": "mlp:16", "student": "mlp:4"}}
    arguments = {"wide/narrow": {"wttm": {"beta": 2}}}
    method = {
        "objective": [{"wttm": {"gamma": 0.5, "beta": 1}}, {"confidence_penalty": {}, "scale": 0.5}],
        "pairs": arguments,
    }
    study = parse({**SMALL, "pairs": pairs, "methods": {"both": method}})
    betas = [study.methods["both"].entry(pair)[0]["wttm"]["beta"] for pair in pairs]
    assert betas == [2, 1]
    assert study.methods["both"].entry("wide/narrow")[1] == {"confidence_penalty": {}, "scale": 0.5}
    assert study.methods["both"].objective[0] == {"wttm": {"gamma": 0.5, "beta": 1}}


def test_every_fault_is_reported_at_once():
    wrong = {
        "titel": "x",
        "protocol": {"dat": "digits", "epochs": 0},
        "pairs": {"wide/narrow": {"teacher": "mlp:16", "studnt": "mlp:8"}},
        "seeds": 0,
    }
    pair = "pairs.wide/narrow"
    whats = ["protocol.epochs", "protocol.dat", f"{pair}.student", f"{pair}.studnt", "seeds", "titel"]
    suggests = ["protocol.epochs=240", "data", f"{pair}.student=cifar:resnet20", "seeds=1", "title"]
    with refused(RecipeError, [f"study: {what}" for what in whats], got=["'dat'", "'studnt'"], suggests=suggests):
        parse({**SMALL, **wrong})


@pytest.mark.parametrize(
    ("changes", "what", "got", "suggests"),
    [
        ({"protocol": {"student": "mlp:8"}}, "protocol.student", "'mlp:8'", "pairs.TEACHER/STUDENT.student=..."),
        ({"protocol": {"objective": "kd"}}, "protocol.objective", "'kd'", "methods.NAME.objective=..."),
        ({"pairs": {"narrow": {"teacher": "mlp:16", "student": "mlp:8"}}}, "pairs", "'narrow'", None),
        ({"pairs": {"a.b/c": {"teacher": "mlp:16", "student": "mlp:8"}}}, "pairs", "'a.b/c'", None),
        ({"methods": {"teacher": "kd"}}, "methods", "'teacher'", None),
        ({"methods": {"a b": "kd", "a-b": "kd"}}, "methods", "'a b' and 'a-b'", None),
        ({"methods": ["kd", "kd"]}, "methods", "['kd', 'kd']", None),
        ({"methods": {"wttm": "wtm"}}, "methods.wttm: objective", "'wtm'", None),
        (
            {"methods": {"renyi": {"renyi_penalty": {"weight": 1}}}},
            "methods.renyi: objective.renyi_penalty.order",
            None,
            None,
        ),
        ({"methods": {"kd": {"kd": {"temprature": 1}}}}, "methods.kd: objective.kd.temprature", "'temprature'", None),
        (
            {"methods": {"kd": {"objective": "kd", "pairs": {"wide/narow": {"kd": {}}}}}},
            "methods.kd.pairs",
            "'wide/narow'",
            "wide/narrow",
        ),
        (
            {"methods": {"kd": {"objective": "kd", "pairs": {"wide/narrow": {"ttm": {}}}}}},
            "methods.kd.pairs.wide/narrow",
            "'ttm'",
            None,
        ),
        (
            {"methods": {"kd": {"objective": "kd", "pairs": {"wide/narrow": {"kd": {"temperature": -1}}}}}},
            "methods.kd (wide/narrow): objective.kd.temperature",
            -1,
            None,
        ),
        ({"methods": {"kd": {"objective": "kd", "published": {"x/y": 3}}}}, "methods.kd.published", "'x/y'", None),
        (
            {"methods": {"kd": {"objective": "kd", "settings": {"epocs": 3}}}},
            "methods.kd.settings.epocs",
            "'epocs'",
            "epochs",
        ),
        (
            {"methods": {"kd": {"objective": "kd", "published": {"wide/narrow": {"mean": "x"}}}}},
            "methods.kd.published.wide/narrow.mean",
            "'x'",
            None,
        ),
        (
            {"pairs": {"a/b": {"teacher": "mlp:16", "student": "mlp:8", "settings": {"optimizer": {"lr": -1}}}}},
            "pairs.a/b.settings.optimizer.lr",
            -1.0,
            None,
        ),
        ({"figures": ["entropi"]}, "figures.0", "'entropi'", None),
        (
            {"pairs": {"a/b": {"teacher": "mlp:16", "student": "mlp:8", "settings": {"seed": 3}}}},
            "pairs.a/b.settings.seed",
            3,
            "protocol.seed=...",
        ),
        (
            {"methods": {"kd": {"objective": "kd", "settings": {"data_seed": 3}}}},
            "methods.kd.settings.data_seed",
            3,
            "protocol.data_seed=...",
        ),
        (
            {"methods": {"kd": {"objective": "kd", "published": {"wide/narrow": 0.725}}}},
            "methods.kd.published.wide/narrow.mean",
            0.725,
            72.5,
        ),
        ({"seeds": True}, "seeds", "true", None),
        ({"seeds": "3"}, "seeds", "'3'", None),
        ({"seeds": 10_001}, "seeds", 10_001, None),
        ({"teacher_seed": 2**63}, "teacher_seed", 2**63, None),
        ({"teacher_seed": "1"}, "teacher_seed", "'1'", None),
        ({"methods": {"kd": {"objective": "kd", "seeds": True}}}, "methods.kd.seeds", "true", None),
        ({"seeds": 2, "protocol": {"seed": 2**63 - 1}}, "seeds", f"2 from {2**63 - 1}", "protocol.seed=0"),
        (
            {"methods": {"kd": {"objective": "kd", "seeds": 9}}, "protocol": {"data_seed": 2**63 - 8}},
            "seeds",
            f"9 from {2**63 - 8}",
            "protocol.data_seed=0",
        ),
        (
            {"methods": {"kd": {"objective": "kd", "published": {"wide/narrow": {"mean": 70, "n": True}}}}},
            "methods.kd.published.wide/narrow.n",
            "true",
            None,
        ),
        ({"name": "teachers"}, "name", "'teachers'", None),
        ({"name": "a/b"}, "name", "'a/b'", None),
        ({"pairs": {}}, "pairs", "{}", None),
    ],
)
def test_what_is_wrong_is_answered(changes, what, got, suggests):
    with refused(RecipeError, f"study: {what}", got=got, suggests=suggests):
        parse({**SMALL, **changes}, check=from_spec)


def test_settings_of_a_pair_fit_the_protocol_that_they_are_laid_over():
    protocol = {"data": "digits", "schedule": {"name": "multistep", "milestones": [3]}}
    pair = {"teacher": "mlp:16", "student": "mlp:8", "settings": {"schedule": {"milestones": [5]}}}
    parse({**SMALL, "protocol": protocol, "pairs": {"a/b": pair}})
    what = "study: pairs.a/b.settings.schedule.milestones"
    with refused(RecipeError, what, got="'milestones'", suggests="schedule.name=multistep"):
        parse({**SMALL, "pairs": {"a/b": pair}})


def test_a_method_that_is_not_built_needs_a_published_value():
    method = {"objective": ["cross_entropy", "no_such_preset"], "published": {"wide/narrow": 70.1}}
    study = parse({**SMALL, "methods": {"new": method}})
    assert study.methods["new"].missing == ["no_such_preset"]
    assert study.methods["new"].published["wide/narrow"].mean == 70.1
    with refused(RecipeError, "study: methods.new: objective", got="'no_such_preset'"):
        parse({**SMALL, "methods": {"new": {**method, "published": {}}}})


@pytest.mark.parametrize(
    ("teacher", "trained"),
    [
        ("cifar:resnet56", True),
        ("mlp:64", True),
        ("timm:resnet18", True),
        ("torchvision:resnet18", True),
        ("timm:resnet18.a1_in1k", False),
        ("torchvision:resnet34.IMAGENET1K_V1", False),
        ("runs/teacher", False),
        ("file:net.py:make", False),
        ({"name": "cifar:resnet56", "weights": "w.pt"}, False),
        ({"train": {"model": "cifar:resnet56", "epochs": 3, "seed": 7}}, True),
    ],
)
def test_a_teacher_without_weights_is_trained(teacher, trained):
    training = Pair.model_validate({"teacher": teacher, "student": "mlp:8"}).training(100)
    assert (training is not None) == trained
    if training:
        seeds = (training.train.seed, training.train.data_seed)
        assert seeds == ((7, 100) if isinstance(teacher, dict) else (100, 100))


def test_layers_of_settings():
    base = {"data": "digits", "optimizer": {"lr": 0.1, "weight_decay": 1e-4}, "schedule": "cosine"}
    merged = schema.merged(base, {"optimizer": {"lr": 0.2}, "data": {"flip": True}}, {"schedule": {"name": "constant"}})
    assert merged == {
        "data": {"source": "digits", "flip": True},
        "optimizer": {"lr": 0.2, "weight_decay": 1e-4},
        "schedule": {"name": "constant"},
    }
    # Another optimizer has no use for the keys of the first.
    assert schema.merged(base, {"optimizer": "adamw"})["optimizer"] == {"name": "adamw"}
    changed = schema.merged(
        {"optimizer": {"name": "sgd", "momentum": 0.9}}, {"optimizer": {"name": "adamw", "lr": 1e-3}}
    )
    assert changed["optimizer"] == {"name": "adamw", "lr": 1e-3}


def test_overrides_reach_the_protocol_and_the_study(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    plain, changed = read(
        str(path), ["data.validation=0.1", "seeds=3", "methods.kd.kd.temperature=2", "protocol.epochs=4"]
    )
    assert (plain.seeds, plain.recipe.data.validation, plain.recipe.epochs) == (1, 0.0, 1)
    assert (changed.seeds, changed.recipe.data.validation, changed.recipe.epochs) == (3, 0.1, 4)
    assert changed.recipe.data.source == "digits"
    assert changed.methods["kd"].spec_for("wide/narrow") != plain.methods["kd"].spec_for("wide/narrow")
    with refused(RecipeError, f"{path}: protocol.epocs", got="'epocs'", suggests="epochs"):
        read(str(path), ["epocs=3"])


SECOND = {"wttm": {"gamma": 0.5, "beta": 1, "supervised": 0}}
LONG = {
    **SMALL,
    "pairs": {**SMALL["pairs"], "wide/slim": {"teacher": "mlp:16", "student": "mlp:4"}},
    "methods": {
        "kd": {"objective": "kd", "published": {"wide/narrow": 71}},
        "both": ["kd", SECOND],
        "wttm": {
            "objective": {"wttm": {"gamma": 0.5, "beta": 1, "supervised": 1}},
            "pairs": {"wide/slim": {"wttm": {"gamma": 0.3, "beta": 2}}},
        },
    },
}


@pytest.fixture
def long(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(LONG, sort_keys=False))
    return str(path)


@pytest.mark.parametrize(
    ("typed", "method", "expected"),
    [
        ("methods.kd.kd.temperature=2", "kd", [{"kd": {"temperature": 2}}]),
        ("methods.kd.objective.kd.temperature=2", "kd", [{"kd": {"temperature": 2}}]),
        ("methods.both.objective.kd.weight=2", "both", [{"kd": {"weight": 2}}, SECOND]),
        ("methods.both.kd.weight=2", "both", [{"kd": {"weight": 2}}, SECOND]),
        ("methods.kd=ttm", "kd", [{"ttm": {}}]),
        ("methods.wttm.wttm.supervised=2", "wttm", [{"wttm": {"gamma": 0.5, "beta": 1, "supervised": 2}}]),
        ("methods.new.kd.weight=2", "new", [{"kd": {"weight": 2}}]),
    ],
)
def test_an_argument_is_overridden_in_either_form_of_a_method(long, typed, method, expected):
    _, changed = read(long, [typed])
    assert changed.methods[method].entry("wide/narrow") == expected
    assert changed.methods["kd"].published.keys() == ({"wide/narrow"} if typed != "methods.kd=ttm" else set())


@pytest.mark.parametrize(
    "typed",
    [
        "methods.wttm.objective.wttm.gamma=0.25",
        "methods.wttm.wttm.gamma=0.25",
        "methods.wttm.objective.wttm={gamma: 0.25, beta: 1, supervised: 1}",
    ],
)
def test_an_override_that_a_pair_does_not_heed_is_refused(long, typed):
    what, key = f"{long}: methods.wttm.objective.wttm.gamma", "methods.wttm.pairs.wide/slim.wttm.gamma=0.25"
    with refused(RecipeError, what, got=[0.25, "wide/slim", 0.3], suggests=key):
        read(long, [typed])


def test_an_argument_of_a_pair_is_overridden_there(long):
    _, changed = read(long, ["methods.wttm.pairs.wide/slim.wttm.gamma=0.25"])
    gammas = [changed.methods["wttm"].entry(pair)[0]["wttm"]["gamma"] for pair in changed.pairs]
    assert gammas == [0.5, 0.25]
    # Without values of the pairs' own there is nothing that does not heed it.
    _, changed = read(long, ["methods.wttm.pairs={}", "methods.wttm.wttm.gamma=0.25"])
    assert changed.methods["wttm"].entry("wide/slim")[0]["wttm"]["gamma"] == 0.25


def test_a_study_without_runs_has_nothing_to_override():
    with refused(RecipeError, "figure4", got="epochs=3", suggests="tutelage study figure4"):
        read("figure4", ["epochs=3"])


def test_a_study_that_is_not_there_is_answered_with_the_nearest():
    with refused(RecipeError, "study", got="'tabel1'", suggests="table1"):
        study_file.find("tabel1")
    with refused(RecipeError, "study", got="none.yaml", suggests="tutelage study"):
        study_file.find("none.yaml")


def test_the_package_s_studies_are_listed_in_order():
    names = study_file.names()
    assert names.index("table2") < names.index("table13")
    assert [name for name, _ in study_file.titles()] == names
    assert all(title for _, title in study_file.titles())


# The page


def test_the_page_lists_every_key():
    page = (ROOT / "docs" / "studies.md").read_text()
    for heading, kind in (
        ("## Keys of a study", Study),
        ("### Keys of a pair", Pair),
        ("### Keys of a method", Method),
    ):
        part = re.split(r"^#+ ", page.split(f"{heading}\n")[1], flags=re.MULTILINE)[0]
        rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", part, flags=re.MULTILINE)
        assert [name for name, _ in rows] == list(kind.model_fields)
        for name, default in rows:
            assert (default == "required") == kind.model_fields[name].is_required(), name


def test_costs_name_a_method_of_the_study():
    assert parse({**SMALL, "costs": "kd"}).costs == "kd"
    with refused(RecipeError, "study: costs", got="'kdd'", suggests="kd"):
        parse({**SMALL, "costs": "kdd"})


def test_differences_are_between_two_methods_of_the_study():
    assert parse({**SMALL, "differences": {"teaching": ["kd", "cross_entropy"]}}).differences == {
        "teaching": ("kd", "cross_entropy")
    }
    wrong = {"teaching": ["kdd", "cross_entropy"], "nothing": ["kd", "kd"]}
    whats = ["study: differences.teaching", "study: differences.nothing"]
    with refused(RecipeError, whats, got=["'kdd'", "'kd' twice"], suggests="kd"):
        parse({**SMALL, "differences": wrong})
    with refused(RecipeError, "study: differences.teaching", suggests="differences.teaching=[text, text]"):
        parse({**SMALL, "differences": {"teaching": ["kd"]}})


def test_what_stands_beside_a_preset_is_none():
    study = parse({**SMALL, "methods": {"itrd": ["cross_entropy", {"itrd": {}, "gather": True, "scale": 0.5}]}})
    assert study.methods["itrd"].missing == []
    assert study.methods["itrd"].presets == ["cross_entropy", "itrd"]


def test_values_of_objectives_in_every_section_are_checked_at_once():
    protocol = {**SMALL["protocol"], "stages": [{"objective": {"kd": {"temperature": -1}}}]}
    teacher = {"train": {"model": "mlp:16", "objective": {"cross_entropy": {"label_smoothing": 2}}}}
    whats = [
        "study: protocol.stages.0.objective.kd.temperature",
        "study: pairs.wide/narrow.teacher.train.objective.cross_entropy.label_smoothing",
    ]
    typed = [f"{what.removeprefix('study: ')}={value}" for what, value in zip(whats, (4.0, 0.1), strict=True)]
    with refused(RecipeError, whats, got=[-1, 2], suggests=typed):
        parse(
            {**SMALL, "protocol": protocol, "pairs": {"wide/narrow": {"teacher": teacher, "student": "mlp:8"}}},
            check=from_spec,
        )
    settings = {"stages": [{"objective": {"ttm": {"gamma": 0}}}]}
    with refused(RecipeError, "study: methods.a.settings.stages.0.objective.ttm.gamma", got=0):
        parse({**SMALL, "methods": {"a": {"objective": "kd", "settings": settings}}}, check=from_spec)
