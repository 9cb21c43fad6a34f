"""Networks and graphs in 8-bit integers, by torchao."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn import functional as F

from tutelage.errors import InvalidValueError, missing_extra
from tutelage.exports.source import Source
from tutelage.models import Classifier

AT_ONCE = 16
"""Calibration samples in a batch."""
LEAST = 0.5
"""Share of a network's weights that are in the layers which `of_weights` changes, below which it is refused."""


class Embedding(nn.Module):
    """Rows of 8-bit integers, each with its scale; those that are looked up become float32.

    Args:
        table: table of float32.
    """

    rows: Tensor
    scale: Tensor

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        weight = table.weight.detach()
        scale = weight.abs().amax(1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny) / 127
        self.register_buffer("rows", (weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)

    def forward(self, ids: Tensor) -> Tensor:
        """Look up rows, ``(..., width)``, by ids ``(...)``."""
        return F.embedding(ids, self.rows) * F.embedding(ids, self.scale)


def of_weights(source: Source) -> Source:
    """Return a source whose linear layers and embeddings keep their weights in int8, a scale for each row.

    Everything is computed in float32: such a file is smaller, and no faster. A graph of it needs
    ``run_decompositions`` to run without torchao.

    Raises:
        ImportError: if torchao is not installed.
        ValueError: if most of its weights are in other layers, such as convolutions.
    """
    library = _library()
    classifier = source.classifier
    network: Any = copy.deepcopy(classifier.network)
    tables = [module for module in network.modules() if type(module) in (nn.Linear, nn.Embedding)]
    inside = {id(module.weight): module.weight.numel() for module in tables}
    total = sum(parameter.numel() for parameter in network.parameters())
    if sum(inside.values()) < LEAST * total:
        got = f"{classifier.card.name}, which has {sum(inside.values()) / max(1, total):.0%} of them there"
        expected = "a network with most of its weights in linear layers and embeddings"
        raise InvalidValueError("int8", expected, got, "type --to onnx or --to executorch with --int8")
    for name, module in list(network.named_modules()):
        if type(module) is nn.Embedding and module.max_norm is None:
            network.set_submodule(name, Embedding(module))
    library.quantize_(network, library.Int8WeightOnlyConfig())
    from torchao.utils import unwrap_tensor_subclass

    unwrap_tensor_subclass(network)
    changed = Classifier(network, classifier.card, call=classifier.call)
    return replace(source, classifier=changed.eval())


def for_xnnpack(source: Source, program: ExportedProgram) -> Any:
    """Return a graph as a module that computes in int8 where XNNPACK can, to be traced again.

    Weights have a scale for each channel. The ranges of activations are measured on ``source.calibration``; where it
    has attention, a softmax inside, or reads text, they are those of each batch instead, and only linear layers are
    changed: activations of single channels are much larger than all others there.

    Args:
        source: what the graph is of.
        program: graph, for batches of `AT_ONCE` samples and smaller ones.

    Raises:
        ImportError: if torchao or executorch is not installed.
    """
    _library()
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    assert source.calibration is not None
    attends = any("softmax" in str(node.target) or "scaled_dot" in str(node.target) for node in program.graph.nodes)
    dynamic = attends or source.of_text
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=dynamic)
    quantizer = XNNPACKQuantizer()
    if dynamic:
        quantizer.set_operator_type(torch.ops.aten.linear.default, config)
        # It makes numbers into tensors of float32, those that are added to places of tokens too; layers need none.
        quantizer.transform_for_annotation = lambda model: model
    else:
        quantizer.set_global(config)
    prepared = prepare_pt2e(program.module(), quantizer)
    with torch.no_grad():
        for batch in source.calibration.split(AT_ONCE):
            prepared(batch)
    return convert_pt2e(prepared)


def _library() -> Any:
    try:
        from torchao import quantization
    except ImportError as error:
        raise missing_extra("int8", "torchao", "int8", error) from error
    return quantization
