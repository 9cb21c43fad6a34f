"""Say where the time of a training step goes, and how near to the machine's limit it is.

    python benchmarks/bench_limits.py [--steps N] [--rounds N] [--write RESULT.json]

Measures what the machine does at most: the rate of a bfloat16 and of a float32 matrix product of 2048 x 2048, and of
copying 256 MB. Then, of each pair of `tutelage doctor --bench` with recorded outputs and with a live teacher: the
seconds of a step; the seconds in which its convolutions and products would be computed at the first rate; and,
from a profile of other steps, the shares of convolutions and products, batch norms, activations and sums, the
optimizer, and everything else, with the number of operations and the share of the time that is in none: Python's.
Images are random. All of it on the CPU, in bfloat16.
"""

import re
import time
from pathlib import Path

import output
import torch
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

from tutelage import data
from tutelage.benchmark import batches, steps, timing
from tutelage.modules import FrozenTeacher
from tutelage.training.compile import least_seconds

SIZE = 2048
CPU = torch.device("cpu")
KINDS = {
    "convolutions and products": r"convolution|conv2d|aten::(add)?mm$|addmm|bmm|mkldnn|_Convolution",
    "batch norms": r"batch_norm|BatchNorm",
    "compiled activations, norms and sums": r"CompiledFxGraph",
    "activations, pools and residual sums": r"relu|clamp_min|threshold|pool|aten::add$|Relu|AddBackward",
    "optimizer, gradients' norms and checks": r"Optimizer|aten::(add_|mul_|addcmul_|_foreach\w*|linalg_vector_norm)",
}
"""Kinds of operations by their names in a profile; the first that fits counts. What fits none is "the rest"."""


def least(call):
    """Return the least seconds of a call, of five after one that warms up."""
    return least_seconds([call], CPU)[0]


def machine_limits():
    """Return the rates of products in operations per second, and of memory in bytes per second."""
    limits = {}
    for dtype in (torch.bfloat16, torch.float32):
        a, b = (torch.randn(SIZE, SIZE).to(dtype) for _ in range(2))
        limits[f"{str(dtype).removeprefix('torch.')}_flops_per_s"] = 2 * SIZE**3 / least(lambda a=a, b=b: a @ b)
    source = torch.randn(1 << 26)
    target = torch.empty_like(source)
    limits["copied_bytes_per_s"] = 2 * source.nbytes / least(lambda: target.copy_(source))
    return limits


def operations(network, *, backward):
    """Return the operations of a batch's convolutions and products, as torch counts them."""
    images = torch.zeros(steps.BATCH, 3, 32, 32)
    network.train(backward)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        logits = network(images)
        if backward:
            logits.sum().backward()
    network.zero_grad()
    return counter.get_total_flops()


def kind_of(name):
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name)), "the rest")


def profiled(seconds_a_step, n):
    """Return the shares of a step's time by kind, and the number of operations, from a profile of other steps."""
    with profile() as taken:
        began = time.perf_counter()
        seconds_a_step()
        wall = time.perf_counter() - began
    events = taken.key_averages()
    shares = {}
    for event in events:
        kind = kind_of(event.key)
        shares[kind] = shares.get(kind, 0.0) + event.self_cpu_time_total / 1e6 / wall
    shares["in no operation"] = 1 - sum(shares.values())
    return shares, sum(event.count for event in events if event.key.startswith("aten::")) / (n + 1)


def measure(pair, splits, peak, *, n, rounds):
    """Return and print the rows of one pair."""
    loader = data.BatchLoader(splits.train, batch_size=steps.BATCH, train=True)
    teacher, student = (batches.network(name, CPU) for name in pair)
    of_student, of_teacher = operations(student, backward=True), operations(teacher, backward=False)
    rows = []
    for form, of_step, answers in (
        ("recorded", of_student, batches.cached_logits(CPU)),
        ("live", of_student + of_teacher, FrozenTeacher(teacher)),
    ):
        seconds_a_step = steps.ours(answers, batches.network(pair[1], CPU), loader, n)
        seconds_a_step()  # what is chosen by measurement, is chosen here
        seconds = timing.medians({form: [seconds_a_step() for _ in range(rounds)]})[form]
        shares, count = profiled(seconds_a_step, n)
        least_s = of_step / peak
        row = {"pair": "/".join(pair), "form": form, "seconds_a_step": seconds, "flops": of_step}
        rows.append(row | {"s_at_the_rate_of_products": least_s, "share_by_kind": shares, "operations_a_step": count})
        print(f"{row['pair']}, {form}: {seconds * 1e3:.1f} ms a step, {least_s * 1e3:.1f} at the rate of products")
        told = "  ".join(f"{kind} {share:.0%}" for kind, share in sorted(shares.items(), key=lambda item: -item[1]))
        print(f"  {told}  ({count:.0f} operations)", flush=True)
    return rows


if __name__ == "__main__":
    parser = output.parser(__doc__)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    limits = machine_limits()
    for name, rate in limits.items():
        print(f"{name:<24} {rate / 1e9:.0f} G")
    splits, rows = batches.random_images(), []
    for pair in steps.PAIRS:
        how = {"n": arguments.steps, "rounds": arguments.rounds}
        rows += measure(pair, splits, limits["bfloat16_flops_per_s"], **how)
    n = {"steps": arguments.steps, "rounds": arguments.rounds}
    output.write(arguments.write, {"n": n, "threads": torch.get_num_threads(), "limits": limits, "steps": rows})
