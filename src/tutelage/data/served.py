"""A served teacher's answers: the most likely tokens at each position, as servers of language models return them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tutelage.errors import InvalidValueError, printable
from tutelage.text import Tokenizer
from tutelage.types import Served, Sparse

NEVER = -1e4
"""Log-probability that stands for 0: servers write -9999 or -Infinity."""
SLACK = 1e-3
"""How far servers' rounding may take a sum of probabilities above 1, or a mean above the largest."""
UNSAID, AMONG = -1, -2
"""What stands for the token at a position: the answer does not say it, or it is one of those that it names."""
_BY_ID = "token_id:"
_SERVER = "ask again where an answer is cut; else serve the texts by data.tokenizer, or type the server's there"


@dataclass(frozen=True)
class Answers:
    """What a server answered for one sample.

    Attributes:
        where: row of the sample, to name it.
        tokens: token at each position, `UNSAID`, or `AMONG` the others, ``(positions,)``.
        counts: number of tokens whose probability each position has, 0 without an answer, ``(positions,)``.
        ids: these tokens, one position's after another's.
        values: their log-probabilities, at most 0.
    """

    where: str
    tokens: NDArray[np.int64]
    counts: NDArray[np.int64]
    ids: NDArray[np.int32]
    values: NDArray[np.float32]

    def digest(self) -> bytes:
        """Return the SHA-256 of what was answered."""
        arrays = (self.tokens, self.counts, self.ids, self.values)
        return hashlib.sha256(b"".join(np.int64(len(each)).tobytes() + each.tobytes() for each in arrays)).digest()

    def first(self, count: int) -> Answers:
        """Return the answers of the first positions."""
        kept = int(self.counts[:count].sum())
        return Answers(self.where, self.tokens[:count], self.counts[:count], self.ids[:kept], self.values[:kept])

    def aligned(self, ids: NDArray[np.int64], counted: NDArray[np.bool_], tokenizer: Tokenizer) -> Answers:
        """Return the answers at a text's counted tokens.

        Args:
            ids: all tokens of the text.
            counted: whether each is to be learned.
            tokenizer: tokenizer of the ids, to show them.

        Raises:
            InvalidValueError: there are as many answers neither as tokens that are counted nor as tokens in all, or one
                is missing, or of another token; it names the row and the position.
        """
        wanted = np.flatnonzero(counted)
        if len(self.counts) not in (len(wanted), len(ids)):
            expected = f"an answer for each of the {len(wanted)} tokens to learn, or of all {len(ids)}, in {self.where}"
            raise InvalidValueError("data.top_logprobs", expected, len(self.counts), _SERVER)
        places = wanted if len(self.counts) == len(ids) else np.arange(len(wanted))
        tokens, counts = self.tokens[places], self.counts[places]
        starts = np.concatenate([[0], np.cumsum(self.counts)])[places]
        chosen = _ranges(starts, counts)
        rows = np.repeat(np.arange(len(places)), counts)
        among = np.isin(np.arange(len(places)), rows[self.ids[chosen] == ids[wanted][rows]])
        wrong = (counts == 0) | ((tokens >= 0) & (tokens != ids[wanted])) | ((tokens == AMONG) & ~among)
        for number in np.flatnonzero(wrong)[:1]:
            other = tokenizer.piece(int(tokens[number])) if tokens[number] >= 0 else "another"
            got = printable(repr(other)) if counts[number] else "no answer"
            shown = printable(repr(tokenizer.piece(int(ids[wanted[number]]))))
            expected = f"an answer for {shown}, token {number + 1} of those to learn in {self.where}"
            raise InvalidValueError("data.top_logprobs", expected, got, _SERVER)
        return Answers(self.where, tokens, counts, self.ids[chosen], self.values[chosen])


def _ranges(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the numbers from each start on, as many as its count."""
    before = np.cumsum(counts) - counts
    return np.repeat(starts - before, counts) + np.arange(counts.sum())


def read_answers(value: object, tokenizer: Tokenizer, *, column: str, where: str) -> Answers:
    """Return what a server answered for a sample, of any of these forms.

    * ``{content: [{token, logprob, top_logprobs: [{token, logprob}, ...]}, ...]}``, or that list: chat completions.
    * ``{tokens: [...], top_logprobs: [{token: logprob, ...}, ...]}``: completions.
    * ``[null, {id: {logprob: ...}, ...}, ...]``: a prompt's, of which the first token has none.
    * ``[[{token, logprob}, ...], ...]`` or ``[{token: logprob, ...}, ...]``.

    A token is its text, what the vocabulary writes for it, ``bytes`` beside it, ``token_id:<id>``, or its id.

    Raises:
        ValueError: it is none of these, a token is unknown, or log-probabilities are not the largest of a distribution.
    """
    tokens: list[int] = []
    counts: list[int] = []
    ids: list[int] = []
    values: list[float] = []
    positions = _positions(value, column)
    for number, position in enumerate(positions, start=1):
        try:
            token, kept = _answer(position, tokenizer)
            if kept:
                _check_mass(np.array([*kept.values()]), tokenizer.size)
        except ValueError as error:
            raise ValueError(f"{column}, position {number} of {len(positions)}: {error}") from error
        tokens.append(token)
        counts.append(len(kept))
        ids += kept.keys()
        values += kept.values()
    return Answers(
        where,
        np.array(tokens, np.int64),
        np.array(counts, np.int64),
        np.array(ids, np.int32),
        np.array(values, np.float32),
    )


def _positions(value: object, column: str) -> Sequence[object]:
    if isinstance(value, dict):
        if isinstance(value.get("content"), list):
            value = value["content"]
        elif isinstance(tokens := value.get("tokens"), list) and isinstance(top := value.get("top_logprobs"), list):
            if len(tokens) != len(top):
                raise ValueError(f"{len(tokens)} tokens and {len(top)} top_logprobs in {column}")
            value = [{"token": token, "top_logprobs": each} for token, each in zip(tokens, top, strict=True)]
    if not isinstance(value, list):
        raise ValueError(f"no list of answers, one for each token, in {column!r}")
    return value


def _answer(position: object, tokenizer: Tokenizer) -> tuple[int, dict[int, float]]:
    """Return a position's token, `UNSAID` or `AMONG`, and log-probabilities by id."""
    if position is None:
        return UNSAID, {}
    if not (isinstance(position, dict) and "top_logprobs" in position):
        of_prompt = isinstance(position, dict) and any(isinstance(each, dict) for each in position.values())
        return AMONG if of_prompt else UNSAID, dict(_entries(position, tokenizer))
    token = _id_of(position.get("token"), position.get("bytes"), tokenizer)
    kept = dict(_entries(position["top_logprobs"] or [], tokenizer))
    own = position.get("logprob")
    if own is not None and token not in kept and (value := _log_probability(own)) > NEVER + 1:
        kept[token] = value  # One that was sampled need not be among the largest.
    return token, kept


def _entries(value: object, tokenizer: Tokenizer) -> Iterator[tuple[int, float]]:
    seen = set()
    for token, logprob in _pairs(value, tokenizer):
        if token in seen:
            raise ValueError(f"token {tokenizer.piece(token)!r} twice; write ids, as token_id:{token}")
        seen.add(token)
        yield token, _log_probability(logprob)


def _pairs(value: object, tokenizer: Tokenizer) -> Iterator[tuple[int, object]]:
    if isinstance(value, dict):
        for key, entry in value.items():
            if isinstance(entry, dict):  # Its key is an id, which JSON has as text.
                yield _id_of(int(key) if str(key).isdecimal() else key, None, tokenizer), entry.get("logprob")
            elif entry is not None:  # Parquet has all keys in every row.
                yield _id_of(key, None, tokenizer), entry
        return
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise ValueError("no list of tokens with a logprob")
    for entry in value:
        yield _id_of(entry.get("token"), entry.get("bytes"), tokenizer), entry.get("logprob")


def _id_of(token: object, spelled: object, tokenizer: Tokenizer) -> int:
    if isinstance(token, str) and (number := token.removeprefix(_BY_ID)) != token and number.isdecimal():
        token = int(number)
    if isinstance(token, int) and not isinstance(token, bool):
        if not 0 <= token < tokenizer.size:
            raise ValueError(f"id {token}, where data.tokenizer has {tokenizer.size} tokens")
        return token
    found: tuple[int, ...] = ()
    for each in (spelled, token):
        if isinstance(each, str):
            found = found or tokenizer.ids_by_text.get(each, ())
        elif isinstance(each, list):
            with suppress(TypeError, ValueError):  # no bytes
                found = found or tokenizer.ids_by_bytes.get(bytes(each), ())
    if len(found) != 1:
        which = f"one of the ids {', '.join(map(str, sorted(found)[:3]))}" if found else "unknown to data.tokenizer"
        raise ValueError(f"token {token!r:.40}, {which}; let the server write ids, as token_id:<id>")
    return found[0]


def _log_probability(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value <= 0:
        raise ValueError(f"logprob {value!r:.40}, which is no logarithm of a probability, at most 0")
    return max(float(value), NEVER)


def _check_mass(values: NDArray[np.float64], classes: int) -> None:
    """Refuse log-probabilities that are not the largest of a distribution.

    Raises:
        ValueError: the probabilities add up to more than 1, or those of all tokens to less, or others must be larger
            than all of them.
    """
    mass, others = float(np.exp(values).sum()), classes - len(values)
    if mass > 1 + SLACK:
        raise ValueError(f"probabilities that add up to {mass:.4g}, above 1; ask the server for temperature 1")
    if not others and mass < 1 - SLACK:
        raise ValueError(f"probabilities of all tokens that add up to {mass:.4g}; ask the server for temperature 1")
    left = max(1 - mass, 0.0)
    if others and left / others > math.exp(values.max()) * (1 + SLACK):
        raise ValueError(f"probabilities of at most {math.exp(values.max()):.3g}, so these are not the largest")


def served_of(answers: Sequence[Answers], *, classes: int, source: str) -> Served:
    """Return the answers for samples as rows of equally many tokens.

    A row that has fewer gets others at the level of all that are not named, which changes nothing.
    """
    counts = np.concatenate([np.empty(0, np.int64), *(each.counts for each in answers)])
    ids = np.concatenate([np.empty(0, np.int32), *(each.ids for each in answers)])
    kept = np.concatenate([np.empty(0, np.float32), *(each.values for each in answers)])
    top = int(counts.max(initial=1))
    inside = np.arange(top) < counts[:, None]
    index, values = np.zeros(inside.shape, np.int64), np.full(inside.shape, NEVER, np.float32)
    index[inside], values[inside] = ids, kept
    left = np.maximum(1 - np.where(inside, np.exp(values.astype(np.float64)), 0).sum(1), 0)
    others = classes - counts
    level = np.full(len(counts), NEVER, np.float32)
    spread = (left > 0) & (others > 0)
    level[spread] = np.maximum(np.log(left[spread] / others[spread]), NEVER)
    short = np.flatnonzero(counts < top)
    own, named = inside[short], index[short]
    taken = np.zeros(own.shape, np.bool_)
    rows, places = np.nonzero(own & (named < top))
    taken[rows, named[rows, places]] = True
    others_of = np.arange(top) - counts[short, None]  # place among the tokens that a row does not name
    free = np.take_along_axis(taken.argsort(1, kind="stable"), others_of.clip(0), 1)
    index[short], values[short] = np.where(own, named, free), np.where(own, values[short], level[short, None])
    sparse = Sparse(torch.from_numpy(values), torch.from_numpy(index), torch.from_numpy(level), classes)
    lengths = [int(each.counts.size) for each in answers]
    return Served(sparse, torch.tensor([0, *lengths]).cumsum(0), float(left.mean()) if len(left) else 0.0, source)
