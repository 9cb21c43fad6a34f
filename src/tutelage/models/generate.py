"""Completions that a language model writes, in place of those of a batch's samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from tutelage.checks import widened
from tutelage.errors import InvalidTypeError, InvalidValueError
from tutelage.models.classifier import Classifier
from tutelage.models.hf_calls import CachedCall
from tutelage.rng import ON_POLICY, WRITTEN, tensor_draw, tensor_integers, tensor_series, view_uniform
from tutelage.submodules import evaluation_mode
from tutelage.types import PADDING, UNLABELLED, Batch

NextLogits: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""What returns the logits of texts' next tokens: see `CachedCall`."""
_LEVELS = 2**30
"""Parts that a distribution is drawn in: their sums are whole numbers, and so the same in any order of summation."""
_PROBED = 11
"""Number of tokens that a network is tried on."""
_COLD = 1e-9
"""Temperature at which the likeliest token is drawn."""
_CLOSE = 1e-4
"""Largest difference between logits that are to be the same, relative to the largest."""


class CompletionSampler:
    """Lets a language model write the completions of some of a batch's samples.

    Sample ``i`` is one of them if a hash of (seed, epoch, ``i``), uniform in [0, 1), is below ``share``; the ``t``-th
    token that is written for it is drawn from ``softmax(z / temperature)`` by a hash of (seed, epoch, ``i``, ``t``). So
    neither the other samples of a batch nor any generator's state decide what is drawn. The network is called in
    evaluation mode, without gradients, and with a cache where its logits are the same with one.

    Args:
        network: language model, called with ids ``(batch, tokens)`` int64, `PADDING` behind a text; it returns logits
            ``(batch, tokens, classes)``, each of a token and those before it. A `Classifier` or any module.
        prompts: number of tokens of each sample's prompt, ``(samples,)`` int64, at least 1.
        share: share of the samples, in [0, 1].
        new_tokens: largest number of tokens that are written, at least 1.
        max_tokens: largest number of tokens that the network reads.
        end: token that ends a text and is written last; ``None`` for none.
        temperature: divisor of the logits, > 0.

    Source: the samples of Agarwal et al., "On-Policy Distillation of Language Models: Learning from Self-Generated
        Mistakes", ICLR 2024, arXiv 2306.13649, where a whole batch is drawn with probability ``share``.

    Example:
        >>> from tutelage.types import Batch, View
        >>> class Next(nn.Module):  # writes 1, 2, 3, 0
        ...     def forward(self, ids):
        ...         return 99.0 * nn.functional.one_hot((ids + 1) % 4, 4)
        >>> ids, labels = torch.tensor([[0, 2, 2]]), torch.tensor([[-100, 2, 0]])
        >>> batch = Batch(torch.tensor([0]), ids, labels, View(seed=0, epoch=0), labels != -100)
        >>> sampler = CompletionSampler(Next(), torch.tensor([1]), share=1, new_tokens=8, max_tokens=16, end=0)
        >>> sampler(batch).inputs, sampler(batch).counted
        (tensor([[0, 1, 2, 3]]), tensor([[True, True, True, True]]))
    """

    def __init__(
        self,
        network: nn.Module,
        prompts: Tensor,
        *,
        share: float,
        new_tokens: int,
        max_tokens: int,
        end: int | None,
        temperature: float = 1.0,
    ) -> None:
        self.network, self.prompts, self.share = network, prompts, share
        self.new_tokens, self.max_tokens, self.end, self.temperature = new_tokens, max_tokens, end, temperature
        self._cached: bool | None = None

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Batch:
        """Return the batch with the completions that the network writes, or as it is if none of its samples is to be.

        Of a sample with such a completion the tokens of this count and no others, and none has a label: what the
        network wrote is no truth. The other samples keep theirs.

        Raises:
            TypeError: if the inputs are no ids of one kind.
            ValueError: if the batch has no view, whose seed and epoch are drawn by, or the network is no causal
                language model.
        """
        if batch.view is None:
            instead = "type batch._replace(view=tutelage.data.View(seed=0, epoch=epoch))"
            raise InvalidValueError("batch.view", "the seed and the epoch that samples are drawn by", "none", instead)
        if not isinstance(batch.inputs, Tensor) or batch.inputs.is_floating_point() or batch.inputs.dim() != 2:
            got = f"a tensor {tuple(batch.inputs.shape)}" if isinstance(batch.inputs, Tensor) else "views by name"
            expected = "token ids (batch, tokens), the same for both networks"
            raise InvalidTypeError("batch.inputs", expected, got, "give those")
        (rows,) = (view_uniform(batch.view, batch.index.cpu().numpy(), ON_POLICY) < self.share).nonzero()
        if not len(rows):
            return batch
        device = self._device
        index, ids, labels = (each.to(device) for each in (batch.index, batch.inputs, batch.labels))
        counted = labels != UNLABELLED if batch.counted is None else batch.counted.to(device)
        chosen = torch.from_numpy(rows).to(device)
        begins = self.prompts.to(device)[index[chosen]]
        texts, ends = self._write(ids[chosen], begins, tensor_draw(*batch.view, index[chosen], WRITTEN))
        width = max(int(ends.max()) - 1, ids.shape[1])
        places = torch.arange(width, device=device)
        ids, labels, counted = (
            nn.functional.pad(each, (0, width - each.shape[1]), value=value)
            for each, value in ((ids, PADDING), (labels, UNLABELLED), (counted, False))
        )
        # A text's last token is a target alone, and each target stands in the place of the token before it.
        before_last = places < ends[:, None] - 1
        texts = nn.functional.pad(texts, (0, max(0, width - texts.shape[1])))[:, :width]
        ids[chosen] = texts.where(before_last, PADDING)
        labels[chosen] = UNLABELLED
        counted[chosen] = before_last & (places >= begins[:, None] - 1)
        longest = int((ids != PADDING).any(0).nonzero().max()) + 1
        return batch._replace(
            index=index, inputs=ids[:, :longest], labels=labels[:, :longest], counted=counted[:, :longest]
        )

    def _write(self, ids: Tensor, begins: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
        """Continue texts behind their prompts; return them, and the number of each one's tokens.

        Args:
            ids: texts, ``(batch, width)``.
            begins: number of each prompt's tokens, ``(batch,)``.
            bits: hash of each text, ``(batch,)``.
        """
        self.prepare()
        limits = begins + (self.max_tokens + 1 - begins).clamp(0, self.new_tokens)
        columns = torch.arange(int(limits.max()), device=ids.device)
        texts = nn.functional.pad(ids, (0, max(0, len(columns) - ids.shape[1])))[:, : len(columns)]
        texts = texts.where(columns < begins[:, None], PADDING)
        draws = tensor_series(bits, int((limits - begins).max()))
        lengths, going = begins.clone(), limits > begins
        with evaluation_mode(self.network):
            next_logits = (self._with_cache() if self._cached else None) or self._of_whole_texts
            for draw in draws.unbind(1):
                tokens = _drawn(next_logits(texts, lengths, going) / self.temperature, draw)
                texts[going, lengths[going]] = tokens[going]
                lengths += going
                going = going & (lengths < limits)
                if self.end is not None:
                    going = going & (tokens != self.end)
                if not going.any():
                    break
        return texts, lengths

    def prepare(self) -> None:
        """Try the network on a few tokens: is it a causal language model, and are logits with a cache the same?

        Raises:
            ValueError: if its logits are not of each token and those before it.
        """
        if self._cached is not None:
            return
        device = self._device
        # In the network's own precision: rounding is not what this is about.
        with evaluation_mode(self.network), torch.no_grad(), torch.autocast(device.type, enabled=False):
            places = torch.arange(2 * _PROBED, device=device).reshape(2, _PROBED)[:, : self.max_tokens]
            texts = (places % 3 == 1).long()  # of the two tokens that any vocabulary has
            self._require_causal(texts)
            self._cached = self._has_exact_cache(texts)

    @property
    def _device(self) -> torch.device:
        return next((parameter.device for parameter in self.network.parameters()), torch.device("cpu"))

    def _require_causal(self, texts: Tensor) -> None:
        whole, half, got = self.network(texts), (texts.shape[1] + 1) // 2, ""
        if not isinstance(whole, Tensor) or whole.dim() != 3 or whole.shape[:2] != texts.shape:
            got = f"logits {tuple(whole.shape)}" if isinstance(whole, Tensor) else type(whole).__name__
        elif not _same(whole[:, :half], self.network(texts[:, :half])):
            got = "one whose logits depend on later tokens"
        if got:
            expected = "a language model, whose logits are of each token and those before it"
            raise InvalidValueError("student", expected, got, "name one such as hf:llama, or leave on_policy out")

    def _has_exact_cache(self, texts: Tensor) -> bool:
        """Whether logits with a cache, of texts of unlike lengths that grow, are those of whole texts."""
        if (longest := texts.shape[1]) < 4:
            return False
        lengths = torch.tensor([1, longest - 2], device=texts.device)
        grown = torch.ones(2, dtype=torch.bool, device=texts.device)
        try:
            if (cached := self._with_cache()) is None:
                return False
            steps = [(texts, lengths + k, grown) for k in range(3)]
            return all(_same(cached(*step), self._of_whole_texts(*step)) for step in steps)
        except Exception:  # noqa: BLE001  whatever a network of the library raises that keeps something else
            return False

    def _with_cache(self) -> NextLogits | None:
        network = self.network
        if not isinstance(network, Classifier) or network.call is None or network.outputs is not None:
            return None
        return CachedCall(network.network, network.call)

    def _of_whole_texts(self, texts: Tensor, lengths: Tensor, going: Tensor) -> Tensor:
        own = lengths[going]
        logits = self.network(texts[going, : int(own.max())])[torch.arange(len(own), device=own.device), own - 1]
        return logits.new_zeros(len(texts), logits.shape[-1]).masked_scatter(going[:, None], logits)


@torch.no_grad()
def continued(
    network: nn.Module, texts: Sequence[Sequence[int]], *, new_tokens: int, max_tokens: int, end: int | None
) -> list[list[int]]:
    """Return what a language model writes behind texts, each time its likeliest token.

    Args:
        network: as of `CompletionSampler`.
        texts: ids of each text, at least one.
        new_tokens: largest number of tokens that are written, at least 1.
        max_tokens: largest number of tokens that the network reads.
        end: token that ends a text; ``None`` for none.

    Returns:
        The ids that were written, of each text, with the token that ends it.

    Raises:
        ValueError: if the network is no causal language model.
    """
    prompts = torch.tensor([len(text) for text in texts])
    writer = CompletionSampler(
        network, prompts, share=1, new_tokens=new_tokens, max_tokens=max_tokens, end=end, temperature=_COLD
    )
    ids = torch.full((len(texts), int(prompts.max())), PADDING)
    for k, text in enumerate(texts):
        ids[k, : len(text)] = torch.tensor(text)
    device = writer._device
    written, ends = writer._write(ids.to(device), prompts.to(device), torch.zeros_like(prompts, device=device))
    return [row[len(text) : last] for row, text, last in zip(written.tolist(), texts, ends.tolist(), strict=True)]


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=0, atol=_CLOSE * float(other.abs().max()))


def _drawn(logits: Tensor, bits: Tensor) -> Tensor:
    """Draw a class of each row from its softmax, to within ``2**-31`` in each probability: ``(batch,)`` int64.

    Args:
        logits: ``(batch, classes)``.
        bits: hash of each row, ``(batch,)`` int64.
    """
    cumulative = (widened(logits).softmax(-1) * _LEVELS).round().long().cumsum(-1)
    levels = tensor_integers(bits, cumulative[:, -1])
    classes = torch.searchsorted(cumulative, levels[:, None], right=True)[:, 0]
    return classes.clamp(max=logits.shape[-1] - 1)  # Logits that are not finite are the step's to tell of.
