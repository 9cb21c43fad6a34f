"""A run's networks for its data: each with an input of its own, and a teacher whose outputs are the data's classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import nn

from tutelage import data, models
from tutelage.config.schema import LoRA, Network
from tutelage.errors import InvalidValueError, RecipeError
from tutelage.models import Card, Classifier
from tutelage.models.lora import Adapters
from tutelage.runs.preflight import require_teacher

SHOWN = 3
"""Number of class names, or of outputs, in a message."""


def create_student(
    network: Network,
    splits: data.Splits,
    *,
    seed: int,
    trust_code: bool | frozenset[str] = False,
    view: str = "student",
    teacher: Classifier | None = None,
) -> Classifier:
    """Make the network to train: fed at the data's size unless another is typed, with a head for the data's classes.

    One that is made of its ``teacher`` has that one's size.
    """
    typed = _typed_size(network, splits, view)
    reads = _reads(splits, view, typed)
    if network.init is None:
        student = _named(network, splits, seed=seed, trust_code=trust_code, **reads)
    else:
        source = require_teacher(teacher, "of which student.init makes the student")
        layers, width = network.init.layers, network.init.width
        with _about(view):
            student = models.from_teacher(source, layers=layers, width=width, text=reads.get("text"))
        reads |= {} if typed or view in splits.text else {"image_size": student.card.image_size or reads["image_size"]}
    if network.trained == "head":
        student.train_head_alone()
    elif isinstance(network.trained, LoRA):
        rank, alpha, targets = network.trained.lora, network.trained.alpha, network.trained.targets
        with _about(view):
            student.train_adapters(Adapters(rank, alpha or float(rank), targets or ()), seed=seed)
    if not splits.input_shape(view):
        student.card = replace(student.card, class_names=splits.class_names or None)
        return student
    student.card = replace(
        student.card,
        image_size=reads["image_size"],
        margin=splits.margin,
        interpolation=splits.interpolation,
        divisor=splits.divisor,
        class_names=splits.class_names,
    )
    return _with_entrance(student, splits, view)


def _named(network: Network, splits: data.Splits, **arguments: Any) -> Classifier:
    """Make a network by its name, for the data's classes."""
    made = models.create(
        network.name,
        weights=network.weights,
        config=network.config,
        classes=splits.outputs,
        task=splits.task,
        **arguments,
    )
    if "image_size" in arguments and made.call is not None and made.call.text is not None:  # of a run's folder
        instead = "type reads: text for it" if network.reads else "name a network of images"
        raise InvalidValueError("model", "a network that reads images", f"{made.card.name}, of texts", instead)
    return made


@contextmanager
def _about(view: str) -> Iterator[None]:
    """Name the network whose key is wrong, as it is typed."""
    try:
        yield
    except InvalidValueError as error:
        raise error.renamed(lambda what: f"{view}.{what}") from error


def create_untrained(network: Network, splits: data.Splits, *, trust_code: bool | frozenset[str] = False) -> Classifier:
    """Make a network that stands in for a teacher until it is trained, with a head for the data's classes."""
    teacher = create_student(network, splits, seed=0, trust_code=trust_code, view="teacher")
    teacher.card = replace(teacher.card, fresh_head=False)
    return teacher


def create_teacher(
    network: Network, splits: data.Splits, *, seed: int = 0, trust_code: bool | frozenset[str] = False
) -> Classifier:
    """Make the network to learn from, with the channels, size and classes that its weights were trained with.

    Random weights, and those of a checkpoint that says none of it, take the data's. A typed size and typed classes come
    first.

    Raises:
        RecipeError: if the images would be stretched, or the classes cannot be mapped as typed.
    """
    teacher = create_as_trained(network, splits, "teacher", seed=seed, trust_code=trust_code)
    return with_classes(teacher, splits, network.classes)


def create_as_trained(
    network: Network,
    splits: data.Splits,
    view: str,
    *,
    seed: int = 0,
    trust_code: bool | frozenset[str] = False,
) -> Classifier:
    """Make a network with what its weights were trained with, or else with the data's; a typed size comes first."""
    typed = _typed_size(network, splits, view)
    as_trained = ("classes", "channels") if typed else ("classes", "channels", "image_size")
    reads = _reads(splits, view, typed)
    trained = _named(network, splits, seed=seed, trust_code=trust_code, as_trained=as_trained, **reads)
    return _with_entrance(trained, splits, view, stretched=typed is not None)


def adopt(module: nn.Module, splits: data.Splits, view: str, *, trained: bool = False) -> Classifier:
    """Wrap a module of the caller's for its data; a `Classifier` is fed at the size that was asked for with its card.

    A teacher is ``trained``: without such a size its weights' own counts, if its card names weights.
    """
    of_images = bool(splits.input_shape(view))
    shape = _reads(splits, view) if of_images else {}
    network = models.adopt(module, f"object:{type(module).__name__}", classes=splits.outputs, task=splits.task, **shape)
    if network is not module or not of_images:
        return network
    channels, height, width = splits.input_shape(view)
    by_weights = network.card.image_size if trained and network.card.weights is not None else None
    size = network.asked_size or by_weights or (height, width)
    outputs = None if network.outputs is None else network.outputs.tolist()
    # A card without statistics may leave the number of channels at its default.
    channels = channels if network.card.mean is None else network.card.channels
    network = Classifier(network.network, replace(network.card, image_size=size, channels=channels), outputs=outputs)
    return _with_entrance(network, splits, view)


def _reads(splits: data.Splits, view: str, size: tuple[int, int] | None = None) -> dict[str, Any]:
    """Return the arguments of `models.create` for what a network reads: text, or images of a size or the data's."""
    if view in splits.text:
        return {"text": splits.text[view]}
    if not splits.input_shape(view):
        return {}
    channels, height, width = splits.input_shape(view)
    return {"channels": channels, "image_size": size or (height, width)}


def _typed_size(network: Network, splits: data.Splits, view: str) -> tuple[int, int] | None:
    """Return the height and width whose shorter side was typed, in the aspect ratio of the data's images."""
    if network.size is None:
        return None
    if not splits.input_shape(view):
        raise RecipeError(f"{view}.size", "null where samples are no images", network.size, f"type {view}.size=null")
    _, height, width = splits.input_shape(view)
    scale = network.size / min(height, width)
    return round(height * scale), round(width * scale)


def _with_entrance(network: Classifier, splits: data.Splits, view: str, *, stretched: bool = True) -> Classifier:
    """Let a network bring the data's images to its card's size and channels; without ``stretched`` no other aspect."""
    if not splits.input_shape(view):
        return network
    channels, height, width = splits.input_shape(view)
    card = network.card
    size = card.image_size or (height, width)
    if not stretched and abs(size[0] * width - size[1] * height) > max(height, width):
        got = f"images of {height}x{width}, which would be stretched"
        instead = (
            f"type data.size={min(size)} for square images, or {view}.size={min(height, width)} for the data's size"
        )
        raise RecipeError(f"{view} {card.name}", f"images shaped as its {size[0]}x{size[1]}", got, instead)
    network.resizes = (card.channels, *size) != (channels, height, width)
    return network


def with_classes(teacher: Classifier, splits: data.Splits, classes: Sequence[int | str] | None = None) -> Classifier:
    """Map a teacher's outputs to the data's classes: as typed, or else by the names of both where all data's are there.

    Otherwise the teacher is returned as it is; `check_classes` refuses one that does not fit.
    """
    card = teacher.card
    if classes is not None:
        outputs = [_output(each, card) for each in classes]
        if len(outputs) != splits.outputs or len(set(outputs)) < len(outputs):
            expected = f"an output of {card.name} for each of the data's {splits.outputs} classes, none of them twice"
            instead = f"type {splits.outputs} different ones, in the order of the data's classes"
            raise RecipeError("teacher.classes", expected, f"{len(outputs)}, {len(set(outputs))} different", instead)
    elif _are_names(card.class_names) and set(splits.class_names) <= set(card.class_names or ()):
        outputs = [(card.class_names or ()).index(name) for name in splits.class_names]
    else:
        return teacher
    if outputs == list(range(card.classes)):
        return teacher
    card = replace(card, classes=splits.outputs, class_names=splits.class_names)
    mapped = Classifier(teacher.network, card, outputs=outputs)
    mapped.resizes = teacher.resizes
    return mapped


def _are_names(names: Sequence[str] | None) -> bool:
    """Whether classes have names that tell them apart; their own numbers are none."""
    known = list(names or ())
    return len(set(known)) == len(known) and known != [str(number) for number in range(len(known))]


def _output(typed: int | str, card: Card) -> int:
    """Return the output that was typed as a number or as a class's name."""
    names = card.class_names or ()
    number = typed if isinstance(typed, int) else names.index(typed) if names.count(typed) == 1 else None
    if number is None or number >= card.classes:
        by_name = f" or the name of one class, such as {names[0]!r}" if names else ", as its classes have no names"
        expected = f"a number from 0 to {card.classes - 1}, as {card.name} has outputs,{by_name}"
        raise RecipeError("teacher.classes", expected, repr(typed), "type one of those for each class of the data")
    return number


def check_classes(teacher: Classifier, splits: data.Splits) -> None:
    """Refuse a teacher whose classes are not the data's, with the difference.

    As many names without anything in common are two notations for the same classes, such as words and WordNet ids.
    """
    card, wanted = teacher.card, splits.class_names
    names = tuple(card.class_names or ())
    what = f"teacher {card.name}"
    instead = "fine-tune it on these data with `tutelage train`, or name another teacher"
    if card.classes >= splits.outputs:
        instead = f"type teacher.classes=[...] with its output for each class of the data in order, {instead}"
    if card.fresh_head:
        expected = f"weights for {splits.outputs} classes, as the data have"
        raise RecipeError(what, expected, "weights for another number", instead)
    shared = set(names) & set(wanted)
    if card.classes == splits.outputs and (names == wanted or not shared):
        return
    got = f"{card.classes} classes"
    if sorted(names) == sorted(wanted):
        k = next(k for k, pair in enumerate(zip(names, wanted, strict=True)) if pair[0] != pair[1])
        got = f"the same in another order: {names[k]!r} where they have {wanted[k]!r} (class {k})"
    elif len(set(names)) < len(names):
        got += ", two of them of one name"
    elif names:
        lacking, other = (
            [name for name in these if name not in those] for these, those in ((wanted, names), (names, wanted))
        )
        got += f"; {_some(lacking)} of the data's are not among them, and {_some(other)} of them not among the data's"
    raise RecipeError(what, f"the {splits.outputs} classes of the data and the student", got, instead)


def _some(names: Sequence[str]) -> str:
    return f"{len(names)} ({_listed(names)})" if names else "none"


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(repr, values[:SHOWN])) + (", ..." if len(values) > SHOWN else "")


def describe_fit(network: Classifier, shape: Sequence[int]) -> Iterator[str]:
    """Say how a network was fitted to images of a shape and to the data's classes, a line each."""
    if network.resized_to is not None:
        came, fed = ("x".join(map(str, sizes)) for sizes in (shape, network.resized_to))
        yield f"images of {came} are brought to its {fed}"
    if network.outputs is not None:
        yield f"its outputs {_listed(network.outputs.tolist())} are the data's {network.card.classes} classes in order"
