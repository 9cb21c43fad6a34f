"""What takes room on this machine because of the package: listed, and removed."""

from __future__ import annotations

import re
import sys
import time
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tutelage import launcher, records
from tutelage.cli import common
from tutelage.errors import InvalidValueError, TutelageError, nearest

if TYPE_CHECKING:
    from tutelage.runs.caches import Kept

ACTIONS = "list", "remove", "export"
_UNITS = {"d": 86_400, "h": 3_600, "m": 60}


def cache(
    action: Annotated[
        str, typer.Argument(metavar="|".join(ACTIONS), help="What to do.", autocompletion=lambda: ACTIONS)
    ],
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...",
            help="Names that list prints, or folders of recorded outputs, in which list looks too. export: FOLDER OUT.",
        ),
    ] = None,
    kind: Annotated[str | None, typer.Option(help="One kind alone: outputs, pixels, shards or digests.")] = None,
    older_than: Annotated[
        str | None, typer.Option(help="What was not written for so long, or as a shard not read: 30d, 12h or 90m.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="remove: all of --kind.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="remove: do not ask.")] = False,
    runs: common.Runs = Path("runs"),
) -> None:
    """List what takes room on this machine because of tutelage, remove it, or export recorded outputs as Parquet.

    That is teachers' recorded outputs (below the runs' folder, or where recipes of its runs have them), and in
    TUTELAGE_CACHE decoded pixels, copies of shards and digests of files.
    """
    if action not in ACTIONS:
        raise InvalidValueError("cache", "list, remove or export", repr(action), nearest(action, ACTIONS))
    if launcher.world_size() > 1:
        got, instead = f"{launcher.world_size()} processes", "type it without the launcher, or unset WORLD_SIZE"
        raise InvalidValueError("cache", "a single process", got, instead)
    if action == "export":
        _export(names or [])
        return
    from tutelage.runs import caches

    if kind is not None and kind not in caches.KINDS:
        raise InvalidValueError("--kind", f"one of {', '.join(caches.KINDS)}", repr(kind), nearest(kind, caches.KINDS))
    least = 0.0 if older_than is None else _seconds(older_than)
    if action == "remove" and not names and kind is None:
        instead = "type names, or for example --kind outputs --older-than 30d"
        raise InvalidValueError("cache remove", "names, or --kind with --older-than or --all", "neither", instead)
    if action == "remove" and not names and older_than is None and not every:
        instead = f"type --older-than 30d, or --all to remove all {kind}"
        raise InvalidValueError("cache remove", "which of a kind", f"--kind {kind} alone", instead)
    folders = [Path(name) for name in names or () if action == "list" or Path(name).is_dir()]
    kept = caches.found(folders, runs=runs)
    if names and action == "remove":
        wanted = {name: [each for each in kept if _is_named(each, name)] for name in names}
        for name, those in wanted.items():
            if not those:
                known = sorted({each.name for each in kept})
                raise InvalidValueError("cache remove", "a name that list prints", repr(name), nearest(name, known))
        kept = [each for each in kept if any(each in those for those in wanted.values())]
    now = time.time()
    kept = [each for each in kept if kind in (None, each.kind) and now - each.changed >= least]
    _print(kept, now)
    if action == "remove" and kept:
        _remove(kept, yes)


def _export(names: list[str]) -> None:
    if len(names) != 2 or not (Path(names[0]) / records.OUTPUTS).is_file():
        expected = "a folder of recorded outputs, and a new one"
        instead = "for example tutelage cache export runs/outputs/digits exported"
        raise InvalidValueError("cache export", expected, " ".join(names) or "neither", instead)
    from tutelage.teacher_cache import parquet

    files = list(parquet.export(*map(Path, names)))
    common.echo(f"{names[1]}: {len(files)} Parquet files, {sum(path.stat().st_size for path in files) / 1e6:.1f} MB")


def _is_named(kept: Kept, name: str) -> bool:
    return kept.name == name or (kept.kind == "outputs" and kept.path.resolve() == Path(name).resolve())


def _remove(kept: list[Kept], yes: bool) -> None:
    """Remove what was listed, after a question; what cannot be removed does not keep the rest."""
    from tutelage.runs import caches

    if not yes:
        if not sys.stdin.isatty():
            raise InvalidValueError("cache remove", "an answer at a terminal, or --yes", "neither", "type --yes")
        common.echo()
        typer.confirm("Remove these?", abort=True)
    freed, errors = 0, list[TutelageError]()
    for each in kept:
        try:
            left = caches.remove(each)
        except TutelageError as error:
            errors.append(error)
            continue
        freed += each.size
        if left:
            common.echo(f"{each.path} stays, as others wrote {left[0].name} and so on: {len(left)} files")
    common.echo(f"removed {freed / 1e6:.1f} MB")
    for each_error in errors[1:]:
        common.echo(f"tutelage: {each_error}", err=True)
    if errors:
        raise errors[0]


def _print(kept: list[Kept], now: float) -> None:
    """Print a line for each name, and the sum."""
    rows = []
    for (kind, name, owner), group in groupby(kept, lambda each: (each.kind, each.name, each.owner)):
        those = list(group)
        users = sum(len(each.users) for each in those)
        used = f", read by {users} run{'s' if users > 1 else ''}" if users else ""
        files = f", {len(those)} files" if kind == name else ""
        age = now - max(each.changed for each in those)
        size = sum(each.size for each in those)
        rows.append((kind, f"{size / 1e6:.1f} MB", _age(age), name, f"{owner}{used}{files}"))
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(4)]
    for row in rows:
        common.echo("{:<{}}  {:>{}}  {:>{}}  {:<{}}  ".format(*chain(*zip(row[:4], widths, strict=True))) + row[4])
    common.echo(f"{sum(each.size for each in kept) / 1e6:.1f} MB in all")


def _age(seconds: float) -> str:
    for unit, length in _UNITS.items():
        if seconds >= length:
            return f"{seconds / length:.0f}{unit}"
    return "now"


def _seconds(typed: str) -> float:
    match = re.fullmatch(r"(\d{1,6}(?:\.\d+)?)([dhm])", typed.strip())
    if match is None:
        raise InvalidValueError("--older-than", "a time such as 30d, 12h or 90m", repr(typed), "for example 30d")
    return float(match[1]) * _UNITS[match[2]]
