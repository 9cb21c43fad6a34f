"""Shared code of these scripts: options, records and figures."""

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
    """Add the options ``--device`` and ``--small``."""
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--small", action="store_true")


def require_device(parser, options):
    """End the script if it must measure a GPU and there is none."""
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: expected a GPU, got none that torch can see; type --device cpu --small to try it here")


def machine():
    """Return the versions and the processor, for a record."""
    hardware = manifest.hardware(torch.device("cpu"))
    return {**manifest.version(), "hardware": hardware, "software": manifest.software()}


def read(path):
    """Return an existing record, or an empty one."""
    return json.loads(path.read_text(encoding="utf-8")) if path and path.exists() else {}


def write(path, record):
    """Write a record to a path, if given, with the machine unless the record has it."""
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
    """Yield new axes in the common style; then write the figure next to its record."""
    # An axis of powers of ten has a formula at each mark.
    with print_style.style(text__parse_math=True) as plt:
        drawn = plt.figure.Figure(figsize=(4.5 * columns, 3.4), layout="constrained")
        yield drawn.subplots(1, columns, **settings)
        result.with_suffix(".svg").write_bytes(print_style.encode(drawn, "svg"))
