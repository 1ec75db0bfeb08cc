"""What a person sees of an evaluation: Rich tables that fit 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.text import Text

from infra.storage import redact
from pipelines.evaluation.report import Average, CheckedTask, Counts, Evaluation, Scores, TaskResult
from workers.score import Comparison, Interval

from .render import Column, heading, plain, show_warnings, table
from .text import count, one_line

_MOST_SLICES = 40
_MOST_EXAMPLES = 3

CHECKS = {
    "empty": "empty",
    "wrong_language": "language",
    "looping": "loops",
    "copied": "copied",
    "odd_length": "length",
    "cut": "cut",
    "input_cut": "input cut",
}


def show_evaluation(console: Console, evaluation: Evaluation) -> None:
    """Scores with their intervals, slices, averages, the comparison's verdict, and what the checks found."""
    other = evaluation.other is not None
    if evaluation.tasks:
        heading(console, f"{evaluation.name}: scores ({100 * evaluation.level:g}% intervals)")
        rows = [
            row
            for task in evaluation.tasks
            for row in _rows(_named(task.task, task.language), task.overall.scored, task.overall, other)
        ]
        console.print(table(_columns("task", other), rows))
        for line in _counts(evaluation.tasks):
            plain(console, line, "dim")
    for column in dict.fromkeys(piece.by for task in evaluation.tasks for piece in task.slices):
        _show_slices(console, evaluation.tasks, str(column), other)
    if evaluation.averages:
        heading(console, "Averages over tasks")
        rows = [
            row
            for average in evaluation.averages
            for row in _rows(_named(average.kind, average.language), len(average.tasks), average, other)
        ]
        console.print(table(_columns("kind", other), rows))
    if other:
        _show_verdict(console, evaluation)
    if evaluation.checks:
        _show_checks(console, evaluation.checks)
    show_warnings(console, evaluation.warnings)


def _columns(first: str, other: bool) -> list[Column]:
    """With another table the interval is that of the difference."""
    more: list[Column] = [("other", "right"), ("delta", "right"), ("interval", "right"), ("p", "right")]
    return [first, ("n", "right"), "metric", ("score", "right"), *(more if other else more[2:3])]


def _named(name: str, language: str | None) -> str:
    return f"{name} ({language})" if language else name


def _rows(name: str, n: int, found: Scores | Average, other: bool) -> Iterable[list[object]]:
    """One line for each metric, the name on the first of them."""
    for number, (metric, interval) in enumerate(found.scores.items()):
        names = [one_line(name), f"{n:,}"] if number == 0 else ["", ""]
        more = _compared(found.compared[metric]) if other else [_interval(interval)]
        yield [*names, metric, f"{interval.score:.2f}", *more]


def _interval(interval: Interval | Comparison) -> str:
    return "" if interval.low is None else f"{interval.low:.2f} to {interval.high:.2f}"


def _compared(comparison: Comparison) -> list[object]:
    delta = Text(f"{comparison.delta:+.2f}")
    if comparison.significant:
        delta.stylize("bold green" if comparison.delta > 0 else "bold red")
    p = "" if comparison.p is None else f"{comparison.p:.3f}"
    return [f"{comparison.other:.2f}", delta, _interval(comparison), p]


def _counts(tasks: Sequence[TaskResult]) -> Iterable[str]:
    """What counted as empty, and what was left aside: a line for each task that has any."""
    for task in tasks:
        said = _missing(task.overall.counts)
        if task.overall.other_counts is not None and (theirs := _missing(task.overall.other_counts)):
            said.append(f"in the other table {' and '.join(theirs)}")
        if task.without_reference:
            said.append(f"{task.without_reference:,} documents without a reference")
        if task.without_document:
            said.append(f"{task.without_document:,} outputs without a document in the references")
        if said:
            yield f"{task.task}: of {count(task.overall.counts.references, 'reference')} " + "; ".join(said)


def _missing(counts: Counts) -> list[str]:
    names = (("missing", "no row"), ("rejected", "rejected"), ("failed", "failed"), ("empty", "empty"))
    return [f"{number:,} {said}" for name, said in names if (number := getattr(counts, name))]


def _show_slices(console: Console, tasks: Sequence[TaskResult], column: str, other: bool) -> None:
    """One table for the column: each task's name on a line of its own, its slices below it."""
    heading(console, f"By {one_line(column)}")
    rows: list[list[object]] = []
    shown = total = 0
    for task in tasks:
        pieces = [piece for piece in task.slices if piece.by == column]
        total += len(pieces)
        if not pieces or shown >= _MOST_SLICES:
            continue
        width = len(_columns("", other))
        rows.append([Text(one_line(_named(task.task, task.language)), style="bold"), *[""] * (width - 1)])
        for piece in pieces:
            rows += _rows(f"{piece.value}", piece.scored, piece, other)
        shown += len(pieces)
    console.print(table(_columns(one_line(column), other), rows))
    if shown < total:
        plain(console, f"{shown} of {total:,} slices; evaluation.json has all.", "dim")


def _show_verdict(console: Console, evaluation: Evaluation) -> None:
    """Which differences are significant, in a sentence each; and how many would look so by chance."""
    heading(console, f"Compared with {redact(str(evaluation.other))}")
    tested = [comparison for comparison in evaluation.comparisons if comparison.p is not None]
    if not tested:
        plain(console, "Nothing was tested: no document was scored, or bootstrap.samples is 0.", "dim")
        return
    named = [
        (task.task, metric, comparison)
        for task in evaluation.tasks
        for metric, comparison in task.overall.compared.items()
    ]
    clear = [entry for entry in named if entry[2].significant]
    for task, metric, found in clear:
        better = "better" if found.delta > 0 else "worse"
        plain(
            console,
            f"{task}: {metric} is significantly {better}, by {found.delta:+.2f} "
            f"({found.low:+.2f} to {found.high:+.2f}, p = {found.p:.3f}).",
        )
    rest = [entry for entry in named if not entry[2].significant]
    if rest:
        said = ", ".join(f"{task} {metric}" for task, metric, _ in rest)
        plain(console, f"Not significant: {said}.")
    chance = (1 - evaluation.level) * len(tested)
    if len(tested) > 1:
        made = count(len(tested), "comparison")
        plain(
            console,
            f"{made}, slices included, each at {1 - evaluation.level:.2g}: about {chance:.1f} of them would look "
            "significant by chance alone.",
            "dim",
        )


def _show_checks(console: Console, checks: Sequence[CheckedTask]) -> None:
    heading(console, "Checks without references")
    rows = [row for task in checks for row in _check_rows(task)]
    columns: list[Column] = ["task", "language", "check", ("found", "right"), ("of", "right"), ("for example", "fold")]
    console.print(table(columns, rows))
    if any(task.rows > task.checked for task in checks):
        plain(console, "Of larger tasks a sample was looked at; checks.rows makes it larger.", "dim")


def _check_rows(task: CheckedTask) -> Iterable[list[object]]:
    """A line for each check that found something or could not look, then for those that found nothing in as many."""
    rows: list[list[object]] = []
    if task.not_made:
        pairs = task.rows + task.not_made
        said = Text("rejected or failed: no text to look at", style="dim")
        rows.append(["not made", f"{task.not_made:,} ({task.not_made / pairs:.1%})", f"{pairs:,}", said])
    quiet: dict[int, list[str]] = {}
    for name, check in task.checks.items():
        if check.found:
            shown = "; ".join(f"{one_line(e['document_id'])} ({e['why']})" for e in check.examples[:_MOST_EXAMPLES])
            share = f"{check.found:,} ({check.found / check.looked_at:.1%})"
            rows.append([CHECKS[name], share, f"{check.looked_at:,}", shown])
        elif check.note:
            rows.append([CHECKS[name], Text("–", style="dim"), "", Text(one_line(check.note), style="dim")])
        else:
            quiet.setdefault(check.looked_at, []).append(CHECKS[name])
    name = "the rest" if rows or len(quiet) > 1 else "all"
    for looked_at, names in quiet.items():
        rows.append([Text(name, style="dim"), "0", f"{looked_at:,}", Text(", ".join(names), style="dim")])
    for number, row in enumerate(rows):
        yield [*((one_line(task.task), one_line(task.language or "")) if number == 0 else ("", "")), *row]
