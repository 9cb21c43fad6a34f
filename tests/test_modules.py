"""A distiller in a user's own loop, and a teacher that never changes."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from sklearn.datasets import load_digits
from tests._helpers.refusals import refused
from torch import nn

import tutelage
from tutelage import losses, objectives
from tutelage.errors import InvalidTypeError, InvalidValueError
from tutelage.modules import Distiller, FrozenTeacher, StepOutput, network_context, refuse_shared, restored
from tutelage.objectives import BindContext, Linear, Objective, WeightedTerm
from tutelage.types import Batch, Outputs, Progress, Totals


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)


def network(width, seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, 10))


def batches(digits, steps, size=128):
    inputs, labels = digits
    for step in range(steps):
        rows = torch.arange(step * size, (step + 1) * size) % len(inputs)
        yield Batch(rows, inputs[rows], labels[rows])


def learn(distiller, teacher, digits, steps):
    """The loop that a user writes."""
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.2, momentum=0.9)
    totals = []
    for step, batch in enumerate(batches(digits, steps)):
        output = distiller(batch, teacher(batch) if teacher else None, Progress(0, step, step / steps))
        output.loss.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        totals.append(float(output.loss.total.detach()))
    return totals


@pytest.fixture(scope="module")
def teacher(digits):
    wise = network(64, seed=1)
    learn(Distiller(wise, objectives.cross_entropy()), None, digits, 60)
    return FrozenTeacher(wise)


def accuracy(module, digits):
    module.eval()
    with torch.no_grad():
        return float((module(digits[0]).argmax(-1) == digits[1]).float().mean())


@pytest.mark.parametrize(
    "objective",
    [
        objectives.wttm(gamma=0.5, beta=2.0),
        objectives.ttm(gamma=0.5, beta=2.0, supervised=0),
        objectives.kd() + objectives.renyi_penalty(order=0.5, weight=0.1),
    ],
    ids=lambda objective: objective.name,
)
def test_a_users_own_loop_learns(objective, teacher, digits):
    student = network(16, seed=2)
    before = accuracy(copy.deepcopy(student), digits)
    totals = learn(Distiller(student, objective), teacher, digits, 40)
    assert sum(totals[-5:]) < 0.5 * sum(totals[:5])
    assert accuracy(student, digits) > max(0.8, before + 0.4)


def test_a_distiller_returns_the_loss_and_the_outputs_it_came_from(teacher, digits):
    distiller = Distiller(network(8, seed=0), objectives.ttm(gamma=0.5, beta=2.0)).eval()
    (batch,) = batches(digits, 1)
    teacher_outputs = teacher(batch)
    output = distiller(batch, teacher_outputs)
    assert isinstance(output, StepOutput)
    assert torch.equal(output.outputs.logits, distiller.student(batch.inputs))
    expected = losses.cross_entropy(output.outputs.logits, batch.labels).mean()
    expected = expected + 2 * losses.ttm(output.outputs.logits, teacher_outputs.logits, gamma=0.5).mean()
    torch.testing.assert_close(output.loss.total, expected)


def test_progress_and_totals_reach_the_objective(digits):
    distiller = Distiller(network(8, seed=0), objectives.cross_entropy(weight=Linear(1.0, 0.0))).eval()
    (batch,) = batches(digits, 1, size=10)
    first, later = distiller(batch), distiller(batch, progress=Progress(fraction=0.75))
    torch.testing.assert_close(later.loss.total, 0.25 * first.loss.total)
    twice = distiller(batch, totals=Totals(*torch.full((3,), 20.0)))
    torch.testing.assert_close(twice.loss.total, 0.5 * first.loss.total)


def test_student_and_objective_are_one_trainable_module():
    class Scale(nn.Module):
        needs = objectives.cross_entropy().needs

        def __init__(self, context):
            super().__init__()
            self.factor = nn.Parameter(torch.full((context.classes,), 2.0))

        def forward(self, student, teacher, batch, progress):
            return losses.cross_entropy(student.logits * self.factor, batch.labels)

    class Described:
        needs, target_gamma = Scale.needs, None

        def bind(self, context):
            return Scale(context)

    student = network(8, seed=0)
    distiller = Distiller(student, Objective.of(WeightedTerm("scaled", 1.0, Described())), BindContext(classes=10))
    names = [name for name, _ in distiller.named_parameters()]
    assert "objective.terms.scaled.factor" in names
    assert len(names) == 1 + len(list(student.parameters()))
    distiller(Batch(torch.arange(4), torch.rand(4, 64), torch.arange(4))).loss.total.backward()
    assert all(p.grad is not None for p in distiller.parameters())


def test_distillers_of_one_objective_share_nothing():
    objective = objectives.kd()
    first, second = (Distiller(network(8, seed=0), objective) for _ in range(2))
    assert first.objective is not second.objective
    assert first.objective.terms["kd"] is not second.objective.terms["kd"]


@pytest.mark.parametrize("wrong", [torch.zeros(4, 10), (torch.zeros(4, 10),)])
def test_answers_that_are_not_outputs_are_refused(wrong):
    distiller = Distiller(network(8, seed=0), objectives.kd())
    batch = Batch(torch.arange(4), torch.rand(4, 64), torch.arange(4))
    with refused(InvalidTypeError, "teacher", got=type(wrong).__name__, suggests="Outputs(logits)"):
        distiller(batch, wrong)
    assert distiller(batch, Outputs(torch.zeros(4, 10))).loss.total.isfinite()


@pytest.mark.parametrize(
    ("make", "who"), [(lambda m: Distiller(m, objectives.cross_entropy()), "student"), (FrozenTeacher, "teacher")]
)
def test_a_module_that_returns_no_logits_is_refused(make, who):
    class Pair(nn.Module):
        def forward(self, inputs):
            return inputs, inputs

    batch = Batch(torch.arange(4), torch.rand(4, 10), torch.arange(4))
    with refused(InvalidTypeError, who, got="tuple"):
        make(Pair())(batch)


def test_a_loss_without_a_gradient_is_refused():
    class Detached(nn.Linear):
        def forward(self, inputs):
            return super().forward(inputs).detach()

    distiller = Distiller(Detached(4, 3), objectives.cross_entropy())
    batch = Batch(torch.arange(2), torch.rand(2, 4), torch.arange(2))
    with refused(InvalidValueError, "student or loss", suggests="detach"):
        distiller(batch)
    with torch.no_grad():
        assert distiller(batch).loss.total.isfinite()


# --------------------------------------------------------------------------------------------------- the frozen teacher


def test_a_teacher_stays_in_evaluation_mode(teacher):
    for call in (teacher.train, lambda: teacher.train(True), teacher.eval):
        assert call() is teacher
        assert not any(module.training for module in teacher.modules())


def test_a_teacher_inside_a_module_that_trains_stays_too(teacher):
    both = nn.ModuleList([network(8, seed=0), teacher]).train()
    assert both[0].training
    assert not any(module.training for module in teacher.modules())


def test_a_network_in_training_mode_is_frozen_as_it_is():
    trained = network(8, seed=0).train()
    assert any(module.training for module in trained.modules())
    frozen = FrozenTeacher(trained)
    assert not any(module.training for module in frozen.modules())
    assert not any(p.requires_grad for p in frozen.parameters())


def part(network):
    return network[1]


@pytest.mark.parametrize(
    "call",
    [
        lambda network, teacher: network.train(),
        lambda network, teacher: part(network).train(),
        lambda network, teacher: nn.ModuleDict({"teacher": network}).train(),
        lambda network, teacher: nn.ModuleDict({"teacher": teacher}).train(),
        lambda network, teacher: network.apply(lambda module: setattr(module, "training", True)),
        lambda network, teacher: network.requires_grad_().train(),
    ],
)
@pytest.mark.parametrize("compiled", [False, True])
def test_whatever_is_called_the_next_answer_is_an_evaluation(call, compiled, digits):
    trained = network(8, seed=0)
    teacher = FrozenTeacher(trained)
    asked = torch.compile(teacher, backend="eager") if compiled else teacher
    (batch,) = batches(digits, 1)
    expected, statistics = asked(batch).logits, part(trained).running_mean.clone()
    for _ in range(2):
        call(trained, teacher)
        answer = asked(batch).logits
        assert torch.equal(answer, expected)
        assert not answer.requires_grad
    assert torch.equal(part(trained).running_mean, statistics)


@pytest.mark.filterwarnings("ignore")  # scripting is deprecated
def test_a_scripted_or_wrapped_network_teaches_too(digits):
    (batch,) = batches(digits, 1)
    for wrap in (torch.jit.script, nn.DataParallel, lambda module: torch.compile(module, backend="eager")):
        wrapped = wrap(network(8, seed=0))
        teacher = FrozenTeacher(wrapped)
        expected = teacher(batch).logits
        wrapped.train()
        assert torch.equal(teacher(batch).logits, expected)
        assert not any(parameter.requires_grad for parameter in wrapped.parameters())


def test_a_copied_teacher_watches_its_own_network(digits):
    teacher = FrozenTeacher(network(8, seed=0))
    copied, (batch,) = copy.deepcopy(teacher), batches(digits, 1)
    copied.network.train()
    assert torch.equal(copied(batch).logits, teacher(batch).logits)
    assert not any(module.training for module in copied.modules())


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_a_network_is_given_back_as_it_came(error):
    came = network(8, seed=0).train()
    part(came).eval()
    came[0].bias.requires_grad_(False)
    before = [module.training for module in came.modules()], [p.requires_grad for p in came.parameters()]
    with contextlib.suppress(ValueError, KeyboardInterrupt), restored(came):
        FrozenTeacher(came)
        if error:
            raise error
    assert ([module.training for module in came.modules()], [p.requires_grad for p in came.parameters()]) == before


def test_a_network_made_in_inference_mode_is_given_back_as_it_came():
    with torch.inference_mode():
        came = network(8, seed=0)
    with restored(came):
        FrozenTeacher(came)
    assert all(parameter.requires_grad for parameter in came.parameters())


# --------------------------------------------------------------------------------------- what two networks may share


def pair():
    return network(8, seed=0), network(8, seed=1)


def tied(student, teacher):
    student[4].weight = teacher[4].weight


def viewed(student, teacher):
    student[4].weight = nn.Parameter(teacher[4].weight.detach()[:3])


def same_buffer(student, teacher):
    student[1].running_mean = teacher[1].running_mean


def same_module(student, teacher):
    student[0] = teacher[0]


def inside(student, teacher):
    student.append(teacher)


@pytest.mark.parametrize(
    ("share", "got"),
    [
        (tied, ["the student's 4.weight", "the teacher's 4.weight"]),
        (viewed, ["the student's 4.weight", "the teacher's 4.weight"]),
        (same_buffer, ["the student's 1.running_mean", "the teacher's 1.running_mean"]),
        (same_module, ["the student's 0", "the teacher's 0"]),
        (inside, ["the student's 5", "the whole teacher"]),
    ],
)
def test_what_student_and_teacher_share_is_refused_by_name(share, got):
    student, teacher = pair()
    share(student, teacher)
    before = [(p, p.requires_grad) for p in student.parameters()], [m.training for m in student.modules()]
    with refused(InvalidValueError, "student and teacher", got=got, suggests="copy.deepcopy(teacher)"):
        refuse_shared(student, teacher)
    assert all(p.requires_grad == flag for p, flag in before[0])
    assert [m.training for m in student.modules()] == before[1]
    with refused(InvalidValueError, "student and teacher"):
        network_context(objectives.kd(), student, teacher, torch.rand(2, 64))
    if share is not inside:  # whose copy is inside too
        refuse_shared(student, copy.deepcopy(teacher))


def test_a_network_that_teaches_itself_is_refused_as_a_whole():
    student, _ = pair()
    with refused(InvalidValueError, "student and teacher", got=["the whole student", "the whole teacher"]):
        refuse_shared(student, student)


def test_neighbours_in_one_memory_are_not_shared():
    flat, (student, teacher) = torch.rand(160), pair()
    student[4].weight, teacher[4].weight = nn.Parameter(flat[:80].view(10, 8)), nn.Parameter(flat[80:].view(10, 8))
    refuse_shared(student, teacher)
    refuse_shared(student.to("meta"), teacher.to("meta"))
    refuse_shared(nn.LazyLinear(3), nn.LazyLinear(3))


def test_no_gradient_reaches_a_teacher(teacher, digits):
    distiller = Distiller(network(8, seed=0), objectives.wttm(gamma=0.5, beta=1))
    (batch,) = batches(digits, 1)
    teacher_outputs = teacher(batch)
    assert not teacher_outputs.logits.requires_grad
    assert not teacher(batch._replace(inputs=batch.inputs.clone().requires_grad_())).logits.requires_grad
    distiller(batch, teacher_outputs).loss.total.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for p in distiller.parameters())


def test_a_teacher_s_buffers_and_answers_do_not_move(teacher, digits):
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    first = [teacher(batch).logits for batch in batches(digits, 3)]
    learn(Distiller(network(8, seed=0), objectives.kd()).train(), teacher.train(), digits, 5)
    again = [teacher(batch).logits for batch in batches(digits, 3)]
    assert "network.1.running_mean" in before
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    for logits, logits_again in zip(first, again, strict=True):
        assert torch.equal(logits, logits_again)


def test_answers_can_be_saved_for_a_backward_pass(teacher, digits):
    (batch,) = batches(digits, 1)
    z = torch.zeros(128, 10, requires_grad=True)
    (z * teacher(batch).logits).sum().backward()
    assert z.grad is not None


def test_the_public_names_are_these():
    assert tutelage.Distiller is Distiller
    assert tutelage.FrozenTeacher is FrozenTeacher
