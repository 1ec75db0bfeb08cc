"""An evaluation that runs its job first: the run's own table, its own documents, and nothing made twice."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.storage import Location
from jobs.evaluate import evaluate_file
from tests.s3_server import S3Server

from .corpora import text

JOB = """\
name: small
model: {{path: {model}, dtype: float32}}
source: {{path: {url}, id: id, text: body}}
tasks:
  - {{name: short, kind: summarize, language: en, max_tokens: 8}}
output: {{path: {table}}}
"""
EVALUATION = """\
name: quality
job: {job}
references: {{path: {url}, id: id}}
tasks:
  - {{name: short, reference: body}}
output: {{path: {table}/evaluation}}
"""


@pytest.mark.usefixtures("local_ray")
def test_the_job_is_run_and_its_table_evaluated_on_s3(s3: S3Server, model: Path, tmp_path: Path, capsys) -> None:
    url, table = s3.url("evaluated", "documents.parquet"), s3.url("evaluated", "table")
    documents = pa.table({"id": [f"d{n}" for n in range(6)], "body": [text(n, 12) for n in range(6)]})
    (s3.folder / s3.bucket / "evaluated").mkdir()
    pq.write_table(documents, s3.folder / s3.bucket / "evaluated" / "documents.parquet")
    job, evaluation = tmp_path / "job.yaml", tmp_path / "evaluation.yaml"
    job.write_text(JOB.format(model=model, url=url, table=table))
    evaluation.write_text(EVALUATION.format(job=job, url=url, table=table))
    evaluate_file(evaluation, compare=None, as_json=False)
    assert "Made 6 rows" in capsys.readouterr().err
    written = s3.folder / s3.bucket / "evaluated" / "table" / "evaluation"
    first = json.loads((written / "evaluation.json").read_text())
    assert first["tasks"][0]["overall"]["counts"]["references"] == 6
    assert first["table"]["jobs"] == ["small"]
    assert "copied" in first["checks"][0]["checks"], "the job's documents are the source to compare with"
    assert (written / "evaluation.png").exists()
    evaluate_file(evaluation, compare=table, as_json=True)
    out, err = capsys.readouterr()
    assert "Nothing to do" in err
    again = json.loads(out)
    assert again["tasks"][0]["overall"]["scores"] == first["tasks"][0]["overall"]["scores"]
    assert {c["p"] for c in again["tasks"][0]["overall"]["compared"].values()} == {1.0}
    _add_rows_of_another_model(Location(f"{table}/results/short"))
    evaluate_file(evaluation, compare=table, as_json=True)
    mixed = json.loads(capsys.readouterr().out)
    assert mixed["table"]["outputs"] == 6 and mixed["table"]["superseded_rows"] == 0
    overall = mixed["tasks"][0]["overall"]
    assert overall["scores"] == first["tasks"][0]["overall"]["scores"], "the job's own rows, though others are newer"
    assert overall["other_scores"]["exact"]["score"] == 100, "of a table the newest count"


def _add_rows_of_another_model(folder: Location) -> None:
    """To each row one made a day later by another model, which repeats the document."""
    tables = [pq.read_table(pa.BufferReader(Location(file.url).read_bytes())) for file in folder.list_files()]
    rows = pa.concat_tables(tables).to_pylist()
    for number, row in enumerate(rows):
        row |= {"key": f"{number:032x}", "model_revision": "c" * 32, "text": text(int(row["document_id"][1:]), 12)}
        row["created_at"] += datetime.timedelta(days=1)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=tables[0].schema), sink)
    folder.child("another-model.parquet").write_bytes(sink.getvalue().to_pybytes())
