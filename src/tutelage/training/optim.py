"""Optimizers, their state as stored in checkpoints, and learning rates.

A rate is a pure function of the step's position in the run; there is no schedule object to restore.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.errors import InvalidValueError
from tutelage.settings.fit import SGD, Constant, LibraryOptimizer, MultiStep, Optimizer, Schedule, Step
from tutelage.training import layers, library_optimizers
from tutelage.training.checkpoints import Checkpoint, under


def build(
    settings: Optimizer, module: nn.Module, *, fused: bool, shares: Mapping[int, nn.Parameter] = {}
) -> torch.optim.Optimizer:
    """Build the optimizer of a module's trainable parameters, or of this process's ``shares`` by their ids.

    The ``fused`` form can be captured in a graph: its rate may be a tensor, and it skips a non-finite step without
    involving the host. All its state exists from the beginning.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    if not parameters:
        raise InvalidValueError("student", "trainable parameters", "none", "unfreeze it with requires_grad_(True)")
    own = {id(p): shares.get(id(p), p) for p in parameters}
    groups = _groups(settings, module, own)
    if isinstance(settings, LibraryOptimizer):
        return library_optimizers.build(settings, groups)
    options = {field.name: getattr(settings, field.name) for field in fields(settings) if field.name not in _OURS}
    optimizer: torch.optim.Optimizer
    if isinstance(settings, SGD):
        optimizer = torch.optim.SGD(groups, **options, fused=fused)
    else:
        optimizer = torch.optim.AdamW(groups, **options, fused=fused, capturable=fused)
    if fused:
        _complete(optimizer)
    return optimizer


_OURS = ("name", "layer_decay")
"""Settings that are no argument of torch's optimizers."""


def may_be_fused(settings: Optimizer) -> bool:
    """Whether an optimizer has a form that can be captured."""
    return not isinstance(settings, LibraryOptimizer)


def _groups(settings: Optimizer, module: nn.Module, own: Mapping[int, nn.Parameter]) -> list[dict[str, Any]]:
    """Return groups of parameters, each with its weight decay, and with its layer's share of the rate if they differ.

    Args:
        settings: settings of the optimizer.
        module: module whose parameters they are, such as a distiller, whose student may have layers.
        own: parameters to train by their ids in the module.
    """
    exempt = set() if isinstance(settings, SGD) else _exempt(module)
    scales = layers.scales(module, settings.layer_decay)
    kinds = sorted({(scales.get(key, 1.0), key in exempt) for key in own})
    groups = []
    for scale, free in kinds:
        group: dict[str, Any] = {
            "params": [p for key, p in own.items() if (scales.get(key, 1.0), key in exempt) == (scale, free)]
        }
        group |= {"weight_decay": 0.0} if free else {}
        groups.append(group | ({SCALE: scale} if scales else {}))
    return groups


SCALE = "lr_scale"
"""Key of a group's share of the learning rate; one without it has all of it."""


def _complete(optimizer: torch.optim.Optimizer) -> None:
    """Give every parameter the state that a fused optimizer would create for it in a step.

    Created there, it would lie in a graph's own memory, and SGD's would stay uninitialised if the step is skipped. A
    checkpoint written on a CPU lacks the state of parameters that had no gradient yet.
    """
    for group in optimizer.param_groups:
        adam = "betas" in group
        names = ("exp_avg", "exp_avg_sq") if adam else ("momentum_buffer",) if group["momentum"] else ()
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            for name in names:
                if state.get(name) is None:
                    state[name] = torch.zeros_like(parameter)
            if adam and "step" not in state:
                state["step"] = torch.zeros((), device=parameter.device)


def _exempt(module: nn.Module) -> set[int]:
    """Return the ids of parameters without decay: one-dimensional, or listed by their network."""
    exempt = {id(p) for p in module.parameters() if p.ndim <= 1}
    for part in module.modules():
        listed = getattr(part, "no_weight_decay", None)
        if callable(listed):
            names = set(listed())
            exempt |= {id(p) for name, p in part.named_parameters() if name in names}
    return exempt


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return an optimizer's state as stored in a checkpoint: tensors, and plain values."""
    content = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for i, values in content["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{i}.{name}"] = value
            else:
                plain.setdefault(str(i), {})[name] = value
    groups = [
        {key: float(v) if isinstance(v, Tensor) else v for key, v in group.items() if not isinstance(v, torch.dtype)}
        for group in content["param_groups"]
    ]
    return tensors, {"plain": plain, "groups": groups}


def may_have(settings: Optimizer, shape: torch.Size, parameter: Tensor) -> bool:
    """Whether a tensor of this shape may be in the state of a parameter: a number, or one for each of its values.

    Some of a library's optimizers keep sums over some of its axes instead.
    """
    if isinstance(settings, LibraryOptimizer):
        return len(shape) <= parameter.ndim and all(size == 1 or size in parameter.shape for size in shape)
    return shape in (torch.Size(()), parameter.shape)


def restore_optimizer(optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> None:
    """Restore an optimizer's state from a checkpoint."""
    content = checkpoint.state["optimizer"]
    moments: dict[int, dict[str, Any]] = {int(i): dict(values) for i, values in content["plain"].items()}
    for name, tensor in under("optimizer.", checkpoint.tensors).items():
        i, key = name.split(".", 1)
        moments.setdefault(int(i), {})[key] = tensor
    # How the optimizer is computed depends on the device, which may differ from the checkpoint's.
    form = [{key: group[key] for key in ("fused", "capturable") if key in group} for group in optimizer.param_groups]
    # A group that was built may have what is no plain value, and so not saved.
    built = zip(optimizer.param_groups, content["groups"], form, strict=True)
    groups = [{**group, **saved, **own} for group, saved, own in built]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    numbered = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, saved in moments.items():
        parameter = numbered[number]
        values = optimizer.state[parameter]
        for name, value in values.items():
            # Copies: a checkpoint may be resumed twice. Fused forms need moments in their parameter's memory layout.
            if isinstance(value, Tensor):
                like = parameter if value.shape == parameter.shape else value
                # torch gives moments the parameter's dtype; some optimizers have theirs in another.
                source = saved.get(name, value)
                values[name] = torch.empty_like(like, dtype=source.dtype, device=value.device).copy_(source)
    if optimizer.defaults.get("fused"):
        _complete(optimizer)


def learning_rate(schedule: Schedule, peak: float, *, epoch: int, begin: float, end: float, epochs: int) -> float:
    """Return the rate of one step.

    Args:
        schedule: shape of the schedule.
        peak: peak rate, the optimizer's ``lr``.
        epoch: number of epochs before this one.
        begin: fraction of the epoch done before the step, in [0, 1): a decay follows it, so that its first rate is
            the peak.
        end: fraction of the epoch done after the step, in (0, 1]: a warm-up follows it, so that its first rate is
            not 0.
        epochs: number of epochs in the whole run.
    """
    if epoch + end < schedule.warmup:
        return peak * (epoch + end) / schedule.warmup
    match schedule:
        case Constant():
            return peak
        case Step():
            return peak * schedule.factor ** (epoch // schedule.every)
        case MultiStep():
            return peak * schedule.factor ** sum(epoch >= milestone for milestone in schedule.milestones)
    done = max(0.0, epoch + begin - schedule.warmup) / max(epochs - schedule.warmup, 1e-12)
    return peak * (schedule.final + (1 - schedule.final) * (1 + math.cos(math.pi * done)) / 2)
