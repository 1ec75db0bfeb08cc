"""`corpusmill demo`: a small corpus, a small model, a job over them, and a look at what came out."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pyarrow.parquet as pq
from rich.console import Console
from rich.text import Text

from ..render import consoles, heading, show_run, table
from ..running import run_loaded
from ..spec import LoadedJob, load_job
from ..table_view import open_table
from ..text import count, one_line, shell_word, short_path
from .corpus import corpus_rows, right_answers, write_corpus
from .model import copy_model
from .show import show_results


def run_demo(folder: Path) -> None:
    """Write the demo into `folder`, run its job, and show the results; a second time there is nothing to do."""
    out, err = consoles()
    loaded = _prepare(folder, out)
    out.print()
    report = run_loaded(loaded, err)
    show_run(out, report, details=False)
    show_results(out, corpus_rows(), _made(report.table), right_answers())
    _show_rejected(out, report.table)
    _show_next(out, folder, report.table)


def write_job(folder: Path) -> Path:
    """The job file in `folder`; one that is there already, perhaps edited, is kept."""
    path = folder / "job.yaml"
    if not path.exists():
        text = files("jobs.demo").joinpath("job.yaml").read_text(encoding="utf-8")
        for mark, name in (("@MODEL@", "model"), ("@CORPUS@", "corpus"), ("@TABLE@", "table")):
            # Absolute, so that the job works from any folder; a JSON string is a YAML string, and $$ a plain $.
            target = str(folder.resolve() / name).replace("$", "$$")
            text = text.replace(mark, json.dumps(target, ensure_ascii=False))
        path.write_text(text, encoding="utf-8")
    return path


def _prepare(folder: Path, out: Console) -> LoadedJob:
    shards = write_corpus(folder / "corpus")
    documents = sum(pq.read_metadata(shard).num_rows for shard in shards)
    model = copy_model(folder / "model")
    job = write_job(folder)
    rows = [
        ("corpus", short_path(str(folder / "corpus")), f"{count(documents, 'document')}: reports, notes, scenes"),
        ("model", short_path(str(model)), "two million parameters, trained on a synthetic world"),
        ("job", short_path(str(job)), "summaries, answers, translations, captions"),
    ]
    width = max(len(path) for _, path, _ in rows)
    for name, path, note in rows:
        out.print(Text.assemble((f"{name:<8}", "bold"), f"{path:<{width}}", (f"  {note}", "dim")), soft_wrap=True)
    return load_job(job)


def _made(path: str) -> dict[str, dict[str, str]]:
    """Document → task → text, of a small table; tasks in the job file's order."""
    order = {task.name: n for n, task in enumerate(load_job(Path(path).parent / "job.yaml").job.tasks)}
    connection = open_table(path)
    try:
        rows = connection.execute("SELECT document_id, task, text FROM results").fetchall()
    finally:
        connection.close()
    made: dict[str, dict[str, str]] = {}
    for document, task, text in sorted(rows, key=lambda row: order.get(row[1], len(order))):
        made.setdefault(document, {})[task] = text or ""
    return made


def _show_rejected(out: Console, path: str) -> None:
    connection = open_table(path)
    try:
        rows = connection.execute(
            "SELECT coalesce(document_id, '(no id)'), string_agg(task, ', ' ORDER BY task), error_code, "
            "any_value(error_message) FROM errors GROUP BY 1, 3 ORDER BY 1, 3 LIMIT 20"
        ).fetchall()
    finally:
        connection.close()
    if rows:
        heading(out, "What could not be made, and why")
        out.print(table(["document", "tasks", "code", ("why", "fold")], [[one_line(str(c)) for c in r] for r in rows]))


def _show_next(out: Console, folder: Path, path: str) -> None:
    name = shell_word(short_path(path))
    job = shell_word(short_path(str(folder / "job.yaml")))
    sql = "SELECT * FROM results LIMIT 3"
    lines = (
        ("Table", short_path(path), ""),
        ("Query", f'corpusmill query {name} "{sql}"', "cyan"),
        ("Status", f"corpusmill status {name}", "cyan"),
        ("Again", f"corpusmill run {job}", "cyan"),
    )
    out.print()
    for title, text, style in lines:
        out.print(Text.assemble((f"{title:<8}", "bold"), (text, style)), soft_wrap=True)
