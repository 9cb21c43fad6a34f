import errno
import json
import os
import resource
import subprocess
import warnings

import pytest
import torch
from tests._helpers.refusals import refused

from tutelage import records
from tutelage.training.checkpoints import CHECKSUMS, STATE, TENSORS, CheckpointError, Checkpoints


def name(step):
    return f"00-{step:09d}"


def save(checkpoints, *steps):
    for step in steps:
        checkpoints.save(name(step), {"w": torch.full((3,), float(step))}, {"step": step})


def kept(checkpoints):
    return sorted(path.name for path in checkpoints.folder.iterdir())


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "checkpoints")


def test_nothing_saved_is_nothing_to_load(checkpoints):
    assert checkpoints.load() is None


def test_every_layout_and_dtype_comes_back(checkpoints):
    shared = torch.arange(4.0)
    tensors = {
        "last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "view": torch.rand(4, 6).t()[1:],
        "one": shared,
        "two": shared,
        "scalar": torch.tensor(3, dtype=torch.int64),
        "half": torch.rand(3).bfloat16(),
        "bits": torch.get_rng_state(),
        "nan": torch.tensor([torch.nan, -torch.inf, -0.0]),
        "learned": torch.rand(2, requires_grad=True),
        "none": torch.zeros(0, 3),
    }
    checkpoints.save(name(1), tensors, {"epoch": 1, "rate": 0.1 + 0.2, "nothing": None})
    saved = checkpoints.load()
    assert saved is not None
    assert saved.tensors.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert saved.tensors[key].dtype == tensor.dtype
        torch.testing.assert_close(saved.tensors[key], tensor.detach(), rtol=0, atol=0, equal_nan=True)
    assert saved.state == {"epoch": 1, "rate": 0.1 + 0.2, "nothing": None}


def test_the_last_two_are_kept_and_the_newest_is_read(checkpoints):
    save(checkpoints, 3, 6, 9, 12)
    assert kept(checkpoints) == [name(9), name(12)]
    assert checkpoints.load().state == {"step": 12}


def test_stages_sort_before_steps(checkpoints):
    save(checkpoints, 500)
    checkpoints.save("01-000000003", {"w": torch.zeros(1)}, {"step": 3})
    assert checkpoints.load().state == {"step": 3}


def cut(folder):
    path = folder / TENSORS
    path.write_bytes(path.read_bytes()[:-5])


def flip(file):
    def flipped(folder):
        content = bytearray((folder / file).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / file).write_bytes(bytes(content))

    return flipped


def lose(file):
    return lambda folder: (folder / file).unlink()


def forget_a_sum(folder):
    path = folder / CHECKSUMS
    path.write_text(path.read_text().splitlines(keepends=True)[0])


DAMAGE = {
    "tensors cut off": cut,
    "tensors empty": lambda folder: (folder / TENSORS).write_bytes(b""),
    **{f"a bit of {file} flipped": flip(file) for file in (TENSORS, STATE, CHECKSUMS)},
    **{f"{file} missing": lose(file) for file in (TENSORS, STATE, CHECKSUMS)},
    "checksums cut off": forget_a_sum,
    "checksums empty": lambda folder: (folder / CHECKSUMS).write_text(""),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_newest_one_is_passed_over_with_a_warning(checkpoints, damage):
    save(checkpoints, 3, 6)
    damage(checkpoints.folder / name(6))
    with pytest.warns(
        UserWarning, match=rf"^checkpoint {name(6)}: expected its checksums to match, got .*the one before"
    ):
        assert checkpoints.load().state == {"step": 3}
    # The damaged one is gone: it would count as one of the two, and sort after those that are written now.
    save(checkpoints, 5)
    assert kept(checkpoints) == [name(3), name(5)]


def test_no_good_one_is_an_error_and_stays_one(checkpoints):
    save(checkpoints, 3, 6)
    cut(checkpoints.folder / name(3))
    flip(STATE)(checkpoints.folder / name(6))
    for _ in range(2):
        with (
            pytest.warns(UserWarning, match="checksums"),
            refused(CheckpointError, "checkpoints"),
        ):
            checkpoints.load()


def test_what_a_kill_left_half_written_is_not_read_and_is_cleared(checkpoints):
    save(checkpoints, 3, 6)
    left = checkpoints.folder / f".{name(9)}.tmp"
    left.mkdir()
    (left / TENSORS).write_bytes(b"half")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert checkpoints.load().state == {"step": 6}
    assert kept(checkpoints) == [name(3), name(6)]


def test_someone_elses_folder_is_left_alone(checkpoints):
    save(checkpoints, 3, 6)
    (checkpoints.folder / "the good one").mkdir()
    assert checkpoints.load().state == {"step": 6}
    save(checkpoints, 9, 12)
    assert kept(checkpoints) == [name(9), name(12), "the good one"]


def test_a_disk_that_refuses_leaves_the_last_good_one(checkpoints):
    """The operating system refuses files over a size, as it would on a full disk."""
    save(checkpoints, 3, 6)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with refused(CheckpointError, f"checkpoint {name(9)}", got=[os.strerror(errno.EFBIG), name(6)]):
            checkpoints.save(name(9), {"w": torch.zeros(10_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert kept(checkpoints) == [name(3), name(6)]
    assert checkpoints.load().state == {"step": 6}


def test_a_full_disk_leaves_the_last_good_one(small_disk):
    checkpoints = Checkpoints(small_disk / "checkpoints")
    tensors = {"w": torch.rand(15_000)}
    for step in (3, 6):
        checkpoints.save(name(step), tensors, {"step": step})
    assert kept(checkpoints) == [name(3), name(6)]
    with refused(CheckpointError, f"checkpoint {name(9)}", got=[os.strerror(errno.ENOSPC), name(6)]):
        checkpoints.save(name(9), {"w": torch.rand(120_000)}, {"step": 9})
    good = checkpoints.load()
    assert good.state == {"step": 6}
    assert torch.equal(good.tensors["w"], tensors["w"])
    with refused(CheckpointError, "best.safetensors", got=os.strerror(errno.ENOSPC)):
        checkpoints.write(small_disk / "best.safetensors", bytes(10**6))
    assert not (small_disk / "best.safetensors").exists()


def test_a_first_one_that_is_refused_says_that_there_is_none(tmp_path):
    (tmp_path / "run").write_text("a file where the run's folder should be")
    with refused(CheckpointError, f"checkpoint {name(3)}", got=[os.strerror(errno.ENOTDIR), "none"]):
        save(Checkpoints(tmp_path / "run" / "checkpoints"), 3)


def test_a_refused_write_leaves_the_file_as_it_was(tmp_path, checkpoints):
    path = tmp_path / "best.safetensors"
    checkpoints.write(path, b"good")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with refused(CheckpointError, "best.safetensors", got=os.strerror(errno.EFBIG)):
            checkpoints.write(path, bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"good"
    assert [p.name for p in tmp_path.iterdir()] == ["best.safetensors"]


def test_checksums_are_those_of_sha256sum(checkpoints):
    """A user can check a checkpoint without this library."""
    save(checkpoints, 3)
    done = subprocess.run(
        ["sha256sum", "-c", CHECKSUMS], cwd=checkpoints.folder / name(3), capture_output=True, check=False
    )
    assert done.returncode == 0
    assert json.loads((checkpoints.folder / name(3) / STATE).read_text()) == {"step": 3}
    assert checkpoints.folder.name == records.CHECKPOINTS


def test_one_under_anothers_name_is_passed_over(checkpoints):
    checkpoints.save(name(3), {"w": torch.zeros(1)}, {"stage": 0, "step": 3})
    (checkpoints.folder / name(3)).rename(checkpoints.folder / name(9))
    checkpoints.save("00-000000006", {"w": torch.zeros(1)}, {"stage": 0, "step": 6})
    with pytest.warns(UserWarning, match=f"checkpoint {name(9)}: .*step 3"):
        assert checkpoints.load().state["step"] == 6


def test_one_that_does_not_fit_is_passed_over_and_kept_under_another_name(checkpoints):
    save(checkpoints, 3, 6)

    def check(saved):
        if saved.state["step"] == 6:
            raise ValueError("another run's")

    with pytest.warns(UserWarning, match=f"checkpoint {name(6)}: expected a state of this run, got another run's"):
        assert checkpoints.load(check).state == {"step": 3}
    assert kept(checkpoints) == [name(3), f"unfit-{name(6)}"]


def test_a_newer_versions_is_not_read(checkpoints):
    checkpoints.save(name(3), {"w": torch.zeros(1)}, {"step": 3, "schema": 2})
    with refused(CheckpointError, "checkpoints", got="schema 2"):
        checkpoints.load()


def test_a_file_in_the_place_of_the_folder_is_named_before_anything_is_lost(checkpoints):
    checkpoints.folder.parent.mkdir(parents=True, exist_ok=True)
    checkpoints.folder.write_text("no folder")
    with refused(records.DamagedError, str(checkpoints.folder), suggests="move it away"):
        checkpoints.load()
