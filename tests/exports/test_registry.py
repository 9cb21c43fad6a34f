"""Names of formats, and what is refused before anything is loaded."""

import os

import pytest
from tests._helpers.refusals import refused

from tutelage import errors
from tutelage.errors import InvalidValueError, MissingExtraError, NotFoundError
from tutelage.exports import registry


def test_each_format_has_its_module():
    for name in registry.FORMATS:
        writer = registry.writer_of(name)
        assert callable(writer.write)
        assert callable(writer.reopen)


def test_a_format_that_is_none_is_refused_with_the_nearest():
    with refused(InvalidValueError, "to", got="'onx'", suggests="onnx"):
        registry.format_of("onx")
    with refused(InvalidValueError, "int8", got="safetensors"):
        registry.format_of("safetensors", int8=True)


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(errors, "find_spec", lambda name: None if name == "onnxscript" else name)
    with refused(MissingExtraError, "to", got="'onnxscript'", suggests="tutelage[onnx]"):
        registry.format_of("onnx")


@pytest.mark.parametrize(
    ("options", "name"),
    [({}, "rose.onnx"), ({"int8": True}, "rose-int8.onnx"), ({"best": True, "int8": True}, "rose-best-int8.onnx")],
)
def test_a_file_is_put_into_exports_of_the_run(tmp_path, options, name):
    (tmp_path / "rose").mkdir()
    path = registry.destination(str(tmp_path / "rose"), "onnx", None, **options)
    assert path == tmp_path / "rose" / "exports" / name


def test_where_else_a_file_may_go(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(registry.destination("timm:resnet18.a1_in1k", "torch-export", None)) == "timm-resnet18.a1_in1k.pt2"
    assert registry.destination("mlp:8", "onnx", tmp_path) == tmp_path / "mlp-8.onnx"
    assert registry.destination("mlp:8", "onnx", tmp_path / "new" / "a.onnx") == tmp_path / "new" / "a.onnx"


def test_places_that_are_refused(tmp_path, monkeypatch):
    there = tmp_path / "a.onnx"
    there.write_bytes(b"another's")
    with refused(InvalidValueError, "output", got=there, suggests="--force"):
        registry.destination("mlp:8", "onnx", there)
    assert registry.destination("mlp:8", "onnx", there, force=True) == there
    with refused(InvalidValueError, "output", suggests=tmp_path / "a.onnx"):
        registry.destination("mlp:8", "onnx", tmp_path / "a.bin")
    with refused(InvalidValueError, "output", got=there):
        registry.destination("mlp:8", "onnx", there / "c.onnx")
    with refused(InvalidValueError, "output", got="a folder"):
        (tmp_path / "b.onnx" / "mlp-8.onnx").mkdir(parents=True)
        registry.destination("mlp:8", "onnx", tmp_path / "b.onnx", force=True)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OSError, match="a folder that can be written to"):
        registry.destination("mlp:8", "onnx", tmp_path / "c.onnx")


def test_models_that_are_refused(tmp_path, monkeypatch):
    with refused(InvalidValueError, "model", got="onnx:a.onnx"):
        registry.check_model("onnx:a.onnx", data=True)
    with refused(NotFoundError, "model", got="'runs/nowhere'"):
        registry.check_model("runs/nowhere", data=False)
    with refused(InvalidValueError, "model", got="student.safetensors"):
        registry.check_model(str(tmp_path), data=False)
    with refused(InvalidValueError, "data.source", got="none"):
        registry.check_model("mlp:8", data=False)
    registry.check_model("mlp:8", data=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with refused(InvalidValueError, "export", got="2"):
        registry.check_model("mlp:8", data=True)
