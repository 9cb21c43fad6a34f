"""The disk that runs need."""

from __future__ import annotations

import pytest

from tutelage import config, data
from tutelage.config.schema import Recipe
from tutelage.runs.disk import run_size, size_of_all
from tutelage.runs.networks import create_student


@pytest.fixture
def digits():
    return data.open_data(data.DataSettings(source="digits"))


def test_the_disk_of_several_runs_is_that_of_their_students_at_their_own_sizes(digits, tmp_path):
    recipes = [config.parse(Recipe, {"name": f"s{k}", "student": {"name": "mlp:16", "size": k}}) for k in (8, 32)]
    alone = [run_size(recipe, create_student(recipe.student, digits, seed=0)) for recipe in recipes]
    assert alone[1] > 1.5 * alone[0]
    assert size_of_all([(recipe, tmp_path / recipe.name) for recipe in recipes], digits, False) == sum(alone)
