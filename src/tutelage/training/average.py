"""The exponential moving average of a student's weights, which is evaluated and kept in their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tutelage.submodules import frozen_names, unwrapped


class Place(NamedTuple):
    """Where a module holds a tensor, which its forward pass may replace by another."""

    held: Mapping[str, Tensor | None]  # own parameters or buffers of the module
    key: str
    is_buffer: bool

    @property
    def tensor(self) -> Tensor | None:
        """What is there now."""
        tensor = self.held.get(self.key)
        return None if tensor is None else tensor.detach()


def averaged(student: nn.Module) -> dict[str, Place]:
    """Return what of a student is averaged, by its names in the student's state; what several names share, by one.

    That is every trained parameter, and every buffer of finite floating numbers that is saved, such as the running
    statistics of batch norm. Counts, and masks with infinities, stay those of the trained student.
    """
    inside = "" if unwrapped(student) is student else "network."
    frozen = {inside + name for name in frozen_names(student)}
    places: dict[str, Place] = {}
    seen = set[int]()
    for path, module in student.named_modules():
        unsaved = getattr(module, "_non_persistent_buffers_set", ())
        own = [(module._parameters, key, False) for key in module._parameters]
        own += [(module._buffers, key, True) for key in module._buffers if key not in unsaved]
        for held, key, is_buffer in own:
            name, tensor = f"{path}.{key}" if path else key, held[key]
            if tensor is None or name in frozen or id(tensor) in seen:
                continue
            finite = is_buffer and tensor.is_floating_point() and bool(tensor.detach().isfinite().all())
            if tensor.requires_grad or finite:
                seen.add(id(tensor))
                places[name] = Place(held, key, is_buffer)
    return places


class Average:
    """An exponential moving average of a student's weights: after each applied step ``a += (1 - decay) * (w - a)``.

    It begins at the weights before the first step. Each tensor has its parameter's memory layout and dtype, float32 for
    half precision. Running statistics of batch norm are averaged too, as timm's ``ModelEmaV3`` does;
    ``torch.optim.swa_utils.AveragedModel`` by default copies the last ones. Not averaged are an objective's own
    parameters, such as projectors.

    Args:
        student: student on its device.

    Attributes:
        tensors: the average, by the names of `averaged`.
    """

    def __init__(self, student: nn.Module) -> None:
        self._places = averaged(student)
        self.tensors = {
            name: tensor.to(torch.promote_types(tensor.dtype, torch.float32), copy=True)
            for name, place in self._places.items()
            if (tensor := place.tensor) is not None
        }

    @property
    def buffers(self) -> list[Tensor]:
        """The averages of buffers, of which each process has its own."""
        return [tensor for name, tensor in self.tensors.items() if self._places[name].is_buffer]

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each average with the student's own tensor; a buffer that was removed or resized is left out."""
        for name, average in self.tensors.items():
            tensor = self._places[name].tensor
            if tensor is not None and tensor.shape == average.shape:
                yield average, tensor

    @torch.no_grad()
    def update(self, rate: Tensor) -> None:
        """Take the student's weights in.

        Args:
            rate: 1 - decay, ``()`` on the student's device, where the host does not read it; 0 changes nothing.
        """
        averages, tensors = zip(*self._pairs(), strict=True)
        changes = torch._foreach_sub(tensors, averages)
        torch._foreach_mul_(changes, rate)
        torch._foreach_add_(averages, changes)

    @torch.no_grad()
    def give(self) -> None:
        """Give the student the average's values."""
        for average, tensor in self._pairs():
            tensor.copy_(average)

    def lend(self) -> list[Tensor]:
        """Do as `give`, and return the student's own values for `take_back`."""
        own = [tensor.clone() for _, tensor in self._pairs()]
        self.give()
        return own

    @torch.no_grad()
    def take_back(self, own: list[Tensor]) -> None:
        """Give the student back what `lend` returned."""
        for (_, tensor), values in zip(self._pairs(), own, strict=True):
            tensor.copy_(values)
