"""Parts of a network that are frozen by name: which, their mode, what is saved, resume."""

import pytest
import torch
from tests._helpers.fit_cases import Rows, fitted, same_bits, samples, settings, state
from tests._helpers.processes import processes
from tests._helpers.refusals import refused
from tests._helpers.stopped_run import stopped
from torch import nn

import tutelage
from tutelage import config, models, objectives
from tutelage.config.schema import Recipe
from tutelage.errors import InvalidValueError, RecipeError
from tutelage.modules import Distiller
from tutelage.report import html
from tutelage.runs.execute import execute
from tutelage.runs.setup import build_inputs
from tutelage.training.distributed import accelerator_on
from tutelage.training.isolation import Isolation
from tutelage.training.job import FitJob
from tutelage.training.lockstep import Lockstep

PATTERNS = ["conv1", "bn1", "layer1.*"]


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    monkeypatch.setattr(html, "write_report", lambda folder: None)


def recipe(**keys):
    student = {"name": "cifar:resnet8", "frozen": PATTERNS}
    run = {"name": "a", "data": {"source": "digits", "labelled": 96}, "student": student, "epochs": 1, "batch_size": 16}
    return config.parse(Recipe, run | {"compile_student": False, "threads": 1} | keys)


def trainable(student):
    return {name for name, parameter in student.network.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("patterns", "frozen"),
    [
        (["conv1"], {"conv1.weight"}),
        (["bn1.bias"], {"bn1.bias"}),
        (["layer?.0.conv1*"], {f"layer{k}.0.conv1.weight" for k in (1, 2, 3)}),
        (["fc", "conv1"], {"fc.weight", "fc.bias", "conv1.weight"}),
    ],
)
def test_patterns_are_of_parameters_and_of_modules(patterns, frozen):
    student = models.create("cifar:resnet8", classes=4)
    every = trainable(student)
    student.freeze(patterns)
    assert every - trainable(student) == frozen


def test_a_module_that_is_frozen_as_a_whole_is_in_evaluation_mode():
    student = models.create("cifar:resnet8", classes=4)
    student.freeze(["layer1", "*.bias"])
    student.train()
    modes = {name: module.training for name, module in student.network.named_modules()}
    assert not any(mode for name, mode in modes.items() if name.startswith("layer1"))
    assert all(mode for name, mode in modes.items() if not name.startswith("layer1"))
    student.eval()
    assert not any(module.training for module in student.modules())


def test_a_module_of_the_users_own_keeps_its_mode():
    network = nn.Sequential(nn.BatchNorm2d(1).requires_grad_(False), nn.Flatten(), nn.Linear(4, 2))
    student = models.adopt(network, "object:Own", classes=2).train()
    assert network[0].training
    fitted(student, Rows(*samples(8, shape=(1, 2, 2), classes=2), batch_size=4), epochs=1)
    assert torch.equal(network[0].weight, torch.ones(1))


@pytest.mark.parametrize(
    ("patterns", "got", "suggests"),
    [
        (["layer9"], "layer9", "did you mean layer"),
        (["conv1", "Layer1"], "Layer1", "layer1"),
        (["*"], "*", "trained=head"),
        (["conv1", "bn1", "layer*", "fc"], "fc", "trained=head"),
        (["zzz"], "zzz", "conv1"),
    ],
)
def test_patterns_of_nothing_or_everything_are_refused(patterns, got, suggests):
    student = models.create("cifar:resnet8", classes=4)
    with refused(InvalidValueError, "frozen", got=got):
        student.freeze(patterns)
    with pytest.raises(InvalidValueError, match=suggests):
        student.freeze(patterns)


@pytest.mark.parametrize("value", [[], "conv1", [3], [""], {"conv1": True}])
def test_values_that_are_no_patterns_are_refused(value):
    with refused(RecipeError, "recipe: student.frozen", suggests='["conv1", "layer1.*"]'):
        recipe(student={"name": "cifar:resnet8", "frozen": value})


@pytest.mark.parametrize("trained", ["head", {"lora": 2}])
def test_another_choice_of_what_is_trained_is_refused_beside_it(trained):
    with refused(RecipeError, "recipe: student", suggests="leave one of them out"):
        recipe(student={"name": "cifar:resnet8", "frozen": ["conv1"], "trained": trained})


@pytest.mark.parametrize("several", [False, True])
def test_a_teacher_has_no_such_key(several):
    teacher = {"name": "runs/x", "frozen": ["a"]}
    with pytest.raises(RecipeError, match="leave frozen out: it is a student's key"):
        recipe(teacher=["runs/y", teacher] if several else teacher)


def test_the_network_is_named_where_a_recipe_is_run():
    with refused(InvalidValueError, "student.frozen", got="nothing"):
        build_inputs(recipe(student={"name": "cifar:resnet8", "frozen": ["nothing"]}))


def small():
    student = models.create("cifar:resnet8", classes=4, channels=1)
    student.freeze(PATTERNS)
    return student


def is_frozen(name):
    return name.startswith(("conv1", "bn1", "layer1"))


def test_what_is_frozen_stays_and_a_fit_resumes_to_the_bit(tmp_path):
    inputs, labels = samples(24, shape=(1, 8, 8))
    whole, stopped, resumed = small(), small(), small()
    first, how = state(whole), {"epochs": 1, "checkpoint_steps": 1}
    fitted(whole, Rows(inputs, labels, batch_size=8), **how)
    with pytest.raises(KeyboardInterrupt):
        fitted(stopped, Rows(inputs, labels, batch_size=8, stop_before=(0, 2)), folder=tmp_path, **how)
    fitted(resumed, Rows(inputs, labels, batch_size=8), folder=tmp_path, resume=True, **how)
    assert same_bits(state(resumed), state(whole))
    last = state(whole)
    same = {name for name in first if torch.equal(first[name], last[name])}
    assert same == {name for name in first if is_frozen(name.removeprefix("network."))}
    models.save(whole, tmp_path / "saved")
    assert models.read(tmp_path / "saved/student.safetensors").keys() == whole.network.state_dict().keys()


def test_in_lockstep_a_student_is_trained_as_alone():
    rows = Rows(*samples(24, shape=(1, 8, 8)), batch_size=8)
    alone, together, other = small(), small(), models.create("cifar:resnet8", classes=4, channels=1)
    fitted(alone, rows, epochs=1)
    jobs = {
        k: FitJob(
            distiller=Distiller(student, objectives.cross_entropy()), settings=settings(epochs=1), uses_teacher=False
        )
        for k, student in enumerate([other, together])
    }
    isolation = Isolation(accelerator_on("cpu").device)
    list(Lockstep(jobs, None, rows, accelerator=accelerator_on("cpu"), isolation=isolation).run())
    assert not isolation.errors
    assert same_bits(state(alone), state(together))


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", {"name": "timm:muon", "layer_decay": 0.8}])
def test_a_run_saves_the_whole_and_resumes_to_the_bit(tmp_path, monkeypatch, optimizer):
    planned = recipe(checkpoint_steps=2, optimizer=optimizer)
    first = models.create("cifar:resnet8", classes=10, channels=1, seed=planned.seed).network.state_dict()
    run = execute(planned, tmp_path / "whole")
    stopped(planned, tmp_path / "resumed", monkeypatch)
    execute(planned, tmp_path / "resumed")
    files = [models.read(tmp_path / name / "student.safetensors") for name in ("whole", "resumed")]
    assert same_bits(*files)
    assert files[0].keys() == first.keys()
    assert {name for name in first if is_frozen(name)} == {n for n in first if torch.equal(first[n], files[0][n])}
    assert same_bits(tutelage.load(tmp_path / "whole").network.state_dict(), files[0])
    buffers = ("mean", "var", "tracked")
    trained = [tensor for name, tensor in first.items() if not is_frozen(name) and not name.endswith(buffers)]
    assert run.manifest["student"]["trained"] == sum(map(torch.numel, trained))
    if optimizer != "sgd":
        assert run.manifest["student"]["layer_decay"] == {"layers": 5, "smallest_scale": pytest.approx(0.8**4)}


def trained_in_two(rank, folder):
    execute(recipe(sync_bn=True), folder / "two")


@pytest.mark.slow
def test_two_processes_keep_what_is_frozen(tmp_path):
    processes(2, trained_in_two, tmp_path)
    first = models.create("cifar:resnet8", classes=10, channels=1).network.state_dict()
    saved = models.read(tmp_path / "two/student.safetensors")
    same = {name for name in first if torch.equal(first[name], saved[name])}
    assert same == {name for name in first if is_frozen(name)}
