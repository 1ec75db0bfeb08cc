"""Small Parquet files that unpack to gigabytes: refused in one line, or read a little at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.storage import Location
from pipelines import page_limits
from pipelines.job import SourceSpec
from pipelines.page_limits import limits_of
from pipelines.read import Read, as_units
from pipelines.source import scan

ROOT = Path(__file__).parents[2]
MEGABYTE = 1 << 20
# In a process of its own, which is told how much memory it took beyond its imports.
_READ = """
import resource, sys
from pipelines.job import SourceSpec
from pipelines.read import Read, as_units
from pipelines.source import scan
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))
source = SourceSpec(path=sys.argv[1], id="id", text="body")
corpus = scan(source)
rows, problems, most = 0, set(), int(sys.argv[2])
for table in Read(source, corpus.carry)(as_units(corpus.row_groups, corpus.unreadable)):
    rows += table.num_rows
    problems |= set(table.column("problem").drop_null().to_pylist())
    if rows >= most:
        break
print(rows, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10, *problems, sep="|")
"""


def read(path: Path, most: int) -> tuple[int, int, list[str]]:
    """Rows, MiB and problems of reading the first `most` rows."""
    done = subprocess.run(
        [sys.executable, "-c", _READ, str(path), str(most)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows, mebibytes, *problems = done.stdout.strip().split("|")
    return int(rows), int(mebibytes), problems


def repeated(path: Path, column: str, rows: int, size: int) -> Path:
    """A file in which one value of `size` bytes, kept once, stands in every row of `column`."""
    one = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array(["x" * size]))
    other = pa.array([f"row-{n}" for n in range(rows)])
    columns = {"id": other, "body": other} | {column: one}
    pq.write_table(
        pa.table(columns), path, compression="zstd", dictionary_pagesize_limit=2 * size, row_group_size=rows,
        write_statistics=False, store_schema=False,
    )  # fmt: skip
    assert path.stat().st_size < 2 * MEGABYTE
    return path


def test_ids_that_a_dictionary_makes_large_are_refused(tmp_path: Path) -> None:
    """160 GB of ids from a file of kilobytes."""
    path = repeated(tmp_path / "a.parquet", "id", 20_000, 8 * MEGABYTE)
    rows, mebibytes, problems = read(path, 20_000)
    assert rows == 20_000 and mebibytes < 1000
    assert problems == ["row group 0: its ids repeat too many bytes to be read"]


def test_a_text_that_a_dictionary_makes_large_is_read_a_little_at_a_time(tmp_path: Path) -> None:
    path = repeated(tmp_path / "a.parquet", "body", 20_000, 8 * MEGABYTE)
    rows, mebibytes, problems = read(path, 100)
    assert rows >= 100 and problems == []
    assert mebibytes < 2000, "1,024 rows at once would be 8 GB"


def test_a_file_that_claims_too_many_rows_is_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would be a row of the table, of which pyarrow writes 64 million nulls into 100 kB."""
    monkeypatch.setattr(page_limits, "MAX_ROWS", 2)
    for name, rows in (("a", 3), ("b", 2)):
        pq.write_table(pa.table({"id": ["x"] * rows, "body": ["y"] * rows}), tmp_path / f"{name}.parquet")
    corpus = scan(SourceSpec(path=str(tmp_path), id="id", text="body"))
    assert [file.reason for file in corpus.unreadable] == ["row group 0 claims 3 rows; up to 2 in one are read"]
    assert [group.rows for group in corpus.row_groups] == [2]


def text_file(path: Path, **options: object) -> Path:
    table = pa.table({"id": ["a", "b", "c"], "body": ["x" * 4 * MEGABYTE] * 3})
    pq.write_table(table, path, compression="zstd", use_dictionary=False, data_page_size=1, **options)
    return path


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_a_row_group_that_unpacks_to_too_much_is_refused_and_its_rows_are_told(tmp_path, monkeypatch, version) -> None:
    path = text_file(tmp_path / "a.parquet", data_page_version=version, write_batch_size=1)
    assert path.stat().st_size < MEGABYTE
    source = SourceSpec(path=str(path), id="id", text="body")
    corpus = scan(source)
    monkeypatch.setattr(page_limits, "MAX_GROUP_BYTES", 10 * MEGABYTE)
    [table] = Read(source, corpus.carry)(as_units(corpus.row_groups))
    assert table.column("source_row").to_pylist() == [0, 1, 2]
    [problem] = set(table.column("problem").to_pylist())
    assert problem.startswith("row group 0 unpacks to 12,") and problem.endswith("are read")


def test_the_pages_are_looked_at_and_not_the_footers_word(tmp_path: Path) -> None:
    path = text_file(tmp_path / "a.parquet", write_batch_size=1)

    class Lying:
        """A footer that claims a byte."""

        def __init__(self, true: object) -> None:
            self._true = true

        def __getattr__(self, name: str) -> object:
            if name in ("row_group", "column"):
                return lambda n: Lying(getattr(self._true, name)(n))
            return 1 if name == "total_uncompressed_size" else getattr(self._true, name)

    with Location(str(path)).open_input() as opened:
        lying = Lying(pq.read_metadata(path))
        whole = limits_of(opened, lying, 0, ["id", "body"], local=True)  # type: ignore[arg-type]
    # A row of 4 MiB: 64 of them are what is decoded at once.
    assert whole.problem is None and 60 <= whole.rows <= 64


def test_ordinary_files_are_read_as_before(tmp_path: Path) -> None:
    rows = 30_000
    table = pa.table(
        {
            "id": [f"doc-{n}" for n in range(rows)],
            "body": ["a text " * (n % 50) for n in range(rows)],
            "photos": [[b"\x89PNG" * (n % 7)] * (n % 3) for n in range(rows)],
        }
    )
    options: list[dict] = [
        {}, {"data_page_version": "2.0", "compression": "zstd"}, {"use_dictionary": False, "compression": "gzip"},
        {"write_page_index": True, "write_page_checksum": True, "compression": "none"}, {"data_page_size": 100},
    ]  # fmt: skip
    for number, option in enumerate(options):
        path = tmp_path / f"{number}.parquet"
        pq.write_table(table, path, row_group_size=10_000, **option)
        source = SourceSpec(path=str(path), id="id", text="body", images="photos", filter=[["id", "!=", "doc-7"]])
        corpus = scan(source)
        read = pa.concat_tables(Read(source, corpus.carry)(as_units(corpus.row_groups)))
        kept = table.filter(pa.compute.not_equal(table.column("id"), "doc-7"))
        assert read.column("document_id").to_pylist() == kept.column("id").to_pylist()
        assert read.column("text").to_pylist() == kept.column("body").to_pylist()
        assert read.column("problem").null_count == read.num_rows
        with Location(str(path)).open_input() as opened:
            metadata, found = pq.read_metadata(path), page_limits._chunks(page_limits._footer_of(opened))
            assert found is not None and len(found) == metadata.num_row_groups
            for group in range(metadata.num_row_groups):
                assert len(found[group]) == metadata.num_columns
                for n, ours in enumerate(found[group]):
                    theirs = metadata.row_group(group).column(n)
                    sizes = theirs.num_values, theirs.total_uncompressed_size, theirs.total_compressed_size
                    assert (ours.values, ours.unpacked, ours.packed) == sizes
                    assert ours.column == theirs.path_in_schema.partition(".")[0]
                    pages = list(page_limits._pages(opened, ours, True))
                    assert sum(page.values for page in pages if not page.dictionary) == theirs.num_values


@pytest.mark.parametrize(
    "junk", [b"", b"\x15", b"\xff" * 400, b"\x1c" * 400, b"\x15\x80" + b"\xff" * 90, b"\x19\xf0" * 99]
)
def test_headers_that_are_none_end_the_look(tmp_path: Path, junk: bytes) -> None:
    (tmp_path / "x").write_bytes(junk)
    with Location(str(tmp_path / "x")).open_input() as opened:
        assert page_limits._header(opened, 0) is None
