"""The peers of the benchmark do the same work: equal states and tokens on the same weights, always as many as asked."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from jobs.bench.texts import DOCUMENTS
from model_runtime.backends.peers.load import NAMES, peer_class
from model_runtime.backends.peers.types import Ask, Peer, PeerConfig, PeerMissing, length_sorted_batches
from model_runtime.synthetic import make_random_checkpoint

MAX_TOKENS = 6
# CTranslate2 4.8 ignores the encoder's sliding window, and does not mask padding where a batch mixes lengths. What it
# is compared on is short, and of one length.
LENGTHS = {"ctranslate2": (24, 24, 24)}
MIXED = (40, 300, 9, 90)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("peers") / "demo"
    return make_random_checkpoint(folder, texts=[d.text for d in DOCUMENTS if d.text])


@pytest.fixture(scope="module")
def config(model: Path) -> PeerConfig:
    return PeerConfig(model=model, cache=model.parent, dtype="float32", threads=1)


@pytest.fixture(scope="module")
def reference(config: PeerConfig) -> Peer:
    return load("transformers-expert", config)


def load(name: str, config: PeerConfig) -> Peer:
    peer = peer_class(name)
    peer.prepare(config)
    return peer.load(config)


def asks(lengths: tuple[int, ...]) -> list[Ask]:
    rng = np.random.default_rng(3)
    prefixes = tuple(tuple(row) for row in rng.integers(500, 2000, (3, 5)).tolist())
    return [Ask(ids=rng.integers(500, 2000, length), prefixes=prefixes) for length in lengths]


@pytest.mark.parametrize("name", ["native", "transformers-plain", "ctranslate2"])
def test_peers_agree_in_float32(name: str, config: PeerConfig, reference: Peer) -> None:
    peer = load(name, config)
    work = asks(LENGTHS.get(name, MIXED))
    expected, found = reference.run(work, MAX_TOKENS), peer.run(work, MAX_TOKENS)
    assert found.tokens == expected.tokens
    assert all(len(tokens) == MAX_TOKENS for document in found.tokens for tokens in document)
    assert found.later_tokens > 0
    assert found.later_seconds > 0

    for one in (reference, peer):
        one.encode([ask.ids for ask in work])
    for ours, theirs in zip(peer.encoded(), reference.encoded(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())

    for one in (reference, peer):
        one.hold(work[0].ids)
    held = [one.decode(work[0].prefixes, MAX_TOKENS) for one in (reference, peer)]
    assert held[0].tokens == held[1].tokens == [expected.tokens[0]]


@pytest.mark.parametrize("name", ["native", "transformers-plain", "transformers-expert", "ctranslate2"])
def test_end_of_sequence_ends_nothing(name: str, config: PeerConfig, reference: Peer, tmp_path: Path) -> None:
    """With the token that is produced anyway as the model's end of sequence, every peer goes on."""
    import json
    import shutil

    [ask] = asks((24,))
    last = reference.run([ask], MAX_TOKENS).tokens[0][0][-1]
    ending = shutil.copytree(config.model, tmp_path / "ending")
    document = json.loads((ending / "config.json").read_text())
    document["decoder"]["eos_token_id"] = document["encoder"]["text_config"]["eos_token_id"] = last
    (ending / "config.json").write_text(json.dumps(document))
    generation = {"eos_token_id": last, "bos_token_id": 2, "decoder_start_token_id": 2, "pad_token_id": 0}
    (ending / "generation_config.json").write_text(json.dumps(generation))
    peer = load(name, PeerConfig(model=ending, cache=tmp_path, dtype="float32", threads=1))
    assert peer.run([ask], MAX_TOKENS).tokens == reference.run([ask], MAX_TOKENS).tokens


def test_later_tokens_are_those_behind_the_first(config: PeerConfig, reference: Peer) -> None:
    [ask] = asks((24,))
    reference.hold(ask.ids)
    assert reference.decode(ask.prefixes, MAX_TOKENS).later_tokens == 3 * (MAX_TOKENS - 1)
    other = load("ctranslate2", config)
    other.hold(ask.ids)
    assert other.decode(ask.prefixes, MAX_TOKENS).later_tokens == 3 * (MAX_TOKENS - 1)


@pytest.mark.parametrize(
    ("name", "dtype"), [("native", "int3"), ("transformers-plain", "int8"), ("ctranslate2", "int3")]
)
def test_a_refused_dtype_is_a_missing_peer(name: str, dtype: str, config: PeerConfig) -> None:
    with pytest.raises(PeerMissing, match=dtype):
        peer_class(name).load(PeerConfig(model=config.model, cache=config.cache, dtype=dtype))


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is here")
def test_vllm_is_missing_where_it_is_not_installed(config: PeerConfig) -> None:
    with pytest.raises(PeerMissing, match="vllm is not installed"):
        peer_class("vllm").load(config)


def test_an_unknown_peer_is_missing() -> None:
    with pytest.raises(PeerMissing, match=NAMES[0]):
        peer_class("elsewhere")


def test_batches_are_sorted_and_bounded() -> None:
    lengths = [5, 100, 7, 50, 49, 1]
    batches = length_sorted_batches(lengths, 100)
    assert sorted(i for batch in batches for i in batch) == list(range(6))
    assert batches[:2] == [[1], [3, 4]]
    assert all(len(batch) * max(lengths[i] for i in batch) <= 100 for batch in batches)
    assert length_sorted_batches([900], 100) == [[0]]
