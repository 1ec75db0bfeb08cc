"""The whole job against a real S3 server: source and table both in it, text and images, two backends."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import duckdb
import fsspec
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from infra.storage import Location
from pipelines.asked import asked_keys
from pipelines.generate import run_job
from pipelines.job import JobSpec
from pipelines.reports import Progress, RunReport
from pipelines.schema import OUTPUT
from tests.s3_server import SECRET_KEY, S3Server

from .corpora import documents, write_shards

COUNT, SHARDS, GROUP = 42, 3, 5
TASKS = [
    {"name": "summary", "kind": "summarize", "language": "en", "max_tokens": 12},
    {"name": "to_fr", "kind": "translate", "language": "fr", "max_tokens": 20},
    {"name": "alt_text", "kind": "caption", "max_tokens": 8},
    {"name": "animals", "kind": "answer", "question": "Which animals appear?", "max_tokens": 8},
    {"name": "custom", "kind": "prompt", "prompt": "List the names:", "prompt_in": "encoder", "max_tokens": 6},
]


def make_job(s3: S3Server, checkpoint: Path | str, table: str, **changes) -> JobSpec:
    spec = {
        "name": "whole",
        "model": {"path": str(checkpoint), "dtype": "float32"},
        "source": {
            "path": s3.url("documents/"), "id": "doc_id", "text": "body", "images": "photos", "carry": ["year"],
        },
        "tasks": TASKS,
        "output": {"path": s3.url(table)},
    }  # fmt: skip
    return JobSpec.model_validate({**spec, **changes})


@dataclass(frozen=True)
class Finished:
    """A run and where its table lies, by URL and as the server's own folder."""

    report: RunReport
    folder: Path
    url: str
    progress: list[Progress]


def upload(folder: Path, url: str) -> None:
    """Through the protocol: the server remembers its listings, and would not see files put beside it."""
    for path in folder.iterdir():
        Location(url).child(path.name).upload(path)


@pytest.fixture(scope="module")
def corpus(s3: S3Server, tmp_path_factory) -> list[dict]:
    rows = documents(COUNT)
    local = tmp_path_factory.mktemp("documents")
    write_shards(local, rows, SHARDS, GROUP)
    upload(local, s3.url("documents"))
    return rows


@pytest.fixture(scope="module")
def finished(s3, local_ray, model, corpus) -> Finished:
    """The native backend's run; the model lies in the bucket too, and is staged."""
    upload(model, s3.url("models", "tiny"))
    progress: list[Progress] = []
    job = make_job(s3, s3.url("models/tiny"), "table")
    report = run_job(job, job_text="name: whole  # as written\n", on_progress=progress.append)
    return Finished(report, s3.folder / s3.bucket / "table", s3.url("table"), progress)


def rows_of(folder: Path, zone: str = "results") -> list[dict]:
    return ds.dataset(folder / zone, format="parquet").to_table().to_pylist()


def expected(corpus) -> Counter:
    """Pairs that apply, by task, from the corpus itself."""
    wanted: Counter[str] = Counter()
    for row in corpus:
        has_text, has_image = row["body"] is not None, bool(row["photos"])
        wanted.update({"summary": has_text, "to_fr": has_text, "alt_text": has_image})
        wanted.update({"animals": has_text or has_image, "custom": has_text or has_image})
    return wanted


def test_every_pair_that_applies_is_one_row(finished, corpus):
    wanted = expected(corpus)
    counts = finished.report.tasks
    assert {name: c.applicable for name, c in counts.items()} == wanted
    assert all(c.failed == c.rejected == c.already == 0 for c in counts.values())
    assert all(c.applicable + c.not_applicable == COUNT for c in counts.values())
    rows = rows_of(finished.folder)
    assert Counter(row["task"] for row in rows) == wanted
    assert len({row["key"] for row in rows}) == len(rows)
    assert rows_of(finished.folder, "errors") == []
    assert finished.progress[-1].documents == finished.progress[-1].documents_total == COUNT


def test_a_row_names_the_true_row_it_came_from(finished, corpus, s3):
    shards = {path.name: pq.read_table(path) for path in (s3.folder / s3.bucket / "documents").iterdir()}
    by_id = {row["doc_id"]: row for row in corpus}
    for row in rows_of(finished.folder):
        source = shards[row["source_path"].rsplit("/", 1)[-1]].slice(row["source_row"], 1).to_pylist()[0]
        assert row["source_path"].startswith("s3://corpus/documents/")
        assert source["doc_id"] == row["document_id"]
        assert source["year"] == row["year"] == by_id[row["document_id"]]["year"]
        assert row["image_count"] == len(source["photos"])


@pytest.mark.slow
def test_the_transformers_backend_gives_the_same_text(finished, s3, model):
    job = make_job(s3, model, "reference", model={"path": str(model), "backend": "transformers", "dtype": "float32"})
    run_job(job, job_text="")
    ours = {(row["document_id"], row["task"]): row for row in rows_of(finished.folder)}
    theirs = {(row["document_id"], row["task"]): row for row in rows_of(s3.folder / s3.bucket / "reference")}
    assert ours.keys() == theirs.keys()
    for pair, row in ours.items():
        other = theirs[pair]
        assert (row["text"], row["finish_reason"], row["output_tokens"]) == (
            other["text"], other["finish_reason"], other["output_tokens"],
        ), pair  # fmt: skip
        assert row["logprob"] == pytest.approx(other["logprob"], rel=1e-3, abs=1e-3)
        assert row["key"] == other["key"], "a folder and a bucket with the same files are one model revision"
    assert len({row["text"] for row in ours.values()}) > len(ours) / 3, "the texts are not all alike"


def test_duckdb_pyarrow_and_polars_read_a_plain_glob(finished):
    total = sum(counts.ok for counts in finished.report.tasks.values())
    glob = f"{finished.folder}/results/**/*.parquet"
    assert duckdb.sql(f"SELECT count(*), count(DISTINCT key) FROM '{glob}'").fetchall() == [(total, total)]
    assert pl.scan_parquet(glob).select(pl.len()).collect().item() == total
    assert ds.dataset(f"{finished.folder}/results").count_rows() == total
    # The same through the S3 protocol.
    with duckdb.connect() as connection:
        connection.register_filesystem(fsspec.filesystem("s3"))
        assert connection.sql(f"SELECT count(*) FROM '{finished.url}/results/*/*.parquet'").fetchall() == [(total,)]
    remote = ds.dataset("corpus/table/results", filesystem=fsspec.filesystem("s3"), format="parquet")
    assert remote.count_rows() == total


def test_columns_stand_in_their_order_with_lineage_in_the_footer(finished, s3):
    run = finished.report.run_id
    files = list((finished.folder / "results").rglob("*.parquet"))
    assert {path.parent.name for path in files} == {task["name"] for task in TASKS}
    for path in [*files, *(finished.folder / "errors").rglob("*.parquet")]:
        schema = pq.read_schema(path)
        assert schema.names == [*OUTPUT.names, "year"]
        assert schema.metadata[b"corpusmill.run_id"] == run.encode()
        assert schema.metadata[b"corpusmill.schema_version"] == b"1"
        assert len(schema.metadata[b"corpusmill.job_hash"]) == 64
        column = pq.ParquetFile(path).metadata.row_group(0).column(0) if pq.read_metadata(path).num_rows else None
        assert column is None or column.compression == "ZSTD"


def test_the_manifest_accounts_for_inputs_and_counts(finished, s3):
    manifest = json.loads((finished.folder / "_runs" / finished.report.run_id / "run.json").read_text())
    assert manifest["job"]["text"] == "name: whole  # as written\n"
    assert manifest["exit"] == 0 and manifest["started"] < manifest["ended"]
    assert [entry["path"] for entry in manifest["inputs"]] == [
        s3.url("documents", f"shard-{i}.parquet") for i in range(SHARDS)
    ]
    assert sum(entry["rows"] for entry in manifest["inputs"]) == COUNT
    assert all(entry["size"] and entry["etag"] for entry in manifest["inputs"])
    assert manifest["counts"]["summary"]["ok"] == finished.report.tasks["summary"].ok
    assert manifest["model"]["dtype"] == "float32" and len(manifest["model"]["revision"]) == 64
    asked = pa.Table.from_batches(asked_keys(Location(finished.report.table), finished.report.run_id)).to_pylist()
    assert {(row["key"], row["task"], row["status"]) for row in asked} == {
        (row["key"], row["task"], row["status"]) for row in rows_of(finished.folder)
    }


def test_open_lineage_tells_start_and_end(finished):
    path = finished.folder / "_runs" / finished.report.run_id / "openlineage.jsonl"
    events = [json.loads(line) for line in path.read_text().splitlines()]
    assert [event["eventType"] for event in events] == ["START", "COMPLETE"]
    assert len({event["run"]["runId"] for event in events}) == 1
    assert events[1]["inputs"][0]["name"] and events[1]["outputs"][0]["name"]


def test_a_document_is_encoded_once_for_all_its_decoder_tasks(finished, corpus):
    """Tokens encoded: one pass for the decoder prompts, one more for the prompt in the encoder."""
    rows = rows_of(finished.folder)
    shared = {row["document_id"]: row["input_tokens"] for row in rows if row["task"] == "animals"}
    prompted = {row["document_id"]: row["input_tokens"] for row in rows if row["task"] == "custom"}
    assert finished.report.input_tokens == sum(shared.values()) + sum(prompted.values())


def test_no_secret_and_nothing_unfinished_is_left(finished, s3):
    for path in finished.folder.rglob("*"):
        assert path.is_dir() or SECRET_KEY.encode() not in path.read_bytes(), path
    assert list((finished.folder / "_work").rglob("*.parquet")) == []
    assert not Location(finished.url).child("_runs", "lease.json").exists()
    assert (finished.folder / "README.md").read_text().startswith("# Table of whole")
