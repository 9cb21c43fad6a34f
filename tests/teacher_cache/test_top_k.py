import math

import numpy as np
import pytest
import torch

from tutelage import losses, targets
from tutelage.teacher_cache.top_k import TeacherCacheError, TopK

CLASSES = 1000


def drawn(samples=64, classes=CLASSES, *, spread=2.0, lead=12.0, seed=0):
    """Logits as an ImageNet network's are: normal with a spread of about 2, and one class far above."""
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(samples, classes, generator=generator)
    logits[torch.arange(samples), torch.randint(classes, (samples,), generator=generator)] += lead
    return logits


def transformed(logits, gamma):
    """``p_gamma`` and ``U_gamma`` in NumPy, float64."""
    v = logits.double().numpy()
    log_p = v - v.max(-1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(-1, keepdims=True))
    powers = np.exp(gamma * log_p)
    return powers / powers.sum(-1, keepdims=True), powers.sum(-1)


@pytest.mark.parametrize("gamma", [0.1, 0.25, 0.5, 1.0])
def test_the_top_is_exact_and_the_tail_has_its_sum(gamma):
    logits, form = drawn(), TopK.of(64, CLASSES)
    read = form.unpack(form.pack(logits), gamma)
    assert read.dtype == torch.float32
    index = logits.topk(64).indices.numpy()
    expected, got = transformed(logits, gamma)[0], transformed(read, gamma)[0]
    top, read_top = (np.take_along_axis(p, index, -1) for p in (expected, got))
    np.testing.assert_allclose(read_top, top, rtol=5e-3 * gamma)
    np.testing.assert_allclose(1 - read_top.sum(-1), 1 - top.sum(-1), rtol=5e-3)
    assert torch.equal(read.argmax(-1), logits.argmax(-1))


def test_the_left_over_mass_is_kept():
    logits, form = drawn(), TopK.of(64, CLASSES)
    left = 1 - logits.double().softmax(-1).topk(64).values.sum(-1)
    torch.testing.assert_close(form.pack(logits)["tail"][:, form.at(1.0)].double().exp(), left, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("gamma", [0.25, 0.5, 1.0])
def test_the_errors_are_those_of_what_is_read(gamma):
    logits, form = drawn(), TopK.of(200, CLASSES)
    kept = form.pack(logits)
    (p, u), (q, v) = transformed(logits, gamma), transformed(form.unpack(kept, gamma), gamma)
    apart, off = np.abs(p - q).sum(-1) / 2, np.abs(v / u - 1)
    expected = [apart.mean(), apart.max(), off.mean(), off.max()]
    np.testing.assert_allclose(kept["error"][form.at(gamma)].numpy(), expected, rtol=2e-3, atol=2e-5)


def test_the_power_sum_is_off_by_the_tails_mass_alone():
    logits, form, gamma = drawn(lead=6.0), TopK.of(64, CLASSES), 0.25
    read = form.unpack(form.pack(logits), gamma)
    ratio = transformed(read, gamma)[1] / transformed(logits, gamma)[1]
    np.testing.assert_allclose(ratio, read.double().exp().sum(-1).numpy() ** -gamma, rtol=1e-3)
    assert (ratio > 1).all()


def test_the_loss_is_off_by_no_more_than_the_errors_say():
    logits, form, gamma = drawn(), TopK.of(900, CLASSES), 0.25
    student = drawn(seed=1)
    kept = form.pack(logits)
    _, max_tv, _, max_sum = kept["error"][form.at(gamma)].tolist()
    live, read = (losses.wttm(student, v, gamma=gamma) for v in (logits, form.unpack(kept, gamma)))
    # A difference of p_gamma moves the divergence by less than twice the total variation times the range of log q.
    u = targets.power_sum(logits.log_softmax(-1), gamma=gamma)
    spread = student.log_softmax(-1).amax() - student.log_softmax(-1).amin()
    assert ((read - live).abs() <= max_sum * live + u * 3 * max_tv * spread).all()


def test_of_1000_classes_the_top_64_miss_most_of_p_gamma_at_a_quarter():
    logits, form = drawn(lead=15.0), TopK.of(64, CLASSES, needed=(0.25,))
    p = (0.25 * logits).softmax(-1)
    assert float(p.topk(64).values.sum(-1).mean()) < 0.5
    assert float(logits.softmax(-1).topk(64).values.sum(-1).mean()) > 0.9
    error = form.pack(logits)["error"]
    with pytest.raises(
        TeacherCacheError,
        match=r"top 64 of 1000 classes .* within 0\.01, got a mean total variation from p_gamma of 0\.\d+ "
        r"\(at most 0\.\d+\) at gamma 0\.25; type a larger outputs_top=.*, outputs_limit_mb=.* or outputs_max_error",
    ):
        form.check(error, (0.25,))
    form.check(error, (1.0,))


def test_a_power_sum_beyond_the_bound_is_refused():
    form = TopK.of(2, 10)
    error = torch.zeros(len(form.gammas), 4)
    error[form.at(0.5)] = torch.tensor([0.001, 0.001, 0.2, 0.3])
    form.check(error, (0.25,))
    with pytest.raises(
        TeacherCacheError, match=r"mean relative error of U_gamma of 0\.2 \(at most 0\.3\) at gamma 0\.5"
    ):
        form.check(error, (0.25, 0.5))
    error[form.at(0.5), 2] = math.nan
    with pytest.raises(TeacherCacheError, match="nan"):
        form.check(error, (0.5,))


def test_exponents_are_on_the_grid_exactly_or_refused():
    form = TopK.of(2, 10, needed=(0.15, 1 / 3))
    assert form.gammas == (0.1, 0.125, 0.15, 0.2, 0.25, 1 / 3, 0.5, 1.0)
    assert form.at(1 / 3.0000000000001) == 5
    with pytest.raises(TeacherCacheError, match=r"among 0\.1, .*, 1, got gamma 0\.7; record them again"):
        form.unpack(form.pack(drawn(4, 10)), 0.7)


def test_a_sample_that_was_not_read_stays_one_and_is_not_measured():
    logits, form = drawn(4, 10), TopK.of(3, 10)
    logits[1] = torch.nan
    kept = form.pack(logits)
    read = form.unpack(kept, 0.5)
    assert read[1].isnan().all()
    assert read[[0, 2, 3]].isfinite().all()
    assert kept["error"].isfinite().all()
    assert not form.pack(logits[1:2])["error"].any()


def test_blocks_change_nothing(monkeypatch):
    logits, form = drawn(20, 50), TopK.of(5, 50)
    whole = form.pack(logits)
    monkeypatch.setattr("tutelage.teacher_cache.top_k.BLOCK", 7)
    for name, tensor in form.pack(logits).items():
        torch.testing.assert_close(tensor, whole[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("classes", "dtype"), [(32768, torch.int16), (32769, torch.int32)])
def test_classes_are_numbered_as_short_as_they_can(classes, dtype):
    logits = torch.zeros(1, classes)
    logits[0, -1] = 30
    form = TopK.of(4, classes)
    kept = form.pack(logits)
    assert kept["index"].dtype == dtype
    assert int(form.unpack(kept, 1.0).argmax()) == classes - 1
    assert sum(t.numel() * t.element_size() for name, t in kept.items() if name != "error") == form.bytes


@pytest.mark.parametrize("kept", [0, 10, 11])
def test_a_number_of_classes_that_is_none_is_refused(kept):
    with pytest.raises(TeacherCacheError, match=rf"top: expected at least 1 and fewer than the 10 classes, got {kept}"):
        TopK.of(kept, 10)


def test_faults_of_the_form():
    with pytest.raises(TeacherCacheError, match="outputs_max_error: expected a number above 0, got 0"):
        TopK.of(2, 10, bound=0)
    with pytest.raises(TeacherCacheError, match="gammas: expected exponents above 0"):
        TopK.of(2, 10, needed=(-1.0,))
    form = TopK.of(2, 10, needed=(0.15,), bound=0.3)
    assert TopK.from_json(form.to_json()) == form
