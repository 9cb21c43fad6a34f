"""A folder that lost something: what is left makes it again, or a refusal names the file; nothing else happens."""

import contextlib
import io
import re
import shutil
import sys
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from tests._helpers.damage import DAMAGE

import tutelage
from tutelage import config, models, records
from tutelage.cli import app
from tutelage.config.schema import Recipe
from tutelage.errors import TutelageError
from tutelage.runs import disk
from tutelage.runs.execute import execute
from tutelage.runs.record_teacher import record
from tutelage.runs.reporter import Reporter
from tutelage.runs.resume import read_recorded
from tutelage.runs.run import RunOptions
from tutelage.training.checkpoints import Checkpoints

RUN = {
    "data": {"source": "digits", "crop_padding": 1},
    "batch_size": 512,
    "checkpoint_steps": 2,
    "device": "cpu",
    "threads": 1,
    "precision": "fp32",
}
TEACHER = {**RUN, "name": "t", "student": "mlp:16", "epochs": 2, "optimizer": {"name": "sgd", "lr": 0.3}}
STUDENT = {
    **RUN,
    "name": "s",
    "student": "mlp:8",
    "teacher": "runs/t",
    "objective": "kd",
    "stages": [{"epochs": 1}, {"epochs": 2}],
}
OTHER = {**STUDENT, "name": "o", "seed": 5, "data_seed": 5}
PUPIL = {**STUDENT, "name": "pupil", "teacher": "runs/s", "weak_teacher": True, "stages": [{"epochs": 1}]}
RECORDED = {**STUDENT, "name": "r", "outputs": "outputs"}
COMPARISON = {
    **{key: value for key, value in STUDENT.items() if key not in ("objective", "name")},
    "name": "c",
    "objectives": {"kd": "kd", "ce": "cross_entropy"},
}
JSON = ("manifest.json", "student.json", "evaluation.json")
WEIGHTS = ("student.safetensors", "best.safetensors")
NEWEST = {"finished": "checkpoints/01-000000006", "stopped": "checkpoints/01-000000003"}
CHECKPOINT = [f"NEWEST/{name}" for name in ("state.json", "tensors.safetensors", "checksums")]
FILES = {
    "finished": ["recipe.yaml", "metrics.jsonl", *JSON, *WEIGHTS, *CHECKPOINT],
    "stopped": ["recipe.yaml", "metrics.jsonl", "manifest.json", "best.safetensors", *CHECKPOINT],
}
VERBS = {
    "finished": ["resume", "repeat", "load", "best", "evaluate", "report", "compare", "teach"],
    "stopped": ["resume", "repeat", "load", "evaluate", "report"],
}
FORBIDDEN = re.compile(
    r"Traceback|this is a bug|Expecting|delimiter|codec|Errno|JSONDecode|object has no|NoneType|HeaderToo"
)


class Stops(Reporter):
    """Stops a run after its second epoch."""

    left = 2

    def note(self, text):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def templates(tmp_path_factory):
    """A working folder for each state of the run ``s``: finished, and stopped after an epoch of its second stage."""
    root = tmp_path_factory.mktemp("templates")
    threads = torch.get_num_threads()
    with contextlib.chdir(root):
        recipes = {"t": TEACHER, "s": STUDENT, "o": OTHER, "c": COMPARISON, "r": RECORDED, "p": PUPIL}
        for name, value in recipes.items():
            Path(f"{name}.yaml").write_text(yaml.safe_dump(value))
        execute(config.parse(Recipe, TEACHER), Path("runs/t"))
        record(config.parse(Recipe, RECORDED))
        record(config.parse(Recipe, {**RECORDED, "outputs": "others", "data_seed": 9}))
        stopped = shutil.copytree(root, root.parent / f"{root.name}-stopped")
        for value in (STUDENT, OTHER, PUPIL, RECORDED):
            execute(config.parse(Recipe, value), Path("runs", value["name"]))
    with contextlib.chdir(stopped):
        for name, value in (("s", STUDENT), ("o", OTHER)):
            with contextlib.suppress(KeyboardInterrupt):
                execute(config.parse(Recipe, value), Path("runs", name), options=RunOptions(reporter=Stops()))
        for kept in ("s", "o"):
            assert Path(f"runs/{kept}", NEWEST["stopped"]).is_dir()
    yield {"finished": root, "stopped": stopped}
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def compared(templates):
    """The working folder of finished runs, with a comparison."""
    with contextlib.chdir(templates["finished"]):
        assert Path("runs/c").exists() or type_("compare", "c.yaml")[0] == 0
    return templates["finished"]


def type_(*arguments):
    """Type a command: exit code, and all that is printed."""
    said, argv = io.StringIO(), sys.argv
    sys.argv = ["tutelage", *arguments]
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), warnings.catch_warnings():
            warnings.simplefilter("always", UserWarning)
            app.main()
    except SystemExit as left:
        return int(left.code or 0), said.getvalue()
    finally:
        sys.argv = argv
    raise AssertionError("a command ends by an exit")


def weights(folder="runs/s", name="student.safetensors"):
    return Path(folder, name).read_bytes()


def cases():
    for state, files in FILES.items():
        for file in files:
            for damage in DAMAGE:
                for verb in VERBS[state]:
                    quick = (state, file, damage, verb) in QUICK
                    marks = [] if quick else [pytest.mark.slow]
                    yield pytest.param(state, file, damage, verb, marks=marks, id=f"{state}-{file}-{damage}-{verb}")


QUICK = {
    ("stopped", "manifest.json", "cut", "resume"),
    ("stopped", "manifest.json", "missing", "resume"),
    ("stopped", "recipe.yaml", "missing", "resume"),
    ("stopped", "metrics.jsonl", "zeroed", "resume"),
    ("stopped", "NEWEST/state.json", "another", "resume"),
    ("finished", "student.safetensors", "another", "load"),
    ("finished", "student.safetensors", "missing", "resume"),
    ("finished", "manifest.json", "pipe", "load"),
    ("finished", "evaluation.json", "other_types", "report"),
    ("finished", "metrics.jsonl", "cut", "report"),
    ("finished", "recipe.yaml", "another", "evaluate"),
    ("finished", "student.json", "nulls", "teach"),
}


@pytest.mark.parametrize(("state", "file", "damage", "verb"), [*cases()])
def test_a_damaged_file_is_made_again_or_refused(templates, tmp_path, monkeypatch, request, state, file, damage, verb):
    if verb == "compare":
        request.getfixturevalue("compared")
    root = shutil.copytree(templates[state], tmp_path / "work", ignore=shutil.ignore_patterns("others", "pupil", "r"))
    monkeypatch.chdir(root)
    file = file.replace("NEWEST", NEWEST[state])
    path = Path("runs/c/kd-seed0" if verb == "compare" else "runs/s", file)
    was = path.read_bytes()
    DAMAGE[damage](path, Path("runs/o", file) if Path("runs/o", file).exists() else Path("runs/t", Path(file).name))
    whole = path.is_file() and path.read_bytes() == was  # another run's may be the same
    check = {
        "resume": resume, "repeat": repeat, "load": load, "best": best, "evaluate": evaluate, "report": report,
        "compare": compare, "teach": teach,
    }[verb]  # fmt: skip
    code, said = check(templates["finished"], state, file, whole)
    assert not FORBIDDEN.search(said), said
    if code:
        assert code in (1, 2), said
        named = Path(file).parent.name if "checkpoints" in file else Path(file).name
        unread = "checkpoints" in file or file in ("recipe.yaml", "best.safetensors")
        unfinished = ["expected a run's folder with student.safetensors"] if state == "stopped" else []
        answered = [*(["which is finished"] if unread or whole else []), *unfinished]
        assert named in said or any(text in said for text in answered), said
        assert ";" in said, said


def resume(finished, state, file, whole):
    code, said = type_("distill", "s.yaml")
    if not code:
        assert weights() == weights(finished / "runs/s")
        assert tutelage.load("runs/s") is not None
        assert records.read_manifest(Path("runs/s"))["status"] == "finished"
        assert not records.lost(Path("runs/s"), records.read_manifest(Path("runs/s")))
        kept = weights(name="best.safetensors") if Path("runs/s/best.safetensors").exists() else None
        rewritten = file == "best.safetensors" and kept == weights(finished / "runs/s", "best.safetensors")
        if file not in ("metrics.jsonl",) and not whole and not rewritten:
            assert "warning: " in said, said
    return code, said


def repeat(finished, state, file, whole):
    code, said = type_("distill", "runs/s")
    if not code:
        again = "runs/s-again" if Path("runs/s-again").exists() else "runs/s"
        assert weights(again) == weights(finished / "runs/s")
    return code, said


def load(finished, state, file, whole, *, best=False):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            network = tutelage.load("runs/s", best=best)
    except TutelageError as error:
        return error.exit_code, str(error)
    expected = tutelage.load(finished / "runs/s", best=best)
    assert models.fingerprint(network) == models.fingerprint(expected)
    return 0, ""


def best(finished, state, file, whole):
    return load(finished, state, file, whole, best=True)


def evaluate(finished, state, file, whole):
    code, said = type_("evaluate", "runs/s")
    if not code:
        accuracy = tutelage.runs.run.Run(finished / "runs/s").accuracy
        assert f"{100 * accuracy:.2f}" in said
    return code, said


def report(finished, state, file, whole):
    code, said = type_("report", "runs/s")
    if not code and not whole and file in ("metrics.jsonl", "manifest.json", "evaluation.json"):
        absent = not Path("runs/s", file).exists() and state == "stopped"
        assert absent or file in said, said
        assert absent or file in Path("runs/s/report.html").read_text()
    return code, said


def compare(finished, state, file, whole):
    code, said = type_("compare", "c.yaml")
    if not code:
        for run in ("kd-seed0", "ce-seed0"):
            assert weights(f"runs/c/{run}") == weights(finished / "runs/c" / run)
    return code, said


def teach(finished, state, file, whole):
    """The damaged run is a teacher."""
    code, said = type_("distill", "p.yaml")
    if not code:
        assert weights("runs/pupil") == weights(finished / "runs/pupil")
    return code, said


CHUNK = "epoch-0001/000000000.logits.safetensors"
OUTPUTS_QUICK = {("outputs.json", "missing", "distill"), (CHUNK, "another", "distill"), (CHUNK, "cut", "record")}


def outputs_cases():
    for file in ("outputs.json", CHUNK):
        for damage in DAMAGE:
            for verb in ("distill", "record"):
                marks = [] if (file, damage, verb) in OUTPUTS_QUICK else [pytest.mark.slow]
                yield pytest.param(file, damage, verb, marks=marks, id=f"{file}-{damage}-{verb}")


@pytest.mark.parametrize(("file", "damage", "verb"), [*outputs_cases()])
def test_damaged_outputs_are_recorded_again_or_refused(templates, tmp_path, monkeypatch, file, damage, verb):
    finished = templates["finished"]
    root = shutil.copytree(finished, tmp_path / "work", ignore=shutil.ignore_patterns("runs"))
    shutil.copytree(finished / "runs/t", root / "runs/t")
    monkeypatch.chdir(root)
    DAMAGE[damage](Path("outputs", file), Path("others", file))
    code, said = type_(verb, "r.yaml")
    assert not FORBIDDEN.search(said), said
    if code:
        assert code == 2, said
        assert Path(file).name in said, said
        assert ";" in said, said
    elif verb == "record":
        assert Path(file).name in said or damage == "missing", said
        code, said = type_("distill", "r.yaml")
        assert code == 0, said
    if not code:
        assert weights("runs/r") == weights(finished / "runs/r")


@pytest.mark.parametrize("source", [f"outputs/{CHUNK}", "others/epoch-0002/000000000.logits.safetensors"])
def test_a_chunk_in_anothers_place_is_refused_before_training(templates, tmp_path, monkeypatch, source):
    """Of another epoch; of another data seed's recording."""
    finished = templates["finished"]
    root = shutil.copytree(finished, tmp_path / "work", ignore=shutil.ignore_patterns("runs"))
    shutil.copytree(finished / "runs/t", root / "runs/t")
    monkeypatch.chdir(root)
    target = Path("outputs/epoch-0002/000000000.logits.safetensors")
    shutil.copyfile(source, target)
    code, said = type_("distill", "r.yaml")
    assert code == 2
    assert str(target) in said
    assert not Path("runs/r/checkpoints").exists(), "before the first step"


def test_an_edited_recipe_is_refused_with_what_changed(templates, tmp_path, monkeypatch):
    monkeypatch.chdir(shutil.copytree(templates["stopped"], tmp_path / "work"))
    path = Path("runs/s/recipe.yaml")
    path.write_text(path.read_text().replace("batch_size: 512", "batch_size: 256"))
    for command in (["distill", "s.yaml"], ["distill", "runs/s"]):
        code, said = type_(*command)
        assert code == 2
        assert str(path) in said
        assert "batch_size was 512, is 256" in said
    path.write_text("# a comment\n" + path.read_text().replace("batch_size: 256", "batch_size: 512"))
    assert type_("distill", "s.yaml")[0] == 0


def test_a_manifest_and_recipe_that_agree_outvote_another_runs_checkpoint(templates, tmp_path, monkeypatch):
    monkeypatch.chdir(shutil.copytree(templates["stopped"], tmp_path / "work"))
    (checkpoint, *_) = records.checkpoint_names(Path("runs/s/checkpoints"))
    kept = {"recipe": {"seed": 99}, "manifest": {"recipe": {"seed": 99}}}
    monkeypatch.setattr(records, "kept_run", lambda folder: (kept, checkpoint))
    recorded = read_recorded(Path("runs/s"))
    assert recorded.kept is None
    assert recorded.rebuilt == ()
    assert recorded.recipe()["name"] == "s"
    Path("runs/s/recipe.yaml").write_text("name: s\n")
    assert read_recorded(Path("runs/s")).kept is kept


def drop(tensors, state):
    del tensors[next(name for name in tensors if name.startswith("lesson."))]


def add(tensors, state):
    tensors["lesson.more"] = torch.zeros(2)


def widen(tensors, state):
    tensors[matrix(tensors, "lesson.")] = torch.zeros(3, 3)


def moments(tensors, state):
    tensors[matrix(tensors, "optimizer.")] = torch.zeros(3, 3)


def generator(tensors, state):
    state["rng"]["python"] = [3, [1, 2], None]


def forget(tensors, state):
    del state["optimizer"]


def matrix(tensors, prefix):
    return next(name for name, tensor in tensors.items() if name.startswith(prefix) and tensor.dim() == 2)


FURTHER = [pytest.param(change, marks=pytest.mark.slow) for change in (add, moments, forget)]


@pytest.mark.parametrize("change", [drop, widen, generator, *FURTHER])
def test_a_checkpoint_whose_content_does_not_load_counts_as_damaged(templates, tmp_path, monkeypatch, change):
    """Its checksums are right; tensors are missing, unknown or of other shapes, or the state lacks something."""
    monkeypatch.chdir(shutil.copytree(templates["stopped"], tmp_path / "work"))
    checkpoints, newest = Checkpoints(Path("runs/s/checkpoints")), Path(NEWEST["stopped"]).name
    tensors, state, *_ = checkpoints.load()
    change(tensors, state)
    checkpoints.save(newest, tensors, state)
    code, said = type_("distill", "s.yaml")
    assert code == 0, said
    assert f"warning: checkpoint {newest}: expected a state of this run" in said
    assert weights() == weights(templates["finished"] / "runs/s")


def test_the_disk_is_told_and_checked_before_the_first_step(templates, tmp_path, monkeypatch):
    monkeypatch.chdir(shutil.copytree(templates["stopped"], tmp_path / "work"))
    for command in (["distill", "s.yaml"], ["compare", "c.yaml"]):
        code, said = type_(*command, "--dry-run")
        assert code == 0, said
        assert re.search(r"estimated disk\D+[\d.]+ MB, \d+ MB free", said)
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 100_000)
    for command in (["distill", "s.yaml", "name=fresh"], ["compare", "c.yaml"]):
        code, said = type_(*command)
        assert code == 1, said
        assert re.search(r"0\.\d MB free in runs/\w+, got 0\.1 MB; free some space", said), said
        assert not list(Path("runs").glob("fresh/checkpoints")) + list(Path("runs").glob("c/*/checkpoints"))


def test_the_estimate_is_what_a_run_writes(templates):
    """Within a tenth, but for the report and a third checkpoint, which is there only while another is written."""
    from tutelage.runs.disk import EPOCH, FIXED, present, run_size

    recipe = config.parse(Recipe, {**STUDENT, "student": "mlp:512"})
    student = models.create("mlp:512", classes=10, channels=1, image_size=(8, 8))
    weights = sum(tensor.numel() * 4 for tensor in student.state_dict().values())
    assert run_size(recipe, student) == pytest.approx(3 * 2 * weights + 3 * weights + 3 * EPOCH + FIXED, rel=0.01)
    written = present(templates["finished"] / "runs/s")
    with contextlib.chdir(templates["finished"]):
        size = run_size(config.parse(Recipe, STUDENT), tutelage.load("runs/s"))
    assert written < size
