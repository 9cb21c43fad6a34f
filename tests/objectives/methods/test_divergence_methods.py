"""Methods on other divergences: each is its formula, and says what it needs."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from tests._helpers.refusals import refused

from tutelage import kernels, losses, objectives
from tutelage.errors import InvalidValueError
from tutelage.kernels.divergence import divergence_of
from tutelage.objectives import PRESETS, BindContext, from_recipe
from tutelage.objectives.methods.divergences import WKD_GAMMA
from tutelage.types import Batch, Outputs, Progress, Sparse

HEAD = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
FORMULAS = {
    "abkd": lambda z, v, y: 32 * losses.divergence(z / 4, v / 4, kind="alpha_beta", alpha=0.8, beta=0.3),
    "abttm": lambda z, v, y: 76 * losses.divergence(z, 0.1 * v, kind="alpha_beta", alpha=0.8, beta=0.3),
    "abdkd": lambda z, v, y: (
        losses.abdkd(z, v, y, alpha=1.0, beta=8.0, ab_alpha=0.8, ab_beta=0.3, temperature=4.0) / 20
    ),
    "akl": lambda z, v, y: losses.divergence(z, v, kind="adaptive"),
    "todi": lambda z, v, y: 0.5 * losses.divergence(z / 2, v / 2, kind="class_wise"),
    "wkd_l": lambda z, v, y: (
        losses.nkd(z, v, y, gamma=0.0, temperature=1.0)
        + 600 * losses.wkd_l(z, v, y, cost=losses.class_cost(HEAD), temperature=8.0)
    ),
}
every = pytest.mark.parametrize("name", FORMULAS)


def draw():
    z, v = 2 * torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return z, v, torch.arange(6) % 5


def bind(objective):
    return objective.bind(BindContext(samples=6, classes=5, teacher_head=(HEAD, None)))


def batch(z, y):
    return Batch(torch.arange(len(z)), torch.zeros(len(z), 1), y)


def test_every_preset_of_this_family_is_tried():
    family = "tutelage.objectives.methods.divergences"
    assert set(FORMULAS) == {name for name, preset in PRESETS.items() if preset.build.__module__ == family}


@every
def test_it_is_its_formula(name):
    z, v, y = draw()
    supervised = 0.5 if name == "todi" else 1.0
    expected = supervised * losses.cross_entropy(z, y) + FORMULAS[name](z, v, y)
    bound = bind(PRESETS[name].build())
    torch.testing.assert_close(bound(Outputs(z), Outputs(v), batch(z, y)).total, expected.mean())


@every
def test_token_by_token_it_is_the_mean_over_tokens(name):
    z, v, y = draw()
    deep = [x.reshape(2, 3, *x.shape[1:]) for x in (z, v, y)]
    bound = bind(PRESETS[name].build())
    flat = bound(Outputs(z), Outputs(v), batch(z, y)).total
    torch.testing.assert_close(bound(Outputs(deep[0]), Outputs(deep[1]), batch(deep[0], deep[2])).total, flat)


@every
def test_a_recipe_holds_all_of_it(name):
    objective = PRESETS[name].build()
    assert from_recipe(json.loads(json.dumps(objective.to_recipe()))) == objective


@every
def test_soft_labels_are_for_those_whose_docstring_says_so(name):
    kinds = {objective.needs.labels for objective in [PRESETS[name].build()]}
    assert kinds == ({"index"} if name in ("abdkd", "wkd_l") else {"any"})
    assert ("no soft labels" in PRESETS[name].build.__doc__) == (kinds == {"index"})


@every
def test_it_reads_whole_rows_and_no_kernel_takes_it_for_another(name):
    """A recorded teacher's top classes say nothing of small probabilities; the fused forms have five kinds."""
    objective = PRESETS[name].build()
    assert not objective.needs.sparse
    assert None in objective.read_at
    bound = bind(objective)
    assert bound.pair is None
    for term in bound.terms.values():
        applied = getattr(term, "applied", None)
        assert applied is None or applied.func is losses.cross_entropy or divergence_of(applied) is None


@pytest.mark.parametrize(
    ("kind", "more"), [("alpha_beta", {"alpha": 0.8}), ("adaptive", {"mu": 0.2}), ("class_wise", {})]
)
def test_the_fused_step_computes_a_kind_that_it_has_no_form_for(kind, more):
    z, v, y = draw()
    loss = partial(losses.divergence, kind=kind, **more)
    values, index = v.topk(3)
    sparse = Sparse(values, index, torch.full((6,), -1.0, dtype=torch.float64), 5)
    dense = torch.full_like(v, -1.0).scatter(-1, index, values)
    for teacher, whole in ((v, v), (sparse, dense)):
        _, ours = kernels.cross_entropy_and(loss, z, teacher, y)
        torch.testing.assert_close(ours, losses.divergence(z, whole, kind=kind, **more))


def test_a_temperature_of_reverse_is_not_lost_in_the_fused_forms():
    assert divergence_of(partial(losses.divergence, kind="reverse")) is not None
    assert divergence_of(partial(losses.divergence, kind="reverse", temperature=2.0)) is None


def test_abls_is_abkd_on_standardised_logits_with_t_squared_in_its_weight():
    z, v, y = draw()
    objective = objectives.abkd(
        temperature=2, ab_alpha=0.9, ab_beta=0.3, weight=36, supervised=0.1, logits="standardised"
    )
    numbers = {"kind": "alpha_beta", "alpha": 0.9, "beta": 0.3}
    matched = 2.0**2 * losses.divergence(losses.standardise(z) / 2, losses.standardise(v) / 2, **numbers)
    expected = 0.1 * losses.cross_entropy(z, y) + 9 * matched
    torch.testing.assert_close(bind(objective)(Outputs(z), Outputs(v), batch(z, y)).total, expected.mean())


def test_abttm_at_exponents_1_and_0_is_ttm():
    z, v, y = draw()
    ours, ttm = objectives.abttm(gamma=0.3, ab_alpha=1, ab_beta=0, weight=2), objectives.ttm(gamma=0.3, beta=2)
    values = [bind(o)(Outputs(z), Outputs(v), batch(z, y)).total for o in (ours, ttm)]
    torch.testing.assert_close(*values)


def test_the_transport_of_wkd_l_fades_from_the_150th_of_240_epochs_on():
    assert objectives.wkd_l().weights()["wkd_l"] == WKD_GAMMA.to_recipe()
    assert [WKD_GAMMA(Progress(fraction=epoch / 240)) for epoch in (0, 149, 195, 240)] == pytest.approx(
        [600, 600, 300, 0]
    )


def test_the_cost_of_wkd_l_is_the_teacher_s_and_is_read_again():
    objective = objectives.wkd_l(sharpen=2.0)
    assert objective.needs.teacher_head
    bound = bind(objective)
    torch.testing.assert_close(bound.terms["wkd_l"].cost, losses.class_cost(HEAD, sharpen=2.0))
    assert not bound.state_dict()
    with refused(InvalidValueError, "context", got="none"):
        objective.bind(BindContext(classes=5))


@pytest.mark.parametrize(
    ("name", "arguments", "what"),
    [
        ("abkd", {"temperature": 0}, "temperature"),
        ("abttm", {"gamma": 0}, "gamma"),
        ("abdkd", {"beta": -1}, "beta"),
        ("akl", {"mu": 1}, "mu"),
        ("todi", {"temperature": -1}, "temperature"),
        ("wkd_l", {"temperature": 0}, "temperature"),
        ("wkd_l", {"sinkhorn_iter": 2.5}, "sinkhorn_iter"),
        ("wkd_l", {"sinkhorn_lambda": 0}, "sinkhorn_lambda"),
        ("wkd_l", {"sharpen": 0}, "sharpen"),
    ],
)
def test_what_does_not_fit_is_refused_at_the_call(name, arguments, what):
    with refused(InvalidValueError, what):
        PRESETS[name].build(**arguments)
