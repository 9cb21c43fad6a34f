"""What the scripts here share: options, and how they write what they measured and draw it."""

import argparse
import json
from contextlib import contextmanager

import torch

from tutelage.runs import manifest
from tutelage.studies import print_style


def parser(description):
    """Return a parser whose help is a script's docstring."""
    return argparse.ArgumentParser(
        usage=argparse.SUPPRESS, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_device(parser):
    """Add where a script measures, and whether in tiny sizes."""
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--small", action="store_true")


def require_device(parser, options):
    """End the script where it is to measure a GPU and there is none."""
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: expected a GPU, got none that torch can see; type --device cpu --small to try it here")


def machine():
    """Return what a record says of the versions and the processor."""
    hardware = manifest.hardware(torch.device("cpu"))
    return {**manifest.version(), "hardware": hardware, "software": manifest.software()}


def read(path):
    """Return a record that was written before; an empty one where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path and path.exists() else {}


def write(path, record):
    """Write a record where a path is given, and the machine, unless the record has it."""
    if path:
        content = {**record, **{k: v for k, v in machine().items() if k not in record}}
        path.write_text(json.dumps(content, indent=2) + "\n")


def part(path, name, command):
    """Return a part of a record, to draw it."""
    record = read(path)
    if name not in record:
        raise SystemExit(f"{path}: expected a record with {name!r}, got {', '.join(record) or 'none'}; type {command}")
    return record[name]


@contextmanager
def figure(result, columns=1, **settings):
    """Yield new axes, in the style of all; then write the figure beside the record that it shows."""
    # An axis of powers of ten has a formula at each mark.
    with print_style.style(text__parse_math=True) as plt:
        drawn = plt.figure.Figure(figsize=(4.5 * columns, 3.4), layout="constrained")
        yield drawn.subplots(1, columns, **settings)
        result.with_suffix(".svg").write_bytes(print_style.encode(drawn, "svg"))
