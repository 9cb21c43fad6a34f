"""Losses on embeddings, against their formulas in float64 and at their edges."""

import math

import pytest
import torch

from tutelage import losses, objectives
from tutelage.errors import InvalidValueError


def drawn(*shape, seed):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_cosine_and_squared_distances_are_those_of_the_formulas():
    s, t = drawn(5, 7, seed=0).requires_grad_(), drawn(5, 7, seed=1)
    cosine = losses.cosine_distance(s, t)
    wanted = 1 - (s * t).sum(1) / (s.norm(dim=1) * t.norm(dim=1))
    torch.testing.assert_close(cosine, wanted)
    (own,), (by_hand,) = torch.autograd.grad(cosine.sum(), s), torch.autograd.grad(wanted.sum(), s)
    torch.testing.assert_close(own, by_hand)
    torch.testing.assert_close(losses.embedding_mse(s, t), ((s - t) ** 2).sum(1) / 7)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_length_of_a_vector_does_not_matter_to_its_direction(scale):
    s, t = drawn(3, 4, seed=0).float(), drawn(3, 4, seed=1).float()
    torch.testing.assert_close(losses.cosine_distance(scale * s, t), losses.cosine_distance(s, t))
    zeros = torch.zeros(1, 4, requires_grad=True)
    distance = losses.cosine_distance(zeros, t[:1])
    distance.sum().backward()
    assert distance.tolist() == [1.0]
    assert torch.isfinite(zeros.grad).all()


def test_similarities_are_compared_as_the_formula_says_and_the_widths_may_differ():
    s, t = drawn(5, 7, seed=0), drawn(5, 3, seed=1)
    unit = [x / x.norm(dim=1, keepdim=True) for x in (s, t)]
    total = 0.0
    for i in range(5):
        others = [j for j in range(5) if j != i]
        q, p = ((x[others] @ x[i] / at).softmax(0) for x, at in zip(unit, (0.2, 0.1), strict=True))
        total += float((p * (p / q).log()).sum())
    found = losses.in_batch_similarity(s, t, temperature=0.2, teacher_temperature=0.1)
    assert float(found) == pytest.approx(total / 5, rel=1e-12)
    rotated = s @ torch.linalg.qr(drawn(7, 7, seed=2)).Q
    assert float(losses.in_batch_similarity(rotated, s, temperature=0.1, teacher_temperature=0.1)) < 1e-12


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(InvalidValueError, match="teacher_embeddings: expected the shape of student_embeddings"):
        losses.cosine_distance(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(InvalidValueError, match="student_embeddings: expected at least 2 samples"):
        losses.in_batch_similarity(torch.zeros(1, 3), torch.zeros(1, 3), temperature=1.0, teacher_temperature=1.0)
    with pytest.raises(InvalidValueError, match="temperature"):
        losses.in_batch_similarity(torch.zeros(2, 3), torch.zeros(2, 3), temperature=math.inf, teacher_temperature=1.0)


def test_presets_say_that_they_read_embeddings_and_which_couples_the_batch():
    assert objectives.cosine().needs.embeddings
    assert not objectives.cosine().needs.coupled
    assert objectives.in_batch_similarity().needs.coupled
    assert objectives.in_batch_similarity().needs.labels == "none"
    assert not objectives.kd().needs.embeddings


def test_the_distance_is_euclids_also_where_squares_overflow_and_at_0():
    s, t = drawn(5, 7, seed=0).requires_grad_(), drawn(5, 7, seed=1)
    found, wanted = losses.embedding_distance(s, t), (s - t).norm(dim=1)
    torch.testing.assert_close(found, wanted)
    for ours, by_hand in zip(torch.autograd.grad(found.sum(), s), torch.autograd.grad(wanted.sum(), s), strict=True):
        torch.testing.assert_close(ours, by_hand)
    far = torch.tensor([[3e30, 0.0], [1e-30, 0.0], [1.0, 1.0]], requires_grad=True)
    values = losses.embedding_distance(far, torch.tensor([[0.0, 4e30], [0.0, 0.0], [1.0, 1.0]]))
    values.sum().backward()
    assert values.tolist() == pytest.approx([5e30, 1e-30, 0.0])
    assert far.grad.norm(dim=1).tolist() == pytest.approx([1.0, 1.0, 0.0])


def test_margins_do_not_read_the_level_of_scores():
    s, t = drawn(4, 5, seed=0), drawn(4, 5, seed=1)
    wanted = [sum(((s[n, 0] - s[n, j]) - (t[n, 0] - t[n, j])) ** 2 for j in range(1, 5)) / 4 for n in range(4)]
    torch.testing.assert_close(losses.margin_mse(s, t), torch.stack(wanted))
    torch.testing.assert_close(losses.margin_mse(s + 3, t - 2), losses.margin_mse(s, t))
    assert losses.margin_mse(t, t).tolist() == [0, 0, 0, 0]


def test_scores_are_compared_as_distributions_each_at_its_temperature():
    s, t = drawn(4, 5, seed=0), drawn(4, 5, seed=1)
    found = losses.score_kl(s, t, temperature=2.0, teacher_temperature=0.5)
    p, q = (t / 0.5).softmax(1), (s / 2).softmax(1)
    torch.testing.assert_close(found, 4 * (p * (p / q).log()).sum(1))
    torch.testing.assert_close(losses.score_kl(s, t, temperature=3.0, teacher_temperature=3.0),
                               losses.kd(s, t, temperature=3.0))  # fmt: skip
    far = (300 * drawn(4, 5, seed=2)).half().requires_grad_()
    losses.score_kl(far, t.half()).sum().backward()
    assert torch.isfinite(far.grad).all()
    with pytest.raises(InvalidValueError, match="student_scores: expected at least 2 documents a query"):
        losses.margin_mse(s[:, :1], t[:, :1])
