"""A run's networks for its data: each with an input of its own, and a teacher whose outputs are the data's classes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

from torch import nn

from tutelage import data, models
from tutelage.config.schema import LoRA, Network, Teachers
from tutelage.errors import InvalidValueError, RecipeError, message
from tutelage.models import Card, Classifier, Ensemble
from tutelage.models.lora import Adapters
from tutelage.objectives import Objective
from tutelage.runs import sanity_checks
from tutelage.runs.preflight import require_teacher, require_trainable

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
    require_trainable(network, view)
    typed = _typed_size(network, splits, view, view)
    reads = _reads(splits, view, typed)
    if network.init is None:
        student = _named(network, splits, view, seed=seed, trust_code=trust_code, **reads)
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
    elif network.frozen is not None:
        with _about(view):
            student.freeze(network.frozen)
    sanity_checks.warn(_of_head(student, splits, view))
    if not splits.input_shape(view):
        student.card = replace(student.card, class_names=splits.class_names or None)
        return student
    student.card = replace(
        student.card,
        image_size=reads["image_size"],
        margin=splits.margin,
        interpolation=splits.interpolation,
        divisor=splits.divisor,
        class_names=splits.class_names or None,
    )
    return _with_entrance(student, splits, view)


def _of_head(student: Classifier, splits: data.Splits, view: str) -> Iterator[str]:
    """Yield a warning where a student begins with a head for the data's classes in another order."""
    outputs = None if student.card.fresh_head else outputs_by_name(student.card.class_names or (), splits.class_names)
    if outputs is not None and outputs != [*range(student.card.classes)]:
        got = f"one whose outputs {_listed(outputs)} are these in order; it is trained on from there"
        instead = "train from other weights, or from none, if it should learn the classes from the start"
        yield message(f"{view} {student.card.name}", "a head for the data's classes in order", got, instead)


def _named(network: Network, splits: data.Splits, view: str, **arguments: Any) -> Classifier:
    """Make a network by its name, for the data's classes."""
    keys = {key: getattr(network, key) for key in ("weights", "config", "mean", "std", "output")}
    try:
        made = models.create(network.name, classes=splits.outputs, task=splits.task, **keys, **arguments)
    except InvalidValueError as error:
        raise error.renamed(lambda what: f"{view}.{what}" if what in ("mean", "output") else what) from error
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
    teacher = create_student(network, splits.for_teacher, seed=0, trust_code=trust_code, view="teacher")
    teacher.card = replace(teacher.card, fresh_head=False)
    return teacher


def create_teacher(
    network: Network | Teachers,
    splits: data.Splits,
    *,
    seed: int = 0,
    trust_code: bool | frozenset[str] = False,
    key: str = "teacher",
) -> Classifier:
    """Make the network to learn from, with the channels, size and classes that its weights were trained with.

    Random weights, and those of a checkpoint that says none of it, take the data's. A typed size and typed classes come
    first. ``key`` is where a recipe names it.

    Raises:
        RecipeError: if the images would be stretched, or the classes cannot be mapped as typed.
    """
    splits = splits.for_teacher
    if isinstance(network, Teachers):
        members = [
            create_teacher(member, splits, seed=seed, trust_code=trust_code, key=member_key(k))
            for k, member in enumerate(network.members)
        ]
        return as_one(members, splits, network.weights, network.combine)
    teacher = create_as_trained(network, splits, "teacher", seed=seed, trust_code=trust_code, key=key)
    if splits.task == "embedding":
        if network.classes is not None:
            raise RecipeError(f"{key}.classes", "null with data.embedding", "classes", f"type {key}.classes=null")
        return teacher
    return with_classes(teacher, splits, network.classes, key=key)


def member_key(number: int) -> str:
    """Return where a recipe names one of several teachers."""
    return f"teacher.members.{number}"


def as_one(
    members: Sequence[Classifier],
    splits: data.Splits,
    weights: Sequence[float] | None,
    combine: Literal["probabilities", "logits", "terms"],
) -> Ensemble:
    """Combine teachers of which each is as its data ask; refuse one whose classes are not theirs.

    Raises:
        RecipeError: if one's classes differ.
        InvalidValueError: if they cannot be combined so; the message names the recipe's key.
    """
    for k, member in enumerate(members):
        if splits.task != "embedding":
            check_classes(member, splits, key=member_key(k))
    with _about("teacher"):
        return Ensemble(members, weights=weights, combine=combine)


def create_as_trained(
    network: Network,
    splits: data.Splits,
    view: str,
    *,
    seed: int = 0,
    trust_code: bool | frozenset[str] = False,
    key: str | None = None,
) -> Classifier:
    """Make a network with what its weights were trained with, or else with the data's; a typed size comes first.

    ``key`` is where a recipe names it, by default its view.
    """
    key = key or view
    typed = _typed_size(network, splits, view, key)
    as_trained = ("classes", "channels") if typed else ("classes", "channels", "image_size")
    reads = _reads(splits, view, typed)
    trained = _named(network, splits, key, seed=seed, trust_code=trust_code, as_trained=as_trained, **reads)
    return _with_entrance(trained, splits, view, key, stretched=typed is not None)


def adopt_teacher(module: nn.Module, splits: data.Splits, key: str = "teacher") -> Classifier:
    """Wrap a teacher of the caller's, with its outputs mapped to the data's classes by name."""
    splits = splits.for_teacher
    return with_classes(adopt(module, splits, "teacher", trained=True), splits, key=key)


def adopt(module: nn.Module, splits: data.Splits, view: str, *, trained: bool = False) -> Classifier:
    """Wrap a module of the caller's for its data; a `Classifier` is fed at the size that was asked for with its card.

    A teacher is ``trained``: without such a size its weights' own counts, if its card names weights.
    """
    of_images = bool(splits.input_shape(view))
    shape = _reads(splits, view) if of_images else {}
    network = models.adopt(module, f"object:{type(module).__name__}", classes=splits.outputs, task=splits.task, **shape)
    if network.card.task != splits.task:
        card, expected = network.card, f"one that answers {splits.task}, as the data ask"
        instead = f"wrap a module by tutelage.models.adopt(module, task={splits.task!r}), or give a name or a folder"
        raise InvalidValueError(view, expected, f"{card.name} of {card.task}", instead)
    names = network.card.class_names
    if not trained and len(splits.class_names) == network.card.classes:  # What its predictions are called by.
        names = names or splits.class_names
    if network is not module:
        network.card = replace(network.card, class_names=names)
    if network is not module or not of_images:
        return network
    if isinstance(network, Ensemble):
        members = [adopt(member, splits, view, trained=trained) for member in network.members]
        return Ensemble(members, weights=network.weights, combine=network.combine)
    channels, height, width = splits.input_shape(view)
    by_weights = network.card.image_size if trained and network.card.weights is not None else None
    size = network.asked_size or by_weights or (height, width)
    outputs = None if network.outputs is None else network.outputs.tolist()
    # A card without statistics may leave the number of channels at its default.
    channels = channels if network.card.mean is None else network.card.channels
    card = replace(network.card, image_size=size, channels=channels, class_names=names)
    network = Classifier(network.network, card, outputs=outputs, call=network.call)
    return _with_entrance(network, splits, view)


def _reads(splits: data.Splits, view: str, size: tuple[int, int] | None = None) -> dict[str, Any]:
    """Return the arguments of `models.create` for what a network reads: text, or images of a size or the data's."""
    if view in splits.text:
        return {"text": splits.text[view]}
    if not splits.input_shape(view):
        return {}
    channels, height, width = splits.input_shape(view)
    return {"channels": channels, "image_size": size or (height, width)}


def _typed_size(network: Network, splits: data.Splits, view: str, key: str) -> tuple[int, int] | None:
    """Return the height and width whose shorter side was typed, in the aspect ratio of the data's images."""
    if network.size is None:
        return None
    if not splits.input_shape(view):
        raise RecipeError(f"{key}.size", "null where samples are no images", network.size, f"type {key}.size=null")
    _, height, width = splits.input_shape(view)
    scale = network.size / min(height, width)
    return round(height * scale), round(width * scale)


def _with_entrance(
    network: Classifier, splits: data.Splits, view: str, key: str | None = None, *, stretched: bool = True
) -> Classifier:
    """Let a network bring the data's images to its card's size and channels; without ``stretched`` no other aspect."""
    if not splits.input_shape(view):
        return network
    channels, height, width = splits.input_shape(view)
    card, key = network.card, key or view
    size = card.image_size or (height, width)
    if not stretched and abs(size[0] * width - size[1] * height) > max(height, width):
        got = f"images of {height}x{width}, which would be stretched"
        instead = (
            f"type data.size={min(size)} for square images, or {key}.size={min(height, width)} for the data's size"
        )
        raise RecipeError(f"{key} {card.name}", f"images shaped as its {size[0]}x{size[1]}", got, instead)
    network.resizes = (card.channels, *size) != (channels, height, width)
    return network


def with_classes(
    network: Classifier,
    splits: data.Splits,
    classes: Sequence[int | str] | None = None,
    *,
    key: str = "teacher",
) -> Classifier:
    """Map a network's outputs to the data's classes: as typed, or else by the names of both where all data's are there.

    Otherwise the network is returned as it is; `check_classes` refuses one that does not fit.
    """
    card = network.card
    if classes is not None:
        outputs = [_output(each, card, key) for each in classes]
        if len(outputs) != splits.outputs or len(set(outputs)) < len(outputs):
            expected = f"an output of {card.name} for each of the data's {splits.outputs} classes, none of them twice"
            instead = f"type {splits.outputs} different ones, in the order of the data's classes"
            raise RecipeError(f"{key}.classes", expected, f"{len(outputs)}, {len(set(outputs))} different", instead)
    elif (named := outputs_by_name(card.class_names or (), splits.class_names)) is not None:
        outputs = named
    else:
        return network
    if outputs == list(range(card.classes)):
        return network
    card = replace(card, classes=splits.outputs, class_names=splits.class_names)
    if network.outputs is not None:  # It has a map already.
        outputs = network.outputs[outputs].tolist()
    mapped = Classifier(network.network, card, outputs=outputs, call=network.call)
    mapped.resizes = network.resizes
    return mapped


def outputs_by_name(names: Sequence[str], wanted: Sequence[str]) -> list[int] | None:
    """Return which of a network's named outputs is each of the data's classes; ``None`` where one is none, or several.

    Names are compared as they are written; where that leaves some out without regard to case, spaces, ``_`` and ``-``;
    and then with each of several between commas, as ImageNet's have them, as a name. Classes' own numbers are none.
    """
    if not _are_names(names) or not wanted:
        return None
    for notations in (_as_written, _folded, _synonyms):
        places: dict[str, set[int]] = {}
        for k, name in enumerate(names):
            for notation in notations(name):
                places.setdefault(notation, set()).add(k)
        matches = [set().union(*(places.get(each, set()) for each in notations(name))) for name in wanted]
        outputs = [match.pop() for match in matches if len(match) == 1]
        if len(set(outputs)) == len(wanted):
            return outputs
    pairs = zip(names, wanted, strict=False)
    in_order = len(names) == len(wanted) and all(_synonyms(mine) & _synonyms(theirs) for mine, theirs in pairs)
    return [*range(len(names))] if in_order else None  # though some have one name, as ImageNet's two cranes have


def _as_written(name: str) -> set[str]:
    return {name}


def _folded(name: str) -> set[str]:
    return {re.sub(r"[\s_-]+", " ", name).strip().casefold()}


def _synonyms(name: str) -> set[str]:
    return set().union(*map(_folded, (name, *name.split(",")))) - {""}


def _are_names(names: Sequence[str]) -> bool:
    """Whether classes have names; their own numbers are none."""
    return bool(names) and list(names) != [str(number) for number in range(len(names))]


def _output(typed: int | str, card: Card, key: str) -> int:
    """Return the output that was typed as a number or as a class's name."""
    names = card.class_names or ()
    number = typed if isinstance(typed, int) else names.index(typed) if names.count(typed) == 1 else None
    if number is None or number >= card.classes:
        by_name = f" or the name of one class, such as {names[0]!r}" if names else ", as its classes have no names"
        expected = f"a number from 0 to {card.classes - 1}, as {card.name} has outputs,{by_name}"
        raise RecipeError(f"{key}.classes", expected, repr(typed), "type one of those for each class of the data")
    return number


def check_classes(network: Classifier, splits: data.Splits, *, key: str = "teacher", judged: str = "") -> None:
    """Refuse a teacher whose classes are not the data's, with the difference.

    As many names of which none stands for another class are two notations for the same ones, as words and WordNet ids.

    Args:
        network: teacher, after `with_classes`.
        splits: data.
        key: where a recipe names it.
        judged: name of a network that is no teacher, and is only evaluated.
    """
    card, wanted = network.card, splits.class_names
    names, expected = tuple(card.class_names or ()), f"the {splits.outputs} classes of the data and the student"
    instead = "fine-tune it on these data with `tutelage train`, or name another teacher"
    if judged:
        expected, instead = (
            f"the {splits.outputs} classes of the data",
            "name the data that it was trained on, data.source=...",
        )
    if card.classes >= splits.outputs:
        or_else = "or " * bool(judged) + instead
        instead = f"type {key}.classes=[...] with its output for each class of the data in order, {or_else}"
    what = f"{key} {judged or card.name}"
    if card.fresh_head:
        expected = f"weights for {splits.outputs} classes, as the data have"
        raise RecipeError(what, expected, "weights for another number", instead)
    shared = set(names) & set(wanted)
    if card.classes == splits.outputs:
        if names == wanted or outputs_by_name(names, wanted) == [*range(card.classes)]:
            return
        if not shared and not _crossed(names, wanted):
            if judged and _are_names(names) and _are_names(wanted):
                pairs = [
                    f"{mine!r} for {theirs!r}"
                    for mine, theirs in zip(names, wanted, strict=True)
                    if not _synonyms(mine) & _synonyms(theirs)
                ]
                got = "none of them" if len(pairs) == len(names) else f"others for {len(pairs)} of them"
                got += f", so they are taken in order: {', '.join(pairs[:SHOWN])}" + ", ..." * (len(pairs) > SHOWN)
                sanity_checks.warn([message(what, "the class names of the data", got, instead)])
            return
    got = f"{card.classes} classes"
    if sorted(names) == sorted(wanted):
        k = next(k for k, pair in enumerate(zip(names, wanted, strict=True)) if pair[0] != pair[1])
        got = f"the same in another order: {names[k]!r} where they have {wanted[k]!r} (class {k})"
    elif len(set(names)) < len(names):
        got += ", two of them of one name"
    elif names:
        lacking, other = _unmatched(wanted, names), _unmatched(names, wanted)
        got += f"; {_some(lacking)} of the data's are not among them, and {_some(other)} of them not among the data's"
    raise RecipeError(what, expected, got, instead)


def _crossed(names: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether a name stands for one of those wanted, but not for the one in its place."""
    if not _are_names(names) or not _are_names(wanted):
        return False
    places: dict[str, set[int]] = {}
    for k, name in enumerate(wanted):
        for notation in _synonyms(name):
            places.setdefault(notation, set()).add(k)
    found = [set().union(*(places.get(each, set()) for each in _synonyms(name))) for name in names]
    return any(matches and k not in matches for k, matches in enumerate(found))


def _unmatched(names: Sequence[str], others: Sequence[str]) -> list[str]:
    """Return the names that stand for none of others."""
    known = set().union(*map(_synonyms, others))
    return [name for name in names if not _synonyms(name) & known]


def check_width(teacher: Classifier, splits: data.Splits, objectives: Iterable[Objective]) -> None:
    """Refuse a teacher whose embedding has another width than the student's, unless similarities alone are compared."""
    if (width := teacher.card.classes) == splits.classes:
        return
    for objective in objectives:
        if any(part.term.needs.embeddings and not part.term.needs.coupled for part, _ in objective.parts):
            expected = f"an embedding as wide as data.embedding={splits.classes} for objective {objective.name}"
            instead = f"type data.embedding={width}, or in_batch_similarity, which compares similarities alone"
            raise RecipeError(f"teacher {teacher.card.name}", expected, f"one of {width}", instead)


def _some(names: Sequence[str]) -> str:
    return f"{len(names)} ({_listed(names)})" if names else "none"


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(repr, values[:SHOWN])) + (", ..." if len(values) > SHOWN else "")


def describe_fit(network: Classifier, shape: Sequence[int]) -> Iterator[str]:
    """Say how a network was fitted to images of a shape and to the data's classes, a line each."""
    if isinstance(network, Ensemble):
        yield f"the mean of its members' {network.combine}"
        for member, weight in zip(network.members, network.weights, strict=True):
            yield "; ".join([f"{member.card.name} with the weight {weight:.4g}", *describe_fit(member, shape)])
    if network.card.fresh_head:
        yield f"its head for {network.card.classes} classes is new, with random weights"
    if network.resized_to is not None:
        came, fed = ("x".join(map(str, sizes)) for sizes in (shape, network.resized_to))
        yield f"images of {came} are brought to its {fed}"
    if network.outputs is not None:
        yield f"its outputs {_listed(network.outputs.tolist())} are the data's {network.card.classes} classes in order"
