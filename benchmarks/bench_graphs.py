"""Which presets' steps are replayed to the bit, and what a replayed step leaves the host to do.

    python benchmarks/bench_graphs.py                       about a minute on one core
    python benchmarks/bench_graphs.py --all                 vitkd too, whose networks read 224 pixels: two minutes more
    python benchmarks/bench_graphs.py --write RESULT.json

No GPU takes part. A step of each preset is written down operation by operation, executed again for the next batches,
of which one is not applied, and held against eager steps (`tests/_helpers/recorder.py` says what that proves). Then a
student of KD, resnet20 of resnet56, 64 images, is trained with a graph whose replay does nothing. What is left is the
host's part of a step: its operations, and its microseconds (the tenth percentile).
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
from tutelage.training.graphs import CAPTURES
from tutelage.training.isolation import Isolation
from tutelage.training.job import FitJob
from tutelage.training.lockstep import Lockstep

STEPS = {"eager": 10, "replayed": 200}
PLAIN = {"compile_teacher": False, "compile_student": False, "gradient_products": False}


def table(names):
    """Return and print a row a preset."""
    rows = {}
    for name in names:
        with Unchanged():
            eager, _ = captured_cases.trained(name, captured=False)
        replayed, operations = captured_cases.trained(name, captured=True)
        same = all(torch.equal(value, replayed[key]) for key, value in eager.items())
        needs = captured_cases.preset_state(name)[0].distiller.objective.needs
        rows[name] = {"operations": operations, "same bits": same, "host waits": needs.host_waits}
        verdict = "to the bit" if same else "with other bits"
        waits = "; stays eager on a GPU, where the host waits in it" if needs.host_waits else ""
        print(f"{name:<22} {operations:5} operations, replayed {verdict}{waits}", flush=True)
    return rows


class Count(TorchDispatchMode):
    """Counts operations."""

    operations = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.operations += 1
        return function(*args, **(kwargs or {}))


class Idle(Recorder):
    """A graph whose replays, after those that it is held against eager steps by, do nothing."""

    idle = False

    def replay(self):
        if not Idle.idle:
            super().replay()


class Batches:
    """One batch, again and again; when each was asked for, and the operations of the second to last step."""

    def __init__(self, steps):
        index, images = torch.arange(64), torch.rand(64, 3, 32, 32)
        self.batch, self.steps, self.samples = Batch(index, images, index % 100), steps, 64 * steps
        self.moments, self.count = [], Count()

    def __len__(self):
        return self.steps

    def epoch(self, epoch, *, start=0, rank=0, world=1):
        for step in range(self.steps):
            if step == 1:
                Idle.idle = True
            if step == self.steps - 2:
                self.count.__enter__()
            if step == self.steps - 1:
                self.count.__exit__(None, None, None)
            self.moments.append(time.perf_counter())
            yield self.batch


def host(form, students):
    """Return the operations of a step, and its microseconds."""
    Idle.idle = False
    settings = FitSettings(epochs=1, optimizer=SGD(), checkpoint_seconds=1e9, graphs=form == "replayed", **PLAIN)
    jobs = {
        k: FitJob(distiller=Distiller(models.create("cifar:resnet20", classes=100), objectives.kd()), settings=settings)
        for k in range(students)
    }
    batches, teacher = Batches(STEPS[form]), FrozenTeacher(models.create("cifar:resnet56", classes=100))
    list(Lockstep(jobs, teacher, batches, accelerator=accelerator_on("cpu"), isolation=Isolation()).run())
    times = [after - before for before, after in itertools.pairwise(batches.moments[2:-2])]
    return {"operations": batches.count.operations, "microseconds": 1e6 * statistics.quantiles(times, n=10)[0]}


if __name__ == "__main__":
    parser = output.parser(__doc__)
    parser.add_argument("--all", action="store_true", help="vitkd too")
    parser.add_argument("--write", type=Path, metavar="RESULT.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        captured_cases.capture_on_the_cpu(patch)
        presets = table(objectives.PRESETS if options.all else captured_cases.PRESETS)
        patch.setitem(CAPTURES, "cpu", Idle)
        hosts = {}
        for students in (1, 6):
            figures = hosts[f"{students} students"] = {form: host(form, students) for form in STEPS}
            eager, replayed = figures["eager"], figures["replayed"]
            print(
                f"students: {students}; a replayed step has {replayed['operations']} operations and "
                f"{replayed['microseconds']:.0f} us of the host, an eager one {eager['operations']} operations: "
                f"{eager['operations'] / replayed['operations']:.0f} times as many"
            )
    output.write(options.write, {"presets": presets, "host": hosts})
