import copy

import numpy as np
import pytest
import torch
from tests._helpers.refusals import refused
from torch import nn

from tutelage.errors import InvalidTypeError, InvalidValueError
from tutelage.models import Card, Classifier, create

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


class Flat(nn.Module):
    """Gives back what reaches it, so that a test sees the normalisation alone."""

    def forward(self, x):
        return x.flatten(1)


@pytest.fixture
def images():
    return torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))


def flat(mean=MEAN, std=STD):
    return Classifier(Flat(), Card(name="flat", classes=105, mean=mean, std=std))


def truth(images):
    x = images.double().numpy()
    return (x - np.array(MEAN).reshape(1, 3, 1, 1)) / np.array(STD).reshape(1, 3, 1, 1)


def test_inputs_are_normalised_by_the_card(images):
    np.testing.assert_allclose(flat()(images).reshape(2, 3, 5, 7), truth(images), rtol=1e-5, atol=1e-6)


def test_double_keeps_nothing_that_float32_rounded(images):
    got = flat().double()(images.double()).reshape(2, 3, 5, 7)
    np.testing.assert_allclose(got, truth(images), rtol=1e-13, atol=1e-14)


def test_bfloat16_rounds_inputs_and_outputs_but_not_the_statistics(images):
    classifier = flat().to(torch.bfloat16)
    rounded = images.bfloat16()
    got = classifier(rounded)
    assert got.dtype == torch.bfloat16
    expected = torch.from_numpy(truth(rounded.float())).to(torch.bfloat16)
    torch.testing.assert_close(got.reshape(2, 3, 5, 7), expected, rtol=0, atol=0)


def test_autocast_does_not_change_the_normalisation(images):
    plain = flat()(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(flat()(images), plain)


def test_channels_last_stays_channels_last(images):
    last = images.to(memory_format=torch.channels_last)
    out = flat().to(memory_format=torch.channels_last).normalise(last)
    assert out.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(out, truth(images), rtol=1e-5, atol=1e-6)


def test_a_network_in_bfloat16_and_channels_last_agrees_with_float32():
    classifier = create("cifar:resnet8").eval()
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    exact = classifier(images)
    low = copy.deepcopy(classifier).to(torch.bfloat16).to(memory_format=torch.channels_last)
    got = low(images.bfloat16().to(memory_format=torch.channels_last))
    torch.testing.assert_close(got.float(), exact, rtol=0.1, atol=0.05 * float(exact.detach().abs().max()))


def test_no_statistics_no_change(images):
    assert torch.equal(flat(None, None)(images), images.flatten(1))


def test_the_statistics_are_no_part_of_the_state():
    classifier = create("cifar:resnet8")
    assert all(key.startswith("network.") for key in classifier.state_dict())
    assert next(iter(classifier.network.state_dict())) == "conv1.weight"


def test_gradients_pass_the_normalisation(images):
    images.requires_grad_()
    flat()(images).sum().backward()
    expected = torch.tensor(STD).reciprocal().reshape(1, 3, 1, 1).expand_as(images)
    torch.testing.assert_close(images.grad, expected)


def test_whole_numbers_and_other_channels_are_refused(images):
    with refused(InvalidTypeError, "inputs", got="torch.uint8", suggests="inputs.float() / 255"):
        flat()((images * 255).to(torch.uint8))
    with refused(InvalidValueError, "inputs", got="(2, 1, 5, 7)"):
        flat()(images[:, :1])


@pytest.mark.parametrize(
    ("output", "got"),
    [
        (lambda x: (x, x), "tuple"),
        (lambda x: {"logits": x}, "dict"),
        (lambda x: x.sum(), "()"),
        (lambda x: x[0, 0, 0], "(7,)"),
        (lambda x: x[:1, 0, 0], "(1, 7)"),
    ],
)
def test_what_is_not_logits_is_refused(images, output, got):
    class Odd(nn.Module):
        def forward(self, x):
            return output(x)

    with refused(InvalidTypeError, "odd", got=got):
        Classifier(Odd(), Card(name="odd", classes=3))(images)
