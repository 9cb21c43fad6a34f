"""Judge the automatic settings against a small grid, on every task at hand: benchmarks/results/dial.

    python benchmarks/dial.py grid digits
    python benchmarks/dial.py final digits --seeds 5
    python benchmarks/dial.py rate cifar100 --source hf:path/to/cifar100
    python benchmarks/dial.py grid ag-news --source hf:path/to/ag_news
    python benchmarks/dial.py grid segmentation --source masks:path/to/scenes
    python benchmarks/dial.py collect

`grid` trains `ttm` at each gamma and weight of `GRID` with one seed. A tenth of the training samples is held out, and
chooses the best. `final` trains it and what needs no search with further seeds, and is judged on the test set, where no
choice was made. `rate` trains the weights of the first gamma once more at `RATE` times the learning rate: a larger
weight makes steps longer too, and what looks like a better weight may be a rate. All go on where they were stopped.
`collect` writes benchmarks/results/dial/dial.json of what is finished.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import output
import yaml

from tutelage import records
from tutelage.objectives.automatic import SHARE
from tutelage.report.reading import read

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "dial" / "dial.json"
GAMMAS, SHARES = (0.25, 0.5, 1.0), (1.0, 3.0, 10.0)
GRID = {f"g{gamma:g}_s{share:g}": (gamma, share) for gamma in GAMMAS for share in SHARES}
"""The gamma of `ttm`, and its first gradient over that of the cross-entropy, of which the fixed beta follows."""
RATE = 3
"""Learning rate of the stage `rate`, as a multiple of the task's."""
KD = {"kd": {"temperature": 4, "weight": 0.9, "supervised": 0.1}}
SHORT = {
    "teacher": "benchmarks/results/cifar100-quick/teacher",
    "student": "cifar:resnet8",
    "epochs": 4,
    "schedule": {"name": "cosine", "warmup": 0.5},
}
TASKS = {
    "digits": ("digits.yaml", {}, KD),
    "cifar100": ("cifar100/quick.yaml", SHORT, KD),
    "ag-news": ("ag-news.yaml", {}, KD),
    "ag-news-25": ("ag-news.yaml", {"data.labelled": 25}, KD),
    "ag-news-lm": ("ag-news-lm.yaml", {}, {"kd": {"temperature": 1, "weight": 0.5, "supervised": 0.5}}),
    "segmentation": ("segmentation.yaml", {}, KD),
}
"""Recipe of each task, what differs from it, and KD as it is usual there."""
LABELLED = {"digits": 50 / 1293, "ag-news-25": 100 / 5400}
"""Share of the training samples that have a label, where it is not all."""
FIRST = {"grid": 0, "rate": 0, "final": 1000}
"""First seed of a stage; the n-th run has the n-th from there, for the student and the data."""


def at(task: str, gamma: float, share: float) -> list:
    """Return `ttm` with a fixed share, as a multiple of an automatic beta's, which grows where few labels are known."""
    automatic = SHARE / LABELLED.get(task, 1) ** 0.5
    return ["cross_entropy", {"ttm": {"gamma": gamma, "beta": "auto", "supervised": 0}, "scale": share / automatic}]


def best(task: str, runs: Path) -> str:
    """Return what was best of the grid on the validation set."""
    subject = read(runs / f"{task}-grid")
    by = subject.measure
    values = {name: subject.of(name)[0].epochs[-1]["validation"][by.key] for name in GRID}
    return (min if by.lower_is_better else max)(values, key=values.__getitem__)


def objectives_of(task: str, stage: str, runs: Path) -> dict:
    if stage == "grid":
        return {"cross_entropy": "cross_entropy"} | {name: at(task, *point) for name, point in GRID.items()}
    if stage == "rate":
        return {name: at(task, *point) for name, point in GRID.items() if point[0] == GAMMAS[0]}
    chosen = best(task, runs)
    return {
        "grid": at(task, *GRID[chosen]),
        "auto": {"ttm": {"gamma": "auto", "beta": "auto"}},
        "fixed": at(task, 1.0 if task == "ag-news-lm" else 0.25, SHARE),
        "kd": TASKS[task][2],
    }


def recipe(task: str, stage: str, given: argparse.Namespace) -> Path:
    name, changes, _ = TASKS[task]
    content = yaml.safe_load((ROOT / "recipes" / name).read_text(encoding="utf-8"))
    for key, value in ({"data.validation": 0.1, "threads": 1} | changes).items():
        section, _, last = key.rpartition(".")
        (content[section] if section else content)[last] = value
    if given.source:
        content["data"]["source"] = given.source
    teacher = given.runs / f"{task}-grid" / "teacher"
    if stage == "rate":
        content["optimizer"]["lr"] = RATE * float(content["optimizer"]["lr"])  # 1e-3 is a text in YAML
    if stage != "grid" and teacher.exists():
        content["teacher"] = str(teacher)
    if task != "segmentation":
        content["outputs"] = str(given.runs / "outputs" / task)
    content |= {"name": f"{task}-{stage}", "objectives": objectives_of(task, stage, given.runs), "seeds": given.seeds}
    path = given.runs / f"{task}-{stage}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content | dict.fromkeys(("seed", "data_seed"), FIRST[stage]), sort_keys=False))
    return path


def is_finished(folder: Path) -> bool:
    return (folder / records.COMPARISON).exists() and all(run.finished for run in read(folder).runs)


def collected(task: str, runs: Path) -> dict:
    """Return what a task's runs say: the grid, values by seed, what was found, and from where each can be repeated."""
    grid = read(runs / f"{task}-grid")
    by, first = grid.measure, grid.runs[0].manifest
    record = {
        "task": task,
        "measure": by.key,
        "recipe": TASKS[task][0],
        "changes": TASKS[task][1],
        "grid": {name: by.scale * grid.of(name)[0].epochs[-1]["validation"][by.key] for name in GRID},
        "chosen": best(task, runs),
        "arms": {},
    }
    if is_finished(runs / f"{task}-rate"):
        faster = read(runs / f"{task}-rate")
        values = {run: by.scale * faster.of(run)[0].epochs[-1]["validation"][by.key] for run in faster.entries}
        record |= {"rate": RATE, "grid_at_rate": values}
    if is_finished(runs / f"{task}-final"):
        subject = read(runs / f"{task}-final")
        first = subject.runs[0].manifest
        record["seeds"] = [run.manifest["seeds"]["seed"] for run in subject.of("auto")]
        for arm in subject.entries:
            done = subject.of(arm)
            record["arms"][arm] = {
                "objective": done[0].manifest["objective"],
                "found": [run.manifest["objective_resolved"][0] for run in done],
                "values": [by.scale * run.evaluation["student"][by.key] for run in done],
                "weights": [run.manifest["files"][records.STUDENT] for run in done],
            }
    return record | {key: first[key] for key in ("version", "commit", "software", "hardware")}


if __name__ == "__main__":
    parser = output.parser(__doc__)
    parser.add_argument("stage", choices=(*FIRST, "collect"))
    parser.add_argument("task", choices=TASKS, nargs="?")
    parser.add_argument("--source", help="another copy of the data")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/dial"))
    given = parser.parse_args()
    if given.stage == "collect":
        done = [task for task in TASKS if is_finished(given.runs / f"{task}-grid")]
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps({"tasks": [collected(task, given.runs) for task in done]}, indent=1) + "\n")
        print(*done, RESULT)
        sys.exit()
    if given.task is None:
        parser.error(f"task: expected one of {', '.join(TASKS)}, got none")
    path = recipe(given.task, given.stage, given)
    trust = ["--trust-code"] if given.task == "segmentation" else []
    command = [sys.executable, "-m", "tutelage", "compare", str(path), "--runs", str(given.runs), *trust]
    sys.exit(subprocess.run(command, cwd=ROOT, check=False).returncode)
