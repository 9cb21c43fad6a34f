"""What a study may say, and what is answered where it is wrong."""

from __future__ import annotations

import re

import pytest
import yaml
from tests._helpers import ROOT

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


def faults(**changes):
    with pytest.raises(RecipeError) as error:
        parse({**SMALL, **changes}, check=from_spec)
    return str(error.value).splitlines()


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
    lines = faults(
        titel="x",
        protocol={"dat": "digits", "epochs": 0},
        pairs={"wide/narrow": {"teacher": "mlp:16", "studnt": "mlp:8"}},
        seeds=0,
    )
    assert lines == [
        "study: protocol.epochs: expected a whole number >= 1, got 0; for example epochs=240",
        "study: protocol.dat: expected a known key, got 'dat'; did you mean data?",
        "study: pairs.wide/narrow.student: expected a model's name, got none; "
        "for example pairs.wide/narrow.student=cifar:resnet20",
        "study: pairs.wide/narrow.studnt: expected a known key, got 'studnt'; did you mean pairs.wide/narrow.student?",
        "study: seeds: expected a whole number >= 1, got 0; for example seeds=1",
        "study: titel: expected a known key, got 'titel'; did you mean title?",
    ]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"protocol": {"student": "mlp:8"}}, "protocol.student: expected none here, got 'mlp:8'; type pairs.TEACHER/"),
        ({"protocol": {"objective": "kd"}}, "protocol.objective: expected none here, got 'kd'; type methods.NAME.obj"),
        (
            {"pairs": {"narrow": {"teacher": "mlp:16", "student": "mlp:8"}}},
            "pairs: expected names of the form TEACHER/",
        ),
        ({"pairs": {"a.b/c": {"teacher": "mlp:16", "student": "mlp:8"}}}, "pairs: expected names of the form TEACHER/"),
        ({"methods": {"teacher": "kd"}}, "methods: expected names without commas and full stops, other than 'teacher'"),
        ({"methods": {"a b": "kd", "a-b": "kd"}}, "methods: expected names that differ in letters and digits, got"),
        ({"methods": ["kd", "kd"]}, "methods: expected a list of presets, each once"),
        ({"methods": {"wttm": "wtm"}}, "methods.wttm: objective: expected one of cross_entropy"),
        (
            {"methods": {"renyi": {"renyi_penalty": {"weight": 1}}}},
            "methods.renyi: objective.renyi_penalty.order: expected a value for renyi_penalty, got none",
        ),
        (
            {"methods": {"kd": {"kd": {"temprature": 1}}}},
            "methods.kd: objective.kd.temprature: expected an argument of kd",
        ),
        (
            {"methods": {"kd": {"objective": "kd", "pairs": {"wide/narow": {"kd": {}}}}}},
            "methods.kd.pairs: expected a pair of the study (wide/narrow), got 'wide/narow'; did you mean wide/narrow?",
        ),
        (
            {"methods": {"kd": {"objective": "kd", "pairs": {"wide/narrow": {"ttm": {}}}}}},
            "methods.kd.pairs.wide/narrow: expected a preset of its objective (kd), got 'ttm'; type one of those",
        ),
        (
            {"methods": {"kd": {"objective": "kd", "pairs": {"wide/narrow": {"kd": {"temperature": -1}}}}}},
            "methods.kd (wide/narrow): objective.kd.temperature: ",
        ),
        (
            {"methods": {"kd": {"objective": "kd", "published": {"x/y": 3}}}},
            "methods.kd.published: expected a pair of the study (wide/narrow), got 'x/y'; type one of those",
        ),
        (
            {"methods": {"kd": {"objective": "kd", "settings": {"epocs": 3}}}},
            "methods.kd.settings.epocs: expected a known key, got 'epocs'; did you mean epochs?",
        ),
        (
            {"methods": {"kd": {"objective": "kd", "published": {"wide/narrow": {"mean": "x"}}}}},
            "methods.kd.published.wide/narrow.mean: expected a number, got 'x'",
        ),
        (
            {"pairs": {"a/b": {"teacher": "mlp:16", "student": "mlp:8", "settings": {"optimizer": {"lr": -1}}}}},
            "pairs.a/b.settings.optimizer.lr: expected a number > 0, got -1.0",
        ),
        (
            {"figures": ["entropi"]},
            "figures.0: expected one of entropy, divergence, histogram, mappings, got 'entropi'",
        ),
        (
            {"pairs": {"a/b": {"teacher": "mlp:16", "student": "mlp:8", "settings": {"seed": 3}}}},
            "pairs.a/b.settings.seed: expected none here, got 3; type seed=... of the protocol",
        ),
        (
            {"methods": {"kd": {"objective": "kd", "settings": {"data_seed": 3}}}},
            "methods.kd.settings.data_seed: expected none here, got 3; type data_seed=... of the protocol",
        ),
        (
            {"methods": {"kd": {"objective": "kd", "published": {"wide/narrow": 0.725}}}},
            "methods.kd.published.wide/narrow.mean: expected percent, got 0.725; type 100 * 0.725, 72.5",
        ),
        ({"name": "teachers"}, "name: expected a name other than teachers and students, got 'teachers'"),
        ({"name": "a/b"}, "name: expected a folder's name"),
        ({"pairs": {}}, "pairs: expected a mapping of TEACHER/STUDENT to the two networks, got {}"),
    ],
)
def test_what_is_wrong_is_answered(changes, line):
    lines = faults(**changes)
    assert [text for text in lines if text.startswith(f"study: {line}")], lines
    assert len(lines) == 1, lines


def test_settings_of_a_pair_fit_the_protocol_that_they_are_laid_over():
    protocol = {"data": "digits", "schedule": {"name": "multistep", "milestones": [3]}}
    pair = {"teacher": "mlp:16", "student": "mlp:8", "settings": {"schedule": {"milestones": [5]}}}
    parse({**SMALL, "protocol": protocol, "pairs": {"a/b": pair}})
    assert faults(pairs={"a/b": pair}) == [
        "study: pairs.a/b.settings.schedule.milestones: expected a known key, got 'milestones'; "
        "type schedule.name=multistep with it"
    ]


def test_a_method_that_is_not_built_needs_a_published_value():
    method = {"objective": ["cross_entropy", "no_such_preset"], "published": {"wide/narrow": 70.1}}
    study = parse({**SMALL, "methods": {"new": method}})
    assert study.methods["new"].missing == ["no_such_preset"]
    assert study.methods["new"].published["wide/narrow"].mean == 70.1
    assert "expected one of" in faults(methods={"new": {**method, "published": {}}})[0]


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
    with pytest.raises(RecipeError, match=r"protocol\.epocs: expected a known key, got 'epocs'; did you mean epochs\?"):
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
    with pytest.raises(RecipeError) as error:
        read(long, [typed])
    assert str(error.value) == (
        f"{long}: methods.wttm.objective.wttm.gamma: expected none where a pair has its own, got 0.25, and wide/slim "
        "has 0.3; type methods.wttm.pairs.wide/slim.wttm.gamma=0.25, and the like for other pairs"
    )


def test_an_argument_of_a_pair_is_overridden_there(long):
    _, changed = read(long, ["methods.wttm.pairs.wide/slim.wttm.gamma=0.25"])
    gammas = [changed.methods["wttm"].entry(pair)[0]["wttm"]["gamma"] for pair in changed.pairs]
    assert gammas == [0.5, 0.25]
    # Without values of the pairs' own there is nothing that does not heed it.
    _, changed = read(long, ["methods.wttm.pairs={}", "methods.wttm.wttm.gamma=0.25"])
    assert changed.methods["wttm"].entry("wide/slim")[0]["wttm"]["gamma"] == 0.25


def test_a_study_without_runs_has_nothing_to_override():
    with pytest.raises(RecipeError, match=r"got epochs=3: it needs no runs, so there is nothing to override; type"):
        read("figure4", ["epochs=3"])


def test_a_study_that_is_not_there_is_answered_with_the_nearest():
    with pytest.raises(RecipeError, match=r"got 'tabel1'; did you mean table1\?"):
        study_file.find("tabel1")
    with pytest.raises(RecipeError, match=r"got none\.yaml, which is not there"):
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
    assert faults(costs="kdd") == [
        "study: costs: expected a method of the study (cross_entropy, kd), got 'kdd'; did you mean kd?"
    ]


def test_what_stands_beside_a_preset_is_none():
    study = parse({**SMALL, "methods": {"itrd": ["cross_entropy", {"itrd": {}, "gather": True, "scale": 0.5}]}})
    assert study.methods["itrd"].missing == []
    assert study.methods["itrd"].presets == ["cross_entropy", "itrd"]


def test_values_of_objectives_in_every_section_are_checked_at_once():
    assert faults(
        protocol={**SMALL["protocol"], "stages": [{"objective": {"kd": {"temperature": -1}}}]},
        pairs={
            "wide/narrow": {
                "teacher": {"train": {"model": "mlp:16", "objective": {"cross_entropy": {"label_smoothing": 2}}}},
                "student": "mlp:8",
            }
        },
    ) == [
        "study: protocol.stages.0.objective.kd.temperature: expected a finite number above 0, got -1; type for example "
        "temperature=4.0",
        "study: pairs.wide/narrow.teacher.train.objective.cross_entropy.label_smoothing: expected a number in [0, 1), "
        "got 2; type for example label_smoothing=0.1",
    ]
    settings = {"stages": [{"objective": {"ttm": {"gamma": 0}}}]}
    (line,) = faults(methods={"a": {"objective": "kd", "settings": settings}})
    assert line.startswith("study: methods.a.settings.stages.0.objective.ttm.gamma: expected a finite number above 0")
