"""A document that crashes the engine, or what prepares it, in a real run: one failed row, three attempts, no more."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest

from model_runtime.processing import Processor
from pipelines import graph, stages
from pipelines.errors import FailureRateError
from pipelines.generate import run_job
from pipelines.job import JobSpec
from pipelines.resolve import Resolved
from tests.workers import broken_backends
from tests.workers.broken_backends import broken
from tests.workers.broken_inputs import BrokenInputs

from .corpora import text, write_shards


class BrokenPrepare(stages.PrepareStage):
    """The stage, but its process crashes at certain texts (see BrokenInputs)."""

    def __init__(self, settings: stages.StageSettings, done: list[Any]) -> None:
        stages.Inputs = BrokenInputs  # in the actor's process only
        super().__init__(settings, done)


SNOWMAN = "☃"
TASK = {"name": "summary", "kind": "summarize", "max_tokens": 6}


def job_of(folder: Path, model: Path, **limits: Any) -> JobSpec:
    return JobSpec.model_validate(
        {
            "name": "poison",
            "model": {"path": str(model), "dtype": "float32"},
            "source": {"path": str(folder / "corpus"), "id": "doc_id", "text": "body"},
            "tasks": [TASK],
            "output": {"path": str(folder / "table")},
            "limits": limits,
        }
    )


def corpus(folder: Path, count: int, poison: dict[int, str]) -> None:
    rows = [{"doc_id": f"doc-{n}", "body": poison.get(n) or text(n, 8 + n % 20)} for n in range(count)]
    write_shards(folder / "corpus", rows, shards=2, group=20)


def rows_in(folder: Path, zone: str) -> list[dict[str, Any]]:
    rows = ds.dataset(folder / "table" / zone).to_table().to_pylist()
    assert len({row["key"] for row in rows}) == len(rows)
    return rows


def texts(folder: Path) -> dict[str, str]:
    return {row["document_id"]: row["text"] for row in rows_in(folder, "results")}


@pytest.fixture
def crashing(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every engine crashes at a snowman; the log of the processes that were started."""
    token = Processor.load(model).encode_text(SNOWMAN)[-1]
    assert not any(token in Processor.load(model).encode_text(text(n, 40)) for n in range(60))
    log = tmp_path / "processes"
    load = broken(broken_backends.segfault, log, token=token)
    settings = Resolved.settings
    monkeypatch.setattr(
        Resolved, "settings", lambda self, **options: dataclasses.replace(settings(self, **options), load=load)
    )
    return log


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_one_poison_document_is_one_failed_row_with_three_attempts(tmp_path, model, crashing):
    corpus(tmp_path, 40, {17: f"the {SNOWMAN} sleeps"})
    job = job_of(tmp_path, model)
    made = None
    for attempt in (1, 2, 3):
        report = run_job(job, job_text="")
        [failed] = rows_in(tmp_path, "errors")
        assert (failed["document_id"], failed["status"], failed["error_code"], failed["attempt"]) == (
            "doc-17", "failed", "engine_crash", attempt,
        )  # fmt: skip
        assert failed["error_message"] == "the engine's process was ended by SIGSEGV while it worked on this alone"
        assert report.tasks["summary"].failed == 1
        made = made or texts(tmp_path)
        assert len(made) == 39 and texts(tmp_path) == made
    started = len(crashing.read_text().splitlines())
    # 40 in flight: 40, 20, 10, 5, 3, 2, 1 and once more. Alone: twice. And the process that goes on, each time.
    assert started <= 9 + 3 + 3
    report = run_job(job, job_text="")
    assert (report.tasks["summary"].made, report.tasks["summary"].already_failed) == (0, 1)
    assert len(crashing.read_text().splitlines()) == started, "what is final loads no engine"

    # The same corpus without it: the neighbours' texts are the same.
    plain = tmp_path / "plain"
    corpus(plain, 40, {17: "an innocent text"})
    run_job(job_of(plain, model), job_text="")
    without = texts(plain)
    del without["doc-17"]
    assert made == without


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray", "crashing")
def test_too_many_of_them_end_the_run_and_what_is_done_is_kept(tmp_path, model):
    corpus(tmp_path, 130, {n: f"{SNOWMAN} {n}" for n in (5, 50)})
    with pytest.raises(
        FailureRateError, match=r"2 of 1\d\d rows failed, .* most often engine_crash: the engine's proc"
    ):
        run_job(job_of(tmp_path, model, max_failure_rate=0.01), job_text="")
    assert {row["document_id"] for row in rows_in(tmp_path, "errors")} == {"doc-5", "doc-50"}
    assert len(texts(tmp_path)) >= 98


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_what_crashes_the_preparing_is_one_failed_row(tmp_path, model, monkeypatch):
    corpus(tmp_path, 12, {4: "segfault", 9: "leave"})
    monkeypatch.setattr(graph, "PrepareStage", BrokenPrepare)
    run_job(job_of(tmp_path, model), job_text="")
    failed = {row["document_id"]: (row["error_code"], row["error_message"]) for row in rows_in(tmp_path, "errors")}
    said = "the process that prepares documents {} while it worked on this alone"
    assert failed == {
        "doc-4": ("engine_crash", said.format("was ended by SIGSEGV")),
        "doc-9": ("engine_crash", said.format("ended by itself with exit code 7")),
    }
    assert len(texts(tmp_path)) == 10
