"""Text as token ids: the one reader of text, as `images` is of pictures. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer, which the content of its file determines.

    Attributes:
        content: text of its ``tokenizer.json``, as the ``tokenizers`` library reads it.
        template: chat template in Jinja, or ``None``.
        end: token that ends a text, or ``None``.
    """

    content: str
    template: str | None = None
    end: str | None = None

    @property
    def size(self) -> int:
        """Number of tokens: ids are below it."""
        raise NotImplementedError

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with the tokenizer."""
        raise NotImplementedError

    def encode(self, texts: Sequence[str], *, max_tokens: int | None = None, special: bool = True) -> list[list[int]]:
        """Return each text's ids, cut to ``max_tokens``; with ``special``, with those that models expect around it."""
        raise NotImplementedError


def tokenizer_of(name: str) -> Tokenizer:
    """Return the tokenizer of a file, a folder, ``package:...`` or a name on the Hub."""
    raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class TextInput:
    """What a network of text reads.

    Attributes:
        tokenizer: tokenizer of its ids.
        max_tokens: largest number of tokens of a sample, at least 1.
        per_token: whether each token has a label, as in a language model, instead of each text.
    """

    tokenizer: Tokenizer
    max_tokens: int
    per_token: bool = False
