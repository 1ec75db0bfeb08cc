"""Writes the demo's corpus: Parquet shards of held-out documents of the synthetic world, the same bytes each time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .world import Document, showcase

SHARDS = 3
ROWS_PER_GROUP = 4

SCHEMA = pa.schema([("doc_id", pa.string()), ("genre", pa.string()), ("body", pa.string()), ("photo", pa.binary())])


def corpus_rows() -> list[dict[str, Any]]:
    """Every document of the demo, one row each: the showcase, an image cut off after a third, and an empty text."""
    shown = showcase()
    rows = [{"doc_id": d.doc_id, "genre": d.kind, "body": d.body, "photo": d.photo} for d in shown]
    picture = next(row["photo"] for row in rows if isinstance(row["photo"], bytes))
    rows.append({"doc_id": "scene-damaged", "genre": "scene", "body": None, "photo": picture[: len(picture) // 3]})
    rows.append({"doc_id": "note-empty", "genre": "note", "body": "", "photo": None})
    return rows


def write_corpus(folder: Path) -> list[Path]:
    """Write the shards into `folder` and return their paths; shards already there are written anew."""
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(corpus_rows(), schema=SCHEMA)
    paths = []
    for shard in range(SHARDS):
        # Every third row, so that each shard holds some of every kind.
        rows = table.take(list(range(shard, table.num_rows, SHARDS)))
        path = folder / f"documents-{shard:05d}-of-{SHARDS:05d}.parquet"
        pq.write_table(rows, path, row_group_size=ROWS_PER_GROUP, compression="zstd")
        paths.append(path)
    return paths


def right_answers() -> dict[tuple[str, str], str]:
    """(document, task) → the text that the world knows to be right, for the tasks of job.yaml that have one."""
    known: dict[tuple[str, str], str] = {}
    for document in showcase():
        known |= {(document.doc_id, task): text for task, text in _targets(document).items() if text is not None}
    return known


def _targets(document: Document) -> dict[str, str | None]:
    names = ("summary_en", "summary_de", "summary_zh", "to_de", "to_es", "to_zh", "to_ar", "caption_en", "caption_de")
    return {name: getattr(document, name) for name in names}
