"""OpenLineage run events: a file beside the manifest, and the server that the environment names."""

from __future__ import annotations

import logging
import os
import threading
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

import pyarrow as pa

from infra.storage import Location, Problem, StorageError, redact, scratch_folder

State = Literal["START", "COMPLETE", "FAIL", "ABORT"]

_RUNS = uuid.UUID("6f1f2b0e-6a0c-5d0b-9d55-3f7a3f0c9a51")
_SERVER_SECONDS = 20.0


def emit_openlineage(
    table: Location,
    manifest: Mapping[str, Any],
    state: State,
    schema: pa.Schema | None = None,
    error: str | None = None,
) -> str | None:
    """Adds a run event to `_runs/<run_id>/openlineage.jsonl` and sends it where OPENLINEAGE_* says.

    Never raises: returns a warning for a person when something did not work. OPENLINEAGE_DISABLED=true turns it off.
    """
    if os.environ.get("OPENLINEAGE_DISABLED", "").strip().lower() == "true":
        return None
    try:
        event = _event(table, manifest, state, schema, error)
        _append(table.child("_runs", str(manifest["run_id"]), "openlineage.jsonl"), event)
        if _server_is_configured():
            _send(event)
    except Exception as trouble:
        return f"OpenLineage: the {state} event was not emitted: {redact(' '.join(str(trouble).split()))[:300]}"
    return None


def openlineage_run_id(run_id: str) -> str:
    """The UUID under which a run is known to OpenLineage."""
    return str(uuid.uuid5(_RUNS, run_id))


def _event(
    table: Location, manifest: Mapping[str, Any], state: State, schema: pa.Schema | None, error: str | None
) -> Any:
    from openlineage.client.event_v2 import Job, Run, RunEvent, RunState
    from openlineage.client.facet_v2 import RunFacet, error_message_run, job_type_job, processing_engine_run

    model, packages = manifest.get("model", {}), manifest.get("packages", {})
    lineage = RunFacet().with_additional_properties(
        run_id=manifest["run_id"],
        model=str(model.get("path")),
        model_revision=str(model.get("revision")),
        backend=str(model.get("backend")),
        dtype=str(model.get("dtype")),
        job_sha256=str(manifest.get("job", {}).get("sha256")),
        code_version=str(manifest.get("code", {}).get("version")),
        commit=str(manifest.get("code", {}).get("commit")),
    )
    facets: dict[str, Any] = {
        "processing_engine": processing_engine_run.ProcessingEngineRunFacet(
            name="ray", version=str(packages.get("ray", "unknown"))
        ),
        "corpusmill_run": lineage,
    }
    if error:
        facets["errorMessage"] = error_message_run.ErrorMessageRunFacet(redact(error), "PYTHON")
    job = Job(
        namespace=os.environ.get("OPENLINEAGE_NAMESPACE", "corpusmill"),
        name=str(manifest["job"]["name"]),
        facets={"jobType": job_type_job.JobTypeJobFacet("BATCH", "CORPUSMILL", "JOB")},
    )
    return RunEvent(
        eventType=RunState[state],
        eventTime=datetime.now(UTC).isoformat(),
        producer=f"urn:corpusmill:{manifest.get('code', {}).get('version', 'unknown')}",
        run=Run(runId=openlineage_run_id(str(manifest["run_id"])), facets=facets),
        job=job,
        inputs=[_source(manifest)],
        outputs=[_table(table, manifest, state, schema)],
    )


def _source(manifest: Mapping[str, Any]) -> Any:
    from openlineage.client.event_v2 import InputDataset
    from openlineage.client.facet_v2 import input_statistics_input_dataset as statistics

    inputs = manifest.get("inputs", [])
    namespace, name = _dataset(str(manifest.get("source", "")))
    facet = statistics.InputStatisticsInputDatasetFacet(
        rowCount=sum(int(entry.get("rows") or 0) for entry in inputs),
        size=sum(int(entry.get("size") or 0) for entry in inputs),
        fileCount=len(inputs),
    )
    return InputDataset(namespace=namespace, name=name, inputFacets={"inputStatistics": facet})


def _table(table: Location, manifest: Mapping[str, Any], state: State, schema: pa.Schema | None) -> Any:
    from openlineage.client.event_v2 import OutputDataset
    from openlineage.client.facet_v2 import output_statistics_output_dataset as statistics
    from openlineage.client.facet_v2 import schema_dataset

    namespace, name = _dataset(table.url)
    facets: dict[str, Any] = {}
    if schema is not None:
        fields = [schema_dataset.SchemaDatasetFacetFields(field.name, str(field.type)) for field in schema]
        facets["schema"] = schema_dataset.SchemaDatasetFacet(fields)
    written: dict[str, Any] = {}
    if state != "START":
        made = sum(int(counts.get("ok", 0)) for counts in manifest.get("counts", {}).values())
        written["outputStatistics"] = statistics.OutputStatisticsOutputDatasetFacet(rowCount=made)
    return OutputDataset(namespace=namespace, name=name, outputFacets=written, facets=facets)


def _dataset(url: str) -> tuple[str, str]:
    """OpenLineage's naming: (`s3://bucket`, key), (`file`, path)."""
    url = redact(url)
    scheme, separator, rest = url.partition("://")
    if not separator:
        return "file", url
    host, _, path = rest.partition("/")
    return f"{scheme}://{host}", path or "/"


def _append(location: Location, event: Any) -> None:
    from openlineage.client.transport.file import FileConfig, FileTransport

    with scratch_folder() as scratch:
        path = scratch / "openlineage.jsonl"
        try:
            path.write_bytes(location.read_bytes())
        except StorageError as error:
            if error.problem is not Problem.MISSING:
                raise
        FileTransport(FileConfig(log_file_path=str(path), append=True)).emit(event)
        location.upload(path)


def _server_is_configured() -> bool:
    return any(
        name in ("OPENLINEAGE_URL", "OPENLINEAGE_CONFIG") or name.startswith("OPENLINEAGE__TRANSPORT")
        for name in os.environ
    )


def _send(event: Any) -> None:
    """Through the configured client, in a thread of its own: a server that does not answer must not hold a run up."""
    from openlineage.client import OpenLineageClient

    failures: list[BaseException] = []

    def send() -> None:
        try:
            # The client would add the checkout's remote URL, which may hold a password.
            settings: Any = {"facets": {"source_code_location": {"disabled": True}}}
            client = OpenLineageClient(config=settings)
            client.emit(event)
            client.close(_SERVER_SECONDS)
        except Exception as trouble:
            failures.append(trouble)

    logging.getLogger("openlineage").setLevel(logging.CRITICAL)
    thread = threading.Thread(target=send, name="corpusmill-openlineage", daemon=True)
    thread.start()
    thread.join(_SERVER_SECONDS)
    if failures:
        raise failures[0]
    if thread.is_alive():
        raise TimeoutError(f"the server did not take it within {_SERVER_SECONDS:.0f} s")
