"""Where a fit runs: the device, and the processes that share its steps. The only importer of accelerate."""

from __future__ import annotations

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from torch import nn

from tutelage.types import UNLABELLED, Batch, Totals


def accelerator_on(device: str) -> Accelerator:
    """Return the process's accelerator for ``auto``, ``cpu`` or ``cuda``.

    There is one per process. Its own mixed precision stays off: it would be fixed for every later run of the process.

    Raises:
        ValueError: CUDA is asked for and is not there.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: expected a CUDA device, got none that torch can see; type device=cpu or device=auto")
    if AcceleratorState._shared_state and (AcceleratorState().device.type == "cpu") != _on_cpu(device):
        AcceleratorState._reset_state(reset_partial_state=True)
    # An objective of features alone gives the layers behind them no gradient, which DDP would wait for.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    return Accelerator(cpu=_on_cpu(device), mixed_precision="no", kwargs_handlers=[unused])


def _on_cpu(device: str) -> bool:
    return device == "cpu" or (device == "auto" and not torch.cuda.is_available())


def step_totals(batch: Batch, accelerator: Accelerator) -> Totals:
    """Count a step's samples and labels over all processes, as means divide by them."""
    samples = torch.full((), float(len(batch.index)), device=accelerator.device)
    labelled = samples if batch.labels.is_floating_point() else (batch.labels != UNLABELLED).sum().float()
    if accelerator.num_processes == 1:
        return Totals(samples, labelled)
    both = accelerator.reduce(torch.stack([samples, labelled])) / accelerator.num_processes
    return Totals(both[0], both[1])


def keep_from_broadcast(module: nn.Module, names: list[str]) -> None:
    """Keep DDP from sending these buffers from the first process to the others before every step."""
    nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, names)
