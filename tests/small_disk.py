"""A disk that is soon full: a real file system in memory, and a limit on files that works everywhere."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    """A file system of that size, mounted on `folder`; the test is skipped where nothing can be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "corpusmill-test", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"no mount command: {error}")
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def resize(folder: Path, kilobytes: int) -> None:
    """The same file system with another size."""
    subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", str(folder)], check=True)


def run_with_limit(script: str, *arguments: str, file_bytes: int) -> subprocess.CompletedProcess[str]:
    """Python code in a process that may not make a file larger than that; EFBIG is as good as a full disk."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

    return subprocess.run(
        [sys.executable, "-B", "-c", script, *arguments], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
        preexec_fn=limit, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
