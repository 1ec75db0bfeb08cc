"""One pass over a table's files: footers, pages, columns and rows, handed on to the checks that join them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra.storage import FileInfo, Location, Problem, StorageError

from ..damage import first_line
from ..errors import TableError
from ..schema import OUTPUT, SCHEMA_VERSION
from ..table import reading
from .report import Check
from .rows import Span, keys_left_out, row_problems, whole_keys

# In the order in which rows move, so that a publisher at work hides none.
ZONES = ("_work", "results", "errors")
# Rows looked at together: by their size, because a text may be long.
_ROWS, _BYTES = 1 << 16, 64 << 20
# What the rows of one run and task share, for the comparison with the run's manifest.
SHARED = (
    "run_id", "task", "status", "kind", "language", "task_fingerprint", "model", "model_revision", "backend", "seed",
    "job",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Footer:
    """What a table file's footer says. `name`: the file's path below the table."""

    name: str
    run_id: str | None
    job_hash: str | None


class RowSink(Protocol):
    """A check that takes rows in as they are read."""

    def take(self, rows: pa.Table, keys: pa.ChunkedArray, zone: str, file: int) -> None:
        """Rows of file number `file`, all with whole keys."""
        ...


@dataclass(slots=True)
class Scanned:
    """What the pass leaves behind. `names`: the files by their number; `groups`: rows by zone and SHARED."""

    names: list[str] = field(default_factory=list)
    footers: list[Footer] = field(default_factory=list)
    groups: Counter[tuple] = field(default_factory=Counter)


class Scan:
    """Reads every file of a table once, whole; what is wrong with files and rows by themselves goes into the checks."""

    def __init__(
        self, table: Location, files: Check, rows: Check, sinks: Sequence[RowSink], spans: Mapping[str, Span]
    ) -> None:
        self._table = table
        self._files = files
        self._rows = rows
        self._sinks = sinks
        self._spans = spans
        self._carried: pa.Schema | None = None
        self.found = Scanned()

    def run(self, say: Callable[[str], None]) -> Scanned:
        """StorageError when the store itself cannot be read; a damaged file is a finding."""
        for zone in ZONES:
            listed = self._table.child(zone).list_files()
            for n, file in enumerate(listed, start=1):
                say(f"reading {zone}/: file {n:,} of {len(listed):,}")
                self._file(zone, file)
        return self.found

    def _file(self, zone: str, file: FileInfo) -> None:
        name = self._table.below(file)
        self.found.names.append(name)
        task = name.split("/")[1] if zone != "_work" and name.count("/") > 1 else None
        read, promised = 0, 0
        try:
            stream = _batches(Location(file.url))
            opened = next(stream)
            assert isinstance(opened, pq.ParquetFile)
            promised, schema = opened.metadata.num_rows, opened.schema_arrow
            self._footer(name, schema.metadata or {})
            usable = self._columns(name, schema)
            for batch in stream:
                read += batch.num_rows
                if usable:
                    self._batch(pa.Table.from_batches([batch]), zone, task, name)
        except TableError as error:
            self._files.wrong("a file cannot be read", f"{name}: {first_line(error.__cause__ or error)}")
            promised = read
        except StorageError as error:
            if error.problem is not Problem.MISSING:
                raise
            # A work file that a publisher merged and deleted between the listing and now.
            self._files.note("a file was taken away while the table was read", name)
            return
        if read != promised:
            self._files.wrong(
                "the footer counts other rows than there are", f"{name}: {promised:,} promised, {read:,} read"
            )
        self._files.saw("files")
        self._files.saw("bytes", file.size)
        self._rows.saw(f"rows in {zone}/", read)

    def _footer(self, name: str, metadata: Mapping[bytes, bytes]) -> None:
        said = {key: metadata.get(b"corpusmill." + key.encode()) for key in ("run_id", "job_hash", "schema_version")}
        text = {key: None if value is None else value.decode(errors="replace") for key, value in said.items()}
        version = text["schema_version"]
        if version not in {str(number) for number in range(1, SCHEMA_VERSION + 1)}:
            self._files.wrong("the footer's schema version is not known", f"{name}: {version or 'none'}")
        self.found.footers.append(Footer(name=name, run_id=text["run_id"], job_hash=text["job_hash"]))

    def _columns(self, name: str, schema: pa.Schema) -> bool:
        """Whether a file's columns are the table's, so that its rows can be looked at."""
        usable = True
        for place, field_ in enumerate(OUTPUT):
            at = schema.get_field_index(field_.name)
            if at < 0:
                said = f"{name}: {field_.name} is missing"
            elif schema.field(at).type != field_.type:
                said = f"{name}: {field_.name} is {schema.field(at).type}, not {field_.type}"
            elif at != place:
                self._files.wrong("the columns are not in their order", f"{name}: {field_.name} is column {at + 1}")
                continue
            else:
                continue
            self._files.wrong("a column is not as it must be", said)
            usable = False
        carried = pa.schema([one for one in schema if one.name not in OUTPUT.names])
        self._carried = carried if self._carried is None else self._carried
        if not carried.equals(self._carried):
            listed = ", ".join(carried.names) or "none"
            self._files.wrong("the carried columns differ between files", f"{name}: {listed}")
        return usable

    def _batch(self, rows: pa.Table, zone: str, task: str | None, name: str) -> None:
        try:
            rows.validate(full=True)
        except pa.ArrowInvalid as error:
            self._files.wrong("a file cannot be read", f"{name}: {first_line(error)}")
            return
        keys = rows.column("key")
        whole = whole_keys(rows)
        if not whole.all():
            self._wrong("a key is not 32 hex digits", ~whole, keys, name)
            rows = rows.filter(pa.array(whole))
            keys = rows.column("key")
        for what, mask in row_problems(rows, zone, task, self._spans):
            self._wrong(what, mask, keys, name)
        if hidden := keys_left_out(rows):
            self._rows.note("known by a source path without its credentials; the key was not made again", (), hidden)
        counted = rows.group_by(list(SHARED)).aggregate([([], "count_all")]).to_pylist()
        for group in counted:
            self.found.groups[(zone, *(group[column] for column in SHARED))] += group["count_all"]
        for sink in self._sinks:
            sink.take(rows, keys, zone, len(self.found.names) - 1)

    def _wrong(self, what: str, mask: np.ndarray, keys: pa.ChunkedArray, name: str) -> None:
        at = np.flatnonzero(mask)
        if len(at):
            shown = [f"{keys[int(i)].as_py()} in {name}" for i in at[:3]]
            self._rows.wrong(what, shown, len(at))


def _batches(location: Location) -> Iterator[pq.ParquetFile | pa.RecordBatch]:
    """The open file, then its rows: read errors come out of here, the caller's own do not pass through."""
    with reading(location) as opened:
        yield opened
        groups = [opened.metadata.row_group(n) for n in range(opened.metadata.num_row_groups)]
        largest = max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=0)
        yield from opened.iter_batches(max(1, min(_ROWS, _BYTES // max(1, largest))), use_threads=False)
