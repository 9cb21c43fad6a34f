"""What a CUDA graph is on a GPU, on the CPU: the operations of some work, written down and executed again.

A replay executes the same operations on the same memory, with the Python numbers that they had: whatever Python would
have done otherwise the second time shows as another result. A CUDA graph refuses besides what reads a value on the
host, which here is read anew and ignored; `HostWaits` finds that.
"""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Recorder:
    """Operations with the tensors that they read and write: `graphs.Graph`."""

    def __init__(self, work, device, *, apart=False):
        self.operations, self.replays = [], 0
        with _Recording(self.operations):
            work()

    def replay(self):
        self.replays += 1
        with torch._C._AutoDispatchBelowAutograd():  # The backward pass is among the operations.
            for function, args, kwargs, written in self.operations:
                made = tree_leaves(function(*args, **kwargs))
                for tensor, k in written:
                    tensor.copy_(made[k])

    def join(self):
        pass


class Late(Recorder):
    """As late as a graph on a stream of its own may be: what is replayed is done where it is joined."""

    def __init__(self, work, device, *, apart=False):
        super().__init__(work, device, apart=apart)
        self.apart, self.pending = apart, 0

    def replay(self):
        if self.apart:
            self.pending += 1
        else:
            super().replay()

    def join(self):
        for _ in range(self.pending):
            super().replay()
        self.pending = 0


class Unchanged(TorchDispatchMode):
    """Executes operations as torch decomposes them under such a mode, which may round otherwise than without."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class _Recording(TorchDispatchMode):
    def __init__(self, operations):
        super().__init__()
        self.operations = operations

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        read = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        made = function(*args, **kwargs)
        # What has memory of its own was made here; views and what is written in place lie where they lay.
        written = [
            (leaf, k)
            for k, leaf in enumerate(tree_leaves(made))
            if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() not in read
        ]
        self.operations.append((function, args, kwargs, written))
        return made
