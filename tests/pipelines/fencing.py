"""Publishers that are held at one point while others publish, over a reader that looks after each visible change.

`python -m tests.pipelines.fencing TABLE` publishes under a lease of another host's, and ends as the command line does.
"""

from __future__ import annotations

import functools
import io
import os
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from infra.storage import Location
from pipelines import lease as leases
from pipelines.errors import RunError
from pipelines.publish import Publisher
from tests.conditional_store import Asked, Store
from tests.pipelines.rows import SCHEMA

TASKS = ("a", "b")
_CHANGES = ("put_object", "complete", "delete_object")


class Reader:
    """Looks at results/ whenever told: what it saw twice, or what went away, stands in `wrong`."""

    def __init__(self, files: Callable[[], dict[str, bytes]]) -> None:
        self._files = files
        self._keys: dict[tuple[str, int, int], list[str]] = {}
        self._before: set[str] = set()
        self.looks = 0
        self.wrong: list[str] = []

    def forget(self) -> None:
        """Another table stands there from now on."""
        self._before = set()

    def look(self) -> Counter[str]:
        """What a plain glob over results/ sees now: keys and how often."""
        self.looks += 1
        seen = Counter[str]()
        for name, data in self._files().items():
            known = (name, len(data), hash(data))
            if known not in self._keys:
                self._keys[known] = pq.read_table(io.BytesIO(data), columns=["key"]).column("key").to_pylist()
            seen.update(self._keys[known])
        if twice := [key for key, times in seen.items() if times > 1]:
            self.wrong.append(f"seen twice: {twice}")
        if gone := self._before - set(seen):
            self.wrong.append(f"gone: {gone}")
        self._before = set(seen)
        return seen


class World:
    """A table somewhere, whose every step a hook can hold; `reader` looks after each change."""

    table: Location
    reader: Reader

    def __init__(self) -> None:
        self.step: Callable[[], None] = lambda: None

    def save(self) -> None:
        """Remembers the table as it is, for `restore`."""

    def restore(self) -> None:
        """Puts the table back to what was saved."""


class StoreWorld(World):
    """On the conditional store: a step is before each request that tells something new, and after each change."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self.table = Location(store.url("table"))
        self._store = store
        self._saved: dict[str, Any] = {}
        self.reader = Reader(lambda: {k: v for k, v in store.below("table/results/").items() if k.endswith(".parquet")})
        store.before = self._before
        store.after = self._after
        store.changed = self.reader.look

    def _before(self, asked: Asked) -> None:
        # What stands in results/ and is read changes no more.
        if asked.what != "get_object" or "/results/" not in asked.key:
            self.step()

    def _after(self, asked: Asked) -> None:
        if asked.what in _CHANGES:
            self.step()

    def save(self) -> None:
        self._saved = dict(self._store.objects)

    def restore(self) -> None:
        self._store.objects = dict(self._saved)
        self.reader.forget()


class LocalWorld(World):
    """On a local folder: a step is before and after each call that changes it, and before each that looks at it."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.table = Location(str(folder / "table"))
        self._saved = folder / "saved"
        self._looking = threading.Lock()
        self.reader = Reader(self._read)
        for name in ("link", "replace", "unlink"):
            patch.setattr(os, name, self._changing(getattr(os, name)))
        for name in ("list_files", "open_input", "version"):
            patch.setattr(Location, name, self._asking(getattr(Location, name)))

    def _read(self) -> dict[str, bytes]:
        return {str(file): file.read_bytes() for file in Path(self.table.url, "results").glob("**/*.parquet")}

    def _changing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapped(*arguments: Any, **options: Any) -> Any:
            if not str(arguments[-1]).startswith(self.table.url):
                return function(*arguments, **options)
            self.step()
            try:
                return function(*arguments, **options)
            finally:
                with self._looking:
                    self.reader.look()
                self.step()

        return wrapped

    def _asking(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapped(location: Location, *arguments: Any) -> Any:
            if location.url.startswith(self.table.url):
                self.step()
            return function(location, *arguments)

        return wrapped

    def save(self) -> None:
        shutil.copytree(self.table.url, self._saved)

    def restore(self) -> None:
        shutil.rmtree(self.table.url)
        shutil.copytree(self._saved, self.table.url)
        self.reader.forget()


class Holding:
    """A hook that stops whoever comes `point`-th, until `go` is called; others that come meanwhile pass."""

    def __init__(self, point: int) -> None:
        self._left = point
        self._lock = threading.Lock()
        self._reached, self._go = threading.Event(), threading.Event()

    def __call__(self) -> None:
        with self._lock:
            self._left -= 1
            mine = self._left == -1
        if mine:
            self._reached.set()
            assert self._go.wait(60)

    def reached(self, work: threading.Thread) -> bool:
        """Waits until somebody is held; False when `work` ended before."""
        while not self._reached.wait(0.005):
            if not work.is_alive():
                return self._reached.is_set()
        return True

    def go(self) -> None:
        """Lets the one that is held go on."""
        self._go.set()


class Working(threading.Thread):
    """A thread that keeps the error it ended with."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self.error: BaseException | None = None

    def run(self) -> None:
        """Does its work."""
        try:
            self._work()
        except BaseException as error:
            self.error = error

    def end(self, seconds: float = 60) -> None:
        """Waits for its end; the error that it ended with, or an assertion when it does not end, is raised."""
        self.join(seconds)
        assert not self.is_alive(), "hangs"
        if self.error:
            raise self.error


def publisher(table: Location, run: str, target: int = 1 << 28, **options: Any) -> Publisher:
    """A publisher of the tests' tasks."""
    return Publisher(table, run, "h", SCHEMA, TASKS, target_bytes=target, **options)


def state(table: Location, zone: str) -> list[tuple]:
    """A zone's rows as far as they matter, sorted."""
    made = []
    for file in table.child(zone).list_files():
        with Location(file.url).open_input() as source:
            made += pq.ParquetFile(source).read(["key", "status", "attempt"]).to_pylist()
    return sorted((row["key"], row["status"], row["attempt"]) for row in made)


@contextmanager
def parts_of(size: int, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Uploads larger than twice `size` bytes go up in parts."""
    with patch.context() as small:
        small.setattr("infra.conditions.PART_BYTES", size)
        yield


def main(url: str) -> int:
    """Publishes the table as the run `zombie`; the exit code."""
    table = Location(url)
    leases._place = lambda: "elsewhere"
    leases.HEARTBEAT_SECONDS = 0.1
    try:
        with leases.Lease.acquire(table, "zombie", "nightly") as lease:
            publisher(table, "zombie", check=lease.check).publish(final=True)
    except RunError as error:
        print(error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
