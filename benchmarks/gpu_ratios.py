"""Time training steps of 64 images against the published loop, and against a hand-written whole-step CUDA graph.

Per pair, all in one process and in turn, on random images of CIFAR-100's shape with the loss of WTTM:

- published: the procedure of papers in this field (`tutelage.benchmark.steps.published`): float32 with torch's
  defaults, eager, eight loader workers, ``.item()`` in every step;
- live, recorded: `fit` with its defaults, in bfloat16, with the teacher and with its recorded outputs;
- six: six students in lockstep with one live teacher, all six in one step;
- graph: `WholeStep`, the minimum that does the same, with the teacher, with its logits, and with six students.

The first call of each form, in which it is compiled, measured or captured, is not in the figures but reported apart.
"""

import statistics
import tempfile
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional as F

from tutelage import data, losses, objectives
from tutelage.benchmark import timing
from tutelage.benchmark.batches import CLASSES, FirstBatches, network, random_images
from tutelage.benchmark.steps import BETA, GAMMA, PAIRS, published
from tutelage.modules import Distiller, FrozenTeacher
from tutelage.settings.fit import FitSettings
from tutelage.teacher_cache.cache import CachedTeacher, TeacherCache
from tutelage.training.distributed import accelerator_on
from tutelage.training.generators import RngState
from tutelage.training.graphs import capturing
from tutelage.training.isolation import Isolation
from tutelage.training.job import FitJob
from tutelage.training.lockstep import Lockstep
from tutelage.training.loop import fit
from tutelage.training.precision import float32_products

GOALS = {"live": 5.0, "recorded": 9.0, "six": 15.0}
"""Goals as multiples of the published loop's images per second; for six students, their sum."""
NEAR = 1.25
"""Longest time of a step, as a multiple of the hand-written graph's."""
GRAPHS = {"live": "graph live", "recorded": "graph recorded", "six": "graph six"}


class WholeStep:
    """A training step captured by hand: every tensor static, data and augmentation on the device.

    SGD with momentum, bfloat16 autocast, channels last; students side by side, each on its own stream. Without a GPU
    each step is eager.

    Args:
        images: ``(samples, 32, 32, 3)`` uint8.
        labels: ``(samples,)``.
        students: networks on the device.
        teacher: a network on the device, or recorded logits ``(samples, classes)``.
        batch: samples per step.
    """

    def __init__(self, images, labels, students, teacher, *, batch):
        self.device = labels.device
        self.images, self.labels, self.teacher, self.batch = F.pad(images, (0, 0, 4, 4, 4, 4)), labels, teacher, batch
        if isinstance(teacher, torch.nn.Module):
            teacher.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.students = [student.train().to(memory_format=torch.channels_last) for student in students]
        self.parameters = [list(student.parameters()) for student in students]
        self.momenta = [[torch.zeros_like(p) for p in parameters] for parameters in self.parameters]
        self.minus_rate = torch.tensor(-0.05, device=self.device)
        self.loss = torch.zeros(len(students), device=self.device)  # summed up, as a log reads it
        self.order = torch.randperm(len(labels), device=self.device)[: len(labels) // batch * batch].view(-1, batch)
        self.at = torch.zeros(1, dtype=torch.long, device=self.device)
        self.pixels = torch.arange(32, device=self.device)
        self.graph = self._captured() if self.device.type == "cuda" else None

    def _captured(self):
        self.streams = [torch.cuda.Stream() for _ in self.students]
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):  # fills caches and chooses algorithms
                self._step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step()
        return graph

    def __call__(self):
        if self.graph is not None:
            self.graph.replay()
        else:
            self._step()

    def _step(self):
        index = self.order.index_select(0, self.at)[0]
        self.at.add_(1).remainder_(len(self.order))
        images, labels = self._views(index), self.labels[index]
        with torch.no_grad():
            network = isinstance(self.teacher, torch.nn.Module)
            logits = self._logits(self.teacher, images) if network else self.teacher[index].float()
        if self.device.type != "cuda":
            for k in range(len(self.students)):
                self._train(k, images, labels, logits)
            return
        current = torch.cuda.current_stream()
        for k, stream in enumerate(self.streams):
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                self._train(k, images, labels, logits)
        for stream in self.streams:
            current.wait_stream(stream)

    def _views(self, index):
        """Crop the padded images at random, flip them at random, and scale them to [0, 1]."""
        top, left = torch.randint(9, (2, self.batch, 1), device=self.device)
        flip = torch.randint(2, (self.batch, 1), device=self.device, dtype=torch.bool)
        rows, columns = top + self.pixels, left + torch.where(flip, 31 - self.pixels, self.pixels)
        views = self.images[index[:, None, None], rows[:, :, None], columns[:, None, :]]
        return views.permute(0, 3, 1, 2).float() / 255

    def _logits(self, network, images):
        with torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False):
            return network(images).float()

    def _train(self, k, images, labels, logits):
        z = self._logits(self.students[k], images)
        loss = (losses.cross_entropy(z, labels) + BETA * losses.wttm(z, logits, gamma=GAMMA)).mean()
        gradients = torch.autograd.grad(loss, self.parameters[k])
        with torch.no_grad():
            gradients = torch._foreach_add(gradients, self.parameters[k], alpha=5e-4)
            torch._foreach_mul_(self.momenta[k], 0.9)
            torch._foreach_add_(self.momenta[k], gradients)
            torch._foreach_add_(self.parameters[k], torch._foreach_mul(self.momenta[k], self.minus_rate))
            self.loss[k] += loss.detach()


def by_hand(make, n):
    """Return a function that times `WholeStep`, made in its first call."""
    step = None

    def seconds():
        nonlocal step
        if step is None:
            step = make()
        step()
        timing.synchronize()
        began = time.perf_counter()
        for _ in range(n):
            step()
        timing.synchronize()
        return (time.perf_counter() - began) / n

    return seconds


def ours(students, teacher, splits, settings, options, *, batch, n):
    """Return a function that times `fit`, or with several students `Lockstep`; a round is an epoch of ``n`` steps."""
    accelerator = accelerator_on(options.device)
    device = accelerator.device
    capture = capturing(device, wanted=settings.graphs)
    loader = data.loader_on(device, splits.train, batch_size=batch, train=True, capture=capture)
    batches = FirstBatches(loader, n, whole=not options.small)
    distillers = [Distiller(student, objectives.wttm(gamma=GAMMA, beta=BETA)) for student in students]
    if len(distillers) == 1:
        epochs = fit(distillers[0], teacher, batches, settings, accelerator=accelerator)
    else:
        jobs = {k: FitJob(distiller=distiller, settings=settings) for k, distiller in enumerate(distillers)}
        isolation = Isolation()
        isolation.generators = {k: RngState(device) for k in jobs}
        epochs = Lockstep(jobs, teacher, batches, accelerator=accelerator, isolation=isolation).run()

    def seconds():
        with float32_products(device, settings.precision):
            for _ in distillers:
                next(epochs)
        if len(distillers) > 1:
            for error in isolation.errors.values():
                raise error
        return batches.seconds

    return seconds


def random_cache(folder, samples, epochs):
    """Write random teacher outputs for the training set's views of so many epochs; return the cache."""
    cache = TeacherCache(folder, {"data_seed": 0}, samples=samples, rows=samples)
    draw = torch.Generator().manual_seed(0)
    for epoch in range(epochs):
        cache.write(epoch, range(samples), 3 * torch.randn(samples, CLASSES, generator=draw), {})
    return cache


@contextmanager
def torch_defaults():
    """Compute float32 as torch does by default: convolutions in TF32, products not."""
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = convolutions
        torch.set_float32_matmul_precision(products)


def measure(pair, options):
    """Time all forms on one pair, in turn."""
    n, rounds, batch, group, samples = (2, 1, 4, 2, 64) if options.small else (200, 5, 64, 6, 50_000)
    torch.backends.cudnn.benchmark = True  # in all forms: a run does so, and so does RepDistiller, the published code
    device, splits = accelerator_on(options.device).device, random_images(samples)
    teacher, student = (partial(network, name, device) for name in pair)
    settings = FitSettings(epochs=240, precision="bf16", checkpoint_seconds=1e9)
    if options.small:
        settings = FitSettings(epochs=10, precision="bf16", compile_teacher=False, compile_student=False)
    images = splits.train.fetch(torch.arange(samples).numpy())
    images = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().to(device)
    labels = torch.as_tensor(splits.train.labels[:samples]).to(device)
    reference = published(teacher(), student(), splits.train, device, batch, n, workers=2 if options.small else 8)

    def published_seconds():
        with torch_defaults():
            return reference()

    with ExitStack() as stack:
        cache = random_cache(Path(stack.enter_context(tempfile.TemporaryDirectory())), samples, 1 + rounds)
        live = partial(ours, splits=splits, settings=settings, options=options, batch=batch, n=n)
        students = [student(seed=k) for k in range(group)]
        hand = partial(WholeStep, images, labels, batch=batch)
        forms = {
            "published": published_seconds,
            "live": live([student()], FrozenTeacher(teacher())),
            "recorded": live([student()], CachedTeacher(cache, gamma=GAMMA, device=device)),
            "six": live(students, FrozenTeacher(teacher())),
            "graph live": by_hand(lambda: hand([student()], teacher()), n),
            "graph recorded": by_hand(lambda: hand([student()], torch.randn(samples, CLASSES, device=device)), n),
            "graph six": by_hand(lambda: hand([student(seed=k) for k in range(group)], teacher()), n),
        }
        first = {}
        for name, form in forms.items():
            began = time.perf_counter()
            form()
            first[name] = round(time.perf_counter() - began, 1)
        taken = timing.in_turn(forms, rounds, warm_up=False)
    return {
        "pair": "/".join(pair),
        "batch": batch,
        "students": group,
        "n": {"steps": n, "rounds": rounds},
        "first_call_s": first,
        "ms": {name: [round(1e3 * seconds, 4) for seconds in each] for name, each in taken.items()},
    }


def items(options):
    """Return each pair with its time limit in seconds."""
    return {"/".join(pair): (20.0 if options.small else 120.0, partial(measure, pair, options)) for pair in PAIRS}


def ratios_of(result):
    """Return the speed relative to the published loop and the time relative to the graph, by form."""
    ms = {name: statistics.median(each) for name, each in result["ms"].items()}
    share = {"six": result["students"]}
    return {form: (ms["published"] * share.get(form, 1) / ms[form], ms[form] / ms[GRAPHS[form]]) for form in GOALS}


def report(entries):
    """Print milliseconds, images per second and ratios; return the geometric means."""
    results = [entry["result"] for entry in entries.values() if "result" in entry]
    for item, entry in entries.items():
        if "error" in entry:
            print(f"  FAIL {item}: {entry['error']}")
    if not results:
        return {}
    print(f"  {'pair':<22}{'form':<16}{'ms a step':>10}{'least':>9}{'most':>9}{'images/s':>10}{'first call':>12}")
    for result in results:
        for form, each in result["ms"].items():
            median = statistics.median(each)
            many = result["students"] if form.endswith("six") else 1
            speed = f"{1e3 * many * result['batch'] / median:,.0f}"
            first = f"{result['first_call_s'][form]:.1f} s"
            print(
                f"  {result['pair']:<22}{form:<16}{median:>10.2f}{min(each):>9.2f}{max(each):>9.2f}"
                f"{speed:>10}{first:>12}"
            )
        print(
            "  "
            + ", ".join(f"{form} {up:.2f}x ({over:.2f} of the graph)" for form, (up, over) in ratios_of(result).items())
        )
    summary = {}
    for form, goal in GOALS.items():
        up, over = (
            statistics.geometric_mean(each) for each in zip(*(ratios_of(r)[form] for r in results), strict=True)
        )
        summary[form] = {"times_as_fast_as_published": up, "goal": goal, "times_as_long_as_graph": over, "most": NEAR}
        print(
            f"  geometric mean of {len(results)} pairs, {form}: {up:.2f}x the published loop (goal {goal:g}), "
            f"{over:.2f} times as long as the graph (at most {NEAR})"
        )
    steps = {(r["n"]["steps"], r["n"]["rounds"]) for r in results}
    n = ", ".join(f"{count} steps in each of {rounds} rounds" for count, rounds in steps)
    print(f"  n: {n}; medians of the rounds")
    return summary
