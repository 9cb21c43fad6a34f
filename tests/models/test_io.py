import argparse
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from tests._helpers.refusals import refused
from torch import nn

from tutelage import models
from tutelage.errors import InvalidTypeError, InvalidValueError, NotFoundError
from tutelage.models import create, fingerprint, load, parameters, read
from tutelage.models.io import describe


@pytest.fixture
def teacher():
    return create("cifar:resnet8", classes=10, seed=5)


def same(first, second):
    return fingerprint(first) == fingerprint(second)


class Bomb:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda sd: sd,
        lambda sd: {"model": sd, "epoch": 3, "opt": argparse.Namespace(lr=0.1)},
        lambda sd: {"state_dict": sd, "optimizer": {"lr": [0.1]}},
        lambda sd: {"net": sd, "acc": 93.1},
        lambda sd: {"weights": sd, "epoch": 3},
        lambda sd: {k: v for k, v in sd.items() if not k.endswith("num_batches_tracked")},
    ],
    ids=["bare", "model", "state_dict", "net", "another key", "old batch norm"],
)
def test_checkpoints_as_training_scripts_write_them(teacher, tmp_path, wrap):
    path = tmp_path / "x.pth"
    torch.save(wrap(dict(teacher.network.state_dict())), path)
    read_back = create("cifar:resnet8", classes=10, weights=path)
    assert same(read_back, teacher)
    assert read_back.card.weights == "x.pth"
    assert not read_back.card.fresh_head


def prefixed(prefix, state):
    return {f"{prefix}{name}": value for name, value in state.items()}


PREFIXES = ["module.", "_orig_mod.", "network.", "model.", "student.", "backbone.", "module._orig_mod.", "a.b_c.0.net."]


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"state_dict": state, "epoch": 3}])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_any_prefix_before_all_names_is_dropped_and_said(teacher, tmp_path, prefix, wrap):
    path = tmp_path / "x.pth"
    torch.save(wrap(prefixed(prefix, teacher.network.state_dict())), path)
    with pytest.warns(UserWarning, match=f"x.pth: the prefix '{prefix}' is dropped") as caught:
        read_back = create("cifar:resnet8", classes=10, weights=path)
    assert len(caught) == 1
    assert same(read_back, teacher)
    assert read_back.card.weights == "x.pth"


def other_parts():
    other = create("cifar:resnet14", classes=10).network.state_dict()
    wide = create("cifar:resnet8x4", classes=10).network.state_dict()
    return [
        ({"n_averaged": torch.tensor(3)}, 1),
        ({"criterion.weight": torch.ones(10)}, 1),
        (prefixed("student.", other), len(other)),
        (prefixed("student.", wide), len(wide)),
    ]


@pytest.mark.parametrize(("others", "count"), other_parts(), ids=["average", "loss", "other names", "other shapes"])
def test_the_one_part_that_fits_is_taken(teacher, tmp_path, others, count):
    path = tmp_path / "x.ckpt"
    torch.save({"state_dict": {**others, **prefixed("teacher.", teacher.network.state_dict())}}, path)
    with pytest.warns(UserWarning, match=f"'teacher.' is dropped from all names, and {count} tensors"):
        assert same(create("cifar:resnet8", classes=10, weights=path), teacher)


@pytest.mark.parametrize("keyed", [False, True])
def test_several_parts_that_fit_are_refused(teacher, tmp_path, keyed):
    path, state = tmp_path / "x.ckpt", teacher.network.state_dict()
    both = {"student": state, "teacher": state}
    torch.save(both if keyed else {**prefixed("student.", state), **prefixed("teacher.", state)}, path)
    with refused(InvalidValueError, "weights", got=["2", path, "student., teacher."], suggests="x.ckpt#student"):
        create("cifar:resnet8", classes=10, weights=path)


def test_names_that_do_not_fit_are_counted_without_their_prefix(teacher, tmp_path):
    path = tmp_path / "x.pth"
    torch.save(prefixed("module.net.", teacher.network.state_dict()), path)
    with refused(InvalidValueError, "weights", got=["30 of 92", "layer1.1.conv1.weight"]) as caught:
        create("cifar:resnet14", weights=path)
    assert "unexpected" not in caught.value.got


def test_a_new_head_behind_a_prefix(teacher, tmp_path):
    path = tmp_path / "x.pth"
    torch.save(prefixed("student.", teacher.network.state_dict()), path)
    with pytest.warns(UserWarning, match="'student.'"):
        tuned = create("cifar:resnet8", classes=37, weights=path)
    assert (tuned.card.classes, tuned.card.fresh_head) == (37, True)


def test_safetensors(teacher, tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file(teacher.network.state_dict(), path)
    assert same(create("cifar:resnet8", classes=10, weights=str(path)), teacher)


def test_the_legacy_format(teacher, tmp_path):
    path = tmp_path / "x.pth"
    torch.save(teacher.network.state_dict(), path, _use_new_zipfile_serialization=False)
    assert same(create("cifar:resnet8", classes=10, weights=path), teacher)


def test_a_network_whose_own_names_have_the_prefix(tmp_path):
    network = nn.Sequential()
    network.add_module("module", nn.Linear(2, 3))
    load(network, {"module.weight": torch.ones(3, 2), "module.bias": torch.ones(3)})
    assert torch.all(network.module.weight == 1)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_is_refused(tmp_path, protocol, zipped):
    target, path = tmp_path / "ran", tmp_path / "x.pth"
    content = {"model": {"conv1.weight": torch.ones(1)}, "extra": Bomb(target)}
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    with refused(InvalidValueError, "weights", got=f"{os.mkdir.__module__}.mkdir" if protocol == 2 else path) as caught:
        create("cifar:resnet8", weights=path)
    assert "\n" not in str(caught.value)
    assert not target.exists()


def test_a_bare_pickle_that_would_run_code_is_refused(tmp_path):
    target, path = tmp_path / "ran", tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(Bomb(target), protocol=2))
    with refused(InvalidValueError, "weights", got=f"{os.mkdir.__module__}.mkdir"):
        read(path)
    assert not target.exists()


def test_a_whole_pickled_module_is_refused(teacher, tmp_path):
    path = tmp_path / "x.pth"
    torch.save(teacher.network, path)
    with refused(InvalidValueError, "weights", got="tutelage.models.networks.resnet.ResNet"):
        read(path)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("kept", [0, 9, 1000, 0.5, 0.99])
def test_a_file_that_is_cut_off(teacher, tmp_path, suffix, kept):
    path = tmp_path / f"x.{suffix}"
    save = safetensors.torch.save_file if suffix == "safetensors" else torch.save
    save(teacher.network.state_dict(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: kept if isinstance(kept, int) else int(kept * len(whole))])
    with refused(InvalidValueError, "weights", got=[path, f"{path.stat().st_size} bytes"]) as caught:
        read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "noise", [b"hello world, this is no checkpoint", b"\x80\x04\x95", b"{}", b"PK\x03\x04" + b"1" * 99]
)
def test_a_file_of_something_else(tmp_path, noise):
    path = tmp_path / "x.bin"
    path.write_bytes(noise)
    with refused(InvalidValueError, "weights", got=f"{len(noise)} bytes"):
        read(path)


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [torch.ones(1)], torch.ones(2), {"model": {}}])
def test_a_file_without_a_state(tmp_path, content):
    path = tmp_path / "x.pth"
    torch.save(content, path)
    with refused(InvalidValueError, "weights"):
        read(path)


def test_no_file(tmp_path):
    with refused(NotFoundError, "weights", got="nothing.pth"):
        create("cifar:resnet8", weights=tmp_path / "nothing.pth")
    with refused(NotFoundError, "weights", got=tmp_path):
        read(tmp_path)


def test_another_architecture(teacher, tmp_path):
    path = tmp_path / "x.pth"
    torch.save(teacher.network.state_dict(), path)
    keys = ["layer1.1.conv1.weight", "layer1.1.bn1.weight", "layer1.1.bn1.bias"]
    with refused(InvalidValueError, "weights", got=["30 of 92", *keys]):
        create("cifar:resnet14", weights=path)
    shapes = ["5 of 62", "conv1.weight", "[16, 3, 3, 3]", "[32, 3, 3, 3]"]
    with refused(InvalidValueError, "weights", got=shapes, suggests="tutelage list models") as caught:
        create("cifar:resnet8x4", classes=10, weights=path)
    assert "47 " not in caught.value.got
    assert "\n" not in str(caught.value)
    torch.save(create("cifar:resnet14").network.state_dict(), path)
    with refused(InvalidValueError, "weights", got=[36, "layer1.1.conv1.weight"]):
        create("cifar:resnet8", weights=path)


def test_another_number_of_classes_says_what_to_type(teacher, tmp_path):
    path = tmp_path / "x.pth"
    torch.save(teacher.network.state_dict(), path)
    with refused(InvalidValueError, "weights", got=["fc.weight", "[10, 64]", "[100, 64]"], suggests="classes=10"):
        create("cifar:resnet8", weights=path)


def test_fine_tuning_keeps_the_body_and_replaces_the_head(teacher, tmp_path):
    path = tmp_path / "x.pth"
    torch.save(teacher.network.state_dict(), path)
    tuned = create("cifar:resnet8", classes=37, weights=path, seed=1)
    assert tuned.card.classes == 37
    assert tuned.card.fresh_head
    body = {k: v for k, v in tuned.network.state_dict().items() if not k.startswith("fc.")}
    assert same(body, {k: v for k, v in teacher.network.state_dict().items() if not k.startswith("fc.")})
    assert tuned(torch.rand(2, 3, 32, 32)).shape == (2, 37)
    tuned, again = (create("cifar:resnet8", classes=37, weights=path, seed=1) for _ in range(2))
    other = create("cifar:resnet8", classes=37, weights=path, seed=2)
    assert same(tuned, again)
    assert not torch.equal(tuned.network.fc.weight, other.network.fc.weight)


def test_fingerprint_sees_the_bits_and_nothing_else(teacher):
    network = teacher.network
    before = fingerprint(network)
    assert len(before) == 16
    assert before == fingerprint(teacher) == fingerprint(network.state_dict())
    assert before == fingerprint(dict(reversed(network.state_dict().items())))
    assert before == fingerprint(network.to(memory_format=torch.channels_last))
    assert not network.layer1[0].conv1.weight.is_contiguous()
    with torch.no_grad():
        network.fc.bias[3] = torch.nextafter(network.fc.bias[3], torch.tensor(9.0))
    assert fingerprint(network) != before


def test_fingerprint_sees_names_dtypes_and_shapes():
    value = torch.zeros(4)
    states = [
        {"a": value},
        {"b": value},
        {"a": value.reshape(2, 2)},
        {"a": value.half()},
        {"a": value.to(torch.bfloat16)},
        {"a": torch.zeros(4, dtype=torch.int32)},
        {"a": value[:2], "b": value[:2]},
        {"a": torch.tensor(0.0)},
        {"a": torch.zeros(0)},
        {"a": torch.zeros(4, dtype=torch.bool)},
    ]
    assert len({fingerprint(state) for state in states}) == len(states)


def test_fingerprint_is_written_down():
    """A known value: fingerprints in manifests must mean the same in every version."""
    state = {"b": torch.arange(6, dtype=torch.float32).reshape(2, 3), "a": torch.tensor(3)}
    import hashlib

    expected = hashlib.sha256(
        b"a\0torch.int64\0()\0"
        + np.int64(3).tobytes()
        + b"b\0torch.float32\0(2, 3)\0"
        + np.arange(6, dtype="<f4").tobytes()
    )
    assert fingerprint(state) == expected.hexdigest()[:16]


def test_fingerprint_refuses_extra_state():
    with refused(InvalidTypeError, "state", got=["dict", "'x'"]):
        fingerprint({"x": {}})


def test_parameters_are_counted_once_and_without_buffers():
    shared = nn.Linear(3, 4)
    assert parameters(nn.Sequential(shared, nn.BatchNorm1d(4), shared)) == 16 + 8


@pytest.mark.parametrize(
    "change",
    [
        {"card": {"margin": 1e308}},
        {"card": {"margin": -1}},
        {"outputs": {"chosen": [0, 1, 2], "of": 10**10}},
        {"base": {"fingerprint": "x", "seed": -(10**30)}},
    ],
)
def test_a_packed_file_with_a_hostile_header_is_refused_by_its_own_name(change, tmp_path):
    classifier = models.create("mlp:4", classes=3, image_size=(4, 4))
    described = describe(classifier)
    described |= {key: {**described.get(key, {}), **value} for key, value in change.items()}
    path = tmp_path / "x.safetensors"
    path.write_bytes(models.pack(classifier, {"student.json": json.dumps(described)}))
    with pytest.raises(InvalidValueError, match=str(path)):
        models.create(str(path))


def averaged(state):
    return {name: torch.zeros_like(value) for name, value in state.items()}


def indexed(folder, state, save, stem, end):
    """Write a state in two files and their index, as transformers does."""
    folder.mkdir()
    names, files = list(state), [f"{stem}-0000{k}-of-00002.{end}" for k in (1, 2)]
    places = {name: files[k % 2] for k, name in enumerate(names)}
    for file in files:
        save({name: state[name] for name in names if places[name] == file}, folder / file)
    index = folder / f"{stem}.{end}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


def in_folder(folder, name, save, state):
    folder.mkdir()
    save(state, folder / name)
    save({"param_groups": torch.ones(1)}, folder / "optimizer.bin")
    return folder


def saved(path, value):
    torch.save(value, path)
    return path


TENSORS = safetensors.torch.save_file
RESULTS = {"metric": np.float64(0.5), "curve": np.arange(3), "args": argparse.Namespace(out=Path("runs"))}
KINDS = {
    "the results of a script": lambda f, s: saved(f / "x.pt", {"state_dict": s, **RESULTS}),
    "model_state_dict": lambda f, s: saved(f / "x.pt", {"model_state_dict": s, "loss": torch.tensor(1.0)}),
    "averages alone": lambda f, s: saved(f / "x.pt", {"state_dict_ema": s, "epoch": 3}),
    "two levels": lambda f, s: saved(f / "x.pt", {"checkpoint": {"state_dict": s}, "epoch": 3}),
    "a key": lambda f, s: f"{saved(f / 'x.tar', {'state_dict': averaged(s), 'state_dict_ema': s})}#state_dict_ema",
    "a prefix as a key": lambda f, s: f"{saved(f / 'x.pt', prefixed('m.q.', s) | prefixed('m.k.', averaged(s)))}#m.q",
    "accelerate": lambda f, s: in_folder(f / "x", "model.safetensors", TENSORS, s),
    "accelerate, pickled": lambda f, s: in_folder(f / "x", "pytorch_model.bin", torch.save, s),
    "an index": lambda f, s: indexed(f / "x", s, TENSORS, "model", "safetensors"),
    "an index, pickled": lambda f, s: indexed(f / "x", s, torch.save, "pytorch_model", "bin"),
    "a folder with an index": lambda f, s: indexed(f / "x", s, TENSORS, "model", "safetensors").parent,
    "a run's folder": lambda f, s: in_folder(f / "x", "student.safetensors", TENSORS, s),
}


@pytest.mark.parametrize("kind", KINDS)
def test_files_and_folders_of_other_tools(teacher, tmp_path, kind):
    assert same(create("cifar:resnet8", classes=10, weights=KINDS[kind](tmp_path, state_of(teacher))), teacher)


def state_of(classifier):
    return {name: value.clone() for name, value in classifier.network.state_dict().items()}


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict"])
def test_averages_beside_the_weights_are_left_out_and_said(teacher, tmp_path, key):
    path = saved(tmp_path / "x.pt", {key: state_of(teacher), "ema": averaged(state_of(teacher))})
    with pytest.warns(UserWarning, match=f"{key} is taken, and ema left out; type {path}#ema"):
        assert same(create("cifar:resnet8", classes=10, weights=path), teacher)


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_wrappers_of_single_layers_leave_the_names(teacher, tmp_path, wrapper):
    state = {name.replace("layer1.", f"layer1.{wrapper}."): value for name, value in state_of(teacher).items()}
    path = saved(tmp_path / "x.pt", state)
    with pytest.warns(UserWarning, match="wrappers"):
        assert same(create("cifar:resnet8", classes=10, weights=path), teacher)


def test_the_newest_checkpoint_of_a_run_and_a_sharded_one(teacher, tmp_path):
    state = prefixed("lesson.student.network.", state_of(teacher)) | {"optimizer.0.exp_avg": torch.ones(2)}
    for step, values in ((6, averaged(state)), (12, state)):
        folder = tmp_path / "run" / "checkpoints" / f"00-{step:09d}"
        folder.mkdir(parents=True)
        safetensors.torch.save_file(values, folder / "tensors.safetensors")
    for path in (tmp_path / "run", folder.parent, folder):
        with pytest.warns(UserWarning, match="1 tensors without it left out"):
            assert same(create("cifar:resnet8", classes=10, weights=path), teacher)
    (folder / "shards").mkdir()
    with refused(InvalidValueError, "weights", got=folder, suggests="student.safetensors"):
        create("cifar:resnet8", classes=10, weights=tmp_path / "run")


def test_a_network_without_a_head_gets_a_new_one_where_it_is_trained(teacher, tmp_path):
    body = {name: value for name, value in state_of(teacher).items() if not name.startswith("fc.")}
    path = saved(tmp_path / "x.pt", prefixed("encoder.", body) | {"queue": torch.ones(2)})
    with pytest.warns(UserWarning, match="'encoder.' is dropped"):
        tuned = create("cifar:resnet8", classes=5, weights=path, seed=3)
    assert tuned.card.fresh_head
    assert tuned.network.fc.out_features == 5
    assert torch.equal(tuned.network.conv1.weight, body["conv1.weight"])
    with pytest.warns(UserWarning, match="'encoder.' is dropped"):
        again = create("cifar:resnet8", classes=5, weights=path, seed=3)
    assert same(again, tuned)
    bare = saved(tmp_path / "bare.pt", body)
    with refused(InvalidValueError, "weights", got=["2 of 56", "fc.weight"]):
        create("cifar:resnet8", classes=5, weights=bare, as_trained={"classes"})
    del body["conv1.weight"]
    with refused(InvalidValueError, "weights", got="conv1.weight"):
        create("cifar:resnet8", classes=5, weights=saved(tmp_path / "y.pt", body))


def test_tensors_that_a_network_shares_may_stand_once():
    def tied():
        network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        network[1].weight = network[0].weight
        return network

    first, second = tied(), tied()
    state = first.state_dict()
    del state["1.weight"]
    load(second, state)
    assert torch.equal(second[1].weight, first[0].weight)
    with refused(InvalidValueError, "weights", got="1.weight"):
        load(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), state)


@pytest.mark.parametrize(
    ("places", "got"),
    [
        ({"a": "../x.bin"}, "'../x.bin'"),
        ({"a": 3}, "3"),
        ({}, "no names"),
        ({"a": "x.bin", "b": "x.bin"}, ["1", "b"]),
    ],
)
def test_an_index_that_does_not_fit_its_files(tmp_path, places, got):
    torch.save({"a": torch.ones(1)}, tmp_path / "x.bin")
    (tmp_path / "m.index.json").write_text(json.dumps({"weight_map": places}))
    with refused(InvalidValueError, "weights", got=got):
        read(tmp_path / "m.index.json")
    (tmp_path / "m.index.json").write_text(json.dumps({"weight_map": {"a": "gone.bin"}}))
    with refused(NotFoundError, "weights", got=tmp_path / "gone.bin"):
        read(tmp_path / "m.index.json")


def test_a_folder_without_weights_names_what_is_there(tmp_path):
    with refused(NotFoundError, "weights", got=tmp_path, suggests="name a file"):
        read(tmp_path)
    torch.save({}, tmp_path / "epoch3.pth")
    with refused(NotFoundError, "weights", suggests=tmp_path / "epoch3.pth"):
        read(tmp_path)
    (tmp_path / "__0_0.distcp").touch()
    with refused(NotFoundError, "weights", suggests="torch.distributed.checkpoint.format_utils"):
        read(tmp_path)


def test_a_key_that_is_not_there_lists_those_that_are(teacher, tmp_path):
    path = saved(tmp_path / "x.pt", {"state_dict": state_of(teacher), "epoch": 3})
    with refused(InvalidValueError, "weights", got=["state_dict", "epoch"], suggests=f"{path}#KEY"):
        read(f"{path}#ema")
