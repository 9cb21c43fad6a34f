"""Fits that end when the validation set says so."""

import math

import pytest
import safetensors.torch
import torch
from tests._helpers.fit_cases import Rows, mlp, same_bits, samples, settings, state, untimed
from tests._helpers.processes import Shares, processes
from tests._helpers.refusals import refused

from tutelage import objectives, records
from tutelage.errors import InvalidValueError
from tutelage.modules import Distiller
from tutelage.settings.fit import EMA, EarlyStopping
from tutelage.training.checkpoints import Checkpoints, CheckpointSink
from tutelage.training.distributed import accelerator_on
from tutelage.training.early_stopping import kept_epoch, reason_to_stop
from tutelage.training.evaluate import EvalSet
from tutelage.training.isolation import Isolation
from tutelage.training.job import FitJob
from tutelage.training.lockstep import Lockstep
from tutelage.training.loop import fit


def epochs_of(*values, key="accuracy"):
    held = {"set": "validation", "accuracy": None}
    return [{"epoch": k, "validation": {**held, key: value}} for k, value in enumerate(values, 1)]


@pytest.mark.parametrize(
    ("values", "stopping", "ends"),
    [
        ([0.1, 0.2, 0.2, 0.1], EarlyStopping(patience=2), 4),
        ([0.1, 0.2, 0.1, 0.3, 0.3], EarlyStopping(patience=2), None),
        ([0.5, 0.4], EarlyStopping(patience=1), 2),
        # Rises by less than the least one, which add up to it in the fourth.
        ([0.10, 0.14, 0.14, 0.18, 0.19], EarlyStopping(patience=3, min_delta=0.05), None),
        ([0.10, 0.14, 0.14, 0.14], EarlyStopping(patience=3, min_delta=0.05), 4),
        ([math.nan, math.nan], EarlyStopping(patience=2), 2),
        ([None, None], EarlyStopping(patience=1), None),
        ([], EarlyStopping(patience=1), None),
    ],
)
def test_when_a_fit_ends(values, stopping, ends):
    reasons = [reason_to_stop(epochs_of(*values)[:k], stopping) for k in range(len(values) + 1)]
    assert [k for k, reason in enumerate(reasons) if reason] == ([] if ends is None else [ends])


def test_a_perplexity_gets_better_as_it_falls():
    falling = epochs_of(9.0, 8.0, 7.0, 7.5, key="perplexity")
    assert reason_to_stop(falling[:3], EarlyStopping(patience=1)) is None
    said = "after epoch 3 the perplexity on the validation set did not get better for 1 epoch"
    assert reason_to_stop(falling, EarlyStopping(patience=1)) == said


@pytest.mark.parametrize(
    ("stopping", "kept"),
    [(None, 3), (EarlyStopping(keep="last"), 3), (EarlyStopping(), 2)],
)
def test_which_weights_a_run_ends_with(stopping, kept):
    epochs = [{**epoch, "stage": 0} for epoch in epochs_of(0.1, 0.3, 0.2)]
    assert kept_epoch(epochs, stopping)["epoch"] == kept


@pytest.mark.parametrize("wrong", [{"patience": 0}, {"min_delta": -0.1}, {"min_delta": math.nan}])
def test_settings_that_mean_nothing_are_refused(wrong):
    (key,) = wrong
    with refused(
        InvalidValueError, f"early_stopping.{key}", suggests=f"early_stopping.{key}={5 if key == 'patience' else 0}"
    ):
        EarlyStopping(**wrong)


def held_out(seed=7, name="validation"):
    return EvalSet(name, Rows(*samples(20, seed=seed), batch_size=10))


def rows(**changes):
    return Rows(*samples(48), batch_size=16, shuffle=True, **changes)


def job_of(student, folder, *, resume=False, **changes):
    keep = CheckpointSink(Checkpoints(folder / "checkpoints"), folder / "best.safetensors", {})
    how = settings(**{"epochs": 30, "early_stopping": EarlyStopping(patience=2), **changes})
    distiller = Distiller(student, objectives.cross_entropy())
    checkpoint = keep.checkpoints.load() if resume else None
    held = [held_out(), held_out(8, "test")]
    return FitJob(distiller=distiller, settings=how, uses_teacher=False, held_out=held, keep=keep, resume=checkpoint)


def fit_job(job, batches=None):
    batches = batches or rows()
    return list(
        fit(
            job.distiller,
            None,
            batches,
            job.settings,
            accelerator=accelerator_on("cpu"),
            held_out=job.held_out,
            keep=job.keep,
            resume=job.resume,
        )
    )


@pytest.mark.parametrize("ema", [None, EMA(decay=0.5)])
def test_it_ends_with_the_best_weights_or_the_last(ema, tmp_path):
    """Each to the bit: those of the file, or those of a fit of so many epochs and the same schedule."""
    student, last = mlp(), mlp()
    epochs = fit_job(job_of(student, tmp_path / "best", ema=ema))
    assert 2 < len(epochs) < 30
    assert reason_to_stop(epochs, EarlyStopping(patience=2))
    assert not reason_to_stop(epochs[:-1], EarlyStopping(patience=2))
    best = records.best_epoch(epochs, "validation")
    assert best["epoch"] == len(epochs) - 2
    kept = safetensors.torch.load_file(tmp_path / "best" / "best.safetensors")
    assert same_bits(state(student), kept)
    stopping = EarlyStopping(patience=2, keep="last")
    assert untimed(fit_job(job_of(last, tmp_path / "last", ema=ema, early_stopping=stopping))) == untimed(epochs)
    assert not same_bits(state(last), kept)
    short = mlp()
    fit_job(job_of(short, tmp_path / "short", ema=ema, early_stopping=None, epochs=len(epochs)))
    assert same_bits(state(last), state(short))  # The rate is constant.


def test_a_fit_without_a_stop_ends_with_the_best_too(tmp_path):
    student = mlp()
    assert len(fit_job(job_of(student, tmp_path, epochs=3, early_stopping=EarlyStopping(patience=9)))) == 3
    assert same_bits(state(student), safetensors.torch.load_file(tmp_path / "best.safetensors"))


@pytest.mark.parametrize("left", ["in an epoch", "at its end"])
def test_it_is_resumed_to_the_same_end(left, tmp_path):
    whole = mlp()
    expected = fit_job(job_of(whole, tmp_path / "whole"))
    if left == "in an epoch":
        with pytest.raises(KeyboardInterrupt):
            fit_job(job_of(mlp(), tmp_path / "stopped"), rows(stop_before=(2, 1)))
    else:
        fit_job(job_of(mlp(), tmp_path / "stopped"))
    again = mlp(seed=3)
    resumed = fit_job(job_of(again, tmp_path / "stopped", resume=True))
    assert untimed(resumed) == untimed(expected)[2 if left == "in an epoch" else len(expected) :]
    assert same_bits(state(again), state(whole))


def test_one_student_of_a_group_stops_and_the_others_go_on(tmp_path):
    """Each ends where it ends alone; one of them ended before the group was resumed."""
    changes = [{"early_stopping": EarlyStopping(patience=patience)} for patience in (1, 9)]
    alone = [mlp(seed=1), mlp(seed=2)]
    lengths = [
        len(fit_job(job_of(one, tmp_path / f"alone-{k}", epochs=4, **change)))
        for k, (one, change) in enumerate(zip(alone, changes, strict=True))
    ]
    assert lengths == [2, 4]

    def group(students, stop_before=None, *, resume=False):
        jobs = {
            k: job_of(student, tmp_path / f"{k}", resume=resume, epochs=4, **changes[k])
            for k, student in enumerate(students)
        }
        isolation, batches = Isolation(), rows(stop_before=stop_before)
        lockstep = Lockstep(jobs, None, batches, accelerator=accelerator_on("cpu"), isolation=isolation)
        ended = [k for k, _ in lockstep.run()]
        assert not isolation.errors
        return ended

    with pytest.raises(KeyboardInterrupt):
        group([mlp(seed=1), mlp(seed=2)], (3, 1))
    students = [mlp(seed=7), mlp(seed=8)]
    assert set(group(students, resume=True)) == {1}
    for one, other in zip(students, alone, strict=True):
        assert same_bits(state(one), state(other))


def test_without_a_set_or_a_place_it_is_refused(tmp_path):
    job = job_of(mlp(), tmp_path)
    accelerator, batches = accelerator_on("cpu"), rows()
    with refused(InvalidValueError, "early_stopping", suggests="leave it out"):
        list(fit(job.distiller, None, batches, job.settings, accelerator=accelerator, held_out=job.held_out[1:]))
    with refused(InvalidValueError, "early_stopping.keep", suggests="early_stopping.keep=last"):
        list(fit(job.distiller, None, batches, job.settings, accelerator=accelerator, held_out=job.held_out))


def test_best_weights_that_are_lost_are_missed(tmp_path):
    fit_job(job_of(mlp(), tmp_path))
    (tmp_path / "best.safetensors").unlink()
    with refused(records.DamagedError, str(tmp_path / "best.safetensors"), got="none", suggests="restore the file"):
        fit_job(job_of(mlp(), tmp_path, resume=True))


def fit_share(rank, folder):
    torch.set_num_threads(1)
    student, batches = mlp(), Shares(*samples(48), batch_size=16, shuffle=True)
    epochs = fit_job(job_of(student, folder), batches)
    torch.save((state(student), len(epochs)), folder / f"{rank}.pt")


@pytest.mark.slow
def test_two_processes_stop_together(tmp_path):
    processes(2, fit_share, tmp_path)
    (weights, length), other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert 2 < length == other[1] < 30
    assert same_bits(weights, other[0])
    assert same_bits(weights, safetensors.torch.load_file(tmp_path / "best.safetensors"))
