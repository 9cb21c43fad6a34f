"""Batch norm over several processes: statistics of a step's samples in all of them, as one process has them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal, cast

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.nn.modules._functions import SyncBatchNorm as _TorchSyncBatchNorm
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from tutelage.errors import InvalidValueError, message
from tutelage.modules import Distiller
from tutelage.settings.fit import Switch
from tutelage.training.distributed import naming_process, world

Norms = Sequence[_BatchNorm]
"""Batch norms whose statistics are exchanged."""
Statistics = Literal["all processes", "each process"]
"""Whose samples batch norms take their statistics of in a step."""


def norms_to_synchronise(distiller: Distiller, wanted: Switch) -> Norms:
    """Return the batch norms of a student and its objective that exchange statistics; none with one process.

    Those of an objective's gathered terms see all processes' samples already.

    Raises:
        ValueError: if all are to, and one cannot: a scripted one, whose forward pass is fixed.
    """
    if world() == 1 or wanted is False:
        return ()
    norms, scripted = _norms(distiller)
    if scripted and wanted is True:
        instead = "pass the student before torch.jit.script, or type sync_bn=auto for the others alone"
        raise InvalidValueError("sync_bn", "batch norms that can be synchronised", ", ".join(scripted), instead)
    on_cuda = any(parameter.is_cuda for parameter in distiller.parameters())
    return [
        norm for norm in norms if not (on_cuda and isinstance(norm, nn.SyncBatchNorm))
    ]  # These do so by themselves.


def statistics_of(distiller: Distiller, wanted: Switch) -> Statistics | None:
    """Return whose samples batch norms take statistics of; ``None`` if there is one process, or no batch norm."""
    norms, scripted = _norms(distiller)
    if world() == 1 or not (norms or scripted):
        return None
    return "each process" if wanted is False or scripted else "all processes"


def local_statistics(distiller: Distiller, wanted: Switch) -> str | None:
    """Return a warning if batch norms take statistics of each process's own samples, which is another method.

    ``None`` if none does.
    """
    if statistics_of(distiller, wanted) != "each process":
        return None
    expected = "statistics of all processes' samples, as one process has them"
    got, instead = f"those of each of {world()} processes alone: another method", "type sync_bn=auto"
    if wanted is not False:
        _, scripted = _norms(distiller)
        got += f", in {', '.join(scripted)}"
        instead = "pass the student before torch.jit.script"
    return message("batch norm", expected, got, instead)


def _norms(distiller: Distiller) -> tuple[list[_BatchNorm], list[str]]:
    """Return the batch norms of each process's own samples, and the names of scripted ones."""
    gathered = {part for module in distiller.objective.gathered_modules for part in module.modules()}
    own = [(name, module) for name, module in distiller.named_modules() if module not in gathered]
    scripted = [name for name, module in own if "BatchNorm" in str(getattr(module, "original_name", ""))]
    return [module for _, module in own if isinstance(module, _BatchNorm)], scripted


@contextmanager
def synchronised(norms: Norms) -> Iterator[None]:
    """Let batch norms in training mode normalise by the statistics of all processes' samples.

    Enter this for a step, its backward pass included; all processes call the norms in the same order. They change
    their class in place, so names, state and hooks stay, and are given back as they came.
    """
    classes: list[type] = [type(norm) for norm in norms]
    try:
        for norm, own in zip(norms, classes, strict=True):
            norm.__class__ = _synchronised_class(own)
        yield
    finally:
        for norm, own in zip(norms, classes, strict=True):
            norm.__class__ = own


@cache
def _synchronised_class(own: type) -> type:
    return type(own.__name__, (_Synchronised, own), {})


class _Synchronised(nn.Module):
    """Runs a batch norm's own forward pass, whatever it does besides, with `F.batch_norm` over all processes."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        with _OverProcesses():
            # Torch's synchronised one is for GPUs alone.
            own: Any = super(nn.SyncBatchNorm, self) if isinstance(self, nn.SyncBatchNorm) else super()
            return cast(Tensor, own.forward(*args, **kwargs))


class _OverProcesses(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (batch_norm if func is F.batch_norm else func)(*args, **(kwargs or {}))


def batch_norm(
    inputs: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Compute `torch.nn.functional.batch_norm` with the statistics of all processes' inputs.

    On CUDA this is torch's own, of `torch.nn.SyncBatchNorm`, in which the host waits for the device.
    """
    if not training or world() == 1:
        return F.batch_norm(inputs, running_mean, running_var, weight, bias, training, momentum, eps)
    if inputs.is_cuda:
        running = running_mean, running_var
        group = distributed.group.WORLD
        return cast(Tensor, _TorchSyncBatchNorm.apply(inputs, weight, bias, *running, eps, momentum, group, world()))
    return cast(Tensor, _Normalise.apply(inputs, weight, bias, running_mean, running_var, momentum, eps))


class _Normalise(torch.autograd.Function):
    """Batch norm over processes, of which each may have another number of samples.

    Statistics are computed in at least float32 and joined in float64: from each process's count, mean and variance, the
    mean of all and, about it, the variance of all. Sums of squares would cancel.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        wide = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
        axes = [axis for axis in range(inputs.ndim) if axis != 1]
        variance, mean = torch.var_mean(wide, axes, correction=0)
        share = torch.stack([torch.full_like(mean, inputs.numel() // inputs.shape[1]), mean, variance]).double()
        shares = [torch.empty_like(share) for _ in range(world())]
        with naming_process():
            distributed.all_gather(shares, share)
        counts, means, variances = torch.stack(shares, dim=1)
        count = counts.sum(0)
        mean = (counts * means).sum(0) / count
        variance = (counts * (variances + (means - mean).square())).sum(0) / count
        for running, value in ((running_mean, mean), (running_var, variance * count / (count - 1))):
            if running is not None:
                running.mul_(1 - momentum).add_(momentum * value)
        mean, variance = mean.to(wide.dtype), variance.to(wide.dtype)
        ctx.save_for_backward(inputs, weight, mean, (variance + eps).rsqrt(), count)
        return F.batch_norm(wide, mean, variance, weight, bias, False, 0.0, eps).to(inputs.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, mean, scale, count = ctx.saved_tensors
        by_inputs, by_weight, by_bias, *_ = ctx.needs_input_grad
        axes, shape = [axis for axis in range(inputs.ndim) if axis != 1], (1, -1, *[1] * (inputs.ndim - 2))
        wide = gradient.to(mean.dtype)
        normalised = (inputs - mean.view(shape)) * scale.view(shape)
        sums = torch.stack([wide.sum(axes), (wide * normalised).sum(axes)])
        own = sums.to(gradient.dtype if weight is None else weight.dtype)
        result = None
        if by_inputs:
            both = sums.to(torch.float64, copy=True)
            with naming_process():
                distributed.all_reduce(both)
            first, second = (both / count).to(wide.dtype)
            slope = scale if weight is None else scale * weight
            result = (wide - first.view(shape) - normalised * second.view(shape)) * slope.view(shape)
            result = result.to(inputs.dtype)
        return result, own[1] if by_weight else None, own[0] if by_bias else None, None, None, None, None
