"""What a code host, an editor and a package index read: workflows, forms, hooks, the steps of a release."""

from __future__ import annotations

import re
import subprocess
import tomllib

import pytest
import yaml
from check_jsonschema import main as check_jsonschema
from click.testing import CliRunner
from pre_commit.clientlib import load_config
from tests._helpers import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
SCHEMAS = {
    "github-workflows": [".github/workflows/*.yml"],
    "github-issue-forms": [".github/ISSUE_TEMPLATE/[0-9]*.yml"],
    "github-issue-config": [".github/ISSUE_TEMPLATE/config.yml"],
    "dependabot": [".github/dependabot.yml"],
    "citation-file-format": ["CITATION.cff"],
}
"""The files that each schema is for; check-jsonschema ships them, so that no network is asked."""


def read(path):
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def lines_that_run(workflow):
    for job in read(workflow)["jobs"].values():
        for step in job["steps"]:
            yield from step.get("run", "").splitlines()


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def targets():
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))


@pytest.fixture(scope="module")
def tracked():
    if not (ROOT / ".git").exists():
        pytest.skip("this copy of the sources has no history")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return listed.rstrip("\0").split("\0")


@pytest.mark.parametrize("schema", list(SCHEMAS))
def test_files_are_what_their_readers_expect(schema):
    files = [str(path) for pattern in SCHEMAS[schema] for path in ROOT.glob(pattern)]
    assert files
    checked = ["--builtin-schema", f"vendor.{schema}", "--force-filetype", "yaml", *files]
    done = CliRunner().invoke(check_jsonschema, checked)
    assert done.exit_code == 0, done.output


def test_every_file_below_github_is_checked():
    known = {path for patterns in SCHEMAS.values() for pattern in patterns for path in ROOT.glob(pattern)}
    there = {path for path in (ROOT / ".github").rglob("*") if path.suffix == ".yml"}
    assert there <= known


def test_every_job_ends_and_may_only_what_it_must():
    for path in WORKFLOWS:
        workflow = read(path)
        assert workflow["permissions"] == {"contents": "read"}, path.name
        for name, job in workflow["jobs"].items():
            assert job["timeout-minutes"] <= 360, f"{path.name}: {name}"


def test_changes_are_tested_by_what_the_repository_runs_itself(project):
    tests = read(".github/workflows/tests.yml")
    assert ".ci/run" in list(lines_that_run(".github/workflows/tests.yml"))
    pythons = tests["jobs"]["linux"]["strategy"]["matrix"]["python"]
    classifiers = [each.rpartition(" ")[2] for each in project["classifiers"] if "Python :: 3." in each]
    assert pythons == classifiers
    assert project["requires-python"] == f">={pythons[0]}"


def test_the_targets_that_are_named_exist(targets):
    said = (ROOT / "RELEASING.md").read_text(encoding="utf-8")
    for path in WORKFLOWS:
        said += "\n".join(f"`{line}`" for line in lines_that_run(path))
    named = set(re.findall(r"`make ([a-z-]+)", said))
    named |= set(read(".github/workflows/weekly.yml")["jobs"]["slow"]["strategy"]["matrix"]["target"])
    named |= set(re.findall(r"^make ([a-z-]+)", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert {"dist", "docs", "test", "test-slow", "test-lowest"} <= named <= targets


def test_other_systems_run_the_suite_of_the_makefile():
    suite = re.search(r"^SUITE := (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)[1]
    *_, last = read(".github/workflows/weekly.yml")["jobs"]["other-systems"]["steps"]
    assert last["run"] == f"python {suite}"
    assert last["env"] == {"OMP_NUM_THREADS": "1"}


def test_a_release_compares_the_tag_with_the_version(tmp_path):
    (compare,) = [line for line in lines_that_run(".github/workflows/release.yml") if "version.py" in line]
    from tutelage.version import __version__

    for tag, code in ((f"v{__version__}", 0), ("v99.0.0", 1), (__version__, 1)):
        done = subprocess.run(["sh", "-c", compare], cwd=ROOT, env={"GITHUB_REF_NAME": tag, "PATH": "/usr/bin:/bin"})
        assert done.returncode == code, tag


def test_only_the_job_that_publishes_may_publish():
    jobs = read(".github/workflows/release.yml")["jobs"]
    assert [name for name, job in jobs.items() if "id-token" in job.get("permissions", {})] == ["publish"]
    assert jobs["publish"]["needs"] == "build"
    assert jobs["publish"]["environment"] == {"name": "pypi"}


def test_hooks_call_the_tools_of_the_environment(project, tracked):
    config = load_config(str(ROOT / ".pre-commit-config.yaml"))
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    assert {"ruff", "ruff-format", "mypy"} <= {hook["id"] for hook in hooks}
    tools = {hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in hooks}
    installed = {re.split(r"[>=\[]", each)[0] for each in project["optional-dependencies"]["dev"]}
    assert tools <= installed
    for hook in hooks:
        assert "files" not in hook or any(re.search(hook["files"], path) for path in tracked), hook["id"]


def test_no_file_is_large(tracked):
    sizes = {path: (ROOT / path).stat().st_size for path in tracked if (ROOT / path).is_file()}
    teacher = "benchmarks/results/cifar100-quick/teacher/student.safetensors"  # three studies stand on it
    assert [path for path, size in sizes.items() if size > 10**6] == [teacher]
