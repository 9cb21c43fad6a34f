"""Weights as files and as values: state dicts read without running code, fingerprints, and a run's saved student."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import pickle
import re
import struct
import tempfile
import typing
import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any, NotRequired, TypedDict

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from tutelage import plain_files, records
from tutelage.errors import InvalidTypeError, InvalidValueError, TutelageError, one_line
from tutelage.models import lora, structure
from tutelage.models.card import JSON_NAMES, Card
from tutelage.models.classifier import Classifier
from tutelage.models.names import INDEX, is_own_module, weights_file
from tutelage.submodules import trained_state
from tutelage.tensor_files import to_bytes

SUFFIX = ".safetensors"
_PACKED_FILES = {
    *(records.CARD, records.NETWORK, records.TOKENIZER),
    *("tokenizer_config.json", "chat_template.jinja"),
}
"""Files of a saved classifier's folder that stand in the header of one that is packed."""
WRAPPERS = ("model", "state_dict", "net", "model_state_dict", "network", "module")
"""Keys under which training scripts keep a network's state dict, along with other things."""
WITHIN = re.compile(r"(?<=\.)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What wrappers of single layers put into the middle of names."""
OPTIONAL = "num_batches_tracked"
"""Last part of the names that old checkpoints lack."""
DAMAGED = (
    SafetensorError,
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    OSError,
    KeyError,
    ValueError,
    TypeError,
    IndexError,
    AttributeError,
    MemoryError,
    struct.error,
)
"""Errors that readers raise on damaged files."""


def read(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict; nothing in the file is executed.

    Args:
        path: a ``.safetensors`` file, or one written by `torch.save`: a state dict, or a mapping that holds one under
            a key of `WRAPPERS`, or under others; an index of several such files; a folder with them, or with
            checkpoints of this package (`weights_file`). ``FILE#KEY`` is what a file holds under a key, or with
            it before all names, such as ``last.pth.tar#state_dict_ema``.

    Returns:
        Tensors by name, on the CPU, as in the file. Several state dicts under other keys, such as ``student`` and
        ``teacher``, are joined, each name behind its key and a dot. Of one beside averaged weights (``model_ema``) the
        former is taken, and a warning says so.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, holds no state dict, or would have to run code to be read.
    """
    path, key = weights_file(path)
    content = _content(path)
    if key is not None:
        content = _part(content, key, path)
    content = _state_in(content, path)
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        got = type(content).__name__
        if isinstance(content, Mapping):
            got = f"the keys {_some(map(str, content))}" if content else "no keys"
        instead = "save it again with torch.save(network.state_dict(), path)"
        raise InvalidValueError("weights", f"a state dict in {path}, bare or under {', '.join(WRAPPERS)}", got, instead)
    if empty := [name for name, value in content.items() if value.is_meta]:
        got, instead = (
            f"{path} without those of {_some(map(str, empty))}",
            "save it again where the tensors have values",
        )
        raise InvalidValueError("weights", "tensors with values", got, instead)
    return {str(name): value for name, value in content.items()}


def _part(content: Any, key: str, path: Path) -> Any:
    """Return what a mapping, or the state dict in it, has under a key, or behind it and a dot."""
    if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
        return content[key]
    state = _state_in(content, path)
    names = [name for name in state if isinstance(name, str)] if isinstance(state, Mapping) else []
    if part := {name.removeprefix(f"{key}."): state[name] for name in names if name.startswith(f"{key}.")}:
        return part
    got = f"the keys {_some(map(str, content), 10)}" if isinstance(content, Mapping) else type(content).__name__
    raise InvalidValueError("weights", f"a state dict under {key} in {path}", got, f"type {path}#KEY")


def _state_in(content: Any, path: Path) -> Any:
    """Return the state dict in what a training script saved; anything else unchanged."""
    if not isinstance(content, Mapping):
        return content
    for key in WRAPPERS:
        if isinstance(content.get(key), Mapping):
            if others := [other for other in _states(content) if other not in WRAPPERS]:
                left = ", ".join(map(str, others))
                warnings.warn(
                    f"weights: {path}: {key} is taken, and {left} left out; type {path}#{others[0]} for that",
                    stacklevel=3,
                )
            return _state_in(content[key], path)
    inner = [value for value in content.values() if isinstance(value, Mapping) and set(WRAPPERS) & value.keys()]
    return _state_in(inner[0], path) if len(inner) == 1 and not _states(content) else _joined(content)


def _states(content: Mapping[Any, Any]) -> dict[Any, Mapping[Any, Tensor]]:
    """Return the state dicts in a mapping by their keys."""
    states = {key: value for key, value in content.items() if isinstance(value, Mapping) and value}
    return {k: state for k, state in states.items() if all(isinstance(v, Tensor) for v in state.values())}


def _joined(content: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Return the state dicts in a mapping as one, with their keys before the names; anything else unchanged."""
    states = _states(content)
    if len(states) < 2:
        return next(iter(states.values()), content)
    return {f"{key}.{name}": tensor for key, state in states.items() for name, tensor in state.items()}


def _plain_values() -> list[Any]:
    """Return the classes of values beside the weights that only hold something: arguments, paths, numbers of NumPy."""
    functions = {"scalar": np.float64(0).__reduce__()[0], "_reconstruct": np.zeros(0).__reduce__()[0]}
    core = [
        (f"{package}.multiarray.{name}", function)
        for package in ("numpy.core", "numpy._core")
        for name, function in functions.items()
    ]
    paths = [
        (f"{module}.{kind}", PurePath)
        for module in ("pathlib", "pathlib._local")
        for kind in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    ]
    kinds = {type(np.dtype(code)) for code in "?bBhHiIlLqQefdU"}
    return [argparse.Namespace, np.dtype, np.ndarray, *kinds, *((each, name) for name, each in (*core, *paths))]


def _content(path: Path) -> Any:
    if path.name.endswith(INDEX):
        return _indexed(path)
    try:
        if path.suffix == SUFFIX:
            return safetensors.torch.load_file(path)
        # Training scripts keep their arguments and results with the weights.
        with torch.serialization.safe_globals(_plain_values()), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            return torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGED as error:
        reason = one_line(error)[:120]
        if isinstance(error, pickle.UnpicklingError):
            if refused := re.search(r"GLOBAL (\w[\w.]*)", str(error)):
                got = f"{path}, which refers to {refused.group(1)} and could run code when read, so that it was not"
                instead = "if you trust it, load it in a separate process and save its state dict again"
                raise InvalidValueError("weights", "tensors alone", got, instead) from error
            reason = "no pickle of tensors alone"
        got = f"{path} of {path.stat().st_size} bytes, which is cut off, damaged or of another format ({reason})"
        raise InvalidValueError("weights", "a whole checkpoint", got, "fetch or save it again") from error


def _indexed(path: Path) -> dict[str, Tensor]:
    """Read the state dict whose tensors lie in several files, as an index beside them says."""
    expected = "an index of files beside it, by the names of tensors"
    places = records.read_json(path, instead="fetch it again").get("weight_map")
    wrong = plain_files.misfit(places, dict[str, str]) or (None if places else "no names")
    files = [] if wrong else [*dict.fromkeys(places.values())]
    wrong = wrong or next((f"the file {file!r}" for file in files if Path(file).name != file), None)
    if wrong:
        raise InvalidValueError("weights", expected, f"{path} with {wrong}", "fetch or save it again")
    contents = {file: _content(weights_file(path.with_name(file))[0]) for file in files}
    lost = [name for name, file in places.items() if name not in contents[file]]
    if lost:
        got = f"{path} with {len(lost)} that are not in their files ({_some(lost)})"
        raise InvalidValueError("weights", expected, got, "fetch or save it again")
    return {name: contents[file][name] for name, file in places.items()}


def load(network: nn.Module, state: Mapping[str, Tensor], *, name: str = "the network", path: str | Path = "") -> None:
    """Copy a state dict into a network; every name and shape must fit.

    A prefix before all of the network's names, such as ``module.``, ``_orig_mod.`` or ``student.``, is dropped, as
    `unprefixed` does. A missing ``num_batches_tracked``, which old checkpoints lack, stays unchanged, and so does a
    tensor that the network shares with one that is there, which files may hold once.

    Args:
        network: network that gets the weights, in place.
        state: tensors by name.
        name: name of the network in error messages.
        path: file that the state was read from, for error messages.

    Raises:
        ValueError: if names are missing or unknown, shapes differ, or several parts of the state fit.
    """
    if isinstance(network, Classifier):
        network = network.network
    expected = {key: value for key, value in network.state_dict().items() if isinstance(value, Tensor)}
    state = unprefixed(state, expected, name=name, path=path)
    there = {expected[key].data_ptr() for key in state if key in expected and expected[key].numel()}
    optional = {
        key: value
        for key, value in expected.items()
        if key.endswith(OPTIONAL) or (key not in state and value.data_ptr() in there)
    }
    missing = [key for key in expected if key not in state and key not in optional]
    unexpected = [key for key in state if key not in expected]
    differing = [key for key in expected if key in state and expected[key].shape != state[key].shape]
    if missing or unexpected or differing:
        shapes = [f"{key} is {list(state[key].shape)}, not {list(expected[key].shape)}" for key in differing]
        kinds = {f"of {len(expected)} keys missing": missing, "unexpected": unexpected, "of another shape": shapes}
        problems = ", ".join(f"{len(keys)} {kind} ({_some(keys)})" for kind, keys in kinds.items() if keys)
        instead = "name the architecture that it was trained as; `tutelage list models` lists them"
        heads = {
            (state[key].shape[0], expected[key].shape[0])
            for key in differing
            if state[key].dim() and expected[key].dim()
        }
        layers = {key.rpartition(".")[0] for key in differing}
        if len(layers) == len(heads) == 1 and not missing and not unexpected:
            [(stored, classes)] = heads
            if stored != classes:
                instead = (
                    f"the checkpoint has {stored} classes and the model {classes}: type classes={stored} "
                    "to take it as it is"
                )
        raise InvalidValueError("weights", f"a checkpoint of {name}", f"{path or 'one'} with {problems}", instead)
    shared = [key for key in optional if not key.endswith(OPTIONAL) and key not in state]
    network.load_state_dict(
        {key: value for key, value in (optional | state).items() if key not in shared}, strict=not shared
    )


def unprefixed(
    state: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    *,
    name: str = "the network",
    path: str | Path = "",
    but: Collection[str] = (),
) -> dict[str, Tensor]:
    """Return the part of a state whose names, behind one prefix, are those of a network; a warning says which.

    Any prefix will do: wrappers put ``module.`` or ``_orig_mod.`` before all names, and a module that holds student
    and teacher puts theirs before each. A state that fits as it is, or in no part, is returned whole.

    Args:
        state: tensors by name.
        expected: the network's own.
        name: name of the network in messages.
        path: file that the state was read from, for messages.
        but: names that count as none of the network's if no part has them, such as a head's.

    Raises:
        ValueError: if several parts fit, by their shapes too.
    """
    state, required = dict(state), {key for key in expected if not key.endswith(OPTIONAL)}
    if not required or required <= state.keys() <= expected.keys():
        return state
    if but and not any(key.endswith(tuple(but)) for key in state):
        return unprefixed(state, {k: v for k, v in expected.items() if k not in but}, name=name, path=path)
    anchor = next(key for key in expected if key in required)
    prefixes = [key.removesuffix(anchor) for key in state if key.endswith(f".{anchor}")]
    parts = {
        prefix: {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)} for prefix in prefixes
    }
    parts = {prefix: part for prefix, part in parts.items() if required <= part.keys() <= expected.keys()}
    if len(parts) > 1:
        alike = [p for p, part in parts.items() if all(v.shape == expected[k].shape for k, v in part.items())]
        if len(alike) != 1:
            candidates = sorted(alike or parts)
            instead = f"type weights={path or 'FILE'}#{candidates[0].rstrip('.')} for that one"
            got = f"{len(candidates)} in {path or 'one state'}: {', '.join(candidates)}"
            raise InvalidValueError("weights", f"one part that fits {name}", got, instead)
        parts = {alike[0]: parts[alike[0]]}
    for prefix, part in parts.items():
        others = len(state) - len(part)
        left = f", and {others} tensors without it left out" if others else ""
        warnings.warn(f"weights: {path or name}: the prefix {prefix!r} is dropped from all names{left}", stacklevel=2)
        return part
    plain = {WITHIN.sub("", key): value for key, value in state.items()}
    if plain.keys() != state.keys() and len(plain) == len(state):
        warnings.warn(f"weights: {path or name}: what wrappers of layers put into the names is dropped", stacklevel=2)
        return unprefixed(plain, expected, name=name, path=path)
    return _without_first(state, expected)


def _without_first(state: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state that does not fit without what all its names begin with, if that brings some nearer to a fit."""
    firsts = {key.partition(".")[0] for key in state}
    without = {key.partition(".")[2]: value for key, value in state.items()}
    if len(firsts) != 1 or "" in without or state.keys() & expected.keys():
        return state
    nearer = without if without.keys() & expected.keys() else _without_first(without, expected)
    return nearer if nearer.keys() & expected.keys() else state


def _some(names: Any, most: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def fingerprint(module_or_state: nn.Module | Mapping[str, Tensor]) -> str:
    """Name a network's weights: the first 16 hex digits of a SHA-256.

    It covers the names, in order, with each tensor's dtype, shape and bytes: equal on any device and in any memory
    format, different after one flipped bit. For a `Classifier`, its bare network counts.

    Raises:
        TypeError: if a state holds anything other than tensors.
    """
    if isinstance(module_or_state, Classifier):
        module_or_state = module_or_state.network
    state = module_or_state.state_dict() if isinstance(module_or_state, nn.Module) else module_or_state
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name]
        if not isinstance(value, Tensor):
            raise InvalidTypeError(
                "state", "tensors alone", f"{type(value).__name__} under {name!r}", "leave extra state out"
            )
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        # reshape would keep a channels-last tensor's order of bytes in memory, so contiguous comes first
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def parameters(module: nn.Module) -> int:
    """Count a module's parameters, shared ones once, buffers not."""
    return sum(parameter.numel() for parameter in module.parameters())


def save(classifier: Classifier, folder: str | Path) -> Path:
    """Write a classifier so that `create` can rebuild it from the folder's path.

    ``student.safetensors`` holds the bare network's state under its published key names; ``student.json`` holds
    ``{"card": {...}, "name": ...}``, where the name is the one that the network is built by. A network of the
    transformers library has its ``config.json`` there too, and one that reads text its ``tokenizer.json``: the folder
    alone rebuilds it. Of one that is frozen in part, only the rest is written where a name fixes the weights of that
    part (``named_seed``); ``base`` in ``student.json`` has their fingerprint, and the name is needed to rebuild it.
    Where no name does, all is written. Adapters are in peft's own format too. ``outputs`` in ``student.json`` says
    which outputs stand for the classes, if not all in order. Each file is replaced atomically.

    Args:
        classifier: classifier to save; neither copied to another device nor changed.
        folder: folder to write to; created if it does not exist.

    Returns:
        The path of the weights.
    """
    folder, network = Path(folder), classifier.network
    path, state = folder / records.STUDENT, classifier.network.state_dict()
    described = describe(classifier)
    trained = trained_state(classifier)
    if (adapters := classifier.adapters) is not None:
        described["adapters"] = adapters._asdict()
    # The name makes float32 weights.
    if (seed := classifier.named_seed) is not None and len(trained) < len(state) and not classifier.is_double:
        described["base"] = {"fingerprint": frozen_fingerprint(classifier), "seed": seed}
        state = trained
    records.write_bytes(path, to_bytes(state))
    files = {} if classifier.call is None else classifier.call.files(network, classifier.card)
    contents = {name: content.encode() for name, content in files.items()}
    if adapters is not None and classifier.frozen and hasattr(network, "base_model_prefix"):
        base = classifier.card.name.partition(":")[2]
        contents |= lora.peft_files(network, adapters, base=base, trained=trained)
    for name, content in contents.items():
        records.write_bytes(folder / name, content)
    records.write_json(folder / records.CARD, described)
    return path


def describe(classifier: Classifier) -> dict[str, Any]:
    """Return what ``student.json`` says of a classifier that is saved whole.

    It is ``{"card": {...}, "name": ...}``; ``outputs`` where not all of the network's stand for the classes in order;
    and of a module of the user's own its class where that can be imported: ``"module": "package.file:Net"``.
    """
    described: dict[str, Any] = {"card": classifier.card.to_json(), "name": classifier.card.name}
    if classifier.outputs is not None:
        of = structure.head_classes(classifier.network) if classifier.call is None else classifier.call.classes
        described["outputs"] = {"chosen": classifier.outputs.tolist(), "of": of}
    kind = type(classifier.network)
    # What a container of PyTorch's, or an `Adapter`, is made of does not follow from its class.
    own = kind.__module__.partition(".")[0] not in ("__main__", "torch", "tutelage")
    if is_own_module(classifier.card.name) and own and "<locals>" not in kind.__qualname__:
        described["module"] = f"{kind.__module__}:{kind.__qualname__}"
    return described


def pack(classifier: Classifier, metadata: Mapping[str, str]) -> bytes:
    """Return a classifier that is saved whole as the content of one file, from whose path `create` rebuilds it.

    Args:
        classifier: classifier without adapters.
        metadata: what else goes into the file's header, by name.
    """
    files = {} if classifier.call is None else classifier.call.files(classifier.network, classifier.card)
    header = {records.CARD: json.dumps(describe(classifier), ensure_ascii=False), "format": "pt", **files, **metadata}
    return to_bytes(classifier.network.state_dict(), header)


@contextlib.contextmanager
def unpacked(path: Path) -> Iterator[tuple[Path, Path]]:
    """Yield a saved classifier's folder and its weights; what stands in the header of a file is one for as long.

    Raises:
        ValueError: if the file is damaged, or its header does not say what it is of.
    """
    if path.is_dir():
        yield path, path / records.STUDENT
        return
    try:
        with safetensors.safe_open(path, "pt") as opened:
            header: dict[str, str] = opened.metadata() or {}
    except DAMAGED as error:
        got = f"{path}, which is cut off, damaged or of another format ({one_line(error)[:120]})"
        raise InvalidValueError("model", "a whole safetensors file", got, "fetch or export it again") from error
    if records.CARD not in header:
        expected, got = f"a file of tutelage export, with {records.CARD} in its header", f"weights alone in {path}"
        instead = f"name the network, such as cifar:resnet20, and type weights={path}"
        raise InvalidValueError("model", expected, got, instead)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / path.name
        folder.mkdir()
        for name in _PACKED_FILES & header.keys():
            (folder / name).write_text(header[name], encoding="utf-8")
        try:
            yield folder, path
        except TutelageError as error:  # It names what was unpacked, which nobody finds.
            raise type(error).of(
                type(part)(
                    *(
                        text.replace(str(folder), str(path))
                        for text in (part.what, part.expected, part.got, part.instead)
                    )
                )
                for part in error.errors
            ) from error


def frozen_fingerprint(classifier: Classifier) -> str | None:
    """Return the `fingerprint` of what of a classifier is frozen; ``None`` if it is trained whole."""
    state = classifier.network.state_dict()
    return fingerprint({name: state[name] for name in classifier.frozen}) if classifier.frozen else None


class Base(TypedDict):
    """What a saved student stands on whose own files hold only what was trained."""

    fingerprint: str  # of all other tensors
    seed: int  # with which the card's name makes them


class _SavedAdapters(TypedDict):
    rank: int
    alpha: float
    targets: list[str]


class Chosen(TypedDict):
    """Which outputs of a network stand for its classes."""

    chosen: list[int]
    of: int | None  # how many it has; none where that is not known


class _SavedParts(TypedDict):
    adapters: NotRequired[_SavedAdapters]
    base: NotRequired[Base]
    outputs: NotRequired[Chosen]
    module: NotRequired[str]


def read_parts(folder: Path) -> tuple[lora.Adapters | None, Base | None]:
    """Read which adapters a saved classifier has, and what it stands on if its own weights are not all of them.

    Raises:
        ValueError: if the folder does not say it as `save` does.
    """
    value = _read_parts(folder)
    if not 0 <= (seed := value.get("base", {}).get("seed", 0)) < 2**63:
        instead = records.how_to_restore(folder)
        raise InvalidValueError(folder / records.CARD, "a seed from 0 to 2**63 - 1", seed, instead)
    saved = value.get("adapters")
    adapters = saved and lora.Adapters(saved["rank"], saved["alpha"], tuple(saved["targets"]))
    return adapters, value.get("base")


def read_outputs(folder: Path) -> Chosen | None:
    """Read which outputs of a saved classifier's network stand for its classes, where they are not all in order."""
    return _read_parts(folder).get("outputs")


def _read_parts(folder: Path) -> _SavedParts:
    path, instead = folder / records.CARD, records.how_to_restore(folder)
    value: _SavedParts = records.read_json(path, _SavedParts, instead=instead)
    return value


def read_module(folder: Path) -> str | None:
    """Read the class of a saved classifier that was a module of the user's own, ``package.file:Net``; else ``None``."""
    return _read_parts(folder).get("module")


def read_card(folder: Path) -> Card:
    """Read the card of a saved classifier; its ``weights`` name the folder's own file.

    Raises:
        ValueError: if the card cannot be read.
    """
    path, instead = folder / records.CARD, records.how_to_restore(folder)
    value = records.read_json(path, instead=instead)
    hints = {JSON_NAMES.get(name, name): hint for name, hint in typing.get_type_hints(Card).items()}
    try:
        for name, inner in value["card"].items():
            if wrong := plain_files.misfit(inner, hints.get(name, Any), f"{name}."):
                raise ValueError(wrong)
        card = Card.from_json(value["card"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        got = f"one without {error}" if isinstance(error, KeyError) else error
        raise InvalidValueError("model", f"a card in {path}", got, instead) from error
    # The saved head is the trained one, whatever its origin.
    return dataclasses.replace(card, weights=f"{folder.resolve().name}/{records.STUDENT}", fresh_head=False)
