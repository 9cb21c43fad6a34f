import json
from pathlib import Path

import pytest
import torch
from tests._helpers.refusals import refused

from tutelage import records, targets
from tutelage.errors import StorageError
from tutelage.teacher_cache.cache import CachedTeacher, TeacherCache, size_of
from tutelage.teacher_cache.top_k import TeacherCacheError, TopK
from tutelage.types import Batch, View

KEY = {"teacher": "abc", "views": {"flip": True, "crop_padding": 4}, "data_seed": 0}


def written(folder, *, rows=4, samples=10, epochs=2, taps=("card:embedding",)):
    """A cache of random logits; returns it with what was written."""
    generator = torch.Generator().manual_seed(0)
    logits = 30 * torch.randn(epochs, samples, 5, generator=generator) + 100
    features = torch.randn(epochs, samples, 3, generator=generator)
    cache = TeacherCache(folder, KEY, samples=samples, rows=rows)
    cache.begin()
    for epoch in range(epochs):
        for chunk in list(cache.missing(epoch, taps)):
            part = slice(chunk.start, chunk.stop)
            cache.write(epoch, chunk, logits[epoch, part], dict.fromkeys(taps, features[epoch, part]))
    return cache, logits, features


def read_outputs(cache, index, *, epoch=0, taps=()):
    """A cached teacher's outputs for a batch of these samples."""
    return CachedTeacher(cache, taps)(batch(index, epoch))


def batch(index, epoch=0, seed=0):
    labels = torch.zeros(len(index), dtype=torch.int64)
    return Batch(torch.tensor(index), torch.zeros(len(index), 1), labels, View(seed, epoch))


def test_what_was_written_is_answered_by_sample_and_epoch(tmp_path):
    _, logits, features = written(tmp_path)
    teacher = CachedTeacher(TeacherCache(tmp_path, KEY, samples=10), ("card:embedding",))
    for epoch in (0, 1, 0):
        answer = teacher(batch([9, 0, 4, 4], epoch))
        torch.testing.assert_close(answer.logits, logits[epoch, [9, 0, 4, 4]], rtol=0, atol=0.05)
        torch.testing.assert_close(answer.taps["card:embedding"], features[epoch, [9, 0, 4, 4]], rtol=1e-3, atol=1e-6)
        assert answer.logits.dtype == torch.float32


def test_centring_keeps_what_a_large_offset_would_cost(tmp_path):
    cache = TeacherCache(tmp_path, KEY, samples=2)
    cache.begin()
    logits = torch.tensor([[1000.0, 1000.25, 1000.125], [0.0, 1e-4, -1e-4]])
    cache.write(0, range(2), logits, {})
    answer = read_outputs(cache, [0, 1]).logits
    torch.testing.assert_close(answer.log_softmax(-1), logits.log_softmax(-1), rtol=0, atol=1e-4)
    assert not torch.equal(logits.half().float()[0], logits[0])


def test_the_tail_of_a_confident_teacher_survives(tmp_path):
    cache = TeacherCache(tmp_path, KEY, samples=1)
    cache.begin()
    logits = torch.tensor([[30.0, 0.0, -2.0, -4.0]])
    cache.write(0, range(1), logits, {})
    answer = read_outputs(cache, [0]).logits
    assert float(logits.softmax(-1).half()[0, 1]) == 0
    torch.testing.assert_close((0.1 * answer).softmax(-1), (0.1 * logits).softmax(-1), rtol=1e-3, atol=0)


def test_missing_chunks_are_named_and_a_further_feature_is_missing(tmp_path):
    cache, *_ = written(tmp_path)
    assert list(cache.missing(0, ("card:embedding",))) == []
    assert list(cache.missing(0, ("layer3",))) == [range(4), range(4, 8), range(8, 10)]
    assert list(cache.missing(2)) == [range(4), range(4, 8), range(8, 10)]
    next(iter(tmp_path.glob("epoch-0001/000000004.logits*"))).unlink()
    assert list(cache.missing(1)) == [range(4, 8)]


def test_a_cache_keeps_its_own_chunks(tmp_path):
    written(tmp_path, rows=4)
    assert TeacherCache(tmp_path, KEY, samples=10, rows=7).rows == 4


@pytest.mark.parametrize(
    ("key", "samples", "refusal"),
    [
        ({**KEY, "teacher": "xyz"}, 10, refused(TeacherCacheError, "outputs", got=["teacher", "xyz", "abc"])),
        (
            {**KEY, "views": {"flip": False, "crop_padding": 4}},
            10,
            refused(TeacherCacheError, "outputs", got=["views.flip", "False", "True"]),
        ),
        ({**KEY, "more": 1}, 10, refused(TeacherCacheError, "outputs", got=["more", 1])),
        (KEY, 11, refused(TeacherCacheError, "outputs", got=["samples", 11, 10])),
    ],
)
def test_another_key_is_refused_and_the_difference_named(tmp_path, key, samples, refusal):
    written(tmp_path)
    with refusal:
        TeacherCache(tmp_path, key, samples=samples)


def test_another_schema_is_refused(tmp_path):
    written(tmp_path)
    path = tmp_path / "outputs.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 5}))
    with refused(records.NewerError, str(path), got=["schema", 5]):
        TeacherCache(tmp_path, KEY, samples=10)


def test_an_epoch_that_was_not_recorded_says_what_to_type(tmp_path):
    cache, *_ = written(tmp_path)
    with refused(TeacherCacheError, "outputs", suggests="tutelage record"):
        read_outputs(cache, [0], epoch=2)


@pytest.mark.parametrize("where", [0.5, 0.999, 0.01])
def test_a_damaged_chunk_is_refused_and_named(tmp_path, where):
    cache, *_ = written(tmp_path)
    path = tmp_path / "epoch-0000" / "000000004.logits.safetensors"
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 255
    path.write_bytes(bytes(content))
    with refused(TeacherCacheError, "outputs", got="epoch-0000/000000004.logits.safetensors"):
        read_outputs(cache, [0])


def test_taps_of_like_names_lie_apart(tmp_path):
    names = ("a b", "a-b", "a_b", "logits.x", "epoch")
    cache = TeacherCache(tmp_path, KEY, samples=2)
    cache.begin()
    cache.write(0, range(2), torch.zeros(2, 3), {name: torch.full((2, 1), float(k)) for k, name in enumerate(names)})
    answer = read_outputs(cache, [1], taps=names)
    assert [float(answer.taps[name]) for name in names] == [0, 1, 2, 3, 4]
    first, second = sorted(tmp_path.glob("epoch-0000/*tap.a-b*"))[:2]
    second.write_bytes(first.read_bytes())
    with refused(TeacherCacheError, "outputs", got=f"epoch-0000/{second.name}"):
        read_outputs(cache, [0], taps=names)


def test_a_value_beyond_float16_is_refused_and_nan_is_kept(tmp_path):
    cache = TeacherCache(tmp_path, KEY, samples=2)
    cache.begin()
    with refused(TeacherCacheError, "outputs", got="2e+05", suggests="outputs=null"):
        cache.write(0, range(2), torch.tensor([[2e5, -2e5], [0.0, 1.0]]), {})
    with refused(TeacherCacheError, "outputs", got="nan"):
        cache.write(0, range(2), torch.tensor([[torch.inf, 0.0], [0.0, 1.0]]), {})
    cache.write(0, range(2), torch.tensor([[torch.nan, torch.nan], [0.0, 1.0]]), {})
    answer = read_outputs(cache, [0, 1]).logits
    assert torch.isnan(answer[0]).all()
    assert torch.isfinite(answer[1]).all()


def test_a_class_of_probability_0_is_kept_and_moves_no_other(tmp_path):
    cache = TeacherCache(tmp_path, KEY, samples=2)
    cache.begin()
    logits = torch.tensor([[1000.0, -torch.inf, 1000.25, 1000.125], [-torch.inf, -torch.inf, 1e-4, -1e-4]])
    cache.write(0, range(2), logits, {})
    answer = read_outputs(cache, [0, 1]).logits
    assert torch.equal(answer == -torch.inf, logits == -torch.inf)
    torch.testing.assert_close(answer.log_softmax(-1), logits.log_softmax(-1), rtol=0, atol=1e-4)


def test_the_size_is_what_lies_on_the_disk(tmp_path):
    written(tmp_path, samples=5000, rows=5000, epochs=1)
    tensors = size_of(samples=5000, classes=5, shapes={"card:embedding": (3,)}, epochs=1)
    files = sum(path.stat().st_size for path in tmp_path.glob("epoch-*/*"))
    assert tensors <= files < tensors + 2000


def test_a_batch_of_no_view_or_of_another_seeds_is_refused(tmp_path):
    cache, *_ = written(tmp_path)
    teacher = CachedTeacher(cache)
    teacher(batch([0]))
    with refused(TeacherCacheError, "outputs", suggests="outputs=null"):
        teacher(batch([0])._replace(view=None))
    teacher(batch([0], 1))
    with refused(TeacherCacheError, "outputs", got=6, suggests="outputs=null"):
        teacher(batch([0], 1, seed=6))
    with refused(TeacherCacheError, "outputs", suggests="tutelage record"):
        teacher(batch([0], 2))


def test_answers_of_several_chunks_are_those_of_one_bit_for_bit(tmp_path):
    several, logits, features = written(tmp_path / "several", rows=4, samples=11)
    single, *_ = written(tmp_path / "single", rows=20, samples=11)
    mean = logits[0].mean(-1, keepdim=True)
    for index in ([9, 0, 4, 4, 10, 3, 8], [5], list(range(11)), list(range(10, -1, -1))):
        answers = [read_outputs(cache, index, taps=("card:embedding",)) for cache in (several, single)]
        for answer in answers:
            assert torch.equal(answer.logits, ((logits[0] - mean).half().float() + mean)[index])
            assert torch.equal(answer.taps["card:embedding"], features[0, index].half().float())


def test_several_chunks_are_read_where_networks_compute_in_bfloat16(tmp_path):
    cache, *_ = written(tmp_path, rows=4, samples=11)
    plain = read_outputs(cache, [9, 0, 4], taps=("card:embedding",))
    with torch.autocast("cpu", torch.bfloat16):
        answer = read_outputs(cache, [9, 0, 4], taps=("card:embedding",))
    assert torch.equal(answer.logits, plain.logits)
    assert torch.equal(answer.taps["card:embedding"], plain.taps["card:embedding"])


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux says which files are mapped in /proc")
def test_an_epoch_is_mapped_not_copied(tmp_path):
    cache, *_ = written(tmp_path)
    teacher = CachedTeacher(cache)
    teacher(batch([0]))
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    paths = sorted(tmp_path.glob("epoch-0000/*.logits.safetensors"))
    assert len(paths) == 3
    assert {str(path.resolve()) for path in paths} <= mapped
    teacher(batch([0], 1))
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    assert not {str(path.resolve()) for path in paths} & mapped, "the epoch before is let go of"


def test_the_top_form_is_answered_and_described(tmp_path):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(10, 6, generator=generator)
    cache = TeacherCache(tmp_path, KEY, samples=10, rows=4, form=TopK.of(4, 6, needed=(0.7,), bound=0.5))
    for chunk in list(cache.missing(0)):
        cache.write(0, chunk, logits[chunk.start : chunk.stop], {}, gammas=(0.7,))
    errors = cache.conclude(1)
    described = json.loads((tmp_path / "outputs.json").read_text())
    assert described["form"] == cache.form.to_json()
    assert [entry["gamma"] for entry in described["errors"]] == list(cache.form.gammas)
    whole = cache.form.pack(logits)["error"]
    row = cache.form.at(0.7)
    assert list(errors[0.7].values()) == pytest.approx(whole[row].tolist(), rel=5e-3)
    again = TeacherCache(tmp_path, KEY, samples=10)
    assert again.form == cache.form
    again.require(0, gammas=(0.7,))
    teacher = CachedTeacher(again, gamma=0.7)
    index = [9, 0, 4, 4]
    expected = cache.form.unpack(cache.form.pack(logits[index]), 0.7)
    torch.testing.assert_close(teacher(batch(index)).logits, expected, rtol=1e-6, atol=1e-6)
    with refused(TeacherCacheError, "outputs", got=0.9):
        CachedTeacher(again, gamma=0.9)
    size = size_of(samples=10, classes=6, shapes={}, epochs=1, form=cache.form)
    files = sum(path.stat().st_size for path in tmp_path.glob("epoch-*/*"))
    assert size <= files < size + 3000


def test_the_top_form_beyond_its_bound_is_neither_written_nor_read(tmp_path):
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    cache = TeacherCache(tmp_path, KEY, samples=4, form=TopK.of(3, 50))
    with refused(TeacherCacheError, "outputs", got=0.25):
        cache.write(0, range(4), logits, {}, gammas=(0.25,))
    assert not list(tmp_path.iterdir())
    cache.write(0, range(4), logits, {})
    cache.require(0)
    with refused(TeacherCacheError, "outputs", got=0.25):
        cache.require(0, gammas=(0.25,))


@pytest.mark.parametrize("where", [0.3, 0.999, 0.001])
def test_a_damaged_chunk_of_the_top_form_is_refused(tmp_path, where):
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    cache = TeacherCache(tmp_path, KEY, samples=4, form=TopK.of(3, 50))
    cache.write(0, range(4), logits, {})
    path = next(tmp_path.glob("epoch-0000/*"))
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 255
    path.write_bytes(bytes(content))
    with refused(TeacherCacheError, "outputs", got="epoch-0000/000000000.logits.safetensors"):
        read_outputs(cache, [0])


def test_a_cache_of_before_the_top_form_is_dense(tmp_path):
    written(tmp_path)
    path = tmp_path / "outputs.json"
    value = json.loads(path.read_text())
    del value["form"]
    path.write_text(json.dumps(value))
    assert TeacherCache(tmp_path, KEY, samples=10).form is None


def test_a_disk_that_was_full_at_first_leaves_a_description_later(tmp_path, monkeypatch):
    cache = TeacherCache(tmp_path, KEY, samples=4)

    def full(path, value):
        raise OSError("no room")

    with monkeypatch.context() as patch:
        patch.setattr("tutelage.records.write_json", full)
        with pytest.raises(OSError, match="no room"):
            cache.write(0, range(4), torch.zeros(4, 3), {})
    cache.write(0, range(4), torch.zeros(4, 3), {})
    assert TeacherCache(tmp_path, KEY, samples=4).begun


def test_a_full_disk_loses_no_chunk_and_recording_goes_on_when_there_is_room(small_disk):
    cache = TeacherCache(small_disk / "outputs", KEY, samples=8, rows=4)
    cache.write(0, range(4), torch.zeros(4, 3), {})
    with pytest.raises(StorageError) as caught:
        cache.write(0, range(4, 8), torch.zeros(4, 100_000), {})
    assert "logits.safetensors" in caught.value.what
    assert "free some space" in caught.value.instead
    again = TeacherCache(small_disk / "outputs", KEY, samples=8)
    assert list(again.missing(0)) == [range(4, 8)]
    again.write(0, range(4, 8), torch.ones(4, 3), {})
    assert len(again.read(0, "logits")) == 2


POSITIONS = 6
CLASSES_OF_TOKENS = 40


def recorded_tokens(folder, top=None, rows=4):
    """Ten samples with up to six counted positions, in three chunks; their logits ``(samples, positions, classes)``."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(10, POSITIONS, CLASSES_OF_TOKENS, generator=generator)
    counted = torch.rand(10, POSITIONS, generator=generator) < 0.6
    form = None if top is None else TopK(kept=top, classes=CLASSES_OF_TOKENS, bound=1.0)
    cache = TeacherCache(folder, {"data_seed": 1}, samples=10, rows=rows, form=form, ragged=True)
    for chunk in cache.ranges():
        own = slice(chunk.start, chunk.stop)
        cache.write(0, chunk, logits[own][counted[own]], {}, gammas=[1.0], counts=counted[own].sum(1))
    return TeacherCache(folder, {"data_seed": 1}, samples=10, ragged=True), logits, counted


def token_batch(index, counted, epoch):
    index = torch.tensor(index)
    counted = counted[index]
    return Batch(index, torch.zeros(len(index), POSITIONS), counted.long(), View(1, epoch), counted)


@pytest.mark.parametrize("rows", [4, 16])
def test_each_position_has_its_row_in_every_epoch(tmp_path, rows):
    cache, logits, counted = recorded_tokens(tmp_path, rows=rows)
    teacher, index = CachedTeacher(cache), [7, 0, 9, 3]
    for epoch in (0, 5):
        cache.require(epoch)
        outputs = teacher(token_batch(index, counted, epoch)).logits
        assert outputs.shape == (4, POSITIONS, CLASSES_OF_TOKENS)
        assert outputs.isfinite().all()
        there = counted[index]
        torch.testing.assert_close(outputs[there], logits[index][there], rtol=0, atol=4e-3)


def test_top_classes_of_positions_are_read_as_they_are_stored(tmp_path):
    cache, logits, counted = recorded_tokens(tmp_path, top=8)
    batch = token_batch([7, 0, 9, 3], counted, 2)
    dense = CachedTeacher(cache)(batch).logits
    sparse = CachedTeacher(cache, sparse=True)(batch).sparse
    assert sparse.values.shape == (4, POSITIONS, 8)
    torch.testing.assert_close(targets.dense(sparse), dense, rtol=0, atol=0)
    expected = logits[batch.index][batch.counted].log_softmax(-1).topk(8)
    torch.testing.assert_close(sparse.values[batch.counted], expected.values, rtol=0, atol=4e-3)
    assert torch.equal(sparse.index[batch.counted], expected.indices)


def test_other_positions_than_were_recorded_are_refused(tmp_path):
    cache, _, counted = recorded_tokens(tmp_path)
    with pytest.raises(TeacherCacheError, match="counted positions, as the teacher answered"):
        CachedTeacher(cache)(token_batch([7, 0], torch.ones_like(counted), 0))


def test_64_of_32767_classes_take_at_most_300_bytes_a_token():
    assert TopK.of(64, 32_767, needed=[0.9]).bytes <= 300


def test_positions_on_a_device_are_one_piece(tmp_path):
    cache, _, counted = recorded_tokens(tmp_path)
    teacher = CachedTeacher(cache)
    teacher.open(View(1, 0))
    joined = {}
    teacher._move([dict(chunk) for chunk in teacher._chunks["logits"]], joined)
    assert joined["offsets"].tolist() == [0, *counted.sum(1).cumsum(0).tolist()]
    assert len(joined["values"]) == int(counted.sum())
