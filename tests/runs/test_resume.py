"""A run killed at any moment and resumed ends in the bits of an uninterrupted one."""

import json
import os
import signal
import subprocess
import sys

import pytest
from tests._helpers import KILLED_RUN

TIMING = ("seconds", "images_per_second", "memory_mb")


def two_stages(*moments):
    return {"recipe": "two-stages", "moments": list(moments)}


def teacher_first(*moments):
    return {"recipe": "teacher-first", "moments": list(moments)}


def at(what, count=1, where="", when="before"):
    return {"what": what, "count": count, "where": where, "when": when}


# Six steps per epoch, two epochs per stage, two stages; a checkpoint after every third step.
CASES = {
    "first-records": two_stages(at("write", where="recipe.yaml")),
    "first-manifest": two_stages(at("rename", where="manifest.json")),
    "before-any-checkpoint": two_stages(at("step", 2)),
    "between-steps": two_stages(at("step", 5)),
    "between-micro-batches": two_stages(at("forward", 9)),
    "first-checkpoint-tensors": two_stages(at("write", 1, "tensors.safetensors")),
    "checkpoint-tensors": two_stages(at("write", 2, "tensors.safetensors")),
    "checkpoint-state": two_stages(at("write", 2, "state.json")),
    "checkpoint-checksums": two_stages(at("write", 3, "checksums")),
    "checkpoint-sync": two_stages(at("sync", 2, "tensors.safetensors")),
    "checkpoint-file-rename": two_stages(at("rename", 3, "state.json")),
    "checkpoint-rename": two_stages(at("rename", 1, "checkpoints/00-000000006")),
    "checkpoint-renamed": two_stages(at("rename", 1, "00-000000006", "after")),
    "checkpoint-folder-sync": two_stages(at("sync", 12, "checkpoints")),
    "old-checkpoint-half-removed": two_stages(at("remove", 1, "00-000000003")),
    "metrics-half-appended": two_stages(at("write", 2, "metrics.jsonl")),
    "metrics-sync": two_stages(at("sync", 2, "metrics.jsonl")),
    "best-half-written": two_stages(at("write", 2, "best.safetensors")),
    "best-renamed-before-checkpoint": two_stages(at("rename", 1, "best.safetensors", "after")),
    "manifest-after-epoch": two_stages(at("write", 3, "manifest.json")),
    "stage-2-before-its-checkpoint": two_stages(at("step", 13)),
    "stage-2-first-checkpoint": two_stages(at("write", 1, "01-000000003")),
    "stage-2-mid-epoch": two_stages(at("step", 23)),
    "stage-2-last-checkpoint": two_stages(at("rename", 1, "01-000000012", "after")),
    "student-half-written": two_stages(at("write", 1, "student.safetensors")),
    "card-rename": two_stages(at("rename", 1, "student.json")),
    "evaluation-half-written": two_stages(at("write", 1, "evaluation.json")),
    "last-manifest": two_stages(at("rename", 6, "manifest.json")),
    "from-outside": two_stages(at("outside", 2)),
    "again-and-again": two_stages(
        at("step", 4),
        at("write", 1, "metrics.jsonl"),
        at("write", 1, "tensors.safetensors"),
        at("step", 12),
        at("step", 3),
    ),
    "teacher-in-training": teacher_first(at("step", 8)),
    "teacher-just-finished": teacher_first(at("finished")),
    "student-of-trained-teacher": teacher_first(at("step", 16)),
}


def group(*moments):
    return {"recipe": "class", "moments": list(moments)}


GROUP = ("three", "two", "five", "none")
# Four runs in lockstep: a step of the group is four of the optimizers'.
GROUPS = {
    "group-before-any-checkpoint": group(at("step", 6)),
    "group-in-the-middle-of-a-step": group(at("step", 18)),
    "group-between-micro-batches": group(at("forward", 9)),
    "group-one-checkpoint-of-several": group(at("write", 2, "tensors.safetensors")),
    "group-second-epoch": group(at("step", 47)),
    "group-metrics-of-the-second-run": group(at("write", 2, "metrics.jsonl")),
    "group-end-of-stage-1": group(at("rename", 1, "two/checkpoints/00-000000012", "after")),
    "group-stage-2": group(at("step", 71)),
    "group-one-is-finished": group(at("write", 2, "student.safetensors")),
    "group-last-manifest": group(at("write", 3, "evaluation.json")),
    "group-again-and-again": group(at("step", 18), at("step", 9), at("write", 1, "metrics.jsonl"), at("step", 30)),
}


FORGETFUL = {"forgetful": two_stages(at("step", 5)) | {"then": at("forget")}}
QUICK = {
    "between-steps",
    "again-and-again",
    "two-stages",
    "teacher-in-training",
    "group-again-and-again",
    "forgetful",
}
"""One moment of each kind, some of them in ``again-and-again``; the others are marked slow."""


def marked(cases):
    return [pytest.param(case, marks=[] if case in QUICK else pytest.mark.slow) for case in cases]


@pytest.fixture(scope="module")
def killed(request, tmp_path_factory):
    """Do what the selected tests of this module ask for, in one process that forks."""
    folder = tmp_path_factory.mktemp("killed")
    items = [item for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    selected = {item.callspec.params.get("case") for item in items}
    done = subprocess.run(
        [sys.executable, "-W", "error", KILLED_RUN, folder],
        input=json.dumps({name: case for name, case in (CASES | GROUPS | FORGETFUL).items() if name in selected}),
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout), done.stderr


def metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMING} for line in lines]


@pytest.mark.parametrize("case", marked(CASES))
def test_killed_and_resumed_is_never_stopped(killed, case):
    folder, outcomes, errors = killed
    recipe = CASES[case]["recipe"]
    assert outcomes[recipe] == [{"exit": 0}], errors
    kills = [{"signal": signal.SIGKILL}] * len(CASES[case]["moments"])
    assert outcomes[case] == [*kills, {"exit": 0}], errors
    assert_never_stopped(folder / case, folder / recipe)


@pytest.mark.parametrize("case", marked(GROUPS))
def test_a_group_killed_and_resumed_is_each_run_alone_never_stopped(killed, case):
    folder, outcomes, errors = killed
    assert outcomes["class"] == [{"exit": 0}] * len(GROUP), errors
    kills = [{"signal": signal.SIGKILL}] * len(GROUPS[case]["moments"])
    assert outcomes[case] == [*kills, {"exit": 0}], errors
    for name in GROUP:
        assert_never_stopped(folder / case / name, folder / "class" / name)


def assert_never_stopped(whole, other):
    for name in ("student.safetensors", "best.safetensors", "student.json", "evaluation.json"):
        assert (whole / name).read_bytes() == (other / name).read_bytes(), name
    assert metrics(whole) == metrics(other)
    assert json.loads((whole / "manifest.json").read_text())["status"] == "finished"
    left = [path.name for path in whole.rglob("*.tmp")]
    assert left == []
    assert sorted(path.name for path in (whole / "checkpoints").iterdir()) == sorted(
        path.name for path in (other / "checkpoints").iterdir()
    )


@pytest.mark.parametrize("case", marked(["teacher-in-training", "teacher-just-finished"]))
def test_the_teacher_that_a_run_trains_is_the_same_too(killed, case):
    folder, _, _ = killed
    weights = (folder / case / "teacher" / "student.safetensors").read_bytes()
    assert weights == (folder / "teacher-first" / "teacher" / "student.safetensors").read_bytes()


RESUMES = {"first-records": 0, "first-manifest": 0, "two-stages": 0, "between-steps": 1, "again-and-again": 5}


@pytest.mark.parametrize("case", marked(RESUMES))
def test_a_resumed_run_says_so(killed, case):
    folder, _, _ = killed
    assert json.loads((folder / case / "manifest.json").read_text())["resumed"] == RESUMES[case]


@pytest.mark.parametrize("case", FORGETFUL)
def test_a_resume_that_forgets_something_would_be_seen(killed, case):
    """The control: the same kill, resumed by a child whose generators are not put back, ends in other bits."""
    folder, outcomes, errors = killed
    assert outcomes[case] == [{"signal": signal.SIGKILL}, {"exit": 0}], errors
    assert (folder / case / "manifest.json").exists()
    student = (folder / case / "student.safetensors").read_bytes()
    assert student != (folder / "two-stages" / "student.safetensors").read_bytes()
    assert metrics(folder / case) != metrics(folder / "two-stages")
