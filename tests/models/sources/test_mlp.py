import pytest
import torch
from sklearn.datasets import load_digits
from tests._helpers.refusals import refused
from torch import nn

from tutelage.errors import InvalidValueError
from tutelage.models import create


def test_layers_and_card():
    classifier = create("mlp:256x128", classes=10, channels=1, image_size=(8, 8))
    widths = [(m.in_features, m.out_features) for m in classifier.network.modules() if isinstance(m, nn.Linear)]
    assert widths == [(64, 256), (256, 128), (128, 10)]
    assert classifier.card.stages == ("hidden.0", "hidden.1")
    assert classifier.card.stage_inputs == ("hidden.0.0", "hidden.1.0")
    assert (classifier.card.embedding, classifier.card.head) == ("hidden.1", "head")
    assert classifier.card.mean == classifier.card.std == (0.5,)


def test_the_taps_are_activated_hidden_layers(watch):
    classifier = create("mlp:16x4", classes=10, channels=1, image_size=(8, 8))
    card, network = classifier.card, classifier.network
    logits, seen = watch(network, card.stages + card.stage_inputs, torch.randn(5, 1, 8, 8))
    assert [tuple(seen[tap].shape) for tap in card.stages] == [(5, 16), (5, 4)]
    for after, before in zip(card.stages, card.stage_inputs, strict=True):
        assert torch.equal(seen[after], seen[before].relu())
    assert torch.equal(network.head(seen[card.embedding]), logits)


def test_it_learns_the_digits():
    digits = load_digits()
    images = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
    labels = torch.from_numpy(digits.target)
    classifier = create("mlp:64", classes=10, channels=1, image_size=(8, 8))
    optimizer = torch.optim.Adam(classifier.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(classifier(images[:1400]), labels[:1400]).backward()
        optimizer.step()
    accuracy = (classifier(images[1400:]).argmax(1) == labels[1400:]).float().mean()
    assert accuracy > 0.85


@pytest.mark.parametrize("widths", ["", "x", "64x", "0", "64x0", "64,64", "-3", "six"])
def test_widths_that_cannot_be_read(widths):
    with refused(InvalidValueError, "model", got=f"'mlp:{widths}'", suggests="mlp:256x256"):
        create(f"mlp:{widths}", classes=10, image_size=(8, 8))


def test_what_it_needs_is_asked_for():
    with refused(InvalidValueError, "classes", suggests="classes=10"):
        create("mlp:64", image_size=(8, 8))
    with refused(InvalidValueError, "image_size", suggests="image_size=(8, 8)"):
        create("mlp:64", classes=10)
