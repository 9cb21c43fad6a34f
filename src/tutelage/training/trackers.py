"""Experiment trackers by accelerate's adapters, as one run of one library is opened with each."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from accelerate.tracking import GeneralTracker, MLflowTracker, TensorBoardTracker, TrackioTracker, WandBTracker

Tracker: TypeAlias = GeneralTracker
"""What libraries are adapted to: ``start``, ``store_init_configuration``, ``log`` and ``finish``."""
PROJECT = "tutelage"
"""What libraries that keep several runs together call them."""
EVENTS = "tensorboard"
"""Folder, inside a run's, of what TensorBoard reads."""
COLUMNS = ("train/loss", "evaluation/student/accuracy", "evaluation/student/loss")
"""What TensorBoard shows beside the settings of several runs, where they have it."""
RECORDS_ALONE = {
    "console": "off",
    "disable_git": True,
    "save_code": False,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}
"""Settings by which Weights & Biases gets no console output, code, command, host, user, packages and load."""
UNNAMED = {"mlflow.user": PROJECT, "mlflow.source.name": PROJECT}
"""What MLflow has in place of the user's name and the program's path."""


class Opened(NamedTuple):
    """A tracker that takes values."""

    tracker: GeneralTracker
    identity: str | None = None  # what its library calls the run, if it can go on with it later
    next_step: int | None = None  # first step of which it has nothing, where it says so: a kill may cost some


def is_tracker(value: object) -> bool:
    """Whether a value is a tracker as accelerate has them."""
    return isinstance(value, GeneralTracker)


def open_own(tracker: GeneralTracker, config: Mapping[str, Any]) -> Opened:
    """Begin with a tracker of the caller's, as accelerate does."""
    tracker.start()
    tracker.store_init_configuration(dict(config))
    return Opened(tracker)


def open_tracker(name: str, folder: Path, run: str, config: Mapping[str, Any], known: str | None) -> Opened:
    """Open a run in a library.

    Args:
        name: name of the library.
        folder: the run's folder.
        run: the run's name.
        config: settings by name: texts, numbers and truth values.
        known: what `Opened.identity` was when this run was opened before; then the library goes on with it.
    """
    return {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow, "trackio": _trackio}[name](
        folder, run, dict(config), known
    )


def _tensorboard(folder: Path, run: str, config: dict[str, Any], known: str | None) -> Opened:
    """Begin anew in the run's folder: everything is logged again."""
    for events in (folder / EVENTS).glob("events.out.tfevents.*"):
        events.unlink()
    tracker = TensorBoardTracker(EVENTS, folder)
    tracker.start()
    from torch.utils.tensorboard.summary import hparams

    # The adapter would make a folder of another name each time, which TensorBoard takes for a run.
    for summary in hparams(config, dict.fromkeys(COLUMNS)):
        tracker.tracker.file_writer.add_summary(summary)
    return Opened(tracker, next_step=0)


def _wandb(folder: Path, run: str, config: dict[str, Any], known: str | None) -> Opened:
    # Its own `config`, like that of trackio, is of the process's last run, so the settings are handed in here.
    tracker = WandBTracker(
        PROJECT,
        name=run,
        id=known or uuid.uuid4().hex,
        resume="allow" if known else "never",
        reinit="create_new",
        config=config,
        settings=RECORDS_ALONE,
    )
    tracker.start()
    return Opened(tracker, tracker.tracker.id, tracker.tracker.step)


def _mlflow(folder: Path, run: str, config: dict[str, Any], known: str | None) -> Opened:
    tracker = MLflowTracker(PROJECT, run_name=run, run_id=known, tags=UNNAMED)
    tracker.start()
    if known is None:  # What it has of settings cannot be changed.
        tracker.store_init_configuration(config)
    return Opened(tracker, tracker.tracker.info.run_id)


def _trackio(folder: Path, run: str, config: dict[str, Any], known: str | None) -> Opened:
    resume = "allow" if known else "never"
    records_alone = {"auto_log_cpu": False, "auto_log_gpu": False, "embed": False}
    tracker = TrackioTracker(PROJECT, name=run, config=config, resume=resume, **records_alone)
    tracker.start()
    return Opened(tracker, tracker.tracker.name, getattr(tracker.tracker, "_next_step", None))
