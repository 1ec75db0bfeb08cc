"""A real run through Ray, verified, made again and traced; then another prompt and another text, traced forward."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from jobs.recorded import recorded_job
from pipelines.generate import run_job
from pipelines.job import JobSpec
from pipelines.trace import trace_row
from pipelines.verification.report import Verification
from pipelines.verification.verify import verify_table

from .corpora import documents, write_shards
from .whole_table import SUMMARY, job_text

CAPTION = {"name": "alt", "kind": "caption", "max_tokens": 4}


def run(text: str) -> str:
    return run_job(JobSpec.model_validate(json.loads(text)), job_text=text).run_id


def verified(folder: Path, **options) -> Verification:
    result = verify_table(str(folder / "table"), recorded_job, **options)
    assert {check.name: check.problems for check in result.checks if check.problems} == {}
    return result


def results(folder: Path) -> list[dict]:
    return ds.dataset(folder / "table" / "results").to_table().to_pylist()


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_run_is_verified_and_its_rows_are_traced_through_the_next_ones(tmp_path, model):
    rows = documents(12)
    rows[0]["doc_id"], rows[3]["body"] = None, " "
    write_shards(tmp_path / "corpus", rows, shards=2, group=3)
    sampled = {**SUMMARY, "name": "drawn", "temperature": 0.9, "seed": 5}
    first = run(job_text(tmp_path, model, [SUMMARY, sampled, CAPTION]))
    result = verified(tmp_path, reproduce=5)
    assert result.state == "passed"
    looked = {check.name: check.looked for check in result.checks}
    assert looked["reproduced"] == {"rows sampled": 5, "rows made again": 5, "rows equal": 5}
    assert looked["pairs"]["pairs found"] == looked["runs"]["rows compared with their manifest"] > 10

    before = next(row for row in results(tmp_path) if row["document_id"] == "doc-002" and row["task"] == "summary")
    found = trace_row(str(tmp_path / "table"), before["key"], recorded_job)
    assert found.run["run_id"] == found.newest == first and found.asked and found.source.same and not found.newer

    shard = tmp_path / "corpus" / "shard-0.parquet"
    corpus = pq.read_table(shard)
    bodies = corpus.column("body").to_pylist()
    at = corpus.column("doc_id").to_pylist().index("doc-002")
    bodies[at] = "now something else stands here"
    pq.write_table(corpus.set_column(1, "body", pa.array(bodies)), shard, row_group_size=3)
    second = run(job_text(tmp_path, model, [{**SUMMARY, "prompt": "In short:"}, sampled, CAPTION]))
    result = verified(tmp_path, reproduce=5)
    assert result.state == "passed"
    source = next(check for check in result.checks if check.name == "source")
    assert source.notes["source has changed since"].count == 2, "two tasks of the text that was there before"

    found = trace_row(str(tmp_path / "table"), before["key"], recorded_job)
    assert found.newest == second and found.asked is False and found.source.same is False
    (newer,) = found.newer
    assert newer.run_id == second
    assert newer.changed == [
        "the document's text or images",
        "prompt: 'Summarize in English:' → 'In short:'",
    ]
