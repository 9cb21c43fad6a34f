"""What is said of presets without torch."""

import json
import subprocess
import sys
from pathlib import Path

from tutelage import config
from tutelage.config import schema
from tutelage.objectives import PRESETS, from_spec, registry
from tutelage.settings.objective import SIGNATURES, arguments_to_recipe


def test_the_committed_table_is_that_of_the_presets():
    path = Path(schema.__file__).parent / "objectives.json"
    assert path.read_text() == registry.signatures_json(), "type make generated"


def test_the_table_says_what_the_presets_signatures_say():
    table = schema.built_in_presets()
    built_in = [name for name in PRESETS if registry.is_built_in(name)]
    assert list(table) == built_in
    for name in built_in:
        assert list(table[name]) == list(SIGNATURES[name])
        for key, argument in SIGNATURES[name].items():
            assert table[name][key].kind == argument.kind
            ours, theirs = (
                arguments_to_recipe({key: argument.default}),
                arguments_to_recipe({key: table[name][key].default}),
            )
            assert ours == theirs


def test_each_preset_is_built_from_its_specification():
    recipe = config.parse(config.Recipe, {"name": "x", "student": "mlp:8", "objective": "wttm"})
    objective = from_spec(recipe.objective)
    assert objective.spec == recipe.objective
    assert objective.name == recipe.objective.name == "wttm"


def test_a_recipe_is_read_without_torch():
    code = """
import json, sys
from tutelage import config
from tutelage.errors import RecipeError
recipe = config.parse(config.Recipe, {"name": "x", "student": "mlp:8", "objective": [{"kd": {"temperature": 2}}]})
text = config.dump(recipe)
try:
    config.parse(config.Recipe, {"name": "x", "student": "mlp:8", "objective": {"kd": {"temprature": 2}}})
except RecipeError as error:
    print(json.dumps([sorted({"torch", "numpy", "torchvision"} & set(sys.modules)), str(error)]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy, message = json.loads(done.stdout)
    assert heavy == []
    assert message.startswith("recipe: objective.kd.temprature: expected an argument of kd (temperature, weight,")
    assert message.endswith("did you mean temperature?")
