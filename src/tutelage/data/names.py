"""Names of data sets, without numpy and torch: the kinds of sources, and checks of their names and paths."""

from __future__ import annotations

from pathlib import Path

from tutelage.errors import InvalidValueError, NotFoundError, nearest_name

_SOURCES = {
    "digits": "1797 handwritten digits of 8x8 pixels, inside scikit-learn: no download",
    "hf:<hub id or folder>": "a data set of the Hugging Face Hub, or a local folder of Parquet files or images",
    "imagefolder:<path>": "a folder of images for each class, below train and test or alone",
    "torchvision:<name>": "a classification data set of torchvision's, downloaded into data.root",
}


def available() -> list[tuple[str, str]]:
    """Return each kind of source: its pattern, and a description."""
    return list(_SOURCES.items())


def check(source: str) -> None:
    """Refuse a source of no known kind, or a path of nothing; what a library or the Hub has is left to them.

    Raises:
        InvalidValueError: the kind is unknown.
        NotFoundError: there is no such folder.
    """
    match parse_source(source):
        case "imagefolder", path:
            image_folder(path)
        case "hf", name:
            local_folder(name)


def parse_source(source: str) -> tuple[str, str]:
    """Return the kind of a source, and what stands behind the colon."""
    kinds = {pattern.partition(":")[0]: pattern for pattern in _SOURCES}
    kind, _, name = source.partition(":")
    if source == "own":
        raise InvalidValueError(
            "data.source",
            "the data sets that were passed from Python",
            "their name, own",
            "type data=(training set, test set) in Python, or data.source=... for data that have a name",
        )
    if source in _SOURCES or (name and kind in kinds and kind not in _SOURCES):
        return kind, name
    instead = f"type data.source={kinds[nearest_name(kind, kinds)]}"
    raise InvalidValueError("data.source", f"one of {', '.join(_SOURCES)}", repr(source), instead)


def image_folder(path: str) -> Path:
    """Return the folder of ``imagefolder:path``."""
    root = Path(path).expanduser()
    if not root.is_dir():
        raise NotFoundError("data.source", "a folder", f"imagefolder:{path}, which does not exist", "check the path")
    return root


def local_folder(name: str) -> Path | None:
    """Return the folder of ``hf:name``; none where it is a data set of the Hub's."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_absolute() or name.startswith((".", "~")):
        raise NotFoundError("data.source", "a folder", f"hf:{name}, which does not exist", "check the path")
    return None
