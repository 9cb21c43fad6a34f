"""Methods that match statistics of a batch's embeddings after a learned linear map. None includes a cross-entropy."""

from __future__ import annotations

import functools

from tutelage import losses
from tutelage.objectives.objective import Objective
from tutelage.objectives.registry import objective_of, preset
from tutelage.objectives.term import EMBEDDING, Apply, WeightedTerm
from tutelage.settings.weights import Weight


@preset("Miles et al. 2022, arXiv:2112.00459")
def itrd(*, alpha: float = 1.01, correlation: Weight = 2.0, mutual: Weight = 1.0) -> Objective:
    """``correlation * log2(sum_d |c[d] - 1|**(2 * alpha)) + mutual * (||G_s||**2 - ||G_st||**2)``, on embeddings.

    One linear map takes the student's embeddings to the teacher's width: always for the correlation term, for the
    mutual term only if the widths differ. It includes no cross-entropy.

    Args:
        alpha: half the exponent, > 0; published values are 1.01 within a family of networks and 1.5 across families.
        correlation: weight of `losses.itrd_correlation`.
        mutual: weight of `losses.itrd_mutual`; published values are 1 and 0; the authors' code defaults to 0.05.
    """
    linear = functools.partial(Apply, student_tap=EMBEDDING, teacher_tap=EMBEDDING, projection="linear", coupled=True)
    return objective_of(
        WeightedTerm("itrd_correlation", correlation, linear(losses.itrd_correlation, {"alpha": alpha}, min_batch=2)),
        WeightedTerm("itrd_mutual", mutual, linear(losses.itrd_mutual, project_always=False)),
    )


@preset("Miles and Mikolajczyk 2024, arXiv:2303.11098")
def srd(
    *, weight: Weight = 2.0, exponent: float = 4.0, student_tap: str = EMBEDDING, teacher_tap: str = EMBEDDING
) -> Objective:
    """``weight * log(sum_{n,d} |s[n,d] - t[n,d]|**exponent)``: batch-normalised embeddings after a learned linear map.

    It includes no cross-entropy. It is `losses.log_sum` on features ``(batch, width)``, and couples the samples of a
    batch; the map is always there, even if widths agree. The exponent is > 0, 4 as published. A weight of 2 is that of
    a public code, with cross-entropy and a KL divergence.
    """
    linear = functools.partial(Apply, student_tap=student_tap, teacher_tap=teacher_tap, projection="linear")
    term = linear(losses.log_sum, {"exponent": exponent}, coupled=True, min_batch=2)
    return objective_of(WeightedTerm("srd", weight, term))
