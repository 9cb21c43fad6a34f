import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tutelage.training.buffers import SavedBuffers

BASE = torch.arange(24.0).reshape(4, 6)
BUFFERS = {
    "a vector": lambda: torch.rand(5),
    "a counter": lambda: torch.tensor(3),
    "of no elements": lambda: torch.zeros(0, 3),
    "a flag": lambda: torch.tensor([True, False]),
    "half": lambda: torch.rand(3, 2).half(),
    "complex": lambda: torch.rand(3, dtype=torch.complex64),
    "channels last": lambda: torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "transposed": lambda: torch.rand(3, 4).T,
    "some columns": lambda: BASE.clone()[:, 1:3],
    "every other row": lambda: BASE.clone()[::2],
    "of a size 1": lambda: torch.rand(1, 4, 1).transpose(0, 2),
}


def spoil(buffer):
    buffer.copy_(torch.ones_like(buffer) if buffer.dtype == torch.bool else torch.full_like(buffer, 77))


@pytest.mark.parametrize("unless", [None, torch.tensor(False)])
def test_every_buffer_is_as_it_was(unless):
    buffers = [make() for make in BUFFERS.values()]
    before, strides = [buffer.clone() for buffer in buffers], [buffer.stride() for buffer in buffers]
    saved = SavedBuffers(buffers)
    saved.save()
    for buffer in buffers:
        spoil(buffer)
    saved.restore(unless=unless)
    for name, buffer, old, stride in zip(BUFFERS, buffers, before, strides, strict=True):
        assert torch.equal(buffer, old), name
        assert buffer.stride() == stride, name


@pytest.mark.parametrize("name", BUFFERS)
def test_one_that_is_to_stay_is_left_alone(name):
    buffer = BUFFERS[name]()
    saved = SavedBuffers([buffer])
    saved.save()
    spoil(buffer)
    moved = buffer.clone()
    saved.restore(unless=torch.tensor(True))
    assert torch.equal(buffer, moved)


def test_nothing_but_the_buffer_is_written():
    whole = BASE.clone()
    saved = SavedBuffers([whole[:, 1:3]])
    saved.save()
    whole.fill_(7.0)
    saved.restore()
    assert torch.equal(whole[:, 1:3], BASE[:, 1:3])
    assert bool((whole[:, [0, 3, 4, 5]] == 7.0).all())


def test_what_nothing_can_write_to_is_no_matter():
    saved = SavedBuffers([torch.tensor([2.0]).expand(3), torch.rand(2)])
    saved.save()
    saved.restore()
    SavedBuffers([]).save()


def test_a_network_of_many_norms_costs_as_many_operations_as_one_of_few():
    class Count(TorchDispatchMode):
        operations = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.operations += 1
            return function(*args, **(kwargs or {}))

    counts = []
    for norms in (1, 50):
        saved = SavedBuffers([b for _ in range(norms) for b in torch.nn.BatchNorm2d(3).buffers()])
        with Count() as count:
            saved.save()
            saved.restore(unless=torch.tensor(True))
        counts.append(count.operations)
    assert counts[0] == counts[1] <= 12
