"""Figures `decode`, `corpus` and `share`: documents encoded and their tasks decoded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from model_runtime.backends.peers.types import Ask
from model_runtime.config import ModelConfig

from .cases import Case, Sample, check_produced, seen, warm
from .crew import Crew, PeerLost
from .floors import step_bytes
from .inputs import PREFIX_TOKENS, Inputs
from .types import Ceiling, Figure, PeerSpec, Settings

LENGTHS = (512, 4096, 16384)
TASKS = (1, 4, 8)
SHARED = 4096
FLIGHT_DOCUMENTS, FLIGHT_TASKS = 8, 4
MEDIAN, P99 = 600, 6000
CORPUS_TASKS = 4


def measure_decode(settings: Settings) -> Iterator[Figure]:
    """Decoded tokens/s of T tasks over one document, from each batch's first token to its last: no encoding in it."""
    config = ModelConfig.load(settings.model)
    with Crew(settings) as crew:
        lost: dict[str, str] = {}
        for tokens in sorted(settings.lengths or LENGTHS):
            document = Inputs(config, settings.seed, "decode", tokens).document(tokens)
            for tasks in settings.tasks or TASKS:
                case = _decode_case(crew, settings, config, document, tasks, lost)
                why = {p: f"not tried after {tasks} × {tokens:,} tokens: {w}" for p, w in case.missing.items()}
                lost = why | lost
                yield case.figure(settings, mbu(case, config, settings, tokens, 1, tasks))


def measure_corpus(settings: Settings) -> Iterator[Figure]:
    """Documents/s over a corpus of log-normal lengths, all tasks of each; encoding and decoding together."""
    config = ModelConfig.load(settings.model)
    median, p99 = (min(settings.lengths), max(settings.lengths)) if settings.lengths else (MEDIAN, P99)
    tasks = max(settings.tasks) if settings.tasks else CORPUS_TASKS
    with Crew(settings) as crew:
        yield corpus_case(crew, settings, config, median, p99, tasks).figure(settings)


def measure_flight(settings: Settings) -> Iterator[Figure]:
    """Decoded tokens/s of several long documents' tasks in flight together, behind their encoding."""
    config = ModelConfig.load(settings.model)
    tokens = max(settings.lengths) if settings.lengths else SHARED
    tasks = [max(settings.tasks) if settings.tasks else FLIGHT_TASKS] * FLIGHT_DOCUMENTS
    work = {"documents": len(tasks), "tokens": tokens, "tasks": tasks[0], "max_tokens": 1 + settings.tokens}
    case = Case(name="flight", work=work, unit="tokens/s")
    with Crew(settings) as crew:

        def measure(peer: PeerSpec, repetition: int) -> Sample:
            return later_rate(
                crew, peer, config, Inputs(config, settings.seed, "flight", repetition), settings, tokens, tasks
            )

        # No share of the bandwidth: peers whose batches hold fewer documents read other bytes in a step.
        case.repeat(crew, settings, measure, warm=settings.device != "cpu")
        yield case.figure(settings)


def later_rate(
    crew: Crew, peer: PeerSpec, config: ModelConfig, draw: Inputs, settings: Settings, tokens: int, tasks: Sequence[int]
) -> Sample:
    """Tokens/s behind each batch's first token, of documents of `tokens` encoder tokens with so many tasks each."""
    ready_to_run(crew, peer, config)
    asks = [Ask(ids=draw.document(tokens), prefixes=draw.prefixes(number)) for number in tasks]
    timed = crew.ask(peer, "run", asks, 1 + settings.tokens)
    check_produced(timed.result, tasks, 1 + settings.tokens)
    if not timed.result.later_tokens:
        raise PeerLost("decoded nothing behind its last encoding")
    return Sample(value=timed.result.later_tokens / timed.result.later_seconds, seen=seen(timed))


def measure_share(settings: Settings) -> Iterator[Figure]:
    """The time of many tasks of one token over the time of one such task, on one document: 1 is free."""
    config = ModelConfig.load(settings.model)
    tokens = max(settings.lengths) if settings.lengths else SHARED
    tasks = max(settings.tasks) if settings.tasks else max(TASKS)
    case = Case(name="share", work={"tokens": tokens, "tasks": tasks}, unit="× the time of 1 task", better="lower")
    with Crew(settings) as crew:

        def measure(peer: PeerSpec, repetition: int) -> Sample:
            ready_to_run(crew, peer, config)
            draw = Inputs(config, settings.seed, "share", tokens, repetition)
            seconds = []
            for number in (1, tasks):
                ask = Ask(ids=draw.document(tokens), prefixes=draw.prefixes(number))
                timed = crew.ask(peer, "run", [ask], 1)
                check_produced(timed.result, [number], 1)
                seconds.append(timed.seconds)
            return Sample(value=seconds[1] / seconds[0], seen=seen(timed, one_task_s=seconds[0]))

        case.repeat(crew, settings, measure, warm=True)
        yield case.figure(settings)


def corpus_case(
    crew: Crew,
    settings: Settings,
    config: ModelConfig,
    median: int,
    p99: int,
    tasks: int,
    *,
    name: str = "corpus",
    lost: Mapping[str, str] | None = None,
) -> Case:
    """Documents/s; lengths are drawn once, ids at every repetition."""
    lengths = Inputs(config, settings.seed, name).lengths(settings.documents, median, p99)
    work = {"documents": len(lengths), "median": median, "p99": p99, "tasks": tasks, "max_tokens": settings.tokens}
    case = Case(name=name, work=work, unit="documents/s", missing=dict(lost or {}))
    case.checks["encoder_tokens"] = sum(lengths)

    def measure(peer: PeerSpec, repetition: int) -> Sample:
        ready_to_run(crew, peer, config)
        draw = Inputs(config, settings.seed, name, repetition)
        # What is not counted need not be long.
        chosen = lengths if repetition >= 0 or settings.device != "cpu" else lengths[:2]
        timed = crew.ask(peer, "run", draw.corpus(chosen, tasks), settings.tokens)
        check_produced(timed.result, [tasks] * len(chosen), settings.tokens)
        return Sample(value=len(chosen) / timed.seconds, seen=seen(timed, **timed.result.extra))

    case.repeat(crew, settings, measure, warm=True)
    case.checks["produced_tokens"] = len(lengths) * tasks * settings.tokens
    return case


def ready_to_run(crew: Crew, peer: PeerSpec, config: ModelConfig) -> None:
    """Load whatever a run needs, then count memory from there."""
    if crew.fresh(peer, "run"):
        draw = Inputs(config, 0, "rest")
        crew.ask(peer, "run", draw.corpus([8], 1), 2)
        crew.ask(peer, "rest")


def _decode_case(
    crew: Crew, settings: Settings, config: ModelConfig, document: np.ndarray, tasks: int, lost: dict[str, str]
) -> Case:
    tokens = len(document)
    work = {"tokens": tokens, "tasks": tasks, "max_tokens": 1 + settings.tokens}
    case = Case(name="decode", work=work, unit="tokens/s", missing=dict(lost))

    def measure(peer: PeerSpec, repetition: int) -> Sample:
        ready_to_run(crew, peer, config)
        # Encoded once by whoever can keep an encoding; the prefixes are new at every repetition.
        if crew.fresh(peer, f"hold {tokens}"):
            crew.ask(peer, "hold", document)
        prefixes = Inputs(config, settings.seed, "decode", tokens, tasks, repetition).prefixes(tasks)
        timed = crew.ask(peer, "decode", list(prefixes), 1 + settings.tokens)
        check_produced(timed.result, [tasks], 1 + settings.tokens)
        rate = timed.result.later_tokens / timed.result.later_seconds
        return Sample(value=rate, seen=seen(timed, call_s=timed.seconds))

    copy = lambda: crew.roofline("copy_rate")  # noqa: E731
    case.repeat(crew, settings, measure, bound=copy, warm=warm(settings, tokens))
    case.checks["produced_tokens"] = tasks * (1 + settings.tokens)
    return case


def mbu(case: Case, config: ModelConfig, settings: Settings, tokens: int, documents: int, rows: int) -> Ceiling | None:
    """Bytes that must be read for each step of `rows` rows over `documents` documents, over the copy bandwidth."""
    # A decode's own positions, on average.
    own = 1 + PREFIX_TOKENS + settings.tokens // 2
    dtypes = {peer.label: peer.dtype for peer in settings.peers}

    def reached(peer: str, rate: float) -> float:
        return rate / rows * step_bytes(config, dtypes[peer], tokens, documents, rows, own)

    return case.ceiling("MBU", "GB/s", reached, 1e9)
