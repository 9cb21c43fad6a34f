"""Look into a release's wheel and source distribution: exit code 1 if files or metadata are missing or too many.

    python tests/distribution.py dist

`make dist` builds both and runs this. What belongs in them is what git has: in the wheel the package and nothing else,
in the source distribution the repository, without the weights and pictures of recorded runs.
"""

from __future__ import annotations

import email.message
import email.policy
import fnmatch
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
LARGEST = 1_000_000
"""Bytes of the largest file."""
LEFT_OUT = ("benchmarks/results/*.png", "benchmarks/results/*.safetensors")


def listed(tree: Path) -> set[str]:
    """The files that git has."""
    if not (tree / ".git").exists():
        sys.exit(f"{tree}: expected a clone, whose files are compared with what is built, got no .git")
    command = ["git", "-C", str(tree), "ls-files", "-z", "--cached"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    return {name for name in names if name and (tree / name).is_file()}


def of_sdist(files: set[str]) -> set[str]:
    return {name for name in files if not any(fnmatch.fnmatch(name, pattern) for pattern in LEFT_OUT)}


def of_wheel(files: set[str]) -> set[str]:
    return {name.removeprefix("src/") for name in files if name.startswith("src/tutelage/")}


def differences(what: str, found: set[str], expected: set[str]) -> list[str]:
    lacks, more = sorted(expected - found), sorted(found - expected)
    return [f"{what} lacks {name}" for name in lacks] + [f"{what} has {name}, which git does not" for name in more]


def metadata_problems(text: bytes, names: set[str], tree: Path) -> list[str]:
    """What metadata say else than pyproject.toml and the source.

    Args:
        text: PKG-INFO or METADATA.
        names: of the files that lie beside it.
        tree: the repository.
    """
    said = email.message_from_bytes(text, policy=email.policy.compat32)
    project = tomllib.loads((tree / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    version = (tree / "src/tutelage/version.py").read_text(encoding="utf-8")
    extras = project["optional-dependencies"]
    required = {str(Requirement(each)) for each in project["dependencies"]}
    required |= {f'{Requirement(each)}; extra == "{extra}"' for extra, each in _pairs(extras)}
    expected: dict[str, set[str]] = {
        "Name": {project["name"]},
        "Version": set(re.findall(r'__version__ = "(.+)"', version)),
        "Summary": {project["description"]},
        "License-Expression": {project["license"]},
        "License-File": set(project["license-files"]),
        "Requires-Python": {project["requires-python"]},
        "Classifier": set(project["classifiers"]),
        "Requires-Dist": required,
        "Provides-Extra": set(extras),
        "Project-URL": {f"{name}, {address}" for name, address in project.get("urls", {}).items()},
        "Description-Content-Type": {"text/markdown"},
    }
    problems = []
    for key, values in expected.items():
        found = set(said.get_all(key, []))
        if key == "Requires-Dist":
            found = {str(Requirement(each)) for each in found}
        if found != values:
            problems.append(f"{key}: expected {sorted(values - found)}, got {sorted(found - values)}")
    problems += [f"the licence {name} is missing" for name in project["license-files"] if name not in names]
    page = said.get_payload()
    if not page.startswith("# tutelage\n") or len(page) < 1000:
        problems.append("the long description is not README.md")
    problems += [
        f"the long description leads to {target}, which an index does not have"
        for target in re.findall(r"\]\(((?![a-z]+:)[^)\s]+)\)", re.sub(r"(?ms)^```.*?^```$|`[^`\n]+`", "", page))
    ]
    return problems


def _pairs(extras: dict[str, list[str]]) -> list[tuple[str, str]]:
    return [(extra, each) for extra, needed in extras.items() for each in needed]


def wheel_problems(wheel: Path, tree: Path, files: set[str]) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        about = metadata.removesuffix("METADATA")
        names = {name for name in archive.namelist() if not name.startswith(about)}
        kept = {name.removeprefix(f"{about}licenses/") for name in archive.namelist()}
        problems = differences(wheel.name, names, of_wheel(files))
        problems += metadata_problems(archive.read(metadata), kept, tree)
        entry = archive.read(f"{about}entry_points.txt").decode().split("\n\n")[0].strip()
    if entry != "[console_scripts]\ntutelage = tutelage.cli:main":
        problems.append(f"the command is {entry!r}")
    return problems


def sdist_problems(sdist: Path, tree: Path, files: set[str]) -> list[str]:
    with tarfile.open(sdist) as archive:
        members = {m.name.partition("/")[2]: m for m in archive.getmembers() if m.isfile()}
        made = {name for name in members if name in ("PKG-INFO", "setup.cfg") or ".egg-info/" in name}
        problems = differences(sdist.name, set(members) - made, of_sdist(files))
        problems += [f"{sdist.name}: {m.name} has {m.size:,} bytes" for m in members.values() if m.size > LARGEST]
        described = archive.extractfile(members["PKG-INFO"])
        assert described is not None
        return problems + metadata_problems(described.read(), set(members), tree)


def main(folder: str) -> int:
    files = listed(ROOT)
    problems = []
    for suffix, look in ((".whl", wheel_problems), (".tar.gz", sdist_problems)):
        found = sorted(Path(folder).glob(f"*{suffix}"))
        if len(found) != 1:
            problems.append(f"{folder}: expected one *{suffix}, got {len(found)}; type make dist")
            continue
        print(f"{found[0].name}: {found[0].stat().st_size / 1e6:.1f} MB")
        problems += look(found[0], ROOT, files)
    print("\n".join(problems) or "Files and metadata are as they should be.")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
