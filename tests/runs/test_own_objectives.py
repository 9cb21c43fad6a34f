"""Runs, comparisons, studies and searches whose objective is a function in a file of one's own."""

import json

import pytest
import torch
import yaml
from tests._helpers.refusals import refused

import tutelage
from tutelage import objectives
from tutelage.errors import InvalidValueError, RecipeError
from tutelage.objectives import reading
from tutelage.report import html

METHOD = """
from tutelage import losses

def ours(student_logits, teacher_logits, *, temperature: float = 2.0):
    return losses.kd(student_logits, teacher_logits, temperature=temperature)
"""
OURS = "file:method.py:ours"
FAST = {"data": "digits", "epochs": 1, "batch_size": 512, "device": "cpu", "display": None}
TYPED = ("data=digits", "epochs=1", "batch_size=512", "device=cpu", "threads=1")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(html, "write_report", lambda *given, **named: None)
    (tmp_path / "method.py").write_text(METHOD, encoding="utf-8")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.fixture
def teacher(here):
    return str(tutelage.train(model="mlp:16", name="teacher", optimizer={"name": "sgd", "lr": 0.2}, **FAST).folder)


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def weights(folder):
    return (folder / "student.safetensors").read_bytes()


def test_a_run_from_python_is_that_of_the_preset_and_repeats_from_its_folder(here, teacher, invoke):
    named = {"student": "mlp:8", "teacher": teacher, **FAST}
    with refused(InvalidValueError, "objective", suggests="--trust-code"):
        tutelage.distill(objective=OURS, name="refused", **named)
    run = tutelage.distill(objective={OURS: {"weight": 2}}, name="ours", trust_code=True, **named)
    kd = tutelage.distill(objective={"kd": {"temperature": 2, "weight": 2, "supervised": 1}}, name="kd", **named)
    assert weights(run.folder) == weights(kd.folder)
    known = manifest(run.folder)
    assert known["repeatable"]
    ((entry,),) = known["objective"]
    assert entry[OURS] == {"weight": 2.0}
    (call,) = objectives.from_recipe({OURS: {"weight": 2}}, trust_code=True).spec.presets
    assert call.defaulted == {"supervised", "temperature"}
    assert known["papers"] == [f"method.py, sha256 {entry['sha256']}"]
    assert invoke("distill", str(run.folder))[0] == 2
    code, _, said = invoke("distill", str(run.folder), "--trust-code")
    assert code == 0, said
    assert weights(here / "runs" / "ours-again") == weights(run.folder)
    assert invoke("evaluate", str(run.folder))[0] == 0
    more = ("start=runs/ours", "name=more", "epochs=2", *(t for t in TYPED if "epochs" not in t))
    code, _, said = invoke(
        "distill", "student=mlp:8", f"teacher={teacher}", f"objective={{{OURS}: {{weight: 2}}}}", *more
    )
    assert code == 0, said


def test_a_file_that_changed_is_another_run(here, teacher, invoke):
    typed = ("distill", "student=mlp:8", f"teacher={teacher}", "name=one", *TYPED, f"objective={OURS}")
    assert invoke(*typed, "--dry-run")[0] == 0
    assert not (here / "runs" / "one").exists()
    assert invoke(*typed)[0] == 0
    (here / "method.py").write_text(METHOD.replace("2.0", "3.0"), encoding="utf-8")
    reading._OWN.clear()
    code, _, said = invoke("distill", "runs/one", "--trust-code")
    assert code == 2
    assert "a changed one" in said
    recorded = yaml.safe_load((here / "runs" / "one" / "recipe.yaml").read_text(encoding="utf-8"))
    (here / "old.yaml").write_text(yaml.safe_dump({**recorded, "name": "two"}), encoding="utf-8")
    assert "a changed one" in invoke("distill", "old.yaml", "--trust-code")[2]
    assert invoke("distill", "old.yaml", f"objective={OURS}")[0] == 0


EXITS = """
def ours(student_logits):
    if len(student_logits) > 2:
        raise SystemExit(0)
    return student_logits.mean(-1)
"""


def test_a_loss_that_exits_ends_in_an_error(here, teacher, invoke):
    (here / "method.py").write_text(EXITS, encoding="utf-8")
    code, _, said = invoke("distill", "student=mlp:8", f"teacher={teacher}", f"objective={OURS}", "name=exits", *TYPED)
    assert code == 2
    assert "ours (method.py, line 4): expected to run without an error, got SystemExit: 0" in said


def test_what_a_loss_returns_is_checked_before_its_teacher_is_trained(here, invoke):
    (here / "method.py").write_text(METHOD.replace("return losses", "yield losses"), encoding="utf-8")
    first = "teacher={train: {model: 'mlp:16', epochs: 1}}"
    code, _, said = invoke("distill", "student=mlp:8", first, f"objective={OURS}", "name=yields", *TYPED)
    assert code == 2
    assert "got generator" in said
    assert not (here / "runs").exists()


class Stops(tutelage.Reporter):
    """Stops a run after its first epoch."""

    def note(self, text):
        raise KeyboardInterrupt


def test_an_interrupted_run_is_not_resumed_with_another_file(here, teacher):
    named = {"student": "mlp:8", "teacher": teacher, **FAST, "epochs": 3, "trust_code": True, "objective": OURS}
    with pytest.raises(KeyboardInterrupt):
        tutelage.distill(name="cut", **{**named, "display": Stops()})
    (here / "method.py").write_text(METHOD.replace("2.0", "3.0"), encoding="utf-8")
    with refused(RecipeError, "name", got="objective.0.sha256"):
        tutelage.distill(name="cut", **named)
    (here / "method.py").write_text(METHOD, encoding="utf-8")
    whole = tutelage.distill(name="whole", **named)
    resumed = tutelage.distill(name="cut", **named)
    assert weights(resumed.folder) == weights(whole.folder)


def test_comparisons_studies_searches_and_recorded_outputs(here, teacher, invoke):
    shared = {"data": "digits", "epochs": 1, "batch_size": 512, "device": "cpu", "weak_teacher": True}
    of_both = {"kd": "kd", "mine": {OURS: {"weight": 2}}}
    compared = {"name": "both", "student": "mlp:8", "teacher": teacher, "objectives": of_both, "seeds": 1, **shared}
    (here / "both.yaml").write_text(yaml.safe_dump(compared), encoding="utf-8")
    assert invoke("compare", "both.yaml")[0] == 2
    code, _, said = invoke("compare", "both.yaml", "--trust-code")
    assert code == 0, said
    assert [*(here / "runs" / "both").glob("mine*/student.safetensors")]

    pairs = {"16/8": {"teacher": "mlp:16", "student": "mlp:8"}}
    study = {"name": "small", "protocol": shared, "pairs": pairs, "methods": {"mine": of_both["mine"]}, "seeds": 1}
    (here / "small.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
    code, _, said = invoke("study", "small.yaml")
    assert code == 2
    assert "consent to run the code" in said
    code, out, said = invoke("study", "small.yaml", "--trust-code")
    assert code == 0, out + said
    assert [*(here / "runs").rglob("*mine*/student.safetensors")]

    recipe = {"name": "alone", "student": "mlp:8", "teacher": teacher, "objective": OURS, **shared}
    recipe["data"] = {"source": "digits", "validation": 0.2}
    (here / "alone.yaml").write_text(yaml.safe_dump({**recipe, "outputs": "outputs"}), encoding="utf-8")
    assert invoke("record", "alone.yaml")[0] == 2
    code, _, said = invoke("record", "alone.yaml", "--trust-code")
    assert code == 0, said
    assert invoke("distill", "alone.yaml", "--trust-code")[0] == 0


@pytest.mark.slow
def test_a_search(here, teacher, invoke):
    pytest.importorskip("optuna")
    value = {"name": "s", "student": "mlp:8", "teacher": teacher, "objective": {OURS: {"weight": 1}}, "epochs": 1}
    value |= {"data": {"source": "digits", "validation": 0.2}, "batch_size": 512, "device": "cpu"}
    (here / "s.yaml").write_text(yaml.safe_dump(value), encoding="utf-8")
    searched = ("--search", f"objective.{OURS}.weight=0.5..4", "--trials", "2", "--confirm", "0")
    assert invoke("tune", "s.yaml", *searched)[0] == 2
    code, out, said = invoke("tune", "s.yaml", "--trust-code", *searched)
    assert code == 0, out + said
    code, out, said = invoke("tune", "s.yaml", "name=t", "--trust-code", "--trials", "2", "--confirm", "0")
    assert code == 0, out + said
