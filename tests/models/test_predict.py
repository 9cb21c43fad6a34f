"""A student reads raw images as its evaluation did."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from tests._helpers.refusals import refused

import tutelage
from tutelage import data, models
from tutelage.data import DataSettings
from tutelage.errors import InvalidTypeError, InvalidValueError
from tutelage.runs.run import load


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of mixed sizes, so that the evaluation view is cut from a larger copy."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for split, n in (("train", 8), ("test", 6)):
        for k, name in enumerate(("ant", "bee")):
            (root / split / name).mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 256, (20 + 3 * i, 40 - 2 * i, 3), dtype=np.uint8) // (k + 1)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


def test_predictions_on_files_are_those_of_the_evaluation(folder, tmp_path):
    settings = {"source": f"imagefolder:{folder}", "size": 16}
    run = tutelage.train(
        model="cifar:resnet8", data=settings, epochs=1, batch_size=8, runs=tmp_path, name="p", device="cpu"
    )
    student = load(run.folder)
    assert student.card.margin > 1
    paths = sorted((folder / "test").rglob("*.png"))
    predicted = student.predict(paths)
    splits = data.open_data(DataSettings(**settings))
    (batch,) = data.BatchLoader(splits.test, batch_size=64, train=False).epoch(0)
    with torch.no_grad():
        seen = student(batch.inputs).softmax(-1)
    assert [p.label for p in predicted] == seen.argmax(-1).tolist()
    np.testing.assert_allclose([p.probability for p in predicted], seen.max(-1).values.numpy(), rtol=1e-5)
    assert {p.name for p in predicted} <= {"ant", "bee"}
    right = np.mean([p.name == path.parent.name for p, path in zip(predicted, paths, strict=True)])
    assert right == pytest.approx(run.accuracy)


@pytest.mark.parametrize("size", [None, 12])
def test_predictions_on_raw_digits_are_those_of_the_evaluation(size):
    splits = data.open_data(DataSettings(source="digits", size=size))
    assert splits.divisor == 16
    model = models.create("mlp:64", classes=10, channels=1, image_size=splits.image_size)
    model.card = replace(model.card, image_size=splits.image_size, divisor=splits.divisor)
    bunch = load_digits()
    raw = [image.astype(np.uint8) for image, label in zip(bunch.images, bunch.target, strict=True) if label == 3]
    (batch,) = data.BatchLoader(splits.train, batch_size=2000, train=False).epoch(0)
    (other,) = data.BatchLoader(splits.test, batch_size=2000, train=False).epoch(0)
    labels, inputs = torch.cat([batch.labels, other.labels]), torch.cat([batch.inputs, other.inputs])
    with torch.no_grad():
        seen = model(inputs[labels == 3]).softmax(-1).max(-1).values
    for images in (raw, [Image.fromarray(image) for image in raw]):
        probabilities = sorted(p.probability for p in model.predict(images))
        np.testing.assert_allclose(probabilities, sorted(seen.tolist()), rtol=1e-5)
    with refused(InvalidValueError, "images", got=17):
        model.predict(np.full((8, 8), 17, np.uint8))


def test_a_trained_student_reads_raw_digits(tmp_path):
    run = tutelage.train(model="mlp:64", data="digits", epochs=2, runs=tmp_path, name="d", device="cpu")
    student = load(run.folder)
    splits = data.open_data(DataSettings(source="digits"))
    predicted = student.predict(list(splits.test.pixels.numpy()))
    right = np.mean([p.label == label for p, label in zip(predicted, splits.test.labels.tolist(), strict=True)])
    assert splits.test.pixels.max() == 16
    assert right == pytest.approx(run.accuracy)


def test_images_that_are_taken():
    model = models.create("cifar:resnet8", classes=3)
    image = Image.new("L", (50, 32), 90)
    single = model.predict(image)
    several = model.predict([image, np.asarray(image), np.asarray(image.convert("RGB"))])
    assert [p.label for p in several] == [single[0].label] * 3
    assert model.training
    assert model.predict([]) == []
    assert single[0].name is None
    with refused(InvalidTypeError, "images", got="float32"):
        model.predict(np.zeros((32, 32, 3), np.float32))
    with pytest.raises(FileNotFoundError):
        model.predict("nowhere.png")


def test_raw_images_are_resized_as_the_card_says():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    probabilities = {}
    for interpolation in ("bilinear", "bicubic"):
        model = models.create("cifar:resnet8", classes=3, seed=0).eval()
        model.card = dataclasses.replace(model.card, image_size=(32, 32), interpolation=interpolation)
        probabilities[interpolation] = model.predict(noise)[0].probability
        resized = noise.resize((32, 32), Image.Resampling[interpolation.upper()])
        assert model.predict(resized)[0].probability == pytest.approx(probabilities[interpolation], abs=1e-6)
    assert probabilities["bilinear"] != probabilities["bicubic"]
    with refused(InvalidValueError, "interpolation", got="'nearest'"):
        dataclasses.replace(model.card, interpolation="nearest")


def test_the_likeliest_classes_come_first():
    model = models.create("cifar:resnet8", classes=5, seed=0)
    model.card = replace(model.card, class_names=tuple("abcde"), image_size=None)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (32, width, 3), dtype=np.uint8) for width in (32, 40, 32)]  # of unlike sizes
    plain = model.predict(images)
    assert all(each.top == () for each in plain)
    with torch.no_grad():
        model.eval()
        inputs = [torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255 for image in images]
        probabilities = [model(each).softmax(-1)[0] for each in inputs]
    for each, top, expected in zip(plain, model.predict(images, top_k=9), probabilities, strict=True):
        assert top[:4] == each[:4]
        assert [one.label for one in top.top] == expected.argsort(descending=True).tolist()
        np.testing.assert_allclose(
            [one.probability for one in top.top], expected.sort(descending=True).values, rtol=1e-5
        )
        assert top.top[0].name == each.name
    for wrong in (0, -1, True, 1.5):
        with refused(InvalidValueError, "top_k", got=repr(wrong)):
            model.predict(images, top_k=wrong)
