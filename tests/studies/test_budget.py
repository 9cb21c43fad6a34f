"""Studies inside a budget of time: order, plan, stops, and resuming elsewhere. The clock is the tests' own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from tests._helpers.refusals import refused

from tutelage import config, records
from tutelage.errors import RecipeError
from tutelage.places import time_limit
from tutelage.places.time_limit import Budget
from tutelage.runs import autotune
from tutelage.runs.execute import execute
from tutelage.runs.reporter import Reporter
from tutelage.runs.run import RunOptions
from tutelage.studies import budget, plan, run_study, schema
from tutelage.training.deadline import Deadline, DeadlineExceeded

QUICK = {"data": "digits", "epochs": 2, "batch_size": 64, "optimizer": {"lr": 0.1}, "device": "cpu", "threads": 1}
STUDY = {
    "name": "grid",
    "protocol": QUICK,
    "pairs": {
        "large/middle": {"teacher": "mlp:48", "student": "mlp:24"},
        "large/small": {"teacher": "mlp:48", "student": "mlp:12"},
        "slim/tiny": {"teacher": "mlp:16", "student": "mlp:6"},
    },
    "methods": ["cross_entropy", "kd"],
}
ONE = {**STUDY, "pairs": {"slim/tiny": STUDY["pairs"]["slim/tiny"]}}
STEPS = 23
"""Of an epoch."""


class Clock:
    """A clock that advances by a second whenever it is read."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now


class CollectingReporter(Reporter):
    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


def assign(folder, study=STUDY, **changes):
    study = schema.parse(study)
    return plan.assign(study, study, runs=folder, **changes)


def studied(request, time_limit=None, **changes):
    reporter = CollectingReporter()
    return run_study.run_study(
        request, options=RunOptions(reporter=reporter), budget=time_limit, **changes
    ), reporter.lines


def prepare(request, seconds=600.0, **changes):
    return budget.prepare(request, Budget(seconds, time.monotonic() + seconds), **changes)


def status(folder):
    path = folder / records.MANIFEST
    return json.loads(path.read_text())["status"] if path.exists() else None


def statuses(request):
    return {job.name.removeprefix("grid/"): status(request.runs / job.name) for job in plan.jobs(request)}


def values(request):
    rows = json.loads((request.folder / "table.json").read_text())["rows"]
    return {(row["pair"], row["method"]): (row["n"], row["values"]) for row in rows}


def width(name):
    return int(str(name).partition(":")[2])


@pytest.fixture
def by_width(monkeypatch):
    """A step takes a millisecond for each hidden unit of the network that is trained; count what is timed."""
    timed = []

    def step(recipe, run_inputs, stage=0, *, limit=0.0):
        timed.append(recipe.student.name)
        return autotune.StepTime(width(recipe.student.name) / 1000, {})

    monkeypatch.setattr(autotune, "time_step", step)
    return timed


@pytest.mark.parametrize(
    ("typed", "seconds"), [("90s", 90), ("25m", 1500), ("2h", 7200), ("1h30m", 5400), ("0.5m", 30), (" 1m5s ", 65)]
)
def test_a_budget_is_a_time_with_a_unit(typed, seconds):
    assert time_limit.read(typed) == seconds


@pytest.mark.parametrize(
    ("typed", "got", "suggests"),
    [
        ("25", "25", ["--budget 25m", "--budget 25s"]),
        ("0m", "0m", "--budget 25m"),
        ("soon", "'soon'", "--budget 25m"),
        ("", "''", "--budget 25m"),
        ("-5m", "'-5m'", "--budget 25m"),
        ("30m1h", "'30m1h'", "--budget 25m"),
        ("5d", "'5d'", "--budget 25m"),
    ],
)
def test_what_is_no_budget_is_answered_with_what_to_type(typed, got, suggests):
    with refused(RecipeError, "--budget", got=got, suggests=suggests):
        time_limit.read(typed)


def test_the_pair_that_takes_least_comes_first_and_each_row_is_whole_before_the_next(tmp_path, by_width):
    planned = prepare(assign(tmp_path, seeds=2))
    # Beside the large teacher that large/small has paid for, large/middle takes its students alone.
    assert planned.request.pairs == ("slim/tiny", "large/small", "large/middle")
    assert [job.name.removeprefix("grid/") for job in planned.left][:5] == [
        "teachers/slim-seed100",
        "students/tiny-cross_entropy-seed0",
        "slim-tiny/kd-seed0",
        "students/tiny-cross_entropy-seed1",
        "slim-tiny/kd-seed1",
    ]
    names = [job.name.removeprefix("grid/") for job in planned.left]
    assert names.index("teachers/large-seed100") == 5
    assert len(names) == len(set(names)) == 14
    cost = planned.costs["grid/slim-tiny/kd-seed0"]
    assert (cost.steps, cost.step, cost.source) == (2 * STEPS, 0.006, "timed")
    assert planned.costs["grid/teachers/large-seed100"].step == 0.048


def test_the_plan_says_what_fits(tmp_path, by_width):
    request = assign(tmp_path)
    whole = [prepare(assign(tmp_path, pairs=[pair])).seconds for pair in request.study.pairs]
    lines = list(prepare(request, seconds=whole[2] + 1.5).lines())
    rows = [line.split() for line in lines if "/" in line and "ms per step" in line]
    assert [(row[0], row[1], row[2]) for row in rows] == [
        ("slim/tiny", "3", "138"),
        ("large/small", "3", "138"),
        ("large/middle", "2", "92"),
    ]
    fits = [line.rpartition("  ")[2].strip() for line in lines if "ms per step" in line]
    assert fits == ["all", "in part", "no"]
    assert "16.0 ms per step (timed)" in lines[2]


def test_what_was_timed_or_done_on_the_machine_is_not_timed_again(tmp_path, without_reports, by_width):
    request = assign(tmp_path)
    prepare(request)
    assert len(by_width) == 6  # a student and a teacher of each pair
    prepare(request)
    assert len(by_width) == 6
    # What was done here tells more than what was timed.
    studied(assign(tmp_path, pairs=["slim/tiny"], methods=["kd"]))
    planned = prepare(assign(tmp_path, seeds=2))
    sources = {name.removeprefix("grid/"): cost.source for name, cost in planned.costs.items()}
    assert sources["slim-tiny/kd-seed1"] == "records"
    assert sources["students/tiny-cross_entropy-seed0"] == "timed"
    # The time of runs in lockstep is shared.
    manifest = tmp_path / "grid/slim-tiny/kd-seed0" / records.MANIFEST
    recorded = json.loads(manifest.read_text())
    records.write_json(manifest, {**recorded, "class": ["another", "a third"]})
    alone, shared = (
        budgeted.costs["grid/slim-tiny/kd-seed1"].step for budgeted in (planned, prepare(assign(tmp_path, seeds=2)))
    )
    assert shared == pytest.approx(alone / 3)
    # On another machine neither counts.
    path = request.folder / budget.TIMES
    elsewhere = json.loads(path.read_text())
    elsewhere["machine"]["processor"] = "another"
    path.write_text(json.dumps(elsewhere))
    recorded["hardware"]["processor"] = "another"
    manifest.write_text(json.dumps(recorded))
    planned = prepare(assign(tmp_path, seeds=2))
    assert planned.costs["grid/slim-tiny/kd-seed1"].source == "timed"
    assert len(by_width) == 6 + 5  # of slim/tiny the teacher is there


def test_timing_itself_is_short(tmp_path, by_width, monkeypatch):
    monkeypatch.setattr(budget, "SHARE", 0.0)
    planned = prepare(assign(tmp_path))
    assert by_width == ["mlp:24", "mlp:48"]
    assert planned.request.pairs[0] == "large/middle"
    assert set(planned.untimed) == {"large/small", "slim/tiny"}
    assert sum("not known: timing would take more" in line for line in planned.lines()) == 2


def test_a_pair_that_cannot_be_built_is_last_and_fails_as_without_a_budget(tmp_path, without_reports):
    pairs = {"lost/tiny": {"teacher": "mlp:zero", "student": "mlp:6"}, **ONE["pairs"]}
    request = assign(tmp_path, {**ONE, "pairs": pairs}, methods=["kd"])
    failed, lines = studied(request, Budget(600.0, time.monotonic() + 600.0))
    assert list(failed) == ["grid/teachers/lost-seed100", "grid/lost-tiny/kd-seed0"]
    assert status(tmp_path / "grid/slim-tiny/kd-seed0") == "finished"
    assert any("not known" in line and "mlp:zero" in line for line in lines)


def test_recorded_outputs_are_asked_once_and_the_step_without_the_teacher(tmp_path, by_width):
    methods = {"kd": "kd", "ttm": {"ttm": {"gamma": 0.25, "beta": 1}}}
    study = {**ONE, "methods": methods, "protocol": {**QUICK, "outputs": str(tmp_path / "outputs")}}
    planned = prepare(assign(tmp_path, study))
    first, second = (planned.costs[f"grid/slim-tiny/{method}-seed0"] for method in methods)
    assert first.record > 0 == second.record
    assert first.step <= 0.006


# Stops


def stopped(folder, seconds, study=ONE):
    """Do a study with a clock that gives it so many looks."""
    request, clock = assign(folder, study), Clock()
    failed, lines = studied(request, Budget(seconds, seconds + budget.MARGIN, clock))
    assert failed == {}
    return request, lines, clock


@pytest.mark.parametrize("looks", [64, *(pytest.param(looks, marks=pytest.mark.slow) for looks in (30, 75, 85))])
def test_a_study_stops_inside_its_budget_and_resumes_to_the_same_bits(tmp_path, without_reports, looks):
    request, lines, clock = stopped(tmp_path / "parts", looks)
    assert clock.now < looks + budget.MARGIN
    states = list(statuses(request).values())
    at = states.index("interrupted")
    # The teacher alone, then its students in lockstep.
    assert states in (["interrupted", None, None], ["finished", "interrupted", "interrupted"])
    assert sum(line.startswith("the budget is used up") for line in lines) == 1
    begun = next(job for job in plan.jobs(request) if status(request.runs / job.name) == "interrupted")
    names = sorted(path.name for path in (request.runs / begun.name / records.CHECKPOINTS).iterdir())
    step = int(names[-1].split("-")[1])
    assert 0 < step < 2 * STEPS
    assert values(request)["slim/tiny", "kd"][0] == 0
    assert (request.folder / "table.md").exists()
    how_many = "1 of the 3 left is begun" if at == 0 else "2 of the 2 left are begun"
    assert f"{at} of 3 runs are finished, {how_many}" in budget.progress(prepare(assign(tmp_path / "parts", ONE)))
    failed, _ = studied(request)
    assert failed == {}
    whole = assign(tmp_path / "whole", ONE)
    studied(whole)
    assert values(request) == values(whole)
    for job in plan.jobs(whole):
        for file in (records.STUDENT, records.BEST, records.EVALUATION):
            assert (request.runs / job.name / file).read_bytes() == (whole.runs / job.name / file).read_bytes()


def test_no_run_is_begun_that_nothing_could_be_done_of(tmp_path, without_reports):
    request, lines, _ = stopped(tmp_path, 1.0)
    assert set(statuses(request).values()) == {None}
    assert any(line.startswith("the budget is used up") for line in lines)
    assert (request.folder / "study.json").exists()


def test_part_after_part_ends_the_study(tmp_path, without_reports):
    parts = 0
    while "interrupted" in (states := set(statuses(assign(tmp_path, ONE)).values())) or None in states:
        stopped(tmp_path, 45)
        parts += 1
        assert parts < 9
    assert parts > 2
    whole = assign(tmp_path / "whole", ONE)
    studied(whole)
    assert values(assign(tmp_path, ONE)) == values(whole)


def test_an_epoch_s_last_step_is_left_where_the_evaluation_does_not_fit(tmp_path, without_reports):
    recipe = config.parse(config.Recipe, {"name": "x", "student": "mlp:6", "objective": "cross_entropy", **QUICK})
    deadline = Deadline(1000.0, evaluation=5000.0, clock=lambda: 0.0)
    with pytest.raises(DeadlineExceeded):
        execute(recipe, tmp_path / "x", options=RunOptions(deadline=deadline))
    (name,) = (path.name for path in (tmp_path / "x" / records.CHECKPOINTS).iterdir())
    assert name == f"00-{STEPS - 1:09d}"
    assert status(tmp_path / "x") == "interrupted"
    # What an evaluation takes is measured: the second epoch's fits.
    deadline = Deadline(1000.0, evaluation=500.0, clock=lambda: 0.0)
    execute(recipe, tmp_path / "x", options=RunOptions(deadline=deadline))
    assert deadline.evaluation < 500
    assert status(tmp_path / "x") == "finished"


def test_a_stop_before_the_last_evaluation_leaves_it_alone_to_do(tmp_path, without_reports):
    recipe = config.parse(config.Recipe, {"name": "x", "student": "mlp:6", "objective": "cross_entropy", **QUICK})
    clock = Clock()
    with pytest.raises(DeadlineExceeded, match="x: the last evaluation"):
        execute(recipe, tmp_path / "x", options=RunOptions(deadline=Deadline(2 * STEPS + 1, clock=clock)))
    before = len(list(records.read_epochs(tmp_path / "x")))
    assert (before, status(tmp_path / "x")) == (2, "interrupted")
    execute(recipe, tmp_path / "x")
    assert len(list(records.read_epochs(tmp_path / "x"))) == 2
    assert status(tmp_path / "x") == "finished"


# On the command line


def test_the_command_says_what_is_done_what_is_left_and_how_to_resume(invoke, tmp_path, without_reports):
    Path("grid.yaml").write_text(yaml.safe_dump(ONE))
    code, out, err = invoke("study", "grid.yaml", "--budget", "2s", "--device", "cpu")
    assert (code, err) == (0, "")
    assert "budget: 2 s, of which" in out
    assert "0 of 3 runs are finished, 0 of the 3 left are begun; they take about" in out
    assert "runs was copied to: tutelage study grid.yaml --budget 2s --device cpu" in out
    code, out, err = invoke("study", "grid.yaml", "--budget", "10m", "--methods", "kd")
    assert (code, err) == (0, "")
    assert "2 of 2 runs are finished; nothing is left" in out
    assert "to resume" not in out
    code, out, err = invoke("study", "grid.yaml", "--budget", "10m", "--dry-run")
    assert code == 0, err
    assert "ms per step" in out


def test_mistakes_are_answered_in_a_line(invoke):
    Path("grid.yaml").write_text(yaml.safe_dump(ONE))
    wrong = [
        (["--budget", "25"], "for example --budget 25m"),
        (["--budget", "0s"], "expected a time above 0"),
        (["--device", "cpu", "device=auto"], "got --device cpu and device=auto; leave one of them out"),
        (["--device", "cuda", "--budget", "5m"], "got none that torch can see; type --device=cpu"),
    ]
    for typed, message in wrong:
        code, _, err = invoke("study", "grid.yaml", *typed)
        assert code == 2
        (line,) = err.splitlines()
        assert message in line
    assert not Path("runs").exists()


@pytest.mark.slow  # one process keeps to its budget in every change
def test_several_processes_share_a_budget(invoke, tmp_path):
    Path("grid.yaml").write_text(yaml.safe_dump(ONE))
    code, out, err = invoke("study", "grid.yaml", "--budget", "8m", "--jobs", "2")
    assert (code, err) == (0, "")
    assert "3 of 3 runs are finished; nothing is left" in out
    assert out.count("the pair that takes least comes first") == 1
    command = json.loads((tmp_path / "runs/grid/slim-tiny/kd-seed0" / records.MANIFEST).read_text())["command"]
    assert command == "tutelage study grid.yaml --budget 8m --jobs 2"
    Path("grid.yaml").write_text(yaml.safe_dump({**ONE, "seeds": 2}))
    code, out, err = invoke("study", "grid.yaml", "--budget", "3s", "--jobs", "2")
    assert (code, err) == (0, "")
    assert "3 of 5 runs are finished, 0 of the 2 left are begun" in out


# Elsewhere


@pytest.mark.slow
def test_killed_and_copied_elsewhere_it_resumes_to_the_same_table(invoke, tmp_path, monkeypatch, without_reports):
    study = {**ONE, "protocol": {**QUICK, "epochs": 60, "batch_size": 32, "checkpoint_steps": 20}}
    here, there = tmp_path / "here", tmp_path / "another" / "place"
    for folder in (here, there):
        folder.mkdir(parents=True)
        (folder / "grid.yaml").write_text(yaml.safe_dump(study))
    typed = ["study", "grid.yaml", "--budget", "9m", "--together", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tutelage", *typed],
        cwd=here,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    student = here / "runs/grid/slim-tiny/kd-seed0"
    try:
        end = time.monotonic() + 240
        while not (student / records.CHECKPOINTS).is_dir() or len(list(records.read_epochs(student))) < 2:
            assert time.monotonic() < end, "waited too long"
            assert process.poll() is None
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert status(student) == "running"
    shutil.copytree(here / "runs", there / "runs")
    shutil.rmtree(here)
    done = there / "runs/grid/students/tiny-cross_entropy-seed0" / records.STUDENT
    written = done.stat().st_mtime_ns
    for path in there.rglob(records.MANIFEST):
        path.write_text(path.read_text().replace('"processor": "', '"processor": "another '))
    monkeypatch.chdir(there)
    code, out, err = invoke(*typed)
    assert (code, err) == (0, "")
    assert "1 of 3 runs to do" in out
    assert "resuming after epoch" in out
    assert done.stat().st_mtime_ns == written
    whole = assign(tmp_path / "whole", study)
    studied(whole)
    assert values(assign(there / "runs", study)) == values(whole)
    for job in plan.jobs(whole):
        weights = (there / "runs" / job.name / records.STUDENT).read_bytes()
        assert weights == (whole.runs / job.name / records.STUDENT).read_bytes()


@pytest.mark.slow  # a run warns of them in every change
def test_other_threads_are_warned_of_and_the_run_resumes(tmp_path, without_reports):
    stopped(tmp_path, 30)
    study = {**ONE, "protocol": {**QUICK, "threads": 2}}
    with pytest.warns(UserWarning, match="threads was 1, is 2"):
        failed, _ = studied(assign(tmp_path, study))
    assert failed == {}
    assert values(assign(tmp_path, study))["slim/tiny", "kd"][0] == 1
