"""Search for a recipe's settings, and record what was found, over how many trials, and what of it was noise.

    python benchmarks/tune.py recipes/digits-wttm.yaml epochs=20 --trials 40 --write benchmarks/results/tune/digits.json
    python benchmarks/tune.py RECIPE [KEY=VALUE]... --space objective --confirm 5 --runs FOLDER --write FILE

The folder of the runs keeps everything: the same command goes on with a search that was stopped. The record has the
trials, the settings that were found, and each run over a new seed.
"""

import shlex
import sys
import time
from pathlib import Path

import output

from tutelage.runs import recipes
from tutelage.runs.reporter import Reporter
from tutelage.runs.run import RunOptions
from tutelage.tuning import request as requests
from tutelage.tuning import search, summary


class Lines(Reporter):
    """Prints what is said."""

    def say(self, text):
        print(text, flush=True)


def main():
    parser = output.parser(__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--confirm", type=int, default=5)
    parser.add_argument("--space", choices=("recipe", "objective"), default="recipe")
    parser.add_argument("--search", action="append", default=[])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--write", type=Path)
    options = parser.parse_intermixed_args()
    asked = requests.request(
        recipes.from_file(options.recipe, options.overrides),
        trials=options.trials,
        confirm=options.confirm,
        space=options.space,
        search=options.search,
    )
    began = time.monotonic()
    folder = options.runs / requests.folder_name(asked)
    found = search.tune(asked, folder, options=RunOptions(reporter=Lines()))
    record = found.record
    for line in summary.lines(record):
        print(line)
    states = [trial["state"] for trial in record["trials"]]
    kept = ("number", "origin", "values", "state", "value", "epochs", "reason")
    result = {
        "command": shlex.join(["python", "benchmarks/tune.py", *sys.argv[1:]]),
        "n": {state: states.count(state) for state in sorted(set(states))},
        "new_seeds": options.confirm,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "said": list(summary.lines(record)),
        **{key: record[key] for key in ("measure", "sampler", "prune", "space", "found", "confirmations")},
        "trials": [{key: trial[key] for key in kept if trial[key] is not None} for trial in record["trials"]],
    }
    if options.write:
        options.write.parent.mkdir(parents=True, exist_ok=True)
    output.write(options.write, result)


if __name__ == "__main__":
    main()
