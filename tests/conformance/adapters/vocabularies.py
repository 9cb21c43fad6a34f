"""Networks of unlike vocabularies, and networks that return embeddings or scores."""

from __future__ import annotations

from collections.abc import Mapping

from adapters.case import Adapter

METHODS: Mapping[str, Adapter] = {}
