"""Hostile files, made when they are tested: what would run code, fill the memory, never end, or forge what is printed.

Each maker writes one file. `KINDS` has them by what the file is taken for.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

CANARY = "the-code-ran"
"""A file in the working folder that code in a hostile file would make."""
DEEP = 100_000
Maker = Callable[[Path], object]
MANY = "".join(f"k{n}: 1\n" for n in range(1_000_000))


def of(content: bytes | str) -> Maker:
    """Return a maker of a file with this content."""
    encoded = content.encode() if isinstance(content, str) else content
    return lambda path: path.write_bytes(encoded)


def fifo(path: Path) -> None:
    """Make a pipe that nobody writes to."""
    os.mkfifo(path)


def link(target: str) -> Maker:
    """Return a maker of a link."""
    return lambda path: path.symlink_to(target)


# Safetensors.


def tensors(header: Any, data: bytes = bytes(24), *, length: int | None = None) -> Maker:
    """Return a maker of a safetensors file with this header, as JSON or as bytes, and its length or another."""
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return of(struct.pack("<Q", len(encoded) if length is None else length) + encoded + data)


def entry(begin: int = 0, end: int = 24, shape: Any = (6,), dtype: str = "F32") -> dict[str, Any]:
    """Return a tensor's entry in a header."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


SAFETENSORS: dict[str, Maker] = {
    "header-of-8-exabytes": tensors({"a": entry()}, length=2**63 - 1),
    "header-of-1-terabyte": tensors({"a": entry()}, length=2**40),
    "header-longer-than-the-file": tensors({"a": entry()}, length=4000),
    "header-of-no-length": tensors({"a": entry()}, length=0),
    "header-no-json": tensors(b"{not json"),
    "header-a-list": tensors([1, 2]),
    "header-deep": tensors(b'{"a":' * DEEP + b"1" + b"}" * DEEP),
    "offsets-that-overlap": tensors({"a": entry(0, 24), "b": entry(12, 36)}, bytes(36)),
    "offsets-beyond-the-end": tensors({"a": entry(0, 2400, (600,))}),
    "offsets-backwards": tensors({"a": entry(24, 0)}),
    "offsets-negative": tensors({"a": entry(-24, 0)}),
    "offsets-with-a-hole": tensors({"a": entry(0, 24), "b": entry(48, 72)}, bytes(72)),
    "shape-that-overflows": tensors({"a": entry(shape=(2**62, 2**62))}),
    "shape-negative": tensors({"a": entry(shape=(-6,))}),
    "shape-of-many-dimensions": tensors({"a": entry(0, 4, (1,) * DEEP)}, bytes(4)),
    "shape-not-the-data": tensors({"a": entry(shape=(7,))}),
    "type-unknown": tensors({"a": entry(dtype="F7")}),
    "name-with-an-escape": tensors({"\x1b[2J\x1b]0;forged\x07": entry()}),
    "name-with-a-line-break": tensors({"a\ntutelage: done": entry()}),
    "name-that-runs-backwards": tensors({"\u202egnp.tenten": entry()}),
    "name-upwards": tensors({"../../../outside": entry()}),
    "name-absolute": tensors({"/etc/passwd": entry()}),
    "name-very-long": tensors({"a" * 1_000_000: entry()}),
    "name-with-a-zero-byte": tensors({"a\x00b": entry()}),
    "name-of-half-a-letter": tensors(b'{"\\ud800":{"dtype":"F32","shape":[6],"data_offsets":[0,24]}}'),
    "name-twice": tensors(
        b'{"a":{"dtype":"F32","shape":[6],"data_offsets":[0,24]},"a":{"dtype":"F32","shape":[6],"data_offsets":[0,24]}}'
    ),
    "names-very-many": tensors({f"n{k}": entry(0, 0, (0,)) for k in range(50_000)}, b""),
    "metadata-no-text": tensors({"__metadata__": {"a": [1]}, "a": entry()}),
    "empty": of(b""),
    "a-pickle": of(pickle.dumps({"a": 1})),
    "a-pipe": fifo,
    "a-device": link("/dev/zero"),
    "a-link-to-itself": lambda path: path.symlink_to(path.name),
    "a-folder": lambda path: path.mkdir(),
}


# Pickles, as `torch.save` writes them and wrote them.


class _Runs:
    """Runs a program when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def _archive(files: dict[str, bytes], *, store: bool = True) -> Maker:
    def make(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED if store else zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)

    return make


def _saved(value: Any) -> Maker:
    return lambda path: torch.save(value, path)


def _bomb(path: Path) -> None:
    """Compress a gigabyte of zeros to a megabyte."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("archive/data.pkl", "w") as file:
        for _ in range(1024):
            file.write(bytes(1 << 20))


def _laughs() -> bytes:
    """Return a pickle of a list that holds a list twice, forty times over: written out it would not end."""
    content = b"\x80\x02]q\x00"
    for k in range(40):
        content += b"]q" + bytes([k + 1]) + b"(h" + bytes([k]) + b"h" + bytes([k]) + b"e"
    return content + b"."


_SYSTEM = pickle.dumps(_Runs(os.system, f"touch {CANARY}"), 2)
_EVAL = pickle.dumps(_Runs(eval, f"open('{CANARY}', 'w')"), 2)
PICKLES: dict[str, Maker] = {
    "starts-a-program": of(_SYSTEM),
    "evaluates-text": of(_EVAL),
    "starts-a-program-in-an-archive": _archive({"archive/data.pkl": _SYSTEM, "archive/version": b"3\n"}),
    "starts-a-program-beside-tensors": _saved({"weight": torch.zeros(2), "hook": _Runs(os.system, f"touch {CANARY}")}),
    "opens-a-file": _saved({"weight": _Runs(open, CANARY, "w")}),
    "imports-a-module": of(b"\x80\x02cantigravity\nfly\n."),
    "a-name-with-an-escape": of(b"\x80\x02c\x1b[2Jos\nsys\x07tem\n."),
    "a-module-of-ours": of(b"\x80\x02ctutelage.records\nwrite_bytes\n)R."),
    "deep": of(b"\x80\x02" + b"]" * DEEP + b"a" * (DEEP - 1) + b"."),
    "written-out-without-end": of(_laughs()),
    "a-length-of-2-gigabytes": of(b"\x80\x02\x8b\xff\xff\xff\x7f1."),
    "a-text-of-4-gigabytes": of(b"\x80\x02X\xff\xff\xff\xff1."),
    "an-archive-that-explodes": _bomb,
    "an-archive-that-leads-upwards": _archive({"../../outside/data.pkl": _SYSTEM, "../../outside/version": b"3\n"}),
    "an-archive-of-nothing": _archive({}),
    "an-archive-with-files-twice": lambda path: path.write_bytes(_twice()),
    "a-tensor-of-a-terabyte": _saved({"weight": torch.zeros(1).expand(2**38), "bias": torch.zeros(3)}),
    "a-tensor-beside-its-storage": _saved({"weight": torch.zeros(4).as_strided((2, 2), (1, 2))}),
    "a-sparse-tensor": _saved({"weight": torch.eye(3).to_sparse(), "bias": torch.zeros(3)}),
    "a-tensor-of-nothing": _saved({"weight": torch.zeros(3, 4, device="meta"), "bias": torch.zeros(3)}),
    "a-complex-tensor": _saved({"weight": torch.zeros(3, 4, dtype=torch.complex64), "bias": torch.zeros(3)}),
    "names-that-are-no-text": _saved({1: torch.zeros(3, 4), None: torch.zeros(3)}),
    "a-name-that-forges-a-line": _saved({"weight\r\ntutelage: done": torch.zeros(3, 4)}),
    "a-number": _saved(3),
    "no-opcode": of(b"\x80\x02\xff\xff"),
    "empty": of(b""),
    "one-byte": of(b"\x80"),
    "a-picture": of(b"GIF89a"),
    "a-web-page": of("<!doctype html>"),
    "a-pipe": fifo,
    "a-device": link("/dev/zero"),
}


def _twice() -> bytes:
    import warnings

    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("archive/data.pkl", pickle.dumps({}, 2))
        archive.writestr("archive/data.pkl", _SYSTEM)
    return file.getvalue()


# YAML.

_ALIASES = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 9)
)
_MERGES = "a0: &a0 {k: x}\n" + "".join(f"a{k}: &a{k} {{<<: [{', '.join([f'*a{k - 1}'] * 9)}]}}\n" for k in range(1, 9))
_RECIPE = "name: hostile\nstudent: mlp:8\n"
RECIPES: dict[str, Maker] = {
    "aliases-that-explode": of(_RECIPE + _ALIASES),
    "aliases-that-explode-in-a-key-that-is-read": of(_RECIPE + _ALIASES + "stages: *a8\n"),
    "merges-that-explode": of(_RECIPE + _MERGES),
    "an-alias-of-itself": of(_RECIPE + "stages: &a [*a]\n"),
    "a-mapping-in-itself": of(_RECIPE + "data: &a {source: *a}\n"),
    "deep-brackets": of(_RECIPE + "stages: " + "[" * DEEP),
    "deep-brackets-closed": of(_RECIPE + "stages: " + "[" * 5000 + "]" * 5000 + "\n"),
    "deep-indentation": of("".join(f"{' ' * k}k:\n" for k in range(3000))),
    "utf-16": of((_RECIPE + "epochs: 1\n").encode("utf-16")),
    "utf-16-without-a-mark": of((_RECIPE + "epochs: 1\n").encode("utf-16-le")),
    "utf-32": of((_RECIPE + "epochs: 1\n").encode("utf-32")),
    "a-zero-byte": of(_RECIPE + "epochs: \x001\n"),
    "a-program-in-a-tag": of(_RECIPE + f"seed: !!python/object/apply:os.system ['touch {CANARY}']\n"),
    "a-new-object-in-a-tag": of(_RECIPE + f"seed: !!python/object/new:os.system ['touch {CANARY}']\n"),
    "a-name-in-a-tag": of(_RECIPE + "seed: !!python/name:os.system\n"),
    "binary": of(_RECIPE + "seed: !!binary AAAA\n"),
    "a-set": of(_RECIPE + "seed: !!set {a, b}\n"),
    "a-date-as-a-key": of(_RECIPE + "2026-11-28: 1\n"),
    "a-list-as-a-key": of(_RECIPE + "? [a, b]\n: 1\n"),
    "a-number-of-100000-digits": of(_RECIPE + f"seed: {'9' * DEEP}\n"),
    "a-hexadecimal-of-100000-digits": of(_RECIPE + f"seed: 0x{'f' * DEEP}\n"),
    "a-number-of-base-60": of(_RECIPE + f"seed: 1{':59' * 20_000}\n"),
    "a-fraction-beyond-float": of(_RECIPE + "clip: 1e400\n"),
    "a-key-that-forges-a-line": of(_RECIPE + '"x\\ntutelage: done": 1\n'),
    "a-key-with-an-escape": of(_RECIPE + '"\\e[2J\\e]0;forged\\a": 1\n'),
    "a-key-that-runs-backwards": of(_RECIPE + "\u202egnp: 1\n"),
    "a-key-of-a-megabyte": of(_RECIPE + f"? {'k' * 1_000_000}\n: 1\n"),
    "a-value-with-an-escape": of('name: "\\e[2J"\nstudent: "mlp:\\r\\ntutelage: done"\n'),
    "a-value-of-a-megabyte": of(f"name: {'n' * 1_000_000}\nstudent: mlp:8\n"),
    "keys-very-many": lambda path: path.write_text(_RECIPE + MANY[:200_000], encoding="utf-8"),
    "two-documents": of(f"{_RECIPE}---\n{_RECIPE}"),
    "a-version-of-yaml": of(f"%YAML 9.9\n---\n{_RECIPE}"),
    "a-comment-of-a-megabyte": of(f"# {'c' * 1_000_000}\nname: [\n"),
    "a-file-of-20-megabytes": lambda path: path.write_text(_RECIPE + MANY[:10_000_000] * 2, encoding="utf-8"),
    "a-pipe": fifo,
    "a-device": link("/dev/zero"),
    "a-link-to-itself": lambda path: path.symlink_to(path.name),
    "a-link-to-passwords": link("/etc/passwd"),
    "a-picture": of(b"\x89PNG\r\n\x1a\n" + bytes(range(256))),
}


# JSON.

JSON: dict[str, Maker] = {
    "deep": of("[" * DEEP + "]" * DEEP),
    "deep-objects": of('{"a":' * DEEP + "1" + "}" * DEEP),
    "deep-in-a-key": of('{"name":' + "[" * 900 + "]" * 900 + "}"),
    "a-number-of-100000-digits": of('{"duration_s": ' + "9" * DEEP + "}"),
    "not-a-number": of('{"duration_s": NaN, "status": Infinity}'),
    "a-key-twice": of('{"status": "finished", "status": "running"}'),
    "utf-16": of('{"name": "x"}'.encode("utf-16")),
    "a-zero-byte": of(b'{"name": "x"}\x00'),
    "half-a-letter": of('{"name": "\\ud800", "status": "\\udfff"}'),
    "an-escape": of('{"name": "\\u001b[2J\\r\\ntutelage: done", "status": "\\u001b[2J"}'),
    "a-list": of("[1, 2]"),
    "a-number": of("3"),
    "null": of("null"),
    "empty": of(b""),
    "zeros": of(bytes(4000)),
    "other-types": of(
        '{"name": {}, "status": 3, "seeds": "x", "data": [], "teacher": 7, "notes": null, "objective": 1.5}'
    ),
    "a-text-of-a-megabyte": of(json.dumps({"name": "n" * 1_000_000, "status": "running"})),
    "a-pipe": fifo,
    "a-link-to-itself": lambda path: path.symlink_to(path.name),
    "a-folder": lambda path: path.mkdir(),
}
CHECKSUMS: dict[str, Maker] = {
    "a-path-upwards": of(f"{'0' * 64}  ../../../../../etc/passwd\n"),
    "an-absolute-path": of(f"{'0' * 64}  /etc/passwd\n"),
    "a-device": of(f"{'0' * 64}  /dev/zero\n"),
    "an-escape": of(f"{'0' * 64}  \x1b[2Jstate.json\n"),
    "very-many-lines": of(f"{'0' * 64}  state.json\n" * 100_000),
    "no-lines": of(b""),
    "one-word": of("state.json\n"),
    "not-utf-8": of(b"\xff\xfe\x00"),
    "a-pipe": fifo,
}
KINDS: dict[str, tuple[str, dict[str, Maker]]] = {
    "weights": ("weights.safetensors", SAFETENSORS),
    "pickles": ("weights.pt", PICKLES),
    "recipes": ("recipe.yaml", RECIPES),
    "manifest": ("manifest.json", JSON),
    "evaluation": ("evaluation.json", JSON),
    "card": ("student.json", JSON),
    "outputs": ("outputs.json", JSON),
    "checksums": ("checkpoints/00-000000003/checksums", CHECKSUMS),
    "state": ("checkpoints/00-000000003/state.json", JSON),
    "tensors": ("checkpoints/00-000000003/tensors.safetensors", SAFETENSORS),
}
