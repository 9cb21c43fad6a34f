from __future__ import annotations

import io
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console
from tests._helpers import synthetic
from tests._helpers.refusals import refused

from tutelage import records
from tutelage.errors import NotFoundError
from tutelage.report import results
from tutelage.report.table import Row, Table, aligned, fixed


@pytest.fixture
def comparison(tmp_path):
    return tmp_path, synthetic.write_comparison(tmp_path)


def by_name(folder):
    return {row.name if row.role != "teacher" else "teacher": row for row in results.rows(folder)}


def test_means_deviations_and_gains_are_numpys(comparison):
    folder, evaluations = comparison
    found = by_name(folder)
    base = np.mean(synthetic.ACCURACIES["ce"])
    for name, ones in evaluations.items():
        row, students = found[name], [one["student"] for one in ones]
        accuracies = [one["accuracy"] for one in students]
        assert row.n == 3
        assert row.values == tuple(accuracies)
        assert row.accuracy == pytest.approx(np.mean(accuracies), rel=1e-12)
        assert row.std == pytest.approx(np.std(accuracies, ddof=1), rel=1e-9)
        for key in ("agreement", "entropy", "kl_to_teacher", "ece"):
            assert getattr(row, key) == pytest.approx(np.mean([one[key] for one in students]), rel=1e-12)
        assert row.best == pytest.approx(np.mean([one["best"]["accuracy"] for one in ones]))
        assert row.gain == (None if name == "ce" else pytest.approx(100 * (np.mean(accuracies) - base), rel=1e-9))


def test_rows_are_teacher_then_baseline_then_the_records_order(tmp_path):
    synthetic.write_comparison(tmp_path, baseline="kd")
    found = results.rows(tmp_path)
    assert [(row.name, row.role) for row in found] == [
        ("cifar:resnet32x4", "teacher"),
        ("kd", "baseline"),
        ("ce", "student"),
        ("wttm", "student"),
    ]


def test_a_teacher_that_students_share_counts_once(comparison):
    teacher = by_name(comparison[0])["teacher"]
    assert (teacher.n, teacher.std, teacher.accuracy, teacher.gain) == (1, None, 0.7942, None)


def test_different_teachers_are_counted_and_spread(comparison):
    folder, _ = comparison
    for name in synthetic.ACCURACIES:
        path = folder / f"{name}-1" / records.EVALUATION
        said = json.loads(path.read_text())
        synthetic.change(path, teacher=said["teacher"] | {"accuracy": 0.8042})
        synthetic.change(
            folder / f"{name}-1" / records.MANIFEST, teacher={"name": "cifar:resnet32x4", "fingerprint": "t1"}
        )
    teacher = by_name(folder)["teacher"]
    assert teacher.n == 2
    assert teacher.std == pytest.approx(np.std([0.7942, 0.8042], ddof=1))


def test_the_teachers_own_run_answers_where_no_student_recorded_it(tmp_path):
    synthetic.write_comparison(tmp_path, taught=False)
    synthetic.write_run(tmp_path / "teacher", objective="ce", accuracy=0.81, taught=False)
    synthetic.change(tmp_path / records.COMPARISON, teacher="teacher")
    assert by_name(tmp_path)["teacher"].accuracy == 0.81


def test_a_single_run_has_no_deviation_and_no_gain(tmp_path):
    evaluation = synthetic.write_run(tmp_path / "run")
    teacher, row = results.rows(tmp_path / "run")
    assert teacher.role == "teacher"
    assert (row.name, row.n, row.std, row.gain) == ("wttm", 1, None, None)
    assert row.accuracy == evaluation["student"]["accuracy"]
    assert "±" not in results.table([row]).markdown().splitlines()[2]


def test_a_training_run_has_no_teacher(tmp_path):
    synthetic.write_run(tmp_path / "run", objective="ce", taught=False)
    (row,) = results.rows(tmp_path / "run")
    assert (row.agreement, row.kl_to_teacher) == (None, None)


@pytest.mark.parametrize("status", ["running", "failed"])
def test_unfinished_runs_are_listed_and_not_averaged(comparison, status):
    folder, _ = comparison
    # Even with an evaluation of an earlier attempt in its folder.
    synthetic.change(folder / "wttm-1" / records.MANIFEST, status=status)
    row = by_name(folder)["wttm"]
    kept = [synthetic.ACCURACIES["wttm"][at] for at in (0, 2)]
    assert (row.n, row.accuracy) == (2, pytest.approx(np.mean(kept)))
    assert row.std == pytest.approx(np.std(kept, ddof=1))
    assert [(one.folder, one.seed, one.status, one.epochs) for one in row.unfinished] == [("wttm-1", 1, status, 20)]
    shown = results.table(results.rows(folder)).markdown()
    assert "2 of 3" in shown
    assert f"Not averaged: wttm: wttm-1 (seed 1, {status}, 20 epochs done)." in shown


def test_an_entry_whose_folder_is_not_there_yet_is_not_started(comparison):
    folder, _ = comparison
    said = json.loads((folder / records.COMPARISON).read_text())
    said["entries"].append({"folder": "crd-0", "objective": "crd", "seed": 0})
    synthetic.write(folder / records.COMPARISON, said)
    row = by_name(folder)["crd"]
    assert (row.n, row.accuracy, row.unfinished[0].status) == (0, None, "not started")


def test_a_finished_run_without_evaluation_is_not_averaged(comparison):
    folder, _ = comparison
    (folder / "kd-0" / records.EVALUATION).unlink()
    row = by_name(folder)["kd"]
    assert (row.n, row.unfinished[0].status) == (2, "finished, not evaluated")


def test_a_number_that_one_run_lacks_has_no_mean(comparison):
    folder, _ = comparison
    path = folder / "kd-1" / records.EVALUATION
    student = json.loads(path.read_text())["student"]
    synthetic.change(path, student=student | {"agreement": None})
    row = by_name(folder)["kd"]
    assert row.agreement is None
    assert row.accuracy is not None


def test_runs_on_different_sets_are_not_averaged(comparison):
    folder, _ = comparison
    synthetic.change(folder / "kd-1" / records.EVALUATION, set="validation")
    row = by_name(folder)["kd"]
    assert (row.accuracy, row.std, row.gain, row.set) == (None, None, None, "test and validation")
    assert "so not averaged" in results.table(results.rows(folder)).markdown()


def test_a_gain_over_another_set_is_none(comparison):
    folder, _ = comparison
    for seed in range(3):
        synthetic.change(folder / f"kd-{seed}" / records.EVALUATION, set="validation")
    found = by_name(folder)
    assert found["kd"].gain is None
    assert found["wttm"].gain is not None
    line = next(line for line in results.table(results.rows(folder)).markdown().splitlines() if line.startswith("| kd"))
    assert "\\[validation\\]" in line


def test_selection_on_the_test_set_is_marked(tmp_path):
    for selected in ("validation", "test"):
        synthetic.write_run(tmp_path / selected, selected=selected)
    honest, marked = (results.table(results.rows(tmp_path / name)).markdown() for name in ("validation", "test"))
    assert "75.30 \\[validation\\]" in honest
    assert "optimistic" not in honest
    assert "75.30 \\[selected on test\\]" in marked
    assert "optimistic" in marked


def test_numbers_are_rounded(comparison):
    shown = results.table(results.rows(comparison[0])).markdown().splitlines()
    assert shown[0].startswith("| Network | Accuracy (%) |")
    mean, std = np.mean(synthetic.ACCURACIES["wttm"]), np.std(synthetic.ACCURACIES["wttm"], ddof=1)
    gain = mean - np.mean(synthetic.ACCURACIES["ce"])
    assert f"{100 * mean:.2f} ± {100 * std:.2f}" in shown[5]
    assert f"{100 * gain:+.2f}" in shown[5]


def test_markdown_has_a_rule_and_escapes(tmp_path):
    synthetic.write_comparison(tmp_path)
    said = json.loads((tmp_path / records.COMPARISON).read_text())
    said["entries"] = [entry | {"objective": "a|b<img>"} for entry in said["entries"] if entry["objective"] == "kd"]
    synthetic.write(tmp_path / records.COMPARISON, said)
    shown = results.table(results.rows(tmp_path)).markdown().splitlines()
    assert shown[1] == "|:---|" + "---:|" * 7
    assert "| a\\|b&lt;img&gt; | 73.81 ± 0.27 | 3 |" in shown[3]


def test_print_table_shows_names_with_brackets_as_they_are(tmp_path):
    synthetic.write_run(tmp_path / "run")
    synthetic.change(tmp_path / "run" / records.MANIFEST, objective=[{"[red]w": {}}])
    console = Console(file=io.StringIO(), width=160)
    results.print_table(results.rows(tmp_path / "run"), console)
    shown = console.file.getvalue()
    assert "[red]w" in shown
    assert "75.00" in shown


def test_a_printed_cell_keeps_its_own_line_breaks_and_writes_out_what_is_not_printable():
    console = Console(file=io.StringIO(), width=160)
    row = Row(cells=("a (teacher)", "1"), short=("a\x1b[2J\n(teacher)", "1"), kind="teacher")
    Table(headings=("Network", "Accuracy"), rows=(row,)).print(console)
    shown = console.file.getvalue().splitlines()
    assert any("a\\x1b[2J" in line for line in shown)
    assert any("(teacher)" in line and "\\n" not in line for line in shown)


def test_columns_of_words_are_aligned_left_and_break():
    row = Row(cells=("kd", "weight=0.9, " * 20, "1.00"))
    table = Table(headings=("Method", "Chosen", "n"), rows=[row], words=[1])
    assert table.markdown().splitlines()[1] == "|:---|:---|---:|"
    page = table.html("t")
    assert page.count(' class="words"') == 2
    assert '<th scope="col" class="words">Chosen</th>' in page
    console = Console(file=io.StringIO(), width=60)
    table.print(console)
    *_, first, second = (line for line in console.file.getvalue().splitlines() if "weight" in line)
    assert first.index("weight") == second.index("weight")


def test_no_records_is_an_error_that_says_what_to_type(tmp_path):
    with refused(NotFoundError, "folder", got=tmp_path, suggests="tutelage train"):
        results.rows(tmp_path)


def test_a_record_that_is_not_json_is_named_and_in_no_mean(tmp_path):
    synthetic.write_run(tmp_path / "run")
    (tmp_path / "run" / records.EVALUATION).write_text("{torn")
    *_, row = results.rows(tmp_path / "run")
    assert row.unfinished[0].status == "damaged"
    assert any(str(tmp_path / "run" / "evaluation.json") in note for note in results.notes([row]))


def test_the_report_does_not_import_torch():
    code = "import sys, tutelage.report.html, tutelage.report.results; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_columns_of_text_are_as_wide_as_their_widest_cell():
    assert aligned([("a", "bb", "c"), ("dddd", "", "")]) == ["a     bb  c", "dddd"]


def test_language_models_are_averaged_and_compared_by_perplexity(tmp_path):
    synthetic.write_comparison_of_text(tmp_path)
    found, base = by_name(tmp_path), np.mean(synthetic.PERPLEXITIES["ce"])
    for name, values in synthetic.PERPLEXITIES.items():
        row = found[name]
        assert row.values == values
        assert (row.of_task["perplexity"], row.value, row.std) == pytest.approx(
            (np.mean(values), np.mean(values), np.std(values, ddof=1))
        )
        assert row.best == pytest.approx(np.mean(values) - 1)
        assert row.gain == (None if name == "ce" else pytest.approx(np.mean(values) - base))
        assert row.accuracy == pytest.approx(np.mean(synthetic.ACCURACIES[name]))
    head, _, teacher, ce, kd, *_ = results.table(results.rows(tmp_path)).markdown().splitlines()
    assert head.startswith("| Network | Perplexity | n | Change | p | Best epoch | Bits per byte | Agreement (%) |")
    assert teacher.startswith("| cifar:resnet32x4 (teacher) | 9.50 | 1 | – | – | – | 0.812 |")
    assert ce.startswith("| ce (baseline) | 30.75 ± 0.25 | 3 | – | – | 29.75 \\[validation\\] |")
    assert kd.startswith("| kd | 20.25 ± 0.25 | 3 | **-10.50** | **0.002** | 19.25 \\[validation\\] | 1.085 |")
    notes = results.notes(results.rows(tmp_path))
    assert notes[0].startswith("Perplexity is the last epoch's on the test set")
    assert notes[1] == "Change is the difference of means to ce; below 0 is better."


@pytest.mark.parametrize(("width", "shown"), [(80, False), (120, True)])
def test_a_narrow_terminal_leaves_bits_per_byte_out(tmp_path, width, shown):
    synthetic.write_comparison_of_text(tmp_path)
    output = io.StringIO()
    results.print_table(results.rows(tmp_path), Console(file=output, width=width))
    assert ("1.085" in output.getvalue()) == shown
    assert "20.25 ± 0.25  3  -10.50" in output.getvalue()
    assert "…" not in output.getvalue()


def test_a_diverged_language_model_is_averaged_and_written_short(tmp_path):
    synthetic.write_comparison_of_text(tmp_path)
    synthetic.of_text(tmp_path / "kd-0", math.exp(350))
    (kd,) = [row for row in results.table(results.rows(tmp_path)).rows if row.exact["entry"] == "kd"]
    assert kd.cells[1] == "3.36e+151 ± 5.81e+151"
    assert kd.cells[3] == "+3.4e+151"


def test_a_long_name_takes_several_lines_so_that_no_number_is_cut():
    said = io.StringIO()
    name = "hf:package:a_name_of_a_network_that_has_no_place_to_break/model"
    numbers = [f"{k}7.42 ± 1.27" for k in range(5)]
    table = Table(headings=["Network", *map(str, range(5))], rows=[Row(cells=[name, *numbers])])
    table.print(Console(file=said, width=80))
    lines = said.getvalue().splitlines()
    assert "…" not in said.getvalue()
    assert all(len(line) <= 80 for line in lines)
    assert any(all(number in line for number in numbers) for line in lines)
    assert "".join(line[:10].strip() for line in lines[3:]) == name


def test_no_zero_has_a_minus():
    assert [fixed(value, 2, sign=True) for value in (-1e-17, -0.004, 0.0, -0.006)] == [
        "+0.00",
        "+0.00",
        "+0.00",
        "-0.01",
    ]
    assert [fixed(value, 2) for value in (-0.0, -0.004, -0.006)] == ["0.00", "0.00", "-0.01"]
