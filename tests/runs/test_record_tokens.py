"""A language model's answers are recorded once for all epochs, and read by runs."""

import json

import pytest
import torch
from tests._helpers.refusals import refused

import tutelage
from tutelage import config, data, objectives, targets
from tutelage.config.schema import Recipe
from tutelage.errors import RecipeError
from tutelage.runs import record_teacher, run_state
from tutelage.runs.execute import execute
from tutelage.runs.group import execute_group
from tutelage.teacher_cache.cache import CachedTeacher
from tutelage.teacher_cache.top_k import TopK

pytest.importorskip("transformers", reason="the optional package transformers is not installed")
WORDS = [f"{first}{second}" for first in ("cat", "rain", "roof", "door", "mat") for second in ("", "s", "ed", "ing")]


def network(width):
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 32}
    return {"name": "hf:llama", "config": {**sizes, **heads}}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A recipe's keys by the folder of its outputs, with a teacher that was trained."""
    folder = tmp_path_factory.mktemp("tokens")
    draw = torch.Generator().manual_seed(0)
    lines = [[WORDS[i] for i in torch.randint(len(WORDS), (12,), generator=draw).tolist()] for _ in range(40)]
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": " ".join(line)}) + "\n" for line in lines))
    data = {"source": f"jsonl:{folder / 'texts.jsonl'}", "text": "text", "tokenizer": {"bpe": 270}, "pack": 16}
    common = {"data": data, "epochs": 2, "batch_size": 4, "optimizer": {"name": "adamw", "lr": 0.01}, "threads": 1}
    common |= {"device": "cpu", "weak_teacher": True}

    def of(**keys):
        return config.parse(Recipe, {"name": "run", **common, **keys})

    execute(of(name="teacher", student=network(16)), folder / "teacher")
    taught = {"student": network(8), "teacher": str(folder / "teacher"), "objective": {"ttm": {"gamma": 1, "beta": 1}}}
    return lambda **keys: of(**{**taught, **keys})


def losses_of(folder):
    return [json.loads(line)["train"]["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_reads_one_epoch_in_all(recipe, tmp_path):
    recorded = recipe(outputs=str(tmp_path / "outputs"))
    record_teacher.record(recorded)
    assert [path.name for path in sorted((tmp_path / "outputs").glob("epoch-*"))] == ["epoch-0000"]
    execute(recorded, tmp_path / "recorded")
    execute(recipe(), tmp_path / "live")
    assert losses_of(tmp_path / "recorded") == pytest.approx(losses_of(tmp_path / "live"), rel=1e-3)


def test_top_classes_have_a_bound_of_their_own(recipe, tmp_path):
    top = recipe(outputs=str(tmp_path / "outputs"), outputs_limit_mb=0.2, outputs_top=16)
    record_teacher.record(top)
    said = json.loads((tmp_path / "outputs" / "outputs.json").read_text())
    assert said["schema"] == 3
    assert said["form"]["max_error"] == 0.25
    assert said["errors"][-1]["gamma"] == 1.0
    execute(top, tmp_path / "run")
    assert len(losses_of(tmp_path / "run")) == 2


AUTOMATIC = {
    "wttm": ({"wttm": {"gamma": "auto"}}, {"wttm": {"gamma": 1}}),
    "kd": ({"kd": {"temperature": "auto", "weight": 1}}, {"kd": {"temperature": 1, "weight": 1}}),
    "matching": ({"matching": {"beta": 1}}, {"matching": {"gamma": 1, "beta": 1}}),
}


@pytest.mark.parametrize("name", AUTOMATIC)
def test_top_classes_are_enough_for_an_automatic_gamma(recipe, tmp_path, name):
    keys = {"outputs": str(tmp_path / "outputs"), "outputs_limit_mb": 0.2, "outputs_top": 16}
    automatic, typed = (recipe(**keys, objective=objective) for objective in AUTOMATIC[name])
    record_teacher.record(automatic)
    resolved = execute(automatic, tmp_path / "automatic").manifest["objective_resolved"][0]
    execute(typed, tmp_path / "typed")
    assert trained(tmp_path / "automatic") == trained(tmp_path / "typed")
    assert resolved[name]["temperature" if name == "kd" else "gamma"] == 1.0


def test_tokens_that_a_caller_opened_are_tokens_too(recipe, tmp_path):
    taught = recipe()
    keys = {"student": network(8), "data": data.open_data(taught.data), "runs": tmp_path, "display": None}
    keys |= {"epochs": 1, "batch_size": 4, "threads": 1, "device": "cpu", "weak_teacher": True}
    execute(recipe(student=network(12), teacher=None, objective="cross_entropy"), tmp_path / "other")
    several = {"members": [taught.teacher.name, str(tmp_path / "other")], "combine": "terms"}
    for logits in ("raw", "standardised"):
        objective = objectives.ttm(gamma="auto", beta=1, logits=logits)
        run = tutelage.distill(name=logits, teacher=several, objective=objective, **keys)
        assert run.manifest["objective_resolved"] == [{"ttm": {"gamma": 1.0}}]
    with refused(RecipeError, "distill: objective.ttm.gamma", got="default of ttm", suggests="{'ttm': {'gamma': 1}}"):
        tutelage.distill(name="untyped", teacher=taught.teacher.name, objective=objectives.ttm(beta=1), **keys)
    for by_name in ("ttm", {"ttm": {"beta": 1}}, [{"kd": {"matched_to": {"ttm": {"beta": 1}}}}]):
        for source in (taught.data, keys["data"]):
            with refused(RecipeError, got="default of ttm"):
                tutelage.distill(
                    name="named", teacher=taught.teacher.name, objective=by_name, **keys | {"data": source}
                )
    stages = [{}, {"objective": objectives.ttm(beta=1)}]
    with refused(RecipeError, got="default of ttm", suggests="stages[1]={'objective': {'ttm': {'gamma': 1}}}"):
        tutelage.distill(name="stages", teacher=taught.teacher.name, objective="cross_entropy", stages=stages, **keys)


OBJECTIVES = {
    "kd": {"kd": {"temperature": 2}},
    "mean": {"wttm": {"gamma": 0.5, "beta": 1, "normalise": "training"}},
}
"""The second reads whole rows."""


def trained(folder):
    return [json.loads(line)["train"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_top_classes_are_read_as_they_are_stored(recipe, tmp_path, monkeypatch):
    keys = {"outputs": str(tmp_path / "outputs"), "outputs_limit_mb": 0.2, "outputs_top": 16}
    recipes = {name: recipe(**keys, name=name, objective=each) for name, each in OBJECTIVES.items()}
    record_teacher.record(recipes["kd"])

    def group(folder):
        done = execute_group([(each, tmp_path / folder / name) for name, each in recipes.items()])
        assert not [each for each in done if isinstance(each, Exception)]

    def no_rows(*_):
        raise AssertionError("a whole row of the teacher was made")

    with monkeypatch.context() as patched:
        patched.setattr(run_state, "CachedTeacher", lambda *a, sparse, **k: CachedTeacher(*a, **k))
        group("dense")
    monkeypatch.setattr(TopK, "unpack", no_rows)
    group("sparse")
    monkeypatch.setattr(targets, "dense", no_rows)
    alone = execute(recipes["kd"].model_copy(update={"loss_form": "last_layer"}), tmp_path / "alone")
    assert "not called for this student alone" in json.dumps(alone.manifest["speed"][0]["why"])
    assert losses_of(tmp_path / "alone") == losses_of(tmp_path / "sparse" / "kd")
    for name in recipes:
        for each, dense in zip(*(trained(tmp_path / folder / name) for folder in ("sparse", "dense")), strict=True):
            assert each["loss"] == pytest.approx(dense["loss"], rel=1e-6)
            for key in ("entropy", "kl_to_target", "agreement"):
                assert each[key] == pytest.approx(dense[key], rel=1e-5), (name, key)
