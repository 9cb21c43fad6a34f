"""Photograph every page of the built site, at two widths, light and dark: ``make docs-photos``, before a release.

``python docs/photographs.py build/site FOLDER WORD`` photographs those pages whose name has the word. Says what is cut
off at the right.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests._helpers.browser import browser


def photograph(site: Path, folder: Path, word: str = "") -> list[str]:
    pages = [(str(page.relative_to(site).with_suffix("")).replace("/", "-"), page) for page in site.rglob("*.html")]
    cut = []
    with browser() as tab:
        for name, page in sorted(pages):
            if word not in name:
                continue
            tab.open(page)
            for width in (1280, 480):
                for scheme in ("light", "dark"):
                    tab.look(width, dark=scheme == "dark")
                    tab.photograph(folder / f"{name}-{width}-{scheme}.png")
                cut += [f"{name}, {width} pixels wide: {text}" for text in tab.cut()]
    return cut


if __name__ == "__main__":
    site, folder, *word = sys.argv[1:]
    Path(folder).mkdir(parents=True, exist_ok=True)
    if cut := photograph(Path(site), Path(folder), *word):
        sys.exit("\n".join(cut))
