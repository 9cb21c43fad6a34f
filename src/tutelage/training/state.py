"""The state that a training step reads and changes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict, TypeVar, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tutelage.errors import InvalidValueError
from tutelage.modules import Distiller
from tutelage.plain_files import misfit
from tutelage.records import Epoch
from tutelage.settings.fit import EMA, FitSettings
from tutelage.settings.weights import Schedule
from tutelage.submodules import frozen_names
from tutelage.taps import when_gradient
from tutelage.training import optim
from tutelage.training.activations import checkpointed_blocks, recomputing
from tutelage.training.agreement import Agreement
from tutelage.training.average import Average, averaged
from tutelage.training.batch_norm import norms_to_synchronise
from tutelage.training.buffers import SavedBuffers
from tutelage.training.checkpoints import Checkpoint, under
from tutelage.training.compile import PlannedStudent
from tutelage.training.distributed import cast_module, gathered_objects, local_gradients, place, sent, summed, wrap
from tutelage.training.generators import check_random, packed_states, random_state, restore_rank, state_of_rank
from tutelage.training.graphs import CAPTURES
from tutelage.training.metrics import EpochMetrics
from tutelage.training.nonfinite import empty_log, empty_values
from tutelage.training.precision import LossScale, mixed_precision
from tutelage.training.sharding import (
    as_share,
    copy_whole,
    is_sharded_by,
    like,
    local_part,
    read,
    shapes,
    with_sharded_student,
)
from tutelage.types import Progress, StatefulTerm

T = TypeVar("T")


@dataclass(kw_only=True)
class StepValues:
    """Everything that changes from step to step besides parameters, moments, buffers and generators.

    The numbers are the host's and are not read in a step. The tensors keep their memory and are written in place,
    ``rate``, ``average_rate`` and ``progress`` between steps, so that a step can be captured once and replayed.
    """

    epoch: int = 0  # number of epochs done
    step: int = 0  # number of steps done
    step_in_epoch: int = 0  # number of steps done in this epoch
    fraction: float = 0.0  # fraction of the fit that is done
    learning_rate: float = 0.0  # learning rate of the step, for a plain optimizer and the records
    rate: Tensor  # learning rate for a fused optimizer, ``()`` float32
    average_rate: Tensor  # share of the step's weights in their average, 1 - decay, ``()`` float32
    progress: Progress  # progress of the step, for the terms, with the values of all scheduled weights
    sums: Tensor  # sums of the epoch so far, as named by `EpochMetrics.names`
    nonfinite_log: Tensor  # log of the epoch so far: `nonfinite.log_nonfinite`
    nonfinite_values: Tensor  # its values
    loss_scale: LossScale | None = None  # loss scale, under ``fp16`` only
    ema: EMA | None = None  # settings of the average of the weights, if there is one
    _whole: Tensor  # memory of epoch and step in ``progress``
    _real: Tensor  # memory of both rates, and of the other numbers in ``progress``

    @classmethod
    def on(
        cls,
        device: torch.device,
        *,
        sums: Tensor,
        terms: int,
        schedules: Sequence[Schedule],
        ema: EMA | None = None,
    ) -> StepValues:
        """Return the values before the first step, with tensors on a device."""
        whole = torch.zeros(2, dtype=torch.int64, device=device)
        real = torch.zeros(3 + len(schedules), device=device)
        (epoch, step), (rate, average_rate, fraction, *values) = whole.unbind(), real.unbind()
        return cls(
            rate=rate,
            average_rate=average_rate,
            ema=ema,
            progress=Progress(epoch, step, fraction, dict(zip(schedules, values, strict=True))),
            sums=sums,
            nonfinite_log=empty_log(device),
            nonfinite_values=empty_values(terms, device),
            _whole=whole,
            _real=real,
        )

    def set(self, learning_rate: float, fraction: float) -> None:
        """Set both rates, and the progress and scheduled weights at a fraction of the fit, that a step reads."""
        self.learning_rate, self.fraction = learning_rate, fraction
        here = Progress(self.epoch, self.step, fraction)
        schedules = cast(Iterable[Schedule], self.progress.scheduled)
        self._whole.copy_(sent([here.epoch, here.step], self._whole), non_blocking=True)
        average_rate = 0.0 if self.ema is None else 1 - self.ema.decay_at(self.step + 1)
        numbers = [learning_rate, average_rate, fraction, *(schedule(here) for schedule in schedules)]
        self._real.copy_(sent(numbers, self._real), non_blocking=True)

    def clear(self) -> None:
        """Clear the sums and the log for another epoch."""
        self.sums.zero_()
        self.nonfinite_log.fill_(-1)
        self.nonfinite_values.zero_()
        if self.loss_scale is not None:
            self.loss_scale.overflows.zero_()


class TrainState:
    """The state that a training step reads and changes.

    Args:
        distiller: student with its objective.
        settings: settings of its training.
        accelerator: device and processes to train on.
        agreement: what the processes decide together; by default without a deadline.

    Attributes:
        distiller: distiller that is trained: the given one, or a copy that shares its objective and whose student is
            sharded.
        module: module that a step calls: the distiller, or its wrapper that averages gradients over processes.
        parameters: trainable parameters, those that are sharded first: of these, this process's shares, in the same
            memory.
        average: average of the student's weights; ``None`` if there is none.
        buffers: buffers that a step leaves unchanged if it is not applied; terms guard their own.
        norms: batch norms that take statistics of all processes' samples.
        student: forms in which the student is computed.
        recomputed: blocks of the student that are computed again in the backward pass.
        now: other values that change from step to step.
        unsynchronised: names of buffers that terms keep equal in all processes.
        with_gradient: parameters to which a step that may not be finite gave a gradient.
        fused: whether the optimizer is torch's fused form: rate and skipping are tensors that the host never reads.
    """

    def __init__(
        self,
        distiller: Distiller,
        settings: FitSettings,
        accelerator: Accelerator,
        agreement: Agreement | None = None,
    ) -> None:
        self.settings, self.accelerator, self.device = settings, accelerator, accelerator.device
        self.agreement = agreement or Agreement(accelerator)
        self._whole = distiller
        if is_sharded_by(settings, "student"):
            distiller = with_sharded_student(cast_module(distiller, settings.precision), self.device)
            place(distiller.objective, self.device, settings)
        else:
            place(distiller, self.device, settings)
        self.distiller = distiller
        trained = [p for p in distiller.parameters() if p.requires_grad]
        self._shares = [(p, nn.Parameter(local_part(p))) for p in trained if isinstance(p, DTensor)]
        shares = {id(parameter): share for parameter, share in self._shares}
        self._logits_used = not shares
        self.fused = self.device.type in CAPTURES and optim.may_be_fused(settings.optimizer)
        self.optimizer = optim.build(settings.optimizer, distiller, fused=self.fused, shares=shares)
        self.parameters = [*shares.values(), *(p for p in trained if id(p) not in shares)]
        terms = distiller.objective.terms.values()
        self.stateful_terms: list[StatefulTerm] = [term for term in terms if isinstance(term, StatefulTerm)]
        guards = [cast(nn.Module, term) for term in self.stateful_terms]
        guarded = {id(buffer) for guard in guards for buffer in guard.buffers()}
        unsynchronised = [name for name, buffer in distiller.named_buffers() if id(buffer) in guarded]
        unsynchronised += [name for name, parameter in distiller.named_parameters() if isinstance(parameter, DTensor)]
        self.module = wrap(distiller, accelerator, unsynchronised=unsynchronised)
        self.unsynchronised = frozenset(unsynchronised)
        self.average = None if settings.ema is None else Average(distiller.student)
        self.buffers = SavedBuffers(distiller, but=guards)
        self.norms = norms_to_synchronise(distiller, settings.sync_bn)
        self.student = PlannedStudent(distiller)
        self.recomputed = checkpointed_blocks(distiller.student) if settings.checkpoint_activations else []
        self.metrics = EpochMetrics(distiller.objective, self.device)
        if not accelerator.is_main_process:  # All processes skip the same steps, which are counted once.
            self.metrics.skipped_sums = self.metrics.zeros
        objective = distiller.objective
        self.now = StepValues.on(
            self.device,
            sums=self.metrics.zeros.clone(),
            terms=len(objective.names),
            schedules=objective.schedules,
            ema=settings.ema,
        )
        self.with_gradient: list[nn.Parameter] = []
        if settings.precision == "fp16":
            self.now.loss_scale = LossScale.on(self.device)

    @contextmanager
    def forward_context(self, samples: int, *, last: bool = True) -> Iterator[None]:
        """Set up the forward pass of a micro-batch of this many samples, the ``last`` of a step or not.

        This sets the precision, the forms of student and objective, and whether processes average the gradients.
        """
        self.distiller.called = self.student.call(samples) if self._logits_used else self._watched
        self.distiller.called_objective = self.student.call_objective(samples)
        objective = self.distiller.objective
        objective.fused, objective.fused_compiled = self.student.fused, self.student.fused_compiled
        self.distiller.last_layer = self.student.last_layer
        local = nullcontext() if last else local_gradients(self.module)
        try:
            with (
                mixed_precision(self.device, self.settings.precision),
                self.student.gradients(samples),
                recomputing(self.recomputed),
                local,
            ):
                yield
        finally:
            self.distiller.called = self.distiller.called_objective = None
            objective.fused = objective.fused_compiled = False
            self.distiller.last_layer = None

    def gradients(self) -> tuple[list[nn.Parameter], Tensor]:
        """Return the `parameters` that have a gradient, and the norm of each one's: of the whole one if it is sharded.

        Shares get theirs here, after the backward passes of a step.

        Raises:
            ValueError: if the student is sharded and its logits had no gradient, on which FSDP's reductions depend.
        """
        if not self._logits_used:
            got, instead = "one of features alone", "add a term of logits, or do not shard the student"
            raise InvalidValueError("shard", "an objective that reads a sharded student's logits", got, instead)
        for parameter, share in self._shares:
            share.data = local_part(parameter)  # FSDP may have moved it.
            share.grad = None if parameter.grad is None else local_part(parameter.grad)
        sharded = sum(share.grad is not None for _, share in self._shares)
        parameters = [p for p in self.parameters if p.grad is not None]
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.now.loss_scale is not None:
            self.now.loss_scale.unscale(gradients)
        if not gradients:
            return [], self.metrics.zeros.new_zeros(0)
        norms = torch.stack(torch._foreach_norm(gradients))
        if sharded:
            squares = summed(norms[:sharded].double().square(), self.accelerator)
            norms = torch.cat([squares.sqrt().to(norms.dtype), norms[sharded:]])
        return parameters, norms

    def _watched(self, inputs: Tensor) -> Any:
        """Call the student, and note when its logits get a gradient."""
        logits = self.distiller.student(inputs)
        if isinstance(logits, Tensor) and logits.requires_grad:
            when_gradient(logits, lambda: setattr(self, "_logits_used", True))
        return logits

    def whole(self, parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
        """Return the distiller's parameters that some of the `parameters` are, or are shares of."""
        if not self._shares:
            return [*parameters]
        originals = {id(share): parameter for parameter, share in self._shares}
        return [originals.get(id(parameter), parameter) for parameter in parameters]

    def _numbered(self) -> list[nn.Parameter]:
        """Return the distiller's parameters as the optimizer's state numbers them."""
        return self.whole([p for group in self.optimizer.param_groups for p in group["params"]])

    def copy_back(self) -> None:
        """Give the student that was sharded the weights and buffers of its copy; all processes call it."""
        if self.distiller is not self._whole:
            copy_whole(self.distiller.student, self._whole.student)

    def apply(self, finite: Tensor) -> None:
        """Step the optimizer if ``finite``; else leave parameters, moments, buffers and average unchanged."""
        rate = self.now.rate if self.fused else self.now.learning_rate
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group[optim.SCALE] if optim.SCALE in group else rate
        if self.fused:
            # Fused optimizers read these two, which gradient scalers set, and skip on the device.
            self.optimizer.grad_scale, self.optimizer.found_inf = None, (~finite).float()  # type: ignore[attr-defined]
            self.optimizer.step()
            self.buffers.restore_unless(finite)
            if self.average is not None:
                self.average.update(self.now.average_rate * finite)
        elif finite:  # The host reads the value, which costs nothing on the CPU.
            self.optimizer.step()
            if self.average is not None:
                self.average.update(self.now.average_rate)
        else:
            self.buffers.restore()
        for term in self.stateful_terms:
            term.commit(finite)
        self.optimizer.zero_grad()
        for parameter, _ in self._shares:
            parameter.grad = None

    def lasting(self) -> Mapping[str, Sequence[Tensor]]:
        """Return the tensors that a step changes and the next one reads, by kind; generators have their own state."""
        moments = [value for values in self.optimizer.state.values() for value in values.values()]
        return {
            "parameters": list(self.parameters),
            "average": [] if self.average is None else list(self.average.tensors.values()),
            "buffers": list(self.distiller.buffers()),
            "moments": [value for value in moments if isinstance(value, Tensor)],
            "counts": [self.now.sums, self.now.nonfinite_log, self.now.nonfinite_values],
            "loss scale": [] if self.now.loss_scale is None else list(vars(self.now.loss_scale).values()),
        }

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the state as stored in a checkpoint, all processes' generators included: tensors, and plain values.

        All processes call it. Tensors of what is sharded are sharded too. Their names on disk are those of the first
        version.
        """
        now = self.now
        moments, optimizer = optim.optimizer_state(self.optimizer)
        parameters = self._numbered()
        for name, tensor in moments.items():
            parameter = parameters[_number_in(name)]
            if tensor.ndim and isinstance(parameter, DTensor):
                moments[name] = as_share(tensor, parameter)
        generators, rng = packed_states(gathered_objects(random_state(self.device)))
        tensors = {
            **_own_tensors(self.distiller),
            **({} if self.average is None else _named_average(self.average.tensors)),
            **moments,
            "sums": summed(now.sums, self.accelerator),
            "blame": now.nonfinite_log,
            "blame_values": now.nonfinite_values,
            **generators,
        }
        if now.loss_scale is not None:
            tensors |= {f"loss_scale.{name}": tensor for name, tensor in vars(now.loss_scale).items()}
        state = {"epoch": now.epoch, "step": now.step, "step_in_epoch": now.step_in_epoch}
        return tensors, {**state, "optimizer": optimizer, "rng": rng}

    def unpack(self, checkpoint: Checkpoint) -> None:
        """Restore state and this process's generators from a checkpoint of however many; all processes call it."""
        tensors, state, now = checkpoint.tensors, checkpoint.state, self.now
        parameters = self._numbered()
        own = _own_tensors(self.distiller)

        def target(name: str) -> Tensor:
            return own[name] if name in own else parameters[_number_in(name)]

        if checkpoint.shards is not None:
            tensors = {**tensors, **read(checkpoint.shards, target)}
        self.distiller.load_state_dict(
            under("lesson.", {name: like(tensors[name], value) for name, value in own.items()}),
            strict=not frozen_names(self.distiller.student),
        )
        moments = {
            name: local_part(like(tensor, target(name))) if tensor.ndim else tensor
            for name, tensor in tensors.items()
            if name.startswith("optimizer.")
        }
        optim.restore_optimizer(self.optimizer, checkpoint._replace(tensors=moments))
        self.copy_back()
        now.epoch, now.step, now.step_in_epoch = state["epoch"], state["step"], state["step_in_epoch"]
        if self.accelerator.is_main_process:  # They are the sums over all processes.
            now.sums.copy_(self.metrics.restored(tensors["sums"]))
        for name, tensor in _named_average(self.average.tensors).items() if self.average is not None else ():
            tensor.copy_(tensors[name])
        now.nonfinite_log.copy_(tensors["blame"])
        if "blame_values" in tensors:  # Checkpoints of older versions have none.
            now.nonfinite_values.copy_(tensors["blame_values"])
        saved = under("loss_scale.", tensors)  # empty if the fit was in another precision
        for name, tensor in vars(now.loss_scale).items() if now.loss_scale is not None and saved else ():
            tensor.copy_(saved[name])
        restore_rank(tensors, state["rng"], self.device, self.accelerator.process_index)


def _own_tensors(distiller: Distiller) -> dict[str, Tensor]:
    """Return a distiller's tensors by their names in a checkpoint, without what of its student is frozen."""
    frozen = _frozen_tensors(distiller)
    named = ((f"lesson.{name}", tensor) for name, tensor in distiller.state_dict().items())
    return {name: tensor for name, tensor in named if name not in frozen}


def _frozen_tensors(distiller: Distiller) -> set[str]:
    """Return the names that what of a student is frozen has in checkpoints of earlier versions."""
    return {f"lesson.student.network.{name}" for name in frozen_names(distiller.student)}


def _named_average(tensors: Mapping[str, T]) -> dict[str, T]:
    """Return an average's tensors, or what is known of each, by their names in a checkpoint."""
    return {f"average.{name}": tensor for name, tensor in tensors.items()}


def _number_in(moment: str) -> int:
    """Return the number of the parameter that ``optimizer.<number>.<name>`` is of."""
    return int(moment.split(".")[1])


class _CheckpointState(TypedDict):
    """Types of a checkpoint's plain values, as `TrainState.packed` and `FitState` write them."""

    stage: int
    epoch: int
    step: int
    step_in_epoch: int
    optimizer: _OptimizerState
    rng: dict[str, list[Any]]
    history: list[Epoch]
    to_beat: float | None
    choices: dict[str, Any]
    speed: NotRequired[dict[str, Any] | None]  # none in checkpoints of earlier versions


class _OptimizerState(TypedDict):
    plain: dict[str, dict[str, Any]]
    groups: list[dict[str, Any]]


def check_restorable(checkpoint: Checkpoint, distiller: Distiller, settings: FitSettings) -> None:
    """Refuse a checkpoint that `TrainState.unpack` could not restore; neither module nor generators are changed.

    Raises:
        ValueError: it lacks something, or has something of another shape; the message says what.
    """
    tensors, state = checkpoint.tensors, checkpoint.state
    found = {name: tensor.shape for name, tensor in tensors.items()}
    found |= shapes(checkpoint.shards) if checkpoint.shards is not None else {}
    if wrong := misfit(state, _CheckpointState):
        raise ValueError(wrong)
    expected = {name: tensor.shape for name, tensor in _own_tensors(distiller).items()}
    if settings.ema is not None:
        places = _named_average(averaged(distiller.student))
        expected |= {name: tensor.shape for name, place in places.items() if (tensor := place.tensor) is not None}
    metrics = EpochMetrics(distiller.objective, torch.device("cpu"))
    if "sums" in tensors:
        found["sums"] = metrics.restored(tensors["sums"]).shape
    expected |= {"sums": metrics.zeros.shape}
    expected |= {"blame": empty_log(torch.device("cpu")).shape, "rng.cpu": torch.get_rng_state().shape}
    generators = [name for name in tensors if name.startswith("rng.") and name.endswith(".cpu")]
    expected |= dict.fromkeys(generators, torch.get_rng_state().shape)
    if "blame_values" in tensors:  # Checkpoints of older versions have none.
        expected["blame_values"] = empty_values(len(distiller.objective.names), torch.device("cpu")).shape
    if missing := expected.keys() - found.keys():
        raise ValueError(f"no tensor {min(missing)}")
    lessons = {name for name in found if name.startswith("lesson.")}
    if unknown := lessons - expected.keys() - _frozen_tensors(distiller):
        raise ValueError(f"the tensor {min(unknown)}, which the student lacks")
    for name, shape in expected.items():
        if found[name] != shape:
            raise ValueError(f"{name} of shape {tuple(found[name])}, not {tuple(shape)}")
    groups = optim.build(settings.optimizer, distiller, fused=False).param_groups
    if [len(group["params"]) for group in groups] != [len(g.get("params", ())) for g in state["optimizer"]["groups"]]:
        raise ValueError("the state of another optimizer")
    parameters = [parameter for group in groups for parameter in group["params"]]
    for name, shape in found.items():
        if name.startswith("optimizer.") and not optim.may_have(
            settings.optimizer, shape, parameters[_number_in(name)]
        ):
            raise ValueError(f"{name} of shape {tuple(shape)}")
    for rank in range(len(generators)):
        if (own := state_of_rank(tensors, state["rng"], rank)) is None:
            raise ValueError(f"no tensor rng.{rank}.cpu")
        check_random(*own)
