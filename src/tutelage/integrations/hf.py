"""Distillation inside the ``Trainer`` of the transformers library."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from tutelage.adapters import Adapter, as_batch
from tutelage.config.schema import known_presets
from tutelage.errors import InvalidTypeError, InvalidValueError, missing_extra, raise_all
from tutelage.integrations.checks import micro_batches, refuse_reading, require_objective, require_teacher, unfit
from tutelage.modules import FrozenTeacher, refuse_shared
from tutelage.objectives import Objective
from tutelage.objectives.bound import BoundObjective, count
from tutelage.settings.objective import untyped_exponents
from tutelage.training.distributed import summed
from tutelage.types import UNLABELLED, Batch, Outputs, Progress, Totals

try:
    from transformers import Trainer, TrainingArguments
    from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss
except ImportError as error:
    raise missing_extra("DistillationTrainer", "transformers", "text", error) from error


FITTING = "one of logits and labels"
"""What objectives the trainer takes."""


class DistillationTrainer(Trainer):
    """A ``transformers.Trainer`` whose student learns from an objective: from its labels and from a frozen teacher.

    The loss is ``sum_k weight_k * mean(term_k)``. Each mean is over a whole optimizer step, with all micro-batches and
    all processes: that of a supervised term over the labels, that of any other over the samples or counted positions.
    So a batch of 8 has the gradient of 4 x 2. Beside this ``loss`` each term's mean is logged, as ``loss_ce``.

    Evaluation is that of ``transformers.Trainer``: ``eval_loss`` is the student's own loss, and no teacher is called.
    What is saved is the student alone, or its adapters: the objective has no state.

    Args:
        model: student, as for ``transformers.Trainer``; it returns ``logits``, ``(batch, *positions, classes)``, also
            without labels.
        args: the trainer's arguments.
        teacher: network that returns ``logits`` of the same classes, or a `tutelage.Adapter` around one that returns
            something else; frozen in place and moved to the trainer's device. ``None`` for an objective without one.
        objective: what the student learns from; it reads logits and labels alone.
        teacher_inputs: keys of a batch that the teacher takes as keywords of the same names, or a mapping of its
            keywords to the keys, such as ``{"input_ids": "teacher_input_ids"}``; ``None`` for what its ``forward``
            names.
        counted: key of a batch that says which positions take part in the loss, of the labels' shape, bool or 0 and 1,
            such as ``"attention_mask"``; ``None`` for those with a label where each token has one, else for all.
        next_token: whether a token's logits are those of the next one, so that labels and ``counted`` are shifted by
            one; ``None`` for what the student's own loss does, by its ``loss_type``.
        **trainer: further arguments of ``transformers.Trainer``.

    Raises:
        TypeError: if student, teacher or objective are of another type.
        ValueError: if the objective reads what is not here, an argument of the trainer would change the loss, the
            teacher's classes are in another order, or both networks share something.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        args: TrainingArguments | None = None,
        *,
        teacher: nn.Module | None,
        objective: Objective,
        teacher_inputs: Sequence[str] | Mapping[str, str] | None = None,
        counted: str | None = None,
        next_token: bool | None = None,
        **trainer: Any,
    ) -> None:
        _check_objective(objective, teacher)
        if trainer.get("compute_loss_func") is not None:
            instead = "leave it out: all terms belong in the objective"
            raise InvalidValueError("compute_loss_func", "none", "a function", instead)
        if isinstance(model, Adapter):
            instead = "type model=adapter.network"
            raise InvalidTypeError("model", "a network that is called with keywords", "an Adapter", instead)
        super().__init__(model, args, **trainer)
        student = _inner(cast(nn.Module, self.model))
        self.label_key: str | None = next(iter(self.label_names), None)
        self.counted_key = counted
        self.next_token = _shifts_labels(student) if next_token is None else next_token
        self._check_fit(objective, student)
        self.objective: BoundObjective = objective.bind().to(self.args.device)
        if self.objective.state_dict():
            raise unfit(objective, "weights or memory of its own", expected=FITTING)
        # num_items_in_batch is the loss's affair: without it, the mean over a micro-batch is divided by their number.
        self._student_counts, self.model_accepts_loss_kwargs = self.model_accepts_loss_kwargs, True
        self.teacher: FrozenTeacher | None = None
        keys: list[str] = [] if counted is None else [counted]
        if teacher is not None and objective.needs.teacher:
            self._adapter = self._adapted(teacher, teacher_inputs)
            self.teacher = FrozenTeacher(self._adapter)
            self._named = None if self._adapter.keywords else _parameters(_inner(teacher)) - set(self.label_names)
            keys += self._named or (self._adapter.keywords or {}).values()
        self._not_students = set(keys) - _parameters(student)
        self._reads_decoded = getattr(getattr(student, "config", None), "is_encoder_decoder", False)
        self._step: tuple[Tensor, Totals] | None = None
        self._term_sums: Tensor | None = None
        self._terms_from = 0  # number of steps before those

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | None]:
        """Return the micro-batches of a step and the number of their labels, in all processes.

        The loss is divided by this number, and by those of samples and counted positions, which are kept beside it.
        """
        batches = list(itertools.islice(epoch_iterator, num_batches))
        if not batches:
            return batches, None
        counts = sum(torch.stack(_counts(self._batch(batch))).to(device) for batch in batches)
        labels, processes = cast(Tensor, counts)[1].clone(), 1
        if self.args.average_tokens_across_devices:
            counts, processes = summed(cast(Tensor, counts), self.accelerator), self.accelerator.num_processes
            labels = counts[1].clone()
        self._step = labels, Totals(*(cast(Tensor, counts) / processes))
        return batches, labels

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the loss of a micro-batch, ``()``; with ``return_outputs`` also what the student returned.

        Args:
            model: student, wrapped as the trainer does; in evaluation mode its own loss is returned.
            inputs: values of a micro-batch by key.
            return_outputs: whether to return the student's outputs too.
            num_items_in_batch: number of labels of the whole step, as `get_batch_samples` returns it. Another number is
                the divisor of every mean; with ``None`` the means are those of this micro-batch.

        Raises:
            TypeError: if the student does not return ``logits``.
            ValueError: if the batch lacks a value, or labels or classes do not fit the logits.
        """
        given = {key: value for key, value in inputs.items() if key not in self._not_students}
        if not model.training:
            number = num_items_in_batch if self._student_counts else None
            return super().compute_loss(model, given, return_outputs, number)
        batch = self._batch(inputs)
        given.pop(self.label_key or "", None)
        if self._reads_decoded and "decoder_input_ids" not in given:
            instead = "type data_collator=DataCollatorForSeq2Seq(tokenizer, model=model)"
            raise InvalidValueError("decoder_input_ids", "those of an encoder-decoder", "none", instead)
        outputs = model(**given)
        logits = _logits_of(outputs)
        taught = None if self.teacher is None else self._taught(inputs, batch)
        if self.next_token:
            logits = logits[..., :-1, :]
            taught = taught and taught._replace(logits=taught.logits[..., :-1, :])
        self._check_positions(batch, logits)
        loss = self.objective(Outputs(logits), taught, batch, self._progress(), self._totals(num_items_in_batch))
        if num_items_in_batch is not None:
            terms = torch.stack([loss.parts[name] for name in self.objective.names])
            if self._term_sums is None:
                self._term_sums, self._terms_from = torch.zeros_like(terms), self.state.global_step
            self._term_sums += terms
        return (loss.total, outputs) if return_outputs else loss.total

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log values; beside a training loss also the mean of each term since the last one, over all processes."""
        if {"loss", "learning_rate"} <= set(logs) and self._term_sums is not None:
            steps = (self.state.global_step - self._terms_from) * self.accelerator.num_processes
            means = (summed(self._term_sums, self.accelerator) / steps).tolist()
            logs = {**logs, **{f"loss_{name}": mean for name, mean in zip(self.objective.names, means, strict=True)}}
            self._term_sums = None
        super().log(logs, *args, **kwargs)

    def _set_signature_columns_if_needed(self) -> None:
        # The columns that survive ``remove_unused_columns``: the teacher's too.
        if self._signature_columns is None:
            super()._set_signature_columns_if_needed()
            cast(list[str], self._signature_columns).extend(sorted(self._not_students))

    def _adapted(self, teacher: nn.Module, keys: Sequence[str] | Mapping[str, str] | None) -> Adapter:
        """Return the teacher on the trainer's device, as a network that takes what it names."""
        refuse_shared(cast(nn.Module, self.model), teacher)
        _check_classes(_inner(cast(nn.Module, self.model)), _inner(teacher))
        if keys is not None and isinstance(teacher, Adapter):
            instead = "type tutelage.Adapter(network, inputs=...)"
            raise InvalidValueError("teacher_inputs", "none beside an Adapter, which names its own", keys, instead)
        if not hasattr(_inner(teacher), "hf_device_map"):  # Such are spread over devices, or quantised.
            teacher.to(self.args.device)
        if isinstance(teacher, Adapter):
            return Adapter(teacher.network, output=teacher.output, inputs=teacher.keywords)
        return Adapter(teacher, output="logits", inputs=keys)

    @torch.no_grad()
    def _taught(self, inputs: Mapping[str, Any], batch: Batch) -> Outputs:
        """Return the teacher's outputs, in the student's precision where that is mixed."""
        teacher = cast(FrozenTeacher, self.teacher)
        if self._named is not None:
            self._adapter.keywords = {key: key for key in inputs if key in self._named}
            if not self._adapter.keywords:
                got = f"one that names {', '.join(sorted(self._named)) or 'nothing'}"
                expected = f"a forward that names some of {', '.join(inputs)}"
                instead = 'for example teacher_inputs={"input_ids": "teacher_input_ids"}'
                raise InvalidValueError("teacher", expected, got, instead)
        dtype = next((each.dtype for each in teacher.parameters() if each.is_floating_point()), torch.float32)
        values = {
            key: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
            for key, value in inputs.items()
        }
        with self.accelerator.autocast():
            outputs = teacher(batch._replace(inputs=values))
        return cast(Outputs, outputs)

    def _batch(self, inputs: Mapping[str, Any]) -> Batch:
        """Return the labels of a micro-batch, and which positions count; its samples have no lasting number."""
        labels = inputs.get(self.label_key) if self.label_key is not None else None
        if labels is None and self.objective.supervised:
            expected = f"a batch with labels, which {', '.join(sorted(self.objective.supervised))} reads"
            instead = 'name their key: TrainingArguments(label_names=["labels"])'
            raise InvalidValueError("labels", expected, f"the keys {', '.join(inputs)}", instead)
        if self.counted_key is not None and self.counted_key not in inputs:
            instead = "name a key that the data collator returns"
            raise InvalidValueError("counted", f"a key of the batch: {', '.join(inputs)}", self.counted_key, instead)
        counted = None if self.counted_key is None else cast(Tensor, inputs[self.counted_key])
        if labels is None and counted is not None:
            labels = torch.full_like(counted, UNLABELLED, dtype=torch.int64)
        if labels is not None and self.next_token and labels.ndim > 1:
            labels, counted = labels[:, 1:], None if counted is None else counted[:, 1:]
        if counted is None and labels is not None and labels.ndim > 1 and not labels.is_floating_point():
            counted = labels != UNLABELLED
        first = next(value for value in inputs.values() if isinstance(value, Tensor))
        values = {"inputs": first, **({} if labels is None else {"labels": labels})}
        index = torch.arange(len(first), device=first.device)
        return as_batch(
            values, inputs="inputs", labels=None if labels is None else "labels", index=index, counted=counted
        )

    def _check_positions(self, batch: Batch, logits: Tensor) -> None:
        shape = batch.labels.shape[:-1] if batch.labels.is_floating_point() else batch.labels.shape
        if shape != logits.shape[:-1]:
            instead = "pass a student that classifies what has the labels, or type next_token=True or False"
            expected = f"one for each of the logits, shape {tuple(logits.shape[:-1])}"
            raise InvalidValueError("labels", expected, tuple(shape), instead)

    def _totals(self, number: Tensor | int | None) -> Totals | None:
        if number is None:
            return None
        if self._step is not None and self._step[0] is number:
            return self._step[1]
        share = torch.as_tensor(number, dtype=torch.float32, device=self.args.device)
        if self.args.average_tokens_across_devices:
            share = share / self.accelerator.num_processes
        return Totals(share, share, share)

    def _progress(self) -> Progress:
        state = self.state
        return Progress(int(state.epoch or 0), state.global_step, state.global_step / max(state.max_steps, 1))

    def _check_fit(self, objective: Objective, student: nn.Module) -> None:
        """Refuse what would change the loss without a word."""
        args, needs = self.args, objective.needs
        if args.label_smoothing_factor:
            instead = "add tutelage.objectives.cross_entropy(label_smoothing=...) to an objective with supervised=0"
            raise InvalidValueError("label_smoothing_factor", "0", args.label_smoothing_factor, instead)
        if needs.coupled and args.gradient_accumulation_steps > 1:
            option = "gradient_accumulation_steps"
            raise micro_batches(option, args.gradient_accumulation_steps, f"{option}=1")
        if len(self.label_names) > 1 or (needs.labels != "none" and not self.label_names):
            instead = 'type TrainingArguments(label_names=["labels"])'
            raise InvalidValueError("label_names", "one name", self.label_names, instead)
        split = [size for size in ("tp", "cp", "sp") if getattr(self, f"get_{size}_size", lambda: 1)() > 1]
        if split:
            instead = "share the samples alone: start it with torchrun and without a parallelism_config"
            raise InvalidValueError("args", "processes that each hold whole samples", f"{split[0]}_size > 1", instead)
        problem = getattr(getattr(student, "config", None), "problem_type", None)
        if problem not in (None, "single_label_classification"):
            instead = "take a student of one label per sample, or the command tutelage distill"
            raise InvalidValueError("model.config.problem_type", "single_label_classification", problem, instead)
        if self.next_token:
            raise_all(untyped_exponents(objective.spec, known_presets(), "objective"))


def _check_objective(objective: Objective, teacher: object) -> None:
    require_objective(objective)
    needs = objective.needs
    if teacher is not None and not isinstance(teacher, nn.Module):
        instead = "for example AutoModelForSequenceClassification.from_pretrained(...)"
        raise InvalidTypeError("teacher", "a torch.nn.Module", type(teacher).__name__, instead)
    require_teacher(objective, teacher)
    if needs.teacher_statistics:
        expected = "numbers and schedules that need no pass over the training set"
        instead = "type a number where it says auto, for example beta=2.0, and normalise=none"
        raise InvalidValueError("objective", expected, f"{objective.name} with auto or normalise=training", instead)
    reads = {
        "features of the networks": needs.student_taps or needs.teacher_taps or needs.class_means,
        "the teacher's weights": needs.teacher_head or needs.teacher_norms,
        "the samples' places in the data set": needs.indices,
    }
    refuse_reading(objective, reads, expected=FITTING)


def _inner(network: nn.Module) -> nn.Module:
    """Return the network that an adapter, a compiled or a peft model calls, whose ``forward`` names what is read."""
    if isinstance(network, Adapter):
        network = network.network
    network = getattr(network, "_orig_mod", network)
    base = getattr(network, "get_base_model", None)
    return cast(nn.Module, base()) if callable(base) else network


def _parameters(network: nn.Module) -> set[str]:
    parameters = inspect.signature(network.forward).parameters.values()
    return {each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)}


def _shifts_labels(student: nn.Module) -> bool:
    """Whether a student's own loss takes a token's logits for those of the next one."""
    loss = LOSS_MAPPING.get(getattr(student, "loss_type", ""))
    return loss is ForCausalLMLoss and not getattr(getattr(student, "config", None), "is_encoder_decoder", False)


def _check_classes(student: nn.Module, teacher: nn.Module) -> None:
    """Refuse a teacher that has the student's classes by name, in another order."""
    mine, its = (
        [str(name) for _, name in sorted((getattr(getattr(network, "config", None), "id2label", None) or {}).items())]
        for network in (student, teacher)
    )
    if mine != its and sorted(mine) == sorted(its):
        instead = f"pass a module that returns its logits[..., {[its.index(name) for name in mine]}]"
        raise InvalidValueError("teacher", f"the student's classes {', '.join(mine)}", ", ".join(its), instead)


def _logits_of(outputs: object) -> Tensor:
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    if not isinstance(logits, Tensor):
        instead = "return transformers.modeling_outputs.SequenceClassifierOutput(logits=...) from its forward"
        raise InvalidTypeError("model", "a network that returns logits", type(outputs).__name__, instead)
    return logits


def _counts(batch: Batch) -> Totals:
    """Count what logits of these labels would have: only their shape is read."""
    return count(batch, batch.labels if batch.labels.is_floating_point() else batch.labels.unsqueeze(-1))
