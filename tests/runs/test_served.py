"""A served teacher: its top log-probabilities come with the data, in the forms that servers write."""

import json

import pytest
import torch
from tests._helpers.refusals import refused

import tutelage
from tutelage import config, data, targets
from tutelage.config.schema import Recipe
from tutelage.errors import InvalidValueError, RecipeError
from tutelage.runs import record_teacher, setup
from tutelage.runs.execute import execute
from tutelage.text import learn_bpe

pytest.importorskip("transformers", reason="the optional package transformers is not installed")
WORDS = ("cat", "cats", "rain", "roof", "door", "mat", "é", "日本")
TOP = 24


def network(width):
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64}
    return {"name": "hf:llama", "config": {**sizes, **heads}}


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """A folder with a tokenizer, prompts with completions, and a teacher; recipes for files in it."""
    folder, draw = tmp_path_factory.mktemp("served"), torch.Generator().manual_seed(0)
    rows = []
    for _ in range(24):
        words = [WORDS[i] for i in torch.randint(len(WORDS), (5,), generator=draw).tolist()]
        rows.append({"prompt": " ".join(words[:2]), "completion": " " + " ".join(words[2:])})
    tokenizer = learn_bpe([row["prompt"] + row["completion"] for row in rows], 290)
    (folder / "tok").mkdir()
    (folder / "tok" / "tokenizer.json").write_text(tokenizer.content)
    (folder / "tok" / "tokenizer_config.json").write_text(json.dumps({"eos_token": tokenizer.end}))
    write(folder / "plain.jsonl", rows)

    def recipe(file="plain.jsonl", *, data=None, **keys):
        data = {"source": f"jsonl:{folder / file}", "test_shards": str(folder / "plain.jsonl"), **(data or {})}
        data |= {"prompt": "prompt", "completion": "completion", "tokenizer": str(folder / "tok"), "max_tokens": 12}
        common = {"name": "run", "student": network(8), "epochs": 2, "batch_size": 8, "device": "cpu", "threads": 1}
        common |= {"optimizer": {"name": "adamw", "lr": 0.01}, "weak_teacher": True}
        return config.parse(Recipe, {**common, "data": data, **keys})

    execute(recipe(name="teacher", student=network(16)), folder / "teacher")
    return folder, rows, tokenizer, recipe


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def answers(task):
    """The ids of each row, how many are the prompt's, and the teacher's log-probabilities of the next ids."""
    folder, rows, tokenizer, _ = task
    teacher, answered = tutelage.load(folder / "teacher").eval(), []
    for row in rows:
        (ids,), (prompt,) = tokenizer.encode([row["prompt"] + row["completion"]]), tokenizer.encode([row["prompt"]])
        with torch.no_grad():
            log_probs = teacher(torch.tensor([[*ids, tokenizer.end_id]]))[0].double().log_softmax(-1)
        answered.append(([*ids, tokenizer.end_id], len(prompt), log_probs))
    return answered


def largest(log_probs):
    values, index = log_probs.topk(TOP)
    return list(zip(index.tolist(), values.tolist(), strict=True))


def as_ids(tokenizer, ids, start, log_probs):
    tops = [largest(log_probs[k - 1]) for k in range(start, len(ids))]
    return [[{"token": f"token_id:{i}", "logprob": v} for i, v in top] for top in tops]


def as_chat(tokenizer, ids, start, log_probs):
    spelled = {i: each for each, (i,) in tokenizer.ids_by_bytes.items()}

    def item(i, value):
        return {"token": spelled[i].decode(errors="replace"), "bytes": list(spelled[i]), "logprob": value}

    return {
        "content": [
            item(ids[k], log_probs[k - 1, ids[k]].item())
            | {"top_logprobs": [item(*each) for each in largest(log_probs[k - 1])]}
            for k in range(start, len(ids))
        ]
    }


def as_completion(tokenizer, ids, start, log_probs):
    top = [{tokenizer.piece(i): v for i, v in largest(log_probs[k - 1])} for k in range(start, len(ids))]
    return {"tokens": [tokenizer.piece(i) for i in ids[start:]], "top_logprobs": top}


def as_prompt(tokenizer, ids, start, log_probs):
    def of(k):
        own = (ids[k], log_probs[k - 1, ids[k]].item())
        return {str(i): {"logprob": v, "rank": 1} for i, v in [*largest(log_probs[k - 1]), own]}

    return [None, *(of(k) for k in range(1, len(ids)))]


FORMS = {"ids": as_ids, "chat": as_chat, "completion": as_completion, "prompt": as_prompt}


@pytest.fixture(scope="module")
def served(task, answers):
    """Recipes of a served teacher, by the form of its answers."""
    folder, rows, tokenizer, recipe = task
    for name, form in FORMS.items():
        answered = [{**row, "top": form(tokenizer, *each)} for row, each in zip(rows, answers, strict=True)]
        write(folder / f"{name}.jsonl", answered)
    taught = {"teacher": "served", "data": {"top_logprobs": "top"}}
    return lambda form, **keys: recipe(f"{form}.jsonl", **(taught | keys))


KD = {"kd": {"temperature": 1.0, "weight": 1.0, "supervised": 1.0}}


def trained(folder):
    return [json.loads(line)["train"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_it_teaches_as_the_recorded_top_classes_do(task, served, tmp_path):
    folder, _, _, recipe = task
    keys = {"outputs_limit_mb": 0.03, "outputs_top": TOP, "outputs_max_error": 1.0, "objective": KD}
    recorded = recipe(teacher=str(folder / "teacher"), outputs=str(tmp_path / "outputs"), **keys)
    record_teacher.record(recorded)
    execute(recorded, tmp_path / "recorded")
    execute(served("ids", objective=KD), tmp_path / "served")
    for got, expected in zip(trained(tmp_path / "served"), trained(tmp_path / "recorded"), strict=True):
        for key in ("loss", "kl_to_target", "agreement"):
            assert got[key] == pytest.approx(expected[key], rel=1e-4), key
    manifest = json.loads((tmp_path / "served" / "manifest.json").read_text())
    said = manifest["teacher"]
    assert (said["name"], said["source"], said["top"]) == ("served", "jsonl:ids.jsonl, column top", TOP)
    assert 0 < said["mean_left_over"] < 1
    assert manifest["verb"] == "distill"


def test_all_forms_say_the_same(task, served):
    splits = {name: data.open_data(served(name).data) for name in FORMS}
    first = splits["ids"].train.served
    for name, each in splits.items():
        same(each.train.served, first, named=name in ("chat", "prompt"))
        assert each.test.served is None
    assert data.open_data(task[-1]().data).fingerprint not in {each.fingerprint for each in splits.values()}


def same(served, first, *, named=False):
    """The same answers; ``named``: with the token that was served too, where it is none of the largest."""
    assert torch.equal(served.offsets, first.offsets)
    ours, theirs = (targets.dense(each.logits).log_softmax(-1) for each in (served, first))
    if named:
        ours, theirs = ours.gather(1, first.logits.index), theirs.gather(1, first.logits.index)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_parquet_says_the_same(task, served, tmp_path):
    pytest.importorskip("datasets", reason="the optional package datasets is not installed")
    import pyarrow
    import pyarrow.parquet

    folder, rows, _, recipe = task
    lines = [json.loads(line) for line in (folder / "ids.jsonl").read_text().splitlines()]
    for name, table in (("train", lines), ("test", rows)):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), tmp_path / f"{name}.parquet")
    source = {"source": f"hf:{tmp_path}", "test_shards": None, "top_logprobs": "top"}
    splits = data.open_data(recipe(data=source, teacher="served").data)
    same(splits.train.served, data.open_data(served("ids").data).train.served)


@pytest.mark.parametrize(
    ("objective", "got"),
    [
        ({"ttm": {"gamma": 0.5, "beta": 1}}, "gamma 0.5"),
        ("kd", "gamma 0.25"),
        ("dkd", "another reading"),
        ({"wttm": {"gamma": 1, "beta": 1, "logits": "standardised"}}, "another reading"),
    ],
)
def test_other_exponents_are_refused_before_training(served, tmp_path, objective, got):
    with refused(RecipeError, got=got):
        execute(served("ids", objective=objective), tmp_path / "run")


def test_its_statistics_come_from_its_answers(served):
    inputs = setup.build_inputs(served("prompt", objective={"wttm": {"gamma": 1.0, "normalise": "training"}}))
    (objective,) = inputs.objectives
    resolved = objective.bind(setup.run_context(objective, inputs)).resolved["wttm"]
    assert resolved["mean_weight"] == pytest.approx(1)
    assert resolved["beta"] > 0


@pytest.mark.parametrize("arguments", [{}, {"beta": 1}, {"beta": 1, "normalise": "training"}])
def test_its_automatic_gamma_is_known_beforehand(served, tmp_path, arguments):
    resolved = {}
    for gamma in ("auto", 1.0):
        taught = served("ids", objective={"wttm": {"gamma": gamma, **arguments}})
        resolved[gamma] = execute(taught, tmp_path / str(gamma)).manifest["objective_resolved"][0]
    assert trained(tmp_path / "auto") == trained(tmp_path / "1.0")
    assert resolved["auto"]["wttm"] == {"gamma": 1.0, **resolved[1.0].get("wttm", {})}


def first(change):
    """Change the first row's answers."""

    def changed(rows):
        rows[0]["top"] = change(rows[0]["top"])

    return changed


@pytest.mark.parametrize(
    ("form", "change", "got"),
    [
        ("ids", first(lambda top: top[:-1]), None),
        ("ids", first(lambda top: [[], *top[1:]]), "no answer"),
        ("ids", first(lambda top: None), "bad.jsonl line 1: no list of answers"),
        ("ids", first(lambda top: [[{"token": "dog", "logprob": -1}], *top[1:]]), "position 1 of"),
        ("ids", first(lambda top: [[{"token": "c", "logprob": 0.5}], *top[1:]]), "logprob 0.5"),
        ("ids", first(lambda top: [[{"token": c, "logprob": -0.1} for c in "ab"], *top[1:]]), "add up to 1.81"),
        ("ids", first(lambda top: [[{"token": "c", "logprob": -9}], *top[1:]]), "not the largest"),
        ("completion", first(lambda top: {**top, "tokens": ["c", *top["tokens"][1:]]}), "'c'"),
        ("prompt", first(lambda top: [*top[:-1], {"1": {"logprob": -0.1}}]), "'another'"),
    ],
)
def test_answers_that_do_not_fit_are_refused(task, served, form, change, got):
    folder, *_, recipe = task
    rows = [json.loads(line) for line in (folder / f"{form}.jsonl").read_text().splitlines()]
    change(rows)
    write(folder / "bad.jsonl", rows)
    with refused(InvalidValueError, got=got) as caught:
        data.open_data(recipe("bad.jsonl", teacher="served", data={"top_logprobs": "top"}).data)
    assert "bad.jsonl line 1" in str(caught.value)


@pytest.mark.parametrize(
    "keys",
    [
        {"data": {}},
        {"outputs": "runs/outputs"},
        {"teacher": {"name": "served", "size": 8}},
        {"data": {"top_logprobs": "top", "source": "csv:x.csv"}},
    ],
)
def test_what_does_not_go_together_is_refused(served, keys):
    with refused(RecipeError):
        served("ids", **keys)
