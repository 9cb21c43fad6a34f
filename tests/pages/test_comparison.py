"""The page that compares projects: what it says of this one is what the code has."""

from __future__ import annotations

import re
import tomllib

from tests._helpers import ROOT

from tutelage import objectives
from tutelage.config.schema import known_presets
from tutelage.exports import registry
from tutelage.settings.objective import REQUIRED

PAGE = "docs/comparison.md"
HEADINGS = ("What they are", "Methods", "Networks and teachers", "Training", "What comes out")


def tables():
    """The cells of each table by its heading and the tool; links are their texts."""
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    found = {}
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        heading, _, rest = section.partition("\n")
        lines = [line for line in rest.splitlines() if line.startswith("|")]
        cells = [
            [re.sub(r"\[([^]]+)\]\([^)]*\)", r"\1", cell.strip()) for cell in line.strip("|").split("|")]
            for line in lines
        ]
        if cells:
            found[heading] = {row[0]: dict(zip(cells[0][1:], row[1:], strict=True)) for row in cells[2:]}
    return found


def test_each_table_has_each_tool():
    found = tables()
    assert tuple(found) == HEADINGS
    tools = list(found["Methods"])
    assert tools[0] == "tutelage"
    assert {"torchdistill", "timm", "lightly-train", "TRL", "DistillKit", "Keras"} <= set(tools)
    for heading, rows in found.items():
        assert list(rows) == tools, heading
        assert all(cell for row in rows.values() for cell in row.values()), heading
        assert max(map(len, rows["tutelage"])) < 30, "a column's name is to fit a telephone"


def test_what_it_says_of_this_project_is_so():
    ours = {heading: rows["tutelage"] for heading, rows in tables().items()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert ours["What they are"]["Packages it requires"] == str(len(project["dependencies"]))
    assert project["license"].startswith("Apache-2.0")
    assert ours["What they are"]["Licence"] == "Apache 2.0"
    of_features = 0
    for name, preset in objectives.PRESETS.items():
        needed = {key: 1 for key, argument in known_presets()[name].items() if argument.default is REQUIRED}
        needs = preset.build(**needed).needs
        of_features += any("tap" in key for key in known_presets()[name]) or bool(needs.student_taps)
    assert ours["Methods"]["Losses"].startswith(f"{len(objectives.PRESETS)} objectives")
    assert ours["Methods"]["Of features"] == f"yes, {of_features} of them"
    assert {"ttm", "wttm"} <= objectives.PRESETS.keys()
    files = ours["What comes out"]["Files for other programs"].lower().replace(".", "-")
    assert all(name in files for name in registry.FORMATS)


def test_each_release_is_named_once_and_dated():
    rows = tables()["What they are"]
    for tool, row in rows.items():
        if tool not in ("tutelage", "DistillKit"):
            assert re.fullmatch(r"\d+\.\d+\.\d+, \d{1,2} \w{3} 2026", row["Release read"]), tool
