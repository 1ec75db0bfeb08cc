"""A finished or growing table, opened for reading: DuckDB over its Parquet files and nothing else."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import Any, TypeVar

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as pafs

from infra.storage import FileInfo, Location
from pipelines.errors import RunError, TableError
from pipelines.schema import OUTPUT
from pipelines.table import reading

from .latest_view import define_latest

T = TypeVar("T")

ZONES = ("results", "errors")
# Half of the machine's memory, or of the container's; the other half is for the pages that Arrow reads.
_MEMORY = "50%"
_INTERRUPTED_SECONDS = 2.0


class QueryError(RunError):
    """The SQL cannot be run; the message is DuckDB's, on one line."""

    exit_code = 2


def open_table(path: str) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection with the views `results`, `errors` and `latest` of the table at `path`, and no way out.

    The files are read through `infra.storage`, so any URL works; the connection itself can neither read nor write
    files, load extensions or change its settings, and takes half of the memory at most. TableError when there is no
    table.
    """
    folder = Location(path)
    zones = {zone: folder.child(zone).list_files() for zone in ZONES}
    if not any(zones.values()) and not folder.child("_runs").is_dir():
        raise TableError(f"{folder}: there is no table here; name the folder that the job file's output.path names")
    # DuckDB must not look up Python variables by name, nor fetch extensions by itself.
    connection = duckdb.connect(
        config={
            "python_enable_replacements": "false",
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            # DuckDB would spill into ./.tmp, and lets SQL read and write the folder that it spills into.
            "temp_directory": "",
            "memory_limit": _MEMORY,
        }
    )
    connection.execute("SET TimeZone = 'UTC'")
    # It would be drawn on standard output, between the rows.
    connection.execute("SET enable_progress_bar = false")
    for zone, files in zones.items():
        connection.register(zone, _dataset(folder, files))
    define_latest(connection, folder, arrow_filesystem(folder))
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


@contextmanager
def run_sql(connection: duckdb.DuckDBPyConnection, sql: str) -> Iterator[pa.RecordBatchReader]:
    """The result of the last statement in `sql`, as a stream; QueryError when it cannot be run."""
    try:
        reader = _aside(connection, lambda: _start(connection, sql))
        batches = iter(lambda: _aside(connection, lambda: next(reader, None)), None)
        yield pa.RecordBatchReader.from_batches(reader.schema, batches)
    except (duckdb.Error, pa.ArrowException) as error:
        raise query_error(error) from error


def _aside(connection: duckdb.DuckDBPyConnection, work: Callable[[], T]) -> T:
    """What `work` gives, done in another thread: Python would not see Ctrl-C while the main thread is in DuckDB."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    # A daemon: DuckDB's parser does not hear an interrupt, and the process must end all the same.
    threading.Thread(target=run, name="corpusmill-sql", daemon=True).start()
    try:
        return done.result()
    except BaseException:
        connection.interrupt()
        wait([done], _INTERRUPTED_SECONDS)
        raise


def _start(connection: duckdb.DuckDBPyConnection, sql: str) -> pa.RecordBatchReader:
    relation = connection.sql(sql)
    if relation is None:
        raise QueryError("the query returns no rows; try: SELECT * FROM results LIMIT 10")
    return relation.to_arrow_reader(10_000)


def query_error(error: Exception) -> QueryError:
    """What DuckDB says, on one line, with the names that can be queried where a name was not found."""
    text = str(error).split("\n\nLINE ")[0].split("\nLINE ")[0]
    said = " ".join(text.split())
    if isinstance(error, duckdb.PermissionException):
        return QueryError("a query reads the views results, errors and latest; files and settings are out of its reach")
    if isinstance(error, duckdb.OutOfMemoryException):
        return QueryError(
            "the query needs more than half of this machine's memory; select fewer columns or rows, or read the "
            "Parquet files with an engine that spills to disk"
        )
    if isinstance(error, duckdb.CatalogException) and said.startswith("Catalog Error: Table with name"):
        name = said.removeprefix("Catalog Error: Table with name ").split(" does not exist")[0]
        return QueryError(f"there is no table {name}; query the views results, errors and latest")
    return QueryError(said)


def _dataset(folder: Location, files: list[FileInfo]) -> ds.Dataset:
    if not files:
        return ds.dataset(OUTPUT.empty_table())
    schema = pa.unify_schemas([_schema(file) for file in files], promote_options="permissive")
    return ds.dataset(
        [file.path for file in files],
        schema=schema.remove_metadata(),
        format="parquet",
        filesystem=arrow_filesystem(folder),
    )


def _schema(file: FileInfo) -> pa.Schema:
    with reading(Location(file.url)) as opened:
        return opened.schema.to_arrow_schema()


def arrow_filesystem(folder: Location) -> Any:
    """The table's file system as Arrow's datasets take it."""
    if folder.is_local:
        return pafs.LocalFileSystem()
    return pafs.PyFileSystem(pafs.FSSpecHandler(folder.fs))
