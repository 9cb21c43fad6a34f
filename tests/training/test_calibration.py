"""Temperatures are held against a grid of them, computed by NumPy and SciPy in float64."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import nn

from tutelage.training.calibration import FEWEST, HIGHEST, LOWEST, Answered, calibrate, fit_temperature
from tutelage.training.evaluate import KeptLogits, evaluate
from tutelage.types import UNLABELLED, Batch

HOW = {"device": torch.device("cpu"), "precision": "fp32", "channels_last": False}


def answered(count=400, *, scale=3.0, seed=0, classes=5, batch=64, most=2**20):
    """Logits that are ``scale`` times too large, in batches; a seventh of the samples is unlabelled."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, generator=generator) * 2
    labels = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
    labels[::7] = UNLABELLED
    kept = KeptLogits(most)
    for number, index in enumerate(torch.arange(count).split(batch)):
        kept[number], kept.index[number] = logits[index] * scale, index
    return Answered(kept, labels)


def numpy(given):
    """Logits and labels in order, and whether each sample has a label."""
    rows = [(index.numpy(), logits.numpy(), labels.numpy()) for _, index, logits, labels in given.rows()]
    index, logits, labels = (np.concatenate(column) for column in zip(*rows, strict=True))
    order = np.argsort(index)
    return logits[order].astype(np.float64), labels[order], labels[order] >= 0


def best_of_a_grid(logits, labels):
    grid = np.exp(np.linspace(np.log(0.05), np.log(20), 2001))
    return min(grid, key=lambda each: -log_softmax(logits / each, -1)[np.arange(len(labels)), labels].mean())


@pytest.mark.parametrize("scale", [0.2, 1.0, 3.0])
def test_the_temperature_is_the_best_of_a_grid(scale):
    given = answered(scale=scale)
    logits, labels, known = numpy(given)
    assert fit_temperature(given) == pytest.approx(best_of_a_grid(logits[known], labels[known]), rel=2e-3)


def test_after_scaling_by_hand():
    """The validation set's temperature; without one, that of the other half of the test set."""
    test, validation = answered(), answered(seed=1)
    logits, labels, known = numpy(test)
    other, other_labels, other_known = numpy(validation)
    temperature = best_of_a_grid(other[other_known], other_labels[other_known])
    halves = [(logits[k::2][known[k::2]], labels[k::2][known[k::2]]) for k in (1, 0)]
    for fitted_on, temperatures in (
        ("validation", np.full(len(labels), temperature)),
        ("test", np.array([best_of_a_grid(*half) for half in halves] * 200)),
    ):
        scaled = calibrate(test, validation if fitted_on == "validation" else None)
        logq = log_softmax(logits / temperatures[:, None], -1)
        assert scaled["fitted_on"] == fitted_on
        assert scaled["temperature"] == pytest.approx(np.sqrt(temperatures[0] * temperatures[1]), rel=2e-3)
        assert scaled["loss"] == pytest.approx(-logq[known, labels[known]].mean(), rel=1e-4)
        sure, right = np.exp(logq).max(-1)[known], (logq.argmax(-1) == labels)[known]
        bins = np.clip(np.ceil(sure * 15), 1, 15) - 1
        gaps = sum(abs((right[bins == k] - sure[bins == k]).sum()) for k in range(15))
        assert scaled["ece"] == pytest.approx(gaps / known.sum(), abs=2e-3)
        assert [each["count"] for each in scaled["reliability"]] == pytest.approx(
            np.bincount(bins.astype(int), minlength=15).tolist(), abs=2
        )


def test_logits_in_a_file_and_in_other_batches_give_the_same():
    wanted = calibrate(answered())
    assert calibrate(answered(most=0)) == wanted
    assert calibrate(answered(batch=400))["temperature"] == pytest.approx(wanted["temperature"], rel=1e-6)


def test_what_no_temperature_is_best_for():
    given = answered()
    right = Answered(given.logits, torch.cat([logits.argmax(-1) for _, _, logits, _ in given.rows()]))
    assert LOWEST <= fit_temperature(right) < 1.001 * LOWEST  # right about all of them
    wrong = Answered(given.logits, torch.cat([logits.argmin(-1) for _, _, logits, _ in given.rows()]))
    assert 0.999 * HIGHEST < fit_temperature(wrong) <= HIGHEST
    same = answered(scale=0.0)
    assert fit_temperature(same) == 1.0


def test_too_few_labels_fit_nothing():
    given = answered()
    few = given.labels.clone()
    few[2 * FEWEST :] = UNLABELLED
    few = given._replace(labels=few)
    assert calibrate(few) is None
    assert calibrate(few, given)["fitted_on"] == "validation"
    assert calibrate(given, few._replace(labels=torch.full_like(few.labels, UNLABELLED)))["fitted_on"] == "test"
    assert calibrate(given._replace(labels=torch.full_like(few.labels, UNLABELLED)), given) is None


def test_an_evaluation_says_what_is_answered_for_each_sample():
    """In the order of the samples' indices, whatever that of the batches; without being asked it holds none."""
    given = answered()
    logits, labels, known = numpy(given)
    shuffled = np.random.default_rng(0).permutation(len(labels))

    class Batches:
        samples = len(labels)

        def __len__(self):
            return 4

        def epoch(self, epoch, *, start=0, rank=0, world=1):
            for index in np.array_split(shuffled, 4):
                yield Batch(*(torch.from_numpy(each[index]) for each in (np.arange(len(labels)), logits, labels)))

    predicted = evaluate(nn.Identity(), Batches(), predictions=True, **HOW).predicted
    assert predicted.index.tolist() == list(range(400))
    assert predicted.labels.tolist() == labels.tolist()
    assert predicted.classes.tolist() == logits.argmax(-1).tolist()
    assert predicted.probabilities.numpy() == pytest.approx(np.exp(log_softmax(logits, -1)).max(-1), rel=1e-5)
    evaluation = evaluate(nn.Identity(), Batches(), **HOW)
    assert evaluation.predicted is None
    assert evaluation.accuracy == (logits.argmax(-1) == labels)[known].mean()
