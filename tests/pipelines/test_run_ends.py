"""How a run ends other than well: too many failed rows, rows that fail for good, Ctrl-C, SIGTERM, SIGKILL."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from pipelines.errors import FailureRateError
from pipelines.generate import run_job
from pipelines.job import JobSpec
from tests.checkpoints import read_tensors, write_tensors

from .child import command_line, started
from .corpora import picture, text, write_shards

ROOT = Path(__file__).parents[2]
TASKS = [
    {"name": "summary", "kind": "summarize", "max_tokens": 6},
    {"name": "alt", "kind": "caption", "max_tokens": 6},
]


def job_of(folder: Path, model: Path, tasks: list[dict[str, Any]], **limits: Any) -> dict[str, Any]:
    return {
        "name": "ends",
        "model": {"path": str(model), "dtype": "float32"},
        "source": {"path": str(folder / "corpus"), "id": "doc_id", "text": "body", "images": "photos"},
        "tasks": tasks,
        "output": {"path": str(folder / "table")},
        "limits": limits,
    }


def rows_in(folder: Path, zone: str) -> list[dict[str, Any]]:
    rows = ds.dataset(folder / "table" / zone).to_table().to_pylist()
    assert len({row["key"] for row in rows}) == len(rows), "a reader that globs sees a key twice"
    return rows


def manifests(folder: Path) -> list[dict[str, Any]]:
    """Of all runs, in their order."""
    return [json.loads(path.read_text()) for path in sorted((folder / "table" / "_runs").glob("*/run.json"))]


# --- failed rows -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def blind_model(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that makes no number of an image, and is fine with text."""
    folder = Path(shutil.copytree(model, tmp_path_factory.mktemp("models") / "blind"))
    tensors = read_tensors(folder)
    tensors["model.encoder.multi_modal_projector.mm_soft_emb_norm.weight"].fill_(torch.nan)
    write_tensors(folder, tensors)
    return folder


def texts_and_images(count: int) -> list[dict[str, Any]]:
    """Documents of one text or one image, by turns."""
    return [
        {
            "doc_id": f"doc-{n}",
            "body": text(n, 8) if n % 2 else None,
            "photos": [] if n % 2 else [picture(n)],
            "year": n,
        }
        for n in range(count)
    ]


@pytest.mark.usefixtures("local_ray")
def test_too_many_failed_rows_end_the_run_and_what_is_done_is_kept(tmp_path, blind_model):
    write_shards(tmp_path / "corpus", texts_and_images(240), shards=2, group=20)
    with pytest.raises(FailureRateError, match=r"rows failed, .* most often non_finite: ") as ended:
        run_job(JobSpec.model_validate(job_of(tmp_path, blind_model, TASKS)), job_text="")
    assert ended.value.exit_code == 4
    [manifest] = manifests(tmp_path)
    assert manifest["exit"] == 4 and manifest["ended"] and "rows failed" in manifest["error"]
    made, failed = rows_in(tmp_path, "results"), rows_in(tmp_path, "errors")
    assert len(made) + len(failed) >= 100 and made
    assert {(row["status"], row["error_code"], row["attempt"]) for row in failed} == {("failed", "non_finite", 1)}
    assert not list((tmp_path / "table" / "_work").glob("**/*.parquet")), "what is done is published"

    # The same job with another limit goes on from there.
    allowed = JobSpec.model_validate(job_of(tmp_path, blind_model, TASKS, max_failure_rate=1.0))
    report = run_job(allowed, job_text="")
    assert report.tasks["summary"].already_ok == len(made) and report.tasks["summary"].ok == 120 - len(made)
    after = {row["key"]: row["created_at"] for row in rows_in(tmp_path, "results")}
    assert len(after) == 120 and {row["key"]: row["created_at"] for row in made}.items() <= after.items()
    assert len(rows_in(tmp_path, "errors")) == 120
    assert manifests(tmp_path)[-1]["exit"] == 0


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_failed_row_gets_three_attempts_and_more_only_when_asked_for(tmp_path, blind_model):
    write_shards(tmp_path / "corpus", texts_and_images(12), shards=1, group=4)
    job = JobSpec.model_validate(job_of(tmp_path, blind_model, TASKS))
    made = None
    for attempt in (1, 2, 3):
        report = run_job(job, job_text="")
        assert report.tasks["alt"].failed == 6, "fewer than 100 rows: the rate is not looked at"
        assert {row["attempt"] for row in rows_in(tmp_path, "errors")} == {attempt}
        made = made or rows_in(tmp_path, "results")
    assert len(made) == 6 and rows_in(tmp_path, "results") == made, "what is made is not made again"

    before = rows_in(tmp_path, "errors")
    report = run_job(job, job_text="")
    assert (report.tasks["alt"].made, report.tasks["alt"].already_failed) == (0, 6)
    assert rows_in(tmp_path, "errors") == before and len(before) == 6

    report = run_job(job, job_text="", retry_failed=True)
    assert report.tasks["alt"].failed == 6 and report.tasks["summary"].made == 0
    assert {row["attempt"] for row in rows_in(tmp_path, "errors")} == {4}


# --- signals -----------------------------------------------------------------------------------------------------

DOCUMENTS = 400
LONG = [{"name": "summary", "kind": "summarize", "max_tokens": 48}]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("long")
    rows = [{"doc_id": f"doc-{n}", "body": text(n, 20 + n % 40), "photos": [], "year": n} for n in range(DOCUMENTS)]
    write_shards(folder / "corpus", rows, shards=2, group=50)
    return folder


@pytest.fixture
def folder(corpus: Path, model: Path, tmp_path: Path) -> Path:
    """Where a job file stands, over the long corpus."""
    (tmp_path / "corpus").symlink_to(corpus / "corpus")
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job_of(tmp_path, model, LONG)))
    return tmp_path


def work_files(folder: Path) -> list[Path]:
    return sorted((folder / "table" / "_work").glob("**/*.parquet"))


def finished(folder: Path) -> dict[str, Any]:
    """Key → when it was made, of every row that is durable, published or not."""
    results = sorted((folder / "table" / "results").glob("**/*.parquet"))
    rows = [row for path in [*work_files(folder), *results] for row in pq.read_table(path).to_pylist()]
    return {row["key"]: row["created_at"] for row in rows}


linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")


@linux
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_told_to_stop_keeps_what_is_done_and_leaves_no_process(folder, number):
    with started(folder) as child:
        child.wait_for(lambda: work_files(folder))
        assert len(child.family) >= 3, "the Ray that belongs to it was seen"
        before = finished(folder)
        os.kill(child.process.pid, number)
        assert child.process.wait(timeout=60) == 130, child.said.read_text()
        deadline = time.monotonic() + 20
        while (left := child.alive()) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not left, [command_line(pid) for pid, _ in left]
        said = child.said.read_text()
    assert said.splitlines()[-1].startswith("corpusmill: interrupted; what is made is kept")
    assert "Traceback" not in said
    [manifest] = manifests(folder)
    assert manifest["exit"] == 130 and manifest["ended"]
    kept = finished(folder)
    assert before.items() <= kept.items() and before and len(kept) < DOCUMENTS
    assert not work_files(folder), "what is done is published"


@linux
@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_where_it_was(folder):
    chance = random.Random(7)
    with started(folder) as child:
        child.wait_for(lambda: work_files(folder))
        until = time.monotonic() + chance.uniform(0, 1.5)
        while child.process.poll() is None and time.monotonic() < until:
            child.look()
            time.sleep(0.02)
        child.process.kill()
        assert child.process.wait(timeout=10) == -signal.SIGKILL, "it came to its end before: make the job longer"
        # Its workers end soon after it; what they finish meanwhile counts as done. (Ray's agents, which write
        # nothing of ours, outlive a driver that was killed.)
        deadline = time.monotonic() + 30
        while left := [said for pid, _ in child.alive() if "Agent" not in (said := command_line(pid))]:
            assert time.monotonic() < deadline, left
            time.sleep(0.1)
    before = finished(folder)
    [manifest] = manifests(folder)
    assert before and manifest["exit"] is None

    with started(folder) as child:
        assert child.process.wait(timeout=240) == 0, child.said.read_text()
    rows = rows_in(folder, "results")
    assert {row["document_id"] for row in rows} == {f"doc-{n}" for n in range(DOCUMENTS)} and len(rows) == DOCUMENTS
    assert before.items() <= {row["key"]: row["created_at"] for row in rows}.items(), "what was done is not made again"
    assert not rows_in(folder, "errors") and not work_files(folder)
    counts = manifests(folder)[-1]["counts"]["summary"]
    assert (counts["already_ok"], counts["ok"]) == (len(before), DOCUMENTS - len(before))
