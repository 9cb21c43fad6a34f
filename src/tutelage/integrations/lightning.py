"""Distillation as a module that Lightning's ``Trainer`` fits.

Lightning is imported when ``DistillationModule`` is first read, as that takes seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tutelage import losses
from tutelage.adapters import Key, as_batch, inputs_for
from tutelage.checks import labels_for
from tutelage.errors import InvalidTypeError, InvalidValueError, missing_extra
from tutelage.integrations.checks import micro_batches, require_objective, require_teacher
from tutelage.modules import Distiller, FrozenTeacher, refuse_shared
from tutelage.objectives import BindContext, Objective
from tutelage.types import UNLABELLED, Batch, Inputs, Progress, StatefulTerm

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule
else:
    LightningModule = object


class _Distillation(LightningModule):
    """A ``LightningModule`` that trains a student on an objective, beside a frozen teacher.

    In training, ``train_loss`` and the mean of each term, such as ``train_ce``, are logged; ``val_loss`` and
    ``val_accuracy`` are the student's cross-entropy and accuracy over the labelled positions of the whole set,
    ``test_loss`` and ``test_accuracy`` likewise. The means of a training step are those of its batch in its process;
    with ``accumulate_grad_batches=n`` Lightning adds the gradients of batches, each divided by ``n``.

    The state, and so a checkpoint, holds the student and what of the objective is trained, under ``distiller.``, and
    nothing of the teacher: `load_from_checkpoint` takes the networks, objective and optimizer again. The teacher moves
    along with the module, is no submodule, and answers in evaluation mode.

    Args:
        student: network to train; it is called with ``batch.inputs``, or as a `tutelage.Adapter` says.
        teacher: network that teaches, frozen in place; ``None`` for an objective without one.
        objective: what the student learns from.
        context: facts of the run for an objective that reads more than logits and labels: `tutelage.network_context`.
        optimizer: function of the list of trainable parameters, the student's and the objective's, that returns the
            optimizer.
        scheduler: function of the optimizer that returns a learning rate scheduler, which Lightning steps after every
            epoch, or Lightning's mapping ``{"scheduler": ..., "interval": "step"}``; ``None`` for a constant rate.
        inputs: where in a batch the inputs are, as in `tutelage.as_batch`; a `tutelage.Batch` is taken as it is.
        labels: where the labels are; ``None`` if there are none.
        index: where the samples' indices are, for an objective that reads them.
        counted: where it stands which positions take part.

    Attributes:
        distiller: student and objective, all that is trained.

    Raises:
        TypeError: if student, teacher or objective are of another type.
        ValueError: if the objective needs a teacher and there is none, the networks share something, or the context
            lacks something.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        objective: Objective,
        context: BindContext = BindContext(),  # noqa: B008  it is immutable
        *,
        optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
        scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
        inputs: Key | Sequence[str] = 0,
        labels: Key | None = 1,
        index: Key | None = None,
        counted: Key | None = None,
    ) -> None:
        super().__init__()
        require_objective(objective)
        require_teacher(objective, teacher)
        taught = objective.needs.teacher and teacher is not None
        for name, network in {"student": student, **({"teacher": teacher} if taught else {})}.items():
            if not isinstance(network, nn.Module):
                instead = f"for example {name}=tutelage.models.create('timm:resnet18')"
                raise InvalidTypeError(name, "a torch.nn.Module", type(network).__name__, instead)
        for name, function, example in (
            ("optimizer", optimizer, "lambda parameters: torch.optim.AdamW(parameters, lr=1e-3)"),
            ("scheduler", scheduler, "lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 10)"),
        ):
            if not callable(function) and not (name == "scheduler" and function is None):
                expected, instead = "a function that makes it", f"for example {name}={example}"
                raise InvalidTypeError(name, expected, type(function).__name__, instead)
        # In a mapping it is no submodule: it is not in the state, DDP sends nothing of it, and train() leaves it alone.
        self._outside: dict[str, FrozenTeacher] = {}
        if taught and teacher is not None:
            network = teacher.network if isinstance(teacher, FrozenTeacher) else teacher
            refuse_shared(student, network)
            self._outside["teacher"] = FrozenTeacher(network, objective.needs.teacher_taps)
        self.distiller = Distiller(student, objective, context)
        self._make_optimizer, self._make_scheduler = optimizer, scheduler
        self._keys: dict[str, Any] = {"inputs": inputs, "labels": labels, "index": index, "counted": counted}
        self._steps = math.nan

    @property
    def student(self) -> nn.Module:
        """The network that is trained, as it was passed."""
        return self.distiller.student

    @property
    def teacher(self) -> FrozenTeacher | None:
        """The teacher; ``None`` where the objective needs none."""
        return self._outside.get("teacher")

    def forward(self, inputs: Inputs) -> Tensor:
        """Return the student's logits."""
        logits: Tensor = self.student(inputs_for(self.student, inputs, "student"))
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of a batch, and log it and its terms.

        Raises:
            ValueError: if the batch lacks what the objective reads.
        """
        samples = self._batch(batch)
        progress = Progress(self.current_epoch, self.global_step, self.global_step / self._steps)
        loss, _ = self.distiller(samples, self.teacher and self.teacher(samples), progress)
        self.log("train_loss", loss.total.detach(), batch_size=len(samples.index), prog_bar=True)
        self.log_dict({f"train_{name}": mean for name, mean in loss.parts.items()}, batch_size=len(samples.index))
        return loss.total

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log the student's cross-entropy and accuracy."""
        self._evaluate(self._batch(batch), "val")

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log the student's cross-entropy and accuracy."""
        self._evaluate(self._batch(batch), "test")

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the student's logits; a batch may also be the inputs alone."""
        if isinstance(batch, Tensor):
            return self(batch)
        return self(self._batch(batch, labels=None, index=None, counted=None).inputs)

    def configure_optimizers(self) -> Any:
        """Return the optimizer, with its scheduler if there is one."""
        optimizer = self._make_optimizer([p for p in self.distiller.parameters() if p.requires_grad])
        if self._make_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self._make_scheduler(optimizer)}

    def on_train_start(self) -> None:
        """Find the number of steps, of which progress is a fraction.

        Raises:
            ValueError: if a weight is scheduled, and it is not known.
        """
        steps = self.trainer.estimated_stepping_batches
        self._steps = steps if 0 < steps < math.inf else math.nan
        if self.distiller.objective.schedules and math.isnan(self._steps):
            expected = "a known number of steps for an objective whose weights are scheduled"
            instead = "type Trainer(max_steps=...), or max_epochs=... with data of a known length"
            raise InvalidValueError("Trainer", expected, "none", instead)

    def on_train_epoch_start(self) -> None:
        """Refuse micro-batches of an objective that couples a batch's samples.

        Raises:
            ValueError: if there are some.
        """
        accumulate = self.trainer.accumulate_grad_batches
        if accumulate > 1 and self.distiller.objective.needs.coupled:
            raise micro_batches("accumulate_grad_batches", accumulate, "accumulate_grad_batches=1")

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step the optimizer, and tell terms that keep values from step to step whether it was applied."""
        terms = [term for term in self.distiller.objective.terms.values() if isinstance(term, StatefulTerm)]
        scaler = getattr(self.trainer.precision_plugin, "scaler", None) if terms else None
        scale = 0.0 if scaler is None else scaler.get_scale()
        super().optimizer_step(*args, **kwargs)
        for term in terms:  # A scaler that skips a step lowers the scale.
            term.commit(torch.tensor(scaler is None or scaler.get_scale() >= scale, device=self.device))

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch; indices that `tutelage.as_batch` had to leave out have no values to move."""
        if not (isinstance(batch, Batch) and batch.index.is_meta):
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        moved = super().transfer_batch_to_device(batch._replace(index=batch.labels), device, dataloader_idx)
        return moved._replace(index=batch.index)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _Distillation:
        super()._apply(fn, recurse)
        for network in self._outside.values():
            network._apply(fn, recurse)
        return self

    def _batch(self, values: Any, **keys: Any) -> Batch:
        return values if isinstance(values, Batch) else as_batch(values, **{**self._keys, **keys})

    def _evaluate(self, batch: Batch, stage: str) -> None:
        logits, labels = self(batch.inputs), batch.labels
        classes = labels.argmax(-1) if labels.is_floating_point() else labels
        if classes.shape != logits.shape[:-1]:
            labels_for(logits, labels)
        known = classes != UNLABELLED
        known = known if batch.counted is None else known & batch.counted
        if number := int(known.sum()):
            logits, right = logits[known], logits.argmax(-1)[known] == classes[known]
            means = {"loss": losses.cross_entropy(logits, labels[known]).mean(), "accuracy": right.float().mean()}
            named = {f"{stage}_{name}": mean for name, mean in means.items()}
            self.log_dict(named, batch_size=number, prog_bar=True, sync_dist=True)


@cache
def _module_class() -> type:
    """Return `_Distillation` as a module of the installed package: ``lightning``, else ``pytorch_lightning``."""
    try:
        from lightning.pytorch import LightningModule
    except ImportError as error:
        try:
            from pytorch_lightning import LightningModule  # type: ignore[assignment]
        except ImportError:
            raise missing_extra("DistillationModule", "lightning", "lightning", error) from error
    names = {"__module__": __name__, "__doc__": _Distillation.__doc__}
    return type("DistillationModule", (_Distillation, LightningModule), names)


if TYPE_CHECKING:

    class DistillationModule(_Distillation):
        """See `_Distillation`."""

else:

    def __getattr__(name: str) -> Any:
        if name == "DistillationModule":
            return _module_class()
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
