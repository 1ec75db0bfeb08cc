"""Local files: whole or absent, synced to the disk, and what a killed writer leaves can be told and removed."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from .storage_errors import Problem, StorageError, full_scratch, storage_errors

_TEMPORARY = re.compile(r"^\.(?P<host>.+)\.(?P<pid>\d+)\.[0-9a-f]{32}\.tmp$")
_SCRATCH = "corpusmill-scratch-"
_YOUNG_SECONDS = 60
_TRIES = 100
# What is done under a lock takes milliseconds.
LOCK_SECONDS = 30.0


def temporary_name() -> str:
    """A hidden name that tells which process of which host writes it."""
    return f".{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex}.tmp"


def replace(path: str, write: Callable[[BinaryIO], Any]) -> None:
    """Makes what `write` writes the content of `path`, at once and durably; makes the folders above it."""
    folder = os.path.dirname(path)
    temporary = _written(folder, write)
    try:
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise
    _sync_folder(folder)


def create(path: str, write: Callable[[BinaryIO], Any]) -> bool:
    """Makes a new file of what `write` writes, at once and durably; False when there is one already."""
    folder = os.path.dirname(path)
    temporary = _written(folder, write)
    try:
        os.link(temporary, path)
    except FileExistsError:
        # A network file system may answer so when it repeats a request that got through: then both names are one file.
        return os.stat(temporary).st_nlink == 2
    except OSError:
        # A file system without hard links.
        with locked(path):
            if os.path.lexists(path):
                return False
            os.replace(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
    _sync_folder(folder)
    return True


def version(path: str) -> str | None:
    """What a file is now, other than whatever was put in its place before or after; None when there is none."""
    try:
        stat = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return f"{stat.st_mtime_ns}-{stat.st_size}-{stat.st_ino}"


def replace_seen(path: str, write: Callable[[BinaryIO], Any], seen: str | None) -> str | None:
    """As `replace`, only when the version there is `seen` (None: no file); the new version, None when it is another."""
    folder = os.path.dirname(path)
    temporary = _written(folder, write)
    try:
        with locked(path):
            if version(path) != seen:
                return None
            made = version(temporary)
            os.replace(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
    _sync_folder(folder)
    return made


def remove_seen(path: str, seen: str) -> bool:
    """Removes the file when its version is `seen`; False when it is another or none."""
    with locked(path):
        if version(path) != seen:
            return False
        os.unlink(path)
    return True


@contextmanager
def locked(path: str, seconds: float | None = None) -> Iterator[bool]:
    """Between looking at `path` and changing it no other process of ours may come; False where nothing can be locked.

    The lock ends with its process. StorageError when another keeps it for `seconds`: it was stopped in between.
    """
    folder, name = os.path.split(path)
    handle = os.open(os.path.join(folder, f".{name}.lock"), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield _lock(handle, path, LOCK_SECONDS if seconds is None else seconds)
    finally:
        os.close(handle)


def can_lock(folder: str) -> bool:
    """Whether files in `folder`, which is made, can be locked; some network file systems cannot."""
    os.makedirs(folder, exist_ok=True)
    probe = os.path.join(folder, temporary_name())
    handle = os.open(probe, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        return _lock(handle, probe, 0)
    finally:
        os.close(handle)
        os.unlink(probe)


def _lock(handle: int, path: str, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise StorageError(
                    path, "another process has kept this file locked; it may be stopped: let it go on, or end it"
                ) from None
            time.sleep(0.01)
        except OSError:
            return False  # a network file system without locks


def info(path: str) -> Mapping[str, Any]:
    """The entry of one file or folder, in fsspec's words."""
    stat = os.stat(path)
    kind = "directory" if os.path.isdir(path) else "file"
    return {
        "name": path,
        "size": stat.st_size,
        "type": kind,
        "mtime": stat.st_mtime,
        "mtime_ns": stat.st_mtime_ns,
        "ctime_ns": stat.st_ctime_ns,
        "ino": stat.st_ino,
    }


def walk(folder: str) -> Iterator[Mapping[str, Any]]:
    """Every file below, folders whose name starts with "." left out; nothing when the folder is missing."""

    def fail(error: OSError) -> None:
        # A folder that went away meanwhile is no error; one that may not be read is.
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise error

    seen: set[tuple[int, int]] = set()
    for parent, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        # Links are followed, but a link to a folder above must not lead round and round.
        stat = os.stat(parent)
        known = (stat.st_dev, stat.st_ino) in seen
        seen.add((stat.st_dev, stat.st_ino))
        folders[:] = [] if known else [name for name in folders if not name.startswith(".")]
        if known:
            continue
        for name in names:
            if not name.startswith("."):
                with suppress(FileNotFoundError):
                    yield info(os.path.join(parent, name))


def remove_dead_temporaries(folder: str) -> int:
    """Removes what writers of this host left in `folder` when they were killed; how many files that was."""
    removed = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            found = _TEMPORARY.match(name)
            if found and found["host"] == socket.gethostname() and not process_alive(int(found["pid"])):
                Path(parent, name).unlink(missing_ok=True)
                removed += 1
    return removed


def process_alive(pid: int) -> bool:
    """Whether a process of this host with that number runs (as whomever)."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A temporary folder, removed at the end; those of processes that were killed are removed first.

    A lock on a file inside tells the living from the dead, also between containers that share a /tmp. StorageError,
    with Problem.FULL, when the disk is full there, also where the block writes.
    """
    root = _temporary_root()
    for folder in root.glob(f"{_SCRATCH}*"):
        if _abandoned(folder):
            shutil.rmtree(folder, ignore_errors=True)
    with storage_errors(str(root)):
        folder = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=root))
    with full_scratch(str(root)), open(folder / ".lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _temporary_root() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        # Python tries to write in each of the usual places.
        reason = "no folder for temporary files can be written to; free some space, or set TMPDIR to one that can"
        raise StorageError("TMPDIR", reason, Problem.FULL) from error


def _abandoned(folder: Path) -> bool:
    try:
        with open(folder / ".lock", "r+b") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between making and locking the file its maker is alive and it is unlocked: leave the young alone.
            return time.time() - os.fstat(lock.fileno()).st_mtime > _YOUNG_SECONDS
    except OSError:
        return False


def _written(folder: str, write: Callable[[BinaryIO], Any]) -> str:
    temporary = os.path.join(folder, temporary_name())
    try:
        with _opened_new(temporary) as out:
            write(out)
            out.flush()
            os.fsync(out.fileno())
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    return temporary


def _opened_new(path: str) -> BinaryIO:
    """Opens a new file, and makes its folder, which others may remove while it is empty."""
    for _ in range(_TRIES):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with suppress(FileNotFoundError):
            return open(path, "xb")
    return open(path, "xb")


def _sync_folder(folder: str) -> None:
    # The rename itself must outlive a power cut; some file systems cannot sync a folder.
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
