from __future__ import annotations

import json

import numpy as np
import pytest
from tests._helpers import synthetic

from tutelage import records
from tutelage.report import against_teacher, answers
from tutelage.report.reading import read

NAMES = ["ant", "bee", "cow"]


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    synthetic.write_run(folder, classes=3, names=NAMES, length=1)
    synthetic.add_worth(folder, classes=3)
    labels, given = np.array([0, 0, 0, 1, 1, 2, -100]), np.array([0, 1, 1, 1, 2, 2, 2])
    teacher = np.array([0, 0, 1, 1, 1, 2, 2])
    sure = np.full(7, 0.9)
    made = records.Predictions("test", np.arange(7), labels, given, sure, teacher, sure)
    records.write_predictions(folder, made)
    evaluation = json.loads((folder / records.EVALUATION).read_text())
    for who, right in (("student", 3), ("teacher", 5)):
        evaluation[who]["accuracy"] = right / 6
    synthetic.write(folder / records.EVALUATION, evaluation | {"samples": 7})
    return folder


def test_confusions_are_counted_by_label_and_answer(run):
    subject = read(run)
    (matrix,) = answers.matrices(subject, subject.entries[0])
    assert matrix.counts.tolist() == [[1, 2, 0], [0, 1, 1], [0, 0, 1]]
    assert matrix.rows[0] == ("ant", [(1, 0.333), (2, 1.0), (0, 0.0)])
    (table,) = answers.confused_pairs(subject, subject.entries[0])
    assert table.headings == ("Class", "Answered", "student", "teacher")
    assert [tuple(row.cells) for row in table.rows] == [("ant", "bee", "2", "1"), ("bee", "cow", "1", "0")]


def test_many_classes_have_pairs_and_no_matrix(tmp_path):
    synthetic.write_run(tmp_path / "run", classes=100, length=1)
    synthetic.add_worth(tmp_path / "run", classes=100)
    subject = read(tmp_path / "run")
    assert answers.matrices(subject, subject.entries[0]) == []
    (table,) = answers.confused_pairs(subject, subject.entries[0])
    assert len(table.rows) == answers.MOST_PAIRS


def test_classes_that_changed_are_named(tmp_path):
    synthetic.write_comparison(tmp_path, length=1, classes=3, names=NAMES)
    for seed in range(3):
        for name, classes in {"ce": [0.5, 0.6, 0.7], "wttm": [0.4, 0.9, 0.7]}.items():
            path = tmp_path / f"{name}-{seed}" / records.EVALUATION
            student = json.loads(path.read_text())["student"]
            synthetic.change(path, student=student | {"per_class": classes})
    panel = next(one for one in against_teacher.by_class(read(tmp_path)) if one.key == "class-change")
    assert list(panel.figure.data[0].y) == pytest.approx([-10, 0, 30])
    assert panel.caption.startswith("Lost most: ant (-10.0). Gained most: bee (+30.0).")


def test_a_disputed_sample_is_said_in_words(run):
    subject = read(run)
    (sample,) = answers.samples(subject, answers.disputed_run(subject, subject.entries[0]))
    assert sample.title == "Sample 17: 3"  # a class without a name
    assert sample.answers == ["student: 5 (98 %, wrong)", "teacher: 3 (90 %, right)"]
    assert answers.disputed_note(subject, subject.runs[0]).startswith("212 samples of 7 of the test set are answered")


def test_without_a_teacher_disputes_are_with_the_labels(run):
    synthetic.change(run / records.EVALUATION, teacher=None)
    subject = read(run)
    said = answers.disputed_note(subject, subject.runs[0])
    assert "answered wrongly; the 1 shown are those of which the student is surest" in said


def test_a_picture_is_a_data_url_or_none(tmp_path):
    synthetic.write_run(tmp_path / "run", length=1)
    synthetic.add_worth(tmp_path / "run", picture="https://example.org/a.png", said="a text")
    subject = read(tmp_path / "run")
    (sample,) = answers.samples(subject, subject.runs[0])
    assert (sample.picture, sample.text) == (None, "a text")


@pytest.mark.parametrize("changed", [None, -1, "x", ...])
def test_partial_disputes_break_nothing(run, changed):
    whole = json.loads((run / records.DISPUTED).read_text())
    (sample,) = whole["samples"]
    for key in sample:
        held = {name: value for name, value in (sample | {key: changed}).items() if value is not ...}
        synthetic.write(run / records.DISPUTED, whole | {"samples": [held]})
        subject = read(run)
        answers.samples(subject, subject.runs[0])
        answers.disputed_note(subject, subject.runs[0])


def test_calibration_is_shown_before_and_after(run):
    subject = read(run)
    (table,) = against_teacher.calibration_table(subject)
    held = json.loads((run / records.EVALUATION).read_text())["student"]
    assert list(table.rows[1].cells) == [
        *("student", "1.70", f"{100 * held['ece']:.2f}", "1.20"),
        *(f"{held['loss']:.3f}", "0.300"),
    ]
    assert [panel.key for panel in against_teacher.certainty(subject)][1:] == ["reliability", "reliability-scaled"]
    assert "fitted on the validation set" in against_teacher.calibration_note(subject)
