"""No secret in what a run leaves or says: table, footers, Ray's folder, scratch, terminal, process titles."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.checkpoints import make_checkpoint
from tests.s3_server import SECRET_KEY, aws_settings, s3_server

from .child import ROOT, processes
from .conftest import SHAPE
from .corpora import documents, write_shards

MARK = "marker-of-a-secret-0815"
SECRETS = {
    "CORPUS_TOKEN": f"{MARK}-a",
    "OPENLINEAGE_URL": f"http://me:{MARK}-b@127.0.0.1:9",
    "OPENLINEAGE_API_KEY": f"{MARK}-c",
    "HF_TOKEN": f"hf_{MARK}",
    "AWS_SESSION_TOKEN": "",
}


def said_by(job: Path, *, debug: bool = False, **environment: str) -> tuple[int, str, list[bytes]]:
    """Exit code and output of `corpusmill run`, and every file in which a secret stands: Ray's and scratch included."""
    # Short: Ray puts Unix sockets below it, whose paths may have 107 characters.
    scratch = Path(tempfile.mkdtemp(prefix="cm-", dir="/tmp"))
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", *(["--debug"] if debug else []), "run", str(job)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env=inherited | SECRETS | {"RAY_TMPDIR": str(scratch), "TMPDIR": str(scratch)} | environment,
    )  # fmt: skip
    titles: set[bytes] = set()
    # What is being written may be gone a moment later: looked at while the run goes on, and after it.
    found: set[bytes] = set()
    try:
        while process.poll() is None:
            for (pid, _), _ in processes():  # the S3 server is given its key there, and is no part of a run
                with suppress(OSError):
                    titles.add(Path(f"/proc/{pid}/cmdline").read_bytes())
            found |= holding_a_secret(scratch)
            time.sleep(0.3)
        said = process.communicate(timeout=30)[0]
        found |= holding_a_secret(scratch) | {title for title in titles if is_secret(title) and b"rclone" not in title}
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        shutil.rmtree(scratch, ignore_errors=True)
    return process.returncode, said, sorted(found)


def is_secret(data: bytes) -> bool:
    return MARK.encode() in data or SECRET_KEY.encode() in data


def readable(path: Path) -> bytes:
    """A file's bytes; of a Parquet file also its cells, which are compressed."""
    data = path.read_bytes()
    with suppress(pa.ArrowException, OSError):
        if path.suffix == ".parquet":
            data += repr(pq.read_table(pa.BufferReader(data)).to_pylist()).encode()
    return data


def holding_a_secret(folder: Path) -> set[bytes]:
    found = set()
    for path in folder.rglob("*"):
        with suppress(OSError):
            if is_secret(os.fsencode(path)) or (path.is_file() and is_secret(readable(path))):
                found.add(os.fsencode(path))
    return found


JOB = """
name: secrets
model: {{path: {model}, dtype: float32}}
source: {{path: '{source}', id: doc_id, text: body, images: photo, image_roots: ['{root}']}}
tasks: [{{name: summary, kind: summarize, max_tokens: 4}}]
output: {{path: '{output}'}}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("models") / "tiny", SHAPE)


def write_job(folder: Path, **changes: object) -> Path:
    settings = {"source": folder / "corpus", "output": folder / "table", "root": "http://127.0.0.1:9/img"} | changes
    (folder / "job.yaml").write_text(JOB.format(**settings))
    return folder / "job.yaml"


@pytest.mark.slow
def test_a_run_that_succeeds_leaves_no_secret(tmp_path: Path, model: Path) -> None:
    with s3_server(tmp_path / "s3") as server:
        rows = [{"doc_id": row["doc_id"], "body": row["body"], "photo": None} for row in documents(3)]
        tokens = [f"http://127.0.0.1:9/img/a.png?X-Amz-Signature={MARK}-d", f"s3://key:{MARK}-e@corpus/x.png"]
        rows += [{"doc_id": f"token-{n}", "body": "a fox", "photo": url} for n, url in enumerate(tokens)]
        write_shards(tmp_path / "s3" / "corpus" / f"{MARK}-a" / "documents", rows, shards=1, group=8, schema=None)
        job = write_job(
            tmp_path, model=model, source=server.url("${CORPUS_TOKEN}", "documents/"), output=server.url("table/")
        )
        code, said, found = said_by(job)
    assert code in (0, 4), said
    assert found == [] and not is_secret(said.encode()), (found, said)
    table = tmp_path / "s3" / "corpus" / "table"
    assert {path.name for path in table.rglob("*")} >= {"README.md", "run.json", "openlineage.jsonl", "known.parquet"}
    assert list((table / "results").rglob("*.parquet")) and list((table / "errors").rglob("*.parquet"))
    assert holding_a_secret(table) == set()
    # Parquet may compress a secret out of this search's sight.
    import pyarrow.dataset as ds

    for zone in ("results", "errors"):
        rows = ds.dataset(table / zone, format="parquet").to_table().to_pylist()
        assert rows and not is_secret(repr(rows).encode())


FAILURES = {
    "no such source": {"source": f"s3://key:{MARK}-e@corpus/nothing/"},
    "a source over http": {"source": f"http://me:{MARK}-f@127.0.0.1:9/x.parquet?sig={MARK}-g"},
    "a host that is not there": {"source": f"sftp://me:{MARK}-h@127.0.0.1:9/x"},
    "a scheme nobody knows": {"source": f"nosuch://me:{MARK}-h@host/x?sig={MARK}"},
    "no such model": {"model": f"s3://key:{MARK}-i@models/none"},
    "a model over http": {"model": f"https://me:{MARK}-j@127.0.0.1:9/model?sig={MARK}-k"},
    "an output nobody may write": {"output": f"s3://key:{MARK}-l@corpus/table?sig={MARK}"},
    "a secret from the environment": {"source": "s3://corpus/${CORPUS_TOKEN}/none/"},
    "a secret in the wrong place": {"root": f"s3://key:{MARK}@bucket/x", "source": "${CORPUS_TOKEN}"},
}


@pytest.mark.parametrize("kind", FAILURES)
def test_a_run_that_fails_says_no_secret(tmp_path: Path, model: Path, kind: str) -> None:
    write_shards(tmp_path / "corpus", [{"doc_id": "a", "body": "b", "photo": "c.png"}], shards=1, group=8, schema=None)
    job = write_job(tmp_path, **{"model": model, **FAILURES[kind]})
    refused = aws_settings("http://127.0.0.1:9", secret=f"{MARK}-m")
    code, said, found = said_by(job, debug=True, **refused)
    assert code in (2, 3) and said.splitlines()[-1].startswith("corpusmill: "), said
    assert not is_secret(said.encode()), said
    assert found == [] and holding_a_secret(tmp_path / "table") == set()
