from __future__ import annotations

import json

import numpy as np
import pytest
from tests._helpers import synthetic

from tutelage import records
from tutelage.report import against_teacher, curves, figures
from tutelage.report.reading import points, read


def panel(made, key):
    return next(one for one in made if one.key == key)


def trace(one, name):
    return next(trace for trace in one.figure.data if trace.name == name)


def test_one_run_has_a_curve_for_every_set_and_every_quantity(tmp_path):
    synthetic.write_run(tmp_path / "run", length=6)
    epochs = list(records.read_epochs(tmp_path / "run"))
    made = curves.by_epoch(read(tmp_path / "run"))
    assert [one.key for one in made] == [
        "accuracy",
        "agreement",
        "entropy",
        "kl_to_target",
        "loss",
        "term-ce",
        "term-wttm",
        "learning_rate",
    ]
    for place in ("train", "validation", "test"):
        drawn = trace(made[0], place)
        assert list(drawn.x) == [1, 2, 3, 4, 5, 6]
        assert list(drawn.y) == pytest.approx([100 * epoch[place]["accuracy"] for epoch in epochs])
    assert list(panel(made, "term-wttm").figure.data[0].y) == [epoch["train"]["terms"]["wttm"] for epoch in epochs]
    assert panel(made, "term-wttm").caption.endswith("Weight in the loss: 3.")
    assert trace(made[0], "teacher, test (79.42)").y == pytest.approx([79.42, 79.42])


def test_every_axis_says_what_it_is_and_in_which_unit(tmp_path):
    synthetic.write_comparison(tmp_path)
    subject = read(tmp_path)
    for one in (*curves.by_epoch(subject), *against_teacher.by_class(subject), *against_teacher.certainty(subject)):
        across, up = one.figure.layout.xaxis.title.text, one.figure.layout.yaxis.title.text
        assert across in ("Epoch", "Class") or across.endswith(("(%)", "(nats)"))
        assert up == "Learning rate" or up.endswith(("(%)", "(nats)", "(points)"))
        assert one.figure.layout.title.text


def test_a_comparison_has_the_mean_over_seeds_and_the_band_of_extremes(tmp_path):
    synthetic.write_comparison(tmp_path, length=5)
    made = panel(curves.by_epoch(read(tmp_path)), "accuracy-test")
    runs = [list(records.read_epochs(tmp_path / f"kd-{seed}")) for seed in range(3)]
    values = 100 * np.array([[epoch["test"]["accuracy"] for epoch in run] for run in runs])
    drawn = trace(made, "kd")
    assert list(drawn.y) == pytest.approx(values.mean(0))
    band = next(one for one in made.figure.data if one.fill == "toself" and one.legendgroup == drawn.legendgroup)
    assert list(band.y) == pytest.approx([*values.max(0), *values.min(0)[::-1]])
    assert made.figure.data[0].showlegend is False


def test_an_unfinished_run_is_drawn_alone_and_not_averaged(tmp_path):
    synthetic.write_comparison(tmp_path, length=5)
    before = trace(panel(curves.by_epoch(read(tmp_path)), "accuracy-test"), "kd").y
    synthetic.write_run(tmp_path / "kd-3", objective="kd", seed=3, status="running", length=3)
    said = json.loads((tmp_path / records.COMPARISON).read_text())
    said["entries"].append({"folder": "kd-3", "objective": "kd", "seed": 3})
    synthetic.write(tmp_path / records.COMPARISON, said)
    subject = read(tmp_path)
    made = panel(curves.by_epoch(subject), "accuracy-test")
    assert trace(made, "kd").y == before
    assert len(trace(made, "kd, seed 3 (running)").x) == 3
    assert "unfinished" in curves.curves_note(subject)


def test_later_stages_follow_earlier_ones(tmp_path):
    synthetic.write_run(tmp_path / "run", length=3)
    for epoch in list(records.read_epochs(tmp_path / "run"))[:2]:
        records.append_epoch(tmp_path / "run", epoch | {"stage": 1})
    run = read(tmp_path / "run").runs[0]
    assert list(points(run, "learning_rate")) == [1, 2, 3, 4, 5]


def test_missing_and_null_values_leave_gaps_and_no_figure_is_empty(tmp_path):
    synthetic.write_run(tmp_path / "run", objective="ce", taught=False, test=False, validation=False, length=1)
    made = curves.by_epoch(read(tmp_path / "run"))
    keys = [one.key for one in made]
    assert "agreement" not in keys
    assert "kl_to_target" not in keys
    assert [trace.name for trace in panel(made, "accuracy").figure.data] == ["train"]
    assert all(one.figure.data for one in made)


def test_traces_differ_in_dash_and_marker_and_not_only_in_colour():
    looks = [figures.style(place) for place in range(6)]
    assert len({(look.dash, look.marker) for look in looks}) == 6
    assert len(set(map(figures.style, range(42)))) == 42
    assert figures.TEACHER.marker not in {look.marker for look in looks}


def test_runs_of_an_entry_are_pooled(tmp_path):
    evaluations = synthetic.write_comparison(tmp_path)
    found = {one.name: one for one in against_teacher.judged(read(tmp_path))}
    assert list(found) == ["teacher", "ce (baseline)", "kd", "wttm"]
    assert [one.shown for one in found.values()] == [True, True, False, True]
    students = [one["student"] for one in evaluations["wttm"]]
    assert found["wttm"].per_class == pytest.approx(np.mean([one["per_class"] for one in students], axis=0))
    counts = np.sum([one["entropy_histogram"]["counts"] for one in students], axis=0)
    assert list(found["wttm"].counts) == counts.tolist()
    last = [one["reliability"][-1] for one in students]
    weights = [held["count"] for held in last]
    sure, right, count = found["wttm"].bins[-1]
    assert sure == pytest.approx(np.average([held["confidence"] for held in last], weights=weights))
    assert right == pytest.approx(np.average([held["accuracy"] for held in last], weights=weights))
    assert count == sum(weights)


def test_reliability_has_the_calibration_error_in_its_legend(tmp_path):
    evaluation = synthetic.write_run(tmp_path / "run")
    made = against_teacher.reliability(against_teacher.judged(read(tmp_path / "run")), "samples")
    names = [trace.name for trace in made.figure.data if trace.name]
    assert names == [f"{who} (ECE {100 * evaluation[who]['ece']:.2f} %)" for who in ("teacher", "student")]
    assert all(0 not in trace.customdata for trace in made.figure.data[1:])


def test_the_entropy_histogram_is_a_share_of_the_samples(tmp_path):
    synthetic.write_run(tmp_path / "run")
    made = against_teacher.entropy_histogram(against_teacher.judged(read(tmp_path / "run")), "samples")
    for drawn in made.figure.data:
        assert sum(drawn.y[:-1]) == pytest.approx(100)
        assert drawn.y[-1] == drawn.y[-2]


def test_few_classes_have_places_and_many_are_a_scatter(tmp_path):
    evaluation = synthetic.write_run(tmp_path / "few")
    subject = read(tmp_path / "few")
    few = against_teacher.per_class(subject, against_teacher.judged(subject)).figure
    best = int(np.argmax(evaluation["teacher"]["per_class"]))
    assert few.layout.xaxis.ticktext[0] == f"class {best}"
    assert list(few.data[0].y) == sorted(few.data[0].y, reverse=True)
    evaluation = synthetic.write_run(tmp_path / "many", classes=100)
    subject = read(tmp_path / "many")
    many = against_teacher.per_class(subject, against_teacher.judged(subject)).figure.data[-1]
    assert list(many.x) == pytest.approx([100 * value for value in evaluation["teacher"]["per_class"]])
    assert list(many.y) == pytest.approx([100 * value for value in evaluation["student"]["per_class"]])


def test_a_class_without_samples_leaves_a_gap(tmp_path):
    evaluation = synthetic.write_run(tmp_path / "run", taught=False)
    evaluation["student"]["per_class"][4] = None
    synthetic.write(tmp_path / "run" / records.EVALUATION, evaluation)
    subject = read(tmp_path / "run")
    drawn = against_teacher.per_class(subject, against_teacher.judged(subject)).figure.data[0]
    assert drawn.text[-1] == "class 4"
    assert drawn.y[-1] is None


def test_names_are_escaped_in_labels():
    assert figures.inert('<a href="javascript:x">') == "&lt;a href=&quot;javascript:x&quot;&gt;"
    assert figures.inert("w" * 90) == "w" * 39 + "…"


def test_language_models_have_curves_of_perplexity_before_those_of_accuracy(tmp_path):
    synthetic.write_comparison_of_text(tmp_path)
    subject = read(tmp_path)
    made = curves.by_epoch(subject)
    expected = ["perplexity-validation", "perplexity-test", "accuracy-train", "accuracy-validation", "accuracy-test"]
    assert [one.key for one in made[:5]] == expected
    one = panel(made, "perplexity-test")
    assert one.figure.layout.yaxis.title.text == "Perplexity"
    assert list(trace(one, "kd").y) == pytest.approx(np.mean(synthetic.PERPLEXITIES["kd"]) + np.arange(4, -1, -1))
    assert list(trace(one, "teacher, test (9.50)").y) == [9.5, 9.5]
    assert "tokens" in panel(made, "agreement-test").caption
    shown = {network.name: network.shown for network in against_teacher.judged(subject)}
    assert shown == {"teacher": True, "ce (baseline)": True, "kd": True, "wttm": False}  # the lowest perplexity's
    captions = [one.caption for one in (*against_teacher.by_class(subject), *against_teacher.certainty(subject))]
    assert "Shannon entropy of each token's distribution." in captions
