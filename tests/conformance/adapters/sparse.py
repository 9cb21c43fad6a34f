"""Teachers of which some classes are known."""

from __future__ import annotations

from collections.abc import Mapping

from adapters.case import Adapter

METHODS: Mapping[str, Adapter] = {}
