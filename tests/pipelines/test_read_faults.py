"""Reading a corpus while the store breaks: the same documents, rows and images as in calm weather."""

from __future__ import annotations

import time
import uuid

import pyarrow as pa
import pytest

from infra.storage import Location
from model_runtime.errors import ErrorCode, RequestError
from pipelines.errors import SourceError
from pipelines.job import SourceSpec
from pipelines.read import Read, as_units
from pipelines.source import Corpus, scan
from tests.fault_proxy import QUICK, Fault
from workers.image_reader import ImageReader

from .corpora import documents, picture, write_shards

COUNT, SHARDS, GROUP = 60, 4, 4


@pytest.fixture(scope="module")
def corpus(s3, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("corpus")
    write_shards(folder, documents(COUNT), SHARDS, GROUP)
    url = s3.url(uuid.uuid4().hex)
    for path in folder.iterdir():
        Location(url).child(path.name).upload(path)
    return url


def spec(url: str) -> SourceSpec:
    return SourceSpec.model_validate(
        {"path": url, "id": "doc_id", "text": "body", "images": "photos", "carry": ["year"]}
    )


def read_all(source: SourceSpec) -> tuple[Corpus, pa.Table]:
    found = scan(source)
    tables = Read(source, found.carry)(as_units(found.row_groups, found.unreadable))
    return found, pa.concat_tables(tables)


def seen(corpus):
    """All that a scan found, to be compared."""
    return corpus.files, corpus.unreadable, corpus.row_groups, corpus.carry, corpus.ids.tobytes(), corpus.asked


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("form", ["{}", "{}/*.parquet", "{}/shard-[0-9].parquet"], ids=["folder", "glob", "class"])
def test_the_same_rows_in_a_storm(form, seed, corpus, stormy, proxy):
    source = spec(form.format(corpus))
    calm, rows = read_all(source)
    assert rows.num_rows == COUNT and calm.documents == COUNT
    with proxy.breaking(*QUICK, rate=0.3, seed=seed, burst=1 + seed % 2) as counted:
        stormy_corpus, same = read_all(source)
    assert counted.total() >= 5
    assert seen(stormy_corpus) == seen(calm) and same.equals(rows)


@pytest.mark.parametrize("fault", [Fault.SLOW_DOWN, Fault.TRUNCATED, Fault.RESET_DOWNLOAD, Fault.STALL_BODY])
def test_a_store_that_fails_for_good_is_an_error_and_never_fewer_rows(fault, corpus, stormy, proxy):
    source = spec(corpus)
    found, _ = read_all(source)
    stormy.setenv("CORPUSMILL_STORAGE_RETRY_SECONDS", "0.3")
    stormy.setenv("CORPUSMILL_STORAGE_STALL_SECONDS", "1")
    shard = "shard-2"
    with proxy.breaking(fault, target=shard, methods=("GET",)), pytest.raises(SourceError, match=shard) as scanning:
        scan(source)
    with proxy.breaking(fault, target=shard, methods=("GET",)), pytest.raises(SourceError, match=shard) as reading:
        list(Read(source, found.carry)(as_units(found.row_groups)))
    for ended in (scanning, reading):
        assert (
            ended.value.exit_code == 3 and "\n" not in str(ended.value) and "run the same command" in str(ended.value)
        )


def test_images_in_a_storm_and_one_that_cannot_be_had(s3, stormy, proxy):
    folder = Location(s3.url(uuid.uuid4().hex))
    images = {f"{n}.png": picture(n) for n in range(12)}
    for name, data in images.items():
        folder.child(name).write_bytes(data)
    reader = ImageReader(folder.url)
    shard = folder.child("shard.parquet").url
    calm = {name: reader(name, shard) for name in images}
    assert {name: data for name, (data, _) in calm.items()} == images
    with proxy.breaking(*QUICK, rate=0.4, seed=1) as counted:
        assert {name: reader(name, shard) for name in images} == calm
    assert counted.total() >= 10
    started = time.monotonic()
    impatient = ImageReader(folder.url, timeout_seconds=0.5)
    with proxy.breaking(Fault.INTERNAL, target="/3.png"), pytest.raises(RequestError) as failed:
        impatient("3.png", shard)
    assert failed.value.code is ErrorCode.STORAGE and "3.png" in str(failed.value)
    assert time.monotonic() - started < 10
    assert impatient("4.png", shard) == calm["4.png"]
