"""What two processes share out gives the figures and files of one: evaluation, the teacher's statistics, recording."""

import os
import signal
import warnings
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tests._helpers.fit_cases import Rows, mlp, samples
from tests._helpers.processes import two_processes
from torch import nn

from tutelage.config.schema import Recipe
from tutelage.data import BatchLoader
from tutelage.interruption import stop_on_signals
from tutelage.runs import record_teacher
from tutelage.runs.run import RunOptions
from tutelage.runs.setup import build_inputs, evaluate_network, held_out_sets, parse, run_context
from tutelage.training.calibration import Answered, calibrate
from tutelage.training.deadline import Deadline, DeadlineExceeded
from tutelage.training.distributed import ProcessError, once_a_node, rank
from tutelage.training.evaluate import KeptLogits, NonFiniteError, evaluate

HOW = {"device": torch.device("cpu"), "precision": "fp32", "channels_last": False}
INPUTS, LABELS = samples(75)


def recipe(**keys):
    settings = {"student": "mlp:8", "teacher": "mlp:16", "data": {"source": "digits", "crop_padding": 1}, "epochs": 2}
    settings |= {"precision": "fp32", "device": "cpu", "threads": 1, "objective": "kd"}
    return parse(Recipe, {"name": "run", **settings, **keys})


def evaluated(student=None, inputs=INPUTS, *, batch_size=16):
    """Five batches by one process, or three by one of two and two by the other."""
    rows, kept = Rows(inputs, LABELS.index_fill(0, torch.arange(9), -100), batch_size=batch_size), KeptLogits()
    teacher = evaluate(mlp(seed=1), rows, who="teacher", keep=kept, **HOW)
    student = evaluate(student or mlp(seed=2), rows, teacher=kept, gamma=0.25, predictions=True, **HOW)
    answers = [column.tolist() for column in student.predicted]
    calibrated = calibrate(Answered(kept, rows.labels))
    return kept, [
        *(teacher.judgement(), student.judgement(), student.means("test"), teacher.sample.tolist()),
        *(answers, calibrated),
    ]


def figures():
    """Whatever is shared out, with `repr`, so that every bit counts."""
    objective = [{"wttm": {"gamma": 0.25, "beta": "auto"}}, {"kd_plus_plus": {"supervised": 0}}]
    plain = recipe(objective=objective, weak_teacher=True)
    inputs = build_inputs(plain)
    context = run_context(inputs.objectives[0], inputs)
    means = {name: values.tolist() for name, values in context.class_means.items()}
    ((_, batches),) = held_out_sets(inputs.splits, plain)
    digits = evaluate_network(plain, inputs.student, batches)
    assert context.teacher_logits.shape == (1437, 10)
    assert means
    return repr([evaluated()[1], context.teacher_logits.tolist(), means, digits.judgement()])


def reader(folder):
    return recipe(outputs=str(folder), epochs=1, objective="rkd")


def recorded(folder, **options):
    """Record six chunks an epoch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record_teacher, "CHUNK", 1)
        return record_teacher.record(reader(folder), options=RunOptions(**options))


class Breaks(nn.Module):
    def forward(self, x):
        return torch.where(x[:, :1] > 1.5, torch.nan, x[:, :4])


def caught(kind, work):
    with pytest.raises(kind) as error:
        work()
    return str(error.value)


def in_two(process, folder):
    """What each of two processes does."""
    recorded(folder / "two")
    result = {"figures": figures(), "held": sorted(evaluated()[0].held)}
    bad = INPUTS.clone()
    bad[20] = 2.0  # in the second process's first batch
    result["not finite"] = caught(NonFiniteError, lambda: evaluated(Breaks(), bad))

    def breaks(index, logits, *features):
        if rank() == 1:
            raise ValueError("a broken disk")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record_teacher, "_require_finite", breaks)
        result["failed"] = caught((ProcessError, ValueError), lambda: recorded(folder / "failed"))
    times = iter([1.0, 3.0] if process == 0 else [])  # The first process's clock counts.
    deadline = Deadline(2.0, clock=lambda: next(times))
    result["late"] = caught(DeadlineExceeded, lambda: recorded(folder / "late", deadline=deadline))

    def press(index, logits, *features):
        if rank() == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch, stop_on_signals(os._exit):
        patch.setattr(record_teacher, "_require_finite", press)
        caught(KeyboardInterrupt, lambda: recorded(folder / "stopped"))
    recorded(folder / "stopped")
    result["opened"] = once_a_node(lambda: ["opened by", process])
    torch.save(result, folder / f"{process}.pt")


@pytest.mark.slow  # two processes train as one in every change
def test_two_processes_share_what_one_does(tmp_path):
    codes, started = two_processes(in_two, tmp_path)
    started.join()  # An error of one is raised here.
    assert codes == [0, 0]
    results = [torch.load(tmp_path / f"{process}.pt", weights_only=True) for process in range(2)]
    wanted = figures()
    assert [result["figures"] == wanted for result in results] == [True, True]
    assert [result["held"] for result in results] == [[0, 2, 4], [1, 3]]
    assert results[0]["not finite"] == results[1]["not finite"]
    assert "1 of 75 samples: 20" in results[0]["not finite"]
    assert results[1]["failed"] == "a broken disk"
    assert "process 1 of 2" in results[0]["failed"]
    assert "a broken disk" in results[0]["failed"]
    assert not list((tmp_path / "failed").rglob("*.safetensors"))
    assert len(list((tmp_path / "late").rglob("*logits*"))) == 2
    one = recorded(tmp_path / "one")
    files = sorted(one.rglob("*.safetensors"))
    assert len(files) == 12
    for path in files:
        for folder in ("two", "stopped"):
            assert path.read_bytes() == (tmp_path / folder / path.relative_to(one)).read_bytes()
    assert all("next chunk" in result["late"] for result in results)
    assert [result["opened"] for result in results] == [["opened by", 0]] * 2


def test_the_size_of_chunks_changes_no_value(tmp_path):
    """Batches of the teacher are the same, though they have samples of two chunks."""
    whole = record_teacher.record(reader(tmp_path / "whole"))
    chunks = recorded(tmp_path / "chunks")
    for what in ("logits", "tap"):
        (values,) = (load_file(path)["values"] for path in whole.rglob(f"*.{what}*"))
        parts = [load_file(path)["values"] for path in sorted(chunks.rglob(f"*.{what}*"))]
        assert [len(part) for part in parts] == [256] * 5 + [157]
        assert torch.equal(torch.cat(parts), values)


@pytest.mark.parametrize(
    ("classes", "shape", "rows"),
    [(1000, (), 16384), (1000, (64, 56, 56), 512), (10, (512, 7, 7), 4096), (10, (2**24,), 256)],
)
def test_a_chunk_is_within_its_limit(classes, shape, rows):
    shapes = {"tap": shape} if shape else {}
    assert record_teacher._rows(classes, shapes) == rows
    size = 4 * (classes + sum(torch.Size(shape).numel() for shape in shapes.values()))
    assert rows * size <= record_teacher.CHUNK or rows == record_teacher.INNER


def test_a_damaged_chunk_is_told_whoever_finds_it(tmp_path):
    folder = recorded(tmp_path / "outputs")
    path = min(folder.rglob("*.logits*"))
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.warns(UserWarning, match="recorded again"):
        recorded(folder)
    assert path.read_bytes() == content


def test_whole_batches_are_dealt():
    split = build_inputs(recipe()).splits.test
    batches = BatchLoader(split, batch_size=100, train=False)
    whole = list(batches.epoch(0))
    for world in (1, 2, 3, 9):
        shares = [list(batches.dealt(rank=process, world=world)) for process in range(world)]
        assert sum(map(len, shares)) == len(whole)
        for number, batch in enumerate(whole):
            dealt = shares[number % world][number // world]
            assert torch.equal(dealt.index, batch.index)
            assert torch.equal(dealt.inputs, batch.inputs)
    read = []
    fetching = replace(split, transform=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for batch in BatchLoader(fetching, batch_size=100, train=False).dealt(rank=1, world=2):
            read += batch.index.tolist()
    assert read == [*range(100, 200), *range(300, 360)]
