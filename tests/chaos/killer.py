"""Which of a run's processes dies next, and when: drawn by a seed from what is there."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .cluster import ThreeNodes
from .processes import descendants, kill, named

# What dies, and how often it is drawn. `frozen`: the driver, while a model worker is stopped, which wakes up later as
# one of a run that is long dead; `publish`: the driver while it changes what readers see, which is not drawn but
# waited for.
WEIGHTS = {"driver": 3, "frozen": 2, "model": 4, "prepare": 2, "task": 2, "engine": 4, "node": 3}
KINDS = (*WEIGHTS, "publish")
TITLES = {"model": "GenerateStage", "prepare": "PrepareStage", "task": "MapBatches"}
# The model's process, where the model worker keeps it in one of its own.
ENGINE = "engine_process"
_PATIENCE = 8.0  # seconds in which what was drawn may appear before something else is drawn
_FROZEN_SECONDS = 4.0


@dataclass(slots=True)
class Plan:
    """A round's kills as drawn at its start."""

    kills: int
    publishes: list[tuple[int, float]]  # after that many changed files, and so many seconds later
    rng: random.Random

    @classmethod
    def draw(cls, rng: random.Random) -> Plan:
        """3 to 7 kills, of which up to two hit a publisher."""
        publishes = [
            (rng.choice((1, 1, 2, 3, 4)), rng.choice((0.0, 0.0, 0.003, 0.01, 0.03))) for _ in range(rng.randint(0, 2))
        ]
        return cls(rng.randint(3, 7) - len(publishes), publishes, rng)


@dataclass(slots=True)
class Killer:
    """Kills what belongs to one cluster and one driver. `kill_driver` ends the driver and starts the next one."""

    cluster: ThreeNodes
    plan: Plan
    table: Path
    kill_driver: Callable[[], None]
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    log: list[str] = field(default_factory=list)
    _next: float = 0.0
    _drawn: str | None = None
    _drawn_at: float = 0.0
    _before: set[tuple[str, int, int]] = field(default_factory=set)
    _thaw: list[tuple[float, int]] = field(default_factory=list)

    @property
    def is_done(self) -> bool:
        """Whether nothing more is going to be killed."""
        return not self.plan.kills and not self.plan.publishes

    @property
    def total(self) -> int:
        """Kills so far."""
        return sum(self.counts.values())

    def driver_started(self) -> None:
        """A new driver runs: it gets some time, and what readers see now is what they saw before it."""
        self._next = time.monotonic() + self.plan.rng.uniform(0.5, 9)
        self._drawn = None
        self._before = _visible_files(self.table)

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
        elif self.plan.kills and now >= self._next:
            self._kill_one(now)

    def end(self) -> None:
        """Nothing stays stopped."""
        kill([pid for _, pid in self._thaw], signal.SIGCONT)
        self._thaw.clear()

    def _kill_one(self, now: float) -> None:
        if self._drawn is None or now > self._drawn_at + _PATIENCE:
            names = list(WEIGHTS)
            self._drawn = self.plan.rng.choices(names, [WEIGHTS[name] for name in names])[0]
            self._drawn_at = now
        kind = self._drawn
        victims = self._victims(kind)
        if victims is None:
            self._next = now + 0.1
            return
        self._drawn = None
        self._next = now + self.plan.rng.uniform(1, 5)
        self.plan.kills -= 1
        self._note(kind)
        if kind == "node":
            self.cluster.kill_node(self.plan.rng.randrange(8))
        elif kind in ("driver", "frozen"):
            kill(victims, signal.SIGSTOP)
            self._thaw += [(now + _FROZEN_SECONDS, pid) for pid in victims]
            self.kill_driver()
        else:
            kill(victims)

    def _victims(self, kind: str) -> list[int] | None:
        """The processes of that kind that are to die (or, with the driver, to be stopped); None when there are none."""
        if kind in ("driver", "node"):
            return []
        if kind == "engine":
            found = named(descendants(self.cluster.workers(TITLES["model"])), ENGINE)
        elif kind == "frozen":
            found = self.cluster.workers(TITLES["model"])
        else:
            found = self.cluster.workers(TITLES[kind])
        if kind == "task":
            stages = [pid for stage in ("model", "prepare") for pid in self.cluster.workers(TITLES[stage])]
            found = list(set(found) - set(stages))
        return [self.plan.rng.choice(sorted(found))] if found else None

    def _is_publishing(self, files: int) -> bool:
        return len(_visible_files(self.table) - self._before) >= files

    def _note(self, kind: str) -> None:
        self.counts[kind] += 1
        self.log.append(f"{time.time():.2f} {kind}")


def _visible_files(table: Path) -> set[tuple[str, int, int]]:
    """(path, inode, modified) of the files in results/ and errors/."""
    found = set()
    for zone in ("results", "errors"):
        for folder, _, names in os.walk(table / zone):
            for name in names:
                if name.endswith(".parquet"):
                    try:
                        entry = os.stat(os.path.join(folder, name))
                    except FileNotFoundError:
                        continue
                    found.add((os.path.join(folder, name), entry.st_ino, entry.st_mtime_ns))
    return found
