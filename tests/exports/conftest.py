"""A tiny student on tiny data."""

import numpy as np
import pytest
import torch
from torch import nn

from tutelage import data, models
from tutelage.exports.opening import source_of
from tutelage.runs.networks import adopt


class Samples:
    """Images of noise and their classes."""

    classes = ("rose", "tulip", "lily")

    def __init__(self, count):
        generator = np.random.default_rng(count)
        self.images = generator.random((count, 1, 4, 4), dtype=np.float32)
        self.labels = generator.integers(0, 3, count)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return torch.from_numpy(self.images[i]), int(self.labels[i])


class Net(nn.Module):
    """A module of the user's own, whose class can be imported from a file."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.head = nn.Linear(4, 3)

    def forward(self, images):
        return self.head(torch.relu(self.conv(images)).mean((2, 3)))


def network():
    torch.manual_seed(0)
    return Net()


def splits():
    return data.from_datasets(Samples(20), Samples(37), classes=3, class_names=list(Samples.classes))


@pytest.fixture
def make():
    """Return what makes a source of a module."""

    def made(module=None, **arguments):
        return source_of(adopt(module or network(), splits(), "student"), splits(), name="flowers", **arguments)

    return made


@pytest.fixture
def text_source():
    """A tiny classifier of texts, and texts of several lengths."""
    from tutelage.exports.source import Source
    from tutelage.text import TextInput, learn_bpe

    tokenizer = learn_bpe(["a rose is a rose", "two tulips"], 300)
    text = TextInput(tokenizer=tokenizer, max_tokens=8)
    sizes = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
    classifier = models.create("hf:bert", config=sizes, classes=3, text=text).eval()
    inputs = torch.randint(257, (9, 8), generator=torch.Generator().manual_seed(0))
    for row, length in enumerate([8, 3, 1, 5, 2, 8, 1, 4, 7]):
        inputs[row, length:] = -1
    return Source(
        classifier=classifier,
        inputs=inputs,
        class_names=Samples.classes,
        metadata={"name": "texts", "class_names": list(Samples.classes)},
        files=tokenizer.files(),
    )
