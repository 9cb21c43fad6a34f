"""What takes room is listed and removed, and nothing else is."""

import io
import subprocess
import sys

import pytest
import torch

from tutelage import records
from tutelage.data import cache
from tutelage.images import Layout
from tutelage.runs.lock import folder_lock
from tutelage.teacher_cache.cache import TeacherCache
from tutelage.teacher_cache.top_k import TopK

KEY = "0" * 32


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    """A folder of recorded outputs that a run reads, pixels, and a copy of a shard."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "elsewhere"
    recorded = TeacherCache(folder, {"teacher": {"name": "big"}, "data": "digits"}, samples=4)
    recorded.write(0, range(4), torch.randn(4, 3), {})
    run = tmp_path / "runs" / "student"
    run.mkdir(parents=True)
    (run / records.RECIPE).write_text(f"name: student\noutputs: {folder}\n")
    assert cache.save(KEY, Layout(8, 8, 3, 1.0), {}, source="imagefolder:flowers")
    (tmp_path / "cache" / "shards").mkdir()
    (tmp_path / "cache" / "shards" / KEY).write_bytes(b"tar")
    return folder


def test_list_says_what_each_is_of_without_torch(outputs):
    code = "import sys\nfrom tutelage.cli import app\nsys.argv = ['tutelage', 'cache', 'list']\n"
    code += "try:\n app.main()\nfinally:\n assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "outputs" in lines[0]
    assert f"{outputs}  big, 4 samples, read by 1 run" in lines[0]
    assert KEY in lines[1]
    assert "imagefolder:flowers" in lines[1]
    assert "shards" in lines[2]
    assert lines[3] == "0.0 MB in all"


def test_remove_takes_what_was_written_and_leaves_what_was_not(outputs, invoke):
    (outputs / "mine.txt").write_text("mine")
    code, out, err = invoke("cache", "remove", str(outputs), "--yes")
    assert code == 0, err
    assert "mine.txt" in out
    assert [path.name for path in outputs.rglob("*")] == ["mine.txt"]
    assert invoke("cache", "remove", "shards", KEY, "--yes")[0] == 0
    assert invoke("cache", "list")[1] == "0.0 MB in all\n"


def test_another_json_of_that_name_is_not_ours(outputs, invoke):
    (outputs / records.OUTPUTS).write_text('{"key": "value"}')
    code, _, err = invoke("cache", "remove", str(outputs), "--yes")
    assert code == 2
    assert "a name that list prints" in err
    assert (outputs / "epoch-0000").is_dir()


@pytest.mark.parametrize("held", ["elsewhere", "runs/student"])
def test_what_another_process_uses_stays(outputs, invoke, held):
    with folder_lock(outputs.parent / held):
        code, _, err = invoke("cache", "remove", "--kind", "outputs", "--all", "--yes")
    assert code == 2
    assert "expected what no other process is using" in err
    assert list(outputs.glob("epoch-*/*.safetensors"))


def test_only_what_is_old_or_agreed_to_goes(outputs, invoke, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert invoke("cache", "remove", "--kind", "shards", "--older-than", "1d", "--yes")[0] == 0
    code, _, err = invoke("cache", "remove", "--kind", "shards", "--all")
    assert code == 2
    assert "expected an answer at a terminal, or --yes" in err
    assert (outputs.parent / "cache" / "shards" / KEY).exists()


@pytest.mark.parametrize(
    "typed",
    [("lost",), ("remove",), ("remove", "--kind", "outputs"), ("list", "--kind", "x"), ("list", "--older-than", "3")],
)
def test_mistakes(outputs, invoke, typed):
    code, _, err = invoke("cache", *typed)
    assert code == 2
    assert err.count("tutelage: ") == 1


def test_a_record_is_exported_as_the_hub_lays_it_out(outputs, invoke):
    parquet = pytest.importorskip("pyarrow.parquet", reason="the optional package pyarrow is not installed")
    code, out, err = invoke("cache", "export", str(outputs), "out")
    assert code == 0, err
    assert out.startswith("out: 1 Parquet files")
    table = parquet.read_table("out/data/train-00000-of-00001.parquet").to_pydict()
    cache = TeacherCache(outputs, {"teacher": {"name": "big"}, "data": "digits"}, samples=4)
    (chunk,) = cache.read(0, "logits")
    assert table["sample"] == [0, 1, 2, 3]
    assert table["logits"] == (chunk["values"].float() + chunk["mean"]).tolist()
    assert invoke("cache", "export", str(outputs), "out")[0] == 2


def test_exported_positions_are_lists_of_their_sample(outputs, invoke):
    parquet = pytest.importorskip("pyarrow.parquet", reason="the optional package pyarrow is not installed")
    logits, form = torch.randn(3, 9), TopK(kept=2, classes=9, bound=1.0)
    recorded = TeacherCache(outputs.parent / "tokens", {"data": "text"}, samples=2, form=form, ragged=True)
    recorded.write(0, range(2), logits, {}, counts=torch.tensor([1, 2]))
    code, _, err = invoke("cache", "export", "tokens", "out")
    assert code == 0, err
    table = parquet.read_table("out/data/train-00000-of-00001.parquet").to_pydict()
    top = logits.log_softmax(-1).topk(2)
    assert table["classes"] == [top.indices[:1].tolist(), top.indices[1:].tolist()]
    assert [len(each) for each in table["logprobs"]] == [1, 2]
