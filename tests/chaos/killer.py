"""Which of a run's processes dies next, and when: drawn by a seed from what is there."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from .cluster import ThreeNodes
from .processes import ROOT, descendants, kill, named, stop

# What runs in a process of its own below a worker: (that worker, the process's module).
CHILDREN = {"engine": ("model", "engine_process"), "inputs": ("prepare", "inputs_process")}
NOT_AVAILABLE = [kind for kind, (_, module) in CHILDREN.items() if not (ROOT / "workers" / f"{module}.py").exists()]
# What dies, and how often it is drawn. `frozen`: the driver, while a model worker is stopped, which wakes up later as
# one of a run that is long dead; `publish`: the driver while it changes what readers see, which is not drawn but
# waited for.
WEIGHTS = {"driver": 3, "frozen": 2, "model": 3, "prepare": 2, "task": 2, "engine": 4, "inputs": 2, "node": 3}
KINDS = (*WEIGHTS, "publish")
TITLES = {"model": "GenerateStage", "prepare": "PrepareStage", "task": "MapBatches"}
_FROZEN_SECONDS = 4.0
_MOST_KILLS = 8
# Seconds: between two looks at what there is, in which what was drawn must appear, from then on to the kill, and from
# a kill to the next draw.
_LOOK, _PATIENCE, _DELAY, _PAUSE = 0.15, 20.0, 2.5, 3.0
# How often a kill waits for work of this run to be durable: before that there is little to lose.
_AFTER_WORK = 0.6


@dataclass(slots=True)
class Plan:
    """A round's kills as drawn at its start; `publishes`: after that many changed files, so many seconds later.

    `weights`: how often each of the other kinds is drawn.
    """

    kills: int
    publishes: list[tuple[int, float]]
    weights: dict[str, int]
    rng: random.Random

    @classmethod
    def draw(cls, rng: random.Random, kinds: Collection[str] = KINDS) -> Plan:
        """3 to 8 kills of `kinds`, of which up to two hit a publisher."""
        files, pauses = (1, 1, 2, 3, 4), (0.0, 0.0, 0.003, 0.01, 0.03)
        publishes = [(rng.choice(files), rng.choice(pauses)) for _ in range(rng.randint(0, 2)) if "publish" in kinds]
        weights = {kind: weight for kind, weight in WEIGHTS.items() if kind in kinds and kind not in NOT_AVAILABLE}
        return cls((rng.randint(3, _MOST_KILLS) - len(publishes)) * bool(weights), publishes, weights, rng)


@dataclass(slots=True)
class _Kill:
    """A kill that was drawn: it waits until its victim is there (and work, where it asks for some), then a moment."""

    kind: str
    after_work: bool
    until: float
    due: float | None = None


@dataclass(slots=True)
class Killer:
    """Kills what belongs to one cluster and one driver. `kill_driver` ends the driver and starts the next one."""

    cluster: ThreeNodes
    plan: Plan
    table: Path
    kill_driver: Callable[[], None]
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    log: list[str] = field(default_factory=list)
    total_before: int = 0  # kills before the newest driver began
    _next: _Kill | None = None
    _look_at: float = 0.0
    _began: float = 0.0
    _before: set[tuple[str, int, int]] = field(default_factory=set)
    _work_before: set[tuple[str, int, int]] = field(default_factory=set)
    _thaw: list[tuple[float, int]] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Kills so far."""
        return sum(self.counts.values())

    def driver_started(self) -> None:
        """A new driver runs: what readers see now is what they saw before it."""
        self._next = None
        self.total_before = self.total
        self._began = time.monotonic()
        self._look_at = self._began + self.plan.rng.uniform(0.2, _PAUSE)
        self._before = _files(self.table, "results", "errors")
        self._work_before = _files(self.table, "_work")

    def tick(self) -> None:
        """Kills what is due; to be called many times a second."""
        now = time.monotonic()
        for due, pid in list(self._thaw):
            if now >= due:
                kill([pid], signal.SIGCONT)
                self._thaw.remove((due, pid))
        if self.plan.publishes and self._is_publishing(self.plan.publishes[0][0]):
            time.sleep(self.plan.publishes.pop(0)[1])
            self._note("publish")
            self.kill_driver()
        elif self.plan.kills and now >= self._look_at:
            self._look_at = now + _LOOK
            self._consider(now)

    def end(self) -> None:
        """Nothing stays stopped."""
        kill([pid for _, pid in self._thaw], signal.SIGCONT)
        self._thaw.clear()

    def _consider(self, now: float) -> None:
        rng = self.plan.rng
        if self._next is None or now > self._next.until:
            kind = rng.choices(list(self.plan.weights), list(self.plan.weights.values()))[0]
            self._next = _Kill(kind, rng.random() < _AFTER_WORK, now + _PATIENCE)
        drawn = self._next
        victims = self._victims(drawn.kind)
        if victims is None or (drawn.after_work and not self._has_new_work()):
            drawn.due = None
        elif drawn.due is None:
            drawn.due = now + rng.uniform(0, _DELAY)
        elif now >= drawn.due:
            self._next = None
            self._look_at = now + rng.uniform(0.2, _PAUSE)
            self._kill(drawn.kind, victims, now)

    def _kill(self, kind: str, victims: list[int], now: float) -> None:
        self.plan.kills -= 1
        self._note(kind)
        if kind == "node":
            self.cluster.kill_node(self.plan.rng.randrange(8))
        elif kind in ("driver", "frozen"):
            for pid in victims:
                stop(pid)
            self._thaw += [(now + _FROZEN_SECONDS, pid) for pid in victims]
            self.kill_driver()
        else:
            kill(victims)

    def _victims(self, kind: str) -> list[int] | None:
        """The process of that kind that is to die (or, with the driver, to be stopped); None when there is none."""
        if kind in ("driver", "node"):
            return []
        if kind in CHILDREN:
            worker, module = CHILDREN[kind]
            found = named(descendants(self.cluster.workers(TITLES[worker])), module)
        elif kind == "frozen":
            found = self.cluster.workers(TITLES["model"])
        else:
            found = self.cluster.workers(TITLES[kind])
        if kind == "task":
            stages = {pid for stage in ("model", "prepare") for pid in self.cluster.workers(TITLES[stage])}
            found = sorted(set(found) - stages)
        return [self.plan.rng.choice(found)] if found else None

    def _is_publishing(self, files: int) -> bool:
        return len(_files(self.table, "results", "errors") - self._before) >= files

    def _has_new_work(self) -> bool:
        return bool(_files(self.table, "_work") - self._work_before)

    def _note(self, kind: str) -> None:
        self.counts[kind] += 1
        self.log.append(f"{time.time():.2f} {kind}, {time.monotonic() - self._began:.1f} s after its driver began")


def _files(table: Path, *zones: str) -> set[tuple[str, int, int]]:
    """(path, inode, modified) of the Parquet files in these zones."""
    found = set()
    for zone in zones:
        for folder, _, names in os.walk(table / zone):
            for name in names:
                if name.endswith(".parquet"):
                    try:
                        entry = os.stat(os.path.join(folder, name))
                    except FileNotFoundError:
                        continue
                    found.add((os.path.join(folder, name), entry.st_ino, entry.st_mtime_ns))
    return found
