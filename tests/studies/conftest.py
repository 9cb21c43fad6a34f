"""Fixtures of tests that do studies."""

import pytest
import torch

from tutelage.report import html
from tutelage.studies import report


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def without_reports(monkeypatch):
    """Reports take longer than these runs."""
    monkeypatch.setattr(report, "write_report", lambda folder: folder / "report.html")
    monkeypatch.setattr(html, "write_report", lambda folder: folder / "report.html")


@pytest.fixture
def invoke(invoke, monkeypatch, tmp_path):
    """Type a command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return invoke
