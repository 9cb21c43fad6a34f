"""Time a group of students on one teacher pass against the teacher and the students alone.

    python benchmarks/bench_class.py DATA [RESULT.json] [--rounds N] [--steps N] [--students N ...]
    python benchmarks/bench_class.py RESULT.json --plot      draws RESULT.svg from it

A resnet56 teaches resnet20s by KD on CIFAR-100 (``DATA`` is a source such as ``hf:uoft-cs/cifar100``), batches of 64,
bfloat16, with the CIFAR augmentation. Only steps of the loop are timed, not data sets, networks and evaluation. Groups
of 1, 2, 4 and 8 students, which take their steps in turn with all threads, and of 2, 4 and 8 that take them side by
side with one thread each, are compared with

- the parts: the steps of the teacher alone, with its batches made and placed, plus for each student the steps of one
  that is given a batch and the teacher's existing outputs;
- separate runs: for each student a group of one, which makes its own batches and runs the live teacher.

So is a group of two students of unlike architectures with its parts.

Every round times each form once, in turn, after a warm-up round. Prints medians and ratios; given a file name, records
them with the machine, the versions and n. Weights are random: no time depends on them.
"""

import re
from pathlib import Path

import output
import torch

from tutelage import data
from tutelage.benchmark import groups, timing
from tutelage.data import DataSettings


def plot(result):
    median = output.part(result, "median_s_per_step", f"python benchmarks/bench_class.py DATA {result}")
    ms = {name: seconds * 1e3 for name, seconds in median.items()}
    students = sorted(int(name.removeprefix("class of ")) for name in ms if re.fullmatch(r"class of \d+", name))
    lines = {
        "separate runs": [k * ms[groups.group_name(1)] for k in students],
        "one class": [ms[groups.group_name(k)] for k in students],
        "one class, side by side": [
            ms.get(groups.group_name(k, side_by_side=True), ms[groups.group_name(k)]) for k in students
        ],
        "teacher alone and students apart": [ms[groups.ALONE] + k * ms[groups.APART] for k in students],
    }
    with output.figure(result) as axis:
        for (label, values), style in zip(lines.items(), ("o-", "o-", "o-", "o--"), strict=True):
            axis.plot(students, values, style, label=label)
        axis.set_xticks(students)
        axis.set(xlabel="students", ylabel="ms per step", title=output.read(result)["pair"], ylim=(0, None))
        axis.legend()


if __name__ == "__main__":
    parser = output.parser(__doc__)
    parser.add_argument("source")
    parser.add_argument("result", nargs="?", type=Path)
    parser.add_argument("--plot", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--students", type=int, nargs="+", default=[1, 2, 4, 8])
    arguments = parser.parse_args()
    if arguments.plot:
        plot(Path(arguments.source))
        parser.exit()
    splits = data.open_data(DataSettings(source=arguments.source, label="fine_label", crop_padding=4, flip=True))
    taken = groups.measure(splits, sizes=arguments.students, steps=arguments.steps, rounds=arguments.rounds)
    median = timing.medians(taken)
    over = groups.ratios(taken, arguments.students)
    for name, seconds in median.items():
        print(f"{name:<26} {seconds * 1e3:8.1f} ms per step")
    for k in arguments.students:
        beside = f", side by side {over.side_by_side[k]:.3f}" if k in over.side_by_side else ""
        print(f"class of {k}: {over.parts[k]:.3f} times its parts{beside}, {over.runs[k]:.3f} times {k} separate runs")
    print(f"{groups.UNLIKE}: {groups.unlike_over_parts(taken):.3f} times its parts")
    record = {
        "n": arguments.rounds,
        "steps": arguments.steps,
        "batch_size": groups.BATCH,
        "threads": torch.get_num_threads(),
        "precision": groups.SETTINGS.precision,
        "pair": "/".join(groups.PAIR),
        "median_s_per_step": median,
        "rounds_s_per_step": taken,
        "over_teacher_alone_and_students_apart": over.parts,
        "side_by_side_over_the_same": over.side_by_side,
        "over_separate_runs_with_a_live_teacher": over.runs,
        "two_unlike_over_their_parts": groups.unlike_over_parts(taken),
    }
    output.write(arguments.result, record)
