"""Publishing: each key once for a reader that only globs, at every moment, whatever dies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import uuid
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import polars
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from infra.storage import Location, StorageError
from pipelines.errors import TableError, TableHeldError
from pipelines.publish import Publisher, check_table_schema, clean_partial, write_work
from pipelines.resume import read_done
from pipelines.schema import DICTIONARY_COLUMNS, output_schema
from tests.pipelines.rows import SCHEMA, key, row, rows, visible

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["local", "memory", "s3", "conditional"])
def table(request, tmp_path, s3) -> Location:
    name = uuid.uuid4().hex
    if request.param == "conditional":
        return Location(request.getfixturevalue("conditional").url(name))
    return Location({"local": str(tmp_path), "memory": f"memory://{name}", "s3": s3.url(name)}[request.param])


def publisher(table: Location, run: str = "r1", **options) -> Publisher:
    return Publisher(table, run, "job-hash", SCHEMA, ["a", "b"], **options)


def read(table: Location, zone: str) -> list[dict]:
    made = []
    for file in table.child(zone).list_files():
        with Location(file.url).open_input() as source:
            made += pq.ParquetFile(source).read().to_pylist()
    return made


def test_each_row_arrives_once_in_its_zone(table):
    write_work(table, "r1", rows(*(row(n, t) for n in range(4) for t in "ab"), row(7, status="failed")))
    write_work(table, "dead", rows(row(3), row(4), row(7, status="failed", attempt=2), row(8, status="rejected")))
    assert publisher(table).publish() == {"rows": 0, "files": 0, "errors": 0, "duplicates": 0, "work_files": 0}
    counts = publisher(table).publish(final=True)
    assert counts == {"rows": 9, "files": 2, "errors": 2, "duplicates": 1, "work_files": 2}
    results = read(table, "results")
    assert sorted(r["key"] for r in results) == sorted([*(key(n, t) for n in range(4) for t in "ab"), key(4)])
    assert next(r for r in results if r["key"] == key(2)) == {**dict.fromkeys(SCHEMA.names), **row(2)}
    errors = {r["key"]: (r["status"], r["attempt"]) for r in read(table, "errors")}
    assert errors == {key(7): ("failed", 2), key(8): ("rejected", 1)}
    assert table.child("_work").list_files("") == []
    assert publisher(table, "r2").publish(final=True)["rows"] == 0


def test_errors_hold_the_current_state(table):
    write_work(table, "r1", rows(*(row(n, status="failed") for n in range(4)), row(5, status="rejected")))
    publisher(table).publish(final=True)
    again = [row(0, attempt=2), row(1, status="failed", attempt=2), row(2, status="rejected", attempt=2)]
    late = [row(5, status="failed", attempt=2), row(0, status="failed", attempt=3)]
    write_work(table, "r2", rows(*again, *late))
    publisher(table, "r2").publish(final=True)
    state = {r["key"]: (r["status"], r["attempt"], r["run_id"]) for r in read(table, "errors")}
    assert state == {
        key(1): ("failed", 2, "r1"), key(2): ("rejected", 2, "r1"), key(3): ("failed", 1, "r1"),
        key(5): ("rejected", 1, "r1"),
    }  # fmt: skip
    assert [r["key"] for r in read(table, "results")] == [key(0)]


def version(document: int, content: int, status: str = "ok", hour: int = 0, **values) -> dict:
    """A row of one version of a document (its text, its prompt): another version has another key."""
    made = row(1000 * document + content, status=status, attempt=values.pop("attempt", 1))
    when = datetime(2026, 1, 1, hour, tzinfo=UTC)
    return {**made, "document_id": f"doc-{document}", "created_at": when, **values}


def now_in_errors(table: Location) -> list[tuple]:
    return sorted((r["document_id"], r["created_at"].hour, r["attempt"]) for r in read(table, "errors"))


def test_a_document_that_works_by_now_leaves_errors_whatever_its_key(table):
    write_work(table, "r1", rows(*(version(n, 0, "rejected") for n in range(4))))
    publisher(table).publish(final=True)
    # 0 was repaired; 1 was made before, from another version; 2 succeeded in the same moment; 3 in another task
    write_work(table, "r2", rows(version(0, 1, hour=1), version(2, 1), {**version(3, 1, hour=1), "task": "b"}))
    write_work(table, "r2", rows({**version(1, 1), "created_at": datetime(2025, 12, 31, tzinfo=UTC)}))
    publisher(table, "r2").publish(final=True)
    assert now_in_errors(table) == [("doc-1", 0, 1), ("doc-3", 0, 1)]
    assert len(read(table, "results")) == 4


def test_errors_hold_the_newest_row_of_a_document(table):
    write_work(table, "r1", rows(version(0, 0, "failed", attempt=3), version(1, 0, "rejected", hour=5)))
    publisher(table).publish(final=True)
    write_work(table, "r2", rows(version(0, 1, "failed", hour=1), version(1, 1, "failed", hour=2, attempt=2)))
    write_work(table, "r2", rows(version(2, 0, "failed", hour=3), version(2, 1, "failed", hour=3, attempt=2)))
    publisher(table, "r2").publish(final=True)
    assert now_in_errors(table) == [("doc-0", 1, 1), ("doc-1", 5, 1), ("doc-2", 3, 2)]
    write_work(table, "r3", rows(version(0, 1, "failed", hour=4, attempt=2), version(2, 2, hour=2)))
    publisher(table, "r3").publish(final=True)
    assert now_in_errors(table) == [("doc-0", 4, 2), ("doc-1", 5, 1), ("doc-2", 3, 2)]


def test_rows_known_by_their_place_stand_beside_each_other(table):
    places = [version(0, n, "rejected", error_code="duplicate_id") for n in (1, 2)]
    places += [version(9, n, "rejected", error_code="null_id", document_id=None) for n in (1, 2)]
    places += [version(0, 7, "rejected", error_code="bad_row")]
    write_work(table, "r1", rows(*places, version(0, 0, hour=1), version(0, 8, "failed")))
    publisher(table).publish(final=True)
    codes = sorted(r["error_code"] for r in read(table, "errors"))
    assert codes == ["bad_row", "duplicate_id", "duplicate_id", "null_id", "null_id"]


def test_killed_before_errors_the_next_publisher_still_removes_what_works_now(tmp_path, monkeypatch):
    table = Location(str(tmp_path))
    write_work(table, "r1", rows(version(0, 0, "rejected")))
    publisher(table).publish(final=True)
    write_work(table, "r2", rows(version(0, 1, hour=1)))

    def killed(*_) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as dying:
        dying.setattr("pipelines.publish.merge_errors", killed)
        with pytest.raises(KeyboardInterrupt):
            publisher(table, "r2").publish(final=True)
    assert len(visible(tmp_path)) == 1 and len(now_in_errors(table)) == 1
    publisher(table, "r3").publish(final=True)
    assert len(visible(tmp_path)) == 1 and now_in_errors(table) == []


def test_an_early_publish_takes_errors_along(tmp_path):
    table = Location(str(tmp_path))
    write_work(table, "r1", rows(version(0, 0, "failed")))
    write_work(table, "r2", rows({**version(0, 1, hour=1), "text": os.urandom(100_000).hex()}))
    publishing = publisher(table, "r2", target_bytes=50_000)
    assert publishing.publish()["rows"] == 1
    publishing.publish(final=True)
    assert now_in_errors(table) == []


def test_one_publisher_publishes_many_times(table):
    publishing = publisher(table)
    for n in range(4):
        write_work(table, "r1", rows(row(n), row(n + 1)))
        assert publishing.publish(final=True)["rows"] == (2 if n == 0 else 1)
    assert sorted(r["key"] for r in read(table, "results")) == sorted(key(n) for n in range(5))
    names = [file.url.rsplit("/", 1)[1] for file in table.child("results", "a").list_files()]
    assert names == [f"part-{n:06d}.parquet" if table.conditional else f"r1-{n:05d}.parquet" for n in range(4)]


def test_an_empty_table_has_a_file_per_zone_and_task(table):
    publisher(table).publish(final=True)
    names = [table.below(file) for file in table.list_files()]
    assert names == [f"{zone}/{task}/{name}.parquet" for zone, name in (("errors", "current"), ("results", "empty")) for task in "ab"]  # fmt: skip  # noqa: E501
    check_table_schema(table, SCHEMA)
    assert read(table, "results") == []


def test_only_a_task_of_which_enough_waits_is_published_early(tmp_path):
    table = Location(str(tmp_path))
    for part in range(4):
        large = [{**row(n, "a"), "text": os.urandom(1600).hex()} for n in range(part * 50, part * 50 + 50)]
        write_work(table, "r1", rows(*large, row(part, "b"), row(part, "b", status="failed")))
    write_work(table, "r1", rows(row(99, "b")))
    publishing = publisher(table, target_bytes=200_000)
    counts = publishing.publish()
    assert counts["rows"] == 200 and counts["work_files"] == 0
    assert len(visible(tmp_path)) == 200 and len(visible(tmp_path, "errors")) == 4
    assert publishing.publish(final=True)["rows"] == 5
    assert len(set(visible(tmp_path))) == len(visible(tmp_path)) == 205


def test_files_are_cut_at_the_target_size(tmp_path, monkeypatch):
    # Work files one by one, and tasks that begin when files of others were cut already while some are still open.
    monkeypatch.setattr("pipelines.publish._WINDOW_FILES", 1)
    monkeypatch.setattr("pipelines.table._ROW_GROUP_BYTES", 50_000)
    table = Location(str(tmp_path))
    for part, tasks in enumerate(["ab", "a", "ac", "a", "abc", "cd", "acd", "bd"]):
        big = [{**row(n, t), "text": os.urandom(400).hex()} for t in tasks for n in range(part * 50, part * 50 + 50)]
        write_work(table, f"r{part}", rows(*big, row(part, tasks[-1], status="failed")))
    counts = publisher(table, target_bytes=30_000).publish(final=True)
    assert counts["rows"] == 16 * 50
    for task, parts in {"a": (0, 1, 2, 3, 4, 6), "b": (0, 4, 7), "c": (2, 4, 5, 6), "d": (5, 6, 7)}.items():
        made = [n for part in parts for n in range(part * 50, part * 50 + 50)]
        files = table.child("results", task).list_files()
        assert len(files) > 1
        read_back = [r for file in files for r in pq.ParquetFile(file.path).read().to_pylist()]
        assert sorted(r["key"] for r in read_back) == sorted(key(n, task) for n in made)
        assert {r["task"] for r in read_back} == {task}
        assert len({r["text"] for r in read_back}) == len(made)


def test_the_format_is_what_engines_read(tmp_path):
    table = Location(str(tmp_path))
    write_work(table, "r1", rows(*(row(n, t) for n in range(500) for t in "ab")))
    publisher(table).publish(final=True)
    glob = f"{tmp_path}/results/**/*.parquet"
    assert duckdb.sql(f"SELECT count(*), count(DISTINCT key) FROM '{glob}'").fetchall() == [(1000, 1000)]
    assert polars.scan_parquet(glob).select(polars.len()).collect().item() == 1000
    assert pyarrow.dataset.dataset(str(tmp_path / "results"), partitioning=None).count_rows() == 1000
    with Location(table.child("results").list_files()[0].url).open_input() as source:
        footer = pq.read_metadata(source)
    assert footer.metadata[b"corpusmill.run_id"] == b"r1"
    assert footer.metadata[b"corpusmill.job_hash"] == b"job-hash"
    assert footer.metadata[b"corpusmill.schema_version"] == b"1"
    group = footer.row_group(0)
    for column in map(group.column, range(group.num_columns)):
        assert column.compression == "ZSTD"
        if column.path_in_schema not in DICTIONARY_COLUMNS:
            assert "RLE_DICTIONARY" not in column.encodings, column.path_in_schema
    assert footer.schema.to_arrow_schema().names == SCHEMA.names


def test_carried_columns_are_pinned(tmp_path):
    table = Location(str(tmp_path))
    check_table_schema(table, SCHEMA)
    write_work(table, "r1", rows(row(1)))
    check_table_schema(table, SCHEMA)
    wrong = {
        "column published_at is in the table": pa.schema([]),
        "column published_at is timestamp": pa.schema([("published_at", pa.string())]),
        "column lang is carried": pa.schema([("published_at", pa.timestamp("us")), ("lang", pa.string())]),
    }
    for message, carry in wrong.items():
        with pytest.raises(TableError, match=message):
            check_table_schema(table, output_schema(carry))
    publisher(table).publish(final=True)
    for message, carry in wrong.items():
        with pytest.raises(TableError, match=message):
            check_table_schema(table, output_schema(carry))


def test_a_file_that_a_publisher_takes_away_meanwhile_is_no_trouble(table, monkeypatch):
    write_work(table, "r1", rows(row(1)))
    listed = Location.list_files

    def then_deleted(self, *suffix):
        files = listed(self, *suffix)
        for file in files if self.url.endswith("_work") else []:
            Location(file.url).delete()
        return files

    monkeypatch.setattr(Location, "list_files", then_deleted)
    check_table_schema(table, SCHEMA)


@pytest.mark.parametrize("zone", ["_work", "results", "errors"])
def test_a_damaged_file_is_named(tmp_path, zone):
    table = Location(str(tmp_path))
    status = "failed" if zone == "errors" else "ok"
    write_work(table, "r1", rows(*(row(n, status=status) for n in range(50))))
    if zone != "_work":
        publisher(table).publish(final=True)
    [file] = (file for file in table.child(zone).list_files() if file.size > 5000 and "/b/" not in file.path)
    damage_pages(Path(file.path))
    write_work(table, "r2", rows(row(99, status=status)))
    for read_it in (lambda: publisher(table, "r2").publish(final=True), lambda: read_done(table)):
        with pytest.raises(
            TableError, match=r"\.parquet: this file of the table cannot be read \(.*move it away"
        ) as said:
            read_it()
        assert file.path in str(said.value) and "\n" not in str(said.value)
    Path(file.path).write_bytes(b"PAR1 and no more")
    with pytest.raises(TableError, match="cannot be read"):
        check_table_schema(table, SCHEMA)


def damage_pages(path: Path) -> None:
    """Overwrites the first bytes of every column's pages: the footer stays as it is."""
    data = bytearray(path.read_bytes())
    group = pq.read_metadata(path).row_group(0)
    for column in map(group.column, range(group.num_columns)):
        start = column.dictionary_page_offset or column.data_page_offset
        data[start : start + 8] = b"\xff" * 8
    path.write_bytes(data)


def test_trouble_of_the_store_while_reading_names_the_file(s3, monkeypatch):
    table = Location(s3.url(uuid.uuid4().hex))
    write_work(table, "r1", rows(row(1)))
    [file] = table.child("_work").list_files()

    def broken(*_, **__):
        raise ConnectionResetError("the connection was reset")

    monkeypatch.setattr("pyarrow.parquet.ParquetFile.read", broken)
    monkeypatch.setattr("pyarrow.parquet.ParquetFile.iter_batches", broken)
    for read_it in (lambda: publisher(table, "r2").publish(final=True), lambda: read_done(table)):
        with pytest.raises(StorageError, match="overloaded or failing") as said:
            read_it()
        assert said.value.url == file.url


def test_a_newer_releases_table_is_left_alone(tmp_path):
    newer = SCHEMA.append(pa.field("cost", pa.float64())).with_metadata({b"corpusmill.schema_version": b"2"})
    (tmp_path / "results" / "a").mkdir(parents=True)
    pq.write_table(newer.empty_table(), tmp_path / "results" / "a" / "x.parquet")
    with pytest.raises(TableError, match=r"newer corpusmill \(column cost\)"):
        check_table_schema(Location(str(tmp_path)), SCHEMA)


def test_odd_carried_types_stay_themselves(tmp_path):
    carry = pa.schema(
        [
            ("when", pa.timestamp("s", tz="Europe/Berlin")),
            ("tags", pa.list_(pa.string())),
            ("large", pa.large_string()),
            ("label", pa.dictionary(pa.int32(), pa.string())),
            ("amount", pa.decimal128(12, 2)),
        ]
    )
    schema, table = output_schema(carry), Location(str(tmp_path))
    write_work(table, "r1", pa.Table.from_pylist([row(1)], schema=schema))
    check_table_schema(table, schema)
    Publisher(table, "r1", "h", schema, ["a"]).publish(final=True)
    check_table_schema(table, schema)
    assert Publisher(table, "r2", "h", schema, ["a"]).publish(final=True)["rows"] == 0


def test_a_lost_lease_stops_it_before_anything_changes(tmp_path):
    table = Location(str(tmp_path))
    write_work(table, "r1", rows(row(1)))

    def lost() -> None:
        raise TableHeldError("lost")

    with pytest.raises(TableHeldError):
        publisher(table, check=lost).publish(final=True)
    assert visible(tmp_path) == [] and len(table.child("_work").list_files()) == 1


def test_after_a_failed_upload_the_same_publisher_goes_on(table, monkeypatch):
    write_work(table, "r1", rows(*(row(n, t) for n in range(3) for t in "ab")))
    publishing, calls = publisher(table), []

    def failing(name):
        original = getattr(Location, name)

        def then_broken(self, source):
            calls.append(self.url)
            made = original(self, source)
            if len(calls) == 1:
                raise StorageError(self.url, "the connection broke after the upload")
            return made

        return then_broken

    for name in ("upload", "create_exclusive"):
        monkeypatch.setattr(Location, name, failing(name))
    with pytest.raises(StorageError):
        publishing.publish(final=True)
    assert "/results/" in calls[0]
    assert publishing.publish(final=True)["rows"] == 3
    assert sorted(r["key"] for r in read(table, "results")) == sorted(key(n, t) for n in range(3) for t in "ab")


def test_a_reader_that_looks_all_the_while_sees_no_key_twice(tmp_path):
    table, stop, wrong, looks = Location(str(tmp_path)), threading.Event(), [], []

    def look() -> None:
        while not stop.is_set():
            seen = visible(tmp_path)
            looks.append(len(seen))
            if len(seen) != len(set(seen)):
                wrong.append(seen)

    thread = threading.Thread(target=look)
    thread.start()
    publishing = publisher(table)
    for part in range(15):
        write_work(table, "r1", rows(*(row(n, t) for n in range(part * 5, part * 5 + 10) for t in "ab")))
        publishing.publish(final=True)
    stop.set()
    thread.join()
    assert not wrong and looks == sorted(looks) and len(visible(tmp_path)) == 160


def test_killed_anywhere_nothing_is_lost_or_doubled(tmp_path):
    prepared = Location(str(tmp_path / "prepared"))
    write_work(prepared, "r0", rows(*(row(n, t) for n in range(5) for t in "ab"), row(20, status="failed")))
    publisher(prepared, "r0").publish(final=True)
    write_work(prepared, "r1", rows(*(row(n, t) for n in range(3, 9) for t in "ab"), row(21, "b", status="rejected")))
    write_work(prepared, "r2", rows(*(row(n, t) for n in range(7, 12) for t in "ab"), row(20, attempt=2)))
    write_work(prepared, "r2", rows(row(22, status="failed"), row(23, "b")))
    expected = [*(key(n, t) for n in range(12) for t in "ab"), key(20), key(23, "b")]
    (tmp_path / "prepared" / "expected.json").write_text(json.dumps(expected))
    (tmp_path / "prepared" / "errors.json").write_text(json.dumps([key(21, "b"), key(22)]))
    command = [sys.executable, "-m", "tests.pipelines.kill_publish", prepared.url, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["wrong"] == [] and report["kills"] >= 20 and report["looks"] > 100, report
    clean_partial(Location(str(tmp_path / "table")))
    assert not list((tmp_path / "table").glob("**/*.tmp"))
