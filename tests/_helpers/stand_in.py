"""A device that is not there: torch's ``meta``, which to the code is any accelerator and has shapes without data.

What it cannot show: wrong numbers, kernels that are missing for a dtype, fused optimizers, autocast, memory, speed.
"""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from tutelage.training import optim
from tutelage.training.graphs import CAPTURES
from tutelage.training.host_waits import HostWaits, name_of

META = torch.device("meta")
ACCELERATOR = SimpleNamespace(
    device=META, num_processes=1, process_index=0, is_main_process=True, reduce=lambda values: values
)
NOT_DETERMINISTIC = frozenset(
    f"aten::{name}"
    for name in (
        *("_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward", "adaptive_max_pool2d_backward"),
        *("avg_pool3d_backward", "fractional_max_pool2d_backward", "fractional_max_pool3d_backward"),
        *("max_unpool2d", "max_unpool3d", "upsample_linear1d_backward", "upsample_bilinear2d_backward"),
        *("upsample_bicubic2d_backward", "upsample_trilinear3d_backward", "grid_sampler_2d_backward"),
        *("grid_sampler_3d_backward", "reflection_pad1d_backward", "reflection_pad2d_backward"),
        *("reflection_pad3d_backward", "replication_pad1d_backward", "replication_pad2d_backward"),
        *("replication_pad3d_backward", "nll_loss2d_forward", "nll_loss2d_backward", "_ctc_loss_backward"),
        *("put_", "histc", "median.dim"),
    )
)
"""Operations that ``torch.use_deterministic_algorithms(True)`` refuses on CUDA."""


class StandIn(HostWaits):
    """Notes what a step on CUDA would wait for or be refused, and answers what the device has no data for with zeros.

    Args:
        makes_on_cpu: tensors may be made on the CPU.
    """

    def __init__(self, *, makes_on_cpu: bool = False) -> None:
        super().__init__(META)
        self.makes_on_cpu = makes_on_cpu
        self.as_cuda = AsCuda()

    def __enter__(self):
        self.as_cuda.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.as_cuda.__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name, kwargs = name_of(function), kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self.look(name, args, kwargs)
        if any(map(self.holds, tensors)) and name in NOT_DETERMINISTIC:
            self.note(f"{name}, which is not deterministic")
        if tensors and self.holds(tensors[0]):
            if name == "aten::_local_scalar_dense":
                return torch.zeros((), dtype=tensors[0].dtype).item()
            if name == "aten::_to_copy" and kwargs.get("device", META) != META:
                return torch.zeros(tensors[0].shape, dtype=kwargs.get("dtype") or tensors[0].dtype)
        if name == "aten::copy_" and self.holds(args[1]) and not self.holds(args[0]):
            return args[0].zero_()
        made = function(*args, **kwargs)
        from_nothing = not tensors or name == "aten::lift_fresh"
        if not self.makes_on_cpu and from_nothing and isinstance(made, Tensor) and made.device.type == "cpu":
            self.note(f"{name} on the CPU")
        return made


class AsCuda(TorchFunctionMode):
    """Numbers go to the device as they do on CUDA, by way of the CPU, which ``meta`` leaves out."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is Tensor.__setitem__ and args[0].device == META and isinstance(args[2], int | float):
            with torch._C._DisableTorchDispatch():
                number = torch.tensor(args[2], dtype=args[0].dtype)
            return function(*args[:2], number)
        if function in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu") == META:
            return function(*args, **{**kwargs, "device": "cpu"}).to(META)
        if function is Tensor.new_tensor and args[0].device == META:
            return torch.tensor(*args[1:], **{"dtype": args[0].dtype, **kwargs}).to(META)
        return function(*args, **kwargs)


@contextmanager
def on_the_stand_in():
    """Within, training runs on ``META``: torch's autocast and fused optimizers, which it lacks there, do nothing."""
    build, autocast = optim.build, torch.autocast

    def built(settings, module, *, fused, shares):
        optimizer = build(settings, module, fused=False, shares=shares)
        optimizer.step = lambda: None
        return optimizer

    def cast(kind, *args, **keywords):
        return nullcontext() if kind == META.type else autocast(kind, *args, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CAPTURES, META.type, None)  # so that the host does not decide whether a step counts
        patch.setattr(optim, "build", built)
        patch.setattr(torch, "autocast", cast)
        yield


def waits_of(call, **options):
    """Return what a call would wait for, by operation and place; what ``meta`` refuses ends the call."""
    with on_the_stand_in(), StandIn(**options) as stand_in:
        try:
            call()
        except (NotImplementedError, RuntimeError):
            if not stand_in.found:
                raise
    return stand_in.found
