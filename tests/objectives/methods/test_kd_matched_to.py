"""KD at the target, the factor and the sample weights of a TTM or a WTTM."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tutelage import Batch, Outputs, config, objectives, targets
from tutelage.errors import InvalidValueError, TutelageError
from tutelage.objectives import BindContext, Objective

Z, V = torch.randn(2, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
CONTEXT = BindContext(teacher_logits=V.float() + torch.linspace(0, 3, 7))
GAMMAS = (0.25, 0.75, 2.0)
MATCHED = (
    objectives.ttm(gamma=0.3, beta=3.0, supervised=0.7),
    objectives.ttm(gamma=0.3, beta=objectives.Linear(1.0, 3.0), logits="standardised"),
    objectives.ttm(gamma=0.3),
    objectives.wttm(gamma=0.3, beta=3.0, supervised=0.0),
    objectives.wttm(gamma=0.3, normalise="training"),
    objectives.wttm(gamma=0.3, normalise="batch"),
)


def loss_of(objective: Objective, z: Tensor) -> Tensor:
    return objective.bind(CONTEXT)(Outputs(z), Outputs(V), Batch(torch.arange(5), z, torch.arange(5))).total


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("scale", [1, 0.5])
def test_ttm_differs_from_the_matched_kd_in_the_renyi_entropy_alone(gamma: float, scale: float) -> None:
    z = Z.clone().requires_grad_()
    ttm = scale * objectives.ttm(gamma=gamma, beta=3.0, supervised=0.7)
    penalty = objectives.renyi_penalty(weight=scale * 3.0 * (1 / gamma - 1), order=gamma)
    (left,) = torch.autograd.grad(loss_of(objectives.kd_matched_to(ttm) + penalty, z), z)
    (right,) = torch.autograd.grad(loss_of(ttm, z), z)
    torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("normalise", ["none", "batch", "training"])
def test_wttm_differs_from_the_matched_kd_in_weighted_entropies_alone(gamma: float, normalise: str) -> None:
    """In value and gradient: ``-(T - 1) * mean(u * (H_gamma(q) - H(p_gamma)))`` with the weights ``u`` of WTTM."""
    z = Z.clone().requires_grad_()
    wttm = objectives.wttm(gamma=gamma, beta=3.0, supervised=0.7, normalise=normalise)
    u = targets.power_sum(V.log_softmax(-1), gamma=gamma)
    resolved = wttm.bind(CONTEXT).resolved.get("wttm", {})
    u = u / {"none": 1.0, "batch": u.mean(), "training": resolved.get("mean_weight")}[normalise]
    entropies = targets.renyi_entropy(z.log_softmax(-1), order=gamma)
    entropies = entropies - targets.shannon_entropy((gamma * V).log_softmax(-1))
    left = loss_of(objectives.kd_matched_to(wttm), z) - 3.0 * (1 / gamma - 1) * (u * entropies).mean()
    right = loss_of(wttm, z)
    torch.testing.assert_close(left, right, rtol=1e-11, atol=1e-11)
    slopes = [torch.autograd.grad(loss, z)[0] for loss in (left, right)]
    torch.testing.assert_close(*slopes, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("of", [objectives.ttm, objectives.wttm])
def test_an_automatic_weight_is_gamma_times_the_beta_that_is_found(of, scale: float) -> None:
    for gamma in (0.13, 0.3, 0.9):  # at a digit more or less the four digits of beta would not be found
        ttm = scale * of(gamma=gamma)
        (found,) = ttm.bind(CONTEXT).resolved.values()
        (matched,) = objectives.kd_matched_to(ttm).bind(CONTEXT).resolved.values()
        assert matched == {"weight": pytest.approx(found["beta"] * gamma, rel=1e-14)}
        (term, typed) = ({**matched, "temperature": 1 / gamma, "supervised": 1}, objectives.kd_matched_to(ttm))
        build = objectives.kd if of is objectives.ttm else objectives.weighted_kd
        torch.testing.assert_close(loss_of(scale * build(**term), Z), loss_of(typed, Z), rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    "other", [objectives.kd(), objectives.ttm(beta=1.0) + objectives.kd(supervised=0), objectives.dkd(), "ttm"]
)
def test_anything_but_one_ttm_or_wttm_is_refused(other: Objective) -> None:
    with pytest.raises(TutelageError, match=r"one ttm or wttm|an objective"):
        objectives.kd_matched_to(other)


@pytest.mark.parametrize("of", MATCHED, ids=lambda of: str(of.to_recipe()[0]))
def test_a_recipe_writes_it_as_what_it_is_matched_to(of: Objective) -> None:
    read = objectives.from_recipe([{"kd": {"matched_to": of.to_recipe()[0]}, "scale": 0.5}])
    expected = objectives.kd_matched_to(0.5 * of)
    assert read == expected
    assert read.to_recipe() == expected.to_recipe()
    assert objectives.from_recipe(read.to_recipe()) == read


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"kd": {"matched_to": {"dkd": {}}}}, "kd.matched_to: expected one ttm or wttm"),
        ({"kd": {"matched_to": [{"ttm": {"gamma": 0.5}, "scale": 2}]}}, "a scale beside kd"),
        ({"kd": {"matched_to": "ttm", "temperature": 2}}, "matched_to alone, got temperature beside"),
        ({"kd": {"matched_to": 4}}, "kd.matched_to: expected one preset"),
        ({"kd": {"matched_to": {"ttm": {"gama": 1}}}}, "kd.matched_to.ttm.gama: .*did you mean gamma"),
        ({"kd": {"matched_to": {"ttm": {"gamma": 0}}}}, "kd.matched_to.ttm.gamma: expected a number > 0"),
        ({"kd": {"matched_to": {"ttm": {"logits": "standardised"}}}}, "kd.weight: .*standardised, got auto"),
        ({"weighted_kd": {"matched_to": "ttm"}}, "weighted_kd.matched_to: expected an argument of"),
        ({"ttm": {"matched_to": "kd"}}, "ttm.matched_to: expected an argument of ttm"),
    ],
)
def test_a_recipe_that_matches_nothing_is_refused(entry, message: str) -> None:
    with pytest.raises(InvalidValueError, match=rf"objective\..*{message}"):
        objectives.from_recipe(entry)


@pytest.mark.parametrize("written", [True, False])
@pytest.mark.parametrize(("of", "preset"), [("ttm", "kd"), ("wttm", "weighted_kd")])
def test_tokens_ask_for_the_gamma_of_what_it_is_matched_to(of: str, preset: str, written: bool) -> None:
    tokens = {"source": "jsonl:x.jsonl", "text": "text", "tokenizer": {"bpe": 300}, "pack": 16}

    def recipe(**arguments: float) -> config.Recipe:
        made = objectives.kd_matched_to(getattr(objectives, of)(**arguments))
        objective = {"kd": {"matched_to": {of: arguments}}} if written else made
        value = {"name": "x", "data": tokens, "student": "hf:gpt2", "teacher": "runs/x", "objective": objective}
        return config.parse(config.Recipe, value)

    with pytest.raises(InvalidValueError, match=rf"objective\.kd\.matched_to\.{of}\.gamma: .*was typed"):
        recipe(beta=1.0)
    assert recipe(gamma=1.0).objective.name == preset
