"""Presets on logits: their formulas, their schedules, standardised logits, a learned temperature."""

from __future__ import annotations

import json

import pytest
import torch
from tests._helpers.fit_cases import Rows, mlp, same_bits, samples, settings, state
from tests._helpers.refusals import refused
from torch import nn

import tutelage
from tutelage import losses, objectives
from tutelage.errors import InvalidTypeError, InvalidValueError
from tutelage.modules import Distiller, FrozenTeacher, network_context
from tutelage.objectives import BindContext, CosineWarmUp, WarmUp, from_recipe
from tutelage.training.checkpoints import Checkpoints, CheckpointSink
from tutelage.training.distributed import accelerator_on
from tutelage.training.loop import fit
from tutelage.types import Batch, Outputs, Progress

PRESETS = {
    "dkd": objectives.dkd(beta=2.0, weight=1.0),
    "nkd": objectives.nkd(),
    "wsld": objectives.wsld(),
    "dist": objectives.dist(),
    "mlkd": objectives.mlkd(),
    "ctkd": objectives.ctkd(reversal=-0.5),
    "teacher_free_kd": objectives.teacher_free_kd(),
    "standardised kd": objectives.kd(temperature=2, weight=9, logits="standardised"),
    "standardised dkd": objectives.dkd(alpha=9, beta=72, temperature=2, logits="standardised"),
    "standardised ttm": objectives.ttm(gamma=0.5, beta=2, logits="standardised"),
    "standardised wttm": objectives.wttm(gamma=0.5, beta=2, logits="standardised", normalise="batch"),
}
every = pytest.mark.parametrize("objective", PRESETS.values(), ids=PRESETS)


def drawn(classes=4):
    generator = torch.Generator().manual_seed(0)
    z, v = torch.randn(2, 6, classes, generator=generator, dtype=torch.float64).unbind()
    return Outputs(z), Outputs(v), Batch(torch.arange(6), torch.zeros(6, 1), torch.arange(6) % classes)


def network(width):
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))


@every
def test_a_recipe_holds_all_of_it(objective):
    read_back = from_recipe(json.loads(json.dumps(objective.to_recipe(), allow_nan=False)))
    assert read_back == objective
    assert read_back.bind()(*drawn()).total == objective.bind()(*drawn()).total


@pytest.mark.parametrize("name", ["ctkd", "dist", "dkd", "mlkd", "nkd", "teacher_free_kd", "tekap", "wsld"])
def test_a_name_alone_is_enough(name):
    objective = from_recipe(name)
    assert from_recipe(objective.to_recipe()) == objective
    assert objective.supervised
    assert objective.needs.teacher == (name != "teacher_free_kd")


@every
def test_it_trains_a_step(objective):
    torch.manual_seed(0)
    student, teacher = network(3), network(5)
    batch = Batch(torch.arange(6), torch.rand(6, 1, 8, 8), torch.tensor([0, 1, 2, 3, -100, 0]))
    distiller = Distiller(
        student, objective, network_context(objective, student, teacher, batch.inputs, samples=6, classes=4)
    )
    frozen = FrozenTeacher(teacher, objective.needs.teacher_taps)
    optimizer = torch.optim.SGD(distiller.parameters(), lr=1e-3)
    before = distiller(batch, frozen(batch)).loss.total
    before.backward()
    assert all(p.grad.isfinite().all() for p in distiller.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    optimizer.step()
    after = distiller(batch, frozen(batch)).loss.total
    # The weight of WSLD has no gradient, so a step down its gradient may lead up.
    assert after < before if "wsld" not in objective.name else after != before


KD_POOL = (2, 3, 4, 5, 6)


@pytest.mark.parametrize(
    ("objective", "formula"),
    [
        (
            objectives.dkd(weight=1.0),
            lambda z, v, y: losses.cross_entropy(z, y) + losses.dkd(z, v, y, alpha=1.0, beta=8.0, temperature=4.0),
        ),
        (
            objectives.nkd(),
            lambda z, v, y: losses.cross_entropy(z, y) + losses.nkd(z, v, y, gamma=3.5, temperature=3.0),
        ),
        (
            objectives.wsld(),
            lambda z, v, y: losses.cross_entropy(z, y) + 2.25 * losses.wsld(z, v, y, temperature=4.0),
        ),
        (
            objectives.dist(),
            lambda z, v, y: losses.cross_entropy(z, y) + losses.dist(z, v, beta=2.0, gamma=2.0, temperature=4.0),
        ),
        (
            objectives.mlkd(instance=2.0, batch=3.0, classes=5.0),
            lambda z, v, y: (
                0.1 * losses.cross_entropy(z, y)
                + sum(
                    2 * losses.kd(z, v, temperature=t)
                    + 3 * losses.mlkd_batch(z, v, temperature=t)
                    + 5 * losses.mlkd_class(z, v, temperature=t)
                    for t in KD_POOL
                )
                / 5
            ),
        ),
        (
            objectives.ctkd(theta=0.0),
            lambda z, v, y: 0.1 * losses.cross_entropy(z, y) + 0.9 * losses.kd(z, v, temperature=11.0),
        ),
        (
            objectives.teacher_free_kd(),
            lambda z, v, y: (
                0.9 * losses.cross_entropy(z, y) + 0.1 * losses.teacher_free_kd(z, y, correct=0.99, temperature=20.0)
            ),
        ),
        (
            PRESETS["standardised kd"],
            lambda z, v, y: (
                0.1 * losses.cross_entropy(z, y)
                + 9 * losses.kd(losses.standardise(z), losses.standardise(v), temperature=2.0)
            ),
        ),
    ],
)
def test_a_preset_is_its_formula(objective, formula):
    student, teacher, batch = drawn()
    expected = formula(student.logits, teacher.logits, batch.labels).mean()
    torch.testing.assert_close(objective.bind()(student, teacher, batch).total, expected, rtol=1e-10, atol=1e-12)


def test_published_schedules_are_the_defaults():
    assert objectives.dkd().weights()["dkd"] == {"schedule": "warm_up", "value": 1.0, "epochs": 20}
    student, teacher, batch = drawn()
    bound = objectives.dkd(supervised=0).bind()
    first, last = (bound(student, teacher, batch, Progress(epoch=e)).total for e in (0, 19))
    torch.testing.assert_close(20 * first, last)
    (written,) = objectives.ctkd().to_recipe()
    assert written["ctkd"]["reversal"] == {"schedule": "cosine_warm_up", "value": -1.0, "epochs": 10}


def test_terms_that_couple_a_batch_and_labels_that_are_read_are_known_before_training():
    assert objectives.dist().needs.coupled
    assert objectives.mlkd().needs.coupled
    assert not objectives.ctkd().needs.coupled
    assert objectives.dkd().needs.labels == objectives.teacher_free_kd().needs.labels == "index"
    assert objectives.nkd().needs.labels == objectives.wsld().needs.labels == "any"


# -------------------------------------------------------------------------------------------------- standardised logits


def test_standardisation_leaves_the_cross_entropy_and_the_outputs_alone():
    student, teacher, batch = drawn()
    raw, standardised = (objectives.kd(logits=name).bind()(student, teacher, batch) for name in ("raw", "standardised"))
    assert raw.parts["ce"] == standardised.parts["ce"]
    assert raw.parts["kd"] != standardised.parts["kd"]
    larger = Outputs(10 * student.logits)
    rescaled = objectives.kd(logits="standardised", supervised=0).bind()(larger, teacher, batch)
    torch.testing.assert_close(rescaled.parts["kd"], standardised.parts["kd"], rtol=1e-5, atol=1e-8)


def test_standardisation_hides_the_exponent_but_not_the_needs():
    assert objectives.kd(temperature=2).target_gamma == 0.5
    assert objectives.kd(temperature=2, logits="standardised").target_gamma is None
    assert PRESETS["standardised wttm"].needs.coupled
    assert PRESETS["standardised dkd"].needs.labels == "index"


def test_a_mean_over_the_training_set_is_that_of_the_standardised_teacher():
    objective = objectives.wttm(gamma=0.5, beta=2, normalise="training", logits="standardised")
    logits = 3 * torch.randn(50, 4, generator=torch.Generator().manual_seed(2))
    weight = (0.5 * losses.standardise(logits).log_softmax(-1)).logsumexp(-1).exp()
    resolved = objective.bind(BindContext(teacher_logits=logits)).resolved
    assert resolved["wttm"]["mean_weight"] == pytest.approx(weight.mean().item(), rel=1e-3)


@pytest.mark.parametrize(
    ("call", "refusal"),
    [
        (
            lambda: objectives.kd(logits="standardized"),
            refused(InvalidValueError, "logits", got="'standardized'", suggests="standardised"),
        ),
        (lambda: objectives.kd(logits=True), refused(InvalidTypeError, "logits", got="True")),
        (
            lambda: objectives.wttm(logits="standardised"),
            refused(InvalidValueError, "beta"),
        ),
        (lambda: objectives.kd(temperature=-1, logits="standardised"), refused(InvalidValueError, "temperature")),
        (lambda: objectives.dkd(alpha=-1), refused(InvalidValueError, "alpha")),
        (
            lambda: objectives.mlkd(instance=0, batch=0, classes=0, supervised=0),
            refused(InvalidValueError, "objective"),
        ),
        (lambda: objectives.ctkd(lowest=0), refused(InvalidValueError, "lowest", got=0)),
        (lambda: objectives.ctkd(span=-1), refused(InvalidValueError, "span", got=-1)),
        (lambda: objectives.teacher_free_kd(correct=1), refused(InvalidValueError, "correct")),
        (lambda: objectives.tekap(temperature=0), refused(InvalidValueError, "temperature", got=0)),
        (lambda: objectives.tekap(share=1), refused(InvalidValueError, "share", got=1, suggests="share=0.1")),
        (lambda: objectives.tekap(perspectives=0), refused(InvalidValueError, "perspectives", got=0)),
        (lambda: objectives.tekap(perturbed=-1), refused(InvalidValueError, "perturbed", got=-1)),
    ],
)
def test_what_does_not_fit_is_refused(call, refusal):
    with refusal:
        call()


# ----------------------------------------------------------------------------------------------- curriculum temperature


def theta_gradient(reversal, epoch=0):
    student, teacher, batch = drawn()
    bound = objectives.ctkd(reversal=reversal, supervised=0, weight=1.0).bind()
    bound(student, teacher, batch, Progress(epoch=epoch)).total.backward()
    (theta,) = bound.parameters()
    return theta.grad.item()


def test_the_temperature_works_against_the_student():
    honest = theta_gradient(1.0)
    assert honest != 0
    assert theta_gradient(-0.5) == pytest.approx(-0.5 * honest)
    assert theta_gradient(0.0) == 0
    assert theta_gradient(CosineWarmUp(-1.0, 2), epoch=0) == pytest.approx(-0.5 * honest)
    assert theta_gradient(WarmUp(-1.0, 4), epoch=9) == pytest.approx(-honest)


def test_theta_is_of_one_run_and_in_its_state():
    objective = objectives.ctkd()
    first, second = objective.bind(), objective.bind()
    assert list(first.state_dict()) == ["terms.ctkd.theta"]
    with torch.no_grad():
        first.terms["ctkd"].theta.add_(2)
    assert second.terms["ctkd"].theta == 1
    second.load_state_dict(first.state_dict())
    assert second.terms["ctkd"].theta == 3


def test_a_run_learns_its_temperature_and_keeps_it_out_of_the_student(tmp_path):
    images = torch.utils.data.TensorDataset(torch.rand(40, 1, 8, 8), torch.arange(40) % 4)
    run = tutelage.distill(
        student=network(3),
        teacher=network(5),
        data=(images, images),
        objective=objectives.ctkd(),
        epochs=2,
        name="curriculum",
        runs=tmp_path,
        weak_teacher=True,
    )
    assert set(run.epochs[0]["train"]["terms"]) == {"ce", "ctkd"}


# ------------------------------------------------------------------------------------------------- noisy perspectives


def test_perspectives_are_drawn_anew_and_repeated_by_the_seed():
    student, teacher, batch = drawn()
    objective = objectives.tekap(perspectives=2, share=0.2, perturbed=0.5, temperature=3.0, weight=0.7, supervised=0.3)
    bound = from_recipe(objective.to_recipe()).bind()
    torch.manual_seed(4)
    first, second = (bound(student, teacher, batch).total for _ in range(2))
    assert first != second
    torch.manual_seed(4)
    noise = torch.randn(2, 6, 4, dtype=torch.float64)
    z, v, y = student.logits, teacher.logits, batch.labels
    matched = losses.kd(z, v, temperature=3.0)
    matched = matched + 0.5 * sum(losses.kd(z, 0.8 * v + 0.2 * each, temperature=3.0) for each in noise)
    torch.testing.assert_close(first, (0.3 * losses.cross_entropy(z, y) + 0.7 * matched).mean())
    torch.manual_seed(4)
    assert first == objective.bind()(student, teacher, batch).total


def test_an_interrupted_run_draws_what_it_would_have_drawn(tmp_path):
    def fitted(name, *, stop=None, resume=False):
        torch.manual_seed(11)
        inputs, labels = samples(48)
        distiller = Distiller(mlp(seed=0), objectives.tekap())
        rows = Rows(inputs, labels, batch_size=10, shuffle=True, stop_before=stop)
        keep = CheckpointSink(Checkpoints(tmp_path / name / "checkpoints"), tmp_path / name / "best.safetensors", {})
        saved = keep.checkpoints.load() if resume else None
        how, teacher = settings(checkpoint_steps=1), FrozenTeacher(mlp(seed=7))
        list(fit(distiller, teacher, rows, how, accelerator=accelerator_on("cpu"), keep=keep, resume=saved))
        return state(distiller)

    whole = fitted("whole")
    with pytest.raises(KeyboardInterrupt):
        fitted("cut", stop=(1, 1))
    assert same_bits(whole, fitted("cut", resume=True))


@pytest.mark.parametrize(
    ("noise", "refusal"),
    [
        (torch.zeros(3, 6, 5), refused(InvalidValueError, "noise", got=(3, 6, 5), suggests="torch.randn(3, 6, 4)")),
        (torch.zeros(6, 4), refused(InvalidValueError, "noise", got=(6, 4))),
        (torch.zeros(3, 6, 4).long(), refused(InvalidTypeError, "noise", got="torch.int64")),
    ],
)
def test_noise_of_another_shape_is_refused(noise, refusal):
    student, teacher, _ = drawn()
    with refusal:
        losses.tekap(student.logits, teacher.logits, noise=noise, temperature=4.0, share=0.1, perturbed=0.8)


# ------------------------------------------------------------------------------ a class that both networks rule out

RULED_OUT = {
    **{name: PRESETS[name] for name in ("dkd", "nkd", "wsld", "ctkd", *(n for n in PRESETS if "standardised" in n))},
    "cross_entropy": objectives.cross_entropy(),
    "confidence_penalty": objectives.confidence_penalty(),
    "kd": objectives.kd(),
    "ttm": objectives.ttm(),
    "wttm": objectives.wttm(),
    "wttm over the batch": objectives.wttm(beta=2, normalise="batch"),
    "wttm over the training set": objectives.wttm(beta=2, normalise="training"),
    **{f"renyi {order}": objectives.renyi_penalty(order=order, weight=1.0) for order in (0.5, 1, 2)},
    **{
        f"{transform} by {weight} of the {of}": objectives.transformed_matching(
            transform=transform, weight_by=weight, weight_of=of
        )
        for transform in ("power", "rational", "logarithm", "complement")
        for weight, of in (("power_sum", "teacher"), ("entropy", "target"), ("one_minus_top", "teacher"))
    },
}


@pytest.mark.parametrize("objective", RULED_OUT.values(), ids=RULED_OUT)
def test_the_value_is_that_without_the_class(objective):
    student, teacher, batch = drawn(classes=6)
    kept, labels = [0, 1, 3, 4, 5], torch.tensor([0, 1, 2, 3, 4, 0])
    computed = []
    for whole in (True, False):
        z, v = student.logits.clone(), teacher.logits.clone()
        if whole:
            z[:, 2] = v[:, 2] = -torch.inf
        else:
            z, v = z[:, kept], v[:, kept]
        z.requires_grad_()
        named = torch.tensor(kept)[labels] if whole else labels
        bound = objective.bind(BindContext(samples=6, classes=v.shape[1], labels=named, teacher_logits=v))
        loss = bound(Outputs(z), Outputs(v), batch._replace(labels=named))
        loss.total.backward()
        computed.append((loss.total, z.grad[:, kept] if whole else z.grad, *(p.grad for p in bound.parameters())))
        if whole:
            assert (z.grad[:, 2] == 0).all()
    for ours, expected in zip(*computed, strict=True):
        torch.testing.assert_close(ours, expected)
        assert ours.isfinite().all()


def test_each_row_is_standardised_over_its_own_classes():
    logits = torch.tensor([[1.0, 2.0, 3.0, -torch.inf], [-torch.inf, 4.0, 6.0, 8.0], [0.0, 1.0, 2.0, 3.0]])
    expected = [[-1, 0, 1, -torch.inf], [-torch.inf, -1, 0, 1], losses.standardise(logits[2]).tolist()]
    torch.testing.assert_close(losses.standardise(logits), torch.tensor(expected))
    alone = losses.standardise(torch.tensor([[-torch.inf, 4.0, -torch.inf]]))
    assert alone.tolist() == [[-torch.inf, 0.0, -torch.inf]]


def test_where_no_class_is_ruled_out_no_bit_differs():
    for dtype in (torch.float32, torch.float64):
        plain = (torch.randn(7, 33, generator=torch.Generator().manual_seed(0)) * 5).to(dtype).requires_grad_()
        ours = plain.detach().clone().requires_grad_()
        value = (plain - plain.mean(-1, keepdim=True)) / (plain.std(-1, keepdim=True) + 1e-7)
        assert torch.equal(losses.standardise(ours), value)
        for computed in (losses.standardise(ours), value):
            (computed * torch.arange(33)).sum().backward()
        assert torch.equal(ours.grad, plain.grad)
