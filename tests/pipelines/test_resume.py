"""What a table holds is read from its rows alone."""

from __future__ import annotations

import pickle
import uuid

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.storage import Location
from pipelines.errors import TableError
from pipelines.keys import KeySet, hex_of, keys_of
from pipelines.publish import Publisher, write_work
from pipelines.resume import DoneIndex, read_done
from tests.pipelines.rows import SCHEMA, key, row, rows


def packed(*hexes: str) -> np.ndarray:
    return keys_of(pa.array(list(hexes), pa.string()))


def test_hex_and_bytes_are_the_same_keys():
    random = np.frombuffer(np.random.default_rng(0).bytes(16 * 1000), "S16")
    text = hex_of(random)
    assert (keys_of(text) == random).all()
    assert text[7].as_py() == random.tobytes()[7 * 16 : 8 * 16].hex()
    assert (keys_of(text.slice(5, 10)) == random[5:15]).all()
    assert (keys_of(pa.chunked_array([text, text.dictionary_encode().cast(pa.string())])) == np.tile(random, 2)).all()
    zeros = packed("00" * 16, "61" + "00" * 15)
    assert hex_of(zeros).to_pylist() == ["00" * 16, "61" + "00" * 15]
    assert len(keys_of(pa.array([], pa.string()))) == 0
    for bad in ("0" * 31, "g" * 32, "A" * 32, None):
        with pytest.raises(ValueError):
            keys_of(pa.array(["0" * 32, bad]))


def test_ok_beats_rejected_beats_failed_and_failed_keeps_the_most_attempts():
    keys = packed(*(key(i) for i in (1, 1, 2, 2, 3, 3, 4)))
    status = np.array([3, 1, 3, 2, 3, 3, 2], np.int8)
    attempts = np.array([3, 1, 2, 1, 1, 2, 1], np.int16)
    for order in (slice(None), slice(None, None, -1)):
        done = DoneIndex.build([(keys[order], status[order], attempts[order])])
        assert len(done) == 4 and (done.keys[1:] > done.keys[:-1]).all()
        found, tried = done.lookup(packed(*(key(i) for i in (1, 2, 3, 4, 5))))
        assert found.tolist() == [1, 2, 3, 2, 0] and tried.tolist() == [1, 1, 2, 1, 0]
        assert found.dtype == np.int8 and tried.dtype == np.int16


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_done_is_work_and_results_and_errors(kind, tmp_path):
    table = Location(str(tmp_path) if kind == "local" else f"memory://{uuid.uuid4().hex}")
    assert len(read_done(table)) == 0
    assert read_done(table).lookup(packed(key(1)))[0].tolist() == [0]
    write_work(table, "r1", rows(row(1), row(2, status="failed"), row(3, status="rejected")))
    Publisher(table, "r1", "h", SCHEMA, ["a", "b"]).publish(final=True)
    write_work(table, "r2", rows(row(2, status="failed", attempt=2), row(4), row(1, task="b")))
    done = read_done(table)
    status, attempts = done.lookup(packed(key(1), key(2), key(3), key(4), key(1, "b"), key(9)))
    assert status.tolist() == [1, 3, 2, 1, 1, 0] and attempts.tolist() == [1, 2, 1, 1, 1, 0]
    again = pickle.loads(pickle.dumps(done))
    assert (again.keys == done.keys).all() and len(again) == 5


def test_a_broken_file_is_named(tmp_path):
    broken = tmp_path / "results" / "a" / "x.parquet"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"not parquet at all")
    with pytest.raises(TableError, match=r"x\.parquet"):
        read_done(Location(str(tmp_path)))
    pq.write_table(pa.table({"key": ["short"]}), broken)
    with pytest.raises(TableError, match="32 hex digits"):
        read_done(Location(str(tmp_path)))


def test_a_key_set_knows_what_was_put_in():
    generator = np.random.default_rng(1)
    pool = np.frombuffer(generator.bytes(16 * 2000), "S16")
    keys, known = KeySet(), set()
    for _ in range(50):
        some = generator.choice(pool, 60)
        first = keys.first_seen(some)
        seen = set(known)
        for value, flag in zip(some.tolist(), first):
            assert flag == (value not in seen)
            seen.add(value)
        keys.add(some)
        known |= set(some.tolist())
        assert len(keys) == len(known)
    assert keys.contains(pool).sum() == len(known)


def test_a_million_keys_are_looked_up_at_once():
    keys = np.frombuffer(np.random.default_rng(2).bytes(16 * 1_000_000), "S16")
    done = DoneIndex.build([(keys, np.ones(len(keys), np.int8), np.ones(len(keys), np.int16))])
    assert done.lookup(keys)[0].all()
    assert done.keys.nbytes + done.status.nbytes + done.attempts.nbytes == 19 * len(done)
