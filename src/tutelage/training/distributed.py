"""Where a fit runs: the device, and the processes that share its steps. All calls of accelerate are here.

Every process runs the same code. What only one may do, such as locking, deciding and writing, is done `by_main`; its
result, or its error, reaches all. With one process each of these calls just does the work. (Trackers by accelerate are
opened in `trackers`.)
"""

from __future__ import annotations

import atexit
import gc
import itertools
import os
import pickle
import threading
import time
import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ParamSpec, TypeVar

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.state import AcceleratorState, PartialState
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from tutelage import launcher
from tutelage.errors import InvalidValueError, RunError, TutelageError, explained, message, reason_of
from tutelage.settings.fit import FitSettings, Precision
from tutelage.training.precision import network_dtype
from tutelage.types import UNLABELLED, Batch, Batches, Totals
from tutelage.views import map_views

P = ParamSpec("P")
M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")
R = TypeVar("R")

ALIKE = 20.0
"""Seconds within which all processes have an error that is one of all."""
CLOSED = 10.0
"""Seconds that a script's end waits for its last exchanges."""
LATE = 60.0
"""Seconds after which it is told that other processes are waited for."""
TIMEOUT = timedelta(minutes=30)
"""Longest time that a process waits for the others. The first opening of a large folder, which the others wait for, has
to be done by then."""


class ProcessError(RunError):
    """Another process failed, or did not answer."""


class AloneError(ProcessError):
    """This process failed alone; the others may be in an exchange, so there can be no other with them."""


def accelerator_on(device: str) -> Accelerator:
    """Return the process's accelerator for ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    There is one per process. Its own mixed precision stays off, as it would be fixed for every later run of the
    process. ``cuda:N`` makes this GPU torch's current one, which ``cuda`` stands for.

    Raises:
        ValueError: if CUDA is requested but not available, or has no such GPU.
        ProcessError: if the processes met, and the group was destroyed since.
    """
    require_device(device)
    if PartialState._shared_state and PartialState().num_processes > 1 and not _met():
        expected, got = "the group in which the processes met", "none: it was destroyed"
        instead = "leave destroy_process_group and end_training to the script's end, or go on in another script"
        raise ProcessError("processes", expected, got, instead)
    if index := device.partition(":")[2]:
        torch.cuda.set_device(int(index))
    if AcceleratorState._shared_state and (AcceleratorState().device.type == "cpu") != _on_cpu(device):
        AcceleratorState._reset_state(reset_partial_state=True)
    waits = InitProcessGroupKwargs(timeout=TIMEOUT)
    atexit.unregister(_close_at_exit)
    atexit.register(_close_at_exit)
    with _telling_of_others():
        return Accelerator(cpu=_on_cpu(device), mixed_precision="no", kwargs_handlers=[waits])


@contextmanager
def _telling_of_others() -> Iterator[None]:
    """Warn if the other processes of a launch do not come within `LATE` seconds: nothing else would say so."""
    if launcher.world_size() == 1 or _met():
        yield
        return
    place = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
    expected, got = f"all {launcher.world_size()} to meet at {place}", f"some that did not come within {LATE:.0f} s"
    instead = "look at the messages of the others, and at the address and the port"
    timer = threading.Timer(LATE, warnings.warn, [message("processes", expected, got, instead)])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def require_device(device: str) -> None:
    """Refuse a device that is not there.

    Raises:
        ValueError: so; it says what is.
    """
    kind, _, index = device.partition(":")
    if kind != "cuda":
        return
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise InvalidValueError("device", "a CUDA device", "none that torch can see", "type device=cpu or device=auto")
    if index and launcher.world_size() > 1:
        got = f"{device} in each of {launcher.world_size()} processes"
        raise InvalidValueError("device", "cuda, as each process has a GPU of its own", got, "type device=cuda")
    if index and int(index) >= count:
        expected = f"a GPU from cuda:0 to cuda:{count - 1}, as torch sees {count}"
        raise InvalidValueError("device", expected, device, f"type device=cuda:{count - 1} or device=cuda")


def _on_cpu(device: str) -> bool:
    return device == "cpu" or (device == "auto" and not torch.cuda.is_available())


def world() -> int:
    """Return the number of processes that take part in what is done now: 1 inside `by_main`."""
    return 1 if _alone or not _met() else distributed.get_world_size()


def rank() -> int:
    """Return this process's number among those that take part, from 0."""
    return 0 if world() == 1 else distributed.get_rank()


def is_main() -> bool:
    """Whether this process decides, locks, writes and shows."""
    return not _met() or distributed.get_rank() == 0


def _met() -> bool:
    return distributed.is_available() and distributed.is_initialized()


_alone = False
"""Whether the main process works alone, so that nothing is exchanged."""


@contextmanager
def _working_alone(alone: bool) -> Iterator[None]:
    global _alone
    before, _alone = _alone, alone
    try:
        yield
    finally:
        _alone = before


def part() -> None:
    """Part from the other processes, once all have come here.

    The threads that exchange for the group end with it. One that outlives the interpreter, and then gives up a tensor
    that Python knows of, aborts the process: https://github.com/pytorch/pytorch/issues/190489.
    """
    if _met():
        with naming_process():
            distributed.barrier()
        _close()


def _close() -> None:
    distributed.destroy_process_group()
    gc.collect()  # Networks that were sharded refer to the group, and to themselves.


def _close_at_exit() -> None:
    """Close a script's group at its end, for which it does not wait long: an error may have left an exchange open."""
    if _met():
        closing = threading.Thread(target=_close, daemon=True)
        with suppress(RuntimeError):  # Some versions of Python 3.12 start no thread at the end.
            closing.start()
            closing.join(CLOSED)


def by_main(work: Callable[[], T]) -> T:
    """Let the main process do some work alone, and return its result in all; it must be possible to pickle it.

    What the work hands to `together` is done by all.

    Raises:
        Exception: what the work raised, in all processes.
        ProcessError: if another process is gone, or did not answer in time.
    """
    if world() == 1:
        return work()
    if is_main():
        with _working_alone(True):
            result, error = _outcome(work)
        if isinstance(error, AloneError):
            raise error
        _broadcast((None, result, error))
    else:
        result, error = _follow()
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


def together(work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """Within `by_main`, let all processes do some work; in the main one, return its result.

    The others get function, arguments and options pickled. An error ends the work in all: it is the main process's.
    """
    if not _alone:
        return work(*arguments, **options)
    with _working_alone(False):
        _broadcast((work, arguments, options))
        return _with_the_others(work, *arguments, **options)


_handed = itertools.count()  # the same in all processes


def _with_the_others(work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """Do work that was handed to all; an error of it is one of all."""
    number = next(_handed)
    try:
        return work(*arguments, **options)
    except Exception as error:
        require_of_all(error, f"together/{number}")
        raise


def _follow() -> tuple[Any, Exception | None]:
    """Take part in what the main process hands to `together`, until it is done; return its result and its error."""
    while True:
        work, arguments, options = _broadcast(None)
        if work is None:
            return arguments, options
        try:
            _with_the_others(work, *arguments, **options)
        except Exception as error:  # The main process has it too, and says what follows of it.
            if isinstance(error, AloneError) or exchange_failed(error):
                raise


def _broadcast(value: Any) -> Any:
    """Return the main process's value in all."""
    box = [value]
    with naming_process():
        distributed.broadcast_object_list(box, src=0)
    return box[0]


def by_all(work: Callable[[], T]) -> T:
    """Do some work in every process, and return this one's result once all are done.

    Raises:
        Exception: what it raised in this process.
        ProcessError: if it failed in others alone.
    """
    if world() == 1:
        return work()
    result, error = _outcome(work)
    _require_none(error, gathered_objects(error))
    return result  # type: ignore[return-value]


def of_all(work: Callable[[], T]) -> list[T]:
    """Do some work in every process, and return every one's result, by its number; it must be possible to pickle them.

    Raises:
        Exception: as `by_all` does.
    """
    if world() == 1:
        return [work()]
    own = _outcome(work)
    results, errors = zip(*gathered_objects(own), strict=True)
    _require_none(own[1], errors)
    return list(results)


def _require_none(own: Exception | None, errors: Sequence[Exception | None]) -> None:
    """Raise this process's error, or say of the first other one that has an error."""
    if own is not None:
        raise own
    for number, error in enumerate(errors):
        if error is not None:
            raise ProcessError(f"process {number} of {world()}", "no error", reason_of(error), "see its message")


def one_a_node_first(work: Callable[[], T]) -> T:
    """Let one process of each machine do some work first, such as a download that is kept, and then the others."""
    if world() == 1:
        return work()
    first = launcher.local_rank() == 0
    result = by_all(work if first else lambda: None)
    others = by_all((lambda: None) if first else work)
    return result if first else others  # type: ignore[return-value]


def once_a_node(work: Callable[[], T]) -> T:
    """Let one process of each machine do some work, and return its result, pickled, in the others of the machine.

    What cannot be pickled is done by each.
    """
    if world() == 1:
        return work()
    first = launcher.local_rank() == 0
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="tutelage-"))) if first else None

        def write() -> T | None:
            if folder is None:
                return None
            result = work()
            with suppress(TypeError, AttributeError, pickle.PicklingError):
                (folder / "result").write_bytes(pickle.dumps(result, protocol=pickle.HIGHEST_PROTOCOL))
            return result

        result = by_all(write)
        folders = gathered_objects(folder)

        def read() -> T:
            if result is not None:
                return result
            path = (folders[rank() - launcher.local_rank()] or Path()) / "result"
            return pickle.loads(path.read_bytes()) if path.exists() else work()  # noqa: S301  from this very run

        return by_all(read)


def gathered_objects(value: T) -> list[T]:
    """Return every process's value, by its number; it must be possible to pickle them."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    with naming_process():
        distributed.all_gather_object(values, value)
    return values


def dealt(items: Sequence[T], work: Callable[[Sequence[T]], Iterable[R]]) -> Iterator[R]:
    """Deal items to the processes in turn, and yield what some work makes of each, in their order, in every process.

    Args:
        items: items, the same in all processes.
        work: function that yields a result, which it must be possible to pickle, for each item of this process. One
            result of each process is held at a time.

    Raises:
        Exception: as `by_all` does, in the round of the item that the work failed at.
    """
    results = iter(work(items[rank() :: world()]))

    def own(place: int) -> list[R]:
        return [next(results)] if place < len(items) else []

    for first in range(0, len(items), world()):
        for found in of_all(partial(own, first + rank())):
            yield from found


@contextmanager
def entered_by_main(context: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """Enter a context, such as a lock, in the main process alone; an error of entering it reaches all."""
    with ExitStack() as stack:
        by_main(lambda: stack.enter_context(context()) and None)
        yield


@contextmanager
def naming_process() -> Iterator[None]:
    """Say of a failed exchange between processes which process it failed in.

    Raises:
        ProcessError: if another process is gone, or did not answer in time.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if not _met() or isinstance(error, TutelageError) or not _is_of_exchange(error):
            raise
        expected = f"an answer of all {distributed.get_world_size()} processes within {TIMEOUT}"
        instead = "see the message of the process that failed, and run the same command again to resume"
        raise ProcessError(f"process {distributed.get_rank()}", expected, reason_of(error), instead) from error


def exchange_failed(error: BaseException) -> bool:
    """Whether an error comes of an exchange that failed, after which there can be no other."""
    below = error.__cause__ if isinstance(error, ProcessError) else error
    return isinstance(below, Exception) and _is_of_exchange(below)


_EXCHANGE = (
    "gloo",
    "nccl",
    "connection closed",
    "connection reset",
    "timed out",
    "timeout",
    "broken pipe",
    "socket",
    "tcpstore",
)


def _is_of_exchange(error: Exception) -> bool:
    """Whether an error comes of torch's exchange between processes; gloo raises plain RuntimeErrors."""
    return any(word in str(error).lower() for word in _EXCHANGE)


def require_of_all(error: Exception, key: str) -> None:
    """Return if all processes have an error at this place, so that they can go on together; with one process, always.

    Raises:
        AloneError: if this one has it alone.
        Exception: the error, if it comes of an exchange that failed, or is such a one already.
    """
    if world() == 1:
        return
    if isinstance(error, AloneError) or exchange_failed(error):
        raise error
    if not all_say(key):
        expected, instead = "no error in one process alone", "mend that, and run the same command again to resume"
        raise AloneError("training", expected, reason_of(error), instead) from error


def all_say(key: str) -> bool:
    """Say that something happened in this process, and return whether it happened in all within `ALIKE` seconds.

    This goes by the store in which the processes met: one that did not fail may be in an exchange with no one.
    """
    try:
        store = distributed.distributed_c10d._get_default_store()
        end, said = time.monotonic() + ALIKE, store.add(key, 1)
        while said < world() and time.monotonic() < end:
            time.sleep(0.05)
            said = store.add(key, 0)
        return said >= world()
    except RuntimeError:  # The store's host is gone.
        return False


def _outcome(work: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return work(), None
    except Exception as error:  # noqa: BLE001  whatever it is, the other processes are not to wait for a result
        return None, explained(error)


def batches_on(
    accelerator: Accelerator, batches: Batches, epoch: int, start: int, settings: FitSettings
) -> Iterator[Batch]:
    """Yield this process's share of an epoch's batches from step ``start`` on, moved to the device."""
    rank, world, dtype = accelerator.process_index, accelerator.num_processes, network_dtype(settings.precision)
    for batch in batches.epoch(epoch, start=start, rank=rank, world=world):
        yield to_device(batch, accelerator.device, channels_last=settings.channels_last, dtype=dtype)


def to_device(batch: Batch, device: torch.device, *, channels_last: bool, dtype: torch.dtype | None = None) -> Batch:
    """Move a batch to the device, with images in the layout in which convolutions are fast.

    Floating point inputs are cast to ``dtype`` if there is one.
    """

    def moved(view: Tensor) -> Tensor:
        layout = torch.channels_last if channels_last and view.ndim == 4 else torch.preserve_format
        kind = dtype if view.is_floating_point() else None
        return view.to(device, kind, non_blocking=True, memory_format=layout)

    counted = getattr(batch, "counted", None)  # A user's loader may have its own kind of batches.
    return Batch(
        batch.index.to(device, non_blocking=True),
        map_views(moved, batch.inputs),
        batch.labels.to(device, non_blocking=True),
        getattr(batch, "view", None),
        counted if counted is None else counted.to(device, non_blocking=True),
    )


def cast_module(module: M, precision: Precision) -> M:
    """Make a module's parameters and buffers float64 under ``fp64``, and return it."""
    return module.double() if network_dtype(precision) == torch.float64 else module


def place(module: nn.Module, device: torch.device, settings: FitSettings) -> None:
    """Move a module to the device, with convolution weights in the layout in which they are fast.

    Under ``fp64`` its parameters and buffers become float64.
    """
    cast_module(module, settings.precision).to(device)
    if settings.channels_last:
        module.to(memory_format=torch.channels_last)


def wrap(module: nn.Module, accelerator: Accelerator, *, unsynchronised: list[str]) -> nn.Module:
    """Return what to call instead of a module so that processes average its gradients: for one process, the module.

    Buffers named in ``unsynchronised`` are not sent from the first process to the others before every step, nor are the
    gradients of parameters named there, which someone else averages.
    """
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, unsynchronised)
    averaged = [p for name, p in module.named_parameters() if p.requires_grad and name not in unsynchronised]
    if accelerator.num_processes == 1 or not averaged:
        return module
    devices = None if accelerator.device.type == "cpu" else [accelerator.local_process_index]
    # An objective on features alone gives later layers no gradient, for which DDP would wait.
    return DistributedDataParallel(module, device_ids=devices, find_unused_parameters=True)


def share_buffers(module: nn.Module, *, but: Container[str]) -> None:
    """Give all processes the first one's buffers, but those of some names, as `wrap` does before every step."""
    share(buffer for name, buffer in module.named_buffers() if name not in but)


def share(tensors: Iterable[Tensor]) -> None:
    """Give all processes the values that these tensors have in the first one."""
    for tensor in tensors if world() > 1 else ():
        values = tensor.detach().contiguous()
        with naming_process():
            distributed.broadcast(values, src=0)
        tensor.copy_(values)


def local_gradients(module: nn.Module) -> AbstractContextManager[object]:
    """Return the context for the forward pass of any but a step's last micro-batch, which averages the gradients."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


def step_totals(batch: Batch, accelerator: Accelerator, precision: Precision) -> Totals:
    """Count a step's samples, positions and labels over all processes, as divisors of means."""
    dtype, counted, soft = network_dtype(precision) or torch.float32, batch.counted, batch.labels.is_floating_point()

    samples = positions = torch.full((), float(len(batch.index)), device=accelerator.device, dtype=dtype)
    if counted is not None:
        positions = counted.sum().to(dtype)
    elif (shape := batch.labels.shape[:-1] if soft else batch.labels.shape) != batch.index.shape:
        positions = torch.full_like(samples, float(shape.numel()))
    labelled = positions
    if not soft:
        known = batch.labels != UNLABELLED
        labelled = (known if counted is None else known & counted).sum().to(dtype)
    if accelerator.num_processes == 1:
        return Totals(samples, labelled, positions)
    return Totals(*(summed(torch.stack([samples, labelled, positions]), accelerator) / accelerator.num_processes))


def summed(values: Tensor, accelerator: Accelerator) -> Tensor:
    """Sum values over all processes."""
    return values if accelerator.num_processes == 1 else accelerator.reduce(values)


def sent(numbers: list[Any], to: Tensor) -> Tensor:
    """Return numbers in memory that can be copied to a device without the host waiting."""
    return torch.tensor(numbers, dtype=to.dtype, pin_memory=to.device.type == "cuda")
