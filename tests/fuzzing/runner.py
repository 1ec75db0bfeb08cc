"""Runs surfaces in child processes and watches them: a crash, a hang and an escape each end as a kept input."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from . import cases
from .child import CURRENT, RESULT, Current
from .surface import Surface

ROOT = Path(__file__).parents[2]
FOUND = Path(__file__).parent / "found"
# Importing and the first input; a machine that is busy elsewhere must not look like a hang.
_START_SECONDS = 120.0
_POLL_SECONDS = 0.2
# Of each surface, however small its share.
_LEAST = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What came of one surface; `why` is None when every input worked or was refused in one line.

    `seconds` are the process's own, starting left out.
    """

    surface: str
    inputs: int
    accepted: int
    seconds: float
    why: str | None = None
    kept: Path | None = None

    def __str__(self) -> str:
        share = f"{self.accepted / self.inputs:7.1%}" if self.inputs else "      -"
        said = "" if self.why is None else f"  ESCAPED: {self.kept}"
        return f"{self.surface:<14}{self.inputs:>9,} inputs {share} accepted {self.seconds:>7.1f} CPU s{said}"


def run(surfaces: Iterable[Surface], inputs: int, first_seed: int, jobs: int, keep: bool = True) -> Iterator[Report]:
    """Every surface's share of `inputs`, `jobs` at a time; `keep` puts what escapes into `FOUND`."""
    listed = sorted(surfaces, key=lambda surface: -surface.share)
    total = sum(surface.share for surface in listed)
    with ThreadPoolExecutor(jobs) as pool:
        wanted = [
            (s, ["hunt", str(max(min(_LEAST, inputs), -(-inputs * s.share // total))), str(first_seed)]) for s in listed
        ]
        yield from pool.map(lambda pair: watch(*pair, keep=keep), wanted)


def replay(surface: Surface, paths: Iterable[Path]) -> Report:
    """Kept inputs of one surface again, watched like the others."""
    return watch(surface, ["again", *(str(path.absolute()) for path in paths)], keep=False)


def watch(surface: Surface, arguments: list[str], keep: bool = True) -> Report:
    """A child process with `arguments`, ended when one input takes longer than it may."""
    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="fuzzing-", dir=shared))
    try:
        return _watched(surface, arguments, folder, keep)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _watched(surface: Surface, arguments: list[str], folder: Path, keep: bool) -> Report:
    command = [sys.executable, "-m", "tests.fuzzing.child", surface.name, str(folder), *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    began = time.monotonic()
    with open(folder / "log", "w+b") as log:
        child = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        try:
            hung = _hung(child, surface, folder)
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        log.seek(0)
        said = log.read()[-2000:].decode(errors="replace")
    seconds = time.monotonic() - began
    if (folder / RESULT).exists():
        result = json.loads((folder / RESULT).read_text())
        case = cases.loads(json.dumps(result.pop("case", None)).encode())
        kept = cases.save(FOUND, surface.name, case, result["why"]) if result["why"] and keep else None
        return Report(surface=surface.name, kept=kept, **result)
    number, data = Current.read(folder)
    ended = f"no answer within {surface.seconds:g} s" if hung else f"the process ended with {child.returncode}"
    why = f"{ended}, at input {number}\n{said}"
    kept = cases.save(FOUND, surface.name, cases.loads(data), why) if data and keep else None
    return Report(surface=surface.name, inputs=number, accepted=0, seconds=seconds, why=why, kept=kept)


def _hung(child: subprocess.Popen, surface: Surface, folder: Path) -> bool:
    """Waits for the child's end; True when an input, or the start, took too long."""
    number, since = 0, time.monotonic()
    while child.poll() is None:
        try:
            child.wait(_POLL_SECONDS)
        except subprocess.TimeoutExpired:
            now = Current.read(folder)[0] if (folder / CURRENT).exists() else 0
            if now != number:
                number, since = now, time.monotonic()
            if time.monotonic() - since > (surface.seconds if number else _START_SECONDS):
                return True
    return False
