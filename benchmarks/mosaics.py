"""Make a data set of several labels per picture: mosaics of two by two pictures, and what is in them.

    python benchmarks/mosaics.py digits data/digits-mosaics
    python benchmarks/mosaics.py cifar100 data/cifar100-mosaics --source ../shared/data/cifar100

The first has pictures of 16 by 16 pixels and a label for each of the ten digits; the second has CIFAR-100's pictures at
half their size, 32 by 32 pixels in all, and a label for each of its twenty superclasses. A cell is left black with
probability 1/4. Training mosaics are made of training pictures, test mosaics of test pictures. The folder holds Parquet
files for ``hf:`` and ``parquet:``, with a column of 0 and 1 for each label.
"""

import argparse
import io
import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image
from sklearn.datasets import load_digits

SIZES = {"train": 4000, "test": 1000}
FILLED = 0.75
"""Probability that a cell has a picture."""


def digits():
    """Return scikit-learn's digits: pictures and classes of each half, the last 360 for test, and the labels' names."""
    loaded = load_digits()
    pictures = (loaded.images * 255 / 16).round().astype(np.uint8)[..., None].repeat(3, -1)
    parts = {"train": slice(1437), "test": slice(1437, None)}
    halves = {name: (pictures[part], loaded.target[part]) for name, part in parts.items()}
    return halves, [f"digit_{number}" for number in range(10)]


def cifar100(source):
    """Return the same of CIFAR-100's pictures at half their size, with its superclasses."""
    halves = {}
    for name in SIZES:
        table = pyarrow.concat_tables(map(pyarrow.parquet.read_table, sorted(Path(source).rglob(f"{name}-*.parquet"))))
        decoded = [np.array(Image.open(io.BytesIO(row["bytes"]))) for row in table.column("img").to_pylist()]
        quarters = np.stack(decoded).reshape(len(decoded), 16, 2, 16, 2, 3)
        halves[name] = (quarters.mean((2, 4)).round().astype(np.uint8), table.column("coarse_label").to_numpy())
    names = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]["coarse_label"]["names"]
    return halves, names


def mosaics(pictures, classes, labels, count, rng):
    """Yield a PNG and its labels, so many times."""
    height, width, channels = pictures.shape[1:]
    for _ in range(count):
        chosen = rng.integers(len(pictures), size=4)
        filled = rng.random(4) < FILLED
        cells = np.where(filled[:, None, None, None], pictures[chosen], 0).reshape(2, 2, height, width, channels)
        encoded = io.BytesIO()
        Image.fromarray(cells.transpose(0, 2, 1, 3, 4).reshape(2 * height, 2 * width, channels)).save(encoded, "PNG")
        held = np.zeros(labels, np.int8)
        held[classes[chosen[filled]]] = 1
        yield encoded.getvalue(), held


def write(halves, names, folder):
    """Write both halves as Parquet files that the library ``datasets`` reads."""
    features = {"image": {"_type": "Image"}, **{name: {"dtype": "int8", "_type": "Value"} for name in names}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (part, (pictures, classes)) in enumerate(halves.items()):
        rows = list(mosaics(pictures, classes, len(names), SIZES[part], np.random.default_rng(seed)))
        kind = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
        columns = {"image": pyarrow.array([{"bytes": encoded, "path": None} for encoded, _ in rows], kind)}
        held = np.stack([labels for _, labels in rows])
        columns |= {name: held[:, k] for k, name in enumerate(names)}
        table = pyarrow.table(columns).replace_schema_metadata(metadata)
        pyarrow.parquet.write_table(table, folder / f"{part}-00000-of-00001.parquet", row_group_size=1000)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", choices=("digits", "cifar100"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--source", default="../shared/data/cifar100", help="folder of CIFAR-100's Parquet files")
    arguments = parser.parse_args()
    write(*(digits() if arguments.pictures == "digits" else cifar100(arguments.source)), arguments.folder)
