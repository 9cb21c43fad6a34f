"""What shows the progress of a call: bars in a terminal and a notebook, lines elsewhere, or nothing."""

import contextlib
import os
import re
import sys
import threading
import time

import pytest

import tutelage
from tutelage.runs import terminal
from tutelage.runs.display import shown
from tutelage.runs.notebook import NotebookReporter, in_notebook
from tutelage.runs.reporter import Reporter
from tutelage.runs.terminal import LineReporter, TerminalReporter, drawn_or_printed


class Epochs:
    """Batches of which only the number is known."""

    samples = 1

    def __init__(self, steps):
        self.steps = steps

    def __len__(self):
        return self.steps


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def screen(monkeypatch):
    """Make standard error a terminal; what that returns, returns all that was written there, and closes it."""
    pty = pytest.importorskip("pty")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)

    def make(encoding="utf-8"):
        ours, theirs = pty.openpty()
        written = bytearray()

        def read():
            with contextlib.suppress(OSError):  # the end
                while chunk := os.read(ours, 4096):
                    written.extend(chunk)

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        file = open(theirs, "w", encoding=encoding, errors="backslashreplace")  # noqa: SIM115
        monkeypatch.setattr(sys, "stderr", file)

        def close():
            file.close()
            thread.join(5)
            os.close(ours)
            return written.decode(encoding)

        return close

    return make


def lines_of(capsys):
    return capsys.readouterr().err.splitlines()


def test_lines_are_steady_also_within_an_epoch_and_the_last_one_is_there(clock, capsys):
    with shown("auto") as reporter:
        assert isinstance(reporter, LineReporter)
        reporter.begin("net", 300, 0)
        reporter.track(Epochs(100))
        for step in range(300):
            clock[0] += 0.25
            reporter.tick()
            if step % 100 == 99:
                reporter.note(f"epoch {step // 100 + 1}/3, loss 0.5")
    lines = lines_of(capsys)
    assert lines[:3] == [
        "net: epoch 1/3, step 40/300, 65 s left",
        "net: epoch 1/3, step 80/300, 55 s left",
        "net: epoch 2/3, step 120/300, 45 s left (epoch 1/3, loss 0.5)",
    ]
    assert lines[-1] == "net: epoch 3/3, loss 0.5"
    assert len(lines) == 8


def test_lines_of_a_long_job_become_rarer(clock, capsys):
    with LineReporter("stderr") as reporter:
        reporter.begin("net", 10**6, 0)
        for _ in range(3000):
            clock[0] += 60
            reporter.tick()
    assert 100 < len(lines_of(capsys)) < 600


@pytest.mark.parametrize("ends", ["end", "message", "fit", "error"])
def test_the_last_line_of_a_fit_that_ends_early_is_printed(clock, capsys, ends):
    def go():
        with LineReporter("stderr") as reporter:
            reporter.begin("net", 100, 0)
            reporter.tick()
            for epoch in (1, 2):
                reporter.note(f"epoch {epoch}/9")
            if ends == "message":
                reporter.say("x")
            elif ends == "fit":
                reporter.begin("y", 1, 0)
            elif ends == "error":
                raise KeyboardInterrupt

    if ends == "error":
        with pytest.raises(KeyboardInterrupt):
            go()
    else:
        go()
    assert [line for line in lines_of(capsys) if line != "x"] == ["net: epoch 2/9, 0 s left"]


def test_all_runs_of_a_job_share_the_time_left(clock, capsys):
    with LineReporter("stderr") as reporter:
        reporter.expect(200)
        for name in ("a", "b"):
            reporter.begin(name, 100, 20 if name == "b" else 0)
            for _ in range(80):
                clock[0] += 1
                reporter.tick()
    lines = lines_of(capsys)
    assert lines[0] == "a: step 10/100, 3 min left"
    assert lines[8] == "b: step 30/100, 70 s left"  # a ended early


def test_what_is_recorded_before_the_runs_is_none_of_their_steps(clock, capsys):
    with LineReporter("stderr") as reporter:
        reporter.expect(1000)
        for first in (0, 100):
            reporter.begin_apart("outputs", 4)
            for _ in range(4):
                clock[0] += 50
                reporter.tick()
            reporter.begin("net", 500, first)
            for _ in range(400):
                clock[0] += 1
                reporter.tick()
    lines = lines_of(capsys)
    assert lines[:5] == [
        "outputs: step 1/4, 2 min left",
        "outputs: step 2/4, 100 s left",
        "outputs: step 3/4, 50 s left",
        "outputs: step 4/4",
        "net: step 10/500, 16 min left",
    ]
    assert "net: step 110/500, 6 min left" in lines  # 390 steps of a second: the first fit took 100 less


def test_a_run_that_ends_early_takes_its_steps_out_of_the_time_left(clock, capsys):
    with LineReporter("stderr") as reporter:
        reporter.expect(200)
        reporter.begin("a", 100, 0)
        for _ in range(10):
            clock[0] += 1
            reporter.tick()
        reporter.end()
        reporter.begin("b", 100, 0)
        for _ in range(10):
            clock[0] += 1
            reporter.tick()
    assert lines_of(capsys)[-1] == "b: step 10/100, 90 s left"


def test_a_bar_of_the_job_stays_while_something_apart_from_it_goes_on(screen):
    read = screen()
    with shown("auto") as reporter:
        reporter.expect(1000)
        reporter.begin_apart("outputs", 4)
        reporter.tick()
        job, run = reporter.progress.tasks
        assert (job.completed, job.total) == (0, 1000)
        assert (run.completed, run.total) == (1, 4)
        reporter.begin("net", 10, 0)
        reporter.expect(60)  # of the job after a search
        job, _ = sorted(reporter.progress.tasks, key=lambda task: -task.total)
        assert (job.completed, job.total) == (0, 60)
    assert "outputs" in read()


@pytest.mark.parametrize("width", [30, 40, 80, 200])
def test_a_bar_fits_the_terminal_and_leaves_it_in_order(screen, monkeypatch, capsys, width):
    monkeypatch.setenv("COLUMNS", str(width))
    read = screen()
    with pytest.raises(KeyboardInterrupt), shown("auto") as reporter:  # noqa: PT012
        assert isinstance(reporter, TerminalReporter)
        reporter.expect(20)
        reporter.begin("a-very-long-name-of-a-run-and-its-objective stage 1 of 2", 10, 0)
        for _ in range(10):
            reporter.tick()
        reporter.note("epoch 1/1, loss 0.1234, test accuracy 12.34%, H(q) 1")
        print("the caller's")  # noqa: T201
        with shown("auto") as inner:
            assert isinstance(inner, LineReporter)
            inner.say("of a run within")
        raise KeyboardInterrupt
    text = read()
    last = text.rpartition("all runs")[2]
    assert "100%" in last
    assert last.rstrip(" \r\n").endswith("\x1b[?25h")  # The cursor is shown again.
    shown_lines = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line) for line in re.split(r"[\r\n]+", text)]
    assert max(len(line.rstrip()) for line in shown_lines) <= width
    assert "of a run within" in shown_lines
    assert capsys.readouterr().out == "the caller's\n"  # which is no terminal, and gets what it got
    assert not terminal._DRAWING.locked()


def test_where_nothing_can_be_drawn_again_lines_are_printed(screen, monkeypatch):
    read = screen()
    monkeypatch.setenv("TERM", "dumb")
    with drawn_or_printed("stderr") as reporter:
        assert isinstance(reporter, LineReporter)
    assert read() == ""


def test_a_terminal_without_a_letter_shows_its_number_and_no_colours_if_none_are_asked(screen, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    read = screen("cp1252")
    with shown("auto") as reporter:
        reporter.begin("modèle → 网", 1, 0)
        reporter.tick()
        reporter.say("é →")
    text = read()
    assert "é \\u2192" in text
    assert not re.search(r"\x1b\[[0-9;]*m", text)


class Shell:
    kernel = None


class Shows:
    """IPython's display, which keeps what it is given."""

    def __init__(self):
        self.blocks = []

    def __call__(self, shown, *, raw, display_id=True):
        self.blocks.append(shown)
        return self

    def update(self, shown, *, raw):
        self(shown, raw=raw)


def test_a_notebook_has_one_block_that_is_replaced_a_few_times_a_second(clock, monkeypatch, capsys):
    display = pytest.importorskip("IPython.display")
    shows, shell = Shows(), Shell()
    monkeypatch.setattr(display, "display", shows)
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    assert not in_notebook()  # IPython in a terminal
    shell.kernel = object()
    with pytest.raises(ValueError), shown("auto") as reporter:  # noqa: PT011, PT012
        assert isinstance(reporter, NotebookReporter)
        reporter.begin("<script>", 1000, 0)
        reporter.track(Epochs(500))
        for _ in range(1000):
            clock[0] += 0.01
            reporter.tick()
        reporter.note("epoch 2/2, loss <b>")
        reporter.remark("look")
        raise ValueError
    assert 20 < len(shows.blocks) < 40
    last = shows.blocks[-1]
    assert "<script" not in last["text/html"]
    assert 'value="1000" max="1000"' in last["text/html"]
    assert "epoch 2/2, loss &lt;b&gt;" in last["text/html"]
    assert last["text/plain"] == "<script> epoch 2/2, step 1000/1000, stopped after 10 s"
    assert capsys.readouterr().out == "note: look\n"


def test_none_is_silent_another_reporter_shows_and_other_processes_do_not(monkeypatch, capfd):
    with shown(None) as reporter:
        assert type(reporter) is Reporter
    with shown(own := tutelage.Reporter()) as reporter:
        assert reporter is own
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with shown("auto") as reporter:
        assert type(reporter) is Reporter
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("display", ["bar", "", False, True, 1, Reporter, print])
def test_what_is_no_display_is_refused_before_anything_is_done(tmp_path, display):
    with pytest.raises(tutelage.TutelageError, match=r"display: expected .*type display=None"):
        tutelage.train(model="mlp:4", data="digits", epochs=1, display=display, runs=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_calls_show_where_they_are_by_default(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("tutelage.report.html.write_report", lambda folder: None)
    run = tutelage.train(model="mlp:4", data="digits", device="cpu", epochs=1, name="shown", runs=tmp_path)
    out, err = capfd.readouterr()
    assert out == ""
    assert re.search(r"^shown: epoch 1/1, loss .*\nshown: test accuracy", err, re.MULTILINE)
    tutelage.evaluate(run, display=None)
    assert capfd.readouterr() == ("", "")
