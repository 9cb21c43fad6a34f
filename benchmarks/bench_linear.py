"""Time the last linear layers with cross-entropy and WTTM, and their memory, against whole logits.

    python benchmarks/bench_linear.py [RESULT.json [FORM ...]]

4096 tokens, width 1024 on both sides, 128256 classes, float32, one thread; forward and backward to hidden states and
weights. Each form runs in a fresh process: its processor time, and its peak over what it began with, less gradients.
Prints medians and ratios; with a file's name it records them with the machine, the versions and n. Forms that are named
are measured anew and the others of the file kept.
"""

import sys
from pathlib import Path

import output
import torch

from tutelage.benchmark import turns
from tutelage.benchmark.linear import CLASSES, FORMS, GAMMA, REFERENCE, WIDTH, measure

if __name__ == "__main__":
    torch.set_num_threads(1)
    path = Path(sys.argv[1]) if sys.argv[1:] else None
    forms = output.read(path).get("forms", {}) if sys.argv[2:] else {}
    for name in sys.argv[2:] or FORMS:
        forms[name] = turns.fresh(measure, name)
        print(name, forms[name], flush=True)
    reference = forms.get(REFERENCE)
    for name, found in forms.items():
        if reference and found["tokens"] == reference["tokens"]:
            found["times_as_long"] = found["median_s"] / reference["median_s"]
            found["times_the_memory"] = found["added_mb"] / reference["added_mb"]
            print(
                f"{name:<24} {found['median_s']:6.2f} s, {found['times_as_long']:.3f} times as long; "
                f"{found['added_mb']:8.1f} MB, {found['times_the_memory']:.4f} times as much (n = {found['n']})"
            )
    if path:
        settings = {"width": WIDTH, "classes": CLASSES, "gamma": GAMMA, "threads": 1}
        output.write(path, {**settings, "forms": forms})
