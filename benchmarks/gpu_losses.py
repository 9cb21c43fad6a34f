"""Cross-entropy and WTTM on a GPU, forward and backward in bfloat16: of logits, and of the last layer with them.

Seconds by the clock on the wall, the device waited for; memory is the peak of a call beyond what it was given, its
gradients included. Compiling is in the first call, which does not count. The floors are arithmetic, not measured.
"""

import statistics
import time
from functools import partial

import torch

from tutelage.benchmark import linear, losses, timing

SHAPES = (4096, 32_000), (8192, 128_256)
LAYER = {"tokens": 4096, "width": 2048, "classes": 128_256}
BYTES_A_SECOND = 3e12
"""An H100's memory, of which the data sheet says 3.35e12."""
OPERATIONS_A_SECOND = 7e14
"""What bfloat16 products reach on an H100, of which the data sheet says 9.9e14."""


def inputs(options, batch, classes):
    """Draw logits of a student and a teacher, and labels."""
    draw = torch.Generator(options.device).manual_seed(0)
    random = partial(torch.randn, generator=draw, device=options.device, dtype=torch.bfloat16)
    labels = torch.randint(classes, (batch,), generator=draw, device=options.device)
    return [random(batch, classes).mul_(3).requires_grad_(), random(batch, classes).mul_(5), labels]


def layer_inputs(options, tokens, width, classes):
    """Draw hidden states and weights of student and teacher, and labels."""
    draw = torch.Generator(options.device).manual_seed(0)
    shapes = ((tokens, width), (classes, width)) * 2
    tensors = [
        torch.randn(shape, generator=draw, device=options.device, dtype=torch.bfloat16)
        * (3 / width**0.5 if k % 2 else 1)
        for k, shape in enumerate(shapes)
    ]
    for tensor in tensors[:2]:
        tensor.requires_grad_()
    return [*tensors, torch.randint(classes, (tokens,), generator=draw, device=options.device)]


def measure(loss, tensors, *, n):
    """Time ``n`` calls forward and backward after two that warm up, and take the peak of memory of another."""
    cuda = tensors[0].is_cuda

    def step():
        value = loss(*tensors)
        value.backward()
        for tensor in tensors:
            tensor.grad = None
        return value.detach()

    began = time.perf_counter()
    step()
    timing.synchronize()
    first, added = time.perf_counter() - began, None
    value = step().item()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        timing.synchronize()
        added = (torch.cuda.max_memory_allocated() - before) / 1e6
    taken = []
    for _ in range(n):
        timing.synchronize()
        began = time.perf_counter()
        step()
        timing.synchronize()
        taken.append(1e3 * (time.perf_counter() - began))
    return {"n": n, "ms": statistics.median(taken), "least": min(taken), "most": max(taken), "added_mb": added} | {
        "first_call_s": first,
        "loss": value,
    }


def of_logits(form, compiled, shape, options):
    """Measure one form of the two losses."""
    form = torch.compile(form, dynamic=False) if compiled else form
    result = measure(
        lambda *tensors: losses.weighted(*form(*tensors)), inputs(options, *shape), n=2 if options.small else 20
    )
    # Reads both logits and writes the gradient, once each.
    return result | {"floor_ms": 1e3 * 3 * 2 * shape[0] * shape[1] / BYTES_A_SECOND}


def of_layer(form, compiled, options, *, tokens, width, classes):
    """Measure one form of the last layer with the losses."""
    form = torch.compile(form, dynamic=False) if compiled else form
    result = measure(form, layer_inputs(options, tokens, width, classes), n=2 if options.small else 10)
    # A product for each network's logits, and two for the gradients.
    return result | {"floor_ms": 1e3 * 4 * 2 * tokens * width * classes / OPERATIONS_A_SECOND}


def items(options):
    """Return each form of each shape with the seconds that it may take."""
    shapes, layer = (((8, 50),), {"tokens": 6, "width": 4, "classes": 9}) if options.small else (SHAPES, LAYER)
    # In small nothing is compiled: that takes as long for small sizes.
    forms = {
        f"{name.removeprefix('reference: ')}{', compiled' if compiled else ''}": (name, compiled)
        for compiled in ((False,) if options.small else (False, True))
        for name in losses.FORMS
        if not (compiled and name == losses.KERNELS)
    }
    jobs = {
        f"{batch} x {classes}: {title}": partial(of_logits, losses.FORMS[name], compiled, (batch, classes), options)
        for batch, classes in shapes
        for title, (name, compiled) in forms.items()
    }
    title = "{tokens} tokens, width {width}, {classes} classes".format(**layer)
    jobs |= {
        f"{title}: {form}": partial(of_layer, linear.FORMS[name], compiled, options, **layer)
        for form, (name, compiled) in forms.items()
    }
    return {name: (60.0, _freed(job)) for name, job in jobs.items()}


def _freed(job):
    """Return a job after which the device's memory is free for the next."""

    def run():
        try:
            return job()
        finally:
            torch.compiler.reset()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    return run


def report(entries):
    """Print time and memory; return them by shape and form."""
    tables = {}
    for item, entry in entries.items():
        shape, form = item.split(": ", 1)
        tables.setdefault(shape, {})[form] = entry
    for shape, forms in tables.items():
        floors = [entry["result"]["floor_ms"] for entry in forms.values() if "result" in entry]
        print(f"  {shape}{f', floor {floors[0]:.3g} ms' if floors else ''}")
        for form, entry in forms.items():
            if "error" in entry:
                print(f"    FAIL {form}: {entry['error']}")
                continue
            result = entry["result"]
            memory = "" if result["added_mb"] is None else f", {result['added_mb']:,.0f} MB added"
            spread = f"{result['least']:.3g} to {result['most']:.3g}, n = {result['n']}"
            print(
                f"    {form:<26}{result['ms']:10.3g} ms ({spread}){memory}, first call {result['first_call_s']:.1f} s"
            )
    ms = {
        form: {name: e["result"]["ms"] for name, e in entries.items() if "result" in e}
        for form, entries in tables.items()
    }
    return {"ms": ms}
