"""`corpusmill query`: what comes out, and what SQL cannot reach."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from jobs.choices import Format
from jobs.query import MAX_ROWS, query
from jobs.table_view import QueryError, open_table, run_sql
from pipelines.errors import TableError
from pipelines.schema import output_schema

from .tables import TEXT, write_table


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    return write_table(tmp_path_factory.mktemp("query") / "table", ok=70)


class Terminal(io.StringIO):
    """An output that a person looks at."""

    def isatty(self) -> bool:
        return True


def shown(
    table: Path, sql: str, width: int = 80, form: Format = Format.TABLE, kind: type[io.StringIO] = io.StringIO
) -> str:
    screen, out = io.StringIO(), kind()
    query(str(table), sql, form, Console(file=screen, width=width, highlight=False), out)
    assert all(len(line) <= width for line in screen.getvalue().splitlines())
    return screen.getvalue() + out.getvalue()


def test_a_result_as_a_table(table: Path) -> None:
    text = shown(table, "SELECT task, count(*) AS n, min(logprob) AS worst FROM results GROUP BY task ORDER BY task")
    assert text.split() == ["task", "n", "worst", "─" * len(text.splitlines()[1]), "summary", "70", "-3.12346"]


def test_both_views(table: Path) -> None:
    assert "empty_input" in shown(table, "SELECT error_code, error_message FROM errors")
    text = shown(table, "SELECT count(*) AS n FROM results r JOIN errors e USING (task)")
    assert text.split()[-1] == "140"


def test_control_characters_are_shown_not_sent(table: Path) -> None:
    for form in Format:
        text = shown(table, "SELECT text FROM results LIMIT 1", form=form, kind=Terminal)
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert r"\x1b[31m" in text or r"\u001b[31m" in text


def test_json_lines_read_back_as_they_were(table: Path) -> None:
    text = shown(table, "SELECT text, logprob, NULL AS nothing, 'nan'::DOUBLE AS odd FROM results", form=Format.JSON)
    rows = [json.loads(line) for line in text.splitlines()]
    assert len(rows) == 70
    assert rows[0] == {
        "text": "Ein Text mit \x1b[31mFarbe\nund \u202eZeile",
        "logprob": -3.123456789,
        "nothing": None,
        "odd": None,
    }


def test_csv_reads_back(table: Path) -> None:
    text = shown(table, "SELECT document_id, text, created_at FROM results ORDER BY source_row", form=Format.CSV)
    rows = list(csv.reader(io.StringIO(text)))
    assert rows[0] == ["document_id", "text", "created_at"]
    assert len(rows) == 71
    assert rows[1][1] == TEXT
    assert rows[1][2].startswith("2026-01-01 00:00:00")


@pytest.mark.parametrize("form", [Format.CSV, Format.JSON])
def test_no_character_is_changed_in_a_file(table: Path, form: Format) -> None:
    kept = [chr(code) for code in (*range(1, 0x20), 0x7F, 0x9B, 0x200B, 0x2028, 0x202E, 0xFEFF, 0x1F469)]
    values = [f"a{character}b" for character in [*kept, '"', "'", ",", "\\", "\r\n"]]
    sql = "SELECT unnest([" + ", ".join("'" + value.replace("'", "''") + "'" for value in values) + "]) AS value"
    text = shown(table, sql, form=form)
    if form is Format.CSV:
        assert [value for (value,) in csv.reader(io.StringIO(text, newline=""))] == ["value", *values]
    else:
        assert [json.loads(line)["value"] for line in text.split("\n")[:-1]] == values


def test_long_results_are_cut_with_a_note(table: Path) -> None:
    text = shown(table, "SELECT document_id FROM results")
    assert len(text.splitlines()) == MAX_ROWS + 3
    assert f"The first {MAX_ROWS} rows; --format csv or --format json gives all." in text
    assert "No rows." in shown(table, "SELECT document_id FROM results WHERE false")


@pytest.mark.parametrize("width", [80, 120])
def test_many_columns_become_blocks(table: Path, width: int) -> None:
    text = shown(table, "SELECT * FROM results LIMIT 2", width)
    assert "row 2" in text
    assert "document_sha256" in text


def test_sql_cannot_see_python(table: Path) -> None:
    secret = pa.table({"a": [1]})
    with pytest.raises(QueryError, match="there is no table secret; query the views results, errors and latest"):
        shown(table, "SELECT * FROM secret")
    assert secret.num_rows == 1


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("selec 1", "syntax error"),
        ("", "returns no rows"),
        ("-- only a comment", "returns no rows"),
        ("SELECT nope FROM results", 'Referenced column "nope" not found'),
        ("SELECT cast(document_id AS int) FROM results", "Could not convert"),
    ],
)
def test_wrong_sql_is_one_line(table: Path, sql: str, said: str) -> None:
    with pytest.raises(QueryError, match=said) as caught:
        shown(table, sql)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_no_table(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="there is no table here"):
        open_table(str(tmp_path / "nothing"))
    assert not (tmp_path / "nothing").exists()


def test_files_of_an_older_version_lack_columns(tmp_path: Path) -> None:
    table = write_table(tmp_path / "t", ok=2)
    newer = output_schema(pa.schema([("lang", pa.string()), ("extra", pa.int64())]))
    pq.write_table(newer.empty_table(), table / "results/summary/part-1.parquet")
    connection = open_table(str(table))
    with run_sql(connection, "SELECT count(*) AS n, count(extra) AS m FROM results") as reader:
        [row] = reader.read_all().to_pylist()
    assert row == {"n": 2, "m": 0}


def test_any_fsspec_url(tmp_path: Path) -> None:
    import fsspec

    write_table(tmp_path / "t", ok=3)
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "t"), "/query-test/t", recursive=True)
    try:
        connection = open_table("memory://query-test/t")
        with run_sql(connection, "SELECT count(*) AS n FROM results") as reader:
            assert reader.read_all().to_pylist() == [{"n": 3}]
    finally:
        memory.rm("/query-test", recursive=True)
