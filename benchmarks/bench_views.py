"""Time the views of training images of this version against another version of it, in turn, on one machine.

    python benchmarks/bench_views.py [BASE]                     seven rounds, about two minutes on one core
    python benchmarks/bench_views.py BASE --write RESULT.json   keeps every figure

BASE is a git revision, which is checked out into a temporary worktree; without it this version is timed alone. Each
version waits in a process of its own, with one thread. Printed are, per kind of view, the median images per second of
this version and, with BASE, the median over rounds of its speed over BASE's, with the smallest and the largest: above 1
this version is faster. Seconds are the processor's. Views by a library's transform are timed in this version alone.
Images are cuts of scikit-learn's two photographs; none is decoded.
"""

import statistics
import time

import versions

PLAIN = {
    "RandAugment, 32 x 32": (32, {"randaugment": True}),
    "RandAugment, 224 x 224": (224, {"randaugment": True}),
    "RandAugment, 224 x 224, bicubic": (224, {"randaugment": True, "interpolation": "bicubic"}),
    "box, flip and RandAugment, 224 x 224": (224, {"randaugment": True, "random_resized_crop": True, "flip": True}),
}
"""Side and settings by name."""
BY_NAME = {
    f"{transform}, {side} x {side}": (side, {"transform": transform})
    for transform in ("torchvision:TrivialAugmentWide", "torchvision:RandAugment", "timm:rand-m9-mstd0.5-inc1")
    for side in (32, 224)
}
COUNT = {32: 2048, 224: 128}
"""Images of a round by their side."""


def serve():
    """Answer each name of a kind of view with its images per second; with null where it cannot be had."""
    import numpy as np
    import torch
    from PIL import Image
    from sklearn.datasets import load_sample_image

    from tutelage.data import DataSettings, RandAugment, View
    from tutelage.data.streamed import StreamSplit
    from tutelage.data.transforms import vary
    from tutelage.images import ArrayReader, Layout

    torch.set_num_threads(1)
    photographs = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]

    def settings_of(values):
        return DataSettings(**{k: RandAugment() if k == "randaugment" else value for k, value in values.items()})

    def speed(name):
        side, values = {**PLAIN, **BY_NAME}[name]
        count, further, view = COUNT[side], {}, View(0, 0)
        if "transform" in values:
            try:
                from tutelage.data.custom_transforms import find

                further["transform"] = find(values["transform"], image_size=(side, side), channels=3)
            except ImportError:
                return None
        settings = settings_of(values)
        size = (320, 256) if settings.random_resized_crop else (side, side)
        chosen = [photographs[k % 2].resize(size, box=(k, k, k + 320, k + 256)) for k in range(64)]
        held = np.stack([np.asarray(image) for image in chosen])
        boxed = StreamSplit(
            labels=torch.zeros(count, dtype=torch.int64),
            reader=ArrayReader(held),
            positions=np.arange(count) % 64,
            layout=Layout(side, side, 3, 1.0),
            settings=settings,
            augmented=True,
        )
        began = time.process_time()
        for start in range(0, count, 64):
            index = np.arange(start, start + 64)
            if settings.random_resized_crop:
                list(boxed.stream_images([index], view=view))
            else:
                vary(torch.from_numpy(held), index, view=view, settings=settings, **further)
        return count / (time.process_time() - began)

    versions.serve(speed)


def measure(sides, rounds):
    """Return every ratio by kind of view, and this version's images per second; print each row as it is known."""
    ratios, speeds = {}, {}
    for name in (*PLAIN, *BY_NAME):
        compared = sides if name in PLAIN else {"here": sides["here"]}
        answers = versions.in_turn(compared, rounds, name)
        here = [row["here"] for row in answers]
        if None in here:
            print(f"{name:<46} not measured: a library that it needs is not installed", flush=True)
            continue
        speeds[name], row = here, f"{name:<46} {statistics.median(here):>9,.0f} images/s"
        if "base" in compared:
            pairs = ratios[name] = [answer["here"] / answer["base"] for answer in answers]
            row += f"   {statistics.median(pairs):.3f}  {min(pairs):.3f} to {max(pairs):.3f}"
        print(row, flush=True)
    return {"images_per_second": speeds, "ratios": ratios}


if __name__ == "__main__":
    versions.main(__file__, __doc__, serve, measure, rounds=7, alone=True)
