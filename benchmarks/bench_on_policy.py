"""Distil a language model with and without texts that the student writes, and measure it on real and on its own texts.

    python benchmarks/bench_on_policy.py TEXTS [RESULT.json] [--seeds N]

TEXTS is a folder of AG News in Parquet. A prompt is an article's first 8 words, its completion the next 16. A Llama of
two layers x 64, trained first for 4 epochs on 2,000 articles, teaches one of one layer x 32 for 2 epochs by TTM at
gamma = 1, with the same student, order and steps for each share of on-policy samples.

Each student has its perplexity on the real completions of 500 test articles, and, in nats per token, the divergences
between it and the teacher there and on one completion of each that the student writes itself.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path

import output
import pyarrow.parquet
import torch

import tutelage
from tutelage import config, data, losses, models
from tutelage.config.schema import Recipe
from tutelage.runs.execute import execute
from tutelage.types import View

SHARES = (0.0, 0.5)
NEW = 24


def llama(layers, width):
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": 2, "num_key_value_heads": 2}
    return {"name": "hf:llama", "config": {"num_hidden_layers": layers, **sizes}}


def written(texts, folder):
    """Write the prompts and completions of both splits."""
    for split, count in (("train", 2000), ("test", 500)):
        files = sorted(Path(texts).rglob(f"{split}-*.parquet"))
        rows = []
        for text in pyarrow.parquet.read_table(files[0], columns=["text"]).column("text").to_pylist()[:count]:
            words = text.split()
            rows.append(json.dumps({"first": " ".join(words[:8]), "rest": " " + " ".join(words[8:24])}))
        (folder / f"{split}.jsonl").write_text("\n".join(rows) + "\n")


def recipe(folder, name, **changes):
    columns = {"prompt": "first", "completion": "rest", "test_shards": str(folder / "test.jsonl")}
    texts = {"source": f"jsonl:{folder / 'train.jsonl'}", "tokenizer": {"bpe": 1000}, "max_tokens": 64, **columns}
    common = {
        "batch_size": 32,
        "optimizer": {"name": "adamw", "lr": 3e-3},
        "schedule": {"name": "cosine", "warmup": 0.1},
    }
    computed = {"device": "cpu", "threads": 1, "precision": "fp32"}
    return config.parse(Recipe, {"name": name, "data": texts, **common, **computed, **changes})


@torch.no_grad()
def divergences(student, teacher, split, text, *, share):
    """Return the mean KL(p || q) and KL(q || p) per counted token of a split; share 1: of what the student writes."""
    settings = {"new_tokens": NEW, "max_tokens": text.max_tokens, "end": text.tokenizer.end_id}
    sample = models.CompletionSampler(student, torch.from_numpy(split.prompts), share=share, **settings)
    sums = torch.zeros(3, dtype=torch.float64)
    for batch in data.BatchLoader(split, batch_size=64, train=False).epoch(0):
        batch = sample(batch._replace(view=View(0, 0)))
        q, p = (network(batch.inputs)[batch.counted] for network in (student, teacher))
        pair = (losses.divergence(q, p, kind=kind).double().sum() for kind in ("forward", "reverse"))
        sums += torch.stack([*pair, batch.counted.sum().double()])
    return (sums[:2] / sums[2]).tolist()


if __name__ == "__main__":
    parser = output.parser(__doc__)
    parser.add_argument("texts")
    parser.add_argument("result", nargs="?", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        written(arguments.texts, folder)
        execute(recipe(folder, "teacher", student=llama(2, 64), epochs=4), folder / "teacher")
        teacher = tutelage.load(folder / "teacher")
        splits = data.open_data(recipe(folder, "x", student="hf:llama").data)
        record = {"teacher": json.loads((folder / "teacher" / "evaluation.json").read_text())["student"]["perplexity"]}
        for share in SHARES:
            rows = []
            for seed in range(arguments.seeds):
                name, began = f"share-{share}-{seed}", time.monotonic()
                taught = {
                    "teacher": str(folder / "teacher"),
                    "objective": {"ttm": {"gamma": 1, "beta": 1}},
                    "epochs": 2,
                }
                sampled = {"on_policy": {"share": share, "new_tokens": NEW}, "seed": seed, "data_seed": seed}
                run = execute(recipe(folder, name, student=llama(1, 32), **taught, **sampled), folder / name)
                student, seconds = tutelage.load(folder / name), time.monotonic() - began
                row = {
                    "seed": seed,
                    "perplexity": run.evaluation["student"]["perplexity"],
                    "seconds": round(seconds, 1),
                }
                for where, each in (("real", 0.0), ("own", 1.0)):
                    pair = divergences(student, teacher, splits.test, splits.text["student"], share=each)
                    row |= dict(zip((f"forward_{where}", f"reverse_{where}"), pair, strict=True))
                rows.append(row)
                print(share, row, flush=True)
            record[f"share {share}"] = rows
        for share in SHARES:
            print(f"share {share}:", end="")
            for key in ("perplexity", "forward_real", "reverse_real", "forward_own", "reverse_own"):
                values = [row[key] for row in record[f"share {share}"]]
                deviation = statistics.stdev(values) if len(values) > 1 else 0.0
                print(f"  {key} {statistics.mean(values):.3f} ± {deviation:.3f}", end="")
            print()
        output.write(arguments.result, record)
