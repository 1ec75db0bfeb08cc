"""A model folder on object storage, copied once per node to where a runtime can map it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import uuid
from fnmatch import fnmatch
from pathlib import Path

from .file_info import FileInfo
from .location import Location
from .storage_errors import Problem, StorageError, redact_url, storage_errors

CHECKPOINT_FILES = (
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
    "tasks.json",
)


def stage_model(path: str, revision: str | None = None) -> str:
    """A path the runtime can load: a local folder or hub id as it is, an fsspec URL copied to this node's cache first.

    The copy is whole or absent, made once however many processes ask, and made anew when a file in the store changes.
    It stands in $CORPUSMILL_CACHE (default ~/.cache/corpusmill) under `models/`. `revision` belongs to hub ids; a
    folder has its own content.
    """
    if "://" not in path:
        return path
    folder = Location(path)
    if folder.is_local:
        return folder.url
    files = _checkpoint_files(folder)
    target = _cache() / _name(folder, files)
    if target.is_dir():
        return str(target)
    with storage_errors(str(target)):
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target.parent / f".{target.name}.lock", "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.is_dir():
                _copy(folder, files, target)
    return str(target)


def _checkpoint_files(folder: Location) -> list[FileInfo]:
    listed = folder.list_files("")
    files = [
        file
        for file in listed
        if "/" not in folder.below(file) and any(fnmatch(folder.below(file), kind) for kind in CHECKPOINT_FILES)
    ]
    if not any(folder.below(file) == "config.json" for file in files):
        raise StorageError(
            folder.url, "there is no config.json here; give the folder of a Hugging Face checkpoint", Problem.MISSING
        )
    return files


def _copy(folder: Location, files: list[FileInfo], target: Path) -> None:
    # Whoever holds the lock may sweep: a half copy beside the target has no living owner.
    for left in target.parent.glob(f".{target.name}.*.part"):
        shutil.rmtree(left, ignore_errors=True)
    part = target.parent / f".{target.name}.{uuid.uuid4().hex}.part"
    part.mkdir()
    try:
        for file in files:
            copy = part / folder.below(file)
            Location(file.url).download(copy)
            if copy.stat().st_size != file.size:
                raise StorageError(file.url, "the copy is shorter than the file; run the same command again")
        os.rename(part, target)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _name(folder: Location, files: list[FileInfo]) -> str:
    digest = hashlib.sha256(redact_url(folder.url).encode())
    for file in files:
        digest.update(f"\0{folder.below(file)}\0{file.size}\0{file.etag}".encode())
    return digest.hexdigest()[:32]


def _cache() -> Path:
    root = os.environ.get("CORPUSMILL_CACHE")
    return (Path(root).expanduser() if root else Path.home() / ".cache" / "corpusmill") / "models"
