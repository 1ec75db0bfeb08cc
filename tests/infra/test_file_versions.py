"""What may be trusted of a file from one run to the next."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta

import pytest

from infra.file_versions import etag_and_version
from infra.storage import Location


def test_an_etag_is_trusted():
    assert etag_and_version({"ETag": '"abc"', "LastModified": datetime.now(UTC)}, 3) == ("abc", "abc")


@pytest.mark.parametrize("kind", [float, datetime])
def test_a_time_is_trusted_once_it_is_old(kind):
    def ago(seconds: float) -> float | datetime:
        return time.time() - seconds if kind is float else datetime.now(UTC) - timedelta(seconds=seconds)

    etag, version = etag_and_version({"mtime": ago(60)}, 3)
    assert etag == version and etag.startswith("3-")
    assert etag_and_version({"mtime": ago(1)}, 3)[1] == ""
    assert etag_and_version({}, 3) == ("3-None", "")


def test_a_local_file_that_keeps_its_size_and_time_has_another_version(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"this")
    before, stat = Location(str(path)).info(), path.stat()
    assert before == Location(str(tmp_path)).list_files("")[0] and before.version.startswith(before.etag)
    time.sleep(0.02)
    path.write_bytes(b"that")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = Location(str(path)).info()
    assert after.etag == before.etag and after.version != before.version
