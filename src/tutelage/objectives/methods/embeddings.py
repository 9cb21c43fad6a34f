"""Methods on networks' embeddings, outputs of no classes. None reads a label."""

from __future__ import annotations

from tutelage import losses
from tutelage.objectives.objective import Objective
from tutelage.objectives.registry import objective_of, preset
from tutelage.objectives.term import Apply, WeightedTerm
from tutelage.settings.weights import Weight


@preset("common practice")
def cosine(*, weight: Weight = 1.0) -> Objective:
    """``weight * (1 - s t / (|s| |t|))`` on embeddings, of ``data.embedding``.

    Args:
        weight: weight of `losses.cosine_distance`.
    """
    return objective_of(WeightedTerm("cosine", weight, Apply(losses.cosine_distance)))


@preset("Reimers and Gurevych 2020, arXiv:2004.09813")
def embedding_mse(*, weight: Weight = 1.0) -> Objective:
    """``weight * (1 / width) * |s - t|**2`` on embeddings, of ``data.embedding``.

    Args:
        weight: weight of `losses.embedding_mse`.
    """
    return objective_of(WeightedTerm("embedding_mse", weight, Apply(losses.embedding_mse)))


@preset("Kim et al. 2023, arXiv:2301.12005")
def embedding_distance(*, weight: Weight = 1.0) -> Objective:
    """``weight * |s - t|`` on embeddings, of ``data.embedding``.

    Args:
        weight: weight of `losses.embedding_distance`.

    Differs from: the paper, which matches scores and queries' vectors beside the documents'.
    """
    return objective_of(WeightedTerm("embedding_distance", weight, Apply(losses.embedding_distance)))


@preset("Fang et al. 2021, arXiv:2101.04731")
def in_batch_similarity(
    *, temperature: float = 0.05, teacher_temperature: float = 0.05, weight: Weight = 1.0
) -> Objective:
    """``weight * (1 / batch) * sum_i KL(P_i || Q_i)``, of each sample's similarities to the batch's other samples.

    It couples the samples of a batch. Embeddings may have different widths.

    Args:
        temperature: of the student's similarities, > 0; published values are 0.2 (SEED) and 0.04 (CompRess).
        teacher_temperature: of the teacher's, > 0; published values are 0.01 and 0.04.
        weight: weight of `losses.in_batch_similarity`.

    Differs from: SEED and CompRess, whose anchors are a queue of earlier samples.
    """
    arguments = {"temperature": temperature, "teacher_temperature": teacher_temperature}
    match = Apply(losses.in_batch_similarity, arguments, coupled=True, min_batch=2)
    return objective_of(WeightedTerm("in_batch_similarity", weight, match))
