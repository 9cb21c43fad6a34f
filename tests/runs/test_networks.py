"""Each network at its own entrance, and a teacher's outputs as the data's classes."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests._helpers.refusals import refused
from torch import nn

import tutelage
from tutelage import config, data, models
from tutelage.config.schema import Network, Recipe
from tutelage.errors import InvalidTypeError, InvalidValueError, RecipeError
from tutelage.models import Card, Classifier
from tutelage.models.entrance import entrance
from tutelage.runs.networks import (
    adopt,
    check_classes,
    create_student,
    create_teacher,
    outputs_by_name,
    with_classes,
)
from tutelage.runs.record_teacher import record
from tutelage.runs.reporter import Reporter
from tutelage.runs.setup import build_inputs, outputs_of
from tutelage.settings.data import DataSettings
from tutelage.teacher_cache.cache import CachedTeacher

QUICK = {"epochs": 1, "precision": "fp32", "threads": 1, "weak_teacher": True, "device": "cpu"}
LETTERS = tuple("abcdefghij")


@pytest.fixture(scope="module")
def digits():
    return data.open_data(DataSettings(source="digits"))


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """The folder of a teacher that was trained on 16x16 pixels."""
    runs = tmp_path_factory.mktemp("large")
    return tutelage.train(model={"name": "mlp:32", "size": 16}, data="digits", name="large", runs=runs, **QUICK).folder


def flat(side, *, outputs=10, channels=1, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * side**2, outputs))


def with_names(digits, names=LETTERS):
    return dataclasses.replace(digits, class_names=tuple(names))


def named_teacher(names, side=8):
    return Classifier(flat(side, outputs=len(names)), Card(name="t", classes=len(names), class_names=tuple(names)))


# Classes


def test_names_map_a_teacher_of_more_classes_in_another_order(digits):
    teacher = named_teacher("xjihgfedcbay")
    mapped = with_classes(teacher, with_names(digits))
    inputs = torch.rand(3, 1, 8, 8)
    assert mapped.outputs.tolist() == [*range(10, 0, -1)]
    assert torch.equal(mapped(inputs), teacher(inputs)[:, 1:11].flip(1))
    assert (mapped.card.classes, mapped.card.class_names) == (10, LETTERS)
    check_classes(mapped, with_names(digits))


def test_the_same_classes_and_two_notations_stay_as_they_are(digits):
    for names in (LETTERS, "klmnopqrst"):
        teacher = named_teacher(names)
        assert with_classes(teacher, with_names(digits)) is teacher
        check_classes(teacher, with_names(digits))


@pytest.mark.parametrize(
    ("names", "got"),
    [
        ("abcdefghi", ["9 classes", "1 ('j')", "none of them"]),
        ("abcdefghik", ["10 classes", "1 ('j')", "1 ('k')"]),
        ("klmnopqrstuv", ["12 classes", "10 ('a', 'b', 'c', ...)", "12 ('k', 'l', 'm', ...)"]),
        ([*LETTERS, "a"], ["11 classes, two of them of one name"]),
        (map(str, range(12)), ["12 classes"]),  # numbers name nothing
        ("BCDEFGHIJK", ["10 classes", "1 ('a')", "1 ('K')"]),  # in capitals, and not in order
    ],
)
def test_other_classes_are_refused_with_the_difference(digits, names, got):
    numbers = not isinstance(names, str | list)
    splits = digits if numbers else with_names(digits)
    teacher = with_classes(named_teacher(list(names)), splits)
    map_them = [] if teacher.card.classes < 10 else "teacher.classes=[...]"
    with refused(RecipeError, "teacher t", suggests=map_them) as caught:
        check_classes(teacher, splits)
    assert all(part in caught.value.got for part in got), caught.value.got


@pytest.mark.parametrize(
    ("names", "wanted", "outputs"),
    [
        (["Cat", "sea_lion", "dog"], ["cat", "Dog", " Sea lion"], [0, 2, 1]),
        (["tench, Tinca tinca", "crane, bird", "crane, machine"], ["Tench"], [0]),
        (["tench", "goldfish"], ["goldfish, Carassius auratus", "tench, Tinca tinca"], [1, 0]),
        (["crane, bird", "crane, machine"], ["crane"], None),  # which of them?
        (["crane, bird", "crane, machine"], ["crane", "crane"], [0, 1]),  # in order
        (["Cat", "cat", "dog"], ["dog", "cat"], [2, 1]),  # as they are written
        (["Cat", "cat", "dog"], ["dog", "CAT"], None),
        (["tench, Tinca tinca", "dog"], ["tench", "Tinca tinca"], None),  # one output for two classes
        (["0", "1", "2"], ["2", "1"], None),  # numbers name nothing
        ([], ["a"], None),
        (["a"], [], None),
        (
            [f"class {k}" for k in range(30_000)],
            [f"Class_{k}" for k in range(29_999, -1, -1)],
            [*range(29_999, -1, -1)],
        ),
    ],
)
def test_names_match_in_whatever_notation_where_each_means_one_output(names, wanted, outputs):
    assert outputs_by_name(names, wanted) == outputs


def test_a_head_that_is_kept_for_classes_in_another_order_is_told(digits, tmp_path):
    run = tutelage.train(model="mlp:4", data=with_names(digits), name="ten", runs=tmp_path, **QUICK)
    network = Network(name=str(run.folder))
    with pytest.warns(UserWarning, match=r"student mlp:4: expected a head .* whose outputs 9, 8, 7, \.\.\. are"):
        create_student(network, with_names(digits, LETTERS[::-1]), seed=0)
    assert create_student(network, with_names(digits), seed=0).card.class_names == LETTERS  # without a warning


@pytest.mark.parametrize("typed", [[9, 8, 7, 6, 5, 4, 3, 2, 1, 10], list("jihgfedcbk"), [9, *"ihgfedcbk"]])
def test_typed_classes_are_outputs_or_their_names(digits, typed):
    mapped = with_classes(named_teacher("abcdefghijk"), digits, typed)
    assert mapped.outputs.tolist() == [9, 8, 7, 6, 5, 4, 3, 2, 1, 10]
    assert mapped.card.class_names == digits.class_names
    check_classes(mapped, digits)


@pytest.mark.parametrize(
    ("typed", "got"), [([0] * 10, "1 different"), ([0, 1], "2"), ([*range(9), 11], "11"), (["z", *range(9)], "'z'")]
)
def test_typed_classes_that_cannot_be_are_refused(digits, typed, got):
    with refused(RecipeError, "teacher.classes", got=got):
        with_classes(named_teacher("abcdefghijk"), digits, typed)


@pytest.mark.parametrize("typed", ["abc", [1.5], [True], [-1], [None], [], {"a": 1}])
def test_a_recipe_s_classes_are_numbers_and_names(typed):
    with refused(RecipeError, "recipe: teacher.classes"):
        config.parse(Recipe, {"name": "x", "student": "mlp:4", "teacher": {"name": "mlp:4", "classes": typed}})


def test_a_student_has_no_classes_of_its_own():
    for keys in (
        {"student": {"name": "mlp:4", "classes": [0]}},
        {"teacher": {"train": {"model": {"name": "mlp:4", "classes": [0]}}}},
    ):
        with refused(RecipeError):
            config.parse(Recipe, {"name": "x", "student": "mlp:4", **keys})


def test_a_recipe_without_size_and_classes_is_written_as_before():
    recipe = config.parse(Recipe, {"name": "x", "student": "mlp:4", "teacher": {"name": "mlp:8", "size": 9}})
    written = recipe.model_dump(mode="json")
    assert written["student"] == {"name": "mlp:4", "weights": None}
    assert written["teacher"] == {"name": "mlp:8", "weights": None, "size": 9}


def test_a_mapped_teacher_teaches_what_one_in_the_data_s_order_does(tmp_path):
    """With its head, too."""
    order = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
    plain = models.create("cifar:resnet8", classes=10, channels=1, image_size=(8, 8))
    other = models.create("cifar:resnet8", classes=10, channels=1, image_size=(8, 8))
    back = [order.index(k) for k in range(10)]
    for tensor in (other.network.fc.weight, other.network.fc.bias):
        tensor.data = tensor.data[order]
    shared = {
        "student": "cifar:resnet8",
        "data": {"source": "digits", "validation": 0.8},
        "objective": ["kd", "srrl"],
        "runs": tmp_path,
        **QUICK,
    }
    mapped = Classifier(other.network, other.card, outputs=back)
    first = tutelage.distill(teacher=plain, name="plain", **shared)
    second = tutelage.distill(teacher=mapped, name="mapped", **shared)
    assert second.manifest["teacher"]["class_outputs"] == back
    for key in ("accuracy", "set", "mode"):
        assert first.manifest["teacher"][key] == second.manifest["teacher"][key]
    ours, theirs = (load_file(run.folder / "student.safetensors") for run in (first, second))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_module_under_a_name_is_refused(tmp_path):
    with refused(InvalidTypeError, "teacher.name", got="Sequential", suggests="teacher=tutelage.models.adopt"):
        tutelage.distill(
            student="mlp:4", teacher={"name": flat(8), "size": 8}, data="digits", objective="kd", runs=tmp_path
        )


# Inputs


def test_a_trained_teacher_is_fed_at_its_own_size_and_a_student_at_the_data_s(digits, large):
    teacher = create_teacher(Network(name=str(large)), digits)
    assert (teacher.card.image_size, teacher.resized_to) == ((16, 16), [1, 16, 16])
    student = create_student(Network(name="mlp:8"), digits, seed=0)
    assert (student.card.image_size, student.resized_to) == ((8, 8), None)
    with refused(InvalidValueError, "weights"):  # an mlp has none for other sizes
        create_student(Network(name=str(large)), digits, seed=0)
    again = create_student(Network(name=str(large), size=16), digits, seed=0)
    assert again.resized_to == [1, 16, 16]


def test_random_weights_take_the_data_s_size_and_what_is_typed_comes_first(digits):
    assert create_teacher(Network(name="cifar:resnet8"), digits).resized_to is None
    assert create_teacher(Network(name="cifar:resnet8", size=32), digits).resized_to == [1, 32, 32]
    assert create_teacher(Network(name="cifar:resnet8", size=8), digits).resized_to is None


def test_a_typed_size_is_the_shorter_side(digits):
    wide = dataclasses.replace(digits, image_size=(8, 12))
    assert create_student(Network(name="cifar:resnet8", size=16), wide, seed=0).card.image_size == (16, 24)


def test_a_teacher_of_another_shape_does_not_stretch_images(digits, large):
    wide = dataclasses.replace(digits, image_size=(8, 12))
    with refused(RecipeError, "teacher mlp:32", got="8x12", suggests=["data.size=16", "teacher.size=8"]):
        create_teacher(Network(name=str(large)), wide)


def test_grey_data_reach_a_teacher_of_colours(digits):
    statistics = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    card = Card(name="t", classes=10, image_size=(16, 16), **statistics)
    teacher = adopt(Classifier(flat(16, channels=3), card), digits, "teacher", trained=True)
    inputs = next(data.BatchLoader(digits.train, batch_size=4, train=True).epoch(0)).inputs
    assert teacher(inputs).shape == (4, 10)
    grown = nn.functional.interpolate(inputs, (16, 16), mode="bilinear", antialias=True)
    assert torch.equal(teacher(inputs), teacher(grown.repeat(1, 3, 1, 1)))


@pytest.mark.parametrize("keys", [{}, {"accumulate": 3}, {"data": {"source": "digits", "mixup": 0.5, "cutmix": 1.0}}])
def test_a_run_feeds_each_network_its_own_views(tmp_path, large, keys):
    said = []
    reporter = Reporter()
    reporter.say = said.append
    settings = {"data": "digits", "objective": "wttm", **QUICK, **keys}
    run = tutelage.distill(
        student={"name": "mlp:8", "size": 12}, teacher=large, name="x", runs=tmp_path, display=reporter, **settings
    )
    assert run.manifest["student"]["input"] == [1, 12, 12]
    assert run.manifest["teacher"]["input"] == [1, 16, 16]
    assert run.manifest["teacher"]["accuracy"] == tutelage.evaluate(large)["accuracy"]
    assert any("1x8x8" in line and "1x16x16" in line for line in said)
    assert run.student.card.image_size == (12, 12)
    assert tutelage.evaluate(run)["accuracy"] == run.accuracy
    picture = torch.zeros(8, 8, dtype=torch.uint8).numpy()
    assert run.student.predict([picture])[0].name in "0123456789"


class Stopping(Reporter):
    """Stops a run after its first epoch."""

    def note(self, text):
        raise KeyboardInterrupt


def test_a_resumed_run_of_two_sizes_has_the_bits_of_an_uninterrupted_one(tmp_path, large):
    settings = {"student": {"name": "mlp:8", "size": 12}, "teacher": large, "data": "digits", "objective": "kd"}
    settings |= {**QUICK, "epochs": 2}
    with pytest.raises(KeyboardInterrupt):
        tutelage.distill(name="x", runs=tmp_path / "stopped", display=Stopping(), **settings)
    path = tmp_path / "stopped" / "x" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "teacher": {**manifest["teacher"], "input": None}}))
    with refused(RecipeError, "teacher mlp:32", got="1 x 16 x 16"):  # as a run of an earlier version says
        tutelage.distill(name="x", runs=tmp_path / "stopped", **settings)
    path.write_text(json.dumps(manifest))
    runs = [tutelage.distill(name="x", runs=tmp_path / folder, **settings) for folder in ("stopped", "whole")]
    assert [run.manifest["resumed"] for run in runs] == [1, 0]
    ours, theirs = (load_file(run.folder / "student.safetensors") for run in runs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_recorded_outputs_are_those_of_the_teacher_s_own_views(tmp_path, large):
    value = {"name": "x", "data": {"source": "digits", "flip": True}, "student": "mlp:8", "teacher": str(large)}
    value |= {"objective": "wttm", "outputs": str(tmp_path / "outputs"), **QUICK}
    recipe = config.parse(Recipe, value)
    inputs = build_inputs(recipe)
    record(recipe, run_inputs=inputs)
    assert json.loads((tmp_path / "outputs" / "outputs.json").read_text())["key"]["teacher"]["input"] == [1, 16, 16]
    cache = outputs_of(recipe, inputs)
    batch = next(data.BatchLoader(inputs.splits.train, batch_size=64, train=True).epoch(0))
    live = inputs.teacher.eval()(batch.inputs)
    torch.testing.assert_close(CachedTeacher(cache)(batch).logits, live, rtol=2e-3, atol=2e-3)
    with pytest.raises(Exception, match=r"teacher\.classes"):
        outputs_of(
            recipe,
            build_inputs(
                config.parse(Recipe, {**value, "teacher": {"name": str(large), "classes": [1, 0, *range(2, 10)]}})
            ),
        )
    with pytest.raises(Exception, match=r"teacher\.input"):
        outputs_of(recipe, dataclasses.replace(inputs, teacher=_at_the_data_s_size(inputs.teacher)))


def _at_the_data_s_size(teacher):
    same = Classifier(teacher.network, teacher.card)
    same.resizes = False
    return same


# Views by name


class Pictures:
    """Digits in 8x8 pixels, or a view of each for each network."""

    classes = tuple(map(str, range(10)))

    def __init__(self, split, pairs):
        self.images, self.targets, self.pairs = split.fetch(np.arange(160)), split.labels[:160].tolist(), pairs

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = self.images[index]
        if not self.pairs:
            return image, self.targets[index]
        card = Card(name="x", classes=10, channels=1, image_size=(16, 16))
        return {"teacher": entrance(image[None], card)[0], "student": image}, self.targets[index]


def maps(stride, *, seed=0):
    """A network with maps of 8x8, of images that are ``stride`` times as large."""
    torch.manual_seed(seed)
    convolution = nn.Conv2d(1, 4, 3, stride=stride, padding=1)
    return nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))


FITNET = {"fitnet": {"student_tap": "0", "teacher_tap": "0", "weight": 1.0}}


@pytest.mark.parametrize("keys", [{}, {"accumulate": 3, "objective": ["kd", FITNET]}])
def test_two_sizes_are_what_a_pair_of_views_made_by_hand_is(tmp_path, digits, keys):
    """Logits and features, training and evaluation."""
    runs = []
    for pairs in (False, True):
        teacher = maps(2, seed=1)
        sized = models.adopt(teacher, classes=10, image_size=(16, 16))
        run = tutelage.distill(
            student=maps(1),
            teacher=teacher if pairs else sized,
            data=(Pictures(digits.train, pairs), Pictures(digits.test, pairs)),
            name=f"pairs-{pairs}",
            runs=tmp_path,
            **{"objective": "kd", **QUICK, **keys},
        )
        runs.append(run)
    single, pair = runs
    assert single.manifest["teacher"]["input"] == [1, 16, 16]
    assert "input" not in pair.manifest["teacher"]
    assert single.manifest["teacher"]["accuracy"] == pair.manifest["teacher"]["accuracy"]
    assert single.accuracy == pair.accuracy
    ours, theirs = (load_file(run.folder / "student.safetensors") for run in runs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert pair.epochs[0]["train"]["terms"] == single.epochs[0]["train"]["terms"]


def test_a_view_that_no_network_is_called_by_is_refused(tmp_path, digits):
    class Misnamed(Pictures):
        def __getitem__(self, index):
            views, label = super().__getitem__(index)
            return {"student": views["student"], "large": views["teacher"]}, label

    sets = (Misnamed(digits.train, True), Misnamed(digits.test, True))
    with refused(InvalidValueError, "inputs", got=["'large'", "'student'"]):
        tutelage.distill(student=flat(8), teacher=flat(16), data=sets, objective="kd", name="x", runs=tmp_path, **QUICK)
