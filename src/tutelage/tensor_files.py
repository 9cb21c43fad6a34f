"""Tensors as the bytes of a safetensors file."""

from __future__ import annotations

from collections.abc import Mapping

import safetensors.torch
from torch import Tensor


def to_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return tensors of any strides and device, such as a module's state, as the content of a safetensors file.

    The format takes only contiguous tensors, each with its own memory, so channels-last, expanded and tied ones are
    copied. ``metadata`` goes into the header.
    """
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    return safetensors.torch.save(copies, None if metadata is None else dict(metadata))
