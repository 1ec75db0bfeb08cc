"""What earlier runs' ledgers say of the source's files: row groups, ids, and where their pairs are listed."""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from infra.storage import FileInfo, Location, Problem, StorageError

from .errors import TableError
from .keys import KEY
from .table import reading

_NAMES = pa.dictionary(pa.int32(), pa.string())
PAIRS = pa.schema(
    [
        pa.field("key", pa.binary(16), nullable=False),
        pa.field("task", _NAMES, nullable=False),
        pa.field("status", _NAMES, nullable=False),
        pa.field("group", pa.int32(), nullable=False),  # -1: of a file that cannot be read
    ]
)
# One row for each source row group that came out whole; `group` is its number in the run, `parts` the part files that
# hold its pairs, `pairs` and `not_applicable` its counts by task. `file`: a hash of its file's URL, which may hold what
# must not be written down. `ids`: a hash of 16 bytes for each document, zeros for a null. `fixed`: the file alone
# decides its keys.
GROUPS = pa.schema(
    [
        ("file", pa.string()),
        ("version", pa.string()),
        ("size", pa.int64()),
        ("schema", pa.binary()),
        ("row_groups", pa.int32()),
        ("index", pa.int32()),
        ("first_row", pa.int64()),
        ("rows", pa.int64()),
        ("documents", pa.int64()),
        ("duplicates", pa.list_(pa.int64())),
        ("ids", pa.large_binary()),
        ("fixed", pa.bool_()),
        ("group", pa.int32()),
        ("parts", pa.list_(pa.int32())),
        ("pairs", pa.list_(pa.int64())),
        ("not_applicable", pa.list_(pa.int64())),
    ]
)
KNOWN = pa.schema([("run_id", _NAMES), ("group", pa.int32()), ("parts", pa.list_(pa.int32()))])

_LEDGER_FILE = re.compile(r"/_runs/([^/]+)/asked/(part|groups)-(\d+)\.parquet$")
_PARALLEL = 16
_FOOTER = b"corpusmill.decides"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decides:
    """Hashes of what decides which rows of a file are documents (`scan`), and which key a document gets of a task."""

    scan: str
    common: str
    tasks: dict[str, str]

    def footer(self) -> dict[bytes, bytes]:
        """As keys of a Parquet footer."""
        return {_FOOTER: json.dumps({"scan": self.scan, "common": self.common, "tasks": self.tasks}).encode()}

    @classmethod
    def read(cls, footer: Mapping[bytes, bytes] | None) -> Decides:
        """Back from a footer; ValueError or KeyError when it holds none."""
        given = json.loads((footer or {})[_FOOTER])
        return cls(scan=given["scan"], common=given["common"], tasks=given["tasks"])

    def covers(self, other: Decides) -> bool:
        """Whether pairs written down under these hashes hold all that `other` asks for."""
        return self.common == other.common and other.tasks.items() <= self.tasks.items()


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A row group as one run's ledger has it; `pairs` and `not_applicable` by the tasks that run asked for."""

    run_id: str
    group: int
    parts: tuple[int, ...]
    first_row: int
    rows: int
    documents: int
    duplicates: tuple[int, ...]
    fixed: bool
    pairs: dict[str, int]
    not_applicable: dict[str, int]


@dataclass(slots=True)
class KnownFile:
    """A file that has not changed: its schema, how many row groups it has, and those whose ids are known.

    `ids`: hashes (S16) of each row group's documents. `asked`: the newest record of each that holds all that is asked.
    """

    schema: pa.Schema
    row_groups: int
    ids: dict[int, np.ndarray] = field(default_factory=dict)
    found: dict[int, Record] = field(default_factory=dict)
    asked: dict[int, Record] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether every row group is known."""
        return len(self.found) == self.row_groups


def part_file(table: Location, run_id: str, number: int, kind: str = "part") -> Location:
    """A run's file of pairs, or of row groups (`groups`)."""
    return table.child("_runs", run_id, "asked", f"{kind}-{number:05d}.parquet")


def known_file(table: Location, run_id: str) -> Location:
    """The file of row groups that a run took over from older ones."""
    return table.child("_runs", run_id, "asked", "known.parquet")


def hash_of(url: str) -> str:
    """What the ledger calls a file (32 hex)."""
    return hashlib.blake2b(url.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def recall(table: Location, asked: Decides, listed: Sequence[FileInfo]) -> dict[str, KnownFile]:
    """What the ledgers of `table` say of those of the `listed` files that are still what they were, by URL.

    Newest runs first, until everything is known. A ledger file that is damaged or went away is as good as none.
    """
    ledgers: list[tuple[str, int, FileInfo]] = []
    parts: set[tuple[str, int]] = set()
    for file in table.child("_runs").list_files():
        if match := _LEDGER_FILE.search(file.url):
            run_id, kind, number = match[1], match[2], int(match[3])
            parts.add((run_id, number)) if kind == "part" else ledgers.append((run_id, number, file))
    ledgers.sort(key=lambda ledger: ledger[:2], reverse=True)
    learning = _Learning(asked, {hash_of(file.url): file for file in listed if file.version}, parts)
    with ThreadPoolExecutor(_PARALLEL) as pool:
        for start in range(0, len(ledgers), _PARALLEL):
            window = ledgers[start : start + _PARALLEL]
            for (run_id, _, file), read in zip(window, pool.map(lambda each: _read(each[2], asked), window)):
                if read is not None:
                    learning.add(file.url, run_id, *read)
            if learning.finished:
                break
        for ids in pool.map(_ids, learning.wanted_ids.items()):
            learning.take_ids(ids)
    return learning.files


class _Learning:
    """Puts records together, newest first."""

    def __init__(self, asked: Decides, listed: dict[str, FileInfo], parts: set[tuple[str, int]]) -> None:
        self.files: dict[str, KnownFile] = {}
        # Of each ledger file the groups whose ids are taken from it, and where they belong.
        self.wanted_ids: defaultdict[str, dict[int, tuple[str, int]]] = defaultdict(dict)
        self._asked = asked
        self._listed = listed
        self._parts = parts
        self._schemas: dict[bytes, pa.Schema] = {}
        self._complete = 0

    @property
    def finished(self) -> bool:
        """Whether older ledgers can add nothing."""
        return self._complete == len(self._listed)

    def add(self, ledger: str, run_id: str, written: Decides, rows: pa.Table) -> None:
        """Takes in the row groups of one ledger file."""
        covers = written.covers(self._asked)
        there = [name in self._listed and self._listed[name].version == version for name, version in _files(rows)]
        spelled = rows.column("schema").combine_chunks().dictionary_encode()
        schemas = [self._schema(each) for each in spelled.dictionary.to_pylist()]
        rows = rows.set_column(rows.schema.get_field_index("schema"), "schema", spelled.indices)
        for row in rows.filter(pa.array(there, pa.bool_())).to_pylist():
            url = self._listed[row["file"]].url
            file = self.files.get(url)
            if file is None:
                file = self.files[url] = KnownFile(schemas[row["schema"]], row["row_groups"])
            index = row["index"]
            record = None
            if index not in file.found:
                record = file.found[index] = _record(run_id, written, row)
                self.wanted_ids[ledger][row["group"]] = (url, index)
            if index not in file.asked and covers and row["fixed"] and self._stand(run_id, row["parts"]):
                file.asked[index] = record or _record(run_id, written, row)
                self._complete += len(file.asked) == file.row_groups

    def take_ids(self, ids: Iterable[tuple[tuple[str, int], np.ndarray]]) -> None:
        """Takes in row groups' ids; one whose ids are not what its record says is not known."""
        for (url, index), hashes in ids:
            self.files[url].ids[index] = hashes

    def _schema(self, spelled: bytes) -> pa.Schema:
        if spelled not in self._schemas:
            self._schemas[spelled] = pa.ipc.read_schema(pa.py_buffer(spelled))
        return self._schemas[spelled]

    def _stand(self, run_id: str, parts: Sequence[int]) -> bool:
        return all((run_id, part) in self._parts for part in parts)


def _record(run_id: str, written: Decides, row: dict) -> Record:
    return Record(
        run_id=run_id,
        group=row["group"],
        parts=tuple(row["parts"]),
        first_row=row["first_row"],
        rows=row["rows"],
        documents=row["documents"],
        duplicates=tuple(row["duplicates"]),
        fixed=row["fixed"],
        pairs=dict(zip(written.tasks, row["pairs"], strict=True)),
        not_applicable=dict(zip(written.tasks, row["not_applicable"], strict=True)),
    )


def _files(rows: pa.Table) -> Iterator[tuple[str, str]]:
    return zip(rows.column("file").to_pylist(), rows.column("version").to_pylist(), strict=True)


def _read(file: FileInfo, asked: Decides) -> tuple[Decides, pa.Table] | None:
    """A ledger file's row groups without their ids; None when they say nothing of such a source."""
    try:
        with reading(Location(file.url)) as opened:
            written = Decides.read(opened.metadata.metadata)
            if written.scan != asked.scan:
                return None
            return written, opened.read([name for name in GROUPS.names if name != "ids"], use_threads=False)
    except TableError:
        return None
    except StorageError as error:
        if error.problem is Problem.MISSING:
            return None
        raise


def _ids(wanted: tuple[str, dict[int, tuple[str, int]]]) -> list[tuple[tuple[str, int], np.ndarray]]:
    url, groups = wanted
    found = []
    try:
        with reading(Location(url)) as opened:
            for batch in opened.iter_batches(1 << 10, columns=["group", "ids"], use_threads=False):
                for group, ids in zip(batch.column("group").to_pylist(), batch.column("ids"), strict=True):
                    if group in groups:
                        # A copy: few of a file's row groups may be of use.
                        found.append((groups[group], np.frombuffer(ids.as_buffer(), KEY).copy()))
    except (TableError, StorageError) as error:
        if isinstance(error, StorageError) and error.problem is not Problem.MISSING:
            raise
        return []
    return found
