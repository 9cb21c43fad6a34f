"""The page that explains TTM and WTTM: its code, the numbers of its pictures, and the pictures in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from tests._helpers import ROOT
from tests._helpers.browser import BROWSER, browser
from tests.pages.harness import play

PAGE = "docs/explained.md"
CIFAR100 = ROOT / ".." / "shared" / "data" / "cifar100"
MOVED = """(async () => {
  const heights = () => Array.from(document.querySelectorAll(".js-line"), (path) => path.getAttribute("d")).join();
  const readings = () => Array.from(document.querySelectorAll(".reading"), (text) => text.textContent).join();
  const settled = () => new Promise((resolve) => setTimeout(resolve, 1500));
  const colour = () => getComputedStyle(document.querySelector(".main-svg")).background;
  await settled();
  const before = [heights(), readings()];
  const sliders = Array.from(document.querySelectorAll(".picture input"));
  for (const slider of sliders) {
    slider.value = Number(slider.value) + 2;
    slider.dispatchEvent(new Event("input"));
  }
  await settled();
  const light = colour();
  document.body.dataset.theme = "dark";
  await settled();
  return {
    heights: before[0] !== heights(), readings: before[1] !== readings(), repainted: light !== colour(),
    valued: sliders.map((slider) => slider.getAttribute("aria-valuetext")),
    wide: document.documentElement.scrollWidth > innerWidth,
    papers: document.querySelectorAll('img.paper[alt]:not([alt=""])[src^="data:image/svg"]').length,
  };
})()"""


@pytest.fixture
def drawn(monkeypatch):
    """The module of the pictures' numbers, as the site's builder imports it."""
    monkeypatch.syspath_prepend(ROOT / "docs" / "_ext")
    import picture_figures

    return picture_figures


@pytest.fixture(scope="module")
def logits():
    return json.loads((ROOT / "docs" / "picture_logits.json").read_text())


def softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def divergence(a, b):
    return (a * np.log(a / b)).sum(-1)


def test_the_pages_code(tmp_path):
    play(PAGE, tmp_path)


def test_the_page_types_the_logits_of_the_pictures_image(drawn, logits):
    typed = re.search(r">>> v = (\[.*\])", (ROOT / PAGE).read_text())
    assert json.loads(typed[1]) == logits["digits"]["logits"][drawn.SAMPLE]
    assert logits["digits"]["labels"][drawn.SAMPLE] == 5


@pytest.mark.slow
@pytest.mark.parametrize(("name", "source"), [("digits", "digits"), ("cifar100", f"hf:{CIFAR100}")])
def test_the_logits_are_those_of_the_recorded_teachers(name, source, logits):
    from docs import picture_logits

    if name == "cifar100" and not CIFAR100.is_dir():
        pytest.skip("CIFAR-100 is not beside the repository")
    rows, labels = picture_logits.logits_of(name, source)
    assert labels == logits[name]["labels"]
    np.testing.assert_allclose(rows, logits[name]["logits"], atol=0.02)


def test_the_numbers_of_the_pictures_are_those_of_the_formulas(drawn, logits):
    v = np.array(logits["digits"]["logits"][drawn.SAMPLE])
    p = softmax(v)
    for gamma in drawn.GAMMAS:
        p_gamma, U = drawn.power(gamma)
        np.testing.assert_allclose(U, (p**gamma).sum(), rtol=1e-9)
        np.testing.assert_allclose(p_gamma, p**gamma / (p**gamma).sum(), rtol=1e-9)
        for name in ("digits", "cifar100"):
            each = softmax(np.array(logits[name]["logits"]))
            order = -(each * np.log(each)).sum(-1)
            np.testing.assert_allclose(drawn.weights(name, gamma), (each**gamma).sum(-1)[order.argsort()], rtol=1e-9)
    s = np.array([0.0, 0.3, 1.0, 1.4])
    for T in drawn.TEMPERATURES:
        found, p_gamma, q = drawn.matching(T, s.tolist()), softmax(v / T), softmax(s[:, None] * v)
        q_gamma = softmax(s[:, None] * v / T)
        np.testing.assert_allclose(found["kd"], T * divergence(p_gamma, q_gamma), atol=1e-9)
        np.testing.assert_allclose(found["ttm"], divergence(p_gamma, q), atol=1e-9)
        np.testing.assert_allclose(found["kd slope"], (q_gamma - p_gamma) @ v, atol=1e-9)
        np.testing.assert_allclose(found["ttm slope"], (q - p_gamma) @ v, atol=1e-9)
        np.testing.assert_allclose(found["renyi slope"], (q - q_gamma) @ v, atol=1e-9)
    T, parts = drawn.TEMPERATURE, drawn.identity(s.tolist())
    p_gamma = softmax(v / T)
    np.testing.assert_allclose(parts["constant"], -(T - 1) * (p_gamma * np.log(p_gamma)).sum(), rtol=1e-9)
    renyi = np.log((softmax(s[:, None] * v) ** (1 / T)).sum(-1)) / (1 - 1 / T)
    np.testing.assert_allclose(parts["renyi"], -(T - 1) * renyi, rtol=1e-9)
    np.testing.assert_allclose(parts["kd"] + parts["constant"] + parts["renyi"], parts["ttm"], atol=1e-9)


def test_a_picture_says_and_shows_its_numbers(drawn, logits):
    import pictures

    page = (ROOT / PAGE).read_text()
    assert re.findall(r"^```\{ttm-picture\} (\w+)$", page, flags=re.MULTILINE) == list(drawn.PICTURES)
    picture = drawn.PICTURES["power"]()
    p = softmax(np.array(logits["digits"]["logits"][drawn.SAMPLE]))
    held = json.loads(json.dumps(pictures.points(picture)))
    for gamma, position in zip(drawn.GAMMAS, held["positions"], strict=True):
        bars = held["figures"][0]["data"][0] | position["moved"][0][0]
        np.testing.assert_allclose(bars["y"][1::4], p**gamma / (p**gamma).sum(), rtol=1e-4)
        marker = held["figures"][1]["data"][-1] | position["moved"][1][-1]
        np.testing.assert_allclose([marker["x"][0], marker["y"][0]], [gamma, (p**gamma).sum()], rtol=1e-4)
        assert f"U_gamma(p) is {(p**gamma).sum():.2f}" in position["reading"]
    shown = pictures.markup("power", picture)
    assert '<label for="slide-power">' in shown
    assert f'value="{drawn.GAMMAS.index(0.25)}"' in shown
    assert 'aria-valuetext="gamma = 0.25 (T = 4)"' in shown
    assert shown.count("<svg ") == shown.count('class="plot"') == 2
    assert "</script" not in re.search(r"<script type[^>]*>(.*)</script>", shown, flags=re.DOTALL)[1]


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on the path")
@pytest.mark.parametrize("width", [1280, 500])
def test_a_slider_moves_its_picture_and_nothing_complains(tmp_path, drawn, width):
    source, site = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    shutil.copy(ROOT / "docs" / "picture_logits.json", source)
    shutil.copy(ROOT / PAGE, source / "index.md")
    settings = f"import sys; sys.path.insert(0, {str(ROOT / 'docs' / '_ext')!r})\n"
    settings += 'extensions, html_theme, html_title = ["myst_parser", "pictures"], "furo", "pictures"\n'
    (source / "conf.py").write_text(settings + 'suppress_warnings = ["myst.xref_missing"]\n')
    build = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--quiet", source, site]
    assert (done := subprocess.run(build, capture_output=True, text=True, timeout=300)).returncode == 0, done.stderr
    with browser() as tab:
        tab.look(width, 4000)
        tab.open(site / "index.html")
        found = tab.run(MOVED)
        assert tab.complaints() == []
    assert {key: found[key] for key in ("heights", "readings", "repainted", "wide", "papers")} == {
        "heights": True,
        "readings": True,
        "repainted": True,
        "wide": False,
        "papers": 8,
    }
    expected = [drawn.PICTURES[name]() for name in drawn.PICTURES]
    assert found["valued"] == [each.positions[each.start + 2].value for each in expected]
