"""Time cross-entropy and WTTM with their gradient, and the memory they add, against the paper's Algorithm 1.

    python benchmarks/bench_losses.py [RESULT.json [PART ...]]
    python benchmarks/bench_losses.py RESULT.json --plot      draws RESULT.svg from it

float32, one thread, gamma 0.1, the teacher's logits given. The forms are timed in turn in one process, by the processor
time of that process; memory is that of a fresh process for each form. Compiling is counted apart, from an empty cache.
Prints medians, the ratios and the geometric mean over the three shapes of the target; with a file's name it records
them with the machine, the versions and n. Parts that are named (256x1000, 1024x32000, 512x128256, curves, memory) are
measured anew and the others of the file kept.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from forms import BETA, CPU, GAMMA, added_mb, algorithm_1, plain

from tutelage import kernels, manifest

TARGET = (256, 1000), (1024, 32_000), (512, 128_256)
CURVES = (256, 100), (256, 10_000), (256, 100_000), (64, 1000), (1024, 1000), (4096, 1000)
REFERENCE = "reference: Algorithm 1"


def two_sweeps(z, v, labels):
    return kernels.cross_entropy_and_wttm(z, v, labels, gamma=GAMMA)


def forward_sweep(z, v, labels):
    """What `kernels` computes, written for a compiler: whole rows, masked, no blocks."""
    max_z, max_v = z.amax(-1), v.amax(-1)
    a, b = z - max_z[:, None], v - max_v[:, None]
    c = GAMMA * b
    w = c.exp()
    log_s, log_p, log_w = a.exp().sum(-1).log(), b.exp().sum(-1).log(), w.sum(-1).log()
    d = torch.where(w == 0, 0.0, w * (c - a)).sum(-1)
    power_sum = (log_w - GAMMA * log_p).exp()
    ce = log_s - (z.gather(-1, labels[:, None])[:, 0] - max_z)
    return ce, power_sum * (d * (-log_w).exp() + log_s - log_w), max_z + log_s, GAMMA * max_v + log_w, power_sum


def backward_sweep(z, v, labels, log_s, log_w, power_sum, of_ce, of_wttm):
    of_p = (of_wttm * power_sum)[:, None]
    dz = (of_ce[:, None] + of_p) * (z - log_s[:, None]).exp() - of_p * (GAMMA * v - log_w[:, None]).exp()
    return dz - torch.where(torch.arange(z.shape[-1]) == labels[:, None], of_ce[:, None], 0.0)


SWEEPS = [torch.compile(sweep, fullgraph=True, dynamic=False) for sweep in (forward_sweep, backward_sweep)]


class CompiledSweeps(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, v, labels):
        ce, wttm, *statistics_ = SWEEPS[0](z, v, labels)
        ctx.save_for_backward(z, v, labels, *statistics_)
        return ce, wttm

    @staticmethod
    def backward(ctx, of_ce, of_wttm):
        return SWEEPS[1](*ctx.saved_tensors, of_ce, of_wttm), None, None


FORMS = {
    REFERENCE: algorithm_1,
    "losses": plain,
    "losses, compiled": torch.compile(plain, fullgraph=True, dynamic=False),
    "two sweeps, each compiled": CompiledSweeps.apply,
    "kernels": two_sweeps,
}
COMPILED = {"losses, compiled", "two sweeps, each compiled"}


def draw(batch, classes):
    torch.manual_seed(0)
    return (
        (3 * torch.randn(batch, classes)).requires_grad_(),
        5 * torch.randn(batch, classes),
        torch.randint(classes, (batch,)),
    )


def step(form, z, v, labels):
    """Run forward and backward once and return the seconds and the gradient."""
    began = time.process_time()
    ce, wttm = form(z, v, labels)
    (ce.mean() + BETA * wttm.mean()).backward()
    taken = time.process_time() - began
    gradient, z.grad = z.grad, None
    return taken, gradient


def time_all(batch, classes):
    """Return each form's median seconds, n, and the wall seconds of the compiled forms' first call."""
    inputs, taken, first, expected = draw(batch, classes), {}, {}, None
    names = [name for name in FORMS if (batch, classes) in TARGET or name not in COMPILED]
    n = 51 if batch * classes < 10**6 else 7 if batch * classes < 10**7 else 5 if batch * classes < 5 * 10**7 else 3
    for i in range(n + 1):  # in turn, so that a change of the machine's speed meets all; the first round warms up
        for name in names:
            began = time.perf_counter()
            seconds, gradient = step(FORMS[name], *inputs)
            if i:
                taken.setdefault(name, []).append(seconds)
                continue
            if name in COMPILED:
                first[name] = time.perf_counter() - began
            expected = gradient if expected is None else expected
            torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=2e-5 * expected.abs().max().item())
            del gradient
    return {name: statistics.median(values) for name, values in taken.items()}, n, first


def memory_of(name, batch, classes):
    done = subprocess.run(
        [sys.executable, __file__, "--memory", name, str(batch), str(classes)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
        text=True,
    )
    return float(done.stdout.split()[-1])


def times(shapes):
    rows = []
    for batch, classes in shapes:
        medians, n, first = time_all(batch, classes)
        ratio = {name: medians[REFERENCE] / median for name, median in medians.items()}
        rows.append(
            {"batch": batch, "classes": classes, "n": n, "median_s": medians, "times_faster": ratio}
            | ({"first_call_s": first} if first else {})
        )
        print(f"{batch} x {classes}, n = {n}")
        for name, median in medians.items():
            compiling = f", first call {first[name]:.0f} s" if name in first else ""
            print(f"  {name:<26} {median * 1e3:9.2f} ms, {ratio[name]:5.2f} times as fast{compiling}", flush=True)
    return rows


def added():
    rows = []
    for batch, classes in TARGET:
        logits_mb = batch * classes * 4 / 1e6
        found = {name: memory_of(name, batch, classes) for name in FORMS}
        rows.append({"batch": batch, "classes": classes, "n": 1, "logits_mb": logits_mb, "added_mb": found})
        print(f"{batch} x {classes}, logits {logits_mb:.1f} MB")
        for name, size in found.items():
            print(f"  {name:<26} {size:9.1f} MB, {size / logits_mb:5.2f} times the logits", flush=True)
    return rows


def means(rows):
    found = {name: statistics.geometric_mean([row["times_faster"][name] for row in rows]) for name in FORMS}
    over = [row["median_s"]["losses, compiled"] / row["median_s"]["kernels"] for row in rows]
    return found | {"kernels over losses, compiled": statistics.geometric_mean(over)}


PARTS = {f"{batch}x{classes}": lambda shape=(batch, classes): times([shape]) for batch, classes in TARGET}
PARTS |= {"curves": lambda: times(CURVES), "memory": added}


def plot(result):
    from matplotlib import pyplot as plt

    found = json.loads(result.read_text())["parts"]
    rows = [row for part, rows in found.items() if part != "memory" for row in rows]
    plt.rcParams.update({"svg.hashsalt": "tutelage", "svg.fonttype": "none"})
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    for axis, key, fixed, value in ((axes[0], "classes", "batch", 256), (axes[1], "batch", "classes", 1000)):
        chosen = sorted((row for row in rows if row[fixed] == value), key=lambda row: row[key])
        for name in (REFERENCE, "losses", "kernels"):
            axis.loglog([row[key] for row in chosen], [row["median_s"][name] * 1e3 for row in chosen], "o-", label=name)
        axis.set(xlabel=key, title=f"{fixed} {value}")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("forward and backward, ms")
    axes[0].legend()
    figure.savefig(result.with_suffix(".svg"), metadata={"Date": None})


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["--memory"]:
        form, inputs = FORMS[sys.argv[2]], draw(*map(int, sys.argv[3:]))
        small = [x.detach()[:2].clone().requires_grad_(i == 0) for i, x in enumerate(inputs)]
        step(form, *small)  # libraries and threads; a compiled form is compiled for its own shape as well
        if sys.argv[2] in COMPILED:
            step(form, *inputs)
        print(added_mb(lambda: step(form, *inputs)))
    elif sys.argv[2:] == ["--plot"]:
        plot(Path(sys.argv[1]))
    else:
        path = Path(sys.argv[1]) if sys.argv[1:] else None
        parts = json.loads(path.read_text())["parts"] if path and path.exists() and sys.argv[2:] else {}
        with tempfile.TemporaryDirectory() as cache:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
            for part in sys.argv[2:] or PARTS:
                parts[part] = PARTS[part]()
        result = {"gamma": GAMMA, "threads": 1, "parts": parts}
        target = [row for batch, classes in TARGET for row in parts.get(f"{batch}x{classes}", [])]
        if len(target) == len(TARGET):
            result["geometric_mean_times_faster"] = means(target)
            for name, mean in result["geometric_mean_times_faster"].items():
                print(f"geometric mean of three: {name} {mean:.2f}")
        if path:
            machine = {**manifest.version(), "hardware": manifest.hardware(CPU)}
            record = {**result, **machine, "software": manifest.software()}
            path.write_text(json.dumps(record, indent=2) + "\n")
