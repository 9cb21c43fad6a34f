"""Time a whole training step of a large vocabulary, and its memory: `loss_form` plain and last_layer.

    python benchmarks/bench_last_layer_step.py [RESULT.json] [--tokens N] [--classes N] [--n N] [--method NAME]

By default 2,048 tokens (32 texts of 64) and 32,000 classes: a student of width 256 (embedding, two layers, last layer)
and a teacher of width 512, WTTM with gamma 0.9, AdamW, float32, one thread. A step is the loop's own: teacher, student,
losses, backward, optimizer, sums. Each form runs in a fresh process; its memory is the peak above the process before,
less gradients, of the first step, which also makes the optimizer's state, and of the second, which has it: the larger
of both. Seconds are the processor's. Prints medians and ratios; given a file name, records them with the machine, the
versions and n.
"""

import statistics
import time
from functools import partial
from pathlib import Path

import output
import torch
from torch import nn

from tutelage import objectives
from tutelage.benchmark import losses, timing
from tutelage.modules import Distiller, FrozenTeacher
from tutelage.settings.fit import AdamW, FitSettings
from tutelage.training.compile import ComputePlan, PlannedTeacher
from tutelage.training.distributed import accelerator_on
from tutelage.training.state import TrainState
from tutelage.training.step import train_step
from tutelage.types import Batch

FORMS = ("plain", "last_layer")
LENGTH = 64
METHODS = {
    "wttm": objectives.wttm(gamma=0.9, beta=1.0),
    "ttm": objectives.ttm(gamma=0.9, beta=1.0),
    "kd": objectives.kd(temperature=2.0),
}


def network(width, classes):
    """Return an embedding, two layers and the last layer."""
    layers = (nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.GELU())
    return nn.Sequential(nn.Embedding(classes, width), *layers, nn.Linear(width, classes, bias=False))


def begun(form, tokens, classes, method):
    """Return what a step reads: state, batch and teacher."""
    torch.manual_seed(0)
    distiller = Distiller(network(256, classes), METHODS[method])
    settings = FitSettings(epochs=1, optimizer=AdamW(), loss_form=form)
    state, plan = TrainState(distiller, settings, accelerator_on("cpu")), ComputePlan(loss_form=form)
    state.student.use(plan)
    teacher = PlannedTeacher(FrozenTeacher(network(512, classes)), settings, state.device, plan)
    ids = torch.randint(classes, (max(1, tokens // LENGTH), min(LENGTH, tokens) + 1))
    state.now.set(settings.optimizer.lr, 0.0)
    return state, Batch(torch.arange(len(ids)), ids[:, :-1], ids[:, 1:].contiguous()), teacher


def measure(form, tokens, classes, method, n):
    """Take steps in this form; its memory is only accurate in a fresh process."""
    with timing.threads(1):
        train_step(*begun(form, 8, 512, method))  # loads libraries
        state, batch, teacher = begun(form, tokens, classes, method)
        seconds = []

        def step():
            start = time.process_time()
            train_step(state, batch, teacher)
            seconds.append(time.process_time() - start)

        first, later = losses.added_mb(step), losses.added_mb(step)
        for _ in range(n):
            step()
        loss = state.now.sums[0].item() / state.now.sums[state.metrics.names.index("positions")].item()
        weights = sum(p.nbytes for p in state.distiller.parameters()) / 1e6
        moments = sum(tensor.nbytes for tensor in state.lasting()["moments"]) / 1e6
    beyond = [peak - weights - made for peak, made in ((first, moments), (later, 0.0)) if peak is not None]
    return {
        "n": n,
        "median_s": statistics.median(seconds[2:]),
        "seconds": seconds[2:],
        "mean_loss": loss,
        "gradients_mb": weights,
        "optimizer_mb": moments,
        "added_mb": max(beyond, default=None),
    }


if __name__ == "__main__":
    parser = output.parser(__doc__)
    parser.add_argument("result", nargs="?", type=Path)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--classes", type=int, default=32_000)
    parser.add_argument("--method", choices=sorted(METHODS), default="wttm")
    parser.add_argument("--n", type=int, default=3)
    options = parser.parse_args()
    settings = {"tokens": options.tokens, "classes": options.classes, "method": options.method}
    forms = {form: timing.in_fresh_process(partial(measure, form, n=options.n, **settings)) for form in FORMS}
    for name, form in forms.items():
        form["times_as_long"] = form["median_s"] / forms["plain"]["median_s"]
        memory = "" if form["added_mb"] is None else f"; {form['added_mb']:7.1f} MB"
        print(
            f"{name:<12} {form['median_s']:6.2f} s, {form['times_as_long']:.3f} times as long{memory} beyond weights, "
            f"gradients and optimizer state; mean loss {form['mean_loss']:.6f} (n = {form['n']})"
        )
    output.write(options.result, {**settings, "widths": [256, 512], "threads": 1, "forms": forms})
