"""A whole table, checked: one pass over its files, one over its source, and two joins on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from infra.storage import Location, scratch_folder

from ..errors import TableError
from ..job import JobSpec
from ..lease import current_holder
from ..lineage import read_manifests
from .pairs import KEYS, KeyLedger, ask
from .report import Check, Verification
from .reproduce import Sample, check_again
from .runs import check_runs, spans
from .scan import ZONES, RowSink, Scan
from .source import PLACES, SourceLedger
from .spill import Spill

# What a job is known by, before any row is read: its text in the manifest, or why it cannot be used.
ReadJob = Callable[[Mapping[str, Any]], JobSpec | str]


def verify_table(
    path: str,
    read_job: ReadJob,
    *,
    reproduce: int = 0,
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> Verification:
    """Everything that a table promises, looked at; TableError when there is none, StorageError for the store's trouble.

    `read_job`: a run's job by its manifest, or in a few words why it cannot be read. `reproduce`: so many ok rows are
    made again. Memory holds one partition in 256 of the keys and of the source's rows, whatever the table's size.
    """
    table = Location(path)
    manifests = read_manifests(table)
    if not manifests and not any(table.child(zone).list_files() for zone in ZONES):
        raise TableError(f"{table}: there is no table here; name the folder that the job file's output.path names")
    holder = current_holder(table)
    jobs = {str(manifest.get("run_id")): read_job(manifest) for manifest in manifests}
    files, rows, keys, pairs, runs, source = _checks()
    checks = [files, rows, keys, pairs, runs, source]
    with (
        scratch_folder() as scratch,
        Spill(scratch / "keys", KEYS) as key_spill,
        Spill(scratch / "places", PLACES) as place_spill,
    ):
        ledger = KeyLedger(key_spill)
        by_run = {str(manifest.get("run_id")): manifest for manifest in manifests}
        sources = SourceLedger(place_spill, jobs, by_run)
        sample = Sample(reproduce, seed)
        sinks: list[RowSink] = [ledger, sources, *([sample] if reproduce else [])]
        scanned = Scan(table, files, rows, sinks, spans(manifests)).run(say)
        complete = next((n for n, manifest in enumerate(manifests) if manifest.get("exit") == 0), None)
        if complete is None:
            pairs.note("no run of this table has come to its end yet, so nothing is asked for")
        else:
            say("reading the keys asked for")
            run = manifests[complete]
            ask(table, run, jobs[str(run.get("run_id"))], ledger, pairs)
        ledger.check(keys, pairs, scanned.names, later=bool(complete) or holder is not None)
        check_runs(table, manifests, scanned, runs)
        sources.check(source, say)
    if reproduce:
        again = Check("reproduced", "rows made again from their lineage come out the same")
        check_again(sample.rows, jobs, again, say)
        checks.append(again)
    return Verification(table=str(table), holder=None if holder is None else holder.run_id, checks=checks)


def _checks() -> tuple[Check, Check, Check, Check, Check, Check]:
    return (
        Check("files", "every file can be read whole, and its footer and columns are right"),
        Check("rows", "every row agrees with itself: status, codes, key, times"),
        Check("keys", "each key stands once, in results/ or in errors/"),
        Check("pairs", "each pair that the newest complete run asked for has its row"),
        Check("runs", "rows and footers agree with the manifests of their runs"),
        Check("source", "each row's content hash is that of its source row now"),
    )
