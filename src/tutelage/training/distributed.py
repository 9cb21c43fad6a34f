"""Where a fit runs: the device, and the processes that share its steps. All calls of accelerate are here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tutelage.errors import InvalidValueError
from tutelage.types import UNLABELLED, Batch, Batches, Totals
from tutelage.views import map_views


def accelerator_on(device: str) -> Accelerator:
    """Return the process's accelerator for ``auto``, ``cpu`` or ``cuda``.

    There is one per process. Its own mixed precision stays off, as it would be fixed for every later run of the
    process.

    Raises:
        ValueError: if CUDA is requested but not available.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise InvalidValueError("device", "a CUDA device", "none that torch can see", "type device=cpu or device=auto")
    if AcceleratorState._shared_state and (AcceleratorState().device.type == "cpu") != _on_cpu(device):
        AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=_on_cpu(device), mixed_precision="no")


def _on_cpu(device: str) -> bool:
    return device == "cpu" or (device == "auto" and not torch.cuda.is_available())


def batches_on(
    accelerator: Accelerator, batches: Batches, epoch: int, start: int, *, channels_last: bool
) -> Iterator[Batch]:
    """Yield this process's share of an epoch's batches from step ``start`` on, moved to the device."""
    rank, world = accelerator.process_index, accelerator.num_processes
    for batch in batches.epoch(epoch, start=start, rank=rank, world=world):
        yield to_device(batch, accelerator.device, channels_last=channels_last)


def to_device(batch: Batch, device: torch.device, *, channels_last: bool) -> Batch:
    """Move a batch to the device, with images in the layout in which convolutions are fast."""

    def moved(view: Tensor) -> Tensor:
        layout = torch.channels_last if channels_last and view.ndim == 4 else torch.preserve_format
        return view.to(device, non_blocking=True, memory_format=layout)

    return Batch(
        batch.index.to(device, non_blocking=True),
        map_views(moved, batch.inputs),
        batch.labels.to(device, non_blocking=True),
        getattr(batch, "view", None),  # A user's loader may have its own kind of batches.
    )


def place(module: nn.Module, device: torch.device, *, channels_last: bool) -> None:
    """Move a module to the device, with convolution weights in the layout in which they are fast."""
    module.to(device)
    if channels_last:
        module.to(memory_format=torch.channels_last)


def wrap(module: nn.Module, accelerator: Accelerator, *, unsynchronised: list[str]) -> nn.Module:
    """Return what to call instead of a module so that processes average its gradients: for one process, the module.

    Buffers named in ``unsynchronised`` are not sent from the first process to the others before every step.
    """
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, unsynchronised)
    if accelerator.num_processes == 1:
        return module
    devices = None if accelerator.device.type == "cpu" else [accelerator.local_process_index]
    # An objective on features alone gives later layers no gradient, for which DDP would wait.
    return DistributedDataParallel(module, device_ids=devices, find_unused_parameters=True)


def local_gradients(module: nn.Module) -> AbstractContextManager[object]:
    """Return the context for the forward pass of any but a step's last micro-batch, which averages the gradients."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


def agreed(flag: Tensor, accelerator: Accelerator) -> Tensor:
    """Return whether a ``()`` bool is true in all processes."""
    if accelerator.num_processes == 1:
        return flag
    return accelerator.reduce(flag.float()) == accelerator.num_processes


def step_totals(batch: Batch, accelerator: Accelerator) -> Totals:
    """Count a step's samples and labels over all processes, as divisors of means."""
    samples = torch.full((), float(len(batch.index)), device=accelerator.device)
    labelled = samples if batch.labels.is_floating_point() else (batch.labels != UNLABELLED).sum().float()
    if accelerator.num_processes == 1:
        return Totals(samples, labelled)
    both = accelerator.reduce(torch.stack([samples, labelled])) / accelerator.num_processes
    return Totals(both[0], both[1])


def summed(values: Tensor, accelerator: Accelerator) -> list[float]:
    """Sum values over all processes; the host waits for the device."""
    return accelerator.reduce(values).tolist()
