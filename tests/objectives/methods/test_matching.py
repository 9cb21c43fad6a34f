"""`matching`: the published objectives are points of it, and its parts multiply."""

import itertools

import pytest
import torch
from tests._helpers.refusals import refused

from tutelage import losses, objectives, targets
from tutelage.errors import InvalidValueError
from tutelage.kernels.divergence import KINDS as FUSED
from tutelage.kernels.divergence import divergence_of
from tutelage.losses.divergences import KINDS
from tutelage.objectives import Apply, BindContext, Objective, WeightedTerm, from_recipe
from tutelage.types import Batch, Outputs


def draw():
    generator = torch.Generator().manual_seed(0)
    z, v = (4 * torch.randn(2, 6, 5, generator=generator)).unbind()
    return z, v, Batch(torch.arange(6), torch.zeros(6, 1), torch.arange(6) % 5)


def value_and_gradient(objective):
    z, v, batch = draw()
    bound = objective.bind(
        BindContext(samples=6, classes=5, labels=batch.labels, teacher_logits=v, teacher_head=(HEAD, None))
    )
    loss = bound(Outputs(z.requires_grad_()), Outputs(v), batch)
    loss.total.backward()
    return loss.total.detach(), z.grad, bound


def reverse(gamma, temperature):
    """The reverse KL as put together by hand."""

    def loss(student_logits, teacher_logits):
        divided = student_logits / temperature
        return temperature**2 * losses.divergence(divided, gamma * teacher_logits, kind="reverse")

    return Objective.of(WeightedTerm("ce", 1.0, Apply(losses.cross_entropy)), WeightedTerm("reverse", 2.0, Apply(loss)))


HEAD = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
"""Weight of the teacher's last layer."""


def typed(kind, parameters):
    """The arguments of `matching` for parameters of a kind of `losses.divergence`."""
    if kind == "skew_reverse" and parameters:  # the parameter is the student's share
        return {"share": 1 - parameters["alpha"]}
    names = {"jensen_shannon": "share", "skew": "share", "alpha_beta": "ab_{}"}
    return {names.get(kind, "{}").format(name): value for name, value in parameters.items()}


POINTS = {
    "kd": (
        objectives.kd(temperature=4.0, weight=0.9),
        {"gamma": 0.25, "temperature": 4, "beta": 0.9, "supervised": 0.1},
    ),
    "kd, weight auto": (objectives.kd(weight="auto"), {"gamma": 0.25, "temperature": 4, "supervised": 0.1}),
    "ttm": (objectives.ttm(gamma=0.3, beta=2), {"gamma": 0.3, "beta": 2}),
    "ttm, all auto": (objectives.ttm(gamma="auto"), {}),
    "wttm": (objectives.wttm(gamma=0.3), {"gamma": 0.3, "weight_by": "power_sum"}),
    "wttm, standardised": (
        objectives.wttm(gamma=0.3, beta=2, logits="standardised"),
        {"gamma": 0.3, "beta": 2, "weight_by": "power_sum", "logits": "standardised"},
    ),
    "wttm, normalised": (
        objectives.wttm(gamma=0.3, normalise="batch"),
        {"gamma": 0.3, "weight_by": "power_sum", "normalise": "batch"},
    ),
    "weighted_kd": (
        objectives.weighted_kd(temperature=2, weight=2),
        {"gamma": 0.5, "temperature": 2, "weight_by": "power_sum", "beta": 2},
    ),
    "transformed_matching": (
        objectives.transformed_matching(transform="rational", weight_by="entropy", weight_of="target", order=0.5),
        {"target": "rational", "weight_by": "entropy", "weight_of": "target", "order": 0.5},
    ),
    "reverse KL": (reverse(1, 1), {"divergence": "reverse", "gamma": 1, "beta": 2}),
    "kd and a Rényi penalty": (
        objectives.kd(temperature=4, weight=2, supervised=1) + objectives.renyi_penalty(weight=-3, order=0.25),
        {
            "gamma": 0.25,
            "temperature": 4,
            "beta": 2,
            "regulariser": "renyi",
            "regulariser_weight": -3,
            "regulariser_order": 0.25,
        },
    ),
    "ttm and a confidence penalty": (
        objectives.ttm(gamma=0.3, beta=2) + objectives.confidence_penalty(weight=0.2),
        {"gamma": 0.3, "beta": 2, "regulariser": "confidence", "regulariser_weight": 0.2},
    ),
}


@pytest.mark.parametrize(("objective", "arguments"), POINTS.values(), ids=POINTS)
def test_a_published_objective_is_a_point_to_the_bit(objective, arguments):
    ours, expected = value_and_gradient(from_recipe({"matching": arguments})), value_and_gradient(objective)
    assert torch.equal(ours[0], expected[0])
    assert torch.equal(ours[1], expected[1])


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("gamma", [0.5, 1.0])
def test_the_reverse_kl_has_a_temperature_and_an_exponent(gamma, temperature):
    ours = objectives.matching(divergence="reverse", gamma=gamma, temperature=temperature, beta=2)
    for value, expected in zip(
        value_and_gradient(ours)[:2], value_and_gradient(reverse(gamma, temperature)), strict=False
    ):
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize(
    ("kind", "mixture"),
    [
        *(("reverse", {}), ("total_variation", {})),
        *(("jensen_shannon", {}), ("jensen_shannon", {"beta": 0.3})),
        *(("skew", {}), ("skew", {"alpha": 0.3})),
        *(("skew_reverse", {}), ("skew_reverse", {"alpha": 0.3})),
        *(("alpha_beta", {}), ("alpha_beta", {"alpha": 0.8, "beta": 0.3})),
        *(("adaptive", {}), ("adaptive", {"mu": 0.8})),
        *(("class_wise", {}), ("wasserstein", {}), ("wasserstein", {"sinkhorn_lambda": 0.2, "sinkhorn_iter": 3})),
    ],
)
@pytest.mark.parametrize("weight_by", ["power_sum", "entropy"])
def test_the_parts_multiply(kind, mixture, weight_by):
    z, v, _ = draw()
    arguments = {"divergence": kind, "target": "logarithm", "weight_by": weight_by} | typed(kind, mixture)
    mixture = mixture | ({"cost": losses.class_cost(HEAD)} if kind == "wasserstein" else {})
    ours = objectives.matching(**arguments, gamma=0.1, temperature=2, beta=3, supervised=0)
    f, log_p = targets.Pointwise("logarithm", gamma=0.1), v.log_softmax(-1)
    values = losses.divergence(z / 2, targets.transform(log_p, f), kind=kind, **mixture)
    expected = 3 * 4 * (targets.SampleWeight(weight_by, transform=f)(log_p) * values).mean()
    torch.testing.assert_close(value_and_gradient(ours)[0], expected)


def test_what_has_a_faster_form_or_reads_top_classes_keeps_it():
    points = {
        name: value_and_gradient(from_recipe({"matching": arguments}))[2] for name, (_, arguments) in POINTS.items()
    }
    fused = {name for name, bound in points.items() if bound.pair}
    assert fused == {
        *("kd", "kd, weight auto", "ttm", "ttm, all auto", "wttm", "weighted_kd", "reverse KL"),
        *("kd and a Rényi penalty", "ttm and a confidence penalty"),
    }
    assert {name for name in fused if not points[name].needs.sparse} == {"reverse KL", "ttm, all auto"}
    # What the kernels have no form for is computed as it is, and from whole rows, whichever class the term is of.
    for kind, gamma in itertools.product(set(KINDS) - set(FUSED) - {"wasserstein"}, (1, 0.5)):
        bound = value_and_gradient(objectives.matching(divergence=kind, gamma=gamma, beta=2))[2]
        assert bound.pair is None or divergence_of(bound.terms["matching"].applied) is None
        assert not bound.needs.sparse
        assert objectives.matching(divergence=kind, gamma=gamma).read_at == {None}
    assert objectives.matching(gamma=0.3, weight_by="power_sum").read_at == {0.3}
    for other in ({"divergence": "reverse", "gamma": 1}, {"divergence": "skew"}, {"weight_by": "entropy"}):
        assert objectives.matching(**other).read_at == {None}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("forward", "wasserstein")])
def test_at_exponent_and_temperature_1_it_is_the_plain_divergence_to_the_bit(kind):
    numbers = {"alpha_beta": {"alpha": 0.8, "beta": 0.3}, "adaptive": {"mu": 0.7}, "skew_reverse": {"alpha": 0.25}}.get(
        kind, {}
    )
    plain = Apply(losses.divergence, {"kind": kind, **numbers})
    expected = Objective.of(WeightedTerm("ce", 1.0, Apply(losses.cross_entropy)), WeightedTerm("d", 2.0, plain))
    ours = objectives.matching(divergence=kind, gamma=1, beta=2, **typed(kind, numbers))
    for value, wanted in zip(value_and_gradient(ours)[:2], value_and_gradient(expected)[:2], strict=True):
        assert torch.equal(value, wanted)


def test_a_transport_reads_the_teacher_s_last_layer():
    objective = objectives.matching(divergence="wasserstein", gamma=1, beta=30, supervised=0)
    assert objective.needs.teacher_head
    value, _, bound = value_and_gradient(objective)
    z, v, _ = draw()
    plain = losses.divergence(z, v, kind="wasserstein", cost=losses.class_cost(HEAD))
    torch.testing.assert_close(value, 30 * plain.mean())
    assert not bound.state_dict()  # the cost is read again
    assert not [*objectives.matching(divergence="alpha_beta", ab_alpha=0.8, gamma=0.5, beta=1).bind().parameters()]
    with refused(InvalidValueError, "context", got="none"):
        objective.bind(BindContext(classes=5))
    v[:, 2] = -torch.inf  # of all 5 classes the head has a row
    found = objectives.matching(divergence="wasserstein").bind(BindContext(teacher_logits=v, teacher_head=(HEAD, None)))
    assert 0 < found.resolved["matching"]["beta"] < 1000
    many = BindContext(teacher_head=(torch.ones(10_001, 1), None))
    with refused(InvalidValueError, "teacher_head", got=10_001, suggests="alpha_beta"):
        objective.bind(many)


@pytest.mark.parametrize(
    ("arguments", "key", "suggests"),
    [
        ({"divergence": "revers"}, "divergence", "did you mean reverse"),
        ({"target": "powr"}, "target", "did you mean power"),
        ({"weight_by": "entropies"}, "weight_by", "did you mean entropy"),
        ({"regulariser": "reny"}, "regulariser", "did you mean renyi"),
        ({"regulariser_weight": 1}, "regulariser_weight", "regulariser=confidence"),
        ({"regulariser_order": 2}, "regulariser_order", "regulariser=renyi"),
        (
            {"regulariser": "renyi", "regulariser_order": 0},
            "regulariser_order",
            "objective.matching.regulariser_order=0.5",
        ),
        ({"share": 0.3}, "share", "divergence=jensen_shannon or skew"),
        ({"divergence": "skew", "share": 1}, "share", "objective.matching.share=0.1"),
        ({"divergence": "skew_reverse", "share": 1}, "share", "objective.matching.share=0.9"),
        ({"ab_alpha": 0.3}, "ab_alpha", "divergence=alpha_beta"),
        ({"divergence": "skew", "ab_beta": 0.3}, "ab_beta", "divergence=alpha_beta"),
        ({"mu": 0.5}, "mu", "divergence=adaptive"),
        ({"divergence": "adaptive", "mu": 1}, "mu", "objective.matching.mu=0.5"),
        ({"sinkhorn_iter": 3}, "sinkhorn_iter", "divergence=wasserstein"),
        ({"divergence": "wasserstein", "sinkhorn_iter": 0.5}, "sinkhorn_iter", "objective.matching.sinkhorn_iter=10"),
        (
            {"divergence": "wasserstein", "sinkhorn_lambda": 0},
            "sinkhorn_lambda",
            "objective.matching.sinkhorn_lambda=0.05",
        ),
        ({"temperature": 0}, "temperature", "objective.matching.temperature=4.0"),
    ],
)
def test_a_wrong_part_is_named_with_what_to_type(arguments, key, suggests):
    with refused(InvalidValueError, f"objective.matching.{key}", suggests=suggests):
        from_recipe({"matching": arguments})
