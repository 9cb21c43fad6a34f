"""The costs of a run's networks: written once, shared by runs alike, and without a trace on the run."""

import json
import re

import numpy as np
import pytest
import torch

from tutelage import config, records
from tutelage.config.schema import Recipe
from tutelage.data import open_data
from tutelage.runs import costs
from tutelage.runs.execute import execute
from tutelage.runs.group import execute_group
from tutelage.runs.reporter import Reporter
from tutelage.runs.run import RunOptions
from tutelage.runs.run_state import RunState


@pytest.fixture(autouse=True)
def timed(monkeypatch):
    """The networks that are timed, by name."""
    names, time = [], costs.costs.timed

    def counted(network, *arguments, **settings):
        names.append(network.card.name)
        return time(network, *arguments, **settings)

    monkeypatch.setattr(costs, "_TIMED", {})
    monkeypatch.setattr(costs.costs, "timed", counted)
    return names


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "teacher"
    execute(recipe(student="mlp:16", teacher=None), folder)
    return str(folder)


def recipe(**keys):
    common = {"data": "digits", "epochs": 1, "batch_size": 256, "device": "cpu", "threads": 1, "precision": "fp32"}
    written = {"name": "run", "student": "mlp:8", "weak_teacher": True, **common, **keys}
    return config.parse(Recipe, {key: value for key, value in written.items() if value is not None})


def written(folder):
    return records.read_json(folder / records.COSTS, records.Costs)


def test_a_run_has_the_bits_that_it_has_without(teacher, tmp_path, monkeypatch):
    states = []

    def finish(state):
        before = torch.get_rng_state()
        inner(state)
        states.append((before, torch.get_rng_state()))

    inner = RunState._measure_costs
    monkeypatch.setattr(RunState, "_measure_costs", finish)
    execute(recipe(teacher=teacher, objective="kd"), tmp_path / "with")
    monkeypatch.setattr(RunState, "_measure_costs", lambda state: None)
    execute(recipe(teacher=teacher, objective="kd"), tmp_path / "without")
    ((before, after),) = states
    assert torch.equal(before, after)
    contents = [(tmp_path / name / records.STUDENT).read_bytes() for name in ("with", "without")]
    assert contents[0] == contents[1]
    cost = written(tmp_path / "with")
    student = {"network": "mlp:8", "parameters": 610, "flops": 2 * (64 * 8 + 80), "file_bytes": len(contents[0])}
    assert cost["student"].items() >= student.items()
    assert (cost["teacher"]["network"], cost["teacher"]["parameters"]) == ("mlp:16", 1210)
    assert cost["student"]["latency_n"] >= 5
    assert (cost["input"], cost["threads"], cost["precision"], cost["device"]) == ([1, 8, 8], 1, "fp32", "cpu")


def test_a_group_times_each_network_once(teacher, tmp_path, timed):
    names = {"a": {"seed": 0}, "b": {"seed": 1}, "c": {"student": "mlp:4"}}
    planned = [(recipe(name=n, teacher=teacher, objective="kd", **keys), tmp_path / n) for n, keys in names.items()]
    execute_group(planned)
    assert sorted(timed) == ["mlp:16", "mlp:4", "mlp:8"]
    first, second, third = (written(tmp_path / name) for name in names)
    assert first == second
    assert third["teacher"] == first["teacher"]
    assert third["student"]["flops"] == 2 * (64 * 4 + 40)


def test_a_run_that_is_resumed_after_them_does_not_measure_again(tmp_path, timed, monkeypatch):
    def fails(state):
        raise OSError("power")

    with monkeypatch.context() as stopped:
        stopped.setattr(RunState, "check_best", fails)
        with pytest.raises(OSError, match="power"):
            execute(recipe(checkpoint_steps=1), tmp_path / "run")
    before = (tmp_path / "run" / records.COSTS).read_bytes()
    run = execute(recipe(checkpoint_steps=1), tmp_path / "run")
    assert (run.manifest["status"], timed) == ("finished", ["mlp:8"])
    assert (tmp_path / "run" / records.COSTS).read_bytes() == before
    assert records.COSTS not in run.manifest["files"]


def test_what_is_not_timed_beside_others_is_when_it_is_evaluated(teacher, tmp_path, timed, invoke):
    run = execute(recipe(teacher=teacher, objective="kd"), tmp_path / "run", options=RunOptions(shares_machine=True))
    cost = written(run.folder)
    assert not timed
    assert [cost[who]["latency_ms"] for who in ("student", "teacher")] == [None, None]
    assert cost["student"]["flops"] == 1184
    assert invoke("evaluate", str(run.folder), "--no-cost")[1].count("latency") == 0
    assert written(run.folder) == cost
    _, out, _ = invoke("evaluate", str(run.folder), "batch_size=8")
    assert re.search(r"operations +1\.18 kFLOP for a sample of 1 x 8 x 8\n", out)
    assert "throughput" in out
    assert written(run.folder) == cost  # of other settings than the run's
    code, out, err = invoke("evaluate", str(run.folder))
    assert code == 0, err
    cost = written(run.folder)
    assert [cost[who]["latency_n"] > 0 for who in ("student", "teacher")] == [True, True]
    invoke("evaluate", str(run.folder))
    assert written(run.folder) == cost


def test_a_failure_costs_a_line(tmp_path, monkeypatch):
    def fails(*arguments, **settings):
        raise RuntimeError("too warm")

    said, reporter = [], Reporter()
    reporter.say = said.append
    monkeypatch.setattr(costs.costs, "timed", fails)
    run = execute(recipe(), tmp_path / "run", options=RunOptions(reporter=reporter))
    assert run.manifest["status"] == "finished"
    assert "student mlp:8: its times were not measured: RuntimeError: too warm" in said
    assert written(run.folder)["student"]["parameters"] == 610


def test_the_sample_of_texts_has_their_median_length(tmp_path):
    lengths = [3, 30, 7, 1, 12, 5, 9]
    rows = [json.dumps({"text": "a " * length, "label": str(k % 2)}) for k, length in enumerate(lengths * 10)]
    (tmp_path / "texts.jsonl").write_text("\n".join(rows) + "\n")
    data = {"source": f"jsonl:{tmp_path / 'texts.jsonl'}", "text": "text", "tokenizer": {"bpe": 260}, "max_tokens": 40}
    splits = open_data(recipe(data=data).data)
    sample = costs.one_sample(splits, torch.nn.Identity())
    index = np.unique(np.linspace(0, len(splits.test) - 1, 16).astype(np.int64))
    own = sorted(int((splits.test.fetch(np.array([k])) >= 0).sum()) for k in index)
    assert sample.shape == (1, own[len(own) // 2])
    assert own[0] < sample.shape[1] < own[-1]
