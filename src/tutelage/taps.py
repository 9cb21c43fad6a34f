"""Taps: features of a network, taken by forward hooks at named submodules. The only hook code of the project.

A tap is written as

- ``layer3.2.relu``: the output of that submodule,
- ``layer3.2.relu:input``: its first input,
- ``card:embedding``, ``card:stage.1``, ``card:before.1``: a submodule that the model's card names: the pooled embedding
  that the classifier reads, or a stage after or before its activation. Stages count from 0, negative ones from the
  last,
- ``head@layer4``, ``head@card:stage.-1``: local logits, the network's own head applied to each cell of that map. Their
  mean over the cells is the network's logits: `feature_shapes` refuses a network of which that is not so.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, cast

import torch
from torch import Tensor, nn

from tutelage.errors import InvalidTypeError, InvalidValueError
from tutelage.submodules import LAYER, evaluation_mode, find_head, input_of, layers_of, split_tap, unwrapped
from tutelage.types import Hidden, Inputs
from tutelage.views import map_views, views_of

CARD, HEAD = "card:", "head@"
_SHOWN = 5
"""Number of similar names in a message."""


class _Recorder:
    """The tensors that hooks record during one call; empty between calls."""

    def __init__(self) -> None:
        self.features: dict[str, Tensor] | None = None
        self.versions: dict[str, int] = {}

    def record(self, name: str, value: object) -> None:
        if self.features is None:
            return
        # Numbered layers of older transformers return a tuple, the hidden states first.
        if name.rpartition(".")[2].isdecimal() and isinstance(value, tuple) and value:
            value = cast(object, value[0])
        if not isinstance(value, Tensor):
            instead = "name a submodule inside it or after it"
            raise InvalidTypeError(f"tap {name}", "a submodule that gives one tensor", type(value).__name__, instead)
        self.features[name] = value
        # The number of writes to a tensor; tensors of inference mode do not count them.
        self.versions[name] = 0 if value.is_inference() else value._version


@dataclass(frozen=True)
class _Hook:
    """A hook as a value, so that a copied network with its taps records into the copied recorder."""

    recorder: _Recorder
    name: str
    input: bool

    def __call__(self, module: nn.Module, args: Any, output: Any = None) -> None:
        self.recorder.record(self.name, (args[0] if args else None) if self.input else output)


class Taps:
    """A network's named features, recorded while it is called through this object.

    If a submodule is called several times in one forward pass, the last call's value counts. In-place activations are
    switched to return a new tensor, as they would overwrite a feature. The hooks are removed with this object.

    Raises:
        ValueError: if the network has no such submodule; the message names the nearest ones.
    """

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        modules = find_all(network, names)
        self._names = tuple(modules)
        self.recorder = _Recorder()
        self.local = {name: _LocalLogits(network, name) for name in self._names if name.startswith(HEAD)}
        for name, (module, is_input) in modules.items():
            hook = _Hook(self.recorder, name, is_input)
            handle = module.register_forward_pre_hook(hook) if is_input else module.register_forward_hook(hook)
            weakref.finalize(self, handle.remove)
        if self._names:
            for module in network.modules():
                if getattr(module, "inplace", False) is True:
                    setattr(module, "inplace", False)  # noqa: B010  modules declare every attribute a tensor or module

    def __call__(self, network: Callable[..., Any], inputs: Inputs) -> tuple[Any, dict[str, Tensor]]:
        """Call the network, or a module that calls it, and return its output and the features by tap."""
        if not self._names:
            return network(inputs), {}
        self.recorder.features = {}
        try:
            output = network(inputs)
            features = self.recorder.features
        finally:
            self.recorder.features = None
        for name in self._names:
            if name not in features:
                expected = "a submodule that runs in the network's forward pass"
                instead = "name another, such as the module that contains it"
                raise InvalidValueError(f"tap {name}", expected, "one that does not", instead)
        for name, local in self.local.items():
            features[name] = local(features[name])
        return output, features


class _LocalLogits:
    """A network's head as it is, with its gradient, applied to each cell of a map; dropout before it is left out."""

    def __init__(self, network: nn.Module, tap: str) -> None:
        self.layer, self._network = _linear_head(network, f"tap {tap}"), network

    def __call__(self, maps: Tensor) -> Tensor:
        """Return ``(batch, classes, height, width)`` of maps ``(batch, channels, height, width)``."""
        cells, outputs = maps.movedim(1, -1), getattr(self._network, "outputs", None)
        logits = self.layer(cells.flatten(0, 2)).unflatten(0, cells.shape[:3])
        return (logits if outputs is None else logits.index_select(-1, outputs)).movedim(-1, 1)


@contextmanager
def restored_hooks(network: nn.Module | None) -> Iterator[None]:
    """Take hooks of forward passes away that a network did not have: what holds them may live longer, as errors do."""
    modules = [] if network is None else list(network.modules())
    hooks = [each for module in modules for each in (module._forward_hooks, module._forward_pre_hooks)]
    before = [set(each) for each in hooks]
    try:
        yield
    finally:
        for now, known in zip(hooks, before, strict=True):
            for number in now.keys() - known:
                del now[number]


def when_gradient(value: Tensor, call: Callable[[], object]) -> None:
    """Call a function when a value of a forward pass gets a gradient."""

    def hook(gradient: Tensor | None) -> None:
        if gradient is not None:  # A function behind the value may pass on that there is none.
            call()

    value.register_hook(hook)


def find(network: nn.Module, name: str) -> tuple[nn.Module, bool]:
    """Return the submodule of a tap, and whether its first input is taken instead of its output.

    If the module has a card, the submodules are those of the network inside it. Of local logits it is that of the map.

    Raises:
        ValueError: if there is no such submodule, or no head for local logits.
    """
    card, place = getattr(network, "card", None), name.removeprefix(HEAD)
    if place != name:
        _linear_head(network, f"tap {name}")
    path, is_input = split_tap(_on_card(card, place) if place.startswith(CARD) else place)
    modules = dict(unwrapped(network).named_modules())
    if not path or path not in modules:
        names = [n for n in modules if n]
        some = get_close_matches(path, names, n=_SHOWN, cutoff=0.4) or names[:_SHOWN]
        expected = f"a submodule of {getattr(card, 'name', type(network).__name__)}"
        instead = f"type one of {', '.join(some)}" if some else "name another network: this one has no submodules"
        raise InvalidValueError(f"tap {name}", expected, repr(name), instead)
    return modules[path], is_input


def find_all(network: nn.Module, names: Iterable[str]) -> dict[str, tuple[nn.Module, bool]]:
    """Return what `find` does for each tap by its name; a pattern's layers each have their own.

    Raises:
        ValueError: if there is no such submodule, or a pattern is the end of several.
    """
    taps = [tap for name in names for tap in (_layers(network, name) if LAYER in name else [name])]
    return {tap: find(network, tap) for tap in taps}


def _layers(network: nn.Module, name: str) -> list[str]:
    """Return the taps of a pattern's layers."""
    pattern, is_input = split_tap(name)
    paths = [path for path, _ in unwrapped(network).named_modules() if path]
    layers = layers_of(pattern, paths)
    if len(layers) != 1:
        who = getattr(getattr(network, "card", None), "name", type(network).__name__)
        known = list(layers) or list(
            dict.fromkeys(re.sub(r"\d+", LAYER, path) for path in paths if re.search(r"\d", path))
        )
        some = get_close_matches(pattern, known, n=_SHOWN, cutoff=0.4) or known[:_SHOWN]
        got = f"{pattern!r}, the end of {len(layers)} rows of layers" if layers else repr(name)
        instead = f"type one of {', '.join(some)}" if some else "name submodules: none of its has a number"
        raise InvalidValueError(f"tap {name}", f"a pattern of one row of layers of {who}", got, instead)
    (taps,) = layers.values()
    return [input_of(tap) for tap in taps] if is_input else taps


def _on_card(card: Any, name: str) -> str:
    """Return the path that a card gives for ``card:...``."""
    if card is None:
        raise InvalidValueError(
            f"tap {name}", "a model with a card", "a bare module", "name one of its submodules instead"
        )
    what, _, number = name.removeprefix(CARD).partition(".")
    if what == "embedding" and not number:
        if card.embedding is None:
            raise InvalidValueError(
                f"tap {name}",
                "a card that names the pooled embedding",
                f"that of {card.name}, which names none",
                "name a submodule, or NAME:input for what the classifier's last layer reads",
            )
        return str(card.embedding)
    paths = {"stage": card.stages[:-1], "before": card.stage_inputs[:-1]}.get(what)
    if paths is None or not number.removeprefix("-").isdecimal():
        raise InvalidValueError(
            f"tap {name}", "card:embedding, card:stage.N or card:before.N", repr(name), "for example card:stage.-1"
        )
    if not -len(paths) <= int(number) < len(paths):
        instead = f"type a number from {-len(paths)} to {len(paths) - 1}" if paths else "name a submodule instead"
        stages = f"a stage among the {len(paths)} that the card of {card.name} names"
        raise InvalidValueError(f"tap {name}", stages, number, instead)
    return str(paths[int(number)])


def head(network: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Copy weight and bias of a network's head: the only layer that can be it, and the only source of the logits.

    If a classifier maps its classes to some of the network's outputs, the rows are those of its classes.

    Raises:
        ValueError: if there is none, it is not linear, or there are several.
    """
    layer = _linear_head(network, "teacher")
    weight, bias = layer.weight.detach(), layer.bias
    outputs = getattr(network, "outputs", None)  # those of its classes, if a classifier maps them
    rows = slice(None) if outputs is None else outputs
    return weight[rows].clone(), None if bias is None else bias.detach()[rows].clone()


def _linear_head(network: nn.Module, what: str) -> nn.Linear:
    """Return a network's head; refuse one that is not linear, or not the only layer that can be it."""
    found = find_head(network)
    if found is not None and found.candidates > 1:
        expected = "a module with one linear layer, or a card that names its head"
        instead = "type tutelage.models.Classifier(network, Card(..., head=NAME))"
        raise InvalidValueError(what, expected, f"{found.candidates} linear layers", instead)
    if found is None or found.joint or not isinstance(found.layer, nn.Linear):
        name = getattr(getattr(network, "card", None), "name", type(network).__name__)
        got = "none" if found is None else "one of two heads" if found.joint else type(found.layer).__name__
        expected = f"a linear last layer of {name}, whose weights the objective reads"
        instead = "take a network that ends in one, or an objective that reads none"
        raise InvalidValueError(what, expected, got, instead)
    return found.layer


def batch_norm(network: nn.Module, name: str) -> tuple[Tensor, Tensor]:
    """Copy weight and bias of the batch norm whose output is, or is added to, the tapped value.

    That is the submodule itself if it is a batch norm, or the last child of a sequence. For an activation's input, such
    as ``card:before.1``, it is the module before it in a sequence; in any other block it is the last batch norm among
    the block's own children, so that the residual's counts, not the shortcut's.

    Raises:
        ValueError: if there is no such batch norm, or it has no weights.
    """
    tapped, is_input = find(network, name)
    layer: nn.Module | None = tapped
    if is_input:
        parent = next((m for m in network.modules() if tapped in m.children()), nn.Module())
        siblings = list(parent.children())
        if isinstance(parent, nn.Sequential):
            siblings = siblings[: siblings.index(tapped)][-1:]
        layer = next((module for module in reversed(siblings) if isinstance(module, nn.BatchNorm2d)), None)
    elif isinstance(layer, nn.Sequential) and len(layer):
        layer = layer[-1]
    if not isinstance(layer, nn.BatchNorm2d) or layer.weight is None:
        raise InvalidValueError(
            f"tap {name}",
            "one of the teacher's behind a BatchNorm2d with weights, before the activation",
            "none there" if layer is None else type(layer).__name__,
            "name batch norms of the teacher by norms=[...], one per tap",
        )
    return layer.weight.detach().clone(), layer.bias.detach().clone()


class LastLayer:
    """A network's last linear layer, whose inputs can be had in place of the network's logits.

    The layer is passed by for a call: what it is given becomes what the network returns. That holds where nothing
    follows the layer, which `misfit` checks.

    Args:
        network: any module; the layer is found as `submodules.find_head` does.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        head = find_head(network) or find_head(unwrapped(network))
        self._layer = head.layer if head is not None and isinstance(head.layer, nn.Linear) else None

    @property
    def classes(self) -> int:
        """The number of the layer's outputs; 0 without such a layer."""
        return 0 if self._layer is None else self._layer.out_features

    def is_within(self, modules: Iterable[nn.Module]) -> bool:
        """Whether the layer is part of one of these modules."""
        return any(self._layer is part for module in modules for part in module.modules())

    def __call__(self, inputs: Inputs) -> Hidden:
        """Return what a network's logits for these inputs are made of, under autocast in its dtype."""
        assert self._layer is not None  # `misfit` was asked before.
        with _passed_by(self._layer):
            states = self.network(inputs)
        weight, bias, kind = self._layer.weight, self._layer.bias, states.device.type
        if torch.is_autocast_enabled(kind) and states.dtype != torch.float64:
            dtype = torch.get_autocast_dtype(kind)
            return Hidden(states.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
        return Hidden(states, weight, bias)

    @torch.no_grad()
    def misfit(self, inputs: Inputs, *, again: Callable[[], None]) -> str | None:
        """Return why the network has no such layer, if that is so; it is called twice.

        Args:
            inputs: inputs of the network.
            again: function called between both calls, so that they draw the same random numbers.
        """
        layer = self._layer
        if layer is None:
            return "no linear layer gives its logits"
        seen: list[tuple[Tensor, Tensor]] = []
        handle = layer.register_forward_hook(lambda _, given, made: seen.append((given[0], made)))
        try:
            logits = self.network(inputs)
        finally:
            handle.remove()
        # Its memory, and not only its values: what is added to it may be 0 at first.
        last = len(seen) == 1 and isinstance(logits, Tensor) and logits.shape == seen[0][1].shape
        widened = last and logits.dtype != seen[0][1].dtype and torch.equal(logits, seen[0][1].to(logits.dtype))
        if not last or not (widened or logits.data_ptr() == seen[0][1].data_ptr()):
            return "its logits are not just what its last linear layer returns"
        again()
        try:
            hidden = self(inputs)
        except Exception as error:  # noqa: BLE001  whatever a network raises that was given another's shapes
            return f"it cannot be called without its last layer ({type(error).__name__})"
        if hidden.states.shape != seen[0][0].shape:
            return "it does not return what its last layer is given"
        made = nn.functional.linear(*hidden)
        scale = made.abs().max().item() * torch.finfo(made.dtype).eps ** 0.75
        if not torch.allclose(made.to(logits.dtype), logits, rtol=0.0, atol=scale):
            return "its last layer computes more than a product"
        return None


@contextmanager
def _passed_by(layer: nn.Module) -> Iterator[None]:
    """Let a layer return its input; hooks on it are called as ever."""
    own = vars(layer)  # where a function takes precedence over the class's, and others may have put theirs
    before = own.get("forward")
    own["forward"] = _first
    try:
        yield
    finally:
        del own["forward"]
        if before is not None:
            own["forward"] = before


def _first(inputs: Tensor) -> Tensor:
    return inputs


@torch.no_grad()
def feature_shapes(network: nn.Module, names: Sequence[str], inputs: Inputs) -> dict[str, tuple[int, ...]]:
    """Call a network once and return each feature's shape, without the batch axis; the network's mode is restored.

    Without names, the network is not called. ``inputs`` is a small batch.

    Raises:
        ValueError: if a feature was changed in place after it was recorded.
    """
    if not names:
        return {}
    device = next((p.device for p in network.parameters()), views_of(inputs)[0].device)
    with evaluation_mode(network):
        taps, inputs = Taps(network, names), map_views(lambda view: view.to(device), inputs)
        for name in taps.local:
            _require_mean(network, name, inputs)
        _, features = taps(network, inputs)
    for name, value in features.items():
        if name not in taps.local and value._version != taps.recorder.versions[name]:
            got = "one that the network changes in place afterwards"
            instead = "name the submodule that contains it, or the next one"
            raise InvalidValueError(f"tap {name}", "a feature that stays as it is", got, instead)
    return {name: tuple(value.shape[1:]) for name, value in features.items()}


def _require_mean(network: nn.Module, name: str, inputs: Inputs) -> None:
    """Refuse local logits whose mean is not the network's logits, or would not be after training."""
    place, local = name.removeprefix(HEAD), _LocalLogits(network, name)
    paths = {module: path for path, module in unwrapped(network).named_modules()}
    taps, read, means = Taps(network, (place,)), list[Any](), dict[str, Tensor]()
    behind = ""

    def note(module: nn.Module, given: Any, made: Any) -> None:
        nonlocal behind
        if module is local.layer:
            read.append(given[0] if given else None)
        elif local.layer not in set(module.modules()):
            # Values do not tell of what is there with a state: a fresh batch norm hardly changes them.
            if any(True for _ in (*module.parameters(False), *module.buffers(False))):
                means.clear()
                after = place in (taps.recorder.features or ())
                behind = f"{type(module).__name__} {paths.get(module, '')}" if after else ""
            if isinstance(made, Tensor) and made.ndim == 4 and made[0, 0].numel() > 1:
                means[paths.get(module, "")] = made.mean((2, 3))

    handle = nn.modules.module.register_module_forward_hook(note)
    try:
        logits, features = taps(network, inputs)
    finally:
        handle.remove()
    maps = features[place]
    if maps.ndim != 4 or len(read) != 1 or not _alike(maps.mean((2, 3)), read[0]):
        got = f"one of shape {tuple(maps.shape)[1:]}, of which the head reads something else"
    elif behind:
        got = f"one with {behind} between it and the head"
    elif not _alike(local(maps).mean((2, 3)), logits):
        got = "logits that are not just what the head gives"
    else:
        return
    expected = "a map whose mean over its cells is all that the head reads, so that logits are the mean of local ones"
    others = [path for path, mean in means.items() if path and read and _alike(mean, read[-1])]
    instead = f"type {HEAD}{others[-1]}" if others else "take a network of one linear layer behind a mean over a map"
    raise InvalidValueError(f"tap {name}", expected, got, instead)


def _alike(first: Tensor, second: Any) -> bool:
    """Whether two tensors are equal but for the rounding of sums."""
    if not isinstance(second, Tensor) or first.shape != second.shape:
        return False
    scale = max(torch.finfo(each.dtype).eps for each in (first, second)) ** 0.5 * first.abs().max()
    return bool((first - second).abs().max() <= scale)
