"""Presets: named methods, their arguments, and what a recipe holds of them."""

from __future__ import annotations

import inspect
import json
import math

import numpy as np
import pytest
import torch
from tests._helpers.refusals import refused

from tutelage import losses, objectives
from tutelage.errors import InvalidTypeError, InvalidValueError
from tutelage.objectives import PRESETS, Apply, Cosine, Linear, Objective, WarmUp, WeightedTerm, from_recipe
from tutelage.settings.objective import SIGNATURES
from tutelage.types import Batch, Outputs


@pytest.fixture
def own_names():
    """Lets a test define presets."""
    known = set(SIGNATURES)
    yield
    for name in set(SIGNATURES) - known:
        del PRESETS[name], SIGNATURES[name]


def draw():
    generator = torch.Generator().manual_seed(0)
    z, v = torch.randn(2, 6, 4, generator=generator, dtype=torch.float64).unbind()
    return Outputs(z), Outputs(v), Batch(torch.arange(6), torch.zeros(6, 1), torch.arange(6) % 4)


EVERY = {
    "cross_entropy": objectives.cross_entropy(label_smoothing=0.1),
    "confidence_penalty": objectives.confidence_penalty(weight=0.2),
    "renyi_penalty": objectives.renyi_penalty(weight=1.5, order=0.25),
    "kd": objectives.kd(temperature=2.0, weight=0.5, supervised=0.5),
    "ttm": objectives.ttm(gamma=0.1, beta=8.0),
    "wttm": objectives.wttm(gamma=0.1, beta=3.0, supervised=0.0),
    "weighted_kd": objectives.weighted_kd(temperature=2.0, weight=0.5, supervised=0.5, normalise="batch"),
    "transformed_matching": objectives.transformed_matching(
        transform="logarithm", gamma=0.01, beta=2.0, weight_by="entropy", order=0.5, normalise="batch"
    ),
    "matching": objectives.matching(
        divergence="skew", target="rational", gamma=0.1, beta=2.0, temperature=2.0, weight_by="power_sum", share=0.3
    ),
}
COMPOSED = {
    "scaled": 0.8 * EVERY["kd"],
    "sum": EVERY["ttm"] + 0.5 * EVERY["confidence_penalty"],
    "scheduled": objectives.wttm(gamma=0.3, beta=Linear(0.0, 3.0, until=0.5), supervised=Cosine(1.0, 0.1)),
    "scheduled and scaled": 2 * objectives.kd(weight=WarmUp(0.9, 20)),
    "twice": EVERY["kd"] + objectives.kd(temperature=1, weight=0.1, supervised=0),
}


ELSEWHERE = {"ctkd", "teacher_free_kd", "tekap"}
"""Tried in `methods/test_logit_methods.py`."""


def test_every_preset_of_this_family_is_tried():
    family = "tutelage.objectives.methods.logits"
    assert set(EVERY) | ELSEWHERE == {name for name, p in PRESETS.items() if p.build.__module__ == family}


@pytest.mark.parametrize("objective", [*EVERY.values(), *COMPOSED.values()], ids=[*EVERY, *COMPOSED])
def test_a_recipe_holds_all_of_an_objective(objective):
    written = json.loads(json.dumps(objective.to_recipe(), allow_nan=False))
    read_back = from_recipe(written)
    assert read_back == objective
    assert read_back.to_recipe() == objective.to_recipe()
    assert read_back.bind()(*draw()).total == objective.bind()(*draw()).total


def test_a_recipe_names_every_argument_and_the_scale():
    arguments = {"temperature": 4.0, "weight": 0.9, "supervised": 0.1, "logits": "raw"}
    assert objectives.kd().to_recipe() == [{"kd": arguments}]
    assert (0.5 * objectives.confidence_penalty()).to_recipe() == [
        {"confidence_penalty": {"weight": 0.1}, "scale": 0.5}
    ]


@pytest.mark.parametrize("written", ["kd", {"kd": None}, {"kd": {}}, ["kd"], [{"kd": {}}], {"kd": {"temperature": 4}}])
def test_short_forms(written):
    assert from_recipe(written) == objectives.kd()


def test_an_objective_is_read_as_itself():
    kd = objectives.kd()
    assert from_recipe(kd) is kd


def test_an_entry_may_be_scaled():
    read = from_recipe([{"cross_entropy": {}}, {"wttm": {"gamma": 0.1, "beta": 3, "supervised": 0}, "scale": 0.8}])
    assert read == objectives.cross_entropy() + 0.8 * objectives.wttm(gamma=0.1, beta=3, supervised=0)


def test_numbers_of_numpy_are_written_as_plain_ones():
    written = objectives.ttm(gamma=np.float64(0.5), beta=np.float64(2)).to_recipe()
    assert {type(written[0]["ttm"][name]) for name in ("gamma", "beta", "supervised")} == {float}


# --------------------------------------------------------------------------------------------------------- the formulas


def test_published_settings_are_the_defaults():
    assert objectives.kd().weights() == {"ce": 0.1, "kd": 0.9}
    assert objectives.ttm(gamma=0.1, beta=2).weights() == {"ce": 1.0, "ttm": 2.0}
    assert objectives.wttm(gamma=0.1, beta=2).weights() == {"ce": 1.0, "wttm": 2.0}


@pytest.mark.parametrize(
    ("objective", "formula"),
    [
        (EVERY["cross_entropy"], lambda z, v, y: losses.cross_entropy(z, y, label_smoothing=0.1)),
        (EVERY["confidence_penalty"], lambda z, v, y: 0.2 * losses.confidence_penalty(z)),
        (EVERY["renyi_penalty"], lambda z, v, y: 1.5 * losses.renyi_penalty(z, order=0.25)),
        (EVERY["kd"], lambda z, v, y: 0.5 * losses.cross_entropy(z, y) + 0.5 * losses.kd(z, v, temperature=2)),
        (EVERY["ttm"], lambda z, v, y: losses.cross_entropy(z, y) + 8 * losses.ttm(z, v, gamma=0.1)),
        (EVERY["wttm"], lambda z, v, y: 3 * losses.wttm(z, v, gamma=0.1)),
        (
            objectives.weighted_kd(weight=2, supervised=0),
            lambda z, v, y: 2 * losses.weighted_kd(z, v, temperature=4),
        ),
    ],
)
def test_a_preset_is_its_formula(objective, formula):
    student, teacher, batch = draw()
    expected = formula(student.logits, teacher.logits, batch.labels).mean()
    torch.testing.assert_close(objective.bind()(student, teacher, batch).total, expected, rtol=1e-12, atol=1e-12)


def test_a_weight_of_zero_leaves_the_term_out():
    assert list(objectives.kd(weight=0, supervised=1).weights()) == ["ce"]
    assert list(objectives.kd(supervised=0).weights()) == ["kd"]
    assert list(objectives.kd(supervised=0.0).weights()) == ["kd"]
    with refused(InvalidValueError, "objective"):
        objectives.kd(weight=0, supervised=0)


def test_signatures_are_the_schema():
    for name, preset in PRESETS.items():
        assert preset.build is getattr(objectives, name)
        parameters = inspect.signature(preset.build).parameters.values()
        assert {p.kind for p in parameters} == {inspect.Parameter.KEYWORD_ONLY}
        assert preset.paper
        assert preset.build.__doc__


@pytest.mark.parametrize(
    ("name", "argument"),
    [(name, argument) for name in EVERY for argument in ("weight", "beta", "supervised")],
)
def test_every_weight_but_the_free_one_is_at_least_zero(name, argument):
    arguments = EVERY[name].pieces[0].arguments
    if argument not in arguments:
        return
    if name == "renyi_penalty":
        assert PRESETS[name].build(**arguments | {argument: -1.0}).weights() == {"renyi_penalty": -1.0}
        return
    with refused(InvalidValueError, argument, got=-1.0, suggests=f"{argument}=0.9"):
        PRESETS[name].build(**arguments | {argument: -1})


# ----------------------------------------------------------------------------------------------------------- the faults


@pytest.mark.parametrize(
    ("written", "refusal"),
    [
        ("kdd", refused(InvalidValueError, "objective", got="'kdd'", suggests="kd")),
        ({"wtm": {"gamma": 1}}, refused(InvalidValueError, "objective", got="'wtm'", suggests="wttm")),
        ("zzzzz", refused(InvalidValueError, "objective", got="'zzzzz'")),
        ([], refused(InvalidValueError, "objective", suggests="kd")),
        (3, refused(InvalidValueError, "objective", got=3)),
        (None, refused(InvalidValueError, "objective", got="None")),
        ([["kd"]], refused(InvalidValueError, "objective", got="['kd']")),
        ({"kd": {}, "ttm": {}}, refused(InvalidValueError, "objective")),
        ({"scale": 2}, refused(InvalidValueError, "objective")),
        ({"kd": 4}, refused(InvalidValueError, "objective.kd", got=4, suggests="{kd: {temperature: 1}}")),
        ({"kd": 0}, refused(InvalidValueError, "objective.kd", got=0)),
        (
            {"kd": {"temprature": 4}},
            refused(InvalidValueError, "objective.kd.temprature", got="'temprature'", suggests="temperature"),
        ),
        ({"kd": {1: 4}}, refused(InvalidValueError, "objective.kd.1", got="'1'")),
        (
            {"renyi_penalty": {"weight": 1}},
            refused(InvalidValueError, "objective.renyi_penalty.order", suggests="objective.renyi_penalty.order=1.0"),
        ),
        (
            {"ttm": {"gamma": 0, "beta": 1}},
            refused(InvalidValueError, "objective.ttm.gamma", got=0),
        ),
        (
            {"wttm": {"gamma": -0.1, "beta": 1}},
            refused(InvalidValueError, "objective.wttm.gamma", got=-0.1),
        ),
        ({"wttm": {"gamma": "x", "beta": 1}}, refused(InvalidValueError, "objective.wttm.gamma", got="'x'")),
        ({"wttm": {"gamma": True, "beta": 1}}, refused(InvalidValueError, "objective.wttm.gamma", got="True")),
        (
            {"kd": {"temperature": 0}},
            refused(InvalidValueError, "objective.kd.temperature", got=0),
        ),
        ({"kd": {"temperature": math.inf}}, refused(InvalidValueError, "objective.kd.temperature", got="inf")),
        (
            {"kd": {"weight": "x"}},
            refused(InvalidValueError, "objective.kd.weight", got="'x'", suggests="objective.kd.weight=0.9"),
        ),
        (
            {"kd": {"weight": 0, "supervised": 0}},
            refused(InvalidValueError, "objective.kd"),
        ),
        (
            {"cross_entropy": {"label_smoothing": 1}},
            refused(InvalidValueError, "objective.cross_entropy.label_smoothing", got=1),
        ),
        (
            {"renyi_penalty": {"order": 0, "weight": 1}},
            refused(InvalidValueError, "objective.renyi_penalty.order", got=0),
        ),
        ({"kd": {}, "scale": 0}, refused(InvalidValueError, "objective.kd", got=0, suggests="scale: 0.8")),
        ({"kd": {}, "scale": "x"}, refused(InvalidValueError, "objective.kd", got="'x'")),
        ({"kd": {}, "scale": True}, refused(InvalidValueError, "objective.kd", got="True")),
        ({"kd": {}, "scale": math.nan}, refused(InvalidValueError, "objective.kd", got="nan")),
        (["kd", "cross_entropy"], refused(InvalidValueError, "objective", suggests="kd(..., supervised=0)")),
    ],
)
def test_what_a_recipe_says_wrong_is_answered(written, refusal):
    with refusal as caught:
        from_recipe(written)
    assert "\n" not in str(caught.value)


def test_every_fault_is_named_at_once():
    whats = [
        "objective",
        "objective.renyi_penalty.ordr",
        "objective.renyi_penalty.weight",
        "objective.renyi_penalty.order",
        "objective.kd",
        "objective.kd.temperature",
        "objective.kd.weight",
    ]
    with refused(InvalidValueError, whats):
        from_recipe(["kdd", {"renyi_penalty": {"ordr": 1}}, {"kd": {"temperature": "hot", "weight": "x"}, "scale": 0}])


def test_the_same_faults_are_named_at_a_call():
    with refused(InvalidTypeError, "temprature", got="'temprature'", suggests="temperature"):
        objectives.kd(temprature=4)
    with refused(InvalidTypeError, "ttm", got=0.1, suggests="ttm(gamma=0.1, beta=3)"):
        objectives.ttm(0.1, 3)
    with refused(InvalidTypeError, "order", suggests="order=1.0"):
        objectives.renyi_penalty(weight=0.1)
    with refused(InvalidValueError, "gamma", got=0):
        objectives.wttm(gamma=0, beta=1)
    with refused(InvalidValueError, "beta", got="'3'"):
        objectives.wttm(gamma=0.1, beta="3")


# ------------------------------------------------------------------------------------------------------------ one's own


def test_a_preset_of_ones_own_stands_in_a_recipe(own_names):
    def squares(student_logits, teacher_logits, *, power):
        return (student_logits - teacher_logits).abs().pow(power).mean(-1)

    @objectives.preset("none")
    def logit_distance(*, power: float = 2.0, weight: objectives.Weight = 1.0) -> Objective:
        """``weight * mean |z - v|**power``."""
        return Objective.of(WeightedTerm("distance", weight, Apply(squares, {"power": power})))

    written = {"logit_distance": {"power": 3, "weight": {"schedule": "linear", "start": 1, "end": 0}}}
    read = from_recipe(written)
    assert read == logit_distance(power=3, weight=Linear(1, 0))
    assert from_recipe(read.to_recipe()) == read
    student, teacher, batch = draw()
    expected = squares(student.logits, teacher.logits, power=3).mean()
    torch.testing.assert_close(read.bind()(student, teacher, batch).total, expected)
    assert (read + objectives.kd()).name == "logit_distance+kd"
    with refused(InvalidValueError, "objective", got="'logit_distanc'", suggests="logit_distance"):
        from_recipe("logit_distanc")


def test_a_value_for_a_preset_without_arguments_is_answered(own_names):
    @objectives.preset("none")
    def fixed() -> Objective:
        """``mean -log p``."""
        return objectives.cross_entropy()

    assert from_recipe("fixed") == fixed()
    with refused(InvalidValueError, "objective.fixed", got=3, suggests="fixed"):
        from_recipe({"fixed": 3})


def test_a_preset_may_compose_others(own_names):
    @objectives.preset("a KD that is TTM")
    def kd_as_ttm(*, temperature: float, lam: float = 0.9) -> Objective:
        beta = lam / (1 - lam) * temperature
        kd = objectives.kd(temperature=temperature, weight=lam, supervised=1 - lam)
        return 1 / (1 - lam) * kd + objectives.renyi_penalty(order=1 / temperature, weight=beta * (temperature - 1))

    objective = 0.5 * kd_as_ttm(temperature=4)
    assert objective.name == "kd_as_ttm"
    assert objective.to_recipe() == [{"kd_as_ttm": {"temperature": 4, "lam": 0.9}, "scale": 0.5}]
    assert objective.weights() == pytest.approx({"ce": 0.5, "kd": 4.5, "renyi_penalty": 54})
    assert from_recipe(objective.to_recipe()) == objective


def test_a_loss_that_is_made_for_other_shapes_is_not_tried_too_early(own_names):
    weights = torch.ones(10)

    @objectives.preset("none")
    def ten_classes(*, weight: objectives.Weight = 1.0) -> Objective:
        def weighted(student_logits):
            return (student_logits * weights).sum(-1)

        return Objective.of(WeightedTerm("ten", weight, Apply(weighted)))

    batch = Batch(torch.arange(2), torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64))
    assert ten_classes().bind()(Outputs(torch.ones(2, 10)), None, batch).total == 10


def test_a_name_is_taken_once(own_names):
    with refused(InvalidValueError, "preset", got="'kd'"):

        @objectives.preset("none")
        def kd(*, weight: float) -> Objective:
            return objectives.cross_entropy(weight=weight)

    assert PRESETS["kd"].build is objectives.kd


def test_a_preset_that_is_defined_anew_is_built_anew(own_names):
    def define(value):
        @objectives.preset("none")
        def mine() -> Objective:
            return objectives.kd(weight=value)

    define(1.0)
    assert from_recipe("mine").weights()["kd"] == 1.0
    del PRESETS["mine"]
    define(5.0)
    assert from_recipe("mine").weights()["kd"] == 5.0


def test_functions_that_are_no_presets_are_refused(own_names):
    def variadic(**weights):
        return objectives.cross_entropy()

    def number(*, weight: float = 1.0):
        return weight

    with refused(InvalidTypeError, "preset", suggests="@tutelage.objectives.preset"):
        objectives.preset(number)
    with refused(InvalidTypeError, "variadic", got="**weights"):
        objectives.preset("none")(variadic)
    build = objectives.preset("none")(number)
    with refused(InvalidTypeError, "number", got="float"):
        build()
