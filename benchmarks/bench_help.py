"""Time ``tutelage --help`` against an interpreter that does nothing.

    python benchmarks/bench_help.py [RESULT.json] [--rounds N]

Prints both medians and their ratio; given a file name, records them with the machine, the versions and n.
"""

from pathlib import Path

import output

from tutelage.benchmark import startup

if __name__ == "__main__":
    parser = output.parser(__doc__)
    parser.add_argument("result", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    medians = startup.measure(arguments.rounds)
    ratio = {name: median / medians[startup.REFERENCE] for name, median in medians.items()}
    for name, median in medians.items():
        print(f"{name:<28} {median:.3f} s, {ratio[name]:.1f} times the reference")
    output.write(arguments.result, {"n": arguments.rounds, "median_s": medians, "ratio": ratio})
