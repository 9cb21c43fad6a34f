"""What a release holds: files and metadata of wheel and source distribution, and README.md as an index shows it."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
import zipfile

import pytest
from tests import distribution
from tests._helpers import ROOT

setup = runpy.run_path(str(ROOT / "setup.py"))["long_description"]
in_git = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="what belongs in a release is what git has")


@pytest.fixture(scope="module")
def files():
    return distribution.listed(ROOT)


@pytest.fixture(scope="module")
def tree(files, tmp_path_factory):
    """A copy, as building writes beside the source."""
    copy = tmp_path_factory.mktemp("tree")
    for name in files:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(tree):
    build = f"from setuptools import build_meta\nbuild_meta.build_wheel({str(tree / 'dist')!r})"
    subprocess.run([sys.executable, "-c", build], cwd=tree, capture_output=True, check=True)
    (built,) = (tree / "dist").glob("*.whl")
    return built


@in_git
def test_the_wheel_is_the_package_and_says_what_pyproject_says(wheel, tree, files):
    assert distribution.wheel_problems(wheel, tree, files) == []
    # What setuptools would pack into a source distribution.
    sources = set((tree / "src/tutelage.egg-info/SOURCES.txt").read_text(encoding="utf-8").splitlines())
    packed = {name for name in sources if ".egg-info/" not in name}
    assert distribution.differences("the sdist", packed, distribution.of_sdist(files)) == []


@in_git
def test_what_a_wheel_lacks_or_has_too_many_is_said(wheel, tree, files, tmp_path):
    spoiled = tmp_path / wheel.name
    with zipfile.ZipFile(wheel) as whole, zipfile.ZipFile(spoiled, "w") as other:
        for name in whole.namelist():
            content = whole.read(name)
            if name.endswith("/METADATA"):
                content = content.replace(b"Requires-Python: >=3.11", b"Requires-Python: >=3.8")
                content = content.replace(b"torch>=2.8", b"torch") + b"[methods](docs/methods.md)"
            if not name.endswith(("report/page.css", "licenses/LICENSE")):
                other.writestr(name, content)
        other.writestr("tests/test_api.py", b"")
    problems = distribution.wheel_problems(spoiled, tree, files)
    assert [problem.removeprefix(f"{wheel.name} ") for problem in problems] == [
        "lacks tutelage/report/page.css",
        "has tests/test_api.py, which git does not",
        "Requires-Python: expected ['>=3.11'], got ['>=3.8']",
        "Requires-Dist: expected ['torch>=2.8'], got ['torch']",
        "the licence LICENSE is missing",
        "the long description leads to docs/methods.md, which an index does not have",
    ]


@in_git
@pytest.mark.slow
def test_make_dist_builds_both_and_twine_passes_them(tree):
    dist = tree / "both"
    for command in (
        ["build", "--no-isolation", "--outdir", dist],
        ["twine", "check", "--strict", dist / "tutelage-0.1.0.tar.gz"],
    ):
        done = subprocess.run([sys.executable, "-m", *command], cwd=tree, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert distribution.main(dist) == 0
    assert distribution.main(tree) == 1


# README.md as an index shows it

FILES = {
    "files": "https://example.org/read/v{version}/{path}",
    "pictures": "https://example.org/show/v{version}/{path}",
}


@pytest.mark.parametrize(
    ("page", "plain", "linked"),
    [
        (
            "the [methods, `kd`](docs/methods.md#kd)",
            "the methods, `kd`",
            "the [methods, `kd`](https://example.org/read/v2.1/docs/methods.md#kd)",
        ),
        ("[below](#install)", "below", "[below](https://example.org/read/v2.1/README.md#install)"),
        (
            "[a paper](https://arxiv.org/abs/1)",
            "[a paper](https://arxiv.org/abs/1)",
            "[a paper](https://arxiv.org/abs/1)",
        ),
        ("![a report](docs/report.png)", "", "![a report](https://example.org/show/v2.1/docs/report.png)"),
        (
            "[![a report](docs/report.png)](docs/report.md)",
            "",
            "[![a report](https://example.org/show/v2.1/docs/report.png)](https://example.org/read/v2.1/docs/report.md)",
        ),
        (
            '<img alt="a report" src="docs/report.png" width="600">',
            "",
            '<img alt="a report" src="https://example.org/show/v2.1/docs/report.png" width="600">',
        ),
        ("`[a](b.md)` [c](d.md)", "`[a](b.md)` c", "`[a](b.md)` [c](https://example.org/read/v2.1/d.md)"),
        ("```python\nx = [f](y)\n\n\n```\n", "```python\nx = [f](y)\n\n\n```\n", "```python\nx = [f](y)\n\n\n```\n"),
    ],
)
def test_links_of_the_readme_lead_to_the_release_or_are_text(page, plain, linked):
    assert setup(page, "2.1") == plain
    assert setup(page, "2.1", **FILES) == linked


def test_the_readme_has_no_relative_link_left():
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    relative = r"\]\((?![a-z]+:)|src(?:set)?=\"(?![a-z]+:)|href=\"(?![a-z]+:)"
    code = r"(?ms)^```.*?^```$|`[^`\n]+`"
    assert re.search(relative, page)
    for shown in (setup(page, "2.1"), setup(page, "2.1", **FILES)):
        assert not re.search(relative, re.sub(code, "", shown))
        assert re.findall(code, shown) == re.findall(code, page)
