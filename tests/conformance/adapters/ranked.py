"""Losses that rank the classes, or read the logits of regions."""

from __future__ import annotations

from collections.abc import Mapping

from adapters.case import Adapter

METHODS: Mapping[str, Adapter] = {}
