"""The named methods: each preset is a few lines that compose terms. Their signatures are the schema of a recipe's objective."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any, NamedTuple

from tutelage import losses
from tutelage.objectives.objective import Objective, Part
from tutelage.objectives.schedules import Weight, weight_from_recipe
from tutelage.objectives.terms import Apply


class Preset(NamedTuple):
    """A named method.

    Attributes:
        build: the function; keyword arguments only.
        paper: where the method comes from.
    """

    build: Callable[..., Objective]
    paper: str


PRESETS: dict[str, Preset] = {}


def preset(paper: str) -> Callable[[Callable[..., Objective]], Callable[..., Objective]]:
    """Name a function as a preset: its objective remembers the call, so that a recipe can hold it."""

    def name_it(function: Callable[..., Objective]) -> Callable[..., Objective]:
        signature = inspect.signature(function)
        weights = {p.name for p in signature.parameters.values() if p.annotation == "Weight"}

        @functools.wraps(function)
        def build(**arguments: Any) -> Objective:
            _check_names(function.__name__, signature, arguments)
            bound = signature.bind(**arguments)
            bound.apply_defaults()
            for argument in weights:
                bound.arguments[argument] = weight_from_recipe(bound.arguments[argument], argument=argument)
            for argument, value in bound.arguments.items():
                if argument not in weights and not isinstance(value, int | float):
                    raise TypeError(f"{argument}: expected a number, got {value!r}; for example {argument}=1.0")
            made = function(**bound.arguments)
            (piece,) = made.pieces
            return Objective((replace(piece, preset=function.__name__, arguments=dict(bound.arguments)),))

        if function.__name__ in PRESETS:
            raise ValueError(f"preset {function.__name__!r} exists already")
        PRESETS[function.__name__] = Preset(build, paper)
        return build

    return name_it


def _sum(*parts: Part) -> Objective:
    """An objective of those parts whose weight is not the number zero."""
    kept = [part for part in parts if part.weight != 0]
    if not kept:
        raise ValueError("objective: expected a term with a weight other than 0, got none; set a weight, such as supervised=1")
    return Objective.of(*kept)


def _supervised(weight: Weight, *, label_smoothing: float = 0.0) -> Part:
    return Part("ce", weight, Apply(losses.cross_entropy, {"label_smoothing": label_smoothing}, soft_labels=True))


@preset("labels alone; label smoothing: Szegedy et al. 2016, arXiv:1512.00567")
def cross_entropy(*, label_smoothing: float = 0.0, weight: Weight = 1.0) -> Objective:
    """``weight * CE(y, q)``: learning from labels, with no teacher.

    Args:
        label_smoothing: in [0, 1): the share of each label that is spread evenly over all classes.
        weight: of the term.
    """
    return _sum(_supervised(weight, label_smoothing=label_smoothing))


@preset("Pereyra et al. 2017, arXiv:1701.06548")
def confidence_penalty(*, weight: Weight = 0.1) -> Objective:
    """``-weight * H(q)``: a penalty on low entropy, in nats. It carries no cross-entropy; add one.

    Args:
        weight: the paper's beta.
    """
    return _sum(Part("confidence_penalty", weight, Apply(losses.confidence_penalty)))


@preset("Zheng and Yang 2024, arXiv:2402.11148, section 3.2")
def renyi_penalty(*, weight: Weight, order: float) -> Objective:
    """``-weight * H_order(q)``: the regulariser that TTM has and KD lacks, with its weight and order free.

    It carries no cross-entropy: ``kd(...) + renyi_penalty(...)``. With ``order = 1/T`` and ``weight = beta * (T - 1)``,
    ``kd(temperature=T, weight=lam, supervised=1 - lam) * (1 / (1 - lam))`` plus it is TTM up to a constant, where
    ``beta = lam / (1 - lam) * T``.

    Args:
        weight: of the penalty, in nats.
        order: of the Rényi entropy, >= 0; at 1 it is the Shannon entropy.
    """
    return _sum(Part("renyi_penalty", weight, Apply(losses.renyi_penalty, {"order": order})))


@preset("Hinton et al. 2015, arXiv:1503.02531")
def kd(*, temperature: float = 4.0, weight: Weight = 0.9, supervised: Weight = 0.1) -> Objective:
    """``supervised * CE(y, q) + weight * T**2 * KL(p_T || q_T)``.

    Published settings: CIFAR-100 T=4, 0.1 and 0.9; ImageNet T=1, 0.5 and 0.5.

    Args:
        temperature: T > 0, on both sides.
        weight: lambda in the paper of TTM; of the KL, whose ``T**2`` is unconditional.
        supervised: of the cross-entropy.

    Differs from: a public library that drops ``T**2`` where its alpha is 0, and codes that keep the cross-entropy at 1.
    """
    match = Apply(losses.kd, {"temperature": temperature}, target_gamma=1 / temperature if temperature else None)
    return _sum(_supervised(supervised), Part("kd", weight, match))


@preset("Zheng and Yang 2024, arXiv:2402.11148, equation 12")
def ttm(*, gamma: float, beta: Weight, supervised: Weight = 1.0) -> Objective:
    """``supervised * CE(y, q) + beta * KL(p_gamma || q)``: transformed teacher matching.

    Args:
        gamma: the exponent, > 0; 1/T of knowledge distillation.
        beta: of the matching term.
        supervised: of the cross-entropy.
    """
    match = Apply(losses.ttm, {"gamma": gamma}, target_gamma=gamma)
    return _sum(_supervised(supervised), Part("ttm", beta, match))


@preset("Zheng and Yang 2024, arXiv:2402.11148, equation 17")
def wttm(*, gamma: float, beta: Weight, supervised: Weight = 1.0) -> Objective:
    """``supervised * CE(y, q) + beta * U_gamma(p) * KL(p_gamma || q)``: TTM with each sample weighted by its power sum.

    The power sum is not normalised (between 1 and ``classes**(1 - gamma)``), so beta does not carry over between gammas.

    Args:
        gamma: the exponent, > 0.
        beta: of the matching term.
        supervised: of the cross-entropy.
    """
    match = Apply(losses.wttm, {"gamma": gamma}, target_gamma=gamma)
    return _sum(_supervised(supervised), Part("wttm", beta, match))


def from_recipe(value: Any) -> Objective:
    """Read an objective from a recipe: a preset's name, ``{preset: {argument: value}}``, or a list of those.

    An entry of a list may carry ``scale: number`` beside the preset.

    Raises:
        ValueError: an unknown preset or argument (the nearest known one is named), a missing or bad one.
    """
    if isinstance(value, Objective):
        return value
    entries = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if not entries:
        raise ValueError("objective: expected a preset or a list of them, got an empty list; for example kd")
    made = [_entry(entry) for entry in entries]
    return functools.reduce(lambda left, right: left + right, made)


def _entry(entry: Any) -> Objective:
    if isinstance(entry, str):
        entry = {entry: {}}
    names = [name for name in entry if name != "scale"] if isinstance(entry, Mapping) else []
    if len(names) != 1:
        raise ValueError(
            f"objective: expected one preset with its arguments, got {entry!r}; for example {{kd: {{temperature: 4}}}}"
        )
    (name,) = names
    arguments = entry[name] or {}
    if name not in PRESETS:
        near = get_close_matches(str(name), PRESETS, n=1, cutoff=0.5)
        raise ValueError(
            f"objective: expected one of {', '.join(PRESETS)}, got {name!r}"
            + (f"; did you mean {near[0]}?" if near else "; type one of those")
        )
    if not isinstance(arguments, Mapping):
        raise ValueError(f"objective {name}: expected a mapping of its arguments, got {arguments!r}; for example {{beta: 1}}")
    try:
        made = PRESETS[name].build(**arguments)
        # Hyperparameters are checked where they are used, in the losses; binding does not call those, so one row does.
        _probe(made)
    except (TypeError, ValueError) as error:
        raise ValueError(f"objective {name}: {error}") from None
    return made if entry.get("scale", 1) == 1 else _scaled(made, entry["scale"])


def _scaled(made: Objective, scale: Any) -> Objective:
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        raise ValueError(f"objective: expected scale to be a number > 0, got {scale!r}; for example scale: 0.8")
    return scale * made


def _probe(objective: Objective) -> None:
    """Call each term that takes logits and labels alone on one row, so that a bad hyperparameter fails before a run starts."""
    import torch

    from tutelage.contracts import Batch, Outputs, Progress
    from tutelage.objectives.terms import Context

    outputs = Outputs(torch.zeros(2, 3))
    batch = Batch(torch.arange(2), torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64))
    for part, _ in objective.parts:
        if isinstance(part.term, Apply):
            part.term.bind(Context())(outputs, outputs, batch, Progress())


def _check_names(name: str, signature: inspect.Signature, given: Mapping[str, Any]) -> None:
    known = list(signature.parameters)
    for argument in given:
        if argument not in known:
            near = get_close_matches(argument, known, n=1, cutoff=0.4)
            raise TypeError(
                f"{name} takes {', '.join(known)}, got {argument!r}" + (f"; did you mean {near[0]}?" if near else "")
            )
    missing = [p.name for p in signature.parameters.values() if p.default is p.empty and p.name not in given]
    if missing:
        raise TypeError(f"{name} expects {', '.join(missing)}, got none; for example {missing[0]}=1.0")
