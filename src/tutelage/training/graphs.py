"""Work on a device that is captured once as a graph and replayed: one launch instead of hundreds.

Captured work is a function of tensors that keep their memory. It reads no value on the host, and a replay repeats what
the device did, not what Python did.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from tutelage.errors import RunError
from tutelage.settings.fit import Switch
from tutelage.training.generators import host_generators
from tutelage.training.host_waits import HostWaits, KeptTensors
from tutelage.types import Batch
from tutelage.views import views_of, with_own_inputs

T = TypeVar("T")


class Graph(Protocol):
    """Captured work."""

    def replay(self) -> None:
        """Repeat the work, after pending work on the current stream; the host waits for nothing."""

    def join(self) -> None:
        """Order further work on the current stream after the last replay."""


class NotCapturableError(Exception):
    """A step must be computed eagerly; the message says why."""


class CaptureError(RunError):
    """Work that was expected to be capturable was refused; the process cannot capture again."""


class CudaGraph:
    """A CUDA graph: a `Graph`.

    It has its own memory, so that replays of several graphs may overlap. Its random numbers come from the generator
    that is the device's default during the capture.

    Args:
        work: function that runs on the device alone and has run before.
        device: CUDA device.
        apart: whether to replay on a separate stream, beside others; `join` it.
    """

    def __init__(self, work: Callable[[], None], device: torch.device, *, apart: bool = False) -> None:
        self._graph = torch.cuda.CUDAGraph()
        self._stream = torch.cuda.Stream(device) if apart else None
        # Threads that pin memory call CUDA meanwhile, which the global mode would refuse.
        with _own_workspaces(), torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            work()

    def replay(self) -> None:
        """Replay the graph."""
        if self._stream is None:
            self._graph.replay()
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self._graph.replay()

    def join(self) -> None:
        """Let the current stream wait for the last replay."""
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)


@contextmanager
def _own_workspaces() -> Iterator[None]:
    """Give a capture its own workspaces.

    cuBLAS keeps a workspace per stream. All captures are on the same stream, so graphs would share the first one's,
    which overlapping replays would overwrite and which would be freed with it. Once cleared, each allocates its own.
    Also, garbage collection may not destroy another graph meanwhile, which would end the capture.
    """
    collecting = gc.isenabled()
    gc.disable()
    torch._C._cuda_clearCublasWorkspaces()
    try:
        yield
    finally:
        torch._C._cuda_clearCublasWorkspaces()
        if collecting:
            gc.enable()


class Capture(Protocol):
    """A way to capture work on a kind of device."""

    def __call__(self, work: Callable[[], None], device: torch.device, *, apart: bool = False) -> Graph:
        """Capture some work; whether that also performs it is undefined."""


CAPTURES: dict[str, Capture] = {"cuda": CudaGraph}
"""Ways to capture work, by type of device. A fit's optimizer there is fused, so that it can be captured."""

WARM_UP = 2
"""Number of runs before work is watched and captured: libraries allocate and choose in the first ones."""


def warm_up(work: Callable[[], object], device: torch.device) -> None:
    """Run work as often as a capture needs, on a side stream, as captures do.

    Raises:
        NotCapturableError: if it would make the host wait, draws on the host, or keeps tensors from one run to the
            next. A refused capture would leave the device's generator unusable; a replay would repeat numbers and
            tensors.
    """
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    if stream is not None:
        stream.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                work()
            drawn = host_generators(torch_too=device.type != "cpu")
            with HostWaits(device) as waits, KeptTensors() as kept:
                work()
                kept.next_run()
                work()
    finally:
        if stream is not None:
            torch.cuda.current_stream().wait_stream(stream)
    if waits.found:
        raise NotCapturableError(f"the host waits for the device: {', '.join(sorted(waits.found))}")
    if host_generators(torch_too=device.type != "cpu") != drawn:
        raise NotCapturableError("random numbers that are drawn on the host, which a replay would repeat")
    if kept.found:
        raise NotCapturableError(
            f"tensors that one step makes and the next one reads, other than buffers: {', '.join(sorted(kept.found))}"
        )


def _capture(work: Callable[[], None], device: torch.device, *, apart: bool = False) -> Graph:
    """Capture work that has been warmed up.

    Raises:
        CaptureError: if the device refused.
    """
    try:
        return CAPTURES[device.type](work, device, apart=apart)
    except Exception as error:
        instead = (
            "this process may refuse to draw on the device from now on: run the same command with "
            "graphs=false, which resumes"
        )
        raise CaptureError("graphs", "to capture a step", f"{type(error).__name__}: {error}", instead) from error


def capturing(device: torch.device, *, wanted: Switch) -> Callable[[Callable[[], None]], Callable[[], None]] | None:
    """Return a function that turns work on a device into its replay; ``None`` if nothing is to be captured.

    Capturing performs the work several times.
    """
    if device.type not in CAPTURES or wanted is False:
        return None

    def replayed(work: Callable[[], None]) -> Callable[[], None]:
        try:
            warm_up(work, device)
        except NotCapturableError:
            return work
        return _capture(work, device).replay

    return replayed


class Captured(Generic[T]):
    """A function of a batch, captured for batches of one shape.

    Args:
        function: function that runs on the device alone and has run before. It may write into the batch.
        batch: first batch; the graph reads its own memory, as a user's batches may be parts of a data set.
        apart: whether to use a separate stream, as for `CudaGraph`.

    Attributes:
        batch: batch in the memory that the graph reads.
        result: result of the function during the capture; a call renews its tensors.

    Raises:
        CaptureError: if the device refused.
    """

    def __init__(self, function: Callable[[Batch], T], batch: Batch, *, apart: bool = False) -> None:
        counted = None if batch.counted is None else batch.counted.clone()
        self.batch = with_own_inputs(batch)._replace(
            index=batch.index.clone(), labels=batch.labels.clone(), counted=counted
        )
        device = batch.index.device

        def work() -> None:
            self.result = function(self.batch)

        self._graph = _capture(work, device, apart=apart)

    def fits(self, batch: Batch) -> bool:
        """Whether a batch has the shape that was captured."""
        mine, its = _tensors(self.batch), _tensors(batch)
        return len(mine) == len(its) and all(map(_alike, mine, its))

    def __call__(self, batch: Batch) -> T:
        """Call the function on a batch that `fits`, copied to where the graph reads it."""
        for slot, tensor in zip(_tensors(self.batch), _tensors(batch), strict=True):
            slot.copy_(tensor, non_blocking=True)
        self._graph.replay()
        return self.result

    def join(self) -> None:
        """Order further work after the last replay, as `Graph.join`."""
        self._graph.join()


def _tensors(batch: Batch) -> tuple[Tensor, ...]:
    counted = () if batch.counted is None else (batch.counted,)
    return batch.index, *views_of(batch.inputs), batch.labels, *counted


def _alike(one: Tensor, other: Tensor) -> bool:
    return (one.shape, one.dtype) == (other.shape, other.dtype)
