"""Write the logits that the pictures of explained.md are drawn from: those of two recorded teachers for test images.

    python docs/picture_logits.py hf:path/to/cifar100

The teachers are those of benchmarks/results/digits (resnet8, 10 classes) and benchmarks/results/cifar100-quick
(resnet56, 100 classes), with their recorded weights. Of each test set every k-th image is taken, 120 of digits and 50
of CIFAR-100. Logits are rounded to two digits, and the pictures are computed from the rounded numbers.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

import tutelage
from tutelage.data import DataSettings, open_data

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
PATH = Path(__file__).with_name("picture_logits.json")
TEACHERS = {"digits": ("digits/teacher", 3), "cifar100": ("cifar100-quick/teacher", 200)}
"""Its folder, and the distance of the images that are taken."""


def logits_of(name: str, source: str) -> tuple[list[list[float]], list[int]]:
    """Return the logits, each row shifted to a mean of 0, and the labels."""
    folder, step = TEACHERS[name]
    columns = {"image": "img", "label": "fine_label"} if source.startswith("hf:") else {}
    test = open_data(DataSettings(source=source, **columns)).test
    index = torch.arange(0, len(test), step).numpy()
    model = tutelage.load(RESULTS / folder)
    with torch.no_grad():
        logits = model(test.to_inputs(test.fetch(index))).double()
    centred = logits - logits.mean(-1, keepdim=True)
    return [[round(value, 2) for value in row] for row in centred.tolist()], test.labels[index].tolist()


if __name__ == "__main__":
    sources = {"digits": "digits", "cifar100": sys.argv[1]}
    found = {
        name: dict(zip(("logits", "labels"), logits_of(name, source), strict=True)) for name, source in sources.items()
    }
    PATH.write_text(json.dumps(found, separators=(",", ":")) + "\n", encoding="utf-8")
