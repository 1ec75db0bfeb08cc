"""Publishing while the store breaks: readers see whole files and each key once, and nothing is lost."""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from contextlib import contextmanager

import pyarrow.parquet as pq
import pytest
import s3fs

from infra.storage import Location, StorageError
from pipelines.publish import Publisher, write_work
from pipelines.resume import read_done
from tests.fault_proxy import QUICK, Fault
from tests.pipelines.rows import SCHEMA, key, row, rows
from tests.s3_server import SECRET_KEY

WORK_FILES, ROWS = 8, 6
LASTING = [Fault.UNAVAILABLE, Fault.RESET_AFTER, Fault.TORN_UPLOAD, Fault.STALL]


class Reader:
    """A reader of its own that only globs, and does not come through the proxy."""

    def __init__(self, endpoint: str, table: Location) -> None:
        self._fs = s3fs.S3FileSystem(endpoint_url=endpoint, use_listings_cache=False, skip_instance_cache=True)
        self._path = table.url.removeprefix("s3://")
        self.wrong: list[str] = []
        self.looks = 0

    def keys(self, zone: str) -> list[str]:
        found: list[str] = []
        for path in self._fs.glob(f"{self._path}/{zone}/**/*.parquet"):
            with self._fs.open(path) as opened:
                found += pq.ParquetFile(opened).read(["key"]).column("key").to_pylist()
        return found

    @contextmanager
    def watching(self):
        """Looks at results/ again and again while the block runs."""
        stop = threading.Event()

        def watch() -> None:
            seen: set[str] = set()
            while not stop.is_set():
                self.looks += 1
                try:
                    found = Counter(self.keys("results"))
                except Exception as error:
                    self.wrong.append(f"a file that is not whole: {error!r}")
                    continue
                if found and max(found.values()) > 1:
                    self.wrong.append("a key was seen twice")
                if not seen <= set(found):
                    self.wrong.append("a key that was there is gone")
                seen = set(found)

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


@pytest.fixture
def table(s3, stormy) -> Location:
    return Location(s3.url(uuid.uuid4().hex))


def work(number: int) -> tuple[list[dict], set[str], set[str]]:
    """Rows of one work file, some of them twice in the table, with the keys that belong in results/ and errors/."""
    good = [row(number * ROWS + n, task) for n in range(ROWS) for task in "ab"]
    bad = [row(10_000 + number, status="failed")]
    repeated = [row(0, "a")]
    return [*good, *bad, *repeated], {r["key"] for r in [*good, *repeated]}, {r["key"] for r in bad}


def write_all(table: Location) -> tuple[set[str], set[str]]:
    results: set[str] = set()
    errors: set[str] = set()
    for number in range(WORK_FILES):
        made, good, bad = work(number)
        write_work(table, f"r{number % 2}", rows(*made))
        results |= good
        errors |= bad
    return results, errors


def publisher(table: Location, run: str, **options) -> Publisher:
    return Publisher(table, run, "job-hash", SCHEMA, ["a", "b"], **options)


def check(reader: Reader, table: Location, results: set[str], errors: set[str]) -> None:
    assert sorted(reader.keys("results")) == sorted(results)
    assert sorted(reader.keys("errors")) == sorted(errors)
    assert reader.keys("_work") == [] and reader.wrong == []


@pytest.mark.parametrize("seed", range(4))
def test_a_storm_leaves_no_trace(seed, table, s3, proxy):
    reader = Reader(s3.endpoint, table)
    with proxy.breaking(*QUICK, rate=0.3, seed=seed, burst=1 + seed % 3) as counted:
        results, errors = write_all(table)
        with reader.watching():
            counts = publisher(table, "r8", target_bytes=20_000).publish(final=True)
        done = read_done(table)
    assert counted.total() >= 10 and reader.looks > 1
    assert counts["duplicates"] == WORK_FILES and counts["work_files"] == WORK_FILES
    check(reader, table, results, errors)
    assert {k.decode() if isinstance(k, bytes) else k for k in map(hex_key, done.keys)} == results | errors


def hex_key(raw: bytes) -> str:
    return raw.ljust(16, b"\0").hex()


@pytest.mark.parametrize("fault", LASTING, ids=lambda kind: kind.name)
@pytest.mark.parametrize("zone", ["results", "errors", "_work"])
def test_a_publisher_whose_store_fails_for_good_ends_in_one_line_and_the_next_completes(
    zone, fault, table, s3, proxy, stormy
):
    methods = ("DELETE", "POST") if zone == "_work" else ("PUT",)
    if fault is Fault.TORN_UPLOAD and zone == "_work":
        fault = Fault.RESET_BEFORE  # a deletion has no body
    results, errors = write_all(table)
    reader = Reader(s3.endpoint, table)
    stormy.setenv("CORPUSMILL_STORAGE_RETRY_SECONDS", "0.3")
    stormy.setenv("CORPUSMILL_STORAGE_STALL_SECONDS", "1" if fault is Fault.STALL else "30")
    with reader.watching():
        storm = proxy.breaking(fault, methods=methods, target=f"/{zone}/")
        with storm as counted, pytest.raises(StorageError) as ended:
            publisher(table, "r8").publish(final=True)
        said = str(ended.value)
        assert counted.total() >= 1 and f"/{zone}/" in said and "\n" not in said and SECRET_KEY not in said
        stormy.delenv("CORPUSMILL_STORAGE_RETRY_SECONDS")
        stormy.delenv("CORPUSMILL_STORAGE_STALL_SECONDS")
        publisher(table, "r9").publish(final=True)
    check(reader, table, results, errors)


def test_the_same_publisher_goes_on_when_the_store_is_back(table, s3, proxy, stormy):
    results, errors = write_all(table)
    reader, one = Reader(s3.endpoint, table), publisher(table, "r8")
    stormy.setenv("CORPUSMILL_STORAGE_RETRY_SECONDS", "0.3")
    with proxy.breaking(Fault.RESET_AFTER, methods=("PUT",), target="/results/b/"), pytest.raises(StorageError):
        one.publish(final=True)
    assert set(reader.keys("results")) >= {key(0, "a")}
    one.publish(final=True)
    check(reader, table, results, errors)
