"""A fit of samples with positions, such as tokens: what counts, and that nothing else takes part."""

import pytest
import torch
from tests._helpers.fit_cases import Rows, fitted, same_bits, seeded, settings, state
from tests._helpers.processes import processes
from torch import nn

from tutelage import losses, objectives, records
from tutelage.modules import Distiller, FrozenTeacher
from tutelage.settings.fit import SGD
from tutelage.training.distributed import accelerator_on
from tutelage.training.evaluate import AskedLogits, KeptLogits, NonFiniteError, evaluate
from tutelage.training.metrics import EpochMetrics
from tutelage.training.state import TrainState
from tutelage.training.step import train_step
from tutelage.types import Batch

TOKENS, LENGTH, CLASSES = 11, 6, 11
OBJECTIVE = objectives.wttm(gamma=0.9, beta=1.5)
HOW = {"device": torch.device("cpu"), "precision": "fp32", "channels_last": False}


def texts(count=22, seed=0):
    """Rows of token ids with the next ones as labels, of which every row counts another part."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(TOKENS, (count, LENGTH + 1), generator=generator)
    counted = torch.arange(LENGTH) < torch.randint(1, LENGTH + 1, (count, 1), generator=generator)
    return ids[:, :-1], ids[:, 1:].masked_fill(~counted, -100), counted


class Tokens(Rows):
    """Rows of tokens; with several processes each takes its share of every batch."""

    def __init__(self, ids, labels, counted, **how):
        super().__init__(ids, labels, **how)
        self.counted = counted

    def epoch(self, epoch, *, start=0, rank=0, world=1):
        for batch in super().epoch(epoch, start=start):
            rows = Batch(*(each[rank::world] for each in batch[:3]))
            yield rows._replace(counted=self.counted[rows.index])


def model(seed=0, width=8):
    return seeded(lambda: nn.Sequential(nn.Embedding(TOKENS, width), nn.Tanh(), nn.Linear(width, CLASSES)), seed)


def stream(count=22, batch_size=5):
    return Tokens(*texts(count), batch_size=batch_size)


def fit_one(*, student=None, rows=None, **how):
    student = student or model()
    return student, fitted(student, rows or stream(), teacher=FrozenTeacher(model(9)), objective=OBJECTIVE, **how)


def test_the_loop_trains_as_a_plain_one_does_on_the_counted_tokens():
    by_hand, teacher, (ids, labels, counted) = model(), model(9), texts()
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1, momentum=SGD().momentum, weight_decay=SGD().weight_decay)
    total = 0.0
    for rows in torch.arange(len(ids)).split(5):
        kept = counted[rows]
        z, v, y = by_hand(ids[rows])[kept], teacher(ids[rows])[kept].detach(), labels[rows][kept]
        loss = losses.cross_entropy(z, y).mean() + 1.5 * losses.wttm(z, v, gamma=0.9).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        total += float(loss.detach()) * int(kept.sum())
    student, (record,) = fit_one(epochs=1)
    for name, value in state(by_hand).items():
        torch.testing.assert_close(state(student)[name], value, rtol=1e-5, atol=1e-7)
    assert record["train"]["loss"] == pytest.approx(total / int(counted.sum()), rel=1e-5)
    assert record["train"]["samples"] == 22


def test_what_stands_in_padding_changes_no_bit():
    ids, labels, counted = texts()
    noise = torch.randint(TOKENS, ids.shape, generator=torch.Generator().manual_seed(5))
    other = Tokens(torch.where(counted, ids, noise), labels, counted, batch_size=5)
    (one, first), (two, second) = fit_one(), fit_one(rows=other)
    assert same_bits(state(one), state(two))
    assert first[-1]["train"] == second[-1]["train"]


def first_gradient(**how):
    distiller = Distiller(model(), OBJECTIVE)
    training = TrainState(distiller, settings(**how), accelerator_on("cpu"))
    kept = {}
    for name, parameter in distiller.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda p, name=name: kept.__setitem__(name, p.grad.clone()))
    training.now.set(0.1, 0.0)
    train_step(training, next(iter(stream().epoch(0))), FrozenTeacher(model(9)))
    return torch.cat([each.flatten() for each in kept.values()])


def test_micro_batches_have_the_gradient_of_the_whole():
    whole, cut = first_gradient(), first_gradient(accumulate=3)
    assert torch.linalg.vector_norm(cut - whole) <= 1e-5 * torch.linalg.vector_norm(whole)
    (one, _), (two, _) = fit_one(precision="fp64"), fit_one(precision="fp64", accumulate=3)
    for name, value in state(one).items():
        torch.testing.assert_close(state(two)[name], value, rtol=1e-9, atol=1e-9)


def trained_in_double(rank, folder):
    torch.save(state(fit_one(precision="fp64")[0]), folder / f"{rank}.pt")


@pytest.mark.slow
def test_two_processes_train_as_one_though_their_counts_differ(tmp_path):
    processes(2, trained_in_double, tmp_path)
    wanted = state(fit_one(precision="fp64")[0])
    for rank in range(2):
        for name, value in torch.load(tmp_path / f"{rank}.pt", weights_only=True).items():
            torch.testing.assert_close(value, wanted[name], rtol=1e-9, atol=1e-9)


def test_a_fit_that_is_stopped_in_an_epoch_resumes_with_the_same_bits(tmp_path):
    whole, expected = fit_one()
    stopped = stream()
    stopped.stop_before = (1, 2)
    with pytest.raises(KeyboardInterrupt):
        fit_one(rows=stopped, folder=tmp_path)
    resumed, records_ = fit_one(student=model(3), folder=tmp_path, resume=True)
    assert same_bits(state(resumed), state(whole))
    assert records_[-1]["train"] == expected[-1]["train"]


class Spoilt(nn.Sequential):
    """A model whose logits are NaN at token 10."""

    def forward(self, ids):
        return super().forward(ids) * torch.where(ids[..., None] == 10, torch.nan, 1.0)


def test_a_value_that_is_not_finite_in_padding_names_the_sample():
    ids, labels, counted = texts()
    sample, position = (~counted).nonzero()[0].tolist()
    ids = ids.masked_fill(ids == 10, 0)
    ids[sample, position] = 10
    with pytest.raises(NonFiniteError, match=f"non-finite student logits: {sample};"):
        fit_one(student=Spoilt(*model()), rows=Tokens(ids, labels, counted, batch_size=5))


@pytest.mark.parametrize("asked", [False, True])
def test_an_evaluation_is_that_of_the_counted_tokens(asked):
    ids, labels, counted = texts()
    student, teacher, kept = model(), model(9), KeptLogits()
    flat = Rows(ids[counted][:, None], labels[counted], batch_size=7)
    one = nn.Sequential(model(), nn.Flatten(1))
    evaluate(nn.Sequential(model(9), nn.Flatten(1)), flat, keep=kept, **HOW)
    expected = evaluate(one, flat, teacher=kept, gamma=0.5, **HOW)
    rows = Tokens(ids, labels, counted, batch_size=5)
    if asked:
        answers = AskedLogits(teacher.eval(), **HOW)
    else:
        evaluate(teacher, rows, keep=(answers := KeptLogits()), **HOW)
    evaluation = evaluate(student, rows, teacher=answers, gamma=0.5, text_bytes=100, **HOW)
    means, wanted = evaluation.means("test"), expected.means("test")
    assert means.pop("perplexity") == pytest.approx(torch.tensor(wanted["loss"]).exp().item(), rel=1e-6)
    assert means.pop("bits_per_byte") == pytest.approx(wanted["loss"] * wanted["samples"] / 100 / 0.6931471805599453)
    assert means.pop("set") == wanted.pop("set")
    assert means == pytest.approx(wanted, rel=1e-6)
    assert evaluation.judgement()["per_class"] == []


def test_logits_of_an_evaluation_that_are_not_finite_are_those_of_a_sample():
    ids, labels, counted = texts()
    student = model()
    ids = ids.masked_fill(ids == 10, 0)
    ids[4, 0] = ids[17, 0] = 10
    with torch.no_grad():
        student[0].weight[10] = torch.nan
    with pytest.raises(NonFiniteError, match=r"2 of 22 samples: 4, 17"):
        evaluate(student, Tokens(ids, labels, counted, batch_size=5), **HOW)


def test_the_best_epoch_of_a_language_model_has_the_lowest_perplexity():
    def epoch(number, accuracy, perplexity):
        return {"stage": 0, "epoch": number, "test": {"accuracy": accuracy, "perplexity": perplexity}}

    best = records.best_epoch([epoch(1, 0.3, 20.0), epoch(2, 0.2, 10.0), epoch(3, 0.4, 15.0)], "test")
    assert best == {"set": "test", "accuracy": 0.2, "perplexity": 10.0, "epoch": 2, "stage": 0}


def test_sums_of_an_older_checkpoint_get_the_positions_that_were_its_samples():
    metrics = EpochMetrics(Distiller(model(), OBJECTIVE).objective, torch.device("cpu"))
    sums = dict(zip(metrics.names, torch.arange(len(metrics.names), dtype=torch.float64), strict=True))
    older = torch.stack([value for name, value in sums.items() if name != "positions"])
    restored = dict(zip(metrics.names, metrics.restored(older), strict=True))
    assert restored == sums | {"positions": sums["samples"]}
    assert metrics.restored(metrics.zeros) is metrics.zeros
