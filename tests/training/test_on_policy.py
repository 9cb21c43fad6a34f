"""Batches that are changed as they are used."""

import torch

from tutelage.training.on_policy import OnPolicyBatches
from tutelage.types import Batch


class Two:
    samples = 4

    def __init__(self, seen):
        self.seen = seen

    def __len__(self):
        return 2

    def epoch(self, epoch, *, start=0, rank=0, world=1):
        for step in range(start, 2):
            self.seen.append(("made", epoch, step, rank, world))
            yield Batch(torch.tensor([step]), torch.zeros(1, 1), torch.zeros(1))


def test_each_batch_is_changed_after_the_step_on_the_one_before():
    seen = []

    def change(batch):
        seen.append(("changed", int(batch.index), torch.is_autocast_enabled("cpu")))
        return batch._replace(labels=batch.labels + 1)

    batches = OnPolicyBatches(Two(seen), change, device=torch.device("cpu"), precision="bf16")
    for batch in batches.epoch(3, rank=1, world=2):
        seen.append(("step", int(batch.labels), torch.is_autocast_enabled("cpu")))
    steps = [[("made", 3, k, 1, 2), ("changed", k, True), ("step", 1, False)] for k in range(2)]
    assert seen == [*steps[0], *steps[1]]
    assert (len(batches), batches.samples) == (2, 4)
    assert [int(batch.index) for batch in batches.epoch(0, start=1)] == [1]
