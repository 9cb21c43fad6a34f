"""Rewrite the tables of keys and presets in recipes.md from the settings, the schema and the presets.

    python docs/key_tables.py

Keys, types and defaults come from the code; the meanings are the page's own text and stay. The row of a new key ends in
an ellipsis, which the tests refuse until you write its meaning.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import types
import typing
from pathlib import Path

from pydantic import BaseModel

from tutelage import config, objectives
from tutelage.settings import weights as schedules
from tutelage.settings.data import DataSettings, LearnedTokenizer, RandAugment, StrongView, Unlabelled
from tutelage.settings.fit import (
    EMA,
    SGD,
    AdamW,
    Constant,
    Cosine,
    EarlyStopping,
    LibraryOptimizer,
    MultiStep,
    OnPolicy,
    Step,
)
from tutelage.settings.numbers import SMALLEST
from tutelage.settings.objective import ObjectiveSpec
from tutelage.settings.outputs import Bucket, Sampled

PAGE = Path(__file__).with_name("recipes.md")


NAMES = {
    **dict.fromkeys((SGD, AdamW, LibraryOptimizer), "optimizer"),
    **dict.fromkeys((Constant, Step, MultiStep, Cosine), "schedule"),
    **dict.fromkeys(
        (schedules.Linear, schedules.Cosine, schedules.WarmUp, schedules.CosineWarmUp), "weight's schedule"
    ),
    **dict.fromkeys((Bucket, Sampled), "form"),
    DataSettings: "data",
    RandAugment: "randaugment",
    StrongView: "strong",
    LearnedTokenizer: "`{bpe: ...}`",
    Unlabelled: "text or `{source: ...}`",
    OnPolicy: "number or `{share: ...}`",
    EMA: "number or `{decay: ...}`",
    EarlyStopping: "whole number or `{patience: ...}`",
    ObjectiveSpec: "objective",
    config.schema.Network: "model",
    config.schema.LoRA: "`{lora: ...}`",
    config.schema.Init: "`{from: teacher, ...}`",
    config.schema.TrainedTeacher: "`{train: ...}`",
    config.schema.Teachers: "`{members: ...}`",
    config.schema.Stage: "stage",
    config.schema.Training: "training",
    typing.Any: "value",
    int: "whole number",
    float: "number",
    str: "text",
    bool: "`true` or `false`",
    types.NoneType: "`null`",
}


def words(annotation):
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return words(inner[0])
    if origin in (typing.Union, types.UnionType):
        return choice(dict.fromkeys(part for each in inner for part in re.split(", | or ", words(each))))
    if origin is typing.Literal:
        return choice(f"`{each}`" for each in inner)
    if origin in (tuple, list):
        count = "" if origin is list or inner[-1] is ... else f"{len(inner)} "
        return f"list of {count}{plural(words(inner[0]))}"
    if origin is dict:
        return f"mapping of names to {plural(words(inner[1]))}"
    if typing.is_typeddict(annotation):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    return NAMES[annotation]


def choice(names):
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def plural(text):
    first, *others = text.split(" or ")
    head, of, rest = first.partition(" of ")
    return " or ".join([first if first.startswith(("[", "`")) else f"{head}s{of}{rest}", *others])


def shown(value):
    if isinstance(value, ObjectiveSpec):
        return f"`{value.name}`"
    if isinstance(value, DataSettings):
        return f"`{value.source}`"
    if isinstance(value, (SGD, AdamW, Constant)):
        return f"`{value.name}`"
    if isinstance(value, str):
        return f"`{value}`"
    return f"`{json.dumps(value)}`"


def bounds(field):
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    inside = [m for each in typing.get_args(field.annotation) for m in getattr(each, "__metadata__", ())]
    every = (*field.metadata, *inside)
    limits = {name: getattr(m, name) for m in every for name in signs if getattr(m, name, None) is not None}
    if limits.get("ge") == SMALLEST:
        return " > 0"  # that float32 holds, as every number
    if "ge" in limits and "le" in limits:
        return f" in [{limits['ge']}, {limits['le']}]"
    return "".join(f" {signs[name]} {bound}" for name, bound in limits.items())


def keys_of(kind, *, beyond=()):
    """Yield each key of a section as (key, type, default), in the page's words."""
    if issubclass(kind, BaseModel):
        for name, field in kind.model_fields.items():
            if name not in beyond:
                kinds = words(field.annotation)
                kinds = kinds.replace("number", f"number{bounds(field)}", 1) if bounds(field) else kinds
                yield f"`{name}`", kinds, "required" if field.is_required() else shown(field.default)
        return
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if field.name == "name" and typing.get_origin(hints["name"]) is typing.Literal:
            continue
        needed = field.default is dataclasses.MISSING
        yield f"`{field.name}`", words(hints[field.name]), "required" if needed else shown(field.default)


KINDS = {
    "A run": config.Recipe,
    "Data": DataSettings,
    "Unlabelled data": Unlabelled,
    "randaugment": RandAugment,
    "strong": StrongView,
    "Models": config.schema.Network,
    "lora": config.schema.LoRA,
    "init": config.schema.Init,
    "Several teachers": config.schema.Teachers,
    "A teacher to train first": config.schema.Training,
    "sgd": SGD,
    "adamw": AdamW,
    "timm": LibraryOptimizer,
    "constant": Constant,
    "step": Step,
    "multistep": MultiStep,
    "cosine": Cosine,
    "ema": EMA,
    "early_stopping": EarlyStopping,
    "bucket": Bucket,
    "sampled": Sampled,
    "linear": schedules.Linear,
    "warm_up": schedules.WarmUp,
    "cosine_warm_up": schedules.CosineWarmUp,
    "Stages": config.schema.Stage,
    "on_policy": OnPolicy,
    "A comparison": config.Comparison,
}
BEYOND = {config.Comparison: config.Recipe.model_fields}
"""Keys that a section's table leaves to another's."""
SECTIONS = {heading: list(keys_of(kind, beyond=BEYOND.get(kind, ()))) for heading, kind in KINDS.items()}


def presets():
    """Yield each preset as the cells of its row: name, arguments, formula, paper."""
    for name, preset in objectives.PRESETS.items():
        arguments = [
            f"`{p.name}`" if p.default is p.empty else f"`{p.name}={p.default}`"
            for p in inspect.signature(preset.build).parameters.values()
        ]
        formula = (preset.build.__doc__ or "").split("``")[1].replace("|", r"\|")
        yield f"`{name}`", ", ".join(arguments), f"`{formula}`", preset.paper


def written(page):
    """Return the page with the rows of its tables rewritten."""
    for heading, rows in {**SECTIONS, "Objectives": list(presets())}.items():
        before, title, section = re.split(rf"^(#+ {re.escape(heading)}\n)", page, flags=re.MULTILINE)
        table = re.search(r"(?:^\|.*\n)+", section, flags=re.MULTILINE)
        lines = table[0].splitlines()
        meanings = {line.strip("| ").split(" | ")[0]: line.strip("| ").split(" | ")[-1] for line in lines[2:]}
        lines[2:] = [f"| {' | '.join([*row[:3], *(row[3:] or [meanings.get(row[0], '...')])])} |" for row in rows]
        page = before + title + section[: table.start()] + "\n".join(lines) + "\n" + section[table.end() :]
    return page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
