"""`corpusmill trace`: where a row came from, and what took its place."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from infra.storage import redact
from pipelines.trace import Relative, SourceNow, Traced, trace_row

from .recorded import recorded_job
from .render import consoles, heading, json_text, plain
from .text import count, escape, one_line

_EXCERPT = 400
_ZONES = {
    "results": "results/",
    "errors": "errors/",
    "_work": "_work/ (finished; the next publish puts it into the table)",
}


def trace_key(path: str, key: str, *, as_json: bool) -> None:
    """Print what is known of the row with this key; TableError or TraceError when there is no such row, or several."""
    traced = trace_row(path, key, recorded_job)
    if as_json:
        print(json_text(dataclasses.asdict(traced)))
    else:
        show_trace(consoles()[0], traced)


def show_trace(console: Console, traced: Traced) -> None:
    """The row, then back: source, model and prompt, run; then forward: what took its place."""
    row = traced.row
    console.print(Text(row["key"], style="bold"))
    _facts(console, _row_facts(traced))
    heading(console, "Source")
    _facts(console, _source_facts(traced.source))
    heading(console, "Model and prompt")
    _facts(console, _model_facts(traced))
    heading(console, "Run")
    _facts(console, _run_facts(traced))
    heading(console, "Since then")
    _show_since(console, traced)


def _row_facts(traced: Traced) -> Iterable[tuple[str, Any]]:
    row = traced.row
    yield "document", row["document_id"]
    yield "task", f"{row['task']} ({row['kind']}{', ' + row['language'] if row['language'] else ''})"
    yield "status", row["status"] if row["status"] == "ok" else f"{row['status']}: {row['error_code']}"
    yield "text" if row["status"] == "ok" else "why", _clip(row["text"] or row["error_message"])
    if row["status"] == "ok":
        cut = ", input truncated" if row["truncated"] else ""
        yield "tokens", f"{row['input_tokens']} in, {row['output_tokens']} out ({row['finish_reason']}{cut})"
    yield "stands in", _ZONES[traced.zone]
    yield "file", traced.file
    yield "made", row["created_at"]
    yield "attempt", row["attempt"]
    for run, status in traced.attempts:
        yield "before", f"{status} in run {run}"


def _source_facts(source: SourceNow) -> Iterable[tuple[str, Any]]:
    yield "file", source.path
    yield "row", source.row
    if source.then is not None or source.now is not None:
        etags = source.then or "unknown", source.now or "gone"
        yield "etag", f"{etags[0]}, as it was then" if etags[0] == etags[1] else f"{etags[0]} then, {etags[1]} now"
    if source.unread is not None:
        yield "content", f"not compared: {source.unread}"
    elif source.same is None:
        yield "content", "the row has no content hash: it is known by its place"
    else:
        yield "content", "the same as then" if source.same else "another one than then"
    if source.images:
        yield "images", source.images
    if source.text is not None:
        yield "text now", _clip(source.text)


def _model_facts(traced: Traced) -> Iterable[tuple[str, Any]]:
    row, task = traced.row, traced.task
    yield "model", row["model"]
    yield "revision", row["model_revision"]
    yield "computed in", f"{row['dtype'] or 'nothing was computed'} ({row['backend']})"
    if task is None:
        yield "prompt", "unknown: no manifest of its run has this task"
        return
    yield "prompt", task.get("prompt")
    yield "placed in", task.get("prompt_in")
    sampling = task.get("sampling") or {}
    yield "sampling", ", ".join(f"{name} {value}" for name, value in sampling.items() if value not in ([], None))
    yield "task", f"{row['task_fingerprint']} (fingerprint)"


def _run_facts(traced: Traced) -> Iterable[tuple[str, Any]]:
    run = traced.run
    yield "run", traced.row["run_id"]
    if run is None:
        yield "manifest", "gone, or never written"
        return
    job, code = run.get("job") or {}, run.get("code") or {}
    yield "job", f"{job.get('name')}, file {str(job.get('sha256'))[:16]}"
    yield "started", run.get("started")
    ended = {None: "not known: killed, or still going on", 0: run.get("ended")}
    yield "ended", ended.get(run.get("exit"), f"{run.get('ended')}, exit {run.get('exit')}")
    yield "host", run.get("host") or "unknown"
    commit = f", commit {code['commit']}{' and changes' if code.get('dirty') else ''}" if code.get("commit") else ""
    yield "code", f"corpusmill {code.get('version')}{commit}"


def _show_since(console: Console, traced: Traced) -> None:
    if traced.newest is not None:
        asks = "asks for this row" if traced.asked else "no longer asks for this row"
        plain(console, f"The newest complete run, {traced.newest}, {asks}.")
    for title, relatives in (("Superseded by", traced.newer), ("It supersedes", traced.older)):
        if relatives:
            plain(console, f"{title} {count(len(relatives), 'row')}:")
        for relative in relatives:
            _show_relative(console, relative)
    if not traced.newer:
        plain(console, "No newer row of its document and task.")


def _show_relative(console: Console, relative: Relative) -> None:
    console.print(Text(f"  {relative.key}", style="cyan"))
    changed = "; ".join(one_line(redact(change)) for change in relative.changed) or "nothing that the table tells"
    plain(console, f"    {relative.status} in run {relative.run_id}. Changed: {changed}")


def _facts(console: Console, facts: Iterable[tuple[str, Any]]) -> None:
    block = Table.grid(padding=(0, 2, 0, 0))
    block.add_column(style="dim", no_wrap=True)
    block.add_column(overflow="fold")
    for name, value in facts:
        shown = Text("none", style="dim") if value is None else Text(escape(redact(str(value))))
        block.add_row(Text(f"  {name}"), shown)
    console.print(block)


def _clip(text: str | None) -> str | None:
    return text if text is None or len(text) <= _EXCERPT else text[:_EXCERPT] + "…"
