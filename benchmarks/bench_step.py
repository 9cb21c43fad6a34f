"""Time a training step here against the published procedure, with a live teacher and with recorded outputs.

    python benchmarks/bench_step.py [data.source=hf:FOLDER] [--write RESULT.json]

Four pairs at batch 64; prints milliseconds a step, the ratios of each pair and their geometric means. Without a source
the images are random ones of CIFAR-100's shape, which cost the same.
"""

import json
import sys
from pathlib import Path

import torch

from tutelage import benchmark, manifest
from tutelage.data.settings import DataSettings

N, ROUNDS = 16, 2

if __name__ == "__main__":
    typed = sys.argv[1:]
    source = next((text.split("=", 1)[1] for text in typed if text.startswith("data.source=")), None)
    settings = DataSettings(source=source, label="fine_label", crop_padding=4, flip=True) if source else None
    rows = []
    for row in benchmark.steps(settings, n=N, rounds=ROUNDS):
        rows.append(row)
        print(benchmark.line(row), flush=True)
    found = benchmark.ratios(rows)
    print(f"geometric means: live {found['live']:.2f}x, recorded {found['recorded']:.2f}x")
    if "--write" in typed:
        machine = {**manifest.version(), "hardware": manifest.hardware(torch.device("cpu"))}
        record = {
            "n": {"steps": N, "rounds": ROUNDS},
            "images": "CIFAR-100" if source else "random",
            "seconds_a_step": [row._asdict() for row in rows],
            "geometric_means": found,
            **machine,
            "software": manifest.software(),
        }
        Path(typed[typed.index("--write") + 1]).write_text(json.dumps(record, indent=2) + "\n")
