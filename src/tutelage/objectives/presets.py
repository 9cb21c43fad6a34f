"""The named methods: a preset is a few lines that compose terms; its signature is its schema in a recipe."""

from __future__ import annotations

import functools

from tutelage import losses
from tutelage.objectives.contrast import Contrast
from tutelage.objectives.matching import Matching
from tutelage.objectives.objective import Objective, WeightedTerm
from tutelage.objectives.registry import objective_of, preset, supervised_part
from tutelage.objectives.standardised import on_logits
from tutelage.objectives.term import Apply, TermSpec
from tutelage.objectives.tokens import Generate, Mimic
from tutelage.settings.weights import AUTO, AutomaticNumber, AutomaticWeight, SignedWeight, Weight


@preset("labels alone; label smoothing: Szegedy et al. 2016, arXiv:1512.00567")
def cross_entropy(*, label_smoothing: float = 0.0, weight: Weight = 1.0) -> Objective:
    """``weight * CE(y, q)``: learning from labels, with no teacher.

    Args:
        label_smoothing: in [0, 1): the share of each label that is spread evenly over all classes.
        weight: of the term.
    """
    return objective_of(supervised_part(weight, label_smoothing=label_smoothing))


@preset("Pereyra et al. 2017, arXiv:1701.06548")
def confidence_penalty(*, weight: Weight = 0.1) -> Objective:
    """``-weight * H(q)``: a penalty on low entropy, in nats. It carries no cross-entropy; add one.

    Args:
        weight: the paper's beta.
    """
    return objective_of(WeightedTerm("confidence_penalty", weight, Apply(losses.confidence_penalty)))


@preset("Zheng and Yang 2024, arXiv:2402.11148, section 3")
def renyi_penalty(*, weight: SignedWeight, order: float) -> Objective:
    """``-weight * H_order(q)``: the regulariser that TTM has and KD lacks, with its weight and order free.

    It carries no cross-entropy: ``kd(...) + renyi_penalty(...)``. With ``order = 1/T`` and ``weight = beta * (T - 1)``,
    ``kd(temperature=T, weight=lam, supervised=1 - lam) * (1 / (1 - lam))`` plus it is TTM up to a constant, where
    ``beta = lam / (1 - lam) * T``.

    Args:
        weight: of the penalty, in nats: any finite number. Below 0 the term rewards a low entropy, as TTM with T < 1
            does.
        order: of the Rényi entropy, > 0; at 1 it is the Shannon entropy.
    """
    return objective_of(WeightedTerm("renyi_penalty", weight, Apply(losses.renyi_penalty, {"order": order})))


@preset("Hinton et al. 2015, arXiv:1503.02531")
def kd(*, temperature: float = 4.0, weight: Weight = 0.9, supervised: Weight = 0.1, logits: str = "raw") -> Objective:
    """``supervised * CE(y, q) + weight * T**2 * KL(p_T || q_T)``.

    Published settings: CIFAR-100 T=4, 0.1 and 0.9; ImageNet T=1, 0.5 and 0.5.

    Args:
        temperature: T > 0, on both sides.
        weight: lambda in the paper of TTM; of the KL, whose ``T**2`` is unconditional.
        supervised: of the cross-entropy, always on raw logits.
        logits: ``raw``, or ``standardised`` over the classes (Sun et al. 2024, arXiv:2403.01427; theirs is T=2, a
            weight of 9 and 0.1 of the cross-entropy on CIFAR-100).

    Differs from: a public library that drops ``T**2`` where its alpha is 0, and codes that keep the cross-entropy at 1.
    """
    match = Apply(losses.kd, {"temperature": temperature}, target_gamma=1 / temperature if temperature else None)
    return objective_of(supervised_part(supervised), WeightedTerm("kd", weight, on_logits(logits, match, weight)))


@preset("Zheng and Yang 2024, arXiv:2402.11148, section 3")
def ttm(
    *, gamma: float = 0.25, beta: AutomaticWeight = AUTO, supervised: Weight = 1.0, logits: str = "raw"
) -> Objective:
    """``supervised * CE(y, q) + beta * KL(p_gamma || q)``: transformed teacher matching.

    Args:
        gamma: the exponent, > 0; 1/T of knowledge distillation.
        beta: of the matching term; ``auto`` balances its first gradient with cross-entropy's.
        supervised: of the cross-entropy, always on raw logits.
        logits: ``raw``, or ``standardised`` over the classes (Sun et al. 2024, arXiv:2403.01427), which no TTM is
            published with; ``beta`` is a number then.
    """
    match = Apply(losses.ttm, {"gamma": gamma}, target_gamma=gamma)
    return objective_of(supervised_part(supervised), WeightedTerm("ttm", beta, on_logits(logits, match, beta)))


@preset("Zheng and Yang 2024, arXiv:2402.11148, section 4")
def wttm(
    *,
    gamma: float = 0.25,
    beta: AutomaticWeight = AUTO,
    supervised: Weight = 1.0,
    normalise: str = "none",
    logits: str = "raw",
) -> Objective:
    """``supervised * CE(y, q) + beta * U_gamma(p) * KL(p_gamma || q)``: TTM with each sample weighted by its power sum.

    The paper's power sum is not normalised (it is between 1 and ``classes**(1 - gamma)``), so beta does not carry over
    between gammas.

    Args:
        gamma: the exponent, > 0.
        beta: of the matching term; ``auto`` balances its first gradient with cross-entropy's.
        supervised: of the cross-entropy.
        normalise: ``none``; or divide the power sum by its mean over the ``batch``, which couples a batch's samples, or
            over the ``training`` set, found once.
        logits: ``raw``, or ``standardised`` over the classes (Sun et al. 2024, arXiv:2403.01427), which no WTTM is
            published with; ``beta`` is a number then, and the power sum is of the standardised teacher.
    """
    match: TermSpec = Apply(losses.wttm, {"gamma": gamma}, target_gamma=gamma)
    if normalise != "none":
        match = Matching(gamma, weight_by="power_sum", normalise=normalise)
    return objective_of(supervised_part(supervised), WeightedTerm("wttm", beta, on_logits(logits, match, beta)))


@preset("what Zheng and Yang 2024, arXiv:2402.11148, leave open")
def transformed_matching(
    *,
    transform: str = "power",
    gamma: AutomaticNumber = AUTO,
    beta: AutomaticWeight = AUTO,
    supervised: Weight = 1.0,
    weight_by: str = "constant",
    weight_of: str = "teacher",
    order: float = 1.0,
    normalise: str = "none",
) -> Objective:
    """``supervised * CE(y, q) + beta * w(p) * KL(p_f || q)``: other transforms and weights in TTM's and WTTM's place.

    ``transformed_matching(gamma=g, beta=b)`` is ``ttm``, and with ``weight_by=power_sum`` it is ``wttm``.

    Args:
        transform: f: ``power``, ``rational``, ``logarithm`` or ``complement``.
        gamma: the transform's dial; at 1 it changes nothing, and the smaller the flatter. ``auto`` is as flat as the
            power at 0.25, which is a temperature of 4: the same mean entropy over the training set.
        beta: of the matching term; ``auto`` balances its first gradient with cross-entropy's.
        supervised: of the cross-entropy.
        weight_by: w: ``constant``, ``power_sum`` (of f), ``entropy`` or ``one_minus_top``.
        weight_of: what the last two are of: the ``teacher``'s p or the ``target`` p_f.
        order: of a Rényi entropy; 1 is Shannon's.
        normalise: ``none``; or divide w by its mean over the ``batch``, which couples a batch's samples, or over the
            ``training`` set, found once.
    """
    match = Matching(gamma, transform, weight_by, weight_of, order, normalise)
    return objective_of(supervised_part(supervised), WeightedTerm("transformed_matching", beta, match))


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

    Published settings: a weight of 0.8, beside cross-entropy, KD or WTTM: ``wttm(...) + 0.8 * crd()``. It carries no
    cross-entropy. Both banks are in memory and in checkpoints: ``8 * samples * dimension`` bytes.

    Args:
        weight: of the term.
        negatives: of each sample, drawn among the samples of other classes without replacement; with it for a sample
            that has fewer of them.
        temperature: of the scores, > 0.
        momentum: share of a bank's row that is kept when its sample comes by, in [0, 1).
        dimension: of the embeddings.

    Differs from: public code where labels are missing, which there cannot be: an unlabelled sample is here a class of
    its own; and with several processes, where banks are shared here.
    """
    contrast = Contrast(negatives=negatives, temperature=temperature, momentum=momentum, dimension=dimension)
    return objective_of(WeightedTerm("crd", weight, contrast))


@preset("Miles et al. 2022, arXiv:2112.00459")
def itrd(*, alpha: float = 1.01, correlation: Weight = 2.0, mutual: Weight = 1.0) -> Objective:
    """``correlation * log2(sum_d |c[d] - 1|**(2 * alpha)) + mutual * (||G_s||**2 - ||G_st||**2)``, on embeddings.

    One linear map takes the student's embeddings to the teacher's width: always for the correlation term, for the
    mutual term only where the widths differ. It carries no cross-entropy.

    Args:
        alpha: > 0; published are 1.01 for teachers and students of one family and 1.5 for others.
        correlation: of `losses.itrd_correlation`.
        mutual: of `losses.itrd_mutual`; published are 1 and 0, the authors' code defaults to 0.05.
    """
    linear = functools.partial(
        Apply, student_tap="card:embedding", teacher_tap="card:embedding", projection="linear", coupled=True
    )
    return objective_of(
        WeightedTerm("itrd_correlation", correlation, linear(losses.itrd_correlation, {"alpha": alpha}, least=2)),
        WeightedTerm("itrd_mutual", mutual, linear(losses.itrd_mutual, project_always=False)),
    )


@preset("Yang et al. 2022, arXiv:2209.02432")
def vitkd(*, alpha: Weight = 3e-5, beta: Weight = 3e-6, masked: float = 0.5, prefix: int = 1) -> Objective:
    """``alpha * sum((A(s) - t)**2) + beta / masked * sum_hidden((G(s) - t)**2)``, on tokens of vision transformers.

    The first two blocks are mimicked, the last is made again from the tokens that are not hidden. Blocks are the stages
    of the models' cards. It carries no cross-entropy.

    Args:
        alpha: of the mimicking term, a sum over tokens and width.
        beta: of the generation term, a sum over hidden tokens and width.
        masked: share of the tokens that is hidden, > 0 and < 1.
        prefix: tokens in front that are no place of the image: the class token.
    """
    mimic = Mimic(taps=("card:stage.0", "card:stage.1"), prefix=prefix)
    generate = Generate(tap="card:stage.-1", masked=masked, prefix=prefix)
    return objective_of(WeightedTerm("vitkd_mimic", alpha, mimic), WeightedTerm("vitkd_generation", beta, generate))
