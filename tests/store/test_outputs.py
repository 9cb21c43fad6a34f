import json

import pytest
import torch

from tutelage.contracts import Batch
from tutelage.store import Recorded, Store, StoreError, size_of

KEY = {"teacher": "abc", "views": {"flip": True, "crop_padding": 4}, "data_seed": 0}


def written(folder, *, rows=4, samples=10, epochs=2, taps=("card:embedding",)):
    """A store of drawn logits; returns it with what was written."""
    generator = torch.Generator().manual_seed(0)
    logits = 30 * torch.randn(epochs, samples, 5, generator=generator) + 100
    features = torch.randn(epochs, samples, 3, generator=generator)
    store = Store(folder, KEY, samples=samples, rows=rows)
    store.begin()
    for epoch in range(epochs):
        for chunk in list(store.missing(epoch, taps)):
            part = slice(chunk.start, chunk.stop)
            store.write(epoch, chunk, logits[epoch, part], dict.fromkeys(taps, features[epoch, part]))
    return store, logits, features


def said(store, index, *, epoch=0, taps=()):
    """What a recorded teacher answers for a batch of these samples."""
    teacher = Recorded(store, taps)
    teacher.open(epoch)
    return teacher(batch(index))


def batch(index):
    return Batch(torch.tensor(index), torch.zeros(len(index), 1), torch.zeros(len(index), dtype=torch.int64))


def test_what_was_written_is_answered_by_sample_and_epoch(tmp_path):
    _, logits, features = written(tmp_path)
    teacher = Recorded(Store(tmp_path, KEY, samples=10), ("card:embedding",))
    for epoch in (0, 1, 0):
        teacher.open(epoch)
        answer = teacher(batch([9, 0, 4, 4]))
        torch.testing.assert_close(answer.logits, logits[epoch, [9, 0, 4, 4]], rtol=0, atol=0.05)
        torch.testing.assert_close(answer.taps["card:embedding"], features[epoch, [9, 0, 4, 4]], rtol=1e-3, atol=1e-6)
        assert answer.logits.dtype == torch.float32


def test_centring_keeps_what_a_large_offset_would_cost(tmp_path):
    store = Store(tmp_path, KEY, samples=2)
    store.begin()
    logits = torch.tensor([[1000.0, 1000.25, 1000.125], [0.0, 1e-4, -1e-4]])
    store.write(0, range(2), logits, {})
    answer = said(store, [0, 1]).logits
    torch.testing.assert_close(answer.log_softmax(-1), logits.log_softmax(-1), rtol=0, atol=1e-4)
    assert not torch.equal(logits.half().float()[0], logits[0])


def test_the_tail_of_a_confident_teacher_survives(tmp_path):
    store = Store(tmp_path, KEY, samples=1)
    store.begin()
    logits = torch.tensor([[30.0, 0.0, -2.0, -4.0]])
    store.write(0, range(1), logits, {})
    answer = said(store, [0]).logits
    assert float(logits.softmax(-1).half()[0, 1]) == 0
    torch.testing.assert_close((0.1 * answer).softmax(-1), (0.1 * logits).softmax(-1), rtol=1e-3, atol=0)


def test_missing_chunks_are_named_and_a_further_feature_is_missing(tmp_path):
    store, *_ = written(tmp_path)
    assert list(store.missing(0, ("card:embedding",))) == []
    assert list(store.missing(0, ("layer3",))) == [range(4), range(4, 8), range(8, 10)]
    assert list(store.missing(2)) == [range(4), range(4, 8), range(8, 10)]
    next(iter(tmp_path.glob("epoch-0001/000000004.logits*"))).unlink()
    assert list(store.missing(1)) == [range(4, 8)]


def test_a_store_keeps_its_own_chunks(tmp_path):
    written(tmp_path, rows=4)
    assert Store(tmp_path, KEY, samples=10, rows=7).rows == 4


@pytest.mark.parametrize(
    ("key", "samples", "named"),
    [
        ({**KEY, "teacher": "xyz"}, 10, r"teacher \(expected xyz, got abc\)"),
        ({**KEY, "views": {"flip": False, "crop_padding": 4}}, 10, r"views\.flip \(expected False, got True\)"),
        ({**KEY, "more": 1}, 10, r"more \(expected 1, got none\)"),
        (KEY, 11, r"samples \(expected 11, got 10\)"),
    ],
)
def test_another_key_is_refused_and_the_difference_named(tmp_path, key, samples, named):
    written(tmp_path)
    with pytest.raises(StoreError, match=named):
        Store(tmp_path, key, samples=samples)


def test_another_schema_is_refused(tmp_path):
    written(tmp_path)
    path = tmp_path / "outputs.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 2}))
    with pytest.raises(StoreError, match=r"schema \(expected 1, got 2\)"):
        Store(tmp_path, KEY, samples=10)


def test_an_epoch_that_was_not_recorded_says_what_to_type(tmp_path):
    store, *_ = written(tmp_path)
    with pytest.raises(StoreError, match=r"expected the logits of epoch 3, samples from 0.*tutelage record"):
        said(store, [0], epoch=2)


@pytest.mark.parametrize("where", [0.5, 0.999, 0.01])
def test_a_damaged_chunk_is_refused_and_named(tmp_path, where):
    store, *_ = written(tmp_path)
    path = tmp_path / "epoch-0000" / "000000004.logits.safetensors"
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 255
    path.write_bytes(bytes(content))
    with pytest.raises(StoreError, match=r"got another content in epoch-0000/000000004\.logits\.safetensors"):
        said(store, [0])


def test_taps_of_like_names_lie_apart(tmp_path):
    names = ("a b", "a-b", "a_b", "logits.x", "epoch")
    store = Store(tmp_path, KEY, samples=2)
    store.begin()
    store.write(0, range(2), torch.zeros(2, 3), {name: torch.full((2, 1), float(k)) for k, name in enumerate(names)})
    answer = said(store, [1], taps=names)
    assert [float(answer.taps[name]) for name in names] == [0, 1, 2, 3, 4]
    first, second = sorted(tmp_path.glob("epoch-0000/*tap.a-b*"))[:2]
    second.write_bytes(first.read_bytes())
    with pytest.raises(StoreError, match="got another content"):
        said(store, [0], taps=names)


def test_a_value_beyond_float16_is_refused_and_nan_is_kept(tmp_path):
    store = Store(tmp_path, KEY, samples=2)
    store.begin()
    with pytest.raises(StoreError, match=r"expected logits below 65504 in size.*outputs=null"):
        store.write(0, range(2), torch.tensor([[2e5, -2e5], [0.0, 1.0]]), {})
    with pytest.raises(StoreError, match="below 65504"):
        store.write(0, range(2), torch.tensor([[torch.inf, 0.0], [0.0, 1.0]]), {})
    store.write(0, range(2), torch.tensor([[torch.nan, torch.nan], [0.0, 1.0]]), {})
    answer = said(store, [0, 1]).logits
    assert torch.isnan(answer[0]).all()
    assert torch.isfinite(answer[1]).all()


def test_the_size_is_what_lies_on_the_disk(tmp_path):
    written(tmp_path, samples=5000, rows=5000, epochs=1)
    tensors = size_of(samples=5000, classes=5, shapes={"card:embedding": (3,)}, epochs=1)
    files = sum(path.stat().st_size for path in tmp_path.glob("epoch-*/*"))
    assert tensors <= files < tensors + 2000


def test_a_teacher_that_was_not_told_the_epoch_says_so(tmp_path):
    store, *_ = written(tmp_path)
    with pytest.raises(StoreError, match=r"expected an epoch .*call open\(epoch\) first"):
        Recorded(store)(batch([0]))
