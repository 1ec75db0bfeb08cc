"""A small table made by the run's own stages one after the other in this process, without Ray: all of it is true."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from infra.cluster import Cluster
from infra.storage import Location
from pipelines import lineage
from pipelines.job import JobSpec
from pipelines.ledger import LedgerWriter
from pipelines.publish import Publisher
from pipelines.read import Read, as_units
from pipelines.resolve import resolve
from pipelines.resume import read_done
from pipelines.schema import output_schema
from pipelines.stages import Finish, refers
from pipelines.tally import Tally
from workers.generate import Generate
from workers.image_reader import ImageReader
from workers.inputs import Inputs
from workers.prepare import Prepare

SUMMARY = {"name": "summary", "kind": "summarize", "max_tokens": 6}
CAPTION = {"name": "alt", "kind": "caption", "max_tokens": 6}


def job_text(folder: Path | str, model: Path, tasks: list[dict[str, Any]], dtype: str = "float32", **source) -> str:
    """A job file (JSON is YAML) over `folder`/corpus into `folder`/table."""
    job = {
        "name": "whole",
        "model": {"path": str(model), "dtype": dtype, "device": "cpu"},
        "source": {"path": f"{folder}/corpus", "id": "doc_id", "text": "body", "images": "photos", **source},
        "tasks": tasks,
        "output": {"path": f"{folder}/table"},
    }
    return json.dumps(job)


def run_here(text: str, filled: str | None = None) -> str:
    """Makes what the job's table lacks and publishes it, as `corpusmill run` would; the run's id.

    `filled`: the job file with its ${ENV} filled in, where `text` has any.
    """
    job = JobSpec.model_validate(json.loads(filled or text))
    resolved, run_id, started = resolve(job), lineage.new_run_id(), datetime.now(UTC)
    table = Location(job.output.path)
    cluster = Cluster(cpus=2, gpus=0, nodes=1, local=True)
    settings = resolved.settings(run_id=run_id, table=table.url, cluster=cluster)
    images = ImageReader(job.source.path, job.source.image_roots)
    inputs = Inputs(job.model.path, resolved.tasks, job.limits)
    prepare = Prepare(inputs, resolved.tasks, job.limits, resolved.revision, read_done(table), images)
    generate, finish = Generate(settings.engine, resolved.tasks), Finish(settings)
    schema = output_schema(resolved.carry)
    tally = Tally(tasks=[task.name for task in resolved.tasks], documents_total=resolved.corpus.documents)
    units = as_units(resolved.corpus.row_groups, resolved.corpus.unreadable)
    corpus = resolved.corpus
    with LedgerWriter(table, run_id, corpus, corpus.row_groups, resolved.decides) as ledger:
        ledger.refer([])
        for rows in Read(job.source, resolved.carry, job.where)(units):
            prepared = prepare(rows).append_column("refers", refers(rows.column("images")))
            generated = generate(prepared)
            outcome = finish(generated.append_column("worker", pa.array(["w"] * len(generated), pa.string())))
            tally.add(outcome)
            ledger.add(outcome)
    generate.close()
    Publisher(table, run_id, lineage.job_hash(text), schema, tally.tasks).publish(final=True)
    manifest = lineage.build_manifest(
        run_id=run_id,
        job_name=job.name,
        job_text=text,
        source=job.source.path,
        model={
            "path": job.model.path, "revision": resolved.revision, "backend": job.model.backend,
            "dtype": tally.dtype or job.model.dtype,
        },
        tasks=resolved.tasks,
        inputs=[{"path": f.url, "size": f.size, "etag": f.etag, "rows": f.rows} for f in resolved.corpus.files],
        counts=tally.counts,
        started=started,
        ended=datetime.now(UTC),
        exit_code=0,
        extra={"documents": tally.documents},
    )  # fmt: skip
    lineage.write_manifest(table, run_id, manifest)
    return run_id
