"""Transformed teacher matching in a training loop of your own: no engine, no records, only losses."""

from collections.abc import Iterator

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from tutelage import Batch, Distiller, FrozenTeacher, Progress, objectives

EPOCHS, BATCH, TRAINING = 6, 64, 1400

digits = load_digits()
images = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]
labels = torch.tensor(digits.target)


def batches() -> Iterator[Batch]:
    """Yield the training set in a new order: indices, images, labels."""
    for index in torch.randperm(TRAINING).split(BATCH):
        yield Batch(index, images[index], labels[index])


def fit(distiller: Distiller, teacher: FrozenTeacher | None = None) -> None:
    """Train a distiller, whose parameters are the student's and any that the objective has."""
    optimizer = torch.optim.AdamW(distiller.parameters(), lr=3e-3)
    steps, step = EPOCHS * -(-TRAINING // BATCH), 0
    for epoch in range(EPOCHS):
        distiller.train()
        for batch in batches():
            # Only scheduled weights read the progress; if all weights are numbers, leave it out.
            progress = Progress(epoch, step, step / steps)
            loss, _ = distiller(batch, teacher(batch) if teacher else None, progress)
            optimizer.zero_grad()
            loss.total.backward()
            optimizer.step()
            step += 1
        terms = ", ".join(f"{name} {float(value):.3f}" for name, value in loss.parts.items())
        print(f"epoch {epoch + 1}, last batch: loss {float(loss.total.detach()):.3f} ({terms})")


@torch.no_grad()
def accuracy(network: nn.Module) -> float:
    """Return the fraction of test images that are classified correctly."""
    network.eval()
    named: Tensor = network(images[TRAINING:]).argmax(-1)
    return float((named == labels[TRAINING:]).double().mean())


torch.manual_seed(0)
large = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1152, 10))
small = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))

fit(Distiller(large, objectives.cross_entropy()))
# The last tenth of the run fades the teacher out; beta=1.0 would keep it.
beta = objectives.Linear(start=1.0, end=0.0, begin=0.9)
fit(Distiller(small, objectives.wttm(gamma=0.25, beta=beta)), FrozenTeacher(large))
print(f"teacher {accuracy(large):.1%}, student {accuracy(small):.1%}")
