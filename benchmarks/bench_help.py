"""Time ``tutelage --help`` against an interpreter that does nothing.

    python benchmarks/bench_help.py [RESULT.json]

Prints both medians and their ratio; with a file's name it records them with the machine, the versions and n.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

N = 15
COMMANDS = {
    "help": [sys.executable, "-m", "tutelage.cli", "--help"],
    "distill help": [sys.executable, "-m", "tutelage.cli", "distill", "--help"],
    "reference: python -c pass": [sys.executable, "-c", "pass"],
}


def seconds(command: list[str]) -> float:
    """Time one whole process."""
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


if __name__ == "__main__":
    taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for i in range(N + 1):  # in turn, so that a change of the machine's speed meets all; the first round warms up
        for name, command in COMMANDS.items():
            value = seconds(command)
            if i:
                taken[name].append(value)
    medians = {name: statistics.median(values) for name, values in taken.items()}
    reference = list(medians.values())[-1]
    for name, median in medians.items():
        print(f"{name:<28} {median:.3f} s, {median / reference:.1f} times the reference")
    if sys.argv[1:]:
        import torch

        from tutelage import manifest

        found = {"n": N, "median_s": medians, "ratio": {name: m / reference for name, m in medians.items()}}
        machine = {**manifest.version(), "hardware": manifest.hardware(torch.device("cpu"))}
        record = {**found, **machine, "software": manifest.software()}
        Path(sys.argv[1]).write_text(json.dumps(record, indent=2) + "\n")
