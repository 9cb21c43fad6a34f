"""Compare students of two teachers with students of the better one, on scikit-learn's digits.

    python benchmarks/bench_teachers.py [RESULT.json] [--runs FOLDER] [--seeds N]

Two teachers learn from 20 labels per class: a convolutional network and one of a hidden layer. An mlp:16 has 5 labels
per class and learns the other samples from a teacher alone: from each, from the mean of both by probabilities and by
logits, and by a term for each. The better teacher is the one with the higher validation accuracy. Settings are those of
recipes/digits.yaml, and were not searched for. Prints every test accuracy, and its difference from the student of the
better teacher with the same seed and objective; given a file name, records them with the machine and the versions.
"""

from pathlib import Path
from statistics import mean

import output

import tutelage
from tutelage import records
from tutelage.runs.run import Run, finished

DATA = {"source": "digits", "validation": 0.1}
TEACHERS = {"a": ("cifar:resnet8", 0.05, 100), "b": ("mlp:64", 0.05, 101)}  # model, learning rate, seed
OBJECTIVES = {
    "kd": {"kd": {"matched_to": {"ttm": {"gamma": 0.25, "beta": 4}}}},
    "wttm": {"wttm": {"gamma": 0.25, "beta": 1}},
}
COMMON = {"schedule": {"name": "cosine"}, "precision": "fp32", "threads": 1, "device": "cpu"}


def teacher(name, model, lr, seed, runs):
    """Train a teacher, unless it is there."""
    if not finished(runs / name):
        settings = {"epochs": 20, "optimizer": {"name": "sgd", "lr": lr}, "seed": seed, "data_seed": seed, **COMMON}
        tutelage.train(model=model, data={**DATA, "labelled": 20}, name=name, runs=runs, **settings)
    return Run(runs / name)


def accuracies(how, taught_by, runs, seeds):
    """Train the students of a teacher; return their test accuracies in percent, by objective."""
    settings = {"epochs": 40, "batch_size": 64, "optimizer": {"name": "sgd", "lr": 0.01}, **COMMON}
    tutelage.compare(
        student="mlp:16",
        teacher=taught_by,
        data={**DATA, "labelled": 5},
        objectives=OBJECTIVES,
        seeds=seeds,
        name=how,
        runs=runs,
        **settings,
    )
    return {name: [accuracy_of("student", runs / how / f"{name}-seed{k}") for k in range(seeds)] for name in OBJECTIVES}


def accuracy_of(who, folder):
    """Return the test accuracy of a run's student or teacher in percent."""
    return 100 * records.read_json(folder / records.EVALUATION)[who]["accuracy"]


if __name__ == "__main__":
    parser = output.parser(__doc__)
    parser.add_argument("result", nargs="?", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/digits-teachers"))
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    runs, seeds = arguments.runs, arguments.seeds
    known = {name: teacher(name, *kind, runs) for name, kind in TEACHERS.items()}
    both = [run.folder.as_posix() for run in known.values()]
    sets = {name: both[k] for k, name in enumerate(known)}
    sets |= {how: {"members": both, "combine": how} for how in ("probabilities", "logits", "terms")}
    students = {how: accuracies(f"of-{how}", by, runs, seeds) for how, by in sets.items()}
    validation = {name: 100 * run.epochs[-1]["validation"]["accuracy"] for name, run in known.items()}
    better = max(validation, key=validation.get)
    print(f"better by validation accuracy: {better}; " + ", ".join(f"{k} {v:.2f} %" for k, v in validation.items()))
    taught = {how: accuracy_of("teacher", runs / f"of-{how}" / "kd-seed0") for how in sets}
    print("teachers on the test set: " + ", ".join(f"{k} {v:.2f} %" for k, v in taught.items()))
    differences = {
        how: {
            name: [value - other for value, other in zip(values, students[better][name], strict=True)]
            for name, values in by_objective.items()
        }
        for how, by_objective in students.items()
    }
    for how, by_objective in students.items():
        for name, values in by_objective.items():
            off = differences[how][name]
            shown = ", ".join(f"{value:.2f}" for value in values)
            paired = ", ".join(f"{value:+.2f}" for value in off)
            print(
                f"{how:<14} {name:<5} {shown} (mean {mean(values):.2f}); to {better}: {paired} (mean {mean(off):+.2f})"
            )
    record = {"n": seeds, "teachers": TEACHERS, "validation": validation, "better": better, "teachers_test": taught}
    output.write(arguments.result, {**record, "students_test": students, "to_the_better": differences})
