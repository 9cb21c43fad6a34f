"""Write the rows of `divergence` in losses.jsonl: values and gradients from the definitions, by mpmath at 50 digits.

    python tests/conformance/definitions.py

Probabilities, sums and logarithms as the formulas have them, and gradients by numerical differentiation of these
values: nothing is shared with the losses, neither log space, nor a gradient in closed form, nor PyTorch. The recipes of
the inputs are those of any row, and the loss is the mean over the batch. Rows of other methods stay as they are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
from draw import draw
from mpmath import mpf

FILE = Path(__file__).parent / "losses.jsonl"
METHOD = "divergence"
DIGITS = 50
# What is left of an exact 0: differentiation is good to about the digits that are computed with.
NOISE = mpf(10) ** -40

LAMBDA, ITERATIONS = mpf(0.05), 10  # the first as the double that it is there

Probabilities = Sequence[mpf]


def softmax(logits: Sequence[mpf]) -> Probabilities:
    exponentials = [mpmath.exp(x) for x in logits]
    total = mpmath.fsum(exponentials)
    return [x / total for x in exponentials]


def kl(a: Probabilities, b: Probabilities) -> mpf:
    return mpmath.fsum(x * mpmath.log(x / y) for x, y in zip(a, b, strict=True))


def mixture(share: mpf, a: Probabilities, b: Probabilities) -> Probabilities:
    return [share * x + (1 - share) * y for x, y in zip(a, b, strict=True)]


def jensen_shannon(p: Probabilities, q: Probabilities, beta: mpf) -> mpf:
    m = mixture(beta, p, q)
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


def total_variation(p: Probabilities, q: Probabilities) -> mpf:
    return mpmath.fsum(abs(x - y) for x, y in zip(p, q, strict=True)) / 2


def alpha_beta(p: Probabilities, q: Probabilities, alpha: mpf, beta: mpf) -> mpf:
    total, pairs = alpha + beta, list(zip(p, q, strict=True))
    if alpha == beta == 0:
        return mpmath.fsum(mpmath.log(x / y) ** 2 for x, y in pairs) / 2
    if alpha == 0:
        return mpmath.fsum(y**beta * mpmath.log((y / x) ** beta) - y**beta + x**beta for x, y in pairs) / beta**2
    if beta == 0:
        return mpmath.fsum(x**alpha * mpmath.log((x / y) ** alpha) - x**alpha + y**alpha for x, y in pairs) / alpha**2
    if total == 0:
        return mpmath.fsum(mpmath.log((y / x) ** alpha) + (x / y) ** alpha - 1 for x, y in pairs) / alpha**2
    terms = (x**alpha * y**beta - (alpha * x**total + beta * y**total) / total for x, y in pairs)
    return -mpmath.fsum(terms) / (alpha * beta)


def adaptive(p: Probabilities, q: Probabilities, held: Probabilities, mu: mpf) -> mpf:
    gaps, head, mass = [abs(x - y) for x, y in zip(p, held, strict=True)], [], mpf(0)
    for i in sorted(range(len(p)), key=lambda i: -p[i]):
        mass += p[i]
        if head and mass > mu:
            break
        head.append(i)
    total, of_head = mpmath.fsum(gaps), mpmath.fsum(gaps[i] for i in head)
    return (of_head * kl(p, q) + (total - of_head) * kl(q, p)) / total if total else mpf(0)


def class_wise(p: Probabilities, q: Probabilities, held: Probabilities) -> mpf:
    terms = (
        (x * x * mpmath.log(x / y) + weight * y * mpmath.log(y / x)) / (x + weight)
        for x, y, weight in zip(p, q, held, strict=True)
    )
    return mpmath.fsum(terms)


def wasserstein(
    p: Probabilities,
    q: Probabilities,
    cost: Sequence[Sequence[mpf]],
    sinkhorn_lambda: mpf = LAMBDA,
    sinkhorn_iter: mpf | int = ITERATIONS,
) -> mpf:
    classes = range(len(p))
    kernel = [[mpmath.exp(-each / sinkhorn_lambda) for each in row] for row in cost]
    u = v = [mpf(1) / len(p)] * len(p)
    for _ in range(int(sinkhorn_iter)):
        v = [p[j] / mpmath.fsum(u[i] * kernel[i][j] for i in classes) for j in classes]
        u = [q[i] / mpmath.fsum(kernel[i][j] * v[j] for j in classes) for i in classes]
    return mpmath.fsum(u[i] * kernel[i][j] * v[j] * cost[i][j] for i in classes for j in classes)


# By kind: the paper, the formula and what it computes of p, the teacher, q, the student, and the kind's number.
DEFINITIONS: Mapping[str, tuple[str, str, Callable[..., mpf]]] = {
    "forward": ("Kullback and Leibler 1951", "KL(p || q) = sum_i p_i log(p_i / q_i)", kl),
    "reverse": ("Kullback and Leibler 1951", "KL(q || p) = sum_i q_i log(q_i / p_i)", lambda p, q: kl(q, p)),
    "jensen_shannon": (
        "Agarwal et al., arXiv 2306.13649",
        "beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q",
        jensen_shannon,
    ),
    "skew": (
        "Ko et al., arXiv 2402.03898",
        "KL(p || alpha p + (1 - alpha) q)",
        lambda p, q, alpha: kl(p, mixture(alpha, p, q)),
    ),
    "total_variation": ("total variation distance", "1/2 sum_i |p_i - q_i|", total_variation),
    "skew_reverse": (
        "Ko et al., arXiv 2402.03898",
        "KL(q || alpha q + (1 - alpha) p)",
        lambda p, q, alpha: kl(q, mixture(alpha, q, p)),
    ),
    "alpha_beta": (
        "Cichocki et al. 2011, Wang et al., arXiv 2505.04560",
        "-1/(ab) sum_i (p_i^a q_i^b - a/(a+b) p_i^(a+b) - b/(a+b) q_i^(a+b)), and its limits",
        alpha_beta,
    ),
    "adaptive": (
        "Wu et al., arXiv 2404.02657",
        "w KL(p || q) + (1 - w) KL(q || p), w the head's part of sum_i |p_i - q_i|, held; 0 where p = q",
        adaptive,
    ),
    "class_wise": (
        "Jung et al., arXiv 2505.16297",
        "sum_i (w_i p_i log(p_i / q_i) + (1 - w_i) q_i log(q_i / p_i)), w_i = p_i / (p_i + q_i), held",
        class_wise,
    ),
    "wasserstein": (
        "Cuturi, arXiv 1306.0895",
        "sum_ij u_i exp(-C_ij / lambda) v_j C_ij after iterations of v = p / (u G), u = q / (G v) from u = 1/K",
        wasserstein,
    ),
}
HELD = ("adaptive", "class_wise")
"""Kinds whose weights have no gradient: they are those of the student that a slope is taken at."""
NUMBERS: Mapping[str, tuple[dict[str, float], ...]] = {
    "jensen_shannon": ({"beta": 0.5}, {"beta": 0.1}, {"beta": 0.9}),
    "skew": ({"alpha": 0.1}, {"alpha": 0.5}, {"alpha": 0.99}),
    "skew_reverse": ({"alpha": 0.1}, {"alpha": 0.9}),
    "alpha_beta": tuple(
        {"alpha": alpha, "beta": beta}
        for alpha, beta in ((0.8, 0.3), (1.2, -0.2), (0.0, 0.5), (0.5, 0.0), (0.5, -0.5), (0.0, 0.0))
    ),
    "adaptive": ({"mu": 0.5}, {"mu": 0.9}),
    "wasserstein": ({}, {"sinkhorn_lambda": 0.5, "sinkhorn_iter": 30}),
}
# By the kind of case: shape, the student's scale, the teacher's; None is a teacher equal to the student.
CASES: Mapping[str, tuple[list[int], float, float | None]] = {
    "ordinary": ([3, 6], 1.0, 3.0),
    "peaked": ([2, 7], 12.0, 20.0),
    "equal": ([2, 5], 2.0, None),
    "K=2": ([4, 2], 2.0, 3.0),
}


def recipes() -> Iterator[dict[str, Any]]:
    """What is to be computed: the rows' identity, hyperparameters and inputs, without any result."""
    number = 0
    for kind, (paper, formula, _) in DEFINITIONS.items():
        case = 0
        for name, (shape, student, teacher) in CASES.items():
            if (kind, name) == ("total_variation", "equal"):
                continue  # it has no gradient there
            for more in NUMBERS.get(kind, ({},)):
                case += 1
                theirs = {"draw": "copy", "of": "z_s", "scale": 1.0}
                if teacher is not None:
                    theirs = {"draw": "normal", "shape": shape, "scale": teacher}
                cost = {
                    "name": "cost",
                    "role": "teacher",
                    "draw": "uniform",
                    "shape": shape[1:] * 2,
                    "low": 0.0,
                    "high": 1.0,
                }
                yield {
                    "id": f"def-{number:04d}",
                    "method": METHOD,
                    "case": case,
                    "kind": name,
                    "source": {"paper": paper, "formula": formula, "computed": f"mpmath, {DIGITS} digits"},
                    "also_matches": [],
                    "hyper": {"kind": kind, **more},
                    "seed": 30000 + number,
                    "inputs": [
                        {"name": "z_s", "role": "student", "draw": "normal", "shape": shape, "scale": student},
                        {"name": "z_t", "role": "teacher", **theirs},
                        *([cost] if kind == "wasserstein" else []),
                    ],
                }
                number += 1


def row_of(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Compute a row: the drawn inputs are binary fractions, and exact in mpmath."""
    arrays = draw(recipe["seed"], recipe["inputs"])
    hyper = dict(recipe["hyper"])
    kind = hyper.pop("kind")
    define = DEFINITIONS[kind][2]
    with mpmath.workdps(DIGITS):
        exact = {name: np.vectorize(mpf, otypes=[object])(array).tolist() for name, array in arrays.items()}
        numbers = {name: mpf(value) for name, value in hyper.items()} | {k: exact[k] for k in exact if k == "cost"}

        def value(x: Sequence[mpf], z: Sequence[mpf], v: Sequence[mpf]) -> mpf:
            held = {"held": softmax(z)} if kind in HELD else {}
            return define(softmax(v), softmax(x), **held, **numbers)

        samples = list(zip(exact["z_s"], exact["z_t"], strict=True))
        loss = _float(mpmath.fsum(value(z, z, v) for z, v in samples) / len(samples))
        gradient = [
            _float(mpmath.diff(lambda x, z=z, v=v, i=i: value([*z[:i], x, *z[i + 1 :]], z, v), z[i]) / len(samples))
            for z, v in samples
            for i in range(len(z))
        ]
    inputs = [
        {**spec, "check": {"sum": math.fsum(array.ravel()), "first": array.ravel()[:3].tolist()}}
        for spec, array in zip(recipe["inputs"], arrays.values(), strict=True)
    ]
    slopes = {
        "l2": math.sqrt(math.fsum(x * x for x in gradient)),
        "sum": math.fsum(gradient),
        "first5": gradient[:5],
        "numel": len(gradient),
        "finite": True,
    }
    return {
        **recipe,
        "inputs": inputs,
        "dtype": "float64",
        "loss": loss,
        "loss_repr": repr(loss),
        "parts": {},
        "wrt": ["z_s"],
        "grads": {"z_s": slopes},
        "aux": {},
        "rtol": 1e-12,
        "atol": 1e-14,
        "grad_rtol": 1e-12,
        "grad_atol": 1e-14,
        "exact": None,
        "log_space": None,
        "official_ok": True,
        "note": "",
    }


def _float(x: mpf) -> float:
    return float(mpmath.chop(x, tol=NOISE))


def main() -> None:
    kept = [
        line
        for line in FILE.read_text(encoding="utf-8").splitlines(keepends=True)
        if json.loads(line)["method"] != METHOD
    ]
    ours = [json.dumps(row_of(recipe)) + "\n" for recipe in recipes()]
    FILE.write_text("".join(kept + ours), encoding="utf-8")


if __name__ == "__main__":
    main()
