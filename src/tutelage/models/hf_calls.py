"""How a network of the transformers library is called, and the files that rebuild it beside its weights."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from tutelage import records
from tutelage.models.sentence import SentenceClassifier
from tutelage.text import TextInput
from tutelage.types import PADDING

if TYPE_CHECKING:
    from tutelage.models.card import Card

OWN = "tutelage"
"""Key of a saved ``config.json`` with what this package adds to the library's."""
OF_LABELS = "multi_label_classification"
"""What a ``config.json`` calls a network of several labels a sample."""
INDEX = "model.safetensors.index.json"
"""File by which transformers finds the weights in files of other names than its own."""


@dataclass(frozen=True)
class HubCall:
    """Call such a network, and take its logits.

    Attributes:
        kind: what the network classifies; see `names.HF_KINDS`.
        classes: number of logits to keep, from the first: a language model may have more than its tokenizer has tokens.
        text: what it reads if it reads text; ``None`` for images.
        pad: token id that stands where a text has ended.
        sentence: poolings of a sentence encoder, and what follows them.
    """

    kind: str
    classes: int
    text: TextInput | None = None
    pad: int = 0
    sentence: dict[str, Any] | None = None

    def __call__(self, network: nn.Module, inputs: Tensor) -> Tensor:
        """Return the logits ``(batch, classes)``, or of each token ``(batch, tokens, classes)``.

        What stands behind a text takes no part, whatever it is. Of a row that is padding alone the first token does, as
        an average over none would not be finite.

        Args:
            network: network of the library.
            inputs: ids ``(batch, tokens)`` int64, `PADDING` behind a text; or images.
        """
        if self.text is None:
            return network(inputs).logits
        padding = inputs == PADDING
        mask = ~padding
        mask[:, 0] = True
        arguments: dict[str, Any] = {"input_ids": inputs.masked_fill(padding, self.pad), "attention_mask": mask.long()}
        logits: Tensor = network(**arguments).logits
        return logits if logits.shape[-1] == self.classes else logits[..., : self.classes]

    def files(self, network: Any, card: Card) -> dict[str, str]:
        """Return the content of the files beside the weights, by name, from which transformers reads the network too.

        They are ``config.json``, an index that names the file of the weights, and the tokenizer's. There is no index
        where a part is frozen, as that need not be in the file.
        """
        described = network.encoder if isinstance(network, SentenceClassifier) else network
        config = json.loads(described.config.to_json_string())
        config.pop("use_cache", None)  # It is off while the network is trained.
        config["architectures"] = [type(described).__name__]
        if self.kind != "causal":
            names = card.class_names or [f"LABEL_{k}" for k in range(card.classes)]
            config["id2label"] = {str(k): name for k, name in enumerate(names)}
            config["label2id"] = {name: k for k, name in enumerate(names)}
        if card.task == "labels":
            config["problem_type"] = OF_LABELS
        elif config.get("problem_type") == OF_LABELS:
            del config["problem_type"]
        config[OWN] = {"kind": self.kind, **(self.sentence or {})}
        files = {records.NETWORK: json.dumps(config, indent=1, sort_keys=True, ensure_ascii=False) + "\n"}
        if all(parameter.requires_grad for parameter in network.parameters()):
            state = network.state_dict()
            index = {
                "metadata": {"total_size": sum(value.nbytes for value in state.values())},
                "weight_map": dict.fromkeys(sorted(state), records.STUDENT),
            }
            files[INDEX] = json.dumps(index, indent=1) + "\n"
        return files if self.text is None else files | self.text.tokenizer.files()


class CachedCall:
    """Calls of a language model on texts that grow by a token from call to call: earlier tokens are not computed again.

    The first texts are padded in front, so that each one's tokens are in a row, whatever the others' lengths.

    Args:
        network: language model of the library.
        call: how it is called.

    Raises:
        ValueError: if it has no argument for a cache.
    """

    def __init__(self, network: nn.Module, call: HubCall) -> None:
        from transformers import DynamicCache

        taken, config = inspect.signature(network.forward).parameters, cast(Any, network).config
        names = [name for name in ("cache", "past_key_values") if name in taken]  # of newer versions, of older ones
        if not names:
            raise ValueError("a network without a cache")
        self._network, self._call = network, call
        self._arguments: dict[str, Any] = {names[0]: DynamicCache(config=config), "use_cache": True}
        if "logits_to_keep" in taken:
            self._arguments["logits_to_keep"] = 1
        self._takes_places = "position_ids" in taken
        self._mask: Tensor | None = None

    def __call__(self, texts: Tensor, lengths: Tensor, grown: Tensor) -> Tensor:
        """Return the logits of each text's next token, ``(batch, classes)``.

        Args:
            texts: ids ``(batch, width)`` int64.
            lengths: number of each text's tokens, ``(batch,)``, at least 1.
            grown: whether a text has one more than at the call before, ``(batch,)`` bool; others' logits mean nothing.
        """
        if self._mask is None:
            columns = torch.arange(int(lengths.max()), device=texts.device) - (lengths.max() - lengths)[:, None]
            self._mask = (columns >= 0).long()
            ids, places = texts.gather(1, columns.clamp(min=0)), columns.clamp(min=0)
            ids = ids.masked_fill(self._mask == 0, self._call.pad)
        else:
            self._mask = torch.cat([self._mask, grown[:, None].long()], 1)
            # A text that has ended may be longer than what the network reads: its last token is a target alone.
            places = (lengths - 1).where(grown, 0)[:, None]
            ids = texts.gather(1, places)
        arguments = self._arguments | ({"position_ids": places} if self._takes_places else {})
        logits: Tensor = self._network(input_ids=ids, attention_mask=self._mask, **arguments).logits
        return logits[:, -1, : self._call.classes]
