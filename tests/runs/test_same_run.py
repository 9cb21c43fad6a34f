"""What makes a recorded recipe that of the planned run."""

import pytest
import yaml

from tutelage import config, losses, objectives
from tutelage.config.schema import Comparison, Recipe
from tutelage.runs.resume import recipe_differences

VALUE = {
    "name": "a",
    "student": "mlp:8",
    "teacher": "runs/teacher",
    "optimizer": {"lr": 0.1},
    "stages": [{"objective": "pkt", "epochs": 1}, {"objective": {"kd": {"temperature": 4.0}}}],
}


def recipe(kind=Recipe, **changes):
    return config.parse(kind, {**VALUE, **changes})


def recorded(kind=Recipe, **changes):
    """A recipe as it lies in a run's folder."""
    return yaml.safe_load(config.dump(recipe(kind, **changes)))


def test_each_key_that_differs_is_named_once_with_both_values():
    assert recipe_differences(recorded(), recipe()) == []
    assert recipe_differences(recorded(), recipe(optimizer={"lr": 0.05}, clip=1.0, deterministic=True)) == [
        "optimizer.lr was 0.1, is 0.05",
        "clip was none, is 1.0",
        "deterministic was false, is true",
    ]
    stages = [{"objective": "pkt", "epochs": 2}, {"objective": {"kd": {"temperature": 2.0}}}]
    assert recipe_differences(recorded(), recipe(stages=stages)) == [
        "stages.0.epochs was 1, is 2",
        "stages.1.objective.0.kd.temperature was 4.0, is 2.0",
    ]
    assert recipe_differences(recorded(schedule={"name": "step"}), recipe(schedule="constant")) == [
        "schedule.name was step, is constant"  # and no key that only one of them has
    ]
    assert recipe_differences(recorded(data={"validation": 0.1}), recipe(data={"labelled": 9, "workers": 2})) == [
        "data.validation was 0.1, is 0.0",
        "data.labelled was none, is 9",
    ]


def test_how_a_run_is_done_and_where_it_lies_make_no_other_run():
    moved = {"name": "pool/b", "data": {"source": "imagefolder:there", "workers": 3}, "outputs": "there/outputs"}
    how = {"threads": 3, "device": "cpu", "log_steps": 7, "nonfinite": "skip"}
    assert recipe_differences(recorded(), recipe(**moved, **how)) == []


def test_columns_and_tokenizers_of_texts_may_move_but_what_is_cut_from_them_stays():
    texts = {"source": "jsonl:a.jsonl", "text": "text", "label": "class", "tokenizer": "there", "max_tokens": 32}
    moved = {"text": "review", "label": "stars", "tokenizer": "here/tokenizer.json", "source": "csv:a.csv"}
    both = {"teacher_tokenizer": "there/other"}
    assert (
        recipe_differences(recorded(data=texts | both), recipe(data=texts | moved | {"teacher_tokenizer": "o"})) == []
    )
    assert recipe_differences(recorded(data=texts), recipe(data=texts | {"max_tokens": 48, "bucket_batches": 1})) == [
        "data.max_tokens was 32, is 48",
        "data.bucket_batches was 20, is 1",
    ]
    packed = {"stages": [], "data": {"source": "jsonl:a.jsonl", "text": "text", "tokenizer": {"bpe": 2000}, "pack": 64}}
    again = {"stages": [], "data": packed["data"] | {"tokenizer": {"bpe": 3000}, "pack": 32}}
    assert recipe_differences(recorded(**packed), recipe(**again)) == [
        "data.tokenizer.bpe was 2000, is 3000",
        "data.pack was 64, is 32",
    ]


@pytest.mark.parametrize(
    ("then", "now", "lines"),
    [
        ("fp32", "auto", []),
        ("bf16", "auto", []),
        ("auto", "auto", []),
        ("bf16", "fp32", ["precision was bf16, is fp32"]),
        ("auto", "fp32", []),  # what is left open counts as float32
        ("auto", "bf16", ["precision was fp32, is bf16"]),
    ],
)
def test_a_precision_that_is_left_open_is_the_recorded_one(then, now, lines):
    assert recipe_differences(recorded(precision=then), recipe(precision=now)) == lines


@pytest.mark.parametrize(
    ("then", "now", "same"),
    [
        ("runs/teacher", "/elsewhere/runs/teacher/", True),
        ("runs/teacher", "runs/other", False),
        ("hf:one/resnet", "hf:another/resnet", False),  # publishers are no folders
        ("/data/12:30/teacher", "runs/teacher", True),
        ({"name": "runs/teacher", "weights": "a.pt"}, {"name": "runs/teacher", "weights": "b.pt"}, False),
        ({"train": {"model": "mlp:16"}}, {"train": {"model": "mlp:16", "epochs": 2}}, False),
        ({"train": {"model": "mlp:16"}}, "runs/teacher", False),
        (None, "runs/teacher", False),
    ],
)
def test_a_teacher_s_folder_counts_by_its_name_alone(then, now, same):
    assert (recipe_differences(recorded(teacher=then), recipe(teacher=now)) == []) == same


def test_a_student_s_weights_are_compared_whole():
    """They are where training begins, and no fingerprint of them is kept."""
    differs = recipe_differences(recorded(student="runs/x/a"), recipe(student="runs/y/a"))
    assert differs == ["student.name was runs/x/a, is runs/y/a"]


@pytest.mark.parametrize("own", [False, True])
def test_keys_that_an_earlier_version_lacked_have_their_defaults(own):
    older = recorded()
    if own:  # Terms of the user's own are written by their weights, and cannot be read back.
        older["objective"] = {"mine": 0.5}
    del older["clip"], older["precision"], older["data"]["mixup"], older["optimizer"]["nesterov"]
    mine = objectives.Objective.of(objectives.WeightedTerm("mine", 0.5, objectives.Apply(losses.cross_entropy)))
    now = recipe(objective=mine if own else "cross_entropy")
    assert recipe_differences(older, now) == []
    changed = now.model_copy(update={"clip": 1.0, "batch_size": 9})
    assert recipe_differences(older, changed) == ["batch_size was 64, is 9", "clip was none, is 1.0"]


def test_a_key_that_a_later_version_no_longer_knows_is_a_difference():
    assert recipe_differences({**recorded(), "gone": 3}, recipe()) == ["gone was 3, is none"]


def test_a_comparison_may_get_other_objectives_and_seeds_but_each_objective_stays():
    def of(**objectives):
        value = {key: VALUE[key] for key in ("name", "student", "teacher")}
        return config.parse(Comparison, {**value, "objectives": objectives, "seeds": len(objectives)})

    then = yaml.safe_load(config.dump(of(ce="cross_entropy", kd="kd")))
    assert recipe_differences(then, of(kd="kd", dkd="dkd")) == []
    assert recipe_differences(then, of(other="kd", pkt="pkt", ttm={"ttm": {"gamma": 1, "beta": 1}})) == []
    hot = {"kd": {"temperature": 9.0}}
    assert recipe_differences(then, of(kd=hot)) == ["objectives.kd.0.kd.temperature was 4.0, is 9.0"]


@pytest.mark.parametrize(
    ("then", "now", "lines"),
    [
        ("there/outputs", "here/outputs", []),
        ("there/outputs", None, ["outputs was there/outputs, is none"]),
        (None, "here/outputs", ["outputs was none, is here/outputs"]),
    ],
)
def test_a_comparisons_teacher_is_recorded_for_all_runs_or_live_for_all(then, now, lines):
    value = {key: VALUE[key] for key in ("name", "student", "teacher")} | {"objectives": {"kd": "kd"}}
    before = yaml.safe_load(config.dump(config.parse(Comparison, {**value, "outputs": then})))
    assert recipe_differences(before, config.parse(Comparison, {**value, "outputs": now, "seeds": 2})) == lines
