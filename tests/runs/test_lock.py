"""The lock of a folder: one process at a time, until the process has ended, however it ended."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from tutelage.errors import InvalidValueError, StorageError
from tutelage.runs.lock import BusyError, folder_lock

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")

TAKE = "import fcntl,sys;f=open(sys.argv[1],'w');fcntl.flock(f,fcntl.LOCK_EX|fcntl.LOCK_NB)"


def is_free(folder):
    try:
        with folder_lock(folder):
            return True
    except BusyError:
        return False


def test_the_lock_is_that_of_flock_which_earlier_versions_took(tmp_path):
    def taken():
        done = subprocess.run([sys.executable, "-S", "-c", TAKE, tmp_path / ".lock"], capture_output=True, check=False)
        return done.returncode == 0

    with folder_lock(tmp_path):
        assert not taken()
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert taken()


def test_threads_of_one_process_keep_each_other_out(tmp_path):
    seen = []
    with folder_lock(tmp_path):
        assert not is_free(tmp_path)
        thread = threading.Thread(target=lambda: seen.append(is_free(tmp_path)))
        thread.start()
        thread.join()
    assert seen == [False]
    assert is_free(tmp_path)


def test_who_waits_gets_it_when_it_is_free(tmp_path):
    order = []

    def wait():
        with folder_lock(tmp_path, wait=True):
            order.append("waited")

    with folder_lock(tmp_path):
        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.1)
        order.append("first")
    thread.join(10)
    assert order == ["first", "waited"]


def test_a_forked_process_has_no_part_in_its_parents_lock(tmp_path):
    """It neither releases the lock when it ends, nor holds it when it outlives the parent's hold."""
    reader, writer = os.pipe()
    with folder_lock(tmp_path):
        if (ended := os.fork()) == 0:
            os._exit(0 if not is_free(tmp_path) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(ended, 0)[1]) == 0
        assert not is_free(tmp_path)
        if (lives := os.fork()) == 0:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
    os.close(reader)
    assert is_free(tmp_path)
    os.close(writer)
    os.waitpid(lives, 0)


def test_a_killed_process_leaves_the_lock_free_though_a_fork_of_it_lives(tmp_path):
    reader, writer = os.pipe()
    told, telling = os.pipe()
    if (parent := os.fork()) == 0:
        with folder_lock(tmp_path):
            if os.fork() == 0:
                os.close(writer)
                os.write(telling, b"x")  # The lock's handlers of a fork have run.
                os.read(reader, 1)
                os._exit(0)
            time.sleep(60)
    assert os.read(told, 1) == b"x"
    assert not is_free(tmp_path)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    assert is_free(tmp_path)
    for descriptor in (reader, writer, told, telling):
        os.close(descriptor)


def test_what_fails_inside_releases_it(tmp_path):
    with pytest.raises(ZeroDivisionError), folder_lock(tmp_path):
        raise ZeroDivisionError
    assert is_free(tmp_path)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
@pytest.mark.parametrize("wait", [False, True])
def test_a_file_system_without_locks_is_refused(tmp_path, monkeypatch, code, wait):
    def flock(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(StorageError) as caught, folder_lock(tmp_path, wait=wait):
        pass
    assert (caught.value.exit_code, caught.value.errno) == (1, code)
    assert str(tmp_path / ".lock") in caught.value.what
    assert os.strerror(code) in caught.value.got


@pytest.mark.parametrize("wait", [False, True])
def test_a_folder_that_nothing_can_be_written_to_is_refused(read_only, wait):
    with pytest.raises(StorageError) as caught, folder_lock(read_only / "run", wait=wait):
        pass
    assert str(read_only / "run" / ".lock") in caught.value.what
    assert "--runs" in caught.value.instead


def test_a_file_where_the_folder_should_be_is_the_users_mistake(tmp_path):
    (tmp_path / "runs").touch()
    for folder in (tmp_path / "runs", tmp_path / "runs" / "a"):
        with pytest.raises(InvalidValueError) as caught, folder_lock(folder):
            pass
        assert "--runs" in caught.value.instead
