"""The source alone: any column form, true rows, repeated ids, damaged files, and packets of documents."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import SourceError
from pipelines.job import SourceSpec
from pipelines.read import Read, as_units
from pipelines.source import sample, scan
from pipelines.stages import pack, unpack

PNG = b"\x89PNG"


def spec(path, **changes) -> SourceSpec:
    return SourceSpec.model_validate({"path": str(path), "id": "id", "text": "text", **changes})


def write(path, columns, group=2) -> None:
    pq.write_table(pa.table(columns), path, row_group_size=group)


def read(source: SourceSpec, groups=None) -> list[dict]:
    corpus = scan(source)
    pieces = Read(source, corpus.carry)(as_units(corpus.row_groups if groups is None else groups, corpus.unreadable))
    return [row for piece in pieces for row in piece.to_pylist()]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([PNG, None]), [[(PNG, None)], None]),
        (pa.array([PNG, None], pa.large_binary()), [[(PNG, None)], None]),
        (pa.array(["a.png", None]), [[(None, "a.png")], None]),
        (pa.array(["a.png", "a.png"]).dictionary_encode(), [[(None, "a.png")], [(None, "a.png")]]),
        (pa.array([{"bytes": PNG, "path": "x"}, {"bytes": None, "path": None}]), [[(PNG, "x")], None]),
        (pa.array([{"path": "x"}, None]), [[(None, "x")], None]),
        (pa.array([[PNG, PNG], []]), [[(PNG, None), (PNG, None)], []]),
        (pa.array([["a", None], None]), [[(None, "a"), None], None]),
        (pa.array([[{"bytes": PNG, "path": None}], None]), [[(PNG, None)], None]),
        (pa.nulls(2), [None, None]),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_images_come_in_any_form(tmp_path, column, expected):
    write(tmp_path / "a.parquet", {"id": ["x", "y"], "text": ["t", None], "photo": column})
    rows = read(spec(tmp_path, images="photo"))
    got = [
        None if row["images"] is None else [item and (item["bytes"], item["path"]) for item in row["images"]]
        for row in rows
    ]
    assert got == expected
    assert [row["text"] for row in rows] == ["t", None]


def test_ids_become_strings_and_rows_keep_their_places(tmp_path):
    write(tmp_path / "b.parquet", {"id": [1, 2, 3, 4, 5], "text": list("abcde"), "keep": [1, 0, 1, 0, 1]})
    write(tmp_path / "a.parquet", {"id": [9], "text": ["z"], "keep": [1]})
    rows = read(spec(tmp_path, filter=[["keep", "=", 1]], carry=["keep"]))
    assert [(r["document_id"], r["source_row"], r["source_path"].rsplit("/", 1)[-1]) for r in rows] == [
        ("9", 0, "a.parquet"), ("1", 0, "b.parquet"), ("3", 2, "b.parquet"), ("5", 4, "b.parquet"),
    ]  # fmt: skip
    assert rows[0]["carry"] == {"keep": 1}


def test_the_first_of_a_repeated_id_wins_over_files_and_row_groups(tmp_path):
    write(tmp_path / "a.parquet", {"id": ["x", None, "y", "x", None], "text": list("abcde")})
    write(tmp_path / "b.parquet", {"id": ["y", "z"], "text": list("fg")})
    rows = read(spec(tmp_path))
    assert [(r["text"], r["duplicate"]) for r in rows] == [
        ("a", False), ("b", False), ("c", False), ("d", True), ("e", False), ("f", True), ("g", False),
    ]  # fmt: skip


def test_a_sample_is_spread_over_the_corpus(tmp_path):
    for name in "abc":
        write(tmp_path / f"{name}.parquet", {"id": [f"{name}{i}" for i in range(7)], "text": ["t"] * 7})
    corpus = scan(spec(tmp_path))
    picked = [row["document_id"] for row in read(spec(tmp_path), sample(corpus, 5))]
    assert picked == ["a0", "a5", "b3", "c1", "c6"]
    assert len(read(spec(tmp_path), sample(corpus, 100))) == 21


def test_files_that_are_no_parquet_are_reported_beside_those_that_are(tmp_path):
    write(tmp_path / "a.parquet", {"id": ["x"], "text": ["t"]})
    (tmp_path / "b.parquet").write_bytes(b"nothing of the kind")
    (tmp_path / "_c.parquet").write_bytes(b"hidden: not looked at")
    corpus = scan(spec(tmp_path))
    assert [file.url.rsplit("/", 1)[-1] for file in corpus.unreadable] == ["b.parquet"]
    rows = read(spec(tmp_path))
    assert rows[1]["source_row"] == -1 and "not a Parquet file" in rows[1]["problem"]


@pytest.fixture
def damaged(tmp_path):
    """Three row groups of four; the text of the second cannot be decoded. Its path and its texts."""
    texts = [f"text number {i} " * 50 for i in range(12)]
    columns = {"id": list("abcdefghijkl"), "text": texts, "keep": [1, 0] * 6}
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=4, compression="none", use_dictionary=False)
    data = bytearray(path.read_bytes())
    start = pq.read_metadata(path).row_group(1).column(1).data_page_offset
    data[start : start + 12] = b"\xff" * 12  # the page header
    path.write_bytes(data)
    return path, texts


def test_a_damaged_page_costs_its_row_group_alone(damaged):
    path, texts = damaged
    rows = read(spec(path))
    assert [row["source_row"] for row in rows] == list(range(12))
    assert [row["problem"] is not None for row in rows] == [False] * 4 + [True] * 4 + [False] * 4
    assert rows[8]["text"] == texts[8]


def test_a_damaged_page_rejects_only_what_was_asked_for(damaged):
    source = spec(damaged[0], filter=[["keep", "=", 1]])
    rows = read(source)
    assert [(row["source_row"], row["problem"] is not None) for row in rows] == [
        (0, False), (2, False), (4, True), (6, True), (8, False), (10, False),
    ]  # fmt: skip
    assert len(rows) == scan(source).documents
    picked = read(source, sample(scan(source), 3))
    assert [row["source_row"] for row in picked] == [0, 4, 10]


def test_ids_that_cannot_be_read_make_every_row_of_the_group_unreadable(damaged):
    source = spec(damaged[0]).model_copy(update={"id": "text", "text": "id"})
    rows = read(source)
    assert len(rows) == 12 == scan(source).documents
    assert [row["problem"] is not None for row in rows] == [False] * 4 + [True] * 4 + [False] * 4


def test_a_carried_string_that_is_not_utf8_costs_its_row(tmp_path):
    bad = pa.array([b"fine", b"\xff\xfe", b"too"]).cast(pa.binary()).view(pa.string())
    write(tmp_path / "a.parquet", {"id": ["x", "y", "z"], "text": ["t"] * 3, "note": bad})
    rows = read(spec(tmp_path, carry=["note"]))
    assert [row["carry"]["note"] for row in rows] == ["fine", None, "too"]
    assert [row["problem"] is not None for row in rows] == [False, True, False]
    assert "note" in rows[1]["problem"]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"text": "body"}, "'body'"),
        ({"images": "id", "text": "number"}, "'number' is int64"),
        ({"carry": ["text"], "text": "text"}, "'text'"),
        ({"filter": [["number", "=", "one"]]}, "filter"),
        ({"id": "ratio"}, "'ratio' is double"),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(tmp_path, changes, word):
    write(tmp_path / "a.parquet", {"id": ["x"], "text": ["t"], "number": [1], "ratio": [0.5]})
    with pytest.raises(SourceError) as caught:
        scan(spec(tmp_path, **changes))
    assert word in str(caught.value) and "\n" not in str(caught.value)


def test_carried_columns_must_be_of_one_type(tmp_path):
    write(tmp_path / "a.parquet", {"id": ["x"], "text": ["t"], "year": [1]})
    write(tmp_path / "b.parquet", {"id": ["y"], "text": ["t"], "year": ["1"]})
    with pytest.raises(SourceError, match=r"'year' is int64 in .* and string in"):
        scan(spec(tmp_path, carry=["year"]))


def test_packets_hold_neighbours_up_to_a_budget_of_tokens():
    tokens = [9_000, 6_000, 5_000, 200, 200, 40_000, 10]
    request = pa.list_(pa.struct([("input_tokens", pa.int32())]))
    requests = [[{"input_tokens": count}] for count in tokens]
    requests[4] = []  # nothing to do: almost free
    pixels = pa.nulls(7, pa.large_binary())
    documents = pa.table({"n": np.arange(7), "requests": pa.array(requests, request), "pixels": pixels})
    packets = pack(documents)
    assert [[d["n"] for d in packet] for packet in packets.column("packet").to_pylist()] == [
        [0, 1], [2, 3, 4], [5], [6],
    ]  # fmt: skip
    assert unpack(packets).to_pylist() == documents.to_pylist()
    assert unpack(packets.slice(1, 2)).column("n").to_pylist() == [2, 3, 4, 5]
    assert unpack(pack(documents.slice(0, 0))).num_rows == 0


def test_packets_are_bounded_in_pixels_too():
    request = pa.list_(pa.struct([("input_tokens", pa.int32())]))
    image = bytes(10 << 20)
    documents = pa.table(
        {
            "requests": pa.array([[{"input_tokens": 10}]] * 5, request),
            "pixels": pa.array([image, image, None, image, image], pa.large_binary()),
        }
    )
    assert [len(packet) for packet in pack(documents).column("packet").to_pylist()] == [4, 1]


def test_a_row_group_that_ends_early_loses_no_row(tmp_path):
    write(tmp_path / "a.parquet", {"id": ["a", "b"], "text": ["x", "y"]})
    source = spec(tmp_path)
    [group] = scan(source).row_groups
    # What a damaged footer does: more rows are promised than the pages hold.
    promised = replace(group, rows=4, documents=4)
    rows = read(source, [promised])
    assert [(row["source_row"], row["text"]) for row in rows] == [(0, "x"), (1, "y"), (2, None), (3, None)]
    assert [row["problem"] for row in rows[:2]] == [None, None]
    assert all("it ends after 2 of its 4 rows" in row["problem"] for row in rows[2:])
    assert len(read(source, [replace(group, rows=1, documents=1)])) == 1


def test_views_can_be_filtered(tmp_path):
    write(tmp_path / "a.parquet", {"id": pa.array(["a", "b"], pa.string_view()), "text": ["x", "y"], "n": [1, 2]})
    assert [row["document_id"] for row in read(spec(tmp_path, filter=[["n", ">", 1]]))] == ["b"]
    assert [row["document_id"] for row in read(spec(tmp_path, filter=[["id", "=", "a"]]))] == ["a"]
