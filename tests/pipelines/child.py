"""A corpusmill command in a process of its own, watched with all its descendants."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]
_LOOK_SECONDS = 0.2


class Child:
    """`corpusmill run` (or another command on job.yaml) in a process of its own, with a Ray of its own."""

    def __init__(self, folder: Path, scratch: str, command: str) -> None:
        self.folder = folder
        self.said = folder / "said.txt"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        with self.said.open("w") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jobs.cli", command, str(folder / "job.yaml")],
                cwd=ROOT, env=environment | {"RAY_TMPDIR": scratch}, stdout=said, stderr=said, start_new_session=True,
            )  # fmt: skip
        self._scratch = scratch
        self.family: set[tuple[int, str]] = set()

    def wait_for(self, there: Callable[[], object], seconds: float = 240) -> None:
        """Until something is there; the run must still be going on then."""
        deadline, looked = time.monotonic() + seconds, 0.0
        while not there():
            assert self.process.poll() is None, self.said.read_text()
            assert time.monotonic() < deadline, self.said.read_text()
            # Reading all of /proc takes a processor that the run needs.
            if time.monotonic() - looked > _LOOK_SECONDS:
                self.look()
                looked = time.monotonic()
            time.sleep(0.02)
        self.look()

    def look(self) -> None:
        """Remember every process that this one started, directly or not."""
        children: dict[int, list[tuple[int, str]]] = defaultdict(list)
        for process, parent in processes():
            children[parent].append(process)
        pending = [self.process.pid]
        while pending:
            below = children.pop(pending.pop(), [])
            self.family.update(below)
            pending += [pid for pid, _ in below]

    def alive(self) -> set[tuple[int, str]]:
        """Which of them still run, or were started with this child's folder for Ray."""
        running = dict(processes())
        named = {process for process in running if self._scratch in command_line(process[0])}
        return (self.family & running.keys()) | named

    def clean_up(self) -> None:
        for pid, _ in self.alive() | ({(self.process.pid, "")} if self.process.poll() is None else set()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(timeout=30)


def processes() -> Iterator[tuple[tuple[int, str], int]]:
    """((pid, start time), parent) of every process that runs; zombies have ended."""
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                yield (int(entry.name), fields[19]), int(fields[1])


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


@contextmanager
def started(folder: Path, command: str = "run") -> Iterator[Child]:
    """Start it; whatever is left of it and its Ray is killed at the end."""
    # Short: Ray puts Unix sockets below it, whose paths may have 107 characters.
    scratch = tempfile.mkdtemp(prefix="cm-", dir="/tmp")
    child = Child(folder, scratch, command)
    try:
        yield child
    finally:
        child.clean_up()
        shutil.rmtree(scratch, ignore_errors=True)
