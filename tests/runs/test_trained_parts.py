"""Students of which a part is trained: what their files hold, and what those stand on."""

import json

import pytest
import torch
from safetensors.torch import save_file
from tests._helpers.refusals import refused
from tests._helpers.stopped_run import stopped
from tests.runs.test_texts import SIZES, lines, recipe  # noqa: F401  a fixture

import tutelage
from tutelage import models
from tutelage.config import parse
from tutelage.config.schema import Recipe
from tutelage.errors import InvalidValueError, NotFoundError, RecipeError
from tutelage.models import lora
from tutelage.runs.execute import execute
from tutelage.runs.setup import build_inputs

pytest.importorskip("transformers", reason="the optional package transformers is not installed")
pytest.importorskip("peft", reason="the optional package peft is not installed")
PACKED = {"pack": 16}


@pytest.fixture(scope="module")
def published(lines, tmp_path_factory):  # noqa: F811
    """A folder of the transformers library for each kind of network, with random weights."""
    root = tmp_path_factory.mktemp("published")
    for kind, data in {"bert": None, "llama": PACKED}.items():
        network = build_inputs(recipe(lines, student=f"hf:{kind}", data=data)).student
        models.save(network, root / kind)
        (root / kind / "student.safetensors").rename(root / kind / "model.safetensors")
        config = json.loads((root / kind / "config.json").read_text())
        config.pop("tutelage")
        (root / kind / "config.json").write_text(json.dumps(config))
    return root


def partly(lines, published, kind, trained, **keys):  # noqa: F811
    data = PACKED if kind == "llama" else None
    network = {"name": f"hf:{published / kind}", "trained": trained}
    written = recipe(lines, data=data, epochs=1, **keys).model_dump(mode="json")
    return parse(Recipe, written | {"student": network})


def names(path):
    return set(models.read(path))


@pytest.mark.parametrize(
    ("kind", "trained", "saved"),
    [
        ("llama", {"lora": 2}, ".lora_"),
        pytest.param("bert", {"lora": 2, "targets": ["value"]}, ".lora_", marks=pytest.mark.slow),
        pytest.param("bert", "head", None, marks=pytest.mark.slow),
    ],
)
def test_files_hold_what_is_trained_alone_and_resume_and_load_to_the_bit(
    lines,  # noqa: F811
    published,
    tmp_path,
    monkeypatch,
    kind,
    trained,
    saved,
):
    planned = partly(lines, published, kind, trained, checkpoint_steps=2)
    before = models.read(published / kind / "model.safetensors")
    run = execute(planned, tmp_path / "whole")
    stopped(planned, tmp_path / "resumed", monkeypatch)
    [checkpoint] = (tmp_path / "resumed/checkpoints").iterdir()
    held = {name for name in names(checkpoint / "tensors.safetensors") if name.startswith("lesson.")}
    execute(planned, tmp_path / "resumed")
    files = [models.read(tmp_path / each / "student.safetensors") for each in ("whole", "resumed")]
    assert files[0].keys() == names(tmp_path / "whole/best.safetensors")
    assert held == {f"lesson.student.network.{name}" for name in files[0]}
    assert all((saved and saved in name) or (kind == "bert" and "classifier." in name) for name in files[0])
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])
    student, best = tutelage.load(tmp_path / "whole"), tutelage.load(tmp_path / "whole", best=True)
    assert models.fingerprint(student) == models.fingerprint(best)
    state = {name.replace(".base_layer", ""): tensor for name, tensor in student.network.state_dict().items()}
    assert all(torch.equal(state[name], before[name]) for name in before if not name.startswith("classifier"))
    assert run.manifest["student"]["trained"] == sum(map(torch.numel, files[0].values()))


def test_adapters_are_read_by_peft_and_can_be_merged(lines, published, tmp_path):  # noqa: F811
    import peft
    import transformers

    execute(partly(lines, published, "llama", {"lora": 2}), tmp_path / "run")
    student, ids = tutelage.load(tmp_path / "run"), torch.tensor([[3, 4, 5, 6]])
    base = transformers.AutoModelForCausalLM.from_pretrained(published / "llama", dtype=torch.float32)
    plain = base(input_ids=ids).logits
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "run").eval()
    assert torch.equal(theirs(input_ids=ids).logits, student(ids))
    merged = lora.merged(student.network)
    assert merged.state_dict().keys() == names(published / "llama/model.safetensors")
    torch.testing.assert_close(merged(input_ids=ids).logits, student(ids))
    assert not torch.allclose(student(ids), plain)


def test_another_base_is_refused_when_it_is_loaded_and_when_it_is_resumed(
    lines,  # noqa: F811
    published,
    tmp_path,
    monkeypatch,
):
    other = tmp_path / "other"
    other.mkdir()
    for path in (published / "bert").iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    (tmp_path / "bert").symlink_to(other)
    planned = partly(lines, tmp_path, "bert", {"lora": 2}, checkpoint_steps=2)
    stopped(planned, tmp_path / "stopped", monkeypatch)
    execute(planned, tmp_path / "run")
    state = models.read(other / "model.safetensors")
    state["bert.embeddings.word_embeddings.weight"] += 1
    save_file(state, other / "model.safetensors", {"format": "pt"})
    with refused(InvalidValueError, "model", suggests="put those weights"):
        tutelage.load(tmp_path / "run")
    with refused(RecipeError, "student's frozen part", suggests="put the same"):
        execute(planned, tmp_path / "stopped")
    (tmp_path / "bert").unlink()
    with refused(NotFoundError, f"run holds what was trained on hf:{tmp_path / 'bert'} alone: model"):
        tutelage.load(tmp_path / "run")


@pytest.mark.slow
def test_a_base_that_no_name_brings_back_is_saved_whole(lines, tmp_path):  # noqa: F811
    network = {"name": "hf:bert", "config": SIZES, "trained": {"lora": 2, "alpha": 8}}
    planned = parse(Recipe, recipe(lines, epochs=1).model_dump(mode="json") | {"student": network})
    execute(planned, tmp_path / "run")
    assert names(tmp_path / "run/best.safetensors") < names(tmp_path / "run/student.safetensors")
    student, best = (tutelage.load(tmp_path / "run", best=best) for best in (False, True))
    assert models.fingerprint(student) == models.fingerprint(best)
    assert not student.frozen
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert tutelage.evaluate(str(tmp_path / "run"), best=True)["accuracy"] is not None


def test_adapters_of_images_leave_what_a_network_computes_and_take_named_layers():
    classifier = models.create("mlp:16x8", classes=4, image_size=(4, 4))
    images = torch.rand(3, 3, 4, 4)
    before = classifier(images)
    classifier.train_adapters(lora.Adapters(2, 2.0), seed=1)
    assert torch.equal(classifier(images), before)
    assert len(classifier.adapters.targets) == 2
    with refused(InvalidValueError, what="trained.targets", got="nowhere"):
        models.create("mlp:16", classes=4, image_size=(4, 4)).train_adapters(
            lora.Adapters(2, 2.0, ("nowhere",)), seed=1
        )
    with torch.no_grad():
        classifier.network.get_submodule(classifier.adapters.targets[0]).lora_B["default"].weight.normal_()
    after = classifier(images)
    classifier.train_adapters(lora.Adapters(3, 3.0), seed=2)  # The first ones are merged.
    torch.testing.assert_close(classifier(images), after)
    with refused(InvalidValueError, what="trained", got="one without linear layers but its head"):
        models.create("cifar:resnet8", classes=4).train_adapters(lora.Adapters(2, 2.0), seed=1)
