"""Networks that answer with vectors: runs of a sentence encoder's, a classifier's, and what is refused."""

import csv
import json

import pytest
import torch
from tests._helpers.refusals import refused

import tutelage
from tutelage import config, data, models
from tutelage.config.schema import Recipe
from tutelage.errors import InvalidValueError, RecipeError
from tutelage.runs.networks import adopt_teacher
from tutelage.runs.record_teacher import record
from tutelage.settings.data import DataSettings

WORDS = {"sport": "game team ball win", "money": "bank market price stock"}
BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "texts.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        for number in range(40):
            name = ("sport", "money")[number % 2]
            rows.writerow([" ".join(WORDS[name].split()[number % 4 :]) + f" {number}", name])
    return path


@pytest.fixture(scope="module")
def settings(texts, tmp_path_factory):
    data = {"source": f"csv:{texts}", "text": "text", "tokenizer": {"bpe": 260}, "max_tokens": 16}
    return {
        "data": data | {"embedding": 16, "label": "label"},
        "student": {"name": "hf:bert", "config": BERT | {"hidden_size": 8}},
        "teacher": {"name": "hf:bert", "config": BERT},
        "batch_size": 8,
        "epochs": 2,
        "device": "cpu",
        "weak_teacher": True,
        "runs": tmp_path_factory.mktemp("runs"),
    }


def test_an_encoder_teaches_its_embedding_and_the_run_is_judged_by_retrieval(settings):
    run = tutelage.distill(**settings, objective=["cosine", "in_batch_similarity"], name="both")
    judged = run.evaluation["student"]
    assert judged["accuracy"] is judged["entropy"] is judged["loss"] is None
    assert 0 <= judged["recall_at_1"] <= 1
    assert -1 <= judged["cosine"] <= 1
    assert set(run.evaluation["best"]) >= {"recall_at_1", "epoch"}
    first, last = (json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines())
    assert last["train"]["terms"]["cosine"] < first["train"]["terms"]["cosine"]
    assert first["train"]["accuracy"] is first["train"]["entropy"] is first["train"]["agreement"] is None
    assert "Recall at 1" in (run.folder / "report.html").read_text()
    student = tutelage.load(run.folder)
    assert (student.card.task, student.card.classes) == ("embedding", 16)
    vectors = student.embed(["a game", "the stock market"])
    assert vectors.shape == (2, 16)
    torch.testing.assert_close(student.embed("a game"), vectors[:1], rtol=1e-4, atol=1e-5)
    with pytest.raises(InvalidValueError, match=r"type model.embed\(samples\)"):
        student.predict("a game")
    again = tutelage.evaluate(run)
    assert again["recall_at_1"] == judged["recall_at_1"]


def test_recorded_embeddings_teach_as_the_live_teacher_does(settings, tmp_path):
    outputs = str(tmp_path / "outputs")
    keys = {key: value for key, value in settings.items() if key != "runs"}
    record(config.parse(Recipe, {**keys, "objective": "cosine", "name": "recorded", "outputs": outputs}))
    live, recorded = (
        tutelage.distill(**settings, objective="cosine", name=name, outputs=folder)
        for name, folder in (("live", None), ("recorded", outputs))
    )
    losses = [json.loads(run.folder.joinpath("metrics.jsonl").read_text().splitlines()[0]) for run in (live, recorded)]
    assert losses[0]["train"]["loss"] == pytest.approx(losses[1]["train"]["loss"], abs=2e-3)  # kept in 16 bits


def test_without_labels_students_are_judged_by_the_similarity_to_the_teacher(settings):
    data = {**settings["data"], "label": None}
    run = tutelage.distill(**{**settings, "data": data, "epochs": 1}, objective="embedding_mse", name="unlabelled")
    assert run.evaluation["student"]["recall_at_1"] is None
    assert run.manifest["selection"]["metric"] == "cosine"
    assert run.evaluation["best"]["cosine"] == run.evaluation["student"]["cosine"]


def test_a_classifier_teaches_what_its_head_reads(tmp_path):
    digits = {"source": "digits", "embedding": 12}
    common = {"epochs": 1, "device": "cpu", "runs": tmp_path, "weak_teacher": True}
    teacher = tutelage.train(model="mlp:12", data="digits", name="teacher", **{**common, "weak_teacher": False})
    run = tutelage.distill(student="mlp:8", teacher=str(teacher.folder), data=digits, objective="cosine", **common)
    assert run.evaluation["teacher"]["recall_at_1"] > 0.5
    wide = {**digits, "embedding": 20}
    with pytest.raises(RecipeError, match=r"as wide as data.embedding=20 .* got one of 12; type data.embedding=12"):
        tutelage.distill(
            student="mlp:8", teacher=str(teacher.folder), data=wide, objective="cosine", name="no", **common
        )
    tutelage.distill(
        student="mlp:8", teacher=str(teacher.folder), data=wide, objective="in_batch_similarity", name="wide", **common
    )
    images = torch.rand(2, 1, 8, 8)
    assert tutelage.load(tmp_path / "wide")(images).shape == (2, 20)


@pytest.mark.parametrize("combine", ["logits", "terms"])
def test_several_teachers_teach_the_mean_of_their_vectors_or_a_term_each(combine, tmp_path):
    several = {"members": [{"name": "mlp:12"}, {"name": "mlp:16x12"}], "combine": combine}
    common = {"data": {"source": "digits", "embedding": 12}, "epochs": 1, "device": "cpu", "weak_teacher": True}
    run = tutelage.distill(student="mlp:8", teacher=several, objective="embedding_mse", runs=tmp_path, **common)
    assert run.evaluation["student"]["cosine"] > -1
    assert all("embedding_mse" in name for name in run.epochs[0]["train"]["terms"])


@pytest.mark.parametrize(
    ("objective", "data", "message"),
    [
        ("kd", {"embedding": 10}, "one that reads labels"),
        ("confidence_penalty", {"embedding": 10}, "one that reads"),
        ({"kd": {"supervised": 0}}, {"embedding": 10}, "one that reads logits of classes"),
        ("cosine", {}, "expected data.embedding"),
        ("cosine", {"embedding": 0}, "a width in"),
        ("cosine", {"embedding": 10, "labelled": 3}, "as no objective reads labels"),
        ("cosine", {"embedding": 10, "mixup": 0.2}, "0 with data.embedding"),
    ],
)
def test_what_does_not_go_together_is_refused(objective, data, message, tmp_path):
    with pytest.raises(RecipeError, match=message):
        tutelage.distill(
            student="mlp:8",
            teacher="mlp:10",
            data={"source": "digits", **data},
            objective=objective,
            device="cpu",
            weak_teacher=True,
            runs=tmp_path,
        )


def test_a_network_of_labels_teaches_what_its_head_reads_and_objects_of_another_task_are_refused(tmp_path):
    network = models.create("mlp:12", classes=3, channels=1, image_size=(8, 8), task="labels")
    models.save(network, tmp_path / "labels")
    embeds = models.create(str(tmp_path / "labels"), task="embedding", as_trained=("classes",))
    assert (embeds.card.task, embeds.card.classes) == ("embedding", 12)
    splits = data.open_data(DataSettings(source="digits", embedding=12))
    for given in (
        network,
        models.ensemble(network, models.create("mlp:8", classes=3, channels=1, image_size=(8, 8), task="labels")),
    ):
        with refused(InvalidValueError, "teacher", suggests="task='embedding'"):
            adopt_teacher(given, splits)
