"""Time what the command line answers without computing anything: mistakes, help and listings.

    python benchmarks/bench_answers.py                            this version, seven rounds, about four minutes
    python benchmarks/bench_answers.py BASE --write answers.json  next to another version; keeps every figure

BASE is a git revision, checked out into a temporary worktree. Each answer comes from its own process, on one thread; a
round asks for all of them in turn. For each command the script prints the median seconds of each version, the ratio to
``python -c pass`` in the same rounds, the exit code, and this version's answer.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import versions

REFERENCE = "python -c pass"
RECIPE = "name: one\nstudent: mlp:16\nepochs: 2\n"
FILES = {
    "student.yaml": f"{RECIPE}teacher: cifar:resnet8\nobjective: {{wttm: {{gamma: 0.25, beta: 1}}}}\n",
    "teacher.yaml": RECIPE,
    "several.yaml": f"{RECIPE}teacher: cifar:resnet8\nobjectives: {{kd: kd, wttm: wttm}}\n",
    "broken.yaml": "name: one\n  student: mlp:16\n",
}
MISTAKES = (
    "distil student.yaml",
    "distill student.yaml epoch=3",
    "distill student.yaml epochs=three",
    "distill student.yaml epochs=0",
    "distill student.yaml optimizer.name=adam",
    "distill student.yaml data.flips=true",
    "distill student.yaml data.validation=2",
    "distill student.yaml epochs 3",
    "distill student.yaml objective=wtm",
    "distill student.yaml objective.wttm.gama=0.3",
    "distill student.yaml objective.wttm.gamma=low",
    "distill student.yaml student=cifar:resnet21",
    "distill student.yaml student=resnet20",
    "distill student.yaml teacher=runs/nothing",
    "distill student.yaml data.source=digit",
    "distill student.yaml data.source=imagefolder:nowhere",
    "distill studnet.yaml",
    "distill broken.yaml",
    "distill several.yaml",
    "distill teacher.yaml",
    "train student.yaml",
    "compare several.yaml seeds=0",
    "compare several.yaml objectives.kd.kd.temprature=2",
    "study table9",
    "study table1 --methods kdd",
    "record student.yaml",
    "evaluate runs/nothing",
    "predict runs/nothing rose.jpg",
    "report runs/nothing",
    "list objectve",
)
"""Mistakes of the user. Only the losses know an argument's range, as in gamma=-1, which needs torch."""
VERBS = "train", "distill", "compare", "study", "record", "evaluate", "predict", "export", "report", "list", "doctor"
QUESTIONS = (
    "--help",
    *(f"{verb} --help" for verb in VERBS),
    *(f"list {what}" for what in ("models", "data", "objectives")),
)


def answer(command, source, folder):
    """Return the seconds of a command's process, its exit code and its last printed line."""
    typed = ["-c", "pass"] if command == REFERENCE else ["-m", "tutelage", *command.split()]
    env = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *typed], cwd=folder, env=env, text=True, capture_output=True)
    return time.perf_counter() - began, done.returncode, (done.stderr or done.stdout).strip().rpartition("\n")[2]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", metavar="BASE", nargs="?", help="a git revision")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--write", type=Path, help="a JSON file for every figure")
    arguments = parser.parse_args()
    commands = (REFERENCE, *MISTAKES, *QUESTIONS)
    with tempfile.TemporaryDirectory() as scratch, versions.sources_of(arguments.base, Path(scratch)) as sources:
        folder = Path(scratch) / "work"
        folder.mkdir()
        for name, text in FILES.items():
            (folder / name).write_text(text, encoding="utf-8")
        answers = {side: {command: [] for command in commands} for side in sources}
        for turn in range(arguments.rounds + 1):  # the first, which writes byte code, does not count
            for command in commands:
                for side, source in sources.items():
                    result = answer(command, source, folder)
                    if turn:
                        answers[side][command].append(result)
    seconds = {
        side: {command: statistics.median(each[0] for each in results) for command, results in rows.items()}
        for side, rows in answers.items()
    }
    print(f"{'command':<52}" + "".join(f"{side + ', s':>10}{'ratio':>7}{'exit':>6}" for side in sources))
    for command in commands:
        cells = ""
        for side in sources:
            ratio = seconds[side][command] / seconds[side][REFERENCE]
            cells += f"{seconds[side][command]:>10.2f}{ratio:>6.0f}x{answers[side][command][0][1]:>6}"
        print(f"{command:<52}{cells}  {answers['here'][command][0][2][:100] if command in MISTAKES else ''}")
    if arguments.write:
        import output  # of this version alone

        typed = [arguments.base] if arguments.base else []
        record = {"command": " ".join(["python benchmarks/bench_answers.py", *typed]), "n": arguments.rounds}
        exits = {side: {command: results[0][1] for command, results in rows.items()} for side, rows in answers.items()}
        output.write(arguments.write, {**record, "median_s": seconds, "exit": exits})


if __name__ == "__main__":
    main()
