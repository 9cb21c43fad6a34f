"""A term for each of several teachers."""

import pytest
import torch
from tests._helpers.refusals import refused
from torch import nn

from tutelage import losses, objectives
from tutelage.errors import InvalidValueError
from tutelage.objectives import Apply, BindContext
from tutelage.objectives.objective import Objective
from tutelage.objectives.term import WeightedTerm
from tutelage.types import Batch, Outputs, Requirements

WEIGHTS = {"members.0": 0.7, "members.1": 0.3}


def draw(shape=(6,), classes=5):
    torch.manual_seed(0)
    z, mean, *several = (2 * torch.randn(*shape, classes, dtype=torch.float64) for _ in range(4))
    batch = Batch(torch.arange(shape[0]), torch.zeros(shape), torch.randint(classes, shape))
    return z.requires_grad_(), Outputs(mean, dict(zip(WEIGHTS, several, strict=True))), batch


def value_and_gradient(objective, z, teacher, batch):
    loss = objective.bind()(Outputs(z), teacher, batch)
    return loss, torch.autograd.grad(loss.total, z)[0]


@pytest.mark.parametrize("name", ["kd", "ttm", "wttm", "dkd", "dist"])
def test_a_term_is_the_weighted_mean_over_the_teachers(name):
    beta = {"beta": 2.0} if name.endswith("ttm") else {}
    objective, (z, teacher, batch) = objectives.PRESETS[name].build(**beta), draw()
    loss, gradient = value_and_gradient(objective.per_member(WEIGHTS), z, teacher, batch)
    total, expected = 0.0, torch.zeros_like(z)
    for tap, weight in WEIGHTS.items():
        of_one, own = value_and_gradient(objective, z, Outputs(teacher.taps[tap]), batch)
        total, expected = total + weight * of_one.total, expected + weight * own
    torch.testing.assert_close(loss.total, total)
    torch.testing.assert_close(gradient, expected)
    assert loss.parts.keys() == of_one.parts.keys()
    assert objective.per_member(WEIGHTS).to_recipe() == objective.to_recipe()


def test_at_gamma_one_the_gradient_is_that_of_the_mean_of_probabilities():
    (z, teacher, batch), objective = draw(), objectives.ttm(gamma=1.0, beta=3.0)
    mean = sum(weight * teacher.taps[tap].softmax(-1) for tap, weight in WEIGHTS.items())
    _, of_mean = value_and_gradient(objective, z, Outputs(mean.log()), batch)
    _, of_each = value_and_gradient(objective.per_member(WEIGHTS), z, teacher, batch)
    torch.testing.assert_close(of_each, of_mean)
    flat = objectives.ttm(gamma=0.5, beta=3.0)
    _, of_mean = value_and_gradient(flat, z, Outputs(mean.log()), batch)
    _, of_each = value_and_gradient(flat.per_member(WEIGHTS), z, teacher, batch)
    assert not torch.allclose(of_each, of_mean, rtol=1e-3)


def test_terms_that_couple_positions_see_the_counted_ones_alone():
    z, teacher, batch = draw((3, 4))
    counted = torch.rand(3, 4) < 0.6
    batch = batch._replace(counted=counted, labels=batch.labels.masked_fill(~counted, -100))
    rows = Batch(torch.arange(int(counted.sum())), torch.zeros(0), batch.labels[counted])
    of_rows = Outputs(teacher.logits[counted], {tap: values[counted] for tap, values in teacher.taps.items()})
    objective = objectives.dist().per_member(WEIGHTS)
    loss, _ = value_and_gradient(objective, z, teacher, batch)
    expected, _ = value_and_gradient(objective, z[counted].detach().requires_grad_(), of_rows, rows)
    torch.testing.assert_close(loss.total, expected.total)


def test_an_automatic_weight_is_found_from_the_mean():
    _, teacher, _ = draw()
    context = BindContext(teacher_logits=teacher.logits)
    bound = [each.bind(context) for each in (objectives.wttm(), objectives.wttm().per_member(WEIGHTS))]
    assert bound[0].resolved == bound[1].resolved != {}
    assert bound[1].target_gamma == 0.25
    assert bound[1].pair is None  # nothing fused, which would read the mean's logits


def test_what_reads_no_teacher_stays():
    objective = objectives.cross_entropy()
    assert objective.per_member(WEIGHTS) == objective


@pytest.mark.parametrize(
    ("objective", "got"),
    [
        (objectives.fitnet(), "features"),
        (objectives.srrl(), "last layer"),
        (objectives.wttm(normalise="training"), "statistics on training samples"),
        (objectives.ttm(gamma="auto", beta=2), "statistics on training samples"),
        (objectives.kd() + objectives.crd(), "features"),
    ],
)
def test_what_reads_more_than_logits_is_refused(objective, got):
    with refused(InvalidValueError, got=got, suggests="teacher.combine=probabilities"):
        objective.per_member(WEIGHTS)


class Keeping(nn.Module):
    """A term that owns a buffer, and its own description."""

    needs, target_gamma = Requirements(teacher=True, labels="none"), None

    def bind(self, context):
        return self

    def commit(self, applied):
        """Nothing is kept."""


def test_a_term_with_buffers_is_refused_when_it_is_bound():
    objective = Objective.of(WeightedTerm("keeping", 1.0, Keeping()))
    with refused(InvalidValueError, "objective", got="Keeping"):
        objective.per_member(WEIGHTS).bind()


def test_a_function_of_the_user_s_own_stays_known_as_such():
    def mine(student_logits, teacher_logits):
        return losses.kd(student_logits, teacher_logits, temperature=1.0)

    objective = Objective.of(WeightedTerm("mine", 1.0, Apply(mine))).per_member(WEIGHTS)
    assert "mine" in objective.bind().terms["mine"].user_code
