"""Every operation on a bucket while its requests break in every way: the same bytes in the end, or one clear line."""

from __future__ import annotations

import hashlib
import os
import random
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra import retry, s3
from infra.storage import Location, Problem, StorageError, expand, stage_model
from tests.fault_proxy import QUICK, SILENT, Fault, FaultProxy, fault_proxy
from tests.s3_server import SECRET_KEY, S3Server, s3_server

SEEDS = range(3)
UPLOADS = {Fault.RESET_UPLOAD, Fault.TORN_UPLOAD, Fault.STALL_UPLOAD}
DOWNLOADS = {Fault.RESET_DOWNLOAD, Fault.TRUNCATED, Fault.STALL_BODY, Fault.CRAWL, Fault.DRIP}
# Answers and ends that say no; the slow ones only take their time.
HARD = [kind for kind in QUICK if kind is not Fault.DRIP]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture(scope="module")
def proxy(server: S3Server) -> Iterator[FaultProxy]:
    with fault_proxy(server.endpoint) as running:
        yield running


@pytest.fixture
def settings(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Clients come through the proxy, and need not wait as long as in earnest."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    monkeypatch.setenv("CORPUSMILL_STORAGE_RETRY_SECONDS", "60")
    monkeypatch.setattr(retry, "_FIRST_SECONDS", 0.01)
    return monkeypatch


@pytest.fixture
def folder(server: S3Server, settings) -> Location:
    return Location(server.url(uuid.uuid4().hex))


@pytest.fixture
def beside(server: S3Server, settings) -> Callable[[Callable[[], object]], object]:
    """Calls something with the proxy left out: what the store really holds."""

    def call(look: Callable[[], object]) -> object:
        with pytest.MonkeyPatch.context() as direct:
            direct.setenv("AWS_ENDPOINT_URL", server.endpoint)
            return look()

    return call


def bytes_of(seed: int, size: int = 30_000) -> bytes:
    return random.Random(seed).randbytes(size)


def write(folder: Location, seed: int) -> object:
    folder.child("written").write_bytes(bytes_of(seed))
    return None


def upload(folder: Location, seed: int) -> object:
    local = Path(os.environ["TEST_FOLDER"], "local")
    local.write_bytes(bytes_of(seed))
    folder.child("written").upload(local)
    return None


def create(folder: Location, seed: int) -> object:
    assert folder.child(f"new-{seed}").create_exclusive(bytes_of(seed))
    return None


def delete(folder: Location, seed: int) -> object:
    folder.child(f"old-{seed}").delete()
    return None


def read(folder: Location, seed: int) -> object:
    return folder.child("there", "a.bin").read_bytes()


def part_read(folder: Location, seed: int) -> object:
    file = folder.child("there", "a.bin")
    return file.fs.cat_file(file.path, start=1000, end=20_000)


def opened(folder: Location, seed: int) -> object:
    with folder.child("there", "t.parquet").open_input() as source:
        file = pq.ParquetFile(source)
        return [file.read_row_group(n).column("a").to_pylist() for n in (2, 0, 1)]


def download(folder: Location, seed: int) -> object:
    local = Path(os.environ["TEST_FOLDER"], "copy")
    folder.child("there", "a.bin").download(local)
    return local.read_bytes()


def listed(folder: Location, seed: int) -> object:
    return [folder.below(file) for file in folder.child("there").list_files("")]


def globbed(folder: Location, seed: int) -> object:
    return [folder.below(file) for file in expand(f"{folder.url}/th*/*.parquet")]


def info(folder: Location, seed: int) -> object:
    file = folder.child("there", "a.bin")
    return file.info().size, file.exists(), file.modified() is not None, folder.child("absent").info()


OPERATIONS = [write, upload, create, delete, read, part_read, opened, download, listed, globbed, info]
WRITING = [write, upload, create]


def fits(operation: Callable, fault: Fault) -> bool:
    if fault in UPLOADS:
        return operation in WRITING
    return fault not in DOWNLOADS or operation in (read, part_read, opened, download, listed, globbed)


def cases(operations: list[Callable], faults: Iterable[Fault]) -> pytest.MarkDecorator:
    """A test for each operation and each fault that it can meet."""
    chosen = [pytest.param(o, f, id=f"{o.__name__}-{f.name.lower()}") for o in operations for f in faults if fits(o, f)]
    return pytest.mark.parametrize(("operation", "fault"), chosen)


@pytest.fixture
def filled(folder: Location, beside, settings, tmp_path: Path) -> Location:
    """A folder with something to read, list and delete."""
    settings.setenv("TEST_FOLDER", str(tmp_path))
    table = pa.table({"a": range(3000), "b": [bytes_of(n, 400) for n in range(3000)]})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=1000)

    def fill() -> None:
        folder.child("there", "a.bin").write_bytes(bytes_of(100))
        folder.child("there", "t.parquet").upload(tmp_path / "t.parquet")
        for seed in SEEDS:
            folder.child(f"old-{seed}").write_bytes(b"old")

    beside(fill)
    return folder


def state(folder: Location) -> dict[str, str]:
    """Every file of the folder with a digest of its bytes."""
    files = folder.list_files("")
    return {folder.below(f): hashlib.sha256(Location(f.url).read_bytes()).hexdigest() for f in files}


@cases(OPERATIONS, QUICK)
def test_what_passes_is_waited_out(operation, fault, filled, proxy, beside):
    injected = 0
    changes = operation in [*WRITING, delete]
    for seed in SEEDS:
        before = beside(lambda: state(filled)) if changes else {}
        expected = beside(lambda seed=seed: operation(filled, seed))
        wanted = beside(lambda: state(filled)) if changes else {}
        # Back to where it was, and once more through the storm.
        beside(lambda before=before, wanted=wanted: put_back(filled, before, wanted))
        with proxy.breaking(fault, seed=seed, rate=0.7 if seed else 1.0, limit=3) as counted:
            assert operation(filled, seed) == expected
        if changes:
            assert beside(lambda: state(filled)) == wanted
        injected += counted.total()
        assert set(counted) <= {fault}
    assert injected >= (1 if fault is Fault.DRIP else 3), "the storm was none"


def put_back(folder: Location, before: dict[str, str], after: dict[str, str]) -> None:
    for name in set(after) - set(before):
        folder.child(name).delete()
    for name in set(before) - set(after):
        folder.child(name).write_bytes(b"old")


@pytest.mark.parametrize("step", ["uploads", "partNumber=", "uploadId="])
@pytest.mark.parametrize("fault", [kind for kind in HARD if kind not in DOWNLOADS], ids=lambda kind: kind.name)
def test_a_large_file_goes_up_in_parts_that_are_each_tried_again(
    step, fault, folder, proxy, beside, tmp_path, settings
):
    settings.setattr(s3, "PIECE_BYTES", 5 << 20)
    data = bytes_of(7, (12 << 20) + 12_345)
    (tmp_path / "large").write_bytes(data)
    methods = ("PUT",) if "part" in step else ("POST",)
    with proxy.breaking(fault, target=step, limit=2, methods=methods) as counted:
        folder.child("large.bin").upload(tmp_path / "large")
    # Creating an upload has no body worth tearing.
    assert counted.total() == 2 or (fault in UPLOADS and step == "uploads")
    assert beside(folder.child("large.bin").read_bytes) == data
    assert beside(lambda: len(folder.list_files(""))) == 1


def test_a_large_file_comes_down_in_pieces_each_tried_again(folder, proxy, beside, tmp_path, settings):
    settings.setattr(s3, "PIECE_BYTES", 1 << 20)
    data = bytes_of(8, (12 << 20) + 12_345)
    beside(lambda: folder.child("large.bin").write_bytes(data))
    with proxy.breaking(*HARD, rate=0.4, seed=3, methods=("GET",)) as counted:
        folder.child("large.bin").download(tmp_path / "copy")
        assert folder.child("large.bin").read_bytes() == data
    assert (tmp_path / "copy").read_bytes() == data and counted.total() >= 5


@cases([write, upload, read, opened, listed, info], SILENT)
def test_a_store_that_stalls_is_asked_again(operation, fault, filled, proxy, beside, settings):
    settings.setenv("CORPUSMILL_STORAGE_STALL_SECONDS", "0.5")
    expected = beside(lambda: operation(filled, 1))
    started = time.monotonic()
    with proxy.breaking(fault, limit=1) as counted:
        assert operation(filled, 1) == expected
    assert counted.total() == 1 and time.monotonic() - started < 20
    if operation in WRITING:
        assert beside(filled.child("written").read_bytes) == bytes_of(1)


@cases([write, upload, create, delete, read, opened, listed, globbed, info], [*HARD, *SILENT])
def test_a_store_that_fails_for_good_ends_in_one_line(operation, fault, filled, proxy, beside, settings):
    settings.setenv("CORPUSMILL_STORAGE_RETRY_SECONDS", "0.4")
    if fault in SILENT:
        settings.setenv("CORPUSMILL_STORAGE_STALL_SECONDS", "0.5")
    filled.child("there", "a.bin").info()  # it has answered before
    before = beside(lambda: state(filled))
    started = time.monotonic()
    with proxy.breaking(fault) as counted, pytest.raises(StorageError) as ended:
        operation(filled, 1)
    assert time.monotonic() - started < 20 and counted.total() >= 1
    said = str(ended.value)
    assert filled.url in said and "\n" not in said and SECRET_KEY not in said
    assert ended.value.problem in (Problem.BUSY, Problem.UNREACHABLE)
    assert re.search(r"\(\d+ (try|tries) in \d s\)$", said)
    after = beside(lambda: state(filled))
    # The effect may be there although nobody was told: then it is the whole one.
    whole = hashlib.sha256(bytes_of(1)).hexdigest()
    changed = {name: digest for name, digest in after.items() if before.get(name) != digest}
    assert all(digest == whole for digest in changed.values()), "half a file can be seen"
    assert set(before) - set(after) <= {"old-1"}


def test_an_upload_that_is_not_taken_ends_and_is_made_again(folder, proxy, beside, settings):
    # More than the buffers on the way hold: nobody is waiting for an answer yet, and no read can time out.
    data = bytes_of(6, 12 << 20)
    settings.setattr(retry, "_SLOWEST_BYTES", 8 << 20)
    settings.setenv("CORPUSMILL_STORAGE_STALL_SECONDS", "2")
    started = time.monotonic()
    with proxy.breaking(Fault.STALL_UPLOAD, limit=1) as counted:
        folder.child("written").write_bytes(data)
    assert counted.total() == 1 and time.monotonic() - started < 60
    assert beside(folder.child("written").read_bytes) == data


def test_a_listing_that_fails_is_no_empty_folder(filled, proxy, settings):
    """fsspec's glob takes an OSError of a listing for a folder without files: a corpus would be short of them."""
    settings.setenv("CORPUSMILL_STORAGE_RETRY_SECONDS", "0.3")
    glob = f"{filled.url}/*/*.parquet"
    assert len(expand(glob)) == 1
    with proxy.breaking(Fault.SLOW_DOWN, target="list-type=2.*th"), pytest.raises(StorageError, match="overloaded"):
        expand(glob)
    with proxy.breaking(Fault.FORBIDDEN, target="list-type=2.*there"), pytest.raises(StorageError, match="denied"):
        expand(glob)
    settings.setenv("AWS_SECRET_ACCESS_KEY", "another")
    with pytest.raises(StorageError, match="secret key"):
        expand(glob)
    with pytest.raises(StorageError, match="secret key"):
        expand("s3://no-such-bucket/*.parquet")


def test_a_file_that_changes_while_it_is_open_is_said_to_have_changed(filled, beside, tmp_path):
    file = filled.child("there", "t.parquet")
    with file.open_input() as source:
        parquet = pq.ParquetFile(source)
        beside(lambda: file.write_bytes(bytes_of(5, source.size)))
        with pytest.raises(StorageError, match="the file changed while it was read; run the same command again"):
            parquet.read_row_group(0)


def test_what_does_not_pass_is_not_tried_again(filled, proxy, settings):
    absent = filled.child("absent")
    before = proxy.requests
    assert absent.info() is None and proxy.requests - before == 2
    for ask, most in ((absent.read_bytes, 1), (absent.open_input, 2)):
        before = proxy.requests
        with pytest.raises(StorageError) as missing:
            ask()
        assert missing.value.problem is Problem.MISSING and proxy.requests - before == most
    settings.setenv("AWS_SECRET_ACCESS_KEY", "another")
    before = proxy.requests
    with pytest.raises(StorageError) as refused:
        absent.write_bytes(b"1")
    assert refused.value.problem is Problem.CREDENTIALS and proxy.requests - before == 1


def test_a_store_that_is_gone_for_a_moment_is_waited_for(filled, server, settings):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    file = filled.child("there", "a.bin")
    with fault_proxy(server.endpoint, port):
        assert file.info().size == 30_000
    came: list[bytes] = []
    reader = threading.Thread(target=lambda: came.append(file.read_bytes()))
    reader.start()
    time.sleep(1.0)
    assert not came
    with fault_proxy(server.endpoint, port):
        reader.join(30)
    assert came == [bytes_of(100)]


def test_a_store_that_was_given_up_is_asked_briefly_until_it_answers(filled, proxy, settings):
    settings.setenv("CORPUSMILL_STORAGE_RETRY_SECONDS", "1.5")
    settings.setattr(s3, "_BRIEF_SECONDS", 0.2)
    file = filled.child("there", "a.bin")
    assert file.exists()

    def seconds() -> float:
        started = time.monotonic()
        with proxy.breaking(Fault.UNAVAILABLE), pytest.raises(StorageError):
            file.read_bytes()
        return time.monotonic() - started

    first, second = seconds(), seconds()
    assert first >= 1.5 > 1.0 > second, "a run that ends would wait anew at each thing it still does"
    assert file.read_bytes() == bytes_of(100)
    assert seconds() >= 1.5


def test_what_can_wait_is_not_tried_for_long(filled, proxy):
    with retry.impatient(0.3), proxy.breaking(Fault.SLOW_DOWN), pytest.raises(StorageError, match=r" in \d s"):
        filled.child("there", "a.bin").read_bytes()


def test_a_model_is_staged_through_a_storm(folder, proxy, beside, tmp_path, settings):
    settings.setenv("CORPUSMILL_CACHE", str(tmp_path / "cache"))
    settings.setattr(s3, "PIECE_BYTES", 100_000)
    files = {"config.json": b"{}", "model.safetensors": bytes_of(9, 1_234_567)}
    beside(lambda: [folder.child(name).write_bytes(data) for name, data in files.items()])
    with proxy.breaking(*HARD, rate=0.3, seed=11) as counted:
        staged = Path(stage_model(folder.url))
    assert counted.total() >= 3
    assert {path.name: path.read_bytes() for path in staged.iterdir()} == files
