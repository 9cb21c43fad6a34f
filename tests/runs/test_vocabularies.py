"""Language models whose teacher has another vocabulary: data, runs, resuming, evaluation, and what is refused."""

import json
import random

import numpy as np
import pytest
import torch
from tests._helpers.processes import processes
from tests._helpers.refusals import refused

import tutelage
from tutelage import config, data, models, objectives
from tutelage.config.schema import Recipe
from tutelage.errors import InvalidValueError, RecipeError
from tutelage.modules import Distiller, FrozenTeacher
from tutelage.objectives import Linear
from tutelage.runs import setup
from tutelage.runs.execute import execute
from tutelage.runs.reporter import Reporter
from tutelage.runs.run import RunOptions
from tutelage.settings.data import DataSettings, LearnedTokenizer
from tutelage.training.step import split_batch
from tutelage.types import PADDING, UNLABELLED

pytest.importorskip("transformers", reason="the optional package transformers is not installed")
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
LARGE = {**SMALL, "hidden_size": 32, "num_hidden_layers": 2}
WORDS = (
    "the",
    "red",
    "green",
    "small",
    "house",
    "tree",
    "river",
    "cat",
    "runs",
    "near",
    "under",
    "café",
    "naïve",
    "日本",
)


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    """A file of questions, whose answers are their words in order; some characters have several bytes."""
    path, draw = tmp_path_factory.mktemp("lines") / "lines.jsonl", random.Random(0)
    rows = []
    for _ in range(60):
        words = [draw.choice(WORDS) for _ in range(draw.randint(2, 5))]
        rows.append(json.dumps({"question": " ".join(words) + "?", "answer": " " + " ".join(sorted(words))}))
    path.write_text("\n".join(rows) + "\n")
    return path


def recipe(lines, *, data=None, **keys):
    texts = {"source": f"jsonl:{lines}", "prompt": "question", "completion": "answer", "max_tokens": 48}
    read = {**texts, "tokenizer": {"bpe": 270}, "teacher_tokenizer": {"bpe": 310}, **(data or {})}
    common = {"epochs": 2, "batch_size": 8, "optimizer": {"name": "adamw", "lr": 0.02}, "device": "cpu", "threads": 1}
    student = {"name": "hf:llama", "config": SMALL}
    return config.parse(Recipe, {"name": "run", "student": student, "data": read, **common, **keys})


@pytest.fixture(scope="module")
def teacher(lines, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "teacher"
    alone = {"tokenizer": {"bpe": 310}, "teacher_tokenizer": None}
    execute(recipe(lines, name="teacher", student={"name": "hf:llama", "config": LARGE}, data=alone), folder)
    return folder


@pytest.fixture(scope="module")
def splits(lines):
    read = {"prompt": "question", "completion": "answer", "max_tokens": 48}
    both = {"tokenizer": LearnedTokenizer(bpe=270), "teacher_tokenizer": LearnedTokenizer(bpe=310)}
    return data.open_data(DataSettings(source=f"jsonl:{lines}", **read, **both))


def weights(folder):
    return models.read(folder / "student.safetensors")


# Data


def test_each_network_has_ids_and_counted_positions_of_its_own(lines, splits):
    (batch, *_) = data.BatchLoader(splits.train, batch_size=16, train=True).epoch(0)
    assert list(batch.inputs) == ["student", "teacher", "teacher_counted", "student_aligned", "teacher_aligned"]
    theirs = splits.for_teacher
    assert (splits.classes, theirs.classes, theirs.for_teacher is theirs) == (270, 310, True)
    answers = {json.loads(line)["question"]: json.loads(line)["answer"] for line in lines.read_text().splitlines()}
    ids = {"student": batch.inputs["student"], "teacher": batch.inputs["teacher"]}
    labels, counted = theirs.train.targets(batch.index, ids["teacher"])
    assert torch.equal(counted, batch.inputs["teacher_counted"])
    assert (labels != UNLABELLED).sum() < (batch.labels != UNLABELLED).sum()  # A larger vocabulary has longer tokens.
    for sample in range(16):
        said = []
        for name, targets in (("student", batch.labels), ("teacher", labels)):
            tokenizer = splits.text[name].tokenizer
            prompt = tokenizer.decode([i for i in ids[name][sample].tolist() if i != PADDING])
            said.append(tokenizer.decode([i for i in targets[sample].tolist() if i != UNLABELLED]))
            assert prompt.startswith(next(question for question in answers if prompt.startswith(question)))
        assert said[0] == said[1] in answers.values()


def test_at_aligned_positions_both_networks_have_read_the_same_text(splits):
    (batch,) = data.BatchLoader(splits.test, batch_size=99, train=False).epoch(0)
    aligned = {name: batch.inputs[f"{name}_aligned"] for name in ("student", "teacher")}
    assert torch.equal(aligned["student"].sum(1), aligned["teacher"].sum(1))
    assert not (aligned["student"] & ~batch.counted).any()
    assert not (aligned["teacher"] & ~batch.inputs["teacher_counted"]).any()
    most = 0
    for sample in range(len(batch.index)):
        read = []
        for name, mask in aligned.items():
            tokenizer, row = splits.text[name].tokenizer, batch.inputs[name][sample]
            by_id = {token: spelled for spelled, ids in tokenizer.ids_by_bytes.items() for token in ids}
            ends = torch.nonzero(mask[sample]).flatten().tolist()
            read.append([b"".join(by_id[token] for token in row[: end + 1].tolist()) for end in ends])
        assert read[0] == read[1]
        most = max(most, len(read[0]))
    assert most > 4


def test_the_same_tokens_are_those_of_the_same_bytes_and_the_ends(splits):
    student, teacher = (splits.text[name].tokenizer for name in ("student", "teacher"))
    pairs = student.same_tokens(teacher)
    spelled = [{i: b for b, ids in each.ids_by_bytes.items() for i in ids} for each in (student, teacher)]
    assert (student.end_id, teacher.end_id) in pairs
    assert all(spelled[0][mine] == spelled[1][its] for mine, its in pairs)
    assert len(pairs) >= 257  # the bytes and the end, of which the learned tokens come on top
    assert len({mine for mine, _ in pairs}) == len({its for _, its in pairs}) == len(pairs)


def test_one_tokenizer_typed_twice_is_one_vocabulary(lines):
    both = {"tokenizer": LearnedTokenizer(bpe=270), "teacher_tokenizer": LearnedTokenizer(bpe=270)}
    opened = data.open_data(DataSettings(source=f"jsonl:{lines}", prompt="question", completion="answer", **both))
    assert opened.for_teacher is opened
    assert isinstance(opened.train.fetch(np.array([0])), torch.Tensor)


# Training


@pytest.mark.parametrize("objective", ["uld", "gold", {"uld": {"positions": "text", "supervised": 0}}])
def test_the_loss_falls_and_both_are_evaluated_on_their_own_tokens(lines, teacher, tmp_path, objective):
    run = execute(recipe(lines, teacher=str(teacher), objective=objective, epochs=3), tmp_path / "run")
    name = objective if isinstance(objective, str) else "uld"
    first, *_, last = (epoch["train"]["terms"][name] for epoch in run.epochs)
    assert 0 < last < 0.9 * first
    assert run.epochs[-1]["train"]["agreement"] is None
    alone = json.loads((teacher / "evaluation.json").read_text())
    assert run.manifest["teacher"]["perplexity"] == pytest.approx(alone["student"]["perplexity"], rel=1e-5)
    assert set(run.manifest["data"]["tokenizers"]) == {"student", "teacher"}
    network = tutelage.load(tmp_path / "run")
    assert network.card.classes == 270


class Stops(Reporter):
    """Presses a key after so many steps."""

    def __init__(self, steps):
        self.left = steps

    def tick(self):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def test_a_run_stopped_in_an_epoch_ends_in_the_same_bits(lines, teacher, tmp_path):
    planned = recipe(lines, teacher=str(teacher), objective="gold")
    whole = execute(planned, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        execute(planned, tmp_path / "run", options=RunOptions(reporter=Stops(8)))
    again = execute(planned, tmp_path / "run")
    assert again.manifest["resumed"] == 1
    assert again.epochs[-1]["train"] == whole.epochs[-1]["train"]
    mine, others = weights(tmp_path / "run"), weights(tmp_path / "whole")
    assert all(torch.equal(mine[name], others[name]) for name in mine)


@pytest.mark.parametrize("objective", [objectives.uld(), objectives.gold(weight=Linear(1.0, 0.0))])
def test_micro_batches_make_the_gradient_of_the_batch(lines, teacher, objective):
    inputs = setup.build_inputs(recipe(lines, teacher=str(teacher)))
    distiller = Distiller(inputs.student.double(), objective, setup.run_context(objective, inputs))
    frozen = FrozenTeacher(inputs.teacher.double())
    (batch, *_) = data.BatchLoader(inputs.splits.train, batch_size=10, train=True).epoch(0)
    totals = objectives.count(batch, torch.zeros(*batch.labels.shape, 1))
    gradients = []
    for count in (1, 3):
        distiller.zero_grad()
        for piece in split_batch(batch, count):
            distiller(piece, frozen(piece), totals=totals)[0].total.backward()
        gradients.append(torch.cat([each.grad.flatten() for each in distiller.parameters() if each.grad is not None]))
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-8)


def work(rank, planned, folder):
    torch.set_num_threads(1)
    execute(planned, folder)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("objective", ["uld", "gold"])
def test_two_processes_train_as_one(lines, teacher, tmp_path, objective):
    planned = recipe(lines, teacher=str(teacher), objective=objective, precision="fp64")
    execute(planned, tmp_path / "one")
    processes(2, work, planned, tmp_path / "two", limit=250)
    mine, others = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert max(float((mine[name] - others[name]).abs().max()) for name in mine) < 1e-9


# Refused


SAME = ["kd", {"ttm": {"gamma": 1, "beta": 1}}, ["uld", {"kd": {"supervised": 0}}]]


@pytest.mark.parametrize("objective", SAME)
def test_an_objective_that_compares_the_same_tokens_is_refused(lines, teacher, objective):
    inputs = setup.build_inputs(recipe(lines, teacher=str(teacher), objective=objective))
    name = inputs.objectives[0].name
    with refused(RecipeError, f"objective {name}", suggests=["objective=uld", "objective=gold"]):
        setup.check_compatible(inputs)


def test_what_reads_no_teacher_goes_with_it(lines, teacher):
    for objective in ("cross_entropy", ["uld", {"confidence_penalty": {}}]):
        setup.check_compatible(setup.build_inputs(recipe(lines, teacher=str(teacher), objective=objective)))


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        ({"outputs": "outputs"}, "recipe: outputs"),
        ({"on_policy": 0.5}, "recipe: on_policy"),
        ({"student": {"init": {"from": "teacher"}}}, "recipe: student.init"),
    ],
)
def test_what_needs_one_vocabulary_is_refused_before_anything_is_opened(lines, keys, what):
    with refused(RecipeError, what, suggests="data.teacher_tokenizer=null"):
        recipe(lines, teacher="somewhere", objective="uld", **keys)


@pytest.mark.parametrize(
    "columns",
    [
        {"text": "text", "pack": 16},
        {"messages": "talk", "tokenizer": "somewhere"},
        {"prompt": "a", "completion": "b", "tokenizer": "somewhere", "top_logprobs": "said"},
    ],
)
def test_data_of_one_tokenizer_are_refused_another(lines, columns):
    own = {"prompt": None, "completion": None, "max_tokens": 128, **columns}
    with refused(RecipeError, "recipe: data.teacher_tokenizer", suggests="data.teacher_tokenizer=null"):
        recipe(lines, data=own)


def test_a_teacher_of_other_tokens_says_what_to_type(lines, teacher):
    with refused(InvalidValueError, "model", suggests="data.teacher_tokenizer="):
        setup.build_inputs(recipe(lines, teacher=str(teacher), data={"teacher_tokenizer": None}))


def test_aligned_positions_must_be_there_to_be_read(splits):
    (batch, *_) = data.BatchLoader(splits.train, batch_size=2, train=True).epoch(0)
    views = {name: batch.inputs[name] for name in ("student", "teacher", "teacher_counted")}
    outputs = [tutelage.Outputs(torch.randn(*views[name].shape, 300)) for name in ("student", "teacher")]
    bare = batch._replace(inputs=views)
    assert torch.isfinite(objectives.uld().bind()(*outputs, bare).total)
    with refused(InvalidValueError, "batch.inputs", suggests="positions"):
        objectives.gold().bind()(*outputs, bare)
