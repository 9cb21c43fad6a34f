"""Check and time tutelage on a GPU, in parts of less than nine minutes each that resume where they were stopped.

    python benchmarks/gpu.py                          all parts, until the time is up; run it again to resume
    python benchmarks/gpu.py bugs                     what fails, waits, differs from the CPU or cannot be resumed
    python benchmarks/gpu.py ratios                   steps against the published loop and a whole-step CUDA graph
    python benchmarks/gpu.py losses                   cross-entropy and WTTM, the last layer with them: time and memory
    python benchmarks/gpu.py schedule --data FOLDER   vgg13 teaches vgg8 on CIFAR-100, 240 epochs, six methods
    python benchmarks/gpu.py report                   prints the tables; for a GPU it writes results/gpu.json

    --out FOLDER         for results and runs, by default runs/gpu; one folder per GPU, torch and size
    --data FOLDER        CIFAR-100 as Parquet, for the schedule only; the other parts draw random images
    --teacher FOLDER     a run's folder: the schedule's teacher, instead of training one
    --budget SECONDS     for this call, by default 540
    --device cuda|cpu    by default cuda
    --small              tiny sizes and a few steps: whether it all runs, which says nothing about speed
    --again              repeats what failed

Each part consists of items. A worker process does one after the other and appends each result to ``results.jsonl`` at
once; items with a result are not repeated. If an item breaks its worker, another process does the rest, because a
refused capture can leave CUDA's generators unusable. The exit status is 1 if an item of this call failed.
"""

import contextlib
import faulthandler
import importlib
import json
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path

import output
import torch

from tutelage.runs import manifest

PARTS = "bugs", "ratios", "losses", "schedule"
GRACE = 40.0
"""Seconds after the budget's end at which a running item counts as hanging."""
BROKEN = 75
"""Exit status of a worker that another must take over from."""
RESULT = Path(__file__).parent / "results" / "gpu.json"


class Record:
    """Results as JSON lines: first the machine, then an entry for every start or end of an item."""

    def __init__(self, out):
        self.path = out / "results.jsonl"
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        # A killed worker may leave half a line.
        entries = []
        for line in lines:
            with contextlib.suppress(json.JSONDecodeError):
                entries.append(json.loads(line))
        self.machine = entries[0] if entries else None
        self.items = {(entry["part"], entry["item"]): entry for entry in entries[1:]}

    def open(self, device, small):
        """Write the machine, or refuse the results of another."""
        hardware = manifest.hardware(torch.device(device))
        machine = {"small": small, "hardware": hardware, "software": manifest.software()}
        if self.machine is None:
            self.machine = machine
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(machine) + "\n")
        there, here = (
            {"small": each["small"], "gpu": each["hardware"]["gpu"], "torch": each["software"]["torch"]}
            for each in (self.machine, machine)
        )
        if there != here:
            raise SystemExit(
                f"--out: expected results of {here}, got those of {there} in {self.path}; type --out another folder"
            )

    def add(self, part, item, status, **more):
        """Append an entry: ``began``, ``ok``, ``FAIL`` or ``unfinished``."""
        entry = {"part": part, "item": item, "status": status, **more}
        self.items[part, item] = entry
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def entries(self, part, *statuses):
        """Return a part's entries of these statuses, by item."""
        return {item: entry for (of, item), entry in self.items.items() if of == part and entry["status"] in statuses}


def module_of(part):
    return importlib.import_module(f"gpu_{part}")


def left_of(record, part, items):
    done = record.entries(part, "ok", "FAIL")
    return [item for item in items if item not in done]


def work(part, options):
    """Do the remaining items of a part while there is time."""
    record, items = Record(options.out), module_of(part).items(options)
    for item in left_of(record, part, items):
        seconds, run = items[item]
        left = options.until - time.time()
        if left < seconds:
            return
        record.add(part, item, "began")
        faulthandler.dump_traceback_later(left + GRACE, exit=True, file=sys.__stderr__)
        began = time.perf_counter()
        status, more, broken = "ok", {}, False
        try:
            more = {"result": run()}
            if more["result"].pop("unfinished", False):
                status = "unfinished"
        except Exception as error:  # noqa: BLE001  the other items do not depend on it
            status, more = "FAIL", {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"}
            if broken := not isinstance(error, AssertionError):
                traceback.print_exc()
        faulthandler.cancel_dump_traceback_later()
        more |= {"seconds": round(time.perf_counter() - began, 2), "commit": manifest.version()["commit"]}
        record.add(part, item, status, **more)
        print(f"{status:<5} {item:<46} {more['seconds']:6.1f} s  {told(more)}", flush=True)
        if status == "unfinished":
            return
        if broken:
            sys.exit(BROKEN)


def told(entry):
    """Return an entry's error, or what its result lacks."""
    short = {key: value for key, value in entry.get("result", {}).items() if not isinstance(value, dict | list)}
    return entry.get("error") or ", ".join(f"{key} {value}" for key, value in short.items())


def run_part(part, options):
    """Do a part by workers, one after the other; return whether it is complete."""
    items = module_of(part).items(options)
    # torch requires it for deterministic algorithms.
    env = os.environ | ({"CUBLAS_WORKSPACE_CONFIG": ":4096:8"} if part == "bugs" else {})
    while left_of(record := Record(options.out), part, items):
        if time.time() > options.until - 5:
            return False
        typed = [sys.executable, __file__, part, *options.typed, "--until", str(options.until)]
        code = subprocess.run(typed, env=env).returncode
        record = Record(options.out)
        for item in record.entries(part, "began") if code not in (0, BROKEN) else ():
            error = f"the worker ended with exit status {code}; what it wrote last says where"
            record.add(part, item, "FAIL", error=error, commit=manifest.version()["commit"])
            print(f"FAIL  {item:<46} {error}", flush=True)
            code = BROKEN
        if code not in (0, BROKEN):
            raise SystemExit(f"{part}: expected exit status 0, got {code}; what the worker wrote says why")
        if code == 0 and left_of(record, part, items):  # There was no time for the next one.
            return False
    return True


def report(out):
    """Print the tables of the records and write them: for a GPU, next to the other results."""
    record = Record(out)
    if record.machine is None:
        raise SystemExit(f"--out: expected recorded results, got none in {out}; type python benchmarks/gpu.py first")
    hardware, software = record.machine["hardware"], record.machine["software"]
    counts = record.machine["small"] is False and hardware["device"] == "cuda"
    print(f"{hardware['gpu'] or hardware['processor']}, torch {software['torch']}, Python {software['python']}")
    if not counts:
        print(f"in small or without a GPU ({hardware['device']}): that it runs is all that this says")
    parts = {}
    for part in PARTS:
        entries = record.entries(part, "ok", "FAIL", "unfinished")
        if entries:
            print(f"\n{part}")
            parts[part] = {"items": entries, "summary": module_of(part).report(entries)}
    path = RESULT if counts else out / "gpu.json"
    output.write(path, record.machine | {"parts": parts})
    print(f"\nwritten: {path}")


def arguments():
    parser = output.parser(__doc__)
    parser.add_argument("part", nargs="?", choices=[*PARTS, "report"])
    parser.add_argument("--out", type=Path, default=Path("runs") / "gpu")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--budget", type=float, default=540.0)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--until", type=float)
    options = parser.parse_args()
    if options.part != "report":
        output.require_device(parser, options)
    for key in ("data", "teacher"):
        path = getattr(options, key)
        if path is not None and not path.is_dir():
            parser.error(f"--{key}: expected a folder, got {path}")
    options.typed = ["--out", str(options.out), "--device", options.device, *["--small"] * options.small]
    for key in ("data", "teacher"):
        if (path := getattr(options, key)) is not None:
            options.typed += [f"--{key}", str(path)]
    return options


def main():
    options = arguments()
    if options.part == "report":
        report(options.out)
        return
    if options.until:
        work(options.part, options)
        return
    options.until = time.time() + options.budget
    record = Record(options.out)
    record.open(options.device, options.small)
    before = dict(record.items)
    if options.again:
        for part, item in [key for key, entry in record.items.items() if entry["status"] == "FAIL"]:
            record.add(part, item, "again")
    parts = [options.part] if options.part else [p for p in PARTS if p != "schedule" or options.data or options.small]
    for part in parts:
        if not run_part(part, options):
            print(f"{part}: the time is up; type the same again to go on", flush=True)
            break
    failed = [e for key, e in Record(options.out).items.items() if e["status"] == "FAIL" and e != before.get(key)]
    report(options.out)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
