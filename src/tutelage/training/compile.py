"""How a fit is computed: compiled or not, which gradients as products. Chosen by measurement, and then kept.

A plan changes results by rounding alone. It is chosen once, in a fit's first step, among what the settings leave open;
compiling is tried only where the fit is long enough to repay it. Records and checkpoints hold the plan, and a resumed
fit keeps it.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from types import FunctionType
from typing import Any, cast

import torch
from torch import Tensor, nn

from tutelage.kernels.conv_weight_grad import Products, Shape, library_gradient, weight_gradient
from tutelage.modules import Distiller, FrozenTeacher
from tutelage.settings.fit import FitSettings, Switch
from tutelage.training.buffers import SavedBuffers
from tutelage.training.distributed import place
from tutelage.training.graphs import NotCapturableError
from tutelage.training.precision import mixed_precision
from tutelage.training.rng import random_state, restore_random
from tutelage.types import Batch, Loss, Opens, Outputs, Teacher

SHARE = 0.05
"""Share of a fit's estimated time that a trial compilation may cost at most."""
COSTS = {"teacher": 20.0, "products": 2.0, "student": 60.0, "graph": 2.0, "compiled losses": 20.0, "fused losses": 2.0}
"""Assumed seconds of a trial: compiling took 3 to 60 for networks of 8 to 60 layers on two cores."""
GAIN = 1.05
"""How many times faster a plan must be to replace the eager one."""
PRODUCT_GAIN = 1.2
"""How many times faster a weight gradient must be as a product."""
FEW = 200
"""Steps below which nothing is measured: that alone takes some."""
ROUNDS = 5
"""How often each call is timed."""
MEASURES_LOSSES = frozenset({"cuda"})
"""Types of devices on which the form of the losses is chosen by measurement; elsewhere they are plain if not asked."""
NOT_CAPTURED = "not captured"
"""How the reason of a step begins that was to be captured and could not be."""


@dataclass(frozen=True, kw_only=True)
class ComputePlan:
    """How a fit is computed."""

    teacher_compiled: bool = False  # the teacher's forward pass is compiled, its weights taken as constants
    student_compiled: bool = False  # the student's forward and backward pass are compiled
    graph: bool = False  # a step is captured, and replayed
    loss_form: str = "plain"  # how the losses are computed: `settings.fit.LossForm`
    products: tuple[Shape, ...] = ()  # convolutions whose weight gradient is one product
    # of a micro-batch that compiled forms are for. Others, such as an epoch's last, run eagerly: each size would be
    # compiled anew.
    samples: int = 0
    # what was measured, or why nothing was, by form; "why" on disk
    reasons: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON holds it."""
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
        """Return this plan of a student with another's of the teacher."""
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
    """A teacher that is computed by a plan, in the fit's precision: `types.Teacher`.

    Args:
        teacher: moved to the device; only a frozen network can be compiled.
        settings: its precision and layout, and what may be chosen.
        device: of the batches.
        plan: one that was chosen before.
    """

    def __init__(
        self, teacher: Teacher, settings: FitSettings, device: torch.device, plan: ComputePlan | None = None
    ) -> None:
        if isinstance(teacher, nn.Module):
            place(teacher, device, channels_last=settings.channels_last)
        self._teacher, self._settings, self._device = teacher, settings, device
        # Asked once: to hold an object against a protocol takes 10 us, a good part of a replayed step.
        self._open = teacher.open if isinstance(teacher, Opens) else None
        self._compiled = (
            # Its weights become constants, batch norms are folded into convolutions whose outputs nothing else reads.
            _Compiled("teacher", teacher, {"freezing": True}, "compile_teacher=false")
            if isinstance(teacher, FrozenTeacher)
            else None
        )
        self.plan = plan

    def __call__(self, batch: Batch) -> Outputs:
        """Return the teacher's outputs."""
        with mixed_precision(self._device, self._settings.precision):
            plan = self.plan
            if self._compiled and plan and plan.teacher_compiled and len(batch.index) == plan.samples:
                with torch.no_grad():  # without it the compiler does not take weights for constants
                    return cast(Outputs, self._compiled(batch))
            return self._teacher(batch)

    @property
    def compiles(self) -> bool:
        """Whether it can be compiled."""
        return self._compiled is not None

    def prepare(self, batch: Batch) -> None:
        """Do between steps what outputs of a batch need of the host: a cache opens the outputs of its view."""
        if self._open is not None:
            self._open(batch.view)

    def use(self, plan: ComputePlan) -> None:
        """Compute by this plan from now on; what was compiled once is not compiled again."""
        self.plan = plan

    def _on_copy(self, batch: Batch) -> None:
        """Compute outputs of a batch that a teacher may write into."""
        self(batch._replace(inputs=batch.inputs.clone()))

    def choose_plan(self, piece: Batch, *, steps: int, processes: int) -> ComputePlan:
        """Choose the plan once, on a micro-batch of a fit of so many steps."""
        wanted = self._settings.compile_teacher
        if self.plan is None:
            reason = reason_unmeasured(steps, processes, [wanted])
            if self._compiled is None:
                self.plan = ComputePlan()
            elif reason is not None:
                self.plan = ComputePlan(reasons={"teacher": reason})
            else:
                trials = Trials(partial(self._on_copy, piece), self.use, steps, len(piece.index), self._device)
                if trials.is_open("teacher", wanted):
                    trials.attempt("teacher", wanted, replace(trials.plan, teacher_compiled=True))
                self.plan = trials.chosen()
        return self.plan


class PlannedStudent:
    """The forms that a fit's student can be called in: eager, and once chosen, faster.

    Args:
        distiller: calls the student and its objective; compiled, they take part in its gradients as before.
    """

    def __init__(self, distiller: Distiller) -> None:
        # Dropout draws the numbers that it would draw uncompiled.
        exact = {"fallback_random": True}
        self._objective = distiller.objective
        self._compiled = _Compiled("student", distiller.student, exact, "compile_student=false")
        self._compiled_objective = _Compiled("objective", distiller.objective, exact, "loss_form=plain")
        self.use(ComputePlan())

    def use(self, plan: ComputePlan) -> None:
        """Compute by this plan from now on; what was compiled once is not compiled again."""
        self._plan = plan
        self._products = Products(plan.products)

    def call(self, samples: int) -> Callable[[Tensor], Any] | None:
        """Return what to call instead of the student for so many samples; none for itself."""
        return self._compiled if self._plan.student_compiled and samples == self._plan.samples else None

    def call_objective(self, samples: int) -> Callable[..., Loss] | None:
        """Return what to call instead of the objective for so many samples; none for itself."""
        compiled = self._plan.loss_form == "compiled" and samples == self._plan.samples
        return self._compiled_objective if compiled else None

    @property
    def fused(self) -> bool:
        """Whether the objective computes two losses at once."""
        return self._plan.loss_form == "fused"

    def choose_plan(
        self, step: Callable[[], Any], settings: FitSettings, *, steps: int, samples: int, device: torch.device
    ) -> ComputePlan:
        """Try what the settings leave open in ``steps`` of micro-batches of ``samples``.

        ``step`` takes the student's part of a step, gradients included, and changes nothing that lasts.
        """
        trials = Trials(step, self.use, steps, samples, device)
        trials.attempt_products(settings.gradient_products)
        self.attempt_losses(trials, settings.loss_form)
        if trials.is_open("student", settings.compile_student):
            trials.attempt("student", settings.compile_student, replace(trials.plan, student_compiled=True))
        return trials.chosen()

    def attempt_losses(self, trials: Trials, wanted: str) -> None:
        """Try the forms that the losses can be computed in, or take the one that is asked for."""
        if wanted == "plain" or (wanted == "auto" and trials.device.type not in MEASURES_LOSSES):
            return
        for form in ("compiled", "fused"):
            switch: Switch = "auto" if wanted == "auto" else form == wanted
            reason = f"{form} losses"
            if form == "fused" and switch and self._objective.pair is None:
                trials.reasons[reason] = "no cross-entropy with a loss of logits beside it"
            elif trials.is_open(reason, switch):
                trials.attempt(reason, switch, replace(trials.plan, loss_form=form), after=f"with {reason}")

    def gradients(self, samples: int) -> AbstractContextManager[Any]:
        """Enter this while a graph of so many samples is made that gradients will flow through.

        What is compiled has the library's gradients: the compiler would trace into the products, and gets them wrong.
        """
        compiled = self.call(samples) or self.call_objective(samples)
        return self._products if self._products.shapes and compiled is None else nullcontext()


class _Compiled:
    """A module's call, compiled for one size of batch; the module itself and its names stay as they are.

    Where compiling fails, as it does without a C++ compiler, the call is eager from then on. A warning says so, and
    which setting does so ``beforehand``.
    """

    def __init__(self, role: str, module: nn.Module, options: dict[str, Any], beforehand: str) -> None:
        self._role, self._module, self._options, self._beforehand = role, module, options, beforehand
        self._call: Callable[..., Any] | None = None

    def __call__(self, *inputs: Any) -> Any:
        return self._call(*inputs) if self._call is not None else self._first(*inputs)

    def _first(self, *inputs: Any) -> Any:
        """Compile and call; only now, as the compiler alone takes seconds to import."""
        module = self._module

        def call(*inputs: Any) -> Any:
            return module(*inputs)

        # Compiled forms are cached, and limited in number, per code object: each module gets its own copy.
        function = FunctionType(call.__code__.replace(), call.__globals__, closure=call.__closure__)
        try:
            # What a compiler warns of is its own, such as deprecations: as errors they would end the compiling.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                compiled = torch.compile(function, dynamic=False)
                from torch._inductor import config

                # As options of torch.compile they would come too late: the tracer reads them as well.
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
    """Return why nothing is to be measured, if so."""
    if processes > 1:  # Each would measure, and choose, for itself.
        return "several processes"
    return "a short fit" if steps < FEW and True not in wanted else None


class Trials:
    """Forms of one computation, tried in turn, each against the best so far.

    Args:
        run: computes it once, and changes nothing that lasts.
        use: changes to a plan.
        steps: how often it is ahead.
        samples: of a micro-batch.
        device: that it runs on.
    """

    def __init__(
        self,
        run: Callable[[], Any],
        use: Callable[[ComputePlan], None],
        steps: int,
        samples: int,
        device: torch.device,
    ) -> None:
        self.run, self.use, self.steps, self.device = run, use, steps, device
        self.plan, self.reasons = ComputePlan(samples=samples), dict[str, str]()
        self._step = "eager"

    @cached_property
    def ahead(self) -> float:
        """Estimated seconds of all that is ahead, measured where it is first asked for."""
        self.run()  # warms up
        return self.steps * seconds(self.run, self.device)

    def is_open(self, form: str, setting: Switch) -> bool:
        """Whether a form is to be tried; else note why not."""
        if setting is False:
            self.reasons[form] = "switched off"
        elif setting == "auto" and COSTS[form] > SHARE * self.ahead:
            self.reasons[form] = f"not tried: {self.ahead:.0f} s of it are ahead"
        return form not in self.reasons

    def attempt(self, form: str, setting: Switch, candidate: ComputePlan, *, after: str = "compiled") -> None:
        """Time a plan against the best so far, and keep the faster one, or the one that is asked for."""

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
        """Try the weight gradients of convolutions as products, of those shapes for which that is faster."""
        if not self.is_open("products", setting):
            return
        with Products() as probe:
            self.run()
        if shapes := faster_products(probe.seen, self.device):
            self.attempt("products", setting, replace(self.plan, products=shapes), after="with products")
        else:
            self.reasons["products"] = "none is faster"

    def chosen(self) -> ComputePlan:
        """Return the best, with what was measured."""
        return replace(self.plan, reasons=self.reasons)


def faster_products(seen: Mapping[Shape, tuple[int, torch.dtype]], device: torch.device) -> tuple[Shape, ...]:
    """Measure which convolutions' weight gradients are faster as a product, given the batch and dtype of each."""
    return tuple(
        shape for shape, (batch, dtype) in seen.items() if _speedup(shape, batch, dtype, device) >= PRODUCT_GAIN
    )


def _speedup(shape: Shape, batch: int, dtype: torch.dtype, device: torch.device) -> float:
    """Return how many times faster a convolution's weight gradient is as a product, at a batch and dtype."""
    generator = torch.Generator().manual_seed(0)  # the run's generators stay where they are

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
    """Time calls in turn, so that a change of the machine's speed meets all; return the least of each.

    The first round warms up, or compiles, and does not count. The least: whatever else the machine does only adds.
    """
    rounds = [[seconds(call, device) for call in calls] for _ in range(1 + ROUNDS)]
    return [min(times) for times in zip(*rounds[1:], strict=True)]


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def unchanged(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Put a module's buffers, its gradients and the generators back where they were."""
    buffers, generators = SavedBuffers(module), random_state(device)
    buffers.save()
    try:
        yield
    finally:
        restore_random(*generators, device)
        buffers.restore()
        for parameter in module.parameters():
            parameter.grad = None
