"""No step makes the host wait, on a device that stands in for a GPU; and that it would be seen."""

from contextlib import nullcontext, suppress
from dataclasses import replace

import pytest
import torch
from tests._helpers.contexts import drawn_context
from tests._helpers.fit_cases import Rows, mlp, samples, settings
from tests._helpers.presets import OF_TOKENS, few_quickly
from tests._helpers.stand_in import ACCELERATOR, META, on_the_stand_in, waits_of
from torch import nn

from tutelage import checks, config, models, objectives
from tutelage.config.schema import Recipe
from tutelage.models.classifier import Classifier, _column
from tutelage.modules import Distiller, FrozenTeacher
from tutelage.objectives import Apply, Linear, Objective, WeightedTerm
from tutelage.runs import record_teacher
from tutelage.runs.execute import execute
from tutelage.settings.fit import AdamW
from tutelage.studies import overview
from tutelage.training.compile import PlannedTeacher
from tutelage.training.distributed import to_device
from tutelage.training.evaluate import evaluate
from tutelage.training.host_waits import WAITS, HostWaits
from tutelage.training.isolation import Isolation
from tutelage.training.job import FitJob, FitState
from tutelage.training.lockstep import Lockstep
from tutelage.training.step import train_step
from tutelage.types import Batch, Outputs

CLASSES, SAMPLES = 10, 40
SMALL = ("small", "small", 8)
PAIR = ("cifar:resnet8", "cifar:resnet8x4", 32)
PAIRS = {
    **dict.fromkeys(["fsp", "kd_svd"], ("cifar:resnet8", "cifar:resnet14", 32)),  # of equal width
    **dict.fromkeys(OF_TOKENS, ("timm:deit_tiny_patch16_224", "timm:deit_tiny_patch16_224", 224)),
}
"""Student, teacher and image size of presets that need others."""
EAGER = {"compile_teacher": False, "compile_student": False, "gradient_products": False, "graphs": False}


def create(name):
    if name == "small":
        return nn.Sequential(nn.Flatten(), mlp(192, CLASSES))
    if name.startswith("timm"):
        pytest.importorskip("timm")
    return models.create(name, classes=CLASSES)


class Lesson:
    """What one student is taught with, on the stand-in."""

    def __init__(self, objective, pair=None, **changes):
        needs = objective.needs
        student, teacher, size = pair or (PAIR if needs.student_taps or needs.teacher_taps else SMALL)
        student, teacher = create(student), create(teacher)
        images = torch.rand(4, 3, size, size)
        context = drawn_context(objective, student, teacher, images[:2], samples=SAMPLES, classes=CLASSES)
        self.job = FitJob(
            distiller=Distiller(student, objective, context),
            settings=settings(clip=1.0, **EAGER, **changes),
            uses_teacher=needs.teacher,
        )
        self.teacher = FrozenTeacher(teacher, needs.teacher_taps) if needs.teacher else None
        self.batch = Batch(torch.arange(4), images, torch.arange(4))

    def waits(self):
        """Take steps, with micro-batches where the objective allows them; return what the second and third wait for."""
        with on_the_stand_in():
            batch = to_device(self.batch, META, channels_last=True)
            state = FitState(self.job, ACCELERATOR, steps=4)
            teacher = PlannedTeacher(self.teacher, self.job.settings, META) if self.teacher else None
            state.begin_epoch()
            state.begin_step(batch, teacher)
            waits_of(lambda: train_step(state.train, batch, teacher))  # The first step makes what lasts.

            def steps():
                train_step(state.train, batch, teacher)
                if not self.job.distiller.objective.needs.coupled:
                    state.train.settings = replace(self.job.settings, accumulate=2)
                    train_step(state.train, batch, teacher)

            return waits_of(steps)


def test_the_operations_are_torchs():
    older = {"aten::cholesky"}
    assert WAITS - set(torch._C._dispatch_get_all_op_names()) <= older


def test_on_the_cpu_nothing_is_noted_and_nothing_is_changed():
    values = torch.arange(3.0)
    with HostWaits(torch.device("cpu")) as waits:
        assert values.max().item() == 2
        assert values[values > 0].tolist() == [1, 2]
    assert not waits.found


# Steps


@pytest.mark.parametrize("name", few_quickly())
def test_a_step_waits_for_nothing_that_its_objective_does_not_declare(name):
    lesson = Lesson(overview.tried(name), PAIRS.get(name))
    found = lesson.waits()
    assert bool(found) is lesson.job.distiller.objective.needs.host_waits, dict(found)


def test_an_objective_waits_where_a_term_of_it_does():
    assert (objectives.kd() + objectives.kd_svd()).needs.host_waits
    assert not (objectives.kd() + objectives.fsp()).needs.host_waits


def test_a_step_of_scheduled_terms_and_adamw_waits_for_nothing():
    scheduled = Linear(start=1.0, end=0.0)
    objective = objectives.ttm(gamma=0.5, beta=scheduled) + objectives.ctkd(supervised=0) + 0.5 * objectives.crd()
    assert not Lesson(objective, optimizer=AdamW(lr=0.1)).waits()


def test_soft_labels_are_looked_at_before_the_first_step_alone(monkeypatch):
    def read(labels, *, counted=None):
        looked.append(labels.device)

    looked = []
    monkeypatch.setattr(checks, "distributions", read)
    lesson = Lesson(objectives.ttm(gamma=0.5, beta=1.0))
    lesson.batch = lesson.batch._replace(labels=torch.rand(4, CLASSES))
    assert not lesson.waits()
    assert looked == [META]


@pytest.mark.parametrize("counted", [None, torch.ones(4, 3, dtype=torch.bool, device=META)])
def test_a_coupled_term_of_tokens_waits_where_some_are_left_out_and_says_so(counted):
    logits, labels = torch.zeros(4, 3, CLASSES, device=META), torch.zeros(4, 3, dtype=torch.int64, device=META)
    batch = Batch(labels[:, 0], labels, labels, counted=counted)

    def loss(bound):
        # The stand-in does not know how many rows a mask leaves.
        with suppress(NotImplementedError) if bound.host_waits(batch) else nullcontext():
            bound(Outputs(logits), Outputs(logits), batch)

    for objective in (objectives.dist(), objectives.kd()):
        bound = objective.bind()
        assert bound.host_waits(batch) is (counted is not None and objective.needs.coupled)
        assert bool(waits_of(lambda bound=bound: loss(bound))) is bound.host_waits(batch)


# Planted faults


def of(term):
    """An objective of one term, the function ``term(student_logits, labels)``."""
    return Objective.of(WeightedTerm("term", 1.0, Apply(term, soft_labels=True)))


def plain(student_logits, labels):
    values = torch.where(student_logits > 0, student_logits, 0.0).sum(1) + 1
    values = values.clone()
    values.detach().fill_(2)
    filled = torch.zeros_like(student_logits)
    filled[:, 0] = 3
    filled[filled > 1] = 2.0
    return values * filled.sum(1) * torch.full((), 2.0, device=values.device)


def reads_a_value(student_logits, labels):
    return student_logits.sum(1) * labels[0].item()


def decides_by_a_value(student_logits, labels):
    loss = student_logits.sum(1)
    return loss if loss.sum() > 0 else -loss


def writes_a_number(student_logits, labels):
    factor = torch.ones(4, device=student_logits.device)
    factor[0] = 3
    return student_logits.sum(1) * factor[0]


def writes_a_number_at_indices(student_logits, labels):
    factor = torch.ones(10, device=student_logits.device)
    factor[labels] = 3
    return student_logits.sum(1) * factor[0]


def uploads(student_logits, labels):
    return student_logits.sum(1) * torch.tensor([1.0]).to(student_logits.device)


def uploads_at_once(student_logits, labels):
    return student_logits.sum(1) * torch.tensor([1.0], device=student_logits.device)


def selects_by_a_mask(student_logits, labels):
    return student_logits[student_logits > 0].sum().expand(4)


def mixes_devices(student_logits, labels):
    return (student_logits * torch.ones(10)).sum(1)


def slices_by_a_value(student_logits, labels):
    return student_logits[:, : labels.max()].sum(1)


def waits_in_its_gradient(student_logits, labels):
    return student_logits.sum(1) + (student_logits.mT @ student_logits).trace()


def is_not_deterministic(student_logits, labels):
    return student_logits.sum(1) + student_logits.median(1).values


FAULTS = {
    reads_a_value: "aten::_local_scalar_dense, ",
    decides_by_a_value: "aten::_local_scalar_dense, ",
    writes_a_number: "aten::copy_ from the CPU, ",
    writes_a_number_at_indices: "aten::index_put_ of tensors on meta and cpu, ",
    uploads: "aten::_to_copy from the CPU, ",
    uploads_at_once: "aten::_to_copy from the CPU, ",
    selects_by_a_mask: "aten::index.Tensor by a mask, ",
    mixes_devices: "aten::mul.Tensor of tensors on meta and cpu, ",
    slices_by_a_value: "aten::_local_scalar_dense, ",
    is_not_deterministic: "aten::median.dim, which is not deterministic, ",
}


def places_in(function, path=__file__):
    return {f"{path}:{line}" for _, _, line in function.__code__.co_lines()}


def test_what_is_no_fault_is_not_found():
    assert not Lesson(of(plain)).waits()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_found_with_its_place(fault):
    found = Lesson(of(fault)).waits()
    assert set(found) & {FAULTS[fault] + place for place in places_in(fault)}, dict(found)


def test_a_planted_fault_in_a_gradient_is_found_with_its_node():
    (what,) = Lesson(of(waits_in_its_gradient)).waits()
    assert what.startswith("aten::index_fill.int_Tensor, training/step.py:")
    assert what.endswith(" in TraceBackward0")


class ReadsProgress(nn.Module):
    """A term, and its description, that takes where the fit is for a number of the host's."""

    needs = objectives.cross_entropy().needs
    target_gamma = None

    def bind(self, context):
        return self

    def forward(self, student, teacher, batch, progress):
        return student.logits.sum(1) * float(progress.fraction)


def test_a_term_that_reads_its_progress_is_found():
    (what,) = Lesson(Objective.of(WeightedTerm("term", 1.0, ReadsProgress()))).waits()
    assert what in {f"aten::_local_scalar_dense, {place}" for place in places_in(ReadsProgress.forward)}


# Whole rooms of the loop


def test_an_evaluation_waits_for_each_batchs_logits_and_for_nothing_else():
    images, labels = samples(12, shape=(3, 32, 32))
    rows = Rows(images, labels, batch_size=4)
    network = models.create("cifar:resnet8", classes=CLASSES).to(META)
    found = waits_of(
        lambda: evaluate(network, rows, device=META, precision="fp32", channels_last=True), makes_on_cpu=True
    )
    back = {what: times for what, times in found.items() if "to the CPU" in what}
    assert list(back.values()) == [3]
    assert next(iter(back)).startswith("aten::_to_copy to the CPU, training/evaluate.py:")
    assert {what.split(", ")[1].split(":")[0] for what in set(found) - set(back)} == {"training/distributed.py"}


def test_recording_a_teacher_waits_for_each_batchs_outputs_and_for_nothing_else(tmp_path, monkeypatch):
    keys = {"name": "run", "data": {"source": "digits", "labelled": 5, "crop_padding": 1}, "student": "mlp:8"}
    keys |= {"epochs": 1, "optimizer": {"name": "sgd", "lr": 0.05}, "threads": 1}
    execute(config.parse(Recipe, {**keys, "objective": "cross_entropy"}), tmp_path / "teacher")
    taught = {"teacher": str(tmp_path / "teacher"), "objective": "kd", "outputs": str(tmp_path / "outputs")}
    recipe = config.parse(Recipe, {**keys, **taught})
    monkeypatch.setattr(record_teacher, "accelerator_on", lambda device: ACCELERATOR)
    found = waits_of(lambda: record_teacher.record(recipe), makes_on_cpu=True)
    back = {what for what in found if "to the CPU" in what}
    assert {what.split(":")[2] for what in back} == {"_to_copy to the CPU, runs/record_teacher.py"}
    assert len({found[what] for what in back}) == 1  # each once a batch: indices, and logits
    assert len(back) == 2
    places = {what.split(", ")[1] for what in set(found) - back}
    moved = places_in(Classifier._apply, "models/classifier.py") | places_in(_column, "models/classifier.py")
    assert {place.split(":")[0] for place in places - moved} == {"data/on_device.py"}  # what sends the batches


def test_lockstep_waits_for_an_epochs_sums_and_for_nothing_else():
    """In a step nothing but the batch is moved, and its numbers are set."""
    presets = (objectives.fitnet(), objectives.ttm(gamma=0.5, beta=Linear(start=1.0, end=0.0)), objectives.crd())
    lessons = [Lesson(objective, PAIR, nonfinite="skip", epochs=1) for objective in presets]
    read = [tap for objective in presets for tap in objective.needs.teacher_taps]
    tapped = FrozenTeacher(lessons[0].teacher.network, read)
    images, labels = samples(12, shape=(3, 32, 32))
    isolation, records = Isolation(), []

    def run():
        jobs = {k: lesson.job for k, lesson in enumerate(lessons)}
        rows = Rows(images, labels, batch_size=4)
        lockstep = Lockstep(jobs, tapped, rows, accelerator=ACCELERATOR, isolation=isolation)
        records.extend(lockstep.run())

    found = waits_of(run, makes_on_cpu=True)
    assert not isolation.errors
    assert len(records) == 3
    back = {what: times for what, times in found.items() if "from the CPU" not in what}
    assert list(back.values()) == [3], back  # an epoch's sums, of each student
    assert next(iter(back)).startswith("aten::_to_copy to the CPU, training/job.py:")
