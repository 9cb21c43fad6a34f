"""Layers of convolutional networks and transformers: maps, tokens, their statistics."""

from __future__ import annotations

from collections.abc import Mapping

from adapters.case import Adapter

METHODS: Mapping[str, Adapter] = {}
