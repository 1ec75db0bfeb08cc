"""Generations → rows of the output table: text, errors, counts and lineage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from infra.storage import redact
from model_runtime import ErrorCode
from model_runtime.processing import Processor

from .prepare import PENDING
from .tasks import Task

# Model text is cut here in an error message, never in `text`.
_MESSAGE_CHARS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """What every row of a run shares."""

    run_id: str
    job: str
    model: str
    model_revision: str
    backend: str
    runtime_version: str
    tasks: tuple[Task, ...]


def collect(table: pa.Table, context: RunContext, processor: Processor, schema: pa.Schema) -> pa.Table:
    """The output rows (`schema`) of a generated batch: one for each pair that this run ended, ok or not."""
    now = datetime.now(UTC)
    rows: list[dict[str, Any]] = []
    origins: list[int] = []
    for i, document in enumerate(table.drop_columns(["carry"]).to_pylist()):
        made = list(_rows(document, context, processor, now))
        rows += made
        origins += [i] * len(made)
    carried = _carried(table, origins)
    columns = [
        carried[field.name] if field.name in carried else pa.array([row.get(field.name) for row in rows], field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _carried(table: pa.Table, origins: list[int]) -> dict[str, pa.Array]:
    """The carried columns of the rows' documents, as they are: a value need not survive Python to be copied."""
    column = table.column("carry").combine_chunks()
    carry = column if isinstance(column, pa.StructArray) else pa.concat_arrays(column.chunks)
    taken = carry.take(pa.array(origins, pa.int64()))
    return {field.name: part for field, part in zip(carry.type, taken.flatten(), strict=True)}


@lru_cache(maxsize=4)
def cached_processor(folder: str) -> Processor:
    """The processor of a model folder, loaded once per process."""
    return Processor.load(Path(folder))


def _rows(
    document: Mapping[str, Any], context: RunContext, processor: Processor, now: datetime
) -> Iterator[dict[str, Any]]:
    results = {result["key"]: result for result in document["results"] or ()}
    shared = {
        "document_id": document["document_id"],
        "image_count": document["image_count"],
        "document_sha256": document["document_sha256"],
        "source_path": redact(document["source_path"]),
        "source_row": document["source_row"],
        "model": redact(context.model),
        "model_revision": context.model_revision,
        "backend": context.backend,
        "dtype": document["dtype"],
        "runtime_version": context.runtime_version,
        "run_id": context.run_id,
        "job": context.job,
        "created_at": now,
    }
    for pair in document["pairs"] or ():
        if pair["state"] == PENDING:
            yield shared | _task_columns(pair, context) | _outcome(pair, document, results, processor)


def _task_columns(pair: Mapping[str, Any], context: RunContext) -> dict[str, Any]:
    task = context.tasks[pair["task"]]
    return {
        "key": pair["key"].hex(),
        "task": task.name,
        "kind": task.kind,
        "language": task.language,
        "task_fingerprint": task.fingerprint,
        "seed": task.sampling.seed,
        "attempt": pair["attempt"],
    }


def _outcome(
    pair: Mapping[str, Any], document: Mapping[str, Any], results: Mapping[bytes, Any], processor: Processor
) -> dict[str, Any]:
    if pair["error_code"] is not None:
        return _error(pair["error_code"], pair["error_message"])
    request = document["requests"][pair["request"]]
    counts = {"truncated": request["truncated"], "input_tokens": request["input_tokens"]}
    result = results.get(pair["key"])
    if result is None:
        return counts | _error(ErrorCode.INTERNAL.value, "the engine returned nothing for this pair")
    if result["error_code"] is not None:
        return counts | _error(result["error_code"], result["error_message"])
    return counts | {
        "status": "ok",
        "text": processor.decode(result["token_ids"]).strip(),
        "finish_reason": result["finish_reason"],
        "output_tokens": result["output_tokens"],
        "logprob": result["logprob"],
    }


def _error(code: str, message: str | None) -> dict[str, Any]:
    line = " ".join((message or code).split())[:_MESSAGE_CHARS]
    return {"status": ErrorCode(code).status, "error_code": code, "error_message": line}
