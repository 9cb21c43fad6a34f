"""Optimizers of the timm library by name, and its groups of parameters; it is imported when one is asked for."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from tutelage.errors import InvalidValueError, missing_extra, reason_of
from tutelage.settings.fit import LibraryOptimizer

NOT_OFFERED = {
    *("params", "lr", "weight_decay"),  # keys of their own
    *("fused", "capturable", "differentiable", "maximize", "verbose"),  # the loop's
    *("adamw_lr", "warmup_init", "scale_parameter", "momentum_dtype"),  # no number, or without effect where lr is given
}
"""Arguments of optimizers that no recipe gives."""
REFUSED = {
    "adahessian": "needs second derivatives of the loss in every step",
    "kron": "draws random numbers of its own, and compiles itself in its first step",
}
"""Why an optimizer is not used, by the name of its class in lower case."""


def _library(key: str = "name", purpose: str = "its optimizers") -> Any:
    try:
        import timm.optim
    except ImportError as error:
        raise missing_extra(f"optimizer.{key}", f"timm for {purpose}", "timm", error) from error
    return timm


def grouped(network: nn.Module, matcher: Mapping[str, Any]) -> dict[str, int]:
    """Return the number of each parameter's group, by its name, as a network's ``group_matcher`` describes them.

    Raises:
        ImportError: if timm is not installed.
    """
    library = _library("layer_decay", "the layers of a network with a group_matcher")
    numbers: dict[str, int] = library.models.group_parameters(network, matcher, reverse=True)
    return numbers


def listing_json() -> str:
    """Return the text of ``settings/timm_optimizers.json``: the arguments of each optimizer, or why it is refused."""
    library = _library().optim
    table: dict[str, list[str] | str] = {}
    for name in library.list_optimizers():
        info = library.get_optimizer_info(name)
        if isinstance(info.opt_class, str):  # imported by timm when it is built
            table[name] = f"needs {info.opt_class.partition('.')[0]}, which is not a dependency of this package"
        elif (reason := REFUSED.get(info.opt_class.__name__.lower())) is not None:
            table[name] = reason
        else:
            without = NOT_OFFERED | ({"betas"} if not info.has_betas else set())
            without |= ({"eps"} if not info.has_eps else set()) | ({"momentum"} if not info.has_momentum else set())
            table[name] = sorted(inspect.signature(info.opt_class).parameters.keys() - without)
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in table.items())
    return f"{{\n{lines}\n}}\n"


def build(settings: LibraryOptimizer, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Build an optimizer of groups of parameters.

    Raises:
        ImportError: if timm is not installed.
        ValueError: if it lacks the optimizer, or the optimizer refuses an argument.
    """
    library = _library().optim
    if settings.library_name not in library.list_optimizers():
        instead = "update timm, or type optimizer.name=timm:adamw"
        raise InvalidValueError("optimizer.name", f"one that timm {_library().__version__} has", settings.name, instead)
    with _arguments_of(settings):
        optimizer: torch.optim.Optimizer = library.create_optimizer_v2(
            groups, opt=settings.library_name, lr=settings.lr, weight_decay=settings.weight_decay, **settings.given
        )
    return optimizer


def check(settings: object) -> None:
    """Refuse one of timm's optimizers that cannot be built, or take a step, by trying it on parameters of its own."""
    if not isinstance(settings, LibraryOptimizer):
        return
    parameters = [nn.Parameter(torch.ones(shape)) for shape in ((32, 32), (32,))]
    optimizer = build(settings, [{"params": parameters}])
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    with _arguments_of(settings):
        optimizer.step()


@contextmanager
def _arguments_of(settings: LibraryOptimizer) -> Iterator[None]:
    """Say of an optimizer's error that it is its arguments'."""
    try:
        yield
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, AssertionError, RuntimeError) as error:
        given = ", ".join(f"{name}={value}" for name, value in settings.given.items()) or f"lr={settings.lr:g}"
        instead = "mend them, or leave them out for timm's defaults"
        got = f"{given} ({reason_of(error)})"
        raise InvalidValueError("optimizer", f"arguments that {settings.name} takes", got, instead) from error
