"""A sample has positions: every objective of logits is that of the counted positions as samples."""

import pytest
import torch
from tests._helpers.refusals import refused
from torch.nn.functional import binary_cross_entropy_with_logits

from tutelage import objectives
from tutelage.errors import InvalidValueError
from tutelage.objectives import Apply, BindContext
from tutelage.objectives.methods.logits import PARAMETERS_OF
from tutelage.objectives.objective import Objective
from tutelage.objectives.registry import PRESETS, is_built_in
from tutelage.settings.objective import REQUIRED, SIGNATURES
from tutelage.settings.weights import AUTO
from tutelage.types import Batch, Outputs, Totals

SHAPE, CLASSES = (4, 5), 6
HEAD = torch.randn(CLASSES, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def draw(shape=SHAPE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z, v = (2 * torch.randn(*shape, CLASSES, generator=generator, dtype=torch.float64) for _ in range(2))
    counted = torch.rand(shape, generator=generator) < 0.6
    labels = torch.randint(CLASSES, shape, generator=generator).masked_fill(~counted, -100)
    labels[(0,) * len(shape)] = -100  # a position without a label that may count
    return z, v, Batch(torch.arange(shape[0]), torch.zeros(shape), labels, counted=counted)


def built(name):
    """The preset, with 1 for what has no default and 2 for a number that is found on training samples."""
    required = {key: 1.0 for key, each in SIGNATURES[name].items() if each.default is REQUIRED}
    found = {key for key, each in SIGNATURES[name].items() if each.default is AUTO} - {"share", *PARAMETERS_OF}
    # The numbers of sdd are those of one base or of another.
    balanced = {} if name == "sdd" else dict.fromkeys(found, 2.0)
    # Noise is drawn for each place, also where nothing counts, so that of the counted ones alone is another.
    still = {"share": 0.0} if name == "tekap" else {}
    return PRESETS[name].build(**required, **balanced, **still)


def reads_logits_alone(name):
    needs = built(name).needs
    if name in ("cwd", "uld", "gold"):  # They are of a sample's positions together; tests of their own try them.
        return False
    return not (
        needs.student_taps or needs.teacher_taps or needs.indices or needs.teacher_statistics or needs.views > 1
    )


OF_LOGITS = [name for name in filter(is_built_in, PRESETS) if reads_logits_alone(name)]


def values(objective, z, v, batch, totals=None):
    """The loss, its parts, and its gradient in the student's logits."""
    z = z.clone().requires_grad_()
    torch.manual_seed(0)
    loss = objective.bind(BindContext(teacher_head=(HEAD, None)))(Outputs(z), Outputs(v), batch, totals=totals)
    (gradient,) = torch.autograd.grad(loss.total, z)
    return loss, gradient


@pytest.mark.parametrize("shape", [SHAPE, (3, 2, 4), (9,)])
@pytest.mark.parametrize("name", OF_LOGITS)
def test_an_objective_is_that_of_the_counted_positions(name, shape):
    objective = built(name)
    z, v, batch = draw(shape)
    kept = batch.counted
    rows = Batch(torch.arange(int(kept.sum())), torch.zeros(int(kept.sum()), 1), batch.labels[kept])
    expected, by_row = values(objective, z[kept], v[kept], rows)
    loss, gradient = values(objective, z, v, batch)
    torch.testing.assert_close(loss.total, expected.total, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(loss.parts, expected.parts, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient[kept], by_row, rtol=1e-12, atol=1e-12)
    assert not gradient[~kept].any()


@pytest.mark.parametrize("name", ["ttm", "dist", "kd"])
def test_what_stands_in_padding_matters_to_nothing(name):
    objective, (z, v, batch) = built(name), draw()
    other_z, other_v = (torch.where(batch.counted[..., None], each, 7 * each + 1) for each in (z, v))
    labels = batch.labels.masked_fill(~batch.counted, 3)  # not even a label there
    ours, gradient = values(objective, z, v, batch)
    theirs, other = values(objective, other_z, other_v, batch._replace(labels=labels))
    assert torch.equal(ours.total, theirs.total)
    assert torch.equal(gradient, other)


def test_fused_losses_leave_out_what_is_not_counted():
    z, v, batch = draw()
    bound = objectives.wttm(gamma=0.5, beta=2.0).bind()
    plain = bound(Outputs(z), Outputs(v), batch)
    bound.fused = True
    torch.testing.assert_close(bound(Outputs(z), Outputs(v), batch).total, plain.total, rtol=1e-12, atol=0)


def test_pieces_add_up_by_positions_and_not_by_samples():
    """As micro-batches do: the whole step's totals divide each piece, whatever it has of them."""
    objective, (z, v, batch) = objectives.ttm(gamma=0.5, beta=2.0), draw((6, 5))
    whole, gradient = values(objective, z, v, batch)
    known = (batch.labels != -100) & batch.counted
    totals = Totals(*(torch.tensor(float(n)) for n in (6, known.sum(), batch.counted.sum())))
    pieces = [slice(0, 1), slice(1, 4), slice(4, 6)]
    parts = [
        values(objective, z[p], v[p], Batch(*(each[p] for each in batch[:3]), counted=batch.counted[p]), totals)
        for p in pieces
    ]
    torch.testing.assert_close(sum(loss.total for loss, _ in parts), whole.total, rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.cat([each for _, each in parts]), gradient, rtol=1e-12, atol=1e-15)


def test_soft_labels_are_distributions_where_they_count():
    z, v, batch = draw()
    soft = batch._replace(labels=torch.softmax(v.flip(-1), -1))
    expected, gradient = values(built("ttm"), z, v, soft)
    for padding in (0.0, 1.0, -100.0, torch.nan):
        other = soft._replace(labels=soft.labels.where(batch.counted[..., None], padding))
        loss, same = values(built("ttm"), z, v, other)
        assert torch.equal(loss.total, expected.total)
        assert torch.equal(same, gradient)
    for wrong in (0.0, 1.0):
        bad = soft._replace(labels=soft.labels.where(~batch.counted[..., None], wrong))
        with refused(InvalidValueError, "labels", suggests="give them as int64 1 and 0"):
            values(built("ttm"), z, v, bad)


def test_a_loss_of_ones_own_takes_multi_hot_labels():
    def bce(student_logits, labels):
        return binary_cross_entropy_with_logits(student_logits, labels, reduction="none").sum(-1)

    z, v, batch = draw((6,))
    hot = torch.rand(6, CLASSES, generator=torch.Generator().manual_seed(0), dtype=torch.float64).round()
    own = Objective.of(objectives.WeightedTerm("bce", 1.0, Apply(bce, soft_labels=True)))
    beside = own + objectives.ttm(gamma=0.5, beta=1.0, supervised=0)
    loss, _ = values(beside, z, v, Batch(batch.index, batch.inputs, hot))
    torch.testing.assert_close(loss.parts["bce"], bce(z, hot).mean())


def test_a_batch_without_a_counted_position_has_loss_zero():
    z, v, batch = draw()
    nothing = batch._replace(counted=torch.zeros_like(batch.counted))
    loss, gradient = values(objectives.ttm(gamma=0.5, beta=2.0), z, v, nothing)
    assert loss.total == 0
    assert not gradient.any()


def test_a_term_with_one_value_per_sample_is_a_mean_over_samples():
    class PerSample(torch.nn.Module):
        needs = objectives.dist().needs.__class__(teacher=False, labels="none")
        target_gamma = None

        def bind(self, context):
            return self

        def forward(self, student, teacher, batch, progress):
            return student.logits[:, 0, 0]

    z, v, batch = draw()
    objective = Objective.of(objectives.WeightedTerm("first", 1.0, PerSample()))
    loss = objective.bind()(Outputs(z), Outputs(v), batch)
    torch.testing.assert_close(loss.total, z[:, 0, 0].mean())


def test_a_loss_beside_a_coupled_one_is_computed_at_once_where_a_sample_has_one_position(monkeypatch):
    bound = (objectives.dist() + objectives.kd(supervised=0)).bind()
    bound.fused = True
    monkeypatch.setattr(bound.terms["ce"], "forward", None)  # its value is the fused one's
    z, v, batch = draw((6,))
    assert bound.pair == ("ce", "kd")
    bound(Outputs(z), Outputs(v), batch._replace(counted=None))
