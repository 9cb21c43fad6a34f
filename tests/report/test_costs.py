from __future__ import annotations

import json

import pytest
from tests._helpers import synthetic

from tutelage import records
from tutelage.intervals import accuracy_interval
from tutelage.report import cost_figures, costs, results, summary
from tutelage.report.reading import read


@pytest.fixture
def run(tmp_path):
    synthetic.write_run(tmp_path / "run", length=1)
    synthetic.add_worth(tmp_path / "run")
    return tmp_path / "run"


def test_the_table_has_accuracy_with_its_interval_and_ratios_to_the_teacher(run):
    teacher, student = costs.cost_table(results.rows(run)).rows
    bounds = " to ".join(f"{100 * bound:.1f}" for bound in accuracy_interval(750, 1000))
    assert student.cells == [
        *("wttm", "75.00", bounds),
        *("1.23 M (6.0×)", "308 M (6.0×)", "4.94 MB (6.0×)", "0.800 (5.0×)", "5.00 k at 64 (5.0×)"),
    ]
    assert teacher.cells[3:] == ["7.43 M", "1.86 G", "29.7 MB", "4.00", "1.00 k at 64"]
    assert student.exact["parameters"] == 1233540
    (method, *_) = costs.cost_table(results.rows(run)).notes
    assert "cpu, x86_64, 2 threads, fp32, input 3 x 32 x 32" in method
    assert "the median of 50 passes" in method


def test_a_slower_or_larger_student_is_said_to_be_one(run):
    held = json.loads((run / records.COSTS).read_text())
    held["student"] |= {"latency_ms": 8.0, "parameters": 2 * 7433860}
    synthetic.write(run / records.COSTS, held)
    said = " ".join(summary.further(read(run), results.rows(run)))
    assert said == "The student has 2.0 times more parameters and is 2.0 times slower on one sample than the teacher."


def test_times_are_pooled_over_the_runs_that_were_measured_in_one_place(tmp_path):
    synthetic.write_comparison(tmp_path, length=1)
    for name in synthetic.ACCURACIES:
        for seed, latency in enumerate((1.0, 2.0, 9.0)):
            synthetic.add_worth(tmp_path / f"{name}-{seed}")
            held = json.loads((tmp_path / f"{name}-{seed}" / records.COSTS).read_text())
            held["student"]["latency_ms"] = latency
            synthetic.write(tmp_path / f"{name}-{seed}" / records.COSTS, held)
    synthetic.change(tmp_path / "kd-2" / records.COSTS, device="cuda")
    synthetic.change(tmp_path / "ce-0" / records.MANIFEST, status="failed")
    latencies = {row.name: row.cost.latency_ms for row in results.rows(tmp_path)}
    assert latencies == {"cifar:resnet32x4": 4.0, "ce": 5.5, "kd": 1.5, "wttm": 2.0}


def test_accuracy_is_drawn_against_each_cost_with_its_interval(run):
    drawn = cost_figures.against_cost(results.rows(run))
    assert [panel.key for panel in drawn] == ["cost-latency_ms", "cost-flops", "cost-parameters"]
    teacher, student = drawn[0].figure.data
    assert (teacher.x, student.x, student.y) == ((4.0,), (0.8,), (75.0,))
    low, high = accuracy_interval(750, 1000)
    assert student.error_y.array[0] == pytest.approx(100 * high - 75)
    assert student.error_y.arrayminus[0] == pytest.approx(75 - 100 * low)


@pytest.mark.parametrize("changed", [None, -1, 0, "x", ...])
def test_partial_costs_break_nothing(run, changed):
    whole = json.loads((run / records.COSTS).read_text())
    for key in whole["student"]:
        for who in ("student", "teacher"):
            held = whole[who] | {key: changed}
            held = {name: value for name, value in held.items() if value is not ...}
            synthetic.write(run / records.COSTS, whole | {who: held})
            subject = read(run)
            found = results.rows(subject)
            costs.cost_table(found)
            cost_figures.against_cost(found)
            list(summary.further(subject, found))


def test_passes_that_runs_share_are_counted_once_and_the_batch_is_one_that_was_tried(tmp_path):
    synthetic.write_comparison(tmp_path, length=1)
    for seed, batch in enumerate((64, 64, 32)):
        synthetic.add_worth(tmp_path / f"kd-{seed}")
        held = json.loads((tmp_path / f"kd-{seed}" / records.COSTS).read_text())
        held["student"] |= {"batch": batch, "throughput": 10.0 * batch}
        synthetic.write(tmp_path / f"kd-{seed}" / records.COSTS, held)
    synthetic.change(tmp_path / "kd-0" / records.MANIFEST, status="failed")
    cost = next(row.cost for row in results.rows(tmp_path) if row.name == "kd")
    assert (cost.latency_n, cost.throughput, cost.batch) == (100, 320, 32)
    teacher = next(row.cost for row in results.rows(tmp_path) if row.role == "teacher")
    assert teacher.latency_n == 50


def test_an_interval_is_that_of_the_labelled_samples(run):
    held = json.loads((run / records.EVALUATION).read_text())
    held["student"]["reliability"] = [held["student"]["reliability"][-1] | {"count": 40}]
    synthetic.write(run / records.EVALUATION, held)
    assert results.rows(run)[1].interval == accuracy_interval(30, 40)


@pytest.mark.parametrize("value", [10**400, -5])
def test_costs_that_cannot_be_are_left_out(run, value):
    held = json.loads((run / records.COSTS).read_text())
    held["student"]["flops"] = value
    synthetic.write(run / records.COSTS, held)
    assert results.rows(run)[1].cost.flops is None
