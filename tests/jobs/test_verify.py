"""`corpusmill verify` and `corpusmill trace` as a person meets them: exit codes, widths, JSON, nothing unsafe."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from infra.storage import Location
from jobs.cli import main
from jobs.trace import show_trace
from jobs.verify import show_verification
from pipelines.lease import Lease
from pipelines.publish import write_work
from pipelines.trace import SourceNow, Traced
from pipelines.verification.report import Check, Verification
from tests.checkpoints import Shape, make_checkpoint
from tests.pipelines.corpora import documents, write_shards
from tests.pipelines.whole_table import SUMMARY, job_text, run_here

from .tables import SCHEMA, TEXT, row, write_table


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two documents summarised; their job file names its folder by ${WHERE}."""
    folder = tmp_path_factory.mktemp("whole")
    model = make_checkpoint(folder / "model", Shape(name="pipeline", kv_heads=1, window=16, eos_scale=1.1))
    rows = [{**row, "photos": []} for row in documents(4) if row["body"]][:2]
    write_shards(folder / "corpus", rows, shards=1, group=2)
    (folder / "job.yaml").write_text(job_text(folder, model, [SUMMARY]))
    run_here(job_text("${WHERE}", model, [SUMMARY]), job_text(folder, model, [SUMMARY]))
    return folder


def call(capsys, *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(words)
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


def shown(width: int, show, *what) -> str:
    screen = Console(file=io.StringIO(), width=width)
    show(screen, *what)
    text = screen.file.getvalue()
    assert all(len(line) <= width for line in text.splitlines())
    return text


def test_exit_codes(folder, tmp_path, capsys, monkeypatch) -> None:
    table = str(folder / "table")
    monkeypatch.delenv("WHERE", raising=False)
    code, out, err = call(capsys, "verify", table)
    assert (code, err) == (2, "")
    assert "variable WHERE is not set" in " ".join(out.split()) and "--job" in out
    code, out, _ = call(capsys, "verify", table, "--job", str(folder / "job.yaml"), "--reproduce", "1")
    assert code == 0 and "Everything holds." in out and "rows equal 1" in out
    monkeypatch.setenv("WHERE", str(folder))
    assert call(capsys, "verify", table)[0] == 0
    code, out, _ = call(capsys, "verify", str(write_table(tmp_path / "t", ok=2)))
    assert code == 1 and "checks failed: files, rows, runs." in out
    code, out, err = call(capsys, "verify", str(tmp_path / "nothing"))
    assert (code, out) == (3, "") and err.count("\n") == 1 and "there is no table here" in err
    code, _, err = call(capsys, "verify", table, "--job", str(tmp_path / "no.yaml"))
    assert code == 2 and "no such file" in err
    code, out, err = call(capsys, "trace", table, "abcdef0123")
    assert (code, out) == (3, "") and err.count("\n") == 1 and "no row has a key" in err


def test_json_for_programs(folder, capsys, monkeypatch) -> None:
    monkeypatch.setenv("WHERE", str(folder))
    _, out, _ = call(capsys, "verify", str(folder / "table"), "--json")
    said = json.loads(out)
    assert said["state"] == "passed" and said["running"] is None
    assert {check["name"]: check["state"] for check in said["checks"]}["keys"] == "passed"
    key = next(pq.read_table(path).column("key")[0].as_py() for path in folder.glob("table/results/summary/*.parquet"))
    code, out, _ = call(capsys, "trace", str(folder / "table"), key[:6], "--json")
    said = json.loads(out)
    assert code == 0 and said["row"]["key"] == key and said["source"]["same"] is True and said["asked"] is True
    code, out, _ = call(capsys, "trace", str(folder / "table"), key[:6])
    assert code == 0 and "Summarize in English:" in out and "the same as then" in out


def test_a_table_that_is_being_written_says_so(tmp_path, capsys) -> None:
    table = Location(str(write_table(tmp_path / "t", ok=2)))
    with Lease.acquire(table, "r9", "job"):
        _, out, _ = call(capsys, "verify", table.url)
    assert "Run r9 is writing to it: figures may move" in " ".join(out.split())


@pytest.mark.parametrize("width", [80, 60])
def test_a_verification_fits_and_holds_nothing_unsafe(width: int) -> None:
    good, bad, undone = Check("keys", "each key stands once"), Check("rows", "every row"), Check("source", "hashes")
    good.saw("keys in results/", 12_345)
    bad.wrong("a row is \x1b[31mred\u202e", f"{'0' * 32} in results/summary/{'long-' * 12}.parquet", 1_234)
    undone.left_out("https://me:marker@host/x is away")
    good.note("worth a look", "somewhere")
    text = shown(width, show_verification, Verification(table="s3://b/t", holder=None, checks=[good, bad, undone]))
    assert "keys in results/ 12,345" in text and "(1,234)" in text and "1 check failed: rows." in text
    assert "\x1b" not in text and "\u202e" not in text and "marker" not in text


@pytest.mark.parametrize("width", [80, 60])
def test_a_trace_fits_and_holds_nothing_unsafe(width: int) -> None:
    found = Traced(
        zone="results",
        file="results/summary/f.parquet",
        row=row(1),
        run=None,
        task=None,
        source=SourceNow(path="https://me:marker@host/x.parquet", row=1, text=TEXT * 100, same=False),
    )
    text = shown(width, show_trace, found)
    assert "another one than then" in text and "gone, or never written" in text and "…" in text
    assert "\x1b" not in text and "\u202e" not in text and "marker" not in text


def test_work_that_nobody_has_published_is_traced(tmp_path, capsys, monkeypatch) -> None:
    for name, value in (("AWS_EC2_METADATA_DISABLED", "true"), ("AWS_ENDPOINT_URL", "http://127.0.0.1:9")):
        monkeypatch.setenv(name, value)
    table = Location(str(tmp_path / "t"))
    write_work(table, "run-1", pa.Table.from_pylist([row(5)], schema=SCHEMA))
    code, out, _ = call(capsys, "trace", table.url, f"{5:032x}")
    # Its source is on a bucket that cannot be read from here: that is said, and the rest is shown.
    assert "not compared: s3://corpus/part-0.parquet: " in " ".join(out.split())
    assert code == 0 and "finished; the next publish puts it into the table" in " ".join(out.split())
