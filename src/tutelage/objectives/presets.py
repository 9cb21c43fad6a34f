"""The named methods: a preset is a few lines that compose terms; its signature is its schema in a recipe."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any, NamedTuple, cast

import torch

from tutelage import losses
from tutelage.contracts import Batch, Outputs, Progress
from tutelage.objectives.contrast import Contrast
from tutelage.objectives.matching import Matching
from tutelage.objectives.objective import Objective, Part, Piece
from tutelage.objectives.schedules import (
    AUTO,
    Automatic,
    AutomaticNumber,
    AutomaticWeight,
    SignedWeight,
    Weight,
    automatic_from_recipe,
    automatic_weight_from_recipe,
    scaled,
    weight_from_recipe,
)
from tutelage.objectives.terms import Apply, Context, Description
from tutelage.objectives.tokens import Generate, Mimic


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
    """Name a function as a preset: its objective remembers the call, so that a recipe can hold it.

    Its parameters are numbers, or text where they are annotated as ``str``. Those annotated as `Weight` may be
    schedules too, and are at least 0; those annotated as `SignedWeight` may be below it. Those annotated as
    `AutomaticWeight` or `AutomaticNumber` may be ``auto``. They are checked at the call.

    Args:
        paper: where the method comes from.

    Raises:
        ValueError: there is a preset of that name already.
    """

    def name_it(function: Callable[..., Objective]) -> Callable[..., Objective]:
        name = function.__name__
        signature = inspect.signature(function, eval_str=True)

        @functools.wraps(function)
        def build(*positional: Any, **arguments: Any) -> Objective:
            if positional:
                named = ", ".join(f"{p}={value!r}" for p, value in zip(signature.parameters, positional, strict=False))
                raise TypeError(
                    f"{name}: expected arguments by name, got {positional[0]!r} alone; type {name}({named})"
                )
            read = _read(name, signature, arguments)
            parts = tuple(replace(part, weight=scaled(part.weight, scale)) for part, scale in function(**read).parts)
            _probe(parts)
            return Objective((Piece(parts, name, read),))

        if name in PRESETS:
            raise ValueError(f"preset: expected a new name, got {name!r}, which is taken; rename the function")
        PRESETS[name] = Preset(build, paper)
        return build

    return name_it


def _sum(*parts: Part) -> Objective:
    """An objective of those parts whose weight is not the number zero."""
    kept = [part for part in parts if part.weight != 0]
    if not kept:
        raise ValueError("objective: expected a term with a weight other than 0, got none; for example supervised=1")
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


@preset("Zheng and Yang 2024, arXiv:2402.11148, section 3")
def renyi_penalty(*, weight: SignedWeight, order: float) -> Objective:
    """``-weight * H_order(q)``: the regulariser that TTM has and KD lacks, with its weight and order free.

    It carries no cross-entropy: ``kd(...) + renyi_penalty(...)``. With ``order = 1/T`` and ``weight = beta * (T - 1)``,
    ``kd(temperature=T, weight=lam, supervised=1 - lam) * (1 / (1 - lam))`` plus it is TTM up to a constant, where
    ``beta = lam / (1 - lam) * T``.

    Args:
        weight: of the penalty, in nats: any finite number. Below 0 the term rewards a low entropy, as TTM with T < 1
            does.
        order: of the Rényi entropy, > 0; at 1 it is the Shannon entropy.
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


@preset("Zheng and Yang 2024, arXiv:2402.11148, section 3")
def ttm(*, gamma: float = 0.25, beta: AutomaticWeight = AUTO, supervised: Weight = 1.0) -> Objective:
    """``supervised * CE(y, q) + beta * KL(p_gamma || q)``: transformed teacher matching.

    Args:
        gamma: the exponent, > 0; 1/T of knowledge distillation.
        beta: of the matching term; ``auto`` balances its first gradient with cross-entropy's.
        supervised: of the cross-entropy.
    """
    match = Apply(losses.ttm, {"gamma": gamma}, target_gamma=gamma)
    return _sum(_supervised(supervised), Part("ttm", beta, match))


@preset("Zheng and Yang 2024, arXiv:2402.11148, section 4")
def wttm(
    *, gamma: float = 0.25, beta: AutomaticWeight = AUTO, supervised: Weight = 1.0, normalise: str = "none"
) -> Objective:
    """``supervised * CE(y, q) + beta * U_gamma(p) * KL(p_gamma || q)``: TTM with each sample weighted by its power sum.

    The paper's power sum is not normalised (it is between 1 and ``classes**(1 - gamma)``), so beta does not carry over
    between gammas.

    Args:
        gamma: the exponent, > 0.
        beta: of the matching term; ``auto`` balances its first gradient with cross-entropy's.
        supervised: of the cross-entropy.
        normalise: ``none``; or divide the power sum by its mean over the ``batch``, which couples a batch's samples, or
            over the ``training`` set, found once.
    """
    match: Description = Apply(losses.wttm, {"gamma": gamma}, target_gamma=gamma)
    if normalise != "none":
        match = Matching(gamma, weight_by="power_sum", normalise=normalise)
    return _sum(_supervised(supervised), Part("wttm", beta, match))


@preset("what Zheng and Yang 2024, arXiv:2402.11148, leave open")
def transformed_matching(
    *,
    transform: str = "power",
    gamma: AutomaticNumber = AUTO,
    beta: AutomaticWeight = AUTO,
    supervised: Weight = 1.0,
    weight_by: str = "constant",
    weight_of: str = "teacher",
    order: float = 1.0,
    normalise: str = "none",
) -> Objective:
    """``supervised * CE(y, q) + beta * w(p) * KL(p_f || q)``: other transforms and weights in TTM's and WTTM's place.

    ``transformed_matching(gamma=g, beta=b)`` is ``ttm``, and with ``weight_by=power_sum`` it is ``wttm``.

    Args:
        transform: f: ``power``, ``rational``, ``logarithm`` or ``complement``.
        gamma: the transform's dial; at 1 it changes nothing, and the smaller the flatter. ``auto`` is as flat as the
            power at 0.25, which is a temperature of 4: the same mean entropy over the training set.
        beta: of the matching term; ``auto`` balances its first gradient with cross-entropy's.
        supervised: of the cross-entropy.
        weight_by: w: ``constant``, ``power_sum`` (of f), ``entropy`` or ``one_minus_top``.
        weight_of: what the last two are of: the ``teacher``'s p or the ``target`` p_f.
        order: of a Rényi entropy; 1 is Shannon's.
        normalise: ``none``; or divide w by its mean over the ``batch``, which couples a batch's samples, or over the
            ``training`` set, found once.
    """
    match = Matching(gamma, transform, weight_by, weight_of, order, normalise)
    return _sum(_supervised(supervised), Part("transformed_matching", beta, match))


@preset("Tian et al. 2020, arXiv:1910.10699")
def crd(
    *,
    weight: Weight = 1.0,
    negatives: int = 16384,
    temperature: float = 0.07,
    momentum: float = 0.5,
    dimension: int = 128,
) -> Objective:
    """``weight * (contrast(e_s(f_s), bank_t) + contrast(e_t(f_t), bank_s))``, on the networks' pooled embeddings.

    Published settings: a weight of 0.8, beside cross-entropy, KD or WTTM: ``wttm(...) + 0.8 * crd()``. It carries no
    cross-entropy. Both banks are in memory and in checkpoints: ``8 * samples * dimension`` bytes.

    Args:
        weight: of the term.
        negatives: of each sample, drawn among the samples of other classes without replacement; with it for a sample
            that has fewer of them.
        temperature: of the scores, > 0.
        momentum: share of a bank's row that is kept when its sample comes by, in [0, 1).
        dimension: of the embeddings.

    Differs from: public code where labels are missing, which there cannot be: an unlabelled sample is here a class of
    its own; and with several processes, where banks are shared here.
    """
    contrast = Contrast(negatives=negatives, temperature=temperature, momentum=momentum, dimension=dimension)
    return _sum(Part("crd", weight, contrast))


@preset("Miles et al. 2022, arXiv:2112.00459")
def itrd(*, alpha: float = 1.01, correlation: Weight = 2.0, mutual: Weight = 1.0) -> Objective:
    """``correlation * log2(sum_d |c[d] - 1|**(2 * alpha)) + mutual * (||G_s||**2 - ||G_st||**2)``, on embeddings.

    One linear map takes the student's embeddings to the teacher's width: always for the correlation term, for the
    mutual term only where the widths differ. It carries no cross-entropy.

    Args:
        alpha: > 0; published are 1.01 for teachers and students of one family and 1.5 for others.
        correlation: of `losses.itrd_correlation`.
        mutual: of `losses.itrd_mutual`; published are 1 and 0, the authors' code defaults to 0.05.
    """
    linear = functools.partial(
        Apply, student_tap="card:embedding", teacher_tap="card:embedding", projection="linear", coupled=True
    )
    return _sum(
        Part("itrd_correlation", correlation, linear(losses.itrd_correlation, {"alpha": alpha})),
        Part("itrd_mutual", mutual, linear(losses.itrd_mutual, project_always=False)),
    )


@preset("Yang et al. 2022, arXiv:2209.02432")
def vitkd(*, alpha: Weight = 3e-5, beta: Weight = 3e-6, masked: float = 0.5, prefix: int = 1) -> Objective:
    """``alpha * sum((A(s) - t)**2) + beta / masked * sum_hidden((G(s) - t)**2)``, on tokens of vision transformers.

    The first two blocks are mimicked, the last is made again from the tokens that are not hidden. Blocks are the stages
    of the models' cards. It carries no cross-entropy.

    Args:
        alpha: of the mimicking term, a sum over tokens and width.
        beta: of the generation term, a sum over hidden tokens and width.
        masked: share of the tokens that is hidden, > 0 and < 1.
        prefix: tokens in front that are no place of the image: the class token.
    """
    mimic = Mimic(taps=("card:stage.0", "card:stage.1"), prefix=prefix)
    generate = Generate(tap="card:stage.-1", masked=masked, prefix=prefix)
    return _sum(Part("vitkd_mimic", alpha, mimic), Part("vitkd_generation", beta, generate))


def is_built_in(name: str | None) -> bool:
    """Whether a preset is one of this package's, so that a recipe that names it can be read anywhere."""
    return name in PRESETS and PRESETS[name].build.__module__ == __name__


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
    made, found = [], []
    for entry in entries:
        try:
            made.append(_entry(entry))
        except ValueError as error:
            found.append(str(error))
    if found:
        raise ValueError("\n".join(found))
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
    arguments = {} if entry[name] is None else entry[name]
    if name not in PRESETS:
        near = get_close_matches(str(name), PRESETS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "type one of those"
        raise ValueError(f"objective: expected one of {', '.join(PRESETS)}, got {name!r}; {hint}")
    known = list(inspect.signature(PRESETS[name].build).parameters)
    if not isinstance(arguments, Mapping):
        raise ValueError(
            f"objective.{name}: expected a mapping of its arguments, got {arguments!r}; "
            f"for example {{{name}: {{{known[0]}: 1}}}}"
        )
    found = []
    scale = entry.get("scale", 1)
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not (math.isfinite(scale) and scale > 0):
        found.append(f"objective.{name}: expected scale, a finite number > 0, got {scale!r}; for example scale: 0.8")
    try:
        made = PRESETS[name].build(**{str(argument): value for argument, value in arguments.items()})
    except (TypeError, ValueError) as error:
        for line in str(error).splitlines():
            # Most say which argument is meant; the rest speak of the objective as a whole.
            own = line.partition(":")[0] in (*known, *map(str, arguments))
            found.append(f"objective.{name}{'.' if own else ': '}{line.removeprefix('objective: ')}")
    if found:
        raise ValueError("\n".join(found))
    return scale * made


def _probe(parts: Sequence[Part]) -> None:
    """Call each pure loss on two samples: it alone knows what its hyperparameters may be, and speaks late otherwise."""
    batch = Batch(torch.arange(2), torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64))
    for part in parts:
        if isinstance(part.term, Apply):
            errors = [_error(part.term, shape, batch) for shape in _FEATURES]
            # A loss of features takes some of these shapes; a bad hyperparameter is one on all of them.
            if all(errors):
                raise cast(ValueError, errors[0])


_FEATURES = ((2, 4), (2, 4, 3), (2, 4, 3, 3))
"""Shapes of the features that a loss is tried on: embeddings, tokens, maps."""


def _error(term: Apply, shape: tuple[int, ...], batch: Batch) -> ValueError | TypeError | None:
    taps = dict.fromkeys((term.student_feature, term.teacher_tap), torch.ones(shape))
    outputs = Outputs(torch.zeros(2, 3), taps)
    try:
        # A loss of the user's own may be made for other shapes; of those torch says so with a RuntimeError.
        with contextlib.suppress(RuntimeError):
            term.bind(Context())(outputs, outputs, batch, Progress())
    except (ValueError, TypeError) as error:
        return error
    return None


def _read(preset: str, signature: inspect.Signature, given: Mapping[str, Any]) -> dict[str, Any]:
    """Check a call's arguments, every fault at once, and fill in the defaults."""
    known = list(signature.parameters)
    found: list[TypeError | ValueError] = []
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "type one of those"
            found.append(
                TypeError(f"{name}: expected an argument of {preset} ({', '.join(known)}), got {name!r}; {hint}")
            )
    read: dict[str, Any] = {}
    for name, parameter in signature.parameters.items():
        value = given.get(name, parameter.default)
        if value is parameter.empty:
            found.append(TypeError(f"{name}: expected a value for {preset}, got none; for example {name}=1.0"))
            continue
        try:
            read[name] = _READ.get(parameter.annotation, _number)(value, argument=name)
        except (TypeError, ValueError) as error:
            found.append(error)
    if found:
        kind = TypeError if any(isinstance(error, TypeError) for error in found) else ValueError
        raise kind("\n".join(str(error) for error in found))
    return read


def _number(value: Any, *, argument: str) -> float:
    # A recipe and its records are YAML and JSON, which have no infinity in common.
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"{argument}: expected a finite number, got {value!r}; for example {argument}=1.0")
    return value if isinstance(value, int) else float(value)


def _text(value: Any, *, argument: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{argument}: expected a name, got {value!r}; type the name as text")
    return value


def _number_or_auto(value: Any, *, argument: str) -> float | Automatic:
    found = automatic_from_recipe(value)
    if found is None and isinstance(value, str):
        raise TypeError(f"{argument}: expected a finite number or auto, got {value!r}; for example {argument}=auto")
    return found or _number(value, argument=argument)


_READ: dict[Any, Callable[..., Any]] = {
    Weight: weight_from_recipe,
    SignedWeight: functools.partial(weight_from_recipe, signed=True),
    AutomaticWeight: automatic_weight_from_recipe,
    AutomaticNumber: _number_or_auto,
    str: _text,
}
"""How an argument is read, by its annotation; any other is a number."""
