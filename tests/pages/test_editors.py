"""The page on editors: the file that it has you write, and what it says of it."""

import json

import jsonschema
import yaml
from tests.pages.harness import blocks_of, play
from typer.testing import CliRunner

from tutelage.cli.app import app
from tutelage.config.files import JSON_SCHEMA

PAGE = "docs/editors.md"
ELSEWHERE = {
    "pip install check-jsonschema": "needs the network",
    "check-jsonschema --schemafile": "a program of its own; its library is used in tests/config",
}


def test_the_page_is_played(tmp_path):
    play(PAGE, tmp_path, skip=ELSEWHERE)
    schema = json.loads((tmp_path / "recipe.schema.json").read_text(encoding="utf-8"))
    assert schema == json.loads(JSON_SCHEMA.read_text(encoding="utf-8"))
    assert "draft-07" in schema["$schema"]
    faults = {"student: mlp:8\nepoch: 3", "student: mlp:8\nepochs: many", "student: mlp:8\noptimizer: {lr: -1}"}
    for text in faults:  # what the first paragraph says is underlined
        assert not jsonschema.Draft7Validator(schema).is_valid({"name": "r", **yaml.safe_load(text)})
    (settings,) = (json.loads(block.code) for block in blocks_of(PAGE) if block.language == "json")
    assert settings["yaml.schemas"].keys() == {"./recipe.schema.json"}


def test_a_first_recipe_names_the_file_beside_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = ["init", "--data", "digits", "--teacher", "mlp:16", "--student", "mlp:8", "--epochs", "1"]
    without = CliRunner().invoke(app, [*asked, "--out", "a.yaml"], catch_exceptions=False)
    assert "tutelage list schema > recipe.schema.json" in without.output
    (tmp_path / JSON_SCHEMA.name).write_text(JSON_SCHEMA.read_text(encoding="utf-8"), encoding="utf-8")
    beside = CliRunner().invoke(app, [*asked, "--out", "b.yaml"], catch_exceptions=False)
    assert "list schema" not in beside.output
    line = f"\n# yaml-language-server: $schema={JSON_SCHEMA.name}\n"
    assert [line in (tmp_path / name).read_text(encoding="utf-8") for name in ("a.yaml", "b.yaml")] == [True, True]
    schema = json.loads(JSON_SCHEMA.read_text(encoding="utf-8"))
    recipe = yaml.safe_load((tmp_path / "b.yaml").read_text(encoding="utf-8"))
    assert jsonschema.Draft7Validator(schema).is_valid(recipe)
