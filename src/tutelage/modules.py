"""The forward pass of a step as modules: a student with its bound objective, and a frozen teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tutelage import taps
from tutelage.adapters import inputs_for, refuse_unknown_index
from tutelage.errors import InvalidTypeError, InvalidValueError
from tutelage.objectives import BindContext, Objective
from tutelage.submodules import restored_modes, unwrapped
from tutelage.taps import LastLayer, Taps, restored_hooks
from tutelage.types import Batch, Hidden, Inputs, Loss, Outputs, Progress, Totals


class StepOutput(NamedTuple):
    """The output of a distiller: the loss, and the student's outputs that it was computed from."""

    loss: Loss
    outputs: Outputs


class Distiller(nn.Module):
    """A student and an objective bound to it: one trainable module for one optimizer, one DDP, one compile.

    Args:
        student: any module that turns ``batch.inputs``, or its view ``student``, into logits ``(batch, classes)``.
        objective: objective of the student; bound here, so that no two distillers share anything.
        context: facts of the run that the objective may read.

    Attributes:
        called: compiled form that is called in place of the student; ``None`` to call the student itself.
        called_objective: compiled form of the objective, likewise.
        last_layer: the student's last layer, which is left to the objective; ``None`` to let the student make logits.

    Example:
        >>> import torch, tutelage
        >>> from tutelage import Batch, objectives
        >>> student, teacher = torch.nn.Linear(4, 3), tutelage.FrozenTeacher(torch.nn.Linear(4, 3))
        >>> distiller = Distiller(student, objectives.wttm(gamma=0.5, beta=1.0))
        >>> batch = Batch(torch.arange(2), torch.rand(2, 4), torch.tensor([0, 2]))
        >>> loss, outputs = distiller(batch, teacher(batch))
        >>> loss.total.backward()
        >>> sorted(loss.parts)
        ['ce', 'wttm']
    """

    def __init__(self, student: nn.Module, objective: Objective, context: BindContext = BindContext()) -> None:  # noqa: B008
        super().__init__()
        self.student = student
        self.objective = objective.bind(context)
        self._taps = Taps(student, self.objective.needs.student_taps)
        self._reads_index = objective.needs.indices
        self.called: Callable[[Tensor], Any] | None = None
        self.called_objective: Callable[..., Loss] | None = None
        self.last_layer: LastLayer | None = None

    def forward(
        self,
        batch: Batch,
        teacher: Outputs | None = None,
        progress: Progress = Progress(),  # noqa: B008
        totals: Totals | None = None,
    ) -> StepOutput:
        """Run the student on a batch and compute the loss.

        Args:
            batch: samples of the step.
            teacher: teacher's outputs for them; may be ``None`` if the objective needs none.
            progress: position in the run, for scheduled weights.
            totals: divisors of the means; by default the counts of this batch.

        Raises:
            TypeError: if the student does not return logits, or the teacher's are not wrapped in `Outputs`.
            ValueError: if the objective needs a teacher and got none, it reads indices
                that the batch lacks, or the loss has no gradient.
        """
        if teacher is not None and not isinstance(teacher, Outputs):
            raise InvalidTypeError(
                "teacher", "Outputs", type(teacher).__name__, "type Outputs(logits), or ask a FrozenTeacher"
            )
        if self._reads_index:
            refuse_unknown_index(batch)
        inputs = inputs_for(self.student, batch.inputs, "student")
        if self.last_layer is not None:
            outputs = _of_hidden(self.last_layer(inputs))
        else:
            logits, features = self._taps(self.called or self.student, inputs)
            outputs = Outputs(_logits(logits, "student"), features)
        loss = (self.called_objective or self.objective)(outputs, teacher, batch, progress, totals)
        differentiable = loss.total.requires_grad or not torch.is_grad_enabled()
        if not differentiable and any(p.requires_grad for p in self.student.parameters()):
            instead = "leave detach(), argmax() and torch.no_grad() out of the student's forward and of the loss"
            raise InvalidValueError("student or loss", "a loss with a gradient", "one without", instead)
        # The features end here, as metrics read only the logits.
        return StepOutput(loss, outputs._replace(taps={}))


class FrozenTeacher(nn.Module):
    """A network that never changes: it answers without gradients and in evaluation mode, whatever was called on it.

    Whoever calls ``train()`` on the network, on part of it or on a module that holds it: the next answer is given in
    evaluation mode again.

    Args:
        network: any module that turns ``batch.inputs``, or its view ``teacher``, into logits. It is frozen in place:
            put in evaluation mode, and its parameters no longer require gradients, so that DDP waits for none and no
            optimizer is given them. A student must share nothing with it (`refuse_shared`). A run gives the caller's
            module back as it came.
        names: features to return with its outputs (`tutelage.taps`): an objective's ``needs.teacher_taps``.
    """

    def __init__(self, network: nn.Module, names: Sequence[str] = ()) -> None:
        super().__init__()
        self.network = network
        for parameter in network.parameters():  # one by one, as scripted modules lack requires_grad_
            parameter.requires_grad_(False)
        self._taps = Taps(network, names)
        # Kept, as walking through a network takes 30 times as long as reading its modules' modes.
        self._modules_of_network = tuple(network.modules())
        self.train()

    def train(self, mode: bool = True) -> FrozenTeacher:
        """Stay in evaluation mode: with active dropout or batch norm, the teacher would change from step to step."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, batch: Batch) -> Outputs:
        """Return the network's outputs for a batch."""
        self._keep_evaluation()
        logits, features = self._taps(self.network, inputs_for(self.network, batch.inputs, "teacher"))
        return Outputs(_logits(logits, "teacher"), features)

    @torch.no_grad()
    def hidden(self, batch: Batch, last_layer: LastLayer) -> Outputs:
        """Return outputs whose logits are not made: the network's last layer is left to the objective."""
        self._keep_evaluation()
        return _of_hidden(last_layer(inputs_for(self.network, batch.inputs, "teacher")))

    def _keep_evaluation(self) -> None:
        for module in self._modules_of_network:
            if module.training:
                _to_evaluation(self.network)
                break


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _to_evaluation(network: nn.Module) -> None:
    """Put a network in evaluation mode; a compiler only reads the modes, and leaves this to Python."""
    network.train(False)


@contextmanager
def restored(network: nn.Module | None) -> Iterator[None]:
    """Give a network back as it came, also after an error.

    That is modules' modes, hooks and in-place flags, parameters' flags, the values of buffers, and the device, dtype
    and layout of both.
    """
    if network is None:
        yield
        return
    flags = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    forms = {name: _form(tensor) for name, tensor in _named_tensors(network)}
    buffers = {name: tensor.clone() for name, tensor in network.named_buffers() if _is_plain(tensor)}
    inplace = [module for module in network.modules() if getattr(module, "inplace", False) is True]
    with restored_modes(network), restored_hooks(network):
        try:
            yield
        finally:
            changed = False
            for name, tensor in _named_tensors(network):
                form, before = _form(tensor), buffers.get(name)
                if form != (came := forms.get(name, form)):
                    tensor.data, changed = _in_form(tensor.data, came), True
                if before is not None and not torch.equal(tensor, before):
                    tensor.data = before
            if changed:
                network._apply(lambda tensor: tensor)  # Some modules note what they are in.
            for parameter, flag in flags:
                if parameter.requires_grad != flag:
                    with torch.inference_mode(parameter.is_inference()):  # such as are made there change only there
                        parameter.requires_grad_(flag)
            for module in inplace:
                setattr(module, "inplace", True)  # noqa: B010  modules declare every attribute a tensor or module


def _named_tensors(network: nn.Module) -> list[tuple[str, Tensor]]:
    return [*network.named_parameters(), *network.named_buffers()]


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor has values in memory of its own, and is neither lazy nor of a library's own kind."""
    return (
        not is_lazy(tensor)
        and type(tensor.detach()) is Tensor
        and tensor.layout is torch.strided
        and not tensor.is_meta
    )


class _Form(NamedTuple):
    device: torch.device
    dtype: torch.dtype
    stride: tuple[int, ...] | None  # None of tensors that are not plain


def _form(tensor: Tensor) -> _Form:
    return _Form(tensor.device, tensor.dtype, tensor.stride() if _is_plain(tensor) else None)


def _in_form(values: Tensor, form: _Form) -> Tensor:
    """Return values on a device, of a dtype and in a layout."""
    if form.stride is None:
        return values.to(form.device, form.dtype)
    return torch.empty_strided(values.shape, form.stride, dtype=form.dtype, device=form.device).copy_(values)


def refuse_shared(student: nn.Module, teacher: nn.Module) -> None:
    """Refuse a student and a teacher that share a module, or memory of a parameter or buffer; nothing is changed.

    The teacher is frozen and in evaluation mode: what the student shares with it would not learn, and its dropout and
    batch norm would not work as in training.

    Raises:
        ValueError: if they share something; the message names it in both.
    """
    student_paths = {module: path for path, module in unwrapped(student).named_modules()}
    teacher_paths = {module: path for path, module in unwrapped(teacher).named_modules()}
    shared = [module for module in student_paths if module in teacher_paths]
    # Children of a shared module are shared too: only the outermost are named.
    inner = {child for module in shared for child in module.modules() if child is not module}
    pairs = [(student_paths[module], teacher_paths[module]) for module in shared if module not in inner]
    pairs = pairs or _overlapping(unwrapped(student), unwrapped(teacher))
    if pairs:
        (mine, its), *more = pairs
        where = f"{_place(mine, 'student')}, which is {_place(its, 'teacher')}"
        where += f", and {len(more)} more" * bool(more)
        expected = "networks that share no module, parameter or buffer"
        raise InvalidValueError("student and teacher", expected, where, "type teacher=copy.deepcopy(teacher)")


def _place(path: str, network: str) -> str:
    return f"the {network}'s {path}" if path else f"the whole {network}"


def _overlapping(student: nn.Module, teacher: nn.Module) -> list[tuple[str, str]]:
    """Return the names of the student's parameters and buffers whose memory is also one of the teacher's."""
    spans = [
        (device, start, end, whose, name)
        for whose, network in enumerate((student, teacher))
        for name, tensor in (*network.named_parameters(), *network.named_buffers())
        for device, start, end in _spans(tensor)
    ]
    pairs: list[tuple[str, str]] = []
    open_spans: list[tuple[torch.device, int, int, int, str]] = []
    for span in sorted(spans, key=lambda span: (str(span[0]), *span[1:])):
        open_spans = [other for other in open_spans if other[0] == span[0] and other[2] > span[1]]
        pairs += [
            (span[4], other[4]) if span[3] == 0 else (other[4], span[4]) for other in open_spans if other[3] != span[3]
        ]
        open_spans.append(span)
    return pairs


def _spans(tensor: Tensor) -> Iterator[tuple[torch.device, int, int]]:
    """Yield the memory from a tensor's first value to its last, if it has any that can be told."""
    if is_lazy(tensor) or type(tensor.detach()) is not Tensor or tensor.layout is not torch.strided:
        return
    if not tensor.numel() or not (start := tensor.data_ptr()):  # none on the meta device
        return
    extent = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    yield tensor.device, start, start + (extent + 1) * tensor.element_size()


def network_context(
    objective: Objective,
    student: nn.Module,
    teacher: nn.Module | None,
    inputs: Inputs,
    *,
    samples: int | None = None,
    classes: int | None = None,
    labels: Tensor | None = None,
    teacher_logits: Tensor | None = None,
    class_means: Mapping[str, Tensor] = {},
    same_tokens: Tensor | None = None,
    per_epoch: int | None = None,
    per_token: bool = False,
    seed: int = 0,
) -> BindContext:
    """Return the context that an objective binds to, after at most one forward pass of each network.

    A network is called on ``inputs``, a few samples as in training, only if its features are read. The keywords are
    those of `BindContext`.

    Raises:
        ValueError: if a network lacks a tap or changes it in place, the teacher lacks a head or a batch norm, or both
            share a module or weights.

    Example:
        >>> import torch, tutelage
        >>> from tutelage import objectives
        >>> student, teacher = tutelage.models.create("cifar:resnet8"), tutelage.models.create("cifar:resnet14")
        >>> images = torch.rand(2, 3, 32, 32)
        >>> context = network_context(objectives.kd(), student, teacher, images, samples=50000, classes=100)
        >>> context.samples
        50000
    """
    needs = objective.needs
    if (needs.teacher_taps or needs.teacher_head or needs.teacher_norms) and teacher is None:
        raise InvalidValueError("teacher", f"one for objective {objective.name}", "none", "pass the network itself")
    if teacher is not None:
        refuse_shared(student, teacher)
    return BindContext(
        samples=samples,
        classes=classes,
        labels=labels,
        student_shapes=taps.feature_shapes(student, needs.student_taps, inputs_for(student, inputs, "student")),
        teacher_shapes=(
            taps.feature_shapes(teacher, needs.teacher_taps, inputs_for(teacher, inputs, "teacher"))
            if teacher is not None
            else {}
        ),
        teacher_logits=teacher_logits,
        teacher_head=taps.head(teacher) if needs.teacher_head and teacher is not None else None,
        teacher_norms={t: taps.batch_norm(teacher, t) for t in needs.teacher_norms} if teacher is not None else {},
        class_means=class_means,
        same_tokens=same_tokens,
        per_epoch=per_epoch,
        per_token=per_token,
        seed=seed,
    )


def _of_hidden(hidden: Hidden) -> Outputs:
    """Return outputs whose logits are not made."""
    return Outputs(hidden.states[..., :0].detach(), hidden=hidden)


def _logits(output: object, who: str) -> Tensor:
    if not isinstance(output, Tensor):
        expected = "a module that returns logits (batch, classes)"
        instead = 'name the field of the logits: tutelage.Adapter(network, output="logits")'
        raise InvalidTypeError(who, expected, f"one that returns {type(output).__name__}", instead)
    return output
