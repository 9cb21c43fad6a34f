"""Presets that rank the classes or read the logits of regions: their formulas, and regions in whole runs."""

from __future__ import annotations

import copy
import json
from functools import partial

import pytest
import torch
from tests._helpers.fit_cases import Rows, same_bits, samples, seeded, settings, state
from tests._helpers.processes import Shares, processes
from tests._helpers.refusals import refused
from torch import nn
from torch.nn import functional as F

import tutelage
from tutelage import config, losses, models, objectives
from tutelage.config.schema import Recipe
from tutelage.errors import InvalidValueError, RecipeError
from tutelage.modules import Distiller, FrozenTeacher, network_context
from tutelage.objectives import PRESETS, WarmUp, from_recipe
from tutelage.runs import record_teacher
from tutelage.runs.execute import execute
from tutelage.training.checkpoints import Checkpoints, CheckpointSink
from tutelage.training.distributed import accelerator_on
from tutelage.training.loop import fit
from tutelage.types import Batch, Outputs

EVERY = {
    "rld": objectives.rld(weight=1.0),
    "rld standardised": objectives.rld(weight=WarmUp(2.0, 5), alpha_temperature=4, logits="standardised"),
    "ldrld": objectives.ldrld(k=3),
    "sdd": objectives.sdd(),
    "sdd of dkd": objectives.sdd(base="dkd", beta=2, finest=4, weight=WarmUp(1.0, 20), supervised=1),
    "sdd of nkd": objectives.sdd(base="nkd", gamma=2, temperature=1, student_tap="head@1", teacher_tap="head@1"),
}


def test_every_preset_of_this_family_is_tried():
    family = "tutelage.objectives.methods.ranked"
    assert {"ldrld", "sdd"} == {name for name, p in PRESETS.items() if p.build.__module__ == family}


@pytest.mark.parametrize("objective", EVERY.values(), ids=EVERY)
def test_a_recipe_holds_all_of_it(objective):
    assert from_recipe(json.loads(json.dumps(objective.to_recipe(), allow_nan=False))) == objective


@pytest.mark.parametrize("name", ["rld", "ldrld", "sdd"])
def test_a_name_alone_is_enough(name):
    objective = from_recipe(name)
    assert from_recipe(objective.to_recipe()) == objective
    assert objective.supervised
    assert objective.needs.teacher


@pytest.mark.parametrize(
    ("objective", "formula"),
    [
        (
            EVERY["rld"],
            lambda z, v, y: (
                losses.cross_entropy(z, y)
                + losses.rld(z, v, y, alpha=1.0, beta=8.0, temperature=4.0, alpha_temperature=1.0)
            ),
        ),
        (
            objectives.rld(weight=2.0, supervised=0, logits="standardised"),
            lambda z, v, y: (
                2
                * losses.rld(
                    losses.standardise(z),
                    losses.standardise(v),
                    y,
                    alpha=1.0,
                    beta=8.0,
                    temperature=4.0,
                    alpha_temperature=1.0,
                )
            ),
        ),
        (
            objectives.ldrld(),
            lambda z, v, y: losses.cross_entropy(z, y) + losses.ldrld(z, v, k=7, alpha=10.5, beta=7.0, temperature=4.0),
        ),
    ],
)
def test_a_preset_of_logits_is_its_formula(objective, formula):
    z, v = torch.randn(2, 6, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64).unbind()
    batch = Batch(torch.arange(6), torch.zeros(6, 1), torch.arange(6) % 9)
    expected = formula(z, v, batch.labels).mean()
    torch.testing.assert_close(objective.bind()(Outputs(z), Outputs(v), batch).total, expected, rtol=1e-10, atol=1e-12)


def test_published_warm_ups_are_the_defaults():
    assert objectives.rld().weights()["rld"] == objectives.dkd().weights()["dkd"]


@pytest.mark.parametrize(
    ("call", "refusal"),
    [
        (lambda: objectives.rld(alpha_temperature=0), refused(InvalidValueError, "alpha_temperature", got=0)),
        (lambda: objectives.ldrld(k=1), refused(InvalidValueError, "k", got=1)),
        (lambda: objectives.sdd(base="wsld"), refused(InvalidValueError, "base", got="'wsld'")),
        (lambda: objectives.sdd(finest=3), refused(InvalidValueError, "finest", got=3, suggests="finest=4")),
        (lambda: objectives.sdd(finest=0), refused(InvalidValueError, "finest", got=0)),
        (lambda: objectives.sdd(temperature=0), refused(InvalidValueError, "temperature", got=0)),
        (lambda: objectives.sdd(base="dkd", beta=-1), refused(InvalidValueError, "beta", got=-1)),
        (lambda: objectives.sdd(beta=2), refused(InvalidValueError, "beta", got=2, suggests="base=dkd")),
        (lambda: objectives.sdd(base="dkd", gamma=2), refused(InvalidValueError, "gamma", suggests="base=nkd")),
    ],
)
def test_what_does_not_fit_is_refused(call, refusal):
    with refusal:
        call()


# ------------------------------------------------------------------------------------------------ the logits of regions

CLASSES, WHERE = 4, {"student_tap": "head@1", "teacher_tap": "head@1"}


def network(width=5, *, normed=False):
    """A map of 8 x 8 cells behind each of two layers, and a head."""
    body = [nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width) if normed else nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES))


def batch(n=6):
    generator = torch.Generator().manual_seed(3)
    return Batch(torch.arange(n), torch.rand(n, 1, 8, 8, generator=generator), torch.arange(n) % CLASSES)


def pair(objective, *, student=None, teacher=None):
    student, teacher = student or seeded(network), teacher or seeded(lambda: network(7), 1)
    context = network_context(objective, student, teacher, batch().inputs, samples=6, classes=CLASSES)
    return Distiller(student, objective, context), FrozenTeacher(teacher, objective.needs.teacher_taps)


BASES = {
    "kd": lambda z, v, y: losses.kd(z, v, temperature=3.0),
    "dkd": partial(losses.dkd, alpha=1.0, beta=8.0, temperature=3.0),
    "nkd": partial(losses.nkd, gamma=1.5, temperature=3.0),
}


@pytest.mark.parametrize("finest", [1, 2, 4])
@pytest.mark.parametrize("base", BASES)
def test_sdd_is_its_base_on_the_head_of_each_regions_mean(base, finest):
    """Value and gradient, of the head too, are those of pooling the maps first."""
    objective = objectives.sdd(base=base, temperature=3, finest=finest, weight=2.0, supervised=0, **WHERE)
    distiller, teacher = pair(objective)
    given = batch()
    total = distiller(given, teacher(given)).loss.total

    def regions(network):
        maps = network[1](network[0](given.inputs))
        cells = [F.adaptive_avg_pool2d(maps, side).flatten(2) for side in (1, 2, 4)[: finest.bit_length()]]
        return network[4](torch.cat(cells, 2).mT)

    z, v = regions(distiller.student), regions(teacher.network).detach()
    assert z.shape == (6, {1: 1, 2: 5, 4: 21}[finest], CLASSES)
    expected = 2 * losses.sdd(z, v, given.labels, base=BASES[base]).mean()
    torch.testing.assert_close(total, expected)
    weights = list(distiller.student.parameters())
    for ours, theirs in zip(torch.autograd.grad(total, weights), torch.autograd.grad(expected, weights), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for p in teacher.parameters())
    if finest == 1:
        logits = distiller.student(given.inputs), teacher.network(given.inputs)
        torch.testing.assert_close(expected, 2 * BASES[base](*logits, given.labels).mean())


def test_a_grid_that_does_not_divide_the_map_overlaps():
    objective = objectives.sdd(finest=4, supervised=0, weight=1.0, **WHERE)
    distiller, teacher = pair(objective)
    given = batch()._replace(inputs=batch().inputs[..., :7, :5])
    maps = distiller.student[1](distiller.student[0](given.inputs))
    local = distiller.student[4](maps.movedim(1, -1)).movedim(-1, 1)
    cells = [F.adaptive_avg_pool2d(local, side).flatten(2) for side in (1, 2, 4)]
    torch.testing.assert_close(distiller.objective.terms["sdd"]._regions(local), torch.cat(cells, 2).mT)
    assert distiller(given, teacher(given)).loss.total.isfinite()


def test_maps_that_are_too_small_and_networks_without_local_logits_are_refused():
    def small():
        return nn.Sequential(
            nn.Conv2d(1, 5, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, CLASSES)
        )

    objective = objectives.sdd(finest=4, **WHERE)
    with refused(InvalidValueError, "finest", got=4, suggests="finest=2"):
        pair(objective, teacher=seeded(small))
    with refused(InvalidValueError, "finest", got=4, suggests="finest=2"):
        pair(objective, student=seeded(small))
    with refused(InvalidValueError, "context"):
        objective.bind()
    largest = nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(5, CLASSES))
    with refused(InvalidValueError, "tap head@1", suggests="behind a mean"):
        pair(objective, teacher=largest)


def test_a_copied_distiller_reads_its_own_head():
    distiller, teacher = pair(objectives.sdd(supervised=0, **WHERE))
    copied, given = copy.deepcopy(distiller), batch()
    before = distiller(given, teacher(given)).loss.total
    with torch.no_grad():
        copied.student[4].weight.mul_(5)
    assert copied(given, teacher(given)).loss.total != before
    assert distiller(given, teacher(given)).loss.total == before


def fitted(objective, rows, *, folder=None, resume=False, **changes):
    """Fit two epochs with batch norm and momentum; the student, and what was recorded."""
    distiller, teacher = pair(objective, student=seeded(lambda: network(normed=True)))
    sink = CheckpointSink(Checkpoints(folder / "checkpoints"), folder / "best.safetensors", {}) if folder else None
    saved = sink.checkpoints.load() if sink and resume else None
    how = settings(epochs=2, checkpoint_steps=1, **changes)
    records = list(fit(distiller, teacher, rows, how, accelerator=accelerator_on("cpu"), keep=sink, resume=saved))
    return state(distiller), records


def test_it_resumes_to_the_bit(tmp_path):
    inputs, labels = samples(20, shape=(1, 8, 8))
    objective = objectives.sdd(base="dkd", weight=WarmUp(1.0, 2), **WHERE)
    rows = partial(Rows, inputs, labels, batch_size=4)
    wanted, _ = fitted(objective, rows())
    with pytest.raises(KeyboardInterrupt):
        fitted(objective, rows(stop_before=(1, 2)), folder=tmp_path)
    assert same_bits(fitted(objective, rows(), folder=tmp_path, resume=True)[0], wanted)


@pytest.mark.slow
def test_compiled_networks_learn_the_same():
    inputs, labels = samples(20, shape=(1, 8, 8))
    objective, rows = objectives.sdd(finest=4, **WHERE), partial(Rows, inputs, labels, batch_size=4)
    fast = {"compile_teacher": True, "compile_student": True, "gradient_products": False}
    wanted, plain = fitted(objective, rows())
    weights, records = fitted(objective, rows(), **fast)
    assert records[0]["train"]["terms"] == pytest.approx(plain[0]["train"]["terms"], rel=1e-4)
    for name, value in wanted.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-4)


def shared_out(rank, folder):
    inputs, labels = samples(28, shape=(1, 8, 8))
    objective = objectives.sdd(base="dkd", weight=1.0, **WHERE)
    distiller, teacher = pair(objective)
    rows = Shares(inputs, labels, batch_size=7)
    (record,) = fit(distiller, teacher, rows, settings(epochs=1), accelerator=accelerator_on("cpu"))
    torch.save((state(distiller), record["train"]["terms"]), folder / f"{rank}.pt")


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path):
    (tmp_path / "one").mkdir()
    shared_out(0, tmp_path / "one")
    processes(2, shared_out, tmp_path)
    weights, terms = torch.load(tmp_path / "one" / "0.pt", weights_only=True)
    for rank in range(2):
        got, means = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(means, terms, rtol=1e-5, atol=1e-7)
        for name, value in weights.items():
            torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-6)


# ----------------------------------------------------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "teacher"
    how = {"data": {"source": "digits"}, "epochs": 1, "device": "cpu"}
    execute(config.parse(Recipe, {"name": "teacher", "student": "cifar:resnet8", **how}, where="test"), folder)
    return str(folder)


def recipe(teacher, student="cifar:resnet8", **keys):
    how = {"teacher": teacher, "data": {"source": "digits"}, "epochs": 1, "device": "cpu", "objective": "sdd"}
    return config.parse(Recipe, {"name": "regions", "student": student, **how, **keys}, where="test")


def test_a_run_by_name_with_a_live_and_a_recorded_teacher(tmp_path, trained):
    live = execute(recipe(trained), tmp_path / "live")
    recorded = recipe(trained, outputs=str(tmp_path / "outputs"))
    record_teacher.record(recorded)
    from_disk = execute(recorded, tmp_path / "recorded")
    for run in (live, from_disk):
        assert set(run.epochs[0]["train"]["terms"]) == {"ce", "sdd"}
    ours, theirs = (run.epochs[0]["train"]["terms"]["sdd"] for run in (live, from_disk))
    assert ours == pytest.approx(theirs, rel=0.02)  # recorded in float16
    saved, bare = tutelage.load(tmp_path / "live").network.state_dict(), models.create("cifar:resnet8", classes=10)
    assert saved.keys() == bare.network.state_dict().keys()


def test_a_student_that_averages_another_map_is_refused_before_the_run(tmp_path, trained):
    with refused(InvalidValueError, f"tap {objectives.sdd().needs.student_taps[0]}", suggests="type head@relu"):
        execute(recipe(trained, student="cifar:wrn_16_1"), tmp_path / "run")
    with refused(RecipeError, "objective sdd: tap head@nowhere"):
        execute(recipe(trained, objective={"sdd": {"student_tap": "head@nowhere"}}), tmp_path / "unknown")
