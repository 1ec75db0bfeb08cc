"""Skip what is done: a second run, a new task, a new document, changed content, retries, filters, samples."""

from __future__ import annotations

from pathlib import Path

import pyarrow.dataset as ds
import pytest
from pydantic import ValidationError

from model_runtime.cpu.build import library
from pipelines.errors import SourceError
from pipelines.generate import run_job
from pipelines.job import JobSpec
from pipelines.plan import plan_job
from tests.checkpoints import make_checkpoint, shape_named

from .corpora import documents, write_shards

SUMMARY = {"name": "summary", "kind": "summarize", "max_tokens": 6}
CAPTION = {"name": "alt", "kind": "caption", "max_tokens": 6}


def make_job(folder: Path, model: Path, tasks, **source) -> JobSpec:
    return JobSpec.model_validate(
        {
            "name": "again",
            "model": {"path": str(model), "dtype": "float32"},
            "source": {
                "path": str(folder / "corpus"), "id": "doc_id", "text": "body", "images": "photos", **source,
            },
            "tasks": tasks,
            "output": {"path": str(folder / "table")},
        }
    )  # fmt: skip


def table(folder: Path) -> dict[tuple[str, str, str], dict]:
    rows = ds.dataset(folder / "table" / "results").to_table().to_pylist()
    found = {(row["document_id"], row["task"], row["key"]): row for row in rows}
    assert len(found) == len(rows)
    return found


def made(report) -> dict[str, int]:
    return {name: counts.made for name, counts in report.tasks.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("again")


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_only_what_is_missing_is_made(folder, model):
    rows = documents(12)
    write_shards(folder / "corpus", rows, shards=2, group=3)
    texts = sum(row["body"] is not None for row in rows)
    images = sum(bool(row["photos"]) for row in rows)

    plan = plan_job(make_job(folder, model, [SUMMARY]))
    assert plan.todo == {"summary": texts} and plan.documents == 12 and plan.documents_todo == texts
    assert sum(bucket.documents for bucket in plan.buckets) == texts
    assert plan.estimate_seconds is None

    first = run_job(make_job(folder, model, [SUMMARY]), job_text="")
    assert made(first) == {"summary": texts}
    assert first.input_tokens == plan.input_tokens, "the plan counted what the run encoded"
    before = table(folder)

    again = run_job(make_job(folder, model, [SUMMARY]), job_text="")
    assert made(again) == {"summary": 0} and again.tasks["summary"].already_ok == texts
    assert again.input_tokens == again.output_tokens == 0, "nothing was encoded"
    assert table(folder) == before

    added = run_job(make_job(folder, model, [SUMMARY, CAPTION]), job_text="")
    assert made(added) == {"summary": 0, "alt": images}

    # One new document in a new shard, one whose text changed under the same id.
    rows.append({"doc_id": "new", "body": "the lazy dog sleeps", "photos": [], "year": 2026})
    changed = next(i for i, row in enumerate(rows) if row["body"])
    rows[changed] = {**rows[changed], "body": "now something else stands here"}
    write_shards(folder / "corpus", rows[:12], shards=2, group=3)
    write_shards(folder / "corpus" / "late", rows[12:], shards=1, group=3)
    plan = plan_job(make_job(folder, model, [SUMMARY, CAPTION]))
    assert plan.todo["summary"] == 2 and plan.estimate_seconds is not None
    late = run_job(make_job(folder, model, [SUMMARY, CAPTION]), job_text="")
    redone = 2 if rows[changed]["photos"] else 0
    assert made(late) == {"summary": 2, "alt": redone // 2}
    assert {key: row for key, row in table(folder).items() if key in before} == before

    prompted = {**SUMMARY, "prompt": "In short:"}
    assert made(run_job(make_job(folder, model, [prompted]), job_text=""))["summary"] == texts + 1


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_filter_a_sample_and_a_single_column_of_ids(tmp_path, model):
    write_shards(tmp_path / "corpus", documents(20), shards=2, group=4)
    job = make_job(tmp_path, model, [SUMMARY], filter=[["year", ">=", 2000]], carry=["year"])
    sampled = run_job(job, job_text="", sample=4)
    assert sampled.documents == 10 and "_samples" in sampled.table
    rows = ds.dataset(f"{sampled.table}/results").to_table().to_pylist()
    assert 0 < len(rows) <= 4 and all(row["year"] >= 2000 for row in rows)
    assert not (tmp_path / "table" / "results").exists(), "a sample leaves the job's own table alone"

    run_job(job, job_text="")
    rows = ds.dataset(tmp_path / "table" / "results").to_table().to_pylist()
    source = ds.dataset(tmp_path / "corpus").to_table().to_pylist()
    assert len(rows) == sum(row["year"] >= 2000 and row["body"] is not None for row in source)
    for row in rows:
        shard = ds.dataset(row["source_path"]).to_table().to_pylist()
        assert shard[row["source_row"]]["doc_id"] == row["document_id"], "the filter does not shift source_row"


@pytest.mark.skipif(library() is None, reason="this machine cannot run the CPU kernels")
@pytest.mark.usefixtures("local_ray")
def test_a_job_in_int8_says_so_in_every_row(tmp_path):
    model = make_checkpoint(tmp_path / "model", shape_named("heads-of-64"))
    rows = documents(10)
    write_shards(tmp_path / "corpus", rows, shards=1, group=5)
    job = make_job(tmp_path, model, [SUMMARY])
    job = job.model_copy(update={"model": job.model.model_copy(update={"dtype": "int8"})})
    run_job(job, job_text="")
    made_rows = table(tmp_path).values()
    assert len(made_rows) == sum(row["body"] is not None for row in rows)
    assert {row["dtype"] for row in made_rows} == {"int8"}


@pytest.mark.usefixtures("local_ray")
def test_a_task_is_asked_of_the_rows_that_its_where_lets_pass(tmp_path, model):
    rows = documents(12)
    write_shards(tmp_path / "corpus", rows, shards=2, group=3)
    old = {**SUMMARY, "where": [["year", "<", 1996]]}
    job = make_job(tmp_path, model, [old, {**SUMMARY, "name": "all"}])
    asked = {row["doc_id"] for row in rows if row["body"] is not None and row["year"] < 1996}
    every = {row["doc_id"] for row in rows if row["body"] is not None}
    assert 0 < len(asked) < len(every)
    assert plan_job(job).todo == {"summary": len(asked), "all": len(every)}
    report = run_job(job, job_text="")
    assert made(report) == {"summary": len(asked), "all": len(every)}
    assert {document for document, task, _ in table(tmp_path) if task == "summary"} == asked

    # Which rows are asked is no part of what a row is: widened, only the new ones are made.
    wider = make_job(tmp_path, model, [SUMMARY, {**SUMMARY, "name": "all"}])
    assert made(run_job(wider, job_text="")) == {"summary": len(every) - len(asked), "all": 0}


def test_a_where_must_name_columns_and_values_of_the_source(tmp_path, model):
    write_shards(tmp_path / "corpus", documents(4), shards=1, group=4)
    with pytest.raises(SourceError, match="has no column 'absent'"):
        plan_job(make_job(tmp_path, model, [{**SUMMARY, "where": [["absent", "=", 1]]}]))
    with pytest.raises(ValidationError, match="operator 'like' on column year"):
        make_job(tmp_path, model, [{**SUMMARY, "where": [["year", "like", 1]]}])
