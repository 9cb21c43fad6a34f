"""Names of models, without torch: which are listed, and checks of those that no library has to be asked about."""

from __future__ import annotations

import difflib
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from tutelage import records, user_code
from tutelage.errors import InvalidValueError, NotFoundError
from tutelage.models import catalogue

LISTED = Path(__file__).parent / "models.json"
"""Generated from what each source lists."""
MLP = "mlp:256x256"
"""An example of its source's names."""
ONNX, EXPORT = EXPORTED = ("onnx", "export")
"""Prefixes of files that hold a network as a graph, which is not trained."""
SOURCES = ("cifar", "mlp", "timm", "torchvision", "hf", "file", *EXPORTED)
"""Prefixes of names; any other name is that of a folder, or of a module of the user's own."""
PACKED = ".safetensors"
"""How a file's name ends that holds a saved student with all that rebuilds it, as `tutelage export` writes it."""
INDEX = ".index.json"
"""How a file's name ends that says which of several files has each tensor."""
IN_FOLDERS = (
    *(records.STUDENT, "model.safetensors", f"model.safetensors{INDEX}"),
    *("pytorch_model.bin", f"pytorch_model.bin{INDEX}"),
)
"""Files with the weights of a run's folder, and of folders that transformers and accelerate write."""
PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".tar")
"""How names of files that `torch.save` writes end, usually."""
OWN_TENSORS, OWN_SHARDS = "tensors.safetensors", "shards"
"""A file and a folder of this package's checkpoints."""
HF_KINDS = {
    "image": "ForImageClassification",
    "pixels": "ForSemanticSegmentation",
    "sequence": "ForSequenceClassification",
    "token": "ForTokenClassification",
    "causal": "ForCausalLM",
    "sentence": "",
}
"""What a network of ``hf:`` classifies, and how names of transformers' classes for it end."""
RUNS_CODE = ("file:", f"{EXPORT}:")
"""How names begin whose files may run code when they are read."""


def available() -> list[tuple[str, str]]:
    """Return what can be created: each name, or pattern of names, and a line about it."""
    return [(name, summary) for name, summary in json.loads(LISTED.read_text(encoding="utf-8"))]


def without_weights(name: str) -> str:
    """Return what to type where the weights that a name fixes cannot be fetched."""
    return f"give a local copy with weights=path; {name.partition('.')[0]} has random weights"


def check(name: str, *, trust_code: bool | frozenset[str] = False) -> None:
    """Refuse a name that stands for no model; what torchvision and timm have is left to them.

    Raises:
        InvalidValueError: the name is unknown or cannot be read, or is a file's whose code is not trusted.
        NotFoundError: it is the path of a folder or a file that is not there.
    """
    prefix, colon, path = name.partition(":")
    match prefix if colon else "":
        case "cifar":
            check_listed(name)
        case "mlp":
            hidden_widths(path)
        case "file":
            user_function(path, trust_code=trust_code)
        case "onnx" | "export":
            exported_file(name, trust_code=trust_code)
        case "timm" | "torchvision":
            arch, _, tag = path.partition(".")
            if catalogue.is_missing(prefix, arch, tag):
                known = catalogue.read()[prefix]
                raise unknown_tag(name, known[arch].tags) if arch in known else unknown(name, _full(prefix))
        case "hf":
            pass
        case _:
            saved_student(name)


def unknown(name: str, known: Iterable[str]) -> InvalidValueError:
    """Make the error for a name that no source knows: what to type is another source that has it, or the nearest."""
    prefix, colon, path = name.partition(":")
    path = path if colon else name
    lists = f"`tutelage list models{f' {prefix}:' if colon and prefix in SOURCES else ''}` lists the names"
    if re.fullmatch(r"[\w.-]{3,}", path, re.ASCII) and (count := sum(1 for _ in catalogue.matching(path))):
        lists = f"`tutelage list models {path}` lists {count} with it"
    if others := catalogue.elsewhere(name):
        return InvalidValueError("model", "a known name", repr(name), f"type {' or '.join(others[:3])}; {lists}")
    full = {name.casefold(): name for name in known}
    candidates = {folded.partition(":")[2]: name for folded, name in full.items() if ":" in folded} | full
    near = dict.fromkeys(candidates[m] for m in difflib.get_close_matches(name.casefold(), candidates, n=4, cutoff=0.6))
    hint = f"did you mean {' or '.join(list(near)[:3])}? " if near else ""
    return InvalidValueError("model", "a known name", repr(name), f"{hint}{lists}")


def unknown_tag(name: str, tags: Sequence[str]) -> InvalidValueError:
    """Make the error for a known network's name with a tag that it has not, with another source that has it."""
    random, _, tag = name.partition(".")
    others = [other for other in catalogue.elsewhere(name) if tag and other.endswith(f".{tag}")]
    own = f"one of {', '.join(f'{random}.{known}' for known in tags)}" if tags else f"no tag, as {random} has none"
    instead = f"type {' or '.join(others)}, " if others else "type "
    return InvalidValueError(
        "model", f"a tag of {random}", repr(name), f"{instead}{random} for random weights, or {own}"
    )


def _full(*sources: str) -> list[str]:
    return [entry.name for source in sources for entry in catalogue.read()[source].values()]


def check_listed(name: str) -> None:
    """Refuse a name that is not listed, of a source whose names all are."""
    prefix = name.partition(":")[0]
    known = [listed for listed, _ in available() if listed.startswith(f"{prefix}:")]
    if name not in known:
        raise unknown(name, known)


def hidden_widths(path: str) -> tuple[int, ...]:
    """Return the widths of the hidden layers in a name ``mlp:path``."""
    if not re.fullmatch(r"[1-9]\d{0,4}(x[1-9]\d{0,4}){0,99}", path, re.ASCII):
        expected = "mlp: and up to 100 hidden widths joined by x, each below 100,000"
        raise InvalidValueError("model", expected, repr(f"mlp:{path}"), f"type {MLP}")
    widths = tuple(int(width) for width in path.split("x"))
    if any(before * after > 2**30 for before, after in itertools.pairwise(widths)):
        expected = "mlp: and hidden widths whose products, layer by layer, are at most 2**30"
        raise InvalidValueError("model", expected, repr(f"mlp:{path}"), f"type {MLP}")
    return widths


def user_function(path: str, *, trust_code: bool | frozenset[str]) -> tuple[Path, str]:
    """Return the file and the function of a name ``file:path``, whose code may be run."""
    name = f"file:{path}"
    script, function = user_code.split(name, "model", example="file:my_models.py:student")
    user_code.require_trust(name, "model", trust_code)
    user_code.require_file(name, "model", script)
    return script, function


def exported_file(name: str, *, trust_code: bool | frozenset[str] = False) -> Path:
    """Return the path of the file with a network that a name stands for.

    Raises:
        InvalidValueError: if it is a file of `torch.export.save`, whose reading may run code, and is not trusted.
        NotFoundError: if there is no such file.
    """
    prefix, _, path = name.partition(":")
    if prefix == EXPORT:
        first = "make sure where the file is from, as reading it may run code in it"
        user_code.require_trust(name, "model", trust_code, first=first)
    if not Path(path).is_file():
        kind = "an ONNX file" if prefix == ONNX else "a file of torch.export.save"
        got = f"{path!r}, which is {'a folder' if Path(path).is_dir() else 'not there'}"
        raise NotFoundError("model", kind, got, f"check the path of {name!r}")
    return Path(path)


def is_exported(name: str) -> bool:
    """Whether a name is that of a file that holds a network as a graph, which is not trained."""
    return name.partition(":")[0] in EXPORTED


def saved_student(name: str) -> Path:
    """Return the folder, or the file, with a saved student that a name without a source is the path of."""
    folder = Path(name)
    if folder.suffix == PACKED and folder.is_file():
        return folder
    if name and (folder / records.STUDENT).is_file() and (folder / records.CARD).is_file():
        return folder
    if name and folder.is_dir():
        expected = f"a run's folder with {records.STUDENT} and {records.CARD}"
        lacking = [file for file in (records.STUDENT, records.CARD) if not (folder / file).is_file()]
        instead = "finish the run, or name another folder"
        if records.checkpoint_names(folder / records.CHECKPOINTS):
            instead = f"type tutelage train {name}, or distill, to finish it from its last checkpoint"
        raise InvalidValueError("model", expected, f"{name!r} without {' and '.join(lacking)}", instead)
    if name != folder.name and (":" not in name or folder.is_absolute()):  # On Windows a path may have a colon.
        instead = "train it first, or check the path"
        if (
            re.fullmatch(r"[\w-]+/[\w.-]+", name, re.ASCII)
            and not folder.parent.is_dir()
            and folder.parent.name != "runs"
        ):
            instead = f"{instead}; a network of the Hub is hf:{name}"
        raise NotFoundError("model", "a run's folder", f"{name!r}, which is not there", instead)
    raise unknown(name, [*(listed for listed, _ in available()), *_full(*catalogue.OF_LIBRARIES)])


def is_own_module(name: str) -> bool:
    """Whether the name of a saved student is that of a module of the user's own, which no source rebuilds."""
    return name.partition(":")[0] not in SOURCES


def weights_file(path: str | Path) -> tuple[Path, str | None]:
    """Return the file of a checkpoint that is there, and the key in it that was typed.

    Args:
        path: a file; a folder with one of `IN_FOLDERS`, or with this package's checkpoints, of which the newest is
            taken; and behind ``#`` perhaps the key of what is meant of a file: ``last.pth.tar#state_dict_ema``.
    """
    path, key = Path(path), None
    if not path.exists() and "#" in path.name:
        name, _, key = path.name.partition("#")
        path = path.with_name(name)
    if not path.is_dir():
        if not path.is_file():
            raise NotFoundError("weights", "a checkpoint's file", f"{path}, which does not exist", "check the path")
        return path, key
    for name in IN_FOLDERS:
        if (path / name).is_file():
            return path / name, key
    own = path / records.CHECKPOINTS if (path / records.CHECKPOINTS).is_dir() else path
    folder = own / names[-1] if (names := records.checkpoint_names(own)) else path
    if (folder / OWN_TENSORS).is_file():
        if (folder / OWN_SHARDS).is_dir():
            got, instead = f"{folder}, which is sharded", f"finish the run, and name its {records.STUDENT}"
            raise InvalidValueError("weights", "a checkpoint whose tensors are whole", got, instead)
        return folder / OWN_TENSORS, key
    files = sorted(each.name for each in path.iterdir() if each.suffix in (".safetensors", *PICKLED))
    instead = f"name its file, such as {path / files[0]}" if files else "name a file"
    if any(path.glob("*.distcp")):
        instead = "convert it first: python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE"
    expected = f"a checkpoint's file, or a folder with {', '.join(IN_FOLDERS[:3])} or checkpoints of a run"
    raise NotFoundError("weights", expected, f"the folder {path} without", instead)
