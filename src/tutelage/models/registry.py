"""From a name to a classifier: the sources, and what they share (seed, local weights, a new head)."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tutelage import connection, records
from tutelage.errors import InvalidTypeError, InvalidValueError, NetworkError, TutelageError, reason_of
from tutelage.models import catalogue, io, structure
from tutelage.models.card import Card
from tutelage.models.classifier import Classifier
from tutelage.models.hf_calls import HubCall
from tutelage.models.lora import Adapters, inject
from tutelage.models.names import EXPORTED, is_own_module, saved_student, weights_file, without_weights
from tutelage.models.sources import cifar, export, file, hf, mlp, onnx, timm, torchvision
from tutelage.models.spec import ModelRequest, ModelSpec
from tutelage.text import TextInput, tokenizer_of
from tutelage.types import Task

_MODULES = (cifar, mlp, timm, torchvision, hf, file, onnx, export)
_SOURCES: dict[str, Callable[[str, ModelRequest], ModelSpec]] = {module.PREFIX: module.plan for module in _MODULES}
_OF_IMAGES = frozenset(module.PREFIX for module in (cifar, mlp, timm, torchvision, onnx, export))
_OF_WHOLE_IMAGES = frozenset(module.PREFIX for module in (cifar, mlp, timm))


def create(
    name: str,
    *,
    classes: int | None = None,
    channels: int = 3,
    image_size: tuple[int, int] | None = None,
    weights: str | Path | None = None,
    seed: int = 0,
    as_trained: Collection[str] = (),
    text: TextInput | None = None,
    config: Mapping[str, Any] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    output: int | str | None = None,
    trust_code: bool | frozenset[str] = False,
    task: Task | None = None,
) -> Classifier:
    """Make the classifier that a name stands for.

    A name fixes its weights: ``timm:resnet18.a1_in1k`` those of the tag, ``timm:resnet18`` random ones, a run's folder
    its student's. If ``classes`` differs from the weights' own number, they are loaded with their own head, which a
    fresh one then replaces, and the card says ``fresh_head``: that is for fine-tuning.

    Args:
        name: name such as ``cifar:resnet20``, ``mlp:64``, ``timm:arch[.tag]``, ``torchvision:arch[.WEIGHTS]``,
            ``hf:org/name``, ``file:path.py:function``, ``onnx:path.onnx``, ``export:path.pt2``, or the path of a folder
            with a saved student.
        classes: number of classes; ``None`` for the model's own.
        channels: number of input channels; a saved student keeps its own.
        image_size: size ``(height, width)`` in pixels; ``None`` for the model's own.
        weights: local checkpoint that replaces the name's own weights: ``.safetensors``, or a file written by
            `torch.save`; nothing in it is executed.
        seed: seed that alone determines random weights; no global generator is read or advanced.
        as_trained: those of ``classes``, ``channels`` and ``image_size`` in whose place the value is taken that the
            name's weights were trained with, if it fixes any. A checkpoint of ``weights`` says its classes alone.
        text: tokenizer and length of the texts that it reads; ``None`` for images. A saved student keeps its own.
        config: of an ``hf:type`` name, such as ``hf:bert``: configuration of the network, whose weights are random.
        mean: mean of each channel of images in [0, 1], of a network whose name has no statistics; their number is that
            of its channels.
        std: standard deviation of each, above 0.
        output: of an ``onnx:`` or ``export:`` name whose file has several outputs: name or number of its logits.
        trust_code: whether ``file:`` and ``export:`` names, which run code, are allowed: all of them, or only these.
        task: what it is to answer for a sample; ``None`` for one of several classes, or what its weights were trained
            for as far as its files say, which no other replaces but an embedding: the input of a classifier's head.

    Returns:
        The classifier, on the CPU, in training mode.

    Raises:
        TypeError: if the name is not a string.
        ValueError: if a name is unknown, or an argument does not fit it; the message says what to type.
        FileNotFoundError: if a path does not exist.
        ConnectionError: if the weights of a tag cannot be fetched.
        StorageError: if they cannot be written to the cache of their library.

    Example:
        >>> student = create("cifar:resnet8", classes=10)
        >>> student(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    if not isinstance(name, str):
        raise InvalidTypeError(
            "model", "a name", type(name).__name__, "type tutelage.models.adopt(module) for one of your own"
        )
    request = ModelRequest(
        classes=classes,
        channels=channels if mean is None else len(mean),
        image_size=image_size,
        text=text,
        config=config,
        mean=None if mean is None else tuple(mean),
        output=output,
        trust_code=trust_code,
        task=task or "classes",
        tagged=weights is None,
        as_trained=frozenset(as_trained),
    )
    prefix, colon, _ = name.partition(":")
    adapters = None
    if config is not None and prefix != hf.PREFIX:
        raise InvalidValueError("config", "none for a name that is not of hf:", name, "type hf:bert, or leave it out")
    if output is not None and prefix not in EXPORTED:
        expected = "none for a name that is not of onnx: or export:"
        raise InvalidValueError("output", expected, name, "leave it out; tutelage.Adapter(network, output=...) has one")
    saved, chosen = None, None
    with ExitStack() as opened, torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # torch.manual_seed would also advance the accelerators' generators, which are not forked
        torch.default_generator.manual_seed(seed)
        if colon and prefix in _SOURCES:
            spec = _with_statistics(_planned(name, request), mean, std)
        else:
            saved, own = opened.enter_context(io.unpacked(saved_student(name)))
            if mean is not None:
                instead = "leave mean and std out"
                raise InvalidValueError("mean", f"none for {name}, a run with its own", list(mean), instead)
            weights = own if weights is None else Path(weights)
            records.require_whole(saved, records.CARD, *([weights.name] if weights.parent == saved else []))
            chosen = io.read_outputs(saved)
            spec = _rebuilt(saved, request, name, chosen)
        if weights is None:
            network, card = _by_tag(spec)
        else:
            fresh = classes if "classes" not in as_trained else None
            network, card = _from_file(spec, Path(weights), classes, saved, chosen, new_head=fresh is not None)
        if classes not in (None, card.classes) and "classes" not in as_trained:
            structure.replace_head(network, old=_width(card, chosen), new=classes)
            chosen = None
            card = dataclasses.replace(card, classes=classes, class_names=None, fresh_head=True)
        # What a classifier's head reads is its embedding; a network of pixels has no such head.
        cut = task == "embedding" and "classes" in as_trained and card.task in ("classes", "labels")
        cut = cut and (saved is not None or prefix not in (file.PREFIX, *EXPORTED))
        if saved is None:
            if task not in (None, card.task) and card.task != "classes" and "classes" in as_trained and not cut:
                raise _other_task(card.name, card, task)
            card = dataclasses.replace(card, task=task or card.task)
        elif task not in (None, card.task) and not cut:
            raise _other_task(saved.name, card, task)
        classifier = _described(network, card, spec.call)
        if cut:
            classifier = _without_head(classifier)
        elif chosen is not None:
            classifier = with_outputs(classifier, chosen)
        if saved is not None:
            adapters, _ = io.read_parts(saved)
    classifier.asked_size, classifier.adapters = image_size, adapters
    if saved is not None:
        classifier.folder = Path(name).absolute() if Path(name).is_dir() else None
    elif weights is None and spec.fetch is not None:
        classifier.named_seed = seed
    return classifier


def with_outputs(classifier: Classifier, chosen: io.Chosen) -> Classifier:
    """Return a classifier whose classes are some outputs of its network."""
    call = classifier.call and dataclasses.replace(classifier.call, classes=_width(classifier.card, chosen))
    return Classifier(classifier.network, classifier.card, outputs=chosen["chosen"], call=call)


def _width(card: Card, chosen: io.Chosen | None) -> int:
    """Return the number of outputs of a network, of which its classes may be some."""
    return (chosen and chosen["of"]) or card.classes


def _planned(name: str, request: ModelRequest) -> ModelSpec:
    prefix, _, path = name.partition(":")
    if request.text is not None and prefix in _OF_IMAGES:
        instead = "name one of hf:, such as hf:bert with its config"
        raise InvalidValueError("model", "a network that reads texts, as the data are", f"{name}, of images", instead)
    if request.task == "pixels" and prefix in _OF_WHOLE_IMAGES:
        expected, got = "a network that gives each pixel a class", f"{name}, which gives each image one"
        instead = f"name one of torchvision's, such as torchvision:{torchvision.SEGMENTING}, of hf: or of your own"
        raise InvalidValueError("model", expected, got, instead)
    return _SOURCES[prefix](path, request)


def _with_statistics(spec: ModelSpec, mean: Sequence[float] | None, std: Sequence[float] | None) -> ModelSpec:
    """Put statistics on the card of a network of images that has none."""
    if mean is None and std is None:
        return spec
    card, typed = spec.card, None if mean is None else list(mean)
    of_text = card.max_tokens is not None
    if card.mean is not None or of_text:
        whose = "a network of text" if of_text else "which has its own"
        raise InvalidValueError("mean", f"none for {card.name}, {whose}", typed, "leave mean and std out")
    if mean is not None and std is not None and not len(mean) == len(std) == card.channels:
        expected = f"a mean and a std for each of the {card.channels} channels of {card.name}"
        raise InvalidValueError("mean", expected, f"{len(mean)} and {len(std)}", "type as many")
    means, deviations = (None if each is None else tuple(each) for each in (mean, std))
    return dataclasses.replace(spec, card=dataclasses.replace(card, mean=means, std=deviations))


def _by_tag(spec: ModelSpec) -> tuple[nn.Module, Card]:
    """Make the network with the weights that its name determines: a tag's, or random ones."""
    if spec.fetch is None:
        return spec.build(classes=spec.card.classes), spec.card
    name = spec.card.name
    try:
        with connection.no_endless_waits():
            return spec.fetch(), spec.card
    except OSError as error:
        if isinstance(error, NetworkError):
            raise
        if error.errno in records.DISK:
            cache = "set TORCH_HOME (torchvision) or HF_HOME (timm) to another folder"
            raise records.storage_error(
                error, f"the weights of {name}", folder=Path(torch.hub.get_dir()), elsewhere=cache
            ) from error
        expected = f"to fetch the weights of {name} from its publisher"
        instead = f"connect, or {without_weights(name)}"
        raise NetworkError("model", expected, reason_of(error), instead) from error


def _from_file(
    spec: ModelSpec,
    path: Path,
    classes: int | None,
    saved: Path | None,
    chosen: io.Chosen | None,
    *,
    new_head: bool,
) -> tuple[nn.Module, Card]:
    """Make the network with a checkpoint's weights, and with its own classes if ``classes`` needs a new head.

    With ``new_head`` a checkpoint without a head, as of a network that was trained without labels, leaves it random.
    """
    card = spec.card
    width = _width(card, chosen)
    if saved is not None and width > (size := weights_file(path)[0].stat().st_size):
        # Memory would be taken for them before the weights are found not to fit.
        expected, got = f"at most as many outputs as {path} has bytes, {size}", f"{width} in {saved / records.CARD}"
        raise InvalidValueError("model", expected, got, records.how_to_restore(saved))
    network = spec.build(classes=width)
    state = io.read(path) if saved is None else _completed(io.read(path), network, path, saved)
    own, head = network.state_dict(), structure.head_names(network, classes=width)
    state = io.unprefixed(state, own, name=card.name, path=path, but=head)
    if new_head and head and not state.keys() & set(head):
        state, card = {**state, **{name: own[name] for name in head}}, dataclasses.replace(card, fresh_head=True)
    stored = structure.stored_classes(state, network, classes=width)
    if classes is not None and stored not in (None, width):
        card = dataclasses.replace(card, classes=stored, class_names=None)
        network = spec.build(classes=card.classes)
    io.load(network, state, name=card.name, path=path)
    label = f"{path.resolve().name}/{weights_file(path)[0].name}" if path.is_dir() else path.name
    return network, dataclasses.replace(card, weights=card.weights or label)


def _completed(state: Mapping[str, Tensor], network: nn.Module, path: Path, saved: Path) -> Mapping[str, Tensor]:
    """Return a saved student's weights with those that its files leave to its base, or its best with its last ones.

    Raises:
        ValueError: if the base is another one than it was trained on.
    """
    own = network.state_dict()
    if path == saved / records.BEST and state.keys() != own.keys():
        records.require_whole(saved, records.STUDENT)
        state = {**io.read(saved / records.STUDENT), **state}
    _, base = io.read_parts(saved)
    rest = {name: own[name] for name in own.keys() - state.keys()}
    if base is None or not rest:
        return state
    if (actual := io.fingerprint(rest)) != base["fingerprint"]:
        name = io.read_card(saved).name
        expected = f"{name} with the frozen weights {base['fingerprint']}, on which {saved.name} was trained"
        instead = f"put those weights of {name} back, with the library's version that it was trained with"
        raise InvalidValueError("model", expected, actual, instead)
    return {**rest, **state}


def _other_task(name: str, card: Card, task: Task | None) -> InvalidValueError:
    expected, instead = f"one that answers {task}, as the data ask", "name another, or other data"
    return InvalidValueError("model", expected, f"{name}, which answers {card.task}", instead)


def _described(network: nn.Module, card: Card, call: HubCall | None = None) -> Classifier:
    """Fill in where features can be read, unless the source says it."""
    if card.head is None:
        card = dataclasses.replace(card, **structure.read(network, classes=card.classes)._asdict())
    if call is not None:
        call = dataclasses.replace(call, classes=card.classes)
    return Classifier(network, card, call=call)


def _without_head(classifier: Classifier) -> Classifier:
    """Return a trained classifier's network without its head: it answers with what the head reads."""
    card, network = classifier.card, classifier.network
    layer = None if card.head is None else network.get_submodule(card.head)
    if not isinstance(layer, nn.Linear):
        instead = "name a network that ends in a linear layer, or one of your own that returns embeddings, by file:"
        raise InvalidValueError("model", "a known head, whose input is the embedding", f"none in {card.name}", instead)
    network.set_submodule(str(card.head), nn.Identity())
    card = dataclasses.replace(
        card, classes=layer.in_features, class_names=None, head=None, fresh_head=False, task="embedding"
    )
    call = classifier.call and dataclasses.replace(classifier.call, classes=card.classes)
    return Classifier(network, card, call=call)


def _rebuilt(saved: Path, request: ModelRequest, name: str, chosen: io.Chosen | None) -> ModelSpec:
    card = io.read_card(saved)
    if is_own_module(card.name):
        card = dataclasses.replace(card, weights=card.weights if request.tagged else None)
        return ModelSpec(card=card, build=partial(_build_own, saved, name, card, request.trust_code))
    size = request.as_weights(image_size=card.image_size).image_size or card.image_size
    request = dataclasses.replace(request, text=_text_of(saved, card, request.text), task=card.task)
    built = _planned(
        card.name,
        dataclasses.replace(
            request, classes=_width(card, chosen), channels=card.channels, image_size=size, tagged=False, saved=saved
        ),
    )
    build, (adapters, base) = built.build, io.read_parts(saved)
    if base is not None:
        build = partial(_build_base, saved, card, dataclasses.replace(request, image_size=size), base["seed"])
    if adapters is not None:
        build = partial(_build_adapted, build, adapters)
    weights = card.weights if request.tagged else None
    # Where features are read is a fact of the network that an older card may lack.
    known = {field: getattr(built.card, field) for field in structure.Structure._fields}
    if built.call is not None and built.call.text is not None:
        known |= {"max_tokens": built.card.max_tokens}
    card = dataclasses.replace(card, image_size=size, weights=weights, **known)
    return ModelSpec(card=card, build=build, call=built.call)


def _build_own(saved: Path, name: str, card: Card, trust_code: bool | frozenset[str], *, classes: int) -> nn.Module:
    """Make a network of the user's own class, which is imported where it is trusted.

    Raises:
        ValueError: if it is not, or the class cannot be made without arguments.
    """
    kind = io.read_module(saved)
    expected, got = f"a student that a name can rebuild in {name}", f"{card.name!r}, a module of the user's own"
    handed_in = f"build the module and type tutelage.load({name!r}, network=module)"
    trusted = trust_code is True or (trust_code and kind in trust_code)
    if kind is None or not trusted:
        imported = f", or --trust-code (trust_code=True) to import {kind}" if kind else ""
        raise InvalidValueError("model", expected, got, f"{handed_in}{imported}")
    module, _, qualified = kind.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in qualified.split("."):
            found = getattr(found, part)
        made = found()
    except Exception as error:  # of the user's code
        got = f"{got}, whose {kind} cannot be made here ({reason_of(error)[:200]})"
        raise InvalidValueError("model", expected, got, handed_in) from error
    if not isinstance(made, nn.Module):
        raise InvalidValueError("model", expected, f"{got}, and {kind}() is no module", handed_in)
    return made


def restored(name: str | Path, network: nn.Module, *, weights: str | Path | None = None) -> Classifier:
    """Load a saved student into a network of its architecture, which is handed in: a module of one's own.

    Args:
        name: path of the folder, or of a file of ``tutelage export``, with the student.
        network: module that gets the weights, in place.
        weights: weights in place of the student's own.

    Raises:
        FileNotFoundError: if there is no such path.
        ValueError: if the weights are not of this architecture.
    """
    if not isinstance(network, nn.Module):
        raise InvalidTypeError("network", "a torch.nn.Module", type(network).__name__, "give the module itself")
    with io.unpacked(saved_student(str(name))) as (saved, own):
        records.require_whole(saved, records.CARD, *([own.name] if weights is None and own.parent == saved else []))
        card, chosen = io.read_card(saved), io.read_outputs(saved)
        bare = network.network if isinstance(network, Classifier) else network
        path = own if weights is None else Path(weights)
        io.load(bare, io.read(path), name=f"{type(bare).__name__}, which was handed in", path=path)
    classifier = Classifier(bare, card, call=network.call if isinstance(network, Classifier) else None)
    if chosen is not None:
        classifier = with_outputs(classifier, chosen)
    classifier.folder = Path(name).absolute() if Path(name).is_dir() else None
    return classifier


def _build_base(saved: Path, card: Card, request: ModelRequest, seed: int, *, classes: int) -> nn.Module:
    """Make the network that a saved student was trained on, as its name does."""
    try:
        base = create(
            card.name,
            classes=classes,
            channels=card.channels,
            image_size=request.image_size,
            seed=seed,
            text=request.text,
            trust_code=request.trust_code,
            task=request.task,
        )
    except TutelageError as error:
        raise error.within(f"{saved.name} holds what was trained on {card.name} alone") from error
    return base.network


def _build_adapted(build: Callable[..., nn.Module], adapters: Adapters, *, classes: int) -> nn.Module:
    network = build(classes=classes)
    inject(network, adapters, head=None)
    return network.requires_grad_(True)


def _text_of(saved: Path, card: Card, asked: TextInput | None) -> TextInput | None:
    """Return what a saved student reads: the data's texts if they have its tokenizer, or else as it was saved."""
    if card.max_tokens is None:
        return asked
    if asked is None:
        tokenizer = tokenizer_of(str(saved), what="model")
        return TextInput(tokenizer=tokenizer, max_tokens=card.max_tokens, per_token=card.per_token)
    if asked.tokenizer.fingerprint != card.tokenizer:
        expected, got = f"the tokenizer of {saved.name}, {card.tokenizer}", asked.tokenizer.fingerprint
        own = f"data.teacher_tokenizer={saved} for a teacher that has its own"
        instead = f"type data.tokenizer={saved}, or {own}"
        raise InvalidValueError("model", expected, got, instead)
    return asked


def adopt(
    module: nn.Module,
    name: str = "user",
    *,
    classes: int | None = None,
    channels: int = 3,
    image_size: tuple[int, int] | None = None,
    task: Task = "classes",
) -> Classifier:
    """Wrap a user's module, whose inputs are not normalised.

    Args:
        module: module that returns logits; a `Classifier` is returned unchanged.
        name: name of the classifier; nothing can be rebuilt from it.
        classes: number of classes; ``None`` for that of the last linear layer.
        channels: number of input channels.
        image_size: size ``(height, width)`` in pixels.
        task: what it answers for a sample.

    Raises:
        TypeError: if it is not a module.
        ValueError: if no classes are given and the module has no linear layer.
    """
    if isinstance(module, Classifier):
        return module
    if not isinstance(module, nn.Module):
        raise InvalidTypeError("model", "a torch.nn.Module or a name", type(module).__name__, "give one of those")
    classes = structure.head_classes(module) if classes is None else classes
    if classes is None:
        instead = "type tutelage.models.adopt(module, classes=10)"
        raise InvalidValueError("classes", f"a number for {name}, which has no linear layer", "none", instead)
    return _described(module, Card(name=name, classes=classes, channels=channels, image_size=image_size, task=task))


def listing_json() -> str:
    """Return what can be created, from the sources themselves: ``models/models.json``, which `available` reads."""
    rows = [*(row for module in _MODULES for row in module.LISTED), ("PATH", "the folder of a run: its student")]
    return "[\n" + ",\n".join(f" {json.dumps(row)}" for row in rows) + "\n]\n"


def catalogue_json() -> str:
    """Return the architectures by source: ``models/catalogue.json``, which `catalogue` reads.

    Networks of timm whose parameters are recorded are not built again: that takes about a second each.
    """
    counted = {arch: entry.parameters for arch, entry in catalogue.read().get(timm.PREFIX, {}).items()}
    sources = {
        cifar.PREFIX: {"names": cifar.catalogued()},
        timm.PREFIX: timm.catalogued(counted),
        torchvision.PREFIX: torchvision.catalogued(),
    }
    blocks = []
    for source, of in sources.items():
        facts = "".join(f"  {json.dumps(key)}: {json.dumps(value)},\n" for key, value in of.items() if key != "names")
        rows = ",\n".join(f"   {json.dumps(row)}" for row in of["names"])
        blocks.append(f' "{source}": {{\n{facts}  "names": [\n{rows}\n  ]\n }}')
    return "{\n" + ",\n".join(blocks) + "\n}\n"
