"""Draw a conformance row's inputs: one generator a row, the inputs in order, each random draw consuming the stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Array = np.ndarray
Spec = Mapping[str, Any]


def _normal(rng: np.random.Generator, spec: Spec) -> Array:
    return spec.get("scale", 1.0) * rng.standard_normal(spec["shape"]) + spec.get("shift", 0.0)


def _uniform(rng: np.random.Generator, spec: Spec) -> Array:
    return spec["low"] + (spec["high"] - spec["low"]) * rng.random(spec["shape"])


def _integers(rng: np.random.Generator, spec: Spec) -> Array:
    return rng.integers(spec["low"], spec["high"], spec["shape"])


def _permutation(rng: np.random.Generator, spec: Spec) -> Array:
    return rng.permutation(spec["n"])[: spec["take"]]


def _softmax(array: Array) -> Array:
    exponentials = np.exp(array - array.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def _first_rows_equal(array: Array) -> Array:
    return np.concatenate([array[:1], array[:1], array[2:]])


def _first_row(value: float) -> Callable[[Array], Array]:
    return lambda array: np.concatenate([np.full_like(array[:1], value), array[1:]])


RANDOM: Mapping[str, Callable[[np.random.Generator, Spec], Array]] = {
    "normal": _normal,
    "uniform": _uniform,
    "integers": _integers,
    "permutation": _permutation,
}
FIXED: Mapping[str, Callable[[Mapping[str, Array], Spec], Array]] = {
    "copy": lambda drawn, spec: drawn[spec["of"]] * spec.get("scale", 1.0),
    "eye": lambda drawn, spec: np.eye(spec["shape"][0]),
    "const": lambda drawn, spec: np.full(spec["shape"], float(spec["value"])),
}
POST: Mapping[str, Callable[[Array], Array]] = {
    "abs": np.abs,
    "negabs": lambda array: -np.abs(array),
    "exp": np.exp,
    "relu": lambda array: np.maximum(array, 0.0),
    "softmax": _softmax,
    "l2norm": lambda array: array / np.sqrt((array * array).sum(axis=1, keepdims=True)),
    "dup01": _first_rows_equal,
    "constrow0": _first_row(1.0),
    "zerorow0": _first_row(0.0),
}


def draw(seed: int, specs: Sequence[Spec]) -> dict[str, Array]:
    """Return the arrays by name, float64 or int64; ValueError for an unknown recipe or a recorded check not met."""
    rng = np.random.default_rng(seed)
    drawn: dict[str, Array] = {}
    for spec in specs:
        name, kind = spec["name"], spec["draw"]
        if kind in RANDOM:
            array = RANDOM[kind](rng, spec)
        elif kind in FIXED:
            array = FIXED[kind](drawn, spec)
        else:
            raise ValueError(f"input {name}: expected a draw among {sorted((*RANDOM, *FIXED))}, got {kind!r}")
        for step in spec.get("post", ()):
            if step not in POST:
                raise ValueError(f"input {name}: expected a post step among {sorted(POST)}, got {step!r}")
            array = POST[step](array)
        if "check" in spec:
            _verify(name, array, spec["check"])
        drawn[name] = array
    return drawn


def _verify(name: str, array: Array, recorded: Mapping[str, Any]) -> None:
    """Compare with the recorded sum and first three entries, to 1e-12 (of the entries' sizes, for the sum)."""
    flat = array.astype(np.float64).ravel()
    first = np.asarray(recorded["first"])
    same_first = flat[:3].shape == first.shape and np.allclose(flat[:3], first, rtol=1e-12, atol=0.0)
    same_sum = abs(flat.sum() - recorded["sum"]) <= 1e-12 * np.abs(flat).sum()
    if not (same_first and same_sum):
        raise ValueError(
            f"input {name}: drew sum {flat.sum()!r} and first entries {flat[:3].tolist()}, "
            f"recorded are {recorded['sum']!r} and {first.tolist()}"
        )
