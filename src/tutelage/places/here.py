"""Where runs of studies, comparisons and searches are trained: here, or by `cluster.Cluster`, with the same methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from tutelage.config.schema import Recipe
from tutelage.report import libraries
from tutelage.runs.group import execute_group
from tutelage.runs.record_teacher import record
from tutelage.runs.reporter import Reporter
from tutelage.runs.run import Run, RunOptions
from tutelage.training.distributed import ProcessError, accelerator_on, by_main, naming_process, together

Runs = Sequence[tuple[Recipe, Path]]
"""Recipes with their runs' folders."""
Training = Callable[[Runs, Sequence[Recipe], RunOptions], Sequence["Run | Exception"]]
"""What trains a group, as `train` does; it can be pickled."""
T = TypeVar("T")


class Here:
    """This process, or all of its launch, which train one group at a time: `submit` notes it, and `next` trains it.

    Args:
        slots: number of processes (``--jobs``) that share the runs.

    Attributes:
        local: whether runs are trained where they are dealt, so that their steps are seen and objects need not be sent.
        most_dealt: groups that may be dealt at a time.
    """

    local, most_dealt = True, 1.0

    def __init__(self, slots: int = 1) -> None:
        self.slots = slots

    def drive(self, work: Callable[[], T], device: str) -> T:
        """Do the work that deals the runs: the main process does, and the others train with it."""
        accelerator_on(device)
        with naming_process():
            return by_main(work)

    def call(self, work: Callable[..., T], *arguments: Any, options: RunOptions, recipe: Recipe) -> T:
        """Return what some work makes of the arguments and the options where runs of this recipe are trained."""
        return work(*arguments, options)

    def submit(
        self, key: object, planned: Runs, beside: Sequence[Recipe], options: RunOptions, how: Training | None = None
    ) -> None:
        """Deal a group of runs to `train`, or to another function like it."""
        self._dealt = key, planned, beside, options, how or train

    def next(self, reporter: Reporter) -> tuple[Any, Sequence[object]]:
        """Wait for a group; return its key, and of each run the error, if there is one."""
        key, planned, beside, options, how = self._dealt
        try:
            return key, together(how, planned, beside, options)
        except ProcessError:
            raise
        except Exception as error:  # noqa: BLE001  whatever it is, other runs may not depend on it
            return key, [error] * len(planned)


def train(
    group: Runs, beside: Sequence[Recipe], options: RunOptions, *, all_or_none: bool = False
) -> list[Run | Exception]:
    """Train runs in lockstep, with a report of each; return each run, or the error why there is none.

    The teacher's outputs are recorded first if they are read: what the group reads, and what recipes ``beside`` it read
    of the same outputs, which later groups may be; `record` says what ``all_or_none`` is.
    """
    return train_plainly(group, beside, with_reports(options), all_or_none=all_or_none)


def train_plainly(
    group: Runs, beside: Sequence[Recipe], options: RunOptions, *, all_or_none: bool = False
) -> list[Run | Exception]:
    """Do as `train`, without reports."""
    recorded = next((recipe for recipe, _ in group if recipe.outputs is not None), None)
    if recorded is not None:
        readers = (*(recipe for recipe, _ in group), *beside)
        others = [recipe for recipe in readers if recipe.outputs == recorded.outputs]
        try:
            record(recorded, beside=others, all_or_none=all_or_none, options=options)
        except ProcessError:
            raise
        except Exception as error:
            rest = [run for run in group if run[0].outputs != recorded.outputs]
            if not rest:
                raise
            trained = iter(execute_group(rest, options=options))
            return [error if recipe.outputs == recorded.outputs else next(trained) for recipe, _ in group]
    return execute_group(group, options=options)


def with_reports(options: RunOptions) -> RunOptions:
    """Return options by which each finished run gets its report at once, if its libraries are installed.

    A failing report costs no run.
    """

    def write(folder: Path) -> None:
        if not libraries.installed():
            return
        from tutelage.report.html import write_report

        try:
            write_report(folder)
        except Exception as error:  # noqa: BLE001  the run is finished, and nothing else depends on its report
            options.reporter.say(f"{folder.name}: no report: {str(error) or type(error).__name__}")
        except KeyboardInterrupt as error:
            error.add_note(f"{folder}: finished, without its report, which tutelage report {folder} writes")
            raise

    return replace(options, when_finished=write)
