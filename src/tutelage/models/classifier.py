"""A network with its card, which normalises inputs in [0, 1] and returns logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tutelage import models
from tutelage.adapters import takes_keywords
from tutelage.errors import InvalidTypeError, InvalidValueError, nearest
from tutelage.models.card import Card
from tutelage.models.entrance import entrance
from tutelage.models.hf_calls import HubCall
from tutelage.models.lora import Adapters, inject, merged
from tutelage.models.predict import Prediction, answers, answers_to_texts, predict, predict_masks, predict_text
from tutelage.types import Inputs
from tutelage.views import map_views, views_of


class Classifier(nn.Module):
    """A network together with its card.

    ``logits = network((x - mean) / std)``, or ``network(x)`` if the card has no statistics. The statistics are not part
    of the state: only ``classifier.network.state_dict()`` is saved, with the names its publisher gave.

    Args:
        network: module that takes ``(batch, ...)`` and returns logits ``(batch, ..., outputs)`` as one tensor.
        card: card of the network.
        outputs: the network's output for each of the card's classes, if these are not all of its outputs in order: the
            logits of the classifier are those alone.
        call: how the network is called; ``None`` for ``network(x)``.

    Attributes:
        network: bare module.
        card: card of the network; its statistics are read once, when the classifier is made.
        head_alone: whether the head alone is trained, as `train_head_alone` has it.
        adapters: low-rank adapters that the network has.
        is_double: whether the network's weights are float64, so that its inputs have to be.
        frozen: names in the network's state of what never changes and is not saved with what is trained.
        frozen_by: patterns of names by which parameters are frozen that are saved all the same; see `freeze`.
        named_seed: seed with which the name alone makes the network as it was before training, with published weights;
            ``None`` where no name does.
        resizes: whether images of another size or number of channels are brought to the card's, as `entrance` does.
        asked_size: the size of its images that was asked for, by a card or `create`; ``None`` if the card's is only
            what its weights or its architecture have.
        folder: folder that it was loaded from, such as a run's; ``None`` if it was made otherwise.
    """

    mean: Tensor | None
    std: Tensor | None
    outputs: Tensor | None

    def __init__(
        self, network: nn.Module, card: Card, *, outputs: Sequence[int] | None = None, call: HubCall | None = None
    ) -> None:
        super().__init__()
        if outputs is not None and (len(outputs) != card.classes or min(outputs) < 0):
            expected = f"{card.classes} whole numbers >= 0, one for each class of {card.name}"
            raise InvalidValueError("outputs", expected, list(outputs), "give the network's output for each class")
        if takes_keywords(network) and card.mean is not None:
            instead = "normalise its inputs in the network, or in the data set"
            raise InvalidValueError("card.mean", "None for a network that is called with keywords", card.mean, instead)
        self.network = network
        self.card = card
        self.call = call
        self.head_alone = False
        self.adapters: Adapters | None = None
        self.frozen: frozenset[str] = frozenset()
        self.frozen_by: tuple[str, ...] = ()
        self.named_seed: int | None = None
        self.resizes = False
        self.asked_size = card.image_size
        self.folder: Path | None = None
        self._least_outputs = max(outputs or [0]) + 1
        self.is_double = _is_double(network)
        self.register_buffer("outputs", None if outputs is None else torch.tensor(outputs), persistent=False)
        for name, values in (("mean", card.mean), ("std", card.std)):
            self.register_buffer(name, None if values is None else _column(values, torch.float32), persistent=False)

    @property
    def user_code(self) -> str | None:
        """The network's name where it is the user's own module; see `errors.explained`."""
        return self.card.name.removeprefix("object:") if self.card.name.startswith(("object:", "file:")) else None

    @property
    def resized_to(self) -> list[int] | None:
        """Channels, height and width that images are brought to; ``None`` if they are taken as they come."""
        return [self.card.channels, *(self.card.image_size or ())] if self.resizes else None

    def forward(self, inputs: Inputs) -> Tensor:
        """Return the logits.

        Args:
            inputs: ``(batch, channels, height, width)``, floating point, values in [0, 1]; for a network of text token
                ids ``(batch, tokens)`` int64, with `PADDING` behind a text; any shape and dtype that the network takes
                if the card has no statistics and ``resizes`` is false; a mapping for an `Adapter` with keywords.

        Returns:
            ``(batch, classes)``; more axes in between for networks that classify more than one item per sample. Of
            labels ``(batch, labels, 2)``: 0 for no, and the network's output for yes, so that a softmax is a sigmoid of
            the output. Of pixels ``(batch, height, width, classes)``, of which the network returns
            ``(batch, classes, ...)``, perhaps of another size: they are interpolated bilinearly to that of the inputs.

        Raises:
            TypeError: if the inputs are integers, or the network does not return one tensor.
            ValueError: if the number of channels is not the card's.
        """
        if self.is_double:
            inputs = map_views(lambda view: view.double() if view.is_floating_point() else view, inputs)
        if isinstance(inputs, Mapping):
            logits = self.network(inputs)
        else:
            own = self.normalise(entrance(inputs, self.card) if self.resizes else inputs)
            logits = self.network(own) if self.call is None else self.call(self.network, own)
        if not isinstance(logits, Tensor) or logits.dim() < 2 or logits.shape[0] != views_of(inputs)[0].shape[0]:
            got = f"a tensor of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            expected = "the network to return logits, one tensor of shape (batch, classes)"
            instead = 'name the field of its logits: tutelage.Adapter(network, output="logits")'
            raise InvalidTypeError(self.card.name, expected, got, instead)
        if self.card.task == "pixels":
            logits = self._of_pixels(logits, inputs)
        if self.outputs is not None:
            logits = self._of_outputs(logits, self.outputs)
        return torch.stack((torch.zeros_like(logits), logits), -1) if self.card.task == "labels" else logits

    def _of_pixels(self, logits: Tensor, inputs: Inputs) -> Tensor:
        """Return a network's logits for each of the pixels that came in, with the classes on the last axis."""
        if logits.ndim != 4:
            expected = "logits of pixels, (batch, classes, height, width)"
            instead = "name a network of semantic segmentation"
            raise InvalidValueError(self.card.name, expected, tuple(logits.shape), instead)
        size = views_of(inputs)[0].shape[-2:]
        if logits.shape[-2:] != size:
            logits = torch.nn.functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        return logits.movedim(1, -1)

    def _of_outputs(self, logits: Tensor, outputs: Tensor) -> Tensor:
        """Return the outputs that stand for the card's classes, in their order."""
        if self._least_outputs > logits.shape[-1]:  # On a GPU an index out of range ends the process.
            expected = (
                f"a network of {self._least_outputs} outputs or more, as the classes of {self.card.name} name them"
            )
            instead = "give outputs=[...] with numbers below that"
            raise InvalidValueError("outputs", expected, f"one of {logits.shape[-1]}", instead)
        return logits.index_select(-1, outputs)

    def predict(self, samples: Any, *, top_k: int | None = None) -> list[Prediction]:
        """Classify raw images or texts, one or a sequence of them; see `predict.predict` and `predict.predict_text`.

        With ``top_k=5`` each prediction has its five likeliest classes in ``top``.

        Raises:
            TypeError: if the network takes tensors by keyword, which are made of nothing raw.
            ValueError: if it gives each pixel a class, or answers with embeddings.
        """
        self._require_raw()
        if self.card.task in (others := {"pixels": "predict_masks(images)", "embedding": "embed(samples)"}):
            expected, got = "a network that gives each sample a class", f"{self.card.name} of {self.card.task}"
            raise InvalidValueError("predict", expected, got, f"type model.{others[self.card.task]}")
        if self.call is not None and self.call.text is not None:
            return predict_text(self, self.card, self.call.text, samples, top_k=top_k)
        return predict(self, self.card, samples, top_k=top_k)

    def predict_masks(self, images: Any) -> list[NDArray[np.uint8]]:
        """Give each pixel of raw images a class, one or a sequence of them; see `predict.predict_masks`.

        Raises:
            TypeError: if the network takes tensors by keyword, which are made of nothing raw.
            ValueError: if it does not give each pixel a class.
        """
        self._require_raw()
        if self.card.task != "pixels":
            expected = "a network that gives each pixel a class"
            got = f"{self.card.name}, which does so for each {'text' if self.card.max_tokens else 'image'}"
            raise InvalidValueError("predict_masks", expected, got, "type model.predict(samples)")
        return predict_masks(self, self.card, images)

    def embed(self, samples: Any) -> Tensor:
        """Return the vectors of raw images or texts, one or a sequence of them, as `predict` reads them.

        Returns:
            ``(samples, width)`` float32 on the CPU, not normalised.

        Raises:
            TypeError: if the network takes tensors by keyword, which are made of nothing raw.
            ValueError: if it does not answer with embeddings.
        """
        self._require_raw()
        if self.card.task != "embedding":
            expected, got = "a network that answers with embeddings", f"{self.card.name} of {self.card.task}"
            raise InvalidValueError("embed", expected, got, "type model.predict(samples)")
        if self.call is not None and self.call.text is not None:
            return answers_to_texts(self, self.card, self.call.text, samples)
        return answers(self, self.card, samples)

    def _require_raw(self) -> None:
        if takes_keywords(self.network):
            instead = "call the model with a mapping of tensors, as the data set yields them"
            raise InvalidTypeError(self.card.name, "a network of images or texts", "one that takes keywords", instead)

    def save_pretrained(self, save_directory: str | Path, **arguments: Any) -> str | None:
        """Write a folder that `from_pretrained` reads, with a model card; see `hub.save_pretrained`.

        Args:
            save_directory: folder to write to; created if it does not exist.
            arguments: others of `huggingface_hub.ModelHubMixin.save_pretrained`, such as
                ``model_card_kwargs={"license": "apache-2.0"}``.

        Returns:
            ``None``, or with ``push_to_hub=True`` the URL of the commit.
        """
        return models.save_pretrained(self, save_directory, **arguments)

    def push_to_hub(self, repo_id: str, **arguments: Any) -> str:
        """Upload to a repository of the Hugging Face Hub what `save_pretrained` writes, in one commit.

        Args:
            repo_id: ``user/name``; created if it does not exist.
            arguments: others of `huggingface_hub.ModelHubMixin.push_to_hub`, such as ``private=True``.

        Returns:
            The URL of the commit.
        """
        return models.push_to_hub(self, repo_id, **arguments)

    @classmethod
    def from_pretrained(cls, name: str | Path, **arguments: Any) -> Classifier:
        """Load what `save_pretrained` wrote, or a run's student, from a folder or the Hub; see `hub.from_pretrained`.

        Args:
            name: path of a folder, or ``user/name`` on the Hub.
            arguments: ``network=`` for a network of the caller's own module; ``revision``, ``token``, ``cache_dir``,
                ``local_files_only`` and ``force_download`` for the Hub; ``trust_code``.

        Returns:
            The classifier, on the CPU, in evaluation mode.
        """
        return models.from_pretrained(name, **arguments)

    def normalise(self, inputs: Tensor) -> Tensor:
        """Subtract the card's mean and divide by its standard deviation, per channel.

        This is computed in at least float32 and returned in the dtype of the inputs.
        """
        if self.mean is None or self.std is None:
            return inputs
        if not inputs.is_floating_point():
            expected = f"floating point values in [0, 1] for {self.card.name}"
            raise InvalidTypeError("inputs", expected, inputs.dtype, "type inputs.float() / 255")
        if inputs.dim() < 3 or inputs.shape[-3] != self.card.channels:
            expected = f"(batch, {self.card.channels}, height, width) for {self.card.name}"
            instead = "create the model with channels= as many as the data has"
            raise InvalidValueError("inputs", expected, tuple(inputs.shape), instead)
        return ((inputs - self.mean) / self.std).to(inputs.dtype)

    def train_head_alone(self) -> None:
        """Freeze everything but the head, which the card names; the rest is in evaluation mode, whoever sets another.

        Raises:
            ValueError: if no head is known.
        """
        head = self._known_head("head")
        self.network.requires_grad_(False)
        self.network.get_submodule(head).requires_grad_(True)
        self.frozen = frozenset(name for name in self.network.state_dict() if not name.startswith(f"{head}."))
        self.head_alone = True
        self.train(self.training)

    def train_adapters(self, adapters: Adapters, *, seed: int) -> None:
        """Freeze everything but new adapters, and the head where it classifies: that of a language model is published.

        Adapters that the network has are merged first.

        Args:
            adapters: adapters to put in; see `lora.inject`.
            seed: seed of their first weights.

        Raises:
            ImportError: if peft is not installed.
            ValueError: if a layer is unknown, or no head is known of a network that has to have it trained.
        """
        causal = self.call is not None and self.call.kind == "causal"
        head = self.card.head if causal else self._known_head("{lora: ...}")
        if self.adapters is not None:
            self.network = merged(self.network)
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(seed)
            self.adapters = inject(self.network, adapters, head=head)
        if head is not None and not causal:
            self.network.get_submodule(head).requires_grad_(True)
        state = self.network.state_dict(keep_vars=True)
        self.frozen = frozenset(n for n, t in state.items() if isinstance(t, nn.Parameter) and not t.requires_grad)

    def freeze(self, patterns: Sequence[str]) -> None:
        """Freeze parameters by name; a module that has no others is in evaluation mode, whoever sets another.

        So neither dropout nor running statistics of a frozen part change. What is frozen is saved with the rest.

        Args:
            patterns: shell patterns of the names of parameters or modules of the network, such as ``conv1`` or
                ``layer1.*``; that of a module stands for all in it.

        Raises:
            ValueError: if one stands for nothing, or nothing is left to train.
        """
        named = dict(self.network.named_parameters())
        modules = {name: module for name, module in self.network.named_modules() if name}
        chosen: set[nn.Parameter] = set()
        for pattern in patterns:
            found = {parameter for name, parameter in named.items() if fnmatchcase(name, pattern)}
            for name, module in modules.items():
                found |= set(module.parameters()) if fnmatchcase(name, pattern) else set()
            if not found:
                expected = f"patterns of names of parameters or modules of {self.card.name}"
                example = next(iter(named), "none")
                instead = nearest(pattern, [*modules, *named], otherwise=f"for example {example.partition('.')[0]}")
                raise InvalidValueError("frozen", expected, repr(pattern), instead)
            chosen |= found
        if not any(parameter.requires_grad for parameter in {*named.values()} - chosen):
            expected, got = "patterns that leave something to train", f"{', '.join(patterns)}, which is all"
            raise InvalidValueError("frozen", expected, got, "name less, or type trained=head for the head alone")
        for parameter in chosen:
            parameter.requires_grad_(False)
        self.frozen_by = tuple(patterns)
        self.train(self.training)

    def _fully_frozen(self) -> Iterator[nn.Module]:
        """Yield the modules all of whose parameters are frozen."""
        for module in self.network.modules():
            parameters = list(module.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                yield module

    def _known_head(self, trained: str) -> str:
        if self.card.head is None:
            instead = "type trained=all, or fit a layer of your own on its features"
            raise InvalidValueError("trained", f"all for {self.card.name}, which has no known head", trained, instead)
        return self.card.head

    def train(self, mode: bool = True) -> Classifier:
        """Set the mode; where the head alone is trained, of the head, and not of what is frozen by name."""
        super().train(mode)
        for module in self._fully_frozen() if self.frozen_by else ():
            module.eval()
        if self.head_alone and self.card.head is not None:
            self.network.eval()
            self.network.get_submodule(self.card.head).train(mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Classifier:
        super()._apply(fn, recurse)
        self.is_double = _is_double(self.network)
        # A mean rounded to bfloat16 is off by up to 0.002, so .to(bfloat16) must not round it; .double() must not
        # keep what float32 rounded.
        for name, values in (("mean", self.card.mean), ("std", self.card.std)):
            moved = getattr(self, name)
            if values is not None and moved is not None:
                dtype = torch.promote_types(moved.dtype, torch.float32)
                setattr(self, name, _column(values, dtype, moved.device))
        return self

    def extra_repr(self) -> str:
        """Name the model when a module is printed."""
        return f"{self.card.name}, classes={self.card.classes}"


def _is_double(network: nn.Module) -> bool:
    """Whether a network's weights are float64, for which it needs inputs of that kind."""
    return any(parameter.dtype == torch.float64 for parameter in network.parameters())


def _column(values: tuple[float, ...], dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device).reshape(-1, 1, 1)
