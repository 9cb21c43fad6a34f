"""The faults that are injected: places are counted in a run that nothing disturbs, so that each is reached."""

from __future__ import annotations

import signal
from collections.abc import Collection, Iterator
from functools import partial

from tests.faults import faults, inject
from tests.faults.faults import COMMANDS, DAMAGES, Action, Bench, Fault

ROTATED = ("ENOSPC", "EIO", "EACCES", "EROFS", "EDQUOT", "EMFILE")
LASTING = ("ENOSPC", "EROFS", "EDQUOT")  # A disk stays full or read-only for a while.
MEMORY = inject.throw(lambda: MemoryError())
USER = inject.throw(lambda: RuntimeError("of the user's own"))
INSIDE: dict[str, Action] = {
    "SIGINT": Action(inject.interrupt(signal.SIGINT), codes=(130,)),
    "SIGTERM": Action(inject.interrupt(signal.SIGTERM), codes=(143,)),
    "out of memory": Action(MEMORY, codes=(1, 2), says="memory|MemoryError"),
    "an error of the user's": Action(USER, codes=(2, 1), says="of the user's own"),
    # Exit code 0 is right where the pass is a trial, of which no bit depends.
    "NaN from the network": Action(faults.not_finite(float("nan")), codes=(0, 1), says="finite|NaN"),
    "NaN in a sample": Action(faults.not_finite(float("nan")), says="finite|NaN|nan"),
    "inf from the network": Action(faults.not_finite(float("inf")), codes=(0, 1, 2), says="finite|inf|float16"),
    "killed": Action(inject.kill, kills=True),
    "worker killed": Action(faults.kill_worker, codes=(0, 1), says="data.workers"),  # 0: all was read
    "the clock jumps ahead": Action(around=partial(faults.clock_that_jumps, 1e7), codes=(0,)),
    "the clock jumps back": Action(around=partial(faults.clock_that_jumps, -1e7), codes=(0,)),
}
for _name in ROTATED:
    INSIDE[_name] = Action(inject.refuse(inject.ERRNOS[_name], torn=True), lasting=_name in LASTING)
for _pattern in ("checkpoints", "manifest.json", "metrics.jsonl", "recipe.yaml", "best.safetensors", ".lock"):
    INSIDE[f"{_pattern} removed"] = Action(faults.removing(_pattern))
for _name, _damage in DAMAGES.items():
    INSIDE[_name] = Action(damages=_damage)
INSIDE["of another run"] = Action(damages=faults.of_another_run)
INSIDE["without a tensor"] = Action(damages=faults.other_tensors)
for _verb in COMMANDS:
    INSIDE[f"lock of {_verb} held"] = Action(
        around=partial(faults.lock_held, f"runs/{_verb}"), codes=(2,), says="in progress"
    )

SIGTERM = {verb: () if verb == "python" else ("SIGTERM",) for verb in COMMANDS}
"""A Python program ends by it as it likes; the command line says what is saved."""


def action_of(fault: Fault) -> Action:
    """Return how a fault is made."""
    return INSIDE[fault.kind]


def files_of(bench: Bench, verb: str) -> list[str]:
    """Return the files of a verb's stopped run, the newest checkpoint's among them."""
    here = bench.half(verb)
    files = [path for path in sorted((here / "runs").rglob("*")) if path.is_file()]
    newest: dict[str, str] = {}
    for path in files:
        if path.parent.parent.name == "checkpoints":
            newest[str(path.parent.parent)] = path.parent.name
    return [
        path.relative_to(here).as_posix()
        for path in files
        if "runs/teacher" not in path.as_posix()
        and path.name not in (".lock", "report.html")
        and newest.get(str(path.parent.parent), path.parent.name) == path.parent.name
    ]


def _times(count: int, most: int) -> list[int]:
    """Return at most so many of 1 to count, evenly."""
    if count <= most:
        return list(range(1, count + 1))
    return sorted({1 + round(k * (count - 1) / (most - 1)) for k in range(most)}) if most > 1 else [count]


def every(bench: Bench, *, most: int, verbs: Collection[str] = tuple(COMMANDS)) -> Iterator[Fault]:
    """Yield the faults, with ``most`` times of each place; those of files that a stopped run has come last."""
    turn = 0
    for verb in verbs:
        bench.undisturbed(verb)
        counts = bench.places[verb].counts
        if verb == "workers":
            for time in _times(counts["step"] - 1, max(1, most // 2)):
                yield Fault(verb, "worker killed", "step", time)
            continue
        for place in inject.FILES:
            for time in _times(counts[place], most):
                if place not in ("remove folder", "open folder"):
                    kinds = ("EIO", "EACCES", "EMFILE") if place == "open to read" else ROTATED
                    yield Fault(verb, kinds[turn % len(kinds)], place, time)
                turn += 1
        for place in ("open to write", "write", "sync", "rename", "remove folder", "step", "forward of the teacher"):
            for time in _times(counts[place], max(1, most - 2)):
                yield Fault(verb, "killed", place, time)
        for time in _times(counts["step"], max(1, most // 2)):
            for kind in ("SIGINT", *SIGTERM[verb], "out of memory"):
                yield Fault(verb, kind, "step", time)
        for time in _times(counts["rename"], max(1, most // 2)):
            for kind in SIGTERM[verb]:
                yield Fault(verb, kind, "rename", time)
        for who in ("student", "teacher"):
            place = f"forward of the {who}"
            for time in _times(counts[place], max(1, most // 3)):
                # A student's first passes are a trial, which goes on with another number of samples.
                for kind in ("an error of the user's", "out of memory") if (who, time) != ("student", 1) else ():
                    yield Fault(verb, kind, place, time)
                yield Fault(verb, "SIGINT", place, time)
                for kind in ("NaN from the network", "inf from the network"):
                    yield Fault(verb, kind, place, time)
        if counts["step"]:
            for kind in (kind for kind in INSIDE if kind.endswith(" removed") and kind != "removed"):
                for time in _times(counts["step"], 2)[-1:]:
                    yield Fault(verb, kind, "step", time)
        for time in _times(counts["sample"], most):
            for kind in ("an error of the user's", "NaN in a sample", "out of memory", "SIGINT", "killed"):
                yield Fault(verb, kind, "sample", time)
        for kind in ("the clock jumps ahead", "the clock jumps back"):
            yield Fault(verb, kind, "")
        if verb in ("train", "distill", "python"):
            yield Fault(verb, f"lock of {verb} held", "")
        for file in files_of(bench, verb):
            for kind in DAMAGES:
                yield Fault(verb, kind, file)
            if file.endswith(".safetensors"):
                yield Fault(verb, "of another run", file)
            if file.endswith("tensors.safetensors"):
                yield Fault(verb, "without a tensor", file)
