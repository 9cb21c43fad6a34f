"""Methods on logits: cross-entropy, penalties, matching a transformed teacher, and logit standardisation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from tutelage import checks, losses, targets
from tutelage.errors import InvalidTypeError, InvalidValueError
from tutelage.losses.divergences import KINDS, PARAMETERS
from tutelage.objectives import automatic
from tutelage.objectives.objective import Objective
from tutelage.objectives.registry import objective_of, preset, supervised_part
from tutelage.objectives.term import Apply, BindContext, TermSpec, WeightedTerm, for_tokens, missing, present
from tutelage.settings.objective import MATCHED, MATCHED_TO, matched_kd
from tutelage.settings.weights import (
    AUTO,
    Automatic,
    AutomaticNumber,
    AutomaticScheduledNumber,
    AutomaticWeight,
    CosineWarmUp,
    Schedule,
    SignedWeight,
    Weight,
    WeightValue,
    weight_at,
)
from tutelage.types import Batch, Outputs, Progress, Requirements, Term

REGULARISERS = ("none", "confidence", "renyi")
"""Penalties of the student alone that a preset may add."""
NORMALISE = ("none", "batch", "training")
LOGITS = ("raw", "standardised")
"""Forms of the networks' logits that a term may read: unchanged or standardised."""
MIXTURES = ("jensen_shannon", "skew", "skew_reverse")
"""Divergences from a mixture of both distributions."""
PARAMETERS_OF: Mapping[str, tuple[str, str]] = {
    "ab_alpha": ("alpha_beta", "alpha"),
    "ab_beta": ("alpha_beta", "beta"),
    "mu": ("adaptive", "mu"),
    "sinkhorn_lambda": ("wasserstein", "sinkhorn_lambda"),
    "sinkhorn_iter": ("wasserstein", "sinkhorn_iter"),
}
"""A divergence's kind and parameter by the argument of a `Matching` that they are; of mixtures see its ``share``."""
MOST_CLASSES = 10_000
"""Largest number of classes between which a transport is computed."""
CTKD_REVERSAL = CosineWarmUp(-1.0, 10)
"""Factor of the temperature's gradient over the CTKD authors' run."""


@dataclass(frozen=True, kw_only=True)
class Matching:
    """``T**2 * w(p) / m * D(p_f, q_T)``: any named mapping, any named sample weight and any named divergence.

    Raises:
        ValueError: if a name is unknown or a number is out of range.
    """

    gamma: float | Automatic  # parameter of the mapping; automatic: `automatic.gamma`
    transform: str = "power"  # name of the mapping, `targets.Pointwise`
    weight_by: str = "constant"  # name of the weight, `targets.SampleWeight`
    weight_of: str = "teacher"  # distribution whose entropy or top is used
    order: float = 1.0  # order of an entropy
    normalise: str = "none"  # choice of ``m``: 1, the weight's mean over the batch, or over the training set
    temperature: float | Automatic = 1.0  # T of the student; values are times its square; automatic: 1 / gamma
    divergence: str = "forward"  # name of D, `losses.divergence`
    share: float | Automatic = AUTO  # teacher's share of a divergence's mixture; automatic: the kind's default
    ab_alpha: float | Automatic = AUTO  # parameters of other divergences, `PARAMETERS_OF`; likewise
    ab_beta: float | Automatic = AUTO
    mu: float | Automatic = AUTO
    sinkhorn_lambda: float | Automatic = AUTO
    sinkhorn_iter: float | Automatic = AUTO

    def __post_init__(self) -> None:
        checks.known(self.divergence, "divergence", KINDS, example="forward")
        if not isinstance(self.share, Automatic):
            if self.divergence not in MIXTURES:
                expected, instead = (
                    f"auto with divergence {self.divergence}, which mixes nothing",
                    " or ".join(MIXTURES),
                )
                raise InvalidValueError("share", expected, self.share, f"leave it out, or type divergence={instead}")
            ((_, known),) = PARAMETERS[self.divergence].items()
            example = 1 - known.default if self.divergence == "skew_reverse" else known.default
            ends = "divergence=forward or divergence=reverse"
            checks.mixture_weight(self.share, "share", example=example, ends=ends)
        for argument, (kind, name) in PARAMETERS_OF.items():
            value = getattr(self, argument)
            if isinstance(value, Automatic):
                continue
            if self.divergence != kind:
                expected = f"auto with divergence {self.divergence}, which has none"
                raise InvalidValueError(argument, expected, value, f"leave it out, or type divergence={kind}")
            PARAMETERS[kind][name].check(value, argument, example=PARAMETERS[kind][name].default)
        if not isinstance(self.temperature, Automatic):
            checks.positive(self.temperature, "temperature", example=4.0)
        checks.known(self.normalise, "normalise", NORMALISE, example="batch")
        self.weight(targets.Pointwise(self.transform, gamma=1 if isinstance(self.gamma, Automatic) else self.gamma))

    @property
    def needs(self) -> Requirements:
        """The teacher, and the statistics of its logits if a number is found from them."""
        return Requirements(
            teacher=True,
            labels="none",
            coupled=self.normalise == "batch",
            teacher_statistics=isinstance(self.gamma, Automatic) or self.normalise == "training",
            teacher_head=self.divergence == "wasserstein",
        )

    @property
    def target_gamma(self) -> float | None:
        """The exponent; ``None`` if the mapping is not the power, or it is still to be found."""
        return None if self.transform != "power" or isinstance(self.gamma, Automatic) else self.gamma

    @property
    def reads_at(self) -> float | None:
        """The exponent if the teacher is read through it alone; ``None`` if a weight reads something else.

        Other divergences than the forward one are not: they depend on each small probability's logarithm or sign, of
        which the teacher's top classes say nothing.
        """
        return (
            self.target_gamma if self.divergence == "forward" and self.weight_by in ("constant", "power_sum") else None
        )

    @property
    def parameters(self) -> dict[str, Any]:
        """The keyword arguments of `losses.divergence` that are not the kind's defaults."""
        values = {
            name: getattr(self, argument) for argument, (kind, name) in PARAMETERS_OF.items() if kind == self.divergence
        }
        if self.divergence in MIXTURES:
            share = self.share
            if self.divergence == "skew_reverse" and not isinstance(share, Automatic):
                share = 1 - share
            values = dict.fromkeys(PARAMETERS[self.divergence], share)
        return {name: value for name, value in values.items() if not isinstance(value, Automatic)}

    def simplest(self) -> TermSpec:
        """Return the term of a named loss if there is one that computes the same, or else this one.

        Named losses read a teacher's largest logits alone and have faster forms.
        """
        if isinstance(self.gamma, Automatic):
            return self
        gamma = self.gamma
        t = cast(float, self.temperature)  # automatic only with gamma
        as_student = t != 1 and math.isclose(gamma * t, 1, rel_tol=1e-15)  # one is the other's inverse, rounded
        weighted = self.weight_by == "power_sum"
        if self.transform != "power" or not gamma or self.normalise != "none":
            return self
        if self.weight_by not in ("constant", "power_sum") or not (as_student or t == 1):
            return self
        if self.divergence == "forward":
            if as_student:
                loss = losses.weighted_kd if weighted else losses.kd
                return Apply(loss, {"temperature": t}, target_gamma=gamma)
            return Apply(losses.wttm if weighted else losses.ttm, {"gamma": gamma}, target_gamma=gamma)
        at_one = gamma == 1 and t == 1  # where the power sum is 1
        if not at_one or self.needs.teacher_head:
            return self
        return Divergence(losses.divergence, {"kind": self.divergence, **self.parameters}, 1.0)

    def weight(self, transform: targets.Pointwise) -> targets.SampleWeight:
        """Return the sample weight for a mapping."""
        return targets.SampleWeight(self.weight_by, transform=transform, of=self.weight_of, order=self.order)

    def bind(self, context: BindContext) -> Term:
        """Build the term, and find the numbers that are still open."""
        if not isinstance(self.gamma, Automatic):
            return _BoundMatching(self, context)
        return self.with_gamma(automatic.gamma(self.transform, context)).bind(context)

    def for_tokens(self) -> TermSpec:
        """Return the term for data whose tokens each have a label: an automatic gamma is set, without a teacher."""
        return self.with_gamma(automatic.GAMMA_OF_TOKENS) if isinstance(self.gamma, Automatic) else self

    def with_gamma(self, gamma: float) -> ResolvedMatching:
        """Return the term with its automatic gamma, and a temperature that follows from it, set."""
        as_student = isinstance(self.temperature, Automatic)
        temperature = 1 / gamma if as_student else self.temperature
        resolved = {"temperature": 1 / gamma} if as_student else {"gamma": gamma}
        return ResolvedMatching(replace(self, gamma=gamma, temperature=temperature).simplest(), resolved)


@dataclass(frozen=True)
class ResolvedMatching:
    """A `Matching` whose automatic gamma is known: its term, and the number by the name of the preset's argument."""

    term: TermSpec
    resolved: Mapping[str, float]

    @property
    def needs(self) -> Requirements:
        """The requirements at that number."""
        return self.term.needs

    @property
    def target_gamma(self) -> float | None:
        """The exponent; ``None`` if the mapping is not the power."""
        return self.term.target_gamma

    @property
    def reads_at(self) -> float | None:
        """The exponent at which the teacher is read; ``None`` if it is read in another way."""
        return getattr(self.term, "reads_at", self.target_gamma)

    def bind(self, context: BindContext) -> Term:
        """Build the term."""
        bound: Any = self.term.bind(context)
        bound.resolved = {**self.resolved, **getattr(bound, "resolved", {})}
        bound.target_gamma = self.target_gamma
        return bound


@dataclass(frozen=True)
class Divergence(Apply):
    """A `losses.divergence`, which reads whole rows of the teacher whatever its exponent."""

    reads_at: ClassVar[None] = None


class _BoundMatching(nn.Module):
    """A bound `Matching`: no parameters, no state; ``resolved`` has the numbers that were found at binding."""

    def __init__(self, spec: Matching, context: BindContext) -> None:
        super().__init__()
        self.needs, self.resolved = spec.needs, {}
        gamma, temperature = cast(float, spec.gamma), cast(float, spec.temperature)  # by `Matching.bind`
        self._transform, mean = targets.Pointwise(spec.transform, gamma=gamma), 1.0
        weight = spec.weight(self._transform)
        if spec.normalise == "training":
            mean = self.resolved["mean_weight"] = automatic.mean_weight(weight, context)
        self._weight = weight if spec.weight_by != "constant" else None
        self._temperature, self._divisor = temperature, mean / temperature**2
        self._divergence, self._of_kind = spec.divergence, spec.parameters
        if self.needs.teacher_head:
            self.register_buffer("cost", head_cost(context), persistent=False)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress) -> Tensor:
        z = student.logits
        values = losses.transformed_matching(
            z if self._temperature == 1 else z / self._temperature,
            present(teacher).logits,
            transform=self._transform,
            sample_weight=self._weight,
            normalise=self.needs.coupled,
            kind=self._divergence,
            cost=getattr(self, "cost", None),
            **self._of_kind,
        )
        return values / self._divisor


def head_cost(context: BindContext, sharpen: float = 1.0) -> Tensor:
    """Return `losses.class_cost` of the teacher's last layer, ``(classes, classes)``.

    Raises:
        ValueError: if it is not known, or has more than 10,000 classes, whose matrix no transport could be run with.
    """
    if context.teacher_head is None:
        raise missing("teacher_head, the weights of the teacher's last layer")
    weight = context.teacher_head[0].detach()
    if len(weight) > MOST_CLASSES:
        expected = f"at most {MOST_CLASSES} classes for a transport, whose cost is a matrix of them"
        instead = "choose a divergence that needs no cost, such as alpha_beta"
        raise InvalidValueError("teacher_head", expected, len(weight), instead)
    return losses.class_cost(weight.flatten(1), sharpen=sharpen)


@dataclass(frozen=True)
class Standardised:
    """A term on `losses.standardise` of both networks' logits; the other terms see them raw."""

    inner: TermSpec
    target_gamma: ClassVar[None] = None  # the teacher's exponent differs from sample to sample

    @property
    def needs(self) -> Requirements:
        """The requirements of the inner term, but for logits that are standardised: whole rows."""
        return replace(self.inner.needs, sparse=False)

    def for_tokens(self) -> Standardised:
        """Return the term for data whose tokens each have a label: the inner one's automatic gamma is set."""
        return replace(self, inner=for_tokens(self.inner))

    def bind(self, context: BindContext) -> Term:
        """Build the inner term for one run, from a context in which the teacher's logits are standardised too."""
        if context.teacher_logits is not None:
            context = replace(context, teacher_logits=losses.standardise(context.teacher_logits))
        return _BoundStandardised(self.inner.bind(context))


class _BoundStandardised(nn.Module):
    """A bound `Standardised`: no parameters or state except the inner term's."""

    def __init__(self, inner: Term) -> None:
        super().__init__()
        self.inner, self.needs = inner, inner.needs
        self.resolved = getattr(inner, "resolved", {})
        self.scheduled = getattr(inner, "scheduled", ())

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress) -> Tensor:
        return self.inner(_standardised(student), _standardised(present(teacher)), batch, progress)


def _standardised(outputs: Outputs) -> Outputs:
    return outputs._replace(logits=losses.standardise(outputs.logits))


def on_logits(logits: str, term: TermSpec, weight: AutomaticWeight) -> TermSpec:
    """Return a term of logits on ``raw`` or ``standardised`` ones.

    Raises:
        ValueError: if the name is unknown, or the weight is automatic on standardised logits: it would come from the
            gradient of an untrained student, which standardisation makes arbitrarily large.
    """
    checks.known(logits, "logits", LOGITS, example="standardised")
    if logits == "raw":
        return term
    if isinstance(weight, Automatic):
        expected, name = "a number where logits are standardised", weight.argument
        raise InvalidValueError(name, expected, f"{weight}, which is found from raw logits", f"for example {name}=9.0")
    return Standardised(term)


SCHEDULED: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "temperature": lambda z, v, t: losses.ctkd(z, v, temperature=t),
    "gamma": lambda z, v, g: losses.ttm(z, g * v, gamma=1.0),
    "weighted gamma": lambda z, v, g: (g * v.log_softmax(-1)).logsumexp(-1).exp() * losses.ttm(z, g * v, gamma=1.0),
}
"""`losses.kd`, `losses.ttm` and `losses.wttm` at a number that is a tensor."""


@dataclass(frozen=True)
class Scheduled:
    """A loss of `SCHEDULED` at a temperature, or an exponent, that is a schedule of progress.

    It changes from step to step as a tensor does, so that nothing is compiled or captured anew.
    """

    needs: ClassVar = Requirements(teacher=True, labels="none")
    target_gamma: ClassVar[None] = None  # it changes
    loss: str  # name of the loss
    number: Schedule

    def bind(self, context: BindContext) -> Term:
        """Build the term; it needs nothing from the context."""
        return _BoundScheduled(self)


class _BoundScheduled(nn.Module):
    """A bound `Scheduled`: no parameters, no state."""

    def __init__(self, spec: Scheduled) -> None:
        super().__init__()
        self.needs, self._loss, self._number = spec.needs, spec.loss, spec.number
        self.scheduled = (spec.number,)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress) -> Tensor:
        z, v = student.logits, present(teacher).logits
        return SCHEDULED[self._loss](
            z, v, torch.as_tensor(weight_at(self._number, progress), dtype=z.dtype, device=z.device)
        )


@dataclass(frozen=True, kw_only=True)
class CTKD:
    """Curriculum temperature: `losses.ctkd` at ``T = lowest + span * sigmoid(theta)`` with a learned ``theta``.

    ``theta`` gets its gradient multiplied by ``reversal``: if negative, it climbs where the student descends.
    """

    needs: ClassVar = Requirements(teacher=True, labels="none")
    target_gamma: ClassVar[None] = None  # the temperature changes
    reversal: float | Schedule  # factor of the gradient, a number of either sign or a schedule
    lowest: float = 1.0  # lower bound of the temperatures, above 0
    span: float = 20.0  # span of the temperatures, above 0
    theta: float = 1.0  # initial value

    def __post_init__(self) -> None:
        checks.positive(self.lowest, "lowest", example=1.0)
        checks.positive(self.span, "span", example=20.0)

    def bind(self, context: BindContext) -> Term:
        """Build the term with the initial ``theta``."""
        return _BoundCTKD(self)


class _BoundCTKD(nn.Module):
    """A bound `CTKD`; its parameter ``theta``, ``()``, is in checkpoints and in the optimizer, with weight decay."""

    def __init__(self, spec: CTKD) -> None:
        super().__init__()
        self.needs, self._spec = spec.needs, spec
        self.scheduled = (spec.reversal,)
        self.theta = nn.Parameter(torch.tensor(float(spec.theta)))

    def temperature(self, theta: Tensor) -> Tensor:
        """Return ``T`` of a ``theta``, ``()``."""
        return self._spec.lowest + self._spec.span * theta.sigmoid()

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress) -> Tensor:
        theta = losses.scaled_gradient(self.theta, factor=weight_at(self._spec.reversal, progress))
        return losses.ctkd(student.logits, present(teacher).logits, temperature=self.temperature(theta))


@dataclass(frozen=True, kw_only=True)
class TeKAP:
    """`losses.tekap` with standard normal noise, drawn at each call from torch's generator on the logits' device."""

    needs: ClassVar = Requirements(teacher=True, labels="none")
    target_gamma: ClassVar[None] = None  # the perspectives are noisy
    temperature: float  # of both networks, above 0
    share: float  # noise's share of a perspective's logits, in [0, 1)
    perspectives: int  # number of noisy copies of the teacher, at least 1
    perturbed: float  # weight of their sum, at least 0

    def __post_init__(self) -> None:
        checks.positive(self.temperature, "temperature", example=4.0)
        checks.fraction(self.share, "share", example=0.1)
        checks.whole_number(self.perspectives, "perspectives", example=3)
        checks.weight(self.perturbed, "perturbed", example=0.8)

    def bind(self, context: BindContext) -> Term:
        """Build the term; it needs nothing from the context."""
        return _BoundTeKAP(self)


class _BoundTeKAP(nn.Module):
    """A bound `TeKAP`: no parameters, and no state but that of torch's generator, which a run keeps."""

    def __init__(self, spec: TeKAP) -> None:
        super().__init__()
        self.needs, self._perspectives = spec.needs, spec.perspectives
        self._numbers = {"temperature": spec.temperature, "share": spec.share, "perturbed": spec.perturbed}

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress) -> Tensor:
        v = present(teacher).logits
        noise = torch.randn((self._perspectives, *v.shape), dtype=v.dtype, device=v.device)
        return losses.tekap(student.logits, v, noise=noise, **self._numbers)


@preset("labels alone; label smoothing: Szegedy et al. 2016, arXiv:1512.00567")
def cross_entropy(*, label_smoothing: float = 0.0, weight: Weight = 1.0) -> Objective:
    """``weight * CE(y, q)``: learning from labels, with no teacher.

    ``label_smoothing``, in [0, 1), is the share of each label that is spread evenly over all classes.
    """
    return objective_of(supervised_part(weight, label_smoothing=label_smoothing))


@preset("Pereyra et al. 2017, arXiv:1701.06548")
def confidence_penalty(*, weight: Weight = 0.1) -> Objective:
    """``-weight * H(q)``: a penalty on low entropy, in nats, with the paper's beta. It includes no cross-entropy."""
    return objective_of(WeightedTerm("confidence_penalty", weight, Apply(losses.confidence_penalty)))


@preset("Zheng and Yang 2024, arXiv:2402.11148, section 3")
def renyi_penalty(*, weight: SignedWeight, order: float) -> Objective:
    """``-weight * H_order(q)``: the regulariser that TTM has and KD lacks, with its weight and order free.

    It includes no cross-entropy: ``kd(...) + renyi_penalty(...)``. With ``order = 1/T`` and
    ``weight = beta * (T - 1)``, ``kd(temperature=T, weight=lam, supervised=1 - lam) * (1 / (1 - lam))`` plus it is TTM
    up to a constant, where ``beta = lam / (1 - lam) * T``.

    Args:
        weight: weight of the penalty, in nats, any finite number. Below 0 the term rewards low entropy, as TTM does
            with T < 1.
        order: order of the Rényi entropy, > 0; at 1 it is the Shannon entropy.
    """
    return objective_of(WeightedTerm("renyi_penalty", weight, Apply(losses.renyi_penalty, {"order": order})))


@preset("Hinton et al. 2015, arXiv:1503.02531")
def kd(
    *,
    temperature: AutomaticScheduledNumber = 4.0,
    weight: AutomaticWeight = 0.9,
    supervised: Weight = 0.1,
    logits: str = "raw",
) -> Objective:
    """``supervised * CE(y, q) + weight * T**2 * KL(p_T || q_T)``.

    Published settings: CIFAR-100 T=4, 0.1 and 0.9; ImageNet T=1, 0.5 and 0.5.

    Args:
        temperature: T > 0, on both sides; a number, or a schedule such as ``{schedule: linear, start: 8, end: 1}``.
            ``auto`` is 1 over the automatic gamma of `ttm`.
        weight: weight of the KL, whose ``T**2`` is unconditional; lambda in the TTM paper. ``auto`` is gamma times the
            automatic beta of `ttm` at ``gamma = 1/T``, so that both have one factor on their divergence.
        supervised: weight of the cross-entropy, always on raw logits.
        logits: form of the logits: ``raw``, or ``standardised`` over the classes (Sun et al. 2024, arXiv:2403.01427;
            theirs is T=2, a weight of 9 and 0.1 of the cross-entropy on CIFAR-100).

    Differs from: a public library that drops ``T**2`` if its alpha is 0, and code that keeps the cross-entropy at 1.
    """
    t = cast(WeightValue, temperature)  # by the decorator
    if isinstance(t, Schedule):
        if isinstance(weight, Automatic):
            expected, instead = "a number where the temperature is a schedule", "for example weight=0.9"
            raise InvalidValueError("weight", expected, weight, instead)
        match: TermSpec = Scheduled("temperature", t)
    elif isinstance(t, Automatic):
        match, weight = Matching(gamma=AUTO, temperature=AUTO), _in_betas(weight, t)
    else:
        match = Apply(losses.kd, {"temperature": t}, target_gamma=1 / t if t else None)
        weight = _in_betas(weight, t)
    return objective_of(supervised_part(supervised), WeightedTerm("kd", weight, on_logits(logits, match, weight)))


def _in_betas(weight: AutomaticWeight, temperature: float | Automatic, argument: str = "weight") -> AutomaticWeight:
    """Return the weight of KD's divergence; an automatic one is found as gamma times TTM's beta."""
    if not isinstance(weight, Automatic) or not temperature:
        return weight
    return Automatic(argument=argument, unit=None if isinstance(temperature, Automatic) else 1 / temperature)


@preset("Zheng and Yang 2024, arXiv:2402.11148, section 3")
def ttm(
    *,
    gamma: AutomaticScheduledNumber = 0.25,
    beta: AutomaticWeight = AUTO,
    supervised: Weight = 1.0,
    logits: str = "raw",
) -> Objective:
    """``supervised * CE(y, q) + beta * KL(p_gamma || q)``: transformed teacher matching.

    Args:
        gamma: exponent, > 0; 1/T in knowledge distillation; a number or a schedule. ``auto`` is 1 for tokens, else the
            gamma in (0, 1] at which the teacher's mean ``KL(p_gamma || 1/K)`` is log 2, or half of log K for fewer than
            four classes; 1 if the teacher is flatter than that.
        beta: weight of the matching term; ``auto`` balances its first gradient with cross-entropy's.
        supervised: weight of the cross-entropy, always on raw logits.
        logits: form of the logits: ``raw``, or ``standardised`` over the classes (Sun et al. 2024, arXiv:2403.01427),
            unpublished for TTM; ``beta`` must then be a number.
    """
    match = _at(losses.ttm, "gamma", gamma)
    return objective_of(supervised_part(supervised), WeightedTerm("ttm", beta, on_logits(logits, match, beta)))


def _at(loss: Callable[..., Tensor], scheduled: str, gamma: AutomaticScheduledNumber) -> TermSpec:
    """Return a loss at an exponent: a number, a schedule, or one that is found."""
    exponent = cast(WeightValue | Automatic, gamma)  # by the decorator
    if isinstance(exponent, Schedule):
        return Scheduled(scheduled, exponent)
    if isinstance(exponent, Automatic):
        return Matching(gamma=AUTO, weight_by="power_sum" if loss is losses.wttm else "constant")
    return Apply(loss, {"gamma": exponent}, target_gamma=exponent)


def fixed(gamma: object, expected: str, instead: str) -> Any:
    """Return an exponent that may be no schedule."""
    if isinstance(gamma, Schedule):
        raise InvalidValueError("gamma", expected, gamma, instead)
    return gamma


def kd_matched_to(objective: Objective) -> Objective:
    """Return the `kd` of a `ttm`, or the `weighted_kd` of a `wttm`, that lacks the Rényi entropy of the student alone.

    Its T is ``1 / gamma``, its weight ``beta * gamma``, so that ``KL(p_gamma || q_gamma)`` has the factor ``beta * T``
    that it has in TTM; all else is TTM's: the cross-entropy, the scale, the form of the logits, the weights of samples.
    Then, up to a constant, ``ttm = kd_matched_to(ttm) - beta * (T - 1) * H_{1/T}(q)``, and for `wttm` with the mean of
    ``U * H_{1/T}(q)``: a difference of the two tests this regulariser. In a recipe it is
    ``kd: {matched_to: {ttm: {gamma: 0.25, beta: 4}}}``.

    Args:
        objective: one `ttm` or `wttm`, scaled or not; an automatic beta is found once more, with the same result.

    Raises:
        TypeError: if it is no objective.
        ValueError: if it is neither.
    """
    example = "for example tutelage.objectives.ttm(gamma=0.25, beta=4.0)"
    if not isinstance(objective, Objective):
        raise InvalidTypeError("objective", "an objective", f"an object of type {type(objective).__name__}", example)
    names = [piece.preset or "terms put together by hand" for piece in objective.pieces]
    if len(names) != 1 or names[0] not in MATCHED:
        raise InvalidValueError("objective", f"one {' or '.join(MATCHED)}", " + ".join(names), example)
    (piece,), (name,) = objective.pieces, names
    presets: dict[str, Callable[..., Objective]] = {"kd": kd, "weighted_kd": weighted_kd}
    build = presets[MATCHED[name]]
    (matched,) = build(**matched_kd(piece.arguments or {})).pieces
    defaulted = frozenset(f"{MATCHED_TO}.{name}.{argument}" for argument in piece.defaulted)
    return Objective((replace(matched, scale=piece.scale, gather=piece.gather, defaulted=defaulted),))


@preset("Zheng and Yang 2024, arXiv:2402.11148, section 4")
def wttm(
    *,
    gamma: AutomaticScheduledNumber = 0.25,
    beta: AutomaticWeight = AUTO,
    supervised: Weight = 1.0,
    normalise: str = "none",
    logits: str = "raw",
) -> Objective:
    """``supervised * CE(y, q) + beta * U_gamma(p) * KL(p_gamma || q)``: TTM with each sample weighted by its power sum.

    The paper's power sum is not normalised (it is between 1 and ``classes**(1 - gamma)``), so beta does not carry over
    between gammas.

    Args:
        gamma: exponent, > 0; a number, or without ``normalise`` a schedule. ``auto`` is that of `ttm`.
        beta: weight of the matching term; ``auto`` balances its first gradient with cross-entropy's.
        supervised: weight of the cross-entropy.
        normalise: divisor of the power sum: ``none``, or its mean over the ``batch``, which couples a batch's samples,
            or over the ``training`` set, found once.
        logits: form of the logits: ``raw``, or ``standardised`` over the classes (Sun et al. 2024, arXiv:2403.01427),
            unpublished for WTTM; ``beta`` must then be a number, and the power sum is the standardised teacher's.
    """
    match = _at(losses.wttm, "weighted gamma", gamma)
    if normalise != "none":
        instead = "type normalise=none, or for example gamma=0.25"
        number = fixed(gamma, "a number or auto where weights are normalised", instead)
        match = Matching(gamma=number, weight_by="power_sum", normalise=normalise)
    return objective_of(supervised_part(supervised), WeightedTerm("wttm", beta, on_logits(logits, match, beta)))


@preset("the control of Zheng and Yang 2024, arXiv:2402.11148, section 4")
def weighted_kd(
    *,
    temperature: AutomaticNumber = 4.0,
    weight: AutomaticWeight = AUTO,
    supervised: Weight = 1.0,
    normalise: str = "none",
    logits: str = "raw",
) -> Objective:
    """``supervised * CE(y, q) + weight * T**2 * U_gamma(p) * KL(p_T || q_T)``: KD with the sample weights of `wttm`.

    ``gamma = 1/T``. No paper's method: WTTM without its entropy, to compare it with; see `kd_matched_to`.

    Args:
        temperature: T > 0, on both sides; ``auto`` is 1 over the automatic gamma of `wttm`.
        weight: weight of the matching term; ``auto`` is gamma times the automatic beta of `wttm` at ``gamma = 1/T``.
        supervised: weight of the cross-entropy.
        normalise: divisor of the power sum: ``none``, or its mean over the ``batch``, which couples a batch's samples,
            or over the ``training`` set, found once.
        logits: form of the logits: ``raw``, or ``standardised`` over the classes (Sun et al. 2024, arXiv:2403.01427);
            ``weight`` must then be a number, and the power sum is the standardised teacher's.
    """
    t = cast(float | Automatic, temperature)  # by the decorator
    gamma = t if isinstance(t, Automatic) else 1 / t if t else None
    match: TermSpec
    if isinstance(gamma, Automatic) or (normalise != "none" and gamma is not None):
        match = Matching(gamma=gamma, weight_by="power_sum", normalise=normalise, temperature=t)
    else:
        match = Apply(losses.weighted_kd, {"temperature": t}, target_gamma=gamma)
    weight = _in_betas(weight, t)
    term = on_logits(logits, match, weight)
    return objective_of(supervised_part(supervised), WeightedTerm("weighted_kd", weight, term))


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
    """``supervised * CE(y, q) + beta * w(p) * KL(p_f || q)``: other transforms and weights than TTM's and WTTM's.

    ``transformed_matching(gamma=g, beta=b)`` is ``ttm``, and with ``weight_by=power_sum`` it is ``wttm``.

    Args:
        transform: name of f: ``power``, ``rational``, ``logarithm`` or ``complement``.
        gamma: parameter of the transform; 1 changes nothing, and the smaller the flatter. ``auto`` is the automatic
            gamma of `ttm`, and of other transforms as flat as the power at 0.25: the same mean entropy over the
            training set.
        beta: weight of the matching term; ``auto`` balances its first gradient with cross-entropy's.
        supervised: weight of the cross-entropy.
        weight_by: name of w: ``constant``, ``power_sum`` (of f), ``entropy`` or ``one_minus_top``.
        weight_of: distribution that the last two read: the ``teacher``'s p or the ``target`` p_f.
        order: order of a Rényi entropy; 1 is Shannon's.
        normalise: divisor of w: ``none``, or its mean over the ``batch``, which couples a batch's samples, or over the
            ``training`` set, found once.
    """
    read = cast(float | Automatic, gamma)  # by the decorator
    match = Matching(
        gamma=read, transform=transform, weight_by=weight_by, weight_of=weight_of, order=order, normalise=normalise
    )
    return objective_of(supervised_part(supervised), WeightedTerm("transformed_matching", beta, match.simplest()))


@preset("the product of what is here by name; searched over by Li et al. 2023 (KD-Zero, NeurIPS)")
def matching(
    *,
    divergence: str = "forward",
    target: str = "power",
    gamma: AutomaticNumber = AUTO,
    temperature: float = 1.0,
    weight_by: str = "constant",
    beta: AutomaticWeight = AUTO,
    supervised: Weight = 1.0,
    regulariser: str = "none",
    regulariser_weight: SignedWeight = 0.1,
    regulariser_order: float = 1.0,
    share: AutomaticNumber = AUTO,
    ab_alpha: AutomaticNumber = AUTO,
    ab_beta: AutomaticNumber = AUTO,
    mu: AutomaticNumber = AUTO,
    sinkhorn_lambda: AutomaticNumber = AUTO,
    sinkhorn_iter: AutomaticNumber = AUTO,
    weight_of: str = "teacher",
    order: float = 1.0,
    normalise: str = "none",
    logits: str = "raw",
) -> Objective:
    """``supervised * CE(y, q) + beta * T**2 * w(p) * D(p_f, q_T) + R(q)``: any divergence, target, weight, regulariser.

    ``kd``, ``ttm``, ``wttm``, ``weighted_kd``, ``transformed_matching`` and the reverse KL are points of it: see
    docs/methods.md. A point that is a named loss is computed by it.

    Args:
        divergence: name of D: ``forward``, ``reverse``, ``jensen_shannon``, ``skew``, ``skew_reverse``,
            ``total_variation``, ``alpha_beta``, ``adaptive``, ``class_wise``, or ``wasserstein``, whose cost between
            classes is ``1 - exp(cos - 1)`` of the rows of the teacher's last layer; see `losses.divergence`. All work
            token by token, the last one where there are at most 10,000 classes.
        target: name of f, which makes the target ``p_f``: ``power``, ``rational``, ``logarithm`` or ``complement``.
        gamma: parameter of f; 1 changes nothing, and the smaller the flatter. ``auto`` is the automatic gamma of
            `ttm`, and of other mappings as flat as the power at 0.25.
        temperature: T > 0 of the student alone; values are times its square. `kd` has ``gamma = 1 / T``.
        weight_by: name of w: ``constant``, ``power_sum`` (of f), ``entropy`` or ``one_minus_top``.
        beta: weight of the matching term; ``auto`` balances its first gradient with cross-entropy's.
        supervised: weight of the cross-entropy, always on raw logits.
        regulariser: name of R: ``none``, ``confidence``, minus the entropy of the student, or ``renyi``, minus its
            Rényi entropy.
        regulariser_weight: weight of R, any finite number; below 0 it rewards low entropy.
        regulariser_order: order of the Rényi entropy, > 0; 1 is Shannon's.
        share: teacher's share of the mixture of ``jensen_shannon``, ``skew`` and ``skew_reverse``, above 0 and below 1;
            ``auto`` is 0.5, 0.1 and 0.9.
        ab_alpha: exponent of the target in ``alpha_beta``, any finite number; ``auto`` is 0.5.
        ab_beta: exponent of the student in ``alpha_beta``, any finite number; ``auto`` is 0.5.
        mu: mass of the head of ``adaptive``, in [0, 1); ``auto`` is 0.5.
        sinkhorn_lambda: weight of the plan's entropy in ``wasserstein``, > 0; ``auto`` is 0.05.
        sinkhorn_iter: number of iterations of ``wasserstein``; ``auto`` is 10, which do not converge at high
            temperatures: see `losses.transport`.
        weight_of: distribution that the entropy or the top is of: the ``teacher``'s p or the ``target`` p_f.
        order: order of the entropy that weighs; 1 is Shannon's.
        normalise: divisor of w: ``none``, or its mean over the ``batch``, which couples a batch's samples, or over the
            ``training`` set, found once.
        logits: form of the logits of D and w: ``raw``, or ``standardised`` over the classes; ``beta`` must then be a
            number.
    """
    checks.known(target, "target", targets.TRANSFORMS, example="power")
    how: dict[str, Any] = {"transform": target, "weight_by": weight_by, "weight_of": weight_of, "order": order}
    how |= {"divergence": divergence, "temperature": temperature, "normalise": normalise}
    how |= {"gamma": gamma, "share": share, "ab_alpha": ab_alpha, "ab_beta": ab_beta, "mu": mu}
    how |= {"sinkhorn_lambda": sinkhorn_lambda, "sinkhorn_iter": sinkhorn_iter}
    beta = _in_betas(beta, temperature, "beta")
    term = WeightedTerm("matching", beta, on_logits(logits, Matching(**how).simplest(), beta))
    penalty = regulariser_part(regulariser, regulariser_weight, regulariser_order)
    return objective_of(supervised_part(supervised), term, *penalty)


def regulariser_part(name: str, weight: SignedWeight, order: float) -> tuple[WeightedTerm, ...]:
    """Return the penalty of a name of `REGULARISERS`, if it is one.

    Raises:
        ValueError: if the name is unknown, or a number is given that it does not read.
    """
    checks.known(name, "regulariser", REGULARISERS, example="confidence")
    if order != 1 and name != "renyi":
        expected = f"1 with regulariser {name}, which has no order"
        raise InvalidValueError("regulariser_order", expected, order, "type regulariser=renyi")
    if name == "none":
        if weight != 0.1:
            got, instead = f"{weight}, and no regulariser", "type regulariser=confidence, or leave it out"
            raise InvalidValueError("regulariser_weight", "a weight of a regulariser", got, instead)
        return ()
    if name == "confidence":
        return (WeightedTerm("confidence_penalty", weight, Apply(losses.confidence_penalty)),)
    checks.positive(order, "regulariser_order", example=0.5)
    return (WeightedTerm("renyi_penalty", weight, Apply(losses.renyi_penalty, {"order": order})),)


@preset("Li et al. 2023, arXiv:2211.16231")
def ctkd(
    *,
    reversal: SignedWeight = CTKD_REVERSAL,
    lowest: float = 1.0,
    span: float = 20.0,
    theta: float = 1.0,
    weight: Weight = 0.9,
    supervised: Weight = 0.1,
) -> Objective:
    """``supervised * CE(y, q) + weight * T**2 * KL(p_T || q_T)`` with a learned ``T = lowest + span * sigmoid(theta)``.

    The temperature, one for all samples, is trained with the student, its gradient multiplied by ``reversal``: if
    negative, it makes the term harder. Published settings: the reversal falls to -1 within 10 epochs; on ImageNet
    within 5, and both weights are 1.

    Args:
        reversal: factor of the gradient, a number or schedule of either sign.
        lowest: lower bound of the temperatures, > 0.
        span: span of the temperatures, > 0.
        theta: initial theta; at 1 with the other defaults, T is 15.6.
        weight: weight of the KL.
        supervised: weight of the cross-entropy.

    Differs from: nothing in the authors' code, apart from its theta of shape ``(1,)``; the paper's other form, with a
    temperature per sample, is not implemented.
    """
    read = cast(WeightValue, reversal)  # by the decorator
    match = CTKD(reversal=read, lowest=lowest, span=span, theta=theta)
    return objective_of(supervised_part(supervised), WeightedTerm("ctkd", weight, match))


@preset("Yuan et al. 2020, arXiv:1909.11723")
def teacher_free_kd(
    *, correct: float = 0.99, temperature: float = 20.0, weight: Weight = 0.1, supervised: Weight = 0.9
) -> Objective:
    """``supervised * CE(y, q) + weight * KL(softmax(u / T) || q)`` with a virtual teacher ``u``: no teacher is needed.

    Published settings on CIFAR-100: ResNet-18 T=20, 0.9 and 0.1; GoogLeNet T=40, 0.9 and 0.05; MobileNetV2 T=40, 0.05
    and 0.0095. The code's alpha is 0.1, 0.1 and 0.95, its multiplier 100, 50 and 1, and it averages over the classes.

    Args:
        correct: value of u at the label, > 0 and < 1; the rest is spread evenly over the other classes.
        temperature: T > 0, of the virtual teacher alone.
        weight: weight of the KL: the code's ``alpha * multiplier / classes``.
        supervised: weight of the cross-entropy.
    """
    match = Apply(losses.teacher_free_kd, {"correct": correct, "temperature": temperature})
    return objective_of(supervised_part(supervised), WeightedTerm("teacher_free_kd", weight, match))


@preset("Hossain et al. 2025, ICLR, Single Teacher, Multiple Perspectives")
def tekap(
    *,
    temperature: float = 4.0,
    share: float = 0.1,
    perspectives: int = 3,
    perturbed: float = 0.8,
    weight: Weight = 0.9,
    supervised: Weight = 0.1,
) -> Objective:
    """``supervised * CE(y, q) + weight * (KD(v) + perturbed * sum_i KD((1 - share) * v + share * noise_i))``.

    ``KD(u) = T**2 * KL(u_T || q_T)`` of logits ``u``: the teacher's own, and perspectives of them with standard normal
    noise, drawn anew at each step. This is the method's part on logits; its part on features is not implemented.
    Published settings: CIFAR-100 these.

    Args:
        temperature: T > 0, on all sides.
        share: noise's share of a perspective's logits, in [0, 1).
        perspectives: number of perspectives, a whole number >= 1; their sum grows with it.
        perturbed: weight of the perspectives beside the teacher itself, >= 0.
        weight: weight of teacher and perspectives together.
        supervised: weight of the cross-entropy.
    """
    match = TeKAP(temperature=temperature, share=share, perspectives=perspectives, perturbed=perturbed)
    return objective_of(supervised_part(supervised), WeightedTerm("tekap", weight, match))
