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


@pytest.mark.parametrize(
    ("source", "suggests"),
    [
        ("cifar100", "type data.source=torchvision:CIFAR100 or data.source=hf:uoft-cs/cifar100"),
        ("Fashion-MNIST", "type data.source=torchvision:FashionMNIST or data.source=hf:zalando-datasets/fashion_mnist"),
        ("fancyzhx/ag_news", "type data.source=hf:fancyzhx/ag_news"),
        ("torchvision:cifar100", "type data.source=torchvision:CIFAR100"),
        ("flowers", "type data.source=imagefolder:flowers"),
        ("csv:flowers", "type data.source=imagefolder:flowers"),
        ("imagefolder:rows.csv", "type data.source=csv:rows.csv"),
        ("rows.csv", "type data.source=csv:rows.csv"),
        ("shards", "type data.source=hf:shards"),
        ("scenes", "type data.source=masks:scenes"),
    ],
)
def test_a_refusal_names_the_source_that_has_it(source, suggests, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for file in ("flowers/train/rose/1.jpg", "rows.csv", "shards/data/a.parquet", "scenes/masks/1.png"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    with pytest.raises((InvalidValueError, NotFoundError)) as error:
        names.check(source)
    assert error.value.instead == suggests
