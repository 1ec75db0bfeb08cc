"""Figure `gpu`: what a GPU is asked besides, in one call: MFU and MBU of the three sizes, the corpus at 1B."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping

from model_runtime.config import ModelConfig

from .cases import Case, Sample
from .checkpoint import write_checkpoint
from .crew import Crew
from .decode import CORPUS_TASKS, MEDIAN, P99, corpus_case, later_rate, mbu
from .encode import encode_case, mfu
from .inputs import Inputs
from .types import Figure, PeerSpec, Settings

SIZES = ("270m", "1b", "4b")
LENGTHS = (2048, 8192, 32_768, 131_072)
BATCHES = (1, 8, 32, 128, 512)
BATCH_DOCUMENT = 512
TASKS_EACH = 4
# The whole figure; a case that would begin later is left out, and says so.
SECONDS = 480.0
# One answer; on a GPU whatever takes longer has lost.
_LIMIT = 60.0
_REPEAT = 3


def measure_gpu(settings: Settings) -> Iterator[Figure]:
    """Encode and decode at each size, the small ones first, then the corpus at 1B, until the time is up."""
    settings = dataclasses.replace(
        settings,
        repeat=min(settings.repeat, _REPEAT),
        limit_seconds=min(settings.limit_seconds, _LIMIT),
        budget_seconds=min(settings.budget_seconds, 30.0),
        settle_seconds=min(settings.settle_seconds, 0.05),
    )
    clock = _Clock(SECONDS)
    own = settings.size == "demo" or settings.model.name != settings.size
    for size in (settings.size,) if own else SIZES:
        chosen = _of_size(settings, size)
        yield from _encode(chosen, size, clock)
        yield from _decode(chosen, size, clock)
        if own or size == "1b":
            yield from _corpus(chosen, size, clock)


class _Clock:
    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def over(self) -> bool:
        return time.monotonic() > self._end


def _of_size(settings: Settings, size: str) -> Settings:
    """The checkpoint of this size, made if need be, and the peers that take part with it."""
    if size == settings.size:
        return settings
    base = settings.folder.parent
    folder = base / f"peers-{size}"
    folder.mkdir(parents=True, exist_ok=True)
    model = write_checkpoint(base / size, size, settings.say)
    return dataclasses.replace(settings, size=size, model=model.resolve(), folder=folder)


def _not_here(settings: Settings, size: str) -> dict[str, str]:
    """Peers that would take the time of all others, and why."""
    slow = {"transformers-plain": "left out here: slower than transformers-expert by design"}
    if size == "4b":
        slow["ctranslate2"] = "left out here: converting this size takes minutes by itself"
    return {peer.label: slow[peer.name] for peer in settings.peers if peer.name in slow}


def _encode(settings: Settings, size: str, clock: _Clock) -> Iterator[Figure]:
    config = ModelConfig.load(settings.model)
    lost = _not_here(settings, size)
    with Crew(settings) as crew:
        for tokens in settings.lengths or LENGTHS:
            if tokens > config.max_input_tokens:
                continue
            if clock.over:
                yield _left_out("gpu-encode", {"size": size, "tokens": tokens}, settings)
                continue
            case = encode_case(crew, settings, config, tokens, lost, name="gpu-encode")
            case.work = {"size": size, **case.work}
            lost = {peer: f"not tried after {tokens:,} tokens: {why}" for peer, why in case.missing.items()} | lost
            yield case.figure(settings, mfu(case, config, tokens))


def _decode(settings: Settings, size: str, clock: _Clock) -> Iterator[Figure]:
    """Tokens/s of a batch of rows: documents of one length with up to four tasks each, all decoded together."""
    config = ModelConfig.load(settings.model)
    lost = _not_here(settings, size)
    tokens = min(settings.lengths) if settings.lengths else BATCH_DOCUMENT
    rows_of = settings.tasks or BATCHES
    # Batches as large as the figure: nobody splits what it asks to be one.
    with Crew(settings, batch_tokens=max(rows_of) * tokens, max_decodes=max(rows_of)) as crew:
        for rows in rows_of:
            if clock.over:
                yield _left_out("gpu-decode", {"size": size, "batch": rows}, settings)
                continue
            case = _batch_case(crew, settings, config, size, tokens, rows, lost)
            lost = {peer: f"not tried after batch {rows}: {why}" for peer, why in case.missing.items()} | lost
            yield case.figure(settings, mbu(case, config, settings, tokens, -(-rows // TASKS_EACH), rows))


def _batch_case(
    crew: Crew, settings: Settings, config: ModelConfig, size: str, tokens: int, rows: int, lost: dict[str, str]
) -> Case:
    tasks = [min(TASKS_EACH, rows - first) for first in range(0, rows, TASKS_EACH)]
    case = Case(
        name="gpu-decode",
        work={"size": size, "batch": rows, "tokens": tokens},
        unit="tokens/s",
        missing=dict(lost),
    )

    def measure(peer: PeerSpec, repetition: int) -> Sample:
        draw = Inputs(config, settings.seed, "gpu-decode", rows, repetition)
        return later_rate(crew, peer, config, draw, settings, tokens, tasks)

    copy = lambda: crew.roofline("copy_rate")  # noqa: E731
    case.repeat(crew, settings, measure, bound=copy, warm=True)
    return case


def _corpus(settings: Settings, size: str, clock: _Clock) -> Iterator[Figure]:
    work = {"size": size}
    if clock.over:
        yield _left_out("gpu-corpus", work, settings)
        return
    config = ModelConfig.load(settings.model)
    median, p99 = (min(settings.lengths), max(settings.lengths)) if settings.lengths else (MEDIAN, P99)
    with Crew(settings) as crew:
        case = corpus_case(
            crew, settings, config, median, p99, CORPUS_TASKS, name="gpu-corpus", lost=_not_here(settings, size)
        )
        case.work = {**work, **case.work}
        yield case.figure(settings)


def _left_out(name: str, work: Mapping[str, object], settings: Settings) -> Figure:
    case = Case(name=name, work=dict(work), unit="tokens/s")
    case.missing = {peer.label: "no time was left in this call" for peer in settings.peers}
    return case.figure(settings)
