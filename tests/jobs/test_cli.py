"""The command line as a person meets it: help, one-line errors, exit codes, widths, colours, progress."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from infra.storage import StorageError
from jobs import progress as progress_module
from jobs.cli import main
from jobs.failures import explain
from jobs.progress import Rates, line, shown
from jobs.render import nothing_to_do, show_estimate, show_plan, show_rows, show_run
from jobs.spec import LoadedJob
from jobs.text import count, duration, escape, one_line, rate, size
from model_runtime.errors import ModelError
from pipelines.errors import FailureRateError, SourceError, TableHeldError
from pipelines.reports import LengthBucket, PlanReport, Progress, RunReport, TaskCounts

from .tables import write_table

ROOT = Path(__file__).parents[2]


def call(capsys, *words: str) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of one command."""
    with pytest.raises(SystemExit) as caught:
        main(words)
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


def process(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    command = [sys.executable, "-m", "jobs.cli", *words]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, jobs.cli; print([m for m in ('ray', 'torch', 'pyarrow', 'duckdb') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert found.stdout.strip() == "[]"
    assert process("--help").returncode == 0


@pytest.mark.parametrize("command", [[], ["demo"], ["run"], ["plan"], ["status"], ["query"], ["verify"], ["trace"]])
@pytest.mark.parametrize("width", [80, 120])
def test_help_fits_the_terminal(command: list[str], width: int) -> None:
    done = process(*command, "--help", COLUMNS=str(width), TERMINAL_WIDTH=str(width), NO_COLOR="1")
    assert done.returncode == 0
    assert all(len(text) <= width for text in done.stdout.splitlines())
    assert "Usage: corpusmill" in done.stdout
    assert "\x1b" not in done.stdout


def test_version(capsys) -> None:
    code, out, _ = call(capsys, "--version")
    assert code == 0
    assert out.startswith("corpusmill 0.")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["run"], "Missing argument 'JOB'"),
        (["run", "x.yaml", "--sample", "0"], "Invalid value for '--sample'"),
        (["run", "x.yaml", "--retry", "all"], "'all' is not one of 'failed'"),
        (["run", "no-such.yaml"], "no-such.yaml: no such file"),
        (["plan", "no-such.yaml"], "no-such.yaml: no such file"),
        (["verify", "x", "--reproduce", "-1"], "Invalid value for '--reproduce'"),
        (["trace", "x", "xyz"], "'xyz' is not a key: give 6 to 32 of its hex digits"),
        (["query", "a", "b", "--format", "xml"], "'xml' is not one of 'table', 'csv', 'json'"),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(capsys, words: list[str], said: str) -> None:
    code, out, err = call(capsys, *words)
    assert (code, out) == (2, "")
    assert err.startswith("corpusmill: ")
    assert said in err
    assert err.count("\n") == 1


def test_a_job_file_gets_a_line_for_each_problem(capsys, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("name: a\nsorce: {}\nmodel: {path: m, bakend: x}\n")
    code, _, err = call(capsys, "run", str(path))
    assert code == 2
    lines = err.splitlines()
    assert len(lines) == 5
    assert all(text.startswith(f"corpusmill: {path}:") for text in lines)
    assert any("sorce: unknown key; did you mean source?" in text for text in lines)


def test_debug_shows_the_traceback_wherever_it_stands(capsys) -> None:
    for words in (["--debug", "run", "no-such.yaml"], ["run", "no-such.yaml", "--debug"]):
        code, _, err = call(capsys, *words)
        assert code == 2
        assert "Traceback" in err
        assert err.splitlines()[-1].startswith("corpusmill: ")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (SourceError("no column body"), 3, "no column body"),
        (TableHeldError("held by run x"), 5, "held by run x"),
        (FailureRateError("3% failed"), 4, "3% failed"),
        (ModelError("tensor\nis missing"), 3, "tensor is missing"),
        (StorageError("s3://b/c", "there is nothing here"), 3, "s3://b/c: there is nothing here"),
        (KeyboardInterrupt(), 130, "interrupted; what is made is kept"),
        (ZeroDivisionError("by\x1bzero"), 1, r"unexpected ZeroDivisionError: by\x1bzero (--debug shows where)"),
    ],
)
def test_what_goes_wrong_has_its_exit_code(error: BaseException, code: int, said: str) -> None:
    failure = explain(error)
    assert failure.exit_code == code
    assert failure.lines[0].startswith(said)


def test_our_errors_are_found_behind_others() -> None:
    class Wrapped(Exception):
        def __init__(self, cause: Exception) -> None:
            super().__init__("a task failed")
            self.cause = cause

    assert explain(Wrapped(ModelError("no weights"))) == (["no weights"], 3)
    chained = RuntimeError("outside")
    chained.__cause__ = SourceError("inside")
    assert explain(chained) == (["inside"], 3)


def test_no_secret_reaches_a_person(capsys, monkeypatch) -> None:
    monkeypatch.setenv("STORE_PASSWORD", "marker in the environment")
    said = "sftp://me:marker@host/t and https://host/i.png?sig=marker, with marker in the environment"
    for error in (SourceError(said), ModelError(said), ZeroDivisionError(said)):
        [line_] = explain(error).lines
        assert "marker" not in line_
        assert "host/t and https://host/i.png" in line_
    report = run_report(table="sftp://me:marker@host/t", warnings=[said], errors={"storage": (1, said)})
    assert "marker" not in drawn(show_run, report)
    assert "sftp://***@host/t" in drawn(show_run, report)

    def broken(*_: object, **__: object) -> None:
        raise SourceError(said) from ValueError(said)

    monkeypatch.setattr("jobs.status.show_status", broken)
    _, _, err = call(capsys, "--debug", "status", "x")
    assert "marker" not in err
    assert err.count("ValueError: sftp://***@host/t") == 1


def test_no_secret_is_said_on_the_way(capsys, monkeypatch, tmp_path: Path) -> None:
    said = "sftp://me:marker@host/t"
    plan = plan_report(table=said, warnings=[said], errors={"storage": (1, said)})
    assert "marker" not in drawn(show_plan, plan)

    def make(*_: object, say, **__: object) -> RunReport:
        say(f"reading {said}")
        return run_report(table=said)

    monkeypatch.setattr("pipelines.generate.run_job", make)
    monkeypatch.setattr("pipelines.plan.plan_job", lambda *_, **__: plan)
    monkeypatch.setattr("jobs.running.load_job", lambda path: LoadedJob(job=None, text=""))
    _, out, err = call(capsys, "run", "job.yaml")
    assert "reading sftp://***@host/t" in err
    _, json_out, _ = call(capsys, "plan", "job.yaml", "--json")
    assert json.loads(json_out)["table"] == "sftp://***@host/t"
    assert "marker" not in out + err + json_out


def test_every_exit_code_is_in_the_help_and_the_readme() -> None:
    text = process("run", "--help", COLUMNS="120", NO_COLOR="1").stdout
    readme = (ROOT / "README.md").read_text()
    for code in (0, 1, 2, 3, 4, 5, 130):
        assert f" {code} " in text[text.index("Exit codes:") :]
        assert f"\n| {code} | " in readme


def test_an_interrupt_is_130(capsys, monkeypatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("jobs.status.show_status", interrupted)
    code, _, err = call(capsys, "status", "x")
    assert code == 130
    assert err.strip() == "corpusmill: interrupted; what is made is kept, and the same command goes on from there"


def test_query_and_status_of_a_table(capsys, tmp_path: Path) -> None:
    table = write_table(tmp_path / "t", ok=3)
    code, out, err = call(capsys, "query", str(table), "SELECT count(*) AS n FROM results", "--format", "csv")
    assert (code, out, err) == (0, "n\n3\n", "")
    code, out, _ = call(capsys, "status", str(table))
    assert code == 0
    assert "5 rows in 2 files" in out
    assert "No run is writing to it." in out
    code, out, _ = call(capsys, "status", str(table), "--json")
    status = json.loads(out)
    assert status["tasks"] == {"summary": {"ok": 3, "rejected": 1, "failed": 1}}
    assert status["errors"]["engine_crash"] == {"rows": 1, "example": "the engine died"}
    for command in (["status", str(tmp_path / "none")], ["query", str(tmp_path / "none"), "SELECT 1"]):
        code, _, err = call(capsys, *command)
        assert code == 3
        assert "there is no table here" in err


def test_a_closed_pipe_is_quiet(tmp_path: Path) -> None:
    table = write_table(tmp_path / "t", ok=1)
    sql = "SELECT range FROM range(200000)"
    command = f"{sys.executable} -m jobs.cli query {table} '{sql}' --format csv | head -n 1"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("range\n", "")


def run_report(**values) -> RunReport:
    tasks = {
        "summary": TaskCounts(ok=18, rejected=1, already_ok=3, not_applicable=4),
        "to_de": TaskCounts(ok=1_234_567, failed=2),
        "a_task_with_a_name_of_sixty_four_characters_which_is_the_longest": TaskCounts(ok=1),
    }
    defaults = {
        "run_id": "r",
        "table": "/t/table",
        "documents": 26,
        "documents_made": 20,
        "tasks": tasks,
        "input_tokens": 3123,
        "output_tokens": 900,
        "seconds": 12.3,
        "generate_seconds": 8.1,
        "workers": 2,
        "errors": {
            "image_unreadable": (3, "image 1 cannot be\nopened: [red]it[/red] is \x1b[31mtruncated " + "x" * 99)
        },
        "warnings": ["task to_de: the model was not trained for [de]"],
    }
    return RunReport(**{**defaults, **values})


def drawn(show, *arguments, width: int = 80, terminal: bool = False) -> str:
    file = io.StringIO()
    show(Console(file=file, width=width, force_terminal=terminal, highlight=False), *arguments)
    return file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_a_finished_run(width: int) -> None:
    text = drawn(show_run, run_report(), width=width)
    commands = [part for part in text.splitlines() if part.startswith(("Table", "Query"))]
    assert all(len(part) <= width for part in text.splitlines() if part not in commands)
    assert "Made 1,234,586 rows from 20 documents in 12 s (2.5 documents/s, 497 tokens/s)." in " ".join(text.split())
    assert "[red]it[/red]" in text
    assert "[de]" in text
    assert "\x1b" not in text
    assert commands[1].startswith('Query  corpusmill query /t/table "SELECT')


def test_nothing_to_do_is_one_sentence() -> None:
    finished = {"summary": TaskCounts(already_ok=18, already_rejected=1, already_failed=2)}
    report = run_report(tasks=finished, documents_made=0, errors={}, warnings=[])
    assert nothing_to_do(report) == "Nothing to do: all 21 rows for 26 documents are in the table already."
    text = drawn(show_run, report)
    assert "2 rows failed earlier and stay so; `--retry failed` tries them again." in text
    assert "no documents" in nothing_to_do(run_report(documents=0, tasks={}))
    assert "no task applies" in nothing_to_do(run_report(tasks={"s": TaskCounts(not_applicable=26)}))


def test_a_sample_is_extrapolated() -> None:
    text = " ".join(drawn(show_estimate, run_report(documents=1_200_000), 2.5).split())
    assert "At that pace the whole corpus of 1,200,000 documents takes about 5 d 15 h and costs about 675.00." in text
    assert "costs" not in drawn(show_estimate, run_report(), None)
    assert "nothing to extrapolate from" in drawn(show_estimate, run_report(documents_made=0), None)


@pytest.mark.parametrize("width", [80, 120])
def test_rows_in_any_script_fit(width: int) -> None:
    rows = [
        ("観測報告-05-" + "長" * 40, "to_fr", "これは長い文章です。" * 40),
        ("a", "caption", ""),
        ("b", "x", "\x1b[2J\u202e"),
    ]
    from rich.cells import cell_len

    text = drawn(show_rows, rows, width=width)
    assert all(cell_len(part) <= width for part in text.splitlines())
    assert "(empty)" in text
    assert r"\x1b[2J\u202e" in text


def plan_report(**values) -> PlanReport:
    defaults = {
        "table": "s3://bucket/table",
        "files": 3,
        "source_bytes": 123_456_789,
        "documents": 2600,
        "documents_todo": 1200,
        "todo": {"summary": 1200},
        "tasks": {"summary": TaskCounts(already_ok=1400)},
        "buckets": [LengthBucket(max_tokens=512, documents=1000, tokens=300_000)],
        "input_tokens": 1_100_000,
        "max_output_tokens": 190_000,
        "errors": {"null_id": (2, "row 7 has no id")},
        "estimate_seconds": 4000,
        "estimate_basis": "3.2 documents/s in run x",
    }
    return PlanReport(**{**defaults, **values})


def test_a_plan() -> None:
    text = drawn(show_plan, plan_report())
    assert text.startswith("2,600 documents in 3 files, 123.5 MB; 1,200 have rows to make.")
    assert "up to 512       1,000   300,000" in text
    assert "about 1 h 7 min (3.2 documents/s in run x)" in text


def readings(number: int = 5) -> list[Progress]:
    return [
        Progress(
            documents=10 * n,
            documents_total=400,
            documents_made=10 * n,
            input_tokens=1000 * n,
            output_tokens=500 * n,
            ok=10 * n,
            rejected=1,
            failed=0,
            already=0,
            seconds=float(n * 5),
        )
        for n in range(number)
    ]


def test_the_pace_is_that_of_the_last_minute() -> None:
    rates = Rates()
    slow = readings(1)[0]
    rates.add(slow)
    for reading in readings(40)[20:]:
        rates.add(reading)
    assert rates.documents == pytest.approx(2.0)
    assert rates.tokens == pytest.approx(300.0)
    assert rates.left == pytest.approx((400 - 390) / 2)
    assert line(readings(40)[-1], rates) == (
        "390 of 400 documents (97%), 2.0 documents/s, 300 tokens/s, 5.0 s left, 1 rejected"
    )


def test_progress_off_a_terminal_is_plain_lines(monkeypatch) -> None:
    monkeypatch.setattr(progress_module, "PLAIN_EVERY", 0.0)
    file = io.StringIO()
    with shown(Console(file=file, width=80)) as on_progress:
        for reading in readings():
            on_progress(reading)
    lines = file.getvalue().splitlines()
    assert lines[0] == "0 of 400 documents (0%), 1 rejected"
    assert lines[-1] == "40 of 400 documents (10%), 2.0 documents/s, 300 tokens/s, 3 min left, 1 rejected"
    assert "\x1b" not in file.getvalue()


def test_progress_off_a_terminal_ends_with_where_it_stood() -> None:
    file = io.StringIO()
    with shown(Console(file=file, width=80)) as on_progress:
        for reading in readings():
            on_progress(reading)
    assert file.getvalue().count("\n") == 1


@pytest.mark.parametrize("width", [80, 120])
def test_progress_on_a_terminal_is_a_bar_that_fits(width: int) -> None:
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=True, color_system=None)
    with shown(console) as on_progress:
        for reading in readings():
            on_progress(reading)
        console.print("a line above the bar")
    text = file.getvalue()
    assert "40/400" in text
    assert ("2.0 docs/s · 300 tok/s" if width < 100 else "2.0 documents/s · 300 tokens/s") + " · 3 min left" in text
    assert "━" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.42, "0.4 s"), (45, "45 s"), (720, "12 min"), (3599, "1 h"), (12_000, "3 h 20 min"), (187_200, "2 d 4 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_numbers() -> None:
    assert [rate(v) for v in (0.0421, 3.21, 120.4, 4123, 41_234, 2e6)] == ["0.042", "3.2", "120", "4.1k", "41k", "2.0M"]
    assert [size(v) for v in (812, 1_400_000, 3_000_000_000_000)] == ["812 B", "1.4 MB", "3.0 TB"]
    assert [count(1, "document"), count(2400, "document")] == ["1 document", "2,400 documents"]


def test_nothing_unsafe_reaches_the_terminal() -> None:
    assert one_line("a\n b\t\x07\x9b\u2066c\u200b") == r"a b \x07\x9b\u2066c\u200b"
    assert escape("a\nb\tc\r", keep="\n") == "a\nb\\tc\\r"
    assert escape("naïve 日本語 عربي 👩‍👩‍👧") == "naïve 日本語 عربي 👩‍👩‍👧"
