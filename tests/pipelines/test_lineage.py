"""Manifests, lineage events and the data card: complete, and without a secret."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime

import pytest

from infra.storage import Location
from pipelines.lineage import (
    build_manifest,
    emit_openlineage,
    new_run_id,
    read_manifests,
    write_data_card,
    write_manifest,
)
from pipelines.reports import TaskCounts
from tests.pipelines.rows import SCHEMA
from workers.tasks import LimitsSpec, TaskSpec, TaskTable, resolve_tasks

MARKER = "marker-secret-0815"
JOB = f"name: nightly\nsource: {{path: 'https://user:{MARKER}@host/x?sig={MARKER}'}}\nmodel: ${{MODEL}} # {MARKER}\n"


@pytest.fixture
def table(tmp_path) -> Location:
    return Location(str(tmp_path / "out"))


@pytest.fixture(autouse=True)
def secret(monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", MARKER)


def manifest(run_id: str = "", **options):
    asked = TaskSpec(name="a", kind="prompt", prompt="Say | <script>alert(1)</script> [x](http://evil) `code`")
    return build_manifest(
        run_id=run_id or new_run_id(),
        job_name="nightly",
        job_text=JOB,
        source=f"s3://{MARKER}:{MARKER}@corpus/documents",
        model={"path": "google/t5", "revision": "abc", "backend": "native", "dtype": "float32"},
        tasks=resolve_tasks([asked], TaskTable.parse(None), LimitsSpec()),
        inputs=[{"path": "s3://corpus/documents/1.parquet", "size": 10, "etag": "e", "rows": 4}],
        started=datetime(2026, 1, 1, tzinfo=UTC),
        **options,
    )


def everything(table: Location) -> str:
    return "\n".join(Location(file.url).read_bytes().decode(errors="replace") for file in table.list_files(""))


def test_run_ids_sort_by_time():
    ids = [new_run_id() for _ in range(50)]
    assert len(set(ids)) == 50 and sorted(i[:18] for i in ids) == [i[:18] for i in ids]


def test_a_manifest_says_what_a_run_was(table):
    made = manifest(counts={"a": TaskCounts(ok=3, failed=1)}, ended=datetime(2026, 1, 2, tzinfo=UTC), exit_code=0)
    write_manifest(table, made["run_id"], made)
    (read,) = read_manifests(table)
    assert read == json.loads(json.dumps(made))
    assert "${MODEL}" in read["job"]["text"] and len(read["job"]["sha256"]) == 64
    assert read["packages"]["pyarrow"] and read["packages"]["ray"] and read["packages"]["python"]
    assert read["code"]["version"] and read["tasks"][0]["fingerprint"] and read["tasks"][0]["prompt"]
    assert read["counts"]["a"]["ok"] == 3 and read["inputs"][0]["etag"] == "e" and read["exit"] == 0


def test_manifests_come_newest_first_and_broken_ones_not_at_all():
    table = Location(f"memory://{uuid.uuid4().hex}")
    for run_id in ("20260101T000000000-aa", "20260103T000000000-aa", "20260102T000000000-aa"):
        write_manifest(table, run_id, manifest(run_id))
    table.child("_runs", "20260104T000000000-aa", "run.json").write_bytes(b"{half")
    assert [m["run_id"][:8] for m in read_manifests(table)] == ["20260103", "20260102", "20260101"]
    assert read_manifests(Location(f"memory://{uuid.uuid4().hex}")) == []


def test_lineage_events_follow_the_run(table):
    made = manifest(counts={"a": TaskCounts(ok=3)})
    assert emit_openlineage(table, made, "START", SCHEMA) is None
    assert emit_openlineage(table, made, "FAIL", SCHEMA, error=f"stopped at {MARKER}") is None
    lines = table.child("_runs", made["run_id"], "openlineage.jsonl").read_bytes().decode().splitlines()
    start, fail = map(json.loads, lines)
    assert (start["eventType"], fail["eventType"]) == ("START", "FAIL")
    assert start["run"]["runId"] == fail["run"]["runId"] and uuid.UUID(start["run"]["runId"])
    assert start["job"]["namespace"] == "corpusmill" and start["job"]["name"] == "nightly"
    assert start["inputs"][0]["namespace"].startswith("s3://") and start["inputs"][0]["name"] == "documents"
    assert fail["outputs"][0]["outputFacets"]["outputStatistics"]["rowCount"] == 3
    assert (
        fail["outputs"][0]["name"] == table.url and start["run"]["facets"]["corpusmill_run"]["model_revision"] == "abc"
    )
    assert start["outputs"][0]["facets"]["schema"]["fields"][0]["name"] == "key"
    assert start["run"]["facets"]["processing_engine"]["name"] == "ray"


def test_lineage_never_fails_a_job(table, tmp_path, monkeypatch):
    (tmp_path / "out").write_bytes(b"a file where the table should be")
    assert "not emitted" in emit_openlineage(table, manifest(), "START")
    assert "not emitted" in emit_openlineage(table, {}, "START")
    monkeypatch.setenv("OPENLINEAGE_DISABLED", "true")
    assert emit_openlineage(table, manifest(), "START") is None


def test_a_configured_client_is_sent_the_events_too(table, tmp_path, monkeypatch):
    transport = {"type": "file", "log_file_path": str(tmp_path / "server.jsonl"), "append": True}
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT", json.dumps(transport))
    assert emit_openlineage(table, manifest(), "COMPLETE", SCHEMA) is None
    assert json.loads((tmp_path / "server.jsonl").read_text())["eventType"] == "COMPLETE"


def test_the_data_card_holds_no_markup_of_the_jobs(table):
    write_data_card(table, manifest(), SCHEMA)
    card = table.child("README.md").read_bytes().decode()
    assert "<script>" not in card and "](http" not in card and r"\|" in card
    assert all(f"`{name}`" in card for name in SCHEMA.names[:-1]) and r"published\_at" in card
    assert "DuckDB" in card and "Spark" in card and "Polars" in card and f"{table.url}/results" in card


def test_no_secret_is_written_anywhere(table):
    made = manifest(error=f"could not read https://u:{MARKER}@h/x", warnings=[MARKER])
    write_manifest(table, made["run_id"], {**made, "late": {"note": [MARKER]}})
    emit_openlineage(table, made, "START", SCHEMA)
    emit_openlineage(table, made, "FAIL", SCHEMA, error=MARKER)
    write_data_card(table, made, SCHEMA)
    assert "nightly" in everything(table) and MARKER not in everything(table)
