"""`ray job submit --working-dir . -- corpusmill run JOB` against a running head, as a person types it."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pyarrow.dataset as ds
import pytest
import yaml

from tests.checkpoints import SHAPES, make_checkpoint
from tests.pipelines.corpora import documents, write_shards

ROOT = Path(__file__).parents[2]
SCRIPTS = sysconfig.get_path("scripts")
TOKEN = secrets.token_hex(32)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment() -> dict[str, str]:
    """The environment of a person at a shell whose head asks for a token, as Ray's does by default."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return kept | {
        "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "RAY_USAGE_STATS_ENABLED": "0",
        "NO_COLOR": "1",
    }


@pytest.fixture(scope="module")
def dashboard() -> Iterator[str]:
    """A head of its own, on ports of its own, killed with everything it started."""
    # Short: Ray puts Unix sockets below it, whose paths may have 107 characters.
    folder = tempfile.mkdtemp(prefix="cm-", dir="/tmp" if Path("/tmp").is_dir() else None)
    port = free_port()
    names = ("port", "ray-client-server-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port",
             "metrics-export-port", "node-manager-port", "object-manager-port")  # fmt: skip
    head = subprocess.Popen(
        ["ray", "start", "--head", "--block", "--num-cpus=4", "--node-ip-address=127.0.0.1",
         "--dashboard-host=127.0.0.1", f"--dashboard-port={port}", f"--temp-dir={folder}",
         *(f"--{name}={free_port()}" for name in names)],
        env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for_jobs_api(address, head)
        yield address
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        try:
            head.wait(timeout=5)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)
            head.wait()
        shutil.rmtree(folder, ignore_errors=True)


def wait_for_jobs_api(address: str, head: subprocess.Popen[bytes]) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert head.poll() is None, "ray start ended at once"
        try:
            asked = urllib.request.Request(f"{address}/api/jobs/", headers={"Authorization": f"Bearer {TOKEN}"})
            opener.open(asked, timeout=2).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise AssertionError("the head's jobs API does not answer")


def submit(address: str, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["ray", "job", "submit", "--address", address, "--working-dir", ".", "--", *command],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=400,
    )  # fmt: skip


def test_a_job_runs_on_a_running_head(dashboard, tmp_path):
    model = make_checkpoint(tmp_path / "model", SHAPES[0])
    rows = documents(8)
    write_shards(tmp_path / "corpus", rows, shards=2, group=2)
    job = {
        "name": "submitted",
        "model": {"path": str(model), "dtype": "float32"},
        "source": {"path": str(tmp_path / "corpus"), "id": "doc_id", "text": "body", "images": "photos"},
        "tasks": [{"name": "summary", "kind": "summarize", "max_tokens": 4}],
        "output": {"path": str(tmp_path / "table")},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))

    done = submit(dashboard, "corpusmill", "run", str(tmp_path / "job.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr
    texts = sum(row["body"] is not None for row in rows)
    assert ds.dataset(tmp_path / "table" / "results").count_rows() == texts
    assert f"Made {texts} rows" in done.stdout

    failed = submit(dashboard, "corpusmill", "run", str(tmp_path / "no-such-job.yaml"))
    assert failed.returncode != 0, "a job that cannot run fails the Ray job too"
    assert "no-such-job.yaml" in failed.stdout + failed.stderr
    assert "Traceback" not in failed.stdout
