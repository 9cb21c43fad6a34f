"""`matching`: the published objectives are points of it, and its parts multiply."""

import pytest
import torch
from tests._helpers.refusals import refused

from tutelage import losses, objectives, targets
from tutelage.errors import InvalidValueError
from tutelage.objectives import Apply, BindContext, Objective, WeightedTerm, from_recipe
from tutelage.types import Batch, Outputs


def draw():
    generator = torch.Generator().manual_seed(0)
    z, v = (4 * torch.randn(2, 6, 5, generator=generator)).unbind()
    return z, v, Batch(torch.arange(6), torch.zeros(6, 1), torch.arange(6) % 5)


def value_and_gradient(objective):
    z, v, batch = draw()
    bound = objective.bind(BindContext(samples=6, classes=5, labels=batch.labels, teacher_logits=v))
    loss = bound(Outputs(z.requires_grad_()), Outputs(v), batch)
    loss.total.backward()
    return loss.total.detach(), z.grad, bound


def reverse(gamma, temperature):
    """The reverse KL as put together by hand."""

    def loss(student_logits, teacher_logits):
        divided = student_logits / temperature
        return temperature**2 * losses.divergence(divided, gamma * teacher_logits, kind="reverse")

    return Objective.of(WeightedTerm("ce", 1.0, Apply(losses.cross_entropy)), WeightedTerm("reverse", 2.0, Apply(loss)))


POINTS = {
    "kd": (
        objectives.kd(temperature=4.0, weight=0.9),
        {"gamma": 0.25, "temperature": 4, "beta": 0.9, "supervised": 0.1},
    ),
    "kd, weight auto": (objectives.kd(weight="auto"), {"gamma": 0.25, "temperature": 4, "supervised": 0.1}),
    "ttm": (objectives.ttm(gamma=0.3, beta=2), {"gamma": 0.3, "beta": 2}),
    "ttm, all auto": (objectives.ttm(), {}),
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
    ],
)
@pytest.mark.parametrize("weight_by", ["power_sum", "entropy"])
def test_the_parts_multiply(kind, mixture, weight_by):
    z, v, _ = draw()
    share = next(iter(mixture.values()), "auto")
    arguments = {"divergence": kind, "target": "logarithm", "weight_by": weight_by, "share": share}
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
        *("kd", "kd, weight auto", "ttm", "wttm", "weighted_kd", "reverse KL"),
        *("kd and a Rényi penalty", "ttm and a confidence penalty"),
    }
    assert {name for name in fused if not points[name].needs.sparse} == {"reverse KL"}
    assert objectives.matching(gamma=0.3, weight_by="power_sum").read_at == {0.3}
    for other in ({"divergence": "reverse", "gamma": 1}, {"divergence": "skew"}, {"weight_by": "entropy"}):
        assert objectives.matching(**other).read_at == {None}


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
        ({"temperature": 0}, "temperature", "objective.matching.temperature=4.0"),
    ],
)
def test_a_wrong_part_is_named_with_what_to_type(arguments, key, suggests):
    with refused(InvalidValueError, f"objective.matching.{key}", suggests=suggests):
        from_recipe({"matching": arguments})
