"""Students made of their teacher: which weights they have, and which teachers and sizes are refused."""

import pytest
import torch
from tests._helpers.refusals import refused
from tests.models.sources.test_hf import IDS, WORDS

from tutelage import models
from tutelage.errors import InvalidValueError
from tutelage.models import lora
from tutelage.text import TextInput, Tokenizer

pytest.importorskip("transformers", reason="the optional package transformers is not installed")

SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
KINDS = {
    "bert": SIZES,
    "distilbert": {"dim": 32, "n_layers": 4, "n_heads": 4, "hidden_dim": 64},
    "llama": SIZES | {"num_key_value_heads": 2},
    "qwen2": SIZES | {"num_key_value_heads": 2},
}
LISTS = {"bert": "bert.encoder.layer", "distilbert": "distilbert.transformer.layer"}
WHICH = {"every_second": [0, 2], "first": [0, 1], "last": [2, 3]}


def teacher(kind):
    """A network whose every weight and bias is another; of texts, or of tokens."""
    text = TextInput(tokenizer=WORDS, max_tokens=8, per_token=kind not in LISTS)
    made = models.create(f"hf:{kind}", config=KINDS[kind], classes=3 if kind in LISTS else None, text=text)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(
                0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            )
    return made.eval()


@pytest.mark.parametrize(
    "kind", ["bert", "llama", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("distilbert", "qwen2"))]
)
@torch.no_grad()
def test_layers_and_leading_channels_are_copied_and_a_folder_rebuilds_the_student(kind, tmp_path):
    source = teacher(kind)
    before = models.fingerprint(source)
    whole = models.from_teacher(source, width=32).eval()
    assert torch.equal(whole(IDS), source(IDS))
    theirs, stack = source.network.state_dict(), LISTS.get(kind, "model.layers")
    for layers, chosen in WHICH.items():
        student = models.from_teacher(source, layers=layers)
        for name, own in student.network.state_dict().items():
            for number, which in reversed(list(enumerate(chosen))):
                if name.startswith(f"{stack}.{number}."):
                    name = name.replace(f"{stack}.{number}.", f"{stack}.{which}.", 1)
                    break
            assert torch.equal(own, theirs[name]), name
        assert student.card.weights == f"layers {chosen[0]}, {chosen[1]} of hf:{kind}"
    narrow = models.from_teacher(source, layers=[3], width=16).eval()
    assert narrow.network.config.hidden_size == 16
    assert narrow.network.config.num_attention_heads == 2
    query = next(name for name in theirs if "3." in name and "q" in name.rpartition("3.")[2] and "weight" in name)
    assert torch.equal(narrow.network.state_dict()[query.replace("3.", "0.", 1)], theirs[query][:16, :16])
    models.save(narrow, tmp_path)
    rebuilt = models.create(str(tmp_path)).eval()
    assert torch.equal(rebuilt(IDS), narrow(IDS))
    assert narrow(IDS).isfinite().all()
    assert models.fingerprint(source) == before


@pytest.mark.parametrize(
    ("keys", "what", "got"),
    [
        ({"layers": [0, 4]}, "init.layers", "4"),
        ({"layers": []}, "init.layers", None),
        ({"width": 12}, "init.width", 12),
        ({"width": 64}, "init.width", 64),
        ({"text": TextInput(tokenizer=Tokenizer(WORDS.content.replace("w19", "w20")), max_tokens=8)}, "init", None),
    ],
)
def test_what_a_teacher_does_not_have_is_refused(keys, what, got):
    with refused(InvalidValueError, what, got=got):
        models.from_teacher(teacher("bert"), **keys)


def test_other_networks_are_refused_and_fused_projections_are_not_cut():
    with refused(InvalidValueError, "init", got="cifar:resnet8"):
        models.from_teacher(models.create("cifar:resnet8", classes=4))
    text = TextInput(tokenizer=WORDS, max_tokens=8, per_token=True)
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2}
    source = models.create("hf:gpt2", config=sizes, text=text)
    assert models.from_teacher(source, layers="last").network.config.n_layer == 1
    with refused(InvalidValueError, "init.width", got=8):
        models.from_teacher(source, width=8)


@torch.no_grad()
def test_a_student_of_images_is_fed_as_its_teacher():
    sizes = SIZES | {"image_size": 8, "patch_size": 4, "num_channels": 1}
    source, images = models.create("hf:vit", config=sizes, classes=3, channels=1).eval(), torch.rand(2, 1, 8, 8)
    student = models.from_teacher(source).eval()
    assert torch.equal(student(images), source(images))
    assert (student.card.mean, student.card.image_size) == (source.card.mean, (8, 8))
    assert models.from_teacher(source, layers="last", width=16)(images).isfinite().all()


@pytest.mark.slow
@torch.no_grad()
def test_a_teachers_adapters_are_merged_in_the_student():
    source = teacher("llama")
    source.train_adapters(lora.Adapters(2, 4.0), seed=0)
    for name, parameter in source.named_parameters():
        if "lora_B" in name:
            parameter.normal_()
    student = models.from_teacher(source).eval()
    assert not any("lora" in name for name in student.network.state_dict())
    torch.testing.assert_close(student(IDS[1:]), source.eval()(IDS[1:]), rtol=1e-4, atol=1e-4)


def test_a_student_of_a_teacher_of_embeddings_has_its_vectors():
    text = TextInput(tokenizer=WORDS, max_tokens=8)
    of = models.create("hf:bert", config=SIZES, classes=3, text=text, task="embedding", as_trained=("classes",)).eval()
    student = models.from_teacher(of).eval()
    assert (student.card.task, student.card.classes) == ("embedding", 32)
    torch.testing.assert_close(student(IDS), of(IDS))
