"""Weights of classes in the cross-entropy with the labels, as part of an objective."""

import pytest
import torch
from tests._helpers.refusals import refused

from tutelage import losses, objectives
from tutelage.errors import InvalidValueError
from tutelage.modules import Distiller
from tutelage.objectives import BindContext
from tutelage.settings.objective import SIGNATURES, read_objective
from tutelage.types import UNLABELLED, Batch, Outputs

WEIGHTS = (0.5, 2.0, 0.0)


def drawn():
    generator = torch.Generator().manual_seed(0)
    z, v = (torch.randn(5, 3, generator=generator) for _ in range(2))
    return z, v, Batch(torch.arange(5), torch.zeros(5, 1), torch.tensor([0, 1, 2, UNLABELLED, 1]))


def parts(objective, z, v, batch):
    return objective.bind(BindContext(classes=3))(Outputs(z), Outputs(v), batch).parts


def test_the_cross_entropy_alone_is_weighted_and_its_mean_is_over_labels():
    z, v, batch = drawn()
    plain = objectives.kd(weight=0.5) + 0.3 * objectives.confidence_penalty()
    weighted = plain.with_class_weights(WEIGHTS)
    before, after = parts(plain, z, v, batch), parts(weighted, z, v, batch)
    each = losses.cross_entropy(z, batch.labels) * torch.tensor([0.5, 2.0, 0.0, 0.0, 2.0])
    torch.testing.assert_close(after["ce"], each.sum() / 4)
    assert {name: after[name] for name in before if name != "ce"} == {k: v for k, v in before.items() if k != "ce"}
    assert (weighted.class_weights, plain.class_weights) == (WEIGHTS, None)


def test_they_are_no_part_of_a_checkpoint_and_move_with_the_module():
    distiller = Distiller(torch.nn.Linear(4, 3), objectives.kd().with_class_weights(WEIGHTS))
    assert set(distiller.state_dict()) == {"student.weight", "student.bias"}
    assert distiller.double().objective.terms["ce"].class_weights.dtype == torch.float64
    assert distiller.objective.resolved == {"ce": {"class_weights": list(WEIGHTS)}}


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        (objectives.kd(supervised=0.0), "nothing to weight"),
        (objectives.fitnet(), "nothing to weight"),
        (objectives.teacher_free_kd(), "data.sampling=balanced"),
    ],
)
def test_an_objective_without_a_cross_entropy_is_refused(objective, said):
    with pytest.raises(InvalidValueError, match=said):
        objective.with_class_weights(WEIGHTS)


@pytest.mark.parametrize("weights", ["balanced", {"a": 2}, [], [1, -1], [0, 0], [float("nan"), 1], None, [True, 1]])
def test_weights_are_numbers_of_which_one_is_above_0(weights):
    with refused(InvalidValueError, "class_weights"):
        objectives.kd().with_class_weights(weights)


def test_there_is_one_for_each_class():
    with refused(InvalidValueError, "class_weights", got=2):
        objectives.kd().with_class_weights([1, 2]).bind(BindContext(classes=3))


def test_a_recipe_holds_them_beside_the_objective():
    with refused(InvalidValueError, "objective", suggests="class_weights"):
        read_objective(objectives.kd().with_class_weights(WEIGHTS), SIGNATURES)
