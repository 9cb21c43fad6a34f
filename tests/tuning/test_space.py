"""What is searched: read as it is typed, by default, and written as it is to be typed."""

import re
import shlex

import pytest

from tutelage import config
from tutelage.config.schema import Recipe
from tutelage.errors import InvalidValueError, RecipeError
from tutelage.tuning import objective_space, request, space

VALUE = {"name": "x", "student": "mlp:8", "teacher": "mlp:16", "data": {"source": "digits", "validation": 0.1}}
WTTM = {"wttm": {"gamma": 0.25, "beta": 1}}


def recipe(**changes):
    return config.parse(Recipe, {**VALUE, "objective": WTTM, **changes})


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("optimizer.lr=1e-3..1e-1,log", space.number("optimizer.lr", 0.001, 0.1, log=True)),
        ("objective.wttm.gamma=0.1..1", space.number("objective.wttm.gamma", 0.1, 1)),
        ("objective.wttm.beta=1..3", space.number("objective.wttm.beta", 1, 3)),  # of whole ends, and no whole number
        ("batch_size=16..64", space.number("batch_size", 16, 64, whole=True)),
        ("batch_size=32,64,128", space.choice("batch_size", [32, 64, 128])),
        ("clip=null,1.0", space.choice("clip", [None, 1.0])),
        ("optimizer={lr: 0.1},{name: adamw}", space.choice("optimizer", [{"lr": 0.1}, {"name": "adamw"}])),
        ("data.flip=true,false", space.choice("data.flip", [True, False])),
    ],
)
def test_a_range_is_read_as_it_is_typed(typed, expected):
    assert space.read([typed], recipe()) == [expected]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("optimizer.lr", "KEY=LOW..HIGH"),
        ("=1..2", "KEY=LOW..HIGH"),
        ("optimizer.lr=", "KEY=LOW..HIGH"),
        ("optimizer.lr=0.1..0.01", "the smaller one first"),
        ("optimizer.lr=a..b", "two numbers"),
        ("optimizer.lr=0..1,log", "numbers > 0 for log"),
        ("batch_size=32", "at least two values that differ"),
        ("batch_size=32,32", "at least two values that differ"),
        ("optimizer.lr=-1..1", "optimizer.lr"),
        ("epoch=1..2", "did you mean epochs?"),
        ("objective.kd.weight=1..2", "type objective.wttm.NAME="),
        ("seed=1,2", "not on what it is judged"),
        ("data.validation=0.1,0.2", "not on what it is judged"),
    ],
)
def test_what_is_no_range_is_refused(typed, said):
    with pytest.raises((InvalidValueError, RecipeError), match=re.escape(said)):
        space.read([typed], recipe())


def test_mistakes_are_told_at_once_and_a_key_once():
    with pytest.raises(InvalidValueError, match=re.escape("each key once")):
        space.read(["batch_size=8,16", "batch_size=16,32"], recipe())
    with pytest.raises(InvalidValueError) as error:
        space.read(["batch_size=8", "clip=1"], recipe())
    assert len(error.value.errors) == 2


@pytest.mark.parametrize(
    ("objective", "keys"),
    [
        (WTTM, ["wttm.gamma", "wttm.beta"]),
        ("ttm", ["ttm.gamma", "ttm.beta"]),
        ("kd", ["kd.temperature", "kd.weight"]),
        ({"kd": {"temperature": "auto", "weight": "auto"}}, ["kd.temperature", "kd.weight"]),
        ("dkd", ["dkd.temperature"]),  # its weight is a schedule
        ([{"wttm": {"beta": 2}}, {"crd": {}}], ["wttm.gamma", "wttm.beta", "crd.weight", "crd.temperature"]),
        ("cross_entropy", []),
    ],
)
def test_by_default_exponent_weight_and_learning_rate_are_searched(objective, keys):
    searched = space.default(recipe(objective=objective))
    assert [each["key"] for each in searched] == [*(f"objective.{key}" for key in keys), "optimizer.lr"]
    for dimension in searched:  # the recipe's own settings are a point, unless they are to be found
        assert dimension["low"] < dimension["high"]


def test_stages_of_their_own_leave_nothing_to_search():
    stage = {"objective": "kd", "optimizer": {"lr": 0.1}}
    assert [d["key"] for d in space.default(recipe(stages=[stage, {"objective": "ttm"}]))] == ["optimizer.lr"]
    with pytest.raises(InvalidValueError, match=re.escape("as each stage sets its own")):
        space.default(recipe(stages=[stage]))


def test_own_values_are_those_of_the_recipe_if_it_is_a_point():
    plain = recipe()
    assert space.own_values(space.default(plain), plain) == {
        "objective.wttm.gamma": 0.25,
        "objective.wttm.beta": 1,
        "optimizer.lr": 0.05,
    }
    found = recipe(objective="wttm")  # beta: auto
    assert space.own_values(space.default(found), found) is None


@pytest.mark.parametrize(
    ("objective", "values", "line"),
    [
        (WTTM, {"objective.wttm.gamma": 0.31, "optimizer.lr": 0.012}, "'objective={wttm: {gamma: 0.31, beta: 1.0}}'"),
        ("wttm", {"objective.wttm.gamma": 0.25, "batch_size": 32}, "objective=wttm batch_size=32"),
        (["kd", {"crd": {}, "scale": 0.5}], {"objective.kd.weight": 2.0, "optimizer.lr": 1e-5}, "optimizer.lr=1.0e-05"),
    ],
)
def test_the_line_is_what_was_trained(objective, values, line):
    plain = recipe(objective=objective)
    written = space.line(plain, values)
    assert line in written
    typed = config.override({**VALUE, "objective": objective}, shlex.split(written))
    assert config.parse(Recipe, typed) == space.apply(plain, values)


@pytest.mark.parametrize(("asked", "said"), [({"trials": 0}, "--trials"), ({"confirm": -1}, "--confirm")])
def test_counts_are_checked(asked, said):
    with pytest.raises(InvalidValueError, match=re.escape(said)):
        request.request(recipe(), **asked)


def test_a_recipe_without_validation_is_refused():
    with pytest.raises(RecipeError, match=re.escape("type data.validation=0.1")):
        request.request(recipe(data="digits"))


def test_the_objective_space_has_the_published_points_first():
    asked = request.request(recipe(), space="objective", search=["optimizer.lr=1e-3..1,log"])
    assert [name for name, _ in asked.known] == ["recipe", "kd", "ttm", "reverse_kl"]  # it is wttm itself
    assert asked.known[0][1]["objective.matching.weight_by"] == "power_sum"
    for name, values in asked.known:
        built = space.apply(asked.base, values)
        assert built.optimizer.lr == 0.05, name
        assert space.own_values(asked.space, built) == values, name
    other = request.request(recipe(objective="dkd"), space="objective")
    assert [name for name, _ in other.known] == ["recipe", "kd", "ttm", "wttm", "reverse_kl"]
    assert other.known[0][1] is None
    with pytest.raises(RecipeError, match=re.escape("teacher")):
        request.request(recipe(teacher=None, objective="cross_entropy"), space="objective")


def test_a_typed_range_replaces_a_parts():
    asked = request.request(recipe(), space="objective", search=["objective.matching.gamma=0.2..0.4"])
    (gamma,) = [each for each in asked.space if each["key"] == "objective.matching.gamma"]
    assert (gamma["low"], gamma["high"]) == (0.2, 0.4)
    assert len(asked.space) == len(objective_space.dimensions())
