"""Every number is held against NumPy, SciPy or scikit-learn in float64, computed here."""

import errno
import gc
import tempfile
from typing import NamedTuple

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from scipy.stats import binom, entropy
from sklearn.metrics import accuracy_score, log_loss, recall_score
from tests._helpers.fit_cases import Moving, Rows, samples, seeded, state
from tests._helpers.refusals import refused
from torch import nn

from tutelage import records
from tutelage.errors import StorageError
from tutelage.training.evaluate import KeptLogits, NonFiniteError, evaluate
from tutelage.types import Batch

CLASSES = 5
EMPTY = Batch(*torch.zeros(3, 0))
HOW = {"device": torch.device("cpu"), "precision": "fp32", "channels_last": True}


class EvalOutputs(NamedTuple):
    logits: torch.Tensor
    labels: torch.Tensor


def evaluated(outputs, teacher=None, *, batch_size=64, **options):
    """The evaluation of a network with these outputs, beside a teacher with those."""
    rows, kept = Rows(*outputs, batch_size=batch_size), None
    if teacher is not None:
        kept = KeptLogits()
        evaluate(nn.Identity(), Rows(*teacher, batch_size=batch_size), keep=kept, **HOW)
    return evaluate(nn.Identity(), rows, teacher=kept, **HOW, **options)


def judged(*outputs, **options):
    return evaluated(*outputs, **options).judgement()


def answers(count=400, *, seed=0, classes=CLASSES, unlabelled=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, generator=generator) * 2
    labels = torch.where(
        torch.rand(count, generator=generator) < 0.5,
        logits.argmax(-1),
        torch.randint(classes, (count,), generator=generator),
    )
    labels[:unlabelled] = -100
    return EvalOutputs(logits, labels)


def numpy(outputs):
    known = outputs.labels.numpy() != -100
    logp = log_softmax(outputs.logits.double().numpy(), axis=-1)
    return logp, np.exp(logp), outputs.labels.numpy(), known


@pytest.mark.parametrize("unlabelled", [0, 37])
def test_judgement_by_hand(unlabelled):
    outputs = answers(unlabelled=unlabelled)
    _, p, labels, known = numpy(outputs)
    metrics = judged(outputs)
    named = p.argmax(-1)
    assert metrics["accuracy"] == pytest.approx(accuracy_score(labels[known], named[known]))
    assert metrics["loss"] == pytest.approx(log_loss(labels[known], p[known], labels=range(CLASSES)), rel=1e-5)
    assert metrics["entropy"] == pytest.approx(entropy(p, axis=-1).mean(), rel=1e-5)
    assert metrics["per_class"] == pytest.approx(
        list(recall_score(labels[known], named[known], labels=range(CLASSES), average=None))
    )
    assert metrics.keys() == {"accuracy", "loss", "entropy", "ece", "per_class", "entropy_histogram", "reliability"}


@pytest.mark.parametrize("unlabelled", [0, 37])
def test_calibration_by_hand(unlabelled):
    """Guo et al. 2017: ``ECE = sum_b |b| / n * |acc(b) - conf(b)|`` over 15 bins ``(k / 15, (k + 1) / 15]``."""
    outputs = answers(unlabelled=unlabelled)
    _, p, labels, known = numpy(outputs)
    confidence, right = p.max(-1)[known], (p.argmax(-1) == labels)[known]
    metrics, gaps = judged(outputs), 0.0
    assert len(metrics["reliability"]) == 15
    for k, each in enumerate(metrics["reliability"]):
        here = (confidence > k / 15) & (confidence <= (k + 1) / 15)
        assert each["low"] == pytest.approx(k / 15)
        assert each["high"] == pytest.approx((k + 1) / 15)
        assert each["count"] == here.sum()
        assert each["confidence"] == pytest.approx(confidence[here].mean() if here.any() else 0.0, rel=1e-5)
        assert each["accuracy"] == pytest.approx(right[here].mean() if here.any() else 0.0)
        gaps += abs(right[here].sum() - confidence[here].sum())
    assert metrics["ece"] == pytest.approx(gaps / known.sum(), rel=1e-5)
    assert sum(each["count"] for each in metrics["reliability"]) == known.sum()


def test_calibration_at_the_ends():
    sure = EvalOutputs(torch.tensor([[200.0, 0.0], [200.0, 0.0]]), torch.tensor([0, 1]))
    assert judged(sure)["ece"] == pytest.approx(0.5)
    assert judged(sure)["reliability"][-1]["count"] == 2
    unsure = EvalOutputs(torch.zeros(4, 30), torch.tensor([0, 1, 2, 3]))
    assert judged(unsure)["reliability"][0]["count"] == 4


def test_entropy_histogram_by_hand():
    outputs = answers()
    _, p, _, _ = numpy(outputs)
    metrics = judged(outputs)["entropy_histogram"]
    counts, edges = np.histogram(entropy(p, axis=-1), bins=30, range=(0, np.log(CLASSES)))
    assert metrics["counts"] == counts.tolist()
    assert metrics["edges"] == pytest.approx(edges.tolist(), rel=1e-6)


def test_entropy_histogram_holds_every_sample():
    """A uniform row's entropy may round above ``log(classes)``, a one-hot row's below 0."""
    for classes in (2, 3, 7, 10, 100, 1000):
        rows = torch.cat([torch.zeros(3, classes), torch.eye(classes)[:2] * 500])
        counts = judged(EvalOutputs(rows, torch.zeros(5, dtype=torch.int64)))["entropy_histogram"]["counts"]
        assert sum(counts) == 5
        assert counts[-1] == 3
        assert counts[0] == 2


def test_a_class_without_samples_has_no_accuracy():
    outputs = EvalOutputs(torch.eye(3)[[0, 0, 2]], torch.tensor([0, 2, 2]))
    assert judged(outputs)["per_class"] == [1.0, None, 0.5]


@pytest.mark.parametrize("gamma", [1.0, 0.25, None])
def test_beside_a_teacher_by_hand(gamma):
    student, teacher = answers(seed=1), answers(seed=2)
    logq, q, _, _ = numpy(student)
    logp, p, _, _ = numpy(teacher)
    metrics = judged(student, teacher, gamma=gamma)
    assert metrics["agreement"] == pytest.approx((q.argmax(-1) == p.argmax(-1)).mean())
    assert metrics["kl_to_teacher"] == pytest.approx((p * (logp - logq)).sum(-1).mean(), rel=1e-5)
    if gamma is None:
        assert metrics["kl_to_target"] is None
    else:
        log_target = log_softmax(gamma * teacher.logits.double().numpy(), axis=-1)
        by_hand = (np.exp(log_target) * (log_target - logq)).sum(-1).mean()
        assert metrics["kl_to_target"] == pytest.approx(by_hand, rel=1e-5)
        epoch = evaluated(student, teacher, gamma=gamma).means("test")
        assert epoch["kl_to_target"] == pytest.approx(by_hand, rel=1e-5)
        assert epoch["agreement"] == metrics["agreement"]


def test_an_epochs_means_are_the_judgements():
    outputs = answers(unlabelled=37)
    metrics, detail = evaluated(outputs).means("validation"), judged(outputs)
    of_text = records.TaskMeasures.__annotations__.keys()
    assert metrics.keys() == records.EvaluationMeans.__annotations__.keys() - of_text
    assert (metrics["set"], metrics["samples"]) == ("validation", 400)
    for key in ("accuracy", "loss", "entropy"):
        assert metrics[key] == pytest.approx(detail[key], rel=1e-6)
    assert metrics["agreement"] is None
    assert metrics["kl_to_target"] is None


def test_without_labels_there_is_no_accuracy():
    outputs = answers(unlabelled=400)
    metrics = evaluated(outputs, outputs, gamma=0.5).means("test")
    assert metrics["accuracy"] is None
    assert metrics["loss"] is None
    assert metrics["agreement"] == 1.0
    assert metrics["entropy"] > 0
    assert evaluated(outputs).better_than_chance is None


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_better_than_chance_is_a_binomial_test_at_one_per_cent(classes):
    """The verdict turns exactly where the tail of the binomial distribution falls below 1 %."""
    count = 200
    hits = np.arange(count + 1)
    turns = int(hits[binom.sf(hits - 1, count, 1 / classes) < 0.01][0])
    for right, verdict in [(0, False), (turns - 1, False), (turns, True), (count, True)]:
        logits = torch.zeros(count + 9, classes)
        logits[:, 0] = 1.0
        labels = torch.ones(count + 9, dtype=torch.int64)
        labels[:right], labels[count:] = 0, -100
        assert evaluated(EvalOutputs(logits, labels)).better_than_chance is verdict


def asked(network, batches, **changes):
    """The logits that an evaluation reads."""
    kept = KeptLogits()
    evaluate(network, batches, keep=kept, **HOW | changes)
    return torch.cat([kept(number, EMPTY) for number in range(len(batches))])


def test_a_network_is_asked_in_evaluation_mode_and_put_back():
    inputs, labels = samples(50, shape=(2, 8, 8))
    network = seeded(Moving)
    with torch.no_grad():
        for _ in range(3):
            network(inputs)
    for training in (True, False):
        network.train(training)
        before, random = state(network), torch.get_rng_state()
        outputs = asked(network, Rows(inputs, labels, batch_size=16))
        assert network.training is training
        assert all(module.training is training for module in network.modules())
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
        assert torch.equal(torch.get_rng_state(), random)
        with torch.no_grad():
            torch.testing.assert_close(outputs, network.eval()(inputs))
        assert not outputs.requires_grad


def test_the_mode_is_put_back_after_an_error_too():
    network = seeded(Moving)
    with pytest.raises(RuntimeError):
        asked(network, Rows(torch.rand(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64), batch_size=2))
    assert network.training


def test_half_precision_answers_are_near_and_in_float32():
    inputs, labels = samples(64, shape=(2, 8, 8))
    network, batches = seeded(Moving), Rows(inputs, labels, batch_size=32)
    full, half = asked(network, batches), asked(network, batches, precision="bf16")
    assert half.dtype == torch.float32
    assert not torch.equal(full, half)
    torch.testing.assert_close(full, half, atol=0.05, rtol=0.05)


def test_logits_that_are_not_finite_stop_an_evaluation():
    class Breaks(nn.Module):
        def forward(self, x):
            return torch.where(x[:, :1] > 0.5, torch.inf, x)

    inputs = torch.zeros(40, 3)
    inputs[[4, 17]] = 1.0
    rows = Rows(inputs, torch.zeros(40, dtype=torch.int64), batch_size=8)
    with refused(NonFiniteError, "teacher", got=["2 of 40", "4, 17"]):
        asked(Breaks(), rows, who="teacher")
    with refused(NonFiniteError, "network", got=["40 of 40", 15, 24]):
        asked(Breaks(), Rows(torch.ones(40, 3), rows.labels, batch_size=8))


def test_sums_over_batches_are_those_of_the_whole_set():
    student, teacher = answers(seed=1, unlabelled=37), answers(seed=2)
    whole = judged(student, teacher, gamma=0.25, batch_size=400)
    for size in (1, 7, 64):
        parts = judged(student, teacher, gamma=0.25, batch_size=size)
        for key in ("loss", "entropy", "ece", "kl_to_teacher", "kl_to_target"):
            assert parts[key] == pytest.approx(whole[key], rel=1e-12)
        for key in ("accuracy", "agreement", "per_class", "entropy_histogram"):
            assert parts[key] == whole[key]
        for one, other in zip(parts["reliability"], whole["reliability"], strict=True):
            assert one == pytest.approx(other, rel=1e-12)


@pytest.mark.slow  # what is kept is counted in every change
def test_no_more_than_a_few_batches_are_held():
    """Beside the sample, whatever the number of batches is: logits are counted while the network is called."""
    held = []

    def alive():
        tensors = (each for each in gc.get_objects() if type(each) is torch.Tensor)
        return sum(len(each) for each in tensors if each.shape[1:] == (CLASSES,))

    class Counting(nn.Module):
        def forward(self, x):
            held.append(alive() - before)
            return x + 1

    outputs, teacher = answers(1600), answers(1600, seed=1)
    kept = KeptLogits(most=100 * CLASSES * 4)
    sample = evaluate(nn.Identity(), Rows(*teacher, batch_size=50), keep=kept, **HOW).sample
    assert 256 < len(sample) <= 512
    gc.collect()
    before = alive()
    evaluate(Counting(), Rows(*outputs, batch_size=50), teacher=kept, gamma=0.25, **HOW)
    assert len(held) == 32
    assert max(held) <= 4 * 50  # a batch of inputs, of logits and of what comes of them


def test_logits_beyond_the_limit_are_read_from_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    kept, batches = KeptLogits(most=250), [torch.randn(size, 6) for size in (8, 8, 1, 8, 3)]
    for number, logits in enumerate(batches):
        kept[2 * number] = logits
    assert sorted(kept.held) == [0, 4]
    assert sum(logits.nbytes for logits in kept.held.values()) <= 250
    for number in (4, 1, 3, 0, 2):
        assert torch.equal(kept(2 * number, EMPTY), batches[number])
    assert list(tmp_path.iterdir()) == []  # It has no name.
    student, teacher = answers(seed=1), answers(seed=2)
    whole = evaluated(student, teacher, gamma=0.5)
    monkeypatch.setattr(KeptLogits.__init__, "__defaults__", (0,))
    assert evaluated(student, teacher, gamma=0.5).judgement() == whole.judgement()


def test_a_disk_without_room_for_logits_is_named(monkeypatch):
    def full(*arguments, **keywords):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with refused(StorageError, suggests="free some space"):
        KeptLogits(most=0)[0] = torch.zeros(1, 2)


def test_the_cause_of_logits_that_are_not_finite_is_named():
    inputs = torch.zeros(40, 3)
    inputs[17] = torch.nan
    with refused(NonFiniteError, "network", got=["1 of 40", "inputs of samples 17"]):
        asked(nn.Identity(), Rows(inputs, torch.zeros(40, dtype=torch.int64), batch_size=8))
    broken = nn.Linear(3, 3)
    nn.init.constant_(broken.bias, torch.inf)
    with refused(NonFiniteError, "network", got=["40 of 40", "parameter bias"]):
        asked(broken, Rows(torch.zeros(40, 3), torch.zeros(40, dtype=torch.int64), batch_size=8))
