"""Time cross-entropy with a loss on logits on a GPU, forward and backward: from logits, and with the last layer.

`bench_losses.py` and `bench_linear.py` measure these forms with ``--device cuda``, and `gpu.py` in its parts. Time is
measured between two events on the device, for every call. Memory is the peak of a call beyond its inputs, gradients
included. Compiling happens in the first call, which does not count. The floors are arithmetic: logits read once and
their gradient written, at the memory's speed; four matrix products, at the speed of bfloat16 products.
"""

import re
import statistics
import time
from functools import cache, partial
from importlib.util import find_spec
from itertools import pairwise

import output
import torch

from tutelage import kernels, losses
from tutelage.benchmark import linear, timing
from tutelage.benchmark.losses import BETA, FORMS, GAMMA, KERNELS, REFERENCE, weighted
from tutelage.kernels.divergence import KINDS
from tutelage.runs import manifest

SHAPES = {(4096, 32_000): ("bfloat16", "float16", "float32"), (8192, 128_256): ("bfloat16",)}
"""Dtypes by batch and classes."""
LAYER = {"tokens": 4096, "width": 2048, "classes": 128_256}
TEMPERATURE = 4.0
LOSSES = {
    "wttm": partial(losses.wttm, gamma=GAMMA),
    "kd": partial(losses.kd, temperature=TEMPERATURE),
    "ttm": partial(losses.ttm, gamma=GAMMA),
} | {kind: partial(losses.divergence, kind=kind) for kind in KINDS}
BETAS = {"kd": 0.0, "jensen_shannon": 0.5}
"""Beta of other packages' generalised Jensen-Shannon divergence, which at 0 is the forward one."""
RATES = {r"\bH100 80GB HBM3$": (3e12, 7e14), r"\bH200\b(?!.*MIG)": (4.3e12, 7e14)}
"""Bytes and bfloat16 operations per second. The H100's data sheet says 3.35e12 and 9.9e14; 3e12 and 7e14 are used here.
The H200's says 4.8e12 for its memory; the same share is used, and its processor is the same."""
ALGORITHM, COMPILED = REFERENCE.removeprefix("reference: "), "losses, compiled"
MOST_TIMES, MOST_MB = 1.3, 600.0
"""Goals of the last layer: time relative to whole logits and to `COMPILED`; MB added."""


def clocked(step, n, device):
    """Return the milliseconds of each of ``n`` calls, without waits between them on a GPU."""
    if device == "cpu":
        ends = [time.perf_counter()]
        for _ in range(n):
            step()
            ends.append(time.perf_counter())
        return [1e3 * (after - before) for before, after in pairwise(ends)]
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(n)]
    for began, ended in events:
        began.record()
        step()
        ended.record()
    torch.cuda.synchronize()
    return [began.elapsed_time(ended) for began, ended in events]


def known_rates(name):
    """Return the known figures of a device of this name; none for others and for a part of one."""
    return next((known for pattern, known in RATES.items() if re.search(pattern, name)), None)


@cache
def rates(device, small):
    """Return the bytes and the bfloat16 operations per second, and their source."""
    if device == "cuda" and (known := known_rates(torch.cuda.get_device_name())):
        return *known, "as known of this device"
    source = torch.zeros(1 << (16 if small else 30), dtype=torch.uint8, device=device)
    target, matrix = torch.empty_like(source), torch.randn(2 * (32 if small else 8192,), device=device).bfloat16()
    steps = partial(target.copy_, source), partial(torch.mm, matrix, matrix)
    copied, multiplied = (1e-3 * statistics.median(clocked(step, 10, device)[3:]) for step in steps)
    return 2 * len(source) / copied, 2 * len(matrix) ** 3 / multiplied, "by a copy and a product, measured here"


def logits_floor(options, size):
    """Return the seconds to read and write so many bytes, and their source."""
    memory, _, source = rates(options.device, options.small)
    return size / memory, source


def layer_floor(options, count):
    """Return the seconds for so many operations of products, and their source."""
    _, operations, source = rates(options.device, options.small)
    return count / operations, source


def draw_logits(options, batch, classes, dtype):
    """Draw a student's and a teacher's logits, and labels."""
    draw = torch.Generator(options.device).manual_seed(0)
    random = partial(torch.randn, generator=draw, device=options.device, dtype=getattr(torch, dtype))
    labels = torch.randint(classes, (batch,), generator=draw, device=options.device)
    return [random(batch, classes).mul_(3).requires_grad_(), random(batch, classes).mul_(5), labels]


def draw_layer(options, tokens, width, classes):
    """Draw hidden states and weights of student and teacher, and labels."""
    draw = torch.Generator(options.device).manual_seed(0)
    random = partial(torch.randn, generator=draw, device=options.device, dtype=torch.bfloat16)
    tensors = [random(rows, width).mul_(by) for rows, by in ((tokens, 1), (classes, 3 / width**0.5)) * 2]
    for tensor in tensors[:2]:
        tensor.requires_grad_()
    return [*tensors, torch.randint(classes, (tokens,), generator=draw, device=options.device)]


def measure(loss, tensors, *, n):
    """Time ``n`` calls forward and backward after two warm-up calls; measure peak memory in another."""
    device, added = tensors[0].device.type, None

    def step():
        value = loss(*tensors)
        value.backward()
        for tensor in tensors:
            tensor.grad = None
        return value.detach()

    began = time.perf_counter()
    step()
    timing.synchronize()
    first, value = time.perf_counter() - began, step().item()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        timing.synchronize()
        added = (torch.cuda.max_memory_allocated() - before) / 1e6
    taken = clocked(step, n, device)
    figures = {"n": n, "ms": statistics.median(taken), "least": min(taken), "most": max(taken), "added_mb": added}
    return figures | {"first_call_s": first, "loss": value}


def both(loss, z, v, labels):
    """Compute cross-entropy and the loss, one after the other."""
    return losses.cross_entropy(z, labels), loss(z, v)


def liger(beta, z, v, labels):
    """Compute Liger's divergence, which takes log-probabilities: the loss alone."""
    from liger_kernel.transformers import LigerJSD

    return LigerJSD(beta=beta)(z.log_softmax(-1), v.log_softmax(-1))


def liger_layer(beta, hidden, weight, teacher_hidden, teacher_weight, labels):
    """Compute Liger's last layer with its divergence: the loss alone."""
    from liger_kernel.transformers import LigerFusedLinearJSD

    return LigerFusedLinearJSD(jsd_beta=beta)(hidden, weight, teacher_hidden, teacher_weight, labels)


def trl(beta, z, v, labels):
    """Compute the divergence of TRL's GKD trainer: the loss alone."""
    try:
        from trl.experimental.gkd import GKDTrainer
    except ModuleNotFoundError:  # Versions before it was moved.
        from trl import GKDTrainer
    return GKDTrainer.generalized_jsd_loss(z[None], v[None], beta=beta, reduction="sum") / len(z)


def forms_of(name, *, layer, small):
    """Return the forms of a loss, each with how `run` calls it, by title; each returns the loss to train on."""
    whole = linear.whole if layer else lambda form: lambda *tensors: weighted(*form(*tensors))
    loss = LOSSES[name]
    plain = {"losses": whole(partial(both, loss))}
    if name == "wttm":
        plain = {ALGORITHM: whole(FORMS[REFERENCE])} | plain
    forms = {title: (form, {}) for title, form in plain.items()}
    if not small:  # Compiling takes as long for small sizes.
        forms |= {f"{title}, compiled": (form, {"compiled": True}) for title, form in plain.items()}
    forms[KERNELS] = linear.chunked(loss) if layer else whole(partial(kernels.cross_entropy_and, loss)), {}
    if name in BETAS:
        form = partial(liger_layer if layer else liger, BETAS[name])
        forms["Liger, the loss alone"] = form, {"package": "liger_kernel"}
        if not layer:
            forms["TRL, the loss alone"] = partial(trl, BETAS[name]), {"package": "trl"}
    return forms


def run(form, draw, floor, n, options, *, package=None, compiled=False):
    """Measure a form, and free the device's memory for the next; say so if its package is missing."""
    if package and find_spec(package) is None:
        return {"left_out": f"{package} is not installed"}
    try:
        seconds, source = floor()
        form = torch.compile(form, dynamic=False) if compiled else form
        return measure(form, draw(), n=2 if options.small else n) | {"floor_ms": 1e3 * seconds, "floor": source}
    finally:
        torch.compiler.reset()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def logits_items(options):
    """Return each form of each shape, dtype and loss."""
    jobs = {}
    for (batch, classes), dtypes in ({(8, 50): ("bfloat16", "float32")} if options.small else SHAPES).items():
        for dtype in dtypes:
            draw = partial(draw_logits, options, batch, classes, dtype)
            floor = partial(logits_floor, options, 3 * batch * classes * getattr(torch, dtype).itemsize)
            for name in ("wttm", "kd", "ttm", "jensen_shannon"):
                for title, (form, how) in forms_of(name, layer=False, small=options.small).items():
                    job = partial(run, form, draw, floor, 20, options, **how)
                    jobs[f"{batch} x {classes}, {dtype}, {name}: {title}"] = job
    return jobs


def layer_items(options, **size):
    """Return each form of the last layer with each loss."""
    size = {"tokens": 6, "width": 4, "classes": 9} if options.small else LAYER | size
    shape = "{tokens} tokens, width {width}, {classes} classes, bfloat16".format(**size)
    draw = partial(draw_layer, options, **size)
    # One product for each network's logits, and two for the gradients.
    floor = partial(layer_floor, options, 4 * 2 * size["tokens"] * size["width"] * size["classes"])
    return {
        f"{shape}, {name}: {title}": partial(run, form, draw, floor, 10, options, **how)
        for name in ("wttm", "kd", "jensen_shannon")
        for title, (form, how) in forms_of(name, layer=True, small=options.small).items()
    }


def items(options):
    """Return each form with its time limit in seconds."""
    return {name: (60.0, job) for name, job in (logits_items(options) | layer_items(options)).items()}


def report(entries):
    """Print time, memory and ratios to the floor and the compiled plain forms; return them by shape and form."""
    tables = {}
    for item, entry in entries.items():
        title, form = item.split(": ", 1)
        tables.setdefault(title, {})[form] = entry
    results = {
        title: {form: e["result"] for form, e in forms.items() if "ms" in e.get("result", {})}
        for title, forms in tables.items()
    }
    for title, forms in tables.items():
        algorithm = results.get(f"{title.rpartition(', ')[0]}, wttm", {}).get(f"{ALGORITHM}, compiled")
        plain = results[title].get(COMPILED)
        print(f"  {title}")
        for form, entry in forms.items():
            result = results[title].get(form)
            if result is None:
                why = f"left out: {entry['result']['left_out']}" if "result" in entry else f"FAIL: {entry['error']}"
                print(f"    {form:<24} {why}")
                continue
            ratios = {"the floor": result["floor_ms"]}
            ratios |= {what: r["ms"] for what, r in ((f"{ALGORITHM}, compiled", algorithm), (COMPILED, plain)) if r}
            memory = "" if result["added_mb"] is None else f", {result['added_mb']:,.0f} MB added"
            print(
                f"    {form:<24}{result['ms']:9.3g} ms ({result['least']:.3g} to {result['most']:.3g}, "
                f"n = {result['n']}){memory}; "
                + ", ".join(f"{result['ms'] / ms:.2f} times {what}" for what, ms in ratios.items())
            )
            if form == KERNELS and "tokens" in title:
                print(f"    {'':<24} goals: at most {MOST_TIMES} times {COMPILED}, at most {MOST_MB:.0f} MB")
        floors = {(result["floor_ms"], result["floor"]) for result in results[title].values()}
        for ms, source in floors:
            print(f"    {'floor':<24}{ms:9.3g} ms, {source}")
    return {"ms": {title: {form: r["ms"] for form, r in forms.items()} for title, forms in results.items()}}


def bench(parser, options, jobs, wanted):
    """Measure the jobs whose names contain what is wanted, print the table and record it; the exit status is 1 if one
    failed."""
    output.require_device(parser, options)
    hardware, software = manifest.hardware(torch.device(options.device)), manifest.software()
    if options.result and (options.small or options.device == "cpu"):
        parser.error(f"RESULT: expected none in small or on a CPU, got {options.result}; type it with --device cuda")
    before = output.read(options.result)
    if before and (before.get("hardware", {}).get("gpu"), before["software"]["torch"]) != (
        hardware["gpu"],
        software["torch"],
    ):
        parser.error(
            f"RESULT: expected one of {hardware['gpu']} and torch {software['torch']}, got that of another in "
            f"{options.result}; type another name"
        )
    chosen = [name for name in jobs if not wanted or any(part in name for part in wanted)]
    if not chosen:
        parser.error(f"PART: expected a part of a name such as {next(iter(jobs))!r}, got {', '.join(wanted)}")
    entries, failed = before.get("items", {}) if wanted else {}, False
    for name in chosen:
        try:
            entries[name] = {"result": jobs[name]()}
        except Exception as error:  # noqa: BLE001  another package's form, or one that does not fit in memory
            failed, entries[name] = True, {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"}
        entries[name] |= {"commit": manifest.version()["commit"]}
        print(".", end="", flush=True)
        output.write(
            options.result,
            {"gamma": GAMMA, "beta": BETA, "temperature": TEMPERATURE}
            | {"hardware": hardware, "software": software, "items": entries},
        )
    print("\nin small: that it runs is all that this says" if options.small else "")
    report(entries)
    parser.exit(int(failed))
