"""What a network costs to keep and to call: parameters, operations, bytes, and the time of a forward pass.

A time is that of this machine, on as many threads as torch has. Nothing of a network is changed: it is called in
evaluation mode, without gradients.
"""

from __future__ import annotations

import contextlib
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from operator import itemgetter
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tutelage.models.exported import Exported
from tutelage.models.io import parameters
from tutelage.records import NetworkCost
from tutelage.submodules import evaluation_mode, unwrapped
from tutelage.tensor_files import size_of
from tutelage.types import Inputs
from tutelage.views import map_views, views_of

SECONDS = 3.0
"""Time for the timed passes of a network, unless one is asked for."""
PASSES = 5
"""Passes of one sample that are timed whatever they take, unless one takes `LONG`."""
MOST_PASSES = 100
LONG = 1.0
"""Seconds of a forward pass that is not repeated."""
LARGEST = 256
"""Largest batch that is tried, unless one is asked for."""
GROWTH = 1.05
"""Throughput of a batch, relative to that of the best smaller one, from which on it is taken for larger."""
BATCH_PASSES = 5
"""Passes of a larger batch that are timed at most."""


def measure(
    network: nn.Module, inputs: Inputs | None = None, *, seconds: float | None = SECONDS, largest: int = LARGEST
) -> NetworkCost:
    """Measure what a network costs, in the dtype that it has and on its device.

    - ``parameters``: shared ones once, buffers not; of an ONNX file the values of its initialisers.
    - ``flops``: `flops` of one sample.
    - ``file_bytes``: bytes of all of its weights, buffers included, as a safetensors file; of a network in a file, such
      as ``onnx:``, those of the file.
    - ``latency_ms``, ``latency_p90_ms``: median and 90th percentile of up to 100 passes of one sample, after two that
      do not count. They take half of the time, but at least 5 are made. Of passes of a second or more the second alone
      counts, which has no percentile.
    - ``throughput``, ``batch``: samples per second at the best of the batches of 1, 2, 4, ... samples, the sample
      repeated, of each the median of up to 5 passes. The search ends when two batches in turn are not 5 % faster than
      the best before, when the time is up, at ``largest``, or when a batch raises an error, as where memory runs out.

    Args:
        network: classifier, or any module.
        inputs: its inputs, on its device; the first sample counts. ``None`` for none: then operations and times are.
        seconds: time for the timed passes; ``None`` to time none.
        largest: largest batch to try.

    Raises:
        Exception: what the network raises when it is called with one sample.

    Example:
        >>> import torch
        >>> from tutelage.models import costs, create
        >>> cost = costs.measure(create("cifar:resnet20"), torch.rand(1, 3, 32, 32), seconds=0)
        >>> cost["parameters"], cost["flops"], cost["latency_n"]
        (278324, 81637888, 5)
    """
    files = [module for module in network.modules() if isinstance(module, Exported)]
    cost: NetworkCost = {
        "network": str(getattr(getattr(network, "card", None), "name", type(network).__name__)),
        "parameters": parameters(network) + sum(module.graph.initialisers for module in files),
        "flops": None,
        "file_bytes": _file_bytes(unwrapped(network)),
        "latency_ms": None,
        "latency_p90_ms": None,
        "latency_n": 0,
        "throughput": None,
        "batch": None,
    }
    if inputs is not None:
        one = map_views(lambda view: view[:1], inputs)
        cost["flops"] = flops(network, one)
        if seconds is not None:
            times = timed(network, one, seconds=seconds, largest=largest)
            cost |= times._asdict()  # type: ignore[typeddict-item]  # of the same keys
    return cost


def flops(network: nn.Module, inputs: Inputs) -> int | None:
    """Count the floating-point operations of a forward pass, a multiplication and an addition being two.

    These are the operations that `torch.utils.flop_counter` knows: convolutions, matrix products, attention and
    recurrent layers, as the products that they consist of. Additions of a bias, activations, normalisation, pooling and
    whatever else goes element by element are not among them.

    Returns:
        ``None`` if the network does nothing of that kind, has quantised weights, is computed elsewhere, as of an ONNX
        file, or cannot be counted.
    """
    elsewhere = any(isinstance(m, Exported) and not isinstance(m.call, nn.Module) for m in network.modules())
    if elsewhere or not _is_plain(network):
        return None
    from torch.utils.flop_counter import FlopCounterMode  # it imports torch's compiler

    counter = FlopCounterMode(display=False)
    try:
        with evaluation_mode(network), torch.no_grad(), _in_products(network), counter:
            network(inputs)
    except Exception:  # noqa: BLE001  whatever does not go through the counter
        return None
    return counter.get_total_flops() or None


@contextlib.contextmanager
def _in_products(network: nn.Module) -> Iterator[None]:
    """Let attention, transformer layers and recurrent ones be computed by products, of which the counter knows."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    fast = torch.backends.mha.get_fastpath_enabled()
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # of torch about TF32, where a flag of the CPU's library is set
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if any(isinstance(module, nn.RNNBase) for module in network.modules()):
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield


def _file_bytes(network: nn.Module) -> int | None:
    """Return the bytes of a network's weights in files; ``None`` if they cannot be stored."""
    files = {f"{name}." if name else "": m for name, m in network.named_modules() if isinstance(m, Exported)}
    state = {key: value for key, value in network.state_dict().items() if not key.startswith(tuple(files))}
    if not _is_plain(network):
        return None
    own = size_of(state) if state or not files else 0
    return own + sum(module.graph.file_bytes for module in files.values())


def _is_plain(network: nn.Module) -> bool:
    """Whether a network's state is plain tensors: quantised ones say the bytes of what they stand for."""
    return all(type(value) is Tensor for value in network.state_dict().values())


class Times(NamedTuple):
    """What was timed of a network; see `measure`."""

    latency_ms: float
    latency_p90_ms: float | None
    latency_n: int
    throughput: float
    batch: int


def timed(network: nn.Module, inputs: Inputs, *, seconds: float, largest: int = LARGEST) -> Times:
    """Time a network as `measure` does.

    Args:
        network: any module.
        inputs: one sample, on its device.
        seconds: time for the timed passes.
        largest: largest batch to try.

    Raises:
        Exception: what the network raises when it is called with the sample.
    """
    device = views_of(inputs)[0].device

    def passed(batch: Inputs) -> float:
        began = time.perf_counter()
        network(batch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    with evaluation_mode(network), torch.no_grad():
        ends = time.perf_counter() + seconds
        passed(inputs)  # which may also compile
        latencies = [passed(inputs)]
        if latencies[0] < LONG:
            latencies = _repeated(partial(passed, inputs), PASSES, MOST_PASSES, ends - seconds / 2)
        latency = statistics.median(latencies)
        best, batch = _best_batch(passed, inputs, latency, largest=largest, ends=ends)
        if device.type == "cuda":
            torch.cuda.empty_cache()  # what the largest batch took
    slow_ones = statistics.quantiles(latencies, n=10, method="inclusive")[-1:] if len(latencies) > 1 else []
    percentile = next((round(1e3 * each, 4) for each in slow_ones), None)
    return Times(round(1e3 * latency, 4), percentile, len(latencies), round(best, 1), batch)


def _repeated(call: Callable[[], float], least: int, most: int, ends: float) -> list[float]:
    """Return what calls return: ``least`` of them, and further ones up to ``most`` until the time is up."""
    times: list[float] = []
    while len(times) < least or (len(times) < most and time.perf_counter() < ends):
        times.append(call())
    return times


def _best_batch(
    passed: Callable[[Inputs], float], inputs: Inputs, latency: float, *, largest: int, ends: float
) -> tuple[float, int]:
    """Return the largest throughput, in samples per second, and its batch."""
    best, at, batch, last = 1 / latency, 1, 2, latency
    # A pass that does not count and one that does, of a batch that may take twice as long as the one before.
    while batch <= min(largest, 4 * at) and time.perf_counter() + 4 * last < ends:
        try:
            repeated = map_views(itemgetter(torch.zeros(batch, dtype=torch.int64)), inputs)
            passed(repeated)
            last = statistics.median(_repeated(partial(passed, repeated), 1, BATCH_PASSES, ends))
        except Exception:  # noqa: BLE001  no memory, or a network of batches of one size
            break
        if (rate := batch / last) >= GROWTH * best:
            best, at = rate, batch
        batch *= 2
    return best, at
