"""A student reads raw images as its evaluation did."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import tutelage
from tutelage import data, models, runs
from tutelage.data import DataSettings


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of mixed sizes, so that the evaluation view is cut from a larger copy."""
    place = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for split, n in (("train", 8), ("test", 6)):
        for k, name in enumerate(("ant", "bee")):
            (place / split / name).mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 256, (20 + 3 * i, 40 - 2 * i, 3), dtype=np.uint8) // (k + 1)
                Image.fromarray(pixels).save(place / split / name / f"{i}.png")
    return place


def test_predictions_on_files_are_those_of_the_evaluation(folder, tmp_path):
    settings = {"source": f"imagefolder:{folder}", "size": 16}
    run = tutelage.train(
        model="cifar:resnet8", data=settings, epochs=1, batch_size=8, runs=tmp_path, name="p", device="cpu"
    )
    student = runs.load(run.folder)
    assert student.card.margin > 1
    paths = sorted((folder / "test").rglob("*.png"))
    predicted = student.predict(paths)
    splits = data.open_data(DataSettings(**settings))
    (batch,) = data.SplitBatches(splits.test, batch_size=64, train=False).epoch(0)
    with torch.no_grad():
        seen = student(batch.inputs).softmax(-1)
    assert [p.label for p in predicted] == seen.argmax(-1).tolist()
    np.testing.assert_allclose([p.probability for p in predicted], seen.max(-1).values.numpy(), rtol=1e-5)
    assert {p.name for p in predicted} <= {"ant", "bee"}
    right = np.mean([p.name == path.parent.name for p, path in zip(predicted, paths, strict=True)])
    assert right == pytest.approx(run.accuracy)


def test_what_may_be_given():
    model = models.create("cifar:resnet8", classes=3)
    image = Image.new("L", (50, 32), 90)
    one = model.predict(image)
    several = model.predict([image, np.asarray(image), np.asarray(image.convert("RGB"))])
    assert [p.label for p in several] == [one[0].label] * 3
    assert model.training
    assert model.predict([]) == []
    assert one[0].name is None
    with pytest.raises(TypeError, match=r"uint8 arrays .* got float32"):
        model.predict(np.zeros((32, 32, 3), np.float32))
    with pytest.raises(FileNotFoundError):
        model.predict("nowhere.png")
