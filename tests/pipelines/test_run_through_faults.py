"""A whole run whose source, model and table lie behind a network that breaks: the rows of a run in calm weather."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.dataset as ds
import pytest
import yaml

from infra.storage import Location
from tests.fault_proxy import QUICK, Fault, FaultProxy
from tests.s3_server import SECRET_KEY, S3Server

from .child import started
from .corpora import documents, write_shards

COUNT = 60
TASKS = [
    {"name": "summary", "kind": "summarize", "language": "en", "max_tokens": 8},
    {"name": "alt_text", "kind": "caption", "max_tokens": 6},
]
# What a run says of a row by itself, not of its company or its time.
SAME = ["key", "document_id", "task", "status", "text", "finish_reason", "output_tokens", "source_path", "source_row"]


@pytest.fixture(scope="module")
def inputs(s3: S3Server, model: Path, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("documents")
    write_shards(folder, documents(COUNT), 4, 5)
    for path in folder.iterdir():
        Location(s3.url("faults", "documents")).child(path.name).upload(path)
    for path in model.iterdir():
        Location(s3.url("faults", "model")).child(path.name).upload(path)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own, so that the model comes through the storm too."""
    monkeypatch.setenv("CORPUSMILL_CACHE", str(tmp_path / "cache"))


def run(s3: S3Server, folder: Path, table: str, endpoint: str, **environment: str) -> tuple[int, str]:
    """The command line's exit code and what it said, in a process of its own with a Ray of its own."""
    job = {
        "name": "storm",
        "model": {"path": s3.url("faults", "model"), "dtype": "float32"},
        "source": {"path": s3.url("faults", "documents"), "id": "doc_id", "text": "body", "images": "photos"},
        "tasks": TASKS,
        "output": {"path": s3.url("faults", table)},
    }
    folder.mkdir(exist_ok=True)
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    with pytest.MonkeyPatch.context() as settings:
        settings.setenv("AWS_ENDPOINT_URL", endpoint)
        for name, value in environment.items():
            settings.setenv(name, value)
        with started(folder) as child:
            code = child.process.wait(timeout=300)
            return code, child.said.read_text()


def rows(s3: S3Server, table: str, zone: str = "results") -> list[dict]:
    found = ds.dataset(s3.folder / s3.bucket / "faults" / table / zone, format="parquet").to_table(SAME).to_pylist()
    return sorted(found, key=lambda row: row["key"])


def manifests(s3: S3Server, table: str) -> list[dict]:
    folder = s3.folder / s3.bucket / "faults" / table / "_runs"
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*/run.json"))]


@pytest.mark.slow
@pytest.mark.usefixtures("inputs", "cache")
def test_a_run_through_a_storm_makes_the_rows_of_calm_weather(s3: S3Server, proxy: FaultProxy, tmp_path: Path):
    code, said = run(s3, tmp_path / "calm", "calm", s3.endpoint)
    assert code == 0, said
    before = proxy.requests
    with proxy.breaking(*QUICK, rate=0.05, seed=1, burst=2) as counted:
        code, said = run(s3, tmp_path / "storm", "storm", proxy.endpoint)
    assert code == 0, said
    assert counted.total() >= 5, f"{counted.total()} faults in {proxy.requests - before} requests"
    expected = rows(s3, "calm")
    assert len(expected) == len({row["key"] for row in expected}) > COUNT / 2
    assert rows(s3, "storm") == expected and rows(s3, "storm", "errors") == []
    assert not list((s3.folder / s3.bucket / "faults" / "storm" / "_work").glob("**/*.parquet"))


@pytest.mark.slow
@pytest.mark.usefixtures("inputs", "cache")
def test_a_store_that_is_lost_in_mid_run_ends_it_in_one_line_and_the_next_run_goes_on(s3, proxy, tmp_path):
    patience = {"CORPUSMILL_STORAGE_RETRY_SECONDS": "2"}
    # What is finished can be stored and read; nothing of it can be put into results/.
    with proxy.breaking(Fault.SLOW_DOWN, methods=("PUT",), target="/results/") as counted:
        code, said = run(s3, tmp_path / "lost", "lost", proxy.endpoint, **patience)
    assert code == 3 and counted.total() >= 2, said
    last = said.strip().splitlines()[-1]
    assert "/results/" in last and "run the same command again later" in last, said
    assert "Traceback" not in said and SECRET_KEY not in said
    [manifest] = manifests(s3, "lost")
    assert manifest["exit"] == 3 and manifest["ended"]
    code, said = run(s3, tmp_path / "lost", "lost", proxy.endpoint, **patience)
    assert code == 0, said
    made = rows(s3, "lost")
    assert len(made) == len({row["key"] for row in made}) > COUNT / 2
    counts = manifests(s3, "lost")[-1]["counts"]
    assert sum(each["ok"] for each in counts.values()) == 0, "what was finished is not made again"
