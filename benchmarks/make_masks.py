"""Draw scenes with a mask each: scikit-learn's digits on pictures of CIFAR-100, for ``masks:FOLDER``.

    python benchmarks/make_masks.py scenes ../shared/data/cifar100

A scene has 24 x 24 pixels and 2 digits of random colours, sizes and places. Class 0 is the background and 1 to 10 are
the digits; their outlines have no class, 255. Training and test scenes share neither digits nor pictures. The first
argument is the folder to write, the second the folder or the Hub's name of CIFAR-100.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SIDE = 24
SIZES = (10, 14)
"""Smallest and largest side of a digit, pixels."""
BRIGHT = 128
"""Darkest colour of a digit, on pictures of 0.4 of their brightness."""
LINE = 96
"""Darkest value, of 255, of a digit's pixel."""
OUTLINE = 32
"""Darkest value of its outline."""


def scene(
    picture: Image.Image, digits: np.ndarray, classes: np.ndarray, rng: np.random.Generator
) -> tuple[Image.Image, Image.Image]:
    """Draw digits ``(digits, 8, 8)``, from 0 to 16, on a picture; return it and its mask."""
    pixels, mask = 0.4 * np.asarray(picture.convert("RGB"), np.float32)[:SIDE, :SIDE], np.zeros((SIDE, SIDE), np.uint8)
    for digit, label in zip(digits, classes, strict=True):
        side = int(rng.integers(*SIZES, endpoint=True))
        drawn = Image.fromarray((digit * 255 / 16).astype(np.uint8)).resize((side, side), Image.Resampling.BILINEAR)
        top, left = rng.integers(0, SIDE - side, size=2, endpoint=True)
        canvas = Image.new("L", (SIDE, SIDE))
        canvas.paste(drawn, (int(left), int(top)))
        value = np.asarray(canvas)
        around = np.asarray(canvas.filter(ImageFilter.MaxFilter(3)))
        colour = rng.integers(BRIGHT, 256, 3)
        share = (value / 255)[..., None]
        pixels = pixels * (1 - share) + colour * share
        mask[around >= OUTLINE] = 255
        mask[value >= LINE] = label
    return Image.fromarray(pixels.round().astype(np.uint8)), Image.fromarray(mask)


def write(folder: Path, pictures: list[Image.Image], digits: np.ndarray, labels: np.ndarray, *, seed: int) -> None:
    """Write a scene for each picture, and its mask."""
    rng = np.random.default_rng(seed)
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        chosen = rng.choice(len(digits), 2, replace=False)
        image, mask = scene(picture, digits[chosen], labels[chosen] + 1, rng)
        image.save(folder / "images" / f"{number:05}.png")
        mask.save(folder / "masks" / f"{number:05}.png")


def make(folder: Path, pictures: dict[str, list[Image.Image]]) -> None:
    """Write the scenes of the pictures for training and test, and the classes' names."""
    bunch = load_digits()
    halves = train_test_split(bunch.images, bunch.target, test_size=0.25, random_state=0, stratify=bunch.target)
    for seed, (split, digits, labels) in enumerate(zip(("train", "test"), halves[:2], halves[2:], strict=True)):
        write(folder / split, pictures[split], digits, labels, seed=seed)
    (folder / "classes.txt").write_text(
        "\n".join(["background", *map(str, bunch.target_names)]) + "\n", encoding="utf-8"
    )


def main() -> None:
    """Read the pictures and write the scenes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("cifar100", nargs="?", default="uoft-cs/cifar100")
    parser.add_argument("--train", type=int, default=2000, help="number of training scenes")
    parser.add_argument("--test", type=int, default=500, help="number of test scenes")
    typed = parser.parse_args()
    from datasets import load_dataset

    pictures = {}
    for split, count in (("train", typed.train), ("test", typed.test)):
        pictures[split] = load_dataset(typed.cifar100, split=f"{split}[:{count}]")["img"]
    make(typed.folder, pictures)


if __name__ == "__main__":
    main()
