"""Check which presets' steps are replayed to the bit, and time the host's share of a replayed step. Needs no GPU.

    python benchmarks/bench_graphs.py                       about two minutes on one core
    python benchmarks/bench_graphs.py --all                 vitkd too, whose networks read 224 pixels: two minutes more
    python benchmarks/bench_graphs.py --write RESULT.json

- presets: a step of each is recorded operation by operation and executed again for the next batches, one of which is
  not applied. Everything that these steps change is compared with eager steps under a dispatch mode that does nothing,
  because torch decomposes operations under such a mode (`tests/_helpers/recorder.py`).
- host: students of KD, resnet20 of resnet56, 64 images, in a fit whose graph does nothing on replay. The rest is the
  host's share of a step: its operations, and its microseconds, the tenth percentile over steps. With one image instead
  of 64 hardly anything is copied, which leaves Python's time. The reference is the eager step of the same run. It
  computes on the CPU and the replayed one does not, so the ratio of their times is no speed-up.
"""

import itertools
import statistics
import sys
import time
from pathlib import Path

import output
import torch
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parents[1]))
import pytest
from tests._helpers import captured_cases
from tests._helpers.recorder import Recorder, Unchanged

from tutelage import Batch, models, objectives
from tutelage.modules import Distiller, FrozenTeacher
from tutelage.settings.fit import SGD, FitSettings
from tutelage.training.distributed import accelerator_on
from tutelage.training.graphs import CAPTURES, NotCapturableError
from tutelage.training.isolation import Isolation
from tutelage.training.job import FitJob
from tutelage.training.lockstep import Lockstep
from tutelage.training.loop import fit

STEPS = {"eager": 24, "replayed": 400, "replayed, one image": 400}
PLAIN = {"compile_teacher": False, "compile_student": False, "gradient_products": False}


def row(name):
    """Return the outcome of a preset's replayed steps."""
    needs = captured_cases.preset_state(name)[0].distiller.objective.needs
    with Unchanged():
        eager, _ = captured_cases.trained(name, captured=False)
    try:
        replayed, operations = captured_cases.trained(name, captured=True)
    except NotCapturableError as error:
        return {"operations": None, "same bits": False, "why": str(error), "host waits": needs.host_waits}
    differing = [key for key, value in eager.items() if not torch.equal(value, replayed[key])]
    why = f"other bits: {', '.join(differing)}" if differing else None
    return {"operations": operations, "same bits": not differing, "why": why, "host waits": needs.host_waits}


def table(*, everything):
    """Return a row per preset, and print it."""
    rows = {}
    for name in objectives.PRESETS:
        if name in captured_cases.OF_TOKENS and not everything:
            rows[name] = None
            print(f"{name:<22} not run; type --all", flush=True)
            continue
        got = rows[name] = row(name)
        verdict = "to the bit" if got["same bits"] else got["why"]
        waits = "; stays eager on a GPU, where the host waits in it" if got["host waits"] else ""
        print(f"{name:<22} {got['operations'] or '-':>5} operations, replayed: {verdict}{waits}", flush=True)
    return rows


class Count(TorchDispatchMode):
    """Counts operations."""

    operations = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.operations += 1
        return function(*args, **(kwargs or {}))


class Idle(Recorder):
    """A graph whose replays do nothing after the comparison with eager steps."""

    idle = False

    def replay(self):
        if not Idle.idle:
            super().replay()


class Batches:
    """One batch, repeated; records when each was requested, and the operations of the second to last step."""

    def __init__(self, steps, samples):
        index, images = torch.arange(samples), torch.rand(samples, 3, 32, 32)
        self.batch, self.steps, self.samples = Batch(index, images, index % 100), steps, samples * steps
        self.moments, self.count = [], Count()

    def __len__(self):
        return self.steps

    def epoch(self, epoch, *, start=0, rank=0, world=1):
        for step in range(self.steps):
            Idle.idle = step > 0
            if step == self.steps - 2:
                self.count.__enter__()
            if step == self.steps - 1:
                self.count.__exit__(None, None, None)
            self.moments.append(time.perf_counter())
            yield self.batch


def host(form, students):
    """Return the operations and microseconds of a step: of one student in `fit`, of several in lockstep."""
    graphs, steps = form != "eager", STEPS[form]
    settings = FitSettings(epochs=1, optimizer=SGD(), checkpoint_seconds=1e9, graphs=graphs, **PLAIN)
    made = [Distiller(models.create("cifar:resnet20", classes=100), objectives.kd()) for _ in range(students)]
    batches, teacher = (
        Batches(steps, 1 if "one" in form else 64),
        FrozenTeacher(models.create("cifar:resnet56", classes=100)),
    )
    device = accelerator_on("cpu")
    if students == 1:
        list(fit(*made, teacher, batches, settings, accelerator=device))
    else:
        jobs = {k: FitJob(distiller=each, settings=settings) for k, each in enumerate(made)}
        list(Lockstep(jobs, teacher, batches, accelerator=device, isolation=Isolation()).run())
    # Leaves out the first step, which captures, and the one whose operations are counted.
    times = [after - before for before, after in itertools.pairwise(batches.moments[2:-1])]
    tenth = statistics.quantiles(times, n=10, method="inclusive")[0]
    return {"operations": batches.count.operations, "microseconds": 1e6 * tenth}


def hosts():
    """Return the host's share of a step by the number of students, and print it."""
    figures = {}
    for students in (1, 6):
        name = "one student in fit" if students == 1 else f"{students} students in lockstep"
        eager, replayed, python = (host(form, students) for form in STEPS)
        ratios = {key: eager[key] / replayed[key] for key in eager}
        figures[name] = {**dict(zip(STEPS, (eager, replayed, python), strict=True)), "eager / replayed": ratios}
        print(
            f"{name}: a replayed step leaves the host {replayed['operations']} operations and "
            f"{replayed['microseconds']:.0f} us, {python['microseconds']:.0f} with one image; the eager step, computed "
            f"on the CPU, has {eager['operations']}, {ratios['operations']:.0f} times as many, and takes "
            f"{eager['microseconds']:.0f} us, {ratios['microseconds']:.0f} times as long, which is no speed-up",
            flush=True,
        )
    return figures


if __name__ == "__main__":
    parser = output.parser(__doc__)
    parser.add_argument("--all", action="store_true", help="vitkd too")
    parser.add_argument("--write", type=Path, metavar="RESULT.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("No GPU takes part: a recorder of operations stands in for CUDA graphs, on the CPU.")
    with pytest.MonkeyPatch.context() as patch:
        captured_cases.capture_on_the_cpu(patch)
        presets = table(everything=options.all)
        patch.setitem(CAPTURES, "cpu", Idle)
        record = {
            "command": f"python benchmarks/bench_graphs.py{' --all' * options.all}",
            "gpu": "none took part: a recorder of operations on the CPU",
            "n": {"replayed steps of a preset": captured_cases.STEPS, "steps of the host": STEPS},
            "presets": presets,
            "host": hosts(),
        }
    output.write(options.write, record)
