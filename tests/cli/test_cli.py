"""The command line as a user types it: help, exit codes, and one clear line for every mistake."""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

COMMANDS = ("train", "distill", "compare", "evaluate", "report", "list", "doctor")
QUICK = {
    "data": {"source": "digits"},
    "student": "mlp:8",
    "epochs": 1,
    "batch_size": 512,
    "optimizer": {"name": "sgd", "lr": 0.1},
    "device": "cpu",
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, **recipe: object) -> str:
    path.write_text(yaml.safe_dump({"name": path.stem, **QUICK, **recipe}))
    return str(path)


@pytest.fixture
def teacher(here, invoke):
    code, _, err = invoke("train", write(here / "teacher.yaml", student="mlp:32", epochs=3))
    assert code == 0, err
    return "runs/teacher"


def one_line(err: str, *parts: str) -> None:
    lines = [line for line in err.splitlines() if line.startswith("tutelage: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    for part in parts:
        assert part in lines[0], lines[0]


def test_help_is_quick_and_imports_nothing_heavy(tmp_path):
    code = "import sys, tutelage.cli.app as c\ntry:\n c.app(['--help'])\nexcept SystemExit: pass\n"
    code += "heavy = {'torch', 'numpy', 'pydantic', 'yaml', 'plotly', 'accelerate', 'rich'} & set(sys.modules)\n"
    code += "assert not heavy, heavy"
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 30  # not a timing: a hang


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_ends_in_an_example(command, invoke):
    code, out, _ = invoke(command, "--help")
    assert code == 0
    assert re.match(r"Example: tutelage " + command, out.strip().splitlines()[-1].strip())


def test_train_distill_evaluate_report(teacher, here, invoke):
    recipe = write(here / "student.yaml", teacher=teacher, objective={"wttm": {"gamma": 0.25, "beta": 1}})
    code, out, err = invoke("distill", recipe, "epochs=2")
    assert code == 0, err
    assert "report: runs/student/report.html" in out
    assert "teacher mlp:32: accuracy" in out  # before the first step
    assert yaml.safe_load((here / "runs/student/recipe.yaml").read_text())["epochs"] == 2
    code, out, _ = invoke("evaluate", "runs/student")
    accuracy = float(re.search(r"accuracy\s+([\d.]+) %", out)[1])
    import json

    stated = json.loads((here / "runs/student/evaluation.json").read_text())["student"]["accuracy"]
    assert accuracy == pytest.approx(stated * 100, abs=0.006)
    low, high = map(float, re.search(r"95 % interval ([\d.]+) to ([\d.]+) %", out).groups())
    assert low < accuracy < high
    assert re.search(r"temperature\s+[\d.]+  \(fitted on each half of the test set, for the other\)", out)
    assert re.search(r"ece after it\s+[\d.]+ %", out)
    (here / "runs/student/report.html").unlink()
    code, out, _ = invoke("report", "runs/student")
    assert code == 0
    assert (here / "runs/student/report.html").is_file()


def test_a_finished_run_is_repeated_from_its_folder_with_the_same_bits(teacher, here, invoke):
    recipe = write(here / "one.yaml", teacher=teacher, objective="kd")
    assert invoke("distill", recipe)[0] == 0
    code, _, err = invoke("distill", recipe)
    assert code == 2
    one_line(err, "finished", "name=")
    assert invoke("distill", "runs/one")[0] == 0
    first, second = ((here / f"runs/{name}/student.safetensors").read_bytes() for name in ("one", "one-again"))
    assert first == second


def test_distilling_without_a_teacher_is_refused_whatever_the_objective(here, invoke):
    for objective in ("kd", "cross_entropy"):
        code, _, err = invoke("distill", write(here / "one.yaml", objective=objective))
        assert code == 2
        one_line(err, "teacher: expected one to distil, got none; add teacher=", "type tutelage train")
    assert not (here / "runs/one").exists()


def test_a_repeat_with_another_teacher_is_refused(teacher, here, invoke):
    assert invoke("distill", write(here / "one.yaml", teacher=teacher, objective="kd"))[0] == 0
    import safetensors.torch

    path = here / "runs/teacher/student.safetensors"
    weights = {k: v + 0.01 for k, v in safetensors.torch.load_file(path).items()}
    safetensors.torch.save_file(weights, path)
    code, _, err = invoke("distill", "runs/one")
    assert code == 2
    one_line(err, "student.safetensors", "manifest.json")


def test_dry_run_shows_what_would_be_and_writes_nothing(teacher, here, invoke):
    recipe = write(here / "dry.yaml", teacher=teacher, objective="kd")
    code, out, err = invoke("distill", recipe, "--dry-run")
    assert code == 0, err
    for part in ("classes", "parameters", "teacher accuracy", "logits", "estimated time", "memory"):
        assert part in out
    assert not (here / "runs/dry").exists()


def test_compare_makes_a_table_skips_what_is_done_and_adds_seeds(here, invoke):
    recipe = write(
        here / "both.yaml",
        teacher={"train": {"model": "mlp:32", "epochs": 3}},
        objectives={"plain": "cross_entropy", "kd": "kd"},
    )
    code, out, err = invoke("compare", recipe)
    assert code == 0, err
    assert "plain" in out
    assert "report: runs/both/report.html" in out
    before = (here / "runs/both/kd-seed0/manifest.json").read_bytes()
    assert invoke("compare", recipe, "seeds=2")[0] == 0
    assert (here / "runs/both/kd-seed0/manifest.json").read_bytes() == before
    assert (here / "runs/both/kd-seed1/student.safetensors").is_file()
    code, _, err = invoke("compare", recipe, "epochs=2")
    assert code == 2
    one_line(err, "epochs", "name=")
    code, _, err = invoke("distill", recipe)
    assert code == 2
    one_line(err, "tutelage compare")
    assert invoke("compare", recipe, "--dry-run", "name=other")[0] == 0
    assert not (here / "runs/other").exists()


def test_list_shows_parameters_and_papers(invoke):
    out = invoke("list", "objectives")[1]
    assert "wttm(gamma=0.25, beta=auto, supervised=1.0" in out
    assert "2402.11148" in out
    assert "cifar:resnet8x4" in invoke("list", "models")[1]
    assert "imagefolder:" in invoke("list", "data")[1]


def test_doctor_takes_a_real_step(here, invoke):
    code, out, err = invoke("doctor")
    assert code == 0, out + err
    assert re.search(r"ok\s+training step, bf16\s+\d+ steps", out)


def test_doctor_times_every_section_where_asked(invoke, monkeypatch):
    """The sections themselves are timed in test_benchmark; a failure is an exit status after the last one."""
    from tutelage import doctor
    from tutelage.benchmark import sections

    def fails():
        raise MemoryError("no room")

    whole = [section._replace(lines=lambda: iter(("1.00x",))) for section in sections.SECTIONS]
    monkeypatch.setattr(doctor, "examine", lambda: iter(()))
    monkeypatch.setattr(sections, "SECTIONS", whole)
    code, out, err = invoke("doctor", "--bench")
    assert (code, err) == (0, "")
    assert out.count("reference: ") == out.count("1.00x") == len(whole) == 6
    monkeypatch.setattr(sections, "SECTIONS", [whole[0]._replace(lines=fails), *whole[1:]])
    code, out, err = invoke("doctor", "--bench")
    assert (code, err) == (1, "")
    assert "failed: MemoryError: no room" in out
    assert out.count("1.00x") == 5


def test_not_yaml(here, invoke):
    (here / "bad.yaml").write_text("student: [mlp:8\nepochs: 1")
    code, _, err = invoke("train", "bad.yaml")
    assert code == 2
    one_line(err, "bad.yaml", "expected", "YAML", "line")


def test_unknown_command_and_bad_override(here, invoke):
    assert invoke("distil")[0] == 2
    code, _, err = invoke("train", write(here / "a.yaml"), "epochs")
    assert code == 2
    one_line(err, "key=value", "'epochs'")


@pytest.mark.parametrize(
    ("objective", "parts"),
    [
        ({"wtm": {"gamma": 1, "beta": 1}}, ("expected", "'wtm'", "did you mean wttm")),
        ({"wttm": {"gamma": 0, "beta": 1}}, ("gamma", "got 0", "gamma=")),
        ({"wttm": {"gama": 0.1, "gamma": 0.1, "beta": 1}}, ("'gama'", "did you mean gamma")),
    ],
)
def test_bad_objectives(objective, parts, teacher, here, invoke):
    code, _, err = invoke("distill", write(here / "o.yaml", teacher=teacher, objective=objective))
    assert code == 2
    one_line(err, *parts)


@pytest.mark.parametrize(
    ("typed", "where"),
    [
        ("distill one.yaml objective.kd.temperature=-1", "objective.kd.temperature: expected"),
        ("train objective.kd.temperature=-1 student=mlp:4", "objective.kd.temperature: expected"),
        ("record one.yaml outputs=runs/o objective.kd.temperature=-1", "objective.kd.temperature: expected"),
        ("compare both.yaml objectives.k.kd.temperature=-1", "objectives.k.kd.temperature: expected"),
        ("study table1 methods.kd.kd.temperature=-1", "table1: methods.kd: objective.kd.temperature: expected"),
    ],
)
def test_values_that_the_losses_refuse_are_refused_before_anything_is_written(typed, where, here, invoke):
    write(here / "one.yaml", teacher="mlp:16", objective="kd")
    write(here / "both.yaml", teacher="mlp:16", objectives={"k": "kd"})
    code, _, err = invoke(*typed.split())
    assert code == 2
    assert err.startswith(f"tutelage: {where}"), err
    assert not (here / "runs").exists()


def test_all_faults_at_once(here, invoke):
    code, _, err = invoke(
        "train", write(here / "f.yaml"), "epoch=3", "data.labeled=2", "optimizer.lrr=1", "batch_size=0"
    )
    assert code == 2
    assert len(err.splitlines()) == 4
    for part in ("did you mean epochs", "did you mean data.labelled", "did you mean optimizer.lr", "batch_size"):
        assert part in err


def test_teacher_checkpoint_of_another_architecture(here, invoke):
    from tutelage import models

    torch.save(
        {"model": models.create("mlp:5", classes=10, channels=1, image_size=(8, 8)).network.state_dict()}, "t.pth"
    )
    recipe = write(here / "t.yaml", teacher={"name": "cifar:resnet8", "weights": "t.pth"}, objective="kd")
    code, _, err = invoke("distill", recipe)
    assert code == 2
    one_line(err, "t.pth", "cifar:resnet8", "expected")


class Bomb:
    def __reduce__(self):
        return (Path("exploded").touch, ())


def test_a_pickle_that_would_execute_code_is_refused(here, invoke):
    with (here / "bomb.pth").open("wb") as file:
        pickle.dump({"model": Bomb()}, file, protocol=2)
    torch.save({"model": Bomb()}, here / "bomb2.pth")
    for name in ("bomb.pth", "bomb2.pth"):
        recipe = write(here / "b.yaml", teacher={"name": "cifar:resnet8", "weights": name}, objective="kd")
        code, _, err = invoke("distill", recipe)
        assert code == 2
        one_line(err, name)
        assert not (here / "exploded").exists()


def test_ten_classes_against_a_hundred(here, invoke):
    from tutelage import models

    torch.save(models.create("cifar:resnet8", classes=100, channels=1).network.state_dict(), "hundred.pth")
    recipe = write(here / "c.yaml", teacher={"name": "cifar:resnet8", "weights": "hundred.pth"}, objective="kd")
    code, _, err = invoke("distill", recipe)
    assert code == 2
    one_line(err, "expected", "10 classes", "tutelage train")


def images(folder: Path, *, corrupt: bool = False) -> None:
    for split, n in (("train", 12), ("test", 4)):
        for k, name in enumerate(("ant", "bee")):
            class_folder = folder / split / name
            class_folder.mkdir(parents=True)
            for i in range(n):
                Image.new("RGB", (20 + i, 24), (120 * k + 5 * i, 40, 200 - 90 * k)).save(class_folder / f"{i}.png")
    if corrupt:
        (folder / "train/bee/3.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")


def test_a_corrupt_image_is_named_and_stops_or_is_counted(here, invoke):
    images(here / "pictures", corrupt=True)
    data = {"source": "imagefolder:pictures", "size": 16}
    recipe = write(here / "i.yaml", data=data, student="cifar:resnet8", batch_size=8)
    code, _, err = invoke("train", recipe)
    assert code == 2
    one_line(err, "3.png", "data.on_corrupt=skip")
    code, _, err = invoke("train", recipe, "data.on_corrupt=skip", "name=skipped")
    assert code == 0, err
    import json

    assert json.loads((here / "runs/skipped/manifest.json").read_text())["data"]["sizes"]["corrupt"] == 1


def test_an_empty_folder(here, invoke):
    (here / "nothing").mkdir()
    code, _, err = invoke("train", write(here / "e.yaml", data={"source": "imagefolder:nothing"}))
    assert code == 2
    one_line(err, "nothing", "expected")


def test_labels_missing_for_a_supervised_objective(teacher, here, invoke):
    data = {"source": "digits", "labelled": 0}
    code, _, err = invoke("distill", write(here / "l.yaml", data=data, teacher=teacher, objective="kd"))
    assert code == 2
    one_line(err, "label")
    free = write(here / "free.yaml", data=data, teacher=teacher, objective={"kd": {"supervised": 0}})
    code, _, err = invoke("distill", free)
    assert code == 0, err


def test_a_teacher_no_better_than_chance(here, invoke):
    recipe = write(here / "w.yaml", teacher="mlp:4", objective="kd")
    code, _, err = invoke("distill", recipe)
    assert code == 2
    one_line(err, "chance", "weak_teacher=true")
    assert invoke("distill", recipe, "weak_teacher=true")[0] == 0


def test_code_in_a_recipe_needs_trust(here, invoke):
    (here / "net.py").write_text(
        "import torch, pathlib\n"
        "pathlib.Path('ran').touch()\n"
        "def make(classes):\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, classes))\n"
    )
    recipe = write(here / "code.yaml", student="file:net.py:make")
    code, _, err = invoke("train", recipe)
    assert code == 2
    one_line(err, "net.py", "--trust-code")
    assert not (here / "ran").exists()
    assert invoke("train", recipe, "--trust-code")[0] == 0
    assert (here / "ran").exists()
    # Typed on the command line it is trusted; in the folder of a run it is not.
    assert invoke("train", write(here / "typed.yaml"), "student=file:net.py:make")[0] == 0
    code, _, err = invoke("train", "runs/code")
    assert code == 2
    one_line(err, "--trust-code")


def test_nan_in_the_teachers_logits_names_step_and_samples(here, invoke):
    (here / "nan.py").write_text(
        "import torch\n"
        "class Sick(torch.nn.Module):\n"
        "    def __init__(self):\n        super().__init__(); self.head = torch.nn.Linear(64, 10)\n"
        "    def forward(self, x):\n"
        "        out = self.head(x.flatten(1))\n"
        "        if len(x) == 100:\n            out[3] = torch.nan\n"
        "        return out\n"
        "def make():\n    return Sick()\n"
    )
    settings = {"batch_size": 100, "weak_teacher": True, "log_steps": 1}
    recipe = write(here / "n.yaml", **{**settings, "teacher": "file:nan.py:make", "objective": "kd"})
    code, _, err = invoke("distill", recipe, "--trust-code")
    assert code == 1
    one_line(err, "step 1", "samples", "nonfinite=skip")


@pytest.mark.slow
def test_a_pretrained_network_is_fine_tuned_and_then_distilled(here, invoke):
    """The engineer's case: own images, a torchvision network with weights for other classes, then a small student."""
    from tutelage import models

    images(here / "pictures")
    torch.save(models.create("torchvision:resnet18", classes=7).network.state_dict(), "pretrained.pth")
    data = {"source": "imagefolder:pictures", "size": 32}
    shared = {"data": data, "batch_size": 8, "epochs": 2, "optimizer": {"name": "adamw", "lr": 1e-3}}
    tuned = write(here / "tuned.yaml", student={"name": "torchvision:resnet18", "weights": "pretrained.pth"}, **shared)
    code, _, err = invoke("train", tuned)
    assert code == 0, err
    small = write(here / "small.yaml", **{**shared, "student": "cifar:resnet8"}, teacher="runs/tuned", objective="kd")
    code, _, err = invoke("distill", small, "weak_teacher=true")
    assert code == 0, err
    import tutelage

    student = tutelage.load("runs/small")
    assert student(torch.rand(1, 3, 32, 32)).shape == (1, 2)
    assert student.card.class_names == ("ant", "bee")


def test_two_processes_share_a_comparison(here, invoke):
    import fcntl

    recipe = write(
        here / "both.yaml", objectives={"plain": "cross_entropy", "smooth": {"cross_entropy": {"label_smoothing": 0.1}}}
    )
    folder = here / "runs/both/plain-seed0"
    folder.mkdir(parents=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        code, out, err = invoke("compare", recipe)
    assert code == 0, err
    assert "another process" in out
    assert (here / "runs/both/smooth-seed0/student.safetensors").is_file()
    assert not (folder / "student.safetensors").exists()
    assert invoke("compare", recipe)[0] == 0
    assert (folder / "student.safetensors").is_file()


EVIL = (
    "import torch, pathlib\n"
    "pathlib.Path('ran').touch()\n"
    "def net(classes):\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, classes))\n"
)


def poison(folder: Path) -> None:
    """Make a run's folder name code where the network is built from."""
    import json

    path = folder / "student.json"
    card = json.loads(path.read_text())
    card["card"]["name"] = "file:evil.py:net"
    path.write_text(json.dumps(card))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["student.json"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_shared_folder_runs_no_code_as_a_teacher_a_student_or_a_model(teacher, here, invoke):
    (here / "evil.py").write_text(EVIL)
    poison(here / teacher)
    recipe = write(here / "r.yaml", teacher=teacher, objective="kd")
    for arguments in (["distill", recipe], ["distill", recipe, "--dry-run"], ["evaluate", teacher]):
        code, _, err = invoke(*arguments)
        assert code == 2
        one_line(err, "evil.py", "--trust-code")
    code, _, err = invoke("train", write(here / "s.yaml", student=teacher))
    assert code == 2
    assert not (here / "ran").exists()
    # Consent to one name is no consent to another.
    (here / "good.py").write_text(EVIL.replace("'ran'", "'good'"))
    code, _, err = invoke("distill", recipe, "student=file:good.py:net")
    assert code == 2
    one_line(err, "evil.py")
    assert not (here / "ran").exists()


def test_a_teacher_found_in_the_folder_of_an_unfinished_run_runs_no_code(here, invoke):
    (here / "evil.py").write_text(EVIL)
    keys = {"teacher": {"train": {"model": "mlp:16", "epochs": 3}}, "objectives": {"kd": "kd"}}
    recipe = write(here / "c.yaml", **keys)
    assert invoke("compare", recipe)[0] == 0
    poison(here / "runs/c/teacher")
    code, _, err = invoke("compare", recipe, "seeds=2")
    assert code == 2
    one_line(err, "evil.py", "--trust-code")
    assert not (here / "ran").exists()


def test_a_console_whose_encoding_lacks_a_letter_prints_a_question_mark(monkeypatch):
    from tutelage.cli import app

    console = io.TextIOWrapper(io.BytesIO(), encoding="cp1251")
    monkeypatch.setattr(sys, "stdout", console)
    monkeypatch.setattr(sys, "argv", ["tutelage", "study"])
    with pytest.raises(SystemExit) as left:
        app.main()
    console.flush()
    assert not left.value.code
    assert b"R?nyi" in console.buffer.getvalue()
