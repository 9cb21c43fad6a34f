"""Trackers of runs: what they are handed of a run's records, and that no run ends of them. No PyTorch."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import queue
import re
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from tutelage import records
from tutelage.errors import (
    InvalidTypeError,
    InvalidValueError,
    MissingExtraError,
    message,
    missing_extra,
    nearest,
    reason_of,
)

if TYPE_CHECKING:
    from tutelage.training.trackers import Opened, Tracker

Track: TypeAlias = "str | Tracker"
"""A tracker's name, or a tracker of the caller's."""
NAMES = ("tensorboard", "wandb", "mlflow", "trackio")
"""Trackers by name, which is also that of the library that each needs."""
NOTE = "trackers.json"
"""What each tracker calls a run, and how many of its epochs it was handed."""
PATIENCE, CLOSING = 90.0, 10.0
"""Seconds that a run waits for a tracker; and once it was stopped."""
_SILENT: set[str] = set()
"""Trackers that once did not answer: for these no other run of the process waits long."""
_URL = re.compile(r"[A-Za-z][\w+.-]*://[^\s'\"]+")


def check(track: Track | Iterable[Track] | None, *, what: str = "track", objects: bool = True) -> tuple[Track, ...]:
    """Return trackers, each once, whose libraries are installed.

    Args:
        track: one or several; ``None`` for none.
        what: the argument or the option that they were given as.
        objects: whether one of the caller's may be among them.

    Raises:
        ValueError: a name is not known.
        TypeError: something is neither a name nor a tracker.
        ImportError: a library is not installed.
    """
    listed = [] if track is None else list(track) if isinstance(track, list | tuple | set | frozenset) else [track]
    for each in listed:
        if not isinstance(each, str):
            _check_object(each, what, objects=objects)
        elif each not in NAMES:
            raise InvalidValueError(what, f"one of {', '.join(NAMES)}", repr(each), nearest(each, NAMES))
        elif importlib.util.find_spec(each) is None:
            if each == "tensorboard":
                raise missing_extra(f"{what} {each}", each, each, ImportError("it is not installed"))
            raise MissingExtraError(f"{what} {each}", f"the library {each}", "none", f"type pip install {each}")
    return tuple(each for k, each in enumerate(listed) if each not in listed[:k])


def _check_object(value: Any, what: str, *, objects: bool) -> None:
    from tutelage.training.trackers import is_tracker

    known = f"one of {', '.join(NAMES)}"
    if not is_tracker(value):
        expected = f"{known}, or an object of a class of accelerate.tracking"
        raise InvalidTypeError(what, expected, f"an object of type {type(value).__name__}", f"type {what}={NAMES[0]!r}")
    if not objects:
        instead = f"type {what}={NAMES[0]!r}, or tutelage.distill once for each run"
        raise InvalidTypeError(what, f"{known}, as each run has its own", f"a {type(value).__name__}", instead)


def installed() -> list[str]:
    """Return the names of the trackers whose libraries are installed."""
    return [name for name in NAMES if importlib.util.find_spec(name) is not None]


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a record by their path in it, such as ``train/loss``.

    Example:
        >>> scalars({"epoch": 1, "train": {"loss": 0.5, "entropy": None}, "test": None, "samples_by_rank": [8]})
        {'epoch': 1, 'train/loss': 0.5}
    """
    return {
        path: value
        for path, value in records.flat(record, "/")
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def settings(recipe: Mapping[str, Any]) -> dict[str, str | float]:
    """Return what is set in a recipe, by the keys that an override has; lists of plain values as JSON.

    Absolute paths are cut to their last component, and URLs to what is no key and no user's name.
    """
    from tutelage.runs.manifest import without_paths

    found: dict[str, str | float] = {}
    for key, value in records.flat(without_paths(dict(recipe)), lists=True):
        if value is not None:
            plain = value if isinstance(value, str | int | float) else json.dumps(value)
            found[key] = _URL.sub(_public, plain) if isinstance(plain, str) else plain
    return found


def _public(url: re.Match[str]) -> str:
    from tutelage.data.names import public_url

    return public_url(url[0])


def by_step(epochs: Sequence[records.Epoch]) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield each epoch's numbers with its step, counted from the first step of the first stage."""
    before = 0
    for k, epoch in enumerate(epochs):
        if k and epoch["stage"] != epochs[k - 1]["stage"]:
            before += epochs[k - 1]["step"]
        yield before + epoch["step"], scalars({key: value for key, value in epoch.items() if key != "step"})


class Trackers:
    """A run's trackers, in the main process. What they fail in is warned of once, and the run goes on.

    Args:
        track: trackers, as `check` returns them.
        folder: the run's folder.
        run: the run's name.
    """

    def __init__(self, track: Iterable[Track], folder: Path, run: str) -> None:
        self._all = [_Tracker(each, folder, run) for each in track]

    def begin(self, recipe: Mapping[str, Any], epochs: Sequence[records.Epoch]) -> None:
        """Open them, and hand over what was recorded before that they do not have."""
        for tracker in self._all:
            tracker.begin(settings(recipe), epochs)
        self.log(epochs)

    def log(self, epochs: Sequence[records.Epoch]) -> None:
        """Hand over what they do not have of all epochs so far."""
        for tracker in self._all:
            tracker.log(epochs)

    def finish(self, epochs: Sequence[records.Epoch], evaluation: records.Evaluation | None) -> None:
        """Hand over the last evaluation of a finished run, and close them."""
        for tracker in self._all:
            if evaluation is not None:
                *_, (step, _) = by_step(epochs)
                tracker.judge(step, scalars({"evaluation": evaluation}))
        self.close(PATIENCE)

    def close(self, patience: float = CLOSING) -> None:
        """Close those that are open."""
        for tracker in self._all:
            tracker.close(patience)


class _Tracker:
    """One tracker of one run."""

    def __init__(self, track: Track, folder: Path, run: str) -> None:
        self.track, self.folder, self.run = track, folder, run
        self.key = track if isinstance(track, str) else f"object:{type(track).__name__}"
        self.opened: Opened | None = None
        self.warned = False
        self.thread = _Thread() if isinstance(track, str) else None
        self.logged = 0  # epochs that it has

    def begin(self, config: Mapping[str, Any], epochs: Sequence[records.Epoch]) -> None:
        """Open it, as it was left."""
        from tutelage.training import trackers

        noted = _noted(self.folder).get(self.key, {})
        self.logged, known = noted.get("epochs", 0), noted.get("run")
        if isinstance(self.track, str):
            work = partial(trackers.open_tracker, self.track, self.folder, self.run, config, known)
        else:
            work = partial(trackers.open_own, self.track, config)
        with self.guarded():
            self.opened = self.do(work, PATIENCE)
            if (end := self.opened.next_step) is not None:
                self.logged = sum(step < end for step, _ in by_step(epochs))

    def log(self, epochs: Sequence[records.Epoch]) -> None:
        """Log epochs that it does not have, and note so."""
        for number, (step, values) in enumerate(by_step(epochs), 1):
            if self.opened is None or number <= self.logged:
                continue
            with self.guarded():
                self.do(partial(self.opened.tracker.log, values, step=step), PATIENCE)
                self.logged = number
                if self.track != "tensorboard":  # which begins anew
                    noted = {"run": self.opened.identity, "epochs": number}
                    records.write_json(self.folder / NOTE, _noted(self.folder) | {self.key: noted})
            if self.logged < number:
                break  # The next time all that it lacks is tried again.

    def judge(self, step: int, values: dict[str, float]) -> None:
        """Log the last evaluation."""
        if self.opened is not None:
            with self.guarded():
                self.do(partial(self.opened.tracker.log, values, step=step), PATIENCE)

    def close(self, patience: float) -> None:
        """Close it, once."""
        opened, self.opened = self.opened, None
        if opened is not None:
            with self.guarded():
                self.do(opened.tracker.finish, patience)
        if self.thread is not None:
            self.thread.end()

    def do(self, work: Callable[[], Any], patience: float) -> Any:
        """Do some of its work; one that does not answer is given up."""
        if self.thread is None:
            return work()
        try:
            return self.thread.do(work, CLOSING if self.key in _SILENT else patience)
        except TimeoutError:
            self.opened = None
            _SILENT.add(self.key)
            raise

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Warn of the first error, and pass over all."""
        try:
            yield
        except (Exception, SystemExit) as error:  # noqa: BLE001  whatever it is, the run does not depend on it
            if not self.warned:
                self.warned = True
                instead = f"the run goes on, and {self.folder / records.METRICS} has what is recorded"
                expected = "to take what is recorded"
                warnings.warn(message(f"tracker {self.key}", expected, reason_of(error), instead), stacklevel=2)


def _noted(folder: Path) -> dict[str, Any]:
    path = folder / NOTE
    return records.read_json(path) if path.exists() else {}


class _Thread:
    """A thread that does one thing after another.

    Libraries keep the run that they log to for each thread or context, so of runs that are trained side by side each
    has a thread. It ends with the process, whatever it is at.
    """

    def __init__(self) -> None:
        self._given: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def do(self, work: Callable[[], Any], patience: float) -> Any:
        """Return what some work returns, or raise what it raises.

        Raises:
            TimeoutError: it did not end in so many seconds.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._go, daemon=True)
            self._thread.start()
        answer: Future[Any] = Future()
        self._given.put((work, answer))
        try:
            return answer.result(patience)
        except TimeoutError as error:
            raise TimeoutError(str(error) or f"no answer within {patience:.0f} s") from error

    def end(self) -> None:
        """End once all is done."""
        self._given.put(None)

    def _go(self) -> None:
        while (given := self._given.get()) is not None:
            work, answer = given
            try:
                answer.set_result(work())
            except BaseException as error:  # noqa: BLE001  whoever waits gets it
                answer.set_exception(error)
