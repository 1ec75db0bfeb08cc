"""A real `vllm serve` over a tiny checkpoint, and requests to it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
QUIET = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}
_START_S, _ANSWER_S = 400, 60


def environment(folder: Path) -> dict[str, str]:
    """For a process that finds this plugin: by the installed entry point, or else by one written to `folder`."""
    paths = [str(ROOT)]
    if "t5gemma2" not in entry_points(group="vllm.general_plugins").names:
        info = folder / "t5gemma2_plugin-0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: t5gemma2-plugin\nVersion: 0\n")
        entry = "[vllm.general_plugins]\nt5gemma2 = model_runtime.vllm_plugin:register\n"
        (info / "entry_points.txt").write_text(entry)
        paths.append(str(folder))
    return os.environ | QUIET | {"PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])}


class Server:
    """What answers on one port."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self._process = process
        self._url = f"http://127.0.0.1:{port}"
        self._log = log

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and parsed answer of a request, whatever the status is."""
        asked = urllib.request.Request(
            self._url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
        )
        try:
            with urllib.request.urlopen(asked, timeout=_ANSWER_S) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def metric(self, name: str) -> float:
        """The sum of a counter of vLLM's over its labels."""
        with urllib.request.urlopen(f"{self._url}/metrics", timeout=_ANSWER_S) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name}{{"))

    def wait(self) -> None:
        """Until it answers; RuntimeError with the end of its log when it does not."""
        until = time.monotonic() + _START_S
        while time.monotonic() < until and self._process.poll() is None:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{self._url}/health", timeout=5).close()
                return
            time.sleep(0.5)
        raise RuntimeError(f"vllm serve does not answer:\n{self._log.read_text()[-3000:]}")


def _serve() -> list[str]:
    try:
        version("vllm")
    except PackageNotFoundError:
        # vllm-cpu lacks a distribution of the name that its `vllm serve` asks the version of; this is the same server.
        return ["-m", "vllm.entrypoints.openai.api_server", "--model"]
    return ["-m", "vllm.entrypoints.cli.main", "serve"]


@contextlib.contextmanager
def serving(model: Path, folder: Path, *options: str) -> Iterator[Server]:
    """`vllm serve` on a free port while the context lasts; it and its engine are gone afterwards."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, *_serve(), str(model), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--served-model-name", "tiny", "--dtype", "float32", *options]
    log = folder / "serve.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env=environment(folder), cwd=folder, stdout=out, stderr=out, start_new_session=True
        )
    server = Server(process, port, log)
    try:
        server.wait()
        yield server
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        # The engine is a child of the server's, in its group.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
