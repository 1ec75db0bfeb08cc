"""The row contract: the Arrow schemas of the output table and of what flows between the stages."""

from __future__ import annotations

import pyarrow as pa

SCHEMA_VERSION = 1

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

OUTPUT = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        ("document_id", pa.string()),
        pa.field("task", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        ("language", pa.string()),
        pa.field("status", pa.string(), nullable=False),
        ("text", pa.string()),
        ("error_code", pa.string()),
        ("error_message", pa.string()),
        ("finish_reason", pa.string()),
        ("truncated", pa.bool_()),
        ("input_tokens", pa.int32()),
        ("image_count", pa.int32()),
        ("output_tokens", pa.int32()),
        ("logprob", pa.float64()),
        ("document_sha256", pa.string()),
        ("source_path", pa.string()),
        ("source_row", pa.int64()),
        ("task_fingerprint", pa.string()),
        ("model", pa.string()),
        ("model_revision", pa.string()),
        ("backend", pa.string()),
        ("dtype", pa.string()),
        ("runtime_version", pa.string()),
        ("seed", pa.int64()),
        ("run_id", pa.string()),
        ("attempt", pa.int32()),
        ("job", pa.string()),
        ("created_at", pa.timestamp("us", tz="UTC")),
    ]
)

# Columns that repeat from row to row; the others are written plain.
DICTIONARY_COLUMNS = [
    "task", "kind", "language", "status", "error_code", "finish_reason", "source_path", "task_fingerprint",
    "model", "model_revision", "backend", "dtype", "runtime_version", "run_id", "job",
]  # fmt: skip


def output_schema(carry: pa.Schema) -> pa.Schema:
    """The table's columns in their order, the carried source columns last."""
    return pa.schema([*OUTPUT, *carry])


def source_schema(carry: pa.Schema) -> pa.Schema:
    """What `source` yields: one row per document, under the names the stages use.

    `images`: a list (empty list: the document has none) of bytes and/or a path, null when the cell is null.
    `not_asked`: the tasks whose `where` the row does not pass. `problem`: why the row could not be read at all; its
    cells are null then.
    """
    return pa.schema(
        [
            ("document_id", pa.string()),
            ("text", pa.string()),
            ("images", pa.list_(IMAGE)),
            pa.field("source_path", pa.string(), nullable=False),
            pa.field("source_row", pa.int64(), nullable=False),
            ("duplicate", pa.bool_()),
            ("not_asked", pa.list_(pa.int16())),
            ("problem", pa.string()),
            ("carry", pa.struct(list(carry))),
        ]
    )
