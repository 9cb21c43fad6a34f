"""Several networks that teach as one."""

import pytest
import torch
from tests._helpers.refusals import refused
from torch import nn

import tutelage
from tutelage import Batch, FrozenTeacher, models
from tutelage.errors import InvalidTypeError, InvalidValueError
from tutelage.models import Card, Classifier, Ensemble
from tutelage.models.ensembles import combined
from tutelage.models.entrance import entrance


def logits(*, scale=3.0, networks=3):
    return [scale * torch.randn(5, 7, dtype=torch.float64) for _ in range(networks)]


def classifier(side=8, *, seed=0, outputs=None, classes=4, task="classes", **card):
    torch.manual_seed(seed)
    made = classes if outputs is None else 6
    network = nn.Sequential(nn.Flatten(), nn.Linear(side**2, made))
    fields = {"name": f"t{seed}", "classes": classes, "channels": 1, "image_size": (side, side), "task": task}
    return Classifier(network, Card(**fields, **card), outputs=outputs)


def test_the_mean_of_probabilities_is_a_distribution_s_and_of_logits_a_geometric_one():
    torch.manual_seed(0)
    several, weights = logits(), (0.5, 0.3, 0.2)
    mean = sum(w * v.softmax(-1) for w, v in zip(weights, several, strict=True))
    torch.testing.assert_close(combined(several, weights, of="probabilities").softmax(-1), mean)
    torch.testing.assert_close(combined(several, weights, of="probabilities").exp(), mean)
    product = torch.stack([v.softmax(-1) ** w for w, v in zip(weights, several, strict=True)]).prod(0)
    geometric = combined(several, weights, of="logits").softmax(-1)
    torch.testing.assert_close(geometric, product / product.sum(-1, keepdim=True))


def test_no_probability_underflows_and_a_forbidden_class_stays_one():
    far = torch.tensor([[0.0, -500.0, -float("inf")]])
    mean = combined([far, far - 3], (0.25, 0.75), of="probabilities")
    assert mean[0, 1] == -500
    assert mean[0, 2] == -float("inf")
    half = combined([far.half(), far.half()], (0.5, 0.5), of="probabilities")
    assert half.dtype == torch.float32
    assert half[0, 0] == 0


def test_each_member_has_its_own_size_statistics_and_classes():
    plain = classifier(seed=1)
    other = classifier(16, seed=2, outputs=[5, 0, 3, 1], mean=(0.3,), std=(0.2,))
    other.resizes = True
    images = torch.rand(3, 1, 8, 8)
    own = other.network((entrance(images, other.card) - 0.3) / 0.2)[:, [5, 0, 3, 1]]
    expected = combined([plain.network(images), own], (0.75, 0.25), of="probabilities")
    teacher = Ensemble([plain, other], weights=[3, 1])
    torch.testing.assert_close(teacher(images), expected)
    assert teacher.card.name == "ensemble(t1, t2)"
    assert (teacher.card.classes, teacher.card.image_size) == (4, None)
    batch = Batch(torch.arange(3), images, torch.zeros(3, dtype=torch.int64))
    outputs = FrozenTeacher(teacher, tuple(teacher.by_tap))(batch)
    torch.testing.assert_close(outputs.taps["members.1"], own)
    assert teacher.by_tap == {"members.0": 0.75, "members.1": 0.25}


def test_a_fingerprint_covers_what_the_weights_of_the_networks_do_not_say():
    def fingerprint(*, weights=None, combine="probabilities", outputs=None, **card):
        return models.fingerprint(
            Ensemble(
                [classifier(seed=1), classifier(seed=2, outputs=outputs or [0, 1, 2, 3], **card)],
                weights=weights,
                combine=combine,
            )
        )

    changes = ({"weights": [1, 2]}, {"combine": "terms"}, {"combine": "logits"}, {"outputs": [1, 0, 2, 3]})
    changes += ({"mean": (0.1,), "std": (1.0,)},)
    known = [fingerprint(**change) for change in ({}, *changes)]
    assert len(set(known)) == len(known)
    assert fingerprint(weights=[2, 2]) == known[0]
    assert models.fingerprint(Ensemble([classifier(seed=1), classifier(seed=2)]).bfloat16().float())  # ints stay


def test_labels_are_averaged_one_by_one_and_embeddings_as_vectors():
    images = torch.rand(3, 1, 8, 8)
    labels = [classifier(seed=k, task="labels") for k in range(2)]
    mean = sum(member.network(images).sigmoid() for member in labels) / 2
    torch.testing.assert_close(Ensemble(labels)(images).softmax(-1)[..., 1], mean)
    vectors = [classifier(seed=k, task="embedding") for k in range(2)]
    mean = sum(member(images) for member in vectors) / 2
    torch.testing.assert_close(Ensemble(vectors, combine="logits")(images), mean)
    torch.testing.assert_close(Ensemble(vectors, combine="terms")(images), mean)
    with refused(InvalidValueError, "combine", suggests="combine=logits"):
        Ensemble(vectors)


class Masked(nn.Linear):
    def forward(self, x, mask):
        return super().forward(x * mask)


def test_a_member_with_keywords_reads_its_keys_and_another_its_view():
    keyed = tutelage.Adapter(Masked(4, 3), inputs={"x": "teacher", "mask": "mask"})
    plain = nn.Linear(4, 3)
    views = {"teacher": torch.rand(2, 4), "mask": torch.tensor([[1.0, 0, 1, 1]] * 2)}
    teacher = models.ensemble(models.adopt(keyed, classes=3), plain, combine="logits")
    batch = Batch(torch.arange(2), views, torch.zeros(2, dtype=torch.int64))
    expected = (keyed(views) + plain(views["teacher"])) / 2
    torch.testing.assert_close(FrozenTeacher(teacher)(batch).logits, expected)


@pytest.mark.parametrize(
    ("members", "keys", "what"),
    [
        (1, {}, "members"),
        (2, {"weights": [1]}, "weights"),
        (2, {"weights": [1, 0]}, "weights"),
        (2, {"weights": [1, float("nan")]}, "weights"),
        (2, {"combine": "mean"}, "combine"),
    ],
)
def test_what_cannot_be_combined_is_refused(members, keys, what):
    with refused(InvalidValueError, what):
        models.ensemble(*[classifier(seed=k) for k in range(members)], **keys)


def test_members_of_other_classes_or_tasks_one_twice_and_what_is_no_network_are_refused():
    member = classifier(seed=1)
    with refused(InvalidValueError, "members", got="twice"):
        models.ensemble(member, Classifier(member.network, member.card))
    for other in (classifier(seed=2, classes=5), classifier(seed=2, task="labels")):
        with refused(InvalidValueError, "member t2"):
            models.ensemble(member, other)
    with refused(InvalidTypeError, "members", got="str"):
        models.ensemble(member, "mlp:8")
    wide = models.adopt(nn.Sequential(nn.Flatten(), nn.Linear(64, 9)), classes=4)
    with refused(InvalidValueError, "teacher.members.1", got="(2, 9)"):
        models.ensemble(member, wide)(torch.rand(2, 1, 8, 8))


def test_bare_modules_are_refused_by_the_class_and_taken_by_the_function():
    bare = [torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)]
    with refused(InvalidTypeError, "members", suggests="tutelage.models.ensemble(a, b)"):
        Ensemble(bare)
    assert models.ensemble(*bare).card.classes == 3
