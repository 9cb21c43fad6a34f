"""Check kernels and training on a GPU: results, host waits, skipped steps, resuming, replayed steps.

Kernels are checked as in `kernel_checks.py`. Training uses random images and two small residual networks, under every
preset with its default arguments, except ViTKD, which needs transformers.
"""

import random
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path

import kernel_checks
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests._helpers.contexts import drawn_context
from tests._helpers.presets import OF_TOKENS

from tutelage import models, objectives
from tutelage.modules import Distiller, FrozenTeacher
from tutelage.settings.fit import SGD, AdamW, FitSettings
from tutelage.studies import overview
from tutelage.training.checkpoints import Checkpoints, CheckpointSink
from tutelage.training.distributed import accelerator_on
from tutelage.training.loop import fit
from tutelage.training.precision import float32_products
from tutelage.types import Batch

CLASSES, SAMPLES = 100, 1024
EAGER = dict.fromkeys(("compile_teacher", "compile_student", "gradient_products", "graphs"), False)
TOLERANCE = 2e-3
"""Error of a loss on the GPU, relative to the CPU's, without TF32."""
WIDER = {"rkd": 0.02, "pkt": 0.05} | dict.fromkeys(("crd", "mgd", "kd_plus_plus", "tekap"), 0.05)
"""Tolerances of small differences of large numbers, and of draws on the device, whose generator is not the CPU's."""
SAME_SHAPES = {"fsp", "kd_svd"}
"""Presets whose teacher must have the student's shapes."""


class Images:
    """Batches on the device, one per seed, NaN where the seed is none; ``between(step)`` is called around each step."""

    def __init__(self, seeds, options, *, device=None, stop_before=None, between=None):
        self.seeds, self.batch, self.device = seeds, 4 if options.small else 64, device or options.device
        self.samples, self.stop_before, self.between = len(seeds) * self.batch, stop_before, between

    def __len__(self):
        return len(self.seeds)

    def _batch(self, seed):
        draw = torch.Generator().manual_seed(seed or 0)
        images = torch.rand(self.batch, 3, 32, 32, generator=draw)
        if seed is None:
            images[0, 0, 0, 0] = float("nan")
        index = torch.randperm(SAMPLES, generator=draw)[: self.batch].sort().values
        return Batch(index.to(self.device), images.to(self.device), (index % CLASSES).to(self.device))

    def epoch(self, epoch, *, start=0, rank=0, world=1):
        for step, seed in enumerate(self.seeds):
            if step == self.stop_before:
                raise KeyboardInterrupt
            if step >= start:
                batch = self._batch(seed)
                if self.between:
                    self.between(step)
                try:
                    yield batch
                finally:
                    if self.between:
                        self.between(None)


def build(name, options):
    """Return a distiller under a preset, and its teacher if it needs one, on the CPU."""
    objective = overview.tried(name)
    needs, depth = objective.needs, (8, 14) if options.small else (20, 32)
    torch.manual_seed(0)
    student, teacher = (
        models.create(f"cifar:resnet{n}", classes=CLASSES, channels=3, image_size=(32, 32), seed=n)
        for n in (depth[0], depth[name not in SAME_SHAPES])
    )
    images = torch.rand(2, 3, 32, 32)
    context = drawn_context(objective, student, teacher, images, samples=SAMPLES, classes=CLASSES)
    return Distiller(student, objective, context), FrozenTeacher(teacher, needs.teacher_taps) if needs.teacher else None


def train(name, batches, options, *, keep=None, resume=None, device=None, **settings):
    """Fit for an epoch; return the distiller's state on the CPU, the record, and the compute plan."""
    distiller, teacher = build(name, options)
    where = accelerator_on(device or options.device)
    if teacher is not None:
        teacher.to(where.device)
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    plans = []
    with tempfile.TemporaryDirectory() as folder:
        sink = keep or CheckpointSink(Checkpoints(Path(folder) / "c"), Path(folder) / "best", {})
        fitted = FitSettings(epochs=1, log_steps=10**9, checkpoint_seconds=1e9, **EAGER | settings)
        sink = sink._replace(announce=plans.append)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "graphs: expected to capture")  # `replayed` says it
            (record,) = fit(distiller, teacher, batches, fitted, accelerator=where, keep=sink, resume=resume)
    state = {key: tensor.detach().cpu().clone() for key, tensor in distiller.state_dict().items()}
    return state, record, plans[-1] if plans else {}


def steps(options, count=4):
    return list(range(1, 1 + (2 if options.small else count)))


def gap(first, second):
    """Return the largest difference of two states."""
    return max(float((first[key].double() - second[key].double()).abs().nan_to_num(1e9).max()) for key in first)


def waits(name, options):
    """Take steps under CUDA's own detector of host waits, except the first, which allocates lasting tensors."""
    watched = options.device == "cuda"

    def between(step):
        if watched:
            torch.cuda.set_sync_debug_mode("error" if step else "default")

    try:
        train(name, Images(steps(options), options, between=between), options)
    except RuntimeError as error:
        if "synchronizing CUDA operation" not in str(error):
            raise
        if not overview.tried(name).needs.host_waits:
            raise AssertionError(f"the host waits{_where(error)}") from None
        return {"watched": watched, "waits": f"as it says{_where(error)}"}
    finally:
        if watched:
            torch.cuda.set_sync_debug_mode("default")
    return {"watched": watched}


def _where(error):
    """Return the innermost line of the package in an error's traceback."""
    at, trace = "", error.__traceback__
    while trace is not None:
        path = Path(trace.tb_frame.f_code.co_filename)
        if "tutelage" in path.parts:
            at = f" in {path.name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return at


def as_on_the_cpu(name, options):
    """Take the same steps here and on the CPU, at a rate too low to change losses on random images."""
    there, here = (
        train(name, Images(steps(options), options, device=device), options, device=device, optimizer=SGD(lr=1e-3))[1]
        for device in (options.device, "cpu")
    )
    off = abs(there["train"]["loss"] - here["train"]["loss"]) / max(abs(here["train"]["loss"]), 1e-9)
    most = WIDER.get(name, TOLERANCE)
    assert off <= most, f"expected the CPU's loss {here['train']['loss']:.6g} within {most:g}, got {off:.2g} off it"
    return {"off": f"{off:.1e}"}


def replayed(name, options):
    """Check a replayed step: whether it was captured, and whether it has the bits of the eager step."""
    batches = Images(steps(options, 8), options)
    eager, _, _ = train(name, batches, options)
    state, _, plan = train(name, batches, options, graphs=True)
    off = gap(eager, state)
    verdict = (
        "captured" if plan["graph"] else f"not captured: {plan['why'].get('graph', 'the device captures nothing')}"
    )
    assert off == 0, f"{verdict}; expected the eager step's bits, got a difference of {off:.1e}"
    assert plan["graph"] or overview.tried(name).needs.host_waits or options.device == "cpu", verdict
    return {"verdict": verdict}


def skips(optimizer, options, **settings):
    """Train with and without a NaN batch among the others: the result is the same, to the bit."""
    seeds, settings = steps(options, 8), {"optimizer": optimizer, "nonfinite": "skip", **settings}
    some = seeds[: len(seeds) // 2]
    with_nan, record, _ = train("kd", Images([*some, None, *seeds[len(some) :]], options), options, **settings)
    without, _, _ = train("kd", Images(seeds, options), options, **settings)
    assert record["skipped_steps"] == 1, f"expected one skipped step, got {record['skipped_steps']}"
    off = gap(with_nan, without)
    assert off == 0, f"expected no mark of the skipped step, got a difference of {off:.1e}"
    return {}


def resumes(name, optimizer, options, **settings):
    """Stop in the middle of an epoch, resume, and get the bits of a run that was not stopped."""
    seeds, settings = steps(options, 8), {"optimizer": optimizer, **settings}
    at = len(seeds) // 2
    whole, _, _ = train(name, Images(seeds, options), options, **settings)
    with tempfile.TemporaryDirectory() as folder:
        keep = CheckpointSink(Checkpoints(Path(folder) / "c"), Path(folder) / "best", {})
        try:
            stopped = Images(seeds, options, stop_before=at)
            train(name, stopped, options, keep=keep, checkpoint_steps=at, **settings)
        except KeyboardInterrupt:
            pass
        saved = keep.checkpoints.load()
        assert saved is not None, "expected a checkpoint, got none"
        resumed, _, _ = train(name, Images(seeds, options), options, keep=keep, resume=saved, **settings)
    off = gap(whole, resumed)
    assert off == 0, f"expected the same bits, got a difference of {off:.1e}"
    return {}


def deterministic(check, options):
    """Do a check under the settings of a run with ``deterministic`` and ``fp32``."""
    torch.use_deterministic_algorithms(True)
    try:
        with float32_products(torch.device(options.device), "fp32"):
            return check(options)
    finally:
        torch.use_deterministic_algorithms(False)


def near_float64(form, name, dtype, shape, options):
    """Compare a kernel with float64; on failure, report the errors."""
    row = kernel_checks.errors(form, name, dtype, shape, options.device)
    found = {key: row[key] for key in ("value", "gradient", "written")}
    assert row["holds"], f"expected errors of at most {kernel_checks.MOST[form]} and all written, got {found}"
    return found


def kernel_items(options):
    """Return the kernel checks with their time limits in seconds, by name; the last may break a process."""
    shapes, checks = kernel_checks.SHAPES["cpu" if options.small else "cuda"], {}
    cases = {
        f"{name} {str(dtype).removeprefix('torch.')} {shape[0]} x {shape[1]}": (name, dtype, shape)
        for name in kernel_checks.LOSSES
        for dtype in kernel_checks.DTYPES
        for shape in shapes
    }
    for form in kernel_checks.FORMS:
        checks |= {f"{form} near float64: {case}": partial(near_float64, form, *cases[case]) for case in cases}
        of_form = partial(kernel_checks.waits_for_nothing, form)
        checks |= {f"{form} without a host wait: {case}": partial(of_form, *cases[case]) for case in cases}
    checks |= {
        f"kernels in a compiled caller: {name}": partial(kernel_checks.compiled, name, torch.bfloat16, shapes[-1])
        for name in kernel_checks.LOSSES
    }
    checks |= {f"kernels in a graph: {case}": partial(kernel_checks.captured, *cases[case]) for case in cases}
    return {name: (30.0, partial(check, options)) for name, check in checks.items()}


def items(options):
    """Return each check with its time limit in seconds, by name."""
    names = [name for name in objectives.PRESETS if name not in OF_TOKENS]
    waiting = {f"no host wait: {name}": (20.0, partial(waits, name, options)) for name in names}
    checks = {}
    for graphs, form in ((False, ""), (True, ", replayed")):
        for optimizer in (SGD(), SGD(momentum=0.0), AdamW()):
            momentum = "" if getattr(optimizer, "momentum", 1.0) else " without momentum"
            checks[f"NaN step skipped: {optimizer.name}{momentum}{form}"] = partial(skips, optimizer, graphs=graphs)
        for name, optimizer in (("kd", SGD()), ("kd", AdamW()), ("crd", SGD())):
            checks[f"resumed to the bit: {name} {optimizer.name}{form}"] = partial(
                resumes, name, optimizer, graphs=graphs
            )
    checks |= {f"as on the CPU: {name}": partial(as_on_the_cpu, name) for name in names}
    checks |= {f"replayed: {name}": partial(replayed, name) for name in names}  # last: a break costs a process
    bits = {name: (20.0, partial(deterministic, check, options)) for name, check in checks.items()}
    return kernel_items(options) | waiting | bits


def report(entries):
    """Print failures and captures; return the counts."""
    failed = {item: entry["error"] for item, entry in entries.items() if entry["status"] == "FAIL"}
    for item, error in failed.items():
        print(f"  FAIL {item}: {error}")
    verdicts = {
        item.removeprefix("replayed: "): entry["result"]["verdict"]
        for item, entry in entries.items()
        if "verdict" in entry.get("result", {})
    }
    for verdict in dict.fromkeys(verdicts.values()):
        print(f"  {verdict}: {', '.join(name for name in verdicts if verdicts[name] == verdict)}")
    print(f"  {len(entries) - len(failed)} of {len(entries)} checks hold")
    return {"held": len(entries) - len(failed), "of": len(entries)}
