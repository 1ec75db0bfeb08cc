"""What must hold when a round has ended: nothing lost, nothing twice, nothing different, nothing made over and over."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from .corpus import Corpus, Pair

if TYPE_CHECKING:
    from .round import Outcome

_COLUMNS = ["key", "document_id", "task", "status", "text", "error_code", "source_path", "source_row", "attempt"]
_COLUMNS += ["run_id"]
_ACCOUNTED = {"ok", "rejected", "failed", "already_ok", "already_rejected", "already_failed"}
_SHOWN = 5


def read_rows(table: Path) -> dict[tuple[Pair, int], dict]:
    """Every row in results/ and errors/ of a table on this disk, by its pair; a pair's second row has number 1."""
    rows: dict[tuple[Pair, int], dict] = {}
    for zone in ("results", "errors"):
        for path in sorted((table / zone).glob("**/*.parquet")):
            for row in pq.read_table(path, columns=_COLUMNS, partitioning=None).to_pylist():
                pair = (Path(row["source_path"]).name, row["source_row"], row["task"])
                number = next(n for n in range(len(rows) + 1) if (pair, n) not in rows)
                rows[(pair, number)] = {**row, "zone": zone}
    return rows


def check_table(outcome: Outcome, table: Path, corpus: Corpus, reference: dict) -> None:
    """Each expected pair is one row with its code, and its text that of the undisturbed run."""
    rows = read_rows(table)
    first = {pair: row for (pair, number), row in rows.items() if number == 0}
    outcome.pairs = len(corpus.expected)
    lost = sorted(set(corpus.expected) - set(first))
    outcome.lost = len(lost)
    _say(outcome, "pairs have no row", lost)
    _say(outcome, "rows belong to no pair", sorted(set(first) - set(corpus.expected)))
    twice = [pair for pair, number in rows if number]
    outcome.duplicated += len(twice)
    _say(outcome, "pairs have a second row", twice)
    failed = [pair for pair, row in first.items() if row["status"] == "failed"]
    outcome.failed = len(failed)
    _say(outcome, "rows failed", [(pair, first[pair]["error_code"], first[pair]["attempt"]) for pair in failed])
    other = [
        (pair, row["error_code"], corpus.expected[pair])
        for pair, row in first.items()
        if pair in corpus.expected and row["status"] != "failed" and row["error_code"] != corpus.expected[pair]
    ]
    _say(outcome, "rows have another code than they must (found, wanted)", other)
    whole = {pair: row for (pair, number), row in reference.items() if number == 0}
    differing = [
        pair for pair, row in first.items() if row["status"] == "ok" and whole.get(pair, {}).get("text") != row["text"]
    ]
    outcome.differing = len(differing)
    _say(outcome, "texts differ from the undisturbed run's", differing)
    outcome.ok = sum(row["zone"] == "results" for row in first.values())
    outcome.rejected = sum(row["status"] == "rejected" for row in first.values())


def check_work(outcome: Outcome, table: Path, made: list[list], kills: int) -> None:
    """What was durable before a run began is not made by it, and no key is made more often than something died."""
    times = Counter(key for _, _, key, _ in made)
    unseen = {row["key"] for row in read_rows(table).values()} - set(times)
    outcome.rows_made = len(made) + len(unseen)
    outcome.made_again = sum(times.values()) - len(times)
    outcome.failed_on_the_way = sum(status == "failed" for _, _, _, status in made)
    often = [(key, count) for key, count in times.items() if count > 1 + kills]
    _say(outcome, f"keys were made more often than {kills} kills explain", often)
    durable: dict[str, float] = {}
    for _, seen, key, status in made:
        if status != "failed":
            durable[key] = min(seen, durable.get(key, seen))
    again = [(run, key) for run, _, key, _ in made if durable.get(key, float("inf")) < started_at(run)]
    outcome.done_before = len(again)
    _say(outcome, "rows were made although they were durable before their run began", again)


def check_manifest(outcome: Outcome, table: Path) -> None:
    """The newest run that ended well accounts for every pair, and its lease is gone."""
    manifests = [json.loads(path.read_text()) for path in (table / "_runs").glob("*/run.json")]
    ended = [manifest for manifest in manifests if manifest["exit"] == 0]
    if not ended:
        outcome.wrong.append("no manifest says that a run ended well")
        return
    counts = max(ended, key=lambda manifest: manifest["run_id"])["counts"].values()
    accounted = sum(number for task in counts for name, number in task.items() if name in _ACCOUNTED)
    if accounted != outcome.pairs:
        outcome.wrong.append(f"the manifest accounts for {accounted} of {outcome.pairs} pairs")
    if (table / "_runs" / "lease.json").exists():
        outcome.wrong.append("the lease of the run that ended is still there")
    outcome.work_left = len(list((table / "_work").glob("**/*.parquet")))


def started_at(run_id: str) -> float:
    """When a run's name was made: before it looked at what its table holds. UTC seconds."""
    return datetime.strptime(run_id.split("-")[0] + "000", "%Y%m%dT%H%M%S%f").replace(tzinfo=UTC).timestamp()


def _say(outcome: Outcome, what: str, found: list) -> None:
    if found:
        outcome.wrong.append(f"{len(found)} {what}: {found[:_SHOWN]}")
