"""What an engine makes of requests, by key: for the tests of every backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from model_runtime import Generation, Request


def run(engine: Any, requests: Sequence[Request]) -> dict[str, Generation]:
    """Every generation by its key, each key exactly once."""
    made = list(engine.generate(requests))
    assert sorted(g.key for g in made) == sorted(d.key for r in requests for d in r.decodes)
    return {generation.key: generation for generation in made}


def tokens_of(engine: Any, requests: Sequence[Request]) -> dict[str, tuple[int, ...]]:
    """Every generation's tokens by its key; none may have failed."""
    made = run(engine, requests)
    assert all(generation.error is None for generation in made.values())
    return {key: generation.token_ids for key, generation in made.items()}
