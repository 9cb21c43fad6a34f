"""Fixtures of several rooms' tests."""

import sys

import pytest


@pytest.fixture
def invoke(monkeypatch, capsys):
    """Type a command in this process, which is faster than in another: exit code, output, errors."""
    from tutelage.cli import app

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tutelage", *arguments])
        with pytest.raises(SystemExit) as left:
            app.main()
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return call
