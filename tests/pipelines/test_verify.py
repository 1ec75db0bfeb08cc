"""`verify`: a true table passes, and each thing that can be wrong with one is found under its own name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from infra.storage import Location
from jobs.recorded import recorded_job
from pipelines.errors import TableError
from pipelines.publish import write_work
from pipelines.table import TableFile, footer_keys
from pipelines.trace import trace_row
from pipelines.verification.report import Verification
from pipelines.verification.verify import verify_table

from .corpora import documents, write_shards
from .whole_table import CAPTION, SUMMARY, job_text, run_here


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model) -> Path:
    """A folder with corpus/ and table/: ok rows of two tasks, rejected ones, one without an id, one repeated."""
    folder = tmp_path_factory.mktemp("whole")
    rows = documents(12)
    for n, row in enumerate(rows):
        # Images take most of the time: one document with one, one with two.
        row["photos"] = row["photos"] if n in (1, 4) else []
    rows[3]["doc_id"], rows[5]["doc_id"], rows[2]["body"] = None, rows[4]["doc_id"], "  "
    write_shards(folder / "corpus", rows, shards=2, group=4)
    run_here(job_text(folder, model, [SUMMARY, CAPTION], carry=["year"]))
    return folder


@pytest.fixture
def table(whole, tmp_path) -> Path:
    """A copy of the table to break; its rows name the corpus where it stands."""
    shutil.copytree(whole / "table", tmp_path / "table")
    return tmp_path / "table"


def verified(table: Path, **options: Any) -> Verification:
    return verify_table(str(table), recorded_job, **options)


def wrong(result: Verification) -> set[tuple[str, str]]:
    return {(check.name, what) for check in result.checks for what in check.problems}


def noted(result: Verification) -> set[tuple[str, str]]:
    return {(check.name, what) for check in result.checks for what in check.notes}


def looked(result: Verification, name: str) -> dict[str, int]:
    return next(check.looked for check in result.checks if check.name == name)


def file_of(table: Path, zone: str = "results", task: str = "summary") -> Path:
    (path,) = (table / zone / task).glob("*.parquet")
    return path


def change(path: Path, how: Callable[[pa.Table], pa.Table], footer: dict[bytes, bytes] | None = None) -> None:
    """Writes a table file anew with other rows, or another footer."""
    rows = pq.ParquetFile(path).read()
    kept = footer or {k: v for k, v in rows.schema.metadata.items() if k.startswith(b"corpusmill.")}
    changed = how(rows)
    with TableFile(path, changed.schema, kept) as file:
        file.write(changed)


def cell(column: str, value: Any, row: int = 0) -> Callable[[pa.Table], pa.Table]:
    """Another value in one cell."""

    def how(rows: pa.Table) -> pa.Table:
        values = rows.column(column).to_pylist()
        assert values[row] != value
        values[row] = value
        at = rows.schema.get_field_index(column)
        return rows.set_column(at, rows.schema.field(at), pa.array(values, rows.schema.field(at).type))

    return how


def edit_manifest(table: Path, how: Callable[[dict], None]) -> str:
    (path,) = (table / "_runs").glob("*/run.json")
    manifest = json.loads(path.read_text())
    how(manifest)
    path.write_text(json.dumps(manifest))
    return manifest["run_id"]


def test_a_true_table_passes(whole):
    result = verified(whole / "table", reproduce=5, seed=3)
    assert wrong(result) == set() and result.state == "passed"
    assert [check.name for check in result.checks] == ["files", "rows", "keys", "pairs", "runs", "source", "reproduced"]
    rows = looked(result, "rows")
    assert rows["rows in results/"] > 5 and rows["rows in errors/"] >= 3
    total = rows["rows in results/"] + rows["rows in errors/"]
    assert looked(result, "pairs")["pairs asked for"] == looked(result, "pairs")["pairs found"] == total
    assert looked(result, "runs")["rows compared with their manifest"] == total
    source = looked(result, "source")
    assert source["source files"] == 2 and source["source rows"] == 12
    assert source["rows compared"] == source["rows whose content is the same"] > 5
    assert looked(result, "reproduced") == {"rows sampled": 5, "rows made again": 5, "rows equal": 5}
    assert json.loads(json.dumps(result.as_json()))["state"] == "passed"


def test_the_sample_is_the_seeds_and_not_the_files(whole, table):
    from pipelines.verification.reproduce import Sample

    rows = [pq.ParquetFile(path).read() for path in sorted((table / "results").glob("*/*.parquet"))]
    every = pa.concat_tables(rows)

    def keys(seed: int, parts: list[pa.Table]) -> list[str]:
        sample = Sample(4, seed)
        for part in parts:
            sample.take(part, part.column("key"), "results", 0)
        return [row["key"] for row in sample.rows]

    one = keys(1, [every])
    assert len(set(one)) == 4 and one == keys(1, [every.slice(n, 1) for n in reversed(range(len(every)))])
    assert {tuple(keys(seed, rows)) for seed in range(5)} != {tuple(one)}


# --- keys --------------------------------------------------------------------------------------------------------


def test_a_row_that_stands_twice(table):
    change(file_of(table), lambda rows: pa.concat_tables([rows, rows.slice(0, 1)]))
    result = verified(table)
    assert {("keys", "a key stands twice in results/"), ("runs", "a run has more rows than it made")} <= wrong(result)
    key = pq.ParquetFile(file_of(table)).read(["key"]).column("key")[0].as_py()
    found = next(check for check in result.checks if check.name == "keys").problems["a key stands twice in results/"]
    assert found.count == 1 and found.examples[0].startswith(key) and "results/summary/" in found.examples[0]


def test_a_row_that_stands_twice_in_errors(table):
    path = file_of(table, "errors")
    change(path, lambda rows: pa.concat_tables([rows, rows.slice(0, 1)]))
    assert ("keys", "a key stands twice in errors/") in wrong(verified(table))


def test_a_row_moved_from_results_to_errors(table):
    moved = pq.ParquetFile(file_of(table)).read().slice(0, 1)
    change(file_of(table), lambda rows: rows.slice(1))
    change(file_of(table, "errors"), lambda rows: pa.concat_tables([rows, moved]))
    found = wrong(verified(table))
    assert ("rows", "status in errors/ is not rejected or failed") in found
    assert ("runs", "rows differ from their run's manifest") not in found


def test_a_row_moved_from_errors_to_results(table):
    moved = pq.ParquetFile(file_of(table, "errors")).read().slice(0, 1)
    change(file_of(table, "errors"), lambda rows: rows.slice(1))
    change(file_of(table), lambda rows: pa.concat_tables([rows, moved]))
    found = wrong(verified(table))
    assert {
        ("rows", "status in results/ is not ok"),
        ("pairs", "a pair has another status than its run counted"),
    } <= found


def test_a_key_in_both_zones_unless_a_publisher_is_between_them(table):
    twin = pq.ParquetFile(file_of(table)).read().slice(0, 1)
    failed = cell("status", "failed")(cell("error_code", "internal")(cell("text", None)(twin)))
    change(file_of(table, "errors"), lambda rows: pa.concat_tables([rows, failed]))
    both = ("keys", "a key stands in results/ and in errors/")
    assert both in wrong(verified(table))
    write_work(Location(str(table)), twin.column("run_id")[0].as_py(), twin)
    result = verified(table)
    assert both not in wrong(result)
    assert ("keys", "a key is on its way from errors/ to results/; the next run finishes it") in noted(result)


def test_ten_thousand_keys_are_joined_in_their_partitions(tmp_path):
    import numpy as np

    from pipelines.verification.pairs import KEYS, KeyLedger
    from pipelines.verification.report import Check
    from pipelines.verification.spill import Spill

    keys = np.frombuffer(np.random.default_rng(0).bytes(16 * 10_000), "S16")
    keys_check, pairs = Check("keys", ""), Check("pairs", "")
    with Spill(tmp_path / "keys", KEYS) as spill:
        ledger = KeyLedger(spill)
        ledger._add(keys, np.ones(len(keys)), 1)
        ledger._add(keys[:7], np.ones(7), 1, file=1)
        ledger._add(keys[5:], np.ones(len(keys) - 5), 0)
        assert len(list((tmp_path / "keys").iterdir())) == 256
        ledger.check(keys_check, pairs, ["a", "b"], later=False)
    assert keys_check.problems["a key stands twice in results/"].count == 7
    assert pairs.looked == {"pairs asked for": 9_995, "pairs found": 9_995} and not pairs.problems


# --- pairs and manifests -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("zone", ["results", "errors"])
def test_a_row_that_is_gone(table, zone):
    change(file_of(table, zone), lambda rows: rows.slice(1))
    result = verified(table)
    assert ("pairs", "a pair that was asked for has no row") in wrong(result)
    assert (("runs", "a run has fewer ok rows than it made") in wrong(result)) == (zone == "results")


def test_counts_that_were_edited(table):
    def more(manifest: dict) -> None:
        manifest["counts"]["summary"]["ok"] += 1

    edit_manifest(table, more)
    found = wrong(verified(table))
    assert found == {
        ("pairs", "the manifest's counts are not those of the keys asked for"),
        ("pairs", "a task does not answer for each document"),
        ("runs", "a run has fewer ok rows than it made"),
    }


def test_a_run_that_skipped_a_source_row(table):
    edit_manifest(table, lambda manifest: manifest["inputs"][0].update(rows=manifest["inputs"][0]["rows"] + 1))
    assert wrong(verified(table)) == {("pairs", "the run counted other documents than its source files have rows")}


def test_keys_that_are_gone(table):
    for path in (table / "_runs").glob("*/asked/*.parquet"):
        path.unlink()
    assert wrong(verified(table)) == {("pairs", "the run's keys are gone")}


def test_a_later_run_that_died_may_have_moved_rows_out_of_errors(table):
    change(file_of(table, "errors"), lambda rows: rows.slice(1))
    (path,) = (table / "_runs").glob("*/run.json")
    later = json.loads(path.read_text()) | {"run_id": "29990101T000000000-dead", "exit": None, "counts": {}}
    (table / "_runs" / later["run_id"]).mkdir()
    (table / "_runs" / later["run_id"] / "run.json").write_text(json.dumps(later))
    result = verified(table)
    assert wrong(result) == set()
    assert ("pairs", "left errors/ since: a later run has tried its document again") in noted(result)
    assert ("runs", "a run did not get to its end (killed, or still going on)") in noted(result)


def test_a_run_without_a_manifest(table):
    change(file_of(table), cell("run_id", "20200101T000000000-none"))
    result = verified(table)
    assert ("runs", "rows name a run that has no manifest") in wrong(result)
    (path,) = (table / "_runs").glob("*/run.json")
    path.write_text("{half")
    broken = wrong(verified(table))
    assert ("runs", "a manifest cannot be read, or is another run's") in broken
    assert ("runs", "a footer names a run that has no manifest") in broken


@pytest.mark.parametrize(
    ("column", "value"),
    [("job", "other"), ("model_revision", "0" * 64), ("task_fingerprint", "0" * 32), ("seed", 7), ("backend", "x")],
)
def test_lineage_that_is_not_the_runs(table, column, value):
    change(file_of(table), cell(column, value))
    found = wrong(verified(table))
    assert ("runs", "rows differ from their run's manifest") in found
    in_key = column in ("model_revision", "task_fingerprint")
    assert (("rows", "the key is not that of its document, task and model") in found) == in_key


def test_a_job_text_that_was_edited(table):
    edit_manifest(table, lambda manifest: manifest["job"].update(text=manifest["job"]["text"] + " "))
    assert wrong(verified(table)) == {("runs", "a manifest's job text is not the one that it has the hash of")}


# --- files -------------------------------------------------------------------------------------------------------


def test_a_footer_that_names_another_run(table):
    change(file_of(table), lambda rows: rows, footer_keys("20200101T000000000-none", "0" * 64))
    assert wrong(verified(table)) == {("runs", "a footer names a run that has no manifest")}


def test_a_footer_of_another_job_and_of_a_newer_version(table):
    run_id = edit_manifest(table, lambda manifest: None)
    change(file_of(table), lambda rows: rows, footer_keys(run_id, "0" * 64))
    newer = footer_keys(run_id) | {b"corpusmill.schema_version": b"99"}
    change(file_of(table, "errors"), lambda rows: rows, newer)
    assert wrong(verified(table)) == {
        ("runs", "a footer's job hash is not its run's"),
        ("files", "the footer's schema version is not known"),
    }


def test_a_footer_that_counts_other_rows(table):
    path = file_of(table)
    rows, data = pq.ParquetFile(path).metadata.num_rows, bytearray(path.read_bytes())
    # Thrift's FileMetaData: field 3, an i64 in zigzag, then field 4, the list of row groups.
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    at = data.index(bytes([0x16, 2 * rows, 0x19]), start)
    data[at + 1] = 2 * (rows + 1)
    path.write_bytes(data)
    assert pq.ParquetFile(path).metadata.num_rows == rows + 1
    assert ("files", "the footer counts other rows than there are") in wrong(verified(table))


@pytest.mark.parametrize("how", ["cut", "page"])
def test_a_damaged_file_is_named_and_the_rest_is_looked_at(table, how):
    path = file_of(table)
    data = path.read_bytes()
    if how == "cut":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.write_bytes(data[:4] + b"\xff" * 200 + data[204:])
    result = verified(table)
    found = next(check for check in result.checks if check.name == "files").problems["a file cannot be read"]
    assert found.examples[0].startswith(f"results/summary/{path.name}: ")
    assert ("pairs", "a pair that was asked for has no row") in wrong(result)
    assert looked(result, "keys")["keys in results/"] > 0


def test_columns_that_are_not_the_tables(table):
    change(file_of(table), lambda rows: rows.drop_columns(["seed"]))
    change(file_of(table, task="alt"), lambda rows: rows.rename_columns([*rows.schema.names[:-1], "other"]))
    found = wrong(verified(table))
    assert ("files", "a column is not as it must be") in found
    assert ("files", "the carried columns differ between files") in found


# --- rows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("zone", "column", "value", "what"),
    [
        ("results", "document_id", "doc-999", "the key is not that of its document, task and model"),
        ("results", "document_sha256", "f" * 64, "the key is not that of its document, task and model"),
        ("results", "document_sha256", "abc", "document_sha256 is not 64 hex digits"),
        ("results", "key", "x" * 32, "a key is not 32 hex digits"),
        ("results", "task", "alt", "the row stands in another task's folder"),
        ("results", "text", None, "an ok row has no text"),
        ("results", "error_code", "internal", "an ok row has an error code"),
        ("results", "finish_reason", "bored", "an ok row has another finish_reason than stop or length"),
        ("results", "attempt", 0, "the attempt is not 1 or more"),
        ("results", "output_tokens", -1, "a count is negative"),
        ("results", "created_at", None, "created_at is missing, in the future or outside its run"),
        ("errors", "error_code", "engine_crash", "error_code does not belong to the status"),
        ("errors", "error_code", "unheard_of", "error_code does not belong to the status"),
        ("errors", "text", "a text", "a row that is not ok has a text"),
        ("errors", "source_row", 99, "the key is not that of its document, task and model"),
    ],
)
def test_a_cell_that_is_wrong(table, zone, column, value, what):
    rows = pq.ParquetFile(file_of(table, zone)).read()
    # Of a row that is known by its place, where that is what the key names.
    row = pc.index(rows.column("error_code"), "null_id").as_py() if column == "source_row" else 0
    assert row >= 0
    change(file_of(table, zone), cell(column, value, row))
    assert ("rows", what) in wrong(verified(table))


def test_a_time_outside_its_run(table):
    import datetime

    change(file_of(table), cell("created_at", datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)))
    assert wrong(verified(table)) == {("rows", "created_at is missing, in the future or outside its run")}


# --- source ------------------------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path, model) -> Path:
    """A table of its own, with a corpus to change: four documents."""
    write_shards(tmp_path / "corpus", [row for row in documents(9) if row["body"]][:4], shards=2, group=2)
    run_here(job_text(tmp_path, model, [SUMMARY]))
    return tmp_path


def rewrite(shard: Path, body: str) -> None:
    """Another text in the first row."""
    rows = pq.read_table(shard).to_pylist()
    rows[0]["body"] = body
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(shard)), shard)


def test_a_source_that_changed_is_said_and_is_no_corruption(own):
    shard = own / "corpus" / "shard-0.parquet"
    rewrite(shard, "another text stands here")
    (own / "corpus" / "shard-1.parquet").unlink()
    result = verified(own / "table", reproduce=4)
    assert wrong(result) == set()
    source = next(check for check in result.checks if check.name == "source")
    assert source.notes["source has changed since"].count == 1
    assert source.notes["source has changed since: the file is gone"].count == 2
    assert source.looked["rows whose content is the same"] == 1
    again = next(check for check in result.checks if check.name == "reproduced")
    assert again.looked["rows equal"] == 1
    assert again.notes["not made again: the source has changed since"].count == 3


def test_a_hash_that_is_not_the_source_rows(own):
    shard = own / "corpus" / "shard-0.parquet"
    rewrite(shard, "another text stands here")

    def as_it_is_now(manifest: dict) -> None:
        (entry,) = [entry for entry in manifest["inputs"] if entry["path"] == str(shard)]
        entry["etag"] = Location(str(shard)).info().etag

    edit_manifest(own / "table", as_it_is_now)
    what = "the content hash is not that of the source row, whose file has not changed"
    result = verified(own / "table")
    assert wrong(result) == {("source", what)}
    (example,) = next(check for check in result.checks if check.name == "source").problems[what].examples
    assert f"row 0 of {shard}" in example


def test_a_variable_that_is_missing_is_named_and_the_rest_is_checked(tmp_path, model, monkeypatch):
    write_shards(tmp_path / "corpus", [row for row in documents(9) if row["body"]][:2], shards=1, group=2)
    run_here(job_text("${WHERE}", model, [SUMMARY]), job_text(tmp_path, model, [SUMMARY]))
    monkeypatch.delenv("WHERE", raising=False)
    result = verified(tmp_path / "table", reproduce=1)
    assert result.state == "not checked" and wrong(result) == set()
    undone = {check.name: check.undone for check in result.checks if check.undone}
    assert set(undone) == {"source", "reproduced"} and "variable WHERE is not set" in undone["source"][0]
    monkeypatch.setenv("WHERE", str(tmp_path))
    assert verified(tmp_path / "table", reproduce=1).state == "passed"


# --- made again --------------------------------------------------------------------------------------------------


def test_a_text_that_does_not_come_out_again(table):
    path = file_of(table)
    rows = len(pq.ParquetFile(path).read())
    change(path, cell("text", "nobody made this"))
    result = verified(table, reproduce=100)
    assert wrong(result) == {("reproduced", "a float32 row comes out otherwise")}
    again = next(check for check in result.checks if check.name == "reproduced")
    assert again.looked["rows made again"] - again.looked["rows equal"] == 1 and again.looked["rows sampled"] > rows
    assert "text of summary of document" in again.problems["a float32 row comes out otherwise"].examples[0]


@pytest.mark.slow
def test_bfloat16_may_differ(tmp_path, model):
    write_shards(tmp_path / "corpus", [row for row in documents(9) if row["body"]][:2], shards=1, group=2)
    run_here(job_text(tmp_path, model, [SUMMARY], dtype="bfloat16"))
    assert verified(tmp_path / "table", reproduce=2).state == "passed"
    change(file_of(tmp_path / "table"), cell("text", "nobody made this"))
    result = verified(tmp_path / "table", reproduce=2)
    assert result.state == "passed"
    assert ("reproduced", "bfloat16 rows may differ by what they were computed with, and do") in noted(result)


def test_a_model_that_is_another_now(own, model, monkeypatch):
    from pipelines.verification import reproduce

    monkeypatch.setattr(reproduce, "model_revision", lambda folder: "0" * 64)
    result = verified(own / "table", reproduce=2)
    assert result.state == "not checked" and wrong(result) == set()
    assert ("reproduced", "not made again: the model at its path is another now") in noted(result)


def test_a_table_in_a_bucket(s3, tmp_path, model):
    write_shards(tmp_path / "corpus", [row for row in documents(9) if row["body"]][:2], shards=1, group=2)
    folder = s3.url("verified")
    Location(f"{folder}/corpus").child("shard-0.parquet").upload(tmp_path / "corpus" / "shard-0.parquet")
    run_here(job_text(folder, model, [SUMMARY]))
    result = verify_table(f"{folder}/table", recorded_job, reproduce=1)
    assert result.state == "passed" and looked(result, "source")["rows whose content is the same"] == 2
    (file,) = Location(f"{folder}/table").child("results", "summary").list_files()
    key = pq.read_table(file.path, filesystem=Location(file.url).fs).column("key")[1].as_py()
    found = trace_row(f"{folder}/table", key, recorded_job)
    assert found.source.same is True and found.source.then == found.source.now
    Location(file.url).write_bytes(b"PAR1 cut")
    assert ("files", "a file cannot be read") in wrong(verify_table(f"{folder}/table", recorded_job))


def test_there_is_no_table(tmp_path):
    with pytest.raises(TableError, match="there is no table here"):
        verified(tmp_path / "nothing")
