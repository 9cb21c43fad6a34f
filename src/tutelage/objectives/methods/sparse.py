"""Methods on the classes that the teacher finds likeliest."""

from __future__ import annotations

from tutelage import checks, losses
from tutelage.losses.sparse import RESTS
from tutelage.objectives.objective import Objective
from tutelage.objectives.registry import objective_of, preset, supervised_part
from tutelage.objectives.term import Apply, WeightedTerm
from tutelage.settings.weights import Weight


@preset("the bucket of trl and DistillKit; what is lost without: Anshumann et al. 2025, arXiv:2503.16870")
def top_k(
    *, top: int = 16, rest: str = "bucket", temperature: float = 1.0, weight: Weight = 1.0, supervised: Weight = 1.0
) -> Objective:
    """``supervised * CE(y, q) + weight * T**2 * KL(p || q)`` on the teacher's likeliest classes: `losses.top_k`.

    Published settings, of language models: trl's server distillation ``top=1`` with the bucket, T=1, no cross-entropy.
    The paper shows that keeping the top without the rest is biased, and draws classes instead, which is a form of
    recorded outputs. With a teacher that is there, or all of whose logits are recorded, this preset is of use to
    compare; one recorded with ``outputs_form: bucket`` is matched by ``kd`` at T=1.

    Args:
        top: number of classes, >= 1; all if there are fewer.
        rest: what becomes of the others: ``bucket``, one class more for both networks; ``dropped``, the teacher gives
            them nothing; ``renormalised``, neither network does.
        temperature: T > 0, on both sides.
        weight: weight of the divergence.
        supervised: weight of the cross-entropy.
    """
    checks.whole_number(top, "top", example=16)
    checks.known(rest, "rest", RESTS, example="bucket")
    match = Apply(losses.top_k, {"top": top, "rest": rest, "temperature": temperature})
    return objective_of(supervised_part(supervised), WeightedTerm("top_k", weight, match))
