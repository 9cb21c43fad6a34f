"""Moving targets and skewed divergences, against NumPy and against recorded steps."""

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from tests._helpers.refusals import refused

from tutelage import losses
from tutelage.errors import InvalidTypeError, InvalidValueError
from tutelage.types import UNLABELLED

DOUBLE = torch.float64


def draw(seed=0, shape=(5, 7), scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    z, v = scale * torch.randn(2, *shape, generator=generator, dtype=DOUBLE)
    return z.requires_grad_(), v, torch.randint(shape[-1], shape[:-1], generator=generator)


def softmax(logits):
    return scipy.special.softmax(logits.detach().numpy(), axis=-1)


def close(ours, expected, tolerance=1e-12):
    torch.testing.assert_close(
        ours.detach(), torch.as_tensor(expected, dtype=ours.dtype), rtol=tolerance, atol=tolerance
    )


# TAID


@pytest.mark.parametrize("t", [0.0, 0.4, 1.0])
def test_the_target_mixes_logits_and_is_a_constant(t):
    z, v, _ = draw()
    target, student = softmax((1 - t) * z + t * v), softmax(z)
    values = losses.taid(z, v, t=t)
    close(values, scipy.stats.entropy(target, student, axis=-1))
    (slope,) = torch.autograd.grad(values.sum(), z)
    close(slope, student - target)
    close(losses.taid(z, v, t=torch.tensor(t)), values.detach(), 1e-7)


def test_its_ends_are_nothing_and_distillation():
    z, v, _ = draw()
    assert losses.taid(z, v, t=0.0).abs().max() < 1e-15
    close(losses.taid(z, v, t=1.0), losses.kd(z, v, temperature=1.0).detach())


def test_a_share_of_nothing_ignores_infinite_logits():
    z, v = torch.tensor([[0.0, -math.inf, 1.0]]), torch.tensor([[1.0, 2.0, -math.inf]])
    assert torch.equal(losses.taid_target(z, v, t=0.0), torch.log_softmax(z, -1))
    assert torch.equal(losses.taid_target(z, v, t=1.0), torch.log_softmax(v, -1))
    assert losses.taid_target(z, v, t=0.5).exp().tolist() == [[1.0, 0.0, 0.0]]
    assert torch.isfinite(losses.taid(z, v, t=0.5)).all()


@pytest.mark.parametrize(
    ("before", "loss", "settings", "after"),
    [
        # t, momentum and loss before; loss; linear and alpha: as the authors' code went on from there.
        ((0.4003, 0.0, 2.5), 14.749252688660533, (0.4, 5e-4), (0.40044625279620905, -0.048997010754642155)),
        ((0.7, 0.3, 1.2), 1.8515213784058935, (0.76, 5e-4), (0.76, 0.2915706551799509)),
        ((1.0, 0.0, 0.7), 9.213342290050619, (1.0, 5e-4), (1.0, -0.12161917557215166)),
        ((0.5, -0.2, 3.0), 1.5082844641444833, (0.406, 0.1), (0.5225946188205524, -0.19302761488048162)),
        ((0.4, 0.0, math.inf), 2.4409666613143353, (0.4, 5e-4), (0.4, 0.0)),
    ],
)
def test_a_step_of_t(before, loss, settings, after):
    linear, alpha = settings
    state = [torch.tensor(value, dtype=DOUBLE) for value in (*before, loss)]
    ours = losses.taid_step(*state, linear=linear, end=1.0, alpha=alpha, beta=0.99)
    close(torch.stack(ours), after, 1e-14)


# Skewed divergences


@pytest.mark.parametrize("share", [0.1, 0.7])
def test_each_is_the_divergence_from_its_mixture(share):
    z, v, _ = draw()
    p, q = softmax(v), softmax(z)
    close(losses.skewed_kl(z, v, share=share), scipy.stats.entropy(p, share * p + (1 - share) * q, axis=-1))
    close(losses.skewed_kl(z, v, share=share), losses.divergence(z, v, kind="skew", alpha=share).detach())
    mixture = share * q + (1 - share) * p
    values = losses.skewed_kl(z, v, share=share, of="student")
    close(values, scipy.stats.entropy(q, mixture, axis=-1))
    (slope,) = torch.autograd.grad(values.sum(), z)
    ratio = np.log(q / mixture)
    close(slope, q * (ratio - (q * ratio).sum(-1, keepdims=True)))


@pytest.mark.parametrize("of", ["teacher", "student"])
@pytest.mark.parametrize("scale", [0.0, 300.0, 1e4])
def test_it_is_finite_and_bounded(of, scale):
    z, v, _ = (x.detach().float() if x.is_floating_point() else x for x in draw(scale=scale))
    z[0, 1:], v[0, :-1] = -math.inf, -math.inf
    z.requires_grad_()
    values = losses.skewed_kl(z, v, share=0.1, of=of)
    (slope,) = torch.autograd.grad(values.sum(), z)
    assert torch.isfinite(slope).all()
    assert ((values >= -1e-6) & (values <= -math.log(0.1) + 1e-6)).all()


def test_a_share_for_each_sample_is_that_of_each():
    z, v, _ = draw(shape=(3, 4, 7))
    shares = torch.tensor([0.1, 0.5, 0.9], dtype=DOUBLE)
    for of in ("teacher", "student"):
        ours = losses.skewed_kl(z, v, share=shares[:, None], of=of)
        close(
            ours, torch.stack([losses.skewed_kl(z[k], v[k], share=float(shares[k]), of=of) for k in range(3)]).detach()
        )


def test_a_share_follows_the_gap_of_the_kept_labels():
    z, v, y = draw(shape=(4, 6, 5))
    y[:, 4:] = UNLABELLED
    y[3] = UNLABELLED
    p, q = (np.log(softmax(x))[:3, :4] for x in (v, z))
    label = y[:3, :4, None].numpy()
    gap = np.exp(np.take_along_axis(p, label, -1).mean((1, 2))) - np.exp(np.take_along_axis(q, label, -1).mean((1, 2)))
    for of, sign in (("teacher", 1), ("student", -1)):
        ours = losses.adaptive_share(z, v, y, share=0.3, anchor=sign * 0.02, of=of)
        assert ours.shape == (4, 1)
        close(ours[:3, 0], np.clip(1 - 0.7 * sign * 0.02 / (sign * gap + 1e-5), 0.01, 0.3))
    assert losses.adaptive_share(z, v, y, share=0.3, anchor=0.0).unique().item() == pytest.approx(0.3)
    one = losses.adaptive_share(z[:, 0], v[:, 0], y[:, 0], share=0.3, anchor=0.02)
    assert one.shape == (4,)


def test_no_gradient_flows_through_the_share_and_none_without_a_label():
    z, v, y = draw(seed=3, shape=(4, 6, 5))
    y[:, 2] = UNLABELLED
    share = losses.adaptive_share(z, v, y, share=0.3, anchor=0.01)
    assert share.requires_grad
    values = losses.distillm2(z, v, y, share=0.3, anchor=0.01)
    fixed = losses.skewed_kl(z, v, share=share.detach()).masked_fill(y == UNLABELLED, 0.0)
    close(values, fixed.detach())
    slopes = [torch.autograd.grad(x.sum(), z, retain_graph=True)[0] for x in (values, fixed)]
    assert torch.equal(*slopes)
    assert not slopes[0][:, 2].any()


@pytest.mark.parametrize(
    ("call", "refusal"),
    [
        (lambda z, v, y: losses.taid(z, v, t=1.5), refused(InvalidValueError, "t", got=1.5, suggests="t=0.4")),
        (lambda z, v, y: losses.taid(z, v, t="half"), refused(InvalidTypeError, "t")),
        (lambda z, v, y: losses.skewed_kl(z, v, share=1.0), refused(InvalidValueError, "share", got=1.0)),
        (lambda z, v, y: losses.skewed_kl(z, v, of="both"), refused(InvalidValueError, "of", got="both")),
        (
            lambda z, v, y: losses.distillm2(z, v, torch.softmax(v, -1), anchor=0.1),
            refused(InvalidValueError, "labels"),
        ),
        (lambda z, v, y: losses.distillm2(z, v, y, anchor="far"), refused(InvalidTypeError, "anchor", got="str")),
        (lambda z, v, y: losses.distillm2(z, v, y, anchor=math.inf), refused(InvalidValueError, "anchor", got="inf")),
        (lambda z, v, y: losses.taid(z, v[:, 1:], t=0.5), refused(InvalidValueError, "teacher_logits")),
    ],
)
def test_what_is_refused(call, refusal):
    with refusal:
        call(*draw())
