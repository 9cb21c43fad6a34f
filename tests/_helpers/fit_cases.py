"""Small pieces that the engine's tests are made of: data, networks, interruptions."""

import torch
from torch import nn

from tutelage import objectives
from tutelage.modules import Distiller
from tutelage.settings.fit import SGD, FitSettings
from tutelage.training.checkpoints import Checkpoints, CheckpointSink
from tutelage.training.distributed import accelerator_on
from tutelage.training.loop import fit
from tutelage.types import Batch, Outputs


class Rows:
    """Samples of two tensors in batches, in order or shuffled every epoch; it may stop as at a pressed Ctrl-C."""

    def __init__(self, inputs, labels, *, batch_size, shuffle=False, stop_before=None):
        self.inputs, self.labels, self.batch_size, self.shuffle = inputs, labels, batch_size, shuffle
        self.samples, self.stop_before = len(inputs), stop_before

    def __len__(self):
        return -(-self.samples // self.batch_size)

    def epoch(self, epoch, *, start=0, rank=0, world=1):
        order = torch.arange(self.samples)
        if self.shuffle:
            order = torch.randperm(self.samples, generator=torch.Generator().manual_seed(epoch))
        for step, index in enumerate(order.split(self.batch_size)):
            if step >= start:
                if self.stop_before == (epoch, step):
                    raise KeyboardInterrupt
                yield Batch(index, self.inputs[index], self.labels[index])


def samples(count=48, *, shape=(6,), classes=4, seed=0):
    """Inputs in [0, 1] and labels that a line can nearly tell from them."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.rand(count, *shape, generator=generator)
    weights = torch.randn(inputs[0].numel(), classes, generator=generator)
    return inputs, ((inputs.flatten(1) - 0.5) @ weights).argmax(-1)


def seeded(make, seed=0):
    torch.manual_seed(seed)
    return make()


def mlp(inputs=6, classes=4, *, seed=0):
    return seeded(lambda: nn.Sequential(nn.Linear(inputs, 8), nn.ReLU(), nn.Linear(8, classes)), seed)


class Moving(nn.Module):
    """A network that differs between training and evaluation: batch norm and dropout, 8x8 images."""

    def __init__(self, classes=4):
        super().__init__()
        self.conv = nn.Conv2d(2, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(5)
        self.deeper = nn.Conv2d(5, 5, 3, stride=2)
        self.drop = nn.Dropout(0.4)
        self.head = nn.Linear(45, classes)

    def forward(self, x):
        x = self.deeper(self.norm(self.conv(x)).relu())
        return self.head(self.drop(x.flatten(1)))


class Says:
    """A teacher that says what a table holds for each sample."""

    def __init__(self, logits):
        self.logits = logits

    def __call__(self, batch):
        return Outputs(self.logits[batch.index])


def settings(**changes):
    return FitSettings(**{"epochs": 2, "optimizer": SGD(lr=0.1), "checkpoint_seconds": 1e9} | changes)


def fitted(student, batches, *, teacher=None, objective=None, folder=None, resume=False, **changes):
    """Fit a student to the end; return the records."""
    distiller = Distiller(student, objective or objectives.cross_entropy())
    keep = CheckpointSink(Checkpoints(folder / "checkpoints"), folder / "best.safetensors", {}) if folder else None
    return list(
        fit(
            distiller,
            teacher,
            batches,
            settings(**changes),
            accelerator=accelerator_on("cpu"),
            keep=keep,
            resume=keep.checkpoints.load() if keep and resume else None,
        )
    )


def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same_bits(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def untimed(records):
    return [
        {k: v for k, v in record.items() if k not in ("seconds", "images_per_second", "memory_mb")}
        for record in records
    ]
