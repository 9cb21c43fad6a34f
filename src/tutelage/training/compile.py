"""How a fit is computed: compiled or not, which gradients as products. Chosen by measurement, and then kept.

A plan changes results only by rounding. It is chosen once, in a fit's first step, among the forms that the settings
leave open; compiling is tried only if the fit is long enough to repay it. Records and checkpoints hold the plan, and a
resumed fit keeps it.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from tutelage.kernels.compiler import compile_apart
from tutelage.kernels.conv_weight_grad import Products, Shape, library_gradient, weight_gradient
from tutelage.kernels.logits import BLOCKS_FROM
from tutelage.modules import Distiller, FrozenTeacher
from tutelage.settings.fit import FitSettings, Switch
from tutelage.taps import LastLayer
from tutelage.training.buffers import SavedBuffers
from tutelage.training.distributed import cast_module, place
from tutelage.training.generators import random_state, restore_random
from tutelage.training.graphs import NotCapturableError
from tutelage.training.precision import mixed_precision
from tutelage.training.sharding import is_sharded_by, with_sharded_network
from tutelage.types import Batch, Loss, Opens, Outputs, Teacher
from tutelage.views import views_of, with_own_inputs

SHARE = 0.05
"""Largest share of a fit's estimated time that a trial compilation may cost."""
COSTS = {
    "teacher": 20.0,
    "products": 2.0,
    "student": 60.0,
    "graph": 2.0,
    "compiled losses": 20.0,
    "fused losses": 2.0,
    "fused_compiled losses": 20.0,
    "last_layer losses": 2.0,
}
"""Assumed seconds of a trial: compiling took 3 to 60 for networks of 8 to 60 layers on two cores."""
GAIN = 1.05
"""Least speed-up at which a plan replaces the eager one."""
PRODUCT_GAIN = 1.2
"""Least speed-up at which a weight gradient is computed as a product."""
FEW = 200
"""Number of steps below which nothing is measured, as measuring takes some itself."""
ROUNDS = 5
"""Number of timings of each call."""
MEASURES_LOSSES = frozenset({"cuda"})
"""Types of devices on which the forms of the losses are measured, however few the logits."""
MANY = 1 << 22
"""Number of logits of a micro-batch from which on it is measured, on any device, whether to do without holding them."""
NOT_CAPTURED = "not captured"
"""First words of the reason if a step that was to be captured could not be."""


@dataclass(frozen=True, kw_only=True)
class ComputePlan:
    """The chosen ways of computing a fit."""

    teacher_compiled: bool = False  # whether the teacher's forward pass is compiled, with constant weights
    student_compiled: bool = False  # whether the student's forward and backward passes are compiled
    graph: bool = False  # whether a step is captured and replayed
    loss_form: str = "plain"  # form of the losses: `settings.fit.LossForm`
    products: tuple[Shape, ...] = ()  # convolutions whose weight gradient is one product
    # number of samples in a micro-batch for compiled forms. Other sizes, such as an epoch's last, run eagerly, as each
    # would be compiled again.
    samples: int = 0
    # measurements, or why there are none, by form; "why" on disk
    reasons: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as a JSON value."""
        return {
            "teacher_compiled": self.teacher_compiled,
            "student_compiled": self.student_compiled,
            "graph": self.graph,
            "loss_form": self.loss_form,
            "products": [list(shape) for shape in self.products],
            "samples": self.samples,
            "why": dict(self.reasons),
        }

    def after(self, teacher: ComputePlan) -> ComputePlan:
        """Return this plan for a student combined with another for the teacher."""
        return replace(
            self,
            teacher_compiled=teacher.teacher_compiled,
            samples=self.samples or teacher.samples,
            reasons={**{form: reason for form, reason in teacher.reasons.items() if form == "teacher"}, **self.reasons},
        )

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ComputePlan:
        """Read a plan back."""
        fields = {"reasons" if name == "why" else name: x for name, x in value.items()}
        return cls(**{**fields, "products": tuple(Shape(*shape) for shape in value["products"])})


class PlannedTeacher:
    """A teacher that follows a plan, in the fit's precision: a `types.Teacher`.

    Args:
        teacher: teacher, which is moved to the device, or of which a copy is sharded; only a frozen network can be
            compiled or sharded.
        settings: settings with its precision and layout, and the open choices.
        device: device of the batches.
        plan: plan that was chosen before, if any.
    """

    def __init__(
        self, teacher: Teacher, settings: FitSettings, device: torch.device, plan: ComputePlan | None = None
    ) -> None:
        if isinstance(teacher, FrozenTeacher) and is_sharded_by(settings, "teacher"):
            teacher = with_sharded_network(cast_module(teacher, settings.precision), device)
        elif isinstance(teacher, nn.Module):
            place(teacher, device, settings)
        self._teacher, self._settings, self._device = teacher, settings, device
        # Checked once: matching an object with a protocol takes 10 us, a good part of a replayed step.
        self._open = teacher.open if isinstance(teacher, Opens) else None
        self._compiled = (
            # Its weights become constants; batch norms are folded into convolutions whose outputs nothing else reads.
            _Compiled("teacher", teacher, {"freezing": True}, "compile_teacher=false")
            if isinstance(teacher, FrozenTeacher)
            else None
        )
        self.plan = plan

    def __call__(self, batch: Batch) -> Outputs:
        """Return the teacher's outputs."""
        with mixed_precision(self._device, self._settings.precision):
            plan = self.plan
            if plan and plan.loss_form == "last_layer" and self.last_layer is not None:
                return cast(FrozenTeacher, self._teacher).hidden(batch, self.last_layer)
            if self._compiled and plan and plan.teacher_compiled and len(batch.index) == plan.samples:
                with torch.no_grad():  # without it the compiler does not treat weights as constants
                    return cast(Outputs, self._compiled(batch))
            return self._teacher(batch)

    @cached_property
    def last_layer(self) -> LastLayer | None:
        """The network's last layer; ``None`` of outputs that no network computes here, such as recorded ones."""
        return LastLayer(self._teacher.network) if isinstance(self._teacher, FrozenTeacher) else None

    @property
    def compiles(self) -> bool:
        """Whether it can be compiled."""
        return self._compiled is not None

    def prepare(self, batch: Batch) -> None:
        """Do the host's work for a batch's outputs between steps: a cache opens the outputs of its view."""
        if self._open is not None:
            self._open(batch.view)

    def use(self, plan: ComputePlan) -> None:
        """Compute by this plan from now on; nothing is compiled twice."""
        self.plan = plan

    def _on_copy(self, batch: Batch) -> None:
        """Compute outputs from a copy of the batch, which a teacher may write into."""
        self(with_own_inputs(batch))

    def choose_plan(self, piece: Batch, *, steps: int, processes: int) -> ComputePlan:
        """Choose the plan once, on a micro-batch of a fit with this many steps."""
        wanted = self._settings.compile_teacher
        if self.plan is None:
            reason = reason_unmeasured(steps, processes, [wanted])
            if self._compiled is None:
                self.plan = ComputePlan()
            elif reason is not None:
                self.plan = ComputePlan(reasons={"teacher": reason})
            else:
                trials = Trials(partial(self._on_copy, piece), self.use, steps, piece, self._device)
                if trials.is_open("teacher", wanted):
                    trials.attempt("teacher", wanted, replace(trials.plan, teacher_compiled=True))
                self.plan = trials.chosen()
        return self.plan


class PlannedStudent:
    """The forms in which a fit's student can be called: eager, and faster ones once chosen.

    Args:
        distiller: distiller that calls the student and its objective; compiled forms keep its gradients.
    """

    def __init__(self, distiller: Distiller) -> None:
        # Dropout draws the same numbers as it would uncompiled.
        exact = {"fallback_random": True}
        self._objective, self._student = distiller.objective, distiller.student
        self._compiled = _Compiled("student", distiller.student, exact, "compile_student=false")
        self._compiled_objective = _Compiled("objective", distiller.objective, exact, "loss_form=plain")
        self.use(ComputePlan())

    def use(self, plan: ComputePlan) -> None:
        """Compute by this plan from now on; nothing is compiled twice."""
        self._plan = plan
        self._products = Products(plan.products)

    def call(self, samples: int) -> Callable[[Tensor], Any] | None:
        """Return what to call instead of the student for this many samples; ``None`` for the student itself."""
        return self._compiled if self._plan.student_compiled and samples == self._plan.samples else None

    def call_objective(self, samples: int) -> Callable[..., Loss] | None:
        """Return what to call instead of the objective for this many samples; ``None`` for the objective itself."""
        compiled = self._plan.loss_form == "compiled" and samples == self._plan.samples
        return self._compiled_objective if compiled else None

    @property
    def fused(self) -> bool:
        """Whether the objective computes two losses at once."""
        return self._plan.loss_form in ("fused", "fused_compiled")

    @property
    def fused_compiled(self) -> bool:
        """Whether it does so in compiled sweeps, on a device that has them."""
        return self._plan.loss_form == "fused_compiled"

    @cached_property
    def found_last_layer(self) -> LastLayer:
        """The student's last layer, whether or not it may be left to the objective."""
        return LastLayer(self._student)

    @property
    def last_layer(self) -> LastLayer | None:
        """The student's last layer where it is left to the objective."""
        return self.found_last_layer if self._plan.loss_form == "last_layer" else None

    def may_leave_logits_out(self, wanted: str, piece: Batch) -> bool:
        """Whether it is wanted that a micro-batch's logits never exist all at once, or it is to be tried."""
        logits = _positions(piece) * self.found_last_layer.classes
        return wanted == "last_layer" or (wanted == "auto" and logits >= MANY)

    def choose_plan(
        self, trials: Trials, settings: FitSettings, refusal: Callable[[], str | None] | None
    ) -> ComputePlan:
        """Try the forms that the settings leave open; ``refusal`` as for `attempt_losses`."""
        self.take_last_layer(trials, settings.loss_form, refusal)
        trials.attempt_products(settings.gradient_products)
        self.attempt_losses(trials, settings.loss_form, refusal)
        if trials.plan.loss_form == "last_layer":
            trials.reasons["student"] = "not tried with last_layer losses"
        elif trials.is_open("student", settings.compile_student):
            trials.attempt("student", settings.compile_student, replace(trials.plan, student_compiled=True))
        return trials.chosen()

    def take_last_layer(self, trials: Trials, wanted: str, refusal: Callable[[], str | None] | None) -> None:
        """Leave the last layers to the objective if that is requested: unmeasured, as logits may not fit in memory."""
        if wanted == "last_layer" and refusal is not None:
            reason = refusal()
            trials.reasons["last_layer losses"] = reason or "requested"
            if reason is None:
                trials.plan = replace(trials.plan, loss_form=wanted)
                trials.use(trials.plan)

    def attempt_losses(self, trials: Trials, wanted: str, refusal: Callable[[], str | None] | None) -> None:
        """Try the possible forms of the losses, or take the requested one.

        ``refusal`` returns why the last layers cannot be left to the objective, if that is so; it is ``None`` where
        `may_leave_logits_out` is false.
        """
        if wanted in ("plain", "last_layer"):
            return
        tried: tuple[str, ...] = ("compiled", "fused", "fused_compiled")
        if wanted == "auto" and trials.device.type in MEASURES_LOSSES:
            tried = ("compiled", "fused")
        elif wanted == "auto":
            tried = self._worth_fusing(trials)
        for form in (*tried, *["last_layer"] * (refusal is not None)):
            switch: Switch = "auto" if wanted == "auto" else form == wanted
            reason = f"{form} losses"
            if form in ("fused", "fused_compiled") and switch and self._objective.pair is None:
                trials.reasons[reason] = "no cross-entropy with a loss of logits beside it"
            elif not trials.is_open(reason, switch):
                continue
            elif form == "last_layer" and refusal is not None and (refused := refusal()):
                trials.reasons[reason] = refused
            else:
                trials.attempt(reason, switch, replace(trials.plan, loss_form=form), after=f"with {reason}")

    def _worth_fusing(self, trials: Trials) -> tuple[str, ...]:
        """Return the fused forms to try on a CPU: none where the plain losses take too little of a step to gain by."""
        positions, classes = _positions(trials.piece), self.found_last_layer.classes
        few = trials.device.type != "cpu" or positions * classes < BLOCKS_FROM
        if few or self._objective.pair is None or trials.piece.labels.is_floating_point():
            return ()
        if not trials.is_open("fused losses", "auto"):
            return ()
        share = self._plain_seconds(positions, classes) * trials.steps / trials.ahead
        if share < 1 - 1 / GAIN:
            trials.reasons["fused losses"] = f"not tried: plain losses take {share:.1%} of a step"
            return ()
        return "fused", "fused_compiled"

    def _plain_seconds(self, positions: int, classes: int) -> float:
        """Time the plain losses of a pair, forward and backward, on the CPU; what the logits are is no matter.

        Of many positions some are timed, as a step's activations are not there to make room for all their logits.
        """
        rows = max(1, min(positions, MANY // classes))
        z, v = torch.ones(rows, classes, requires_grad=True), torch.ones(rows, classes)
        labels = torch.zeros(rows, dtype=torch.int64)

        def both() -> None:
            torch.stack(self._objective.plain_pair(z, v, labels)).mean().backward()

        return least_seconds([both], torch.device("cpu"))[0] * positions / rows

    def gradients(self, samples: int) -> AbstractContextManager[Any]:
        """Return the context in which an autograd graph of this many samples is built.

        Compiled forms use the library's gradients: the compiler would trace into the products, and gets them wrong.
        """
        compiled = self.call(samples) or self.call_objective(samples)
        return self._products if self._products.shapes and compiled is None else nullcontext()


def _positions(piece: Batch) -> int:
    """Return the number of rows of a micro-batch's logits."""
    labels = piece.labels
    return (labels.shape[:-1] if labels.is_floating_point() else labels.shape).numel()


class _Compiled:
    """A module's call, compiled for one size of batch; the module itself and its names stay as they are.

    If compiling fails, as it does without a C++ compiler, the call is eager from then on. A warning says so, and names
    the setting that chooses this ``beforehand``.
    """

    def __init__(self, role: str, module: nn.Module, options: dict[str, Any], beforehand: str) -> None:
        self._role, self._module, self._options, self._beforehand = role, module, options, beforehand
        self._call: Callable[..., Any] | None = None

    def __call__(self, *inputs: Any) -> Any:
        return self._call(*inputs) if self._call is not None else self._first(*inputs)

    def _first(self, *inputs: Any) -> Any:
        """Compile and call; not earlier, as importing the compiler alone takes seconds."""
        module = self._module
        try:
            # The compiler's warnings are its own business, such as deprecations: as errors they would end the
            # compiling.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                compiled = compile_apart(module, dynamic=False)
                from torch._inductor import config

                # As options of torch.compile they would come too late: the tracer reads them too.
                with config.patch(self._options):
                    outputs = compiled(*inputs)
        except Exception as error:  # noqa: BLE001  whatever a compiler raises, eager works or tells why not
            self._call = module
            warnings.warn(
                f"{self._role}: expected to compile it, got {type(error).__name__}; it is computed uncompiled "
                f"({self._beforehand} says so beforehand)",
                stacklevel=2,
            )
            return module(*inputs)
        self._call = compiled
        return outputs


def reason_unmeasured(steps: int, processes: int, wanted: Collection[Switch]) -> str | None:
    """Return why nothing is to be measured, if that is so."""
    if processes > 1:  # Each would measure and choose for itself.
        return "several processes"
    return "a short fit" if steps < FEW and True not in wanted else None


class Trials:
    """Forms of one computation, tried in turn, each against the best so far.

    Args:
        run: function that computes it once and changes nothing lasting.
        use: function that switches to a plan.
        steps: number of times it is still to be computed.
        piece: micro-batch that it is computed on.
        device: device that it runs on.
    """

    def __init__(
        self,
        run: Callable[[], Any],
        use: Callable[[ComputePlan], None],
        steps: int,
        piece: Batch,
        device: torch.device,
    ) -> None:
        self.run, self.use, self.steps, self.piece, self.device = run, use, steps, piece, device
        self.plan, self.reasons = ComputePlan(samples=len(piece.index)), dict[str, str]()
        self._of_tokens = not all(view.is_floating_point() for view in views_of(piece.inputs))
        self._step = "eager"

    @cached_property
    def ahead(self) -> float:
        """Estimated seconds of all remaining computations, measured on first use."""
        self.run()  # warms up
        return self.steps * seconds(self.run, self.device)

    def is_open(self, form: str, setting: Switch) -> bool:
        """Whether a form is to be tried; if not, note why."""
        if setting is False:
            self.reasons[form] = "switched off"
        elif setting == "auto" and form in ("teacher", "student") and self._of_tokens:
            # Each length would be compiled anew, until the compiler gives up.
            self.reasons[form] = "not tried: batches of tokens differ in length"
        elif setting == "auto" and COSTS[form] > SHARE * self.ahead:
            self.reasons[form] = f"not tried: {self.ahead:.0f} s of it are ahead"
        return form not in self.reasons

    def attempt(self, form: str, setting: Switch, candidate: ComputePlan, *, after: str = "compiled") -> None:
        """Time a plan against the best so far, and keep the faster one, or the requested one."""

        def run_by(plan: ComputePlan) -> None:
            self.use(plan)
            self.run()

        try:
            current, changed = least_seconds([partial(run_by, self.plan), partial(run_by, candidate)], self.device)
        except NotCapturableError as error:
            self.reasons[form] = f"{NOT_CAPTURED}: {error}"
        else:
            self.reasons[form] = f"{current * 1e3:.1f} ms {self._step}, {changed * 1e3:.1f} ms {after}"
            if setting is True or current >= GAIN * changed:
                self.plan, self._step = candidate, after
        self.use(self.plan)

    def attempt_products(self, setting: Switch) -> None:
        """Try the weight gradients of convolutions as products, for the shapes where that is faster."""
        if not self.is_open("products", setting):
            return
        with Products() as probe:
            self.run()
        if shapes := faster_products(probe.seen, self.device):
            self.attempt("products", setting, replace(self.plan, products=shapes), after="with products")
        else:
            self.reasons["products"] = "none is faster"

    def chosen(self) -> ComputePlan:
        """Return the best plan, with the measurements."""
        return replace(self.plan, reasons=self.reasons)


def faster_products(seen: Mapping[Shape, tuple[int, torch.dtype]], device: torch.device) -> tuple[Shape, ...]:
    """Measure which convolutions' weight gradients are faster as a product, given the batch and dtype of each."""
    return tuple(
        shape for shape, (batch, dtype) in seen.items() if _speedup(shape, batch, dtype, device) >= PRODUCT_GAIN
    )


def _speedup(shape: Shape, batch: int, dtype: torch.dtype, device: torch.device) -> float:
    """Return how many times faster a convolution's weight gradient is as a product, at a batch and dtype."""
    generator = torch.Generator().manual_seed(0)  # the run's generators do not advance

    def random(*size: int) -> Tensor:
        values = torch.randn(size, generator=generator).to(device, dtype)
        return values.contiguous(memory_format=torch.channels_last)

    inputs = random(batch, shape.inputs, shape.height, shape.width)
    weight = random(shape.outputs, shape.inputs, shape.kernel_height, shape.kernel_width)
    with torch.no_grad():
        gradient = torch.conv2d(inputs, weight, None, shape.stride, shape.padding, shape.dilation)
        by_library, by_product = least_seconds(
            [
                lambda: library_gradient(gradient, inputs, weight, shape, by_weight=True),
                lambda: weight_gradient(gradient, inputs, shape),
            ],
            device,
        )
    return by_library / by_product


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Time one call."""
    _synchronize(device)
    start = time.perf_counter()
    call()
    _synchronize(device)
    return time.perf_counter() - start


def least_seconds(calls: Sequence[Callable[[], Any]], device: torch.device) -> list[float]:
    """Time calls in turn, so that a change in the machine's speed affects all; return the minimum of each.

    The first round warms up, or compiles, and does not count. The minimum, as other work on the machine only adds time.
    """
    rounds = [[seconds(call, device) for call in calls] for _ in range(1 + ROUNDS)]
    return [min(times) for times in zip(*rounds[1:], strict=True)]


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def unchanged(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Restore a module's buffers, its gradients and the generators afterwards."""
    buffers, generators = SavedBuffers(module), random_state(device)
    buffers.save()
    try:
        yield
    finally:
        restore_random(*generators, device)
        buffers.restore()
        for parameter in module.parameters():
            parameter.grad = None
