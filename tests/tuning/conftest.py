"""Fixtures of tests that search on a cluster."""

from tests.places.test_cluster import ray  # noqa: F401
