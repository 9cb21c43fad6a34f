"""The presets that match features, on small convolutional networks."""

from __future__ import annotations

import json
import math
import sys

import pytest
import torch
import yaml
from tests._helpers.refusals import refused
from torch import nn

import tutelage
from tutelage import Batch, Distiller, FrozenTeacher, config, losses, models, network_context, objectives, records
from tutelage.cli import app
from tutelage.errors import InvalidTypeError, InvalidValueError
from tutelage.objectives import BindContext
from tutelage.objectives.methods.features import VID
from tutelage.report import html
from tutelage.taps import Taps
from tutelage.types import Outputs

STAGES = tuple(f"card:stage.{i}" for i in (-3, -2, -1))
PRESETS = {
    "fitnet": ["fitnet"],
    "attention_transfer": ["attention_transfer", "attention_transfer_2", "attention_transfer_3"],
    "vid": ["vid", "vid_2", "vid_3"],
    "factor_transfer": ["factor_transfer"],
    "activation_boundary": ["activation_boundary", "activation_boundary_2", "activation_boundary_3"],
    "fsp": ["fsp"],
    "kd_svd": ["kd_svd"],
}
MADE = {name: getattr(objectives, name) for name in PRESETS}


def network(name="cifar:resnet8", seed=0):
    return models.create(name, classes=4, image_size=(16, 16), seed=seed)


def batch_of(n=4):
    inputs = torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return Batch(torch.arange(n), inputs, torch.arange(n) % 4)


def distiller_of(objective, student, teacher):
    torch.manual_seed(0)
    context = network_context(objective, student, teacher, batch_of(2).inputs)
    return Distiller(student, objective, context), FrozenTeacher(teacher, objective.needs.teacher_taps)


@pytest.mark.parametrize("name", PRESETS)
def test_each_binds_and_learns_in_a_few_steps(name):
    objective = MADE[name](weight=1.0)
    student = network(seed=1)
    distiller, teacher = distiller_of(objective, student, network("cifar:resnet14"))
    assert list(distiller.objective.terms) == PRESETS[name]
    assert not objective.needs.coupled
    assert objective.needs.labels == "none"
    optimizer = torch.optim.Adam(distiller.parameters(), lr=3e-3)
    batch, values = batch_of(), []
    for _ in range(6):
        loss = distiller(batch, teacher(batch)).loss.total
        values.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(math.isfinite(value) for value in values)
    assert min(values[1:]) < values[0]
    assert student.network.conv1.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in teacher.parameters())
    bound = list(distiller.objective.parameters())
    assert all(p.grad is not None for p in bound)


@pytest.mark.parametrize("name", PRESETS)
def test_each_reads_as_a_recipe_and_adds_to_another(name):
    objective = objectives.kd() + MADE[name]()
    assert objectives.from_recipe(objective.to_recipe()) == objective
    assert objectives.from_recipe(yaml.safe_load(yaml.dump(objective.to_recipe()))) == objective


@pytest.mark.parametrize("name", ["fitnet", "attention_transfer", "vid", "factor_transfer"])
def test_widths_and_sizes_of_the_two_networks_may_differ(name):
    objective = MADE[name](weight=1.0)
    distiller, teacher = distiller_of(objective, network(), network("cifar:wrn_16_2"))
    batch = batch_of()
    loss = distiller(batch, teacher(batch)).loss.total
    loss.backward()
    assert torch.isfinite(loss)


def features(net, taps, inputs):
    with torch.no_grad():
        return list(Taps(net, taps)(net, inputs)[1].values())


def test_the_value_is_the_sum_over_stages_as_published():
    student, teacher, batch = network(seed=1).eval(), network("cifar:resnet14").eval(), batch_of()
    student_maps, teacher_maps = features(student, STAGES, batch.inputs), features(teacher, STAGES, batch.inputs)
    distiller, frozen = distiller_of(objectives.attention_transfer(), student, teacher)
    expected = sum(
        1000 * losses.attention_transfer(s, t).mean() for s, t in zip(student_maps, teacher_maps, strict=True)
    )
    torch.testing.assert_close(distiller(batch, frozen(batch)).loss.total, expected)


def test_stages_of_activation_boundary_are_halved_from_the_last():
    assert objectives.activation_boundary(weight=2.0).weights() == pytest.approx(
        {"activation_boundary": 0.0015, "activation_boundary_2": 0.003, "activation_boundary_3": 0.006}
    )


def test_activation_boundary_maps_only_where_shapes_differ():
    same, _ = distiller_of(objectives.activation_boundary(), network(), network("cifar:resnet14"))
    assert list(same.objective.parameters()) == []
    wide, _ = distiller_of(objectives.activation_boundary(), network(), network("cifar:resnet8x4"))
    shapes = [tuple(p.shape) for p in wide.objective.parameters() if p.ndim == 4]
    assert shapes == [(64, 16, 1, 1), (128, 32, 1, 1), (256, 64, 1, 1)]


def test_the_hint_is_the_second_stage_of_blocks_behind_a_regressor():
    distiller, _ = distiller_of(objectives.fitnet(), network(), network("cifar:resnet8x4"))
    (regressor,) = distiller.objective.projectors[0]
    assert [type(layer) for layer in regressor] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    assert regressor[0].weight.shape == (128, 32, 1, 1)


def test_vid_starts_at_its_variance_and_trains_it():
    objective = objectives.vid(variance=3.0, epsilon=0.5)
    distiller, teacher = distiller_of(objective, network(), network("cifar:resnet14"))
    term = distiller.objective.terms["vid"]
    torch.testing.assert_close(term.variance, torch.full((16,), 3.0))
    assert [tuple(p.shape) for p in term.regressor.parameters()] == [(16, 16, 1, 1)] * 3
    batch = batch_of()
    distiller(batch, teacher(batch)).loss.total.backward()
    assert term.log_scale.grad.abs().sum() > 0
    with torch.no_grad():
        term.log_scale.fill_(-200.0)
    assert torch.equal(term.variance, torch.full((16,), 0.5))


def test_vid_pools_before_the_regressor():
    objective = objectives.vid(student_taps=("s",), teacher_taps=("t",))
    term = objective.bind(BindContext(student_shapes={"s": (2, 8, 8)}, teacher_shapes={"t": (3, 4, 4)})).terms["vid"]
    student, teacher = torch.randn(5, 2, 8, 8), torch.randn(5, 3, 4, 4)
    logits, batch = torch.zeros(5, 2), Batch(torch.arange(5), torch.zeros(5, 1), torch.zeros(5, dtype=torch.int64))
    values = term(Outputs(logits, {"s": student}), Outputs(logits, {"t": teacher}), batch, None)
    mean = term.regressor(nn.functional.avg_pool2d(student, 2))
    expected = 0.5 * ((mean - teacher).square() / 5 + math.log(5)).mean((1, 2, 3))
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-5)


def test_the_paraphraser_learns_from_its_own_error_alone():
    objective = objectives.factor_transfer(weight=1.0, reconstruction=1.0)
    distiller, teacher = distiller_of(objective, network(seed=1), network("cifar:resnet14"))
    term, batch = distiller.objective.terms["factor_transfer"], batch_of()
    answer = teacher(batch)
    (teacher_map,) = answer.taps.values()
    total = distiller(batch, answer).loss.total
    total.backward()
    learned = [p.grad.clone() for p in (*term.encoder.parameters(), *term.decoder.parameters())]
    term.zero_grad()
    reconstruction = losses.hint(term.decoder(term.encoder(teacher_map)), teacher_map).mean()
    reconstruction.backward()
    for gradient, p in zip(learned, (*term.encoder.parameters(), *term.decoder.parameters()), strict=True):
        torch.testing.assert_close(gradient, p.grad)
    assert total.item() > reconstruction.item()
    assert [p.shape[:2] for p in term.encoder.parameters() if p.ndim == 4] == [(64, 64), (32, 64), (32, 32)]


@pytest.mark.parametrize(
    ("make", "refusal"),
    [
        (
            lambda: objectives.attention_transfer(student_taps=("a", "b")),
            refused(InvalidValueError, "teacher_taps", got=3),
        ),
        (lambda: objectives.attention_transfer(p=1.5), refused(InvalidValueError, "p")),
        (lambda: objectives.attention_transfer(distance="l2"), refused(InvalidValueError, "distance")),
        (lambda: objectives.vid(variance=0), refused(InvalidValueError, "variance", got=0)),
        (lambda: objectives.vid(variance=1e-6), refused(InvalidValueError, "variance", got=1e-06)),
        (lambda: objectives.vid(teacher_taps="a"), refused(InvalidValueError, "teacher_taps", got=1)),
        (lambda: objectives.factor_transfer(rate=0), refused(InvalidValueError, "rate")),
        (lambda: objectives.factor_transfer(reconstruction=0), refused(InvalidValueError, "reconstruction")),
        (lambda: objectives.factor_transfer(norm=0.5), refused(InvalidValueError, "norm")),
        (lambda: objectives.activation_boundary(margin=0), refused(InvalidValueError, "margin")),
        (
            lambda: objectives.activation_boundary(teacher_taps=("a",)),
            refused(InvalidValueError, "teacher_taps", got=1),
        ),
        (lambda: objectives.fsp(student_taps="a", teacher_taps="b"), refused(InvalidValueError, "student_taps")),
        (lambda: objectives.fsp(pool="max"), refused(InvalidValueError, "pool")),
        (lambda: objectives.kd_svd(k=0), refused(InvalidValueError, "k")),
        (lambda: objectives.kd_svd(k=1.5), refused(InvalidTypeError, "k")),
        (lambda: objectives.kd_svd(teacher_taps=("a", "b")), refused(InvalidValueError, "teacher_taps", got=2)),
        (lambda: objectives.fitnet(weight=0), refused(InvalidValueError, "objective")),
    ],
)
def test_bad_arguments_are_refused_at_the_call(make, refusal):
    with refusal:
        make()


def bound(objective, student, teacher):
    needs = objective.needs
    return objective.bind(
        BindContext(
            student_shapes=dict.fromkeys(needs.student_taps, student),
            teacher_shapes=dict.fromkeys(needs.teacher_taps, teacher),
        )
    )


@pytest.mark.parametrize(
    ("objective", "student", "teacher", "refusal"),
    [
        (objectives.fsp(), (4, 8, 8), (5, 8, 8), refused(InvalidValueError, "tap card:stage.-4")),
        (objectives.kd_svd(k=4), (3, 8, 8), (3, 8, 8), refused(InvalidValueError, "k")),
        (objectives.kd_svd(), (8,), (8,), refused(InvalidValueError, "tap card:stage.-3", got="(8,)")),
        (objectives.vid(), (3, 8, 8), (4, 16), refused(InvalidValueError, "tap card:stage.-3", got="(4, 16)")),
        (
            objectives.factor_transfer(rate=0.1),
            (3, 8, 8),
            (4, 8, 8),
            refused(InvalidValueError, "rate"),
        ),
        (objectives.activation_boundary(), (3, 8, 8), (4, 9, 9), refused(InvalidValueError, "projection")),
        (objectives.fitnet(), (16,), (16,), refused(InvalidValueError, "projection")),
        (
            objectives.fitnet(projection="cubic"),
            (3, 8, 8),
            (4, 8, 8),
            refused(InvalidValueError, "projection", got="'cubic'"),
        ),
    ],
)
def test_features_that_do_not_fit_are_refused_at_the_binding(objective, student, teacher, refusal):
    with refusal:
        bound(objective, student, teacher)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(html, "write_report", lambda folder: None)
        return tutelage.train(model="cifar:resnet8", epochs=1, name="teacher", **how(tmp_path_factory.mktemp("runs")))


def how(runs):
    data = {"source": "digits", "labelled": 20}
    return {"data": data, "runs": runs, "device": "cpu", "optimizer": {"name": "sgd", "lr": 0.05}, "threads": 1}


def distill(teacher, runs, **more):
    return tutelage.distill(
        student="cifar:resnet8", teacher=teacher, name="distilled", weak_teacher=True, **how(runs), **more
    )


@pytest.mark.parametrize("first", ["activation_boundary", "fsp"])  # fitnet: below.
def test_two_stages_of_a_recipe_feature_then_logits(first, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(html, "write_report", lambda folder: None)
    stages = [{"objective": first, "epochs": 1}, {"objective": "kd", "epochs": 1}]
    run = distill(teacher, tmp_path, objective="kd", stages=stages, seed=3)
    assert [epoch["stage"] for epoch in run.epochs] == [0, 1]
    assert [set(epoch["train"]["terms"]) for epoch in run.epochs] == [set(PRESETS[first]), {"ce", "kd"}]
    recipe = config.parse(config.Recipe, config.read(run.folder / records.RECIPE))
    assert [fit.objective.name for fit in recipe.fits()] == [first, "kd"]


def test_a_recipe_of_stages_needs_no_objective_of_its_own(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(html, "write_report", lambda folder: None)
    monkeypatch.chdir(tmp_path)
    stages = [{"objective": "fitnet", "epochs": 1}, {"objective": "kd", "epochs": 1}]
    recipe = {"name": "two", "data": "digits", "student": "cifar:resnet8", "teacher": str(teacher.folder)}
    (tmp_path / "two.yaml").write_text(yaml.dump({**recipe, "stages": stages}), encoding="utf-8")
    typed = "tutelage distill two.yaml weak_teacher=true device=cpu threads=1 data.labelled=5"
    monkeypatch.setattr(sys, "argv", typed.split())
    with pytest.raises(SystemExit) as left:
        app.main()
    assert not left.value.code
    metrics = [json.loads(line) for line in (tmp_path / "runs" / "two" / records.METRICS).read_text().splitlines()]
    assert [epoch["stage"] for epoch in metrics] == [0, 1]


def test_weights_behind_a_hint_stay_as_they_are_in_its_stage(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(html, "write_report", lambda folder: None)
    run = distill(teacher, tmp_path, objective="fitnet", epochs=1)
    learned = tutelage.load(run.folder).state_dict()
    fresh = models.create("cifar:resnet8", classes=10, channels=1, image_size=(8, 8), seed=0).state_dict()
    moved = {name for name, value in fresh.items() if not torch.equal(value, learned[name])}
    assert any(name.endswith("layer2.0.conv1.weight") for name in moved)
    assert not any("layer3" in name or "fc" in name for name in moved if name.endswith(("weight", "bias")))


def test_a_term_of_one_pair_refuses_two():
    with refused(InvalidValueError, "student_taps", got=2):
        VID(student_taps=("a", "b"), teacher_taps=("a", "b"))
    with refused(InvalidValueError, "teacher_taps", got=2):
        VID(student_taps=("a",), teacher_taps=("a", "b"))
