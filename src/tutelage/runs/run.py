"""A run: its folder, its student, and the options that it is executed with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tutelage import models, records
from tutelage.errors import RunError
from tutelage.runs.reporter import Reporter
from tutelage.training.deadline import Deadline

if TYPE_CHECKING:
    from torch import nn

    from tutelage.models import Classifier
    from tutelage.report.figures import Figure
    from tutelage.runs.trackers import Track


class PrunedError(RunError):
    """A run that ``when_epoch`` ends, as it is not worth going on with: its manifest says ``pruned``."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options for executing runs, as opposed to what they compute.

    Attributes:
        trust_code: whether ``file:`` models, which run code, are allowed: all, or only those of these names.
        deadline: moment to stop with a checkpoint; ``None`` to run to the end.
        command: command as recorded in the manifest.
        when_finished: callback for the folder of each finished run, including a teacher's that it trains.
        when_epoch: callback for a run's folder and each epoch's record, once it is written; an exception ends that run.
        track: trackers that are handed what is recorded, as `trackers.check` returns them.
        shares_machine: whether other processes train on the same machine, so that what is timed there says nothing.
    """

    reporter: Reporter = field(default_factory=Reporter)
    trust_code: bool | frozenset[str] = False
    deadline: Deadline | None = None
    command: str = ""
    when_finished: Callable[[Path], None] | None = None
    when_epoch: Callable[[Path, records.Epoch], None] | None = None
    track: tuple[Track, ...] = ()
    shares_machine: bool = False

    def __reduce__(self) -> tuple[Any, ...]:
        # For the processes that take part in a run: showing, reports and the time are the main process's.
        return partial(RunOptions, trust_code=self.trust_code, command=self.command, track=self.named_trackers()), ()

    def named_trackers(self) -> tuple[Track, ...]:
        """Return the trackers that every run opens for itself, without the caller's objects."""
        return tuple(each for each in self.track if isinstance(each, str))


DEFAULTS = RunOptions()


class Trained(NamedTuple):
    """A module of the caller's that a run has trained."""

    module: nn.Module  # as it was handed in
    classifier: Classifier  # with the run's card, ready to predict


@dataclass(frozen=True)
class Run:
    """A run's folder and what it holds; in a notebook it shows itself.

    Attributes:
        folder: the folder.
        trained: the caller's own module, of a run that has just trained one.
        trust_code: as of `load`, by which `student` is loaded.
    """

    folder: Path
    trained: Trained | None = field(default=None, repr=False, compare=False)
    trust_code: bool | frozenset[str] = field(default=False, repr=False, compare=False)

    def __fspath__(self) -> str:
        return str(self.folder)

    @property
    def manifest(self) -> records.Manifest:
        """The manifest."""
        return records.read_manifest(self.folder)

    @property
    def epochs(self) -> list[records.Epoch]:
        """The metrics of every epoch."""
        return list(records.read_epochs(self.folder))

    @property
    def metrics(self) -> Any:
        """The metrics of every epoch, flat: ``train.loss``, ``validation.accuracy``, ``train.terms.wttm``, ...

        A `pandas.DataFrame` with a row for each epoch, or where pandas is not installed a list of mappings.
        """
        rows = [dict(records.flat(epoch)) for epoch in self.epochs]
        try:
            import pandas as pd
        except ImportError:
            return rows
        return pd.DataFrame(rows)

    @property
    def evaluation(self) -> records.Evaluation:
        """The student that the run ended with, evaluated on the test set."""
        instead = records.how_to_restore(self.folder)
        evaluation: records.Evaluation = records.read_json(
            self.folder / records.EVALUATION, records.Evaluation, partial=True, instead=instead
        )
        return evaluation

    @property
    def accuracy(self) -> float | None:
        """The student's accuracy on the test set, a fraction; ``None`` if that has no labels."""
        return self.evaluation["student"]["accuracy"] if (self.folder / records.EVALUATION).exists() else None

    @property
    def student(self) -> Any:
        """The trained student, in evaluation mode.

        A module of the caller's that this run has just trained is itself, on the device that it was trained on. Any
        other student is loaded as by `load`: a `Classifier`, ready to predict.
        """
        return self.trained.module if self.trained else load(self.folder, trust_code=self.trust_code)

    def plot(self) -> Figure:
        """Return loss and measure by epoch as a figure of plotly, which notebooks draw and ``show()`` opens.

        Raises:
            FileNotFoundError: if the folder holds no records.
            ImportError: if the extra ``report`` is not installed.
        """
        from tutelage.report.notebook import figure

        return figure(self.folder)

    def __repr__(self) -> str:
        """Say what the folder holds."""
        from tutelage.report.summary import line

        return f"Run({str(self.folder)!r}, {line(self.folder)})"

    def _repr_html_(self) -> str:
        from tutelage.report.notebook import run_html

        return run_html(self.folder)


def load(
    folder: str | Path | Run,
    *,
    best: bool = False,
    network: nn.Module | None = None,
    trust_code: bool | frozenset[str] = False,
) -> Classifier:
    """Load the student of a run, in evaluation mode, ready to predict: it takes images in [0, 1].

    Args:
        folder: folder of the run, or the run; or a file of ``tutelage export --to safetensors``.
        best: whether to load the weights that did best on the selection set instead of the last ones.
        network: module with the student's architecture, which gets its weights, where the student was a module of your
            own; by default the network is built by the name that the run tells.
        trust_code: whether a student is allowed whose building runs code: made by a ``file:`` model, or a class of your
            own, which is imported and called without arguments. All, or only those of these names.
    """
    folder = folder.folder if isinstance(folder, Run) else folder
    weights = Path(folder) / records.BEST if best else None
    if network is not None:
        return models.restored(folder, network, weights=weights).eval()
    return models.create(str(folder), weights=weights, trust_code=trust_code).eval()


def finished(folder: Path) -> bool:
    """Whether a folder holds a finished run that lost no file, or none that could be written again from a checkpoint.

    Raises:
        NewerError: a newer version wrote the run.
    """
    if not (folder / records.MANIFEST).exists():
        return False
    try:
        manifest = records.read_manifest(folder)
    except records.DamagedError:
        return False  # Whoever resumes it makes the manifest again, or says that it is damaged.
    lost = [name for name in records.lost(folder, manifest) if name != records.RECIPE]
    whole = not lost or not records.checkpoint_names(folder / records.CHECKPOINTS)
    return manifest.get("status") == "finished" and whole
