"""A study's search: trials of every method's candidates on a validation split, then runs with the best of each.

Trials and runs are two requests, which are planned and run in the same way. What was chosen is read from the records of
the trials, so that a study that was stopped between the two goes on.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from tutelage import records
from tutelage.runs.run import finished
from tutelage.studies.foreign_runs import ForeignRuns, foreign_runs
from tutelage.studies.plan import Job, StudyRequest, cells, scaled, scaled_weights
from tutelage.studies.schema import merged
from tutelage.studies.scoreboard import in_words
from tutelage.training.early_stopping import kept_epoch


def trials_of(request: StudyRequest) -> StudyRequest:
    """Return the request of a study's trials: each candidate is a method with one seed, the study's first.

    They are trained for the search's epochs, without the samples that it holds out.
    """
    study, search = request.study, request.study.search
    assert search is not None
    held_out = {"data": {"validation": search.validation}}
    methods = {
        _name(name, number): method.with_candidates(dict.fromkeys(study.pairs, number)).model_copy(
            update={"settings": merged(method.settings, held_out)}
        )
        for name, method in study.methods.items()
        if not method.missing
        for number in range(len(method.candidates))
    }
    return replace(
        request,
        study=study.model_copy(
            update={"methods": methods, "search": None, "seeds": 1, "figures": (), "costs": None, "notes": ()}
        ),
        methods=tuple(each for each in methods if _method(each)[0] in request.methods),
        seeds=1,
        trial=search.epochs / study.recipe.epochs,
    )


def _name(method: str, number: int) -> str:
    return f"{method}-trial{number}"


def _method(name: str) -> tuple[str, int]:
    method, _, number = name.rpartition("-trial")
    return method, int(number)


def results(request: StudyRequest, foreign: ForeignRuns) -> list[records.Candidate]:
    """Return what became of the trials, the requested ones and those that exist already, with the best marked.

    The best of a method for a pair is marked once all of its candidates are finished or have failed; of several with
    one value the first. A foreign trial counts as one to do.
    """
    jobs = [job for job in cells(trials_of(request)) if job.recipe.seed == request.study.recipe.seed]
    found: dict[tuple[str, str], list[records.Candidate]] = defaultdict(list)
    merits: dict[str, float] = {}
    for job in jobs:
        method, number = _method(job.method)
        folder = request.runs / job.name
        state = "to do" if (job.pair, job.name) in foreign else _state(folder)
        value, merit = _judged(folder, job) if state == "finished" else (None, None)
        candidate: records.Candidate = {
            "pair": job.pair,
            "method": method,
            "number": number,
            "folder": Path(os.path.relpath(folder, request.folder)).as_posix(),
            "seed": job.recipe.seed,
            "setting": scaled_weights(request.study.methods[method].setting(number, job.pair), request.factor),
            "state": state,
            "value": value,
            "chosen": False,
        }
        found[job.pair, method].append(candidate)
        if merit is not None:
            merits[candidate["folder"]] = merit
    for (_, method), each in found.items():
        each.sort(key=lambda candidate: candidate["number"])
        judged = [candidate for candidate in each if candidate["folder"] in merits]
        complete = len(each) == len(request.study.methods[method].candidates)
        if judged and complete and all(candidate["state"] != "to do" for candidate in each):
            max(judged, key=lambda candidate: merits[candidate["folder"]])["chosen"] = True
    return [candidate for each in found.values() for candidate in each]


def _judged(folder: Path, job: Job) -> tuple[float | None, float | None]:
    """Return the validation measure of the student that a trial ended with, and its merit, higher is better."""
    epochs = [*records.read_epochs(folder)]
    held = kept_epoch(epochs, job.recipe.fits()[-1].settings.early_stopping)["validation"] if epochs else None
    return (None, None) if held is None else (held.get(records.measure(held).key), records.merit(held))  # type: ignore[return-value]


def _state(folder: Path) -> Literal["to do", "finished", "failed"]:
    if finished(folder):
        return "finished"
    try:
        failed = (folder / records.MANIFEST).exists() and records.read_manifest(folder).get("status") == "failed"
    except records.DamagedError:
        failed = False  # The run itself makes it again, or says so.
    return "failed" if failed else "to do"


def chosen(request: StudyRequest, found: Sequence[records.Candidate]) -> StudyRequest:
    """Return the request with the candidates that were chosen; a method has no runs on a pair before that."""
    numbers: dict[str, dict[str, int]] = defaultdict(dict)
    for candidate in found:
        if candidate["chosen"]:
            numbers[candidate["method"]][candidate["pair"]] = candidate["number"]
    study = request.study
    methods = {name: method.with_candidates(numbers[name]) for name, method in study.methods.items()}
    return replace(
        request,
        study=study.model_copy(update={"methods": methods, "search": None}),
        undecided=frozenset(
            (pair, name)
            for name, method in study.methods.items()
            if not method.missing
            for pair in study.pairs
            if pair not in numbers[name]
        ),
    )


def next_runs(request: StudyRequest) -> StudyRequest:
    """Return the request of the runs that come next: trials while one is to do, then those with what was chosen."""
    if request.study.search is None:
        return request
    tried = trials_of(request)
    found = results(request, foreign_runs(tried, cells(tried), lambda _: None))
    asked = [each for each in found if each["pair"] in request.pairs and each["method"] in request.methods]
    return tried if any(each["state"] == "to do" for each in asked) else chosen(request, found)


def choices(found: Sequence[records.Candidate]) -> Iterator[str]:
    """Say what was chosen."""
    counts = Counter((candidate["pair"], candidate["method"]) for candidate in found)
    for candidate in found:
        if candidate["chosen"]:
            pair, method = candidate["pair"], candidate["method"]
            yield f"{pair}, {method}: {in_words(candidate['setting'])}, the best of {counts[pair, method]} candidates"


def record(request: StudyRequest, found: Sequence[records.Candidate]) -> records.StudySearch:
    """Return what ``study.json`` has of a search."""
    search = request.study.search
    assert search is not None
    alone = {
        name: [*dict.fromkeys(preset for preset in method.presets if preset != "cross_entropy")] or ["cross_entropy"]
        for name, method in request.study.methods.items()
    }
    return {
        "epochs": scaled(request.study.recipe, request.factor * search.epochs / request.study.recipe.epochs).epochs,
        "validation": search.validation,
        "presets": {name: presets[0] for name, presets in alone.items() if len(presets) == 1},
        "candidates": [*found],
    }
