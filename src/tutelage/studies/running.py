"""Doing a study: run after run, in one process or several; what failed is told, and the rest goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tutelage import data, recording, records
from tutelage.data import DataSettings
from tutelage.engine import OutOfTimeError, Until
from tutelage.runs import BusyError, Display, Silent, alone, finished, perform, steps_of
from tutelage.studies import budget as budgets
from tutelage.studies.budget import Budget, Plan
from tutelage.studies.plan import Assignment, Job, cells, differences, jobs, record
from tutelage.studies.schema import TEACHER

PATIENCE = 2.0
"""Seconds between two looks at a teacher that another process trains."""


def conduct(
    assignment: Assignment,
    *,
    command: str,
    display: Display | None = None,
    trust_code: bool | frozenset[str] = False,
    budget: Budget | None = None,
    workers: int = 1,
    show_plan: bool = True,
) -> dict[str, str]:
    """Do what is asked for of a study, or go on with it: finished runs are not done again.

    Several processes may do one study together: each takes the next run that no other is at, and waits for a teacher
    that another trains. A run that fails does not stop the others. The study's records, its table and its report are
    written anew after every run.

    With a budget the pairs are done in the order of what they take on this machine, and the study stops inside it: the
    run at hand with a checkpoint within its epoch. The same call goes on, here or where the folder was copied to.

    Args:
        assignment: what is asked for.
        command: how it was asked for.
        display: shows it as it goes.
        trust_code: allow ``file:`` models, which run code: all of them, or those of these names.
        budget: the time for it; none to do all of it.
        workers: processes that do it together, this one among them.
        show_plan: show what each pair takes and what fits in the budget.

    Returns:
        The runs that failed, and why.

    Raises:
        RecipeError: the data cannot be read, or two runs that differ would share a folder.
    """
    display = display or Silent()
    plan = None
    if budget is not None:
        plan = budgets.prepare(assignment, budget, workers=workers, trust_code=trust_code)
        assignment = plan.assignment
        for line in plan.lines() if show_plan else ():
            display.say(line)
    return _Conduct(assignment, command, display, trust_code, plan).go()


class _Conduct:
    """A study while it is done by one process."""

    def __init__(
        self,
        assignment: Assignment,
        command: str,
        display: Display,
        trust_code: bool | frozenset[str],
        plan: Plan | None = None,
    ) -> None:
        self.assignment, self.command, self.display, self.trust_code = assignment, command, display, trust_code
        self.plan, self.stopped, self.writing = plan, False, 0.0
        self.began = time.time()
        self.failed: dict[str, str] = {}
        self.asked = jobs(assignment)
        self.left = self.asked
        own = assignment.study.recipe.data
        self.splits = data.open_data(own)
        self.fingerprint = _Fingerprints({own: self.splits.fingerprint})
        self.others = strangers(assignment, self.asked, self.fingerprint)

    def go(self) -> dict[str, str]:
        """Do every run that is left, then return what failed."""
        self.left = [job for job in self.asked if not self._settled(job)]
        # A teacher whose students are all done has no one to teach.
        wanted = {job.needs for job in self.left}
        self.left = [job for job in self.left if job.method != TEACHER or job.name in wanted]
        self.display.say(
            f"{self.assignment.study.name}: {len(self.left)} of {len(self.asked)} runs to do, "
            f"in {self.assignment.runs / self.assignment.pool}"
        )
        self.display.expect(sum(steps_of(job.recipe, len(self.splits.train)) for job in self.left))
        self._write()
        busy: set[str] = set()
        while self.left and not self.stopped:
            before, blocked = len(self.left), False
            for job in list(self.left):
                if self._settled(job):
                    self.left.remove(job)
                elif job.needs and not finished(self._folder(job.needs)):
                    blocked = True
                else:
                    try:
                        self._do(job)
                    except BusyError:
                        if job.name not in busy:
                            self.display.say(f"{job.name} is going on in another process: left to it")
                        busy.add(job.name)
                    except OutOfTimeError as error:
                        self.display.say(f"the budget is used up: {error}")
                        self.stopped = True
                        break
                    else:
                        self.left.remove(job)
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
        return self.failed

    def _write(self) -> None:
        """Write the records anew; whose runs the folders hold is looked at anew too, as a teacher may be another."""
        self.others = strangers(self.assignment, [*self.asked, *cells(self.assignment)], self.fingerprint)
        clock = self.plan.budget.clock if self.plan is not None else time.monotonic
        began = clock()
        write(self.assignment, self.others)
        self.writing = clock() - began

    def _draw(self) -> None:
        """Draw the study's figures from the records, where it has any."""
        from tutelage.report.paper import draw

        if not self.assignment.study.figures:
            return
        try:
            with alone(self.assignment.folder, wait=True):
                for path in draw(self.assignment.folder):
                    self.display.say(f"figure: {path}")
        except ImportError as error:
            self.display.say(f"the figures are not drawn: {error}")

    def _folder(self, name: str) -> Path:
        return self.assignment.runs / name

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

    def _until(self, job: Job) -> Until | None:
        return budgets.until(self.plan, job, self.writing) if self.plan else None

    def _over(self) -> bool:
        """Whether the budget ends before there could be another look at a teacher."""
        if self.plan is not None and self.plan.budget.left < budgets.MARGIN + PATIENCE:
            self.stopped = True
        return self.stopped

    def _do(self, job: Job) -> None:
        until = self._until(job)
        self.display.say(f"{len(self.left)} left: {job.name}")
        try:
            if job.recipe.outputs is not None:
                recording.record(
                    job.recipe,
                    taps=self._taps(job),
                    display=self.display,
                    trust_code=self.trust_code,
                    until=until,
                )
            perform(
                job.recipe,
                self._folder(job.name),
                verb="distill" if job.recipe.teacher is not None else "train",
                command=self.command,
                display=self.display,
                trust_code=self.trust_code,
                until=until,
            )
        except (BusyError, OutOfTimeError):
            raise
        except Exception as error:  # noqa: BLE001  whatever it is, the other runs do not depend on it
            # Another process may have finished it since it was looked at.
            if not finished(self._folder(job.name)):
                self._fail(job, str(error) or type(error).__name__)
        self._write()

    def _taps(self, job: Job) -> list[str]:
        """The features that any run left reads of what is recorded in the same place: the teacher is asked once."""
        same = (other.recipe for other in self.left if other.recipe.outputs == job.recipe.outputs)
        return [tap for recipe in same for objective, _, _ in recipe.fits() for tap in objective.needs.teacher_taps]

    def _fail(self, job: Job, why: str) -> None:
        if job.name not in self.failed:
            self.failed[job.name] = why
            self.display.say(f"failed: {job.name}: {why}")


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


def strangers(
    assignment: Assignment, planned: list[Job], fingerprint: Callable[[DataSettings], str | None]
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


def write(assignment: Assignment, others: Strangers) -> Path:
    """Write a study's records, table and report from the runs as they are now.

    Args:
        assignment: what is asked for.
        others: runs that are not the study's, though their folders have its names; by pair and name.

    Returns:
        The path of the report.
    """
    from tutelage.report.html import write_report
    from tutelage.report.study import write_tables

    folder = assignment.folder
    folder.mkdir(parents=True, exist_ok=True)
    shown = [job for job in cells(assignment) if (job.pair, job.name) not in others]
    with alone(folder, wait=True):
        records.write_json(folder / records.STUDY, record(assignment, shown))
        write_tables(folder)
        return write_report(folder)
