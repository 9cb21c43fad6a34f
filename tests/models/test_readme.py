"""Model cards: what the records say, the front matter of the Hub, and names that would be Markdown."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import save_file
from tests._helpers import ROOT
from torch import nn
from torch.utils.data import TensorDataset

import tutelage
from tutelage import models, records
from tutelage.errors import NotFoundError
from tutelage.intervals import accuracy_interval
from tutelage.models import Card
from tutelage.models.readme import card_of, model_card

FINISHED = ROOT / "tests" / "fixtures" / "runs" / "finished"
COSTS = {
    "device": "cpu",
    "hardware": "a processor",
    "threads": 2,
    "precision": "fp32",
    "input": [1, 8, 8],
    "student": {
        "network": "mlp:8",
        "parameters": 610,
        "flops": 1200,
        "file_bytes": 2500000,
        "latency_ms": 0.5,
        "latency_p90_ms": 0.75,
        "latency_n": 30,
        "throughput": 12345.0,
        "batch": 256,
    },
    "teacher": None,
}
CALIBRATION = {"temperature": 1.25, "fitted_on": "validation", "loss": 0.3, "ece": 0.0123, "reliability": []}


def split(text):
    """The front matter of a card, as the Hub's client reads it, and its Markdown."""
    card = ModelCard(text)
    return yaml.safe_load(text.split("---\n")[1]), card.text


def cells(text, first):
    """The cells of the table's row that begins so."""
    (row,) = [line for line in text.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in re.split(r"(?<!\\\\)\|", row)[2:-1]]


@pytest.fixture
def run(tmp_path):
    """A finished run of digits, whose records a test changes."""
    folder = tmp_path / "run"
    shutil.copytree(FINISHED, folder)
    return folder


def test_an_interval_is_that_of_the_labelled_samples(run):
    evaluation = json.loads((run / records.EVALUATION).read_text())
    bins = [evaluation["student"]["reliability"][0] | {"count": 40}]
    evaluation["student"] |= {"accuracy": 0.75, "reliability": bins}
    (run / records.EVALUATION).write_text(json.dumps(evaluation | {"samples": 80}))
    low, high = accuracy_interval(30, 40)
    assert f"{100 * low:.2f} to {100 * high:.2f}" in cells(split(model_card(run))[1], "Accuracy")[0]


def test_the_figures_are_those_of_the_records(run):
    evaluation, manifest = (json.loads((run / name).read_text()) for name in (records.EVALUATION, records.MANIFEST))
    evaluation["student"]["calibration"] = CALIBRATION
    (run / records.EVALUATION).write_text(json.dumps(evaluation))
    (run / records.COSTS).write_text(json.dumps(COSTS))
    front, text = split(model_card(run))
    judged, samples = evaluation["student"], evaluation["samples"]
    low, high = accuracy_interval(round(judged["accuracy"] * samples), samples)
    shown = f"{100 * judged['accuracy']:.2f} % (95 % interval {100 * low:.2f} to {100 * high:.2f})"
    assert cells(text, "Accuracy")[0] == shown
    assert f"On the {samples} samples of the test set" in text
    assert "\n| | Student | Teacher |\n|---|---|---|\n| Accuracy | " in text
    assert cells(text, "Accuracy")[1].startswith(f"{100 * evaluation['teacher']['accuracy']:.2f} %")
    assert cells(text, "The same after temperature scaling") == ["1.23 % (T = 1.250, fitted on the validation set)", ""]
    assert cells(text, "Parameters") == ["610", ""]
    assert cells(text, "File, MB") == ["2.5", ""]
    assert cells(text, "Latency of one sample, ms, median") == ["0.5 (90 % within 0.75)", ""]
    assert cells(text, "Throughput, samples per second") == ["12,345 (batches of 256)", ""]
    assert "| Number | Class |" not in text, "the digits' names are their numbers"
    assert "Measured on a processor (cpu, 2 threads), in fp32, of samples of shape 1 x 8 x 8." in text
    assert cells(text, "Source") == [manifest["data"]["source"]]
    assert manifest["teacher"]["name"] in text
    (index,) = front["model-index"]
    (result,) = index["results"]
    assert result["metrics"] == [{"type": "accuracy", "value": judged["accuracy"]}]
    assert (front["license"], front["library_name"]) == ("unknown", "tutelage")
    assert front["pipeline_tag"] == "image-classification"
    recipe = yaml.safe_load(text.partition("<summary>Recipe</summary>\n\n```yaml\n")[2].partition("```")[0])
    assert recipe == manifest["recipe"]
    assert manifest["software"]["torch"] in text


def test_what_was_not_measured_is_not_there(run):
    (run / records.EVALUATION).unlink()
    front, text = split(model_card(run))
    assert "model-index" not in front
    assert not {"## Results", "## Cost"} & set(text.splitlines())


def test_other_libraries_and_front_matter(run):
    manifest = json.loads((run / records.MANIFEST).read_text())
    manifest["data"] |= {"source": "hf:org/data", "licence": "cc-by-4.0"}
    first = {"weights": "a1_in1k", "source": "https://huggingface.co/timm/resnet18.a1_in1k", "licence": "apache-2.0"}
    manifest["student"] |= {"name": "timm:resnet18.a1_in1k", **first}
    (run / records.MANIFEST).write_text(json.dumps(manifest))
    usage = 'import timm\ntimm.create_model("hf_hub:me/x", pretrained=True)'
    front, text = split(model_card(run, library="timm", usage=usage, name="me/x", license="mit"))
    assert front["base_model"] == "timm/resnet18.a1_in1k"
    assert front["datasets"] == ["org/data"]
    assert (front["license"], front["library_name"]) == ("mit", "timm")
    assert front["tags"] == ["knowledge-distillation", "tutelage", "timm"]
    assert usage in text
    assert (
        "student.safetensors" not in text.partition("## Licences")[0].partition("## How to load it")[2].split("##")[0]
    )
    assert cells(text, "Data, hf:org/data") == ["cc-by-4.0", ""]
    assert cells(text, r"First weights of the student, timm:resnet18.a1\_in1k, a1\_in1k")[0] == "apache-2.0"


def test_a_network_without_a_teacher_has_one_column(run):
    manifest = json.loads((run / records.MANIFEST).read_text())
    (run / records.MANIFEST).write_text(json.dumps(manifest | {"teacher": None, "verb": "train"}))
    front, text = split(model_card(run))
    assert len(cells(text, "Accuracy")) == 1
    assert "Teacher" not in text
    assert "\n| | Student |\n|---|---|\n| Accuracy | " in text
    assert front["tags"] == ["tutelage"]


def test_licences_are_said_or_unknown(run):
    _, text = split(model_card(run))
    licences = text.partition("## Licences")[2].partition("##")[0]
    manifest = json.loads((run / records.MANIFEST).read_text())
    assert manifest["student"]["weights"] == "random"
    assert "none: random weights" in licences
    assert licences.count("unknown: none is recorded with them") == 2  # teacher and data
    assert "none has been chosen" in licences


NASTY = [
    "a | b",
    "line\nbreak\n---\n# heading",
    "<script>alert(1)</script>",
    "[click](javascript:alert(1))",
    "`code` **bold** _x_ $$y$$",
    "key: [value, {a: b}] # no",
    "\u202eright\x1b[2J",
    "- 'quoted\" & yes",
    "",
    "```\n</details>",
]


def test_names_stay_text(run):
    card = models.io.read_card(run)
    named = replace(card, classes=len(NASTY), class_names=tuple(NASTY))
    (run / records.CARD).write_text(json.dumps({"card": named.to_json(), "name": card.name}))
    manifest = json.loads((run / records.MANIFEST).read_text())
    manifest["name"] = NASTY[1]
    manifest["data"]["source"] = manifest["teacher"]["name"] = NASTY[0] + NASTY[2] + NASTY[1]
    manifest["recipe"] |= {"name": NASTY[9], "teacher": "````"}
    manifest["command"] = NASTY[4]
    (run / records.MANIFEST).write_text(json.dumps(manifest))
    front, text = split(model_card(run))
    assert front["model-index"][0]["name"] == "line\\nbreak\\n---\\n# heading"
    assert "<script>" not in text
    assert "\n# heading" not in text
    assert "](javascript" not in text.replace("\\](", "")
    assert not {"\u202e", "\x1b"} & set(text)
    rows = text.partition("| Number | Class |")[2].splitlines()[2 : 2 + len(NASTY)]
    assert all(len(re.split(r"(?<!\\)\|", row)) == 4 for row in rows)
    fence = text.partition("<summary>Recipe</summary>\n\n")[2].partition("yaml\n")[0]
    recipe = text.partition(f"{fence}yaml\n")[2].partition(f"\n{fence}\n")[0]
    assert yaml.safe_load(recipe.rpartition("objective:")[0] if "objective:" in recipe[:12] else recipe)
    assert fence == "`````"


def test_many_classes_are_cut_short():
    text = card_of(Card(name="mlp:8", classes=1000, class_names=tuple(f"class {k}" for k in range(1000))))
    assert cells(text, "...") == ["900 more, in `student.json`"]


def test_a_card_needs_a_student_and_whole_records(run, tmp_path):
    (run / records.EVALUATION).write_text("{")
    with pytest.raises(records.DamagedError):
        model_card(run)
    with pytest.raises(NotFoundError):
        model_card(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of a module of one's own, on data whose classes have names."""
    draw = torch.Generator().manual_seed(0)
    rows = TensorDataset(torch.rand(12, 1, 4, 4, generator=draw), torch.arange(12) % 2)
    data = tutelage.data.from_datasets(rows, rows, classes=2, class_names=["cat", "dog | wolf"])
    student, teacher = (nn.Sequential(nn.Flatten(), nn.Linear(16, 2)) for _ in range(2))
    objective = tutelage.objectives.wttm(gamma=0.5) + tutelage.objectives.kd(supervised=0)
    settings = {"epochs": 1, "batch_size": 4, "device": "cpu", "threads": 1, "weak_teacher": True}
    runs = tmp_path_factory.mktemp("runs")
    return tutelage.distill(
        student=student, teacher=teacher, data=data, objective=objective, name="own", runs=runs, **settings
    )


def test_a_run_of_ones_own_module_is_published_with_its_names_and_papers(trained, tmp_path):
    alike = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    student = models.from_pretrained(trained.folder, network=alike)
    assert student.card.class_names == ("cat", "dog | wolf")
    student.save_pretrained(tmp_path)
    text = Path(tmp_path / records.README).read_text()
    assert "| 1 | dog \\| wolf |" in text
    assert "- Zheng and Yang 2024, arXiv:2402.11148, section 4" in text
    assert "- Hinton et al. 2015, arXiv:1503.02531" in text
    assert "network=Sequential()" in text
    assert "there is no recipe that repeats it" in text
    assert trained.manifest["papers"][1].startswith("Hinton")
    accuracy = trained.evaluation["student"]["accuracy"]
    assert cells(text, "Accuracy")[0].startswith(f"{100 * accuracy:.2f} %")
    again = models.from_pretrained(tmp_path, network=nn.Sequential(nn.Flatten(), nn.Linear(16, 2)))
    assert again.card.class_names == student.card.class_names


def test_figures_are_said_of_the_weights_that_they_are_of(run, tmp_path):
    state = models.read(run / records.BEST)
    save_file({name: value + 1 for name, value in state.items()}, run / records.BEST)
    changed = tutelage.load(run)
    with torch.no_grad():
        next(iter(changed.network.parameters())).add_(1)
    texts = {}
    for name, student in {
        "last": tutelage.load(run),
        "best": tutelage.load(run, best=True),
        "changed": changed,
    }.items():
        student.save_pretrained(tmp_path / name)
        texts[name] = (tmp_path / name / records.README).read_text()
    assert [name for name, text in texts.items() if "## Results" in text] == ["last", "best"]
    assert [name for name, text in texts.items() if "These are the weights of epoch" in text] == ["best"]
    assert [name for name, text in texts.items() if "model-index" in text] == ["last"]
    assert "No records of a run are known of its weights" in texts["changed"]
