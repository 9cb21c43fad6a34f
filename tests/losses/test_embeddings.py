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
