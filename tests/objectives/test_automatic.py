"""Numbers found from the teacher's logits on training samples, and matching in general."""

from __future__ import annotations

import json
import math
import pickle
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests._helpers.refusals import refused
from torch import nn

from tutelage import losses, objectives, targets
from tutelage.errors import InvalidValueError
from tutelage.modules import Distiller, network_context
from tutelage.objectives import AUTO, Apply, Automatic, BindContext, Linear, Objective, WeightedTerm, from_recipe
from tutelage.objectives.automatic import FLAT_GAMMA, SHARE, balanced_weight, exponent, gamma, mean_weight
from tutelage.objectives.methods.logits import Matching
from tutelage.settings.weights import scaled
from tutelage.types import Batch, Outputs, Progress, Requirements

CLASSES = 10
quick = settings(max_examples=25, deadline=None, derandomize=True, database=None)
seeds = st.integers(0, 10_000)
ROUNDED = 6e-4  # four significant digits


def drawn(seed=0, samples=200, scale=4.0, classes=CLASSES):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(samples, classes, generator=generator)


def context(seed=0, **how):
    return BindContext(teacher_logits=drawn(seed, **how))


def step(seed=1, n=8):
    z, v = drawn(seed, n).double().requires_grad_(), drawn(seed + 1, n).double()
    return Outputs(z), Outputs(v), Batch(torch.arange(n), torch.zeros(n, 1), torch.arange(n) % CLASSES)


def values(objective, bind_context=None):
    return objective.bind(bind_context or context())(*step()).total


EVERY = {
    "ttm": lambda **how: objectives.ttm(gamma=0.3, **how),
    "wttm": lambda **how: objectives.wttm(gamma=0.3, **how),
    "wttm by batch": lambda **how: objectives.wttm(gamma=0.3, normalise="batch", **how),
    "wttm by training set": lambda **how: objectives.wttm(gamma=0.3, normalise="training", **how),
    "logarithm": lambda **how: objectives.transformed_matching(transform="logarithm", gamma=0.01, **how),
    "flat rational by entropy": lambda **how: objectives.transformed_matching(
        transform="rational", weight_by="entropy", order=2, weight_of="target", **how
    ),
    "complement by doubt": lambda **how: objectives.transformed_matching(
        transform="complement", gamma=0.1, weight_by="one_minus_top", normalise="training", **how
    ),
}
every = pytest.mark.parametrize("name", EVERY)


# ----------------------------------------------------------------------------------------------------------- the weight


@every
@quick
@given(seed=seeds, scale=st.floats(0.5, 20))
def test_an_automatic_beta_makes_the_first_gradient_a_fixed_share_of_cross_entropy_s(name, seed, scale):
    """Measured on a uniform student by autograd: the parts' gradients per sample."""
    logits = drawn(seed, 50, scale)
    bound = EVERY[name](beta="auto").bind(BindContext(teacher_logits=logits))
    batch = Batch(torch.arange(50), torch.zeros(50, 1), torch.arange(50) % CLASSES)
    size = {}
    for part, module in bound.terms.items():
        z = torch.zeros(50, CLASSES, dtype=torch.float64, requires_grad=True)
        term = module(Outputs(z), Outputs(logits.double()), batch, Progress())
        weight = bound._weights[part]
        (gradient,) = torch.autograd.grad(weight * term.sum(), z)
        size[part] = gradient.norm(dim=-1).mean().item()
    match = next(part for part in size if part != "ce")
    assert size["ce"] == pytest.approx(math.sqrt(1 - 1 / CLASSES), rel=1e-12)
    assert size[match] == pytest.approx(SHARE * size["ce"], rel=ROUNDED)


@quick
@given(seeds, st.floats(0.05, 1.0))
def test_an_automatic_beta_is_its_formula(seed, gamma):
    v = drawn(seed).double()
    apart = (torch.softmax(gamma * v, -1) - 1 / CLASSES).norm(dim=-1)
    u = targets.power_sum(torch.log_softmax(v, -1), gamma=gamma)
    for name, weight in {"ttm": torch.ones(200).double(), "wttm": u}.items():
        bound = objectives.PRESETS[name].build(gamma=gamma).bind(context(seed))
        expected = SHARE * math.sqrt(1 - 1 / CLASSES) / (weight * apart).mean().item()
        assert bound.resolved == {name: {"beta": pytest.approx(expected, rel=ROUNDED)}}


@every
@pytest.mark.parametrize("shift", [-50.0, 3.0])
def test_a_shift_of_the_teacher_s_logits_changes_nothing(name, shift):
    objective = EVERY[name](beta="auto")
    shifts = shift * torch.rand(200, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    logits = drawn().double()
    original, shifted = (objective.bind(BindContext(teacher_logits=v)).resolved for v in (logits, logits + shifts))
    for part, numbers in original.items():
        assert shifted[part] == pytest.approx(numbers, rel=2 * ROUNDED)


@every
def test_what_was_found_typed_in_place_of_auto_is_the_same_objective(name):
    automatic = EVERY[name](beta="auto")
    ((part, numbers),) = automatic.bind(context()).resolved.items()
    assert float(f"{numbers['beta']:.4g}") == numbers["beta"]
    typed = EVERY[name](beta=numbers["beta"])
    assert torch.equal(values(typed), values(automatic))
    if "gamma" in numbers:
        arguments = dict(typed.pieces[0].arguments) | {"gamma": numbers["gamma"]}
        assert torch.equal(values(objectives.PRESETS[part].build(**arguments)), values(automatic))


@every
def test_binding_twice_finds_the_same_numbers_to_the_bit(name):
    objective = EVERY[name](beta="auto")
    first, second = (objective.bind(context()).resolved for _ in range(2))
    assert first == second
    read_back = from_recipe(json.loads(json.dumps(objective.to_recipe())))
    assert read_back == objective
    assert read_back.bind(context()).resolved == first


def test_the_share_counts_the_cross_entropy_as_one_and_scales_scale():
    plain = objectives.ttm(gamma=0.3).bind(context()).resolved
    assert objectives.ttm(gamma=0.3, supervised=0.1).bind(context()).resolved == plain
    assert (0.5 * objectives.ttm(gamma=0.3)).bind(context()).resolved == plain
    torch.testing.assert_close(values(0.5 * objectives.ttm(gamma=0.3)), 0.5 * values(objectives.ttm(gamma=0.3)))


def test_an_automatic_weight_inside_a_scaled_preset_is_scaled():
    half = 0.5 * objectives.ttm(gamma=0.3)
    inner = Objective.of(*(WeightedTerm(part.name, weight, part.term) for part, weight in objective_of(half)))
    assert inner.weights() == {"ce": 0.5, "ttm": "0.5 * auto"}
    torch.testing.assert_close(values(inner), values(half))


def objective_of(objective):
    for part, scale in objective.parts:
        yield part, scaled(part.weight, scale)


def test_every_automatic_term_is_recorded_by_its_own_name():
    both = objectives.ttm(gamma=0.3) + objectives.ttm(gamma=0.1, supervised=0) + objectives.confidence_penalty()
    resolved = both.bind(context()).resolved
    assert list(resolved) == ["ttm", "ttm_2"]
    assert resolved["ttm_2"]["beta"] > resolved["ttm"]["beta"]


def test_an_objective_that_leaves_nothing_open_finds_nothing_and_needs_nothing():
    for objective in (objectives.kd(), objectives.wttm(beta=1.5), objectives.ttm(beta=Linear(1, 0))):
        assert objective.bind().resolved == {}
        assert not objective.needs.teacher_statistics


@pytest.mark.parametrize("digits", [1e-3, 1.0, 1e3])
def test_large_sets_are_worked_through_in_pieces(digits):
    """5000 rows are several pieces; a repeated set has the same means."""
    few = digits * drawn(samples=50)
    once, many = (BindContext(teacher_logits=v) for v in (few, few.repeat(100, 1)))
    for objective in (
        objectives.ttm(gamma=0.3),
        objectives.wttm(normalise="training"),
        objectives.wttm(normalise="batch"),
    ):
        numbers, repeated = (objective.bind(bind_context).resolved for bind_context in (once, many))
        assert {k: pytest.approx(v, rel=2 * ROUNDED) for k, v in numbers.items()} == repeated


# ------------------------------------------------------------------------------------------------------------- the dial


def information(log_p, gamma):
    """How much a target says, in nats, from its definition: ``mean KL(p_gamma || 1/K)``."""
    p = log_p.exp() ** gamma
    p = p / p.sum(-1, keepdim=True)
    return (p * (p * p.shape[-1]).log()).sum(-1).mean().item()


@quick
@given(seed=seeds, scale=st.floats(3.0, 12.0), classes=st.integers(2, 50))
def test_an_automatic_gamma_leaves_an_untrained_student_a_bit_away(seed, scale, classes):
    log_p = drawn(seed, 60, scale, classes).double().log_softmax(-1)
    gamma = exponent(log_p)
    assert float(f"{gamma:.2g}") == gamma <= 1
    wanted = min(math.log(2), math.log(classes) / 2)
    if gamma == 1:
        assert information(log_p, 1.0) < 1.05 * wanted
    else:  # two digits
        assert information(log_p, 0.94 * gamma) < wanted < information(log_p, 1.06 * gamma)


@pytest.mark.parametrize("classes", [3, 10, 100])
def test_gamma_of_a_teacher_that_is_sure_of_one_class_is_its_formula(classes):
    log_p = torch.full((classes, classes), -20.0).fill_diagonal_(0.0).double().log_softmax(-1)
    gamma, wanted = exponent(log_p), min(math.log(2), math.log(classes) / 2)
    top = math.exp(20 * gamma) / (math.exp(20 * gamma) + classes - 1)
    rest = (1 - top) / (classes - 1)
    said = math.log(classes) + top * math.log(top) + (1 - top) * math.log(rest)
    assert said == pytest.approx(wanted, rel=0.1)  # two digits


def test_an_automatic_gamma_scales_with_the_teacher_s_logits_and_forgets_their_order():
    v = drawn(scale=8.0).double()
    gamma = exponent(v.log_softmax(-1))
    assert exponent((2 * v).log_softmax(-1)) == pytest.approx(gamma / 2, abs=0.006)
    assert exponent(v.flip(0).flip(1).log_softmax(-1)) == exponent((v + 7).log_softmax(-1)) == gamma
    assert exponent((v / 100).log_softmax(-1)) == 1.0 == exponent(torch.zeros(5, 4).log_softmax(-1))


def test_tokens_are_matched_as_the_teacher_gives_them():
    logits = drawn(scale=8.0)
    for objective in (objectives.ttm(gamma="auto"), objectives.matching(), objectives.kd_matched_to(AUTOMATIC["ttm"])):
        bound = objective.bind(BindContext(teacher_logits=logits, per_token=True))
        assert bound.target_gamma == 1
        known = objective.for_tokens()
        assert known.read_at == {1.0}  # before a teacher is there
        assert known.bind(BindContext(teacher_logits=logits)).resolved == bound.resolved
        assert known.to_recipe() == objective.to_recipe()
    standardised = objectives.ttm(gamma="auto", beta=1, logits="standardised").for_tokens()
    assert not standardised.needs.teacher_statistics
    assert standardised.bind().resolved == {"ttm": {"gamma": 1.0}}
    each = objectives.ttm(gamma="auto", beta=1).for_tokens().per_member({"first": 0.5, "second": 0.5})
    assert each.bind().resolved == {"ttm": {"gamma": 1.0}}  # without statistics of each teacher
    tokens = BindContext(teacher_logits=logits, per_token=True)
    other = objectives.transformed_matching(transform="logarithm", beta=1).bind(tokens)
    assert other.resolved == {"transformed_matching": {"gamma": 1.0}}


AUTOMATIC = {
    "ttm": objectives.ttm(gamma="auto"),
    "wttm": objectives.wttm(gamma="auto"),
    "wttm by training set": objectives.wttm(gamma="auto", normalise="training"),
    "transformed": objectives.transformed_matching(),
    "kd": objectives.kd(temperature="auto", weight="auto"),
    "kd of a weight": objectives.kd(temperature="auto"),
    "weighted kd": objectives.weighted_kd(temperature="auto", normalise="batch"),
    "matching": objectives.matching(weight_by="power_sum"),
}


@pytest.mark.parametrize("name", AUTOMATIC)
def test_an_automatic_gamma_typed_is_the_same_objective(name):
    objective, few = AUTOMATIC[name], context(scale=8.0)
    assert objective.needs.teacher_statistics
    assert objective.target_gamma is None
    assert objective.read_at - {None} == set()  # before it is found, the top classes are not enough
    bound = objective.bind(few)
    (numbers,) = bound.resolved.values()
    (piece,) = objective.pieces
    given = {key: value for key, value in numbers.items() if key != "mean_weight"}
    typed = objectives.PRESETS[piece.preset].build(**{**piece.arguments, **given})
    gamma = exponent(few.teacher_logits.double().log_softmax(-1))
    assert 0 < gamma < 1
    assert typed.bind(few).target_gamma == bound.target_gamma == pytest.approx(gamma)
    assert torch.equal(values(typed, few), values(objective, few))
    assert bound.pair == typed.bind(few).pair  # it has the faster forms of the loss that it is
    assert from_recipe(json.loads(json.dumps(objective.to_recipe()))) == objective


def test_every_automatic_temperature_has_the_faster_form_of_kd():
    for typed in (number / 100 for number in range(1, 100)):  # 1 / (1 / 0.41) is not 0.41
        assert isinstance(Matching(gamma=typed, temperature=1 / typed).simplest(), Apply)


def test_kd_is_matched_to_an_automatic_ttm():
    for name in ("ttm", "wttm"):
        kd, ttm, few = objectives.kd_matched_to(AUTOMATIC[name]), AUTOMATIC[name], context(scale=8.0)
        (of_kd,), (of_ttm,) = (objective.bind(few).resolved.values() for objective in (kd, ttm))
        assert of_kd["temperature"] == 1 / of_ttm["gamma"]
        assert of_kd["weight"] == pytest.approx(of_ttm["beta"] * of_ttm["gamma"], rel=1e-9)
        assert from_recipe({"kd": {"matched_to": ttm.to_recipe()[0]}}) == kd
    with refused(InvalidValueError, "beta", got=2.0, suggests="beta=auto"):
        objectives.kd_matched_to(objectives.ttm(gamma="auto", beta=2.0))


@pytest.mark.parametrize("share", [0.01, 0.25, 0.5])
def test_with_few_labels_an_automatic_beta_grows_as_the_noise_of_cross_entropy(share):
    samples = 200
    labels = torch.full((samples,), -100)
    labels[: int(share * samples)] = 0
    of_all, of_few = (
        objectives.wttm().bind(replace(context(), labels=labels)).resolved["wttm"]["beta"]
        for labels in (torch.zeros(samples, dtype=torch.int64), labels)
    )
    assert of_few == pytest.approx(of_all / share**0.5, rel=2 * ROUNDED)
    assert of_all == objectives.wttm().bind(context()).resolved["wttm"]["beta"]


def test_samples_without_a_label_count_as_often_as_an_epoch_has_them():
    labels = torch.full((1000,), -100)
    labels[:50] = 0
    of_all = objectives.ttm().bind(context()).resolved["ttm"]["beta"]
    of_few = objectives.ttm().bind(replace(context(), labels=labels, per_epoch=200)).resolved["ttm"]["beta"]
    assert of_few == pytest.approx(2 * of_all, rel=2 * ROUNDED)


@pytest.mark.parametrize(
    "labels", [torch.full((4,), -100), torch.zeros(4, 0), torch.zeros(4, 3), torch.full((4, 2), -100)]
)
def test_labels_that_are_not_one_class_a_sample_change_no_automatic_beta(labels):
    given = replace(context(), labels=labels)
    assert objectives.ttm().bind(given).resolved == objectives.ttm().bind(context()).resolved


@pytest.mark.parametrize("name", sorted(set(targets.TRANSFORMS) - {"power"}))
@quick
@given(seed=seeds, scale=st.floats(1.0, 8.0))
def test_an_automatic_gamma_of_another_transform_is_as_flat_as_a_temperature_of_four(name, seed, scale):
    bind_context = context(seed, scale=scale)
    log_p = torch.log_softmax(bind_context.teacher_logits.double(), -1)
    pointwise = targets.Pointwise(name, gamma=gamma(name, bind_context)), targets.Pointwise("power", gamma=FLAT_GAMMA)
    entropies = [targets.shannon_entropy(targets.transform(log_p, f)).mean().item() for f in pointwise]
    assert entropies[0] == pytest.approx(entropies[1], rel=1e-3)


def test_only_a_power_is_matched_at_a_target_gamma():
    assert objectives.transformed_matching(gamma=0.4, beta=1).bind().target_gamma == 0.4
    assert objectives.wttm(gamma=0.4, beta=1, normalise="batch").bind().target_gamma == 0.4
    assert objectives.transformed_matching(transform="rational", gamma=0.4, beta=1).bind().target_gamma is None


# ------------------------------------------------------------------------------------------------- matching in general


@quick
@given(seeds, st.floats(0.05, 1.0))
def test_ttm_and_wttm_are_cases(seed, gamma):
    bind_context = context(seed)
    general = objectives.transformed_matching
    for special, same in [
        (objectives.ttm(gamma=gamma, beta=2), general(gamma=gamma, beta=2)),
        (objectives.wttm(gamma=gamma, beta=2), general(gamma=gamma, beta=2, weight_by="power_sum")),
        (objectives.wttm(gamma=gamma), general(gamma=gamma, weight_by="power_sum")),
        (
            objectives.wttm(gamma=gamma, beta=2, normalise="training"),
            general(gamma=gamma, beta=2, weight_by="power_sum", normalise="training"),
        ),
    ]:
        torch.testing.assert_close(values(special, bind_context), values(same, bind_context), rtol=1e-9, atol=1e-9)


def test_weights_may_have_mean_one_over_the_training_set_or_the_batch():
    student, teacher, batch = step()
    u = targets.power_sum(torch.log_softmax(teacher.logits, -1), gamma=0.25)
    over_training = targets.power_sum(torch.log_softmax(drawn().double(), -1), gamma=0.25).mean()
    plain = losses.wttm(student.logits, teacher.logits, gamma=0.25).mean()
    for normalise, mean, resolved in [
        ("none", 1.0, {}),
        ("batch", u.mean(), {}),
        ("training", over_training, {"wttm": {"mean_weight": pytest.approx(over_training.item(), rel=ROUNDED)}}),
    ]:
        bound = objectives.wttm(gamma=0.25, beta=36, supervised=0, normalise=normalise).bind(context())
        torch.testing.assert_close(bound(student, teacher, batch).total, 36 * plain / mean, rtol=ROUNDED, atol=0)
        assert bound.resolved == resolved
        assert bound.needs == Requirements(
            teacher=True,
            labels="none",
            coupled=normalise == "batch",
            teacher_statistics=normalise == "training",
            sparse=normalise == "none",
        )


def test_a_general_matching_is_its_formula():
    student, teacher, batch = step()
    objective = objectives.transformed_matching(
        transform="complement", gamma=0.1, beta=3, weight_by="entropy", weight_of="target", order=2, supervised=0.5
    )
    f = targets.Pointwise("complement", gamma=0.1)
    log_p = torch.log_softmax(teacher.logits, -1)
    log_target = targets.transform(log_p, f)
    kl = losses.kl_divergence(torch.log_softmax(student.logits, -1), log_target)
    weighted = (targets.renyi_entropy(log_target, order=2) * kl).mean()
    expected = 0.5 * losses.cross_entropy(student.logits, batch.labels).mean() + 3 * weighted
    torch.testing.assert_close(objective.bind()(student, teacher, batch).total, expected, rtol=1e-12, atol=1e-12)


@every
def test_descriptions_are_values_and_bind_no_state(name):
    objective = EVERY[name](beta="auto")
    assert objective == EVERY[name](beta=AUTO) == pickle.loads(pickle.dumps(objective))
    assert hash(Matching(gamma=0.1)) == hash(Matching(gamma=0.1))
    assert not objective.bind(context()).state_dict()


def test_network_context_has_what_an_automatic_objective_needs():
    student, teacher = nn.Linear(4, CLASSES), nn.Linear(4, CLASSES)
    objective = objectives.wttm()
    assert objective.needs.teacher_statistics
    assert objective.weights() == {"ce": 1.0, "wttm": "auto"}
    arguments = {"gamma": 0.25, "beta": "auto", "supervised": 1.0, "normalise": "none", "logits": "raw"}
    assert objective.to_recipe() == [{"wttm": arguments}]
    inputs = torch.rand(6, 4, generator=torch.Generator().manual_seed(0))
    known = network_context(objective, student, teacher, inputs, teacher_logits=teacher(inputs))
    distiller = Distiller(student, objective, known)
    loss, _ = distiller(Batch(torch.arange(6), inputs, torch.arange(6)), Outputs(teacher(inputs)))
    beta = distiller.objective.resolved["wttm"]["beta"]
    torch.testing.assert_close(loss.total, loss.parts["ce"] + beta * loss.parts["wttm"])


# ----------------------------------------------------------------------------------------------------------- the faults


@pytest.mark.parametrize(
    ("objective", "purpose"),
    [
        (objectives.ttm(), "an automatic beta"),
        (objectives.wttm(beta=1, normalise="training"), "a weight normalised over the training set"),
        (objectives.transformed_matching(transform="rational", beta=1), "an automatic gamma of rational"),
    ],
)
def test_without_the_teacher_s_logits_it_says_what_to_type(objective, purpose):
    assert objective.needs.teacher_statistics
    with refused(InvalidValueError, "context", suggests="context=BindContext(teacher_logits=...)"):
        objective.bind()


@pytest.mark.parametrize("bad", [torch.full((4, 3), math.nan), torch.zeros(0, 3), torch.zeros(3)])
def test_logits_that_are_none_are_refused(bad):
    with refused(InvalidValueError, "context"):
        objectives.ttm().bind(BindContext(teacher_logits=bad))


@pytest.mark.parametrize("classes", [2, 4, 7, 10, 100])
@pytest.mark.parametrize("level", [0.0, 0.1, -3e3, 1e4])
@pytest.mark.parametrize("objective", [objectives.ttm(), objectives.wttm(), objectives.kd(weight="auto")])
def test_a_teacher_that_says_nothing_is_refused(classes, level, objective):
    noise = torch.rand(5, classes, generator=torch.Generator().manual_seed(0))
    of_rows, rounding = level + noise[:, :1].expand(5, classes), 2e-7 * max(1, abs(level)) * noise
    for same in (torch.full((5, classes), level), of_rows, level + rounding):
        with refused(InvalidValueError, got="equal logits on all 5 samples", suggests="train it") as caught:
            objective.bind(BindContext(teacher_logits=same))
        assert re.search(r"\b(beta|weight)=3\.0", str(caught.value))


@pytest.mark.parametrize("transform", targets.TRANSFORMS)
@pytest.mark.parametrize("level", [0, 0.1])
def test_a_teacher_that_says_nothing_has_no_gamma(transform, level):
    with refused(InvalidValueError, "gamma", got="equal logits", suggests="gamma=0.25"):
        gamma(transform, BindContext(teacher_logits=torch.full((5, 4), level)))


@pytest.mark.parametrize(
    ("objective", "logits"),
    [
        (objectives.kd(temperature=1e5, weight="auto"), 3 * drawn(classes=1000, scale=1)),
        (objectives.ttm(gamma=1e-5), 3 * drawn(classes=1000, scale=1)),
        (objectives.transformed_matching(gamma=0.25, weight_by="one_minus_top"), 20 * torch.eye(10)),
        (objectives.transformed_matching(gamma=0.25, weight_by="entropy"), 20 * torch.eye(10)),
        (objectives.ttm(), 1e-5 * torch.eye(10)),
    ],
)
def test_a_small_gradient_is_no_reason_to_refuse(objective, logits):
    (found,) = objective.bind(BindContext(teacher_logits=logits)).resolved.values()
    assert found.get("beta", found.get("weight")) > 10


def test_a_gradient_that_vanishes_or_is_not_finite_names_the_cause():
    sure = BindContext(teacher_logits=50 * torch.eye(10))
    with refused(InvalidValueError, "beta", got="on 10 samples", suggests="normalise=training"):
        objectives.transformed_matching(gamma=0.25, weight_by="one_minus_top").bind(sure)
    ruled_out = torch.tensor([[0.0, 1.0, -math.inf], [-math.inf, 1.0, 0.0]])
    with refused(InvalidValueError, "beta", got="nan", suggests="such as forward"):
        objectives.matching(gamma=1, divergence="reverse").bind(BindContext(teacher_logits=ruled_out))


@pytest.mark.parametrize("logits", [torch.ones(5, 1), torch.tensor([[1.0, -math.inf]] * 5)])
@pytest.mark.parametrize("objective", [objectives.ttm(), objectives.ttm(gamma="auto", beta=1)])
def test_one_class_is_refused(logits, objective):
    with refused(InvalidValueError, "context", got=1):
        objective.bind(BindContext(teacher_logits=logits))


def test_a_term_of_one_value_has_the_weight_of_its_samples():
    known = BindContext(teacher_logits=7 * torch.eye(12))

    def mean_kl(student_logits, teacher_logits):
        return losses.kd(student_logits, teacher_logits, temperature=1).mean()

    found = [
        Objective.of(WeightedTerm("kl", AUTO, term)).bind(known)
        for term in (Apply(mean_kl, coupled=True), Apply(losses.kd, {"temperature": 1.0}))
    ]
    one, other = (each.resolved["kl"] for each in found)
    assert one == other


def test_a_teacher_that_is_sure_everywhere_has_no_doubt_to_weigh_by():
    sure = BindContext(teacher_logits=1e4 * torch.eye(4))
    with refused(InvalidValueError, "normalise", got=0, suggests="normalise=none"):
        objectives.transformed_matching(beta=1, weight_by="one_minus_top", normalise="training").bind(sure)
    with refused(InvalidValueError, "gamma", suggests="gamma=1e-6"):
        gamma("rational", BindContext(teacher_logits=100.0 * torch.eye(4)))
    with refused(InvalidValueError, "gamma", suggests="gamma=0.25"):  # whatever its power is, it rules out all others
        gamma("power", BindContext(teacher_logits=torch.eye(4).log()))
    assert mean_weight(targets.SampleWeight("power_sum", transform=targets.Pointwise("power", gamma=0.5)), sure) == 1.0


def labelled(student_logits, labels):
    return student_logits.sum(-1) * labels


def test_a_term_of_labels_has_no_automatic_weight():
    with refused(InvalidValueError, "beta", suggests="beta=3.0"):
        Objective.of(WeightedTerm("mine", AUTO, objectives.Apply(labelled))).bind(context())


@pytest.mark.parametrize(
    ("written", "refusal"),
    [
        (
            {"ttm": {"beta": "aut"}},
            refused(InvalidValueError, "objective.ttm.beta", got="'aut'"),
        ),
        ({"abttm": {"gamma": "auto"}}, refused(InvalidValueError, "objective.abttm.gamma", got="'auto'")),
        (
            {"nkd": {"weight": "auto"}},
            refused(InvalidValueError, "objective.nkd.weight", got="'auto'"),
        ),
        ({"ttm": {"beta": -1}}, refused(InvalidValueError, "objective.ttm.beta", got=-1.0)),
        (
            {"transformed_matching": {"gamma": "flat"}},
            refused(
                InvalidValueError,
                "objective.transformed_matching.gamma",
                got="'flat'",
                suggests="objective.transformed_matching.gamma=auto",
            ),
        ),
        (
            {"transformed_matching": {"transform": "logarithmic", "gamma": 0.1}},
            refused(
                InvalidValueError, "objective.transformed_matching.transform", got="'logarithmic'", suggests="logarithm"
            ),
        ),
        (
            {"transformed_matching": {"transform": 3}},
            refused(InvalidValueError, "objective.transformed_matching.transform", got=3),
        ),
        (
            {"transformed_matching": {"transform": "rational", "gamma": 1.5}},
            refused(InvalidValueError, "objective.transformed_matching.gamma", got=1.5),
        ),
        (
            {"transformed_matching": {"gamma": 0}},
            refused(InvalidValueError, "objective.transformed_matching.gamma", got=0),
        ),
        (
            {"transformed_matching": {"weight_by": "entrpy"}},
            refused(InvalidValueError, "objective.transformed_matching.weight_by", suggests="entropy"),
        ),
        (
            {"transformed_matching": {"weight_of": "target"}},
            refused(InvalidValueError, "objective.transformed_matching.weight_of", got="target"),
        ),
        (
            {"transformed_matching": {"order": 2, "weight_by": "power_sum"}},
            refused(InvalidValueError, "objective.transformed_matching.order", got=2),
        ),
        (
            {"wttm": {"normalise": "trainin"}},
            refused(InvalidValueError, "objective.wttm.normalise", got="'trainin'", suggests="training"),
        ),
        ({"wttm": {"normalise": True}}, refused(InvalidValueError, "objective.wttm.normalise", got="True")),
    ],
)
def test_what_a_recipe_says_wrong_about_matching_is_answered(written, refusal):
    with refusal as caught:
        from_recipe(written)
    assert "\n" not in str(caught.value)


def test_auto_is_read_in_any_form():
    assert objectives.ttm(beta="auto") == objectives.ttm(beta=Automatic()) == from_recipe("ttm")
    assert balanced_weight(objectives.ttm(supervised=0).bind(context()).terms["ttm"], context()) > 0
