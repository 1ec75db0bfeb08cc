"""The files of an output table: how they are written, and whether a run's columns fit those that are there."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infra.storage import FileInfo, Location, Problem, StorageError, redact_url, remove_dead_temporaries

from .damage import first_line, is_damage, printable
from .errors import RunError, TableError
from .schema import DICTIONARY_COLUMNS, OUTPUT, SCHEMA_VERSION

# In a work file's footer: the share of each task's ok rows in its bytes, so that a publisher need not read the rows to
# know how much of each task waits. The rest (no name) are rows for errors/.
SHARES = b"corpusmill.shares"

# In the order in which rows move: what a publisher takes out of _work meanwhile already stands in what is listed after.
ZONES = ("_work", "results", "errors")

_ROW_GROUP_BYTES = 64 << 20


def write_work(table: Location, run_id: str, rows: pa.Table) -> None:
    """Makes finished rows (any tasks, any statuses) durable: one whole file in `_work/<run_id>/`."""
    sink = pa.BufferOutputStream()
    footer = {**footer_keys(run_id), SHARES: json.dumps(_shares(rows)).encode()}
    with TableFile(sink, rows.schema, footer) as file:
        file.write(rows)
    table.child("_work", run_id, f"{uuid.uuid4().hex}.parquet").write_bytes(sink.getvalue().to_pybytes())


def footer_keys(run_id: str, job_hash: str | None = None) -> dict[bytes, bytes]:
    """The `corpusmill.*` keys of a file's footer."""
    keys = {b"corpusmill.run_id": run_id.encode(), b"corpusmill.schema_version": str(SCHEMA_VERSION).encode()}
    return keys if job_hash is None else {**keys, b"corpusmill.job_hash": job_hash.encode()}


@contextmanager
def reading(location: Location) -> Iterator[pq.ParquetFile]:
    """A table's file, for a block that does nothing but read it: whatever goes wrong there names the file.

    TableError for a file that is damaged or holds what no table holds; StorageError for the store's troubles, with
    Problem.MISSING for a file that is not there, also when it is deleted in between.
    """
    try:
        with location.open_input() as source:
            yield pq.ParquetFile(source)
    except (RunError, StorageError):
        raise
    except Exception as error:
        if is_damage(error) or isinstance(error, ValueError | KeyError | TypeError):
            raise TableError(
                f"{location}: this file of the table cannot be read ({first_line(error)}); move it away and run again"
            ) from error
        with location.errors():
            raise


class TableFile:
    """A Parquet file in the table's format: zstd, dictionaries for the columns that repeat."""

    def __init__(self, sink: Path | pa.NativeFile, schema: pa.Schema, footer: Mapping[bytes, bytes]) -> None:
        self.rows = 0
        repeating = [name for name in DICTIONARY_COLUMNS if name in schema.names]
        self._writer = pq.ParquetWriter(
            sink, schema.with_metadata(footer), compression="zstd", use_dictionary=repeating
        )

    def write(self, rows: pa.Table) -> None:
        """Appends one row group."""
        if len(rows):
            self._writer.write_table(rows, row_group_size=max(len(rows), 1))
            self.rows += len(rows)

    def close(self) -> None:
        """Writes the footer."""
        self._writer.close()

    def __enter__(self) -> TableFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class GrowingFile:
    """A local file that takes rows and writes them in large row groups."""

    def __init__(self, path: Path, schema: pa.Schema, footer: dict[bytes, bytes]) -> None:
        self.path = path
        self.buffered = 0
        self.rows = 0
        self._file = TableFile(path, schema, footer)
        self._buffer: list[pa.Table] = []

    def add(self, rows: pa.Table) -> None:
        """Takes rows in; writes a row group when enough are there."""
        self._buffer.append(rows)
        self.buffered += rows.nbytes
        self.rows += len(rows)
        if self.buffered >= _ROW_GROUP_BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes what is buffered as a row group."""
        if self._buffer:
            self._file.write(pa.concat_tables(self._buffer))
            self._buffer, self.buffered = [], 0

    def close(self) -> Path:
        """Writes the rest and the footer; the path."""
        self.flush()
        self._file.close()
        return self.path


def conform(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Rows of this schema version or an older one under `schema`: columns in its order, missing ones null."""
    columns = [
        rows.column(field.name).cast(field.type) if field.name in rows.schema.names else pa.nulls(len(rows), field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema.remove_metadata())


def list_zones(table: Location) -> dict[str, list[FileInfo]]:
    """The table's files by zone, listed in the order in which rows move."""
    return {zone: table.child(zone).list_files() for zone in ZONES}


def check_table_schema(
    table: Location, schema: pa.Schema, zones: Mapping[str, Sequence[FileInfo]] | None = None
) -> None:
    """TableError, naming the column, when the table's files have other columns than `schema` or a newer version's.

    `zones`: the table's files, when they were listed already.
    """
    listed = zones or list_zones(table)
    for zone in ("results", "errors", "_work"):
        files = listed[zone]
        for file in {f.url: f for f in (*files[:1], *files[-1:])}.values():
            try:
                with reading(Location(file.url)) as opened:
                    found = opened.schema.to_arrow_schema()
            except StorageError as error:
                # A work file that a publisher merged and deleted between the listing and now.
                if error.problem is Problem.MISSING:
                    continue
                raise
            check_file_schema(file.url, found, schema)


def clean_partial(table: Location) -> int:
    """Removes what killed writers left: temporary files of this host, uploads to S3 that never ended; how many.

    For the holder of the table's lease: an upload of one that lost it ends with that, as it would have anyway.
    """
    if table.is_local:
        return remove_dead_temporaries(table.url)
    return sum(table.child(zone).abort_uploads() for zone in ("results", "errors"))


def check_file_schema(url: str, found: pa.Schema, wanted: pa.Schema) -> None:
    """TableError, naming the column, when one file's schema does not fit `wanted`; older versions may lack columns."""
    url, own, wanted = redact_url(url), set(OUTPUT.names), _as_written(wanted)
    said = (found.metadata or {}).get(b"corpusmill.schema_version", b"0")
    if not said.isdigit() or len(said) > 9:
        raise TableError(f"{url}: its footer does not say which schema it has; this is not a corpusmill table")
    version = int(said)
    if version > SCHEMA_VERSION:
        newer = next((name for name in found.names if name not in set(wanted.names)), None)
        column = f" (column {printable(newer)})" if newer else ""
        raise TableError(f"{url}: written by a newer corpusmill{column}; upgrade this installation to go on")
    for field in wanted:
        if field.name not in found.names:
            if field.name in own:
                if version == SCHEMA_VERSION:
                    raise TableError(f"{url}: column {field.name} is missing; this is not a corpusmill table")
                continue
            raise TableError(
                f"{url}: column {field.name} is carried by the job but not in the table; a table keeps the "
                "carried columns it began with: take it out of source.carry or choose a new output.path"
            )
        there = found.field(field.name).type
        if there != field.type:
            raise TableError(
                f"{url}: column {field.name} is {there} in the table and {field.type} in the job; "
                "choose a new output.path"
            )
    for name in found.names:
        if name not in wanted.names:
            raise TableError(
                f"{url}: column {printable(name)} is in the table but not carried by the job; add it to source.carry "
                "or choose a new output.path"
            )


def read_shares(footer: Mapping[bytes, bytes] | None) -> dict[str, float]:
    """The shares in a work file's footer, none when it has none; ValueError for what no writer of ours put there."""
    shares = json.loads((footer or {}).get(SHARES, b"{}"))
    good = isinstance(shares, dict) and all(type(s) in (int, float) and 0 <= s <= 1 for s in shares.values())
    if not good:
        raise ValueError("its footer's shares are not numbers from 0 to 1")
    return shares


def _as_written(schema: pa.Schema) -> pa.Schema:
    """The schema a file has once it was written: Parquet knows fewer types than Arrow."""
    sink = pa.BufferOutputStream()
    pq.ParquetWriter(sink, schema).close()
    return pq.read_schema(pa.BufferReader(sink.getvalue()))


def _shares(rows: pa.Table) -> dict[str, float]:
    if not len(rows):
        return {}
    # Beside its text a row holds lineage, of which about this much is left uncompressed.
    sizes = pc.fill_null(pc.binary_length(rows.column("text")), 0).to_numpy() + 64.0
    names = pc.if_else(pc.equal(rows.column("status"), "ok"), rows.column("task"), "")
    encoded = names.combine_chunks().dictionary_encode()
    weights = np.bincount(encoded.indices.to_numpy(), weights=sizes, minlength=len(encoded.dictionary))
    return {name: round(weight / sizes.sum(), 4) for name, weight in zip(encoded.dictionary.to_pylist(), weights)}
