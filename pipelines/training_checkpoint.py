"""A training run's checkpoints on any storage: whole or absent, safetensors and JSON, nothing pickled."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from infra.storage import Location, scratch_folder
from model_runtime.optimizer import Optimizer
from workers.examples import Skipped

from .errors import TableError
from .feed import Cursor

WEIGHTS, MOMENTS, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"
# Written one by one beside their counts; more of them would say nothing new.
MAX_LISTED = 10_000


@dataclass(slots=True, kw_only=True)
class History:
    """The course of a run, one entry per update, and one per scoring of the held-out rows."""

    loss: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    norm: list[float] = field(default_factory=list)
    held_out: list[dict[str, Any]] = field(default_factory=list)
    examples: int = 0
    tokens: int = 0
    skipped: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a run stands: updates made, each lane's place, its course so far."""

    fingerprint: str
    step: int
    cursors: tuple[Cursor, ...]
    history: History


@dataclass(slots=True)
class SkipLog:
    """What one lane left out: all of it counted by code, the first ten thousand listed."""

    counts: Counter[str] = field(default_factory=Counter)
    listed: list[Skipped] = field(default_factory=list)

    def add(self, skipped: Sequence[Skipped]) -> None:
        """Count and list more."""
        self.counts.update(skip.code for skip in skipped)
        self.listed += skipped[: max(0, MAX_LISTED - len(self.listed))]


class Checkpoints:
    """The checkpoints of one training run, below `<output>/checkpoints/`.

    state.json is written last and makes a checkpoint whole; older ones are deleted once a newer is whole.
    """

    def __init__(self, output: Location, keep: int) -> None:
        self._folder = output.child("checkpoints")
        self._keep = keep

    def latest(self) -> Progress | None:
        """The newest whole checkpoint, or None; TableError when it cannot be read."""
        whole = self._whole()
        if not whole:
            return None
        location = self._of(whole[-1]).child(STATE)
        try:
            document = json.loads(location.read_bytes())
            return Progress(
                fingerprint=document["fingerprint"],
                step=document["step"],
                cursors=tuple(Cursor(*place) for place in document["cursors"]),
                history=History(**document["history"]),
            )
        except (ValueError, TypeError, KeyError) as error:
            raise TableError(f"{location} is no checkpoint's state ({error}): delete its folder to go on") from error

    def load(self, progress: Progress, optimizer: Optimizer) -> None:
        """Put a checkpoint's weights and moments in place; StorageError and ModelError as they come."""
        with scratch_folder() as scratch:
            for name in (WEIGHTS, MOMENTS):
                (scratch / name).write_bytes(self._of(progress.step).child(name).read_bytes())
            optimizer.load(scratch / WEIGHTS, scratch / MOMENTS)

    def save_skips(self, step: int, lane: int, log: SkipLog) -> None:
        """A lane's part of the checkpoint that is being written."""
        document = {"counts": dict(log.counts), "listed": [list(skip) for skip in log.listed]}
        self._of(step).child(_skips(lane)).write_bytes(json.dumps(document, ensure_ascii=False).encode())

    def load_skips(self, step: int, lane: int) -> SkipLog:
        """What `save_skips` wrote."""
        document = json.loads(self._of(step).child(_skips(lane)).read_bytes())
        return SkipLog(Counter(document["counts"]), [Skipped(*skip) for skip in document["listed"]])

    def save(self, progress: Progress, optimizer: Optimizer) -> None:
        """Write a checkpoint whole, then drop the oldest; every lane's skips must be there already."""
        folder = self._of(progress.step)
        with scratch_folder() as scratch:
            optimizer.save(scratch / WEIGHTS, scratch / MOMENTS)
            for name in (WEIGHTS, MOMENTS):
                folder.child(name).upload(scratch / name)
        document = asdict(progress) | {"cursors": [[c.epoch, c.pool, c.step] for c in progress.cursors]}
        folder.child(STATE).write_bytes(json.dumps(document).encode())
        for step in self._whole()[: -self._keep]:
            self._drop(step)

    def drop_all(self) -> None:
        """Delete every checkpoint: the run is over and its model is written."""
        for step in sorted({step for step, _ in self._files()}):
            self._drop(step)

    def _whole(self) -> list[int]:
        return sorted(step for step, name in self._files() if name == STATE)

    def _files(self) -> list[tuple[int, str]]:
        found = []
        for file in self._folder.list_files(suffix=""):
            if match := re.fullmatch(r"step-(\d{9})/([^/]+)", self._folder.below(file)):
                found.append((int(match[1]), match[2]))
        return found

    def _drop(self, step: int) -> None:
        # The state first: what is left of a half-deleted checkpoint is no checkpoint.
        names = sorted((name for at, name in self._files() if at == step), key=lambda name: name != STATE)
        for name in names:
            self._of(step).child(name).delete()
        folder = self._of(step)
        if folder.is_local:
            # Workers of a run that was killed live on for seconds, and may just be writing a checkpoint of their own.
            with suppress(OSError):
                Path(folder.url).rmdir()

    def _of(self, step: int) -> Location:
        return self._folder.child(f"step-{step:09d}")


def _skips(lane: int) -> str:
    return f"skipped-{lane:05d}.json"
