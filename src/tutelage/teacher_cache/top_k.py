"""The top-k form of a teacher's logits: the largest, and the power sums of all others.

The ``k`` largest of a sample's probabilities ``p`` are kept with their classes, and for the ``m = K - k`` others
``log S(gamma) = log sum_{tail} p**gamma`` on a grid of exponents; at ``gamma = 1`` that is the left-over mass. They are
read for one exponent of the grid: all classes of the tail get the same probability ``t``, with
``m * t**gamma = S(gamma)``. So ``p_gamma = softmax(gamma * v)`` is exact on the top classes to float16; the spread of
the tail is lost. For ``gamma < 1`` the tail's mass ``m * t`` is at most the left-over mass (means of powers grow with
the power), so ``U_gamma`` is read too large, by the factor ``(top mass + m * t)**-gamma``. Both errors are measured per
sample during recording.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tutelage.errors import InvalidValueError
from tutelage.settings.outputs import BOUND
from tutelage.types import Sparse

GAMMAS = (0.1, 0.125, 0.2, 0.25, 1 / 3, 0.5, 1.0)
"""Exponents of the tail's power sums in every cache: temperatures of 10, 8, 5, 4, 3, 2 and 1."""
BLOCK = 1024  # rows packed at a time, to save memory
SHORT = torch.iinfo(torch.int16).max
MEASURES = ("mean_tv", "max_tv", "mean_power_sum", "max_power_sum")
"""Columns of a chunk's ``error``: mean and maximum of the total variation, and of the power sum's relative error."""


class TeacherCacheError(InvalidValueError):
    """Recorded outputs are of another teacher, other data or other views; or missing, damaged, or too inaccurate."""


@dataclass(frozen=True, kw_only=True)
class TopK:
    """The form in which logits are stored.

    Raises:
        TeacherCacheError: if a number is out of range.
    """

    kept: int  # number of classes kept per sample, k
    classes: int  # number of classes, K
    gammas: tuple[float, ...] = GAMMAS  # exponents of the tail's power sums, rising
    bound: float = BOUND  # bound on both mean errors of a chunk, at the needed exponents
    measures: ClassVar[tuple[str, ...]] = MEASURES

    def __post_init__(self) -> None:
        if not 1 <= self.kept < self.classes:
            instead = "type a larger outputs_limit_mb=... to keep them all"
            raise TeacherCacheError("top", f"at least 1 and fewer than the {self.classes} classes", self.kept, instead)
        if not (math.isfinite(self.bound) and self.bound > 0):
            raise TeacherCacheError(
                "outputs_max_error", "a number above 0", self.bound, f"type outputs_max_error={BOUND}"
            )
        if not self.gammas or not all(math.isfinite(gamma) and gamma > 0 for gamma in self.gammas):
            raise TeacherCacheError("gammas", "exponents above 0", self.gammas, "for example (0.25, 1.0)")

    @classmethod
    def of(cls, kept: int, classes: int, *, needed: Collection[float] = (), bound: float = BOUND) -> TopK:
        """Return the form whose grid has the needed exponents besides `GAMMAS`."""
        return cls(kept=kept, classes=classes, gammas=tuple(sorted({*GAMMAS, *needed})), bound=bound)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TopK:
        """Return the form that `to_json` described."""
        return cls(kept=value["top"], classes=value["classes"], gammas=tuple(value["gammas"]), bound=value["max_error"])

    def to_json(self) -> dict[str, Any]:
        """Describe the form."""
        return {"top": self.kept, "classes": self.classes, "gammas": list(self.gammas), "max_error": self.bound}

    @property
    def bytes(self) -> int:
        """Bytes per sample: 2 per logit, 2 or 4 per class, 4 per exponent, and 4."""
        return self.kept * (2 + (2 if self.classes <= SHORT + 1 else 4)) + 4 * len(self.gammas) + 4

    def pack(self, logits: Tensor) -> dict[str, Tensor]:
        """Keep the largest logits and the tail's power sums, and measure the errors.

        Args:
            logits: logits, ``(samples, classes)``, any floating dtype; a row of NaN stays NaN and is not measured.

        Returns:
            On the CPU: ``top`` float32 ``(samples, 1)``, the largest log-probability; ``values`` float16
            ``(samples, kept)``, the kept ones less it, descending; ``index`` their classes, int16 or int32; ``tail``
            float32 ``(samples, gammas)``, ``log S(gamma)``; and ``error`` float32 ``(gammas, 4)``, `MEASURES`.
        """
        packed, errors = [], []
        for rows in logits.float().split(BLOCK):
            kept = self._pack(rows)
            packed.append({name: tensor.cpu() for name, tensor in kept.items()})
            seen = ~rows.isnan().any(-1)
            errors.append(self._errors(rows[seen], {name: tensor[seen] for name, tensor in kept.items()}).cpu())
        whole = {name: torch.cat([part[name] for part in packed]).contiguous() for name in packed[0]}
        each = torch.cat(errors, 1)
        if not each.shape[1]:  # no samples, so no maximum
            each = each.new_zeros(len(self.gammas), 1, 2)
        whole["error"] = torch.stack([each.mean(1), each.amax(1)], -1).flatten(1).float()
        return whole

    def _pack(self, logits: Tensor) -> dict[str, Tensor]:
        log_probs = logits.log_softmax(-1)
        values, index = log_probs.topk(self.kept)
        tail = log_probs.scatter(-1, index, -torch.inf)
        return {
            "top": values[:, :1],
            "values": (values - values[:, :1]).half(),
            "index": index.to(torch.int16 if self.classes <= SHORT + 1 else torch.int32),
            "tail": torch.stack([(gamma * tail).logsumexp(-1) for gamma in self.gammas], 1),
        }

    def _errors(self, logits: Tensor, kept: Mapping[str, Tensor]) -> Tensor:
        """Return ``(gammas, samples, 2)`` float64: total variation of p_gamma, relative error of U_gamma."""
        errors = []
        log_p = logits.log_softmax(-1)
        for gamma in self.gammas:
            log_q = self.unpack(kept, gamma).log_softmax(-1)
            log_u, log_v = (gamma * log_p).logsumexp(-1), (gamma * log_q).logsumexp(-1)
            apart = (gamma * log_p - log_u[:, None]).exp_() - (gamma * log_q - log_v[:, None]).exp_()
            errors.append(torch.stack([apart.abs().sum(-1) / 2, (log_v - log_u).expm1().abs()], -1).double())
        return torch.stack(errors)

    def describe(self, error: Mapping[str, float]) -> str:
        """Say what was measured at an exponent."""
        return (
            f"p_gamma off by {error['mean_tv']:.2g} in total variation (at most {error['max_tv']:.2g}), U_gamma by "
            f"{error['mean_power_sum']:.2g} of it (at most {error['max_power_sum']:.2g})"
        )

    def as_sparse(self, kept: Mapping[str, Tensor], gamma: float) -> Sparse:
        """Return packed logits as they are read at an exponent: the largest, and the level of all others.

        Args:
            kept: ``top``, ``values``, ``index`` and ``tail`` of some samples, each ``(..., n)``.
            gamma: exponent from the grid.

        Returns:
            Float32 values ``(..., kept)``, their classes, and the level ``(...)``.

        Raises:
            TeacherCacheError: if the exponent is not in the grid.
        """
        at, others = self.at(gamma), self.classes - self.kept
        level = (kept["tail"][..., at] - math.log(others)) / self.gammas[at]
        return Sparse(kept["values"].float() + kept["top"], kept["index"].long(), level, self.classes)

    def unpack(self, kept: Mapping[str, Tensor], gamma: float) -> Tensor:
        """Return logits ``(..., classes)`` float32 that represent packed ones at an exponent: `as_sparse`, dense."""
        sparse = self.as_sparse(kept, gamma)
        logits = sparse.level[..., None].expand(*sparse.level.shape, self.classes).clone()
        return logits.scatter_(-1, sparse.index, sparse.values)

    def at(self, gamma: float) -> int:
        """Return an exponent's position in the grid.

        Raises:
            TeacherCacheError: if it is not in the grid.
        """
        for position, known in enumerate(self.gammas):
            if math.isclose(known, gamma, rel_tol=1e-9):
                return position
        raise TeacherCacheError(
            "outputs",
            (f"an exponent that the tail was summed at, among {', '.join(f'{known:.6g}' for known in self.gammas)}"),
            f"gamma {gamma:.6g}",
            "type outputs=... for another folder, where they are recorded again, and for a search over exponents "
            "outputs_limit_mb=... with the size of all classes, too",
        )

    def check(self, error: Tensor, needed: Collection[float]) -> None:
        """Refuse errors beyond the bound: ``error`` is ``(gammas, 4)``, `MEASURES`; the ``needed`` exponents count.

        Raises:
            TeacherCacheError: if so; it names the error, the exponent and the number of kept classes.
        """
        for gamma in needed:
            measured = error[self.at(gamma)].view(2, 2).tolist()
            names = ("total variation from p_gamma", "relative error of U_gamma")
            for what, (mean, largest) in zip(names, measured, strict=True):
                if not mean <= self.bound:
                    raise TeacherCacheError(
                        "outputs",
                        (
                            f"the top {self.kept} of {self.classes} classes to stand for all of them to within "
                            f"{self.bound:g}"
                        ),
                        f"a mean {what} of {mean:.2g} (at most {largest:.2g}) at gamma {gamma:.4g}",
                        (
                            "type a larger outputs_top=..., outputs_limit_mb=... with the size of all of them, or "
                            "outputs_max_error=..."
                        ),
                    )
