"""Figure `pipeline`: documents/s through the Ray graph, in per cent of the same engine fed from an endless queue."""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra.cluster import usable_cores
from model_runtime import Decode, EngineConfig, Generation, Request, load_backend
from model_runtime.processing import Processor
from pipelines.job import JobSpec
from workers.tasks import Task, TaskTable, resolve_tasks

from .machine import describe, today, versions
from .texts import DOCUMENTS
from .types import Ceiling, Figure, Settings, Value

_Z99 = 2.326
# The corpus of the other figures this many times over: the head and the tail of a run are not the run.
_TIMES = 4
_ROWS_PER_GROUP = 64
_LANGUAGES = ("en", "fr", "de", "es", "it", "nl", "pl", "pt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The corpus and what is asked of it: lengths are log-normal with this median and 99th percentile, in tokens."""

    documents: int = 192
    tasks: int = 4
    tokens: int = 32
    median: int = 600
    p99: int = 6000
    seed: int = 0

    def lengths(self) -> np.ndarray:
        """Encoder tokens of each document."""
        sigma = np.log(self.p99 / self.median) / _Z99
        drawn = np.random.default_rng(self.seed).lognormal(np.log(self.median), sigma, self.documents)
        return np.maximum(drawn.round().astype(np.int64), 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One side of one round: what the engine did in the `seconds` that were timed, `busy_seconds` of them working."""

    documents: int
    rows: int
    input_tokens: int
    output_tokens: int
    seconds: float
    busy_seconds: float

    @property
    def rate(self) -> float:
        """Documents per second."""
        return self.documents / self.seconds


def measure_pipeline(settings: Settings) -> Iterator[Figure]:
    """The graph and the engine alone in turn, each in processes of its own; ValueError when their work differs.

    The graph is timed in its engine, from its first document to its last generation: starting Ray, loading the model
    and publishing the table are not in it; the run's head and tail are. The engine alone is timed while its queue is
    never empty: after a first round of decodes, until the whole corpus has come out once.
    """
    work = Work(
        documents=_TIMES * settings.documents,
        tasks=settings.tasks[0] if settings.tasks else 4,
        tokens=settings.tokens,
        seed=settings.seed,
    )
    with tempfile.TemporaryDirectory(dir=settings.folder) as scratch:
        source = Path(scratch, "documents.parquet")
        write_corpus(source, Processor.load(settings.model), work)
        rounds: list[tuple[Side, Side]] = []
        for number in range(settings.repeat):
            job = _job(settings.model, source, Path(scratch, f"table-{number}"), work, settings.device)
            graph = _through_the_graph(job)
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                engine = pool.submit(_engine_alone, job, source).result()
            _check_equal(graph, engine, work)
            rounds.append((graph, engine))
            settings.say(f"pipeline: {100 * graph.rate / engine.rate:.1f}% ({number + 1}/{settings.repeat})")
    yield _figure(settings, work, rounds)


def _figure(settings: Settings, work: Work, rounds: Sequence[tuple[Side, Side]]) -> Figure:
    graphs, engines = zip(*rounds, strict=True)
    rate = statistics.median(graph.rate / engine.rate for graph, engine in rounds)
    alone = statistics.median(engine.rate for engine in engines)
    busy = statistics.median(graph.busy_seconds / graph.seconds for graph in graphs)
    return Figure(
        name="pipeline",
        work={"documents": work.documents, "tasks": work.tasks, "tokens": work.tokens},
        unit="documents/s",
        values=(
            Value(peer="graph", samples=tuple(side.rate for side in graphs), extra={"busy_percent": 100 * busy}),
            Value(peer="engine alone", samples=tuple(side.rate for side in engines)),
        ),
        ratios={"graph / engine alone": rate},
        checks={
            "rows": graphs[0].rows,
            "input_tokens": graphs[0].input_tokens,
            "output_tokens": [graphs[0].output_tokens, engines[0].output_tokens],
        },
        ceiling=Ceiling(kind="engine alone", measured=alone, unit="documents/s", reached={"graph": rate}),
        device=describe(settings.device, usable_cores()),
        date=today(),
        versions=versions(),
    )


def write_corpus(path: Path, processor: Processor, work: Work) -> None:
    """One Parquet file of documents whose encoder inputs have about the lengths that `work` draws."""
    words = sorted({word for document in DOCUMENTS for word in document.text.split()})
    costs = np.array([len(processor.encode_text(f" {word}")) for word in words])
    draw = np.random.default_rng(work.seed + 1)
    texts = [_text(words, costs, length - 1, draw) for length in work.lengths()]
    table = pa.table({"id": [f"doc-{i:06d}" for i in range(len(texts))], "body": texts})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=_ROWS_PER_GROUP)


def _text(words: Sequence[str], costs: np.ndarray, tokens: int, draw: np.random.Generator) -> str:
    chosen = draw.integers(0, len(words), tokens)
    fitting = max(1, int(np.searchsorted(np.cumsum(costs[chosen]), tokens, side="right")))
    return " ".join(words[i] for i in chosen[:fitting])


def _job(model: Path, source: Path, table: Path, work: Work, device: str) -> JobSpec:
    tasks = [
        {"name": f"t{i}", "kind": "translate", "language": _LANGUAGES[i % len(_LANGUAGES)], "max_tokens": work.tokens}
        for i in range(work.tasks)
    ]
    return JobSpec.model_validate(
        {
            "name": "bench-pipeline",
            "model": {"path": str(model), "device": device},
            "source": {"path": str(source), "id": "id", "text": "body"},
            "tasks": tasks,
            "output": {"path": str(table)},
        }
    )


def _through_the_graph(job: JobSpec) -> Side:
    # Here and not above: the process that steps the engine alone imports this module, and is to import nothing else.
    from pipelines.generate import run_job

    report = run_job(job, job_text="benchmark: pipeline")
    return Side(
        documents=report.documents_made,
        rows=sum(counts.ok for counts in report.tasks.values()),
        input_tokens=report.input_tokens,
        output_tokens=report.output_tokens,
        seconds=report.serving_seconds,
        busy_seconds=report.generate_seconds,
    )


def _engine_alone(job: JobSpec, source: Path) -> Side:
    """The engine as the graph's model worker has it, stepped in this process over the corpus again and again."""
    folder = Path(job.model.path)
    processor = Processor.load(folder)
    tasks = resolve_tasks(job.tasks, TaskTable.parse(processor.tasks_document), job.limits)
    texts = pq.read_table(source).column("body").to_pylist()
    backend = load_backend(
        EngineConfig(
            model=str(folder),
            backend=job.model.backend,
            device=job.model.device,
            dtype=job.model.dtype,
            threads=usable_cores() if job.model.device == "cpu" else None,
            max_batch_tokens=job.model.max_batch_tokens,
            max_decodes=job.model.max_decodes,
            shares_cores=True,
        )
    )
    stream = _endless(texts, tasks, processor, job)
    window = _Window(warm=-(-job.model.max_decodes // len(tasks)), documents=len(texts))
    while not window.closed:
        while window.in_flight < 2 * job.model.max_decodes:
            request = next(stream)
            window.submitted(request)
            backend.submit(request)
        started = time.perf_counter()
        finished = backend.step()
        window.add(finished, time.perf_counter() - started)
    return window.side()


def _endless(texts: Sequence[str], tasks: Sequence[Task], processor: Processor, job: JobSpec) -> Iterator[Request]:
    """The corpus in its order, again and again, prepared as the graph prepares it; ids count up."""
    prefixes = [processor.prefix_ids(task.prompt) for task in tasks]
    inputs = [
        processor.encoder_input(
            text=text,
            images=0,
            max_tokens=min(job.limits.max_input_tokens, processor.max_positions),
            overflow=job.limits.overflow,
        ).ids
        for text in texts
    ]
    for number in count():
        decodes = tuple(
            Decode(key=f"{number}/{t}", prefix_ids=prefix, sampling=task.sampling)
            for t, (task, prefix) in enumerate(zip(tasks, prefixes, strict=True))
        )
        yield Request(id=str(number), input_ids=inputs[number % len(inputs)], decodes=decodes)


class _Window:
    """Times an engine from when `warm` documents have come out until `documents` more have; counts the first pass."""

    def __init__(self, warm: int, documents: int) -> None:
        self._warm = warm
        self._documents = documents
        self._missing: dict[int, int] = {}
        self._ended = self._first_pass_ended = 0
        self._rows = self._input_tokens = self._output_tokens = 0
        self._began: tuple[float, int] | None = None
        self._closed: tuple[float, int] | None = None
        self._busy = 0.0

    @property
    def in_flight(self) -> int:
        """Documents in the engine."""
        return len(self._missing)

    @property
    def closed(self) -> bool:
        """Whether the time is over and the whole corpus has come out."""
        return self._closed is not None and self._first_pass_ended == self._documents

    def submitted(self, request: Request) -> None:
        """A document goes in."""
        number = int(request.id)
        self._missing[number] = len(request.decodes)
        if number < self._documents:
            self._input_tokens += len(request.input_ids)

    def add(self, finished: Sequence[Generation], step_seconds: float) -> None:
        """What one step brought."""
        if self._began is not None and self._closed is None:
            self._busy += step_seconds
        for generation in finished:
            if generation.error is not None:
                raise ValueError(f"the engine failed a document: {generation.error.message}")
            number = int(generation.key.partition("/")[0])
            if number < self._documents:
                self._rows += 1
                self._output_tokens += generation.output_tokens
            self._missing[number] -= 1
            if not self._missing[number]:
                del self._missing[number]
                self._ended += 1
                self._first_pass_ended += number < self._documents
        if not finished:
            return
        if self._began is None and self._ended >= self._warm:
            self._began = time.perf_counter(), self._ended
        elif self._began is not None and self._closed is None and self._ended >= self._began[1] + self._documents:
            self._closed = time.perf_counter(), self._ended

    def side(self) -> Side:
        """The time for exactly the corpus, and what the corpus came to."""
        assert self._began is not None and self._closed is not None
        share = self._documents / (self._closed[1] - self._began[1])
        return Side(
            documents=self._documents,
            rows=self._rows,
            input_tokens=self._input_tokens,
            output_tokens=self._output_tokens,
            seconds=(self._closed[0] - self._began[0]) * share,
            busy_seconds=self._busy * share,
        )


def _check_equal(graph: Side, engine: Side, work: Work) -> None:
    for name, expected in (
        ("documents", work.documents),
        ("rows", work.documents * work.tasks),
        ("input_tokens", None),
    ):
        found, alone = getattr(graph, name), getattr(engine, name)
        if found != alone or (expected is not None and found != expected):
            raise ValueError(f"the two sides did not do the same work: {name} {found:,} in the graph, {alone:,} alone")
    # Rounding in bfloat16 depends on what is decoded together, so that now and then one side ends a text earlier.
    if abs(graph.output_tokens - engine.output_tokens) > 0.05 * engine.output_tokens:
        raise ValueError(
            "the two sides did not do the same work: "
            f"{graph.output_tokens:,} tokens in the graph, {engine.output_tokens:,} alone"
        )
