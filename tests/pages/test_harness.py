"""A page that does not do what it says fails, wherever that is."""

from __future__ import annotations

import pytest
from tests.pages.harness import play

GOOD = {
    "python": ("python", "1 + 1"),
    "shown": ("python", 'print("epoch 1")\nprint("accuracy 90 %")\n```\n```text\naccuracy ... %'),
    "refused as shown": (
        "sh",
        "tutelage train model=resnet20\n```\n```text\ntutelage: model: expected a known name, ...",
    ),
    "session": ("pycon", ">>> 1 + 1\n2\n"),
    "ours": ("sh", "tutelage list objectives wttm   # no other"),
    "another program": ("sh", "echo 1 | grep \\\n    --quiet 1"),
    "a script": ("sh", "#!/bin/bash\nif true; then\n  exit 0\nfi"),
    "cd": ("sh", "mkdir below\ncd below\ntest ! -e recipes"),
    "make": ("sh", "make check"),
    "pip": ("sh", "pip install 'tutelage[onnx,text]' timm"),
    "file": ("yaml", "# one.yaml\nname: one\n```\n```sh\ntest -e one.yaml"),
}
BAD = {
    "python": ("python", "1 / 0", ZeroDivisionError),
    "shown": ("python", 'print("accuracy 90 %")\n```\n```text\naccuracy 95 %', AssertionError),
    "refused": ("sh", "tutelage train model=resnet20", AssertionError),
    "session": ("pycon", ">>> 1 + 1\n3\n", AssertionError),
    "another program": ("sh", "echo 1 | grep --quiet 2", AssertionError),
    "make": ("sh", "make chek", AssertionError),
    "pip": ("sh", "pip install 'tutelage[onx]'", AssertionError),
    "recipe": ("yaml", "epohcs: 2", AssertionError),
}
BASE = {"data": "digits", "model": "mlp:8"}


def page(folder, language, code):
    path = folder / "page.md"
    path.write_text(f"# A page\n\n```{language}\n{code}\n```\n")
    return str(path)


@pytest.mark.parametrize("name", GOOD)
def test_a_block_that_does_what_it_says_passes(name, tmp_path):
    play(page(tmp_path, *GOOD[name]), tmp_path, base=BASE, shown=True)


@pytest.mark.parametrize("name", BAD)
def test_a_block_that_does_not_fails(name, tmp_path):
    language, code, error = BAD[name]
    with pytest.raises(error):
        play(page(tmp_path, language, code), tmp_path, base=BASE, shown=True)


def test_what_is_replaced_and_skipped_must_occur(tmp_path):
    path = page(tmp_path, "sh", "exit 1\nexit 2")
    said = play(path, tmp_path, skip={"exit 1": "it fails"}, replace={"exit 2": "exit 0"}).said
    assert list(said) == ["exit 2"]
    for skip, replace in (({"exit": "", "exit 3": ""}, {}), ({"exit": ""}, {"exit 3": "exit 0"})):
        with pytest.raises(AssertionError, match="exit 3"):
            play(path, tmp_path, skip=skip, replace=replace)


def test_overrides_follow_the_commands_of_their_name(tmp_path):
    said = play(page(tmp_path, "sh", "tutelage list objectives"), tmp_path, overrides={"list": ["wttm"]}).said
    assert "wttm" in said["tutelage list objectives"]
    assert "fitnet" not in said["tutelage list objectives"]
