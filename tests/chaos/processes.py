"""Processes of this machine, told apart by whose descendants they are: only what this test started is ever killed."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from tests.pipelines.child import command_line, processes

ROOT = Path(__file__).parents[2]
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def descendants(roots: Iterable[int]) -> set[int]:
    """Every process below `roots`, these not among them."""
    children: dict[int, list[int]] = defaultdict(list)
    for (pid, _), parent in processes():
        children[parent].append(pid)
    found: set[int] = set()
    pending = list(roots)
    while pending:
        below = set(children[pending.pop()]) - found
        found |= below
        pending += below
    return found


def named(pids: Iterable[int], part: str) -> list[int]:
    """Those whose command line (for Ray's workers: their title) holds `part`, in order."""
    return sorted(pid for pid in pids if part in command_line(pid))


def kill(pids: Iterable[int], sig: int = signal.SIGKILL) -> None:
    """Sends a signal to each that is still there."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, sig)


def stop(pid: int, seconds: float = 2.0) -> None:
    """SIGSTOP, and until the process has stopped: a signal takes a moment on a busy machine."""
    kill([pid], signal.SIGSTOP)
    deadline = time.monotonic() + seconds
    while state(pid) not in ("T", "Z", "") and time.monotonic() < deadline:
        time.sleep(0.002)


def state(pid: int) -> str:
    """The kernel's letter for what a process does (T: it is stopped); "" when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def start(arguments: list[str], said: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Starts a Python program of this project in a process group of its own; it dies with this process."""
    with said.open("wb") as out:
        return subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL,
            stdout=out, stderr=out, start_new_session=True, preexec_fn=_die_with_parent,
        )  # fmt: skip


def environment(**changes: str) -> dict[str, str]:
    """This process's environment without what names another Ray cluster."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**plain, "PYTHONPATH": str(ROOT), **changes}


def _die_with_parent() -> None:
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
