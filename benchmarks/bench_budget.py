"""Test `tutelage study --budget`: kill it with SIGKILL, copy its folder, resume there, and stop inside the budget.

    python benchmarks/bench_budget.py --budget 20m --kill-after 6m --work WORK table1 --epochs 1 ...

A study and its own options follow the options. The first part is killed after the given time. The second part gets the
rest of the budget, in another folder, from a copy of the first's runs. The script prints and records as JSON how long
each part took of its time, which runs were finished, begun and kept, and the table.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from tutelage import records
from tutelage.places import time_limit
from tutelage.runs import manifest


def statuses(runs: Path) -> dict[str, str]:
    """Return each run's status, by folder."""
    paths = sorted(runs.rglob(records.MANIFEST))
    return {path.parent.relative_to(runs).as_posix(): records.read_json(path)["status"] for path in paths}


def part(typed: list[str], folder: Path, kill_after: float | None) -> tuple[float, int, list[str]]:
    """Run a command in a folder; return its seconds, its exit status and its lines."""
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with (folder / "said.txt").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tutelage", *typed], cwd=folder, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            process.wait(timeout=kill_after)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
    return time.monotonic() - began, process.returncode, (folder / "said.txt").read_text(encoding="utf-8").splitlines()


def main() -> None:
    """Run both parts, print and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget", required=True)
    parser.add_argument("--kill-after", required=True)
    parser.add_argument("--work", type=Path, required=True, help="an empty folder for both parts")
    parser.add_argument("--write", type=Path, help="the JSON file to record in")
    arguments, study = parser.parse_known_args()
    first, second = arguments.work.resolve() / "first", arguments.work.resolve() / "second" / "place"
    seconds, early = time_limit.read(arguments.budget), time_limit.read(arguments.kill_after)
    took, code, before_kill = part(["study", *study, "--budget", arguments.budget], first, early)
    print(f"first part: {took:.1f} s, exit status {code}")
    if code != -signal.SIGKILL:
        print((first / "said.txt").read_text(encoding="utf-8"))
        sys.exit("the first part ended by itself, so it was not killed: give it more to do, or kill it earlier")
    before = statuses(first / "runs")
    kept = [name for name, status in before.items() if status == "finished"]
    bits = {name: (first / "runs" / name / records.STUDENT).read_bytes() for name in kept}
    second.mkdir(parents=True)
    shutil.copytree(first / "runs", second / "runs")
    shutil.move(first, arguments.work.resolve() / "gone")
    remaining = round(seconds - took)
    again, status, lines = part(["study", *study, "--budget", f"{remaining}s"], second, None)
    print(f"second part: {again:.1f} s of {remaining} s, exit status {status}")
    print("\n".join(lines))
    after = statuses(second / "runs")
    (folder,) = (path.parent for path in (second / "runs").rglob(records.STUDY))
    record = {
        "command": manifest.without_paths(["tutelage", "study", *study, "--budget", arguments.budget]),
        "budget_s": seconds,
        "parts": [
            {"given_s": seconds, "killed_after_s": round(took, 1), "status": code},
            {"given_s": remaining, "took_s": round(again, 1), "status": status, "ratio": round(again / remaining, 3)},
        ],
        "inside_the_budget": took + again <= seconds,
        "after_the_kill": before,
        "at_the_end": after,
        "finished_before_the_kill": kept,
        "finished_runs_kept_their_bits": None
        if not kept
        else all((second / "runs" / name / records.STUDENT).read_bytes() == content for name, content in bits.items()),
        "went_on_within_a_run": [line for line in lines if "resuming after" in line],
        "plan": [
            line
            for text in (before_kill, lines)
            for line in text
            if " ms per step" in line or line.startswith("budget: ")
        ],
        "last_lines": lines[-2:],
        "table": records.read_json(folder / "table.json")["rows"],
        "n": 1,
        "hardware": manifest.hardware(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        **manifest.version(),
        "software": manifest.software(),
    }
    text = json.dumps(manifest.without_paths(record), indent=1) + "\n"
    if arguments.write:
        arguments.write.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
