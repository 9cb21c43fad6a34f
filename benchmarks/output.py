"""What the scripts here share: options, and how they write what they measured and draw it."""

import argparse
import json

import torch

from tutelage.runs import manifest


def parser(description):
    """Return a parser whose help is a script's docstring."""
    return argparse.ArgumentParser(
        usage=argparse.SUPPRESS, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def machine():
    """Return what a record says of the versions and the processor."""
    hardware = manifest.hardware(torch.device("cpu"))
    return {**manifest.version(), "hardware": hardware, "software": manifest.software()}


def read(path):
    """Return a record that was written before; an empty one where there is none."""
    return json.loads(path.read_text()) if path and path.exists() else {}


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


def figure(columns=1, **settings):
    """Return a new figure and its axes, in the style of all."""
    from matplotlib import pyplot as plt

    plt.rcParams.update({"svg.hashsalt": "tutelage", "svg.fonttype": "none"})
    return plt.subplots(1, columns, figsize=(4.5 * columns, 3.4), layout="constrained", **settings)


def save(drawn, result):
    """Write a figure beside the record that it shows; the same bytes for the same record."""
    from matplotlib import pyplot as plt

    drawn.savefig(result.with_suffix(".svg"), metadata={"Date": None})
    plt.close(drawn)
