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
from typing import Any

import safetensors.torch
import torch
from torch import nn

from tutelage import plain_files, records
from tutelage.errors import InvalidValueError, NotFoundError, missing_extra, nearest, one_line
from tutelage.hub_files import folder_of
from tutelage.images import MEAN, STD
from tutelage.models.card import Card
from tutelage.models.hf_calls import OWN, HubCall
from tutelage.models.sentence import ACTIVATIONS, POOLINGS, SentenceClassifier
from tutelage.models.spec import ModelRequest, ModelSpec, resized
from tutelage.text import TextInput

PREFIX = "hf"
EXAMPLE = "hf:distilbert/distilbert-base-uncased"
LISTED = [
    ("hf:ORG/NAME", f"a network of the Hugging Face Hub, by transformers; safetensors alone; such as {EXAMPLE}"),
    ("hf:FOLDER", "a local folder of one, or package:PACKAGE/FOLDER inside an installed package"),
    ("hf:TYPE", "with config={...}: a network of that type with random weights, such as bert or llama"),
]
KINDS = {
    "image": "ForImageClassification",
    "sequence": "ForSequenceClassification",
    "token": "ForTokenClassification",
    "causal": "ForCausalLM",
    "sentence": "",
}
"""What a network classifies, and how names of the library's classes for it end."""
_FILES = ("*.json", "*.safetensors", "*/config.json", "*/*.safetensors")
_MODULES = "modules.json"
_PROCESSOR = "preprocessor_config.json"
_BICUBIC = 3  # as Pillow numbers it


def plan(path: str, request: ModelRequest) -> ModelSpec:
    """Describe a network of the transformers library by its configuration.

    With text it classifies each text, or predicts each next token; without, images. A folder of the
    sentence-transformers library is an encoder, whose sentence vectors a fresh linear head classifies.

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
    kind = own.get("kind") or _kind(config, folder, request.text)
    settings = _library().AutoConfig.for_model(**config)
    sentence = own or (_sentence(folder) if kind == "sentence" and folder else None)
    trained = folder is not None and _ends_as(config, KINDS[kind]) and kind not in ("sentence", "causal")
    classes, card_of_weights = request.classes, {}
    if trained and not request.saved:
        classes, card_of_weights = settings.num_labels, _names(settings)
    if kind == "causal" and request.text is not None:
        classes = request.text.tokenizer.size
    if classes is None:
        instead = f"type tutelage.models.create({name!r}, classes=10)"
        raise InvalidValueError("classes", f"a number for {name}, whose weights have no head", "none", instead)
    if request.text is not None:
        _fit_text(settings, request.text, name, kind=kind, fixed=folder is not None or request.saved is not None)
        card = _of_text(request.text)
    else:
        card = _of_images(settings, folder, request)
        request = replace(request, channels=card["channels"])
    text = request.text
    call = HubCall(kind=kind, classes=classes, text=text, pad=settings.pad_token_id or 0, sentence=_described(sentence))
    make = partial(_make, settings, kind, call.sentence)
    fetch = None
    if folder is not None and request.tagged:
        fetch = partial(_fetch, make, folder, name, kind=kind, classes=classes, trained=trained or kind == "causal")
    return ModelSpec(
        card=Card(
            name=name,
            classes=classes,
            weights=_weights_of(path) if fetch else None,
            source=f"https://huggingface.co/{path}" if fetch and not Path(path).exists() and ":" not in path else None,
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
    folder = folder_of(path, _FILES, what="model")
    if not (folder / records.NETWORK).is_file():
        raise NotFoundError("model", f"a folder with {records.NETWORK}", f"none in {folder.name}", "name another")
    return _json(folder / records.NETWORK), folder


def _json(path: Path) -> dict[str, Any]:
    try:
        value = plain_files.parse_json(plain_files.read(path))
        if not isinstance(value, dict) or not isinstance(value.get("model_type"), str):
            raise ValueError("no object with a model_type")
    except (OSError, ValueError) as error:
        got = f"{path.name} of {path.resolve().parent.name}: {one_line(error)}"
        raise InvalidValueError("model", "a configuration of transformers", got, "fetch or write it again") from error
    if value["model_type"] not in _library().CONFIG_MAPPING:
        got = f"{value['model_type']!r} in {path}"
        raise InvalidValueError("model", "a type that the installed transformers has", got, "upgrade transformers")
    return value


def _ends_as(config: Mapping[str, Any], ending: str) -> bool:
    return any(str(each).endswith(ending) for each in config.get("architectures") or ())


def _kind(config: Mapping[str, Any], folder: Path | None, text: TextInput | None) -> str:
    if text is None:
        return "image"
    if text.per_token:
        return "token" if _ends_as(config, KINDS["token"]) else "causal"
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


def _fit_text(settings: Any, text: TextInput, name: str, *, kind: str, fixed: bool) -> None:
    """Give a network without weights the tokenizer's size and the texts' length; refuse one with others."""
    size, longest = text.tokenizer.size, getattr(settings, "max_position_embeddings", None)
    if not fixed:
        settings.vocab_size = size
        end = text.tokenizer.end_id
        settings.bos_token_id = settings.eos_token_id = settings.pad_token_id = None
        if kind == "causal":
            settings.eos_token_id = end
        if longest is not None:
            settings.max_position_embeddings = max(longest, text.max_tokens)
        return
    if size > settings.vocab_size:
        instead = "name the tokenizer that it was trained with"
        raise InvalidValueError("tokenizer", f"at most the {settings.vocab_size} tokens of {name}", size, instead)
    if longest is not None and longest < text.max_tokens:
        key = "data.pack" if text.per_token else "data.max_tokens"
        raise InvalidValueError(
            key, f"at most {longest}, as {name} has places", text.max_tokens, f"type {key}={longest}"
        )


def _of_images(settings: Any, folder: Path | None, request: ModelRequest) -> dict[str, Any]:
    """Return the card's facts of images: those of the processor that was published with the weights, or usual ones."""
    processor: dict[str, Any] = {}
    if folder is not None and (folder / _PROCESSOR).is_file():
        processor = plain_files.parse_json(plain_files.read(folder / _PROCESSOR))
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
def _quiet() -> Iterator[None]:
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


def _make(
    settings: Any,
    kind: str,
    sentence: Mapping[str, Any] | None,
    *,
    classes: int,
    folder: Path | None = None,
    missing: list[str] | None = None,
) -> nn.Module:
    """Make a network with random weights, or with those of a folder; ``missing`` gets the names of those it lacks."""
    settings = copy.deepcopy(settings)
    settings.use_cache = False
    if kind == "causal" and hasattr(settings, "is_decoder"):
        settings.is_decoder = True  # An encoder's tokens would see the ones that they predict.
    if kind in ("image", "sequence", "token"):
        settings.num_labels = classes
    auto = getattr(_library(), f"AutoModel{KINDS[kind]}")
    with _quiet():
        try:
            if folder is not None:
                network, report = auto.from_pretrained(
                    folder,
                    config=settings,
                    use_safetensors=True,
                    local_files_only=True,
                    trust_remote_code=False,
                    output_loading_info=True,
                    dtype=torch.float32,
                )
                (missing if missing is not None else []).extend(report["missing_keys"])
            else:
                network = auto.from_config(settings, trust_remote_code=False, dtype=torch.float32)
        except ValueError as error:
            expected = f"a network that transformers has as AutoModel{KINDS[kind]}"
            of_another_kind = "Unrecognized configuration class" in str(error)  # and a list of all that it is not
            got = settings.model_type if of_another_kind else f"{settings.model_type} ({one_line(error)})"
            raise InvalidValueError("model", expected, got, "name another") from error
    if kind == "sequence" and hasattr(network, "score") and network.config.pad_token_id is None:
        network.config.pad_token_id = 0  # A decoder classifies a text at its last token that is another.
    if kind != "sentence" or sentence is None:
        return network
    if getattr(network, "pooler", None) is not None:
        network.pooler = None  # It is read by nothing here.
    return SentenceClassifier(network, **sentence, classes=classes)


def _fetch(make: partial[nn.Module], folder: Path, name: str, *, kind: str, classes: int, trained: bool) -> nn.Module:
    """Make the network with the weights of a folder."""
    if not any(folder.glob("*.safetensors")):
        got = ", ".join(sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".h5")))
        instead = "name a repository with model.safetensors, or convert the weights to it"
        raise InvalidValueError("model", f"weights of {name} in safetensors", got or "none", instead)
    missing: list[str] = []
    network = make(classes=classes, folder=folder, missing=missing)
    inner = network.encoder if isinstance(network, SentenceClassifier) else network
    prefix = f"{inner.base_model_prefix}."
    lacking = [
        key for key in missing if "pooler." not in key and (trained or kind == "sentence" or key.startswith(prefix))
    ]
    if lacking:
        got = f"{len(lacking)} of them missing, {lacking[0]} among them"
        raise InvalidValueError("model", f"all weights of {name}", got, "fetch it again, or name another")
    if isinstance(network, SentenceClassifier):
        _load_dense(network, folder)
    return network


def _load_dense(network: SentenceClassifier, folder: Path) -> None:
    """Read the weights of dense layers behind the pooling."""
    layers = [layer for layer in network.behind if isinstance(layer, nn.Sequential)]
    for layer, path in zip(layers, _sentence(folder)["dense"], strict=True):
        layer.load_state_dict(safetensors.torch.load_file(folder / path / "model.safetensors"))
