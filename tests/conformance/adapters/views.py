"""Losses of several views of a sample, or of several heads."""

from __future__ import annotations

from collections.abc import Mapping

from adapters.case import Adapter

METHODS: Mapping[str, Adapter] = {}
