"""Runs whose student writes some of the completions: resumed, recorded, compared, and refused."""

import json
import random

import pytest
import torch
from tests._helpers.processes import processes
from tests._helpers.refusals import refused

from tutelage import config, data, models
from tutelage.config.schema import Comparison, Recipe
from tutelage.errors import RecipeError
from tutelage.runs import dry_run, setup
from tutelage.runs.execute import execute
from tutelage.runs.group import can_share_batches, group_of
from tutelage.runs.reporter import Reporter
from tutelage.runs.run import Run, RunOptions
from tutelage.settings.fit import OnPolicy
from tutelage.studies import compare
from tutelage.training.on_policy import OnPolicyBatches

pytest.importorskip("transformers", reason="the optional package transformers is not installed")
LLAMA = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
GPT2 = {"n_embd": 16, "n_layer": 1, "n_head": 2}  # with dropout
TOPICS = {"weather": ("rain", "sun", "cloud", "wind"), "money": ("bank", "stock", "price", "coin")}
TTM = {"ttm": {"gamma": 1, "beta": 1}}


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    """A file of words, each with the name of their topic."""
    path, draw = tmp_path_factory.mktemp("lines") / "lines.jsonl", random.Random(0)
    rows = []
    for number in range(50):
        topic = list(TOPICS)[number % 2]
        words = " ".join(draw.choice(TOPICS[topic]) for _ in range(draw.randint(1, 5)))
        rows.append(json.dumps({"words": words, "topic": f" {topic} it is", "talk": words}))
    path.write_text("\n".join(rows) + "\n")
    return path


def recipe(lines, *, kind=Recipe, data=None, **keys):
    columns = {"prompt": "words", "completion": "topic", "max_tokens": 24}
    given = {"source": f"jsonl:{lines}", "tokenizer": {"bpe": 280}, **(columns if data is None else data)}
    common = {"epochs": 2, "batch_size": 8, "optimizer": {"name": "adamw", "lr": 0.02}, "device": "cpu", "threads": 1}
    student = {"name": "hf:gpt2", "config": GPT2}
    return config.parse(kind, {"name": "run", "student": student, "data": given, **common, **keys})


@pytest.fixture(scope="module")
def teacher(lines, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "teacher"
    execute(recipe(lines, name="teacher", student={"name": "hf:llama", "config": LLAMA}, epochs=3), folder)
    return str(folder)


def weights(folder):
    return models.read(folder / "student.safetensors")


def same(folder, other):
    mine, others = weights(folder), weights(other)
    return all(torch.equal(mine[name], others[name]) for name in mine)


class Stops(Reporter):
    """Presses a key after so many steps."""

    def __init__(self, steps):
        self.left = steps

    def tick(self):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


ON = {"share": 0.5, "new_tokens": 8}


@pytest.fixture(scope="module")
def whole(lines, teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    return execute(recipe(lines, teacher=teacher, objective=TTM, on_policy=ON), folder)


@pytest.mark.parametrize("steps", [pytest.param(3, marks=pytest.mark.slow), 7])
def test_a_run_stopped_in_an_epoch_ends_in_the_same_bits(lines, teacher, whole, tmp_path, steps):
    planned = recipe(lines, teacher=teacher, objective=TTM, on_policy=ON)
    with pytest.raises(KeyboardInterrupt):
        execute(planned, tmp_path / "run", options=RunOptions(reporter=Stops(steps)))
    run = execute(planned, tmp_path / "run")
    assert run.manifest["resumed"] == 1
    assert same(tmp_path / "run", whole.folder)
    assert [epoch["train"] for epoch in run.epochs] == [epoch["train"] for epoch in whole.epochs]
    assert whole.epochs[0]["train"]["unlabelled"] > 40


def test_a_share_alone_is_short_for_it_and_0_is_off(lines, teacher):
    taught = {"teacher": teacher, "objective": TTM}
    assert recipe(lines, **taught, on_policy=1).on_policy == OnPolicy(share=1)
    written = recipe(lines, **taught, on_policy=0.25).model_dump(mode="json")
    assert config.parse(Recipe, written).on_policy == OnPolicy(share=0.25)
    (off,), (none,) = (recipe(lines, **taught, **keys).fits() for keys in ({"on_policy": 0}, {}))
    assert off == none
    inputs = setup.build_inputs(recipe(lines, **taught))
    loader = data.BatchLoader(inputs.splits.train, batch_size=8, train=True)
    assert setup.with_sampled(loader, off, inputs, inputs.student, device=torch.device("cpu")) is loader


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"accumulate": 3}, {"loss_form": "last_layer"}])
def test_micro_batches_and_last_layers_train_alike(lines, teacher, tmp_path, changes):
    student = {"name": "hf:llama", "config": LLAMA}  # without dropout
    folders = []
    for name, more in (("one", {}), ("other", changes)):
        keys = {"name": name, "student": student, "epochs": 1, "precision": "fp64", **more}
        taught = recipe(lines, teacher=teacher, objective=TTM, on_policy=ON, **keys)
        folders.append(execute(taught, tmp_path / name).folder)
    mine, others = map(weights, folders)
    assert max(float((mine[name] - others[name]).abs().max()) for name in mine) < 1e-9


def test_a_stage_may_write_and_another_not(lines, teacher):
    stages = [{"epochs": 1}, {"epochs": 1, "on_policy": 0.5}, {"epochs": 1, "on_policy": 0}]
    planned = recipe(lines, teacher=teacher, objective=TTM, on_policy=ON, stages=stages)
    assert [fit.on_policy and fit.on_policy.share for fit in planned.fits()] == [0.5, 0.5, None]
    assert [fit.settings.graphs for fit in planned.fits()] == [False, False, "auto"]


def test_no_two_students_share_what_one_writes(lines, teacher, tmp_path):
    objectives = {"ce": "cross_entropy", "ttm": TTM, "kd": {"kd": {"temperature": 1}}}
    compared = recipe(lines, kind=Comparison, teacher=teacher, objectives=objectives, on_policy=ON)
    runs = [each for _, each in compare.plan(compared, tmp_path)]
    assert [run.on_policy for run in runs] == [None, OnPolicy(**ON), OnPolicy(**ON)]
    assert not can_share_batches(runs[1], runs[2])
    assert group_of(runs[1:], 8) == [0]


def test_a_dry_run_times_what_the_student_writes(lines, teacher, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(OnPolicyBatches, "__len__", lambda self: asked.append(1) or len(self._batches))
    planned = recipe(lines, teacher=teacher, objective=TTM, on_policy=ON)
    assert dict(dry_run.dry_run(planned, runs=tmp_path))["steps"].startswith("10 of 8 samples")
    assert asked


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"data": {"text": "words", "label": "topic"}}, "on_policy"),
        ({"data": {"text": "words", "pack": 8}}, "on_policy"),
        ({"teacher": None}, "on_policy"),
        ({"outputs": "runs/outputs"}, "outputs"),
        ({"shard": "both"}, "shard"),
        ({"graphs": True}, "graphs"),
        ({"on_policy": -0.1}, "on_policy.share"),
        ({"on_policy": {"share": 1.5}}, "on_policy.share"),
        ({"on_policy": {"new_tokens": 0}}, "on_policy.new_tokens"),
        ({"on_policy": {"temperature": 0}}, "on_policy.temperature"),
        ({"on_policy": True}, "on_policy"),
        ({"on_policy": "half"}, "on_policy"),
        ({"on_policy": {"shares": 0.5}}, "on_policy.shares"),
        ({"stages": [{"on_policy": 2}]}, "stages.0.on_policy.share"),
    ],
)
def test_what_does_not_go_together_is_refused(lines, changes, what):
    keys = {"teacher": "runs/t", "objective": TTM, "on_policy": 0.5, **changes}
    with pytest.raises(RecipeError) as caught:
        recipe(lines, **keys)
    assert [each.what for each in caught.value.errors] == [f"recipe: {what}"]
    assert (
        [each.what.removeprefix("recipe: ") for each in caught.value.errors] == [what]
        if isinstance(what, str)
        else what
    )


def test_a_served_teacher_is_refused(lines):
    served = {"prompt": "words", "completion": "topic", "top_logprobs": "talk", "tokenizer": "runs/t"}
    with refused(RecipeError, "recipe: on_policy", got="served"):
        recipe(lines, data=served, teacher="served", objective=TTM, on_policy=0.5)


@pytest.mark.parametrize("objective", ["cross_entropy", "nkd"])
def test_an_objective_that_learns_nothing_of_it_is_refused(lines, teacher, objective):
    planned = recipe(lines, teacher=teacher, objective=objective, on_policy=0.5)
    with refused(RecipeError, "on_policy", got=objective):
        setup.check_run(planned, setup.build_inputs(planned))


def work(rank, planned, folder):
    execute(planned, folder)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_processes_train_as_one(lines, teacher, tmp_path):
    student = {"name": "hf:llama", "config": LLAMA}
    planned = recipe(lines, student=student, teacher=teacher, objective=TTM, on_policy=ON, precision="fp64")
    alone = execute(planned, tmp_path / "one")
    processes(2, work, planned, tmp_path / "two", limit=250)
    mine, others = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert max(float((mine[name] - others[name]).abs().max()) for name in mine) < 1e-9
    both = [run.epochs[0]["train"]["unlabelled"] for run in (alone, Run(tmp_path / "two"))]
    assert both[0] == both[1] > 40
