"""A teacher recorded as a bucket or as sampled classes: recorded, read back, compared, resumed and refused."""

import json

import pytest
import torch
from tests._helpers.refusals import refused
from typer.testing import CliRunner

from tutelage import config, losses
from tutelage.cli.app import app
from tutelage.config.schema import Comparison, Recipe
from tutelage.errors import RecipeError
from tutelage.runs import caches, record_teacher, run_state, setup
from tutelage.runs.execute import execute
from tutelage.runs.group import execute_group
from tutelage.settings.outputs import Bucket, Sampled, words
from tutelage.studies.compare import compare
from tutelage.teacher_cache.cache import CachedTeacher
from tutelage.teacher_cache.top_k import TeacherCacheError

pytest.importorskip("transformers", reason="the optional package transformers is not installed")
WORDS = [f"{first}{second}" for first in ("cat", "rain", "roof", "door", "mat") for second in ("", "s", "ed", "ing")]
FORMS = {
    "bucket": Bucket(top=8),
    "sampled": Sampled(draws=30),
    "tempered": Sampled(draws=30, proposal=0.8),
}


def network(width):
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 32}
    return {"name": "hf:llama", "config": {**sizes, **heads}}


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """A recipe's keys, with a teacher that was trained on 30 texts."""
    folder = tmp_path_factory.mktemp("forms")
    draw = torch.Generator().manual_seed(0)
    lines = [[WORDS[i] for i in torch.randint(len(WORDS), (12,), generator=draw).tolist()] for _ in range(30)]
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": " ".join(line)}) + "\n" for line in lines))
    data = {"source": f"jsonl:{folder / 'texts.jsonl'}", "text": "text", "tokenizer": {"bpe": 270}, "pack": 16}
    common = {"data": data, "epochs": 2, "batch_size": 4, "optimizer": {"name": "adamw", "lr": 0.01}, "threads": 1}
    common |= {"device": "cpu", "weak_teacher": True, "name": "run", "precision": "fp32"}
    execute(config.parse(Recipe, {**common, "student": network(16)}), folder / "teacher")
    return {**common, "student": network(8), "teacher": str(folder / "teacher"), "objective": TTM}


TTM = {"ttm": {"gamma": 1, "beta": 1}}


@pytest.fixture(scope="module")
def recorded(keys, tmp_path_factory):
    """Recipes by form, whose outputs are recorded in chunks of 7 rows of tokens."""
    recipes = {}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(record_teacher, "_rows", lambda *_, **__: 7)
        for name, form in FORMS.items():
            outputs = str(tmp_path_factory.mktemp(name) / "outputs")
            recipes[name] = config.parse(Recipe, {**keys, "outputs": outputs, "outputs_form": vars(form)})
            record_teacher.record(recipes[name])
    return recipes


def trained(folder):
    return [json.loads(line)["train"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", FORMS)
def test_what_is_recorded_is_what_is_computed_live(recorded, name):
    """Every row of the files, in a batch that runs across chunks, has what the teacher's own logits give."""
    recipe = recorded[name]
    inputs = setup.build_inputs(recipe)
    outputs = setup.outputs_of(recipe, inputs)
    assert outputs.form.settings == FORMS[name]
    loader = setup.data.BatchLoader(inputs.splits.train, batch_size=12, train=True)
    batch = next(iter(loader.epoch(1)))
    read = CachedTeacher(outputs, sparse=False)(batch)
    with torch.no_grad():
        logits = inputs.teacher(batch.inputs)
    sparse, z = read.sparse, torch.randn(logits.shape, generator=torch.Generator().manual_seed(3))
    assert read.logits.shape[-1] == 0
    got = losses.ttm(z, sparse, gamma=1)
    if name == "bucket":
        expected = losses.top_k(z, logits, top=8)
    else:
        shape = batch.labels.shape
        samples = {int(each): row for row, each in enumerate(batch.index)}
        expected = torch.empty(shape)
        for sample, row in samples.items():
            bits = outputs.form.bits(0, range(sample, sample + 1), torch.tensor([shape[1]]))
            kept = outputs.form.pack(logits[row], bits)
            assert torch.equal(kept["index"].long(), sparse.index[row])
            expected[row] = losses.ttm(z[row], outputs.form.as_sparse(kept, 1.0), gamma=1)
    torch.testing.assert_close(got, expected, rtol=2e-3, atol=2e-3)


@pytest.fixture(scope="module")
def live(keys, tmp_path_factory):
    return execute(config.parse(Recipe, keys), tmp_path_factory.mktemp("live") / "run")


@pytest.mark.parametrize("name", FORMS)
def test_a_run_reads_it_and_its_manifest_says_form_and_bias(recorded, live, name, tmp_path):
    recipe = recorded[name]
    run = execute(recipe, tmp_path / "run")
    said, written = run.manifest["teacher"], json.loads((setup.Path(recipe.outputs) / "outputs.json").read_text())
    assert written["schema"] == 4
    assert said["form"] == written["form"]
    assert said["errors"] == written["errors"]
    if name == "bucket":
        assert said["form"] == {"name": "bucket", "top": 8, "classes": 270}
        assert said["answers"] == "recorded in float16, the top 8 of 270 and the rest as one"
        assert 0 < said["errors"][0]["mean_left_over"] < 1
    else:
        assert said["form"] == {**vars(FORMS[name]), "classes": 270, "seed": 0}
        assert "30 draws" in said["answers"]
        error = said["errors"][0]
        assert abs(error["mean_bias"]) < 4 * error["standard_error"]
        assert 0 < error["standard_error"] < 0.1
    assert trained(tmp_path / "run")[-1]["loss"] == pytest.approx(trained(live.folder)[-1]["loss"], rel=0.2)
    assert live.manifest["teacher"]["answers"] == "live"


def test_several_students_read_one_record_in_lockstep_and_alone_alike(recorded, tmp_path):
    kinds = {"ttm": TTM, "kd": {"kd": {"temperature": 1}}, "wttm": {"wttm": {"gamma": 1, "beta": 1}}}
    base = recorded["sampled"].model_dump()
    recipes = {name: config.parse(Recipe, {**base, "name": name, "objective": each}) for name, each in kinds.items()}
    done = execute_group([(each, tmp_path / name) for name, each in recipes.items()])
    assert not [each for each in done if isinstance(each, Exception)]
    execute(recipes["wttm"], tmp_path / "alone")
    together, alone = (trained(tmp_path / name) for name in ("wttm", "alone"))
    assert [each["loss"] for each in together] == pytest.approx([each["loss"] for each in alone], rel=1e-6)
    # At gamma 1 the weight of WTTM is 1.
    assert [each["loss"] for each in together] == [each["loss"] for each in trained(tmp_path / "ttm")]


def test_a_comparison_records_it_by_itself_and_the_cache_lists_it(keys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    more = {"outputs": "kept", "outputs_form": {"name": "sampled", "draws": 20}, "seeds": 2, "epochs": 1}
    given = {key: value for key, value in keys.items() if key != "objective"}
    more["objectives"] = {"ce": "cross_entropy", "ttm": TTM, "wttm_auto": {"wttm": {"gamma": "auto"}}}
    compare(config.parse(Comparison, {**given, **more}), tmp_path / "c")
    manifest = json.loads((tmp_path / "c/wttm_auto-seed0/manifest.json").read_text())
    assert manifest["objective_resolved"][0]["wttm"]["gamma"] == 1
    (kept,) = [each for each in caches.found([tmp_path]) if each.kind == "outputs"]
    assert "20 draws of 270" in kept.owner
    result = CliRunner().invoke(app, ["cache", "list", str(tmp_path)])
    assert "20 draws of 270" in " ".join(result.output.split())


def test_draws_are_those_of_the_data_seed_sample_and_view_whatever_the_chunks_are(keys, recorded, tmp_path):
    whole = {**keys, "outputs": str(tmp_path / "whole"), "outputs_form": vars(FORMS["sampled"])}
    seeded = {**whole, "outputs": str(tmp_path / "seeded"), "data_seed": 1}
    rows = {}
    for name, recipe in (("chunks", recorded["sampled"]), ("whole", whole), ("seeded", seeded)):
        recipe = recipe if isinstance(recipe, Recipe) else config.parse(Recipe, recipe)
        if name != "chunks":
            record_teacher.record(recipe)
        cache = setup.outputs_of(recipe, setup.build_inputs(recipe))
        rows[name] = torch.cat([chunk["index"] for chunk in cache.read(0, "logits")])
        assert cache.form.seed == int(name == "seeded")
    same = (rows["chunks"] == rows["whole"]).all(-1).float().mean()
    assert float(same) > 0.99  # a last bit of the logits may move a draw
    assert (rows["whole"] != rows["seeded"]).any(-1).float().mean() > 0.5


def test_a_run_stopped_in_between_ends_in_the_same_bits(recorded, tmp_path):
    recipe = recorded["sampled"]
    execute(recipe, tmp_path / "whole")
    cut = config.parse(Recipe, {**recipe.model_dump(), "epochs": 1})
    execute(cut, tmp_path / "half")
    execute(config.parse(Recipe, {**recipe.model_dump(), "start": str(tmp_path / "half")}), tmp_path / "rest")
    assert trained(tmp_path / "rest")[-1]["loss"] == trained(tmp_path / "whole")[-1]["loss"]


REFUSED = {
    "exponent": ({"ttm": {"gamma": 0.75, "beta": 1}}, "gamma 0.75"),
    "temperature": ({"kd": {"temperature": 4}}, "gamma 0.25"),
    "reading": ({"matching": {"gamma": 1, "beta": 1, "divergence": "reverse"}}, "another reading"),
    "rows": ({"wttm": {"gamma": 1, "beta": 1, "normalise": "training"}}, "whole rows"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("name", ["bucket", "sampled"])
def test_objectives_that_read_more_are_refused_before_training_and_recording(recorded, case, name, tmp_path):
    objective, got = REFUSED[case]
    recipe = config.parse(Recipe, {**recorded[name].model_dump(), "objective": objective})
    with refused(RecipeError, f"objective {next(iter(objective))}", got=got, suggests=["gamma=1", "temperature=1"]):
        execute(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    new = recipe.model_copy(update={"outputs": str(tmp_path / "outputs")})
    with refused(RecipeError, f"objective {next(iter(objective))}", got=got):
        record_teacher.record(new)
    assert not (tmp_path / "outputs" / "outputs.json").exists()


def test_another_form_than_was_recorded_is_refused(recorded, tmp_path):
    other = recorded["sampled"].model_copy(update={"outputs_form": Sampled(draws=31)})
    for verb in (record_teacher.record, lambda recipe: execute(recipe, tmp_path / "run")):
        with refused(RecipeError, "outputs_form", got="31 draws of 270", suggests="outputs=..."):
            verb(other)
    untyped = recorded["sampled"].model_copy(update={"outputs_form": None})
    record_teacher.record(untyped)  # which resumes what was begun
    assert run_state.words(setup.outputs_of(untyped, setup.build_inputs(untyped)).form.to_json()) == "30 draws of 270"


def test_as_many_classes_as_there_are_are_no_bucket(keys, tmp_path):
    more = {"outputs": str(tmp_path / "outputs"), "outputs_form": {"name": "bucket", "top": 270}}
    with refused(TeacherCacheError, "outputs_form.top", got=270, suggests="outputs_form=null"):
        record_teacher.record(config.parse(Recipe, {**keys, **more}))


def test_a_comparison_is_refused_before_its_first_run_if_one_objective_reads_more(keys, tmp_path):
    more = {"outputs": str(tmp_path / "outputs"), "outputs_form": vars(FORMS["bucket"]), "seeds": 1}
    given = {key: value for key, value in keys.items() if key != "objective"}
    recipe = config.parse(Comparison, {**given, **more, "objectives": {"ttm": TTM, "kd": "kd"}})
    with refused(RecipeError, "objective kd", got="gamma 0.25"):
        compare(recipe, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_form_is_said_in_words():
    assert (
        words({"name": "bucket", "top": 4, "classes": 10}, "classes") == "the top 4 of 10 classes and the rest as one"
    )
    assert words({"name": "sampled", "draws": 3, "proposal": 1.0, "classes": 10}) == "3 draws of 10"
