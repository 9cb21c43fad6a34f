"""A bucket and sampled classes as they are stored: what is read back, how large it is, and what is refused."""

import json

import numpy as np
import pytest
import torch
from tests._helpers.refusals import refused

from tutelage import losses, records, targets
from tutelage.errors import InvalidValueError
from tutelage.settings.outputs import Bucket, Sampled, words
from tutelage.teacher_cache import forms, parquet
from tutelage.teacher_cache.cache import CachedTeacher, TeacherCache, size_of
from tutelage.teacher_cache.forms import BucketForm, SampledForm, form_of, from_json
from tutelage.teacher_cache.top_k import TeacherCacheError, TopK
from tutelage.types import Batch, View

SETTINGS = {
    "bucket": Bucket(top=5),
    "sampled": Sampled(draws=12),
    "tempered": Sampled(draws=12, proposal=0.7),
}
KEY = {"teacher": {"name": "t"}, "data_seed": 3, "classes": 40}


def drawn(rows=30, classes=40, seed=0):
    return 3 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))


def packed(form, logits, epoch=0, first=0):
    if isinstance(form, SampledForm):
        return form.pack(logits, form.bits(epoch, range(first, first + len(logits))))
    return form.pack(logits)


def made(name, classes=40):
    return form_of(SETTINGS[name], classes=classes, seed=3)


def test_a_bucket_is_the_top_and_what_is_left():
    logits, form = drawn(), made("bucket")
    read = form.as_sparse(packed(form, logits), 1.0)
    expected = losses.with_rest(logits, logits.topk(5).indices)
    torch.testing.assert_close(read.values, expected[:, :5], rtol=0, atol=5e-3)  # float16 of the distance to the top
    torch.testing.assert_close(read.level, expected[:, 5], rtol=1e-6, atol=1e-6)
    assert (read.form, read.classes) == ("bucket", 40)
    assert torch.equal(read.index, logits.topk(5).indices)


@pytest.mark.parametrize("name", ["sampled", "tempered"])
def test_draws_are_those_of_their_row_and_their_weights_are_kept(name):
    logits, form = drawn(), made(name)
    kept = packed(form, logits, epoch=2, first=100)
    read = form.as_sparse(kept, 1.0)
    torch.testing.assert_close(read.level, (logits.softmax(-1) * logits.log_softmax(-1)).sum(-1), rtol=1e-5, atol=1e-5)
    log_p = logits.double().log_softmax(-1)
    log_r = (form.settings.proposal * log_p).log_softmax(-1)
    expected = (log_p - log_r).gather(-1, read.index) - np.log(12)
    torch.testing.assert_close(read.values.double(), expected, rtol=1e-6, atol=1e-6)
    alone = form.pack(logits[7:8], form.bits(2, range(107, 108)))
    assert torch.equal(alone["index"][0], kept["index"][7])
    for other in (packed(form, logits, epoch=1, first=100), packed(form, logits, epoch=2, first=0)):
        assert not torch.equal(other["index"], kept["index"])


def test_draws_of_positions_are_those_of_sample_and_position():
    form, counts = made("sampled"), torch.tensor([3, 0, 2])
    bits = form.bits(0, range(4, 7), counts)
    assert len(set(bits.tolist())) == 5
    np.testing.assert_array_equal(bits[:3], form.bits(0, range(4, 5), torch.tensor([3])))
    np.testing.assert_array_equal(bits[3:], form.bits(0, range(6, 7), torch.tensor([2])))


@pytest.mark.parametrize("name", ["sampled", "tempered"])
def test_the_measured_bias_is_that_of_the_draws_and_within_its_error(name):
    logits, form = drawn(4000), made(name)
    kept = packed(form, logits)
    log_p = logits.double().log_softmax(-1)
    read = form.as_sparse(kept, 1.0)
    excess = -(read.values.double().exp() * log_p.gather(-1, read.index)).sum(-1) + (log_p.exp() * log_p).sum(-1)
    histogram = torch.zeros_like(log_p).scatter_add_(-1, read.index, read.values.double().exp())
    apart = (histogram - log_p.exp()).abs().sum(-1) / 2
    expected = [apart.mean(), apart.max(), excess.mean(), excess.square().mean()]
    torch.testing.assert_close(kept["error"][0].double(), torch.stack(expected), rtol=1e-4, atol=1e-5)
    assert abs(excess.mean()) < 4 * excess.std() / 4000**0.5
    mean = (histogram - log_p.exp()).mean(0)
    assert float(mean.abs().max()) < 5 * float(histogram.std(0).max()) / 4000**0.5


@pytest.mark.parametrize("name", SETTINGS)
def test_what_is_stored_is_as_large_as_it_says(name):
    for classes, wide in ((40, False), (40_000, True)):
        form = form_of(SETTINGS[name], classes=classes, seed=3)
        kept = packed(form, drawn(3, classes))
        assert (kept["index"].dtype == torch.int32) is wide
        assert sum(t.numel() * t.element_size() for key, t in kept.items() if key != "error") == 3 * form.bytes
    assert form_of(SETTINGS["bucket"], classes=2000, seed=0).bytes == 4 * 5 + 8
    assert form_of(SETTINGS["sampled"], classes=2000, seed=0).bytes == 2 * 12 + 4
    assert size_of(samples=10, classes=40, shapes={}, epochs=2, form=made("sampled")) == 20 * 28


@pytest.mark.parametrize("name", SETTINGS)
def test_blocks_change_nothing_and_a_row_that_was_not_read_stays_one(name, monkeypatch):
    logits, form = drawn(20), made(name)
    logits[4] = torch.nan
    whole = packed(form, logits)
    monkeypatch.setattr(forms, "BLOCK", 7)
    for key, tensor in packed(form, logits).items():
        torch.testing.assert_close(tensor, whole[key], equal_nan=True)
    assert whole["error"].isfinite().all()
    values = losses.ttm(drawn(20, seed=1), form.as_sparse(whole, 1.0), gamma=1)
    assert values.isnan().nonzero().flatten().tolist() == [4]
    assert not packed(form, logits[4:5])["error"].any()


@pytest.mark.parametrize("name", SETTINGS)
def test_a_form_is_read_as_it_was_described(name):
    form = made(name)
    assert from_json(json.loads(json.dumps(form.to_json()))) == form
    assert from_json(TopK.of(3, 40).to_json()) == TopK.of(3, 40)
    assert words(form.to_json()) in {
        "the top 5 of 40 and the rest as one",
        "12 draws of 40",
        "12 draws with weights, from p**0.7, of 40",
    }


def batch_of(samples, epoch=1):
    index = torch.tensor(samples)
    return Batch(index, torch.empty(len(samples), 1), torch.zeros(len(samples), dtype=torch.int64), View(3, epoch))


def written(folder, name, epochs=2):
    """Outputs of 10 images in chunks of 4."""
    cache = TeacherCache(folder, KEY, samples=10, rows=4, form=made(name))
    for epoch in range(epochs):
        for chunk in cache.ranges():
            cache.write(epoch, chunk, drawn(10, seed=epoch)[chunk.start : chunk.stop], {})
    cache.conclude(epochs)
    return TeacherCache(folder, KEY, samples=10)


@pytest.mark.parametrize("name", SETTINGS)
def test_images_have_it_too_and_other_views_other_draws(name, tmp_path):
    cache = written(tmp_path, name)
    assert (cache.schema, cache.ragged, cache.form) == (4, False, made(name))
    assert [error["gamma"] for error in cache.errors] == [1.0]
    teacher, order = CachedTeacher(cache), [9, 0, 5]
    for epoch in (0, 1):
        read = teacher(batch_of(order, epoch)).sparse
        expected = made(name).as_sparse(packed(made(name), drawn(10, seed=epoch), epoch=epoch), 1.0)
        assert torch.equal(read.index, expected.index[order])
        torch.testing.assert_close(read.values, expected.values[order])
        torch.testing.assert_close(read.level, expected.level[order])


@pytest.mark.parametrize("name", SETTINGS)
def test_other_exponents_have_nothing_to_read(name, tmp_path):
    cache = written(tmp_path, name)
    with refused(TeacherCacheError, "outputs", got="gamma 0.25", suggests=["gamma=1", "outputs_form=null"]):
        CachedTeacher(cache, gamma=0.25)
    with refused(TeacherCacheError, "outputs", got="gamma 0.5"):
        cache.require(0, gammas=[0.5])
    cache.require(0, gammas=[1.0])
    with refused(InvalidValueError, "teacher_logits"):
        made(name).unpack(packed(made(name), drawn()), 1.0)


@pytest.mark.parametrize(
    "form",
    [
        {"name": "bucket"},
        {"name": "sampled", "draws": "many", "proposal": 1.0, "classes": 40, "seed": 3},
        {"name": "other", "top": 3, "classes": 40},
        {"name": "bucket", "top": 5, "classes": 40, "more": 1},
    ],
)
def test_a_description_that_is_none_is_damage(form, tmp_path):
    written(tmp_path, "bucket")
    path = tmp_path / records.OUTPUTS
    path.write_text(json.dumps({**json.loads(path.read_text()), "form": form}))
    with refused(records.DamagedError, str(path)):
        TeacherCache(tmp_path, KEY, samples=10)


@pytest.mark.parametrize("name", SETTINGS)
def test_they_are_exported_as_parquet(name, tmp_path):
    pq = pytest.importorskip("pyarrow.parquet", reason="the optional package pyarrow is not installed")
    written(tmp_path / "kept", name, epochs=1)
    paths = list(parquet.export(tmp_path / "kept", tmp_path / "out"))
    names = set(pq.read_table(paths[0]).column_names)
    expected = {
        "bucket": {"logprobs", "rest"},
        "sampled": {"negative_entropy"},
        "tempered": {"negative_entropy", "log_weights"},
    }
    assert names == {"sample", "classes", *expected[name]}


def test_faults():
    with refused(TeacherCacheError, "outputs_form.top", got=40):
        BucketForm(settings=Bucket(top=40), classes=40)
    with refused(InvalidValueError, "outputs_form.draws", got=0):
        Sampled(draws=0)
    with refused(InvalidValueError, "outputs_form.proposal", got=0.0):
        Sampled(proposal=0.0)
    assert targets.draw(drawn(2), torch.zeros(2, 3, dtype=torch.float64))[0].shape == (2, 3)
