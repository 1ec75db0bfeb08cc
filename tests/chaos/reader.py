"""Somebody who reads a table while it is made: `python -m tests.chaos.reader TABLE NOTES`, until it is terminated.

Globs, as any SQL engine would, and notes what it must never see: a key twice, a file that is not whole, a key that was
there and is gone. Work files are noted with when they were first seen, for telling what was made twice.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import fsspec
import pyarrow.parquet as pq

TWICE = "SELECT key, count(*) FROM read_parquet('{files}') GROUP BY 1 HAVING count(*) > 1"
KEYS = "SELECT key FROM read_parquet('{files}')"
_MOST_NOTES = 50
# The table's makers need the processors too.
_LEAST_PAUSE, _PAUSE_SHARE = 0.03, 0.5


@dataclass(slots=True)
class Notes:
    """What was seen. `made`: [work file's run, first seen (UTC seconds), key, status] of every row in a work file."""

    looks: int = 0
    filled: int = 0  # looks that found rows
    wrong: list[str] = field(default_factory=list)
    made: list[tuple[str, float, str, str]] = field(default_factory=list)

    def bad(self, line: str) -> None:
        """Keeps a line that says what must not be."""
        if len(self.wrong) < _MOST_NOTES:
            self.wrong.append(f"look {self.looks}: {line}")


class Reader:
    """Looks at one table, on any fsspec URL."""

    def __init__(self, table: str) -> None:
        self.notes = Notes()
        self._fs, self._root = fsspec.core.url_to_fs(table, use_listings_cache=False)
        self._database = duckdb.connect()
        self._database.execute("SET threads = 1")
        scheme = ""
        if "://" in table:
            self._database.register_filesystem(self._fs)
            scheme = table.split("://")[0] + "://"
        self._results = f"{scheme}{self._root.rstrip('/')}/results/**/*.parquet"
        self._seen: set[str] = set()
        self._whole: set[str] = set()
        self._work: set[str] = set()

    def look(self) -> None:
        """One look at everything."""
        self.notes.looks += 1
        self._look_at_results()
        for zone in ("results", "errors"):
            self._look_at_files(zone)
        self._look_at_work()

    def _look_at_results(self) -> None:
        try:
            twice = self._database.execute(TWICE.format(files=self._results)).fetchall()
            keys = {key for (key,) in self._database.execute(KEYS.format(files=self._results)).fetchall()}
        except duckdb.Error as error:
            # Files there are never deleted, so that nothing else can go wrong between the glob and the reading.
            if "No files found" not in str(error):
                self.notes.bad(f"results/ cannot be read: {_line(error)}")
            elif self._whole:
                self.notes.bad("results/ had files and has none")
            return
        for key, count in twice:
            self.notes.bad(f"{key} stands {count} times in results/")
        for key in sorted(self._seen - keys)[:3]:
            self.notes.bad(f"{key} stood in results/ and is gone")
        self._seen |= keys
        self.notes.filled += bool(keys)

    def _look_at_files(self, zone: str) -> None:
        """Reads every new file from end to end; in errors/ a file of the same name may be another one."""
        for path, info in self._files(zone):
            name = f"{path} {info.get('size')} {info.get('mtime') or info.get('LastModified')}"
            if name in self._whole:
                continue
            try:
                with self._fs.open(path, "rb") as opened:
                    rows = pq.read_table(opened)
            except Exception as error:
                self.notes.bad(f"{path} is not whole: {_line(error)}")
                continue
            self._whole.add(name)
            for key, count in Counter(rows.column("key").to_pylist()).items():
                if count > 1:
                    self.notes.bad(f"{key} stands {count} times in {path}")

    def _look_at_work(self) -> None:
        for path, _ in self._files("_work"):
            if path in self._work:
                continue
            try:
                with self._fs.open(path, "rb") as opened:
                    rows = pq.read_table(opened, columns=["run_id", "key", "status"]).to_pylist()
            except FileNotFoundError:
                continue  # published and deleted since it was listed
            except Exception as error:
                self.notes.bad(f"{path} is not whole: {_line(error)}")
                continue
            self._work.add(path)
            self.notes.made += [(row["run_id"], time.time(), row["key"], row["status"]) for row in rows]

    def _files(self, zone: str) -> list[tuple[str, dict[str, Any]]]:
        try:
            found = self._fs.find(f"{self._root}/{zone}", detail=True)
        except FileNotFoundError:
            return []
        return [(path, info) for path, info in found.items() if path.endswith(".parquet") and info["type"] == "file"]


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def main(table: str, notes: str) -> None:
    """Looks until SIGTERM, then writes the notes as JSON."""
    ended = False

    def end(*_: object) -> None:
        nonlocal ended
        ended = True

    signal.signal(signal.SIGTERM, end)
    reader = Reader(table)
    while not ended:
        began = time.monotonic()
        reader.look()
        time.sleep(max(_LEAST_PAUSE, _PAUSE_SHARE * (time.monotonic() - began)))
    reader.look()
    partial = Path(f"{notes}.partial")
    partial.write_text(json.dumps(asdict(reader.notes)))
    os.replace(partial, notes)


if __name__ == "__main__":
    main(*sys.argv[1:])
