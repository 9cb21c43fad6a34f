"""Losses on tokens of vision transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests._helpers.refusals import refused

from tutelage import losses
from tutelage.errors import InvalidTypeError, InvalidValueError


def tokens(seed=0, shape=(3, 16, 5), dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def test_vitkd_mimic_sums_over_tokens_and_width():
    s, t = tokens(0), tokens(1)
    np.testing.assert_allclose(losses.vitkd_mimic(s, t).numpy(), ((s - t).numpy() ** 2).sum((1, 2)), rtol=1e-12)


def test_vitkd_generation_sums_over_hidden_tokens_alone():
    s, t = tokens(0).requires_grad_(), tokens(1)
    hidden = losses.hide(torch.rand(3, 16), masked=0.25)
    values = losses.vitkd_generation(s, t, hidden, masked=0.25)
    squares = ((s.detach() - t).numpy() ** 2).sum(2)
    np.testing.assert_allclose(values.detach().numpy(), (squares * hidden.numpy()).sum(1) / 0.25, rtol=1e-12)
    values.sum().backward()
    assert torch.equal(s.grad[~hidden], torch.zeros_like(s.grad[~hidden]))
    assert (s.grad[hidden] != 0).all()


@pytest.mark.parametrize(("count", "masked", "kept"), [(16, 0.5, 8), (49, 0.3, 34), (1, 0.5, 0), (5, 0.9, 0)])
def test_hide_keeps_the_tokens_of_smallest_noise(count, masked, kept):
    noise = torch.rand(4, count, generator=torch.Generator().manual_seed(0))
    hidden = losses.hide(noise, masked=masked)
    assert ((~hidden).sum(1) == kept).all()
    for row, shown in zip(noise, ~hidden, strict=True):
        assert set(row[shown].tolist()) == set(row.sort().values[:kept].tolist())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_they_compute_in_float32_and_teach_the_student_alone(dtype):
    s, t = tokens(0, dtype=dtype).requires_grad_(), tokens(1, dtype=dtype).requires_grad_()
    hidden = losses.hide(torch.rand(3, 16), masked=0.5)
    values = losses.vitkd_mimic(s, t) + losses.vitkd_generation(s, t, hidden, masked=0.5)
    assert values.dtype == torch.float32
    assert values.shape == (3,)
    values.sum().backward()
    assert t.grad is None
    assert s.grad.dtype == dtype


HIDDEN = torch.ones(3, 16, dtype=torch.bool)


@pytest.mark.parametrize(
    ("call", "refusal"),
    [
        (lambda s, t: losses.vitkd_mimic(s, t[:, :4]), refused(InvalidValueError, "teacher_features")),
        (lambda s, t: losses.vitkd_mimic(s[0], t[0]), refused(InvalidValueError, "student_features")),
        (lambda s, t: losses.vitkd_generation(s, t, HIDDEN, masked=0), refused(InvalidValueError, "masked", got=0)),
        (lambda s, t: losses.vitkd_generation(s, t, HIDDEN, masked=1), refused(InvalidValueError, "masked", got=1)),
        (lambda s, t: losses.vitkd_generation(s, t, HIDDEN.int(), masked=0.5), refused(InvalidTypeError, "hidden")),
        (lambda s, t: losses.vitkd_generation(s, t, HIDDEN[:, 1:], masked=0.5), refused(InvalidValueError, "hidden")),
        (lambda s, t: losses.hide(s, masked=0.5), refused(InvalidValueError, "noise")),
    ],
)
def test_what_does_not_fit_is_refused(call, refusal):
    with refusal:
        call(tokens(0), tokens(1))
