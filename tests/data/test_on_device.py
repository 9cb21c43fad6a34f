"""Batches that are made on a device, held to the CPU's: to the bit, and without a wait for the host."""

import itertools

import numpy as np
import pytest
import torch
from tests._helpers.refusals import refused
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from tutelage.data import BatchLoader, DataSettings, RandAugment, Splits, describe_place, loader_on, on_device, resident
from tutelage.data.build import Description, Pixels, from_pixels
from tutelage.data.on_device import UploadLoader
from tutelage.data.resident import ResidentLoader
from tutelage.errors import InvalidValueError

CPU, META = torch.device("cpu"), torch.device("meta")
ALL = {"crop_padding": 2, "flip": True, "random_erasing": 0.6, "mixup": 0.8, "cutmix": 1.0}


def splits(*, channels=3, divisor=255.0, shape=(9, 12), count=60, **settings) -> Splits:
    values = np.random.default_rng(0).integers(0, int(divisor) + 1, (count, *shape, channels)).astype(np.uint8)
    pixels = Pixels(values, np.arange(count) % 4)
    how = DataSettings(validation=0.2, mix_probability=0.8, **settings)
    return from_pixels(pixels, pixels, Description(class_names=list("abcd"), settings=how, source="x"), divisor=divisor)


def resident_on(split, device=CPU, **others):
    return ResidentLoader(split, device=device, **{"batch_size": 14, "train": True, "data_seed": 3} | others)


def uploaded_to(split, device=CPU, **others):
    return UploadLoader(split, device=device, **{"batch_size": 14, "train": True, "data_seed": 3} | others)


def assert_same(expected, batches):
    """Compare batches one by one, as the tensors of one are overwritten by the next."""
    count = 0
    for plain, batch in zip(expected, batches, strict=True):
        assert plain.view == batch.view
        for a, b in zip(plain[:3], batch[:3], strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)
        assert plain.inputs.stride() == batch.inputs.stride()
        count += 1
    assert count


@pytest.mark.parametrize("loader", [resident_on, uploaded_to])
@pytest.mark.parametrize("source", [{}, {"channels": 1, "divisor": 16.0, "shape": (8, 8)}])
@pytest.mark.parametrize(("mixup", "cutmix"), [(0.0, 0.0), (0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_batches_have_the_bits_of_the_cpus(loader, source, mixup, cutmix):
    for crop, flip, erasing, labelled in itertools.product((0, 2), (False, True), (0.0, 0.6), (None, 0)):
        settings = {"crop_padding": crop, "flip": flip, "random_erasing": erasing, "labelled": labelled}
        split = splits(**source, **settings, mixup=mixup, cutmix=cutmix).train
        there = loader(split)
        plain = BatchLoader(split, batch_size=14, train=True, data_seed=3)
        for epoch, start in ((0, 0), (1, 0), (4, 2), (1, 0)):
            assert_same(plain.epoch(epoch, start=start), there.epoch(epoch, start=start))


@pytest.mark.parametrize("loader", [resident_on, uploaded_to])
@pytest.mark.parametrize("how", [{}, {"first_epoch": 3}, {"train": False}, {"batch_size": 1000}, {"batch_size": 47}])
def test_shares_stages_and_evaluation_are_the_cpus(loader, how):
    for split in (splits(**ALL).train, splits(**ALL).validation):
        plain = BatchLoader(split, **{"batch_size": 14, "train": True, "data_seed": 3} | how)
        there = loader(split, **how)
        for world in (1, 2, 3) if len(split) > 12 else (1,):
            for rank in range(world):
                assert_same(plain.epoch(1, rank=rank, world=world), there.epoch(1, rank=rank, world=world))
        requests = [np.arange(5), np.arange(7, 11), np.arange(3, 8)]
        assert_same(plain.at(2, requests), there.at(2, requests))
    with refused(InvalidValueError, "rank", got=2):
        next(there.epoch(0, rank=2, world=2))


def test_an_epoch_may_be_left_unfinished():
    split = splits(**ALL).train
    there, plain = resident_on(split), BatchLoader(split, batch_size=14, train=True, data_seed=3)
    for epoch in (0, 0, 1, 3):
        next(there.epoch(epoch))
    assert_same(plain.epoch(1), there.epoch(1))


def test_the_tensors_stay_where_they_are_and_pixels_are_held_once():
    parts = splits(**ALL)
    there = resident_on(parts.train)
    places = {tuple(map(id, batch[:3])) for epoch in range(3) for batch in there.epoch(epoch)}
    assert len(places) == 2  # of whole batches, and of the last
    copies = [resident.pixels_on(split.pixels, META) for split in (parts.train, parts.validation)]
    assert copies[0] is copies[1]
    assert resident.lies_on(parts.train.pixels, META)
    assert not resident.lies_on(splits().train.pixels, META)


class Recording(TorchDispatchMode):
    """Takes down operations, to do the same again: what is no tensor is as it was then, as in a CUDA graph."""

    def __init__(self):
        super().__init__()
        self.done = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        self.done.append((function, args, kwargs or {}, made))
        return made

    def again(self):
        now = {}
        for function, args, kwargs, made in self.done:
            inputs, keywords = tree_map(lambda x: now.get(id(x), x), (args, kwargs))
            outputs = function(*inputs, **keywords)
            for old, new in zip(tree_flatten(made)[0], tree_flatten(outputs)[0], strict=True):
                now[id(old)] = new


@pytest.mark.parametrize("settings", [{}, ALL, {"crop_padding": 1, "random_erasing": 0.1}])
def test_a_captured_form_is_good_for_every_step_and_epoch(settings):
    captured = []

    def capture(function):
        function()
        with Recording() as recording:
            function()
        captured.append(recording)
        return recording.again

    split = splits(**settings).train
    there = resident_on(split, capture=capture)
    plain = BatchLoader(split, batch_size=14, train=True, data_seed=3)
    for epoch in range(4):
        assert_same(plain.epoch(epoch), there.epoch(epoch))
    if not settings.get("random_erasing"):
        assert len(captured) == 2  # More noise than there is room for is another form.


class StaysThere(TorchDispatchMode):
    """Refuses operations that read or make a tensor elsewhere."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        leaves = tree_flatten((args, kwargs, made))[0]
        assert {leaf.device.type for leaf in leaves if isinstance(leaf, torch.Tensor)} <= {"meta"}, function
        return made


@pytest.mark.parametrize("settings", [{}, ALL])
def test_a_batch_asks_nothing_of_the_device_and_sends_nothing(settings):
    batches = resident_on(splits(**settings).train, META).epoch(0)
    next(batches)
    with StaysThere():
        for batch in batches:
            assert {tensor.device.type for tensor in batch[:3]} == {"meta"}


def test_where_pixels_lie(monkeypatch):
    free = splits().train.pixels.nbytes * 4
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 0))
    cuda = torch.device("cuda")
    fits, large, randaugment = splits(), splits(count=61), splits(randaugment=RandAugment())
    assert on_device.reason_elsewhere(fits.train, cuda) is None
    assert "more than a quarter" in on_device.reason_elsewhere(large.train, cuda)
    assert on_device.reason_elsewhere(splits(count=61, on_device=True).train, cuda) is None
    assert "false" in on_device.reason_elsewhere(splits(on_device=False).train, cuda)
    assert "RandAugment" in on_device.reason_elsewhere(randaugment.train, cuda)
    with refused(InvalidValueError, "data.on_device", got="RandAugment", suggests="data.on_device=auto"):
        on_device.reason_elsewhere(splits(randaugment=RandAugment(), on_device=True).train, cuda)
    assert describe_place(fits, cuda) == "train, validation, test on cuda, 0.0 MiB of 8-bit values"
    assert describe_place(randaugment, cuda).endswith("train on the host: RandAugment has no form there")
    assert describe_place(fits, CPU) == "in memory, 0.0 MiB of 8-bit values"


def test_the_loader_is_the_devices():
    def kind(device, **settings):
        return type(loader_on(device, splits(**settings).train, batch_size=4, train=True))

    assert kind(CPU) is kind(CPU, on_device=True) is BatchLoader
    assert kind(META) is kind(META, on_device=False) is UploadLoader
    assert kind(META, on_device=True) is ResidentLoader
