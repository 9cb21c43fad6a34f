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
    "conjugated": lambda: torch.rand(3, dtype=torch.complex64).conj(),
}


class Holder(torch.nn.Module):
    """Holds tensors as buffers."""

    def __init__(self, *buffers):
        super().__init__()
        for i, buffer in enumerate(buffers):
            self.register_buffer(f"b{i}", buffer)


def spoil(buffer):
    buffer.copy_(torch.ones_like(buffer) if buffer.dtype == torch.bool else torch.full_like(buffer, 77))


@pytest.mark.parametrize("unless", [None, torch.tensor(False)])
def test_every_buffer_is_as_it_was(unless):
    buffers = [make() for make in BUFFERS.values()]
    before, strides = [buffer.clone() for buffer in buffers], [buffer.stride() for buffer in buffers]
    saved = SavedBuffers(Holder(*buffers))
    saved.save()
    for buffer in buffers:
        spoil(buffer)
    saved.restore() if unless is None else saved.restore_unless(unless)
    for name, buffer, old, stride in zip(BUFFERS, buffers, before, strides, strict=True):
        assert torch.equal(buffer, old), name
        assert buffer.stride() == stride, name


@pytest.mark.parametrize("name", BUFFERS)
def test_one_that_is_to_stay_is_left_alone(name):
    buffer = BUFFERS[name]()
    saved = SavedBuffers(Holder(buffer))
    saved.save()
    spoil(buffer)
    moved = buffer.clone()
    saved.restore_unless(torch.tensor(True))
    assert torch.equal(buffer, moved)


def test_nothing_but_the_buffer_is_written():
    whole = BASE.clone()
    saved = SavedBuffers(Holder(whole[:, 1:3]))
    saved.save()
    whole.fill_(7.0)
    saved.restore()
    assert torch.equal(whole[:, 1:3], BASE[:, 1:3])
    assert bool((whole[:, [0, 3, 4, 5]] == 7.0).all())


def test_what_nothing_can_write_to_is_no_matter():
    saved = SavedBuffers(Holder(torch.tensor([2.0]).expand(3), torch.rand(2), None))
    saved.save()
    saved.restore()
    SavedBuffers(Holder()).save()


def test_a_network_of_many_norms_costs_as_many_operations_as_one_of_few():
    class Count(TorchDispatchMode):
        operations = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.operations += 1
            return function(*args, **(kwargs or {}))

    counts = []
    for norms in (1, 50):
        saved = SavedBuffers(torch.nn.Sequential(*(torch.nn.BatchNorm2d(3) for _ in range(norms))))
        with Count() as count:
            saved.save()
            saved.restore_unless(torch.tensor(True))
        counts.append(count.operations)
    assert counts[0] == counts[1] <= 12


class Replaces(torch.nn.Module):
    """A module that puts another tensor in the place of its buffer."""

    def __init__(self, shape=(3,), dtype=torch.float32):
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.made = torch.full(shape, 5.0, dtype=dtype)

    def forward(self):
        self.mean = self.made.clone()


@pytest.mark.parametrize("shape", [(3,), (4,)])
def test_a_buffer_that_is_replaced_is_put_back(shape):
    module = Replaces(shape)
    saved = SavedBuffers(module)
    for _ in range(2):
        saved.save()
        module()
        saved.restore()
        assert torch.equal(module.mean, torch.zeros(3))


def test_a_buffer_that_is_replaced_in_a_step_that_counts_is_the_one_to_go_back_to():
    module = Replaces((4,))
    saved = SavedBuffers(module)
    saved.save()
    module()
    saved.save()
    module.mean.zero_()
    saved.restore()
    assert torch.equal(module.mean, torch.full((4,), 5.0))


@pytest.mark.parametrize("stays", [True, False])
def test_a_condition_decides_for_one_that_is_replaced_too(stays):
    module = Replaces()
    saved, first = SavedBuffers(module), module.mean
    saved.save()
    module()
    saved.restore_unless(torch.tensor(stays))
    assert torch.equal(module.mean, torch.full((3,), 5.0 if stays else 0.0))
    assert module.mean is first


def test_where_the_host_may_not_look_one_of_another_shape_stays():
    for module in (Replaces((4,)), Replaces(dtype=torch.float64)):
        saved = SavedBuffers(module)
        saved.save()
        module()
        saved.restore_unless(torch.tensor(False))
        assert torch.equal(module.mean, module.made)


def test_those_of_a_module_that_guards_its_own_are_left_to_it():
    guard = Holder(torch.zeros(2))
    saved = SavedBuffers(torch.nn.Sequential(Holder(torch.zeros(2)), guard), but=[guard])
    saved.save()
    guard.b0.fill_(3.0)
    saved.restore()
    assert torch.equal(guard.b0, torch.full((2,), 3.0))


def test_one_that_two_modules_share_is_one():
    shared = torch.zeros(2)
    saved = SavedBuffers(torch.nn.Sequential(Holder(shared), Holder(shared)))
    saved.save()
    shared.fill_(3.0)
    saved.restore_unless(torch.tensor(False))
    assert torch.equal(shared, torch.zeros(2))


SPECIAL = {
    "sparse": lambda scale: scale * torch.eye(3).to_sparse(),
    "compressed": lambda scale: scale * torch.eye(3).to_sparse_csr(),
    "quantised": lambda scale: torch.quantize_per_tensor(scale * torch.eye(3), 0.1, 0, torch.quint8),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's own, of sparse and quantised tensors
@pytest.mark.parametrize("name", SPECIAL)
def test_a_special_tensor_is_copied_by_itself(name):
    buffer = SPECIAL[name](1.0)
    saved = SavedBuffers(Holder(buffer, torch.zeros(2)))
    saved.save()
    buffer.copy_(SPECIAL[name](2.0))
    saved.restore()
    dense = buffer.dequantize() if buffer.is_quantized else buffer.to_dense()
    torch.testing.assert_close(dense, torch.eye(3))


@pytest.mark.parametrize("way", ["data", "set_"])
def test_a_buffer_that_is_given_other_memory_is_put_back(way):
    module = Holder(torch.zeros(3), torch.zeros(2))
    saved, buffer = SavedBuffers(module), module.b0
    for _ in range(2):
        module.b0.zero_()
        saved.save()
        if way == "data":
            module.b0.data = torch.full((3,), 5.0)
        else:
            module.b0.set_(torch.full((3,), 5.0))
        saved.restore()
        assert torch.equal(module.b0, torch.zeros(3))
        assert module.b0 is buffer


class Changes(torch.nn.Module):
    """A module whose buffers come, go and change places in a forward pass."""

    def __init__(self, change):
        super().__init__()
        self.change = change
        for name, value in (("a", 1.0), ("b", 2.0), ("c", 3.0)):
            self.register_buffer(name, torch.full((2,), value))
        self.register_buffer("none", None)

    def forward(self):
        self.change(self)


def exchange(module):
    module.a, module.b, module.c = module.b, module.c, torch.full((2,), 4.0)


def fill(module):
    module.none = torch.full((2,), 5.0)


def add(module):
    module.register_buffer("new", torch.full((2,), 5.0))


def delete(module):
    del module.b


def values(module):
    return {name: buffer.tolist() for name, buffer in module.named_buffers()}


@pytest.mark.parametrize("change", [exchange, fill, add, delete])
def test_whatever_a_module_does_with_its_buffers_is_undone(change):
    module = Changes(change)
    saved, before = SavedBuffers(module), values(module)
    saved.save()
    module()
    saved.restore()
    assert values(module) == before
    assert module.none is None


@pytest.mark.parametrize("change", [exchange, fill, add, delete])
def test_what_a_step_that_counts_has_changed_is_what_the_next_goes_back_to(change):
    module = Changes(change)
    saved = SavedBuffers(module)
    saved.save()
    module()
    after = values(module)
    saved.save()
    for buffer in module.buffers():
        buffer.fill_(torch.nan)
    saved.restore()
    assert values(module) == after


@pytest.mark.parametrize("applied", [True, False])
def test_buffers_that_change_places_are_decided_for_by_a_condition(applied):
    module = Changes(exchange)
    saved, before = SavedBuffers(module), values(module)
    saved.save()
    module()
    after = values(module)
    saved.restore_unless(torch.tensor(applied))
    assert values(module) == (after if applied else before)


def test_a_condition_leaves_alone_what_it_cannot_decide_for():
    shared = torch.zeros(2)
    modules = Holder(shared), Holder(shared, torch.zeros(1).expand(2), torch.eye(2).to_sparse())
    saved = SavedBuffers(torch.nn.Sequential(*modules))
    saved.save()
    modules[0].b0, modules[1].b1 = torch.ones(2), torch.ones(2)
    saved.restore_unless(torch.tensor(True))
    assert torch.equal(modules[0].b0, torch.ones(2))
    assert torch.equal(modules[1].b0, torch.zeros(2))
    assert torch.equal(modules[1].b1, torch.ones(2))
