"""What Optuna decides: the next settings to try, and which runs are not worth going on with.

Nothing of Optuna is kept between two decisions. Its study is made anew of the search's own record, and what it draws
for a trial depends on that and on the trial's number alone: a search that was stopped goes on as if it had not been.
"""

from __future__ import annotations

import functools
import json
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tutelage import records
from tutelage.errors import missing_extra
from tutelage.records import Dimension, Measure, Trial
from tutelage.runs.run import PrunedError
from tutelage.tuning import space as spaces

RANDOM = 10
"""Trials before the sampler learns from them."""
ATTEMPTS = 20
"""Draws of a trial that is to differ from those before it."""
UNPRUNED = 5
"""Finished trials before any is pruned."""
WARM_UP = 4
"""A run is not pruned in the first of so many parts of its epochs."""


def optuna() -> Any:
    """Return the library.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise missing_extra("tutelage tune", "optuna", "tune", error) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def version() -> str:
    """Return the library's name and version."""
    return f"optuna {optuna().__version__}"


def ask(
    space: Sequence[Dimension], trials: Sequence[Trial], numbers: Sequence[int], *, seed: int, measure: Measure
) -> list[dict[str, Any]]:
    """Return the values of new trials, by the multivariate tree-structured Parzen estimator (Bergstra et al. 2011).

    All differ from each other and those before them, so there are fewer than asked for where the space has no more.
    Trials of one round know nothing of each other's results: the sampler takes those that are not done for bad ones.

    Args:
        space: keys and ranges.
        trials: trials so far; those that failed, or are no points of the space, tell nothing.
        numbers: numbers of the new ones.
        seed: seed of the search.
        measure: what trials are judged by.
    """
    library = optuna()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is called experimental
        study = _study(space, trials, measure)
        tried, first = [trial["values"] for trial in trials], len(trials)
        for number in numbers:
            for attempt in range(ATTEMPTS):
                stream = int(np.random.SeedSequence([seed, number, attempt]).generate_state(1)[0])
                study.sampler = library.samplers.TPESampler(
                    seed=stream, multivariate=True, group=True, constant_liar=True, n_startup_trials=RANDOM
                )
                trial = study.ask()
                if (drawn := _drawn(trial, space)) not in tried:
                    tried.append(drawn)
                    break
                study.tell(trial, state=library.trial.TrialState.FAIL)  # It would end with the same bits.
    return tried[first:]


def _drawn(trial: Any, space: Sequence[Dimension]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for dimension in space:
        if not spaces.is_there(dimension, values):
            continue
        key, low, high = dimension["key"], dimension["low"], dimension["high"]
        if dimension["kind"] == "choice":
            values[key] = json.loads(trial.suggest_categorical(key, _names(dimension)))
            continue
        draw = trial.suggest_int if dimension["kind"] == "whole" else trial.suggest_float
        values[key] = spaces.drawn(dimension, draw(key, low, high, log=dimension["log"]))
    return values


def _names(dimension: Dimension) -> list[str]:
    return [json.dumps(each) for each in dimension["choices"]]


def _study(space: Sequence[Dimension], trials: Iterable[Trial], measure: Measure) -> Any:
    """Return a study with the trials that tell something."""
    library = optuna()
    study = library.create_study(direction="maximize")
    for trial in trials:
        there = [dimension for dimension in space if dimension["key"] in trial["values"]]
        if trial["state"] not in ("finished", "pruned") or trial["value"] is None or not there:
            continue
        merit, done = measure.merit(trial["value"]), trial["state"] == "finished"
        study.add_trial(
            library.trial.create_trial(
                state=library.trial.TrialState.COMPLETE if done else library.trial.TrialState.PRUNED,
                value=merit,
                params={d["key"]: _given(d, trial["values"][d["key"]]) for d in there},
                distributions={d["key"]: _distribution(d) for d in there},
                intermediate_values={trial["epochs"]: merit},
            )
        )
    return study


def _given(dimension: Dimension, value: Any) -> Any:
    return json.dumps(value) if dimension["kind"] == "choice" else value


def _distribution(dimension: Dimension) -> Any:
    kinds, low, high = optuna().distributions, dimension["low"], dimension["high"]
    if dimension["kind"] == "choice":
        return kinds.CategoricalDistribution(_names(dimension))
    kind = kinds.IntDistribution if dimension["kind"] == "whole" else kinds.FloatDistribution
    return kind(low, high, log=dimension["log"])


def importances(space: Sequence[Dimension], trials: Sequence[Trial], measure: Measure) -> dict[str, float]:
    """Return the share of each key in what makes trials differ (PED-ANOVA, arXiv:2304.10255); empty for too few."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = _study(space, [trial for trial in trials if trial["state"] == "finished"], measure)
        try:
            found: dict[str, float] = optuna().importance.get_param_importances(study)
        except (ValueError, RuntimeError):  # too few trials, or all of them alike
            return {}
    return {key: round(float(share), 4) for key, share in found.items() if math.isfinite(share)}


Course = tuple[float, ...]
"""A run's merit on the validation set after each epoch."""


def course(epochs: Iterable[records.Epoch]) -> Course:
    """Return a run's course, as far as its merits are known."""
    merits = [records.merit(held) for epoch in epochs if (held := epoch["validation"]) is not None]
    return tuple(merit for merit in merits if merit is not None)


@dataclass(frozen=True)
class Pruning:
    """A rule by which a run ends early: its best merit so far is below the median of earlier rounds' at its epoch.

    It reads what the run has recorded, and knows the finished runs of earlier rounds alone, so that it says the same in
    whatever process, and after whatever interruption.

    Attributes:
        courses: courses of finished runs.
        epochs: epochs of a run.
    """

    courses: tuple[Course, ...]
    epochs: int

    def __call__(self, folder: Path, epoch: records.Epoch) -> None:
        """End a run after an epoch.

        Raises:
            PrunedError: so.
        """
        if self.stops(course(records.read_epochs(folder))):
            expected = "the median of earlier trials"
            raise PrunedError("validation", expected, f"less after epoch {epoch['epoch']}", "it ends here")

    def stops(self, done: Course) -> int | None:
        """Return the first epoch after which a run with this course ends; ``None`` if it goes on."""
        if len(self.courses) < UNPRUNED:
            return None
        library = optuna()
        study = _finished(self.courses)
        pruner = library.pruners.MedianPruner(n_startup_trials=UNPRUNED, n_warmup_steps=self.epochs // WARM_UP)
        trial = library.trial.create_trial(state=library.trial.TrialState.RUNNING)
        for epoch, merit in enumerate(done[: self.epochs - 1], 1):  # after the last one there is nothing to save
            trial.intermediate_values[epoch] = merit
            if pruner.prune(study, trial):
                return epoch
        return None


@functools.lru_cache(maxsize=4)
def _finished(courses: tuple[Course, ...]) -> Any:
    library = optuna()
    study = library.create_study(direction="maximize")
    for each in courses:
        trial = library.trial.create_trial(value=each[-1], intermediate_values=dict(enumerate(each, 1)))
        study.add_trial(trial)
    return study
