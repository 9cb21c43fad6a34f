"""Types: tuples that other libraries walk, and protocols that the packages implement."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from dataclasses import fields
from typing import get_type_hints

import pytest
import torch
from accelerate.utils import recursively_apply, send_to_device
from torch import nn
from torch.utils.data import DataLoader

from tutelage import data, modules, objectives, types
from tutelage.types import (
    UNLABELLED,
    Batch,
    Batches,
    Loss,
    Outputs,
    Progress,
    Projection,
    Requirements,
    Teacher,
    Totals,
    View,
)


def example():
    return Batch(torch.arange(3), torch.rand(3, 1, 4, 4), torch.tensor([0, 1, UNLABELLED]))


TAPS = ("student_taps", "teacher_taps")


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (Batch, ("index", "inputs", "labels", "view", "counted")),
        (Outputs, ("logits", "taps", "hidden", "sparse")),
        (Progress, ("epoch", "step", "fraction", "scheduled")),
        (Totals, ("samples", "labelled", "positions")),
        (Loss, ("total", "parts")),
        (
            Requirements,
            (
                *("teacher", "labels", "coupled", *TAPS, "projections", "teacher_statistics", "indices"),
                *("teacher_head", "teacher_norms", "class_means", "min_batch", "host_waits", "sparse"),
                *("embeddings", "members", "views", "other_vocabulary", "same_tokens"),
            ),
        ),
        (Projection, ("student", "teacher", "kind", "always")),
    ],
)
def test_fields_and_their_order(kind, names):
    assert (kind._fields if issubclass(kind, tuple) else tuple(f.name for f in fields(kind))) == names


def test_unlabelled_is_what_torch_ignores():
    assert inspect.signature(nn.functional.cross_entropy).parameters["ignore_index"].default == UNLABELLED


def test_a_run_begins_at_nought():
    assert Progress() == (0, 0, 0.0, {})


def test_outputs_need_no_taps():
    assert dict(Outputs(torch.zeros(2, 3)).taps) == {}


@pytest.mark.parametrize(
    "value",
    [example(), Outputs(torch.zeros(3, 2), {"layer": torch.ones(3, 4)}), Totals(*torch.ones(3))],
)
def test_accelerate_walks_the_tuples_and_keeps_their_kind(value):
    moved = send_to_device(value, "cpu")
    assert type(moved) is type(value)
    doubled = recursively_apply(lambda tensor: tensor * 2, value)
    assert type(doubled) is type(value)
    assert torch.equal(doubled[0], value[0] * 2)
    if isinstance(value, Outputs):
        assert torch.equal(doubled.taps["layer"], torch.full((3, 4), 2.0))


@pytest.mark.parametrize("view", [None, View(3, 5)])
def test_a_torch_loader_hands_batches_on(view):
    batch = example()._replace(view=view)
    (loaded,) = DataLoader([batch], batch_size=None)
    assert type(loaded) is Batch
    assert loaded.view == view
    assert all(torch.equal(a, b) for a, b in zip(loaded[:3], batch[:3], strict=True))


def signature(function):
    parameters = list(inspect.signature(function).parameters.values())
    return [(p.name, p.kind, p.default) for p in parameters if p.name != "self"]


def test_the_data_room_keeps_the_contract_of_batches():
    assert signature(data.BatchLoader.epoch) == signature(Batches.epoch)
    assert "__len__" in vars(data.BatchLoader)
    splits = data.open_data(data.DataSettings())
    batches = data.BatchLoader(splits.train, batch_size=64, train=True)
    assert batches.samples == len(splits.train)
    first = next(batches.epoch(0))
    assert type(first) is Batch
    assert (first.index.dtype, first.labels.dtype) == (torch.int64, torch.int64)
    assert first.view == View(seed=0, epoch=0)
    assert next(data.BatchLoader(splits.test, batch_size=64, train=False).epoch(0)).view is None
    assert 0 <= first.inputs.min() <= first.inputs.max() <= 1


def test_a_frozen_teacher_keeps_the_contract_of_teachers():
    assert signature(modules.FrozenTeacher.forward) == signature(Teacher.__call__)
    assert (
        type(modules.FrozenTeacher(nn.Linear(4, 2))(Batch(torch.arange(3), torch.rand(3, 4), torch.zeros(3))))
        is Outputs
    )


def test_bound_terms_keep_the_contract_of_terms():
    for term in objectives.wttm(gamma=0.1, beta=1).bind().terms.values():
        assert isinstance(term, nn.Module)
        assert isinstance(term.needs, Requirements)
        assert signature(type(term).forward) == signature(types.Term.__call__)


METRIC = ("fold", "end", "beats_chance")


def test_there_is_no_logic_in_the_contracts():
    tree = ast.parse(inspect.getsource(types))
    methods = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert {method.name for method in methods} == {"__call__", "__len__", "epoch", "commit", "open", "dealt", *METRIC}
    for method in methods:
        (only,) = method.body
        assert isinstance(only, ast.Expr), method.name
        assert isinstance(only.value, ast.Constant), method.name


def test_the_annotations_are_real():
    names = {"Tensor": torch.Tensor}
    for kind in (Batch, Outputs, Totals, Loss, Progress):
        assert set(get_type_hints(kind, localns=names)) == set(kind._fields)
    assert set(get_type_hints(Requirements, localns=names)) == {field.name for field in fields(Requirements)}


def test_the_contracts_import_no_torch():
    code = "import sys, tutelage.types; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
