"""Nightly runs for real: only what must be made is encoded, and only what may be new is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest

from jobs.table_view import open_table, run_sql
from pipelines.generate import run_job
from pipelines.job import JobSpec
from pipelines.plan import plan_job
from pipelines.reports import Progress, RunReport
from pipelines.shards import Shard
from tests.checkpoints import make_checkpoint

from .conftest import SHAPE
from .corpora import documents, write_shards

SUMMARY = {"name": "summary", "kind": "summarize", "max_tokens": 6}
NAMES = {"name": "names", "kind": "prompt", "prompt": "List the names:", "max_tokens": 6}


def make_job(folder: Path, model: Path, tasks: list[dict]) -> JobSpec:
    return JobSpec.model_validate(
        {
            "name": "nightly",
            "model": {"path": str(model), "dtype": "float32"},
            "source": {"path": str(folder / "corpus"), "id": "doc_id", "text": "body", "images": "photos"},
            "tasks": tasks,
            "output": {"path": str(folder / "table")},
        }
    )


def texts(rows: list[dict[str, Any]]) -> int:
    return sum(row["body"] is not None for row in rows)


def made(report: RunReport) -> dict[str, int]:
    return {name: counts.made for name, counts in report.tasks.items()}


def latest(folder: Path) -> dict[tuple[str, str], tuple[str, str]]:
    """(document, task) → (text, model revision) of what the newest run asked for."""
    connection = open_table(str(folder / "table"))
    with run_sql(connection, "SELECT document_id, task, text, model_revision FROM latest") as reader:
        found = reader.read_all().to_pylist()
    connection.close()
    pairs = {(row["document_id"], row["task"]): (row["text"], row["model_revision"]) for row in found}
    assert len(pairs) == len(found)
    return pairs


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """The shards whose footers or ids planning reads."""
    import pipelines.shards as shards

    names: list[str] = []
    real, ids = shards._Opener.open, shards._ids

    def open_(self, file):
        names.append(Path(file.url).name)
        return real(self, file)

    def ids_(source, shard: Shard, index: int):
        names.append(Path(shard.file.url).name)
        return ids(source, shard, index)

    monkeypatch.setattr(shards._Opener, "open", open_)
    monkeypatch.setattr(shards, "_ids", ids_)
    return names


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_each_night_makes_only_what_is_new(tmp_path, model, opened):
    rows = documents(24)
    write_shards(tmp_path / "corpus", rows, shards=3, group=4)
    job = make_job(tmp_path, model, [SUMMARY])
    first = run_job(job, job_text="")
    assert made(first) == {"summary": texts(rows)}

    # Nothing new.
    opened.clear()
    told: list[Progress] = []
    again = run_job(job, job_text="", on_progress=told.append)
    assert made(again) == {"summary": 0} and again.documents_made == again.input_tokens == 0 and opened == []
    assert again.documents == 24 and again.tasks["summary"].already_ok == texts(rows)
    assert (told[-1].documents, told[-1].documents_total, told[-1].already) == (24, 24, texts(rows))
    manifest = json.loads((tmp_path / "table" / "_runs" / again.run_id / "run.json").read_text())
    assert manifest["documents"] == 24 and manifest["counts"]["summary"]["already_ok"] == texts(rows)
    assert manifest["counts"]["summary"]["not_applicable"] == first.tasks["summary"].not_applicable > 0

    # New documents in a new shard.
    more = documents(5, first=24)
    write_shards(tmp_path / "corpus" / "night", more, shards=1, group=4)
    plan = plan_job(job)
    assert plan.todo == {"summary": texts(more)} and plan.documents == 29
    assert plan.tasks["summary"].already_ok == texts(rows)
    opened.clear()
    grown = run_job(job, job_text="")
    assert made(grown) == {"summary": texts(more)} and set(opened) == {"shard-0.parquet"}
    assert grown.input_tokens == plan.input_tokens

    # One document changed under its id: its shard is read, one text is encoded.
    changed = next(i for i in range(8, 16) if rows[i]["body"])
    rows[changed] = {**rows[changed], "body": "now something else stands here"}
    write_shards(tmp_path / "corpus", rows, shards=3, group=4)
    late = run_job(job, job_text="")
    assert made(late) == {"summary": 1} and late.documents_made == 1
    before = latest(tmp_path)
    assert len(before) == texts(rows) + texts(more)

    # A new task beside the old one: the old one's rows stand.
    both = make_job(tmp_path, model, [SUMMARY, NAMES])
    applicable = sum(row["body"] is not None or bool(row["photos"]) for row in rows + more)
    wider = run_job(both, job_text="")
    assert made(wider) == {"summary": 0, "names": applicable}
    assert {pair: text for pair, text in latest(tmp_path).items() if pair[1] == "summary"} == before

    # Another prompt: only that task is made again, and latest holds its new rows alone.
    prompted = make_job(tmp_path, model, [SUMMARY, {**NAMES, "prompt": "Who is named?"}])
    assert made(run_job(prompted, job_text="")) == {"summary": 0, "names": applicable}
    assert len(latest(tmp_path)) == len(before) + applicable
    assert run_job(prompted, job_text="").documents_made == 0


@pytest.mark.usefixtures("local_ray")
def test_a_new_model_makes_all_anew_and_a_rollback_nothing(tmp_path, model):
    other = make_checkpoint(tmp_path / "other", SHAPE, seed=7)
    rows = documents(10)
    write_shards(tmp_path / "corpus", rows, shards=1, group=5)
    old, new = make_job(tmp_path, model, [SUMMARY]), make_job(tmp_path, other, [SUMMARY])
    first = run_job(old, job_text="")
    by_old = latest(tmp_path)
    second = run_job(new, job_text="")
    assert first.model_revision != second.model_revision
    assert made(first) == made(second) == {"summary": texts(rows)}
    assert {revision for _, revision in latest(tmp_path).values()} == {second.model_revision}
    back = run_job(old, job_text="")
    assert made(back) == {"summary": 0} and latest(tmp_path) == by_old
    assert ds.dataset(tmp_path / "table" / "results").count_rows() == 2 * texts(rows)
