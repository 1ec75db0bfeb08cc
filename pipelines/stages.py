"""The stages as Ray runs them: each wraps a worker with what it needs on its node."""

from __future__ import annotations

import dataclasses
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from infra.cluster import usable_cores
from infra.storage import Location, stage_model
from model_runtime import Backend, EngineConfig, ModelError, load_backend
from model_runtime.folder import model_revision, resolve_checkpoint
from workers.collect import RunContext, cached_processor, collect
from workers.generate import Generate
from workers.image_reader import ImageReader
from workers.inputs import Inputs
from workers.inputs_client import InputsClient
from workers.prepare import PENDING, Prepare
from workers.tasks import LimitsSpec

from .publish import write_work
from .relay import relaying_actor
from .resume import STATUS_NAMES
from .schema import output_schema

# A packet is what one call of the model worker gets, and what is made durable together: bounded in encoder tokens
# and in bytes of pixels, not in documents. Documents count for at least this many tokens, finished ones for fewer.
_PACKET_TOKENS, _PACKET_PIXELS = 16_384, 32 << 20
_LEAST_TOKENS, _FINISHED_TOKENS = 256, 32
# Images whose pixels are in one prepare worker's memory together: 2.4 MB each at 896 × 896.
_OPEN_IMAGES = 64
_NICENESS = 10

OUTCOME = pa.schema(
    [
        (
            "pairs",
            pa.list_(
                pa.struct(
                    [
                        ("task", pa.int16()),
                        ("key", pa.binary(16)),
                        ("state", pa.int8()),  # its place in STATUS_NAMES
                        ("made", pa.bool_()),
                        ("error_code", pa.string()),
                        ("error_message", pa.string()),
                    ]
                )
            ),
        ),
        ("not_applicable", pa.list_(pa.int16())),
        # Where the document stands, for the ledger: whether its content gave it an identity, and whether an image of
        # it stands elsewhere, where it may change without its row.
        ("source_path", pa.string()),
        ("source_row", pa.int64()),
        ("identified", pa.bool_()),
        ("refers", pa.bool_()),
        ("input_tokens", pa.int64()),
        ("output_tokens", pa.int64()),
        ("worker", pa.string()),
        ("dtype", pa.string()),
        ("busy_seconds", pa.float64()),
        ("serving_seconds", pa.float64()),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSettings:
    """What the stages of one run share; small, because every actor's constructor gets it."""

    model: str
    revision: str | None
    engine: EngineConfig
    limits: LimitsSpec
    context: RunContext
    source_path: str
    image_roots: tuple[str, ...]
    table: str
    carry: pa.Schema
    retry_failed: bool
    pixels: bool = True
    # What a model worker loads its engine with; only a benchmark of the graph puts another function here.
    load: Callable[[EngineConfig], Backend] = load_backend

    def folder(self) -> Path:
        """The model's folder on this node: staged from a bucket once, or found in the hub's cache."""
        return _folder(self.model, self.revision)


@lru_cache(maxsize=4)
def _folder(model: str, revision: str | None) -> Path:
    # Once per process: asking again would list a bucket or call the hub for every packet.
    return resolve_checkpoint(stage_model(model, revision), revision)


@relaying_actor
class PrepareStage:
    """Source rows → prepared documents in packets of a bounded number of tokens."""

    def __init__(self, settings: StageSettings, done: list[ray.ObjectRef]) -> None:
        if settings.engine.device == "cpu":
            # What it runs ahead is enough: the cores belong to the model, whose threads wait for the slowest.
            os.nice(_NICENESS)
        tasks = settings.context.tasks
        inputs = Inputs(str(settings.folder()), tasks, settings.limits, settings.pixels)
        self._prepare = Prepare(
            work=InputsClient(inputs),
            tasks=tasks,
            limits=settings.limits,
            model_revision=settings.context.model_revision,
            # In a list, so that Ray does not copy it into the constructor's arguments.
            done=ray.get(done[0]),
            image_reader=ImageReader(settings.source_path, settings.image_roots),
            retry_failed=settings.retry_failed,
        )

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        """One row per packet; few images are open at a time."""
        for piece in _pieces(rows):
            yield pack(self._prepare(piece).append_column("refers", refers(piece.column("images"))))


@relaying_actor
class GenerateStage:
    """Packets → generated documents; the model loads when the first packet with something to do arrives."""

    def __init__(self, settings: StageSettings) -> None:
        folder = settings.folder()
        if model_revision(folder) != settings.context.model_revision:
            raise ModelError(
                f"{folder} on {socket.gethostname()} holds other files than the model this run was planned with; "
                "make them the same on every node, or name the model by URL or hub id and revision"
            )
        engine = dataclasses.replace(settings.engine, model=str(folder), revision=None)
        if engine.device == "cpu":
            # Ray would leave one thread to an actor that asks for one CPU.
            engine = dataclasses.replace(engine, threads=usable_cores())
        self._generate = Generate(engine, settings.context.tasks, settings.load)
        here = ray.get_runtime_context()
        self._worker = f"{here.get_node_id()}/{here.get_actor_id()}"

    def __call__(self, packets: pa.Table) -> pa.Table:
        """One row per document, with its generations."""
        generated = self._generate(unpack(packets))
        return generated.append_column("worker", pa.array([self._worker] * generated.num_rows, pa.string()))


class Finish:
    """Generated documents → durable rows in `_work/`, and what became of each document."""

    def __init__(self, settings: StageSettings) -> None:
        self._settings = settings

    def __call__(self, generated: pa.Table) -> pa.Table:
        """A table of OUTCOME; the rows are safe once it returns."""
        settings = self._settings
        processor = cached_processor(str(settings.folder()))
        rows = collect(generated, settings.context, processor, output_schema(settings.carry))
        if rows.num_rows:
            write_work(Location(settings.table), settings.context.run_id, rows)
        made = {row["key"]: row for row in rows.select(["key", "status", "error_code", "error_message"]).to_pylist()}
        columns = [
            "pairs",
            "not_applicable",
            "source_path",
            "source_row",
            "document_sha256",
            "refers",
            "requests",
            "results",
            "worker",
            "dtype",
            "busy_seconds",
            "serving_seconds",
        ]
        documents = generated.select(columns).to_pylist()
        return pa.Table.from_pylist([_outcome(document, made) for document in documents], schema=OUTCOME)


def pack(documents: pa.Table) -> pa.Table:
    """Documents → packets: neighbours together until their tokens or pixels fill one. One column, a list of structs."""
    whole = pa.StructArray.from_arrays([_one(column) for column in documents.columns], fields=list(documents.schema))
    pixels = pc.fill_null(pc.binary_length(documents.column("pixels")), 0).to_pylist()
    costs = [_cost(r, p) for r, p in zip(documents.column("requests").to_pylist(), pixels, strict=True)]
    offsets, filled = [0], 0
    for i, cost in enumerate(costs):
        if filled and filled + cost > _PACKET_TOKENS:
            offsets.append(i)
            filled = 0
        filled += cost
    offsets.append(len(costs))
    if not costs:
        offsets = [0]
    return pa.table({"packet": pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), whole)})


def unpack(packets: pa.Table) -> pa.Table:
    """The documents of some packets, in order."""
    whole = _one(packets.column("packet")).flatten()
    return pa.Table.from_arrays(whole.flatten(), schema=pa.schema(list(whole.type)))


def refers(images: pa.ChunkedArray) -> pa.Array:
    """Of each row's images (`source_schema`), whether one is given by its path alone."""
    cells = _one(images)
    items = cells.flatten()
    away = pc.and_(items.field("bytes").is_null(), items.field("path").is_valid()).to_numpy(zero_copy_only=False)
    found = np.zeros(len(cells), bool)
    found[pc.list_parent_indices(cells).to_numpy()[away]] = True
    return pa.array(found)


def _pieces(rows: pa.Table) -> Iterator[pa.Table]:
    """`rows` cut where their images become too many to be open together."""
    lengths = pc.fill_null(pc.list_value_length(rows.column("images")), 0).to_pylist()
    start = images = 0
    for i, count in enumerate(lengths):
        if i > start and images + count > _OPEN_IMAGES:
            yield rows.slice(start, i - start)
            start, images = i, 0
        images += count
    yield rows.slice(start)


def _cost(requests: list[dict[str, Any]] | None, pixel_bytes: int) -> int:
    if not requests:
        return _FINISHED_TOKENS
    tokens = sum(request["input_tokens"] for request in requests)
    return max(_LEAST_TOKENS, tokens, pixel_bytes * _PACKET_TOKENS // _PACKET_PIXELS)


def _one(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks or [pa.array([], column.type)])


def _outcome(document: dict[str, Any], made: dict[str, dict[str, Any]]) -> dict[str, Any]:
    results = document["results"] or ()
    encoded = {pair["request"] for pair in document["pairs"] if pair["state"] == PENDING and pair["error_code"] is None}
    requests = document["requests"] or ()
    return {
        "pairs": [_pair(pair, made.get(pair["key"].hex())) for pair in document["pairs"]],
        "not_applicable": document["not_applicable"],
        "source_path": document["source_path"],
        "source_row": document["source_row"],
        "identified": document["document_sha256"] is not None,
        "refers": document["refers"],
        "input_tokens": sum(requests[i]["input_tokens"] for i in encoded),
        "output_tokens": sum(result["output_tokens"] for result in results),
        "worker": document["worker"],
        "dtype": document["dtype"],
        "busy_seconds": document["busy_seconds"],
        "serving_seconds": document["serving_seconds"],
    }


def _pair(pair: dict[str, Any], row: dict[str, Any] | None) -> dict[str, Any]:
    made = pair["state"] == PENDING
    return {
        "task": pair["task"],
        "key": pair["key"],
        "state": STATUS_NAMES.index(row["status"]) if made and row else pair["state"],
        "made": made,
        "error_code": row["error_code"] if made and row else None,
        "error_message": row["error_message"] if made and row else None,
    }
