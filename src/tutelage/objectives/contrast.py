"""Contrast between two networks' embeddings, with a bank of each network's embeddings of all training samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from tutelage import checks, losses
from tutelage.objectives import gathering
from tutelage.objectives.negatives import OtherClasses
from tutelage.objectives.term import BindContext, present, shape_of
from tutelage.types import Batch, Outputs, Progress, Requirements, Term


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Contrastive representation distillation (`losses.crd`): two learned embeddings, two banks.

    Attributes:
        negatives: of a sample, drawn among the samples of other classes (`OtherClasses`), at least 1.
        temperature: of the scores, above 0.
        momentum: share of a bank's row that is kept when its sample comes by, in [0, 1).
        dimension: of the embeddings, at least 1.
        student_tap: a feature ``(batch, width)``.
        teacher_tap: a feature ``(batch, width)``.
    """

    negatives: int
    temperature: float
    momentum: float
    dimension: int
    student_tap: str = "card:embedding"
    teacher_tap: str = "card:embedding"

    def __post_init__(self) -> None:
        for name, example in (("negatives", 16384), ("dimension", 128)):
            if isinstance(value := getattr(self, name), bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: expected a whole number >= 1, got {value!r}; for example {name}={example}")
        checks.positive(self.temperature, "temperature", example=0.07)
        checks.fraction(self.momentum, "momentum", example=0.5)

    @property
    def needs(self) -> Requirements:
        """What it reads. Labels are read when it is bound, from the context, and may be missing there."""
        return Requirements(True, "none", True, (self.student_tap,), (self.teacher_tap,), places=True)

    @property
    def target_gamma(self) -> None:
        """None: it matches no distribution."""
        return

    def bind(self, context: BindContext) -> Term:
        """Build the maps and the banks.

        Raises:
            ValueError: the context lacks labels or shapes, or a feature is not ``(batch, width)``.
        """
        return BoundContrast(self, context)


class BoundContrast(nn.Module):
    """A bound `Contrast`: what it learns of a step it takes over when the step is settled.

    Rows of the banks are replaced at the first of these: `settle`, the next call in training mode, the saving of its
    state. In a loop of one's own, a loss must have been through ``backward`` by then: its gradient needs the rows as
    they were. Rows that are not finite are left as they were.

    With several processes each has the whole of both banks, and all of them take over what each has seen: the banks
    stay equal without being sent.
    """

    def __init__(self, description: Contrast, context: BindContext) -> None:
        super().__init__()
        self.needs = description.needs
        self._description = description
        if context.labels is None:
            raise ValueError(
                "context: expected labels of the training samples, which negatives are drawn by, got none; "
                "type context=tutelage.network_context(objective, student, teacher, inputs, labels=labels)"
            )
        self.samples, dimension = len(context.labels), description.dimension
        self.embed_student = nn.Linear(embedding_width(context, "student", description.student_tap), dimension)
        self.embed_teacher = nn.Linear(embedding_width(context, "teacher", description.teacher_tap), dimension)
        self.draw: nn.Module = OtherClasses(context.labels, count=description.negatives)
        bound = 1 / math.sqrt(dimension / 3)
        for name in ("student_bank", "teacher_bank"):
            self.register_buffer(name, torch.empty(self.samples, dimension).uniform_(-bound, bound))
        # Not a number until the first batch has fixed them.
        self.register_buffer("log_normalisers", torch.full((2,), torch.nan))
        self.student_bank: Tensor
        self.teacher_bank: Tensor
        self.log_normalisers: Tensor
        self._seen: _Seen | None = None
        self._alike = False

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress) -> Tensor:
        """Return the loss of each sample, ``(batch,)``."""
        if self.training:
            self._settle_all()
        asked = self._description
        together = self.training and gathering.processes() > 1
        if together and not self._alike:
            for bank in (self.student_bank, self.teacher_bank):
                distributed.broadcast(bank, 0)
            self._alike = True
        _in_bank(batch.index, self.samples)
        of_student = F.normalize(self.embed_student(student.taps[asked.student_tap]), dim=1)
        of_teacher = F.normalize(self.embed_teacher(present(teacher).taps[asked.teacher_tap]), dim=1)
        columns = torch.cat([batch.index[:, None], self.draw(batch.index)], dim=1)
        student_scores = losses.bank_scores(of_student, self.teacher_bank, columns, temperature=asked.temperature)
        teacher_scores = losses.bank_scores(of_teacher, self.student_bank, columns, temperature=asked.temperature)
        own = [losses.log_normaliser(scores, samples=self.samples) for scores in (student_scores, teacher_scores)]
        fresh = _shared_mean(torch.stack(own), len(batch.index)) if together else torch.stack(own)
        known = torch.where(self.log_normalisers.isnan(), fresh, self.log_normalisers)
        if self.training:
            seen = _Seen(batch.index, of_student.detach(), of_teacher.detach(), known)
            self._seen = _of_everyone(seen) if together else seen
        return losses.crd(student_scores, teacher_scores, known, samples=self.samples)

    @torch.no_grad()
    def commit(self, applied: Tensor) -> None:
        """Take over what the last step has shown, where it was applied."""
        if (seen := self._seen) is None:
            return
        self._seen = None
        for bank, embeddings in ((self.student_bank, seen.student), (self.teacher_bank, seen.teacher)):
            old = bank[seen.index]
            new = losses.moved(old, embeddings, momentum=self._description.momentum)
            takes = applied & new.isfinite().all(dim=1, keepdim=True)
            bank.index_copy_(0, seen.index, torch.where(takes, new, old))
        takes = applied & seen.log_normalisers.isfinite()
        self.log_normalisers.copy_(torch.where(takes, seen.log_normalisers, self.log_normalisers))

    def _settle_all(self) -> None:
        """Settle what nobody has spoken of, as applied."""
        if self._seen is not None:
            self.commit(torch.ones((), dtype=torch.bool, device=self.student_bank.device))

    def _save_to_state_dict(self, *given: object) -> None:
        self._settle_all()
        super()._save_to_state_dict(*given)

    def _load_from_state_dict(self, *given: object) -> None:
        self._seen = None
        super()._load_from_state_dict(*given)


@dataclass(frozen=True)
class _Seen:
    """What a step has shown: embeddings of some samples, and the constants that it used."""

    index: Tensor
    student: Tensor
    teacher: Tensor
    log_normalisers: Tensor


def embedding_width(context: BindContext, who: str, tap: str) -> int:
    """Return the width of a feature ``(batch, width)``; refuse any other."""
    shape = shape_of(context, "student" if who == "student" else "teacher", tap)
    if len(shape) != 1:
        raise ValueError(
            f"tap {tap}: expected a feature (batch, width) of the {who}, got {shape} without the batch; "
            "name one after the pooling, such as card:embedding"
        )
    return shape[0]


def _in_bank(index: Tensor, samples: int) -> None:
    # On an accelerator the kernel that reads the bank asserts instead, so that the step never waits.
    if index.device.type == "cpu" and len(index) and not 0 <= int(index.min()) <= int(index.max()) < samples:
        raise ValueError(
            f"batch.index: expected places among the {samples} training samples of the context, got "
            f"{int(index.min())} to {int(index.max())}; bind the objective to the labels of these data"
        )


def _shared_mean(logarithms: Tensor, count: int) -> Tensor:
    """Return the logarithm of the mean over all processes' samples."""
    sums = torch.cat([logarithms.double().exp() * count, logarithms.new_full((1,), count, dtype=torch.float64)])
    distributed.all_reduce(sums)
    return (sums[:-1] / sums[-1]).log().to(logarithms.dtype)


def _of_everyone(seen: _Seen) -> _Seen:
    """Return what all processes have seen, in the order of their ranks. The host waits for their sizes."""
    lengths = gathering.shares(seen.index)
    return _Seen(
        gathering.constant(seen.index, lengths),
        gathering.constant(seen.student, lengths),
        gathering.constant(seen.teacher, lengths),
        seen.log_normalisers,
    )
