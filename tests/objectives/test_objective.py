"""Objectives as values: they add, scale, bind, and compute one mean per term."""

from __future__ import annotations

import dataclasses
import math
import pickle

import pytest
import torch
from tests._helpers.refusals import refused
from torch import nn

from tutelage import losses, objectives
from tutelage.errors import InvalidTypeError, InvalidValueError
from tutelage.objectives import Apply, BindContext, Objective, WeightedTerm
from tutelage.types import Batch, Outputs, Progress, Requirements, Totals

CLASSES = 5
START = Progress()


def draw(seed=0, n=8, dtype=torch.float64, unlabelled=()):
    """A student that wants gradients, a teacher, a batch."""
    generator = torch.Generator().manual_seed(seed)
    z, v = (3 * torch.randn(n, CLASSES, generator=generator, dtype=torch.float64) for _ in range(2))
    labels = torch.randint(CLASSES, (n,), generator=generator)
    labels[list(unlabelled)] = -100
    z = z.to(dtype).requires_grad_()
    return Outputs(z), Outputs(v.to(dtype)), Batch(torch.arange(n), torch.zeros(n, 1), labels)


def total(objective, *, progress=START, **how):
    return objective.bind()(*draw(**how), progress).total


def gradient(objective, **how):
    student, teacher, batch = draw(**how)
    objective.bind()(student, teacher, batch).total.backward()
    return student.logits.grad


def same(value, expected, tolerance=1e-12):
    torch.testing.assert_close(value, torch.as_tensor(expected, dtype=value.dtype), rtol=tolerance, atol=tolerance)


# -------------------------------------------------------------------------------------------------------------- algebra


def test_an_objective_is_the_weighted_sum_of_its_terms():
    student, teacher, batch = draw()
    loss = objectives.wttm(gamma=0.25, beta=3.0, supervised=0.7).bind()(student, teacher, batch)
    ce = losses.cross_entropy(student.logits, batch.labels).mean()
    match = losses.wttm(student.logits, teacher.logits, gamma=0.25).mean()
    same(loss.total, 0.7 * ce + 3.0 * match)
    assert list(loss.parts) == ["ce", "wttm"]
    same(loss.parts["ce"], ce.detach())
    same(loss.parts["wttm"], match.detach())


def test_parts_are_detached_and_not_weighted_or_scaled():
    student, teacher, batch = draw()
    single = objectives.kd(temperature=4.0).bind()(student, teacher, batch)
    scaled = (5 * objectives.kd(temperature=4.0)).bind()(student, teacher, batch)
    assert not any(part.requires_grad for part in single.parts.values())
    assert single.total.requires_grad
    for name, part in single.parts.items():
        same(scaled.parts[name], part)
    same(scaled.total, 5 * single.total)


def test_adding_adds_totals_and_keeps_every_term():
    ttm, penalty = objectives.ttm(gamma=0.5, beta=2.0), objectives.confidence_penalty(weight=0.3)
    both = ttm + penalty
    same(total(both), total(ttm) + total(penalty))
    assert both.name == "ttm+confidence_penalty"
    assert [part.name for part, _ in both.parts] == ["ce", "ttm", "confidence_penalty"]


def test_scaling_is_distributive_and_multiplies():
    ttm, penalty = objectives.ttm(gamma=0.5, beta=2.0), objectives.confidence_penalty(weight=0.3)
    same(total(2 * (0.5 * ttm + penalty)), total(ttm) + 2 * total(penalty))
    assert (2 * (0.5 * ttm)).weights() == ttm.weights()
    assert ttm * 3 == 3 * ttm
    assert (3 * ttm).weights() == {"ce": 3.0, "ttm": 6.0}


@pytest.mark.parametrize("factor", [0, -1, math.nan, math.inf])
def test_a_factor_that_is_not_above_zero_is_refused(factor):
    with refused(InvalidValueError, "objective", got=factor):
        factor * objectives.kd()


@pytest.mark.parametrize("factor", ["2", True, None, objectives.kd()])
def test_a_factor_that_is_no_number_is_no_factor(factor):
    with pytest.raises(TypeError, match=r"unsupported operand|can't multiply"):
        factor * objectives.kd()


def test_only_objectives_add():
    with pytest.raises(TypeError, match="unsupported operand"):
        objectives.kd() + 1


def test_an_objective_does_not_change():
    kd = objectives.kd()
    with pytest.raises(dataclasses.FrozenInstanceError):
        kd.pieces = ()
    before = kd.weights()
    _ = kd * 2
    _ = kd + objectives.confidence_penalty()
    assert kd.weights() == before


def test_equal_calls_are_equal_and_survive_pickling():
    objective = 0.5 * objectives.wttm(gamma=0.1, beta=3) + objectives.renyi_penalty(order=0.5, weight=1)
    assert objective == 0.5 * objectives.wttm(beta=3.0, gamma=0.1) + objectives.renyi_penalty(order=0.5, weight=1.0)
    assert pickle.loads(pickle.dumps(objective)) == objective
    assert objective != objectives.wttm(gamma=0.1, beta=3)


@pytest.mark.parametrize(
    "objective",
    [
        objectives.kd(),
        objectives.kd(temperature=objectives.Linear(8.0, 1.0)),
        objectives.matching(divergence="alpha_beta", gamma=0.5, beta=1.0),
        objectives.ldrld(),
        objectives.taid(),
    ],
    ids=["kd", "scheduled", "matching", "ldrld", "taid"],
)
def test_a_bound_objective_survives_pickling(objective):
    bound = objective.bind()
    again = pickle.loads(pickle.dumps(bound))
    assert torch.equal(bound(*draw()).total, again(*draw()).total)


# -------------------------------------------------------------------------------------------------------- several terms


def test_names_are_unique():
    def part(name):
        return WeightedTerm(name, 1.0, Apply(losses.confidence_penalty))

    objective = Objective.of(part("a_2"), part("a"), part("a"), part("a")) + Objective.of(part("a"))
    names = [part.name for part, _ in objective.parts]
    assert names == ["a_2", "a", "a_3", "a_4", "a_5"]
    student, teacher, batch = draw()
    loss = objective.bind()(student, teacher, batch)
    assert list(loss.parts) == names
    same(loss.total, 5 * losses.confidence_penalty(student.logits).mean())


def test_the_same_preset_twice_keeps_both():
    both = objectives.ttm(gamma=0.5, beta=1) + objectives.ttm(gamma=0.1, beta=2, supervised=0)
    assert both.weights() == {"ce": 1.0, "ttm": 1.0, "ttm_2": 2.0}


@pytest.mark.parametrize(
    ("left", "right", "named"),
    [
        (
            objectives.kd(),
            objectives.ttm(gamma=0.1, beta=1),
            "ttm(..., supervised=0)",
        ),
        (objectives.kd(), objectives.cross_entropy(), "kd(..., supervised=0)"),
        (objectives.cross_entropy(), objectives.cross_entropy(), "cross_entropy"),
        (
            objectives.cross_entropy(),
            objectives.confidence_penalty() + objectives.wttm(gamma=0.1, beta=1),
            "wttm(..., supervised=0)",
        ),
        (
            objectives.cross_entropy(),
            Objective.of(WeightedTerm("mine", 1.0, Apply(losses.cross_entropy))),
            "by hand",
        ),
    ],
)
def test_two_supervised_terms_are_refused_and_the_one_to_zero_is_named(left, right, named):
    with refused(InvalidValueError, "objective", suggests=named):
        left + right


def test_what_the_error_says_to_type_works():
    mended = objectives.kd() + objectives.ttm(gamma=0.1, beta=1, supervised=0)
    assert list(mended.weights()) == ["ce", "kd", "ttm"]


# ------------------------------------------------------------------------------------------------------------ the needs


@pytest.mark.parametrize(
    ("objective", "needs"),
    [
        (objectives.cross_entropy(), Requirements(teacher=False, labels="any", sparse=True)),
        (objectives.confidence_penalty(), Requirements(teacher=False, labels="none", sparse=True)),
        (objectives.renyi_penalty(order=2, weight=1), Requirements(teacher=False, labels="none", sparse=True)),
        (objectives.kd(), Requirements(teacher=True, labels="any", sparse=True)),
        (objectives.kd(supervised=0), Requirements(teacher=True, labels="none", sparse=True)),
        (objectives.kd(weight=0, supervised=1), Requirements(teacher=False, labels="any", sparse=True)),
        (objectives.ttm(gamma=0.1, beta=1), Requirements(teacher=True, labels="any", sparse=True)),
        (objectives.wttm(gamma=0.1, beta=1, supervised=0), Requirements(teacher=True, labels="none", sparse=True)),
        (
            objectives.wttm(gamma=0.1, beta=1, supervised=0) + objectives.cross_entropy(),
            Requirements(teacher=True, labels="any", sparse=True),
        ),
    ],
)
def test_needs(objective, needs):
    assert objective.needs == needs
    assert objective.bind().needs == needs
    assert objective.supervised == (needs.labels != "none")


@pytest.mark.parametrize("name", ["rkd", "correlation", "itrd", "srd", "reviewkd"])
def test_what_relates_samples_needs_two(name):
    assert (objectives.kd() + getattr(objectives, name)()).needs.min_batch == 2
    assert objectives.kd().needs.min_batch == objectives.dist().needs.min_batch == 1


def indices(student_logits, teacher_logits, labels):
    return student_logits.sum(-1) * (labels != -100)


def test_a_term_that_takes_class_indices_alone_narrows_the_whole():
    objective = objectives.cross_entropy() + Objective.of(WeightedTerm("mine", 1.0, Apply(indices)))
    assert objective.needs.labels == "index"


def test_a_teacher_that_is_needed_and_missing_is_asked_for():
    student, _, batch = draw()
    with refused(InvalidValueError, "teacher"):
        objectives.kd().bind()(student, None, batch)
    assert objectives.cross_entropy().bind()(student, None, batch).total.isfinite()


@pytest.mark.parametrize("name", ["kd", "ttm", "wttm"])
def test_without_a_supervised_term_nothing_asks_for_labels(name):
    arguments = {"kd": {}, "ttm": {"gamma": 0.5, "beta": 1}, "wttm": {"gamma": 0.5, "beta": 1}}[name]
    objective = objectives.PRESETS[name].build(**arguments, supervised=0)
    assert list(objective.weights()) == [name]
    student, teacher, batch = draw()
    with_labels = objective.bind()(student, teacher, batch).total
    # No class of these exists: whoever read one would fail.
    unread = batch._replace(labels=torch.full((8,), 10**6))
    none = batch._replace(labels=torch.full((8,), -100))
    same(objective.bind()(student, teacher, unread).total, with_labels)
    same(objective.bind()(student, teacher, none).total, with_labels)


@pytest.mark.parametrize(
    ("objective", "gamma"),
    [
        (objectives.kd(temperature=4), 0.25),
        (objectives.ttm(gamma=0.1, beta=1), 0.1),
        (objectives.wttm(gamma=0.3, beta=1), 0.3),
        (objectives.cross_entropy(), None),
        (objectives.kd(weight=0), None),
        (objectives.kd(temperature=2) + objectives.ttm(gamma=0.5, beta=1, supervised=0), 0.5),
        (objectives.kd(temperature=4) + objectives.ttm(gamma=0.5, beta=1, supervised=0), None),
        (0.5 * objectives.kd(temperature=4) + objectives.confidence_penalty(), 0.25),
    ],
)
def test_target_gamma(objective, gamma):
    assert objective.target_gamma == gamma
    assert objective.bind().target_gamma == gamma


# ------------------------------------------------------------------------------------------------------------ the means


def test_a_supervised_mean_is_over_labelled_samples_and_the_others_over_all():
    student, teacher, batch = draw(unlabelled=(0, 3, 5))
    loss = objectives.ttm(gamma=0.5, beta=1).bind()(student, teacher, batch)
    labelled = batch.labels != -100
    same(loss.parts["ce"], losses.cross_entropy(student.logits[labelled], batch.labels[labelled]).mean().detach())
    same(loss.parts["ttm"], losses.ttm(student.logits, teacher.logits, gamma=0.5).mean().detach())


def test_a_batch_without_labels_has_a_supervised_mean_of_zero():
    student, teacher, batch = draw(unlabelled=range(8))
    loss = objectives.kd().bind()(student, teacher, batch)
    assert loss.parts["ce"] == 0
    assert loss.total.isfinite()
    loss.total.backward()
    assert student.logits.grad.isfinite().all()


@pytest.mark.parametrize("unlabelled", [(), (0, 3, 5), (0, 1, 2, 3)])
def test_micro_batches_over_the_whole_steps_totals_are_the_whole_step(unlabelled):
    objective = objectives.wttm(gamma=0.5, beta=2) + objectives.confidence_penalty()
    student, teacher, batch = draw(unlabelled=unlabelled)
    whole = objective.bind()(student, teacher, batch)
    (expected,) = torch.autograd.grad(whole.total, student.logits)
    totals = objectives.count(batch, student.logits)
    assert (totals.samples, totals.labelled) == (8, 8 - len(unlabelled))
    sums, parts = 0.0, dict.fromkeys(whole.parts, 0.0)
    for rows in (slice(0, 1), slice(1, 4), slice(4, 8)):
        piece = Batch(*(tensor[rows] for tensor in batch[:3]))
        loss = objective.bind()(Outputs(student.logits[rows]), Outputs(teacher.logits[rows]), piece, Progress(), totals)
        loss.total.backward()
        sums += loss.total.detach()
        parts = {name: parts[name] + part for name, part in loss.parts.items()}
    same(sums, whole.total.detach())
    same(student.logits.grad, expected)
    for name, part in whole.parts.items():
        same(parts[name], part)


def test_totals_may_be_shares_of_several_processes():
    student, teacher, batch = draw(unlabelled=(1,))
    alone = objectives.kd().bind()(student, teacher, batch)
    totals = Totals(torch.tensor(4.0), torch.tensor(3.5), torch.tensor(4.0))
    halved = objectives.kd().bind()(student, teacher, batch, Progress(), totals)
    same(halved.parts["ce"], alone.parts["ce"] * 2)
    same(halved.parts["kd"], alone.parts["kd"] * 2)


def test_soft_labels_count_every_sample():
    student, _, batch = draw()
    soft = torch.softmax(torch.randn(8, CLASSES, dtype=torch.float64), -1)
    loss = objectives.cross_entropy(label_smoothing=0.1).bind()(student, None, batch._replace(labels=soft))
    same(loss.total, losses.cross_entropy(student.logits, soft, label_smoothing=0.1).mean())
    totals = objectives.count(batch._replace(labels=soft), student.logits)
    assert totals.labelled == totals.samples == 8


def test_tokens_are_samples():
    generator = torch.Generator().manual_seed(0)
    z, v = torch.randn(2, 3, 4, CLASSES, generator=generator).unbind()
    labels = torch.randint(CLASSES, (3, 4), generator=generator)
    labels[0, 2] = -100
    loss = objectives.kd().bind()(Outputs(z), Outputs(v), Batch(torch.arange(3), torch.zeros(3), labels))
    labelled = labels != -100
    same(loss.parts["ce"], losses.cross_entropy(z[labelled], labels[labelled]).mean(), 1e-6)
    same(loss.parts["kd"], losses.kd(z, v, temperature=4).mean(), 1e-6)


def coupled(student_logits, teacher_logits):
    return (student_logits.mean(0) - teacher_logits.mean(0)).square().sum()


def test_a_coupled_term_counts_by_its_share_of_the_samples():
    objective = Objective.of(WeightedTerm("mine", 2.0, Apply(coupled, coupled=True)))
    assert objective.needs.coupled
    student, teacher, batch = draw()
    same(objective.bind()(student, teacher, batch).total, 2 * coupled(student.logits, teacher.logits))
    totals = Totals(*torch.full((3,), 16.0))
    same(objective.bind()(student, teacher, batch, Progress(), totals).total, coupled(student.logits, teacher.logits))


# -------------------------------------------------------------------------------------------------------- the precision


def products(student_logits, teacher_logits):
    """A term that autocast would run in bfloat16."""
    return torch.nn.functional.linear(student_logits, teacher_logits[:1]).squeeze(-1)


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
def test_narrow_logits_are_computed_in_float32(narrow):
    student, teacher, batch = draw(dtype=narrow)
    objective = objectives.wttm(gamma=0.1, beta=3) + Objective.of(WeightedTerm("mine", 1.0, Apply(products)))
    loss = objective.bind()(student, teacher, batch)
    wide = objective.bind()(Outputs(student.logits.float()), Outputs(teacher.logits.float()), batch)
    assert loss.total.dtype == torch.float32
    assert torch.equal(loss.total, wide.total)
    loss.total.backward()
    assert student.logits.grad.dtype == narrow


def test_taps_are_widened_too():
    dtypes = {}

    class Reads(nn.Module):
        needs = Requirements(teacher=False, labels="none")

        def forward(self, student, teacher, batch, progress):
            dtypes["tap"] = student.taps["layer"].dtype
            return student.logits.sum(-1)

    class Describes:
        needs, target_gamma = Reads.needs, None

        def bind(self, context):
            return Reads()

    student, _, batch = draw(dtype=torch.bfloat16)
    student = student._replace(taps={"layer": torch.zeros(8, 2, dtype=torch.bfloat16)})
    Objective.of(WeightedTerm("reads", 1.0, Describes())).bind()(student, None, batch)
    assert dtypes["tap"] == torch.float32


def test_autocast_is_off_inside_and_on_again_outside():
    student, teacher, batch = draw(dtype=torch.float32)
    objective = Objective.of(WeightedTerm("mine", 1.0, Apply(products)))
    expected = products(student.logits, teacher.logits).mean()
    with torch.autocast("cpu", torch.bfloat16):
        assert products(student.logits, teacher.logits).dtype == torch.bfloat16
        inside = objective.bind()(student, teacher, batch).total
        assert torch.is_autocast_enabled("cpu")
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, expected, rtol=1e-6, atol=1e-6)


def test_float64_stays():
    assert total(objectives.kd()).dtype == torch.float64


# ---------------------------------------------------------------------------------------------------------- the binding


class Learned:
    """A description whose bound term learns."""

    needs = Requirements(teacher=True, labels="none")
    target_gamma = None

    def bind(self, context):
        return _LearnedTerm(context)


class _LearnedTerm(nn.Module):
    needs = Learned.needs

    def __init__(self, context):
        super().__init__()
        self.project = nn.Linear(context.classes, context.classes, bias=False)
        self.register_buffer("memory", torch.zeros(context.samples))

    def forward(self, student, teacher, batch, progress):
        self.memory[batch.index] += 1
        return (self.project(student.logits) - teacher.logits).square().sum(-1)


def test_two_runs_of_one_description_share_nothing():
    objective = Objective.of(WeightedTerm("learned", 1.0, Learned())) + objectives.cross_entropy()
    first, second = (objective.bind(BindContext(samples=8, classes=CLASSES)) for _ in range(2))
    assert first.terms["learned"] is not second.terms["learned"]
    pointers = [{t.data_ptr() for t in [*m.parameters(), *m.buffers()]} for m in (first, second)]
    assert len(pointers[0]) == 2
    assert not pointers[0] & pointers[1]
    student, teacher, batch = draw(dtype=torch.float32)
    first(student, teacher, batch).total.backward()
    assert first.terms["learned"].memory.sum() == 8
    assert second.terms["learned"].memory.sum() == 0
    assert second.terms["learned"].project.weight.grad is None


def test_a_bound_objective_is_one_trainable_module():
    bound = Objective.of(WeightedTerm("learned", 1.0, Learned())).bind(BindContext(samples=8, classes=CLASSES))
    assert set(bound.state_dict()) == {"terms.learned.project.weight", "terms.learned.memory"}
    assert bound.names == ("learned",)


def test_presets_have_no_parameters_and_no_state():
    for objective in (objectives.kd(), objectives.wttm(gamma=0.1, beta=1), objectives.cross_entropy()):
        assert not objective.bind().state_dict()


def test_a_description_must_bind_a_module():
    class Wrong:
        needs, target_gamma = Requirements(teacher=False, labels="none"), None

        def bind(self, context):
            return lambda *_: torch.zeros(8)

    with refused(InvalidTypeError, "term", got="function"):
        Objective.of(WeightedTerm("wrong", 1.0, Wrong())).bind()


def mean_already(student_logits, labels):
    return losses.cross_entropy(student_logits, labels).mean()


def not_reduced(student_logits):
    return student_logits.softmax(-1)


@pytest.mark.parametrize(("loss", "shape"), [(mean_already, "()"), (not_reduced, "(8, 5)")])
def test_a_term_of_another_shape_is_refused(loss, shape):
    objective = Objective.of(WeightedTerm("mine", 1.0, Apply(loss)))
    with refused(InvalidValueError, "term mine", got=shape, suggests="coupled=True"):
        objective.bind()(*draw())


def nothing(student_logits):
    return None


def test_a_loss_that_returns_no_tensor_is_refused():
    with refused(InvalidTypeError, "term mine", got="NoneType"):
        Objective.of(WeightedTerm("mine", 1.0, Apply(nothing))).bind()(*draw())


# --------------------------------------------------------------------------------------------------------- the identity


@pytest.mark.parametrize("temperature", [1.5, 4.0, 10.0])
@pytest.mark.parametrize("lam", [0.1, 0.5, 0.9])
def test_ttm_is_kd_plus_a_renyi_penalty(temperature, lam):
    beta = lam / (1 - lam) * temperature
    kd = objectives.kd(temperature=temperature, weight=lam, supervised=1 - lam) * (1 / (1 - lam))
    penalty = objectives.renyi_penalty(order=1 / temperature, weight=beta * (temperature - 1))
    ttm = objectives.ttm(gamma=1 / temperature, beta=beta)
    same(gradient(kd + penalty), gradient(ttm), 1e-11)
    # They differ by what does not depend on the student.
    differences = []
    for shift in (0.0, 1.0):
        student, teacher, batch = draw()
        student = Outputs(student.logits.detach() * (1 + shift) + shift * torch.randn(8, 5, dtype=torch.float64))
        differences.append(
            (kd + penalty).bind()(student, teacher, batch).total - ttm.bind()(student, teacher, batch).total
        )
    same(differences[0], differences[1], 1e-9)


def test_the_penalty_alone_makes_the_difference():
    kd = objectives.kd(temperature=4.0, weight=0.9, supervised=0.1) * 10
    ttm = objectives.ttm(gamma=0.25, beta=36)
    assert (gradient(kd) - gradient(ttm)).abs().max() > 0.1
