"""Several processes train as one does: the same weights in float64, the same first step in float32."""

import warnings

import pytest
import torch
from tests._helpers.fit_cases import mlp, samples, settings, state
from tests._helpers.processes import Shares, processes
from tests._helpers.refusals import refused
from torch import nn

from tutelage import losses, models, objectives
from tutelage.errors import InvalidValueError
from tutelage.models import Card, Classifier
from tutelage.modules import Distiller, FrozenTeacher, network_context
from tutelage.objectives import Apply, Objective, WeightedTerm
from tutelage.settings.fit import SGD
from tutelage.training.batch_norm import local_statistics, norms_to_synchronise, statistics_of, synchronised
from tutelage.training.distributed import accelerator_on, world
from tutelage.training.loop import fit
from tutelage.training.state import TrainState
from tutelage.training.step import train_step
from tutelage.types import UNLABELLED

CLASSES, LIMIT = 4, 600


class Tiny(nn.Module):
    """Batch norms of maps and of vectors: one without weights, one that averages over all batches.

    It is smooth: of a ReLU near zero, rounding can flip the whole gradient.
    """

    def __init__(self, width):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, width, 3, padding=1), nn.BatchNorm2d(width)
        self.deeper, self.plain = nn.Conv2d(width, width, 3, stride=2), nn.BatchNorm2d(width, affine=False)
        self.vectors = nn.BatchNorm1d(9 * width, momentum=None)
        self.head = nn.Linear(9 * width, CLASSES)

    def forward(self, x):
        x = self.norm(self.conv(x)).tanh()
        x = self.plain(self.deeper(x)).tanh()
        return self.head(self.vectors(x.flatten(1)))


def networks_of(kind):
    """Student and teacher, and the shape of their inputs."""
    torch.manual_seed(1)
    if kind == "tiny":
        card = Card(name="tiny", classes=CLASSES, stages=("deeper", "vectors"), embedding="vectors", head="head")
        return Classifier(Tiny(3), card), Classifier(Tiny(5), card), (2, 8, 8)
    student, teacher = (models.create(f"cifar:{name}", classes=CLASSES) for name in ("resnet8", "resnet14"))
    return student, teacher, (3, 16, 16)


def objective_of(name, tap):
    hint = Apply(losses.hint, student_tap=tap, teacher_tap=tap, projection="conv1x1_bn")
    return {
        "kd": objectives.kd,
        "wttm": lambda: objectives.wttm(gamma=0.5, beta=1.0),
        "kd and crd": lambda: objectives.kd() + 0.8 * objectives.crd(negatives=16, dimension=8),
        "taid": lambda: objectives.taid(alpha=0.1, beta=0.5, supervised=1.0),
        "kd and itrd, gathered": lambda: (objectives.kd() + 0.3 * objectives.itrd()).gathered(),
        "kd and rkd, gathered": lambda: (objectives.kd() + objectives.rkd()).gathered(),
        "a map with a batch norm": lambda: Objective.of(WeightedTerm("hint", 1.0, hint)) + objectives.kd(),
    }[name]()


def case(kind, name):
    """A distiller and its teacher, and batches of 18, 18 and 15.

    In the first two, the first of two processes has no label at all.
    """
    student, teacher, shape = networks_of(kind)
    inputs, labels = samples(51, shape=shape)
    numbers = torch.arange(51)
    labels = torch.where((numbers < 36) & (numbers % 2 == 0), UNLABELLED, labels)
    objective = objective_of(name, "deeper" if kind == "tiny" else "card:stage.-1")
    context = network_context(
        objective, student, teacher, inputs[:2], samples=51, classes=CLASSES, labels=labels, seed=5
    )
    torch.manual_seed(2)
    distiller = Distiller(student, objective, context)
    rows = Shares(inputs, labels, batch_size=18)
    return distiller, FrozenTeacher(teacher, objective.needs.teacher_taps), rows


def trained(kind, name):
    """Weights, buffers and means after two epochs in float64."""
    distiller, teacher, rows = case(kind, name)
    how = settings(precision="fp64", clip=1.0)
    records = list(fit(distiller, teacher, rows, how, accelerator=accelerator_on("cpu")))
    assert all(p.dtype == torch.float64 for p in distiller.parameters())
    return state(distiller), [record["train"] for record in records]


def first_step(kind, name):
    """Loss and gradients of the first step in float32."""
    distiller, teacher, rows = case(kind, name)
    accelerator = accelerator_on("cpu")
    train = TrainState(distiller, settings(), accelerator)
    gradients = {}
    train.apply = lambda finite: gradients.update({n: p.grad.clone() for n, p in distiller.named_parameters()})
    distiller.train()
    train_step(train, next(rows.epoch(0, rank=accelerator.process_index, world=accelerator.num_processes)), teacher)
    return accelerator.reduce(train.now.sums)[0], gradients


def multilayer():
    """An MLP's weights after two epochs in float32, under plain SGD."""
    inputs, labels = samples(51)
    distiller = Distiller(mlp(seed=0), objectives.kd())
    how = settings(optimizer=SGD(lr=0.1, momentum=0.0))
    rows = Shares(inputs, labels, batch_size=18)
    list(fit(distiller, FrozenTeacher(mlp(seed=7)), rows, how, accelerator=accelerator_on("cpu")))
    return state(distiller)


# Batch norms, called by themselves

NORMS = {
    "1d": (lambda: nn.BatchNorm1d(3), (7, 3)),
    "of sequences": (lambda: nn.BatchNorm1d(3), (7, 3, 5)),
    "2d": (lambda: nn.BatchNorm2d(3), (7, 3, 4, 2)),
    "3d": (lambda: nn.BatchNorm3d(3), (7, 3, 2, 2, 2)),
    "without weights": (lambda: nn.BatchNorm2d(3, affine=False), (7, 3, 4, 2)),
    "without running statistics": (lambda: nn.BatchNorm2d(3, track_running_stats=False), (7, 3, 4, 2)),
    "cumulative": (lambda: nn.BatchNorm2d(3, momentum=None), (7, 3, 4, 2)),
    "far from zero": (lambda: nn.BatchNorm2d(3, momentum=0.3), (7, 3, 4, 2)),
    "torch's own": (lambda: nn.SyncBatchNorm(3), (7, 3, 4, 2)),
    "frozen": (lambda: nn.BatchNorm2d(3).eval(), (7, 3, 4, 2)),
}


def normalised(name, rank, parts):
    """Outputs, gradients and statistics of two steps of a batch norm on a share of seven samples."""
    make, shape = NORMS[name]
    torch.manual_seed(3)
    inputs = torch.randn(2, *shape, dtype=torch.float64) * 3 + (1e6 if name == "far from zero" else 1)
    slopes = torch.randn(*shape, dtype=torch.float64)
    norm = make().double()
    if world() == 1 and isinstance(norm, nn.SyncBatchNorm):
        norm = nn.BatchNorm2d(3).double()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    seen = []
    norm.register_forward_hook(lambda *_: seen.append(type(norm).__name__))
    own, results = type(norm), []
    for whole in inputs:
        share = whole.split(parts)[rank].clone().requires_grad_()
        with synchronised([norm] if world() > 1 else []):
            output = norm(share)
            (output * slopes.split(parts)[rank]).sum().backward()
        results += [output.detach(), share.grad]
    assert type(norm) is own
    assert len(seen) == 2
    return results, [p.grad for p in norm.parameters()], dict(norm.state_dict())


class BadError(Exception):
    """An error in a step."""


def _fail_within(norm):
    with synchronised([norm]):
        assert type(norm) is not nn.BatchNorm1d
        raise BadError


def given_back(rank):
    """A batch norm has its class again after an error."""
    norm = nn.BatchNorm1d(3)
    with pytest.raises(BadError):
        _fail_within(norm)
    assert type(norm) is nn.BatchNorm1d
    return True


def scripted():
    """What a scripted batch norm, whose forward pass is fixed, is told; and how many are synchronised without it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inner = torch.jit.script(nn.BatchNorm1d(6))
    student = nn.Sequential(nn.BatchNorm1d(6), inner, nn.Linear(6, CLASSES))
    distiller = Distiller(student, objectives.cross_entropy())
    with refused(InvalidValueError, "sync_bn", got="student.1", suggests="sync_bn=auto"):
        norms_to_synchronise(distiller, True)
    return len(norms_to_synchronise(distiller, "auto")), local_statistics(distiller, "auto")


# A fit's buffers, draws and skipped steps


class Drops(nn.Module):
    """Keeps what dropout let through, in a network with a batch norm."""

    def __init__(self):
        super().__init__()
        self.norm, self.head, self.masks = nn.BatchNorm1d(6), nn.Linear(6, CLASSES), []

    def forward(self, x):
        mask = torch.nn.functional.dropout(torch.ones(6), training=self.training)
        self.masks.append(mask.clone())
        return self.head(self.norm(x) * mask)


def buffers_and_draws(sync_bn):
    """What a fit with local or joint statistics leaves in each process, the warning, and the first mask."""
    inputs, labels = samples(28)
    torch.manual_seed(0)
    student = Drops()
    distiller = Distiller(student, objectives.cross_entropy())
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        rows = Shares(inputs, labels, batch_size=7)
        list(fit(distiller, None, rows, settings(epochs=1, sync_bn=sync_bn), accelerator=accelerator_on("cpu")))
    told = [str(each.message) for each in told if "batch norm" in str(each.message)]
    buffers = {name: buffer.clone() for name, buffer in distiller.named_buffers()}
    masks = [mask for mask in student.masks if not bool(mask.eq(1).all())]
    return buffers, masks[0], told, statistics_of(distiller, sync_bn)


def skipping():
    """A step of which one process's inputs are not finite: weights, statistics and the number of skipped steps."""
    inputs, labels = samples(28)
    inputs = inputs.clone()
    inputs[8] = torch.nan  # in the second step, the second process's
    torch.manual_seed(0)
    student = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, CLASSES))
    distiller = Distiller(student, objectives.cross_entropy())
    how = settings(epochs=1, nonfinite="skip", precision="fp64")
    (record,) = fit(distiller, None, Shares(inputs, labels, batch_size=7), how, accelerator=accelerator_on("cpu"))
    return state(distiller), record["skipped_steps"]


QUICK = ("kd and crd", "kd and itrd, gathered")


def quick_cases(rank):
    return {
        "trained": {name: trained("tiny", name) for name in QUICK},
        "norms": {name: normalised(name, rank, (4, 3)) for name in NORMS},
        "given back": given_back(rank),
        "scripted": scripted(),
        "joint": buffers_and_draws("auto"),
        "local": buffers_and_draws(False),
        "skipping": skipping(),
    }


def work(rank, cases, folder):
    torch.save(cases(rank), folder / f"{rank}.pt")


def results_of(count, cases, folder):
    processes(count, work, cases, folder, limit=LIMIT)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(count)]


def close(got, wanted, tolerance):
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        gap = (got[name].double() - value.double()).abs().max() / value.double().abs().max().clamp(min=1.0)
        assert gap <= tolerance, (name, gap)


def check_trained(got, wanted):
    (weights, means), (expected, expected_means) = got, wanted
    close(weights, expected, 1e-9)
    for epoch, expected_epoch in zip(means, expected_means, strict=True):
        assert epoch["loss"] == pytest.approx(expected_epoch["loss"], rel=1e-9)
        assert epoch["terms"] == pytest.approx(expected_epoch["terms"], rel=1e-9)
        assert epoch["accuracy"] == expected_epoch["accuracy"]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return results_of(2, quick_cases, tmp_path_factory.mktemp("two"))


def test_two_processes_end_with_the_weights_of_one(two):
    for name in QUICK:
        wanted = trained("tiny", name)
        for process in two:
            check_trained(process["trained"][name], wanted)


@pytest.mark.parametrize("name", NORMS)
def test_a_batch_norm_normalises_over_all_processes(two, name):
    results, gradients, kept = normalised(name, 0, (7, 0))
    shares = [process["norms"][name] for process in two]
    for number, whole in enumerate(results):
        joined = torch.cat([share[0][number] for share in shares])
        torch.testing.assert_close(joined, whole, rtol=1e-7 if name == "far from zero" else 1e-10, atol=1e-9)
    for number, gradient in enumerate(gradients):
        torch.testing.assert_close(sum(share[1][number] for share in shares), gradient, rtol=1e-7, atol=1e-8)
    for share in shares:
        torch.testing.assert_close(share[2], kept, rtol=1e-10, atol=1e-10)


def test_batch_norms_are_given_back_after_an_error(two):
    assert all(process["given back"] for process in two)


def test_a_scripted_batch_norm_is_refused_or_said_to_be_local(two):
    for process in two:
        count, told = process["scripted"]
        assert count == 1
        assert "student.1" in told


def test_with_one_process_nothing_is_synchronised():
    distiller = Distiller(nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, CLASSES)), objectives.cross_entropy())
    assert norms_to_synchronise(distiller, True) == ()
    assert local_statistics(distiller, False) is None


@pytest.mark.parametrize("case", ["joint", "local"])
def test_all_processes_evaluate_and_keep_the_same_buffers(two, case):
    (first, _, _, _), (second, _, _, _) = (process[case] for process in two)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_running_statistics_are_those_of_one_process(two):
    buffers, _, _, statistics = buffers_and_draws("auto")
    assert statistics is None
    for name, buffer in two[0]["joint"][0].items():
        torch.testing.assert_close(buffer, buffers[name])
    assert not torch.allclose(two[0]["local"][0]["student.norm.running_var"], buffers["student.norm.running_var"])


def test_local_statistics_are_said_to_be_another_method(two):
    assert [process["joint"][2:] for process in two] == [([], "all processes")] * 2
    told, statistics = two[0]["local"][2:]
    assert statistics == "each process"
    assert "sync_bn=auto" in told[0]
    assert not two[1]["local"][2]


def test_each_process_draws_its_own_dropout(two):
    first, second = (process["joint"][1] for process in two)
    assert not torch.equal(first, second)
    assert torch.equal(first, buffers_and_draws("auto")[1])


def test_a_step_that_one_process_cannot_take_is_skipped_once(two):
    wanted, skipped = skipping()
    assert skipped == 1
    for process in two:
        weights, count = process["skipping"]
        assert count == 1
        close(weights, wanted, 1e-12)


NAMES = ("kd", "wttm", "kd and crd", "taid", "kd and itrd, gathered", "kd and rkd, gathered", "a map with a batch norm")


def every_case(rank):
    return {
        "trained": {name: trained("resnet", name) for name in NAMES},
        "first step": {name: first_step("tiny", name) for name in NAMES},
        "mlp": multilayer(),
    }


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_every_method_is_that_of_one_process(count, tmp_path):
    several, alone = results_of(count, every_case, tmp_path), every_case(0)
    for process in several:
        for name in NAMES:
            check_trained(process["trained"][name], alone["trained"][name])
            (loss, gradients), (expected, wanted) = process["first step"][name], alone["first step"][name]
            assert float(loss) == pytest.approx(float(expected), rel=1e-5), name
            gap = torch.stack([(gradients[n] - g).norm() for n, g in wanted.items()]).norm()
            assert gap <= 1e-5 * torch.stack([g.norm() for g in wanted.values()]).norm(), name
        close(process["mlp"], alone["mlp"], 1e-5)
