"""What pyproject.toml cannot say: README.md as an index of packages shows it.

An index has no files of the repository, so links and pictures that are relative need an address: `[tool.tutelage]` of
pyproject.toml. Without one links become plain text, and pictures are left out.
"""

import re
import runpy
import tomllib
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
PICTURES = (
    re.compile(r"!\[[^\]\0]*\]\((?P<target>[^)\s]+)\)"),
    re.compile(r"<(?:img|source)\s[^>\0]*?src(?:set)?=\"(?P<target>[^\"\0]+)\"[^>\0]*>"),
)
LINK = re.compile(r"(?<!!)\[(?P<text>(?:!\[[^\]]*\]\([^)]*\)|[^\[\]])*)\]\((?P<target>[^)\s]+)\)")


def long_description(page: str, version: str, *, files: str = "", pictures: str = "") -> str:
    """Return a page of the repository's root whose relative links and pictures are absolute, or gone.

    Args:
        page: Markdown.
        version: of the release.
        files: address of a file to read, with ``{version}`` and ``{path}``; without it links are plain text.
        pictures: address of a picture to show, with the same; without it pictures are left out.
    """

    def placed(match: re.Match[str], template: str, without: str) -> str:
        target = match["target"]
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            return match[0]
        if not template:
            return without
        path = f"README.md{target}" if target.startswith("#") else target
        start, end = (place - match.start() for place in match.span("target"))
        return match[0][:start] + template.format(version=version, path=path) + match[0][end:]

    parts = CODE.split(page)  # every second part is code
    prose = "\0".join(parts[::2])
    for pattern in PICTURES:
        prose = pattern.sub(lambda match: placed(match, pictures, ""), prose)
    prose = LINK.sub(lambda match: placed(match, files, match["text"]), prose)
    parts[::2] = prose.split("\0")
    return "".join(parts)


if __name__ == "__main__":  # setuptools runs it so
    project = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))
    number = runpy.run_path(str(HERE / "src/tutelage/version.py"))["__version__"]
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    shown = long_description(readme, number, **project["tool"].get("tutelage", {}))
    setup(long_description=shown, long_description_content_type="text/markdown")
