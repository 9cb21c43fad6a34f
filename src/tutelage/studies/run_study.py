"""Runs a study in one of several processes: run after run or group after group; a failure does not stop the others."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tutelage import data, records
from tutelage.config.schema import Recipe
from tutelage.launcher import world_size
from tutelage.places.cluster import Cluster
from tutelage.places.here import Here
from tutelage.places.time_limit import Budget
from tutelage.report import libraries
from tutelage.runs import disk, notes
from tutelage.runs.group import group_of
from tutelage.runs.lock import BusyError, folder_lock
from tutelage.runs.run import DEFAULTS, RunOptions, finished
from tutelage.runs.setup import steps_of
from tutelage.settings.run import TOGETHER
from tutelage.studies import budget as budgets
from tutelage.studies import trials
from tutelage.studies.budget import Plan
from tutelage.studies.foreign_runs import foreign_runs
from tutelage.studies.plan import Job, StudyRequest, cells, deviations, jobs, without_idle_teachers
from tutelage.studies.schema import TEACHER
from tutelage.training.deadline import DeadlineExceeded

PATIENCE = 2.0
"""Seconds between checks of a teacher that another process trains."""


def run_study(
    request: StudyRequest,
    *,
    options: RunOptions = DEFAULTS,
    together: int | None = None,
    budget: Budget | None = None,
    show_plan: bool = True,
    on: Here | Cluster | None = None,
) -> dict[str, str]:
    """Run a study, or resume it: finished runs are not repeated. Return the runs that failed, and why.

    Students that see the same batches, and use the same teacher if any, are trained in lockstep, ``together`` at most:
    each ends with the same bits as one trained alone. By default this is one if the study compares the methods' time
    per step and memory, which are measured alone, and otherwise `TOGETHER`.

    Several processes may run one study: each takes the next runs that no other process has, at most its share of the
    remaining ones by `Here.slots`, and waits for a teacher that another trains. A run that fails does not stop the
    others. The study's records, table and report are rewritten after every run or group.

    With a budget, the pairs are run in order of their cost on this machine, which ``show_plan`` shows, and the study
    stops within it: the current runs with a checkpoint within their epoch. The same call resumes, here or wherever the
    folder was copied to.

    ``on`` a cluster, without a budget, the groups are trained on its nodes, each by one task.

    Raises:
        RecipeError: if the data cannot be read, or two different runs would share a folder.
    """
    most = together or (1 if request.study.costs else TOGETHER)
    on = on or Here()
    study = partial(_run_study, request, options, most, budget, on, show_plan=show_plan)
    return on.drive(study, request.study.recipe.device)


def _run_study(
    whole: StudyRequest, options: RunOptions, most: int, budget: Budget | None, on: Here | Cluster, *, show_plan: bool
) -> dict[str, str]:
    def run(request: StudyRequest, found: Sequence[records.Candidate] | None = None) -> _StudyRun:
        plan = None
        if budget is not None:
            # A step of several processes cannot be timed by one of them.
            measure = world_size() == 1
            plan = budgets.prepare(request, budget, workers=on.slots, trust_code=options.trust_code, measure=measure)
            request = plan.request
            for line in plan.lines() if show_plan else ():
                options.reporter.say(line)
        return _StudyRun(whole=whole, request=request, found=found, options=options, most=most, on=on, plan=plan)

    if whole.study.search is None:
        return run(whole).go()
    search = run(trials.trials_of(whole))
    failed = search.go()
    if search.stopped:
        return failed
    found = trials.results(whole, search.foreign)
    for line in trials.choices(found):
        options.reporter.say(f"chosen: {line}")
    return failed | run(trials.chosen(whole, found), found).go()


@dataclass(kw_only=True, eq=False)
class _StudyRun:
    """A study, or its search, while one process runs it."""

    whole: StudyRequest  # as it was asked for; what is written is of all of it
    request: StudyRequest  # the runs
    found: Sequence[records.Candidate] | None  # by the search, if it is done
    options: RunOptions
    most: int
    on: Here | Cluster
    plan: Plan | None

    def __post_init__(self) -> None:
        self.reporter = self.options.reporter
        self.stopped, self.writing, self.began = False, 0.0, time.time()
        self.failed: dict[str, str] = {}
        self.dealt = set[str]()  # and not done
        self.requested = self.left = jobs(self.request)
        protocol = self.request.study.recipe.data
        self.splits = data.open_data(protocol)
        self.fingerprint = functools.cache(
            lambda settings: (self.splits if settings == protocol else data.open_data(settings)).fingerprint
        )
        self.foreign = foreign_runs(self.request, self.requested, self.fingerprint)

    def go(self) -> dict[str, str]:
        """Execute every remaining run, then return the failures."""
        self.left = without_idle_teachers(job for job in self.requested if not self._settled(job))
        what = "runs" if self.request.trial is None else "runs of the search"
        self.reporter.say(
            f"{self.request.study.name}: {len(self.left)} of {len(self.requested)} {what} to do, "
            f"in {self.request.runs / self.request.pool}"
        )
        for line in notes.of_data(self.splits):
            self.reporter.remark(line)
        if self.on.local:
            self.reporter.expect(sum(steps_of(job.recipe, self.splits.train.per_epoch) for job in self.left))
        if self.left:
            planned = [(job.recipe, self._folder(job.name)) for job in self.left]
            size = disk.size_of_all(planned, self.splits, self.options.trust_code)
            disk.require_room(f"study {self.request.study.name}", self.request.runs, size)
        self._write()
        busy, known_busy, before = set[str](), set[str](), len(self.left)
        while not self.stopped:
            self.left = [job for job in self.left if not self._settled(job)]
            ready = [job for job in self.left if job.name not in busy | self.dealt and not self._waits(job)]
            if ready or self.dealt:
                try:
                    busy |= self._execute(ready)
                except DeadlineExceeded as error:
                    self.reporter.say(f"the budget is used up: {error}")
                    self.stopped = True
                for name in sorted(busy - known_busy):
                    self.reporter.say(f"{name} is running in another process: left to it")
                known_busy |= busy
                continue
            if len(self.left) == before:  # only other processes are at work
                # What another process tries is waited for, as the runs after the search depend on it.
                if not self.left or (self.request.trial is None and all(job.name in busy for job in self.left)):
                    break
                if self.plan is not None and self.plan.budget.left < budgets.MARGIN + PATIENCE:
                    self.stopped = True
                    break
                time.sleep(PATIENCE)
            busy, before = set(), len(self.left)
        self._write()
        for job in self.requested:
            # A finished run may belong to another teacher by now; it is excluded, and reported.
            if why := self.foreign.get((job.pair, job.name)):
                self._fail(job, why)
        if self.request.study.figures and not self.stopped:
            self._draw()
        # In the order of the plan, however the runs were grouped.
        return {job.name: self.failed[job.name] for job in self.requested if job.name in self.failed}

    def _write(self) -> None:
        """Rewrite the records; search for foreign runs again, as a teacher may have changed by now."""
        self.foreign = foreign_runs(self.request, [*self.requested, *cells(self.request)], self.fingerprint)
        clock = self.plan.budget.clock if self.plan is not None else time.monotonic
        began = clock()
        request, foreign, found = self.request, self.foreign, self.found
        if request.trial is not None:  # In the table are the runs that follow.
            found = trials.results(self.whole, foreign)
            request = trials.chosen(self.whole, found)
            foreign = foreign_runs(request, cells(request), self.fingerprint)
        write(self.whole, [job for job in cells(request) if (job.pair, job.name) not in foreign], found)
        self.writing = clock() - began

    def _draw(self) -> None:
        """Draw the study's figures from the records."""
        from tutelage.studies.paper import draw

        try:
            with folder_lock(self.request.folder, wait=True):
                for path in draw(self.request.folder):
                    self.reporter.say(f"figure: {path}")
        except ImportError as error:
            self.reporter.say(f"the figures are not drawn: {error}")

    def _folder(self, name: str) -> Path:
        return self.request.runs / name

    def _waits(self, job: Job) -> bool:
        """Whether a job's teacher is still to be trained."""
        return job.needs is not None and not finished(self._folder(job.needs))

    def _group(self, ready: list[Job]) -> list[Job]:
        """Return the jobs to train in lockstep with the first, at most a worker's share; teachers train alone."""
        first = ready[0]
        if first.method == TEACHER:
            return [first]
        # Within a budget, a pair is finished before the next one begins.
        students = [job for job in ready if job.method != TEACHER and (self.plan is None or job.pair == first.pair)]
        most = min(self.most, -(-len(self.left) // self.on.slots))
        return [students[k] for k in group_of([job.recipe for job in students], most)]

    def _settled(self, job: Job) -> bool:
        """Whether a job needs no work: it is finished, or cannot be done."""
        if why := self.foreign.get((job.pair, job.name)):
            self._fail(job, why)
        elif job.needs in self.failed:
            self._fail(job, f"its teacher {job.needs} is not trained")
        elif why := self._failed_elsewhere(job):
            self._fail(job, why)
        return job.name in self.failed or finished(self._folder(job.name))

    def _failed_elsewhere(self, job: Job) -> str | None:
        """Return why a run failed in another process since this one began, as it would fail here too."""
        path = self._folder(job.name) / records.MANIFEST
        if not path.exists() or path.stat().st_mtime < self.began:
            return None
        with contextlib.suppress(records.DamagedError):  # The run itself makes it again, or says so.
            manifest = records.read_manifest(path.parent)
            if manifest.get("status") == "failed":
                return str((manifest.get("notes") or ["failed"])[-1])
        return None

    def _execute(self, ready: list[Job]) -> set[str]:
        """Deal of the jobs that are ready what may be dealt, and wait for one group; return those of it that are busy.

        Raises:
            DeadlineExceeded: if the budget is used up.
        """
        while ready and len(self.dealt) < self.on.most_dealt:
            group = self._group(ready)
            deadline = budgets.deadline(self.plan, group, self.writing) if self.plan else None
            self.on.submit(group, *self._planned(group), replace(self.options, deadline=deadline))
            self.dealt |= {job.name for job in group}
            ready = [job for job in ready if job.name not in self.dealt]
        group, results = self.on.next(self.reporter)
        self.dealt -= {job.name for job in group}
        return self._take(group, results)

    def _planned(self, group: Sequence[Job]) -> tuple[list[tuple[Recipe, Path]], list[Recipe]]:
        """Return a group's recipes and folders, and the recipes of all that read recorded outputs."""
        names = ", ".join(job.name for job in group)
        self.reporter.say(f"{len(self.left)} left: {names}{', together' if len(group) > 1 else ''}")
        # Everything that remaining runs read from the same recorded outputs, so that the teacher runs once.
        readers = [job.recipe for job in self.left if job.recipe.outputs is not None]
        return [(job.recipe, self._folder(job.name)) for job in group], readers

    def _take(self, group: Sequence[Job], results: Sequence[object]) -> set[str]:
        """Note what became of a group's runs; return the names of those that another process is training.

        Raises:
            DeadlineExceeded: if the budget is used up.
        """
        busy, stopped = set(), None
        for job, result in zip(group, results, strict=True):
            if isinstance(result, BusyError):
                busy.add(job.name)
            elif isinstance(result, DeadlineExceeded):
                stopped = result
            # Another process may have finished it in the meantime.
            elif isinstance(result, Exception) and not finished(self._folder(job.name)):
                self._fail(job, str(result) or type(result).__name__)
        if stopped:
            raise stopped
        if len(busy) < len(group):
            self._write()
        return busy

    def _fail(self, job: Job, why: str) -> None:
        if job.name not in self.failed:
            self.failed[job.name] = why
            self.reporter.say(f"failed: {job.name}: {why}")


def write(request: StudyRequest, shown: Sequence[Job], found: Sequence[records.Candidate] | None) -> None:
    """Write a study's records, table and report from the runs to show, and from what its search found if it has one."""
    from tutelage.studies.study_table import write_tables

    folder = request.folder
    with folder_lock(folder, wait=True):
        content = record(request, shown)
        if found is not None:
            content["search"] = trials.record(request, found)
        records.write_json(folder / records.STUDY, content)
        write_tables(folder)
        if libraries.installed():
            from tutelage.studies.report import write_report

            write_report(folder)


def record(request: StudyRequest, shown: Sequence[Job]) -> records.Study:
    """Return the content of ``study.json`` with these runs in its table."""
    study = request.study

    def relative(name: str) -> str:
        return Path(os.path.relpath(request.runs / name, request.folder)).as_posix()

    published = [(pair, TEACHER, value.published) for pair, value in study.pairs.items()]
    published += [(pair, name, m.published.get(pair)) for name, m in study.methods.items() for pair in study.pairs]
    return {
        "schema": records.SCHEMA,
        "name": study.name,
        "title": study.title,
        "source": study.source,
        "pairs": list(study.pairs),
        "methods": list(study.methods),
        "cells": [
            {
                "folder": relative(job.name),
                "pair": job.pair,
                "teacher": relative(job.teacher) if job.teacher else None,
                "method": job.method,
                "seed": job.recipe.seed,
            }
            for job in shown
        ],
        "published": [
            {"pair": pair, "method": name, "mean": value.mean, "std": value.std, "n": value.n}
            for pair, name, value in published
            if value
        ],
        "figures": list(study.figures),
        "costs": study.costs,
        "differences": [
            {"tests": tests, "first": first, "second": second} for tests, (first, second) in study.differences.items()
        ],
        "departures": deviations(request, shown),
        "missing": request.missing,
        "notes": [*study.notes, *_rounded_teachers(request, shown)],
    }


def _rounded_teachers(request: StudyRequest, shown: Sequence[Job]) -> Iterator[str]:
    """Yield a note for each teacher whose folder holds a rounded copy of the trained weights."""
    for name in dict.fromkeys(job.teacher for job in shown if job.teacher):
        path, rounded = request.runs / name / records.MANIFEST, None
        with contextlib.suppress(records.DamagedError):
            rounded = records.read_manifest(path.parent).get("rounded") if path.exists() else None
        if rounded:
            yield (
                f"{name}: a copy in {rounded['to']} of the teacher that was trained; runs from before that "
                "were taught by the float32 weights."
            )
