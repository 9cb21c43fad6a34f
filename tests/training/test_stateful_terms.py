"""Terms that keep buffers of their own: exact resume, steps that are not applied, several processes."""

import pytest
import torch
from tests._helpers.fit_cases import Rows, mlp, same_bits, samples, settings, state, untimed
from tests._helpers.processes import Shares, processes
from tests._helpers.refusals import refused
from torch import nn

import tutelage
from tutelage import objectives
from tutelage.errors import InvalidValueError
from tutelage.modules import Distiller, FrozenTeacher, network_context
from tutelage.objectives import Objective, WeightedTerm
from tutelage.objectives.methods.contrastive import CRD
from tutelage.training.checkpoints import Checkpoints, CheckpointSink
from tutelage.training.distributed import accelerator_on
from tutelage.training.evaluate import NonFiniteError
from tutelage.training.loop import fit

CONTRAST = CRD(negatives=8, temperature=0.07, momentum=0.5, dimension=6, student_taps=("1",), teacher_taps=("1",))
OBJECTIVE = objectives.cross_entropy() + Objective.of(WeightedTerm("contrast", 0.8, CONTRAST))


def distiller_of(labels, seed=0):
    student, teacher = mlp(seed=seed), mlp(seed=7)
    context = network_context(OBJECTIVE, student, teacher, torch.rand(2, 6), samples=len(labels), labels=labels)
    torch.manual_seed(seed)
    return Distiller(student, OBJECTIVE, context), FrozenTeacher(teacher, OBJECTIVE.needs.teacher_taps)


def fitted(distiller, teacher, rows, *, folder=None, resume=False, **changes):
    keep = CheckpointSink(Checkpoints(folder / "checkpoints"), folder / "best.safetensors", {}) if folder else None
    return list(
        fit(
            distiller,
            teacher,
            rows,
            settings(**changes),
            accelerator=accelerator_on("cpu"),
            keep=keep,
            resume=keep.checkpoints.load() if keep and resume else None,
        )
    )


@pytest.mark.parametrize("stop", [(0, 2), (1, 1)])
def test_interrupted_and_resumed_has_the_same_bits(tmp_path, stop):
    """Banks, constants, maps, and the draws of negatives: all of it is in the checkpoint."""
    inputs, labels = samples(48)

    def run(folder, **more):
        torch.manual_seed(11)
        distiller, teacher = distiller_of(labels)
        rows = Rows(inputs, labels, batch_size=10, shuffle=True, stop_before=more.pop("stop_before", None))
        history = fitted(distiller, teacher, rows, folder=folder, checkpoint_steps=1, **more)
        return untimed(history), state(distiller)

    records, whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", stop_before=stop)
    _, resumed = run(tmp_path / "cut", resume=True)
    assert {"objective.terms.contrast.student_bank", "objective.terms.contrast.log_normalisers"} <= whole.keys()
    assert same_bits(whole, resumed)
    assert len(records) == 2


def test_a_step_that_is_not_applied_leaves_the_banks_alone():
    inputs, labels = samples(40)
    inputs[13] = torch.nan
    distiller, teacher = distiller_of(labels)
    term = distiller.objective.terms["contrast"]
    before = term.student_bank.clone()
    (record,) = fitted(distiller, teacher, Rows(inputs, labels, batch_size=10), epochs=1, nonfinite="skip")
    assert record["skipped_steps"] == 1
    moved = (term.student_bank != before).any(1)
    assert moved[:10].all()
    assert not moved[10:20].any()
    assert moved[20:].all()
    assert torch.isfinite(term.student_bank).all()


def test_a_first_step_that_is_not_applied_does_not_fix_the_constants():
    inputs, labels = samples(20)
    inputs[3] = torch.nan
    distiller, teacher = distiller_of(labels)
    with pytest.raises(NonFiniteError):
        fitted(distiller, teacher, Rows(inputs[:10], labels[:10], batch_size=10), epochs=1)
    assert distiller.objective.terms["contrast"].log_normalisers.isnan().all()


def test_it_is_not_accumulated():
    inputs, labels = samples(20)
    distiller, teacher = distiller_of(labels)
    with refused(InvalidValueError, "accumulate", got=2):
        fitted(distiller, teacher, Rows(inputs, labels, batch_size=10), accumulate=2)


# Several processes


class Table(nn.Module):
    """The same negatives in every process."""

    def forward(self, index, epoch):
        return torch.randint(28, (28, 8), generator=torch.Generator().manual_seed(0))[index]


def taught_state(*, spoil=False):
    """Fit four steps; the state of the distiller, and what DDP leaves alone."""
    torch.set_num_threads(1)
    inputs, labels = samples(28)
    distiller, teacher = distiller_of(labels)
    term = distiller.objective.terms["contrast"]
    term.draw = Table()
    if spoil:
        term.student_bank.neg_()
        term.teacher_bank.zero_()
    fitted(distiller, teacher, Shares(inputs, labels, batch_size=7), epochs=1)
    return state(distiller), distiller._ddp_params_and_buffers_to_ignore


def one_of_two(rank, folder):
    # The second starts from other banks, as where processes do not share their seed.
    torch.save(taught_state(spoil=rank == 1), folder / f"{rank}.pt")


@pytest.mark.slow
def test_two_processes_have_the_banks_of_one(tmp_path):
    processes(2, one_of_two, tmp_path)
    (first, left_alone), (second, _) = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    alone, _ = taught_state()
    names = [f"objective.terms.contrast.{name}" for name in ("student_bank", "teacher_bank", "log_normalisers")]
    assert set(names) <= set(left_alone)
    for name in names:
        assert torch.equal(first[name], second[name])
    for name, value in alone.items():
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-5)
    assert torch.isfinite(alone[names[2]]).all()


# A whole run


def test_a_run_of_wttm_and_crd_reports_every_term(tmp_path):
    fast = {"data": "digits", "epochs": 1, "batch_size": 256, "device": "cpu", "runs": tmp_path}
    teacher = tutelage.train(model="mlp:16", name="teacher", optimizer={"name": "sgd", "lr": 0.2}, **fast)
    objective = objectives.wttm(gamma=0.5, beta=1.0) + 0.8 * objectives.crd(negatives=64, dimension=8)
    run = tutelage.distill(student="mlp:8", teacher=str(teacher.folder), objective=objective, name="s", **fast)
    assert set(run.epochs[0]["train"]["terms"]) == {"ce", "wttm", "crd"}
    assert 0 < run.epochs[0]["train"]["terms"]["crd"] < 200
