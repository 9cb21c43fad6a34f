"""Time the data pipeline on one core: images per second of a loader, of an epoch's draws, and of decoding.

    python benchmarks/bench_data.py [FOLDER] [--rounds N] [--write RESULT.json]

At 32 pixels the images are random ones of CIFAR-100's shape, which cost the same. FOLDER has photographs, as for
``imagefolder:`` or as a local ``hf:`` folder; they are decoded at 224 pixels, in this process. Each figure is the best
of the rounds, whose forms alternate; each ratio is against the form that its line names.
"""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import output
import torch

from tutelage import data
from tutelage.benchmark import batches
from tutelage.data.resident import ResidentLoader
from tutelage.settings.data import DataSettings

EPOCH = 50_000
"""Samples of a drawn epoch: CIFAR's."""
FORMS = {
    "crop and flip": {"crop_padding": 4, "flip": True},
    "with erasing": {"crop_padding": 4, "flip": True, "random_erasing": 0.25},
    "with Mixup and CutMix": {"crop_padding": 4, "flip": True, "mixup": 0.8, "cutmix": 1.0},
}


def loading(split, size, images=4096):
    """Return a function that makes batches for the CPU, and its number of images."""
    loader = data.BatchLoader(split, batch_size=size, train=True)
    requests = data.split_evenly(np.arange(min(images, len(split))), size)
    return lambda: [None for _ in loader.at(0, requests)], sum(map(len, requests))


def drawing(split, size=64):
    """Return a function that draws an epoch for a device, and its number of images."""
    loader = ResidentLoader(split, device=torch.device("cpu"), batch_size=size, train=True)
    return lambda: loader._draw(0, 0, 0, 1), len(split)


def decoding(split, size=64, images=256, *, floats):
    """Return a function that decodes photographs, to bytes or, as the main process did, to float32."""
    requests = data.split_evenly(np.arange(min(images, len(split))), size)

    def decode():
        for _, batch in split.stream_images(requests, view=data.View(0, 0)):
            if floats:
                split.to_inputs(batch)

    return decode, sum(map(len, requests))


def converting(size=256, side=224):
    """Return the main process's work on a batch of photographs: convert it to float32, or pass it on."""
    images = torch.zeros(size, side, side, 3, dtype=torch.uint8)
    split = data.datasets.MemorySplit(labels=torch.zeros(1), pixels=images[:1], positions=torch.zeros(1))
    return lambda: split.to_inputs(images), size


def measure(forms, rounds):
    """Return the most images per second of each form; the first round does not count."""
    best = dict.fromkeys(forms, 0.0)
    for turn in range(rounds + 1):
        for name in list(forms) if turn % 2 else list(forms)[::-1]:
            work, images = forms[name]
            began = time.perf_counter()
            work()
            seconds = time.perf_counter() - began
            best[name] = max(best[name], images / seconds if turn else 0.0)
    return best


def report(title, figures, reference):
    """Print figures, each with its ratio to the reference."""
    print(title)
    for name, figure in figures.items():
        print(
            f"  {name:<48}{figure:>12,.0f} images/s   {figure / figures[reference]:>8.2f}x of {reference}", flush=True
        )


if __name__ == "__main__":
    parser = output.parser(__doc__)
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    plain = batches.random_images(EPOCH).train
    small = {f"CPU loader, batch {size}": loading(plain, size) for size in (64, 256)}
    for name, form in FORMS.items():
        mixing = data.Mixing(mixup=0.8, cutmix=1.0, probability=1.0, switch=0.5, classes=100, image_size=(32, 32))
        split = replace(plain, settings=DataSettings(**form), mixing=mixing if "mixup" in form else None)
        small[f"draws for a device, {name}"] = drawing(split)
    figures = {"32 pixels": measure(small, arguments.rounds)}
    report("32 pixels, one core", figures["32 pixels"], "CPU loader, batch 64")
    if arguments.folder:
        source = arguments.folder if ":" in arguments.folder else f"imagefolder:{arguments.folder}"
        settings = DataSettings(source=source, size=224, random_resized_crop=True, flip=True, test="train")
        photographs = data.open_data(settings).train
        large = {
            "decoded to float32 in one process": decoding(photographs, floats=True),
            "decoded to bytes": decoding(photographs, floats=False),
            "the main process alone, bytes to float32": converting(),
        }
        figures["224 pixels"] = measure(large, arguments.rounds)
        report("224 pixels, one core", figures["224 pixels"], "decoded to float32 in one process")
    n = {"rounds": arguments.rounds, "images of an epoch": EPOCH}
    output.write(arguments.write, {"n": n, "threads": 1, "images_per_second": figures})
