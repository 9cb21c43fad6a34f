"""A fault, what is done with it, and how its end is judged.

A fault is put into a command of a small run. Afterwards the same command is typed again, without it. Right is: the
command ended with a documented exit code and one message that names what failed; the checkpoint that was there is used;
and the second end has the bits of a run that was never disturbed, or the command was refused with what to do.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from PIL import Image
from tests.faults import inject

from tutelage.errors import TutelageError

COMMON = "data: digits\nepochs: 2\nbatch_size: 512\ncheckpoint_steps: 2\ndevice: cpu\nthreads: 1\nprecision: fp32\n"
STUDENT, TEACHER = "student: file:networks.py:student\n", "teacher: runs/teacher\n"
RECIPES = {
    "teacher": f"name: teacher\nmodel: file:networks.py:teacher\n{COMMON}",
    "train": f"name: train\n{STUDENT}{COMMON}",
    "distill": f"name: distill\n{STUDENT}{TEACHER}objective: [{{ttm: {{gamma: 0.5, beta: 1.0}}}}]\n{COMMON}",
    "workers": f"name: workers\n{STUDENT}{COMMON}".replace(
        "digits", "{source: 'imagefolder:photos', test: train, memory_limit_mb: 0, workers: 1}"
    ).replace("512", "4"),
    "compare": f"name: compare\n{STUDENT}{TEACHER}objectives: {{ce: cross_entropy, kd: kd}}\n{COMMON}",
    "study": f"name: study\nprotocol: {{{', '.join(COMMON.splitlines())}, weak_teacher: true}}\n"
    "pairs: {wide/narrow: {teacher: 'file:networks.py:teacher', student: 'file:networks.py:student'}}\n"
    "methods: [cross_entropy, kd]\n",
}
COMMANDS = {
    "train": ("train", "train.yaml"),
    "distill": ("distill", "distill.yaml"),
    "record": ("record", "distill.yaml", "outputs=runs/record"),
    "compare": ("compare", "compare.yaml"),
    "study": ("study", "study.yaml"),
    "python": ("python",),  # a program with a data set of its own
    "workers": ("train", "workers.yaml"),  # a streamed folder, read in another process
}
NUMBER = re.compile(r"\d{2,}-\d{9,}")


@dataclass(frozen=True)
class Fault:
    """What goes wrong, and where: at the n-th time a place is reached, or with a file of a run that was stopped."""

    verb: str
    kind: str
    place: str
    time: int = 0

    def __str__(self) -> str:
        return f"{self.verb}: {self.kind}, {self.place}{f' {self.time}' if self.time else ''}"


@dataclass
class Ended:
    """How a command ended: its exit code, or less a signal's number; and what it said."""

    code: int
    out: str
    err: str


@dataclass
class Outcome:
    """What became of a fault."""

    fault: Fault
    reached: bool
    first: Ended
    again: Ended | None = None
    wrong: list[str] = field(default_factory=list)

    @property
    def end(self) -> str:
        """The column of the tally."""
        if not self.reached:
            return "not reached"
        if self.wrong:
            return "wrong"
        return "same bits" if (self.again or self.first).code == 0 else "refused"


def invoke(*typed: str) -> Ended:
    """Type a command in this process."""
    from tutelage.cli import app

    out, err = io.StringIO(), io.StringIO()
    before = sys.argv
    sys.argv = ["tutelage", *typed]
    code: Any = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("default")
        try:
            if typed == ("python",):
                train_on_own_data()
            else:
                app.main()
        except TutelageError as error:
            code = error.exit_code
            err.write(f"tutelage: {error}\n")
        except KeyboardInterrupt as error:
            code = 130
            err.write(f"stopped: {'; '.join(getattr(error, '__notes__', []))}; run the same command again\n")
        except Exception:  # noqa: BLE001  as a program would end
            code = 1
            err.write(traceback.format_exc())
        except SystemExit as left:
            code = left.code or 0
        finally:
            sys.argv = before
    return Ended(int(code), out.getvalue(), err.getvalue())


def invoke_in_child(folder: Path, typed: tuple[str, ...], watch: inject.Watch) -> Ended:
    """Type a command in a fork of this process, which a fault may kill."""
    said = folder / ".said"
    child = os.fork()
    if child == 0:
        code = 70
        try:
            with inject.watching(watch):
                ended = invoke(*typed)
            said.write_text(json.dumps([ended.out, ended.err]), encoding="utf-8")
            code = ended.code
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    out, err = json.loads(said.read_text(encoding="utf-8")) if said.exists() else ("", "")
    said.unlink(missing_ok=True)
    return Ended(os.waitstatus_to_exitcode(status), out, err)


class OwnData(torch.utils.data.Dataset):
    """A data set of the user's, each of whose samples a fault may reach."""

    classes = ("one", "two", "three")

    def __init__(self, samples: int) -> None:
        self.images = torch.rand(samples, 1, 8, 8, generator=torch.Generator().manual_seed(samples))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, k: int) -> tuple[torch.Tensor, int]:
        return inject.reach("sample", self.images[k]), k % 3


def train_on_own_data() -> None:
    """Train on a user's own data set, from Python."""
    import tutelage

    tutelage.train(
        model=f"file:{Path('networks.py').resolve()}:student",
        data=(OwnData(96), OwnData(48)),
        name="python",
        epochs=2,
        batch_size=32,
        checkpoint_steps=2,
        device="cpu",
        threads=1,
        precision="fp32",
        trust_code=True,
    )


class Bench:
    """The commands' working folders: what each is begun in, stopped half-way, and what it ends with if undisturbed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.begun = folder / "begun"
        self.stopped: dict[str, Path] = {}
        self.ends: dict[str, dict[str, str]] = {}
        self.places: dict[str, inject.Watch] = {}
        self.begun.mkdir(parents=True)
        shutil.copy(Path(__file__).parent / "networks.py", self.begun)
        for name, recipe in RECIPES.items():
            (self.begun / f"{name}.yaml").write_text(recipe, encoding="utf-8")
        for k in range(16):
            path = self.begun / "photos" / "ab"[k % 2] / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (16 * k, 90, 255 - 16 * k)).save(path)
        os.environ.setdefault("TUTELAGE_CACHE", str(folder / "cache"))
        with _reports_left_out(), _inside(self.begun):
            ended = invoke("train", "teacher.yaml", "--trust-code", "epochs=6")
            assert ended.code == 0, ended.err
        shutil.rmtree(self.begun / "runs/teacher/checkpoints")

    def typed(self, verb: str) -> tuple[str, ...]:
        """Return a verb's command."""
        return COMMANDS[verb] if verb == "python" else (*COMMANDS[verb], "--trust-code")

    def undisturbed(self, verb: str) -> dict[str, str]:
        """Return what a verb ends with, after counting the places that it reaches."""
        if verb not in self.ends:
            with self.workplace(self.begun) as here:
                watch = inject.Watch(str(here))
                with inject.watching(watch):
                    ended = invoke(*self.typed(verb))
                assert ended.code == 0, (verb, ended.err)
                self.ends[verb], self.places[verb] = contents(here, verb), watch
        return self.ends[verb]

    def half(self, verb: str) -> Path:
        """Return a folder in which a verb was stopped in its second epoch, or after its first file."""
        if verb not in self.stopped:
            self.undisturbed(verb)
            place = "rename" if verb == "record" else "step"
            names = self.places[verb].paths[place]
            first = next((k for k, path in enumerate(names, 1) if path.endswith(".safetensors")), 0)
            at = first + 1 if verb == "record" else len(names) - 1
            with self.workplace(self.begun) as here:
                watch = inject.Watch(str(here), place, at, inject.interrupt(signal.SIGINT))
                with inject.watching(watch), _default_interrupt():
                    ended = invoke(*self.typed(verb))
                assert ended.code == 130, (verb, ended)
                self.stopped[verb] = self.folder / f"stopped-{verb}"
                shutil.copytree(here, self.stopped[verb], symlinks=True)
        return self.stopped[verb]

    @contextlib.contextmanager
    def workplace(self, template: Path) -> Iterator[Path]:
        """Yield a copy of a folder, as the working folder, in which reports are short."""
        here = self.folder / "work"
        shutil.rmtree(here, ignore_errors=True)
        shutil.copytree(template, here, symlinks=True)
        with _reports_left_out(), _inside(here):
            yield here
        shutil.rmtree(here, ignore_errors=True)

    def do(self, fault: Fault, action: Action) -> Outcome:
        """Let a fault happen, type the command again, and judge both ends."""
        self.undisturbed(fault.verb)
        typed = self.typed(fault.verb)
        with self.workplace(self.half(fault.verb) if action.damages else self.begun) as here:
            if action.damages is not None:
                action.damages(here / fault.place)
                outcome = Outcome(fault, True, invoke(*typed))
                self._judge_end(outcome, outcome.first, here, named=Path(fault.place).name)
                return outcome
            watch = inject.Watch(str(here), fault.place, fault.time, action.happens, lasting=action.lasting)
            with action.around(here):
                if action.kills:
                    first = invoke_in_child(here, typed, watch)
                    watch.counts[fault.place] = fault.time if first.code < 0 else 0
                else:
                    with inject.watching(watch), _default_interrupt():
                        first = invoke(*typed)
            outcome = Outcome(fault, watch.reached or not fault.place, first)
            if not outcome.reached:
                return outcome
            outcome.wrong += faults_of_message(first, action, watch.path)
            newest = newest_checkpoint(here) if fault.verb in ("train", "distill") else None
            if first.code == 0:
                self._judge_end(outcome, first, here)
                return outcome
            outcome.again = invoke(*typed)
            if newest is not None and outcome.again.code == 0 and f"step {newest}\n" not in outcome.again.out:
                outcome.wrong.append(f"the checkpoint of step {newest} was not used")
            self._judge_end(outcome, outcome.again, here)
            return outcome

    def _judge_end(self, outcome: Outcome, ended: Ended, here: Path, named: str = "") -> None:
        outcome.wrong += faults_of_message(ended, Action(), "")
        if ended.code == 0 or "which is finished" in ended.err:  # as after a kill while its report was written
            now, then = contents(here, outcome.fault.verb), self.ends[outcome.fault.verb]
            differ = sorted(key for key in then.keys() | now.keys() if then.get(key) != now.get(key))
            if differ:
                outcome.wrong.append(f"it ended with another content of {', '.join(differ[:3])}")
            return
        if named and named not in ended.err:
            outcome.wrong.append(f"{named} is not named: {ended.err.strip()[-200:]}")
        if not re.search(r"remove|restore|another|move it away|free|allow|wait|run again|record (it|them)", ended.err):
            outcome.wrong.append(f"it does not say what to do: {ended.err.strip()[-200:]}")


@dataclass(frozen=True)
class Action:
    """How a kind of fault is made.

    Attributes:
        happens: what is done at the time and the place.
        lasting: whether it is done at every further operation on a file.
        kills: whether it ends the process.
        damages: changes a file of a stopped run instead.
        around: what stands around the command.
        codes: exit codes that are right; 0 is where nothing of the run depends on what failed.
        says: what the message must contain besides; the path of the operation where it is empty.
    """

    happens: Callable[[str, Any], Any] | None = None
    lasting: bool = False
    kills: bool = False
    damages: Callable[[Path], None] | None = None
    around: Callable[[Path], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    codes: tuple[int, ...] = (0, 1, 2)
    says: str = ""


def faults_of_message(ended: Ended, action: Action, path: str) -> list[str]:
    """Return what is wrong with how a command ended, apart from its files."""
    wrong, err = [], ended.err
    if action.kills:
        return [] if ended.code == -signal.SIGKILL else [f"it was not killed: {ended}"]
    if ended.code not in action.codes:
        wrong.append(f"exit code {ended.code}: {err.strip()[-200:]}")
    if "Traceback" in err or "bug in tutelage" in err:
        wrong.append(f"a bug's message: {err.strip()[-300:]}")
    if ended.code in (1, 2):
        if not re.search(r"(tutelage: .*: expected .*, got .*; |^tutelage: \S+: )", err):
            wrong.append(f"no message: {err.strip()[-200:]!r}")
        if action.says and not re.search(action.says, err):
            wrong.append(f"{action.says} is not named: {err.strip()[-300:]}")
        elif path and not action.says and not any(_stem(part) in err for part in Path(path).parts if part != "runs"):
            wrong.append(f"{path} is not named: {err.strip()[-300:]}")
    if ended.code in (130, 143) and not re.search(r"stopped: .*(run the same command again|finished)", err):
        wrong.append(f"it does not say what is saved: {err.strip()[-200:]!r}")
    return wrong


def _stem(part: str) -> str:
    return part.removeprefix(".").removesuffix(".tmp")


def contents(here: Path, verb: str) -> dict[str, str]:
    """Return what counts of a command's folder, by path: weights and outputs, and what the records say of them."""
    found = {}
    for path in sorted((here / "runs").rglob("*")):
        name = path.relative_to(here).as_posix()
        if name.startswith("runs/teacher/") or "/checkpoints/" in name or not path.is_file():
            continue
        if path.suffix == ".safetensors":
            found[name] = _digest(path.read_bytes())
        elif path.name == "metrics.jsonl":
            epochs = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            found[name] = str([[e[key] for key in ("stage", "epoch", "step", "train", "test")] for e in epochs])
        elif path.name == "manifest.json":
            manifest = json.loads(path.read_text(encoding="utf-8"))
            keys = ("status", "seeds", "objective", "repeatable")
            found[name] = str([manifest[key] for key in keys] + [manifest["student"]["fingerprint"]])
        elif path.name == "outputs.json":
            outputs = json.loads(path.read_text(encoding="utf-8"))
            found[name] = str([outputs[key] for key in ("key", "samples", "rows", "form")])
    return found


def _digest(content: bytes) -> str:
    """Return the digest of a safetensors file, whose header may name its entries in any order."""
    length = int.from_bytes(content[:8], "little")
    with contextlib.suppress(ValueError):
        header = json.dumps(json.loads(content[8 : 8 + length]), sort_keys=True).encode()
        return hashlib.sha256(header + content[8 + length :]).hexdigest()
    return hashlib.sha256(content).hexdigest()


def newest_checkpoint(here: Path) -> int | None:
    """Return the step of the newest checkpoint whose checksums hold, found without this package."""
    for folder in sorted((here / "runs").glob("*/checkpoints/*"), reverse=True):
        if not NUMBER.fullmatch(folder.name) or not (folder / "checksums").is_file():
            continue
        lines = [line.split("  ") for line in (folder / "checksums").read_text(encoding="utf-8").splitlines()]
        if all(hashlib.sha256((folder / file).read_bytes()).hexdigest() == digest for digest, file in lines):
            return int(folder.name.partition("-")[2])
    return None


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def _default_interrupt() -> Iterator[None]:
    """Let SIGINT raise KeyboardInterrupt, as it does unless a shell's background job ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _reports_left_out() -> Iterator[None]:
    """Write short reports: drawing them takes longer than the runs."""
    from tutelage.report import html

    before, html.render = html.render, lambda *_: "<!doctype html>"
    try:
        yield
    finally:
        html.render = before


# How files are damaged.


def cut(path: Path) -> None:
    """Keep the first half."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def flip(path: Path) -> None:
    """Change one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def as_folder(path: Path) -> None:
    """Put a folder in its place."""
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "removed": Path.unlink,
    "cut in the middle": cut,
    "emptied": lambda path: path.write_bytes(b""),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "not UTF-8": lambda path: path.write_bytes(b"\xff\xfe\xff" + path.read_bytes()),
    "a list": lambda path: path.write_bytes(b"[]\n"),
    "one bit flipped": flip,
    "a folder": as_folder,
}


# What stands around a command.


@contextlib.contextmanager
def clock_that_jumps(seconds: float, here: Path) -> Iterator[None]:
    """Let the clocks jump once, at the 20th time that one is read."""
    plain = {name: getattr(time, name) for name in ("time", "monotonic")}
    read = 0

    def jumping(name: str) -> Callable[[], float]:
        def now() -> float:
            nonlocal read
            read += 1
            return plain[name]() + (seconds if read > 20 else 0)

        return now

    for name in plain:
        setattr(time, name, jumping(name))
    try:
        yield
    finally:
        for name, function in plain.items():
            setattr(time, name, function)


@contextlib.contextmanager
def lock_held(path: str, here: Path) -> Iterator[None]:
    """Hold the lock of a folder, as another process would."""
    import fcntl

    (here / path).mkdir(parents=True, exist_ok=True)
    with (here / path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def not_finite(value: float) -> Callable[[str, Any], Any]:
    """Return an action that puts a number into one row of what a network answers."""

    def action(path: str, logits: torch.Tensor) -> torch.Tensor:
        spoilt = logits.clone()
        spoilt[0, 0] = value
        return spoilt

    return action


def kill_worker(path: str, value: Any) -> Any:
    """Kill the processes that read data."""
    for child in multiprocessing.active_children():
        child.kill()
    return value


def removing(name: str) -> Callable[[str, Any], Any]:
    """Return an action that removes what has a name in all runs but the teacher's."""

    def action(path: str, value: Any) -> Any:
        for each in sorted(Path("runs").rglob(name)):
            if each.is_relative_to("runs/teacher"):
                continue
            if each.is_dir():
                shutil.rmtree(each)
            else:
                each.unlink()
        return value

    return action


def of_another_run(path: Path) -> None:
    """Put the teacher's weights in a file's place."""
    shutil.copyfile("runs/teacher/student.safetensors", path)


def other_tensors(path: Path) -> None:
    """Write a checkpoint's tensors without the last of them, with checksums that hold."""
    tensors = safetensors.torch.load(path.read_bytes())
    tensors.pop(max(tensors))
    path.write_bytes(safetensors.torch.save(tensors))
    sums = path.with_name("checksums")
    lines = [line.split("  ") for line in sums.read_text(encoding="utf-8").splitlines()]
    files = {file: hashlib.sha256(path.with_name(file).read_bytes()).hexdigest() for _, file in lines}
    sums.write_text("".join(f"{digest}  {file}\n" for file, digest in files.items()), encoding="utf-8")
