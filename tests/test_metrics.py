"""The measures of other tasks, against scikit-learn and by hand."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, confusion_matrix, f1_score, jaccard_score

from tutelage import metrics

GENERATOR = np.random.default_rng(0)


def folded(metric, batches, teacher=None):
    """Fold batches in two processes that take them in turn."""
    states = [None, None]
    for number, (logits, labels) in enumerate(batches):
        given = None if teacher is None else teacher[number]
        states[number % 2] = metric.fold(states[number % 2], number, logits, labels, given)
    return metric.end([state for state in states if state is not None])


def test_mean_iou_is_scikit_learns_over_the_classes_that_occur():
    logits = torch.randn(3, 40, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 4, (3, 40), generator=torch.Generator().manual_seed(1))
    labels[0, :7] = -100
    logits[..., 4] = -100.0  # neither a label nor ever given
    known = (labels != -100).numpy()
    wanted = jaccard_score(labels.numpy()[known], logits.argmax(-1).numpy()[known], average="macro")
    assert folded(metrics.MeanIoU(), zip(logits, labels, strict=True))["mean_iou"] == pytest.approx(wanted, abs=1e-12)
    none = torch.full((1, 40), -100)
    assert folded(metrics.MeanIoU(), zip(logits[:1], none, strict=True)) == {"mean_iou": None}


def test_labels_are_judged_as_by_scikit_learn_and_unknown_ones_left_out():
    samples, count = 60, 5
    scores = GENERATOR.integers(-3, 4, (samples, count)).astype(np.float32)  # many are equal
    labels = GENERATOR.integers(0, 2, (samples, count))
    labels[:, 4] = 0  # a label that no sample has
    labels[::7, 1] = -100
    logits = torch.stack([torch.zeros(samples, count), torch.from_numpy(scores)], -1).flatten(0, 1)
    batches = zip(logits.split(15 * count), torch.from_numpy(labels).flatten().split(15 * count), strict=True)
    found = folded(metrics.PerLabel(count), batches)
    known = labels != -100
    columns = [(labels[known[:, k], k], scores[known[:, k], k]) for k in range(4)]
    precision = [average_precision_score(*column) for column in columns]
    assert found["mean_average_precision"] == pytest.approx(np.mean(precision), abs=1e-12)
    macro = [f1_score(truth, score > 0) for truth, score in columns]
    assert found["macro_f1"] == pytest.approx(np.mean(macro), abs=1e-12)
    assert found["micro_f1"] == pytest.approx(f1_score(labels[known], scores[known] > 0), abs=1e-12)
    assert confusion_matrix(labels[known], scores[known] > 0).min() > 0


def test_whether_labels_are_ranked_better_than_by_chance():
    def beats(scores, labels):
        metric = metrics.PerLabel(labels.shape[1])
        logits = torch.stack([torch.zeros_like(scores), scores], -1).flatten(0, 1)
        return metric.beats_chance([metric.fold(None, 0, logits, labels.flatten(), None)])

    draw = torch.Generator().manual_seed(0)
    labels = (torch.rand(200, 8, generator=draw) < 0.1).long()  # No for all is right nine times of ten.
    guesses = torch.randn(200, 8, generator=draw) - 5
    assert beats(guesses, labels) is False
    assert beats(torch.zeros(200, 8), labels) is False
    guesses[:, 3] += 2 * labels[:, 3]
    assert beats(guesses, labels) is True
    assert beats(guesses, torch.full_like(labels, -100)) is None


def test_recall_at_1_asks_for_the_nearest_other_sample(monkeypatch):
    monkeypatch.setattr(metrics, "BLOCK", 2)
    embeddings = torch.tensor([[1.0, 0], [10, 1], [0, 1], [0.1, 3], [-1, 0], [9, 1]])
    labels = torch.tensor([0, 0, 1, 1, 2, -100])  # the last would be nearest to the second
    teacher = [2 * embeddings[:3], -embeddings[3:]]
    batches = list(zip(embeddings.split(3), labels.split(3), strict=True))
    found = folded(metrics.Retrieval(), batches, teacher)
    assert found == {"recall_at_1": 4 / 5, "cosine": pytest.approx(0.0, abs=1e-12)}
    unlabelled = [(embeddings, torch.full((6,), -100))]
    assert folded(metrics.Retrieval(), unlabelled) == {"recall_at_1": None}
