"""Inject every fault, and print and write the tally.

python -m tests.faults [--most 8] [--verbs train,distill] [--only TEXT] [--write benchmarks/results/faults.json]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from tests._helpers import ROOT
from tests.faults import cases
from tests.faults.faults import COMMANDS, Bench

ENDS = ("refused", "same bits", "wrong", "not reached")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--most", type=int, default=8, help="times of each place")
    parser.add_argument("--verbs", default=",".join(COMMANDS))
    parser.add_argument("--only", default="", help="those whose name has this text")
    parser.add_argument("--write", type=Path, help="a JSON file for the tally")
    parser.add_argument("--show", action="store_true", help="what each command said")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    tally: dict[str, dict[str, Counter[str]]] = {}
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder) / "bench")
        for fault in cases.every(bench, most=options.most, verbs=options.verbs.split(",")):
            if options.only not in str(fault):
                continue
            outcome = bench.do(fault, cases.action_of(fault))
            tally.setdefault(fault.verb, {}).setdefault(fault.kind, Counter())[outcome.end] += 1
            for reason in outcome.wrong:
                print(f"WRONG {fault}: {reason}", flush=True)
                wrong.append(f"{fault}: {reason}")
            if options.show:
                print(f"{fault}\n  {outcome.end}: {outcome.first}\n  {outcome.again}", flush=True)
    totals = Counter[str]()
    for verb, kinds in tally.items():
        for kind, ends in sorted(kinds.items()):
            totals += ends
            print(f"{verb:<8} {kind:<30} " + "  ".join(f"{ends[end]:>4} {end}" for end in ENDS if ends[end]))
    injected = sum(totals.values()) - totals["not reached"]
    print(f"{injected} faults injected: " + ", ".join(f"{totals[end]} {end}" for end in ENDS))
    if options.write:
        sys.path.insert(0, str(ROOT / "benchmarks"))
        import output

        typed = f"python -m tests.faults --most {options.most}"
        record = {"command": typed, "injected": injected, "seconds": round(time.monotonic() - began), **totals}
        record |= {"tally": tally, "found": wrong}
        with contextlib.suppress(FileExistsError):
            options.write.parent.mkdir(parents=True)
        output.write(options.write, record)
        json.loads(options.write.read_text(encoding="utf-8"))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
