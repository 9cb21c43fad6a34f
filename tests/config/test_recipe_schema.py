"""The JSON Schema of recipes accepts and refuses what the reader does, as far as a schema can know."""

from __future__ import annotations

import copy
import json
import re
import shlex
from functools import cache

import jsonschema
import pytest
from docs import key_tables, recipe_schema
from tests._helpers import ROOT
from tests.pages.harness import blocks_of
from tests.wrong import corpus

from tutelage import config, objectives
from tutelage.config import files
from tutelage.config.schema import built_in_presets
from tutelage.errors import TutelageError
from tutelage.settings.objective import REQUIRED
from tutelage.studies import schema as studies


@cache
def validator():
    schema = json.loads(files.JSON_SCHEMA.read_text(encoding="utf-8"))
    return jsonschema.validators.validator_for(schema)(schema)


def accepted(value):
    return validator().is_valid(value)


def faults(value):
    return [
        f"{'.'.join(map(str, fault.absolute_path))}: {fault.message[:200]}" for fault in validator().iter_errors(value)
    ]


def kind_of(value):
    return config.Comparison if "objectives" in value else config.Recipe


def read_by_us(value, kind=None, check=None):
    try:
        if {"pairs", "methods", "protocol", "figures"} & value.keys():
            studies.parse(value, check=check)
        else:
            config.parse(kind or kind_of(value), value, check=check)
    except TutelageError:
        return False
    return True


# The file


def test_the_file_is_that_of_the_code_and_a_schema():
    assert files.JSON_SCHEMA.read_text(encoding="utf-8") == recipe_schema.written(), "type make generated"
    assert isinstance(validator(), jsonschema.Draft7Validator)
    validator().check_schema(validator().schema)


def nodes(schema):
    if isinstance(schema, dict):
        yield schema
    for inner in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from nodes(inner)


def test_each_key_says_what_it_means_and_each_reference_leads_somewhere():
    schema = validator().schema
    for name, section in schema["definitions"].items():
        for key, value in section.get("properties", {}).items():
            if isinstance(value, dict) and value != {"type": "null"} and "const" not in value:
                assert described(schema, value), f"{name}.{key}"
    for node in nodes(schema):
        assert "$ref" not in node or len(node) == 1, node  # beside which draft 7 reads nothing
        assert "$ref" not in node or resolved(schema, node) is not None
        assert not {"discriminator", "shortFor", "ge", "le", "meaning"} & node.keys()


def described(schema, node):
    node = resolved(schema, node)
    return "description" in node or any(described(schema, each) for each in node.get("allOf", []))


def resolved(schema, node):
    while "$ref" in node:
        inner = schema
        for part in node["$ref"].removeprefix("#/").split("/"):
            inner = inner[part]
        node = inner
    return node


def test_every_key_and_preset_is_there():
    definitions = validator().schema["definitions"]
    for heading, kind in key_tables.KINDS.items():
        if kind in recipe_schema.OF_WEIGHTS:
            continue
        rows = {row[0].strip("`") for row in key_tables.SECTIONS[heading]}
        assert rows <= definitions[kind.__name__]["properties"].keys(), heading
        assert definitions[kind.__name__]["additionalProperties"] is False
    for name, signature in built_in_presets().items():
        assert signature.keys() <= definitions[f"objective {name}"]["properties"].keys()
    assert definitions["Recipe"]["properties"]["epochs"]["description"] == "Passes over the training set."


# What is right


def recipes():
    found = [*(ROOT / "recipes").rglob("*.yaml"), *(ROOT / "src/tutelage/studies/published").glob("*.yaml")]
    return {path: path.read_text(encoding="utf-8") for path in found}


def test_recipes_and_studies_pass():
    found = recipes()
    assert len(found) > 20
    for path, text in found.items():
        assert not faults(files.load(text)), path
        if (ROOT / "recipes") in path.parents:
            named = re.search(r"^# yaml-language-server: \$schema=(\S+)$", text, flags=re.MULTILINE)
            assert named, f"{path} names no schema"
            assert (path.parent / named[1]).resolve() == files.JSON_SCHEMA, path


def test_recipes_of_pages_pass():
    shown = 0
    for page in ("README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))):
        for block in blocks_of(page):
            if block.language not in ("yaml", "yml"):
                continue
            value = {"name": "shown", "student": "mlp:8", **files.load(block.code)}
            if "model" in value:
                del value["student"]
            if "pairs" in value:
                del value["student"]
            assert not faults(value), f"{page}, line {block.line}"
            shown += 1
    assert shown > 20


RECORDS = sorted((ROOT / "benchmarks" / "results").rglob("recipe.yaml"))


@pytest.mark.parametrize("every", [40, pytest.param(1, marks=pytest.mark.slow)])
def test_resolved_recipes_of_runs_pass(every):
    refused = []
    for path in RECORDS[::every]:
        value = files.load(path.read_text(encoding="utf-8"))
        if faults(value):
            assert not read_by_us(value)
            refused.append(str(path.parent.relative_to(ROOT / "benchmarks" / "results")))
    # Of a version that wrote `objective` into a comparison, and could not read it back.
    assert refused == ["cifar100-quick"] * (every == 1)


SHORT = {
    "data": ["digits", {"source": "digits"}],
    "optimizer": ["adamw", "timm:muon", {"lr": 0.1}, {"name": "timm:muon", "options": {"ns_steps": 3}}],
    "schedule": ["cosine", {"warmup": 1}, {"name": "multistep", "milestones": [1, 2]}],
    "teacher": [
        "runs/a",
        ["runs/a", {"name": "runs/b", "size": 32}],
        {"members": ["runs/a", "runs/b"], "weights": [1, 2], "combine": "terms"},
        {"train": {"model": "mlp:16", "epochs": 1}},
        {"train": {"model": {"name": "mlp:16"}, "optimizer": "adamw"}},
    ],
    "objective": [
        "wttm",
        ["cross_entropy", {"crd": {"weight": 0.8}}],
        {"kd": None},
        {"kd": {"temperature": 2}, "scale": 0.5, "gather": True},
        {"kd": {"matched_to": {"wttm": {"gamma": 0.25, "beta": 1}}}},
        {"kd": {"matched_to": "ttm"}},
        {"wttm": {"beta": {"schedule": "linear", "start": 0, "end": 1, "until": 0.5}}},
        {"fitnet": {"student_tap": "layer1"}},
    ],
    "ema": [0.99, {"decay": 0.99}, None],
    "early_stopping": [{"patience": 3}],
    "accumulate": ["auto", 2],
    "stages": [[{"epochs": 1}, {"objective": "kd", "optimizer": {"lr": 0.1}}]],
    "class_weights": ["balanced", [1, 2.5], {"a": 3}],
    "device": ["cuda:1"],
}


@pytest.mark.parametrize("key", SHORT)
def test_every_short_form_passes(key):
    for value in SHORT[key]:
        recipe = {"name": "r", "student": "mlp:8", "data": {"validation": 0.1}, key: value}
        assert read_by_us(recipe), recipe
        assert not faults(recipe), recipe


# What is wrong


def wrong(every):
    """The recipes of the corpus that the reader refuses once they are YAML, with what is typed behind them."""
    for path in corpus.cases()[::every]:
        case = corpus.read(path)
        command, *typed = shlex.split(case.get("type", "python"))
        if "warns" in case or "recipe" not in case or typed[:1] != ["recipe.yaml"]:
            continue
        overrides = [word for word in typed[1:] if re.match(r"[\w.]+=", word)]
        try:
            value = files.override(files.load(case["recipe"]), overrides)
            assert isinstance(value, dict)
        except Exception:  # noqa: BLE001  it is none
            continue
        kind = {"compare": config.Comparison, "study": config.Recipe}.get(command, config.Recipe)
        yield path.stem, value, read_by_us(value, kind, objectives.from_spec)


UNKNOWABLE = {
    "names of other entries": ["baseline-unknown"],
    "the command": ["key-comparison-in-a-run", "objectives-missing"],
    "an order": ["milestones-descending"],
    "JSON has no such number": ["bound-optimizer-lr-nan"],
    "values that the losses refuse": ["objective-gamma-negative", "objective-temperature-zero"],
    "terms that do not add up": ["objective-supervised-twice"],
    "keys that do not go together": [
        *("combined-crops", "combined-transforms", "ema-sharded", "frozen-beside-head", "on-policy-without-prompts"),
        *("pair-reads-elsewhere", "pair-without-reads", "strong-mixed", "text-flipped", "text-lm-labels"),
        *("text-lm-messages-of-a-learned-tokenizer", "text-lm-teacher_tokenizer", "text-packed-with-labels"),
        *("text-tokenizer-of-images", "text-without-a-tokenizer", "unlabelled-texts-of-a-language-model"),
        "objective-file-sha256-beside-kd",
    ],
    "consent, and what a file of code holds": [
        f"objective-file-{what}"
        for what in (
            *("untrusted", "untrusted-in-a-comparison", "typed-for-another", "missing", "changed", "syntax", "fails"),
            *("other-function", "not-a-function", "returns-nothing", "unknown-argument", "bad-weight"),
            *("input-unknown", "weight-twice"),
        )
    ],
}
"""Wrong recipes that no schema refuses, by what it would have to know."""


@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_what_is_wrong_is_refused_as_far_as_a_schema_can_know(every):
    cases = list(wrong(every))
    refused = [name for name, value, ours in cases if not ours and not accepted(value)]
    assert len(refused) > 90 / every
    assert not [name for name, value, ours in cases if ours and not accepted(value)]
    missed = [name for name, value, ours in cases if not ours and accepted(value)]
    asked = {name for name, _, _ in cases}
    assert set(missed) == {name for names in UNKNOWABLE.values() for name in names if name in asked}
    assert every > 1 or asked >= {name for names in UNKNOWABLE.values() for name in names}


# Every key, with many values

RUN = {"name": "r", "student": "mlp:8"}
TEXTS = {"source": "jsonl:a.jsonl", "prompt": "p", "completion": "c", "tokenizer": "t"}
BASES = {
    "A run": ({}, ()),
    "Data": ({"data": {"source": "digits"}}, ("data",)),
    "Unlabelled data": ({"data": {"unlabelled": {"source": "images:a"}}}, ("data", "unlabelled")),
    "randaugment": ({"data": {"randaugment": {}}}, ("data", "randaugment")),
    "strong": ({"data": {"strong": {}}}, ("data", "strong")),
    "Models": ({"student": {"name": "mlp:8"}}, ("student",)),
    "lora": ({"student": {"name": "mlp:8", "trained": {"lora": 8}}}, ("student", "trained")),
    "init": ({"student": {"init": {"from": "teacher"}}, "teacher": "hf:bert"}, ("student", "init")),
    "Several teachers": ({"teacher": {"members": ["mlp:8", "mlp:16"]}}, ("teacher",)),
    "A teacher to train first": ({"teacher": {"train": {"model": "mlp:16"}}}, ("teacher", "train")),
    "sgd": ({"optimizer": {"name": "sgd"}}, ("optimizer",)),
    "adamw": ({"optimizer": {"name": "adamw"}}, ("optimizer",)),
    "timm": ({"optimizer": {"name": "timm:sgd"}}, ("optimizer",)),
    **{name: ({"schedule": {"name": name}}, ("schedule",)) for name in ("constant", "step", "multistep", "cosine")},
    **{name: ({"outputs_form": {"name": name}}, ("outputs_form",)) for name in ("bucket", "sampled")},
    "ema": ({"ema": {}}, ("ema",)),
    "early_stopping": ({"early_stopping": {}}, ("early_stopping",)),
    "linear": (
        {"objective": {"dkd": {"weight": {"schedule": "linear", "start": 1, "end": 0}}}},
        ("objective", "dkd", "weight"),
    ),
    **{
        name: (
            {"objective": {"dkd": {"weight": {"schedule": name, "value": 1, "epochs": 2}}}},
            ("objective", "dkd", "weight"),
        )
        for name in ("warm_up", "cosine_warm_up")
    },
    "Stages": ({"stages": [{}]}, ("stages", 0)),
    "on_policy": ({"data": TEXTS, "teacher": "mlp:16", "on_policy": {}}, ("on_policy",)),
    "A comparison": ({"objectives": {"kd": "kd"}}, ()),
}
FEW = [True, -1, "text"]
MANY = [
    None,
    False,
    0,
    1,
    2,
    0.5,
    1.5,
    -0.5,
    1e-3,
    1e-40,
    10**7,
    3 * 10**9,
    1e39,
    -1e39,
    2**64,
    "",
    "auto",
    "5e-4",
    [],
    {},
]
DEPENDENT = {
    "A run": {"on_policy": "needs prompts"},
    "Stages": {"on_policy": "needs prompts"},
    "Data": dict.fromkeys(
        (
            *(
                "unlabelled",
                "test_shards",
                "mask",
                "labels",
                "text",
                "prompt",
                "completion",
                "messages",
                "top_logprobs",
            ),
            *("tokenizer", "teacher_tokenizer", "max_tokens", "pack", "bucket_batches"),
        ),
        "goes with a source of that kind alone",
    ),
    "Unlabelled data": {"source": "a source by its name"},
    "Models": {"reads": "needs samples that are an image and a text", "output": "1e39 is whole to JSON"},
    "Several teachers": {"weights": "as many as members"},
    "timm": {"eps": "an argument of this optimizer"},
    "A comparison": {"baseline": "one of the objectives"},
}
"""Keys of which the reader refuses a value by what stands beside them, which the schema accepts."""


def check_keys(values_of):
    missed, asked = {}, 0
    for heading, rows in key_tables.SECTIONS.items():
        beside, path = BASES[heading]
        base = {**RUN, **beside}
        assert accepted(base), heading
        assert read_by_us(base), heading
        for key in (row[0].strip("`") for row in rows):
            asked += 1
            for value in values_of(asked):
                changed = copy.deepcopy(base)
                section = changed
                for part in path:
                    section = section[part]
                section[key] = value
                schema, ours = accepted(changed), read_by_us(changed)
                assert schema or not ours, f"{heading}: {key}={value!r} is refused by the schema alone"
                if schema and not ours and not is_tiny(value):
                    missed.setdefault(heading, set()).add(key)
    return missed


def is_tiny(value):
    return value == 1e-40  # which float32 does not hold; the schema would say it of every number


def test_every_key_is_read_alike():
    for heading, keys in check_keys(lambda k: [FEW[k % len(FEW)]]).items():
        assert keys <= DEPENDENT[heading].keys(), heading


@pytest.mark.slow
def test_every_key_is_read_alike_with_many_values():
    assert check_keys(lambda _: FEW + MANY) == {heading: set(keys) for heading, keys in DEPENDENT.items()}


@pytest.mark.slow
@pytest.mark.parametrize("preset", built_in_presets())
def test_every_argument_of_a_preset_is_read_alike(preset):
    needed = {key: 1 for key, argument in built_in_presets()[preset].items() if argument.default is REQUIRED}
    for key in built_in_presets()[preset]:
        for value in [
            *FEW,
            *MANY,
            {"schedule": "linear", "start": 1, "end": 0},
            {"schedule": "linear", "start": -1, "end": 0},
        ]:
            recipe = {**RUN, "objective": {preset: {**needed, key: value}}}
            assert is_tiny(value) or accepted(recipe) == read_by_us(recipe), (key, value)


# Studies

STUDY = {"name": "s", "pairs": {"a/b": {"teacher": "mlp:16", "student": "mlp:8"}}, "methods": ["kd"]}
STUDIES = [
    ({"methods": {"kd": None, "x": "wttm", "y": {"kd": {"temperature": 2}}, "z": ["kd", "nkd"]}}, True),
    ({"methods": {"x": {"objective": "kd", "settings": {"optimizer": {"betas": [0.9, 0.99]}}}}}, True),
    ({"methods": {"x": {"objective": {"not_built": {}}, "published": {"a/b": 70.5}}}}, True),
    ({"protocol": {"optimizer": "adamw", "epochs": 3}}, True),
    ({"methods": ["kdd"]}, False),
    ({"methods": {"x": {"objective": "kd", "settings": {"epoch": 3}}}}, False),
    ({"methods": {"x": {"objective": "kd", "settings": {"seed": 3}}}}, False),
    ({"protocol": {"epochs": "many"}}, False),
    ({"protocol": {"student": "mlp:8"}}, False),
    ({"protocol": {"precision": "auto"}}, False),
    ({"seeds": 0}, False),
    ({"figures": ["pie"]}, False),
    ({"pairs": {"a/b": {"teacher": "mlp:16"}}}, False),
    ({"objective": "kd"}, False),
]


@pytest.mark.parametrize(("changes", "good"), STUDIES)
def test_studies_are_read_alike(changes, good):
    changed = {**STUDY, **changes}
    if good and "settings" in str(changes):
        changed["protocol"] = {"optimizer": "adamw"}
    assert read_by_us(changed) is good
    assert accepted(changed) is good, faults(changed)
