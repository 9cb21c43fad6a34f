"""The contrast with banks as a term: what it computes, and when its banks move."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests._helpers.refusals import refused
from torch import nn

from tutelage import objectives
from tutelage.errors import InvalidValueError
from tutelage.objectives import BindContext
from tutelage.objectives.methods.contrastive import CRD
from tutelage.types import Batch, Outputs, Progress, StatefulTerm

TAP = "card:embedding"
LABELS = torch.arange(30) % 3
CONTEXT = BindContext(samples=30, classes=3, labels=LABELS, student_shapes={TAP: (5,)}, teacher_shapes={TAP: (7,)})
YES, NO = torch.tensor(True), torch.tensor(False)


class Fixed(nn.Module):
    """The same negatives for a sample every time."""

    def __init__(self, samples=30, count=6, seed=0):
        super().__init__()
        self.table = torch.randint(samples, (samples, count), generator=torch.Generator().manual_seed(seed))

    def forward(self, index, epoch):
        return self.table[index]


def bound(seed=0, **changes):
    torch.manual_seed(seed)
    chosen = {"negatives": 6, "temperature": 0.1, "momentum": 0.25, "dimension": 4} | changes
    term = CRD(**chosen).bind(CONTEXT)
    term.draw = Fixed(count=chosen["negatives"])
    return term.double()


def step(seed, index=(4, 9, 11), scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    n = len(index)
    student = scale * torch.randn(n, 5, generator=generator, dtype=torch.float64)
    teacher = scale * torch.randn(n, 7, generator=generator, dtype=torch.float64)
    batch = Batch(torch.tensor(index), torch.zeros(n, 1), LABELS[list(index)])
    logits = torch.zeros(n, 3, dtype=torch.float64)
    return Outputs(logits, {TAP: student.requires_grad_()}), Outputs(logits, {TAP: teacher}), batch, Progress()


class Reference:
    """The published algorithm, step by step in NumPy, gathering the rows."""

    def __init__(self, term):
        self.state = {name: value.numpy().copy() for name, value in term.state_dict().items()}
        self.constants = None
        self.table = term.draw.table.numpy()

    def __call__(self, student, teacher, batch, progress):
        index = batch.index.numpy()
        of_student = self.embed(student, "student")
        of_teacher = self.embed(teacher, "teacher")
        columns = np.concatenate([index[:, None], self.table[index]], axis=1)
        x = [
            np.exp(np.einsum("bkd,bd->bk", self.state[f"{bank}_bank"][columns], e) / 0.1)
            for e, bank in ((of_student, "teacher"), (of_teacher, "student"))
        ]
        if self.constants is None:
            self.constants = [30 * each.mean() for each in x]
        total = np.zeros(len(index))
        for each, z in zip(x, self.constants, strict=True):
            p, c = each / z, 6 / 30
            total -= np.log(p[:, 0] / (p[:, 0] + c + 1e-7)) + np.log(c / (p[:, 1:] + c + 1e-7)).sum(1)
        for name, e in (("student", of_student), ("teacher", of_teacher)):
            rows = 0.25 * self.state[f"{name}_bank"][index] + 0.75 * e
            self.state[f"{name}_bank"][index] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return total

    def embed(self, outputs, network):
        e = (
            outputs.taps[TAP].detach().numpy() @ self.state[f"embed_{network}.weight"].T
            + self.state[f"embed_{network}.bias"]
        )
        return e / np.linalg.norm(e, axis=1, keepdims=True)


@pytest.mark.parametrize("settled", [True, False])
def test_three_steps_are_those_of_the_published_algorithm(settled):
    """The third step comes back to samples of the first; a custom loop commits nothing."""
    term = bound()
    reference = Reference(term)
    for seed, index in enumerate([(4, 9, 11), (0, 1), (9, 20, 4)]):
        inputs = step(seed, index)
        values = term(*inputs)
        values.sum().backward()
        np.testing.assert_allclose(values.detach().numpy(), reference(*inputs), rtol=1e-9)
        if settled:
            term.commit(YES)
    state = term.state_dict()
    for name in ("student_bank", "teacher_bank"):
        np.testing.assert_allclose(state[name].numpy(), reference.state[name], rtol=1e-9)
    np.testing.assert_allclose(state["log_normalisers"].exp().numpy(), reference.constants, rtol=1e-9)


def test_of_a_sample_that_comes_twice_the_last_is_kept_whichever_row_is_written(monkeypatch):
    copy_rows = torch.Tensor.index_copy_
    kept = []
    for backwards in (False, True):
        term = bound()
        term(*step(0, (4, 9, 4, 11, 4)))
        if backwards:
            monkeypatch.setattr(
                torch.Tensor, "index_copy_", lambda bank, d, i, rows: copy_rows(bank, d, i.flip(0), rows.flip(0))
            )
        term.commit(YES)
        kept.append(banks(term))
    once = bound()
    reference = Reference(once)
    reference(*step(0, (4, 9, 4, 11, 4)))
    for name in ("student_bank", "teacher_bank"):
        assert torch.equal(kept[0][name], kept[1][name])
        np.testing.assert_allclose(kept[0][name].numpy(), reference.state[name], rtol=1e-9)


def test_it_teaches_both_maps_and_the_student_alone():
    term, (student, teacher, batch, progress) = bound(), step(0)
    teacher.taps[TAP].requires_grad_()
    term(student, teacher, batch, progress).mean().backward()
    for parameter in (*term.embed_student.parameters(), *term.embed_teacher.parameters(), student.taps[TAP]):
        assert parameter.grad.norm() > 0
    assert {name for name, _ in term.named_parameters()} == {
        f"embed_{network}.{kind}" for network in ("student", "teacher") for kind in ("weight", "bias")
    }


def test_banks_start_uniform_on_a_small_cube():
    term = CRD(negatives=2, temperature=0.1, momentum=0.5, dimension=48).bind(CONTEXT)
    for bank in (term.student_bank, term.teacher_bank):
        assert bank.shape == (30, 48)
        assert 0.24 < bank.abs().max() <= 0.25
        assert abs(bank.mean()) < 0.02
    assert not torch.equal(term.student_bank, term.teacher_bank)


def banks(term):
    return {name: value.clone() for name, value in term.named_buffers() if "bank" in name or "log" in name}


def same(first, second):
    return all(torch.equal(first[name].nan_to_num(7.0), second[name].nan_to_num(7.0)) for name in first)


def test_nothing_moves_before_the_step_is_settled():
    term = bound()
    before = banks(term)
    term(*step(0)).sum().backward()
    assert same(before, banks(term))
    term.commit(YES)
    moved = [name for name, value in banks(term).items() if not torch.equal(value, before[name])]
    assert moved == ["student_bank", "teacher_bank", "log_normalisers"]
    unseen = [i for i in range(30) if i not in (4, 9, 11)]
    assert torch.equal(term.student_bank[unseen], before["student_bank"][unseen])


def test_a_step_that_was_not_applied_leaves_no_trace():
    term = bound()
    before = banks(term)
    term(*step(0))
    term.commit(NO)
    assert same(before, banks(term))
    first = term(*step(1)).detach()
    assert torch.equal(bound()(*step(1)).detach(), first)


def test_evaluation_moves_nothing():
    term = bound().eval()
    before = banks(term)
    assert torch.isfinite(term(*step(0))).all()
    term.commit(YES)
    assert same(before, banks(term))


def test_a_row_that_is_not_finite_is_left_as_it_was():
    """In a custom loop that does not report a bad step."""
    term = bound()
    term(*step(0))
    term.commit(YES)
    before = banks(term)
    inputs = step(1, (4, 9, 11))
    with torch.no_grad():
        inputs[0].taps[TAP][1] = torch.nan
    assert torch.isnan(term(*inputs)).tolist() == [False, True, False]
    term(*step(2, (20, 21)))
    after = banks(term)
    assert torch.equal(after["student_bank"][9], before["student_bank"][9])
    assert not torch.equal(after["teacher_bank"][9], before["teacher_bank"][9])
    assert not torch.equal(after["student_bank"][4], before["student_bank"][4])
    assert all(torch.isfinite(value).all() for value in after.values())


def test_a_first_batch_that_is_not_finite_fixes_no_constants():
    term = bound()
    inputs = step(0)
    with torch.no_grad():
        inputs[0].taps[TAP][0] = torch.inf
    term(*inputs)
    term(*step(1))
    term.commit(YES)
    reference = bound()
    reference.load_state_dict(term.state_dict())
    assert torch.isfinite(term.log_normalisers).all()


def test_a_state_has_what_was_seen_and_goes_on_alike():
    term = bound()
    term(*step(0)).sum().backward()
    state = copy.deepcopy(term.state_dict())
    loaded = bound(seed=1)
    loaded(*step(5))
    loaded.load_state_dict(state)
    torch.testing.assert_close(loaded(*step(1)), term(*step(1)), rtol=0, atol=0)
    assert same(banks(loaded), banks(term))


def test_it_guards_its_buffers():
    assert isinstance(bound(), StatefulTerm)
    assert not isinstance(objectives.kd().bind().terms["kd"], StatefulTerm)


# The preset


def test_it_adds_to_another_objective():
    objective = objectives.wttm(gamma=0.1, beta=3.0) + 0.8 * objectives.crd()
    assert objective.weights() == {"ce": 1.0, "wttm": 3.0, "crd": 0.8}
    needs = objective.needs
    assert needs.labels == "any"
    assert needs.coupled
    assert needs.student_taps == needs.teacher_taps == (TAP,)
    assert objective.target_gamma == 0.1
    assert objectives.crd().needs.labels == "none"
    assert not objectives.crd().supervised
    recipe = objective.to_recipe()
    assert recipe[1] == {
        "crd": {"weight": 1.0, "negatives": 16384, "temperature": 0.07, "momentum": 0.5, "dimension": 128},
        "scale": 0.8,
    }
    assert objectives.from_recipe(recipe) == objective


@pytest.mark.parametrize(
    ("arguments", "refusal"),
    [
        ({"negatives": 0}, refused(InvalidValueError, "negatives", got=0)),
        ({"dimension": 2.5}, refused(InvalidValueError, "dimension", got=2.5)),
        ({"temperature": 0}, refused(InvalidValueError, "temperature")),
        ({"momentum": 1}, refused(InvalidValueError, "momentum")),
        ({"weight": -1}, refused(InvalidValueError, "weight")),
    ],
)
def test_bad_arguments_are_refused_at_the_call(arguments, refusal):
    with refusal:
        objectives.crd(**arguments)


@pytest.mark.parametrize(
    ("context", "refusal"),
    [
        (replace(CONTEXT, labels=None), refused(InvalidValueError, "context")),
        (replace(CONTEXT, student_shapes={}), refused(InvalidValueError, "context")),
        (replace(CONTEXT, teacher_shapes={TAP: (4, 8, 8)}), refused(InvalidValueError, "tap card:embedding")),
    ],
)
def test_a_context_that_lacks_something_is_refused(context, refusal):
    with refusal:
        objectives.crd().bind(context)


def test_a_sample_of_other_data_is_refused():
    with refused(InvalidValueError, "batch.index", got="2 to 39"):
        bound()(*step(0, (2, 9))[:2], Batch(torch.tensor([2, 30 + 9]), torch.zeros(2, 1), LABELS[:2]), Progress())


def test_a_teacher_that_is_not_there_is_refused():
    student, _, batch, progress = step(0)
    with refused(InvalidValueError, "teacher"):
        bound()(student, None, batch, progress)
