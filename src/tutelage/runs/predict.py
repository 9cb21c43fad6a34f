"""A network's answers to samples, batch by batch, in one process or several."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

import torch
from PIL import Image

from tutelage import launcher, models, plain_files, records
from tutelage.errors import InvalidValueError, StorageError, TutelageError, one_line
from tutelage.hub_files import folder_of
from tutelage.models import Classifier, predict
from tutelage.models.generate import continued
from tutelage.models.predict import ImageView, Prediction
from tutelage.runs.run import load
from tutelage.runs.samples import Sample, Samples, batched, text_kind
from tutelage.submodules import device_of
from tutelage.text import TextInput, tokenizer_of
from tutelage.training.distributed import accelerator_on, by_main, dealt, one_a_node_first, world
from tutelage.training.precision import float32_products

T = TypeVar("T")
R = TypeVar("R")

_RANDOM = "cifar", "mlp", "timm", "torchvision", "hf"
"""Sources whose names without weights have random ones."""
_THREADS = 8
_PATIENCE = 0.2
"""Seconds that the end waits for a thread, which may itself wait for standard input."""
_LONGEST_TEXT = 512
"""Largest number of tokens that a network with a name is given, if it takes as many."""
_ANY = 64
"""Number of outputs of a random head that is cut off."""
PIXELS = "pixels"
EMBEDDING = "embedding"
NEXT_TOKEN = "next token"  # noqa: S105  a task
TOKENS = "tokens"


class Answer(NamedTuple):
    """What is said of a sample.

    Attributes:
        name: sample's name, for an error.
        fields: the answer as a JSON value, or why there is none.
        more_frames: whether its file has frames or pages that are not read.
        is_long: whether it is a text as long as the network reads, or longer.
    """

    name: str
    fields: dict[str, Any] | TutelageError
    more_frames: bool = False
    is_long: bool = False


def network_of(
    model: str, *, device: str = "auto", best: bool = False, trust_code: bool | frozenset[str] = False
) -> Classifier:
    """Return the network of a name or a run's folder, on a device.

    Raises:
        TutelageError: as of `models.create`, or its weights are random.
    """
    accelerator = accelerator_on(device)

    def make() -> Classifier:
        prefix, colon, path = model.partition(":")
        if colon and prefix == "hf" and (kind := text_kind(path)):
            return _of_text(model, path, kind)
        return load(model, best=best, trust_code=trust_code)

    network = one_a_node_first(make)
    if network.card.fresh_head or (network.card.weights is None and model.startswith(tuple(f"{p}:" for p in _RANDOM))):
        got = f"{model}, {'whose head' if network.card.fresh_head else 'which'} has random weights"
        instead = "name a run's folder, or a name with a tag such as timm:resnet18.a1_in1k"
        raise InvalidValueError("model", "a network that was trained", got, instead)
    return network.to(accelerator.device).eval()


def _of_text(name: str, path: str, kind: str) -> Classifier:
    folder = folder_of(path, ("*.json", "*/config.json"), what="model")
    own = records.read_json(folder / records.NETWORK, instead="name another folder")
    settings = folder / "tokenizer_config.json"
    said = [own.get("max_position_embeddings")]
    if settings.is_file():
        said.append(records.read_json(settings, instead="name another folder").get("model_max_length"))
    longest = min([each for each in said if isinstance(each, int) and each > 0] + [_LONGEST_TEXT])
    per_token = kind in ("token", "causal")
    text = TextInput(
        tokenizer=tokenizer_of(path, what="model"),
        max_tokens=longest,
        per_token=per_token,
        next_token=kind == "causal",
    )
    if kind == "sentence":
        return models.create(name, classes=_ANY, text=text, task="embedding", as_trained=("classes",)).eval()
    return models.create(name, text=text).eval()


@dataclass(frozen=True)
class Predictor:
    """Reads samples and says what a network answers.

    Attributes:
        network: the network, on its device.
        top_k: number of likeliest classes to say; ``None`` for the usual ones of the task.
        generate: number of tokens that a language model writes behind a text; 0 for none.
        masks: folder of the masks; ``None`` to write none.
    """

    network: Classifier
    top_k: int | None = None
    generate: int = 0
    masks: Path | None = None

    def __post_init__(self) -> None:
        predict.check_top_k(self.top_k)
        if self.generate and self.task != NEXT_TOKEN:
            got, instead = f"{self.network.card.name} of {self.task}", "leave --generate out"
            raise InvalidValueError("--generate", "a language model, which writes texts", got, instead)

    @property
    def text(self) -> TextInput | None:
        """What the network reads if it reads texts."""
        return None if self.network.call is None else self.network.call.text

    @property
    def task(self) -> str:
        """What is answered: the network's task, or of each token `NEXT_TOKEN` or `TOKENS`."""
        if self.text is not None and self.text.per_token:
            return NEXT_TOKEN if self.text.next_token else TOKENS
        return self.network.card.task

    def read(self, sample: Sample) -> ImageView | str | TutelageError:
        """Return what the network is to see of a sample, or why that cannot be read; threads may do so at once."""
        try:
            if isinstance(sample.source, TutelageError):
                return sample.source
            if self.text is None:
                return predict.view_of(sample.source, self.network.card, sample.name)
            return _text_of(sample)
        except TutelageError as error:
            return error
        except OSError as error:
            reason = error.strerror or one_line(error)
            return StorageError(sample.name, "a file that can be read", reason, "check its permissions")

    def answer(self, batch: Sequence[tuple[Sample, ImageView | str | TutelageError]]) -> list[Answer]:
        """Return an answer to each sample of a batch, in order."""
        good = [(sample, seen) for sample, seen in batch if not isinstance(seen, TutelageError)]
        fields = iter(self._fields([sample for sample, _ in good], [seen for _, seen in good]) if good else [])
        answers = []
        for sample, seen in batch:
            if isinstance(seen, TutelageError):
                answers.append(Answer(sample.name, seen))
                continue
            said, is_long = next(fields)
            whose: dict[str, Any] = {"file": sample.file}
            if sample.row is not None:
                whose |= {"row": sample.row, "text": seen}
            frames = isinstance(seen, ImageView) and seen.has_more_frames
            answers.append(Answer(sample.name, {**whose, **said}, frames, is_long))
        return answers

    def _fields(self, samples: Sequence[Sample], seen: Sequence[Any]) -> Iterator[tuple[dict[str, Any], bool]]:
        """Yield what is said of each sample, and whether it is a text as long as the network reads."""
        network, card, names = self.network, self.network.card, [sample.name for sample in samples]
        if self.task == PIXELS:
            for sample, view in zip(samples, seen, strict=True):
                yield self._of_pixels(sample, view), False
            return
        if self.task == NEXT_TOKEN:
            yield from self._next_tokens(seen, names)
            return
        if self.task == TOKENS:
            yield from self._of_tokens(seen, names)
            return
        long = [False] * len(seen)
        if self.text is None:
            logits = predict.answers_to_views(network, card, [view.pixels for view in seen], names)
        else:
            rows = self.text.tokenizer.encode(seen, max_tokens=self.text.max_tokens)
            long = [len(row) >= self.text.max_tokens for row in rows]
            logits = torch.stack(predict.answers_to_ids(network, card, rows, names))
        if self.task == EMBEDDING:
            yield from zip(({"vector": vector} for vector in logits.tolist()), long, strict=True)
            return
        found = predict.predictions(logits, card, top_k=self.top_k or 1)
        yield from zip(map(self._of_classes, found), long, strict=True)

    def _of_classes(self, found: Prediction) -> dict[str, Any]:
        said = {**_said(found), "top": [_said(each) for each in found.top]}
        if self.task == "labels":
            said["labels"] = [_said(each) for each in found.labels]
        return said

    def _of_pixels(self, sample: Sample, view: ImageView) -> dict[str, Any]:
        card = self.network.card
        mask = predict.mask_of(self.network, card, view.pixels, view.size, sample.name)
        counts = torch.from_numpy(mask).flatten().bincount(minlength=card.classes)
        order = [k for k in counts.argsort(descending=True, stable=True).tolist() if counts[k]][: self.top_k]
        classes = [
            {"label": k, "name": card.class_names and card.class_names[k], "share": int(counts[k]) / mask.size}
            for k in order
        ]
        path = None
        if self.masks is not None:
            path, content = self.masks / sample.mask, io.BytesIO()
            Image.fromarray(mask).save(content, "PNG")
            records.write_bytes(path, content.getvalue())
        return {"mask": path and str(path), "classes": classes}

    def _next_tokens(self, texts: Sequence[str], names: Sequence[str]) -> Iterator[tuple[dict[str, Any], bool]]:
        assert self.text is not None
        tokenizer, most, card = self.text.tokenizer, self.text.max_tokens, self.network.card
        rows = []
        for row in tokenizer.encode(texts):
            whole = row[:-1] if len(row) > 1 and row[-1] == tokenizer.end_id else row  # Behind it comes another text.
            rows.append(whole[-most:])
        long = [len(row) >= most for row in rows]
        logits = torch.stack(predict.answers_to_ids(self.network, card, rows, names, last=True))
        written: Iterable[list[int] | None] = [None] * len(rows)
        if self.generate:
            settings: dict[str, Any] = {"max_tokens": most, "end": tokenizer.end_id}
            written = continued(self.network, rows, new_tokens=self.generate, **settings)
        for each, ids, is_long in zip(
            predict.predictions(logits, card, top_k=self.top_k or 1), written, long, strict=True
        ):
            top = [
                _said(one._replace(name=tokenizer.decode([one.label]) or tokenizer.piece(one.label)))
                for one in each.top
            ]
            generated = {} if ids is None else {"generated": tokenizer.decode(ids)}
            yield {**top[0], "top": top, **generated}, is_long

    def _of_tokens(self, texts: Sequence[str], names: Sequence[str]) -> Iterator[tuple[dict[str, Any], bool]]:
        assert self.text is not None
        card, most = self.network.card, self.text.max_tokens
        located = list(self.text.tokenizer.locate(texts, max_tokens=most))
        answers = predict.answers_to_ids(self.network, card, [ids for ids, _ in located], names)
        for text, (ids, places), logits in zip(texts, located, answers, strict=True):
            found = predict.predictions(logits, card, top_k=self.top_k or 1)
            tokens = [
                {"token": text[first:last], "start": first, "end": last, **self._of_classes(each)}
                for (first, last), each in zip(places, found, strict=True)
                if last > first  # Others were added around the text.
            ]
            yield {"tokens": tokens}, len(ids) >= most


def _text_of(sample: Sample) -> str:
    """Return a sample's text.

    Raises:
        InvalidValueError: its file is not UTF-8, or has nothing but blanks.
        OSError: the system refused to read it.
    """
    source, instead = sample.source, "save it as text in UTF-8"
    try:
        content = source if isinstance(source, str) else plain_files.read(Path(str(source))).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidValueError(sample.name, "UTF-8", one_line(error), instead) from error
    if not content.strip():
        raise InvalidValueError(sample.name, "a text", "nothing but blanks", "write one, or leave it out")
    return content


def _said(found: Prediction) -> dict[str, Any]:
    return {"label": found.label, "name": found.name, "probability": found.probability}


def answers(predictor: Predictor, samples: Samples, *, batch_size: int) -> Iterator[list[Answer]]:
    """Yield the answers to each batch of samples, in order, in every process; several processes take batches in turn.

    One process reads samples as they are needed, a batch ahead; of several the first one lists them all at once.

    Raises:
        TutelageError: the samples cannot be listed, or logits are not finite.
    """

    def work(batches: Iterable[list[Sample]]) -> Iterator[list[Answer]]:
        with (
            ThreadPoolExecutor(min(_THREADS, launcher.cores())) as pool,
            closing(_ahead(batches, lambda batch: [*zip(batch, pool.map(predictor.read, batch), strict=True)])) as read,
        ):
            yield from map(predictor.answer, read)

    with float32_products(device_of(predictor.network), "fp32"):
        if world() == 1:
            yield from work(batched(samples, batch_size))
        else:
            listed, samples.skipped = by_main(lambda: ([*batched(samples, batch_size)], samples.skipped))
            yield from dealt(listed, work)


def _ahead(items: Iterable[T], work: Callable[[T], R]) -> Generator[R, None, None]:
    """Yield what work makes of items, in a thread that is one item ahead.

    Where an item is waited for, as a line of standard input, the ones before it are yielded all the same, and the end
    of the process does not wait.
    """
    asked, given = SimpleQueue[bool](), SimpleQueue[tuple[str, Any]]()

    def run() -> None:
        rest = iter(items)
        while asked.get():
            try:
                item = next(rest)
                given.put(("result", work(item)))
            except StopIteration:
                given.put(("end", None))
            except BaseException as error:  # noqa: BLE001  raised where the results are used
                given.put(("error", error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    asked.put(True)
    try:
        while (found := given.get())[0] == "result":
            asked.put(True)
            yield found[1]
        if found[0] == "error":
            raise found[1]
    finally:
        asked.put(False)
        thread.join(_PATIENCE)  # A thread that still runs when the process ends may abort it.
