"""Every page whose blocks do something is played by a test."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests._helpers import ROOT
from tests.pages.harness import PLAYED, blocks_of

PAGES = ["README.md", "CONTRIBUTING.md", *(str(each.relative_to(ROOT)) for each in (ROOT / "docs").rglob("*.md"))]
WITH_CODE = sorted(page for page in PAGES if any(block.language in PLAYED for block in blocks_of(page)))


@pytest.mark.parametrize("page", WITH_CODE)
def test_every_page_with_code_is_played(page):
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert f'"{page}"' in tests, f"{page} has code: add its row to PAGES of tests/pages/test_pages.py"


def test_no_block_hides_from_the_tests():
    """Blocks that are indented, or whose fence has other marks, are not read; nor are other names of languages."""
    others = {"text", "html", "json", "lua", "toml"}
    for page in WITH_CODE:
        text = (ROOT / page).read_text(encoding="utf-8")
        fences = re.findall(r"^([ >]*)(`{3,}|~{3,})([^\s`{]*)", text, flags=re.MULTILINE)
        for indent, marks, language in fences:
            assert not indent, f"{page}: an indented {marks}{language}"
            assert marks == "```" or not language, f"{page}: {marks}{language}"
            assert language in {"", *PLAYED, *others}, f"{page}: a block of {language}"
