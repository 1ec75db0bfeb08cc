"""Writes the demo's corpus: Parquet shards of documents and images, the same bytes each time."""

from __future__ import annotations

import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from .drawings import draw
from .texts import DOCUMENTS

SHARDS = 3
ROWS_PER_GROUP = 5

SCHEMA = pa.schema(
    [
        ("doc_id", pa.string()),
        ("body", pa.string()),
        ("photo", pa.binary()),
        ("lang", pa.string()),
        ("published_at", pa.date32()),
    ]
)


def corpus_table() -> pa.Table:
    """Every document of the demo, one row each; `photo` holds image bytes or null."""
    return pa.table(
        {
            "doc_id": [document.id for document in DOCUMENTS],
            "body": [document.text for document in DOCUMENTS],
            "photo": [draw(document.image) if document.image else None for document in DOCUMENTS],
            "lang": [document.language for document in DOCUMENTS],
            "published_at": [datetime.date.fromisoformat(document.published) for document in DOCUMENTS],
        },
        schema=SCHEMA,
    )


def write_corpus(folder: Path) -> list[Path]:
    """Write the shards into `folder` and return their paths; shards already there are written anew."""
    folder.mkdir(parents=True, exist_ok=True)
    table = corpus_table()
    paths = []
    for shard in range(SHARDS):
        # Every third row, so that each shard holds several languages and some images.
        rows = table.take(list(range(shard, table.num_rows, SHARDS)))
        path = folder / f"documents-{shard:05d}-of-{SHARDS:05d}.parquet"
        pq.write_table(rows, path, row_group_size=ROWS_PER_GROUP, compression="zstd")
        paths.append(path)
    return paths
