"""Pages of the repository outside docs/: they are read where they lie, so that links hold on a code host too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.project import Project

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / "README.md"
"""The first page of the code host, as the index is of the site: links to the one lead to the other."""


def outside() -> dict[str, Path]:
    """The pages by their name on the site: ``contributing``, ``benchmarks/results/ag-news/README``."""
    top = {path.stem.lower(): path for path in ROOT.glob("*.md") if path != HOME}
    results = {str(path.relative_to(ROOT).with_suffix("")): path for path in ROOT.glob("benchmarks/**/*.md")}
    return top | results


class Repository(Project):
    """The pages below docs/, and those outside."""

    def discover(self, *arguments: Any, **named: Any) -> set[str]:
        super().discover(*arguments, **named)
        for name, path in outside().items():
            self.docnames.add(name)
            self._path_to_docname[path] = name
            self._docname_to_path[name] = path
        self._path_to_docname[HOME] = "index"
        self._path_to_docname[ROOT / "benchmarks" / "results" / "README.md"] = "project/records"
        return self.docnames


def add_pages(app: Sphinx) -> None:
    app.project.__class__ = Repository


def give_title(app: Sphinx, name: str, source: list[str]) -> None:
    """A generated table has no heading: its folder says what it is of."""
    path = Path(app.env.doc2path(name))
    if path.is_relative_to(ROOT / "benchmarks") and not source[0].startswith("# "):
        source[0] = f"# {path.parent.name}: {path.stem}\n\n{source[0]}"


def to_readme(app: Sphinx, page: nodes.document) -> None:
    """A link to a folder leads to its README.md, which a code host shows with it."""
    for node in page.findall(pending_xref):
        if node["reftype"] == "myst" and not node["refdomain"]:
            _, folder = app.env.relfn2path(node["reftarget"], node["refdoc"])
            if name := app.project._path_to_docname.get(Path(folder) / "README.md"):
                node["refdomain"], node["reftarget"], node["reftargetid"] = "doc", name, None


def without_last_lines(app: Sphinx, page: nodes.document) -> None:
    """Examples of a session end in an empty line, as doctest reads them to the end of the block."""
    for block in page.findall(nodes.literal_block):
        block.rawsource = block.rawsource.rstrip("\n")
        block[:] = [nodes.Text(block.rawsource)]


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("builder-inited", add_pages)
    app.connect("source-read", give_title)
    app.connect("doctree-read", to_readme)
    app.connect("doctree-read", without_last_lines)
    return {"parallel_read_safe": True}
