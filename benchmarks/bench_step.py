"""Time a training step here against the published procedure, with a live teacher and with recorded outputs.

    python benchmarks/bench_step.py [data.source=hf:FOLDER] [--batches] [--write RESULT.json]
    python benchmarks/bench_step.py RESULT.json --plot      draws RESULT.svg from its batches

Four pairs at batch 64; prints images a second, the ratios of each pair and their geometric means. With ``--batches``
one pair, resnet56/resnet20, at three batch sizes instead, which are written beside what the file has. Without a source
the images are random ones of CIFAR-100's shape, which cost the same.
"""

import sys
from pathlib import Path

import output

from tutelage import data
from tutelage.benchmark import batches, steps
from tutelage.settings.data import DataSettings

N, ROUNDS = 16, 2
SIZES = 16, 64, 256
FORMS = {"reference": "published procedure", "live": "live teacher", "recorded": "recorded teacher"}


def sizes(splits, images, pair=steps.PAIRS[0], of=SIZES, n=N, rounds=ROUNDS):
    """Time one pair at several batch sizes."""
    rows = []
    for batch in of:
        row = steps.one(pair, splits, batch=batch, n=n, rounds=rounds)
        print(f"batch {batch:<4} {steps.line(row, batch)}", flush=True)
        rows.append({"batch": batch, **{name: getattr(row, name) for name in FORMS}})
    measured = {"pair": "/".join(pair), "n": {"steps": n, "rounds": rounds}, "images": images, "seconds_a_step": rows}
    return measured | output.machine()


def pairs(splits, images):
    """Time the four pairs."""
    rows = []
    for row in steps.measure(splits, n=N, rounds=ROUNDS):
        rows.append(row)
        print(steps.line(row), flush=True)
    print(steps.means(rows))
    return {
        "n": {"steps": N, "rounds": ROUNDS},
        "images": images,
        "seconds_a_step": [row._asdict() for row in rows],
        "geometric_means": steps.ratios(rows),
    }


def plot(result):
    found = output.part(result, "batches", f"python benchmarks/bench_step.py --batches --write {result}")
    rows = found["seconds_a_step"]
    with output.figure(result) as axis:
        for name, label in FORMS.items():
            axis.plot([row["batch"] for row in rows], [row["batch"] / row[name] for row in rows], "o-", label=label)
        axis.set_xscale("log", base=2)
        axis.set_xticks([row["batch"] for row in rows], labels=[str(row["batch"]) for row in rows])
        axis.set(xlabel="batch", ylabel="images a second", title=found["pair"], ylim=(0, None))
        axis.legend()


if __name__ == "__main__":
    typed = sys.argv[1:]
    if typed[1:] == ["--plot"]:
        plot(Path(typed[0]))
        sys.exit()
    path = Path(typed[typed.index("--write") + 1]) if "--write" in typed else None
    source = next((text.split("=", 1)[1] for text in typed if text.startswith("data.source=")), None)
    settings = DataSettings(source=source, label="fine_label", crop_padding=4, flip=True) if source else None
    given = (data.open_data(settings), "CIFAR-100") if settings else (batches.random_images(), "random")
    before = output.read(path)
    if "--batches" in typed:
        found = before | {"batches": sizes(*given)}
    else:
        found = pairs(*given) | {name: before[name] for name in ("batches",) if name in before}
    if path:
        output.write(path, found)
