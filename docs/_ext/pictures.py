"""The directive ``ttm-picture``: a picture of `picture_figures` with its slider, drawn by the library.

    ```{ttm-picture} power
    What is seen, as a caption.
    ```

The page holds the picture at one position as SVG, by ``tutelage.report.svg``, for paper and for browsers without
JavaScript, and the points of all positions for plotly.js, the package's own copy. Nothing comes from elsewhere.
"""

from __future__ import annotations

import gzip
import html
import json
import shutil
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from picture_figures import LOGITS, PICTURES, Picture, significant
from sphinx.application import Sphinx

from tutelage.report import html as report
from tutelage.report import svg

HERE = Path(__file__).parent
SCRIPTS = ("plotly-basic.min.js", "pictures.js")


def points(picture: Picture) -> dict[str, Any]:
    """Return the figures of the first position, and of each position the traces' points that differ from them."""
    drawn = [[figure.to_plotly_json() for figure in position.figures] for position in picture.positions]

    def changed(trace: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
        return {axis: significant(trace[axis]) for axis in ("x", "y") if trace[axis] != other[axis]}

    def moved(figure: dict[str, Any], first: dict[str, Any]) -> list[dict[str, Any]]:
        return [changed(*pair) for pair in zip(figure["data"], first["data"], strict=True)]

    first = drawn[0]
    for figure in first:
        figure["layout"].pop("template", None)
    return {
        "figures": first,
        "positions": [
            {
                "value": position.value,
                "reading": position.reading,
                "moved": [moved(*pair) for pair in zip(each, first, strict=True)],
            }
            for position, each in zip(picture.positions, drawn, strict=True)
        ],
    }


def markup(name: str, picture: Picture) -> str:
    """Return the picture as HTML, without its caption."""
    start = picture.positions[picture.start]
    panels = "".join(
        f'<div class="panel"><div class="plot" role="img" aria-label="{html.escape(figure.layout.title.text)}" hidden>'
        f'</div><div class="still">{svg.static(figure)}</div></div>'
        for figure in start.figures
    )
    data = json.dumps(points(picture), separators=(",", ":"), ensure_ascii=False).replace("</", "<\\/")
    return f"""
<p class="picture-title">{html.escape(picture.title)}</p>
<p class="control" hidden><label for="slide-{name}">{html.escape(picture.slider)}</label>
<input id="slide-{name}" type="range" min="0" max="{len(picture.positions) - 1}" value="{picture.start}" step="1"
aria-valuetext="{html.escape(start.value)}"></p>
<p class="reading" aria-live="polite"><output for="slide-{name}">{html.escape(start.value)}</output>
<span>{html.escape(start.reading)}</span></p>
<div class="panels">{panels}</div>
<script type="application/json">{data}</script>
"""


class TTMPicture(Directive):
    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        if name not in PICTURES:
            raise self.error(f"ttm-picture: expected one of {', '.join(PICTURES)}, got {name!r}")
        env = self.state.document.settings.env
        env.note_dependency(str(LOGITS))
        env.note_dependency(str(HERE / "picture_figures.py"))
        env.metadata[env.docname]["has-pictures"] = True
        caption = nodes.container(classes=["caption"])
        self.state.nested_parse(self.content, self.content_offset, caption)
        before = nodes.raw(
            "",
            f'<figure class="picture" id="picture-{name}">{markup(name, PICTURES[name]())}<figcaption>',
            format="html",
        )
        return [before, caption, nodes.raw("", "</figcaption></figure>", format="html")]


def write_scripts(app: Sphinx) -> None:
    """Lay plotly.js, as the package holds it, and what moves the pictures beside the site's other files."""
    static = Path(app.outdir) / "_static"
    static.mkdir(parents=True, exist_ok=True)
    (static / SCRIPTS[0]).write_bytes(gzip.decompress(report.PLOTLY.read_bytes()))
    for name in (SCRIPTS[1], "pictures.css"):
        shutil.copy(HERE / name, static / name)


def add_scripts(app: Sphinx, page: str, *_: Any) -> None:
    if app.env.metadata.get(page, {}).get("has-pictures"):
        app.add_css_file("pictures.css")
        for name in SCRIPTS:
            app.add_js_file(name, loading_method="defer")


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("ttm-picture", TTMPicture)
    app.connect("builder-inited", write_scripts)
    app.connect("html-page-context", add_scripts)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
