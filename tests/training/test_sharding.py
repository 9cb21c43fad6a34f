"""Networks sharded over two processes train, evaluate, save and resume as one process does with whole ones."""

import contextlib
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tests._helpers.fit_cases import Rows, same_bits, samples, seeded, settings, state, untimed
from tests._helpers.processes import Shares, processes
from tests._helpers.refusals import refused
from torch import nn
from torch.distributed.tensor import DTensor

from tutelage import losses, objectives
from tutelage.errors import InvalidValueError
from tutelage.modules import Distiller, FrozenTeacher
from tutelage.objectives import Apply, Objective, WeightedTerm
from tutelage.settings.fit import AdamW
from tutelage.training import sharding
from tutelage.training.checkpoints import Checkpoints, CheckpointSink
from tutelage.training.distributed import accelerator_on
from tutelage.training.evaluate import EvalSet, NonFiniteError
from tutelage.training.loop import fit


class Small(nn.Module):
    """A transformer of two layers, with a learned scale without axes and a head of an odd number of rows."""

    def __init__(self, width=8, classes=5):
        super().__init__()
        self.embed = nn.Linear(6, width)
        layer = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.scale = nn.Parameter(torch.ones(()))
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x)[:, None])[:, 0]) * self.scale


class Normed(nn.Module):
    """Residual blocks with batch norm, and layers in a row, of which one shares its weight with the head."""

    def __init__(self, width=8, classes=5):
        super().__init__()
        self.embed = nn.Linear(6, width)
        self.blocks = nn.Sequential(*(Residual(width) for _ in range(2)))
        self.last = nn.Sequential(nn.Linear(width, classes), nn.BatchNorm1d(classes), nn.Linear(classes, classes))
        self.head = nn.Linear(classes, classes)
        self.head.weight = self.last[2].weight

    def forward(self, x):
        return self.head(self.last(self.blocks(self.embed(x))))


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first, self.norm = nn.Linear(width, width), nn.BatchNorm1d(width)
        self.second = nn.Linear(width, width)

    def forward(self, x):
        return x + self.second(self.norm(self.first(x)).relu())


HINT = Apply(losses.hint, student_tap="encoder.layers.0.linear1", teacher_tap="encoder.layers.0.linear1")
OBJECTIVE = objectives.kd() + Objective.of(WeightedTerm("hint", 0.5, HINT))


def trained(
    shard, *, make=Small, objective=OBJECTIVE, inputs=None, folder=None, resume=False, stop_before=None, **changes
):
    """Fit a student to an untrained teacher; return its weights and the records."""
    given, labels = samples(28, classes=5)
    inputs = given if inputs is None else inputs
    student, teacher = seeded(make), FrozenTeacher(seeded(make, 7), objective.needs.teacher_taps)
    keep = CheckpointSink(Checkpoints(folder / "checkpoints"), folder / "best.safetensors", {}) if folder else None
    records = fit(
        Distiller(student, objective),
        teacher,
        Shares(inputs, labels, batch_size=7, stop_before=stop_before),
        settings(**{"shard": shard, "accumulate": 2, "clip": 0.5, "checkpoint_steps": 2} | changes),
        accelerator=accelerator_on("cpu"),
        held_out=[EvalSet("test", Rows(given[:9], labels[:9], batch_size=4))],
        keep=keep,
        resume=keep.checkpoints.load() if keep and resume else None,
    )
    history = untimed(records)
    return state(student), history


def shard_sizes():
    """The share of its values that a process keeps of a sharded network, and what it is called on."""
    network = seeded(Small)
    copied = sharding.sharded(network, torch.device("cpu"))
    kept = sum(sharding.local_part(parameter).numel() for parameter in copied.parameters())
    same = all(isinstance(p, DTensor) == (p.ndim > 0) for p in copied.parameters())
    assert not sharding.is_sharded(network)
    assert sharding.sharded(copied, torch.device("cpu")) is copied
    return kept / sum(parameter.numel() for parameter in network.parameters()), same


FITS = {
    "both, AdamW": {"shard": "both", "optimizer": AdamW(lr=0.01)},
    "student, SGD, computed again": {"shard": "student", "checkpoint_activations": True},
    "teacher": {"shard": "teacher"},
    "batch norm, computed again, fp64": {
        "shard": "both",
        "make": Normed,
        "objective": objectives.kd(),
        "checkpoint_activations": True,
        "precision": "fp64",
        "accumulate": 1,
    },
}


def quickly(folder):
    """What is to be held in every change: a fit with both networks sharded."""
    return shard_sizes(), trained(**FITS["both, AdamW"], epochs=1)


def other_fits(folder):
    return {name: trained(**how, folder=folder / name) for name, how in FITS.items()}


def saved(rank, work, folder):
    accelerator_on("cpu")
    torch.save(work(folder), folder / f"{rank}.pt")


def of_two(work, folder):
    """Do some work in two processes; return what each makes of it."""
    processes(2, saved, work, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


ROUNDED, EXACT = {"rtol": 1e-4, "atol": 1e-6}, {"rtol": 1e-9, "atol": 1e-9}


def close(got, wanted):
    """Hold weights, and records of the last epochs, against one process's."""
    for name, value in wanted[0].items():
        torch.testing.assert_close(got[0][name], value, **EXACT if value.dtype == torch.float64 else ROUNDED)
    for record, other in zip(got[1], wanted[1][-len(got[1]) :], strict=True):
        assert record["skipped_steps"] == other["skipped_steps"]
        for key in ("train", "test")[len(got[1]) < len(wanted[1]) :]:
            numbers = {name: value for name, value in other[key].items() if name not in ("set", "agreement")}
            torch.testing.assert_close({name: record[key][name] for name in numbers}, numbers, **ROUNDED)


def test_two_processes_train_sharded_networks_as_one_does_whole_ones(tmp_path):
    wanted = trained(**FITS["both, AdamW"], epochs=1)
    for (share, all_sharded), got in of_two(quickly, tmp_path):
        assert share < 0.6
        assert all_sharded
        close(got, wanted)


@pytest.mark.slow
def test_either_network_may_be_sharded(tmp_path):
    wanted = {name: trained(**how) for name, how in FITS.items()}
    for results in of_two(other_fits, tmp_path):
        for name, got in results.items():
            close(got, wanted[name])


ADAMW = AdamW(lr=0.01)


def stopped(shard, folder):
    """Stop a fit in its second epoch, after a checkpoint of its sixth step."""
    with contextlib.suppress(KeyboardInterrupt):
        trained(shard, folder=folder, optimizer=ADAMW, stop_before=(1, 3))


def stopped_and_resumed(folder):
    """What a fit that was stopped here, and one that was stopped in one process, come to after they are resumed."""
    stopped("both", folder / "two")
    if torch.distributed.get_rank() == 0:
        shutil.copytree(folder / "two", folder / "two-left")
    torch.distributed.barrier()
    resumed = trained("both", folder=folder / "two", resume=True, optimizer=ADAMW)
    from_one = trained("both", folder=folder / "one", resume=True, optimizer=ADAMW)
    return resumed, trained("both", optimizer=ADAMW), from_one


@pytest.mark.slow
def test_a_sharded_fit_resumes_to_the_same_bits_and_on_another_number_of_processes(tmp_path):
    stopped("both", tmp_path / "one")
    wanted = trained("both", optimizer=ADAMW)
    for resumed, whole, from_one in of_two(stopped_and_resumed, tmp_path):
        assert same_bits(resumed[0], whole[0])
        assert resumed[1][-1]["test"] == whole[1][-1]["test"]
        close(from_one, wanted)
        close(whole, wanted)
    # What two processes have written: each its shares, and the best weights whole.
    checkpoint = tmp_path / "two-left" / "checkpoints" / "00-000000006"
    assert len(list((checkpoint / "shards").iterdir())) == 2
    assert not any("encoder" in name for name in load_file(checkpoint / "tensors.safetensors"))
    seeded(Small).load_state_dict(load_file(tmp_path / "two" / "best.safetensors"))
    # One process continues it.
    shutil.copytree(tmp_path / "two-left", tmp_path / "damaged")
    close(trained("both", folder=tmp_path / "two-left", resume=True, optimizer=ADAMW), wanted)
    # A share that is not as it was written: the checkpoint before it is used.
    share = next((max((tmp_path / "damaged" / "checkpoints").iterdir()) / "shards").iterdir())
    share.write_bytes(share.read_bytes()[:-1] + b"?")
    with pytest.warns(UserWarning, match="using the one before it"):
        close(trained("both", folder=tmp_path / "damaged", resume=True, optimizer=ADAMW), wanted)


def broken(folder):
    """Fits of which a step is not finite in the second process alone, and one whose weights are."""
    inputs, _ = samples(28)
    inputs[8] = torch.nan
    return trained("student", inputs=inputs, nonfinite="skip"), messages(inputs)


def messages(inputs):
    try:
        trained("student", inputs=inputs)
    except NonFiniteError as error:
        return str(error)


@pytest.mark.slow
def test_a_step_that_is_not_finite_is_skipped_by_all(tmp_path):
    inputs, _ = samples(28)
    inputs[8] = torch.nan
    wanted = trained("student", inputs=inputs, nonfinite="skip")
    assert wanted[1][0]["skipped_steps"] == 1
    for skipped, message in of_two(broken, tmp_path):
        close(skipped, wanted)
        assert "step 2 of stage 1" in message


def of_features(folder):
    with refused(InvalidValueError, "shard", got="features alone"):
        trained("student", objective=Objective.of(WeightedTerm("hint", 1.0, HINT)))


@pytest.mark.slow
def test_a_sharded_student_needs_an_objective_of_its_logits(tmp_path):
    of_two(of_features, tmp_path)
