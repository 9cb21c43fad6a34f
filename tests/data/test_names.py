"""Names of sources, read without numpy and torch."""

import pytest

from tutelage.data import DataSettings, names, open_data
from tutelage.errors import InvalidValueError, NotFoundError


@pytest.mark.parametrize(
    "source",
    ["digits", "hf:org/name", "torchvision:CIFAR10", "torchvision:no_such_name", "parquet:https://example.org/{0..9}"],
)
def test_what_a_library_may_have_is_left_to_it(source):
    names.check(source)


@pytest.mark.parametrize(
    ("source", "kind", "instead"),
    [
        ("digit", InvalidValueError, "type data.source=digits"),
        ("digits:x", InvalidValueError, "type data.source=digits"),
        ("hf:", InvalidValueError, "type data.source=hf:<hub id or folder>"),
        ("imagefoler:x", InvalidValueError, "type data.source=imagefolder:<path>"),
        ("imagefolder:nowhere", NotFoundError, "check the path"),
        ("hf:./nowhere", NotFoundError, "check the path"),
        ("hf:~/nowhere", NotFoundError, "check the path"),
        ("webdataset:nowhere-{0..2}.tar", NotFoundError, "check the path"),
        ("parquet:nowhere-*.parquet", NotFoundError, "check the path"),
    ],
)
def test_what_nothing_has_is_refused_as_it_is_when_it_is_opened(source, kind, instead):
    with pytest.raises(kind) as early:
        names.check(source)
    assert (early.value.what, early.value.instead) == ("data.source", instead)
    if not source.startswith("hf:."):  # the library that would be asked is not installed everywhere
        with pytest.raises((kind, ImportError)) as late:
            open_data(DataSettings(source=source))
        assert str(late.value) == str(early.value) or isinstance(late.value, ImportError)


def test_a_folder_is_found(tmp_path):
    assert names.image_folder(str(tmp_path)) == names.local_folder(str(tmp_path)) == tmp_path
    assert names.local_folder("org/name") is None
