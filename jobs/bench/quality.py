"""Figure `quality`: what a dtype costs, as the distance of next-token logits from transformers' in float32."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from model_runtime.backends.peers.types import Ask
from model_runtime.config import ModelConfig

from .cases import Case, Sample
from .crew import Crew, PeerLost
from .encode import REFERENCE
from .inputs import Inputs
from .types import Figure, PeerSpec, Settings

LENGTHS = (512,)
PREFIXES = 32


def measure_quality(settings: Settings) -> Iterator[Figure]:
    """Relative error of the logits after 32 prefixes of one document, a new document at each repetition.

    Beside it: the mean Kullback-Leibler divergence from the reference's distribution, in nats, and the share of
    prefixes after which the most likely token is another than the reference's.
    """
    config = ModelConfig.load(settings.model)
    with Crew(settings) as crew:
        for tokens in sorted(settings.lengths or LENGTHS):
            yield _case(crew, settings, config, tokens).figure(settings)


def _case(crew: Crew, settings: Settings, config: ModelConfig, tokens: int) -> Case:
    work = {"tokens": tokens, "prefixes": PREFIXES}
    case = Case(name="quality", work=work, unit="relative error of logits", better="lower")
    expected: dict[int, np.ndarray] = {}

    def measure(peer: PeerSpec, repetition: int) -> Sample:
        draw = Inputs(config, settings.seed, "quality", tokens, repetition)
        ask = Ask(ids=draw.document(tokens), prefixes=draw.prefixes(PREFIXES))
        if repetition not in expected:
            expected[repetition] = crew.ask(REFERENCE, "first_logits", ask)
        return compare(crew.ask(peer, "first_logits", ask), expected[repetition])

    case.repeat(crew, settings, measure, peers=[peer for peer in settings.peers if peer != REFERENCE])
    return case


def compare(logits_RV: np.ndarray, expected_RV: np.ndarray) -> Sample:
    """Root mean square of the difference over that of the expected logits' deviation from each row's mean.

    A constant added to a row changes no probability, and so counts for nothing. PeerLost for logits that are not
    finite.
    """
    if logits_RV.shape != expected_RV.shape or not np.isfinite(logits_RV).all():
        raise PeerLost("its logits are not finite, or not one row for each prefix")
    ours, theirs = (x - x.mean(axis=1, keepdims=True, dtype=np.float64) for x in (logits_RV, expected_RV))
    error = float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
    log_p, log_q = _log_softmax(theirs), _log_softmax(ours)
    divergence = float((np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean())
    other = float((ours.argmax(axis=1) != theirs.argmax(axis=1)).mean())
    return Sample(value=error, seen={"divergence": divergence, "other_token": other})


def _log_softmax(logits_RV: np.ndarray) -> np.ndarray:
    shifted = logits_RV - logits_RV.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
