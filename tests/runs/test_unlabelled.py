"""Runs that learn from samples without labels beside labelled ones."""

import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from sklearn.datasets import load_digits
from tests._helpers.refusals import refused
from torch.optim.optimizer import register_optimizer_step_post_hook

from tutelage import config, models, objectives
from tutelage.config.schema import Comparison, Recipe
from tutelage.errors import RecipeError
from tutelage.runs import record_teacher
from tutelage.runs.dry_run import dry_run
from tutelage.runs.execute import execute
from tutelage.runs.setup import build_inputs, run_context
from tutelage.settings.data import LearnedTokenizer, Unlabelled

TTM = {"ttm": {"gamma": 0.5, "beta": 2}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Digits as files: two classes of 20, and 40 others of these without classes."""
    root, digits = tmp_path_factory.mktemp("images"), load_digits(n_class=2)
    for number, (pixels, target) in enumerate(zip(digits.images[:80], digits.target, strict=False)):
        folder = root / "labelled" / f"class{target}" if number < 40 else root / "photos"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15).astype(np.uint8)).save(folder / f"{number}.png")
    return root


@pytest.fixture(autouse=True)
def caches(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr("tutelage.report.html.write_report", lambda folder: None)


def recipe(folders, *, kind=Recipe, share=0.5, unlabelled=True, overrides=(), **keys):
    data = {"source": f"imagefolder:{folders / 'labelled'}", "flip": True}
    if unlabelled:
        data["unlabelled"] = {"source": f"images:{folders / 'photos'}", "share": share}
    common = {"name": "run", "epochs": 2, "batch_size": 8, "device": "cpu", "threads": 1, "weak_teacher": True}
    common |= {"student": "mlp:8", "optimizer": {"name": "sgd", "lr": 0.2}}
    return config.parse(kind, config.override({**common, "data": data, **keys}, overrides))


@pytest.fixture(scope="module")
def teacher(folders, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "teacher"
    execute(recipe(folders, unlabelled=False, name="teacher", student="mlp:16"), folder)
    return str(folder)


def test_a_run_learns_from_both_and_says_so(folders, teacher, tmp_path):
    distilled = recipe(folders, teacher=teacher, objective=TTM)
    run = execute(distilled, tmp_path / "run")
    described = run.manifest["data"]
    counts = {"samples": 40, "per_epoch": 32, "share": 0.5}
    assert described["unlabelled"] == {"source": "images:photos", **counts}
    assert (described["sizes"]["train"], described["sizes"]["labelled"]) == (72, 32)
    assert [epoch["train"]["samples"] for epoch in run.epochs] == [64, 64]
    summary = dict(dry_run(distilled))
    assert summary["unlabelled"] == "40 training samples of images:photos: 32 in an epoch of 64, a share of 0.5"
    assert summary["steps"].startswith("16 of 8 samples")
    # What has no label counts in the matching alone, so the student differs from one that never saw it.
    alone = execute(recipe(folders, unlabelled=False, teacher=teacher, objective=TTM), tmp_path / "alone")
    one, other = (models.read(each.folder / "student.safetensors") for each in (run, alone))
    assert not all(torch.equal(one[name], other[name]) for name in one)
    assert "unlabelled" not in alone.manifest["data"]


def test_a_run_that_is_killed_in_an_epoch_ends_with_the_same_bits(folders, teacher, tmp_path):
    distilled = recipe(folders, teacher=teacher, objective=TTM, checkpoint_steps=1)
    whole = execute(distilled, tmp_path / "whole")
    steps = []

    def stop(optimizer, args, kwargs):
        steps.append(1)
        if len(steps) == 11:
            raise KeyboardInterrupt

    hook = register_optimizer_step_post_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        execute(distilled, tmp_path / "killed")
    hook.remove()
    resumed = execute(distilled, tmp_path / "killed")
    assert resumed.manifest["resumed"] == 1
    one, other = (models.read(run.folder / "student.safetensors") for run in (whole, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("share", "others"), [(0.5, 32), (0.2, 8), (0, 0), (0.75, 96), (0.999, 31_968), (None, 40)])
def test_automatic_numbers_are_those_of_an_epoch(folders, teacher, share, others):
    """Which has 32 samples of its own, and so many of the 40 others."""
    inputs = build_inputs(recipe(folders, share=share, teacher=teacher, objective="ttm"))
    train, (objective,) = inputs.splits.train, inputs.objectives
    asked = train.evenly(10_000)
    most = min(1, 40 / others) if others else 1  # fewer where an epoch needs some again
    assert sum(asked < 32) == pytest.approx(most * 32, abs=1)
    assert sum(asked >= 32) == pytest.approx(most * others, abs=1)
    assert len(set(asked)) == len(asked)
    part = train.evenly(24)
    assert (len(part), sum(part >= 32)) == (24, pytest.approx(24 * others / (32 + others), abs=1))
    known = run_context(objective, inputs)
    assert len(known.teacher_logits) == len(asked)
    beta, of_all = (
        objective.bind(each).resolved["ttm"]["beta"]
        for each in (known, objectives.BindContext(teacher_logits=known.teacher_logits))
    )
    assert beta == pytest.approx(of_all * (1 + others / 32) ** 0.5, rel=2e-3)


def test_recorded_outputs_teach_as_the_teacher_does(folders, teacher, tmp_path):
    live = recipe(
        folders, share=0.75, teacher=teacher, objective=TTM, precision="fp32", optimizer={"name": "sgd", "lr": 1e-3}
    )
    recorded = live.model_copy(update={"outputs": str(tmp_path / "outputs")})
    record_teacher.record(recorded)
    runs = [execute(live, tmp_path / "live"), execute(recorded, tmp_path / "recorded")]
    losses = [[epoch["train"]["loss"] for epoch in run.epochs] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_cross_entropy_alone_takes_batches_without_any_label(folders, tmp_path):
    run = execute(recipe(folders, share=0.9, batch_size=4, epochs=1), tmp_path / "run")
    assert run.epochs[0]["train"]["samples"] == 320
    assert run.epochs[0]["train"]["loss"] > 0
    assert run.manifest["status"] == "finished"


def test_a_teacher_that_is_trained_first_has_no_unlabelled_samples(folders, tmp_path):
    keys = {"teacher": {"train": {"model": "mlp:16"}}, "objectives": {"ttm": TTM, "ce": "cross_entropy"}}
    comparison = recipe(folders, kind=Comparison, **keys)
    assert comparison.training("teacher").data.unlabelled is None
    # A tokenizer that is learned reads them, as it must be the student's.
    texts = {"source": "jsonl:t", "text": "t", "tokenizer": {"bpe": 300}, "unlabelled": "texts:u"}
    trained = recipe(folders, data=texts, teacher=keys["teacher"], unlabelled=False).training("teacher")
    assert trained.data.unlabelled == Unlabelled(source="texts:u", share=0.0)
    assert trained.data.tokenizer == LearnedTokenizer(bpe=300)


def test_a_source_alone_is_short_and_its_share_can_be_typed(folders):
    typed = recipe(folders, unlabelled=False, overrides=["data.unlabelled=images:photos"])
    assert typed.data.unlabelled == Unlabelled(source="images:photos")
    typed = recipe(folders, unlabelled=False, overrides=["data.unlabelled=images:photos", "data.unlabelled.share=0.25"])
    assert typed.data.unlabelled == Unlabelled(source="images:photos", share=0.25)
    assert config.parse(Recipe, yaml.safe_load(config.dump(typed))) == typed
    for wrong in ("shar=0.5", "share=half"):
        with refused(RecipeError, None, suggests="data.unlabelled.share"):
            recipe(folders, overrides=[f"data.unlabelled.{wrong}"])


def test_a_student_of_texts_learns_from_a_file_of_them(tmp_path):
    pytest.importorskip("transformers", reason="the optional package transformers is not installed")
    words = {"weather": ("rain", "sun"), "money": ("bank", "coin")}
    rows = [{"text": f"the {words[label][k % 2]} of {k}", "label": label} for k in range(10) for label in words]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "more.txt").write_text(
        "".join(f"an old {word} again {k}\n" for k in range(6) for word in ("sun", "coin"))
    )
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    network = {"name": "hf:bert", "config": sizes}
    data = {"source": f"jsonl:{tmp_path / 't.jsonl'}", "text": "text", "tokenizer": {"bpe": 280}, "max_tokens": 16}
    data["unlabelled"] = {"source": f"texts:{tmp_path / 'more.txt'}", "share": 0.5}
    keys = {"name": "run", "student": network, "teacher": {"train": {"model": network}}, "objective": TTM, "data": data}
    keys |= {"epochs": 1, "batch_size": 8, "device": "cpu", "threads": 1, "weak_teacher": True}
    run = execute(config.parse(Recipe, keys), tmp_path / "run")
    assert run.epochs[0]["train"]["samples"] == 32
    taught = json.loads((tmp_path / "run" / "teacher" / "manifest.json").read_text())["data"]
    assert (taught["unlabelled"]["per_epoch"], taught["unlabelled"]["share"]) == (0, 0.0)
    assert taught["tokenizers"] == {name: run.manifest["data"]["tokenizers"][name] for name in taught["tokenizers"]}
