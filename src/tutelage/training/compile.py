"""How a fit is computed: compiled or not, which gradients as products. Chosen by measurement, and then kept.

No choice changes what is computed by more than its rounding. A choice is made once, in a fit's first step, and only
among what the settings leave open; compiling is tried only where the fit is long enough to repay it. It goes into the
fit's records and checkpoints, and a resumed fit keeps it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from types import FunctionType
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from tutelage.kernels.conv_weight_grad import Products, Shape, faster
from tutelage.modules import FrozenTeacher
from tutelage.settings.fit import FitSettings
from tutelage.training import clock
from tutelage.training.rng_state import RngState
from tutelage.types import Batch, Outputs, Teacher

SHARE = 0.05
"""Of a fit's estimated time, what trying to compile may cost at most."""
COSTS = {"teacher": 20.0, "products": 2.0, "student": 60.0}
"""Seconds that a trial is assumed to take: compiling took 3 to 60 for networks of 8 to 60 layers on two cores."""
GAIN = 1.05
"""How many times faster a form must be to be chosen over the plain one."""
FEW = 200
"""Steps below which nothing is measured: that alone takes some."""

Setting = Literal["auto"] | bool


class ComputePlan(NamedTuple):
    """How a fit is computed.

    Attributes:
        teacher_compiled: the teacher's forward pass is compiled, its weights taken as constants.
        student_compiled: the student's forward and backward pass are compiled.
        products: convolutions whose weight gradient is one product.
        samples: of a micro-batch that compiled forms are for. Others, such as an epoch's last, are computed plainly:
            each size would be compiled anew.
        why: what was measured, or why nothing was, by form.
    """

    teacher_compiled: bool = False
    student_compiled: bool = False
    products: tuple[Shape, ...] = ()
    samples: int = 0
    why: Mapping[str, str] = {}

    def to_json(self) -> dict[str, Any]:
        """Return the choice as JSON holds it."""
        return {
            "teacher_compiled": self.teacher_compiled,
            "student_compiled": self.student_compiled,
            "products": [list(shape) for shape in self.products],
            "samples": self.samples,
            "why": dict(self.why),
        }

    def after(self, teacher: ComputePlan) -> ComputePlan:
        """Return this choice of a student with another's of the teacher."""
        return self._replace(
            teacher_compiled=teacher.teacher_compiled,
            samples=self.samples or teacher.samples,
            why={**{who: why for who, why in teacher.why.items() if who == "teacher"}, **self.why},
        )

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ComputePlan:
        """Read a choice back."""
        return cls(**{**value, "products": tuple(Shape(*shape) for shape in value["products"])})


def unmeasured(steps: int, processes: int, wanted: Collection[Setting]) -> str | None:
    """Return why nothing is to be measured, if so."""
    if processes > 1:  # Each would measure, and choose, for itself.
        return "several processes"
    return "a short fit" if steps < FEW and True not in wanted else None


class CompiledForms:
    """The forms that a fit's networks can be called in: plain, and once chosen, faster.

    Args:
        student: called by the lesson; compiled, it takes part in its gradients as before. None where it is not called.
        teacher: only a frozen network can be compiled. None where it is not asked.
    """

    def __init__(self, student: nn.Module | None, teacher: Teacher | None) -> None:
        self._teacher = teacher
        # Dropout draws the numbers that it would draw uncompiled.
        self._student_compiled = _Compiled("student", student, {"fallback_random": True}) if student else None
        self._teacher_compiled = (
            # Its weights become constants, batch norms are folded into convolutions whose outputs nothing else reads.
            _Compiled("teacher", teacher, {"freezing": True}) if isinstance(teacher, FrozenTeacher) else None
        )
        self.take(ComputePlan())

    def take(self, speed: ComputePlan) -> None:
        """Compute as was chosen from now on; what was compiled once is not compiled again."""
        self._speed = speed
        self._products = Products(speed.products)

    @property
    def network(self) -> bool:
        """Whether the teacher is a network, which can be compiled."""
        return self._teacher_compiled is not None

    def ask(self, batch: Batch) -> Outputs | None:
        """Ask the teacher; none where there is none."""
        if self._teacher is None:
            return None
        if self._teacher_compiled and self._speed.teacher_compiled and len(batch.index) == self._speed.samples:
            with torch.no_grad():  # without it the compiler does not take weights for constants
                return cast(Outputs, self._teacher_compiled(batch))
        return self._teacher(batch)

    def student(self, samples: int) -> Callable[[Tensor], Any] | None:
        """Return what to call instead of the student for so many samples; none for itself."""
        return self._student_compiled if self._speed.student_compiled and samples == self._speed.samples else None

    def gradients(self, samples: int) -> AbstractContextManager[Any]:
        """Enter this while a graph of so many samples is made that gradients will flow through.

        What is compiled has the library's gradients: the compiler would trace into the products, and gets them wrong.
        """
        return self._products if self._products.shapes and self.student(samples) is None else nullcontext()


class _Compiled:
    """A module's call, compiled for one size of batch; the module itself and its names stay as they are.

    Where compiling fails, as it does without a C++ compiler, the call is plain from then on, and a warning says so.
    """

    def __init__(self, who: str, module: nn.Module, options: dict[str, Any]) -> None:
        self._who, self._module, self._options = who, module, options
        self._call: Callable[..., Any] | None = None

    def __call__(self, *inputs: Any) -> Any:
        return self._call(*inputs) if self._call is not None else self._first(*inputs)

    def _first(self, *inputs: Any) -> Any:
        """Compile, and answer; only now, as the compiler alone takes seconds to import."""
        module = self._module

        def call(*inputs: Any) -> Any:
            return module(*inputs)

        # What is compiled is kept with a function's code, and only so many forms of it: each module has its own.
        own = FunctionType(call.__code__.replace(), call.__globals__, closure=call.__closure__)
        try:
            compiled = torch.compile(own, dynamic=False)
            from torch._inductor import config

            # As options of torch.compile they would come too late: the tracer reads them as well.
            with config.patch(self._options):
                answer = compiled(*inputs)
        except Exception as error:  # noqa: BLE001  whatever a compiler raises, the plain form works or tells why not
            self._call = module
            warnings.warn(
                f"{self._who}: expected to compile it, got {type(error).__name__}; it is computed uncompiled "
                f"(compile_{self._who}=false says so beforehand)",
                stacklevel=2,
            )
            return module(*inputs)
        self._call = compiled
        return answer


def choose_teacher_plan(
    wanted: FitSettings,
    forms: CompiledForms,
    ask: Callable[[], Any],
    *,
    steps: int,
    processes: int,
    samples: int,
    device: torch.device,
) -> ComputePlan:
    """Choose how a teacher is asked: as `choose`, and plainly where nothing is to be measured."""
    if not forms.network:
        return ComputePlan()
    if why := unmeasured(steps, processes, [wanted.compile_teacher]):
        return ComputePlan(why={"teacher": why})
    return choose_plan(wanted, forms, ask=ask, steps=steps, samples=samples, device=device)


def choose_plan(
    wanted: FitSettings,
    forms: CompiledForms,
    *,
    step: Callable[[], Any] | None = None,
    ask: Callable[[], Any] | None = None,
    steps: int,
    samples: int,
    device: torch.device,
) -> ComputePlan:
    """Try what the settings leave open, and choose.

    Args:
        wanted: the settings.
        forms: of the fit; left in the form that was chosen.
        step: takes the student's part of a step, gradients included, and changes nothing that lasts; none to choose
            nothing of the student.
        ask: asks the teacher, a network, about a micro-batch; none to choose nothing of the teacher.
        steps: that are to come.
        samples: of a micro-batch.
        device: where.
    """
    why: dict[str, str] = {}
    speed = ComputePlan(samples=samples)
    runs = [run for run in (step, ask) if run is not None]
    for run in runs:  # warms up
        run()
    ahead = steps * sum(clock.seconds(run, device) for run in runs)

    def opens(what: str, setting: Setting) -> bool:
        """Whether something is to be tried; else say why not."""
        if setting is False:
            why[what] = "switched off"
        elif setting == "auto" and COSTS[what] > SHARE * ahead:
            why[what] = f"not tried: {ahead:.0f} s of it are ahead"
        return what not in why

    def tried(what: str, setting: Setting, candidate: ComputePlan, run: Callable[[], Any]) -> None:
        nonlocal speed

        def taken(form: ComputePlan) -> None:
            forms.take(form)
            run()

        plain, quick = clock.least([partial(taken, speed), partial(taken, candidate)], device)
        why[what] = f"{plain * 1e3:.1f} ms plain, {quick * 1e3:.1f} ms so"
        if setting is True or plain >= GAIN * quick:
            speed = candidate
        forms.take(speed)

    if ask is not None and opens("teacher", wanted.compile_teacher):
        tried("teacher", wanted.compile_teacher, speed._replace(teacher_compiled=True), ask)
    if step is not None:
        if opens("products", wanted.gradient_products):
            with Products() as look:
                step()
            if shapes := tuple(faster(look.seen, device)):
                tried("products", wanted.gradient_products, speed._replace(products=shapes), step)
            else:
                why["products"] = "none is faster"
        if opens("student", wanted.compile_student):
            tried("student", wanted.compile_student, speed._replace(student_compiled=True), step)
    return speed._replace(why=why)


@contextmanager
def unchanged(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Put a module's buffers, its gradients and the generators back where they were."""
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    generators = RngState(device)
    with generators:  # remembers where they are
        pass
    try:
        yield
    finally:
        with generators, torch.no_grad():
            for name, buffer in module.named_buffers():
                buffer.copy_(buffers[name])
        for parameter in module.parameters():
            parameter.grad = None
