"""Contrast between two networks' embeddings, with a bank of each network's embeddings of all training samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from tutelage import checks, losses, rng
from tutelage.errors import InvalidValueError
from tutelage.objectives import gathering
from tutelage.objectives.objective import Objective
from tutelage.objectives.registry import objective_of, preset
from tutelage.objectives.term import EMBEDDING, BindContext, BoundFeatures, FeatureTerm, WeightedTerm, missing
from tutelage.settings.weights import Weight
from tutelage.types import UNLABELLED, Batch, Progress, Requirements


class OtherClasses(nn.Module):
    """Draws samples of other classes for each sample of a batch, by hashing (seed, epoch, sample).

    So a sample has the same negatives in an epoch whatever its batch, process or device. They are drawn without
    replacement, independently per sample; a sample with fewer than ``count`` others gets them with replacement. An
    unlabelled sample is its own class. The order of a sample's negatives has no meaning.

    Memory and time grow with ``count`` and the square root of the number of samples: a sample's others are permuted by
    a Feistel network, keyed by its hash, of which only the first places are computed.

    Args:
        labels: labels of all samples, ``(samples,)`` int64, -100 if unlabelled; or soft, ``(samples, classes)``, of
            which the largest counts.
        count: number of negatives per sample.
        seed: seed of the draws.

    Raises:
        ValueError: if all samples are of one class, or a soft label is no distribution.
    """

    def __init__(self, labels: Tensor, *, count: int, seed: int = 0) -> None:
        super().__init__()
        self.count, self.seed = count, seed
        classes = labels
        if labels.is_floating_point():
            checks.distributions(labels)
            classes = labels.argmax(-1)
        alone = classes.amax() + 1 + torch.arange(len(classes), device=classes.device)
        classes = torch.where(classes == UNLABELLED, alone, classes)
        _, class_index, sizes = classes.unique(return_inverse=True, return_counts=True)
        fewest = len(classes) - int(sizes.max())
        if not fewest:
            expected = (
                f"at least 2 classes among {len(classes)} training samples, whose samples are each other's negatives"
            )
            raise InvalidValueError("labels", expected, "1", "choose other data, or leave the contrast out")
        self._some_with_replacement = fewest < count
        self._most = len(classes) - int(sizes.min())
        # Sorted by class, a sample's negatives are at all positions except one range.
        self.register_buffer("sorted", classes.argsort(stable=True), persistent=False)
        self.register_buffer("start", (sizes.cumsum(0) - sizes)[class_index], persistent=False)
        self.register_buffer("size", sizes[class_index], persistent=False)
        self.sorted: Tensor
        self.start: Tensor
        self.size: Tensor

    def forward(self, index: Tensor, epoch: int | Tensor = 0) -> Tensor:
        """Return ``(batch, count)`` int64 indices for samples at ``index``, ``(batch,)``, in an epoch."""
        # Few samples at a time stay in a CPU's cache.
        pieces = index.split(_IN_CACHE) if index.device.type == "cpu" else (index,)
        return torch.cat([self._negatives(piece, epoch) for piece in pieces])

    def _negatives(self, index: Tensor, epoch: int | Tensor) -> Tensor:
        bits = rng.tensor_draw(self.seed, epoch, index, rng.NEGATIVES)
        start, size = self.start[index, None], self.size[index, None]
        others = len(self.sorted) - size
        if self._most < self.count:
            picks = self._with_replacement(bits, others)
        else:
            picks = _first_of_permutations(bits, others, most=self._most, count=self.count)
            if self._some_with_replacement:
                picks = torch.where(others < self.count, self._with_replacement(bits, others), picks)
        picks += (picks >= start) * size
        return self.sorted.index_select(0, picks.flatten()).view_as(picks)

    def _with_replacement(self, bits: Tensor, others: Tensor) -> Tensor:
        return rng.tensor_integers(rng.tensor_series(bits, self.count), others)


_IN_CACHE = 16
"""Number of samples whose negatives are drawn at once on a CPU."""


_ROUNDS = 3
"""Number of times that columns and rows are shifted: with two, pairs of places are not equally likely."""


def _first_of_permutations(bits: Tensor, sizes: Tensor, *, most: int, count: int) -> Tensor:
    """Return the first ``count`` places of a permutation of ``range(size)`` per row; the host waits for nothing.

    A place is a row and a column of a grid of which at most its last row is not full. In turn each column is shifted
    along its row and each row along its column, by random amounts of a table: a Feistel network (Black and Rogaway,
    "Ciphers with arbitrary finite domains", CT-RSA 2002). What falls behind the last place is skipped. Rows of fewer
    than ``count`` places are filled with anything.

    Args:
        bits: hash of each row, ``(batch,)`` int64.
        sizes: number of places, ``(batch, 1)`` int64.
        most: largest of them.
        count: number of places to return, at most ``most``.

    Returns:
        ``(batch, count)`` int64.
    """
    batch, device = len(bits), bits.device
    width = math.isqrt(most - 1) + 1
    most_rows = -(-most // width)
    rows = min(most_rows, -(-(count + width) // width))  # enough for ``count`` places besides the skipped ones
    heights = (sizes + width - 1) // width
    tables = rng.tensor_series(bits, _ROUNDS * (most_rows + width))
    by_row, by_column = tables.split([_ROUNDS * most_rows, _ROUNDS * width], dim=1)
    shifts = rng.tensor_integers(by_row, width).view(batch, _ROUNDS, most_rows)
    drops = rng.tensor_integers(by_column, heights).view(batch, _ROUNDS, width)
    # Rows and columns run past the grid, where the tables begin again, and are brought back at the end.
    wrapped = torch.arange((1 + _ROUNDS) * most_rows, device=device) % heights
    row, column = torch.arange(rows, device=device)[:, None], torch.arange(width, device=device)
    columns = (shifts[:, 0, :rows, None] + column).view(batch, -1)  # In the first round each row is still together.
    row_numbers = row.repeat(batch, 1, width).view(batch, -1)
    for k in range(_ROUNDS):
        if k:
            columns += shifts[:, k].gather(1, wrapped).gather(1, row_numbers)
        row_numbers += drops[:, k].repeat(1, 2 + k).gather(1, columns)
    places = (wrapped * width).gather(1, row_numbers)
    places += (torch.arange((1 + _ROUNDS) * width, device=device) % width).expand(batch, -1).gather(1, columns)
    legal = ((places < sizes).view(batch, rows, width) & (row < heights[:, :, None])).view(batch, -1)
    # One more at either end: for what is skipped, and for what is too many.
    order = (legal.cumsum(1) * legal).clamp_(max=count + 1)
    return places.new_zeros(batch, count + 2).scatter_(1, order, places)[:, 1:-1].contiguous()


class BoundCRD(BoundFeatures):
    """A bound `CRD`: a step's embeddings are written to the banks when the step is committed.

    Rows of the banks are replaced at the first of these: `commit`, the next call in training mode, saving its state. A
    custom training loop must have called ``backward`` on the loss by then, as its gradient needs the old rows. Rows
    that would not be finite stay unchanged.

    With several processes, each holds both banks in full and writes what all of them have seen, so the banks stay equal
    without being sent.
    """

    spec: CRD
    student_bank: Tensor
    teacher_bank: Tensor
    log_normalisers: Tensor

    def build(self, context: BindContext) -> None:
        """Build the maps and the banks."""
        if context.labels is None:
            raise missing("labels of the training samples, which negatives are drawn by", ", labels=labels")
        self.samples, dimension = len(context.labels), self.spec.dimension
        (((student,), (teacher,)),) = self.spec.shapes(context, "embedding")
        self.embed_student, self.embed_teacher = nn.Linear(student, dimension), nn.Linear(teacher, dimension)
        self.draw: nn.Module = OtherClasses(context.labels, count=self.spec.negatives, seed=context.seed)
        bound = 1 / math.sqrt(dimension / 3)
        for name in ("student_bank", "teacher_bank"):
            self.register_buffer(name, torch.empty(self.samples, dimension).uniform_(-bound, bound))
        # NaN until the first batch fixes them.
        self.register_buffer("log_normalisers", torch.full((2,), torch.nan))
        self._pending: _StepEmbeddings | None = None
        self._synchronised = False

    def values(self, student: Sequence[Tensor], teacher: Sequence[Tensor], batch: Batch, progress: Progress) -> Tensor:
        """Return the loss of each sample, ``(batch,)``."""
        if self.training:
            self._commit_pending()
        temperature = self.spec.temperature
        several = self.training and gathering.processes() > 1
        if several and not self._synchronised:
            for bank in (self.student_bank, self.teacher_bank):
                distributed.broadcast(bank, 0)
            self._synchronised = True
        _check_index(batch.index, self.samples)
        of_student = F.normalize(self.embed_student(student[0]), dim=1)
        of_teacher = F.normalize(self.embed_teacher(teacher[0]), dim=1)
        columns = torch.cat([batch.index[:, None], self.draw(batch.index, progress.epoch)], dim=1)
        scores = (
            losses.bank_scores(of_student, self.teacher_bank, columns, temperature=temperature),
            losses.bank_scores(of_teacher, self.student_bank, columns, temperature=temperature),
        )
        fresh = torch.stack([losses.log_normaliser(score, samples=self.samples) for score in scores])
        fresh = _shared_mean(fresh, len(batch.index)) if several else fresh
        known = torch.where(self.log_normalisers.isnan(), fresh, self.log_normalisers)
        if self.training:
            step = _StepEmbeddings(batch.index, of_student.detach(), of_teacher.detach(), known)
            self._pending = _of_all_processes(step) if several else step
        return losses.crd(*scores, known, samples=self.samples)

    @torch.no_grad()
    def commit(self, applied: Tensor) -> None:
        """Write the last step's embeddings to the banks if it was applied."""
        if (step := self._pending) is None:
            return
        self._pending = None
        # A sample may come twice: both have the last one's row, as else on CUDA either might be kept.
        last = len(step.index) - 1 - (step.index[:, None] == step.index.flip(0)).to(torch.uint8).argmax(1)
        for bank, embeddings in ((self.student_bank, step.student), (self.teacher_bank, step.teacher)):
            old = bank[step.index]
            new = losses.moved(old, embeddings[last], momentum=self.spec.momentum)
            takes = applied & new.isfinite().all(dim=1, keepdim=True)
            bank.index_copy_(0, step.index, torch.where(takes, new, old))
        takes = applied & step.log_normalisers.isfinite()
        self.log_normalisers.copy_(torch.where(takes, step.log_normalisers, self.log_normalisers))

    def _commit_pending(self) -> None:
        """Commit a pending step as applied."""
        if self._pending is not None:
            self.commit(torch.ones((), dtype=torch.bool, device=self.student_bank.device))

    def _save_to_state_dict(self, *arguments: object) -> None:
        self._commit_pending()
        super()._save_to_state_dict(*arguments)

    def _load_from_state_dict(self, *arguments: object) -> None:
        self._pending = None
        super()._load_from_state_dict(*arguments)


@dataclass(frozen=True)
class _StepEmbeddings:
    """A step's embeddings, not yet written to the banks, and the normalisers that it used."""

    index: Tensor
    student: Tensor
    teacher: Tensor
    log_normalisers: Tensor


def _check_index(index: Tensor, samples: int) -> None:
    # On an accelerator the kernel that reads the bank asserts instead, so that the step never waits.
    if index.device.type == "cpu" and len(index) and not 0 <= int(index.min()) <= int(index.max()) < samples:
        expected = f"indices among the {samples} training samples of the context"
        instead = "bind the objective to the labels of these data"
        raise InvalidValueError("batch.index", expected, f"{int(index.min())} to {int(index.max())}", instead)


def _shared_mean(logarithms: Tensor, count: int) -> Tensor:
    """Return the logarithm of the mean over all processes' samples."""
    sums = torch.cat([logarithms.double().exp() * count, logarithms.new_full((1,), count, dtype=torch.float64)])
    distributed.all_reduce(sums)
    return (sums[:-1] / sums[-1]).log().to(logarithms.dtype)


def _of_all_processes(step: _StepEmbeddings) -> _StepEmbeddings:
    """Return the embeddings of all processes' steps, in the order of their ranks. The host waits for their sizes."""
    lengths = gathering.shares(step.index)
    index, student, teacher = (gathering.constant(r, lengths) for r in (step.index, step.student, step.teacher))
    return _StepEmbeddings(index, student, teacher, step.log_normalisers)


@dataclass(frozen=True, kw_only=True)
class CRD(FeatureTerm):
    """Contrastive representation distillation (`losses.crd`): two learned embeddings, two banks."""

    module: ClassVar = BoundCRD
    one_pair: ClassVar = True
    # Labels are read from the context at binding, and may be missing in a batch.
    base_needs: ClassVar = Requirements(teacher=True, labels="none", coupled=True, indices=True)
    negatives: int  # number per sample, drawn from other classes (`OtherClasses`), at least 1
    temperature: float  # temperature of the scores, above 0
    momentum: float  # share of a bank's row that is kept when its sample is seen, in [0, 1)
    dimension: int  # dimension of the embeddings, at least 1
    student_taps: tuple[str, ...] = (EMBEDDING,)
    teacher_taps: tuple[str, ...] = (EMBEDDING,)

    def _check(self) -> None:
        checks.whole_number(self.negatives, "negatives", example=16384)
        checks.whole_number(self.dimension, "dimension", example=128)
        checks.positive(self.temperature, "temperature", example=0.07)
        checks.fraction(self.momentum, "momentum", example=0.5)


@preset("Tian et al. 2020, arXiv:1910.10699")
def crd(
    *,
    weight: Weight = 1.0,
    negatives: int = 16384,
    temperature: float = 0.07,
    momentum: float = 0.5,
    dimension: int = 128,
) -> Objective:
    """``weight * (contrast(e_s(f_s), bank_t) + contrast(e_t(f_t), bank_s))``, on the networks' pooled embeddings.

    It includes no cross-entropy. Published settings: a weight of 0.8, beside cross-entropy, KD or WTTM: ``wttm(...) +
    0.8 * crd()``. Memory and checkpoints hold both banks: ``8 * samples * dimension`` bytes.

    Args:
        weight: weight of the term.
        negatives: number of negatives per sample, drawn from other classes by seed, epoch and sample, without
            replacement; with it for a sample that has fewer of them.
        temperature: temperature of the scores, > 0.
        momentum: share of a bank's row that is kept when its sample is seen, in [0, 1).
        dimension: dimension of the embeddings.

    Differs from: public code in that labels may be missing, each unlabelled sample being its own class, and in that
    several processes share the banks.
    """
    contrast = CRD(negatives=negatives, temperature=temperature, momentum=momentum, dimension=dimension)
    return objective_of(WeightedTerm("crd", weight, contrast))
