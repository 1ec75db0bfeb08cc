"""Each row's content hash against its source row as it is now: a join of table rows and source rows by their place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infra.storage import FileInfo, Location
from workers.documents import Document, sha256_without_etags

from ..job import JobSpec
from ..keys import hex_of, keys_of
from .documents import SourceReader
from .report import EXAMPLES, Check
from .spill import Spill, row_places

PLACES = np.dtype(
    [
        ("file", "u4"), ("row", "i8"), ("kind", "u1"), ("sha", "S32"), ("bare", "S32"), ("id", "S16"), ("key", "S16"),
        ("run", "u4"), ("referenced", "u1"),
    ]
)  # fmt: skip
_SOURCE, _OK, _OTHER = range(3)
# Rows of the source whose identity is made at once.
_BLOCK = 4096
_NO_SHA = b""


class SourceLedger:
    """Takes in the place and the content hash of each table row, then of those of the source files that they name."""

    def __init__(
        self, spill: Spill, jobs: Mapping[str, JobSpec | str], manifests: Mapping[str, Mapping[str, Any]]
    ) -> None:
        self._spill = spill
        self._jobs = jobs
        self._manifests = manifests
        self._runs: dict[str, int] = {}
        self._readers: dict[tuple, SourceReader] = {}
        # (reader, path as the table spells it) → its number
        self._files: dict[tuple[tuple, str], int] = {}
        self._unreadable: dict[str, int] = {}
        self._by_place = 0

    def take(self, rows: pa.Table, keys: pa.ChunkedArray, zone: str, file: int) -> None:
        """Rows of the table; those of a document that never had a content hash are known by their place alone."""
        if zone == "_work":
            return
        has_sha = pc.fill_null(pc.match_substring_regex(rows.column("document_sha256"), "^[0-9a-f]{64}$"), False)
        usable = pc.and_(
            has_sha, pc.and_(pc.is_valid(rows.column("source_path")), pc.is_valid(rows.column("source_row")))
        )
        self._by_place += len(rows) - (pc.sum(usable).as_py() or 0)
        rows = rows.filter(usable)
        for run in pc.unique(rows.column("run_id")).to_pylist():
            self._take(run, rows.filter(pc.equal(rows.column("run_id"), run)), zone)

    def _take(self, run: str, rows: pa.Table, zone: str) -> None:
        job = self._jobs.get(run, "its run has no manifest")
        if isinstance(job, str):
            reason = f"run {run}: {job}"
            self._unreadable[reason] = self._unreadable.get(reason, 0) + len(rows)
            return
        reader = self._reader(job)
        paths = rows.column("source_path").combine_chunks().dictionary_encode()
        numbers = [self._files.setdefault((reader, path), len(self._files)) for path in paths.dictionary.to_pylist()]
        records = np.zeros(len(rows), PLACES)
        records["file"] = np.array(numbers, np.uint32)[paths.indices.to_numpy()]
        records["row"] = rows.column("source_row").to_numpy()
        records["kind"] = _OK if zone == "results" else _OTHER
        records["sha"] = np.frombuffer(bytes.fromhex("".join(rows.column("document_sha256").to_pylist())), "S32")
        records["id"] = _hashes(rows.column("document_id").to_pylist())
        records["key"] = keys_of(rows.column("key"))
        records["run"] = self._runs.setdefault(run, len(self._runs))
        self._add(records)

    def _reader(self, job: JobSpec) -> tuple:
        source = job.source
        identity = (source.path, source.id, source.text, source.images, source.image_roots)
        self._readers.setdefault(identity, SourceReader.of(source))
        return identity

    def _add(self, records: np.ndarray) -> None:
        self._spill.add(row_places(records["file"], records["row"]), records)

    def check(self, check: Check, say: Callable[[str], None]) -> None:
        """Reads each source file once and compares; SourceError or StorageError when the store cannot be read."""
        if self._by_place:
            check.note("known by their place in the source alone, without a content hash", (), self._by_place)
        for reason, rows in self._unreadable.items():
            check.left_out(f"{rows:,} rows were not compared: {reason}")
        listed = {identity: reader.listed() for identity, reader in self._readers.items()}
        now: dict[int, FileInfo | None] = {}
        for n, ((identity, path), number) in enumerate(self._files.items(), start=1):
            say(f"reading the source again: file {n:,} of {len(self._files):,}")
            file = listed[identity].get(path) or Location(path).info()
            now[number] = file
            self._read(self._readers[identity], number, file, path, check)
        paths = {number: path for (_, path), number in self._files.items()}
        then = self._etags()
        for records in self._spill.partitions():
            _compare(records, paths, now, then, list(self._runs), check)

    def _read(self, reader: SourceReader, number: int, file: FileInfo | None, path: str, check: Check) -> None:
        groups = None if file is None else reader.row_groups(file.url)
        if file is None:
            check.note("a source file is gone", path)
            return
        if groups is None:
            check.note("a source file can no longer be read as the job describes it", path)
            return
        check.saw("source files")
        for block in _blocks(reader.documents(groups)):
            check.saw("source rows", len(block))
            self._add(_records(block, number))

    def _etags(self) -> dict[tuple[int, str], str]:
        """(run, path) → the file's etag when the run read it."""
        found = {}
        for run, number in self._runs.items():
            for entry in self._manifests.get(run, {}).get("inputs") or ():
                found[number, str(entry.get("path"))] = str(entry.get("etag"))
        return found


def _blocks(documents: Iterator[Document]) -> Iterator[list[tuple[int, bytes, bytes, str | None, bool]]]:
    """(row, hash, hash without etags, id, whether images are referenced) of documents, some thousand at a time."""
    block = []
    for document in documents:
        referenced = any(image.path is not None for image in document.images)
        sha = _NO_SHA if document.sha256 is None else bytes.fromhex(document.sha256)
        bare = bytes.fromhex(sha256_without_etags(document)) if referenced and document.sha256 else sha
        block.append((document.source_row, sha, bare, document.id, referenced))
        if len(block) == _BLOCK:
            yield block
            block = []
    if block:
        yield block


def _records(block: list[tuple[int, bytes, bytes, str | None, bool]], number: int) -> np.ndarray:
    records = np.zeros(len(block), PLACES)
    rows, shas, bare, ids, referenced = zip(*block, strict=True)
    records["file"], records["kind"], records["row"] = number, _SOURCE, rows
    records["sha"], records["bare"], records["referenced"] = shas, bare, referenced
    records["id"] = _hashes(ids)
    return records


def _compare(
    records: np.ndarray,
    paths: Mapping[int, str],
    now: Mapping[int, FileInfo | None],
    then: Mapping[tuple[int, str], str],
    runs: list[str],
    check: Check,
) -> None:
    order = np.lexsort((records["kind"], records["row"], records["file"]))
    records = records[order]
    first = np.ones(len(records), bool)
    same = (records["file"][1:] == records["file"][:-1]) & (records["row"][1:] == records["row"][:-1])
    first[1:] = ~same
    source = records[np.flatnonzero(first)[np.cumsum(first) - 1]]
    mine = records["kind"] != _SOURCE
    records, source = records[mine], source[mine]
    there = source["kind"] == _SOURCE
    equal = there & (records["sha"] == source["sha"]) & (records["id"] == source["id"])
    bare = (records["kind"] == _OTHER) & (records["sha"] == source["bare"]) & (records["id"] == source["id"])
    equal |= there & bare
    check.saw("rows whose content is the same", int(equal.sum()))
    check.saw("rows compared", len(records))
    left = np.flatnonzero(~equal)
    for run, file in np.unique(records[["run", "file"]][left]).tolist():
        at = left[(records["run"][left] == run) & (records["file"][left] == file)]
        what, wrong = _verdict(then.get((run, paths[file])), now[file])
        images = (source["referenced"][at] == 1) & there[at]
        if wrong and images.any():
            # Of an image that a row names the manifest holds no etag, so nobody knows which of the two has changed.
            _tell(check, "the images that the row names have changed since", at[images], records, paths, runs, False)
            at = at[~images]
        _tell(check, what, at, records, paths, runs, wrong)


def _verdict(then: str | None, now: FileInfo | None) -> tuple[str, bool]:
    """What a different content means, and whether it is wrong."""
    if now is None:
        return "source has changed since: the file is gone", False
    if then is None:
        return "the source file is not among those that the row's run read", True
    if then != now.etag:
        return "source has changed since", False
    return "the content hash is not that of the source row, whose file has not changed", True


def _tell(
    check: Check, what: str, at: np.ndarray, records: np.ndarray, paths: Mapping[int, str], runs: list[str], wrong: bool
) -> None:
    if len(at):
        shown = records[at[:EXAMPLES]]
        keys = hex_of(shown["key"]).to_pylist()
        examples = [f"{key} (row {one['row']} of {paths[one['file']]})" for key, one in zip(keys, shown, strict=True)]
        (check.wrong if wrong else check.note)(what, examples, len(at))


def _hashes(ids: list[str | None] | tuple[str | None, ...]) -> np.ndarray:
    digests = [blake2b((value or "").encode("utf-8", "surrogatepass"), digest_size=16).digest() for value in ids]
    return np.frombuffer(b"".join(digests), "S16")
