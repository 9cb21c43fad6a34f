"""Forms of recorded logits that are of the teacher at temperature 1: a bucket, and sampled classes.

Neither says anything of the classes that it does not name. With a **bucket** a loss is on the ``k`` largest and the sum
of all others, so it is exact of what it compares and compares nothing inside the rest; the rest's probability bounds
the total variation between the teacher and any distribution that agrees with the bucket. **Sampled** classes are an
unbiased estimate of the whole row; the recording measures its spread, and that the bias is within its error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage import rng
from tutelage.settings.outputs import Bucket, OutputsForm, Sampled
from tutelage.teacher_cache.top_k import BLOCK, SHORT, TeacherCacheError, TopK
from tutelage.types import Sparse


@dataclass(frozen=True, kw_only=True)
class _AtOne:
    """What the forms share that are read at exponent 1 alone, as `types.Sparse`.

    Attributes:
        settings: the form as a recipe types it.
        classes: number of classes.
    """

    settings: Any
    classes: int
    gammas: ClassVar[tuple[float, ...]] = (1.0,)
    measures: ClassVar[tuple[str, ...]]

    def to_json(self) -> dict[str, Any]:
        """Describe the form."""
        return {**vars(self.settings), "classes": self.classes}

    def at(self, gamma: float) -> int:
        """Return 0, the place of the only exponent.

        Raises:
            TeacherCacheError: if it is not 1.
        """
        if not math.isclose(gamma, 1, rel_tol=1e-9):
            expected = f"gamma 1, which outputs of the form {self.settings.name} are recorded for"
            raise TeacherCacheError("outputs", expected, f"gamma {gamma:.6g}", _AT_ONE)
        return 0

    def check(self, error: Tensor, needed: Any) -> None:
        """Refuse exponents other than 1; no error is bounded, as none comes of an assumption."""
        for gamma in needed:
            self.at(gamma)

    def unpack(self, kept: Mapping[str, Tensor], gamma: float) -> Tensor:
        """Refuse: there are no whole rows."""
        expected = f"one that reads what outputs of the form {self.settings.name} hold, as `as_sparse` does"
        raise TeacherCacheError("outputs", expected, "whole rows", _AT_ONE)

    @property
    def _id_bytes(self) -> int:
        return 2 if self.classes <= SHORT + 1 else 4

    @property
    def _id_type(self) -> torch.dtype:
        return torch.int16 if self._id_bytes == 2 else torch.int32


_AT_ONE = "type gamma=1, or temperature=1 of kd, or record all classes in another folder with outputs_form=null"


@dataclass(frozen=True, kw_only=True)
class BucketForm(_AtOne):
    """The largest classes and the rest as one.

    Raises:
        TeacherCacheError: if as many classes are kept as there are.
    """

    settings: Bucket
    measures: ClassVar[tuple[str, ...]] = ("mean_left_over", "max_left_over")
    """Columns of a chunk's ``error``: mean and maximum of the rest's probability."""

    def __post_init__(self) -> None:
        if self.settings.top >= self.classes:
            instead = "type a smaller one, or outputs_form=null to keep them all"
            raise TeacherCacheError(
                "outputs_form.top", f"fewer than the {self.classes} classes", self.settings.top, instead
            )

    @property
    def bytes(self) -> int:
        """Bytes per row: 2 per log-probability, 2 or 4 per class, 4 for the largest, and 4 for the rest."""
        return self.settings.top * (2 + self._id_bytes) + 8

    def pack(self, logits: Tensor) -> dict[str, Tensor]:
        """Keep the largest log-probabilities of ``(rows, classes)`` and that of the rest.

        Returns:
            On the CPU: ``top`` float32 ``(rows, 1)``, ``values`` float16 ``(rows, top)`` less it, descending, ``index``
            their classes, ``rest`` float32 ``(rows,)``, and ``error``, `measures`.
        """
        parts = []
        for rows in logits.float().split(BLOCK):
            log_probs = rows.log_softmax(-1)
            values, index = log_probs.topk(self.settings.top)
            rest = log_probs.scatter(-1, index, -torch.inf).logsumexp(-1)
            parts.append((values[:, :1], (values - values[:, :1]).half(), index.to(self._id_type), rest))
        top, values, index, rest = (torch.cat(each).cpu().contiguous() for each in zip(*parts, strict=True))
        left = rest[~rest.isnan()].double().exp() if len(rest) else rest.double()
        left = left if len(left) else left.new_zeros(1)
        error = torch.stack([left.mean(), left.amax()])[None].float()
        return {"top": top, "values": values, "index": index, "rest": rest, "error": error}

    def as_sparse(self, kept: Mapping[str, Tensor], gamma: float) -> Sparse:
        """Return packed logits as a loss reads them: log-probabilities, and that of the rest.

        Raises:
            TeacherCacheError: if the exponent is not 1.
        """
        self.at(gamma)
        values = kept["values"].float() + kept["top"]
        return Sparse(values, kept["index"].long(), kept["rest"], self.classes, "bucket")

    def describe(self, error: Mapping[str, float]) -> str:
        """Say what was measured."""
        return f"the rest has a probability of {error['mean_left_over']:.2g} (at most {error['max_left_over']:.2g})"


@dataclass(frozen=True, kw_only=True)
class SampledForm(_AtOne):
    """Classes drawn from the teacher.

    Attributes:
        seed: data seed that they are drawn with, whichever reads them.
    """

    settings: Sampled
    seed: int
    measures: ClassVar[tuple[str, ...]] = ("mean_tv", "max_tv", "mean_bias", "mean_square")
    """Columns of a chunk's ``error``: total variation of a row's histogram from the teacher, and mean and mean square
    of how much its cross-entropy with the teacher exceeds the teacher's entropy, whose mean over all draws is 0."""

    @property
    def bytes(self) -> int:
        """Bytes per row: 2 or 4 per draw, 4 more for its weight unless the proposal is 1, and 4 for the entropy."""
        return self.settings.draws * (self._id_bytes + (0 if self.settings.proposal == 1 else 4)) + 4

    def to_json(self) -> dict[str, Any]:
        """Describe the form."""
        return {**super().to_json(), "seed": self.seed}

    def bits(self, epoch: int, samples: range, counts: Tensor | None = None) -> NDArray[np.uint64]:
        """Return a hash for each row of some samples, of (seed, epoch, sample, position): the same on every machine.

        Args:
            epoch: epoch of the views.
            samples: the samples.
            counts: number of rows of each, ``(samples,)``; ``None`` for one.
        """
        of_sample = rng.draw(self.seed, epoch, np.arange(samples.start, samples.stop), rng.TEACHER_DRAW)
        if counts is None:
            return of_sample
        return rng.draw_series(of_sample, counts.cpu().numpy().astype(np.int64), rng.TEACHER_DRAW)

    def pack(self, logits: Tensor, bits: NDArray[np.uint64]) -> dict[str, Tensor]:
        """Draw classes of ``(rows, classes)``, by a hash for each row.

        Returns:
            On the CPU: ``index`` the classes drawn ``(rows, draws)``, the likeliest first, ``entropy`` float32
            ``(rows,)``, minus the teacher's entropy, ``error``, `measures`, and unless the proposal is 1 ``weights``
            float32 ``(rows, draws)``, logarithms.
        """
        draws = self.settings.draws
        hashes = rng.draw_series(bits, np.full(len(bits), draws), rng.TEACHER_DRAW).reshape(-1, draws)
        uniform = torch.from_numpy(rng.uniform(hashes)).to(logits.device)
        kept, errors = [], []
        for rows, numbers in zip(logits.split(BLOCK), uniform.split(BLOCK), strict=True):
            log_p = rows.double().log_softmax(-1)
            index, log_weights = rng.drawn_classes(log_p, numbers, proposal=self.settings.proposal)
            p = log_p.exp()
            entropy = -(p * log_p.masked_fill(p == 0, 0.0)).sum(-1)
            packed = {"index": index.to(self._id_type), "entropy": -entropy.float(), "weights": log_weights.float()}
            kept.append({name: each.cpu() for name, each in packed.items()})
            histogram = torch.zeros_like(log_p).scatter_add_(-1, index, log_weights.exp())
            apart = (histogram - p).abs().sum(-1) / 2
            excess = -(log_weights.exp() * log_p.gather(-1, index)).sum(-1) - entropy
            errors.append(torch.stack([apart, apart, excess, excess.square()], -1).cpu())
        whole = {name: torch.cat([part[name] for part in kept]).contiguous() for name in kept[0]}
        if self.settings.proposal == 1:
            del whole["weights"]  # each is 1 / n
        each = torch.cat(errors)
        each = each[~each.isnan().any(-1)]
        each = each if len(each) else each.new_zeros(1, 4)
        mean = each.mean(0)
        mean[1] = each[:, 1].amax()
        return {**whole, "error": mean[None].float()}

    def as_sparse(self, kept: Mapping[str, Tensor], gamma: float) -> Sparse:
        """Return the draws as a loss reads them.

        Raises:
            TeacherCacheError: if the exponent is not 1.
        """
        self.at(gamma)
        index = kept["index"].long()
        weights = kept.get("weights")
        if weights is None:
            weights = kept["entropy"].new_full(index.shape, -math.log(self.settings.draws))
        return Sparse(weights, index, kept["entropy"], self.classes, "sampled")

    def describe(self, error: Mapping[str, float]) -> str:
        """Say what was measured."""
        return (
            f"a row's draws off by {error['mean_tv']:.2g} in total variation (at most {error['max_tv']:.2g}), their "
            f"cross-entropy by {error['mean_bias']:.2g} ± {error['standard_error']:.2g} nats in the mean"
        )


Form: TypeAlias = TopK | BucketForm | SampledForm


def form_of(settings: OutputsForm, *, classes: int, seed: int) -> BucketForm | SampledForm:
    """Return the form that a recipe types.

    Raises:
        TeacherCacheError: if it keeps as many classes as there are.
    """
    if isinstance(settings, Bucket):
        return BucketForm(settings=settings, classes=classes)
    return SampledForm(settings=settings, classes=classes, seed=seed)


def from_json(value: Mapping[str, Any]) -> Form:
    """Return the form that `to_json` described; the top classes with power sums have no name.

    Raises:
        KeyError, TypeError, ValueError: if the description is none.
    """
    if "name" not in value:
        return TopK.from_json(value)
    numbers = {name: each for name, each in value.items() if name not in ("classes", "seed")}
    settings: OutputsForm = {"bucket": Bucket, "sampled": Sampled}[value["name"]](**numbers)
    return form_of(settings, classes=value["classes"], seed=value.get("seed", 0))
