"""What a network takes is found before the first step, by passes that leave no trace."""

import random

import numpy as np
import pytest
import torch
from tests._helpers.fit_cases import Moving, Rows, fitted, mlp, same_bits, samples, seeded, settings, state
from tests._helpers.refusals import refused
from torch import nn
from torch.nn import functional as F

from tutelage import models, objectives
from tutelage.errors import InvalidTypeError, InvalidValueError, RecipeError, UserCodeError
from tutelage.modules import Distiller, FrozenTeacher
from tutelage.training.distributed import accelerator_on
from tutelage.training.dry_forward import check_batches, check_logits, smallest_batch
from tutelage.training.isolation import Isolation
from tutelage.training.job import FitJob
from tutelage.training.lockstep import Lockstep

SETTINGS = settings()


class Norm(nn.BatchNorm1d):
    """A batch norm of a user's own."""

    def forward(self, x):
        return F.batch_norm(x, None, None, self.weight, self.bias, training=self.training)


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        return self.head(F.batch_norm(x, None, None, training=True))


class Squeezes(nn.Linear):
    """A classic: with one sample the batch axis goes too."""

    def forward(self, x):
        x = super().forward(x.unsqueeze(1)).squeeze()
        assert x.ndim == 2
        return x


class InFours(nn.Linear):
    """A batch norm over parts of a batch, which must be whole."""

    def forward(self, x):
        return super().forward(x.view(4, -1, 6).flatten(0, 1))


class Frozen(nn.Sequential):
    """Batch norms that stay in evaluation mode in training."""

    def train(self, mode=True):
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.eval()
        return self


class Uncopyable(nn.Sequential):
    def __deepcopy__(self, memo):
        raise TypeError("it holds a file")


def around(norm, kind=nn.Sequential):
    return lambda: kind(nn.Linear(6, 8), norm, nn.Dropout(0.5), nn.Linear(8, 4))


def on_images(*layers):
    return lambda: nn.Sequential(nn.Conv2d(6, 4, 1), *layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(4, 4))


BATCHES = {
    "batch norm": (around(nn.BatchNorm1d(8)), (), 2, "1 (BatchNorm1d)"),
    "a user's batch norm": (around(Norm(8)), (), 2, "1 (Norm)"),
    "a function": (Functional, (), 2, ""),
    "not copied": (around(nn.BatchNorm1d(8), Uncopyable), (), 2, "1 (BatchNorm1d)"),
    "squeezed": (lambda: Squeezes(6, 4), (), 2, ""),
    "frozen in training": (around(nn.BatchNorm1d(8), Frozen), (), 1, ""),
    "layer norm": (around(nn.LayerNorm(8)), (), 1, ""),
    "with extent": (on_images(nn.BatchNorm2d(4)), (5, 5), 1, ""),
    "pooled": (on_images(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4)), (5, 5), 2, "2 (BatchNorm2d)"),
    "one pixel": (on_images(nn.BatchNorm2d(4)), (1, 1), 2, "1 (BatchNorm2d)"),
    "in fours": (lambda: InFours(6, 4), (), 8, ""),
}


@pytest.mark.parametrize("case", BATCHES)
def test_the_smallest_batch_of_a_network_is_found(case):
    make, extent, expected, layer = BATCHES[case]
    size, needed = smallest_batch(seeded(make), "student", torch.rand(2, 6, *extent), (1, 8), settings=SETTINGS)
    assert (size, needed) == (expected, layer)


def test_where_no_batch_is_smaller_no_more_is_asked():
    calls = []
    network = around(nn.BatchNorm1d(8))()
    network.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    for smallest, seen in ((64, [2]), (2, [2]), (1, [1, 2])):
        calls.clear()
        smallest_batch(network, "student", torch.rand(2, 6), (smallest, 64), settings=SETTINGS)
        assert calls == [size for size in seen if size > 1]  # one sample does not come through


@pytest.mark.parametrize("make", [Moving, around(nn.BatchNorm1d(8), Uncopyable)])
def test_a_dry_pass_leaves_no_trace(make):
    network = seeded(make).train()
    next(module for module in network.modules() if isinstance(module, nn.Dropout)).eval()
    inputs = torch.rand(2, 2, 8, 8) if isinstance(network, Moving) else torch.rand(2, 6)
    before, modes = state(network), [module.training for module in network.modules()]
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    drawn = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    smallest_batch(network, "student", inputs, (1, 8), settings=SETTINGS)
    check_logits(network, "student", inputs, classes=4, settings=SETTINGS, instead="")
    assert same_bits(state(network), before)
    assert [module.training for module in network.modules()] == modes
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(torch.get_rng_state(), drawn[0])
    assert (random.getstate(), str(np.random.get_state())) == drawn[1:]


def test_inputs_that_a_network_does_not_take_are_named():
    own = models.adopt(nn.Sequential(nn.Flatten(), nn.Linear(9, 4)), "object:Sequential", classes=4)
    instance = models.adopt(seeded(on_images(nn.InstanceNorm2d(4))), "object:Sequential", classes=4)
    for network, inputs, got in (
        (own, torch.rand(2, 1, 8, 8), ["RuntimeError", "1 (Linear)"]),
        (instance, torch.rand(2, 6, 1, 1), ["ValueError", "1 (InstanceNorm2d)"]),
    ):
        with refused(UserCodeError, "Sequential", got=got, suggests="image_size=(16, 16)") as raised:
            smallest_batch(network, "student mine", inputs, (2, 8), settings=SETTINGS)
        assert f"student mine to take inputs {tuple(inputs.shape)}" in raised.value.expected
        assert isinstance(raised.value.__cause__, RuntimeError | ValueError)
    with refused(UserCodeError, "Sequential", got=["RuntimeError", "1 (Linear)"]):
        check_logits(own, "teacher mine", torch.rand(2, 1, 8, 8), classes=4, settings=SETTINGS, instead="")


def test_a_network_of_a_name_is_a_mistake_in_the_recipe():
    network = models.create("torchvision:alexnet", classes=4)
    with refused(RecipeError, "student alexnet", got="RuntimeError", suggests=["student.size=...", "model.size=..."]):
        smallest_batch(network, "student alexnet", torch.rand(2, 3, 8, 8), (2, 8), settings=SETTINGS)
    with refused(RecipeError, "teacher alexnet", got="RuntimeError", suggests="teacher.size=..."):
        check_logits(network, "teacher alexnet", torch.rand(2, 3, 8, 8), classes=4, settings=SETTINGS, instead="")
    vectors = models.adopt(nn.Linear(9, 4), "object:Linear", classes=4)
    with refused(UserCodeError, "Linear", got="RuntimeError") as raised:  # no images, so of no size
        check_logits(vectors, "student mine", torch.rand(2, 6), classes=4, settings=SETTINGS, instead="")
    assert "size" not in raised.value.instead


def test_logits_of_other_classes_or_none_are_refused():
    with refused(RecipeError, "student mine", got=4, suggests="change it"):
        check_logits(mlp(), "student mine", torch.rand(2, 6), classes=5, settings=SETTINGS, instead="change it")

    class Pair(nn.Linear):
        def forward(self, x):
            return super().forward(x), x

    pair = models.adopt(Pair(6, 4), "object:Pair", classes=4)
    with refused(InvalidTypeError, "object:Pair", got="tuple"):
        check_logits(pair, "student", torch.rand(2, 6), classes=4, settings=SETTINGS, instead="")


@pytest.mark.parametrize(
    ("samples", "batch_size", "world", "accumulate", "got", "suggests"),
    [
        (29, 28, 1, 1, 1, ["batch_size=27"]),
        (32, 32, 1, 16, None, []),
        (29, 29, 1, 8, None, []),
        (29, 29, 1, 16, 1, ["accumulate=1"]),
        (31, 10, 1, 1, 1, ["batch_size=9"]),
        (40, 20, 2, 8, 1, ["accumulate=1"]),
        (40, 32, 2, 4, 1, ["accumulate=1", "batch_size=24"]),
        (1, 8, 1, 1, 1, ["samples"]),
    ],
)
def test_a_batch_size_that_fits_is_suggested(samples, batch_size, world, accumulate, got, suggests):
    def check(batch_size):
        check_batches(samples, batch_size, {"the student": 2, "the objective": 1}, world=world, accumulate=accumulate)

    if got is None:
        check(batch_size)
        return
    with refused(RecipeError, "batch_size", got=[got, samples, batch_size], suggests=suggests) as raised:
        check(batch_size)
    typed = [word for word in raised.value.instead.replace(",", "").split() if word.startswith("batch_size=")]
    for word in typed:
        check(int(word.partition("=")[2]))


def test_every_process_takes_as_many_micro_batches():
    """The last batch of 20 samples by 16 gives each of two processes two."""
    check_batches(20, 16, {"the student": 1}, world=2, accumulate=2)
    with refused(RecipeError, "accumulate", got=3, suggests="accumulate=2"):
        check_batches(20, 16, {"the student": 1}, world=2, accumulate=3)
    check_batches(20, 16, {"the student": 1}, accumulate=5)


def test_a_fit_is_refused_before_its_first_step():
    inputs, labels = samples(17)
    for student, batch_size, how, what in (
        (around(nn.BatchNorm1d(8))(), 16, {}, "the student, its 1 (BatchNorm1d)"),
        (around(nn.BatchNorm1d(8))(), 17, {"accumulate": 9}, "the student, its 1 (BatchNorm1d)"),
        (mlp(), 16, {"objective": objectives.kd() + objectives.rkd(student_tap="2", teacher_tap="2")}, "the objective"),
    ):
        before = state(student)
        teacher = FrozenTeacher(mlp(seed=1), ("2",))
        with refused(RecipeError, "batch_size", got=1) as raised:
            fitted(student, Rows(inputs, labels, batch_size=batch_size), teacher=teacher, **{"epochs": 1, **how})
        assert what in raised.value.expected
        assert same_bits(state(student), before)
    fitted(around(nn.BatchNorm1d(8))(), Rows(inputs, labels, batch_size=17), epochs=1, accumulate=8)


def test_a_fit_whose_networks_share_layers_is_refused():
    student = mlp()
    teacher = FrozenTeacher(nn.Sequential(student[0], nn.ReLU(), nn.Linear(8, 4)))
    with refused(InvalidValueError, "student and teacher", got=["the student's 0", "the teacher's 0"]):
        fitted(student, Rows(*samples(), batch_size=16), teacher=teacher, objective=objectives.kd(), epochs=1)


def test_in_lockstep_the_one_that_cannot_be_trained_is_refused():
    jobs = {
        k: FitJob(
            distiller=Distiller(student, objectives.cross_entropy()), settings=settings(epochs=1), uses_teacher=False
        )
        for k, student in enumerate((mlp(), around(nn.BatchNorm1d(8))()))
    }
    isolation, rows = Isolation(), Rows(*samples(17), batch_size=16)
    lockstep = Lockstep(jobs, None, rows, accelerator=accelerator_on("cpu"), isolation=isolation)
    assert [k for k, _ in lockstep.run()] == [0]
    assert isinstance(isolation.errors[1], RecipeError)
