"""`trace`: one row back to its document, model, prompt and run, and forward to what took its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from infra.storage import Location
from jobs.recorded import recorded_job
from pipelines.errors import TableError
from pipelines.lookup import find_keys
from pipelines.publish import write_work
from pipelines.trace import Traced, TraceError, trace_row

from .corpora import documents, write_shards
from .rows import key, row, rows
from .whole_table import SUMMARY, job_text, run_here


@pytest.fixture
def folder(tmp_path, model) -> Path:
    """Three documents with a text, the third one blank, summarised."""
    texts = [{**row, "photos": []} for row in documents(9) if row["body"]][:3]
    texts[2]["body"] = " "
    write_shards(tmp_path / "corpus", texts, shards=1, group=2)
    run_here(job_text(tmp_path, model, [SUMMARY]))
    return tmp_path


def row_of(folder: Path, document: str, zone: str = "results") -> dict[str, Any]:
    (found,) = [
        row for row in ds.dataset(folder / "table" / zone).to_table().to_pylist() if row["document_id"] == document
    ]
    return found


def traced(folder: Path, wanted: str) -> Traced:
    return trace_row(str(folder / "table"), wanted, recorded_job)


def test_back_to_the_document_the_model_and_the_run(folder, model):
    row = row_of(folder, "doc-000")
    found = traced(folder, row["key"][:10].upper())
    assert found.zone == "results" and found.row == row and found.file.startswith("results/summary/")
    assert found.task["prompt"] == "Summarize in English:" and found.task["sampling"]["max_tokens"] == 6
    assert found.run["run_id"] == row["run_id"] and found.run["host"] and found.run["job"]["sha256"]
    assert found.run["model"]["path"] == str(model) and found.run["code"]["version"]
    source = found.source
    assert source.path == str(folder / "corpus" / "shard-0.parquet") and source.row == 0
    assert source.same is True and source.then == source.now and source.text.startswith("the ")
    assert (found.newest, found.asked, found.newer, found.older) == (row["run_id"], True, [], [])


def test_a_rejected_row_is_traced_too(folder):
    row = row_of(folder, "doc-003", "errors")
    assert row["error_code"] == "empty_input"
    found = traced(folder, row["key"])
    assert found.zone == "errors" and found.source.same is True and found.source.text == " " and found.asked is True


def test_forward_to_another_prompt_another_text_and_another_sampling(folder, model):
    first = row_of(folder, "doc-000")
    prompted = {**SUMMARY, "prompt": "In short:", "max_tokens": 5}
    run_here(job_text(folder, model, [prompted]))
    shard = folder / "corpus" / "shard-0.parquet"
    corpus = pq.read_table(shard)
    bodies = ["now something else stands here", *corpus.column("body").to_pylist()[1:]]
    pq.write_table(corpus.set_column(1, "body", pa.array(bodies)), shard, row_group_size=2)
    last = run_here(job_text(folder, model, [prompted]))

    found = traced(folder, first["key"])
    assert found.source.same is False and found.source.then != found.source.now
    assert found.source.text == "now something else stands here"
    assert found.newest == last and found.asked is False and found.older == []
    by_prompt, by_text = found.newer
    changes = ["prompt: 'Summarize in English:' → 'In short:'", "max_tokens: 6 → 5"]
    assert by_prompt.changed == changes
    assert by_text.changed == ["the document's text or images", *changes]
    newest = traced(folder, by_text.key)
    assert newest.newer == [] and [older.key for older in newest.older] == [first["key"], by_prompt.key]
    assert newest.older[1].changed == ["the document's text or images"] and newest.asked is True
    # The other document has lost nothing but its prompt.
    assert traced(folder, row_of_run(folder, "doc-002", last)["key"]).older[0].changed == changes


def row_of_run(folder: Path, document: str, newest: str) -> dict[str, Any]:
    found = [
        row for row in ds.dataset(folder / "table" / "results").to_table().to_pylist() if row["document_id"] == document
    ]
    return max(found, key=lambda row: row["created_at"])


def test_a_source_that_is_gone_or_cannot_be_filled_in(tmp_path, model, monkeypatch):
    texts = [{**row, "photos": []} for row in documents(3) if row["body"]][:1]
    write_shards(tmp_path / "corpus", texts, shards=1, group=2)
    run_here(job_text("${WHERE}", model, [SUMMARY]), job_text(tmp_path, model, [SUMMARY]))
    wanted = row_of(tmp_path, "doc-000")["key"]
    monkeypatch.delenv("WHERE", raising=False)
    found = traced(tmp_path, wanted)
    assert "variable WHERE is not set" in found.source.unread and found.source.now == found.source.then
    monkeypatch.setenv("WHERE", str(tmp_path))
    (tmp_path / "corpus" / "shard-0.parquet").rename(tmp_path / "moved")
    assert traced(tmp_path, wanted).source.unread == "the file is gone"
    (tmp_path / "moved").rename(tmp_path / "corpus" / "shard-0.parquet")
    shard = tmp_path / "corpus" / "shard-0.parquet"
    pq.write_table(pq.read_table(shard).slice(1), shard)
    assert traced(tmp_path, wanted).source.unread == "the file has no such row any more"


def test_what_is_finished_and_not_published_and_has_no_manifest(tmp_path):
    table = Location(str(tmp_path / "table"))
    write_work(table, "r1", rows(row(1), row(2)))
    found = traced(tmp_path, key(1))
    assert found.zone == "_work" and found.run is None and found.task is None and found.newest is None
    assert found.source.unread == "the row names no place in a source"


def test_earlier_attempts(tmp_path):
    from pipelines.lineage import write_manifest

    table = Location(str(tmp_path / "table"))
    for run, status in (("r1", "failed"), ("r2", "failed"), ("r3", "ok")):
        write_manifest(table, run, {"run_id": run, "exit": 0})
        # As versions before the ledger wrote it.
        asked = pa.table({"key": [key(1)], "task": ["a"], "status": [status]})
        pq.write_table(asked, tmp_path / "table" / "_runs" / run / "keys.parquet")
    write_manifest(table, "r0", {"run_id": "r0", "exit": None})
    write_work(table, "r3", rows(row(1, attempt=3, run="r3")))
    found = traced(tmp_path, key(1))
    assert found.attempts == [("r1", "failed"), ("r2", "failed")] and found.newest == "r3" and found.asked is True


def test_keys_that_name_no_row_or_several(tmp_path):
    table = Location(str(tmp_path / "table"))
    twins = [row(1) | {"key": "abcdef" + "0" * 26}, row(2) | {"key": "abcdef" + "1" * 26}, row(3)]
    write_work(table, "r1", rows(*twins))
    with pytest.raises(TraceError, match="2 keys begin with abcdef; give more digits") as several:
        traced(tmp_path, "abcdef")
    assert str(several.value).splitlines()[1:] == [twin["key"] for twin in twins[:2]]
    assert traced(tmp_path, "abcdef0").row["document_id"] == "1"
    with pytest.raises(TableError, match="no row has a key that begins with 1234567"):
        traced(tmp_path, "1234567")
    for bad in ("abc", "nothex", "g" * 32, "a" * 33, ""):
        with pytest.raises(TraceError, match="is not a key"):
            traced(tmp_path, bad)


def test_row_groups_whose_statistics_leave_no_room_are_not_read(tmp_path, monkeypatch):
    path = tmp_path / "table" / "results" / "a" / "f.parquet"
    path.parent.mkdir(parents=True)
    some = [row(n) | {"key": f"{n:06x}" + "0" * 26} for n in range(8)]
    pq.write_table(rows(*some), path, row_group_size=2)
    read: list[int] = []
    original = pq.ParquetFile.read_row_group

    def counting(self, i, *args, **options):
        read.append(i)
        return original(self, i, *args, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counting)
    (place,) = find_keys(Location(str(tmp_path / "table")), "000005")
    assert (place.group, place.row, read) == (2, 1, [2])


def test_all_of_it_is_plain_json(folder):
    import dataclasses

    found = traced(folder, row_of(folder, "doc-000")["key"])
    assert json.loads(json.dumps(dataclasses.asdict(found), default=str))["source"]["same"] is True
