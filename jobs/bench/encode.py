"""Figures `encode` and `long`: one document through the encoder."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from model_runtime.config import ModelConfig

from .cases import Case, Sample, seen, warm
from .crew import Crew, PeerLost
from .floors import encoder_flops
from .inputs import Inputs
from .types import Ceiling, Figure, PeerSpec, Settings

LENGTHS = (512, 2048, 8192, 16384)
LONG = 131_072
REFERENCE = PeerSpec(name="transformers-expert", dtype="float32")


def measure_encode(settings: Settings) -> Iterator[Figure]:
    """Encoder tokens/s at each length, short before long; what ran out of memory or time is not given more."""
    config = ModelConfig.load(settings.model)
    with Crew(settings) as crew:
        agreement = _agreement(crew, settings, config)
        lost: dict[str, str] = {}
        for tokens in sorted(settings.lengths or LENGTHS):
            case = encode_case(crew, settings, config, tokens, lost)
            case.checks |= agreement
            lost = {peer: f"not tried after {tokens:,} tokens: {why}" for peer, why in case.missing.items()} | lost
            yield case.figure(settings, mfu(case, config, tokens))


def measure_long(settings: Settings) -> Iterator[Figure]:
    """One document as long as the model takes: each peer alone in memory, and once."""
    config = ModelConfig.load(settings.model)
    tokens = max(settings.lengths) if settings.lengths else min(LONG, config.max_input_tokens)
    with Crew(settings) as crew:
        case = Case(name="long", work={"tokens": tokens}, unit="tokens/s")
        draw = Inputs(config, settings.seed, "long")
        document = draw.document(tokens)

        def measure(peer: PeerSpec, repetition: int) -> Sample:
            crew.only(peer)
            return _encode(crew, peer, config, document)

        for peer in settings.peers:
            case.work["tokens"] = tokens
            case.repeat(crew, _once(settings), measure, peers=[peer])
        crew.end()
        case.checks["finished"] = sorted(case.samples)
        bounds = Case(name="long", work={}, unit="")
        bounds.repeat(crew, _once(settings), measure, peers=[], bound=lambda: _matrix_rate(crew, settings))
        case.bounds = bounds.bounds
        yield case.figure(settings, mfu(case, config, tokens))


def encode_case(
    crew: Crew, settings: Settings, config: ModelConfig, tokens: int, lost: dict[str, str], name: str = "encode"
) -> Case:
    """Tokens/s of one length; peers in `lost` are not tried."""
    case = Case(name=name, work={"tokens": tokens}, unit="tokens/s", missing=dict(lost))

    def measure(peer: PeerSpec, repetition: int) -> Sample:
        # Drawn here and not once: every peer gets the same at one repetition, and never one that it has seen.
        document = Inputs(config, settings.seed, name, tokens, repetition).document(tokens)
        return _encode(crew, peer, config, document)

    rate = lambda: _matrix_rate(crew, settings)  # noqa: E731
    case.repeat(crew, settings, measure, bound=rate, warm=warm(settings, tokens))
    return case


def mfu(case: Case, config: ModelConfig, tokens: int) -> Ceiling | None:
    """Useful FLOP/s of each peer over what the device multiplies, at the dtype of the matrix rate."""
    each = encoder_flops(config, tokens) / tokens
    return case.ceiling("MFU", "GFLOP/s", lambda peer, rate: rate * each, 1e9)


def _encode(crew: Crew, peer: PeerSpec, config: ModelConfig, document: np.ndarray) -> Sample:
    _settle_memory(crew, peer, config)
    timed = crew.ask(peer, "encode", [document])
    if timed.result != [config.encoder.hidden_size]:
        raise PeerLost("its states are not finite, or not one for each token")
    return Sample(value=len(document) / timed.seconds, seen=seen(timed))


def _settle_memory(crew: Crew, peer: PeerSpec, config: ModelConfig) -> None:
    """Load whatever this work needs, then count memory from there."""
    if crew.fresh(peer, "encode"):
        crew.ask(peer, "states", Inputs(config, 0, "rest").document(8))
        crew.ask(peer, "rest")


def _matrix_rate(crew: Crew, settings: Settings) -> float:
    return crew.roofline("matrix_rate", native_dtype(settings))


def native_dtype(settings: Settings) -> str:
    """The dtype that rates are measured in: the first native peer's."""
    return next((peer.dtype for peer in settings.peers if peer.name == "native"), settings.peers[0].dtype)


def _once(settings: Settings) -> Settings:
    import dataclasses

    return dataclasses.replace(settings, repeat=1)


def _agreement(crew: Crew, settings: Settings, config: ModelConfig) -> dict[str, object]:
    """How far each peer's states are from transformers' in float32: inside the encoder's window, and beyond it."""
    window = config.encoder.window
    found: dict[str, object] = {}
    for tokens in (window // 4, min(2 * window, config.max_input_tokens)):
        document = Inputs(config, settings.seed, "agreement", tokens).document(tokens)
        try:
            reference = crew.ask(REFERENCE, "states", document)
        except PeerLost as lost:
            return {"difference from transformers": f"not measured: {lost}"}
        differences: dict[str, float | str] = {}
        for peer in settings.peers:
            try:
                states = crew.ask(peer, "states", document)
            except PeerLost as lost:
                if peer.label not in crew.gone:
                    differences[peer.label] = str(lost)
                continue
            differences[peer.label] = float(np.linalg.norm(states - reference) / np.linalg.norm(reference))
        found[f"difference from transformers float32 at {tokens} tokens"] = differences
    if REFERENCE not in settings.peers:
        crew.end([REFERENCE.label])
    return found
