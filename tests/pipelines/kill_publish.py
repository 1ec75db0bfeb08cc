"""Run as a program: publishes a prepared table over and over, killed with SIGKILL at each point that can be seen.

`python -m tests.pipelines.kill_publish PREPARED SCRATCH` prints one JSON line: kills, looks, and what was wrong.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from infra.storage import Location
from pipelines.publish import Publisher
from tests.pipelines.rows import SCHEMA, visible

TASKS = ("a", "b")


def die_at(point: int, table: str) -> None:
    """Kills this process when it is about to do, or has just done, its `point`-th change of the table's folder."""
    count = 0

    def step() -> None:
        nonlocal count
        if count == point:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    def around(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            if not str(arguments[-1]).startswith(table):
                return function(*arguments, **options)
            step()
            result = function(*arguments, **options)
            step()
            return result

        return wrapped

    for name in ("link", "replace", "unlink"):
        setattr(os, name, around(getattr(os, name)))


def publish(table: str, run: str, target: int) -> None:
    Publisher(Location(table), run, "h", SCHEMA, TASKS, target_bytes=target).publish(final=True)


def in_child(work: Callable[[], None], look: Callable[[], None], seconds: float | None = None) -> bool:
    """Runs `work` in a forked process, looking all the while; True when it came to its end."""
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    deadline = None if seconds is None else time.monotonic() + seconds
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0
        if deadline is not None and time.monotonic() >= deadline:
            os.kill(child, signal.SIGKILL)
        look()
        time.sleep(0.015)  # the child needs the processor too


def main(prepared: str, scratch: str) -> dict[str, Any]:
    expected = set(json.loads(Path(prepared, "expected.json").read_text()))
    errors = sorted(json.loads(Path(prepared, "errors.json").read_text()))
    before = set(visible(prepared))
    wrong: list[str] = []
    looks = kills = 0
    table = str(Path(scratch, "table"))

    def look() -> None:
        nonlocal looks
        looks += 1
        seen = Counter(visible(table))
        if seen and max(seen.values()) > 1:
            wrong.append("a key was seen twice")
        if not before <= set(seen) <= expected:
            wrong.append("a key that was published is gone, or one came from nowhere")

    def begin() -> None:
        shutil.rmtree(table, ignore_errors=True)
        shutil.copytree(prepared, table)

    def finish() -> None:
        if not in_child(lambda: publish(table, "r9", 1 << 28), look):
            wrong.append("the publish after a kill did not end")
        look()
        if set(visible(table)) != expected:
            wrong.append("a key is missing")
        if list(Path(table, "_work").glob("**/*.parquet")) or sorted(visible(table, "errors")) != errors:
            wrong.append("work is left over, or errors/ is not the current state")

    def dying(point: int) -> Callable[[], None]:
        def work() -> None:
            die_at(point, table)
            publish(table, "r8", 20_000)

        return work

    point, ended = 0, False
    while not ended:
        begin()
        ended = in_child(dying(point), look)
        kills += not ended
        finish()
        point += 1
    chance = random.Random(4)
    for _ in range(5):
        begin()
        for attempt in range(2):
            run = f"r{attempt}"
            kills += not in_child(lambda run=run: publish(table, run, 20_000), look, chance.uniform(0, 0.08))
        finish()
    return {"points": point, "kills": kills, "looks": looks, "wrong": sorted(set(wrong))}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
