"""From a source's texts and labels to splits: rows, division, tokenizers, token ids, fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.data import cache, multi_hot
from tutelage.data.build import (
    hold_out_test,
    hold_out_validation,
    labels_kept,
    refuse_train_as_test,
    unlabelled_samples,
    with_unlabelled,
)
from tutelage.data.datasets import Splits, refuse_one_class
from tutelage.data.served import Answers, read_answers, served_of
from tutelage.data.shards import numbered
from tutelage.data.token_split import TokenRows, TokenSplit, flat
from tutelage.errors import InvalidValueError, one_line
from tutelage.settings.data import DataSettings, LearnedTokenizer
from tutelage.text import TextInput, Tokenizer, learn_bpe, tokenizer_of
from tutelage.types import UNLABELLED

Spans = tuple[tuple[int, int], ...]
"""Where the characters start and end that a language model is to learn, in a text."""
_CHUNK = 4096  # texts whose ids are lists at once


@dataclass(frozen=True)
class Texts:
    """Texts of one half of a source, or of one split.

    Attributes:
        values: text of each sample.
        spans: of each sample, if a part of its text is to be learned; else empty.
        labels: label of each sample as text, empty without one, or what `multi_hot.row_of` says of several; empty for
            language models.
        corrupt: names of the rows that were left out.
        answers: what a served teacher answered for each sample, or empty.
    """

    values: Sequence[str]
    spans: Sequence[Spans]
    labels: Sequence[Any]
    corrupt: tuple[str, ...] = ()
    answers: Sequence[Answers] = ()

    def subset(self, positions: NDArray[np.int64]) -> Texts:
        """Return some of the samples, without their labels as text."""
        spans = [self.spans[i] for i in positions] if self.spans else []
        answers = [self.answers[i] for i in positions] if self.answers else []
        return Texts([self.values[i] for i in positions], spans, [], self.corrupt, answers)

    def kept(self, names: Iterable[str]) -> NDArray[np.int64]:
        """Return the numbers of the rows, given all of their names, that were not left out."""
        corrupt = {*self.corrupt}
        return np.array([number for number, name in enumerate(names) if name not in corrupt], np.int64)

    def digest(self) -> str:
        """Return the SHA-256 of texts, spans, labels and answers."""
        content = hashlib.sha256(json.dumps([self.spans, self.labels]).encode())
        for value in self.values:
            encoded = value.encode()
            content.update(len(encoded).to_bytes(8, "little") + encoded)
        for each in self.answers:
            content.update(each.digest())
        return content.hexdigest()


def read_texts(
    records: Iterable[tuple[str, Mapping[str, Any] | ValueError]],
    settings: DataSettings,
    *,
    label: str | None,
    source: str,
    tokenizer: Tokenizer | None,
    answers: str | None = None,
    labelled: bool = True,
) -> Texts:
    """Return the texts of rows.

    Args:
        records: where each row is, and its values by column, or what is wrong with it.
        settings: of the data, whose columns are read.
        label: column of the labels; ``None`` for a language model's.
        source: source to show.
        tokenizer: tokenizer whose template writes conversations, and whose tokens a served teacher names.
        answers: column of a served teacher's answers; ``None`` for none.
        labelled: whether there are labels, of which several may hold where the settings say so.

    Raises:
        InvalidValueError: a row is damaged, unless such rows are to be left out, or all are.
    """
    values: list[str] = []
    spans: list[Spans] = []
    labels: list[Any] = []
    answered: list[Answers] = []
    corrupt: list[str] = []
    columns: list[str] = []
    reason = ""
    for where, record in records:
        try:
            if isinstance(record, ValueError):
                raise record
            if label is not None and label not in columns:
                columns = list(record)
            text, learned = _text_of(record, settings, tokenizer)
            text.encode()  # Halves of surrogate pairs, which JSON may hold, are no text.
            if label is not None:
                labels.append(_label_of(record.get(label)))
            if settings.labels is not None and labelled:
                labels.append(multi_hot.row_of(record, settings.labels))
            if answers is not None and tokenizer is not None:
                answered.append(read_answers(record.get(answers), tokenizer, column=answers, where=where))
        except ValueError as error:
            corrupt.append(where)
            reason = reason or f"{where}: {one_line(error)}"
            if settings.on_corrupt == "stop":
                break
            continue
        values.append(text)
        spans += [learned] if learned else []
    if corrupt and (settings.on_corrupt == "stop" or not values):
        expected, instead = f"a sample in every row of {source}", "mend it, name other columns"
        if settings.on_corrupt == "stop":
            instead += ", or type data.on_corrupt=skip to leave such rows out"
        else:
            expected = f"a sample in any of the {len(corrupt)} rows of {source}"
        raise InvalidValueError("data.source", expected, reason, instead)
    if not values:
        raise InvalidValueError("data.source", f"samples in {source}", "none", "name another file")
    if label is not None and label not in columns:
        got = f"no {label!r} among the columns {', '.join(columns)}"
        raise InvalidValueError("data.label", f"labels in {source}", got, "type data.label=... for another column")
    return Texts(values, spans, labels, tuple(corrupt), answered)


def _text_of(record: Mapping[str, Any], settings: DataSettings, tokenizer: Tokenizer | None) -> tuple[str, Spans]:
    if settings.text:
        return _string(record, settings.text), ()
    if settings.prompt and settings.completion:
        prompt, completion = (_string(record, column) for column in (settings.prompt, settings.completion))
        return prompt + completion, ((len(prompt), len(prompt) + len(completion)),)
    assert settings.messages is not None
    assert tokenizer is not None
    return _conversation(record.get(settings.messages), settings.messages, tokenizer)


def _string(record: Mapping[str, Any], column: str) -> str:
    value = record.get(column)
    if not isinstance(value, str):
        columns = f", of the columns {', '.join(map(str, record))}" if column not in record else ""
        raise ValueError(f"no text in {column!r}{columns}")
    return value


def _label_of(value: object) -> str:
    if value is None or value == -1:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"a label that is neither a class's name nor its number: {value!r:.60}")
    return str(value)


def _conversation(messages: object, column: str, tokenizer: Tokenizer) -> tuple[str, Spans]:
    """Return a conversation as text, and where the assistant's turns are in it."""
    if not isinstance(messages, list) or not all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in messages
    ):
        raise ValueError(f"no list of messages with a role and a content, both text, in {column!r}")
    text, spans = tokenizer.render(messages), []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = tokenizer.render(messages[:number], answer_next=True)
        through = tokenizer.render(messages[: number + 1])
        if not (text.startswith(through) and through.startswith(before)):
            raise ValueError("a chat template that writes a turn otherwise once others follow")
        spans.append((len(before), len(through)))
    if not spans:
        raise ValueError(f"no turn of the assistant in {column!r}")
    return text, tuple(spans)


def open_tokenizer(settings: DataSettings) -> Tokenizer | None:
    """Return the tokenizer that the settings name; ``None`` if it is to be learned."""
    return tokenizer_of(settings.tokenizer) if isinstance(settings.tokenizer, str) else None


def from_texts(
    train: Texts,
    test: Texts | None,
    settings: DataSettings,
    *,
    source: str,
    tokenizer: Tokenizer | None,
    names: Sequence[str] | None = None,
    notes: Sequence[str] = (),
    unlabelled: Texts | None = None,
) -> Splits:
    """Build splits of texts in memory.

    Args:
        train: texts for training, from which validation is held out.
        test: texts for test; ``None`` takes them from ``train`` as the settings say.
        settings: of the data.
        source: source to show.
        tokenizer: what `open_tokenizer` returned.
        names: names of the classes, if they are known.
        notes: decisions made on the user's behalf.
        unlabelled: further texts for training, without labels.

    Raises:
        ValueError: labels are outside the classes or missing, there are too few samples, or a tokenizer does not fit.
    """
    halves = [train] if test is None else [train, test]
    if settings.labels is not None:
        names, labels = multi_hot.table([half.labels for half in halves], settings.labels, names, source=source)
    elif settings.per_token or not train.labels:  # Without a column of labels no classes are learned.
        value = 0 if settings.per_token else UNLABELLED
        names, labels = (), [np.full(len(half.values), value, np.int64) for half in halves]
    else:
        names, labels = numbered([np.array(half.labels, np.str_) for half in halves], names, source=source)
        if settings.embedding is None:
            refuse_one_class(names, source, what="texts")
    if test is None:
        usable, tested, note = hold_out_test(labels[0], settings, names, what="texts")
        notes, test = [*notes, note], train
    else:
        refuse_train_as_test(settings, source)
        usable, tested = (np.arange(len(half.values)) for half in halves)
    kept, held_out = (usable[places] for places in hold_out_validation(labels[0][usable], settings))
    parts = {"train": train.subset(kept), "validation": train.subset(held_out), "test": test.subset(tested)}
    of_part = {
        "train": labels_kept(labels[0][kept], settings, classes=len(names)),
        "validation": labels[0][held_out],
        "test": labels[-1][tested],
    }
    extra = [] if unlabelled is None else unlabelled.values
    without_labels = unlabelled_samples(settings, own=len(kept), samples=len(extra))
    if unlabelled is not None:
        own = parts["train"]
        parts["train"] = Texts([*own.values, *extra], [], [], (*own.corrupt, *unlabelled.corrupt))
        of_part["train"] = with_unlabelled(of_part["train"], len(extra))
    tokenizer, teacher, by_name = _tokenizers(tokenizer, settings, parts["train"].values)
    splits, left_out = {}, 0
    for name, part in parts.items():
        if not part.values:
            continue
        if settings.per_token:
            splits[name] = _predicted(part, by_name, settings, source=source, learned=name == "train")
            left_out += 0 if settings.pack else len(part.values) - len(splits[name])
        else:
            splits[name] = _classified(torch.from_numpy(of_part[name]), part.values, by_name, settings)
        if name == "train":
            splits[name] = replace(splits[name], bucket_batches=settings.bucket_batches, unlabelled=without_labels)
        splits[name].corrupt.extend(part.corrupt if name == "train" or test is not train else ())
    if left_out:
        notes = [*notes, f"Left out: {left_out} samples without a token to predict in the first {settings.max_tokens}."]
    content = [half.digest() for half in [*halves, *([unlabelled] if unlabelled else [])]]
    content += [cache.digest(places) for places in (kept, held_out, tested)]
    content += [f"{each.fingerprint} {each.end_id}" for each in by_name.values()]
    content += [cache.digest(of_part["train"]), f"{settings.max_tokens} {settings.pack} {list(names)}"]
    several = settings.labels is not None
    read: dict[str, Any] = {"max_tokens": settings.pack or settings.max_tokens, "per_token": settings.per_token}
    return Splits(
        train=splits["train"],
        validation=splits.get("validation"),
        test=splits["test"],
        classes=2 if several else tokenizer.size if settings.per_token else len(names),
        class_names=tuple(names),
        source=source,
        fingerprint=hashlib.sha256("\n".join(content).encode()).hexdigest()[:16],
        notes=tuple(notes),
        text={"student": TextInput(tokenizer=tokenizer, **read), "teacher": TextInput(tokenizer=teacher, **read)},
        task="labels" if several else "classes",
    )


def beside_images(
    splits: Splits, train: Texts, test: Texts | None, settings: DataSettings, *, tokenizer: Tokenizer | None
) -> Splits:
    """Return splits of images with the texts that belong to them beside.

    Args:
        splits: images, whose splits say by `Split.texts` which text is whose.
        train: texts of the half that training images are from.
        test: those of the half of test images; ``None`` if it is the same.
        settings: of the data.
        tokenizer: what `open_tokenizer` returned.
    """
    values = {}
    for name, split in splits.by_name().items():
        half = train if name != "test" or test is None else test
        assert split.texts is not None
        values[name] = [half.values[number] for number in split.texts]
    student, teacher, by_name = _tokenizers(tokenizer, settings, values["train"])
    texts = {}
    for name, split in splits.by_name().items():
        # One list, as images that cannot be read may be found out later.
        texts[name] = replace(_classified(split.labels, values[name], by_name, settings), corrupt=split.corrupt)
        if name == "train" or (name == "test" and test is not None):
            split.corrupt.extend((train if name == "train" else test or train).corrupt)
    content = [str(splits.fingerprint), *(half.digest() for half in (train, test) if half is not None)]
    content += [f"{each.fingerprint} {each.end_id}" for each in by_name.values()] + [str(settings.max_tokens)]
    fingerprint = hashlib.sha256("\n".join(content).encode()).hexdigest()[:16]
    beside = Splits(
        train=replace(texts["train"], bucket_batches=settings.bucket_batches),
        validation=texts.get("validation"),
        test=texts["test"],
        classes=splits.classes,
        class_names=splits.class_names,
        source=splits.source,
        fingerprint=fingerprint,
        notes=splits.notes,
        task=splits.task,
        text={
            name: TextInput(tokenizer=each, max_tokens=settings.max_tokens)
            for name, each in (("student", student), ("teacher", teacher))
        },
    )
    return replace(splits, fingerprint=fingerprint, beside=beside)


def _tokenizers(
    tokenizer: Tokenizer | None, settings: DataSettings, training: Sequence[str]
) -> tuple[Tokenizer, Tokenizer, dict[str, Tokenizer]]:
    """Return the student's tokenizer, learned from the training texts if need be, the teacher's, and what reads what.

    The last are those of a `TokenSplit`: one for all under ``""``, or one for each network by its name.
    """
    if tokenizer is None:
        assert isinstance(settings.tokenizer, LearnedTokenizer)
        tokenizer = learn_bpe(training, settings.tokenizer.bpe)
    if isinstance(settings.teacher_tokenizer, str):
        teacher = tokenizer_of(settings.teacher_tokenizer, what="data.teacher_tokenizer")
    elif settings.teacher_tokenizer is not None:
        teacher = learn_bpe(training, settings.teacher_tokenizer.bpe)
    else:
        teacher = tokenizer
    same = settings.teacher_tokenizer is None or (settings.per_token and teacher.fingerprint == tokenizer.fingerprint)
    if same:
        return tokenizer, tokenizer, {"": tokenizer}
    return tokenizer, teacher, {"student": tokenizer, "teacher": teacher}


def _classified(
    labels: Tensor, values: Sequence[str], by_name: Mapping[str, Tokenizer], settings: DataSettings
) -> TokenSplit:
    """Return a split of texts with a label each."""
    return TokenSplit(labels=labels, rows={view: _rows(values, each, settings) for view, each in by_name.items()})


def _ids(
    tokenizer: Tokenizer, values: Sequence[str], *, max_tokens: int | None = None, special: bool
) -> Iterator[NDArray[np.int32]]:
    for start in range(0, len(values), _CHUNK):
        for ids in tokenizer.encode(values[start : start + _CHUNK], max_tokens=max_tokens, special=special):
            yield np.array(ids, np.int32)


def _rows(values: Sequence[str], tokenizer: Tokenizer, settings: DataSettings) -> TokenRows:
    """Return each text as a row."""
    samples = list(_ids(tokenizer, values, max_tokens=settings.max_tokens, special=True))
    for number, ids in enumerate(samples):
        if not len(ids):
            samples[number] = np.array([_end_of(tokenizer, "for texts without a token, such as empty ones")], np.int32)
    return _in_turn(samples, [len(ids) for ids in samples], tokenizer)


def _in_turn(samples: Sequence[NDArray[np.int32]], lengths: Sequence[int], tokenizer: Tokenizer) -> TokenRows:
    starts = np.cumsum([0, *map(len, samples)])[:-1]
    return TokenRows(flat(samples, size=tokenizer.size), starts, np.array(lengths, np.int64))


def _end_of(tokenizer: Tokenizer, why: str, key: str = "data.tokenizer") -> int:
    if tokenizer.end_id is None:
        instead = "name a folder whose tokenizer_config.json has an eos_token, or learn one: {bpe: 2000}"
        raise InvalidValueError(key, f"one with an end token, {why}", "one without", instead)
    return tokenizer.end_id


def _predicted(
    part: Texts, by_name: Mapping[str, Tokenizer], settings: DataSettings, *, source: str, learned: bool
) -> TokenSplit:
    """Return a split of a language model, which predicts each next token, with a served teacher's answers if any.

    Samples without a token to predict are left out; of two tokenizers, by either.
    """
    if settings.pack is not None:
        rows, counted, size = _packed(part.values, by_name[""], settings.pack)
        return _of_targets(rows, counted, size)
    keys = {"teacher": "data.teacher_tokenizer"}
    read = [[*_continued(part, each, settings, keys.get(name, "data.tokenizer"))] for name, each in by_name.items()]
    kept = [samples for samples in zip(*read, strict=True) if None not in samples]
    student, *teachers = (_as_split([samples[k] for samples in kept], each) for k, each in enumerate(by_name.values()))
    if teachers:
        aligned = zip(*(_aligned(*samples) for samples in kept), strict=True)
        student, *teachers = (
            replace(split, targets_aligned=np.concatenate(parts))
            for split, parts in zip((student, *teachers), aligned, strict=True)
        )
    if learned and part.answers:
        answers = [sample.answers for sample, *_ in kept if sample and sample.answers]
        named = f"{source}, column {settings.top_logprobs}"
        student = replace(student, served=served_of(answers, classes=by_name[""].size, source=named))
    return replace(student, teachers=teachers[0] if teachers else None)


def _of_targets(rows: TokenRows, counted: NDArray[np.bool_], size: int) -> TokenSplit:
    """Return a split of rows whose tokens are predicted, of so many bytes."""
    if not len(rows.starts):
        instead = "add texts, or type a larger data.max_tokens"
        raise InvalidValueError("data.source", "at least 2 tokens, of which one is predicted", "fewer", instead)
    labels = torch.full((len(rows.starts), 0), UNLABELLED)
    return TokenSplit(labels=labels, rows={"": rows}, targets_counted=counted, text_bytes=size)


def _as_split(samples: Sequence[_Continued | None], tokenizer: Tokenizer) -> TokenSplit:
    """Return a split of samples by one tokenizer."""
    known = [sample for sample in samples if sample]
    rows = _in_turn([each.ids for each in known], [len(each.ids) - 1 for each in known], tokenizer)
    counted = np.concatenate([np.empty(0, np.bool_), *(each.counted for each in known)])
    split = _of_targets(rows, counted, sum(each.size for each in known))
    return replace(split, prompts=np.array([each.prompt for each in known], np.int64))


def _packed(values: Sequence[str], tokenizer: Tokenizer, length: int) -> tuple[TokenRows, NDArray[np.bool_], int]:
    """Join texts, each with the end token, and cut them: a row's last target is the next one's first token.

    Returns:
        Rows; which tokens are counted as targets, all; the length in UTF-8 of the targets, all but the first token.
    """
    end = np.array([_end_of(tokenizer, "by which texts are joined")], np.int32)
    ids = flat((part for each in _ids(tokenizer, values, special=False) for part in (each, end)), size=tokenizer.size)
    starts = np.arange(0, len(ids) - 1, length)
    ((_, places),) = tokenizer.locate(values[:1], special=False)
    size = sum(len(value.encode()) for value in values) - len(values[0][: places[0][1] if places else 0].encode())
    return TokenRows(ids, starts, np.minimum(length, len(ids) - 1 - starts)), np.ones(len(ids), np.bool_), size


class _Continued(NamedTuple):
    """A sample of which a part is to be learned."""

    ids: NDArray[np.int32]
    counted: NDArray[np.bool_]  # which tokens are counted as targets
    behind: NDArray[np.int64]  # length of the text, in characters, that each token comes behind
    size: int  # length of the counted tokens in UTF-8
    answers: Answers | None  # a served teacher's, for them
    prompt: int  # number of tokens before the last part that is learned


def _continued(
    part: Texts, tokenizer: Tokenizer, settings: DataSettings, key: str = "data.tokenizer"
) -> Iterator[_Continued | None]:
    """Encode samples of which a part is to be learned; yield ``None`` for one of which nothing is left."""
    with_end = settings.prompt is not None  # A chat template writes the ends of turns itself.
    end = _end_of(tokenizer, "which ends a completion", key) if with_end else None
    located = tokenizer.locate(part.values, special=with_end)
    answered: Sequence[Answers | None] = part.answers or [None] * len(part.values)
    for text, spans, given, (ids, places) in zip(part.values, part.spans, answered, located, strict=True):
        starts, ends = np.array(places, np.int64).reshape(-1, 2).T
        counted, begins = np.zeros(len(ids), np.bool_), []
        for first, last in spans:
            inside = (starts < last) & (ends > first)
            counted |= inside
            begins += np.flatnonzero(inside)[:1].tolist()
        sizes = _sizes(text, ends)
        if end is not None:
            if not ids or ids[-1] != end:
                ids, counted, sizes = [*ids, end], np.append(counted, False), np.append(sizes, 0)
            counted[-1] = True
        counted[:1] = False  # Nothing predicts the first token.
        given = given and given.aligned(np.array(ids), counted, tokenizer)
        counted = counted[: settings.max_tokens + 1]
        if not counted.any():
            yield None
            continue
        # A part may have no tokens but the end, or be cut off.
        known = [begin for begin in begins if begin < len(counted)] or [int(np.argmax(counted))]
        yield _Continued(
            np.array(ids[: len(counted)], np.int32),
            counted,
            np.maximum.accumulate(np.concatenate([[0], ends, [0]]))[: len(counted)],
            int(sizes[: len(counted)][counted].sum()),
            given and given.first(int(counted.sum())),
            max(1, known[-1]),
        )


def _aligned(first: _Continued, second: _Continued) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which counted tokens of each come behind the same text as one of the other.

    Of several that come behind the same characters, those before the last come behind a part of a character.
    """
    ends = []
    for each in (first, second):
        places = np.flatnonzero(each.counted)
        last = np.append(np.diff(each.behind[places]) > 0, True)
        ends.append(places[last])
    _, of_first, of_second = np.intersect1d(
        *(each.behind[places] for each, places in zip((first, second), ends, strict=True)), return_indices=True
    )
    masks = []
    for each, places in zip((first, second), (ends[0][of_first], ends[1][of_second]), strict=True):
        mask = np.zeros(len(each.counted), np.bool_)
        mask[places] = True
        masks.append(mask)
    return masks[0], masks[1]


def _sizes(text: str, ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many bytes of UTF-8 each token adds to those before it, given where its characters end."""
    codes = np.frombuffer(text.encode("utf-32-le"), "<u4")
    lengths = 1 + (codes > 0x7F).astype(np.int64) + (codes > 0x7FF) + (codes > 0xFFFF)
    covered = np.concatenate([[0], np.cumsum(lengths)])[np.maximum.accumulate(ends)]
    return np.diff(covered, prepend=0)
