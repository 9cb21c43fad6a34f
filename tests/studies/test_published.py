"""The package's studies: they can be read, expanded, and hold the numbers of the paper."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tutelage.models.sources import cifar
from tutelage.objectives import from_spec
from tutelage.studies import plan, study_file

FACTS = Path(__file__).with_name("paper_tables.json")
"""Figures and settings of arXiv:2402.11148."""
VANILLA_KD = ("vanillakd", "vanillakd-imagenet")
NAMES = {"kd with ce": "kd"}
"""Where the file of facts calls a method otherwise."""


@pytest.fixture(scope="module")
def facts():
    return json.loads(FACTS.read_text())


@pytest.fixture(scope="module")
def studies():
    return {name: study_file.read(name)[0] for name in study_file.names()}


@pytest.fixture(scope="module")
def planned(studies):
    """Each study's runs, all of them."""
    return {name: plan.jobs(assigned(study)) for name, study in studies.items()}


def assigned(study):
    return plan.assign(study, study, runs=Path("runs"))


def test_the_tables_and_figures_are_there(studies):
    assert set(studies) >= {*(f"table{k}" for k in (1, 2, 3, 4, 5, 6, 7, 13)), "figure1", "figure2", "figure3"}
    for name, study in studies.items():
        assert study.name == name
        ours = ("open-questions", "zoo-smoke", "scoreboard", "scoreboard-texts")
        papers = dict.fromkeys(ours, "") | dict.fromkeys(VANILLA_KD, "arXiv:2305.15781")
        assert papers.get(name, "arXiv:2402.11148") in study.source


def test_each_study_becomes_runs_without_a_departure(studies, planned):
    for name, study in studies.items():
        request = assigned(study)
        assert request.deviations == ()
        assert request.pool == study.pool
        assert bool(planned[name]) == (study.figures != ("mappings",))
        missing = [method for method in study.methods.values() if method.missing]
        assert len(request.missing) == len(missing)
        assert all(method.published for method in missing)


def test_the_networks_of_the_cifar_tables_are_built(studies):
    for name in ("table1", "table2", "table3", "table4", "table6", "figure1", "figure2", "figure3", "method-alone"):
        for key, pair in studies[name].pairs.items():
            teacher, student = key.split("/")
            assert (pair.teacher.name, pair.student.name) == (f"cifar:{teacher}", f"cifar:{student}")
            assert {teacher, student} <= set(cifar.NETWORKS)


def test_studies_of_one_pool_plan_equal_runs(planned):
    """Where two studies name one run, it is one run."""
    seen = {}
    for jobs in planned.values():
        for job in jobs:
            first = seen.setdefault(job.name, job)
            assert first.recipe == job.recipe, job.name
    shared = {name for name in seen if name.startswith("cifar100/teachers/")}
    assert "cifar100/teachers/resnet56-seed100" in shared


def test_the_protocol_is_the_paper_s(studies, planned, facts):
    protocol = facts["cifar100"]["protocol"]
    for name in ("table1", "table2", "table3", "table4", "table6", "figure1", "figure2", "figure3", "method-alone"):
        recipe = studies[name].recipe
        assert (recipe.epochs, recipe.batch_size) == (protocol["epochs"], protocol["batch_size"])
        optimizer, schedule = recipe.optimizer, recipe.schedule
        assert (optimizer.lr, optimizer.momentum, optimizer.weight_decay, optimizer.nesterov) == (
            protocol["lr"],
            protocol["momentum"],
            protocol["weight_decay"],
            False,
        )
        assert (list(schedule.milestones), schedule.factor) == (protocol["lr_decay_epochs"], protocol["lr_decay_rate"])
        assert (recipe.data.crop_padding, recipe.data.flip) == (4, True)
        for job in planned[name]:
            student = job.recipe.student.name.removeprefix("cifar:")
            assert job.recipe.optimizer.lr == (protocol["lr_for"].get(student, protocol["lr"])), job.name


def numbers(method, pair):
    value = method.published.get(pair)
    return (value.mean, value.std) if value else None


@pytest.mark.parametrize(("name", "number"), [("table1", "1"), ("table2", "2"), ("table3", "3"), ("table4", "4")])
def test_every_number_of_tables_1_to_4(studies, facts, name, number):
    study, table = studies[name], facts["tables"][number]
    block = facts["cifar100"][table["block"]]
    pairs = [f"{teacher}/{student}" for teacher, student in block["pairs"]]
    assert list(study.pairs) == pairs
    assert list(study.methods) == ["cross_entropy", *table["methods"]]
    same = table["block"] == "same_architecture"
    assert (
        study.seeds
        == facts["cifar100"]["protocol"]["runs_same_architecture" if same else "runs_different_architecture"]
    )
    for index, pair in enumerate(pairs):
        assert study.pairs[pair].published.mean == block["accuracy"]["teacher"][index]["mean"]
        for method in study.methods:
            expected = block["accuracy"]["student" if method == "cross_entropy" else method][index]
            value = study.methods[method].published.get(pair)
            assert (value is None) == (expected is None), (method, pair)
            if value:
                assert (value.mean, value.std) == (expected["mean"], expected["std"]), (method, pair)
                count = 3 if same and "itrd" in method else study.seeds
                assert value.n == (None if method == "cross_entropy" else count)
                if method != "cross_entropy":
                    assert plan.runs_of(study, method) == count
            parameters = block["hyperparameters"].get(method)
            if parameters:
                (arguments,) = [e["wttm" if "+" in method else method] for e in study.methods[method].entry(pair)[:1]]
                assert arguments == parameters[index], (method, pair)


@pytest.mark.parametrize("name", ["table1", "table2", "table3", "table4"])
def test_the_combinations_are_the_paper_s(studies, facts, name):
    combination = facts["cifar100"]["combination"]
    same = name in ("table1", "table2")
    alpha = combination["itrd"]["alpha_it"]["same_architecture" if same else "different_architecture"]
    zero = {"/".join(pair) for pair in combination["itrd"]["beta_mi_zero_for"]}
    methods = studies[name].methods
    for pair in studies[name].pairs:
        for method in set(methods) & {"crd", "wttm+crd"}:
            assert methods[method].entry(pair)[1] == {"crd": {"weight": combination["crd"]["mu"]}}
        for method in set(methods) & {"itrd", "wttm+itrd"}:
            mutual = 0.0 if pair in zero and method == "wttm+itrd" else combination["itrd"]["beta_mi"]
            expected = {"alpha": alpha, "correlation": combination["itrd"]["beta_corr"], "mutual": mutual}
            assert methods[method].entry(pair)[1] == {"itrd": expected}
    if "kd" in methods:
        kd = facts["cifar100"]["kd_baseline"]
        (entry,) = methods["kd"].entry("resnet56/resnet20")
        assert entry == {"kd": {"temperature": kd["temperature"], "weight": kd["lambda"], "supervised": 0.1}}


def test_every_number_of_table_6(studies, facts):
    study, block = studies["table6"], facts["cifar100"]["same_architecture"]
    assert list(study.methods) == ["kd", "wttm without ce"]
    assert study.seeds == 5
    gammas = block["hyperparameters"]["wttm without ce"]
    for name, values in block["without_ce (table 6)"].items():
        method = study.methods[NAMES.get(name, name)]
        for (teacher, student), expected, parameters in zip(block["pairs"], values, gammas, strict=True):
            pair = f"{teacher}/{student}"
            assert numbers(method, pair) == (expected["mean"], expected["std"])
            if name == "wttm without ce":
                assert method.entry(pair) == [{"wttm": {"supervised": 0, "gamma": parameters["gamma"], "beta": 1}}]


def test_every_number_of_table_5(studies, planned, facts):
    study, table = studies["table5"], facts["imagenet"]["table5"]
    assert list(study.methods) == ["cross_entropy", *table["columns"]]
    parameters = list(facts["imagenet"]["hyperparameters"].values())
    for row, arguments in zip(table["rows"], parameters, strict=True):
        pair = f"{row['teacher']}/{row['student']}"
        assert study.pairs[pair].published.mean == row["teacher_top1"]
        assert numbers(study.methods["cross_entropy"], pair) == (row["student_top1"], None)
        for column, value in zip(table["columns"], row["values"], strict=True):
            assert numbers(study.methods[column], pair) == (None if value is None else (value, None))
        assert study.methods["wttm"].entry(pair) == [{"wttm": arguments}]
    assert not any(method.missing for method in study.methods.values())
    assert study.methods["kd-zero"].presets == ["matching"]
    assert any("kd-zero" in note and "Ours is not theirs" in note for note in study.notes)
    jobs = {job.name: job.recipe for job in planned["table5"]}
    first, second = (jobs[f"imagenet/{pair}/wttm-seed0"] for pair in ("resnet34-resnet18", "resnet50-mobilenet_v1"))
    assert (first.batch_size, first.optimizer.lr, first.optimizer.weight_decay) == (256, 0.1, 1e-4)
    assert (second.batch_size, second.optimizer.lr, second.optimizer.weight_decay) == (512, 0.2, 1e-4)
    assert (first.epochs, first.schedule.milestones) == (100, (30, 60, 90))
    assert first.teacher.name == "torchvision:resnet34.IMAGENET1K_V1"


def test_every_number_of_table_7(studies, facts):
    study, table = studies["table7"], facts["imagenet"]["table7"]
    for teacher, row in table["rows"].items():
        pair = f"{teacher}/{table['student']}"
        value = dict(zip(table["columns"], row, strict=True))
        assert study.pairs[pair].published.mean == value.pop("teacher_top1")
        assert {name: numbers(study.methods[name], pair)[0] for name in value} == value
        assert numbers(study.methods["cross_entropy"], pair) == (table["student_top1"], None)
    assert len(study.pairs) == len(table["rows"])
    assert list(study.methods) == ["cross_entropy", *table["columns"][1:]]
    parameters = facts["imagenet"]["hyperparameters"]["resnet18 from any resnet"]
    assert study.methods["wttm"].entry("resnet50/resnet18") == [{"wttm": parameters}]


def test_every_number_of_table_13(studies, facts):
    study, table = studies["table13"], facts["imagenet"]["table13"]
    ((pair, networks),) = study.pairs.items()
    assert networks.published.mean == table["teacher_top1"]
    assert numbers(study.methods["cross_entropy"], pair) == (table["student_top1"], None)
    assert {name: numbers(study.methods[name], pair)[0] for name in table["values"]} == table["values"]
    assert list(study.methods) == ["cross_entropy", *table["values"]]
    recipe = study.recipe
    assert (recipe.batch_size, recipe.epochs, recipe.clip) == (1024, 300, 5)
    assert (recipe.optimizer.name, recipe.optimizer.lr, recipe.optimizer.weight_decay) == ("adamw", 1e-3, 0.05)
    assert (recipe.schedule.warmup, recipe.schedule.final * recipe.optimizer.lr) == (20, pytest.approx(1e-5))
    data = recipe.data
    assert data.interpolation == "bicubic"
    assert any("our reading" in note and "bicubic" in note for note in study.notes)
    assert (data.mixup, data.cutmix, data.random_erasing) == (0.8, 1.0, 0.25)
    assert (data.randaugment.operations, data.randaugment.magnitude, data.randaugment.magnitude_std) == (2, 9, 0.5)


def test_the_figures_runs_are_the_paper_s(studies):
    entries = {name: [m.entry("resnet56/resnet20") for m in studies[name].methods.values()] for name in studies}
    kd = {"temperature": 4, "weight": 0.9, "supervised": 0.1}
    matched = {"gamma": 0.25, "beta": 36}
    assert entries["figure1"][:3] == [
        [{"kd": kd}],
        [{"ttm": matched}],
        [{"wttm": {**matched, "normalise": "training"}}],
    ]
    assert [entry[0][kind]["supervised"] for entry, kind in zip(entries["figure2"], ("ttm", "wttm"), strict=True)] == [
        0,
        0,
    ]
    assert entries["figure3"] == [
        [{"cross_entropy": {}}],
        [{"cross_entropy": {"label_smoothing": 0.5}}],
        [{"kd": {**kd, "temperature": 1}}],
        [{"kd": kd}],
    ]
    kinds = [studies[name].figures for name in ("figure1", "figure2", "figure3")]
    assert kinds == [("entropy",), ("divergence",), ("histogram",)]


def test_the_method_alone_has_the_settings_and_figures_of_table_1(studies, planned):
    study, first = studies["method-alone"], studies["table1"]
    assert list(study.pairs) == ["vgg13/vgg8", "resnet32x4/resnet8x4", "resnet56/resnet20", "wrn_40_2/wrn_16_2"]
    assert study.pairs.items() <= first.pairs.items()
    shared = {job.name: job.recipe for job in planned["table1"]}
    new = {job.method for job in planned["method-alone"] if job.name not in shared}
    assert new == {"kd_matched", "wttm_auto"}
    for name in ("cross_entropy", "kd", "ttm", "wttm"):
        of = first.methods[name].published
        assert study.methods[name].published == {pair: of[pair] for pair in study.pairs}
    for pair in study.pairs:
        matched = study.methods["kd_matched"].pairs[pair]["kd"]["matched_to"]
        assert matched == study.methods["ttm"].pairs[pair] == first.methods["ttm"].pairs[pair]
    assert list(study.differences.values()) == [
        ("kd_matched", "kd"),
        ("ttm", "kd_matched"),
        ("wttm", "ttm"),
        ("wttm_auto", "wttm"),
    ]


def test_vanilla_kd_is_compared_under_both_trainings(planned):
    """Each method of the long training has a row in the short one that differs in the training alone."""
    recipes = {job.name.rpartition("/")[2]: job.recipe for job in planned["vanillakd"]}
    short = {name: recipe for name, recipe in recipes.items() if "-short-" in name}
    assert len(short) == 18
    for name, recipe in short.items():
        long = recipes[name.replace("-short-", "-long-")]
        assert long.objective == recipe.objective
        assert (recipe.epochs, long.epochs) == (240, 2400)
        assert recipe.data.randaugment is None
        assert replace(long.data, randaugment=None, random_erasing=0.0) == recipe.data
        assert long.data.randaugment.magnitude == 7


def test_vanilla_kd_on_imagenet_has_the_settings_of_its_commands(planned):
    recipes = {job.name.rpartition("/")[2]: job.recipe for job in planned["vanillakd-imagenet"]}
    a2, a1 = recipes["kd-A2-seed0"], recipes["kd-A1-seed0"]
    for recipe, epochs, decay, mixup, smoothing in ((a2, 300, 0.02, 0.1, 0.0), (a1, 600, 0.01, 0.2, 0.1)):
        assert (recipe.epochs, recipe.batch_size) == (epochs, 2048)
        assert (recipe.schedule.name, recipe.schedule.warmup) == ("cosine", 5)
        assert (recipe.optimizer.name, recipe.optimizer.lr, recipe.optimizer.weight_decay) == ("timm:lamb", 5e-3, decay)
        data = recipe.data
        assert (data.mixup, data.cutmix, data.test_crop, data.randaugment.magnitude) == (mixup, 1.0, 0.95, 7)
        objective = from_spec(recipe.objective)
        assert objective.weights() == {"ce": 1.0, "kd": 1.0}
        assert objective.target_gamma == 1
        assert f"'label_smoothing': {smoothing}" in str(objective.pieces[0].arguments) or not smoothing
    epochs = sorted(recipe.epochs for name, recipe in recipes.items() if "kd-A1" in name)
    assert epochs == [600, 1200, 4800]
