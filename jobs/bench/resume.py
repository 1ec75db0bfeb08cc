"""Figure `resume`: seconds and peak driver memory of what a run and a plan do before the first document: over a table
where every key is done, a source of very many shards, and a table of very many files."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.cluster import usable_cores
from infra.storage import Location
from pipelines.job import JobSpec

from .machine import describe, today, versions
from .made_table import CountedFiles, Made, make_job, make_source, make_table
from .memory import peak
from .types import Figure, Settings, Value

KEYS = (1_000_000, 10_000_000)
SHARDS, SHARD_ROWS = 100_000, 10
FILES, FILE_ROWS = 10_000, 100
_DEMO = 20_000, 40, 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One look at what is done: how long it took, what its process held at most, what it found and what it read of
    the source."""

    seconds: float
    peak_bytes: int
    done: int
    todo: int = 0
    source_read: int = 0


def measure_resume(settings: Settings) -> Iterator[Figure]:
    """For each number of keys: the index of what is done read back by itself, a whole plan and a whole run of the job
    once more over an unchanged source. For many shards: their footers and ids read, and the plan once these are known.
    For many files of a table: the index.

    Each runs in a new process whose peak of memory counts, the interpreter's and its libraries' own included.
    ValueError when not every key is found, or when an unchanged source was read.
    """
    keys, shards, files = (KEYS, SHARDS, FILES) if settings.size != "demo" else ((_DEMO[0],), *_DEMO[1:])
    tasks = settings.tasks[0] if settings.tasks else 4
    for count in keys:
        made = Made(documents=-(-count // tasks), tasks=tasks)
        yield _measure(settings, made, {"keys": made.keys, "documents": made.documents}, ("index", "plan", "run"))
    many = Made(documents=shards * SHARD_ROWS, tasks=1, shard_rows=SHARD_ROWS)
    yield _measure(settings, many, {"shards": shards, "keys": many.keys}, ("scan", "plan"), counted=False)
    cut = Made(documents=files * FILE_ROWS, tasks=1, file_rows=FILE_ROWS)
    yield _measure(settings, cut, {"table files": files, "keys": cut.keys}, ("index", "plan"))


def _measure(
    settings: Settings, made: Made, work: dict[str, int], ways: tuple[str, ...], counted: bool = True
) -> Figure:
    with tempfile.TemporaryDirectory(dir=settings.folder) as scratch:
        job = make_job(settings.model, Path(scratch), made.tasks, counted)
        size = make_source(Path(scratch), made)
        _aside(_make, job, made)
        settings.say(f"resume: a table of {made.keys:,} keys is made, its source has {size:,} bytes")
        found: dict[str, list[Seen]] = {way: [] for way in ways}
        for _ in range(settings.repeat):
            for way, results in found.items():
                seen: Seen = _aside(_WAYS[way], job)
                results.append(_checked(way, seen, made, size))
                settings.say(f"resume: {way} {seen.seconds:.1f} s, {seen.peak_bytes >> 20:,} MiB")
    return Figure(
        name="resume",
        work=work,
        unit="s",
        better="lower",
        values=tuple(
            Value(
                peer=way,
                samples=tuple(seen.seconds for seen in results),
                extra={"peak_mib": max(seen.peak_bytes for seen in results) / 2**20},
            )
            for way, results in found.items()
        ),
        checks={
            "keys_found": min(seen.done for results in found.values() for seen in results),
            "to_do": max(seen.todo for results in found.values() for seen in results),
            "source_bytes": size,
            "source_bytes_read_again": max(seen.source_read for results in found.values() for seen in results),
        },
        device=describe("cpu", usable_cores()),
        date=today(),
        versions=versions(),
    )


def _checked(way: str, seen: Seen, made: Made, size: int) -> Seen:
    if (seen.done, seen.todo) != (made.keys, 0):
        raise ValueError(f"{way} found {seen.done:,} of {made.keys:,} keys and {seen.todo:,} to do")
    if seen.source_read > size // 100:
        raise ValueError(f"{way} read {seen.source_read:,} of the unchanged source's {size:,} bytes")
    return seen


def _aside(call: Callable[..., Any], *arguments: Any) -> Any:
    """What `call` gives in a new process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(call, *arguments).result()


def _make(job: JobSpec, made: Made) -> None:
    CountedFiles.register()
    make_table(job, made)


def _read_index(job: JobSpec) -> Seen:
    from pipelines.resume import read_done

    started = time.perf_counter()
    done = read_done(Location(job.output.path))
    return Seen(seconds=time.perf_counter() - started, peak_bytes=peak(), done=len(done))


def _scan(job: JobSpec) -> Seen:
    from pipelines.source import scan

    CountedFiles.register()
    started = time.perf_counter()
    corpus = scan(job.source)
    return Seen(seconds=time.perf_counter() - started, peak_bytes=peak(), done=corpus.documents * len(job.tasks))


def _plan(job: JobSpec) -> Seen:
    from pipelines.plan import plan_job

    CountedFiles.register()
    started = time.perf_counter()
    report = plan_job(job)
    return Seen(
        seconds=time.perf_counter() - started,
        peak_bytes=peak(),
        done=sum(counts.already_ok for counts in report.tasks.values()),
        todo=sum(report.todo.values()),
        source_read=CountedFiles.read,
    )


def _run(job: JobSpec) -> Seen:
    from pipelines.generate import run_job

    CountedFiles.register()
    started = time.perf_counter()
    report = run_job(job, job_text="")
    return Seen(
        seconds=time.perf_counter() - started,
        peak_bytes=peak(),
        done=sum(counts.already_ok for counts in report.tasks.values()),
        todo=sum(counts.made for counts in report.tasks.values()),
        source_read=CountedFiles.read,
    )


_WAYS = {"index": _read_index, "scan": _scan, "plan": _plan, "run": _run}
