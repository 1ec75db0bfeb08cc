"""`corpusmill status`: also of a table that is being written, or damaged."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from infra.storage import Location
from jobs import status as status_module
from jobs.status import read_status, show_status
from pipelines.errors import TableError
from pipelines.publish import write_work

from .tables import SCHEMA, row, write_table


def test_a_work_file_that_is_published_meanwhile_counts_as_no_rows(tmp_path: Path, monkeypatch) -> None:
    import pyarrow as pa

    table = Location(str(write_table(tmp_path / "t", ok=2)))
    for number in (5, 6):
        write_work(table, "run-1", pa.Table.from_pylist([row(number)], schema=SCHEMA))
    listed = Location.list_files

    def then_deleted(self: Location, *suffix: str):
        files = listed(self, *suffix)
        if self.url.endswith("_work"):
            Location(files[0].url).delete()
        return files

    monkeypatch.setattr(Location, "list_files", then_deleted)
    status = read_status(table.url)
    assert status.work_rows == 1
    assert status.tasks["summary"].ok == 2


@pytest.mark.parametrize("zone", ["results", "errors"])
def test_a_damaged_file_is_named(tmp_path: Path, zone: str) -> None:
    path = write_table(tmp_path / "t", ok=2) / zone / "summary" / "part-0.parquet"
    path.write_bytes(b"PAR1" + b"\xff" * (path.stat().st_size - 40) + path.read_bytes()[-36:])
    with pytest.raises(TableError, match="cannot be read") as said:
        read_status(str(tmp_path / "t"))
    assert str(path) in str(said.value)
    assert "\n" not in str(said.value)


def test_an_interrupted_run_has_no_error(tmp_path: Path, monkeypatch, capsys) -> None:
    table = write_table(tmp_path / "t", ok=1)
    for run, code, error in (("r1", 130, "KeyboardInterrupt"), ("r2", 3, "https://me:marker@host is away")):
        (table / "_runs" / run).mkdir(parents=True)
        manifest = {"run_id": run, "exit": code, "error": error}
        (table / "_runs" / run / "run.json").write_text(json.dumps(manifest))
    screen = Console(file=io.StringIO(), width=100)
    monkeypatch.setattr(status_module, "consoles", lambda: (screen, screen))
    show_status(str(table), as_json=False)
    text = screen.file.getvalue()
    assert "interrupted" in text
    assert "KeyboardInterrupt" not in text
    assert "r2: https://***@host is away" in text
    show_status(str(table), as_json=True)
    assert "KeyboardInterrupt" not in capsys.readouterr().out
