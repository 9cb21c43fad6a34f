"""How a run is trained: plain frozen dataclasses, which recipes validate and the loop reads."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Le

from tutelage.errors import InvalidValueError, nearest
from tutelage.settings.numbers import (
    FLOAT32,
    LARGEST,
    LARGEST_COUNT,
    SMALLEST,
    Range,
    Real,
    Truth,
    Whole,
    fits_float32,
    ranged,
)
from tutelage.settings.objective import ClassWeights, ObjectiveSpec

Count = Annotated[Whole, Ge(1), Le(LARGEST_COUNT)]
"""Whole number of at least one."""
Threads = Annotated[Whole, Ge(1), Le(1024)]
"""Number of the CPU's threads; OpenMP aborts the process where the system has no room for more."""
Positive = Annotated[Real, Ge(SMALLEST), Le(LARGEST)]
Precision = Literal["fp32", "tf32", "bf16", "fp16", "fp64"]
"""Precision of the networks; see `training.precision`."""
Switch = Literal["auto"] | Truth
"""Choice of a form: ``auto`` decides by what there is or, for speed, measures if the fit is long enough to repay it."""
Shard = Literal["none", "student", "teacher", "both"]
"""Networks whose parameters are sharded over several processes."""
LossForm = Literal["plain", "compiled", "fused", "fused_compiled", "last_layer"]
"""Form of an objective's losses: one by one, compiled, the cross-entropy and a loss of logits fused, the same in sweeps
that are compiled, or fused with both networks' last layers, without ever holding all logits."""


def _check(name: str, got: object, expected: str, good: bool, example: object) -> None:
    numbers = got if isinstance(got, tuple) else (got,)
    # A run's records are JSON, which has no infinity, and its numbers meet float32 tensors.
    if not all(fits_float32(number) for number in numbers if isinstance(number, float)):
        good, expected = False, f"{expected} {FLOAT32}"
    if not all(abs(number) <= LARGEST_COUNT for number in numbers if isinstance(number, int)):
        good, expected = False, f"{expected}, at most {LARGEST_COUNT}"
    if not good:
        raise InvalidValueError(name, expected, got, f"for example {name}={example}")


def check_ranges(section: str, settings: Any) -> None:
    """Refuse numbers of a section that are out of their `Range`."""
    for name, value, known in ranged(settings):
        default = type(settings).__dataclass_fields__[name].default
        example = default if known.example is None else known.example
        example = list(example) if isinstance(example, tuple) else example
        _check(f"{section}.{name}", value, known.words, known.holds(value), example)


LearningRate = Annotated[Real, Range("a number > 0", above=0)]
Momentum = Annotated[Real, Range("a number in [0, 1)", least=0, below=1, example=0.9)]
Decay = Annotated[Real, Range("a number >= 0", least=0)]
Epsilon = Annotated[Real, Range("a number > 0", above=0, example=1e-8)]
LayerDecay = Annotated[Real, Range("a factor in (0, 1], or null", above=0, most=1, example=0.75)]
WarmUp = Annotated[Real, Range("epochs in [0, 1e6]", least=0, most=1e6, example=0)]
Factor = Annotated[Real, Range("a number > 0", above=0)]


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent; the defaults are the CIFAR-100 protocol's, weight decay on every parameter.

    Attributes:
        lr: peak learning rate, > 0.
        momentum: momentum, in [0, 1).
        weight_decay: weight decay, >= 0.
        nesterov: whether the momentum is Nesterov's.
        layer_decay: factor in (0, 1] of the rate from layer to layer, from the head down; see `training.layers`.
            ``None`` for one rate.
    """

    name: Literal["sgd"] = "sgd"
    lr: LearningRate = 0.05
    momentum: Momentum = 0.9
    weight_decay: Decay = 5e-4
    nesterov: Truth = False
    layer_decay: LayerDecay | None = None

    def __post_init__(self) -> None:
        check_ranges("optimizer", self)
        good = self.momentum > 0 or not self.nesterov
        _check("optimizer.nesterov", self.nesterov, "momentum > 0 with it", good, False)


@dataclass(frozen=True)
class AdamW:
    """AdamW (Loshchilov and Hutter 2019) without decay on one-dimensional parameters (norms, biases).

    Parameters that a network lists in a method ``no_weight_decay()`` do not decay either, such as the class token and
    positions of timm's transformers.

    Attributes:
        lr: peak learning rate, > 0.
        betas: decay rates of the two moments, each in [0, 1).
        eps: constant added to the denominator, > 0.
        weight_decay: decoupled weight decay, >= 0.
        layer_decay: as for `SGD`.
    """

    name: Literal["adamw"] = "adamw"
    lr: LearningRate = 1e-3
    betas: Annotated[tuple[Real, Real], Range("two numbers in [0, 1)", count=(2, 2), least=0, below=1)] = (0.9, 0.999)
    eps: Epsilon = 1e-8
    weight_decay: Decay = 0.05
    layer_decay: LayerDecay | None = None

    def __post_init__(self) -> None:
        check_ranges("optimizer", self)


TIMM = "timm:"
"""How the name of an optimizer of timm's begins."""


@functools.cache
def timm_optimizers() -> Mapping[str, list[str] | str]:
    """Return the arguments of each of timm's optimizers, or why it is not used; generated, from ``timm.optim``."""
    listed: Mapping[str, list[str] | str] = json.loads(
        (Path(__file__).parent / "timm_optimizers.json").read_text(encoding="utf-8")
    )
    return listed


@dataclass(frozen=True)
class LibraryOptimizer:
    """An optimizer of timm's, by name, without weight decay where `AdamW` has none.

    What is not given has the default of ``timm.optim.create_optimizer_v2``. It is not captured in a CUDA graph.

    Attributes:
        name: ``timm:`` and a name that ``timm.optim.list_optimizers`` has, such as ``timm:muon``.
        lr: peak learning rate, > 0.
        weight_decay: weight decay, >= 0, coupled or not as this optimizer has it.
        momentum: momentum, in [0, 1), of one that has some.
        betas: decay rates of its moments, each in [0, 1).
        eps: constant > 0 that it adds to a denominator.
        options: its other arguments, plain values by their names.
        layer_decay: as for `SGD`.
    """

    tag: ClassVar[str] = f"{TIMM}NAME"

    name: str
    lr: LearningRate = 1e-3
    weight_decay: Annotated[Real, Range("a number >= 0", least=0, example=0.05)] = 0.0
    momentum: Momentum | None = None
    betas: (
        Annotated[
            tuple[Real, ...],
            Range("two or three numbers in [0, 1)", least=0, below=1, count=(2, 3), example=(0.9, 0.999)),
        ]
        | None
    ) = None
    eps: Epsilon | None = None
    options: dict[str, Any] | None = None
    layer_decay: LayerDecay | None = None

    def __post_init__(self) -> None:
        known = timm_optimizers()
        arguments = known.get(self.library_name) if self.name.startswith(TIMM) else None
        if arguments is None:
            usable = [f"{TIMM}{name}" for name, value in known.items() if not isinstance(value, str)]
            instead = nearest(self.name, usable, otherwise=f"for example {TIMM}muon")
            raise InvalidValueError(
                "optimizer.name", "sgd, adamw, or timm: and a name of timm.optim", repr(self.name), instead
            )
        if isinstance(arguments, str):
            instead = "type optimizer.name=timm:adamw, or another"
            expected = "one of timm's optimizers that works in the steps here"
            raise InvalidValueError("optimizer.name", expected, f"{self.name}, which {arguments}", instead)
        check_ranges("optimizer", self)
        own = ("momentum", "betas", "eps")
        options = self.options or {}
        for name in (*(name for name in own if getattr(self, name) is not None), *options):
            key = f"optimizer.{name}" if name in own and name not in options else f"optimizer.options.{name}"
            if name in ("lr", "weight_decay", *own) and name in options:
                raise InvalidValueError(key, "no key of optimizer itself", name, f"type optimizer.{name}=...")
            if name not in arguments:
                takes = ", ".join(name for name in arguments)
                instead = nearest(name, arguments, otherwise=f"leave {name} out")
                raise InvalidValueError(key, f"an argument of {self.name}: {takes}", repr(name), instead)
            if not _is_plain(options.get(name)):
                expected = f"a plain value: a number {FLOAT32}, text, true, false, null or a list of these"
                raise InvalidValueError(key, expected, options[name], f"leave {name} out")

    @property
    def library_name(self) -> str:
        """The name as timm has it."""
        return self.name.removeprefix(TIMM)

    @property
    def given(self) -> dict[str, Any]:
        """The arguments that are given, but rate and weight decay."""
        named = {name: getattr(self, name) for name in ("momentum", "betas", "eps")}
        return {name: value for name, value in named.items() if value is not None} | (self.options or {})


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))


@dataclass(frozen=True)
class Constant:
    """The peak rate throughout, after a linear rise from 0 over ``warmup`` epochs (possibly a fraction)."""

    name: Literal["constant"] = "constant"
    warmup: WarmUp = 0.0

    def __post_init__(self) -> None:
        check_ranges("schedule", self)


@dataclass(frozen=True)
class Step:
    """The rate times ``factor`` > 0 after every ``every`` >= 1 epochs; the warm-up is that of `Constant`."""

    name: Literal["step"] = "step"
    every: Annotated[Whole, Range("epochs >= 1", least=1)] = 30
    factor: Factor = 0.1
    warmup: WarmUp = 0.0

    def __post_init__(self) -> None:
        check_ranges("schedule", self)


@dataclass(frozen=True)
class MultiStep:
    """The rate times ``factor`` > 0 after each of ascending ``milestones``: 150 first affects epoch 151.

    The warm-up is that of `Constant`.
    """

    name: Literal["multistep"] = "multistep"
    milestones: Annotated[tuple[Whole, ...], Range("ascending epochs >= 1", least=1)] = (150, 180, 210)
    factor: Factor = 0.1
    warmup: WarmUp = 0.0

    def __post_init__(self) -> None:
        check_ranges("schedule", self)
        rising = list(self.milestones) == sorted(set(self.milestones))
        _check("schedule.milestones", self.milestones, "ascending epochs >= 1", rising, [150, 180, 210])


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from the peak to ``final``, a fraction of it in [0, 1], updated per step, after the warm-up.

    The warm-up is that of `Constant`.
    """

    name: Literal["cosine"] = "cosine"
    final: Annotated[Real, Range("a fraction of the peak in [0, 1]", least=0, most=1, example=0)] = 0.0
    warmup: WarmUp = 0.0

    def __post_init__(self) -> None:
        check_ranges("schedule", self)


Optimizer = SGD | AdamW | LibraryOptimizer
Schedule = Constant | Step | MultiStep | Cosine


@dataclass(frozen=True, kw_only=True)
class EMA:
    """An exponential moving average of the student's weights, which is evaluated and kept in their place.

    The decay of step ``t``, counted from 1 in each stage, is ``min(decay, (1 + t) / (10 + t))`` with the warm-up: the
    average then forgets the first weights as training goes on, over the last ninth of the steps so far, until
    ``decay`` is reached, at 0.999 after 8990 steps. From there on it averages over about ``1 / (1 - decay)`` steps. The
    default suits runs of 10,000 to 100,000 steps; shorter ones never get there, and for longer ones 0.9999 is usual.

    Attributes:
        decay: share of the average that a step keeps, in (0, 1).
        warm_up: whether the decay rises to it; otherwise it is the same from the first step on.
    """

    decay: Annotated[Real, Range("a number in (0, 1)", above=0, below=1)] = 0.999
    warm_up: Truth = True

    def __post_init__(self) -> None:
        check_ranges("ema", self)

    def decay_at(self, step: int) -> float:
        """Return the decay of a step, counted from 1."""
        return min(self.decay, (1 + step) / (10 + step)) if self.warm_up else self.decay


@dataclass(frozen=True, kw_only=True)
class EarlyStopping:
    """The end of a fit whose student no longer gets better on the validation split, before its last epoch.

    The learning rate's schedule and scheduled weights stay those of all epochs.

    Attributes:
        patience: number of epochs in a row without a rise after which the fit ends, >= 1.
        min_delta: least rise that counts, of what the student is judged by as recorded, >= 0: 0.001 is a tenth of a
            point of accuracy.
        keep: student at the end, of each stage: ``best`` has the weights that did best on the validation split so far,
            ``last`` those of the last epoch.
    """

    patience: Annotated[Count, Range("a whole number >= 1", least=1)] = 5
    min_delta: Annotated[Real, Range("a number >= 0", least=0, example=0)] = 0.0
    keep: Literal["best", "last"] = "best"

    def __post_init__(self) -> None:
        check_ranges("early_stopping", self)


@dataclass(frozen=True)
class FitSettings:
    """Settings of the training loop.

    Attributes:
        epochs: number of epochs, >= 1.
        accumulate: number of micro-batches per batch, >= 1; losses and gradients are those of the whole batch.
        clip: largest L2 norm of the gradient; ``None`` for no clipping.
        precision: precision of the networks: ``fp32`` is float32, in convolutions too; ``tf32`` the same with products
            in TF32, if the device has it; ``bf16`` and ``fp16`` are autocast for the networks (terms stay float32),
            ``fp16`` with loss scaling; ``fp64`` is float64 throughout, losses too, and so is the student that is kept.
        channels_last: whether convolutions use the channels-last memory layout, for speed.
        nonfinite: effect of a non-finite loss or gradient: ``stop`` the run, or ``skip`` the step; it is never applied.
        checkpoint_steps: number of steps between checkpoints within an epoch, or ``None``. One is written after every
            epoch.
        checkpoint_seconds: time between checkpoints within an epoch, seconds.
        log_steps: number of steps between reads of the device's counts.
        compile_teacher: whether to compile the teacher's forward pass.
        compile_student: whether to compile the student.
        gradient_products: whether to compute weight gradients of convolutions as matrix products, decided per shape.
        graphs: whether to capture a step as one CUDA graph and replay it.
        loss_form: form of the losses; ``auto`` measures on CUDA, and on a CPU where logits are many and the losses take
            enough of a step to repay it; else it is ``plain``.
        checkpoint_activations: whether the student's blocks keep their inputs alone for the backward pass, in which
            they are computed again: less memory for more time, and the same gradients. The student is then not
            compiled.
        shard: networks whose parameters are sharded over several processes, each on its device: see
            `training.sharding`. One process computes as without it.
        sync_bn: whether batch norms of several processes take statistics of all processes' samples: ``auto`` of those
            that can, true of all. With false each process has its own, and the first one's running statistics are kept.
        ema: average of the student's weights that is evaluated and kept in their place; ``None`` for none. Each stage
            begins with the student that the one before left, and averages anew.
        early_stopping: when to end before the last epoch, and with which weights; ``None`` to train for all.
    """

    epochs: Count = 240
    optimizer: Optimizer = field(default_factory=SGD)
    schedule: Schedule = field(default_factory=Constant)
    accumulate: Count = 1
    clip: Positive | None = None
    precision: Precision = "fp32"
    channels_last: bool = True
    nonfinite: Literal["stop", "skip"] = "stop"
    checkpoint_steps: Count | None = None
    checkpoint_seconds: Real = 300.0
    log_steps: Count = 50
    compile_teacher: Switch = "auto"
    compile_student: Switch = "auto"
    gradient_products: Switch = "auto"
    graphs: Switch = "auto"
    loss_form: Literal["auto"] | LossForm = "auto"
    checkpoint_activations: bool = False
    shard: Shard = "none"
    sync_bn: Switch = "auto"
    ema: EMA | None = None
    early_stopping: EarlyStopping | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "accumulate", "log_steps"):
            _check(name, getattr(self, name), "a whole number >= 1", getattr(self, name) >= 1, 1)
        if self.clip is not None and not (self.clip > 0 and fits_float32(self.clip)):
            instead = "for no clipping type clip=null"
            raise InvalidValueError("clip", f"a gradient norm > 0 {FLOAT32}", self.clip, instead)
        _check("checkpoint_seconds", self.checkpoint_seconds, "seconds >= 0", self.checkpoint_seconds >= 0, 300)
        if isinstance(self.optimizer, LibraryOptimizer) and self.shard in ("student", "both"):
            expected = f"none or teacher with {self.optimizer.name}, which would take a share of a matrix for the whole"
            raise InvalidValueError("shard", expected, self.shard, "type shard=none, or optimizer=adamw")
        for name in ("compile_student", "gradient_products", "graphs") if self.checkpoint_activations else ():
            form = getattr(self, name)
            _check(name, form, "auto or false with checkpoint_activations", form is not True, "false")
        if self.ema is not None and self.shard in ("student", "both"):
            expected = "none or teacher with ema, as no average is kept of a sharded student"
            raise InvalidValueError("shard", expected, self.shard, "type shard=none, or ema=null")


@dataclass(frozen=True, kw_only=True)
class OnPolicy:
    """On-policy distillation: in some samples the student writes the completion, which the teacher then judges.

    Attributes:
        share: share of the samples, in [0, 1]; 0 for none.
        new_tokens: largest number of tokens that the student writes, in [1, 1000000].
        temperature: divisor of the logits that it draws from, in [0.01, 100].
    """

    share: Annotated[Real, Range("a share in [0, 1]", least=0, most=1)] = 0.5
    new_tokens: Annotated[Whole, Range("a whole number in [1, 1000000]", least=1, most=1_000_000)] = 64
    temperature: Annotated[Real, Range("in [0.01, 100]", least=0.01, most=100, example=1)] = 1.0

    def __post_init__(self) -> None:
        check_ranges("on_policy", self)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """One of a run's fits."""

    objective: ObjectiveSpec  # objective of the student
    settings: FitSettings  # settings of the training loop
    batch_size: Whole = 64  # samples per optimizer step, over all micro-batches and processes
    on_policy: OnPolicy | None = None  # samples whose completion the student writes; ``None`` for none
    class_weights: ClassWeights | None = None  # weights in the cross-entropy with the labels; ``None`` for 1

    def steps(self, samples: int, *, world: int = 1) -> int:
        """Return the number of optimizer steps for this many training samples if ``world`` processes share them."""
        return steps_per_epoch(samples, self.batch_size, world=world) * self.settings.epochs


def steps_per_epoch(samples: int, batch_size: int, *, world: int = 1) -> int:
    """Return the number of steps per epoch if ``world`` processes share each batch.

    The last batch has the remaining samples; if these are fewer than the processes, they are left out of training.

    Raises:
        ValueError: if there are fewer samples, or a smaller batch, than processes.

    Example:
        >>> steps_per_epoch(100, 32), steps_per_epoch(98, 32, world=3)
        (4, 3)
    """
    most = min(samples, batch_size)
    if most < world:
        expected = f"at least one sample for each of {world} processes"
        instead = f"use at most {most} processes"
        raise InvalidValueError("batch_size", expected, f"{samples} samples in batches of {batch_size}", instead)
    whole, remainder = divmod(samples, batch_size)
    return whole + (remainder >= world)


def smallest_share(samples: int, batch_size: int, *, world: int = 1, accumulate: int = 1) -> int:
    """Return the fewest samples in any micro-batch of any of these steps, where ``world`` processes share each batch.

    Example:
        >>> smallest_share(100, 29), smallest_share(100, 29, accumulate=8)
        (13, 1)
    """
    remainder = samples % batch_size
    share = (remainder if remainder >= world else min(batch_size, samples)) // world
    return share // min(accumulate, share) if share else 0
