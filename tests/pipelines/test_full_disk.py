"""Publishing onto a disk that fills up, and with temporary files that do: what is done stays, the next run goes on."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from infra.storage import Location, Problem, StorageError
from pipelines.publish import Publisher, write_work
from tests.pipelines.rows import SCHEMA, row, rows, visible
from tests.small_disk import resize, run_with_limit, small_disk


def large_rows(number: int) -> list[dict]:
    """Rows of about 200 kB that do not compress."""
    chance = random.Random(number)
    return [{**row(number * 10 + n), "text": chance.randbytes(10_000).hex()} for n in range(10)]


def publisher(table: Location, run: str) -> Publisher:
    return Publisher(table, run, "job-hash", SCHEMA, ["a"])


def test_a_table_whose_disk_is_full_keeps_its_files_and_goes_on_when_there_is_room(tmp_path):
    with small_disk(tmp_path / "disk", 1500) as disk:
        table, written = Location(str(disk / "table")), set[str]()

        def fill() -> None:
            for number in range(100):
                made = large_rows(number)
                write_work(table, "r1", rows(*made))
                written.update(each["key"] for each in made)

        with pytest.raises(StorageError) as full:
            fill()
        assert full.value.problem is Problem.FULL and "\n" not in str(full.value)
        files = [path for path in Path(table.url).rglob("*") if path.is_file()]
        assert written and all(path.suffix == ".parquet" for path in files)
        assert sum(pq.read_metadata(path).num_rows for path in files) == len(written)
        with pytest.raises(StorageError, match="no space left") as full:
            publisher(table, "r2").publish(final=True)
        assert full.value.problem is Problem.FULL
        assert set(visible(table.url)) <= written and sorted(visible(table.url, "_work")) == sorted(written)
        resize(disk, 50_000)
        publisher(table, "r3").publish(final=True)
        assert sorted(visible(table.url)) == sorted(written) and visible(table.url, "_work") == []


def test_temporary_files_without_room_end_a_publish_and_change_nothing(tmp_path):
    table = Location(str(tmp_path / "table"))
    written = set()
    for number in range(3):
        made = large_rows(number)
        write_work(table, "r1", rows(*made))
        written |= {each["key"] for each in made}
    script = (
        "import sys; from infra.storage import Location, StorageError; from pipelines.publish import Publisher\n"
        "from tests.pipelines.rows import SCHEMA\n"
        "try: Publisher(Location(sys.argv[1]), 'r2', 'job-hash', SCHEMA, ['a']).publish(final=True)\n"
        "except StorageError as error: print(error.problem, error, sep='|')"
    )
    done = run_with_limit(script, table.url, file_bytes=100_000)
    problem, said = done.stdout.strip().split("|")
    assert problem == "full" and "TMPDIR" in said and done.stderr == "" and done.returncode == 0
    assert visible(table.url) == [] and sorted(visible(table.url, "_work")) == sorted(written)
    publisher(table, "r3").publish(final=True)
    assert sorted(visible(table.url)) == sorted(written)
