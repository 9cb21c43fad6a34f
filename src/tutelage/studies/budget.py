"""A study inside a budget of time: what each pair takes on this machine, the smallest first, and what fits."""

from __future__ import annotations

import contextlib
import json
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from tutelage import data, records
from tutelage.config.schema import Recipe, RecipeError
from tutelage.report.table import aligned
from tutelage.runs import manifest, timing
from tutelage.runs.execute import finished, steps_of, torch_settings
from tutelage.runs.setup import build_inputs, build_objectives, held_out_sets
from tutelage.studies.plan import Job, StudyRequest, jobs, rehearsed
from tutelage.studies.schema import TEACHER
from tutelage.training.checkpoints import NAME
from tutelage.training.deadline import Deadline
from tutelage.training.loop import accelerator_on

TIMES = "times.json"
"""What was timed for a study, on which machine: another part of it on the same machine does not time again."""
SHARE = 0.1
"""Of the budget, that timing may take; pairs that are not timed by then come last."""
MARGIN = 5.0
"""Seconds of the budget that are kept back for a checkpoint, a manifest and the end of the process."""
STRETCH = 10
"""Steps that there must be time for, or those that are left if they are fewer, to begin or go on with a run."""
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


class Budget(NamedTuple):
    """Time for a study.

    Attributes:
        seconds: in all.
        ends: when it is used up, on the clock.
        clock: tells the seconds.
    """

    seconds: float
    ends: float
    clock: Callable[[], float] = time.monotonic

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.ends - self.clock()


def read(typed: str) -> float:
    """Read a budget as it is typed; return seconds.

    Raises:
        RecipeError: it is no time, has no unit, or is 0.

    Example:
        >>> read("25m"), read("1.5h"), read("1h30m"), read("90s")
        (1500.0, 5400.0, 5400.0, 90.0)
    """
    parts = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", typed.strip())
    number = re.fullmatch(r"\d+(?:\.\d+)?", typed.strip())
    if number:
        raise RecipeError(
            f"--budget: expected a time with its unit (s, m or h), got {typed}; "
            f"for example --budget {typed}m for minutes, or --budget {typed}s for seconds"
        )
    if parts is None or not any(parts.groups()):
        raise RecipeError(
            f"--budget: expected a time such as 90s, 25m, 2h or 1h30m, got {typed!r}; for example --budget 25m"
        )
    seconds = sum(float(part or 0) * unit for part, unit in zip(parts.groups(), (3600, 60, 1), strict=True))
    if not seconds > 0:
        raise RecipeError(f"--budget: expected a time above 0, got {typed}; for example --budget 25m")
    return seconds


class Times(NamedTuple):
    """What was timed of a pair.

    Attributes:
        teacher: seconds a step of the teacher's training; none where it is not trained.
        student: seconds a step of a student, its teacher asked live where its method asks one.
        batch: samples of the student's step.
        asked: whether the teacher was asked in it.
        word: seconds a sample of the teacher's answers in evaluation; none where there is no teacher.
        eyes: seconds a sample of the student's.
        samples: of the training set.
        held: samples of the held-out sets.
        opened: seconds that the data took to open.
        of: the two networks; those of another study file under the same pair's name have times of their own.
    """

    teacher: float | None
    student: float
    batch: int
    asked: bool
    word: float | None
    eyes: float
    samples: int
    held: int
    opened: float
    of: str


class Cost(NamedTuple):
    """What is left of a run, in seconds on this machine.

    Attributes:
        steps: that are left.
        step: seconds of each.
        evaluation: of the student on the held-out sets, after each epoch.
        start: before the first step: the data are opened, and the teacher is asked about the held-out sets.
        record: of the teacher's outputs, where this run is the first to need them.
        epochs: that are left, the one that was begun included.
        source: where ``step`` is from: ``timed`` now or on this machine before, or ``records`` of such a run.
    """

    steps: int
    step: float
    evaluation: float
    start: float
    record: float
    epochs: int
    source: str

    @property
    def seconds(self) -> float:
        """All of it; the student is evaluated once more at the end."""
        return self.start + self.record + self.steps * self.step + (self.epochs + 1) * self.evaluation

    @property
    def stretch(self) -> float:
        """Seconds before the run has done something that is worth keeping."""
        return self.start + min(self.steps, STRETCH) * self.step


class Plan(NamedTuple):
    """A study in the order that a budget asks for.

    Attributes:
        assignment: what is asked for, its pairs in that order.
        left: the runs that are left to do, in order.
        costs: of those whose pair was timed, by name.
        budget: the time for it.
        workers: processes that share it.
        untimed: why a pair was not timed.
    """

    assignment: StudyRequest
    left: tuple[Job, ...]
    costs: Mapping[str, Cost]
    budget: Budget
    workers: int
    untimed: Mapping[str, str]

    @property
    def seconds(self) -> float:
        """What is left takes, as far as it is known."""
        return sum(cost.seconds for cost in self.costs.values()) / self.workers

    def lines(self) -> Iterator[str]:
        """Say what each pair takes and what of it fits, a line each."""
        available = self.budget.left
        spent = self.budget.seconds - available
        yield (
            f"budget: {_minutes(self.budget.seconds)}, of which {_minutes(spent)} are used; "
            "the pair that takes least comes first"
        )
        rows = [("pair", "runs left", "steps left", "teacher", "students", "estimated", "in the budget")]
        total = 0.0
        for pair in self.assignment.pairs:
            own = [job for job in self.left if job.pair == pair]
            known = [self.costs[job.name] for job in own if job.name in self.costs]
            if not own:
                rows.append((pair, "0", "0", "-", "-", "-", "done"))
                continue
            if len(known) < len(own):
                why = self.untimed.get(pair, "not timed")
                rows.append((pair, str(len(own)), "?", "?", "?", "?", f"not known: {why}"))
                continue
            before = total
            total += sum(cost.seconds for cost in known) / self.workers
            fits = "all" if total <= available else "in part" if before < available else "no"
            steps = sum(cost.steps for cost in known)
            teachers, students = (
                [self.costs[job.name] for job in own if (job.method == TEACHER) is which] for which in (True, False)
            )
            rows.append(
                (
                    *(pair, str(len(own)), f"{steps:,}", _each(teachers), _each(students)),
                    *(_minutes(total - before), fits),
                )
            )
        for line in aligned(rows, left=range(len(rows[0]))):
            yield f"  {line}"
        yield (
            f"estimated in all: {_minutes(total)}"
            + (f" with {self.workers} processes" if self.workers > 1 else "")
            + f"; left of the budget: {_minutes(available)}"
        )


def prepare(
    assignment: StudyRequest,
    budget: Budget,
    *,
    workers: int = 1,
    trust_code: bool | frozenset[str] = False,
    measure: bool = True,
    keep: bool = True,
) -> Plan:
    """Time what is not known of each pair on this machine, and put the pairs in order of what is left of them.

    A step's time is taken from a run's own epochs, or from those of another seed of its method, where they were done on
    the same machine; else from a few steps of the pair's teacher and of one of its students.

    Args:
        assignment: what is asked for.
        budget: the time for it; timing takes at most a tenth of it.
        workers: processes that share the work, and the machine's threads.
        trust_code: allow ``file:`` models, which run code: all of them, or those of these names.
        measure: time what is not known; without it such pairs have no costs.
        keep: write down what was timed.
    """
    recipe = assignment.study.recipe
    with _threads(workers), torch_settings(recipe):
        machine = {
            **manifest.hardware(accelerator_on(recipe.device).device),
            "torch": torch.__version__,
            "precision": recipe.precision,
        }
        known = {
            pair: one
            for pair, one in _read(assignment.folder / TIMES, machine).items()
            if pair in assignment.study.pairs and one.of == _networks(assignment, pair)
        }
        timed, untimed = dict(known), {}
        began = time.monotonic()
        opened = _Opened()
        for pair in assignment.pairs:
            left = _left(assignment, jobs(replace(assignment, pairs=(pair,))))
            if not left or not measure:
                continue
            trained = any(job.method == TEACHER for job in left)
            if pair in timed and (timed[pair].teacher is not None or not trained):
                continue
            if timed and time.monotonic() - began > SHARE * budget.seconds:
                untimed[pair] = "timing would take more than a tenth of the budget"
                continue
            try:
                timed[pair] = _time(assignment, left, opened, trust_code, limit=SHARE * budget.seconds / 4)
            except (ValueError, TypeError, OSError, ImportError) as error:
                untimed[pair] = str(error).splitlines()[0] if str(error) else type(error).__name__
        if keep and timed != known:
            assignment.folder.mkdir(parents=True, exist_ok=True)
            value = {"machine": machine, "pairs": {pair: one._asdict() for pair, one in timed.items()}}
            records.write_json(assignment.folder / TIMES, value)
        there = {key: value for key, value in machine.items() if key not in ("torch", "precision")}
        return _order(assignment, budget, workers, timed, untimed, _Rates(assignment, there))


@contextlib.contextmanager
def _threads(workers: int) -> Iterator[None]:
    """Give this process the threads of one of several."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(max(1, threads // workers))
        yield
    finally:
        torch.set_num_threads(threads)


def _read(path: Path, machine: Mapping[str, Any]) -> dict[str, Times]:
    """What was timed before on the same machine."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        value = records.read_json(path)
        if value["machine"] == machine:
            return {pair: Times(**one) for pair, one in value["pairs"].items()}
    return {}


def _networks(assignment: StudyRequest, pair: str) -> str:
    given = assignment.study.pairs[pair].model_dump(mode="json", exclude={"published", "settings"})
    return json.dumps(manifest.without_paths(given), sort_keys=True)


def _left(assignment: StudyRequest, planned: Sequence[Job]) -> list[Job]:
    """The runs that are not finished; a teacher with no one left to teach is none of them."""
    found = [job for job in planned if not finished(assignment.runs / job.name)]
    wanted = {job.needs for job in found}
    return [job for job in found if job.method != TEACHER or job.name in wanted]


class _Opened:
    """Data, each opened once, with the seconds that it took."""

    def __init__(self) -> None:
        self._found: dict[Any, data.Splits] = {}
        self.took = 0.0

    def __call__(self, recipe: Recipe) -> data.Splits:
        if recipe.data not in self._found:
            began = time.monotonic()
            self._found[recipe.data] = data.open_data(recipe.data)
            self.took = max(self.took, time.monotonic() - began)
        return self._found[recipe.data]


def _time(
    assignment: StudyRequest,
    left: Sequence[Job],
    opened: _Opened,
    trust_code: bool | frozenset[str],
    *,
    limit: float,
) -> Times:
    """Time a pair's teacher, where it is trained, and one of its students: the first that asks a teacher."""
    students = [job for job in left if job.method != TEACHER]
    job = min(students, key=lambda one: _rank(one.recipe))
    recipe = rehearsed(assignment, job)
    splits = opened(recipe)
    training = recipe.training("teacher")
    if training is not None:
        # Its weights do not matter to what a step costs.
        recipe = recipe.model_copy(update={"teacher": training.student})
    run_inputs = build_inputs(recipe, trust_code=trust_code, splits=splits)
    student = timing.step(recipe, run_inputs, limit=limit).seconds
    teacher = None
    for one in left:
        if one.method == TEACHER:
            made = build_inputs(one.recipe, trust_code=trust_code, splits=opened(one.recipe))
            teacher = timing.step(one.recipe, made, limit=limit).seconds
    return Times(
        teacher=teacher,
        student=student,
        batch=recipe.fits()[0].batch_size,
        asked=build_objectives(recipe)[0].needs.teacher,
        word=timing.ask(recipe, run_inputs.teacher, splits.test) if run_inputs.teacher else None,
        eyes=timing.ask(recipe, run_inputs.student, splits.test),
        samples=len(splits.train),
        held=sum(batches.samples for _, batches in held_out_sets(splits, recipe)),
        opened=opened.took,
        of=_networks(assignment, students[0].pair),
    )


def _rank(recipe: Recipe) -> int:
    """Students that ask a teacher come first to be timed, but for those whose binding reads the whole training set."""
    needs = build_objectives(recipe)[0].needs
    return 2 if not needs.teacher else 1 if needs.class_means or needs.teacher_statistics else 0


class _Rates:
    """Seconds a step from the records of runs that were done on this machine; of those of a class, a run's part."""

    def __init__(self, assignment: StudyRequest, machine: Mapping[str, Any]) -> None:
        self.folder, self.machine = assignment.runs, machine
        self.found: dict[str, float | None] = {}

    def __call__(self, job: Job) -> float | None:
        """Of the job's own run, else of its method with another seed."""
        stem = job.name.rpartition("-seed")[0]
        place = self.folder / stem
        others = sorted(path.name for path in place.parent.glob(f"{place.name}-seed*"))
        names = [job.name, *(f"{Path(stem).parent.as_posix()}/{name}" for name in others)]
        return next((rate for name in names if (rate := self._of(name)) is not None), None)

    def _of(self, name: str) -> float | None:
        if name not in self.found:
            self.found[name] = None
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                recorded = records.read_json(self.folder / name / records.MANIFEST)
                rates = [epoch["images_per_second"] for epoch in records.read_epochs(self.folder / name)]
                if recorded["hardware"] == self.machine and rates:
                    # Those trained in lockstep wait for each other: each was as fast as all of them.
                    together = 1 + len(recorded.get("class") or [])
                    self.found[name] = recorded["recipe"]["batch_size"] / median(rates) / together
        return self.found[name]


def _order(
    assignment: StudyRequest,
    budget: Budget,
    workers: int,
    timed: Mapping[str, Times],
    untimed: Mapping[str, str],
    rates: _Rates,
) -> Plan:
    """Choose pair after pair the one that adds least; what it shares with those before it costs nothing."""
    own = {pair: _left(assignment, jobs(replace(assignment, pairs=(pair,)))) for pair in assignment.pairs}
    chosen: dict[str, Cost] = {}
    recorded: set[str] = set()

    def added(pair: str) -> dict[str, Cost] | None:
        if pair not in timed:
            return {} if not own[pair] else None
        stores = set(recorded)
        return {
            job.name: _cost(assignment, job, timed[pair], rates(job), stores)
            for job in own[pair]
            if job.name not in chosen
        }

    order: list[str] = []
    rest = list(assignment.pairs)
    while rest:
        costs = {pair: added(pair) for pair in rest}

        def least(pair: str, costs: Mapping[str, dict[str, Cost] | None] = costs) -> float:
            one = costs[pair]
            return math.inf if one is None else sum(cost.seconds for cost in one.values())

        first = min(rest, key=least)
        chosen |= costs[first] or {}
        recorded |= {job.recipe.outputs for job in own[first] if job.recipe.outputs}
        order.append(first)
        rest.remove(first)
    ordered = replace(assignment, pairs=tuple(order))
    return Plan(ordered, tuple(_left(ordered, jobs(ordered))), chosen, budget, workers, untimed)


def _cost(assignment: StudyRequest, job: Job, times: Times, rate: float | None, stores: set[str]) -> Cost:
    """Return what is left of a run; ``stores`` gets the recorded outputs that it is the first to need."""
    recipe = job.recipe
    samples, held = times.samples, times.held
    left = max(steps_of(recipe, samples) - _done(assignment.runs / job.name, recipe, samples), 0)
    fits = recipe.fits()
    epochs = sum(fit.settings.epochs for fit in fits)
    taught = any(objective.needs.teacher for objective in build_objectives(recipe))
    word = times.word or 0.0
    record = 0.0
    if taught and recipe.outputs and recipe.outputs not in stores:
        stores.add(recipe.outputs)
        record = word * samples * epochs if left == steps_of(recipe, samples) else 0.0
    if job.method == TEACHER:
        step, eyes = times.teacher or 0.0, word
    else:
        # A teacher that is not asked, or whose word is read, takes nothing of the step.
        asked = taught and recipe.outputs is None
        step = times.student - (word * times.batch if times.asked and not asked else 0.0)
        step, eyes = max(step, times.eyes * times.batch), times.eyes
    return Cost(
        steps=left,
        step=step if rate is None else rate,
        evaluation=eyes * held,
        start=times.opened + (word * held if recipe.teacher is not None else 0.0),
        record=record,
        epochs=math.ceil(epochs * left / max(steps_of(recipe, samples), 1)),
        source="timed" if rate is None else "records",
    )


def _done(folder: Path, recipe: Recipe, samples: int) -> int:
    """The steps that a run's last checkpoint is after."""
    place = folder / records.CHECKPOINTS
    names = sorted(path.name for path in place.iterdir() if NAME.fullmatch(path.name)) if place.is_dir() else []
    if not names:
        return 0
    stage, step = map(int, names[-1].split("-"))
    before = recipe.fits()[:stage]
    return step + sum(fit.steps(samples) for fit in before)


def deadline(plan: Plan, together: Sequence[Job], writing: float) -> Deadline:
    """Return the moment by which a run of the plan stops, and refuse one that could do nothing worth keeping.

    Kept back are `MARGIN`, a step, and for every process the time that the study's records, table and report take.

    Args:
        plan: the study's.
        together: jobs to do in lockstep; each takes its own part of a step.
        writing: seconds that the study's records, table and report took last.

    Raises:
        DeadlineExceeded: less is left than the run needs to start and to do a few steps.
    """
    costs = [plan.costs.get(job.name, Cost(0, 0.0, 0.0, 0.0, 0.0, 0, "")) for job in together]
    back = MARGIN + (1 + plan.workers) * writing + sum(cost.step for cost in costs)
    evaluation = sum(cost.evaluation for cost in costs)
    stop = Deadline(plan.budget.ends - back, evaluation=evaluation, clock=plan.budget.clock)
    stop.check(together[0].name, sum(cost.stretch for cost in costs))
    return stop


def rest(plan: Plan) -> str:
    """Say how much of a study is done, and what is left."""
    asked = jobs(plan.assignment)
    done = [job for job in asked if finished(plan.assignment.runs / job.name)]
    # A teacher that no one needs any more is nothing that is left.
    begun = [job for job in plan.left if (plan.assignment.runs / job.name / records.CHECKPOINTS).is_dir()]
    said = f"{len(done)} of {len(asked)} runs are finished"
    if not plan.left:
        return f"{said}; nothing is left"
    said += f", {len(begun)} of the {len(plan.left)} left {'is' if len(begun) == 1 else 'are'} begun"
    if all(job.name in plan.costs for job in plan.left):
        said += f"; they take about {_minutes(plan.seconds)} more on this machine"
    return said


def _each(costs: Sequence[Cost]) -> str:
    """Milliseconds a step, with where they are from."""
    if not costs:
        return "-"
    steps = [1000 * cost.step for cost in costs]
    low, high = f"{min(steps):.1f}", f"{max(steps):.1f}"
    sources = "/".join(sorted({cost.source for cost in costs}, reverse=True))
    return f"{low if low == high else f'{low} to {high}'} ms a step ({sources})"


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if abs(seconds) < 120 else f"{seconds / 60:.1f} min"
