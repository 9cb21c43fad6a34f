"""Some hundred inputs of each kind, and every one that once went wrong; ``make fuzz`` reads 100,000."""

import pytest
from hypothesis import HealthCheck, given, settings
from tests.fuzz import known, strategies
from tests.fuzz.__main__ import CORPUS, kind_of
from tests.fuzz.guard import Forbidden, guarded
from tests.fuzz.targets import TARGETS, Target, judge

SAVED = [path for path in sorted(CORPUS.rglob("*")) if path.is_file()]


@pytest.mark.parametrize("name", TARGETS)
def test_any_input_is_read_or_refused_by_name(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    @settings(max_examples=40, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(strategies.inputs(name))
    def read(content):
        reason = judge(TARGETS[name], tmp_path, content)
        assert reason is None or known.is_known(name, kind_of(reason)), reason

    read()


@pytest.mark.parametrize("path", SAVED, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_an_input_that_once_went_wrong_does_so_no_more(path, monkeypatch, tmp_path, request):
    monkeypatch.chdir(tmp_path)
    name = path.parent.name
    reason = judge(TARGETS[name], tmp_path, path.read_bytes())
    if reason is not None and known.is_known(name, kind_of(reason)):
        pytest.xfail(f"known: {reason}")
    assert reason is None


def test_what_is_known_still_goes_wrong(monkeypatch, tmp_path):
    """So that what was mended is taken out of `known`."""
    monkeypatch.chdir(tmp_path)
    for name, kinds in known.KNOWN.items():
        found = {judge(TARGETS[name], tmp_path, path.read_bytes()) or "" for path in SAVED if path.parent.name == name}
        for kind in kinds:
            assert any(kind_of(reason).startswith(kind) for reason in found), f"{name}: {kind} is mended"


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
