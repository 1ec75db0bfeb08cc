"""A finished or growing table, opened for reading: DuckDB over its Parquet files and nothing else."""

from __future__ import annotations

from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as pafs

from infra.storage import FileInfo, Location
from pipelines.errors import RunError, TableError
from pipelines.schema import OUTPUT
from pipelines.table import reading

from .latest_view import define_latest

ZONES = ("results", "errors")


class QueryError(RunError):
    """The SQL cannot be run; the message is DuckDB's, on one line."""

    exit_code = 2


def open_table(path: str) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection with the views `results`, `errors` and `latest` of the table at `path`, and no way out.

    The files are read through `infra.storage`, so any URL works; the connection itself can neither read nor write
    files, load extensions or change its settings. TableError when there is no table.
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
        }
    )
    connection.execute("SET TimeZone = 'UTC'")
    for zone, files in zones.items():
        connection.register(zone, _dataset(folder, files))
    define_latest(connection, folder, arrow_filesystem(folder))
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def run_sql(connection: duckdb.DuckDBPyConnection, sql: str) -> pa.RecordBatchReader:
    """The result of the last statement in `sql`, as a stream; QueryError when it cannot be run."""
    try:
        relation = connection.sql(sql)
        if relation is None:
            raise QueryError("the query returns no rows; try: SELECT * FROM results LIMIT 10")
        return relation.to_arrow_reader(10_000)
    except (duckdb.Error, pa.ArrowException) as error:
        raise query_error(error) from error


def query_error(error: Exception) -> QueryError:
    """What DuckDB says, on one line, with the names that can be queried where a name was not found."""
    text = str(error).split("\n\nLINE ")[0].split("\nLINE ")[0]
    said = " ".join(text.split())
    if isinstance(error, duckdb.PermissionException):
        return QueryError("a query reads the views results, errors and latest; files and settings are out of its reach")
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
