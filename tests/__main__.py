"""`python -m tests [vllm] [PYTEST'S OPTIONS]`: the suite as two pytest processes side by side, for many tests wait.

With `vllm` first: the tests that need vLLM, and no others, in the environment that has it.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

Lanes = dict[str, tuple[str, ...]]
ROOT = Path(__file__).resolve().parents[1]
_RAY_PIPELINES = (
    "bad_input", "evaluate_job", "examples", "feed", "finetune", "incremental", "no_secrets", "planning", "poison",
    "run_again", "run_ends", "run_on_s3", "run_through_faults", "thousand_documents", "verify_run", "vllm_run",
    "worker_errors",
)  # fmt: skip
# What stands in no other lane is the last one's. Nearly all tests that start Ray share one: a node has half a minute to
# start, which two of them at a time might miss. Those that inject storage faults share one, which counts them.
LANES: Lanes = {
    "ray": (
        "tests/chaos",
        "tests/jobs/test_demo.py",
        "tests/jobs/test_demo_training.py",
        "tests/jobs/test_ray_job.py",
        *(f"tests/pipelines/test_{name}.py" for name in _RAY_PIPELINES),
    ),
    "others": ("tests",),
}
# Those of vLLM's tests that start servers, Ray and processes; the others run engines.
_VLLM_SERVING = ("pipelines/test_vllm_run.py", "model_runtime/test_vllm_serve.py", "workers/test_vllm_process.py")
_VLLM_MARK = "mark.vllm"
_CLOSING = re.compile(r"\b\d+ [a-z]+(, \d+ [a-z]+)* in [\d.]+s\b")
_ORDER = ("failed", "errors", "passed", "skipped")
# What says which test failed, and why: pytest writes it long before the end of another lane's lines.
_WORTH_REPEATING = re.compile(r"E  |FAILED |ERROR ")
_MOST_REPEATED = 15
_PATIENCE_SECONDS = 60
_NOTHING = int(pytest.ExitCode.NO_TESTS_COLLECTED)


class Lane:
    """One pytest process with temporary folders of its own, whose lines appear with its name before them."""

    def __init__(self, name: str, where: Sequence[str], options: Sequence[str], folder: Path) -> None:
        self.name, self.closing = name, ""
        self.failures: deque[str] = deque(maxlen=_MOST_REPEATED)
        folder.mkdir()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *where, f"--basetemp={folder / 't'}", *options],
            cwd=ROOT,
            env=environment(folder),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            sys.stdout.write(f"{self.name:>9} | {line.rstrip()}\n")
            sys.stdout.flush()
            if _WORTH_REPEATING.match(line):
                self.failures.append(line.rstrip()[:300])
            if _CLOSING.search(line):
                self.closing = line.strip().strip("= ")

    def wait(self, seconds: float | None = None) -> int:
        """Pytest's exit status, when all that it wrote has been shown; TimeoutExpired when it takes longer."""
        status = self._process.wait(seconds)
        # A process that a test left behind may hold the pipe open for ever.
        self._reader.join(timeout=10)
        return status

    def end(self) -> None:
        """Ask a lane that still runs to stop."""
        if self._process.poll() is None:
            self._process.terminate()


def environment(folder: Path) -> dict[str, str]:
    """A lane's environment: two local Rays do not share a folder, and threads are shared out."""
    threads = max(1, len(os.sched_getaffinity(0)) // len(LANES)) if hasattr(os, "sched_getaffinity") else 1
    return {
        "OMP_NUM_THREADS": str(threads),
        **os.environ,
        "TMPDIR": str(folder),
        "RAY_TMPDIR": str(folder),
    }


def places(lanes: Lanes) -> dict[str, list[str]]:
    """What each lane gives pytest: the last one everything of its own that no other has."""
    *firsts, last = lanes
    taken = [path for name in firsts for path in lanes[name]]
    return {**{name: list(lanes[name]) for name in firsts}, last: [*lanes[last], *(f"--ignore={p}" for p in taken)]}


def vllm_lanes() -> Lanes:
    """Lanes of the files that use the marker: in vLLM's environment others may not even be imported."""
    found = sorted(path for path in (ROOT / "tests").rglob("test_*.py") if _VLLM_MARK in path.read_text("utf-8"))
    names = [path.relative_to(ROOT).as_posix() for path in found]
    serving = tuple(name for name in names if name.endswith(_VLLM_SERVING))
    return {"serving": serving, "engines": tuple(name for name in names if name not in serving)}


def total(closings: Sequence[str]) -> str:
    """The counts of several closing lines together, what matters most first: "1 failed, 12 passed"."""
    counts: Counter[str] = Counter()
    for line in closings:
        for count, what in re.findall(r"(\d+) ([a-z]+)", line.rpartition(" in ")[0]):
            counts[f"{what}s" if what in ("error", "warning") else what] += int(count)
    told = sorted(counts, key=lambda what: _ORDER.index(what) if what in _ORDER else len(_ORDER))
    return ", ".join(f"{counts[what]} {what}" for what in told) or "no counts"


def outcome(statuses: Sequence[int]) -> int:
    """One exit status for all: options that leave a lane without tests are no failure while another has some."""
    ran = [status for status in statuses if status != _NOTHING]
    return next((abs(status) for status in ran if status), 0) if ran else _NOTHING


def main(options: Sequence[str], lanes: Lanes = LANES) -> int:
    """Runs the lanes to their ends, whatever happens in another; the last line has the counts of all of them."""
    began = time.monotonic()
    # Short, for Unix sockets lie below it. macOS has a long one by default.
    scratch = Path(tempfile.mkdtemp(prefix="cm-", dir="/tmp" if sys.platform == "darwin" else None))
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # So started in the background of a shell; what the tests start would ignore it as well.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    running: list[Lane] = []
    statuses = [int(pytest.ExitCode.INTERRUPTED)]
    try:
        for number, (name, where) in enumerate(places(lanes).items()):
            running.append(Lane(name, where, options, scratch / str(number)))
        statuses = [lane.wait() for lane in running]
    except KeyboardInterrupt:
        # A terminal has interrupted the lanes as well.
        with suppress(subprocess.TimeoutExpired):
            statuses = [lane.wait(_PATIENCE_SECONDS) for lane in running]
    finally:
        for lane in running:
            lane.end()
        signal.signal(signal.SIGTERM, before)
    status = outcome(statuses)
    if status:
        print(f"temporary files: {scratch}")
    else:
        shutil.rmtree(scratch, ignore_errors=True)
    for lane in running:
        for line in lane.failures:
            print(f"{lane.name:>9} | {line}")
    for lane in running:
        print(f"{lane.name}: {lane.closing or 'ended without a closing line'}")
    counts = total([lane.closing for lane in running])
    print(f"{counts} in {time.monotonic() - began:.0f}s, exit status {status}", flush=True)
    return status


if __name__ == "__main__":
    if sys.argv[1:2] == ["vllm"]:
        if importlib.util.find_spec("vllm") is None:
            sys.exit("vLLM is not installed here, and every test would be left out: make setup-vllm")
        sys.exit(main(sys.argv[2:], vllm_lanes()))
    sys.exit(main(sys.argv[1:]))
