"""Low-rank adapters beside the linear layers of a frozen network, by the peft library."""

from __future__ import annotations

import copy
import json
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tutelage.errors import InvalidValueError, missing_extra, one_line
from tutelage.tensor_files import to_bytes

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
"""Files in peft's own format, which its users read."""
_NAME = "default"
"""What peft calls the one set of adapters that a network has here."""


class Adapters(NamedTuple):
    """Adapters of a network: a layer computes ``W x + alpha / rank * B A x``.

    Source: Hu et al., LoRA, ICLR 2022 (arXiv 2106.09685); ``A`` is ``(rank, inputs)``, ``B`` ``(outputs, rank)`` and at
    first zero.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...] = ()  # layers by their names, or the names' ends; none for `linear_layers`


def _library() -> Any:
    try:
        import peft
    except ImportError as error:
        raise missing_extra("trained", "peft for low-rank adapters", "lora", error) from error
    return peft


def linear_layers(network: nn.Module, *, head: str | None) -> tuple[str, ...]:
    """Return the names of all linear layers but the head, and but those that attention reads the weights of itself."""
    attention = [name for name, module in network.named_modules() if isinstance(module, nn.MultiheadAttention)]
    return tuple(
        name
        for name, module in network.named_modules()
        if (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D")  # GPT-2's layers
        and name not in ("", head)
        and not any(name.startswith(f"{path}.") for path in attention)
    )


def inject(network: nn.Module, adapters: Adapters, *, head: str | None) -> Adapters:
    """Put adapters into a network, which they leave to compute what it did; all else is frozen.

    Args:
        network: network that is changed in place.
        adapters: adapters to make; ``A`` is drawn from torch's generator.
        head: name of the layer whose output is the logits.

    Returns:
        The adapters with the names of all layers that have some.

    Raises:
        ImportError: if peft is not installed.
        ValueError: if no layer has such a name, or peft has no adapters for one.
    """
    peft = _library()
    targets = adapters.targets or linear_layers(network, head=head)
    if not targets:
        expected, got = "a network to put adapters in", "one without linear layers but its head"
        raise InvalidValueError("trained", expected, got, "type trained=all or trained=head")
    config = peft.LoraConfig(r=adapters.rank, lora_alpha=adapters.alpha, target_modules=list(targets))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "fan_in_fan_out")  # GPT-2's layers keep their weights so; peft sees it.
        try:
            peft.inject_adapter_in_model(config, network)
        except ValueError as error:
            known = sorted({name.rpartition(".")[2] for name in linear_layers(network, head=head)})
            expected = f"names of layers with adapters, such as {', '.join(known[:6])}"
            got = f"{', '.join(targets[:6])} ({one_line(error)[:120]})"
            raise InvalidValueError("trained.targets", expected, got, "leave it out for all linear layers") from error
    return adapters._replace(targets=tuple(_layers(network)))


def _layers(network: nn.Module) -> dict[str, Any]:
    """Return a network's layers with adapters by their names."""
    return {name: module for name, module in network.named_modules() if hasattr(module, "lora_A")}


def merged(network: nn.Module) -> nn.Module:
    """Return a copy of a network without adapters, which are added to its weights: ``W + alpha / rank * B A``."""
    network = copy.deepcopy(network)
    with torch.no_grad():
        for name, layer in _layers(network).items():
            layer.merge()
            network.set_submodule(name, layer.get_base_layer())
    network.__dict__.pop("peft_config", None)
    return network.requires_grad_(True)


def peft_files(network: nn.Module, adapters: Adapters, *, base: str, trained: dict[str, Tensor]) -> dict[str, bytes]:
    """Return the files from which peft puts what was trained on a network of the transformers library.

    Args:
        network: network with adapters.
        adapters: its adapters.
        base: name or folder of the network without them.
        trained: trained tensors by their names in the network.
    """
    whole = sorted({name.rpartition(".")[0] for name in trained if ".lora_" not in name})
    config = _library().LoraConfig(
        r=adapters.rank,
        lora_alpha=adapters.alpha,
        target_modules=list(adapters.targets),
        modules_to_save=whole or None,
        base_model_name_or_path=base,
        inference_mode=True,
        task_type="CAUSAL_LM" if type(network).__name__.endswith("ForCausalLM") else None,
    )
    written = json.dumps(config.to_dict(), indent=1, sort_keys=True, default=sorted)
    named = {f"base_model.model.{name.replace(f'.{_NAME}.', '.')}": tensor for name, tensor in trained.items()}
    return {CONFIG: f"{written}\n".encode(), WEIGHTS: to_bytes(named)}
