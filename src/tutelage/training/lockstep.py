"""Several students fitted in lockstep, on one batch and one teacher pass per step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from itertools import cycle

import torch
from accelerate import Accelerator

from tutelage import records
from tutelage.errors import InvalidValueError, RunError
from tutelage.interruption import uninterrupted
from tutelage.training.agreement import Agreement
from tutelage.training.captured import CapturedStep, close
from tutelage.training.compile import PlannedTeacher
from tutelage.training.deadline import DeadlineExceeded
from tutelage.training.distributed import batches_on
from tutelage.training.generators import host_generators, noting_seeds
from tutelage.training.graphs import Captured, NotCapturableError, warm_up
from tutelage.training.isolation import Isolation
from tutelage.training.job import FitJob, FitState
from tutelage.training.precision import float32_products
from tutelage.training.step import split_batch
from tutelage.types import Batch, Batches, Outputs, Teacher
from tutelage.views import with_own_inputs

WATCHED = 2
"""Number of steps in which a student is watched before it takes others beside those of other students."""
SHARED = ("epochs", "accumulate", "precision", "channels_last", "compile_teacher")
"""Settings that must agree among jobs fitted in lockstep."""


class Lockstep:
    """Several students fitted in lockstep: each batch is made, moved and passed through the teacher just once.

    Each student takes the same steps, to the bit, as on its own. Those that resume from a checkpoint take none until
    the group reaches their step, so the group begins where the least advanced one was.

    Several may take their steps side by side, each in a thread with as many threads to compute with as the process has.
    One that draws random numbers in its first two steps, or seeds generators, takes all its steps alone, as the
    generators are the process's.

    Args:
        jobs: students by number. Their settings agree in `SHARED`.
        teacher: teacher of all; its outputs include the features that any of the jobs reads.
        batches: training set.
        accelerator: device and processes to train on.
        isolation: isolation by the same numbers; each student draws from its own random generators. Students with an
            error in it take no further step.
        stage: number of the stage, as for `fit`.
        side_by_side: number of students that take their steps at a time, on a CPU in one process; 1 anywhere else.

    Raises:
        ValueError: if the jobs' settings do not agree.
    """

    def __init__(
        self,
        jobs: Mapping[int, FitJob],
        teacher: Teacher | None,
        batches: Batches,
        *,
        accelerator: Accelerator,
        isolation: Isolation,
        stage: int = 0,
        side_by_side: int = 1,
    ) -> None:
        for name in SHARED:
            values = {getattr(job.settings, name) for job in jobs.values()}
            if len(values) > 1:
                expected = "one value for all that are fitted together"
                instead = "fit them one after the other"
                raise InvalidValueError(name, expected, ", ".join(sorted(map(str, values))), instead)
        self.jobs, self.batches = jobs, batches
        self.accelerator, self.isolation, self.stage = accelerator, isolation, stage
        self.settings = next(iter(jobs.values())).settings
        self.teacher = PlannedTeacher(teacher, self.settings, accelerator.device) if teacher is not None else None
        self.agreement = Agreement(accelerator, batches)
        self._states: dict[int, FitState] = {}
        self._pass: Captured[list[Outputs]] | None = None  # captured teacher pass, if the students' steps are captured
        self._side_by_side = min(side_by_side, len(jobs))
        self._pool: ThreadPoolExecutor | None = None
        # Whether a student draws random numbers, by its first steps where there is a pool: one entry each.
        self._draws: dict[int, list[bool]] = {k: [] for k in jobs}

    def run(self) -> Iterator[tuple[int, records.Epoch]]:
        """Train, yielding each student's number and record after every epoch; the errors of one are in ``isolation``.

        Raises:
            Exception: if something shared failed: the batches, the teacher, or one of several processes.
        """
        batches = self.batches
        begin = partial(
            FitState,
            accelerator=self.accelerator,
            steps=len(batches),
            samples=batches.samples,
            stage=self.stage,
            agreement=self.agreement,
        )
        with self.agreement.training(), ExitStack() as stack:
            if self._side_by_side > 1:
                threads = torch.get_num_threads()
                pool = ThreadPoolExecutor(self._side_by_side, initializer=torch.set_num_threads, initargs=(threads,))
                self._pool = stack.enter_context(pool)
            for k, job in self.jobs.items():
                if state := self.isolation.attempt(k, begin, job):
                    self._states[k] = state
            students = self._students().values()
            resumed = [state for state in students if state.job.uses_teacher and state.plan is not None]
            if self.teacher is not None and resumed:
                self.teacher.plan = resumed[0].plan
            self._end()
            while epochs := [epoch for epoch, _ in self._positions()]:
                yield from self._run_epoch(min(epochs))
                states = list(self._students().values())
                for state in states[:1]:
                    state.agree(ends=all(each.done for each in states))
                self._end()

    def _end(self) -> None:
        """Part with the students whose fit is over; the others go on."""
        for k, state in list(self._students().items()):
            if state.done:
                self.isolation.attempt(k, state.end)
                del self._states[k]

    def _run_epoch(self, epoch: int) -> Iterator[tuple[int, records.Epoch]]:
        """Train an epoch from the least advanced student's step, then evaluate and save each student."""
        start = min(step for at, step in self._positions() if at == epoch)
        for k, state in self._at(epoch, start).items():
            self.isolation.attempt(k, state.begin_epoch)
        stream = batches_on(self.accelerator, self.batches, epoch, start, self.settings)
        with self._saving_if_stopped(), float32_products(self.accelerator.device, self.settings.precision):
            for step, batch in enumerate(stream, start):
                present = self._at(epoch, step)
                if not present:  # Those at this step have failed: continue where the others are.
                    return
                self._take_steps(batch, present)
        done = {k: state for k, state in self._students().items() if state.now.epoch == epoch}
        totals = {k: self.isolation.attempt(k, state.training_totals) for k, state in done.items()}
        for k, sums in totals.items():
            with self._saving_if_stopped():
                record = self.isolation.attempt(k, done[k].end_epoch, sums) if sums else None
            if record:
                yield k, record

    @contextmanager
    def _saving_if_stopped(self) -> Iterator[None]:
        """Enter this for work on an epoch: each student's steps are saved if a deadline, Ctrl-C or SIGTERM ends it.

        Several processes save together before they stop: see `Agreement`. One that stops alone saves nothing.
        """
        try:
            yield
        except (DeadlineExceeded, KeyboardInterrupt):
            if not self.agreement.several:
                self._save_steps()
            raise

    def _save_steps(self) -> None:
        """Save every student's steps."""
        for k, state in self._students().items():
            self.isolation.attempt(k, state.save_steps)

    def _take_steps(self, batch: Batch, present: Mapping[int, FitState]) -> None:
        """Take every student's step on a batch."""
        shared, outputs = self._with_outputs(batch, present)
        steps = {k: partial(self._step, state, shared, outputs, len(present)) for k, state in present.items()}
        known = {k for k in present if len(self._draws[k]) == WATCHED}
        together = {k: steps.pop(k) for k in known if not any(self._draws[k])}
        for k, step in steps.items():
            state = present[k]
            replayed = isinstance(state.step, CapturedStep) and state.step.fits(batch)
            attempt = self.isolation.attempt_without_generators if replayed else self.isolation.attempt
            if attempt(k, step if self._pool is None or k in known else partial(self._watched, k, step)):
                self.isolation.attempt(k, state.save_steps)  # with its own generators
        for k in self._together(together):
            self.isolation.attempt(k, present[k].save_steps)
        for state in present.values():
            state.join()  # before another batch replaces this one
        for state in list(present.values())[:1]:
            if state.agrees:  # They have taken the same steps in this epoch.
                self.agreement.act(self._save_steps, before=state.next_step)

    def _watched(self, k: int, step: Callable[[], bool]) -> bool:
        """Take a student's step, and note whether it draws random numbers, or seeds generators."""
        before = host_generators()
        # In the first step a compiler may seed them too, and what it compiles is to meet the functions as they are.
        seeds: AbstractContextManager[list[str]] = noting_seeds() if self._draws[k] else nullcontext([])
        with seeds as seeded:
            due = step()
        self._draws[k].append(before != host_generators() or bool(seeded))
        return due

    def _together(self, steps: Mapping[int, Callable[[], bool]]) -> list[int]:
        """Take these students' steps side by side; return those whose state is to be saved.

        Raises:
            RunError: if one of them drew random numbers, which others may have drawn before it.
        """
        if self._pool is None or not steps:
            return []
        before = host_generators()
        futures: dict[int, Future[bool]] = {}
        with uninterrupted():
            try:
                futures |= {k: self._pool.submit(step) for k, step in steps.items()}
                wait(futures.values())
            finally:  # Nothing that comes in between leaves a step behind which is still being taken.
                for future in futures.values():
                    future.cancel()
                wait(futures.values())
            if before != host_generators():
                for k in steps:
                    self._states[k].consistent = False  # Not even a signal that waits has them saved.
                got = "some that one drew only later, while others took their steps beside it"
                instead = "train one after the other: type together=1, for a study --together 1, and it resumes"
                raise RunError("students", "random numbers from the first step on, or none", got, instead)
        return [k for k, future in futures.items() if self.isolation.attempt_without_generators(k, future.result)]

    def _step(self, state: FitState, batch: Batch, outputs: Sequence[Outputs], students: int) -> bool:
        """Take one student's step with the teacher's outputs for its micro-batches; return whether to save."""
        job = state.job
        if not state.in_epoch:  # It joins from a checkpoint.
            state.begin_epoch()
        teacher = self.teacher if job.uses_teacher else None
        given = _repeated(outputs, job.distiller.objective.needs.teacher_taps) if teacher is not None else None
        apart = students > 1
        state.begin_step(batch, teacher, given, apart=apart)
        # A student may write into its inputs; a single one needs no copy, and a captured step makes its own.
        copied = apart and not isinstance(state.step, CapturedStep)
        with state.undivided():
            state.step(state.train, with_own_inputs(batch) if copied else batch, given)
            return state.count_step(batch)

    def _with_outputs(self, batch: Batch, present: Mapping[int, FitState]) -> tuple[Batch, list[Outputs]]:
        """Return the batch with the teacher's outputs for each micro-batch, or without any if no student gets them."""
        using = [state for state in present.values() if state.job.uses_teacher]
        if self.teacher is None or not using:
            return batch, []
        teacher, pieces = self.teacher, split_batch(batch, self.settings.accumulate)
        # Students begin with the teacher's plan.
        teacher.choose_plan(pieces[0], steps=using[0].steps_left, processes=self.accelerator.num_processes)
        teacher.prepare(batch)

        def outputs(batch: Batch) -> list[Outputs]:
            return [teacher(piece) for piece in split_batch(batch, self.settings.accumulate)]

        outgrown = self._pass is None or len(batch.index) > len(self._pass.batch.index)
        if outgrown and any(state.to_be_captured for state in using):
            try:
                self._pass = _captured_pass(outputs, batch)
            except NotCapturableError as error:
                for state in using:  # Their graphs would read outputs that do not return to the same memory.
                    state.group_reason = f"a teacher that is not captured: {error}"
        if self._pass is not None and self._pass.fits(batch):
            replayed = self._pass(batch)
            return self._pass.batch._replace(view=batch.view), replayed
        return batch, outputs(batch)

    def _students(self) -> dict[int, FitState]:
        """Return the students that have not failed; drop the others, so that their memory is freed."""
        self._states = {k: state for k, state in self._states.items() if k not in self.isolation.errors}
        return self._states

    def _positions(self) -> list[tuple[int, int]]:
        """Return each student's epoch and step within it."""
        return [(state.now.epoch, state.now.step_in_epoch) for state in self._students().values()]

    def _at(self, epoch: int, step: int) -> dict[int, FitState]:
        """Return the students whose next step this is."""
        at = (epoch, step)
        return {k: s for k, s in self._students().items() if (s.now.epoch, s.now.step_in_epoch) == at}


def _captured_pass(outputs: Callable[[Batch], list[Outputs]], batch: Batch) -> Captured[list[Outputs]]:
    """Capture a teacher's pass, on copies of a batch, which the teacher may write into.

    Raises:
        NotCapturableError: if a replay's outputs differ from the eager pass's.
    """
    warm_up(lambda: outputs(with_own_inputs(batch)), batch.index.device)
    captured = Captured(outputs, batch)
    for _ in range(2):
        for eager, replayed in zip(outputs(with_own_inputs(batch)), captured(batch), strict=True):
            pairs = [(eager.logits, replayed.logits), *((eager.taps[k], replayed.taps[k]) for k in eager.taps)]
            if eager.sparse is not None and replayed.sparse is not None:
                pairs.append((eager.sparse.values, replayed.sparse.values))
            if not all(close([torch.zeros_like(one)], [one], [other]) for one, other in pairs):
                raise NotCapturableError("a replayed pass differs from the eager one")
    return captured


def _repeated(outputs: Sequence[Outputs], taps: Sequence[str]) -> Teacher:
    """Return a teacher that returns these outputs in turn, with the features that a student would get on its own."""
    own = cycle([each._replace(taps={name: each.taps[name] for name in taps}) for each in outputs])
    return lambda batch: next(own)
