"""Prepared documents → generations: owns a backend and keeps it full across batches."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from model_runtime import Backend, Decode, EngineConfig, ErrorCode, Generation, Request, RequestError, load_backend
from model_runtime.folder import resolve_checkpoint
from model_runtime.processing import Processor

from .engine_client import EngineClient
from .prepare import PENDING
from .tasks import Task

_RESULT = pa.struct(
    [
        ("key", pa.binary(16)),
        ("token_ids", pa.list_(pa.int32())),
        ("finish_reason", pa.string()),
        ("logprob", pa.float64()),
        ("output_tokens", pa.int32()),
        ("error_code", pa.string()),
        ("error_message", pa.string()),
    ]
)
_DROPPED = ("requests", "pixels")


def generated_schema(prepared: pa.Schema) -> pa.Schema:
    """What Generate yields: prepared rows without ids and pixels, with `results`, the dtype computed in, and how many
    seconds the engine had been busy until then of those since its first document.

    `requests` keeps token counts and tasks only; `results`: one per pair that a decode was run for.
    """
    counts = pa.list_(
        pa.struct([("truncated", pa.bool_()), ("input_tokens", pa.int32()), ("tasks", pa.list_(pa.int16()))])
    )
    kept = [field for field in prepared if field.name not in _DROPPED]
    added = [
        ("requests", counts),
        ("results", pa.list_(_RESULT)),
        ("dtype", pa.string()),
        ("busy_seconds", pa.float64()),
        ("serving_seconds", pa.float64()),
    ]
    return pa.schema([*kept, *added])


class Generate:
    """Callable over prepared rows, from several threads at once; one engine serves them all.

    The weights load with the first row that asks for a decode; ModelError when they cannot be used. `load` makes the
    backend, in the engine's process, which imports it by name: a measurement of the graph itself may put one there that
    computes nothing.
    """

    def __init__(
        self, config: EngineConfig, tasks: tuple[Task, ...], load: Callable[[EngineConfig], Backend] = load_backend
    ) -> None:
        self._config = config
        self._load = load
        self._tasks = tasks
        self._engine: EngineClient | None = None
        self._loading = threading.Lock()
        processor = Processor.load(resolve_checkpoint(config.model, config.revision))
        self._side = processor.image_size
        self._prefixes = [processor.prefix_ids(task.prompt) if task.prompt_in == "decoder" else () for task in tasks]

    def __call__(self, table: pa.Table) -> pa.Table:
        """One output row per row of `table`, in its order, once all its decodes have finished."""
        rows = [self._requests(row) for row in table.select(["pairs", "requests", "pixels"]).to_pylist()]
        requests = [request for document in rows for request in document]
        results = self._started().run(requests) if requests else {}
        schema = generated_schema(table.schema)
        done = [[_result(results[d.key]) for request in document for d in request.decodes] for document in rows]
        columns = {name: table.column(name) for name in table.schema.names if name not in _DROPPED}
        columns["requests"] = _without_ids(table.column("requests"), schema.field("requests").type)
        columns["results"] = pa.array(done, schema.field("results").type)
        dtype = self._started().dtype if requests else None
        busy = self._started().busy_seconds if requests else None
        serving = self._started().serving_seconds if requests else None
        columns["dtype"] = pa.array([dtype] * table.num_rows, pa.string())
        columns["busy_seconds"] = pa.array([busy] * table.num_rows, pa.float64())
        columns["serving_seconds"] = pa.array([serving] * table.num_rows, pa.float64())
        return pa.table(columns, schema=schema)

    def close(self) -> None:
        """Stop the engine and drop the model."""
        if self._engine is not None:
            self._engine.close()

    def _started(self) -> EngineClient:
        with self._loading:
            if self._engine is None:
                self._engine = EngineClient(self._config, self._load)
            return self._engine

    def _requests(self, row: dict) -> list[Request]:
        pixels = None
        if row["pixels"]:
            pixels = np.frombuffer(row["pixels"], np.uint8).reshape(-1, 3, self._side, self._side)
        requests = []
        for index, wanted in enumerate(row["requests"] or ()):
            pairs = [pair for pair in row["pairs"] if _is_todo(pair) and pair["request"] == index]
            requests.append(
                Request(
                    id=str(index),
                    input_ids=np.frombuffer(wanted["input_ids"], np.dtype("<i4")),
                    pixel_values=pixels,
                    decodes=tuple(self._decode(pair) for pair in pairs),
                )
            )
        return requests

    def _decode(self, pair: dict) -> Decode:
        task = pair["task"]
        return Decode(key=pair["key"].hex(), prefix_ids=self._prefixes[task], sampling=self._tasks[task].sampling)


def _is_todo(pair: dict) -> bool:
    return pair["state"] == PENDING and pair["error_code"] is None


def _result(generation: Generation) -> dict:
    error = generation.error
    if error is not None and not isinstance(error, RequestError):
        error = RequestError(ErrorCode.INTERNAL, str(error))
    return {
        "key": bytes.fromhex(generation.key),
        "token_ids": list(generation.token_ids),
        "finish_reason": generation.finish_reason,
        "logprob": generation.logprob,
        "output_tokens": generation.output_tokens,
        "error_code": error.code.value if error else None,
        "error_message": error.message if error else None,
    }


def _without_ids(requests: pa.ChunkedArray, kind: pa.DataType) -> pa.Array:
    kept = [field.name for field in kind.value_type]
    return pa.array([[{name: r[name] for name in kept} for r in row or ()] for row in requests.to_pylist()], kind)
