"""Write the JSON Schema of recipes, which editors complete and check them by.

    python -m docs.recipe_schema

Keys, types, ranges and defaults are those of the models that read recipes, comparisons and studies; presets and their
arguments those of ``objectives.json``; what a key means is what recipes.md and studies.md say of it.
"""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import yaml
from docs import key_tables
from pydantic import TypeAdapter
from pydantic.json_schema import models_json_schema

from tutelage import records
from tutelage.config import schema as config
from tutelage.config.files import JSON_SCHEMA
from tutelage.settings import fit, weights
from tutelage.settings.data import LearnedTokenizer
from tutelage.settings.numbers import LARGEST, SHORT_FOR
from tutelage.settings.objective import MATCHED, MATCHED_TO
from tutelage.studies import schema as studies

DRAFT = "http://json-schema.org/draft-07/schema#"
"""The draft that all editors know."""
IN_STUDIES = {
    studies.Study: "Keys of a study",
    studies.Pair: "Keys of a pair",
    studies.Method: "Keys of a method",
}
OF_WEIGHTS = {kind: name for name, kind in weights.SCHEDULES.items()}
WITHOUT_A_TABLE = {
    LearnedTokenizer: {"bpe": "Largest number of tokens that are learned, in [257, 1000000]."},
    config.TrainedTeacher: {"train": "How the teacher is trained first, from labels."},
    studies.Search: {
        "epochs": "Epochs of a trial, where the runs have the protocol's.",
        "validation": "Share of the training samples that trials hold out, in (0, 1).",
    },
    studies.Value: {"mean": "Percent.", "std": "Standard deviation, percentage points.", "n": "Runs of the mean."},
}
OF_ARGUMENTS = {
    "number": "A number.",
    "exponent": "Exponent of the teacher's distribution, 1 / T: a number or a schedule.",
    "scheduled_number": "A number above 0, or a schedule of such numbers.",
    "automatic_scheduled_number": "A number above 0, a schedule of such numbers, or auto: found from the teacher.",
    "automatic_number": "A number, or `auto` for one that is found from the teacher's logits.",
    "weight": "A weight: a number >= 0, or a schedule such as {schedule: linear, start: 1, end: 0}.",
    "signed_weight": "A weight of either sign: a number, or a schedule such as {schedule: linear, start: 1, end: 0}.",
    "automatic_weight": "A weight: a number >= 0, a schedule, or `auto` for one found from the teacher's logits.",
    "text": "A name.",
    "names": "Names of features, one or several; see docs/models.md.",
    "layers": "Pairs of layers: uniform, last, skip, top, or numbers such as [[0, 1], [1, 3]], the student's first.",
}


def ref(*names):
    return {"$ref": "/".join(("#/definitions", *names))}


def keys(names):
    return {"anyOf": [{"required": [name]} for name in names]}


def plain(text):
    """A cell of a page as text: without links, line breaks as they are."""
    return re.sub(r"\[([^]]+)\]\([^)]*\)", r"\1", text).replace(r"\|", "|")


def rows(page, heading):
    """The last cells of the first table below a heading, by the first ones."""
    text = Path(__file__).with_name(page).read_text(encoding="utf-8")
    section = re.split(rf"^#+ {re.escape(heading)}$", text, flags=re.MULTILINE)[1]
    table = re.search(r"(?:^\|.*\n)+", section, flags=re.MULTILINE)[0].splitlines()[2:]
    cells = [line.strip("| ").split(" | ") for line in table]
    return {row[0].strip("`"): plain(row[-1]) for row in cells}


def meanings():
    """What each key of each section means, by the section's class."""
    of_a_run = rows("recipes.md", "A run")
    found = {kind: rows("recipes.md", heading) for heading, kind in key_tables.KINDS.items()}
    found[config.Comparison] = of_a_run | found[config.Comparison]
    found |= {kind: rows("studies.md", heading) for kind, heading in IN_STUDIES.items()} | WITHOUT_A_TABLE
    return {
        kind: {key: of_a_run[key] if text.startswith("As in a run") else text for key, text in texts.items()}
        for kind, texts in found.items()
    }


# From pydantic's schema to draft 7


def translated(node, sections):
    """A node in draft 7, without what only pydantic reads, and with the short forms written out."""
    if isinstance(node, list):
        return [translated(each, sections) for each in node]
    if not isinstance(node, dict):
        return node
    if node.get(config.OBJECTIVE) is True:
        node = {key: value for key, value in node.items() if key != config.OBJECTIVE} | ref("objective")
    node = {
        {"ge": "minimum", "le": "maximum", "oneOf": "anyOf", "prefixItems": "items"}.get(key, key): value
        for key, value in node.items()
        if key not in ("title", "discriminator")
    }
    short = node.pop(SHORT_FOR, None)
    if short is not None:
        inner = {key: node.pop(key) for key in ("$ref", "anyOf", "properties") if key in node}
        kinds = [each["$ref"].rpartition("/")[2] for each in inner.get("anyOf", [inner]) if "$ref" in each]
        values = [ref(kind, "properties", short) for kind in kinds if short in sections[kind]["properties"]]
        node["anyOf"] = [*values, *inner.get("anyOf", [inner])]
        if "Teachers" in kinds:
            node["anyOf"].append(ref("Teachers", "properties", "members"))
    if isinstance(node.get("default"), dict) and node["default"]:
        node["default"] = next(iter(node["default"].values()))  # the value that is short for it
    if "examples" in node:
        node["examples"] = [yaml.safe_load(each) for each in node["examples"]]
    if "$ref" in node and len(node) > 1:  # beside which draft 7 reads nothing else
        node["allOf"] = [{"$ref": node.pop("$ref")}]
    return {
        key: {name: translated(value, sections) for name, value in inner.items()}
        if key == "properties"
        else inner
        if key in ("default", "description", "examples", "enum", "const", "required")
        else translated(inner, sections)
        for key, inner in node.items()
    }


def of_models():
    """The sections by name."""
    kinds = (config.Recipe, config.Comparison, studies.Study)
    _, found = models_json_schema([(kind, "validation") for kind in kinds], ref_template="#/definitions/{model}")
    sections = found["$defs"]
    described = {kind.__name__: texts for kind, texts in meanings().items() if kind not in OF_WEIGHTS}
    for name, section in sections.items():
        section.pop("description")
        for key, value in section["properties"].items():
            value.pop("description", None)  # of its error's message
            if key in described.get(name, {}):
                value["description"] = described[name][key]
    return {name: translated(section, sections) for name, section in sections.items()}


# What the models check by functions


def of_networks(network):
    """A student that is made of its teacher has no name, nor what would describe another network."""
    network.pop("required")
    network["if"] = {"properties": {"init": {"type": "object"}}, "required": ["init"]}
    none = {key: {"type": "null"} for key in config.OF_ANOTHER}
    network["then"] = {"properties": {"name": {"const": config.MADE}, **none}}
    network["else"] = {"required": ["name"]}


def of_kinds(definitions):
    """Only the default kinds of optimizers and schedules need no name; timm's optimizers have theirs."""
    for section in definitions.values():
        kind = section["properties"].get("name", {}).get("const")
        if kind is not None and kind not in studies.KINDS.values():
            section["required"] = ["name"]
    usable = [f"{fit.TIMM}{name}" for name, given in fit.timm_optimizers().items() if not isinstance(given, str)]
    definitions["LibraryOptimizer"]["properties"]["name"]["enum"] = usable


def of_runs(definitions):
    """Recipes and comparisons: one network to train, which may be called ``model``."""
    recipe, comparison = definitions["Recipe"], definitions["Comparison"]
    own = comparison["properties"]
    same = {key: ref("Recipe", "properties", key) for key in recipe["properties"] if key in own}
    none = {"type": "null"}
    stage = {"allOf": [ref("Stage"), {"properties": {"objective": none}}]}
    recipe["properties"]["objective"]["default"] = "cross_entropy"
    comparison["properties"] = {
        **own,
        **same,
        "objective": none,
        "start": none,
        "accumulate": {"allOf": [same["accumulate"], {"type": "integer"}]},
        "stages": {"allOf": [same["stages"], {"items": stage}]},
    }
    named = comparison["properties"]["objectives"]
    named["propertyNames"] = {"pattern": r"^[^/\\:*?\x22<>|\x00-\x1f\x7f]{1,200}$"}
    for section in (recipe, comparison):
        section["properties"] |= {
            "model": ref("Recipe", "properties", "student"),
            "schema": {
                "type": "integer",
                "minimum": 1,
                "maximum": records.SCHEMA,
                "description": "The schema of the file.",
            },
        }
        section["required"] = [key for key in section["required"] if key != "student"]
        section |= {
            "if": {"required": ["model"]},
            "then": {"properties": {"student": False}},
            "else": {"required": ["student"]},
        }


def of_studies(definitions):
    """Studies: keys of recipes in layers, objectives that need not be built, methods in their short forms."""
    recipe = definitions["Recipe"]["properties"]
    here = [key for key in recipe if key not in (*studies.ELSEWHERE, "schema")]
    protocol = {key: ref("Recipe", "properties", key) for key in here}
    for key, other in (("precision", {"not": {"const": "auto"}}), ("accumulate", {"type": "integer"})):
        protocol[key] = {"allOf": [protocol[key], other]}
    settings = {key: value for key, value in protocol.items() if key not in studies.SEEDS}
    for key in studies.KINDS:  # whose kind may be the protocol's
        sections = [
            each["$ref"].rpartition("/")[2] for each in recipe[key]["anyOf"] if "properties" not in each["$ref"]
        ]
        for name in sections:
            partial = {**definitions[name]}
            partial.pop("required", None)
            definitions[f"{name} in part"] = partial
        kinds = [settings[key], *(ref(f"{name} in part") for name in sections)]
        settings[key] = {"description": recipe[key]["description"], "anyOf": kinds}
    definitions["protocol"] = {"type": "object", "properties": protocol, "additionalProperties": False}
    definitions["settings"] = {"type": "object", "properties": settings, "additionalProperties": False}
    study, method = definitions["Study"], definitions["Method"]
    definitions["Pair"]["properties"]["settings"]["allOf"] = [ref("settings")]
    method["properties"]["settings"]["allOf"] = [ref("settings")]
    study["properties"]["protocol"]["allOf"] = [ref("protocol")]
    method |= {"if": keys(["pairs", "published"]), "else": {"properties": {"objective": ref("objective")}}}
    short = {"anyOf": [{"type": "null"}, ref("objective")]}
    is_long = {"type": "object", **keys(method["properties"])}
    methods = study["properties"]["methods"]
    text = methods.pop("description")
    written = {**methods, "additionalProperties": {"if": is_long, "then": ref("Method"), "else": short}}
    listed = {"type": "array", "minItems": 1, "items": ref("one preset")}
    study["properties"]["methods"] = {"description": text, "anyOf": [written, listed]}
    study["required"] = ["name"]
    study["if"] = {
        "required": ["figures"],
        "properties": {"figures": {"const": studies.DRAWN}, "pairs": False, "methods": False},
    }
    study["else"] = {"required": ["pairs", "methods"]}


# Objectives


def argument_kinds():
    """What arguments of presets may be, by `settings.objective.ARGUMENT_READERS`, beside the schedules of weights."""
    number = {"type": "number", "minimum": -LARGEST, "maximum": LARGEST}
    text = {"type": "string", "minLength": 1}
    pair = {"type": "array", "minItems": 2, "maxItems": 2, "items": {"type": "integer"}}
    found, auto = {}, {"const": "auto"}
    texts = meanings()
    texts[weights.Cosine] = texts[weights.Linear]
    bounds = {
        "weight": {"minimum": 0},
        "signed_weight": {"minimum": -LARGEST},
        "scheduled_number": {"exclusiveMinimum": 0},
    }
    for sign, least in bounds.items():
        forms = [{**number, **least} if sign != "scheduled_number" else number]  # what a number may be its loss knows
        for kind, name in OF_WEIGHTS.items():
            written = TypeAdapter(kind).json_schema()
            for key, value in written["properties"].items():
                value.pop("title")
                value |= {**least, "maximum": LARGEST} if key in kind.scaled_fields else {}
                value["description"] = texts[kind][key]
            forms.append(
                {
                    "type": "object",
                    "properties": {"schedule": {"const": name}, **written["properties"]},
                    "required": ["schedule", *written["required"]],
                    "additionalProperties": False,
                }
            )
        found[sign] = {"anyOf": forms}
    return {
        **found,
        "number": number,
        "exponent": ref("scheduled_number"),
        "automatic_scheduled_number": {"anyOf": [auto, ref("scheduled_number")]},
        "automatic_number": {"anyOf": [auto, number]},
        "automatic_weight": {"anyOf": [auto, ref("weight")]},
        "text": {"type": "string"},
        "names": {"anyOf": [text, {"type": "array", "minItems": 1, "items": text}]},
        "layers": {"anyOf": [text, {"type": "array", "minItems": 1, "items": pair}]},
    }


OWN = "^file:.+:[A-Za-z_][A-Za-z_0-9]*$"
"""Pattern of the name of a function in a file of one's own."""


def of_presets():
    """The definitions of objectives."""
    table = json.loads(JSON_SCHEMA.with_name("objectives.json").read_text(encoding="utf-8"))
    formulas = {row[0].strip("`"): f"{plain(row[2]).strip('`')}\n{row[3]}" for row in key_tables.presets()}
    definitions = argument_kinds()
    bare = []
    for name, preset in table.items():
        arguments = {
            key: {
                "allOf": [ref(argument["kind"])],
                "description": OF_ARGUMENTS[argument["kind"]],
                **{name: value for name, value in argument.items() if name == "default"},
            }
            for key, argument in preset["arguments"].items()
        }
        needed = [key for key, argument in preset["arguments"].items() if "default" not in argument]
        definitions[f"objective {name}"] = {
            "description": formulas[name],
            "type": "object" if needed else ["object", "null"],
            "properties": arguments,
            "required": needed,
            "additionalProperties": False,
        }
        bare += [] if needed else [name]
    matched = {"properties": {of: ref(f"objective {of}") for of in MATCHED}, "additionalProperties": False}
    definitions["objective kd"] |= {
        "properties": {
            **definitions["objective kd"]["properties"],
            MATCHED_TO: {
                "description": "A TTM or WTTM with its arguments, whose target, factor and sample weights it has.",
                "anyOf": [
                    {"enum": list(MATCHED)},
                    {"type": "object", "minProperties": 1, "maxProperties": 1, **matched},
                ],
            },
        },
        "if": {"type": "object", "required": [MATCHED_TO]},
        "then": {"maxProperties": 1},
    }
    beside = {
        "scale": {
            "type": "number",
            "exclusiveMinimum": 0,
            "maximum": LARGEST,
            "description": "Factor on every weight.",
        },
        "gather": {"type": "boolean", "description": "Let the terms read all processes' samples at once."},
        "sha256": {
            "type": "string",
            "pattern": "^[0-9a-f]{16}$",
            "description": "Digest of the file of one's own function, as records write it: a changed one is refused.",
        },
    }
    assert set(beside) == set(records.BESIDE)
    some = [names for k in (3, 2, 1) for names in itertools.combinations(beside, k)]
    sizes = [
        {"if": {"required": list(names)}, "then": {"minProperties": len(names) + 1, "maxProperties": len(names) + 1}}
        for names in some
    ]
    own = {"description": "A function in a file of one's own, with its arguments.", "type": ["object", "null"]}
    count = {"minProperties": 1, "maxProperties": 1}
    for size in reversed(sizes):
        count = {**size, "else": count}
    called = {
        "type": "object",
        "properties": {**{name: ref(f"objective {name}") for name in table}, **beside},
        "patternProperties": {OWN: own},
        "additionalProperties": False,
        **count,
    }
    alone = [{"enum": bare}, {"type": "string", "pattern": OWN}]
    definitions["one preset"] = {"anyOf": [*alone, called]}
    several = {"type": "array", "minItems": 1, "items": ref("one preset")}
    definitions["objective"] = {"anyOf": [*alone, called, several]}
    return definitions


def written():
    """The schema as the file has it."""
    definitions = of_models()
    of_networks(definitions["Network"])
    of_kinds(definitions)
    of_runs(definitions)
    of_studies(definitions)
    definitions |= of_presets()
    runs = set(definitions["Recipe"]["properties"])
    comparisons = set(definitions["Comparison"]["properties"])
    of_a_study = [key for key in definitions["Study"]["properties"] if key not in runs | comparisons]
    of_a_comparison = [key for key in definitions["Comparison"]["properties"] if key not in runs]
    root = {
        "$schema": DRAFT,
        "title": "tutelage",
        "description": "A recipe, a comparison or a study.",
        "type": "object",
        "if": keys(of_a_study),
        "then": ref("Study"),
        "else": {"if": keys(of_a_comparison), "then": ref("Comparison"), "else": ref("Recipe")},
        "definitions": definitions,
    }
    return json.dumps(root, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    JSON_SCHEMA.write_text(written(), encoding="utf-8")
