"""What cannot be trained is refused before anything is, and what is the caller's is left as it came."""

import contextlib
import copy

import pytest
import torch
from tests._helpers.refusals import refused
from torch import nn
from torch.utils.data import TensorDataset

import tutelage
from tutelage import config, records
from tutelage.config.schema import Comparison, Recipe
from tutelage.errors import InvalidTypeError, InvalidValueError, RecipeError, UserCodeError
from tutelage.runs import execute as execution
from tutelage.runs import setup
from tutelage.runs.dry_run import dry_run
from tutelage.runs.record_teacher import record
from tutelage.runs.reporter import Reporter
from tutelage.runs.setup import RunInputs, build_inputs, check_run
from tutelage.studies.compare import compare

NO_TEACHER = {"epochs": 1, "device": "cpu"}
HOW = {**NO_TEACHER, "weak_teacher": True, "objective": "kd"}


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    monkeypatch.setattr("tutelage.report.html.write_report", lambda folder: None)


def images(count=29, size=8):
    generator = torch.Generator().manual_seed(0)
    pair = [TensorDataset(torch.rand(n, 1, size, size, generator=generator), torch.arange(n) % 3) for n in (count, 9)]
    return tuple(pair)


def norm(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3))


def convolution(size=8, classes=3):
    width = 4 * (size - 2) ** 2
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(width, classes))


def is_untouched(folder):
    return not any((folder / name).exists() for name in (records.MANIFEST, records.RECIPE, records.CHECKPOINTS))


def state(network):
    return [tensor.clone() for tensor in network.state_dict().values()]


def same(one, other):
    return all(map(torch.equal, one, other))


@pytest.mark.parametrize(
    ("count", "batch_size", "accumulate", "suggests"),
    [(29, 28, 1, 27), (29, 29, 8, None), (33, 32, 16, 31), (29, 29, 15, 30), (28, 28, 1, None)],
)
def test_batches_that_the_student_cannot_take_are_refused_before_the_first_step(
    tmp_path, count, batch_size, accumulate, suggests
):
    student, how = norm(), {"data": images(count), "runs": tmp_path, "accumulate": accumulate, **NO_TEACHER}
    before = state(student)
    if suggests is None:
        tutelage.train(model=student, name="run", batch_size=batch_size, **how)
        return
    instead = ["batch_size", "accumulate=1"][batch_size == count]
    with refused(RecipeError, "batch_size", got=[1, count, batch_size], suggests=instead) as raised:
        tutelage.train(model=student, name="run", batch_size=batch_size, **how)
    assert "student object:Sequential, its 2 (BatchNorm1d)" in raised.value.expected
    assert same(state(student), before)
    assert is_untouched(tmp_path / "run")


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_a_network_that_does_not_take_the_data_is_named(tmp_path, who):
    networks = {"student": convolution(), "teacher": convolution(), who: convolution(16)}
    before = [state(network) for network in networks.values()]
    with refused(UserCodeError, "Sequential", got=["RuntimeError", "3 (Linear)"]) as raised:
        tutelage.distill(**networks, data=images(), name="run", runs=tmp_path, **HOW)
    assert f"{who} object:Sequential to take inputs (2, 1, 8, 8)" in raised.value.expected
    assert all(same(state(network), old) for network, old in zip(networks.values(), before, strict=True))
    assert is_untouched(tmp_path / "run")


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_a_network_of_other_classes_is_named(tmp_path, who):
    networks = {"student": convolution(), "teacher": convolution(), who: convolution(classes=5)}
    data = tutelage.data.from_datasets(*images(), classes=3)
    with refused(RecipeError, f"{who} object:Sequential", got=5):
        tutelage.distill(**networks, data=data, name="run", runs=tmp_path, **HOW)
    assert is_untouched(tmp_path / "run")


def crooked(path):
    """A model's file whose network takes 16x16 images only."""
    path.write_text(
        "from torch import nn\n"
        "def make(classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(256, classes), nn.BatchNorm1d(classes))\n"
    )
    return f"file:{path}:make"


def test_dry_runs_records_and_groups_refuse_it_too(tmp_path):
    name = crooked(tmp_path / "mine.py")
    value = {
        "name": "run",
        "student": "mlp:4",
        "teacher": name,
        "data": "digits",
        "outputs": str(tmp_path / "o"),
        **HOW,
    }
    recipe = config.parse(Recipe, value)
    with refused(UserCodeError, got="RuntimeError"):
        dry_run(recipe, trust_code=True)
    options = tutelage.runs.run.RunOptions(reporter=Reporter(), trust_code=True)
    with refused(UserCodeError, got="RuntimeError"):
        record(recipe, options=options)
    assert not (tmp_path / "o" / records.OUTPUTS).exists()
    recipe = config.parse(Recipe, {**value, "student": name, "teacher": "mlp:4", "outputs": None})
    with refused(UserCodeError, got="RuntimeError"):
        dry_run(recipe, trust_code=True)
    planned = [(recipe.model_copy(update={"name": f"run{k}"}), tmp_path / f"run{k}") for k in range(2)]
    for result in tutelage.runs.group.execute_group(planned, options=options):
        assert isinstance(result, UserCodeError)
    assert all(is_untouched(folder) for _, folder in planned)


def test_a_comparison_refuses_it_before_its_teacher_is_trained(tmp_path):
    value = {
        "name": "c",
        "student": crooked(tmp_path / "mine.py"),
        "teacher": {"train": {"model": "mlp:4", "epochs": 1}},
        "objectives": {"plain": "cross_entropy", "kd": "kd"},
        **NO_TEACHER,
    }
    options = tutelage.runs.run.RunOptions(reporter=Reporter(), trust_code=True)
    with refused(UserCodeError, got="RuntimeError"):
        compare(config.parse(Comparison, value), tmp_path / "c", options=options)
    assert not (tmp_path / "c").exists()


def test_a_comparison_refuses_an_objective_before_another_is_trained(tmp_path):
    value = {
        "name": "c",
        "student": "mlp:4",
        "teacher": "mlp:4",
        "objectives": {"kd": "kd", "rkd": [{"cross_entropy": {}}, {"rkd": {}}]},
        "batch_size": 4,
        "weak_teacher": True,
        **NO_TEACHER,
    }
    with refused(RecipeError, "batch_size", got=[1, 1437]):
        compare(config.parse(Comparison, value), tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_check_changes_nothing(tmp_path):
    """Not the networks, and no generator that the run, a data set or the caller draws from."""

    class Noisy(TensorDataset):
        def __getitem__(self, i):
            return (super().__getitem__(i)[0] + torch.rand(1, 8, 8)) / 2, super().__getitem__(i)[1]

    data = tutelage.data.from_datasets(*(Noisy(*each.tensors) for each in images()), classes=3)
    student, teacher = (tutelage.models.adopt(norm(seed), "object:Sequential", classes=3) for seed in (0, 1))
    student.network[3].eval()
    inputs = RunInputs(splits=data, student=student, teacher=teacher, objectives=(tutelage.objectives.kd(),))
    recipe = config.parse(Recipe, {"name": "x", "student": "mlp:8", "batch_size": 8, **HOW, "teacher": "mlp:8"})
    before = state(student), [m.training for m in student.modules()], state(teacher), torch.get_rng_state()
    check_run(recipe, inputs)
    assert same(state(student), before[0])
    assert [m.training for m in student.modules()] == before[1]
    assert same(state(teacher), before[2])
    assert torch.equal(torch.get_rng_state(), before[3])


@pytest.mark.parametrize(
    ("teacher", "tries"), [(None, ["x"]), ({"train": {"model": "mlp:8"}}, ["x", "x/teacher", "x"])]
)
def test_a_run_is_tried_once_and_again_with_the_teacher_that_it_trains(tmp_path, monkeypatch, teacher, tries):
    tried = []
    monkeypatch.setattr(execution, "check_run", lambda recipe, inputs: tried.append(recipe.name))
    objective = "cross_entropy" if teacher is None else "kd"
    value = {"name": "x", "student": "mlp:8", **HOW, "precision": "fp32", "teacher": teacher, "objective": objective}
    execution.execute(config.parse(Recipe, value), tmp_path / "x")
    assert tried == tries


def test_a_data_set_of_unreadable_samples_is_not_tried(tmp_path, monkeypatch):
    monkeypatch.setattr(setup, "_probe", lambda *_: None)
    recipe = config.parse(Recipe, {"name": "x", "student": "mlp:8", **NO_TEACHER})
    check_run(recipe, build_inputs(recipe))


# The caller's teacher


class Stops(Reporter):
    def __init__(self, error):
        self.error = error

    def note(self, text):
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize("error", [None, KeyboardInterrupt(), ValueError("a bug")])
def test_a_teacher_of_the_callers_is_given_back_as_it_came(tmp_path, error):
    teacher = norm(1).train()
    teacher[2].eval()
    teacher[1].bias.requires_grad_(False)
    modes = {module: module.training for module in teacher.modules()}
    flags = [parameter.requires_grad for parameter in teacher.parameters()]
    before = state(teacher)
    how = {"data": images(28), "name": "run", "runs": tmp_path, "display": Stops(error), **HOW}
    if error is None:
        tutelage.distill(student=norm(), teacher=teacher, **how)
    else:
        with pytest.raises(type(error)):
            tutelage.distill(student=norm(), teacher=teacher, **how)
    assert {module: module.training for module in teacher.modules()} == modes
    assert [parameter.requires_grad for parameter in teacher.parameters()] == flags
    assert same(state(teacher), before)


class Counting(nn.Module):
    """Changes a buffer whenever it is called."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, values):
        self.calls += 1
        return values


class Scaled(nn.Module):
    """Has parameters and buffers of its own beside submodules."""

    def __init__(self):
        super().__init__()
        self.scale, self.inner = nn.Parameter(torch.ones(()), requires_grad=False), convolution()
        self.register_buffer("shift", torch.full((3,), 0.5), persistent=False)

    def forward(self, images):
        return self.inner(images) * self.scale + self.shift


def in_place():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), Counting(), nn.Flatten(), nn.Linear(144, 3))
    network[0].register_forward_hook(lambda *_: None)
    return network


def laid_out():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3)).to(
        memory_format=torch.channels_last
    )


def marks(network):
    """Everything that a network may have come with."""
    modules = list(network.modules())
    tensors = [*network.named_parameters(), *network.named_buffers()]
    return (
        [
            (m.training, getattr(m, "inplace", None), list(m._forward_hooks), list(m._forward_pre_hooks))
            for m in modules
        ],
        [(n, t.requires_grad, t.device, t.dtype, t.stride(), t.grad, t.tolist()) for n, t in tensors],
    )


TEACHERS = {
    "normed": norm,
    "in place": in_place,
    "laid out": laid_out,
    "scaled": Scaled,
    "adopted": lambda: tutelage.models.adopt(norm(1), classes=3),
}


@pytest.mark.parametrize("kind", TEACHERS)
def test_a_teacher_of_any_kind_is_as_it_came_after_ctrl_c_an_error_and_a_run(tmp_path, kind):
    teacher, student = TEACHERS[kind]().train(), convolution()
    next(teacher.parameters()).requires_grad_(False)
    came = marks(teacher)
    how = {"data": images(28), "runs": tmp_path, **HOW, "precision": "fp64"}
    if kind == "in place":
        pairs = {"student_taps": ["1"], "teacher_taps": ["1"]}
        how["objective"] = [{"kd": None}, {"attention_transfer": pairs}]
    for error in (KeyboardInterrupt(), ValueError("a bug"), None):
        with contextlib.nullcontext() if error is None else pytest.raises(type(error)):
            name = type(error).__name__
            run = tutelage.distill(student=student, teacher=teacher, **how, name=name, display=Stops(error))
        assert marks(teacher) == came
    with pytest.raises(RecipeError):  # before it begins
        tutelage.distill(student=student, teacher=teacher, **how, name=name)
    with pytest.raises(InvalidTypeError):
        tutelage.compare(student="mlp:4", teacher=teacher, data="digits", objectives={"kd": "kd"})
    assert marks(teacher) == came
    assert run.student is student
    assert not any(module.training for module in student.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in student.modules())


@pytest.mark.parametrize("whole", [True, False])
def test_layers_of_both_are_refused_and_nothing_is_changed(tmp_path, whole):
    teacher = norm(1)
    student = teacher if whole else nn.Sequential(nn.Flatten(), teacher[1], nn.ReLU(), nn.Linear(8, 3))
    how = {"data": images(28), "name": "run", "runs": tmp_path, **HOW}
    got = ["the whole student", "the whole teacher"] if whole else ["the student's 1", "the teacher's 1"]
    with refused(InvalidValueError, "student and teacher", got=got, suggests="copy.deepcopy(teacher)"):
        tutelage.distill(student=student, teacher=teacher, **how)
    assert all(p.requires_grad for p in (*student.parameters(), *teacher.parameters()))
    assert all(module.training for module in (*student.modules(), *teacher.modules()))
    assert is_untouched(tmp_path / "run")
    before = student[1].weight.detach().clone()
    tutelage.distill(student=student, teacher=copy.deepcopy(teacher), **how)
    assert not torch.equal(student[1].weight, before)
