"""`corpusmill verify`: what a table promises, looked at, and what does not hold named."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from infra.storage import redact
from pipelines.job import JobSpec
from pipelines.verification.report import FAILED, NOT_CHECKED, PASSED, Check, Found, Verification
from pipelines.verification.verify import verify_table

from .recorded import recorded_job
from .render import consoles, heading, json_text, plain, table
from .spec import load_job
from .text import count, one_line, short_path

_STYLES = {PASSED: "green", FAILED: "bold red", NOT_CHECKED: "yellow"}
EXIT_CODES = {PASSED: 0, FAILED: 1, NOT_CHECKED: 2}


def verify_path(path: str, *, job: Path | None, reproduce: int, seed: int, as_json: bool) -> int:
    """Check the table at `path` and show the result: the exit code, 0 when everything holds."""
    out, err = consoles()
    given = None if job is None else load_job(job).job

    def read_job(manifest: Mapping[str, Any]) -> JobSpec | str:
        return recorded_job(manifest) if given is None else given

    with err.status("reading the table") if err.is_terminal else nullcontext() as spinner:
        result = verify_table(
            path,
            read_job,
            reproduce=reproduce,
            seed=seed,
            say=lambda line: spinner.update(Text(redact(line))) if spinner else None,
        )
    if as_json:
        print(json_text(result.as_json()))
    else:
        show_verification(out, result)
    return EXIT_CODES[result.state]


def show_verification(console: Console, result: Verification) -> None:
    """The checks as a table, then what is wrong, what could not be checked and what is worth knowing."""
    console.print(Text(short_path(result.table), style="bold"), soft_wrap=True)
    if result.holder:
        plain(console, f"Run {result.holder} is writing to it: figures may move while they are read.", "yellow")
    console.print()
    rows = [(check.name, Text(check.state, style=_STYLES[check.state]), _looked_at(check)) for check in result.checks]
    console.print(table(["check", "", ("looked at", "fold")], rows))
    for check in result.checks:
        if check.problems:
            heading(console, f"{check.name} (expected: {check.claim})")
            _show_found(console, check.problems, "red")
    for check in result.checks:
        for reason in check.undone:
            plain(console)
            said = f"{check.name}, not checked: {one_line(redact(reason))}. {_remedy(check)}"
            plain(console, said.rstrip(), "yellow")
    noted = [check for check in result.checks if check.notes]
    if noted:
        heading(console, "Worth knowing")
    for check in noted:
        _show_found(console, check.notes, "dim", check.name)
    console.print()
    plain(console, _verdict(result), _STYLES[result.state])


def _looked_at(check: Check) -> str:
    return ", ".join(f"{what} {number:,}" for what, number in check.looked.items() if number) or "nothing is there"


def _show_found(console: Console, found: Mapping[str, Found], style: str, name: str | None = None) -> None:
    for what, each in found.items():
        times = f" ({each.count:,})" if each.count > 1 else ""
        plain(console, f"{f'{name}: ' if name else ''}{one_line(redact(what))}{times}", style)
        for example in each.examples:
            console.print(Padding(Text(one_line(redact(example))), (0, 0, 0, 2)))


def _remedy(check: Check) -> str:
    return "Set what it needs, or give the job file with --job." if check.name in ("source", "reproduced") else ""


def _verdict(result: Verification) -> str:
    if result.state == PASSED:
        return "Everything holds."
    failed = [check.name for check in result.checks if check.state == FAILED]
    if failed:
        return f"{count(len(failed), 'check')} failed: {', '.join(failed)}."
    return "What was checked holds; not everything could be checked."
