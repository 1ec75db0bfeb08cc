"""A plan: what a run would do, from the same source and prepare stages, without the model's weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from infra.cluster import cluster
from infra.storage import Location
from workers.prepare import PENDING

from . import graph, lineage
from .job import JobSpec
from .reports import LengthBucket, PlanReport, TaskCounts
from .resolve import Resolved, resolve
from .resume import STATUS_NAMES, read_done
from .schema import output_schema
from .skip import Skip, skip_done
from .stages import unpack
from .table import check_table_schema, list_zones

_BUCKETS = [256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536, 131_072]


def plan_job(job: JobSpec, *, say: Callable[[str], None] = lambda line: None) -> PlanReport:
    """Documents, pairs to do and tokens by length, and how long the table's newest run says it takes.

    Reads and tokenizes what a run would read of the source; images are counted, not opened, so a broken one shows only
    in the run.
    """
    resolved = resolve(job)
    table = Location(job.output.path)
    zones = list_zones(table)
    check_table_schema(table, output_schema(resolved.carry), zones)
    say(f"{resolved.corpus.documents:,} documents in {len(resolved.corpus.files):,} files")
    counting = _Counting(resolved)
    corpus = resolved.corpus
    skip = skip_done(table, corpus, corpus.row_groups, [task.name for task in resolved.tasks], read_done(table, zones))
    counting.skip(skip)
    if skip.groups or corpus.unreadable:
        with cluster() as ray_cluster:
            settings = resolved.settings(run_id="plan", table=table.url, cluster=ray_cluster, pixels=False)
            packets = graph.prepared(resolved, settings, graph.share(skip.done), skip.groups, ray_cluster)
            for block in graph.blocks(packets):
                counting.add(unpack(block))
    return counting.report(table)


class _Counting:
    def __init__(self, resolved: Resolved) -> None:
        self._resolved = resolved
        self._names = [task.name for task in resolved.tasks]
        self._tasks = {name: TaskCounts() for name in self._names}
        self._todo = dict.fromkeys(self._names, 0)
        self._errors: dict[str, tuple[int, str]] = {}
        self._buckets = {limit: [0, 0] for limit in _BUCKETS}
        self._documents_todo = self._input_tokens = self._output_tokens = 0

    def skip(self, skip: Skip) -> None:
        for task, known in skip.counts.items():
            self._tasks[task].add(known)

    def add(self, documents: pa.Table) -> None:
        for document in documents.select(["pairs", "not_applicable", "requests"]).to_pylist():
            for task in document["not_applicable"]:
                self._tasks[self._names[task]].not_applicable += 1
            todo = [self._count(pair) for pair in document["pairs"]]
            self._documents_todo += any(todo)
            for request in document["requests"] or ():
                self._bucket(request["input_tokens"])

    def report(self, table: Location) -> PlanReport:
        corpus = self._resolved.corpus
        seconds, basis = _estimate(table, self._resolved, self._input_tokens, self._documents_todo)
        return PlanReport(
            table=table.url,
            files=len(corpus.files),
            source_bytes=corpus.bytes,
            documents=corpus.documents,
            documents_todo=self._documents_todo,
            todo=self._todo,
            tasks=self._tasks,
            buckets=[LengthBucket(max_tokens=k, documents=d, tokens=t) for k, (d, t) in self._buckets.items() if d],
            input_tokens=self._input_tokens,
            max_output_tokens=self._output_tokens,
            errors=self._errors,
            estimate_seconds=seconds,
            estimate_basis=basis,
            warnings=self._resolved.warnings,
        )

    def _count(self, pair: dict[str, Any]) -> bool:
        name = self._names[pair["task"]]
        if pair["state"] != PENDING:
            field = f"already_{STATUS_NAMES[pair['state']]}"
            setattr(self._tasks[name], field, getattr(self._tasks[name], field) + 1)
            return False
        self._todo[name] += 1
        if pair["error_code"] is None:
            self._output_tokens += self._resolved.tasks[pair["task"]].sampling.max_tokens
        else:
            seen, example = self._errors.get(pair["error_code"], (0, pair["error_message"]))
            self._errors[pair["error_code"]] = (seen + 1, example)
        return True

    def _bucket(self, tokens: int) -> None:
        self._input_tokens += tokens
        limit = next((limit for limit in _BUCKETS if tokens <= limit), _BUCKETS[-1])
        self._buckets[limit][0] += 1
        self._buckets[limit][1] += tokens


def _figure(value: object) -> float:
    """A number of a manifest, which is a file that anything may have been done to; 0 for what is none."""
    return float(value) if isinstance(value, int | float) and 0 < value < 1e18 else 0.0


def _estimate(table: Location, resolved: Resolved, tokens: int, documents: int) -> tuple[float | None, str]:
    """Seconds for `tokens`, at the pace of the newest run of this model on this table that made anything."""
    if not documents:
        return 0.0, "nothing is left to do"
    for manifest in lineage.read_manifests(table):
        seconds, made = _figure(manifest.get("generate_seconds")), _figure(manifest.get("input_tokens"))
        model = manifest.get("model")
        same = isinstance(model, dict) and model.get("revision") == resolved.revision
        if same and seconds and made:
            return seconds * tokens / made, f"at the pace of run {manifest.get('run_id')}"
    return None, "this model has not run on this table yet; `corpusmill run JOB --sample 20` measures its pace"
