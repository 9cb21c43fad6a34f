"""Pictures of digits with a text each, as files."""

import json

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

WORDS = ("zero", "one", "two", "three")


def write_pairs(folder, count=48, *, name="pairs.jsonl"):
    """Write the digits 0 to 3 as PNG files of 8 by 8 pixels, and a file that names image, text and label of each.

    Texts have three to five words, the digit's among them.
    """
    digits, draw = load_digits(n_class=len(WORDS)), np.random.default_rng(0)
    rows = []
    for number in range(count):
        label = int(digits.target[number])
        Image.fromarray((digits.images[number] * 15.9).astype(np.uint8)).save(folder / f"{number}.png")
        words = ["a handwritten", WORDS[label], *draw.permutation(["in", "ink"])[: draw.integers(3)]]
        rows.append({"picture": f"{number}.png", "caption": " ".join(words), "label": WORDS[label]})
    (folder / name).write_text("\n".join(map(json.dumps, rows)) + "\n")
    return rows


def pair_settings(folder, *, name="pairs.jsonl", **changes):
    """Return the settings of such a file, as a recipe writes them."""
    data = {"source": f"jsonl:{folder / name}", "image": "picture", "text": "caption", "max_tokens": 24}
    return {**data, "tokenizer": {"bpe": 280}, **changes}
