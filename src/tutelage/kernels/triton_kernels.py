"""Cross-entropy and the divergences of `losses` in Triton: one or two sweeps over the logits forward and one backward.

A program handles one row and processes its classes in blocks. It reads logits in their dtype, computes in float32,
keeps eight numbers per row, and writes nothing as large as the logits except the gradient.

Logarithms and exponents are internally to base 2, for which devices have instructions: the kernels get the exponents
``a`` and ``g`` of student and teacher times ``log2 e``. With ``mz`` and ``mv`` for the rows' maxima so far:

* First sweep: ``S = sum exp(a (z - mz))``, ``W = sum exp(g (v - mv))``, if needed the same sums with exponent 1, and
  for `forward` ``M = sum exp(g (v - mv)) * (g (v - mv) - a (z - mz))``, for `reverse` its mirror image. A larger
  maximum rescales earlier sums. ``KL(p || q) = M / W + log S - log W``.
* Second sweep, for the kinds that mix ``p`` and ``q``: the sums of the kind's terms ``f(log p, log q)`` and of
  ``h = q df/dq``.
* Backward: ``dz = a w (h - q sum h)`` of the divergence, weighted, and ``q - onehot(y)`` of the cross-entropy.

If only a teacher's top classes are known, a sweep reads the level for every class, and the top classes are corrected
afterwards: the level's addends there are subtracted. Infinite addends are counted, as they cannot be subtracted from a
sum.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tutelage.kernels.divergence import KINDS as NAMES
from tutelage.types import UNLABELLED

KINDS = {name: place for place, name in enumerate(NAMES)}
"""Kinds of divergences, as constants for the kernels."""
FORWARD, REVERSE, JENSEN_SHANNON, SKEW, _ = (tl.constexpr(kind) for kind in KINDS.values())

COLUMNS = 8
"""Number of a row's statistics. Between first sweeps over parts of the classes they hold sums, afterwards what the
names after the comma say: logarithms to base 2, the divergence's weight, and the sum of ``h``."""
ROW = tl.constexpr(COLUMNS)
MAX_Z = tl.constexpr(0)
SUM_1, LOG_1 = tl.constexpr(1), tl.constexpr(1)
SUM_Z, LOG_Z = tl.constexpr(2), tl.constexpr(2)
MAX_V = tl.constexpr(3)
SUM_V, LOG_V = tl.constexpr(4), tl.constexpr(4)
POWER, WEIGHT = tl.constexpr(5), tl.constexpr(5)
MIXED, SUM_H = tl.constexpr(6), tl.constexpr(6)
LABEL = tl.constexpr(7)
LOG2_E, LN_2 = tl.constexpr(1.4426950408889634), tl.constexpr(0.6931471805599453)
NONE = tl.constexpr(UNLABELLED)
ABSENT = tl.constexpr(float("-inf"))


@triton.jit
def _product(weight, value):
    """Return 0 if the weight is 0, whatever the value; compared with 0, so that NaN stays NaN."""
    return tl.where(weight == 0.0, 0.0, weight * value)


@triton.jit
def _moments(b, c, a, g, KIND: tl.constexpr):
    """Return ``2**(a b)``, ``2**(g c)`` and the addend of M, at shifted logits ``b`` and ``c``."""
    s = tl.exp2(a * b)
    w = tl.exp2(g * c)
    if KIND == FORWARD:
        m = _product(w, g * c - a * b)
    elif KIND == REVERSE:
        m = _product(s, a * b - g * c)
    else:
        m = tl.zeros_like(s)
    return s, w, m


@triton.jit
def _over_mixture(log_p, log_q, mixture):
    """Return ``log p / m`` and ``log q / m`` for ``m = mixture p + (1 - mixture) q``: near 0 if the two are close."""
    p_leads = log_p >= log_q
    lead = tl.where(p_leads, log_p, log_q)
    share = tl.where(p_leads, mixture, 1.0 - mixture)
    log_m = tl.log2(share + (1.0 - share) * tl.exp2(-tl.abs(log_p - log_q)))
    return log_p - lead - log_m, log_q - lead - log_m


@triton.jit
def _terms(log_p, log_q, mixture, KIND: tl.constexpr):
    """Return a kind's ``f`` and ``h = q df/dq`` (`REVERSE` less ``q``, which cancels), at base-2 log-probabilities."""
    p = tl.exp2(log_p)
    q = tl.exp2(log_q)
    if KIND == FORWARD:
        f = _product(p, (log_p - log_q) * LN_2)
        h = -p
    elif KIND == REVERSE:
        f = _product(q, (log_q - log_p) * LN_2)
        h = f
    elif KIND == JENSEN_SHANNON:
        p_over_m, q_over_m = _over_mixture(log_p, log_q, mixture)
        h = (1.0 - mixture) * _product(q, q_over_m * LN_2)
        f = mixture * _product(p, p_over_m * LN_2) + h
    elif KIND == SKEW:
        p_over_m, _ = _over_mixture(log_p, log_q, mixture)
        f = _product(p, p_over_m * LN_2)
        h = -_product(q, (1.0 - mixture) * tl.exp2(p_over_m))
    else:
        f = 0.5 * tl.abs(p - q)
        h = tl.where(q > p, 0.5 * q, tl.where(q < p, -0.5 * q, 0.0 * (q - p)))  # NaN stays NaN.
    return f, h


@triton.jit
def _finite(old, new):
    """Return a maximum before and after a block, as shifts: 0 while only ``-inf`` was seen."""
    after = tl.where(new == ABSENT, 0.0, new)
    return tl.where(old == ABSENT, after, old), after


@triton.jit
def _corrected(top, level, here):
    """Return what a finite sum lacks because top classes were read as the level."""
    return tl.sum(tl.where(here, top - tl.where(level == float("inf"), 0.0, level), 0.0), 0)


@triton.jit
def forward(
    z,
    v,
    index,
    level,
    labels,
    statistics,
    ce,
    values,
    z_stride,
    v_stride,
    classes,
    first,
    all_classes,
    top,
    a,
    g,
    factor,
    mixture,
    KIND: tl.constexpr,
    SCALED: tl.constexpr,
    POWER_SUM: tl.constexpr,
    SPARSE: tl.constexpr,
    FIRST_SWEEP: tl.constexpr,
    SECOND_SWEEP: tl.constexpr,
    BEGINS: tl.constexpr,
    ENDS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    TOP: tl.constexpr,
):
    """Sweep over one row's classes, ``classes`` of ``all_classes`` from ``first`` on; see the module."""
    row = tl.program_id(0).to(tl.int64)
    z += row * z_stride
    v += row * v_stride
    statistics += row * ROW
    lanes = tl.arange(0, BLOCK)
    if SPARSE:
        # If all classes are known none has the level, which may be anything.
        level_v = tl.where(top < classes, tl.load(level + row).to(tl.float32), ABSENT)
        places = tl.arange(0, TOP)
        kept = places < top
        at = tl.load(index + row * top + places, mask=kept, other=0)
        legal_top = (at >= 0) & (at < classes)
        illegal_top = kept & ~legal_top
        kept = kept & legal_top
        top_z = tl.load(z + at, mask=kept, other=ABSENT).to(tl.float32)
        top_v = tl.load(v + places, mask=kept, other=ABSENT).to(tl.float32)
    if FIRST_SWEEP:
        max_z = ABSENT
        max_v = ABSENT
        sum_1 = tl.zeros([BLOCK], tl.float32)
        sum_z = tl.zeros([BLOCK], tl.float32)
        sum_v = tl.zeros([BLOCK], tl.float32)
        power = tl.zeros([BLOCK], tl.float32)
        mixed = tl.zeros([BLOCK], tl.float32)
        infinite = tl.zeros([BLOCK], tl.float32)
        if not BEGINS:
            alone = lanes == 0
            max_z = tl.load(statistics + MAX_Z)
            sum_1 = tl.where(alone, tl.load(statistics + SUM_1), 0.0)
            sum_z = tl.where(alone, tl.load(statistics + SUM_Z), 0.0)
            max_v = tl.load(statistics + MAX_V)
            sum_v = tl.where(alone, tl.load(statistics + SUM_V), 0.0)
            power = tl.where(alone, tl.load(statistics + POWER), 0.0)
            mixed = tl.where(alone, tl.load(statistics + MIXED), 0.0)
        if SPARSE:
            max_v = tl.maximum(level_v, tl.max(top_v, 0))
        for block in range(BLOCKS):
            i = block * BLOCK + lanes
            inside = i < classes
            x = tl.load(z + i, mask=inside, other=ABSENT).to(tl.float32)
            if SPARSE:
                y = tl.where(inside, level_v, ABSENT)
                new_v = max_v
            else:
                y = tl.load(v + i, mask=inside, other=ABSENT).to(tl.float32)
                new_v = tl.maximum(max_v, tl.max(y, 0))
            new_z = tl.maximum(max_z, tl.max(x, 0))
            from_z, to_z = _finite(max_z, new_z)
            from_v, to_v = _finite(max_v, new_v)
            max_z = new_z
            max_v = new_v
            less_z = from_z - to_z
            less_v = from_v - to_v
            b = x - to_z
            c = y - to_v
            s, w, m = _moments(b, c, a, g, KIND)
            if SPARSE:
                infinite += tl.where(m == float("inf"), 1.0, 0.0)
                m = tl.where(m == float("inf"), 0.0, m)
            if KIND == FORWARD:
                mixed = _product(tl.exp2(g * less_v), mixed + sum_v * (g * less_v - a * less_z)) + m
            elif KIND == REVERSE:
                mixed = _product(tl.exp2(a * less_z), mixed + sum_z * (a * less_z - g * less_v)) + m
            if SCALED:
                sum_1 = sum_1 * tl.exp2(less_z * LOG2_E) + tl.exp2(b * LOG2_E)
            if POWER_SUM:
                power = power * tl.exp2(less_v * LOG2_E) + tl.exp2(c * LOG2_E)
            sum_z = sum_z * tl.exp2(a * less_z) + s
            sum_v = sum_v * tl.exp2(g * less_v) + w
        total_1 = tl.sum(sum_1, 0)
        total_z = tl.sum(sum_z, 0)
        total_v = tl.sum(sum_v, 0)
        total_power = tl.sum(power, 0)
        total_mixed = tl.sum(mixed, 0)
        _, to_z = _finite(max_z, max_z)
        _, to_v = _finite(max_v, max_v)
        if SPARSE:
            _, w_top, m_top = _moments(top_z - to_z, top_v - to_v, a, g, KIND)
            _, w_level, m_level = _moments(top_z - to_z, level_v - to_v, a, g, KIND)
            total_v += _corrected(w_top, w_level, kept)
            total_mixed += _corrected(m_top, m_level, kept)
            left = tl.sum(infinite, 0) - tl.sum(tl.where(kept & (m_level == float("inf")), 1.0, 0.0), 0)
            total_mixed = tl.where(left > 0.5, float("inf"), total_mixed)
            if POWER_SUM:
                top_power, level_power = tl.exp2((top_v - to_v) * LOG2_E), tl.exp2((level_v - to_v) * LOG2_E)
                total_power += _corrected(top_power, level_power, kept)
            # An index that is not a class is not read, but noticed.
            total_v = tl.where(tl.max(illegal_top.to(tl.int32), 0) > 0, float("nan"), total_v)
        label = tl.load(labels + row)
        local = label - first
        labelled = label != NONE
        here = labelled & (local >= 0) & (local < classes)
        at_label = tl.load(z + tl.where(here, local, 0), mask=here, other=0.0).to(tl.float32)
        if not BEGINS:
            at_label += tl.load(statistics + LABEL)
        if ENDS:
            log_z = tl.log(total_z) * LOG2_E
            log_v = tl.log(total_v) * LOG2_E
            log_1 = log_z
            if SCALED:
                log_1 = tl.log(total_1) * LOG2_E
            legal = (label >= 0) & (label < all_classes)
            of_label = tl.where(legal, log_1 * LN_2 - (at_label - to_z), float("nan"))
            tl.store(ce + row, tl.where(labelled, of_label, 0.0))
            weight = factor
            if POWER_SUM:
                weight = factor * tl.exp2(log_v - g * tl.log(total_power))
            sum_h = -1.0
            if KIND == FORWARD:
                tl.store(values + row, weight * (total_mixed / total_v + (log_z - log_v)) * LN_2)
            elif KIND == REVERSE:
                sum_h = (total_mixed / total_z + (log_v - log_z)) * LN_2
                tl.store(values + row, weight * sum_h)
            tl.store(statistics + MAX_Z, to_z)
            tl.store(statistics + LOG_1, log_1)
            tl.store(statistics + LOG_Z, log_z)
            tl.store(statistics + MAX_V, to_v)
            tl.store(statistics + LOG_V, log_v)
            tl.store(statistics + WEIGHT, weight)
            tl.store(statistics + SUM_H, sum_h)
        else:
            tl.store(statistics + MAX_Z, max_z)
            tl.store(statistics + SUM_1, total_1)
            tl.store(statistics + SUM_Z, total_z)
            tl.store(statistics + MAX_V, max_v)
            tl.store(statistics + SUM_V, total_v)
            tl.store(statistics + POWER, total_power)
            tl.store(statistics + MIXED, total_mixed)
        tl.store(statistics + LABEL, at_label)
    if SECOND_SWEEP:
        if not FIRST_SWEEP:
            to_z = tl.load(statistics + MAX_Z)
            log_z = tl.load(statistics + LOG_Z)
            to_v = tl.load(statistics + MAX_V)
            log_v = tl.load(statistics + LOG_V)
            weight = tl.load(statistics + WEIGHT)
        sum_f = tl.zeros([BLOCK], tl.float32)
        sums_h = tl.zeros([BLOCK], tl.float32)
        if not BEGINS:
            sum_f = tl.where(lanes == 0, tl.load(values + row), 0.0)
            sums_h = tl.where(lanes == 0, tl.load(statistics + SUM_H), 0.0)
        for block in range(BLOCKS):
            i = block * BLOCK + lanes
            inside = i < classes
            x = tl.load(z + i, mask=inside, other=ABSENT).to(tl.float32)
            if SPARSE:
                y = tl.where(inside, level_v, ABSENT)
            else:
                y = tl.load(v + i, mask=inside, other=ABSENT).to(tl.float32)
            f, h = _terms(g * (y - to_v) - log_v, a * (x - to_z) - log_z, mixture, KIND)
            sum_f += tl.where(inside, f, 0.0)
            sums_h += tl.where(inside, h, 0.0)
        total_f = tl.sum(sum_f, 0)
        total_h = tl.sum(sums_h, 0)
        if SPARSE:
            log_q = a * (top_z - to_z) - log_z
            f_top, h_top = _terms(g * (top_v - to_v) - log_v, log_q, mixture, KIND)
            f_level, h_level = _terms(g * (level_v - to_v) - log_v, log_q, mixture, KIND)
            total_f += _corrected(f_top, f_level, kept)
            total_h += _corrected(h_top, h_level, kept)
        if ENDS:
            total_f = weight * total_f
        tl.store(values + row, total_f)
        tl.store(statistics + SUM_H, total_h)


@triton.jit
def _gradient(
    b, c, local, of_ce, of_values, log_1, log_z, log_v, sum_h, a, g, mixture, KIND, SCALED, HAS_CE, HAS_VALUES
):
    """Return the gradient at shifted logits ``b`` and ``c``; ``local`` says where the label is."""
    log_q = a * b - log_z
    q = tl.exp2(log_q)
    d = tl.zeros_like(b)
    if HAS_VALUES:
        _, h = _terms(g * c - log_v, log_q, mixture, KIND)
        d = _product(of_values, h - _product(q, sum_h))
    if HAS_CE:
        if SCALED:
            q = tl.exp2(b * LOG2_E - log_1)
        d += _product(of_ce, q - tl.where(local, 1.0, 0.0))
    return d


@triton.jit
def backward(
    z,
    v,
    index,
    level,
    labels,
    statistics,
    of_ce,
    of_values,
    dz,
    z_stride,
    v_stride,
    dz_stride,
    classes,
    first,
    all_classes,
    top,
    a,
    g,
    mixture,
    KIND: tl.constexpr,
    SCALED: tl.constexpr,
    SPARSE: tl.constexpr,
    HAS_CE: tl.constexpr,
    HAS_VALUES: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    TOP: tl.constexpr,
):
    """Write the gradient of one row's logits, ``classes`` of ``all_classes`` from ``first`` on."""
    row = tl.program_id(0).to(tl.int64)
    z += row * z_stride
    v += row * v_stride
    dz += row * dz_stride
    statistics += row * ROW
    label = tl.load(labels + row)
    by_ce = 0.0
    if HAS_CE:
        legal = (label >= 0) & (label < all_classes)
        by_ce = tl.where(label == NONE, 0.0, tl.where(legal, tl.load(of_ce + row).to(tl.float32), float("nan")))
    by_values = 0.0
    if HAS_VALUES:
        by_values = _product(tl.load(of_values + row).to(tl.float32), tl.load(statistics + WEIGHT) * a * LN_2)
    to_z = tl.load(statistics + MAX_Z)
    log_1 = tl.load(statistics + LOG_1)
    log_z = tl.load(statistics + LOG_Z)
    to_v = tl.load(statistics + MAX_V)
    log_v = tl.load(statistics + LOG_V)
    sum_h = tl.load(statistics + SUM_H)
    if SPARSE:
        level_v = tl.load(level + row).to(tl.float32)
    for block in range(BLOCKS):
        i = block * BLOCK + tl.arange(0, BLOCK)
        inside = i < classes
        x = tl.load(z + i, mask=inside, other=ABSENT).to(tl.float32)
        if SPARSE:
            y = tl.where(inside, level_v, ABSENT)
        else:
            y = tl.load(v + i, mask=inside, other=ABSENT).to(tl.float32)
        d = _gradient(
            x - to_z,
            y - to_v,
            i == label - first,
            by_ce,
            by_values,
            log_1,
            log_z,
            log_v,
            sum_h,
            a,
            g,
            mixture,
            KIND,
            SCALED,
            HAS_CE,
            HAS_VALUES,
        )
        tl.store(dz + i, d.to(dz.dtype.element_ty), mask=inside)
    if SPARSE:
        # Other threads wrote the values for the level there.
        tl.debug_barrier()
        places = tl.arange(0, TOP)
        kept = places < top
        at = tl.load(index + row * top + places, mask=kept, other=0)
        kept = kept & (at >= 0) & (at < classes)
        x = tl.load(z + at, mask=kept, other=ABSENT).to(tl.float32)
        y = tl.load(v + places, mask=kept, other=ABSENT).to(tl.float32)
        d = _gradient(
            x - to_z,
            y - to_v,
            at == label,
            by_ce,
            by_values,
            log_1,
            log_z,
            log_v,
            sum_h,
            a,
            g,
            mixture,
            KIND,
            SCALED,
            HAS_CE,
            HAS_VALUES,
        )
        tl.store(dz + at, d.to(dz.dtype.element_ty), mask=kept)
