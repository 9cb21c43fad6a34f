"""Compare the kernels with the plain functions in float64, and print the errors as a table in Markdown.

    python benchmarks/kernel_checks.py [--write RESULT.json] [--device cuda] [--small]

By default Triton's interpreter computes, on the CPU and in tiny shapes; it truncates float32 to bfloat16 where a device
rounds. All memory that a kernel must fill is NaN beforehand. The error of values is the largest one, relative to the
value if that is above 1; the error of a gradient is relative to the largest entry of its tensor. For `kernels.linear`
the values are the three that it returns, and the gradients those of hidden states and weights. Given a file name, the
script records the errors with the machine and the versions, and the table next to them. The exit status is 1 if an
error is too large. `gpu.py` does these checks on a GPU, and `compiled`, `captured` and `waits_for_nothing`.
"""

import os
import sys
import warnings
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path

import gpu_losses
import output
import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests._helpers.cuda import no_host_wait

from tutelage import kernels, losses
from tutelage.kernels import logits
from tutelage.runs import manifest
from tutelage.types import UNLABELLED

LOSSES = gpu_losses.LOSSES
DTYPES = torch.float32, torch.bfloat16, torch.float16
SHAPES = {"cpu": ((5, 9), (3, 2100)), "cuda": ((5, 9), (256, 32_000))}
"""Rows and classes."""
WIDTH = 16
FORMS = "cross_entropy_and", "linear"
MOST = {
    "cross_entropy_and": {"value": (2e-5, 2e-5, 2e-5), "gradient": (2e-5, 1.2e-2, 1.5e-3)},
    "linear": {"value": (5e-5, 3e-2, 4e-3), "gradient": (5e-5, 3e-2, 4e-3)},
}
"""Largest errors, in the order of `DTYPES`. A gradient is rounded to its dtype, and in `linear` the logits are too."""


@contextmanager
def filled_with_nan():
    """Fill new memory with NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def draw(form, shape, dtype, device, *, seed=0):
    """Return a form's arguments after the loss: the trained ones first, labels last, one of them missing."""
    generator = torch.Generator().manual_seed(seed)
    rows, classes = shape
    shapes = (shape,) * 2 if form == "cross_entropy_and" else ((rows, WIDTH), (classes, WIDTH)) * 2
    tensors = [torch.randn(s, generator=generator) for s in shapes]
    if form == "cross_entropy_and":
        tensors = [3 * tensor for tensor in tensors]
    else:
        tensors[1::2] = [weight * (3 / WIDTH**0.5) for weight in tensors[1::2]]
    labels = torch.randint(classes, (rows,), generator=generator)
    labels[1] = UNLABELLED
    return [*(tensor.to(device, dtype) for tensor in tensors), labels.to(device)]


def learned(form):
    return 1 if form == "cross_entropy_and" else 2


def outcome(form, loss, tensors):
    """Return the values of a form and its gradients."""
    learning = [tensor.detach().requires_grad_() for tensor in tensors[: learned(form)]]
    if form == "cross_entropy_and":
        values = kernels.cross_entropy_and(loss, *learning, *tensors[1:])
        total = values[0].mean() + 2 * values[1].mean()
    else:
        total, parts = kernels.linear(loss, *learning, *tensors[2:], weight=2.0)
        values = total.detach(), *parts.values()
    return [value.detach() for value in values], torch.autograd.grad(total, learning)


def exact(form, loss, tensors):
    """Return the same as `outcome`, by the plain functions in float64 on the CPU."""
    *floating, labels = (tensor.detach().cpu() for tensor in tensors)
    floating = [tensor.double() for tensor in floating]
    learning = [tensor.requires_grad_() for tensor in floating[: learned(form)]]
    z, v = floating if form == "cross_entropy_and" else (F.linear(*floating[k : k + 2]) for k in (0, 2))
    ce, values = losses.cross_entropy(z, labels), loss(z, v)
    if form == "cross_entropy_and":
        total, returned = ce.mean() + 2 * values.mean(), (ce, values)
    else:
        means = ce.sum() / (labels != UNLABELLED).sum(), values.mean()
        total = means[0] + 2 * means[1]
        returned = total, *means
    return [value.detach() for value in returned], torch.autograd.grad(total, learning)


def errors(form, name, dtype, shape, device):
    """Return a form's errors of value and gradient, whether it writes all outputs, and whether `MOST` holds."""
    loss = LOSSES[name]
    tensors = draw(form, shape, dtype, device)
    with filled_with_nan():
        ours = [[x.cpu().double() for x in each] for each in outcome(form, loss, tensors)]
    values, gradients = exact(form, loss, tensors)
    written = all(bool(x.isfinite().all()) for each in ours for x in each)
    value = max(float(((x - y).abs() / y.abs().clamp(min=1)).max()) for x, y in zip(ours[0], values, strict=True))
    gradient = max(float((x - y).abs().max() / y.abs().max()) for x, y in zip(ours[1], gradients, strict=True))
    most = {what: by_dtype[DTYPES.index(dtype)] for what, by_dtype in MOST[form].items()}
    return {
        "form": form,
        "loss": name,
        "dtype": str(dtype).removeprefix("torch."),
        "shape": " x ".join(map(str, shape)),
        "value": value,
        "gradient": gradient,
        "written": written,
        "holds": written and value <= most["value"] and gradient <= most["gradient"],
    }


def table(rows):
    """Yield the lines of a table in Markdown."""
    yield "| form | loss | dtype | rows x classes | error of the value | of the gradient | all written | holds |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in rows:
        written, holds = ("yes" if row[key] else "NO" for key in ("written", "holds"))
        yield (
            f"| `{row['form']}` | {row['loss']} | {row['dtype']} | {row['shape']} "
            f"| {row['value']:.1e} | {row['gradient']:.1e} | {written} | {holds} |"
        )


def compiled(name, dtype, shape, options):
    """Check that a compiled caller gives the eager values and gradient."""
    tensors = draw("cross_entropy_and", shape, dtype, options.device)

    def call(z, v, labels):
        ce, values = kernels.cross_entropy_and(LOSSES[name], 2 * z, v, labels)
        return ce.mean() + 3 * values.mean(), ce, values

    torch.compiler.reset()  # Few recompilations of one function are allowed.
    backend = "aot_eager" if options.small else "inductor"
    results = []
    for form in (call, torch.compile(call, fullgraph=True, backend=backend)):
        z = tensors[0].detach().requires_grad_()
        total, *values = form(z, *tensors[1:])
        results.append([*(value.detach() for value in values), *torch.autograd.grad(total, z)])
    torch.testing.assert_close(*results[::-1])
    return {}


def captured(name, dtype, shape, options):
    """Check that forward and backward, captured and replayed on other logits, give the eager bits."""
    first, other = (draw("cross_entropy_and", shape, dtype, options.device, seed=seed) for seed in (0, 1))

    def step():
        values, gradients = outcome("cross_entropy_and", LOSSES[name], first)
        return [*values, *gradients]

    replay = step
    if options.device == "cuda":
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = step()

        def replay():
            graph.replay()
            return [output.clone() for output in outputs]

    for tensor, new in zip(first, other, strict=True):
        tensor.copy_(new)
    ours, theirs = replay(), step()
    off = [k for k, (x, y) in enumerate(zip(ours, theirs, strict=True)) if not torch.equal(x, y)]
    named = ", ".join(("cross-entropy", "loss", "gradient")[k] for k in off)
    assert not off, f"expected the eager step's bits, got others of the {named}"
    return {"watched": options.device == "cuda"}


def waits_for_nothing(form, name, dtype, shape, options):
    """Check that forward and backward, after a first run, never make the host wait."""
    tensors = draw(form, shape, dtype, options.device)
    outcome(form, LOSSES[name], tensors)
    with no_host_wait() if options.device == "cuda" else nullcontext():
        outcome(form, LOSSES[name], tensors)
    return {"watched": options.device == "cuda"}


@contextmanager
def interpreted():
    """Compute in Triton's interpreter, on the CPU."""
    if os.environ.get("TRITON_INTERPRET") != "1":  # Triton reads it on import, which torch has done by now.
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"TRITON_INTERPRET": "1"})
    before, logits.TRITON_DEVICES = logits.TRITON_DEVICES, frozenset({"cpu"})
    try:
        with warnings.catch_warnings():  # It computes with NumPy, which warns of inf - inf.
            warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"triton\.")
            yield
    finally:
        logits.TRITON_DEVICES = before


if __name__ == "__main__":
    parser = output.parser(__doc__)
    parser.add_argument("--write", type=Path)
    output.add_device(parser)
    arguments = parser.parse_args()
    output.require_device(parser, arguments)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch requires it for deterministic algorithms.
    cases = [
        (form, name, dtype, shape)
        for form in FORMS
        for name in LOSSES
        for dtype in DTYPES
        for shape in SHAPES["cpu" if arguments.small else arguments.device]
    ]
    with interpreted() if arguments.device == "cpu" else nullcontext():
        rows = [errors(*case, arguments.device) for case in cases]
    lines = list(table(rows))
    print("\n".join(lines))
    if arguments.write:
        hardware = manifest.hardware(torch.device(arguments.device))
        how = {"interpreted": arguments.device == "cpu", "n": 1, "triton": version("triton")}
        output.write(arguments.write, {**how, "hardware": hardware, "most": MOST, "errors": rows})
        where = hardware["gpu"] or "Triton's interpreter"
        head = f"{where}, torch {torch.__version__}, Triton {how['triton']}; n = 1, seed 0"
        text = ["# Kernels against the plain functions in float64", "", head, "", *lines, ""]
        arguments.write.with_suffix(".md").write_text("\n".join(text))
    sys.exit(not all(row["holds"] for row in rows))
