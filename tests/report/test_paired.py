from __future__ import annotations

import json

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import binomtest, ttest_rel
from tests._helpers import synthetic

from tutelage import records
from tutelage.report import results, summary
from tutelage.report.paired import compare, with_teacher
from tutelage.report.reading import read


def keep(folder, *seeds):
    """Leave only these seeds in a comparison."""
    said = json.loads((folder / records.COMPARISON).read_text())
    said["entries"] = [entry for entry in said["entries"] if entry["seed"] in seeds]
    synthetic.write(folder / records.COMPARISON, said)


@pytest.fixture
def comparison(tmp_path):
    synthetic.write_comparison(tmp_path, length=1)
    for name in ("ce-0", "ce-1", "wttm-0", "wttm-1"):
        synthetic.add_worth(tmp_path / name)
    return tmp_path


def mcnemar(folder, first, second):
    """What scipy says of the samples that only one of two runs answers right."""
    one, other = (records.read_predictions(folder / name) for name in (first, second))
    right, others = one.student == one.label, other.student == other.label
    only = int(np.sum(right & ~others))
    return binomtest(only, only + int(np.sum(~right & others))).pvalue


def test_three_seeds_are_compared_seed_by_seed_and_corrected(comparison):
    kd, wttm = (row.test for row in results.rows(comparison) if row.role == "student")
    ce = synthetic.ACCURACIES["ce"]
    raw = [ttest_rel(synthetic.ACCURACIES[name], ce).pvalue for name in ("kd", "wttm")]
    small, large = sorted(raw)
    corrected = {small: min(1, 2 * small), large: max(2 * small, large)}
    assert (kd.p, wttm.p) == pytest.approx([corrected[p] for p in raw])
    assert kd.how == "paired t-test over 3 seeds"
    assert (
        "(paired t-test over 3 seeds; with Holm's correction for 2 tests)" in results.notes(results.rows(comparison))[2]
    )


def test_one_seed_is_compared_sample_by_sample(comparison):
    keep(comparison, 0)
    found = compare(read(comparison), "wttm", "ce")
    assert found.p == pytest.approx(mcnemar(comparison, "wttm-0", "ce-0"))
    assert found.how == "McNemar's test"


def test_two_seeds_have_both_to_show_a_difference(comparison):
    keep(comparison, 0, 1)
    each = [mcnemar(comparison, f"wttm-{seed}", f"ce-{seed}") for seed in (0, 1)]
    assert compare(read(comparison), "wttm", "ce").p == pytest.approx(max(each))
    # With opposite signs they show none.
    (comparison / "ce-1").rename(comparison / "kept")
    (comparison / "wttm-1").rename(comparison / "ce-1")
    (comparison / "kept").rename(comparison / "wttm-1")
    assert compare(read(comparison), "wttm", "ce").p == 1


@pytest.mark.parametrize("change", ["data", "samples", "none", "damaged"])
def test_other_samples_are_not_compared(comparison, change):
    keep(comparison, 0)
    path = comparison / "ce-0" / records.PREDICTIONS
    if change == "data":
        synthetic.change(comparison / "ce-0" / records.MANIFEST, data={"fingerprint": "another"})
    elif change == "samples":
        held = records.read_predictions(path.parent)
        records.write_predictions(path.parent, held._replace(index=held.index + 1))
    elif change == "none":
        path.unlink()
    else:
        path.write_bytes(b"torn")
    subject = read(comparison)
    assert compare(subject, "wttm", "ce") is None
    assert any(str(path) in line for line in summary.warnings(subject)) == (change == "damaged")
    shown = results.rows(subject)
    assert ": not tested; the teacher" in summary.result(subject, shown)
    assert next(row for row in shown if row.name == "wttm").better is None


def test_a_student_is_compared_with_its_teacher(comparison):
    (run,) = read(comparison / "wttm-0").runs
    held = records.read_predictions(run.folder)
    right, others = held.student == held.label, held.teacher == held.label
    only = int(np.sum(right & ~others))
    p = binomtest(only, only + int(np.sum(~right & others))).pvalue
    assert with_teacher(run).p == pytest.approx(p)
    subject = read(run.folder)
    said = summary.result(subject, results.rows(subject))
    assert said.endswith(f"the teacher has 79.42 %: no difference shown (p = {p:.3f}, McNemar's test).")


def test_only_a_difference_that_is_shown_is_bold_and_called_better(tmp_path):
    synthetic.write_comparison(tmp_path, length=1)
    for seed, accuracy in enumerate((0.72, 0.73, 0.718)):
        synthetic.change(tmp_path / f"kd-{seed}" / records.EVALUATION, student={"accuracy": accuracy})
    found = results.rows(tmp_path)
    ce, kd, wttm = (row for row in results.table(found).rows if row.kind != "teacher")
    assert (ce.bold, kd.bold, wttm.bold) == ((), (), (3, 4))
    keep(tmp_path, 0, 1, 2)
    said = json.loads((tmp_path / records.COMPARISON).read_text())
    said["entries"] = [entry for entry in said["entries"] if entry["objective"] != "wttm"]
    synthetic.write(tmp_path / records.COMPARISON, said)
    subject, found = read(tmp_path), results.rows(tmp_path)
    assert "no difference shown (p = 0." in summary.result(subject, found)
    assert any("no difference shown, p = 0." in tile.aside for tile in summary.tiles(subject, found))


@pytest.mark.parametrize("width", [80, 120])
def test_the_printed_table_has_p_and_fits(comparison, width, capsys):
    results.print_table(results.rows(comparison), Console(width=width))
    shown = capsys.readouterr().out
    assert "0.005" in shown
    assert "…" not in shown
    assert "7.43 M" in shown
    assert max(map(len, shown.splitlines())) <= width


def test_answers_of_another_run_are_not_compared(comparison):
    keep(comparison, 0)
    path = comparison / "ce-0" / records.PREDICTIONS
    path.write_bytes((comparison / "wttm-0" / records.PREDICTIONS).read_bytes())
    subject = read(comparison)
    assert compare(subject, "wttm", "ce") is None
    assert any(f"Damaged: {path}" in line for line in summary.warnings(subject))


def test_a_run_without_answers_beside_others_is_named(comparison):
    keep(comparison, 0)
    (comparison / "ce-0" / records.PREDICTIONS).unlink()
    (comparison / "ce-0" / records.DISPUTED).unlink()
    assert [line.partition(":")[0] for line in summary.warnings(read(comparison))] == ["ce, seed 0", "kd, seed 0"]


def test_a_mean_that_other_seeds_make_is_not_called_better(comparison):
    # Over the seeds of both the baseline is better, over all runs the student.
    for seed in range(3):
        synthetic.change(comparison / f"kd-{seed}" / records.EVALUATION, student={"accuracy": 0.5 + seed / 1000})
    said = json.loads((comparison / records.COMPARISON).read_text())
    for seed in range(3, 9):
        synthetic.write_run(comparison / f"kd-{seed}", objective="kd", seed=seed, accuracy=0.99, length=1)
        said["entries"].append({"folder": f"kd-{seed}", "objective": "kd", "seed": seed})
    synthetic.write(comparison / records.COMPARISON, said)
    row = next(row for row in results.rows(comparison) if row.name == "kd")
    assert row.gain > 0
    assert (row.test.p, row.better) == (1, None)


def test_runs_of_other_data_are_not_compared_seed_by_seed(comparison):
    for seed in range(3):
        synthetic.change(comparison / f"wttm-{seed}" / records.MANIFEST, data={"fingerprint": "another"})
    subject = read(comparison)
    assert compare(subject, "wttm", "ce") is None
    assert any("different data" in line for line in summary.warnings(subject))
