"""Studies and comparisons on a Ray cluster: dealing and refusals with a stand-in for Ray, the rest on two nodes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace

import pytest
import yaml
from tests._helpers import ROOT
from tests._helpers.refusals import refused
from tests._helpers.studies import QUICK, STUDY, Lines

from tutelage import config, records
from tutelage.config.schema import Comparison, Recipe
from tutelage.errors import InvalidValueError, MissingExtraError, RunError, StorageError
from tutelage.places import cluster
from tutelage.runs.lock import BusyError, folder_lock
from tutelage.runs.run import Run, RunOptions
from tutelage.studies import compare, plan, run_study, schema


class Lost(Exception):
    """What Ray raises where a task's node is gone for good."""


class Ref(SimpleNamespace):
    __hash__ = object.__hash__


class StandIn(ModuleType):
    """Ray, as far as this package calls it: tasks are done in this process, when they are waited for."""

    def __init__(self, nodes, *, blind=(), bare=(), lost=()):
        super().__init__("ray")
        self.blind, self.bare, self.lost = blind, bare, lost
        self.asked = []
        self.listed = [
            {"NodeID": f"{k:06}", "NodeManagerAddress": f"10.0.0.{k}", "Alive": True, "Resources": resources}
            for k, resources in enumerate(nodes)
        ]
        self.listed.append({"NodeID": "dead", "NodeManagerAddress": "10.0.0.9", "Alive": False, "Resources": {}})
        self.shutdown = lambda: None

    def init(self, **_):
        signal.signal(signal.SIGTERM, lambda *_: None)  # as Ray does

    def nodes(self):
        return self.listed

    def remote(self, **options):
        return lambda work: _Task(self, work, options)

    def wait(self, refs, *, num_returns, timeout):
        return refs[:num_returns], refs[num_returns:]

    def get(self, ref, timeout=None):
        if isinstance(outcome := ref.outcome(), Exception):
            raise outcome
        return outcome


class _Task:
    def __init__(self, ray, work, options):
        self.ray, self.work, self.settings = ray, work, options

    def options(self, **more):
        return _Task(self.ray, self.work, self.settings | more)

    def remote(self, *arguments):
        self.ray.asked.append(self.settings)
        number = len(self.ray.asked)
        return Ref(outcome=lambda: self.outcome(arguments, number))

    def outcome(self, arguments, number):
        strategy = self.settings.get("scheduling_strategy")
        node = getattr(strategy, "node", None)
        if node in self.ray.bare:
            return "No module named 'tutelage'", "", False
        if node in self.ray.blind:
            return *self.work()[:2], False
        if number in self.ray.lost:
            return Lost("the node is gone")
        return self.work(*arguments)


@pytest.fixture
def ray(monkeypatch):
    """Install a stand-in for Ray with these nodes."""

    def install(*nodes, **settings):
        stand_in = StandIn(nodes, **settings)
        affinity = ModuleType("ray.util.scheduling_strategies")
        affinity.NodeAffinitySchedulingStrategy = lambda node, soft: Ref(node=node)
        monkeypatch.setitem(sys.modules, "ray", stand_in)
        monkeypatch.setitem(sys.modules, "ray.util", ModuleType("ray.util"))
        monkeypatch.setitem(sys.modules, "ray.util.scheduling_strategies", affinity)
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        return stand_in

    return install


def recipe(**settings):
    return Recipe.model_validate({"name": "x", "student": "mlp:8", **QUICK, **settings})


def connected(folder, reporter=None, **settings):
    return cluster.connected("auto", folder, recipe(**settings), reporter or Lines())


def test_without_ray_the_extra_is_named(invoke, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(STUDY))
    code, _, err = invoke("study", "grid.yaml", "--on", "ray")
    assert code == 2
    assert "pip install 'tutelage[ray]'" in err
    with refused(MissingExtraError, "--on", suggests="pip install 'tutelage[ray]'"), connected(tmp_path):
        pass


@pytest.mark.parametrize(
    ("typed", "what"),
    [
        (["--address", "10.0.0.1:6379"], "--address"),
        (["--on", "ray", "--jobs", "2"], "--jobs"),
        (["--on", "ray", "--budget", "5m"], "--budget"),
        (["--on", "ray", "--address", "ray://10.0.0.1:10001"], "--address"),
        (["--on", "ray", "--address", "127.0.0.1:1"], "--address"),
        (["--on", "ray", "device=cuda:1"], "device"),
    ],
)
def test_what_does_not_go_together_is_refused(typed, what, invoke, ray, tmp_path):
    ray({"CPU": 1})
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(STUDY))
    code, _, err = invoke("study", "grid.yaml", *typed)
    assert code == (1 if typed[-1] == "127.0.0.1:1" else 2)
    assert err.startswith(f"tutelage: {what}: expected ")
    assert not list(tmp_path.rglob("manifest.json"))


def test_no_node_is_large_enough(ray, tmp_path):
    ray({"CPU": 2}, {"CPU": 4, "GPU": 1})
    with (
        refused(InvalidValueError, "--on ray", got="2 CPUs and 0 GPUs", suggests="threads"),
        connected(tmp_path, threads=8),
    ):
        pass
    with connected(tmp_path, device="cpu", threads=2) as there:
        assert there.slots == 3
        assert there.resources(recipe(threads=3)) == (3, 0)
        # One GPU each, wherever there is one; processes that read data count.
        assert there.resources(recipe(device="auto", data={"source": "digits", "workers": 2})) == (3, 1)
    with connected(tmp_path, device="cuda") as there:
        assert there.slots == 1
    assert not list(tmp_path.iterdir())  # the token is gone


def test_ray_neither_phones_home_nor_takes_the_signals(ray, tmp_path, monkeypatch):
    ray({"CPU": 1})
    before = signal.getsignal(signal.SIGTERM)
    for value in ("1", None):
        monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
        if value:
            monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", value)
        with connected(tmp_path):
            assert os.environ["RAY_USAGE_STATS_ENABLED"] == (value or "0")
            assert signal.getsignal(signal.SIGTERM) is before


def test_every_node_sees_the_runs_and_has_the_package(ray, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where a task of a node goes, which is this process here
    ray({"CPU": 1}, {"CPU": 1}, blind=["000001"])
    with refused(StorageError, "--runs", got="10.0.0.1", suggests="--runs FOLDER"), connected(tmp_path / "runs"):
        pass
    ray({"CPU": 1}, {"CPU": 1}, bare=["000000"])
    with refused(RunError, "node 10.0.0.0 (000000)", got="No module named", suggests="install"), connected(tmp_path):
        pass
    # A node that comes later is asked by its first task.
    place = cluster.Place(str(tmp_path), str(tmp_path / "runs"), "token")
    outcome = cluster._perform(place, 1, print, ["never"], RunOptions())
    assert isinstance(outcome.error, StorageError)


def test_a_study_is_dealt_group_by_group_after_its_teacher(ray, tmp_path, monkeypatch, without_reports):
    monkeypatch.chdir(tmp_path)
    stand_in = ray({"CPU": 1}, {"CPU": 1})
    study = schema.parse(STUDY)
    request = plan.assign(study, study, runs=tmp_path / "runs")
    reporter = Lines()
    with cluster.connected("auto", request.runs, study.recipe, reporter) as there:
        options = RunOptions(reporter=reporter)
        assert run_study.run_study(request, options=options, on=there) == {}
    pool = tmp_path / "runs/grid"
    assert len(list(pool.rglob(records.STUDENT))) == 3
    tasks = [settings for settings in stand_in.asked if settings.get("max_retries")]
    # The teacher, and what needs none, at once; then the teacher's student.
    assert len(tasks) == 3
    assert tasks[0] == {
        "num_cpus": 1,
        "num_gpus": 0,
        "max_retries": cluster.RETRIES,
        "retry_exceptions": False,
        "scheduling_strategy": "SPREAD",
    }
    assert [line for line in reporter.lines if " left: " in line] == [
        "3 left: grid/teachers/wide-seed100",
        "3 left: grid/students/narrow-cross_entropy-seed0",
        "2 left: grid/wide-narrow/kd-seed0",
    ]
    assert json.loads((request.folder / "table.json").read_text())["rows"][0]["n"] == 1
    assert not list(request.runs.glob(".driver-*"))
    # Ray gives the teacher's task up, after two that asked the nodes: what does not need it is trained.
    ray({"CPU": 1}, {"CPU": 1}, lost=[3])
    again = plan.assign(study, study, runs=tmp_path / "again")
    with cluster.connected("auto", again.runs, study.recipe, reporter) as there:
        failed = run_study.run_study(again, options=options, on=there)
    assert set(failed) == {"grid/teachers/wide-seed100", "grid/wide-narrow/kd-seed0"}
    assert "the node is gone" in failed["grid/teachers/wide-seed100"]


def test_a_comparison_is_dealt_at_once_after_its_teacher(ray, tmp_path, monkeypatch, without_reports):
    monkeypatch.chdir(tmp_path)
    comparison = config.parse(
        Comparison,
        {
            **QUICK,
            "name": "two",
            "teacher": {"train": {"model": "mlp:16"}},
            "student": "mlp:8",
            "objectives": {"one": "cross_entropy", "other": "kd"},
            "seeds": 2,
        },
    )
    # The first nodes' two answers, the checks and the teacher come before the first group, which is lost.
    for lost in ([5], []):
        ray({"CPU": 1}, {"CPU": 1}, lost=lost)
        reporter = Lines()
        with (
            cluster.connected("auto", tmp_path, comparison, reporter) as there,
            refused(RunError, "Ray", got="the node is gone") if lost else nullcontext(),
        ):
            compare.compare(comparison, tmp_path / "two", options=RunOptions(reporter=reporter), on=there)
        said = [line for line in reporter.lines if re.match("students? |failed|finished", line)]
        if lost:
            assert said[:2] == [
                "students 1 to 2 of 4, together: two/one-seed0, two/other-seed0",
                "students 3 to 4 of 4, together: two/one-seed1, two/other-seed1",
            ]
            assert [line.split(": expected")[0] for line in said[2:4]] == [
                "failed: two/one-seed0: Ray",
                "failed: two/other-seed0: Ray",
            ]
            assert said[4:] == ["finished: two/one-seed1", "finished: two/other-seed1"]
        else:  # The two that are left, one for each node.
            assert said == [
                "student 1 of 2: two/one-seed0",
                "student 2 of 2: two/other-seed0",
                "finished: two/one-seed0",
                "finished: two/other-seed0",
            ]
    assert len(list((tmp_path / "two").rglob(records.STUDENT))) == 5


def test_a_task_that_is_done_again_leaves_alone_what_is_finished(tmp_path, without_reports):
    planned = [(recipe(name=f"r{seed}", seed=seed), tmp_path / f"r{seed}") for seed in range(2)]
    assert cluster.train_left(planned[:1], [], RunOptions()) == [None]
    before = (tmp_path / "r0" / records.MANIFEST).stat().st_mtime_ns
    assert cluster.train_left(planned, [], RunOptions()) == [None, None]
    assert (tmp_path / "r0" / records.MANIFEST).stat().st_mtime_ns == before
    assert Run(tmp_path / "r1").manifest["status"] == "finished"


def test_a_run_that_another_process_has_is_left_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "LOST", 0.1)
    with folder_lock(tmp_path / "r0"):
        (error,) = cluster.train_left([(recipe(), tmp_path / "r0")], [], RunOptions())
    assert isinstance(error, BusyError)


def test_what_cannot_be_sent_is_told_in_words():
    class Odd(Exception):
        def __init__(self, a, b):
            super().__init__(f"{a} and {b}")

    known = cluster.sendable(Odd(1, 2))
    assert isinstance(known, RunError)
    assert "1 and 2" in known.got


# Real nodes

EPOCHS = 12
LONG = {
    **STUDY,
    "protocol": {**QUICK, "epochs": EPOCHS, "batch_size": 32, "optimizer": {"lr": 0.05}, "checkpoint_steps": 30},
    "pairs": {"wide/narrow": {"teacher": {"train": {"model": "mlp:16", "epochs": 2}}, "student": "mlp:8"}},
    "methods": ["kd", {"wttm": {"gamma": 0.5, "beta": 1}}],
    "seeds": 4,
}
COMPARISON = {
    **LONG["protocol"],
    "name": "two",
    "epochs": 6,
    "precision": "fp32",
    "student": "mlp:8",
    "objectives": {"one": "cross_entropy", "other": "confidence_penalty"},
    "seeds": 2,
}
needs_ray = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: pip install 'tutelage[ray]'"),
]


def environment():
    paths = [str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}


@pytest.fixture(scope="module")
def nodes():
    """Two nodes: the cluster's address, and what kills the second."""
    import psutil

    helper = subprocess.Popen(
        [sys.executable, "-m", "tests._helpers.ray_nodes"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment(),
    )
    try:
        address = helper.stdout.readline().strip()
        assert address

        def kill():
            helper.stdin.write("\n")
            helper.stdin.flush()
            assert helper.stdout.readline() == "killed\n"

        yield address, kill
        helper.stdin.close()
        helper.wait(timeout=60)
    finally:
        helper.stdout.close()
        if helper.poll() is None:
            for process in [*psutil.Process(helper.pid).children(recursive=True), helper]:
                process.kill()
            helper.wait(timeout=10)


def start(folder, *typed):
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "tutelage", *typed],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )


def done(folder, *typed):
    with start(folder, *typed) as process:
        out, err = process.communicate(timeout=200)
    assert process.returncode == 0, out + err
    return out


def wait_for(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def epochs_of(folder):
    return [epoch["epoch"] for epoch in records.read_epochs(folder)]


def manifests(runs):
    return {path.parent.relative_to(runs): json.loads(path.read_text()) for path in runs.rglob(records.MANIFEST)}


def require_equal(ours, theirs):
    """Every run of a folder is finished, with each epoch once, and has the bits of the same run elsewhere."""
    found = manifests(ours)
    assert found.keys() == manifests(theirs).keys()
    for name, manifest in found.items():
        assert manifest["status"] == "finished"
        assert epochs_of(ours / name) == epochs_of(theirs / name) == list(range(1, len(epochs_of(ours / name)) + 1))
        assert (ours / name / records.STUDENT).read_bytes() == (theirs / name / records.STUDENT).read_bytes()
    return found


class TestNodes:
    pytestmark = needs_ray

    def test_a_comparison_that_is_stopped_is_resumed(self, nodes, tmp_path):
        address, _ = nodes
        (tmp_path / "two.yaml").write_text(yaml.safe_dump(COMPARISON))
        typed = ["compare", str(tmp_path / "two.yaml")]
        done(tmp_path / "alone", *typed)
        runs = tmp_path / "on/runs/two"
        with start(tmp_path / "on", *typed, "--on", "ray", "--address", address) as driver:
            try:
                wait_for(lambda: any(epochs_of(runs / f"one-seed{seed}") for seed in range(2)))
                driver.send_signal(signal.SIGTERM)
                _, err = driver.communicate(timeout=60)
            finally:
                driver.kill()
        assert driver.returncode == 143, err
        assert re.search(r"0 finished runs and [234] with a checkpoint; run the same command again to resume", err), err
        stopped = manifests(runs)
        assert {manifest["status"] for manifest in stopped.values()} == {"interrupted"}
        before = {name: epochs_of(runs / name) for name in stopped}
        out = done(tmp_path / "on", *typed, "--on", "ray", "--address", address)
        assert "Ray: 2 nodes, 2 tasks at a time" in out
        found = require_equal(runs, tmp_path / "alone/runs/two")
        assert {name: manifest["resumed"] for name, manifest in found.items()} == {
            name: int(name in stopped) for name in found
        }
        assert any(before.values())

    def test_a_study_of_which_a_node_is_killed(self, nodes, tmp_path):
        address, kill = nodes
        (tmp_path / "grid.yaml").write_text(yaml.safe_dump(LONG))
        typed = ["study", str(tmp_path / "grid.yaml")]
        done(tmp_path / "alone", *typed)
        runs = tmp_path / "on/runs"
        cut = set()

        def both_nodes_are_at_work():
            """Two groups are in their midst, after one that is finished."""
            found = manifests(runs)
            cut.update(
                name for name in found if name.name.startswith("kd") and 1 <= len(epochs_of(runs / name)) <= EPOCHS // 2
            )
            if len(cut) == 2 and any(
                name.name.startswith("wttm") and each["status"] == "finished" for name, each in found.items()
            ):
                return True
            cut.clear()
            return False

        with start(tmp_path / "on", *typed, "--on", "ray", "--address", address) as driver:
            try:
                wait_for(both_nodes_are_at_work)
                kept = {name for name, each in manifests(runs).items() if each["status"] == "finished"}
                written = {name: (runs / name / records.MANIFEST).stat().st_mtime_ns for name in kept}
                kill()
                out, err = driver.communicate(timeout=200)
            finally:
                driver.kill()
        assert driver.returncode == 0, out + err
        found = require_equal(runs, tmp_path / "alone/runs")
        assert written == {name: (runs / name / records.MANIFEST).stat().st_mtime_ns for name in kept}
        # One of the two groups was on the node that was killed, and went on from its checkpoint; nothing else did.
        assert sorted(found[name]["resumed"] for name in cut) == [0, 1]
        assert sum(manifest["resumed"] for manifest in found.values()) == 2
        assert not list(runs.glob(".driver-*"))
