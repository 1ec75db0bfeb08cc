"""What a person sees of a run, a plan and their rows: Rich tables that fit 80 columns."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from infra.storage import redact, redact_url
from pipelines.reports import PlanReport, RunReport, TaskCounts

from .text import count, duration, one_line, rate, shell_word, short_path, size

Errors = Mapping[str, tuple[int, str]]
# A title, or a title and how the column lays out: right, fold, or one (one line, cut with an ellipsis).
Column = str | tuple[str, str]


def consoles() -> tuple[Console, Console]:
    """(standard output, standard error); Rich honours NO_COLOR, COLUMNS and pipes."""
    return Console(highlight=False), Console(stderr=True, highlight=False)


def plain(console: Console, text: str = "", style: str | None = None) -> None:
    """One paragraph, wrapped at words, its brackets left alone."""
    console.print(Text(text, style=style or ""))


def heading(console: Console, text: str) -> None:
    """A line in bold with an empty line above it."""
    console.print()
    console.print(Text(text, style="bold"))


def table(columns: Sequence[Column], rows: Iterable[Sequence[object]]) -> Table:
    """A table of `rows` under `columns`."""
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", show_edge=False)
    for column in columns:
        title, how = column if isinstance(column, tuple) else (column, "left")
        if how == "right":
            grid.add_column(title, justify="right", no_wrap=True)
        elif how == "fold":
            grid.add_column(title, overflow="fold", ratio=1)
        elif how == "one":
            grid.add_column(title, overflow="ellipsis", no_wrap=True, ratio=1)
        else:
            grid.add_column(title, overflow="fold")
    for row in rows:
        grid.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
    return grid


def show_run(console: Console, report: RunReport, *, details: bool = True) -> None:
    """What a finished run made and, with `details`, what went wrong and where the table is."""
    counts = report.tasks.values()
    made = sum(task.made for task in counts)
    if made:
        rows = count(sum(task.ok for task in counts), "row")
        documents = count(report.documents_made, "document")
        plain(console, f"Made {rows} from {documents} in {duration(report.seconds)}{_speed(report)}.", "bold")
        console.print()
        console.print(_task_table(report.tasks))
        if any(task.not_applicable for task in counts):
            plain(console, "n/a: the task has nothing to work on, such as a caption without an image", "dim")
    else:
        plain(console, nothing_to_do(report), "bold")
    if details:
        show_errors(console, report.errors, "Not made")
    show_warnings(console, report.warnings)
    if not made and any(task.already_failed for task in counts):
        failed = sum(task.already_failed for task in counts)
        console.print()
        plain(console, f"{count(failed, 'row')} failed earlier and stay so; `--retry failed` tries them again.")
    if details:
        show_table_path(console, report.table)


def nothing_to_do(report: RunReport) -> str:
    """One sentence for a run that found everything made."""
    rows = sum(task.already for task in report.tasks.values())
    if not report.documents:
        return "Nothing to do: the source holds no documents."
    if not rows:
        return f"Nothing to do: no task applies to any of the {count(report.documents, 'document')}."
    return (
        f"Nothing to do: all {count(rows, 'row')} for {count(report.documents, 'document')} are in the table already."
    )


def show_table_path(console: Console, path: str) -> None:
    """Where the table is, and a query to try on it; both stay on one line so that they can be copied."""
    short = short_path(redact_url(path))
    console.print()
    console.print(Text.assemble(("Table  ", "bold"), short), soft_wrap=True)
    sql = "SELECT * FROM results LIMIT 3"
    console.print(
        Text.assemble(("Query  ", "bold"), (f'corpusmill query {shell_word(short)} "{sql}"', "cyan")), soft_wrap=True
    )


def show_errors(console: Console, errors: Errors, title: str) -> None:
    """How many rows ended with each code, and one message each."""
    if not errors:
        return
    heading(console, title)
    ordered = sorted(errors.items(), key=lambda item: -item[1][0])
    rows = [(code, f"{number:,}", one_line(redact(example))) for code, (number, example) in ordered]
    console.print(table(["code", ("rows", "right"), ("for example", "fold")], rows))


def errors_as_json(errors: Errors) -> dict[str, dict[str, object]]:
    """Errors by code, for programs."""
    return {code: {"rows": number, "example": redact(example)} for code, (number, example) in errors.items()}


def json_text(value: Any) -> str:
    """Plain values as JSON for programs, in ASCII so that no text in it steers a terminal, and without secrets."""
    return json.dumps(_redacted(value), indent=2, default=str)


def _redacted(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {str(name): _redacted(item) for name, item in value.items()}
    return [_redacted(item) for item in value] if isinstance(value, list | tuple) else value


def show_warnings(console: Console, warnings: Sequence[str]) -> None:
    """Each warning in a paragraph of its own."""
    if warnings:
        console.print()
    for warning in warnings:
        console.print(Text.assemble(("warning: ", "yellow"), one_line(redact(warning))))


def show_rows(console: Console, rows: Iterable[tuple[str, str, str]], lines: int = 3) -> None:
    """Made rows as (document, task, text), each text cut to about `lines` lines of the terminal."""
    width = max(20, console.width - 34) * lines
    shown = [
        (_clip(one_line(document), 22), task, _clip(one_line(text), width) if text.strip() else Text("(empty)", "dim"))
        for document, task, text in rows
    ]
    console.print(table(["document", "task", ("text", "fold")], shown))


def show_estimate(console: Console, report: RunReport, price_per_hour: float | None) -> None:
    """What the whole corpus would take and cost at the pace of this sample."""
    if not report.documents_made:
        plain(console, "The sample made nothing, so there is nothing to extrapolate from.")
        return
    took = report.generate_seconds or report.seconds
    each = took / report.documents_made
    whole = each * report.documents
    workers = count(report.workers, "worker")
    plain(
        console,
        f"{count(report.documents_made, 'document')} took {duration(took)} on {workers} "
        f"({rate(1 / each) if each else '?'} documents/s, start-up not counted). At that pace the whole corpus of "
        f"{count(report.documents, 'document')} takes about {duration(whole)}"
        + (f" and costs {_cost(whole / 3600 * report.workers * price_per_hour)}" if price_per_hour else "")
        + ".",
    )
    if report.documents_made < 20 and report.documents > 100:
        plain(console, "A sample this small says little; try --sample 100.", "dim")


def show_plan(console: Console, report: PlanReport) -> None:
    """What a run would do, task by task and by length of the input."""
    source = f"{count(report.files, 'file')}, {size(report.source_bytes)}"
    todo = f"{report.documents_todo:,} have rows to make" if report.documents_todo else "nothing is left to do"
    plain(console, f"{count(report.documents, 'document')} in {source}; {todo}.", "bold")
    console.print()
    rows = [
        (
            name,
            f"{report.todo.get(name, 0):,}",
            *_numbers(c.already_ok, c.already_rejected, c.already_failed, c.not_applicable),
        )
        for name, c in report.tasks.items()
    ]
    right = [(title, "right") for title in ("to do", "ok", "rejected", "failed", "n/a")]
    console.print(table(["task", *right], rows))
    if report.buckets:
        heading(console, "Input by length")
        lengths = [(f"up to {b.max_tokens:,}", f"{b.documents:,}", f"{b.tokens:,}") for b in report.buckets]
        console.print(table([("tokens per document", "right"), ("documents", "right"), ("tokens", "right")], lengths))
    if report.documents_todo:
        console.print()
        encode, decode = report.input_tokens, report.max_output_tokens
        plain(console, f"To encode: {encode:,} tokens. To decode: at most {decode:,} tokens.")
        if report.estimate_seconds is None:
            plain(console, f"No estimate: {report.estimate_basis}.")
        else:
            plain(console, f"Estimate: about {duration(report.estimate_seconds)} ({report.estimate_basis}).")
    show_errors(console, report.errors, "Cannot work")
    show_warnings(console, report.warnings)
    console.print()
    console.print(Text.assemble(("Table  ", "bold"), short_path(redact_url(report.table))), soft_wrap=True)


def _task_table(tasks: Mapping[str, TaskCounts]) -> Table:
    rows = [(name, *_numbers(c.ok, c.rejected, c.failed, c.already, c.not_applicable)) for name, c in tasks.items()]
    right = [(title, "right") for title in ("ok", "rejected", "failed", "already", "n/a")]
    return table(["task", *right], rows)


def _numbers(*values: int) -> list[Text]:
    return [Text(f"{value:,}", style="" if value else "dim") for value in values]


def _speed(report: RunReport) -> str:
    took = report.generate_seconds
    if took <= 0:
        return ""
    tokens = report.input_tokens + report.output_tokens
    return f" ({rate(report.documents_made / took)} documents/s, {rate(tokens / took)} tokens/s)"


def _cost(price: float) -> str:
    return f"about {price:,.2f}" if price >= 0.01 else "less than 0.01"


def _clip(text: str, width: int) -> str:
    return text if cell_len(text) <= width else set_cell_size(text, width - 1).rstrip() + "…"
