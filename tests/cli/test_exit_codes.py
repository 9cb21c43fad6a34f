"""How a command ends that is not done: stopped, by the machine, by a bug."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from tutelage import doctor
from tutelage.cli.app import main
from tutelage.errors import InvalidValueError, RunError

RECIPE = "name: one\nstudent: mlp:8\ndata: digits\nepochs: 3\nbatch_size: 512\ndevice: cpu\n"


@pytest.fixture
def doctor_raises(invoke, monkeypatch, tmp_path):
    """Have a command raise an error; return its exit code and what it says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TUTELAGE_DEBUG", raising=False)

    def call(error, *typed):
        def examine():
            raise error

        monkeypatch.setattr(doctor, "examine", examine)
        code, _, err = invoke(*(typed or ("doctor",)))
        return code, err

    return call


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_says_what_is_saved_and_resumes(sent, code, invoke, monkeypatch, tmp_path):
    from tutelage.runs.run_state import RunState

    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.yaml").write_text(RECIPE)
    record_epoch, before = RunState.record_epoch, signal.getsignal(signal.SIGTERM)

    def stops_after_two(run, stage, epoch):
        record_epoch(run, stage, epoch)
        if epoch["epoch"] == 2:
            signal.raise_signal(sent)

    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with monkeypatch.context() as patch:
            patch.setattr(RunState, "record_epoch", stops_after_two)
            left, _, err = invoke("train", "one.yaml")
    finally:
        signal.signal(signal.SIGINT, interrupt)
    (line,) = err.splitlines()
    assert left == code
    assert line.startswith("tutelage: stopped: runs/one: a checkpoint after epoch 2, step 6")
    assert line.endswith("; run the same command again to resume")
    assert signal.getsignal(signal.SIGTERM) == before
    left, out, err = invoke("train", "one.yaml")
    assert left == 0, err
    assert "resuming after epoch 2, step 6" in out


def test_a_command_that_is_stopped_before_anything_is_saved_says_so(doctor_raises):
    code, err = doctor_raises(KeyboardInterrupt())
    assert (code, err) == (130, "tutelage: stopped: nothing was saved yet; run the same command again\n")


def test_a_command_whose_cleanup_fails_when_it_is_stopped_is_stopped(doctor_raises):
    error = AttributeError("cleanup")
    error.__context__ = KeyboardInterrupt()
    assert doctor_raises(error)[0] == 130


@pytest.mark.timeout(20)
def test_errors_that_are_each_others_cause_end_a_command(doctor_raises):
    error, other = InvalidValueError("this", "that", "another", "type that"), ValueError()
    error.__cause__, other.__cause__ = other, error
    assert doctor_raises(error)[0] == 2


@pytest.mark.parametrize("where", ["print", "report", "say"])
def test_a_command_that_is_stopped_when_its_run_is_finished_says_so(where, invoke, monkeypatch, tmp_path):
    from tutelage.report import html, results
    from tutelage.runs.terminal import LineReporter

    def stops(*arguments, **options):
        raise KeyboardInterrupt

    def says(reporter, text):
        if "test accuracy" in text:
            raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.yaml").write_text(RECIPE)
    with monkeypatch.context() as patch:
        if where == "print":
            patch.setattr(results, "print_table", stops)
        elif where == "report":
            patch.setattr(html, "write_report", stops)
        else:
            patch.setattr(LineReporter, "say", says)
        code, _, err = invoke("train", "one.yaml", "epochs=1")
    (line,) = err.splitlines()
    assert code == 130
    assert line.startswith("tutelage: stopped: runs/one: ")
    assert line.endswith("; type tutelage report runs/one to see it")
    assert "finished" in line or where == "print"
    assert json.loads((tmp_path / "runs/one/manifest.json").read_text())["status"] == "finished"
    assert invoke("report", "runs/one")[0] == 0


def test_a_stopped_comparison_says_how_many_runs_are_finished(invoke, monkeypatch, tmp_path):
    from tutelage.runs.run_state import RunState

    monkeypatch.chdir(tmp_path)
    (tmp_path / "both.yaml").write_text(f"{RECIPE}objectives: {{a: cross_entropy, b: confidence_penalty}}\nseeds: 2\n")
    finish = RunState.finish

    def stops_in_the_second_seed(run):
        if run.recipe.seed == 1:
            raise KeyboardInterrupt
        finish(run)

    monkeypatch.setattr(RunState, "finish", stops_in_the_second_seed)
    code, _, err = invoke("compare", "both.yaml", "epochs=1", "name=both")
    assert code == 130
    assert "runs/both/a-seed1: " in err
    assert "runs/both: 2 finished runs and 2 with a checkpoint" in err


@pytest.mark.parametrize("kind", [InvalidValueError, RunError])
def test_an_error_of_ours_has_its_exit_code(kind, doctor_raises):
    error = kind("x", expected="a", got="b", instead="c")
    assert doctor_raises(error) == (kind.exit_code, f"tutelage: {error}\n")


def test_a_full_disk_is_no_bug(doctor_raises):
    code, err = doctor_raises(OSError(errno.ENOSPC, "No space left on device", "runs/x"))
    assert code == 1
    assert err.startswith(
        "tutelage: runs/x: expected a file that can be read and written, got No space left on device;"
    )
    assert "bug" not in err


def test_too_little_memory_is_no_bug(doctor_raises):
    out_of_memory = type("OutOfMemoryError", (RuntimeError,), {})
    on_cpu = RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory")
    for error in (MemoryError(), out_of_memory("CUDA out of memory\nand more"), on_cpu):
        code, err = doctor_raises(error)
        assert code == 1
        assert err.startswith("tutelage: memory: expected")
        assert len(err.splitlines()) == 1


def test_a_library_that_is_not_installed_is_no_bug(doctor_raises):
    code, err = doctor_raises(ModuleNotFoundError("No module named 'any.part'", name="any.part"))
    assert code == 1
    assert err.startswith("tutelage: any.part: expected")
    assert "bug" in doctor_raises(ModuleNotFoundError("No module named 'tutelage.part'", name="tutelage.part"))[1]


def test_any_other_error_is_a_bug_and_says_so(doctor_raises):
    code, err = doctor_raises(KeyError("no\nsuch key"))
    assert code == 1
    (line,) = err.splitlines()
    assert line.startswith("tutelage: KeyError: ")
    assert "bug in tutelage" in line
    assert "--debug" in line


@pytest.mark.parametrize("typed", [("--debug", "doctor"), ("doctor", "--debug")])
def test_debug_shows_the_traceback_wherever_it_is_typed(typed, doctor_raises, monkeypatch):
    monkeypatch.setenv("TUTELAGE_DEBUG", "")  # so that what is set is taken back
    error = InvalidValueError("where", expected="a", got="b", instead="c")
    code, err = doctor_raises(error, *typed)
    assert code == error.exit_code
    assert err.startswith("Traceback")
    assert err.endswith(f"tutelage: {error}\n")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_ends_by_the_signal(monkeypatch):
    """Processes that load data are forks, and end by SIGTERM as they always do."""
    from tutelage.cli import app

    def forks():
        child = os.fork()
        if not child:
            signal.raise_signal(signal.SIGTERM)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM

    monkeypatch.setattr(app, "app", forks)
    main()


def test_several_processes_save_what_they_have_too(monkeypatch):
    from tutelage.cli import app

    seen = []
    monkeypatch.setattr(app, "app", lambda: seen.append(signal.getsignal(signal.SIGTERM)))
    main()
    monkeypatch.setenv("WORLD_SIZE", "2")
    main()
    assert all(map(callable, seen))


def stopped(tmp_path, sent, *typed, when, pause=0.0):
    """Run the command line in a process, send it signals once a file is there, and return how it ended."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", LIKE_A_TERMINAL, *typed],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while not (tmp_path / when).exists() and process.poll() is None:
            time.sleep(0.02)
        time.sleep(0.2)  # not in the middle of what wrote the file
        for number in sent:
            process.send_signal(number)
            time.sleep(pause)
        _, err = process.communicate(timeout=60)
    return process.returncode, err


LIKE_A_TERMINAL = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
from tutelage.cli import main
main()
"""
LONG = ("train", "model=mlp:8", "data=digits", "epochs=5000", "name=one", "device=cpu", "checkpoint_seconds=1e6")


@pytest.mark.skipif(os.name == "nt", reason="signals are sent otherwise")
def test_ctrl_c_within_an_epoch_saves_its_steps(tmp_path):
    """Twice at once, as a program that passes the terminal's Ctrl-C on does."""
    typed = (*LONG, "batch_size=1", "checkpoint_steps=700", "compile_student=false", "gradient_products=false")
    saved, steps = r"tutelage: stopped: runs/one: a checkpoint after epoch \d+", []
    for attempt in range(4):
        (folder := tmp_path / str(attempt)).mkdir()
        due = "runs/one/checkpoints/00-000000700"
        code, err = stopped(folder, [signal.SIGINT] * 2, *typed, when=due, pause=0.01)
        if "by a second signal" in err:  # On a busy machine the second may come late enough to count.
            continue
        (line,) = [line for line in err.splitlines() if line.startswith("tutelage: ")]  # torch's compiler has its own
        step = re.fullmatch(rf"{saved}, step (\d+); run the same command again to resume", line)
        assert code == 130
        assert step, line
        steps.append(int(step[1]))
        if steps[-1] % 700:  # A slow disk may still write what was due.
            break
    assert any(step % 700 for step in steps)  # and not only what was due


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals are sent otherwise")
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_leaves_at_once(second, tmp_path):
    """Though the first is still being heeded, here in a step that takes for ever."""
    (tmp_path / "slow.py").write_text(
        "import time, torch\n"
        "class Slow(torch.nn.Module):\n"
        "    def __init__(self):\n        super().__init__(); self.head = torch.nn.Linear(64, 10)\n"
        "    def forward(self, x):\n"
        "        if self.training and len(x) > 2:\n"  # not when the network is tried on a few samples
        "            open('begun', 'w').close()\n            time.sleep(300)\n"
        "        return self.head(x.flatten(1))\n"
        "def make():\n    return Slow()\n"
    )
    typed = ("train", "model=file:slow.py:make", "data=digits", "name=one", "device=cpu", "--trust-code")
    code, err = stopped(tmp_path, [signal.SIGINT, second], *typed, when="begun", pause=1.0)
    assert code == 128 + second
    assert "at once" in err


@pytest.mark.slow
@pytest.mark.parametrize("teacher", ["null", "{train: {model: mlp:256x256, epochs: 9999}}"])
def test_a_search_whose_time_is_up_before_a_trial_is_finished_names_no_report(teacher, invoke, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.yaml").write_text(RECIPE)
    objective = "cross_entropy" if teacher == "null" else "kd"
    asked = ["data.validation=0.1", f"teacher={teacher}", f"objective={objective}", "epochs=9999", "--budget", "2s"]
    search = ["--trials", "2", "--search", "optimizer.lr=0.01..0.1"]
    code, out, err = invoke("tune", "one.yaml", *search, *asked)
    assert (code, err) == (0, "")
    assert "the budget is used up" in out
    assert "to resume, here or where" in out
    assert "report: " not in out
    assert not [*tmp_path.glob("runs/*/report.html")]
