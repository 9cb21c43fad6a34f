"""``hf:``: data sets of the Hugging Face Hub and local folders that its library reads; its only importer."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tutelage import records
from tutelage.data import cache, file_hashes, multi_hot
from tutelage.data.build import Description, Raw, UnlabelledImages, check_labels, from_images
from tutelage.data.datasets import Splits
from tutelage.data.masks import Masks
from tutelage.data.names import local_folder
from tutelage.data.sources.masks import numbered_classes
from tutelage.data.texts import Texts, beside_images, from_texts, open_tokenizer, read_texts
from tutelage.errors import InvalidValueError, NetworkError, NotFoundError, missing_extra, one_line
from tutelage.hub_files import licence_in, reaching_hub
from tutelage.images import READER_VERSION, Encoded
from tutelage.settings.data import DataSettings
from tutelage.types import UNLABELLED

_TESTS = ("test", "validation", "valid")


@dataclass(frozen=True)
class HubReader:
    """Images of one column, as stored files."""

    rows: Any  # a ``datasets.Dataset`` whose image column is not decoded
    column: str
    split: str

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, position: int) -> str:
        """Return the image's split and row."""
        return f"{self.split} row {position}"

    def encoded(self, positions: Sequence[int]) -> list[Encoded]:
        """Return the images' files; a missing one as empty bytes, which cannot be decoded."""
        chosen = slice(positions.start, positions.stop) if isinstance(positions, range) else list(positions)
        return [_file_of(item) for item in self.rows[chosen][self.column]]


def _file_of(item: Mapping[str, Any] | None) -> Encoded:
    if item is None:
        return b""
    if item["bytes"] is not None:
        return bytes(item["bytes"])
    return Path(item["path"]) if item["path"] else b""


def open_hub(name: str, settings: DataSettings, unlabelled: UnlabelledImages | Texts | None = None) -> Splits:
    """Open a data set by its hub id, or by the path of a folder if there is one of that name.

    Training rows whose label is empty or -1 are unlabelled: -100.

    Raises:
        ImportError: if the ``datasets`` library is missing.
        FileNotFoundError: if it is neither a folder nor a reachable data set.
        ValueError: if there is no split to train on or no such column, or labels are outside the classes.
    """
    splits, local = _load(name)
    said = (rows.info.license for rows in splits.values())
    licence = next(filter(None, said), None) or _published_licence(name)
    return replace(_opened(name, splits, local, settings, unlabelled), licence=licence)


def _opened(
    name: str,
    splits: Mapping[str, Any],
    local: bool,
    settings: DataSettings,
    unlabelled: UnlabelledImages | Texts | None,
) -> Splits:
    from datasets import ClassLabel, Image

    shown = f"hf:{Path(name).expanduser().resolve().name}" if local else f"hf:{name}"
    if "train" not in splits:
        raise InvalidValueError(
            "data.source", f"a split named train in {shown}", ", ".join(splits), "choose another data set"
        )
    test_name = next((n for n in _TESTS if n in splits), None)
    named_otherwise = test_name in _TESTS[1:]
    notes = [f"The source has no test split: its {test_name} split is used for test."] if named_otherwise else []
    halves = {n: splits[n] for n in ("train", test_name) if n is not None}
    if settings.is_text and not settings.is_pair:
        assert not isinstance(unlabelled, UnlabelledImages)
        return _texts(halves, settings, source=shown, notes=notes, unlabelled=unlabelled)
    assert not isinstance(unlabelled, Texts)
    dtypes = {name: str(getattr(feature, "dtype", None)) for name, feature in splits["train"].features.items()}
    mask = None if settings.mask is None else _column(splits["train"], "mask", Image, settings.mask)
    image = _column(splits["train"], "image", Image, settings.image, apart=mask)
    masks: dict[str, Masks] = {}
    if mask is not None:
        if lacking := [split for split, rows in halves.items() if mask not in rows.features]:
            raise _column_error(halves[lacking[0]], "mask", f"{mask!r} in the split {lacking[0]} too", "none", [])
        masks = {
            split: Masks(_reader(rows, mask, split), _reader(rows, image, split)) for split, rows in halves.items()
        }
        names = numbered_classes(list(masks.values()), shown)
        labels = {split: np.zeros(len(rows), np.int64) for split, rows in halves.items()}
    elif settings.labels is not None:
        names, labels = _several(halves, settings.labels, shown)
    elif _without_labels(splits["train"], settings):
        names = []
        labels = {split: np.full(len(rows), UNLABELLED, np.int64) for split, rows in halves.items()}
    else:
        names, labels = _labels(halves, _column(splits["train"], "label", ClassLabel, settings.label, dtypes=dtypes))

    @functools.cache
    def files() -> bytes:
        return _files(Path(name).expanduser()) if local else b""

    raws = [
        Raw(
            _reader(rows, image, split),
            labels[split],
            partial(_identity, rows, split, files),
            masks=replace(masks[split], classes=len(names)) if masks else None,
        )
        for split, rows in halves.items()
    ]
    description = Description(class_names=names, settings=settings, source=shown, notes=notes, unlabelled=unlabelled)
    if not settings.is_pair:
        return from_images(raws[0], raws[1] if test_name else None, description, key=_key(halves, image, settings))
    texts, paired = [], []
    for raw, (split, rows) in zip(raws, halves.items(), strict=True):
        texts.append(_read_texts(rows, split, settings, source=shown))
        kept = texts[-1].kept(f"{split} row {number}" for number in range(len(rows)))
        paired.append(replace(raw.subset(kept), texts=np.arange(len(kept))))
    key = None if any(text.corrupt for text in texts) else _key(halves, image, settings)
    images = from_images(paired[0], paired[1] if test_name else None, description, key=key)
    test = texts[1] if test_name else None
    return beside_images(images, texts[0], test, settings, tokenizer=open_tokenizer(settings))


def _without_labels(rows: Any, settings: DataSettings) -> bool:
    """Whether embeddings are learned, for which a source need not have a column of labels, and none is meant."""
    from datasets import ClassLabel

    columns = [feature for feature in rows.features.values() if isinstance(feature, ClassLabel)]
    return settings.embedding is not None and settings.label is None and len(columns) != 1


def _reader(rows: Any, image: str, split: str) -> HubReader:
    from datasets import Image

    return HubReader(rows.select_columns([image]).cast_column(image, Image(decode=False)), image, split)


def unlabelled_rows(name: str, settings: DataSettings) -> UnlabelledImages | Texts:
    """Open the images or the texts of a data set's training split, or its only one, without labels.

    Raises:
        ImportError: if the ``datasets`` library is missing.
        FileNotFoundError: if it is neither a folder nor a reachable data set.
        ValueError: if there is no such split or column.
    """
    splits, local = _load(name)
    from datasets import Image

    split = "train" if "train" in splits else next(iter(splits))
    if split != "train" and len(splits) > 1:
        raise InvalidValueError("data.source", f"a split named train in hf:{name}", ", ".join(splits), "choose another")
    rows, folder = splits[split], Path(name).expanduser()
    shown = f"hf:{folder.resolve().name}" if local else f"hf:{name}"
    if settings.is_text:
        return _read_texts(rows, split, settings, source=shown)
    image = _column(rows, "image", Image, settings.image)
    labels = np.full(len(rows), UNLABELLED, np.int64)
    files = partial(_files, folder) if local else bytes
    raw = Raw(_reader(rows, image, split), labels, partial(_identity, rows, split, files))
    return UnlabelledImages(raw=raw, key=_key({split: rows}, image, replace(settings, size=None, test_crop=None)))


def _read_texts(rows: Any, split: str, settings: DataSettings, *, source: str) -> Texts:
    """Read a split's column of texts, without labels."""
    if settings.text not in rows.features:
        raise _column_error(rows, "text", f"a column of {source}", repr(settings.text), [])
    records = ((f"{split} row {k}", record) for k, record in enumerate(rows.select_columns([settings.text])))
    return read_texts(records, settings, label=None, source=source, tokenizer=None)


def _texts(
    halves: Mapping[str, Any],
    settings: DataSettings,
    *,
    source: str,
    notes: Sequence[str],
    unlabelled: Texts | None,
) -> Splits:
    """Open columns of texts, with labels of the only class-label column unless another is named."""
    from datasets import ClassLabel

    features, tokenizer = halves["train"].features, open_tokenizer(settings)
    keys = [key for key in ("text", "prompt", "completion", "messages") if getattr(settings, key) is not None]
    several = () if settings.labels is None else multi_hot.names_of(settings.labels)
    label = None if settings.per_token else settings.label
    without = settings.per_token or _without_labels(halves["train"], settings)
    if label is None and not several and not without:
        label = _column(halves["train"], "label", ClassLabel, None, dtypes={n: str(f) for n, f in features.items()})
    labels = [("label", label)] if label else [("labels", column) for column in several]
    for key, column in [*((key, getattr(settings, key)) for key in keys), *labels]:
        lacking = [name for name, rows in halves.items() if column not in rows.features]
        if lacking:
            raise _column_error(halves[lacking[0]], key, f"a column of the split {lacking[0]}", repr(column), [])
    answers = settings.top_logprobs
    if answers is not None and answers not in features:
        raise _column_error(halves["train"], "top_logprobs", "a column of the split train", repr(answers), [])
    columns = [*(getattr(settings, key) for key in keys), *(column for _, column in labels)]

    def read(split: str) -> Texts:
        served = answers if split == "train" else None  # The test set needs none.
        rows = halves[split].select_columns(list(dict.fromkeys([*columns, *([served] if served else [])])))
        records = ((f"{split} row {number}", record) for number, record in enumerate(rows))
        return read_texts(records, settings, label=label, source=source, tokenizer=tokenizer, answers=served)

    train, *test = map(read, halves)
    names = getattr(features[label], "names", None) if label else _item_names(features, settings.labels)
    return from_texts(
        train,
        test[0] if test else None,
        settings,
        source=source,
        tokenizer=tokenizer,
        names=names,
        notes=notes,
        unlabelled=unlabelled,
    )


def _published_licence(name: str) -> str | None:
    """Return the licence that the card of a data set says, which lies in its folder or was kept when it was fetched."""
    folder = local_folder(name)
    if folder is not None:
        return licence_in(folder / records.README)
    from huggingface_hub import try_to_load_from_cache

    kept = try_to_load_from_cache(name, records.README, repo_type="dataset")
    return licence_in(Path(kept)) if isinstance(kept, str) else None


def _load(name: str) -> tuple[Mapping[str, Any], bool]:
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise missing_extra("data.source", "datasets for hf:", "hf", error) from error
    folder = local_folder(name)
    try:
        if folder is not None and (folder / "dataset_dict.json").exists():
            splits = datasets.load_from_disk(str(folder))
        else:
            splits = datasets.load_dataset(str(folder)) if folder is not None else _fetched(name)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        if isinstance(error, NetworkError):
            raise
        unreadable = folder is not None and isinstance(error, PermissionError)
        if isinstance(error, OSError) and error.errno in records.DISK and not unreadable:
            library = Path(datasets.config.HF_DATASETS_CACHE)
            raise records.storage_error(
                error, f"hf:{name} in '{library}'", folder=library, elsewhere="set HF_HOME to another folder"
            ) from error
        expected = "a data set that can be read"
        instead = "check the name and the connection, or type the path of a local copy after hf:"
        raise NotFoundError("data.source", expected, f"hf:{name} ({one_line(error)})", instead) from error
    return splits, folder is not None


def _fetched(name: str) -> Mapping[str, Any]:
    """Return a data set of the Hub, or its copy on this machine where the Hub does not answer."""
    import datasets

    expected, instead = f"to fetch hf:{name} from the Hub", "type the path of a local copy after hf:"
    with reaching_hub(name, kind="datasets", what="data.source", expected=expected, instead=instead):
        splits: Mapping[str, Any] = datasets.load_dataset(name)
    return splits


def _column(
    rows: Any,
    key: str,
    kind: Any,
    chosen: str | None,
    *,
    dtypes: Mapping[str, str] | None = None,
    apart: str | None = None,
) -> str:
    """Return the chosen column, of that kind or an integer dtype; if none is chosen, the only one of that kind.

    ``apart`` is another column of the kind, which is chosen for something else.
    """
    dtypes = dtypes or {}
    suitable = [name for name, feature in rows.features.items() if isinstance(feature, kind) and name != apart]
    integers = [name for name, dtype in dtypes.items() if dtype.startswith(("int", "uint"))]
    if chosen is None and len(suitable) == 1:
        return suitable[0]
    if chosen is not None and chosen in (*suitable, *integers):
        return chosen
    if chosen is None:
        expected, got, suitable = f"one {kind.__name__} column", str(len(suitable)), suitable or integers
    else:
        dtype = f" of type {dtypes[chosen]}" if chosen in dtypes else ""
        expected, got = f"a column of {'class indices' if dtypes else 'images'}", f"{chosen!r}{dtype}"
    raise _column_error(rows, key, expected, got, suitable)


def _column_error(rows: Any, key: str, expected: str, got: str, suitable: Sequence[str]) -> InvalidValueError:
    keys = " or ".join(f"data.{key}={column}" for column in suitable)
    instead = f"type {keys}" if suitable else "none of them will do: choose another data set"
    return InvalidValueError(f"data.{key}", expected, got, f"the columns are {', '.join(rows.features)}; {instead}")


def _labels(halves: Mapping[str, Any], column: str) -> tuple[list[str], dict[str, Any]]:
    values: dict[str, Any] = {}
    for split, rows in halves.items():
        if column not in rows.features:
            raise _column_error(rows, "label", f"{column!r} in the split {split} too", "none", [])
        entries = rows.select_columns([column])[:][column]
        if split == "train":
            entries = [UNLABELLED if entry is None or entry == -1 else entry for entry in entries]
        if any(entry is None for entry in entries):
            expected = f"a class index in every row of the split {split}"
            instead = "choose a data set whose rows are all labelled"
            raise InvalidValueError("data.label", expected, f"an empty {column}", instead)
        values[split] = np.array(entries, np.int64)
    names = getattr(halves["train"].features[column], "names", None)
    if names is None:
        names = [str(i) for i in range(int(values["train"].max(initial=0)) + 1)]
    for split, labels in values.items():
        check_labels(
            labels[labels != UNLABELLED] if split == "train" else labels,
            classes=len(names),
            what=f"the column {column} of the split {split}",
            instead="choose another column (data.label=...) or a data set whose splits are labelled alike",
        )
    return list(names), values


def _several(
    halves: Mapping[str, Any], columns: str | tuple[str, ...], source: str
) -> tuple[list[str], dict[str, Any]]:
    """Return the labels' names, and of each split ``(rows, labels)``."""
    known, chosen = [], list(multi_hot.names_of(columns))
    for split, rows in halves.items():
        if lacking := [column for column in chosen if column not in rows.features]:
            raise _column_error(rows, "labels", f"{lacking[0]!r} in the split {split}", "none", [])
        values = rows.select_columns(chosen)[:]
        known.append(multi_hot.rows_of(values, columns, source=f"the split {split} of {source}"))
    names = _item_names(halves["train"].features, columns)
    names, labels = multi_hot.table(known, columns, names, source=source)
    return names, dict(zip(halves, labels, strict=True))


def _item_names(features: Mapping[str, Any], columns: str | tuple[str, ...] | None) -> Sequence[str] | None:
    """Return the names of the classes in a column of lists, if the data set has them."""
    if not isinstance(columns, str):
        return None
    names: Sequence[str] | None = getattr(getattr(features[columns], "feature", None), "names", None)
    return names


def _identity(rows: Any, split: str, files: Callable[[], bytes]) -> bytes:
    """Describe a split by the library's record of it and by its folder's files, if it has a folder."""
    known = (rows.info.splits or {}).get(split)
    description = f"{split} {len(rows)} {known.num_bytes if known else 0} {sorted(rows.features)}"
    return description.encode() + b"\n" + files()


def _files(root: Path) -> bytes:
    # Files named cache- are the library's, not the data set's.
    files, _ = file_hashes.scan(
        root,
        [""],
        keep=lambda name: not name.startswith((".", "cache-")),
        enter=lambda name: not name.startswith("."),
    )
    return file_hashes.listing(files)


def _key(halves: Mapping[str, Any], image: str, settings: DataSettings) -> str | None:
    """Name the decoded pixels by the files that hold the rows; ``None`` if no file does."""
    paths = [(split, entry["filename"]) for split, rows in halves.items() for entry in rows.cache_files]
    files = [[split, path, os.stat(path).st_size, os.stat(path).st_mtime_ns] for split, path in paths]
    if not files:
        return None
    division = [settings.test, settings.split_seed] if len(halves) == 1 else None
    image = image if settings.mask is None else f"{image} {settings.mask}"
    read = [READER_VERSION, image, settings.size, settings.test_crop, settings.interpolation, division]
    return cache.key_of([files, read])
