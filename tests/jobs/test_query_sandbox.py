"""`corpusmill query` reads a table and nothing else: every way out of SQL is tried."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from jobs import table_view
from jobs.choices import Format
from jobs.query import query
from jobs.table_view import QueryError, open_table

from .tables import write_table

REACHING_OUT = [
    "SELECT * FROM read_csv('{file}')",
    "SELECT * FROM read_text('{file}')",
    "SELECT * FROM read_blob('{file}')",
    "SELECT * FROM read_json('{file}')",
    "SELECT * FROM read_ndjson_objects('{file}')",
    "SELECT * FROM read_parquet('{table}/results/*/*.parquet')",
    "SELECT * FROM parquet_metadata('{table}/results/summary/part-0.parquet')",
    "SELECT * FROM parquet_schema('{table}/results/summary/part-0.parquet')",
    "SELECT * FROM sniff_csv('{file}')",
    "SELECT * FROM '{file}'",
    "FROM '{table}/results/summary/part-0.parquet'",
    "FROM query('FROM read_text(''{file}'')')",
    "FROM query_table('{file}')",
    "SELECT * FROM glob('/*')",
    "SELECT * FROM glob('{table}/*')",
    "SELECT getenv('HOME')",
    "COPY (SELECT 1) TO '{table}/stolen.csv'",
    "COPY results TO '{table}/stolen.parquet'",
    "COPY (SELECT 1) TO '/dev/stdout'",
    "COPY (SELECT 1) TO 's3://elsewhere/stolen.parquet'",
    "CREATE TABLE t (a VARCHAR); COPY t FROM '{file}'; SELECT * FROM t",
    "EXPORT DATABASE '{table}/stolen'",
    "IMPORT DATABASE '{table}'",
    "ATTACH '{table}/stolen.db'",
    "ATTACH '{table}/stolen.db' AS x (READ_ONLY)",
    "ATTACH 'md:stolen'",
    "INSTALL httpfs",
    "INSTALL httpfs FROM 'http://127.0.0.1:9/'",
    "LOAD httpfs",
    "LOAD '{table}/x.duckdb_extension'",
    "UPDATE EXTENSIONS",
    "SELECT * FROM 'http://127.0.0.1:9/x.parquet'",
    "SELECT * FROM read_parquet('s3://elsewhere/x.parquet')",
    "SELECT * FROM sqlite_scan('{file}', 't')",
    "SELECT * FROM read_duckdb('{file}')",
    "CREATE PERSISTENT SECRET s (TYPE s3, KEY_ID 'a', SECRET 'b')",
    "CREATE SECRET s (TYPE s3, PROVIDER credential_chain)",
    "SELECT * FROM duckdb_secrets()",
    "SET enable_external_access = true",
    "RESET enable_external_access",
    "PRAGMA enable_external_access = true",
    "SET GLOBAL lock_configuration = false",
    "SET lock_configuration = false",
    "SET allowed_directories = ['/']",
    "SET allowed_paths = ['{file}']",
    "SET temp_directory = '{table}'",
    "SET memory_limit = '900GB'",
    "SET home_directory = '{table}'",
    "SET extension_directory = '{table}'",
    "SET log_query_path = '{table}/stolen.log'",
    "PRAGMA profiling_output = '{table}/stolen.json'",
    "CALL enable_logging(storage = 'file', storage_path = '{table}/stolen')",
    "CREATE VIEW v AS FROM '{file}'",
    "CREATE MACRO f() AS TABLE FROM read_text('{file}')",
    "PREPARE p AS SELECT * FROM read_text('{file}')",
    "WITH x AS (FROM read_text('{file}')) SELECT * FROM x",
    "SELECT (SELECT content FROM read_text('{file}'))",
    "EXPLAIN ANALYZE SELECT * FROM read_text('{file}')",
    "SELECT 1; COPY (SELECT 1) TO '{table}/stolen.csv'",
    "SELECT 1; SELECT 2; FROM read_text('{file}')",
    "/* a comment */ COPY -- another\n (SELECT 1) TO '{table}/stolen.csv'",
    "SELECT * FROM arrow_scan(1, 1, 1)",
    "SELECT * FROM pandas_scan(1)",
]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("sandbox") / "table", ok=70)


def ask(table: Path, sql: str) -> str:
    out = io.StringIO()
    query(str(table), sql, Format.JSON, Console(file=out), out)
    return out.getvalue()


@pytest.mark.parametrize("sql", REACHING_OUT)
def test_sql_cannot_get_out(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sql: str) -> None:
    (tmp_path / "private.txt").write_text("a-private-line")
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    before = sorted([*table.rglob("*"), *tmp_path.rglob("*")])
    with pytest.raises(QueryError) as caught:
        ask(table, sql.replace("{table}", str(table)).replace("{file}", str(tmp_path / "private.txt")))
    assert "\n" not in str(caught.value) and "a-private-line" not in str(caught.value)
    assert sorted([*table.rglob("*"), *tmp_path.rglob("*")]) == before


@pytest.mark.parametrize(
    "sql", ["COPY (SELECT 1) TO '{here}/.tmp/stolen.csv'", "FROM read_text('{here}/.tmp/private.txt')"]
)
def test_where_duckdb_would_spill_is_out_of_reach_too(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sql: str
) -> None:
    (tmp_path / ".tmp").mkdir()
    (tmp_path / ".tmp" / "private.txt").write_text("a-private-line")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(QueryError, match="out of its reach"):
        ask(table, sql.replace("{here}", str(tmp_path)))
    assert [path.name for path in (tmp_path / ".tmp").iterdir()] == ["private.txt"]


def test_what_a_query_makes_stays_in_its_memory(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in table.rglob("*")}
    sql = "CREATE TABLE t AS FROM results; DROP VIEW results; ATTACH ':memory:' AS x; CHECKPOINT; "
    assert ask(table, sql + "SELECT count(*) AS n FROM t") == '{"n": 70}\n'
    assert {path: path.stat().st_mtime_ns for path in table.rglob("*")} == before
    assert list(tmp_path.iterdir()) == []


def test_a_query_is_bounded_in_memory_and_writes_nothing_to_disk(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = open_table(str(table))
    [(spill, limit)] = connection.execute(
        "SELECT current_setting('temp_directory'), current_setting('memory_limit')"
    ).fetchall()
    assert spill == "" and limit.endswith("iB")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(table_view, "_MEMORY", "200MB")
    with pytest.raises(QueryError, match="needs more than half of this machine's memory"):
        ask(table, "SELECT count(DISTINCT hash(range)::VARCHAR || 'more than a few bytes') AS n FROM range(20000000)")
    assert list(tmp_path.iterdir()) == []


ENDLESS = {
    "work": "SELECT sum(hash(a.range, b.range)) AS n FROM range(1000000000000) a, range(1000000000000) b",
    "rows": "SELECT a.range AS n FROM range(1000000000000) a, range(1000000000000) b WHERE hash(a.range, b.range) = 1",
    "parsing": "SELECT " + "(" * 20_000,
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_an_endless_query_ends_at_ctrl_c(table: Path, kind: str) -> None:
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", "from jobs.cli import main; main()", "query", str(table), ENDLESS[kind]],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        time.sleep(5)
        assert process.poll() is None, process.communicate()
        process.send_signal(signal.SIGINT)
        made, said = process.communicate(timeout=15)
    finally:
        process.kill()
    assert process.returncode == 130 and made == "", "nor is anything else written between rows"
    lines = said.splitlines()
    assert lines[0] == "corpusmill: interrupted; what is made is kept, and the same command goes on from there"
    # A DuckDB left in mid-parse complains at exit of objects that it could not free.
    assert lines[1:] == [] or kind == "parsing", said
