"""Doing a study: run after run, in one process or several; what failed is told, and the rest goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tutelage import data, records
from tutelage.config.schema import TOGETHER
from tutelage.data import DataSettings
from tutelage.runs import record_teacher
from tutelage.runs.execute import (
    BusyError,
    NullReporter,
    Reporter,
    Run,
    execute_group,
    finished,
    folder_lock,
    group_of,
    steps_of,
)
from tutelage.runs.setup import build_objectives
from tutelage.studies import budget as budgets
from tutelage.studies.budget import Budget, Plan
from tutelage.studies.plan import Job, StudyRequest, cells, differences, jobs, record
from tutelage.studies.schema import TEACHER
from tutelage.training.deadline import Deadline, DeadlineExceeded

PATIENCE = 2.0
"""Seconds between two looks at a teacher that another process trains."""


def run_study(
    assignment: StudyRequest,
    *,
    command: str,
    reporter: Reporter | None = None,
    trust_code: bool | frozenset[str] = False,
    together: int | None = None,
    workers: int = 1,
    budget: Budget | None = None,
    show_plan: bool = True,
) -> dict[str, str]:
    """Do what is asked for of a study, or go on with it: finished runs are not done again.

    Students that see the same batches and ask the same teacher, if they ask one, are trained in lockstep: a batch is
    made and the teacher is asked once for all of them, and each ends in the bits of one trained alone.

    Several processes may do one study: each takes the next runs that no other is at, and waits for a teacher that
    another trains. A run that fails does not stop the others. The study's records, its table and its report are written
    anew after every run, or after all that were trained together.

    With a budget the pairs are done in the order of what they take on this machine, and the study stops inside it: the
    runs at hand with a checkpoint within their epoch. The same call goes on, here or where the folder was copied to.

    Args:
        assignment: what is asked for.
        command: how it was asked for.
        reporter: shows it as it goes.
        trust_code: allow ``file:`` models, which run code: all of them, or those of these names.
        together: how many students at most are trained in lockstep; by default one where the study holds the methods'
            time a step and memory against each other, which are measured alone, and else `recipes.TOGETHER`.
        workers: processes that share the work; none takes more than its part of what is left at a time.
        budget: the time for it; none to do all of it.
        show_plan: show what each pair takes and what fits in the budget.

    Returns:
        The runs that failed, and why.

    Raises:
        RecipeError: the data cannot be read, or two runs that differ would share a folder.
    """
    most = together or (1 if assignment.study.costs else TOGETHER)
    reporter = reporter or NullReporter()
    plan = None
    if budget is not None:
        plan = budgets.prepare(assignment, budget, workers=workers, trust_code=trust_code)
        assignment = plan.assignment
        for line in plan.lines() if show_plan else ():
            reporter.say(line)
    return _Conduct(assignment, command, reporter, trust_code, most, workers, plan).go()


class _Conduct:
    """A study while it is done by one process."""

    def __init__(
        self,
        assignment: StudyRequest,
        command: str,
        reporter: Reporter,
        trust_code: bool | frozenset[str],
        most: int = TOGETHER,
        workers: int = 1,
        plan: Plan | None = None,
    ) -> None:
        self.assignment, self.command, self.reporter, self.trust_code = assignment, command, reporter, trust_code
        self.most, self.workers = most, workers
        self.plan, self.stopped, self.writing = plan, False, 0.0
        self.began = time.time()
        self.failed: dict[str, str] = {}
        self.asked = jobs(assignment)
        self.left = self.asked
        own = assignment.study.recipe.data
        self.splits = data.open_data(own)
        self.fingerprint = _Fingerprints({own: self.splits.fingerprint})
        self.others = foreign_runs(assignment, self.asked, self.fingerprint)

    def go(self) -> dict[str, str]:
        """Do every run that is left, then return what failed."""
        self.left = [job for job in self.asked if not self._settled(job)]
        # A teacher whose students are all done has no one to teach.
        wanted = {job.needs for job in self.left}
        self.left = [job for job in self.left if job.method != TEACHER or job.name in wanted]
        self.reporter.say(
            f"{self.assignment.study.name}: {len(self.left)} of {len(self.asked)} runs to do, "
            f"in {self.assignment.runs / self.assignment.pool}"
        )
        self.reporter.expect(sum(steps_of(job.recipe, len(self.splits.train)) for job in self.left))
        self._write()
        busy: set[str] = set()
        while self.left and not self.stopped:
            before, blocked = len(self.left), False
            elsewhere: set[str] = set()
            for job in list(self.left):
                if job not in self.left or job.name in elsewhere:
                    continue
                if self._settled(job):
                    self.left.remove(job)
                elif self._waits(job):
                    blocked = True
                else:
                    together = self._class(job, elsewhere)
                    try:
                        now = self._do(together)
                    except DeadlineExceeded as error:
                        self.reporter.say(f"the budget is used up: {error}")
                        self.stopped = True
                        break
                    for name in sorted(now - busy):
                        self.reporter.say(f"{name} is going on in another process: left to it")
                    busy |= now
                    elsewhere |= now
                    self.left = [one for one in self.left if one not in together or one.name in now]
            if len(self.left) == before and not self.stopped:
                if not blocked or self._over():
                    break
                time.sleep(PATIENCE)
        self._write()
        for job in self.asked:
            # A run that was finished may be another teacher's by now: it is in no mean, and that is told.
            if why := self.others.get((job.pair, job.name)):
                self._fail(job, why)
        if not self.stopped:
            self._draw()
        # In the order of the plan, whoever was trained with whom.
        return {job.name: self.failed[job.name] for job in self.asked if job.name in self.failed}

    def _write(self) -> None:
        """Write the records anew; whose runs the folders hold is looked at anew too, as a teacher may be another."""
        self.others = foreign_runs(self.assignment, [*self.asked, *cells(self.assignment)], self.fingerprint)
        clock = self.plan.budget.clock if self.plan is not None else time.monotonic
        began = clock()
        write(self.assignment, self.others)
        self.writing = clock() - began

    def _draw(self) -> None:
        """Draw the study's figures from the records, where it has any."""
        from tutelage.studies.paper import draw

        if not self.assignment.study.figures:
            return
        try:
            with folder_lock(self.assignment.folder, wait=True):
                for path in draw(self.assignment.folder):
                    self.reporter.say(f"figure: {path}")
        except ImportError as error:
            self.reporter.say(f"the figures are not drawn: {error}")

    def _folder(self, name: str) -> Path:
        return self.assignment.runs / name

    def _waits(self, job: Job) -> bool:
        """Whether a job's teacher is still to be trained."""
        return job.needs is not None and not finished(self._folder(job.needs))

    def _class(self, job: Job, elsewhere: set[str]) -> list[Job]:
        """The jobs to do with one that is next: a worker's part of what is left at most, and teachers alone."""
        if job.method == TEACHER:
            return [job]
        part = -(-len(self.left) // self.workers)
        others = [
            other
            for other in self.left
            if other is not job
            and other.method != TEACHER
            # Inside a budget a pair is finished before the next one begins.
            and (self.plan is None or other.pair == job.pair)
            and other.name not in elsewhere
            and not self._waits(other)
            and not self._settled(other)
        ]
        ready = [job, *others]
        return [ready[k] for k in group_of([one.recipe for one in ready], min(self.most, part))]

    def _settled(self, job: Job) -> bool:
        """Whether nothing is to be done for a job: it is finished, or cannot be done."""
        if why := self.others.get((job.pair, job.name)):
            self._fail(job, why)
        elif job.needs in self.failed:
            self._fail(job, f"its teacher {job.needs} is not trained")
        elif why := self._failed_elsewhere(job):
            self._fail(job, why)
        return job.name in self.failed or finished(self._folder(job.name))

    def _failed_elsewhere(self, job: Job) -> str | None:
        """Why a run failed in another process since this one began: it would fail here too."""
        path = self._folder(job.name) / records.MANIFEST
        if not path.exists() or path.stat().st_mtime < self.began:
            return None
        manifest = records.read_json(path)
        return str((manifest["notes"] or ["failed"])[-1]) if manifest["status"] == "failed" else None

    def _until(self, together: list[Job]) -> Deadline | None:
        return budgets.deadline(self.plan, together, self.writing) if self.plan else None

    def _over(self) -> bool:
        """Whether the budget ends before there could be another look at a teacher."""
        if self.plan is not None and self.plan.budget.left < budgets.MARGIN + PATIENCE:
            self.stopped = True
        return self.stopped

    def _do(self, together: list[Job]) -> set[str]:
        """Do some jobs in lockstep; return the names of those that another process is at.

        Raises:
            DeadlineExceeded: the budget is used up.
        """
        deadline = self._until(together)
        names = ", ".join(job.name for job in together)
        self.reporter.say(f"{len(self.left)} left: {names}{', together' if len(together) > 1 else ''}")
        recorded = next((job for job in together if job.recipe.outputs is not None), None)
        try:
            if recorded is not None:
                taps = self._taps(recorded)
                record_teacher.record(
                    recorded.recipe, taps=taps, reporter=self.reporter, trust_code=self.trust_code, deadline=deadline
                )
            done: list[Run | Exception] = execute_group(
                [(job.recipe, self._folder(job.name)) for job in together],
                command=self.command,
                reporter=self.reporter,
                trust_code=self.trust_code,
                deadline=deadline,
            )
        except DeadlineExceeded:
            raise
        except Exception as error:  # noqa: BLE001  whatever it is, the other runs do not depend on it
            done = [error] * len(together)
        for job, run in zip(together, done, strict=True):
            # Another process may have finished it since it was looked at.
            failed = isinstance(run, Exception) and not isinstance(run, BusyError | DeadlineExceeded)
            if failed and not finished(self._folder(job.name)):
                self._fail(job, str(run) or type(run).__name__)
        if stopped := next((run for run in done if isinstance(run, DeadlineExceeded)), None):
            raise stopped
        busy = {job.name for job, run in zip(together, done, strict=True) if isinstance(run, BusyError)}
        if len(busy) < len(together):
            self._write()
        return busy

    def _taps(self, job: Job) -> list[str]:
        """The features that any run left reads of what is recorded in the same place: the teacher is asked once."""
        same = (other.recipe for other in self.left if other.recipe.outputs == job.recipe.outputs)
        return [
            tap for recipe in same for objective in build_objectives(recipe) for tap in objective.needs.teacher_taps
        ]

    def _fail(self, job: Job, why: str) -> None:
        if job.name not in self.failed:
            self.failed[job.name] = why
            self.reporter.say(f"failed: {job.name}: {why}")


Strangers = Mapping[tuple[str, str], str]
"""By pair and run, for pairs with settings of their own may share a folder: why a run is not the one planned."""


class _Fingerprints:
    """Fingerprints of data, by their settings; each is opened once, and only where it is asked for."""

    def __init__(self, known: Mapping[DataSettings, str | None]) -> None:
        self._known = dict(known)

    def __call__(self, settings: DataSettings) -> str | None:
        if settings not in self._known:
            self._known[settings] = data.open_data(settings).fingerprint
        return self._known[settings]


def foreign_runs(
    assignment: StudyRequest, planned: list[Job], fingerprint: Callable[[DataSettings], str | None]
) -> dict[tuple[str, str], str]:
    """Return the runs whose folders hold others than are planned, and what to do about it.

    Args:
        assignment: what is asked for.
        planned: the runs to look at.
        fingerprint: tells that of data; asked only where a run is there.
    """
    found = {}
    for job in {(job.pair, job.name): job for job in planned}.values():
        folder = assignment.runs / job.name
        if not (folder / records.RECIPE).exists():
            continue
        try:
            differs = differences(assignment, job, fingerprint=fingerprint(job.recipe.data))
        except (ValueError, OSError, ImportError) as error:
            differs = [str(error)]
        if differs:
            found[job.pair, job.name] = (
                f"expected the run that the study plans, got another in {folder} "
                f"({'; '.join(differs)}); type --pool NAME for new runs, or remove the folder"
            )
    return found


def write(assignment: StudyRequest, others: Strangers) -> Path:
    """Write a study's records, table and report from the runs as they are now.

    Args:
        assignment: what is asked for.
        others: runs that are not the study's, though their folders have its names; by pair and name.

    Returns:
        The path of the report.
    """
    from tutelage.studies.report import write_report
    from tutelage.studies.study_table import write_tables

    folder = assignment.folder
    folder.mkdir(parents=True, exist_ok=True)
    shown = [job for job in cells(assignment) if (job.pair, job.name) not in others]
    with folder_lock(folder, wait=True):
        records.write_json(folder / records.STUDY, record(assignment, shown))
        write_tables(folder)
        return write_report(folder)
