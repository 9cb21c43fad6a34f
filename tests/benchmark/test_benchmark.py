"""The benchmarks: references that are what they say, every section on this machine in small, the scripts' records."""

from __future__ import annotations

import importlib
import json
import os
import re
from functools import partial

import numpy as np
import pytest
import torch
from tests._helpers import ROOT

from tutelage import doctor, losses
from tutelage.benchmark import batches, groups, linear, recording, startup, steps, timing
from tutelage.benchmark import losses as timed
from tutelage.benchmark.sections import SECTIONS

SMALL = ("resnet8", "resnet8")


@pytest.fixture
def here(monkeypatch):
    """What is measured in a process of its own is measured in this one, where memory is not told."""
    monkeypatch.setattr(timing, "in_fresh_process", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(timed, "added_mb", lambda run: run() or 5.0)


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


# What stands in a section


TINY = {
    "steps": ({"pairs": (("resnet14", "resnet8"),), "n": 1, "rounds": 1}, r"resnet14/resnet8 .*recorded +\d+ \(.*x\)"),
    "classes": (
        {"sizes": (2,), "steps": 1, "rounds": 1, "pair": SMALL},
        r"class of 2 [^,]* ms .*x as long(.|\n)*side by side +.* ms .*(.|\n)*on one thread .* ms\n.*unlike .*x as long",
    ),
    "losses": (
        {"shapes": ((4, 7), (3, 5))},
        r"3 x 5 +kernels .* ms \([\d.]+x as fast\) +kernels, compiled .* reference .* ms",
    ),
    "linear": ({"tokens": 6, "width": 4, "classes": 9, "n": 1}, r"memory +kernels .* MB +[\d.-]+x as much"),
    "recording": ({"samples": 32, "rounds": 1, "pair": SMALL}, r"32 views +recording .* s +reference .*x as long"),
    "startup": ({"rounds": 1}, r"tutelage train recipe.yaml epohcs=3 +[\d.]+ s +[\d.]+x as long"),
}
"""Each section in small, and a line that it prints."""


def test_the_doctor_prints_every_section_and_its_reference():
    assert [section.name for section in SECTIONS] == list(TINY)
    assert all(section.title and section.reference for section in SECTIONS)


@pytest.mark.parametrize("name", TINY)
def test_a_section_prints_its_ratios(name, here, monkeypatch):
    """What they are is not asserted."""
    monkeypatch.setattr("tutelage.training.compile.SHARE", 0.0)
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")  # of fresh processes, which need not wait for the compiler here
    (section,) = (each for each in SECTIONS if each.name == name)
    arguments, line = TINY[name]
    text = "\n".join(section.lines(**arguments))
    assert re.search(line, text), text
    assert "nan" not in text
    if name in ("steps", "losses"):
        assert re.search(r"geometric means? of \d", text)


def test_what_fails_is_reported_and_the_next_section_is_timed(monkeypatch):
    def fails():
        yield "one line"
        raise ImportError("No module named\n'torchvision'")

    stand_ins = [fails, lambda: iter(("fine",))]
    short = [section._replace(lines=lines) for section, lines in zip(SECTIONS[:2], stand_ins, strict=True)]
    monkeypatch.setattr("tutelage.benchmark.sections.SECTIONS", short)
    findings = list(doctor.measure())
    values = [finding.value for finding in findings]
    assert [finding.value for finding in findings if not finding.good] == [
        "  failed: ImportError: No module named 'torchvision'"
    ]
    assert values[5:9] == ["", SECTIONS[1].title, f"  reference: {SECTIONS[1].reference}", "  fine"]
    assert not any("\n" in value for value in values)


def test_what_does_not_fit_into_memory_is_skipped_and_reported(here, monkeypatch):
    monkeypatch.setattr(timing, "lacking_memory", lambda needed: f"needs {needed:.0f}" if needed > 1000 else None)
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    first, second, *means = timed.lines(((4, 7), (512, 128_256)))
    assert "as fast" in first
    assert second.split() == ["512", "x", "128256", "needs", "3415"]
    assert [mean.split(": ")[0] for mean in means] == ["geometric mean of 1 of 2"] * 2
    assert list(linear.lines()) == ["needs 6304"]


def test_lacking_memory_is_measured():
    assert timing.lacking_memory(1.0) is None
    assert re.fullmatch(r"skipped: expected 1000000000 MB of available memory, got \d+", timing.lacking_memory(1e9))


# How things are timed


def test_forms_are_called_in_turn_and_the_first_round_warms_up():
    called = []
    forms = {name: partial(lambda name: called.append(name) or len(called), name) for name in "ab"}
    assert timing.in_turn(forms, 2) == {"a": [3, 5], "b": [4, 6]}
    assert "".join(called) == "ababab"
    assert timing.in_turn(forms, 1, warm_up=False) == {"a": [7], "b": [8]}


def test_a_process_of_its_own_answers_or_is_reported_to_have_ended():
    assert timing.in_fresh_process(os.getpid) != os.getpid()
    with pytest.raises(RuntimeError, match="ended before it answered"):
        timing.in_fresh_process(os._exit, 1)


def test_threads_are_put_back():
    before = torch.get_num_threads()
    with timing.threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_the_first_batches_are_an_epochs_first_whether_made_before_or_not():
    real = batches.data.BatchLoader(batches.random_images(64).train, batch_size=8, train=True)
    lazy, premade, whole = (batches.FirstBatches(real, 2, **how) for how in ({}, {"premade": True}, {"whole": True}))
    assert (len(lazy), lazy.samples, len(whole), whole.samples) == (3, 24, 8, 64)
    first = [batch.index.tolist() for batch in real.epoch(0)][:3]
    for each in (lazy, premade, whole):
        assert [batch.index.tolist() for batch in each.epoch(0)] == first
        assert each.seconds > 0


# What it is held against


def test_the_published_loss_is_ours_where_it_does_not_underflow():
    torch.manual_seed(0)
    z, v, labels = torch.randn(6, 9), 3 * torch.randn(6, 9), torch.arange(6)
    ours = losses.cross_entropy(z, labels), losses.wttm(z, v, gamma=0.25)
    torch.testing.assert_close(timed.algorithm1(z, v, labels, gamma=0.25), ours)


@pytest.mark.parametrize("name", linear.FORMS)
def test_the_forms_of_a_last_layer_are_one_loss(name, here):
    expected = linear.measure(linear.REFERENCE, 6, width=4, classes=9, n=1)
    measured = linear.measure(name, 6, width=4, classes=9, n=1)
    assert measured["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert measured["gradients_mb"] == (6 * 4 + 9 * 4) * 4 / 1e6


def test_forms_with_another_gradient_are_not_timed():
    wrong = {**timed.FORMS, "wrong": lambda z, v, labels: (0 * z.sum(1), 0 * z.sum(1))}
    with pytest.raises(AssertionError, match="not close"):
        timed.times(wrong, 4, 7)


# Ratios


def test_ratios_are_geometric_means_of_times_faster():
    rows = [steps.Row("a/b", 8.0, 4.0, 1.0), steps.Row("c/d", 8.0, 1.0, 0.5)]
    assert steps.ratios(rows) == pytest.approx({"live": 4.0, "recorded": (8 * 16) ** 0.5})
    assert re.search(r"a/b +reference +8 +live +16 \(2.00x\) +recorded +64 \(8.00x\)", steps.line(rows[0], 64))


def test_a_group_is_compared_against_its_parts_and_against_separate_runs():
    taken = {groups.ALONE: [1.0, 2.0, 1.0], groups.APART: [2.0, 4.0, 2.0], "class of 1": [3.0, 6.0, 6.0]}
    taken |= {"class of 2": [4.0, 8.0, 10.0], "class of 2, side by side": [2.0, 4.0, 5.0]}
    relative = groups.ratios(taken, (1, 2))
    assert relative.parts == {1: 1.0, 2: 4 / 5}
    assert relative.side_by_side == {2: 2 / 5}
    assert relative.runs == {1: 1.0, 2: 4 / 6}
    other = {groups.OTHER_APART: [5.0, 10.0, 5.0], groups.UNLIKE: [4.0, 8.0, 16.0]}
    assert groups.unlike_over_parts(taken | other) == 4 / 8


def test_recording_is_held_against_the_forward_pass():
    times = recording.Times(np.array([[3.0, 2.0], [9.0, 4.0], [4.0, 3.0]]), np.array([[2.0, 1.0], [1.0, 1.0]]))
    assert times.ratios() == (4.0 / 1.5, 3.0, 3.0)


# The scripts' records


def test_batch_sizes_are_written_beside_what_a_record_has(script, monkeypatch, tmp_path):
    monkeypatch.setattr("tutelage.training.compile.SHARE", 0.0)
    bench, output = script("bench_step"), script("output")
    splits = batches.random_images(64)
    measured = bench.sizes(splits, "random", pair=SMALL, of=(4,), n=1, rounds=1)
    output.write(tmp_path / "step.json", {"version": "then", "batches": measured})
    written = json.loads((tmp_path / "step.json").read_text())
    assert written["version"] == "then"
    assert {"hardware", "software", "commit"} <= written.keys()
    (row,) = written["batches"]["seconds_a_step"]
    assert row.keys() == {"batch", "reference", "live", "recorded"}
    assert {"pair", "n", "images", "hardware", "version"} <= written["batches"].keys()


RESULTS = ROOT / "benchmarks" / "results"
BATCHES = {"pair": "a/b", "seconds_a_step": [{"batch": b, "reference": b, "live": 2, "recorded": 1} for b in (16, 64)]}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("step", {"batches": BATCHES}),
        ("class", json.loads((RESULTS / "class.json").read_text())),
        ("losses", json.loads((RESULTS / "losses.json").read_text())),
    ],
)
def test_records_are_drawn(name, content, script, tmp_path):
    pytest.importorskip("matplotlib", reason="the optional package matplotlib is not installed")
    bench = script(f"bench_{name}")
    (tmp_path / "a.json").write_text(json.dumps(content))
    bench.plot(tmp_path / "a.json")
    first = (tmp_path / "a.svg").read_bytes()
    assert b"<svg" in first
    if name == "class":  # one style draws all of them
        bench.plot(tmp_path / "a.json")
        assert (tmp_path / "a.svg").read_bytes() == first


def test_a_record_without_what_is_drawn_is_refused(script, tmp_path):
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"with 'batches', got none; type .*--batches --write"):
        script("bench_step").plot(tmp_path / "a.json")


def test_the_start_is_held_against_an_interpreter_that_does_nothing():
    medians = {"help": 0.2, startup.REFERENCE: 0.01}
    assert startup.line("help", medians).split() == ["tutelage", "--help", "0.200", "s", "20.0x", "as", "long"]
