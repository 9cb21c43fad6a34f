"""Names of models, read without torch."""

import pytest

from tutelage import records
from tutelage.errors import InvalidValueError, NotFoundError
from tutelage.models import create, names


@pytest.mark.parametrize("name", ["cifar:resnet20", "mlp:64x32", "timm:resnet18", "hf:no/such-name"])
def test_what_a_library_may_have_is_left_to_it(name):
    names.check(name)


@pytest.mark.parametrize(
    ("name", "kind", "got"),
    [
        ("cifar:resnet21", InvalidValueError, "'cifar:resnet21'"),
        ("cifar:", InvalidValueError, "'cifar:'"),
        ("resnet20", InvalidValueError, "'resnet20'"),
        ("", InvalidValueError, "''"),
        ("mlp:0x4", InvalidValueError, "'mlp:0x4'"),
        ("mlp:9999999999", InvalidValueError, "'mlp:9999999999'"),
        ("file:net.py", InvalidValueError, "'file:net.py'"),
        ("file:net.py:make", InvalidValueError, "none"),
        ("runs/nothing", NotFoundError, "'runs/nothing', which is not there"),
    ],
)
def test_what_nothing_has_is_refused_as_it_is_when_it_is_made(name, kind, got, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind) as early:
        names.check(name)
    assert (early.value.what, early.value.got) == ("model", got)
    with pytest.raises(kind) as late:
        create(name, classes=10, image_size=(8, 8))
    assert str(late.value) == str(early.value)


def test_a_file_s_code_is_trusted_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "file:net.py:make"
    with pytest.raises(NotFoundError, match="expected a Python file"):
        names.check(name, trust_code=frozenset([name]))
    (tmp_path / "net.py").touch()
    names.check(name, trust_code=True)
    with pytest.raises(InvalidValueError, match="--trust-code"):
        names.check(name, trust_code=frozenset(["file:other.py:make"]))


def test_the_folder_of_a_run_needs_its_student(tmp_path):
    with pytest.raises(InvalidValueError, match="finish the run"):
        names.check(str(tmp_path))
    for file in (records.STUDENT, records.CARD):
        (tmp_path / file).touch()
    names.check(str(tmp_path))


def test_weights_are_a_file(tmp_path):
    with pytest.raises(NotFoundError) as error:
        names.weights_file(tmp_path)
    assert error.value.what == "weights"
