"""Every page whose blocks do something is played by a test."""

from __future__ import annotations

import re
from pathlib import Path

from tests._helpers import ROOT
from tests.pages.harness import PLAYED, blocks_of


def test_every_page_with_code_is_played():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    names = [str(page.relative_to(ROOT)) for page in pages]
    with_code = {name for name in names if any(block.language in PLAYED for block in blocks_of(name))}
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert with_code - set(re.findall(r'"((?:docs/)?[\w/-]+\.md)"', tests)) == set()
