"""The report in a real browser: it draws, complains of nothing and asks nobody for anything."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass

import pytest
from tests._helpers import synthetic
from tests._helpers.browser import BROWSER
from tests.report.test_html import EVIL, Page

from tutelage import records
from tutelage.report import html, results
from tutelage.report.against_teacher import by_class, certainty
from tutelage.report.curves import by_epoch
from tutelage.report.reading import read

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on the path")
OUTSIDE = "http://tutelage-report.invalid/picture.png"


@dataclass(frozen=True)
class Visit:
    """What a browser made of a page."""

    dom: str
    console: list[str]
    requests: list[str]


def visit(path, room):
    room.mkdir()
    log = room / "net.json"
    options = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
        *("--enable-logging=stderr", "--v=0", "--virtual-time-budget=8000", "--window-size=1200,3000", "--dump-dom"),
    ]
    rooms = [f"--user-data-dir={room / 'profile'}", f"--log-net-log={log}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    done = subprocess.run([BROWSER, *options, *rooms, path.as_uri()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return Visit(done.stdout, said, asked_for(json.loads(log.read_text())))


def asked_for(log):
    """Addresses that the page asked for; the browser's own errands have no page as their initiator."""
    start = log["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    given = (event.get("params", {}) for event in log["events"] if event["type"] == start)
    found = [params["url"] for params in given if "url" in params and params.get("initiator") != "not an origin"]
    return [url for url in found if not url.startswith(("file:", "data:", "blob:"))]


def panels(folder):
    return [*by_class(read(folder)), *certainty(read(folder)), *by_epoch(read(folder))]


def test_a_comparisons_report_draws_without_complaint_or_request(tmp_path):
    synthetic.write_comparison(tmp_path, names=[EVIL, *map(str, range(9))])
    seen = visit(html.write_report(tmp_path), tmp_path / "browser")
    assert seen.console == []
    assert seen.requests == []
    expected = len(panels(tmp_path))
    assert expected == 15
    assert len(re.findall(r'class="plot js-plotly-plot"', seen.dom)) == expected
    assert len(re.findall(r'<svg class="main-svg"', seen.dom)) >= expected
    # Lines with points on them, and not only empty axes: three objectives in every accuracy figure.
    assert len(re.findall(r'<path class="js-line" d="M', seen.dom)) >= 3 * 3
    # The class name reached an axis as text.
    assert re.search(r"<text[^>]*>&lt;script&gt;alert", seen.dom.split('id="figure-per-class')[1])
    page, expected_rows = Page(seen.dom), results.rows(tmp_path)
    assert [float(row["data-accuracy"]) for row in page.rows] == [row.accuracy for row in expected_rows]
    # What the mouse can do and the eye can see, the keyboard and a table can too.
    assert len(re.findall(r'<rect class="legendtoggle"[^>]*tabindex="0" role="button"', seen.dom)) > expected
    assert len(re.findall(r'<img class="paper" alt="[^"]+" src="data:image/svg', seen.dom)) == expected
    assert seen.dom.count("<summary>The numbers as a table</summary>") == expected
    # Nothing on the page offers to send the records away.
    assert 'data-title="Download' in seen.dom
    assert not re.search(r'data-title="(Share|Edit|Send)', seen.dom)


def test_a_run_of_one_epoch_that_failed_draws_too(tmp_path):
    synthetic.write_run(tmp_path / "run", status="failed", length=1, test=False)
    seen = visit(html.write_report(tmp_path / "run"), tmp_path / "browser")
    assert (seen.console, seen.requests) == ([], [])
    expected = len(panels(tmp_path / "run"))
    assert len(re.findall(r'class="plot js-plotly-plot"', seen.dom)) == expected > 0


def test_the_check_catches_an_error_and_a_request(tmp_path):
    page = tmp_path / "bad.html"
    fetch = '<script>fetch("https://tutelage-report.invalid/data").catch(() => 0);</script>'
    page.write_text(f'<!DOCTYPE html><img src="{OUTSIDE}">{fetch}<script>nothing.here();</script>')
    seen = visit(page, tmp_path / "browser")
    assert any("nothing is not defined" in line for line in seen.console)
    assert {OUTSIDE, "https://tutelage-report.invalid/data"} == set(seen.requests)


def test_the_reports_own_policy_stops_a_request(tmp_path):
    synthetic.write_run(tmp_path / "run", length=1)
    path = html.write_report(tmp_path / "run")
    policy = re.search(r"<meta http-equiv=.*?>", path.read_text()).group(0)
    records.write_bytes(path, f'<!DOCTYPE html>{policy}<img src="{OUTSIDE}">'.encode())
    assert visit(path, tmp_path / "browser").requests == []
