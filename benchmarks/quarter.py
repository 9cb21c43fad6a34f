"""Write the study of CIFAR-100's quarter schedule from the runs that are collected so far, and its README.

    python benchmarks/quarter.py

The runs lie in ``benchmarks/results/cifar100-quarter``: records without weights. After another one is copied there, the
command writes ``method-alone/`` again (``study.json``, ``table.md``, ``table.json``, the figures) and ``README.md``.
A run with another recipe than the study's is refused.
"""

from pathlib import Path

import yaml

from tutelage import records
from tutelage.config.schema import known_presets
from tutelage.report.reading import Run, read_run
from tutelage.report.table import fixed, interval
from tutelage.runs import resume
from tutelage.settings.objective import read_objective
from tutelage.studies import paper, plan, study_file
from tutelage.studies.differences import Difference
from tutelage.studies.run_study import record
from tutelage.studies.study_table import StudyTable, read_table, write_tables

RESULTS = Path(__file__).parent / "results"
STUDY, PAIR, POOL = "method-alone", "resnet56/resnet20", "cifar100-quarter"
OVERRIDES = ("epochs=60", "schedule.milestones=[38,45,53]", "precision=bf16")


def request(results: Path = RESULTS) -> plan.StudyRequest:
    """Return the study of the one pair, with the quarter's settings."""
    plain, study = (
        study.model_copy(update={"pairs": {PAIR: study.pairs[PAIR]}}) for study in study_file.read(STUDY, OVERRIDES)
    )
    return plan.assign(plain, study, runs=results, pool=POOL)


def check(job: plan.Job, folder: Path) -> None:
    """Refuse a collected run that is not the study's; ``1 / gamma`` may have been typed with eight digits."""
    found = yaml.safe_load((folder / records.RECIPE).read_text(encoding="utf-8"))
    found["objective"] = rounded(found["objective"])
    objective = read_objective(rounded(job.recipe.objective.to_recipe()), known_presets())
    differs = resume.recipe_differences(found, job.recipe.model_copy(update={"objective": objective}))
    if differs:
        raise SystemExit(
            f"{folder}: expected the run of {STUDY}, got another ({'; '.join(differs)}); remove the folder"
        )


def rounded(value):
    """Return a nested value, its numbers rounded to seven digits."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return float(f"{value:.7g}") if isinstance(value, float) else value


def write(results: Path = RESULTS) -> Path:
    """Write the study's folder and the README; return the study's folder."""
    asked = request(results)
    teacher, *students = [plan.teacher_of(asked, PAIR), *plan.cells(asked)]
    begun = [job for job in (teacher, *students) if resume.begun(results / job.name)]
    for job in begun:
        check(job, results / job.name)
    asked.folder.mkdir(exist_ok=True)
    records.write_json(asked.folder / records.STUDY, record(asked, students))
    write_tables(asked.folder)
    paper.draw(asked.folder)
    text = words(read_table(asked.folder), [read_run(results / job.name) for job in begun])
    (asked.folder.parent / "README.md").write_text(text, encoding="utf-8")
    return asked.folder


def words(table: StudyTable, runs: list[Run]) -> str:
    """Say what there is, what it says, and what is missing."""
    machines = {
        f"{manifest['hardware']['processor']}, {manifest['hardware']['threads']} "
        f"thread{'s' * (manifest['hardware']['threads'] != 1)}, "
        f"torch {manifest['software']['torch']}, commit `{manifest['commit'][:7]}`"
        for manifest in (run.manifest for run in runs)
    }
    done = [row for row in table.rows if row.n]
    left = {row.method: [str(run.seed) for run in row.unfinished] for row in table.rows if row.unfinished}
    lines = [
        "# CIFAR-100, a quarter of the published schedule",
        "",
        "Records of finished runs, without weights: resnet56 teaches resnet20 by the study",
        f"`{STUDY}` in 60 epochs instead of 240, the learning rate divided by ten after 38, 45 and 53, in bf16",
        f"instead of float32. The teacher was trained the same way. [The table]({STUDY}/table.md) has means, published",
        f"values and the paired differences; [the figures]({STUDY}/figures.md) are Figures 1 and 3 of the paper, from",
        "these records.",
        "",
        "## So far",
        "",
        *(f"- {row.method}: {', '.join(f'{value:.2f}' for value in row.values)} %" for row in done),
        *(f"- {difference_in_words(each)}" for each in table.differences if each.values),
        "",
        "## Missing",
        "",
        *([f"{sum(map(len, left.values()))} runs of students:", ""] if left else ["Nothing: every run is finished."]),
        *(f"- {method}: seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}" for method, seeds in left.items()),
        *(
            [
                "",
                "A mean of fewer than three seeds says little, and one seed's difference nothing about the spread.",
            ]
            if left
            else ()
        ),
        "",
        "## Machine and command",
        "",
        *(f"- {machine}" for machine in sorted(machines)),
        "",
        "```sh",
        f"tutelage study {STUDY} --pairs {PAIR} {' '.join(OVERRIDES)}",
        "python benchmarks/quarter.py",
        "```",
        "",
        "The first command trains them; some of the collected runs took the same settings from a file of their own.",
        "The second writes this page, the table and the figures from the runs that are here.",
    ]
    return "\n".join(lines) + "\n"


def difference_in_words(of: Difference) -> str:
    """Write a difference as a line."""
    bounds = "no interval" if of.low is None else f"95 % interval {interval((of.low, of.high), sign=True)}"
    return (
        f"{of.tests}, {of.first} - {of.second}: {fixed(of.mean, 2, sign=True)} points, n = {len(of.values)}, {bounds}"
    )


if __name__ == "__main__":
    print(write())
