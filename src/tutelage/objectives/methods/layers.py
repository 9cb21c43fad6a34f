"""Methods that match layers: maps of dense prediction, and a transformer's layers by pattern.

None includes a cross-entropy.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from tutelage import checks, losses
from tutelage.errors import InvalidValueError
from tutelage.losses.layers import mean_of
from tutelage.objectives.objective import Objective
from tutelage.objectives.registry import objective_of, preset
from tutelage.objectives.term import Apply, BindContext, BoundFeatures, FeatureTerm, WeightedTerm, missing, present
from tutelage.settings.objective import LayerPairs, Names
from tutelage.settings.weights import Weight
from tutelage.submodules import layers_of
from tutelage.types import PADDING, Batch, Inputs, Outputs, Progress, Requirements, Term

LOGITS = "logits"
"""What stands for a network's logits where a tap is named."""
RULES: Mapping[str, Callable[[int, int], list[tuple[int, int]]]] = {
    "last": lambda student, teacher: [(student - 1, teacher - 1)],
    "uniform": lambda student, teacher: [(k, (k + 1) * teacher // student - 1) for k in range(student)],
    "skip": lambda student, teacher: RULES["uniform"](student, teacher)[:-1],
    "top": lambda student, teacher: [(k, teacher - student + k) for k in range(student - 1)],
}
"""Pairs of layers, counted from 0, of networks of some numbers of them."""
PARTS = "qkv"
"""Queries, keys and values, by the letters that relations are written with."""
NO_MASK = "none"
"""What is typed in place of a mask's key where every token counts."""


class _BoundChannelWise(nn.Module):
    """A bound `ChannelWise`."""

    def __init__(self, spec: ChannelWise) -> None:
        super().__init__()
        self.spec, self.needs = spec, spec.needs

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress) -> Tensor:
        if student.logits.ndim < 3:
            expected = "logits of several positions, such as those of pixels"
            instead = "name maps, such as student_tap=card:stage.-1 teacher_tap=card:stage.-1"
            raise InvalidValueError("student_tap", expected, tuple(student.logits.shape), instead)
        maps = [logits.movedim(-1, 1).flatten(2)[..., None] for logits in (student.logits, present(teacher).logits)]
        counted = None if batch.counted is None else batch.counted.flatten(1)[..., None]
        return losses.cwd(*maps, temperature=self.spec.temperature, over=self.spec.over, counted=counted)


@dataclass(frozen=True, kw_only=True)
class ChannelWise:
    """`losses.cwd` on logits of several positions, of those that count."""

    temperature: float
    over: str
    needs: ClassVar[Requirements] = Requirements(teacher=True, labels="none")
    target_gamma: ClassVar[None] = None  # its distributions are not those of the classes

    def __post_init__(self) -> None:
        losses.cwd(*[torch.ones(1, 1, 1, 1)] * 2, temperature=self.temperature, over=self.over)

    def bind(self, context: BindContext) -> Term:
        """Build the term; it needs nothing from the context."""
        return _BoundChannelWise(self)


@dataclass(frozen=True, kw_only=True)
class LayerTerm(FeatureTerm):
    """Layers ``(batch, tokens, width)`` of both networks, of patterns whose numbers the networks have.

    Which are read is known once a run is bound: the bound term needs no others.
    """

    layers: LayerPairs  # a rule of `RULES`, or pairs of numbers, the student's first
    mask: str  # key of the inputs that says which tokens count, where they are a mapping

    def _check(self) -> None:
        if isinstance(self.layers, str):
            checks.known(self.layers, "layers", [*RULES, "[[0, 1], [1, 3]]"], example="last")

    def bind(self, context: BindContext) -> Term:
        """Build the term for one run.

        Raises:
            ValueError: if a pattern is none of the network's, or the networks have no such layers.
        """
        student = self._found("student", self.student_taps, context.student_shapes)
        teacher = self._found("teacher", self.teacher_taps, context.teacher_shapes)
        pairs = _pairs(self.layers, len(student), len(teacher))
        chosen = replace(
            self,
            student_taps=tuple(tap for number, _ in pairs for tap in student[number]),
            teacher_taps=tuple(tap for _, number in pairs for tap in teacher[number]),
        )
        for tap, (ours, theirs) in zip(chosen.student_taps, chosen.shapes(context, "tokens"), strict=True):
            if ours[0] != theirs[0]:
                expected = "as many tokens in both networks"
                instead = "use networks that cut a sample in the same tokens"
                raise InvalidValueError(f"tap {tap}", expected, f"{ours[0]} and {theirs[0]}", instead)
        return self.module(chosen, context)

    def _found(
        self, who: Literal["student", "teacher"], patterns: Sequence[str], shapes: Mapping[str, Any]
    ) -> list[tuple[str, ...]]:
        """Return the taps of each layer, one for each pattern."""
        columns: list[list[str]] = []
        for pattern in patterns:
            whole = layers_of(pattern, shapes)
            if len(whole) != 1:
                raise missing(f"the shapes of the {who}'s taps {pattern}")
            columns += whole.values()
        if len({len(column) for column in columns}) != 1:
            got = " and ".join(f"{len(column)} of {pattern}" for pattern, column in zip(patterns, columns, strict=True))
            raise InvalidValueError(who, "patterns of as many layers each", got, "name parts of the same layers")
        return list(zip(*columns, strict=True))

    def of_texts(self, values: Tensor, batch: Batch) -> Tensor:
        """Return each sample's mean over the tokens that are no padding; values as they are where tokens are positions.

        There the objective's mean is over those that count.
        """
        positions = batch.labels.shape[: batch.labels.ndim - batch.labels.is_floating_point()]
        if values.shape == positions:
            return values
        return mean_of(values, self.unpadded(values, batch.inputs))

    def unpadded(self, tokens: Tensor, inputs: Inputs) -> Tensor | None:
        """Return which tokens ``(batch, tokens, ...)`` are no padding; ``None`` where all count."""
        size = tokens.shape[:2]
        ids: Any = inputs
        if self.mask == NO_MASK:
            return None
        if isinstance(inputs, Mapping):
            ids = inputs.get("student")
            if self.mask in inputs:
                return inputs[self.mask].expand(size) > 0
            if _is_ids(ids) and inputs.get("teacher", ids) is not ids:
                got, instead = "tokens of their own each", "type data.teacher_tokenizer=null, or an objective of logits"
                raise InvalidValueError("student", "networks that read the same tokens", got, instead)
            if ids is None and any(_is_ids(view) for view in inputs.values()):
                expected = "the key of the inputs that holds 1 for tokens and 0 for padding"
                instead = f"type one of {', '.join(map(str, inputs))}, or mask={NO_MASK} where nothing is padded"
                raise InvalidValueError("mask", expected, repr(self.mask), instead)
        if not _is_ids(ids):
            return None
        if ids.shape != size:
            expected = f"layers of the {tuple(ids.shape)} tokens that are read"
            raise InvalidValueError("student", expected, tuple(size), f"name others, or type mask={NO_MASK}")
        return ids != PADDING


def _is_ids(view: Tensor | None) -> bool:
    return view is not None and view.ndim == 2 and not view.is_floating_point()


def _pairs(layers: LayerPairs, student: int, teacher: int) -> list[tuple[int, int]]:
    """Return the numbers of paired layers, given how many both networks have."""
    pairs = RULES[layers](student, teacher) if isinstance(layers, str) else [(ours, theirs) for ours, theirs in layers]
    inside = all(-student <= ours < student and -teacher <= theirs < teacher for ours, theirs in pairs)
    deeper = isinstance(layers, str) and layers != "last" and student > teacher
    if not pairs or not inside or deeper:
        expected = f"pairs of {student} layers of the student and {teacher} of the teacher"
        got = str([list(pair) for pair in pairs] if pairs and not deeper else layers)
        raise InvalidValueError("layers", expected, got, f"for example layers=[[{student - 1}, {teacher - 1}]]")
    return pairs


class _BoundHiddenStates(BoundFeatures):
    spec: HiddenStates

    def build(self, context: BindContext) -> None:
        widths = [(ours[1], theirs[1]) for ours, theirs in self.spec.shapes(context)]
        self.maps = nn.ModuleList(nn.Linear(*pair) if pair[0] != pair[1] else nn.Identity() for pair in widths)

    def values(self, student: Sequence[Tensor], teacher: Sequence[Tensor], batch: Batch, progress: Progress) -> Tensor:
        first = self.spec.tokens == "first"
        if first:
            student, teacher = ([layer[:, :1] for layer in layers] for layers in (student, teacher))
        layers = [
            losses.hidden_states(align(ours), theirs, distance=self.spec.distance)
            for align, ours, theirs in zip(self.maps, student, teacher, strict=True)
        ]
        values = torch.stack(layers).sum(0)
        return values[:, 0] if first else self.spec.of_texts(values, batch)


@dataclass(frozen=True, kw_only=True)
class HiddenStates(LayerTerm):
    """`losses.hidden_states` of pairs of layers, summed over the pairs.

    Each pair has its own linear map onto the teacher's width, or none if the widths agree.
    """

    module: ClassVar = _BoundHiddenStates
    distance: str
    tokens: str  # "all", or "first" for the class token alone

    def _check(self) -> None:
        super()._check()
        checks.known(self.tokens, "tokens", ("all", "first"), example="all")
        losses.hidden_states(*[torch.ones(1, 1, 1)] * 2, distance=self.distance)


class _BoundRelations(BoundFeatures):
    spec: AttentionRelations

    def build(self, context: BindContext) -> None:
        """Try the loss on the widths of the parts."""
        shapes = self.spec.shapes(context)
        self._joint = [len(set(taps[:3])) == 1 for taps in (self.spec.student_taps, self.spec.teacher_taps)]
        for which in range(2):
            if self._joint[which] and (width := shapes[0][which][1]) % 3:
                who = ("student", "teacher")[which]
                expected = "a layer whose outputs are queries, keys and values, one after another"
                raise InvalidValueError(
                    who, expected, f"one of {width} outputs", "name a pattern for each of the three"
                )
        ours, theirs = (
            [torch.zeros(1, 2, pair[which][1]) for pair in shapes[:3]] for which, pair in ((0, shapes), (1, shapes))
        )
        self._compare(ours, theirs, None)

    def values(self, student: Sequence[Tensor], teacher: Sequence[Tensor], batch: Batch, progress: Progress) -> Tensor:
        seen = self.spec.unpadded(student[0], batch.inputs)
        layers = [self._compare(student[at : at + 3], teacher[at : at + 3], seen) for at in range(0, len(student), 3)]
        return self.spec.of_texts(torch.stack(layers).sum(0), batch)

    def _compare(self, student: Sequence[Tensor], teacher: Sequence[Tensor], seen: Tensor | None) -> Tensor:
        """Return the sum over the relations of one pair of layers, ``(batch, tokens)``."""
        ours, theirs = (
            dict(zip(PARTS, taps[0].chunk(3, -1) if joint else taps, strict=True))
            for taps, joint in zip((student, teacher), self._joint, strict=True)
        )
        relations = [
            losses.attention_relations(
                ours[a],
                theirs[a],
                heads=self.spec.heads,
                student_keys=None if a == b else ours[b],
                teacher_keys=None if a == b else theirs[b],
                mask=seen,
                attend=self.spec.attend,
                distance=self.spec.distance,
            )
            for a, b in map(tuple, self.spec.relations)
        ]
        return torch.stack(relations).sum(0)


@dataclass(frozen=True, kw_only=True)
class AttentionRelations(LayerTerm):
    """`losses.attention_relations` of pairs of layers, summed over pairs and relations.

    The patterns are those of queries, keys and values; three equal ones are a layer that makes all of them.
    """

    module: ClassVar = _BoundRelations
    heads: Any
    relations: tuple[str, ...]  # two letters of `PARTS` each
    attend: str
    distance: str

    def _check(self) -> None:
        super()._check()
        for each in self.relations:
            checks.known(each, "relations", [a + b for a in PARTS for b in PARTS], example="[qk, vv]")
        how = {"heads": self.heads, "attend": self.attend, "distance": self.distance}
        checks.whole_number(self.heads, "heads", example=12)
        losses.attention_relations(*[torch.ones(1, 1, 1)] * 2, **how | {"heads": 1})


def _three(who: str, patterns: Names) -> tuple[str, ...]:
    """Return the patterns of queries, keys and values, given them or that of one layer that makes all three."""
    if len(patterns) not in (1, 3):
        expected = "one pattern, or three: those of queries, keys and values"
        raise InvalidValueError(who, expected, len(patterns), f"for example {who}=[*.q_proj, *.k_proj, *.v_proj]")
    return tuple(patterns) * 3 if len(patterns) == 1 else tuple(patterns)


@preset("Miles et al. 2024, arXiv:2403.06213")
def vkd(
    *,
    alpha: Weight = 1.0,
    normalise: str = "layer",
    student_tap: str = "card:stage.-1",
    teacher_tap: str = "card:stage.-1",
) -> Objective:
    """``alpha * mean(smooth_l1(W f_s, layer_norm(f_t)))``, W orthogonal, of features averaged over their positions.

    It includes no cross-entropy. Features are maps, tokens or embeddings, of any kind on either side. W is learned with
    the student as an orthogonal matrix.

    Args:
        alpha: weight of `losses.vkd`.
        normalise: ``layer``; or ``batch``, the variant for detection: each position is compared, and both sides are
            standardised over the batch, whose samples it couples.
        student_tap: tap of maps, tokens or embeddings.
        teacher_tap: tap of maps, tokens or embeddings.
    """
    coupled = normalise == "batch"
    how = functools.partial(Apply, coupled=coupled, min_batch=2 if coupled else 1, projection="orthogonal")
    match = how(losses.vkd, {"normalise": normalise}, student_tap=student_tap, teacher_tap=teacher_tap)
    return objective_of(WeightedTerm("vkd", alpha, match))


@preset("Shu et al. 2021, arXiv:2011.13256", task="pixels")
def cwd(
    *,
    weight: Weight = 5.0,
    temperature: float = 1.0,
    over: str = "positions",
    student_tap: str = LOGITS,
    teacher_tap: str = LOGITS,
    projection: str = "conv1x1",
) -> Objective:
    """``weight * T**2 * mean_c KL(softmax_x(t[c] / T) || softmax_x(s[c] / T))``, on logits of pixels or on maps.

    It includes no cross-entropy. Published settings: segmentation, logits, weight 5, T 1. Pixels that do not count take
    no part.

    Args:
        weight: weight of `losses.cwd`.
        temperature: T > 0, on both sides.
        over: axis of the distributions: ``positions``; or ``channels``, the spatial variant.
        student_tap: ``logits``, or a tap of maps.
        teacher_tap: likewise, ``logits`` where the student's is.
        projection: kind of map of the student's features where the shapes differ: ``conv1x1``, of whose maps or the
            teacher's the larger are averaged down, or ``regressor``.
    """
    if LOGITS in (student_tap, teacher_tap):
        return objective_of(WeightedTerm("cwd", weight, _of_logits(student_tap, teacher_tap, temperature, over)))
    of_maps = functools.partial(Apply, losses.cwd, projection=projection, project_always=False)
    match = of_maps({"temperature": temperature, "over": over}, student_tap=student_tap, teacher_tap=teacher_tap)
    return objective_of(WeightedTerm("cwd", weight, match))


def _of_logits(student_tap: str, teacher_tap: str, temperature: float, over: str) -> ChannelWise:
    if student_tap != teacher_tap:
        got, instead = f"{student_tap} and {teacher_tap}", "type logits for both, or a tap of maps for each"
        raise InvalidValueError("teacher_tap", "logits of both networks or of none", got, instead)
    return ChannelWise(temperature=temperature, over=over)


@preset("Lv et al. 2024, arXiv:2412.08139")
def wkd_f(
    *,
    weight: Weight = 0.08,
    mean_cov_ratio: float = 4.0,
    grid: float = 1,
    epsilon: float = 1e-5,
    projection: str = "regressor",
    student_tap: str = "card:stage.-1",
    teacher_tap: str = "card:stage.-1",
) -> Objective:
    """``weight / grid**2 * sum(mean_cov_ratio * (m_s - m_t)**2 + (d_s - d_t)**2)``, means and deviations of cells.

    It includes no cross-entropy. Published settings: CIFAR-100 weight 0.08, ratio 4, grid 1; ImageNet 0.02, 2, 4, with
    a deeper projector, which is not here. A learned convolution with a batch norm and a ReLU maps the student's
    channels.

    Args:
        weight: weight of `losses.wkd_f`, a sum over channels.
        mean_cov_ratio: weight of the means, > 0.
        grid: number of cells a side, a whole number >= 1; a cell has at least two pixels.
        epsilon: constant added to variances, > 0.
        projection: kind of map: ``regressor``, whose outputs are not below 0; or ``conv`` or ``connector``.
        student_tap: tap of a map.
        teacher_tap: tap of a map.
    """
    how = {"mean_cov_ratio": mean_cov_ratio, "grid": grid, "epsilon": epsilon}
    match = Apply(losses.wkd_f, how, student_tap=student_tap, teacher_tap=teacher_tap, projection=projection)
    return objective_of(WeightedTerm("wkd_f", weight, match))


@preset("Jiao et al. 2020, arXiv:1909.10351")
def hidden_states(
    *,
    weight: Weight = 1.0,
    layers: LayerPairs = "uniform",
    distance: str = "mean_square",
    tokens: str = "all",
    student: str = "*",
    teacher: str = "*",
    mask: str = "attention_mask",
) -> Objective:
    """``weight * sum_pairs mean_tokens(d(W s, t))``, of a transformer's layers, padding left out.

    It includes no cross-entropy. Published: TinyBERT, ``uniform``; DistilBERT, ``layers: last, distance: cosine``;
    Patient KD, ``skip`` or ``top`` with ``distance: cosine, tokens: first``, where its squared distance is twice that.
    A linear map W, one a pair, brings the student's width to the teacher's where they differ.

    Args:
        weight: weight of each pair.
        layers: pairs of the student's n layers and the teacher's N: ``uniform``, each with every N / n-th; ``last``
            with last; ``skip`` as ``uniform`` and ``top`` with the teacher's last ones, both but for the last layer; or
            numbers from 0, such as ``[[0, 1], [1, 3]]``, the student's first.
        distance: kind of distance, ``mean_square`` or ``cosine``.
        tokens: ``all``, or ``first``, the class token.
        student: pattern of the layers' paths or their ends, such as ``encoder.layer.*``; ``*`` for the only submodules
            with numbers.
        teacher: likewise.
        mask: key of inputs of one's own that holds 1 for tokens and 0 for padding; ``none`` where nothing is padded.

    Differs from: TinyBERT, whose layers share a map and whose embeddings are a further pair: add
    ``{hidden_states: {student: embeddings, teacher: embeddings, layers: last}}``.
    """
    how: dict[str, Any] = {"distance": distance, "tokens": tokens, "mask": mask}
    states = HiddenStates(student_taps=(student,), teacher_taps=(teacher,), layers=layers, **how)
    return objective_of(WeightedTerm("hidden_states", weight, states))


@preset("Wang et al. 2021, arXiv:2012.15828")
def attention_relations(
    *,
    weight: Weight = 1.0,
    layers: LayerPairs = "last",
    heads: float = 48,
    relations: Names = ("qq", "kk", "vv"),
    student: Names = ("*.attention.self.query", "*.attention.self.key", "*.attention.self.value"),
    teacher: Names = ("*.attention.self.query", "*.attention.self.key", "*.attention.self.value"),
    attend: str = "all",
    distance: str = "kl",
    mask: str = "attention_mask",
) -> Objective:
    """``weight * sum_relations mean_tokens KL(R_t || R_s)`` with ``R = softmax(a b / sqrt(width / heads))`` of tokens.

    It includes no cross-entropy. The vectors a and b are the outputs of the layers of queries, keys and values, so any
    implementation of attention will do: none need return its probabilities.

    Args:
        weight: weight of each relation of each pair of layers.
        layers: pairs of layers, as of `hidden_states`.
        heads: number of relation heads, which divides the widths; 48 as published for 768 wide teachers.
        relations: of MiniLMv2 ``[qq, kk, vv]``; ``[qk, vv]`` of MiniLM, ``qk`` being the attention itself if ``heads``
            is the attention's and positions are not rotary.
        student: patterns of the queries', keys' and values' layers, or of one layer that makes all three.
        teacher: likewise.
        attend: ``all``; or ``earlier``, for attention to earlier tokens.
        distance: ``kl``; or ``mean_square``, of scores, as TinyBERT has it.
        mask: as of `hidden_states`.
    """
    how: dict[str, Any] = {"heads": heads, "relations": tuple(relations), "attend": attend, "distance": distance}
    ours, theirs = _three("student", student), _three("teacher", teacher)
    term = AttentionRelations(student_taps=ours, teacher_taps=theirs, layers=layers, mask=mask, **how)
    return objective_of(WeightedTerm("attention_relations", weight, term))
