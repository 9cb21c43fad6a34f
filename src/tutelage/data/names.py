"""Names of data sets, without numpy and torch: the kinds of sources, and checks of their names and paths."""

from __future__ import annotations

import glob
import re
from pathlib import Path

from tutelage.errors import InvalidValueError, NotFoundError, TutelageError, nearest_name, require_extra

_SOURCES = {
    "csv:<path>": "a file of texts, comma-separated values with a row of column names",
    "digits": "1797 handwritten digits of 8x8 pixels, inside scikit-learn (the extra demo): no download",
    "hf:<hub id or folder>": "a data set of the Hugging Face Hub, or a local folder of Parquet files: images or texts",
    "imagefolder:<path>": "a folder of images for each class, below train and test or alone",
    "jsonl:<path>": "a file of texts, a JSON object per line",
    "masks:<path>": "a folder of images and one of masks, with the class of each pixel, below train and test or alone",
    "parquet:<shards>": "Parquet files with a column of images, local or behind URLs, such as train-*.parquet",
    "torchvision:<name>": "a classification data set of torchvision's, downloaded into data.root",
    "webdataset:<shards>": "tar files of samples, local or behind URLs, such as train-{000..146}.tar",
}
_UNLABELLED = {
    "images:<folder>": "of data.unlabelled: all images in a folder and in its folders",
    "texts:<path>": "of data.unlabelled: a file with one text per line",
}

_OF_TORCHVISION = (
    *(
        "CIFAR10",
        "CIFAR100",
        "Country211",
        "DTD",
        "FashionMNIST",
        "Flowers102",
        "Food101",
        "GTSRB",
        "Imagenette",
        "KMNIST",
    ),
    *("MNIST", "PCAM", "RenderedSST2", "StanfordCars", "STL10", "SVHN", "USPS"),
)
_ON_THE_HUB = {
    "agnews": "fancyzhx/ag_news",
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "fashionmnist": "zalando-datasets/fashion_mnist",
    "food101": "ethz/food101",
    "imagenet": "ILSVRC/imagenet-1k",
    "imagenet1k": "ILSVRC/imagenet-1k",
    "imdb": "stanfordnlp/imdb",
    "mnist": "ylecun/mnist",
}
"""Sources of data sets that are known by a name alone, without regard to case, ``-`` and ``_``."""

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
"""How names of files of images end."""


def is_picture(name: str) -> bool:
    """Whether a file's name is that of an image."""
    return name[name.rfind(".") :].lower() in EXTENSIONS and not name.startswith(".")


def available() -> list[tuple[str, str]]:
    """Return each kind of source: its pattern, and a description."""
    return [*_SOURCES.items(), *_UNLABELLED.items()]


def check(source: str) -> None:
    """Refuse a source of no known kind, or a path of nothing; what a library or the Hub has is left to them.

    Raises:
        InvalidValueError: the kind is unknown.
        NotFoundError: there is no such folder.
        MissingExtraError: the digits are not installed.
    """
    match parse_source(source):
        case "digits", _:
            require_digits()
        case ("imagefolder" | "masks") as kind, path:
            image_folder(path, kind=kind)
        case "hf", name:
            local_folder(name)
        case ("jsonl" | "csv") as kind, path:
            text_file(kind, path, what="data.source")
        case "torchvision", name if name not in _OF_TORCHVISION:
            if named := [other for other in elsewhere(source) if other.startswith("torchvision:")]:
                expected = "a torchvision data set with a training and a test half"
                raise InvalidValueError("data.source", expected, source, f"type data.source={named[0]}")
        case "webdataset" | "parquet", pattern:
            shard_locations(pattern, what="data.source")


def require_digits() -> None:
    """Refuse the digits where the library is missing that has them."""
    others = "or data.source=imagefolder:PATH, csv:PATH or another that tutelage list data shows"
    require_extra("data.source", "scikit-learn, which has the digits", "demo", "sklearn", otherwise=others)


def check_unlabelled(source: str) -> None:
    """Refuse a source of unlabelled samples as `check` does one of labelled ones.

    Raises:
        InvalidValueError: the kind is unknown.
        NotFoundError: there is no such file or folder.
    """
    kind, _, name = source.partition(":")
    try:
        match kind:
            case "images":
                image_folder(name, kind=kind)
            case "texts":
                text_file(kind, name, what="data.source")
            case _:
                check(source)
    except TutelageError as error:
        raise error.renamed(of_unlabelled) from error


def of_unlabelled(what: str) -> str:
    """Return the key of unlabelled samples for one of ``data.source``."""
    return "data.unlabelled.source" if what == "data.source" else what


def shown(source: str) -> str:
    """Return a source as it is shown: a local path's last component."""
    kind, _, name = source.partition(":")
    path = Path(name).expanduser()
    return f"{kind}:{path.resolve().name}" if path.exists() else source


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
    if others := elsewhere(source):
        instead = f"type {' or '.join(f'data.source={other}' for other in others)}"
    if any(pattern.startswith(f"{kind}:") for pattern in _UNLABELLED):
        instead = f"type data.unlabelled={source}, beside a data.source with labels"
    raise InvalidValueError("data.source", f"one of {', '.join(_SOURCES)}", repr(source), instead)


def elsewhere(source: str) -> list[str]:
    """Return the sources by which what was typed without its kind, or with another's, can be read.

    A path says by its files what it is; a name alone may be a data set's that torchvision or the Hub has.

    Example:
        >>> elsewhere("cifar100")
        ['torchvision:CIFAR100', 'hf:uoft-cs/cifar100']
    """
    kind, colon, name = source.partition(":")
    name = name if colon and kind.isidentifier() else source
    if name and Path(name).expanduser().exists():
        return [found] if (found := of_path(name)) and found != source else []
    folded = re.sub(r"[-_ ]", "", name.casefold())
    known = [f"torchvision:{other}" for other in _OF_TORCHVISION if other.casefold() == folded]
    hub = [full for short, full in _ON_THE_HUB.items() if folded in (short, re.sub(r"[-_ ]", "", full.casefold()))]
    return [found for found in (*known, *(f"hf:{full}" for full in hub)) if found != source]


def of_path(path: str) -> str | None:
    """Return the source that reads a file or a folder, by the names of its files; none if there is no such."""
    root = Path(path).expanduser()
    if root.is_file():
        kinds = {".csv": "csv", ".jsonl": "jsonl", ".parquet": "parquet", ".tar": "webdataset"}
        kind = kinds.get(root.suffix.lower())
    elif (root / "masks").is_dir() or (root / "train" / "masks").is_dir():
        kind = "masks"
    else:
        below = root / "train" if (root / "train").is_dir() else root
        kind = "imagefolder" if any(is_picture(each.name) for each in below.glob("*/*")) else None
        if kind is None and any(each for pattern in ("*.parquet", "*/*.parquet") for each in root.glob(pattern)):
            kind = "hf"
    return f"{kind}:{path}" if kind else None


def _missing(what: str, expected: str, source: str, path: str) -> NotFoundError:
    """Return the error for a path that is not there, or that another kind of source reads."""
    others = elsewhere(source) if Path(path).expanduser().exists() else []
    there = "is a folder" if Path(path).expanduser().is_dir() else "is a file"
    got = f"{source}, which {there if others else 'does not exist'}"
    return NotFoundError(what, expected, got, f"type {what}={others[0]}" if others else "check the path")


def image_folder(path: str, *, kind: str = "imagefolder") -> Path:
    """Return the folder of ``imagefolder:path``, ``masks:path`` or ``images:path``."""
    root = Path(path).expanduser()
    if not root.is_dir():
        raise _missing("data.source", "a folder", f"{kind}:{path}", path)
    return root


def text_file(kind: str, path: str, *, what: str) -> Path:
    """Return the file of ``jsonl:path``, ``csv:path`` or ``texts:path``."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise _missing(what, "a file", f"{kind}:{path}", path)
    return file


def local_folder(name: str) -> Path | None:
    """Return the folder of ``hf:name``; none where it is a data set of the Hub's."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_absolute() or name.startswith((".", "~")):
        raise NotFoundError("data.source", "a folder", f"hf:{name}, which does not exist", "check the path")
    return None


_MOST_SHARDS = 1_000_000
_BRACES = re.compile(r"\{([^{}]*)\}")


def is_url(location: str) -> bool:
    """Whether a location is behind ``http`` or ``https``."""
    return location.lower().startswith(("http://", "https://"))


def public_url(url: str) -> str:
    """Return a URL without a user's name, a password and a query, which may be a key."""
    scheme, _, rest = url.partition("://")
    server, slash, path = rest.partition("/")
    return f"{scheme}://{server.rpartition('@')[2]}{slash}{path.partition('?')[0]}"


def shard_locations(pattern: str, *, what: str) -> list[str]:
    """Return the paths and URLs of a pattern of shards.

    ``{000..012}`` counts, with zeros in front where they are typed; ``{a,b}`` gives each in turn; of a path, ``*``,
    ``?``, ``[...]`` and ``**`` stand for what is there, sorted by name.

    Raises:
        InvalidValueError: a count without an end, too many shards, or another protocol than HTTP.
        NotFoundError: there is no such file.
    """
    locations = []
    for text in _unbraced(pattern, what):
        if re.match(r"[a-z][a-z0-9+]+://", text, re.IGNORECASE):
            if not is_url(text):
                instead = "type an https URL, or the path where the storage is mounted"
                raise InvalidValueError(what, "a path, http or https", repr(pattern), instead)
            if "@" in text.split("/")[2]:
                raise InvalidValueError(
                    what, "a URL without a user's name", public_url(text), "copy the shards to a disk"
                )
            locations.append(text)
            continue
        path = str(Path(text).expanduser())
        found = sorted(glob.glob(path, recursive=True)) if glob.has_magic(path) else [path]
        files = [name for name in found if Path(name).is_file()]
        if not files:
            raise NotFoundError(what, "files of samples", f"none at {text}", "check the path")
        locations += files
    return locations


def _unbraced(pattern: str, what: str) -> list[str]:
    braces = _BRACES.search(pattern)
    if braces is None:
        return [pattern]
    inner = braces.group(1)
    ends = re.fullmatch(r"(\d+)\.\.(\d+)", inner)
    if ".." in inner and (ends is None or int(ends[2]) < int(ends[1])):
        raise InvalidValueError(what, "a range such as {000..012}", f"{{{inner}}}", "type its first and last number")
    after = _unbraced(pattern[braces.end() :], what)
    count = int(ends[2]) - int(ends[1]) + 1 if ends else inner.count(",") + 1
    if count * len(after) > _MOST_SHARDS:
        raise InvalidValueError(what, f"at most {_MOST_SHARDS} shards", pattern, "name fewer")
    choices = inner.split(",")
    if ends is not None:
        width = len(ends[1]) if ends[1].startswith("0") else 0
        choices = [str(number).zfill(width) for number in range(int(ends[1]), int(ends[2]) + 1)]
    return [pattern[: braces.start()] + choice + rest for choice in choices for rest in after]
