"""The random generators that a run may draw from, kept apart where several runs go on in one process."""

from __future__ import annotations

import random
from types import TracebackType
from typing import Any

import numpy as np
import torch


class RngState:
    """One run's generators: those of torch (CPU, and the device's where it is CUDA), Python's ``random``, NumPy's.

    A block ``with chance:`` draws where the block before of the same object left off, whatever was drawn in between by
    others. The first block begins where the process's generators are. Such a block does not enter itself again.

    Args:
        device: of the run.

    Example:
        >>> one, other = RngState(torch.device("cpu")), RngState(torch.device("cpu"))
        >>> with one:
        ...     generator = torch.manual_seed(1)
        >>> with other:
        ...     generator = torch.manual_seed(2)
        >>> with one:
        ...     drawn = torch.rand(1)
        >>> bool(drawn == torch.rand(1, generator=torch.Generator().manual_seed(1)))
        True
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._state: tuple[Any, ...] | None = None

    def __enter__(self) -> RngState:
        if self._state is not None:
            cpu, cuda, python, numpy = self._state
            torch.set_rng_state(cpu)
            if cuda is not None:
                torch.cuda.set_rng_state(cuda, self._device)
            random.setstate(python)
            np.random.set_state(numpy)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        cuda = torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None
        self._state = torch.get_rng_state(), cuda, random.getstate(), np.random.get_state()
