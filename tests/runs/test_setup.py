"""What a run consists of, and what it needs."""

from tutelage import config
from tutelage.config.schema import Recipe
from tutelage.runs.setup import steps_of


def test_a_run_s_steps_are_those_of_its_stages():
    stages = [{"epochs": 2}, {"epochs": 3, "batch_size": 40}, {"epochs": 1, "batch_size": 1000}]
    recipe = config.parse(Recipe, {"name": "x", "student": "mlp:8", "batch_size": 30, "stages": stages})
    assert steps_of(recipe, 100) == 2 * 4 + 3 * 3 + 1
    assert [steps_of(recipe, 100, stages=k) for k in range(4)] == [0, 8, 17, 18]
