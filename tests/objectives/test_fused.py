"""Cross-entropy and a loss of logits computed at once: the objective's values, parts and gradients as one by one."""

import pytest
import torch

from tutelage import kernels, objectives
from tutelage.objectives import BindContext, bound
from tutelage.settings.weights import Linear
from tutelage.types import UNLABELLED, Batch, Outputs, Progress

CLASSES, BATCH = 7, 6


@pytest.fixture(autouse=True)
def _however_few(monkeypatch):
    for name in ("BLOCKS_FROM", "BLOCKS_FROM_SCALED"):
        monkeypatch.setattr(f"tutelage.kernels.logits.{name}", 0)


def drawn(dtype=torch.float64, labels=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z, v = (3 * torch.randn(BATCH, CLASSES, generator=generator, dtype=torch.float64) for _ in range(2))
    if labels is None:
        labels = torch.randint(CLASSES, (BATCH,), generator=generator)
        labels[2] = UNLABELLED
    return z.to(dtype), v.to(dtype), Batch(torch.arange(BATCH), torch.zeros(BATCH, 1), labels)


def outcome(objective, fused, z, v, batch, progress=Progress()):  # noqa: B008
    module = objective.bind(BindContext(classes=CLASSES))
    module.fused = fused
    z = z.detach().requires_grad_()
    loss = module(Outputs(z), Outputs(v), batch, progress)
    return loss.total.detach(), loss.parts, torch.autograd.grad(loss.total, z)[0]


OBJECTIVES = {
    "kd": objectives.kd(),
    "ttm": objectives.ttm(gamma=0.3, beta=2.0),
    "wttm": objectives.wttm(gamma=0.3, beta=2.0),
    "beside a coupled term": objectives.dist() + objectives.kd(supervised=0),
    "a sum": objectives.wttm(gamma=0.3, beta=2.0) + 0.5 * objectives.confidence_penalty(),
    "two of logits": objectives.kd(supervised=0.0) + objectives.ttm(gamma=0.5, beta=1.0),
    "a scheduled weight": objectives.wttm(gamma=0.3, beta=Linear(3.0, 1.0)),
}


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-5), (torch.bfloat16, 1e-2)], ids=str
)
def test_at_once_is_one_by_one(objective, dtype, tolerance, monkeypatch):
    calls, both = [], kernels.cross_entropy_and
    monkeypatch.setattr(
        kernels, "cross_entropy_and", lambda *inputs, **how: calls.append(inputs) or both(*inputs, **how)
    )
    z, v, batch = drawn(dtype)
    progress = Progress(epoch=1, step=3, fraction=0.4)
    expected = outcome(objective, False, z, v, batch, progress)
    assert not calls
    got = outcome(objective, True, z, v, batch, progress)
    ((_, student, teacher, _),) = calls
    assert student.dtype == teacher.dtype == dtype  # No wide copy is made for them.
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
    assert list(got[1]) == list(expected[1])
    assert got[2].dtype == dtype


@pytest.mark.parametrize(("alone", "copies"), [(True, 0), (False, 2)])
def test_logits_are_copied_to_float32_only_where_another_term_reads_them(alone, copies, monkeypatch):
    copied, of_student, of_teacher = [], bound.widened, bound._constant
    monkeypatch.setattr(bound, "widened", lambda z: copied.append(z) or of_student(z))
    monkeypatch.setattr(bound, "_constant", lambda v, wide: copied.append(v) or of_teacher(v, wide))
    outcome(OBJECTIVES["wttm" if alone else "a sum"], True, *drawn(torch.bfloat16))
    assert len(copied) == copies


def test_soft_labels():
    z, v, batch = drawn(labels=torch.softmax(torch.randn(BATCH, CLASSES, dtype=torch.float64), -1))
    torch.testing.assert_close(*(outcome(OBJECTIVES["kd"], fused, z, v, batch) for fused in (True, False)))


@pytest.mark.parametrize(
    ("objective", "pair"),
    [
        (objectives.kd(), ("ce", "kd")),
        (objectives.wttm(gamma=0.3, beta=1.0), ("ce", "wttm")),
        (objectives.kd(supervised=0.0) + objectives.ttm(gamma=0.5, beta=1.0), ("ce", "kd")),
        (objectives.cross_entropy(), None),
        (objectives.cross_entropy(label_smoothing=0.1) + objectives.kd(supervised=0.0), None),
        (objectives.kd().with_class_weights(range(1, 8)), None),
        (objectives.kd(supervised=0.0), None),
        (objectives.kd(logits="standardised"), None),
        (objectives.dkd(), None),
        (objectives.wttm(gamma=0.3, beta=1.0, normalise="batch"), None),
    ],
)
def test_which_terms_are_a_pair(objective, pair):
    module = objective.bind(BindContext(classes=CLASSES))
    assert module.pair == pair
    module.fused = True  # Without a pair it changes nothing.
    z, v, batch = drawn()
    one, other = (outcome(objective, fused, z, v, batch) for fused in (True, False))
    torch.testing.assert_close(one, other)
