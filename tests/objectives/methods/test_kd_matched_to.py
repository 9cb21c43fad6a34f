"""KD at the target and the factor of a TTM."""

import pytest
import torch

from tutelage import Batch, Outputs, objectives
from tutelage.errors import InvalidValueError, TutelageError


@pytest.mark.parametrize("gamma", [0.25, 0.75, 2.0])
@pytest.mark.parametrize("scale", [1, 0.5])
def test_ttm_differs_from_the_matched_kd_in_the_renyi_entropy_alone(gamma: float, scale: float) -> None:
    z, v = torch.randn(2, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    batch = Batch(torch.arange(5), z, torch.arange(5))

    def gradient(objective: objectives.Objective) -> torch.Tensor:
        logits = z.clone().requires_grad_()
        return torch.autograd.grad(objective.bind()(Outputs(logits), Outputs(v), batch).total, logits)[0]

    ttm = scale * objectives.ttm(gamma=gamma, beta=3.0, supervised=0.7)
    penalty = objectives.renyi_penalty(weight=scale * 3.0 * (1 / gamma - 1), order=gamma)
    torch.testing.assert_close(gradient(objectives.kd_matched_to(ttm) + penalty), gradient(ttm), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "other", [objectives.kd(), objectives.ttm(), objectives.ttm(beta=1.0) + objectives.kd(supervised=0), "ttm"]
)
def test_anything_but_one_ttm_with_a_weight_is_refused(other: objectives.Objective) -> None:
    with pytest.raises(TutelageError, match=r"ttm|schedule|objective"):
        objectives.kd_matched_to(other)


def test_a_recipe_writes_it_as_what_it_is_matched_to():
    ttm = {"ttm": {"gamma": 0.5, "beta": 2}}
    read = objectives.from_recipe([{"kd": {"matched_to": ttm}, "scale": 0.5}])
    expected = 0.5 * objectives.kd_matched_to(objectives.ttm(gamma=0.5, beta=2))
    assert read == expected
    assert read.to_recipe() == expected.to_recipe()
    assert objectives.from_recipe(read.to_recipe()) == read


@pytest.mark.parametrize(
    "arguments",
    [
        {"matched_to": {"wttm": {"gamma": 0.5, "beta": 2}}},
        {"matched_to": {"ttm": {"gamma": 0.5}}},  # beta is automatic
        {"matched_to": [{"ttm": {"gamma": 0.5, "beta": 2}, "scale": 2}]},
        {"matched_to": {"ttm": {"gamma": 0.5, "beta": 2}}, "temperature": 2},
        {"matched_to": 4},
    ],
)
def test_a_recipe_that_matches_nothing_is_refused(arguments):
    with pytest.raises(InvalidValueError, match=r"matched_to|beta|objective"):
        objectives.from_recipe({"kd": arguments})
