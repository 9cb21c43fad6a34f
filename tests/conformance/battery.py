"""Put every preset through every test that a method can take: one row a preset.

    python tests/conformance/battery.py              a table as Markdown: method by check
    python tests/conformance/battery.py wttm itrd    of these alone

A row says how a preset is called, which networks it takes and which laws hold; `CHECKS` says what is tried. To cover a
new preset, add one row to `ROWS`. Cells are `pass`, `refused` (a clear error, as the row says), `n/a` (the method has
no such input, or the law does not hold) or `FAIL`.

The networks are tiny, and their places are named as the cards of real ones name them. Laws are tried on drawn outputs,
in float64. Exit status: 0 nothing fails, 1 something does, 2 the command line is wrong.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tutelage import Distiller, FrozenTeacher, network_context, objectives, taps
from tutelage.models import Card, Classifier
from tutelage.objectives import PRESETS, BindContext, BoundObjective, Objective
from tutelage.types import UNLABELLED, Batch, Outputs, StatefulTerm

SAMPLES, CLASSES, BATCH, SIDE = 12, 4, 6, 8


@dataclass(frozen=True)
class Row:
    """Test parameters of one preset.

    Attributes:
        preset: its name.
        arguments: of the call.
        laws: those that hold, of `LAWS`: ``zero`` (each term that reads the teacher is 0 where both networks say the
            same), ``shift`` (of a sample's logits), ``samples`` and ``classes`` (their order does not matter).
        networks: ``conv`` or ``tokens``.
        alone: what a batch of one does: ``value``, or ``refused``.
        two: what two classes do, likewise.
        gradcheck: the value has one gradient, and autograd's is it: not where a weight is detached by definition.
        same: the teacher is built as the student is.
    """

    preset: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    laws: str = "samples"
    networks: str = "conv"
    alone: str = "value"
    two: str = "value"
    gradcheck: bool = True
    same: bool = False

    @property
    def known(self) -> bool:
        """Whether there is such a preset."""
        return self.preset in PRESETS

    def objective(self) -> Objective:
        """Call the preset."""
        return PRESETS[self.preset].build(**self.arguments)


LOGITS = "zero shift samples classes"
"""The laws of a divergence between two distributions."""

PARTS = ["layer*.grow", "layer*.grow", "layer*"]
RELATED = {"student": PARTS, "teacher": PARTS}

ROWS = [
    Row("cross_entropy", {"label_smoothing": 0.1}, "shift samples classes"),
    Row("confidence_penalty", {"weight": 0.2}, "shift samples classes"),
    Row("renyi_penalty", {"weight": 1.5, "order": 0.25}, "shift samples classes"),
    Row("kd", {}, LOGITS),
    Row("ttm", {"gamma": 0.25, "beta": 2.0}, "shift samples classes"),
    Row("wttm", {"gamma": 0.25}, "shift samples classes"),
    Row("weighted_kd", {"weight": 0.9}, LOGITS),
    Row("transformed_matching", {"weight_by": "entropy", "normalise": "batch"}, "shift samples classes"),
    Row("matching", {"divergence": "jensen_shannon", "gamma": 0.5, "weight_by": "entropy"}, "shift samples classes"),
    Row("abkd", {}, LOGITS),
    Row("abttm", {}, "shift samples classes"),
    Row("abdkd", {}, LOGITS),
    # The weights of their divergences are detached.
    Row("akl", {}, LOGITS, gradcheck=False),
    Row("todi", {}, LOGITS, gradcheck=False),
    # A plan's entropy has a price at equality, and the cost is between the teacher's classes, in their order.
    Row("wkd_l", {}, "shift samples"),
    # Its negatives are drawn by the order of the samples.
    Row("crd", {"negatives": 3, "dimension": 5}, ""),
    Row("itrd", {}, alone="refused"),
    # Its hidden tokens are drawn by the order of the samples.
    Row("vitkd", {}, "", networks="tokens"),
    Row("dkd", {}, LOGITS),
    Row("nkd", {}, "shift samples classes"),
    # Not 0 where the label is not the likeliest class.
    Row("rld", {}, "shift samples classes"),
    Row("ldrld", {"k": 3}, LOGITS),
    # Its taps are logits too, which the laws of logits leave alone.
    Row("sdd", {"base": "dkd"}, "zero samples"),
    Row("top_k", {"top": 2}, LOGITS),
    # The weight of a sample is detached.
    Row("wsld", {}, "shift samples classes", gradcheck=False),
    # A 1e-8 in its correlations shows where all samples give a class nearly the same probability.
    Row("dist", {}, "shift samples classes"),
    Row("mlkd", {}, LOGITS),
    Row("ctkd", {}, LOGITS),
    # Its noise is drawn by the order of the samples and classes, and the networks do not agree with it.
    Row("tekap", {}, "shift"),
    Row("teacher_free_kd", {}, "shift samples classes"),
    Row("rkd", {}, "zero samples", alone="refused"),
    Row("pkt", {}, "zero samples"),
    Row("similarity", {}, "zero samples"),
    # It compares neighbours in a batch.
    Row("correlation", {}, "", alone="refused"),
    Row("ickd"),
    Row("srd", {}, "samples", alone="refused"),
    Row("nst", {}, "zero samples"),
    Row("fitnet"),
    Row("attention_transfer", {}, "zero samples"),
    Row("vid"),
    Row("factor_transfer"),
    Row("activation_boundary"),
    Row("fsp", {}, "zero samples", same=True),
    Row("kd_svd", {}, "zero samples", same=True),
    Row("srrl"),
    # Its deepest level is one pixel, of which a batch norm needs two.
    Row("reviewkd", alone="refused"),
    Row("ofd"),
    Row("kd_plus_plus", {}, ""),
    # Its hidden channels are drawn by the order of the samples.
    Row("mgd", {}, ""),
    Row("cosine", {}, "zero samples classes"),
    Row("embedding_mse", {}, "zero samples classes"),
    Row("embedding_distance", {}, "zero samples classes"),
    Row("uld", {}, LOGITS),
    Row("gold", {}, LOGITS),
    # Its target is made of the student's logits, detached.
    Row("taid", {}, LOGITS, gradcheck=False),
    Row("distillm2", {"anchor": 0.05, "share": 0.3}, LOGITS, gradcheck=False),
    Row("in_batch_similarity", {"temperature": 0.5}, "samples classes", alone="refused"),
    Row("vkd"),
    Row("cwd", {"student_tap": "card:stage.-1", "teacher_tap": "card:stage.-1", "temperature": 4.0}, "zero samples"),
    Row("wkd_f"),
    Row("hidden_states", {"student": "layer*", "teacher": "layer*"}, networks="tokens"),
    Row("attention_relations", {"layers": "uniform", "heads": 2, **RELATED}, "zero samples", networks="tokens"),
    # Neighbours in a batch are a sample's two views.
    Row("crld", {"tau_w": 0.4, "tau_s": 0.3}, "shift classes", alone="refused"),
    Row("two_view_mlkd", {}, "zero shift classes", alone="refused"),
    Row("hard_labels", {}, "shift samples classes"),
    # Both tokens have one place here.
    Row("deit", {"class_tap": "fc", "distillation_tap": "fc"}),
]


# Networks


class _Stage(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(outside)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.norm(self.conv(x)))


class _Conv(nn.Module):
    """Four stages, of 8, 8, 4 and 2 pixels a side."""

    def __init__(self, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        for i, (inside, outside, stride) in enumerate(zip((3, *widths), widths, (1, 1, 2, 2), strict=False)):
            self.add_module(f"layer{i}", _Stage(inside, outside, stride))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        for i in range(4):
            x = self.get_submodule(f"layer{i}")(x)
        return self.fc(self.pool(x).flatten(1))


class _Block(nn.Module):
    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.mix, self.grow = nn.Linear(tokens, tokens), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.grow((x + self.mix(x.transpose(1, 2)).transpose(1, 2)).tanh())


class _Tokens(nn.Module):
    """A class token and four of the image's."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        for i in range(4):
            self.add_module(f"layer{i}", _Block(width, 5))
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.cls.expand(len(x), -1, -1), self.patch(x).flatten(2).transpose(1, 2)], 1)
        for i in range(4):
            x = self.get_submodule(f"layer{i}")(x)
        return self.fc(x[:, 0])


def network(kind: str, who: str, classes: int) -> Classifier:
    """Build a tiny network with a card that names its places."""
    torch.manual_seed(who == "teacher")
    if kind == "tokens":
        bare: nn.Module = _Tokens(6 if who == "student" else 8, classes)
    else:
        bare = _Conv((4, 4, 6, 8) if who == "student" else (4, 6, 8, 10), classes)
    stages = tuple(f"layer{i}" for i in range(4))
    before = stages if kind == "tokens" else tuple(f"{stage}.relu:input" for stage in stages)
    card = Card(
        name=f"tiny {kind} {who}",
        classes=classes,
        image_size=(SIDE, SIDE),
        stages=(*stages, "fc:input"),
        stage_inputs=(*before, "fc:input"),
        embedding="fc:input",
        head="fc",
    )
    return Classifier(bare, card)


@dataclass(frozen=True)
class Case:
    """An objective, what it is bound to, and drawn outputs."""

    objective: Objective
    student: Classifier
    teacher: Classifier
    context: BindContext
    classes: int

    def bind(self) -> BoundObjective:
        """Bind the objective, the same way every time."""
        torch.manual_seed(3)
        return self.objective.bind(self.context)

    def steady(self) -> BoundObjective:
        """Bind in float64 what gives one value for one input: its constants are found, and nothing moves."""
        bound = self.bind().double()
        _loss(bound, *self.outputs(11, dtype=torch.float64), self.batch())
        for term in bound.terms.values():
            if isinstance(term, StatefulTerm):
                term.commit(torch.tensor(True))
        return bound.eval()

    def batch(self, n: int = BATCH, seed: int = 0) -> Batch:
        """Draw samples; every class is among the first of them."""
        inputs = torch.rand(n, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
        return Batch(torch.arange(n), inputs, torch.arange(n) % self.classes)

    def outputs(
        self, seed: int, n: int = BATCH, *, scale: float = 1.0, dtype: torch.dtype = torch.float32
    ) -> tuple[Outputs, Outputs]:
        """Draw what a student and a teacher say."""
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return (scale * torch.randn(n, *shape, generator=generator, dtype=torch.float64)).to(dtype)

        return tuple(  # type: ignore[return-value]
            Outputs(draw(self.classes), {tap: draw(*shape) for tap, shape in shapes.items()})
            for shapes in (self.context.student_shapes, self.context.teacher_shapes)
        )


@functools.cache
def case_of(preset: str, *, classes: int = CLASSES, same: bool = False) -> Case:
    """Build the networks of a row and look at them once."""
    row = next(row for row in ROWS if row.preset == preset)
    objective = row.objective()
    student = network(row.networks, "student", classes)
    teacher = network(row.networks, "student" if same or row.same else "teacher", classes)
    generator = torch.Generator().manual_seed(2)
    inputs = torch.rand(2, 3, SIDE, SIDE, generator=generator)
    shapes = taps.feature_shapes(teacher, objective.needs.class_means, inputs)
    context = network_context(
        objective,
        student,
        teacher,
        inputs,
        samples=SAMPLES,
        classes=classes,
        labels=torch.arange(SAMPLES) % classes,
        teacher_logits=torch.randn(SAMPLES, classes, generator=generator),
        class_means={name: torch.randn(classes, *shape, generator=generator) for name, shape in shapes.items()},
    )
    return Case(objective, student, teacher, context, classes)


def _loss(bound: nn.Module, student: Outputs, teacher: Outputs, batch: Batch) -> Any:
    torch.manual_seed(5)
    return bound(student, teacher, batch)


def _leaves(outputs: Outputs) -> tuple[Outputs, list[Tensor]]:
    """Cut outputs from what made them; their tensors ask for a gradient."""
    logits = outputs.logits.detach().clone().requires_grad_()
    taps = {name: tap.detach().clone().requires_grad_() for name, tap in outputs.taps.items()}
    return Outputs(logits, taps), [logits, *taps.values()]


def _map(outputs: Outputs, change: Callable[[Tensor], Tensor]) -> Outputs:
    return Outputs(change(outputs.logits), {name: change(tap) for name, tap in outputs.taps.items()})


def _value_and_gradients(
    bound: nn.Module, student: Outputs, teacher: Outputs, batch: Batch
) -> tuple[Any, list[Tensor]]:
    student, leaves = _leaves(student)
    loss = _loss(bound, student, teacher, batch)
    gradients = torch.autograd.grad(loss.total, leaves, allow_unused=True)
    return loss, [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, gradients, strict=True)]


def _finite(loss: Any, gradients: Sequence[Tensor]) -> None:
    assert torch.isfinite(loss.total), f"expected a finite value, got {loss.total.item()}"
    for gradient in gradients:
        assert torch.isfinite(gradient).all(), "expected a finite gradient"


def _refused(call: Callable[[], Any], *kinds: type[Exception]) -> str:
    """Expect an error that says what was expected and what came."""
    try:
        call()
    except kinds as error:
        text = str(error).lower()
        assert "expected" in text, f"expected an error that says what was expected, got {text!r}"
        assert "got" in text, f"expected an error that says what came, got {text!r}"
        return "refused"
    raise AssertionError(f"expected it to be refused with {kinds[0].__name__}, got a value")


# Checks


def trains(row: Row) -> str:
    """Three steps: the loss is finite, the student gets a gradient and the teacher gets none."""
    case = case_of(row.preset)
    torch.manual_seed(3)
    student = network(row.networks, "student", CLASSES)
    distiller, batch = Distiller(student, case.objective, case.context), case.batch()
    frozen = FrozenTeacher(case.teacher, case.objective.needs.teacher_taps)
    optimizer = torch.optim.SGD(distiller.parameters(), lr=1e-3)
    for _ in range(3):
        teacher, leaves = _leaves(frozen(batch))
        loss = distiller(batch, teacher).loss
        loss.total.backward()
        _finite(loss, [p.grad for p in distiller.parameters() if p.grad is not None])
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters()), (
            "expected a gradient of the student, got none"
        )
        for leaf in leaves:
            assert leaf.grad is None or not leaf.grad.any(), "expected no gradient of the teacher, got one"
        optimizer.step()
        optimizer.zero_grad()
    assert all(p.grad is None for p in frozen.parameters())
    return "pass"


def _narrow(row: Row, dtype: torch.dtype) -> str:
    """Outputs in a narrow dtype: the value is that of the same numbers in float32, which is where it is computed."""
    case = case_of(row.preset)
    student, teacher = (_map(o, lambda x: x.to(dtype)) for o in case.outputs(0))
    loss, gradients = _value_and_gradients(case.bind(), student, teacher, case.batch())
    _finite(loss, gradients)
    assert loss.total.dtype == torch.float32
    wide, wider = _value_and_gradients(
        case.bind(), _map(student, Tensor.float), _map(teacher, Tensor.float), case.batch()
    )
    torch.testing.assert_close(loss.total, wide.total, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(gradients, wider, strict=True):
        torch.testing.assert_close(ours, theirs.to(dtype), rtol=2e-2, atol=1e-6)
    return "pass"


def bfloat16(row: Row) -> str:
    """Outputs in bfloat16, and a whole step under autocast."""
    case = case_of(row.preset)
    distiller = Distiller(network(row.networks, "student", CLASSES), case.objective, case.context)
    frozen = FrozenTeacher(case.teacher, case.objective.needs.teacher_taps)
    with torch.autocast("cpu", torch.bfloat16):
        loss = distiller(case.batch(), frozen(case.batch())).loss
    loss.total.backward()
    _finite(loss, [p.grad for p in distiller.parameters() if p.grad is not None])
    return _narrow(row, torch.bfloat16)


def float16(row: Row) -> str:
    """Outputs in float16."""
    return _narrow(row, torch.float16)


def large(row: Row) -> str:
    """Outputs of a scale of 300: value and gradient are finite."""
    case = case_of(row.preset)
    _finite(*_value_and_gradients(case.bind(), *case.outputs(0, scale=300.0), case.batch()))
    return "pass"


def _compiled(row: Row, backend: str, rtol: float) -> str:
    case = case_of(row.preset)
    student, teacher = case.outputs(0)
    eager, gradients = _value_and_gradients(case.bind(), student, teacher, case.batch())
    torch.compiler.reset()
    compiled = torch.compile(case.bind(), backend=backend)
    with warnings.catch_warnings():
        # Tracing goes on behind a graph break with tensors whose .grad it looks at, and warns of itself.
        warnings.simplefilter("ignore")
        loss, others = _value_and_gradients(compiled, student, teacher, case.batch())
    torch.testing.assert_close(loss.total, eager.total, rtol=rtol, atol=1e-6)
    for ours, theirs in zip(others, gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=1e-6)
    return "pass"


def compiled(row: Row) -> str:
    """``torch.compile`` by the backend aot_eager: value and gradient are those of eager mode."""
    return _compiled(row, "aot_eager", 1e-5)


def inductor(row: Row) -> str:
    """``torch.compile`` by Inductor; draws of its own are n/a."""
    if "samples" not in row.laws.split():
        return "n/a"
    return _compiled(row, "inductor", 1e-4)


def _value_or_refused(row: Row, wanted: str, case: Case, n: int) -> str:
    def call() -> tuple[Any, list[Tensor]]:
        return _value_and_gradients(case.bind(), *case.outputs(0, n), case.batch(n))

    if wanted == "refused":
        return _refused(call, ValueError)
    _finite(*call())
    return "pass"


def one_sample(row: Row) -> str:
    """A batch of one: a value, or a clear error."""
    return _value_or_refused(row, row.alone, case_of(row.preset), 1)


def two_classes(row: Row) -> str:
    """Two classes: a value, or a clear error."""
    if row.two == "refused":
        return _refused(lambda: _value_or_refused(row, "value", case_of(row.preset, classes=2), BATCH), ValueError)
    return _value_or_refused(row, "value", case_of(row.preset, classes=2), BATCH)


def unlabelled(row: Row) -> str:
    """Some and all labels missing: finite, and such a sample does not show in a supervised term."""
    case = case_of(row.preset)
    student, teacher = case.outputs(0)
    gone = torch.arange(BATCH) % 2 == 0
    batch = case.batch()
    some = batch._replace(labels=torch.where(gone, UNLABELLED, batch.labels))
    none = batch._replace(labels=torch.full_like(batch.labels, UNLABELLED))
    loss, gradients = _value_and_gradients(case.bind(), student, teacher, some)
    _finite(loss, gradients)
    without, rest = _value_and_gradients(case.bind(), student, teacher, none)
    _finite(without, rest)
    others, foreign_runs = case.outputs(1)

    def exchanged(own: Tensor, other: Tensor) -> Tensor:
        return torch.where(gone.view(-1, *[1] * (own.ndim - 1)), other, own)

    changed = [
        Outputs(exchanged(a.logits, b.logits), {name: exchanged(a.taps[name], b.taps[name]) for name in a.taps})
        for a, b in ((student, others), (teacher, foreign_runs))
    ]
    bound = case.bind()
    again = _loss(bound, *changed, some)
    for name in bound.supervised:
        torch.testing.assert_close(again.parts[name], loss.parts[name], rtol=1e-5, atol=1e-6)
        assert not without.parts[name], f"expected no value of {name} without a label, got {without.parts[name]}"
    if len(bound.supervised) == len(bound.names):
        assert not any(gradient[gone].any() for gradient in gradients)
        assert not any(gradient.any() for gradient in rest)
    return "pass" if bound.supervised else "n/a"


def soft_labels(row: Row) -> str:
    """Soft labels: one-hot ones count as the classes do; or they are refused, and the objective says so beforehand."""
    case = case_of(row.preset)
    batch = case.batch()
    hot = torch.nn.functional.one_hot(batch.labels, CLASSES).float()
    soft = batch._replace(labels=(0.7 * hot + 0.3 / CLASSES))
    outputs = case.outputs(0)
    wanted = case.objective.needs.labels
    if wanted == "index":
        return _refused(lambda: _loss(case.bind(), *outputs, soft), TypeError, ValueError)
    loss, gradients = _value_and_gradients(case.bind(), *outputs, soft)
    _finite(loss, gradients)
    hard = _loss(case.bind(), *outputs, batch).total
    torch.testing.assert_close(_loss(case.bind(), *outputs, batch._replace(labels=hot)).total, hard)
    return "pass" if wanted == "any" else "n/a"


def gradient(row: Row) -> str:
    """The gradient by logits and features is that of differences, in float64."""
    if not row.gradcheck:
        return "n/a"
    case = case_of(row.preset)
    bound, batch = case.steady(), case.batch(4)
    student, teacher = case.outputs(0, 4, dtype=torch.float64)
    student, leaves = _leaves(student)

    def value(logits: Tensor, *taps: Tensor) -> Tensor:
        return _loss(bound, Outputs(logits, dict(zip(student.taps, taps, strict=True))), teacher, batch).total

    # A bound objective may look at some of its inputs alone.
    assert torch.autograd.gradcheck(value, leaves, fast_mode=True, eps=1e-6, atol=1e-5, rtol=1e-4)
    return "pass"


def recipe(row: Row) -> str:
    """A recipe holds it, scaled and gathered too, and gives it back."""
    objective = row.objective()
    for each in (objective, 0.5 * objective, *([objective.gathered()] if objective.needs.coupled else [])):
        assert objectives.from_recipe(each.to_recipe()) == each
    return "pass"


# Laws

_FEW = settings(max_examples=4, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
_SEEDS, _SCALES = st.integers(0, 2**16), st.sampled_from([0.3, 1.0, 4.0])


def zero(row: Row) -> str:
    """Each term that reads the teacher is 0 where both networks say the same."""
    case = case_of(row.preset, same=True)
    bound = case.steady()
    matching = [part.name for part, _ in case.objective.parts if part.term.needs.teacher]
    assert matching

    @_FEW
    @given(seed=_SEEDS, scale=_SCALES)
    def holds(seed: int, scale: float) -> None:
        student, _ = case.outputs(seed, scale=scale, dtype=torch.float64)
        parts = _loss(bound, student, student, case.batch()).parts
        for name in matching:
            assert parts[name].abs() < 1e-6, f"expected 0 of {name}, got {parts[name].item()}"

    holds()
    return "pass"


def _invariance(row: Row, change: Callable[[Case, Outputs, Outputs, Batch, torch.Generator], Any]) -> str:
    case = case_of(row.preset)
    bound = case.steady()

    @_FEW
    @given(seed=_SEEDS, scale=_SCALES)
    def holds(seed: int, scale: float) -> None:
        student, teacher = case.outputs(seed, scale=scale, dtype=torch.float64)
        batch = case.batch()
        generator = torch.Generator().manual_seed(seed)
        before = _loss(bound, student, teacher, batch).total
        after = _loss(bound, *change(case, student, teacher, batch, generator)).total
        torch.testing.assert_close(after, before, rtol=1e-8, atol=1e-9)

    holds()
    return "pass"


def shift(row: Row) -> str:
    """A number added to all logits of a sample changes nothing, at either network."""

    def change(case: Case, student: Outputs, teacher: Outputs, batch: Batch, generator: torch.Generator) -> Any:
        by = 5 * torch.randn(2, BATCH, 1, generator=generator, dtype=torch.float64)
        return student._replace(logits=student.logits + by[0]), teacher._replace(logits=teacher.logits + by[1]), batch

    return _invariance(row, change)


def samples(row: Row) -> str:
    """The order of a batch's samples does not matter."""

    def change(case: Case, student: Outputs, teacher: Outputs, batch: Batch, generator: torch.Generator) -> Any:
        order = torch.randperm(BATCH, generator=generator)
        return (
            _map(student, lambda x: x[order]),
            _map(teacher, lambda x: x[order]),
            Batch(*(x[order] for x in batch[:3])),
        )

    return _invariance(row, change)


def classes(row: Row) -> str:
    """The order of the classes does not matter."""

    def change(case: Case, student: Outputs, teacher: Outputs, batch: Batch, generator: torch.Generator) -> Any:
        order = torch.randperm(CLASSES, generator=generator)
        moved = batch._replace(labels=order.argsort()[batch.labels])
        student, teacher = (o._replace(logits=o.logits[:, order]) for o in (student, teacher))
        return student, teacher, moved

    return _invariance(row, change)


Check = Callable[[Row], str]
LAWS: dict[str, Check] = {"zero": zero, "shift": shift, "samples": samples, "classes": classes}
CHECKS: dict[str, Check] = {
    "trains": trains,
    "bf16": bfloat16,
    "fp16": float16,
    "large": large,
    "compiled": compiled,
    "one sample": one_sample,
    "two classes": two_classes,
    "unlabelled": unlabelled,
    "soft labels": soft_labels,
    "gradient": gradient,
    "recipe": recipe,
    **LAWS,
}
SLOW: dict[str, Check] = {"inductor": inductor}


def run(row: Row, check: str) -> str:
    """Do one check of one row.

    Raises:
        AssertionError: it fails.
    """
    if check in LAWS and check not in row.laws.split():
        return "n/a"
    return {**CHECKS, **SLOW}[check](row)


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of a table, method by check."""
    yield f"| method | {' | '.join(CHECKS)} |"
    yield f"|---|{'---|' * len(CHECKS)}"
    for row in rows:
        cells = []
        for check in CHECKS:
            try:
                cells.append(run(row, check))
            except Exception as error:  # noqa: BLE001  a table shows what fails
                cells.append("FAIL")
                sys.stderr.write(f"{row.preset}, {check}: {type(error).__name__}: {error}\n")
        yield f"| `{row.preset}` | {' | '.join(cells)} |"


def main(arguments: Sequence[str]) -> int:
    """Print the table; 0 where nothing fails."""
    known = {row.preset: row for row in ROWS if row.known}
    if wrong := [name for name in arguments if name not in known]:
        sys.stderr.write(f"methods: expected names among {', '.join(known)}; got {', '.join(wrong)}\n")
        return 2
    torch.set_num_threads(1)
    say = sys.stdout.write
    say(f"# Every method through every check\n\n`python tests/conformance/battery.py`, torch {torch.__version__}\n\n")
    status = 0
    for line in table([known[name] for name in arguments or known]):
        say(line + "\n")
        status |= "FAIL" in line
    say("\n`refused`: a clear error says so. `n/a`: the method has no such input, or the law does not hold.\n\n")
    for name, check in CHECKS.items():
        say(f"- {name}: {check.__doc__}\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
