"""Targets that move between the student and the teacher, and distributions that are mixed with the student."""

from __future__ import annotations

from collections.abc import Mapping

from adapters.case import Adapter

METHODS: Mapping[str, Adapter] = {}
