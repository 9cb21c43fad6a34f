"""Time a class of students on one teacher pass against the teacher and the students apart.

    python benchmarks/bench_class.py DATA [RESULT.json]
    python benchmarks/bench_class.py RESULT.json --plot      draws RESULT.svg from it

A resnet56 teaches resnet20s by KD on CIFAR-100 (``DATA`` is a source such as ``hf:uoft-cs/cifar100``), batches of 64,
bfloat16, with the CIFAR augmentation. Timed are steps of the engine; data sets, networks and evaluation are not. For 1,
2, 4 and 8 students in one class, against

- the parts: the steps of the teacher alone, its batches made and placed, and as many times those of a student that is
  given a batch and the teacher's answers that are there already;
- separate runs: as many times a class of one, which makes its own batches and asks the live teacher.

Every round times each form once, in turn, so that a change of the machine's speed meets all; the first round warms up,
and so does each form's first step, which fills caches and makes the optimizer's state. The clock stops with the last
step: what follows it, such as a garbage collection, is once a fit. Prints medians and ratios; with a file's name it
records them with the machine, the versions and n. Weights are random: no time depends on them.
"""

import statistics
import sys
from pathlib import Path

import output
import torch

from tutelage import data
from tutelage.benchmark import classes
from tutelage.data import DataSettings

N, STEPS, CLASSES = 5, 8, (1, 2, 4, 8)


def plot(result):
    median = output.part(result, "median_s_per_step", f"python benchmarks/bench_class.py DATA {result}")
    ms = {name: seconds * 1e3 for name, seconds in median.items()}
    students = sorted(int(name.removeprefix("class of ")) for name in ms if name.startswith("class of "))
    lines = {
        "separate runs": [k * ms[classes.class_of(1)] for k in students],
        "one class": [ms[classes.class_of(k)] for k in students],
        "teacher alone and students apart": [ms[classes.ALONE] + k * ms[classes.APART] for k in students],
    }
    with output.figure(result) as axis:
        for (label, values), style in zip(lines.items(), ("o-", "o-", "o--"), strict=True):
            axis.plot(students, values, style, label=label)
        axis.set_xticks(students)
        axis.set(xlabel="students", ylabel="a step, ms", title=output.read(result)["pair"], ylim=(0, None))
        axis.legend()


if __name__ == "__main__":
    if sys.argv[2:] == ["--plot"]:
        plot(Path(sys.argv[1]))
        sys.exit()
    torch.set_num_threads(1)
    splits = data.open_data(DataSettings(source=sys.argv[1], label="fine_label", crop_padding=4, flip=True))
    taken = classes.measure(splits, sizes=CLASSES, steps=STEPS, rounds=N)
    median = {name: statistics.median(values) for name, values in taken.items()}
    over = classes.ratios(taken, CLASSES)
    for name, value in median.items():
        print(f"{name:<26} {value * 1e3:8.1f} ms a step")
    for k in CLASSES:
        print(f"class of {k}: {over.parts[k]:.3f} times its parts, {over.runs[k]:.3f} times {k} separate live runs")
    if sys.argv[2:]:
        found = {
            "n": N,
            "steps": STEPS,
            "batch_size": classes.BATCH,
            "threads": 1,
            "precision": classes.SETTINGS.precision,
            "pair": "/".join(classes.PAIR),
            "median_s_per_step": median,
            "rounds_s_per_step": taken,
            "over_teacher_alone_and_students_apart": over.parts,
            "over_separate_runs_with_a_live_teacher": over.runs,
        }
        output.write(Path(sys.argv[2]), found)
