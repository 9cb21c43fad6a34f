"""The losses reproduce the recorded values, and the runner that says so can also say no."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import definitions
import numpy as np
import pytest
import run
from draw import draw

from tutelage.losses.divergences import KINDS

HERE = Path(__file__).parent
OURS = HERE / "losses.jsonl"
SHARED = HERE.parents[1] / ".." / "shared" / "conformance"
FULL = [
    pytest.param(path, marks=pytest.mark.skipif(not path.exists(), reason=f"{path.name} is not beside the repository"))
    for path in (SHARED / "losses.jsonl", SHARED / "losses2.jsonl")
]
ROWS = run.read(OURS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['method']}-{row['case']}-{row['kind']}")
def test_row_is_reproduced(row):
    assert run.check(row).faults == ()
    assert run.check(row).verdict == "passed"


def test_rows_of_definitions_are_those_that_the_script_writes():
    ours = [row for row in ROWS if row["method"] == definitions.METHOD]
    assert {row["hyper"]["kind"] for row in ours} == KINDS.keys()
    assert [definitions.row_of(recipe) for recipe in definitions.recipes()] == ours


def test_every_committed_method_is_built():
    assert {row["method"] for row in ROWS} >= {"KD", "TTM", "WTTM"}
    assert {row["method"] for row in ROWS} <= run.METHODS.keys()


@pytest.mark.parametrize("path", FULL, ids=lambda path: path.stem)
def test_full_file_has_no_failure(path, capsys):
    assert run.main([str(path)]) == 0
    totals = capsys.readouterr().out.splitlines()[-1]
    built = sum(row["method"] in run.METHODS for row in run.read(path))
    assert totals.startswith(f"{built} passed, 0 failed, ")


@pytest.mark.parametrize("path", FULL, ids=lambda path: path.stem)
def test_every_recipe_of_the_full_file_draws_its_recorded_inputs(path):
    for row in run.read(path):
        drawn = draw(row["seed"], row["inputs"])
        assert list(drawn) == [spec["name"] for spec in row["inputs"]]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def tampered(**changes):
    row = copy.deepcopy(ROWS[0])
    row.update(changes)
    return row


def with_gradient(**changes):
    row = copy.deepcopy(ROWS[0])
    row["grads"]["z_s"].update(changes)
    return row


def without_check(**changes):
    row = copy.deepcopy(ROWS[0])
    row["inputs"][0]["check"]["first"][0] += 1e-6
    return row


GRADIENT = ROWS[0]["grads"]["z_s"]
TAMPERED = {
    "value": (tampered(loss_repr=repr(ROWS[0]["loss"] * (1 + 1e-8))), "loss: expected"),
    "hyperparameter": (tampered(hyper={"T": 1.0000001}), "loss: expected"),
    "hyperparameter refused": (tampered(hyper={"T": -1.0}), "ValueError: temperature"),
    "gradient l2": (with_gradient(l2=GRADIENT["l2"] * 1.0001), "gradient of z_s, l2"),
    "gradient sum": (with_gradient(sum=0.1), "gradient of z_s, sum"),
    "gradient entry": (with_gradient(first5=[*GRADIENT["first5"][:4], 0.5]), "gradient of z_s, entry 4"),
    "gradient size": (with_gradient(numel=81), "expected 81 entries, got 80"),
    "input": (without_check(), "input z_s: drew"),
    "recipe": (tampered(seed=ROWS[0]["seed"] + 1), "input z_s: drew"),
    "no finite value recorded": (tampered(official_ok=False, log_space=None), "expected a ValueError or no finite"),
    "NaN recorded": (tampered(loss_repr="nan"), "loss: expected nan"),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_tampered_row_fails(name, tmp_path, capsys):
    row, fault = TAMPERED[name]
    assert run.main([write(tmp_path / "rows.jsonl", [row, ROWS[1]])]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "1 passed, 1 failed, 0 not built"
    assert any(line.startswith(f"{row['id']} {row['method']}: ") and fault in line for line in lines)


def test_log_space_stands_in_where_the_recorded_value_failed(tmp_path):
    stable = {"loss_repr": ROWS[0]["loss_repr"], "grads": ROWS[0]["grads"]}
    row = tampered(loss=None, loss_repr="inf", grads={}, official_ok=False, log_space=stable)
    assert run.check(row).verdict == "passed"
    assert run.check({**row, "log_space": {**stable, "loss_repr": "0.5"}}).verdict == "failed"


def test_method_that_is_not_built_is_counted_and_fails_only_when_asked_for(tmp_path, capsys):
    path = write(tmp_path / "rows.jsonl", [tampered(method="Later"), ROWS[1]])
    assert run.main([path]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 passed, 0 failed, 1 not built"
    assert run.main([path, "--methods", "Later"]) == 1
    assert capsys.readouterr().out.splitlines() == ["Later  1 not built", "0 passed, 0 failed, 1 not built"]
    assert run.main([path, "--methods", "KD"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 passed, 0 failed, 0 not built"


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (None, [], "expected a readable file"),
        ("", [], "expected at least one row, got none"),
        ("not json\n", [], "line 1: expected a JSON object"),
        ("[1]\n", [], "line 1: expected the fields of a row"),
        ('{"id": 1}\n', [], "got none named atol, aux"),
        (json.dumps(ROWS[0]), ["--methods", "KDD"], "--methods: expected names among KD; got KDD"),
        (json.dumps(ROWS[0]), ["--methods", ","], "--methods: expected names among KD; got none"),
    ],
)
def test_wrong_usage_is_status_2(content, arguments, message, tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    assert run.main([str(path), *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


@pytest.mark.slow
def test_command_line(tmp_path):
    def call(*arguments):
        command = [sys.executable, str(HERE / "run.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    good = call(str(OURS), "--methods", "KD,TTM")
    assert (good.returncode, good.stdout.splitlines()[-1]) == (0, "75 passed, 0 failed, 0 not built")
    assert call().returncode == 2


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "x", "draw": "cauchy", "shape": [2]}, "input x: expected a draw among"),
        ({"name": "x", "draw": "eye", "shape": [2, 2], "post": ["cube"]}, "input x: expected a post step among"),
    ],
)
def test_unknown_recipe_is_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        draw(0, [spec])


def test_draws_consume_one_stream_in_order():
    specs = [
        {"name": "a", "draw": "normal", "shape": [3], "scale": 2.0, "shift": 1.0},
        {"name": "b", "draw": "copy", "of": "a", "scale": 0.5},
        {"name": "c", "draw": "uniform", "shape": [2], "low": -1.0, "high": 1.0},
        {"name": "d", "draw": "integers", "shape": [4], "low": 0, "high": 9},
    ]
    drawn = draw(3, specs)
    rng = np.random.default_rng(3)
    a = 2.0 * rng.standard_normal(3) + 1.0
    np.testing.assert_array_equal(drawn["a"], a)
    np.testing.assert_array_equal(drawn["b"], a * 0.5)
    np.testing.assert_array_equal(drawn["c"], -1.0 + 2.0 * rng.random(2))
    np.testing.assert_array_equal(drawn["d"], rng.integers(0, 9, 4))
