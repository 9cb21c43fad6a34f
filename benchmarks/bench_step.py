"""Time a training step here against the published procedure, with a live teacher and with recorded outputs.

    python benchmarks/bench_step.py [data.source=hf:FOLDER] [--batches] [--steps N] [--rounds N] [--write RESULT.json]
    python benchmarks/bench_step.py RESULT.json --plot      draws RESULT.svg from its batches

Four pairs at batch 64; prints images per second, the ratios of each pair and their geometric means. ``--batches``
instead times one pair, resnet56/resnet20, at three batch sizes, and adds them to what the file has. Without a source
the images are random ones of CIFAR-100's shape, which cost the same.
"""

from pathlib import Path

import output

from tutelage import data
from tutelage.benchmark import batches, steps
from tutelage.settings.data import DataSettings

SIZES = 16, 64, 256
FORMS = {"reference": "published procedure", "live": "live teacher", "recorded": "recorded teacher"}


def sizes(splits, images, pair=steps.PAIRS[0], of=SIZES, *, n, rounds):
    """Time one pair at several batch sizes."""
    rows = []
    for batch in of:
        row = steps.measure_pair(pair, splits, batch=batch, n=n, rounds=rounds)
        print(f"batch {batch:<4} {steps.line(row, batch)}", flush=True)
        rows.append({"batch": batch, **{name: getattr(row, name) for name in FORMS}})
    measured = {"pair": "/".join(pair), "n": {"steps": n, "rounds": rounds}, "images": images, "seconds_a_step": rows}
    return measured | output.machine()


def pairs(splits, images, *, n, rounds):
    """Time the four pairs."""
    rows = []
    for pair in steps.PAIRS:
        rows.append(steps.measure_pair(pair, splits, n=n, rounds=rounds))
        print(steps.line(rows[-1]), flush=True)
    print(steps.means(rows))
    return {
        "n": {"steps": n, "rounds": rounds},
        "images": images,
        "seconds_a_step": [row._asdict() for row in rows],
        "geometric_means": steps.ratios(rows),
    }


def plot(result):
    record = output.part(result, "batches", f"python benchmarks/bench_step.py --batches --write {result}")
    rows = record["seconds_a_step"]
    with output.figure(result) as axis:
        for name, label in FORMS.items():
            axis.plot([row["batch"] for row in rows], [row["batch"] / row[name] for row in rows], "o-", label=label)
        axis.set_xscale("log", base=2)
        axis.set_xticks([row["batch"] for row in rows], labels=[str(row["batch"]) for row in rows])
        axis.set(xlabel="batch", ylabel="images per second", title=record["pair"], ylim=(0, None))
        axis.legend()


if __name__ == "__main__":
    parser = output.parser(__doc__)
    parser.add_argument("typed", nargs="?")
    parser.add_argument("--batches", action="store_true")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--plot", action="store_true")
    arguments = parser.parse_args()
    if arguments.plot:
        plot(Path(arguments.typed))
        parser.exit()
    if arguments.typed:
        source = arguments.typed.removeprefix("data.source=")
        settings = DataSettings(source=source, label="fine_label", crop_padding=4, flip=True)
        images = (data.open_data(settings), "CIFAR-100")
    else:
        images = (batches.random_images(), "random")
    measure = sizes if arguments.batches else pairs
    measured = measure(*images, n=arguments.steps, rounds=arguments.rounds)
    before = output.read(arguments.write)
    if arguments.batches:
        record = before | {"batches": measured}
    else:
        record = measured | {name: before[name] for name in ("batches",) if name in before}
    output.write(arguments.write, record)
