"""The view `latest`: what the newest complete run asked for, whatever else the table keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.table_view import QueryError, open_table, run_sql
from tests.pipelines.by_hand import CAPTION, SUMMARY, Job, Ran, run
from tests.pipelines.corpora import SCHEMA, documents, write_shards

LATEST = "SELECT document_id, task, source_path, run_id FROM latest"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_shards(tmp_path / "corpus", documents(24), shards=3, group=4)
    return tmp_path


def rows(folder: Path, sql: str = LATEST) -> list[dict[str, Any]]:
    connection = open_table(str(folder / "table"))
    try:
        with run_sql(connection, sql) as reader:
            return reader.read_all().to_pylist()
    finally:
        connection.close()


def keys(folder: Path, view: str) -> list[str]:
    return sorted(row["key"] for row in rows(folder, f"SELECT key FROM {view}"))


def test_latest_is_all_while_nothing_was_left_behind(folder):
    job = Job.make(folder, [SUMMARY, CAPTION])
    for _ in range(2):
        run(job)
        assert keys(folder, "latest") == keys(folder, "results") != []


def test_a_model_that_is_rolled_back_brings_its_rows_back(folder):
    old, new = Job.make(folder, revision="old"), Job.make(folder, revision="new")
    by_old, by_new = run(old), run(new)
    assert {row["run_id"] for row in rows(folder)} == {by_new.run_id}
    assert len(keys(folder, "results")) == 2 * len(keys(folder, "latest"))
    back = run(old)
    assert back.made == [] and {row["run_id"] for row in rows(folder)} == {by_old.run_id}


def test_a_document_that_left_the_source_leaves_latest(folder):
    job = Job.make(folder)
    run(job)
    table = pa.Table.from_pylist(documents(24)[18:], schema=SCHEMA)  # the third shard without its first two documents
    pq.write_table(table, folder / "corpus" / "shard-2.parquet", row_group_size=4)
    again = run(job)
    assert again.made == [] and {name for name, _ in again.read} == {"shard-2.parquet"}
    left = {row["document_id"] for row in rows(folder)}
    assert {row["document_id"] for row in rows(folder, "SELECT document_id FROM results")} - left == {"doc-017"}
    (folder / "corpus" / "shard-0.parquet").unlink()
    assert run(job).read == []
    assert {Path(row["source_path"]).name for row in rows(folder)} == {"shard-1.parquet", "shard-2.parquet"}


def test_a_task_that_is_not_asked_any_more_leaves_latest(folder):
    run(Job.make(folder, [SUMMARY, CAPTION]))
    again = run(Job.make(folder, [CAPTION]))
    assert again.read == []
    assert {row["task"] for row in rows(folder)} == {"alt"}
    assert {row["task"] for row in rows(folder, "SELECT task FROM results")} == {"alt", "summary"}


def test_a_run_that_did_not_end_well_does_not_count(folder):
    job = Job.make(folder)
    run(job, end=False)
    assert rows(folder) == []
    run(job)
    before = keys(folder, "latest")
    assert before != []
    run(Job.make(folder, revision="r2"), end=False)
    assert keys(folder, "latest") == before


def test_the_keys_of_an_older_version_are_read_too(folder):
    job = Job.make(folder)
    ran = run(job)
    home = folder / "table" / "_runs" / ran.run_id
    kept = rows(folder, "SELECT key, task FROM results ORDER BY key")[3:]
    for path in (home / "asked").glob("*"):
        path.unlink()
    names = pa.array([row["task"] for row in kept]).dictionary_encode()
    statuses = pa.array(["ok"] * len(kept)).dictionary_encode()
    old = pa.table({"key": [row["key"] for row in kept], "task": names, "status": statuses})
    pq.write_table(old, home / "keys.parquet")
    assert keys(folder, "latest") == [row["key"] for row in kept]


def test_a_lost_ledger_file_is_said_and_stops_nothing_else(folder):
    job = Job.make(folder)
    first: Ran = run(job)
    run(job)
    (folder / "table" / "_runs" / first.run_id / "asked" / "part-00001.parquet").unlink()
    assert len(keys(folder, "results")) > 0
    with pytest.raises(QueryError, match=r"part-00001\.parquet: a newer run counts on this file .* run the job again"):
        rows(folder)
    run(job)
    assert keys(folder, "latest") == keys(folder, "results")


def test_latest_joins_with_the_other_views_and_with_itself(folder):
    run(Job.make(folder))
    sql = "SELECT count(*) AS n FROM latest a JOIN latest b USING (key) JOIN results r USING (key)"
    assert rows(folder, sql) == [{"n": len(keys(folder, "results"))}]
