"""The example jobs, run as they are: against buckets of a real S3 server that look like what they describe."""

from __future__ import annotations

import datetime
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from infra.storage import Location
from jobs.spec import load_job
from pipelines.generate import run_job
from tests.s3_server import S3Server

from .corpora import picture, text

EXAMPLES = Path(__file__).parents[2] / "jobs" / "examples"


def put(table: pa.Table, url: str) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=2)
    Location(url).write_bytes(sink.getvalue().to_pybytes())


@pytest.fixture(scope="module")
def buckets(s3: S3Server) -> Path:
    """Filled through the S3 protocol; the folder of the bucket that takes the tables."""
    for name in ("texts", "pictures", "made"):
        fsspec.filesystem("s3").mkdir(name)
    documents = {
        "doc_id": [f"d{i}" for i in range(5)],
        "body": [text(i, 8) for i in range(5)],
        "published_at": [datetime.date(2026, month, 5) for month in (1, 2, 3, 4, 5)],
        "lang": ["en"] * 5,
    }
    put(pa.table(documents), "s3://texts/documents/part-0.parquet")
    for name in ("lamp.png", "chair.png"):
        Location(f"s3://pictures/originals/{name}").write_bytes(picture(len(name)))
    photos = ["s3://pictures/originals/lamp.png", "s3://pictures/originals/chair.png", "s3://texts/secret.png", None]
    catalogue = {"sku": ["lamp", "chair", "outside", "none"], "photo": photos}
    put(pa.table(catalogue), "s3://texts/catalogue/part-0.parquet")
    return s3.folder / "made"


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    for name, value in {
        "MODEL_PATH": str(model), "CORPUS_BUCKET": "texts", "TABLE_BUCKET": "made", "IMAGE_BUCKET": "pictures",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)


def run(name: str):
    loaded = load_job(EXAMPLES / f"{name}.yaml")
    return run_job(loaded.job, job_text=loaded.text)


@pytest.mark.usefixtures("local_ray", "environment")
def test_nightly_summaries(buckets):
    report = run("nightly-summaries")
    assert report.tasks["summary"].ok == 5
    rows = ds.dataset(buckets / "nightly-summaries" / "results").to_table().to_pylist()
    assert {row["published_at"] for row in rows} == {datetime.date(2026, month, 5) for month in range(1, 6)}
    manifest = (buckets / "nightly-summaries" / "_runs" / report.run_id / "run.json").read_text()
    assert "${CORPUS_BUCKET}" in manifest, "the job is recorded as it was written"


@pytest.mark.usefixtures("local_ray", "environment")
def test_multilingual_backfill(buckets):
    report = run("multilingual-backfill")
    assert {name: counts.ok for name, counts in report.tasks.items()} == dict.fromkeys(
        ["summary", "to_en", "to_de", "to_fr", "to_es", "to_pt_br"], 3
    )
    rows = ds.dataset(buckets / "multilingual-backfill" / "results").to_table().to_pylist()
    assert {row["language"] for row in rows if row["task"] == "to_pt_br"} == {"pt-BR"}


@pytest.mark.usefixtures("local_ray", "environment")
def test_captions(buckets):
    report = run("captions")
    captions = report.tasks["alt_text"]
    assert (captions.ok, captions.rejected, captions.not_applicable) == (2, 1, 1)
    errors = ds.dataset(buckets / "captions" / "errors").to_table().to_pylist()
    assert {(row["document_id"], row["error_code"]) for row in errors} == {("outside", "image_forbidden")}
