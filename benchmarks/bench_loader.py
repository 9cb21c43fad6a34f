"""Time the loader of an image folder against torchvision's and timm's, in turn, in one process.

    python benchmarks/bench_loader.py FOLDER [--rounds N] [--threads N] [--write RESULT.json]

FOLDER has a folder of photographs per class, or ``train`` and ``test`` with such. Each loader makes an epoch of
training views: shuffled, a random box resized to 224 pixels, flipped in half of the cases, float32, in batches of 64.

- tutelage: `BatchLoader`, values in [0, 1];
- torchvision: `ImageFolder`, Pillow images, `transforms.v2`, PyTorch's `DataLoader`, values in [0, 1];
- torchvision, tensors: the same on tensors, which `torchvision.io.decode_image` reads;
- timm: `create_dataset` and `create_loader` with its prefetcher, the default, which also normalises.

The same is then measured on 128 of the photographs enlarged to 2048 pixels on the shorter side, as JPEGs of quality 90
in a temporary folder: about the size that a camera gives them.

Workers last from epoch to epoch in all of them. Printed are, for 0 and for 2 workers, each loader's median images per
second, and this package's ratio to it in the same round: the median, the smallest and the largest; then the same of
images per second of processors, of this process and its workers, which other work on the machine disturbs less. The
first round, in which workers start, does not count.
"""

import contextlib
import statistics
import tempfile
import time
from pathlib import Path

import output
import psutil
import timm.data
import torch
import torchvision
from PIL import Image
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


def processor_seconds():
    """Return the processor's seconds that this process and its workers have taken so far."""
    this = psutil.Process()
    times = [process.cpu_times() for process in (this, *this.children())]
    return sum(taken.user + taken.system for taken in times)


def speed(epochs):
    """Return the images of the next epoch per second by the clock, and per processor second."""
    images, began, taken = 0, time.perf_counter(), processor_seconds()
    for inputs in next(epochs):
        images += len(inputs)
    return images / (time.perf_counter() - began), images / (processor_seconds() - taken)


@contextlib.contextmanager
def enlarged(folder, *, count=128, side=2048):
    """Yield a folder of enlarged copies of some of the photographs, in two classes."""
    paths = [path for path, _ in torchvision.datasets.ImageFolder(_train(folder)).samples]
    with tempfile.TemporaryDirectory() as scratch:
        for number, path in enumerate(paths[:: max(1, len(paths) // count)][:count]):
            below = Path(scratch) / "ab"[number % 2]
            below.mkdir(exist_ok=True)
            with Image.open(path) as image:
                factor = side / min(image.size)
                large = image.convert("RGB").resize([round(length * factor) for length in image.size])
            large.save(below / f"{number}.jpg", quality=90)
        yield scratch


def measure(folder, workers, rounds):
    """Return each loader's two speeds in each round; each round has another order."""
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


def compare(speeds):
    """Print each loader's speed and this package's over it, and return the least of these ratios' medians."""
    medians = {}
    for name, others in speeds.items():
        ratios = [ours / other for ours, other in zip(speeds[OURS], others, strict=True)]
        row = f"      {name:<24}{statistics.median(others):>8,.0f} images/s"
        if name != OURS:
            medians[name] = statistics.median(ratios)
            row += f"   {medians[name]:.2f}x as fast ({min(ratios):.2f} to {max(ratios):.2f})"
        print(row)
    least = min(medians.values())
    print(f"      {OURS} against the fastest of the others: {least:.2f}", flush=True)
    return least


def figures(folder, rounds):
    """Measure with each number of workers, print, and return the figures."""
    measured = {}
    for workers in WORKERS:
        speeds = measure(folder, workers, rounds)
        part = measured[f"{workers} workers"] = {}
        for number, clock in enumerate(("by the clock", "by processor time")):
            print(f"  {workers} workers, {clock}")
            chosen = {name: [pair[number] for pair in pairs] for name, pairs in speeds.items()}
            part[clock] = {"ratio": compare(chosen), "images_per_second": chosen}
    return measured


if __name__ == "__main__":
    parser = output.parser(__doc__)
    parser.add_argument("folder")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    record = {"n": arguments.rounds, "threads": arguments.threads, "batch": BATCH, "size": SIZE}
    with enlarged(arguments.folder) as large:
        for name, folder in {"photographs": arguments.folder, "large photographs": large}.items():
            images = len(torchvision.datasets.ImageFolder(_train(folder)))
            print(f"{images} {name}")
            record[name] = {"images": images, **figures(folder, arguments.rounds)}
    output.write(arguments.write, record)
