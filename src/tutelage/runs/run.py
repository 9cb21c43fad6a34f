"""A run: its folder, its student, and the options that it is executed with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tutelage import models, records
from tutelage.runs.reporter import Reporter
from tutelage.training.deadline import Deadline

if TYPE_CHECKING:
    from tutelage.models import Classifier


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How runs are executed, as opposed to what they compute.

    Attributes:
        trust_code: allow ``file:`` models, which run code: all, or those of these names.
        deadline: when to stop with a checkpoint; none to run to the end.
        command: as recorded in the manifest.
        when_finished: called with the folder of each run that has finished, of a teacher that it trains too.
    """

    reporter: Reporter = field(default_factory=Reporter)
    trust_code: bool | frozenset[str] = False
    deadline: Deadline | None = None
    command: str = ""
    when_finished: Callable[[Path], None] | None = None


DEFAULTS = RunOptions()


@dataclass(frozen=True)
class Run:
    """A run's folder and what it holds."""

    folder: Path

    @property
    def manifest(self) -> records.Manifest:
        """The manifest."""
        return records.read_json(self.folder / records.MANIFEST)

    @property
    def epochs(self) -> list[records.Epoch]:
        """The metrics of every epoch."""
        return list(records.read_epochs(self.folder))

    @property
    def evaluation(self) -> records.Evaluation:
        """The last epoch's student, evaluated on the test set."""
        return records.read_json(self.folder / records.EVALUATION)

    @property
    def accuracy(self) -> float | None:
        """The student's accuracy after the last epoch, a fraction; none where the test set has no labels."""
        return self.evaluation["student"]["accuracy"] if (self.folder / records.EVALUATION).exists() else None

    @property
    def student(self) -> Classifier:
        """The student, ready to predict."""
        return load(self.folder)


def load(folder: str | Path, *, best: bool = False, trust_code: bool | frozenset[str] = False) -> Classifier:
    """Load the student of a run, in evaluation mode, ready to predict: it takes images in [0, 1] as they are.

    Args:
        folder: the run's.
        best: the weights that did best on the selection set, instead of the last ones.
        trust_code: allow a student that was made by a ``file:`` model, which runs code.
    """
    weights = Path(folder) / records.BEST if best else None
    return models.create(str(folder), weights=weights, trust_code=trust_code).eval()


def finished(folder: Path) -> bool:
    """Whether a folder holds a finished run."""
    path = folder / records.MANIFEST
    return path.exists() and records.read_json(path).get("status") == "finished"
