"""The precision of a run whose recipe leaves it open."""

import json

import pytest
import torch
import yaml
from tests._helpers.recorder import Recorder
from tests._helpers.refusals import refused

from tutelage import config, records
from tutelage.config.schema import Comparison, Recipe
from tutelage.errors import RecipeError
from tutelage.runs import autotune, recipes
from tutelage.runs.dry_run import dry_run
from tutelage.runs.execute import execute
from tutelage.runs.group import execute_group
from tutelage.runs.record_teacher import record
from tutelage.runs.run import RunOptions
from tutelage.runs.setup import build_inputs
from tutelage.studies import plan, schema
from tutelage.studies.compare import compare
from tutelage.teacher_cache.top_k import TeacherCacheError
from tutelage.training.deadline import Deadline, DeadlineExceeded
from tutelage.training.graphs import CAPTURES

VALUE = {"name": "run", "data": "digits", "student": "mlp:8", "device": "cpu", "threads": 1, "epochs": 2}
TAUGHT = {"teacher": {"train": {"model": "mlp:16", "epochs": 3}}, "objective": {"wttm": {"gamma": 0.5, "beta": 1.0}}}
BF16_WINS = {"fp32": 2.4, "bf16": 2.0}
FP16 = {"precision": "fp16", "epochs": 3}
NEARLY = {"fp32": 2.39, "bf16": 2.0}


def parsed(kind=Recipe, **keys):
    return config.parse(kind, {**VALUE, **keys})


@pytest.fixture
def timed(monkeypatch):
    """Replace the clock: return what to take for the times, and the recipes that were timed."""
    seen = []

    def install(seconds, few=1):
        def step(recipe, run_inputs, stage=0):
            seen.append(recipe)
            return autotune.StepTime(seconds[recipe.precision] + 0.5 * (len(seen) < 3), {})

        monkeypatch.setattr(autotune, "FEW", few)
        monkeypatch.setattr(autotune, "time_step", step)
        return seen

    return install


def resolved(recipe):
    run_inputs = build_inputs(autotune.with_untrained_teacher(recipe))
    return autotune.resolve_precision(recipe, lambda: run_inputs)


@pytest.mark.parametrize(("graphs", "captured"), [("auto", True), (False, False)])
def test_steps_are_timed_as_graphs_where_they_may_run_so(monkeypatch, graphs, captured):
    """So few steps would otherwise not be captured."""
    monkeypatch.setitem(CAPTURES, "cpu", Recorder)
    replays, replay = [], Recorder.replay
    monkeypatch.setattr(Recorder, "replay", lambda self: replays.append(replay(self)))
    recipe = parsed(graphs=graphs)
    autotune.time_step(recipe, build_inputs(recipe))
    assert bool(replays) is captured


def test_the_faster_one_is_taken_where_it_is_much_faster(timed):
    seen = timed(BF16_WINS)
    chosen, reason = resolved(parsed())
    assert chosen.precision == "bf16"
    assert reason == "precision bf16: a step takes 2400.0 ms in fp32, 2000.0 ms in bf16"
    assert [recipe.precision for recipe in seen] == ["fp32", "bf16"] * 2
    assert not any(recipe.compile_teacher or recipe.compile_student or recipe.gradient_products for recipe in seen)
    assert chosen == parsed(precision="bf16")


def test_a_near_tie_is_float32(timed):
    timed(NEARLY)
    assert resolved(parsed())[0].precision == "fp32"


def test_little_to_do_is_not_timed(timed):
    steps = 2 * -(-1437 // 64)
    seen = timed(BF16_WINS, few=steps + 1)
    assert resolved(parsed())[0].precision == "fp32"
    assert not seen
    seen = timed(BF16_WINS, few=steps)
    assert resolved(parsed())[0].precision == "bf16"
    assert seen


def test_what_is_typed_is_taken(timed):
    seen = timed(BF16_WINS)
    assert resolved(parsed(precision="fp32")) == (parsed(precision="fp32"), None)
    assert not seen


def test_real_steps_are_timed_and_change_nothing(monkeypatch):
    monkeypatch.setattr(autotune, "FEW", 1)
    recipe = parsed(**TAUGHT)
    run_inputs = build_inputs(autotune.with_untrained_teacher(recipe))
    before = {name: value.clone() for name, value in run_inputs.student.state_dict().items()}
    chosen, reason = autotune.resolve_precision(recipe, lambda: run_inputs)
    assert chosen.precision in autotune.candidates(torch.device("cpu"))
    assert reason.startswith(f"precision {chosen.precision}: ")
    assert all(torch.equal(before[name], value) for name, value in run_inputs.student.state_dict().items())


@pytest.mark.parametrize(
    ("tf32", "bf16", "choices"),
    [(True, True, ["tf32", "bf16"]), (False, True, ["fp32", "bf16"]), (False, False, ["fp32"])],
)
def test_a_gpu_is_timed_in_what_its_tensor_cores_have(tf32, bf16, choices, monkeypatch):
    monkeypatch.setattr(autotune, "has_tf32", lambda _: tf32)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16 or including_emulation)
    assert autotune.candidates(torch.device("cuda")) == choices


def test_a_gpu_with_tf32_says_so_where_nothing_is_timed(timed, monkeypatch):
    timed({"tf32": 2.4, "bf16": 2.0}, few=10**6)
    monkeypatch.setattr(autotune, "has_tf32", lambda _: True)
    chosen, reason = resolved(parsed())
    assert chosen.precision == "tf32"
    assert reason == "precision tf32: fewer than 1000000 steps are not timed; type precision=... for another"


def test_tf32_on_a_device_without_it_is_float32_and_said(tmp_path, capsys):
    lines = []
    options = RunOptions(
        reporter=type("Lines", (type(RunOptions().reporter),), {"say": lambda _, text: lines.append(text)})()
    )
    run = execute(parsed(precision="tf32"), tmp_path / "run", options=options)
    plain = execute(parsed(precision="fp32"), tmp_path / "plain")
    assert lines.count("run: precision tf32: computed as fp32, the device has no TF32") == 1
    assert run.manifest["precision"] == {"value": "tf32", "computed": "fp32", "why": None}
    assert [epoch["train"] for epoch in run.epochs] == [epoch["train"] for epoch in plain.epochs]


def test_a_step_that_fails_is_left_to_the_run_to_tell(monkeypatch, tmp_path):
    monkeypatch.setattr(autotune, "FEW", 1)
    chosen, reason = resolved(parsed(objective="kd"))
    assert chosen.precision == "fp32"
    assert reason.startswith("precision fp32: no step could be timed (")
    with refused(RecipeError, "teacher"):
        execute(parsed(objective="kd"), tmp_path / "run")


def test_a_run_records_its_choice_and_trains_in_it(tmp_path, timed):
    timed(BF16_WINS)
    run = execute(parsed(**TAUGHT), tmp_path / "run")
    typed = execute(parsed(**TAUGHT, precision="bf16"), tmp_path / "typed")
    plain = execute(parsed(**TAUGHT, precision="fp32"), tmp_path / "plain")
    assert yaml.safe_load((run.folder / records.RECIPE).read_text())["precision"] == "bf16"
    assert run.manifest["precision"] == {
        "value": "bf16",
        "computed": "bf16",
        "why": "precision bf16: a step takes 2400.0 ms in fp32, 2000.0 ms in bf16",
    }
    assert typed.manifest["precision"] == {"value": "bf16", "computed": "bf16", "why": None}
    teacher = yaml.safe_load((run.folder / "teacher" / records.RECIPE).read_text())
    assert teacher["precision"] == "bf16"
    losses = [[epoch["train"]["loss"] for epoch in each.epochs] for each in (run, typed, plain)]
    assert losses[0] == losses[1] != losses[2]


def test_a_resumed_run_keeps_its_precision_whatever_would_be_chosen_now(tmp_path, timed, monkeypatch):
    timed(BF16_WINS)
    monkeypatch.setattr(autotune, "time_step", lambda *_, **__: pytest.fail("timed"))
    first = parsed(precision="fp32", epochs=3)
    now = [0.0]

    def clock():
        now[0] += 0.01
        return now[0]

    with pytest.raises(DeadlineExceeded):
        execute(first, tmp_path / "run", options=RunOptions(deadline=Deadline(0.3, clock=clock)))
    run = execute(parsed(epochs=3), tmp_path / "run")
    assert run.manifest["status"] == "finished"
    assert run.manifest["precision"]["value"] == "fp32"
    # A finished run is repeated in its precision.
    again, _ = recipes.again(run.folder, [], tmp_path)
    assert again.precision == "fp32"


def test_a_comparison_has_one_precision(tmp_path, timed):
    seen = timed(BF16_WINS)
    keys = {"name": "both", "objectives": {"ce": "cross_entropy", "kd": "kd"}, "teacher": TAUGHT["teacher"]}
    comparison = parsed(Comparison, **keys)
    compare(comparison, tmp_path)
    assert {recipe.objective.name for recipe in seen} == {"kd"}
    assert len(seen) == 4
    paths = sorted(path for path in tmp_path.rglob(records.RECIPE))
    assert len(paths) == 4  # its own, the teacher's and two students'
    assert {yaml.safe_load(path.read_text())["precision"] for path in paths} == {"bf16"}
    # More of it, on a machine that would choose otherwise.
    timed({"fp32": 1.0, "bf16": 2.0})
    compare(parsed(Comparison, **{**keys, "seeds": 2}), tmp_path)
    assert json.loads((tmp_path / "kd-seed1" / records.MANIFEST).read_text())["precision"]["value"] == "bf16"
    assert len(seen) == 4


def test_recorded_outputs_have_a_precision_that_their_readers_take(tmp_path, timed):
    teacher = execute(parsed(student="mlp:16", epochs=3), tmp_path / "teacher")
    recipe = parsed(teacher=str(teacher.folder), objective="kd", outputs=str(tmp_path / "outputs"))
    timed(BF16_WINS)
    record(recipe)
    timed({"fp32": 1.0, "bf16": 2.0})
    run = execute(recipe, tmp_path / "run")
    assert run.manifest["precision"]["value"] == "bf16"
    assert run.manifest["teacher"]["answers"] == "recorded in float16"


def test_a_dry_run_says_what_it_would_take(timed):
    timed(BF16_WINS)
    assert dict(dry_run(parsed()))["precision"] == "bf16: a step takes 2400.0 ms in fp32, 2000.0 ms in bf16"
    assert dict(dry_run(parsed(precision="fp32")))["precision"] == "fp32"


def test_a_group_has_one_precision(tmp_path, timed):
    seen = timed(BF16_WINS)
    runs = execute_group([(parsed(name=name), tmp_path / name) for name in "ab"])
    assert [run.manifest["precision"]["value"] for run in runs] == ["bf16", "bf16"]
    assert all("2000.0 ms in bf16" in run.manifest["precision"]["why"] for run in runs)
    assert len(seen) == 4


def test_a_run_that_is_begun_decides_for_its_group(tmp_path, timed):
    with pytest.raises(DeadlineExceeded):
        execute(parsed(name="a", precision="fp32"), tmp_path / "a", options=RunOptions(deadline=Deadline(0.0)))
    seen = timed(BF16_WINS)
    runs = execute_group([(parsed(name=name), tmp_path / name) for name in "ba"])
    assert [run.manifest["precision"]["value"] for run in runs] == ["fp32", "fp32"]
    assert not seen


def test_a_study_has_the_published_precision_unless_one_is_typed(tmp_path):
    study = {
        "name": "one",
        "protocol": {"data": "digits", "epochs": 1},
        "pairs": {"a/b": {"teacher": {"train": {"model": "mlp:8"}}, "student": "mlp:8"}},
        "methods": {"kd": "kd"},
    }
    parse = schema.parse
    assert parse(study).recipe.precision == "fp32"
    typed = parse({**study, "protocol": {**study["protocol"], "precision": "bf16"}})
    assert typed.recipe.precision == "bf16"
    assignment = plan.assign(typed, typed, runs=tmp_path)
    assert {job.recipe.precision for job in plan.jobs(assignment)} == {"bf16"}
    plain = plan.assign(parse(study), parse(study), runs=tmp_path)
    assert {job.recipe.precision for job in plan.jobs(plain)} == {"fp32"}
    with refused(RecipeError, "study: protocol.precision", got="'auto'", suggests="protocol.precision=bf16"):
        parse({**study, "protocol": {"data": "digits", "precision": "auto"}})


def test_runs_that_were_begun_in_two_precisions_are_not_resumed_together(tmp_path, timed):
    timed(BF16_WINS)
    for name, precision in (("a", "fp32"), ("b", "bf16")):
        options = RunOptions(deadline=Deadline(0.0))
        with pytest.raises(DeadlineExceeded):
            execute(parsed(name=name, precision=precision), tmp_path / name, options=options)
    run, error = execute_group([(parsed(name=name), tmp_path / name) for name in "ab"])
    assert run.manifest["precision"]["value"] == "fp32"
    assert str(error).startswith("precision: expected fp32, as the runs beside b have, got bf16")
    assert execute(parsed(name="b"), tmp_path / "b").manifest["precision"]["value"] == "bf16"


def test_a_begun_run_does_not_take_the_precision_of_outputs_that_it_did_not_read(tmp_path, timed):
    teacher = execute(parsed(student="mlp:16", epochs=3), tmp_path / "teacher")
    how = {"teacher": str(teacher.folder), "objective": "kd"}
    options = RunOptions(deadline=Deadline(0.0))
    with pytest.raises(DeadlineExceeded):
        execute(parsed(**how, precision="fp32"), tmp_path / "run", options=options)
    outputs = str(tmp_path / "outputs")
    record(parsed(**how, precision="bf16", outputs=outputs))
    with refused(TeacherCacheError, "outputs", got=["precision", "fp32", "bf16"]):
        execute(parsed(**how, outputs=outputs), tmp_path / "run")
    assert config.read(tmp_path / "run" / records.RECIPE)["precision"] == "fp32"


def test_a_run_that_cannot_begin_leaves_its_precision_to_the_others(tmp_path, timed, monkeypatch):
    timed(BF16_WINS)
    time_step = autotune.time_step

    def step(recipe, *rest, **how):
        if recipe.student.name.startswith("file:"):
            raise ValueError("no step can be taken")
        return time_step(recipe, *rest, **how)

    monkeypatch.setattr(autotune, "time_step", step)
    file = tmp_path / "narrow.py"
    layers = "torch.nn.Flatten(), torch.nn.Linear(64, 7)"
    file.write_text(f"import torch\n\n\ndef narrow(classes, **_):\n    return torch.nn.Sequential({layers})\n")
    value = [parsed(name="a", student=f"file:{file}:narrow"), parsed(name="b"), parsed(name="c")]
    options = RunOptions(trust_code=True)
    error, *runs = execute_group([(recipe, tmp_path / recipe.name) for recipe in value], options=options)
    assert isinstance(error, RecipeError)
    assert [run.manifest["status"] for run in runs] == ["finished", "finished"]
    assert len({run.manifest["precision"]["value"] for run in runs}) == 1


def test_a_run_in_fp16_is_resumed_with_its_loss_scale(tmp_path):
    def run(name, deadline=None):
        return execute(parsed(**FP16, name=name), tmp_path / name, options=RunOptions(deadline=deadline))

    whole, now = run("whole"), [0.0]

    def clock():
        now[0] += 0.01
        return now[0]

    with pytest.raises(DeadlineExceeded):
        run("parts", Deadline(0.3, clock=clock))
    resumed = run("parts")
    assert [epoch["train"] for epoch in resumed.epochs] == [epoch["train"] for epoch in whole.epochs]
    assert all("overflowed_steps" in epoch for epoch in whole.epochs)
    assert (resumed.folder / records.STUDENT).read_bytes() == (whole.folder / records.STUDENT).read_bytes()
