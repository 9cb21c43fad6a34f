"""A dry forward pass before the first step: what a network makes of the data's inputs, and how few samples it takes."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from operator import itemgetter
from traceback import walk_tb

import torch
from torch import Tensor, nn

from tutelage.errors import RecipeError, TutelageError, UserCodeError, explained, reason_of
from tutelage.settings.fit import FitSettings, smallest_share
from tutelage.submodules import evaluation_mode, restored_modes
from tutelage.training.buffers import SavedBuffers
from tutelage.training.distributed import place
from tutelage.training.generators import random_state, restore_random
from tutelage.training.precision import mixed_precision
from tutelage.types import Inputs
from tutelage.views import map_views, views_of

PROBED = 2
"""Number of samples in a dry forward pass; a batch norm that sees one value per channel and sample needs as many."""


@contextmanager
def same_draws(device: torch.device) -> Iterator[None]:
    """Restore every random generator afterwards, and keep warnings for the run itself."""
    generators = random_state(device)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        restore_random(*generators, device)


def check_logits(
    network: nn.Module, who: str, inputs: Inputs, *, classes: int, settings: FitSettings, instead: str
) -> Tensor:
    """Return a network's logits in evaluation mode, unless it turns inputs into none for the data's classes.

    Args:
        network: network on the device of the inputs; nothing of it is changed, but lazy layers get their weights.
        who: what the network is, such as ``teacher``, and its name.
        inputs: a few samples, as in training.
        classes: number of classes of the data.
        settings: settings of the fit, whose precision is taken.
        instead: what to type where the number of logits is another.

    Raises:
        RecipeError: if a network that was made from a name does not take the inputs, or has other classes.
        UserCodeError: if a network of the user's own does not take them.
    """
    with same_draws(views_of(inputs)[0].device), evaluation_mode(network), torch.no_grad():
        outcome = _attempt(network, inputs, settings)
    if isinstance(outcome, Exception):
        raise _misfit(outcome, network, who, inputs) from outcome
    if (width := outcome.shape[-1]) != classes:
        raise RecipeError(who, f"logits for the {classes} classes of the data", width, instead)
    return outcome


def smallest_batch(
    network: nn.Module, who: str, inputs: Inputs, sizes: Sequence[int], *, settings: FitSettings
) -> tuple[int, str]:
    """Return how few samples of a fit's batches a network takes in training mode, and what of it needs them.

    Networks are taken to manage more samples than `PROBED` if they manage these, so that one pass is enough. Where it
    fails, passes with more samples tell a batch norm, which needs another sample, from a network that takes no such
    inputs. They run on a copy of the network.

    Args:
        network: network on the device of the inputs; nothing of it is changed.
        who: what the network is, such as ``student``, and its name.
        inputs: a few samples, as in training.
        sizes: sizes of the fit's micro-batches, the smallest and the largest among them.
        settings: settings of the fit, whose precision and layout are taken.

    Raises:
        RecipeError: if a network that was made from a name takes none of these sizes.
        UserCodeError: if a network of the user's own takes none.
    """
    errors: dict[int, Exception] = {}
    device, samples = views_of(inputs)[0].device, len(views_of(inputs)[0])
    with same_draws(device), _trained_copy(network, device, settings) as trained:
        for size in sorted({min(PROBED, *sizes), PROBED, *sizes}):
            rows = torch.arange(size, device=device) % samples
            batch = map_views(itemgetter(rows), inputs)
            outcome = _attempt(trained, batch, settings)
            if not isinstance(outcome, Exception):
                return size, next((_layer(error, trained) for error in errors.values()), "")
            errors[size] = outcome
        error = errors[PROBED]
        rows = torch.zeros(PROBED, dtype=torch.int64, device=device)
        raise _misfit(error, trained, who, map_views(itemgetter(rows), inputs)) from error


def check_batches(
    samples: int, batch_size: int, least: Mapping[str, int], *, world: int = 1, accumulate: int = 1
) -> None:
    """Refuse steps of which some micro-batch has fewer samples than an objective or a network takes.

    Args:
        samples: number of samples per epoch; the last batch has the remaining ones.
        batch_size: samples per step, over all micro-batches and processes.
        least: smallest batch by what needs it.
        world: number of processes that share each batch.
        accumulate: number of micro-batches per batch.

    Raises:
        RecipeError: with a batch size that fits, if there is one.
    """
    fewest = smallest_share(samples, batch_size, world=world)
    if world > 1 and 0 < fewest < accumulate:  # The processes would wait for each other in different ones.
        expected = f"as many micro-batches in every process, so at most {fewest}, the fewest samples of one in a batch"
        raise RecipeError("accumulate", expected, accumulate, f"type accumulate={fewest}")
    smallest = partial(smallest_share, samples, world=world, accumulate=accumulate)
    who, needed = max(least.items(), key=lambda item: item[1])
    if (got := smallest(batch_size)) >= needed:
        return
    sizes = (*range(batch_size, 0, -1), *range(batch_size + 1, samples + 1))
    fitting = next((size for size in sizes if smallest(size) >= needed), None)
    instead = f"type batch_size={fitting}" if fitting else "use more samples"
    if accumulate > 1 and smallest_share(samples, batch_size, world=world) >= needed:
        instead += ", or accumulate=1"
    micro = "micro-" if accumulate > 1 else ""
    processes = f" on {world} processes" if world > 1 else ""
    cut = f" in {accumulate} micro-batches" if accumulate > 1 else ""
    smallest_of = f"{got} in the smallest of {samples} samples by {batch_size}{cut}{processes}"
    raise RecipeError("batch_size", f"{needed} samples or more in every {micro}batch for {who}", smallest_of, instead)


@contextmanager
def _trained_copy(network: nn.Module, device: torch.device, settings: FitSettings) -> Iterator[nn.Module]:
    """Yield a copy of a network in training mode; where it cannot be copied itself, whose buffers are restored."""
    try:
        trained = copy.deepcopy(network)
    except Exception:  # noqa: BLE001  whatever it holds that cannot be copied
        buffers = SavedBuffers(network)
        buffers.save()
        with restored_modes(network):
            try:
                yield network.train()
            finally:
                buffers.restore()
    else:
        place(trained, device, settings)
        yield trained.train()


def _attempt(network: Callable[[Inputs], Tensor], inputs: Inputs, settings: FitSettings) -> Tensor | Exception:
    """Return a network's logits for inputs of its own, or the error that it raised."""

    def own(view: Tensor) -> Tensor:
        layout = torch.channels_last if settings.channels_last and view.ndim == 4 else torch.preserve_format
        return view.clone(memory_format=layout)

    try:
        with mixed_precision(views_of(inputs)[0].device, settings.precision):
            return network(map_views(own, inputs))
    except Exception as error:  # noqa: BLE001  whatever a network raises
        return error


def _misfit(error: Exception, network: nn.Module, who: str, inputs: Inputs) -> Exception:
    """Return the error for a network that does not take inputs, with the line or layer where it failed."""
    known = explained(error)
    if isinstance(known, TutelageError) and not isinstance(known, UserCodeError):
        return known
    named = inputs.items() if isinstance(inputs, Mapping) else [("", inputs)]
    shapes = ", ".join(f"{name} {tuple(view.shape)}".strip() for name, view in named)
    expected = f"the {who} to take inputs {shapes}, as the data have"
    reason = reason_of(error)
    layer = _layer(error, network)
    got = f"{reason}, in its {layer}" if layer else reason
    resized = _how_to_resize(network, who) if isinstance(inputs, Tensor) and inputs.ndim == 4 else ""
    if isinstance(known, UserCodeError):
        return UserCodeError(known.what, expected, got, f"fix it, {resized}or pass another network")
    return RecipeError(
        who, expected.removeprefix(f"the {who} "), got, f"{resized}or name a network for these".removeprefix("or ")
    )


def _how_to_resize(network: nn.Module, who: str) -> str:
    """Return what to type for a network that takes images of another size than the data's."""
    card = getattr(network, "card", None)
    if card is None or card.name.startswith("object:"):
        return "wrap it for images of its size, such as tutelage.models.adopt(module, image_size=(16, 16)), "
    if who.startswith("teacher"):
        return "type teacher.size=... for images of its size, "
    return "type student.size=... for images of its size (model.size=... to train a model), "


def _layer(error: Exception, network: nn.Module) -> str:
    """Return the path and class of the innermost module of a network that an error came out of."""
    paths = {module: path for path, module in network.named_modules()}
    layer = ""
    for frame, _ in walk_tb(error.__traceback__):
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module) and paths.get(module):
            layer = f"{paths[module]} ({type(module).__name__})"
    return layer.removeprefix("network.") if hasattr(network, "card") else layer
