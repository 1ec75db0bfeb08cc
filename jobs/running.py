"""`corpusmill run` and `corpusmill plan`: a job file in, what happened out."""

from __future__ import annotations

import dataclasses
import json
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console
from rich.text import Text

from infra.storage import redact, redact_url
from pipelines.reports import RunReport

from .progress import shown
from .render import (
    consoles,
    errors_as_json,
    heading,
    plain,
    show_errors,
    show_estimate,
    show_plan,
    show_rows,
    show_run,
    show_table_path,
    show_warnings,
)
from .spec import LoadedJob, load_job
from .table_view import open_table
from .text import short_path

SHOWN_ROWS = 12


def run_file(path: Path, *, sample: int | None, retry_failed: bool, price_per_hour: float | None) -> None:
    """Run the job at `path` and show what came of it."""
    out, err = consoles()
    loaded = load_job(path)
    report = run_loaded(loaded, err, sample=sample, retry_failed=retry_failed)
    if sample is None:
        show_run(out, report)
    else:
        show_sample(out, report, price_per_hour)


def run_loaded(loaded: LoadedJob, err: Console, *, sample: int | None = None, retry_failed: bool = False) -> RunReport:
    """Run a job with its progress on `err`."""
    from pipelines.generate import run_job

    with shown(err) as on_progress:
        return run_job(
            loaded.job,
            job_text=loaded.text,
            sample=sample,
            retry_failed=retry_failed,
            on_progress=on_progress,
            say=lambda line: err.print(Text(redact(line), style="dim"), soft_wrap=True),
        )


def show_sample(out: Console, report: RunReport, price_per_hour: float | None) -> None:
    """The rows of a sample run, then what the whole corpus would take."""
    heading(out, "Sample")
    show_rows(out, made_rows(report.table, SHOWN_ROWS))
    show_errors(out, report.errors, "Not made")
    show_warnings(out, report.warnings)
    heading(out, "The whole corpus")
    show_estimate(out, report, price_per_hour)
    out.print()
    plain(out, "These rows stand in a scratch table; the job's own table is as it was.", "dim")
    show_table_path(out, report.table)


def made_rows(table: str, limit: int) -> list[tuple[str, str, str]]:
    """Up to `limit` rows of a table as (document, task, text): any documents, always the same, with all their tasks."""
    connection = open_table(table)
    try:
        found = connection.execute(
            "SELECT document_id, task, text, "
            "row_number() OVER (PARTITION BY task ORDER BY md5(document_id), document_id) AS n "
            "FROM results ORDER BY n, task LIMIT ?",
            [limit],
        ).fetchall()
    finally:
        connection.close()
    return sorted((str(document), str(task), str(text or "")) for document, task, text, _ in found)


def plan_file(path: Path, *, as_json: bool) -> None:
    """Show what a run of the job at `path` would do."""
    out, err = consoles()
    loaded = load_job(path)
    from pipelines.plan import plan_job

    with err.status("reading the source") if err.is_terminal else nullcontext() as spinner:
        # What plan_job says on its way is in the report too: it is for those who wait.
        report = plan_job(loaded.job, say=lambda line: spinner.update(Text(redact(line))) if spinner else None)
    if as_json:
        document = {
            **dataclasses.asdict(report),
            "table": redact_url(report.table),
            "errors": errors_as_json(report.errors),
            "warnings": [redact(warning) for warning in report.warnings],
        }
        print(json.dumps(document, ensure_ascii=False, indent=2))
    else:
        show_plan(out, report)
        out.print(
            Text.assemble(("Run    ", "bold"), (f"corpusmill run {short_path(str(path))}", "cyan")), soft_wrap=True
        )
