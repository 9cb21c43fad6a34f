"""The source ``export:model.pt2``: a network that `torch.export.save` wrote.

`torch.export.load` unpickles parts of such a file, and so runs code that somebody may have put there. A file is read
only where its name was typed or its code is trusted, as of ``file:`` names.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tutelage.errors import InvalidValueError, reason_of
from tutelage.models import names
from tutelage.models.exported import Graph, Port, digest_of, plan_exported
from tutelage.models.spec import ModelRequest, ModelSpec

PREFIX = names.EXPORT
METADATA = "metadata.json"
"""Name of what `tutelage export` writes among a file's extra files."""
LISTED = [("export:PATH.pt2", "a file of torch.export.save, as a teacher; may run code, so needs --trust-code")]
ANY = 2**31
"""An open axis has at least this many places, or infinitely many."""
_ADVICE = "export it with an open batch: torch.export.export(..., dynamic_shapes=({0: torch.export.Dim('batch')},))"


def plan(path: str, request: ModelRequest) -> ModelSpec:
    """Read a network from a file of `torch.export.save`.

    Raises:
        ValueError: if the file is not trusted, cannot be read, or is no network of images.
        FileNotFoundError: if there is no such file.
    """
    name = f"{PREFIX}:{path}"
    file = names.exported_file(name, trust_code=request.trust_code)
    inside = {METADATA: ""}
    try:
        with _silent(), file.open("rb") as opened:
            program: Any = torch.export.load(opened, extra_files=inside)
    except Exception as error:  # whatever is in the file
        got = f"{path} of {file.stat().st_size} bytes ({reason_of(error)[:120]})"
        instead = f"fetch it again, or export it with torch {torch.__version__.partition('+')[0]}"
        raise InvalidValueError("model", "a whole file of torch.export.save", got, instead) from error
    nodes = {node.name: node for node in program.graph.nodes}
    inputs = tuple(_port(each, nodes) for each in program.graph_signature.user_inputs)
    least, most = 1, None
    if inputs and inputs[0].shape:
        least, most = _range(nodes[inputs[0].name].meta["val"].shape[0], program.range_constraints)
    graph = Graph(
        file=file,
        inputs=inputs,
        outputs=tuple(
            _port(each, nodes)._replace(name=typed)
            for each, typed in zip(program.graph_signature.user_outputs, _names(program), strict=True)
        ),
        call=_Program(program),
        least=least,
        most=most,
        sha256=digest_of(file),
        batch_advice=_ADVICE,
        metadata=inside[METADATA] or None,
    )
    return plan_exported(name, graph, request)


class _Program(nn.Module):
    """Calls an exported program with its one input, and returns one of its outputs."""

    def __init__(self, program: Any) -> None:
        super().__init__()
        self.module = program.module()
        self._takes = program.call_spec.in_spec

    def forward(self, inputs: Tensor, output: int) -> object:
        positional, keywords = pytree.tree_unflatten([inputs], self._takes)
        return pytree.tree_leaves(self.module(*positional, **keywords))[output]

    def _apply(self, fn: Any, recurse: bool = True) -> _Program:
        """Move the tensors that the program makes itself, such as a range of numbers, with its own."""
        super()._apply(fn, recurse)
        device = next((tensor.device for tensor in self.module.state_dict().values()), torch.device("cpu"))
        for node in self.module.graph.nodes:
            if node.kwargs.get("device") not in (None, device):
                node.update_kwarg("device", device)
                self.module.recompile()
        return self


def _port(name: object, nodes: dict[str, Any]) -> Port:
    """Return an input or output by its node's name; one that is a constant has none."""
    value = nodes[name].meta.get("val") if isinstance(name, str) and name in nodes else None
    if not isinstance(value, Tensor):
        return Port(str(name), (), None)
    return Port(str(name), tuple(axis if isinstance(axis, int) else None for axis in value.shape), value.dtype)


def _range(axis: Any, ranges: Any) -> tuple[int, int | None]:
    """Return the smallest and the largest batch that a program takes."""
    if isinstance(axis, int):
        return axis, axis
    known = ranges.get(axis.node.expr)
    if known is None:
        return 1, None
    return max(1, int(known.lower)), int(known.upper) if known.upper < ANY else None


def _names(program: Any) -> list[str]:
    """Name the outputs as what the network returned has them: ``logits``, ``0``, or ``heads.1``."""
    spec = program.call_spec.out_spec
    paths, _ = pytree.tree_flatten_with_path(pytree.tree_unflatten(list(range(spec.num_leaves)), spec))
    return [".".join(map(_key, path)) or "0" for path, _ in paths]


def _key(entry: Any) -> str:
    """Return the key of a mapping, the name of a field or the position in a sequence."""
    return str(next(getattr(entry, name) for name in ("key", "name", "idx") if hasattr(entry, name)))


@contextmanager
def _silent() -> Iterator[None]:
    """Keep torch from logging what is in the error."""
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)
