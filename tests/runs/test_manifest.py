"""Manifests: the machine, the software, the command, and no user's folders."""

from __future__ import annotations

import getpass
import json
import pathlib
import platform
import re
import shlex
import shutil
import subprocess

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.runs import manifest
from tutelage.version import __version__


@pytest.mark.parametrize(
    ("value", "reduced"),
    [
        ("/home/ann/x.pt", "x.pt"),
        ("/home/ann/x/", "x"),
        ("/data", "data"),
        ("~/runs/teacher", "teacher"),
        ("~ann/x", "x"),
        ("file:/home/ann/net.py:make", "file:net.py:make"),
        ("file:~/net.py:make", "file:net.py:make"),
        ("file:///home/ann/x", "file:x"),
        ("hf:/data/sets/cifar100", "hf:cifar100"),
        ("imagefolder:/data/birds", "imagefolder:birds"),
        ("/home/Ann Lee/x.pt", "x.pt"),
        ("hf:/home/Ann Lee/data", "hf:data"),
        ("file:/home/Ann Lee/net.py:make", "file:net.py:make"),
        (r"/home/Ann\ Lee/x.pt", "x.pt"),
        ("/home/ann/lr=0.1,wd=5e-4/x.pt", "x.pt"),
        ("/a/b:/c/d", "b:d"),
        ("[/a/b, /c/d]", "[b, d]"),
        ("x=/a/b,y=/c/d", "x=d"),
        (r"C:\Users\ann\x.pt", "x.pt"),
        ("C:/Users/ann/x.pt", "x.pt"),
        (r"file:C:\Users\ann\net.py:make", "file:net.py:make"),
        (r"weights=C:\Users\ann\x.pt", "weights=x.pt"),
        (r"\\server\share\x.pt", "x.pt"),
        (
            "tutelage train /home/ann/r.yaml student.weights=~/x/w.pt epochs=3",
            "tutelage train r.yaml student.weights=w.pt epochs=3",
        ),
        (
            "tutelage train 'data.source=hf:/home/Ann Lee/data' epochs=3",
            "tutelage train 'data.source=hf:data' epochs=3",
        ),
        ("name: got /tmp/runs/x, which is finished", "name: got x, which is finished"),
        ("cannot read '/home/Ann Lee/a/1.png': don't", "cannot read '1.png': don't"),
        ("see https://huggingface.co/x/y and /home/ann/z", "see https://huggingface.co/x/y and z"),
    ],
)
def test_absolute_paths_are_reduced_to_their_last_component(value, reduced):
    assert manifest.without_paths(value) == reduced


@pytest.mark.parametrize(
    "value",
    [
        "runs/teacher",
        "./runs/teacher",
        "../data/x",
        "../../x",
        "recipes/cifar100/quick.yaml",
        "file:net.py:make",
        "hf:uoft-cs/cifar100",
        "cifar:resnet20",
        "torchvision:resnet50.IMAGENET1K_V1",
        "https://huggingface.co/x/y",
        "https://huggingface.co:443/~ann/y?p=1",
        "https://example.org/x?next=/a/b",
        "s3://bucket/a/b",
        "1/2 and/or 3 / 4, ~1/2",
        "images/s",
        "/",
        "~",
        "",
    ],
)
def test_everything_else_stays(value):
    assert manifest.without_paths(value) == value


def test_values_in_values():
    value = {"a": ["/x/y", {"b": ("~/c/d", 3, None, True, 0.5)}], "/key/stays": "hf:/e/f"}
    assert manifest.without_paths(value) == {"a": ["y", {"b": ["d", 3, None, True, 0.5]}], "/key/stays": "hf:f"}
    assert value["a"][0] == "/x/y"


words = st.text("abcXYZ019._-", min_size=1, max_size=8).filter(lambda word: word.strip("."))


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(
    folders=st.lists(
        st.text("abcXYZ019._- ,=", min_size=1, max_size=8).map(lambda w: f"secret{w}".strip()), max_size=4
    ),
    name=words,
    prefix=st.sampled_from(["", "hf:", "file:", "student.weights=", "data.source=hf:"]),
)
def test_no_folder_leaks_out_of_a_value_or_a_typed_command(folders, name, prefix):
    path = prefix + "/" + "/".join([*folders, name])
    for text in (path, shlex.join(["tutelage", "train", "r.yaml", path, "epochs=3"])):
        reduced = manifest.without_paths(text)
        assert "secret" not in reduced
        assert name in reduced


def test_hardware():
    hardware = manifest.hardware(torch.device("cpu"))
    assert set(hardware) == {"device", "processor", "cores", "threads", "memory_gb", "gpu"}
    assert hardware["device"] == "cpu"
    assert hardware["gpu"] is None
    assert hardware["processor"]
    assert hardware["cores"] >= 1
    assert hardware["threads"] == torch.get_num_threads()
    assert 0.1 < hardware["memory_gb"] < 1e5


def test_software():
    software = manifest.software()
    assert set(software) >= {
        "python",
        "system",
        "torch",
        "torchvision",
        "accelerate",
        "numpy",
        "safetensors",
        "pydantic",
    }
    assert software["python"] == platform.python_version()
    assert re.match(r"\d+\.\d+", software["torch"])


def test_a_manifest_names_no_host_and_no_user():
    text = json.dumps([manifest.hardware(torch.device("cpu")), manifest.software(), manifest.version()])
    assert platform.node() not in text or len(platform.node()) < 4
    assert str(pathlib.Path.home()) not in text or len(str(pathlib.Path.home())) < 4
    assert f'"{getpass.getuser()}"' not in text


def git(folder, *arguments):
    identity = ["-c", "user.name=Ann", "-c", "user.email=ann@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


version_now = manifest.version.__wrapped__
"""A process keeps the first answer of `version`."""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A new checkout, and the package's folder in it, where the module believes it lies."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    package = tmp_path / "src" / "tutelage"
    (package / "runs").mkdir(parents=True)
    source = pathlib.Path(manifest.__file__).parents[1]
    for name in ("version.py", "runs/manifest.py"):
        shutil.copy(source / name, package / name)
    git(tmp_path, "init", "-q")
    monkeypatch.setattr(manifest, "__file__", str(package / "runs" / "manifest.py"))
    return tmp_path, package


def test_the_version_of_a_checkout_names_its_commit_and_whether_files_differ(checkout):
    project, package = checkout
    git(project, "add", "src")
    git(project, "commit", "-q", "-m", "one")
    commit = git(project, "rev-parse", "HEAD")
    assert version_now() == {"version": __version__, "commit": commit}
    with (package / "version.py").open("a") as file:
        file.write("\n")
    assert version_now()["commit"] == f"{commit}+changes"


def test_a_copy_inside_someone_elses_checkout_has_no_commit(checkout):
    project, _ = checkout
    (project / "theirs.txt").write_text("theirs")
    git(project, "add", "theirs.txt")
    git(project, "commit", "-q", "-m", "theirs")
    assert version_now() == {"version": __version__, "commit": None}


def test_outside_of_any_checkout_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "__file__", str(tmp_path / "runs" / "manifest.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert version_now() == {"version": __version__, "commit": None}
