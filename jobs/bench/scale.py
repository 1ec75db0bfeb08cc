"""Figure `scale`: what 1, 2 and 4 nodes make of an engine that only sleeps, in per cent of what so many must make."""

from __future__ import annotations

import dataclasses
import logging
import os
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from infra.cluster import QUIET, Cluster, usable_cores
from model_runtime import EngineConfig, EngineStats, Generation, Request
from pipelines.job import JobSpec

from .machine import describe, today, versions
from .types import Ceiling, Figure, Settings, Value

NODES = (1, 2, 4)
_CPUS = 4
# Each node gets this many batches of this many documents.
_BATCHES, _BATCH = 16, 16
_BATCH_SECONDS = 2.0
# About a thousand tokens, so that a packet holds about a batch.
_SENTENCES = 160


class SleepingBackend:
    """A `Backend` whose every step takes up to `batch` documents, sleeps, and gives each decode one token."""

    dtype = "float32"

    def __init__(self, batch: int, seconds: float) -> None:
        self._batch = batch
        self._seconds = seconds
        self._queue: deque[Request] = deque()
        self._steps = self._encodes = self._tokens = self._decoded = 0

    @property
    def stats(self) -> EngineStats:
        """A snapshot of the counts so far."""
        share = self._encodes / (self._steps * self._batch) if self._steps else 0.0
        return EngineStats(
            encodes=self._encodes,
            encoder_tokens=self._tokens,
            decoded_tokens=self._decoded,
            steps=self._steps,
            occupancy=share,
        )

    def submit(self, request: Request) -> None:
        """Queue one document."""
        self._queue.append(request)

    def step(self) -> list[Generation]:
        """One batch; as long for a single document as for a full one."""
        taken = [self._queue.popleft() for _ in range(min(self._batch, len(self._queue)))]
        if not taken:
            return []
        time.sleep(self._seconds)
        self._steps += 1
        self._encodes += len(taken)
        self._tokens += sum(len(request.input_ids) for request in taken)
        done = [
            Generation(key=decode.key, token_ids=(5,), finish_reason="length", output_tokens=1)
            for request in taken
            for decode in request.decodes
        ]
        self._decoded += len(done)
        return done

    def generate(self, requests: Iterable[Request]) -> Iterator[Generation]:
        """Submit all of `requests` and yield what finishes."""
        for request in requests:
            self.submit(request)
        while self._queue:
            yield from self.step()

    def close(self) -> None:
        """Nothing to give back."""


def _load(batch: int, seconds: float, config: EngineConfig) -> SleepingBackend:
    return SleepingBackend(batch, seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What every node gets to do, and the sleep of a batch."""

    nodes: tuple[int, ...] = NODES
    batches: int = _BATCHES
    batch: int = _BATCH
    seconds: float = _BATCH_SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """One run: its documents, and for how long its nodes were there, all together."""

    documents: int
    node_seconds: float
    rows: int
    nodes: int


def measure_scale(settings: Settings) -> Iterator[Figure]:
    """The default load; see `measure_load`."""
    yield from measure_load(settings, Load())


def measure_load(settings: Settings, load: Load) -> Iterator[Figure]:
    """The whole graph on local clusters of 1, 2, 4 nodes, only its engine replaced; one figure for each size.

    The ideal is nodes × batch / sleep. A node counts from its engine's first document, so that starting it is not in
    the figure, until the last generation of all nodes: a tail, in which some have nothing left, is. ValueError when
    rows are missing or a node got nothing.
    """
    alone: float | None = None
    for nodes in load.nodes:
        ideal = nodes * load.batch / load.seconds
        runs = []
        for _ in range(settings.repeat):
            with tempfile.TemporaryDirectory(dir=settings.folder) as scratch:
                runs.append(_run(settings.model, Path(scratch), nodes, load))
            rates = tuple(nodes * run.documents / run.node_seconds for run in runs)
            settings.say(f"scale: {nodes} nodes {100 * rates[-1] / ideal:.1f}%")
        middle = statistics.median(rates)
        alone = alone or middle / nodes
        yield Figure(
            name="scale",
            work={"nodes": nodes, "documents": nodes * load.batches * load.batch},
            unit="documents/s",
            values=(Value(peer="graph", samples=rates, extra={"efficiency_percent": 100 * middle / ideal}),),
            ratios={f"graph / {nodes} times one node": middle / (nodes * alone)},
            checks={"rows": runs[0].rows, "nodes_at_work": runs[0].nodes},
            ceiling=Ceiling(kind="sleep", measured=ideal, unit="documents/s", reached={"graph": middle / ideal}),
            device=describe("cpu", usable_cores()),
            date=today(),
            versions=versions(),
        )


def _run(model: Path, folder: Path, nodes: int, load: Load) -> _Seen:
    import ray
    from ray.cluster_utils import Cluster as LocalCluster

    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    local = LocalCluster(initialize_head=True, head_node_args={"num_cpus": _CPUS})
    try:
        for _ in range(nodes - 1):
            local.add_node(num_cpus=_CPUS)
        local.wait_for_nodes()
        ray.init(address=local.address, logging_level=logging.ERROR, log_to_driver=False)
        try:
            return _through_the_graph(model, folder, nodes, load)
        finally:
            ray.shutdown()
    finally:
        local.shutdown()


def _through_the_graph(model: Path, folder: Path, nodes: int, load: Load) -> _Seen:
    from infra.storage import Location
    from pipelines import graph
    from pipelines.resolve import resolve
    from pipelines.resume import read_done
    from pipelines.tally import Tally

    documents = nodes * load.batches * load.batch
    job = _job(model, folder, documents, nodes)
    resolved = resolve(job)
    cluster = Cluster(cpus=_CPUS * nodes, gpus=0.0, nodes=nodes, local=True)
    settings = resolved.settings(run_id="scale", table=job.output.path, cluster=cluster)
    settings = dataclasses.replace(settings, load=partial(_load, load.batch, load.seconds))
    done = graph.share(read_done(Location(job.output.path)))
    tally = Tally(tasks=[task.name for task in resolved.tasks], documents_total=documents)
    began: dict[str, float] = {}
    ended: dict[str, float] = {}
    for outcome in graph.blocks(graph.outcomes(resolved, settings, done, resolved.corpus.row_groups, cluster)):
        tally.add(outcome)
        now = time.perf_counter()
        for worker, serving in zip(*(outcome.column(c).to_pylist() for c in ("worker", "serving_seconds"))):
            # The workers' clocks say how long; when, the first to arrive says best.
            began[worker] = min(began.get(worker, now), now - serving)
            ended[worker] = max(ended.get(worker, 0.0), serving)
    rows = sum(counts.ok for counts in tally.counts.values())
    places = {worker.partition("/")[0] for worker in began}
    last = max(began[worker] + ended[worker] for worker in began)
    if rows != documents or tally.documents != documents:
        raise ValueError(f"{documents:,} documents went in, {tally.documents:,} and {rows:,} rows came out")
    if not len(places) == len(began) == nodes:
        raise ValueError(f"{len(began)} workers on {len(places)} nodes did something, there are {nodes} nodes")
    node_seconds = sum(last - start for start in began.values())
    return _Seen(documents=documents, node_seconds=node_seconds, rows=rows, nodes=len(places))


def _job(model: Path, folder: Path, documents: int, nodes: int) -> JobSpec:
    source = folder / "source.parquet"
    bodies = [f"The text of document {n}. " + "It goes on and on. " * _SENTENCES for n in range(documents)]
    pq.write_table(pa.table({"id": [f"doc-{n}" for n in range(documents)], "body": bodies}), source, row_group_size=256)
    return JobSpec.model_validate(
        {
            "name": "bench-scale",
            "model": {"path": str(model), "device": "cpu"},
            "source": {"path": str(source), "id": "id", "text": "body"},
            "tasks": [{"name": "t", "kind": "prompt", "prompt": "Go on:", "max_tokens": 1}],
            "output": {"path": str(folder / "table")},
            "workers": {"min": nodes, "max": nodes},
        }
    )
