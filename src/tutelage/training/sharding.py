"""Networks that do not fit one device, their parameters sharded over the processes by PyTorch's FSDP2.

Each process keeps its share of every parameter, of its gradient and of the optimizer's state. The whole parameters of
a block are gathered when it computes, forward and backward, and dropped again. The network that was given stays whole
in each process's memory, off the device, and is what is fingerprinted, saved and given back.

Every forward pass gathers: all processes call a sharded network, and equally often.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from tutelage.errors import InvalidValueError, reason_of
from tutelage.modules import Distiller, FrozenTeacher
from tutelage.settings.fit import FitSettings
from tutelage.submodules import repeated_blocks, unwrapped
from tutelage.training.distributed import rank, world


def is_sharded_by(settings: FitSettings, who: str) -> bool:
    """Whether ``student`` or ``teacher`` is sharded: one process has no others to share with."""
    return settings.shard in (who, "both") and world() > 1


def is_sharded(module: nn.Module) -> bool:
    """Whether a module has sharded parameters."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def sharded(network: nn.Module, device: torch.device) -> nn.Module:
    """Return a copy of a network that is sharded over the processes' devices; the network itself if it is sharded.

    Raises:
        ValueError: if it cannot be sharded.
    """
    if is_sharded(network):
        return network
    copied = copy.deepcopy(network)
    _shard(copied, device)
    return copied


def with_sharded_network(teacher: FrozenTeacher, device: torch.device) -> FrozenTeacher:
    """Return a copy of a teacher whose network is `sharded`; the teacher itself if it is."""
    if is_sharded(teacher):
        return teacher
    copied = copy.deepcopy(teacher)
    _shard(copied.network, device)
    return copied


def with_sharded_student(distiller: Distiller, device: torch.device) -> Distiller:
    """Return a distiller of the same objective with a `sharded` copy of the student."""
    copied = copy.deepcopy(distiller, {id(distiller.objective): distiller.objective})
    _shard(copied.student, device)
    return copied


def _shard(network: nn.Module, device: torch.device) -> None:
    """Shard a network's parameters in place, each unit's on the device only until it is sharded."""
    root, mesh = unwrapped(network), init_device_mesh(device.type, (world(),))
    # DTensor caches meshes for good. One that held the group would keep its threads from ending in `part`; without, it
    # asks torch for the group by name. (Under `torch.compile`, which is off with several processes, it could not.)
    getattr(mesh, "_pg_registry", {}).clear()
    for parameter in root.parameters():
        parameter.data = parameter.data.contiguous()  # such as one in channels-last layout, which cannot be sharded
    scalars = {parameter for parameter in root.parameters() if parameter.ndim == 0}
    try:
        for unit in (*_units(root), root):
            fully_shard(unit, mesh=mesh, reshard_after_forward=True, ignored_params=scalars)
    except (ValueError, TypeError, AttributeError, RuntimeError, NotImplementedError, AssertionError) as error:
        name, expected = type(root).__name__, "a network that torch.distributed.fsdp.fully_shard can shard"
        raise InvalidValueError("shard", expected, f"{name}: {reason_of(error)}", "type shard=none") from error
    network.to(device)  # what is not sharded


def _units(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the parts of a network whose parameters are gathered together; those of what remains are another part.

    They are its repeated blocks, or the layers in its containers if it has none. Parameters that a part shares with the
    rest of the network, such as tied embeddings, remain.
    """
    containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    layers = (child for part in network.modules() if isinstance(part, containers) for child in part.children())
    owners = _owners(network)
    for unit in repeated_blocks(network) or [layer for layer in dict.fromkeys(layers) if layer._parameters]:
        inside = _owners(unit)
        if unit is not network and inside and all(owners[parameter] == count for parameter, count in inside.items()):
            yield unit


def _owners(network: nn.Module) -> Counter[int]:
    """Count the modules that own each parameter, by its id."""
    return Counter(id(p) for part in network.modules() for p in part._parameters.values() if p is not None)


@torch.no_grad()
def local_part(tensor: Tensor) -> Tensor:
    """Return this process's share of a sharded tensor, in the same memory; any other tensor is its own."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()


@torch.no_grad()
def copy_whole(module: nn.Module, into: nn.Module) -> None:
    """Copy a sharded module's parameters and buffers into its like that is whole; all processes call it."""
    content: Mapping[str, Tensor] = module.state_dict()
    for name, tensor in into.state_dict().items():
        value = content[name]
        tensor.copy_(value.full_tensor() if isinstance(value, DTensor) else value)


def as_share(value: Tensor, parameter: DTensor) -> DTensor:
    """Return a tensor, this process's share of one that is sharded as a parameter is, such as a moment, as that one."""
    shape, stride = parameter.shape, parameter.stride()
    return DTensor.from_local(
        value, parameter.device_mesh, parameter.placements, run_check=False, shape=shape, stride=stride
    )


def like(value: Tensor, target: Tensor) -> Tensor:
    """Return a tensor sharded as another is; all processes have it whole, or it is as sharded."""
    if isinstance(target, DTensor) and not isinstance(value, DTensor):
        value = value.to(target.to_local().device)
        return distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None)
    return value


def write(folder: Path, tensors: Mapping[str, Tensor]) -> list[Path]:
    """Write sharded tensors to a folder that all processes see, each its shares; return the paths of this process's.

    The files are those of torch.distributed.checkpoint in safetensors form: reading them runs no code.

    Raises:
        OSError: if the disk of any process refused.
    """
    # The format takes only tensors with memory of their own, so tied ones are copied.
    uses = Counter(local_part(tensor).data_ptr() for tensor in tensors.values())
    apart = {name: t.clone() if uses[local_part(t).data_ptr()] > 1 else t for name, t in tensors.items()}
    with _errors_of_any_process():
        save(apart, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    return sorted(folder.glob(f"shard-{rank() + 1:05d}-*"))


@contextmanager
def _errors_of_any_process() -> Iterator[None]:
    """Raise an error of torch.distributed.checkpoint as the first process had it, the disk's before any other.

    Torch's own is no `Exception`, and would pass by whoever handles those.
    """
    try:
        yield
    except CheckpointException as error:
        errors = [each for each, _ in error.failures.values()]
        raise min(errors, key=lambda each: not isinstance(each, OSError)) from error


def shapes(folder: Path) -> dict[str, torch.Size]:
    """Return the whole shapes of the tensors in a folder by their names; their values are not read."""
    content = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {name: tensor.size for name, tensor in content.items() if isinstance(tensor, TensorStorageMetadata)}


def read(folder: Path, target: Callable[[str], Tensor]) -> dict[str, Tensor]:
    """Read tensors that any number of processes have written, each sharded as its target is, or whole if that is.

    All processes call it.

    Raises:
        OSError: if a file could not be read, in any process.
    """
    tensors = {name: torch.zeros_like(target(name).detach()) for name in shapes(folder)}
    with warnings.catch_warnings(), _errors_of_any_process():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as one process has it
        load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)))
    return tensors
