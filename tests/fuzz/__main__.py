"""Read very many inputs, keep one of each kind that went wrong, and print and write the tally.

    python -m tests.fuzz [--inputs 100000] [--targets recipes,images] [--write benchmarks/results/fuzz.json]

Every target has its share of the inputs. The shortest input of each kind of fault is saved under .hypothesis/found;
one that is to stay is moved to tests/fuzz/corpus/TARGET, where every run replays it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from tests._helpers import ROOT
from tests.fuzz import strategies
from tests.fuzz.targets import TARGETS, judge

CORPUS = Path(__file__).parent / "corpus"
FOUND = ROOT / ".hypothesis" / "found"
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def kind_of(reason: str) -> str:
    """Return what faults of one kind have in common: what was raised and where, or what the message lacks."""
    return re.sub(r"( in (?!\w+\.py:).*|: .*|\d+)", "", reason)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what libraries in C write to the terminal of damaged pictures."""
    before = os.dup(2)
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def fuzz(name: str, inputs: int, folder: Path) -> tuple[int, dict[str, bytes]]:
    """Read so many inputs of a target; return how many, and the shortest that went wrong in each way."""
    wrong: dict[str, bytes] = {}
    done = 0

    @settings(
        max_examples=inputs,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategies.inputs(name))
    def read(content: bytes) -> None:
        nonlocal done
        done += 1
        if done % 500 == 0:  # So that what one input left beside it reaches few others.
            shutil.rmtree(folder)
            folder.mkdir()
        if reason := judge(TARGETS[name], folder, content):
            kind = kind_of(reason)
            if kind not in wrong or len(content) < len(wrong[kind]):
                wrong[kind] = content

    read()
    return done, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--write", type=Path, help="a JSON file for the tally")
    options = parser.parse_args()
    names = options.targets.split(",")
    began, tally = time.monotonic(), {}
    kinds: list[str] = []
    for name in names:
        with tempfile.TemporaryDirectory(dir=MEMORY) as scratch, _quiet():
            folder = Path(scratch) / "inputs"
            folder.mkdir()
            os.chdir(folder.parent)
            start = time.monotonic()
            replayed = sorted((CORPUS / name).glob("*"))
            found = {str(path): judge(TARGETS[name], folder, path.read_bytes()) for path in replayed}
            done, wrong = fuzz(name, -(-options.inputs // len(names)), folder)
            seconds = time.monotonic() - start
            os.chdir(ROOT)
        kinds += [f"{name}: {kind}" for kind in wrong]
        kinds += [f"{name}: {path}: {kind}" for path, kind in found.items() if kind]
        for k, (kind, content) in enumerate(wrong.items()):
            (FOUND / name).mkdir(parents=True, exist_ok=True)
            (FOUND / name / f"{k}").write_bytes(content)
            print(f"WRONG {name}: {kind}: {content[:80]!r}", flush=True)
        tally[name] = {"inputs": done, "replayed": len(replayed), "seconds": round(seconds, 1), "wrong": sorted(wrong)}
        print(
            f"{name:<12} {done:>7} inputs, {1000 * seconds / max(done, 1):.2f} ms each, {len(wrong)} kinds wrong",
            flush=True,
        )
    total = sum(each["inputs"] for each in tally.values())
    print(f"{total} inputs, {len(kinds)} kinds wrong, {time.monotonic() - began:.0f} s")
    if options.write:
        sys.path.insert(0, str(ROOT / "benchmarks"))
        import output

        command = f"python -m tests.fuzz --inputs {options.inputs}"
        record = {"command": command, "inputs": total, "seconds": round(time.monotonic() - began), "tally": tally}
        output.write(options.write, record)
    return 1 if kinds else 0


if __name__ == "__main__":
    sys.exit(main())
