"""Completions that a language model writes: what is drawn, on what it depends, and what is refused."""

import pytest
import torch
from tests._helpers.refusals import refused
from torch import nn

from tutelage import models, text
from tutelage.data import View
from tutelage.errors import InvalidTypeError, InvalidValueError
from tutelage.models import CompletionSampler, generate
from tutelage.submodules import evaluation_mode
from tutelage.types import PADDING, UNLABELLED, Batch

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIGS = {
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2},
    "mistral": SIZES | {"num_key_value_heads": 2, "sliding_window": 4},
    "openai-gpt": {"n_embd": 16, "n_layer": 1, "n_head": 2},  # has no cache
}
END = 0


@pytest.fixture(scope="module")
def reads():
    pytest.importorskip("transformers", reason="the optional package transformers is not installed")
    return text.TextInput(tokenizer=text.learn_bpe(["a", "b"], 257), max_tokens=24, per_token=True)


@pytest.fixture(scope="module", params=list(CONFIGS))
def network(request, reads):
    torch.manual_seed(1)
    network = models.create(f"hf:{request.param}", config=CONFIGS[request.param], text=reads)
    with torch.no_grad():  # sure enough of some tokens that texts differ in what they continue with
        network.network.get_output_embeddings().weight.mul_(30)
    return network


def batch_of(*lengths, index=None, epoch=0):
    """Texts, each of a prompt that is all but its last two tokens, which have labels."""
    rows = [torch.arange(length) % 200 + 1 for length in lengths]
    ids = nn.utils.rnn.pad_sequence(rows, True, PADDING)
    labels = ids.new_full(ids.shape, UNLABELLED)
    for row, length in zip(labels, lengths, strict=True):
        row[length - 2 : length] = 7
    index = torch.arange(len(lengths)) if index is None else index
    return Batch(index, ids, labels, View(3, epoch), labels != UNLABELLED)


LENGTHS = (3, 9, 5, 12, 4, 20)
PROMPTS = torch.tensor(LENGTHS) - 1


def sampler_of(network, **changes):
    settings = {"share": 1.0, "new_tokens": 6, "max_tokens": 24, "end": END, **changes}
    return CompletionSampler(network, PROMPTS, **settings)


def written(batch):
    """Each sample's counted tokens, but the last, which is no input."""
    rows = []
    for ids, counted in zip(batch.inputs.tolist(), batch.counted.tolist(), strict=True):
        rows.append([token for token, counts in zip(ids[1:], counted, strict=False) if counts and token != PADDING])
    return rows


def test_what_is_written_depends_on_seed_epoch_and_sample_alone(network):
    sample = sampler_of(network)
    together = sample(batch_of(*LENGTHS))
    order = torch.tensor([4, 1, 5, 0, 3, 2])
    shuffled = sample(batch_of(*(LENGTHS[k] for k in order), index=order))
    alone = [sample(batch_of(LENGTHS[k], index=torch.tensor([k]))) for k in range(6)]
    assert len({tuple(each) for each in written(together)}) == 6
    assert written(shuffled) == [written(together)[k] for k in order]
    assert [written(each)[0] for each in alone] == written(together)
    assert written(sample(batch_of(*LENGTHS, epoch=1))) != written(together)


def test_a_cache_is_used_where_it_changes_nothing(network, reads):
    name = network.card.name
    sample, plain = sampler_of(network), sampler_of(network)
    plain._cached = False
    assert torch.equal(sample(batch_of(*LENGTHS)).inputs, plain(batch_of(*LENGTHS)).inputs)
    assert sample._cached is (name != "hf:openai-gpt")


def test_texts_fill_all_places_of_a_network_while_others_go_on(reads):
    torch.manual_seed(1)
    network = models.create("hf:gpt2", config=CONFIGS["gpt2"] | {"n_positions": 24}, text=reads)
    sample, plain = sampler_of(network, new_tokens=8, end=None), sampler_of(network, new_tokens=8, end=None)
    plain._cached = False
    assert torch.equal(sample(batch_of(*LENGTHS)).inputs, plain(batch_of(*LENGTHS)).inputs)
    assert sample._cached


def test_a_cache_that_changes_logits_is_left_alone(reads, monkeypatch):
    network = models.create("hf:llama", config=SIZES, text=reads)
    wrong = lambda self, texts, lengths, grown: torch.ones(len(texts), 257)  # noqa: E731
    monkeypatch.setattr(generate.CachedCall, "__call__", wrong)
    sample = sampler_of(network)
    sample(batch_of(*LENGTHS))
    assert sample._cached is False


def test_of_what_is_written_all_counts_and_nothing_has_a_label(network):
    before = batch_of(*LENGTHS)
    some = sampler_of(network, share=0.5)
    after = some(before)
    chosen = [bool((labels == UNLABELLED).all()) for labels in after.labels]
    assert 0 < sum(chosen) < 6
    assert not (after.inputs == PADDING).all(0).any()
    for k, length in enumerate(LENGTHS):
        if not chosen[k]:
            for one, other in zip(before[1:3], after[1:3], strict=True):
                assert torch.equal(one[k, :length], other[k, :length])
            continue
        prompt, ids = int(PROMPTS[k]), after.inputs[k]
        counted = after.counted[k].nonzero()[:, 0].tolist()
        assert torch.equal(ids[:prompt], before.inputs[k, :prompt])
        assert counted == list(range(prompt - 1, int((ids != PADDING).sum())))
        assert len(counted) <= min(6, 25 - prompt)
        assert (after.labels[k] == UNLABELLED).all()
    assert sampler_of(network, share=0.0)(before) is before


class Next(nn.Module):
    """Writes 1, 2, 3, 0 in turn, in whatever mode."""

    def __init__(self, classes=4):
        super().__init__()
        self.classes, self.weight = classes, nn.Parameter(torch.ones(()))
        self.modes = []

    def forward(self, ids):
        self.modes.append((self.training, torch.is_grad_enabled()))
        return 99.0 * self.weight * nn.functional.one_hot((ids.clamp(min=0) + 1) % self.classes, self.classes)


@pytest.mark.parametrize(
    ("changes", "inputs"),
    [({}, [1, 2, 3, 0, 1]), ({"end": 2}, [1]), ({"new_tokens": 3}, [1, 2, 3]), ({"max_tokens": 4}, [1, 2, 3, 0])],
)
def test_a_text_ends_at_its_end_or_at_most_so_long(changes, inputs):
    batch = Batch(torch.tensor([0]), torch.ones(1, 9).long(), torch.ones(1, 9).long(), View(0, 0))
    settings = {"share": 1, "new_tokens": 5, "max_tokens": 16, "end": None, **changes}
    sample = CompletionSampler(Next(), torch.tensor([1]), **settings)
    after = sample(batch)
    assert after.inputs.tolist() == [inputs]
    assert after.counted.tolist() == [[True] * len(inputs)]


def test_the_network_keeps_its_mode_and_the_generators_theirs():
    network, state = Next(), torch.get_rng_state()
    sampler_of(network)(batch_of(3))
    assert set(network.modes) == {(False, False)}
    assert network.training
    assert torch.equal(torch.get_rng_state(), state)


def test_tokens_come_as_often_as_the_softmax_says():
    logits = torch.tensor([[0.0, 1.0, -torch.inf, 2.5]])
    bits = generate.tensor_draw(0, 0, torch.arange(40_000), 1)
    often = torch.bincount(generate._drawn(logits.expand(40_000, 4), bits), minlength=4) / 40_000
    assert often.tolist() == pytest.approx(logits.softmax(-1)[0].tolist(), abs=0.008)
    assert often[2] == 0


def test_a_temperature_near_0_writes_the_likeliest_and_a_high_one_does_not(network):
    cold = written(sampler_of(network, temperature=1e-4)(batch_of(*LENGTHS)))
    assert written(sampler_of(network, temperature=100.0)(batch_of(*LENGTHS))) != cold
    prompts = [(torch.arange(length - 1) % 200 + 1).tolist() for length in LENGTHS]
    likeliest = generate.continued(network, prompts, new_tokens=6, max_tokens=24, end=END)
    for found, expected in zip(cold, likeliest, strict=True):
        assert found == expected[: len(found)]


class Both(Next):
    """Sees what follows."""

    def forward(self, ids):
        return super().forward(ids) + ids.float().mean()


def test_what_is_no_language_model_is_refused():
    with refused(InvalidValueError, "student", got="later"):
        sampler_of(Both())(batch_of(3))
    with refused(InvalidValueError, "student", got="logits (2, 4)"):
        sampler_of(nn.Sequential(Next(), nn.AdaptiveAvgPool2d((1, 4)), nn.Flatten()))(batch_of(3))


def test_what_a_batch_lacks_is_refused():
    with refused(InvalidValueError, "batch.view", got="none"):
        sampler_of(Next())(batch_of(3)._replace(view=None))
    for inputs in ({"student": torch.ones(1, 3).long()}, torch.rand(1, 3)):
        with refused(InvalidTypeError, "batch.inputs"):
            sampler_of(Next())(batch_of(3)._replace(inputs=inputs))


def test_the_likeliest_tokens_are_written(network):
    texts = [[3, 4, 5], [9], list(range(1, 21))]
    found = generate.continued(network, texts, new_tokens=6, max_tokens=24, end=END)
    with evaluation_mode(network), torch.no_grad():
        for text_, written_ in zip(texts, found, strict=True):
            ids = list(text_)
            while len(ids) < min(len(text_) + 6, 25) and (len(ids) == len(text_) or ids[-1] != END):
                ids.append(int(network(torch.tensor([ids]))[0, -1].argmax()))
            assert written_ == ids[len(text_) :]
