"""The number of micro-batches of a run whose recipe leaves it open."""

import pytest
import torch
import yaml
from tests._helpers.recorder import Recorder
from tests._helpers.refusals import refused
from torch import nn

import tutelage
from tutelage import config, data, models, objectives, records
from tutelage.config.schema import Comparison, Recipe
from tutelage.errors import RecipeError
from tutelage.report import html
from tutelage.runs import micro_batches
from tutelage.runs.dry_run import dry_run
from tutelage.runs.execute import execute, resolve_open
from tutelage.runs.group import can_share_batches
from tutelage.runs.reporter import Reporter
from tutelage.runs.resume import recipe_differences
from tutelage.runs.run import RunOptions
from tutelage.runs.setup import RunInputs, build_inputs
from tutelage.studies import schema
from tutelage.training import memory
from tutelage.training.generators import random_state
from tutelage.training.graphs import CAPTURES

PLENTY = 1e15
VALUE = {"name": "run", "data": "digits", "student": "mlp:256", "device": "cpu", "threads": 1, "epochs": 1}
VALUE |= {"batch_size": 512, "accumulate": "auto", "precision": "fp32"}


def parsed(kind=Recipe, **keys):
    return config.parse(kind, {**VALUE, **keys})


@pytest.fixture(autouse=True)
def nothing_is_kept_free(monkeypatch):
    monkeypatch.setattr(micro_batches, "RESERVE", 0)
    monkeypatch.setattr(html, "write_report", lambda folder: None)


@pytest.fixture
def free(monkeypatch):
    """Return what sets the memory that is free, in bytes."""
    return lambda size: monkeypatch.setattr(memory, "free", lambda device: size)


def needed(recipe, free, count=1):
    """Return the bytes that a step needs in so many micro-batches."""
    free(PLENTY)
    run_inputs = build_inputs(recipe)
    (fit,) = recipe.fits()
    loader = data.BatchLoader(run_inputs.splits.train, batch_size=recipe.batch_size, train=True)
    with micro_batches._trial(recipe, run_inputs, 0, fit.settings) as trial:
        batches = lambda size: next(loader.at(0, [run_inputs.splits.train.largest(size)]))  # noqa: E731
        return trial.estimated(batches, recipe.batch_size, [count], free=PLENTY).need


def do(folder, reporter=None, **keys):
    recipe = parsed(name=folder.name, **keys)
    return execute(recipe, folder, options=RunOptions(reporter=reporter or Reporter()))


class StopsAtOnce(Reporter):
    def begin(self, title, total, done):
        raise KeyboardInterrupt


def test_what_is_found_has_the_bits_of_the_number_and_is_kept(tmp_path, free):
    free((needed(parsed(), free, 4) + needed(parsed(), free, 2)) / 2)
    with pytest.raises(KeyboardInterrupt):
        do(tmp_path / "auto", reporter=StopsAtOnce())
    free(PLENTY)
    auto, four = do(tmp_path / "auto"), do(tmp_path / "four", accumulate=4)
    for name in (records.STUDENT, records.BEST):
        assert (auto.folder / name).read_bytes() == (four.folder / name).read_bytes()
    assert yaml.safe_load((auto.folder / records.RECIPE).read_text())["accumulate"] == 4
    chosen = auto.manifest["accumulate"]
    assert chosen["value"] == 4
    assert chosen["why"].startswith("accumulate 4: a step takes about ")
    assert "accumulate" not in four.manifest
    assert recipe_differences(parsed(accumulate=4).model_dump(mode="json"), parsed()) == []
    assert do(tmp_path / "more", start=str(auto.folder), epochs=2).manifest["recipe"]["accumulate"] == 4


def test_the_smallest_number_that_fits(free):
    recipe = parsed()
    needs = {count: needed(recipe, free, count) for count in (1, 2, 8, 512)}
    for count, before in ((1, None), (2, 1), (8, 4), (512, 256)):
        free(needs[count] + 1)
        resolved, reason = micro_batches.resolve(recipe, build_inputs(recipe))
        assert resolved.accumulate == count, before
        assert reason.startswith(f"accumulate {count}: ")
    free(needs[512] - 1)
    suggested = ["checkpoint_activations=true", "data.size"]
    with refused(RecipeError, "accumulate", suggests=suggested):
        micro_batches.resolve(recipe, build_inputs(recipe))
    summary = dict(dry_run(recipe.model_copy(update={"accumulate": 3})))
    assert "accumulate" not in summary
    free(needs[2] + 1)
    assert dict(dry_run(recipe))["accumulate"].startswith("2: ")


class Draws(nn.Module):
    """A student with dropout and batch norm, that has room for a few samples at once."""

    def __init__(self, most=10_000):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 10)
        )
        self.layers[2].eval()
        self.most, self.sizes = most, []

    def forward(self, images):
        self.sizes.append(len(images))
        if len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self.layers(images)


def inputs_of(student, **keys):
    splits = data.open_data(data.DataSettings())
    adopted = models.adopt(student, classes=10, image_size=(8, 8), channels=1)
    objective = objectives.cross_entropy()
    return parsed(student="Draws", **keys), RunInputs(
        splits=splits, student=adopted, teacher=None, objectives=(objective,)
    )


def trial_of(student, **keys):
    recipe, run_inputs = inputs_of(student, **keys)
    loader = data.BatchLoader(run_inputs.splits.train, batch_size=16, train=True)
    batch = next(loader.at(0, [run_inputs.splits.train.largest(16)]))
    return micro_batches._trial(recipe, run_inputs, 0, recipe.fits()[0].settings), batch


@pytest.mark.parametrize("optimizer", [pytest.param("sgd", marks=pytest.mark.slow), "adamw"])
def test_steps_that_are_tried_leave_everything_as_it_was(free, optimizer):
    free(PLENTY)
    student = Draws(most=8)
    state = {name: value.clone() for name, value in student.state_dict().items()}
    modes = [module.training for module in student.modules()]
    context, batch = trial_of(student, optimizer=optimizer)
    draws = random_state(torch.device("cpu"))
    with context as trial:
        choice = trial.tried(batch, [1, 2, 4])
    assert choice.pieces == 2
    assert student.sizes == [16] + [8] * 4  # the second is tried twice
    assert all(torch.equal(value, state[name]) for name, value in student.state_dict().items())
    assert [module.training for module in student.modules()] == modes
    assert all(parameter.grad is None for parameter in student.parameters())
    assert str(random_state(torch.device("cpu"))) == str(draws)


def test_other_errors_of_a_tried_step_are_not_taken_for_a_lack_of_memory(free):
    free(PLENTY)
    student = Draws()
    student.layers[5] = nn.Linear(9, 10)
    context, batch = trial_of(student)
    with context as trial, pytest.raises(RuntimeError, match="shapes"):
        trial.tried(batch, [1, 2])


def test_a_step_that_may_be_captured_must_fit_twice(free, monkeypatch):
    free(100)
    monkeypatch.setattr(memory, "most_allocated", lambda device: 60)
    context, batch = trial_of(Draws())
    with context as trial:
        assert trial.tried(batch, [1, 2])[:2] == (1, micro_batches.MARGIN * 60)
    monkeypatch.setitem(CAPTURES, "cpu", Recorder)
    context, batch = trial_of(Draws(), graphs=False)
    with context as trial:
        assert trial.copies == 1
    context, batch = trial_of(Draws())
    with context as trial:
        assert trial.copies == 2


def test_a_coupled_objective_takes_its_batch_whole(free):
    free(0)
    recipe = parsed(teacher="mlp:8", objective="pkt", weak_teacher=True)
    resolved, reason = micro_batches.resolve(recipe, build_inputs(recipe))
    assert (resolved.accumulate, "couples" in reason) == (1, True)


def test_blocks_that_are_computed_again_need_less(free):
    value = {"student": "cifar:resnet8", "batch_size": 8, "data": {"source": "digits", "size": 16}}
    plain, again = (needed(parsed(**value, checkpoint_activations=each), free) for each in (False, True))
    assert again < 0.9 * plain


def test_all_processes_take_the_largest(free, monkeypatch):
    free(PLENTY)
    monkeypatch.setattr(micro_batches, "of_all", lambda work: [work(), micro_batches.Choice(8, 2.0, 3.0)])
    assert micro_batches.resolve(parsed(), build_inputs(parsed()))[0].accumulate == 8


def test_micro_batches_that_are_too_small_for_the_student_are_refused(monkeypatch):
    student = Draws()
    student.layers[2].train()
    recipe, run_inputs = inputs_of(student, batch_size=8)
    monkeypatch.setattr(micro_batches, "_smallest", lambda *_: micro_batches.Choice(4, 2.0, 3.0))
    with refused(RecipeError, "batch_size", got="4 micro-batches"):
        resolve_open(recipe, run_inputs)


@pytest.mark.parametrize("keys", [{"shard": "student"}, {"on_policy": 0.5}])
def test_memory_that_is_not_known_beforehand_is_refused(keys):
    recipe = parsed()
    run_inputs = build_inputs(recipe)
    if "on_policy" in keys:
        keys = {"on_policy": tutelage.config.schema.OnPolicy(share=0.5)}
    with refused(RecipeError, "accumulate", got="auto", suggests="accumulate=..."):
        micro_batches.resolve(recipe.model_copy(update=keys), run_inputs)


def test_several_runs_have_one_number():
    assert not can_share_batches(parsed(), parsed(seed=1))
    assert can_share_batches(parsed(accumulate=2), parsed(accumulate=2, seed=1))
    entries = {"objectives": {"ce": "cross_entropy"}}
    with refused(RecipeError, "recipe: accumulate", got="auto"):
        config.parse(Comparison, VALUE | entries)
    study = {"name": "s", "pairs": {"a/b": {"teacher": "mlp:8", "student": "mlp:8"}}, "methods": {"kd": "kd"}}
    with pytest.raises(RecipeError, match=r"protocol.accumulate: .*one for all runs"):
        schema.parse({**study, "protocol": {"data": "digits", "accumulate": "auto"}}, where="study")
