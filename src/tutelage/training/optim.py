"""Optimizers, their state as a checkpoint holds it, and learning rates.

A rate is a pure function of where in the run a step is; there is no schedule object to restore.
"""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.settings.fit import SGD, Constant, MultiStep, Optimizer, Schedule, Step
from tutelage.training.checkpoints import Checkpoint, under


def build(settings: Optimizer, module: nn.Module, device: torch.device) -> torch.optim.Optimizer:
    """Build the optimizer of a module's trainable parameters."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("student: expected trainable parameters, got none; unfreeze it with requires_grad_(True)")
    options = {field.name: getattr(settings, field.name) for field in fields(settings) if field.name != "name"}
    # On CUDA the fused form can skip a non-finite step without the host being asked.
    fused = device.type == "cuda"
    if isinstance(settings, SGD):
        optimizer = torch.optim.SGD(parameters, **options, fused=fused)
        if fused and settings.momentum:
            # The fused form makes its buffers in the first step, and leaves them uninitialised where it skips that one.
            for parameter in parameters:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer
    exempt = _exempt(module)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if id(p) not in exempt]},
        {"params": [p for p in parameters if id(p) in exempt], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], **options, fused=fused)


def _exempt(module: nn.Module) -> set[int]:
    """Return the ids of parameters that are not to decay: of one dimension, or listed by their network as such."""
    exempt = {id(p) for p in module.parameters() if p.ndim <= 1}
    for part in module.modules():
        listed = getattr(part, "no_weight_decay", None)
        if callable(listed):
            names = set(listed())
            exempt |= {id(p) for name, p in part.named_parameters() if name in names}
    return exempt


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return an optimizer's state, as a checkpoint holds it: tensors, and plain values."""
    content = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for i, values in content["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{i}.{name}"] = value
            else:
                plain.setdefault(str(i), {})[name] = value
    return tensors, {"plain": plain, "groups": content["param_groups"]}


def restore_optimizer(optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> None:
    """Put an optimizer into the state that a checkpoint holds."""
    content = checkpoint.state["optimizer"]
    moments: dict[int, dict[str, Any]] = {int(i): dict(values) for i, values in content["plain"].items()}
    for name, tensor in under("optimizer.", checkpoint.tensors).items():
        i, key = name.split(".", 1)
        moments.setdefault(int(i), {})[key] = tensor
    # How the optimizer is computed belongs to the device, which may be another than the checkpoint's.
    groups = [
        {**saved, "fused": current.get("fused")}
        for saved, current in zip(content["groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            # Fused optimizers want a moment in its parameter's memory layout; a checkpoint's are contiguous.
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def learning_rate(schedule: Schedule, peak: float, *, epoch: int, begin: float, end: float, epochs: int) -> float:
    """Return the rate of one step.

    Args:
        schedule: its shape.
        peak: the optimizer's ``lr``.
        epoch: epochs done before this one.
        begin: fraction of the epoch done before the step, in [0, 1): a decay follows it, so that its first rate is
            the peak.
        end: fraction of the epoch done after the step, in (0, 1]: a warm-up follows it, so that its first rate is
            not 0.
        epochs: of the whole run.
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
