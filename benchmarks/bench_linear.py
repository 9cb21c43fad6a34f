"""Time the last linear layers with cross-entropy and WTTM, and their memory, against whole logits.

    python benchmarks/bench_linear.py [RESULT.json [FORM ...]]

4096 tokens, width 1024 on both sides, 128256 classes, float32, one thread; forward and backward to hidden states and
weights. Each form runs in a fresh process: its processor time, and its peak over what it began with, less gradients.
Prints medians and ratios; with a file's name it records them with the machine, the versions and n. Forms that are named
are measured anew and the others of the file kept.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from forms import BETA, CPU, GAMMA, added_mb, algorithm_1, plain

from tutelage import kernels, manifest

N, TOKENS, WIDTH, CLASSES = 3, 4096, 1024, 128_256
REFERENCE = "reference: Algorithm 1"


def whole(loss):
    def form(hidden, weight, teacher_hidden, teacher_weight, labels):
        with torch.no_grad():
            v = teacher_hidden @ teacher_weight.T
        ce, wttm = loss(hidden @ weight.T, v, labels)
        return ce.mean() + BETA * wttm.mean()

    return form


def chunked(*given):
    return kernels.linear_cross_entropy_and_wttm(*given, gamma=GAMMA, beta=BETA).total


FORMS = {
    REFERENCE: (whole(algorithm_1), TOKENS),
    "losses": (whole(plain), TOKENS),
    "kernels": (chunked, TOKENS),
}


def draw(tokens, classes):
    torch.manual_seed(0)
    layers = [torch.randn(*shape) for _ in range(2) for shape in ((tokens, WIDTH), (classes, WIDTH))]
    for weight in layers[1::2]:
        weight.mul_(3 / WIDTH**0.5)
    for learned in layers[:2]:
        learned.requires_grad_()
    return *layers, torch.randint(classes, (tokens,))


def step(form, inputs):
    """Run forward and backward once; return the processor seconds, the loss and the size of the gradients in MB."""
    began = time.process_time()
    total = form(*inputs)
    total.backward()
    taken = time.process_time() - began
    size = sum(x.grad.nbytes for x in inputs[:2]) / 1e6
    for x in inputs[:2]:
        x.grad = None
    return taken, total.item(), size


def measure(name):
    """Measure one form in this process."""
    form, tokens = FORMS[name]
    step(form, draw(8, 512))
    inputs, found = draw(tokens, CLASSES), []
    added = added_mb(lambda: found.append(step(form, inputs)))
    found += [step(form, inputs) for _ in range(N - 1)]
    seconds, values, sizes = zip(*found, strict=True)
    return {
        "tokens": tokens,
        "n": N,
        "median_s": statistics.median(seconds),
        "loss": values[0],
        "gradients_mb": sizes[0],
        "added_mb": added - sizes[0],
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["--form"]:
        print(json.dumps(measure(sys.argv[2])))
        sys.exit()
    path = Path(sys.argv[1]) if sys.argv[1:] else None
    forms = json.loads(path.read_text())["forms"] if path and sys.argv[2:] and path.exists() else {}
    for name in sys.argv[2:] or FORMS:
        done = subprocess.run([sys.executable, __file__, "--form", name], stdout=subprocess.PIPE, check=True, text=True)
        forms[name] = json.loads(done.stdout.splitlines()[-1])
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
        machine = {**manifest.version(), "hardware": manifest.hardware(CPU)}
        record = {**settings, "forms": forms, **machine, "software": manifest.software()}
        path.write_text(json.dumps(record, indent=2) + "\n")
