"""Hold what this version computes against another version of it, bit for bit, on one machine.

    python benchmarks/same_bits.py BASE                      all cases; about five minutes on two cores
    python benchmarks/same_bits.py BASE --cases views,bf16   of these alone
    python benchmarks/same_bits.py BASE --keep FOLDER        keeps what both wrote, in FOLDER/base and FOLDER/here

BASE is a git revision. It is checked out into a temporary worktree, and both versions, its `src` and that of this
working tree, do the cases of `same_bits_cases.py` side by side, each in a process with one thread. The cases name only
keys that BASE has. What the two leave is compared: every tensor of weights, checkpoints and recorded outputs by name,
shape, dtype and bits, every record by its keys and values, without times, speeds, memory and the version. Within each
version a run that was stopped is held against the one that was not, and students in lockstep against the same alone.

Exit status: 0 all is the same, 1 something differs, or a case failed or left nothing to compare.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file

HERE = Path(__file__).resolve().parents[1]
SIDES = "base", "here"
ALIKE = {"resume": [("killed", "whole"), ("stopped", "whole")], "lockstep": [("together", "alone")]}
"""Folders of a case that must be the same within one version."""
CHANGING = {"seconds", "images_per_second", "memory_mb", "started", "duration_s", "version", "commit"}
"""Keys of records whose values no two runs share."""


def compared(folder):
    """Find what is compared in a folder: tensors and records by their relative paths."""
    kinds = "*.safetensors", "*.jsonl", "*.json", "*.yaml"
    return {str(path.relative_to(folder)): path for kind in kinds for path in sorted(folder.rglob(kind))}


def read(path):
    """Read a file as lists, mappings and tensors."""
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    return yaml.safe_load(path.read_text()) if path.suffix == ".yaml" else json.loads(path.read_text())


def first_difference(one, other):
    """Say in what two values differ first; nothing where they do not."""
    if isinstance(one, dict) and isinstance(other, dict):
        if lone := sorted((one.keys() ^ other.keys()) - CHANGING):
            return f" {lone[0]}: only in the {'first' if lone[0] in one else 'second'}"
        pairs = [(key, one[key], other[key]) for key in one if key not in CHANGING]
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = [(k, *both) for k, both in enumerate(zip(one, other, strict=True))]
    elif isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            return f": {one.dtype} {tuple(one.shape)}, {other.dtype} {tuple(other.shape)}"
        if torch.equal(*(x.contiguous().view(-1).view(torch.uint8) for x in (one, other))):
            return None
        apart = (one.double() - other.double()).abs()
        return f": {int((apart != 0).sum())} of {apart.numel()} values, by up to {apart.max():.2g}"
    else:
        same = type(one) is type(other) and one == other
        return None if same else f": {str(one)[:60]}, {str(other)[:60]}"
    return next((f" {key}{said}" for key, *both in pairs if (said := first_difference(*both))), None)


def hold(one, other, skipped=()):
    """Compare two folders: how many tensors and records they share, and what differs first in each file."""
    files, others = compared(one), compared(other)
    tensors, entries = 0, 0
    said = [f"{name}: only in the {'first' if name in files else 'second'}" for name in files.keys() ^ others.keys()]
    for name in files.keys() & others.keys():
        if Path(name).name in skipped:
            continue
        mine, its = read(files[name]), read(others[name])
        tensors += len(mine) if name.endswith(".safetensors") else 0
        entries += 0 if name.endswith(".safetensors") else len(mine) if name.endswith(".jsonl") else 1
        if difference := first_difference(mine, its):
            said.append(name + difference)
    return tensors, entries, sorted(said)


def judge(name, folder, done):
    """Print a case's row; say whether all of it is the same."""
    seconds = " ".join(f"{done[side][name]['seconds']:5.0f}" for side in SIDES)
    faults = [f"{side} failed: {fault}" for side in SIDES if (fault := done[side][name]["fault"])]
    tensors, entries, said = hold(*(folder / side / name for side in SIDES))
    for side, (one, other) in itertools.product(SIDES, ALIKE.get(name, ())):
        place, own = folder / side / name, ("manifest.json", "recipe.yaml")
        more, records, differences = hold(place / one, place / other, own)
        tensors, entries = tensors + more, entries + records
        said += [f"{side}, {one} against {other}: {text}" for text in differences]
    if not tensors:
        faults.append("nothing to compare")
    said = [*faults, *said]
    print(f"{name:<10} {tensors:>7} {entries:>8} {seconds}  {said[0].strip() if said else 'equal'}", flush=True)
    if len(said) > 1:
        print(f"{'':<10} and {len(said) - 1} more", flush=True)
    return not said


def run(sources, cases, folder):
    """Have both versions do the cases, and wait for them."""
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TUTELAGE_DEBUG": "1"}
    script = [sys.executable, Path(__file__).with_name("same_bits_cases.py")]
    going = []
    for side, source in sources.items():
        place = folder / side
        place.mkdir(parents=True)
        env = {**shared, "PYTHONPATH": str(source), "TUTELAGE_CACHE": str(place / "cache")}
        # BASE's recipes for both: the cases name only keys that it has.
        typed = [*script, source, sources["base"].parent / "recipes", *cases]
        with (place / "log").open("w") as log:
            going.append(subprocess.Popen(typed, cwd=place, env=env, stdout=log, stderr=subprocess.STDOUT))
    statuses = [one.wait() for one in going]
    if any(statuses):
        raise SystemExit("\n".join(f"{side}:\n{(folder / side / 'log').read_text()[-2000:]}" for side in SIDES))


def main(base, cases, folder):
    git = ["git", "-C", str(HERE)]
    tree = folder / "tree"
    subprocess.run([*git, "worktree", "add", "--quiet", "--detach", tree, base], check=True)
    try:
        run({"base": tree / "src", "here": HERE / "src"}, cases, folder)
    finally:
        subprocess.run([*git, "worktree", "remove", "--force", tree], check=True)
    done = {side: json.loads((folder / side / "done.json").read_text()) for side in SIDES}
    print(f"{'case':<10} tensors  records  base  here  seconds each")
    return not [name for name in done["base"] if not judge(name, folder, done)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", metavar="BASE", help="a git revision")
    parser.add_argument("--cases", default="", help="only these, separated by commas")
    parser.add_argument("--keep", type=Path, help="a new folder for what both write")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        kept = (given.keep or Path(scratch) / "both").resolve()
        sys.exit(not main(given.base, [case for case in given.cases.split(",") if case], kept))
