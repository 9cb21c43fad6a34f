"""From a study to its runs: order, names, pools, fewer epochs, deviations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests._helpers.refusals import refused

from tutelage import config, records
from tutelage.config.schema import Recipe
from tutelage.errors import RecipeError
from tutelage.runs import resume
from tutelage.studies import plan, run_study, schema, study_file
from tutelage.studies.foreign_runs import foreign_runs
from tutelage.studies.plan import assign, cells, dry_run_recipes, identity, jobs

MULTISTEP = {"name": "multistep", "milestones": [150, 180, 210]}
STUDY = {
    "name": "grid",
    "protocol": {"data": "digits", "epochs": 240, "schedule": MULTISTEP, "optimizer": {"lr": 0.1}},
    "pairs": {
        "wide/narrow": {"teacher": "mlp:16", "student": "mlp:8"},
        "wide/slim": {"teacher": "mlp:16", "student": "mlp:4", "settings": {"optimizer": {"lr": 0.01}}},
        "wider/narrow": {"teacher": "mlp:32", "student": "mlp:8"},
    },
    "methods": {
        "cross_entropy": None,
        "kd": None,
        "ttm": {"objective": {"ttm": {"gamma": 0.5, "beta": 1}}, "seeds": 1},
    },
    "seeds": 2,
}


def study(**changes):
    return schema.parse({**STUDY, **changes})


def assigned(tmp_path, *, changed=None, **options):
    plain = study()
    return assign(plain, changed or plain, runs=tmp_path, **options)


def names(request):
    return [job.name.removeprefix(f"{request.pool}/") for job in jobs(request)]


def test_seeds_beyond_what_generators_take_are_refused(tmp_path):
    study = schema.parse({**STUDY, "seeds": 1, "protocol": {"data": "digits", "seed": 2**63 - 2}})
    assert assign(study, study, runs=tmp_path, seeds=2).seeds == 2
    with refused(RecipeError, "--seeds", got=f"3 from {2**63 - 2}", suggests="seed=0"):
        assign(study, study, runs=tmp_path, seeds=3)


def test_pairs_then_seeds_then_methods(tmp_path):
    assert names(assigned(tmp_path)) == [
        "teachers/wide-seed100",
        "students/narrow-cross_entropy-seed0",
        "wide-narrow/kd-seed0",
        "wide-narrow/ttm-seed0",
        "students/narrow-cross_entropy-seed1",
        "wide-narrow/kd-seed1",
        "students/slim-cross_entropy-seed0",
        "wide-slim/kd-seed0",
        "wide-slim/ttm-seed0",
        "students/slim-cross_entropy-seed1",
        "wide-slim/kd-seed1",
        "teachers/wider-seed100",
        "wider-narrow/kd-seed0",
        "wider-narrow/ttm-seed0",
        "wider-narrow/kd-seed1",
    ]


def test_a_run_that_asks_no_teacher_stands_in_the_table_of_every_pair(tmp_path):
    rows = [(job.pair, job.name) for job in cells(assigned(tmp_path)) if job.method == "cross_entropy"]
    shared = "grid/students/narrow-cross_entropy-seed0"
    assert [pair for pair, name in rows if name == shared] == ["wide/narrow", "wider/narrow"]


def test_narrowing(tmp_path):
    assert names(assigned(tmp_path, pairs=["wide/slim"], methods=["kd"], seeds=1)) == [
        "teachers/wide-seed100",
        "wide-slim/kd-seed0",
    ]
    # No teacher is trained where nobody asks one.
    assert names(assigned(tmp_path, pairs=["wide/slim"], methods=["cross_entropy"], seeds=1)) == [
        "students/slim-cross_entropy-seed0"
    ]
    whats = ["--pairs", "--methods", "--seeds"]
    with refused(RecipeError, whats, got=["'wide/narow'", "'kdd'", 0], suggests=["wide/narrow", "kd", "--seeds 2"]):
        assigned(tmp_path, pairs=["wide/narow"], methods=["kdd"], seeds=0)


def test_recipes_of_the_runs(tmp_path):
    recipes = {job.name: job.recipe for job in jobs(assigned(tmp_path))}
    teacher, first, second = (
        recipes[f"grid/{name}"] for name in ("teachers/wide-seed100", "wide-slim/kd-seed0", "wide-slim/kd-seed1")
    )
    assert (teacher.seed, teacher.data_seed, teacher.teacher, teacher.objective.name) == (
        100,
        100,
        None,
        "cross_entropy",
    )
    assert [(recipe.seed, recipe.data_seed) for recipe in (first, second)] == [(0, 0), (1, 1)]
    assert first.teacher.name == str(tmp_path / "grid/teachers/wide-seed100")
    # A pair's settings are its students'.
    assert (teacher.optimizer.lr, first.optimizer.lr) == (0.1, 0.01)
    assert recipes["grid/students/narrow-cross_entropy-seed0"].teacher is None


def test_settings_of_a_method_come_after_those_of_a_pair(tmp_path):
    method = {"objective": "kd", "settings": {"optimizer": {"lr": 0.5, "momentum": 0.5}, "epochs": 12}}
    grid = study(methods={"kd": method})
    (settings,) = {
        (job.recipe.optimizer.lr, job.recipe.optimizer.momentum, job.recipe.epochs)
        for job in jobs(assign(grid, grid, runs=tmp_path))
        if job.method == "kd"
    }
    assert settings == (0.5, 0.5, 12)


def test_a_pretrained_teacher_is_not_trained(tmp_path):
    grid = study(pairs={"r/n": {"teacher": "torchvision:resnet34.IMAGENET1K_V1", "student": "mlp:8"}})
    request = assign(grid, grid, runs=tmp_path)
    assert not [name for name in names(request) if name.startswith("teachers/")]
    (job, *_) = [job for job in jobs(request) if job.method == "kd"]
    assert job.recipe.teacher.name == "torchvision:resnet34.IMAGENET1K_V1"
    assert (job.needs, job.teacher) == (None, None)


def test_a_teacher_may_be_trained_otherwise(tmp_path):
    pair = {"teacher": {"train": {"model": "mlp:16", "epochs": 24, "seed": 3}}, "student": "mlp:8"}
    grid = study(pairs={"a/b": pair})
    (job,) = [job for job in jobs(assign(grid, grid, runs=tmp_path, epochs=120)) if job.method == "teacher"]
    assert job.name == "grid-120epochs/teachers/a-seed3"
    assert (job.recipe.seed, job.recipe.data_seed, job.recipe.epochs) == (3, 100, 12)


def test_runs_that_differ_do_not_share_a_folder(tmp_path):
    # Both students are called narrow; as labels alone teach them, they would be one run.
    pairs = {**STUDY["pairs"], "wider/narrow": {"teacher": "mlp:32", "student": "mlp:6"}}
    grid = study(pairs=pairs)
    with refused(RecipeError, "study", got="grid/students/narrow-cross_entropy-seed0"):
        jobs(assign(grid, grid, runs=tmp_path))


# Fewer epochs


def test_decays_and_warm_ups_are_scaled_with_the_epochs(tmp_path):
    short = assigned(tmp_path, epochs=8)
    for job in jobs(short):
        assert job.recipe.epochs == 8
        assert job.recipe.schedule.milestones == (5, 6, 7)
    assert short.pool == "grid-8epochs"
    assert short.deviations[0] == (
        "epochs: 8 instead of 240; the learning rate decays after 5, 6, 7 instead of 150, 180, 210"
    )


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"name": "step", "every": 30, "warmup": 6}, {"every": 1, "warmup": 0.2}),
        ({"name": "cosine", "warmup": 20}, {"warmup": pytest.approx(20 / 30)}),
        ({"name": "multistep", "milestones": [10, 20, 210]}, {"milestones": (1, 7)}),
    ],
)
def test_every_schedule_is_scaled(schedule, expected):
    short = plan.scaled(Recipe(name="x", student="mlp:8", epochs=240, schedule=schedule), 8 / 240)
    assert {key: getattr(short.schedule, key) for key in expected} == expected


@pytest.mark.parametrize("schedule", ["warm_up", "cosine_warm_up"])
def test_stages_and_weights_in_epochs_are_scaled(tmp_path, schedule):
    weight = {"schedule": schedule, "value": 0.9, "epochs": 60}
    method = {
        "objective": {"kd": {"weight": weight}},
        "settings": {
            "stages": [{"epochs": 120, "schedule": MULTISTEP}, {"objective": {"cross_entropy": {"weight": weight}}}]
        },
    }
    train = {"model": "mlp:16", "objective": {"cross_entropy": {"weight": weight}}}
    grid = study(methods={"kd": method}, pairs={"a/b": {"teacher": {"train": train}, "student": "mlp:8"}})
    request = assign(grid, grid, runs=tmp_path, epochs=24)
    teacher, job, *_ = jobs(request)
    assert teacher.recipe.objective.to_recipe()[0]["cross_entropy"]["weight"]["epochs"] == 6
    (tried,) = dry_run_recipes(request)
    assert tried.training("x").objective == teacher.recipe.objective
    assert job.recipe.stages[1].objective.to_recipe()[0]["cross_entropy"]["weight"]["epochs"] == 6
    assert job.recipe.stages[0].epochs == 12
    assert job.recipe.stages[0].schedule.milestones == (15, 18, 21)
    assert job.recipe.stages[1].epochs is None
    assert job.recipe.objective.to_recipe()[0]["kd"]["weight"]["epochs"] == 6


def test_the_same_number_of_epochs_is_no_departure(tmp_path):
    assert assigned(tmp_path, epochs=240) == assigned(tmp_path)


# Pools and deviations


def overridden(tmp_path, *typed, **options):
    path = tmp_path / "grid.yaml"
    path.write_text(json.dumps(STUDY))
    plain, changed = study_file.read(str(path), typed)
    return assign(plain, changed, runs=tmp_path, **options)


def test_the_pool_is_named_after_what_is_otherwise(tmp_path):
    assert overridden(tmp_path).pool == "grid"
    changed = overridden(tmp_path, "optimizer.lr=0.2")
    assert changed.pool.startswith("grid-")
    assert len(changed.pool) == len("grid-") + 6
    assert overridden(tmp_path, "optimizer.lr=0.2", "device=cpu").pool == changed.pool
    assert overridden(tmp_path, "optimizer.lr=0.3").pool != changed.pool
    assert overridden(tmp_path, "optimizer.lr=0.1").pool == "grid"
    assert overridden(tmp_path, "optimizer.lr=0.2", epochs=8).pool == changed.pool.replace("grid-", "grid-8epochs-")
    assert overridden(tmp_path, "methods.kd.kd.temperature=2").pool != "grid"
    assert overridden(tmp_path, "optimizer.lr=0.2", pool="mine").pool == "mine"
    # How a run is done, how many there are, and where the data lie make no other runs.
    assert overridden(tmp_path, "threads=1", "seeds=5", "title=x", "data.source=hf:a").pool == "grid"
    with refused(RecipeError, "--pool", got="'../x'"):
        overridden(tmp_path, pool="../x")


def test_deviations_are_listed(tmp_path):
    assert overridden(tmp_path).deviations == ()
    assert overridden(tmp_path, "threads=1", pairs=["wide/slim"]).deviations == ()
    request = overridden(tmp_path, "data.source=hf:/home/someone/cifar", "optimizer.lr=0.2", seeds=3)
    assert request.deviations == (
        "data.source: hf:cifar instead of digits",
        "optimizer.lr: 0.2 instead of 0.1",
    )
    assert plan.deviations(request, cells(request)) == [
        "seeds: 3 instead of 2 (cross_entropy, kd)",
        "seeds: 3 instead of 1 (ttm)",
        *request.deviations,
    ]


def test_stages_make_other_runs(tmp_path):
    request = overridden(tmp_path, "stages=[{epochs: 3}, {objective: cross_entropy}]")
    assert request.pool != "grid"
    assert request.deviations == ('stages: [{"epochs": 3}, {"objective": "cross_entropy"}] instead of []',)
    assert overridden(tmp_path, "stages=[]").deviations == ()


def test_the_deviations_are_those_of_the_table_and_not_of_the_last_command(tmp_path):
    many = assigned(tmp_path, pairs=["wide/slim"], methods=["kd"], seeds=5)
    for job in jobs(many)[1:]:
        there(many, job)
    # A study of two runs, done as the study says; but five are there of one pair.
    request = assigned(tmp_path, methods=["kd", "ttm"])
    record = run_study.record(request, cells(request))
    assert record["departures"] == ["seeds: 5 instead of 2 (kd of wide/slim)"]
    request = assigned(tmp_path, pairs=["wide/slim"], methods=["kd"], seeds=1)
    assert run_study.record(request, cells(request))["departures"] == ["seeds: 5 instead of 2"]


def test_epochs_are_listed_once(tmp_path):
    twice = overridden(tmp_path, "epochs=120", epochs=8)
    assert twice.deviations == (
        "epochs: 8 instead of 240; the learning rate decays after 10, 12, 14 instead of 150, 180, 210",
    )
    there_and_back = overridden(tmp_path, "epochs=120", epochs=240)
    assert there_and_back.deviations == ("the learning rate decays after 300, 360, 420 instead of 150, 180, 210",)
    request = overridden(tmp_path, "schedule={name: cosine, warmup: 6}", epochs=120)
    assert request.deviations[0] == "epochs: 120 instead of 240; warm-up 3.0 instead of 0.0"
    assert "schedule.milestones: none instead of [150, 180, 210]" in request.deviations


def test_a_section_that_was_empty_is_no_departure_of_its_own(tmp_path):
    request = overridden(tmp_path, "pairs.wide/narrow.settings.optimizer.lr=0.01", "methods.kd.kd.temperature=2")
    assert request.deviations == (
        "pairs.wide/narrow.settings.optimizer.lr: 0.01 instead of none",
        "methods.kd.objective.kd.temperature: 2 instead of none",
    )
    # An objective without arguments is one all the same.
    assert overridden(tmp_path, "methods.kd=ttm").deviations == (
        "methods.kd.objective.kd: none instead of {}",
        "methods.kd.objective.ttm: {} instead of none",
    )


def test_what_says_how_is_no_part_of_what(tmp_path):
    assert "protocol.device" not in identity(study())
    assert identity(study())["pairs.wide/slim.settings.optimizer.lr"] == 0.01


# What is there


def there(request, job, *, recipe=None, fingerprint="f"):
    folder = request.runs / job.name
    folder.mkdir(parents=True)
    (folder / records.RECIPE).write_text(config.dump(recipe or job.recipe))
    records.write_json(folder / records.MANIFEST, {"status": "finished", "data": {"fingerprint": fingerprint}})


def differences(request, job, *, fingerprint="f"):
    return resume.run_differences(request.runs / job.name, job.recipe, data=fingerprint)


def test_a_run_that_was_stopped_before_its_first_record_differs_in_nothing(tmp_path):
    request = assigned(tmp_path, pairs=["wide/slim"], methods=["kd"], seeds=1)
    job = jobs(request)[-1]
    there(request, job)
    (request.runs / job.name / records.MANIFEST).unlink()
    assert differences(request, job) == []


def test_runs_that_are_there_are_cells_though_nobody_asks_for_them(tmp_path):
    request = assigned(tmp_path, pairs=["wide/slim"], methods=["kd"], seeds=1)
    extra = assigned(tmp_path, pairs=["wide/narrow"], methods=["ttm"], seeds=4)
    there(extra, jobs(extra)[-1])
    rows = [(job.pair, job.method, job.recipe.seed) for job in cells(request)]
    assert rows == [("wide/narrow", "ttm", 3), ("wide/slim", "kd", 0)]
    assert [job.pair for job in jobs(request)] == ["wide/slim", "wide/slim"]


def test_a_run_of_another_recipe_or_other_data_is_reported(tmp_path):
    request = assigned(tmp_path, pairs=["wide/slim"], methods=["kd"], seeds=2)
    _, first, second = jobs(request)
    assert foreign_runs(request, [first, second], lambda _: "f") == {}
    there(request, first)
    assert differences(request, first) == []
    assert differences(request, first, fingerprint=None) == []
    assert differences(request, first, fingerprint="g") == ["the data's fingerprint was f, is g"]
    there(request, second, recipe=second.recipe.model_copy(update={"epochs": 3, "threads": 2}))
    assert differences(request, second) == ["epochs was 3, is 240"]
    (why,) = foreign_runs(request, [first, second], lambda _: "f").values()
    assert why.startswith("expected the run that the study plans, got another in ")
    assert "(epochs was 3, is 240); type --pool NAME" in why


def test_a_pool_may_be_moved(tmp_path):
    before = assigned(tmp_path / "here", pairs=["wide/slim"], methods=["kd"], seeds=1)
    there(before, jobs(before)[1])
    (tmp_path / "here").rename(tmp_path / "there")
    after = assigned(tmp_path / "there", pairs=["wide/slim"], methods=["kd"], seeds=1)
    assert differences(after, jobs(after)[1]) == []
    renamed = assigned(tmp_path / "there", pairs=["wide/slim"], methods=["kd"], seeds=1, pool="other")
    (tmp_path / "there/grid").rename(tmp_path / "there/other")
    assert differences(renamed, jobs(renamed)[1]) == []


def test_a_dry_run_tries_each_method_once_on_each_pair(tmp_path):
    request = assigned(tmp_path, pairs=["wide/narrow", "wider/narrow"], epochs=24)
    recipes = dry_run_recipes(request)
    assert [recipe.name for recipe in recipes] == [
        "grid-24epochs/students/narrow-cross_entropy-seed0",
        "grid-24epochs/wide-narrow/kd-seed0",
        "grid-24epochs/wide-narrow/ttm-seed0",
        "grid-24epochs/students/narrow-cross_entropy-seed0",
        "grid-24epochs/wider-narrow/kd-seed0",
        "grid-24epochs/wider-narrow/ttm-seed0",
    ]
    assert recipes[1].training("x").student.name == "mlp:16"
    assert recipes[1].training("x").epochs == 24


def test_the_record_holds_what_a_table_is_made_of(tmp_path):
    value = {"mean": 70.0, "std": 0.5, "n": 3}
    grid = study(
        pairs={"wide/narrow": {**STUDY["pairs"]["wide/narrow"], "published": 80.5}},
        methods={
            "kd": {"objective": "kd", "published": {"wide/narrow": value}},
            "new": {"objective": "not_built_yet", "published": {"wide/narrow": 71}},
        },
        figures=["entropy"],
        differences={"news": ["new", "kd"]},
        notes=["a note"],
    )
    request = assign(grid, grid, runs=tmp_path, seeds=1)
    assert run_study.record(request, cells(request)) == {
        "schema": 1,
        "name": "grid",
        "title": "",
        "source": "",
        "pairs": ["wide/narrow"],
        "methods": ["kd", "new"],
        "cells": [
            {
                "folder": "../wide-narrow/kd-seed0",
                "pair": "wide/narrow",
                "teacher": "../teachers/wide-seed100",
                "method": "kd",
                "seed": 0,
            }
        ],
        "published": [
            {"pair": "wide/narrow", "method": "teacher", "mean": 80.5, "std": None, "n": None},
            {"pair": "wide/narrow", "method": "kd", **value},
            {"pair": "wide/narrow", "method": "new", "mean": 71.0, "std": None, "n": None},
        ],
        "figures": ["entropy"],
        "costs": None,
        "differences": [{"tests": "news", "first": "new", "second": "kd"}],
        "departures": ["seeds: 1 instead of 2"],
        "missing": {"new": "not built: not_built_yet"},
        "notes": ["a note"],
    }
    assert {*run_study.record(request, []), "search"} == set(records.Study.__annotations__)


def test_a_run_s_recipe_can_be_read_back(tmp_path):
    for job in jobs(assigned(tmp_path, epochs=8)):
        path = Path(tmp_path / "recipe.yaml")
        path.write_text(config.dump(job.recipe))
        assert config.parse(Recipe, config.read(path)) == job.recipe
