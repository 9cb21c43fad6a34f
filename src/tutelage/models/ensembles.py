"""Several networks that teach as one."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from tutelage.adapters import inputs_for, takes_keywords
from tutelage.errors import InvalidTypeError, InvalidValueError
from tutelage.models.card import Card
from tutelage.models.classifier import Classifier
from tutelage.models.registry import adopt
from tutelage.submodules import unwrapped
from tutelage.types import Inputs

Combine = Literal["probabilities", "logits", "terms"]
"""What several teachers are averaged as."""
_ALIKE = ("channels", "image_size", "margin", "interpolation", "divisor", "max_tokens", "per_token", "tokenizer")
"""Fields that an ensemble's card has of its members' cards where all agree."""


def combined(logits: Sequence[Tensor], weights: Sequence[float], *, of: Literal["probabilities", "logits"]) -> Tensor:
    """Return the logits of several networks' mean, in at least float32.

    Of ``probabilities`` ``log(sum_k w_k softmax(v_k))``, whose softmax is the mean of the distributions. Of ``logits``
    ``sum_k w_k v_k``, whose softmax is their geometric mean, normalised: a class has to be likely for every network.

    Args:
        logits: logits ``(..., classes)`` of each network, in one shape.
        weights: weight of each, above 0; they add up to 1.
        of: what is averaged.

    Returns:
        ``(..., classes)``.
    """
    dtype = torch.promote_types(logits[0].dtype, torch.float32)
    wide = [each.to(dtype) for each in logits]
    if of == "logits":
        return torch.stack([w * v for w, v in zip(weights, wide, strict=True)]).sum(0)
    return torch.stack([v.log_softmax(-1) + math.log(w) for w, v in zip(weights, wide, strict=True)]).logsumexp(0)


class _Members(nn.Module):
    """The members of an ensemble, and the mean of their answers.

    The buffer ``combination`` says how they are combined, as text, so that the ensemble's fingerprint covers it.
    """

    combination: Tensor

    def __init__(self, members: Sequence[Classifier], weights: Sequence[float], combine: Combine) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.weights, self.combine = tuple(weights), combine
        described = [
            {
                "weight": weight,
                "mean": member.card.mean,
                "std": member.card.std,
                "input": member.resized_to,
                "outputs": None if member.outputs is None else member.outputs.tolist(),
            }
            for member, weight in zip(members, self.weights, strict=True)
        ]
        text = json.dumps({"combine": combine, "members": described})
        self.register_buffer("combination", torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).clone())
        embeds = members[0].card.task == "embedding"
        self.of: Literal["probabilities", "logits"] = "logits" if embeds or combine == "logits" else "probabilities"

    @property
    def takes_keywords(self) -> bool:
        """Whether a member is called with keywords, so that all need every view."""
        return any(takes_keywords(unwrapped(member)) for member in self.members)

    def forward(self, inputs: Inputs) -> Tensor:
        answers = [member(inputs_for(member, inputs, "teacher")) for member in self.members]
        for k, answer in enumerate(answers):
            if answer.shape != answers[0].shape:
                expected = f"logits of shape {tuple(answers[0].shape)}, as those of member 0"
                instead = "type classes=[...] with its output for each class of the data, or name another"
                raise InvalidValueError(f"teacher.members.{k}", expected, tuple(answer.shape), instead)
        return combined(answers, self.weights, of=self.of)


class Ensemble(Classifier):
    """Several classifiers as one teacher, whose logits are those of the mean of ``probabilities`` or of ``logits``.

    Each member reads the same inputs, brought to its own size and normalised by its own statistics, and has its own
    map of classes. With ``terms`` an objective is computed for each member (`Objective.per_member`), and the ensemble's
    own logits are those of the mean of probabilities; of embeddings, which are no distributions, of the vectors' mean.

    ``KL(mean_k p_k || q)`` is not ``mean_k KL(p_k || q)``. At gamma 1 the second is larger by the members'
    disagreement, which the student does not change, so that both have one gradient; of flattened teachers, and with
    the weights ``U_gamma`` of WTTM, they are different losses.

    Args:
        members: at least two networks of the same classes; see `ensemble`.
        weights: weight of each, above 0, divided by their sum; ``None`` for equal ones.
        combine: what is averaged.

    Attributes:
        weights: weight of each member; they add up to 1.
        combine: what is averaged.

    Raises:
        TypeError: if a member is no classifier.
        ValueError: if there are fewer members, one is named twice, the weights do not fit, the members answer different
            things, or embeddings are to be averaged as probabilities.
    """

    def __init__(
        self,
        members: Sequence[Classifier],
        *,
        weights: Sequence[float] | None = None,
        combine: Combine = "probabilities",
    ) -> None:
        shares = normalised(len(members), weights)
        for member in members:
            if not isinstance(member, Classifier):
                expected, instead = "networks with a card", "type tutelage.models.ensemble(a, b), which gives them one"
                raise InvalidTypeError("members", expected, type(member).__name__, instead)
        if combine not in get_args(Combine):
            instead = "for example combine='probabilities'"
            raise InvalidValueError("combine", f"one of {', '.join(get_args(Combine))}", repr(combine), instead)
        if len({id(network) for network in map(unwrapped, members)}) < len(members):
            instead = "leave it out there, and give it a larger weight"
            raise InvalidValueError("members", "networks that differ", "one of them twice", instead)
        first = members[0].card
        for card in (member.card for member in members):
            for what in ("task", "classes"):
                if (value := getattr(card, what)) != (known := getattr(first, what)):
                    instead = "name members that answer the same, or map a member's classes: classes=[...]"
                    raise InvalidValueError(f"member {card.name}", f"{what} {known}, as {first.name}", value, instead)
        if first.task == "embedding" and combine == "probabilities":
            expected = "logits or terms for embeddings, which are no distributions"
            raise InvalidValueError("combine", expected, "probabilities", "type combine=logits for the vectors' mean")
        names = [member.card.class_names for member in members]
        alike = {
            field: getattr(first, field)
            for field in _ALIKE
            if all(getattr(member.card, field) == getattr(first, field) for member in members)
        }
        card = Card(
            name=f"ensemble({', '.join(member.card.name for member in members)})",
            classes=first.classes,
            class_names=names[0] if names.count(names[0]) == len(names) else None,
            weights=", ".join(member.card.weights or "random" for member in members),
            fresh_head=any(member.card.fresh_head for member in members),
            task=first.task,
            **alike,
        )
        super().__init__(_Members(members, shares, combine), card)
        self.weights, self.combine = shares, combine

    @property
    def members(self) -> list[Classifier]:
        """The classifiers that it is made of."""
        return [cast(Classifier, member) for member in cast(nn.ModuleList, self.network.members)]

    @property
    def by_tap(self) -> dict[str, float]:
        """The weight of each member by the tap of its logits, for `Objective.per_member`."""
        return by_tap(self.weights)

    @property
    def user_code(self) -> str | None:
        """The names of the members that are the user's own modules; see `errors.explained`."""
        return ", ".join(code for member in self.members if (code := member.user_code)) or None

    def forward(self, inputs: Inputs) -> Tensor:
        """Return the logits of the members' mean, ``(batch, *positions, classes)``, in at least float32.

        Raises:
            TypeError: as of a `Classifier`.
            ValueError: if the members' logits have different shapes.
        """
        logits: Tensor = self.network(inputs)
        return logits


def by_tap(weights: Sequence[float]) -> dict[str, float]:
    """Return members' weights by the taps of their logits."""
    return {f"members.{k}": weight for k, weight in enumerate(weights)}


def normalised(members: int, weights: Sequence[float] | None) -> tuple[float, ...]:
    """Return the weights of so many members over their sum, or equal ones.

    Raises:
        ValueError: if there are fewer than two members, or not as many weights above 0.
    """
    if members < 2:
        raise InvalidValueError("members", "two networks or more", members, "name another, or give the one alone")
    if weights is None:
        return (1 / members,) * members
    sound = all(isinstance(w, int | float) and not isinstance(w, bool) and 0 < w < math.inf for w in weights)
    if len(weights) != members or not sound:
        instead = f"for example weights={[1] * members}"
        raise InvalidValueError("weights", f"{members} numbers above 0, one for each member", list(weights), instead)
    total = math.fsum(weights)
    return tuple(weight / total for weight in weights)


def ensemble(
    *members: nn.Module, weights: Sequence[float] | None = None, combine: Combine = "probabilities"
) -> Ensemble:
    """Make one teacher of several networks: modules of one's own, which are wrapped by `adopt`, and classifiers.

    Args:
        members: networks.
        weights: weight of each, above 0, divided by their sum; ``None`` for equal ones.
        combine: what is averaged: ``probabilities``, ``logits``, or the ``terms`` of the objective.

    Raises:
        TypeError: if one is not a module.
        ValueError: as of an `Ensemble`.

    Example:
        >>> import torch
        >>> from tutelage import models
        >>> teacher = models.ensemble(models.create("cifar:resnet8"), models.create("cifar:resnet14"), weights=[1, 3])
        >>> teacher.weights, teacher(torch.rand(2, 3, 32, 32)).shape
        ((0.25, 0.75), torch.Size([2, 100]))
    """
    for member in members:
        if not isinstance(member, nn.Module):
            instead = "type ensemble(create('cifar:resnet8'), create('cifar:resnet14'))"
            raise InvalidTypeError("members", "networks, one after another", type(member).__name__, instead)
    adopted = [adopt(member, f"object:{type(member).__name__}") for member in members]
    return Ensemble(adopted, weights=weights, combine=combine)
