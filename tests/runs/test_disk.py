"""The disk that runs need."""

from __future__ import annotations

import errno
import re

import pytest

from tutelage import config, data
from tutelage.config.schema import Recipe
from tutelage.errors import StorageError
from tutelage.runs.disk import MARGIN, require_room, run_size, size_of_all
from tutelage.runs.networks import create_student


@pytest.fixture
def digits():
    return data.open_data(data.DataSettings(source="digits"))


def test_the_disk_of_several_runs_is_that_of_their_students_at_their_own_sizes(digits, tmp_path):
    recipes = [config.parse(Recipe, {"name": f"s{k}", "student": {"name": "mlp:16", "size": k}}) for k in (8, 32)]
    alone = [run_size(recipe, create_student(recipe.student, digits, seed=0)) for recipe in recipes]
    assert alone[1] > 1.5 * alone[0]
    assert size_of_all([(recipe, tmp_path / recipe.name) for recipe in recipes], digits, False) == sum(alone)


def test_too_little_room_says_what_is_needed_and_free(small_disk):
    require_room("run a", small_disk / "runs" / "a", 1e5, "or elsewhere")
    with pytest.raises(StorageError) as caught:
        require_room("run a", small_disk / "runs" / "a", 1e6, "or elsewhere")
    assert (caught.value.what, caught.value.errno, caught.value.exit_code) == ("run a", errno.ENOSPC, 1)
    assert f"{1e6 * MARGIN / 1e6:.1f} MB" in caught.value.expected
    assert re.fullmatch(r"0\.\d MB", caught.value.got)
    assert list(small_disk.iterdir()) == []
