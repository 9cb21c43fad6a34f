"""Time cross-entropy and WTTM with their gradient, and the memory they add, against the paper's Algorithm 1.

    python benchmarks/bench_losses.py [RESULT.json [PART ...]]
    python benchmarks/bench_losses.py RESULT.json --plot      draws RESULT.svg from it
    python benchmarks/bench_losses.py [RESULT.json [PART ...]] --device cuda

float32, one thread, gamma 0.1, the teacher's logits given. The forms alternate in one process and are timed by its
processor time; memory is measured in a fresh process per form. Compiling is timed separately, from an empty cache.
Prints medians, the ratios and the geometric mean over the three shapes of the target; given a file name, records them
with the machine, the versions and n. The other losses with kernels ("family") are timed against the plain functions.
If you name parts (256x1000, 1024x32000, 512x128256, curves, family, memory), only those are measured again; the file's
others are kept.

On a GPU: WTTM, KD, TTM and Jensen-Shannon in bfloat16, float16 and float32, see `gpu_losses.py`, and Liger and TRL if
installed; a PART is part of a line's name, such as "float16, kd". ``--small`` tries that in tiny sizes, also with
``--device cpu``, and records nothing.
"""

import os
import statistics
import tempfile
from functools import partial
from pathlib import Path

import gpu_losses
import output
import torch

from tutelage import kernels, losses
from tutelage.benchmark import timing
from tutelage.benchmark.losses import COMPILED, FORMS, GAMMA, KERNELS, REFERENCE, TARGET, memory_mb, plain, times
from tutelage.kernels.divergence import KINDS

CURVES = (256, 100), (256, 10_000), (256, 100_000), (64, 1000), (1024, 1000), (4096, 1000)
FAMILY = {
    "kd": partial(losses.kd, temperature=4.0),
    "ttm": partial(losses.ttm, gamma=GAMMA),
    **{kind: partial(losses.divergence, kind=kind) for kind in KINDS if kind != "forward"},
}
PLAIN_COMPILED = "losses, compiled"
FORMS[PLAIN_COMPILED] = torch.compile(plain, fullgraph=True, dynamic=False)
ALL = {name: FORMS[name] for name in (REFERENCE, "losses", PLAIN_COMPILED, KERNELS, COMPILED)}
OF_CURVES = {name: FORMS[name] for name in (REFERENCE, "losses", KERNELS, COMPILED)}


def memory_of(name, batch, classes):
    return memory_mb(ALL[name], batch, classes, compiled=name in (PLAIN_COMPILED, COMPILED))


def timed(shapes):
    rows = []
    for batch, classes in shapes:
        result = times(ALL if (batch, classes) in TARGET else OF_CURVES, batch, classes)
        first = {name: seconds for name, seconds in result.first_s.items() if "compiled" in name}
        ratio = {name: result.faster(name) for name in result.median_s}
        rows.append(
            {"batch": batch, "classes": classes, "n": result.n, "median_s": result.median_s, "times_faster": ratio}
            | ({"first_call_s": first} if first else {})
        )
        print(f"{batch} x {classes}, n = {result.n}")
        for name, median in result.median_s.items():
            compiling = f", first call {first[name]:.0f} s" if name in first else ""
            print(f"  {name:<26} {median * 1e3:9.2f} ms, {ratio[name]:5.2f} times as fast{compiling}", flush=True)
    return rows


def one_by_one(loss, z, v, labels):
    return losses.cross_entropy(z, labels), loss(z, v)


def family():
    rows = []
    for name, loss in FAMILY.items():
        forms = {
            "losses": partial(one_by_one, loss),
            KERNELS: partial(kernels.cross_entropy_and, loss),
            COMPILED: partial(kernels.cross_entropy_and, loss, compiled=True),
        }
        for batch, classes in TARGET[:2]:
            result = times(forms, batch, classes)
            ratio = {form: result.faster(form) for form in forms}
            rows.append(
                {"loss": name, "batch": batch, "classes": classes, "n": result.n}
                | {"median_s": result.median_s, "times_faster": ratio}
            )
            told = ", ".join(f"{form} {s * 1e3:.2f} ms ({ratio[form]:.2f})" for form, s in result.median_s.items())
            print(f"{name}, {batch} x {classes}, n = {result.n}: {told}", flush=True)
    return rows


def added():
    rows = []
    for batch, classes in TARGET:
        logits_mb = batch * classes * 4 / 1e6
        sizes = {name: timing.in_fresh_process(memory_of, name, batch, classes) for name in ALL}
        rows.append({"batch": batch, "classes": classes, "n": 1, "logits_mb": logits_mb, "added_mb": sizes})
        print(f"{batch} x {classes}, logits {logits_mb:.1f} MB")
        for name, size in sizes.items():
            print(f"  {name:<26} {size:9.1f} MB, {size / logits_mb:5.2f} times the logits", flush=True)
    return rows


def means(rows):
    return {name: statistics.geometric_mean([row["times_faster"][name] for row in rows]) for name in ALL}


PARTS = {f"{batch}x{classes}": lambda shape=(batch, classes): timed([shape]) for batch, classes in TARGET}
PARTS |= {"curves": lambda: timed(CURVES), "family": family, "memory": added}


def plot(result):
    parts = output.part(result, "parts", f"python benchmarks/bench_losses.py {result}")
    rows = [row for part, rows in parts.items() if part not in ("memory", "family") for row in rows]
    with output.figure(result, 2, sharey=True) as axes:
        for axis, key, fixed, value in ((axes[0], "classes", "batch", 256), (axes[1], "batch", "classes", 1000)):
            chosen = sorted((row for row in rows if row[fixed] == value), key=lambda row: row[key])
            for name in OF_CURVES:
                axis.loglog(
                    [row[key] for row in chosen], [row["median_s"][name] * 1e3 for row in chosen], "o-", label=name
                )
            axis.set(xlabel=key, title=f"{fixed} {value}")
        axes[0].set_ylabel("forward and backward, ms")
        axes[0].legend()


if __name__ == "__main__":
    parser = output.parser(__doc__)
    parser.add_argument("result", nargs="?", type=Path)
    parser.add_argument("parts", nargs="*", metavar="PART")
    parser.add_argument("--plot", action="store_true")
    output.add_device(parser)
    arguments = parser.parse_args()
    if arguments.device == "cuda" or arguments.small:
        gpu_losses.bench(parser, arguments, gpu_losses.logits_items(arguments), arguments.parts)
    if arguments.plot:
        plot(arguments.result)
        parser.exit()
    torch.set_num_threads(1)
    parts = output.read(arguments.result).get("parts", {}) if arguments.parts else {}
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        for part in arguments.parts or PARTS:
            parts[part] = PARTS[part]()
    record = {"gamma": GAMMA, "threads": 1, "parts": parts}
    target = [row for batch, classes in TARGET for row in parts.get(f"{batch}x{classes}", [])]
    if len(target) == len(TARGET):
        record["geometric_mean_times_faster"] = means(target)
        for name, mean in record["geometric_mean_times_faster"].items():
            print(f"geometric mean of three: {name} {mean:.2f}")
    output.write(arguments.result, record)
