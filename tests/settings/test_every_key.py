"""Every key of a recipe has a test that fails without it, named beside it in ``tests_of_keys.yaml``."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest
import yaml
from docs import key_tables
from tests._helpers import ROOT

TESTS = yaml.safe_load(Path(__file__).with_name("tests_of_keys.yaml").read_text(encoding="utf-8"))


@cache
def functions(path: str) -> tuple[str, set[str]]:
    source = (ROOT / "tests" / path).read_text(encoding="utf-8")
    return source, {node.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("section", key_tables.SECTIONS)
def test_every_key_has_its_test(section: str) -> None:
    assert TESTS[section].keys() == {row[0].strip("`") for row in key_tables.SECTIONS[section]}
    for key, test in TESTS[section].items():
        path, _, name = test.partition("::")
        source, names = functions(path)
        assert name in names, f"{key}: {test} is not there"
        assert re.search(rf"\b{key}\b", source), f"{key}: {path} does not name it"
