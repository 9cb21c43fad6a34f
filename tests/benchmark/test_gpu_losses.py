"""Losses and kernels on a GPU, in small on a CPU: the forms are one loss, a form costs no other, errors are found."""

import importlib
import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from tests._helpers import ROOT

from tutelage import losses

SMALL = SimpleNamespace(device="cpu", small=True, result=None)
GPU = {"device": "cuda", "gpu": "a GPU", "processor": "a processor"}
RESULT = {"n": 3, "least": 0.9, "most": 1.1, "added_mb": 5.0, "first_call_s": 9.0, "loss": 2.0}
RESULT |= {"floor_ms": 0.5, "floor": "as known of this device"}


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


@pytest.fixture
def gpu_losses(script):
    return script("gpu_losses")


@pytest.fixture
def checks(script, monkeypatch):
    pytest.importorskip("triton")
    module = script("kernel_checks")
    with module.interpreted():
        yield module


# The forms


@pytest.mark.parametrize("name", ["wttm", "kd", "ttm", "jensen_shannon"])
def test_the_forms_of_logits_are_one_loss(name, gpu_losses):
    drawn = gpu_losses.draw_logits(SMALL, 6, 9, "float32")
    forms = gpu_losses.forms_of(name, layer=False, small=False)
    assert {"losses", "losses, compiled", "kernels"} <= forms.keys()
    assert ("Algorithm 1, compiled" in forms) == (name == "wttm")
    values = [form(*drawn).detach() for form, how in forms.values() if "package" not in how]
    for value in values[1:]:
        torch.testing.assert_close(value, values[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["wttm", "kd", "jensen_shannon"])
def test_the_forms_of_the_last_layer_are_one_loss(name, gpu_losses):
    drawn = gpu_losses.draw_layer(SMALL, 6, 4, 9)
    wide = [x.detach().float() if x.is_floating_point() else x for x in drawn]
    forms = gpu_losses.forms_of(name, layer=True, small=False)
    values = [form(*wide) for form, how in forms.values() if "package" not in how]
    for value in values[1:]:
        torch.testing.assert_close(value, values[0], rtol=1e-5, atol=1e-5)


def of_beta(beta, z, v):
    kind = {"kind": "jensen_shannon", "beta": beta} if beta else {"kind": "forward"}
    return losses.divergence(z, v, **kind).mean()


def stand_ins():
    """Other packages as they document themselves: their arguments, and their `beta`."""
    liger, trl = ModuleType("liger_kernel.transformers"), ModuleType("trl.experimental.gkd")
    liger.LigerJSD = lambda beta: lambda log_q, log_p: of_beta(beta, log_q, log_p)
    liger.LigerFusedLinearJSD = lambda jsd_beta: (
        lambda h, w, th, tw, shift_labels: of_beta(jsd_beta, h @ w.T, th @ tw.T)
    )

    def generalized_jsd_loss(z, v, labels=None, beta=0.5, temperature=1.0, reduction="batchmean"):
        assert (z.ndim, reduction) == (3, "sum")
        return z.shape[1] * of_beta(beta, z, v)

    trl.GKDTrainer = SimpleNamespace(generalized_jsd_loss=generalized_jsd_loss)
    return {module.__name__: module for module in (liger, trl)}


@pytest.mark.parametrize(
    ("name", "loss"), [("kd", {"kind": "forward"}), ("jensen_shannon", {"kind": "jensen_shannon"})]
)
def test_what_others_compute_is_the_loss_alone(name, loss, gpu_losses, monkeypatch):
    for module, stand_in in stand_ins().items():
        monkeypatch.setitem(sys.modules, module, stand_in)
    z, v, labels = gpu_losses.draw_logits(SMALL, 6, 9, "float32")
    layer = [x.float() if x.is_floating_point() else x for x in gpu_losses.draw_layer(SMALL, 6, 4, 9)]
    expected = losses.divergence(z, v, **loss).mean()
    of_layer = losses.divergence(layer[0] @ layer[1].T, layer[2] @ layer[3].T, **loss).mean()
    forms = gpu_losses.forms_of(name, layer=False, small=True)
    for title in ("Liger, the loss alone", "TRL, the loss alone"):
        torch.testing.assert_close(forms[title][0](z, v, labels), expected)
    form = gpu_losses.forms_of(name, layer=True, small=True)["Liger, the loss alone"][0]
    torch.testing.assert_close(form(*layer), of_layer)


def test_a_package_that_is_missing_is_left_out_and_one_that_changed_fails_alone(gpu_losses, monkeypatch, capsys):
    def changed(z, v, labels):
        raise ImportError("cannot import name 'LigerJSD'")

    jobs = {
        f"8 x 50, bfloat16, kd: {title}": lambda form=form, how=how: gpu_losses.run(
            form, lambda: gpu_losses.draw_logits(SMALL, 8, 50, "bfloat16"), lambda: (1.0, "known"), 2, SMALL, **how
        )
        for title, form, how in (
            ("a", changed, {"package": "no_such_package"}),
            ("b", changed, {"package": "torch"}),
            ("c", lambda z, v, labels: z.sum() + v.sum(), {}),
        )
    }
    with pytest.raises(SystemExit) as ended:
        gpu_losses.bench(script_parser(), SMALL, jobs, [])
    text = capsys.readouterr().out
    assert ended.value.code == 1
    assert "left out: no_such_package is not installed" in text
    assert "FAIL: ImportError: cannot import name 'LigerJSD'" in text
    assert "n = 2); 0.00 times the floor" in text


# What is told and recorded


def script_parser():
    return importlib.import_module("output").parser("")


@pytest.mark.parametrize("script_name", ["bench_losses", "bench_linear"])
def test_all_forms_run_in_small_on_a_cpu(script_name, gpu_losses, capsys):
    items = gpu_losses.logits_items if script_name == "bench_losses" else gpu_losses.layer_items
    with pytest.raises(SystemExit) as ended:
        gpu_losses.bench(script_parser(), SMALL, items(SMALL), ["wttm", "jensen_shannon: kernels"])
    text = capsys.readouterr().out
    assert ended.value.code == 0, text
    assert "that it runs is all that this says" in text
    assert text.count("    kernels") == (4 if script_name == "bench_losses" else 2)
    assert "by a copy and a product, measured here" in text


def test_without_a_gpu_nothing_is_measured_or_written(gpu_losses, tmp_path, capsys):
    options = SimpleNamespace(device="cuda", small=False, result=tmp_path / "a.json")
    with pytest.raises(SystemExit) as ended:
        gpu_losses.bench(script_parser(), options, {}, [])
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert "--device: expected a GPU, got none that torch can see; type --device cpu --small" in error
    assert error.count("\n") == 1
    options.device, options.small = "cpu", True
    with pytest.raises(SystemExit):
        gpu_losses.bench(script_parser(), options, {}, [])
    assert "RESULT: expected none in small or on a CPU" in capsys.readouterr().err
    assert not options.result.exists()


def test_a_record_has_the_gpu_and_keeps_what_is_not_measured_anew(gpu_losses, script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script("output"), "require_device", lambda *_: None)
    monkeypatch.setattr(gpu_losses.manifest, "hardware", lambda device: GPU)
    options = SimpleNamespace(device="cuda", small=False, result=tmp_path / "a.json")
    jobs = {f"4096 x 5, float32, kd: {form}": lambda: RESULT | {"ms": 1.0} for form in ("kernels", "losses, compiled")}
    for wanted in ([], ["kd: kernels"]):
        with pytest.raises(SystemExit):
            gpu_losses.bench(script_parser(), options, jobs, wanted)
        jobs = {name: lambda: RESULT | {"ms": 2.0} for name in jobs}
    written = json.loads(options.result.read_text())
    assert [entry["result"]["ms"] for entry in written["items"].values()] == [2.0, 1.0]
    assert all("commit" in entry for entry in written["items"].values())
    assert (written["hardware"], written["gamma"]) == (GPU, 0.1)
    assert {"version", "commit", "software"} <= written.keys()
    for wanted, message in ((["no such"], "PART: expected a part of a name"), ([], "RESULT: expected one of another")):
        monkeypatch.setattr(
            gpu_losses.manifest,
            "hardware",
            lambda device, m=message: GPU | {"gpu": GPU["gpu"] if "PART" in m else "another"},
        )
        with pytest.raises(SystemExit):
            gpu_losses.bench(script_parser(), options, jobs, wanted)
        assert message in capsys.readouterr().err


def test_times_are_held_against_the_floor_and_the_compiled_plain_forms(gpu_losses, capsys):
    ms = {"wttm: Algorithm 1, compiled": 4.0, "wttm: losses, compiled": 2.0, "wttm: kernels": 1.0}
    ms |= {"kd: losses, compiled": 3.0, "kd: kernels": 1.5}
    layer = "4096 tokens, width 2, 3 classes, bfloat16, "
    entries = {
        of + name: {"result": RESULT | {"ms": value}}
        for of in ("4 x 5, bfloat16, ", layer)
        for name, value in ms.items()
    }
    summary = gpu_losses.report(entries)
    text = capsys.readouterr().out
    kernels = [line for line in text.splitlines() if "    kernels" in line]
    assert (
        "5 MB added; 2.00 times the floor, 0.25 times Algorithm 1, compiled, 0.50 times losses, compiled" in kernels[0]
    )
    assert "3.00 times the floor, 0.38 times Algorithm 1, compiled, 0.50 times losses, compiled" in kernels[1]
    assert text.count("goals: at most 1.3 times losses, compiled, at most 600 MB") == 2  # of the layer's two losses
    assert summary["ms"]["4 x 5, bfloat16, kd"] == {"losses, compiled": 3.0, "kernels": 1.5}


def test_floors_are_of_the_device_by_its_whole_name(gpu_losses):
    assert gpu_losses.known_rates("NVIDIA H100 80GB HBM3") == (3e12, 7e14)
    assert gpu_losses.known_rates("NVIDIA H200") == (4.3e12, 7e14)
    others = (
        "NVIDIA H100 PCIe",
        "NVIDIA GH200 480GB",
        "NVIDIA H200 MIG 1g.18gb",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "",
    )
    assert [gpu_losses.known_rates(name) for name in others] == [None] * len(others)


def test_floors_are_three_passes_over_the_logits_and_four_products(gpu_losses, monkeypatch):
    monkeypatch.setattr(gpu_losses, "rates", lambda *_: (100.0, 10.0, "known"))
    logits, layer = gpu_losses.logits_items(SMALL), gpu_losses.layer_items(SMALL)
    for dtype, size in (("bfloat16", 2), ("float32", 4)):
        assert logits[f"8 x 50, {dtype}, wttm: losses"]()["floor_ms"] == pytest.approx(1e3 * 3 * 8 * 50 * size / 100)
    (floor,) = {layer[name]()["floor_ms"] for name in layer if name.endswith("wttm: losses")}
    assert floor == pytest.approx(1e3 * 4 * 2 * 6 * 4 * 9 / 10)


def test_a_copy_reads_and_writes_and_a_product_multiplies_and_adds(gpu_losses, monkeypatch):
    monkeypatch.setattr(gpu_losses, "clocked", lambda step, n, device: [1e9] * 3 + [500.0] * (n - 3))
    memory, operations, source = gpu_losses.rates.__wrapped__("cpu", True)
    assert (memory, operations) == (2 * 2**16 / 0.5, 2 * 32**3 / 0.5)
    assert "measured here" in source


def test_memory_is_what_a_call_adds_to_what_it_was_given(gpu_losses, monkeypatch):
    monkeypatch.setattr(gpu_losses, "clocked", lambda step, n, device: [1.0] * n)
    cuda = {"empty_cache": None, "reset_peak_memory_stats": None, "memory_allocated": 7e6, "max_memory_allocated": 9e6}
    for name, value in cuda.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    given = SimpleNamespace(device=torch.device("cuda"), grad=None)
    result = gpu_losses.measure(lambda _: torch.ones((), requires_grad=True), [given], n=2)
    assert (result["added_mb"], result["ms"], result["n"]) == (2.0, 1.0, 2)


def test_calls_on_a_gpu_are_timed_between_events(gpu_losses, monkeypatch):
    seen = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            seen.append(self)

        def elapsed_time(self, ended):
            assert seen[-1] == "waited"
            return seen.index(ended) - seen.index(self)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: seen.append("waited"))
    assert gpu_losses.clocked(lambda: seen.append("step"), 2, "cuda") == [2, 2]
    assert seen.count("waited") == 1


# Kernels against float64


@pytest.mark.triton
@pytest.mark.parametrize("form", ["cross_entropy_and", "linear"])
def test_errors_of_kernels_are_small_and_what_is_not_written_is_seen(form, checks, monkeypatch):
    case = form, "jensen_shannon", torch.bfloat16, (5, 9), "cpu"
    row = checks.errors(*case)
    assert (row["holds"], row["written"], row["shape"]) == (True, True, "5 x 9")
    assert 0 < row["gradient"] <= max(checks.MOST[form]["gradient"])
    (line,) = list(checks.table([row]))[2:]
    assert line.startswith(f"| `{form}` | jensen_shannon | bfloat16 | 5 x 9 |")
    assert line.endswith("| yes | yes |")
    from tutelage.kernels import triton_sweeps

    def unwritten(self, z, teacher, part, of_ce, of_values, out):
        return torch.empty_like(out)

    monkeypatch.setattr(triton_sweeps.Sweeps, "backward", unwritten)
    row = checks.errors(*case)
    assert (row["written"], row["holds"]) == (False, False)
    monkeypatch.setattr(triton_sweeps.Sweeps, "backward", lambda *arguments: arguments[-1].fill_(1.0))
    row = checks.errors(*case) if form == "cross_entropy_and" else row | {"written": True}
    assert (row["written"], row["holds"]) == (True, False)


@pytest.mark.triton
def test_checks_of_kernels_for_a_gpu_run_in_the_interpreter(checks, monkeypatch):
    case = "kd", torch.float32, (5, 9), SMALL
    assert checks.compiled(*case) == {}
    assert checks.captured(*case) == {"watched": False}
    assert checks.waits_for_nothing("linear", *case) == {"watched": False}
    outcome, calls = checks.outcome, []

    def drifting(*arguments):
        calls.append(1)
        values, gradients = outcome(*arguments)
        return [value + len(calls) for value in values], gradients

    monkeypatch.setattr(checks, "outcome", drifting)
    with pytest.raises(AssertionError, match=r"bits, got others of the cross-entropy, loss$"):
        checks.captured(*case)


def test_an_error_that_is_too_large_is_told(script, monkeypatch):
    pytest.importorskip("triton")
    bugs = script("gpu_bugs")
    assert bugs.near_float64("linear", "wttm", torch.float32, (5, 9), SMALL)["written"]
    monkeypatch.setattr(bugs.kernel_checks, "MOST", {"linear": {"value": (0.0,), "gradient": (0.0,)}})
    with pytest.raises(AssertionError, match=r"expected errors of at most .*, got .*'gradient'"):
        bugs.near_float64("linear", "wttm", torch.float32, (5, 9), SMALL)
