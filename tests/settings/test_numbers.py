"""Bounds: what they refuse in a recipe, and what they say is possible."""

import numpy as np
import pytest
from tests._helpers.refusals import refused

from tutelage import config, objectives
from tutelage.config import Comparison, Recipe, override, parse
from tutelage.config.schema import built_in_presets
from tutelage.data import DataSettings, open_data
from tutelage.errors import InvalidValueError, RecipeError
from tutelage.settings import fit
from tutelage.settings.objective import REQUIRED

RUN = {"name": "n", "student": "mlp:8", "teacher": "mlp:8"}


@pytest.mark.parametrize(
    "text",
    [
        "threads=1e9",
        "threads=1000000",
        "threads=0",
        "threads=true",
        "threads=.inf",
        "epochs=.nan",
        "epochs=true",
        "epochs='3'",
        "epochs=3.5",
        "epochs=1e30",
        "batch_size=99999999999",
        "accumulate=0",
        "optimizer.lr=1e308",
        "optimizer.lr=1e-50",
        "optimizer.lr=true",
        "optimizer.lr='3'",
        "optimizer.weight_decay=1e-60",
        "optimizer.momentum=true",
        "clip=1e-50",
        "clip=true",
        "schedule.warmup=1e30",
        "data.size=1e6",
        "data.size=true",
        "data.crop_padding=1e9",
        "data.crop_padding=true",
        "data.workers=100000",
        "data.validation=true",
        "data.mixup=1e300",
        "data.cutmix=1e-9",
        "data.memory_limit_mb=1e18",
        "data.labelled=1e30",
        "data.split_seed=9223372036854775808",
        "data.random_erasing=.nan",
        "seed=9223372036854775808",
        "seed=true",
        "seed=-1",
        "outputs_limit_mb=1e300",
        "outputs_max_error=1e-60",
        "checkpoint_seconds=1e300",
        "log_steps=1e12",
        "data.test_crop=1e-9",
        "epochs=010",
    ],
)
def test_a_number_beyond_its_bounds_is_refused_by_its_key(text):
    with refused(RecipeError, text.partition("=")[0]):
        parse(Recipe, override(RUN, [text]), overrides=[text])


def test_a_number_of_thousands_of_digits_is_refused():
    for key in ("epochs", "optimizer.lr", "seed", "data.size", "objective.kd.weight", "objective.kd.temperature"):
        *sections, last = key.split(".")
        value = {last: 10**5000}
        for section in reversed(sections):
            value = {section: value}
        with pytest.raises(RecipeError):
            parse(Recipe, {**RUN, **value})


@pytest.mark.parametrize(
    "text", ["threads=1024", "threads=3.0", "epochs=1e3", "optimizer.lr=1e6", "optimizer.weight_decay=0"]
)
def test_a_number_within_its_bounds_is_taken(text):
    parse(Recipe, override(RUN, [text]))


def test_a_border_is_below_the_images():
    with refused(RecipeError, "recipe: data.crop_padding", got=32):
        parse(Recipe, {**RUN, "data": {"size": 32, "crop_padding": 32}})
    with refused(InvalidValueError, "data.crop_padding", got=8):
        open_data(DataSettings(source="digits", crop_padding=8))
    open_data(DataSettings(source="digits", crop_padding=7))


@pytest.mark.parametrize("preset", built_in_presets())
def test_every_argument_of_a_preset_refuses_what_float32_does_not_hold(preset):
    signature = built_in_presets()[preset]
    needed = {name: 1.0 for name, argument in signature.items() if argument.default is REQUIRED}
    for name, argument in signature.items():
        if argument.kind in ("text", "names"):
            continue
        for value in (1e308, -1e308, 1e-50, 10**400, float("nan"), float("inf"), True, "3"):
            objective = {preset: {**needed, name: value}}
            with pytest.raises(RecipeError, match=name):
                parse(Recipe, {**RUN, "objective": objective}, check=objectives.from_spec)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("kd.temperature", 2.0**63),
        ("kd.temperature", 2**62),
        ("kd.temperature", 1e-30),
        ("crd.negatives", 2**63 - 1),
        ("crd.dimension", 10**9),
    ],
)
def test_an_argument_beyond_its_bounds_is_refused(key, value):
    preset, name = key.split(".")
    with refused(RecipeError, f"recipe: objective.{key}", got=value):
        parse(Recipe, {**RUN, "objective": {preset: {name: value}}}, check=objectives.from_spec)


@pytest.mark.parametrize(
    "name", ["../x", "a/../b", "a.", "CON", "nul.txt", "a/aux/b", ".hidden", "x" * 101, "a//b", "a ", "/a"]
)
def test_a_runs_name_is_a_folders_on_every_system(name):
    with refused(RecipeError, "recipe: name"):
        parse(Recipe, {**RUN, "name": name})


@pytest.mark.parametrize(
    "name", ["../../x", "a/b", "a\\b", "..", "", " ", "x" * 201, "\u00e9" * 101, "a\x1bb", "a:b", ".a"]
)
def test_an_entrys_name_leads_out_of_no_folder(name):
    with refused(RecipeError, "recipe: objectives"):
        parse(Comparison, {"name": "c", "student": "mlp:8", "objectives": {name: "kd"}})


@pytest.mark.parametrize("names", [("A", "a"), ("\u00e9", "e\u0301")])
def test_entries_share_no_folder_on_any_system(names):
    with refused(RecipeError, "recipe: objectives"):
        parse(Comparison, {"name": "c", "student": "mlp:8", "objectives": dict.fromkeys(names, "kd")})


def test_names_that_are_used_stay():
    parse(
        Comparison,
        {"name": "c", "student": "mlp:8", "objectives": dict.fromkeys(("kd", "wttm+crd", "TTM, T = 4"), "kd")},
    )


def test_every_seed_of_a_comparison_fits():
    comparison = {"name": "c", "student": "mlp:8", "objectives": {"kd": "kd"}, "seed": 2**63 - 1}
    parse(Comparison, comparison)
    with refused(RecipeError, "recipe: seeds"):
        parse(Comparison, {**comparison, "seeds": 2})


@pytest.mark.parametrize(
    "made",
    [
        lambda: fit.AdamW(betas=[0.9, 0.99]),
        lambda: fit.MultiStep(milestones=[1, 2]),
        lambda: fit.SGD(lr=np.float32(0.1), layer_decay=None),
    ],
)
def test_lists_and_numbers_of_numpy_are_taken(made):
    made()


@pytest.mark.parametrize(
    ("made", "what"),
    [
        (lambda: fit.SGD(lr=None), "optimizer.lr"),
        (lambda: fit.SGD(lr="fast"), "optimizer.lr"),
        (lambda: fit.AdamW(betas=0.9), "optimizer.betas"),
        (lambda: fit.AdamW(betas=[0.9]), "optimizer.betas"),
        (lambda: fit.MultiStep(milestones=[0, 2]), "schedule.milestones"),
        (lambda: fit.Step(every=None), "schedule.every"),
        (lambda: fit.EMA(decay=None), "ema.decay"),
    ],
)
def test_what_is_no_number_is_refused_where_it_is_typed(made, what):
    with refused(InvalidValueError, what):
        made()


def test_a_truth_value_of_numpy_is_one():
    recipe = {"name": "a", "student": "mlp:8", "deterministic": np.True_, "data": {"flip": np.False_}}
    parsed = config.parse(config.Recipe, recipe)
    assert parsed.deterministic is True
    assert parsed.data.flip is False
