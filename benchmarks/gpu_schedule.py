"""Run the published schedule: vgg13 teaches vgg8 on CIFAR-100 for 240 epochs, six methods, three seeds each.

It is a pair of the study ``method-alone``, whose ``kd_matched`` is KD with TTM's target and factor. Networks compute in
bfloat16. The students of a seed are trained in lockstep. The runs are in ``runs`` under the results, and resume where
they stopped.
"""

import importlib.util
import json
import statistics
import time

from tutelage import records
from tutelage.places.time_limit import Budget
from tutelage.runs.run import RunOptions, finished
from tutelage.runs.terminal import drawn_or_printed
from tutelage.studies import plan, study_file
from tutelage.studies.run_study import run_study
from tutelage.studies.schema import TEACHER

STUDY, PAIR = "method-alone", "vgg13/vgg8"
END = 20.0
"""Seconds of the budget reserved for the end of the worker and for the table."""
SMALL = (
    *("data=digits", "epochs=1", "batch_size=512"),
    *(f"pairs.{PAIR}.teacher={{train: {{model: 'mlp:8'}}}}", f"pairs.{PAIR}.student=mlp:4"),
)
"""Overrides that try it; the data come with scikit-learn."""


def request(options):
    """Return the study's request for the pair."""
    overrides = ["precision=bf16", f"device={options.device}"]
    overrides += SMALL if options.small else [f"data.source=hf:{options.data}"]
    if options.teacher:
        overrides.append(f"pairs.{PAIR}.teacher={options.teacher}")
    plain, study = study_file.read(STUDY, overrides)
    seeds = 1 if options.small else None
    return plan.assign(plain, study, runs=options.out / "runs", pool="schedule", pairs=[PAIR], seeds=seeds)


def train(options):
    """Train the rest inside the budget; return the accuracy of every epoch so far, in percent."""
    asked, seconds = request(options), options.until - time.time() - END
    budget = Budget(seconds, time.monotonic() + seconds)
    with drawn_or_printed("stdout") as reporter:
        failed = run_study(asked, options=RunOptions(reporter=reporter), budget=budget, show_plan=False)
    assert not failed, "; ".join(f"{name}: {why}" for name, why in failed.items())
    jobs, runs = plan.jobs(asked), {}
    for job in jobs:
        path = asked.runs / job.name / records.METRICS
        epochs = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
        runs[f"{job.method}, seed {job.recipe.seed}"] = {
            "method": job.method,
            "finished": finished(asked.runs / job.name),
            "accuracy": [round(100 * epoch["test"]["accuracy"], 2) for epoch in epochs],
            "seconds": round(sum(epoch["seconds"] for epoch in epochs), 1),
        }
    values = {name: method.published.get(PAIR) for name, method in asked.study.methods.items()}
    # A small run is not the published one.
    published = {name: value.model_dump() if value and not options.small else None for name, value in values.items()}
    done = sum(run["finished"] for run in runs.values())
    return {
        "finished": done,
        "of": len(jobs),
        "epochs": asked.study.recipe.epochs,
        "runs": runs,
        "published": published,
        "unfinished": done < len(jobs),
    }


def items(options):
    """Return the study, which keeps its own time limit."""
    if options.data is None and not options.small:
        raise SystemExit("--data: expected the folder of CIFAR-100, got none; type --data path/to/cifar100")
    if missing := [name for name in ("datasets", "plotly") if importlib.util.find_spec(name) is None]:
        raise SystemExit(f"schedule: expected the packages datasets and plotly, got no {' and no '.join(missing)}")
    return {f"{STUDY}, {PAIR}": (30.0, lambda: train(options))}


def report(entries):
    """Print the last epochs' accuracies against the published ones; return means by method."""
    summary = {}
    for item, entry in entries.items():
        if "error" in entry:
            print(f"  FAIL {item}: {entry['error']}")
            continue
        result = entry["result"]
        print(f"  {result['finished']} of {result['of']} runs finished; test accuracy after {result['epochs']} epochs")
        methods = dict.fromkeys([TEACHER, *result["published"]])
        for method in methods:
            runs = [run for run in result["runs"].values() if run["method"] == method]
            last = [run["accuracy"][-1] for run in runs if run["finished"]]
            at = [len(run["accuracy"]) for run in runs if not run["finished"]]
            value = result["published"].get(method)
            published = f"{value['mean']} ± {value['std']}, n = {value['n']}" if value else "-"
            mean = statistics.fmean(last) if last else None
            spread = f" ± {statistics.stdev(last):.2f}" if len(last) > 1 else ""
            shown = f"{mean:.2f}{spread}, n = {len(last)}" if last else "-"
            begun = f"; unfinished at epoch {', '.join(map(str, at))}" if at else ""
            each = " ".join(f"{accuracy:.2f}" for accuracy in last)
            print(f"  {method:<20} {each:<20} {shown:<22} published {published}{begun}")
            summary[method] = {"last": last, "mean": mean, "published": value}
    return summary
