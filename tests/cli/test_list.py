"""`tutelage list WHAT PATTERN`."""

import re

import pytest
from typer.testing import CliRunner

from tutelage.cli import app
from tutelage.errors import InvalidValueError, MissingExtraError
from tutelage.models import catalogue
from tutelage.studies import objective_rows


def typed(*arguments, columns=80):
    return CliRunner().invoke(app.app, ["list", *arguments], env={"COLUMNS": str(columns)})


@pytest.mark.parametrize("columns", [40, 80, 100, 200])
def test_models_that_match_have_parameters_size_and_tags_in_columns(columns, monkeypatch):
    monkeypatch.setattr(catalogue, "versions", lambda source: ("1", "1"))
    lines = typed("models", "timm:resnet18*", columns=columns).stdout.splitlines()
    assert re.fullmatch(r"model +parameters +pixels +tags of its weights", lines[0])
    assert re.match(r"timm:resnet18 +11.7 M +224 +a1_in1k, a2_in1k", lines[1])
    assert max(map(len, lines)) <= max(80, min(columns, 120))
    names = [line.split()[0] for line in lines[1:] if line.startswith("timm:")]
    assert names == sorted(names)
    assert len({line.index("224") for line in lines[1:] if " 224 " in line}) == 1


def test_a_part_of_a_name_matches_in_every_source():
    out = typed("models", "resnet18").stdout
    assert "timm:resnet18 " in out
    assert "torchvision:resnet18 " in out
    assert "cifar:resnet8x4" in typed("models", "resnet8").stdout


def test_names_without_a_list_match_too():
    assert typed("models", "hf:type").stdout.startswith("hf:TYPE ")
    assert [line.split()[0] for line in typed("data", "csv*").stdout.splitlines()] == ["csv:<path>"]
    assert typed("objectives", "wttm").stdout.startswith("wttm(")


@pytest.mark.parametrize("columns", [40, 80, 100, 200])
def test_objectives_fit_the_terminal_with_a_preset_after_another(columns):
    lines = typed("objectives", columns=columns).stdout.splitlines()
    assert max(map(len, lines)) <= max(80, min(columns, 120))
    assert sum(line.startswith("wttm(") for line in lines) == 1
    assert not any(line.startswith("    published: ") for line in lines)


def test_an_objective_by_name_has_its_figures_too():
    words = " ".join(typed("objectives", "crd").stdout.split())
    assert "published: 75.51 ± 0.18 (n = 5), KD 73.33; accuracy (%); CIFAR-100, resnet32x4 to resnet8x4" in words
    assert "its epoch: last; by a comment of RepDistiller's train_student.py" in words
    assert "read in: arXiv:2402.11148 (paper)" in words
    assert re.search(r"we ran: [\d.]+, 1 seed; Accuracy \(%\), last epoch; .*; benchmarks/results/zoo-smoke", words)
    assert "no published figure: the control of WTTM" in " ".join(typed("objectives", "weighted_kd").stdout.split())


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_evidence_is_every_record_of_each_objective_or_that_it_was_not_run(columns):
    lines = typed("objectives", "--evidence", columns=columns).stdout.splitlines()
    assert max(map(len, lines)) <= max(80, min(columns, 120))
    rows = objective_rows.read()
    assert [line for line in lines if not line.startswith(" ")] == [row.name for row in rows]
    assert lines.count("    not run") == sum(not row.recorded for row in rows) > 0
    words = " ".join(" ".join(lines).split())
    assert words.count("; benchmarks/results/") == sum(len(row.recorded) for row in rows)


def test_evidence_of_one_objective_says_data_epochs_and_seeds():
    words = " ".join(typed("objectives", "wttm", "--evidence").stdout.split())
    assert "93.36 ± 0.70, 10 seeds; Accuracy (%), last epoch; digits, resnet8 to mlp:16," in words
    assert "74.32 ± 0.26, 3 seeds; Accuracy (%), last epoch; CIFAR-100 in a loop outside of the package, vgg13" in words
    assert "--evidence" in typed("objectives", "wttm").stdout
    assert typed("objectives", "vitkd", "--evidence").stdout == "vitkd\n    not run\n"
    with pytest.raises(InvalidValueError, match="--evidence: expected objectives, got models; type"):
        raise typed("models", "--evidence").exception


@pytest.mark.parametrize(
    ("arguments", "suggests"),
    [
        (("models", "timm:resnett18"), "did you mean timm:resnet18"),
        (("models", "zzzz*"), "type tutelage list models"),
        (("objectives", "wtmm"), "did you mean wttm"),
        (("data", "nothing"), "type tutelage list data"),
        (("models", "["), "type tutelage list models"),
    ],
)
def test_what_matches_nothing_is_refused_with_the_nearest(arguments, suggests):
    done = typed(*arguments)
    assert isinstance(done.exception, InvalidValueError)
    assert suggests in str(done.exception)


def test_without_its_library_a_source_names_the_extra(monkeypatch):
    monkeypatch.setattr(catalogue, "versions", lambda source: ("1", None if source == "timm" else "1"))
    done = typed("models", "timm:resnet18")
    assert isinstance(done.exception, MissingExtraError)
    assert "tutelage[timm]" in str(done.exception)
    others = typed("models", "resnet18")
    assert others.exit_code == 0
    assert "torchvision:resnet18" in others.stdout
    assert "timm:" not in others.stdout
    assert "tutelage[timm]" in others.stderr


def test_another_version_than_the_names_are_of_is_said(monkeypatch):
    monkeypatch.setattr(catalogue, "versions", lambda source: ("1.0.31", "1.0.20"))
    assert "note: the names of timm are those of 1.0.31; 1.0.20 is installed" in typed("models", "timm:resnet18").stderr
