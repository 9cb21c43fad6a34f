"""Figures that others published for each preset, with the epoch that they report, and where they were read.

Those of the paper of TTM (arXiv:2402.11148) are in the package's studies; ``published_figures.yaml`` has all others,
and why a preset has none.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from tutelage.studies import study_file
from tutelage.studies.objective_rows import Published
from tutelage.studies.schema import Study

FILE = Path(__file__).parent / "published_figures.yaml"
PAIRS = "resnet32x4/resnet8x4", "resnet34/resnet18", "deit3_small/deit_tiny"
"""Pairs of the studies, the first that has the preset's figure counts."""
DECIMALS = 2
"""Decimals that figures are printed with, where a table has no other number."""
DATA = {"cifar100": "CIFAR-100", "imagenet": "ImageNet"}

Epoch = Literal["last", "best on test", "best on validation", "unknown"]
Text = Annotated[str, Field(min_length=3)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Value(_Strict):
    """A figure as printed."""

    mean: float
    std: float | None = None
    n: int | None = None

    def text(self, decimals: int) -> str:
        """Write it with as many decimals as it was printed with."""
        spread = "" if self.std is None else f" ± {self.std:.{decimals}f}"
        return f"{self.mean:.{decimals}f}{spread}" + (f" (n = {self.n})" if self.n else "")


class Table(_Strict):
    """What the figures of one table have in common, and these by preset."""

    table: Text
    setting: Text
    measure: Text
    decimals: int = DECIMALS
    kd: float | None = None
    alone: float | None = None
    epoch: Epoch
    known_by: Text
    source: Text
    read: Literal["repository", "paper", "summary"]
    figures: dict[str, float | Value]


class Others(_Strict):
    """Presets of a study's table whose figures are taken from elsewhere."""

    names: list[str]
    epoch: Epoch
    known_by: Text


class OfStudy(_Strict):
    """Which epoch the figures of a study report."""

    epoch: Epoch
    known_by: Text
    read: Literal["repository", "paper", "summary"]
    presets: list[Others] = []


class Figures(_Strict):
    """The file."""

    tables: list[Table]
    studies: dict[str, OfStudy]
    none: dict[str, Text]
    beyond: dict[str, Text]


def read() -> Figures:
    """Return what the file holds.

    Raises:
        ValueError: if a key is missing, unknown or of another kind.
    """
    return Figures.model_validate(yaml.safe_load(FILE.read_text(encoding="utf-8")))


def by_preset() -> dict[str, Published]:
    """Return the figure of each preset that has one; the file's own before the studies'."""
    file = read()
    figures = {
        name: figure for study in reversed(file.studies) for name, figure in _of_study(study, file.studies[study])
    }
    for table in file.tables:
        for name, figure in table.figures.items():
            value = figure if isinstance(figure, Value) else Value(mean=figure)
            figures[name] = Published(
                figure=value.text(table.decimals),
                measure=table.measure,
                kd=_against(table),
                setting=table.setting,
                table=table.table,
                epoch=table.epoch,
                known_by=table.known_by,
                source=table.source,
                read=table.read,
            )
    return figures


def _against(table: Table) -> str:
    """Write what a table's figures are to be compared with."""
    if table.kd is not None:
        return Value(mean=table.kd).text(table.decimals)
    return "" if table.alone is None else f"without a teacher {Value(mean=table.alone).text(table.decimals)}"


def _of_study(name: str, of: OfStudy) -> Iterator[tuple[str, Published]]:
    """Yield the published figures of a study's methods that are one preset, with a cross-entropy or without."""
    study, _ = study_file.read(name)
    pair = next(pair for pair in PAIRS if pair in study.pairs)
    known = {preset: others for others in of.presets for preset in others.names}
    kd = study.methods["kd"].published.get(pair)
    for preset, figure in _alone(study, pair):
        epoch = known.get(preset, of)
        yield (
            preset,
            Published(
                figure=figure.text(DECIMALS),
                measure="accuracy (%)",
                kd="" if kd is None or preset == "kd" else Value(mean=kd.mean).text(DECIMALS),
                setting=f"{_data(study)}, {pair.replace('/', ' to ')}, {study.protocol['epochs']} epochs",
                table=f"Table {name.removeprefix('table')}",
                epoch=epoch.epoch,
                known_by=epoch.known_by,
                source="arXiv:2402.11148",
                read=of.read,
            ),
        )


def _alone(study: Study, pair: str) -> Iterator[tuple[str, Value]]:
    seen = set()
    for method in study.methods.values():
        presets = [name for name in dict.fromkeys(method.presets) if name != "cross_entropy"] or ["cross_entropy"]
        figure = method.published.get(pair)
        if len(presets) == 1 and figure is not None and presets[0] not in seen:
            seen.add(presets[0])
            yield presets[0], Value(mean=figure.mean, std=figure.std, n=figure.n)


def _data(study: Study) -> str:
    source = str(study.protocol["data"]["source"])
    return next(words for name, words in DATA.items() if name in source)
