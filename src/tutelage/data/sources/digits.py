"""``digits``: 1797 handwritten digits of 8 by 8 pixels that ship inside scikit-learn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tutelage import rng
from tutelage.data.build import (
    Description,
    Pixels,
    Raw,
    UnlabelledImages,
    from_images,
    from_pixels,
    refuse_train_as_test,
)
from tutelage.data.datasets import Splits
from tutelage.data.names import require_digits
from tutelage.data.partition import stratified
from tutelage.images import ArrayReader, rescale
from tutelage.settings.data import DataSettings

WHITE = 16
TEST_COUNT = 360


def open_digits(settings: DataSettings, unlabelled: UnlabelledImages | None = None) -> Splits:
    """Open the digits: 1437 for training, 360 for test, stratified; values are sixteenths, exactly.

    Raises: ImportError if scikit-learn is not installed, the extra ``demo``.
    Source: E. Alpaydin and C. Kaynak, "Optical recognition of handwritten digits", UCI, 1998 (its test half).
    """
    require_digits()
    from sklearn.datasets import load_digits

    refuse_train_as_test(settings, "digits")
    bunch = load_digits()
    values = bunch.images.astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int64)
    # The test set belongs to the source here, so it does not depend on ``split_seed``.
    held_out = stratified(labels, count=TEST_COUNT, seed=0, stream=rng.TEST)
    halves = np.setdiff1d(np.arange(len(labels)), held_out), held_out
    description = Description(
        class_names=tuple("0123456789"), settings=settings, source="digits", unlabelled=unlabelled
    )
    resized = settings.size not in (None, values.shape[1]) or settings.test_crop is not None
    if settings.random_resized_crop or resized:
        scaled = rescale(values, 255 / WHITE)
        train, test = (Raw(ArrayReader(scaled[p]), labels[p], scaled[p].tobytes) for p in halves)
        return replace(from_images(train, test, description), divisor=WHITE)
    train_pixels, test_pixels = (Pixels(values[p], labels[p]) for p in halves)
    return from_pixels(train_pixels, test_pixels, description, divisor=WHITE)
