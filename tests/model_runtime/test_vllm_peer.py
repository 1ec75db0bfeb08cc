"""vLLM as a peer of the benchmark: the same tokens as transformers on the same work, as many as asked."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="needs vLLM: make setup-vllm")

from model_runtime.backends.peers.load import peer_class
from model_runtime.backends.peers.types import PeerConfig, PeerMissing
from tests.model_runtime.test_peers import MAX_TOKENS, MIXED, asks, config, model, reference  # noqa: F401 - fixtures

pytestmark = pytest.mark.vllm


def test_the_tokens_are_transformers(config: PeerConfig, reference) -> None:  # noqa: F811 - fixtures
    peer = peer_class("vllm").load(config)
    work = asks(MIXED)
    expected, found = reference.run(work, MAX_TOKENS), peer.run(work, MAX_TOKENS)
    assert found.tokens == expected.tokens
    # What is later begins when the last document's three decodes have made a token each; those before may have ended.
    assert 3 * (MAX_TOKENS - 1) <= found.later_tokens <= 3 * (MAX_TOKENS - 1) * len(work) and found.later_seconds > 0
    peer.hold(work[0].ids)
    held = peer.decode(work[0].prefixes, MAX_TOKENS)
    assert held.tokens == [expected.tokens[0]]
    assert held.later_tokens == 3 * (MAX_TOKENS - 1) and held.later_seconds > 0
    with pytest.raises(PeerMissing, match="encoder"):
        peer.encode([work[0].ids])


def test_a_refused_dtype_is_a_missing_peer(config: PeerConfig) -> None:  # noqa: F811 - a fixture
    asked = PeerConfig(model=Path(config.model), cache=config.cache, dtype="int8")
    with pytest.raises(PeerMissing, match="int8"):
        peer_class("vllm").load(asked)
