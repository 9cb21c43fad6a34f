"""Time recording a teacher's outputs against the teacher's forward pass alone, over the same views.

    python benchmarks/bench_record.py [RESULT.json] [data.source=...]

A resnet56 (benchmarks/results/cifar100-quick/teacher) on the first views of 2048 training images of CIFAR-100, batches
of 256, channels-last, in float32 and in bfloat16, on one thread and on two. The reference is the forward pass on views
that were made before. Recording makes the views, asks, and writes with a sync. Prints the ratio of the medians, of the
clock on the wall and of this process's processor time, and of the fastest, which other processes disturb least; what
opening and reading the epoch takes, and how far off the top-k form would be. With a file's name it records them with
the machine, the versions and n.
"""

import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from tutelage import data, manifest, recipes, recording
from tutelage.engine.evaluate import place
from tutelage.lesson import FrozenTeacher
from tutelage.material import gather, outputs_of
from tutelage.store import Recorded, Top

N, SAMPLES, BATCH = 5, 2048, 256
TEACHER = Path(__file__).parent / "results" / "cifar100-quick" / "teacher"


def recipe_of(source, precision, threads, outputs):
    """Return the recipe of a run of one epoch that reads recorded outputs."""
    value = {
        "name": "record",
        "data": {"source": source, "image": "img", "label": "fine_label", "crop_padding": 4, "flip": True},
        "student": "cifar:resnet20",
        "teacher": str(TEACHER),
        "objective": {"wttm": {"gamma": 0.25, "beta": 1.0}},
        "epochs": 1,
        "precision": precision,
        "channels_last": True,
        "threads": threads,
        "device": "cpu",
        "outputs": outputs,
    }
    return recipes.parse(recipes.Recipe, value)


def now():
    """Return the clock's seconds and the process's."""
    return np.array([time.perf_counter(), time.process_time()])


def forward(teacher, views, precision):
    """Time the teacher on views that are there."""
    began = now()
    for batch in views:
        moved = batch._replace(inputs=place(batch.inputs, torch.device("cpu"), channels_last=True))
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            teacher(moved)
    return now() - began


def reading(store, index):
    """Time opening the recorded epoch, and reading all of it in batches of 64."""
    teacher = Recorded(store)
    began = time.perf_counter()
    teacher.open(0)
    opened = time.perf_counter()
    for places in index.split(64):
        teacher(data_batch(places))
    return {"open_s": opened - began, "batch_s": (time.perf_counter() - opened) / len(index.split(64))}


def data_batch(places):
    """Return a batch of which only the places are read."""
    from tutelage.contracts import Batch

    return Batch(places, torch.empty(len(places), 0), places)


def main(result, source):
    """Measure, print and record."""
    material = gather(recipe_of(source, "fp32", 1, "unused"))
    whole = material.splits.train
    train = replace(whole, positions=whole.positions[:SAMPLES], labels=whole.labels[:SAMPLES])
    material = material._replace(splits=replace(material.splits, train=train))
    batches = data.SplitBatches(train, batch_size=BATCH, train=True)
    views = list(batches.at(0, np.array_split(np.arange(SAMPLES), SAMPLES // BATCH)))
    teacher = FrozenTeacher(material.teacher).to(memory_format=torch.channels_last)
    found, top, read = [], [], {}
    for precision, threads in (("bf16", 1), ("fp32", 1), ("bf16", 2), ("fp32", 2)):
        taken = {"recording": [], "reference: the forward pass": []}
        n = N if precision == "bf16" else N // 2 + 1
        for i in range(n + 1):  # in turn, so that a change of the machine's speed meets both; the first round warms up
            with tempfile.TemporaryDirectory() as folder:
                torch.set_num_threads(threads)
                alone = forward(teacher, views, precision)
                recipe = recipe_of(source, precision, threads, f"{folder}/outputs")
                began = now()
                recording.record(recipe, material=material)
                whole_s = now() - began
                if i:
                    taken["recording"].append(whole_s)
                    taken["reference: the forward pass"].append(alone)
                if (precision, threads, i) == ("bf16", 1, 1):
                    store = outputs_of(recipe, material)
                    read = reading(store, torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(0)))
                    said = store.read(0, "logits")[0]
                    top = errors(said["values"].float() + said["mean"])
        medians = {name: np.median(values, 0) for name, values in taken.items()}
        wall, processor = np.divide(*medians.values())
        entry = {"precision": precision, "threads": threads, "n": n, "ratio_wall": wall, "ratio_processor": processor}
        fastest = {name: min(value[0] for value in values) for name, values in taken.items()}
        entry |= {"ratio_fastest": float(np.divide(*fastest.values())), "fastest_wall_s": fastest}
        found.append(entry | {"median_wall_s": {name: median[0] for name, median in medians.items()}})
        print(f"{precision}, {threads} threads: " + ", ".join(f"{k} {v[0]:.2f} s" for k, v in medians.items()), end="")
        print(f": {wall:.3f} times the reference, {processor:.3f} in processor time, ", end="")
        print(f"{entry['ratio_fastest']:.3f} of the fastest, n={n}", flush=True)
    print(f"reading: {read['open_s'] * 1e3:.1f} ms to open, {read['batch_s'] * 1e6:.0f} us a batch of 64")
    for entry in top:
        off = f"p_gamma off by {entry['mean_tv']:.2g}, U_gamma by {entry['mean_power_sum']:.2g}"
        print(f"top {entry['top']} of 100, gamma {entry['gamma']}: {off}")
    if result:
        record = {"samples": SAMPLES, "batch": BATCH, "record": found, "read": read, "top_errors": top}
        machine = {**manifest.version(), "hardware": manifest.hardware(torch.device("cpu"))}
        Path(result).write_text(json.dumps({**record, **machine, "software": manifest.software()}, indent=2) + "\n")


def errors(logits):
    """Measure the top-k form of these logits, at three exponents."""
    rows = []
    for kept in (4, 8, 16, 32):
        form = Top.of(kept, logits.shape[1])
        error = form.pack(logits)["error"]
        for gamma in (0.25, 0.5, 1.0):
            mean_tv, _, mean_sum, _ = (float(f"{e:.3g}") for e in error[form.at(gamma)].tolist())
            rows.append({"top": kept, "gamma": gamma, "mean_tv": mean_tv, "mean_power_sum": mean_sum})
    return rows


if __name__ == "__main__":
    sources = [word.partition("=")[2] for word in sys.argv[1:] if word.startswith("data.source=")]
    results = [word for word in sys.argv[1:] if "=" not in word]
    main(results[0] if results else None, sources[0] if sources else "hf:uoft-cs/cifar100")
