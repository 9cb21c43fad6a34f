"""The random generators of a run: separate from those of others, and as stored in checkpoints."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

_State = tuple[Tensor, Tensor | None, Any, Any]
_CPU = torch.device("cpu")


class RngState:
    """One run's generators: those of torch (CPU, and CUDA if that is the device), Python's ``random`` and NumPy.

    A block ``with rng:`` draws from where the previous block of the same object left off, whatever others have drawn in
    between. The first block begins at the state of the process's generators. Such blocks cannot be nested.

    Args:
        device: device of the run.

    Example:
        >>> first, second = RngState(torch.device("cpu")), RngState(torch.device("cpu"))
        >>> with first:
        ...     generator = torch.manual_seed(1)
        >>> with second:
        ...     generator = torch.manual_seed(2)
        >>> with first:
        ...     drawn = torch.rand(1)
        >>> bool(drawn == torch.rand(1, generator=torch.Generator().manual_seed(1)))
        True
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._state: _State | None = None
        self._own: torch.Generator | None = None  # generator of the device

    def __enter__(self) -> RngState:
        if self._state is not None:
            _restore(*self._state, _CPU)
        if self._device.type == "cuda":
            # Swapped, not copied: work captured in the block draws from this state in every replay.
            default = _default_generator(self._device)
            self._outer = default.graphsafe_get_state()
            self._own = self._own or default.clone_state()
            default.graphsafe_set_state(self._own)
        return self

    def __exit__(self, *error: object) -> None:
        self._state = _current(_CPU)
        if self._device.type == "cuda":
            _default_generator(self._device).graphsafe_set_state(self._outer)


def _default_generator(device: torch.device) -> torch.Generator:
    torch.cuda.init()
    return torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]


def _current(device: torch.device) -> _State:
    """Return the state of every random generator: torch's, the device's if it is CUDA, Python's and NumPy's."""
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return torch.get_rng_state(), cuda, random.getstate(), np.random.get_state()


def _restore(cpu: Tensor, cuda: Tensor | None, python: Any, numpy: Any, device: torch.device) -> None:
    torch.set_rng_state(cpu)
    if device.type == "cuda" and cuda is not None:
        torch.cuda.set_rng_state(cuda, device)
    random.setstate(python)
    np.random.set_state(numpy)


def host_generators(*, torch_too: bool = True) -> tuple[object, ...]:
    """Return comparable states of the host's generators: Python's, NumPy's, and by default torch's for the CPU."""
    cpu, _, python, (kind, keys, *position) = _current(_CPU)
    drawn = cpu.numpy().tobytes() if torch_too else b""
    return python, kind, np.asarray(keys).tobytes(), *position, drawn


@contextmanager
def noting_seeds() -> Iterator[list[str]]:
    """Enter this to note which functions were called that seed or set the process's generators.

    Such a call may restore the state before it returns, as `torch.random.fork_rng` does.
    """
    noted: list[str] = []

    def noting(function: Callable[..., Any]) -> Callable[..., Any]:
        def note(*args: Any, **kwargs: Any) -> Any:
            noted.append(function.__name__)
            return function(*args, **kwargs)

        return note

    with ExitStack() as stack:
        for module, name in _SEEDING:
            function = getattr(module, name)
            stack.callback(setattr, module, name, function)
            setattr(module, name, noting(function))
        yield noted


_SEEDING: list[tuple[Any, str]] = [
    *((module, name) for module in (torch, torch.random) for name in ("manual_seed", "seed", "set_rng_state")),
    *((random, name) for name in ("seed", "setstate")),
    *((np.random, name) for name in ("seed", "set_state")),
]


def random_state(device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the state of every random generator as stored in a checkpoint: tensors, and plain values."""
    cpu, cuda, python, (kind, keys, *position) = _current(device)
    tensors = {"rng.cpu": cpu} | ({} if cuda is None else {"rng.cuda": cuda})
    return tensors, {"python": python, "numpy": [kind, np.asarray(keys).tolist(), *position]}


def restore_random(tensors: Mapping[str, Tensor], plain: Mapping[str, Any], device: torch.device) -> None:
    """Restore every random generator from a `random_state`."""
    _restore(tensors["rng.cpu"], tensors.get("rng.cuda"), *_host_states(plain), device)


def seed_rank(seed: int, rank: int) -> None:
    """Seed every random generator by a seed and a process's number, so that each process draws values of its own."""
    own = int(np.random.SeedSequence([seed, rank]).generate_state(1, np.uint64)[0])
    torch.manual_seed(own)
    random.seed(own)
    np.random.seed(own % 2**32)


def packed_states(
    states: Sequence[tuple[Mapping[str, Tensor], Mapping[str, Any]]],
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return every process's `random_state` as stored in a checkpoint, those of all but the first under its number."""
    tensors, plain = map(dict, states[0])
    for rank, (own, values) in enumerate(states[1:], 1):
        tensors |= {f"rng.{rank}.{name.removeprefix('rng.')}": tensor for name, tensor in own.items()}
        plain |= {f"{rank}.{name}": value for name, value in values.items()}
    return tensors, plain


def state_of_rank(
    tensors: Mapping[str, Tensor], plain: Mapping[str, Any], rank: int
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return a process's `random_state` out of `packed_states`; ``None`` if there were fewer processes."""
    own = f"{rank}." if rank else ""
    if f"rng.{own}cpu" not in tensors:
        return None
    kinds = {f"rng.{kind}": tensors.get(f"rng.{own}{kind}") for kind in ("cpu", "cuda")}
    values = {name: plain[f"{own}{name}"] for name in ("python", "numpy")}
    return {name: tensor for name, tensor in kinds.items() if tensor is not None}, values


def restore_rank(tensors: Mapping[str, Tensor], plain: Mapping[str, Any], device: torch.device, rank: int) -> None:
    """Restore a process's generators from `packed_states`.

    If there were fewer processes, they are seeded by its number and the first one's state, which the run's seed and the
    steps so far decide.
    """
    if (own := state_of_rank(tensors, plain, rank)) is not None:
        restore_random(*own, device)
    else:
        digest = hashlib.sha256(tensors["rng.cpu"].numpy().tobytes()).digest()
        seed_rank(int.from_bytes(digest[:8], "big"), rank)


def check_random(tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
    """Refuse a `random_state` that cannot be restored, by generators of its own."""
    python, numpy = _host_states(plain)
    torch.Generator().set_state(tensors["rng.cpu"])
    random.Random().setstate(python)  # noqa: S311
    np.random.RandomState().set_state(numpy)


def _host_states(plain: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the states of Python's generator and of NumPy's, in the form that they take."""
    version, words, gauss = plain["python"]
    kind, keys, *position = plain["numpy"]
    return (version, tuple(words), gauss), (kind, np.array(keys, dtype=np.uint32), *position)
