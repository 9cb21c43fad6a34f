"""Some hundred inputs of each kind, and every one that once went wrong; ``make fuzz`` reads 100,000."""

import pytest
from hypothesis import HealthCheck, given, settings
from tests.fuzz import strategies
from tests.fuzz.__main__ import CORPUS
from tests.fuzz.guard import Forbidden, guarded
from tests.fuzz.targets import TARGETS, Target, judge

SAVED = [path for path in sorted(CORPUS.rglob("*")) if path.is_file()]


@pytest.mark.parametrize("name", TARGETS)
def test_any_input_is_read_or_refused_by_name(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    @settings(max_examples=40, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(strategies.inputs(name))
    def read(content):
        assert judge(TARGETS[name], tmp_path, content) is None

    read()


@pytest.mark.parametrize("path", SAVED, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_an_input_that_once_went_wrong_does_so_no_more(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert judge(TARGETS[path.parent.name], tmp_path, path.read_bytes()) is None


def _spin():
    while True:
        pass


@pytest.mark.parametrize(
    ("read", "reason"),
    [
        (lambda: __import__("subprocess").run(["true"], check=False), "subprocess.Popen"),
        (lambda: __import__("socket").create_connection(("127.0.0.1", 9)), "socket"),
        (lambda: open("/var/tmp/written-elsewhere", "w").close(), "wrote /var/tmp"),
        (lambda: {}["key"], "KeyError"),
    ],
)
def test_what_no_input_may_do_is_found(read, reason, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    found = judge(Target("file", lambda folder, content: read(), ()), tmp_path, b"")
    assert found is not None
    assert reason in found


def test_an_input_that_never_ends_is_found(monkeypatch):
    monkeypatch.setattr("tests.fuzz.guard.SECONDS", 0.1)
    with pytest.raises(Forbidden, match="too long"), guarded():
        _spin()
