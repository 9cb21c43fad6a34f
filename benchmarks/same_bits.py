"""Compare what this version computes with another version, bit for bit, on one machine.

    python benchmarks/same_bits.py BASE                      all cases; about five minutes on two cores
    python benchmarks/same_bits.py BASE --cases views,bf16   only these
    python benchmarks/same_bits.py BASE --keep FOLDER        keeps the output of both, in FOLDER/base and FOLDER/here

BASE is a git revision, checked out into a temporary worktree. Both versions, its `src` and that of this working tree,
run the cases of `same_bits_cases.py` side by side, each in a process with one thread. The cases name only keys that
BASE has. Then the outputs are compared: every tensor of weights, checkpoints and recorded outputs by name, shape, dtype
and bits, and every record by its keys and values, without times, speeds, memory and the version. Within each version a
stopped run is compared with one that was not stopped, and students in lockstep with the same students alone.

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
import versions
import yaml
from safetensors.torch import load_file

SIDES = "base", "here"
ALIKE = {"resume": [("killed", "whole"), ("stopped", "whole")], "lockstep": [("together", "alone")]}
"""Folders of a case that must be the same within one version."""
CHANGING = {"seconds", "images_per_second", "memory_mb", "started", "duration_s", "version", "commit", "files", "run"}
CHANGING |= {"latency_ms", "latency_p90_ms", "latency_n", "throughput", "batch"}
"""Keys of records whose values no two runs share: times, versions, and digests of files that hold them."""


def compared(folder):
    """Find the files to compare in a folder: tensors and records by their relative paths."""
    kinds = "*.safetensors", "*.jsonl", "*.json", "*.yaml"
    return {str(path.relative_to(folder)): path for kind in kinds for path in sorted(folder.rglob(kind))}


def read(path):
    """Read a file as lists, mappings and tensors."""
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.suffix == ".yaml" else json.loads(path.read_text())


def first_difference(first, second):
    """Return the first difference of two values; none if they are equal."""
    if isinstance(first, dict) and isinstance(second, dict):
        if lone := sorted((first.keys() ^ second.keys()) - CHANGING):
            return f" {lone[0]}: only in the {'first' if lone[0] in first else 'second'}"
        pairs = [(key, first[key], second[key]) for key in first if key not in CHANGING]
    elif isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        pairs = [(k, *both) for k, both in enumerate(zip(first, second, strict=True))]
    elif isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        if (first.dtype, first.shape) != (second.dtype, second.shape):
            return f": {first.dtype} {tuple(first.shape)}, {second.dtype} {tuple(second.shape)}"
        if torch.equal(*(x.contiguous().view(-1).view(torch.uint8) for x in (first, second))):
            return None
        apart = (first.double() - second.double()).abs()
        return f": {int((apart != 0).sum())} of {apart.numel()} values, by up to {apart.max():.2g}"
    else:
        same = type(first) is type(second) and first == second
        return None if same else f": {str(first)[:60]}, {str(second)[:60]}"
    return next((f" {key}{difference}" for key, *both in pairs if (difference := first_difference(*both))), None)


def hold(first, second, skipped=()):
    """Compare two folders: how many tensors and records they share, and the first difference in each file."""
    files, others = compared(first), compared(second)
    tensors, entries = 0, 0
    differences = [
        f"{name}: only in the {'first' if name in files else 'second'}" for name in files.keys() ^ others.keys()
    ]
    for name in files.keys() & others.keys():
        if Path(name).name in skipped:
            continue
        mine, its = read(files[name]), read(others[name])
        tensors += len(mine) if name.endswith(".safetensors") else 0
        entries += 0 if name.endswith(".safetensors") else len(mine) if name.endswith(".jsonl") else 1
        if difference := first_difference(mine, its):
            differences.append(name + difference)
    return tensors, entries, sorted(differences)


def judge(name, folder, done):
    """Print a case's row; return whether all of it is the same."""
    seconds = " ".join(f"{done[side][name]['seconds']:5.0f}" for side in SIDES)
    faults = [f"{side} failed: {fault}" for side in SIDES if (fault := done[side][name]["fault"])]
    tensors, entries, differences = hold(*(folder / side / name for side in SIDES))
    for side, (first, second) in itertools.product(SIDES, ALIKE.get(name, ())):
        runs = folder / side / name
        more, records, within = hold(runs / first, runs / second, ("manifest.json", "recipe.yaml"))
        tensors, entries = tensors + more, entries + records
        differences += [f"{side}, {first} against {second}: {text}" for text in within]
    if not tensors:
        faults.append("nothing to compare")
    differences = [*faults, *differences]
    print(
        f"{name:<10} {tensors:>7} {entries:>8} {seconds}  {differences[0].strip() if differences else 'equal'}",
        flush=True,
    )
    if len(differences) > 1:
        print(f"{'':<10} and {len(differences) - 1} more", flush=True)
    return not differences


def run(sources, cases, folder):
    """Run the cases in both versions, and wait for them."""
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TUTELAGE_DEBUG": "1"}
    script = [sys.executable, Path(__file__).with_name("same_bits_cases.py")]
    going = []
    for side, source in sources.items():
        work = folder / side
        work.mkdir(parents=True)
        env = {**shared, "PYTHONPATH": str(source), "TUTELAGE_CACHE": str(work / "cache")}
        # BASE's recipes for both: the cases name only keys that it has.
        typed = [*script, source, sources["base"].parent / "recipes", *cases]
        with (work / "log").open("w") as log:
            going.append(subprocess.Popen(typed, cwd=work, env=env, stdout=log, stderr=subprocess.STDOUT))
    statuses = [process.wait() for process in going]
    if any(statuses):
        raise SystemExit(
            "\n".join(f"{side}:\n{(folder / side / 'log').read_text(encoding='utf-8')[-2000:]}" for side in SIDES)
        )


def main(base, cases, folder):
    with versions.sources_of(base, folder) as sources:
        run(sources, cases, folder)
    done = {side: json.loads((folder / side / "done.json").read_text(encoding="utf-8")) for side in SIDES}
    print(f"{'case':<10} tensors  records  base  here  seconds each")
    return not [name for name in done["base"] if not judge(name, folder, done)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", metavar="BASE", help="a git revision")
    parser.add_argument("--cases", default="", help="only these, separated by commas")
    parser.add_argument("--keep", type=Path, help="a new folder for what both write")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        kept = (arguments.keep or Path(scratch) / "both").resolve()
        sys.exit(not main(arguments.base, [case for case in arguments.cases.split(",") if case], kept))
