"""Distillation as a task of timm's training script.

timm is imported when ``DistillationTask`` is first read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tutelage import models
from tutelage.checks import whole_number
from tutelage.errors import InvalidTypeError, InvalidValueError, MissingExtraError, missing_extra
from tutelage.integrations.checks import micro_batches, refuse_reading, require_objective, require_teacher, unfit
from tutelage.models.entrance import entrance
from tutelage.models.spec import resized
from tutelage.modules import Distiller, FrozenTeacher, network_context
from tutelage.objectives import Objective
from tutelage.submodules import unwrapped
from tutelage.types import Batch, Inputs, Progress, StatefulTerm

if TYPE_CHECKING:
    from timm.task import TrainingTask
else:
    TrainingTask = object


FITTING = "one of logits, labels and features of the batch"
"""What objectives the task takes."""


class _Distillation(TrainingTask):
    """A ``TrainingTask`` that trains a student on an objective, beside a frozen teacher.

    ``task(input, target)`` returns the ``loss``, the student's logits as ``output``, and the mean of each term under
    its name, such as ``ce``. The target holds class indices, or the distributions that Mixup and CutMix make. The
    script's own loss, and so its label smoothing, takes no part.

    The script's loader normalises images for the student. For the teacher this is undone, and its own statistics and
    size are applied: ``teacher((input * std + mean - teacher_mean) / teacher_std)``.

    A checkpoint holds the student under its own names, and beside it what else of the objective is trained; EMA
    averages both. The teacher is in no checkpoint and no wrapper, and answers in evaluation mode.

    Args:
        student: network to train, of which the images are normalised.
        teacher: one of timm's networks, or a `tutelage.models.Classifier`, whose card has its statistics; frozen in
            place. ``None`` for an objective without one.
        objective: what the student learns from: it reads logits, labels and features.
        mean: mean per channel that the loader subtracted; ``None`` for that of the student's ``pretrained_cfg``.
        std: standard deviation per channel that it divided by; ``None`` likewise.
        teacher_size: size ``(height, width)`` that images are brought to for the teacher, antialiased; ``None`` for
            that of the student's.
        epochs: number of epochs of the whole training, of which scheduled weights are functions.
        batches: number of batches of an epoch in one process, ``len(loader)``; for scheduled weights too.
        example: a few images as the loader yields them, by which the shapes of features are found; ``None`` for empty
            ones of the ``input_size`` in the student's ``pretrained_cfg``.
        device: device of the teacher and the objective.
        dtype: dtype of the teacher.
        verbose: unused, as the task prints nothing.

    Attributes:
        trainable_module: student and objective, all that is trained.
        teacher: frozen teacher.

    Raises:
        TypeError: if student, teacher or objective are of another type.
        ValueError: if the objective reads what a task does not have, statistics are not known, or the networks do not
            fit each other.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        objective: Objective,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        teacher_size: tuple[int, int] | None = None,
        epochs: int | None = None,
        batches: int | None = None,
        example: Tensor | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        verbose: bool = True,
    ) -> None:
        super().__init__(device=device, dtype=dtype, verbose=verbose)
        _check_objective(objective)
        adopted = _student(student)
        self.teacher: FrozenTeacher | None = None
        described = None
        if objective.needs.teacher:
            described = _teacher(teacher, objective).to(self.device, self.dtype)
            _check_classes(adopted, described)
            self._statistics = _statistics(student, mean, std)
            self._teacher_card = replace(described.card, image_size=teacher_size)
            self.teacher = FrozenTeacher(described, objective.needs.teacher_taps)
        context = network_context(objective, adopted, described, self._example(objective, student, example))
        self.trainable_module: Any = _Trainable(adopted, objective, context)
        self.trainable_module.objective.to(self.device)
        bound = self.trainable_module.objective
        if stateful := [name for name, term in bound.terms.items() if isinstance(term, StatefulTerm)]:
            raise unfit(objective, f"{stateful[0]}, which keeps values from step to step", expected=FITTING)
        for name, number in {"epochs": epochs, "batches": batches}.items():
            if number is not None:
                whole_number(number, name, example=10)
        self._epochs, self._batches, self._seen = epochs, batches, 0
        if bound.schedules and not (epochs and batches):
            expected = f"numbers for {objective.name}, whose weights are scheduled"
            got, instead = f"{epochs} and {batches}", "type epochs=..., batches=len(loader)"
            raise InvalidValueError("epochs and batches", expected, got, instead)

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the ``loss``, ``()``, the student's logits as ``output``, and each term's mean by name.

        Args:
            input: images, ``(batch, channels, height, width)``, normalised for the student.
            target: class indices, ``(batch,)`` int64, or distributions, ``(batch, classes)``.

        Raises:
            ValueError: if the objective does not take such a target.
        """
        views: Inputs = input if self.teacher is None else {"student": input, "teacher": self._view(input)}
        # A place in the batch, as the loader knows none in the data set, and nothing reads it.
        batch = Batch(torch.arange(len(input), device=input.device), views, target)
        loss, outputs = self.trainable_module(batch, self.teacher and self.teacher(batch), self._progress())
        self._seen += self.training
        return {**loss.parts, "loss": loss.total, "output": outputs.logits}

    def prepare_distributed(self, device_ids: list[Any] | None = None, **ddp_kwargs: Any) -> _Distillation:
        """Have DDP average the gradients of student and objective; further arguments are DDP's."""
        # An objective of features alone gives the layers behind them no gradient, for which DDP would wait.
        ddp_kwargs.setdefault("find_unused_parameters", bool(self._bound.needs.student_taps))
        self.trainable_module = DistributedDataParallel(self.trainable_module, device_ids=device_ids, **ddp_kwargs)
        return self

    def compile(  # type: ignore[override]  # timm's own differs from torch's
        self, backend: str = "inductor", mode: str | None = None, **compile_kwargs: Any
    ) -> nn.Module:
        """Compile both networks in place; returns the student."""
        student = self._student_of(self.trainable_module)
        for network in (student, *([unwrapped(self.teacher.network)] if self.teacher is not None else ())):
            network.compile(backend=backend, mode=mode, **compile_kwargs)
        return student

    def no_sync(self) -> Any:
        """Return the context of any but a step's last micro-batch.

        Raises:
            ValueError: if the objective couples a batch's samples, so that its value depends on the micro-batches.
        """
        if self._bound.needs.coupled:
            raise micro_batches("grad_accum_steps", "more", "--grad-accum-steps 1")
        return super().no_sync()

    def get_eval_model(self, module: nn.Module | None = None, ema: bool = False) -> nn.Module | None:
        """Return the student as it was passed, or its average."""
        if module is None and (compiled := getattr(self, "eval_model_ema", None) if ema else None) is not None:
            return cast(nn.Module, compiled)
        module = self.get_trainable_module(ema=ema) if module is None else module
        return None if module is None else self._student_of(module)

    def get_clip_parameters(self, exclude_head: bool = False) -> list[nn.Parameter]:
        """Return the parameters to clip: the student's, without its last two if the head is excluded, and all others.

        Args:
            exclude_head: whether to leave the student's last two parameters out.
        """
        student = list(self._student_of(self.trainable_module).parameters())
        return [*(student[:-2] if exclude_head else student), *self._bound.parameters()]

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """Return what belongs in a checkpoint beside the student's weights."""
        module = self.get_trainable_module(ema=ema) if module is None else module
        objective = {} if module is None else _unwrapped(module).objective.state_dict()
        counted = {"batches": self._seen} if self._batches and not ema else {}
        return {**({"objective": objective} if objective else {}), **counted}

    def load_task_state(
        self, state: dict[str, Any] | None, strict: bool = True, module: nn.Module | None = None, ema: bool = False
    ) -> None:
        """Restore what `get_task_state` returned; a checkpoint without it, of another task, changes nothing.

        Raises:
            RuntimeError: if it is of another objective, and ``strict``.
        """
        module = self.get_trainable_module(ema=ema) if module is None else module
        if state and module is not None:
            _unwrapped(module).objective.load_state_dict(state.get("objective", {}), strict=strict)
            self._seen = state.get("batches", self._seen)

    @property
    def _bound(self) -> Any:
        return _unwrapped(self.trainable_module).objective

    def _student_of(self, module: nn.Module) -> nn.Module:
        return unwrapped(_unwrapped(module).student)

    def _progress(self) -> Progress:
        """Return the position in the training; steps are batches, as the task does not know how many a step has."""
        if not (self._epochs and self._batches):
            return Progress(step=self._seen)
        return Progress(self._seen // self._batches, self._seen, self._seen / (self._epochs * self._batches))

    def _view(self, images: Tensor) -> Tensor:
        """Return images in [0, 1] of the teacher's size; its card normalises them."""
        mean, std = self._statistics = self._statistics.to(images.device)
        return entrance(images.float() * std + mean, self._teacher_card).to(self.dtype)

    def _example(self, objective: Objective, student: nn.Module, example: Tensor | None) -> Inputs:
        needs = objective.needs
        if not (needs.student_taps or needs.teacher_taps):
            return torch.empty(0)
        weight = next(student.parameters())
        if example is None:
            size = _config(student).get("input_size")
            if size is None:
                expected = "images as the loader yields them, for an objective that reads features"
                raise InvalidValueError("example", expected, "none", "type example=next(iter(loader))[0][:2]")
            example = torch.zeros(2, _channels(student), *size[1:])
        images = example[:2].to(weight)
        return images if self.teacher is None else {"student": images, "teacher": self._view(images)}


class _Trainable(Distiller):
    """A distiller that tells timm's optimizers of the student's weight decay and layers."""

    _PREFIX = "student.network."

    def no_weight_decay(self) -> set[str]:
        """Return the student's parameters without weight decay, by their names here."""
        named = getattr(unwrapped(self.student), "no_weight_decay", set)
        return {f"{self._PREFIX}{name}" for name in named()}

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """Return the layer of a parameter by its name: the student's, and the last one for the objective's."""
        from timm.models import group_parameters

        network = cast(Any, unwrapped(self.student))
        known = hasattr(network, "group_matcher")
        layers = group_parameters(network, network.group_matcher(coarse=coarse), reverse=True) if known else {}
        last = max(layers.values(), default=0)
        return lambda name: layers.get(name.removeprefix(self._PREFIX), last)


def _unwrapped(module: nn.Module) -> Any:
    """Return the distiller inside DDP, an average, or both."""
    from timm.utils.model import unwrap_model

    return unwrap_model(module)


def _config(network: nn.Module) -> dict[str, Any]:
    return dict(getattr(network, "pretrained_cfg", None) or {})


def _channels(network: nn.Module) -> int:
    """Return the number of channels of a network's images; 3 where it does not say."""
    return int(getattr(network, "in_chans", None) or _config(network).get("input_size", (3,))[0])


def _student(student: object) -> models.Classifier:
    if not isinstance(student, nn.Module):
        instead = "for example student=timm.create_model('resnet18')"
        raise InvalidTypeError("student", "a torch.nn.Module", type(student).__name__, instead)
    if isinstance(student, models.Classifier) and student.card.mean is not None:
        instead = "type student=classifier.network"
        expected = "a bare network, as the loader normalises its images"
        raise InvalidValueError("student", expected, "one that normalises them too", instead)
    return models.adopt(student, "student", classes=getattr(student, "num_classes", None))


def _teacher(teacher: object, objective: Objective) -> models.Classifier:
    """Return a teacher that takes images in [0, 1]."""
    require_teacher(objective, teacher)
    if not isinstance(teacher, nn.Module):
        instead = "for example teacher=timm.create_model('resnet50', pretrained=True)"
        raise InvalidTypeError("teacher", "a torch.nn.Module", type(teacher).__name__, instead)
    if isinstance(teacher, models.Classifier):
        return teacher
    config, network = _config(teacher), cast(Any, teacher)
    if not {"mean", "std"} <= config.keys():
        instead = "type teacher=tutelage.models.Classifier(network, tutelage.models.Card(name=..., mean=..., std=...))"
        expected = "a network of timm's or one with a card, whose statistics are known"
        raise InvalidValueError("teacher", expected, type(teacher).__name__, instead)
    channels = _channels(teacher)
    known = models.adopt(teacher, "teacher", classes=network.num_classes, channels=channels)
    mean, std = (resized(tuple(config[name]), channels) for name in ("mean", "std"))
    return models.Classifier(teacher, replace(known.card, mean=mean, std=std))


def _check_classes(student: models.Classifier, teacher: models.Classifier) -> None:
    if (mine := student.card.classes) != (its := teacher.card.classes):
        instead = "give the place of each class: tutelage.models.Classifier(network, card, outputs=[...])"
        raise InvalidValueError("teacher", f"the student's {mine} classes", its, instead)


def _statistics(student: nn.Module, mean: Sequence[float] | None, std: Sequence[float] | None) -> Tensor:
    """Return what the loader normalises with, ``(2, channels, 1, 1)``."""
    config = _config(student)
    mean, std = (config.get("mean") if mean is None else mean), (config.get("std") if std is None else std)
    known = isinstance(mean, Sequence) and isinstance(std, Sequence) and len(mean) == len(std) > 0 and min(std) > 0
    if not known:
        instead = "type mean=data_config['mean'], std=data_config['std']"
        got = f"{mean} and {std}"
        raise InvalidValueError("mean and std", "those that the loader normalises with", got, instead)
    # For other channels than these, such as grey ones, the loader takes their mean.
    channels = _channels(student)
    fitting = [resized(cast(Sequence[float], each), channels) for each in (mean, std)]
    return torch.tensor(fitting, dtype=torch.float32)[..., None, None]


def _check_objective(objective: Objective) -> None:
    require_objective(objective)
    needs = objective.needs
    reads = {
        "a number found on the training set, by auto or normalise=training": needs.teacher_statistics,
        "the samples' places in the data set": needs.indices,
        "the teacher's mean features per class": needs.class_means,
    }
    refuse_reading(objective, reads, expected=FITTING)


@cache
def _task_class() -> type:
    """Return `_Distillation` as a task of the installed timm."""
    try:
        import timm
    except ImportError as error:
        raise missing_extra("DistillationTask", "timm", "timm", error) from error
    try:
        from timm.task import TrainingTask

        known = hasattr(TrainingTask, "get_checkpoint_state")
    except ImportError:
        known = False
    if not known:
        expected = "a timm whose timm.task has tasks with checkpoints, such as 1.0.31"
        raise MissingExtraError("DistillationTask", expected, timm.__version__, "type pip install -U timm")
    names = {"__module__": __name__, "__doc__": _Distillation.__doc__}
    return type("DistillationTask", (_Distillation, TrainingTask), names)


if TYPE_CHECKING:

    class DistillationTask(_Distillation):
        """See `_Distillation`."""

else:

    def __getattr__(name: str) -> Any:
        if name == "DistillationTask":
            return _task_class()
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
