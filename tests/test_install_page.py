"""docs/install.md shows what pyproject.toml has, and what was measured."""

from __future__ import annotations

import importlib
import json
import re
import sys
import tomllib

from packaging.requirements import Requirement
from tests._helpers import ROOT

PAGE = (ROOT / "docs/install.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
INSTALLED = json.loads((ROOT / "benchmarks/results/install.json").read_text(encoding="utf-8"))
TESTED = json.loads((ROOT / "benchmarks/results/pythons.json").read_text(encoding="utf-8"))
FOR_WORK = {"dev", "docs"}


def table(heading):
    section = re.split(rf"^## {heading}$", PAGE, flags=re.MULTILINE)[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]
    return [tuple(row) for row in rows[2:]]


def millions(size):
    return f"{size / 1e6:,.0f}"


def names(extra):
    """What an extra brings, with links to the extras that it includes."""
    required = [Requirement(each) for each in PROJECT["optional-dependencies"][extra]]
    return ", ".join(
        " ".join(f"`{one}`" for one in sorted(each.extras)) if each.name == "tutelage" else each.name
        for each in required
    )


def rooms():
    """The room of each extra in the newest Python's record that has it."""
    found = {}
    for record in INSTALLED.values():
        found |= {extra: millions(one["bytes"]) for extra, one in record["extras"].items() if one["packages"]}
    return found


def test_extras_are_those_of_the_project_with_their_measured_room():
    extras = sorted(set(PROJECT["optional-dependencies"]) - FOR_WORK - {"all"})
    expected = [(f"`{extra}`", names(extra), rooms().get(extra, "not measured")) for extra in extras]
    (everything,) = PROJECT["optional-dependencies"]["all"]
    left_out = ", ".join(f"`{extra}`" for extra in sorted(set(extras) - Requirement(everything).extras))
    expected.append(("`all`", f"all but {left_out}", rooms()["all"]))
    shown = table("Extras")
    assert [row[:3] for row in shown] == expected
    assert all(row[3].endswith(".") for row in shown)


def test_times_and_rooms_are_those_measured():
    expected = []
    for record in INSTALLED.values():
        for step in record["steps"]:
            what = f"`[{step['extra']}]` on top" if step["extra"] else "required packages"
            software = f"{record['distribution']}, torch {record['software']['torch']}"
            software += f", load {step['load']}" if "load" in step else ""
            sizes = (str(step["packages"]), millions(step["bytes"]), f"{step['seconds']:.0f}")
            expected.append((record["software"]["python"], what, *sizes, software))
    assert table("Time and room") == expected


def test_pythons_are_those_tested_and_those_of_the_project():
    shown = {row[0]: row[1:] for row in table("Pythons")}
    for version, record in TESTED.items():
        counts = [str(record["passed"]), str(record["failed"] + record["errors"]), str(record["skipped"])]
        software = f"{record['python']}, {record['distribution']}, torch {record['torch']}"
        assert list(shown[version][1:]) == [*counts, software]
    assert list(shown) == list(TESTED)
    said = [each.rpartition(" ")[2] for each in PROJECT["classifiers"] if "Python :: 3." in each]
    assert said == list(shown)
    assert PROJECT["requires-python"] == f">={said[0]}"


def test_the_room_of_an_extra_counts_what_its_libraries_need_too():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        install = importlib.import_module("install")
    finally:
        sys.path.pop(0)
    assert {"pluggy", "iniconfig"} <= install.needed("pytest")
    assert "pydantic-core" in install.needed("pydantic")
    assert "argcomplete" not in install.needed("pytest", "dev")
