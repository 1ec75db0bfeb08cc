"""One round: a run is started, killed at random and started again until one ends by itself; then all is counted."""

from __future__ import annotations

import json
import random
import subprocess
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .checks import check_manifest, check_table, check_work, read_rows
from .cluster import ThreeNodes
from .corpus import Corpus, job_text
from .killer import KINDS, Killer, Plan
from .processes import environment, start

_TICK = 0.004
_READER_SECONDS = 60
# A run that ends with rows that failed is started again, as a person would; a row has three attempts.
_RUNS_FOR_FAILED = 3


class RoundError(Exception):
    """A round that did not come to its end; the message says why and where its logs are."""


@dataclass(slots=True, kw_only=True)
class Place:
    """Where a table stands: the URL that the job names, and the folder on this disk that holds it."""

    url: str
    folder: Path


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What happened in a round. `wrong` is empty when all promises were kept."""

    round: int
    seed: int
    seconds: float = 0.0
    kills: dict[str, int] = field(default_factory=dict)
    kill_log: list[str] = field(default_factory=list)
    drivers: int = 0
    # exit codes of drivers that ended by themselves, other than 0, with their last line
    gave_up: list[tuple[int, str]] = field(default_factory=list)
    looks: int = 0
    looks_with_rows: int = 0
    pairs: int = 0
    ok: int = 0
    rejected: int = 0
    lost: int = 0
    duplicated: int = 0
    differing: int = 0
    failed: int = 0
    failed_on_the_way: int = 0
    rows_made: int = 0  # rows seen in work files, or published without having been seen there
    made_again: int = 0  # of them: of a key that an earlier row has
    done_before: int = 0  # of them: of a key that was durable before the run that made it began; must be 0
    work_left: int = 0  # work files that a worker of a dead run wrote after everything was published; harmless
    wrong: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


class Drivers:
    """`corpusmill run` on one job file, one process after the other."""

    def __init__(self, cluster: ThreeNodes, folder: Path, settings: dict[str, str]) -> None:
        self._job = folder / "job.yaml"
        self._folder = folder
        self._environment = environment(
            **settings, RAY_ADDRESS=cluster.address, RAY_TMPDIR=str(cluster.scratch), PYTHONUNBUFFERED="1"
        )
        self.started = 0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts the next one."""
        self.started += 1
        self.process = start(["-m", "jobs.cli", "run", str(self._job)], self.said, self._environment)

    @property
    def said(self) -> Path:
        """What the newest one prints goes there."""
        return self._folder / f"driver-{self.started:02d}.txt"

    def kill(self) -> None:
        """SIGKILL, and nothing else: what it started lives on for as long as it may."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def last_line(self) -> str:
        """The last thing the newest one said."""
        lines = [line for line in self.said.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1].strip()[:400] if lines else ""


def play(
    outcome: Outcome,
    *,
    cluster: ThreeNodes,
    corpus: Corpus,
    reference: dict,
    place: Place,
    folder: Path,
    settings: dict[str, str],
    limit: float,
    again: bool,
    kinds: Collection[str] = KINDS,
) -> None:
    """Plays the round that `outcome` names, and fills it in; RoundError when it does not end within `limit` seconds.

    `folder` gets the logs. `again`: at the end one more run must find nothing to do.
    """
    began = time.monotonic()
    rng = random.Random(f"{outcome.seed}/{outcome.round}")
    folder.mkdir(parents=True)
    (folder / "job.yaml").write_text(job_text(corpus, place.url))
    drivers = Drivers(cluster, folder, settings)
    killer: Killer

    def restart() -> None:
        drivers.kill()
        drivers.start()
        killer.driver_started()

    killer = Killer(cluster, Plan.draw(rng, kinds), place.folder, restart)
    with reading(place, folder, settings) as notes:
        try:
            _until_done(drivers, killer, outcome, began + limit)
            _make_failed_rows(drivers, outcome, place, began + limit)
        finally:
            killer.end()
            drivers.kill()
            outcome.kills, outcome.kill_log = dict(killer.counts), killer.log
            outcome.drivers = drivers.started
            outcome.seconds = round(time.monotonic() - began, 1)
    outcome.looks, outcome.looks_with_rows = notes["looks"], notes["filled"]
    outcome.duplicated = sum("times in" in line for line in notes["wrong"])
    outcome.wrong += notes["wrong"]
    check_table(outcome, place.folder, corpus, reference)
    check_manifest(outcome, place.folder)
    check_work(outcome, place.folder, notes["made"], killer.total)
    if again:
        _check_again(drivers, outcome, place, began + limit)
    outcome.seconds = round(time.monotonic() - began, 1)


def run_in_peace(cluster: ThreeNodes, corpus: Corpus, place: Place, folder: Path, settings: dict[str, str]) -> dict:
    """One run that nobody disturbs: its table's rows as `read_rows` gives them."""
    folder.mkdir(parents=True)
    (folder / "job.yaml").write_text(job_text(corpus, place.url))
    drivers = Drivers(cluster, folder, settings)
    drivers.start()
    try:
        code = _wait(drivers, time.monotonic() + 300)
    finally:
        drivers.kill()
    if code != 0:
        raise RoundError(f"the run that nobody disturbed ended with {code}: {drivers.last_line()} ({drivers.said})")
    return read_rows(place.folder)


def _until_done(drivers: Drivers, killer: Killer, outcome: Outcome, deadline: float) -> None:
    """Kills and starts again until a run ends with 0."""
    drivers.start()
    killer.driver_started()
    while True:
        assert drivers.process is not None
        code = drivers.process.poll()
        if code == 0:
            return
        if code is not None:
            last = drivers.last_line()
            outcome.gave_up.append((code, last))
            if "Traceback" in drivers.said.read_text(errors="replace"):
                outcome.wrong.append(f"a traceback reached the terminal: {drivers.said}")
            if killer.total == killer.total_before:
                outcome.wrong.append(f"a run that nobody disturbed ended with {code}: {last}")
                if sum("nobody disturbed" in line for line in outcome.wrong) > 2:
                    raise RoundError(f"runs end with {code} again and again: {last} ({drivers.said})")
            drivers.start()
            killer.driver_started()
        if time.monotonic() > deadline:
            raise RoundError(f"it did not end in time; the newest run said: {drivers.last_line()} ({drivers.said})")
        killer.tick()
        time.sleep(_TICK)


def _make_failed_rows(drivers: Drivers, outcome: Outcome, place: Place, deadline: float) -> None:
    for _ in range(_RUNS_FOR_FAILED):
        if not any(row["status"] == "failed" for row in read_rows(place.folder).values()):
            return
        drivers.start()
        code = _wait(drivers, deadline)
        if code != 0:
            outcome.wrong.append(f"a run for failed rows ended with {code}: {drivers.last_line()}")


def _check_again(drivers: Drivers, outcome: Outcome, place: Place, deadline: float) -> None:
    before = read_rows(place.folder)
    drivers.start()
    code = _wait(drivers, deadline)
    if code != 0:
        outcome.wrong.append(f"a run with nothing to do ended with {code}: {drivers.last_line()}")
    if read_rows(place.folder) != before:
        outcome.wrong.append("a run with nothing to do changed the table")


def _wait(drivers: Drivers, deadline: float) -> int:
    assert drivers.process is not None
    try:
        return drivers.process.wait(max(1.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        drivers.kill()
        raise RoundError(f"it did not end in time; it said: {drivers.last_line()} ({drivers.said})") from None


@contextmanager
def reading(place: Place, folder: Path, settings: dict[str, str]) -> Iterator[dict[str, Any]]:
    """A reader looks while the block runs; after it, its notes are in the dict."""
    notes, said = folder / "reader.json", folder / "reader.txt"
    found: dict[str, Any] = {}
    process = start(["-m", "tests.chaos.reader", place.url, str(notes)], said, environment(**settings))
    try:
        yield found
        if process.poll() is not None:
            raise RoundError(f"the reader ended by itself: {said}")
        process.terminate()
        process.wait(_READER_SECONDS)
        if not notes.exists():
            raise RoundError(f"the reader left no notes: {said}")
        found |= json.loads(notes.read_text())
    finally:
        process.kill()
        process.wait()
