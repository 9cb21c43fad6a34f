"""A few faults of each kind; ``make test-faults`` injects all of them."""

import errno

import pytest
import torch
from tests.faults import cases, inject
from tests.faults.faults import Action, Bench, Ended, Fault, Outcome, contents, newest_checkpoint

FAULTS = (
    Fault("train", "ENOSPC", "write", 5),
    Fault("train", "EIO", "sync", 9),
    Fault("train", "EROFS", "rename", 4),
    Fault("train", "killed", "write", 6),
    Fault("train", "SIGTERM", "step", 5),
    Fault("train", "NaN from the network", "forward of the student", 6),
    Fault("train", "an error of the user's", "forward of the student", 5),
    Fault("train", "cut in the middle", "runs/train/checkpoints/00-000000003/state.json"),
    Fault("train", "lock of train held", ""),
    Fault("distill", "EACCES", "open to write", 7),
    Fault("distill", "out of memory", "forward of the teacher", 4),
    Fault("distill", "the clock jumps back", ""),
    Fault("record", "EDQUOT", "rename", 2),
    Fault("record", "killed", "rename", 3),
    Fault("python", "an error of the user's", "sample", 200),
    Fault("record", "NaN from the network", "forward of the teacher", 4),
    Fault("record", "one bit flipped", "runs/record/epoch-0000/000000000.logits.safetensors"),
    Fault("train", "metrics.jsonl removed", "step", 6),
    Fault("train", "without a tensor", "runs/train/checkpoints/00-000000003/tensors.safetensors"),
    Fault("train", "a list", "runs/train/metrics.jsonl"),
    Fault("compare", "an error of the user's", "forward of the student", 16),
    Fault("workers", "worker killed", "step", 5),
)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Bench(tmp_path_factory.mktemp("faults") / "bench")
    torch.set_num_threads(threads)


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_fault_is_named_and_the_same_command_ends_with_the_same_bits(fault, bench):
    outcome = bench.do(fault, cases.action_of(fault))
    assert outcome.reached
    assert outcome.wrong == []
    assert outcome.end in ("same bits", "refused")


def test_what_the_suite_judges_by_finds_what_is_lost(bench, monkeypatch):
    """Faults of the program itself, planted: a checkpoint that is not used, and one that is not whole."""
    from tutelage.training import checkpoints, state

    fault = Fault("train", "SIGTERM", "step", 5)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.Checkpoints, "load", lambda self, check: None)
        assert "the checkpoint of step 5 was not used" in "".join(bench.do(fault, cases.action_of(fault)).wrong)
    with monkeypatch.context() as patch:
        patch.setattr(state, "restore_rank", lambda *_: None)
        assert "it ended with another content" in "".join(bench.do(fault, cases.action_of(fault)).wrong)


def test_a_place_that_is_not_reached_does_not_count(bench):
    outcome = bench.do(Fault("record", "EIO", "rename", 400), cases.action_of(Fault("record", "EIO", "rename")))
    assert outcome.end == "not reached"


def test_a_bug_and_a_message_without_a_name_are_wrong():
    from tests.faults.faults import faults_of_message

    bug = Ended(1, "", "tutelage: KeyError: 'sums': this is a bug in tutelage: please report it")
    assert faults_of_message(bug, Action(), "")
    unnamed = Ended(1, "", "tutelage: x: expected a, got b; free some space")
    assert faults_of_message(unnamed, Action(), "runs/train/manifest.json")
    assert not faults_of_message(unnamed, Action(), "runs/x")
    assert faults_of_message(Ended(0, "", ""), Action(codes=(1,)), "")
    assert Outcome(Fault("train", "EIO", "write", 1), True, bug, wrong=["x"]).end == "wrong"


def test_half_of_a_torn_write_is_there(tmp_path):
    path = tmp_path / "file"
    watch = inject.Watch(str(tmp_path), "write", 1, inject.refuse(errno.ENOSPC, torn=True))
    with inject.watching(watch), pytest.raises(OSError, match="file"), path.open("wb") as file:
        file.write(b"0123")
    assert path.read_bytes() == b"01"
    assert newest_checkpoint(tmp_path) is None
    assert contents(tmp_path, "train") == {}


def test_the_long_form_has_hundreds_of_faults_each_another(bench):
    """Counted for one of its verbs."""
    faults = list(cases.every(bench, most=8, verbs=["train"]))
    assert len(set(map(str, faults))) == len(faults) > 60
