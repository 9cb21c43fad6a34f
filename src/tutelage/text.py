"""Text as token ids: the one reader of text, as `images` is of pictures. No torch."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tutelage import plain_files, records
from tutelage.errors import InvalidValueError, NotFoundError, missing_extra, one_line, printable
from tutelage.hub_files import folder_of

END = "<|end|>"
"""Token that ends a text in a tokenizer that `learn_bpe` learned."""
_FILES = (records.TOKENIZER, "tokenizer_config.json", "chat_template.jinja")
_LARGEST = 256 * 2**20  # bytes of a file; the largest that are published have 40 MB
_PRINTED = [*range(33, 127), *range(161, 173), *range(174, 256)]
_BYTES = {chr(byte): byte for byte in _PRINTED}
_BYTES |= {chr(256 + k): byte for k, byte in enumerate(byte for byte in range(256) if byte not in _PRINTED)}
"""Bytes by the characters that byte-level vocabularies write for them: A. Radford et al., 2019, as cited below."""
_BLANK = "\u2581"
"""What vocabularies of SentencePiece write for a blank."""
_CHUNK = 1024  # texts encoded at once: what the library returns of each takes more room than its ids


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer, which the content of its file determines.

    Attributes:
        content: text of its ``tokenizer.json``, as the ``tokenizers`` library reads it, without truncation and padding.
        template: chat template in Jinja, or ``None``.
        end: token that ends a text, or ``None``.
        begin: token that begins a text, which a template may write, or ``None``.
        padding: token that stands where a text has ended, or ``None``.
    """

    content: str
    template: str | None = None
    end: str | None = None
    begin: str | None = None
    padding: str | None = None

    @cached_property
    def size(self) -> int:
        """Number of tokens: ids are below it."""
        return max(self._parsed.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with what ids texts get; the template does not matter to it."""
        return hashlib.sha256(self.content.encode()).hexdigest()[:16]

    @cached_property
    def end_id(self) -> int | None:
        """Id of the token that ends a text, or ``None``."""
        return None if self.end is None else self._parsed.token_to_id(self.end)

    @cached_property
    def padding_id(self) -> int | None:
        """Id of the token that stands where a text has ended, or ``None``."""
        return None if self.padding is None else self._parsed.token_to_id(self.padding)

    @cached_property
    def tokens(self) -> str:
        """16 hexadecimal digits of the tokens alone, their ids and merges: what a network's weights were trained on.

        Files that the library wrote in several versions have the same; what is done to a text before and behind does
        not matter to it.
        """
        written = json.loads(self._parsed.to_str())
        added = [(each["id"], each["content"]) for each in written["added_tokens"]]
        return hashlib.sha256(json.dumps([written["model"], added], sort_keys=True).encode()).hexdigest()[:16]

    def files(self) -> dict[str, str]:
        """Return the content of the files, by name, from which `tokenizer_of` and transformers read it."""
        named = {"bos_token": self.begin, "eos_token": self.end, "pad_token": self.padding}
        settings = {"tokenizer_class": "PreTrainedTokenizerFast"} | {k: v for k, v in named.items() if v is not None}
        contents = (self.content, json.dumps(settings, indent=1, ensure_ascii=False) + "\n", self.template)
        return {name: each for name, each in zip(_FILES, contents, strict=True) if each is not None}

    @cached_property
    def ids_by_bytes(self) -> Mapping[bytes, tuple[int, ...]]:
        """Ids by the bytes that a token stands for in a text.

        A byte-level tokenizer's tokens have bytes of their own, of whole characters or not; others' are those of the
        token decoded alone, which several may share.
        """
        vocabulary = self._parsed.get_vocab(with_added_tokens=True)
        of_bytes = '"ByteLevel"' in json.dumps(json.loads(self.content).get("decoder"))
        added = self._parsed.get_added_tokens_decoder()
        ids: dict[bytes, tuple[int, ...]] = {}
        for piece, token in vocabulary.items():
            if token in added:
                spelled = piece.encode()
            elif of_bytes and all(character in _BYTES for character in piece):
                spelled = bytes(_BYTES[character] for character in piece)
            else:
                spelled = self._parsed.decode([token], skip_special_tokens=False).encode()
            ids[spelled] = (*ids.get(spelled, ()), token)
        return ids

    @cached_property
    def ids_by_text(self) -> Mapping[str, tuple[int, ...]]:
        """Ids by a token's text, as `ids_by_bytes` has it, and by what the vocabulary writes for it."""
        ids: dict[str, tuple[int, ...]] = {}
        for spelled, tokens in self.ids_by_bytes.items():
            with suppress(UnicodeDecodeError):  # a part of a character
                ids[spelled.decode()] = tokens
        for piece, token in self._parsed.get_vocab(with_added_tokens=True).items():
            if token not in (known := ids.get(piece, ())):
                ids[piece] = (*known, token)
        return ids

    def same_tokens(self, other: Tokenizer) -> list[tuple[int, int]]:
        """Return the ids of this tokenizer's tokens that another has too, each beside the other's.

        These are the tokens that stand for the same bytes inside a text, and those that end one. Bytes that several
        tokens stand for are left out, as nothing says which of them is meant, and so are other added tokens.
        """
        mine, others = self._ids_inside, other._ids_inside
        pairs = [(mine[spelled], others[spelled]) for spelled in mine.keys() & others.keys()]
        if self.end_id is not None and other.end_id is not None:
            pairs.append((self.end_id, other.end_id))
        return sorted(pairs)

    @cached_property
    def _ids_inside(self) -> dict[bytes, int]:
        """Ids by the bytes that one token stands for inside a text, without added tokens."""
        added = {*self._parsed.get_added_tokens_decoder(), self.end_id}
        content = json.loads(self.content)
        ids = {spelled: [*{*tokens} - added] for spelled, tokens in self.ids_by_bytes.items()}
        if _BLANK in json.dumps([content.get("decoder"), content.get("pre_tokenizer")], ensure_ascii=False):
            # Decoded alone, a token loses the blank before it.
            ids = {}
            for piece, token in self._parsed.get_vocab(with_added_tokens=False).items():
                byte = re.fullmatch("<0x([0-9A-F]{2})>", piece)
                spelled = bytes.fromhex(byte[1]) if byte else piece.replace(_BLANK, " ").encode()
                ids.setdefault(spelled, []).extend([token] * (token not in added))
        return {spelled: tokens[0] for spelled, tokens in ids.items() if len(tokens) == 1}

    def piece(self, token: int) -> str:
        """Return a token as the vocabulary writes it, to show it."""
        return str(self._parsed.id_to_token(token))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, without the tokens that models expect around it."""
        return str(self._parsed.decode(list(ids), skip_special_tokens=True))

    def encode(self, texts: Sequence[str], *, max_tokens: int | None = None, special: bool = True) -> list[list[int]]:
        """Return each text's ids, cut to ``max_tokens``; with ``special``, with the tokens that models expect around.

        Raises:
            ValueError: if ``max_tokens`` leaves a text no token of its own.
        """
        self._truncate(max_tokens, special=special)
        encode = self._parsed.encode_batch_fast
        return [each.ids for part in _parts(texts) for each in encode(part, add_special_tokens=special)]

    def locate(
        self, texts: Sequence[str], *, max_tokens: int | None = None, special: bool = True
    ) -> Iterator[tuple[list[int], list[tuple[int, int]]]]:
        """Yield each text's ids, and where in it each one's characters start and end; ``(0, 0)`` for added tokens.

        The ids are those of `encode`.
        """
        self._truncate(max_tokens, special=special)
        for part in _parts(texts):
            for each in self._parsed.encode_batch(part, add_special_tokens=special):
                yield each.ids, each.offsets

    def render(self, messages: Sequence[Mapping[str, Any]], *, answer_next: bool = False) -> str:
        """Write a conversation as text by the chat template, which runs in Jinja's sandbox.

        Args:
            messages: messages with ``role`` and ``content``.
            answer_next: whether to end in what comes before an answer.

        Raises:
            ValueError: if there is no template, or it refuses the messages.
        """
        try:
            return str(
                self._template.render(
                    messages=messages, add_generation_prompt=answer_next, eos_token=self.end, bos_token=self.begin
                )
            )
        except Exception as error:  # of whatever the template computes
            got = f"one that does not take it ({type(error).__name__}: {one_line(error)})"
            instead = "mend the messages, or name another tokenizer"
            raise InvalidValueError("chat template", "one that writes a conversation", got, instead) from error

    @cached_property
    def _template(self) -> Any:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        if self.template is None:
            instead = "name a folder whose tokenizer_config.json or chat_template.jinja has one"
            raise InvalidValueError("data.tokenizer", "a tokenizer with a chat template", "one without", instead)

        def refuse(reason: str) -> None:
            raise TemplateError(reason)

        # Blanks around blocks and these functions are what published templates are written for.
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = refuse
        environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
        return environment.from_string(self.template)

    @cached_property
    def _parsed(self) -> Any:
        return _library().Tokenizer.from_str(self.content)

    def _truncate(self, max_tokens: int | None, *, special: bool) -> None:
        if max_tokens is None:
            self._parsed.no_truncation()
            return
        added = self._parsed.num_special_tokens_to_add(is_pair=False) if special else 0
        if max_tokens <= added:
            expected = f"more than the {added} tokens that the tokenizer adds to each text"
            raise InvalidValueError("data.max_tokens", expected, max_tokens, "type data.max_tokens=128")
        self._parsed.enable_truncation(max_tokens)


def tokenizer_of(name: str, *, what: str = "data.tokenizer") -> Tokenizer:
    """Return the tokenizer of a file, a folder, ``package:...`` or a name on the Hub; nothing in it is executed.

    A folder's ``tokenizer_config.json`` tells the tokens that begin, end and pad a text, and the chat template, unless
    ``chat_template.jinja`` has it. What the file says of truncation and padding is left out.

    Args:
        name: a path of a ``tokenizer.json``, or a folder as for `folder_of`.
        what: what an error is about.

    Raises:
        FileNotFoundError: there is no such file or folder, or no tokenizer in it.
        ValueError: a file is damaged.
        ConnectionError: the Hub cannot be reached.
        ImportError: ``tokenizers`` is missing.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return _checked(Tokenizer(_content(path, what)), path, what)
    folder = folder_of(name, _FILES, what=what)
    path = folder / _FILES[0]
    if not path.is_file():
        instead = "name a folder with one, or learn one: {bpe: 2000}"
        raise NotFoundError(what, "a folder with a tokenizer.json", f"none in {folder.name}", instead)
    settings = _json(folder / _FILES[1], what) if (folder / _FILES[1]).is_file() else {}
    if (folder / _FILES[2]).is_file():
        settings["chat_template"] = _text(folder / _FILES[2], what)
    templates = settings.get("chat_template")
    if isinstance(templates, list):  # several by name
        named = {each.get("name"): each.get("template") for each in templates if isinstance(each, dict)}
        templates = named.get("default")
    return _checked(
        Tokenizer(
            _content(path, what),
            template=templates if isinstance(templates, str) else None,
            end=_token(settings.get("eos_token")),
            begin=_token(settings.get("bos_token")),
            padding=_token(settings.get("pad_token")),
        ),
        path,
        what,
    )


def learn_bpe(texts: Iterable[str], size: int = 2000) -> Tokenizer:
    """Learn a tokenizer: byte-pair encoding of UTF-8's bytes, of at most ``size`` tokens.

    The same texts in any order give the same tokenizer, for any number of threads. Id 0 is `END`; then come the 256
    bytes, and a token per merge of the most frequent pair, so that any text can be encoded.

    Args:
        texts: texts to learn from.
        size: number of tokens, at least 257.

    Source: R. Sennrich, B. Haddow, A. Birch, "Neural machine translation of rare words with subword units", ACL 2016;
        on bytes: A. Radford et al., "Language models are unsupervised multitask learners", 2019.
    """
    library = _library()
    learned = library.Tokenizer(library.models.BPE())
    learned.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    learned.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    learned.train_from_iterator(texts, trainer)
    return Tokenizer(_plain(json.loads(learned.to_str())), end=END)


def _parts(texts: Sequence[str]) -> Iterator[list[str]]:
    return (list(texts[start : start + _CHUNK]) for start in range(0, len(texts), _CHUNK))


def _library() -> Any:
    try:
        import tokenizers
        import tokenizers.decoders
        import tokenizers.models
        import tokenizers.pre_tokenizers
        import tokenizers.trainers
    except ImportError as error:
        raise missing_extra("data.tokenizer", "tokenizers for text", "text", error) from error
    return tokenizers


def _checked(tokenizer: Tokenizer, path: Path, what: str) -> Tokenizer:
    try:
        if not tokenizer.size:
            raise ValueError("it has no tokens")
        if tokenizer.end is not None and tokenizer.end_id is None:
            raise ValueError(f"its end token {tokenizer.end!r} is not among its tokens")
    except InvalidValueError:
        raise
    except Exception as error:  # the library raises no other class
        raise _damaged(path, what, error) from error
    return tokenizer


def _content(path: Path, what: str) -> str:
    return _plain(_json(path, what))


def _plain(content: Mapping[str, Any]) -> str:
    """Return the content of a tokenizer's file, which pads and cuts nothing by itself."""
    return json.dumps({**content, "truncation": None, "padding": None}, ensure_ascii=False)


def _json(path: Path, what: str) -> dict[str, Any]:
    try:
        value = plain_files.parse_json(plain_files.read(path, _LARGEST))
        if not isinstance(value, dict):
            raise ValueError("it is no object")
    except (OSError, ValueError) as error:
        raise _damaged(path, what, error) from error
    return value


def _text(path: Path, what: str) -> str:
    try:
        return plain_files.read(path, _LARGEST).decode()
    except (OSError, ValueError) as error:
        raise _damaged(path, what, error) from error


def _damaged(path: Path, what: str, error: Exception) -> InvalidValueError:
    got = f"{path}: {printable(one_line(error))}"
    return InvalidValueError(
        what, "a tokenizer that the tokenizers library reads", got, "fetch it again, or name another"
    )


def _token(value: object) -> str | None:
    """Return a token of ``tokenizer_config.json``, which has it as text or as an object with its ``content``."""
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


@dataclass(frozen=True, kw_only=True)
class TextInput:
    """What a network of text reads.

    Attributes:
        tokenizer: tokenizer of its ids.
        max_tokens: largest number of tokens of a sample, at least 1.
        per_token: whether each token has a label, as in a language model, instead of each text.
        next_token: whether that label is the next token, as in a language model, and not one of the network's classes.
    """

    tokenizer: Tokenizer
    max_tokens: int
    per_token: bool = False
    next_token: bool = True
