"""What a run consists of, and what it needs."""

import pytest
import torch

from tutelage import config, objectives
from tutelage.config.schema import Network, Recipe
from tutelage.errors import RecipeError
from tutelage.runs.preflight import require_teacher
from tutelage.runs.setup import (
    build_objectives,
    check_teacher,
    needs_teacher,
    steps_of,
    torch_settings,
)


def recipe(**keys):
    return config.parse(Recipe, {"name": "x", "student": "mlp:8", **keys})


def test_a_run_s_steps_are_those_of_its_stages():
    stages = [{"epochs": 2}, {"epochs": 3, "batch_size": 40}, {"epochs": 1, "batch_size": 1000}]
    staged = recipe(batch_size=30, stages=stages)
    assert steps_of(staged, 100) == 2 * 4 + 3 * 3 + 1
    assert [steps_of(staged, 100, stages=k) for k in range(4)] == [0, 8, 17, 18]


@pytest.mark.parametrize(
    ("keys", "needs"),
    [
        ({}, False),
        ({"teacher": "mlp:16"}, False),  # one that no objective asks
        ({"objective": "teacher_free_kd"}, False),
        ({"objective": "kd"}, True),
        ({"objective": ["cross_entropy", {"kd": {"supervised": 0}}]}, True),
        ({"stages": [{"objective": "cross_entropy"}, {"objective": "kd"}]}, True),
        ({"objective": "kd", "stages": [{"objective": "cross_entropy"}]}, False),  # of no stage
    ],
)
def test_a_run_needs_a_teacher_where_an_objective_of_any_stage_does(keys, needs):
    planned = recipe(**keys)
    assert needs_teacher(planned) == needs_teacher(build_objectives(planned)) == needs


def test_a_run_that_lacks_its_teacher_is_refused_with_what_needs_one():
    check_teacher(None, [objectives.cross_entropy()])
    check_teacher(Network(name="mlp:16"), [objectives.kd()])
    with pytest.raises(RecipeError) as error:
        check_teacher(None, [objectives.cross_entropy(), objectives.kd()])
    assert str(error.value) == (
        "teacher: expected one for objective kd, got none; add teacher=..., such as a run's folder"
    )
    assert require_teacher("mlp:16", "to distil") == "mlp:16"
    with pytest.raises(RecipeError, match=r"^teacher: expected one to distil, got none; add teacher=.*, or train$"):
        require_teacher(None, "to distil", instead="train")


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("before", [True, False])
def test_cudnn_times_its_algorithms_unless_a_run_is_deterministic(before, deterministic, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", before)
    recipe = config.parse(Recipe, {"name": "run", "student": "mlp:8", "deterministic": deterministic})
    with torch_settings(recipe):
        assert torch.backends.cudnn.benchmark is not deterministic
    assert torch.backends.cudnn.benchmark is before
