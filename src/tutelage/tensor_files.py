"""Tensors as the bytes of a safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping

import safetensors.torch
import torch
from torch import Tensor


def to_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return tensors of any strides and device, such as a module's state, as the content of a safetensors file.

    The format takes only contiguous tensors, each with its own memory, so channels-last, expanded and tied ones are
    copied. ``metadata`` goes into the header.
    """
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    return safetensors.torch.save(copies, None if metadata is None else dict(metadata))


def size_of(tensors: Mapping[str, Tensor]) -> int:
    """Return the bytes that `to_bytes` would return, of which none are copied."""
    # The format's own library says how the header is written; shapes and places are filled in.
    empty = {name: torch.empty(0, dtype=tensor.dtype) for name, tensor in tensors.items()}
    header = json.loads(safetensors.torch.save(empty)[8:])
    end = 0
    for name, entry in header.items():
        begin, end = end, end + tensors[name].nbytes
        entry |= {"shape": list(tensors[name].shape), "data_offsets": [begin, end]}
    written = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + -(-written // 8) * 8 + end
