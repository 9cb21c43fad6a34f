"""Runs of texts: a class per text, or per token; trained heads, records of one epoch, resuming."""

import json

import pytest
import torch
from tests._helpers.refusals import refused

import tutelage
from tutelage import config, models, objectives, records
from tutelage.config.schema import Comparison, Recipe
from tutelage.errors import RecipeError
from tutelage.runs import disk, dry_run, record_teacher, setup
from tutelage.runs.execute import execute
from tutelage.runs.reporter import Reporter
from tutelage.runs.run import RunOptions

pytest.importorskip("transformers", reason="the optional package transformers is not installed")
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
TOPICS = {"weather": ("rain", "sun", "cloud", "wind"), "money": ("bank", "stock", "price", "coin")}


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    """A file of texts of 2 to 9 words, of which the class's own are half."""
    path, draw = tmp_path_factory.mktemp("texts") / "texts.jsonl", torch.Generator().manual_seed(0)
    rows = []
    for number in range(60):
        topic = list(TOPICS)[number % 2]
        words = [*TOPICS[topic], "the", "a", "of", "old"]
        length = int(torch.randint(2, 10, (), generator=draw))
        text = " ".join(words[i] for i in torch.randint(8, (length,), generator=draw).tolist())
        rows.append(json.dumps({"text": text, "label": topic}))
    path.write_text("\n".join(rows) + "\n")
    return path


def recipe(lines, *, kind=Recipe, student="hf:bert", data=None, **keys):
    data = {"source": f"jsonl:{lines}", "text": "text", "tokenizer": {"bpe": 280}, **(data or {"max_tokens": 12})}
    network = {"name": student, "config": SIZES}
    common = {"epochs": 2, "batch_size": 8, "optimizer": {"name": "adamw", "lr": 0.02}, "device": "cpu", "threads": 1}
    common["weak_teacher"] = True
    return config.parse(kind, {"name": "run", "student": network, "data": data, **common, **keys})


@pytest.fixture(scope="module")
def teacher(lines, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "teacher"
    execute(recipe(lines, name="teacher", epochs=4), folder)
    return folder


def weights(folder):
    return models.read(folder / "student.safetensors")


def test_a_class_of_texts_is_taught_by_what_was_recorded_once(lines, teacher, tmp_path):
    distilled = recipe(lines, teacher=str(teacher), objective={"ttm": {"gamma": 0.5, "beta": 2}})
    said = []
    reporter = Reporter()
    reporter.note = said.append
    live = execute(distilled, tmp_path / "live", options=RunOptions(reporter=reporter))
    assert [line.rsplit(" ", 1)[1] for line in said] == ["samples/s"] * 2
    recorded = distilled.model_copy(update={"outputs": str(tmp_path / "outputs")})
    record_teacher.record(recorded)
    assert [path.name for path in (tmp_path / "outputs").glob("epoch-*")] == ["epoch-0000"]
    other_seed = recorded.model_copy(update={"data_seed": 5, "name": "other"})
    execute(other_seed, tmp_path / "other")
    from_record = execute(recorded, tmp_path / "recorded")
    epochs = [[epoch["train"]["loss"] for epoch in run.epochs] for run in (live, from_record)]
    assert epochs[0] == pytest.approx(epochs[1], rel=1e-3)
    texts = {json.loads(line)["text"] for line in lines.read_text().splitlines()}
    shown = records.read_json(tmp_path / "live" / records.DISPUTED, records.Disputed)
    assert all(any(text.startswith(each["text"]) for text in texts) for each in shown["samples"])
    assert records.read_predictions(tmp_path / "live").index.size == 12
    model = tutelage.load(tmp_path / "live")
    assert {each.name for each in model.predict(["rain and sun", "the price of stock"])} <= set(TOPICS)


def test_the_disk_of_students_made_from_a_configuration_is_estimated(lines, tmp_path):
    recipes = [recipe(lines, name=name) for name in ("one", "two")]
    splits = setup.build_inputs(recipes[0]).splits
    alone = disk.run_size(recipes[0], setup.build_inputs(recipes[0], splits=splits).student)
    assert disk.size_of_all([(each, tmp_path / each.name) for each in recipes], splits, False) == 2 * alone


def test_a_head_alone_is_trained_and_a_stand_in_has_the_datas_classes(lines, teacher, tmp_path):
    before = weights(teacher)
    network = {"name": str(teacher), "trained": "head"}
    run = config.parse(Recipe, recipe(lines).model_dump(mode="json") | {"student": network, "name": "head"})
    execute(run, tmp_path / "head")
    after = weights(tmp_path / "head")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"classifier.weight", "classifier.bias"}


def test_a_network_whose_head_alone_is_trained_stays_in_evaluation_mode():
    classifier = models.create("cifar:resnet8", classes=4)
    classifier.train_head_alone()
    classifier.train()
    training = {name for name, module in classifier.network.named_modules() if module.training}
    assert training == {"fc"}
    assert {name for name, each in classifier.network.named_parameters() if each.requires_grad} == {
        "fc.weight",
        "fc.bias",
    }


def test_a_language_model_is_judged_by_perplexity(lines, tmp_path, invoke):
    packed, noted, said = {"pack": 16}, [], []
    reporter = Reporter()
    reporter.note, reporter.say = noted.append, said.append
    lm = recipe(lines, student="hf:llama", data=packed, name="lm")
    run = execute(lm, tmp_path / "lm", options=RunOptions(reporter=reporter))
    test = [epoch["test"] for epoch in run.epochs]
    assert test[-1]["perplexity"] < test[0]["perplexity"] < 280
    assert 0 < test[-1]["bits_per_byte"] < 8
    evaluation = json.loads((tmp_path / "lm" / "evaluation.json").read_text())
    assert evaluation["best"]["perplexity"] == min(each["perplexity"] for each in test)
    assert noted[0].split(", ")[2] == f"test perplexity {test[0]['perplexity']:.2f}"
    shown = f"perplexity {test[-1]['perplexity']:.2f}, {test[-1]['bits_per_byte']:.3f} bits per byte"
    assert said[-1] == f"lm: test {shown}"
    assert json.loads((tmp_path / "lm" / "manifest.json").read_text())["selection"]["metric"] == "perplexity"
    title, *judged = invoke("evaluate", str(tmp_path / "lm"))[1].splitlines()
    assert f"on {test[-1]['samples']} test tokens of" in title
    assert judged[0] == f"  perplexity     {test[-1]['perplexity']:.2f}"
    assert judged[1] == f"  bits per byte  {test[-1]['bits_per_byte']:.3f}"
    taught = recipe(lines, student="hf:llama", data=packed, teacher=str(tmp_path / "lm"), epochs=1)
    summary = dict(dry_run.dry_run(taught, runs=tmp_path / "runs"))
    assert summary["teacher perplexity"].startswith(f"{test[-1]['perplexity']:.2f} on a sample of")
    execute(taught, tmp_path / "taught", options=RunOptions(reporter=reporter))
    assert f"teacher hf:llama: {shown} on {test[-1]['samples']} test tokens" in said
    with pytest.raises(ValueError, match="one class per text"):
        tutelage.load(tmp_path / "lm").predict("rain")


@pytest.mark.parametrize(
    "keys",
    [
        {"kind": Recipe, "objective": "ttm"},
        {"kind": Recipe, "objective": objectives.wttm(beta=2.0)},
        {"kind": Recipe, "stages": [{"epochs": 1, "objective": "wttm"}]},
        {"kind": Comparison, "objectives": {"one": {"ttm": {"gamma": 1}}, "two": {"ttm": {"beta": 1}}}},
    ],
)
def test_tokens_refuse_an_exponent_that_was_not_typed(lines, keys):
    with refused(RecipeError, got="the default of"):
        recipe(lines, student="hf:llama", data={"pack": 16}, teacher="runs/t", **keys)
    recipe(lines, teacher="runs/t", **keys)  # A class per text is another matter.


def test_a_typed_exponent_and_other_presets_are_taken(lines):
    automatic = ({"ttm": {"gamma": "auto"}}, {"transformed_matching": {"weight_by": "entropy"}})  # 1, of tokens
    for objective in ({"ttm": {"gamma": 1}}, "kd", "dkd", "nkd", {"wttm": {"gamma": 0.9, "beta": 1}}, *automatic):
        built = recipe(lines, student="hf:llama", data={"pack": 16}, teacher="runs/t", objective=objective)
        again = config.parse(Recipe, built.model_dump(mode="json"))
        assert again.objective == built.objective


def test_batches_of_tokens_are_not_compiled_unless_asked(lines, tmp_path):
    run = execute(recipe(lines, epochs=35), tmp_path / "long")
    assert run.manifest["speed"][0]["why"]["student"].startswith("not tried: batches of tokens")


def test_a_teachers_statistics_are_of_counted_tokens(lines, tmp_path):
    execute(recipe(lines, student="hf:llama", data={"pack": 16}, name="t"), tmp_path / "t")
    objective = {"wttm": {"gamma": 0.9, "beta": 1, "normalise": "training"}}
    run = recipe(lines, student="hf:llama", data={"pack": 16}, teacher=str(tmp_path / "t"), objective=objective)
    inputs = setup.build_inputs(run)
    context = setup.run_context(inputs.objectives[0], inputs)
    counted = sum(int(inputs.splits.train.targets(torch.arange(len(inputs.splits.train)), ())[1].sum()) for _ in [0])
    assert context.teacher_logits.shape == (counted, inputs.splits.classes)


def test_a_student_made_of_its_teacher_learns_and_is_rebuilt_from_its_folder(lines, tmp_path):
    deep = {"name": "hf:bert", "config": SIZES | {"num_hidden_layers": 3}}
    made = {"init": {"from": "teacher", "layers": "every_second", "width": 8}}
    taught = {"teacher": {"train": {"model": deep, "epochs": 1}}, "objective": {"ttm": {"gamma": 0.5, "beta": 2}}}
    planned = config.parse(Recipe, recipe(lines, epochs=1, **taught).model_dump(mode="json") | {"student": made})
    again = config.parse(Recipe, planned.model_dump(mode="json"))
    assert again == planned
    run = execute(planned, tmp_path / "run")
    assert run.manifest["student"]["weights"] == "layers 0, 2 of hf:bert, the leading 8 channels"
    assert tutelage.load(tmp_path / "run").network.config.num_hidden_layers == 2
    with refused(RecipeError, "teacher", got="none"):
        setup.build_inputs(planned.model_copy(update={"teacher": None}))
