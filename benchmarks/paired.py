"""Print a comparison's runs by seed, and the paired differences of its objectives, as Markdown.

    python benchmarks/paired.py benchmarks/results/multi-label-digits kd:ttm weighted_kd:wttm

Each objective is compared with the baseline, and the second of each named pair with the first. Values are the
last epoch's on the test set in percent; ± is the sample standard deviation over the seeds.
"""

import argparse
from pathlib import Path
from statistics import mean, stdev

from tutelage import records
from tutelage.report.reading import read, section


def table(folder, pairs):
    """Yield the lines of both tables."""
    subject = read(folder)
    by = subject.measure
    values = {
        entry: [by.scale * section(run.evaluation, "student")[by.key] for run in subject.of(entry)]
        for entry in subject.entries
    }
    seeds = ", ".join(str(run.seed) for run in subject.of(subject.entries[0]))
    yield from (f"| Objective | {by.title}, seeds {seeds} | Mean |", "|---|---|---:|")
    yield from (_row(entry, found, "") for entry, found in values.items())
    yield from ("", "| Difference | Seeds | Mean |", "|---|---|---:|")
    for first, second in [*((subject.baseline, entry) for entry in values if entry != subject.baseline), *pairs]:
        differences = [b - a for a, b in zip(values[first], values[second], strict=True)]
        yield _row(f"{second} - {first}", differences, "+")


def _row(name, values, sign):
    spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"| {name} | {', '.join(f'{v:{sign}.2f}' for v in values)} | {mean(values):{sign}.2f}{spread} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help=f"a folder with {records.COMPARISON}")
    parser.add_argument("pairs", nargs="*", type=lambda pair: pair.split(":"), help="FIRST:SECOND")
    arguments = parser.parse_args()
    print("\n".join(table(arguments.folder, arguments.pairs)))
