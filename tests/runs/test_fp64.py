"""A run in float64, from Python objects to the kept student, which becomes a float32 network again."""

import pytest
import torch
from safetensors.torch import load_file

import tutelage
from tutelage import models, objectives
from tutelage.objectives import Apply, Objective, WeightedTerm
from tutelage.runs.reporter import Reporter

SEEN = set()


def seen(student_logits, teacher_logits):
    """Note the dtypes that a loss is given."""
    SEEN.add((student_logits.dtype, teacher_logits.dtype))
    return (student_logits - teacher_logits).square().mean(-1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.manual_seed(0)
    teacher = models.create("mlp:16", classes=10, image_size=(8, 8), channels=1)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    objective = (
        objectives.kd() + 0.8 * objectives.crd(negatives=64) + Objective.of(WeightedTerm("seen", 0.1, Apply(seen)))
    )
    settings = {"epochs": 1, "batch_size": 512, "device": "cpu", "precision": "fp64", "weak_teacher": True}
    run = tutelage.distill(
        student="mlp:8",
        teacher=teacher,
        data="digits",
        objective=objective,
        name="r",
        runs=tmp_path_factory.mktemp("runs"),
        **settings,
    )
    return run, teacher, before


def test_losses_are_computed_in_float64(run):
    assert {(torch.float64, torch.float64)} == SEEN


def test_the_kept_student_is_in_float64_and_loads_into_a_float32_network(run):
    folder = run[0].folder
    kept = load_file(folder / "student.safetensors")
    assert {value.dtype for value in kept.values() if value.is_floating_point()} == {torch.float64}
    student = tutelage.load(folder)
    for name, value in student.network.state_dict().items():
        if value.is_floating_point():
            assert value.dtype == torch.float32
            assert torch.equal(value, kept[name].float())
    assert student(torch.rand(2, 1, 8, 8)).dtype == torch.float32


def test_the_teacher_is_given_back_in_float32(run):
    _, teacher, before = run
    for name, value in teacher.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])
    assert teacher(torch.rand(2, 1, 8, 8)).dtype == torch.float32


def test_a_record_says_so(run):
    assert run[0].manifest["precision"]["value"] == "fp64"


def test_a_stopped_run_goes_on(tmp_path):
    teacher = models.create("mlp:4", classes=10, image_size=(8, 8), channels=1)
    how = {"student": "mlp:2", "teacher": teacher, "objective": "kd", "epochs": 2, "batch_size": 1024, "name": "r"}
    how |= {"data": "digits", "device": "cpu", "precision": "fp64", "weak_teacher": True, "runs": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        tutelage.distill(**how, display=StopsAfterAnEpoch())
    known = tutelage.Run(tmp_path / "r").manifest["teacher"]["fingerprint"]
    assert known == models.fingerprint(teacher)
    run = tutelage.distill(**how, display=None)
    assert (run.manifest["resumed"], len(run.epochs)) == (1, 2)


class StopsAfterAnEpoch(Reporter):
    def note(self, text):
        raise KeyboardInterrupt
