"""Where a table's rows come from: run ids, manifests, the keys a run asked for."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import secrets
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra.storage import Location, StorageError, redact, scratch_folder
from workers.tasks import Task

from .data_card import write_data_card
from .events import emit_openlineage
from .keys import hex_of
from .resume import STATUS_NAMES
from .schema import SCHEMA_VERSION

__all__ = [
    "KeysWriter",
    "build_manifest",
    "emit_openlineage",
    "job_hash",
    "new_run_id",
    "read_manifests",
    "write_data_card",
    "write_manifest",
]

_PACKAGES = ("ray", "torch", "pyarrow", "transformers", "vllm", "numpy", "safetensors", "tokenizers", "fsspec", "s3fs")
_KEY_ROWS = 1 << 20


def new_run_id() -> str:
    """A run's name: when it started (UTC, so that names sort by time) and a random part."""
    now = datetime.now(UTC)
    return f"{now:%Y%m%dT%H%M%S}{now.microsecond // 1000:03d}-{secrets.token_hex(4)}"


def job_hash(job_text: str) -> str:
    """SHA-256 of the job file as it is written, `${ENV}` unexpanded."""
    return hashlib.sha256(job_text.encode()).hexdigest()


def build_manifest(
    *,
    run_id: str,
    job_name: str,
    job_text: str,
    source: str,
    model: Mapping[str, Any],
    tasks: Sequence[Task],
    inputs: Iterable[Mapping[str, Any]],
    started: datetime,
    counts: Mapping[str, Any] | None = None,
    ended: datetime | None = None,
    exit_code: int | None = None,
    error: str | None = None,
    warnings: Sequence[str] = (),
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What a run was, as plain JSON without secrets.

    `model`: path, revision, backend, dtype. `inputs`: path, size, etag, rows of each source file. `counts`: task →
    TaskCounts or a mapping. `exit_code` is None while the run is going on, and for ever when it was killed.
    """
    manifest: dict[str, Any] = {
        "run_id": run_id,
        "job": {"name": job_name, "text": job_text, "sha256": job_hash(job_text)},
        "source": source,
        "code": code_version(),
        "packages": package_versions(),
        "schema_version": SCHEMA_VERSION,
        "model": dict(model),
        "tasks": [_task(task) for task in tasks],
        "inputs": [dict(entry) for entry in inputs],
        "counts": {name: _plain(entry) for name, entry in (counts or {}).items()},
        "started": started.astimezone(UTC).isoformat(),
        "ended": None if ended is None else ended.astimezone(UTC).isoformat(),
        "exit": exit_code,
        "error": error,
        "warnings": list(warnings),
        **(extra or {}),
    }
    return _redacted(manifest)


def write_manifest(table: Location, run_id: str, manifest: Mapping[str, Any]) -> None:
    """Makes `manifest` the run's `_runs/<run_id>/run.json`, whole."""
    text = json.dumps(_redacted(dict(manifest)), indent=1, ensure_ascii=False, default=str)
    table.child("_runs", run_id, "run.json").write_bytes(text.encode())


def read_manifests(table: Location) -> list[dict[str, Any]]:
    """The manifests of the table's runs, newest first; one that cannot be read is left out."""
    files = table.child("_runs").list_files("/run.json")
    with ThreadPoolExecutor(16) as pool:
        read = pool.map(_read_manifest, [Location(file.url) for file in files])
        manifests = [manifest for manifest in read if manifest is not None]
    return sorted(manifests, key=lambda manifest: str(manifest.get("run_id", "")), reverse=True)


class KeysWriter:
    """The keys a run asked for, streamed to `_runs/<run_id>/keys.parquet`: key, task, status as found when asked.

    The file appears, whole, when `close` is called or a `with` block ends without an error.
    """

    def __init__(self, table: Location, run_id: str, tasks: Sequence[str]) -> None:
        self.rows = 0
        self._target = table.child("_runs", run_id, "keys.parquet")
        self._tasks = pa.array(list(tasks), pa.string())
        self._statuses = pa.array(STATUS_NAMES, pa.string())
        self._stack = ExitStack()
        self._path = self._stack.enter_context(scratch_folder()) / "keys.parquet"
        names = pa.dictionary(pa.int32(), pa.string())
        schema = pa.schema([("key", pa.string()), ("task", names), ("status", names)])
        footer = {b"corpusmill.run_id": run_id.encode()}
        self._writer = pq.ParquetWriter(
            self._path, schema.with_metadata(footer), compression="zstd", use_dictionary=["task", "status"]
        )
        self._pending: list[pa.Table] = []
        self._pending_rows = 0

    def append(self, keys: np.ndarray, tasks: np.ndarray, states: np.ndarray) -> None:
        """Adds keys (S16) with their task's index and what `DoneIndex.lookup` said of them (0 is `pending`)."""
        columns = [
            hex_of(keys),
            pa.DictionaryArray.from_arrays(pa.array(tasks, pa.int32()), self._tasks),
            pa.DictionaryArray.from_arrays(pa.array(states, pa.int32()), self._statuses),
        ]
        self._pending.append(pa.Table.from_arrays(columns, names=["key", "task", "status"]))
        self._pending_rows += len(keys)
        self.rows += len(keys)
        if self._pending_rows >= _KEY_ROWS:
            self._flush()

    def close(self) -> None:
        """Writes the rest and uploads the file."""
        try:
            self._flush()
            self._writer.close()
            self._target.upload(self._path)
        finally:
            self._stack.close()

    def __enter__(self) -> KeysWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._writer.close()
            self._stack.close()

    def _flush(self) -> None:
        if self._pending:
            self._writer.write_table(pa.concat_tables(self._pending))
            self._pending, self._pending_rows = [], 0


@cache
def code_version() -> dict[str, Any]:
    """This package's version, and the commit (with `dirty`) when it runs from a checkout."""
    root = Path(__file__).resolve().parent.parent
    version: dict[str, Any] = {"version": _version("corpusmill") or "unknown", "commit": None, "dirty": None}
    if (root / ".git").exists():
        version["commit"] = _git(root, "rev-parse", "HEAD")
        version["dirty"] = bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
    return version


def package_versions(packages: Sequence[str] = _PACKAGES) -> dict[str, str]:
    """Versions of Python and of the packages a result depends on, those that are installed."""
    found = {name: version for name in packages if (version := _version(name))}
    return {"python": platform.python_version(), **found}


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _task(task: Task) -> dict[str, Any]:
    return {**asdict(task), "sampling": _plain(task.sampling)}


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else dict(value)


def _redacted(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {str(key): _redacted(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted(entry) for entry in value]
    return value


def _read_manifest(location: Location) -> dict[str, Any] | None:
    try:
        manifest = json.loads(location.read_bytes())
    except (StorageError, ValueError, RecursionError):
        return None
    return manifest if isinstance(manifest, dict) else None
