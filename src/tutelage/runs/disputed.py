"""The samples that student and teacher are surest of against each other, with their pictures or texts."""

from __future__ import annotations

import base64
import io
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tutelage import data, records
from tutelage.data.token_split import TokenSplit
from tutelage.images import image_of
from tutelage.records import DisputedSample, Predictions
from tutelage.views import views_of

MOST = 12
"""Number of samples that are kept."""
SIDES = (96, 64, 48)
"""Most pixels of a picture's longer side: the first at which its file is not above `LARGEST`."""
LARGEST = 20_000
"""Bytes of a picture."""
CHARACTERS = 300
"""Characters of a text."""


def disputed(predictions: Predictions, splits: data.Splits) -> records.Disputed:
    """Return the samples of a test set that are most in dispute.

    They are those that student and teacher answer differently, the ones with the largest product of the probabilities
    of both answers first; without a teacher those that the student is wrong about, the surest first. Of equals the
    first in the set comes first.
    """
    against = predictions.label if predictions.teacher is None else predictions.teacher
    apart = (predictions.student != against) & ((predictions.label >= 0) | (predictions.teacher is not None))
    sure = predictions.student_probability.astype(np.float64)
    if predictions.teacher_probability is not None:
        sure = sure * predictions.teacher_probability
    rows = np.flatnonzero(apart)
    chosen = rows[np.argsort(-sure[rows], kind="stable")[:MOST]]
    samples = [_sample(predictions, int(row), splits) for row in chosen]
    return {"set": predictions.set, "count": len(rows), "samples": samples}


def _sample(predictions: Predictions, row: int, splits: data.Splits) -> DisputedSample:
    index, label = int(predictions.index[row]), int(predictions.label[row])
    sample: DisputedSample = {
        "index": index,
        "label": label if label >= 0 else None,
        "student": {
            "label": int(predictions.student[row]),
            "probability": float(predictions.student_probability[row]),
        },
        "teacher": None,
        "picture": None,
        "text": None,
    }
    if predictions.teacher is not None and predictions.teacher_probability is not None:
        sample["teacher"] = {
            "label": int(predictions.teacher[row]),
            "probability": float(predictions.teacher_probability[row]),
        }
    for part in splits.test.parts():
        with suppress(Exception):  # A result is not lost for a picture that can no longer be made.
            if isinstance(part, TokenSplit):
                sample["text"] = _text(part, index, splits)
            elif splits.of_images:
                sample["picture"] = _picture(part, index)
    return sample


def _text(split: TokenSplit, index: int, splits: data.Splits) -> str:
    """Return the beginning of a text, as its tokens are read."""
    name = next((name for name in split.rows if name in ("", "student")), "teacher")
    places, present = split.rows[name].places(np.array([index]))
    ids = split.rows[name].taken(places[present])
    return splits.text[name or "student"].tokenizer.decode(ids.tolist()).strip()[:CHARACTERS]


def _picture(split: data.Split, index: int) -> str | None:
    """Return the evaluation view of an image as a data URL; ``None`` if it has not 1 or 3 channels."""
    inputs = split.fetch(np.array([index]))
    for view in views_of(inputs):
        if view.is_floating_point() and view.ndim == 4 and view.shape[1] in (1, 3):
            pixels = (view[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
            return data_url(pixels.numpy())
    return None


def data_url(pixels: NDArray[np.uint8]) -> str | None:
    """Return pixels ``(height, width, channels)`` as a PNG in a data URL, made smaller where they are too many."""
    for side in SIDES:
        image, file = image_of(pixels), io.BytesIO()
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        image.save(file, "PNG", optimize=True)
        if file.tell() <= LARGEST:
            return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return None
