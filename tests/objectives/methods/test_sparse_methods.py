"""The objective on a teacher's likeliest classes."""

import pytest
import torch
from tests._helpers.refusals import refused

from tutelage import losses, objectives
from tutelage.errors import InvalidValueError
from tutelage.losses.sparse import RESTS
from tutelage.objectives import from_recipe
from tutelage.types import Batch, Outputs


@pytest.mark.parametrize("rest", RESTS)
def test_the_preset_is_its_formula_and_a_recipe_holds_it(rest):
    generator = torch.Generator().manual_seed(0)
    z, v = torch.randn(2, 6, 9, generator=generator, dtype=torch.float64)
    batch = Batch(torch.arange(6), torch.empty(6, 1), torch.arange(6))
    objective = objectives.top_k(top=3, rest=rest, temperature=2.0, weight=0.5, supervised=0.25)
    total = objective.bind()(Outputs(z), Outputs(v), batch).total
    expected = 0.25 * losses.cross_entropy(z, batch.labels) + 0.5 * losses.top_k(
        z, v, top=3, rest=rest, temperature=2.0
    )
    torch.testing.assert_close(total, expected.mean())
    assert from_recipe(objective.to_recipe()) == objective


def test_it_reads_whole_rows_of_the_teacher():
    """So it is refused for recorded tops, which `kd` at temperature 1 reads."""
    assert objectives.top_k().read_at == {None}
    assert objectives.top_k().target_gamma is None


def test_faults():
    with refused(InvalidValueError, "top", got=0):
        objectives.top_k(top=0)
    with refused(InvalidValueError, "rest", got="tail", suggests="bucket"):
        objectives.top_k(rest="tail")
    with refused(InvalidValueError, "temperature", got=0):
        objectives.top_k(temperature=0)
