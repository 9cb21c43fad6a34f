"""Logit standardisation: any term of logits, on both networks' logits standardised over the classes."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

from torch import Tensor, nn

from tutelage import losses
from tutelage.objectives.term import BindContext, TermSpec, present
from tutelage.settings.weights import Automatic, Weight
from tutelage.types import Batch, Outputs, Progress, Requirements, Term

LOGITS = ("raw", "standardised")
"""What a term of logits may be given: the networks' logits as they are, or standardised."""


@dataclass(frozen=True)
class Standardised:
    """A term that is given `losses.standardise` of both networks' logits; the rest of the objective sees them raw.

    Attributes:
        inner: the term.
    """

    inner: TermSpec

    @property
    def needs(self) -> Requirements:
        """What the inner term reads."""
        return self.inner.needs

    @property
    def target_gamma(self) -> None:
        """None: the teacher's exponent differs from sample to sample."""
        return

    def bind(self, context: BindContext) -> Term:
        """Build the inner term for one run, from a context in which the teacher's logits are standardised too."""
        if context.teacher_logits is not None:
            context = context._replace(teacher_logits=losses.standardise(context.teacher_logits))
        return _Bound(self.inner.bind(context))


class _Bound(nn.Module):
    """A bound `Standardised`: no parameters or state but the inner term's."""

    def __init__(self, inner: Term) -> None:
        super().__init__()
        self.inner, self.needs = inner, inner.needs
        self.resolved = getattr(inner, "resolved", {})

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress) -> Tensor:
        return self.inner(_standardised(student), _standardised(present(teacher)), batch, progress)


def _standardised(network: Outputs) -> Outputs:
    return network._replace(logits=losses.standardise(network.logits))


def on_logits(logits: str, term: TermSpec, weight: Weight | Automatic) -> TermSpec:
    """Return a term on the logits that are named.

    Args:
        logits: ``raw`` or ``standardised``.
        term: reads logits.
        weight: of the term.

    Raises:
        ValueError: an unknown name, or a weight that is to be found where logits are standardised: it is found from the
            gradient of a student that knows nothing, which standardisation makes arbitrarily large.
    """
    if logits not in LOGITS:
        near = get_close_matches(logits, LOGITS, n=1, cutoff=0.5)
        raise ValueError(
            f"logits: expected one of {', '.join(LOGITS)}, got {logits!r}; "
            f"{f'did you mean {near[0]}?' if near else 'type for example logits=standardised'}"
        )
    if logits == "raw":
        return term
    if isinstance(weight, Automatic):
        raise ValueError(
            f"beta: expected a number where logits are standardised, got {weight}, which is found from raw logits; "
            "type for example beta=9.0"
        )
    return Standardised(term)
