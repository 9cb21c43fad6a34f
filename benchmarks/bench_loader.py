"""Time the loader of an image folder against torchvision's and timm's, in turn, in one process.

    python benchmarks/bench_loader.py FOLDER [--rounds N] [--threads N] [--write RESULT.json]

FOLDER has a folder of photographs per class, or ``train`` and ``test`` with such. Each loader makes an epoch of training
views: shuffled, a random box resized to 224 pixels, flipped in half of the cases, float32, in batches of 64. Their forms:

- tutelage: `BatchLoader`, values in [0, 1];
- torchvision: `ImageFolder`, Pillow images, `transforms.v2`, PyTorch's `DataLoader`, values in [0, 1];
- torchvision, tensors: the same with `torchvision.io.decode_image`, which its documentation calls the fast form;
- timm: `create_dataset` and `create_loader` with its prefetcher, the default, which also normalises.

Workers last from epoch to epoch in all of them. Printed are, for 0 and for 2 workers, each loader's median images per
second, and this package's ratio to it in the same round: the median, the smallest and the largest. Seconds are the
clock's; the first round, in which workers start, does not count.
"""

import statistics
import time
from pathlib import Path

import output
import timm.data
import torch
import torchvision
from torch.utils.data import DataLoader
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from tutelage import data
from tutelage.settings.data import DataSettings

SIZE, BATCH, OURS = 224, 64, "tutelage"
WORKERS = (0, 2)


def ours(folder, workers):
    """Return an endless iterator over epochs: this package's."""
    settings = DataSettings(
        source=f"imagefolder:{folder}", size=SIZE, random_resized_crop=True, flip=True, test="train", workers=workers
    )
    if (Path(folder) / "train").is_dir():
        settings = DataSettings(**{**vars(settings), "test": "held_out"})
    loader = data.BatchLoader(data.open_data(settings).train, batch_size=BATCH, train=True)
    epoch = 0
    while True:
        yield (batch.inputs for batch in loader.epoch(epoch))
        epoch += 1


def torchvisions(folder, workers, *, tensors):
    """Return an endless iterator over epochs: torchvision's, of Pillow images or of tensors."""
    transforms = [
        v2.RandomResizedCrop(SIZE, antialias=True),
        v2.RandomHorizontalFlip(),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
    ]
    how = {"loader": lambda path: decode_image(path, mode=ImageReadMode.RGB)} if tensors else {}
    images = torchvision.datasets.ImageFolder(_train(folder), transform=v2.Compose(transforms), **how)
    loader = DataLoader(images, batch_size=BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    while True:
        yield (inputs for inputs, _ in loader)


def timms(folder, workers):
    """Return an endless iterator over epochs: timm's."""
    loader = timm.data.create_loader(
        timm.data.create_dataset("", root=_train(folder), is_training=True),
        (3, SIZE, SIZE),
        BATCH,
        is_training=True,
        color_jitter=None,
        interpolation="bilinear",
        num_workers=workers,
        device=torch.device("cpu"),
    )
    while True:
        yield (inputs for inputs, _ in loader)


def _train(folder):
    return str(Path(folder) / "train") if (Path(folder) / "train").is_dir() else folder


def speed(epochs):
    """Return the images per second of the next epoch."""
    images, began = 0, time.perf_counter()
    for inputs in next(epochs):
        images += len(inputs)
    return images / (time.perf_counter() - began)


def measure(folder, workers, rounds):
    """Return each loader's images per second in each round; each round has another order."""
    loaders = {
        OURS: ours(folder, workers),
        "torchvision": torchvisions(folder, workers, tensors=False),
        "torchvision, tensors": torchvisions(folder, workers, tensors=True),
        "timm": timms(folder, workers),
    }
    speeds = {name: [] for name in loaders}
    for turn in range(rounds + 1):
        for name in list(loaders) if turn % 2 else list(loaders)[::-1]:
            speeds[name].append(speed(loaders[name]))
    return {name: values[1:] for name, values in speeds.items()}


def ratios(speeds):
    """Return this package's speed over each other's, by round: the median, the smallest and the largest."""
    pairs = {name: [a / b for a, b in zip(speeds[OURS], speeds[name], strict=True)] for name in speeds}
    return {
        name: {"median": statistics.median(values), "min": min(values), "max": max(values)}
        for name, values in pairs.items()
        if name != OURS
    }


if __name__ == "__main__":
    parser = output.parser(__doc__)
    parser.add_argument("folder")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    record = {}
    for workers in WORKERS:
        speeds = measure(arguments.folder, workers, arguments.rounds)
        against = ratios(speeds)
        print(f"{workers} workers")
        for name, values in speeds.items():
            row = f"  {name:<24}{statistics.median(values):>8,.0f} images/s"
            if name in against:
                row += "   {median:.2f}x as fast ({min:.2f} to {max:.2f})".format(**against[name])
            print(row, flush=True)
        least = min(ratio["median"] for ratio in against.values())
        print(f"  tutelage against the best of the others: {least:.2f}", flush=True)
        record[f"{workers} workers"] = {"images_per_second": speeds, "ratios": against}
    n = {"rounds": arguments.rounds, "images": len(torchvision.datasets.ImageFolder(_train(arguments.folder)))}
    output.write(arguments.write, {"n": n, "threads": arguments.threads, "batch": BATCH, "size": SIZE, **record})
