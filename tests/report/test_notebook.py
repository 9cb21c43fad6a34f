"""What a run and a comparison show of themselves, whatever their folder holds."""

import builtins
import json
import shutil
import sys
from xml.etree import ElementTree

import pytest
from tests._helpers import synthetic

import tutelage
from tutelage import records
from tutelage.report import figures, notebook
from tutelage.report.svg import static
from tutelage.studies.compare import ComparedRuns

HOSTILE = "<script>alert(1)</script>&\"'\x1b[2J"


def parsed(block):
    """HTML as XML, which it also is; nothing in it runs."""
    tree = ElementTree.fromstring(block.replace("&nbsp;", " ").replace(' tabindex="0"', ""))
    assert not [
        each for each in tree.iter() if each.tag == "script" or any(key.startswith("on") for key in each.attrib)
    ]
    return tree


def words(block):
    return " ".join(" ".join(parsed(block).itertext()).split())


@pytest.fixture
def folder(tmp_path):
    synthetic.write_run(tmp_path / "run", length=6)
    return tmp_path / "run"


def test_a_run_shows_what_it_is_its_result_its_curves_and_where_it_is(folder):
    (folder / records.REPORT).write_text("")
    run = tutelage.Run(folder)
    said = words(run._repr_html_())
    evaluation = run.evaluation
    for text in (
        f"{run.manifest['name']} , finished",
        "Accuracy (%) 95 % interval",
        f"{100 * evaluation['student']['accuracy']:.2f}",
        f"report {folder / records.REPORT}",
    ):
        assert text in said
    assert [len(each.get("points").split()) for each in parsed(run._repr_html_()).iter("polyline")] == [6] * 4
    assert repr(run).startswith(f"Run({str(folder)!r}, finished, 6 epochs, test accuracy ")
    assert len(run._repr_html_()) < 10_000


def test_names_of_others_are_shown_and_not_obeyed(folder):
    synthetic.change(folder / records.MANIFEST, name=HOSTILE, student={"name": HOSTILE, "parameters": 10})
    assert HOSTILE.replace("\x1b", "\\x1b") in words(tutelage.Run(folder)._repr_html_())
    assert "<script" not in tutelage.Run(folder)._repr_html_()
    tutelage.Run(folder).plot()


def _cut(folder):
    (folder / records.MANIFEST).write_text("{")


def _newer(folder):
    synthetic.change(folder / records.MANIFEST, schema=99)


def _wrong_kinds(folder):
    (folder / records.EVALUATION).write_text(json.dumps({"student": {"accuracy": "high"}, "set": 3}))


@pytest.mark.parametrize(
    ("happens", "says"),
    [
        (lambda folder: synthetic.change(folder / records.MANIFEST, status="failed"), "failed"),
        (lambda folder: synthetic.change(folder / records.MANIFEST, status="interrupted"), "This run is not finished"),
        (lambda folder: (folder / records.EVALUATION).unlink(), "not evaluated"),
        (lambda folder: (folder / records.METRICS).unlink(), "finished"),
        (lambda folder: (folder / records.METRICS).write_text("torn\n"), "Damaged"),
        (_cut, "damaged"),
        (_newer, "99"),
        (_wrong_kinds, "Damaged"),
        (lambda folder: (folder / records.MANIFEST).unlink(), "a run's or a comparison's"),
        (shutil.rmtree, "a run's or a comparison's"),
    ],
)
def test_a_run_that_lacks_something_says_what(folder, happens, says):
    happens(folder)
    run = tutelage.Run(folder)
    assert says in words(run._repr_html_())
    assert repr(run).startswith(f"Run({str(folder)!r}, ")


def test_nothing_that_happens_there_makes_a_cell_fail(folder, monkeypatch):
    monkeypatch.setattr(notebook, "warnings", lambda subject: 1 / 0)
    assert "division" in words(tutelage.Run(folder)._repr_html_())


def test_a_run_of_text_shows_its_perplexity_and_one_without_epochs_no_curves(tmp_path):
    synthetic.write_comparison_of_text(tmp_path)
    run = tutelage.Run(next(path.parent for path in tmp_path.glob("*/manifest.json")))
    assert "Perplexity" in words(run._repr_html_())
    assert "perplexity" in repr(run)
    assert "interval" not in run._repr_html_()
    (run.folder / records.METRICS).unlink()
    assert "<svg" not in run._repr_html_()
    assert "no epoch is recorded" in run.plot().layout.title.text
    assert static(run.plot())


def test_a_comparison_shows_its_table(tmp_path):
    synthetic.write_comparison(tmp_path, length=5)
    compared = ComparedRuns(tmp_path)
    said = words(compared._repr_html_())
    assert all(heading in said for heading in compared.table.headings)
    assert repr(compared).endswith("3 objectives, 9 of 9 runs finished)")
    assert {trace.name for trace in compared.plot().data} >= {"ce", "kd", "wttm"}


def test_a_plot_has_loss_and_measure_and_is_a_picture_without_a_script(folder):
    figure = tutelage.Run(folder).plot()
    assert [each.text for each in figure.layout.annotations] == ["Training loss", "Student accuracy"]
    assert [trace.yaxis for trace in figure.data] == ["y", *["y2"] * 4]
    bundle = figure._repr_mimebundle_()
    assert set(bundle) == {"application/vnd.plotly.v1+json", "image/svg+xml", "text/plain"}
    assert figure._repr_html_() is None
    tree = ElementTree.fromstring(bundle["image/svg+xml"])
    assert len(tree.findall(".//{*}polyline")) == 5 + 4  # curves, and their names
    assert len(bundle["image/svg+xml"]) < 20_000


def test_a_picture_has_marks_between_whole_numbers_and_names_what_is_filled():
    figure = figures.empty("shares", "share", "")
    figures.add_line(figure, [0.1, 1.0], [0, 1], "a line", figures.style(0))
    figure.add_scatter(x=[0.2, 0.4, 0.4], y=[0, 0, 1], fill="toself", fillcolor="red", mode="lines", name="an area")
    tree = ElementTree.fromstring(static(figure))
    marks = [each.text for each in tree.findall(".//{*}text") if each.get("text-anchor") == "middle"]
    assert marks == ["0.2", "0.4", "0.6", "0.8", "1"]
    sample = tree.findall(".//{*}polygon")[-1]
    assert len({point.split(",")[1] for point in sample.get("points").split()}) == 2  # it has a height


def test_metrics_are_flat_and_a_frame_where_pandas_is(folder, monkeypatch):
    run = tutelage.Run(folder)
    pandas = pytest.importorskip("pandas")
    frame = run.metrics
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame["train.loss"]) == [epoch["train"]["loss"] for epoch in run.epochs]
    assert {"epoch", "learning_rate", "validation.accuracy", "train.terms.wttm"} <= set(frame.columns)
    imported = builtins.__import__

    def without(name, *arguments, **keywords):
        if name == "pandas":
            raise ImportError
        return imported(name, *arguments, **keywords)

    monkeypatch.delitem(sys.modules, "pandas")
    monkeypatch.setattr(builtins, "__import__", without)
    rows = run.metrics
    assert [row["test.accuracy"] for row in rows] == list(frame["test.accuracy"])
    assert not any(isinstance(value, dict) for row in rows for value in row.values())
