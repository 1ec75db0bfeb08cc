"""Rows and footers against the manifests of the runs that they name."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from infra.storage import Location

from ..schema import SCHEMA_VERSION
from .report import Check
from .rows import Span
from .scan import SHARED, Footer, Scanned

_STATUSES = ("ok", "rejected", "failed")
# Of a row and of its task in the manifest.
_OF_TASK = ("kind", "language")


def check_runs(table: Location, manifests: Sequence[Mapping[str, Any]], scanned: Scanned, check: Check) -> None:
    """What the manifests, the footers and the rows say of the same runs must agree."""
    runs = {str(manifest.get("run_id")): manifest for manifest in manifests}
    check.saw("runs", len(runs))
    _look_at_manifests(table, runs, check)
    for footer in scanned.footers:
        _look_at_footer(footer, runs, check)
    found: defaultdict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    for group, rows in scanned.groups.items():
        zone, row = group[0], dict(zip(SHARED, group[1:], strict=True))
        manifest = runs.get(row["run_id"] or "")
        if manifest is None:
            check.wrong("rows name a run that has no manifest", f"{row['run_id']}: {row['task']} in {zone}/", rows)
            continue
        check.saw("rows compared with their manifest", rows)
        found[row["run_id"]][row["task"], row["status"] if zone != "_work" else f"_work {row['status']}"] += rows
        for line in _differences(row, manifest):
            check.wrong("rows differ from their run's manifest", f"run {row['run_id']}, {row['task']}: {line}", rows)
    for run_id, manifest in runs.items():
        _look_at_counts(run_id, manifest, found[run_id], runs, check)


def spans(manifests: Sequence[Mapping[str, Any]]) -> dict[str, Span]:
    """When each run started and ended; None where its manifest does not say."""
    return {str(m.get("run_id")): (_time(m.get("started")), _time(m.get("ended"))) for m in manifests}


def _look_at_manifests(table: Location, runs: Mapping[str, Mapping[str, Any]], check: Check) -> None:
    for file in table.child("_runs").list_files("/run.json"):
        name = table.below(file).split("/")[1]
        if name not in runs:
            check.wrong("a manifest cannot be read, or is another run's", table.below(file))
    for run_id, manifest in runs.items():
        version = manifest.get("schema_version")
        if not isinstance(version, int) or not 1 <= version <= SCHEMA_VERSION:
            check.wrong("a manifest's schema version is not known", f"{run_id}: {version}")
        job = manifest.get("job") or {}
        text = str(job.get("text", ""))
        # What was hidden when it was written down no longer has the file's own hash.
        if "***" not in text and hashlib.sha256(text.encode()).hexdigest() != job.get("sha256"):
            check.wrong("a manifest's job text is not the one that it has the hash of", run_id)


def _look_at_footer(footer: Footer, runs: Mapping[str, Mapping[str, Any]], check: Check) -> None:
    check.saw("footers")
    manifest = runs.get(footer.run_id or "")
    if manifest is None:
        check.wrong("a footer names a run that has no manifest", f"{footer.name}: {footer.run_id or 'no run'}")
    elif footer.job_hash is not None and footer.job_hash != (manifest.get("job") or {}).get("sha256"):
        check.wrong("a footer's job hash is not its run's", f"{footer.name}: run {footer.run_id}")


def _differences(row: Mapping[str, Any], manifest: Mapping[str, Any]) -> Iterator[str]:
    model, tasks = manifest.get("model") or {}, manifest.get("tasks") or ()
    pairs = [("job", (manifest.get("job") or {}).get("name")), ("model_revision", model.get("revision"))]
    pairs.append(("backend", model.get("backend")))
    task = next((task for task in tasks if task.get("name") == row["task"]), None)
    if task is None:
        yield "the run had no such task"
    else:
        pairs += [("task_fingerprint", task.get("fingerprint")), ("seed", (task.get("sampling") or {}).get("seed"))]
        pairs += [(name, task.get(name)) for name in _OF_TASK]
    for name, said in pairs:
        if row[name] != said:
            yield f"{name} {row[name]}, in the manifest {said}"
    if row["model"] != model.get("path") and "***" not in f"{row['model']}{model.get('path')}":
        yield f"model {row['model']}, in the manifest {model.get('path')}"


def _look_at_counts(
    run_id: str,
    manifest: Mapping[str, Any],
    found: Counter[tuple[str, str]],
    runs: Mapping[str, Mapping[str, Any]],
    check: Check,
) -> None:
    """What can be said of a run's rows whatever came after: no pair is there twice, and what was ok stays.

    A run that ended with 0 has at most as many rows as it made. Any run that ended has all the ok rows that it counted,
    in results/ or still in _work/, but for those that a worker of a run that died made too. Rows in errors/ may have
    been superseded since.
    """
    if manifest.get("exit") is None:
        check.note("a run did not get to its end (killed, or still going on)", run_id)
        return
    died = any(other.get("exit") != 0 for name, other in runs.items() if name < run_id)
    for task, said in (manifest.get("counts") or {}).items():
        rows = {status: found[task, status] for status in _STATUSES}
        made = sum(said.get(status, 0) for status in _STATUSES)
        if manifest["exit"] == 0 and sum(rows.values()) > made:
            line = f"run {run_id}, {task}: {made:,} made, {sum(rows.values()):,} rows"
            check.wrong("a run has more rows than it made", line)
        counted, there = said.get("ok", 0), rows["ok"] + found[task, "_work ok"]
        if there < counted:
            line = f"run {run_id}, {task}: {counted:,} ok in the manifest, {there:,} rows"
            if died:
                check.note("fewer ok rows than counted: others may be of a run that died before", line)
            else:
                check.wrong("a run has fewer ok rows than it made", line)


def _time(text: Any) -> datetime | None:
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
