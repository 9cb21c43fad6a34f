"""Runs of samples that are an image and a text each: a text teaches a student of images, and the other way round."""

import json

import pytest
import torch
from tests._helpers.pairs import WORDS, pair_settings, write_pairs
from tests._helpers.refusals import refused
from torch import nn

import tutelage
from tutelage import config, data, models
from tutelage.config.schema import Comparison, Recipe
from tutelage.errors import InvalidValueError, RecipeError
from tutelage.modules import FrozenTeacher
from tutelage.runs import disk, dry_run, recipes, record_teacher
from tutelage.runs.execute import execute
from tutelage.runs.group import can_share_batches
from tutelage.runs.reporter import Reporter
from tutelage.runs.run import RunOptions
from tutelage.runs.setup import build_inputs, outputs_of
from tutelage.studies import compare as comparisons
from tutelage.teacher_cache.cache import CachedTeacher

pytest.importorskip("transformers", reason="the optional package transformers is not installed")
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
READER = {"name": "hf:bert", "config": SIZES, "reads": "text"}
SEER = {"name": "mlp:8", "reads": "image"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    write_pairs(folder)
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def recipe(folder, *, kind=Recipe, student=SEER, **keys):
    common = {"epochs": 2, "batch_size": 16, "optimizer": {"name": "adamw", "lr": 0.02}, "device": "cpu", "threads": 1}
    common |= {"weak_teacher": True, "precision": "fp32"}
    if keys.get("teacher") and kind is Recipe:
        common["objective"] = {"ttm": {"gamma": 0.5, "beta": 2}}
    settings = pair_settings(folder, **{"crop_padding": 1, **keys.pop("data", {})})
    return config.parse(kind, {"name": "run", "student": student, "data": settings, **common, **keys})


@pytest.fixture(scope="module")
def taught(folder, tmp_path_factory):
    """A student of images, and in it its teacher of texts, which is trained first."""
    place = tmp_path_factory.mktemp("taught") / "run"
    execute(recipe(folder, teacher={"train": {"model": READER, "epochs": 1}}), place)
    return place


def weights(folder):
    return models.read(folder / "student.safetensors")


def same(first, second):
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_texts_teach_a_student_of_images(folder, taught, tmp_path, invoke):
    manifest = json.loads((taught / "manifest.json").read_text())
    assert manifest["data"]["image_size"] == [8, 8]
    assert set(manifest["data"]["tokenizers"]) == {"teacher"}
    of_teacher = json.loads((taught / "teacher" / "manifest.json").read_text())["data"]
    assert of_teacher["fingerprint"] == manifest["data"]["fingerprint"]
    assert "image_size" not in of_teacher
    again, _ = recipes.again(taught, [], tmp_path)
    execute(again, tmp_path / "again")
    assert same(weights(taught), weights(tmp_path / "again"))
    for place in (taught, taught / "teacher"):
        accuracy = json.loads((place / "evaluation.json").read_text())["student"]["accuracy"]
        assert f"{accuracy:.2%}".replace("%", " %") in invoke("evaluate", str(place))[1]
    sample = json.loads((taught / "disputed.json").read_text())["samples"][0]
    assert sample["picture"].startswith("data:image/png")
    assert sample["text"].startswith("a handwritten")
    names = {each.name for each in tutelage.load(taught).predict([folder / "0.png", folder / "1.png"])}
    names |= {each.name for each in tutelage.load(taught / "teacher").predict(["one in ink"])}
    assert names <= {"zero", "one", "two", "three"}
    described = dict(dry_run.dry_run(recipe(folder, teacher={"name": str(taught / "teacher"), "reads": "text"})))
    assert described["input"].startswith("(batch, 1, 8, 8), values in [0, 1]; the teacher's (batch, up to 24 tokens)")


class Stops(Reporter):
    """A reporter that stops the run after its first epoch."""

    def note(self, text):
        raise KeyboardInterrupt


def test_a_run_that_was_stopped_ends_with_the_same_bits(folder, taught, tmp_path):
    reading = recipe(folder, teacher={"name": str(taught / "teacher"), "reads": "text"})
    with pytest.raises(KeyboardInterrupt):
        execute(reading, tmp_path / "run", options=RunOptions(reporter=Stops()))
    execute(reading, tmp_path / "run")
    assert same(weights(taught), weights(tmp_path / "run"))


def test_what_is_recorded_of_a_reader_of_texts_serves_all_epochs_seeds_and_views(folder, taught, tmp_path):
    keys = {"teacher": {"name": str(taught / "teacher"), "reads": "text"}, "outputs": str(tmp_path / "outputs")}
    record_teacher.record(recipe(folder, **keys))
    assert [path.name for path in (tmp_path / "outputs").glob("epoch-*")] == ["epoch-0000"]
    other = recipe(folder, **keys, data_seed=3, data={"flip": True, "random_erasing": 0.5})
    inputs = build_inputs(other)
    kept, live = CachedTeacher(outputs_of(other, inputs)), FrozenTeacher(inputs.teacher)
    loader = data.BatchLoader(inputs.splits.train, batch_size=16, data_seed=3, train=True)
    for epoch in (0, 1):
        kept.open(data.View(3, epoch))
        for batch in loader.epoch(epoch):
            recorded, answered = kept(batch).logits, live(batch).logits
            torch.testing.assert_close(recorded, answered, rtol=0, atol=1e-3)  # by float16
    execute(other, tmp_path / "other")


def test_pictures_teach_a_student_of_texts_and_vary_from_epoch_to_epoch(folder, tmp_path):
    reader = recipe(folder, student=READER, teacher=SEER, outputs=str(tmp_path / "outputs"))
    inputs = build_inputs(reader)
    assert set(inputs.splits.text) == {"student"}
    assert inputs.student.card.image_size is None
    outputs = outputs_of(reader, inputs)
    assert outputs.varies
    assert outputs.key["views"]["crop_padding"] == 1
    assert outputs.key["data_seed"] == 0
    execute(reader.model_copy(update={"outputs": None}), tmp_path / "run")
    assert tutelage.load(tmp_path / "run").predict("two in ink")[0].name in WORDS


@pytest.mark.slow
def test_a_comparison_of_both_trains_its_teacher_first_and_shares_batches(folder, tmp_path):
    objectives = {"ce": "cross_entropy", "ttm": {"ttm": {"gamma": 0.5, "beta": 1}}}
    compared = recipe(
        folder,
        kind=Comparison,
        teacher={"train": {"model": READER, "epochs": 1}},
        objectives=objectives,
        epochs=1,
        outputs=str(tmp_path / "outputs"),
        seeds=2,
    )
    planned = [each for _, each in comparisons.plan(compared, tmp_path / "c")]
    assert {each.outputs for each in planned} == {None, str(tmp_path / "outputs")}
    assert planned[0].teacher.reads == "text"
    assert can_share_batches(planned[0], planned[0])
    blind = planned[0].model_copy(update={"student": planned[0].student.model_copy(update={"reads": "text"})})
    assert not can_share_batches(planned[0], blind)
    comparisons.compare(compared, tmp_path / "c")
    assert [path.name for path in (tmp_path / "outputs").glob("epoch-*")] == ["epoch-0000"]


class Gaze(nn.Module):
    """A network of the user's, of images or of token ids."""

    def __init__(self, width):
        super().__init__()
        self.width, self.last = width, nn.Linear(width, 4)

    def forward(self, x):
        return self.last(x.flatten(1).float()[:, : self.width])


def test_a_users_networks_read_views_of_unlike_kinds(folder, tmp_path):
    splits = data.open_data(config.parse(Recipe, recipe(folder).model_dump(mode="json")).data)
    pairs = data.read_by(splits, {"student": "image", "teacher": "text"})
    keys = {"objective": "ttm", "epochs": 1, "device": "cpu", "runs": tmp_path, "weak_teacher": True}
    student = Gaze(64)
    run = tutelage.distill(student=student, teacher=Gaze(3), data=pairs, name="own", **keys)
    assert not json.loads((run.folder / "manifest.json").read_text())["repeatable"]
    with refused(InvalidValueError, "reads"):
        tutelage.distill(student=student, teacher=Gaze(3), data=splits, name="unread", **keys)
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(16, 1, 8, 8, generator=draw)
    rows = [({"student": images[k], "teacher": torch.arange(3) + k}, k % 4) for k in range(16)]
    mapped = data.from_datasets(rows, rows, classes=4)
    tutelage.distill(student="mlp:8", teacher=Gaze(3), data=mapped, name="mapped", **keys)
    assert tutelage.load(tmp_path / "mapped").card.image_size == (8, 8)


def test_what_a_network_reads_is_typed_where_samples_are_both_and_only_there(folder):
    def reading(student, teacher=None, data=None):
        networks = {"teacher": teacher} if teacher else {}
        return recipe(folder, student=student, data=data or {}, **networks)

    with refused(RecipeError, ["recipe: student.reads", "recipe: teacher.reads"], suggests="student.reads=image"):
        reading("mlp:8", "mlp:8")
    with refused(RecipeError, "recipe: model.reads"):
        reading("mlp:8")
    with refused(RecipeError, "recipe: teacher.train.model.reads"):
        reading(SEER, {"train": {"model": "hf:bert"}})
    with refused(RecipeError, "recipe: model.reads", got="text"):
        reading(READER, data={"image": None, "crop_padding": 0})
    with refused(RecipeError, "recipe: student.reads", got="image"):
        reading({"init": {"from": "teacher"}, "reads": "image"}, READER)
    with refused(InvalidValueError, "model"):
        build_inputs(reading({"name": "mlp:8", "reads": "text"}))
    with refused(InvalidValueError, "data.mixup"):
        build_inputs(reading(SEER, READER, {"mixup": 0.4}))
    with refused(RecipeError, "teacher.size"):
        build_inputs(reading(SEER, {**READER, "size": 8}))


def test_the_disk_of_students_is_estimated_for_what_they_read(folder, tmp_path):
    both = recipe(folder, teacher=READER)
    splits = data.open_data(both.data)
    alone = disk.run_size(both, build_inputs(both).student)
    assert disk.size_of_all([(both, tmp_path)], splits, False) == alone
