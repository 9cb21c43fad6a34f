"""Ways in which a file of a folder is damaged."""

from __future__ import annotations

import json
import os
import shutil


def missing(path, other):
    path.unlink()


def empty(path, other):
    path.write_bytes(b"")


def cut(path, other):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def zeroed(path, other):
    path.write_bytes(bytes(path.stat().st_size))


def utf16(path, other):
    path.write_bytes(path.read_bytes().decode("latin-1").encode("utf-16"))


def latin1(path, other):
    path.write_bytes(b"\xe9\xff" + path.read_bytes())


def bom(path, other):
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


def a_list(path, other):
    path.write_bytes(b"[" + path.read_bytes().strip() + b"]")


def other_types(path, other):
    """Every value of a mapping is of another type; what is no mapping holds other values."""
    try:
        value = json.loads(path.read_bytes())
        changed = {key: 1 if isinstance(inner, str) else "x" for key, inner in value.items()}
        path.write_text(json.dumps(changed))
    except (ValueError, AttributeError):
        path.write_text("\n".join(f"{line.partition(':')[0]}: [x]" for line in path.read_text("latin-1").splitlines()))


def nulls(path, other):
    try:
        path.write_text(json.dumps(dict.fromkeys(json.loads(path.read_bytes()))))
    except (ValueError, TypeError):
        path.write_text("null\n")


def without_keys(path, other):
    path.write_text("{}\n")


def newer(path, other):
    """Of a schema that is not known yet."""
    try:
        path.write_text(json.dumps({**json.loads(path.read_bytes()), "schema": 99}))
    except (ValueError, TypeError):
        path.write_bytes(b"schema: 99\n" + path.read_bytes().replace(b"schema: 1\n", b""))


def another(path, other):
    """The same file of another run."""
    shutil.copyfile(other, path)


def folder(path, other):
    path.unlink()
    path.mkdir()


def pipe(path, other):
    path.unlink()
    os.mkfifo(path)


DAMAGE = {
    damage.__name__: damage
    for damage in (
        *(missing, empty, cut, zeroed, utf16, latin1, bom, a_list, other_types, nulls, without_keys, newer),
        *(another, folder, pipe),
    )
}
