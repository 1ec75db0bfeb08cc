"""Each key in one place, and each pair that the newest complete run asked for in the table: one join over all keys."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infra.storage import Location, Problem, StorageError

from ..asked import asked_keys
from ..job import JobSpec
from ..keys import hex_of, keys_of
from ..resume import FAILED, OK, REJECTED, STATUS_NAMES, status_codes
from .report import EXAMPLES, Check
from .spill import Spill, key_places

_ASKED, _RESULTS, _ERRORS, _WORK = range(4)
_ZONE = {"results": _RESULTS, "errors": _ERRORS, "_work": _WORK}
KEYS = np.dtype([("key", "S16"), ("zone", "u1"), ("status", "u1"), ("task", "u4"), ("file", "u4")])
_MADE = {"ok": OK, "rejected": REJECTED, "failed": FAILED}


class KeyLedger:
    """Takes in every key of the table and every key asked for; 26 bytes each, on disk."""

    def __init__(self, spill: Spill) -> None:
        self._spill = spill

    def take(self, rows: pa.Table, keys: pa.ChunkedArray, zone: str, file: int) -> None:
        """Rows of table file number `file`."""
        known = pc.is_in(rows.column("status"), pa.array(STATUS_NAMES[1:]))
        statuses = pc.if_else(pc.fill_null(known, False), rows.column("status"), "failed")
        self._add(keys_of(keys), status_codes(statuses), _ZONE[zone], file=file)

    def ask(self, batch: pa.RecordBatch, tasks: Mapping[str, int]) -> None:
        """Pairs that the run asked for, with what became of them; `tasks`: their numbers."""
        numbers = np.array([tasks.get(name, len(tasks)) for name in batch.column("task").to_pylist()], np.uint32)
        names = batch.column("status").to_pylist()
        codes = np.array([STATUS_NAMES.index(name) if name in STATUS_NAMES else 0 for name in names], np.uint8)
        self._add(keys_of(batch.column("key")), codes, _ASKED, task=numbers)

    def _add(self, keys: np.ndarray, status: np.ndarray, zone: int, file: int = 0, task: Any = 0) -> None:
        records = np.empty(len(keys), KEYS)
        records["key"], records["status"], records["zone"] = keys, status, zone
        records["task"], records["file"] = task, file
        self._spill.add(key_places(keys), records)

    def check(self, keys: Check, pairs: Check, names: Sequence[str], later: bool) -> None:
        """What the join says. `names`: the table's files; `later`: whether another run may have moved rows since."""
        for records in self._spill.partitions():
            groups = _Groups.of(records, names)
            _look_at_keys(groups, keys)
            _look_at_pairs(groups, pairs, later)


@dataclass(frozen=True, slots=True)
class _Groups:
    """One partition's records by key: of each key how often it stands in each zone, and which records are its."""

    records: np.ndarray
    starts: np.ndarray
    counts: np.ndarray  # [zones, keys]
    status: np.ndarray  # of the row in results/ or errors/
    asked: np.ndarray  # the status asked for
    names: Sequence[str]

    @classmethod
    def of(cls, records: np.ndarray, names: Sequence[str]) -> _Groups:
        records = records[np.argsort(records["key"], kind="stable")]
        first = np.ones(len(records), bool)
        first[1:] = records["key"][1:] != records["key"][:-1]
        group = np.cumsum(first) - 1
        size = int(group[-1]) + 1 if len(group) else 0
        counts = np.zeros((4, size), np.int64)
        np.add.at(counts, (records["zone"], group), 1)
        found = np.isin(records["zone"], (_RESULTS, _ERRORS))
        status, asked = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
        status[group[found]] = records["status"][found]
        # A row in results/ is an ok one, whatever it says: its own check complains.
        status[group[records["zone"] == _RESULTS]] = OK
        wanted = records["zone"] == _ASKED
        asked[group[wanted]] = records["status"][wanted]
        return cls(records, np.flatnonzero(first), counts, status, asked, names)

    def told(self, check: Check, what: str, mask: np.ndarray, *, note: bool = False) -> None:
        """Puts the keys that `mask` names into a check, the first few with their files."""
        at = np.flatnonzero(mask)
        if len(at):
            examples = [self._example(int(i)) for i in at[:EXAMPLES]]
            (check.note if note else check.wrong)(what, examples, len(at))

    def _example(self, i: int) -> str:
        end = self.starts[i + 1] if i + 1 < len(self.starts) else len(self.records)
        mine = self.records[self.starts[i] : end]
        files = [self.names[record["file"]] for record in mine if record["zone"] != _ASKED]
        key = hex_of(mine["key"][:1])[0].as_py()
        return f"{key} in {' and '.join(files[:3])}" if files else key


def _look_at_keys(groups: _Groups, check: Check) -> None:
    results, errors, work = groups.counts[_RESULTS], groups.counts[_ERRORS], groups.counts[_WORK]
    check.saw("keys in results/", int((results > 0).sum()))
    check.saw("keys in errors/", int((errors > 0).sum()))
    groups.told(check, "a key stands twice in results/", results > 1)
    groups.told(check, "a key stands twice in errors/", errors > 1)
    both = (results > 0) & (errors > 0)
    groups.told(check, "a key stands in results/ and in errors/", both & (work == 0))
    # Killed between the two zones, a publisher leaves the work file; the next one takes the key out of errors/.
    groups.told(
        check, "a key is on its way from errors/ to results/; the next run finishes it", both & (work > 0), note=True
    )


def _look_at_pairs(groups: _Groups, check: Check, later: bool) -> None:
    asked, status, was = groups.counts[_ASKED], groups.status, groups.asked
    wanted = asked > 0
    check.saw("pairs asked for", int(wanted.sum()))
    groups.told(check, "a pair was asked for twice", asked > 1)
    there = groups.counts[_RESULTS] + groups.counts[_ERRORS] > 0
    check.saw("pairs found", int((wanted & there).sum()))
    gone = wanted & ~there
    if later:
        # A row leaves errors/ when a newer one of its document and task takes its place; results/ keep theirs.
        groups.told(
            check, "left errors/ since: a later run has tried its document again", gone & (was != OK), note=True
        )
        gone &= was == OK
    groups.told(check, "a pair that was asked for has no row", gone)
    other = wanted & there & (status != was)
    better = other & (status == OK) & (was == FAILED)
    if later:
        groups.told(check, "another status since: a later run has tried it again", other & (was != OK), note=True)
        other &= was == OK
    else:
        # A worker that died after it had made its row, and was run again in vain.
        groups.told(check, "counted as failed, yet made", better, note=True)
        other &= ~better
    groups.told(check, "a pair has another status than its run counted", other)


def ask(table: Location, manifest: Mapping[str, Any], job: JobSpec | str, ledger: KeyLedger, check: Check) -> None:
    """Puts the pairs that a complete run asked for into the ledger, and compares them with the manifest's counts."""
    run_id, counts = str(manifest.get("run_id")), manifest.get("counts") or {}
    tasks = {str(task.get("name")): n for n, task in enumerate(manifest.get("tasks") or ())}
    found: Counter[tuple[str, str]] = Counter()
    try:
        for batch in asked_keys(table, run_id):
            ledger.ask(batch, tasks)
            grouped = pa.Table.from_batches([batch]).group_by(["task", "status"]).aggregate([([], "count_all")])
            for row in grouped.to_pylist():
                found[row["task"], row["status"]] += row["count_all"]
    except StorageError as error:
        if error.problem is not Problem.MISSING:
            raise
        check.wrong("the run's keys are gone", f"_runs/{run_id}/asked/")
        return
    for task in sorted({*counts, *(name for name, _ in found)}):
        said = counts.get(task) or {}
        for status in _MADE:
            promised, there = said.get(status, 0) + said.get(f"already_{status}", 0), found[task, status]
            if promised != there:
                line = f"{task} of run {run_id}: {promised:,} {status} in the manifest, {there:,} asked for"
                check.wrong("the manifest's counts are not those of the keys asked for", line)
        if found[task, "pending"]:
            check.wrong("a pair came to no end", f"{task} of run {run_id}", found[task, "pending"])
    _look_at_documents(manifest, check)
    if not isinstance(job, str) and job.source.filter is None and "/_samples/" not in table.url:
        _look_at_inputs(manifest, check)


def _look_at_documents(manifest: Mapping[str, Any], check: Check) -> None:
    """Each task answers for each document: made, there before, or not applicable."""
    documents = manifest.get("documents")
    if documents is None:
        return
    check.saw("documents", int(documents))
    for task, said in (manifest.get("counts") or {}).items():
        total = sum(value for value in said.values() if isinstance(value, int))
        check.saw("pairs that do not apply", said.get("not_applicable", 0))
        if total != documents:
            line = f"{task} of run {manifest.get('run_id')}: {total:,} pairs for {documents:,} documents"
            check.wrong("a task does not answer for each document", line)


def _look_at_inputs(manifest: Mapping[str, Any], check: Check) -> None:
    """Without a filter each row of the source files is a document, and so is each file that could not be read."""
    inputs, documents = manifest.get("inputs") or (), manifest.get("documents")
    rows = sum(int(entry.get("rows") or 0) for entry in inputs) + len(manifest.get("unreadable") or ())
    if documents is not None and rows != documents:
        line = f"run {manifest.get('run_id')}: {rows:,} rows in its inputs, {documents:,} documents"
        check.wrong("the run counted other documents than its source files have rows", line)
