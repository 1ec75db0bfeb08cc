"""A run: what is asked for and not there yet is made, published, and accounted for."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from infra.cluster import Cluster, cluster
from infra.storage import FileInfo, Location, StorageError
from model_runtime import ModelError

from . import graph, lineage
from .errors import RunError
from .job import JobSpec
from .lease import Lease
from .ledger import LedgerWriter
from .publish import Publisher
from .reports import Progress, RunReport
from .resolve import Resolved, check_gpus, resolve
from .resume import read_done
from .schema import output_schema
from .skip import skip_done
from .source import RowGroup
from .source import sample as sample_of
from .table import check_table_schema, clean_partial, list_zones
from .tally import Tally

_PUBLISH_EVERY = 120.0
_PROGRESS_EVERY = 0.25
_INTERRUPTED = 130
_INTERNAL = 1
_UNUSABLE = RunError.exit_code


@dataclass(slots=True, kw_only=True)
class _Run:
    """One run's identity and what it carries from start to end."""

    run_id: str
    table: Location
    resolved: Resolved
    job_text: str
    schema: pa.Schema
    started: datetime
    tally: Tally

    def manifest(
        self, *, exit_code: int | None = None, error: str | None = None, ended: bool = False
    ) -> dict[str, Any]:
        """The manifest as of now."""
        job, corpus = self.resolved.job, self.resolved.corpus
        tally = self.tally
        return lineage.build_manifest(
            run_id=self.run_id,
            job_name=job.name,
            job_text=self.job_text,
            source=job.source.path,
            model={
                "path": job.model.path,
                "revision": self.resolved.revision,
                "backend": job.model.backend,
                "dtype": tally.dtype or job.model.dtype,
            },
            tasks=self.resolved.tasks,
            inputs=[{"path": f.url, "size": f.size, "etag": f.etag, "rows": f.rows} for f in corpus.files],
            counts=tally.counts,
            started=self.started,
            ended=datetime.now(UTC) if ended else None,
            exit_code=exit_code,
            error=error,
            warnings=self.resolved.warnings,
            extra={
                "documents": tally.documents,
                "documents_made": tally.documents_made,
                "input_tokens": tally.input_tokens,
                "output_tokens": tally.output_tokens,
                "generate_seconds": round(tally.generate_seconds, 3),
                "serving_seconds": round(tally.serving_seconds, 3),
                "workers": len(tally.busy),
                "unreadable": [{"path": f.url, "etag": f.etag, "reason": f.reason} for f in corpus.unreadable],
            },
        )


def run_job(
    job: JobSpec,
    *,
    job_text: str,
    sample: int | None = None,
    retry_failed: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> RunReport:
    """Make every pair of `job` that its table does not hold yet; RunError and its kin say why a run could not.

    `sample`: only that many documents, into a scratch table of their own below the output. `job_text` is the job
    file as written, for the manifest. What is finished stays, however the run ends.
    """
    resolved = resolve(job)
    run_id = lineage.new_run_id()
    table = Location(job.output.path)
    if sample is not None:
        table = table.child("_samples", run_id)
    schema = output_schema(resolved.carry)
    say(_opening(resolved))
    with Lease.acquire(table, run_id, job.name) as lease:
        clean_partial(table)
        zones = list_zones(table)
        check_table_schema(table, schema, zones)
        groups = resolved.corpus.row_groups if sample is None else sample_of(resolved.corpus, sample)
        tally = Tally(tasks=[task.name for task in resolved.tasks], documents_total=_documents(groups, resolved))
        run = _Run(
            run_id=run_id,
            table=table,
            resolved=resolved,
            job_text=job_text,
            schema=schema,
            started=datetime.now(UTC),
            tally=tally,
        )
        publisher = Publisher(table, run_id, lineage.job_hash(job_text), schema, tally.tasks, check=lease.check)
        with cluster() as ray_cluster:
            _warn(run, check_gpus(job, ray_cluster))
            _begin(run)
            try:
                _stream(run, publisher, groups, zones, ray_cluster, retry_failed, on_progress)
                publisher.publish(final=True)
                _check_complete(tally)
                _end_well(run)
            except BaseException as error:
                _end_badly(run, publisher, error)
                raise
    return _report(run)


def _stream(
    run: _Run,
    publisher: Publisher,
    groups: list[RowGroup],
    zones: dict[str, list[FileInfo]],
    ray_cluster: Cluster,
    retry_failed: bool,
    on_progress: Callable[[Progress], None] | None,
) -> None:
    resolved, tally = run.resolved, run.tally
    settings = resolved.settings(run_id=run.run_id, table=run.table.url, cluster=ray_cluster, retry_failed=retry_failed)
    # A sample's row groups are never whole, and its table is new.
    skip = skip_done(run.table, resolved.corpus, groups, tally.tasks, read_done(run.table, zones), retry_failed)
    tally.skip(skip)
    published = told = time.monotonic()
    outcomes = graph.outcome_blocks(resolved, settings, skip.done, skip.groups, ray_cluster)
    # Closed on the way out, so that the graph is not running on while what it made is published.
    with (
        LedgerWriter(run.table, run.run_id, resolved.corpus, skip.groups, resolved.decides) as ledger,
        closing(outcomes),
    ):
        ledger.refer(skip.records)
        if on_progress and skip.documents:
            on_progress(tally.progress)
        for outcome in outcomes:
            tally.add(outcome)
            ledger.add(outcome)
            now = time.monotonic()
            if on_progress and (now - told >= _PROGRESS_EVERY or tally.documents == tally.documents_total):
                on_progress(tally.progress)
                told = now
            tally.check_failure_rate(resolved.job.limits.max_failure_rate)
            if now - published >= _PUBLISH_EVERY:
                publisher.publish()
                published = time.monotonic()


def _begin(run: _Run) -> None:
    manifest = run.manifest()
    lineage.write_manifest(run.table, run.run_id, manifest)
    _warn(run, lineage.emit_openlineage(run.table, manifest, "START", run.schema))


def _check_complete(tally: Tally) -> None:
    if tally.documents != tally.documents_total:
        raise RunError(
            f"{tally.documents:,} of {tally.documents_total:,} documents came out of the graph; the source may have "
            "changed meanwhile. What is done is kept; run again to make the rest"
        )


def _end_well(run: _Run) -> None:
    manifest = run.manifest(exit_code=0, ended=True)
    lineage.write_manifest(run.table, run.run_id, manifest)
    _warn(run, lineage.emit_openlineage(run.table, manifest, "COMPLETE", run.schema))
    try:
        lineage.write_data_card(run.table, manifest, run.schema)
    except StorageError as error:
        # The rows and their manifest stand: a missing card fails nobody.
        _warn(run, f"the table's README.md could not be written: {error}")


def _end_badly(run: _Run, publisher: Publisher, error: BaseException) -> None:
    """Publish what is finished and write down why the run ended; the error itself goes on its way."""
    code = error.exit_code if isinstance(error, RunError) else _INTERNAL
    if isinstance(error, StorageError | ModelError):
        code = _UNUSABLE
    if isinstance(error, KeyboardInterrupt):
        code = _INTERRUPTED
    # Each step by itself: the error that ended the run may stop any of them too.
    with suppress(Exception):
        publisher.publish(final=True)
    reason = (str(error) or type(error).__name__).splitlines()[0]
    manifest = run.manifest(exit_code=code, error=reason, ended=True)
    lineage.emit_openlineage(run.table, manifest, "ABORT" if code == _INTERRUPTED else "FAIL", run.schema, reason)
    with suppress(Exception):
        lineage.write_manifest(run.table, run.run_id, manifest)


def _report(run: _Run) -> RunReport:
    tally = run.tally
    return RunReport(
        run_id=run.run_id,
        table=run.table.url,
        documents=run.resolved.corpus.documents,
        documents_made=tally.documents_made,
        tasks=tally.counts,
        input_tokens=tally.input_tokens,
        output_tokens=tally.output_tokens,
        seconds=(datetime.now(UTC) - run.started).total_seconds(),
        generate_seconds=tally.generate_seconds,
        workers=max(1, len(tally.busy)),
        errors=tally.errors,
        warnings=run.resolved.warnings,
        serving_seconds=tally.serving_seconds,
        model_revision=run.resolved.revision,
        fingerprints=tuple(task.fingerprint for task in run.resolved.tasks),
    )


def _opening(resolved: Resolved) -> str:
    corpus = resolved.corpus
    files = len(corpus.files)
    return f"{corpus.documents:,} documents in {files:,} {'file' if files == 1 else 'files'}"


def _documents(groups: list, resolved: Resolved) -> int:
    chosen = sum(group.documents if group.only is None else len(group.only) for group in groups)
    return chosen + len(resolved.corpus.unreadable)


def _warn(run: _Run, warning: str | None) -> None:
    if warning:
        run.resolved.warnings.append(warning)
