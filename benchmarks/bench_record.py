"""Time recording a teacher's outputs against the teacher's forward pass alone, over the same views.

    python benchmarks/bench_record.py [RESULT.json] [data.source=...] [--samples N] [--rounds N]

A resnet56 (benchmarks/results/cifar100-quick/teacher) on the first views of by default 2048 training images of
CIFAR-100, batches of 256, channels-last, in float32 and in bfloat16, on one thread and on two. The reference is the
forward pass on existing views. Recording makes the views, runs the teacher, and writes with a sync. Prints the ratio of
the medians, in wall-clock time and in this process's processor time, and of the fastest, which other processes disturb
least; the time to open and read the epoch; and the error of the top-k form. Given a file name, records them with the
machine, the versions and n.
"""

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import output
import torch

from tutelage.benchmark.recording import BATCH, RECORDING, REFERENCE, measure, recipe_of
from tutelage.runs import record_teacher
from tutelage.runs.setup import build_inputs, outputs_of
from tutelage.teacher_cache.cache import CachedTeacher
from tutelage.teacher_cache.top_k import TopK
from tutelage.types import Batch, View

TEACHER = Path(__file__).parent / "results" / "cifar100-quick" / "teacher"


def recipe(source, precision, threads):
    """Return the recipe of a run of one epoch that reads recorded outputs."""
    views = {"source": source, "image": "img", "label": "fine_label", "crop_padding": 4, "flip": True}
    return recipe_of(data=views, teacher=str(TEACHER), precision=precision, threads=threads, device="cpu")


def reading(store, index):
    """Time opening the recorded epoch, with its first sample, and reading all of it in batches of 64."""
    teacher, view = CachedTeacher(store), View(store.key["data_seed"], 0)
    began = time.perf_counter()
    teacher(Batch(index[:1], torch.empty(1, 0), index[:1], view))
    opened = time.perf_counter()
    for indices in index.split(64):
        teacher(Batch(indices, torch.empty(len(indices), 0), indices, view))
    return {"open_s": opened - began, "batch_s": (time.perf_counter() - opened) / len(index.split(64))}


def errors(logits):
    """Measure the top-k form of these logits, at three exponents."""
    rows = []
    for kept in (4, 8, 16, 32):
        form = TopK.of(kept, logits.shape[1])
        error = form.pack(logits)["error"]
        for gamma in (0.25, 0.5, 1.0):
            mean_tv, _, mean_sum, _ = (float(f"{e:.3g}") for e in error[form.at(gamma)].tolist())
            rows.append({"top": kept, "gamma": gamma, "mean_tv": mean_tv, "mean_power_sum": mean_sum})
    return rows


def recorded(run_inputs, original, samples):
    """Record once more; return the time to read and the error of the top-k form."""
    with tempfile.TemporaryDirectory() as folder:
        copied = original.model_copy(update={"outputs": f"{folder}/outputs"})
        record_teacher.record(copied, run_inputs=run_inputs)
        store = outputs_of(copied, run_inputs)
        read = reading(store, torch.randperm(samples, generator=torch.Generator().manual_seed(0)))
        chunk = store.read(0, "logits")[0]
        return read, errors(chunk["values"].float() + chunk["mean"])


def main(result, source, samples, rounds):
    """Measure, print and record."""
    torch.set_num_threads(1)
    run_inputs = build_inputs(recipe(source, "fp32", 1))
    whole = run_inputs.splits.train
    train = replace(whole, positions=whole.positions[:samples], labels=whole.labels[:samples])
    run_inputs = replace(run_inputs, splits=replace(run_inputs.splits, train=train))
    rows = []
    for precision, threads in (("bf16", 1), ("fp32", 1), ("bf16", 2), ("fp32", 2)):
        n = rounds if precision == "bf16" else rounds // 2 + 1
        times = measure(run_inputs, recipe(source, precision, threads), rounds=n)
        taken = {RECORDING: times.recording[:, 0], REFERENCE: times.forward[:, 0]}
        medians = {name: float(np.median(values)) for name, values in taken.items()}
        wall, processor, least = times.ratios()
        entry = {"precision": precision, "threads": threads, "n": n, "ratio_wall": wall, "ratio_processor": processor}
        entry |= {"ratio_fastest": least, "fastest_wall_s": {name: values.min() for name, values in taken.items()}}
        rows.append(entry | {"median_wall_s": medians})
        print(f"{precision}, {threads} threads: " + ", ".join(f"{k} {v:.2f} s" for k, v in medians.items()), end="")
        print(f": {wall:.3f} times the reference, {processor:.3f} in processor time, ", end="")
        print(f"{least:.3f} of the fastest, n={n}", flush=True)
    read, top = recorded(run_inputs, recipe(source, "bf16", 1), samples)
    print(f"reading: {read['open_s'] * 1e3:.1f} ms to open, {read['batch_s'] * 1e6:.0f} us a batch of 64")
    for entry in top:
        off = f"p_gamma off by {entry['mean_tv']:.2g}, U_gamma by {entry['mean_power_sum']:.2g}"
        print(f"top {entry['top']} of 100, gamma {entry['gamma']}: {off}")
    output.write(result, {"samples": samples, "batch": BATCH, "record": rows, "read": read, "top_errors": top})


if __name__ == "__main__":
    parser = output.parser(__doc__)
    parser.add_argument("typed", nargs="*")
    parser.add_argument("--samples", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    sources = [text.removeprefix("data.source=") for text in arguments.typed if text.startswith("data.source=")]
    results = [Path(text) for text in arguments.typed if "=" not in text]
    source = sources[0] if sources else "hf:uoft-cs/cifar100"
    main(results[0] if results else None, source, arguments.samples, arguments.rounds)
