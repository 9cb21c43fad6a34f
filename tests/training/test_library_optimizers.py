"""timm's optimizers in the loop: resumed to the bit, skipped steps, several processes, what is refused."""

import sys
from pathlib import Path

import pytest
import torch
from tests._helpers.captured_cases import capture_on_the_cpu
from tests._helpers.fit_cases import Moving, Rows, fitted, mlp, same_bits, samples, seeded, settings, state, untimed
from tests._helpers.processes import Shares, processes
from tests._helpers.refusals import refused
from torch import nn

from tutelage import objectives
from tutelage.errors import InvalidValueError, MissingExtraError
from tutelage.modules import Distiller
from tutelage.settings import fit as fit_settings
from tutelage.settings.fit import AdamW, FitSettings, LibraryOptimizer, timm_optimizers
from tutelage.training import library_optimizers as library
from tutelage.training.captured import reason_eager
from tutelage.training.checkpoints import Checkpoints
from tutelage.training.distributed import accelerator_on
from tutelage.training.isolation import Isolation
from tutelage.training.job import FitJob
from tutelage.training.lockstep import Lockstep
from tutelage.training.optim import build
from tutelage.training.state import TrainState, check_restorable

USED = [name for name, value in timm_optimizers().items() if not isinstance(value, str)]
QUICK = ["muon", "lamb", "cadafactorbv", "claprop"]
"""Plain values in the state; numbers in the groups; moments of other shapes and dtypes; numbers of both kinds."""


class Wide(Moving):
    """Large enough for moments to be factored."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 33, 3, padding=1), nn.BatchNorm2d(33)
        self.deeper, self.head = nn.Conv2d(33, 34, 3, stride=2), nn.Linear(306, 40)


def interrupted(folder, **how):
    """Weights and checkpoint of a run, and of one that stopped in its second epoch and was resumed."""
    inputs, labels = samples(32, shape=(2, 8, 8), classes=40)
    inputs[3] = torch.nan
    whole, stopped, resumed = (seeded(Wide) for _ in range(3))
    how = {"epochs": 2, "checkpoint_steps": 2, "nonfinite": "skip"} | how
    records = []
    for name, student, stop, resume in (
        ("whole", whole, None, False),
        ("stopped", stopped, (1, 3), False),
        ("stopped", resumed, None, True),
    ):
        torch.manual_seed(4)
        rows = Rows(inputs, labels, batch_size=8, shuffle=True, stop_before=stop)
        if stop:
            with pytest.raises(KeyboardInterrupt):
                fitted(student, rows, folder=folder / name, **how)
        else:
            records.append(fitted(student, rows, folder=folder / name, resume=resume, **how))
    assert untimed(records[1]) == untimed(records[0])[-len(records[1]) :]
    assert records[0][0]["skipped_steps"] == 1
    saved = [Checkpoints(folder / name / "checkpoints").load() for name in ("whole", "stopped")]
    return whole, resumed, saved


def check_resumes(name, folder, **how):
    before = state(seeded(Wide))
    whole, resumed, (a, b) = interrupted(folder, optimizer=LibraryOptimizer(f"timm:{name}", weight_decay=0.05), **how)
    assert same_bits(state(resumed), state(whole))
    assert same_bits(a.tensors, b.tensors)
    assert a.state["optimizer"] == b.state["optimizer"]
    assert not same_bits(before, state(whole))
    assert all(tensor.isfinite().all() for tensor in state(whole).values())


@pytest.mark.parametrize("name", QUICK)
def test_resumed_in_an_epoch_has_the_same_bits(name, tmp_path):
    check_resumes(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp64", "bf16"])
@pytest.mark.parametrize("name", USED)
def test_every_optimizer_resumed_in_an_epoch_has_the_same_bits(name, precision, tmp_path):
    check_resumes(name, tmp_path, precision=precision)


def test_a_step_that_is_not_finite_changes_nothing():
    distiller = Distiller(mlp(), objectives.cross_entropy())
    training = TrainState(distiller, settings(optimizer=LibraryOptimizer("timm:muon")), accelerator_on("cpu"))
    training.now.set(0.1, 0.0)
    for finite in (True, False):
        for parameter in training.parameters:
            parameter.grad = torch.ones_like(parameter) if finite else torch.full_like(parameter, torch.nan)
        before = state(distiller)
        training.buffers.save()
        training.apply(torch.tensor(finite))
        assert same_bits(before, state(distiller)) is not finite


def test_steps_are_computed_eagerly_where_others_are_captured(monkeypatch):
    capture_on_the_cpu(monkeypatch)
    distiller = Distiller(mlp(), objectives.cross_entropy())
    training = TrainState(distiller, settings(optimizer=LibraryOptimizer("timm:muon")), accelerator_on("cpu"))
    assert not training.fused
    assert "timm:muon" in reason_eager(training)
    with pytest.warns(UserWarning, match=r"timm:muon, whose steps the host takes part in; it is computed eagerly"):
        fitted(mlp(), Rows(*samples(), batch_size=8), optimizer=LibraryOptimizer("timm:muon"))


def test_in_lockstep_a_student_is_trained_as_alone():
    rows = Rows(*samples(), batch_size=8)
    alone, together, other = mlp(), mlp(), mlp(seed=1)
    fitted(alone, rows, optimizer=LibraryOptimizer("timm:muon"))
    jobs = {
        k: FitJob(
            distiller=Distiller(student, objectives.cross_entropy()),
            settings=settings(optimizer=LibraryOptimizer(f"timm:{name}")),
            uses_teacher=False,
        )
        for k, (student, name) in enumerate([(together, "muon"), (other, "lion")])
    }
    isolation = Isolation(accelerator_on("cpu").device)
    list(Lockstep(jobs, None, rows, accelerator=accelerator_on("cpu"), isolation=isolation).run())
    assert not isolation.errors
    assert same_bits(state(alone), state(together))


def in_two(rank, folder):
    student = mlp()
    fitted(student, Shares(*samples(28), batch_size=7), optimizer=LibraryOptimizer("timm:muon"), precision="fp64")
    torch.save(state(student), folder / f"{rank}.pt")


@pytest.mark.slow
def test_two_processes_end_with_the_weights_of_one(tmp_path):
    student = mlp()
    fitted(student, Rows(*samples(28), batch_size=7), optimizer=LibraryOptimizer("timm:muon"), precision="fp64")
    processes(2, in_two, tmp_path)
    for rank in range(2):
        weights = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, value in state(student).items():
            torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-6)  # its products are in bfloat16


def test_one_dimensional_and_listed_parameters_do_not_decay():
    network = seeded(Moving)
    network.no_weight_decay = lambda: {"deeper.weight"}
    decayed, kept = build(LibraryOptimizer("timm:lion", weight_decay=0.5), network, fused=False).param_groups
    assert [decayed["weight_decay"], kept["weight_decay"]] == [0.5, 0.0]
    assert {id(p) for p in decayed["params"]} == {id(network.conv.weight), id(network.head.weight)}


def test_what_is_given_reaches_the_optimizer_and_the_rest_is_timms():
    import timm.optim

    how = LibraryOptimizer("timm:muon", lr=0.02, betas=(0.8, 0.9), eps=1e-6, options={"ns_steps": 3})
    group = build(how, mlp(), fused=False).param_groups[0]
    assert [group[key] for key in ("lr", "betas", "eps", "ns_steps")] == [0.02, (0.8, 0.9), 1e-6, 3]
    default = timm.optim.create_optimizer_v2(mlp(), "muon").param_groups[0]
    assert {key: group[key] for key in ("momentum", "nesterov")} == {k: default[k] for k in ("momentum", "nesterov")}


def test_the_list_is_that_of_the_installed_timm():
    committed = Path(fit_settings.__file__).parent / "timm_optimizers.json"
    assert committed.read_text(encoding="utf-8") == library.listing_json(), "type make generated"
    assert len(USED) > 70


REFUSED = {
    "timm:moun": ("optimizer.name", "timm:muon"),
    "timm:Muon": ("optimizer.name", "timm:muon"),
    "timm:lookahead_adam": ("optimizer.name", "timm:adam"),
    "timm:adahessian": ("optimizer.name", "timm:adamw"),
    "timm:kron": ("optimizer.name", "timm:adamw"),
    "timm:bnbadam": ("optimizer.name", "timm:adamw"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_names_that_cannot_be_used_are_refused(name):
    what, suggests = REFUSED[name]
    with refused(InvalidValueError, what, suggests=suggests):
        LibraryOptimizer(name)


@pytest.mark.parametrize(
    ("keys", "what", "suggests"),
    [
        ({"options": {"ns_step": 3}}, "optimizer.options.ns_step", "ns_steps"),
        ({"options": {"lr": 3}}, "optimizer.options.lr", "optimizer.lr=..."),
        ({"options": {"ns_steps": {}}}, "optimizer.options.ns_steps", "leave ns_steps out"),
        ({"options": {"ns_steps": float("nan")}}, "optimizer.options.ns_steps", "leave ns_steps out"),
        ({"lr": 0.0}, "optimizer.lr", "optimizer.lr=0.001"),
        ({"momentum": 1.0}, "optimizer.momentum", "optimizer.momentum=0.9"),
        ({"betas": (0.9,)}, "optimizer.betas", "optimizer.betas=[0.9, 0.999]"),
        ({"eps": 0.0}, "optimizer.eps", "optimizer.eps=1e-08"),
        ({"weight_decay": -1.0}, "optimizer.weight_decay", "optimizer.weight_decay=0.05"),
    ],
)
def test_arguments_out_of_range_are_refused(keys, what, suggests):
    with refused(InvalidValueError, what, suggests=suggests):
        LibraryOptimizer("timm:muon", **keys)


def test_an_argument_that_another_optimizer_takes_is_refused():
    with refused(InvalidValueError, "optimizer.momentum", got="momentum", suggests="leave momentum out"):
        LibraryOptimizer("timm:lion", momentum=0.9)


@pytest.mark.parametrize("keys", [{"options": {"conv_mode": "no"}}, {"betas": (0.9, 0.9, 0.9)}])
def test_values_that_an_optimizer_refuses_are_found_before_a_run(keys):
    """The first as it is built, the second in its step."""
    library.check(LibraryOptimizer("timm:muon"))
    with refused(InvalidValueError, "optimizer", got=next(iter(keys.get("options", keys))), suggests="timm's defaults"):
        library.check(LibraryOptimizer("timm:muon", **keys))


@pytest.mark.parametrize("shard", ["student", "both"])
def test_a_sharded_student_is_refused(shard):
    with refused(InvalidValueError, "shard", got=shard, suggests="shard=none"):
        FitSettings(optimizer=LibraryOptimizer("timm:muon"), shard=shard)


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm.optim", None)
    monkeypatch.setitem(sys.modules, "timm", None)
    with refused(MissingExtraError, "optimizer.name", suggests="tutelage[timm]"):
        library.check(LibraryOptimizer("timm:muon"))


def test_a_checkpoint_has_factored_moments_and_no_others(tmp_path):
    rows = Rows(*samples(8, shape=(2, 8, 8), classes=40), batch_size=8)
    how = {"optimizer": LibraryOptimizer("timm:adafactor"), "epochs": 1}
    fitted(Wide(), rows, folder=tmp_path, **how)
    saved = Checkpoints(tmp_path / "checkpoints").load()
    distiller = Distiller(Wide(), objectives.cross_entropy())
    assert any(name.endswith("exp_avg_sq_row") for name in saved.tensors)
    check_restorable(saved, distiller, settings(**how))
    with pytest.raises(ValueError, match=r"exp_avg_sq_(row|col) of shape"):  # AdamW has the same groups.
        check_restorable(saved, distiller, settings(**how | {"optimizer": AdamW()}))
    name = next(name for name in saved.tensors if name.endswith("exp_avg_sq_row"))
    spoilt = saved._replace(tensors={**saved.tensors, name: torch.zeros(77)})
    with pytest.raises(ValueError, match=r"exp_avg_sq_row of shape \(77,\)"):
        check_restorable(spoilt, distiller, settings(**how))
