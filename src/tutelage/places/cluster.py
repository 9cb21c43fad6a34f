"""Work on a Ray cluster: dealt over its nodes and devices, done again where a node was lost, cancelled at a stop.

Ray schedules, watches and repeats; what is done is this package's own code, with the folder of all runs, which every
node sees, as the only memory: a task that is done again finds there what is finished, and resumes the rest.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import pickle
import platform
import signal
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from tutelage import records
from tutelage.config.schema import Recipe
from tutelage.errors import (
    InvalidValueError,
    NetworkError,
    RunError,
    StorageError,
    TutelageError,
    explained,
    missing_extra,
    raise_all,
    reason_of,
)
from tutelage.interruption import SIGNALS
from tutelage.places.here import Runs, Training, train
from tutelage.report.table import plural
from tutelage.runs.lock import BusyError, folder_lock
from tutelage.runs.reporter import Reporter
from tutelage.runs.run import RunOptions, finished
from tutelage.version import __version__

RETRIES = 5
"""Times that a task is done again after its node, or its process, was lost."""
ANSWER = 120.0
"""Seconds for every node to answer, at the start."""
GRACE = 60.0
"""Seconds for cancelled tasks to save what they have."""
PAUSE = 0.25
"""Seconds between looks for tasks that are done."""
QUIET = 10.0
"""Seconds between lines about what is running."""
SHOWN = 6
"""Runs that such a line names."""
LOST = 60.0
"""Seconds that a process may outlive its lost node."""
T = TypeVar("T")


class Outcome(NamedTuple):
    """What became of a task: the work's value or its error, and the lines that it said."""

    value: Any
    error: Exception | None
    lines: Sequence[str] = ()


class Place(NamedTuple):
    """Where a driver works, as a task on another node finds it."""

    working: str
    folder: str
    token: str

    def enter(self) -> None:
        """Go there.

        Raises:
            StorageError: if this node does not see the driver's folder of runs.
        """
        if Path(self.working).is_dir():
            os.chdir(self.working)
        path = Path(self.folder) / self.token
        if not path.exists() or path.read_text(encoding="utf-8") != self.token:
            raise unseen(self.folder, platform.node())


def unseen(folder: str, where: str) -> StorageError:
    """Return the error where a node does not see the folder of runs."""
    expected = f"a folder that every node sees, such as one on NFS, when typed in {Path.cwd()}"
    return StorageError("--runs", expected, f"{folder}, which {where} does not see", "type --runs FOLDER for one")


class _Lines(Reporter):
    """Keeps what a task says for the driver."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


class Cluster:
    """A Ray cluster that this process deals work to, as it would to `Here`; see `connected`.

    Attributes:
        slots: pieces of work that its nodes do at a time.
    """

    local, most_dealt = False, math.inf

    def __init__(self, ray: Any, place: Place, recipe: Recipe, reporter: Reporter) -> None:
        self._ray, self._place = ray, place
        self._tasks: dict[Any, tuple[object, Runs]] = {}
        self._said = ""
        self._nodes = {
            f"{node['NodeManagerAddress']} ({node['NodeID'][:6]})": node for node in ray.nodes() if node["Alive"]
        }
        cpus, gpus = self.resources(recipe)
        able = {name: n for name, node in self._nodes.items() if (n := _fitting(node["Resources"], cpus, gpus))}
        if not able:
            expected = f"a node with {plural(cpus, 'CPU')}{' and a GPU' if gpus else ''} for a task"
            got = ", ".join(f"{name} with {_described(node['Resources'])}" for name, node in self._nodes.items())
            instead = "start one, or type a smaller threads=... or data.workers=..., or device=cpu"
            raise InvalidValueError("--on ray", expected, got, instead)
        self.slots = sum(able.values())
        reporter.say(f"Ray: {plural(len(able), 'node')}, {plural(self.slots, 'task')} at a time")
        for line in self._check(able):
            reporter.say(line)

    def resources(self, recipe: Recipe) -> tuple[int, int]:
        """Return the CPUs and GPUs that a task with this recipe takes.

        Raises:
            InvalidValueError: if the recipe names a GPU, which Ray assigns.
        """
        if ":" in recipe.device:
            expected = "auto, cpu or cuda, as Ray assigns each task its GPU"
            raise InvalidValueError("device", expected, recipe.device, "type device=cuda")
        with_gpus = any(node["Resources"].get("GPU") for node in self._nodes.values())
        on_gpu = recipe.device == "cuda" or (recipe.device == "auto" and with_gpus)
        return (recipe.threads or 1) + recipe.data.workers, int(on_gpu)

    def _check(self, names: Iterable[str]) -> list[str]:
        """Let each node look for the token and name its versions; return lines about those that differ.

        Raises:
            TutelageError: if a node does not see the folder of runs, lacks this package, or does not answer.
        """
        working, folder, token = self._place

        def probe() -> tuple[str, str, bool]:
            # Ray sends this as it stands, and not by its name: a node may lack this package.
            try:
                from tutelage.version import __version__ as version
            except ImportError as error:
                return str(error), "", False
            if Path(working).is_dir():
                os.chdir(working)
            path = Path(folder) / token
            return version, metadata.version("torch"), path.exists() and path.read_text(encoding="utf-8") == token

        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        remote = self._ray.remote(num_cpus=0, max_retries=0)(probe)
        asked = {
            name: remote.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(self._nodes[name]["NodeID"], soft=False)
            ).remote()
            for name in names
        }
        self._ray.wait(list(asked.values()), num_returns=len(asked), timeout=ANSWER)
        errors: list[TutelageError] = []
        lines = []
        for name, ref in asked.items():
            try:
                version, its_torch, sees = self._ray.get(ref, timeout=0)
            except Exception as error:  # noqa: BLE001  Ray's own, of which there are many
                expected, instead = f"an answer within {ANSWER:.0f} s", "type ray status, and look at the node's logs"
                errors.append(NetworkError(f"node {name}", expected, reason_of(error), instead))
                continue
            if version != __version__:
                got = f"tutelage {version}" if its_torch else version
                instead = "install the same version in every node's environment"
                errors.append(RunError(f"node {name}", f"tutelage {__version__}", got, instead))
            elif not sees:
                errors.append(unseen(folder, f"node {name}"))
            elif its_torch != (ours := metadata.version("torch")):
                lines.append(f"node {name}: torch {its_torch}, here {ours}: the bits may differ")
        raise_all(errors)
        return lines

    def drive(self, work: Callable[[], T], device: str) -> T:
        """Do the work that deals the runs."""
        return work()

    def call(self, work: Callable[..., T], *arguments: Any, options: RunOptions, recipe: Recipe) -> T:
        """Do some work in a task of this recipe's size, while no other is dealt, and return its value.

        The work is a function of a module, its arguments are pickled, and it has a reporter of its own.

        Raises:
            Exception: what the work raised.
        """
        self._deal((None, []), work, arguments, options, recipe)
        _, _, outcome = self._next(options.reporter)
        if outcome.error is not None:
            raise outcome.error
        return outcome.value

    def submit(
        self, key: object, planned: Runs, beside: Sequence[Recipe], options: RunOptions, how: Training | None = None
    ) -> None:
        """Deal a group of runs, whose progress is shown, to one task: to `train`, or another function like it."""
        self._deal((key, planned), partial(train_left, how=how or train), (planned, beside), options, planned[0][0])

    def next(self, reporter: Reporter) -> tuple[Any, Sequence[object]]:
        """Wait for a group; return its key, and of each run the error, if there is one."""
        key, planned, outcome = self._next(reporter)
        return key, outcome.value or [outcome.error] * len(planned)

    def _deal(
        self, dealt: tuple[object, Runs], work: Callable[..., Any], arguments: Any, options: RunOptions, recipe: Recipe
    ) -> None:
        """Deal some work, which may be called again where a node was lost."""
        cpus, gpus = self.resources(recipe)
        task = self._ray.remote(
            num_cpus=cpus,
            num_gpus=gpus,
            max_retries=RETRIES,
            retry_exceptions=False,
            scheduling_strategy="SPREAD",
        )(_perform)
        self._tasks[task.remote(self._place, recipe.threads or 1, work, arguments, options)] = dealt

    def _next(self, reporter: Reporter) -> tuple[Any, Runs, Outcome]:
        """Wait for some work to be done, and show meanwhile what is running."""
        told = time.monotonic()
        while not (done := self._ray.wait(list(self._tasks), num_returns=1, timeout=0)[0]):
            time.sleep(PAUSE)  # Not in Ray, which makes a KeyboardInterrupt of every signal.
            if time.monotonic() - told > QUIET:
                told = time.monotonic()
                if (line := self._progress()) != self._said:
                    self._said = line
                    reporter.say(line)
        key, planned = self._tasks.pop(done[0])
        try:
            outcome: Outcome = self._ray.get(done[0])
        except Exception as error:  # noqa: BLE001  Ray's own: the task is given up, or could not be begun
            expected = f"a node that lasts, in {1 + RETRIES} attempts"
            instead = "run the same command again to resume"
            outcome = Outcome(None, RunError("Ray", expected, reason_of(error), instead))
        for line in outcome.lines:
            reporter.say(line)
        return key, planned, outcome

    def _progress(self) -> str:
        """Return a line about the runs that have an epoch and are not done."""
        epochs = []
        for _, planned in self._tasks.values():
            for recipe, folder in planned:
                with contextlib.suppress(records.DamagedError, OSError):  # It is just being written.
                    if done := sum(1 for _ in records.read_epochs(folder)):
                        total = sum(fit.settings.epochs for fit in recipe.fits())
                        epochs.append(f"{recipe.name} {done}/{total}")
        rest = f" and {len(epochs) - SHOWN} more" if len(epochs) > SHOWN else ""
        return f"{plural(len(self._tasks), 'task')}; epochs: {', '.join(epochs[:SHOWN]) or 'none yet'}{rest}"

    def cancel(self) -> None:
        """Interrupt the tasks that are not done, which save what they have, and wait for them."""
        for ref in self._tasks:
            self._ray.cancel(ref)
        if self._tasks:
            self._ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=GRACE)
        self._tasks.clear()


@contextlib.contextmanager
def connected(address: str, folder: Path, recipe: Recipe, reporter: Reporter) -> Iterator[Cluster]:
    """Connect to a running cluster, and check its nodes; at the end cancel what is not done there.

    Args:
        address: address of the cluster as Ray takes it, such as ``10.0.0.1:6379``, or ``auto``.
        folder: folder of all runs, which every node has to see.
        recipe: recipe that says what a node needs.
        reporter: shows what the cluster is.

    Raises:
        MissingExtraError: if Ray is not installed.
        NetworkError: if no cluster answers there.
        TutelageError: if a node does not see the folder of runs, lacks this package, or none is large enough.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise missing_extra("--on", "ray", "ray", error) from error
    _require_answer(address)
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError) as error:
        raise _no_cluster(address, error) from error
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)  # Ray has one of its own for SIGTERM.
    token = f".driver-{uuid.uuid4().hex}"
    path = folder / token
    try:
        with records.writing(path):
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(token, encoding="utf-8")
        cluster = Cluster(ray, Place(str(Path.cwd()), str(folder), token), recipe, reporter)
        try:
            yield cluster
        finally:
            cluster.cancel()
    finally:
        path.unlink(missing_ok=True)
        ray.shutdown()


def _require_answer(address: str) -> None:
    """Refuse an address where nothing answers, at which Ray tries for minutes.

    Raises:
        InvalidValueError: if it is none.
        NetworkError: if nothing answers.
    """
    if address == "auto" and (address := os.environ.get("RAY_ADDRESS", "auto")) == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "//" in host:
        expected = "the head node's HOST:PORT, or auto"
        raise InvalidValueError("--address", expected, repr(address), "for example --address 10.0.0.1:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str, error: Exception) -> NetworkError:
    instead = "type ray start --head --include-dashboard=false on one machine, and the address that it names"
    return NetworkError("--address", "a Ray cluster", f"none at {address} ({reason_of(error)})", instead)


def _fitting(resources: dict[str, float], cpus: int, gpus: int) -> int:
    """Return how many tasks fit a node at a time."""
    return min(int(resources.get(kind, 0) // n) for kind, n in (("CPU", cpus), ("GPU", gpus)) if n)


def _described(resources: dict[str, float]) -> str:
    return " and ".join(plural(int(resources.get(kind, 0)), kind) for kind in ("CPU", "GPU"))


def _perform(
    place: Place, threads: int, work: Callable[..., Any], arguments: Sequence[Any], options: RunOptions
) -> Outcome:
    """Do some work in a task."""
    reporter = _Lines()
    try:
        place.enter()
        torch.set_num_threads(threads)
        return Outcome(work(*arguments, replace(options, reporter=reporter, shares_machine=True)), None, reporter.lines)
    except Exception as error:  # noqa: BLE001  whatever it is, the driver says what follows of it
        return Outcome(None, sendable(error), reporter.lines)


def train_left(
    group: Runs, beside: Sequence[Recipe], options: RunOptions, how: Training = train
) -> list[Exception | None]:
    """Train, in a task of a cluster, what of a group is not finished; return each run's error.

    The task may be done again after its node was lost: then some runs may be finished, and a process of that node may
    take a while to end.
    """
    left = [k for k, (_, path) in enumerate(group) if not finished(path)]
    until = time.monotonic() + LOST
    for k in left:
        with contextlib.suppress(BusyError), folder_lock(group[k][1], wait=max(0.0, until - time.monotonic())):
            pass
    results = dict(zip(left, how([group[k] for k in left], beside, options), strict=True)) if left else {}
    return [sendable(error) if isinstance(error := results.get(k), Exception) else None for k in range(len(group))]


def sendable(error: Exception) -> Exception:
    """Return what is `explained` of an error, in words alone where it cannot be pickled."""
    known = explained(error)
    try:
        pickle.loads(pickle.dumps(known))  # noqa: S301  of this process
    except Exception:  # noqa: BLE001  an error of anybody's code
        return RunError("run", "no error", reason_of(error), "see its manifest")
    return known
