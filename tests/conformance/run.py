"""Hold the losses against recorded values and gradients of the methods' own public code, or of their definitions.

    python tests/conformance/run.py tests/conformance/losses.jsonl
    python tests/conformance/run.py FILE.jsonl --methods KD,TTM

A row of the file is one case: a recipe for the inputs, hyperparameters, the loss, its gradients and the tolerances.
Every row whose method stands in `METHODS` is computed and compared; to cover a further method, add one row there.
Methods that do not stand there are counted as not built, and fail only where --methods asks for them.

Exit status: 0 all compared rows agree, 1 at least one does not, 2 the file or the command line is wrong.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from adapters import divergences, layers, moving, ranked, sparse, views, vocabularies
from adapters.case import Adapter, Case
from draw import draw
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from tutelage import losses
from tutelage.objectives import projectors
from tutelage.objectives.methods.fusion import Fusion, Generation
from tutelage.types import Projection

Row = Mapping[str, Any]
Verdict = Literal["passed", "failed", "not built"]


def _linear(case: Case, features: str, by: str) -> Tensor:
    """Features through a recorded linear map; as they are where the case has none."""
    weight = f"{by}.weight"
    return F.linear(case[features], case[weight], case[f"{by}.bias"]) if weight in case.inputs else case[features]


def _crd(case: Case) -> Tensor:
    """Two calls, the banks updated between, the constants taken from the first."""
    temperature = float(torch.tensor(case.hyper["nce_t"]))  # the code keeps it in float32
    banks = {"s": case["memory_v1"], "t": case["memory_v2"]}
    samples = len(banks["s"])
    constants, total = None, torch.zeros((), dtype=torch.float64)
    for step in (1, 2):
        index = case[f"idx{step}"]
        columns = torch.cat([index[:, None], case[f"neg{step}"]], dim=1)
        embedded = {
            who: F.normalize(F.linear(case[f"f_{who}{step}"], case[f"{by}.weight"], case[f"{by}.bias"]), dim=1)
            for who, by in (("s", "embed_s.linear"), ("t", "embed_t.linear"))
        }
        scores = [
            losses.bank_scores(embedded[who], banks[other], columns, temperature=temperature)
            for who, other in (("s", "t"), ("t", "s"))
        ]
        if constants is None:
            constants = torch.stack([losses.log_normaliser(each, samples=samples) for each in scores])
        total = total + losses.crd(*scores, constants, samples=samples).mean()
        for who, bank in banks.items():
            rows = losses.moved(bank[index], embedded[who], momentum=case.hyper["nce_m"])
            banks[who] = bank.index_copy(0, index, rows)
    return total


def _itrd(case: Case, *, correlation: float, mutual: float) -> Tensor:
    mapped = _linear(case, "f_s", "embed.linear")
    total = torch.zeros((), dtype=torch.float64)
    if correlation:
        total = total + correlation * losses.itrd_correlation(mapped, case["f_t"], alpha=case.hyper["alpha_it"])
    if mutual:
        same = case["f_s"].shape == case["f_t"].shape
        total = total + mutual * losses.itrd_mutual(case["f_s"] if same else mapped, case["f_t"])
    return total


def _vitkd(case: Case) -> Tensor:
    masked = case.hyper["lambda_vitkd"]
    low, mimic = case["low_s"], torch.zeros((), dtype=torch.float64)
    for block in range(low.shape[1]):
        weight = f"align2.{block}.weight"
        tokens = low[:, block]
        if weight in case.inputs:
            tokens = F.linear(tokens, case[weight], case[f"align2.{block}.bias"])
        mimic = mimic + losses.vitkd_mimic(tokens, case["low_t"][:, block]).mean()
    hidden = losses.hide(case["noise"], masked=masked)
    shown = torch.where(hidden[..., None], case["mask_token"], _linear(case, "high_s", "align"))
    side = math.isqrt(shown.shape[1])
    grid = shown.transpose(1, 2).unflatten(2, (side, side))
    grid = F.conv2d(grid, case["generation.0.weight"], case["generation.0.bias"], padding=1).relu()
    grid = F.conv2d(grid, case["generation.2.weight"], case["generation.2.bias"], padding=1)
    made = losses.vitkd_generation(grid.flatten(2).transpose(1, 2), case["high_t"], hidden, masked=masked).mean()
    return case.hyper["alpha_vitkd"] * mimic + case.hyper["beta_vitkd"] * made


def _crossed(case: Case, *, temperature: float) -> Tensor:
    """``T**2`` times the cross-entropy of the student against the teacher, both at a temperature."""
    soft = (case["z_t"] / temperature).softmax(dim=-1)
    return temperature**2 * losses.cross_entropy(case["z_s"] / temperature, soft).mean()


def _torchdistill_kd(case: Case, *, standardised: bool = False) -> Tensor:
    """The cross-entropy on raw logits; without it, nothing is multiplied by ``T**2``."""
    alpha, temperature = case.hyper["alpha"], case.hyper["temperature"]
    z_s, z_t = (losses.standardise(case[z]) if standardised else case[z] for z in ("z_s", "z_t"))
    soft = losses.kd(z_s, z_t, temperature=temperature).mean()
    if alpha == 0:
        return soft / temperature**2
    supervised = losses.cross_entropy(case["z_s"], case["y"]).mean()
    return alpha * supervised + case.hyper.get("beta", 1 - alpha) * soft


def _dist(case: Case, **more: Any) -> Tensor:
    hyper = case.hyper
    z_s, z_t = (case[z].movedim(1, -1) for z in ("z_s", "z_t"))
    return losses.dist(z_s, z_t, beta=hyper["beta"], gamma=hyper["gamma"], temperature=hyper.get("tau", 1.0), **more)


def _dkd(case: Case, *, standardised: bool = False) -> Tensor:
    hyper = case.hyper
    z_s, z_t = (losses.standardise(case[z]) if standardised else case[z] for z in ("z_s", "z_t"))
    return losses.dkd(z_s, z_t, case["y"], alpha=hyper["alpha"], beta=hyper["beta"], temperature=hyper["T"]).mean()


def _nkd(case: Case) -> Tensor:
    labels = case["y"] if "y" in case.inputs else case["y_soft"]
    return losses.nkd(
        case["z_s"], case["z_t"], labels, gamma=case.hyper["gamma"], temperature=case.hyper["temp"]
    ).mean()


def _ctkd(case: Case) -> Tensor:
    theta = losses.scaled_gradient(case["global_T"], factor=case.hyper["lambda"])
    temperature = case.hyper["t_start"] + case.hyper["t_end"] * theta.sigmoid()
    return losses.ctkd(case["z_s"], case["z_t"], temperature=temperature).mean()


def _rkd(case: Case, *, squared: bool) -> Tensor:
    weights = ("distance_weight", "angle_weight") if squared else ("w_d", "w_a")
    distance = losses.rkd_distance(case["f_s"], case["f_t"], squared=squared)
    angle = losses.rkd_angle(case["f_s"], case["f_t"])
    return case.hyper[weights[0]] * distance + case.hyper[weights[1]] * angle


def _kernel_of_torchdistill(case: Case) -> Tensor:
    config = case.hyper["kernel_config"]
    more = {"gamma": config["gamma"], "order": config["max_p"]} if config["type"] == "gaussian" else {}
    return losses.correlation_kernel(
        case["f_s"], case["f_t"], kernel=config["type"], normalise=False, squared=False, **more
    )


def _regressed(case: Case) -> Tensor:
    """The student's map through the recorded convolution of FitNet's regressor."""
    make = projectors.build(
        Projection("s", "t", "regressor"), tuple(case["f_s"].shape[1:]), tuple(case["f_t"].shape[1:])
    )
    named = {f"0.{name.removeprefix('conv.')}": case[name] for name in ("conv.weight", "conv.bias")}
    fixed = {name: value.double() for name, value in make.state_dict().items() if name.startswith("1.") and value.ndim}
    return torch.func.functional_call(make.double(), {**fixed, **named}, (case["f_s"],))


def _vid(case: Case) -> Tensor:
    """The student's map, pooled where it is the larger, through the recorded regressor."""
    mean, theirs = losses.same_size(case["f_s"], case["f_t"])
    for layer in (0, 2, 4):
        mean = F.conv2d(mean if layer == 0 else mean.relu(), case[f"regressor.{layer}.weight"])
    variance = F.softplus(case["log_scale"], threshold=1e3) + case.hyper["eps"]
    return losses.vid(mean, theirs, variance=variance).mean()


def _listed(case: Case, who: str) -> list[Tensor]:
    """The maps of all stages."""
    return [case[f"f_{who}{i}"] for i in range(sum(name.startswith(f"f_{who}") for name in case.inputs))]


def _boundaries(case: Case, weights: Sequence[float]) -> Tensor:
    stages = zip(weights, _listed(case, "s"), _listed(case, "t"), strict=True)
    margin = case.hyper["margin"]
    return torch.stack([w * losses.activation_boundary(s, t, margin=margin).mean() for w, s, t in stages]).sum()


def _ab(case: Case) -> Tensor:
    count = case.hyper["feat_num"]
    return _boundaries(case, [3 / 1000 * 2.0 ** (stage - count + 1) for stage in range(count)])


def _td_fsp(case: Case) -> Tensor:
    """Each pair of consecutive stages has a weight of its own."""
    ours, theirs = _listed(case, "s"), _listed(case, "t")
    pairs = [
        weight * losses.fsp(ours[i : i + 2], theirs[i : i + 2], pool="maximum", distance="norm").mean()
        for i, weight in enumerate(case.hyper["weights"])
    ]
    return torch.stack(pairs).sum()


def _kd_svd(case: Case, shape: Callable[[Tensor], Tensor] = lambda maps: maps) -> Tensor:
    """The teacher's vectors are turned as those of the recorded run were."""
    signs = [torch.tensor(stage) for stage in case.aux["vt_row0_sign"]]
    ours, theirs = ([shape(maps) for maps in _listed(case, who)] for who in "st")
    return losses.kd_svd(ours, theirs, k=case.hyper["k"], first_signs=signs).mean()


def _rows_as_places(maps: Tensor) -> Tensor:
    """Maps whose places are the channels and rows of others, and whose channels are the columns of those."""
    return maps.flatten(1, 2).mT[..., None]


def _levels(case: Case, name: str) -> list[Tensor]:
    """The maps ``name0``, ``name1``, ... from the shallowest to the deepest."""
    return [case[f"{name}{level}"] for level in range(sum(each.startswith(name) for each in case.inputs))]


def _hcl(made: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    return torch.stack([losses.review(*level).mean() for level in zip(made, theirs, strict=True)]).sum()


def _reviewkd(case: Case) -> Tensor:
    """The term's own modules, with the recorded parameters; batch norm is in training mode."""
    ours, theirs = _levels(case, "f_s"), _levels(case, "f_t")
    fusion = Fusion([each.shape[1] for each in ours], [each.shape[1] for each in theirs]).double()
    names = {"conv1.0": "enter.0", "conv2.0": "leave.0", "att_conv.0": "mix"}
    parameters = {}
    for name in (each for each in case.inputs if each.startswith("abfs.")):
        _, place, rest = name.split(".", 2)  # the code counts from the deepest level
        module, _, what = rest.rpartition(".")
        parameters[f"levels.{len(ours) - 1 - int(place)}.{names[module]}.{what}"] = case[name]
    made = functional_call(fusion, parameters, (ours, [tuple(each.shape[2:]) for each in theirs]))
    return case.hyper["weight"] * _hcl(made, theirs)


def _mgd(case: Case) -> Tensor:
    remake = Generation(case["f_s"].shape[1], case["f_t"].shape[1]).double()
    parameters = {name: case[name] for name in case.inputs if name.startswith(("align.", "generation."))}
    made = functional_call(remake, parameters, (case["f_s"], case["noise"] < case.hyper["lambda_mgd"]))
    return case.hyper["alpha_mgd"] * losses.mgd(made, case["f_t"]).mean()


def _srrl(case: Case, features: Tensor) -> Tensor:
    head = {"weight": case["fc_t.weight"], "bias": case["fc_t.bias"]}
    statistics = losses.srrl_statistics(features, case["f_t"]).mean()
    return statistics + case.hyper["weight"] * losses.srrl_regression(features, case["f_t"], **head).mean()


def _srrl_connector(case: Case) -> Tensor:
    return _srrl(case, _normalised(F.conv2d(case["f_s"], case["Connectors.0.weight"])).relu())


def _ofd(case: Case) -> Tensor:
    """Connectors, margins rounded to float32 as in the code, the teacher pooled to the student's size."""
    levels = sum(name.startswith("f_s") for name in case.inputs)
    total = torch.zeros((), dtype=torch.float64)
    for level in range(levels):
        weight = case[f"connectors.connectors.{level}.0.weight"]
        student = _normalised(F.conv2d(case[f"f_s{level}"], weight, padding=weight.shape[-1] // 2))
        teacher = F.adaptive_avg_pool2d(case[f"f_t{level}"], student.shape[-2:])
        margins = losses.ofd_margins(case[f"bn{level}.weight"], case[f"bn{level}.bias"]).float()
        total = total + losses.ofd(student, teacher, margins=margins).mean() / 2 ** (levels - level - 1)
    return total


def _normalised(maps: Tensor) -> Tensor:
    """A batch norm as it is first, in training mode."""
    return F.batch_norm(maps, None, None, training=True)


def _norm_direction(case: Case) -> Tensor:
    value = losses.norm_direction(case["s_emb"], case["t_emb"], case["y"], class_means=case["centers"]).mean()
    return case.hyper["nd_loss_factor"] * value


def _tekap(case: Case) -> Tensor:
    noise = torch.stack([case[f"noise{i}"] for i in (1, 2, 3)])
    numbers = {"temperature": case.hyper["T"], "share": 0.1, "perturbed": 0.8}
    return losses.tekap(case["z_s"], case["z_t"], noise=noise, **numbers).mean()


# Recorded losses are means over the batch, ours are one value a sample.
METHODS: Mapping[str, Adapter] = {
    # At a temperature of 1 `kd` is the KL divergence; the features are as they are there.
    "td.SRD": lambda c: (
        2 * losses.log_power(c["f_s"] - c["f_t"], exponent=c.hyper["exponent"])
        + losses.kd(c["z_s"], c["z_t"], temperature=c.hyper["temperature"]).mean() / c.hyper["temperature"] ** 2
    ),
    "KD": lambda c: losses.kd(c["z_s"], c["z_t"], temperature=c.hyper["T"]).mean(),
    "TTM": lambda c: losses.ttm(c["z_s"], c["z_t"], gamma=c.hyper["gamma"]).mean(),
    "WTTM": lambda c: losses.wttm(c["z_s"], c["z_t"], gamma=c.hyper["gamma"]).mean(),
    "CRD.contrast": lambda c: losses.contrast(c["x"].squeeze(2).log(), samples=c.hyper["n_data"]).mean(),
    "CRD": _crd,
    "ITRD.corr": lambda c: _itrd(c, correlation=1.0, mutual=0.0),
    "ITRD.mutual": lambda c: _itrd(c, correlation=0.0, mutual=1.0),
    "ITRD": lambda c: _itrd(c, correlation=c.hyper["lambda_corr"], mutual=c.hyper["lambda_mutual"]),
    "ViTKD": _vitkd,
    "DKD": _dkd,
    "NKD": _nkd,
    "WSLD": lambda c: c.hyper["alpha"] * losses.wsld(c["z_s"], c["z_t"], c["y"], temperature=c.hyper["temp"]).mean(),
    "DIST": _dist,
    "DIST.seg": _dist,
    "td.DIST": lambda c: _dist(c, guard="clamped"),
    "MLKD.bc": lambda c: losses.mlkd_batch(c["z_s"], c["z_t"], temperature=c.hyper["T"]),
    "MLKD.cc": lambda c: losses.mlkd_class(c["z_s"], c["z_t"], temperature=c.hyper["T"]),
    "LSKD.KD": lambda c: losses.kd(
        losses.standardise(c["z_s"]), losses.standardise(c["z_t"]), temperature=c.hyper["T"]
    ).mean(),
    "LSKD.DKD": lambda c: _dkd(c, standardised=True),
    "td.LSKD": lambda c: _torchdistill_kd(c, standardised=True),
    "CTKD": _ctkd,
    "KD.clskd": lambda c: c.hyper["alpha"] * _crossed(c, temperature=c.hyper["temp"]),
    "td.KD": _torchdistill_kd,
    "td.SKD.instance": lambda c: (
        losses.kd(c["z_s"], c["z_t"], temperature=c.hyper["temperature"]).mean() / c.hyper["temperature"] ** 2
    ),
    "RKD": lambda c: _rkd(c, squared=False),
    "RKD.squared": lambda c: _rkd(c, squared=True),
    "PKT": lambda c: losses.pkt(c["f_s"], c["f_t"]),
    "SP": lambda c: losses.similarity(c["f_s"], c["f_t"]),
    "td.SPKD": lambda c: losses.similarity(c["f_s"], c["f_t"], row_norm=1),
    "CC": lambda c: losses.correlation(c["f_s"], c["f_t"]),
    "CC.aber": lambda c: losses.correlation_kernel(
        c["f_s"], c["f_t"], gamma=c.hyper["gamma"], order=c.hyper["P_order"]
    ),
    "td.CCKD": _kernel_of_torchdistill,
    "NST": lambda c: losses.nst(c["f_s"], c["f_t"]).mean(),
    # That library divides the mean by the batch once more.
    "td.ICKD": lambda c: c.hyper["weight"] * losses.inter_channel(c["f_s"], c["f_t"]).mean() / len(c["f_s"]),
    "td.Affinity": lambda c: losses.affinity(c["f_s"], c["f_t"]).mean(),
    "FitNet": lambda c: losses.hint(c["f_s"], c["f_t"]).mean(),
    "FitNet.convreg": lambda c: losses.hint(_regressed(c), c["f_t"]).mean(),
    "AT": lambda c: losses.attention_transfer(c["f_s"], c["f_t"], p=c.hyper["p"]).mean(),
    "td.AT": lambda c: (
        c.hyper["weight"]
        * losses.attention_transfer(
            c["f_s"], c["f_t"], distance="norm" if c.hyper["mode"] == "paper" else "mean_square"
        ).mean()
    ),
    "VID": _vid,
    "td.VID": lambda c: c.hyper["weight"] * losses.vid(c["f_s"], c["f_t"], variance=c["pred_var"].flatten()).mean(),
    "td.PAD": lambda c: losses.prime_aware(
        c["f_s"], c["f_t"], log_variance=c["log_var"], epsilon=c.hyper["eps"]
    ).mean(),
    "FT": lambda c: losses.factor_transfer(c["f_s"], c["f_t"], p=c.hyper["p1"], norm=c.hyper["p2"]).mean(),
    "td.FT": lambda c: losses.factor_difference(c["f_s"], c["f_t"], p=c.hyper["p"]).mean(),
    "td.KTA": lambda c: losses.factor_difference(c["f_s"], c["f_t"], p=c.hyper["p"], length_by=c.hyper["q"]).mean(),
    "AB": _ab,
    "td.DAB": lambda c: _boundaries(c, c.hyper["weights"]),
    "FSP": lambda c: losses.fsp(_listed(c, "s"), _listed(c, "t")).mean(),
    "td.FSP": _td_fsp,
    "KDSVD": _kd_svd,
    "KDSVD.mdistiller": lambda c: _kd_svd(c, _rows_as_places),
    "ReviewKD.hcl": lambda c: _hcl(_levels(c, "f_s"), _levels(c, "f_t")),
    "ReviewKD": _reviewkd,
    "MGD": _mgd,
    "SRRL.stat": lambda c: losses.srrl_statistics(c["f_s"], c["f_t"]).mean(),
    "SRRL": lambda c: _srrl(c, c["f_s"]),
    "SRRL.connector": _srrl_connector,
    "OFD.feat": lambda c: losses.ofd(c["f_s"], c["f_t"], margins=c["margin"].flatten()).mean(),
    "OFD": _ofd,
    "ND": _norm_direction,
    "TeKAP.logit": _tekap,
    **divergences.METHODS,
    **layers.METHODS,
    **moving.METHODS,
    **ranked.METHODS,
    **sparse.METHODS,
    **views.METHODS,
    **vocabularies.METHODS,
}
"""By the recorded method's name; families that have a file of their own in `adapters` add theirs."""


class UsageError(Exception):
    """The file or the command line is wrong."""


@dataclass(frozen=True)
class Result:
    """The verdict on one row, and where it failed, why."""

    id: str
    method: str
    verdict: Verdict
    faults: tuple[str, ...] = ()


def check(row: Row) -> Result:
    """Compute one row and compare it by the row's own tolerances."""
    if row["method"] not in METHODS:
        return Result(row["id"], row["method"], "not built")
    try:
        faults = tuple(_faults(row, METHODS[row["method"]]))
    except Exception as error:  # noqa: BLE001  one broken row must not hide the others
        faults = (f"{type(error).__name__}: {error}",)
    return Result(row["id"], row["method"], "failed" if faults else "passed", faults)


def _faults(row: Row, adapter: Adapter) -> Iterator[str]:
    inputs = {name: torch.from_numpy(array) for name, array in draw(row["seed"], row["inputs"]).items()}
    for spec in row["inputs"]:
        if spec["role"] in ("student", "param"):
            inputs[spec["name"]].requires_grad_()
    case = Case(inputs, row["hyper"], row["aux"])
    expected = row
    if not row["official_ok"]:
        if row["log_space"] is None:
            yield from _undefined(adapter, case)
            return
        expected = row["log_space"]
    loss = adapter(case)
    if loss.shape != ():
        yield f"loss: expected a scalar, got shape {tuple(loss.shape)}; reduce it in the adapter"
        return
    target = float(expected["loss_repr"])
    yield from _near("loss", loss.item(), target, row["rtol"] * abs(target) + row["atol"])
    if not loss.requires_grad:
        yield "gradient: the loss depends on no student input and on no parameter"
        return
    loss.backward()
    for name, recorded in expected["grads"].items():
        gradient = inputs[name].grad
        yield from _gradient_faults(
            name, torch.zeros_like(inputs[name]) if gradient is None else gradient, recorded, row
        )


def _gradient_faults(name: str, gradient: Tensor, recorded: Row, row: Row) -> Iterator[str]:
    if gradient.numel() != recorded["numel"]:
        yield f"gradient of {name}: expected {recorded['numel']} entries, got {gradient.numel()}"
        return
    tolerance = row["grad_rtol"] * recorded["l2"] + row["grad_atol"]
    flat = gradient.flatten()
    yield from _near(f"gradient of {name}, l2", flat.norm().item(), recorded["l2"], tolerance)
    yield from _near(
        f"gradient of {name}, sum", flat.sum().item(), recorded["sum"], tolerance * math.sqrt(flat.numel())
    )
    for place, (ours, theirs) in enumerate(zip(flat[:5].tolist(), recorded["first5"], strict=True)):
        yield from _near(f"gradient of {name}, entry {place}", ours, theirs, tolerance)


def _near(what: str, ours: float, theirs: float, tolerance: float) -> Iterator[str]:
    # Not "error > tolerance": a NaN is never near.
    if not abs(ours - theirs) <= tolerance:
        yield f"{what}: expected {theirs!r}, got {ours!r}, off by {abs(ours - theirs):.3g}, allowed {tolerance:.3g}"


def _undefined(adapter: Adapter, case: Case) -> Iterator[str]:
    """Where the formula itself has no value, such as a pairwise loss of one sample, ours must not invent one."""
    try:
        loss = adapter(case)
    except ValueError:
        return
    if torch.isfinite(loss).all():
        yield f"loss: expected a ValueError or no finite value, got {loss.tolist()!r}"


def read(path: Path) -> list[Row]:
    """Read a file of rows, one JSON object a line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path}: expected a readable file of rows, got {error}; type the path of a .jsonl file"
        ) from error
    rows = [_parse(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not rows:
        raise UsageError(f"{path}: expected at least one row, got none; type the path of a .jsonl file of rows")
    return rows


_FIELDS = frozenset(
    (
        "id",
        "method",
        "hyper",
        "seed",
        "inputs",
        "aux",
        "loss_repr",
        "grads",
        "rtol",
        "atol",
        "grad_rtol",
        "grad_atol",
        "official_ok",
        "log_space",
    )
)


def _parse(path: Path, number: int, line: str) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UsageError(
            f"{path}, line {number}: expected a JSON object, got {error}; type the path of a .jsonl file"
        ) from error
    missing = sorted(_FIELDS - row.keys()) if isinstance(row, dict) else sorted(_FIELDS)
    if missing:
        raise UsageError(f"{path}, line {number}: expected the fields of a row, got none named {', '.join(missing)}")
    return row


def choose(rows: Sequence[Row], methods: str | None) -> list[Row]:
    """Keep the rows of the methods asked for, all of them where none is."""
    if methods is None:
        return list(rows)
    asked = [name.strip() for name in methods.split(",") if name.strip()]
    present = {row["method"] for row in rows}
    unknown = [name for name in asked if name not in present]
    if unknown or not asked:
        raise UsageError(
            f"--methods: expected names among {', '.join(sorted(present))}; got {', '.join(unknown) or 'none'}"
        )
    return [row for row in rows if row["method"] in asked]


def table(results: Iterable[Result]) -> Iterator[str]:
    """Yield a line a method, then each failure, then the totals."""
    results = list(results)
    counts = Counter((result.method, result.verdict) for result in results)
    methods = list(dict.fromkeys(result.method for result in results))
    width = max(map(len, methods))
    verdicts: tuple[Verdict, ...] = ("passed", "failed", "not built")
    for method in methods:
        yield f"{method:<{width}}  " + ", ".join(f"{counts[method, v]} {v}" for v in verdicts if counts[method, v])
    for result in results:
        for fault in result.faults:
            yield f"{result.id} {result.method}: {fault}"
    totals = Counter(result.verdict for result in results)
    yield ", ".join(f"{totals[v]} {v}" for v in verdicts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE.jsonl", help="rows, one JSON object a line")
    parser.add_argument("--methods", metavar="KD,TTM", help="only these methods; one that is not built then fails")
    options = parser.parse_args(arguments)
    try:
        rows = choose(read(options.file), options.methods)
    except UsageError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    results = [check(row) for row in rows]
    sys.stdout.writelines(f"{line}\n" for line in table(results))
    failing = ("failed", "not built") if options.methods is not None else ("failed",)
    return int(any(result.verdict in failing for result in results))


if __name__ == "__main__":
    sys.exit(main())
