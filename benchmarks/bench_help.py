"""Time ``tutelage --help`` against an interpreter that does nothing.

    python benchmarks/bench_help.py [RESULT.json]

Prints both medians and their ratio; with a file's name it records them with the machine, the versions and n.
"""

import sys
from pathlib import Path

import output

from tutelage.benchmark import startup

N = 15

if __name__ == "__main__":
    medians = startup.measure(N)
    ratio = {name: median / medians[startup.REFERENCE] for name, median in medians.items()}
    for name, median in medians.items():
        print(f"{name:<28} {median:.3f} s, {ratio[name]:.1f} times the reference")
    if sys.argv[1:]:
        output.write(Path(sys.argv[1]), {"n": N, "median_s": medians, "ratio": ratio})
