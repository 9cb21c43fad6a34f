"""The source ``hf:``: networks of the transformers library, with published weights or made from a configuration.

Weights are read from safetensors alone, and no code of a repository is run.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import torch
from torch import nn

from tutelage import plain_files, records
from tutelage.errors import (
    InvalidValueError,
    NotFoundError,
    TutelageError,
    missing_extra,
    nearest,
    one_line,
    printable,
    reason_of,
)
from tutelage.hub_files import folder_of, licence_in
from tutelage.images import MEAN, STD
from tutelage.models import io
from tutelage.models.card import Card
from tutelage.models.hf_calls import INDEX, OF_LABELS, OWN, HubCall
from tutelage.models.names import HF_KINDS
from tutelage.models.sentence import ACTIVATIONS, POOLINGS, SentenceClassifier
from tutelage.models.spec import ModelRequest, ModelSpec, resized
from tutelage.submodules import evaluation_mode
from tutelage.text import TextInput, Tokenizer, tokenizer_of
from tutelage.types import PADDING

PREFIX = "hf"
EXAMPLE = "hf:distilbert/distilbert-base-uncased"
LISTED = [
    ("hf:ORG/NAME", f"a network of the Hugging Face Hub, by transformers; safetensors alone; such as {EXAMPLE}"),
    ("hf:FOLDER", "a local folder of one, or package:PACKAGE/FOLDER inside an installed package"),
    ("hf:TYPE", "with config={...}: a network of that type with random weights, such as bert or llama"),
]
_FILES = ("*.json", "*.safetensors", "*/config.json", "*/*.safetensors")
_WEIGHTS = "model.safetensors"
_MODULES = "modules.json"
PROCESSOR = "preprocessor_config.json"
_BICUBIC = 3  # as Pillow numbers it


class _Own(TypedDict):
    """What a saved network's configuration has besides the library's."""

    kind: Literal["image", "pixels", "sequence", "token", "causal", "sentence"]
    poolings: NotRequired[list[str]]
    behind: NotRequired[list[Any]]


class _Configuration(TypedDict):
    """What is read here of a configuration, which the library reads the rest of."""

    model_type: str
    architectures: NotRequired[list[str] | None]
    tutelage: NotRequired[_Own]


def plan(path: str, request: ModelRequest) -> ModelSpec:
    """Describe a network of the transformers library by its configuration.

    With text it classifies each text, or each token, or predicts each next one; without, images, or their pixels. A
    folder of the sentence-transformers library is an encoder, whose sentence vectors a fresh linear head classifies.

    Raises:
        ImportError: if transformers is not installed.
        FileNotFoundError: if there is no such folder, package, file or repository.
        ConnectionError: if the Hub cannot be reached.
        ValueError: if the network is none for these inputs, needs code of its repository, or has no safetensors.
    """
    name, (config, folder) = f"{PREFIX}:{path}", _configuration(path, request)
    own = config.pop(OWN, {})
    if "auto_map" in config:
        got = f"{name}, which is code in its repository"
        raise InvalidValueError("model", "a network that transformers has", got, "name another; code is never run here")
    kind = own.get("kind") or ("pixels" if request.task == "pixels" else _kind(folder, request.text))
    settings = _settings(config, name)
    sentence = own or (_modules(folder) if kind == "sentence" and folder else None)
    trained = folder is not None and _ends_as(config, HF_KINDS[kind]) and kind not in ("sentence", "causal")
    classes, card_of_weights = request.classes, {}
    if trained and not request.saved:
        classes, card_of_weights = settings.num_labels, _names(settings)
        if settings.problem_type == OF_LABELS:
            card_of_weights["task"] = "labels"
        elif settings.problem_type and request.task == "labels" and "classes" in request.as_trained:
            expected, instead = "a network of several labels a sample, as the data ask", "name another"
            raise InvalidValueError("model", expected, f"{name}, of {settings.problem_type}", instead)
    if kind == "causal" and request.text is not None:
        classes = request.text.tokenizer.size
    if classes is None:
        instead = f"type tutelage.models.create({name!r}, classes=10)"
        raise InvalidValueError("classes", f"a number for {name}, whose weights have no head", "none", instead)
    if request.text is not None:
        fixed = any(each is not None for each in (folder, request.saved, request.like))
        if kind == "sequence" and settings.is_encoder_decoder and not fixed:
            got = f"{name}, an encoder with a decoder, which classifies texts by how it was pretrained to end them"
            raise InvalidValueError("model", "an encoder or a decoder", got, "name another, such as hf:bert")
        if folder is not None:
            _require_tokenizer(folder, path, request.text.tokenizer)
        _fit_text(settings, request.text, name, kind=kind, fixed=fixed)
        card = _of_text(request.text)
    else:
        card = _of_images(settings, folder, request)
        request = replace(request, channels=card["channels"])
    text = request.text and replace(request.text, next_token=kind == "causal")
    pad = _padding_id(settings, text)
    call = HubCall(kind=kind, classes=classes, text=text, pad=pad, sentence=_described(sentence))
    make = partial(_make, settings, call, name=name)
    fetch = None
    if folder is not None and request.tagged:
        fetch = partial(_fetch, make, folder, name, kind=kind, classes=classes, trained=trained or kind == "causal")
    return ModelSpec(
        card=Card(
            name=name,
            classes=classes,
            weights=_weights_of(path) if fetch else None,
            source=f"https://huggingface.co/{path}" if fetch and not Path(path).exists() and ":" not in path else None,
            licence=licence_in(folder / records.README) if fetch and folder is not None else None,
            fresh_head=fetch is not None and not trained and kind != "causal",
            **card_of_weights,
            **card,
        ),
        build=make,
        fetch=fetch,
        call=call,
    )


def _library() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise missing_extra("model", "transformers for an hf: name", "text", error) from error
    return transformers


def _configuration(path: str, request: ModelRequest) -> tuple[dict[str, Any], Path | None]:
    """Return the network's configuration, and the folder of its weights, if its name has any."""
    if request.like is not None:
        return dict(request.like), None
    if request.saved is not None:
        return _json(request.saved / records.NETWORK), None
    if request.config is not None:
        known = _library().CONFIG_MAPPING
        if path not in known:
            instead = nearest(path, list(known), otherwise="for example hf:bert")
            raise InvalidValueError("model", "hf: and a type of transformers' with config", f"hf:{path}", instead)
        return {**request.config, "model_type": path}, None
    if path.endswith(".json"):
        if not Path(path).is_file():
            raise NotFoundError("model", "a configuration file", f"hf:{path}, which does not exist", "check the path")
        return _json(Path(path)), None
    folder = folder_of(path, _FILES, what="model", optional=(records.README,))
    if not (folder / records.NETWORK).is_file():
        raise NotFoundError("model", f"a folder with {records.NETWORK}", f"none in {folder.name}", "name another")
    return _json(folder / records.NETWORK), folder


def _json(path: Path) -> dict[str, Any]:
    with _readable(path, "a configuration of transformers"):
        value = plain_files.parse_json(plain_files.read(path))
        if wrong := plain_files.misfit(value, _Configuration, ""):
            raise ValueError(wrong)
    if value["model_type"] not in _library().CONFIG_MAPPING:
        got = f"{value['model_type']!r} in {path}"
        raise InvalidValueError("model", "a type that the installed transformers has", got, "upgrade transformers")
    return value


def _settings(config: Mapping[str, Any], name: str) -> Any:
    with _refusals(name):
        return _library().AutoConfig.for_model(**config)


@contextlib.contextmanager
def _refusals(name: str) -> Iterator[None]:
    """Say what the library cannot make of a configuration; each of its types raises errors of its own classes."""
    try:
        yield
    except TutelageError:
        raise
    except Exception as error:
        of_another_kind = "Unrecognized configuration class" in str(error)  # and a list of all that it is not
        got = "a type that it has not for such data" if of_another_kind else printable(reason_of(error))
        expected = f"{name} to be made and called by transformers"
        raise InvalidValueError("model", expected, got, "mend its configuration, or name another") from error


@contextlib.contextmanager
def _readable(path: Path, expected: str) -> Iterator[None]:
    """Say which of a folder's files cannot be read, or lacks something."""
    try:
        yield
    except TutelageError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"one without {error}" if isinstance(error, KeyError) else one_line(error)
        got = f"{path.name} of {path.resolve().parent.name}: {printable(reason)}"
        raise InvalidValueError("model", expected, got, "fetch or write it again") from error


def _ends_as(config: Mapping[str, Any], ending: str) -> bool:
    return any(each.endswith(ending) for each in config.get("architectures") or ())


def _kind(folder: Path | None, text: TextInput | None) -> str:
    if text is None:
        return "image"
    if text.per_token:
        return "causal" if text.next_token else "token"
    return "sentence" if folder is not None and (folder / _MODULES).is_file() else "sequence"


def _names(settings: Any) -> dict[str, Any]:
    """Return the card's class names, if they are more than numbers."""
    names = tuple(str(settings.id2label[k]) for k in range(settings.num_labels))
    return {} if all(name == f"LABEL_{k}" for k, name in enumerate(names)) else {"class_names": names}


def _weights_of(path: str) -> str:
    return Path(path).name if Path(path).is_dir() else path


def _of_text(text: TextInput) -> dict[str, Any]:
    fingerprint = text.tokenizer.fingerprint
    return {"max_tokens": text.max_tokens, "per_token": text.per_token, "tokenizer": fingerprint}


def _require_tokenizer(folder: Path, path: str, tokenizer: Tokenizer) -> None:
    """Refuse other tokens than those that came with the weights, where some did."""
    if not (folder / records.TOKENIZER).is_file():
        return
    published = tokenizer_of(str(folder), what="model")
    if tokenizer.fingerprint != published.fingerprint and tokenizer.tokens != published.tokens:
        expected = f"the tokenizer of {PREFIX}:{path}, whose tokens are {published.tokens}"
        got = f"one whose tokens are {tokenizer.tokens}"
        instead = f"type data.tokenizer={path}, or data.teacher_tokenizer={path} where it is the teacher"
        raise InvalidValueError("model", expected, got, instead)


def _padding_id(settings: Any, text: TextInput | None) -> int:
    """Return the id that stands where a text has ended: one that texts do not have, as far as one is known."""
    ids = [getattr(settings, "pad_token_id", None)]
    if text is not None:
        ids += [text.tokenizer.padding_id, getattr(settings, "eos_token_id", None), text.tokenizer.end_id]
    size = getattr(settings, "vocab_size", None) or float("inf")  # GPT-2's default end is outside smaller ones.
    return next((id_ for id_ in ids if isinstance(id_, int) and 0 <= id_ < size), 0)


def _fit_text(settings: Any, text: TextInput, name: str, *, kind: str, fixed: bool) -> None:
    """Give a network without weights the tokenizer's size and the texts' length; refuse one with others."""
    size, places = text.tokenizer.size, _places(settings)
    if not fixed:
        settings.vocab_size = size
        end = text.tokenizer.end_id
        settings.bos_token_id = settings.eos_token_id = None
        pad = _padding_id(None, text)
        with contextlib.suppress(Exception):  # of types that cannot do without one
            settings.pad_token_id = None
        if kind == "causal":
            settings.eos_token_id = end
        if places is None:
            return
        # Tried with a padding token, which not all have.
        before, settings.pad_token_id = settings.pad_token_id, pad
        settings.max_position_embeddings = max(places, text.max_tokens + pad + 1)
        first = _first_place(settings, kind, name)
        settings.max_position_embeddings = max(places, text.max_tokens + first)
        if not first:
            settings.pad_token_id = before
        return
    if size > settings.vocab_size:
        instead = "name the tokenizer that it was trained with"
        raise InvalidValueError("tokenizer", f"at most the {settings.vocab_size} tokens of {name}", size, instead)
    if places is None:
        return
    longest = places - _first_place(settings, kind, name)
    if longest < text.max_tokens:
        key = "data.pack" if text.per_token else "data.max_tokens"
        raise InvalidValueError(
            key, f"at most {longest}, as {name} has places", text.max_tokens, f"type {key}={longest}"
        )


def _places(settings: Any) -> int | None:
    places = getattr(settings, "max_position_embeddings", None)
    return places if isinstance(places, int) and places > 0 else None  # XLNet's has -1 for any number.


def _first_place(settings: Any, kind: str, name: str) -> int:
    """Return the number of the first token's place: behind that of padding, where the table of places has one."""
    with quiet(), _refusals(name), torch.device("meta"):
        network = _new(settings, kind)
    tables = (each for path, each in network.named_modules() if path.rpartition(".")[2] == "position_embeddings")
    return next((int(each.padding_idx) + 1 for each in tables if getattr(each, "padding_idx", None) is not None), 0)


def _of_images(settings: Any, folder: Path | None, request: ModelRequest) -> dict[str, Any]:
    """Return the card's facts of images: those of the processor that was published with the weights, or usual ones."""
    if folder is not None and (folder / PROCESSOR).is_file():
        with _readable(folder / PROCESSOR, "what the network's images are made by"):
            processor = plain_files.parse_json(plain_files.read(folder / PROCESSOR))
            return _processed(processor, settings, request)
    return _processed({}, settings, request)


def _processed(processor: Mapping[str, Any], settings: Any, request: ModelRequest) -> dict[str, Any]:
    size, crop = processor.get("size"), processor.get("crop_size")
    native = getattr(settings, "image_size", None)
    fed = _sides(crop) or _sides(size) or _sides(native) or request.image_size
    channels = int(getattr(settings, "num_channels", request.channels))
    margin = 1.0
    if processor.get("crop_pct"):
        margin = 1 / float(processor["crop_pct"])
    elif fed and isinstance(size, dict) and "shortest_edge" in size:
        margin = max(1.0, size["shortest_edge"] / min(fed))
    plain = processor.get("do_normalize") is False
    return {
        "channels": channels,
        "image_size": fed,
        "margin": margin,
        "interpolation": "bicubic" if processor.get("resample") == _BICUBIC else "bilinear",
        "mean": None if plain else resized(processor.get("image_mean", MEAN), channels),
        "std": None if plain else resized(processor.get("image_std", STD), channels),
    }


def _sides(size: Any) -> tuple[int, int] | None:
    """Return height and width of a size as processors and configurations write them."""
    if isinstance(size, dict):
        if "height" in size:
            return int(size["height"]), int(size["width"])
        size = size.get("shortest_edge")
    if isinstance(size, list | tuple) and len(size) == 2:
        return int(size[0]), int(size[1])
    return (int(size), int(size)) if isinstance(size, int) else None


def _described(sentence: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return {key: sentence[key] for key in ("poolings", "behind")} if sentence and "poolings" in sentence else None


def _modules(folder: Path) -> dict[str, Any]:
    with _readable(folder / _MODULES, "an encoder of sentence-transformers"):
        return _sentence(folder)


def _sentence(folder: Path) -> dict[str, Any]:
    """Read what a folder of sentence-transformers does with tokens' states."""
    poolings: list[str] = []
    behind: list[Any] = []
    paths: list[str] = []
    modules = plain_files.parse_json(plain_files.read(folder / _MODULES))
    for module in modules:
        kind = str(module["type"]).rpartition(".")[2]
        settings = folder / module["path"] / "config.json"
        if kind == "Transformer" and not module["path"]:
            continue
        if kind == "Pooling":
            poolings += _poolings(plain_files.parse_json(plain_files.read(settings)))
        elif kind == "Normalize":
            behind.append("unit_length")
        elif kind == "Dense":
            written = plain_files.parse_json(plain_files.read(settings))
            activation = str(written.get("activation_function", "Tanh")).rpartition(".")[2]
            sizes = {key: int(written[key]) for key in ("in_features", "out_features")}
            behind.append({**sizes, "bias": bool(written.get("bias", True)), "activation": activation})
            paths.append(module["path"])
        else:
            kind = ""
        if not kind or any(layer["activation"] not in ACTIVATIONS for layer in behind if isinstance(layer, dict)):
            expected = "an encoder of Transformer, Pooling, Dense and Normalize modules"
            raise InvalidValueError("model", expected, f"{module['type']} in {folder.name}", "name another encoder")
    if not poolings:
        raise InvalidValueError("model", f"a Pooling in {folder.name}/{_MODULES}", "none", "name another encoder")
    return {"poolings": poolings, "behind": behind, "dense": paths}


def _poolings(settings: Mapping[str, Any]) -> list[str]:
    keys = {
        "cls": "pooling_mode_cls_token",
        "max": "pooling_mode_max_tokens",
        "mean": "pooling_mode_mean_tokens",
        "mean_sqrt_len": "pooling_mode_mean_sqrt_len_tokens",
    }
    named = settings.get("pooling_mode")
    chosen = [named] if isinstance(named, str) else [name for name, key in keys.items() if settings.get(key)]
    if unknown := [name for name in chosen if name not in POOLINGS] or [
        key
        for key, value in settings.items()
        if key.startswith("pooling_mode_") and value is True and key not in keys.values()
    ]:
        raise InvalidValueError("model", f"poolings among {', '.join(POOLINGS)}", unknown[0], "name another encoder")
    return chosen


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what the library says of missing heads and of its progress: this package says it itself."""
    logging = _library().utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _new(settings: Any, kind: str, folder: Path | None = None) -> Any:
    """Make a network of the library with random weights, or, with what is said of these, those of a folder."""
    auto = getattr(_library(), f"AutoModel{HF_KINDS[kind]}")
    if type(settings) not in auto._model_mapping:
        expected = f"a network that transformers has as AutoModel{HF_KINDS[kind]}"
        raise InvalidValueError("model", expected, settings.model_type, "name another")
    if folder is None:
        settings.architectures = settings.architectures or []  # None, where a type has several networks of a kind
        return auto.from_config(settings, trust_remote_code=False, dtype=torch.float32)
    return auto.from_pretrained(
        folder,
        config=settings,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # They are refused by name.
        dtype=torch.float32,
    )


def _make(
    settings: Any,
    call: HubCall,
    *,
    name: str,
    classes: int,
    folder: Path | None = None,
    report: dict[str, Any] | None = None,
) -> nn.Module:
    """Make a network with random weights, or with those of a folder; ``report`` gets what the library says of them."""
    kind, sentence = call.kind, call.sentence
    settings = copy.deepcopy(settings)
    settings.use_cache = False
    if kind == "causal" and hasattr(settings, "is_decoder"):
        settings.is_decoder = True  # An encoder's tokens would see the ones that they predict.
    if kind in ("image", "pixels", "sequence", "token"):
        settings.num_labels = classes
    if kind == "pixels" and hasattr(settings, "use_auxiliary_head"):
        settings.use_auxiliary_head = False  # It is read by nothing here.
    with quiet():
        if folder is None:
            with _refusals(name):
                network = _new(settings, kind)
        else:
            network, said = _new(settings, kind, folder)
            (report if report is not None else {}).update(said)
    if kind == "sequence" and hasattr(network, "score") and network.config.pad_token_id is None:
        network.config.pad_token_id = call.pad  # A decoder classifies a text at its last token that is another.
    if kind == "sentence" and sentence is not None:
        if getattr(network, "pooler", None) is not None:
            network.pooler = None  # It is read by nothing here.
        with _refusals(name):
            network = SentenceClassifier(network, **sentence, classes=classes)
    if call.text is not None:
        _try(network, call, name)
    return network


@torch.no_grad()
def _try(network: nn.Module, call: HubCall, name: str) -> None:
    """Refuse a network of text that cannot be called, or whose logits depend on more than they are to.

    Those of ``a b c`` beside ``a b c d e f g h`` are those of it alone; of a language model, also those of the longer
    row's first tokens.
    """
    assert call.text is not None
    size, tokens = call.text.tokenizer.size, min(8, call.text.max_tokens)
    end = getattr(getattr(network, "config", None), "eos_token_id", None)
    usual = [id_ for id_ in range(min(size, 32)) if id_ not in (call.pad, end)] or [0]
    rows = torch.tensor((usual * 16)[: 2 * tokens]).reshape(2, tokens)
    short = max(1, tokens // 2 - 1)
    if call.kind == "sequence" and isinstance(end, int) and end < size:  # Some classify a text at its end.
        rows[0, -1] = rows[1, short - 1] = end
    rows[1, short:] = PADDING
    first = 0 if call.kind == "causal" else 1
    with evaluation_mode(network), _refusals(name):
        beside, alone = call(network, rows)[first:], call(network, rows[first:, :short])
    beside = beside[:, :short] if call.text.per_token else beside
    if not torch.allclose(beside, alone, rtol=0, atol=1e-4 * float(alone.abs().max())):
        got = f"{name}, where others change them by {float((beside - alone).abs().max()):.1e}"
        expected = "a network whose logits are of each text alone"
        expected = "a network whose logits are of a token and those before it" if call.kind == "causal" else expected
        raise InvalidValueError("model", expected, got, "name another")


def _fetch(make: partial[nn.Module], folder: Path, name: str, *, kind: str, classes: int, trained: bool) -> nn.Module:
    """Make the network with the weights of a folder."""
    _require_weights(folder, name)
    report: dict[str, Any] = {}
    try:
        network = make(classes=classes, folder=folder, report=report)
    except TutelageError:
        raise
    except Exception as error:  # of whatever the library finds in damaged files
        raise _damaged(name, printable(reason_of(error))) from error
    inner = network.encoder if isinstance(network, SentenceClassifier) else network
    prefix = f"{inner.base_model_prefix}."

    def needed(key: str) -> bool:
        return "pooler." not in key and (trained or kind == "sentence" or key.startswith(prefix))

    if differing := sorted(each for each in report["mismatched_keys"] if needed(each[0])):
        key, stored, expected = differing[0]
        got = f"{len(differing)} of another shape, {key} of {list(stored)}, not {list(expected)}, among them"
        raise _damaged(name, got)
    if lacking := sorted(filter(needed, report["missing_keys"])):
        raise _damaged(name, f"{len(lacking)} of them missing, {lacking[0]} among them")
    if isinstance(network, SentenceClassifier):
        _load_dense(network, folder, name)
    return network


def _damaged(name: str, got: str) -> InvalidValueError:
    return InvalidValueError("model", f"all weights of {name}", got, "fetch it again, or name another")


def _require_weights(folder: Path, name: str) -> None:
    """Refuse a folder without weights in safetensors, or without a file that its index names."""
    single, index = folder / _WEIGHTS, folder / INDEX
    if single.is_file():
        return
    if index.is_file():
        try:
            files = sorted(
                {str(each) for each in plain_files.parse_json(plain_files.read(index))["weight_map"].values()}
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise _damaged(name, f"a damaged {index.name} ({printable(reason_of(error))})") from error
        if odd := [each for each in files if Path(each).name != each or not each.endswith(io.SUFFIX)]:
            raise _damaged(name, f"{printable(odd[0])} in {index.name}, no file of its own in safetensors")
        if lacking := [each for each in files if not (folder / each).is_file()]:
            raise _damaged(name, f"{len(lacking)} of {len(files)} files missing, {printable(lacking[0])} among them")
        return
    suffixes = (".bin", ".pt", ".h5", io.SUFFIX)
    others = sorted(path.name for path in folder.iterdir() if path.suffix in suffixes and not path.is_dir())
    got = ", ".join(f"{each}, a link to nothing" if (folder / each).is_symlink() else each for each in others)
    instead = f"name a repository with {_WEIGHTS}, or convert the weights to it"
    raise InvalidValueError("model", f"weights of {name} in safetensors", got or "none", instead)


def _load_dense(network: SentenceClassifier, folder: Path, name: str) -> None:
    """Read the weights of dense layers behind the pooling."""
    layers = [layer for layer in network.behind if isinstance(layer, nn.Sequential)]
    for layer, path in zip(layers, _modules(folder)["dense"], strict=True):
        io.load(layer, io.read(folder / path / _WEIGHTS), name=f"{name}/{path}", path=folder / path / _WEIGHTS)
