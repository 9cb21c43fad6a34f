"""Measure a training step without its networks and its loss: operations, Python's time, frames on the stack.

    python benchmarks/bench_overhead.py                        this version; about a minute on one core
    python benchmarks/bench_overhead.py BASE                   next to another version, a git revision, alternating
    python benchmarks/bench_overhead.py BASE --write out.json  keeps every figure

- operations: what torch dispatches in one step of resnet20 under KD with known teacher logits, 64 images, float32,
  eager; and how many of them a hand-written step without metrics, checks and undoing does not have.
- microseconds: a step whose networks cost nothing (a student of two parameters and 0, 20 or 56 batch norms), in the
  loop and hand-written without metrics, checks and undoing; the tenth percentile over 400 steps of each round, the
  median over rounds, and their ratio.
- frames: functions of the package on the stack when a loss is computed, from `tutelage.distill` to the loss, both
  counted, comprehensions not.

The script only makes documented calls, so modules may move between the two versions.
"""

import itertools
import statistics
import sys
import tempfile
import time
from pathlib import Path

import versions

STEPS = 400
NORMS = (0, 20, 56)
PLAIN = {"compile_teacher": False, "compile_student": False, "gradient_products": False}


def serve():
    """Answer each request with figures, as JSON: ``operations``, ``frames``, or a number of batch norms."""
    import torch
    from torch import nn
    from torch.utils._python_dispatch import TorchDispatchMode

    import tutelage
    from tutelage import Batch, Outputs, data, losses, models, objectives
    from tutelage.modules import Distiller, FrozenTeacher
    from tutelage.settings.fit import SGD, FitSettings
    from tutelage.training.distributed import accelerator_on
    from tutelage.training.loop import fit

    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(0)

    class Stream:
        """Some batches, with a list of functions to call before each of them and after the last."""

        def __init__(self, batches, before):
            self.batches, self.before, self.samples = batches, before, len(batches[0].index) * len(batches)

        def __len__(self):
            return len(self.batches)

        def epoch(self, epoch, *, start=0, rank=0, world=1):
            for batch, call in zip(self.batches, self.before, strict=False):
                call()
                yield batch
            self.before[-1]()

    def trained(student, teacher, stream):
        settings = FitSettings(epochs=1, optimizer=SGD(lr=0.05), checkpoint_seconds=1e9, **PLAIN)
        list(fit(Distiller(student, objectives.kd()), teacher, stream, settings, accelerator=accelerator_on("cpu")))

    class Count(TorchDispatchMode):
        """Counts operations while it is switched on, including those of backward passes."""

        operations = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.operations += 1
            return function(*args, **(kwargs or {}))

    def by_hand(student, optimizer, batch, logits):
        z = student(batch.inputs)
        loss = 0.1 * losses.cross_entropy(z, batch.labels).mean() + 0.9 * losses.kd(z, logits, temperature=4.0).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def sgd(student):
        return torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)

    def operations():
        images, labels = torch.rand(64, 3, 32, 32, generator=draw), torch.randint(100, (64,), generator=draw)
        logits, batch = torch.randn(64, 100, generator=draw), Batch(torch.arange(64), images, labels)
        student, step, plain = models.create("cifar:resnet20", classes=100).train(), Count(), Count()
        nothing, stop = lambda: None, lambda: step.__exit__(None, None, None)
        stream = Stream([batch] * 4, [nothing, nothing, step.__enter__, stop, nothing])
        trained(student, lambda batch: Outputs(logits), stream)
        optimizer = sgd(student)
        by_hand(student, optimizer, batch, logits)
        with plain:
            by_hand(student, optimizer, batch, logits)
        return {"step": step.operations, "more than by hand": step.operations - plain.operations}

    class Tiny(nn.Module):
        def __init__(self, norms=0):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(1, 2), *(nn.BatchNorm1d(2) for _ in range(norms)))

        def forward(self, x):
            return self.layers(x)

    def tenth(moments):
        times = [after - before for before, after in itertools.pairwise(moments)]
        return 1e6 * statistics.quantiles(times, n=10)[0]

    def microseconds(norms):
        batch, moments = Batch(torch.arange(2), torch.rand(2, 1), torch.zeros(2, dtype=torch.int64)), []
        mark = lambda: moments.append(time.perf_counter())  # noqa: E731
        trained(Tiny(norms), FrozenTeacher(Tiny()), Stream([batch] * STEPS, [mark] * (STEPS + 1)))
        loop, moments_by_hand = tenth(moments), []
        student, teacher = Tiny(norms).train(), Tiny().eval()
        optimizer = sgd(student)
        for _ in range(STEPS):
            moments_by_hand.append(time.perf_counter())
            with torch.no_grad():
                logits = teacher(batch.inputs)
            by_hand(student, optimizer, batch, logits)
        return {"loop": loop, "by hand": tenth(moments_by_hand)}

    def frames():
        root, names = str(Path(tutelage.__file__).parent), []

        def loss(student_logits):
            frame = sys._getframe(1)
            names.clear()
            while frame is not None:
                code = frame.f_code
                if code.co_filename.startswith(root) and not code.co_name.startswith("<"):
                    names.append(code.co_qualname)
                frame = frame.f_back
            return student_logits.square().sum(-1)

        from tutelage.objectives.objective import Objective
        from tutelage.objectives.term import Apply, WeightedTerm

        class Samples(torch.utils.data.Dataset):
            targets = list(range(4)) * 4

            def __len__(self):
                return 16

            def __getitem__(self, index):
                return torch.rand(1, 8, 8), self.targets[index]

        objective = Objective.of(WeightedTerm("loss", 1.0, Apply(loss)))
        given = {"student": nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), "teacher": None, "objective": objective}
        with tempfile.TemporaryDirectory() as folder:
            splits = data.from_datasets(Samples(), Samples(), classes=4)
            tutelage.distill(data=splits, **given, name="run", runs=folder, epochs=1, batch_size=8, precision="fp32")
        names.reverse()
        return [*names[names.index("distill") :], "loss"]

    answers = {"operations": operations, "frames": frames}
    versions.serve(lambda asked: answers[asked]() if asked in answers else microseconds(int(asked)))


def measure(sides, rounds):
    """Return every figure by version, and print them."""
    figures = {}
    for side, version in sides.items():
        operations, frames = version.ask("operations"), version.ask("frames")
        figures[side] = {"operations": operations, "frames": frames}
        print(f"{side}: {operations['step']} operations a step, {operations['more than by hand']} more than by hand")
        print(f"{side}: {len(frames)} frames: {' > '.join(frames)}")
    for norms in NORMS:
        answers = versions.in_turn(sides, rounds, norms)
        for side in sides:
            rows = figures[side][f"microseconds, {norms} norms"] = [answer[side] for answer in answers]
            loop, by_hand = (statistics.median(row[name] for row in rows) for name in ("loop", "by hand"))
            ratio = statistics.median(row["loop"] / row["by hand"] for row in rows)
            print(f"{side}: {norms:>2} norms: {loop:.0f} us a step, {by_hand:.0f} by hand, {ratio:.2f} times as long")
    return {"figures": figures}


if __name__ == "__main__":
    versions.main(__file__, __doc__, serve, measure, rounds=5, alone=True)
