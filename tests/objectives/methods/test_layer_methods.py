"""The presets that match layers: orthogonal maps, dense prediction, and transformers' layers by pattern."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image
from tests._helpers.launching import launch
from tests._helpers.refusals import refused
from torch.optim.optimizer import register_optimizer_step_post_hook

import tutelage
from tutelage import Batch, Distiller, FrozenTeacher, config, losses, models, network_context, objectives
from tutelage.config.schema import Recipe
from tutelage.errors import InvalidTypeError, InvalidValueError, RecipeError
from tutelage.objectives.methods.layers import RULES
from tutelage.objectives.projectors import build
from tutelage.runs import record_teacher
from tutelage.runs.execute import execute
from tutelage.runs.group import execute_group
from tutelage.runs.run import RunOptions
from tutelage.types import PADDING, Outputs, Progress, Projection

COMMON = {"name": "run", "epochs": 2, "batch_size": 8, "device": "cpu", "threads": 1, "weak_teacher": True}


@pytest.fixture(autouse=True)
def caches(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr("tutelage.report.html.write_report", lambda folder: None)


def recipe(**keys):
    return config.parse(Recipe, {**COMMON, "optimizer": {"name": "adamw", "lr": 0.02}, **keys})


def executed(folder, **keys):
    return execute(recipe(**keys), folder, options=RunOptions(trust_code=True))


def terms(run, name):
    return [epoch["train"]["terms"][name] for epoch in run.epochs]


def weights(folder):
    return models.read(folder / "student.safetensors")


# Orthogonal maps


@pytest.mark.parametrize(
    ("student", "teacher"),
    [((4,), (7,)), ((7,), (4,)), ((5,), (5,)), ((3, 4), (7, 2, 2)), ((4, 2, 3), (7,)), ((4, 2, 3), (7, 5, 5))],
)
def test_a_map_stays_orthogonal_while_it_is_trained_and_keeps_the_positions(student, teacher):
    torch.manual_seed(0)
    mapped = build(Projection("a", "b", "orthogonal"), student, teacher)
    width = teacher[0] if len(teacher) == 3 else teacher[-1]
    features = torch.randn(2, *student)
    optimizer = torch.optim.SGD(mapped.parameters(), lr=0.5)
    before = mapped.linear.weight.detach().clone()
    for _ in range(5):
        optimizer.zero_grad()
        value = mapped(features)
        (value - 1).square().mean().backward()
        optimizer.step()
    weight = mapped.linear.weight.detach()
    assert not torch.equal(weight, before)
    product = weight @ weight.T if weight.shape[0] < weight.shape[1] else weight.T @ weight
    torch.testing.assert_close(product, torch.eye(len(product)), atol=1e-5, rtol=0)
    places = features.flatten(2).movedim(1, -1) if len(student) == 3 else features
    shown = value.flatten(2).movedim(1, -1) if len(student) == 3 else value
    assert shown.shape == (*places.shape[:-1], width)


def test_a_copy_and_a_loaded_map_compute_the_same_bits():
    mapped, fresh = (build(Projection("a", "b", "orthogonal"), (4,), (7,)) for _ in range(2))
    features = torch.randn(3, 4)
    fresh.load_state_dict(mapped.state_dict())
    assert torch.equal(mapped(features), fresh(features))
    assert torch.equal(mapped(features), copy.deepcopy(mapped)(features))


def test_only_embeddings_tokens_and_maps_are_mapped():
    with refused(InvalidValueError, "projection"):
        build(Projection("a", "b", "orthogonal"), (2, 3, 4, 5), (4,))


DIGITS = {"data": {"source": "digits"}, "batch_size": 256}
VKD = [{"kd": {"temperature": 2}}, {"vkd": {"student_tap": "card:embedding", "teacher_tap": "card:embedding"}}]


@pytest.fixture(scope="module")
def digits_teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "teacher"
    executed(folder, student="mlp:16", **DIGITS)
    return str(folder)


@pytest.fixture(scope="module")
def with_vkd(digits_teacher, tmp_path_factory):
    return executed(tmp_path_factory.mktemp("vkd") / "run", teacher=digits_teacher, **VKD_RUN)


VKD_RUN = {**DIGITS, "student": "mlp:8", "objective": VKD, "checkpoint_steps": 1, "ema": 0.9}


def test_a_run_with_an_orthogonal_map_is_resumed_to_the_bit(digits_teacher, with_vkd, tmp_path):
    first, last = terms(with_vkd, "vkd")
    assert last < first
    assert not any("parametrizations" in name for name in weights(with_vkd.folder))
    steps = []

    def stop(optimizer, args, kwargs):
        steps.append(1)
        if len(steps) == 8:
            raise KeyboardInterrupt

    hook = register_optimizer_step_post_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        executed(tmp_path / "killed", teacher=digits_teacher, **VKD_RUN)
    hook.remove()
    resumed = executed(tmp_path / "killed", teacher=digits_teacher, **VKD_RUN)
    assert resumed.manifest["resumed"] == 1
    one, other = weights(with_vkd.folder), weights(resumed.folder)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert terms(resumed, "vkd") == terms(with_vkd, "vkd")


def test_students_of_a_group_have_orthogonal_maps_of_their_own(digits_teacher, with_vkd, tmp_path):
    todo = [(recipe(teacher=digits_teacher, **{**VKD_RUN, "seed": seed}), tmp_path / str(seed)) for seed in (0, 1)]
    execute_group(todo, options=RunOptions())
    one, other = weights(with_vkd.folder), weights(tmp_path / "0")
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_two_processes_train_one_orthogonal_map(digits_teacher, tmp_path):
    path, runs = tmp_path / "recipe.yaml", tmp_path / "runs"
    value = {**COMMON, **DIGITS, "teacher": digits_teacher, "student": "mlp:8", "objective": VKD, "precision": "fp64"}
    value["optimizer"] = {"name": "sgd", "lr": 0.1}
    path.write_text(json.dumps(value))
    code, _, errors = launch(["distill", str(path), "--runs", str(runs)])
    assert code == 0, errors
    alone = executed(tmp_path / "alone", **value)
    one, other = weights(alone.folder), weights(runs / "run")
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-6, atol=1e-8)


def test_the_variant_for_detection_couples_the_batch():
    assert objectives.vkd(normalise="batch").needs.coupled
    assert not objectives.vkd().needs.coupled
    with refused(InvalidValueError, "normalise", got="'batches'"):
        objectives.vkd(normalise="batches")


# Gaussians of cells


def test_a_grid_is_checked_where_it_is_typed_and_where_the_maps_are_known():
    assert objectives.wkd_f(grid=4).needs.projections[0].kind == "regressor"
    with refused(InvalidValueError, "grid", got=0):
        objectives.wkd_f(grid=0)
    with refused(InvalidValueError, "mean_cov_ratio", got=-1):
        objectives.wkd_f(mean_cov_ratio=-1)
    student, teacher = (models.create("cifar:resnet8", classes=4, image_size=(16, 16), seed=i) for i in range(2))
    batch = Batch(torch.arange(4), torch.rand(4, 3, 16, 16), torch.arange(4))
    for grid, works in ((2, True), (4, False)):  # The last stage has 4 x 4 pixels.
        objective = objectives.wkd_f(grid=grid)
        distiller = Distiller(student, objective, network_context(objective, student, teacher, batch.inputs))
        answers = FrozenTeacher(teacher, objective.needs.teacher_taps)(batch)
        if works:
            assert distiller(batch, answers).loss.total.isfinite()
            continue
        with refused(InvalidValueError, "grid", got=4):
            distiller(batch, answers)


# Dense prediction

NETWORKS = """
from torch import nn

def student(classes, channels):
    return nn.Sequential(nn.Conv2d(channels, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, classes, 1))

def teacher(classes, channels):
    return nn.Sequential(nn.Conv2d(channels, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, classes, 1))
"""


@pytest.fixture(scope="module")
def pixels(tmp_path_factory):
    """Pictures of dark and bright halves, which are the classes, some pixels of no class, and a teacher of them."""
    root, random = tmp_path_factory.mktemp("pixels"), np.random.default_rng(0)
    for number in range(30):
        mask = (np.indices((12, 12))[number % 2] >= random.integers(3, 9)).astype(np.uint8)
        picture = (100 + 100 * mask[..., None] + random.integers(-40, 40, (12, 12, 3))).astype(np.uint8)
        mask[0, :3] = 255
        for kind, values in (("images", picture), ("masks", mask)):
            (root / kind).mkdir(exist_ok=True)
            Image.fromarray(values).save(root / kind / f"{number}.png")
    (root / "net.py").write_text(NETWORKS)
    executed(root / "teacher", **of_pixels(root, "teacher"), epochs=6)
    return root


def of_pixels(root, which):
    return {"student": f"file:{root / 'net.py'}:{which}", "data": {"source": f"masks:{root}", "crop_padding": 2}}


@pytest.mark.parametrize(
    "arguments",
    [{}, {"over": "channels"}, {"student_tap": "0", "teacher_tap": "0", "temperature": 4.0}],
    ids=["logits", "spatial", "features"],
)
def test_channel_wise_distillation_trains_a_network_of_pixels(pixels, tmp_path, arguments):
    objective = ["cross_entropy", {"cwd": {"weight": 1, **arguments}}]
    run = executed(
        tmp_path / "run",
        teacher=str(pixels / "teacher"),
        objective=objective,
        **of_pixels(pixels, "student"),
        epochs=6,
        seed=1,
    )
    values = terms(run, "cwd")
    assert values[-1] < values[0]
    assert run.evaluation["student"]["mean_iou"] > 0.4


def test_pixels_that_do_not_count_take_no_part_in_channel_wise_distillation():
    bound = objectives.cwd().bind()
    z, v = torch.randn(2, 3, 4, 5, 6).unbind()
    counted = torch.rand(3, 4, 5) > 0.3
    batch = Batch(torch.arange(3), torch.zeros(3, 1), torch.zeros(3, 4, 5, dtype=torch.int64), counted=counted)
    loss = bound(Outputs(z), Outputs(v), batch)
    changed = [torch.where(counted[..., None], each, torch.randn_like(each)) for each in (z, v)]
    assert torch.equal(bound(*map(Outputs, changed), batch).total, loss.total)
    maps = [each.movedim(-1, 1) for each in (z, v)]
    torch.testing.assert_close(loss.total, 5 * losses.cwd(*maps, counted=counted).mean())


def test_channel_wise_distillation_says_what_it_needs():
    with refused(InvalidValueError, "teacher_tap", got="card:stage.-1", suggests="logits"):
        objectives.cwd(teacher_tap="card:stage.-1")
    with refused(InvalidValueError, "temperature"):
        objectives.cwd(temperature=0)
    z = torch.zeros(2, 4)
    with refused(InvalidValueError, "student_tap", suggests="student_tap=card:stage.-1"):
        objectives.cwd().bind()(Outputs(z), Outputs(z), Batch(torch.arange(2), z, torch.arange(2)))


# Pairs of layers


@pytest.mark.parametrize(
    ("rule", "student", "teacher", "pairs"),
    [
        ("last", 2, 4, [(1, 3)]),
        ("uniform", 6, 12, [(0, 1), (1, 3), (2, 5), (3, 7), (4, 9), (5, 11)]),
        ("uniform", 2, 5, [(0, 1), (1, 4)]),
        ("skip", 6, 12, [(0, 1), (1, 3), (2, 5), (3, 7), (4, 9)]),
        ("top", 6, 12, [(0, 6), (1, 7), (2, 8), (3, 9), (4, 10)]),
    ],
)
def test_rules_pair_layers_as_the_papers_do(rule, student, teacher, pairs):
    assert RULES[rule](student, teacher) == pairs


def test_a_recipe_holds_pairs_of_layers():
    objective = objectives.hidden_states(layers=[[0, 1], [1, 3]])
    (entry,) = objective.to_recipe()
    assert entry["hidden_states"]["layers"] == [[0, 1], [1, 3]]
    assert objectives.from_recipe(json.loads(json.dumps(objective.to_recipe()))) == objective
    for wrong in ([[0, 1, 2]], [["0", 1]], [], "", 3, [[True, 1]]):
        with refused(InvalidTypeError, "layers", suggests="layers=[[0, 1], [1, 3]]"):
            objectives.hidden_states(layers=wrong)
    with refused(InvalidValueError, "layers", got="'unifrom'", suggests="uniform"):
        objectives.hidden_states(layers="unifrom")


# Transformers

transformers = pytest.importorskip("transformers", reason="the optional package transformers is not installed")
WORDS = {"good": ("good", "fine", "great", "the"), "bad": ("bad", "poor", "sad", "the")}


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    """A file of texts of 2 to 9 words."""
    path, random = tmp_path_factory.mktemp("texts") / "texts.jsonl", np.random.default_rng(0)
    rows = []
    for number in range(48):
        label = list(WORDS)[number % 2]
        text = " ".join(random.choice(WORDS[label], random.integers(2, 10)))
        rows.append(json.dumps({"text": text, "label": label}))
    path.write_text("\n".join(rows) + "\n")
    return path


def network(kind, layers, width, **more):
    sizes = {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": 2, "intermediate_size": 32}
    return {"name": f"hf:{kind}", "config": {**sizes, **more}}


def of_texts(lines, **length):
    return {"data": {"source": f"jsonl:{lines}", "text": "text", "tokenizer": {"bpe": 280}, **length}}


@pytest.fixture(scope="module")
def bert(lines, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert") / "teacher"
    executed(folder, student=network("bert", 4, 24), **of_texts(lines, max_tokens=12), epochs=1)
    return str(folder)


def first_quick(names):
    """The first of them in the quick tests, the others in the slow ones."""
    return [pytest.param(name, marks=[pytest.mark.slow] if k else []) for k, name in enumerate(names)]


HIDDEN = {
    "TinyBERT": {"student": "encoder.layer.*", "teacher": "encoder.layer.*"},
    "DistilBERT": {"layers": "last", "distance": "cosine"},
    "Patient KD": {"layers": "skip", "distance": "cosine", "tokens": "first"},
    "pairs": {"layers": [[0, 1], [-1, 3]]},
    "embeddings": {"layers": "last", "student": "bert.embeddings", "teacher": "bert.embeddings"},
}


@pytest.mark.parametrize("name", first_quick(HIDDEN))
def test_the_hidden_states_of_a_bert_teach_a_smaller_one(lines, bert, tmp_path, name):
    objective = ["cross_entropy", {"hidden_states": HIDDEN[name]}]
    run = executed(
        tmp_path / "run",
        teacher=bert,
        student=network("bert", 2, 16),
        objective=objective,
        **of_texts(lines, max_tokens=12),
    )
    first, last = terms(run, "hidden_states")
    assert last < first


RELATIONS = {
    "MiniLMv2": {"heads": 4},
    "MiniLM": {"heads": 2, "relations": ["qk", "vv"]},
    "TinyBERT": {"heads": 2, "relations": "qk", "layers": "uniform", "distance": "mean_square"},
}


@pytest.mark.parametrize("name", first_quick(RELATIONS))
def test_the_relations_of_a_berts_tokens_teach_a_smaller_one(lines, bert, tmp_path, name):
    objective = [{"attention_relations": RELATIONS[name], "scale": 100}]
    run = executed(
        tmp_path / "run",
        teacher=bert,
        student=network("bert", 2, 16),
        objective=objective,
        **of_texts(lines, max_tokens=12),
    )
    first, last = terms(run, "attention_relations")
    assert last < first


def test_a_llama_is_taught_its_states_and_relations_at_the_tokens_that_count(lines, tmp_path):
    data = of_texts(lines, pack=16)
    executed(tmp_path / "teacher", student=network("llama", 3, 32, num_key_value_heads=1), **data, epochs=1)
    parts = [f"layers.*.self_attn.{part}_proj" for part in "qkv"]
    relations = {"heads": 2, "student": parts, "teacher": parts, "attend": "earlier", "weight": 1000}
    run = executed(
        tmp_path / "run",
        teacher=str(tmp_path / "teacher"),
        student=network("llama", 2, 16, num_key_value_heads=1),
        objective=[{"kd": {"temperature": 1}}, "hidden_states", {"attention_relations": relations}],
        **data,
    )
    for name in ("hidden_states", "attention_relations"):
        first, last = terms(run, name)
        assert last < first


def bind(objective, student, teacher, inputs):
    torch.manual_seed(0)
    return objective.bind(network_context(objective, student, teacher, inputs))


def a_bert(layers, width, **more):
    torch.manual_seed(layers)
    sizes = network("bert", layers, width)["config"] | {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
    made = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=30, **sizes))
    return tutelage.Adapter(made, inputs=("input_ids", "attention_mask"), output="logits", **more)


@pytest.mark.parametrize(
    "objective",
    [
        objectives.hidden_states(),
        objectives.hidden_states(distance="cosine", tokens="first"),
        objectives.attention_relations(heads=4),
        objectives.attention_relations(heads=2, relations=["qk"], attend="earlier"),
    ],
    ids=["states", "first", "relations", "attention"],
)
def test_padding_does_not_count_in_a_loop_of_ones_own(objective):
    """The mask is among the inputs; what stands at the padding, and how much of it, changes nothing."""
    student, teacher = a_bert(2, 16), a_bert(4, 24)
    ids, mask = torch.randint(1, 30, (3, 6)), torch.ones(3, 6, dtype=torch.int64)
    mask[0, 4:] = mask[1, 2:] = 0

    def loss(ids, mask):
        inputs = {"input_ids": ids, "attention_mask": mask}
        batch = tutelage.as_batch(
            {**inputs, "labels": torch.zeros(len(ids), dtype=torch.int64)}, inputs=tuple(inputs), labels="labels"
        )
        torch.manual_seed(0)
        distiller = Distiller(student, objective, network_context(objective, student, teacher, batch.inputs))
        names = distiller.objective.needs.teacher_taps
        return distiller(batch, FrozenTeacher(teacher, names)(batch)).loss.total

    whole = loss(ids, mask)
    longer = [torch.cat([each, torch.zeros(3, 3, dtype=torch.int64)], 1) for each in (ids, mask)]
    torch.testing.assert_close(loss(*longer), whole)
    torch.testing.assert_close(loss(torch.where(mask > 0, ids, 7), mask), whole)
    alone = [loss(ids[k : k + 1, :n], mask[k : k + 1, :n]) for k, n in enumerate((4, 2, 6))]
    torch.testing.assert_close(torch.stack(alone).mean(), whole)


def test_only_the_chosen_layers_are_kept():
    student, teacher = a_bert(2, 16).network, a_bert(4, 24).network
    objective = objectives.hidden_states(layers="last") + objectives.attention_relations(layers=[[0, 2]], heads=4)
    context = {"student_shapes": {}, "teacher_shapes": {}}
    for who, made in (("student", student), ("teacher", teacher)):
        adapter = tutelage.Adapter(made, inputs=("input_ids",), output="logits")
        shapes = tutelage.taps.feature_shapes(
            adapter, objective.needs.student_taps, {"input_ids": torch.ones(2, 5).long()}
        )
        assert len(shapes) == 4 * made.config.num_hidden_layers
        context[f"{who}_shapes"] = shapes
    needs = objective.bind(objectives.BindContext(**context)).needs
    parts = [f"network.bert.encoder.layer.2.attention.self.{part}" for part in ("query", "key", "value")]
    assert needs.teacher_taps == ("network.bert.encoder.layer.3", *parts)
    assert len(needs.student_taps) == 4


def test_padding_of_token_ids_is_known_by_itself():
    """Of the runs' own batches, whose ids are -1 behind a text."""
    shapes = {f"layer.{k}": (5, 3) for k in range(2)}
    bound = objectives.hidden_states(layers="last").bind(
        objectives.BindContext(student_shapes=shapes, teacher_shapes=shapes)
    )
    states, others = ({"layer.1": each} for each in torch.randn(2, 2, 5, 3))
    ids = torch.tensor([[3, 4, 5, PADDING, PADDING], [1, 2, 3, 4, 5]])
    z = torch.zeros(2, 2)
    loss = bound(Outputs(z, states), Outputs(z, others), Batch(torch.arange(2), ids, torch.arange(2)))
    squares = (states["layer.1"] - others["layer.1"]).square().mean(2)
    torch.testing.assert_close(loss.total, (squares[0, :3].mean() + squares[1].mean()) / 2)
    views = {"student": ids, "teacher": ids.clone()}
    with refused(InvalidValueError, "student", suggests="data.teacher_tokenizer=null"):
        bound(Outputs(z, states), Outputs(z, others), Batch(torch.arange(2), views, torch.arange(2)))
    tokens = Batch(torch.arange(2), ids, torch.zeros(2, 5, dtype=torch.int64), counted=ids > 3)
    z = torch.zeros(2, 5, 7)
    loss = bound(Outputs(z, states), Outputs(z, others), tokens)
    torch.testing.assert_close(loss.total, squares[ids > 3].mean())


def test_a_mask_of_another_key_is_typed():
    shapes = {"layer.0": (5, 3)}
    context = objectives.BindContext(student_shapes=shapes, teacher_shapes=shapes)
    states, z = {"layer.0": torch.randn(2, 5, 3)}, torch.zeros(2, 2)
    others = {"layer.0": torch.randn(2, 5, 3)}
    real = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    batch = Batch(torch.arange(2), {"ids": torch.ones(2, 5).long(), "real": real}, torch.arange(2))
    with refused(InvalidValueError, "mask", suggests=["ids", "real", "mask=none"]):
        objectives.hidden_states().bind(context)(Outputs(z, states), Outputs(z, others), batch)
    typed = objectives.hidden_states(mask="real").bind(context)(Outputs(z, states), Outputs(z, others), batch)
    squares = (states["layer.0"] - others["layer.0"]).square().mean(2)
    torch.testing.assert_close(typed.total, (squares[0, :2].mean() + squares[1].mean()) / 2)
    every = objectives.hidden_states(mask="none").bind(context)(Outputs(z, states), Outputs(z, others), batch)
    torch.testing.assert_close(every.total, squares.mean())


@pytest.mark.parametrize("heads", [2, 3])
def test_a_timm_transformer_makes_queries_keys_and_values_in_one_layer(heads):
    timm = pytest.importorskip("timm", reason="the optional package timm is not installed")
    student, teacher = (
        timm.create_model(
            "vit_tiny_patch16_224", img_size=8, patch_size=4, depth=depth, embed_dim=24, num_heads=2, num_classes=4
        )
        for depth in (2, 4)
    )
    images = torch.rand(4, 3, 8, 8)
    batch = Batch(torch.arange(4), images, torch.arange(4))
    relations = objectives.attention_relations(student="attn.qkv", teacher="attn.qkv", heads=heads)
    with refused(InvalidValueError, "tap attn.qkv", suggests="blocks.0.attn.qkv"):
        network_context(relations, student, teacher, images)
    relations = objectives.attention_relations(student="*.attn.qkv", teacher="blocks.*.attn.qkv", heads=heads)
    objective = objectives.hidden_states() + relations
    distiller = Distiller(student, objective, network_context(objective, student, teacher, images))
    frozen = FrozenTeacher(teacher, distiller.objective.needs.teacher_taps)
    optimizer, values = torch.optim.Adam(distiller.parameters(), lr=1e-2), []
    for _ in range(4):
        loss = distiller(batch, frozen(batch)).loss
        values.append(loss)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    assert values[-1].total < values[0].total
    taps = frozen(batch).taps
    parts = [
        each.chunk(3, -1)
        for each in (
            distiller.student.get_submodule("blocks.1.attn.qkv")(torch.zeros(4, 5, 24)),
            taps["blocks.3.attn.qkv"],
        )
    ]
    value = distiller.objective.terms["attention_relations"](
        Outputs(torch.zeros(4, 4), {"blocks.1.attn.qkv": torch.cat(parts[0], -1)}),
        Outputs(torch.zeros(4, 4), taps),
        batch,
        Progress(),
    )
    wanted = sum(losses.attention_relations(s, t, heads=heads) for s, t in zip(*parts, strict=True))
    torch.testing.assert_close(value, wanted.mean(1))


def test_layers_of_images_are_recorded_and_those_of_texts_are_refused(lines, bert, tmp_path):
    vit = {"image_size": 8, "patch_size": 4, "num_channels": 1}
    executed(tmp_path / "teacher", student=network("vit", 3, 24, **vit), **DIGITS, epochs=1)
    keys = {"teacher": str(tmp_path / "teacher"), "student": network("vit", 2, 16, **vit), **DIGITS, "epochs": 1}
    keys["objective"] = [{"hidden_states": {"layers": "last"}}]
    live = executed(tmp_path / "live", **keys)
    record_teacher.record(recipe(**keys, outputs=str(tmp_path / "outputs")))
    recorded = executed(tmp_path / "recorded", **keys, outputs=str(tmp_path / "outputs"))
    assert terms(recorded, "hidden_states") == pytest.approx(terms(live, "hidden_states"), rel=1e-3)
    keys |= {"teacher": bert, "student": network("bert", 2, 16), **of_texts(lines, max_tokens=12)}
    with refused(RecipeError, "outputs", got="bert.encoder.layer.3", suggests="outputs=null"):
        record_teacher.record(recipe(**keys, outputs=str(tmp_path / "of-texts")))


def test_what_layers_there_are_is_said():
    shapes = {f"layer.{k}": (5, 4) for k in range(2)}
    context = objectives.BindContext(student_shapes=shapes, teacher_shapes=shapes)
    for layers, got in (([[0, 2]], "[[0, 2]]"), ([[-3, 0]], "[[-3, 0]]")):
        with refused(InvalidValueError, "layers", got=got, suggests="layers=[[1, 1]]"):
            objectives.hidden_states(layers=layers).bind(context)
    with refused(InvalidValueError, "layers", got="uniform"):
        deeper = objectives.BindContext(student_shapes={**shapes, "layer.2": (5, 4)}, teacher_shapes=shapes)
        objectives.hidden_states().bind(deeper)
    other = objectives.BindContext(student_shapes=shapes, teacher_shapes={"layer.0": (6, 4)})
    with refused(InvalidValueError, "tap layer.1", got=[5, 6]):
        objectives.hidden_states(layers="last").bind(other)
    maps = objectives.BindContext(student_shapes={"layer.0": (3, 5, 4)}, teacher_shapes={"layer.0": (3, 5, 4)})
    with refused(InvalidValueError, "tap layer.0", suggests="encoder.layer.*"):
        objectives.hidden_states().bind(maps)
    with refused(InvalidValueError, "context"):
        objectives.hidden_states(student="block.*").bind(context)
    with refused(InvalidValueError, "relations", got="'qx'"):
        objectives.attention_relations(relations=["qx"])
    with refused(InvalidValueError, "student", got=2):
        objectives.attention_relations(student=["a.*", "b.*"])
    with refused(InvalidValueError, "student", got=4, suggests="name"):
        objectives.attention_relations(student="layer.*", teacher="layer.*", heads=2).bind(context)
