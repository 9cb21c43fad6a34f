"""Temperatures and exponents that are schedules of progress."""

import pytest
import torch
from tests._helpers.fit_cases import Rows, mlp, samples, settings, state
from tests._helpers.refusals import refused

from tutelage import losses, objectives
from tutelage.errors import InvalidTypeError, InvalidValueError
from tutelage.modules import Distiller, FrozenTeacher
from tutelage.objectives import Apply, Cosine, Linear, WarmUp
from tutelage.training.distributed import accelerator_on
from tutelage.training.loop import fit
from tutelage.types import Batch, Outputs, Progress

FALLING, RISING = Linear(8.0, 2.0), Linear(0.25, 1.0)
AT = {
    "kd": (objectives.kd(temperature=FALLING), lambda z, v: losses.kd(z, v, temperature=5.0)),
    "ttm": (objectives.ttm(gamma=RISING, beta=2.0), lambda z, v: losses.ttm(z, v, gamma=0.625)),
    "wttm": (objectives.wttm(gamma=RISING, beta=2.0), lambda z, v: losses.wttm(z, v, gamma=0.625)),
}


def draw():
    z, v = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v[0, 1] = -torch.inf
    return Outputs(z.requires_grad_()), Outputs(v), Batch(torch.arange(6), torch.zeros(6, 1), torch.arange(6) % 4)


@pytest.mark.parametrize("name", AT)
def test_it_is_the_loss_at_the_number_of_the_moment(name):
    objective, expected = AT[name]
    student, teacher, batch = draw()
    bound, values = objective.bind(), expected(student.logits, teacher.logits)
    (schedule,) = bound.schedules
    told = Progress(scheduled={schedule: torch.tensor(schedule(Progress(fraction=0.5)), dtype=torch.float64)})
    for progress in (Progress(fraction=0.5), told):
        ours = bound.terms[name](student, teacher, batch, progress)
        torch.testing.assert_close(ours, values, rtol=1e-12, atol=1e-12)
        slopes = [torch.autograd.grad(each.sum(), student.logits, retain_graph=True)[0] for each in (ours, values)]
        torch.testing.assert_close(*slopes, rtol=1e-12, atol=1e-12)
    assert objectives.from_recipe(objective.to_recipe()) == objective
    assert objective.target_gamma is None
    assert objective.read_at == {None}  # no top classes stand for a teacher that is read at many exponents


def test_a_plain_number_stays_a_plain_loss():
    for objective in (objectives.kd(temperature=4), objectives.ttm(beta=1), objectives.wttm(beta=1)):
        assert all(isinstance(part.term, Apply) for part, _ in objective.parts)
        assert objective.bind().pair is not None  # which is computed at once with the cross-entropy
    assert objectives.kd(temperature=4).to_recipe()[0]["kd"]["temperature"] == 4


def test_a_fit_follows_it():
    inputs, labels = samples(40)

    def fitted(temperature):
        torch.manual_seed(1)
        distiller = Distiller(mlp(seed=0), objectives.kd(temperature=temperature))
        rows, teacher = Rows(inputs, labels, batch_size=10), FrozenTeacher(mlp(seed=7))
        list(fit(distiller, teacher, rows, settings(), accelerator=accelerator_on("cpu")))
        return state(distiller)

    constant, moving, still = fitted(4.0), fitted(Cosine(8.0, 1.0)), fitted(Linear(4.0, 4.0))
    for name, value in constant.items():
        torch.testing.assert_close(still[name], value, rtol=1e-5, atol=1e-6)
    assert any((moving[name] - value).abs().max() > 1e-4 for name, value in constant.items())


def test_standardised_logits_take_it_too():
    bound = objectives.kd(temperature=WarmUp(4.0, 2), logits="standardised").bind()
    assert bound.schedules == (WarmUp(4.0, 2),)
    student, teacher, batch = draw()
    assert torch.isfinite(bound(student, teacher._replace(logits=teacher.logits.clamp(min=-9)), batch).total)


@pytest.mark.parametrize(
    ("call", "refusal"),
    [
        (
            lambda: objectives.kd(temperature=Linear(4.0, 0.0)),
            refused(InvalidValueError, "temperature: schedule", got=0.0),
        ),
        (lambda: objectives.kd(temperature={"schedule": "linear"}), refused(InvalidValueError, "temperature")),
        (
            lambda: objectives.kd(temperature=FALLING, weight="auto"),
            refused(InvalidValueError, "weight", got="auto", suggests="weight=0.9"),
        ),
        (lambda: objectives.ttm(gamma=Linear(-1.0, 1.0)), refused(InvalidValueError, "gamma: schedule", got=-1.0)),
        (lambda: objectives.ttm(gamma="flat"), refused(InvalidTypeError, "gamma", got="flat")),
        (
            lambda: objectives.wttm(gamma=RISING, normalise="batch"),
            refused(InvalidValueError, "gamma", suggests="normalise=none"),
        ),
        (lambda: objectives.abttm(gamma=RISING), refused(InvalidValueError, "gamma", suggests="gamma=0.1")),
        (
            lambda: objectives.kd_matched_to(objectives.ttm(gamma=RISING, beta=1.0)),
            refused(InvalidValueError, "gamma"),
        ),
    ],
)
def test_what_is_refused(call, refusal):
    with refusal:
        call()
