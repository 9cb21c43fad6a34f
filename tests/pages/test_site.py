"""The site: what it is made of, and of the built pages links, titles, pictures, keys, width and contrast."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from tests._helpers import ROOT
from tests._helpers.browser import BROWSER, browser

import tutelage
from tutelage import errors

DOCS = ROOT / "docs"
PACKAGES = ("objectives", "losses", "targets", "kernels", "taps", "models", "data", "config")
"""Those all of whose names are in the reference, with the module of errors, of which it has the kinds."""


@pytest.fixture(scope="module")
def reference():
    sys.path.insert(0, str(DOCS / "_ext"))
    yield importlib.import_module("reference")
    sys.path.remove(str(DOCS / "_ext"))


@pytest.fixture(scope="module")
def documented(reference):
    """Every name of the reference, as often as it is there."""
    pages = [page.read_text(encoding="utf-8") for page in sorted((DOCS / "api").glob("*.md"))]
    blocks = [block.groups() for page in pages for block in reference.BLOCK.finditer(page)]
    return Counter(str(each) for block in blocks for each in reference.chosen(*block))


# The reference, from its source


def test_every_public_name_is_in_the_reference_once(reference, documented):
    expected = {str(each) for name in PACKAGES for each in reference.public(f"tutelage.{name}").values()}
    kinds = [each for each in vars(errors).values() if isinstance(each, type) and each.__module__ == errors.__name__]
    expected |= {f"tutelage.errors.{kind.__name__}" for kind in kinds}
    expected |= {f"tutelage.{name}" for name in tutelage.__all__} - {"tutelage.TutelageError", "tutelage.__version__"}
    expected -= {f"tutelage.{name}" for name in (*PACKAGES, "errors")}
    assert len(expected) > 200
    assert expected - set(documented) == set()
    assert [name for name, times in documented.items() if times > 1] == []


def test_lazy_packages_hand_on_all_that_they_list(reference):
    for name in ("tutelage.models", "tutelage.data", "tutelage.kernels"):
        assert set(reference.public(name)) == set(importlib.import_module(name).__all__)


def test_what_pages_import_is_in_the_reference(documented):
    from tests.pages.harness import blocks_of

    used = set()
    for page in sorted(DOCS.rglob("*.md")):
        for block in blocks_of(str(page.relative_to(ROOT))):
            if block.language == "python":
                nodes = [node for node in ast.walk(ast.parse(block.code)) if isinstance(node, ast.ImportFrom)]
                used |= {(node.module, each.name) for node in nodes for each in node.names}
    used = {f"{module}.{name}" for module, name in used if (module or "").startswith("tutelage.")}
    modules = {name.rpartition(".")[0] for name in documented}
    assert len(used) > 5
    assert used - set(documented) - modules == set()


def test_a_constant_needs_a_text(reference):
    constant = reference.Name("tutelage.errors", "LONGEST_PARTS", "tutelage.errors")
    with pytest.raises(ValueError, match="LONGEST_PARTS is a constant without a text"):
        reference.described(constant)


def test_sections_of_one_paragraph_become_fields(reference):
    lines = ["One line.", "", "Raises: TypeError if", "    it is none.", "Source: A and B,", "1999.", "", "Example:"]
    reference.one_liners(None, "function", "f", None, None, lines)
    assert lines == [
        *("One line.", "", ":Raises: TypeError if", "        it is none.", ":Source: A and B,", "    1999.", ""),
        "Example:",
    ]


def test_signatures_leave_out_what_only_machines_read(reference):
    given = "(*, weight: ~typing.Annotated[float | ~a.B, 'of either sign'] = 1.0, pool: ~a.Pool = <factory>)"
    shown, _ = reference.readable(None, "function", "f", None, None, given, "")
    assert shown == "(*, weight: float | ~a.B=1.0, pool: ~a.Pool=...)"


def test_every_command_and_option_is_on_the_page_of_commands(reference):
    page = reference.commands()
    from tutelage.cli.app import app

    names = [command.name or command.callback.__name__ for command in app.registered_commands]
    assert {"train", "distill"} <= set(names)
    assert [name for name in names if f"\n## tutelage {name}\n" not in page] == []
    assert page.count("- `--dry-run`: Resolve and load everything") >= 4
    assert "Example: `tutelage compare recipes/digits.yaml seeds=5`" in page


# The built site


class Page(HTMLParser):
    """What a page says of itself and of other files."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.pictures: list[str | None] = []
        self.titles: list[str] = []
        self.headings = 0
        self.language: str | None = None
        self._in_body = self._in_title = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.anchors |= {given[key] for key in ("id", "name") if given.get(key)}
        self.headings += tag == "h1"
        if tag == "html":
            self.language = given.get("lang")
        elif tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") not in ("next", "prev", "search", "index", "author"):
            self.loaded.append(given["href"])
        elif tag == "img":
            self.pictures.append(given.get("alt"))
        if tag != "a" and "src" in given:
            self.loaded.append(given["src"])
        self._in_body = self._in_body or tag == "body"
        self._in_title = tag == "title" and not self._in_body  # pictures have titles too

    def handle_endtag(self, tag):
        self._in_title = False

    def handle_data(self, data):
        if self._in_title and data.strip():
            self.titles.append(data.strip())


def broken(page: Page, pages: dict[Path, Page]) -> list[str]:
    """Links, and files that the page loads, that lead nowhere."""
    found = []
    for link in [*page.links, *page.loaded]:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        target = (page.path.parent / unquote(parts.path)).resolve() if parts.path else page.path
        anchor = unquote(parts.fragment)
        if not target.is_file() or (anchor and target in pages and anchor not in pages[target].anchors):
            found.append(f"{page.path.name}: {link}")
    return found


def elsewhere(page: Page) -> list[str]:
    """What a page loads from another host."""
    styles = [match[1] for match in re.finditer(r"url\(['\"]?([^)'\"]+)", page.path.read_text(encoding="utf-8"))]
    return [each for each in [*page.loaded, *styles] if re.match(r"(https?:)?//", each)]


def faults(page: Page) -> list[str]:
    found = [] if page.language == "en" else [f"language {page.language}"]
    found += [] if len(page.titles) == 1 else [f"titles {page.titles}"]
    found += [] if page.headings == 1 else [f"{page.headings} first headings"]
    found += [f"picture {number} without a text" for number, text in enumerate(page.pictures) if not text]
    return [f"{page.path.name}: {each}" for each in found]


def test_the_checks_see_what_is_wrong(tmp_path):
    (tmp_path / "good.html").write_text(
        '<html lang="en"><title>A</title><body><h1 id="a">A</h1><img src="a.png" alt="A"><a href="#a">a</a></body>'
    )
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "bad.html").write_text(
        '<html><body><h1>B</h1><h1>B</h1><img src="a.png"><script src="https://other.invalid/a.js"></script>'
        '<a href="good.html#b">b</a><a href="gone.html">gone</a><a href="good.html#a">a</a>'
        "<style>url(//x.invalid/f)</style>"
    )
    pages = {path: Page(path) for path in tmp_path.glob("*.html")}
    good, bad = pages[tmp_path / "good.html"], pages[tmp_path / "bad.html"]
    assert (broken(good, pages), elsewhere(good), faults(good)) == ([], [], [])
    assert broken(bad, pages) == ["bad.html: good.html#b", "bad.html: gone.html"]
    assert elsewhere(bad) == ["https://other.invalid/a.js", "//x.invalid/f"]
    assert len(faults(bad)) == 4


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The whole site; a warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet", "--builder", "html"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), *sys.path])}
    done = subprocess.run([*command, DOCS, folder], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder.resolve()


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path) for path in sorted(site.rglob("*.html"))}


@pytest.mark.slow
def test_every_page_and_record_is_on_the_site(site, pages):
    written = [path.relative_to(DOCS) for path in DOCS.rglob("*.md")]
    written += [path.relative_to(ROOT) for path in (ROOT / "benchmarks").rglob("*.md")]
    written += [Path(name) for name in ("contributing.md", "changelog.md", "security.md")]
    assert [str(path) for path in written if site / path.with_suffix(".html") not in pages] == []


@pytest.mark.slow
def test_every_link_and_anchor_leads_somewhere(pages):
    assert sum(len(page.links) for page in pages.values()) > 1000
    assert [link for page in pages.values() for link in broken(page, pages)] == []


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere(site, pages):
    assert [url for page in pages.values() for url in elsewhere(page)] == []
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert re.findall(r"@import|url\(['\"]?(?:https?:)?//[^)]*", styles) == []


@pytest.mark.slow
def test_every_page_has_a_title_a_language_and_texts_for_its_pictures(pages):
    assert sum(len(page.pictures) for page in pages.values()) > 4
    # The page of the search gets its heading with what was found.
    assert [fault for path, page in pages.items() if path.name != "search.html" for fault in faults(page)] == []


@pytest.mark.slow
def test_the_reference_has_what_it_is_asked_for(site, documented):
    from sphinx.util.inventory import InventoryFile

    with (site / "objects.inv").open("rb") as file:
        known = InventoryFile.load(file, "", lambda *parts: "/".join(parts))
    there = {name for kind, names in known.items() if kind.startswith("py:") for name in names}
    assert set(documented) - there == set()


# In a browser


@pytest.fixture(scope="module")
def tab():
    if BROWSER is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on the path")
    with browser() as tab:
        yield tab


@pytest.mark.slow
def test_nothing_is_cut_off_on_a_phone(tab, pages):
    tab.look(480)
    for path in pages:
        tab.open(path)
        assert tab.cut() == [], path
        assert tab.run("document.documentElement.scrollWidth") == 480, path
        assert tab.complaints() == [], path


@pytest.mark.slow
def test_what_would_be_cut_off_is_seen(tab, site, tmp_path):
    tab.look(480)
    tab.open(site / "index.html")
    tab.run("document.querySelector('article p').style.width = '600px'")
    assert [text for text in tab.cut() if "Knowledge distillation" in text]
    page = tmp_path / "bad.html"
    page.write_text("<script>fetch('https://tutelage.invalid/').catch(() => 0); nothing.here()</script>")
    tab.open(page)
    said = tab.complaints()
    assert "https://tutelage.invalid/" in said
    assert any("nothing is not defined" in each for each in said)


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out(tab, site, dark):
    tab.look(1280, dark=dark)
    for name in ("index", "methods", "recipes", "api/losses", "api/commands", "api/data", "contributing", "export"):
        tab.open(site / f"{name}.html")
        assert tab.run(CONTRAST) == {}, name


@pytest.mark.slow
def test_the_check_of_contrast_sees_grey_on_black(tab, site):
    tab.look(1280, dark=True)
    tab.open(site / "index.html")
    tab.run("document.querySelector('article p').style.color = 'rgb(90, 90, 90)'")
    (ratio,) = tab.run(CONTRAST).values()
    assert 2 < ratio < 4.5


@pytest.mark.slow
def test_all_is_reached_by_tab(tab, site):
    tab.look(1280)
    tab.open(site / "recipes.html")
    reached = tabbed(tab, 400)
    assert "Skip to content" in reached[:2]
    assert {"Search", "Toggle navigation of The reference", "SCROLLS"} <= set(reached)
    assert "Toggle site navigation sidebar" not in reached


@pytest.mark.slow
def test_the_menu_of_a_phone_opens_by_a_key(tab, site):
    tab.look(480)
    tab.open(site / "tune.html")
    drawer = "getComputedStyle(document.querySelector('.sidebar-drawer')).visibility"
    assert tab.run(drawer) == "hidden"
    assert not {"Search", "Python"} & set(tabbed(tab, 8))
    tab.open(site / "tune.html")
    while tabbed(tab, 1) != ["Toggle site navigation sidebar"]:
        pass
    tab.press(" ")
    assert tab.run(drawer) == "visible"
    assert {"Search", "Python"} <= set(tabbed(tab, 20))


@pytest.mark.slow
def test_what_has_the_focus_shows_it(tab, site):
    tab.look(1280)
    tab.open(site / "recipes.html")
    for _ in range(60):
        tab.press("Tab")
        assert tab.run(OUTLINED), tab.run("document.activeElement.outerHTML")


@pytest.mark.slow
def test_the_search_finds_without_a_server(tab, site):
    tab.look(1280)
    tab.open(f"{(site / 'search.html').as_uri()}?q=wttm")
    found = tab.run(FOUND)
    assert any("api/losses.html" in link for link in found)


def tabbed(tab, times):
    """The names of what is reached by pressing Tab."""
    names = []
    for _ in range(times):
        tab.press("Tab")
        names.append(tab.run(NAMED))
    return names


NAMED = """(() => {
  const e = document.activeElement;
  return e.matches("pre, .table-wrapper") ? "SCROLLS" : e.ariaLabel || e.textContent.trim();
})()"""
OUTLINED = """(() => {
  const e = document.activeElement, seen = [e, e.nextElementSibling, e.closest(".sidebar-search-container")];
  return e === document.body || seen.some((each) => each && getComputedStyle(each).outlineStyle !== "none");
})()"""
FOUND = """new Promise((found) => {
  const look = () => {
    const links = [...document.querySelectorAll("#search-results li a")].map((each) => each.href);
    const done = links.length && document.querySelector("#search-results").textContent.includes("found");
    done ? found(links) : setTimeout(look, 50);
  };
  look();
})"""
CONTRAST = """(() => {
  // Ratios of WCAG 2 below AA, by the text.
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const linear = (v) => (v <= 10.314 ? v / 3294.6 : ((v / 255 + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = (e) => {
    const colour = numbers(getComputedStyle(e).backgroundColor);
    if (colour.length === 3 || colour[3] > 0.5) return colour;
    return e.parentElement ? behind(e.parentElement) : [255, 255, 255];
  };
  const faint = {}, texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const e = texts.currentNode.parentElement, text = texts.currentNode.data.trim();
    if (!text || !e.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
    const style = getComputedStyle(e), size = parseFloat(style.fontSize);
    const [less, more] = [light(numbers(style.color)), light(behind(e))].sort((a, b) => a - b);
    const ratio = (more + 0.05) / (less + 0.05);
    if (ratio < (size >= 24 || (size >= 18.6 && style.fontWeight >= 700) ? 3 : 4.5)) faint[text] = ratio;
  }
  return faint;
})()"""
