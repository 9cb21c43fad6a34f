import json

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from tutelage import recipes, recording
from tutelage.cli import app
from tutelage.engine import OutOfTimeError, Until
from tutelage.material import gather
from tutelage.recipes import Comparison, Recipe, RecipeError
from tutelage.runs import perform
from tutelage.store import Store, StoreError
from tutelage.studies.compare import compare

DATA = {"source": "digits", "labelled": 5, "crop_padding": 1}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "run"
    training = recipe(name="teacher", student="mlp:32", data={"source": "digits"}, epochs=3, objective="cross_entropy")
    perform(training, folder, verb="train", command="")
    return str(folder)


def recipe(**given):
    settings = {"data": DATA, "student": "mlp:8", "epochs": 2, "optimizer": {"name": "sgd", "lr": 0.05}, "threads": 1}
    return recipes.parse(Recipe, {"name": "run", **settings, **given})


def wttm(teacher, **given):
    return recipe(teacher=teacher, objective={"wttm": {"gamma": 0.25, "beta": 1}}, **given)


def test_a_run_on_recorded_outputs_is_a_run_on_the_live_teacher_to_float16(teacher, tmp_path):
    outputs = str(tmp_path / "outputs")
    recording.record(wttm(teacher, outputs=outputs))
    live = perform(wttm(teacher), tmp_path / "live", verb="distill", command="")
    read = perform(wttm(teacher, outputs=outputs), tmp_path / "read", verb="distill", command="")
    again = perform(wttm(teacher, outputs=outputs), tmp_path / "again", verb="distill", command="")
    for one, two in zip(live.epochs, read.epochs, strict=True):
        assert one["train"]["loss"] == pytest.approx(two["train"]["loss"], rel=2e-3)
        assert one["train"]["agreement"] == pytest.approx(two["train"]["agreement"], abs=5e-3)
    assert live.epochs[-1]["train"]["loss"] != read.epochs[-1]["train"]["loss"]
    assert [(live.manifest["teacher"]["answers"]), read.manifest["teacher"]["answers"]] == [
        "live",
        "recorded in float16",
    ]
    weights = [run.student.network.state_dict() for run in (read, again)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_stages_have_views_of_their_own(teacher, tmp_path):
    staged = wttm(teacher, outputs=str(tmp_path / "outputs"), stages=[{"epochs": 1}, {"epochs": 2}])
    folder = recording.record(staged)
    assert sorted(path.name for path in folder.glob("epoch-*")) == ["epoch-0000", "epoch-0001", "epoch-0002"]
    run = perform(staged, tmp_path / "run", verb="distill", command="")
    assert len(run.epochs) == 3


def test_a_recording_goes_on_where_it_stopped(teacher, tmp_path):
    given = wttm(teacher, outputs=str(tmp_path / "outputs"))
    folder = recording.record(given)
    files = {path: load_file(path) for path in folder.glob("epoch-*/*")}
    gone, kept = sorted(files)
    gone.unlink()
    changed = kept.stat().st_mtime_ns
    recording.record(given)
    assert set(folder.glob("epoch-*/*")) == set(files)
    assert all(torch.equal(load_file(path)[name], tensor) for path in files for name, tensor in files[path].items())
    assert kept.stat().st_mtime_ns == changed


def test_another_seed_of_the_views_is_refused(teacher, tmp_path):
    outputs = str(tmp_path / "outputs")
    recording.record(wttm(teacher, outputs=outputs))
    with pytest.raises(StoreError, match=r"data_seed \(expected 1, got 0\)"):
        perform(wttm(teacher, outputs=outputs, data_seed=1), tmp_path / "run", verb="distill", command="")
    with pytest.raises(StoreError, match=r"views\.crop_padding \(expected 2, got 1\)"):
        recording.record(wttm(teacher, outputs=outputs, data={**DATA, "crop_padding": 2}))


def test_epochs_that_were_not_recorded_stop_the_run(teacher, tmp_path):
    outputs = str(tmp_path / "outputs")
    recording.record(wttm(teacher, outputs=outputs, epochs=1))
    with pytest.raises(StoreError, match="expected the logits of epoch 2"):
        perform(wttm(teacher, outputs=outputs), tmp_path / "run", verb="distill", command="")
    assert not (tmp_path / "run" / "metrics.jsonl").exists(), "it is known before the first step"


def test_faults(teacher, tmp_path):
    with pytest.raises(RecipeError, match=r"outputs: expected a folder .*type outputs="):
        recording.record(wttm(teacher))
    with pytest.raises(RecipeError, match="teacher: expected one whose outputs are recorded, got none"):
        recording.record(recipe(outputs=str(tmp_path / "outputs")))
    with pytest.raises(RecipeError, match=r"outputs: expected at most 0 MB, got .* MB for 2 epochs of .* samples"):
        recording.record(wttm(teacher, outputs=str(tmp_path / "outputs")), limit_mb=0.01)
    assert not list((tmp_path / "outputs").glob("epoch-*"))


def test_the_command(teacher, tmp_path):
    outputs = tmp_path / "outputs"
    path = tmp_path / "recipe.yaml"
    path.write_text(recipes.dump(wttm(teacher)))
    said = CliRunner().invoke(app, ["record", str(path), f"outputs={outputs}"])
    assert said.exit_code == 0, said.output
    assert f"outputs: {outputs}" in said.output
    key = json.loads((outputs / "outputs.json").read_text())["key"]
    assert key["data_seed"] == 0
    material = gather(wttm(teacher))
    assert list(Store(outputs, key, samples=len(material.splits.train)).missing(1)) == []


def test_a_comparison_asks_the_teacher_once_for_each_data_seed(teacher, tmp_path):
    value = {
        "name": "few",
        "data": DATA,
        "student": "mlp:8",
        "teacher": teacher,
        "epochs": 2,
        "seeds": 2,
        "threads": 1,
        "outputs": str(tmp_path / "outputs"),
        "objectives": {"ce": "cross_entropy", "kd": "kd", "wttm": {"wttm": {"gamma": 0.25, "beta": 1}}},
    }
    compare(recipes.parse(Comparison, value), tmp_path / "few", command="")
    stores = sorted(path.name for path in (tmp_path / "outputs").iterdir())
    assert stores == ["data0", "data1"]
    answers = {}
    for folder in (tmp_path / "few").glob("*-seed*"):
        manifest = json.loads((folder / "manifest.json").read_text())
        answers[folder.name] = manifest["teacher"]["answers"], manifest["seeds"]["data_seed"]
    assert answers["kd-seed1"] == answers["wttm-seed1"] == ("recorded in float16", 1)
    assert answers["ce-seed0"] == ("not asked", 0)


def test_a_recording_stops_in_time_after_a_whole_chunk(teacher, tmp_path):
    given = wttm(teacher, outputs=str(tmp_path / "outputs"))
    looks = iter([1.0, 3.0])
    with pytest.raises(OutOfTimeError, match="the next chunk: no time is left"):
        recording.record(given, until=Until(2.0, clock=lambda: next(looks)))
    assert [path.parent.name for path in (tmp_path / "outputs").glob("epoch-*/*")] == ["epoch-0000"]
    recording.record(given)
    assert len(list((tmp_path / "outputs").glob("epoch-*/*"))) == 2
