"""Terms whose targets move: when they move, by which loss, and what a run keeps of it."""

import copy

import pytest
import torch
from tests._helpers.fit_cases import Rows, mlp, same_bits, samples, settings, state, untimed
from tests._helpers.refusals import refused

from tutelage import losses, objectives, targets
from tutelage.errors import InvalidValueError
from tutelage.modules import Distiller, FrozenTeacher
from tutelage.objectives.methods.moving import TAID
from tutelage.settings.weights import Linear
from tutelage.training.checkpoints import Checkpoints, CheckpointSink
from tutelage.training.distributed import accelerator_on
from tutelage.training.loop import fit
from tutelage.types import Batch, Outputs, Progress, StatefulTerm

YES, NO = torch.tensor(True), torch.tensor(False)
FAST = {"t_start": 0.4, "t_end": 0.9, "alpha": 0.2, "beta": 0.5}


def bound():
    return TAID(**FAST).bind(objectives.BindContext()).double()


def outputs(seed, shape=(6, 4)):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return Outputs(student.requires_grad_()), Outputs(teacher)


def batch(n=6, counted=None):
    labels = torch.zeros(n, dtype=torch.int64) if counted is None else torch.zeros(counted.shape, dtype=torch.int64)
    return Batch(torch.arange(n), torch.zeros(n, 1), labels, None, counted)


def cross_entropy(student, teacher, t):
    logits = (student.logits.detach(), teacher.logits)
    target = losses.taid_target(*logits, t=t)
    return losses.taid(*logits, t=t) + targets.shannon_entropy(target)


def moments(term):
    return [term.t.item(), term.momentum.item(), term.previous.item()]


def test_a_call_changes_nothing_and_a_commit_moves_on_by_the_mean():
    term, at = bound(), Progress(0, torch.tensor(0), 0.25)
    first, second = outputs(0), outputs(1)
    term(*first, batch(), at).sum().backward()
    assert moments(term) == [pytest.approx(0.4), 0.0, torch.inf]
    loss = cross_entropy(*first, term.t).mean()
    term.commit(YES)
    assert moments(term) == [pytest.approx(0.4), 0.0, pytest.approx(loss.item())]
    fall = cross_entropy(*second, term.t).mean()
    state = (term.t.clone(), term.momentum.clone(), loss, fall)
    expected = losses.taid_step(*state, linear=0.4 + 0.5 * 0.25, end=0.9, alpha=0.2, beta=0.5)
    term(*second, batch(), at)
    term.commit(YES)
    assert moments(term) == [pytest.approx(x.item()) for x in (*expected, fall)]
    assert 0.4 < term.t < 0.9


def test_micro_batches_are_one_step_each_position_counting_once():
    whole, cut = bound(), bound()
    counted = torch.arange(30).view(6, 5) % 3 > 0
    at = Progress(0, torch.tensor(0), 0.5)
    for seed in (0, 1, 2):
        student, teacher = outputs(seed, (6, 5, 4))
        whole(student, teacher, batch(counted=counted), at)
        for part in (slice(0, 4), slice(4, 6)):
            piece = batch(len(counted[part]), counted[part])
            cut(Outputs(student.logits[part]), Outputs(teacher.logits[part]), piece, at)
        whole.commit(YES)
        cut.commit(YES)
    assert moments(cut) == [pytest.approx(x, rel=1e-12) for x in moments(whole)]
    assert whole.previous.item() == pytest.approx(cross_entropy(student, teacher, cut.t).mean().item(), rel=0.2)


def test_a_step_that_is_not_applied_or_not_finite_is_forgotten():
    term = bound()
    for seed in (0, 1):
        term(*outputs(seed), batch(), Progress())
        term.commit(YES)
    before = moments(term)
    term(*outputs(2), batch(), Progress())
    term.commit(NO)
    student, teacher = outputs(3)
    term(student, Outputs(teacher.logits * torch.nan), batch(), Progress())
    term.commit(YES)
    term.commit(YES)
    assert moments(term) == before
    term.eval()(*outputs(4), batch(), Progress())
    term.train().commit(YES)
    assert moments(term) == before


def test_a_loop_of_ones_own_that_does_not_commit_moves_on_by_the_number_of_the_step():
    own, told = bound(), bound()
    for step in range(4):
        for seed in (2 * step, 2 * step + 1):  # micro-batches
            own(*outputs(seed), batch(), Progress(0, step, step / 4))
            told(*outputs(seed), batch(), Progress(0, torch.tensor(step), step / 4))
        if step < 3:
            told.commit(YES)
    assert moments(own) == moments(told)
    assert own.t > 0.4


def test_without_alpha_it_is_a_line_of_progress_without_state():
    objective = objectives.taid(alpha=0)
    term = objective.bind().terms["taid"]
    assert not isinstance(term, StatefulTerm)
    assert not list(term.buffers())
    assert objective.bind().schedules == (Linear(0.4, 1.0),)
    student, teacher = outputs(0)
    ours = term(student, teacher, batch(), Progress(3, 30, 0.5))
    assert torch.equal(ours, losses.taid(student.logits, teacher.logits, t=0.7))
    several = objectives.taid(alpha=0).per_member({"a": 0.5, "b": 0.5})
    assert several.needs.members == ("a", "b")


# Fits


def fitted(folder=None, *, resume=False, stop=None, **changes):
    inputs, labels = samples(48)
    torch.manual_seed(11)
    distiller = Distiller(mlp(seed=0), objectives.taid(**FAST, supervised=0.5))
    rows = Rows(inputs, labels, batch_size=10, shuffle=True, stop_before=stop)
    keep = CheckpointSink(Checkpoints(folder / "checkpoints"), folder / "best.safetensors", {}) if folder else None
    saved = keep.checkpoints.load() if keep and resume else None
    how, teacher = settings(checkpoint_steps=1 if folder else None, **changes), FrozenTeacher(mlp(seed=7))
    records = list(fit(distiller, teacher, rows, how, accelerator=accelerator_on("cpu"), keep=keep, resume=saved))
    return state(distiller), untimed(records)


@pytest.mark.parametrize("stop", [(0, 2), (1, 1)])
def test_interrupted_and_resumed_has_the_same_bits(tmp_path, stop):
    whole, records = fitted(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "cut", stop=stop)
    resumed, _ = fitted(tmp_path / "cut", resume=True)
    assert {f"objective.terms.taid.{name}" for name in ("t", "momentum", "previous")} <= whole.keys()
    assert same_bits(whole, resumed)
    assert len(records) == 2


def test_accumulated_steps_move_as_whole_ones():
    whole, _ = fitted()
    cut, _ = fitted(accumulate=3)
    for name in ("t", "momentum", "previous"):
        torch.testing.assert_close(
            *(each[f"objective.terms.taid.{name}"] for each in (cut, whole)), rtol=1e-4, atol=1e-6
        )
    assert whole["objective.terms.taid.t"] > 0.4


def test_a_state_is_read_without_what_came_before():
    term = bound()
    term(*outputs(0), batch(), Progress())
    saved = copy.deepcopy(term.state_dict())
    term.load_state_dict(saved)
    term.commit(YES)
    assert moments(term) == [pytest.approx(0.4), 0.0, torch.inf]


# Presets


def test_a_recipe_holds_them():
    for objective in (objectives.taid(), objectives.distillm2(), objectives.distillm2(anchor=0.02)):
        assert objectives.from_recipe(objective.to_recipe()) == objective
    assert objectives.taid().needs.labels == "none"
    assert objectives.distillm2().needs.labels == "none"
    assert objectives.distillm2(anchor=0.02).needs.labels == "index"


def test_both_terms_of_distillm2_have_their_own_sign_of_the_anchor():
    student, teacher = outputs(1, (3, 5, 4))
    where = batch(3, torch.ones(3, 5, dtype=torch.bool))
    parts = objectives.distillm2(share=0.3, anchor=0.02).bind()(student, teacher, where).parts
    for name, of, anchor in (("skew", "teacher", 0.02), ("skew_reverse", "student", -0.02)):
        call = {"share": 0.3, "anchor": anchor, "of": of}
        expected = losses.distillm2(student.logits, teacher.logits, where.labels, **call).mean()
        torch.testing.assert_close(parts[name], expected.detach())


@pytest.mark.parametrize(
    ("arguments", "refusal"),
    [
        ({"t_start": 1.2}, refused(InvalidValueError, "t_start", got=1.2)),
        ({"t_start": 0.5, "t_end": 0.2}, refused(InvalidValueError, "t_end", got=0.2, suggests="t_end=1.0")),
        ({"alpha": -1}, refused(InvalidValueError, "alpha")),
        ({"beta": 1}, refused(InvalidValueError, "beta")),
    ],
)
def test_bad_arguments_are_refused_at_the_call(arguments, refusal):
    with refusal:
        objectives.taid(**arguments)
