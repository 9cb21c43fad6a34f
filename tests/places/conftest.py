"""Fixtures of tests that do studies."""

from tests.studies.conftest import invoke, one_thread, without_reports  # noqa: F401
