"""A full disk: the old file stays, nothing of the new one does, and one line says what to do."""

from __future__ import annotations

import errno
import os
import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.storage import Location, Problem, StorageError, explain, full_scratch, scratch_folder
from tests.small_disk import run_with_limit, small_disk

LARGE = random.Random(1).randbytes(3 << 20)


def ways(local: Path) -> dict[str, Callable[[Location], object]]:
    local.write_bytes(LARGE)
    return {
        "write": lambda file: file.write_bytes(LARGE),
        "upload": lambda file: file.upload(local),
        "create": lambda file: file.parent.child("new").create_exclusive(LARGE),
    }


@pytest.mark.parametrize("way", ["write", "upload", "create"])
def test_a_full_file_system_keeps_what_was_there(way, tmp_path):
    write = ways(tmp_path / "local")[way]
    with small_disk(tmp_path / "disk", 2048) as disk:
        file = Location(str(disk)).child("table", "a.parquet")
        file.write_bytes(b"old")
        with pytest.raises(StorageError) as full:
            write(file)
        assert full.value.problem is Problem.FULL and "\n" not in str(full.value)
        assert str(disk) in str(full.value) and "no space left" in str(full.value)
        assert file.read_bytes() == b"old" and os.listdir(disk / "table") == ["a.parquet"]
        # What was half written gave its space back.
        file.write_bytes(LARGE[: 1 << 20])
        assert file.read_bytes() == LARGE[: 1 << 20]


@pytest.mark.parametrize("way", ["write", "upload", "create"])
def test_a_file_that_may_not_grow_keeps_what_was_there(way, tmp_path):
    ways(tmp_path / "local")
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "a.parquet").write_bytes(b"old")
    script = (
        "import sys; from pathlib import Path; from infra.storage import Location, StorageError, Problem\n"
        "way, local, url = sys.argv[1:]\n"
        "file, data = Location(url), Path(local).read_bytes()\n"
        "try:\n"
        "    if way == 'write': file.write_bytes(data)\n"
        "    if way == 'upload': file.upload(local)\n"
        "    if way == 'create': file.parent.child('new').create_exclusive(data)\n"
        "except StorageError as error:\n"
        "    print(error.problem, error, sep='|')"
    )
    file = tmp_path / "table" / "a.parquet"
    done = run_with_limit(script, way, str(tmp_path / "local"), str(file), file_bytes=1 << 20)
    assert done.returncode == 0, done.stderr
    problem, said = done.stdout.strip().split("|")
    assert problem == "full" and str(tmp_path) in said and "ulimit" in said
    assert file.read_bytes() == b"old" and os.listdir(tmp_path / "table") == ["a.parquet"]


def test_temporary_files_that_fill_the_disk_say_so(tmp_path, monkeypatch):
    with small_disk(tmp_path / "disk", 2048) as disk:
        monkeypatch.setattr(tempfile, "tempdir", str(disk))
        with pytest.raises(StorageError, match="TMPDIR") as full, scratch_folder() as scratch:
            (scratch / "part").write_bytes(LARGE)
        assert full.value.problem is Problem.FULL and str(disk) in str(full.value)
        assert os.listdir(disk) == []
        (disk / "filled").write_bytes(LARGE[: 2 << 20])
        with pytest.raises(StorageError) as full, scratch_folder() as scratch:
            (scratch / "part").write_bytes(b"more")
        assert full.value.problem is Problem.FULL


def test_no_folder_for_temporary_files_is_said_in_one_line(monkeypatch):
    def none() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    with pytest.raises(StorageError, match="set TMPDIR") as ended, scratch_folder():
        pass
    assert ended.value.problem is Problem.FULL


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_every_kind_of_full_is_full(number):
    assert explain(OSError(number, os.strerror(number)), "/x").problem is Problem.FULL
    with pytest.raises(StorageError) as full, full_scratch("/x"):
        raise OSError(number, os.strerror(number))
    assert full.value.problem is Problem.FULL
    with pytest.raises(OSError, match="denied"), full_scratch("/x"):
        raise PermissionError(errno.EACCES, "denied")
