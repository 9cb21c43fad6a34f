"""What users get wrong, one small file each: `cases` has its recipe, what is typed, and the whole message.

why: what is wrong, in one line
type: distill recipe.yaml epochs=0    # or `python`, a program in place of a command
recipe: the text of recipe.yaml
makes: files and folders that are there first, by path; see `make`
warns: true where the run goes on with a warning, which is the message
says: the message; `python -m tests.wrong.refresh` writes it anew, to be read in the diff
"""

from __future__ import annotations

import io
import re
import shlex
import warnings
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent / "cases"


def cases() -> list[Path]:
    """Return the corpus."""
    return sorted(FOLDER.glob("*.yaml"))


def read(path: Path) -> dict[str, Any]:
    """Read a case."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def do(case: dict[str, Any], invoke: Any, folder: Path) -> tuple[int, str]:
    """Do what a case says in an empty working folder; return the exit code and the message."""
    if "recipe" in case:
        Path("recipe.yaml").write_text(case["recipe"], encoding="utf-8")
    for path, what in case.get("makes", {}).items():
        make(Path(path), what)
    if "type" in case:
        with warnings.catch_warnings():
            warnings.simplefilter("default", UserWarning)
            code, _, said = invoke(*shlex.split(case["type"]))
    else:
        code, said = _run(case["python"])
    said = said.replace(str(folder), "FOLDER")
    return code, re.sub(r"\d+\.\d+%", "NN%", said)  # what an untrained network scores differs from machine to machine


def _run(program: str) -> tuple[int, str]:
    import torch

    import tutelage
    from tutelage.errors import TutelageError

    torch.manual_seed(0)
    told: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", UserWarning)
            exec(program, {"torch": torch, "tutelage": tutelage, "np": __import__("numpy")})
    except TutelageError as error:
        return error.exit_code, f"{type(error).__name__}: {error}\n"
    except Exception as error:  # noqa: BLE001  as a user would see it
        return 1, f"{type(error).__name__}: {error}\n"
    said = dict.fromkeys(f"UserWarning: {each.message}\n" for each in told if each.category is UserWarning)
    return 0, "".join(said)


def make(path: Path, what: Any) -> None:
    """Make a file or a folder: text, or a mapping of one kind to what it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(what, str):
        path.write_text(what, encoding="utf-8")
        return
    [(kind, value)] = what.items()
    match kind:
        case "folder":
            path.mkdir()
        case "bytes":
            path.write_bytes(bytes.fromhex(value))
        case "pictures":  # so many in each folder, of another colour each
            for name, count in value.items():
                (path / name).mkdir(parents=True)
                for k in range(count):
                    (path / name / f"{k}.png").write_bytes(_picture(k))
        case "tensors":  # zeros of these shapes
            import safetensors.torch
            import torch

            path.write_bytes(safetensors.torch.save({name: torch.zeros(shape) for name, shape in value.items()}))
        case "network":  # as the student of a run, not trained: a model's name, its classes, channels and image size
            from tutelage import models

            name, classes, channels, side = value
            models.save(models.create(name, classes=classes, channels=channels, image_size=(side, side)), path)
        case _:
            raise ValueError(kind)


def _picture(k: int) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (8, 8), (40 * (k % 6), 90, 7)).save(file, "png")
    return file.getvalue()
